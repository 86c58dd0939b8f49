//! Producing: order, gathering, refusals, failures.

use std::{
    io,
    pin::{Pin, pin},
};

use super::*;
use crate::{
    budget::{Class, Use},
    limits::{ENTRIES_IN_FLIGHT_MAX, PRODUCE_QUEUE_BYTES_MAX, PROPOSE_BYTES_EAGER, UNFLUSHED_PART},
    log::LogError,
    sim::{Fault, Operation},
};

/// Calls get dense, ascending offsets, in their order; what is read back is what was sent.
#[test]
fn offsets_are_dense_and_in_order() {
    with_shard(|shard, _disk| async move {
        let mut acks = vec![];
        for n in 0..50u32 {
            acks.push(shard.produce(values((0..=n % 3).map(|k| format!("{n}.{k}")))));
        }
        let mut next = 0;
        for (n, ack) in acks.into_iter().enumerate() {
            let produced = ack.await.unwrap();
            assert_eq!(produced.base_offset, Offset(next));
            assert_eq!(produced.count, n as u32 % 3 + 1);
            assert_eq!(produced.durability, Durability::QuorumFlushed);
            next += u64::from(produced.count);
        }
        let expected = (0..50).flat_map(|n| (0..=n % 3).map(move |k| format!("{n}.{k}")));
        let read = read_all(&shard, Start::Earliest, u64::MAX, 1 << 20).await;
        assert!(read.iter().map(|record| record.value.clone()).eq(expected));
        assert!(read.iter().map(|record| record.offset).eq(0..next));
        assert!(read.iter().all(|record| record.timestamp_us > 0));
        let status = shard.status();
        assert_eq!((status.log_start, status.high_watermark, status.log_end), (Offset(0), Offset(next), Offset(next)));
        assert_eq!((status.leader, status.fault), (Some(NodeId(1)), None));
    });
}

/// With nothing in flight a request is proposed within the call; those that come meanwhile go as one entry.
#[test]
fn arrivals_gather() {
    with_shard(|shard, disk| async move {
        disk.hold();
        let before = shard.inner.group.applied_end();
        let acks: Vec<_> = (0..10).map(|n| shard.produce(value(&n.to_string()))).collect();
        assert_eq!(shard.inner.state.borrow().in_flight_bases(), [0]);
        settle().await;
        assert_eq!(shard.status().high_watermark, Offset(0), "nothing is committed before it is durable");
        disk.release();
        for (n, ack) in acks.into_iter().enumerate() {
            assert_eq!(ack.await.unwrap().base_offset, Offset(n as u64));
        }
        assert_eq!(shard.inner.group.applied_end().0 - before.0, 2, "ten requests made two entries");
    });
}

/// When much waits, more entries go beside the one in flight, but never more than the limit.
#[test]
fn eager_when_much_waits() {
    with_shard(|shard, disk| async move {
        disk.hold();
        let mut acks = vec![shard.produce(value("first"))];
        acks.push(shard.produce(large(PROPOSE_BYTES_EAGER / 2)));
        assert_eq!(shard.inner.state.borrow().in_flight_bases(), [0]);
        acks.push(shard.produce(large(PROPOSE_BYTES_EAGER / 2)));
        assert_eq!(shard.inner.state.borrow().in_flight_bases(), [0, 1]);
        for _ in 0..20 {
            acks.push(shard.produce(large(PROPOSE_BYTES_EAGER)));
        }
        assert_eq!(shard.inner.state.borrow().in_flight_bases().len(), ENTRIES_IN_FLIGHT_MAX);
        disk.release();
        for (n, ack) in acks.into_iter().enumerate() {
            assert_eq!(ack.await.unwrap().base_offset, Offset(n as u64));
        }
    });
}

/// A full queue refuses at once; what had been accepted is written.
#[test]
fn busy() {
    with_shard(|shard, disk| async move {
        disk.hold();
        let bytes = RECORD_BYTES_MAX - 100;
        let limit = PRODUCE_QUEUE_BYTES_MAX / bytes + ENTRIES_IN_FLIGHT_MAX + 1;
        let mut accepted = 0;
        // Each of them is waited for.
        let mut acks = Vec::new();
        for _ in 0..=limit {
            let mut ack = Box::pin(shard.produce(large(bytes)));
            match futures_util::FutureExt::now_or_never(&mut ack) {
                None => acks.push(ack),
                Some(answer) => {
                    assert!(matches!(answer, Err(ShardError::Busy { what: "too many bytes wait" })));
                    break;
                }
            }
            accepted += 1;
        }
        assert!(accepted > PRODUCE_QUEUE_BYTES_MAX / bytes - 1 && accepted < limit);
        disk.release();
        assert_eq!(acks.pop().unwrap().await.unwrap().base_offset, Offset(accepted as u64 - 1));
        assert_eq!(shard.status().log_end, Offset(accepted as u64));
        shard.produce(value("fits again")).await.unwrap();
    });
}

/// A deadline that cannot be met is refused before anything is written: when it has passed, when the
/// device is too slow for it, and when it passes in the queue.
#[test]
fn deadlines() {
    with_shard(|shard, disk| async move {
        let due = |in_us: u64| Some(TestEnv::monotonic_us() + in_us);
        let passed = Produce { deadline_us: Some(TestEnv::monotonic_us()), ..value("passed") };
        assert!(matches!(shard.produce(passed).await, Err(ShardError::Deadline)));

        disk.hold();
        let first = shard.produce(Produce { deadline_us: due(1_000_000), ..value("in flight") });
        let queued = shard.produce(Produce { deadline_us: due(1_000_000), ..value("queued") });
        let patient = shard.produce(value("patient"));
        settle().await;
        TestEnv::advance_us(2_000_000);
        disk.release();
        assert_eq!(first.await.unwrap().base_offset, Offset(0), "what is proposed is never cancelled");
        assert!(matches!(queued.await, Err(ShardError::Deadline)));
        assert_eq!(patient.await.unwrap().base_offset, Offset(1), "no hole");

        // That append took 2 s: a second is not enough now, an hour is, and after a while a second is again.
        let short = shard.produce(Produce { deadline_us: due(100_000), ..value("short") }).await;
        assert!(matches!(short, Err(ShardError::Deadline)));
        shard.produce(Produce { deadline_us: due(3_600_000_000), ..value("long") }).await.unwrap();
        TestEnv::advance_us(10_000_000);
        shard.produce(Produce { deadline_us: due(100_000), ..value("again") }).await.unwrap();
        assert_eq!(shard.status().log_end, Offset(4));
    });
}

/// Its answer, on any machine.
async fn answered<T>(future: impl Future<Output = T>) -> Option<T> {
    let long = Duration::from_secs(20);
    <<TestEnv as Env>::Runtime as openraft::AsyncRuntime>::timeout(long, future).await.ok()
}

/// What waits while nothing is committed is answered before its deadline, as not written, although nothing else happens; also when
/// one with an earlier deadline comes last.
#[test]
fn deadlines_in_the_queue() {
    with_shard(|shard, disk| async move {
        disk.hold();
        let due = |in_ms: u64| Some(TestEnv::monotonic_us() + in_ms * 1_000);
        let first = shard.produce(value("in flight"));
        let patient = shard.produce(value("patient"));
        let mut later = Box::pin(shard.produce(Produce { deadline_us: due(400), ..value("later") }));
        let sooner = shard.produce(Produce { deadline_us: due(200), ..value("sooner") });
        settle().await;
        TestEnv::advance_us(185_000);
        assert!(matches!(answered(sooner).await, Some(Err(ShardError::Deadline))));
        assert!(settled(&mut later).await.is_none());
        TestEnv::advance_us(200_000);
        assert!(matches!(answered(later).await, Some(Err(ShardError::Deadline))));
        disk.release();
        assert_eq!(first.await.unwrap().base_offset, Offset(0));
        assert_eq!(patient.await.unwrap().base_offset, Offset(1));
        assert_eq!(shard.status().log_end, Offset(2));
    });
}

/// Conditional appends: the right offset passes, also pipelined; a wrong one is refused, and when that depends on
/// what is not durable yet the refusal waits for it.
#[test]
fn expected_offsets() {
    with_shard(|shard, disk| async move {
        let expecting = |offset| Produce { expected_offset: Some(Offset(offset)), ..values(["a", "b"]) };
        let mismatch = |answer: Result<Produced, ShardError>, expected, actual| match answer {
            Err(ShardError::OffsetMismatch { expected: e, actual: a }) => {
                assert_eq!((e, a), (Offset(expected), Offset(actual)));
            }
            other => panic!("{other:?}"),
        };
        mismatch(shard.produce(expecting(7)).await, 7, 0);
        assert_eq!(shard.produce(expecting(0)).await.unwrap().base_offset, Offset(0));

        disk.hold();
        let in_flight = shard.produce(expecting(2));
        let mut stale = pin!(shard.produce(expecting(2)));
        let mut next = pin!(shard.produce(expecting(4)));
        let mut ahead = pin!(shard.produce(expecting(8)));
        assert!(settled(&mut stale).await.is_none(), "the record that it lost against is not durable yet");
        disk.release();
        assert_eq!(in_flight.await.unwrap().base_offset, Offset(2));
        mismatch(stale.as_mut().await, 2, 4);
        assert_eq!(next.as_mut().await.unwrap().base_offset, Offset(4));
        mismatch(ahead.as_mut().await, 8, 6);

        // Refused alone, with an entry in flight.
        disk.hold();
        let in_flight = shard.produce(large(PROPOSE_BYTES_EAGER));
        let mut stale = pin!(shard.produce(Produce { expected_offset: Some(Offset(6)), ..large(PROPOSE_BYTES_EAGER) }));
        assert!(settled(&mut stale).await.is_none());
        disk.release();
        mismatch(stale.as_mut().await, 6, 7);
        in_flight.await.unwrap();
        assert_eq!(shard.status().log_end, Offset(7));

        // And one that expects more than is in flight.
        disk.hold();
        let in_flight = shard.produce(large(PROPOSE_BYTES_EAGER));
        let mut ahead = pin!(shard.produce(Produce { expected_offset: Some(Offset(9)), ..large(PROPOSE_BYTES_EAGER) }));
        assert!(settled(&mut ahead).await.is_none());
        disk.release();
        in_flight.await.unwrap();
        mismatch(ahead.as_mut().await, 9, 8);
    });
}

/// Nothing is proposed behind a condition for whose refusal the leader asks the others, however much waits: it may come to doubt, and
/// look at the condition again when that is written.
#[test]
fn nothing_passes_a_condition() {
    with_shard(|shard, _disk| async move {
        let conditional = shard.produce(Produce { expected_offset: Some(Offset(1)), ..value("conditional") });
        let behind = shard.produce(large(PROPOSE_BYTES_EAGER));
        assert_eq!(shard.inner.state.borrow().in_flight_bases().len(), 1, "the question");
        assert!(matches!(conditional.await, Err(ShardError::OffsetMismatch { actual: Offset(0), .. })));
        assert_eq!(behind.await.unwrap().base_offset, Offset(0));
    });
}

/// Leader-memory acks come before the flush, and say what they are.
#[test]
fn leader_memory() {
    with_shard(|shard, disk| async move {
        disk.hold();
        let produce = |text| Produce { durability: Durability::LeaderMemory, ..value(text) };
        let produced = shard.produce(produce("a")).await.unwrap();
        assert_eq!((produced.base_offset, produced.durability), (Offset(0), Durability::LeaderMemory));
        assert_eq!(shard.status().high_watermark, Offset(0));
        disk.release();
        settle().await;
        assert_eq!(contents(&shard).await[&0], "a");
    });
}

/// An entry that lands elsewhere than predicted is void: its requests go again by themselves, in order.
#[test]
fn void_entries_go_again() {
    with_shard(|shard, disk| async move {
        disk.hold();
        let first = shard.produce(value("first"));
        // As if another leader's records had been expected and did not come.
        shard.inner.state.borrow_mut().mispredict(Offset(6));
        let second = shard.produce(large(PROPOSE_BYTES_EAGER));
        let conditional = shard.produce(Produce { expected_offset: Some(Offset(2)), ..large(PROPOSE_BYTES_EAGER) });
        let fourth = shard.produce(value("fourth"));
        assert_eq!(shard.inner.state.borrow().in_flight_bases(), [0, 6]);
        disk.release();
        assert_eq!(first.await.unwrap().base_offset, Offset(0));
        assert_eq!(second.await.unwrap().base_offset, Offset(1));
        assert_eq!(conditional.await.unwrap().base_offset, Offset(2), "it is looked at again");
        assert_eq!(fourth.await.unwrap().base_offset, Offset(3));
        assert_eq!(contents(&shard).await.len(), 4);
    });
}

/// What was in a void entry goes again when there is memory for another one: the void one may have kept its own.
#[test]
fn void_entries_wait_for_memory() {
    with_shard(|shard, disk| async move {
        let memory = shard.inner.group.log().memory().clone();
        disk.hold();
        let first = shard.produce(value("first"));
        shard.inner.state.borrow_mut().mispredict(Offset(6));
        let mut second = Box::pin(shard.produce(large(PROPOSE_BYTES_EAGER)));
        let others = memory.force(Use::Frames, memory.limit(Class::Replication));
        disk.release();
        first.await.unwrap();
        assert!(settled(&mut second).await.is_none(), "there is no memory for it");
        assert!(shard.inner.state.borrow().in_flight_bases().is_empty());
        drop(others);
        assert_eq!(second.await.unwrap().base_offset, Offset(1));
        settle().await;
        assert_eq!(memory.used(), 0);
    });
}

/// A full disk refuses, definitely; reads go on; when space returns so do writes, without a hole.
#[test]
fn full_disk() {
    with_shard(|shard, disk| async move {
        shard.produce(value("before")).await.unwrap();
        disk.set_capacity(Some(disk.used_bytes()));
        let mut written = 1;
        let refusal = loop {
            match shard.produce(large(100_000)).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
            assert!(written < 1000, "the disk never filled up");
        };
        assert!(matches!(refusal, ShardError::Full(_)), "{refusal:?}");
        let memory = Produce { durability: Durability::LeaderMemory, ..large(100_000) };
        assert!(matches!(shard.produce(memory).await, Err(ShardError::Full(_))), "not even by this");
        assert_eq!(contents(&shard).await.len(), written);
        assert_eq!(shard.status().fault, None);

        disk.set_capacity(None);
        let produced = loop {
            // Space is asked for ahead of need, by the log itself.
            settle().await;
            if let Ok(produced) = shard.produce(value("after")).await {
                break produced;
            }
        };
        assert_eq!(produced.base_offset, Offset(written as u64));
    });
}

/// A shard closes, and its files can be removed, while a batch waits for space for ever: that it goes may be what makes some.
#[test]
fn closes_with_what_waits_for_space() {
    with_shard(|shard, disk| async move {
        shard.produce(value("before")).await.unwrap();
        settle().await;
        disk.set_capacity(Some(disk.used_bytes()));
        // More than the first segment has room for.
        let mut waiting = Box::pin(shard.produce(large(1_040_000)));
        assert!(settled(&mut waiting).await.is_none(), "taken on credit, as the disk was not known to be full");
        let close =
            <<TestEnv as Env>::Runtime as openraft::AsyncRuntime>::timeout(Duration::from_secs(20), shard.close());
        assert!(close.await.expect("it waits no longer").is_err(), "not cleanly");
        assert!(waiting.await.unwrap_err().maybe_written());
        let used = disk.used_bytes();
        disk.set_capacity(None);
        crate::env::sleep::<TestEnv>(Duration::from_millis(500)).await;
        assert_eq!(disk.used_bytes(), used, "nothing is written any more");
    });
}

/// A failed write stops the shard: what was proposed may be written, what waited is not, nothing is served any more.
#[test]
fn fail_stop() {
    with_shard(|shard, disk| async move {
        shard.produce(value("safe")).await.unwrap();
        disk.hold();
        for operation in [Operation::AppendDurable, Operation::Write, Operation::Sync] {
            let path_contains = "/data/shards/1".to_owned();
            disk.plant(Fault { operation, path_contains, skip: 0, times: u64::MAX, error: io::ErrorKind::Other });
        }
        let proposed = shard.produce(value("proposed"));
        let waiting = shard.produce(value("waiting"));
        settle().await;
        disk.release();
        match proposed.await {
            Err(ShardError::Failed { maybe_written: true, cause }) => assert!(cause.contains(".store"), "{cause}"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(waiting.await, Err(ShardError::Failed { maybe_written: false, .. })));
        assert!(matches!(shard.produce(value("later")).await, Err(ShardError::Failed { maybe_written: false, .. })));
        assert!(matches!(shard.consume(at(0)).await, Err(ShardError::Failed { .. })));
        assert!(matches!(shard.trim(Offset(1)).await, Err(ShardError::Failed { .. })));
        assert!(shard.status().fault.unwrap().contains(".store"));
    });
}

/// What is refused for its offset, in an entry of which nobody knows whether it is written, is answered with that entry: handed back
/// it would say that what is behind it was not written, and that would be sent again.
#[test]
fn refused_in_an_entry_of_unknown_fate() {
    with_shard(|shard, disk| async move {
        shard.produce(value("safe")).await.unwrap();
        disk.hold();
        let first = shard.produce(value("first"));
        let conditional = shard.produce(Produce { expected_offset: Some(Offset(0)), ..value("conditional") });
        let behind = shard.produce(value("behind"));
        settle().await;
        let path_contains = "/data/shards/1".to_owned();
        let operation = Operation::AppendDurable;
        disk.plant(Fault { operation, path_contains, skip: 1, times: u64::MAX, error: io::ErrorKind::Other });
        disk.release();
        assert_eq!(first.await.unwrap().base_offset, Offset(1));
        assert!(matches!(behind.await, Err(ShardError::Failed { maybe_written: true, .. })));
        assert!(matches!(conditional.await, Err(ShardError::Busy { .. })));
    });
}

type Answering = Pin<Box<dyn Future<Output = Result<Produced, ShardError>>>>;

/// A request whose entry is void, and one in the entry behind, which is in flight: the disk is held.
async fn void_and_behind(shard: &TestShard, disk: &SimDisk) -> (Answering, Answering) {
    disk.hold();
    let first = shard.produce(value("first"));
    settle().await;
    shard.inner.state.borrow_mut().mispredict(Offset(6));
    let void = shard.produce(large(PROPOSE_BYTES_EAGER));
    settle().await;
    // What is being written goes on, and what follows waits.
    disk.release();
    disk.hold();
    assert_eq!(first.await.unwrap().base_offset, Offset(0));
    settle().await;
    let behind = shard.produce(large(PROPOSE_BYTES_EAGER));
    settle().await;
    assert_eq!(shard.inner.state.borrow().in_flight_bases(), [6, 7]);
    disk.release();
    disk.hold();
    settle().await;
    assert_eq!(shard.inner.state.borrow().in_flight_bases(), [7], "the one before is void");
    (Box::pin(void), Box::pin(behind))
}

/// The same of a void entry, whose requests would go again: they do not behind one that may be written.
#[test]
fn void_before_an_entry_of_unknown_fate() {
    with_shard(|shard, disk| async move {
        let (void, behind) = void_and_behind(&shard, &disk).await;
        let path_contains = "/data/shards/1".to_owned();
        let operation = Operation::AppendDurable;
        disk.plant(Fault { operation, path_contains, skip: 0, times: u64::MAX, error: io::ErrorKind::Other });
        disk.release();
        assert!(matches!(behind.await, Err(ShardError::Failed { maybe_written: true, .. })));
        let refused = void.await;
        assert!(matches!(refused, Err(ShardError::Busy { .. })), "{refused:?}");
    });
}

/// The same when the one behind is written: the log had grown by just what the void one has.
#[test]
fn void_before_an_entry_that_fits() {
    with_shard(|shard, disk| async move {
        disk.hold();
        let first = shard.produce(values(["first", "second"]));
        shard.inner.state.borrow_mut().mispredict(Offset(1));
        let void = shard.produce(large(PROPOSE_BYTES_EAGER));
        let behind = shard.produce(large(PROPOSE_BYTES_EAGER));
        assert_eq!(shard.inner.state.borrow().in_flight_bases(), [0, 1, 2]);
        disk.release();
        assert_eq!(first.await.unwrap().base_offset, Offset(0));
        assert_eq!(behind.await.unwrap().base_offset, Offset(2));
        let refused = void.await;
        assert!(matches!(refused, Err(ShardError::Busy { .. })), "{refused:?}");
        assert_eq!(shard.produce(value("last")).await.unwrap().base_offset, Offset(3), "it was not written behind");
    });
}

/// The same when a panic stops the replica: the void one is not handed back as one behind which nothing is written.
#[test]
fn void_before_a_panic() {
    with_shard(|shard, disk| async move {
        let (void, behind) = void_and_behind(&shard, &disk).await;
        shard.inner.note_panic();
        let refused = void.await;
        assert!(matches!(refused, Err(ShardError::Busy { .. })), "{refused:?}");
        assert!(matches!(behind.await, Err(ShardError::Failed { maybe_written: true, .. })));
        disk.release();
    });
}

/// Closing finishes what is in flight and waiting, refuses what comes, and leaves a log that opens again.
#[test]
fn close() {
    with_shard(|shard, disk| async move {
        disk.hold();
        let acks: Vec<_> = (0..5).map(|n| shard.produce(value(&n.to_string()))).collect();
        let mut closing = pin!(shard.close());
        assert!(settled(&mut closing).await.is_none());
        let refused = shard.produce(value("late")).await;
        assert!(matches!(refused, Err(ShardError::Closing { maybe_written: false })));
        disk.release();
        closing.await.unwrap();
        for (n, ack) in acks.into_iter().enumerate() {
            assert_eq!(ack.await.unwrap().base_offset, Offset(n as u64));
        }
        shard.close().await.unwrap();

        let shard = open(&disk).await;
        assert!(shard.recovered().clean);
        assert_eq!(contents(&shard).await.into_values().collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
        assert_eq!(shard.produce(value("5")).await.unwrap().base_offset, Offset(5));
    });
}

/// While too much is not flushed on this node, requests are refused, definitely and by the node's name, and what waits is not
/// proposed, although nothing is in flight. It goes on when enough is flushed; nothing is kept in the end.
#[test]
fn disk_behind() {
    with_shard(|shard, disk| async move {
        let memory = shard.inner.group.log().memory().clone();
        disk.hold();
        let first = shard.produce(value("a"));
        let mut second = Box::pin(shard.produce(value("b")));
        let behind = memory.force(Use::Unflushed, memory.limit(Class::Client) / UNFLUSHED_PART);
        let error = shard.produce(value("c")).await.unwrap_err();
        assert!(matches!(error, ShardError::DiskBehind { node: NodeId(1), .. }), "{error}");
        disk.release();
        assert_eq!(first.await.unwrap().base_offset, Offset(0));
        assert!(settled(&mut second).await.is_none(), "it waits");
        assert!(shard.inner.state.borrow().in_flight_bases().is_empty());
        drop(behind);
        assert_eq!(second.await.unwrap().base_offset, Offset(1));
        assert_eq!(shard.produce(value("d")).await.unwrap().base_offset, Offset(2));
        settle().await;
        assert_eq!(memory.used(), 0);
    });
}

/// What waits for flushes is answered when the log stops meanwhile, although nothing will be flushed any more.
#[test]
fn stops_while_behind() {
    with_shard(|shard, disk| async move {
        let log = shard.inner.group.log().clone();
        let memory = log.memory().clone();
        disk.hold();
        let first = shard.produce(value("a"));
        let mut second = Box::pin(shard.produce(value("b")));
        let _behind = memory.force(Use::Unflushed, memory.limit(Class::Client) / UNFLUSHED_PART);
        disk.release();
        first.await.unwrap();
        assert!(settled(&mut second).await.is_none(), "it waits");
        log.condemn(LogError::Corrupt { file: "store".into(), position: 0, what: "test".into() });
        let error = settled(&mut second).await.expect("answered").unwrap_err();
        let definite = matches!(
            error,
            ShardError::Failed { maybe_written: false, .. } | ShardError::Damaged { .. } | ShardError::NotLeader { .. }
        );
        assert!(definite, "{error}");
    });
}

/// Where the reactor has no memory for a request it is refused at once, and the same one goes in later.
#[test]
fn no_memory() {
    with_shard(|shard, _disk| async move {
        let memory = shard.inner.group.log().memory().clone();
        let others = memory.force(Use::Received, memory.limit(Class::Client));
        let (error, produce) = *shard.submit(value("a")).map(drop).unwrap_err();
        assert!(matches!(error, ShardError::NoMemory));
        drop(others);
        assert_eq!(shard.produce(produce).await.unwrap().base_offset, Offset(0));
        settle().await;
        assert_eq!((memory.used(), memory.used_for(Use::Queued)), (0, 0));
    });
}
