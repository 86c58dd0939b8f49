//! All families of faults in one run: members change while disks fail, one disk is damaged, clocks are wrong and nodes die.
//! What no design survives is not left out of the plan: the step itself looks whether this is such a moment (`losses`,
//! `damage`).

use std::cell::Cell;

use super::plan::{Action, between, clock, crash, cut, damage, disk, members, who};
use crate::sim::{DiskFault, Operation, random};

/// What runs of this scenario must have hit.
pub(super) const EXPECTED: &[(&str, &str)] = &[
    ("crash", "follower"),
    ("crash", "leader"),
    ("drain", "follower"),
    ("isolation", "follower"),
    ("lost directory", "follower"),
    ("panic", "replica"),
    ("persistent EIO", "start"),
    ("persistent EIO on sync", "follower"),
    ("persistent EIO on sync", "leader"),
    ("repair", "damaged replica"),
    ("replacement", "follower"),
    ("slow device", "follower"),
    ("snapshot installed", "follower"),
    ("unreadable block", "file at rest"),
];

/// A step of any family; those that only this scenario has are drawn more often.
pub(super) fn action(dice: &Cell<u64>) -> Action {
    match random(dice) % 12 {
        0 => crash(dice),
        1 => cut(dice),
        2 => clock(dice),
        3..=5 => members(dice),
        6 => disk(dice),
        7 | 8 => damage(dice),
        9 => Action::LoseDirectory {
            shard: random(dice) % 64,
            replica: random(dice) % 64,
            down_ms: between(dice, 5, 3_000),
            seed: random(dice),
        },
        10 => broken(dice),
        _ => Action::Panic {
            shard: random(dice) % 64,
            replica: random(dice) % 64,
            operation: [Operation::AppendDurable, Operation::AppendDurable, Operation::Write, Operation::Sync]
                [(random(dice) % 4) as usize],
            down_ms: between(dice, 50, 4_000),
        },
    }
}

fn broken(dice: &Cell<u64>) -> Action {
    let faults = [DiskFault::ErrorSync, DiskFault::ErrorSync, DiskFault::ErrorAppend, DiskFault::ErrorWrite];
    let fault = faults[(random(dice) % 4) as usize];
    // A disk that reads nothing is as good as none; one region of it is another matter.
    let (fault, file) = match random(dice) % 6 {
        0 => (DiskFault::ErrorRead, ".store"),
        1 => (DiskFault::ErrorRead, "hard_state"),
        2 => (fault, ".store"),
        3 => (fault, "hard_state"),
        _ => (fault, ""),
    };
    Action::Break { who: who(dice), fault, file, for_ms: between(dice, 200, 12_000) }
}
