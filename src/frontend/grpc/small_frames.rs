//! What our DATA frames cost a client that is made of the h2 crate.
//!
//! It keeps a budget for each connection: a DATA frame below 256 bytes takes from it what it lacks of 256 and gives that
//! back when it is read, a larger one gives back what it has more. Spent, the client closes the connection
//! (ENHANCE_YOUR_CALM). Its smallest budget is 25,600 bytes: some 110 acknowledgements that nobody has read yet. HTTP/2 has no
//! sign by which we could tell that a small frame was read. So we count as if none ever were, and above
//! [`FILL_ABOVE`] no more small frames are made: messages that have to go are filled up to 256 bytes
//! ([`crate::format::grpc::fill_up`]), and are not cut where a window ends if a part or its rest would be small
//! ([`SmallFrames::part`]). Else a client that reads one frame after the other, and gives the room of each back at once, as
//! that crate does when the window is used up, gets two small frames for each.

use std::cell::Cell;
use std::rc::Rc;

/// A DATA frame of this size costs nothing.
pub(super) const FREE_BYTES: usize = 256;

/// The smallest budget of h2 0.4.16 and later for its client side (`DEFAULT_DATA_FRAME_BUDGET`).
const CLIENT_BUDGET: usize = 100 * FREE_BYTES;

/// Charged above this, frames are filled up. What is between this and the budget is for what was cut before, and for windows
/// that have no room for more.
const FILL_ABOVE: usize = 8 << 10;

/// Frames are cut to the client's SETTINGS_MAX_FRAME_SIZE, which may not be below this (RFC 9113, section 6.5.2).
const FRAME_BYTES: usize = 16 << 10;

const _: () = assert!(FILL_ABOVE + FREE_BYTES <= CLIENT_BUDGET / 2);

/// The account of one connection; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct SmallFrames(Rc<Cell<usize>>);

impl SmallFrames {
    /// DATA of `bytes` bytes is sent, cut by nothing but the client's frame size.
    pub(super) fn sent(&self, bytes: usize) {
        let spent = self.0.get();
        self.0.set(match bytes {
            0 => spent,
            1..FREE_BYTES => spent + FREE_BYTES - bytes,
            FREE_BYTES..=FRAME_BYTES => spent.saturating_sub(bytes - FREE_BYTES),
            // What is left over may be as small as can be.
            _ => spent.saturating_sub(FRAME_BYTES - FREE_BYTES) + FREE_BYTES - 1,
        });
    }

    /// How many of `wanted` bytes, of which the client's windows have room for `granted`, make the next frame; 0: more
    /// room has to be waited for, as there would be a small frame now, or next.
    pub(super) fn part(&self, granted: usize, wanted: usize) -> usize {
        debug_assert!(granted <= wanted);
        if granted == wanted || !self.is_high() {
            return granted;
        }
        let part = granted.min(wanted.saturating_sub(FREE_BYTES));
        if part < FREE_BYTES { 0 } else { part }
    }

    /// Whether no more small frames are to be made.
    pub(super) fn is_high(&self) -> bool {
        self.0.get() > FILL_ABOVE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never below what h2 counts when nothing is read.
    #[test]
    fn counts_as_h2_does() {
        let small_frames = SmallFrames::default();
        let (mut h2, mut high) = (0_usize, 0);
        for i in 0..100_000_usize {
            // Small ones mostly; the large ones, which give back, come in the second half of each thousand.
            let sizes: &[usize] =
                if i % 1_000 < 500 { &[1, 30, 255] } else { &[256, 257, 300, 16_384, 16_385, 50_000, 7] };
            let bytes = sizes[i % sizes.len()];
            if small_frames.is_high() && bytes < FREE_BYTES {
                high += 1;
                continue;
            }
            small_frames.sent(bytes);
            let mut rest = bytes;
            while rest > 0 {
                let frame = rest.min(FRAME_BYTES);
                h2 = if frame < FREE_BYTES { h2 + FREE_BYTES - frame } else { h2.saturating_sub(frame - FREE_BYTES) };
                rest -= frame;
                assert!(h2 <= CLIENT_BUDGET);
            }
            assert!(h2 <= small_frames.0.get());
        }
        assert!(high > 0);
    }

    /// Where a window ends nothing is cut that leaves less than a free frame on either side; what is not to be cut waits.
    #[test]
    fn cuts_leave_no_small_frames() {
        let small_frames = SmallFrames::default();
        assert_eq!(
            [(1, 300), (299, 300), (700, 800)].map(|(granted, wanted)| small_frames.part(granted, wanted)),
            [1, 299, 700]
        );
        while !small_frames.is_high() {
            small_frames.sent(1);
        }
        for (granted, wanted) in (0..800).flat_map(|granted| (granted..800).map(move |wanted| (granted, wanted))) {
            let part = small_frames.part(granted, wanted);
            assert!(part <= granted);
            assert!(part == 0 || part == wanted || (part >= FREE_BYTES && wanted - part >= FREE_BYTES));
            // Twice the free size is always enough.
            assert!(part > 0 || granted < 2 * FREE_BYTES);
        }
    }
}
