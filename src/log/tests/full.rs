//! A full disk with entries that wait for space, and behind them what Raft itself waits for: what frees space, and what must
//! not wait for ever.

use std::{future::Future, pin::Pin, time::Duration};

use futures_util::{FutureExt, future::join};
use openraft::AsyncRuntime;

use super::support::*;
use crate::{
    env::{self, Env, channel::OneshotReceiver, reserve, runtime::block_on},
    ids::{Index, NodeId, Term},
    limits::STUCK_BYTES_MAX,
    log::{HardState, LogError, LogPoint, Vote},
    sim::{SimDisk, TestEnv},
};

type Waiting = Vec<Pin<Box<OneshotReceiver<Result<(), LogError>>>>>;

/// Panics instead of hanging.
async fn guard<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    <TestEnv as Env>::Runtime::timeout(limit, future).await.unwrap_or_else(|_| panic!("waited too long: {what}"))
}

/// A log of some segments on a disk that is full, and who waits for its last entries, of two segments without a file.
async fn full(disk: &SimDisk) -> (TestLog, Waiting) {
    let log = open(disk).await;
    while log.segments().len() < 4 {
        append_one(&log, 1, 5_000).await;
        settle().await;
    }
    disk.set_capacity(Some(disk.used_bytes()));
    let mut waiting = Vec::new();
    while waiting.len() < 12 {
        let mut done = Box::pin(append(&log, vec![batch(&log, 0, 1, 5_000)]));
        settle().await;
        if done.as_mut().now_or_never().is_none() {
            waiting.push(done);
        }
    }
    let stuck = async {
        while !log.is_stuck() {
            env::sleep::<TestEnv>(Duration::from_millis(1)).await;
        }
    };
    guard("a full disk", stuck).await;
    (log, waiting)
}

fn vote() -> HardState {
    HardState { vote: Some(Vote { term: Term(7), node: NodeId(2), committed: false }), committed: None }
}

/// What was appended is done by now.
fn all_done(waiting: Waiting) {
    for done in waiting {
        assert!(matches!(done.now_or_never(), Some(Ok(Ok(())))), "it was not written");
    }
}

/// A purge does not wait for what waits for its space.
#[test]
fn purges() {
    block_on(async {
        let disk = SimDisk::new();
        let (log, waiting) = full(&disk).await;
        let (to, end) = (log.segments()[3].first.index, log.end());
        guard("a purge", log.purge(LogPoint { next: to, ..end })).await.unwrap();
        assert_eq!(log.first_index(), to);
        for done in waiting {
            guard("an entry", done).await.unwrap().unwrap();
        }
        assert!(!log.is_stuck() && log.fault().is_none());
        let (log, _) = open_with(&power_fails(&disk, 1).await, 64 << 10, 0).await.unwrap();
        assert_eq!((log.first_index(), log.end()), (to, end));
        read_all(&log, 1 << 20).await.unwrap();
    });
}

/// A vote gets the reserve, for what is in front of it: it does not overtake that, since Raft takes it for durable then.
#[test]
fn votes() {
    block_on(async {
        let disk = SimDisk::new();
        disk.keep_reserve(1 << 20);
        reserve::keep(&disk).await.unwrap();
        let (log, waiting) = full(&disk).await;
        guard("a vote", log.save_hard_state(vote())).await.unwrap();
        all_done(waiting);
        assert_eq!((log.hard_state(), log.flushed()), (vote(), log.last()));
    });
}

/// What a new leader has of earlier terms comes before its first entry, without which it commits nothing, and is sent and flushed
/// entry by entry: it gets the reserve, up to a bound.
#[test]
fn entries_of_earlier_terms() {
    const BYTES: usize = 40_000;
    block_on(async {
        let disk = SimDisk::new();
        disk.keep_reserve(2 * STUCK_BYTES_MAX as u64);
        reserve::keep(&disk).await.unwrap();
        let (log, waiting) = full(&disk).await;
        guard("a vote", log.save_hard_state(vote())).await.unwrap();
        all_done(waiting);
        let (mut written, most) = (0, STUCK_BYTES_MAX / BYTES + 1);
        // The last one waits for space; the others have been retried once each, after 200 ms, at most.
        while <TestEnv as Env>::Runtime::timeout(Duration::from_secs(5), append_one(&log, 1, BYTES)).await.is_ok() {
            written += 1;
        }
        assert!(written > most / 2 && written <= most, "{written} of at most {most}");
        disk.set_capacity(None);
        guard("the rest", append_one(&log, 1, BYTES)).await;
    });
}

/// Space that returns is seen also while a spare file is there that is too small for what was refused, and what waited got the reserve.
#[test]
fn space_returns_beside_a_small_spare() {
    block_on(async {
        let disk = SimDisk::new();
        disk.keep_reserve(1 << 20);
        reserve::keep(&disk).await.unwrap();
        let log = open(&disk).await;
        append_one(&log, 1, 40_000).await;
        settle().await;
        disk.set_capacity(Some(disk.used_bytes()));
        let mut large = Box::pin(append(&log, vec![batch(&log, 0, 1, 200_000)]));
        settle().await;
        assert!(log.is_stuck() && large.as_mut().now_or_never().is_none());
        // It is written before the vote is.
        guard("a vote", log.save_hard_state(vote())).await.unwrap();
        all_done(vec![large]);
        assert!(matches!(log.has_room(200_000), Err(LogError::Full { .. })));
        disk.set_capacity(None);
        let room = async {
            while log.has_room(200_000).is_err() {
                TestEnv::advance_us(300_000);
                settle().await;
            }
        };
        guard("room", room).await;
    });
}

/// A log that begins anew behind a snapshot needs nothing of what waits for space; a vote that waits is saved after that, and
/// both stay.
#[test]
fn begins_anew() {
    block_on(async {
        let disk = SimDisk::new();
        let (log, waiting) = full(&disk).await;
        let (end, used) = (log.end(), disk.used_bytes());
        let to = LogPoint { next: Index(end.next.0 + 10), offset: end.offset.plus(10), ..end };
        let (voted, begun) = guard("a beginning", join(log.save_hard_state(vote()), log.purge(to))).await;
        assert!(voted.is_ok() && begun.is_ok(), "{voted:?} {begun:?}");
        all_done(waiting);
        assert_eq!((log.first_index(), log.flushed(), log.unflushed_bytes()), (to.next, to.last(), 0));
        assert_eq!((log.segments().len(), log.is_stuck()), (0, false));
        assert!(disk.used_bytes() + (128 << 10) <= used, "{} of {used} bytes", disk.used_bytes());
        for _ in 0..20 {
            guard("an append", append_one(&log, 1, 5_000)).await;
            settle().await;
        }
        assert!(log.fault().is_none());
        let (log, _) = open_with(&power_fails(&disk, 1).await, 64 << 10, 0).await.unwrap();
        assert_eq!((log.first_index(), log.last().unwrap().index), (to.next, Index(to.next.0 + 19)));
        assert_eq!(log.hard_state(), vote());
        read_all(&log, 1 << 20).await.unwrap();
    });
}
