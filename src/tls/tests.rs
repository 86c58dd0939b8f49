//! Certificates are made, read and refused, each with a sentence that says what to do.

use std::time::Duration;

use rustls::pki_types::pem::PemObject;

use super::*;
use crate::fuzz::Target;

const CLUSTER: &str = "00112233445566778899aabbccddeeff";
const OTHER: &str = "ffeeddccbbaa99887766554433221100";

/// 2026-01-02T03:04:05Z.
const NOW_US: i64 = 1_767_323_045_000_000;

const DAY_US: i64 = 86_400_000_000;

fn authority(cluster: &str) -> Authority {
    let issued = Authority::make(cluster, NOW_US).unwrap();
    Authority::from_pem(&issued.certificate, &issued.key).unwrap()
}

fn load(authority: &Authority, issued: &Issued, now_us: i64) -> Result<Credentials, String> {
    let ca = authority.certificate();
    Credentials::from_pem(ca.as_bytes(), issued.certificate.as_bytes(), issued.key.as_bytes(), now_us)
        .map_err(|error| error.to_string())
}

/// What a CA issues says who it is for, and its files are good from a day before until their end.
#[test]
fn issue_and_load() {
    let authority = authority(CLUSTER);
    assert_eq!(authority.cluster(), CLUSTER);
    let issued = authority.issue(NodeId(7), NODE_VALIDITY, NOW_US).unwrap();
    let credentials = load(&authority, &issued, NOW_US).unwrap();
    assert_eq!((credentials.node(), credentials.cluster()), (NodeId(7), CLUSTER));
    assert_eq!(credentials.fingerprint(), authority.fingerprint());
    assert_eq!(credentials.expires_us(), NOW_US + 365 * DAY_US);
    assert!(load(&authority, &issued, NOW_US - DAY_US).is_ok());
    assert!(load(&authority, &issued, NOW_US + 365 * DAY_US).is_ok());
    // The derived keys are the owner's, and one for each purpose.
    assert_eq!(credentials.derive("a"), load(&authority, &issued, NOW_US).unwrap().derive("a"));
    assert_ne!(credentials.derive("a"), credentials.derive("b"));
    let other = load(&authority, &authority.issue(NodeId(7), NODE_VALIDITY, NOW_US).unwrap(), NOW_US).unwrap();
    assert_ne!(credentials.derive("a"), other.derive("a"));
    // Nobody's secret in a log.
    assert!(!format!("{credentials:?} {issued:?} {authority:?}").contains("PRIVATE"));
}

/// A request gets the name that the CA gives it, for its own key.
#[test]
fn sign_a_request() {
    let authority = authority(CLUSTER);
    let Request { request, key } = Request::new().unwrap();
    let certificate = authority.sign_request(&request, NodeId(3), NODE_VALIDITY, NOW_US).unwrap();
    let credentials = load(&authority, &Issued { certificate, key }, NOW_US).unwrap();
    assert_eq!(credentials.node(), NodeId(3));
    // A request that somebody else has changed, and what is no request.
    let at = request.len() / 2;
    let broken: String =
        request.char_indices().map(|(i, c)| if i == at { if c == 'A' { 'B' } else { 'A' } } else { c }).collect();
    for text in [&*broken, "", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"] {
        let error = authority.sign_request(text, NodeId(3), NODE_VALIDITY, NOW_US).unwrap_err().to_string();
        assert!(error.starts_with("the certificate request cannot be used: "), "{error}");
    }
}

/// Each wrong file gets a sentence of its own.
#[test]
fn wrong_files() {
    let ours = authority(CLUSTER);
    let issued = ours.issue(NodeId(2), NODE_VALIDITY, NOW_US).unwrap();
    let another = ours.issue(NodeId(2), NODE_VALIDITY, NOW_US).unwrap();
    let ca = ours.certificate();
    let check = |ca: &str, certificate: &str, key: &str| {
        let loaded = Credentials::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes(), NOW_US);
        loaded.unwrap_err().to_string()
    };
    assert_eq!(check("", &issued.certificate, &issued.key), "the CA certificate holds no certificate in PEM");
    assert_eq!(check(&ca, "hello", &issued.key), "the node's certificate holds no certificate in PEM");
    assert_eq!(
        check(&ca, &issued.certificate, &issued.certificate),
        "the node's key holds no private key in PEM: no items found"
    );
    assert_eq!(
        check(&ca, &issued.certificate, &another.key),
        "the node's key is not the key of the node's certificate: put the pair together again"
    );
    assert_eq!(
        check(&authority(CLUSTER).certificate(), &issued.certificate, &issued.key),
        "the node's certificate is not signed by the CA certificate: one of them is of another cluster"
    );
    assert_eq!(
        check(&authority(OTHER).certificate(), &issued.certificate, &issued.key),
        "the node's certificate is not signed by the CA certificate: one of them is of another cluster"
    );
    // A CA's certificate names no node.
    let made = Authority::make(CLUSTER, NOW_US).unwrap();
    assert_eq!(
        check(&made.certificate, &made.certificate, &made.key),
        "the node's certificate cannot be used as a node's certificate: a certificate was shown that names no node: it \
         needs the DNS name node-<id>.<cluster id>.ringlog, as `ringlog ca issue` gives it"
    );
    // A node's certificate signs nobody.
    let error = check(&issued.certificate, &another.certificate, &another.key);
    assert_eq!(error, "the node's certificate is not signed by the CA certificate: one of them is of another cluster");
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(check(garbage, &issued.certificate, &issued.key), "the CA certificate is not a CA certificate");
    let error = check(&ca, garbage, &issued.key);
    assert_eq!(
        error,
        "the node's certificate cannot be used as a node's certificate: what was shown as a certificate is not one"
    );
}

/// Certificates end, and begin.
#[test]
fn wrong_times() {
    let authority = authority(CLUSTER);
    let issued = authority.issue(NodeId(2), Duration::from_secs(10 * 86_400), NOW_US).unwrap();
    assert_eq!(
        load(&authority, &issued, NOW_US + 11 * DAY_US).unwrap_err(),
        "the node's certificate has expired at 2026-01-12T03:04:05Z (now is 2026-01-13T03:04:05Z); it needs a new one: \
         ringlog ca issue --node 2 --force"
    );
    assert_eq!(
        load(&authority, &issued, NOW_US - 2 * DAY_US).unwrap_err(),
        "the node's certificate is valid from 2026-01-01T03:04:05Z on, and now is 2025-12-31T03:04:05Z: is a clock wrong?"
    );
    // A clock that was never set.
    assert!(load(&authority, &issued, -5).unwrap_err().contains("is a clock wrong?"));
}

/// Files are named by their paths, and belong to one data directory.
#[test]
#[allow(clippy::disallowed_methods, reason = "a test of files")]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority(CLUSTER);
    let issued = authority.issue(NodeId(2), NODE_VALIDITY, NOW_US).unwrap();
    let [ca, certificate, key] = ["ca.crt", "node.crt", "node.key"].map(|name| dir.path().join(name));
    let files = CredentialFiles { authority: ca.clone(), certificate: certificate.clone(), key: key.clone() };
    std::fs::write(&ca, authority.certificate()).unwrap();
    std::fs::write(&certificate, &issued.certificate).unwrap();
    let error = Credentials::load(&files, NOW_US).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}, the key, could not be read: ", key.display())), "{error}");
    std::fs::write(&key, &issued.key).unwrap();
    let credentials = Credentials::load(&files, NOW_US).unwrap();
    credentials.must_be_of(NodeId(2), CLUSTER).unwrap();
    assert_eq!(
        credentials.must_be_of(NodeId(3), CLUSTER).unwrap_err().to_string(),
        "the certificate is of node 2, but the data directory is of node 3; issue one: ringlog ca issue --node 3"
    );
    assert_eq!(
        credentials.must_be_of(NodeId(2), OTHER).unwrap_err().to_string(),
        format!("the node's certificate is of cluster {CLUSTER}, but the data directory is of cluster {OTHER}")
    );
}

/// A CA is what `make` makes: certificate and key go together.
#[test]
fn wrong_authorities() {
    let (one, two) = (Authority::make(CLUSTER, NOW_US).unwrap(), Authority::make(CLUSTER, NOW_US).unwrap());
    let refused = |certificate: &str, key: &str| Authority::from_pem(certificate, key).unwrap_err().to_string();
    assert_eq!(
        refused(&one.certificate, &two.key),
        "the CA key does not belong to the CA certificate; restore the pair from its backup"
    );
    assert!(refused("", &one.key).starts_with("the CA certificate is not PEM: "));
    assert!(refused(&one.certificate, "").starts_with("the CA key is not readable: "));
    let node = authority(CLUSTER).issue(NodeId(1), NODE_VALIDITY, NOW_US).unwrap();
    assert!(refused(&node.certificate, &node.key).starts_with("the CA certificate was not made by"));
    let error = Authority::make("0011", NOW_US).unwrap_err().to_string();
    assert_eq!(error, "\"0011\" is no cluster id: 32 hexadecimal digits are expected");
    assert!(is_cluster_id(&new_cluster_id().unwrap()));
}

/// One text for one node, and no other text for it.
#[test]
fn node_names() {
    let text = format!("node-18446744073709551615.{CLUSTER}.ringlog");
    let name = NodeName::parse(&text).unwrap();
    assert_eq!((name.node, &*name.cluster), (NodeId(u64::MAX), CLUSTER));
    assert_eq!(name.to_string(), text);
    for wrong in [
        format!("node-01.{CLUSTER}.ringlog"),
        format!("node-+1.{CLUSTER}.ringlog"),
        format!("node-.{CLUSTER}.ringlog"),
        format!("node-18446744073709551616.{CLUSTER}.ringlog"),
        format!("node-1.{}.ringlog", CLUSTER.to_uppercase()),
        format!("node-1.{}.ringlog", &CLUSTER[1..]),
        format!("node-1.{CLUSTER}.ringlog."),
        format!("ca.{CLUSTER}.ringlog"),
        format!("node-1.x.{CLUSTER}.ringlog"),
        String::new(),
    ] {
        assert_eq!(NodeName::parse(&wrong), None, "{wrong}");
    }
}

/// The token is the one that its module draws, and says what was put in.
#[test]
fn tokens() {
    let token = JoinToken::new(CLUSTER, Fingerprint([5; 32])).unwrap();
    let text = token.encode();
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&text["ringlog-join-".len()..]).unwrap();
    assert_eq!(
        bytes[..16],
        [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]
    );
    assert_eq!(bytes[16..48], [5; 32]);
    assert_eq!(&bytes[48..80], token.secret());
    assert_eq!(bytes[80..], crc32c::crc32c(&bytes[..80]).to_le_bytes());
    let read = JoinToken::decode(&format!(" {text}\n")).unwrap();
    assert_eq!((&read, read.cluster(), read.authority()), (&token, CLUSTER.to_owned(), Fingerprint([5; 32])));
    assert_eq!(read.secret_hash(), JoinToken::hash_of(token.secret()));
    let another = JoinToken::new(CLUSTER, Fingerprint([5; 32])).unwrap();
    assert_ne!(another.secret_hash(), token.secret_hash());
    assert!(!format!("{token:?}").contains(&hex(token.secret())));
}

/// Every cut and every changed letter of a token is noticed.
#[test]
fn mistyped_tokens() {
    let text = JoinToken::new(CLUSTER, Fingerprint([5; 32])).unwrap().encode();
    for end in 0..text.len() {
        assert!(JoinToken::decode(&text[..end]).is_err(), "{end}");
    }
    for at in 0..text.len() {
        for with in ['A', 'b', '7', '-', '!'] {
            let mut typed = text.clone();
            typed.replace_range(at..=at, &with.to_string());
            assert!(typed == text || JoinToken::decode(&typed).is_err(), "{typed}");
        }
    }
    let error = JoinToken::decode("hello").unwrap_err().to_string();
    assert!(error.starts_with("a join token begins with ringlog-join-; "), "{error}");
    let error = JoinToken::decode(&text[..60]).unwrap_err().to_string();
    assert_eq!(error, "the join token is cut off or mistyped; copy it again as a whole");
}

/// Our PEM is what a PEM reader reads.
#[test]
fn pem() {
    use rustls::pki_types::pem::PemObject;
    let issued = Authority::make(CLUSTER, NOW_US).unwrap();
    let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    assert_eq!(certificate_pem(&der), issued.certificate);
}

/// Tokens and names of any text (`crate::fuzz`).
#[test]
fn fuzz_names() {
    let token = JoinToken::new(CLUSTER, Fingerprint([7; 32])).unwrap().encode();
    Target::new("tls::tests::fuzz_names", [token], |bytes| JoinToken::decode(std::str::from_utf8(bytes).ok()?).ok())
        .encode(|token| token.encode().into_bytes())
        .words(&["ringlog-join-", "=", "-", "_", " ", "\n"])
        .run();
    let names = [1, u64::MAX].map(|node| NodeName { node: NodeId(node), cluster: CLUSTER.into() }.to_string());
    Target::new("tls::tests::fuzz_names", names, |bytes| NodeName::parse(std::str::from_utf8(bytes).ok()?))
        .encode(|name| name.to_string().into_bytes())
        .words(&["node-", ".ringlog", ".", "+1", "01"])
        .run();
}

/// Certificates and requests of any bytes (`crate::fuzz`), in DER, behind their base64: what is accepted as a certificate of
/// this cluster is the one that was issued, and what is signed is a request.
#[test]
fn fuzz_certificates() {
    let authority = authority(CLUSTER);
    let issued = authority.issue(NodeId(7), NODE_VALIDITY, NOW_US).unwrap();
    let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
    Target::new("tls::tests::fuzz_certificates", [der.to_vec()], |bytes| {
        let certificate = certificate_pem(&CertificateDer::from(bytes.to_vec()));
        let changed = Issued { certificate, key: issued.key.clone() };
        load(&authority, &changed, NOW_US).ok().map(|credentials| {
            assert_eq!(bytes[..], der[..], "another certificate passes for the issued one");
            credentials.node()
        })
    })
    .memory(1 << 20)
    .run();
    let request = Request::new().unwrap();
    let request = der_of(&request.request);
    Target::new("tls::tests::fuzz_certificates", [request], |bytes| {
        let text =
            certificate_pem(&CertificateDer::from(bytes.to_vec())).replace(" CERTIFICATE", " CERTIFICATE REQUEST");
        authority.sign_request(&text, NodeId(3), NODE_VALIDITY, NOW_US).ok().map(|_| ())
    })
    .memory(1 << 20)
    .run();
}

/// A request's DER, out of its PEM.
fn der_of(pem: &str) -> Vec<u8> {
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::Engine::decode(&STANDARD, base64).unwrap()
}
