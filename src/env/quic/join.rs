//! The one request of a node that has no certificate yet, and its answer. The asked node proves itself by the CA that
//! the join token names; who asks proves himself by the token's secret, in the request.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rustls::pki_types::CertificateDer;

use super::{
    ADDRESSES_MAX, QuicOptions,
    accept::Place,
    congestion::Ending,
    error,
    options::{self, dialling_endpoint_config},
    socket,
};
use crate::tls::{JoinToken, certificate_pem, join_client_config};

/// Largest request and largest answer, in bytes.
pub const JOIN_BYTES_MAX: usize = 64 << 10;

/// Requests of one reactor that are read, wait or are worked on; more are told to try again.
pub(super) const JOINS_MAX: usize = 4;

/// How long a request may take to arrive, and an answer to be taken.
const TRANSFER_MAX: Duration = Duration::from_secs(5);

/// The name that is dialled: TLS wants one, and nobody looks at it, since any node of the cluster will do.
const ANY_NODE: &str = "any.ringlog";

/// A request to join that waits for its answer. Dropped, the asking node is told nothing but that the connection is gone.
pub struct JoinConnection {
    quic: quinn::Connection,
    send: quinn::SendStream,
    request: Bytes,
    _place: Place,
}

impl std::fmt::Debug for JoinConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinConnection").field("from", &self.quic.remote_address()).finish_non_exhaustive()
    }
}

impl JoinConnection {
    pub(super) async fn read(quic: quinn::Connection, place: Place) -> Result<JoinConnection, String> {
        let request = async {
            let (send, mut receive) = quic.accept_bi().await.map_err(|cause| cause.to_string())?;
            let request = receive.read_to_end(JOIN_BYTES_MAX).await.map_err(|cause| cause.to_string())?;
            Ok::<_, String>((send, request))
        };
        let read = options::timeout(TRANSFER_MAX, request).await;
        let (send, request) = match read {
            Some(read) => read.map_err(|cause| format!("its request to join did not arrive: {cause}"))?,
            None => return Err("its request to join did not arrive in time".to_owned()),
        };
        Ok(JoinConnection { quic, send, request: request.into(), _place: place })
    }

    pub(super) fn is_gone(&self) -> bool {
        self.quic.close_reason().is_some()
    }

    /// What is asked; whoever asks has proven nothing.
    pub fn request(&self) -> &Bytes {
        &self.request
    }

    /// From where.
    pub fn from(&self) -> SocketAddr {
        self.quic.remote_address()
    }

    /// Answers, and waits a bounded time until the answer has arrived.
    ///
    /// # Errors
    /// When it cannot be sent: the asking node will ask again.
    ///
    /// # Panics
    /// For more than `JOIN_BYTES_MAX` bytes.
    pub async fn reply(mut self, reply: Bytes) -> Result<(), JoinError> {
        assert!(reply.len() <= JOIN_BYTES_MAX, "an answer to a join of {} bytes", reply.len());
        let sent = async {
            self.send.write_chunk(reply).await.map_err(|cause| cause.to_string())?;
            self.send.finish().map_err(|cause| cause.to_string())?;
            self.send.stopped().await.map(drop).map_err(|cause| cause.to_string())
        };
        match options::timeout(TRANSFER_MAX, sent).await {
            Some(Ok(())) => Ok(()),
            Some(Err(cause)) => Err(JoinError::Unreachable(cause)),
            None => Err(JoinError::Unreachable(format!("the answer was not taken within {TRANSFER_MAX:?}"))),
        }
    }
}

/// Why a node was not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Nobody is there, or he is gone: another node of the cluster may be asked.
    #[error("{0}")]
    Unreachable(String),
    /// Who is there is not of the cluster that the token is of, or refuses.
    #[error("{0}")]
    Refused(String),
}

/// An answer to a request to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinReply {
    /// What the asked node says.
    pub reply: Bytes,
    /// Certificate of the cluster's CA, PEM: the one that the token names.
    pub authority: String,
}

/// Asks a node of the cluster that the token is of: one request of at most `JOIN_BYTES_MAX` bytes, one answer. Nothing is
/// sent to anybody who cannot show a certificate of the CA that the token names. Dropping the future leaves nothing behind.
///
/// # Errors
/// `JoinError`; after `Unreachable` the request may or may not have arrived.
///
/// # Panics
/// Outside of a reactor's runtime.
pub async fn join_call(
    host: &str,
    port: u16,
    token: &JoinToken,
    request: Bytes,
    within: Duration,
) -> Result<JoinReply, JoinError> {
    match options::timeout(within, call(host, port, token, request)).await {
        Some(result) => result,
        None => Err(JoinError::Unreachable(format!("{host}:{port} has not answered within {within:?}"))),
    }
}

async fn call(host: &str, port: u16, token: &JoinToken, request: Bytes) -> Result<JoinReply, JoinError> {
    let unreachable = |cause: String| JoinError::Unreachable(format!("{host}:{port} cannot be asked: {cause}"));
    let found = tokio::net::lookup_host((host, port)).await;
    let found = found.map_err(|cause| unreachable(format!("the name could not be looked up: {cause}")))?;
    let mut failure = unreachable("the name has no address".to_owned());
    for address in found.take(ADDRESSES_MAX) {
        match dial(address, token).await {
            Ok((endpoint, quic)) => {
                let result = exchange(&quic, token, request).await.map_err(unreachable);
                quic.close(0u32.into(), b"");
                options::timeout(super::CLOSE_MAX, endpoint.wait_idle()).await;
                return result;
            }
            Err((true, cause)) => return Err(JoinError::Refused(format!("{host}:{port} was refused: {cause}"))),
            Err((false, cause)) => failure = unreachable(cause),
        }
    }
    Err(failure)
}

/// The endpoint and the connection, or whether it was refused, and why.
async fn dial(address: SocketAddr, token: &JoinToken) -> Result<(quinn::Endpoint, quinn::Connection), (bool, String)> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = || {
        let socket = socket::wrap(UdpSocket::bind(any)?)?;
        let config = dialling_endpoint_config();
        quinn::Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(quinn::TokioRuntime))
    };
    let endpoint = endpoint().map_err(|cause| (false, format!("no socket: {cause}")))?;
    // The asked node may have to wait for the catalog's leader: keep-alives show that it is there.
    let config = QuicOptions::default().client_config(join_client_config(token), &Ending::default());
    let connecting = endpoint.connect_with(config, address, ANY_NODE);
    let connecting = connecting.map_err(|cause| (false, cause.to_string()))?;
    match connecting.await {
        Ok(quic) => Ok((endpoint, quic)),
        Err(cause) => Err(error::handshake(&cause)),
    }
}

async fn exchange(quic: &quinn::Connection, token: &JoinToken, request: Bytes) -> Result<JoinReply, String> {
    let lost = |cause: String| match quic.close_reason() {
        Some(closed) => error::handshake(&closed).1,
        None => cause,
    };
    let (mut send, mut receive) = quic.open_bi().await.map_err(|cause| lost(cause.to_string()))?;
    send.write_chunk(request).await.map_err(|cause| lost(cause.to_string()))?;
    send.finish().map_err(|cause| lost(cause.to_string()))?;
    let reply = receive.read_to_end(JOIN_BYTES_MAX).await.map_err(|cause| lost(cause.to_string()))?;
    let shown = quic.peer_identity().and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let chain = shown.as_deref().map(Vec::as_slice).unwrap_or_default();
    let authority = chain.iter().find(|certificate| token.names(certificate));
    let authority = authority.ok_or_else(|| "it has shown no CA certificate".to_owned())?;
    Ok(JoinReply { reply: reply.into(), authority: certificate_pem(authority) })
}
