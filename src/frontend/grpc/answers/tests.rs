//! Shares, waiting, short reads and eviction, in virtual time.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use super::*;
use crate::limits::CONNECTIONS_MAX;
use crate::limits::CONSUME_BYTES_DEFAULT;
use crate::sim::SimEnv;
use crate::sim::SimRuntime;
use crate::sim::World;

const MIB: usize = 1 << 20;

/// Answers as large as wanted, as many as there is room for.
fn take_all(answers: &Answers, wanted: usize) -> Vec<Held> {
    let filled = |room: Held| {
        let bytes = room.bytes();
        room.fit(bytes).unwrap()
    };
    std::iter::from_fn(|| answers.take(wanted).map(filled)).collect()
}

fn bytes(held: &[Held]) -> usize {
    held.iter().map(Held::bytes).sum()
}

/// One connection gets its eighth, the next ones an eighth of what is left, the last ones little, but never nothing; what is
/// given back is there again.
#[test]
fn shares() {
    SimRuntime::seeded(1).block_on(async {
        let pool = Rc::<Pool>::default();
        let first = Answers::new::<SimEnv>(&pool);
        let held = take_all(&first, CONSUME_BYTES_DEFAULT);
        assert_eq!(bytes(&held), ANSWER_BYTES_MAX / 8);
        assert_eq!(
            first.of_call().take(1).map(|held| held.bytes()),
            None,
            "another call of it has no share of its own"
        );

        let others: Vec<Answers> = (1..CONNECTIONS_MAX).map(|_| Answers::new::<SimEnv>(&pool)).collect();
        let mut of_others: Vec<Vec<Held>> = Vec::new();
        for answers in &others {
            of_others.push(take_all(answers, CONSUME_BYTES_DEFAULT));
            env::sleep::<SimEnv>(Duration::from_micros(SHORT_READ_PAUSE_US)).await;
        }
        assert_eq!(bytes(&of_others[0]), (ANSWER_BYTES_MAX - ANSWER_BYTES_MAX / 8) / 8 / MIB * MIB);
        assert!(of_others.iter().all(|held| bytes(held) >= ANSWER_BYTES_MIN));
        assert!(pool.held.get() <= ANSWER_BYTES_LIMIT, "{} bytes", pool.held.get());

        drop(of_others);
        assert_eq!((pool.held.get(), first.held()), (ANSWER_BYTES_MAX / 8, ANSWER_BYTES_MAX / 8));
        drop((held, others));
        assert_eq!(pool.held.get(), 0);
        drop(first);
        assert!(pool.connections.borrow().is_empty());
    });
}

/// An answer that is smaller than its room gives the rest back at once; one that is larger counts as what it is, as long as
/// there is not far too much.
#[test]
fn as_large_as_it_is() {
    SimRuntime::seeded(1).block_on(async {
        let pool = Rc::<Pool>::default();
        let answers = Answers::new::<SimEnv>(&pool);
        let small = answers.take(MIB).unwrap().fit(1_000).unwrap();
        let large = answers.take(1_000).unwrap().fit(MIB).unwrap();
        assert_eq!((pool.held.get(), answers.call.get()), (MIB + 1_000, MIB + 1_000));
        drop(small);
        drop(large);
        let others: Vec<Answers> = (0..200).map(|_| Answers::new::<SimEnv>(&pool)).collect();
        let large = |answers: &Answers| answers.take(1_000).ok_or(NoRoom)?.fit(MIB);
        let fit: Vec<Result<Held, NoRoom>> = others.iter().map(large).collect();
        assert!(fit[0].is_ok() && fit[199].is_err());
        assert!(pool.held.get() <= ANSWER_BYTES_LIMIT, "{} bytes", pool.held.get());
    });
}

/// Of answers that get less room than they want, for each of which a whole entry is read, only some are read at a time, however
/// many connections want one; the next one is read when one of them is there, or given up.
#[test]
fn few_short_reads() {
    SimRuntime::seeded(1).block_on(async {
        let pool = Rc::<Pool>::default();
        let greedy: Vec<Answers> = (0..100).map(|_| Answers::new::<SimEnv>(&pool)).collect();
        let _held: Vec<Vec<Held>> = greedy.iter().map(|answers| take_all(answers, MIB)).collect();
        let others: Vec<Answers> = (0..100).map(|_| Answers::new::<SimEnv>(&pool)).collect();
        let mut short = Vec::new();
        for answers in &others {
            short.extend(answers.take(MIB));
            assert!(answers.of_call().take(MIB).is_none(), "two at once");
            env::sleep::<SimEnv>(Duration::from_micros(SHORT_READ_PAUSE_US)).await;
        }
        assert_eq!((short.len(), pool.short_reads.get()), (SHORT_READS_MAX, SHORT_READS_MAX));
        let mut waits = pin!(others[99].clone().room(MIB));
        for _ in 0..3 {
            assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
            env::sleep::<SimEnv>(LOOK).await;
        }
        short.remove(0).fit(500).unwrap();
        let next = waits.await;
        assert!(next.bytes() < MIB && pool.short_reads.get() == SHORT_READS_MAX);
        drop((next, short));
        assert_eq!(pool.short_reads.get(), 0);
    });
}

/// A call of a connection that has its share waits: it gets room as soon as something goes out, and a little in any case, if
/// nothing of its own waits.
#[test]
fn waits_for_room() {
    SimRuntime::seeded(1).block_on(async {
        let pool = Rc::<Pool>::default();
        let answers = Answers::new::<SimEnv>(&pool);
        let mut held = take_all(&answers, MIB);
        let begin_us = World::current().now_us();

        let (full, empty) = (answers.clone(), answers.of_call());
        let little = empty.clone().room(MIB).await;
        assert_eq!(little.bytes(), LITTLE_BYTES);
        let waited = Duration::from_micros(World::current().now_us() - begin_us);
        assert!((PATIENCE..2 * PATIENCE).contains(&waited), "{waited:?}");

        let mut one_more = pin!(full.room(MIB));
        for _ in 0..10 {
            let waits = poll_fn(|cx| Poll::Ready(one_more.as_mut().poll(cx).is_pending())).await;
            assert!(waits, "its answers wait already");
            env::sleep::<SimEnv>(LOOK).await;
        }
        held.truncate(held.len() - 2);
        assert_eq!(one_more.await.bytes(), MIB);
    });
}

/// Where all memory is used, the connection that has not moved for longest is closed once somebody wants some; not one that
/// moves.
#[test]
fn whoever_does_not_move_goes() {
    SimRuntime::seeded(1).block_on(async {
        let pool = Rc::<Pool>::default();
        let stalled = Answers::new::<SimEnv>(&pool);
        let stuck = stalled.take(MIB).unwrap();
        env::sleep::<SimEnv>(LOOK).await;
        let others: Vec<Answers> = (0..200).map(|_| Answers::new::<SimEnv>(&pool)).collect();
        let mut fit: Vec<Held> = others.iter().filter_map(|answers| answers.take(1_000)?.fit(MIB).ok()).collect();
        let wanting = Answers::new::<SimEnv>(&pool);
        let filled = wanting.connection.pool.held.get();
        assert!(filled + MIB > ANSWER_BYTES_LIMIT);
        let rest = wanting.hold(ANSWER_BYTES_LIMIT - filled);
        let asks = others[150].of_call();
        let mut waits = pin!(asks.room(1_000));
        for _ in 0..12 {
            assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
            // The others move.
            for held in &mut fit {
                held.set(MIB - 1);
                held.set(MIB);
            }
            env::sleep::<SimEnv>(LOOK).await;
        }
        assert!(stalled.is_evicted(Waker::noop()));
        assert!(!others.iter().chain([&wanting]).any(|answers| answers.is_evicted(Waker::noop())));
        drop(stuck);
        drop(rest);
        assert_eq!(waits.await.bytes(), 1_000);
    });
}
