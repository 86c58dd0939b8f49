//! Three real nodes under load, of which one is killed, paused, restarted or wiped: what clients see, what operators see,
//! and that nothing that was acknowledged is lost, doubled or out of order on any replica.

use std::{fs, path::Path, thread, time::Duration};

use ringlog::proto::ringlog::v1::{
    DescribeClusterResponse, DrainNodeRequest, NodeState, ProduceRequest, Record, RemoveNodeRequest, ReplicaStatus,
    ShardStatus,
};

use crate::{
    checker,
    harness::{Cluster, Node, alive, keeps_up},
    workload::{Outcome, Workload},
};

const SHARDS: usize = 3;

fn start() -> Cluster {
    let cluster = Cluster::start(3);
    cluster.create_topic("t", u32::try_from(SHARDS).unwrap(), 3);
    cluster
}

/// kill -9 of the leader of a shard, four times: writing goes on without it, it comes back, and all replicas are the same.
/// Clients see at most records of which nobody knows, never one refused.
#[test]
fn leaders_are_killed() {
    let mut cluster = start();
    let workload = Workload::start(&cluster.addresses(), "t", SHARDS);
    for round in 0..4 {
        let leader = cluster.leader("t", round % 3);
        let id = cluster.nodes[leader].id();
        cluster.nodes[leader].kill9();
        workload.wait_for_acks(20);
        let status = cluster.wait_until("a dead node", |status| alive(status) == 2);
        let dead = status.nodes.iter().find(|node| node.node_id == id).unwrap();
        assert!(!dead.alive && dead.state() == NodeState::Active, "the operator sees it: {dead:?}");
        assert_ne!(cluster.leader("t", round % 3), leader);
        cluster.nodes[leader].start(&[]);
        cluster.wait_until("the node back", |status| alive(status) == 3);
        workload.wait_for_acks(5);
    }
    let history = workload.finish();
    assert_eq!(history.count(|outcome| matches!(outcome, Outcome::Refused(_))), 0, "{:?}", history.failures());
    checker::check(&mut cluster, &history);
}

/// kill -9 of a node that leads nothing: clients do not notice.
#[test]
fn a_follower_is_killed() {
    let mut cluster = Cluster::start(3);
    cluster.create_topic("t", 1, 3);
    let leader = cluster.leader("t", 0);
    // The writer is told of the others, too; it has no stream to them.
    let workload = Workload::start(&[cluster.nodes[leader].grpc()], "t", 1);
    let follower = (leader + 1) % 3;
    cluster.nodes[follower].kill9();
    workload.wait_for_acks(100);
    cluster.nodes[follower].start(&[]);
    cluster.wait_until("the node back", |status| alive(status) == 3);
    workload.wait_for_acks(20);
    let history = workload.finish();
    assert_eq!(history.failures(), Vec::<&Outcome>::new());
    checker::check(&mut cluster, &history);
}

/// A leader that stands still (SIGSTOP) is replaced; when it goes on it does not lead, does not disturb, and catches up.
#[test]
fn a_leader_is_paused() {
    let mut cluster = start();
    let workload = Workload::start(&cluster.addresses(), "t", SHARDS);
    let leader = cluster.leader("t", 0);
    cluster.nodes[leader].pause();
    // Its clients give it up, and others lead.
    workload.wait_for_acks(50);
    let others: Vec<usize> = (0..3).filter(|number| *number != leader).collect();
    let status = cluster.status_of(others[0]).unwrap();
    let id = cluster.nodes[leader].id();
    assert!(!status.nodes.iter().find(|node| node.node_id == id).unwrap().alive, "{status:#?}");
    let led: Vec<u64> =
        status.topics.iter().flat_map(|topic| &topic.shards).map(|shard| shard.leader_node_id).collect();
    assert!(!led.contains(&id) && !led.contains(&0), "{led:?}");
    cluster.nodes[leader].resume();
    cluster.wait_until("the node back", |status| alive(status) == 3);
    workload.wait_for_acks(20);
    let history = workload.finish();
    assert_eq!(history.count(|outcome| matches!(outcome, Outcome::Refused(_))), 0, "{:?}", history.failures());
    checker::check(&mut cluster, &history);
}

/// No group's voters are changed to those of whom most are dead. With the first of three nodes dead and the third draining,
/// the catalog would have the dead one alone, and each shard two of which it needs both.
#[test]
fn drains_beside_a_dead_node() {
    let mut cluster = start();
    let [first, third] = [0, 2].map(|number| cluster.nodes[number].id());
    assert!(first < third, "voters are chosen by their ids");
    cluster.nodes[0].kill9();
    cluster.wait_until("a dead node", |status| alive(status) == 2);
    let workload = Workload::start(&[cluster.nodes[1].grpc(), cluster.nodes[2].grpc()], "t", SHARDS);
    // Each is a command to the catalog; between them its leader has the time to do wrong.
    for _ in 0..4 {
        for undo in [false, true] {
            let request = DrainNodeRequest { node_id: third, undo, force: true };
            cluster.ask(async |client| client.drain_node(&request).await);
            thread::sleep(Duration::from_millis(600));
            workload.wait_for_acks(5);
        }
    }
    cluster.nodes[0].start(&[]);
    cluster.wait_until("all three", |status| alive(status) == 3 && keeps_up(status));
    cluster.run(&["cluster", "drain", &third.to_string(), "--wait", "--force"]);
    let voters = |status: &DescribeClusterResponse| status.catalog_voter_node_ids.clone();
    cluster.wait_until("one voter", |status| voters(status) == [first]);
    workload.wait_for_acks(5);
    let history = workload.finish();
    assert_eq!(history.failures(), Vec::<&Outcome>::new());
    checker::check(&mut cluster, &history);
}

/// With two of three nodes dead the one that is left says so everywhere: it leads nothing, is not ready, knows no lag of the
/// dead; what it has can still be read by whoever asks for that.
#[test]
fn a_lost_majority_is_told() {
    let mut cluster = start();
    let [left, second, third] = [0, 1, 2].map(|number| cluster.nodes[number].id());
    let record = Record { value: "kept".into(), ..Record::default() };
    let request =
        ProduceRequest { topic: "t".into(), shard: Some(0), records: vec![record], ..ProduceRequest::default() };
    cluster.ask(async |client| client.produce(&request).await);
    cluster.wait_until("a record that all know", |_| {
        cluster.shard("t", 0).replicas.iter().all(|replica| replica.high_watermark == 1)
    });
    cluster.wait_until_well();
    assert!(cluster.nodes[0].run(&["cluster", "health"]).status.success());
    let (status, page) = cluster.nodes[0].get("/readyz");
    assert_eq!((status, page.contains("\"shards_unserved\":0")), (200, true), "{page}");
    cluster.nodes[1].kill9();
    cluster.nodes[2].kill9();
    let lost = |status: &DescribeClusterResponse| {
        let shards = || status.topics.iter().flat_map(|topic| &topic.shards);
        let is_lost = |shard: &ShardStatus| {
            let is_unknown = |replica: &ReplicaStatus| replica.lag_unknown;
            let dead_are_unknown = shard.replicas.iter().filter(|replica| replica.node_id != left).all(is_unknown);
            shard.leader_node_id == 0 && shard.fault.starts_with("no majority") && dead_are_unknown
        };
        status.catalog_leader_node_id == 0 && shards().filter(|shard| shard.replica_node_ids.len() == 3).all(is_lost)
    };
    cluster.wait_until("shards without a majority", lost);
    let said = cluster.nodes[0].run(&["cluster", "health"]);
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(
        text.starts_with("not healthy")
            && text.contains("no majority")
            && text.contains(&format!("node {second} is silent")),
        "{text}"
    );
    let text = cluster.run(&["cluster", "status"]);
    assert!(
        [second, third].iter().all(|id| text.contains(&format!("{id}:?"))) && text.contains("no majority"),
        "{text}"
    );
    let (status, page) = cluster.nodes[0].get("/readyz");
    assert_eq!((status, page.contains("\"ready\":false")), (503, true), "{page}");
    assert!(page.contains("no majority") || page.contains("no leader"), "{page}");
    // Told within a look of each reactor; who watches is told by itself.
    cluster.wait_until("nobody who leads for clients", |_| {
        let servers = cluster.ask(async |client| client.get_servers(vec!["t".into()]).await);
        servers.topics[0].shards.iter().all(|shard| shard.leader_node_id == 0)
    });
    let (_, servers) = cluster.nodes[0].get("/v1/servers?topic=t");
    assert!(!servers.contains(&format!("\"leader_node_id\":{left}")), "{servers}");
    let (_, metrics) = cluster.nodes[0].get("/metrics");
    assert!(metrics.contains("ringlog_shard_serving{topic=\"t\",shard=\"0\"} 0"), "{metrics}");
    let consume = ["consume", "--timeout", "3s", "--topic", "t", "--shard", "0"];
    let stale = cluster.run(&[&consume[..], &["--stale"]].concat());
    assert_eq!(stale, "kept\n");
    assert!(!cluster.nodes[0].run(&consume).status.success(), "what is missing cannot be known");
    // One of them is enough.
    cluster.nodes[1].start(&[]);
    cluster.wait_until("a majority", |status| {
        let shards = || status.topics.iter().flat_map(|topic| &topic.shards);
        status.catalog_leader_node_id != 0 && shards().all(|shard| shard.leader_node_id != 0 && shard.fault.is_empty())
    });
    let (status, page) = cluster.nodes[0].get("/readyz");
    assert_eq!(status, 200, "{page}");
}

/// Every node is stopped and started in turn, under load: no produce fails, nothing is lost or doubled.
#[test]
fn rolling_restart() {
    let mut cluster = start();
    let workload = Workload::start(&cluster.addresses(), "t", SHARDS);
    for _ in 0..2 {
        for number in 0..3 {
            let status = cluster.nodes[number].stop();
            assert!(status.success(), "{status}: {}", cluster.nodes[number].log());
            workload.wait_for_acks(10);
            cluster.nodes[number].start(&[]);
            cluster.wait_until("the node back", |status| alive(status) == 3 && keeps_up(status));
            workload.wait_for_acks(10);
        }
    }
    let history = workload.finish();
    println!(
        "p50 {:?}, p99.9 {:?}, longest {:?}",
        history.quantile(0.5),
        history.quantile(0.999),
        history.quantile(1.0)
    );
    assert_eq!(history.failures(), Vec::<&Outcome>::new(), "a rolling restart fails no produce");
    checker::check(&mut cluster, &history);
}

/// All nodes are killed at once, and come back: everything that was acknowledged is there.
#[test]
fn all_are_killed() {
    let mut cluster = start();
    let workload = Workload::start(&cluster.addresses(), "t", SHARDS);
    workload.wait_for_acks(50);
    for node in &mut cluster.nodes {
        node.kill9();
    }
    for node in &mut cluster.nodes {
        node.start(&[]);
    }
    cluster.wait_until("all back", |status| alive(status) == 3);
    workload.wait_for_acks(20);
    let history = workload.finish();
    checker::check(&mut cluster, &history);
}

/// A node loses its disk. Under its old id it never comes back: it joins as a new node, the old one is removed as dead, and
/// the replicas are made anew.
#[test]
fn a_follower_is_wiped() {
    let mut cluster = start();
    let workload = Workload::start(&cluster.addresses(), "t", SHARDS);
    let leader = cluster.leader("t", 0);
    // Not the first one, which has the key of the CA: see `ca_key`.
    let wiped = if leader == 1 { 2 } else { 1 };
    let old = cluster.nodes[wiped].id();
    cluster.nodes[wiped].kill9();
    cluster.nodes[wiped].wipe();
    workload.wait_for_acks(50);
    cluster.join(wiped);
    cluster.wait_until("a new node", |status| alive(status) == 3);
    let new = cluster.nodes[wiped].id();
    assert!(new > 3, "ids are never given out again: {new}");
    let request = RemoveNodeRequest { node_id: old, dead: true };
    cluster.ask(async |client| client.remove_node(&request).await);
    cluster.wait_until("replicas on the new node", |status| {
        let holds = |id| status.nodes.iter().find(|node| node.node_id == id).map_or(0, |node| node.replicas);
        let is_removed = |id| status.nodes.iter().any(|node| node.node_id == id && node.state() == NodeState::Removed);
        holds(old) == 0 && holds(new) >= 3 && is_removed(old) && keeps_up(status)
    });
    workload.wait_for_acks(20);
    let history = workload.finish();
    checker::check(&mut cluster, &history);
}

/// Without a majority nothing is acknowledged, and when it is back everything goes on: clients wait, nothing is lost.
#[test]
fn without_a_majority() {
    let mut cluster = Cluster::start(3);
    cluster.create_topic("t", 1, 3);
    let workload = Workload::start(&cluster.addresses(), "t", 1);
    let leader = cluster.leader("t", 0);
    let others: Vec<usize> = (0..3).filter(|number| *number != leader).collect();
    for number in &others {
        cluster.nodes[*number].kill9();
    }
    thread::sleep(Duration::from_secs(2));
    for number in &others {
        cluster.nodes[*number].start(&[]);
    }
    cluster.wait_until("all back", |status| alive(status) == 3);
    workload.wait_for_acks(20);
    let history = workload.finish();
    checker::check(&mut cluster, &history);
}

/// Power fails at all nodes, and every one finds damage: two in the catalog, all in a shard, each in other entries. They start,
/// mend each other, and nothing that was acknowledged is lost.
#[test]
fn all_are_damaged() {
    let mut cluster = start();
    let workload = Workload::start(&cluster.addresses(), "t", SHARDS);
    workload.wait_for_acks(200);
    let uid = cluster.shard("t", 1).shard_uid.to_string();
    // An entry takes what has gathered: how many there are depends on the machine.
    let is_long = |(number, node): (usize, &Node)| has_block(&node.data().join("shards").join(&uid), 5 + number as u64);
    while !cluster.nodes.iter().enumerate().all(is_long) {
        workload.wait_for_acks(20);
    }
    let history = workload.finish();
    cluster.nodes.iter_mut().for_each(|node| node.kill9());
    for (number, node) in cluster.nodes.iter().enumerate() {
        if number < 2 {
            damage(&node.data().join("shards/0"), 3 + number as u64);
        }
        damage(&node.data().join("shards").join(&uid), 4 + number as u64);
    }
    for node in &mut cluster.nodes {
        node.clear_log();
        node.start(&[]);
    }
    cluster.nodes[..2].iter_mut().for_each(|node| node.wait_for_log(&["the catalog was mended"]));
    cluster.wait_until_well();
    for (shard, outcomes) in history.shards.iter().enumerate() {
        // What is committed is known again when somebody leads: until then all replicas are alike in knowing nothing.
        let acked = |outcome: &Outcome| if let Outcome::Acked(offset) = outcome { offset + 1 } else { 0 };
        let end = outcomes.iter().map(acked).max().unwrap();
        let knows = |status: &DescribeClusterResponse| {
            let topic = status.topics.iter().find(|topic| topic.topic.as_ref().is_some_and(|topic| topic.name == "t"));
            topic.unwrap().shards[shard].replicas.iter().any(|replica| replica.high_watermark >= end)
        };
        cluster.wait_until("all that was acknowledged", knows);
    }
    // What is damaged in a segment that was full is found by reading.
    checker::check(&mut cluster, &history);
    cluster.nodes.iter_mut().for_each(|node| node.wait_for_log(&["shard serves again"]));
    cluster.wait_until_well();
    for node in &mut cluster.nodes {
        node.stop();
        let found = node.run(&["verify", node.data().to_str().unwrap()]);
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stdout));
    }
}

/// Whether a log has anything in that block.
fn has_block(shard: &Path, block: u64) -> bool {
    let bytes = fs::read(shard.join("00000000000000000000.store")).unwrap();
    bytes[block as usize * 4_096..][..4_096].iter().any(|byte| *byte != 0)
}

/// Flips a bit of the entry in that block of a log.
fn damage(shard: &Path, block: u64) {
    let store = shard.join("00000000000000000000.store");
    let mut bytes = fs::read(&store).unwrap();
    bytes[block as usize * 4_096 + 90] ^= 4;
    fs::write(&store, bytes).unwrap();
}
