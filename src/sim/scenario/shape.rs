//! A run's topic: how many replicas its shards have, and how long its records stay.

use std::cell::Cell;

use super::plan::Scenario;
use crate::sim::random;

/// What is kept of a topic, and how often.
pub(super) struct Shape {
    pub(super) replication_factor: u32,
    pub(super) retention_age_ms: u64,
    pub(super) retention_bytes: u64,
}

impl Shape {
    /// By dice of its own: a seed's steps do not depend on it.
    pub(super) fn of(seed: u64, scenario: Scenario) -> Shape {
        let dice = &Cell::new(seed ^ 0x0073_6861_7065);
        let one_of = |choices: [u64; 6]| choices[(random(dice) % 6) as usize];
        // The others have what their first thousands of seeds had.
        if scenario != Scenario::Mixed {
            return Shape { replication_factor: 3, retention_age_ms: 0, retention_bytes: 0 };
        }
        let replication_factor = one_of([3, 3, 3, 1, 2, 5]);
        let retention_age_ms = one_of([0, 0, 0, 0, 1_000, 3_000]);
        let retention_bytes = one_of([0, 0, 0, 0, 1 << 20, 4 << 20]);
        Shape { replication_factor: replication_factor as u32, retention_age_ms, retention_bytes }
    }
}
