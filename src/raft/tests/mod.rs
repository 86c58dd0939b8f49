//! Groups on a disk that crashes, fills up and fails.

mod changes;
mod cluster;
mod conformance;
mod faults;
mod follower;
mod full;
mod hostile;
mod left;
mod lifecycle;
mod replication;

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use openraft::rt::AsyncRuntime;

use super::{store::Store, timing::config, *};
use crate::{
    env,
    format::entry::{ENTRY_HEADER_BYTES, EntryKind},
    limits::{BLOCK_BYTES, SEGMENT_BYTES_MIN},
    log::{LogOptions, Recovered, TailBudget},
    peer::Peers,
    sim::{SimDisk, TestEnv},
};

/// Counts, and folds every entry's chain hash into a digest: equal digests, equal histories.
#[derive(Clone, Debug, Default)]
struct Tally {
    state: TallyState,
    /// Entries applied in this life, replays included; not part of the state.
    applied: Rc<Cell<u64>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct TallyState {
    records: u64,
    commands: u64,
    voids: u64,
    digest: u64,
}

impl Machine for Tally {
    /// The state after the entry.
    type Answer = TallyState;

    fn apply(&mut self, entry: &StoredEntry) -> TallyState {
        self.applied.set(self.applied.get() + 1);
        match entry.header.kind {
            EntryKind::Batch => self.state.records += u64::from(entry.header.record_count),
            EntryKind::Command => self.state.commands += u64::from(entry.payload()[0]),
            EntryKind::Void => self.state.voids += 1,
            EntryKind::Blank | EntryKind::Membership => panic!("not for machines"),
        }
        self.state.digest = self.state.digest.rotate_left(7) ^ entry.header.chain;
        self.state
    }

    fn checkpoint(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        let TallyState { records, commands, voids, digest } = self.state;
        for number in [records, commands, voids, digest] {
            bytes.put_u64_le(number);
        }
        bytes.freeze()
    }

    fn restore(&mut self, mut state: &[u8]) -> Result<(), String> {
        if state.len() != 32 {
            return Err(format!("{} bytes", state.len()));
        }
        let [records, commands, voids, digest] = std::array::from_fn(|_| state.get_u64_le());
        self.state = TallyState { records, commands, voids, digest };
        Ok(())
    }
}

type TestGroup = Group<TestEnv, Tally>;

fn options() -> GroupOptions {
    GroupOptions {
        dir: "/shards/7".into(),
        shard: ShardUid(7),
        node: NodeId(3),
        segment_bytes_max: SEGMENT_BYTES_MIN,
        slot: 0,
        founders: Some([NodeId(3)].into()),
        owner: 0,
        preferred: true,
    }
}

async fn open(disk: &SimDisk) -> (TestGroup, Recovered) {
    try_open(disk).await.unwrap()
}

async fn try_open(disk: &SimDisk) -> Result<(TestGroup, Recovered), GroupError> {
    Group::open(disk.clone(), TailBudget::new(256 << 10), Peers::alone(NodeId(3)), options(), Tally::default()).await
}

/// A batch of `count` records for `base_offset`, with `bytes` of payload.
fn batch(base_offset: Offset, count: u32, bytes: usize) -> Proposal {
    let mut buffer = Buffer::zeroed(ENTRY_HEADER_BYTES);
    buffer.extend(&vec![base_offset.0 as u8 | 1; bytes]);
    Proposal {
        kind: ProposalKind::Batch,
        record_count: count,
        base_offset,
        timestamp_us: 1,
        record_timestamp_max_us: 1,
        buffer,
    }
}

/// A command that counts `amount`.
fn command(amount: u8) -> Proposal {
    Proposal::command(&[amount], 1)
}

/// Proposes one batch at the end and waits for it.
async fn produce(group: &TestGroup, count: u32, bytes: usize) -> Result<Applied<TallyState>, GroupError> {
    group.propose(batch(group.log().log_end(), count, bytes)).await
}

fn state(group: &TestGroup) -> TallyState {
    group.with_machine(|machine| machine.state)
}

/// What the whole log holds, header by header, from its first entry on.
async fn headers(group: &TestGroup) -> Vec<EntryHeader> {
    let log = group.log();
    let (mut next, end) = (log.first_index(), log.last().map_or(Index(0), |last| last.index.next()));
    let mut headers = Vec::new();
    while next < end {
        let entries = log.read(next, end, 1 << 20).await.unwrap();
        headers.extend(entries.iter().map(|entry| entry.header));
        next = Index(next.0 + entries.len() as u64);
    }
    headers
}

/// The settings without which acknowledged writes are lost, or a returning node disturbs its group.
#[test]
fn dangerous_defaults_are_off() {
    let config = config(Timing::default()).unwrap();
    assert_eq!(config.enable_leader_restore, Some(false));
    assert_eq!(config.enable_pre_vote, Some(true));
    assert_eq!(config.snapshot_policy, openraft::SnapshotPolicy::Never);
    assert_eq!((config.max_in_snapshot_log_to_keep, config.purge_batch_size), (0, 1));
}
