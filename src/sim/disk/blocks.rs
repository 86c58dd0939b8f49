//! A file's bytes as a sparse map of blocks: zeros cost nothing, and copies share what they have in common.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::limits::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;

static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// Invariants: each stored block has `BLOCK_BYTES` and is not all zero; behind `len` everything is zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    len: u64,
    blocks: BTreeMap<u64, Bytes>,
}

impl Blocks {
    pub(super) fn from_vec(bytes: Vec<u8>) -> Blocks {
        let mut blocks = Blocks::default();
        blocks.put(0, &Bytes::from(bytes));
        blocks
    }

    /// Bytes, with the zeros.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Numbers of the blocks that are not all zero.
    pub(super) fn stored(&self) -> impl ExactSizeIterator<Item = u64> {
        self.blocks.keys().copied()
    }

    /// That block, if it is not all zero.
    pub(super) fn block(&self, number: u64) -> Option<&Bytes> {
        self.blocks.get(&number)
    }

    /// Replaces a whole block, which does not have to be within the length, and does not change it.
    pub(super) fn set_block(&mut self, number: u64, block: Bytes) {
        debug_assert_eq!(block.len(), BLOCK_BYTES);
        if block[..] == ZEROS {
            self.blocks.remove(&number);
        } else {
            self.blocks.insert(number, block);
        }
    }

    /// Writes, and grows if need be.
    pub(super) fn put(&mut self, position: u64, bytes: &Bytes) {
        let mut at = 0;
        while at < bytes.len() {
            let place = position + at as u64;
            let within = (place % BLOCK) as usize;
            let step = (BLOCK_BYTES - within).min(bytes.len() - at);
            let piece = bytes.slice(at..at + step);
            if step == BLOCK_BYTES {
                self.set_block(place / BLOCK, piece);
            } else {
                self.put_within(place / BLOCK, within, &piece);
            }
            at += step;
        }
        self.grow(position + bytes.len() as u64);
    }

    fn put_within(&mut self, number: u64, within: usize, piece: &[u8]) {
        let old = self.blocks.get(&number);
        if old.is_none() && *piece == ZEROS[..piece.len()] {
            return;
        }
        let mut block = old.map_or_else(|| ZEROS.to_vec(), |old| old.to_vec());
        block[within..within + piece.len()].copy_from_slice(piece);
        self.set_block(number, block.into());
    }

    /// Is at least that long from now on.
    pub(super) fn grow(&mut self, end: u64) {
        self.len = self.len.max(end);
    }

    /// Cuts, or grows with zeros.
    pub(super) fn resize(&mut self, len: u64) {
        if len < self.len {
            let cut = self.blocks.split_off(&len.div_ceil(BLOCK));
            drop(cut);
            let within = (len % BLOCK) as usize;
            if within > 0 && self.blocks.contains_key(&(len / BLOCK)) {
                self.put_within(len / BLOCK, within, &ZEROS[within..]);
            }
        }
        self.len = len;
    }

    /// From `position` on, fewer than `bytes` at the end only. Within one block nothing is copied.
    pub(super) fn read(&self, position: u64, bytes: usize) -> Bytes {
        let start = position.min(self.len);
        let end = start.saturating_add(bytes as u64).min(self.len);
        let (first, within) = (start / BLOCK, (start % BLOCK) as usize);
        let length = (end - start) as usize;
        if within + length <= BLOCK_BYTES {
            let block = self.blocks.get(&first).cloned().unwrap_or(Bytes::from_static(&ZEROS));
            return block.slice(within..within + length);
        }
        let mut read = vec![0; length];
        for (number, block) in self.blocks.range(first..end.div_ceil(BLOCK)) {
            let from = (number * BLOCK).max(start);
            let to = ((number + 1) * BLOCK).min(end);
            let inside = (from - number * BLOCK) as usize..(to - number * BLOCK) as usize;
            read[(from - start) as usize..(to - start) as usize].copy_from_slice(&block[inside]);
        }
        read.into()
    }

    /// All of it.
    pub(super) fn all(&self) -> Bytes {
        self.read(0, self.len as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::sim::random;

    /// Against a plain vector: whatever is written and cut, the same bytes are there.
    #[test]
    fn as_a_vector() {
        let dice = Cell::new(5);
        let any = |below: u64| random(&dice) % below;
        for _ in 0..200 {
            let (mut blocks, mut plain) = (Blocks::default(), Vec::<u8>::new());
            for _ in 0..30 {
                let position = any(5) * BLOCK + [0, 0, 512, 77][any(4) as usize];
                let length = [4096, 8192, 1, 512, 5000][any(5) as usize];
                if any(5) == 0 {
                    blocks.resize(position);
                    plain.resize(position as usize, 0);
                    continue;
                }
                let bytes = vec![[0, 0, 7, 9][any(4) as usize]; length];
                let end = position as usize + length;
                plain.resize(plain.len().max(end), 0);
                plain[position as usize..end].copy_from_slice(&bytes);
                blocks.put(position, &bytes.into());
                let (from, count) = (any(30_000), any(9_000) as usize);
                let start = (from as usize).min(plain.len());
                assert_eq!(blocks.read(from, count), plain[start..(start + count).min(plain.len())]);
            }
            assert_eq!(blocks.all(), plain);
            assert_eq!(blocks.len(), plain.len() as u64);
            assert!(blocks.blocks.values().all(|block| block.len() == BLOCK_BYTES && block[..] != ZEROS));
        }
    }
}
