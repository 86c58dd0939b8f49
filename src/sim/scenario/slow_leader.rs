//! A leader whose disk becomes slow while others' are fast: what producers notice of it.

use std::{cell::RefCell, rc::Rc, time::Duration};

use bytes::Bytes;
use prost::Message;

use super::{WATCH_INTERVAL, begin, plan::Plan, plan::Scenario};
use crate::{
    env::{self, Env},
    format::records::Records,
    frontend::ProduceCall,
    ids::NodeId,
    limits::{FLUSH_HOLD_OFF_MIN, RECORD_BYTES_MAX, STORAGE_HUNG, STORAGE_SLOW},
    proto::ringlog::v1::{ProduceRequest, Record},
    sim::{SimDisk, SimEnv, SimRuntime, World, client::Target, cluster::Cluster},
};

/// An acknowledgement: to which producer, when, and after how long.
struct Ack {
    producer: usize,
    at_us: u64,
    took_us: u64,
}

type Acks = Rc<RefCell<Vec<Ack>>>;

/// Who led, from when on.
type Led = Rc<RefCell<Vec<(u64, NodeId)>>>;

/// Who produces, and how long the disk is slow.
#[derive(Clone, Copy)]
struct Load {
    producers: usize,
    /// Of a producer, between two records.
    pause: Duration,
    slow_s: u64,
    /// From when the disk becomes slow.
    watched_s: u64,
}

/// 40 records a second.
const BUSY: Load = Load { producers: 6, pause: Duration::from_millis(150), slow_s: 12, watched_s: 30 };

/// 4 records a second.
const FEW: Load = Load { producers: 1, pause: Duration::from_millis(250), ..BUSY };

/// One record in two seconds: hardly fewer tell at all whose disk is slow.
const RARE: Load = Load { producers: 1, pause: Duration::from_secs(2), slow_s: 40, watched_s: 64 };

/// Produces one record after the other, through any node, for ever.
async fn produce(cluster: Cluster, target: Target, bytes: usize, (producer, pause): (usize, Duration), acks: Acks) {
    let value = Bytes::from(vec![b'x'; bytes]);
    loop {
        let serving = cluster.serving();
        let Some(node) = serving.get(SimEnv::random_u64() as usize % serving.len().max(1)).copied() else { return };
        let Some(process) = cluster.process(node) else { return };
        let request = ProduceRequest {
            topic: target.topic.to_string(),
            shard: Some(target.shard),
            records: vec![Record { value: value.clone(), ..Record::default() }],
            ..ProduceRequest::default()
        };
        let (head, records) = Records::parse(request.encode_to_vec().into(), RECORD_BYTES_MAX).unwrap();
        let frontend = process.frontend(0);
        let began_us = World::current().now_us();
        loop {
            let call = ProduceCall { head: head.clone(), records: records.clone(), deadline_us: None };
            let frontend = frontend.clone();
            let answer = World::current().spawn_on(node, async move { frontend.produce(call).await }).await;
            if matches!(answer, Ok(Ok(_))) {
                break;
            }
            env::sleep::<SimEnv>(Duration::from_millis(5)).await;
        }
        let now_us = World::current().now_us();
        acks.borrow_mut().push(Ack { producer, at_us: now_us, took_us: now_us - began_us });
        env::sleep::<SimEnv>(pause).await;
    }
}

async fn watch(cluster: Cluster, target: Target, led: Led) {
    loop {
        let leader = cluster.leader(target.uid);
        let last = led.borrow().last().map(|(_, node)| *node);
        if let Some(leader) = leader.filter(|leader| Some(*leader) != last) {
            led.borrow_mut().push((World::current().now_us(), leader));
        }
        env::sleep::<SimEnv>(WATCH_INTERVAL).await;
    }
}

fn quantile(acks: &[Ack], from_us: u64, to_us: u64, percent: usize) -> u64 {
    let within = acks.iter().filter(|ack| (from_us..to_us).contains(&ack.at_us));
    let mut took: Vec<u64> = within.map(|ack| ack.took_us).collect();
    took.sort_unstable();
    took.get((took.len() * percent / 100).min(took.len().saturating_sub(1))).copied().unwrap_or(u64::MAX)
}

/// The longest that one of the producers went without an acknowledgement: one that stands still has none to be late.
fn longest_gap(acks: &[Ack], producers: usize, from_us: u64, to_us: u64) -> u64 {
    let gap = |producer: usize| {
        let within = acks.iter().filter(|ack| ack.producer == producer && (from_us..to_us).contains(&ack.at_us));
        let times_us: Vec<u64> = [from_us].into_iter().chain(within.map(|ack| ack.at_us)).chain([to_us]).collect();
        times_us.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(u64::MAX)
    };
    (0..producers).map(gap).max().unwrap_or(u64::MAX)
}

/// What a run with a slow leader came to. Times are µs after the disk became slow.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    trace_hash: u64,
    /// The leader at first, and those that followed it, with when.
    first: NodeId,
    led: Vec<(i64, NodeId)>,
    normal_p99_us: u64,
    /// From 3 s on, until the disk is well again.
    slow_p99_us: u64,
    /// The longest that a producer waited for its next record to be acknowledged, from when the disk became slow.
    gap_us: u64,
}

/// What becomes of the disks of the leader (true) and of the others, for so many microseconds.
type Worsen = fn(&SimDisk, bool, u64);

async fn slow_leader(load: Load, worsen: Worsen) -> Seen {
    let plan = Plan { nodes: 3, reactors: 1, shards: 1, ..Plan::of(0, Scenario::Calm) };
    let (cluster, targets) = begin(&plan).await.unwrap();
    let target = targets[0].clone();
    let (acks, led): (Acks, Led) = Default::default();
    for producer in 0..load.producers {
        let who = (producer, load.pause);
        drop(World::current().spawn(produce(cluster.clone(), target.clone(), 1_000, who, Rc::clone(&acks))));
    }
    env::sleep::<SimEnv>(Duration::from_secs(6)).await;
    let begin_us = World::current().now_us();
    let first = cluster.leader(target.uid).unwrap();
    led.borrow_mut().push((begin_us, first));
    drop(World::current().spawn(watch(cluster.clone(), target.clone(), Rc::clone(&led))));
    let normal_p99_us = quantile(&acks.borrow(), begin_us - 5_000_000, begin_us, 99);
    for node in cluster.nodes() {
        worsen(&cluster.disk(node).unwrap(), node == first, load.slow_s * 1_000_000);
    }
    env::sleep::<SimEnv>(Duration::from_secs(load.watched_s)).await;
    let (after, until) = (begin_us + 3_000_000, begin_us + load.slow_s * 1_000_000);
    let slow_p99_us = quantile(&acks.borrow(), after, until, 99);
    let led = led.borrow().iter().skip(1).map(|(at_us, node)| (*at_us as i64 - begin_us as i64, *node)).collect();
    let end_us = World::current().now_us();
    let gap_us = longest_gap(&acks.borrow(), load.producers, begin_us, end_us);
    Seen { trace_hash: World::current().trace_hash(), first, led, normal_p99_us, slow_p99_us, gap_us }
}

/// A run in which every producer went on all the time.
fn run_slow(seed: u64, load: Load, worsen: Worsen) -> Seen {
    let runtime = SimRuntime::seeded(seed);
    let seen = runtime.block_on(slow_leader(load, worsen));
    assert_eq!(runtime.world().panics(), []);
    println!("seed {seed}: {seen:?}");
    let pause_us = load.pause.as_micros() as u64;
    assert!(seen.gap_us <= pause_us + 500_000, "a producer had nothing acknowledged for {} us", seen.gap_us);
    seen
}

/// The leadership has moved once, within so many seconds, and was back once, when the disk was well for a while.
fn moved_once(seen: &Seen, load: Load, within_s: i64) {
    let [(away_us, _), (back_us, back)] = seen.led[..] else { panic!("not away and back: {:?}", seen.led) };
    assert!(away_us <= within_s * 1_000_000, "it moved after {away_us} us");
    // A look may have found it slow for the last time some moments before it was well.
    let well_us = back_us - load.slow_s as i64 * 1_000_000;
    let is_held_off = well_us + 1_000_000 >= FLUSH_HOLD_OFF_MIN.as_micros() as i64;
    assert!(is_held_off && back == seen.first, "back to node {back} when its disk was well for {well_us} us");
}

/// Producers noticed nothing of the slow disk from three seconds on.
fn unnoticed(seen: &Seen) {
    assert!(seen.slow_p99_us <= 2 * seen.normal_p99_us, "{} us beside {} us", seen.slow_p99_us, seen.normal_p99_us);
}

fn ten_times(disk: &SimDisk, leads: bool, for_us: u64) {
    disk.set_slow(if leads { 10 } else { 1 }, for_us);
}

/// A disk ten times as slow as the two others': its node leads no more within two seconds.
#[test]
fn ten_times_slower() {
    let seen = run_slow(1, BUSY, ten_times);
    moved_once(&seen, BUSY, 2);
    unnoticed(&seen);
}

/// The same where four records a second are written.
#[test]
fn four_a_second() {
    moved_once(&run_slow(5, FEW, ten_times), FEW, 2);
}

/// One record in two seconds, and flushes of 20 ms: three of them tell, and the leadership stays away until the disk is well.
#[test]
fn one_in_two_seconds() {
    let worsen: Worsen = |disk, leads, for_us| {
        if leads {
            disk.delay_flushes(20_000, for_us);
        }
    };
    moved_once(&run_slow(6, RARE, worsen), RARE, 8);
}

/// Flushes that take two seconds: the same, though hardly anything is flushed there meanwhile, and the new leader hears nothing of that
/// disk before it is well.
#[test]
fn flushes_take_seconds() {
    let worsen: Worsen = |disk, leads, for_us| {
        if leads {
            disk.delay_flushes(2_000_000, for_us);
        }
    };
    let seen = run_slow(2, BUSY, worsen);
    moved_once(&seen, BUSY, 2);
    unnoticed(&seen);
}

/// Where all disks are slow alike nothing moves: it would help nobody.
#[test]
fn all_are_slow() {
    let seen = run_slow(3, BUSY, |disk, _, for_us| disk.set_slow(10, for_us));
    assert_eq!(seen.led, []);
}

/// A disk that does not answer any more: its node leads no more at once, what hangs is named in the status, with the file, and
/// stops the replica in the end; producers go on at the others.
#[test]
fn device_hangs() {
    let runtime = SimRuntime::seeded(4);
    runtime.block_on(async {
        let plan = Plan { nodes: 3, reactors: 1, shards: 1, ..Plan::of(0, Scenario::Calm) };
        let (cluster, targets) = begin(&plan).await.unwrap();
        let (target, acks) = (targets[0].clone(), Acks::default());
        let who = (0, BUSY.pause);
        drop(World::current().spawn(produce(cluster.clone(), target.clone(), 100, who, Rc::clone(&acks))));
        env::sleep::<SimEnv>(Duration::from_secs(5)).await;
        let first = cluster.leader(target.uid).unwrap();
        let process = cluster.process(first).unwrap();
        cluster.disk(first).unwrap().delay_flushes(600_000_000, 600_000_000);
        env::sleep::<SimEnv>(Duration::from_secs(3)).await;
        assert_ne!(cluster.leader(target.uid), Some(first));
        env::sleep::<SimEnv>(STORAGE_SLOW).await;
        // By the node's own clock.
        let status = World::current().on(first, || process.shard(target.uid).unwrap().status());
        assert_eq!(status.fault, None);
        assert!(status.stalled.unwrap().contains("is being written"));
        env::sleep::<SimEnv>(STORAGE_HUNG).await;
        let fault = process.node.faults().get(&target.uid).cloned().unwrap_or_default();
        assert!(fault.contains("could not be written: the device has not answered for 60 s"), "{fault:?}");
        let end_us = World::current().now_us();
        assert!(acks.borrow().iter().filter(|ack| ack.at_us > end_us - 1_000_000).count() > 3);
    });
    assert_eq!(runtime.world().panics(), []);
}
