//! How long operations take: no time, turns of the executor, or the world's time.

use std::cell::Cell;

use super::{
    super::{
        executor::{WeakWorld, World},
        random,
        until::Until,
    },
    Operation,
};
use crate::env::yield_now;

/// How long each operation of a disk takes in virtual time. Each has its own draw: what was begun later may be done
/// sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskTimes {
    /// At least, in microseconds.
    pub base_us: u64,
    /// At most this much more, in microseconds.
    pub spread_us: u64,
    /// One in so many operations stalls; 0: none.
    pub stall_one_in: u64,
    /// At most this long, in microseconds.
    pub stall_us: u64,
}

impl Default for DiskTimes {
    /// A good NVMe device, whose garbage collection shows now and then.
    fn default() -> DiskTimes {
        DiskTimes { base_us: 60, spread_us: 60, stall_one_in: 4_000, stall_us: 10_000 }
    }
}

/// What the delays of a disk come from.
#[derive(Clone, Default)]
pub(super) enum Timing {
    /// Nothing takes time.
    #[default]
    Immediate,
    /// 0 to 3 turns of the executor.
    Turns { dice: Cell<u64> },
    /// The world's time.
    Timed { world: WeakWorld, dice: Cell<u64>, times: DiskTimes, slow: Cell<Slow> },
}

/// A device that has become slow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slow {
    /// Delays are so many times as long, ...
    pub(super) factor: u64,
    /// what has to reach the medium takes so much longer, in microseconds, ...
    pub(super) flush_us: u64,
    /// what takes a name away or changes it, too, ...
    pub(super) names_us: u64,
    /// ...until then, in microseconds of the world.
    pub(super) until_us: u64,
}

impl Default for Slow {
    fn default() -> Slow {
        Slow { factor: 1, flush_us: 0, names_us: 0, until_us: 0 }
    }
}

/// What a wait was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waited {
    pub(super) stalled: bool,
    pub(super) slowed: bool,
}

impl Timing {
    pub(super) fn timed(world: &World, seed: u64, times: DiskTimes) -> Timing {
        let slow = Cell::new(Slow::default());
        Timing::Timed { world: world.weak(), dice: Cell::new(seed), times, slow }
    }

    /// The world whose time it is, while there is one.
    pub(super) fn world(&self) -> Option<World> {
        match self {
            Timing::Timed { world, .. } => world.upgrade(),
            _ => None,
        }
    }

    /// The same for another disk, with other dice.
    pub(super) fn reseeded(&self, seed: u64) -> Timing {
        match self {
            Timing::Timed { world, times, .. } => {
                let slow = Cell::new(Slow::default());
                Timing::Timed { world: world.clone(), dice: Cell::new(seed), times: *times, slow }
            }
            _ => Timing::Immediate,
        }
    }

    /// Makes a timed disk slow for a while from now on; no-op for others.
    pub(super) fn set_slow(&self, new: Slow, for_us: u64) {
        if let Timing::Timed { world, slow, .. } = self {
            let now_us = world.upgrade().map_or(0, |world| world.now_us());
            slow.set(Slow { until_us: now_us.saturating_add(for_us), ..new });
        }
    }

    /// Draws the delay of the next operation: the future lasts as long, and keeps no borrow.
    pub(super) fn draw(&self, operation: Operation) -> (Waited, impl Future<Output = ()> + use<>) {
        let mut waited = Waited::default();
        let (mut turns, mut until) = (0, None);
        match self {
            Timing::Immediate => {}
            Timing::Turns { dice } => turns = random(dice) % 4,
            Timing::Timed { world, dice, times, slow } => {
                let now_us = world.upgrade().map_or(0, |world| world.now_us());
                let mut delay_us = times.base_us + random(dice) % (times.spread_us + 1);
                if times.stall_one_in > 0 && random(dice).is_multiple_of(times.stall_one_in) {
                    waited.stalled = true;
                    delay_us += random(dice) % (times.stall_us + 1);
                }
                if now_us < slow.get().until_us {
                    waited.slowed = true;
                    delay_us = delay_us.saturating_mul(slow.get().factor);
                    if matches!(operation, Operation::AppendDurable | Operation::Sync | Operation::SyncDir) {
                        delay_us = delay_us.saturating_add(slow.get().flush_us);
                    }
                    if matches!(operation, Operation::Remove | Operation::Rename | Operation::SyncDir) {
                        delay_us = delay_us.saturating_add(slow.get().names_us);
                    }
                }
                until = Some(Until::new(world, now_us.saturating_add(delay_us)));
            }
        }
        let wait = async move {
            for _ in 0..turns {
                yield_now().await;
            }
            if let Some(until) = until {
                until.await;
            }
        };
        (waited, wait)
    }
}
