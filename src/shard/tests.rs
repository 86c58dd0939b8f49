//! Whole shards on a simulated disk: the log and Raft below are the real ones.

mod consume;
mod crash;
mod damage;
mod produce;
mod retain;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use prost::Message;

use super::*;
use crate::{
    env::runtime::block_on,
    format::records::Records,
    ids::{NodeId, ShardUid},
    limits::{RECORD_BYTES_MAX, SEGMENT_BYTES_MIN, TAIL_BYTES_MAX},
    proto::ringlog::v1::{ConsumeResponse, ProduceRequest, Record},
    sim::{SimDisk, TestEnv},
};

type TestShard = Shard<TestEnv>;

fn options() -> ShardOptions {
    ShardOptions {
        dir: "/data/shards/1".into(),
        uid: ShardUid(1),
        node: NodeId(1),
        segment_bytes_max: SEGMENT_BYTES_MIN,
        slot: 0,
        founders: Some([NodeId(1)].into()),
        owner: 0,
        preferred: true,
        retention_bytes_max: 0,
        retention_age_ms_max: 0,
    }
}

async fn open(disk: &SimDisk) -> TestShard {
    open_with(disk, options()).await
}

async fn open_with(disk: &SimDisk, options: ShardOptions) -> TestShard {
    Shard::open(disk.clone(), TailBudget::new(TAIL_BYTES_MAX), crate::peer::Peers::alone(options.node), options)
        .await
        .unwrap()
}

/// Runs a test on a new shard.
fn with_shard<F: Future<Output = ()>>(test: impl FnOnce(TestShard, SimDisk) -> F) {
    TestEnv::reset(1);
    let disk = SimDisk::new();
    block_on(async {
        let shard = open(&disk).await;
        test(shard, disk).await;
    });
}

fn encode(records: Vec<Record>) -> Records {
    let request = ProduceRequest { records, ..ProduceRequest::default() };
    Records::parse(request.encode_to_vec().into(), RECORD_BYTES_MAX).unwrap().1
}

/// A request with one record for each value.
fn values<V: AsRef<[u8]>>(values: impl IntoIterator<Item = V>) -> Produce {
    let record = |value: V| Record { value: Bytes::copy_from_slice(value.as_ref()), ..Record::default() };
    Produce {
        records: encode(values.into_iter().map(record).collect()),
        durability: Durability::QuorumFlushed,
        expected_offset: None,
        deadline_us: None,
        forwarded: false,
        single: false,
    }
}

fn value(value: &str) -> Produce {
    values([value])
}

/// A record of many bytes, to fill queues and segments.
fn large(bytes: usize) -> Produce {
    values([vec![b'x'; bytes]])
}

fn from(start: Start) -> Consume {
    Consume {
        start,
        records_max: u64::MAX,
        bytes_max: 1 << 20,
        wait: Duration::ZERO,
        min_offset: None,
        linearizable: false,
        deadline_us: None,
        if_small: false,
    }
}

fn at(offset: u64) -> Consume {
    from(Start::Offset(Offset(offset)))
}

fn decode(consumed: &Consumed) -> Vec<Record> {
    let bytes = consumed.chunks.concat();
    let records = ConsumeResponse::decode(&*bytes).unwrap().records;
    assert_eq!(records.len() as u64, consumed.count);
    assert!(consumed.next_offset <= consumed.high_watermark, "only what is committed is returned");
    records
}

/// All records from a start to the high watermark, by as many consumes as it takes.
async fn read_all(shard: &TestShard, start: Start, records_max: u64, bytes_max: usize) -> Vec<Record> {
    let mut all = vec![];
    let mut start = start;
    loop {
        let consumed = shard.consume(Consume { records_max, bytes_max, ..from(start) }).await.unwrap();
        let records = decode(&consumed);
        if records.is_empty() {
            assert_eq!(consumed.next_offset, consumed.high_watermark);
            return all;
        }
        assert_eq!(records.last().unwrap().offset + 1, consumed.next_offset.0);
        all.extend(records);
        start = Start::Offset(consumed.next_offset);
    }
}

/// Values by offset.
async fn contents(shard: &TestShard) -> BTreeMap<u64, Bytes> {
    let records = read_all(shard, Start::Earliest, u64::MAX, 1 << 20).await;
    records.into_iter().map(|record| (record.offset, record.value)).collect()
}

/// Lets all other tasks run until they wait.
async fn settle() {
    for _ in 0..200 {
        yield_now().await;
    }
}

async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if yielded {
            return std::task::Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// Whether a future is done after all others had their turns; its result then.
async fn settled<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    settle().await;
    futures_util::FutureExt::now_or_never(future)
}
