//! Three real nodes in network namespaces, and packets that do not arrive: full and one-way partitions, of the leader and
//! of a follower, and between clients and nodes.

use std::time::Duration;

use ringlog::{
    client::{Client, Start},
    proto::ringlog::v1::{ConsumeRequest, ProduceRequest, Record},
};

use crate::{
    checker,
    harness::{Cluster, Node, alive, block_on, keeps_up},
    net::Net,
    workload::{History, Outcome, Workload},
};

/// Three nodes in namespaces, a topic of one shard on all of them, and who leads it.
fn start() -> Option<(Net, Cluster, usize)> {
    let net = Net::new(3)?;
    let dir = tempfile::tempdir().unwrap();
    let nodes = (0..3).map(|number| {
        let prefix = net.prefix(number);
        let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
        let mut node = Node::new(&dir.path().join(format!("n{}", number + 1)), &net.host(number), &prefix);
        node.flags.push("--insecure".to_owned());
        node
    });
    let nodes = nodes.collect();
    let cluster = Cluster { nodes, dir }.join_all();
    cluster.create_topic("t", 1, 3);
    let leader = cluster.leader("t", 0);
    Some((net, cluster, leader))
}

fn others(leader: usize) -> [usize; 2] {
    [(leader + 1) % 3, (leader + 2) % 3]
}

/// Heals the network, lets everything go on for a while, and compares.
fn heal_and_check(net: &Net, cluster: &mut Cluster, workload: Workload) -> History {
    net.heal();
    cluster.wait_until("a whole cluster", |status| alive(status) == 3);
    workload.wait_for_acks(20);
    let history = workload.finish();
    println!("failures {:?}, longest {:?}", history.failures(), history.quantile(1.0));
    assert_eq!(history.count(|outcome| matches!(outcome, Outcome::Refused(_))), 0, "{:?}", history.failures());
    checker::check(cluster, &history);
    history
}

/// The others elect another leader, and see that this one is gone; it itself acknowledges nothing any more.
fn the_majority_goes_on(cluster: &Cluster, workload: &Workload, leader: usize) {
    workload.wait_for_acks(50);
    let id = cluster.nodes[leader].id();
    let [one, _] = others(leader);
    let status = cluster.status_of(one).unwrap();
    let shard = &status.topics.iter().find(|topic| topic.topic.as_ref().unwrap().name == "t").unwrap().shards[0];
    assert!(shard.leader_node_id != id && shard.leader_node_id != 0, "{status:#?}");
}

fn record(value: &str) -> Record {
    Record { value: value.to_owned().into(), ..Record::default() }
}

/// The leader sees nobody and nobody sees it, but clients do: they write through the others, and what is written through
/// the isolated one is never acknowledged.
#[test]
fn leader_is_isolated() {
    let Some((net, mut cluster, leader)) = start() else { return };
    let workload = Workload::start(&cluster.addresses(), "t", 1);
    for other in others(leader) {
        net.part(leader, other);
    }
    the_majority_goes_on(&cluster, &workload, leader);
    let error = block_on(async {
        let client = Client::connect(&cluster.nodes[leader].grpc()).await.unwrap();
        let request = ProduceRequest {
            topic: "t".into(),
            shard: Some(0),
            records: vec![record("from the minority")],
            ..ProduceRequest::default()
        };
        client.with_timeout(Duration::from_secs(3)).produce(&request).await.unwrap_err()
    });
    println!("a produce to the isolated leader: {error}");
    // What it has, it gives; but not as the present state.
    block_on(async {
        let client = Client::connect(&cluster.nodes[leader].grpc()).await.unwrap();
        let start = Some(Start::Earliest.of_call());
        let stale = ConsumeRequest { topic: "t".into(), shard: 0, start, max_records: 1, ..ConsumeRequest::default() };
        assert_eq!(client.consume(&stale).await.unwrap().records.len(), 1);
        let linear = ConsumeRequest { linearizable: true, ..stale };
        client.with_timeout(Duration::from_secs(3)).consume(&linear).await.unwrap_err();
    });
    let status = cluster.status_of(leader).unwrap();
    assert_eq!(alive(&status), 1, "the operator sees there that it is alone: {status:#?}");
    net.heal();
    cluster.wait_until("a whole cluster", |status| alive(status) == 3);
    workload.wait_for_acks(20);
    let history = workload.finish();
    let strangers: &[&str] = if error.is_definite() { &[] } else { &["from the minority"] };
    checker::check_with(&mut cluster, &history, strangers);
}

/// What the leader sends does not arrive; what it is sent does.
#[test]
fn leader_is_mute() {
    let Some((net, mut cluster, leader)) = start() else { return };
    let workload = Workload::start(&cluster.addresses(), "t", 1);
    for other in others(leader) {
        net.cut(&net.host(leader), other);
    }
    the_majority_goes_on(&cluster, &workload, leader);
    heal_and_check(&net, &mut cluster, workload);
}

/// What the leader is sent does not arrive; what it sends does: it looks alive, and can have nothing acknowledged.
#[test]
fn leader_is_deaf() {
    let Some((net, mut cluster, leader)) = start() else { return };
    let workload = Workload::start(&cluster.addresses(), "t", 1);
    for other in others(leader) {
        net.cut(&net.host(other), leader);
    }
    the_majority_goes_on(&cluster, &workload, leader);
    heal_and_check(&net, &mut cluster, workload);
}

/// A follower that nobody reaches changes nothing for clients; when it is back it disturbs nobody and catches up.
#[test]
fn follower_is_isolated() {
    let Some((net, mut cluster, leader)) = start() else { return };
    let [follower, other] = others(leader);
    let workload = Workload::start(&[cluster.nodes[leader].grpc()], "t", 1);
    net.part(follower, leader);
    net.part(follower, other);
    workload.wait_for_acks(200);
    // As the leader sees it: the isolated one knows no better than that it hears of none.
    let status = cluster.status_of(leader).unwrap();
    let topic = status.topics.iter().find(|topic| topic.topic.as_ref().unwrap().name == "t").unwrap();
    let before = topic.shards[0].clone();
    assert_eq!(alive(&status), 2, "{status:#?}");
    net.heal();
    cluster.wait_until("a whole cluster", |status| alive(status) == 3 && keeps_up(status));
    let after = cluster.shard("t", 0);
    assert_eq!((before.leader_node_id, before.term), (after.leader_node_id, after.term), "it disturbs nobody");
    let history = heal_and_check(&net, &mut cluster, workload);
    assert_eq!(history.failures(), Vec::<&Outcome>::new());
}

/// The leader and one follower do not reach each other; both reach the third node. Somebody leads, and everybody writes.
#[test]
fn a_bridge() {
    let Some((net, mut cluster, leader)) = start() else { return };
    let [one, _] = others(leader);
    let workload = Workload::start(&cluster.addresses(), "t", 1);
    net.part(leader, one);
    workload.wait_for_acks(200);
    heal_and_check(&net, &mut cluster, workload);
}

/// Clients do not reach the leader: they write through the others, which do.
#[test]
fn clients_are_cut_off_from_the_leader() {
    let Some((net, mut cluster, leader)) = start() else { return };
    let workload = Workload::start(&cluster.addresses(), "t", 1);
    let before = cluster.shard("t", 0);
    net.cut(&net.client(), leader);
    workload.wait_for_acks(100);
    let [one, _] = others(leader);
    let status = cluster.status_of(one).unwrap();
    let shard = &status.topics.iter().find(|topic| topic.topic.as_ref().unwrap().name == "t").unwrap().shards[0];
    assert_eq!((shard.leader_node_id, shard.term), (before.leader_node_id, before.term), "the nodes see each other");
    heal_and_check(&net, &mut cluster, workload);
}
