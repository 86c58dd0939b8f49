//! Lets new nodes in: the catalog gives them their id, a node that has the CA's key signs their certificate, and the
//! answer says who the members are.

use std::{fmt, rc::Rc};

use super::{Control, ControlError, propose::refused_there};
use crate::{
    catalog::{AddNode, Catalog, NodeState},
    env::Env,
    ids::NodeId,
    proto::ringlog::state::v1::{
        ClusterNode, JoinReply, JoinRequest, catalog_command::Command, control_reply, control_request,
    },
};

/// A signed certificate and the one of the CA, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The node's.
    pub certificate: String,
    /// The CA's.
    pub ca_certificate: String,
}

/// A new join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// What is given to `ringlog serve --join-token`; a secret.
    pub token: String,
    /// SHA-256 of the secret in it.
    pub secret_hash: Vec<u8>,
}

/// What joining needs of the cluster's keys; made by the server, which has them.
#[derive(Clone)]
#[allow(clippy::type_complexity, reason = "named here, once")]
pub struct Trust {
    /// Signs a certificate signing request (PEM) for a node; `None` on a node without the CA's key.
    pub sign: Option<Rc<dyn Fn(&str, NodeId) -> Result<Signed, String>>>,
    /// Makes a token.
    pub new_token: Rc<dyn Fn() -> Result<NewToken, String>>,
    /// SHA-256.
    pub hash: fn(&[u8]) -> Vec<u8>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust(signs: {})", self.sign.is_some())
    }
}

impl<E: Env> Control<E> {
    /// Answers a node that wants to join with a token's secret: it gets an id and a certificate, or has a certificate and claims the
    /// id in it. `passed_on`: another node has the request, and no key to sign with; it is not passed on again.
    ///
    /// # Errors
    /// `Refused`: the token is wrong, expired or used up, or the id is another node's. `Precondition`: no node that can be
    /// reached has the CA's key.
    pub async fn join(&self, request: JoinRequest, passed_on: bool) -> Result<JoinReply, ControlError> {
        let JoinRequest { node, csr, token_secret } = request;
        let node = node.ok_or_else(|| ControlError::Precondition("the request names no node".to_owned()))?;
        // With a certificate of its own it claims the id that is in it; else it gets one, and a certificate.
        let wants_certificate = !csr.is_empty();
        if wants_certificate && self.inner.trust.sign.is_none() {
            if passed_on {
                return Err(ControlError::NoCaKey);
            }
            return self.join_elsewhere(JoinRequest { node: Some(node), csr, token_secret }).await;
        }
        let node = ClusterNode { node_id: if wants_certificate { 0 } else { node.node_id }, ..node };
        let token_secret_hash = (self.inner.trust.hash)(&token_secret);
        let add = AddNode { node: Some(node), token_secret_hash: token_secret_hash.into(), now_us: E::wall_us() };
        let proposed = self.propose(Command::AddNode(add)).await?;
        let id = proposed.node.ok_or_else(|| ControlError::Precondition("the catalog gave no node id".to_owned()))?;
        let signed = match &self.inner.trust.sign {
            Some(sign) if wants_certificate => sign(&csr, id).map_err(ControlError::Precondition)?,
            _ => Signed { certificate: String::new(), ca_certificate: String::new() },
        };
        tracing::info!(node = id.0, "node joins the cluster");
        Ok(JoinReply {
            node_id: id.0,
            cluster_id: self.cluster_id().as_deref().unwrap_or_default().to_owned(),
            certificate: signed.certificate,
            ca_certificate: signed.ca_certificate,
            nodes: self.member_entries(),
        })
    }

    /// Passes a request on to a node that has the CA's key.
    async fn join_elsewhere(&self, request: JoinRequest) -> Result<JoinReply, ControlError> {
        let members = self.inner.catalog.with_machine(Catalog::members);
        let dead = self.dead();
        for node in members.into_iter().filter(|node| *node != self.inner.me && !dead.contains(node)) {
            match self.request(node, control_request::Request::Join(request.clone())).await {
                Ok(control_reply::Reply::Join(reply)) => return Ok(reply),
                Ok(control_reply::Reply::Refused(refused)) if refused.reason == NO_CA_KEY => {}
                Ok(control_reply::Reply::Refused(refused)) => return Err(refused_there(refused)),
                Ok(other) => tracing::warn!(node = node.0, ?other, "another answer to a join"),
                Err(error) => tracing::debug!(node = node.0, %error, "a join could not be passed on"),
            }
        }
        Err(ControlError::NoCaKey)
    }

    /// Whether this node can sign.
    pub fn can_sign(&self) -> bool {
        self.inner.trust.sign.is_some()
    }

    /// The members as a new node is told them.
    pub fn member_entries(&self) -> Vec<ClusterNode> {
        let nodes: Vec<_> = self.inner.catalog.with_machine(|catalog| catalog.nodes().cloned().collect());
        nodes.iter().filter(|node| node.state != NodeState::Removed).map(|node| node.to_entry()).collect()
    }
}

/// Reason of a refusal by a node without the CA's key.
pub const NO_CA_KEY: &str = "NO_CA_KEY";
