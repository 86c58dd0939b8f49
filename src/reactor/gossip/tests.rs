//! Gossip among three nodes over the network in memory.

use std::{future::Future, net::SocketAddr};

use super::*;
use crate::reactor::node::Advertised;
use crate::{
    config::Config,
    env::runtime::block_on,
    ids::ReactorNumber,
    peer::{
        Handler,
        frame::{FrameStream, Received},
    },
    reactor::forward::leaders::Leader,
    sim::{TestEnv, net::SimNetwork},
};

/// Tenfold, so that a test does not take as long as an outage.
fn pace() -> Pace {
    let usual = Pace::default();
    let tenth = |time: Duration| time / 10;
    let periodic_gossip = Some(PeriodicParams { frequency: Duration::from_millis(20), num_members: nonzero(3) });
    let foca = foca::Config {
        probe_period: tenth(usual.foca.probe_period),
        probe_rtt: tenth(usual.foca.probe_rtt),
        suspect_to_down_after: tenth(usual.foca.suspect_to_down_after),
        periodic_gossip,
        ..usual.foca
    };
    Pace { tick: tenth(usual.tick), hurried_tick: tenth(usual.hurried_tick), foca, ..usual }
}

fn at(node: u64, port: u16) -> PeerNode {
    PeerNode {
        node: NodeId(node),
        host: "host".into(),
        port,
        reactors: 1,
        grpc: format!("grpc:{node}"),
        http: format!("http:{node}"),
    }
}

struct World {
    node: Arc<Node>,
    peers: Peers<TestEnv>,
    gossip: Gossip<TestEnv>,
}

struct Feed(RefCell<Option<Gossip<TestEnv>>>);

impl Handler<TestEnv> for Feed {
    fn stream(&self, _from: NodeId, _first: Received, _stream: FrameStream<TestEnv>) {
        panic!("gossip opens no streams");
    }

    fn datagram(&self, from: NodeId, datagram: Bytes) {
        if let Some(gossip) = &*self.0.borrow() {
            gossip.feed(from, &datagram);
        }
    }
}

impl World {
    /// A node that knows the others at those ports, itself at its own.
    fn start(network: &SimNetwork, node: u64, port: u16, known: &[(u64, u16)]) -> World {
        World::start_with(network, node, port, known, Config::default())
    }

    fn start_with(network: &SimNetwork, node: u64, port: u16, known: &[(u64, u16)], config: Config) -> World {
        let anywhere: SocketAddr = ([127, 0, 0, 1], 0).into();
        let advertised = Advertised {
            peer_host: "host".to_owned(),
            peer_port: port,
            grpc: anywhere.to_string(),
            http: anywhere.to_string(),
        };
        let shared = Arc::new(Node::new(config, 1, (anywhere, anywhere), advertised));
        shared.book.publish(known.iter().map(|(node, port)| at(*node, *port)).chain([at(node, port)]));
        let net = network.endpoint(NodeId(node), "host", port);
        let (book, liveness) = (Arc::clone(&shared.book), Arc::clone(&shared.liveness));
        let peers = Peers::new(NodeId(node), ReactorNumber(0), net, book, liveness, crate::budget::Budget::default());
        let feed = Rc::new(Feed(RefCell::default()));
        peers.serve(Rc::clone(&feed) as Rc<dyn Handler<TestEnv>>);
        let gossip = Gossip::new(Arc::clone(&shared), peers.clone(), pace());
        *feed.0.borrow_mut() = Some(gossip.clone());
        World { node: shared, peers, gossip }
    }

    fn sees(&self, node: u64) -> Option<Alive> {
        self.node.gossip.get(NodeId(node)).map(|view| view.alive)
    }

    fn state_of(&self, node: u64) -> Option<Arc<NodeState>> {
        self.node.gossip.get(NodeId(node)).and_then(|view| view.state)
    }

    async fn stop(self) {
        self.gossip.leave();
        self.peers.close().await;
    }
}

/// Waits until it is so, however long that takes on this machine.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..12_000 {
        if is_so() {
            return;
        }
        pause().await;
    }
    panic!("never: {what}");
}

fn pause() -> impl Future<Output = ()> {
    env::sleep::<TestEnv>(Duration::from_millis(5))
}

fn all_see_all(nodes: &[&World]) -> bool {
    nodes.iter().all(|seer| (1..=3).all(|node| seer.sees(node) == Some(Alive::Alive) && seer.state_of(node).is_some()))
}

/// Each new port is known to its own node only, but for the seed's: they find each other through it.
fn three(network: &SimNetwork) -> [World; 3] {
    let seed = World::start(network, 1, 10, &[(2, 920), (3, 930)]);
    let second = World::start(network, 2, 20, &[(1, 10), (3, 930)]);
    let third = World::start(network, 3, 30, &[(1, 10), (2, 920)]);
    [seed, second, third]
}

/// Three nodes of which only one is where the others expect it find each other, and learn where they are.
#[test]
fn found_from_one_seed() {
    block_on(async {
        TestEnv::reset(1);
        let network = SimNetwork::new();
        network.set_datagram_loss(5);
        let [a, b, c] = three(&network);
        until("all see all", || all_see_all(&[&a, &b, &c])).await;
        for seer in [&a, &b, &c] {
            let ports: Vec<u16> = (1..=3).map(|node| seer.node.book.get(NodeId(node)).unwrap().port).collect();
            assert_eq!(ports, [10, 20, 30]);
            assert_eq!(seer.state_of(2).unwrap().address, at(2, 20));
        }
        for world in [a, b, c] {
            world.stop().await;
        }
    });
}

/// Nobody is where anybody expects it, but two have the third's address from `join`: they find each other by it.
#[test]
fn found_by_the_address_to_join() {
    block_on(async {
        TestEnv::reset(8);
        let network = SimNetwork::new();
        let config =
            || Config { join: vec!["nobody".into(), "elsewhere:1".into(), "host:10".into()], ..Config::default() };
        let a = World::start(&network, 1, 10, &[(2, 920), (3, 930)]);
        let b = World::start_with(&network, 2, 20, &[(1, 910), (3, 930)], config());
        let c = World::start_with(&network, 3, 30, &[(1, 910), (2, 920)], config());
        for world in [&a, &b, &c] {
            world.peers.watch_liveness();
        }
        until("all see all", || all_see_all(&[&a, &b, &c])).await;
        for seer in [&a, &b, &c] {
            let ports: Vec<u16> = (1..=3).map(|node| seer.node.book.get(NodeId(node)).unwrap().port).collect();
            assert_eq!(ports, [10, 20, 30]);
        }
        for world in [a, b, c] {
            world.stop().await;
        }
    });
}

/// A node that crashes is suspected and then down; started again, elsewhere and with its clock set back, it is back.
#[test]
fn crash_and_return() {
    block_on(async {
        TestEnv::reset(2);
        let network = SimNetwork::new();
        let [a, b, c] = three(&network);
        until("all see all", || all_see_all(&[&a, &b, &c])).await;
        network.crash(NodeId(3));
        c.peers.close().await;
        until("it is down", || a.sees(3) == Some(Alive::Down) && b.sees(3) == Some(Alive::Down)).await;
        assert!(a.sees(2) == Some(Alive::Alive) || a.sees(2) == Some(Alive::Suspect));
        // Its clock starts again where it was when the others knew it.
        TestEnv::reset(3);
        let again = World::start(&network, 3, 31, &[(1, 10), (2, 20)]);
        until("it is back", || all_see_all(&[&a, &b, &again])).await;
        until("where it is now", || [&a, &b].iter().all(|seer| seer.node.book.get(NodeId(3)).unwrap().port == 31))
            .await;
        until("what it says now", || a.state_of(3).unwrap().address.port == 31).await;
        for world in [a, b, again] {
            world.stop().await;
        }
    });
}

/// What a node says of itself reaches the others when it changes; who leaves is down at once, without a suspicion.
#[test]
fn news_and_leaving() {
    block_on(async {
        TestEnv::reset(4);
        let network = SimNetwork::new();
        let [a, b, c] = three(&network);
        until("all see all", || all_see_all(&[&a, &b, &c])).await;
        c.node.reactors[0].shards.store(7, std::sync::atomic::Ordering::Relaxed);
        c.node.note_fault(crate::ids::ShardUid(5), "x");
        let leader = Leader { node: Some(NodeId(3)), term: crate::ids::Term(1) };
        c.node.leaders.note_own(crate::ids::ShardUid(6), leader, 0);
        c.node.enter(Phase::Leaving);
        until("the others know", || [&a, &b].iter().all(|seer| seer.node.gossip.is_leaving(NodeId(3)))).await;
        let state = a.state_of(3).unwrap();
        assert_eq!((state.replicas, state.faults, state.leaders), (7, 1, 1));
        c.gossip.leave();
        c.gossip.leave();
        until("it has left", || [&a, &b].iter().all(|seer| seer.sees(3) == Some(Alive::Down))).await;
        assert_eq!(c.sees(3), Some(Alive::Down));
        for world in [a, b, c] {
            world.stop().await;
        }
    });
}

/// Two halves of a cut cluster hold each other for down, and find each other again when it is healed.
#[test]
fn cut_and_healed() {
    block_on(async {
        TestEnv::reset(5);
        let network = SimNetwork::new();
        let [a, b, c] = three(&network);
        until("all see all", || all_see_all(&[&a, &b, &c])).await;
        network.isolate(NodeId(3));
        let down =
            || a.sees(3) == Some(Alive::Down) && c.sees(1) == Some(Alive::Down) && c.sees(2) == Some(Alive::Down);
        until("both sides say so", down).await;
        network.expire();
        network.heal();
        until("all see all again", || all_see_all(&[&a, &b, &c])).await;
        for world in [a, b, c] {
            world.stop().await;
        }
    });
}

/// One way of three is cut: the two reach each other through the third, and nobody is held for down for long.
#[test]
fn through_the_third() {
    block_on(async {
        TestEnv::reset(6);
        let network = SimNetwork::new();
        let [a, b, c] = three(&network);
        until("all see all", || all_see_all(&[&a, &b, &c])).await;
        network.cut_both(NodeId(2), NodeId(3));
        c.node.reactors[0].shards.store(9, std::sync::atomic::Ordering::Relaxed);
        until("news come around", || b.state_of(3).unwrap().replicas == 9).await;
        until("it is alive for all", || b.sees(3) == Some(Alive::Alive) && c.sees(2) == Some(Alive::Alive)).await;
        for world in [a, b, c] {
            world.stop().await;
        }
    });
}

/// Bytes that are no gossip, and gossip of strangers or in a stranger's name, change nothing.
#[test]
fn strangers_and_noise() {
    block_on(async {
        TestEnv::reset(7);
        let network = SimNetwork::new();
        let a = World::start(&network, 1, 10, &[(2, 20)]);
        until("it knows itself", || a.state_of(1).is_some()).await;
        let before = a.node.gossip.snapshot();
        let mut greeting = Vec::new();
        let header = foca::Header {
            src: Speaker::new(NodeId(9), 1),
            src_incarnation: 0,
            dst: Speaker::new(NodeId(1), 0),
            message: foca::Message::Announce,
        };
        foca::Codec::encode_header(&mut Layout, &header, &mut greeting).unwrap();
        greeting.insert(0, datagram::GOSSIP);
        a.gossip.feed(NodeId(9), &greeting);
        a.gossip.feed(NodeId(2), &greeting);
        for length in 0..greeting.len() {
            a.gossip.feed(NodeId(2), &greeting[..length]);
            a.gossip.feed(NodeId(2), &[&greeting[..length], &[0xff; 40]].concat());
        }
        a.gossip.feed(NodeId(2), &[datagram::GOSSIP; 2_000]);
        let mut hello = a.gossip.inner.hello().unwrap().to_vec();
        for node in [9, 1] {
            hello[2] = node;
            (2..hello.len()).for_each(|length| a.gossip.feed(NodeId(2), &hello[..length]));
            a.gossip.feed(NodeId(2), &hello);
        }
        assert_eq!(a.node.gossip.snapshot(), before);
        a.stop().await;
    });
}
