//! A process with few file descriptors, and clients that take all they can get: the shards keep theirs, new connections are
//! refused, those that were there give way to shards that come later, and everything is as before when the clients have gone.

#![allow(clippy::disallowed_methods, reason = "tests use real processes, files and sockets")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod node;

use std::{
    fs,
    net::TcpStream,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use node::Node;
use ringlog::{
    client::Client,
    proto::ringlog::v1::{CreateTopicRequest, ProduceRequest, Record},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const LIMIT: u32 = 256;
const SHARDS: u32 = 8;
/// More than find descriptors beside as many clients as are let in before.
const MANY_SHARDS: u32 = 48;
const STRANGERS: usize = 600;
/// As many as show what each one costs.
const RESTARTED_SHARDS: u32 = 100;

/// Writes so much to each shard that each rolls into new segments several times.
async fn fill(client: &Client, megabytes: usize, shards: u32) {
    let value = Bytes::from(vec![7; 256 << 10]);
    for _ in 0..megabytes {
        for shard in 0..shards {
            let records = (0..4).map(|_| Record { value: value.clone(), ..Record::default() }).collect();
            let request =
                ProduceRequest { topic: "t".into(), shard: Some(shard), records, ..ProduceRequest::default() };
            client.produce(&request).await.unwrap();
        }
    }
}

async fn faults(client: &Client) -> Vec<String> {
    let shards = client.describe_topic("t").await.unwrap().shards;
    shards.into_iter().map(|shard| shard.fault).filter(|fault| !fault.is_empty()).collect()
}

/// A node that begins with a low soft limit allows itself as many descriptors as the hard one does: it serves more connections at
/// once than it began with descriptors.
#[test]
fn the_soft_limit_is_raised() {
    let own = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: own.maximum, maximum: own.maximum }).unwrap();
    let many = 2 * LIMIT as usize;
    assert!(own.maximum.is_none_or(|most| most > 8 * u64::from(LIMIT)), "this test needs descriptors: {own:?}");
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_with_soft_files(dir.path(), &["--reactors", "2"], LIMIT);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut clients = Vec::new();
        for number in 0..many {
            let client = Client::connect(&node.grpc).await;
            clients.push(client.unwrap_or_else(|error| panic!("client {number}: {error}; {}", node.log())));
        }
        for (number, client) in clients.iter().enumerate() {
            let served = client.list_topics().await;
            assert!(served.is_ok(), "client {number}: {served:?}; {}", node.log());
        }
    });
    assert!(node.stop().success());
}

/// 600 connections of strangers to a node with 256 descriptors, while all of its shards need new files.
#[test]
fn strangers_take_nothing_from_the_shards() {
    let own = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: own.maximum, maximum: own.maximum }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_with_files(dir.path(), &["--reactors", "2", "--segment-bytes", "1MiB"], LIMIT);
    assert!(node.log().contains("open files"), "{}", node.log());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(&node.grpc).await.unwrap();
        let request = CreateTopicRequest { name: "t".into(), shards: SHARDS, ..Default::default() };
        client.create_topic(&request).await.unwrap();
        fill(&client, 1, SHARDS).await;
        let strangers: Vec<_> = [&node.grpc, &node.http]
            .into_iter()
            .flat_map(|address| (0..STRANGERS / 2).map(move |_| TcpStream::connect(address.as_str())))
            .collect();
        fill(&client, 6, SHARDS).await;
        assert_eq!(faults(&client).await, Vec::<String>::new(), "{}", node.log());
        assert!(!node.log().contains("could not be accepted"), "descriptors had run out: {}", node.log());
        drop(strangers);
        let since = Instant::now();
        while Client::connect(&node.grpc).await.is_err() {
            assert!(since.elapsed() < Duration::from_secs(60), "no new client is served");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        fill(&client, 1, SHARDS).await;
        assert_eq!(faults(&client).await, Vec::<String>::new(), "{}", node.log());
    });
    assert!(node.stop().success());
}

/// Strangers have taken all that was free when a topic is made: they give way to its shards, all of which open, and roll.
#[test]
fn strangers_give_way_to_new_shards() {
    let own = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: own.maximum, maximum: own.maximum }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_with_files(dir.path(), &["--reactors", "2", "--segment-bytes", "1MiB"], LIMIT);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(&node.grpc).await.unwrap();
        // They ask for nothing, but answer PINGs: nobody closes them for their silence.
        let mut strangers = Vec::new();
        loop {
            assert!(strangers.len() < LIMIT as usize, "clients get more than there is");
            match Client::connect(&node.grpc).await {
                Ok(stranger) if stranger.list_topics().await.is_ok() => strangers.push(stranger),
                Ok(_) | Err(_) => break,
            }
        }
        let silent: Vec<_> = (0..LIMIT).map(|_| TcpStream::connect(node.http.as_str())).collect();
        assert!(!node.log().contains("connections are closed"), "{}", node.log());
        let request = CreateTopicRequest { name: "t".into(), shards: MANY_SHARDS, ..Default::default() };
        let created = client.create_topic(&request).await;
        created.unwrap_or_else(|error| panic!("{error}; {}", node.log()));
        fill(&client, 2, MANY_SHARDS).await;
        assert_eq!(faults(&client).await, Vec::<String>::new(), "{}", node.log());
        assert!(node.log().contains("connections are closed"), "{}", node.log());
        drop((strangers, silent));
    });
    assert!(node.stop().success());
}

/// Bytes that the files below `dir` take on the disk.
fn disk_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            if entry.file_type().unwrap().is_dir() {
                disk_bytes(&entry.path())
            } else {
                entry.metadata().unwrap().blocks() * 512
            }
        })
        .sum()
}

/// Many shards with a record each: restarts add neither descriptors nor space on the disk, whether the node was stopped or killed.
/// A stopped node has given back what it had made ahead; so those that were killed are compared, and those that were stopped.
#[test]
fn restarts_of_many_shards_grow_nothing() {
    let own = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: own.maximum, maximum: own.maximum }).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut lives = Vec::new();
    for life in 0..6 {
        let node = Node::start(dir.path(), &["--reactors", "2"]);
        runtime.block_on(async {
            let client = Client::connect(&node.grpc).await.unwrap();
            if life == 0 {
                let request = CreateTopicRequest { name: "t".into(), shards: RESTARTED_SHARDS, ..Default::default() };
                client.create_topic(&request).await.unwrap();
            }
            for shard in 0..RESTARTED_SHARDS {
                let records = vec![Record { value: "x".into(), ..Record::default() }];
                let request = ProduceRequest { topic: "t".into(), shard: Some(shard), records, ..Default::default() };
                client.produce(&request).await.unwrap();
            }
        });
        let descriptors = node.descriptors();
        if life % 2 == 0 {
            node.kill()
        } else {
            assert!(node.stop().success())
        }
        lives.push((descriptors, disk_bytes(&dir.path().join("data"))));
    }
    println!("descriptors and bytes: {lives:?}");
    // Room for files that are being made or closed at that moment: one shard in ten.
    let spare = RESTARTED_SHARDS as usize / 10;
    for pair in lives[1..].windows(3).map(|three| [three[0], three[2]]) {
        let [(descriptors_before, bytes_before), (descriptors, bytes)] = pair;
        assert!(descriptors <= descriptors_before + spare, "{lives:?}");
        assert!(bytes <= bytes_before + ((spare as u64) << 20), "{lives:?}");
    }
    assert!(lives.iter().all(|(descriptors, _)| *descriptors <= 4 * RESTARTED_SHARDS as usize), "{lives:?}");
}
