//! Three real nodes, as their users and operators see them while all is well.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Duration,
};

use ringlog::{
    client::{self, Client, Start},
    ids::NodeId,
    proto::ringlog::v1::{
        ConsumeRequest, DrainNodeRequest, NodeState, ProduceRequest, Record, ShardStatus, TransferLeaderRequest,
    },
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    checker,
    harness::{Cluster, Ports, RINGLOG, alive, block_on, keeps_up},
    workload::{Outcome, Workload},
};

fn produce_request(topic: &str, shard: u32, value: &str) -> ProduceRequest {
    let record = Record { value: value.to_owned().into(), ..Record::default() };
    ProduceRequest { topic: topic.into(), shard: Some(shard), records: vec![record], ..ProduceRequest::default() }
}

/// Replicas are on distinct nodes and leaders on all of them; any node takes any request, says who leads, and gives back
/// what was written, also at once (read your writes).
#[test]
fn any_node_takes_any_request() {
    let cluster = Cluster::start(3);
    cluster.create_topic("t", 6, 3);
    let is_led_by_first = |shard: &ShardStatus| shard.replica_node_ids.first() == Some(&shard.leader_node_id);
    cluster.wait_until("leaders where they are wanted", |status| {
        status.topics.iter().flat_map(|topic| &topic.shards).all(is_led_by_first)
    });
    let status = cluster.status();
    let leaders: Vec<u32> = status.nodes.iter().map(|node| node.leaders).collect();
    let spread = leaders.iter().max().unwrap() - leaders.iter().min().unwrap();
    assert!(leaders.len() == 3 && spread <= 1, "leaders of all topics together are spread: {leaders:?}");
    let described = cluster.ask(async |client| client.describe_topic("t").await);
    for shard in &described.shards {
        assert_eq!(shard.replica_node_ids.iter().collect::<BTreeSet<_>>().len(), 3, "{shard:?}");
    }
    let addresses = cluster.addresses();
    block_on(async {
        for shard in 0..6 {
            let leader = described.shards[shard as usize].leader_node_id;
            let mut offset = 0;
            for address in &addresses {
                let client = Client::connect(address).await.unwrap();
                let ack = client.produce(&produce_request("t", shard, address)).await.unwrap();
                assert_eq!((ack.shard, ack.base_offset), (shard, offset));
                offset += 1;
                let hint = ack.leader.map(|hint| hint.node_id);
                let at_leader = address == &addresses[cluster.place(leader)];
                assert_eq!(hint, (!at_leader).then_some(leader), "who is not the leader says who is");
                for reader in &addresses {
                    let reader = Client::connect(reader).await.unwrap();
                    let start = Some(Start::Earliest.of_call());
                    let request = ConsumeRequest { topic: "t".into(), shard, start, ..ConsumeRequest::default() };
                    let own = ConsumeRequest { min_offset: Some(offset), ..request.clone() };
                    let linear = ConsumeRequest { linearizable: true, ..request };
                    for request in [own, linear] {
                        let response = reader.consume(&request).await.unwrap();
                        assert_eq!(response.records.len() as u64, offset, "{request:?}");
                    }
                }
            }
        }
    });
    let table = cluster.run(&["cluster", "status"]);
    assert!(table.lines().filter(|line| line.contains(" active ") && line.contains(" alive ")).count() == 3, "{table}");
    assert!(table.lines().filter(|line| line.starts_with("t ") && line.ends_with("serving")).count() == 6, "{table}");
    let status: Value = serde_json::from_str(&cluster.run(&["cluster", "status", "--json"])).unwrap();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
}

/// The command line against three nodes, given the address of any one of them.
#[test]
fn command_line() {
    let cluster = Cluster::start(3);
    cluster.run(&["topic", "create", "lines", "--shards", "3", "--replication-factor", "3"]);
    cluster.wait_until_well();
    let lines: String = (0..5_000).map(|number| format!("key{}:{number}\n", number % 17)).collect();
    let produce = |address: &str, args: &[&str]| {
        let mut child = Command::new(RINGLOG)
            .args(["produce", "--server", address])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(child.wait_with_output().unwrap().status.success());
    };
    produce(&cluster.nodes[2].grpc(), &["--topic", "lines", "--key-separator", ":"]);
    produce(&cluster.nodes[1].grpc(), &["--topic", "made-by-itself"]);
    for number in 0..3 {
        let output = cluster.nodes[number].run(&[
            "consume",
            "--topic",
            "lines",
            "--format",
            "key-value",
            "--key-separator",
            ":",
        ]);
        let text = String::from_utf8(output.stdout).unwrap();
        let (mut found, mut sent): (Vec<_>, Vec<_>) = (text.lines().collect(), lines.lines().collect());
        found.sort_unstable();
        sent.sort_unstable();
        assert!(found == sent, "node {number} gives {} of {} lines", found.len(), sent.len());
        let output = cluster.nodes[number].run(&["consume", "--topic", "made-by-itself"]);
        assert!(output.stdout == lines.as_bytes(), "one shard, in order");
    }
    let describe = cluster.run(&["topic", "describe", "lines"]);
    assert!(describe.contains("REPLICAS") && describe.contains("serving"), "{describe}");
    let seconds = ["--seconds", "0.5", "--warmup", "0", "--in-flight", "8", "--connections", "3", "-o", "json"];
    for route in ["--direct", "--any"] {
        let result = cluster.run(&[&["bench", "produce", "--shards", "3", route], &seconds[..]].concat());
        let result: Value = serde_json::from_str(&result).unwrap();
        assert!(result["records"].as_u64().unwrap() > 0 && result["errors"] == 0, "{result}");
    }
    let result =
        cluster.run(&["bench", "consume", "--topic", "bench", "--shards", "3", "--records", "3000", "-o", "json"]);
    let result: Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["records"], 3_000, "{result}");
}

/// The client library: what a producer writes, with keys and without, each consumer reads, from each node.
#[test]
fn library() {
    let cluster = Cluster::start(3);
    cluster.create_topic("t", 4, 3);
    block_on(async {
        let handle = client::Cluster::connect(&cluster.addresses()[1..2]).await.unwrap();
        assert_eq!(handle.topology().servers.len(), 3);
        let producer = handle.producer("t").open();
        let mut deliveries = Vec::new();
        for number in 0..2_000u32 {
            let key = if number % 2 == 0 { format!("{}", number % 10) } else { String::new() };
            let record = Record { key: key.into(), value: number.to_string().into(), ..Record::default() };
            deliveries.push(producer.send(record).await.unwrap());
        }
        let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
        for delivery in deliveries {
            let acked = delivery.await.unwrap();
            let end = ends.entry(acked.shard).or_default();
            *end = (*end).max(acked.offset + 1);
        }
        producer.close().await;
        assert_eq!(ends.values().sum::<u64>(), 2_000);
        for server in &handle.topology().servers {
            let mut builder = handle.consumer("t").prefer_node(server.node);
            for (shard, end) in &ends {
                builder = builder.end_of(*shard, *end).min_offset(*shard, *end);
            }
            let mut consumer = builder.shards(ends.keys().copied()).open().await.unwrap();
            let mut numbers = BTreeSet::new();
            while let Some(fetched) = consumer.next().await {
                for record in fetched.unwrap().records {
                    numbers.insert(String::from_utf8(record.value.to_vec()).unwrap().parse::<u32>().unwrap());
                }
            }
            assert_eq!(numbers.into_iter().collect::<Vec<_>>(), (0..2_000).collect::<Vec<_>>());
        }
    });
}

/// A fourth node joins under load, takes its share by a rebalance, is drained and removed: nothing fails, nothing is lost.
#[test]
fn grows_and_shrinks_under_load() {
    let mut cluster = Cluster::start(3);
    cluster.create_topic("t", 4, 3);
    let workload = Workload::start(&cluster.addresses(), "t", 4);
    let fourth = cluster.add();
    cluster.join(fourth);
    cluster.wait_until("the fourth node", |status| alive(status) == 4);
    let id = cluster.nodes[fourth].id();
    cluster.run(&["cluster", "rebalance"]);
    let holds = |status: &ringlog::proto::ringlog::v1::DescribeClusterResponse| {
        status.nodes.iter().find(|node| node.node_id == id).map_or(0, |node| node.replicas)
    };
    cluster.wait_until("replicas on the fourth node", |status| holds(status) > 0 && keeps_up(status));
    workload.wait_for_acks(20);
    let said = cluster.run(&["cluster", "drain", &id.to_string(), "--wait"]);
    assert!(said.contains(&format!("nothing is left on node {id}")), "{said}");
    cluster.wait_until("an empty fourth node", |status| holds(status) == 0 && keeps_up(status));
    cluster.run(&["cluster", "remove", &id.to_string()]);
    cluster.wait_until("a removed node", |status| {
        status.nodes.iter().all(|node| node.node_id != id || node.state() == NodeState::Removed)
    });
    workload.wait_for_acks(20);
    cluster.nodes.pop();
    let history = workload.finish();
    assert_eq!(history.failures(), Vec::<&Outcome>::new());
    checker::check(&mut cluster, &history);
}

/// Leadership goes where it is sent, and a drain is taken back.
#[test]
fn transfers_and_undrains() {
    let cluster = Cluster::start(3);
    cluster.create_topic("t", 1, 3);
    let workload = Workload::start(&cluster.addresses(), "t", 1);
    for to in [1, 2, 3, 1] {
        let request = TransferLeaderRequest { topic: "t".into(), shard: 0, to_node_id: to };
        let leader = cluster.ask(async |client| client.transfer_leader(&request).await);
        assert_eq!(leader, to);
        workload.wait_for_acks(5);
    }
    let request = DrainNodeRequest { node_id: 2, undo: false, force: true };
    let refused = block_on(async {
        let client = Client::connect(&cluster.nodes[0].grpc()).await.unwrap();
        let request = ringlog::proto::ringlog::v1::RemoveNodeRequest { node_id: 2, dead: false };
        client.remove_node(&request).await.unwrap_err()
    });
    assert!(refused.to_string().contains("FailedPrecondition"), "a node with replicas is not removed: {refused}");
    let refused = cluster.nodes[0].run(&["cluster", "drain", "2"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("want 3, have 2") && why.contains("--force"), "{why}");
    cluster.ask(async |client| client.drain_node(&request).await);
    cluster.wait_until("a draining node", |status| {
        status.nodes.iter().any(|node| node.node_id == 2 && node.state() == NodeState::Draining)
    });
    cluster.ask(async |client| client.drain_node(&DrainNodeRequest { undo: true, ..request }).await);
    cluster.wait_until("an active node", |status| {
        status.nodes.iter().all(|node| node.state() == NodeState::Active) && keeps_up(status)
    });
    let history = workload.finish();
    assert_eq!(history.failures(), Vec::<&Outcome>::new());
    let mut cluster = cluster;
    checker::check(&mut cluster, &history);
}

/// `ringlog dev-cluster`: three nodes with one command; one that is killed is reported, and the others go on; the end ends
/// them all.
#[test]
fn dev_cluster() {
    let dir = tempfile::tempdir().unwrap();
    // Three blocks in a row would be luck: the base port is one of a block, and the others may be taken.
    for _ in 0..20 {
        let base = Ports::take().grpc() + 2_000;
        let mut child = Command::new(RINGLOG)
            .args(["dev-cluster", "--base-port", &base.to_string(), "--data"])
            .arg(dir.path().join(base.to_string()))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (say, said) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| drop(say.send(line)));
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let export = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("export RINGLOG_SERVER=").map(str::to_owned));
        let Some(servers) = export else {
            // A port was taken.
            child.wait().unwrap();
            reader.join().unwrap();
            continue;
        };
        let run = |args: &[&str]| {
            let output = Command::new(RINGLOG).args(args).env("RINGLOG_SERVER", &servers).output().unwrap();
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let alive = || run(&["cluster", "status"]).lines().filter(|line| line.contains(" alive ")).count();
        assert_eq!(alive(), 3);
        let third = process_of(base + 20).expect("the third node runs");
        kill_process(third, Signal::KILL).unwrap();
        let is_said =
            said.iter().any(|line| line.contains("node 3 ended with signal: 9") && line.contains("go on without it"));
        assert!(is_said);
        while alive() != 2 {
            std::thread::sleep(Duration::from_millis(50));
        }
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(process_of(base).is_none() && process_of(base + 10).is_none(), "all have ended");
        reader.join().unwrap();
        return;
    }
    panic!("no free ports");
}

/// The process whose command line has this gRPC address.
fn process_of(port: u16) -> Option<Pid> {
    let wanted = format!("--grpc\0127.0.0.1:{port}\0");
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let entry = entry.unwrap();
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(&wanted).then(|| Pid::from_raw(pid).unwrap())
    })
}

/// A consumer that prefers a node gets what that node has.
#[test]
fn prefers_a_node() {
    let cluster = Cluster::start(3);
    cluster.create_topic("t", 1, 3);
    block_on(async {
        let handle = client::Cluster::connect(&cluster.addresses()).await.unwrap();
        let ack = handle.produce(&produce_request("t", 0, "x")).await.unwrap();
        for node in 1..=3 {
            let builder = handle.consumer("t").prefer_node(NodeId(node)).end_of(0, 1);
            let mut consumer = builder.min_offset(0, ack.base_offset + 1).open().await.unwrap();
            assert_eq!(consumer.next().await.unwrap().unwrap().records[0].value, "x");
            assert!(consumer.next().await.is_none());
        }
    });
}
