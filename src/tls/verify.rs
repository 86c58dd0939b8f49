//! The checks of a peer's certificate: signed by the cluster's CA, in time, of this cluster, of the node that was
//! dialled.
//!
//! What is refused is said in the third person, because both ends report the same sentence.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage};

use super::{Fingerprint, NodeName, TlsError, is_cluster_id, time_text};
use crate::ids::NodeId;

/// Checks the certificates of members, whichever side they are on.
#[derive(Debug)]
pub(super) struct MemberVerifier {
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    pub(super) cluster: Arc<str>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl MemberVerifier {
    pub(super) fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<NodeName, TlsError> {
        let name = name_of(certificate)?;
        // Before the signature, because "another CA" would be true as well, but less to the point.
        if name.cluster != self.cluster {
            let (theirs, ours) = (&name.cluster, &self.cluster);
            return Err(TlsError::new(format!(
                "a certificate of cluster {theirs} was shown to a node of cluster {ours}"
            )));
        }
        chain(certificate, intermediates, &self.anchors, &self.algorithms, now, usage).map_err(
            |error| match error {
                Broken::Foreign => TlsError::new(format!(
                    "the certificate of node {} is not signed by the CA of cluster {}",
                    name.node, self.cluster
                )),
                other => TlsError::new(format!("the certificate of node {} {}", name.node, other.in_words(now))),
            },
        )?;
        Ok(name)
    }
}

/// Why a certificate does not lead to the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Foreign,
    Expired { not_after: u64 },
    NotYet { not_before: u64 },
    Other(&'static str),
}

impl Broken {
    /// What goes behind "the certificate".
    pub(super) fn in_words(self, now: UnixTime) -> String {
        let now = time_text(now.as_secs());
        match self {
            Broken::Foreign => "is not signed by the cluster's CA".to_owned(),
            Broken::Expired { not_after } => {
                format!("has expired at {} (now is {now}); it needs a new one", time_text(not_after))
            }
            Broken::NotYet { not_before } => {
                format!("is valid from {} on, and now is {now}: is a clock wrong?", time_text(not_before))
            }
            Broken::Other(what) => format!("cannot be used: {what}"),
        }
    }
}

/// Whether the certificate is signed by one of the CAs, directly or by way of the others that came with it, and now valid.
pub(super) fn chain(
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
    usage: KeyUsage,
) -> Result<(), Broken> {
    let parsed = EndEntityCert::try_from(certificate).map_err(|_| Broken::Other("it is not a certificate"))?;
    let checked = parsed.verify_for_usage(algorithms.all, anchors, intermediates, now, usage, None, None);
    checked.map(drop).map_err(|error| match error {
        webpki::Error::CertExpired { not_after, .. } => Broken::Expired { not_after: not_after.as_secs() },
        webpki::Error::CertNotValidYet { not_before, .. } => Broken::NotYet { not_before: not_before.as_secs() },
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => Broken::Foreign,
        webpki::Error::CaUsedAsEndEntity => Broken::Other("it is a CA's"),
        webpki::Error::EndEntityUsedAsCa | webpki::Error::PathLenConstraintViolated => {
            Broken::Other("it was signed by somebody who is no CA")
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => {
            Broken::Other("it must be for clients and servers (extended key usage)")
        }
        webpki::Error::UnsupportedSignatureAlgorithmContext(_)
        | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            Broken::Other("its kind of signature is not supported")
        }
        // Dozens of ways in which it can be malformed; which one helps nobody who did not make it.
        _ => Broken::Other("it is malformed"),
    })
}

/// The one node that a certificate names. Says nothing about whether that is true.
pub(crate) fn name_of(certificate: &CertificateDer<'_>) -> Result<NodeName, TlsError> {
    let parsed = EndEntityCert::try_from(certificate)
        .map_err(|_| TlsError::new("what was shown as a certificate is not one"))?;
    let mut names = parsed.valid_dns_names().filter_map(NodeName::parse);
    let name = names.next().ok_or_else(|| {
        TlsError::new(
            "a certificate was shown that names no node: it needs the DNS name node-<id>.<cluster id>.ringlog, as \
             `ringlog ca issue` gives it",
        )
    })?;
    if names.any(|other| other != name) {
        return Err(TlsError::new("a certificate was shown that names more than one node"));
    }
    Ok(name)
}

/// The DNS name of a cluster's CA.
pub(super) fn authority_name(cluster: &str) -> String {
    format!("ca.{cluster}.ringlog")
}

/// The cluster whose CA this is.
pub(super) fn authority_cluster(certificate: &CertificateDer<'_>) -> Option<Arc<str>> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    let cluster = |name: &str| name.strip_prefix("ca.")?.strip_suffix(".ringlog").map(Arc::<str>::from);
    parsed.valid_dns_names().filter_map(cluster).find(|cluster| is_cluster_id(cluster))
}

/// Whether a certificate is of this public key (SubjectPublicKeyInfo, DER).
pub(super) fn is_key_of(certificate: &CertificateDer<'_>, public_key: &[u8]) -> bool {
    EndEntityCert::try_from(certificate).is_ok_and(|parsed| parsed.subject_public_key_info().as_ref() == public_key)
}

fn refusal(error: TlsError) -> rustls::Error {
    rustls::Error::Other(OtherError(Arc::new(error)))
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        dialled: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = self.check(certificate, intermediates, now, KeyUsage::server_auth()).map_err(refusal)?;
        let expected = NodeName::parse(&dialled.to_str());
        match expected {
            Some(expected) if expected == name => Ok(ServerCertVerified::assertion()),
            Some(NodeName { node: NodeId(expected), .. }) => {
                let found = name.node;
                Err(refusal(TlsError::new(format!("node {found} answers where node {expected} was dialled"))))
            }
            None => Err(refusal(TlsError::new("a node was dialled by something that is no node's name"))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for MemberVerifier {
    /// A node that asks to join has no certificate. Whoever speaks `PEER_PROTOCOL` without one is refused by
    /// `env::quic` before anybody sees the connection.
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(certificate, intermediates, now, KeyUsage::client_auth()).map_err(refusal)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Checks the node that is asked to let another join: the CA that it shows must have the token's fingerprint, and must
/// have signed its certificate.
#[derive(Debug)]
pub(super) struct JoinVerifier {
    pub(super) authority: Fingerprint,
    pub(super) cluster: Arc<str>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for JoinVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = others.iter().find(|other| Fingerprint::of(other) == self.authority);
        let Some(authority) = authority else {
            return Err(refusal(TlsError::new(
                "the CA of the node that was asked is not the one that the join token names: the token is of another \
                 cluster, or the address is",
            )));
        };
        let anchor = webpki::anchor_from_trusted_cert(authority)
            .map_err(|_| refusal(TlsError::new("the CA certificate that the join token names is malformed")))?;
        let member = MemberVerifier {
            anchors: vec![anchor.to_owned()],
            cluster: self.cluster.clone(),
            algorithms: self.algorithms,
        };
        member.check(certificate, others, now, KeyUsage::server_auth()).map_err(refusal)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn only_tls13() -> rustls::Error {
    refusal(TlsError::new("nodes speak TLS 1.3 only"))
}
