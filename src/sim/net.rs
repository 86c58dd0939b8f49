//! A network between nodes in memory, for tests on one thread: connections and datagrams that can be cut, delayed
//! and lost.
//!
//! - A stream holds back its sender: at most a window of bytes is on its way in each direction.
//! - A *cut* from a to b lets nothing that a sends come to b: bytes of streams wait (as a retransmission does) and come
//!   after `heal`, datagrams are lost, nobody can dial in either direction. A connection across a cut ends
//!   only when the test calls `expire`, which stands for its idle time-out.
//! - A *crash* ends a node's endpoints and connections at once, on both sides; a new `endpoint` call brings it back.
//! - Nothing depends on time or on the executor; the loss of datagrams comes from the network's own seed.

mod connection;
mod stream;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, mem,
    rc::{Rc, Weak},
};

use self::{connection::Line, stream::Pipe};
pub use self::{
    connection::SimConnection,
    stream::{SimReceive, SimSend},
};
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
    /// (from, to): nothing passes.
    cuts: RefCell<BTreeSet<(NodeId, NodeId)>>,
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
    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cuts.borrow().contains(&(from, to))
    }

    fn live_links(&self) -> Vec<Rc<Link>> {
        let mut links = self.links.borrow_mut();
        links.retain(|link| link.strong_count() > 0);
        links.iter().filter_map(Weak::upgrade).filter(|link| link.end.borrow().is_none()).collect()
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
        SimNet { network: self.clone(), door }
    }

    /// From now on nothing that `from` sends comes to `to`, until `heal`.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.wires.cuts.borrow_mut().insert((from, to));
        self.wake();
    }

    /// `cut` in both directions.
    pub fn cut_both(&self, a: NodeId, b: NodeId) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Cuts `node` off from all that have an endpoint now.
    pub fn isolate(&self, node: NodeId) {
        let others: BTreeSet<NodeId> = self.wires.doors.borrow().values().map(|door| door.node).collect();
        for other in others.into_iter().filter(|other| *other != node) {
            self.cut_both(node, other);
        }
    }

    /// Ends all cuts. Connections that have not expired go on, and what waited on them arrives.
    pub fn heal(&self) {
        self.wires.cuts.borrow_mut().clear();
        self.wake();
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

    /// Ends all endpoints and connections of `node`, without a word and at once on both sides.
    pub fn crash(&self, node: NodeId) {
        let doors: Vec<Rc<Door>> =
            self.wires.doors.borrow().values().filter(|door| door.node == node).cloned().collect();
        for door in doors {
            door.shut();
        }
        for link in self.wires.live_links().iter().filter(|link| link.nodes.contains(&node)) {
            link.finish("the node has crashed");
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
            end: RefCell::new(None),
            sides: Default::default(),
            pipes: RefCell::default(),
            changed: Notify::new(),
        });
        self.wires.links.borrow_mut().push(Rc::downgrade(&link));
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
        let unreachable = |to, cause: &str| Err(NetError::Unreachable { to, cause: cause.to_owned() });
        if !self.door.open.get() {
            return unreachable(to, "this endpoint is closed");
        }
        let there = wires.doors.borrow().get(&(to.host.clone(), to.port)).filter(|door| door.open.get()).cloned();
        let Some(there) = there else { return unreachable(to, "nobody answers") };
        if wires.is_cut(self.door.node, there.node) || wires.is_cut(there.node, self.door.node) {
            return unreachable(to, "the handshake was not answered");
        }
        if there.node != to.node {
            let cause = format!("node {} is there", there.node);
            return Err(NetError::Refused { to, cause });
        }
        if there.waiting.borrow().len() >= BACKLOG {
            return unreachable(to, "it accepts no more connections");
        }
        let [mine, its] = self.network.join(&self.door, &there);
        there.waiting.borrow_mut().push_back(its);
        there.changed.notify_one();
        Ok(mine)
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
            link.finish("the endpoint was closed");
        }
    }
}

/// Both ends of a connection.
struct Link {
    wires: Rc<Wires>,
    nodes: [NodeId; 2],
    doors: [(String, u16); 2],
    /// Why it has ended, when it has.
    end: RefCell<Option<String>>,
    sides: [Side; 2],
    pipes: RefCell<Vec<Weak<Pipe>>>,
    /// It has ended, or a stream of it has.
    changed: Notify,
}

/// What waits at one end.
#[derive(Default)]
struct Side {
    streams: RefCell<VecDeque<(SimSend, SimReceive)>>,
    datagrams: RefCell<Line>,
    changed: Notify,
    /// Streams that this side has opened and that are still in use at either end.
    opened: Cell<usize>,
}

impl Link {
    fn error(&self, side: usize) -> Option<NetError> {
        let cause = self.end.borrow().clone()?;
        Some(NetError::Lost { node: self.nodes[1 - side], cause })
    }

    fn finish(&self, why: &str) {
        if self.end.borrow().is_some() {
            return;
        }
        *self.end.borrow_mut() = Some(why.to_owned());
        for side in &self.sides {
            // They hold the link, and the link holds them: here that ends.
            let unseen = mem::take(&mut *side.streams.borrow_mut());
            drop(unseen);
        }
        self.wake();
    }

    fn wake(&self) {
        self.changed.notify_all();
        for side in &self.sides {
            side.changed.notify_all();
        }
        let pipes: Vec<Rc<Pipe>> = self.pipes.borrow().iter().filter_map(Weak::upgrade).collect();
        for pipe in pipes {
            pipe.changed.notify_all();
        }
    }

    fn pipe(self: &Rc<Self>, from: usize) -> Rc<Pipe> {
        let pipe = Rc::new(Pipe::new(from));
        let mut pipes = self.pipes.borrow_mut();
        if pipes.len() == pipes.capacity() {
            pipes.retain(|pipe| pipe.strong_count() > 0);
        }
        pipes.push(Rc::downgrade(&pipe));
        pipe
    }
}

#[cfg(test)]
mod tests;
