//! Connections to the other nodes of the cluster, as one reactor has them: dialled when needed, shared by all groups
//! and requests of that reactor, watched for life.
//!
//! Promises: one connection at most to each reactor of each node, made again with back-off and jitter when it is lost;
//! a call that comes back as `PeerError` says whether the peer may have acted on it; urgent streams (votes, heartbeats)
//! never wait behind bulk. It does not know what the frames mean: `raft` and `reactor` do.
//!
//! - `book`: who the nodes are and where; shared by all reactors
//! - `frame`: frames on a stream
//! - `liveness`: who was heard of lately; shared by all reactors

pub mod book;
pub mod frame;
pub mod liveness;

use std::{marker::PhantomData, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;

use self::{
    book::AddressBook,
    frame::{Frame, FrameStream, Received},
    liveness::Liveness,
};
use crate::{
    env::{
        Env,
        net::{NetError, Priority},
    },
    ids::{NodeId, ReactorNumber},
};

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
    /// A peer has opened a stream; `first` is its first frame.
    fn stream(&self, from: NodeId, first: Received, stream: FrameStream<E>);

    /// A peer has sent a datagram.
    fn datagram(&self, from: NodeId, datagram: Bytes);
}

/// One reactor's connections. Clones are handles to the same ones.
pub struct Peers<E: Env> {
    inner: Rc<Inner<E>>,
}

struct Inner<E: Env> {
    me: NodeId,
    world: PhantomData<E>,
}

impl<E: Env> Clone for Peers<E> {
    fn clone(&self) -> Self {
        Peers { inner: self.inner.clone() }
    }
}

impl<E: Env> Peers<E> {
    /// The connections of reactor `reactor` of node `me`.
    pub fn new(
        me: NodeId,
        reactor: ReactorNumber,
        net: E::Net,
        book: Arc<AddressBook>,
        liveness: Arc<Liveness>,
    ) -> Peers<E> {
        let _ = (reactor, net, book, liveness);
        Peers { inner: Rc::new(Inner { me, world: PhantomData }) }
    }

    /// No network: every peer is unreachable. For a group with a single voter in tests and benches.
    pub fn alone(me: NodeId) -> Peers<E> {
        Peers { inner: Rc::new(Inner { me, world: PhantomData }) }
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.inner.me
    }

    /// Takes what peers send from now on, until `close`. Called once.
    pub fn serve(&self, handler: Rc<dyn Handler<E>>) {
        let _ = handler;
        todo!()
    }

    /// Sends one frame on a stream of its own and waits for the one that answers it, dialling first if needed.
    /// Dropping the future does not take the request back.
    ///
    /// # Errors
    /// `PeerError`.
    pub async fn call(
        &self,
        to: Destination,
        request: Frame,
        priority: Priority,
        within: Duration,
    ) -> Result<Received, PeerError> {
        let _ = (to, request, priority, within);
        todo!()
    }

    /// Opens a stream of frames to a peer and sends the first one, dialling first if needed.
    ///
    /// # Errors
    /// `PeerError`.
    pub async fn open(&self, to: Destination, first: Frame, priority: Priority) -> Result<FrameStream<E>, PeerError> {
        let _ = (to, first, priority);
        todo!()
    }

    /// Sends a datagram if there is a connection; else it is lost, and one is dialled.
    pub fn send_datagram(&self, to: Destination, datagram: Bytes) {
        let _ = (to, datagram);
        todo!()
    }

    /// Who was heard of lately, as all reactors of this node see it.
    pub fn liveness(&self) -> &Arc<Liveness> {
        todo!()
    }

    /// Closes all connections.
    pub async fn close(&self) {
        todo!()
    }
}

/// A failure of the network below, before (`sent` false) or after something was sent.
pub(crate) fn peer_error(node: NodeId, error: &NetError, sent: bool) -> PeerError {
    let cause = error.to_string();
    if sent { PeerError::Lost { node, cause } } else { PeerError::Unreachable { node, cause } }
}
