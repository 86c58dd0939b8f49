//! The real world: the kernel's clocks and files, tokio's tasks.

use std::{
    sync::OnceLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use super::{Env, disk::RealDisk, runtime::LocalRuntime};

/// The real world.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RealEnv;

#[allow(clippy::disallowed_methods, reason = "this is what hides them from the others")]
impl Env for RealEnv {
    type Disk = RealDisk;
    type Net = super::quic::QuicNet;
    type Runtime = LocalRuntime;

    fn monotonic_us() -> u64 {
        // CLOCK_MONOTONIC, counted from the first call in this process.
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_micros() as u64
    }

    fn wall_us() -> i64 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => since.as_micros() as i64,
            // A clock that was never set may be before 1970.
            Err(before) => -(before.duration().as_micros() as i64),
        }
    }

    fn random_u64() -> u64 {
        fastrand::u64(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The monotonic clock does not go back, and is the same one on all threads.
    #[test]
    fn monotonic() {
        let first = RealEnv::monotonic_us();
        #[allow(clippy::disallowed_methods, reason = "a test of threads")]
        let elsewhere = std::thread::spawn(RealEnv::monotonic_us).join().unwrap();
        assert!(first <= elsewhere);
        assert!(elsewhere <= RealEnv::monotonic_us());
    }

    /// The wall clock is after this test was written, and random numbers differ.
    #[test]
    fn wall_and_random() {
        assert!(RealEnv::wall_us() > 1_760_000_000_000_000);
        assert_ne!(RealEnv::random_u64(), RealEnv::random_u64());
    }
}
