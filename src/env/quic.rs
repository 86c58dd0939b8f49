//! The real network between nodes: QUIC (quinn) on the reactor's own runtime, mutual TLS always.
//!
//! Promises: `accept` hands out a connection only when its peer has shown the certificate of a member of this cluster,
//! and `connect` only when, besides, it is the one that was dialled and has itself accepted us. Whoever is refused is
//! told why, and so is the log. A peer that falls silent is noticed within `QuicOptions::idle` plus one keep-alive.
//!
//! - `accept`: handshakes of connections that others make, off the way of those that are made already
//! - `congestion`: Cubic, made fit for closing
//! - `connection`: streams and datagrams
//! - `error`: what went wrong, in words
//! - `join`: the one request of a node that has no certificate yet
//! - `options`: times, windows, packet sizes, with their reasons
//! - `socket`: UDP sockets of a node's reactors
//!
//! Everything here must run inside a reactor's runtime (`runtime::block_on`, or a reactor).

mod accept;
mod congestion;
mod connection;
mod error;
mod handshakes;
mod join;
mod options;
mod socket;

use std::{
    cell::RefCell,
    fmt, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use self::{
    accept::{Acceptor, Queue},
    congestion::Ending,
};
pub use self::{
    connection::{QuicConnection, QuicReceive, QuicSend},
    join::{JOIN_BYTES_MAX, JoinConnection, JoinError, JoinReply, join_call},
    options::QuicOptions,
    socket::bind_reactors,
};
use super::net::{Endpoint, Net, NetError};
use crate::{ids::NodeId, tls::Credentials};

/// Whether a node may be a member, or in one clause why never again ("it was removed from the cluster"). Called on
/// the reactor for every connection, in both directions; must not block.
pub type Membership = Arc<dyn Fn(NodeId) -> Result<(), String> + Send + Sync>;

/// Application code of a close: the reason says why the peer may not connect.
const CODE_REFUSED: u32 = 1;

/// Application code of a close: somebody called `close` on this connection.
const CODE_CLOSED: u32 = 2;

/// Application code of a close: the node stops.
const CODE_STOPPING: u32 = 3;

/// Application code of a close: too many connections at the moment.
const CODE_BUSY: u32 = 4;

/// Application code of a close: the reason says why the peer is no member any more, and never will be.
const CODE_NOT_MEMBER: u32 = 6;

/// Error code of a stream that was dropped before it was finished.
const CODE_BROKEN_OFF: u32 = 5;

/// What the acceptor says on a stream of its own when it has proven who has dialled: in TLS 1.3 the dialler's
/// handshake ends before its certificate was looked at.
const WELCOME: &[u8] = b"ringlog";

/// Addresses of one name that a dial tries.
const ADDRESSES_MAX: usize = 4;

/// How long `close` waits until the peers know.
const CLOSE_MAX: Duration = Duration::from_millis(500);

/// One reactor's endpoint. Clones are handles to the same one; the last one that is dropped closes it.
#[derive(Clone)]
pub struct QuicNet(Rc<Inner>);

struct Inner {
    endpoint: quinn::Endpoint,
    local: SocketAddr,
    options: QuicOptions,
    members: Membership,
    /// Replaced as a whole when the node gets a new certificate.
    identity: RefCell<Rc<Identity>>,
    ending: Ending,
    accepted: Queue<QuicConnection>,
    joins: Queue<JoinConnection>,
}

/// Who this node is, ready to dial.
struct Identity {
    credentials: Arc<Credentials>,
    client: quinn::ClientConfig,
}

impl fmt::Debug for QuicNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicNet").field("local", &self.0.local).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ending.begin();
        self.endpoint.close(CODE_STOPPING.into(), b"");
    }
}

impl QuicNet {
    /// An endpoint on a socket of `bind_reactors`. It takes connections from now on.
    ///
    /// # Errors
    /// When the kernel refuses what the socket needs.
    ///
    /// # Panics
    /// Outside of a reactor's runtime.
    pub fn new(
        socket: UdpSocket,
        credentials: Arc<Credentials>,
        members: Membership,
        options: QuicOptions,
    ) -> io::Result<QuicNet> {
        let local = socket.local_addr()?;
        let socket = socket::wrap(socket)?;
        let ending = Ending::default();
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            options.endpoint_config(&credentials, local.port()),
            Some(options.server_config(&credentials, &ending)),
            socket,
            Arc::new(quinn::TokioRuntime),
        )?;
        let client = options.client_config(credentials.client_config(), &ending);
        let (accepted, joins) = (Queue::default(), Queue::default());
        let net = QuicNet(Rc::new(Inner {
            endpoint: endpoint.clone(),
            local,
            options,
            members: members.clone(),
            identity: RefCell::new(Rc::new(Identity { credentials: credentials.clone(), client })),
            ending,
            accepted: accepted.clone(),
            joins: joins.clone(),
        }));
        Acceptor::start(endpoint, credentials.node(), members, options, accepted, joins);
        Ok(net)
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.0.local
    }

    /// Shows and trusts these from now on; connections that exist stay. They must be of the same node and cluster.
    pub fn set_credentials(&self, credentials: Arc<Credentials>) {
        let (options, ending) = (&self.0.options, &self.0.ending);
        self.0.endpoint.set_server_config(Some(options.server_config(&credentials, ending)));
        let client = options.client_config(credentials.client_config(), ending);
        *self.0.identity.borrow_mut() = Rc::new(Identity { credentials, client });
    }

    /// The next request of a node that wants to join; `None` when the endpoint is closed. Who asks has proven nothing:
    /// the request must hold the secret of a join token. Requests wait, a few at most, until somebody calls this.
    pub async fn accept_join(&self) -> Option<JoinConnection> {
        self.0.joins.pop().await
    }

    /// Whether somebody there proves to be that node of our cluster; it may be the node that we are, in another process.
    /// Nothing is asked of it.
    pub async fn is_there(&self, to: &Endpoint) -> bool {
        let proves = async {
            let identity = self.0.identity.borrow().clone();
            let name = identity.credentials.name_of_peer(to.node);
            for address in self.look_up(to).await.unwrap_or_default().into_iter().take(ADDRESSES_MAX) {
                // Its certificate is checked in the handshake; that it refuses us afterwards does not matter.
                if let Ok(connecting) = self.0.endpoint.connect_with(identity.client.clone(), address, &name)
                    && connecting.await.is_ok()
                {
                    return true;
                }
            }
            false
        };
        options::timeout(self.0.options.dial, proves).await.unwrap_or(false)
    }

    async fn dial(&self, to: &Endpoint) -> Result<QuicConnection, NetError> {
        let mut failure = error::unreachable(to, "the name has no address that can be reached from here");
        for address in self.look_up(to).await?.into_iter().take(ADDRESSES_MAX) {
            match self.dial_address(to, address).await {
                // Somebody is there: another address of the same name would not be somebody else.
                Err(NetError::Unreachable { to, cause }) => failure = NetError::Unreachable { to, cause },
                other => return other,
            }
        }
        Err(failure)
    }

    /// The addresses of a name, of the families that our socket can send to.
    async fn look_up(&self, to: &Endpoint) -> Result<Vec<SocketAddr>, NetError> {
        let found: Vec<_> = match to.host.parse::<IpAddr>() {
            Ok(address) => vec![(address, to.port).into()],
            Err(_) => match tokio::net::lookup_host((to.host.as_str(), to.port)).await {
                Ok(found) => found.collect(),
                Err(cause) => return Err(error::unreachable(to, &format!("the name could not be looked up: {cause}"))),
            },
        };
        let ours = self.0.local.is_ipv6();
        Ok(found.into_iter().filter(|address| ours || address.is_ipv4()).collect())
    }

    async fn dial_address(&self, to: &Endpoint, address: SocketAddr) -> Result<QuicConnection, NetError> {
        let identity = self.0.identity.borrow().clone();
        let name = identity.credentials.name_of_peer(to.node);
        let connecting = self.0.endpoint.connect_with(identity.client.clone(), address, &name);
        let connecting = connecting.map_err(|cause| error::unreachable(to, &cause.to_string()))?;
        let connection = connecting.await.map_err(|cause| error::dial(to, &cause))?;
        let welcome = async {
            let mut stream = connection.accept_uni().await?;
            Ok(stream.read_to_end(WELCOME.len()).await)
        };
        match welcome.await {
            Ok(Ok(said)) if said == WELCOME => Ok(QuicConnection::new(connection, to.node)),
            Ok(_) => match connection.close_reason() {
                Some(cause) => Err(error::dial(to, &cause)),
                None => Err(error::refused(to, "it speaks another version of the protocol")),
            },
            Err(cause) => Err(error::dial(to, &cause)),
        }
    }
}

impl Net for QuicNet {
    type Connection = QuicConnection;

    async fn connect(&self, to: Endpoint) -> Result<QuicConnection, NetError> {
        let me = self.0.identity.borrow().credentials.node();
        if to.node == me {
            return Err(error::refused(&to, "it is this node itself"));
        }
        (self.0.members)(to.node).map_err(|cause| error::refused(&to, &cause))?;
        let within = self.0.options.dial;
        match options::timeout(within, self.dial(&to)).await {
            Some(result) => result,
            None => Err(error::unreachable(&to, &format!("nobody has answered within {within:?}"))),
        }
    }

    async fn accept(&self) -> Option<QuicConnection> {
        self.0.accepted.pop().await
    }

    async fn close(&self) {
        self.0.ending.begin();
        self.0.endpoint.close(CODE_STOPPING.into(), b"the node stops");
        self.0.accepted.close();
        self.0.joins.close();
        // In vain, the peers notice by themselves, only later.
        options::timeout(CLOSE_MAX, self.0.endpoint.wait_idle()).await;
    }
}

#[cfg(test)]
pub(crate) mod tests;
