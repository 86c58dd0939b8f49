//! A cluster's CA, and the certificates that it issues. ECDSA on P-256: every TLS library has it.

use std::{fmt, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{Fingerprint, NodeName, TlsError, certificate_pem, is_cluster_id, verify};
use crate::ids::NodeId;

/// How long a CA's certificate is valid.
pub const CA_VALIDITY: Duration = Duration::from_secs(3_650 * 86_400);

/// How long a node's certificate is valid unless somebody says otherwise.
pub const NODE_VALIDITY: Duration = Duration::from_secs(365 * 86_400);

/// Certificates are valid from a day before they are made: the clocks of two machines differ, by hours where a time
/// zone is set wrongly.
const CLOCK_SKEW: Duration = Duration::from_secs(86_400);

/// A certificate and its key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key: a secret.
    pub key: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A request for a certificate, by somebody who keeps the key to himself.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// PKCS #10, PEM. It names nobody: who gets which name is decided by who signs it.
    pub request: String,
    /// The private key, PEM: a secret.
    pub key: String,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Request {
    /// A new key, and a request for a certificate of it.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn new() -> Result<Request, TlsError> {
        let key = KeyPair::generate().map_err(unmakable)?;
        let request = CertificateParams::default().serialize_request(&key).map_err(unmakable)?;
        Ok(Request { request: request.pem().map_err(unmakable)?, key: key.serialize_pem() })
    }
}

/// A CA with its key: it can issue.
pub struct Authority {
    cluster: Arc<str>,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the CA of a cluster, valid for `CA_VALIDITY`: its certificate and key.
    ///
    /// # Errors
    /// For what is no cluster id; when the system gives no random numbers.
    pub fn make(cluster: &str, now_us: i64) -> Result<Issued, TlsError> {
        if !is_cluster_id(cluster) {
            return Err(TlsError::new(format!("{cluster:?} is no cluster id: 32 hexadecimal digits are expected")));
        }
        let mut params = CertificateParams::new(vec![verify::authority_name(cluster)]).map_err(unmakable)?;
        params.distinguished_name = named(&format!("Ringlog cluster {cluster}"));
        // It signs nodes, and nobody who could sign others.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, now_us, CA_VALIDITY);
        let key = KeyPair::generate().map_err(unmakable)?;
        let certificate = params.self_signed(&key).map_err(unmakable)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// A CA that `make` has made, from its PEM.
    ///
    /// # Errors
    /// What is wrong with the certificate or the key, or that they do not belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Authority, TlsError> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| TlsError::new(format!("the CA certificate is not PEM: {error}")))?;
        let cluster = verify::authority_cluster(&der).ok_or_else(|| {
            TlsError::new("the CA certificate was not made by `ringlog ca init`: it names no cluster")
        })?;
        let key =
            KeyPair::from_pem(key).map_err(|error| TlsError::new(format!("the CA key is not readable: {error}")))?;
        if !verify::is_key_of(&der, &key.subject_public_key_info()) {
            return Err(TlsError::new(
                "the CA key does not belong to the CA certificate; restore the pair from its backup",
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|error| TlsError::new(format!("the CA certificate is not readable: {error}")))?;
        Ok(Authority { cluster, certificate: der, issuer })
    }

    /// Whose nodes it certifies.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Names it in a join token.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> String {
        certificate_pem(&self.certificate)
    }

    /// A new key for a node, and its certificate.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn issue(&self, node: NodeId, validity: Duration, now_us: i64) -> Result<Issued, TlsError> {
        let key = KeyPair::generate().map_err(unmakable)?;
        Ok(Issued { certificate: self.certify(node, &key, validity, now_us)?, key: key.serialize_pem() })
    }

    /// A certificate (PEM) for the key of a request. Only that key is taken from the request, and its owner has proven
    /// (by signing it) to have it; the name is ours.
    ///
    /// # Errors
    /// When the request is not one, or not signed with its key.
    pub fn sign_request(
        &self,
        request: &str,
        node: NodeId,
        validity: Duration,
        now_us: i64,
    ) -> Result<String, TlsError> {
        let request = CertificateSigningRequestParams::from_pem(request)
            .map_err(|error| TlsError::new(format!("the certificate request cannot be used: {error}")))?;
        self.certify(node, &request.public_key, validity, now_us)
    }

    fn certify(
        &self,
        node: NodeId,
        key: &impl PublicKeyData,
        validity: Duration,
        now_us: i64,
    ) -> Result<String, TlsError> {
        let name = NodeName { node, cluster: self.cluster.clone() };
        let mut params = CertificateParams::new(vec![name.to_string()]).map_err(unmakable)?;
        params.distinguished_name = named(&format!("Ringlog node {node}"));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now_us, validity);
        Ok(params.signed_by(key, &self.issuer).map_err(unmakable)?.pem())
    }
}

fn named(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Ringlog");
    name.push(DnType::CommonName, text);
    name
}

fn set_validity(params: &mut CertificateParams, now_us: i64, validity: Duration) {
    let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(now_us.max(0) as u64 / 1_000_000);
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + validity;
}

fn unmakable(error: rcgen::Error) -> TlsError {
    TlsError::new(format!("a certificate could not be made: {error}"))
}
