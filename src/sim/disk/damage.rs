//! Wrong bytes: in what is being written, and in what is at rest.

use std::{
    cell::Cell,
    fmt,
    path::{Path, PathBuf},
    rc::Rc,
};

use bytes::Bytes;

use super::{Device, DiskFault, Entry, NodeRef, SimDisk, faults::kind};
use crate::{limits::BLOCK_BYTES, sim::random};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// How often a draw looks for a byte that is not zero.
const DRAWS_MAX: u32 = 64;

/// What was done to a file at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What.
    pub fault: DiskFault,
    /// To which file.
    pub path: PathBuf,
    /// Where: of the bit's byte, or of the block.
    pub position: u64,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} of {}", self.fault.name(), self.position, self.path.display())
    }
}

/// One write to be done.
pub(super) struct Piece {
    pub(super) node: NodeRef,
    pub(super) position: u64,
    pub(super) bytes: Bytes,
    /// Why they are not what they should be.
    pub(super) damage: Option<DiskFault>,
}

impl SimDisk {
    /// Damages a block at rest that is not all zero, of one of the files that `chosen` says, and notes it in the world's
    /// trace. `None`: there is none, or nothing that would change it. `fired` counts it when it is read.
    ///
    /// A stale block is the one before the last that was written there, or zeros; a misdirected one is that of another
    /// place of these files.
    ///
    /// # Panics
    /// For other faults than bit flip, zeroed block, stale block, misdirected write and unreadable block.
    pub fn damage_at_rest(&self, fault: DiskFault, chosen: impl Fn(&Path) -> bool, dice: &Cell<u64>) -> Option<Damage> {
        let mut places = Vec::new();
        for (path, entry) in self.device.names.borrow().iter() {
            if let Entry::File(node) = entry
                && chosen(path)
            {
                let file = node.borrow();
                let overwritten = file.overwritten().filter(|number| file.current.block(*number).is_some()).count();
                // A stale block is best where something older is known.
                let known_only = fault == DiskFault::StaleBlock && overwritten > 0;
                let numbers = file
                    .current
                    .stored()
                    .filter(|number| !known_only || file.overwritten().any(|overwritten| overwritten == *number));
                places.extend(numbers.map(|number| (path.clone(), node.clone(), number)));
            }
        }
        let (path, node, number) = draw(&places, dice)?;
        if fault == DiskFault::LostBlock {
            node.borrow_mut().lose_block(*number);
            let damage = Damage { fault, path: path.clone(), position: number * BLOCK };
            self.device.note(&damage.to_string());
            return Some(damage);
        }
        let old = node.borrow().current.block(*number).cloned()?;
        let mut within = 0;
        let new = match fault {
            DiskFault::BitFlip => {
                let (flipped, at) = flip(&old, dice);
                within = at as u64;
                flipped
            }
            DiskFault::ZeroedBlock => zeros(),
            DiskFault::StaleBlock => node.borrow().before(*number),
            DiskFault::Misdirected => {
                let (_, other, from) = draw(&places, dice)?;
                other.borrow().current.block(*from).cloned()?
            }
            _ => panic!("{} is nothing that happens to a block at rest", fault.name()),
        };
        if new == old {
            return None;
        }
        node.borrow_mut().replace_block(*number, &new);
        node.borrow_mut().mark(number * BLOCK, BLOCK_BYTES, fault);
        let damage = Damage { fault, path: path.clone(), position: number * BLOCK + within };
        self.device.note(&damage.to_string());
        Some(damage)
    }
}

impl Device {
    /// What a write becomes by that fault; itself, if it is none that changes bytes.
    pub(super) fn bend(&self, fault: Option<DiskFault>, pieces: Vec<Piece>) -> Vec<Piece> {
        let bytes: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
        match fault {
            _ if bytes == 0 => pieces,
            Some(DiskFault::BitFlip | DiskFault::ZeroedBlock | DiskFault::StaleBlock) => self.spoil(fault, pieces),
            Some(DiskFault::Misdirected) => self.misdirect(pieces),
            Some(DiskFault::ErrorAppend) => self.shorten(pieces),
            _ => pieces,
        }
    }

    /// In one block of it.
    fn spoil(&self, fault: Option<DiskFault>, pieces: Vec<Piece>) -> Vec<Piece> {
        let count = pieces.len() as u64;
        let struck = (random(&self.dice) % count) as usize;
        let mut bent = Vec::new();
        for (number, piece) in pieces.into_iter().enumerate() {
            if number != struck || piece.bytes.is_empty() {
                bent.push(piece);
                continue;
            }
            let Piece { node, position, bytes, .. } = piece;
            let blocks = bytes.len().div_ceil(BLOCK_BYTES) as u64;
            let start = (random(&self.dice) % blocks) as usize * BLOCK_BYTES;
            let end = (start + BLOCK_BYTES).min(bytes.len());
            let block = match fault {
                Some(DiskFault::BitFlip) => flip(&bytes.slice(start..end), &self.dice).0,
                Some(DiskFault::ZeroedBlock) => Bytes::from(vec![0; end - start]),
                _ => {
                    let mut old = node.borrow().current.read(position + start as u64, end - start).to_vec();
                    // The size grows all the same.
                    old.resize(end - start, 0);
                    old.into()
                }
            };
            let whole = [(0, bytes.slice(..start), None), (start, block, fault), (end, bytes.slice(end..), None)];
            for (at, bytes, damage) in whole.into_iter().filter(|(_, part, _)| !part.is_empty()) {
                bent.push(Piece { node: node.clone(), position: position + at as u64, bytes, damage });
            }
        }
        bent
    }

    /// All of it to another place, or nowhere.
    fn misdirect(&self, pieces: Vec<Piece>) -> Vec<Piece> {
        let own = pieces[0].node.clone();
        let own_path = own.borrow().path.clone();
        let names = self.names.borrow();
        let others: Vec<NodeRef> = names
            .iter()
            .filter(|(path, _)| kind(path) == kind(&own_path))
            .filter_map(|(_, entry)| match entry {
                Entry::File(node) => Some(node.clone()),
                Entry::Dir => None,
            })
            .collect();
        drop(names);
        let there =
            if random(&self.dice).is_multiple_of(2) { own.clone() } else { self.pick(&others).unwrap_or(own.clone()) };
        for piece in &pieces {
            own.borrow_mut().mark(piece.position, piece.bytes.len(), DiskFault::Misdirected);
        }
        let blocks = there.borrow().current.len() / BLOCK;
        if blocks == 0 {
            return Vec::new();
        }
        let start = random(&self.dice) % blocks * BLOCK;
        let (from, limit) = (pieces[0].position, blocks * BLOCK);
        if Rc::ptr_eq(&there, &own) && start == from {
            return Vec::new();
        }
        let moved = pieces.into_iter().filter_map(|piece| {
            let position = start + (piece.position - from);
            let fits = limit.checked_sub(position).filter(|room| *room > 0)?;
            let length = (piece.bytes.len() as u64).min(fits) as usize;
            let damage = Some(DiskFault::Misdirected);
            Some(Piece { node: there.clone(), position, bytes: piece.bytes.slice(..length), damage })
        });
        let moved: Vec<Piece> = moved.collect();
        self.note(&format!("it went to {start} of {}", there.borrow().path.display()));
        moved
    }

    /// Nothing, a part or all of it.
    fn shorten(&self, pieces: Vec<Piece>) -> Vec<Piece> {
        let total: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
        let mut left = match random(&self.dice) % 3 {
            0 => 0,
            1 => (random(&self.dice) % (total as u64 + 1)) as usize / BLOCK_BYTES * BLOCK_BYTES,
            _ => total,
        };
        let mut short = Vec::new();
        for mut piece in pieces {
            piece.bytes.truncate(left);
            left -= piece.bytes.len();
            if !piece.bytes.is_empty() {
                short.push(piece);
            }
        }
        short
    }

    fn pick(&self, nodes: &[NodeRef]) -> Option<NodeRef> {
        draw(nodes, &self.dice).cloned()
    }
}

fn zeros() -> Bytes {
    Bytes::from_static(&[0; BLOCK_BYTES])
}

fn draw<'a, T>(things: &'a [T], dice: &Cell<u64>) -> Option<&'a T> {
    let count = things.len() as u64;
    (count > 0).then(|| &things[(random(dice) % count) as usize])
}

/// With one bit changed, of a byte that is not zero if the dice find one; and where.
fn flip(bytes: &Bytes, dice: &Cell<u64>) -> (Bytes, usize) {
    let mut flipped = bytes.to_vec();
    let mut at = 0;
    for _ in 0..DRAWS_MAX {
        at = (random(dice) % flipped.len() as u64) as usize;
        if flipped[at] != 0 {
            break;
        }
    }
    flipped[at] ^= 1 << (random(dice) % 8);
    (flipped.into(), at)
}
