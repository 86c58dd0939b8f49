//! HTTP over real sockets, with bounds so small that a test reaches them; the node behind it has no reactor that answers.
//! Nothing here depends on how fast the machine is: what is to happen is waited for.
#![allow(clippy::disallowed_methods, reason = "clients from the outside")]

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{
    config::Config,
    env::runtime::block_on,
    reactor::node::{Advertised, Node},
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
    block_on(async {
        let listener = crate::reactor::listen::bind((Ipv4Addr::LOCALHOST, 0).into(), 1).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let (grpc, http) = (address.to_string(), address.to_string());
        let advertised = Advertised { peer_host: "127.0.0.1".into(), peer_port: 1, grpc, http };
        let node = Arc::new(Node::new(Config::default(), 1, (address, address), advertised));
        let server = serve_within(listener, Remote::new(node), std::future::pending(), sockets, memory);
        let test = tokio::time::timeout(Duration::from_secs(120), test(address));
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

/// Health is answered while requests are under way on every connection, on the reserve; others are told to come back.
#[test]
fn health_has_a_reserve() {
    with_server(SOCKETS, MEMORY, |address| async move {
        let mut working = Vec::new();
        for _ in 0..SOCKETS.connections {
            let head = post(100).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
            let mut socket = send(address, head.as_bytes()).await;
            // It says that the body is waited for: the request is being answered.
            let mut line = [0; 12];
            socket.read_exact(&mut line).await.unwrap();
            assert_eq!(&line, b"HTTP/1.1 100");
            working.push(socket);
        }
        let list = b"GET /v1/topics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let answer = rest(send(address, list).await).await;
        assert!(answer.starts_with("HTTP/1.1 429") && answer.contains("HTTP_BUSY"), "{answer}");
        for _ in 0..3 * SOCKETS.reserve {
            let probe = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n";
            let answer = rest(send(address, probe).await).await;
            assert!(answer.contains("\"phase\":\"recovering\"") && answer.contains("connection: close"), "{answer:?}");
        }
    });
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
