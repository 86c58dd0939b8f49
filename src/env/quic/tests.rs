//! Real sockets on loopback. Time-outs are only there to end a test that hangs.

mod join;
mod refusals;

use std::{
    cell::Cell,
    collections::BTreeMap,
    future::Future,
    io::Write,
    net::Ipv4Addr,
    sync::{Mutex, atomic::AtomicBool, atomic::Ordering},
    time::SystemTime,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::{
    env::{
        self,
        net::{Connection, DATAGRAM_BYTES_MAX, Priority, ReceiveStream, SendStream},
        real::RealEnv,
        runtime::block_on,
    },
    tls::{Authority, Issued, JoinToken, NODE_VALIDITY},
};

const CLUSTER: &str = "00112233445566778899aabbccddeeff";
const OTHER: &str = "ffeeddccbbaa99887766554433221100";
const DAY: Duration = Duration::from_secs(86_400);

/// Nothing is given up because the machine is slow.
const PATIENT: QuicOptions = QuicOptions {
    keep_alive: Duration::from_secs(5),
    idle: Duration::from_secs(60),
    dial: Duration::from_secs(60),
    handshake: Duration::from_secs(60),
};

#[allow(clippy::disallowed_methods, reason = "certificates of a test begin and end by the real clock")]
fn now_us() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as i64
}

fn authority(cluster: &str) -> Authority {
    let Issued { certificate, key } = Authority::make(cluster, now_us()).unwrap();
    Authority::from_pem(&certificate, &key).unwrap()
}

/// As they were at that time: they may have expired since.
fn credentials_at(authority: &Authority, node: u64, made_us: i64, validity: Duration) -> Arc<Credentials> {
    let Issued { certificate, key } = authority.issue(NodeId(node), validity, made_us).unwrap();
    let ca = authority.certificate();
    Arc::new(Credentials::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes(), made_us).unwrap())
}

fn credentials(authority: &Authority, node: u64) -> Arc<Credentials> {
    credentials_at(authority, node, now_us(), NODE_VALIDITY)
}

fn everybody() -> Membership {
    Arc::new(|_| Ok(()))
}

fn net_with(credentials: Arc<Credentials>, members: Membership, options: QuicOptions) -> QuicNet {
    let socket = bind_reactors((Ipv4Addr::LOCALHOST, 0).into(), 1).unwrap().remove(0);
    QuicNet::new(socket, credentials, members, options).unwrap()
}

fn net(authority: &Authority, node: u64) -> QuicNet {
    net_with(credentials(authority, node), everybody(), PATIENT)
}

fn at(node: u64, port: u16) -> Endpoint {
    Endpoint { node: NodeId(node), host: "127.0.0.1".to_owned(), port }
}

fn to(net: &QuicNet, node: u64) -> Endpoint {
    at(node, net.local_address().port())
}

/// Runs a test, and ends one that hangs.
fn run<T>(test: impl Future<Output = T>) -> T {
    block_on(async { options::timeout(Duration::from_secs(120), test).await.expect("the test hangs") })
}

async fn pair(dialler: &QuicNet, acceptor: &QuicNet, node: u64) -> (QuicConnection, QuicConnection) {
    let (dialled, accepted) = tokio::join!(dialler.connect(to(acceptor, node)), acceptor.accept());
    (dialled.unwrap(), accepted.unwrap())
}

/// Dials until somebody answers: with short time-outs a slow machine may need more than one attempt.
async fn insist(dialler: &QuicNet, target: Endpoint) -> QuicConnection {
    loop {
        if let Ok(dialled) = dialler.connect(target.clone()).await {
            return dialled;
        }
    }
}

async fn read_all(receive: &mut QuicReceive) -> Result<Vec<u8>, NetError> {
    let mut all = Vec::new();
    while let Some(bytes) = receive.receive().await? {
        assert!(!bytes.is_empty());
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

fn pattern(bytes: usize, seed: usize) -> Bytes {
    (0..bytes).map(|i| ((i + seed) * 31 % 251) as u8).collect::<Vec<_>>().into()
}

/// Log lines of this thread.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

impl Lines {
    pub(crate) fn catch() -> (Lines, tracing::subscriber::DefaultGuard) {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(lines.clone())
            .with_ansi(false)
            .with_max_level(tracing::Level::WARN)
            .finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits until a line says that.
    async fn say(&self, what: &str) {
        while !self.text().contains(what) {
            env::sleep::<RealEnv>(Duration::from_millis(5)).await;
        }
    }
}

/// Two nodes know each other, and talk over streams and datagrams, in both directions.
#[test]
fn two_nodes_talk() {
    run(async {
        let authority = authority(CLUSTER);
        let (one, two) = (net(&authority, 1), net(&authority, 2));
        let (dialled, accepted) = pair(&one, &two, 2).await;
        assert_eq!((dialled.peer(), accepted.peer()), (NodeId(2), NodeId(1)));
        for (asking, answering) in [(&dialled, &accepted), (&accepted, &dialled)] {
            let (mut send, mut receive) = asking.open().await.unwrap();
            send.set_priority(Priority::Urgent);
            let empty = Bytes::new();
            send.send(vec![empty.clone(), Bytes::from("he"), empty.clone(), Bytes::from("llo")]).await.unwrap();
            send.send(vec![empty]).await.unwrap();
            send.send(Vec::new()).await.unwrap();
            send.finish();
            let (mut answer, mut question) = answering.accept().await.unwrap();
            assert_eq!(read_all(&mut question).await.unwrap(), b"hello");
            assert_eq!(question.receive().await.unwrap(), None);
            answer.send(vec![Bytes::from("world")]).await.unwrap();
            answer.finish();
            assert_eq!(read_all(&mut receive).await.unwrap(), b"world");
            // Datagrams may be lost: it is sent until it arrives.
            let datagram = pattern(DATAGRAM_BYTES_MAX, 3);
            let again = async {
                loop {
                    asking.send_datagram(datagram.clone());
                    env::sleep::<RealEnv>(Duration::from_millis(20)).await;
                }
            };
            let received =
                tokio::select! { () = again => unreachable!(), received = answering.receive_datagram() => received };
            assert_eq!(received.unwrap(), datagram);
        }
        assert!(!dialled.is_closed() && !accepted.is_closed());
    });
}

/// Far more streams at the same time than a peer may open at first: the limit grows with what is used.
#[test]
fn many_streams() {
    const STREAMS: usize = 1_500;
    run(async {
        let authority = authority(CLUSTER);
        let (one, two) = (net(&authority, 1), net(&authority, 2));
        let (dialled, accepted) = pair(&one, &two, 2).await;
        let ask = async {
            let mut open = Vec::new();
            for number in 0..STREAMS {
                let (mut send, receive) = dialled.open().await.unwrap();
                send.send(vec![Bytes::from(number.to_string())]).await.unwrap();
                open.push((send, receive));
            }
            // All are open now; the answers come to each its own.
            for (number, (send, receive)) in open.iter_mut().enumerate() {
                send.finish();
                assert_eq!(read_all(receive).await.unwrap(), format!("{number}!").as_bytes());
            }
        };
        let answer = async {
            let mut open = Vec::new();
            for _ in 0..STREAMS {
                open.push(accepted.accept().await.unwrap());
            }
            assert_eq!(accepted.streams_open(), STREAMS as u32);
            for (send, receive) in &mut open {
                let mut text = read_all(receive).await.unwrap();
                text.push(b'!');
                send.send(vec![text.into()]).await.unwrap();
                send.finish();
            }
        };
        tokio::join!(ask, answer);
        assert_eq!(accepted.streams_open(), 0);
    });
}

/// 64 MiB in bulk arrive whole, while a stream that nobody reads is full and small urgent calls go to and fro.
#[test]
fn bulk_beside_urgent() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 64;
    run(async {
        let authority = authority(CLUSTER);
        let (one, two) = (net(&authority, 1), net(&authority, 2));
        let (dialled, accepted) = pair(&one, &two, 2).await;
        let done = Cell::new(false);
        // Opened first, so that it is accepted first; never read.
        let (mut unread, _receive) = dialled.open().await.unwrap();
        unread.set_priority(Priority::Bulk);
        unread.send(vec![Bytes::from("u")]).await.unwrap();
        let (_send, _unread) = accepted.accept().await.unwrap();
        let fill = async {
            while !done.get() {
                let piece = unread.send(vec![pattern(PIECE, 0)]);
                drop(options::timeout(Duration::from_millis(200), piece).await);
            }
        };
        let (mut bulk, _bulk_receive) = dialled.open().await.unwrap();
        bulk.set_priority(Priority::Bulk);
        bulk.send(vec![Bytes::from("b")]).await.unwrap();
        let (_bulk_send, mut received) = accepted.accept().await.unwrap();
        let send = async {
            for number in 0..PIECES {
                bulk.send(vec![pattern(PIECE, number)]).await.unwrap();
            }
            bulk.finish();
        };
        let receive = async {
            let all = read_all(&mut received).await.unwrap();
            assert_eq!((all.len(), all[0]), (1 + PIECE * PIECES, b'b'));
            for (number, piece) in all[1..].chunks(PIECE).enumerate() {
                assert!(piece == pattern(PIECE, number), "piece {number}");
            }
            done.set(true);
        };
        let mut calls = 0;
        let ask = async {
            while !done.get() {
                let (mut send, mut receive) = dialled.open().await.unwrap();
                send.set_priority(Priority::Urgent);
                send.send(vec![Bytes::from("vote")]).await.unwrap();
                send.finish();
                assert_eq!(read_all(&mut receive).await.unwrap(), b"granted");
                calls += 1;
            }
            dialled.close("enough");
        };
        let answer = async {
            while let Ok((mut send, mut receive)) = accepted.accept().await {
                assert_eq!(read_all(&mut receive).await.unwrap(), b"vote");
                send.set_priority(Priority::Urgent);
                send.send(vec![Bytes::from("granted")]).await.unwrap();
                send.finish();
            }
        };
        tokio::join!(fill, send, receive, ask, answer);
        assert!(calls > 0);
        // The path was probed meanwhile: loopback carries the largest packets.
        assert!(dialled.packet_bytes() > 6_000, "{}", dialled.packet_bytes());
    });
}

/// Streams in bulk fill the window that all share only in part: others write at once, and urgent ones last of all wait.
#[test]
fn windows_by_priority() {
    run(async {
        let authority = authority(CLUSTER);
        let (one, two) = (net(&authority, 1), net(&authority, 2));
        let (dialled, _accepted) = pair(&one, &two, 2).await;
        let piece = pattern(1 << 20, 0);
        // Nothing is awaited, so that nothing leaves: whoever does not write at once has no room.
        let fill = |priority| {
            let mut streams = Vec::new();
            let mut bytes = 0;
            loop {
                let (mut send, receive) = dialled.open().now_or_never().expect("few are open").unwrap();
                send.set_priority(priority);
                let mut wrote = 0;
                while send.send(vec![piece.clone()]).now_or_never().is_some() {
                    wrote += piece.len() as u64;
                }
                streams.push((send, receive));
                if wrote == 0 {
                    return (bytes, streams);
                }
                bytes += wrote;
            }
        };
        let (bulk, _bulk) = fill(Priority::Bulk);
        let (normal, _normal) = fill(Priority::Normal);
        let (urgent, _urgent) = fill(Priority::Urgent);
        let all = [bulk, bulk + normal, bulk + normal + urgent];
        assert_eq!(all, [Priority::Bulk, Priority::Normal, Priority::Urgent].map(options::send_window));
    });
}

/// A crowd that connects at the same time is let in, one after the other, though some are asked to prove their address.
#[test]
fn crowd() {
    const CROWD: u64 = 100;
    run(async {
        let authority = authority(CLUSTER);
        let (one, two) = (net(&authority, 1), net(&authority, 2));
        let dials = futures_util::future::join_all((0..CROWD).map(|_| one.connect(to(&two, 2))));
        let accepts = async {
            let mut accepted = Vec::new();
            for _ in 0..CROWD {
                accepted.push(two.accept().await.unwrap());
            }
            accepted
        };
        let (dialled, accepted) = tokio::join!(dials, accepts);
        assert!(dialled.iter().all(Result::is_ok));
        assert_eq!(accepted.len() as u64, CROWD);
        assert_eq!(one.0.endpoint.open_connections() as u64, CROWD);
        drop((dialled, accepted));
        while one.0.endpoint.open_connections() + two.0.endpoint.open_connections() > 0 {
            env::sleep::<RealEnv>(Duration::from_millis(5)).await;
        }
    });
}

/// Half a message never looks like a whole one, and whoever does not want the rest says so.
#[test]
fn streams_end() {
    run(async {
        let authority = authority(CLUSTER);
        let (one, two) = (net(&authority, 1), net(&authority, 2));
        let (dialled, accepted) = pair(&one, &two, 2).await;
        let (mut send, _receive) = dialled.open().await.unwrap();
        send.send(vec![Bytes::from("half")]).await.unwrap();
        let (_send, mut received) = accepted.accept().await.unwrap();
        assert_eq!(received.receive().await.unwrap().unwrap(), "half");
        drop(send);
        assert_eq!(received.receive().await, Err(NetError::Ended { node: NodeId(1) }));
        let (mut send, _receive) = dialled.open().await.unwrap();
        send.send(vec![Bytes::from("more")]).await.unwrap();
        let (_send, received) = accepted.accept().await.unwrap();
        drop(received);
        let ended = loop {
            if let Err(error) = send.send(vec![pattern(100_000, 0)]).await {
                break error;
            }
        };
        assert_eq!(ended, NetError::Ended { node: NodeId(2) });
        // A connection that is closed says why, to both, on everything.
        dialled.close("the lease is over");
        let lost = NetError::Lost { node: NodeId(1), cause: "the lease is over".to_owned() };
        assert_eq!(accepted.closed().await, lost);
        assert_eq!(accepted.accept().await.unwrap_err(), lost);
        assert_eq!(accepted.open().await.unwrap_err(), lost);
        assert_eq!(accepted.receive_datagram().await.unwrap_err(), lost);
        assert!(accepted.is_closed() && dialled.is_closed());
        let ours = NetError::Lost { node: NodeId(2), cause: "closed by this node".to_owned() };
        assert_eq!(dialled.closed().await, ours);
    });
}

/// Nobody there is an answer, too, in bounded time; so is a name that does not exist, and one that does.
#[test]
fn nobody_there() {
    run(async {
        let authority = authority(CLUSTER);
        let one = net_with(credentials(&authority, 1), everybody(), QuicOptions::default());
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = silent.local_addr().unwrap().port();
        let error = one.connect(at(2, port)).await.unwrap_err();
        assert_eq!(error.to_string(), format!("node 2 at 127.0.0.1:{port} cannot be reached: nobody answers"));
        // A dial that is given up leaves nothing behind.
        assert!(options::timeout(Duration::from_millis(20), one.connect(at(2, port))).await.is_none());
        while one.0.endpoint.open_connections() > 0 {
            env::sleep::<RealEnv>(Duration::from_millis(5)).await;
        }
        let nowhere = Endpoint { node: NodeId(2), host: "no such host".to_owned(), port };
        let error = one.connect(nowhere).await.unwrap_err();
        assert!(matches!(&error, NetError::Unreachable { cause, .. } if cause.contains("could not be looked up")));
        let sixth = Endpoint { node: NodeId(2), host: "::1".to_owned(), port };
        let error = one.connect(sixth).await.unwrap_err();
        assert!(
            matches!(&error, NetError::Unreachable { cause, .. } if cause.contains("no address that can be reached"))
        );
        let patient = net(&authority, 3);
        let two = net(&authority, 2);
        let by_name = Endpoint { host: "localhost".to_owned(), ..to(&two, 2) };
        let (dialled, accepted) = tokio::join!(patient.connect(by_name), two.accept());
        assert_eq!((dialled.unwrap().peer(), accepted.unwrap().peer()), (NodeId(2), NodeId(3)));
    });
}

/// A peer that is gone without a word is noticed by the side that dialled and by the one that accepted, and can be
/// dialled again when it is back, on the same port.
#[test]
fn death_and_return() {
    let authority = authority(CLUSTER);
    let own = credentials(&authority, 2);
    let options = QuicOptions { dial: PATIENT.dial, handshake: PATIENT.handshake, ..QuicOptions::default() };
    let (told, port) = std::sync::mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let (first_life, until) = (own.clone(), stop.clone());
    // A runtime of its own, which ends in the same turn as what runs in it: no goodbye leaves.
    #[allow(clippy::disallowed_methods, reason = "a test of a process that dies")]
    let mortal = std::thread::spawn(move || {
        block_on(async {
            let two = net_with(first_life, everybody(), PATIENT);
            told.send(two.local_address()).unwrap();
            let accepted = two.accept().await.unwrap();
            let dialled = insist(&two, at(1, accepted.remote_port())).await;
            while !until.load(Ordering::Acquire) {
                env::sleep::<RealEnv>(Duration::from_millis(5)).await;
            }
            drop((two, accepted, dialled));
        });
    });
    let address = port.recv().unwrap();
    run(async {
        let one = net_with(credentials(&authority, 1), everybody(), options);
        let dialled = insist(&one, at(2, address.port())).await;
        let accepted = one.accept().await.unwrap();
        assert_eq!((dialled.peer(), accepted.peer()), (NodeId(2), NodeId(2)));
        stop.store(true, Ordering::Release);
        let (first, second) = tokio::join!(dialled.closed(), accepted.closed());
        let silent = NetError::Lost { node: NodeId(2), cause: "nothing was heard any more".to_owned() };
        assert_eq!((&first, &second), (&silent, &silent));
        mortal.join().unwrap();
        let socket = bind_reactors(address, 1).unwrap().remove(0);
        let two = QuicNet::new(socket, own, everybody(), PATIENT).unwrap();
        let back = pair(&net(&authority, 1), &two, 2).await;
        assert_eq!((back.0.peer(), back.1.peer()), (NodeId(2), NodeId(1)));
    });
}

/// A peer that was restarted is noticed by its answer to the next packet, long before the time-out.
#[test]
fn restart_is_noticed() {
    let authority = authority(CLUSTER);
    let own = credentials(&authority, 2);
    let options = QuicOptions { keep_alive: Duration::from_millis(50), ..PATIENT };
    let (told, port) = std::sync::mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let (first_life, until) = (own.clone(), stop.clone());
    #[allow(clippy::disallowed_methods, reason = "a test of a process that dies")]
    let mortal = std::thread::spawn(move || {
        block_on(async {
            let two = net_with(first_life, everybody(), PATIENT);
            told.send(two.local_address()).unwrap();
            let accepted = two.accept().await.unwrap();
            while !until.load(Ordering::Acquire) {
                env::sleep::<RealEnv>(Duration::from_millis(5)).await;
            }
            drop((two, accepted));
        });
    });
    let address = port.recv().unwrap();
    run(async {
        let one = net_with(credentials(&authority, 1), everybody(), options);
        let dialled = one.connect(at(2, address.port())).await.unwrap();
        stop.store(true, Ordering::Release);
        mortal.join().unwrap();
        let socket = bind_reactors(address, 1).unwrap().remove(0);
        let _two = QuicNet::new(socket, own, everybody(), options).unwrap();
        let restarted =
            NetError::Lost { node: NodeId(2), cause: "it was restarted, or has forgotten the connection".to_owned() };
        assert_eq!(dialled.closed().await, restarted);
    });
}

/// A node that stops says so; nobody is accepted, and nothing can be dialled, any more.
#[test]
fn close() {
    run(async {
        let authority = authority(CLUSTER);
        let (one, two) = (net(&authority, 1), net(&authority, 2));
        let (dialled, accepted) = pair(&one, &two, 2).await;
        let waiting = two.clone();
        let ((), waited, joins) = tokio::join!(two.close(), waiting.accept(), waiting.accept_join());
        assert!(waited.is_none() && joins.is_none());
        assert!(two.accept().await.is_none());
        let stops = NetError::Lost { node: NodeId(2), cause: "the node stops".to_owned() };
        assert_eq!(dialled.closed().await, stops);
        assert!(accepted.is_closed());
        let error = two.connect(to(&one, 1)).await.unwrap_err();
        assert!(matches!(error, NetError::Unreachable { .. }), "{error}");
    });
}

/// Credentials can be replaced while connections live; the new ones are shown from then on.
#[test]
fn new_credentials() {
    run(async {
        let authority = authority(CLUSTER);
        let (one, two) = (net(&authority, 1), net(&authority, 2));
        let (dialled, _accepted) = pair(&one, &two, 2).await;
        let before = shown(&dialled);
        two.set_credentials(credentials(&authority, 2));
        let (again, _accepted_again) = pair(&one, &two, 2).await;
        assert_ne!(shown(&again), before);
        assert!(!dialled.is_closed());
        let (_other_way, accepted) = pair(&two, &one, 1).await;
        assert_eq!(shown(&accepted), shown(&again));
    });
}

fn shown(connection: &QuicConnection) -> Vec<u8> {
    connection.certificate().expect("a proven peer has shown one")
}
