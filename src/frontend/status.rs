//! Errors as clients get them. The only place where an error of a floor below becomes a status;
//! every variant is listed, so that a new one has to be thought about here.
//!
//! `definite` promises that nothing was written and nothing will be. It is what a producer needs
//! to know before it sends again.

use std::{fmt, time::Duration};

use crate::{
    catalog::{CatalogError, TopicNameError},
    format::records::RecordsError,
    limits,
    log::LogError,
    raft::{GroupError, TransferError},
    reactor::{ReactorError, control::ControlError},
    shard::ShardError,
};

/// A gRPC status code (google.rpc.Code). The numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs, reason = "the names are google.rpc.Code's")]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// The code of that number in google.rpc.Code.
    pub fn from_number(number: i32) -> Option<Code> {
        use Code::{
            Aborted, AlreadyExists, Cancelled, DataLoss, DeadlineExceeded, FailedPrecondition, Internal,
            InvalidArgument, NotFound, Ok, OutOfRange, PermissionDenied, ResourceExhausted, Unauthenticated,
            Unavailable, Unimplemented, Unknown,
        };
        let codes = [
            Ok,
            Cancelled,
            Unknown,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            OutOfRange,
            Unimplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
        ];
        codes.into_iter().find(|code| *code as i32 == number)
    }

    /// Its name in google.rpc.Code.
    pub fn name(self) -> &'static str {
        match self {
            Code::Ok => "OK",
            Code::Cancelled => "CANCELLED",
            Code::Unknown => "UNKNOWN",
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::NotFound => "NOT_FOUND",
            Code::AlreadyExists => "ALREADY_EXISTS",
            Code::PermissionDenied => "PERMISSION_DENIED",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::Aborted => "ABORTED",
            Code::OutOfRange => "OUT_OF_RANGE",
            Code::Unimplemented => "UNIMPLEMENTED",
            Code::Internal => "INTERNAL",
            Code::Unavailable => "UNAVAILABLE",
            Code::DataLoss => "DATA_LOSS",
            Code::Unauthenticated => "UNAUTHENTICATED",
        }
    }
}

/// An error as a client gets it: over gRPC as `google.rpc.Status` with `ErrorInfo` (domain
/// "ringlog") and `RetryInfo`, over HTTP as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// Status code.
    pub code: Code,
    /// Constant name of the cause, UPPER_SNAKE_CASE.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Whether it is certain that nothing was or will be written (`ErrorInfo.metadata["definite"]`).
    pub definite: bool,
    /// Worth another try after that long.
    pub retry_after: Option<Duration>,
    /// Address of the leader, if it is another node (`metadata["leader"]`).
    pub leader: Option<String>,
    /// In a stream of produces: it is certain, too, that nothing of the requests behind this one was or will be
    /// written (`metadata["behind_definite"]`), so that all of them can be sent again in their order.
    pub behind_definite: bool,
}

impl CallError {
    /// A definite error without a retry hint.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> CallError {
        let message = message.into();
        CallError { code, reason, message, definite: true, retry_after: None, leader: None, behind_definite: false }
    }

    /// A definite error that a moment's patience may cure.
    pub fn retry(code: Code, reason: &'static str, message: impl Into<String>) -> CallError {
        CallError { retry_after: Some(limits::RETRY_AFTER), ..CallError::new(code, reason, message) }
    }

    /// The same, definite only if nothing may have been written.
    #[must_use]
    pub fn maybe_written(self, maybe_written: bool) -> CallError {
        CallError { definite: !maybe_written, ..self }
    }

    /// The request is wrong.
    pub fn invalid(reason: &'static str, message: impl Into<String>) -> CallError {
        CallError::new(Code::InvalidArgument, reason, message)
    }

    /// No such topic.
    pub fn no_topic(name: &str) -> CallError {
        let message = format!("there is no topic {name:?}; create it first: ringlog topic create {name}");
        CallError::new(Code::NotFound, "TOPIC_NOT_FOUND", message)
    }

    /// The node is recovering.
    pub fn starting() -> CallError {
        CallError::retry(Code::Unavailable, "STARTING", "the node is still recovering; retry after a moment")
    }

    /// The node is going away.
    pub fn stopping(maybe_written: bool) -> CallError {
        let message = "the node is shutting down; retry when it is back";
        CallError::retry(Code::Unavailable, "SHUTTING_DOWN", message).maybe_written(maybe_written)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.code.name(), self.reason, self.message)
    }
}

impl std::error::Error for CallError {}

impl From<ShardError> for CallError {
    fn from(error: ShardError) -> CallError {
        let (message, maybe_written) = (error.to_string(), error.maybe_written());
        let call: CallError = match error {
            ShardError::NoMemory => CallError::retry(Code::ResourceExhausted, "MEMORY_BUSY", message),
            ShardError::DiskBehind { .. } => CallError::retry(Code::ResourceExhausted, "DISK_BEHIND", message),
            ShardError::Busy { what: _ } => CallError::retry(Code::ResourceExhausted, "SHARD_BUSY", message),
            // With one copy the leader is this node, between two terms; with more, only other nodes hear this.
            ShardError::NotLeader { leader: _ } => CallError::retry(Code::Unavailable, "NOT_LEADER", message),
            ShardError::NotTransferred(TransferError::NoSuccessor { cause: _ }) => {
                CallError::new(Code::FailedPrecondition, "NO_SUCCESSOR", message)
            }
            ShardError::NotTransferred(TransferError::NotTakenOver { to: _, cause: _, leader: _ }) => {
                CallError::retry(Code::Unavailable, "NOT_TAKEN_OVER", message)
            }
            ShardError::Deposed { leader: _ } => CallError::retry(Code::Unavailable, "LEADER_CHANGED", message),
            ShardError::Deadline => CallError::new(Code::DeadlineExceeded, "DEADLINE_TOO_SHORT", message),
            ShardError::OffsetMismatch { expected: _, actual: _ } => {
                CallError::new(Code::FailedPrecondition, "OFFSET_MISMATCH", message)
            }
            ShardError::OutOfRange { offset: _, log_start: _, high_watermark: _ } => {
                CallError::new(Code::OutOfRange, "OFFSET_OUT_OF_RANGE", message)
            }
            ShardError::NoLeader { waited: _, deadline: true } => {
                CallError::new(Code::DeadlineExceeded, "NO_LEADER", message)
            }
            ShardError::NoLeader { waited: _, deadline: false } => {
                CallError::retry(Code::Unavailable, "NO_LEADER", message)
            }
            ShardError::Lost { cause: _ } => CallError::retry(Code::Unavailable, "LEADER_LOST", message),
            ShardError::Behind { min_offset: _, high_watermark: _ } => {
                CallError::retry(Code::Unavailable, "REPLICA_BEHIND", message)
            }
            ShardError::Elsewhere(refusal) => (*refusal).into(),
            ShardError::Full(error) => error.into(),
            ShardError::Starved { cause: _ } => CallError::retry(Code::Unavailable, "SHARD_NOT_OPEN", message),
            ShardError::Damaged { cause: _ } => CallError::new(Code::DataLoss, "CORRUPT", message),
            ShardError::Failed { cause: _, maybe_written: _ } => {
                CallError::new(Code::Unavailable, "SHARD_FAILED", message)
            }
            ShardError::Closing { maybe_written: _ } => CallError::retry(Code::Unavailable, "SHARD_CLOSING", message),
        };
        call.maybe_written(maybe_written)
    }
}

impl From<LogError> for CallError {
    fn from(error: LogError) -> CallError {
        let message = error.to_string();
        match error {
            LogError::Full { dir: _ } => CallError::retry(Code::ResourceExhausted, "DISK_FULL", message),
            LogError::Corrupt { file: _, position: _, what: _ } => CallError::new(Code::DataLoss, "CORRUPT", message),
            LogError::Diverged { dir: _, id: _, expected: _, found: _ } => {
                CallError::new(Code::DataLoss, "DIVERGED", message)
            }
            LogError::Foreign { file: _, what: _ } => CallError::new(Code::FailedPrecondition, "FOREIGN_DATA", message),
            LogError::NotFound { index: _, first: _, end: _ } => {
                CallError::new(Code::Internal, "ENTRY_NOT_FOUND", message)
            }
            LogError::Stopped { file: _, action: _, cause: _ } => {
                CallError::new(Code::Unavailable, "SHARD_FAILED", message).maybe_written(true)
            }
            LogError::Io { file: _, action: _, cause: _ } => {
                CallError::new(Code::Unavailable, "SHARD_FAILED", message).maybe_written(true)
            }
        }
    }
}

impl From<ReactorError> for CallError {
    fn from(error: ReactorError) -> CallError {
        let message = error.to_string();
        match error {
            ReactorError::Shard(error) => error.into(),
            ReactorError::NotOpen { error, cause: _ } => match error {
                // With a single copy, what cannot be opened is lost until somebody restores it.
                ShardError::Failed { cause: _, maybe_written: _ } | ShardError::Damaged { cause: _ } => {
                    CallError::new(Code::DataLoss, "SHARD_NOT_OPEN", message)
                }
                ShardError::Full(_) => CallError::retry(Code::ResourceExhausted, "DISK_FULL", message),
                ShardError::Busy { .. }
                | ShardError::NoMemory
                | ShardError::DiskBehind { .. }
                | ShardError::NotLeader { .. }
                | ShardError::NotTransferred(_)
                | ShardError::Deposed { .. }
                | ShardError::Deadline
                | ShardError::OffsetMismatch { .. }
                | ShardError::OutOfRange { .. }
                | ShardError::NoLeader { .. }
                | ShardError::Lost { .. }
                | ShardError::Behind { .. }
                | ShardError::Elsewhere(_)
                | ShardError::Starved { .. }
                | ShardError::Closing { .. } => CallError::retry(Code::Unavailable, "SHARD_NOT_OPEN", message),
            },
            ReactorError::Gone => CallError::new(Code::NotFound, "SHARD_NOT_FOUND", message),
            ReactorError::MailboxFull => CallError::retry(Code::ResourceExhausted, "REACTOR_BUSY", message),
            ReactorError::Stopped { maybe_written } => CallError::stopping(maybe_written),
        }
    }
}

impl From<GroupError> for CallError {
    fn from(error: GroupError) -> CallError {
        let message = error.to_string();
        match error {
            GroupError::Deposed { leader: _ } => {
                CallError::retry(Code::Unavailable, "LEADER_CHANGED", message).maybe_written(true)
            }
            GroupError::NotLeader { leader: _ } => CallError::retry(Code::Unavailable, "NOT_LEADER", message),
            GroupError::Full(error) | GroupError::Damaged(error) => error.into(),
            GroupError::Starved { cause: _ } => CallError::retry(Code::Unavailable, "CATALOG_FAILED", message),
            GroupError::Stopped { cause: _, maybe_written } => {
                CallError::new(Code::Unavailable, "CATALOG_FAILED", message).maybe_written(maybe_written)
            }
        }
    }
}

impl From<ControlError> for CallError {
    fn from(error: ControlError) -> CallError {
        let message = error.to_string();
        match error {
            ControlError::Refused(error) => error.into(),
            ControlError::Busy => CallError::retry(Code::ResourceExhausted, "CATALOG_BUSY", message),
            ControlError::Catalog(error) => error.into(),
            ControlError::Shards(error) => error.into(),
            ControlError::RefusedThere { message: _, definite, retry: true } => {
                CallError::retry(Code::Unavailable, "CATALOG_UNAVAILABLE", message).maybe_written(!definite)
            }
            ControlError::NoCaKey => CallError::new(Code::FailedPrecondition, "NO_CA_KEY", message),
            ControlError::RefusedThere { message: _, definite, retry: false } => {
                CallError::new(Code::FailedPrecondition, "CATALOG_REFUSED", message).maybe_written(!definite)
            }
            ControlError::NoLeader { cause: _, maybe_written } => {
                CallError::retry(Code::Unavailable, "CATALOG_UNAVAILABLE", message).maybe_written(maybe_written)
            }
            ControlError::Late => {
                CallError::retry(Code::Unavailable, "CATALOG_UNAVAILABLE", message).maybe_written(true)
            }
            ControlError::Precondition(_) => CallError::new(Code::FailedPrecondition, "PRECONDITION", message),
            ControlError::NotFound(_) => CallError::new(Code::NotFound, "NOT_FOUND", message),
        }
    }
}

impl From<RecordsError> for CallError {
    fn from(error: RecordsError) -> CallError {
        let message = error.to_string();
        match error {
            RecordsError::Malformed { what: _, position: _ } => CallError::invalid("MALFORMED_REQUEST", message),
            RecordsError::Empty => CallError::invalid("NO_RECORDS", message),
            RecordsError::RecordTooLong { number: _, bytes: _, max: _ } => {
                CallError::invalid("RECORD_TOO_LONG", message)
            }
            RecordsError::TimestampNegative { number: _, timestamp_us: _ } => {
                CallError::invalid("TIMESTAMP_NEGATIVE", message)
            }
            RecordsError::TooMany { max: _ } => CallError::invalid("TOO_MANY_RECORDS", message),
        }
    }
}

impl From<TopicNameError> for CallError {
    fn from(error: TopicNameError) -> CallError {
        CallError::invalid("TOPIC_NAME_INVALID", error.to_string())
    }
}

impl From<CatalogError> for CallError {
    fn from(error: CatalogError) -> CallError {
        let message = error.to_string();
        match error {
            CatalogError::AlreadyExists(_) => CallError::new(Code::AlreadyExists, "TOPIC_EXISTS", message),
            CatalogError::NotFound(_) => CallError::new(Code::NotFound, "TOPIC_NOT_FOUND", message),
            CatalogError::Name(error) => error.into(),
            CatalogError::ShardCount(_) => CallError::invalid("SHARD_COUNT_INVALID", message),
            CatalogError::SegmentBytes(_) => CallError::invalid("SEGMENT_BYTES_INVALID", message),
            CatalogError::TooManyShards { wanted: _, present: _ } => {
                CallError::new(Code::ResourceExhausted, "TOO_MANY_SHARDS", message)
            }
            CatalogError::ReplicationFactor(_) => CallError::invalid("REPLICATION_FACTOR_INVALID", message),
            CatalogError::NoCluster => CallError::retry(Code::Unavailable, "CLUSTER_NOT_BEGUN", message),
            CatalogError::ClusterId(_) => CallError::invalid("CLUSTER_ID_INVALID", message),
            CatalogError::NodeInvalid { what: _ } => CallError::invalid("NODE_INVALID", message),
            CatalogError::NodeUnknown(_) => CallError::new(Code::NotFound, "NODE_NOT_FOUND", message),
            CatalogError::NodeRemoved(_) => CallError::new(Code::FailedPrecondition, "NODE_REMOVED", message),
            CatalogError::NodeIdTaken(_) => CallError::new(Code::AlreadyExists, "NODE_ID_TAKEN", message),
            CatalogError::IncarnationTaken(_) => CallError::new(Code::AlreadyExists, "DATA_DIRECTORY_COPIED", message),
            CatalogError::WrongIncarnation(_) => {
                CallError::new(Code::FailedPrecondition, "OTHER_DATA_DIRECTORY", message)
            }
            CatalogError::TooManyNodes => CallError::new(Code::ResourceExhausted, "TOO_MANY_NODES", message),
            CatalogError::TokenMissing => CallError::new(Code::Unauthenticated, "JOIN_TOKEN_MISSING", message),
            CatalogError::TokenUnknown => CallError::new(Code::PermissionDenied, "JOIN_TOKEN_UNKNOWN", message),
            CatalogError::TokenUsedUp => CallError::new(Code::PermissionDenied, "JOIN_TOKEN_USED_UP", message),
            CatalogError::TooManyTokens => CallError::new(Code::ResourceExhausted, "TOO_MANY_JOIN_TOKENS", message),
            CatalogError::TokenInvalid { what: _ } => CallError::invalid("JOIN_TOKEN_INVALID", message),
            CatalogError::LastActive(_) => CallError::new(Code::FailedPrecondition, "LAST_ACTIVE_NODE", message),
            CatalogError::HoldsReplicas { node: _, replicas: _ } => {
                CallError::new(Code::FailedPrecondition, "NODE_HOLDS_REPLICAS", message)
            }
            CatalogError::TooFewNodes { .. } => CallError::new(Code::FailedPrecondition, "TOO_FEW_NODES", message),
            CatalogError::NodeNotActive(_) => CallError::new(Code::FailedPrecondition, "NODE_NOT_ACTIVE", message),
            CatalogError::NodeFull(_) => CallError::new(Code::ResourceExhausted, "NODE_FULL", message),
            CatalogError::ShardUnknown(_) => CallError::new(Code::NotFound, "SHARD_NOT_FOUND", message),
            CatalogError::Target { shard: _, what: _ } => CallError::invalid("REPLICAS_INVALID", message),
            CatalogError::MoveReplaced(_) => CallError::new(Code::Aborted, "MOVE_REPLACED", message),
            CatalogError::NoReplica { shard: _, node: _ } => {
                CallError::new(Code::FailedPrecondition, "NO_REPLICA", message)
            }
            CatalogError::UnknownCommand => CallError::new(Code::Internal, "UNKNOWN_COMMAND", message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Index, Offset},
        proto::ringlog::state::v1::PeerRefusal,
    };

    fn row(error: impl Into<CallError>) -> (&'static str, &'static str, bool, bool) {
        let error = error.into();
        assert!(!error.message.is_empty());
        (error.code.name(), error.reason, error.definite, error.retry_after.is_some())
    }

    /// Code, reason, definite, worth a retry: for every error that a produce can meet.
    #[test]
    #[rustfmt::skip]
    fn table() {
        let full = || LogError::Full { dir: "d".into() };
        let corrupt = LogError::Corrupt { file: "f".into(), position: 4096, what: "bad crc".into() };
        let failed = |maybe_written| ShardError::Failed { cause: "sync failed".into(), maybe_written };
        let (expected, actual) = (Offset(1), Offset(2));
        let far = ShardError::OutOfRange { offset: Offset(9), log_start: Offset(1), high_watermark: Offset(5) };
        let lost = LogError::NotFound { index: Index(1), first: Index(2), end: Index(3) };
        assert_eq!(row(ShardError::Busy { what: "bytes" }), ("RESOURCE_EXHAUSTED", "SHARD_BUSY", true, true));
        assert_eq!(row(ShardError::NoMemory), ("RESOURCE_EXHAUSTED", "MEMORY_BUSY", true, true));
        let behind = ShardError::DiskBehind { node: crate::ids::NodeId(3), unflushed_bytes: 1 };
        assert!(behind.to_string().contains("the disk of node 3 does not keep up"));
        assert_eq!(row(behind), ("RESOURCE_EXHAUSTED", "DISK_BEHIND", true, true));
        assert_eq!(row(ShardError::NotLeader { leader: None }), ("UNAVAILABLE", "NOT_LEADER", true, true));
        let none = TransferError::NoSuccessor { cause: "x".into() };
        assert_eq!(row(ShardError::NotTransferred(none)), ("FAILED_PRECONDITION", "NO_SUCCESSOR", true, false));
        let late = TransferError::NotTakenOver { to: crate::ids::NodeId(2), cause: "x".into(), leader: crate::ids::NodeId(1) };
        assert_eq!(row(ShardError::NotTransferred(late)), ("UNAVAILABLE", "NOT_TAKEN_OVER", true, true));
        assert_eq!(row(ShardError::Deadline), ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT", true, false));
        assert_eq!(row(ShardError::OffsetMismatch { expected, actual }), ("FAILED_PRECONDITION", "OFFSET_MISMATCH", true, false));
        assert_eq!(row(far), ("OUT_OF_RANGE", "OFFSET_OUT_OF_RANGE", true, false));
        let waited = Duration::from_secs(1);
        assert_eq!(row(ShardError::Deposed { leader: None }), ("UNAVAILABLE", "LEADER_CHANGED", false, true));
        assert_eq!(row(ShardError::NoLeader { waited, deadline: true }), ("DEADLINE_EXCEEDED", "NO_LEADER", true, false));
        assert_eq!(row(ShardError::NoLeader { waited, deadline: false }), ("UNAVAILABLE", "NO_LEADER", true, true));
        assert_eq!(row(ShardError::Lost { cause: "x".into() }), ("UNAVAILABLE", "LEADER_LOST", false, true));
        assert_eq!(row(ShardError::Behind { min_offset: expected, high_watermark: actual }), ("UNAVAILABLE", "REPLICA_BEHIND", true, true));
        assert_eq!(row(ShardError::Damaged { cause: "x".into() }), ("DATA_LOSS", "CORRUPT", true, false));
        assert_eq!(row(ShardError::Full(full())), ("RESOURCE_EXHAUSTED", "DISK_FULL", true, true));
        assert_eq!(row(failed(true)), ("UNAVAILABLE", "SHARD_FAILED", false, false));
        assert_eq!(row(failed(false)), ("UNAVAILABLE", "SHARD_FAILED", true, false));
        assert_eq!(row(ShardError::Closing { maybe_written: true }), ("UNAVAILABLE", "SHARD_CLOSING", false, true));
        assert_eq!(row(ShardError::Closing { maybe_written: false }), ("UNAVAILABLE", "SHARD_CLOSING", true, true));
        assert_eq!(row(corrupt), ("DATA_LOSS", "CORRUPT", true, false));
        assert_eq!(row(lost), ("INTERNAL", "ENTRY_NOT_FOUND", true, false));
        assert_eq!(row(ReactorError::MailboxFull), ("RESOURCE_EXHAUSTED", "REACTOR_BUSY", true, true));
        assert_eq!(row(ReactorError::Gone), ("NOT_FOUND", "SHARD_NOT_FOUND", true, false));
        let not_open = |error| ReactorError::NotOpen { error, cause: "x".into() };
        assert_eq!(row(not_open(failed(false))), ("DATA_LOSS", "SHARD_NOT_OPEN", true, false));
        assert_eq!(row(not_open(ShardError::Full(full()))), ("RESOURCE_EXHAUSTED", "DISK_FULL", true, true));
        assert_eq!(row(not_open(ShardError::Starved { cause: "x".into() })), ("UNAVAILABLE", "SHARD_NOT_OPEN", true, true));
        assert_eq!(row(not_open(ShardError::Closing { maybe_written: false })), ("UNAVAILABLE", "SHARD_NOT_OPEN", true, true));
        assert_eq!(row(ReactorError::Stopped { maybe_written: true }), ("UNAVAILABLE", "SHUTTING_DOWN", false, true));
        assert_eq!(row(ReactorError::Shard(ShardError::Deadline)), row(ShardError::Deadline));
        let missing = ControlError::Refused(CatalogError::NotFound("t".into()));
        assert_eq!(row(missing), ("NOT_FOUND", "TOPIC_NOT_FOUND", true, false));
        assert_eq!(row(CatalogError::ShardCount(0)), ("INVALID_ARGUMENT", "SHARD_COUNT_INVALID", true, false));
        assert_eq!(row(CatalogError::TooManyShards { wanted: 1, present: 1 }), ("RESOURCE_EXHAUSTED", "TOO_MANY_SHARDS", true, false));
        assert_eq!(row(ControlError::Busy), ("RESOURCE_EXHAUSTED", "CATALOG_BUSY", true, true));
        assert_eq!(row(ControlError::Catalog(GroupError::Full(full()))), ("RESOURCE_EXHAUSTED", "DISK_FULL", true, true));
        assert_eq!(row(RecordsError::Empty), ("INVALID_ARGUMENT", "NO_RECORDS", true, false));
        assert_eq!(row(RecordsError::TimestampNegative { number: 0, timestamp_us: -1 }), ("INVALID_ARGUMENT", "TIMESTAMP_NEGATIVE", true, false));
        assert_eq!(row(RecordsError::RecordTooLong { number: 0, bytes: 9, max: 8 }), ("INVALID_ARGUMENT", "RECORD_TOO_LONG", true, false));
    }

    /// What clients are told is definite is so for whoever asks on, too (`maybe_written`), for every kind of error.
    #[test]
    fn definite_as_it_says() {
        let refusal = |definite| Box::new(PeerRefusal { code: 14, definite, ..PeerRefusal::default() });
        let at = Offset(1);
        for error in [
            ShardError::Busy { what: "bytes" },
            ShardError::NoMemory,
            ShardError::DiskBehind { node: crate::ids::NodeId(3), unflushed_bytes: 1 },
            ShardError::NotLeader { leader: None },
            ShardError::Deadline,
            ShardError::OffsetMismatch { expected: at, actual: at },
            ShardError::OutOfRange { offset: at, log_start: at, high_watermark: at },
            ShardError::NotTransferred(TransferError::NoSuccessor { cause: "x".into() }),
            ShardError::Deposed { leader: None },
            ShardError::NoLeader { waited: Duration::ZERO, deadline: true },
            ShardError::Lost { cause: "x".into() },
            ShardError::Behind { min_offset: at, high_watermark: at },
            ShardError::Elsewhere(refusal(true)),
            ShardError::Elsewhere(refusal(false)),
            ShardError::Full(LogError::Full { dir: "d".into() }),
            ShardError::Starved { cause: "x".into() },
            ShardError::Damaged { cause: "x".into() },
            ShardError::Failed { cause: "x".into(), maybe_written: true },
            ShardError::Failed { cause: "x".into(), maybe_written: false },
            ShardError::Closing { maybe_written: true },
            ShardError::Closing { maybe_written: false },
        ] {
            let error = ReactorError::Shard(error);
            assert_eq!(CallError::from(error.clone()).definite, !error.maybe_written(), "{error}");
        }
        for error in [ReactorError::Gone, ReactorError::MailboxFull, ReactorError::Stopped { maybe_written: true }] {
            assert_eq!(CallError::from(error.clone()).definite, !error.maybe_written(), "{error}");
        }
    }

    /// The numbers are google.rpc.Code's.
    #[test]
    fn numbers() {
        assert_eq!((Code::InvalidArgument as i32, Code::NotFound as i32, Code::Unauthenticated as i32), (3, 5, 16));
        assert!((0..=16).all(|number| Code::from_number(number).is_some_and(|code| code as i32 == number)));
        assert_eq!((Code::from_number(-1), Code::from_number(17)), (None, None));
        assert_eq!((Code::ResourceExhausted as i32, Code::Unavailable as i32, Code::DataLoss as i32), (8, 14, 15));
    }
}
