//! What our DATA frames cost a client that is made of the h2 crate.
//!
//! It keeps a budget for each connection: a DATA frame below 256 bytes takes from it what it lacks of 256 and gives that
//! back when it is read, a larger one gives back what it has more. Spent, the client closes the connection
//! (ENHANCE_YOUR_CALM). Its smallest budget is 25,600 bytes: some 110 acknowledgements that nobody has read yet. HTTP/2 has no
//! sign by which we could tell that a small frame was read. So we count as if none ever were, and above
//! [`FILL_ABOVE`] no more small frames are made: messages that have to go are filled up to 256 bytes
//! ([`crate::format::grpc::fill_up`]).

use std::cell::Cell;
use std::rc::Rc;

/// A DATA frame of this size costs nothing.
pub(super) const FREE_BYTES: usize = 256;

/// The smallest budget of h2 0.4.16 and later for its client side (`DEFAULT_DATA_FRAME_BUDGET`).
const CLIENT_BUDGET: usize = 100 * FREE_BYTES;

/// Charged above this, frames are filled up. What is between this and the budget is for the ends of windows: what fits
/// into one leaves, however little it is.
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
}
