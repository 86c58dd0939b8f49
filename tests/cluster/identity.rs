//! Nodes that are not who they say, or not who they were: each is refused with one sentence that says what to do, and the
//! cluster does not notice.

use std::{
    fs,
    net::UdpSocket,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ringlog::{
    env::{
        net::{Endpoint, Net},
        quic::{QuicNet, QuicOptions},
        runtime,
    },
    ids::NodeId,
    proto::ringlog::v1::RemoveNodeRequest,
    tls::{Authority, CredentialFiles, Credentials, NODE_VALIDITY},
};

use crate::{
    checker,
    harness::{Cluster, Node, RINGLOG, alive},
    workload::{Outcome, Workload},
};

const DAY: Duration = Duration::from_secs(86_400);

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// The CA of a node that has its key: the first one of its cluster.
fn authority(node: &Node) -> Authority {
    let read = |name: &str| fs::read_to_string(node.data().join("tls").join(name)).unwrap();
    Authority::from_pem(&read("ca.crt"), &read("ca.key")).unwrap()
}

/// Puts a certificate and its key into `dir`, and gives the flags that name them.
fn credentials(authority: &Authority, id: u64, validity: Duration, made_us: i64, dir: &Path) -> Vec<String> {
    fs::create_dir_all(dir).unwrap();
    let issued = authority.issue(NodeId(id), validity, made_us).unwrap();
    let mut flags = Vec::new();
    for (flag, name, content) in [
        ("--peer-ca", "ca.crt", authority.certificate()),
        ("--peer-cert", "node.crt", issued.certificate),
        ("--peer-key", "node.key", issued.key),
    ] {
        fs::write(dir.join(name), content).unwrap();
        flags.extend([flag.to_owned(), dir.join(name).to_str().unwrap().to_owned()]);
    }
    flags
}

fn copy_dir(from: &Path, to: &Path) {
    let done = Command::new("cp").args(["-a", from.to_str().unwrap(), to.to_str().unwrap()]).status().unwrap();
    assert!(done.success());
}

/// Starts a node that must be refused; gives the sentence.
fn refused(node: &mut Node, flags: &[String]) -> String {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    node.start(&flags);
    node.refusal()
}

/// All is as it was: everybody writes, and everything is there.
fn nothing_happened(cluster: &mut Cluster, workload: Workload) {
    workload.wait_for_acks(20);
    cluster.wait_until_all_see_all();
    let history = workload.finish();
    assert_eq!(history.failures(), Vec::<&Outcome>::new(), "clients do not notice");
    checker::check(cluster, &history);
}

fn start() -> (Cluster, Workload) {
    let cluster = Cluster::start(3);
    cluster.create_topic("t", 2, 3);
    let workload = Workload::start(&cluster.addresses(), "t", 2);
    (cluster, workload)
}

/// A directory of one cluster with the certificates of another; a token of another; two clusters put together.
#[test]
fn wrong_cluster() {
    let (mut cluster, workload) = start();
    let other = Cluster::start(1);
    let third = cluster.add();
    let dir = cluster.dir.path().join("foreign");
    let foreign = credentials(&authority(&other.nodes[0]), 2, NODE_VALIDITY, now_us(), &dir);

    // Its own directory, with a certificate of the other cluster.
    copy_dir(&cluster.nodes[1].data(), &cluster.nodes[third].data());
    let said = refused(&mut cluster.nodes[third], &foreign);
    assert!(said.contains("certificate is of cluster") && said.contains("the data directory is of cluster"), "{said}");

    // A token of the other cluster.
    cluster.nodes[third].wipe();
    cluster.nodes[third].clear_log();
    let seed = cluster.nodes[0].peer();
    let join = ["--join".to_owned(), seed.clone(), "--join-token".to_owned(), other.token()];
    let said = refused(&mut cluster.nodes[third], &join);
    assert!(said.contains("token") || said.contains("cluster"), "{said}");

    // A certificate of the other cluster with a token of this one.
    cluster.nodes[third].wipe();
    cluster.nodes[third].clear_log();
    let mut join = vec!["--join".to_owned(), seed, "--join-token".to_owned(), cluster.token()];
    join.extend(foreign);
    let said = refused(&mut cluster.nodes[third], &join);
    assert!(said.contains("is of cluster") && said.contains("token"), "{said}");

    // A catalog of the other cluster in this one's directory.
    cluster.nodes[third].wipe();
    cluster.nodes[third].clear_log();
    let single = Cluster::start(1);
    drop_catalog_of(&single, &mut cluster, third);
    nothing_happened(&mut cluster, workload);
}

/// The identity of one cluster and the shards of another are not one directory.
fn drop_catalog_of(single: &Cluster, cluster: &mut Cluster, place: usize) {
    let mut other = Cluster::start(1);
    assert!(other.nodes[0].stop().success());
    let data = cluster.nodes[place].data();
    copy_dir(&single.nodes[0].data(), &data);
    fs::remove_dir_all(data.join("shards")).unwrap();
    // Held by the process whose directory this was copied from.
    fs::remove_file(data.join("lock")).unwrap();
    fs::remove_file(data.join("address")).unwrap();
    copy_dir(&other.nodes[0].data().join("shards"), &data.join("shards"));
    let said = refused(&mut cluster.nodes[place], &[]);
    assert!(
        said.contains("was not made in this data directory") && said.contains("put each shard's directory back"),
        "{said}"
    );
    cluster.nodes.pop();
}

/// A copy of a running node's directory is not started, wherever it is; nor is one of a directory in use.
#[test]
fn cloned_data_directory() {
    let (mut cluster, workload) = start();
    let clone = cluster.add();
    let original = cluster.nodes[1].data();
    copy_dir(&original, &cluster.nodes[clone].data());
    let said = refused(&mut cluster.nodes[clone], &[]);
    assert!(said.contains("is running already") && said.contains("is a copy of that node's"), "{said}");
    let output = cluster.nodes[clone].run(&[
        "serve",
        "--grpc",
        "127.0.0.1:0",
        "--http",
        "127.0.0.1:0",
        "--peer",
        "127.0.0.1:0",
        "--data",
        original.to_str().unwrap(),
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("is in use by process"), "{said}");
    cluster.nodes.pop();
    nothing_happened(&mut cluster, workload);
}

/// A new node with a certificate for an id that is taken, and one with an id that was removed.
#[test]
fn reused_node_id() {
    let (mut cluster, workload) = start();
    let seed = cluster.nodes[0].peer();
    let authority = authority(&cluster.nodes[0]);
    let fourth = cluster.add();
    let join = |cluster: &Cluster| vec!["--join".to_owned(), seed.clone(), "--join-token".to_owned(), cluster.token()];

    let mut flags = join(&cluster);
    flags.extend(credentials(&authority, 2, NODE_VALIDITY, now_us(), &cluster.dir.path().join("second-2")));
    let said = refused(&mut cluster.nodes[fourth], &flags);
    assert!(said.contains("the cluster refuses") && said.contains("node id 2"), "{said}");

    // A removed node does not come back under its id: neither itself, nor as somebody new.
    cluster.nodes[fourth].wipe();
    cluster.nodes[fourth].clear_log();
    cluster.join(fourth);
    cluster.wait_until("a fourth node", |status| alive(status) == 4);
    let id = cluster.nodes[fourth].id();
    cluster.nodes[fourth].kill9();
    cluster.wait_until("a dead node", |status| alive(status) == 3);
    let request = RemoveNodeRequest { node_id: id, dead: true };
    cluster.ask(async |client| client.remove_node(&request).await);
    cluster.nodes[fourth].clear_log();
    let said = refused(&mut cluster.nodes[fourth], &[]);
    assert!(said.contains("removed from the cluster"), "{said}");
    cluster.nodes[fourth].wipe();
    cluster.nodes[fourth].clear_log();
    let mut flags = join(&cluster);
    let dir = cluster.dir.path().join("again");
    flags.extend(credentials(&authority, id, NODE_VALIDITY, now_us(), &dir));
    let said = refused(&mut cluster.nodes[fourth], &flags);
    assert!(said.contains("the cluster refuses") && said.contains("removed"), "{said}");
    cluster.nodes.pop();
    nothing_happened(&mut cluster, workload);
}

/// Any node lets new ones in as long as one that is up has the CA's key; without one, the new node is told what to do, and that
/// helps.
#[test]
fn ca_key() {
    let (mut cluster, workload) = start();
    let fourth = cluster.add();
    let seed = cluster.nodes[1].peer();
    let flags = ["--join".to_owned(), seed, "--join-token".to_owned(), cluster.token()];
    cluster.nodes[fourth].start(&flags.each_ref().map(String::as_str));
    cluster.wait_until("a fourth node", |status| alive(status) == 4);

    let key = fs::read(cluster.nodes[0].data().join("tls/ca.key")).unwrap();
    assert!(cluster.nodes[0].stop().success());
    cluster.wait_until("a dead node", |status| alive(status) == 3);
    let fifth = cluster.add();
    let said = refused(&mut cluster.nodes[fifth], &flags);
    assert!(said.contains("no node that is up has the key of the cluster's CA") && said.contains("copy it"), "{said}");
    fs::write(cluster.nodes[1].data().join("tls/ca.key"), key).unwrap();
    assert!(cluster.nodes[1].stop().success());
    cluster.nodes[1].start(&[]);
    cluster.wait_until("the node with the key", |status| alive(status) == 3);
    cluster.nodes[fifth].start(&flags.each_ref().map(String::as_str));
    cluster.wait_until("a fifth node", |status| alive(status) == 4);
    cluster.nodes[0].start(&[]);
    cluster.wait_until("all of them", |status| alive(status) == 5);
    nothing_happened(&mut cluster, workload);
}

/// An expired certificate does not start a node; one that the others would not accept is refused by them, and both sides say
/// why.
#[test]
fn expired_and_foreign_certificates() {
    let (mut cluster, workload) = start();
    let own = authority(&cluster.nodes[0]);
    let dir = cluster.dir.path().join("old");
    let long_ago = now_us() - 3 * DAY.as_micros() as i64;
    let expired = credentials(&own, 2, DAY, long_ago, &dir);
    assert!(cluster.nodes[1].stop().success());
    cluster.nodes[1].clear_log();
    let said = refused(&mut cluster.nodes[1], &expired);
    assert!(said.contains("has expired at") && said.contains("ringlog ca issue --node 2"), "{said}");
    let renewed = Command::new(RINGLOG)
        .args(["ca", "issue", "--node", "2", "--force", "--ca"])
        .arg(cluster.nodes[0].data().join("tls"))
        .arg("--out")
        .arg(&dir)
        .output()
        .unwrap();
    assert!(renewed.status.success(), "{}", String::from_utf8_lossy(&renewed.stderr));
    let flags: Vec<&str> = expired.iter().map(String::as_str).collect();
    cluster.nodes[1].start(&flags);
    cluster.wait_until("the node with a new certificate", |status| alive(status) == 3);

    // Somebody with a certificate of another CA, who does not check his own.
    let stranger = Authority::from_pem_of_new(own.cluster());
    let words = dial(&cluster.nodes[0], &stranger, 2);
    assert!(words.contains("is not signed by the CA of cluster"), "{words}");
    cluster.nodes[0]
        .wait_for_log(&["a connection from another node was refused", "is not signed by the CA of cluster"]);
    nothing_happened(&mut cluster, workload);
}

trait New {
    fn from_pem_of_new(cluster: &str) -> Authority;
}

impl New for Authority {
    /// Another CA that says that it is of the same cluster.
    fn from_pem_of_new(cluster: &str) -> Authority {
        let made = Authority::make(cluster, now_us()).unwrap();
        Authority::from_pem(&made.certificate, &made.key).unwrap()
    }
}

/// Dials a node as another one, with a certificate of `authority` but trusting the node's own CA; gives why that failed.
fn dial(node: &Node, authority: &Authority, id: u64) -> String {
    let issued = authority.issue(NodeId(id), NODE_VALIDITY, now_us()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let trusted = fs::read_to_string(node.data().join("tls/ca.crt")).unwrap();
    // Both CAs are trusted on this side: its own certificate must pass its own checks.
    let files = CredentialFiles {
        authority: dir.path().join("ca.crt"),
        certificate: dir.path().join("node.crt"),
        key: dir.path().join("node.key"),
    };
    fs::write(&files.authority, authority.certificate() + &trusted).unwrap();
    fs::write(&files.certificate, issued.certificate).unwrap();
    fs::write(&files.key, issued.key).unwrap();
    let credentials = Arc::new(Credentials::load(&files, now_us()).unwrap());
    let (host, port) =
        node.peer().rsplit_once(':').map(|(host, port)| (host.to_owned(), port.parse().unwrap())).unwrap();
    runtime::block_on(async {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let net = QuicNet::new(socket, credentials, Arc::new(|_| Ok(())), QuicOptions::default()).unwrap();
        let error = net.connect(Endpoint { node: NodeId(1), host, port }).await.map(drop).unwrap_err();
        error.to_string()
    })
}
