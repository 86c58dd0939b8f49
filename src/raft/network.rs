//! Calls to other replicas, as openraft wants them: votes, heartbeats, transfers and snapshots each on a stream of its own;
//! entries on one long-lived stream per follower (`pipeline`).
//!
//! Heartbeats and votes are urgent: they never wait behind entries. Every call is bounded by what openraft gives it. What
//! a peer answers is checked; an answer that makes no sense is an error of the network.

use std::{future::Future, marker::PhantomData, pin::pin, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, future::Either};
use openraft::{
    OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use prost::Message as _;

use super::{
    Machine,
    flush_times::FlushTimes,
    majority::Majority,
    pipeline::Session,
    thrift::Thrift,
    types::{self, Node, Payload, RaftVote, Snapshot, TypeConfig},
};
use crate::{
    env::{Env, net::Priority},
    format::peer::{Envelope, Message},
    ids::{LogId, NodeId, ShardUid},
    limits::{RAFT_RETRY_MAX, RAFT_RETRY_MIN},
    peer::{
        Destination, PeerError, Peers,
        frame::{Frame, FrameKind, FrameStream, Received},
    },
    proto::ringlog::state::v1,
};

/// Makes calls for one group.
pub struct Network<E: Env> {
    peers: Peers<E>,
    group: ShardUid,
    slot: u64,
    thrift: Thrift,
    majority: Rc<Majority>,
    flush_times: Rc<FlushTimes>,
}

/// One group's replica on one peer, for one kind of use: openraft makes several.
pub struct PeerOf<E: Env, M> {
    pub(super) line: Line<E>,
    /// The stream of entries between two sessions.
    pub(super) stream: Option<FrameStream<E>>,
    pub(super) thrift: Thrift,
    /// The last entry that it has said to have.
    acknowledged: Option<LogId>,
    majority: Rc<Majority>,
    pub(super) flush_times: Rc<FlushTimes>,
    machine: PhantomData<fn() -> M>,
}

/// The way to a group's replica on one peer.
pub struct Line<E: Env> {
    pub(super) peers: Peers<E>,
    pub(super) to: Destination,
    pub(super) group: ShardUid,
}

impl<E: Env> Clone for Line<E> {
    fn clone(&self) -> Self {
        Line { peers: self.peers.clone(), to: self.to, group: self.group }
    }
}

/// Why a replica's answer is of no use.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection's.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// It could not do it: it is not there, has stopped, or does not lead.
    #[error("node {node} refused: {cause}")]
    Refused {
        /// Who.
        node: NodeId,
        /// In words.
        cause: String,
    },
    /// It is no answer to the question.
    #[error("node {node} answered what makes no sense: {what}")]
    Nonsense {
        /// Who.
        node: NodeId,
        /// What was wrong.
        what: String,
    },
}

impl<E: Env> Network<E> {
    /// Calls for the group `group`, whose replicas are on the reactors that `slot` says.
    pub fn new(peers: Peers<E>, group: ShardUid, slot: u64) -> Network<E> {
        let (thrift, majority, flush_times) = (Thrift::default(), Rc::default(), Rc::default());
        Network { peers, group, slot, thrift, majority, flush_times }
    }

    /// The same, which tells `majority` what is acknowledged, and `flush_times` how long followers take for it.
    pub fn noting(self, majority: Rc<Majority>, flush_times: Rc<FlushTimes>) -> Network<E> {
        Network { majority, flush_times, ..self }
    }

    /// Which group.
    pub fn group(&self) -> ShardUid {
        self.group
    }

    /// The connections.
    pub fn peers(&self) -> &Peers<E> {
        &self.peers
    }

    /// Which followers are sent entries at once.
    pub fn thrift(&self) -> &Thrift {
        &self.thrift
    }

    /// The way to one peer.
    pub fn line(&self, node: NodeId) -> Line<E> {
        Line { peers: self.peers.clone(), to: Destination { node, slot: self.slot }, group: self.group }
    }
}

impl<E: Env> Clone for Network<E> {
    fn clone(&self) -> Self {
        let (peers, thrift, majority) = (self.peers.clone(), self.thrift.clone(), self.majority.clone());
        let flush_times = self.flush_times.clone();
        Network { peers, group: self.group, slot: self.slot, thrift, majority, flush_times }
    }
}

impl<E: Env> Line<E> {
    /// A frame for this group.
    pub(super) fn frame(&self, kind: FrameKind, message: Message, parts: Vec<Bytes>) -> Frame {
        Frame { kind, envelope: Envelope { group: self.group, message }.encode(), parts }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// As its type says.
    pub async fn ask(
        &self,
        kind: FrameKind,
        message: Message,
        parts: Vec<Bytes>,
        within: Duration,
    ) -> Result<Message, AskError> {
        let priority = if kind == FrameKind::Snapshot { Priority::Bulk } else { Priority::Urgent };
        let frame = self.frame(kind, message, parts);
        self.answer(&self.peers.call(self.to, frame, priority, within).await?)
    }

    /// What an answer says.
    pub(super) fn answer(&self, received: &Received) -> Result<Message, AskError> {
        let node = self.to.node;
        if received.kind == FrameKind::Refused {
            let refusal = v1::PeerRefusal::decode(&*received.envelope).unwrap_or_default();
            return Err(AskError::Refused { node, cause: format!("{}: {}", refusal.reason, refusal.message) });
        }
        let envelope = Envelope::decode(&received.envelope).map_err(|what| AskError::Nonsense { node, what })?;
        match envelope.message {
            _ if envelope.group != self.group => {
                Err(AskError::Nonsense { node, what: format!("it is of group {}", envelope.group) })
            }
            Message::Failed { cause } => Err(AskError::Refused { node, cause }),
            message => Ok(message),
        }
    }

    /// An answer of another kind than was asked for.
    pub(super) fn unexpected(&self, message: &Message) -> AskError {
        AskError::Nonsense { node: self.to.node, what: format!("{message:?}") }
    }
}

impl AskError {
    /// As openraft wants it: what cannot work at once again is `Unreachable`, after which it pauses.
    pub(super) fn to_rpc<E: Env, M: Machine>(&self, line: &Line<E>, action: RPCTypes) -> RPCError<TypeConfig<E, M>> {
        match self {
            AskError::Peer(PeerError::Timeout { node, within }) => {
                Timeout { action, id: line.peers.me().0, target: node.0, timeout: *within }.into()
            }
            AskError::Peer(PeerError::Lost { .. }) => NetworkError::from_string(self).into(),
            AskError::Peer(PeerError::Unreachable { .. }) | AskError::Refused { .. } | AskError::Nonsense { .. } => {
                Unreachable::from_string(self).into()
            }
        }
    }
}

impl<E: Env, M: Machine> RaftNetworkFactory<TypeConfig<E, M>> for Network<E> {
    type Network = PeerOf<E, M>;

    async fn new_client(&mut self, target: u64, _node: &Node) -> Self::Network {
        let line = self.line(NodeId(target));
        let (thrift, majority) = (self.thrift.clone(), self.majority.clone());
        let flush_times = self.flush_times.clone();
        PeerOf { line, stream: None, thrift, acknowledged: None, majority, flush_times, machine: PhantomData }
    }
}

/// A request's message and the bytes of its entries, refcounted.
pub(super) fn append_message<E: Env, M: Machine>(
    request: &AppendEntriesRequest<TypeConfig<E, M>>,
) -> (Message, Vec<Bytes>) {
    let message = Message::Append {
        vote: types::from_raft_vote(&request.vote),
        prev: request.prev_log_id.as_ref().map(types::from_raft),
        commit: request.leader_commit.as_ref().map(types::from_raft),
    };
    let parts = request.entries.iter().map(|entry| match &entry.payload {
        Payload::Sealed { stored, .. } => stored.bytes.clone(),
        Payload::Blank | Payload::Open(_) | Payload::Membership(_) | Payload::Received { .. } => {
            unreachable!("openraft replicates what it has read from the log")
        }
    });
    (message, parts.collect())
}

/// Last entry that a request leads to.
pub(super) fn last_of<E: Env, M: Machine>(request: &AppendEntriesRequest<TypeConfig<E, M>>) -> Option<LogId> {
    request.entries.last().map(|entry| &entry.log_id).or(request.prev_log_id.as_ref()).map(types::from_raft)
}

/// What the answer to a request that leads to `last` means; `None`: it is no such answer.
pub(super) fn appended<E: Env, M: Machine>(
    answer: &Message,
    last: Option<LogId>,
) -> Option<StreamAppendResult<TypeConfig<E, M>>> {
    use openraft::raft::StreamAppendError::{Conflict, HigherVote};
    match answer {
        Message::Matched { log_id, .. } if *log_id == last => Some(Ok(log_id.map(types::to_raft))),
        Message::Conflict { log_id } => Some(Err(Conflict(types::to_raft(*log_id)))),
        Message::HigherVote { vote } => Some(Err(HigherVote(types::to_raft_vote(*vote)))),
        _ => None,
    }
}

impl<E: Env, M: Machine> PeerOf<E, M> {
    /// Takes notice of an answer; says so if the follower lacks what it had acknowledged. It is sent all of it again, but
    /// what was acknowledged was on one disk less than promised.
    pub(super) fn note_answer(&mut self, answer: &StreamAppendResult<TypeConfig<E, M>>) {
        match answer {
            Ok(last) => {
                let last = last.as_ref().map(types::from_raft);
                self.acknowledged = self.acknowledged.max(last);
                self.majority.note(self.line.to.node, last);
            }
            Err(openraft::raft::StreamAppendError::Conflict(missing)) => {
                let missing = types::from_raft(missing);
                self.majority.note_missing(self.line.to.node, missing);
                if let Some(acknowledged) = self.acknowledged.take_if(|acknowledged| missing <= *acknowledged) {
                    let (node, shard_uid) = (self.line.to.node.0, self.line.group.0);
                    tracing::error!(
                        node, shard_uid, %missing, %acknowledged,
                        "a follower has lost entries that it had acknowledged: its disk does not keep what it says it has \
                         written, or was put back to an older state; it is sent them again; replace the disk"
                    );
                }
            }
            Err(openraft::raft::StreamAppendError::HigherVote(_)) => {}
        }
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig<E, M>>,
        pre: bool,
        within: Duration,
    ) -> Result<VoteResponse<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>> {
        let message = Message::VoteRequest {
            vote: types::from_raft_vote(&request.vote),
            last: request.last_log_id.as_ref().map(types::from_raft),
            pre,
            transfer: request.leadership_transfer,
        };
        let to_rpc = |error: AskError| error.to_rpc(&self.line, RPCTypes::Vote);
        match self.line.ask(FrameKind::Raft, message, Vec::new(), within).await.map_err(to_rpc)? {
            Message::VoteAnswer { vote, last, granted } => {
                Ok(VoteResponse::new(types::to_raft_vote(vote), last.map(types::to_raft), granted))
            }
            other => Err(to_rpc(self.line.unexpected(&other))),
        }
    }

    async fn send_snapshot(
        &self,
        vote: &RaftVote,
        snapshot: Snapshot,
        within: Duration,
    ) -> Result<SnapshotResponse<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>> {
        let to_rpc = |error: AskError| error.to_rpc(&self.line, RPCTypes::InstallSnapshot);
        let Some(last) = &snapshot.meta.last_log_id else {
            return Err(Unreachable::from_string("a snapshot of nothing is not sent").into());
        };
        let membership = &snapshot.meta.last_membership;
        let message = Message::Snapshot {
            vote: types::from_raft_vote(vote),
            last: types::from_raft(last),
            membership_log_id: membership.log_id().as_ref().map(types::from_raft),
            membership: types::encode_membership(membership.membership()).encode_to_vec().into(),
        };
        match self.line.ask(FrameKind::Snapshot, message, vec![snapshot.snapshot], within).await.map_err(to_rpc)? {
            Message::SnapshotAnswer { vote: answered } => {
                let answered = types::to_raft_vote(answered);
                // With a higher one it has refused it.
                if answered == *vote {
                    self.majority.note(self.line.to.node, Some(types::from_raft(last)));
                }
                Ok(SnapshotResponse::new(answered))
            }
            other => Err(to_rpc(self.line.unexpected(&other))),
        }
    }
}

impl<E: Env, M: Machine> RaftNetworkV2<TypeConfig<E, M>> for PeerOf<E, M> {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig<E, M>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>> {
        let answer = Session::heartbeat(&self.line, request, option.soft_ttl()).await?;
        self.note_answer(&answer);
        Ok(answer.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<AppendedStream<'s, E, M>, RPCError<TypeConfig<E, M>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig<E, M>>> + OptionalSend + Unpin + 'static,
    {
        let session: AppendedStream<'s, E, M> = Box::pin(Session::new(self, input, option.soft_ttl()));
        Box::pin(std::future::ready(Ok(session)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig<E, M>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>> {
        self.ask_vote(request, false, option.soft_ttl()).await
    }

    // openraft's default grants, which would let a cut-off node count votes that nobody gave.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig<E, M>>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>> {
        self.ask_vote(request, true, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<E, M>>, StreamingError<TypeConfig<E, M>>> {
        let (sent, cancelled) = (pin!(self.send_snapshot(&vote, snapshot, option.soft_ttl())), pin!(cancel));
        match futures_util::future::select(sent, cancelled).await {
            Either::Left((result, _)) => Ok(result?),
            Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig<E, M>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>> {
        let message = Message::Transfer {
            vote: types::from_raft_vote(request.from_leader()),
            to: Some(NodeId(*request.to_node_id())),
            last: request.last_log_id().map(types::from_raft),
        };
        let to_rpc = |error: AskError| error.to_rpc(&self.line, RPCTypes::TransferLeader);
        match self.line.ask(FrameKind::Raft, message, Vec::new(), option.soft_ttl()).await.map_err(to_rpc)? {
            Message::Done => Ok(Ok(())),
            other => Err(to_rpc(self.line.unexpected(&other))),
        }
    }

    /// Doubles up to a bound, with jitter, so that the groups of a node that is back do not come all at once.
    fn backoff(&self) -> Option<Backoff> {
        let pauses = std::iter::successors(Some(RAFT_RETRY_MIN), |pause| Some((*pause * 2).min(RAFT_RETRY_MAX)));
        Some(Backoff::new(pauses.map(super::with_jitter::<E>)))
    }
}

/// Answers to append requests, in order.
pub(super) type AppendedStream<'s, E, M> =
    BoxStream<'s, Result<StreamAppendResult<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>>>;
