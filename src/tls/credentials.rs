//! What a node shows to its peers and trusts: three PEM files, checked once, before anything is opened.

use std::{fmt, fs, path::PathBuf, sync::Arc};

use ring::hmac;
use rustls::{
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, pem::PemObject},
    server::NoServerSessionStorage,
    version::TLS13,
};
use webpki::KeyUsage;

use super::{
    Fingerprint, JOIN_PROTOCOL, JoinToken, NodeName, PEER_PROTOCOL, TlsError, crypto, sha256, unix_time,
    verify::{self, Broken, JoinVerifier, MemberVerifier},
};
use crate::ids::NodeId;

/// Where a node's credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFiles {
    /// Certificate of the cluster's CA, PEM; several while it is being replaced, the present one first.
    pub authority: PathBuf,
    /// The node's certificate, PEM; certificates between it and the CA may follow it.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// A node's certificate with its key, and the CA that it trusts. Whoever has one has passed all checks.
pub struct Credentials {
    name: NodeName,
    anchors: Vec<TrustAnchor<'static>>,
    fingerprint: Fingerprint,
    /// Own, then those between, then the CA's: a node that joins knows only the CA's fingerprint.
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    expires_s: u64,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A PEM text, and what to call it in a sentence.
struct Source {
    called: String,
    pem: Vec<u8>,
}

impl Credentials {
    /// Reads the files and checks them.
    ///
    /// # Errors
    /// Which file cannot be used, why, and what to do.
    pub fn load(files: &CredentialFiles, now_us: i64) -> Result<Credentials, TlsError> {
        let [authority, certificate, key] =
            [(&files.authority, "CA certificate"), (&files.certificate, "certificate"), (&files.key, "key")].map(
                |(path, what)| {
                    #[allow(clippy::disallowed_methods, reason = "small files, read once, before anything runs")]
                    let read = fs::read(path);
                    let called = path.display().to_string();
                    match read {
                        Ok(pem) => Ok(Source { called, pem }),
                        Err(error) => Err(TlsError::new(format!("{called}, the {what}, could not be read: {error}"))),
                    }
                },
            );
        Credentials::check(&authority?, &certificate?, &key?, now_us)
    }

    /// The same from texts.
    ///
    /// # Errors
    /// As `load`.
    pub fn from_pem(authority: &[u8], certificate: &[u8], key: &[u8], now_us: i64) -> Result<Credentials, TlsError> {
        let [authority, certificate, key] =
            [(authority, "the CA certificate"), (certificate, "the node's certificate"), (key, "the node's key")]
                .map(|(pem, called)| Source { called: called.to_owned(), pem: pem.to_vec() });
        Credentials::check(&authority, &certificate, &key, now_us)
    }

    fn check(authority: &Source, certificate: &Source, key: &Source, now_us: i64) -> Result<Credentials, TlsError> {
        let authorities = certificates(authority)?;
        let mut chain = certificates(certificate)?;
        let private = PrivateKeyDer::from_pem_slice(&key.pem)
            .map_err(|error| TlsError::new(format!("{} holds no private key in PEM: {error}", key.called)))?;
        let anchors: Result<Vec<_>, _> = authorities
            .iter()
            .map(|der| webpki::anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()))
            .collect();
        let anchors = anchors.map_err(|_| TlsError::new(format!("{} is not a CA certificate", authority.called)))?;
        let name = verify::name_of(&chain[0]).map_err(|error| {
            TlsError::new(format!("{} cannot be used as a node's certificate: {error}", certificate.called))
        })?;
        let signing = crypto()
            .key_provider
            .load_private_key(private.clone_key())
            .map_err(|error| TlsError::new(format!("{} is of a kind that is not supported: {error}", key.called)))?;
        if !signing.public_key().is_some_and(|public| verify::is_key_of(&chain[0], &public)) {
            let (key, certificate) = (&key.called, &certificate.called);
            return Err(TlsError::new(format!("{key} is not the key of {certificate}: put the pair together again")));
        }
        let expires_s = in_time(&chain, &anchors, now_us).map_err(|broken| {
            let (authority, certificate) = (&authority.called, &certificate.called);
            let node = name.node;
            TlsError::new(match broken {
                Broken::Foreign => {
                    format!("{certificate} is not signed by {authority}: one of them is of another cluster")
                }
                Broken::Expired { .. } => format!(
                    "{certificate} {}: ringlog ca issue --node {node} --force",
                    broken.in_words(unix_time(now_us))
                ),
                other => format!("{certificate} {}", other.in_words(unix_time(now_us))),
            })
        })?;
        let fingerprint = Fingerprint::of(&authorities[0]);
        if !chain.contains(&authorities[0]) {
            chain.push(authorities[0].clone());
        }
        Ok(Credentials { name, anchors, fingerprint, chain, key: private, expires_s })
    }

    /// Whose they are.
    pub fn node(&self) -> NodeId {
        self.name.node
    }

    /// Of which cluster, 32 hexadecimal digits.
    pub fn cluster(&self) -> &str {
        &self.name.cluster
    }

    /// Names the CA in a join token.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// When the first certificate of the chain ends, microseconds since the Unix epoch.
    pub fn expires_us(&self) -> i64 {
        i64::try_from(self.expires_s.saturating_mul(1_000_000)).unwrap_or(i64::MAX)
    }

    /// Whether they are those of this node: a data directory and its certificate go together.
    ///
    /// # Errors
    /// Whose they are instead.
    pub fn must_be_of(&self, node: NodeId, cluster: &str) -> Result<(), TlsError> {
        if *self.name.cluster != *cluster {
            let theirs = &self.name.cluster;
            return Err(TlsError::new(format!(
                "the node's certificate is of cluster {theirs}, but the data directory is of cluster {cluster}"
            )));
        }
        if self.name.node != node {
            return Err(TlsError::new(format!(
                "the certificate is of node {}, but the data directory is of node {node}; issue one: ringlog ca issue \
                 --node {node}",
                self.name.node
            )));
        }
        Ok(())
    }

    /// The name to dial that node by.
    pub(crate) fn name_of_peer(&self, node: NodeId) -> String {
        NodeName { node, cluster: self.name.cluster.clone() }.to_string()
    }

    /// What only the owner of the key can know, the same after a restart: for keys of other purposes.
    pub(crate) fn derive(&self, purpose: &str) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &sha256(self.key.secret_der()));
        hmac::sign(&key, purpose.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn verifier(&self) -> Arc<MemberVerifier> {
        Arc::new(MemberVerifier {
            anchors: self.anchors.clone(),
            cluster: self.name.cluster.clone(),
            algorithms: crypto().signature_verification_algorithms,
        })
    }

    /// For connections that others make.
    pub(crate) fn server_config(&self) -> rustls::ServerConfig {
        let mut config = rustls::ServerConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .with_client_cert_verifier(self.verifier())
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .expect("the key and its certificate were checked");
        config.alpn_protocols = vec![PEER_PROTOCOL.to_vec(), JOIN_PROTOCOL.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config
    }

    /// For connections that this node makes.
    pub(crate) fn client_config(&self) -> rustls::ClientConfig {
        let mut config = rustls::ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(self.verifier())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .expect("the key and its certificate were checked");
        config.alpn_protocols = vec![PEER_PROTOCOL.to_vec()];
        without_early_data(config)
    }
}

/// For the connection of a node that has nothing but a token.
pub(crate) fn join_client_config(token: &JoinToken) -> rustls::ClientConfig {
    let crypto = crypto();
    let verifier = JoinVerifier {
        authority: token.authority(),
        cluster: token.cluster().into(),
        algorithms: crypto.signature_verification_algorithms,
    };
    let mut config = rustls::ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN_PROTOCOL.to_vec()];
    without_early_data(config)
}

fn without_early_data(mut config: rustls::ClientConfig) -> rustls::ClientConfig {
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // The name would go over the wire in clear, and nobody needs it there.
    config.enable_sni = false;
    config
}

fn certificates(source: &Source) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&source.pem).collect();
    let found = found.map_err(|error| TlsError::new(format!("{} is not readable as PEM: {error}", source.called)))?;
    if found.is_empty() {
        return Err(TlsError::new(format!("{} holds no certificate in PEM", source.called)));
    }
    Ok(found)
}

/// Whether the chain holds now, for both roles, and until when (seconds since the Unix epoch).
fn in_time(chain: &[CertificateDer<'_>], anchors: &[TrustAnchor<'_>], now_us: i64) -> Result<u64, Broken> {
    let algorithms = crypto().signature_verification_algorithms;
    let at = |now, usage| verify::chain(&chain[0], &chain[1..], anchors, &algorithms, now, usage);
    at(unix_time(now_us), KeyUsage::server_auth())?;
    at(unix_time(now_us), KeyUsage::client_auth())?;
    // Only the check of a certificate knows when it ends: ask it about the end of all times.
    match at(unix_time(i64::MAX), KeyUsage::server_auth()) {
        Err(Broken::Expired { not_after }) => Ok(not_after),
        Ok(()) => Ok(u64::MAX),
        Err(other) => Err(other),
    }
}
