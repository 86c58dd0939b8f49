//! How long an append takes just now, from those that were: decides which deadlines can be met.

/// Without a new sample the estimate halves in this time. A stall would otherwise refuse every request
/// with a deadline for ever, and without requests nothing would ever show that the stall is over.
const HALF_LIFE_US: u64 = 250_000;

/// Smoothed time of an append, from proposal to ack: mean and mean deviation as in RFC 6298, section 2
/// (gains 1/8 and 1/4).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AppendEstimate {
    /// Eight times the mean, µs.
    mean_x8: u64,
    /// Four times the mean deviation, µs.
    deviation_x4: u64,
    /// When the last sample came, on the monotonic clock.
    sampled_us: Option<u64>,
}

impl AppendEstimate {
    /// An append that ended at `now_us` took `append_us`.
    pub(super) fn sample(&mut self, now_us: u64, append_us: u64) {
        if self.sampled_us.is_none() {
            self.mean_x8 = append_us.saturating_mul(8);
            self.deviation_x4 = append_us.saturating_mul(2);
        } else {
            let difference = append_us.abs_diff(self.mean_x8 / 8);
            self.deviation_x4 = self.deviation_x4.saturating_add(difference) - self.deviation_x4 / 4;
            self.mean_x8 = self.mean_x8.saturating_add(append_us) - self.mean_x8 / 8;
        }
        self.sampled_us = Some(now_us);
    }

    /// How long the next append will probably take at most, µs; 0 while nothing is known.
    pub(super) fn expected_us(&self, now_us: u64) -> u64 {
        let Some(sampled_us) = self.sampled_us else { return 0 };
        let expected = self.mean_x8 / 8 + self.deviation_x4 / 4;
        let half_lives = now_us.saturating_sub(sampled_us) / HALF_LIFE_US;
        expected >> half_lives.min(63)
    }

    /// Whether an append that begins now ends before `deadline_us`.
    pub(super) fn can_meet(&self, deadline_us: Option<u64>, now_us: u64) -> bool {
        deadline_us.is_none_or(|deadline_us| now_us.saturating_add(self.expected_us(now_us)) < deadline_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knows nothing at first, then follows the samples.
    #[test]
    fn follows() {
        let mut estimate = AppendEstimate::default();
        assert_eq!(estimate.expected_us(5), 0);
        for now in 0..100 {
            estimate.sample(now, 100);
        }
        assert!((100..110).contains(&estimate.expected_us(100)));
        for now in 100..200 {
            estimate.sample(now, 1000);
        }
        assert!((990..1100).contains(&estimate.expected_us(200)), "{}", estimate.expected_us(200));
    }

    /// One outlier does not make the estimate: it moves by a fraction of it.
    #[test]
    fn smooths() {
        let mut estimate = AppendEstimate::default();
        for now in 0..100 {
            estimate.sample(now, 100);
        }
        estimate.sample(100, 10_000);
        assert!(estimate.expected_us(100) < 4_000);
    }

    /// A deadline is met only if there is time for an append; after a stall the memory of it fades.
    #[test]
    fn deadlines() {
        let mut estimate = AppendEstimate::default();
        assert!(estimate.can_meet(Some(11), 10));
        assert!(!estimate.can_meet(Some(10), 10), "passed already");
        estimate.sample(10, 4_000_000);
        assert!(estimate.can_meet(None, 10));
        assert!(!estimate.can_meet(Some(1_000_000), 10));
        assert!(estimate.can_meet(Some(11_000_000), 10_000_000), "40 half-lives later");
        estimate.sample(20_000_000, u64::MAX);
        assert!(!estimate.can_meet(Some(u64::MAX / 16), 20_000_000), "no overflow");
    }
}
