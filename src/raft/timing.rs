//! How long a group waits for what.
//!
//! The default's heartbeats are slow, so that hundreds of idle groups cost little: that a leader's node has died is
//! noticed by the nodes' liveness, once for all groups (`elections`).

use std::time::Duration;

use crate::env::Env;

/// Times of a group; the same on all of its replicas. Tests have shorter ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats of an idle leader, ms.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing of a leader whose lease has ended waits at least this long before it asks for votes, ms.
    pub election_ms_min: u64,
    /// And less than this, ms: also the leader's lease. More than the other.
    pub election_ms_max: u64,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing { heartbeat_ms: 1_000, election_ms_min: 2_500, election_ms_max: 3_000 }
    }
}

impl Timing {
    /// Between two heartbeats.
    pub(super) fn heartbeat(self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    /// Shortest wait of a follower.
    pub(super) fn election_min(self) -> Duration {
        Duration::from_millis(self.election_ms_min)
    }

    /// For how long a majority's answer makes a leader sure that there is no other: openraft's lease.
    pub(super) fn lease(self) -> Duration {
        Duration::from_millis(self.election_ms_max)
    }

    /// For how long a leader refuses proposals at most, so that another one can take over: 500 ms, a healthy one needs a few.
    pub(super) fn hold(self) -> Duration {
        self.election_min() / 5
    }

    /// Between two attempts to replace a leader that is gone: 100 ms.
    pub(super) fn retry(self) -> Duration {
        self.election_min() / 25
    }
}

/// `duration`, give or take a quarter.
pub(super) fn with_jitter<E: Env>(duration: Duration) -> Duration {
    duration * 3 / 4 + random_below::<E>(duration / 2)
}

/// Any duration below `end`.
pub(super) fn random_below<E: Env>(end: Duration) -> Duration {
    let us = end.as_micros().max(1) as u64;
    Duration::from_micros(E::random_u64() % us)
}
