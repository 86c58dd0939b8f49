//! Peers over the network in memory.

mod over_quic;

use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};

use super::{
    book::{AddressBook, PeerNode},
    frame::{Frame, FrameKind, FrameStream, Received},
    *,
};
use crate::{
    env::runtime::block_on,
    ids::NodeId,
    sim::{SimNet, TestEnv, net::SimNetwork},
};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const TO_B: Destination = Destination { node: B, slot: 0 };

/// Longer than any step of a test takes on any machine: a time-out that is not expected.
const LONG: Duration = Duration::from_secs(60);

/// Answers each frame with itself, unless the envelope asks for something else.
struct Echo<E: Env> {
    datagrams: RefCell<Vec<(NodeId, Bytes)>>,
    held: RefCell<Vec<FrameStream<E>>>,
    streams: Cell<u64>,
}

impl<E: Env> Echo<E> {
    fn new() -> Rc<Echo<E>> {
        Rc::new(Echo { datagrams: RefCell::default(), held: RefCell::default(), streams: Cell::new(0) })
    }
}

impl<E: Env> Handler<E> for Echo<E> {
    fn stream(&self, _from: NodeId, first: Received, mut stream: FrameStream<E>) {
        self.streams.set(self.streams.get() + 1);
        match &first.envelope[..] {
            b"break off" => drop(stream),
            b"hang" => self.held.borrow_mut().push(stream),
            b"end" => stream.sender.finish(),
            _ => env::spawn::<E>(async move {
                let mut next = Ok(Some(first));
                while let Ok(Some(received)) = next {
                    let parts = received.parts.iter().map(|part| Bytes::copy_from_slice(part.bytes())).collect();
                    let answer = Frame { kind: received.kind, envelope: received.envelope, parts };
                    if stream.sender.send(answer).await.is_err() {
                        return;
                    }
                    next = stream.receiver.receive().await;
                }
                stream.sender.finish();
            }),
        }
    }

    fn datagram(&self, from: NodeId, datagram: Bytes) {
        self.datagrams.borrow_mut().push((from, datagram));
    }
}

/// One node with one reactor.
struct World {
    network: SimNetwork,
    peers: Peers<TestEnv>,
    echo: Rc<Echo<TestEnv>>,
}

fn address(node: NodeId, port: u16) -> PeerNode {
    PeerNode { node, host: format!("n{node}"), port, reactors: 1, grpc: String::new(), http: String::new() }
}

impl World {
    fn start(network: &SimNetwork, node: NodeId, port: u16) -> World {
        let book = Arc::new(AddressBook::default());
        book.publish([address(A, 1), address(B, 1)]);
        let net: SimNet = network.endpoint(node, &format!("n{node}"), port);
        let peers = Peers::new(node, ReactorNumber(0), net, book, Arc::default(), crate::budget::Budget::default());
        let echo = Echo::new();
        peers.serve(Rc::clone(&echo) as Rc<dyn Handler<TestEnv>>);
        World { network: network.clone(), peers, echo }
    }

    async fn call(&self, text: &'static str, within: Duration) -> Result<Received, PeerError> {
        self.peers.call(TO_B, frame(text), Priority::Normal, within).await
    }
}

fn frame(text: &'static str) -> Frame {
    Frame { kind: FrameKind::Control, envelope: text.into(), parts: vec![Bytes::from_static(b"part")] }
}

fn pair() -> (World, World) {
    let network = SimNetwork::new();
    (World::start(&network, A, 1), World::start(&network, B, 1))
}

async fn settle() {
    for _ in 0..200 {
        crate::env::yield_now().await;
    }
}

/// Waits until it is so, however long that takes on this machine.
async fn until<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    for _ in 0..6_000 {
        if is_so().await {
            return;
        }
        env::sleep::<TestEnv>(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

fn is_unreachable<T>(outcome: &Result<T, PeerError>) -> bool {
    matches!(outcome, Err(PeerError::Unreachable { node: B, .. }))
}

/// Many callers wait for one dial, and each gets its own answer; later ones use the same connection.
#[test]
fn one_dial_for_all() {
    block_on(async {
        let (a, b) = pair();
        a.network.hold_dials(true);
        let calls = join_all((0..20).map(|_| a.call("hello", LONG)));
        let released = async {
            settle().await;
            a.network.hold_dials(false);
        };
        let (answers, ()) = futures_util::future::join(calls, released).await;
        for answer in answers {
            let answer = answer.unwrap();
            assert_eq!((answer.kind, &answer.envelope[..]), (FrameKind::Control, &b"hello"[..]));
            assert_eq!(answer.parts[0].bytes(), b"part");
        }
        a.call("again", LONG).await.unwrap();
        assert_eq!((a.network.dials(), a.network.connections(), b.echo.streams.get()), (1, 1, 21));
    });
}

/// A dial goes on for the others when the one who began it gives up.
#[test]
fn a_dial_outlives_its_caller() {
    block_on(async {
        let (a, _b) = pair();
        a.network.hold_dials(true);
        let mut first = Box::pin(a.call("first", LONG));
        assert!((&mut first).now_or_never().is_none());
        settle().await;
        let second = a.call("second", LONG);
        drop(first);
        let mut second = Box::pin(second);
        assert!((&mut second).now_or_never().is_none());
        a.network.hold_dials(false);
        assert_eq!(&second.await.unwrap().envelope[..], b"second");
        assert_eq!(a.network.dials(), 1);
    });
}

/// A stream of many frames: answers come in order; one that is too large is refused, and the stream goes on.
#[test]
fn long_lived_streams() {
    block_on(async {
        let (a, _b) = pair();
        let mut stream = a.peers.open(TO_B, frame("0"), Priority::Urgent).await.unwrap();
        let huge = Frame { parts: vec![Bytes::new(); frame::FRAME_PARTS_MAX + 1], ..frame("huge") };
        assert!(is_unreachable(&stream.sender.send(huge).await), "nothing was sent");
        for text in ["1", "2", "3"] {
            stream.sender.send(frame(text)).await.unwrap();
        }
        stream.sender.finish();
        for text in ["0", "1", "2", "3"] {
            assert_eq!(stream.receiver.receive().await.unwrap().unwrap().envelope, text);
        }
        assert!(stream.receiver.receive().await.unwrap().is_none());
    });
}

/// Whether something was sent is told apart: before it is `Unreachable`, after it `Lost` or `Timeout`.
#[test]
fn sent_or_not() {
    block_on(async {
        let (a, b) = pair();
        a.network.hold_dials(true);
        let held = a.call("x", Duration::from_millis(20)).await;
        assert!(is_unreachable(&held), "{held:?}");
        a.network.hold_dials(false);
        settle().await;
        for text in ["break off", "end"] {
            let outcome = a.call(text, LONG).await;
            assert!(matches!(outcome, Err(PeerError::Lost { node: B, .. })), "{outcome:?}");
        }
        let outcome = a.call("hang", Duration::from_millis(20)).await;
        assert!(matches!(outcome, Err(PeerError::Timeout { node: B, .. })), "{outcome:?}");
        let crash = async {
            settle().await;
            a.network.crash(B);
        };
        let (outcome, ()) = futures_util::future::join(a.call("hang", LONG), crash).await;
        assert!(matches!(outcome, Err(PeerError::Lost { node: B, .. })), "{outcome:?}");
        assert_eq!(b.echo.held.borrow().len(), 2, "both came");
        for to in [A, NodeId(77)] {
            let to = Destination { node: to, slot: 0 };
            let outcome = a.peers.call(to, frame("x"), Priority::Normal, LONG).await;
            assert!(matches!(outcome, Err(PeerError::Unreachable { .. })), "oneself, and a stranger");
        }
        let alone = Peers::<TestEnv>::alone(A).call(TO_B, frame("x"), Priority::Normal, LONG).await;
        assert!(is_unreachable(&alone), "{alone:?}");
    });
}

/// After a failure callers are told at once; a new address, or a node that comes back to life, is tried at once.
#[test]
fn backing_off() {
    block_on(async {
        let network = SimNetwork::new();
        let a = World::start(&network, A, 1);
        // Enough failures for a pause that is long against this test's steps, and none of them waits.
        for _ in 0..10 {
            a.peers.inner.note_reachable(B);
            assert!(is_unreachable(&a.call("x", LONG).await));
        }
        let fail = |failures| {
            let key = (B, ReactorNumber(0));
            a.peers.inner.fail_for_test(key, failures);
        };
        fail(30);
        let dials = network.dials();
        for _ in 0..5 {
            assert!(is_unreachable(&a.call("x", LONG).await));
        }
        assert_eq!(network.dials(), dials, "told at once");
        let b = World::start(&network, B, 2);
        a.peers.book().publish([address(A, 1), address(B, 2)]);
        a.call("x", LONG).await.unwrap();
        b.peers.close().await;
        settle().await;
        assert_eq!(network.connections(), 0);
        a.peers.liveness().note(B, false);
        fail(30);
        let _again = World::start(&network, B, 2);
        assert!(is_unreachable(&a.call("x", LONG).await), "still pausing");
        a.peers.liveness().note(B, true);
        a.call("x", LONG).await.unwrap();
    });
}

/// Who asks for a dead node that could not be reached before does not wait for the next dial either; a living one is
/// waited for.
#[test]
fn the_dead_are_not_waited_for() {
    block_on(async {
        let network = SimNetwork::new();
        let a = World::start(&network, A, 1);
        assert!(is_unreachable(&a.call("x", LONG).await));
        a.peers.liveness().note(B, false);
        network.hold_dials(true);
        a.peers.inner.note_reachable(B);
        let dials = network.dials();
        let mut waiting = Box::pin(a.call("x", LONG));
        assert!((&mut waiting).now_or_never().is_none(), "nothing has failed since it was heard of");
        settle().await;
        assert_eq!(network.dials(), dials + 1);
        network.hold_dials(false);
        assert!(is_unreachable(&waiting.await));
        network.hold_dials(true);
        let told = || async { is_unreachable(&a.call("x", LONG).await) && network.dials() == dials + 2 };
        until("it is dialled again, and nobody waits for that", told).await;
        assert!(is_unreachable(&a.call("x", LONG).await));
        let _b = World::start(&network, B, 1);
        network.hold_dials(false);
        a.peers.liveness().note(B, true);
        until("it is reached", || async { a.call("x", LONG).await.is_ok() }).await;
    });
}

/// A lost connection is forgotten and made again; the peer's own dial ends the pause, too.
#[test]
fn reconnects() {
    block_on(async {
        let (a, _b) = pair();
        a.call("x", LONG).await.unwrap();
        a.network.crash(B);
        let b = World::start(&a.network, B, 1);
        let call = || async { a.call("x", LONG).await.is_ok() };
        until("it is connected again", call).await;
        a.network.drop_connections();
        a.peers.inner.fail_for_test((B, ReactorNumber(0)), 30);
        let to_a = Destination { node: A, slot: 0 };
        let back = || async { b.peers.call(to_a, frame("x"), Priority::Normal, LONG).await.is_ok() };
        until("the peer has dialled", back).await;
        settle().await;
        a.call("x", LONG).await.unwrap();
    });
}

/// A removed node's connections are closed when somebody asks for it.
#[test]
fn removed_from_the_book() {
    block_on(async {
        let (a, _b) = pair();
        a.call("x", LONG).await.unwrap();
        a.peers.book().publish([address(A, 1)]);
        assert!(is_unreachable(&a.call("x", LONG).await));
        settle().await;
        assert_eq!(a.network.connections(), 0);
    });
}

/// Datagrams: the first is lost and dials, later ones come; pings are not the handler's.
#[test]
fn datagrams() {
    block_on(async {
        let (a, b) = pair();
        let send = |bytes: &'static [u8]| a.peers.send_datagram(TO_B, Bytes::from_static(bytes));
        send(&[datagram::GOSSIP, 1]);
        settle().await;
        send(&[datagram::GOSSIP, 2]);
        send(&[datagram::PING, 0, 0, 0, 0, 0, 0, 0, 0]);
        send(&[datagram::PING, 1]);
        send(&[]);
        send(&[200]);
        settle().await;
        let expected = [&[datagram::GOSSIP, 2][..], &[200]].map(|bytes| (A, Bytes::copy_from_slice(bytes)));
        assert_eq!(*b.echo.datagrams.borrow(), expected);
    });
}

/// Nodes that ping each other are alive; one that is cut off is dead for both, and alive again when it is healed.
#[test]
fn liveness_over_the_network() {
    block_on(async {
        let (a, b) = pair();
        a.peers.watch_liveness();
        b.peers.watch_liveness();
        until("the way is measured", || async { a.peers.liveness().round_trip(B).is_some() }).await;
        assert!(a.peers.liveness().is_alive(B) && b.peers.liveness().is_alive(A));
        a.network.cut(B, A);
        until("B is dead for A", || async { !a.peers.liveness().is_alive(B) }).await;
        a.network.heal();
        until("B is back", || async { a.peers.liveness().is_alive(B) }).await;
        a.network.crash(A);
        until("A is dead for B", || async { !b.peers.liveness().is_alive(A) }).await;
        b.peers.book().publish([address(B, 1)]);
        until("A is no member", || async { b.peers.liveness().is_alive(A) }).await;
        a.peers.close().await;
        b.peers.close().await;
    });
}

/// Closed: everything there was is lost, nothing new is made, and no task stays.
#[test]
fn close() {
    block_on(async {
        let (a, b) = pair();
        let mut stream = a.peers.open(TO_B, frame("0"), Priority::Normal).await.unwrap();
        stream.receiver.receive().await.unwrap();
        a.peers.watch_liveness();
        a.peers.close().await;
        assert!(matches!(stream.receiver.receive().await, Err(PeerError::Lost { .. })));
        assert!(is_unreachable(&a.call("x", LONG).await));
        drop(stream);
        settle().await;
        assert_eq!(Rc::strong_count(&a.peers.inner), 1);
        assert_eq!(b.peers.inner.accepted.get(), 0);
        b.peers.close().await;
        settle().await;
        assert_eq!(Rc::strong_count(&b.peers.inner), 1);
    });
}
