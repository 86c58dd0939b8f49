//! A node's own view of time: its monotonic clock runs faster or slower than the world's, its wall clock jumps.
//!
//! With rate = 1 + ppm / 1,000,000: local = local at the last change + (world - world at the last change) * rate,
//! rounded down. It never goes back, since the rate is positive and a change starts from where the clock is.

/// Parts in a million.
const MILLION: u64 = 1_000_000;

/// Furthest that a clock may be off, in parts per million: half or one and a half times as fast.
pub(super) const DRIFT_PPM_MAX: i64 = 500_000;

/// The clocks of one node. All times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    /// What the monotonic clock showed when the world began.
    start_ns: u64,
    /// World time of the last change of the rate, and what the clock showed then.
    world_ns: u64,
    local_ns: u64,
    /// Local parts in a million of the world's.
    rate: u64,
    /// All jumps of the wall clock together, in microseconds.
    jumped_us: i64,
}

impl Clock {
    /// A true clock that shows `start_ns` when the world begins.
    pub(super) fn new(start_ns: u64) -> Clock {
        Clock { start_ns, world_ns: 0, local_ns: start_ns, rate: MILLION, jumped_us: 0 }
    }

    /// What the monotonic clock shows at `world_ns`, which is not before the last change.
    pub(super) fn local_ns(&self, world_ns: u64) -> u64 {
        let passed = u128::from(world_ns - self.world_ns) * u128::from(self.rate) / u128::from(MILLION);
        clamped(u128::from(self.local_ns) + passed)
    }

    /// When the monotonic clock shows at least `local_ns` for the first time since the last change.
    pub(super) fn world_ns(&self, local_ns: u64) -> u64 {
        let left = u128::from(local_ns.saturating_sub(self.local_ns)) * u128::from(MILLION);
        clamped(u128::from(self.world_ns) + left.div_ceil(u128::from(self.rate)))
    }

    /// Microseconds of wall time since the world began, with its jumps.
    pub(super) fn wall_us(&self, world_ns: u64) -> i64 {
        ((self.local_ns(world_ns) - self.start_ns) / 1_000) as i64 + self.jumped_us
    }

    /// From `world_ns` on, runs faster by `ppm` parts per million, or slower when it is negative.
    ///
    /// # Panics
    /// When it is further off than `DRIFT_PPM_MAX`.
    pub(super) fn set_drift(&mut self, world_ns: u64, ppm: i64) {
        assert!(ppm.abs() <= DRIFT_PPM_MAX, "a drift of {ppm} ppm is no clock's");
        self.local_ns = self.local_ns(world_ns);
        self.world_ns = world_ns;
        self.rate = MILLION.saturating_add_signed(ppm);
    }

    /// Moves the wall clock.
    pub(super) fn jump_wall(&mut self, us: i64) {
        self.jumped_us += us;
    }
}

fn clamped(ns: u128) -> u64 {
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At the moment that a clock names for a deadline it has come to it, and a nanosecond earlier it has not.
    #[test]
    fn deadlines_are_exact() {
        for ppm in [-DRIFT_PPM_MAX, -77, 0, 1, 333, DRIFT_PPM_MAX] {
            let mut clock = Clock::new(1_000);
            clock.set_drift(17, ppm);
            for deadline in [1_017, 1_018, 5_000, 123_456_789_012] {
                let due = clock.world_ns(deadline);
                assert!(clock.local_ns(due) >= deadline, "{ppm} ppm");
                assert!(due == 17 || clock.local_ns(due - 1) < deadline, "{ppm} ppm");
            }
        }
    }

    /// A change of the rate does not move the clock; time far away is never.
    #[test]
    fn goes_on_from_where_it_is() {
        let mut clock = Clock::new(0);
        clock.set_drift(1_000_000, 100_000);
        assert_eq!(clock.local_ns(1_000_000), 1_000_000);
        assert_eq!(clock.local_ns(2_000_000), 2_100_000);
        clock.set_drift(2_000_000, -100_000);
        assert_eq!(clock.local_ns(3_000_000), 3_000_000);
        clock.jump_wall(-5_000);
        assert_eq!(clock.wall_us(3_000_000), -2_000);
        assert_eq!(clock.world_ns(u64::MAX), u64::MAX);
    }
}
