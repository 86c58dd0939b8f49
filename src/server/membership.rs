//! Who this node is, before any of its threads run: read from the data directory, begun as a new cluster, or learned by
//! joining one. Everything here blocks.
//!
//! A directory's life, each step durable before the next, so that a crash in between is only a reason to start again:
//!
//! ```text
//! new cluster   tls/{ca,node}.{crt,key} -> identity
//! join          tls/node.key, joining (incarnation, request) -> [the catalog gives the id] -> tls/{ca,node}.crt, members -> identity
//! ```
//!
//! A repeated join with the same incarnation gets the same id. Certificates that were made elsewhere (`--peer-cert`) stay where
//! they are; the node is who they say.

use std::{
    net::UdpSocket,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use prost::Message;

use crate::{
    config::{Config, host_and_port},
    env::{
        self, Env,
        net::{Endpoint, Net},
        quic::{JoinError, QuicNet, QuicOptions, join_call},
        real::RealEnv,
        runtime,
    },
    ids::{Index, NodeId},
    proto::ringlog::state::v1::{
        ClusterNode, ControlReply, ControlRequest, JoinReply, JoinRequest, control_reply, control_request,
    },
    reactor::{
        control::{
            join::{NewToken, Signed, Trust},
            remembered::{self, MEMBERS_FILE},
        },
        node::{Advertised, Identity},
    },
    server::{
        boot::FOUNDER,
        directory::{self, Mode},
        identity,
    },
    tls::{Authority, CredentialFiles, Credentials, JoinToken, NODE_VALIDITY, Request},
};

/// How long a node tries to join before it gives up.
const JOIN_MAX: Duration = Duration::from_secs(120);

/// How long one node has to answer: it may have to wait for a leader of the catalog.
const ASK_MAX: Duration = Duration::from_secs(15);

/// Pause between two rounds over the addresses given.
const JOIN_INTERVAL: Duration = Duration::from_secs(1);

/// How long somebody at this node's old address has to answer.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// What a node knows of itself when its threads start.
#[derive(Debug)]
pub struct Membership {
    /// Who it is.
    pub identity: Identity,
    /// With which it proves that.
    pub credentials: Arc<Credentials>,
    /// The members, as the answer to its joining said, or as it remembers them. Its catalog knows better, in time.
    pub members: Vec<ClusterNode>,
}

/// Where the keys of a node are.
struct Keys {
    ca: PathBuf,
    ca_key: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    /// They came from elsewhere.
    given: bool,
}

impl Keys {
    fn of(config: &Config) -> Result<Keys, String> {
        let own = config.data.join("tls");
        let given = [&config.peer_ca, &config.peer_cert, &config.peer_key];
        let count = given.iter().filter(|path| !path.as_os_str().is_empty()).count();
        if count != 0 && count != given.len() {
            return Err("--peer-ca, --peer-cert and --peer-key go together: give all three, or none".to_owned());
        }
        if count == 0 {
            let [ca, ca_key, certificate, key] =
                ["ca.crt", "ca.key", "node.crt", "node.key"].map(|name| own.join(name));
            return Ok(Keys { ca, ca_key, certificate, key, given: false });
        }
        let [ca, certificate, key] = given.map(PathBuf::clone);
        let ca_key = ca.with_file_name("ca.key");
        Ok(Keys { ca, ca_key, certificate, key, given: true })
    }

    fn load(&self) -> Result<Arc<Credentials>, String> {
        let files = CredentialFiles {
            authority: self.ca.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
        };
        Credentials::load(&files, RealEnv::wall_us()).map(Arc::new).map_err(|error| error.to_string())
    }

    /// The CA, if its key is here.
    fn authority(&self) -> Result<Option<Authority>, String> {
        let (Some(certificate), Some(key)) = (directory::read(&self.ca)?, directory::read(&self.ca_key)?) else {
            return Ok(None);
        };
        let text = |path: &Path, bytes: Vec<u8>| {
            String::from_utf8(bytes).map_err(|_| format!("{} is not a PEM file", path.display()))
        };
        let authority = Authority::from_pem(&text(&self.ca, certificate)?, &text(&self.ca_key, key)?);
        authority.map(Some).map_err(|error| format!("{}: {error}", self.ca_key.display()))
    }
}

/// Finds out who this node is; makes it somebody if it is new.
///
/// # Errors
/// In one sentence: what is wrong, with what, and what to do.
pub fn establish(config: &Config, advertised: &Advertised, reactors: usize) -> Result<Membership, String> {
    let keys = Keys::of(config)?;
    let membership = match identity::load(&config.data)? {
        Some(identity) => {
            let credentials = keys.load()?;
            credentials.must_be_of(identity.node, &identity.cluster_id).map_err(|error| error.to_string())?;
            refuse_a_copy(config, advertised, &identity, &credentials)?;
            let remembered = directory::read(&config.data.join(MEMBERS_FILE)).unwrap_or_else(|error| {
                tracing::warn!("{error}: it is left aside, as a damaged one");
                None
            });
            let remembered = remembered.and_then(|content| remembered::decode(&content));
            Membership { identity, credentials, members: remembered.map_or_else(Vec::new, |known| known.nodes) }
        }
        None if config.join.is_empty() => begin_cluster(config, &keys)?,
        None => join_cluster(config, advertised, reactors, &keys)?,
    };
    note_address(config, advertised)?;
    Ok(membership)
}

/// A new cluster, of which this is the first node.
fn begin_cluster(config: &Config, keys: &Keys) -> Result<Membership, String> {
    let now_us = RealEnv::wall_us();
    if !keys.given && directory::read(&keys.certificate)?.is_none() {
        let cluster = crate::tls::new_cluster_id().map_err(|error| error.to_string())?;
        let ca = Authority::make(&cluster, now_us).map_err(|error| error.to_string())?;
        let authority = Authority::from_pem(&ca.certificate, &ca.key).map_err(|error| error.to_string())?;
        let node = authority.issue(FOUNDER, NODE_VALIDITY, now_us).map_err(|error| error.to_string())?;
        directory::write(&keys.ca_key, ca.key.as_bytes(), Mode::Private)?;
        directory::write(&keys.ca, ca.certificate.as_bytes(), Mode::Public)?;
        directory::write(&keys.key, node.key.as_bytes(), Mode::Private)?;
        // The last one: with it the set is whole.
        directory::write(&keys.certificate, node.certificate.as_bytes(), Mode::Public)?;
    }
    let credentials = keys.load()?;
    if credentials.node() != FOUNDER {
        return Err(format!(
            "{} is of node {}, but the first node of a new cluster is node {FOUNDER}: to join a cluster give --join and \
             --join-token",
            keys.certificate.display(),
            credentials.node()
        ));
    }
    let identity = Identity {
        cluster_id: credentials.cluster().to_owned(),
        node: FOUNDER,
        incarnation: RealEnv::random_u64().max(1),
    };
    identity::save(&config.data, &identity)?;
    Ok(Membership { identity, credentials, members: Vec::new() })
}

/// Asks the nodes that `--join` names to let this one in.
fn join_cluster(config: &Config, advertised: &Advertised, reactors: usize, keys: &Keys) -> Result<Membership, String> {
    let missing = "a new node joins with a token: make one with `ringlog cluster token` and give it with --join-token";
    if config.join_token.is_empty() {
        return Err(missing.to_owned());
    }
    let token = JoinToken::decode(&config.join_token).map_err(|error| error.to_string())?;
    let given = if keys.given { Some(keys.load()?) } else { None };
    if let Some(credentials) = &given
        && (credentials.fingerprint() != token.authority() || credentials.cluster() != token.cluster())
    {
        return Err(format!(
            "{} is of cluster {}, but the join token is of cluster {}: use those of one cluster",
            keys.certificate.display(),
            credentials.cluster(),
            token.cluster()
        ));
    }
    let (incarnation, csr) = begin_joining(config, keys)?;
    let node = ClusterNode {
        node_id: given.as_ref().map_or(0, |credentials| credentials.node().0),
        peer_host: advertised.peer_host.clone(),
        peer_port: u32::from(advertised.peer_port),
        reactors: u32::try_from(reactors).unwrap_or(1),
        grpc_address: advertised.grpc.clone(),
        http_address: advertised.http.clone(),
        incarnation,
        ..ClusterNode::default()
    };
    let request = JoinRequest { token_secret: token.secret().to_vec().into(), node: Some(node), csr };
    let reply = ask_to_join(config, &token, &request)?;
    if reply.cluster_id != token.cluster() {
        return Err(format!(
            "the node that answered is of cluster {:?}, the token of {:?}",
            reply.cluster_id,
            token.cluster()
        ));
    }
    if !keys.given {
        directory::write(&keys.ca, reply.ca_certificate.as_bytes(), Mode::Public)?;
        directory::write(&keys.certificate, reply.certificate.as_bytes(), Mode::Public)?;
    }
    let credentials = keys.load()?;
    let identity = Identity { cluster_id: reply.cluster_id, node: NodeId(reply.node_id), incarnation };
    credentials.must_be_of(identity.node, &identity.cluster_id).map_err(|error| error.to_string())?;
    // Who is killed before the catalog has come knows whom to ask.
    let members = remembered::encode(Index(0), reply.nodes.clone());
    directory::write(&config.data.join(MEMBERS_FILE), members.as_bytes(), Mode::Public)?;
    identity::save(&config.data, &identity)?;
    directory::remove(&config.data.join("joining"))?;
    Ok(Membership { identity, credentials, members: reply.nodes })
}

/// The incarnation of a new node and its certificate request; the same ones after a crash.
fn begin_joining(config: &Config, keys: &Keys) -> Result<(u64, String), String> {
    let path = config.data.join("joining");
    if let Some(content) = directory::read(&path)? {
        let text = String::from_utf8_lossy(&content);
        let parsed = text.split_once('\n').and_then(|(number, csr)| {
            Some((u64::from_str_radix(number.strip_prefix("incarnation ")?, 16).ok()?, csr.to_owned()))
        });
        return parsed
            .ok_or_else(|| format!("{} is damaged: remove it, and the node joins as another one", path.display()));
    }
    let incarnation = RealEnv::random_u64().max(1);
    let csr = if keys.given {
        String::new()
    } else {
        let request = Request::new().map_err(|error| error.to_string())?;
        directory::write(&keys.key, request.key.as_bytes(), Mode::Private)?;
        request.request
    };
    directory::write(&path, format!("incarnation {incarnation:016x}\n{csr}").as_bytes(), Mode::Public)?;
    Ok((incarnation, csr))
}

/// Asks one address after the other until somebody answers.
fn ask_to_join(config: &Config, token: &JoinToken, request: &JoinRequest) -> Result<JoinReply, String> {
    let request = ControlRequest { request: Some(control_request::Request::Join(request.clone())) }.encode_to_vec();
    let addresses: Vec<(String, u16)> = config.join.iter().map(|text| parse_address(text)).collect::<Result<_, _>>()?;
    let mut waited = Duration::ZERO;
    loop {
        let mut last = String::new();
        for (host, port) in &addresses {
            let asked = runtime::block_on(join_call(host, *port, token, request.clone().into(), ASK_MAX));
            match asked {
                Ok(answer) => match answer_of(&answer.reply)? {
                    Answered::Let(reply) => return Ok(JoinReply { ca_certificate: answer.authority, ..*reply }),
                    Answered::Later(message) => last = format!("{host}:{port}: {message}"),
                },
                Err(JoinError::Unreachable(cause)) => last = cause,
                Err(JoinError::Refused(cause)) => return Err(cause),
            }
        }
        if waited >= JOIN_MAX {
            return Err(format!("the cluster could not be joined within {JOIN_MAX:?}: {last}"));
        }
        tracing::warn!(cause = %last, "the cluster could not be joined yet; trying again");
        runtime::block_on(env::sleep::<RealEnv>(JOIN_INTERVAL));
        waited += JOIN_INTERVAL;
    }
}

enum Answered {
    Let(Box<JoinReply>),
    /// Not now.
    Later(String),
}

fn answer_of(bytes: &[u8]) -> Result<Answered, String> {
    match ControlReply::decode(bytes).map(|reply| reply.reply) {
        Ok(Some(control_reply::Reply::Join(reply))) => Ok(Answered::Let(Box::new(reply))),
        Ok(Some(control_reply::Reply::Refused(refused))) if refused.retry_after_ms > 0 => {
            Ok(Answered::Later(refused.message))
        }
        Ok(Some(control_reply::Reply::Refused(refused))) => Err(format!("the cluster refuses: {}", refused.message)),
        Ok(_) | Err(_) => Err("the answer cannot be read: the node may run another version of ringlog".to_owned()),
    }
}

/// `host:port`.
///
/// # Errors
/// In one sentence.
pub fn parse_address(text: &str) -> Result<(String, u16), String> {
    host_and_port(text).ok_or_else(|| {
        format!("--join takes the peer address of a node, host:port (such as 127.0.0.1:7500), not {text:?}")
    })
}

/// A copy of a data directory must not run beside the original: two nodes of one id would both vote.
fn refuse_a_copy(
    config: &Config,
    advertised: &Advertised,
    identity: &Identity,
    credentials: &Arc<Credentials>,
) -> Result<(), String> {
    let Some(content) = directory::read(&address_file(config))? else { return Ok(()) };
    let text = String::from_utf8_lossy(&content).trim().to_owned();
    let Ok((host, port)) = parse_address(&text) else { return Ok(()) };
    if (host.as_str(), port) == (advertised.peer_host.as_str(), advertised.peer_port) {
        return Ok(());
    }
    let old = Endpoint { node: identity.node, host, port };
    if !runtime::block_on(is_running(&old, credentials.clone())) {
        return Ok(());
    }
    Err(format!(
        "{old} is running already: this data directory ({}) is a copy of that node's; stop that one, or begin with an \
         empty directory and --join as a new node",
        config.data.display()
    ))
}

/// Whether somebody shows this node's own certificate there.
async fn is_running(there: &Endpoint, credentials: Arc<Credentials>) -> bool {
    let socket = UdpSocket::bind(if there.host.contains(':') { "[::]:0" } else { "0.0.0.0:0" });
    let Ok(socket) = socket else { return false };
    let options = QuicOptions { dial: PROBE_MAX, ..QuicOptions::default() };
    let Ok(net) = QuicNet::new(socket, credentials, Arc::new(|_| Ok(())), options) else { return false };
    let is_there = net.is_there(there).await;
    net.close().await;
    is_there
}

fn address_file(config: &Config) -> PathBuf {
    config.data.join("address")
}

/// Where this node was last, for `refuse_a_copy`.
fn note_address(config: &Config, advertised: &Advertised) -> Result<(), String> {
    let text = format!("{}:{}\n", advertised.peer_host, advertised.peer_port);
    if directory::read(&address_file(config))?.as_deref() == Some(text.as_bytes()) {
        return Ok(());
    }
    directory::write(&address_file(config), text.as_bytes(), Mode::Public)
}

/// What joining needs of this node's keys.
///
/// # Errors
/// In one sentence, when the CA's key is here and cannot be used.
pub fn trust(config: &Config, membership: &Membership) -> Result<Trust, String> {
    let authority = Keys::of(config)?.authority()?.map(Rc::new);
    let sign = authority.map(|authority| {
        let sign = move |csr: &str, node: NodeId| {
            let certificate = authority.sign_request(csr, node, NODE_VALIDITY, RealEnv::wall_us());
            let certificate = certificate.map_err(|error| error.to_string())?;
            Ok(Signed { certificate, ca_certificate: authority.certificate() })
        };
        Rc::new(sign) as Rc<dyn Fn(&str, NodeId) -> Result<Signed, String>>
    });
    let (cluster, fingerprint) = (membership.identity.cluster_id.clone(), membership.credentials.fingerprint());
    let new_token = move || {
        let token = JoinToken::new(&cluster, fingerprint).map_err(|error| error.to_string())?;
        Ok(NewToken { token: token.encode(), secret_hash: token.secret_hash().to_vec() })
    };
    Ok(Trust { sign, new_token: Rc::new(new_token), hash: |secret| JoinToken::hash_of(secret).to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses with names, both families, and what is none.
    #[test]
    fn addresses() {
        assert_eq!(parse_address("h:1"), Ok(("h".to_owned(), 1)));
        assert_eq!(parse_address("[::1]:7500"), Ok(("::1".to_owned(), 7500)));
        for wrong in ["", "h", ":1", "h:", "h:x", "h:70000"] {
            assert!(parse_address(wrong).unwrap_err().contains("--join"), "{wrong}");
        }
    }

    /// Addresses of any text (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let corpus = ["h:1", "[::1]:7500", "10.0.0.1:7400"];
        let decode = |bytes: &[u8]| parse_address(std::str::from_utf8(bytes).ok()?).ok();
        crate::fuzz::Target::new("server::membership::tests::fuzz", corpus, decode)
            .words(&["[", "]", ":", "65536"])
            .run();
    }
}
