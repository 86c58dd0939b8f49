//! Who may talk to whom between nodes: the cluster's certificates, and how they are checked.
//!
//! Every node has a certificate, signed by its cluster's CA, with the DNS name `node-<id>.<cluster id>.ringlog`. Both
//! ends of every connection check the signature, the time, the cluster and the node; nothing else (no address, no host
//! name) proves who somebody is. TLS 1.3 only, no session is resumed, no early data: every connection proves it anew.
//!
//! - `authority`: a CA, and the certificates that it issues
//! - `credentials`: what a node shows and trusts, read from its files
//! - `token`: what lets a new node join
//! - `verify`: the checks themselves
//!
//! It reads no clock, except that rustls asks the system's while a connection is made.

mod authority;
mod credentials;
mod token;
mod verify;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::digest;
use rustls::{
    crypto::{CryptoProvider, ring as provider},
    pki_types::{CertificateDer, UnixTime},
};

pub use self::{
    authority::{Authority, CA_VALIDITY, Issued, NODE_VALIDITY, Request},
    credentials::{CredentialFiles, Credentials},
    token::JoinToken,
};
pub(crate) use self::{credentials::join_client_config, verify::name_of};
use crate::ids::NodeId;

/// ALPN of connections between members.
pub const PEER_PROTOCOL: &[u8] = b"ringlog-peer";

/// ALPN of a connection on which a node that has no certificate yet asks to join: one request, one answer.
pub const JOIN_PROTOCOL: &[u8] = b"ringlog-join";

/// What is wrong with a certificate, a key or a token, in one sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl TlsError {
    fn new(sentence: impl Into<String>) -> TlsError {
        TlsError(sentence.into())
    }
}

/// Whether a text is a cluster id: 32 hexadecimal digits, small letters.
pub fn is_cluster_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A new cluster id, from the system's random numbers.
///
/// # Errors
/// When there are none.
pub fn new_cluster_id() -> Result<String, TlsError> {
    let bytes: [u8; 16] = random()?;
    Ok(hex(&bytes))
}

/// What a node's certificate says: which node of which cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeName {
    /// The node.
    pub node: NodeId,
    /// Its cluster, 32 hexadecimal digits.
    pub cluster: Arc<str>,
}

impl NodeName {
    /// Reads `node-<id>.<cluster id>.ringlog`; `None` if it is anything else.
    pub fn parse(text: &str) -> Option<NodeName> {
        let (node, cluster) = text.strip_prefix("node-")?.strip_suffix(".ringlog")?.split_once('.')?;
        let number: u64 = node.parse().ok()?;
        // One name for one node: no signs, no leading zeros.
        (is_cluster_id(cluster) && number.to_string() == node)
            .then(|| NodeName { node: NodeId(number), cluster: cluster.into() })
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node-{}.{}.ringlog", self.node, self.cluster)
    }
}

/// SHA-256 of a CA's certificate (DER): names it in a join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Fingerprint {
        Fingerprint(sha256(certificate))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// The algorithms of all our connections.
///
/// AES-128 before AES-256: a quarter faster, and no weaker part of these connections than the P-256 keys are.
fn crypto() -> Arc<CryptoProvider> {
    let mut crypto = provider::default_provider();
    crypto.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(crypto)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Secret-quality random bytes.
fn random<const BYTES: usize>() -> Result<[u8; BYTES], TlsError> {
    let mut bytes = [0; BYTES];
    let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    filled.map_err(|_| TlsError::new("the operating system gives no random numbers"))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A certificate as PEM (RFC 7468): base64 in lines of 64 characters.
pub(crate) fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// As people write it; `not ever` for a time beyond what can be written.
fn time_text(seconds: u64) -> String {
    /// Year 9999, the end of RFC 3339.
    const LAST: u64 = 253_402_300_799;
    if seconds > LAST {
        return "not ever".to_owned();
    }
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}

/// From `Env::wall_us`; a clock that was never set may be before 1970.
fn unix_time(now_us: i64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_micros(now_us.max(0) as u64))
}

#[cfg(test)]
mod tests;
