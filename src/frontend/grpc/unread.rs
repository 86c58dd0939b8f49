//! Bytes of a stream that were taken from h2 before anybody wants them: in few pieces, so that what they hold is about what
//! they are, however small the frames were in which they came.
//!
//! HTTP/2 lets a client send 64 KiB on each connection before anything of it is read, and there may be thousands of connections:
//! so all of a reactor share [`limits::UNREAD_BYTES_MAX`]. While that is used up, the sockets of all connections that have more
//! than [`limits::UNREAD_BYTES_MIN`] are not read: their clients' next bytes wait in the kernel, which bounds them.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use bytes::BytesMut;

use crate::env::channel::Notified;
use crate::env::channel::Notify;
use crate::limits;

/// Frames below this are copied together into pieces of up to this size; larger ones are kept as they are.
const PIECE_BYTES: usize = 16 << 10;

/// The smallest piece.
const PIECE_BYTES_MIN: usize = 512;

/// Less room than this is none: a read brings some frames.
const ROOM_BYTES_MIN: usize = limits::UNREAD_BYTES_MIN / 2;

/// The unread bytes of all connections of a reactor.
pub(super) struct AllUnread {
    bytes: Cell<usize>,
    bytes_max: usize,
    /// They have become fewer than `eased_bytes`.
    eased: Notify,
}

impl Default for AllUnread {
    fn default() -> AllUnread {
        AllUnread::new(limits::UNREAD_BYTES_MAX)
    }
}

impl AllUnread {
    /// At most `bytes_max`, and what each connection may have in any case.
    pub(super) fn new(bytes_max: usize) -> AllUnread {
        AllUnread { bytes: Cell::new(0), bytes_max, eased: Notify::new() }
    }

    /// Whoever found no room is woken below this. Thousands may be: not for every message that is taken.
    fn eased_bytes(&self) -> usize {
        self.bytes_max / 8 * 7
    }
}

/// Bytes in all queues of a connection, and what was taken out of them and whose room is not given back; clones are the same count.
#[derive(Clone)]
pub(super) struct UnreadBytes(Rc<Connection>);

/// `bytes` is a part of `all`.
struct Connection {
    all: Rc<AllUnread>,
    bytes: Cell<usize>,
}

impl UnreadBytes {
    /// Of a new connection.
    pub(super) fn new(all: &Rc<AllUnread>) -> UnreadBytes {
        UnreadBytes(Rc::new(Connection { all: Rc::clone(all), bytes: Cell::new(0) }))
    }

    pub(super) fn get(&self) -> usize {
        self.0.bytes.get()
    }

    /// How many more bytes may be read from the connection's socket; 0, or some frames.
    pub(super) fn room(&self) -> usize {
        let all = &self.0.all;
        let of_all = all.bytes_max.saturating_sub(all.bytes.get());
        let room = of_all.max(limits::UNREAD_BYTES_MIN.saturating_sub(self.get()));
        if room < ROOM_BYTES_MIN { 0 } else { room }
    }

    /// Pending while there is no room. It is woken when other connections have made some; what this one makes by itself the
    /// caller has to look for.
    pub(super) fn poll_room(&self, waits: &mut Option<Notified>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.all.eased.poll_while(waits, || self.room() == 0, cx)
    }

    fn change(&self, before: usize, after: usize) {
        let Connection { all, bytes } = &*self.0;
        bytes.set(bytes.get() - before + after);
        let all_before = all.bytes.replace(all.bytes.get() - before + after);
        if all_before >= all.eased_bytes() && all.bytes.get() < all.eased_bytes() {
            all.eased.notify_all();
        }
    }
}

/// A queue of bytes, and how many of them were taken out of it whose room is not given back.
///
/// `bytes` is the sum of all pieces and `taken`, and part of `connection`.
pub(super) struct Unread {
    connection: UnreadBytes,
    bytes: usize,
    taken: usize,
    whole: VecDeque<Bytes>,
    /// Behind the others; never grown beyond its capacity.
    last: BytesMut,
}

impl Unread {
    /// Empty; counted in `connection`.
    pub(super) fn new(connection: UnreadBytes) -> Unread {
        Unread { connection, bytes: 0, taken: 0, whole: VecDeque::new(), last: BytesMut::new() }
    }

    fn set_bytes(&mut self, bytes: usize) {
        self.connection.change(self.bytes, bytes);
        self.bytes = bytes;
    }

    /// Puts a frame behind the others.
    pub(super) fn push(&mut self, frame: Bytes) {
        self.set_bytes(self.bytes + frame.len());
        if frame.len() >= PIECE_BYTES {
            self.close_last();
            return self.whole.push_back(frame);
        }
        if self.last.len() + frame.len() > self.last.capacity() {
            self.close_last();
            // What is not used of the last piece is a quarter of all at most: there are thousands of queues.
            let wanted = (self.bytes / 4).clamp(PIECE_BYTES_MIN, PIECE_BYTES);
            self.last = BytesMut::with_capacity(wanted.max(frame.len()));
        }
        self.last.extend_from_slice(&frame);
    }

    fn close_last(&mut self) {
        let last = std::mem::take(&mut self.last);
        if !last.is_empty() {
            self.whole.push_back(last.freeze());
        }
    }

    /// The next piece. Its room is not given back yet.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.whole.is_empty() {
            self.close_last();
        }
        let piece = self.whole.pop_front()?;
        self.taken += piece.len();
        Some(piece)
    }

    /// A frame is taken that was never put in here.
    pub(super) fn pass(&mut self, frame: Bytes) -> Bytes {
        self.set_bytes(self.bytes + frame.len());
        self.taken += frame.len();
        frame
    }

    /// What was taken and whose room is not given back.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// The room of so many bytes is given back.
    pub(super) fn give_back(&mut self, bytes: usize) {
        self.taken -= bytes;
        self.set_bytes(self.bytes - bytes);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.last.is_empty()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.set_bytes(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes stay in order, whatever their frames are; many tiny ones are few pieces.
    #[test]
    fn bytes_stay_in_order() {
        let count = UnreadBytes::new(&Rc::default());
        let mut unread = Unread::new(count.clone());
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for i in 0..3_000_usize {
            let size = [1, 7, 300, 0, 20_000, 16_383, 2][i * i % 7];
            let frame = vec![(i % 251) as u8; size];
            sent.extend_from_slice(&frame);
            unread.push(frame.into());
            if i % 5 == 0 {
                received.extend_from_slice(&unread.pop().unwrap_or_default());
                unread.give_back(unread.taken() / 2);
            }
            assert_eq!(count.get(), sent.len() - received.len() + unread.taken());
        }
        while let Some(piece) = unread.pop() {
            received.extend_from_slice(&piece);
        }
        assert!(unread.is_empty() && received == sent);

        (0..100_000).for_each(|_| unread.push(Bytes::from_static(b"x")));
        let held = unread.whole.iter().map(Bytes::len).sum::<usize>() + unread.last.capacity();
        assert!(unread.whole.len() < 30 && held < 125_000, "{held} bytes in {} pieces", unread.whole.len());
        unread.give_back(unread.taken());
        assert_eq!(count.get(), 100_000);
        unread.pass(Bytes::from_static(b"yz"));
        assert_eq!((unread.taken(), count.get()), (2, 100_002));
        drop(unread);
        assert_eq!(count.get(), 0);
    }
}
