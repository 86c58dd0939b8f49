//! A join token: lets a node without a certificate find the right cluster, and be let in.
//!
//! ```text
//! ringlog-join-<base64url without padding of>
//! offset width
//!   0     16   cluster id
//!  16     32   SHA-256 of the CA's certificate (DER)
//!  48     32   secret
//!  80      4   crc32c of the 80 bytes above, little-endian: a mistyped token is told from a refused one
//! ```
//! Whoever has it can join: it is a secret. The cluster keeps only the SHA-256 of the secret in it.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use rustls::pki_types::CertificateDer;

use super::{Fingerprint, TlsError, hex, is_cluster_id, random, sha256};

const PREFIX: &str = "ringlog-join-";

/// Bytes without the checksum.
const BODY_BYTES: usize = 80;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    cluster: [u8; 16],
    authority: Fingerprint,
    secret: [u8; 32],
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("cluster", &self.cluster()).finish_non_exhaustive()
    }
}

impl JoinToken {
    /// A new one, with a new secret.
    ///
    /// # Errors
    /// For what is no cluster id; when the system gives no random numbers.
    pub fn new(cluster: &str, authority: Fingerprint) -> Result<JoinToken, TlsError> {
        let bytes = cluster_bytes(cluster).ok_or_else(|| {
            TlsError::new(format!("{cluster:?} is no cluster id: 32 hexadecimal digits are expected"))
        })?;
        Ok(JoinToken { cluster: bytes, authority, secret: random()? })
    }

    /// As it is shown and typed. A secret.
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(BODY_BYTES + 4);
        bytes.extend_from_slice(&self.cluster);
        bytes.extend_from_slice(&self.authority.0);
        bytes.extend_from_slice(&self.secret);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a token; white space around it does not matter.
    ///
    /// # Errors
    /// That it is something else, cut off or mistyped.
    pub fn decode(text: &str) -> Result<JoinToken, TlsError> {
        let Some(text) = text.trim().strip_prefix(PREFIX) else {
            return Err(TlsError::new(format!(
                "a join token begins with {PREFIX}; get one with `ringlog cluster token` on a node of the cluster"
            )));
        };
        let mistyped = || TlsError::new("the join token is cut off or mistyped; copy it again as a whole");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| mistyped())?;
        let (body, checksum) = bytes.split_last_chunk::<4>().ok_or_else(mistyped)?;
        if body.len() != BODY_BYTES || crc32c::crc32c(body).to_le_bytes() != *checksum {
            return Err(mistyped());
        }
        let (cluster, rest) = body.split_first_chunk().expect("80 bytes");
        let (authority, rest) = rest.split_first_chunk().expect("64 bytes");
        let (secret, _) = rest.split_first_chunk().expect("32 bytes");
        Ok(JoinToken { cluster: *cluster, authority: Fingerprint(*authority), secret: *secret })
    }

    /// The cluster that it lets in to, 32 hexadecimal digits.
    pub fn cluster(&self) -> String {
        hex(&self.cluster)
    }

    /// The cluster's CA.
    pub fn authority(&self) -> Fingerprint {
        self.authority
    }

    /// Whether this is that CA's certificate.
    pub(crate) fn names(&self, certificate: &CertificateDer<'_>) -> bool {
        Fingerprint::of(certificate) == self.authority
    }

    /// What a joining node shows to the cluster. A secret.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// What the cluster keeps of it.
    pub fn secret_hash(&self) -> [u8; 32] {
        JoinToken::hash_of(&self.secret)
    }

    /// The same of a secret that somebody has shown. 256 random bits cannot be guessed from their hash, nor by measuring
    /// how long a comparison of hashes takes.
    pub fn hash_of(secret: &[u8]) -> [u8; 32] {
        sha256(secret)
    }
}

fn cluster_bytes(cluster: &str) -> Option<[u8; 16]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(cluster.as_bytes().chunks(2)) {
        *byte = digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?;
    }
    is_cluster_id(cluster).then_some(bytes)
}
