//! Times, windows and packet sizes of connections between nodes, with their reasons.

use std::{future::Future, sync::Arc, time::Duration};

use quinn::{
    ConnectionId, ConnectionIdGenerator, EndpointConfig, MtuDiscoveryConfig, TransportConfig, VarInt,
    congestion::CubicConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use ring::hmac;

use super::congestion::{Ending, Gates};
use crate::{env::net::Priority, limits::PEER_STREAM_WINDOW_BYTES, tls::Credentials};

/// Times that decide when a peer is given up. The defaults are for one data centre.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuicOptions {
    /// A silent connection is asked for a sign of life after this long, by whoever dialled it.
    pub keep_alive: Duration,
    /// A connection ends when nothing was heard for this long. The detector (`peer::liveness`) takes a node for dead
    /// after 600 ms; its connections should fail soon after that, but not because one keep-alive was lost: with 200 ms
    /// between them and 800 ms, three may be lost, and both ends know within 1 s.
    pub idle: Duration,
    /// One dial, look-up of the name and all its addresses included.
    pub dial: Duration,
    /// A handshake of somebody who has dialled us, from the first packet to the welcome.
    pub handshake: Duration,
}

impl Default for QuicOptions {
    fn default() -> QuicOptions {
        QuicOptions {
            keep_alive: Duration::from_millis(200),
            idle: Duration::from_millis(800),
            dial: Duration::from_secs(2),
            handshake: Duration::from_secs(2),
        }
    }
}

/// Largest packet. quinn gives the kernel up to 10 packets at once, and the kernel takes 65,507 bytes: above 6,550 whole
/// bursts are lost without a word. What the path carries is found out by probing; it begins with the 1,200 bytes that
/// every path carries.
const PACKET_BYTES_MAX: u16 = 6_400;

/// Streams that a peer may have open at first; `connection` raises it as they are used, up to `STREAMS_MAX`, because
/// quinn sets aside memory for every stream that might be opened.
pub(super) const STREAMS_AT_FIRST: u32 = 256;

/// Most streams that a peer may have open: a replication stream for each shard of a full node, and calls.
pub(super) const STREAMS_MAX: u32 = 32_768;

/// Bytes of all streams together that are sent and not read yet: as many as all streams may have, so that a stream that
/// nobody reads never blocks another one. It bounds no memory: streams are read as their bytes come, or are ended, but for a
/// few (`peer::frame`, `limits::PEER_BACKLOG_BYTES_MAX`).
const CONNECTION_WINDOW_BYTES: u64 = STREAMS_MAX as u64 * PEER_STREAM_WINDOW_BYTES as u64;

/// Bytes that were written and are not acknowledged, up to which a stream of that priority may write: bounds what a
/// connection keeps in memory. All streams share the window, and quinn gives what becomes free to whoever it wakes
/// first; without the upper parts, streams in bulk would keep urgent ones out for as long as they last.
pub(super) const fn send_window(priority: Priority) -> u64 {
    match priority {
        Priority::Bulk => 32 << 20,
        Priority::Normal => 48 << 20,
        Priority::Urgent => 64 << 20,
    }
}

/// Datagrams waiting to be sent, or to be read; the oldest are forgotten above it.
const DATAGRAM_BUFFER_BYTES: usize = 256 << 10;

/// Round trip that is assumed before one was measured: decides when the first packet is sent again (3 times this). The
/// standard's 333 ms is for the whole internet; too little costs a superfluous packet.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(50);

/// Bytes in flight before anything was acknowledged. More than the 10 packets for the internet, because the path is
/// short and ours; less than the receive buffer of an unprivileged process (208 KiB), so that it cannot overflow.
const FIRST_WINDOW_BYTES: u64 = 128 << 10;

const _: () = assert!(10 * (PACKET_BYTES_MAX as usize) < 65_507);
const _: () = assert!(CONNECTION_WINDOW_BYTES < 1 << 62);

impl QuicOptions {
    fn transport(&self, ending: &Ending) -> TransportConfig {
        let mut transport = TransportConfig::default();
        let mut probing = MtuDiscoveryConfig::default();
        probing.upper_bound(PACKET_BYTES_MAX);
        let mut cubic = CubicConfig::default();
        cubic.initial_window(FIRST_WINDOW_BYTES);
        transport
            .max_concurrent_bidi_streams(STREAMS_AT_FIRST.into())
            .max_concurrent_uni_streams(1u32.into())
            .max_idle_timeout(Some(self.idle.try_into().expect("an idle time-out is less than centuries")))
            .stream_receive_window(PEER_STREAM_WINDOW_BYTES.into())
            .receive_window(VarInt::from_u64(CONNECTION_WINDOW_BYTES).expect("below 2^62, as asserted above"))
            .send_window(send_window(Priority::Bulk))
            .initial_rtt(FIRST_ROUND_TRIP)
            .mtu_discovery_config(Some(probing))
            .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
            .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
            .congestion_controller_factory(Arc::new(Gates { cubic: Arc::new(cubic), endpoint: ending.clone() }));
        transport
    }

    /// For connections that others make.
    pub(super) fn server_config(&self, credentials: &Credentials, ending: &Ending) -> quinn::ServerConfig {
        let crypto = QuicServerConfig::try_from(credentials.server_config()).expect("the provider has AES-128");
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config
            .transport_config(Arc::new(self.transport(ending)))
            // Nodes do not wander.
            .migration(false)
            .max_incoming(super::accept::HANDSHAKES_MAX)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(4 << 20);
        config
    }

    /// For connections that this node makes.
    pub(super) fn client_config(&self, crypto: rustls::ClientConfig, ending: &Ending) -> quinn::ClientConfig {
        let mut transport = self.transport(ending);
        // One side is enough, and the other notices by what it hears.
        transport.keep_alive_interval(Some(self.keep_alive));
        let crypto = QuicClientConfig::try_from(crypto).expect("the provider has AES-128");
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        config
    }

    /// The key that signs the answer to packets that belong to no connection is the same after a restart. So a peer
    /// learns from its next packet that we have been restarted, instead of by its time-out (RFC 9000, section 10.3).
    pub(super) fn endpoint_config(&self, credentials: &Credentials, port: u16) -> EndpointConfig {
        let reset = credentials.derive(&format!("quic stateless reset {port}"));
        let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)));
        config.cid_generator(|| Box::new(RandomIds));
        packets(&mut config);
        config
    }
}

/// Connection ids without a mark of the process that made them: after a restart they are still answered.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; 8];
        let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
        filled.expect("TLS needs the system's random numbers for the same connection");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// For an endpoint that only dials, once.
pub(super) fn dialling_endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    packets(&mut config);
    config
}

fn packets(config: &mut EndpointConfig) {
    config.max_udp_payload_size(PACKET_BYTES_MAX).expect("within QUIC's bounds");
}

/// `future`, or `None` when it takes longer.
#[allow(clippy::disallowed_methods, reason = "part of the real environment")]
pub(super) async fn timeout<T>(within: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(within, future).await.ok()
}
