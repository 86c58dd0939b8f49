//! What replicas of a group say to each other: typed messages over the envelopes of `proto/peer.fbs`.
//!
//! Entries, and a snapshot's data, are no part of a message: they travel behind the envelope as parts of the frame.
//! Bytes that are not an envelope, or one that lacks what its kind needs, are errors.

pub mod envelope;
#[cfg(test)]
pub(super) mod tests;

use bytes::Bytes;

use self::envelope::{EnvelopeArgs, EnvelopeTable, LogIdBytes, VoteBytes};
use crate::{
    format::state_files::Vote,
    ids::{Index, LogId, NodeId, ShardUid, Term},
};

/// A message, and the group that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Which group.
    pub group: ShardUid,
    /// What is said.
    pub message: Message,
}

/// What one replica says to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The entries in the frame's parts follow `prev`; `commit` is committed. Without entries: a heartbeat.
    Append {
        /// The leader's.
        vote: Vote,
        /// The entry before the first one.
        prev: Option<LogId>,
        /// Last committed entry.
        commit: Option<LogId>,
    },
    /// Everything up to here is the leader's, and durable.
    Matched {
        /// Last entry of the request.
        log_id: Option<LogId>,
        /// How long the sender's last append took until it was durable, in µs; 0: not said.
        flush_us: u32,
        /// For how long yet the sender asks not to be led back: it gave the leadership away because its disk was slow. 0: it does
        /// not ask.
        hold_off_ms: u32,
    },
    /// This entry is not there.
    Conflict {
        /// The request's `prev`.
        log_id: LogId,
    },
    /// There is a higher vote than the sender's.
    HigherVote {
        /// It.
        vote: Vote,
    },
    /// Asks for a vote.
    VoteRequest {
        /// The candidate's.
        vote: Vote,
        /// Its last entry.
        last: Option<LogId>,
        /// Only whether it would be given: nothing is kept of it.
        pre: bool,
        /// The leader wants this election.
        transfer: bool,
    },
    /// Answer to it.
    VoteAnswer {
        /// The voter's.
        vote: Vote,
        /// The voter's last entry.
        last: Option<LogId>,
        /// Given.
        granted: bool,
    },
    /// The leader of `vote` steps back.
    Transfer {
        /// The leader's.
        vote: Vote,
        /// For whom; nobody in particular: whoever wants.
        to: Option<NodeId>,
        /// What it must have to take over.
        last: Option<LogId>,
    },
    /// Asks the leader how far a linearizable read has to wait.
    ReadIndex,
    /// Answer to it.
    ReadIndexAnswer {
        /// So far.
        log_id: LogId,
    },
    /// The state after `last` is the frame's part 0.
    Snapshot {
        /// The leader's.
        vote: Vote,
        /// Last entry that is in it.
        last: LogId,
        /// The entry that made the membership.
        membership_log_id: Option<LogId>,
        /// `ringlog.state.v1.Membership`.
        membership: Bytes,
    },
    /// Answer to it.
    SnapshotAnswer {
        /// The follower's.
        vote: Vote,
    },
    /// Asks for the entries `from .. end` as they are on the disk there: what is here is damaged.
    Fetch {
        /// First one.
        from: Index,
        /// After the last one.
        end: Index,
    },
    /// Answer to it: some of them, from the first one on, are the frame's parts.
    Fetched {
        /// Entries below this are known to be committed there.
        committed_end: Index,
    },
    /// Asks for a checkpoint of the state after one of the entries `from .. end`: those here are damaged. Of an empty range: for
    /// the one that the log there begins with, after `from` or a later entry.
    FetchCheckpoint {
        /// First one.
        from: Index,
        /// After the last one.
        end: Index,
    },
    /// Answer to it: the state after an entry is the frame's part 0.
    FetchedCheckpoint {
        /// After which.
        index: Index,
    },
    /// Done.
    Done,
    /// Not done.
    Failed {
        /// In words.
        cause: String,
    },
}

/// The numbers on the wire.
mod kind {
    pub const APPEND: u8 = 1;
    pub const MATCHED: u8 = 2;
    pub const CONFLICT: u8 = 3;
    pub const HIGHER_VOTE: u8 = 4;
    pub const VOTE_REQUEST: u8 = 5;
    pub const PRE_VOTE_REQUEST: u8 = 6;
    pub const VOTE_ANSWER: u8 = 7;
    pub const TRANSFER: u8 = 8;
    pub const READ_INDEX: u8 = 9;
    pub const READ_INDEX_ANSWER: u8 = 10;
    pub const SNAPSHOT: u8 = 11;
    pub const SNAPSHOT_ANSWER: u8 = 12;
    pub const DONE: u8 = 13;
    pub const FAILED: u8 = 14;
    pub const FETCH: u8 = 15;
    pub const FETCHED: u8 = 16;
    pub const FETCH_CHECKPOINT: u8 = 17;
    pub const FETCHED_CHECKPOINT: u8 = 18;
}

impl Envelope {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut args = self.message.args();
        args.group = self.group.0;
        envelope::write(&args).into()
    }

    /// Reads one.
    ///
    /// # Errors
    /// In words, when the bytes are none, or lack what the message needs.
    pub fn decode(bytes: &[u8]) -> Result<Envelope, String> {
        let table = envelope::read(bytes)?;
        Ok(Envelope { group: ShardUid(table.group()), message: Message::from_table(&table)? })
    }

    /// The group of an envelope; the rest is not looked at.
    pub fn group_of(bytes: &[u8]) -> Option<ShardUid> {
        envelope::read(bytes).ok().map(|table| ShardUid(table.group()))
    }
}

impl Message {
    #[allow(clippy::too_many_lines, reason = "a table: one arm for each kind of message")]
    fn args(&self) -> EnvelopeArgs<'_> {
        let none = EnvelopeArgs::default();
        match self {
            Message::Append { vote, prev, commit } => EnvelopeArgs {
                kind: kind::APPEND,
                vote: Some(vote_bytes(vote)),
                log_id: prev.map(id_bytes),
                commit: commit.map(id_bytes),
                ..none
            },
            Message::Matched { log_id, flush_us, hold_off_ms } => EnvelopeArgs {
                kind: kind::MATCHED,
                log_id: log_id.map(id_bytes),
                flush_us: *flush_us,
                hold_off_ms: *hold_off_ms,
                ..none
            },
            Message::Conflict { log_id } => {
                EnvelopeArgs { kind: kind::CONFLICT, log_id: Some(id_bytes(*log_id)), ..none }
            }
            Message::HigherVote { vote } => {
                EnvelopeArgs { kind: kind::HIGHER_VOTE, vote: Some(vote_bytes(vote)), ..none }
            }
            Message::VoteRequest { vote, last, pre, transfer } => EnvelopeArgs {
                kind: if *pre { kind::PRE_VOTE_REQUEST } else { kind::VOTE_REQUEST },
                vote: Some(vote_bytes(vote)),
                log_id: last.map(id_bytes),
                flag: *transfer,
                ..none
            },
            Message::VoteAnswer { vote, last, granted } => EnvelopeArgs {
                kind: kind::VOTE_ANSWER,
                vote: Some(vote_bytes(vote)),
                log_id: last.map(id_bytes),
                flag: *granted,
                ..none
            },
            Message::Transfer { vote, to, last } => EnvelopeArgs {
                kind: kind::TRANSFER,
                vote: Some(vote_bytes(vote)),
                log_id: last.map(id_bytes),
                node: to.map_or(0, |node| node.0),
                ..none
            },
            Message::ReadIndex => EnvelopeArgs { kind: kind::READ_INDEX, ..none },
            Message::ReadIndexAnswer { log_id } => {
                EnvelopeArgs { kind: kind::READ_INDEX_ANSWER, log_id: Some(id_bytes(*log_id)), ..none }
            }
            Message::Snapshot { vote, last, membership_log_id, membership } => EnvelopeArgs {
                kind: kind::SNAPSHOT,
                vote: Some(vote_bytes(vote)),
                log_id: Some(id_bytes(*last)),
                membership_log_id: membership_log_id.map(id_bytes),
                membership: Some(membership),
                ..none
            },
            Message::SnapshotAnswer { vote } => {
                EnvelopeArgs { kind: kind::SNAPSHOT_ANSWER, vote: Some(vote_bytes(vote)), ..none }
            }
            Message::Fetch { from, end } => {
                EnvelopeArgs { kind: kind::FETCH, log_id: index_bytes(*from), commit: index_bytes(*end), ..none }
            }
            Message::Fetched { committed_end } => {
                EnvelopeArgs { kind: kind::FETCHED, commit: index_bytes(*committed_end), ..none }
            }
            Message::FetchCheckpoint { from, end } => EnvelopeArgs {
                kind: kind::FETCH_CHECKPOINT,
                log_id: index_bytes(*from),
                commit: index_bytes(*end),
                ..none
            },
            Message::FetchedCheckpoint { index } => {
                EnvelopeArgs { kind: kind::FETCHED_CHECKPOINT, log_id: index_bytes(*index), ..none }
            }
            Message::Done => EnvelopeArgs { kind: kind::DONE, ..none },
            Message::Failed { cause } => EnvelopeArgs { kind: kind::FAILED, cause: Some(cause), ..none },
        }
    }

    fn from_table(table: &EnvelopeTable<'_>) -> Result<Message, String> {
        let vote = || table.vote().map(vote_of).ok_or("it has no vote");
        let id = || table.log_id().map(id_of).ok_or("it names no entry");
        let last = table.log_id().map(id_of);
        Ok(match table.kind() {
            kind::APPEND => Message::Append { vote: vote()?, prev: last, commit: table.commit().map(id_of) },
            kind::MATCHED => {
                Message::Matched { log_id: last, flush_us: table.flush_us(), hold_off_ms: table.hold_off_ms() }
            }
            kind::CONFLICT => Message::Conflict { log_id: id()? },
            kind::HIGHER_VOTE => Message::HigherVote { vote: vote()? },
            pre @ (kind::VOTE_REQUEST | kind::PRE_VOTE_REQUEST) => {
                Message::VoteRequest { vote: vote()?, last, pre: pre == kind::PRE_VOTE_REQUEST, transfer: table.flag() }
            }
            kind::VOTE_ANSWER => Message::VoteAnswer { vote: vote()?, last, granted: table.flag() },
            kind::TRANSFER => {
                let to = Some(table.node()).filter(|node| *node != 0).map(NodeId);
                Message::Transfer { vote: vote()?, to, last }
            }
            kind::READ_INDEX => Message::ReadIndex,
            kind::READ_INDEX_ANSWER => Message::ReadIndexAnswer { log_id: id()? },
            kind::SNAPSHOT => Message::Snapshot {
                vote: vote()?,
                last: id()?,
                membership_log_id: table.membership_log_id().map(id_of),
                membership: Bytes::copy_from_slice(table.membership().ok_or("it has no membership")?),
            },
            kind::SNAPSHOT_ANSWER => Message::SnapshotAnswer { vote: vote()? },
            kind::FETCH => {
                let end = table.commit().map(id_of).ok_or("it has no end")?;
                Message::Fetch { from: id()?.index, end: end.index }
            }
            kind::FETCH_CHECKPOINT => {
                let end = table.commit().map(id_of).ok_or("it has no end")?;
                Message::FetchCheckpoint { from: id()?.index, end: end.index }
            }
            kind::FETCHED_CHECKPOINT => Message::FetchedCheckpoint { index: id()?.index },
            kind::FETCHED => {
                Message::Fetched { committed_end: table.commit().map(id_of).map_or(Index(0), |end| end.index) }
            }
            kind::DONE => Message::Done,
            kind::FAILED => Message::Failed { cause: table.cause().unwrap_or_default().into() },
            unknown => return Err(format!("messages of kind {unknown} are not known here")),
        })
    }
}

fn id_bytes(id: LogId) -> LogIdBytes {
    LogIdBytes::new(id.term.0, id.index.0)
}

/// An index alone: as an id of term 0.
fn index_bytes(index: Index) -> Option<LogIdBytes> {
    Some(LogIdBytes::new(0, index.0))
}

fn id_of(bytes: LogIdBytes) -> LogId {
    LogId { term: Term(bytes.term()), index: Index(bytes.index()) }
}

fn vote_bytes(vote: &Vote) -> VoteBytes {
    VoteBytes::new(vote.term.0, vote.node.0, vote.committed)
}

fn vote_of(bytes: VoteBytes) -> Vote {
    Vote { term: Term(bytes.term()), node: NodeId(bytes.node()), committed: bytes.committed() }
}
