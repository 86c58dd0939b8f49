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
    limits::{RECORD_BYTES_MAX, STORAGE_HUNG, STORAGE_SLOW},
    proto::ringlog::v1::{ProduceRequest, Record},
    sim::{SimDisk, SimEnv, SimRuntime, World, client::Target, cluster::Cluster},
};

/// Acknowledgements: when each came, and after how long.
type Acks = Rc<RefCell<Vec<(u64, u64)>>>;

/// Who led, from when on.
type Led = Rc<RefCell<Vec<(u64, NodeId)>>>;

/// Of a producer, between two records.
const PAUSE: Duration = Duration::from_millis(150);

/// Produces one record after the other, through any node, for ever.
async fn produce(cluster: Cluster, target: Target, bytes: usize, acks: Acks) {
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
        acks.borrow_mut().push((now_us, now_us - began_us));
        env::sleep::<SimEnv>(PAUSE).await;
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

fn quantile(acks: &[(u64, u64)], from_us: u64, to_us: u64, percent: usize) -> u64 {
    let within = acks.iter().filter(|(at_us, _)| (from_us..to_us).contains(at_us));
    let mut took: Vec<u64> = within.map(|(_, took_us)| *took_us).collect();
    took.sort_unstable();
    took.get((took.len() * percent / 100).min(took.len().saturating_sub(1))).copied().unwrap_or(u64::MAX)
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
    /// Of each second.
    acks: Vec<usize>,
}

/// How long the disk is slow, and how long it is watched in all.
const SLOW_S: u64 = 12;
const WATCHED_S: u64 = 30;

/// What becomes of the disks of the leader (true) and of the others.
type Worsen = fn(&SimDisk, bool);

async fn slow_leader(worsen: Worsen) -> Seen {
    let plan = Plan { nodes: 3, reactors: 1, shards: 1, ..Plan::of(0, Scenario::Calm) };
    let (cluster, targets) = begin(&plan).await.unwrap();
    let target = targets[0].clone();
    let (acks, led): (Acks, Led) = Default::default();
    for _ in 0..6 {
        drop(World::current().spawn(produce(cluster.clone(), target.clone(), 1_000, Rc::clone(&acks))));
    }
    env::sleep::<SimEnv>(Duration::from_secs(6)).await;
    let begin_us = World::current().now_us();
    let first = cluster.leader(target.uid).unwrap();
    led.borrow_mut().push((begin_us, first));
    drop(World::current().spawn(watch(cluster.clone(), target.clone(), Rc::clone(&led))));
    let normal_p99_us = quantile(&acks.borrow(), begin_us - 5_000_000, begin_us, 99);
    for node in cluster.nodes() {
        worsen(&cluster.disk(node).unwrap(), node == first);
    }
    env::sleep::<SimEnv>(Duration::from_secs(WATCHED_S)).await;
    let (after, until) = (begin_us + 3_000_000, begin_us + SLOW_S * 1_000_000);
    let slow_p99_us = quantile(&acks.borrow(), after, until, 99);
    let led = led.borrow().iter().skip(1).map(|(at_us, node)| (*at_us as i64 - begin_us as i64, *node)).collect();
    let second = |second: u64| {
        let within = begin_us + second * 1_000_000..begin_us + (second + 1) * 1_000_000;
        acks.borrow().iter().filter(|(at_us, _)| within.contains(at_us)).count()
    };
    let acks = (0..WATCHED_S).map(second).collect();
    Seen { trace_hash: World::current().trace_hash(), first, led, normal_p99_us, slow_p99_us, acks }
}

fn run_slow(seed: u64, worsen: Worsen) -> Seen {
    let runtime = SimRuntime::seeded(seed);
    let seen = runtime.block_on(slow_leader(worsen));
    assert_eq!(runtime.world().panics(), []);
    println!("seed {seed}: {seen:?}");
    seen
}

/// The leadership has moved once, within two seconds, and was back once, when the disk was well; and producers noticed
/// nothing of the slow disk from three seconds on.
fn moved_once(seen: &Seen) {
    let [(away_us, _), (back_us, back)] = seen.led[..] else { panic!("not away and back: {:?}", seen.led) };
    assert!(away_us <= 2_000_000, "it moved after {away_us} us");
    assert!(back_us >= SLOW_S as i64 * 1_000_000 && back == seen.first, "back to node {back} after {back_us} us");
    assert!(seen.slow_p99_us <= 2 * seen.normal_p99_us, "{} us beside {} us", seen.slow_p99_us, seen.normal_p99_us);
}

/// A disk ten times as slow as the two others': its node leads no more within two seconds.
#[test]
fn ten_times_slower() {
    let worsen: Worsen = |disk, leads| disk.set_slow(if leads { 10 } else { 1 }, SLOW_S * 1_000_000);
    moved_once(&run_slow(1, worsen));
}

/// Flushes that take two seconds: the same, though hardly anything is flushed there meanwhile.
#[test]
fn flushes_take_seconds() {
    moved_once(&run_slow(2, |disk, leads| {
        if leads {
            disk.delay_flushes(2_000_000, SLOW_S * 1_000_000);
        }
    }));
}

/// Where all disks are slow alike nothing moves: it would help nobody.
#[test]
fn all_are_slow() {
    let seen = run_slow(3, |disk, _| disk.set_slow(10, SLOW_S * 1_000_000));
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
        drop(World::current().spawn(produce(cluster.clone(), target.clone(), 100, Rc::clone(&acks))));
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
        assert!(acks.borrow().iter().filter(|(at_us, _)| *at_us > end_us - 1_000_000).count() > 3);
    });
    assert_eq!(runtime.world().panics(), []);
}
