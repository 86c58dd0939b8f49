//! What goes wrong on a disk beside the crash: which faults there are, which are planted, and what each has met.

use std::{collections::BTreeMap, ffi::OsStr, io, path::Path};

use super::{Device, Operation, SimDisk};
use crate::sim::random;

/// Parts in a million.
const MILLION: u64 = 1_000_000;

/// The number of Linux for an input/output error.
const EIO: i32 = 5;

/// Too many open files.
const EMFILE: i32 = 24;

/// Something that a device does. All but the last six are planted with `SimDisk::plant_fault`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskFault {
    /// EIO on a write that is not durable by itself; nothing is written.
    ErrorWrite,
    /// EIO on a durable append; nothing, a part or all of it is written.
    ErrorAppend,
    /// EIO on a sync, of a file or a directory. A file's is lost: the next sync succeeds and covers it not.
    ErrorSync,
    /// EIO on a read.
    ErrorRead,
    /// ENOSPC, planted or by `set_capacity`.
    Full,
    /// A sync or a durable append that says it is done, and leaves everything for the next crash to take.
    LyingSync,
    /// One bit of what is written is another one.
    BitFlip,
    /// One block of what is written is zero.
    ZeroedBlock,
    /// One block of what is written is not, and shows what was there before.
    StaleBlock,
    /// What is written comes to another place, of this file or of one of its kind; its own shows what was there before.
    Misdirected,
    /// A block at rest cannot be read any more (EIO), and stays so when it is written: a file made anew lies elsewhere.
    LostBlock,
    /// EMFILE on opening or syncing a directory. Not drawn by scenarios.
    NoDescriptor,
    /// An operation in the time of `set_slow`.
    Slow,
    /// An operation that stalls (`DiskTimes`).
    Stall,
    /// An operation that was done before one on the same file that had begun earlier.
    Misordered,
    /// A crash took sectors that were not synced.
    Torn,
}

impl DiskFault {
    /// Those that can be planted.
    pub const PLANTABLE: [DiskFault; 10] = [
        DiskFault::ErrorWrite,
        DiskFault::ErrorAppend,
        DiskFault::ErrorSync,
        DiskFault::ErrorRead,
        DiskFault::Full,
        DiskFault::LyingSync,
        DiskFault::BitFlip,
        DiskFault::ZeroedBlock,
        DiskFault::StaleBlock,
        DiskFault::Misdirected,
    ];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            DiskFault::ErrorWrite => "EIO on write",
            DiskFault::ErrorAppend => "EIO on append",
            DiskFault::ErrorSync => "EIO on sync",
            DiskFault::ErrorRead => "EIO on read",
            DiskFault::Full => "ENOSPC",
            DiskFault::LyingSync => "lying sync",
            DiskFault::BitFlip => "bit flip",
            DiskFault::ZeroedBlock => "zeroed block",
            DiskFault::StaleBlock => "stale block",
            DiskFault::Misdirected => "misdirected write",
            DiskFault::LostBlock => "unreadable block",
            DiskFault::NoDescriptor => "EMFILE",
            DiskFault::Slow => "slow device",
            DiskFault::Stall => "stall",
            DiskFault::Misordered => "misordered completion",
            DiskFault::Torn => "torn by a crash",
        }
    }

    fn meets(self, operation: Operation) -> bool {
        match self {
            DiskFault::ErrorWrite => operation == Operation::Write,
            DiskFault::ErrorAppend => operation == Operation::AppendDurable,
            DiskFault::ErrorSync => matches!(operation, Operation::Sync | Operation::SyncDir),
            DiskFault::ErrorRead => operation == Operation::Read,
            DiskFault::NoDescriptor => matches!(operation, Operation::Open | Operation::SyncDir | Operation::List),
            DiskFault::LyingSync => matches!(operation, Operation::Sync | Operation::AppendDurable),
            DiskFault::Full
            | DiskFault::BitFlip
            | DiskFault::ZeroedBlock
            | DiskFault::StaleBlock
            | DiskFault::Misdirected => matches!(operation, Operation::Write | Operation::AppendDurable),
            DiskFault::LostBlock | DiskFault::Slow | DiskFault::Stall | DiskFault::Misordered | DiskFault::Torn => {
                false
            }
        }
    }

    /// The error that the caller gets; `None`: the operation goes on.
    pub(super) fn error(self) -> Option<io::Error> {
        match self {
            DiskFault::ErrorWrite
            | DiskFault::ErrorAppend
            | DiskFault::ErrorSync
            | DiskFault::ErrorRead
            | DiskFault::LostBlock => Some(io::Error::from_raw_os_error(EIO)),
            DiskFault::Full => Some(io::ErrorKind::StorageFull.into()),
            DiskFault::NoDescriptor => Some(io::Error::from_raw_os_error(EMFILE)),
            _ => None,
        }
    }
}

/// What met a fault, as the file's name and the operation tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Met {
    /// Vote and committed.
    HardState,
    /// A durable append to a segment.
    StoreAppend,
    /// Making, cutting or syncing a segment.
    SegmentPreparation,
    /// An index file.
    Index,
    /// A checkpoint.
    Checkpoint,
    /// A read of a segment of a log to which nothing was appended since the disk came up.
    RecoveryRead,
    /// Another read of a segment.
    ConsumeRead,
    /// A directory.
    Directory,
    /// Anything else.
    Other,
}

impl Met {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Met::HardState => "hard state",
            Met::StoreAppend => "store append",
            Met::SegmentPreparation => "segment preparation",
            Met::Index => "index",
            Met::Checkpoint => "checkpoint",
            Met::RecoveryRead => "recovery read",
            Met::ConsumeRead => "consume read",
            Met::Directory => "directory",
            Met::Other => "other",
        }
    }
}

/// What the file is for, by its name: `hard_state`, `store` (spares, too), `index`, `checkpoint`, or its extension.
pub(super) fn kind(path: &Path) -> &str {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let name = name.strip_suffix(".tmp").unwrap_or(name);
    if name.starts_with("hard_state") {
        return "hard_state";
    }
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("store" | "spare") => "store",
        Some(extension) => extension,
        None => name,
    }
}

/// A fault that is to come.
#[derive(Clone, Debug)]
pub struct PlantedFault {
    /// What.
    pub fault: DiskFault,
    /// Only on files whose present path contains this.
    pub path_contains: String,
    /// At so many in a million of the operations that can meet it.
    pub chance_ppm: u64,
    /// How often at most.
    pub times: u64,
}

/// What a panic begins with that a scenario has asked for: a seed does not fail for it if it was contained.
pub const PLANTED_PANIC: &str = "planted by the scenario";

/// What the panic of this number begins with (`SimDisk::plant_panic`), up to a colon.
pub fn panic_of(number: u64) -> String {
    format!("{PLANTED_PANIC}, number {number}")
}

/// A bug that is to show: the task that asks for this operation on a file whose path contains this panics, once.
#[derive(Clone, Debug)]
pub struct PlantedPanic {
    /// Which operation.
    pub operation: Operation,
    /// On what.
    pub path_contains: String,
}

/// What a device cannot do for a while.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    fault: DiskFault,
    path_contains: String,
    /// In microseconds of the world.
    until_us: u64,
}

impl SimDisk {
    /// Has the next such operation panic: a bug in the code that asks for it. Returns a number that no other panic has on this
    /// disk, nor on those that its crashes leave.
    pub fn plant_panic(&self, panic: PlantedPanic) -> u64 {
        let number = self.device.panics_numbered.get() + 1;
        self.device.panics_numbered.set(number);
        self.device.planted_panics.borrow_mut().push((number, panic));
        number
    }

    /// Plants a fault, until `heal`. The first planted one that strikes an operation is the only one.
    ///
    /// # Panics
    /// When it is none of `DiskFault::PLANTABLE`.
    pub fn plant_fault(&self, fault: PlantedFault) {
        let can_be = DiskFault::PLANTABLE.contains(&fault.fault) || fault.fault == DiskFault::NoDescriptor;
        assert!(can_be, "{} cannot be planted", fault.fault.name());
        self.device.planted.borrow_mut().push(fault);
    }

    /// From now on nothing on paths that contain this finds a descriptor, until `heal`.
    pub fn lack_descriptors(&self, path_contains: impl Into<String>) {
        let (fault, path_contains) = (DiskFault::NoDescriptor, path_contains.into());
        self.plant_fault(PlantedFault { fault, path_contains, chance_ppm: 1_000_000, times: u64::MAX });
    }

    /// A device that is broken: for `for_us` microseconds from now on all operations on such files that this error can meet fail
    /// with it, also after a crash, until `heal`. No-op unless the disk is `timed`.
    ///
    /// # Panics
    /// When it is no EIO.
    pub fn break_for(&self, fault: DiskFault, path_contains: String, for_us: u64) {
        let is_error = matches!(
            fault,
            DiskFault::ErrorWrite | DiskFault::ErrorAppend | DiskFault::ErrorSync | DiskFault::ErrorRead
        );
        assert!(is_error, "{} is nothing that lasts", fault.name());
        let until_us = self.device.now_us().saturating_add(for_us);
        self.device.broken.borrow_mut().push(Broken { fault, path_contains, until_us });
    }

    /// Whether the panic of this number is still to come.
    pub fn awaits_panic(&self, number: u64) -> bool {
        self.device.planted_panics.borrow().iter().any(|(other, _)| *other == number)
    }

    /// The panic of this number is not to come any more.
    pub fn forget_panic(&self, number: u64) {
        self.device.planted_panics.borrow_mut().retain(|(other, _)| *other != number);
    }

    /// How often each fault was met, and by what, by their names: an operation that was struck, or a read of a block that
    /// was damaged when it was written or at rest. With what the disks before the last crashes have met.
    pub fn fired(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let fired = self.device.fired.borrow();
        fired.iter().map(|((fault, met), count)| ((fault.name(), met.name()), *count)).collect()
    }

    /// Whether what stops on this disk has a reason: an error that was asked for, or a panic, has come since the last crash; or a
    /// process went on, without a crash, after one that they had come to.
    pub fn was_struck(&self) -> bool {
        self.device.struck.get() || self.device.tainted.get()
    }

    /// Whether something was refused for lack of space since the last crash.
    pub fn was_full(&self) -> bool {
        self.device.refused.get()
    }

    /// The process on this disk starts anew: reads count as those of a recovery again.
    pub fn reopened(&self) {
        self.device.tainted.set(self.was_struck());
        self.device.appended.borrow_mut().clear();
    }
}

impl Device {
    /// Whether a planted fault strikes: draws only where one could. Counts it.
    pub(super) fn strike(&self, operation: Operation, path: &Path) -> Option<DiskFault> {
        self.strike_panic(operation, path);
        if let Some(fault) = self.broken_at(operation, path) {
            return Some(fault);
        }
        let mut planted = self.planted.borrow_mut();
        if planted.is_empty() {
            return None;
        }
        let name = path.to_string_lossy();
        let struck = planted.iter_mut().find(|planted| {
            let could = planted.times > 0 && planted.fault.meets(operation) && name.contains(&planted.path_contains);
            could && random(&self.dice) % MILLION < planted.chance_ppm
        })?;
        struck.times = struck.times.saturating_sub(1);
        let fault = struck.fault;
        drop(planted);
        // A lie or damage stops nothing by itself: the scenario knows whose disk has such.
        self.struck.set(self.struck.get() || fault.error().is_some() && fault != DiskFault::Full);
        self.count_fault(fault, operation, path);
        self.note(&format!("{} at {operation:?} of {}", fault.name(), path.display()));
        Some(fault)
    }

    fn broken_at(&self, operation: Operation, path: &Path) -> Option<DiskFault> {
        let mut broken = self.broken.borrow_mut();
        if broken.is_empty() {
            return None;
        }
        let now_us = self.now_us();
        broken.retain(|broken| now_us < broken.until_us);
        let name = path.to_string_lossy();
        let meets = |broken: &&Broken| broken.fault.meets(operation) && name.contains(&broken.path_contains);
        let fault = broken.iter().find(meets)?.fault;
        drop(broken);
        self.struck.set(true);
        self.count_fault(fault, operation, path);
        Some(fault)
    }

    fn now_us(&self) -> u64 {
        self.timing.borrow().world().map_or(0, |world| world.now_us())
    }

    fn strike_panic(&self, operation: Operation, path: &Path) {
        let mut planted = self.planted_panics.borrow_mut();
        let name = path.to_string_lossy();
        let struck =
            |(_, panic): &(u64, PlantedPanic)| panic.operation == operation && name.contains(&panic.path_contains);
        let Some(at) = planted.iter().position(struck) else { return };
        let (number, _) = planted.remove(at);
        drop(planted);
        self.struck.set(true);
        panic!("{}: {operation:?} of {}", panic_of(number), path.display());
    }

    pub(super) fn count_fault(&self, fault: DiskFault, operation: Operation, path: &Path) {
        *self.fired.borrow_mut().entry((fault, self.met(operation, path))).or_default() += 1;
    }

    fn met(&self, operation: Operation, path: &Path) -> Met {
        if matches!(operation, Operation::SyncDir | Operation::List) {
            return Met::Directory;
        }
        match (kind(path), operation) {
            ("hard_state", _) => Met::HardState,
            ("index", _) => Met::Index,
            ("checkpoint", _) => Met::Checkpoint,
            ("store", Operation::AppendDurable) => Met::StoreAppend,
            ("store", Operation::Read) => {
                let known = path.parent().is_some_and(|dir| self.appended.borrow().contains(dir));
                if known { Met::ConsumeRead } else { Met::RecoveryRead }
            }
            ("store", _) => Met::SegmentPreparation,
            _ => Met::Other,
        }
    }

    /// Into the trace of the world, where there is one.
    pub(super) fn note(&self, text: &str) {
        if let Some(world) = self.timing.borrow().world() {
            world.note(text);
        }
    }
}
