//! Peers over real sockets: what the network in memory cannot show. Time-outs are only there to end a test that hangs.

use std::{net::Ipv4Addr, time::SystemTime};

use futures_util::future::join;

use super::*;
use crate::{
    budget::{Class, Use},
    env::{
        quic::{QuicNet, QuicOptions, bind_reactors},
        real::RealEnv,
    },
    limits,
    tls::{Authority, Credentials, Issued, NODE_VALIDITY},
};

/// Nothing is given up because the machine is slow.
const PATIENT: QuicOptions =
    QuicOptions { keep_alive: Duration::from_secs(5), idle: LONG, dial: LONG, handshake: LONG };

struct Cluster {
    authority: Authority,
    now_us: i64,
}

struct Member {
    peers: Peers<RealEnv>,
    echo: Rc<Echo<RealEnv>>,
    entry: PeerNode,
}

impl Cluster {
    #[allow(clippy::disallowed_methods, reason = "certificates of a test begin and end by the real clock")]
    fn make() -> Cluster {
        let now_us = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as i64;
        let Issued { certificate, key } = Authority::make("00112233445566778899aabbccddeeff", now_us).unwrap();
        Cluster { authority: Authority::from_pem(&certificate, &key).unwrap(), now_us }
    }

    fn start(&self, node: NodeId, options: QuicOptions) -> Member {
        let Issued { certificate, key } = self.authority.issue(node, NODE_VALIDITY, self.now_us).unwrap();
        let ca = self.authority.certificate();
        let credentials =
            Credentials::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes(), self.now_us).unwrap();
        let socket = bind_reactors((Ipv4Addr::LOCALHOST, 0).into(), 1).unwrap().remove(0);
        let net = QuicNet::new(socket, Arc::new(credentials), Arc::new(|_| Ok(())), options).unwrap();
        let port = net.local_address().port();
        let entry = PeerNode { host: "127.0.0.1".into(), ..address(node, port) };
        let peers =
            Peers::new(node, ReactorNumber(0), net, Arc::default(), Arc::default(), crate::budget::Budget::default());
        let echo = Echo::new();
        peers.serve(Rc::clone(&echo) as Rc<dyn Handler<RealEnv>>);
        Member { peers, echo, entry }
    }
}

fn introduce(members: &[&Member]) {
    for member in members {
        member.peers.book().publish(members.iter().map(|member| member.entry.clone()));
    }
}

fn pattern(bytes: usize) -> Bytes {
    (0..bytes).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>().into()
}

/// Large frames and many calls come back whole over one connection, datagrams arrive, and each side measures the way.
#[test]
fn calls_streams_datagrams() {
    block_on(async {
        let cluster = Cluster::make();
        let (a, b) = (cluster.start(A, PATIENT), cluster.start(B, PATIENT));
        introduce(&[&a, &b]);
        let parts = vec![pattern(5 << 20), Bytes::new(), pattern(1)];
        let large = Frame { kind: FrameKind::Append, envelope: pattern(70_000), parts: parts.clone() };
        let answer = a.peers.call(TO_B, large.clone(), Priority::Bulk, LONG).await.unwrap();
        assert_eq!((answer.kind, &answer.envelope), (FrameKind::Append, &large.envelope));
        assert_eq!(answer.parts.iter().map(|part| part.bytes()).collect::<Vec<_>>(), parts);
        let calls = (0..300).map(|_| a.peers.call(TO_B, frame("hello"), Priority::Urgent, LONG));
        assert!(join_all(calls).await.into_iter().all(|answer| answer.unwrap().envelope == "hello"));
        assert_eq!(b.peers.inner.accepted.get(), 1, "one connection");
        let mut stream = b.peers.open(Destination { node: A, slot: 7 }, frame("0"), Priority::Normal).await.unwrap();
        assert_eq!(stream.receiver.receive().await.unwrap().unwrap().envelope, "0");
        a.peers.send_datagram(TO_B, Bytes::from_static(&[datagram::GOSSIP, 5]));
        until("it came", || async { b.echo.datagrams.borrow().len() == 1 }).await;
        [&a, &b].iter().for_each(|member| member.peers.watch_liveness());
        until("the way is measured", || async {
            a.peers.liveness().round_trip(B).is_some() && b.peers.liveness().round_trip(A).is_some()
        })
        .await;
        a.peers.close().await;
        b.peers.close().await;
    });
}

/// Entries larger than a stream's window, for which there is no room, wait without holding up others on their connection, and come
/// through when there is; when too much waits, they are refused in the middle, and nothing of them is kept.
#[test]
fn entries_without_room() {
    block_on(async {
        let cluster = Cluster::make();
        let (a, b) = (cluster.start(A, PATIENT), cluster.start(B, PATIENT));
        introduce(&[&a, &b]);
        let large = || Frame { kind: FrameKind::Append, envelope: pattern(100), parts: vec![pattern(6 << 20)] };
        let call = || a.peers.call(TO_B, large(), Priority::Bulk, LONG);
        let other = || async { a.peers.call(TO_B, frame("vote"), Priority::Urgent, LONG).await.unwrap().envelope };
        let budget = &b.peers.inner.budget;
        let full = || budget.force(Use::Queued, budget.limit(Class::Replication));

        let held = full();
        let let_in = async {
            let window = limits::PEER_STREAM_WINDOW_BYTES as usize;
            until("it waits", || async { budget.backlog_bytes() > window }).await;
            assert_eq!((other().await, budget.used_for(Use::Frames)), (Bytes::from("vote"), 0));
            drop(held);
        };
        let (answer, ()) = join(call(), let_in).await;
        assert_eq!(answer.unwrap().parts[0].bytes(), large().parts[0]);
        assert_eq!(budget.backlog_bytes(), 0);

        let (held, mut others) = (full(), budget.backlog());
        others.resize(budget.backlog_max(), usize::MAX).unwrap();
        match call().await {
            Ok(answer) => assert_eq!(answer.kind, FrameKind::Refused),
            // Its sender heard of the end before the answer.
            Err(error) => assert!(matches!(error, PeerError::Lost { .. }), "{error}"),
        }
        assert_eq!(other().await, "vote");
        drop((held, others));
        assert_eq!(call().await.unwrap().kind, FrameKind::Append);
        a.peers.close().await;
        b.peers.close().await;
    });
}

/// A node that stops is noticed and dead; it is reached again, and alive, when it is back at another port and has said so.
#[test]
fn stops_and_returns() {
    block_on(async {
        let cluster = Cluster::make();
        let (a, b) = (cluster.start(A, PATIENT), cluster.start(B, PATIENT));
        introduce(&[&a, &b]);
        a.peers.watch_liveness();
        let mut stream = a.peers.open(TO_B, frame("0"), Priority::Normal).await.unwrap();
        stream.receiver.receive().await.unwrap();
        b.peers.close().await;
        assert!(matches!(stream.receiver.receive().await, Err(PeerError::Lost { node: B, .. })));
        let call = || async { a.peers.call(TO_B, frame("x"), Priority::Normal, Duration::from_millis(300)).await };
        assert!(call().await.is_err());
        until("it is dead", || async { !a.peers.liveness().is_alive(B) }).await;
        let again = cluster.start(B, PATIENT);
        again.peers.book().publish([a.entry.clone(), again.entry.clone()]);
        assert!(a.peers.book().hear(&again.entry));
        until("it is reached again", || async { call().await.is_ok() }).await;
        again.peers.watch_liveness();
        until("it is alive", || async { a.peers.liveness().is_alive(B) }).await;
        a.peers.close().await;
        again.peers.close().await;
    });
}
