//! How long a group waits for what, and how openraft is set up.
//!
//! The default's heartbeats are slow, so that hundreds of idle groups cost little: that a leader's node has died is
//! noticed by the nodes' liveness, once for all groups (`elections`).

use std::{sync::Arc, time::Duration};

use openraft::{Config, SnapshotPolicy};

use crate::{
    env::Env,
    limits::{FRAME_ENTRIES_MAX, RAFT_QUEUE_MAX},
};

/// Longest wait until a follower has a snapshot, which is small, and durable.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(30);

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

/// As measured; each of these was a trap or a cost.
pub(super) fn config(timing: Timing) -> Result<Arc<Config>, String> {
    let config = Config {
        cluster_name: "ringlog".into(),
        heartbeat_interval: timing.heartbeat_ms,
        // Entries that were answered lately say as much as a heartbeat.
        heartbeat_min_interval: Some(timing.heartbeat_ms / 2),
        election_timeout_min: timing.election_ms_min,
        election_timeout_max: timing.election_ms_max,
        install_snapshot_timeout: SNAPSHOT_WAIT.as_millis() as u64,
        max_payload_entries: FRAME_ENTRIES_MAX as u64,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        purge_batch_size: 1,
        api_channel_size: Some(RAFT_QUEUE_MAX as u64),
        // On (the default) it loses acknowledged writes: a restarted leader leads on in its old term, and gives log ids
        // that its followers have already to other data.
        enable_leader_restore: Some(false),
        enable_pre_vote: Some(true),
        // Off (the default) the leader panics, or never sends another entry, when a follower has lost what it had
        // acknowledged (`network::PeerOf::note_answer`): one bad disk would take the shard from two good ones.
        allow_log_reversion: Some(true),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| error.to_string())
}
