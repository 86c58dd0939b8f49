//! The consume workload: a replay of a topic's records from the earliest on, all shards side by side.

use std::{cell::RefCell, time::Instant};

use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{ConsumeArgs, Failure, Spinner, produce::fill, report::ConsumeReport, run::Latencies, target};
use crate::{
    client::Client,
    proto::ringlog::v1::{ConsumeStreamRequest, ShardStatus, consume_stream_request},
};

/// What was read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Replayed {
    pub(super) records: u64,
    pub(super) value_bytes: u64,
    pub(super) responses: u64,
}

/// Part of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    shard: u32,
    start: u64,
    count: u64,
}

/// Runs the command.
pub(super) async fn consume(args: ConsumeArgs) -> Result<(), Failure> {
    let cluster = args.common.server.cluster().await?;
    let mut shards = args.common.topic(&cluster).await?;
    let there: u64 = shards.iter().map(|shard| shard.high_watermark - shard.log_start).sum();
    if there < args.records {
        let numbers: Vec<_> = shards.iter().map(|shard| shard.shard).collect();
        fill(&cluster.any().await?, &args.common, &numbers, args.batch, args.records - there).await?;
        shards = args.common.topic(&cluster).await?;
    }
    let count = u32::try_from(shards.len()).expect("a topic has at most TOPIC_SHARDS_MAX shards");
    let targets = target::find(&cluster, &args.common, count).await?;
    drop(cluster);
    let mut clients = Vec::new();
    for target in &targets {
        for _ in 0..args.common.connections {
            let client = Client::connect_within(&target.address, args.common.server.timeout).await?;
            clients.push((client, &target.shards));
        }
    }
    let parts = divide(&shards, args.records);
    let busy_poll = args.common.busy_poll(usize::MAX);
    let spinner = busy_poll.then(Spinner::start);
    let latencies = RefCell::new(Latencies::new());
    let started = Instant::now();
    let replays: FuturesUnordered<_> = parts
        .iter()
        .enumerate()
        .map(|(number, part)| {
            // A single node names no shards: it has all of them.
            let serves = |shards: &[u32]| shards.is_empty() || shards.contains(&part.shard);
            let near: Vec<_> = clients.iter().filter(|(_, shards)| serves(shards)).collect();
            let (client, _) = near[number % near.len()];
            replay(client, &args, *part, &latencies)
        })
        .collect();
    let outcomes: Vec<Result<Replayed, Failure>> = replays.collect().await;
    let elapsed = started.elapsed();
    drop(spinner);
    let mut total = Replayed::default();
    for outcome in outcomes {
        let part = outcome?;
        total.records += part.records;
        total.value_bytes += part.value_bytes;
        total.responses += part.responses;
    }
    ConsumeReport { args: &args, total, elapsed, shards: parts.len(), busy_poll, latencies: &latencies.borrow() }
        .print()
}

/// `records` records, as even over the shards as they have them.
fn divide(shards: &[ShardStatus], records: u64) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut left = records;
    let mut by_size: Vec<_> = shards.iter().collect();
    by_size.sort_by_key(|shard| (shard.high_watermark - shard.log_start, shard.shard));
    for (number, shard) in by_size.iter().enumerate() {
        let even = left.div_ceil((by_size.len() - number) as u64);
        let count = even.min(shard.high_watermark - shard.log_start);
        left -= count;
        if count > 0 {
            parts.push(Part { shard: shard.shard, start: shard.log_start, count });
        }
    }
    parts
}

/// Reads a part and checks that no offset is missing in it.
async fn replay(
    client: &Client,
    args: &ConsumeArgs,
    part: Part,
    latencies: &RefCell<Latencies>,
) -> Result<Replayed, Failure> {
    let request = ConsumeStreamRequest {
        topic: args.common.topic.clone(),
        shard: part.shard,
        start: Some(consume_stream_request::Start::Offset(part.start)),
        max_records: part.count,
        max_bytes: u32::try_from(args.response_bytes).unwrap_or(u32::MAX),
        ..Default::default()
    };
    let mut asked = Instant::now();
    let mut responses = client.consume_stream(&request).await?;
    let mut replayed = Replayed::default();
    while let Some(response) = responses.next_walked().await {
        let response = response?;
        let expected = part.start + replayed.records;
        if !response.dense || response.first_offset != Some(expected) {
            let shard = part.shard;
            return Err(format!("offsets of shard {shard} are not dense: {response:?} came at {expected}").into());
        }
        replayed.records += response.count;
        replayed.value_bytes += response.value_bytes;
        replayed.responses += 1;
        let now = Instant::now();
        latencies.borrow_mut().record(now - asked);
        asked = now;
    }
    if replayed.records != part.count {
        let Part { shard, count, .. } = part;
        return Err(format!("shard {shard} gave {} of {count} records", replayed.records).into());
    }
    Ok(replayed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(shard: u32, log_start: u64, high_watermark: u64) -> ShardStatus {
        ShardStatus { shard, log_start, high_watermark, ..ShardStatus::default() }
    }

    /// Shards share the work evenly, and those with little give what they have.
    #[test]
    fn division() {
        let part = |shard, start, count| Part { shard, start, count };
        let shards = [shard(0, 0, 100), shard(1, 50, 60), shard(2, 7, 7), shard(3, 0, 100)];
        assert_eq!(divide(&shards, 110), [part(1, 50, 10), part(0, 0, 50), part(3, 0, 50)]);
        assert_eq!(divide(&shards[..1], 1), [part(0, 0, 1)]);
        assert_eq!(divide(&shards, 210).iter().map(|part| part.count).sum::<u64>(), 210);
    }
}
