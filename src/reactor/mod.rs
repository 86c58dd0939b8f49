//! A reactor: one pinned thread that owns its shards, and does for them what its own connections
//! and the other threads' messages ask.
//!
//! - A call for a shard of this reactor is a plain function call; for another's it goes through
//!   that one's `mailbox`, which is bounded and refuses when it is full.
//! - Nothing here waits for one request before it takes the next: an append or a consume that has
//!   to wait does so in its own future.
//! - A shard that cannot be opened, or has stopped, is kept as such: its calls get the reason, the
//!   other shards serve.
//!
//! `produce`, `control` (topics are made and removed; on reactor 0), `forward` (what another node has to do), `inbound` (what other
//! nodes ask), `repair` (of damaged replicas), `advice` (to people), `remove` (of those that are not to be here any more), `stays`
//! (who may touch a replica's directory), `gossip` (who is there; on reactor 0), `listen` (sockets), `seats` (which connections go),
//! `thread` (pinning).

pub mod advice;
pub mod control;
pub mod descriptors;
pub mod forward;
pub mod gossip;
pub mod inbound;
pub mod listen;
pub mod mailbox;
pub mod node;
mod phase;
mod produce;
mod remove;
pub mod repair;
pub mod seats;
mod stays;
#[cfg(test)]
mod tests;
pub mod thread;
pub mod topics;

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
    future::Future,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use openraft::AsyncRuntime;

use crate::{
    budget::Budget,
    env::{self, Env, channel, domain},
    ids::{NodeId, Offset, ReactorNumber, ShardUid},
    limits,
    log::TailBudget,
    peer::Peers,
    reactor::{
        control::{ControlError, ControlQueue},
        forward::{Forwards, leaders::Leader},
        gossip::Gossip,
        inbound::Hooks,
        mailbox::{Mailbox, Reply, Request},
        node::Node,
        stays::{Stay, Stays},
    },
    shard::{Consume, Consumed, Owed, Shard, ShardError, ShardOptions, ShardStatus},
};

/// Shards of one reactor that open or close at the same time. Each reads and writes its own files;
/// more only queue in the device.
const OPEN_AT_ONCE: usize = 16;

/// What a panic in a request of another thread ends, for people.
const CALL: &str = "a call";

/// How often a shard is tried again that found the disk full, or no descriptor.
const REOPEN_INTERVAL: Duration = Duration::from_secs(5);

/// Why a reactor does not do what it is asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReactorError {
    /// The shard's own answer.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The shard could not be opened. Nothing was written.
    #[error("{cause}")]
    NotOpen {
        /// What was wrong with it.
        error: ShardError,
        /// The same with its name and place, for people.
        cause: String,
    },
    /// No such shard here (any more): its topic was deleted. Nothing was written.
    #[error("the shard is not here any more: its topic was deleted")]
    Gone,
    /// Retry: too many requests wait. Nothing was written.
    #[error("the mailbox of the shard's reactor is full; retry after a moment")]
    MailboxFull,
    /// The reactor has ended.
    #[error("the node is shutting down")]
    Stopped {
        /// The request was in its hands: it may or may not have been done.
        maybe_written: bool,
    },
}

impl ReactorError {
    /// As `ShardError::maybe_written`.
    pub fn maybe_written(&self) -> bool {
        match self {
            ReactorError::Shard(error) => error.maybe_written(),
            ReactorError::Stopped { maybe_written } => *maybe_written,
            ReactorError::NotOpen { error: _, cause: _ } | ReactorError::Gone | ReactorError::MailboxFull => false,
        }
    }
}

enum Slot<E: Env> {
    Serving(Shard<E>),
    NotOpen { error: ShardError, cause: String },
}

impl<E: Env> Slot<E> {
    /// What a shard is that could not be opened; noted for readiness and for the log.
    fn not_open(node: &Node, options: &ShardOptions, error: ShardError) -> Slot<E> {
        let (uid, dir) = (options.uid, options.dir.display());
        let cause = format!("shard {uid} could not be opened: {error}; `ringlog verify {dir}` checks its files");
        node.note_fault(uid, &cause);
        Slot::NotOpen { error, cause }
    }
}

/// One reactor's shards. Stays on its thread.
pub struct Reactor<E: Env> {
    number: ReactorNumber,
    node: Arc<Node>,
    disk: E::Disk,
    budget: Budget,
    tail: TailBudget,
    peers: OnceCell<Peers<E>>,
    shards: RefCell<BTreeMap<ShardUid, Slot<E>>>,
    stays: Stays,
    forwards: Forwards,
    /// Leaders are asked for once at a time.
    finding: channel::Mutex<()>,
    closing: Cell<bool>,
    control: OnceCell<ControlQueue>,
    hooks: Hooks<E>,
    gossip: OnceCell<Gossip<E>>,
}

impl<E: Env> Reactor<E> {
    /// A reactor without shards.
    pub fn new(number: ReactorNumber, node: Arc<Node>, disk: E::Disk) -> Rc<Reactor<E>> {
        let memory = Arc::clone(&node.reactors[number.0 as usize].memory);
        let budget = Budget::published(node.config.memory_bytes, memory);
        let tail = TailBudget::beside(budget.clone(), node.config.tail_bytes);
        Rc::new(Reactor {
            number,
            node,
            disk,
            budget,
            tail,
            peers: OnceCell::new(),
            shards: RefCell::default(),
            stays: Stays::default(),
            forwards: Forwards::default(),
            finding: channel::Mutex::new(()),
            closing: Cell::new(false),
            control: OnceCell::new(),
            hooks: Hooks::default(),
            gossip: OnceCell::new(),
        })
    }

    /// Its number.
    pub fn number(&self) -> ReactorNumber {
        self.number
    }

    /// What it shares with the others.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Its disk.
    pub fn disk(&self) -> &E::Disk {
        &self.disk
    }

    /// Its memory for what is on its way.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Its budget of recent entries.
    pub fn tail(&self) -> &TailBudget {
        &self.tail
    }

    /// Its connections to other nodes; none before `set_peers`.
    ///
    /// # Panics
    /// Before the node knows who it is.
    pub fn peers(&self) -> &Peers<E> {
        self.peers.get_or_init(|| Peers::alone(self.node.identity().expect("the identity is read first").node))
    }

    /// Gives the reactor its connections to other nodes, once, when the node's identity is known.
    pub fn set_peers(&self, peers: Peers<E>) {
        assert!(self.peers.set(peers).is_ok(), "a reactor's connections are made once");
    }

    /// Who answers what it cannot answer itself.
    pub fn hooks(&self) -> &Hooks<E> {
        &self.hooks
    }

    /// This node's part in the gossip, on reactor 0 once it has begun. Whoever handles datagrams feeds it.
    pub fn gossip(&self) -> Option<&Gossip<E>> {
        self.gossip.get()
    }

    fn set_gossip(&self, gossip: Gossip<E>) {
        assert_eq!(self.number, ReactorNumber(0), "gossip runs on reactor 0");
        assert!(self.gossip.set(gossip).is_ok(), "gossip begins once");
    }

    /// Its mailbox.
    pub fn mailbox(&self) -> &Mailbox {
        &self.node.reactors[self.number.0 as usize].mailbox
    }

    /// From now on this reactor answers requests about topics: it is reactor 0.
    pub fn set_control(&self, control: ControlQueue) {
        assert_eq!(self.number, ReactorNumber(0), "the catalog lives on reactor 0");
        assert!(self.control.set(control).is_ok(), "there is one catalog");
    }

    /// Where commands to the catalog go; `None` before it is open, and on all reactors but the first.
    pub fn control(&self) -> Option<&ControlQueue> {
        self.control.get()
    }

    /// Does what comes into the mailbox, for ever.
    pub async fn serve_mailbox(self: Rc<Self>) {
        let mut batch = Vec::new();
        loop {
            self.mailbox().take(&mut batch).await;
            for request in batch.drain(..) {
                self.handle(request);
            }
            // A flood of messages must not keep sockets and timers waiting.
            env::yield_now().await;
        }
    }

    /// Reads committed records, of the replica here if there is one that will do; waits as long as the request says.
    pub fn consume(
        self: &Rc<Self>,
        uid: ShardUid,
        consume: Consume,
    ) -> impl Future<Output = Result<Consumed, ReactorError>> + use<E> + 'static {
        let here = self.serving(uid).and_then(|shard| match shard.is_readable() || !self.is_elsewhere(uid) {
            true => Ok(shard.consume(Self::near(&shard, consume))),
            false => Err(inbound::not_filled(&shard)),
        });
        let reactor = Rc::clone(self);
        async move {
            let result = match here {
                Ok(consumed) => reactor.noted(uid, consumed.await),
                Err(error) => Err(error),
            };
            match result {
                Err(error) if reactor.reads_elsewhere(uid, &error) => {
                    Box::pin(reactor.consume_elsewhere(uid, consume, error)).await
                }
                result => result,
            }
        }
    }

    /// Moves a shard's log start up; answers with the present one. Only if this node leads.
    ///
    /// # Errors
    /// The shard's.
    pub async fn trim_here(&self, uid: ShardUid, before: Offset) -> Result<Offset, ReactorError> {
        let shard = self.serving(uid)?;
        self.noted(uid, shard.trim(before).await)
    }

    /// Has another replica lead instead of this one.
    ///
    /// # Errors
    /// `NotLeader`: this one does not lead. `NotTransferred`: it leads on.
    pub async fn move_leader(&self, uid: ShardUid, to: Option<NodeId>, within: Duration) -> Result<(), ReactorError> {
        let shard = self.serving(uid)?;
        if !shard.leads() {
            return Err(ShardError::NotLeader { leader: shard.leader().0 }.into());
        }
        self.noted(uid, shard.transfer(to, within).await)
    }

    /// Whether this node leads the shard, and its replica takes records.
    pub fn leads(&self, uid: ShardUid) -> bool {
        self.serving(uid).is_ok_and(|shard| shard.leads())
    }

    /// The replica here.
    ///
    /// # Errors
    /// `NotOpen`, `Gone`.
    pub fn shard(&self, uid: ShardUid) -> Result<Shard<E>, ReactorError> {
        self.serving(uid)
    }

    /// All shards that serve here, by uid.
    pub fn open_shards(&self) -> Vec<(ShardUid, Shard<E>)> {
        let shards = self.shards.borrow();
        let serving = shards.iter().filter_map(|(uid, slot)| match slot {
            Slot::Serving(shard) => Some((*uid, shard.clone())),
            Slot::NotOpen { .. } => None,
        });
        let mut serving: Vec<_> = serving.collect();
        serving.sort_by_key(|(uid, _)| *uid);
        serving
    }

    /// Numbers of shards, in the order asked for; `None` for those without a replica here.
    pub fn status(&self, uids: &[ShardUid]) -> Vec<Option<ShardStatus>> {
        let shards = self.shards.borrow();
        let status = |uid| match shards.get(uid)? {
            Slot::Serving(shard) => Some(self.with_majority(shard.status())),
            Slot::NotOpen { cause, error: _ } => Some(ShardStatus { fault: Some(cause.clone()), ..Default::default() }),
        };
        uids.iter().map(status).collect()
    }

    /// Adds what the replica does not know by itself: whether a leader hears most of its voters. Idle groups exchange nothing,
    /// and openraft's leader stays one until it hears of another; what the nodes' pings say holds for all groups.
    fn with_majority(&self, status: ShardStatus) -> ShardStatus {
        let no_majority = status.leader == Some(self.me()) && !status.members.has_majority(|node| self.hears(node));
        ShardStatus { no_majority, ..status }
    }

    /// Whether a replica here follows a leader that is heard, or is one that hears most of its voters.
    pub(in crate::reactor) fn is_led(&self, shard: &Shard<E>) -> bool {
        match shard.leader().0 {
            Some(leader) if leader == self.me() => self.hears_most(shard),
            Some(leader) => self.hears(leader),
            None => false,
        }
    }

    /// Whether most of a shard's voters are heard here.
    pub(in crate::reactor) fn hears_most(&self, shard: &Shard<E>) -> bool {
        shard.members().has_majority(|node| self.hears(node))
    }

    fn hears(&self, node: NodeId) -> bool {
        node == self.me() || self.node.liveness.is_alive(node)
    }

    /// Opens shards, making those that are not there. One that fails is kept with its reason; if the disk is full, or descriptors or
    /// memory are lacking, it is tried again until they return; if it is damaged, until it is mended. Gives those that failed; all
    /// were tried. One that is here already is not touched: it fails as it did when it was last tried.
    pub async fn open(self: &Rc<Self>, shards: Vec<ShardOptions>) -> Vec<(ShardUid, ReactorError)> {
        let (known, shards): (Vec<_>, Vec<_>) =
            shards.into_iter().partition(|options| self.shards.borrow().contains_key(&options.uid));
        let known = known.into_iter().filter_map(|options| match self.shards.borrow().get(&options.uid) {
            Some(Slot::NotOpen { error, cause: _ }) => Some((options.uid, error.clone().into())),
            Some(Slot::Serving(_)) | None => None,
        });
        let known: Vec<_> = known.collect();
        // Before they are opened: connections that are too many then are closed meanwhile.
        let expected = self.node.expect_replicas(self.number, shards.len());
        let opened = stream::iter(shards).map(|options| async move {
            let (uid, stay) = (options.uid, self.stays.of(options.uid));
            let held = stay.enter().await;
            let shard = Shard::open(self.disk.clone(), self.tail.clone(), self.peers().clone(), options.clone()).await;
            let (slot, failed) = match shard {
                Ok(shard) => (self.opened(&options, shard, &stay), None),
                Err(error) => (Slot::not_open(&self.node, &options, error.clone()), Some(error)),
            };
            let replaced = self.shards.borrow_mut().insert(uid, slot);
            assert!(replaced.is_none(), "a shard is opened once");
            drop(held);
            match &failed {
                Some(ShardError::Full(_) | ShardError::Starved { .. }) => {
                    env::spawn::<E>(Rc::clone(self).reopen(options, stay));
                }
                Some(ShardError::Damaged { .. }) => env::spawn::<E>(Rc::clone(self).repair(options, stay, None)),
                Some(_) | None => {}
            }
            failed.map(|error| (uid, error.into()))
        });
        let failed: Vec<_> = opened.buffer_unordered(OPEN_AT_ONCE).filter_map(std::future::ready).collect().await;
        self.count_shards();
        drop(expected);
        known.into_iter().chain(failed).collect()
    }

    /// Tries a shard again that found the disk full, or no descriptor, until it opens, fails otherwise, or is removed.
    async fn reopen(self: Rc<Self>, options: ShardOptions, stay: Rc<Stay>) {
        let uid = options.uid;
        let waits = || self.is_not_open(uid, &stay);
        loop {
            env::sleep::<E>(REOPEN_INTERVAL).await;
            let held = stay.enter().await;
            if !waits() {
                return;
            }
            let opened = Shard::open(self.disk.clone(), self.tail.clone(), self.peers().clone(), options.clone()).await;
            match opened {
                Ok(shard) if waits() => {
                    let slot = self.opened(&options, shard, &stay);
                    self.shards.borrow_mut().insert(uid, slot);
                    self.node.forget_fault(uid);
                    tracing::info!(shard_uid = uid.0, "shard serves again");
                    return;
                }
                // Removed meanwhile, or the node is closing.
                Ok(shard) => {
                    drop(shard.close().await);
                    return;
                }
                Err(ShardError::Full(_) | ShardError::Starved { .. }) => {}
                Err(ShardError::Damaged { .. }) => {
                    drop(held);
                    return Rc::clone(&self).repair(options, Rc::clone(&stay), None).await;
                }
                Err(error) => {
                    if waits() {
                        let slot = Slot::not_open(&self.node, &options, error);
                        self.shards.borrow_mut().insert(uid, slot);
                    }
                    return;
                }
            }
        }
    }

    /// A shard that was just opened: what it cannot do goes elsewhere, and who leads it is told.
    fn opened(self: &Rc<Self>, options: &ShardOptions, shard: Shard<E>, stay: &Rc<Stay>) -> Slot<E> {
        let uid = options.uid;
        let reactor = Rc::downgrade(self);
        let hand_back = move |owed: Vec<Owed>, error: ShardError| match reactor.upgrade() {
            Some(reactor) => domain::core(|| reactor.take_back(uid, owed, &error)),
            None => owed.into_iter().for_each(|owed| owed.answer(Err(error.clone()))),
        };
        shard.set_elsewhere(Rc::new(hand_back));
        self.tell_leader(uid, &shard);
        env::spawn::<E>(Rc::clone(self).watch(options.clone(), shard.clone(), Rc::clone(stay)));
        Slot::Serving(shard)
    }

    /// Tells who leads a shard, each time it changes, until it closes, is found to be damaged or ends in a panic; and that it has stopped, also
    /// if nobody asks it for anything: a follower is asked for nothing.
    async fn watch(self: Rc<Self>, options: ShardOptions, shard: Shard<E>, stay: Rc<Stay>) {
        let uid = options.uid;
        while shard.is_open() {
            let changed = shard.wait_changed();
            self.tell_leader(uid, &shard);
            if let Some(cause) = shard.fault() {
                self.node.note_fault(uid, &cause);
            }
            if shard.has_panicked() {
                return self.close_panicked(uid, &shard, &stay);
            }
            if !shard.is_damaged() {
                changed.await;
            } else if self.can_be_mended(&options) {
                return self.close_damaged(options, shard, stay).await;
            } else {
                // What is whole is served. Others may hold a replica some day.
                drop(E::Runtime::timeout(REOPEN_INTERVAL, changed).await);
            }
        }
    }

    fn tell_leader(&self, uid: ShardUid, shard: &Shard<E>) {
        let (leader, term) = shard.leader();
        let me = self.node.identity().map(|identity| identity.node);
        // A replica at fault leads nothing, whatever it was before; and one that was just elected does not yet.
        let node = leader.filter(|leader| Some(*leader) != me || shard.leads());
        self.node.leaders.note_own(uid, Leader { node, term }, E::monotonic_us());
    }

    /// Closes all shards cleanly, and the mailbox: whoever asks from now on learns that the
    /// reactor has stopped.
    pub async fn close(&self) {
        self.mailbox().close();
        self.closing.set(true);
        self.close_forwards();
        let shards = std::mem::take(&mut *self.shards.borrow_mut());
        let serving = shards.into_iter().filter_map(|(uid, slot)| match slot {
            Slot::Serving(shard) => Some((uid, shard)),
            Slot::NotOpen { .. } => None,
        });
        let closing = stream::iter(serving).map(|(uid, shard)| async move {
            if let Err(error) = shard.close().await {
                tracing::error!(shard_uid = uid.0, %error, "shard did not close cleanly; the next start will recover it");
            }
        });
        closing.buffer_unordered(OPEN_AT_ONCE).collect::<()>().await;
        self.count_shards();
    }

    fn handle(self: &Rc<Self>, request: Request) {
        match request {
            Request::Produce { uid, produce, reply } => answer_if_waited_for::<E, _>(reply, self.produce(uid, produce)),
            Request::Consume { uid, consume, reply } => answer_if_waited_for::<E, _>(reply, self.consume(uid, consume)),
            Request::Trim { uid, before, reply } => {
                let reactor = Rc::clone(self);
                answer::<E, _>(reply, async move { reactor.trim(uid, before).await });
            }
            Request::Status { uids, reply } => drop(reply.send(Ok(self.status(&uids)))),
            Request::Open { shards, reply } => {
                let reactor = Rc::clone(self);
                answer::<E, _>(reply, async move { Ok(reactor.open(shards).await) });
            }
            Request::Lost { uids, reply } => drop(reply.send(self.lose_all(&uids))),
            Request::Remove { uids, reply } => {
                let reactor = Rc::clone(self);
                answer::<E, _>(reply, async move { Ok(reactor.remove(uids).await) });
            }
            // Before the catalog is open, or on a reactor that has none, the reply is dropped: "stopped".
            Request::CreateTopic { create, reply } => {
                if let Some(control) = self.control.get() {
                    control.create(create, reply);
                }
            }
            Request::MoveLeader { uid, to, reply } => {
                let reactor = Rc::clone(self);
                answer::<E, _>(reply, async move { reactor.move_leader(uid, to, limits::LEADER_WAIT).await });
            }
            Request::Propose { command, reply } => {
                if let Some(control) = self.control.get() {
                    control.propose(command, reply);
                }
            }
            Request::DeleteTopic { name, reply } => {
                if let Some(control) = self.control.get() {
                    control.delete(name, reply);
                }
            }
            Request::LearnTopics { reply } => {
                if let Some(control) = self.control.get() {
                    control.catch_up(reply);
                }
            }
            Request::Admin { call, reply } => {
                if let Err(reply) = self.hooks.admin(call, reply) {
                    drop(reply.send(Err(ControlError::Busy)));
                }
            }
            Request::Ask { to, request, within, reply } => {
                let reactor = Rc::clone(self);
                answer::<E, _>(reply, async move { reactor.ask(to, request, within).await });
            }
            Request::FindLeaders { uids, reply } => {
                let reactor = Rc::clone(self);
                answer::<E, _>(reply, async move {
                    reactor.find_leaders(&uids).await;
                    Ok(())
                });
            }
        }
    }

    fn lose_all(&self, uids: &[ShardUid]) -> Result<(), ReactorError> {
        uids.iter().for_each(|uid| self.lose(*uid));
        Ok(())
    }

    /// Keeps a shard without files as such: to make it anew would hide that its records are gone.
    fn lose(&self, uid: ShardUid) {
        let dir = control::shard_dir(&self.node.config.data, uid);
        let only = "restore the directory from a backup, or delete the topic";
        let me = self.node.identity().map_or(NodeId(0), |identity| identity.node);
        let cause = format!(
            "shard {uid} is lost: its directory {} was missing, emptied or unreadable when the node started; if it is there again, \
             restart the node; else {}",
            dir.display(),
            advice::begin_anew(uid, me, self.has_others(uid), only)
        );
        self.node.note_fault(uid, &cause);
        let error = ShardError::Failed { cause: cause.clone(), maybe_written: false };
        self.shards.borrow_mut().insert(uid, Slot::NotOpen { error, cause });
        self.count_shards();
    }

    fn serving(&self, uid: ShardUid) -> Result<Shard<E>, ReactorError> {
        match self.shards.borrow().get(&uid) {
            Some(Slot::Serving(shard)) => Ok(shard.clone()),
            Some(Slot::NotOpen { error, cause }) => {
                Err(ReactorError::NotOpen { error: error.clone(), cause: cause.clone() })
            }
            None => Err(ReactorError::Gone),
        }
    }

    /// The reactor ends: nothing new is begun.
    fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Notes a shard that has stopped, for readiness and for the log. What a replica answers late that was removed meanwhile, and may
    /// have been made anew, says nothing of the shard that is here now.
    fn noted<T>(&self, uid: ShardUid, result: Result<T, ShardError>) -> Result<T, ReactorError> {
        if result.is_err()
            && let Ok(shard) = self.serving(uid)
            && let Some(cause) = shard.fault()
        {
            self.node.note_fault(uid, &cause);
        }
        Ok(result?)
    }

    fn count_shards(&self) {
        let count = self.shards.borrow().len();
        self.node.reactors[self.number.0 as usize].shards.store(count, Relaxed);
    }
}

/// Runs `work` and sends what it says, but not longer than somebody waits for it: then the shard knows that, too.
fn answer_if_waited_for<E: Env, T: 'static>(
    mut reply: Reply<T>,
    work: impl Future<Output = Result<T, ReactorError>> + 'static,
) {
    env::spawn_call::<E>(CALL, async move {
        tokio::select! {
            biased;
            () = reply.closed() => {}
            result = work => drop(reply.send(result)),
        }
    });
}

/// Runs `work` and sends what it says.
fn answer<E: Env, T: 'static>(reply: Reply<T>, work: impl Future<Output = Result<T, ReactorError>> + 'static) {
    env::spawn_call::<E>(CALL, async move { drop(reply.send(work.await)) });
}
