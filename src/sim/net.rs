//! A network between nodes in memory, for tests on one thread: connections and datagrams that can be cut, delayed
//! and lost.
//!
//! - A stream holds back its sender: at most a window of bytes is on its way in each direction.
//! - A *cut* from a to b lets nothing that a sends come to b: bytes of streams wait (as a retransmission does) and come
//!   after `heal`, datagrams are lost, nobody can dial in either direction.
//! - A *crash* ends a node's endpoints and connections; a new `endpoint` call brings it back.
//!
//! Two forms:
//! - As made by `new`, nothing depends on time or on the executor. What is sent is ready after so many looks of its
//!   receiver; whatever ends a connection does so at once on both sides; one across a cut ends when the test calls
//!   `expire`, which stands for its idle time-out; a dial is answered at once.
//! - `timed`, in a simulated world, each direction between two nodes is a `Path` with a delay of its own, and the times
//!   of connections are those of QUIC: who is told of an end learns it after the delay, who is not told (crash, cut,
//!   pause) by the idle time-out, or sooner by the answer of a node that has restarted; a dial waits for an answer.
//!
//! All randomness comes from the network's own seed.

mod connection;
mod faults;
mod line;
mod link;
mod stream;
mod times;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, mem,
    rc::{Rc, Weak},
};

pub use self::{
    connection::SimConnection,
    faults::{NetFault, Traffic},
    stream::{SimReceive, SimSend},
    times::{NetTimes, Path},
};
use self::{link::Link, times::Timing};
use super::random;
use crate::{
    env::{
        channel::Notify,
        net::{Endpoint, Net, NetError},
        yield_now,
    },
    ids::NodeId,
};

/// Bytes of one stream on their way in one direction, unless the test says otherwise.
const WINDOW_BYTES: usize = 256 << 10;

/// Largest piece that a receiver gets at once, unless the test says otherwise.
const PIECE_BYTES: usize = 16 << 10;

/// Streams that one side has open at once on a connection, unless the test says otherwise.
const STREAMS_MAX: usize = 16_384;

/// Connections that wait to be accepted; more are not answered.
const BACKLOG: usize = 1_024;

/// Datagrams that wait to be received; more are lost.
const DATAGRAMS: usize = 256;

/// All endpoints of a test, and the wires between them. Clones are handles to the same network.
#[derive(Clone, Default)]
pub struct SimNetwork {
    wires: Rc<Wires>,
}

struct Wires {
    doors: RefCell<BTreeMap<(String, u16), Rc<Door>>>,
    links: RefCell<Vec<Weak<Link>>>,
    /// (from, to): nothing passes, and why.
    cuts: RefCell<BTreeMap<(NodeId, NodeId), NetFault>>,
    paused: RefCell<BTreeSet<NodeId>>,
    fired: RefCell<BTreeMap<(NetFault, Traffic), u64>>,
    timing: Timing,
    path: Cell<Path>,
    /// (from, to): which have their own.
    paths: RefCell<BTreeMap<(NodeId, NodeId), Path>>,
    /// (from, to): when what waited for the end of a cut is sent again.
    resumes_us: RefCell<BTreeMap<(NodeId, NodeId), u64>>,
    /// Anything about cuts or held dials has changed.
    changed: Notify,
    hold_dials: Cell<bool>,
    delay: Cell<u32>,
    window: Cell<usize>,
    piece: Cell<usize>,
    streams_max: Cell<usize>,
    loss_percent: Cell<u64>,
    dice: Cell<u64>,
    dials: Cell<u64>,
}

impl Default for Wires {
    fn default() -> Wires {
        Wires {
            doors: RefCell::default(),
            links: RefCell::default(),
            cuts: RefCell::default(),
            paused: RefCell::default(),
            fired: RefCell::default(),
            timing: Timing::default(),
            path: Cell::default(),
            paths: RefCell::default(),
            resumes_us: RefCell::default(),
            changed: Notify::new(),
            hold_dials: Cell::new(false),
            delay: Cell::new(0),
            window: Cell::new(WINDOW_BYTES),
            piece: Cell::new(PIECE_BYTES),
            streams_max: Cell::new(STREAMS_MAX),
            loss_percent: Cell::new(0),
            dice: Cell::new(0),
            dials: Cell::new(0),
        }
    }
}

impl Wires {
    fn live_links(&self) -> Vec<Rc<Link>> {
        let mut links = self.links.borrow_mut();
        links.retain(|link| link.strong_count() > 0);
        links.iter().filter_map(Weak::upgrade).filter(|link| !link.is_over()).collect()
    }

    /// All that have or had an endpoint.
    fn nodes(&self) -> BTreeSet<NodeId> {
        self.doors.borrow().values().map(|door| door.node).collect()
    }

    fn path(&self, from: NodeId, to: NodeId) -> Path {
        self.paths.borrow().get(&(from, to)).copied().unwrap_or(self.path.get())
    }

    /// What `from` sends to `to` from now on does not come.
    fn fall_silent(&self, pairs: &[(NodeId, NodeId)]) {
        if pairs.is_empty() || self.timing.times().is_none() {
            return;
        }
        for link in self.live_links() {
            for side in [0, 1] {
                if pairs.contains(&(link.nodes[1 - side], link.nodes[side])) {
                    link.deafen(side);
                }
            }
        }
    }

    /// What `from` sends to `to` comes again, if nothing else is in the way.
    fn speak_again(&self, pairs: &[(NodeId, NodeId)]) {
        let (Some(now_us), Some(times)) = (self.timing.now_us(), self.timing.times()) else { return };
        for pair in pairs {
            let again_us = random(&self.dice) % (times.retransmit_us + 1);
            self.resumes_us.borrow_mut().insert(*pair, now_us.saturating_add(again_us));
        }
        let concerns =
            |link: &Link| pairs.iter().any(|(from, to)| link.nodes.contains(from) && link.nodes.contains(to));
        for link in self.live_links().iter().filter(|link| concerns(link)) {
            link.hear_again();
        }
    }

    fn resume_us(&self, from: NodeId, to: NodeId) -> Option<u64> {
        self.resumes_us.borrow().get(&(from, to)).copied()
    }

    /// When something that `from` sends now comes to `to`; `None` where looks are counted. Counts what it meets.
    fn arrival_us(&self, link: &Link, from: usize, bytes: usize) -> Option<u64> {
        let (now_us, times) = (self.timing.now_us()?, self.timing.times()?);
        let (me, peer) = (link.nodes[from], link.nodes[1 - from]);
        let path = self.path(me, peer);
        let fate = path.fate(&self.dice, times.retransmit_us);
        if let Some(fault) = self.cut_by(me, peer) {
            self.count(fault, Traffic::Stream);
        }
        for (met, fault) in [
            (fate.losses > 0, NetFault::Loss),
            (fate.reordered, NetFault::Reorder),
            (self.paths.borrow().contains_key(&(me, peer)), NetFault::Delay),
        ] {
            if met {
                self.count(fault, Traffic::Stream);
            }
        }
        let left_us = link.departure_us(from, now_us, bytes, path.bytes_per_ms);
        Some(now_us.saturating_add(left_us + fate.delay_us))
    }
}

impl SimNetwork {
    /// A network without endpoints.
    pub fn new() -> SimNetwork {
        SimNetwork::default()
    }

    /// As `new`, with losses by this seed.
    #[must_use]
    pub fn seeded(seed: u64) -> SimNetwork {
        let network = SimNetwork::new();
        network.wires.dice.set(seed);
        network
    }

    /// As `seeded`, in the time of that world.
    #[must_use]
    pub fn timed(world: &super::World, seed: u64, times: NetTimes) -> SimNetwork {
        let network = SimNetwork::seeded(seed);
        network.wires.timing.start(world, times);
        network
    }

    /// What all paths do that have not their own, from now on. Only a `timed` network has paths.
    pub fn set_paths(&self, path: Path) {
        self.wires.path.set(path);
    }

    /// What the path from `from` to `to` does, from now on; `None`: what all do.
    pub fn set_path(&self, from: NodeId, to: NodeId, path: Option<Path>) {
        let mut paths = self.wires.paths.borrow_mut();
        match path {
            Some(path) => paths.insert((from, to), path),
            None => paths.remove(&(from, to)),
        };
    }

    /// A new endpoint of `node` at `host:port`.
    ///
    /// # Panics
    /// When another open endpoint has that address.
    pub fn endpoint(&self, node: NodeId, host: &str, port: u16) -> SimNet {
        let door = Rc::new(Door {
            node,
            host: host.to_owned(),
            port,
            open: Cell::new(true),
            waiting: RefCell::default(),
            changed: Notify::new(),
        });
        let before = self.wires.doors.borrow_mut().insert((host.to_owned(), port), Rc::clone(&door));
        assert!(before.is_none_or(|before| !before.open.get()), "{host}:{port} is taken");
        // Who still talks to the endpoint that was here before learns now that it is gone.
        for link in self.wires.live_links() {
            for side in [0, 1] {
                let (me, there) = (link.nodes[side], link.nodes[1 - side]);
                let addressed = link.doors[1 - side] == (door.host.clone(), port);
                if addressed && !self.wires.is_cut(me, there) && !self.wires.is_cut(there, me) {
                    link.reset(side);
                }
            }
        }
        self.wires.changed.notify_all();
        SimNet { network: self.clone(), door }
    }

    /// Ends each connection across a cut, in either direction, as lost: its idle time has passed.
    pub fn expire(&self) {
        for link in self.wires.live_links() {
            let [a, b] = link.nodes;
            if self.wires.is_cut(a, b) || self.wires.is_cut(b, a) {
                link.finish("nothing was heard for the idle time");
            }
        }
    }

    /// Ends all endpoints and connections of `node`, without a word. The peers know it at once, or, in a `timed` network,
    /// when they have heard nothing for the idle time, or something of a new endpoint at that address.
    pub fn crash(&self, node: NodeId) {
        for link in self.wires.live_links() {
            for side in [0, 1] {
                if link.nodes[side] == node {
                    self.wires.count(NetFault::Crash, Traffic::Connection);
                    link.vanish(side, "the node has crashed");
                }
            }
        }
        let doors: Vec<Rc<Door>> =
            self.wires.doors.borrow().values().filter(|door| door.node == node).cloned().collect();
        for door in doors {
            door.shut();
        }
    }

    /// Ends all connections and leaves the endpoints: as a router that forgets.
    pub fn drop_connections(&self) {
        for link in self.wires.live_links() {
            link.finish("the connection was dropped");
        }
    }

    /// From now on, what is sent is ready after its receiver has looked for it this many times.
    pub fn set_delay(&self, looks: u32) {
        self.wires.delay.set(looks);
    }

    /// Bytes on their way in one direction of a stream, from now on; at least 1.
    pub fn set_window(&self, bytes: usize) {
        self.wires.window.set(bytes.max(1));
    }

    /// Bytes of streams to a node, on their way or there, that it has not read; none of streams that it has ended.
    pub fn unread_bytes(&self, node: NodeId) -> usize {
        self.wires.live_links().iter().map(|link| link.unread_bytes(node)).sum()
    }

    /// Largest piece that a receiver gets at once, from now on; at least 1.
    pub fn set_piece(&self, bytes: usize) {
        self.wires.piece.set(bytes.max(1));
    }

    /// Streams that one side may have open on a connection, from now on; at least 1.
    pub fn set_streams_max(&self, streams: usize) {
        self.wires.streams_max.set(streams.max(1));
    }

    /// Share of datagrams that are lost, from now on.
    pub fn set_datagram_loss(&self, percent: u64) {
        self.wires.loss_percent.set(percent.min(100));
    }

    /// While set, whoever dials waits.
    pub fn hold_dials(&self, hold: bool) {
        self.wires.hold_dials.set(hold);
        self.wake();
    }

    /// How often anybody has dialled.
    pub fn dials(&self) -> u64 {
        self.wires.dials.get()
    }

    /// Connections that are not ended.
    pub fn connections(&self) -> usize {
        self.wires.live_links().len()
    }

    fn wake(&self) {
        self.wires.changed.notify_all();
        for link in self.wires.live_links() {
            link.wake();
        }
    }

    fn join(&self, from: &Door, to: &Door) -> [SimConnection; 2] {
        let link = Rc::new(Link {
            wires: Rc::clone(&self.wires),
            nodes: [from.node, to.node],
            doors: [(from.host.clone(), from.port), (to.host.clone(), to.port)],
            sides: Default::default(),
            pipes: RefCell::default(),
            changed: Notify::new(),
        });
        let mut links = self.wires.links.borrow_mut();
        if links.len() == links.capacity() {
            links.retain(|link| link.strong_count() > 0);
        }
        links.push(Rc::downgrade(&link));
        drop(links);
        [0, 1].map(|side| SimConnection::new(&link, side))
    }
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimNetwork({} connections)", self.connections())
    }
}

/// Where connections come in.
struct Door {
    node: NodeId,
    host: String,
    port: u16,
    open: Cell<bool>,
    waiting: RefCell<VecDeque<SimConnection>>,
    changed: Notify,
}

impl Door {
    fn shut(&self) {
        self.open.set(false);
        let unanswered = mem::take(&mut *self.waiting.borrow_mut());
        drop(unanswered);
        self.changed.notify_all();
    }
}

/// One reactor's endpoint.
#[derive(Clone)]
pub struct SimNet {
    network: SimNetwork,
    door: Rc<Door>,
}

impl fmt::Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimNet(node {} at {}:{})", self.door.node, self.door.host, self.door.port)
    }
}

impl Net for SimNet {
    type Connection = SimConnection;

    async fn connect(&self, to: Endpoint) -> Result<SimConnection, NetError> {
        let wires = &self.network.wires;
        wires.dials.set(wires.dials.get() + 1);
        if wires.timing.times().is_some() {
            return self.dial(to).await;
        }
        // A handshake is never done at once.
        for _ in 0..=wires.delay.get() {
            yield_now().await;
        }
        loop {
            let changed = wires.changed.notified();
            if !wires.hold_dials.get() {
                break;
            }
            changed.await;
        }
        match self.find(&to) {
            Found::There(there) => Ok(self.join(&there)),
            Found::Silence(cause) => Err(NetError::Unreachable { to, cause: cause.to_owned() }),
            Found::Other(cause) => Err(NetError::Refused { to, cause }),
        }
    }

    async fn accept(&self) -> Option<SimConnection> {
        loop {
            let changed = self.door.changed.notified();
            if let Some(connection) = self.door.waiting.borrow_mut().pop_front() {
                return Some(connection);
            }
            if !self.door.open.get() {
                return None;
            }
            changed.await;
        }
    }

    async fn close(&self) {
        self.door.shut();
        let here = (self.door.host.clone(), self.door.port);
        for link in self.network.wires.live_links().iter().filter(|link| link.doors.contains(&here)) {
            let side = usize::from(link.doors[0] != here);
            link.leave(side, "the endpoint was closed");
        }
    }
}

/// Who answers a dial.
enum Found {
    There(Rc<Door>),
    /// Nobody, because of that.
    Silence(&'static str),
    /// Not who was wanted.
    Other(String),
}

impl SimNet {
    fn find(&self, to: &Endpoint) -> Found {
        let wires = &self.network.wires;
        if !self.door.open.get() {
            return Found::Silence("this endpoint is closed");
        }
        let there = wires.doors.borrow().get(&(to.host.clone(), to.port)).filter(|door| door.open.get()).cloned();
        let Some(there) = there else { return Found::Silence("nobody answers") };
        let (me, peer) = (self.door.node, there.node);
        if let Some(fault) = wires.cut_by(me, peer).or_else(|| wires.cut_by(peer, me)) {
            wires.count(fault, Traffic::Dial);
            return Found::Silence("the handshake was not answered");
        }
        if there.node != to.node {
            return Found::Other(format!("node {} is there", there.node));
        }
        if there.waiting.borrow().len() >= BACKLOG {
            return Found::Silence("it accepts no more connections");
        }
        Found::There(there)
    }

    fn join(&self, there: &Rc<Door>) -> SimConnection {
        let [mine, its] = self.network.join(&self.door, there);
        there.waiting.borrow_mut().push_back(its);
        there.changed.notify_one();
        mine
    }

    /// In the world's time: asks until somebody answers, or for as long as a dial may take.
    async fn dial(&self, to: Endpoint) -> Result<SimConnection, NetError> {
        let wires = &self.network.wires;
        let times = wires.timing.times().expect("asked by who knows it");
        let now_us = || wires.timing.now_us().unwrap_or(u64::MAX);
        let end_us = now_us().saturating_add(times.dial_us);
        loop {
            let changed = wires.changed.notified();
            let found = if wires.hold_dials.get() { Found::Silence("dials are held") } else { self.find(&to) };
            let answer_us = now_us().saturating_add(self.handshake_us(&to));
            let cause = match found {
                Found::Silence(cause) => cause,
                _ if answer_us > end_us => "its answer takes too long",
                Found::There(_) | Found::Other(_) => {
                    wires.timing.until_us(answer_us).await;
                    match self.find(&to) {
                        Found::There(there) => return Ok(self.join(&there)),
                        Found::Other(cause) => return Err(NetError::Refused { to, cause }),
                        // It went while the handshake was under way: asked again.
                        Found::Silence(_) => continue,
                    }
                }
            };
            if now_us() >= end_us || !self.door.open.get() {
                return Err(NetError::Unreachable { to, cause: cause.to_owned() });
            }
            let gone = cause == "its answer takes too long";
            if gone {
                wires.timing.until_us(end_us).await;
            } else {
                wires.timing.wait(changed, &[Some(end_us)]).await;
            }
        }
    }

    /// Draws how long a handshake takes: there and back, and what is sent again.
    fn handshake_us(&self, to: &Endpoint) -> u64 {
        let wires = &self.network.wires;
        let times = wires.timing.times().expect("asked by who knows it");
        let ways = [(self.door.node, to.node), (to.node, self.door.node)];
        let fates = ways.map(|(from, to)| wires.path(from, to).fate(&wires.dice, times.retransmit_us));
        for _ in fates.iter().filter(|fate| fate.losses > 0) {
            wires.count(NetFault::Loss, Traffic::Dial);
        }
        fates.iter().map(|fate| fate.delay_us).sum()
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod timed_tests;
