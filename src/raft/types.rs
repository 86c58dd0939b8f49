//! What openraft's type parameters are here, and how its entries, votes and memberships become ours.
//!
//! An entry on its way in carries a proposal's buffer; one read back carries the stored bytes. Neither is ever copied.

use std::{
    cell::Cell,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    marker::PhantomData,
    rc::Rc,
};

use openraft::{
    RaftTypeConfig,
    entry::RaftPayload,
    impls::{BoxedErrorSource, InlineBatch, leader_id_std},
    raft::responder::Responder,
    vote::RaftLeaderId,
};
use prost::Message;

use super::{Applied, Machine, Proposal, ProposalKind, machine::Unanswered};
use crate::{
    budget::{Budget, Charge, Use},
    env::{Env, buffer::Buffer, channel::OneshotSender},
    format::entry::{ENTRY_HEADER_BYTES, EntryError, EntryHeader, EntryKind, NewEntry, StoredEntry},
    ids::{Index, LogId, NodeId, Offset, ShardUid, Term},
    log, proto,
};

/// openraft's parameters for groups of machine `M` in world `E`.
pub struct TypeConfig<E, M>(PhantomData<fn() -> (E, M)>);

impl<E: Env, M: Machine> RaftTypeConfig for TypeConfig<E, M> {
    type D = Handed;
    type R = Option<Applied<M::Answer>>;
    type NodeId = u64;
    type Node = Node;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::Vote<LeaderId>;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = E::Runtime;
    type Responder<T>
        = Reply<T>
    where
        T: 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: 'static;
    type ErrorSource = BoxedErrorSource;
}

// By hand, because a derive would ask the same of `E` and `M`, which no value of this type holds.
impl<E, M> Clone for TypeConfig<E, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E, M> Copy for TypeConfig<E, M> {}

impl<E, M> Default for TypeConfig<E, M> {
    fn default() -> Self {
        TypeConfig(PhantomData)
    }
}

impl<E, M> fmt::Debug for TypeConfig<E, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TypeConfig")
    }
}

impl<E, M> PartialEq for TypeConfig<E, M> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<E, M> Eq for TypeConfig<E, M> {}

impl<E, M> PartialOrd for TypeConfig<E, M> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E, M> Ord for TypeConfig<E, M> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}

/// At most one leader per term.
pub type LeaderId = leader_id_std::LeaderId<u64, u64>;
/// The part of it that is in a log id: the term.
pub type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
/// openraft's log id.
pub type RaftLogId = openraft::LogId<CommittedLeaderId>;
/// openraft's entry around our payload.
pub type Entry = openraft::Entry<CommittedLeaderId, Payload>;
/// openraft's vote.
pub type RaftVote = openraft::Vote<LeaderId>;
/// Voters and learners.
pub type Membership = openraft::Membership<u64, Node>;
/// A membership and the entry that made it.
pub type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, Node>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, u64, Node>;
/// A snapshot: its data is an encoded `ringlog.state.v1.Checkpoint`.
pub type Snapshot = openraft::Snapshot<CommittedLeaderId, u64, Node, bytes::Bytes>;

/// What a membership says of a node beside its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Where its peers reach it; empty while there are none.
    pub peer_address: String,
}

/// What an entry is.
#[derive(Debug)]
pub enum Payload {
    /// A new leader's first entry.
    Blank,
    /// A proposal on its way into the log.
    Open(Handed),
    /// A membership on its way into the log.
    Membership(Membership),
    /// Received from a leader, on its way into the log.
    Received {
        /// The leader's, checked.
        header: EntryHeader,
        /// It, then the payload.
        buffer: Buffer,
        /// Decoded, if that is what it is.
        membership: Option<Box<Membership>>,
        /// Memory of the buffer.
        charge: Charge,
    },
    /// Read back from the log.
    Sealed {
        /// Header and bytes.
        stored: StoredEntry,
        /// Decoded, if that is what it is.
        membership: Option<Box<Membership>>,
    },
}

impl RaftPayload for Payload {
    type D = Handed;
    type NodeId = u64;
    type Node = Node;

    fn blank() -> Self {
        Payload::Blank
    }

    fn with_normal(self, proposal: Handed) -> Self {
        Payload::Open(proposal)
    }

    fn with_membership(self, membership: Membership) -> Self {
        Payload::Membership(membership)
    }

    fn get_membership(&self) -> Option<Membership> {
        match self {
            Payload::Membership(membership) => Some(membership.clone()),
            Payload::Sealed { membership, .. } | Payload::Received { membership, .. } => membership.as_deref().cloned(),
            Payload::Blank | Payload::Open(_) => None,
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Payload::Blank => f.write_str("blank"),
            Payload::Open(proposal) => proposal.fmt(f),
            Payload::Membership(membership) => write!(f, "membership {membership}"),
            Payload::Received { header, .. } => {
                write!(f, "received {:?} of {} bytes", header.kind, header.payload_bytes)
            }
            Payload::Sealed { stored, .. } => {
                write!(f, "stored {:?} of {} bytes", stored.header.kind, stored.header.payload_bytes)
            }
        }
    }
}

/// A proposal on its way through openraft to the log; what it needs there counts until it arrives, or is dropped.
#[derive(Debug)]
pub struct Handed {
    proposal: Proposal,
    /// Where the log has put it, once it has.
    placed: Rc<Cell<Option<LogId>>>,
    _bytes: HandedBytes,
    /// Memory of the buffer.
    charge: Charge,
}

/// Takes its bytes off the sum when it is dropped.
#[derive(Debug)]
struct HandedBytes {
    sum: Rc<Cell<usize>>,
    bytes: usize,
}

impl Handed {
    /// Adds the proposal's bytes to `sum` for as long as it is on the way. They are taken from `memory` without asking:
    /// who proposes has given back as much, or proposes something small.
    pub fn new(proposal: Proposal, sum: &Rc<Cell<usize>>, memory: &Budget) -> Handed {
        let bytes = proposal.buffer.padded_len();
        sum.set(sum.get() + bytes);
        let charge = memory.force(Use::Unflushed, bytes);
        Handed { proposal, placed: Rc::default(), _bytes: HandedBytes { sum: sum.clone(), bytes }, charge }
    }

    /// Tells where the log puts it.
    pub fn placed(&self) -> Rc<Cell<Option<LogId>>> {
        self.placed.clone()
    }
}

impl Drop for HandedBytes {
    fn drop(&mut self) {
        self.sum.set(self.sum.get() - self.bytes);
    }
}

impl fmt::Display for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Proposal { kind, record_count, buffer, .. } = &self.proposal;
        write!(f, "{kind:?} of {} bytes, {record_count} records", buffer.len())
    }
}

/// Hands openraft's answer to who proposed; it may have gone.
pub struct Reply<T> {
    sender: OneshotSender<T>,
    _owed: Owed,
}

/// Counts as unanswered until it is dropped.
struct Owed(Rc<Unanswered>);

impl<T> Reply<T> {
    /// An answer to come, which counts in `unanswered` until then.
    pub fn new(sender: OneshotSender<T>, unanswered: &Rc<Unanswered>) -> Reply<T> {
        unanswered.count.set(unanswered.count.get() + 1);
        Reply { sender, _owed: Owed(unanswered.clone()) }
    }

    /// Answers.
    pub fn send(self, result: T) {
        // Nobody waits any more: a dropped proposal is not taken back, its answer is just not read.
        drop(self.sender.send(result));
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let left = self.0.count.get() - 1;
        self.0.count.set(left);
        if left == 0 {
            self.0.none.notify_all();
        }
    }
}

impl<E: Env, M: Machine, T: 'static> Responder<TypeConfig<E, M>, T> for Reply<T> {
    fn on_complete(self, result: T) {
        self.send(result);
    }
}

/// Our log id as openraft's.
pub fn to_raft(id: LogId) -> RaftLogId {
    RaftLogId::new(LeaderId::new(id.term.0, 0).to_committed(), id.index.0)
}

/// openraft's log id as ours.
pub fn from_raft(id: &RaftLogId) -> LogId {
    LogId { term: Term(id.committed_leader_id().term), index: Index(id.index) }
}

/// openraft's vote as it is kept on disk.
pub fn from_raft_vote(vote: &RaftVote) -> log::Vote {
    log::Vote { term: Term(vote.leader_id.term), node: NodeId(vote.leader_id.voted_for), committed: vote.committed }
}

/// A kept vote as openraft's.
pub fn to_raft_vote(vote: log::Vote) -> RaftVote {
    RaftVote { leader_id: LeaderId::new(vote.term.0, vote.node.0), committed: vote.committed }
}

/// An entry for the log; `stamp_us` is for those that carry no time of their own.
pub fn to_log(entry: Entry, stamp_us: i64) -> NewEntry {
    let id = from_raft(&entry.log_id);
    let own = |kind, buffer| NewEntry {
        id,
        kind,
        record_count: 0,
        base_offset: Offset(0),
        timestamp_us: stamp_us,
        record_timestamp_max_us: i64::MIN,
        buffer,
        leader: None,
        charge: None,
    };
    match entry.payload {
        Payload::Blank => own(EntryKind::Blank, Buffer::zeroed(ENTRY_HEADER_BYTES)),
        Payload::Membership(membership) => {
            let mut buffer = Buffer::zeroed(ENTRY_HEADER_BYTES);
            buffer.extend(&encode_membership(&membership).encode_to_vec());
            // Each founder may make the first entry of a group by itself, and all of them must make the same.
            let timestamp_us = if id.index == Index(0) { 0 } else { stamp_us };
            NewEntry { timestamp_us, ..own(EntryKind::Membership, buffer) }
        }
        Payload::Open(Handed { proposal, placed, charge, .. }) => {
            placed.set(Some(id));
            NewEntry {
                id,
                kind: match proposal.kind {
                    ProposalKind::Batch => EntryKind::Batch,
                    ProposalKind::Command => EntryKind::Command,
                },
                record_count: proposal.record_count,
                base_offset: proposal.base_offset,
                timestamp_us: proposal.timestamp_us,
                record_timestamp_max_us: proposal.record_timestamp_max_us,
                buffer: proposal.buffer,
                leader: None,
                charge: Some(charge),
            }
        }
        Payload::Received { header, buffer, charge, .. } => from_leader(header, buffer, Some(charge)),
        Payload::Sealed { stored, .. } => {
            let mut buffer = Buffer::with_capacity(stored.bytes.len());
            buffer.extend(&stored.bytes);
            from_leader(stored.header, buffer, None)
        }
    }
}

/// A leader's entry for the log: the largest timestamp so far stands in for the entry's own, with the same result.
fn from_leader(header: EntryHeader, buffer: Buffer, charge: Option<Charge>) -> NewEntry {
    NewEntry {
        id: header.id,
        kind: header.kind,
        record_count: header.record_count,
        base_offset: header.base_offset,
        timestamp_us: header.timestamp_us,
        record_timestamp_max_us: header.timestamp_max_us,
        buffer,
        leader: Some(header),
        charge,
    }
}

/// An entry as a leader has sent it: its header, then its payload. Both checksums are checked. `charge` is for its memory.
///
/// # Errors
/// In words, when it is none, is not of `shard`, or is a membership that cannot be read.
pub fn from_peer(buffer: Buffer, shard: ShardUid, charge: Charge) -> Result<Entry, String> {
    let header = EntryHeader::parse(buffer.bytes()).map_err(|error| error.to_string())?;
    let payload = &buffer.bytes()[ENTRY_HEADER_BYTES..];
    if header.shard != shard {
        return Err(format!("entry {} is of shard {}", header.id, header.shard));
    }
    if payload.len() != header.payload_bytes as usize {
        return Err(format!("entry {} has {} bytes of {}", header.id, payload.len(), header.payload_bytes));
    }
    if crc32c::crc32c(payload) != header.payload_crc {
        return Err(format!("entry {}: {}", header.id, EntryError::PayloadCrc));
    }
    let membership = membership_in(&header, payload)?;
    Ok(Entry { log_id: to_raft(header.id), payload: Payload::Received { header, buffer, membership, charge } })
}

fn membership_in(header: &EntryHeader, payload: &[u8]) -> Result<Option<Box<Membership>>, String> {
    if header.kind != EntryKind::Membership {
        return Ok(None);
    }
    let decoded = proto::ringlog::state::v1::Membership::decode(payload)
        .map_err(|error| error.to_string())
        .and_then(|membership| decode_membership(&membership))
        .map_err(|what| format!("entry {} is not a membership: {what}", header.id))?;
    Ok(Some(Box::new(decoded)))
}

/// An entry from the log.
///
/// # Errors
/// In words, when a membership entry's payload is none.
pub fn from_log(stored: StoredEntry) -> Result<Entry, String> {
    let membership = membership_in(&stored.header, &stored.payload())?;
    Ok(Entry { log_id: to_raft(stored.header.id), payload: Payload::Sealed { stored, membership } })
}

/// A membership as it is kept.
pub fn encode_membership(membership: &Membership) -> proto::ringlog::state::v1::Membership {
    use proto::ringlog::state::v1;
    let configs = membership.get_joint_config().iter();
    v1::Membership {
        configs: configs.map(|ids| v1::NodeSet { node_ids: ids.iter().copied().collect() }).collect(),
        nodes: membership
            .nodes()
            .map(|(id, node)| v1::Node { node_id: *id, peer_address: node.peer_address.clone() })
            .collect(),
    }
}

/// A kept membership.
///
/// # Errors
/// In words, when a voter is not among the nodes.
pub fn decode_membership(membership: &proto::ringlog::state::v1::Membership) -> Result<Membership, String> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.iter().map(|set| set.node_ids.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, Node> =
        membership.nodes.iter().map(|node| (node.node_id, Node { peer_address: node.peer_address.clone() })).collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Votes, log ids and memberships survive the way to disk and back.
    #[test]
    fn round_trips() {
        let id = LogId { term: Term(7), index: Index(9) };
        assert_eq!(from_raft(&to_raft(id)), id);
        for committed in [false, true] {
            let vote = log::Vote { term: Term(3), node: NodeId(5), committed };
            assert_eq!(from_raft_vote(&to_raft_vote(vote)), vote);
        }
        let nodes = [1, 2, 3].map(|id| (id, Node { peer_address: format!("host-{id}:7500") }));
        let joint = vec![BTreeSet::from([1, 2]), BTreeSet::from([2])];
        let membership = Membership::new(joint, BTreeMap::from(nodes)).unwrap();
        assert_eq!(decode_membership(&encode_membership(&membership)).unwrap(), membership);
        assert_eq!(decode_membership(&encode_membership(&Membership::default())).unwrap(), Membership::default());
    }

    /// A voter without a node is refused, not trusted.
    #[test]
    fn membership_without_a_voters_node() {
        use proto::ringlog::state::v1;
        let membership = v1::Membership { configs: vec![v1::NodeSet { node_ids: vec![1, 2] }], nodes: vec![] };
        assert!(decode_membership(&membership).is_err());
    }

    /// Entries of a leader of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let nodes = [1, 2].map(|id| (id, Node { peer_address: format!("h:{id}") }));
        let membership = Membership::new(vec![BTreeSet::from([1])], BTreeMap::from(nodes)).unwrap();
        let entry = |kind, payload: Vec<u8>| {
            let header = EntryHeader {
                kind,
                payload_bytes: payload.len() as u32,
                record_count: u32::from(kind == EntryKind::Batch),
                shard: ShardUid(1),
                segment: crate::ids::SegmentSequence(1),
                id: LogId { term: Term(1), index: Index(1) },
                base_offset: Offset(3),
                timestamp_us: 1,
                timestamp_max_us: 1,
                durable_end: 0,
                chain: 7,
                payload_crc: crc32c::crc32c(&payload),
            };
            [&header.encode()[..], &payload].concat()
        };
        let corpus = [
            entry(EntryKind::Membership, encode_membership(&membership).encode_to_vec()),
            entry(EntryKind::Batch, vec![7; 50]),
            entry(EntryKind::Blank, vec![]),
        ];
        let decode = |bytes: &[u8]| {
            let mut buffer = Buffer::with_capacity(bytes.len());
            buffer.extend(bytes);
            let charge = Budget::default().none(Use::Frames);
            match from_peer(buffer, ShardUid(1), charge).ok()?.payload {
                Payload::Received { header, buffer, membership, .. } => {
                    Some((header, buffer.bytes()[ENTRY_HEADER_BYTES..].to_vec(), membership))
                }
                other => panic!("an entry of a peer is {other:?}"),
            }
        };
        crate::fuzz::Target::new("raft::types::tests::fuzz", corpus, decode)
            .encode(|(header, payload, _)| [&header.encode()[..], payload].concat())
            .sealed_by(crate::format::fuzz::seal_entry)
            .run();
    }
}
