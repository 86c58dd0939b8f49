//! A disk in memory that loses power on demand, with the freedom that real ones take.
//!
//! What `crash` may do to what was not synced: keep or drop each 512-byte sector of each write by
//! itself (so writes tear and reorder), lose truncations from some point on, lose creations, renames
//! and removals (half of the seeds: all after some point; the other half: any of them). What was
//! synced, or written by `append_durable` that returned, stays.
//!
//! Operations complete at once; or, with `with_latency`, after a few turns of the executor; or,
//! `timed`, in the time of a simulated world, each after its own delay, so that they are done in another
//! order than begun. A crash finds some of them half done. A sync covers what was done when it began.
//!
//! Faults can be planted: errors by operation and file (`plant`), and what devices do (`plant_fault`:
//! errors, lies, wrong bytes in what is written), a capacity, a slow time; `damage_at_rest` changes what is
//! written already. `fired` says what each has met. A failed sync loses what it should have made durable
//! and the next one succeeds, as on Linux: who retries loses data.
//!
//! Not done here: permissions, symbolic links, files that are removed while open (they live on for
//! who has them open, as on Unix, but their space is free at once).

mod blocks;
mod by_hand;
mod damage;
mod faults;
mod flight;
mod node;
mod space;
mod timing;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;

pub use self::{
    damage::Damage,
    faults::{DiskFault, Met, PLANTED_PANIC, PlantedFault, PlantedPanic, panic_of},
    timing::DiskTimes,
};
use self::{
    damage::Piece,
    faults::Broken,
    node::{Node, NodeRef},
    timing::{Slow, Timing},
};
use super::random;
use crate::{
    env::{
        DirEntry, Disk, File, OpenMode, Reserve,
        channel::{Notified, Notify},
    },
    limits::BLOCK_BYTES,
};

/// What a device writes at once or not at all.
pub const SECTOR_BYTES: usize = 512;

/// Makes the dice of faults others than those of delays.
const FAULT_SEED: u64 = 0x0064_6973_6b66_6c74;

/// Kinds of operations, for faults and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `open`, whatever the mode.
    Open,
    /// `read_at` and `read_file`.
    Read,
    /// `write_at`, and the writing in `write_file`.
    Write,
    /// `append_durable`.
    AppendDurable,
    /// `sync`, and the syncing in `write_file`.
    Sync,
    /// `truncate`.
    Truncate,
    /// `rename`, and the renaming in `write_file`.
    Rename,
    /// `remove`.
    Remove,
    /// `sync_dir`, and the syncing of directories in other operations.
    SyncDir,
    /// `list`.
    List,
}

/// A planted error.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operation fails.
    pub operation: Operation,
    /// Only on files whose path contains this.
    pub path_contains: String,
    /// How many matching operations succeed before.
    pub skip: u64,
    /// How many fail then; `u64::MAX`: all.
    pub times: u64,
    /// With what.
    pub error: io::ErrorKind,
}

/// A simulated disk. Clones are handles to the same one.
#[derive(Clone)]
pub struct SimDisk {
    device: Rc<Device>,
}

/// An open file on it.
#[derive(Clone)]
pub struct SimFile {
    device: Rc<Device>,
    path: PathBuf,
    node: NodeRef,
    /// Counted by `SimDisk::open_files`.
    _open: Rc<()>,
}

#[derive(Default)]
struct Device {
    /// Each open file has one of these, too.
    open: Rc<()>,
    /// Of planted faults.
    dice: Cell<u64>,
    planted: RefCell<Vec<PlantedFault>>,
    /// Each with its number.
    planted_panics: RefCell<Vec<(u64, PlantedPanic)>>,
    /// How many were planted; shared with the disks that a crash leaves.
    panics_numbered: Rc<Cell<u64>>,
    /// What does not work for now, whatever the process and the power do.
    broken: RefCell<Vec<Broken>>,
    /// Shared with the disks that a crash leaves.
    fired: Rc<RefCell<BTreeMap<(DiskFault, Met), u64>>>,
    /// Directories of logs that were appended to.
    appended: RefCell<BTreeSet<PathBuf>>,
    /// Numbers and files of the operations that are under way.
    in_flight: RefCell<Vec<(u64, PathBuf)>>,
    operation_next: Cell<u64>,
    /// What a look at the file system shows now.
    names: RefCell<BTreeMap<PathBuf, Entry>>,
    /// What is there for good.
    names_durable: RefCell<BTreeMap<PathBuf, Entry>>,
    /// Changes of names since the last `sync_dir` of their directory, in order.
    names_pending: RefCell<Vec<NameChange>>,
    /// An error or a panic that was asked for has come since the power is there, or the process before this one had.
    struck: Cell<bool>,
    /// A process went on with what one that was struck had left in the page cache: what it finds there may not be durable. Stays
    /// after a crash.
    tainted: Cell<bool>,
    /// Something was refused for lack of space since the power is there.
    refused: Cell<bool>,
    off: Cell<bool>,
    capacity: Cell<Option<u64>>,
    reserve: Cell<Option<u64>>,
    faults: RefCell<Vec<Fault>>,
    counts: RefCell<BTreeMap<Operation, u64>>,
    /// Durable appends to files whose path contains this wait.
    held: RefCell<Option<(String, Notify)>>,
    timing: RefCell<Timing>,
}

#[derive(Clone)]
enum Entry {
    Dir,
    File(NodeRef),
}

#[derive(Clone)]
enum NameChange {
    Put { path: PathBuf, entry: Entry },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

impl Default for SimDisk {
    fn default() -> SimDisk {
        SimDisk::new()
    }
}

impl SimDisk {
    /// An empty disk whose operations complete at once.
    pub fn new() -> SimDisk {
        let device = Device::default();
        device.names.borrow_mut().insert("/".into(), Entry::Dir);
        device.names_durable.borrow_mut().insert("/".into(), Entry::Dir);
        SimDisk { device: Rc::new(device) }
    }

    /// From now on operations take 0 to 3 turns of the executor, by `seed`.
    #[must_use]
    pub fn with_latency(self, seed: u64) -> SimDisk {
        self.device.dice.set(seed ^ FAULT_SEED);
        *self.device.timing.borrow_mut() = Timing::Turns { dice: Cell::new(seed) };
        self
    }

    /// From now on operations take time of that world, by `seed`.
    #[must_use]
    pub fn timed(self, world: &super::World, seed: u64, times: DiskTimes) -> SimDisk {
        self.device.dice.set(seed ^ FAULT_SEED);
        *self.device.timing.borrow_mut() = Timing::timed(world, seed, times);
        self
    }

    /// A slow device: for `for_us` microseconds from now on, operations that begin take `factor` times as long. No-op
    /// unless the disk is `timed`.
    pub fn set_slow(&self, factor: u64, for_us: u64) {
        self.device.timing.borrow().set_slow(Slow { factor: factor.max(1), ..Slow::default() }, for_us);
    }

    /// As `set_slow`, but only what has to reach the medium (durable appends, syncs), by `flush_us` more.
    pub fn delay_flushes(&self, flush_us: u64, for_us: u64) {
        self.delay_names(flush_us, 0, for_us);
    }

    /// As `delay_flushes`, and what removes or renames, by `names_us` more.
    pub fn delay_names(&self, flush_us: u64, names_us: u64, for_us: u64) {
        self.device.timing.borrow().set_slow(Slow { flush_us, names_us, ..Slow::default() }, for_us);
    }

    /// What is found when the power fails now and comes back: another disk. This one goes on; end it with `power_off`.
    /// Planted faults are not taken over; what is broken and the capacity are, and times are, but not turns.
    pub fn crash(&self, seed: u64) -> SimDisk {
        let dice = Cell::new(seed);
        let mut names = self.device.names_durable.borrow().clone();
        let changes = self.device.names_pending.borrow();
        let in_order = random(&dice).is_multiple_of(2);
        let kept = (random(&dice) % (changes.len() as u64 + 1)) as usize;
        for (number, change) in changes.iter().enumerate() {
            let keep = if in_order { number < kept } else { random(&dice).is_multiple_of(2) };
            if keep {
                change.apply(&mut names);
            }
        }
        // A file may have two names while a rename is under way.
        let mut copies: Vec<(NodeRef, NodeRef)> = Vec::new();
        for (path, entry) in &mut names {
            if let Entry::File(node) = entry {
                let known = copies.iter().find(|(old, _)| Rc::ptr_eq(old, node)).map(|(_, new)| new.clone());
                let copy = known.unwrap_or_else(|| self.device.crash_file(&node.borrow(), &dice));
                copy.borrow_mut().path.clone_from(path);
                copies.push((node.clone(), copy.clone()));
                *node = copy;
            }
        }
        let (fired, panics_numbered) = (Rc::clone(&self.device.fired), Rc::clone(&self.device.panics_numbered));
        let device = Device { fired, panics_numbered, ..Device::default() };
        *device.timing.borrow_mut() = self.device.timing.borrow().reseeded(random(&dice));
        device.dice.set(random(&dice));
        device.reserve.set(self.device.reserve.get());
        device.capacity.set(self.device.capacity.get());
        device.tainted.set(self.device.tainted.get());
        device.broken.borrow_mut().clone_from(&self.device.broken.borrow());
        *device.names_durable.borrow_mut() = names.clone();
        *device.names.borrow_mut() = names;
        SimDisk { device: Rc::new(device) }
    }

    /// All operations through handles to this disk fail from now on.
    pub fn power_off(&self) {
        self.device.off.set(true);
        self.release();
    }

    /// Plants an error.
    pub fn plant(&self, fault: Fault) {
        self.device.faults.borrow_mut().push(fault);
    }

    /// Takes all planted errors, faults and panics away, and mends what is broken.
    pub fn heal(&self) {
        self.device.faults.borrow_mut().clear();
        self.device.planted.borrow_mut().clear();
        self.device.planted_panics.borrow_mut().clear();
        self.device.broken.borrow_mut().clear();
    }

    /// How many operations of this kind were begun.
    pub fn count(&self, operation: Operation) -> u64 {
        self.device.counts.borrow().get(&operation).copied().unwrap_or(0)
    }

    /// Durable appends wait from now on until `release`; their bytes are on the way (a crash may tear them).
    pub fn hold(&self) {
        self.hold_at("");
    }

    /// As `hold`, but only on files whose path contains this.
    pub fn hold_at(&self, path_contains: &str) {
        *self.device.held.borrow_mut() = Some((path_contains.to_owned(), Notify::new()));
    }

    /// Ends `hold`.
    pub fn release(&self) {
        if let Some((_, held)) = self.device.held.borrow_mut().take() {
            held.notify_all();
        }
    }
}

impl NameChange {
    fn dir(&self) -> Option<&Path> {
        match self {
            NameChange::Put { path, .. } | NameChange::Remove { path } => path.parent(),
            NameChange::Rename { to, .. } => to.parent(),
        }
    }

    /// Does it, if what it builds on is there.
    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        match self {
            NameChange::Put { path, entry } => {
                names.insert(path.clone(), entry.clone());
            }
            NameChange::Rename { from, to } => {
                if let Some(entry) = names.remove(from) {
                    names.insert(to.clone(), entry);
                }
            }
            NameChange::Remove { path } => {
                names.remove(path);
            }
        }
    }
}

impl Device {
    fn node(&self, path: &Path) -> io::Result<NodeRef> {
        match self.names.borrow().get(path) {
            Some(Entry::File(node)) => Ok(node.clone()),
            Some(Entry::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn used_bytes(&self) -> u64 {
        let names = self.names.borrow();
        let files = names.values().filter_map(|entry| match entry {
            Entry::File(node) => Some(node.borrow().current.len()),
            Entry::Dir => None,
        });
        files.sum()
    }

    /// `EIO` for a block that cannot be read any more.
    fn check_readable(&self, node: &RefCell<Node>, position: u64, bytes: usize) -> io::Result<()> {
        let node = node.borrow();
        if !node.is_lost(position, bytes) {
            return Ok(());
        }
        self.count_fault(DiskFault::LostBlock, Operation::Read, &node.path);
        DiskFault::LostBlock.error().map_or(Ok(()), Err)
    }

    /// `ENOSPC` unless the node may grow to `end`.
    fn grow(&self, node: &RefCell<Node>, end: u64) -> io::Result<()> {
        let growth = end.saturating_sub(node.borrow().current.len());
        match self.capacity.get() {
            Some(capacity) if growth > 0 && self.used_bytes() + growth > capacity => {
                self.refused.set(true);
                self.count_fault(DiskFault::Full, Operation::Write, &node.borrow().path);
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    /// A file after a crash.
    fn crash_file(&self, file: &Node, dice: &Cell<u64>) -> NodeRef {
        let torn = file.has_pending();
        let (after, lost) = file.crash(dice);
        if torn && lost > 0 {
            self.count_fault(DiskFault::Torn, Operation::AppendDurable, &file.path);
        }
        Rc::new(RefCell::new(after))
    }

    /// Counts the operation, waits as long as it takes, and fails it if that was planted; says what else is to happen.
    async fn begin(&self, operation: Operation, path: &Path) -> io::Result<Option<DiskFault>> {
        *self.counts.borrow_mut().entry(operation).or_default() += 1;
        self.pass(operation, path).await;
        self.check(operation, path)?;
        self.struck(operation, path)
    }

    /// As `begin`, for an open file.
    async fn begin_file(&self, operation: Operation, file: &SimFile) -> io::Result<Option<DiskFault>> {
        *self.counts.borrow_mut().entry(operation).or_default() += 1;
        let path = file.node.borrow().path.clone();
        self.pass(operation, &path).await;
        self.check(operation, &file.path)?;
        let path = file.node.borrow().path.clone();
        self.struck(operation, &path)
    }

    fn struck(&self, operation: Operation, path: &Path) -> io::Result<Option<DiskFault>> {
        let struck = self.strike(operation, path);
        match struck.and_then(DiskFault::error) {
            Some(error) => Err(error),
            None => Ok(struck),
        }
    }

    /// Until durable appends to this file are held no more, if they are.
    fn held_at(&self, path: &Path) -> Option<Notified> {
        let held = self.held.borrow();
        let (path_contains, held) = held.as_ref()?;
        path.to_string_lossy().contains(path_contains).then(|| held.notified())
    }

    fn powered(&self) -> io::Result<()> {
        if self.off.get() { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn check(&self, operation: Operation, path: &Path) -> io::Result<()> {
        self.powered()?;
        let path = path.to_string_lossy();
        for fault in self.faults.borrow_mut().iter_mut() {
            if fault.operation != operation || !path.contains(&fault.path_contains) || fault.times == 0 {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.times = fault.times.saturating_sub(1);
            self.struck.set(true);
            return Err(fault.error.into());
        }
        Ok(())
    }

    fn change_names(&self, change: NameChange) {
        let mut names = self.names.borrow_mut();
        change.apply(&mut names);
        if let NameChange::Rename { to, .. } = &change
            && let Some(Entry::File(node)) = names.get(to)
        {
            node.borrow_mut().path.clone_from(to);
        }
        drop(names);
        self.names_pending.borrow_mut().push(change);
    }

    /// At once for good: nothing brings back what was there.
    fn forget_dir(&self, path: &Path) {
        self.names.borrow_mut().retain(|name, _| !name.starts_with(path));
        self.names_durable.borrow_mut().retain(|name, _| !name.starts_with(path));
        self.names_pending.borrow_mut().retain(|change| !change.dir().is_some_and(|dir| dir.starts_with(path)));
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.begin(Operation::SyncDir, dir).await?;
        let mut durable = self.names_durable.borrow_mut();
        self.names_pending.borrow_mut().retain(|change| {
            let ours = change.dir() == Some(dir);
            if ours {
                change.apply(&mut durable);
            }
            !ours
        });
        Ok(())
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        self.device.begin(Operation::Open, path).await?;
        if mode == OpenMode::Create {
            if self.device.names.borrow().contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let dir = path.parent().expect("a file has a directory");
            if !matches!(self.device.names.borrow().get(dir), Some(Entry::Dir)) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let entry = Entry::File(Rc::new(RefCell::new(Node::new(path.into()))));
            self.device.change_names(NameChange::Put { path: path.into(), entry });
        }
        let node = self.device.node(path)?;
        Ok(SimFile { device: self.device.clone(), path: path.into(), node, _open: Rc::clone(&self.device.open) })
    }

    async fn read_file(&self, path: &Path) -> io::Result<Bytes> {
        self.device.begin(Operation::Read, path).await?;
        let node = self.device.node(path)?;
        let content = node.borrow().current.all();
        self.device.check_readable(&node, 0, content.len())?;
        self.device.note_read(&node, 0, content.len());
        Ok(content)
    }

    async fn write_file(&self, path: &Path, content: Bytes) -> io::Result<()> {
        let name = path.file_name().expect("a file has a name").to_string_lossy();
        let temporary = path.with_file_name(format!("{name}.tmp"));
        if self.device.names.borrow().contains_key(&temporary) {
            self.device.change_names(NameChange::Remove { path: temporary.clone() });
        }
        let file = self.open(&temporary, OpenMode::Create).await?;
        let written = async {
            let fault = self.device.begin(Operation::Write, path).await?;
            self.device.grow(&file.node, content.len() as u64)?;
            let pieces = vec![Piece { node: file.node.clone(), position: 0, bytes: content.clone(), damage: None }];
            drop(self.device.place(self.device.bend(fault, pieces)));
            file.sync().await?;
            self.rename(&temporary, path).await
        };
        if let Err(error) = written.await {
            self.device.change_names(NameChange::Remove { path: temporary });
            return Err(error);
        }
        self.device.sync_dir(path.parent().expect("a file has a directory")).await
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.device.pass(Operation::SyncDir, path).await;
        self.device.check(Operation::SyncDir, path)?;
        for dir in path.ancestors() {
            let known = self.device.names.borrow().get(dir).cloned();
            match known {
                Some(Entry::Dir) => continue,
                Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {}
            }
            self.device.names.borrow_mut().insert(dir.into(), Entry::Dir);
            self.device.names_durable.borrow_mut().insert(dir.into(), Entry::Dir);
        }
        Ok(())
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.device.begin(Operation::List, path).await?;
        let names = self.device.names.borrow();
        if !matches!(names.get(path), Some(Entry::Dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = names.iter().filter(|(name, _)| name.parent() == Some(path));
        let entries = below.map(|(name, entry)| DirEntry {
            name: name.file_name().expect("what is in a directory has a name").into(),
            bytes: match entry {
                Entry::Dir => 0,
                Entry::File(node) => node.borrow().current.len(),
            },
            is_dir: matches!(entry, Entry::Dir),
        });
        Ok(entries.collect())
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.device.begin(Operation::Rename, from).await?;
        self.device.node(from)?;
        self.device.change_names(NameChange::Rename { from: from.into(), to: to.into() });
        Ok(())
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.device.begin(Operation::Remove, path).await?;
        self.device.node(path)?;
        self.device.change_names(NameChange::Remove { path: path.into() });
        Ok(())
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.device.begin(Operation::Remove, path).await?;
        if !self.device.names.borrow().contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.device.forget_dir(path);
        Ok(())
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.device.sync_dir(path).await
    }

    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.device.pass(Operation::List, path).await;
        let Some(capacity) = self.device.capacity.get() else { return Ok(u64::MAX) };
        let free = capacity.saturating_sub(self.device.used_bytes());
        // Less than any segment: whoever asks gets none.
        self.device.refused.set(self.device.refused.get() || free < crate::limits::SEGMENT_BYTES_MIN);
        Ok(free)
    }

    fn reserve(&self) -> Option<Reserve> {
        let bytes = self.device.reserve.get()?;
        Some(Reserve { path: "/data/reserve".into(), bytes })
    }
}

impl SimFile {
    /// What is to be written where. Checks what the device demands.
    fn pieces(&self, position: u64, buffers: &[Bytes]) -> io::Result<Vec<Piece>> {
        assert!(position.is_multiple_of(BLOCK_BYTES as u64), "O_DIRECT wants aligned positions");
        let bytes: usize = buffers.iter().map(Bytes::len).sum();
        self.device.grow(&self.node, position + bytes as u64)?;
        let (mut at, mut pieces) = (position, Vec::with_capacity(buffers.len()));
        for buffer in buffers {
            assert!(buffer.len().is_multiple_of(BLOCK_BYTES), "O_DIRECT wants aligned lengths");
            assert!((buffer.as_ptr() as usize).is_multiple_of(BLOCK_BYTES), "O_DIRECT wants aligned memory");
            pieces.push(Piece { node: self.node.clone(), position: at, bytes: buffer.clone(), damage: None });
            at += buffer.len() as u64;
        }
        Ok(pieces)
    }

    /// Reads of its directory are no recovery's any more.
    fn note_append(&self, path: &Path) {
        let Some(dir) = path.parent().filter(|_| faults::kind(path) == "store") else { return };
        let mut appended = self.device.appended.borrow_mut();
        if !appended.contains(dir) {
            appended.insert(dir.into());
        }
    }
}

impl File for SimFile {
    async fn read_at(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        self.device.begin_file(Operation::Read, self).await?;
        self.device.check_readable(&self.node, position, bytes)?;
        self.device.note_read(&self.node, position, bytes);
        Ok(self.node.borrow().current.read(position, bytes))
    }

    async fn append_durable(&self, position: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        *self.device.counts.borrow_mut().entry(Operation::AppendDurable).or_default() += 1;
        self.device.powered()?;
        let pieces = self.pieces(position, &buffers)?;
        let path = self.node.borrow().path.clone();
        self.note_append(&path);
        let fault = self.device.strike(Operation::AppendDurable, &path);
        let error = fault.and_then(DiskFault::error);
        let refused = fault == Some(DiskFault::Full);
        let placed = self.device.place(if refused { Vec::new() } else { self.device.bend(fault, pieces) });
        let held = self.device.held_at(&path);
        if let Some(held) = held {
            held.await;
        }
        self.device.pass(Operation::AppendDurable, &path).await;
        self.device.check(Operation::AppendDurable, &self.path)?;
        if let Some(error) = error {
            return Err(error);
        }
        if fault != Some(DiskFault::LyingSync) {
            placed.sync();
        }
        Ok(())
    }

    async fn write_at(&self, position: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        let fault = self.device.begin_file(Operation::Write, self).await?;
        let pieces = self.pieces(position, &buffers)?;
        drop(self.device.place(self.device.bend(fault, pieces)));
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        let last = self.node.borrow().last_id();
        let result = self.device.begin_file(Operation::Sync, self).await;
        match result {
            Ok(Some(DiskFault::LyingSync)) => Ok(()),
            Ok(_) => {
                self.node.borrow_mut().sync(last);
                Ok(())
            }
            Err(error) => {
                if !self.device.off.get() {
                    // The pages are marked clean all the same: the next sync has nothing to write and succeeds.
                    self.node.borrow_mut().forget(last);
                }
                Err(error)
            }
        }
    }

    async fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.device.begin_file(Operation::Truncate, self).await?;
        self.device.grow(&self.node, bytes)?;
        self.node.borrow_mut().truncate(bytes);
        Ok(())
    }

    fn bytes(&self) -> impl Future<Output = io::Result<u64>> {
        let bytes = self.node.borrow().current.len();
        async move { Ok(bytes) }
    }
}

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod tests;
