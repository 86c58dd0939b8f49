//! How fast a follower that is behind may be sent what it lacks, while others wait for acks: twice as fast as new entries
//! come, so that it catches up, and not faster than that, so that device and cores are left to the acks. Without new
//! entries there is no bound.
//!
//! One for each reactor: all its groups write to one device, and all its followers read from it.

use std::cell::Cell;

use crate::limits::CATCH_UP_BYTES_PER_S_MIN;

/// A measured stretch of time, µs.
const WINDOW_US: u64 = 100_000;

/// Without new entries for this long there is no load, µs.
const IDLE_US: u64 = 500_000;

/// A follower is sent this many times what comes anew.
const AHEAD: u64 = 2;

/// See the module's description. Times are microseconds of one clock that never goes back.
#[derive(Debug, Default)]
pub struct Pace {
    /// New entries: bytes of this window, since when, and what the windows before come to, per second.
    fresh: Cell<u64>,
    window_us: Cell<u64>,
    rate: Cell<u64>,
    last_us: Cell<Option<u64>>,
    /// When all that was sent to followers that are behind is paid for.
    paid_us: Cell<u64>,
}

impl Pace {
    /// New entries of so many bytes were taken.
    pub fn note_fresh(&self, bytes: usize, now_us: u64) {
        let elapsed_us = now_us.saturating_sub(self.window_us.get());
        if elapsed_us >= WINDOW_US {
            let rate = self.fresh.replace(0).saturating_mul(1_000_000) / elapsed_us;
            self.rate.set(if elapsed_us >= IDLE_US { rate } else { self.rate.get().midpoint(rate) });
            self.window_us.set(now_us);
        }
        self.fresh.set(self.fresh.get() + bytes as u64);
        self.last_us.set(Some(now_us));
    }

    /// A follower that is behind is sent so many bytes: µs until one may be sent the next.
    pub fn pause_us(&self, bytes: usize, now_us: u64) -> u64 {
        let is_idle = self.last_us.get().is_none_or(|last_us| now_us.saturating_sub(last_us) >= IDLE_US);
        if is_idle {
            return 0;
        }
        let rate = (AHEAD * self.rate.get()).max(CATCH_UP_BYTES_PER_S_MIN);
        let costs_us = (bytes as u64).saturating_mul(1_000_000) / rate;
        let paid_us = self.paid_us.get().max(now_us) + costs_us;
        self.paid_us.set(paid_us);
        paid_us - now_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Bytes of a follower's second, sent in pieces that wait as they are told, beside new entries of so many bytes a second.
    fn sent_in_a_second(fresh_per_s: usize) -> usize {
        let pace = Pace::default();
        let (mut sent, mut next_us) = (0, 1_000_000);
        for now_us in (0..2_000_000).step_by(1_000) {
            if fresh_per_s > 0 {
                pace.note_fresh(fresh_per_s / 1_000, now_us);
            }
            while (1_000_000..2_000_000).contains(&now_us) && next_us <= now_us && sent < 4_000 * MIB {
                sent += MIB / 4;
                next_us = now_us + pace.pause_us(MIB / 4, now_us);
            }
        }
        sent
    }

    /// Nobody waits: no bound. Little comes: the least rate. Much comes: twice that.
    #[test]
    fn faster_than_what_comes() {
        assert_eq!(sent_in_a_second(0), 4_000 * MIB);
        let least = CATCH_UP_BYTES_PER_S_MIN as usize;
        let little = sent_in_a_second(least / 10);
        assert!((least * 9 / 10..=least * 11 / 10).contains(&little), "{little}");
        let much = sent_in_a_second(2 * least);
        assert!((least * 36 / 10..=least * 44 / 10).contains(&much), "{much}");
    }

    /// Several followers share it.
    #[test]
    fn shared() {
        let pace = Pace::default();
        pace.note_fresh(1, 1_000);
        let first = pace.pause_us(MIB, 1_000);
        assert!(first > 0);
        assert_eq!(pace.pause_us(MIB, 1_000), 2 * first);
    }
}
