//! What a timed network promises: delays, losses, cuts and ends in the time of a simulated world.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;
use openraft::AsyncRuntime;

use super::*;
use crate::{
    env::net::{Connection, ReceiveStream, SendStream},
    sim::{SimRuntime, World},
};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

/// 100 us each way, always.
const STEADY: Path =
    Path { delay_us: 100, jitter_us: 0, loss_ppm: 0, duplicate_ppm: 0, reorder_ppm: 0, reorder_us: 0, bytes_per_ms: 0 };

fn to(node: NodeId) -> Endpoint {
    Endpoint { node, host: node.to_string(), port: 1 }
}

struct Wired {
    network: SimNetwork,
    nets: [SimNet; 3],
}

fn wired(seed: u64, path: Path) -> Wired {
    let network = SimNetwork::timed(&World::current(), seed, NetTimes::default());
    network.set_paths(path);
    let nets = [A, B, C].map(|node| network.endpoint(node, &node.to_string(), 1));
    Wired { network, nets }
}

impl Wired {
    async fn pair(&self, a: usize, b: usize) -> [SimConnection; 2] {
        let (dialled, accepted) = join(self.nets[a].connect(to(self.nets[b].door.node)), self.nets[b].accept()).await;
        [dialled.unwrap(), accepted.unwrap()]
    }

    fn fired(&self, fault: NetFault, traffic: Traffic) -> u64 {
        self.network.fired().get(&(fault.name(), traffic.name())).copied().unwrap_or(0)
    }
}

fn run<T>(seed: u64, future: impl Future<Output = T>) -> T {
    SimRuntime::seeded(seed).block_on(future)
}

fn now_us() -> u64 {
    World::current().now_us()
}

async fn pass(us: u64) {
    SimRuntime::sleep(Duration::from_micros(us)).await;
}

/// As long as it takes, and no more than a few polls longer.
fn assert_took(since_us: u64, us: u64) {
    let took_us = now_us() - since_us;
    assert!((us..us + 50).contains(&took_us), "{took_us} us instead of {us}");
}

/// A handshake takes a way there and one back, a datagram and a piece of a stream one way.
#[test]
fn delays_are_virtual_time() {
    run(1, async {
        let wired = wired(1, STEADY);
        let start_us = now_us();
        let [a, b] = wired.pair(0, 1).await;
        assert_took(start_us, 200);
        let start_us = now_us();
        a.send_datagram(Bytes::from_static(b"x"));
        assert_eq!(b.receive_datagram().await.unwrap(), "x");
        assert_took(start_us, 100);
        let slow = Path { delay_us: 5_000, ..STEADY };
        wired.network.set_path(B, A, Some(slow));
        let start_us = now_us();
        let (mut send, mut answer) = a.open().await.unwrap();
        send.send(vec![Bytes::from_static(b"question")]).await.unwrap();
        let (mut reply, mut receive) = b.accept().await.unwrap();
        assert_eq!(receive.receive().await.unwrap().unwrap(), "question");
        assert_took(start_us, 100);
        reply.send(vec![Bytes::from_static(b"answer")]).await.unwrap();
        reply.finish();
        assert_eq!(answer.receive().await.unwrap().unwrap(), "answer");
        assert_eq!(answer.receive().await.unwrap(), None);
        assert_took(start_us, 5_100);
        assert!(wired.fired(NetFault::Delay, Traffic::Stream) > 0);
        wired.network.set_path(B, A, None);
        wired.network.set_paths(Path { bytes_per_ms: 1_000, ..STEADY });
        let start_us = now_us();
        send.send(vec![Bytes::from(vec![0; 20_000])]).await.unwrap();
        let mut left = 20_000;
        while left > 0 {
            left -= receive.receive().await.unwrap().unwrap().len();
        }
        assert_took(start_us, 20_100);
    });
}

async fn datagrams(path: Path) -> (Wired, Vec<u8>) {
    let wired = wired(7, path);
    let [a, b] = wired.pair(0, 1).await;
    for number in 0..200u8 {
        a.send_datagram(Bytes::copy_from_slice(&[number]));
        pass(20).await;
    }
    pass(10_000).await;
    a.close("all is sent");
    let mut came = Vec::new();
    while let Some(Ok(datagram)) = futures_util::FutureExt::now_or_never(b.receive_datagram()) {
        came.push(datagram[0]);
    }
    (wired, came)
}

/// Datagrams are lost, doubled and overtaken, each only where its fault is in force.
#[test]
fn datagrams_are_lost_doubled_and_overtaken() {
    run(2, async {
        let all: Vec<u8> = (0..200).collect();
        let sorted = |came: &[u8]| {
            let mut came = came.to_vec();
            came.sort_unstable();
            came
        };
        let (wired, came) = datagrams(STEADY).await;
        assert_eq!((came, wired.network.fired().len()), (all.clone(), 0));
        let (wired, came) = datagrams(Path { loss_ppm: 250_000, ..STEADY }).await;
        assert!((100..190).contains(&came.len()) && came.is_sorted(), "{came:?}");
        assert_eq!(wired.fired(NetFault::Loss, Traffic::Datagram), 200 - came.len() as u64);
        let (wired, came) = datagrams(Path { duplicate_ppm: 250_000, ..STEADY }).await;
        assert_eq!(wired.fired(NetFault::Duplicate, Traffic::Datagram), came.len() as u64 - 200);
        assert!((220..290).contains(&came.len()), "{came:?}");
        let mut once = sorted(&came);
        once.dedup();
        assert_eq!(once, all);
        let (wired, came) = datagrams(Path { reorder_ppm: 100_000, reorder_us: 500, ..STEADY }).await;
        assert!(!came.is_sorted() && sorted(&came) == all, "{came:?}");
        assert!(wired.fired(NetFault::Reorder, Traffic::Datagram) > 5);
    });
}

/// Bytes of a stream that are lost come later and in order; another stream overtakes them.
#[test]
fn streams_send_again_and_overtake_each_other() {
    run(3, async {
        let wired = wired(3, Path { loss_ppm: 300_000, ..STEADY });
        let [a, b] = wired.pair(0, 1).await;
        let start_us = now_us();
        let mut opened = Vec::new();
        for number in 0..20u8 {
            let (mut send, receive) = a.open().await.unwrap();
            for piece in 0..5 {
                send.send(vec![Bytes::copy_from_slice(&[number, piece])]).await.unwrap();
            }
            send.finish();
            opened.push((send, receive));
        }
        let (mut order, mut accepted) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let (reply, mut receive) = b.accept().await.unwrap();
            let mut all = Vec::new();
            while let Some(piece) = receive.receive().await.unwrap() {
                all.extend_from_slice(&piece);
            }
            let number = all[0];
            assert_eq!(all, (0..5).flat_map(|piece| [number, piece]).collect::<Vec<u8>>());
            order.push(number);
            accepted.push((reply, receive));
        }
        assert!(!order.is_sorted(), "{order:?}");
        assert!(now_us() - start_us > 10_000);
        assert!(wired.fired(NetFault::Loss, Traffic::Stream) > 10);
    });
}

/// Across a cut, in either direction or both, both ends know within twice the idle time, and nobody before most of it;
/// a short cut only delays.
#[test]
fn connections_across_a_cut_expire() {
    let times = NetTimes::default();
    for seed in 0..20 {
        run(seed, async {
            let wired = wired(seed, STEADY);
            let [a, b] = wired.pair(0, 1).await;
            let (mut send, _answer) = a.open().await.unwrap();
            let start_us = now_us();
            match seed % 3 {
                0 => wired.network.cut(A, B),
                1 => wired.network.cut(B, A),
                _ => wired.network.cut_both(A, B),
            }
            send.send(vec![Bytes::from_static(b"late")]).await.unwrap();
            pass(times.idle_us / 2).await;
            assert!(!a.is_closed() && !b.is_closed());
            if seed < 10 {
                wired.network.heal();
                let (_reply, mut receive) = b.accept().await.unwrap();
                assert_eq!(receive.receive().await.unwrap().unwrap(), "late");
                pass(times.idle_us * 3).await;
                assert!(!a.is_closed() && !b.is_closed());
                return;
            }
            let (_, _) = join(a.closed(), b.closed()).await;
            let took_us = now_us() - start_us;
            assert!((times.idle_us - times.keep_alive_us..=2 * times.idle_us).contains(&took_us), "{took_us}");
            assert_eq!(wired.fired(NetFault::Expiry, Traffic::Connection), 2);
            assert_eq!(wired.fired(NetFault::Cut, Traffic::Stream) > 0, seed % 3 != 1);
            assert!(send.send(vec![Bytes::from_static(b"x")]).await.is_err());
        });
    }
}

/// A dial across a cut fails after the dial's time, and succeeds if the cut is healed before.
#[test]
fn dials_wait_for_an_answer() {
    run(4, async {
        let wired = wired(4, STEADY);
        wired.network.cut(B, A);
        let start_us = now_us();
        assert!(matches!(wired.nets[0].connect(to(B)).await, Err(NetError::Unreachable { .. })));
        assert_took(start_us, NetTimes::default().dial_us);
        let (dialled, ()) = join(wired.nets[0].connect(to(B)), async {
            pass(1_000_000).await;
            wired.network.heal();
        })
        .await;
        assert!(dialled.is_ok());
        assert!(wired.fired(NetFault::Cut, Traffic::Dial) > 0);
        let nobody = Endpoint { node: B, host: "nowhere".into(), port: 1 };
        assert!(matches!(wired.nets[0].connect(nobody).await, Err(NetError::Unreachable { .. })));
        let wrong = Endpoint { node: C, ..to(B) };
        assert!(matches!(wired.nets[0].connect(wrong).await, Err(NetError::Refused { .. })));
    });
}

/// A crash is noticed by the idle time-out, and sooner when the node is back; a close after one way.
#[test]
fn crash_and_close_are_told_apart() {
    let times = NetTimes::default();
    run(5, async {
        let wired = wired(5, STEADY);
        let [a, _b] = wired.pair(0, 1).await;
        let [c, c_there] = wired.pair(0, 2).await;
        let start_us = now_us();
        wired.network.crash(B);
        c_there.close("enough");
        assert!(matches!(c.closed().await, NetError::Lost { node: C, cause } if cause.contains("enough")));
        assert_took(start_us, 100);
        a.closed().await;
        let took_us = now_us() - start_us;
        assert!((times.idle_us - times.keep_alive_us..=times.idle_us + 50).contains(&took_us), "{took_us}");
        let back = wired.network.endpoint(B, &B.to_string(), 1);
        let (dialled, accepted) = join(wired.nets[0].connect(to(B)), back.accept()).await;
        let (dialled, _accepted) = (dialled.unwrap(), accepted.unwrap());
        wired.network.crash(B);
        let _back = wired.network.endpoint(B, &B.to_string(), 1);
        let start_us = now_us();
        dialled.closed().await;
        assert!(now_us() - start_us <= times.keep_alive_us + 200);
        assert!(wired.fired(NetFault::Crash, Traffic::Connection) >= 2);
    });
}

/// Who passes under which cut.
async fn passing(wired: &Wired) -> Vec<(u64, u64)> {
    let mut pairs = Vec::new();
    for from in [A, B, C] {
        let others = [A, B, C].into_iter().filter(|to| *to != from);
        pairs.extend(others.filter(|to| !wired.network.wires.is_cut(from, *to)).map(|to| (from.0, to.0)));
    }
    pairs
}

/// Partitions, bridges, pauses and flapping cut whom they say, and are taken back.
#[test]
fn shapes_of_cuts() {
    run(6, async {
        let wired = wired(6, STEADY);
        let network = &wired.network;
        let all = passing(&wired).await;
        assert_eq!(all.len(), 6);
        network.partition(&[&[A], &[B, C]]);
        assert_eq!(passing(&wired).await, [(2, 3), (3, 2)]);
        network.heal();
        network.bridge(&[A, B], B, &[B, C]);
        assert_eq!(passing(&wired).await, [(1, 2), (2, 1), (2, 3), (3, 2)]);
        network.mend(A, C);
        assert_eq!(passing(&wired).await, [(1, 2), (1, 3), (2, 1), (2, 3), (3, 2)]);
        network.heal();
        network.isolate(B);
        assert_eq!(passing(&wired).await, [(1, 3), (3, 1)]);
        network.heal();
        network.pause(C);
        assert_eq!(passing(&wired).await, [(1, 2), (2, 1)]);
        network.heal();
        assert_eq!(passing(&wired).await, [(1, 2), (2, 1)], "who is paused stays so");
        network.resume(C);
        assert_eq!(passing(&wired).await, all);
        let start_us = now_us();
        let [a, b] = wired.pair(0, 1).await;
        let looks = async {
            pass(1_000).await;
            assert_eq!(passing(&wired).await.len(), 5);
            a.send_datagram(Bytes::from_static(b"lost"));
            pass(5_000).await;
            assert_eq!(passing(&wired).await.len(), 6);
            a.send_datagram(Bytes::from_static(b"comes"));
        };
        join(network.flap(vec![(A, B)], 5_000, 3_000, 4), looks).await;
        assert!((32_000..33_000).contains(&(now_us() - start_us)));
        assert_eq!(b.receive_datagram().await.unwrap(), "comes");
        assert_eq!(wired.fired(NetFault::Flap, Traffic::Datagram), 1);
        assert!(!a.is_closed());
    });
}

/// The connections of a paused node expire at its peers, and it learns that when it goes on.
#[test]
fn a_pause_expires_connections() {
    run(8, async {
        let wired = wired(8, STEADY);
        let [a, b] = wired.pair(0, 1).await;
        wired.network.pause(B);
        a.send_datagram(Bytes::from_static(b"lost"));
        a.closed().await;
        wired.network.resume(B);
        b.closed().await;
        assert_eq!(wired.fired(NetFault::Pause, Traffic::Datagram), 1);
    });
}

/// The same seed, the same history, with everything on; another seed, another one.
#[test]
fn same_seed_same_history() {
    let history = |seed: u64| {
        let runtime = SimRuntime::seeded(9);
        runtime.block_on(async {
            let path = Path {
                jitter_us: 200,
                loss_ppm: 50_000,
                duplicate_ppm: 50_000,
                reorder_ppm: 50_000,
                reorder_us: 900,
                ..STEADY
            };
            let wired = wired(seed, path);
            let [a, b] = wired.pair(0, 1).await;
            let world = World::current();
            let flapping = {
                let network = wired.network.clone();
                world.spawn_on(NodeId(99), async move { network.flap(vec![(A, B)], 3_000, 9_000, 10).await })
            };
            let talk = async {
                let (mut send, _receive) = a.open().await.unwrap();
                for number in 0..100u8 {
                    a.send_datagram(Bytes::copy_from_slice(&[number]));
                    send.send(vec![Bytes::copy_from_slice(&[number; 100])]).await.unwrap();
                    pass(1_000).await;
                }
                send.finish();
                pass(100_000).await;
            };
            let listen = async {
                let (_reply, mut receive) = b.accept().await.unwrap();
                while let Some(piece) = receive.receive().await.unwrap() {
                    world.note(&format!("{} {}", piece[0], piece.len()));
                }
            };
            join(talk, listen).await;
            flapping.await.unwrap();
            while let Some(Ok(datagram)) = futures_util::FutureExt::now_or_never(b.receive_datagram()) {
                world.note(&format!("datagram {}", datagram[0]));
            }
            (world.trace_hash(), wired.network.fired())
        })
    };
    assert_eq!(history(1), history(1));
    assert_ne!(history(1), history(2));
}
