//! What a group says to its members on other nodes, over the connections that its reactor shares.
//!
//! - Entries: one long-lived stream per follower. Requests are sent as soon as openraft has them, without waiting for
//!   answers, up to a bound in bytes; answers come back in their order. An entry travels as the bytes that the log holds.
//! - Heartbeats, votes, transfers: one short, urgent exchange each. They never wait behind entries.
//! - A snapshot is small (the state, no records), and goes in one exchange.

use std::{
    cell::RefCell, collections::VecDeque, future::Future, marker::PhantomData, pin::Pin, rc::Rc, time::Duration,
};

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt,
    future::{Either, select},
    stream,
};
use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    rt::AsyncRuntime,
};
use prost::Message as _;

use super::{
    Machine,
    types::{self, Node, Payload, RaftVote, Snapshot, TypeConfig},
};
use crate::{
    env::{Env, channel::Notify, net::Priority},
    format::peer::{Envelope, Message},
    ids::{NodeId, ShardUid},
    limits::APPEND_BYTES_IN_FLIGHT_MAX,
    peer::{
        Destination, PeerError, Peers,
        frame::{Frame, FrameKind, FrameReceiver, FrameSender, FrameStream, Received},
    },
};

/// A follower that says nothing for so long while entries wait for its answer is given up, and tried again with back-off:
/// its device may be slow, but not that slow.
const SILENT_MAX: Duration = Duration::from_secs(10);

/// Longest transfer of a snapshot.
const SNAPSHOT_MAX: Duration = Duration::from_secs(30);

/// Requests on their way to one follower; bytes count, too.
const REQUESTS_IN_FLIGHT_MAX: usize = 256;

/// Makes the connections of a group to its members.
pub struct Network<E: Env> {
    peers: Peers<E>,
    group: ShardUid,
    slot: u64,
}

impl<E: Env> Network<E> {
    /// For the group `group`, whose replicas are on the reactors of `slot`.
    pub fn new(peers: Peers<E>, group: ShardUid, slot: u64) -> Network<E> {
        Network { peers, group, slot }
    }
}

impl<E: Env, M: Machine> RaftNetworkFactory<TypeConfig<E, M>> for Network<E> {
    type Network = Member<E, M>;

    async fn new_client(&mut self, target: u64, _node: &Node) -> Self::Network {
        let to = Destination { node: NodeId(target), slot: self.slot };
        Member { peers: self.peers.clone(), group: self.group, to, machine: PhantomData }
    }
}

/// One member of a group.
pub struct Member<E: Env, M> {
    peers: Peers<E>,
    group: ShardUid,
    to: Destination,
    machine: PhantomData<fn() -> M>,
}

type Error<E, M> = RPCError<TypeConfig<E, M>>;

fn unreachable<E: Env, M: Machine>(cause: impl ToString) -> Error<E, M> {
    Unreachable::from_string(cause).into()
}

impl<E: Env, M: Machine> Member<E, M> {
    fn frame(&self, kind: FrameKind, message: Message, parts: Vec<Bytes>) -> Frame {
        Frame { kind, envelope: Envelope { group: self.group, message }.encode(), parts }
    }

    /// One exchange.
    async fn exchange(
        &self,
        message: Message,
        parts: Vec<Bytes>,
        priority: Priority,
        within: Duration,
    ) -> Result<Message, Error<E, M>> {
        let frame = self.frame(FrameKind::Raft, message, parts);
        let answer = self.peers.call(self.to, frame, priority, within).await.map_err(unreachable)?;
        message_of(&answer).map_err(unreachable)
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig<E, M>>,
        pre: bool,
        within: Duration,
    ) -> Result<VoteResponse<TypeConfig<E, M>>, Error<E, M>> {
        let message = Message::VoteRequest {
            vote: types::from_raft_vote(&request.vote),
            last: request.last_log_id.as_ref().map(types::from_raft),
            pre,
            transfer: request.leadership_transfer,
        };
        match self.exchange(message, Vec::new(), Priority::Urgent, within).await? {
            Message::VoteAnswer { vote, last, granted } => {
                Ok(VoteResponse::new(types::to_raft_vote(vote), last.map(types::to_raft), granted))
            }
            other => Err(unexpected(self.to.node, &other)),
        }
    }
}

/// What a peer's frame says.
fn message_of(answer: &Received) -> Result<Message, String> {
    if answer.kind == FrameKind::Refused {
        let refusal = crate::proto::ringlog::state::v1::PeerRefusal::decode(answer.envelope.clone());
        return Err(refusal.map_or_else(|error| error.to_string(), |refusal| refusal.message));
    }
    Ok(Envelope::decode(&answer.envelope)?.message)
}

fn unexpected<E: Env, M: Machine>(from: NodeId, message: &Message) -> Error<E, M> {
    match message {
        Message::Failed { cause } => unreachable(format!("node {from}: {cause}")),
        other => unreachable(format!("node {from} gave another answer: {other:?}")),
    }
}

/// A request as it goes onto the wire.
fn append_message<E: Env, M: Machine>(request: &AppendEntriesRequest<TypeConfig<E, M>>) -> Message {
    Message::Append {
        vote: types::from_raft_vote(&request.vote),
        prev: request.prev_log_id.as_ref().map(types::from_raft),
        commit: request.leader_commit.as_ref().map(types::from_raft),
    }
}

/// The bytes of its entries, as the log holds them.
fn append_parts(entries: Vec<types::Entry>) -> Vec<Bytes> {
    let bytes = |entry: types::Entry| match entry.payload {
        Payload::Sealed { stored, .. } => stored.bytes,
        // openraft sends what it has read back from the log.
        Payload::Blank | Payload::Open(_) | Payload::Membership(_) | Payload::Received { .. } => {
            unreachable!("only entries of the log are sent")
        }
    };
    entries.into_iter().map(bytes).collect()
}

impl<E: Env, M: Machine> RaftNetworkV2<TypeConfig<E, M>> for Member<E, M> {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig<E, M>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<E, M>>, Error<E, M>> {
        let message = append_message(&request);
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let parts = append_parts(request.entries);
        match self.exchange(message, parts, Priority::Urgent, option.hard_ttl()).await? {
            Message::Matched { log_id } if log_id.map(types::to_raft) == last => Ok(AppendEntriesResponse::Success),
            Message::Matched { log_id } => Ok(AppendEntriesResponse::PartialSuccess(log_id.map(types::to_raft))),
            Message::Conflict { .. } => Ok(AppendEntriesResponse::Conflict),
            Message::HigherVote { vote } => Ok(AppendEntriesResponse::HigherVote(types::to_raft_vote(vote))),
            other => Err(unexpected(self.to.node, &other)),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut requests: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig<E, M>>, Error<E, M>>>, Error<E, M>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig<E, M>>> + Unpin + 'static,
    {
        Box::pin(async move {
            let Some(first) = requests.next().await else {
                return Ok(Box::pin(stream::empty()) as BoxStream<'s, _>);
            };
            let in_flight = Rc::new(InFlight::default());
            let (message, parts) = (append_message(&first), append_parts(first.entries));
            in_flight.add(bytes_of(&parts));
            let frame = self.frame(FrameKind::Append, message, parts);
            let opened = self.peers.open(self.to, frame, Priority::Normal).await;
            let FrameStream { sender, receiver } = opened.map_err(unreachable)?;
            let pump = Box::pin(pump::<E, M, S>(requests, sender, self.group, in_flight.clone()));
            let answers = Answers { pump: Some(pump), receiver, in_flight, over: false, machine: PhantomData };
            Ok(Box::pin(stream::unfold(answers, Answers::<E, M>::next)) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig<E, M>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E, M>>, Error<E, M>> {
        self.ask_vote(request, false, option.hard_ttl()).await
    }

    // openraft's default grants, which would let a cut-off node count votes that nobody gave.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig<E, M>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E, M>>, Error<E, M>> {
        self.ask_vote(request, true, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<E, M>>, StreamingError<TypeConfig<E, M>>> {
        let refused = |cause: String| Unreachable::from_string(cause);
        let last = snapshot.meta.last_log_id.as_ref().map(types::from_raft);
        let last = last.ok_or_else(|| refused("a snapshot of nothing is not sent".to_owned()))?;
        let membership = types::encode_membership(snapshot.meta.last_membership.membership());
        let message = Message::Snapshot {
            vote: types::from_raft_vote(&vote),
            last,
            membership_log_id: snapshot.meta.last_membership.log_id().as_ref().map(types::from_raft),
            membership: membership.encode_to_vec().into(),
        };
        let frame = self.frame(FrameKind::Snapshot, message, vec![snapshot.snapshot]);
        let call = Box::pin(self.peers.call(self.to, frame, Priority::Normal, SNAPSHOT_MAX));
        let answer = match select(Box::pin(cancel), call).await {
            Either::Left((closed, _)) => return Err(closed.into()),
            Either::Right((answer, _)) => answer.map_err(|error| refused(error.to_string()))?,
        };
        match message_of(&answer).map_err(refused)? {
            Message::SnapshotAnswer { vote } => Ok(SnapshotResponse::new(types::to_raft_vote(vote))),
            other => Err(refused(format!("node {} gave another answer: {other:?}", self.to.node)).into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig<E, M>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<E, M>>, Error<E, M>> {
        let message = Message::Transfer {
            vote: types::from_raft_vote(request.from_leader()),
            to: Some(NodeId(*request.to_node_id())),
            last: request.last_log_id().map(types::from_raft),
        };
        match self.exchange(message, Vec::new(), Priority::Urgent, option.hard_ttl()).await? {
            Message::Done => Ok(Ok(())),
            other => Err(unexpected(self.to.node, &other)),
        }
    }
}

/// Requests on their way to one follower, oldest first.
#[derive(Default)]
struct InFlight {
    bytes: RefCell<VecDeque<usize>>,
    sum: std::cell::Cell<usize>,
    landed: Notify,
}

impl InFlight {
    fn add(&self, bytes: usize) {
        self.bytes.borrow_mut().push_back(bytes);
        self.sum.set(self.sum.get() + bytes);
    }

    fn land(&self) {
        let bytes = self.bytes.borrow_mut().pop_front().unwrap_or(0);
        self.sum.set(self.sum.get() - bytes);
        self.landed.notify_one();
    }

    fn is_empty(&self) -> bool {
        self.bytes.borrow().is_empty()
    }

    /// Waits for room; a request that is larger than all of it goes alone.
    async fn room(&self, bytes: usize) {
        loop {
            let landed = self.landed.notified();
            let count = self.bytes.borrow().len();
            let fits = count < REQUESTS_IN_FLIGHT_MAX && self.sum.get() + bytes <= APPEND_BYTES_IN_FLIGHT_MAX;
            if count == 0 || fits {
                return;
            }
            landed.await;
        }
    }
}

fn bytes_of(parts: &[Bytes]) -> usize {
    parts.iter().map(Bytes::len).sum()
}

/// Sends requests as they come, until openraft has no more.
async fn pump<E: Env, M: Machine, S>(
    mut requests: S,
    mut sender: FrameSender<E>,
    group: ShardUid,
    in_flight: Rc<InFlight>,
) -> Result<(), PeerError>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig<E, M>>> + Unpin,
{
    while let Some(request) = requests.next().await {
        let message = append_message(&request);
        let parts = append_parts(request.entries);
        let bytes = bytes_of(&parts);
        in_flight.room(bytes).await;
        in_flight.add(bytes);
        let frame = Frame { kind: FrameKind::Append, envelope: Envelope { group, message }.encode(), parts };
        sender.send(frame).await?;
    }
    sender.finish();
    Ok(())
}

type Pump = Pin<Box<dyn Future<Output = Result<(), PeerError>>>>;

/// The answers to an append stream; sends requests while somebody waits for them.
struct Answers<E: Env, M> {
    pump: Option<Pump>,
    receiver: FrameReceiver<E>,
    in_flight: Rc<InFlight>,
    over: bool,
    machine: PhantomData<fn() -> M>,
}

type Answer<E, M> = Result<StreamAppendResult<TypeConfig<E, M>>, Error<E, M>>;

impl<E: Env, M: Machine> Answers<E, M> {
    async fn next(mut self) -> Option<(Answer<E, M>, Self)> {
        if self.over {
            return None;
        }
        loop {
            if self.pump.is_none() && self.in_flight.is_empty() {
                return None;
            }
            let answer = match self.pump.take() {
                None => self.receive().await,
                Some(pump) => {
                    let receive = Box::pin(self.receiver.receive());
                    // What is waited for is only overdue while something is in flight.
                    let waiting = !self.in_flight.is_empty();
                    let both = select(receive, pump);
                    let first =
                        if waiting { E::Runtime::timeout(SILENT_MAX, both).await.ok() } else { Some(both.await) };
                    match first {
                        None => Err(silent()),
                        Some(Either::Left((received, pump))) => {
                            self.pump = Some(pump);
                            received.map_err(unreachable)
                        }
                        // openraft has no more requests: the rest of the answers are awaited.
                        Some(Either::Right((Ok(()), _))) => continue,
                        Some(Either::Right((Err(error), _))) => Err(unreachable(error)),
                    }
                }
            };
            let result = answer.and_then(|received| result_of(received.as_ref()));
            self.in_flight.land();
            self.over = !matches!(&result, Ok(Ok(_)));
            return Some((result, self));
        }
    }

    async fn receive(&mut self) -> Result<Option<Received>, Error<E, M>> {
        match E::Runtime::timeout(SILENT_MAX, self.receiver.receive()).await {
            Ok(received) => received.map_err(unreachable),
            Err(_) => Err(silent()),
        }
    }
}

fn silent<E: Env, M: Machine>() -> Error<E, M> {
    unreachable(format!("no answer to appended entries within {SILENT_MAX:?}"))
}

fn result_of<E: Env, M: Machine>(received: Option<&Received>) -> Answer<E, M> {
    let received = received.ok_or_else(|| unreachable::<E, M>("the follower has ended the stream"))?;
    match message_of(received).map_err(unreachable)? {
        Message::Matched { log_id } => Ok(Ok(log_id.map(types::to_raft))),
        Message::Conflict { log_id } => Ok(Err(StreamAppendError::Conflict(types::to_raft(log_id)))),
        Message::HigherVote { vote } => Ok(Err(StreamAppendError::HigherVote(types::to_raft_vote(vote)))),
        Message::Failed { cause } => Err(unreachable(cause)),
        other => Err(unreachable(format!("another answer: {other:?}"))),
    }
}
