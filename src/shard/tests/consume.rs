//! Consuming: every start, every limit, waiting, and being overtaken.

use std::{pin::pin, task::Poll};

use super::*;
use crate::{
    env::{self, channel},
    sim::{Fault, Operation},
};

fn stamped(timestamp_us: i64) -> Produce {
    let records = encode(vec![Record { timestamp_us, ..Record::default() }]);
    Produce { records, ..value("") }
}

fn waiting(start: Start) -> Consume {
    Consume { wait: Duration::from_secs(3600), ..from(start) }
}

async fn offsets(shard: &TestShard, consume: Consume) -> Vec<u64> {
    let consumed = shard.consume(consume).await.unwrap();
    decode(&consumed).iter().map(|record| record.offset).collect()
}

fn assert_out_of_range(answer: Result<Consumed, ShardError>, expected: (u64, u64, u64)) {
    match answer {
        Err(ShardError::OutOfRange { offset, log_start, high_watermark }) => {
            assert_eq!((offset.0, log_start.0, high_watermark.0), expected);
        }
        other => panic!("{other:?}"),
    }
}

/// Every start means what it says; the high watermark itself is in range, beyond is not.
#[test]
fn starts() {
    with_shard(|shard, _disk| async move {
        for timestamp_us in [10, 20, 15, 30] {
            shard.produce(stamped(timestamp_us)).await.unwrap();
        }
        assert_eq!(offsets(&shard, from(Start::Earliest)).await, [0, 1, 2, 3]);
        assert_eq!(offsets(&shard, from(Start::Latest)).await, Vec::<u64>::new());
        assert_eq!(offsets(&shard, at(2)).await, [2, 3]);
        assert_eq!(offsets(&shard, at(4)).await, Vec::<u64>::new());
        assert_out_of_range(shard.consume(at(5)).await, (5, 0, 4));
        assert_out_of_range(shard.consume(at(u64::MAX)).await, (u64::MAX, 0, 4));
        for (timestamp_us, first) in [(i64::MIN, 0), (10, 0), (11, 1), (16, 1), (21, 3), (30, 3)] {
            assert_eq!(offsets(&shard, from(Start::Timestamp(timestamp_us))).await[0], first, "{timestamp_us}");
        }
        let after = shard.consume(from(Start::Timestamp(31))).await.unwrap();
        assert_eq!((after.count, after.next_offset), (0, Offset(4)));
    });
}

/// An empty shard has nothing, and says where to go on.
#[test]
fn empty() {
    with_shard(|shard, _disk| async move {
        for start in [Start::Earliest, Start::Latest, Start::Offset(Offset(0)), Start::Timestamp(0)] {
            let consumed = shard.consume(from(start)).await.unwrap();
            assert_eq!((consumed.count, consumed.next_offset), (0, Offset(0)), "{start:?}");
        }
        assert_out_of_range(shard.consume(at(1)).await, (1, 0, 0));
        assert_eq!(shard.trim(Offset(0)).await.unwrap(), Offset(0));
    });
}

/// However it is cut, the records are the same, and a reader that goes on does not search for its place.
#[test]
fn limits() {
    with_shard(|shard, _disk| async move {
        let mut acks = vec![];
        for n in 0..40 {
            acks.push(shard.produce(values((0..n % 7 + 1).map(|k| format!("{n}.{k}").repeat(n)))));
            if n % 5 == 0 {
                acks.pop().unwrap().await.unwrap();
            }
        }
        for ack in acks {
            ack.await.unwrap();
        }
        let whole = read_all(&shard, Start::Earliest, u64::MAX, 1 << 20).await;
        for (records_max, bytes_max) in [(1, 1 << 20), (3, 1 << 20), (u64::MAX, 1), (u64::MAX, 1000), (4, 300)] {
            assert_eq!(read_all(&shard, Start::Earliest, records_max, bytes_max).await, whole);
        }
        let none = shard.consume(Consume { records_max: 0, ..at(3) }).await.unwrap();
        assert_eq!((none.count, none.next_offset), (0, Offset(3)));
        for start in [0, 1, 7, 50] {
            let limited = shard.consume(Consume { records_max: 5, bytes_max: 400, ..at(start) }).await.unwrap();
            let bytes: usize = limited.chunks.iter().map(Bytes::len).sum();
            assert!(limited.count <= 5 && (bytes <= 400 || limited.count == 1));
        }
    });
}

/// A consumer at the end is woken by the next commit; without one it answers with nothing when its time is over.
#[test]
fn waits() {
    with_shard(|shard, _disk| async move {
        shard.produce(value("a")).await.unwrap();
        for start in [Start::Latest, Start::Offset(Offset(1))] {
            let end = shard.status().high_watermark;
            let start = if start == Start::Offset(Offset(1)) { Start::Offset(end) } else { start };
            let mut consumer = pin!(shard.consume(waiting(start)));
            assert!(settled(&mut consumer).await.is_none());
            shard.produce(value("b")).await.unwrap();
            let consumed = consumer.await.unwrap();
            assert_eq!((consumed.count, consumed.next_offset), (1, end.plus(1)));
        }
        let end = shard.status().high_watermark;
        let consumed = shard.consume(Consume { wait: Duration::from_millis(2), ..from(Start::Latest) }).await.unwrap();
        assert_eq!((consumed.count, consumed.next_offset), (0, end));
    });
}

/// A consumer from a time on that is still to come gets nothing that is older, however it comes.
#[test]
fn waits_for_a_time() {
    with_shard(|shard, _disk| async move {
        shard.produce(stamped(10)).await.unwrap();
        let mut consumer = pin!(shard.consume(waiting(Start::Timestamp(30))));
        assert!(settled(&mut consumer).await.is_none());
        for older in [20, 29] {
            shard.produce(stamped(older)).await.unwrap();
            assert!(settled(&mut consumer).await.is_none(), "{older} is not asked for");
        }
        shard.produce(stamped(30)).await.unwrap();
        let consumed = consumer.await.unwrap();
        assert_eq!((consumed.count, consumed.next_offset), (1, Offset(4)));
        let brief = Consume { wait: Duration::from_millis(2), ..from(Start::Timestamp(31)) };
        let mut consumer = pin!(shard.consume(brief));
        assert!(settled(&mut consumer).await.is_none());
        shard.produce(stamped(11)).await.unwrap();
        let consumed = consumer.await.unwrap();
        assert_eq!((consumed.count, consumed.next_offset), (0, Offset(5)));
    });
}

/// Nothing is seen before it is durable.
#[test]
fn uncommitted_records_are_not_seen() {
    with_shard(|shard, disk| async move {
        disk.hold();
        let ack = shard.produce(value("a"));
        let mut consumer = pin!(shard.consume(waiting(Start::Earliest)));
        assert!(settled(&mut consumer).await.is_none());
        assert_eq!(shard.consume(at(0)).await.unwrap().count, 0);
        disk.release();
        assert_eq!(consumer.await.unwrap().count, 1);
        ack.await.unwrap();
    });
}

/// Trimmed records are gone for consumers at once; one that waits below the new log start is told.
#[test]
fn trims() {
    with_shard(|shard, _disk| async move {
        shard.produce(values(["0", "1", "2", "3"])).await.unwrap();
        assert_out_of_range(shard.trim(Offset(5)).await.map(|_| unreachable!()), (5, 0, 4));
        assert_eq!(shard.trim(Offset(2)).await.unwrap(), Offset(2));
        assert_eq!(shard.trim(Offset(1)).await.unwrap(), Offset(2), "never down");
        assert_eq!(offsets(&shard, from(Start::Earliest)).await, [2, 3]);
        assert_out_of_range(shard.consume(at(1)).await, (1, 2, 4));

        let mut consumer = pin!(shard.consume(waiting(Start::Latest)));
        assert!(settled(&mut consumer).await.is_none());
        // Both happen before the consumer runs again.
        let produced = shard.produce(value("4"));
        shard.inner.group.wait_above(Offset(4)).await;
        let overtaken = shard.trim(Offset(5));
        let (consumed, log_start) = futures_util::future::join(consumer, overtaken).await;
        assert_eq!(log_start.unwrap(), Offset(5));
        if let Err(error) = consumed {
            assert!(matches!(error, ShardError::OutOfRange { .. }), "{error:?}");
        }
        produced.await.unwrap();
        assert_out_of_range(shard.consume(at(4)).await, (4, 5, 5));
        let status = shard.status();
        assert_eq!((status.log_start, status.high_watermark), (Offset(5), Offset(5)));
        assert_eq!(shard.produce(value("5")).await.unwrap().base_offset, Offset(5));
    });
}

/// A start by timestamp is right also when newer timestamps were below the log start.
#[test]
fn timestamps_after_a_trim() {
    with_shard(|shard, _disk| async move {
        for timestamp_us in [100, 1, 2, 50, 3] {
            shard.produce(stamped(timestamp_us)).await.unwrap();
        }
        shard.trim(Offset(1)).await.unwrap();
        assert_eq!(offsets(&shard, from(Start::Timestamp(40))).await, [3, 4]);
        assert_eq!(offsets(&shard, from(Start::Timestamp(0))).await[0], 1);
        assert_eq!(offsets(&shard, from(Start::Timestamp(60))).await, Vec::<u64>::new());
    });
}

/// Who has no room for much gets small batches that are in memory, whole, and hears of others.
#[test]
fn small_ones_only() {
    TestEnv::reset(1);
    block_on(async {
        for (tail_bytes, is_recent) in [(64 << 10, true), (0, false)] {
            let (options, disk) = (options(), SimDisk::new());
            let peers = crate::peer::Peers::alone(options.node);
            let shard = TestShard::open(disk, TailBudget::new(tail_bytes), peers, options).await.unwrap();
            let waits = |offset, bytes_max| {
                shard.consume(Consume { if_small: true, bytes_max, ..waiting(Start::Offset(Offset(offset))) })
            };
            let produces = async {
                env::yield_now().await;
                shard.produce(values(["a", "b"])).await.unwrap();
            };
            let (small, ()) = futures_util::join!(waits(0, 1_000), produces);
            let small = small.unwrap();
            assert_eq!((small.count, small.leaves_some()), if is_recent { (2, false) } else { (0, true) });
            // A part of a batch is not a small one.
            for part in [waits(1, 1_000).await.unwrap(), waits(0, 10).await.unwrap()] {
                assert_eq!((part.count, part.chunks.len(), part.leaves_some()), (0, 0, true));
            }
            assert_eq!(offsets(&shard, Consume { bytes_max: 10, ..at(1) }).await, [1], "in memory or not");
        }
    });
}

/// A consumer that waits for a time looks at each entry once, also when the log's index does not help, because a record of the
/// future was trimmed: what it has looked at is not read from the device again.
#[test]
fn waits_for_a_time_after_a_trim() {
    TestEnv::reset(1);
    let disk = SimDisk::new();
    block_on(async {
        let options = options();
        let peers = crate::peer::Peers::alone(options.node);
        let shard = TestShard::open(disk.clone(), TailBudget::new(64 << 10), peers, options).await.unwrap();
        let large = |timestamp_us| {
            let records = encode(vec![Record { timestamp_us, value: vec![7; 10_000].into(), ..Record::default() }]);
            Produce { records, ..value("") }
        };
        shard.produce(stamped(1_000)).await.unwrap();
        for _ in 0..30 {
            shard.produce(large(10)).await.unwrap();
        }
        shard.trim(Offset(1)).await.unwrap();
        let consume = shard.consume(waiting(Start::Timestamp(30)));
        let (send, mut consumer) = channel::oneshot();
        // On its own: it reads.
        env::spawn::<TestEnv>(async move { drop(send.send(consume.await)) });
        assert!(settled(&mut consumer).await.is_none());
        let path_contains = "/data/shards/1".to_owned();
        let (operation, error) = (Operation::Read, std::io::ErrorKind::Other);
        disk.plant(Fault { operation, path_contains, skip: 0, times: u64::MAX, error });
        for _ in 0..5 {
            shard.produce(large(20)).await.unwrap();
            let early = settled(&mut consumer).await;
            assert!(early.is_none(), "{early:?}");
        }
        shard.produce(large(30)).await.unwrap();
        let consumed = consumer.await.unwrap().unwrap();
        assert_eq!((consumed.count, consumed.next_offset), (1, Offset(37)));
    });
}

/// Where the log is purged while a time is looked up, the answer begins with the first record that is left, not behind the last.
#[test]
fn a_time_beside_a_trim() {
    const RECORDS: u64 = 30;
    TestEnv::reset(1);
    block_on(async {
        let options = options();
        let open = async |disk: &SimDisk, tail_bytes| {
            let peers = crate::peer::Peers::alone(options.node);
            TestShard::open(disk.clone(), TailBudget::new(tail_bytes), peers, options.clone()).await.unwrap()
        };
        let made = SimDisk::new();
        let shard = open(&made, 64 << 10).await;
        for timestamp_us in 0..RECORDS as i64 {
            let record = Record { timestamp_us, value: vec![7; 150_000].into(), ..Record::default() };
            shard.produce(Produce { records: encode(vec![record]), ..value("") }).await.unwrap();
        }
        shard.close().await.unwrap();
        for turns in 0..60 {
            let shard = open(&made.crash(0).with_latency(turns), 0).await;
            let mut looking = pin!(shard.consume(waiting(Start::Timestamp(0))));
            // It goes on only when it is polled: the log is purged at any of its steps.
            for _ in 0..turns {
                if futures_util::poll!(looking.as_mut()).is_ready() {
                    return assert!(turns > 5, "it is there after {turns} turns");
                }
                env::yield_now().await;
            }
            assert!(shard.status().segments > 3);
            assert_eq!(shard.trim(Offset(RECORDS - 3)).await.unwrap(), Offset(RECORDS - 3));
            while shard.status().segments > 3 {
                env::yield_now().await;
            }
            let mut more_turns = 0;
            let consumed = loop {
                match futures_util::poll!(looking.as_mut()) {
                    Poll::Ready(consumed) => break consumed.unwrap(),
                    Poll::Pending => env::yield_now().await,
                }
                more_turns += 1;
                assert!(more_turns < 10_000, "after {turns} turns it waits, though there are records");
            };
            assert!(consumed.count > 0, "after {turns} turns it begins at {}", consumed.next_offset);
        }
        panic!("it took more than 60 turns");
    });
}

/// A shard that closes lets its waiting consumers go.
#[test]
fn close_ends_waiting() {
    with_shard(|shard, _disk| async move {
        let mut consumer = pin!(shard.consume(waiting(Start::Latest)));
        assert!(settled(&mut consumer).await.is_none());
        shard.close().await.unwrap();
        assert!(matches!(consumer.await, Err(ShardError::Closing { maybe_written: false })));
    });
}
