//! Compares what is in a cluster with what a writer was told: every acknowledged record once, at its offset, in order, on
//! every replica; nothing that was refused; and replicas that are alike to the last bit.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ringlog::{client::Client, proto::ringlog::v1::ConsumeStreamRequest};

use crate::{
    harness::{Cluster, PATIENCE, block_on},
    workload::{History, Outcome, value},
};

/// Checks all shards of the history's topic, on every running node that has a replica.
pub fn check(cluster: &mut Cluster, history: &History) {
    check_with(cluster, history, &[]);
}

/// As `check`, where others have written, too: these values may be there, once, or not.
pub fn check_with(cluster: &mut Cluster, history: &History, strangers: &[&str]) {
    cluster.wait_until_well();
    for shard in 0..history.shards.len() {
        let number = u32::try_from(shard).unwrap();
        check_chains(cluster, &history.topic, number);
        let status = cluster.shard(&history.topic, number);
        let end = status.replicas.iter().map(|replica| replica.high_watermark).max().unwrap();
        let mut first: Option<Vec<Bytes>> = None;
        for id in &status.replica_node_ids {
            let place = cluster.place(*id);
            if !cluster.nodes[place].is_running() {
                continue;
            }
            let values = block_on(read(&cluster.nodes[place].grpc(), &history.topic, number, end));
            let verdict = verify(shard, &history.shards[shard], &values, strangers);
            verdict.unwrap_or_else(|what| panic!("node {id}, topic {}: {what}{}", history.topic, cluster.logs()));
            let first = first.get_or_insert_with(|| values.clone());
            assert!(*first == values, "shard {shard}: node {id} gives other records than another replica");
        }
    }
}

/// Waits until all replicas have applied the same entries, and compares the hashes of the chains that these are in.
pub fn check_chains(cluster: &Cluster, topic: &str, shard: u32) {
    let since = Instant::now();
    loop {
        let status = cluster.shard(topic, shard);
        let mut by_end: BTreeMap<u64, u64> = BTreeMap::new();
        for replica in &status.replicas {
            let known = *by_end.entry(replica.applied_end).or_insert(replica.chain);
            assert_eq!(known, replica.chain, "replicas that applied the same differ: {status:#?}");
        }
        let wanted = status.replica_node_ids.len();
        if by_end.len() == 1 && status.replicas.len() >= wanted {
            return;
        }
        assert!(since.elapsed() < PATIENCE, "replicas do not come to the same end: {status:#?}{}", cluster.logs());
        thread::sleep(Duration::from_millis(50));
    }
}

/// All values of a shard up to `end`, as one node gives them.
async fn read(address: &str, topic: &str, shard: u32, end: u64) -> Vec<Bytes> {
    let mut values = Vec::new();
    if end == 0 {
        return values;
    }
    let client = Client::connect(address).await.unwrap();
    let request = ConsumeStreamRequest {
        topic: topic.to_owned(),
        shard,
        max_records: end,
        min_offset: Some(end),
        ..ConsumeStreamRequest::default()
    };
    let mut responses = client.consume_stream(&request).await.unwrap();
    while let Some(response) = responses.next().await {
        for record in response.unwrap_or_else(|error| panic!("{address}: {error}")).records {
            assert_eq!(record.offset, values.len() as u64, "{address}: offsets are dense from 0");
            values.push(record.value);
        }
    }
    assert_eq!(values.len() as u64, end, "{address} gives all that is committed");
    values
}

/// Whether what is there is what must be there, may be there, and nothing else.
pub fn verify(shard: usize, outcomes: &[Outcome], values: &[Bytes], strangers: &[&str]) -> Result<(), String> {
    let mut offsets: BTreeMap<usize, usize> = BTreeMap::new();
    let mut strangers = strangers.to_vec();
    for (offset, found) in values.iter().enumerate() {
        let text = String::from_utf8_lossy(found);
        if let Some(at) = strangers.iter().position(|stranger| *stranger == text) {
            strangers.swap_remove(at);
            continue;
        }
        let number: Option<usize> = text.split('/').nth(1).and_then(|number| number.parse().ok());
        let number = number.filter(|number| *number < outcomes.len() && *found == value(shard, *number));
        let number = number.ok_or(format!("shard {shard} offset {offset} was never sent like this: {text}"))?;
        if let Some(before) = offsets.insert(number, offset) {
            return Err(format!("shard {shard} record {number} is at offset {before} and again at {offset}"));
        }
    }
    let mut last = None;
    for (number, outcome) in outcomes.iter().enumerate() {
        let found = offsets.get(&number).copied();
        match outcome {
            Outcome::Acked(offset) if found != Some(*offset as usize) => {
                return Err(format!(
                    "shard {shard} record {number} was acknowledged at offset {offset}, and is at {found:?}"
                ));
            }
            Outcome::Acked(_) if found < last => {
                return Err(format!("shard {shard} record {number} at {found:?} is before an earlier one at {last:?}"));
            }
            Outcome::Acked(_) => last = found,
            Outcome::Refused(why) if found.is_some() => {
                return Err(format!("shard {shard} record {number} was refused ({why}), and is at {found:?}"));
            }
            Outcome::Refused(_) | Outcome::Maybe(_) => {}
        }
    }
    Ok(())
}
