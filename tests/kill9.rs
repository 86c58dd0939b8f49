//! `kill -9` under load: every record that was acknowledged is there afterwards, at its offset, and nothing that was
//! never sent.

#![allow(clippy::disallowed_methods, reason = "tests use real processes, files and sockets")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod node;

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use node::Node;
use ringlog::{
    client::Client,
    proto::ringlog::v1::{ConsumeStreamRequest, CreateTopicRequest, ProduceStreamRequest, Record},
};

const ROUNDS: u64 = 6;
const SHARDS: u32 = 2;
const IN_FLIGHT: usize = 64;

/// The n-th value of a shard: unique, of a size that varies, and recognizable as a whole.
fn value(shard: u32, number: u64) -> Bytes {
    let mut text = format!("{shard}/{number}/");
    let bytes = usize::try_from(number * 7_919 % 3_000).unwrap();
    text.extend(std::iter::repeat_n('x', bytes));
    text.push('.');
    text.into()
}

/// What a producer knows of one shard.
#[derive(Default)]
struct Known {
    /// Number of the next value.
    next: u64,
    /// Acknowledged: offset → number.
    acked: BTreeMap<u64, u64>,
}

/// Produces until the server dies. Requests hold 1 to 4 records.
async fn produce(client: Client, shard: u32, known: &RefCell<Known>) {
    let Ok((mut sender, mut acks)) = client.produce_stream().await else { return };
    let mut outstanding: VecDeque<(u64, u64)> = VecDeque::new();
    loop {
        while outstanding.len() < IN_FLIGHT {
            let first = known.borrow().next;
            let count = 1 + first % 4;
            known.borrow_mut().next += count;
            let records = (first..first + count).map(|n| Record { value: value(shard, n), ..Record::default() });
            let request = ProduceStreamRequest {
                topic: "t".into(),
                shard: Some(shard),
                records: records.collect(),
                ..ProduceStreamRequest::default()
            };
            outstanding.push_back((first, count));
            if sender.send(&request).await.is_err() {
                break;
            }
        }
        let Some(Ok(ack)) = acks.next().await else { return };
        let (first, count) = outstanding.pop_front().unwrap();
        assert_eq!((ack.shard, u64::from(ack.count)), (shard, count));
        let mut known = known.borrow_mut();
        for n in 0..count {
            assert_eq!(known.acked.insert(ack.base_offset + n, first + n), None, "an offset was given twice");
        }
    }
}

/// Everything that the server has of a shard, by offset.
async fn read_back(client: &Client, shard: u32, high_watermark: u64) -> Vec<Bytes> {
    let request = ConsumeStreamRequest { topic: "t".into(), shard, max_records: high_watermark, ..Default::default() };
    let mut values = Vec::new();
    if high_watermark == 0 {
        return values;
    }
    let mut responses = client.consume_stream(&request).await.unwrap();
    while let Some(response) = responses.next().await {
        for record in response.unwrap().records {
            assert_eq!(record.offset, values.len() as u64, "offsets are dense from 0");
            values.push(record.value);
        }
    }
    values
}

/// Compares what is there with what was acknowledged and with what was ever sent.
fn check(shard: u32, values: &[Bytes], known: &Known) {
    for (offset, number) in &known.acked {
        let found = values.get(usize::try_from(*offset).unwrap());
        assert_eq!(found, Some(&value(shard, *number)), "shard {shard} offset {offset} was acknowledged");
    }
    let mut numbers = Vec::new();
    for (offset, found) in values.iter().enumerate() {
        let text = std::str::from_utf8(found).unwrap();
        let number: u64 = text.split('/').nth(1).unwrap().parse().unwrap();
        assert!(number < known.next, "shard {shard} offset {offset} was never sent");
        assert_eq!(found, &value(shard, number), "shard {shard} offset {offset} is not whole");
        numbers.push(number);
    }
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "shard {shard}: out of order, or twice");
}

/// Several rounds of load, kill, restart and comparison on the same data directory.
#[test]
fn acknowledged_records_survive() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let known: Vec<RefCell<Known>> = (0..SHARDS).map(|_| RefCell::new(Known::default())).collect();
    // Small segments, so that kills also hit rolls.
    let flags = ["--reactors", "2", "--segment-bytes", "1MiB"];
    for round in 0..=ROUNDS {
        let node = Node::start(dir.path(), &flags);
        runtime.block_on(async {
            let client = Client::connect(&node.grpc).await.unwrap();
            if round == 0 {
                let request = CreateTopicRequest { name: "t".into(), shards: SHARDS, ..Default::default() };
                client.create_topic(&request).await.unwrap();
            }
            for status in client.describe_topic("t").await.unwrap().shards {
                assert_eq!(status.fault, "");
                let values = read_back(&client, status.shard, status.high_watermark).await;
                check(status.shard, &values, &known[status.shard as usize].borrow());
            }
            if round == ROUNDS {
                return;
            }
            let lifetime = Duration::from_millis(50 + fastrand::u64(0..400));
            let second = Client::connect(&node.grpc).await.unwrap();
            let killer = async {
                tokio::time::sleep(lifetime).await;
                node.kill();
            };
            tokio::join!(killer, produce(client, 0, &known[0]), produce(second, 1, &known[1]));
        });
        let acked: usize = known.iter().map(|known| known.borrow().acked.len()).sum();
        println!("round {round}: {acked} records acknowledged so far");
    }
    assert!(known.iter().any(|known| !known.borrow().acked.is_empty()), "nothing was acknowledged: no test");
}
