//! The small state that a shard's entries build, alike on every replica: where its log starts.
//!
//! Offsets are not in here: they are a function of the log itself.

use bytes::Bytes;
use prost::Message;

use crate::{
    format::entry::{EntryKind, StoredEntry},
    ids::Offset,
    proto::ringlog::state::v1::{self as state, ShardCommand, Trim, shard_command::Command},
    raft::Machine,
};

/// State machine of a shard.
///
/// Invariant: `log_start` never goes down, and is never above the offset that follows the last applied record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ShardMachine {
    log_start: Offset,
}

/// What applying an entry tells its proposer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShardAnswer {
    /// The records are in the log for good.
    Appended,
    /// The batch was encoded for another place; nothing was written.
    Void,
    /// The log starts here now.
    Trimmed(Offset),
    /// A command that this version does not know; it changed nothing.
    Unknown,
}

impl ShardMachine {
    /// First offset that is kept.
    pub(super) fn log_start(&self) -> Offset {
        self.log_start
    }

    /// The payload of a command that trims.
    pub(super) fn trim_command(before: Offset) -> Vec<u8> {
        ShardCommand { command: Some(Command::Trim(Trim { before_offset: before.0 })) }.encode_to_vec()
    }
}

impl Machine for ShardMachine {
    type Answer = ShardAnswer;

    fn apply(&mut self, entry: &StoredEntry) -> ShardAnswer {
        assert!(self.log_start <= entry.header.base_offset, "log_start <= high_watermark");
        #[cfg(test)]
        planted::panic_at(entry.header.base_offset);
        match entry.header.kind {
            EntryKind::Batch => ShardAnswer::Appended,
            EntryKind::Void => ShardAnswer::Void,
            EntryKind::Command => match ShardCommand::decode(entry.payload()) {
                Ok(ShardCommand { command: Some(Command::Trim(trim)) }) => {
                    // A command's base offset is the next one to be given: what is not written yet cannot be trimmed.
                    let before = Offset(trim.before_offset).min(entry.header.base_offset);
                    self.log_start = self.log_start.max(before);
                    ShardAnswer::Trimmed(self.log_start)
                }
                Ok(ShardCommand { command: None }) | Err(_) => ShardAnswer::Unknown,
            },
            EntryKind::Blank | EntryKind::Membership => ShardAnswer::Unknown,
        }
    }

    fn checkpoint(&self) -> Bytes {
        state::Shard { log_start: self.log_start.0 }.encode_to_vec().into()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let state =
            state::Shard::decode(state).map_err(|error| format!("this is not a checkpoint of a shard: {error}"))?;
        self.log_start = Offset(state.log_start);
        Ok(())
    }
}

/// A bug in `apply` that tests plant.
#[cfg(test)]
pub(crate) mod planted {
    use std::cell::Cell;

    use super::Offset;

    thread_local! {
        static PLANTED: Cell<Option<Offset>> = const { Cell::new(None) };
        static ADMISSIONS: Cell<Option<u32>> = const { Cell::new(None) };
        static IN_LAG: Cell<bool> = const { Cell::new(false) };
    }

    /// Of another process, by a test that starts it: an offset.
    pub(crate) const VARIABLE: &str = "TEST_OF_RINGLOG_PANICS_AT";

    /// From now on no entry with this base offset can be applied on this thread.
    pub(crate) fn plant(at: Option<Offset>) {
        PLANTED.set(at);
    }

    /// Lets so many more requests be admitted on this thread, and panics at the next one.
    pub(crate) fn plant_in_admission(after: u32) {
        ADMISSIONS.set(Some(after));
    }

    /// Panics at the next question of this thread how far a follower is behind.
    pub(crate) fn plant_in_lag() {
        IN_LAG.set(true);
    }

    pub(in crate::shard) fn in_lag() {
        assert!(!IN_LAG.replace(false), "a bug planted in a look at a follower");
    }

    pub(in crate::shard) fn admission() {
        let left = ADMISSIONS.get();
        ADMISSIONS.set(left.and_then(|left| left.checked_sub(1)));
        assert!(left != Some(0), "a bug planted in an admission");
    }

    pub(super) fn panic_at(offset: Offset) {
        static OF_PROCESS: std::sync::OnceLock<Option<u64>> = std::sync::OnceLock::new();
        let of_process = *OF_PROCESS.get_or_init(|| std::env::var(VARIABLE).ok()?.parse().ok());
        assert!(PLANTED.get() != Some(offset) && of_process != Some(offset.0), "a bug planted in apply");
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        format::entry::{ENTRY_HEADER_BYTES, EntryHeader},
        ids::{Index, LogId, SegmentSequence, ShardUid, Term},
    };

    /// An entry as the log returns it; checksums are not looked at here.
    pub(in crate::shard) fn entry(kind: EntryKind, base_offset: u64, record_count: u32, payload: &[u8]) -> StoredEntry {
        let header = EntryHeader {
            kind,
            payload_bytes: payload.len() as u32,
            record_count,
            shard: ShardUid(1),
            segment: SegmentSequence(1),
            id: LogId { term: Term(1), index: Index(1) },
            base_offset: Offset(base_offset),
            timestamp_us: 0,
            timestamp_max_us: 0,
            durable_end: 0,
            chain: 0,
            payload_crc: 0,
        };
        StoredEntry { header, bytes: [vec![0; ENTRY_HEADER_BYTES], payload.to_vec()].concat().into() }
    }

    /// Trims move the log start up, never down, and never beyond what is written.
    #[test]
    fn trims() {
        let mut machine = ShardMachine::default();
        let trim = |machine: &mut ShardMachine, before: u64, written: u64| {
            let command = ShardMachine::trim_command(Offset(before));
            machine.apply(&entry(EntryKind::Command, written, 0, &command))
        };
        assert_eq!(machine.apply(&entry(EntryKind::Batch, 0, 10, b"")), ShardAnswer::Appended);
        assert_eq!(trim(&mut machine, 4, 10), ShardAnswer::Trimmed(Offset(4)));
        assert_eq!(trim(&mut machine, 2, 10), ShardAnswer::Trimmed(Offset(4)));
        assert_eq!(trim(&mut machine, u64::MAX, 10), ShardAnswer::Trimmed(Offset(10)));
        assert_eq!(machine.apply(&entry(EntryKind::Void, 10, 3, b"")), ShardAnswer::Void);

        let mut restored = ShardMachine::default();
        restored.restore(&machine.checkpoint()).unwrap();
        assert_eq!(restored, machine);
        assert!(restored.restore(&[0xff]).is_err());
    }

    /// A command of a later version changes nothing, here as on every other replica.
    #[test]
    fn unknown_commands() {
        let mut machine = ShardMachine::default();
        for payload in [&[][..], &[0xff], &[0x12, 0]] {
            assert_eq!(machine.apply(&entry(EntryKind::Command, 0, 0, payload)), ShardAnswer::Unknown);
        }
        assert_eq!(machine, ShardMachine::default());
    }

    /// Checkpoints and commands of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let restored = |bytes: &[u8]| {
            let mut machine = ShardMachine::default();
            machine.restore(bytes).ok().map(|()| machine)
        };
        let corpus = [ShardMachine { log_start: Offset(300) }.checkpoint(), Bytes::new()];
        crate::fuzz::Target::new("shard::machine::tests::fuzz", corpus, restored)
            .encode(|machine| machine.checkpoint().to_vec())
            .run();
        let corpus = [ShardMachine::trim_command(Offset(7)), ShardMachine::trim_command(Offset(u64::MAX))];
        crate::fuzz::Target::new("shard::machine::tests::fuzz", corpus, |bytes| {
            let mut machine = ShardMachine { log_start: Offset(5) };
            let answer = machine.apply(&entry(EntryKind::Command, 10, 0, bytes));
            assert!((5..=10).contains(&machine.log_start.0));
            (answer != ShardAnswer::Unknown).then_some(machine)
        })
        .run();
    }
}
