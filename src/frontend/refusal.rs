//! Errors on their way between nodes: a refusal is a call's error without what only the node that answers a client can
//! add, the leader's address.

use std::time::Duration;

use crate::{
    frontend::status::{CallError, Code},
    ids::NodeId,
    peer::book::AddressBook,
    proto::ringlog::state::v1::PeerRefusal,
    reactor::ReactorError,
    shard::ShardError,
};

/// Reasons that another node may give; a client gets any other as `PEER_REFUSED`.
const REASONS: &[&str] = &[
    "CATALOG_BUSY",
    "CATALOG_FAILED",
    "CLUSTER_ID_INVALID",
    "CLUSTER_NOT_BEGUN",
    "CORRUPT",
    "DATA_DIRECTORY_COPIED",
    "DEADLINE_TOO_SHORT",
    "DISK_BEHIND",
    "DISK_FULL",
    "DIVERGED",
    "ENTRY_NOT_FOUND",
    "FOREIGN_DATA",
    "JOIN_TOKEN_INVALID",
    "JOIN_TOKEN_MISSING",
    "JOIN_TOKEN_UNKNOWN",
    "JOIN_TOKEN_USED_UP",
    "LAST_ACTIVE_NODE",
    "LEADER_CHANGED",
    "LEADER_LOST",
    "MEMORY_BUSY",
    "MOVE_REPLACED",
    "NODE_FULL",
    "NODE_HOLDS_REPLICAS",
    "NODE_ID_TAKEN",
    "NODE_INVALID",
    "NODE_NOT_ACTIVE",
    "NODE_NOT_FOUND",
    "NODE_REMOVED",
    "NOT_IMPLEMENTED",
    "NOT_LEADER",
    "NOT_TAKEN_OVER",
    "NO_LEADER",
    "NO_REPLICA",
    "NO_SUCCESSOR",
    "OFFSET_MISMATCH",
    "OFFSET_OUT_OF_RANGE",
    "OTHER_DATA_DIRECTORY",
    "PEER_LOST",
    "PEER_MALFORMED",
    "PEER_UNREACHABLE",
    "PEER_UNREADABLE",
    "REACTOR_BUSY",
    "REPLICAS_INVALID",
    "REPLICATION_FACTOR_INVALID",
    "REPLICA_BEHIND",
    "SEGMENT_BYTES_INVALID",
    "SHARD_BUSY",
    "SHARD_CLOSING",
    "SHARD_COUNT_INVALID",
    "SHARD_FAILED",
    "SHARD_NOT_FOUND",
    "SHARD_NOT_OPEN",
    "SHUTTING_DOWN",
    "STARTING",
    "TOO_FEW_NODES",
    "TOO_MANY_JOIN_TOKENS",
    "TOO_MANY_NODES",
    "TOO_MANY_SHARDS",
    "TOPIC_EXISTS",
    "TOPIC_NAME_INVALID",
    "TOPIC_NOT_FOUND",
    "UNKNOWN_COMMAND",
];

/// What another node is told of a reactor's error; the leader goes with it, if it is known.
pub fn refusal(error: ReactorError) -> PeerRefusal {
    let leader = leader_of(&error);
    PeerRefusal { leader_node_id: leader.map_or(0, |leader| leader.0), ..CallError::from(error).into() }
}

/// A reactor's error as a client gets it, with the address of the leader, if that is another node and known.
pub fn explained(error: ReactorError, book: &AddressBook) -> CallError {
    let leader = leader_of(&error).and_then(|leader| book.get(leader)).map(|node| node.grpc.clone());
    CallError { leader, ..error.into() }
}

/// Who leads, if the error knows.
fn leader_of(error: &ReactorError) -> Option<NodeId> {
    match error {
        ReactorError::Shard(ShardError::NotLeader { leader } | ShardError::Deposed { leader }) => *leader,
        ReactorError::Shard(ShardError::Elsewhere(refusal)) => {
            Some(NodeId(refusal.leader_node_id)).filter(|leader| *leader != NodeId(0))
        }
        ReactorError::Shard(
            ShardError::Busy { .. }
            | ShardError::NoMemory
            | ShardError::DiskBehind { .. }
            | ShardError::NotTransferred(_)
            | ShardError::Deadline
            | ShardError::OffsetMismatch { .. }
            | ShardError::OutOfRange { .. }
            | ShardError::NoLeader { .. }
            | ShardError::Lost { .. }
            | ShardError::Behind { .. }
            | ShardError::Full(_)
            | ShardError::Starved { .. }
            | ShardError::Damaged { .. }
            | ShardError::Failed { .. }
            | ShardError::Closing { .. },
        )
        | ReactorError::NotOpen { .. }
        | ReactorError::Gone
        | ReactorError::MailboxFull
        | ReactorError::Stopped { .. } => None,
    }
}

impl From<CallError> for PeerRefusal {
    fn from(error: CallError) -> PeerRefusal {
        let CallError { code, reason, message, definite, retry_after, leader: _, behind_definite: _ } = error;
        PeerRefusal {
            code: code as i32,
            reason: reason.to_owned(),
            message,
            definite,
            leader_node_id: 0,
            retry_after_ms: retry_after.map_or(0, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl From<PeerRefusal> for CallError {
    fn from(refusal: PeerRefusal) -> CallError {
        let reason = REASONS.iter().find(|reason| **reason == refusal.reason).copied().unwrap_or("PEER_REFUSED");
        let code = Code::from_number(refusal.code).filter(|code| *code != Code::Ok).unwrap_or(Code::Unknown);
        let retry_after = (refusal.retry_after_ms > 0).then(|| Duration::from_millis(refusal.retry_after_ms));
        CallError { retry_after, ..CallError::new(code, reason, refusal.message) }.maybe_written(!refusal.definite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::Offset, limits, peer::book::PeerNode};

    /// An error comes out of another node as it went in, but for the leader's address, which the last node fills in.
    #[test]
    fn round_trip() {
        let errors = [
            ShardError::Busy { what: "x" },
            ShardError::NoMemory,
            ShardError::DiskBehind { node: NodeId(1), unflushed_bytes: 2 },
            ShardError::Deadline,
            ShardError::OffsetMismatch { expected: Offset(1), actual: Offset(2) },
            ShardError::Lost { cause: "x".into() },
            ShardError::Failed { cause: "x".into(), maybe_written: true },
            ShardError::Damaged { cause: "x".into() },
        ];
        for error in errors {
            let before = CallError::from(ReactorError::from(error.clone()));
            assert_eq!(CallError::from(refusal(error.into())), before);
        }
    }

    /// The reasons are sorted and each is there once; unknown ones, and impossible codes, become harmless ones.
    #[test]
    fn reasons() {
        assert!(REASONS.is_sorted_by(|a, b| a < b));
        let odd = PeerRefusal { code: 99, reason: "FROM_THE_FUTURE".into(), message: "m".into(), ..Default::default() };
        let error = CallError::from(odd);
        assert_eq!((error.code, error.reason, error.definite), (Code::Unknown, "PEER_REFUSED", false));
        let ok = PeerRefusal { code: 0, definite: true, ..Default::default() };
        assert_eq!(CallError::from(ok).code, Code::Unknown);
    }

    /// The leader's address is in the error if the book knows it, through one node or two.
    #[test]
    fn leader() {
        let book = AddressBook::default();
        let node = PeerNode {
            node: NodeId(3),
            host: "h".into(),
            port: 1,
            reactors: 1,
            grpc: "h:7400".into(),
            http: "h:7480".into(),
        };
        book.publish([node]);
        let not_leader = |node| ReactorError::from(ShardError::NotLeader { leader: Some(NodeId(node)) });
        assert_eq!(explained(not_leader(3), &book).leader.as_deref(), Some("h:7400"));
        assert_eq!(explained(not_leader(4), &book).leader, None);
        let carried = refusal(not_leader(3));
        assert_eq!((carried.leader_node_id, carried.retry_after_ms), (3, limits::RETRY_AFTER.as_millis() as u64));
        let elsewhere = ShardError::Elsewhere(Box::new(carried));
        let error = explained(elsewhere.into(), &book);
        assert_eq!((error.reason, error.leader.as_deref()), ("NOT_LEADER", Some("h:7400")));
    }
}
