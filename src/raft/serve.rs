//! What peers ask of this replica: entries on a stream, and calls of one frame each.
//!
//! A peer has proven which node it is, and speaks for itself only: votes, heartbeats and entries of other nodes are refused.
//! Entries are checked (checksums, shard, order) before openraft sees them. A term has one leader: a replica that hears of
//! two stops.

use std::{cell::RefCell, pin::pin, rc::Rc};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::{Either, select},
    stream,
};
use openraft::{
    AsyncRuntime,
    raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, TransferLeaderRequest, VoteRequest},
};
use prost::Message as _;

use super::{
    Group, Inner, Machine,
    repair::is_fetch,
    types::{self, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::{
    budget::Charge,
    env::{self, Env, buffer::Buffer},
    format::{
        peer::{Envelope, Message},
        state_files::Vote,
    },
    ids::{LogId, NodeId, ShardUid},
    limits::{RAFT_APPEND_WAIT, STUCK_BYTES_MAX},
    peer::frame::{Frame, FrameKind, FrameReceiver, FrameStream, Received},
    proto::ringlog::state::v1,
};

/// Which group a stream is for, by its first frame; `None` when that is none of Raft's.
pub fn group_of(first: &Received) -> Option<ShardUid> {
    match first.kind {
        FrameKind::Append | FrameKind::Raft | FrameKind::Snapshot => Envelope::group_of(&first.envelope),
        FrameKind::Appended | FrameKind::Produce | FrameKind::Consume | FrameKind::Control | FrameKind::Refused => None,
    }
}

impl<E: Env, M: Machine> Group<E, M> {
    /// Answers a peer's stream that is for this group (`group_of`), until it ends. Spawns what takes time.
    pub fn serve(&self, from: NodeId, first: Received, stream: FrameStream<E>) {
        let group = self.clone();
        let begun = self.inner.domain.catch(|| match first.kind {
            FrameKind::Append => env::spawn::<E>(group.follow(from, first, stream)),
            _ if is_fetch(&first) => env::spawn::<E>(group.give_what_is_asked(first, stream)),
            _ => env::spawn::<E>(group.answer(from, first, stream)),
        });
        if let Err(panic) = begun {
            tracing::debug!(%from, panic, "a peer asks a replica that a panic has stopped: its stream is dropped");
        }
    }

    fn frame(&self, kind: FrameKind, message: Message) -> Frame {
        let envelope = Envelope { group: self.inner.network.group(), message };
        Frame { kind, envelope: envelope.encode(), parts: Vec::new() }
    }

    /// Why this replica does nothing for others any more.
    pub(super) fn unable(&self) -> Result<(), String> {
        match self.fault() {
            Some(fault) => Err(fault),
            None if self.inner.state.closing.get() => Err("the replica is closing".into()),
            None => Ok(()),
        }
    }

    /// Takes a leader's entries, and answers when they are durable.
    async fn follow(self, from: NodeId, first: Received, stream: FrameStream<E>) {
        let FrameStream { mut sender, receiver } = stream;
        let end = Rc::new(RefCell::new(None));
        let input = Input { group: self.clone(), from, first: Some(first), receiver, end: end.clone() };
        let requests = stream::unfold(input, Input::next);
        let mut answers = pin!(self.inner.raft.stream_append(requests));
        while let Some(answer) = answers.next().await {
            let (message, goes_on) = match answer {
                Ok(Ok(log_id)) => {
                    let flush_us = u32::try_from(self.inner.shared.flush_times.last_us()).unwrap_or(u32::MAX);
                    let hold_off_ms = self.hold_off_ms();
                    (Message::Matched { log_id: log_id.as_ref().map(types::from_raft), flush_us, hold_off_ms }, true)
                }
                Ok(Err(rejected)) => (rejection(&rejected), false),
                Err(fatal) => (Message::Failed { cause: self.fault().unwrap_or_else(|| fatal.to_string()) }, false),
            };
            if sender.send(self.frame(FrameKind::Appended, message)).await.is_err() {
                return;
            }
            if !goes_on {
                return sender.finish();
            }
        }
        let end = end.take();
        if let Some(end) = end {
            let (group, cause) = (self.inner.network.group(), end.cause());
            match end {
                End::Refused(_) => tracing::warn!(%from, %group, %cause, "entries of a peer were refused"),
                // Each of a thousand streams comes again several times a second.
                End::NoRoom(_) => tracing::debug!(%from, %group, %cause, "entries of a peer were put off"),
            }
            // It is gone if it does not hear this.
            drop(sender.send(self.frame(FrameKind::Appended, Message::Failed { cause })).await);
        }
        sender.finish();
    }

    /// Answers a call of one frame.
    async fn answer(self, from: NodeId, request: Received, mut stream: FrameStream<E>) {
        let kind = request.kind;
        let message = match self.respond(from, request).await {
            Ok(message) => message,
            Err(cause) => Message::Failed { cause },
        };
        // Who has gone needs no answer.
        if stream.sender.send(self.frame(kind, message)).await.is_ok() {
            stream.sender.finish();
        }
    }

    async fn respond(&self, from: NodeId, request: Received) -> Result<Message, String> {
        self.unable()?;
        let Received { kind: _, envelope, mut parts, charge } = request;
        let ended = |error: &dyn std::fmt::Display| self.fault().unwrap_or_else(|| error.to_string());
        let raft = &self.inner.raft;
        match Envelope::decode(&envelope)?.message {
            Message::VoteRequest { vote, last, pre, transfer } => {
                speaks_for(from, &vote)?;
                if self.inner.owes() {
                    let (vote, last) = (self.inner.vote(), self.inner.log.last());
                    return Ok(Message::VoteAnswer { vote, last, granted: false });
                }
                let mut request = VoteRequest::new(types::to_raft_vote(vote), last.map(types::to_raft));
                request.leadership_transfer = transfer;
                let answer = if pre { raft.pre_vote(request).await } else { raft.vote(request).await };
                let answer = answer.map_err(|error| ended(&error))?;
                Ok(Message::VoteAnswer {
                    vote: types::from_raft_vote(&answer.vote),
                    last: answer.last_log_id.as_ref().map(types::from_raft),
                    granted: answer.vote_granted,
                })
            }
            Message::Append { vote, prev, commit } => {
                self.lone_leader(&vote)?;
                let request = append_request(self.inner.network.group(), from, vote, prev, commit, (parts, charge))?;
                self.hear(&vote, commit).await?;
                match raft.append_entries(request).await.map_err(|error| ended(&error))? {
                    AppendEntriesResponse::Success => {
                        // Nothing was written for it.
                        Ok(Message::Matched { log_id: prev, flush_us: 0, hold_off_ms: 0 })
                    }
                    AppendEntriesResponse::Conflict => {
                        Ok(Message::Conflict { log_id: prev.ok_or("nothing conflicts with an empty log")? })
                    }
                    AppendEntriesResponse::HigherVote(vote) => {
                        Ok(Message::HigherVote { vote: types::from_raft_vote(&vote) })
                    }
                    other @ AppendEntriesResponse::PartialSuccess(_) => Err(format!("{other}")),
                }
            }
            Message::Transfer { vote, to, last } => {
                speaks_for(from, &vote)?;
                self.take_over(vote, to, last).await?;
                Ok(Message::Done)
            }
            Message::ReadIndex => {
                // For longer its leader's disk keeps openraft waiting; who asks does not.
                let read = E::Runtime::timeout(self.inner.timing.lease(), self.read_log_id()).await;
                let log_id = read.map_err(|_| "no majority has answered within a lease")??;
                Ok(Message::ReadIndexAnswer { log_id })
            }
            Message::Snapshot { vote, last, membership_log_id, membership } => {
                speaks_for(from, &vote)?;
                self.lone_leader(&vote)?;
                let data = parts.pop().ok_or("a snapshot without its data")?;
                let snapshot = snapshot_of(&vote, last, membership_log_id, &membership, data)?;
                self.hear(&vote, Some(last)).await?;
                self.keep_received(last, &snapshot.snapshot).await?;
                let answer = raft.install_full_snapshot(types::to_raft_vote(vote), snapshot).await;
                let answer = answer.map_err(|error| ended(&error))?;
                Ok(Message::SnapshotAnswer { vote: types::from_raft_vote(&answer.vote) })
            }
            other => Err(format!("{other:?} is no request")),
        }
    }

    /// Keeps a leader's snapshot before openraft has it: that ends with one that cannot be kept. On a full disk the leader is told,
    /// and sends it again.
    async fn keep_received(&self, last: LogId, data: &Bytes) -> Result<(), String> {
        let Inner { log, shared, .. } = &*self.inner;
        if shared.applied() >= Some(last) {
            return Ok(());
        }
        log.save_checkpoint(last.index, data.clone()).await.map_err(|error| error.to_string())?;
        shared.received.set(Some(last));
        Ok(())
    }

    /// More waits for space than a full disk's reserve is for: what is next in the log may be a vote.
    fn is_laden(&self) -> bool {
        let log = &self.inner.log;
        log.is_stuck() && log.unflushed_bytes() > STUCK_BYTES_MAX
    }

    fn takes_entries(&self) -> bool {
        self.has_flush_room() && !self.is_laden()
    }

    /// A term has one leader. Whoever hears of two knows that votes were counted twice, or forgotten: nothing that either says
    /// can be trusted, and this replica stops.
    fn lone_leader(&self, vote: &Vote) -> Result<(), String> {
        let known = self.inner.log.hard_state().vote.filter(|known| known.committed && vote.committed);
        let Some(known) = known.filter(|known| known.term == vote.term && known.node != vote.node) else {
            return Ok(());
        };
        let cause = format!(
            "nodes {} and {} both lead in term {}: this replica has stopped; keep the directories of all replicas for a \
             report, and look for one that was restored from a backup or copied",
            known.node, vote.node, vote.term
        );
        tracing::error!(cause, "a promise is broken: the replica stops");
        self.inner.state.fault.borrow_mut().get_or_insert(cause.clone());
        let inner = self.inner.clone();
        env::spawn::<E>(async move { drop(inner.raft.shutdown().await) });
        Err(cause)
    }

    /// What a leader calls committed is what a replica may owe (`left`).
    async fn hear(&self, vote: &Vote, committed: Option<LogId>) -> Result<(), String> {
        let Some(committed) = committed.filter(|_| self.inner.owing.is_unheard()) else { return Ok(()) };
        if vote.term < self.inner.vote().term {
            // It leads no more, and does not know.
            return Ok(());
        }
        self.inner.owing.hear(committed).await.map_err(|error| error.to_string())?;
        self.inner.shared.flushed.notify_all();
        Ok(())
    }

    /// The leader of `vote` steps back, for `to` or for whoever wants.
    async fn take_over(&self, vote: Vote, to: Option<NodeId>, last: Option<LogId>) -> Result<(), String> {
        if to != Some(self.inner.node) {
            // Nobody waits for its heartbeats any more; if the one it names does not take over, others will.
            self.inner.give_up_on(vote).await;
            return Ok(());
        }
        if self.inner.owes() {
            return Err("this replica has not all that an earlier one on its node may have had".to_owned());
        }
        let request = TransferLeaderRequest::<TypeConfig<E, M>>::new(
            types::to_raft_vote(vote),
            self.inner.node.0,
            last.map(types::to_raft),
        );
        let taken = self.inner.raft.handle_transfer_leader(request).await.map_err(|error| error.to_string())?;
        taken.map_err(|error| error.to_string())
    }
}

/// A leader's stream of requests, as openraft takes them in.
struct Input<E: Env, M: Machine> {
    group: Group<E, M>,
    from: NodeId,
    first: Option<Received>,
    receiver: FrameReceiver<E>,
    /// Why no more are taken, when it is the leader's fault or ours.
    end: Rc<RefCell<Option<End>>>,
}

/// Why no more entries are taken from a stream.
enum End {
    /// They are not what they should be, or have waited for too long.
    Refused(String),
    /// Too much waits: the leader tries again after a pause.
    NoRoom(NodeId),
}

impl End {
    fn cause(&self) -> String {
        match self {
            End::Refused(cause) => cause.clone(),
            End::NoRoom(node) => format!("node {node} has no memory for more entries that wait for its disk"),
        }
    }
}

impl<E: Env, M: Machine> Input<E, M> {
    async fn next(mut self) -> Option<(AppendEntriesRequest<TypeConfig<E, M>>, Self)> {
        let frame = match self.first.take() {
            Some(first) => {
                if !self.wait_room(|group| !group.is_laden()).await {
                    return None;
                }
                first
            }
            None => {
                if !self.wait_room(Group::takes_entries).await {
                    return None;
                }
                self.receive().await?
            }
        };
        match self.parse(frame).await {
            Ok(request) => Some((request, self)),
            Err(cause) => {
                self.end(End::Refused(cause));
                None
            }
        }
    }

    fn end(&self, end: End) {
        *self.end.borrow_mut() = Some(end);
    }

    /// Waits while too much of what this node has taken is not flushed: what its disk cannot keep up with, or has no space for,
    /// stays at the leader, but for what the stream may hold meanwhile (`FrameReceiver::gather`). False when that takes too
    /// long, or is too much, or the leader is gone.
    async fn wait_room(&mut self, has_room: impl Fn(&Group<E, M>) -> bool) -> bool {
        if has_room(&self.group) {
            return true;
        }
        let Input { group, receiver, .. } = self;
        let flushing = async {
            loop {
                let freed = group.log().memory().freed();
                let turned = group.inner.shared.turned.notified();
                if has_room(group) || group.unable().is_err() {
                    return true;
                }
                // Woken when something was flushed or the log has stopped, and when the group closes.
                let changed = select(freed, turned);
                if let Either::Right(_) = select(changed, pin!(receiver.gather())).await {
                    return false;
                }
            }
        };
        // The leader has given the stream up by then, and asks on another one: what waits in this one is let go.
        match E::Runtime::timeout(RAFT_APPEND_WAIT, flushing).await {
            Ok(true) => return true,
            Ok(false) => self.note_turned_away(),
            Err(_) => {
                let what = if self.group.is_laden() { "is full" } else { "does not keep up" };
                self.end(End::Refused(format!("the disk of node {} {what}", self.group.inner.node)));
            }
        }
        false
    }

    /// The stream has ended; says why, if it was not the leader.
    fn note_turned_away(&self) {
        if self.receiver.is_turned_away() {
            self.end(End::NoRoom(self.group.inner.node));
        }
    }

    /// The next frame; `None` when the leader, its connection or this group has gone.
    async fn receive(&mut self) -> Option<Received> {
        loop {
            let turned = self.group.inner.shared.turned.notified();
            if self.group.unable().is_err() {
                return None;
            }
            let received = match select(pin!(self.receiver.receive()), turned).await {
                Either::Left((received, _)) => received,
                Either::Right(_) => continue,
            };
            if received.is_err() {
                self.note_turned_away();
            }
            return received.ok()?;
        }
    }

    async fn parse(&self, frame: Received) -> Result<AppendEntriesRequest<TypeConfig<E, M>>, String> {
        self.group.unable()?;
        let group = self.group.inner.network.group();
        let Envelope { group: named, message } = Envelope::decode(&frame.envelope)?;
        match message {
            Message::Append { vote, prev, commit } if named == group => {
                self.group.lone_leader(&vote)?;
                let request = append_request(group, self.from, vote, prev, commit, (frame.parts, frame.charge))?;
                self.group.hear(&vote, commit).await?;
                Ok(request)
            }
            other => Err(format!("{other:?} for group {named} on a stream of entries of group {group}")),
        }
    }
}

fn append_request<E: Env, M: Machine>(
    group: ShardUid,
    from: NodeId,
    vote: Vote,
    prev: Option<LogId>,
    commit: Option<LogId>,
    (parts, mut charge): (Vec<Buffer>, Charge),
) -> Result<AppendEntriesRequest<TypeConfig<E, M>>, String> {
    speaks_for(from, &vote)?;
    if !vote.committed {
        return Err(format!("node {from} does not lead by its vote, and sends entries"));
    }
    let mut entries = Vec::with_capacity(parts.len());
    let mut before = prev;
    for part in parts {
        // From here to the log they are charged one by one; what was charged for the envelope is free now.
        let charge = charge.split(part.padded_len());
        let entry = types::from_peer(part, group, charge)?;
        let id = types::from_raft(&entry.log_id);
        let index = before.map_or(crate::ids::Index(0), |before| before.index.next());
        let follows = id.index == index && before.is_none_or(|before| before.term <= id.term) && id.term <= vote.term;
        if !follows {
            return Err(format!("entry {id} cannot follow {before:?} in term {}", vote.term));
        }
        before = Some(id);
        entries.push(entry);
    }
    Ok(AppendEntriesRequest {
        vote: types::to_raft_vote(vote),
        prev_log_id: prev.map(types::to_raft),
        entries,
        leader_commit: commit.map(types::to_raft),
    })
}

fn snapshot_of(
    vote: &Vote,
    last: LogId,
    membership_log_id: Option<LogId>,
    membership: &[u8],
    data: Buffer,
) -> Result<Snapshot, String> {
    // openraft panics at what no leader can have.
    if !vote.committed || last.term > vote.term || membership_log_id.is_some_and(|id| id > last) {
        return Err(format!("a snapshot at {last} cannot be of the leader of term {}", vote.term));
    }
    let membership = v1::Membership::decode(membership).map_err(|error| error.to_string())?;
    let membership = types::decode_membership(&membership)?;
    let bytes = data.len();
    let data = data.freeze_padded().slice(..bytes);
    let meta = SnapshotMeta {
        last_log_id: Some(types::to_raft(last)),
        last_membership: StoredMembership::new(membership_log_id.map(types::to_raft), membership),
    };
    super::machine::check_snapshot(&meta, &data)?;
    Ok(Snapshot { meta, snapshot: data })
}

/// A node's requests carry its own vote.
fn speaks_for(from: NodeId, vote: &Vote) -> Result<(), String> {
    if vote.node == from { Ok(()) } else { Err(format!("node {from} speaks for node {}", vote.node)) }
}

fn rejection<E: Env, M: Machine>(rejected: &StreamAppendError<TypeConfig<E, M>>) -> Message {
    match rejected {
        StreamAppendError::Conflict(log_id) => Message::Conflict { log_id: types::from_raft(log_id) },
        StreamAppendError::HigherVote(vote) => Message::HigherVote { vote: types::from_raft_vote(vote) },
    }
}
