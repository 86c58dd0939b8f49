//! What only a cluster can show, on three real `ringlog serve` processes on this machine's loopback:
//!
//! ```text
//! cargo bench --bench cluster -- produce    latency of 1 record in flight, and rate of 256: medians of 5
//! cargo bench --bench cluster -- failover   20 kills of a leader: how long until a produce succeeds again
//! cargo bench --bench cluster -- catch-up   the leader's latency while a follower that is 1 GiB behind catches up
//! cargo bench --bench cluster -- idle       CPU of each node with 200 idle shards
//! ```
//! Without a name, all of them.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a bench of real processes, which may panic")]

use std::{
    cell::Cell,
    fs,
    net::{TcpListener, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use ringlog::{
    client::Client,
    proto::ringlog::v1::{CreateTopicRequest, ProduceRequest, Record},
};
use tokio::task::LocalSet;

const RINGLOG: &str = env!("CARGO_BIN_EXE_ringlog");
const NODES: usize = 3;
const KILLS: usize = 20;
const RECORD_BYTES: usize = 1_024;
const BEHIND_BYTES: u64 = 1 << 30;
const IDLE_SHARDS: u32 = 200;
const IDLE_WINDOW: Duration = Duration::from_secs(30);

struct Cluster {
    dir: tempfile::TempDir,
    nodes: Vec<Member>,
    token: String,
}

struct Member {
    child: Option<Child>,
    grpc: String,
    http: String,
    peer: String,
}

impl Cluster {
    fn start() -> Cluster {
        let nodes = (0..NODES).map(|_| Member { child: None, grpc: tcp(), http: tcp(), peer: udp() }).collect();
        let mut cluster = Cluster { dir: tempfile::tempdir().unwrap(), nodes, token: String::new() };
        cluster.launch(0);
        let made =
            Command::new(RINGLOG).args(["cluster", "token", "--server", &cluster.nodes[0].grpc]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let text = String::from_utf8(made.stdout).unwrap();
        let token = text.split_whitespace().find(|word| word.starts_with("ringlog-join-")).unwrap();
        token.clone_into(&mut cluster.token);
        for number in 1..NODES {
            cluster.launch(number);
        }
        cluster
    }

    fn data(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("node-{}", number + 1))
    }

    fn launch(&mut self, number: usize) {
        let (data, first) = (self.data(number), self.nodes[0].peer.clone());
        let log = fs::File::options().create(true).append(true).open(data.with_extension("log")).unwrap();
        let node = &mut self.nodes[number];
        let mut command = Command::new(RINGLOG);
        command.args(["serve", "--reactors", "1", "--no-pin", "--log-format", "text"]);
        command.args(["--grpc", &node.grpc, "--http", &node.http, "--peer", &node.peer]).arg("--data").arg(data);
        if number > 0 {
            command.args(["--join", &first, "--join-token", &self.token]);
        }
        node.child = Some(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let grpc = node.grpc.clone();
        wait(
            || block_on(async { Client::connect_within(&grpc, Duration::from_secs(1)).await.is_ok() }),
            "a node serves",
        );
    }

    fn kill(&mut self, number: usize) {
        let mut child = self.nodes[number].child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks a node to end, and waits for that.
    fn stop(&mut self, number: usize) {
        let mut child = self.nodes[number].child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap();
    }

    fn create(&self, topic: &str, shards: u32) {
        let request = CreateTopicRequest {
            name: topic.to_owned(),
            shards,
            replication_factor: NODES as u32,
            ..CreateTopicRequest::default()
        };
        let grpc = &self.nodes[0].grpc;
        block_on(async { Client::connect(grpc).await.unwrap().create_topic(&request).await.unwrap() });
    }

    /// Node (as a place in `nodes`) that leads a shard, as `asked` sees it; `None` between two.
    fn leader(&self, asked: usize, topic: &str) -> Option<usize> {
        let servers = block_on(async {
            let client = Client::connect_within(&self.nodes[asked].grpc, Duration::from_secs(5)).await.ok()?;
            client.get_servers(vec![topic.to_owned()]).await.ok()
        })?;
        let leader = servers.topics[0].shards[0].leader_node_id;
        let address = servers.servers.iter().find(|server| server.node_id == leader)?.grpc_address.clone();
        self.nodes.iter().position(|node| node.grpc == address && node.child.is_some())
    }

    /// Waits until every replica of a topic has everything.
    fn settle(&self, topic: &str) {
        let grpc = self.nodes[0].grpc.clone();
        let even = || {
            let described = block_on(async {
                Client::connect_within(&grpc, Duration::from_secs(5)).await.ok()?.describe_topic(topic).await.ok()
            });
            described.is_some_and(|described| {
                described.shards.iter().all(|shard| {
                    let live = shard.replicas.iter().filter(|replica| replica.fault.is_empty() && !replica.learner);
                    let mut ends: Vec<u64> = live.map(|replica| replica.log_end).collect();
                    ends.dedup();
                    shard.leader_node_id != 0 && shard.replicas.len() == NODES && ends.len() == 1
                })
            })
        };
        wait(even, "all replicas have everything");
    }

    fn cpu(&self, number: usize) -> Duration {
        let pid = self.nodes[number].child.as_ref().unwrap().id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().filter_map(|node| node.child.as_mut()) {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn tcp() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn udp() -> String {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, work)
}

fn wait(mut is_so: impl FnMut() -> bool, what: &str) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(180), "{what}: not within three minutes");
        thread::sleep(Duration::from_millis(50));
    }
}

fn request(topic: &str) -> ProduceRequest {
    let record = Record { value: vec![7; RECORD_BYTES].into(), ..Record::default() };
    ProduceRequest { topic: topic.to_owned(), shard: Some(0), records: vec![record], ..ProduceRequest::default() }
}

/// The value below which `share` of them are.
fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1]
}

/// Rounds of `produce`.
const ROUNDS: usize = 5;

/// One run of `ringlog bench produce`; its result.
fn bench_produce(grpc: &str, in_flight: usize, more: &[&str]) -> serde_json::Value {
    let output = Command::new(RINGLOG)
        .args(["bench", "produce", "--server", grpc, "--topic", "produce", "--seconds", "4", "--warmup", "1"])
        .args(["--in-flight", &in_flight.to_string(), "--record-bytes", &RECORD_BYTES.to_string(), "-o", "json"])
        .args(more)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Prints one field's values and their median.
fn print_medians(what: &str, runs: &[serde_json::Value], fields: &[(&str, &str)]) {
    for (field, unit) in fields {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run[*field].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        println!("{what}: {field} {} {unit} of {values:?}", values[values.len() / 2]);
    }
}

fn produce() {
    let cluster = Cluster::start();
    cluster.create("produce", 1);
    cluster.settle("produce");
    println!("produce: nodes and client wherever the kernel puts them");
    produce_rounds(&cluster);
    let leader = cluster.leader(0, "produce").unwrap();
    println!("produce: the leader's node on the last core, the followers' on the others");
    let cores = thread::available_parallelism().unwrap().get();
    for number in 0..NODES {
        let on = if number == leader || cores == 1 { format!("{}", cores - 1) } else { format!("0-{}", cores - 2) };
        let pid = cluster.nodes[number].child.as_ref().unwrap().id().to_string();
        let pinned = Command::new("taskset").args(["-a", "-cp", &on, &pid]).output().unwrap();
        assert!(pinned.status.success(), "{}", String::from_utf8_lossy(&pinned.stderr));
    }
    produce_rounds(&cluster);
}

fn produce_rounds(cluster: &Cluster) {
    let grpc = &cluster.nodes[0].grpc;
    let (mut one, mut many) = (Vec::new(), Vec::new());
    // The device as it is in this run; the first writes also make the first segments.
    let floor = cluster.dir.path().to_str().unwrap();
    for round in 0..=ROUNDS {
        let runs = (
            bench_produce(grpc, 1, &["--busy-poll", "off", "--floor", "--floor-dir", floor]),
            bench_produce(grpc, 256, &[]),
        );
        if round > 0 {
            one.push(runs.0);
            many.push(runs.1);
        }
    }
    let micros = [("p50_us", "us"), ("p99_us", "us"), ("floor_p50_us", "us"), ("floor_p99_us", "us")];
    print_medians("1 in flight (bars: p50 400 us, p99 1,200 us)", &one, &micros);
    let many_fields = [("records_per_s", "records/s"), ("p50_us", "us"), ("p99_us", "us")];
    print_medians("256 in flight (bars: 50,000 records/s, p99 15,000 us)", &many, &many_fields);
}

fn failover() {
    let mut cluster = Cluster::start();
    cluster.create("failover", 1);
    cluster.settle("failover");
    let mut gaps = Vec::new();
    for kill in 0..KILLS {
        let asked = kill % NODES;
        let mut leader = None;
        wait(
            || {
                leader = cluster.leader(asked, "failover");
                leader.is_some()
            },
            "the shard has a leader",
        );
        let leader = leader.unwrap();
        let survivor = (leader + 1) % NODES;
        let grpc = cluster.nodes[survivor].grpc.clone();
        let mut gap = Duration::ZERO;
        block_on(async {
            let client = Client::connect(&grpc).await.unwrap();
            for _ in 0..50 {
                client.produce(&request("failover")).await.unwrap();
            }
            cluster.kill(leader);
            let killed = Instant::now();
            // One that was in flight may fail; the next one waits for the new leader.
            while client.produce(&request("failover")).await.is_err() {}
            gap = killed.elapsed();
        });
        println!("  kill {:2}: node {} led; the next ack came after {:.3} s", kill + 1, leader + 1, gap.as_secs_f64());
        gaps.push(gap);
        cluster.launch(leader);
        cluster.settle("failover");
    }
    gaps.sort_unstable();
    println!(
        "failover: {KILLS} kills of the leader: p50 {:.3} s, p99 {:.3} s (bar 1.5 s)",
        percentile(&gaps, 0.5).as_secs_f64(),
        percentile(&gaps, 0.99).as_secs_f64()
    );
}

/// Produces one record after the other while `go_on`, on `streams` tasks; gives the latencies, sorted.
fn latencies(grpc: &str, topic: &str, streams: usize, mut go_on: impl FnMut() -> bool) -> Vec<Duration> {
    block_on(async {
        let stop = Rc::new(Cell::new(false));
        let client = Client::connect(grpc).await.unwrap();
        let tasks: Vec<_> = (0..streams)
            .map(|_| {
                let (client, stop, request) = (client.clone(), stop.clone(), request(topic));
                tokio::task::spawn_local(async move {
                    let mut taken = Vec::new();
                    while !stop.get() {
                        let since = Instant::now();
                        client.produce(&request).await.unwrap();
                        taken.push(since.elapsed());
                    }
                    taken
                })
            })
            .collect();
        while go_on() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stop.set(true);
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.unwrap());
        }
        all.sort_unstable();
        all
    })
}

fn catch_up() {
    const STREAMS: usize = 16;
    let mut cluster = Cluster::start();
    cluster.create("behind", 1);
    cluster.settle("behind");
    let leader = cluster.leader(0, "behind").unwrap();
    let follower = (leader + 1) % NODES;
    let grpc = cluster.nodes[leader].grpc.clone();
    cluster.stop(follower);
    let fill = Command::new(RINGLOG)
        .args(["bench", "produce", "--server", &grpc, "--topic", "behind", "--in-flight", "32", "--batch", "100"])
        .args(["--records", &(BEHIND_BYTES / RECORD_BYTES as u64).to_string()])
        .output()
        .unwrap();
    assert!(fill.status.success(), "{}", String::from_utf8_lossy(&fill.stderr));
    let since = Instant::now();
    let without = latencies(&grpc, "behind", STREAMS, || since.elapsed() < Duration::from_secs(10));
    let end = |cluster: &Cluster, number: usize| {
        let address = &cluster.nodes[number].grpc;
        let described = block_on(async {
            Client::connect_within(address, Duration::from_secs(5)).await.ok()?.describe_topic("behind").await.ok()
        });
        described.map_or(0, |described| described.shards[0].log_end)
    };
    let goal = end(&cluster, leader);
    cluster.launch(follower);
    let since = Instant::now();
    let follower_grpc = cluster.nodes[follower].grpc.clone();
    let done = thread::scope(|scope| {
        let watch = scope.spawn(move || {
            loop {
                let described = block_on(async {
                    let client = Client::connect_within(&follower_grpc, Duration::from_secs(5)).await.ok()?;
                    client.describe_topic("behind").await.ok()
                });
                let own = described
                    .and_then(|described| described.shards[0].replicas.iter().map(|replica| replica.log_end).min());
                if own.is_some_and(|own| own >= goal) {
                    return since.elapsed();
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        let during = latencies(&grpc, "behind", STREAMS, || !watch.is_finished());
        (watch.join().unwrap(), during)
    });
    let (took, during) = done;
    let (before, after) = (percentile(&without, 0.99), percentile(&during, 0.99));
    println!(
        "catch-up: 1 GiB in {:.1} s; the leader's p99 was {:.2} ms without and {:.2} ms during it: {:.2}x (bar 2)",
        took.as_secs_f64(),
        before.as_secs_f64() * 1e3,
        after.as_secs_f64() * 1e3,
        after.as_secs_f64() / before.as_secs_f64()
    );
}

fn idle() {
    let cluster = Cluster::start();
    cluster.create("idle", IDLE_SHARDS);
    cluster.settle("idle");
    thread::sleep(Duration::from_secs(10));
    let before: Vec<_> = (0..NODES).map(|number| cluster.cpu(number)).collect();
    thread::sleep(IDLE_WINDOW);
    for (number, before) in before.iter().enumerate() {
        let share = (cluster.cpu(number) - *before).as_secs_f64() / IDLE_WINDOW.as_secs_f64();
        println!(
            "idle: node {}: {:.1} % of a core with {IDLE_SHARDS} idle shards (bar 5 %)",
            number + 1,
            share * 100.0
        );
    }
}

fn main() {
    // `cargo bench` passes --bench.
    let names: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|word| word == name);
    let runs: [(&str, fn()); 4] =
        [("produce", produce), ("failover", failover), ("catch-up", catch_up), ("idle", idle)];
    for (name, run) in runs {
        if wanted(name) {
            run();
        }
    }
}
