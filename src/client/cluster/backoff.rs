//! How long to wait before the next try: longer each time, and not at the same moment as everybody else.

use std::time::Duration;

/// Wait after the first failure.
const FIRST: Duration = Duration::from_millis(25);

/// Longest wait.
const LONGEST: Duration = Duration::from_secs(2);

/// The wait after `failures` failures in a row (0: none): doubled each time, bounded, and between half and all of it by
/// `chance` (0 to 1), so that clients that failed together do not come back together.
pub fn delay(failures: u32, chance: f64) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let doubled = FIRST.saturating_mul(1 << (failures - 1).min(16));
    doubled.min(LONGEST).mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
}

/// As `delay`, by chance.
pub fn jittered(failures: u32) -> Duration {
    delay(failures, fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It grows, is bounded, and differs by up to a half.
    #[test]
    fn grows_to_a_bound() {
        assert_eq!(delay(0, 1.0), Duration::ZERO);
        assert_eq!(delay(1, 1.0), FIRST);
        assert_eq!(delay(1, 0.0), FIRST / 2);
        assert_eq!(delay(3, 1.0), FIRST * 4);
        assert_eq!(delay(u32::MAX, 1.0), LONGEST);
        assert!((1..40).all(|failures| delay(failures, 0.3) <= delay(failures + 1, 0.3)));
        assert!((0..100).map(|_| jittered(9)).all(|delay| delay >= LONGEST / 2 && delay <= LONGEST));
    }
}
