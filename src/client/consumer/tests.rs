//! The consumer against scripted servers: order, going on elsewhere, bounds.

#![allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]

use std::future::Future;

use futures_util::{FutureExt, StreamExt};

use super::*;
use crate::{
    client::cluster::scripted::Servers,
    frontend::Code,
    proto::ringlog::v1::{Header, consume_stream_request},
};

/// Long enough for any machine: only a hang reaches it.
const LIMIT: Duration = Duration::from_secs(30);

fn with_servers<F: Future<Output = ()>>(nodes: u64, shards: usize, test: impl FnOnce(Servers, Cluster) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = async {
        let servers = Servers::start(nodes, shards).await;
        let cluster = Cluster::connect(&[servers.address(1)]).await.unwrap();
        test(servers, cluster).await;
    };
    runtime.block_on(async { tokio::time::timeout(LIMIT, run).await.expect("the test hangs") });
}

/// Puts that many more records into each shard.
fn fill(servers: &Servers, count: u64) {
    servers.change(|world| {
        for log in world.logs.get_mut("t").unwrap() {
            let first = log.len() as u64;
            log.extend((first..first + count).map(|offset| Record {
                value: offset.to_string().into(),
                offset,
                ..Record::default()
            }));
        }
    });
}

async fn take(consumer: &mut Consumer, count: usize) -> Vec<(u32, u64)> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let fetched = consumer.next().await.unwrap().unwrap();
        taken.extend(fetched.records.iter().map(|record| (fetched.shard, record.offset)));
        assert_eq!(fetched.next_offset, fetched.records.last().unwrap().offset + 1);
    }
    taken
}

fn offsets(taken: &[(u32, u64)], shard: u32) -> Vec<u64> {
    taken.iter().filter(|(of, _)| *of == shard).map(|(_, offset)| *offset).collect()
}

/// All shards, each in order, also what comes later.
#[test]
fn all_shards_in_order() {
    with_servers(2, 3, async |servers, cluster| {
        fill(&servers, 10);
        let mut consumer = cluster.consumer("t").open().await.unwrap();
        let mut taken = take(&mut consumer, 30).await;
        assert!(consumer.next().now_or_never().is_none());
        fill(&servers, 5);
        taken.extend(take(&mut consumer, 15).await);
        for shard in 0..3 {
            assert_eq!(offsets(&taken, shard), (0..15).collect::<Vec<_>>());
        }
    });
}

/// Servers that end their streams, and servers that die, are left for others: no record is missed, none comes twice, and
/// the next replica is told to be as far as the last one was.
#[test]
fn goes_on_elsewhere() {
    with_servers(3, 1, async |mut servers, cluster| {
        servers.world.lock().unwrap().consume_limit = [(1, 3), (2, 4)].into();
        fill(&servers, 20);
        let mut consumer = cluster.consumer("t").open().await.unwrap();
        let mut taken = take(&mut consumer, 20).await;
        servers.world.lock().unwrap().consume_limit.clear();
        let (last, ..) = *servers.world.lock().unwrap().consumed.last().unwrap();
        servers.kill(last);
        fill(&servers, 5);
        taken.extend(take(&mut consumer, 5).await);
        assert_eq!(offsets(&taken, 0), (0..25).collect::<Vec<_>>());
        let world = servers.world.lock().unwrap();
        assert!(world.consumed.len() >= 3, "{:?}", world.consumed);
        for (_, _, start, min_offset) in &world.consumed[1..] {
            let Some(consume_stream_request::Start::Offset(offset)) = start else { panic!("{start:?}") };
            assert_eq!(min_offset, &Some(*offset));
        }
    });
}

/// A replica that is reported dead or draining is left although its connection stands.
#[test]
fn leaves_the_dead() {
    with_servers(2, 1, async |servers, cluster| {
        fill(&servers, 1);
        let mut consumer = cluster.consumer("t").prefer_node(NodeId(2)).open().await.unwrap();
        take(&mut consumer, 1).await;
        assert_eq!(servers.world.lock().unwrap().consumed[0].0, 2, "the preferred one");
        servers.change(|world| world.servers.get_mut(&2).unwrap().draining = true);
        while servers.world.lock().unwrap().consumed.len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fill(&servers, 1);
        assert_eq!(take(&mut consumer, 1).await, [(0, 1)]);
        assert_eq!(servers.world.lock().unwrap().consumed[1].0, 1);
    });
}

/// Starts and ends: by offset, per shard, and at the end of what is there, which stays where it was found.
#[test]
fn ranges() {
    with_servers(1, 2, async |servers, cluster| {
        fill(&servers, 10);
        let builder = cluster.consumer("t").start_of(0, Start::Offset(3)).end_of(0, 6).end_of(1, 2);
        let mut consumer = builder.open().await.unwrap();
        let taken = take(&mut consumer, 5).await;
        assert_eq!((offsets(&taken, 0), offsets(&taken, 1)), (vec![3, 4, 5], vec![0, 1]));
        assert!(consumer.next().await.is_none(), "both have ended");
        servers.world.lock().unwrap().consume_limit = [(1, 0)].into();
        let mut latest = cluster.consumer("t").shards([1]).start(Start::Latest).open().await.unwrap();
        // Its first streams are ended before they give anything; what is committed meanwhile is not skipped.
        while servers.world.lock().unwrap().consumed.len() < 5 {
            fill(&servers, 1);
            assert!(latest.next().now_or_never().is_none());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        servers.change(|world| world.consume_limit.clear());
        assert_eq!(take(&mut latest, 1).await, [(1, 10)]);
    });
}

/// A shard out of reach is reported after a while, and read further when it is back; an unknown topic at once.
#[test]
fn out_of_reach() {
    with_servers(1, 1, async |servers, cluster| {
        fill(&servers, 2);
        servers.world.lock().unwrap().consume_limit = [(1, 0)].into();
        let mut consumer = cluster.consumer("t").patience(Duration::from_millis(50)).open().await.unwrap();
        let error = consumer.next().await.unwrap().unwrap_err();
        assert!(!error.is_final && error.to_string().contains("topic t shard 0 cannot be read"), "{error}");
        servers.change(|world| world.consume_limit.clear());
        let mut taken = Vec::new();
        while taken.is_empty() {
            taken.extend(consumer.next().await.unwrap().ok().map(|fetched| fetched.records[0].offset));
        }
        assert_eq!(taken, [0]);
    });
}

/// A topic that is deleted and made again while it is read ends the shard: the new one's records below the old one's end are
/// not skipped in silence.
#[test]
fn a_topic_made_again() {
    with_servers(3, 1, async |servers, cluster| {
        fill(&servers, 5);
        let mut consumer = cluster.consumer("t").open().await.unwrap();
        take(&mut consumer, 5).await;
        servers.change(|world| {
            world.made_again += 1;
            world.logs.insert("t".to_owned(), vec![Vec::new()]);
        });
        fill(&servers, 10);
        let error = consumer.next().await.unwrap().unwrap_err();
        assert!(error.is_final && error.cause.code() == Some(Code::NotFound), "{error}");
        assert!(consumer.next().await.is_none());
        assert_eq!(servers.world.lock().unwrap().consumed.len(), 1, "nobody was asked by its name again");
    });
}

/// What nobody takes is not read ahead without end.
#[test]
fn bounded() {
    with_servers(1, 1, async |servers, cluster| {
        fill(&servers, 1_000);
        // Each record counts for more than 32 bytes, so that two of them fill the room.
        let consumer = cluster.consumer("t").prefetch_bytes(70).open().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(consumer.received.len() <= 2, "{}", consumer.received.len());
        let offsets: Vec<u64> = consumer.take(1_000).map(|fetched| fetched.unwrap().records[0].offset).collect().await;
        assert_eq!(offsets, (0..1_000).collect::<Vec<_>>());
    });
}

/// Headers count for what is read ahead, too.
#[test]
fn bounded_with_headers() {
    with_servers(1, 1, async |servers, cluster| {
        let header = Header { name: "h".into(), value: vec![0; 1_000].into() };
        servers.change(|world| {
            let log = &mut world.logs.get_mut("t").unwrap()[0];
            log.extend((0..10).map(|offset| Record { offset, headers: vec![header.clone()], ..Record::default() }));
        });
        let consumer = cluster.consumer("t").prefetch_bytes(1_500).open().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(consumer.received.len() <= 1, "{}", consumer.received.len());
        assert_eq!(consumer.take(10).count().await, 10);
    });
}
