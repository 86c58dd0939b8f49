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
            // As if its pause were over: in that time of all of them what the first ones have would be old.
            pool.short_read_us.set(0);
        }
        assert_eq!(bytes(&of_others[0]), (ANSWER_BYTES_MAX - ANSWER_BYTES_MAX / 8) / 8 / MIB * MIB);
        assert!(of_others.iter().all(|held| bytes(held) >= ANSWER_BYTES_MIN));
        assert!(pool.held.get() <= ANSWER_BYTES_LIMIT, "{} bytes", pool.held.get());

        drop(of_others);
        assert_eq!((pool.held.get(), first.held()), (ANSWER_BYTES_MAX / 8, ANSWER_BYTES_MAX / 8));
        drop((held, others));
        assert_eq!(pool.held.get(), 0);
        drop(first);
        assert!(pool.holders.is_empty());
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

type Room = Pin<Box<dyn Future<Output = Held>>>;

async fn is_ready(room: &mut Room) -> bool {
    poll_fn(|cx| Poll::Ready(room.as_mut().poll(cx).is_ready())).await
}

/// Of those that wait for a little room, the next one has it when the pause is over in which the former has read; also when the
/// one that waits for the end of the pause gives up.
#[test]
fn short_reads_follow_each_other() {
    SimRuntime::seeded(1).block_on(async {
        let pool = Rc::<Pool>::default();
        let greedy: Vec<Answers> = (0..80).map(|_| Answers::new::<SimEnv>(&pool)).collect();
        let _held: Vec<Vec<Held>> = greedy.iter().map(|answers| take_all(answers, ANSWER_BYTES_MIN)).collect();
        let begin_us = World::current().now_us();
        let others: Vec<Answers> = (0..21).map(|_| Answers::new::<SimEnv>(&pool)).collect();
        let reads = others.iter().map(|answers| async move {
            let read = answers.clone().room(MIB).await;
            assert!(read.bytes() < MIB);
            env::sleep::<SimEnv>(Duration::from_millis(1)).await;
        });
        futures_util::future::join_all(reads).await;
        let taken_us = World::current().now_us() - begin_us;
        assert!((20 * SHORT_READ_PAUSE_US..22 * SHORT_READ_PAUSE_US).contains(&taken_us), "{taken_us} µs for 21 reads");

        // An answer that is there already does not wait with them, if nothing else of its connection does.
        let answers = Answers::new::<SimEnv>(&pool);
        let there = answers.unforeseen(MIB).unwrap();
        assert!(answers.of_call().unforeseen(1).is_err());
        drop(there);

        // The first waits for the end of the pause, the second for its turn.
        let [mut first, mut second] = [1, 0].map(|i: usize| -> Room { Box::pin(others[i].clone().room(MIB)) });
        let begin_us = World::current().now_us();
        assert!(!is_ready(&mut first).await && !is_ready(&mut second).await);
        env::sleep::<SimEnv>(Duration::from_millis(1)).await;
        assert!(!is_ready(&mut first).await);
        drop(first);
        assert_eq!(second.await.bytes(), ANSWER_BYTES_MIN);
        assert!(World::current().now_us() - begin_us <= 2 * SHORT_READ_PAUSE_US);
    });
}

/// Clients that pause take memory from others for some seconds and not for ever, whatever else they do on their connections;
/// when there is no more, those that hold most of it for long are closed.
#[test]
fn paused_clients() {
    SimRuntime::seeded(1).block_on(async {
        let pool = Rc::<Pool>::default();
        let fill = || -> Vec<(Answers, Vec<Held>)> {
            let paused = (0..80).map(|_| Answers::new::<SimEnv>(&pool));
            paused.map(|answers| (answers.clone(), take_all(&answers, ANSWER_BYTES_MIN))).collect()
        };
        let mut paused = fill();
        let reads = Answers::new::<SimEnv>(&pool);
        assert!(reads.take(MIB).is_none_or(|room| room.bytes() == ANSWER_BYTES_MIN));
        for _ in 0..10 {
            env::sleep::<SimEnv>(LOOK).await;
            for (answers, _) in &paused {
                drop(answers.of_call().hold(1_000));
            }
        }
        for _ in 0..100 {
            assert_eq!(reads.take(MIB).unwrap().bytes(), MIB);
        }
        assert!(!paused.iter().any(|(answers, _)| answers.is_evicted(Waker::noop())));

        // They stay, and so many again pause.
        paused.append(&mut fill());
        let left = ANSWER_BYTES_LIMIT - pool.held.get();
        assert!(left < 2 * MIB, "{left} bytes");
        let large = paused[0].0.hold(left);
        let mut waits = pin!(reads.clone().room(MIB));
        for waited in 0.. {
            assert!(waited < 4, "nobody makes room");
            if poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_ready())).await {
                break;
            }
            env::sleep::<SimEnv>(LOOK).await;
            paused.retain(|(answers, _)| !answers.is_evicted(Waker::noop()));
        }
        assert!(paused.len() >= 156, "{} are left", paused.len());
        drop(large);
    });
}

/// Where all memory is used, the connection that holds most of what is old is closed once somebody wants some; not one whose answers
/// go out.
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
