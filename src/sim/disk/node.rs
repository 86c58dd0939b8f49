//! One file: its bytes as seen, as durable, and what lies between.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::PathBuf,
    rc::Rc,
};

use bytes::Bytes;

use super::{super::random, DiskFault, SECTOR_BYTES, blocks::Blocks};
use crate::limits::BLOCK_BYTES;

pub(super) type NodeRef = Rc<RefCell<Node>>;

/// One file.
#[derive(Default)]
pub(super) struct Node {
    /// Its present name.
    pub(super) path: PathBuf,
    pub(super) current: Blocks,
    durable: Blocks,
    /// What blocks held that were written over, if it was not zero: what comes back as stale.
    before: BTreeMap<u64, Bytes>,
    /// Blocks that do not hold what was written last, and why.
    damaged: BTreeMap<u64, DiskFault>,
    /// Blocks that cannot be read, whatever is written there.
    lost: BTreeSet<u64>,
    pending: Vec<Change>,
    last_id: u64,
}

struct Change {
    id: u64,
    kind: ChangeKind,
    /// The operation is over, so that a sync that begins now covers it.
    done: bool,
}

enum ChangeKind {
    Write { position: u64, bytes: Bytes },
    Truncate { bytes: u64 },
}

impl Node {
    pub(super) fn new(path: PathBuf) -> Node {
        Node { path, ..Node::default() }
    }

    /// One that holds this, durably.
    pub(super) fn with_content(path: PathBuf, bytes: Vec<u8>) -> Node {
        let current = Blocks::from_vec(bytes);
        Node { durable: current.clone(), current, ..Node::new(path) }
    }

    /// The last change that was made.
    pub(super) fn last_id(&self) -> u64 {
        self.last_id
    }

    /// Whether a crash may find something half done.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Begins a write: it is seen, and not durable. `finish` ends it.
    pub(super) fn write(&mut self, position: u64, bytes: &Bytes) -> u64 {
        for number in numbers(position, bytes.len()) {
            if let Some(old) = self.current.block(number) {
                self.before.insert(number, old.clone());
            }
            self.damaged.remove(&number);
        }
        self.current.put(position, bytes);
        self.change(ChangeKind::Write { position, bytes: bytes.clone() })
    }

    /// Sets the size: it is seen, and not durable.
    pub(super) fn truncate(&mut self, bytes: u64) {
        self.current.resize(bytes);
        // Those are the file system's again.
        self.lost.retain(|number| number * (BLOCK_BYTES as u64) < bytes);
        let id = self.change(ChangeKind::Truncate { bytes });
        self.finish(&[id]);
    }

    fn change(&mut self, kind: ChangeKind) -> u64 {
        self.last_id += 1;
        self.pending.push(Change { id: self.last_id, kind, done: false });
        self.last_id
    }

    /// These operations are over, and syncs that begin from now on cover them.
    pub(super) fn finish(&mut self, ids: &[u64]) {
        for change in self.pending.iter_mut().filter(|change| ids.contains(&change.id)) {
            change.done = true;
        }
    }

    /// Makes durable what was over when `last` was the last change.
    pub(super) fn sync(&mut self, last: u64) {
        // A change of the size waits for what is in flight, as the kernel's lock of the inode makes it.
        let truncated = self.has_truncation();
        self.settle(|change| change.id <= last && (change.done || truncated));
    }

    /// Makes these writes durable.
    pub(super) fn sync_writes(&mut self, ids: &[u64]) {
        // O_DSYNC writes flush the metadata that reading them back needs: the size, so the truncation, too.
        let truncated = self.has_truncation();
        self.settle(|change| truncated || ids.contains(&change.id));
    }

    /// What a failed sync was to cover never becomes durable: it is taken for clean.
    pub(super) fn forget(&mut self, last: u64) {
        self.pending.retain(|change| change.id > last || !change.done);
    }

    fn has_truncation(&self) -> bool {
        self.pending.iter().any(|change| matches!(change.kind, ChangeKind::Truncate { .. }))
    }

    fn settle(&mut self, covered: impl Fn(&Change) -> bool) {
        let durable = &mut self.durable;
        self.pending.retain(|change| {
            let covered = covered(change);
            match &change.kind {
                _ if !covered => {}
                ChangeKind::Write { position, bytes } => durable.put(*position, bytes),
                ChangeKind::Truncate { bytes } => durable.resize(*bytes),
            }
            !covered
        });
    }

    /// What a power failure leaves, and how many sectors it took.
    pub(super) fn crash(&self, dice: &Cell<u64>) -> (Node, u64) {
        let mut bytes = self.durable.clone();
        let mut lost = 0;
        let truncations = self.pending.iter().filter(|change| matches!(change.kind, ChangeKind::Truncate { .. }));
        let mut truncations_kept = random(dice) % (truncations.count() as u64 + 1);
        // Some failures lose nearly everything, some nearly nothing.
        let odds = [1, 8, 15][(random(dice) % 3) as usize];
        for change in &self.pending {
            match &change.kind {
                ChangeKind::Truncate { bytes: length } if truncations_kept > 0 => {
                    truncations_kept -= 1;
                    bytes.resize(*length);
                }
                ChangeKind::Truncate { .. } => {}
                ChangeKind::Write { position, bytes: written } => {
                    lost += tear(&mut bytes, *position, written, || random(dice) % 16 < odds);
                }
            }
        }
        let node = Node {
            path: self.path.clone(),
            current: bytes.clone(),
            durable: bytes,
            before: self.before.clone(),
            damaged: self.damaged.clone(),
            lost: self.lost.clone(),
            ..Node::default()
        };
        (node, lost)
    }

    /// Replaces a block at rest.
    pub(super) fn replace_block(&mut self, number: u64, block: &Bytes) {
        self.current.set_block(number, block.clone());
        if number < self.durable.len().div_ceil(BLOCK_BYTES as u64) {
            self.durable.set_block(number, block.clone());
        }
    }

    /// These bytes are not what they should be.
    pub(super) fn mark(&mut self, position: u64, bytes: usize, fault: DiskFault) {
        for number in numbers(position, bytes) {
            self.damaged.insert(number, fault);
        }
    }

    /// This block cannot be read any more.
    pub(super) fn lose_block(&mut self, number: u64) {
        self.lost.insert(number);
    }

    /// Whether one of the blocks that have a part of this cannot be read.
    pub(super) fn is_lost(&self, position: u64, bytes: usize) -> bool {
        !self.lost.is_empty() && self.lost.range(numbers(position, bytes)).next().is_some()
    }

    /// Why these bytes are not what they should be, once for each block.
    pub(super) fn damage_in(&self, position: u64, bytes: usize) -> Vec<DiskFault> {
        if self.damaged.is_empty() {
            return Vec::new();
        }
        self.damaged.range(numbers(position, bytes)).map(|(_, fault)| *fault).collect()
    }

    /// What the block held before it was last written.
    pub(super) fn before(&self, number: u64) -> Bytes {
        self.before.get(&number).cloned().unwrap_or(Bytes::from_static(&[0; BLOCK_BYTES]))
    }

    /// Blocks of which something older than zeros is known.
    pub(super) fn overwritten(&self) -> impl Iterator<Item = u64> {
        self.before.keys().copied()
    }
}

/// Of the blocks that have a part of it.
fn numbers(position: u64, bytes: usize) -> Range<u64> {
    let block = BLOCK_BYTES as u64;
    let first = position / block;
    first..position.saturating_add(bytes as u64).div_ceil(block).max(first)
}

/// Writes those sectors that `keeps` says; returns how many it did not.
fn tear(bytes: &mut Blocks, position: u64, written: &Bytes, mut keeps: impl FnMut() -> bool) -> u64 {
    let (mut at, mut lost) = (0, 0);
    // Sectors in a row that are kept are written together.
    let mut kept_from = 0;
    while at < written.len() {
        let place = position as usize + at;
        let step = (SECTOR_BYTES - place % SECTOR_BYTES).min(written.len() - at);
        if !keeps() {
            lost += 1;
            if kept_from < at {
                bytes.put(position + kept_from as u64, &written.slice(kept_from..at));
            }
            kept_from = at + step;
        }
        at += step;
    }
    if kept_from < at {
        bytes.put(position + kept_from as u64, &written.slice(kept_from..at));
    }
    lost
}
