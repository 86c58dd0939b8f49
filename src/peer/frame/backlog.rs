//! What has come of a stream whose next frame finds no room: a copy of the first bytes, which is all that is read of it.
//!
//! The stream pays for it from the reactor's backlog (`budget::Backlog`): for the memory of the copy, and from
//! `PEER_BACKLOG_READ_BYTES` on for a whole window of the network, since it is not read any more. So streams with little to
//! say wait for little, and what waits of all streams is bounded, however many there are.

use std::ops::Range;

use crate::{
    budget::{Backlog, Budget, NoRoom},
    limits::{BLOCK_BYTES, PEER_BACKLOG_READ_BYTES, PEER_BACKLOG_WINDOWS_PERCENT, PEER_STREAM_WINDOW_BYTES},
};

/// Bytes of one stream, in order.
///
/// Invariants: `taken <= bytes.len()`; the charge is at least `bytes.capacity()`, and a window more when it is full.
pub(super) struct Held {
    bytes: Vec<u8>,
    /// So many of them belong to frames already.
    taken: usize,
    charge: Backlog,
    budget: Budget,
}

impl Held {
    /// Nothing.
    pub(super) fn new(budget: Budget) -> Held {
        Held { bytes: Vec::new(), taken: 0, charge: budget.backlog(), budget }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest().is_empty()
    }

    /// Whether no more is to be read meanwhile.
    pub(super) fn is_full(&self) -> bool {
        self.rest().len() >= PEER_BACKLOG_READ_BYTES
    }

    /// What no frame has taken.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.rest()]
    }

    /// Copies a piece behind the others.
    ///
    /// # Errors
    /// `NoRoom`: nothing has changed.
    pub(super) fn add(&mut self, piece: &[u8]) -> Result<(), NoRoom> {
        let bytes = self.rest().len() + piece.len();
        let capacity = bytes.next_multiple_of(BLOCK_BYTES).max(self.bytes.capacity());
        let all_max = self.budget.backlog_max();
        if bytes < PEER_BACKLOG_READ_BYTES {
            self.charge.resize(capacity, all_max)?;
        } else {
            let windows_max = all_max / 100 * PEER_BACKLOG_WINDOWS_PERCENT;
            self.charge.resize(capacity + PEER_STREAM_WINDOW_BYTES as usize, windows_max)?;
        }
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.reserve_exact(capacity - self.bytes.len());
        self.bytes.extend_from_slice(piece);
        assert!(self.charge.bytes() >= self.bytes.capacity(), "what is held is paid for");
        Ok(())
    }

    /// A frame has taken the first `bytes`. When all are taken, nothing is held, and nothing paid for.
    pub(super) fn take(&mut self, bytes: usize) {
        self.taken += bytes;
        assert!(self.taken <= self.bytes.len(), "no more is taken than was held");
        if self.is_empty() {
            *self = Held::new(self.budget.clone());
        }
    }

    fn rest(&self) -> Range<usize> {
        self.taken..self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PEER_BACKLOG_BYTES_MAX;

    const WINDOW: usize = PEER_STREAM_WINDOW_BYTES as usize;

    /// A stream pays for the blocks that its bytes take, and for a window once it is not read on; it gets its bytes back in
    /// order.
    #[test]
    fn pays_for_what_it_holds() {
        let budget = Budget::default();
        let (mut held, mut other) = (Held::new(budget.clone()), budget.backlog());
        held.add(b"abc").unwrap();
        held.take(2);
        held.add(b"de").unwrap();
        assert_eq!((held.bytes(), held.charge.bytes(), held.is_full()), (&b"cde"[..], BLOCK_BYTES, false));
        held.add(&[7; PEER_BACKLOG_READ_BYTES]).unwrap();
        assert_eq!(held.charge.bytes(), PEER_BACKLOG_READ_BYTES + BLOCK_BYTES + WINDOW);
        assert!(held.is_full());
        // The same limit is everybody's.
        let rest = PEER_BACKLOG_BYTES_MAX - held.charge.bytes();
        assert!(other.resize(rest + 1, usize::MAX).is_err());
        other.resize(rest, usize::MAX).unwrap();
        held.take(held.bytes().len());
        assert_eq!((held.is_empty(), held.charge.bytes(), held.bytes.capacity()), (true, 0, 0));
    }

    /// Streams that are not read on leave room for those that have little to say.
    #[test]
    fn little_finds_room_beside_much() {
        let budget = Budget::default();
        let add = |bytes: usize| {
            let mut held = Held::new(budget.clone());
            held.add(&vec![0; bytes]).map(|()| held)
        };
        let much: Vec<Held> = std::iter::from_fn(|| add(PEER_BACKLOG_READ_BYTES).ok()).collect();
        assert_eq!(much.len(), 24 / 4 - 1, "three quarters of all, in windows and what was read before");
        let little: Vec<Held> = std::iter::from_fn(|| add(1_000).ok()).collect();
        assert!(little.len() > 1_000, "{}", little.len());
        drop((much, little));
        assert!(add(PEER_BACKLOG_READ_BYTES).is_ok());
    }
}
