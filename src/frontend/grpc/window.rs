//! How much a client may send on a connection before anything of it was read.
//!
//! A connection begins with HTTP/2's own window ([`limits::CONNECTION_WINDOW_BYTES_MIN`]: the protocol knows no smaller one)
//! and doubles it when the client has used all of it within a second, for a longer round trip would make good use of
//! more, or when what waits unread of some streams leaves too little for the others. What all connections of a reactor have beyond the first window comes out of
//! [`limits::CONNECTION_WINDOW_BYTES_LENT`]; each may take up to a quarter of what is left of it, so that there is always
//! some for the next. It goes back when the connection ends or has been quiet for a while.

use std::cell::Cell;

use crate::limits::CONNECTION_WINDOW_BYTES_LENT;
use crate::limits::CONNECTION_WINDOW_BYTES_MAX;
use crate::limits::CONNECTION_WINDOW_BYTES_MIN;

/// A window that lasted longer was large enough.
const FULL_USE_US: u64 = 1_000_000;

/// What streams that wait leave for the others of their connection, while there is something to lend.
const ROOM_BYTES: usize = CONNECTION_WINDOW_BYTES_MIN as usize / 2;

thread_local! {
    static LENT: Cell<usize> = const { Cell::new(0) };
}

/// The receive window of one connection.
///
/// `CONNECTION_WINDOW_BYTES_MIN <= bytes <= CONNECTION_WINDOW_BYTES_MAX`, and `LENT` is the sum of what is above the minimum.
#[derive(Debug)]
pub(super) struct Window {
    bytes: u32,
    /// Bytes received when it was looked at last, and when that was.
    received: u64,
    since_us: u64,
}

impl Window {
    /// Of a new connection.
    pub(super) fn new(now_us: u64) -> Window {
        Window { bytes: CONNECTION_WINDOW_BYTES_MIN, received: 0, since_us: now_us }
    }

    /// The new size, if it has become larger. `received`: bytes since the connection began; `unread`: those whose room is
    /// not given back.
    pub(super) fn grow(&mut self, received: u64, unread: usize, now_us: impl FnOnce() -> u64) -> Option<u32> {
        if unread + ROOM_BYTES > self.bytes as usize {
            return self.double();
        }
        if received - self.received < u64::from(self.bytes) {
            return None;
        }
        let now_us = now_us();
        let took_us = now_us - self.since_us;
        (self.received, self.since_us) = (received, now_us);
        if took_us > FULL_USE_US {
            return None;
        }
        self.double()
    }

    fn double(&mut self) -> Option<u32> {
        let own = (self.bytes - CONNECTION_WINDOW_BYTES_MIN) as usize;
        let left = CONNECTION_WINDOW_BYTES_LENT - (LENT.get() - own);
        let most = left / 4 + CONNECTION_WINDOW_BYTES_MIN as usize;
        let wanted = (2 * self.bytes as usize).min(most).min(CONNECTION_WINDOW_BYTES_MAX as usize);
        let grown = u32::try_from(wanted).expect("at most CONNECTION_WINDOW_BYTES_MAX");
        (grown > self.bytes).then(|| self.set(grown))
    }

    /// To be called now and then: the new size, if it has become smaller, as less than a window was received since the
    /// last call.
    pub(super) fn shrink(&mut self, received_since: u64, unread: usize) -> Option<u32> {
        let is_needed =
            received_since >= u64::from(self.bytes) || unread + ROOM_BYTES > CONNECTION_WINDOW_BYTES_MIN as usize;
        let is_quiet = !is_needed && self.bytes > CONNECTION_WINDOW_BYTES_MIN;
        is_quiet.then(|| self.set(CONNECTION_WINDOW_BYTES_MIN))
    }

    fn set(&mut self, bytes: u32) -> u32 {
        LENT.set(LENT.get() + bytes as usize - self.bytes as usize);
        assert!(LENT.get() <= CONNECTION_WINDOW_BYTES_LENT);
        self.bytes = bytes;
        bytes
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.set(CONNECTION_WINDOW_BYTES_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Used up in time, it doubles up to the largest; slowly used, it stays; quiet, it goes back.
    #[test]
    fn follows_its_use() {
        let mut window = Window::new(0);
        let mut received = 0;
        assert_eq!(window.grow(u64::from(CONNECTION_WINDOW_BYTES_MIN) - 1, 0, || unreachable!()), None);
        while window.bytes < CONNECTION_WINDOW_BYTES_MAX {
            let before = window.bytes;
            received += u64::from(before);
            assert_eq!(window.grow(received, 0, window_time), Some(window.bytes));
            assert!(window.bytes > before && window.bytes <= 2 * before);
        }
        received += u64::from(window.bytes);
        assert_eq!(window.grow(received, 0, window_time), None);
        assert_eq!(window.shrink(u64::from(window.bytes), 0), None);
        assert_eq!(window.shrink(1_000, 0), Some(CONNECTION_WINDOW_BYTES_MIN));
        assert_eq!(LENT.get(), 0);
        received += u64::from(window.bytes);
        assert_eq!(window.grow(received, 0, || window_time() + FULL_USE_US + 1), None);
    }

    /// However slowly a stream's bytes come that nobody reads, the others have room as long as there is some to lend.
    #[test]
    fn what_waits_leaves_room() {
        let mut window = Window::new(0);
        for unread in 0..CONNECTION_WINDOW_BYTES_MAX as usize - ROOM_BYTES {
            window.grow(0, unread, || unreachable!());
            assert!(window.bytes as usize >= unread + ROOM_BYTES);
        }
        assert_eq!(window.shrink(0, 1 << 20), None);
        assert_eq!(window.shrink(0, 0), Some(CONNECTION_WINDOW_BYTES_MIN));
    }

    fn window_time() -> u64 {
        7
    }

    /// However many connections are greedy, what is lent stays below its bound, and a new one still gets some.
    #[test]
    fn what_is_lent_is_bounded() {
        let mut windows: Vec<Window> = (0..1_000).map(|_| Window::new(0)).collect();
        for round in 1..20_u64 {
            for window in &mut windows {
                window.grow(round * u64::from(CONNECTION_WINDOW_BYTES_MAX), 0, || 1);
                assert!(LENT.get() <= CONNECTION_WINDOW_BYTES_LENT);
            }
        }
        assert!(windows.iter().all(|window| window.bytes > CONNECTION_WINDOW_BYTES_MIN));
        drop(windows);
        assert_eq!(LENT.get(), 0);
    }
}
