//! The seam between Ringlog and the network between nodes: authenticated connections that carry ordered streams and
//! datagrams. The real one is `quic`; the simulated one is `sim::net`.
//!
//! One `Net` is one reactor's endpoint. Who is at the other end has been proven before a connection is handed out
//! (the certificate's cluster and node); an address alone proves nothing.

use std::{fmt, future::Future};

use bytes::Bytes;

use crate::ids::NodeId;

/// Where a peer's reactor is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Who must be there; anybody else is refused.
    pub node: NodeId,
    /// Host name or address; names are looked up at each dial.
    pub host: String,
    /// UDP port of that reactor (the node's peer port + its number).
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} at {}:{}", self.node, self.host, self.port)
    }
}

/// Why there is no connection, or none any more. Everything that was not answered may or may not have arrived.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// Could not be made: nobody answers, or the name is unknown. Nothing was sent.
    #[error("{to} cannot be reached: {cause}")]
    Unreachable {
        /// Whom.
        to: Endpoint,
        /// In words.
        cause: String,
    },
    /// Made, and refused by one of the two: another cluster, another node, an expired or foreign certificate, a removed node.
    #[error("{to} was refused: {cause}")]
    Refused {
        /// Whom.
        to: Endpoint,
        /// In words.
        cause: String,
    },
    /// A proven member of the cluster says that this node is none any more, and will never be one again under this id.
    #[error("{to} says of this node: {cause}")]
    NotMember {
        /// Who says so.
        to: Endpoint,
        /// In words.
        cause: String,
    },
    /// It was there, and is gone.
    #[error("the connection to node {node} is lost: {cause}")]
    Lost {
        /// To whom.
        node: NodeId,
        /// In words.
        cause: String,
    },
    /// The stream was ended by the other side.
    #[error("node {node} has ended the stream")]
    Ended {
        /// By whom.
        node: NodeId,
    },
}

/// One reactor's endpoint. Clones are handles to the same one.
pub trait Net: Clone + 'static {
    /// A connection.
    type Connection: Connection;

    /// Dials, and proves who is there. Tries once, within a bounded time. Dropping the future leaves nothing behind.
    fn connect(&self, to: Endpoint) -> impl Future<Output = Result<Self::Connection, NetError>>;

    /// The next connection that a proven member of the cluster has made; `None` when the endpoint is closed.
    fn accept(&self) -> impl Future<Output = Option<Self::Connection>>;

    /// Closes the endpoint and all its connections, telling the peers.
    fn close(&self) -> impl Future<Output = ()>;
}

/// A connection to one reactor of one peer. Clones are handles to the same one.
pub trait Connection: Clone + 'static {
    /// The sending half of a stream.
    type Send: SendStream;
    /// The receiving half.
    type Receive: ReceiveStream;

    /// Who is there.
    fn peer(&self) -> NodeId;

    /// Opens a stream; the peer sees it with its first bytes. Waits while too many are open.
    fn open(&self) -> impl Future<Output = Result<(Self::Send, Self::Receive), NetError>>;

    /// The next stream that the peer has opened.
    fn accept(&self) -> impl Future<Output = Result<(Self::Send, Self::Receive), NetError>>;

    /// Sends a datagram of at most `DATAGRAM_BYTES_MAX`: it may be lost, also here and without a word.
    fn send_datagram(&self, datagram: Bytes);

    /// The next datagram.
    fn receive_datagram(&self) -> impl Future<Output = Result<Bytes, NetError>>;

    /// Resolves when the connection is gone, with the reason.
    fn closed(&self) -> impl Future<Output = NetError>;

    /// Whether it is gone.
    fn is_closed(&self) -> bool;

    /// Ends it; the peer is told why.
    fn close(&self, why: &str);
}

/// Largest datagram: fits into one packet on any path.
pub const DATAGRAM_BYTES_MAX: usize = 1_100;

/// How urgent a stream's bytes are against those of the other streams of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Catching up.
    Bulk,
    /// Replication and forwarded requests.
    Normal,
    /// Votes and heartbeats: never behind the others.
    Urgent,
}

/// The sending half of a stream; dropping it without `finish` breaks the stream off.
pub trait SendStream: 'static {
    /// Sends bytes in order; refcounted, not copied. Waits for the peer's window: memory of what is sent and not yet
    /// received is bounded. When it is cancelled, part may have been sent: the stream cannot be used any more.
    fn send(&mut self, pieces: Vec<Bytes>) -> impl Future<Output = Result<(), NetError>>;

    /// How urgent, from now on.
    fn set_priority(&self, priority: Priority);

    /// No more bytes will come.
    fn finish(&mut self);
}

/// The receiving half of a stream; dropping it tells the peer to stop.
pub trait ReceiveStream: 'static {
    /// The next bytes, at least one; `None` after the last. Dropping the future loses nothing.
    fn receive(&mut self) -> impl Future<Output = Result<Option<Bytes>, NetError>>;
}
