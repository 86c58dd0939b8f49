//! The worlds that tests run in: a disk that crashes on demand, a network that can be cut, and two `Env`s around them.
//!
//! These are the second implementations of the seams in `env`; everything from `log` up runs on them unchanged.
//!
//! - `SimEnv` is a whole cluster on one thread (`executor`, `runtime`): tasks, virtual time and randomness come from one
//!   seed, and the same seed gives the same history, to the last poll.
//! - `TestEnv` has the real tasks and timers of a `LocalRuntime`; its clocks and randomness are counters, so that what
//!   a test does with them is the same in every run.

pub mod checker;
pub mod client;
pub mod cluster;
pub mod coverage;
pub mod disk;
pub mod executor;
pub mod net;
pub mod runtime;
pub mod scenario;
pub mod socket;
mod until;

use std::cell::Cell;

pub use disk::{DiskFault, DiskTimes, Fault, Operation, PlantedFault, SimDisk, SimFile};
pub use executor::World;
pub use net::{NetTimes, SimNet, SimNetwork};
pub use runtime::{SimEnv, SimRuntime};

use crate::env::{Env, runtime::LocalRuntime};

/// An `Env` on a `SimDisk`, for tests and benches; needs a `LocalRuntime` around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TestEnv;

/// Where wall clocks start: a day in November 2023.
const WALL_START_US: i64 = 1_700_000_000_000_000;

thread_local! {
    static CLOCK_US: Cell<u64> = const { Cell::new(1) };
    static WALL_JUMPED_US: Cell<i64> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(1) };
}

impl TestEnv {
    /// Moves this thread's clocks forward.
    pub fn advance_us(us: u64) {
        CLOCK_US.set(CLOCK_US.get() + us);
    }

    /// Moves this thread's wall clock alone.
    pub fn jump_wall_us(us: i64) {
        WALL_JUMPED_US.set(WALL_JUMPED_US.get() + us);
    }

    /// Sets this thread's clocks back to their start and seeds its randomness.
    pub fn reset(seed: u64) {
        CLOCK_US.set(1);
        WALL_JUMPED_US.set(0);
        RANDOM.set(seed);
    }
}

impl Env for TestEnv {
    type Disk = SimDisk;
    type Net = SimNet;
    type Runtime = LocalRuntime;

    /// Goes on by a microsecond with each look at it.
    fn monotonic_us() -> u64 {
        CLOCK_US.set(CLOCK_US.get() + 1);
        CLOCK_US.get()
    }

    fn wall_us() -> i64 {
        WALL_START_US + CLOCK_US.get() as i64 + WALL_JUMPED_US.get()
    }

    fn random_u64() -> u64 {
        RANDOM.with(random)
    }
}

/// The next number of a SplitMix64 generator (Steele et al., OOPSLA 2014): any seed is good.
pub(crate) fn random(state: &Cell<u64>) -> u64 {
    state.set(state.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
    let mut number = state.get();
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests;
