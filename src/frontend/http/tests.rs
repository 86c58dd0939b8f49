//! HTTP over real sockets, with bounds so small that a test reaches them; the node behind it has no reactor that answers.
//! Nothing here depends on how fast the machine is: what is to happen is waited for.
#![allow(clippy::disallowed_methods, reason = "clients from the outside")]

use std::{
    cell::Cell,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{
    catalog::{Replicas, TopicView},
    config::Config,
    env::runtime::block_on,
    ids::{NodeId, ShardUid, TopicId},
    reactor::{
        ReactorError,
        mailbox::Request as Asked,
        node::{Advertised, Node},
        topics::PlacedTopic,
    },
    shard::ShardError,
};

const LONG: Duration = Duration::from_secs(600);

const SOCKETS: SocketLimits =
    SocketLimits { connections: 8, reserve: 4, idle: LONG, header: LONG, answer: LONG, young: Duration::ZERO };

const MEMORY: MemoryLimits = MemoryLimits { bytes: 64 << 10, grace: LONG, rate: 1, body: LONG };

/// Runs `test` against a server with these bounds.
fn with_server<F: Future<Output = ()>>(
    sockets: SocketLimits,
    memory: MemoryLimits,
    test: impl FnOnce(SocketAddr) -> F,
) {
    with_node(sockets, memory, |address, _| test(address));
}

/// The same for a test that answers for the node's only reactor.
fn with_node<F: Future<Output = ()>>(
    sockets: SocketLimits,
    memory: MemoryLimits,
    test: impl FnOnce(SocketAddr, Arc<Node>) -> F,
) {
    block_on(async {
        let listener = crate::reactor::listen::bind((Ipv4Addr::LOCALHOST, 0).into(), 1).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let (grpc, http) = (address.to_string(), address.to_string());
        let advertised = Advertised { peer_host: "127.0.0.1".into(), peer_port: 1, grpc, http };
        let node = Arc::new(Node::new(Config::default(), 1, (address, address), advertised));
        let server = serve_within(listener, Remote::new(Arc::clone(&node)), std::future::pending(), sockets, memory);
        let test = tokio::time::timeout(Duration::from_secs(120), test(address, node));
        tokio::select! {
            ended = server => panic!("{ended:?}"),
            result = test => result.expect("the test hangs"),
        }
    });
}

async fn send(address: SocketAddr, text: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(text).await.unwrap();
    socket
}

/// What comes until the other side closes; empty when it just does.
async fn rest(mut socket: TcpStream) -> String {
    let mut answer = Vec::new();
    drop(socket.read_to_end(&mut answer).await);
    String::from_utf8(answer).unwrap()
}

fn post(length: usize) -> String {
    format!(
        "POST /v1/topics/t/records HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    )
}

const LIST: &[u8] = b"GET /v1/topics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

const PROBE: &[u8] = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// Health is answered however many connections hang about with half a header, or with none: theirs is the place that a new
/// one takes.
#[test]
fn health_beside_half_sent_headers() {
    with_server(SOCKETS, MEMORY, |address| async move {
        let mut hanging = Vec::new();
        for number in 0..100 {
            hanging.push(send(address, if number % 2 == 0 { b"GET /livez HTTP/1.1\r\nho" } else { b"" }).await);
            if number % 10 == 9 {
                let answer = rest(send(address, PROBE).await).await;
                assert!(answer.contains("\"phase\":\"recovering\""), "{number}: {answer:?}");
            }
        }
        assert_eq!(rest(hanging.remove(0)).await, "", "the longest has lost its place");
    });
}

/// Health is answered while requests are worked on for every connection, on the reserve; others are told to come back.
#[test]
fn health_has_a_reserve() {
    with_node(SOCKETS, MEMORY, |address, node| async move {
        let mut working = Vec::new();
        for number in 0..SOCKETS.connections {
            let create = format!(
                "PUT /v1/topics/t{number} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                 content-length: 2\r\n\r\n{{}}"
            );
            working.push(send(address, create.as_bytes()).await);
        }
        // Nobody answers them.
        while node.reactors[0].mailbox.len() < SOCKETS.connections {
            env::yield_now().await;
        }
        let answer = rest(send(address, LIST).await).await;
        assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("HTTP_BUSY"), "{answer}");
        for _ in 0..3 * SOCKETS.reserve {
            let probe = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n";
            let answer = rest(send(address, probe).await).await;
            assert!(answer.contains("\"phase\":\"recovering\"") && answer.contains("connection: close"), "{answer:?}");
        }
    });
}

/// A request is answered while the body of another one is waited for on every connection: the longest of them gives its
/// place, and is told.
#[test]
fn unfinished_bodies_give_way() {
    with_server(SOCKETS, MEMORY, |address| async move {
        let mut sending = Vec::new();
        for _ in 0..SOCKETS.connections {
            let head = post(100).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
            let mut socket = send(address, head.as_bytes()).await;
            // It says that the body is waited for.
            let mut line = [0; 25];
            socket.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
            sending.push(socket);
        }
        for _ in 0..3 * SOCKETS.connections {
            let answer = rest(send(address, LIST).await).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let answer = rest(sending.remove(0)).await;
        assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("HTTP_BUSY"), "the longest: {answer}");
        let mut last = sending.pop().unwrap();
        last.write_all(format!("{:100}", r#"{"records":[{}]}"#).as_bytes()).await.unwrap();
        assert!(rest(last).await.contains("STARTING"), "the last has not");
    });
}

/// A topic with one shard, of which the test answers.
pub(super) fn publish(node: &Node) {
    let view = TopicView {
        name: "t".into(),
        id: TopicId(0),
        shards: vec![ShardUid(1)],
        replication_factor: 1,
        replicas: vec![Replicas { nodes: vec![NodeId(1)], ..Default::default() }],
        retention_bytes_max: 0,
        retention_age_ms_max: 0,
        segment_bytes: 0,
        created_us: 0,
    };
    node.topics.publish([Arc::new(PlacedTopic::new(view.into(), 1, NodeId(1)))]);
}

/// Answers for a shard with one record, whose leader the node has lost: it cannot say what is committed beside that. `waiting` counts
/// those that wait for more.
async fn one_record(node: &Node, waiting: &Cell<usize>) {
    let record = proto::Record { value: b"there".as_slice().into(), ..Default::default() };
    let chunk: Bytes = proto::ConsumeResponse { records: vec![record], ..Default::default() }.encode_to_vec().into();
    let (mut batch, mut waits) = (Vec::new(), Vec::new());
    loop {
        node.reactors[0].mailbox.take(&mut batch).await;
        for asked in batch.drain(..) {
            let Asked::Consume { consume, reply, .. } = asked else { panic!("{asked:?}") };
            let start = match consume.start {
                Start::Offset(offset) => offset,
                Start::Earliest | Start::Timestamp(_) => Offset(0),
                Start::Latest => Offset(1),
            };
            let is_there = start <= Offset(1) && consume.min_offset <= Some(Offset(1)) && !consume.linearizable;
            let ends =
                if is_there { consume.wait.is_zero() || start < Offset(1) } else { consume.deadline_us.is_some() };
            if !ends {
                assert!(consume.bytes_max <= 4 << 10, "it waits, and much is held for it meanwhile: {consume:?}");
                waiting.set(waiting.get() + 1);
                waits.push(reply);
                continue;
            }
            let consumed = Consumed {
                chunks: if start < Offset(1) { vec![chunk.clone()] } else { vec![] },
                count: 1 - start.0.min(1),
                next_offset: Offset(1),
                log_start: Offset(0),
                high_watermark: Offset(1),
                node: NodeId(1),
            };
            let no_leader = ReactorError::Shard(ShardError::NoLeader { waited: Duration::ZERO, deadline: true });
            drop(reply.send(if is_there { Ok(consumed) } else { Err(no_leader) }));
        }
    }
}

/// Runs `clients` beside that.
async fn beside_one_record(node: &Node, waiting: &Cell<usize>, clients: impl Future<Output = ()>) {
    publish(node);
    tokio::select! {
        biased;
        () = clients => {}
        () = one_record(node, waiting) => unreachable!("it has no end"),
    }
}

fn read(query: &str) -> String {
    format!("GET /v1/topics/t/shards/0/records?max_bytes=4194304&text=true&{query} HTTP/1.1\r\nhost: localhost\r\n\r\n")
}

/// Reads that wait for what they have to see, or for somebody who serves their shard, hold no room meanwhile: beside many more of them
/// than would have all of it, what is there is read at once.
#[test]
fn reads_that_wait_hold_no_room() {
    with_node(SocketLimits { connections: 64, ..SOCKETS }, MemoryLimits::default(), |address, node| async move {
        let waiting = Cell::new(0);
        let clients = async {
            let mut waits = Vec::new();
            for query in ["min_offset=18446744073709551615", "linearizable=true", "offset=7"] {
                for _ in 0..12 {
                    waits.push(send(address, read(query).as_bytes()).await);
                }
                while waiting.get() < waits.len() {
                    env::yield_now().await;
                }
                for query in ["", "min_offset=1"] {
                    let read = read(query).replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
                    let answer = rest(send(address, read.as_bytes()).await).await;
                    assert!(answer.contains(r#""value_text":"there""#), "{answer}");
                }
            }
        };
        beside_one_record(&node, &waiting, clients).await;
    });
}

/// A request is answered while one waits for records, or for its shard, on every connection: the longest of these gives its place, and
/// is answered: with what there is, or that there is no place for it.
#[test]
fn reads_that_wait_give_way() {
    for (query, status, words) in [
        ("position=latest&wait_ms=60000", "HTTP/1.1 200", r#""records":[],"next_offset":1"#),
        ("linearizable=true", "HTTP/1.1 429", "HTTP_BUSY"),
    ] {
        with_node(SOCKETS, MemoryLimits::default(), |address, node| async move {
            let waiting = Cell::new(0);
            let clients = async {
                let mut waits = Vec::new();
                for number in 1..=SOCKETS.connections {
                    waits.push(send(address, read(query).as_bytes()).await);
                    while waiting.get() < number {
                        env::yield_now().await;
                    }
                }
                for _ in 0..3 * SOCKETS.connections {
                    let answer = rest(send(address, LIST).await).await;
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                }
                let answer = rest(waits.remove(0)).await;
                assert!(answer.starts_with(status) && answer.contains("connection: close"), "{answer}");
                assert!(answer.contains(words), "{answer}");
            };
            beside_one_record(&node, &waiting, clients).await;
        });
    }
}

/// A header that does not come to its end is given up; so is a body that comes too slowly, in words.
#[test]
fn slow_requests_end() {
    let short = Duration::from_millis(1);
    with_server(SocketLimits { header: short, ..SOCKETS }, MEMORY, |address| async move {
        assert_eq!(rest(send(address, b"GET /livez HTTP/1.1\r\nhost: local").await).await, "");
    });
    with_server(SOCKETS, MemoryLimits { grace: short, ..MEMORY }, |address| async move {
        let answer = rest(send(address, format!("{}{{", post(100)).as_bytes()).await).await;
        assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("BODY_TOO_SLOW"), "{answer:?}");
    });
}

/// What is announced costs nothing: a request is answered beside many that have announced all there is and send nothing.
#[test]
fn announced_bodies_hold_nothing() {
    with_server(SocketLimits { connections: 64, ..SOCKETS }, MEMORY, |address| async move {
        let mut trickling = Vec::new();
        for _ in 0..12 {
            trickling.push(send(address, format!("{}{{", post(8 << 20)).as_bytes()).await);
        }
        let body = format!("{:1000}", r#"{"records":[{}]}"#);
        for _ in 0..20 {
            let answer = rest(send(address, format!("{}{body}", post(body.len())).as_bytes()).await).await;
            assert!(answer.contains("STARTING"), "{answer}");
        }
    });
}

/// Who has sent much and does not end it makes room for others.
#[test]
fn held_bodies_make_room() {
    with_server(SOCKETS, MEMORY, |address| async move {
        let mut holding = Vec::new();
        for _ in 0..3 {
            holding.push(send(address, format!("{}{:20000}", post(30_000), "{").as_bytes()).await);
        }
        let body = format!("{:30000}", r#"{"records":[{}]}"#);
        for _ in 0..20 {
            let answer = rest(send(address, format!("{}{body}", post(body.len())).as_bytes()).await).await;
            assert!(answer.contains("STARTING"), "{answer}");
        }
    });
}

/// Others run while the answer of many records is made, which has all of them, in order.
#[test]
fn large_answers() {
    const PIECES: usize = 8;
    let record = |offset| proto::Record { offset, value: vec![b'x'; 1_000].into(), ..Default::default() };
    let records: Vec<_> = (0..(PIECES * PIECE_BYTES / 1_000) as u64).map(record).collect();
    let half = records.len() / 2;
    let chunk = |records: &[proto::Record]| {
        proto::ConsumeResponse { records: records.to_vec(), ..Default::default() }.encode_to_vec().into()
    };
    let consumed = Consumed {
        chunks: vec![chunk(&records[..half]), chunk(&records[half..])],
        count: records.len() as u64,
        next_offset: Offset(7),
        log_start: Offset(0),
        high_watermark: Offset(9),
        node: crate::ids::NodeId(1),
    };
    let mut turns = 0;
    let json = block_on(async {
        let others = async {
            loop {
                turns += 1;
                env::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            json = json_of(consumed, true) => json.unwrap(),
            () = others => unreachable!("it has no end"),
        }
    });
    assert!(turns >= PIECES, "{turns} turns");
    let answer: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let offsets = answer["records"].as_array().unwrap().iter().map(|record| record["offset"].as_u64().unwrap());
    assert!(offsets.eq(0..records.len() as u64));
    assert_eq!((&answer["next_offset"], &answer["high_watermark"]), (&7.into(), &9.into()));
}
