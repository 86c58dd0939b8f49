//! What every front door shares: routing a call to the shard that answers it, and turning errors
//! into statuses.
//!
//! A reactor's front doors use `Frontend`: a call for a shard of that reactor is a function call
//! without a message or an allocation. The ops thread owns no shards and uses `Remote`, which sends
//! everything through mailboxes. Neither knows a wire format; those are `grpc` and `http`.

pub mod admission;
mod consume;
pub mod grpc;
pub mod http;
pub mod refusal;
pub mod remote;
pub mod room;
pub mod route;
pub mod servers;
pub mod status;
pub mod topology;
pub mod under_way;

#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    rc::Rc,
    sync::Arc,
};

use openraft::AsyncRuntime;
use tokio::sync::oneshot;

pub use self::{
    consume::{ConsumeCall, TopicRead},
    remote::{Limits, Remote},
    status::{CallError, Code},
};
use crate::{
    budget::{Charge, Class, Use},
    env::{self, Env},
    format::records::{ProduceHead, Records},
    frontend::{
        grpc::{answers, lane::Lane, received},
        refusal::explained,
        remote::{checked_consume, durability, stopped},
        room::Room,
        route::Near,
        servers::{Servers, Told},
        under_way::{Answer, Passed, UnderWay},
    },
    ids::Offset,
    limits,
    proto::ringlog::v1 as proto,
    reactor::{
        Reactor,
        mailbox::{AdminAnswer, AdminCall, Request},
        node::{Node, Phase},
        topics::{PlacedTopic, ShardPlace, TopicReader},
    },
    shard::{Consumed, Produce, Produced, ShardError},
};

/// A produce call from a client.
#[derive(Clone, Debug)]
pub struct ProduceCall {
    /// Topic, shard, durability, expected offset, key hash.
    pub head: ProduceHead,
    /// Checked records.
    pub records: Records,
    /// On `Env::monotonic_us`.
    pub deadline_us: Option<u64>,
}

/// A produce call's answer.
#[derive(Clone, Debug)]
pub struct ProduceAck {
    /// Topic that was written.
    pub topic: Arc<str>,
    /// Shard of it.
    pub shard: u32,
    /// Offsets and the rest.
    pub produced: Produced,
    /// Who leads the shard, if it is another node: the request was forwarded to it.
    pub leader: Option<Box<proto::LeaderHint>>,
}

impl ProduceAck {
    fn new(node: &Node, topic: Arc<str>, shard: u32, produced: Produced) -> ProduceAck {
        let leader = produced.leader.map(|leader| {
            let address = node.book.get(leader).map(|node| node.grpc.clone()).unwrap_or_default();
            Box::new(proto::LeaderHint { node_id: leader.0, address })
        });
        ProduceAck { topic, shard, produced, leader }
    }
}

/// A reactor's front doors' view of the node. Cheap to clone; stays on its reactor.
pub struct Frontend<E: Env> {
    local: Rc<Local<E>>,
}

struct Local<E: Env> {
    reactor: Rc<Reactor<E>>,
    remote: Remote,
    topics: TopicReader,
    turn: Cell<u32>,
    near: Near,
    answers: Rc<answers::Pool>,
    received: Rc<received::Pool>,
    lane: Rc<Lane>,
    servers: Rc<Servers>,
    /// For what producing streams have under way to the shards of each reactor, by its number.
    rooms: Vec<Rc<Room>>,
    /// Calls that wait for a topic that is looked up, or made, for the first of them; in order.
    sought: RefCell<BTreeMap<String, Vec<Waiting>>>,
    /// How many they are.
    seeking: Cell<usize>,
}

/// Who waits for a topic.
enum Waiting {
    /// A call that goes to its shard when the topic is there. `held` is its memory, until its shard takes its own.
    Call { call: ProduceCall, held: Charge, reply: oneshot::Sender<Result<ProduceAck, CallError>> },
    /// A stream that passes its call on by itself then, when there is room for it (`admission`).
    Stream(oneshot::Sender<Result<(), CallError>>),
}

impl<E: Env> Local<E> {
    /// Whether a topic is looked up, or made: then calls for it wait in their order.
    fn is_sought(&self, name: &str) -> bool {
        let sought = self.sought.borrow();
        !sought.is_empty() && sought.contains_key(name)
    }

    /// A topic to whose shards calls can be passed on now.
    fn known(&self, name: &str) -> Option<Arc<PlacedTopic>> {
        if self.is_sought(name) { None } else { self.topics.get(name) }
    }
}

/// What a shard is asked for by a stream's call. The records are not copied.
fn produce_of(head: &ProduceHead, records: Records, deadline_us: Option<u64>) -> Result<Produce, CallError> {
    let (durability, expected_offset) = (durability(head.durability)?, head.expected_offset.map(Offset));
    Ok(Produce { records, durability, expected_offset, deadline_us, forwarded: false, single: false })
}

impl<E: Env> Clone for Frontend<E> {
    fn clone(&self) -> Self {
        Frontend { local: Rc::clone(&self.local) }
    }
}

impl<E: Env> Frontend<E> {
    /// The front doors of `reactor`.
    pub fn new(reactor: Rc<Reactor<E>>) -> Frontend<E> {
        let node = reactor.node();
        let (remote, topics) = (Remote::new(Arc::clone(node)), TopicReader::new(Arc::clone(&node.topics)));
        let (turn, near, sought, seeking) = (Cell::new(0), Near::default(), RefCell::default(), Cell::new(0));
        let (here, reactors) = (reactor.number().0 as usize, node.reactors.len());
        let room = |number| if number == here { Room::here() } else { Room::elsewhere(reactors - 1) };
        let rooms = (0..reactors).map(room).collect();
        let answers = Rc::new(answers::Pool::new(reactor.budget().clone()));
        let received = Rc::new(received::Pool::new(reactor.budget().clone()));
        let (lane, servers) = (Rc::default(), Rc::default());
        let local =
            Local { reactor, remote, topics, turn, near, answers, received, lane, servers, rooms, sought, seeking };
        Frontend { local: Rc::new(local) }
    }

    /// Routes and queues a produce at once: calls made one after the other that go to one shard get
    /// ascending offsets, also while they wait for a topic that the first of them creates. Dropping
    /// the future does not take the request back.
    pub fn produce(&self, call: ProduceCall) -> UnderWay<E> {
        self.submit(call).unwrap_or_else(UnderWay::refused)
    }

    /// Reads committed records. A wait ends early, with an error, when the node shuts down.
    pub fn consume(&self, call: ConsumeCall) -> impl Future<Output = Result<Consumed, CallError>> + use<E> + 'static {
        self.consume_of(call, &TopicRead::default())
    }

    /// Has this node know a topic that it does not know yet: who counts the memory of answers looks for it before there is any.
    ///
    /// # Errors
    /// `NOT_FOUND`, `UNAVAILABLE`.
    pub(super) async fn know_topic(&self, name: &str) -> Result<(), CallError> {
        let name = route::topic_name(name);
        if self.local.topics.get(name).is_none() {
            self.local.remote.find_topic(name).await?;
        }
        Ok(())
    }

    /// As `consume`, for a call that reads on from where an earlier read has ended: that is a place in `topic`, and not in another
    /// one of its name that was made since. It is refused like a read of a shard whose topic was deleted.
    pub fn consume_of(
        &self,
        call: ConsumeCall,
        topic: &TopicRead,
    ) -> impl Future<Output = Result<Consumed, CallError>> + use<E> + 'static {
        let started = match self.local.topics.get(route::topic_name(&call.topic)) {
            Some(view) => Ok(self.start_consume(&view, call, topic)),
            None => Err(call),
        };
        let (frontend, topic) = (self.clone(), topic.clone());
        async move {
            let started = match started {
                Ok(started) => started,
                Err(call) => {
                    let view = frontend.local.remote.find_topic(route::topic_name(&call.topic)).await?;
                    frontend.start_consume(&view, call, &topic)
                }
            };
            let (consumed, stop) = started?;
            let Some(stop) = stop else { return consumed.await };
            tokio::select! {
                biased;
                result = consumed => result,
                () = stop => Err(CallError::stopping(false)),
            }
        }
    }

    /// `Admin.CreateTopic`. Once it was sent, the topic is made even if nobody waits any more.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, `ALREADY_EXISTS`, `RESOURCE_EXHAUSTED`, `UNAVAILABLE`.
    pub async fn create_topic(&self, request: proto::CreateTopicRequest) -> Result<proto::Topic, CallError> {
        self.local.remote.create_topic(request).await
    }

    /// `Admin.ListTopics`, sorted by name.
    pub fn list_topics(&self) -> Vec<proto::Topic> {
        self.local.remote.list_topics()
    }

    /// `Admin.DescribeTopic`.
    ///
    /// # Errors
    /// `NOT_FOUND`, `UNAVAILABLE`.
    pub async fn describe_topic(&self, name: &str) -> Result<proto::DescribeTopicResponse, CallError> {
        self.local.remote.describe_topic(name).await
    }

    /// `Admin.DeleteTopic`. Once it was sent, the topic goes even if nobody waits any more.
    ///
    /// # Errors
    /// `NOT_FOUND`, `UNAVAILABLE`.
    pub async fn delete_topic(&self, name: &str) -> Result<(), CallError> {
        self.local.remote.delete_topic(name).await
    }

    /// `Admin.TrimTopic`; answers with the log start.
    ///
    /// # Errors
    /// `NOT_FOUND`, `OUT_OF_RANGE` above the high watermark, `UNAVAILABLE`.
    pub async fn trim_topic(&self, name: &str, shard: u32, before_offset: u64) -> Result<u64, CallError> {
        self.local.remote.trim_topic(name, shard, before_offset).await
    }

    /// `Log.GetServers`; all topics if none is named.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` above `SERVERS_TOPICS_MAX` names, `NOT_FOUND`, `UNAVAILABLE`.
    pub async fn get_servers(&self, topics: &[String]) -> Result<proto::GetServersResponse, CallError> {
        self.local.remote.get_servers(topics).await
    }

    /// What `get_servers` tells of all topics, asked for at `since_us` or later, by one for all who watch.
    ///
    /// # Errors
    /// `UNAVAILABLE`, `RESOURCE_EXHAUSTED`.
    pub async fn watched_servers(&self, since_us: u64) -> Result<Rc<Told>, CallError> {
        let make = || {
            let frontend = self.clone();
            async move { frontend.get_servers(&[]).await }
        };
        self.local.servers.latest::<E, _>(since_us, make).await
    }

    /// Looks for a topic that this node may not know yet.
    ///
    /// # Errors
    /// `NOT_FOUND`, `UNAVAILABLE`.
    pub async fn find_topic(&self, name: &str) -> Result<(), CallError> {
        self.local.remote.find_topic(name).await.map(|_| ())
    }

    /// `Admin.DescribeCluster`.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub async fn describe_cluster(&self) -> Result<proto::DescribeClusterResponse, CallError> {
        self.local.remote.describe_cluster().await
    }

    /// The calls of `Admin` about the cluster.
    ///
    /// # Errors
    /// The control's.
    pub async fn admin(&self, call: AdminCall) -> Result<AdminAnswer, CallError> {
        self.local.remote.admin(call).await
    }

    /// Tells when the topology may have changed.
    pub fn watch_topology(&self) -> topology::Changes {
        self.local.remote.watch_topology()
    }

    /// Largest message and record that clients may send here.
    pub fn limits(&self) -> Limits {
        self.local.remote.limits()
    }

    /// The reactor's memory for answers that wait for clients.
    pub fn answers(&self) -> &Rc<answers::Pool> {
        &self.local.answers
    }

    /// The reactor's memory for messages that are being received.
    pub fn received(&self) -> &Rc<received::Pool> {
        &self.local.received
    }

    /// Where the reactor's busy connections wait for their turns to read.
    pub fn lane(&self) -> &Rc<Lane> {
        &self.local.lane
    }

    /// Whether the node serves: recovered, not shutting down, at least one shard well. For health checks.
    pub fn is_serving(&self) -> bool {
        self.local.reactor.node().is_serving()
    }

    /// Resolves when the node begins to shut down: connections finish what they have, and go away.
    pub fn shutting_down(&self) -> impl Future<Output = ()> + use<E> + 'static {
        self.local.reactor.node().reached(Phase::Draining)
    }

    /// Routes a call and hands it to its shard, all at once.
    fn submit(&self, call: ProduceCall) -> Result<UnderWay<E>, CallError> {
        let local = &self.local;
        match local.known(route::topic_name(&call.head.topic)) {
            Some(view) => self.submit_to(&view, call),
            None => self.wait_for_topic(call).map(UnderWay::Waits),
        }
    }

    fn submit_to(&self, placed: &PlacedTopic, call: ProduceCall) -> Result<UnderWay<E>, CallError> {
        let (shard, place) = self.route(placed, &call.head, self.next_turn())?;
        let produce = Produce { single: true, ..produce_of(&call.head, call.records, call.deadline_us)? };
        if place.reactor == self.local.reactor.number() {
            return self.submit_here(placed, shard, place, produce);
        }
        let (reply, answer) = oneshot::channel();
        self.local.reactor.node().send(place.reactor, Request::Produce { uid: place.uid, produce, reply })?;
        let answer = Answer::There(answer);
        Ok(UnderWay::Passed(Passed::new(&self.local, placed, shard, place.uid, answer)))
    }

    /// Hands a produce to a shard of this reactor.
    fn submit_here(
        &self,
        placed: &PlacedTopic,
        shard: u32,
        place: ShardPlace,
        produce: Produce,
    ) -> Result<UnderWay<E>, CallError> {
        let reactor = &self.local.reactor;
        let answer = reactor.submit(place.uid, produce).map_err(|error| explained(error, &reactor.node().book))?;
        Ok(UnderWay::Passed(Passed::new(&self.local, placed, shard, place.uid, Answer::Here(answer))))
    }

    /// Counts calls; each gets one turn.
    fn next_turn(&self) -> u32 {
        let turn = self.local.turn.get();
        self.local.turn.set(turn.wrapping_add(1));
        turn
    }

    /// Number and place of the shard that a call goes to.
    fn route(&self, placed: &PlacedTopic, head: &ProduceHead, turn: u32) -> Result<(u32, ShardPlace), CallError> {
        let local = &self.local;
        let here = local.reactor.number();
        let shard = if placed.alone || head.shard.is_some() || head.key_hash.is_some() {
            let near = placed.by_reactor.get(here.0 as usize).map_or(&[][..], |near| near);
            route::produce_shard(placed, head.shard, head.key_hash, near, turn)?
        } else {
            let near = local.near.get(local.reactor.node(), placed, here);
            route::produce_shard(placed, None, None, &near, turn)?
        };
        Ok((shard, route::numbered_shard(placed, shard)?))
    }

    /// Has a call wait for its topic.
    fn wait_for_topic(&self, call: ProduceCall) -> Result<oneshot::Receiver<Result<ProduceAck, CallError>>, CallError> {
        let bytes = call.records.encoded_bytes_max();
        let held =
            self.local.reactor.budget().take(Use::Queued, Class::Client, bytes).map_err(|_| ShardError::NoMemory)?;
        let (reply, ack) = oneshot::channel();
        let name = route::topic_name(&call.head.topic).to_owned();
        self.wait_for(name, Waiting::Call { call, held, reply })?;
        Ok(ack)
    }

    /// Has a stream wait for a topic: tells when it is there, or why it is not.
    fn search(&self, name: &str) -> Result<oneshot::Receiver<Result<(), CallError>>, CallError> {
        let (reply, found) = oneshot::channel();
        self.wait_for(name.to_owned(), Waiting::Stream(reply))?;
        Ok(found)
    }

    /// Begins to look for a topic, or to make it, unless that is done already.
    fn wait_for(&self, name: String, waiting: Waiting) -> Result<(), CallError> {
        let is_sought = self.local.is_sought(&name);
        if !is_sought {
            self.local.remote.check_unknown(&name)?;
        }
        // Before anything is looked for: what is refused makes no topic.
        if self.local.seeking.get() >= limits::MAILBOX_REQUESTS_MAX {
            let message = "too many calls wait for topics that are looked up or created; retry after a moment";
            return Err(CallError::retry(Code::ResourceExhausted, "CATALOG_BUSY", message));
        }
        self.local.sought.borrow_mut().entry(name.clone()).or_default().push(waiting);
        self.local.seeking.set(self.local.seeking.get() + 1);
        if !is_sought {
            let frontend = self.clone();
            env::spawn_core::<E>(async move { frontend.seek_and_release(name).await });
        }
        Ok(())
    }

    /// Finds or makes the topic, then hands all calls that waited for it to their shards, in order, and tells the streams.
    async fn seek_and_release(self, name: String) {
        let found = self.seek(&name).await;
        let waiting = self.local.sought.borrow_mut().remove(&name).expect("only this task removes it");
        self.local.seeking.set(self.local.seeking.get() - waiting.len());
        for waiting in waiting {
            match waiting {
                Waiting::Call { call, held, reply } => {
                    drop(held);
                    self.release(&found, call, reply);
                }
                Waiting::Stream(reply) => drop(reply.send(found.clone().map(|_| ()))),
            }
        }
    }

    /// Hands a call that has waited for its topic to its shard; not if its client is gone, which may have sent it elsewhere since.
    fn release(
        &self,
        found: &Result<Arc<PlacedTopic>, CallError>,
        call: ProduceCall,
        mut reply: oneshot::Sender<Result<ProduceAck, CallError>>,
    ) {
        if reply.is_closed() {
            return;
        }
        let submitted = found.clone().and_then(|view| self.submit_to(&view, call));
        let under_way = submitted.unwrap_or_else(UnderWay::refused);
        env::spawn::<E>(async move {
            tokio::select! {
                biased;
                ack = under_way => drop(reply.send(ack)),
                // Its shard sees by this that nobody waits any more.
                () = reply.closed() => {}
            }
        });
    }

    /// Finds or makes the topic. Calls for it wait no longer than `TOPIC_WAIT`, also when another search has found it by then.
    async fn seek(&self, name: &str) -> Result<Arc<PlacedTopic>, CallError> {
        let remote = &self.local.remote;
        let found = <E::Runtime as AsyncRuntime>::timeout(limits::TOPIC_WAIT, remote.topic_to_write(name)).await;
        match (found, self.local.topics.get(name)) {
            (Ok(found), _) => found,
            (Err(_), Some(view)) => Ok(view),
            (Err(_), None) => {
                let waited = limits::TOPIC_WAIT.as_secs();
                let message =
                    format!("topic {name:?} was neither found nor made within {waited} s; nothing was written");
                Err(CallError::retry(Code::Unavailable, "CATALOG_UNAVAILABLE", message))
            }
        }
    }

    /// Routes a consume and starts it; the second future cuts its wait short.
    #[allow(clippy::type_complexity, reason = "two futures and an error; naming them would not say more")]
    fn start_consume(
        &self,
        view: &PlacedTopic,
        call: ConsumeCall,
        topic: &TopicRead,
    ) -> Result<
        (
            impl Future<Output = Result<Consumed, CallError>> + use<E> + 'static,
            Option<impl Future<Output = ()> + use<E> + 'static>,
        ),
        CallError,
    > {
        let local = &self.local;
        topic.check(view.view.id)?;
        let consume = checked_consume(call.consume, self.limits())?;
        let place = route::numbered_shard(view, call.shard)?;
        let stop = (!consume.wait.is_zero()).then(|| self.shutting_down());
        let consumed = if place.reactor == local.reactor.number() {
            futures_util::future::Either::Left(local.reactor.consume(place.uid, consume))
        } else {
            let (reply, consumed) = oneshot::channel();
            local.reactor.node().send(place.reactor, Request::Consume { uid: place.uid, consume, reply })?;
            futures_util::future::Either::Right(async move { consumed.await.unwrap_or(Err(stopped(false))) })
        };
        let frontend = self.clone();
        let book = move || Arc::clone(&frontend.local.reactor.node().book);
        Ok((async move { consumed.await.map_err(|error| explained(error, &book())) }, stop))
    }
}
