//! Connections to the other nodes of the cluster, as one reactor has them: dialled when needed, shared by all groups
//! and requests of that reactor, watched for life.
//!
//! Promises: one connection at most to each reactor of each node, made again with back-off and jitter when it is lost;
//! a call that comes back as `PeerError` says whether the peer may have acted on it; urgent streams (votes, heartbeats)
//! never wait behind bulk. It does not know what the frames mean: `raft` and `reactor` do.
//!
//! Each side dials for its own requests: a connection that was accepted is only answered on.
//!
//! A datagram's first byte says whose it is (`datagram`): pings are answered here, all others go to `Handler::datagram`
//! as they came.
//!
//! - `book`: who the nodes are and where; shared by all reactors
//! - `frame`: frames on a stream
//! - `liveness`: who was heard of lately; shared by all reactors
//! - `pace`: how fast those who are behind may be sent what they lack
//! - `ping`: finds that out
//! - `dial`: connections that this side makes
//! - `serve`: connections that the others make

pub mod book;
pub mod clocks;
mod dial;
pub mod frame;
pub mod liveness;
pub mod pace;
mod ping;
mod serve;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use openraft::AsyncRuntime;

use self::{
    book::AddressBook,
    dial::Links,
    frame::{Frame, FrameStream, Received, Shared},
    liveness::{Liveness, Pulse},
    pace::Pace,
};
use crate::{
    budget::Budget,
    env::{
        self, Env,
        channel::Notify,
        domain,
        net::{Connection, Net, NetError, Priority},
    },
    ids::{NodeId, ReactorNumber},
};

/// The first byte of each datagram between nodes. The numbers are on the wire between versions.
pub mod datagram {
    /// Is anybody there? Answered with the same bytes as a `PONG`.
    pub const PING: u8 = 1;
    /// The answer.
    pub const PONG: u8 = 2;
    /// The rest is gossip's.
    pub const GOSSIP: u8 = 3;
    /// The rest is what a node says of itself: for one that may not know where it is.
    pub const HELLO: u8 = 4;
}

/// Where on a peer: its reactor `slot % reactors` (the catalog's slot is 0, a shard's is topic id + shard number).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Node.
    pub node: NodeId,
    /// Decides the reactor there.
    pub slot: u64,
}

/// Why a call to a peer failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// Nothing was sent.
    #[error("node {node} cannot be reached: {cause}")]
    Unreachable {
        /// Whom.
        node: NodeId,
        /// In words.
        cause: String,
    },
    /// It was sent, at least in part: the peer may or may not have acted on it.
    #[error("the connection to node {node} was lost: {cause}")]
    Lost {
        /// Whom.
        node: NodeId,
        /// In words.
        cause: String,
    },
    /// No answer in time: the peer may or may not have acted on it.
    #[error("node {node} did not answer within {within:?}")]
    Timeout {
        /// Whom.
        node: NodeId,
        /// How long it had.
        within: Duration,
    },
}

/// What becomes of what peers send. Called on the reactor; must not block, and spawns what takes time.
pub trait Handler<E: Env> {
    /// A peer has opened a stream; `first` is its first frame. The stream counts against the peer's limit
    /// (`PEER_STREAMS_MAX`) until both halves are dropped.
    fn stream(&self, from: NodeId, first: Received, stream: FrameStream<E>);

    /// A peer has sent a datagram that is not a ping or its answer; the first byte says what it is (`datagram`).
    /// Unknown ones are to be ignored: they may be of a later version.
    fn datagram(&self, from: NodeId, datagram: Bytes);
}

/// One reactor's connections. Clones are handles to the same ones.
pub struct Peers<E: Env> {
    inner: Rc<Inner<E>>,
}

struct Inner<E: Env> {
    me: NodeId,
    reactor: ReactorNumber,
    /// None: alone.
    net: Option<E::Net>,
    book: Arc<AddressBook>,
    liveness: Arc<Liveness>,
    links: RefCell<Links<E>>,
    /// Memory of frames, see `frame`.
    budget: Budget,
    /// Connections that others have made and that are not over.
    accepted: Cell<usize>,
    pace: Pace,
    closed: Cell<bool>,
    /// Told when `closed` is set.
    ending: Notify,
}

impl<E: Env> Clone for Peers<E> {
    fn clone(&self) -> Self {
        Peers { inner: self.inner.clone() }
    }
}

impl<E: Env> Peers<E> {
    /// The connections of reactor `reactor` of node `me`. Nothing is dialled and nothing accepted yet. They hold
    /// themselves until `close`.
    pub fn new(
        me: NodeId,
        reactor: ReactorNumber,
        net: E::Net,
        book: Arc<AddressBook>,
        liveness: Arc<Liveness>,
        budget: Budget,
    ) -> Peers<E> {
        Peers { inner: Rc::new(Inner::new(me, reactor, Some(net), book, liveness, budget)) }
    }

    /// No network: every peer is unreachable. For a group with a single voter in tests and benches.
    pub fn alone(me: NodeId) -> Peers<E> {
        let budget = Budget::default();
        Peers { inner: Rc::new(Inner::new(me, ReactorNumber(0), None, Arc::default(), Arc::default(), budget)) }
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.inner.me
    }

    /// How fast this reactor's followers that are behind may be served.
    pub fn pace(&self) -> &Pace {
        &self.inner.pace
    }

    /// Takes what peers send from now on, until `close`. Called once.
    pub fn serve(&self, handler: Rc<dyn Handler<E>>) {
        if let Some(net) = self.inner.net.clone() {
            env::spawn::<E>(serve::accept(Rc::clone(&self.inner), net, handler));
        }
    }

    /// Pings all nodes of the book and keeps `liveness` true from now on, until `close`. For reactor 0, called once.
    pub fn watch_liveness(&self) {
        if self.inner.net.is_some() {
            env::spawn::<E>(ping::run(self.clone()));
        }
    }

    /// Sends one frame on a stream of its own and waits for the one that answers it, dialling first if needed.
    /// Dropping the future does not take the request back.
    ///
    /// # Errors
    /// `Unreachable` while nothing was sent, also when that took all of `within`; then `Lost` and `Timeout`.
    pub async fn call(
        &self,
        to: Destination,
        request: Frame,
        priority: Priority,
        within: Duration,
    ) -> Result<Received, PeerError> {
        let (node, sent) = (to.node, Cell::new(false));
        let exchange = async {
            let mut stream = self.open_stream(to, priority).await?;
            sent.set(true);
            stream.sender.send(request).await?;
            stream.sender.finish();
            let unanswered = || PeerError::Lost { node, cause: "the stream was ended without an answer".to_owned() };
            stream.receiver.receive().await?.ok_or_else(unanswered)
        };
        match E::Runtime::timeout(within, exchange).await {
            Ok(answer) => answer,
            Err(_) if sent.get() => Err(PeerError::Timeout { node, within }),
            Err(_) => Err(PeerError::Unreachable { node, cause: format!("there is no connection after {within:?}") }),
        }
    }

    /// Opens a stream of frames to a peer and sends the first one, dialling first if needed. May wait as long as the
    /// peer has no room for another stream or for its bytes. Dropping the future breaks the stream off.
    ///
    /// # Errors
    /// `Unreachable` while nothing was sent; then `Lost`.
    pub async fn open(&self, to: Destination, first: Frame, priority: Priority) -> Result<FrameStream<E>, PeerError> {
        let mut stream = self.open_stream(to, priority).await?;
        stream.sender.send(first).await?;
        Ok(stream)
    }

    /// Sends a datagram of at most `DATAGRAM_BYTES_MAX` if there is a connection; else it is lost, and one is dialled.
    pub fn send_datagram(&self, to: Destination, datagram: Bytes) {
        if let Ok(dial::Look::Ready(connection, _)) = domain::core(|| self.inner.look(to)) {
            connection.send_datagram(datagram);
        }
    }

    /// Who was heard of lately, as all reactors of this node see it.
    pub fn liveness(&self) -> &Arc<Liveness> {
        &self.inner.liveness
    }

    /// Who the nodes are and where, as all reactors of this node see it.
    pub fn book(&self) -> &Arc<AddressBook> {
        &self.inner.book
    }

    /// Whether `close` was called.
    pub fn is_closed(&self) -> bool {
        self.inner.closed.get()
    }

    /// Closes all connections, telling the peers. What is still asked for is `Unreachable` or `Lost`.
    pub async fn close(&self) {
        self.inner.closed.set(true);
        self.inner.ending.notify_all();
        self.inner.links.borrow_mut().forget_all();
        if let Some(net) = &self.inner.net {
            net.close().await;
        }
    }

    async fn open_stream(&self, to: Destination, priority: Priority) -> Result<FrameStream<E>, PeerError> {
        let (connection, shared) = self.inner.connection(to).await?;
        let halves = connection.open().await.map_err(|error| peer_error(to.node, &error, false))?;
        let stream = FrameStream::new(halves, &shared, None);
        stream.sender.set_priority(priority);
        Ok(stream)
    }
}

impl<E: Env> Inner<E> {
    fn new(
        me: NodeId,
        reactor: ReactorNumber,
        net: Option<E::Net>,
        book: Arc<AddressBook>,
        liveness: Arc<Liveness>,
        budget: Budget,
    ) -> Inner<E> {
        Inner {
            me,
            reactor,
            net,
            book,
            liveness,
            links: RefCell::default(),
            budget,
            accepted: Cell::new(0),
            pace: Pace::default(),
            closed: Cell::new(false),
            ending: Notify::new(),
        }
    }

    /// What streams to and from that node have in common.
    fn shared(&self, peer: NodeId, pulse: &Arc<Pulse>) -> Shared {
        Shared { peer, pulse: Arc::clone(pulse), budget: self.budget.clone() }
    }
}

/// A failure of the network below, before (`sent` false) or after something was sent.
pub(crate) fn peer_error(node: NodeId, error: &NetError, sent: bool) -> PeerError {
    let cause = error.to_string();
    if sent { PeerError::Lost { node, cause } } else { PeerError::Unreachable { node, cause } }
}

#[cfg(test)]
mod tests;
