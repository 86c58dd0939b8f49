//! Clusters of real `ringlog serve` processes, for tests that break them: start, kill, pause, restart, wipe, and look.
//! Everything is on loopback (or in network namespaces, see `net`) and below a temporary directory.

use std::{
    cell::Cell,
    fs::{self, File},
    future::Future,
    io::{Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use ringlog::{
    client::{Client, ClientError},
    proto::ringlog::v1::{self, CreateJoinTokenRequest, CreateTopicRequest, DescribeClusterResponse, ShardStatus},
};
use rustix::process::{Pid, Signal, kill_process};

/// Long enough for the slowest machine: only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub const RINGLOG: &str = env!("CARGO_BIN_EXE_ringlog");

/// Reactors of each node: shards of one node are on several cores, and forwarding crosses them.
const REACTORS: u16 = 2;

/// Ports of one node: the first is our lock on the block, then gRPC, HTTP, and one for each reactor's peers.
const BLOCK_PORTS: u16 = 16;

/// Runs a future on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Ports that are ours as long as this lives, also while the node that uses them is down.
pub struct Ports {
    _lock: TcpListener,
    base: u16,
}

impl Ports {
    pub fn take() -> Ports {
        // Below the ephemeral ports, so that no client's socket takes one.
        let blocks = (32_000 - 20_000) / BLOCK_PORTS;
        for _ in 0..10 * blocks {
            let base = 20_000 + BLOCK_PORTS * fastrand::u16(..blocks);
            let Ok(lock) = TcpListener::bind(("127.0.0.1", base)) else { continue };
            let is_free = |port: u16| {
                TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
            };
            if (base + 1..base + BLOCK_PORTS).all(is_free) {
                return Ports { _lock: lock, base };
            }
        }
        panic!("no free ports on this machine");
    }

    pub fn grpc(&self) -> u16 {
        self.base + 1
    }

    pub fn http(&self) -> u16 {
        self.base + 2
    }

    pub fn peer(&self) -> u16 {
        self.base + 3
    }
}

/// One node: its place, and its process while it runs.
pub struct Node {
    dir: PathBuf,
    host: String,
    ports: Ports,
    /// What `serve` gets beside addresses and data directory.
    pub flags: Vec<String>,
    /// `ip netns exec NAME`, for a node in a network namespace.
    prefix: Vec<String>,
    child: Option<Child>,
    paused: Cell<bool>,
}

impl Node {
    /// A node that does not run yet; its data is in `dir`/data.
    pub fn new(dir: &Path, host: &str, prefix: &[&str]) -> Node {
        fs::create_dir_all(dir).unwrap();
        let prefix = prefix.iter().map(|part| (*part).to_owned()).collect();
        Node {
            dir: dir.to_owned(),
            host: host.to_owned(),
            ports: Ports::take(),
            flags: Vec::new(),
            prefix,
            child: None,
            paused: Cell::new(false),
        }
    }

    pub fn grpc(&self) -> String {
        format!("{}:{}", self.host, self.ports.grpc())
    }

    pub fn http(&self) -> String {
        format!("{}:{}", self.host, self.ports.http())
    }

    pub fn peer(&self) -> String {
        format!("{}:{}", self.host, self.ports.peer())
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its id, from the file `identity`, which is there once it has begun or joined a cluster.
    pub fn id(&self) -> u64 {
        let since = Instant::now();
        loop {
            let identity = fs::read_to_string(self.data().join("identity")).unwrap_or_default();
            if let Some(id) = identity.lines().find_map(|line| line.strip_prefix("node ")) {
                return id.parse().unwrap();
            }
            assert!(since.elapsed() < PATIENCE, "it does not join:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts the process; `with` are flags for this time only.
    pub fn start(&mut self, with: &[&str]) {
        assert!(self.child.is_none(), "it runs already");
        let mut line = self.prefix.clone();
        line.push(RINGLOG.to_owned());
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .args(["serve", "--log-format", "text", "--no-pin", "--reactors", &REACTORS.to_string()])
            .args(["--grpc", &self.grpc(), "--http", &self.http(), "--peer", &self.peer(), "--data"])
            .arg(self.data())
            .args(&self.flags)
            .args(with)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(self.log_path()).unwrap());
        // Settings of whoever runs the tests are not ours.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("RINGLOG_")) {
            command.env_remove(name);
        }
        self.child = Some(command.spawn().unwrap());
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("server.log")
    }

    /// What it logged, over all its lives.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// Forgets what it logged.
    pub fn clear_log(&self) {
        // It appends: the next line is the first one.
        File::options().write(true).truncate(true).open(self.log_path()).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Kills it without warning.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks it to end, and waits for that.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_for_end()
    }

    /// Waits until it ends by itself.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().expect("it runs").try_wait().unwrap() {
                self.child = None;
                return status;
            }
            assert!(since.elapsed() < PATIENCE, "the node does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until it ends with code 1, and gives the one sentence that it said about it.
    pub fn refusal(&mut self) -> String {
        let status = self.wait_for_end();
        let log = self.log();
        assert_eq!(status.code(), Some(1), "{log}");
        let sentences: Vec<&str> = log.lines().filter(|line| line.starts_with("ringlog: ")).collect();
        assert_eq!(sentences.len(), 1, "one sentence is said:\n{log}");
        sentences[0].to_owned()
    }

    /// Stops it in the middle of whatever it does; sockets stay open.
    pub fn pause(&self) {
        self.paused.set(true);
        self.signal(Signal::STOP);
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.paused.set(false);
        self.signal(Signal::CONT);
    }

    /// Removes all that it has on disk.
    pub fn wipe(&self) {
        assert!(self.child.is_none(), "it runs");
        fs::remove_dir_all(self.data()).unwrap();
    }

    /// Waits until its log has a line with all of these.
    pub fn wait_for_log(&mut self, words: &[&str]) {
        let since = Instant::now();
        loop {
            let log = self.log();
            if log.lines().any(|line| words.iter().all(|word| line.contains(word))) {
                return;
            }
            assert!(since.elapsed() < PATIENCE, "{words:?} is not said by {}:\n{log}", self.dir.display());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The status and the body of a page of its HTTP listener.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(self.http()).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.http()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (status.unwrap_or_else(|| panic!("no answer: {answer:?}")), body.unwrap_or_default())
    }

    /// A client command against it.
    pub fn run(&self, args: &[&str]) -> Output {
        Command::new(RINGLOG).args(args).env("RINGLOG_SERVER", self.grpc()).stdin(Stdio::null()).output().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // A paused process does not see a kill before it goes on; it may have ended already.
        kill_process(Pid::from_child(&child), Signal::CONT).ok();
        drop(child.kill());
        drop(child.wait());
        if thread::panicking() {
            eprintln!("== {}\n{}", self.dir.display(), self.log());
        }
    }
}

/// Several nodes that are one cluster.
pub struct Cluster {
    /// In the order in which they joined. Before `dir`: their logs are shown when a test fails.
    pub nodes: Vec<Node>,
    pub dir: tempfile::TempDir,
}

impl Cluster {
    /// That many nodes on loopback, joined and well.
    pub fn start(count: usize) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let nodes = (1..=count).map(|number| Node::new(&dir.path().join(format!("n{number}")), "127.0.0.1", &[]));
        let nodes = nodes.collect();
        Cluster { nodes, dir }.join_all()
    }

    /// Starts the nodes, which have no data yet: the first one begins a cluster, the others join it one by one.
    pub fn join_all(mut self) -> Cluster {
        self.nodes[0].start(&[]);
        self.wait_until("the first node", |status| status.catalog_leader_node_id != 0);
        for number in 1..self.nodes.len() {
            self.join(number);
            let wanted = number + 1;
            self.wait_until("a node that joins", |status| alive(status) == wanted);
        }
        self.wait_until_well();
        self
    }

    /// Has a node without data join by the first running one.
    pub fn join(&mut self, number: usize) {
        let seed = self.answering().next().expect("a node runs").peer();
        let token = self.token();
        self.nodes[number].start(&["--join", &seed, "--join-token", &token]);
    }

    /// Another node, not started.
    pub fn add(&mut self) -> usize {
        let number = self.nodes.len();
        self.nodes.push(Node::new(&self.dir.path().join(format!("n{}", number + 1)), "127.0.0.1", &[]));
        number
    }

    pub fn token(&self) -> String {
        self.ask(async |client| client.create_join_token(&CreateJoinTokenRequest::default()).await).token
    }

    /// gRPC addresses of all nodes, running or not.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(Node::grpc).collect()
    }

    /// Place in `nodes` of the node with that id.
    pub fn place(&self, id: u64) -> usize {
        let found = self.nodes.iter().position(|node| node.data().join("identity").exists() && node.id() == id);
        found.unwrap_or_else(|| panic!("there is no node {id}"))
    }

    /// Asks the first node that answers, again and again until one does.
    pub fn ask<T>(&self, ask: impl AsyncFn(&Client) -> Result<T, ClientError>) -> T {
        let since = Instant::now();
        let mut last = None;
        while since.elapsed() < PATIENCE {
            for address in self.answering().map(Node::grpc) {
                match block_on(ask_one(&address, &ask)) {
                    Ok(answer) => return answer,
                    Err(error) => last = Some(error),
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("no node answers: {last:?}{}", self.logs());
    }

    /// Nodes that run and do not stand still.
    fn answering(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.child.is_some() && !node.paused.get())
    }

    /// The state of the cluster, as the first node that answers sees it.
    pub fn status(&self) -> DescribeClusterResponse {
        self.ask(async |client| client.describe_cluster().await)
    }

    /// The same as one node sees it, if it answers.
    pub fn status_of(&self, number: usize) -> Result<DescribeClusterResponse, ClientError> {
        block_on(ask_one(&self.nodes[number].grpc(), &async |client: &Client| client.describe_cluster().await))
    }

    /// Waits until the state of the cluster is so.
    pub fn wait_until(&self, what: &str, is_so: impl Fn(&DescribeClusterResponse) -> bool) -> DescribeClusterResponse {
        let since = Instant::now();
        loop {
            let status = self.status();
            if is_so(&status) {
                return status;
            }
            assert!(since.elapsed() < PATIENCE, "waited for {what} in vain: {status:#?}{}", self.logs());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until every node that runs is alive, and every shard has a leader, all its replicas, and no lag.
    pub fn wait_until_well(&self) {
        let running = self.answering().count();
        self.wait_until("a cluster without troubles", |status| alive(status) == running && is_well(status));
    }

    /// Waits until each node that runs sees all of them alive. A node that was just started hears of the others one by one.
    pub fn wait_until_all_see_all(&self) {
        let running: Vec<usize> = (0..self.nodes.len()).filter(|&number| self.nodes[number].child.is_some()).collect();
        let sees_all = |&number: &usize| self.status_of(number).is_ok_and(|status| alive(&status) == running.len());
        let since = Instant::now();
        while !running.iter().all(sees_all) {
            assert!(since.elapsed() < PATIENCE, "not each of {running:?} sees all of them alive{}", self.logs());
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn create_topic(&self, name: &str, shards: u32, replication_factor: u32) {
        let request = CreateTopicRequest { name: name.into(), shards, replication_factor, ..Default::default() };
        self.ask(async |client| match client.create_topic(&request).await {
            // An earlier try did it.
            Err(error) if error.to_string().contains("AlreadyExists") => Ok(()),
            made => made.map(drop),
        });
        self.wait_until_well();
    }

    /// The state of one shard.
    pub fn shard(&self, topic: &str, shard: u32) -> ShardStatus {
        let described = self.ask(async |client| client.describe_topic(topic).await);
        described.shards.into_iter().find(|status| status.shard == shard).unwrap()
    }

    /// Place in `nodes` of the leader of a shard, once it has one.
    pub fn leader(&self, topic: &str, shard: u32) -> usize {
        let since = Instant::now();
        loop {
            let leader = self.shard(topic, shard).leader_node_id;
            if leader != 0 {
                return self.place(leader);
            }
            assert!(since.elapsed() < PATIENCE, "topic {topic} shard {shard} has no leader{}", self.logs());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a client command against the first running node, which must succeed; gives its stdout.
    pub fn run(&self, args: &[&str]) -> String {
        let node = self.answering().next().expect("a node runs");
        let output = node.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {stderr}{}", self.logs());
        String::from_utf8(output.stdout).unwrap()
    }

    /// What all nodes logged.
    pub fn logs(&self) -> String {
        self.nodes.iter().map(|node| format!("\n== {}\n{}", node.dir.display(), node.log())).collect()
    }
}

async fn ask_one<T>(address: &str, ask: &impl AsyncFn(&Client) -> Result<T, ClientError>) -> Result<T, ClientError> {
    // Short, because another node may answer; long enough for a busy machine, as it is tried again.
    let client = Client::connect_within(address, Duration::from_secs(10)).await?;
    ask(&client).await
}

/// Nodes that are alive and not removed.
pub fn alive(status: &DescribeClusterResponse) -> usize {
    status.nodes.iter().filter(|node| node.alive && node.state() != v1::NodeState::Removed).count()
}

/// Whether every shard has a leader, all its replicas, and no lag.
pub fn is_well(status: &DescribeClusterResponse) -> bool {
    has_no_troubles(status, 0)
}

/// The same while clients write: a replica that follows is a little behind whenever one looks.
pub fn keeps_up(status: &DescribeClusterResponse) -> bool {
    has_no_troubles(status, LAG_UNDER_LOAD)
}

/// Records that a replica may be behind while clients write: more than are in flight at once, and less than it would be
/// behind soon if it did not follow.
const LAG_UNDER_LOAD: u64 = 1_000;

fn has_no_troubles(status: &DescribeClusterResponse, lag_max: u64) -> bool {
    let members = status.nodes.iter().filter(|node| node.state() == v1::NodeState::Active).count();
    let is_topic_well = |topic: &v1::TopicStatus| {
        let wanted = topic.topic.as_ref().map_or(1, |topic| topic.replication_factor as usize).min(members);
        topic.shards.iter().all(|shard| shard.replica_node_ids.len() == wanted && is_shard_well(shard, lag_max))
    };
    status.catalog_leader_node_id != 0 && status.topics.iter().all(is_topic_well)
}

fn is_shard_well(shard: &ShardStatus, lag_max: u64) -> bool {
    let has_said = |node: &u64| {
        let said = shard.replicas.iter().find(|replica| replica.node_id == *node);
        said.is_some_and(|replica| replica.fault.is_empty() && replica.lag <= lag_max && !replica.learner)
    };
    shard.leader_node_id != 0 && shard.fault.is_empty() && shard.replica_node_ids.iter().all(has_said)
}
