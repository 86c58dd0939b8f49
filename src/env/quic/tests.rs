//! Real sockets on loopback. Time-outs are only there to end a test that hangs.

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
struct Lines(Arc<Mutex<Vec<u8>>>);

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
    fn catch() -> (Lines, tracing::subscriber::DefaultGuard) {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(lines.clone())
            .with_ansi(false)
            .with_max_level(tracing::Level::WARN)
            .finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    /// Waits until a line says that.
    async fn say(&self, what: &str) {
        loop {
            let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
            if text.contains(what) {
                return;
            }
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

/// Dials, and gives back the words of the refusal after those of whom was refused.
async fn refused(dialler: &QuicNet, target: Endpoint) -> String {
    match dialler.connect(target.clone()).await {
        Err(NetError::Refused { to, cause }) => {
            assert_eq!(to, target);
            cause
        }
        other => panic!("{other:?}"),
    }
}

/// Whoever is not who he should be is refused, and both sides say why.
#[test]
fn wrong_peers() {
    run(async {
        let (lines, _guard) = Lines::catch();
        let (ours, foreign, elsewhere) = (authority(CLUSTER), authority(CLUSTER), authority(OTHER));
        let (one, two) = (net(&ours, 1), net(&ours, 2));
        // Another node than the one that was dialled: the dialler refuses.
        let words = "node 2 answers where node 3 was dialled";
        assert_eq!(refused(&one, to(&two, 3)).await, words);
        lines.say(words).await;
        // Another CA of the same cluster, in both directions.
        let forger = net(&foreign, 3);
        let words = format!("the certificate of node 2 is not signed by the CA of cluster {CLUSTER}");
        assert_eq!(refused(&forger, to(&two, 2)).await, words);
        lines.say(&words).await;
        let words = format!("the certificate of node 3 is not signed by the CA of cluster {CLUSTER}");
        assert_eq!(refused(&one, to(&forger, 3)).await, words);
        lines.say(&words).await;
        // Another cluster.
        let stranger = net(&elsewhere, 2);
        let words = format!("a certificate of cluster {OTHER} was shown to a node of cluster {CLUSTER}");
        assert_eq!(refused(&one, to(&stranger, 2)).await, words);
        lines.say(&words).await;
        // The same node twice.
        let copy = net(&ours, 2);
        let words = "two processes say that they are node 2: was a data directory copied?";
        let copied = to(&two, 2);
        // It dials as another node would: by who it is, not by its own guard.
        let config = PATIENT.client_config(credentials(&ours, 2).client_config(), &Ending::default());
        let name = credentials(&ours, 1).name_of_peer(NodeId(2));
        let quic = copy.0.endpoint.connect_with(config, two.local_address(), &name).unwrap().await.unwrap();
        let (is_refusal, cause) = error::handshake(&quic.closed().await);
        assert_eq!((is_refusal, &*cause), (true, words));
        lines.say(words).await;
        assert_eq!(refused(&copy, copied).await, "it is this node itself");
        // None of them was handed out.
        let (dialled, accepted) = pair(&one, &two, 2).await;
        assert_eq!((dialled.peer(), accepted.peer()), (NodeId(2), NodeId(1)));
    });
}

/// A certificate that only the peer's eyes see: the acceptor refuses what the dialler shows.
#[test]
fn wrong_diallers() {
    run(async {
        let (lines, _guard) = Lines::catch();
        let (ours, foreign) = (authority(CLUSTER), authority(CLUSTER));
        let two = net(&ours, 2);
        let client = |shown: &Credentials| {
            // Trusts the right CA, and shows something else.
            let mut config = credentials(&ours, 9).client_config();
            config.client_auth_cert_resolver = shown.client_config().client_auth_cert_resolver;
            config
        };
        let mut nobody = credentials(&ours, 9).client_config();
        nobody.client_auth_cert_resolver = join_client_resolver(&ours);
        let expired = credentials_at(&ours, 9, now_us() - 10 * DAY.as_micros() as i64, DAY);
        let early = credentials_at(&ours, 9, now_us() + 10 * DAY.as_micros() as i64, DAY);
        for (config, words) in [
            (nobody, "no certificate was shown; only members of the cluster have one"),
            (
                client(&credentials(&foreign, 9)),
                "the certificate of node 9 is not signed by the CA of cluster 00112233445566778899aabbccddeeff",
            ),
            (
                client(&credentials(&authority(OTHER), 9)),
                "a certificate of cluster ffeeddccbbaa99887766554433221100 was shown to a node of cluster \
                 00112233445566778899aabbccddeeff",
            ),
            (client(&expired), "the certificate of node 9 has expired at "),
            (client(&early), "the certificate of node 9 is valid from "),
        ] {
            let nine = net(&ours, 9);
            let client = PATIENT.client_config(config, &Ending::default());
            *nine.0.identity.borrow_mut() = Rc::new(Identity { credentials: credentials(&ours, 9), client });
            let cause = refused(&nine, to(&two, 2)).await;
            assert!(cause.starts_with(words), "{cause}");
            lines.say(words).await;
        }
        // And what the dialler sees of one that accepts with an expired one.
        let old = net_with(expired, everybody(), PATIENT);
        let cause = refused(&net(&ours, 1), to(&old, 9)).await;
        assert!(cause.starts_with("the certificate of node 9 has expired at "), "{cause}");
    });
}

fn join_client_resolver(authority: &Authority) -> Arc<dyn rustls::client::ResolvesClientCert> {
    let token = JoinToken::new(authority.cluster(), authority.fingerprint()).unwrap();
    crate::tls::join_client_config(&token).client_auth_cert_resolver
}

/// A removed node is refused by both sides, from the moment of its removal on.
#[test]
fn removed_nodes() {
    run(async {
        let (lines, _guard) = Lines::catch();
        let authority = authority(CLUSTER);
        let removed = Arc::new(Mutex::new(BTreeMap::new()));
        let table = removed.clone();
        let members: Membership = Arc::new(move |node| match table.lock().unwrap().get(&node) {
            Some(()) => Err("it was removed from the cluster".to_owned()),
            None => Ok(()),
        });
        let (one, two) = (net(&authority, 1), net_with(credentials(&authority, 2), members, PATIENT));
        pair(&one, &two, 2).await;
        pair(&two, &one, 1).await;
        removed.lock().unwrap().insert(NodeId(1), ());
        let words = "node 1 is refused: it was removed from the cluster";
        assert_eq!(refused(&one, to(&two, 2)).await, words);
        lines.say(words).await;
        assert_eq!(refused(&two, to(&one, 1)).await, "it was removed from the cluster");
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
            let dialled = two.connect(at(1, accepted.remote_port())).await.unwrap();
            while !until.load(Ordering::Acquire) {
                env::sleep::<RealEnv>(Duration::from_millis(5)).await;
            }
            drop((two, accepted, dialled));
        });
    });
    let address = port.recv().unwrap();
    run(async {
        let one = net_with(credentials(&authority, 1), everybody(), options);
        let dialled = loop {
            // A slow machine may need more than one attempt with these times.
            if let Ok(dialled) = one.connect(at(2, address.port())).await {
                break dialled;
            }
        };
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

/// A node without a certificate may ask to join, and nothing else; it trusts only the CA of its token.
#[test]
fn join() {
    run(async {
        let (lines, _guard) = Lines::catch();
        let ours = authority(CLUSTER);
        let one = net(&ours, 1);
        let port = one.local_address().port();
        let token = JoinToken::new(CLUSTER, ours.fingerprint()).unwrap();
        let serve = async {
            let asked = one.accept_join().await.unwrap();
            assert!(asked.from().ip().is_loopback());
            let answer = Bytes::from([b"welcome, ", &asked.request()[..]].concat());
            asked.reply(answer).await.unwrap();
        };
        let within = Duration::from_secs(60);
        let ask = join_call("127.0.0.1", port, &token, Bytes::from("four"), within);
        let ((), answer) = tokio::join!(serve, ask);
        let answer = answer.unwrap();
        assert_eq!(answer.reply, "welcome, four");
        assert_eq!(answer.authority, ours.certificate());
        // The largest request and answer pass; a larger request does not.
        let serve = async {
            let asked = one.accept_join().await.unwrap();
            let answer = asked.request().clone();
            asked.reply(answer).await.unwrap();
        };
        let largest = pattern(JOIN_BYTES_MAX, 1);
        let ((), answer) = tokio::join!(serve, join_call("127.0.0.1", port, &token, largest.clone(), within));
        assert_eq!(answer.unwrap().reply, largest);
        let too_large = pattern(JOIN_BYTES_MAX + 1, 1);
        let error = join_call("127.0.0.1", port, &token, too_large, within).await.unwrap_err();
        assert!(matches!(error, JoinError::Unreachable(_)), "{error}");
        lines.say("its request to join did not arrive: stream too long").await;
        // A request that is dropped unanswered.
        let drop_it = async { drop(one.accept_join().await.unwrap()) };
        let ((), error) = tokio::join!(drop_it, join_call("127.0.0.1", port, &token, Bytes::from("x"), within));
        assert!(matches!(error, Err(JoinError::Unreachable(_))), "{error:?}");
        // Another cluster's token: refused before anything is sent.
        let wrong = JoinToken::new(CLUSTER, authority(CLUSTER).fingerprint()).unwrap();
        let error = join_call("127.0.0.1", port, &wrong, Bytes::from("secret"), within).await.unwrap_err();
        let words = "the CA of the node that was asked is not the one that the join token names: the token is of another \
                     cluster, or the address is";
        assert_eq!(error, JoinError::Refused(format!("127.0.0.1:{port} was refused: {words}")));
        lines.say(words).await;
        // The right CA, and the wrong cluster.
        let wrong = JoinToken::new(OTHER, ours.fingerprint()).unwrap();
        let error = join_call("127.0.0.1", port, &wrong, Bytes::from("secret"), within).await.unwrap_err();
        assert!(error.to_string().contains("was shown to a node of cluster"), "{error}");
    });
}

/// Only a few requests to join are held; who gives up makes room, and members are not in the way of joins.
#[test]
fn joins_are_bounded() {
    run(async {
        let ours = authority(CLUSTER);
        let one = net(&ours, 1);
        let port = one.local_address().port();
        let token = JoinToken::new(CLUSTER, ours.fingerprint()).unwrap();
        let ask = |text: &'static str, within| join_call("127.0.0.1", port, &token, Bytes::from(text), within);
        let within = Duration::from_secs(60);
        let mut waiting: Vec<_> = (0..join::JOINS_MAX).map(|_| Box::pin(ask("wait", within))).collect();
        // Each is driven until the endpoint holds it.
        while one.0.joins.len() < join::JOINS_MAX {
            for call in &mut waiting {
                let step = options::timeout(Duration::from_millis(20), call.as_mut()).await;
                assert!(step.is_none(), "{step:?}");
            }
        }
        let error = ask("one too many", within).await.unwrap_err();
        assert!(error.to_string().contains("other nodes are joining at the moment"), "{error}");
        let (dialled, _accepted) = pair(&net(&ours, 2), &one, 1).await;
        assert_eq!(dialled.peer(), NodeId(1));
        drop(waiting);
        let serve = async {
            loop {
                let asked = one.accept_join().await.unwrap();
                let is_it = asked.request() == "now";
                // Those who gave up cannot be answered.
                drop(asked.reply(Bytes::from("yes")).await);
                if is_it {
                    return;
                }
            }
        };
        let again = async {
            loop {
                if let Ok(answer) = ask("now", within).await {
                    return answer.reply;
                }
            }
        };
        let ((), answer) = tokio::join!(serve, again);
        assert_eq!(answer, "yes");
    });
}
