//! What the members of a group on other nodes ask of this replica.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use openraft::{
    errors::Fatal,
    raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest},
};
use prost::Message as _;

use super::{
    Group, Machine,
    types::{self, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::{
    env::{self, Env, buffer::Buffer},
    format::peer::{Envelope, Message},
    ids::{NodeId, ShardUid},
    peer::frame::{Frame, FrameKind, FrameReceiver, FrameStream, Received},
    proto::ringlog::state::v1,
};

/// A request that does not come to an end keeps its stream no longer than this.
const ANSWER_MAX: Duration = Duration::from_secs(30);

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
        env::spawn::<E>(async move {
            if first.kind == FrameKind::Append {
                group.serve_appends(from, first, stream).await;
            } else {
                group.serve_one(from, first, stream).await;
            }
        });
    }

    /// One request, one answer.
    async fn serve_one(&self, from: NodeId, request: Received, mut stream: FrameStream<E>) {
        let answered = match Envelope::decode(&request.envelope) {
            Ok(envelope) => self.answer(envelope.message, request.parts),
            Err(cause) => {
                tracing::warn!(%from, %cause, "a request of another node cannot be read");
                return;
            }
        };
        let answer = <E::Runtime as openraft::AsyncRuntime>::timeout(ANSWER_MAX, answered).await;
        let message = match answer {
            Ok(Ok(message)) => message,
            Ok(Err(cause)) => Message::Failed { cause },
            Err(_) => Message::Failed { cause: format!("not done within {ANSWER_MAX:?}") },
        };
        // Whoever has gone does not want it any more.
        if stream.sender.send(self.frame(FrameKind::Raft, message)).await.is_ok() {
            stream.sender.finish();
        }
    }

    fn frame(&self, kind: FrameKind, message: Message) -> Frame {
        Frame { kind, envelope: Envelope { group: self.inner.place.group, message }.encode(), parts: Vec::new() }
    }

    async fn answer(&self, message: Message, parts: Vec<Buffer>) -> Result<Message, String> {
        let raft = &self.inner.raft;
        match message {
            Message::Append { .. } => {
                let request = self.append_request(message, parts)?;
                let prev = request.prev_log_id;
                let last = request.entries.last().map(|entry| entry.log_id).or(prev);
                let response = raft.append_entries(request).await.map_err(|error| error.to_string())?;
                let result = match response.into_stream_result(prev.or(last), last) {
                    // Only what has a predecessor can conflict with it.
                    Err(StreamAppendError::Conflict(_)) if prev.is_none() => return Err("no entries at all".to_owned()),
                    result => result,
                };
                Ok(append_answer(result))
            }
            Message::VoteRequest { vote, last, pre, transfer } => {
                self.give_up_lease_of_the_dead().await;
                let last = last.map(types::to_raft);
                let request =
                    VoteRequest { vote: types::to_raft_vote(vote), last_log_id: last, leadership_transfer: transfer };
                let answer = if pre { raft.pre_vote(request).await } else { raft.vote(request).await };
                let answer = answer.map_err(|error| error.to_string())?;
                Ok(Message::VoteAnswer {
                    vote: types::from_raft_vote(&answer.vote),
                    last: answer.last_log_id.as_ref().map(types::from_raft),
                    granted: answer.vote_granted,
                })
            }
            Message::Transfer { vote, to: Some(to), last } => {
                let last = last.map(types::to_raft);
                let request = TransferLeaderRequest::new(types::to_raft_vote(vote), to.0, last);
                let taken = raft.handle_transfer_leader(request).await.map_err(|error| error.to_string())?;
                taken.map(|()| Message::Done).map_err(|error| error.to_string())
            }
            Message::ReadIndex => match self.read_index().await {
                Some(log_id) => Ok(Message::ReadIndexAnswer { log_id }),
                None => Err("this node does not lead the group, or a majority does not answer".to_owned()),
            },
            Message::Snapshot { vote, last, membership_log_id, membership } => {
                let membership = v1::Membership::decode(membership).map_err(|error| error.to_string())?;
                let membership = types::decode_membership(&membership)?;
                let membership = StoredMembership::new(membership_log_id.map(types::to_raft), membership);
                let meta = SnapshotMeta { last_log_id: Some(types::to_raft(last)), last_membership: membership };
                let state = parts.into_iter().next().ok_or("a snapshot without its state")?;
                let length = state.len();
                let snapshot = types::Snapshot { meta, snapshot: state.freeze_padded().slice(..length) };
                let installed = raft.install_full_snapshot(types::to_raft_vote(vote), snapshot).await;
                let response = installed.map_err(|error| error.to_string())?;
                Ok(Message::SnapshotAnswer { vote: types::from_raft_vote(&response.vote) })
            }
            Message::Transfer { to: None, .. }
            | Message::Matched { .. }
            | Message::Conflict { .. }
            | Message::HigherVote { .. }
            | Message::VoteAnswer { .. }
            | Message::ReadIndexAnswer { .. }
            | Message::SnapshotAnswer { .. }
            | Message::Done
            | Message::Failed { .. } => Err("this is no request".to_owned()),
        }
    }

    /// A leader's entries, as they come, and an answer to each request.
    async fn serve_appends(&self, from: NodeId, first: Received, stream: FrameStream<E>) {
        let FrameStream { mut sender, receiver } = stream;
        let requests = self.requests(from, first, receiver);
        let mut answers = Box::pin(self.inner.raft.stream_append(requests));
        while let Some(answer) = answers.next().await {
            let (message, over) = match answer {
                Ok(result) => {
                    let over = result.is_err();
                    (append_answer(result), over)
                }
                Err(fatal) => (Message::Failed { cause: self.why(&fatal) }, true),
            };
            if sender.send(self.frame(FrameKind::Appended, message)).await.is_err() || over {
                break;
            }
        }
        sender.finish();
    }

    fn why(&self, fatal: &Fatal<TypeConfig<E, M>>) -> String {
        self.fault().unwrap_or_else(|| fatal.to_string())
    }

    /// The requests of a stream, until it ends or cannot be read.
    fn requests(
        &self,
        from: NodeId,
        first: Received,
        receiver: FrameReceiver<E>,
    ) -> impl futures_util::Stream<Item = AppendEntriesRequest<TypeConfig<E, M>>> + 'static {
        let group = self.clone();
        stream::unfold((Some(first), receiver), move |(first, mut receiver)| {
            let group = group.clone();
            async move {
                let received = match first {
                    Some(first) => first,
                    None => receiver.receive().await.ok().flatten()?,
                };
                let decoded = Envelope::decode(&received.envelope)
                    .and_then(|envelope| group.append_request(envelope.message, received.parts));
                match decoded {
                    Ok(request) => Some((request, (None, receiver))),
                    Err(cause) => {
                        tracing::warn!(%from, %cause, "entries of another node cannot be read");
                        None
                    }
                }
            }
        })
    }

    fn append_request(
        &self,
        message: Message,
        parts: Vec<Buffer>,
    ) -> Result<AppendEntriesRequest<TypeConfig<E, M>>, String> {
        let Message::Append { vote, prev, commit } = message else {
            return Err("an append stream carries nothing else".to_owned());
        };
        let entries = parts.into_iter().map(|part| types::from_peer(part, self.inner.place.group));
        Ok(AppendEntriesRequest {
            vote: types::to_raft_vote(vote),
            prev_log_id: prev.map(types::to_raft),
            entries: entries.collect::<Result<_, _>>()?,
            leader_commit: commit.map(types::to_raft),
        })
    }
}

fn append_answer<E: Env, M: Machine>(result: StreamAppendResult<TypeConfig<E, M>>) -> Message {
    match result {
        Ok(log_id) => Message::Matched { log_id: log_id.as_ref().map(types::from_raft) },
        Err(StreamAppendError::Conflict(log_id)) => Message::Conflict { log_id: types::from_raft(&log_id) },
        Err(StreamAppendError::HigherVote(vote)) => Message::HigherVote { vote: types::from_raft_vote(&vote) },
    }
}
