//! A disk in memory that loses power on demand, with the freedom that real ones take.
//!
//! What `crash` may do to what was not synced: keep or drop each 512-byte sector of each write by
//! itself (so writes tear and reorder), lose truncations from some point on, lose creations, renames
//! and removals (half of the seeds: all after some point; the other half: any of them). What was
//! synced, or written by `append_durable` that returned, stays.
//!
//! Operations complete at once, or, with `with_latency`, after a few turns of the executor, so that
//! a crash finds some of them half done. Faults can be planted: errors by operation and file, a
//! capacity, flipped bits. A failed sync loses what it should have made durable and the next one
//! succeeds, as on Linux: who retries loses data.
//!
//! Not done here: permissions, symbolic links, files that are removed while open (they live on for
//! who has them open, as on Unix, but their space is free at once).

mod timing;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;

pub use self::timing::DiskTimes;
use self::timing::Timing;
use super::random;
use crate::{
    env::{DirEntry, Disk, File, Map, OpenMode, channel::Notify},
    limits::BLOCK_BYTES,
};

/// What a device writes at once or not at all.
pub const SECTOR_BYTES: usize = 512;

/// Kinds of operations, for faults and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `open`, whatever the mode.
    Open,
    /// `read_at`, `read_file` and `map`.
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
    world: Rc<World>,
}

/// An open file on it.
#[derive(Clone)]
pub struct SimFile {
    world: Rc<World>,
    path: PathBuf,
    node: NodeRef,
}

#[derive(Default)]
struct World {
    /// What a look at the file system shows now.
    names: RefCell<BTreeMap<PathBuf, Entry>>,
    /// What is there for good.
    names_durable: RefCell<BTreeMap<PathBuf, Entry>>,
    /// Changes of names since the last `sync_dir` of their directory, in order.
    names_pending: RefCell<Vec<NameChange>>,
    off: Cell<bool>,
    capacity: Cell<Option<u64>>,
    faults: RefCell<Vec<Fault>>,
    counts: RefCell<BTreeMap<Operation, u64>>,
    held: RefCell<Option<Notify>>,
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

type NodeRef = Rc<RefCell<Node>>;

/// One file's bytes: as seen, as durable, and what lies between.
#[derive(Default)]
struct Node {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    next_id: u64,
}

struct Change {
    id: u64,
    kind: ChangeKind,
}

enum ChangeKind {
    Write { position: u64, bytes: Bytes },
    Truncate { bytes: u64 },
}

impl Default for SimDisk {
    fn default() -> SimDisk {
        SimDisk::new()
    }
}

impl SimDisk {
    /// An empty disk whose operations complete at once.
    pub fn new() -> SimDisk {
        let world = World::default();
        world.names.borrow_mut().insert("/".into(), Entry::Dir);
        world.names_durable.borrow_mut().insert("/".into(), Entry::Dir);
        SimDisk { world: Rc::new(world) }
    }

    /// From now on operations take 0 to 3 turns of the executor, by `seed`.
    #[must_use]
    pub fn with_latency(self, seed: u64) -> SimDisk {
        *self.world.timing.borrow_mut() = Timing::Turns { dice: Cell::new(seed) };
        self
    }

    /// From now on operations take time of that world, by `seed`.
    #[must_use]
    pub fn timed(self, world: &super::World, seed: u64, times: DiskTimes) -> SimDisk {
        *self.world.timing.borrow_mut() = Timing::timed(world, seed, times);
        self
    }

    /// A slow device: for `for_us` microseconds from now on, operations that begin take `factor` times as long. No-op
    /// unless the disk is `timed`.
    pub fn set_slow(&self, factor: u64, for_us: u64) {
        self.world.timing.borrow().set_slow(factor, for_us);
    }

    /// What is found when the power fails now and comes back: another disk. This one goes on; end it with `power_off`.
    /// Planted faults and the capacity are not taken over; times are, but not turns.
    pub fn crash(&self, seed: u64) -> SimDisk {
        let dice = Cell::new(seed);
        let mut names = self.world.names_durable.borrow().clone();
        let changes = self.world.names_pending.borrow();
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
        for entry in names.values_mut() {
            if let Entry::File(node) = entry {
                let known = copies.iter().find(|(old, _)| Rc::ptr_eq(old, node)).map(|(_, new)| new.clone());
                let copy = known.unwrap_or_else(|| Rc::new(RefCell::new(node.borrow().crash(&dice))));
                copies.push((node.clone(), copy.clone()));
                *node = copy;
            }
        }
        let world = World::default();
        *world.timing.borrow_mut() = self.world.timing.borrow().reseeded(random(&dice));
        *world.names_durable.borrow_mut() = names.clone();
        *world.names.borrow_mut() = names;
        SimDisk { world: Rc::new(world) }
    }

    /// All operations through handles to this disk fail from now on.
    pub fn power_off(&self) {
        self.world.off.set(true);
        self.release();
    }

    /// Plants an error.
    pub fn plant(&self, fault: Fault) {
        self.world.faults.borrow_mut().push(fault);
    }

    /// Takes all planted errors away.
    pub fn heal(&self) {
        self.world.faults.borrow_mut().clear();
    }

    /// Sets how many bytes all files together may have; `None`: no bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world.capacity.set(bytes);
    }

    /// Bytes of all files together.
    pub fn used_bytes(&self) -> u64 {
        self.world.used_bytes()
    }

    /// How many operations of this kind were begun.
    pub fn count(&self, operation: Operation) -> u64 {
        self.world.counts.borrow().get(&operation).copied().unwrap_or(0)
    }

    /// Durable appends wait from now on until `release`; their bytes are on the way (a crash may tear them).
    pub fn hold(&self) {
        *self.world.held.borrow_mut() = Some(Notify::new());
    }

    /// Ends `hold`.
    pub fn release(&self) {
        if let Some(held) = self.world.held.borrow_mut().take() {
            held.notify_all();
        }
    }

    /// Paths of all files, sorted.
    pub fn paths(&self) -> Vec<PathBuf> {
        let names = self.world.names.borrow();
        names.iter().filter(|(_, entry)| matches!(entry, Entry::File(_))).map(|(path, _)| path.clone()).collect()
    }

    /// A file's present content.
    ///
    /// # Panics
    /// When it is not there.
    pub fn content(&self, path: impl AsRef<Path>) -> Vec<u8> {
        self.world.node(path.as_ref()).expect("the test knows its files").borrow().current.clone()
    }

    /// Replaces or makes a file, durably, as if by magic.
    pub fn set_content(&self, path: impl AsRef<Path>, bytes: Vec<u8>) {
        let node = Node { durable: bytes.clone(), current: bytes, ..Node::default() };
        let entry = Entry::File(Rc::new(RefCell::new(node)));
        self.world.names_durable.borrow_mut().insert(path.as_ref().into(), entry.clone());
        self.world.names.borrow_mut().insert(path.as_ref().into(), entry);
    }

    /// Removes a file, durably, as if by magic.
    pub fn delete(&self, path: impl AsRef<Path>) {
        self.world.names_durable.borrow_mut().remove(path.as_ref());
        self.world.names.borrow_mut().remove(path.as_ref());
    }

    /// Flips one bit of a file, as a dying device does.
    ///
    /// # Panics
    /// When the file or the byte is not there.
    pub fn flip_bit(&self, path: impl AsRef<Path>, position: u64, bit: u32) {
        let node = self.world.node(path.as_ref()).expect("the test knows its files");
        let node = &mut *node.borrow_mut();
        node.current[position as usize] ^= 1 << bit;
        if let Some(byte) = node.durable.get_mut(position as usize) {
            *byte ^= 1 << bit;
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

impl Node {
    fn write(&mut self, position: u64, bytes: &Bytes) -> u64 {
        put(&mut self.current, position, bytes);
        self.change(ChangeKind::Write { position, bytes: bytes.clone() })
    }

    fn change(&mut self, kind: ChangeKind) -> u64 {
        self.next_id += 1;
        self.pending.push(Change { id: self.next_id, kind });
        self.next_id
    }

    /// Makes all changes durable.
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            match change.kind {
                ChangeKind::Write { position, bytes } => put(&mut self.durable, position, &bytes),
                ChangeKind::Truncate { bytes } => self.durable.resize(bytes as usize, 0),
            }
        }
    }

    /// Makes these writes durable.
    fn sync_writes(&mut self, ids: &[u64]) {
        if self.pending.iter().any(|change| matches!(change.kind, ChangeKind::Truncate { .. })) {
            // O_DSYNC writes flush the metadata that reading them back needs: the size, so the truncation, too.
            return self.sync();
        }
        let durable = &mut self.durable;
        self.pending.retain(|change| {
            let ChangeKind::Write { position, bytes } = &change.kind else { return true };
            if ids.contains(&change.id) {
                put(durable, *position, bytes);
            }
            !ids.contains(&change.id)
        });
    }

    /// What a power failure leaves.
    fn crash(&self, dice: &Cell<u64>) -> Node {
        let mut bytes = self.durable.clone();
        let truncations = self.pending.iter().filter(|change| matches!(change.kind, ChangeKind::Truncate { .. }));
        let mut truncations_kept = random(dice) % (truncations.count() as u64 + 1);
        // Some failures lose nearly everything, some nearly nothing.
        let odds = [1, 8, 15][(random(dice) % 3) as usize];
        for change in &self.pending {
            match &change.kind {
                ChangeKind::Truncate { bytes: length } if truncations_kept > 0 => {
                    truncations_kept -= 1;
                    bytes.resize(*length as usize, 0);
                }
                ChangeKind::Truncate { .. } => {}
                ChangeKind::Write { position, bytes: written } => {
                    let mut at = 0;
                    while at < written.len() {
                        let place = *position as usize + at;
                        let step = (SECTOR_BYTES - place % SECTOR_BYTES).min(written.len() - at);
                        if random(dice) % 16 < odds {
                            put(&mut bytes, place as u64, &written[at..at + step]);
                        }
                        at += step;
                    }
                }
            }
        }
        Node { current: bytes.clone(), durable: bytes, ..Node::default() }
    }
}

fn put(bytes: &mut Vec<u8>, position: u64, written: &[u8]) {
    let end = position as usize + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[position as usize..end].copy_from_slice(written);
}

impl World {
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
            Entry::File(node) => Some(node.borrow().current.len() as u64),
            Entry::Dir => None,
        });
        files.sum()
    }

    /// `ENOSPC` unless the node may grow to `end`.
    fn grow(&self, node: &RefCell<Node>, end: u64) -> io::Result<()> {
        let growth = end.saturating_sub(node.borrow().current.len() as u64);
        match self.capacity.get() {
            Some(capacity) if growth > 0 && self.used_bytes() + growth > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    /// Counts the operation, waits as long as it takes, and fails it if that was planted.
    async fn begin(&self, operation: Operation, path: &Path) -> io::Result<()> {
        *self.counts.borrow_mut().entry(operation).or_default() += 1;
        self.turns().await;
        self.check(operation, path)
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
            return Err(fault.error.into());
        }
        Ok(())
    }

    async fn turns(&self) {
        let (_, wait) = self.timing.borrow().draw();
        wait.await;
    }

    fn change_names(&self, change: NameChange) {
        change.apply(&mut self.names.borrow_mut());
        self.names_pending.borrow_mut().push(change);
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
        self.world.begin(Operation::Open, path).await?;
        if mode == OpenMode::Create {
            if self.world.names.borrow().contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let dir = path.parent().expect("a file has a directory");
            if !matches!(self.world.names.borrow().get(dir), Some(Entry::Dir)) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let entry = Entry::File(Rc::default());
            self.world.change_names(NameChange::Put { path: path.into(), entry });
        }
        let node = self.world.node(path)?;
        Ok(SimFile { world: self.world.clone(), path: path.into(), node })
    }

    async fn read_file(&self, path: &Path) -> io::Result<Bytes> {
        self.world.begin(Operation::Read, path).await?;
        Ok(self.world.node(path)?.borrow().current.clone().into())
    }

    async fn write_file(&self, path: &Path, content: Bytes) -> io::Result<()> {
        let name = path.file_name().expect("a file has a name").to_string_lossy();
        let temporary = path.with_file_name(format!("{name}.tmp"));
        if self.world.names.borrow().contains_key(&temporary) {
            self.world.change_names(NameChange::Remove { path: temporary.clone() });
        }
        let file = self.open(&temporary, OpenMode::Create).await?;
        let written = async {
            self.world.begin(Operation::Write, path).await?;
            self.world.grow(&file.node, content.len() as u64)?;
            file.node.borrow_mut().write(0, &content);
            file.sync().await?;
            self.rename(&temporary, path).await
        };
        if let Err(error) = written.await {
            self.world.change_names(NameChange::Remove { path: temporary });
            return Err(error);
        }
        self.world.sync_dir(path.parent().expect("a file has a directory")).await
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.world.turns().await;
        self.world.check(Operation::SyncDir, path)?;
        for dir in path.ancestors() {
            let known = self.world.names.borrow().get(dir).cloned();
            match known {
                Some(Entry::Dir) => continue,
                Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {}
            }
            self.world.names.borrow_mut().insert(dir.into(), Entry::Dir);
            self.world.names_durable.borrow_mut().insert(dir.into(), Entry::Dir);
        }
        Ok(())
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.world.begin(Operation::List, path).await?;
        let names = self.world.names.borrow();
        if !matches!(names.get(path), Some(Entry::Dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = names.iter().filter(|(name, _)| name.parent() == Some(path));
        let entries = below.map(|(name, entry)| DirEntry {
            name: name.file_name().expect("what is in a directory has a name").into(),
            bytes: match entry {
                Entry::Dir => 0,
                Entry::File(node) => node.borrow().current.len() as u64,
            },
            is_dir: matches!(entry, Entry::Dir),
        });
        Ok(entries.collect())
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.world.begin(Operation::Rename, from).await?;
        self.world.node(from)?;
        self.world.change_names(NameChange::Rename { from: from.into(), to: to.into() });
        Ok(())
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.world.begin(Operation::Remove, path).await?;
        self.world.node(path)?;
        self.world.change_names(NameChange::Remove { path: path.into() });
        Ok(())
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.world.begin(Operation::Remove, path).await?;
        if !self.world.names.borrow().contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.world.names.borrow_mut().retain(|name, _| !name.starts_with(path));
        self.world.names_durable.borrow_mut().retain(|name, _| !name.starts_with(path));
        self.world.names_pending.borrow_mut().retain(|change| !change.dir().is_some_and(|dir| dir.starts_with(path)));
        Ok(())
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.world.sync_dir(path).await
    }

    async fn map(&self, path: &Path) -> io::Result<Map> {
        Ok(Map::from_bytes(self.read_file(path).await?))
    }

    async fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        self.world.turns().await;
        let capacity = self.world.capacity.get().unwrap_or(u64::MAX);
        Ok(capacity.saturating_sub(self.world.used_bytes()))
    }
}

impl SimFile {
    /// Puts the buffers where they are seen; returns the names of the changes. Checks what the device demands.
    fn place(&self, position: u64, buffers: &[Bytes]) -> io::Result<Vec<u64>> {
        assert!(position.is_multiple_of(BLOCK_BYTES as u64), "O_DIRECT wants aligned positions");
        let bytes: usize = buffers.iter().map(Bytes::len).sum();
        self.world.grow(&self.node, position + bytes as u64)?;
        let (mut at, mut ids) = (position, Vec::with_capacity(buffers.len()));
        for buffer in buffers {
            assert!(buffer.len().is_multiple_of(BLOCK_BYTES), "O_DIRECT wants aligned lengths");
            assert!((buffer.as_ptr() as usize).is_multiple_of(BLOCK_BYTES), "O_DIRECT wants aligned memory");
            ids.push(self.node.borrow_mut().write(at, buffer));
            at += buffer.len() as u64;
        }
        Ok(ids)
    }
}

impl File for SimFile {
    async fn read_at(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        self.world.begin(Operation::Read, &self.path).await?;
        let node = self.node.borrow();
        let start = (position as usize).min(node.current.len());
        let end = start.saturating_add(bytes).min(node.current.len());
        Ok(Bytes::copy_from_slice(&node.current[start..end]))
    }

    async fn append_durable(&self, position: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        *self.world.counts.borrow_mut().entry(Operation::AppendDurable).or_default() += 1;
        self.world.powered()?;
        let ids = self.place(position, &buffers)?;
        let held = self.world.held.borrow().as_ref().map(Notify::notified);
        if let Some(held) = held {
            held.await;
        }
        self.world.turns().await;
        self.world.check(Operation::AppendDurable, &self.path)?;
        self.node.borrow_mut().sync_writes(&ids);
        Ok(())
    }

    async fn write_at(&self, position: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        self.world.begin(Operation::Write, &self.path).await?;
        self.place(position, &buffers)?;
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        let result = self.world.begin(Operation::Sync, &self.path).await;
        let node = &mut *self.node.borrow_mut();
        match result {
            Ok(()) => node.sync(),
            // The pages are marked clean all the same: the next sync has nothing to write and succeeds.
            Err(_) => node.pending.clear(),
        }
        result
    }

    async fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.world.begin(Operation::Truncate, &self.path).await?;
        self.world.grow(&self.node, bytes)?;
        let node = &mut *self.node.borrow_mut();
        node.current.resize(bytes as usize, 0);
        node.change(ChangeKind::Truncate { bytes });
        Ok(())
    }

    fn bytes(&self) -> impl Future<Output = io::Result<u64>> {
        let bytes = self.node.borrow().current.len() as u64;
        async move { Ok(bytes) }
    }
}

#[cfg(test)]
mod tests;
