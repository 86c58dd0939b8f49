//! Compares what is in a cluster with what a writer was told: every acknowledged record once, at its offset, in order, on
//! every replica; nothing that was refused; and replicas that are alike to the last bit. The same history is then judged by
//! the simulator's checker, which knows of time and of chains.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use ringlog::{
    client::Client,
    proto::ringlog::v1::{ConsumeStreamRequest, ReplicaStatus},
    sim::checker::{
        self,
        history::{Ack, Chain, Durability, Event, FinalRead, Fingerprint, Produce, Status, StreamPlace},
    },
};

use crate::{
    harness::{Cluster, PATIENCE, block_on},
    workload::{History, Outcome, now_us, value},
};

/// Checks all shards of the history's topic, on every running node that has a replica.
pub fn check(cluster: &mut Cluster, history: &History) {
    check_with(cluster, history, &[]);
}

/// As `check`, where others have written, too: these values may be there, once, or not.
pub fn check_with(cluster: &mut Cluster, history: &History, strangers: &[&str]) {
    cluster.wait_until_well();
    let mut events = sent(history);
    for shard in 0..history.shards.len() {
        let number = u32::try_from(shard).unwrap();
        wait_for_all(cluster, history, shard);
        let replicas = check_chains(cluster, &history.topic, number);
        events.extend(replicas.iter().map(|replica| stands(&history.topic, number, replica)));
        let status = cluster.shard(&history.topic, number);
        let end = status.replicas.iter().map(|replica| replica.high_watermark).max().unwrap();
        let mut first: Option<Vec<Bytes>> = None;
        for id in &status.replica_node_ids {
            let place = cluster.place(*id);
            if !cluster.nodes[place].is_running() {
                continue;
            }
            let begin_us = now_us();
            let values = block_on(read(&cluster.nodes[place].grpc(), &history.topic, number, end));
            events.push(has(&history.topic, number, *id, begin_us, &values));
            let verdict = verify(shard, &history.shards[shard], &values, strangers);
            verdict.unwrap_or_else(|what| panic!("node {id}, topic {}: {what}{}", history.topic, cluster.logs()));
            let first = first.get_or_insert_with(|| values.clone());
            assert!(*first == values, "shard {shard}: node {id} gives other records than another replica");
        }
    }
    if strangers.is_empty() {
        let mut judged = checker::History::default();
        events.into_iter().for_each(|event| judged.push(event).unwrap());
        let report = checker::check(&judged);
        assert!(report.findings.is_empty(), "{:#?}{}", report.findings, cluster.logs());
        let acked = history.count(|outcome| matches!(outcome, Outcome::Acked(_)));
        assert_eq!(report.acked_records, acked as u64, "all of it was judged");
    }
}

/// What the writer did, and was told.
fn sent(history: &History) -> Vec<Event> {
    let mut events = Vec::new();
    for (shard, outcomes) in history.shards.iter().enumerate() {
        for (number, (outcome, times)) in outcomes.iter().zip(&history.times_us[shard]).enumerate() {
            let durability = Durability::QuorumFlushed;
            events.push(Event::Produce(Produce {
                client: "writer".into(),
                begin_us: times.0,
                end_us: times.1,
                topic: history.topic.clone(),
                shard: u32::try_from(shard).unwrap(),
                records: vec![Fingerprint::of(&value(shard, number))],
                expected_offset: None,
                log_bytes: None,
                stream: Some(StreamPlace { id: shard as u64, sequence: number as u64 }),
                outcome: match outcome {
                    Outcome::Acked(base_offset) => {
                        let ack = Ack { base_offset: *base_offset, count: 1, durability, timestamp_us: None };
                        checker::history::Outcome::Acked(ack)
                    }
                    Outcome::Refused(_) => checker::history::Outcome::Failed,
                    Outcome::Maybe(_) => checker::history::Outcome::Indefinite,
                },
            }));
        }
    }
    events
}

/// How far a replica is.
fn stands(topic: &str, shard: u32, replica: &ReplicaStatus) -> Event {
    let (begin_us, end_us) = (now_us(), now_us());
    let (node, applied_end, chain) = (replica.node_id, replica.applied_end, Chain(replica.chain));
    Event::Status(Status { node, begin_us, end_us, topic: topic.into(), shard, applied_end, chain, log_start: None })
}

/// All that a node gives.
fn has(topic: &str, shard: u32, node: u64, begin_us: u64, values: &[Bytes]) -> Event {
    let records = values.iter().enumerate().map(|(offset, value)| (offset as u64, Fingerprint::of(value)));
    let (end_us, topic, end_offset) = (now_us(), topic.into(), values.len() as u64);
    Event::FinalRead(FinalRead {
        node,
        begin_us,
        end_us,
        topic,
        shard,
        from_offset: 0,
        records: records.collect(),
        end_offset,
    })
}

/// Waits until the cluster knows of what it has acknowledged: after a restart of all its nodes they agree on nothing at first.
/// What does not come is found to be lost.
fn wait_for_all(cluster: &Cluster, history: &History, shard: usize) {
    let ends = history.shards[shard].iter().filter_map(|outcome| match outcome {
        Outcome::Acked(offset) => Some(offset + 1),
        Outcome::Refused(_) | Outcome::Maybe(_) => None,
    });
    let (end, since) = (ends.max().unwrap_or_default(), Instant::now());
    let number = u32::try_from(shard).unwrap();
    let knows = |replica: &ReplicaStatus| replica.high_watermark >= end;
    while since.elapsed() < PATIENCE && !cluster.shard(&history.topic, number).replicas.iter().any(knows) {
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until all replicas have applied the same entries, and compares the hashes of the chains that these are in.
pub fn check_chains(cluster: &Cluster, topic: &str, shard: u32) -> Vec<ReplicaStatus> {
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
            return status.replicas;
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
