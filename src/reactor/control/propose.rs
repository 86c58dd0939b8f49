//! Commands on their way to the catalog: proposed here if this node leads it, else sent to the node that does, again and
//! again until one takes them or time is up.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use super::{COMMAND_MAX, Control, ControlError, join::NO_CA_KEY};
use crate::{
    catalog::{CatalogAnswer, CatalogCommand},
    env::{self, Env, net::Priority},
    ids::{Index, NodeId},
    peer::{
        Destination, PeerError,
        frame::{Frame, FrameKind, Received},
    },
    proto::ringlog::state::v1::{
        self as state, ControlReply, ControlRequest, catalog_command::Command, control_reply, control_request,
    },
    raft::{GroupError, Proposal},
};

/// Pause between two looks for a leader.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A committed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Its entry in the catalog's log.
    pub index: Index,
    /// The new node, for `AddNode`.
    pub node: Option<NodeId>,
}

/// What one try came to.
enum Tried {
    Done(Proposed),
    Failed(ControlError),
    /// Nothing was written: worth another try.
    Again(String),
}

impl<E: Env> Control<E> {
    /// Has a command committed, wherever the catalog's leader is; when it returns, this node's replica has applied it.
    ///
    /// # Errors
    /// `Refused` or `RefusedThere`: nothing was changed. `NoLeader`, `Catalog`: see there.
    pub async fn propose(&self, command: Command) -> Result<Proposed, ControlError> {
        let started_us = E::monotonic_us();
        loop {
            let tried = if self.inner.catalog.leads() {
                self.propose_here(command.clone()).await
            } else {
                match self.inner.catalog.leader().0 {
                    Some(leader) if leader != self.inner.me => self.propose_at(leader, command.clone()).await,
                    _ => Tried::Again("there is none just now".to_owned()),
                }
            };
            let cause = match tried {
                Tried::Done(proposed) => {
                    self.applied(proposed.index).await?;
                    return Ok(proposed);
                }
                Tried::Failed(error) => return Err(error),
                Tried::Again(cause) => cause,
            };
            let waited = Duration::from_micros(E::monotonic_us().saturating_sub(started_us));
            if waited > COMMAND_MAX || self.inner.closing.get() {
                return Err(ControlError::NoLeader { cause, maybe_written: false });
            }
            env::sleep::<E>(LOOK_INTERVAL).await;
        }
    }

    /// As `propose`, but only if this node leads the catalog: for other nodes' commands.
    ///
    /// # Errors
    /// `NoLeader` when it does not.
    pub async fn propose_if_leader(&self, command: Command) -> Result<Proposed, ControlError> {
        match self.propose_here(command).await {
            Tried::Done(proposed) => Ok(proposed),
            Tried::Failed(error) => Err(error),
            Tried::Again(cause) => Err(ControlError::NoLeader { cause, maybe_written: false }),
        }
    }

    /// Answers what another node asks of the catalog.
    pub(super) async fn answer(&self, from: Option<NodeId>, request: control_request::Request) -> control_reply::Reply {
        let answered = match request {
            control_request::Request::Propose(CatalogCommand { command: Some(command) }) if from.is_some() => {
                let proposed = self.propose_if_leader(command).await;
                proposed.map(|Proposed { index, node }| {
                    let node_id = node.map_or(0, |node| node.0);
                    control_reply::Reply::Proposed(state::Proposed { index: index.0, node_id })
                })
            }
            control_request::Request::Join(request) => {
                self.join(request, from.is_some()).await.map(control_reply::Reply::Join)
            }
            other => Err(ControlError::Precondition(format!("this node does not answer {other:?} here"))),
        };
        answered.unwrap_or_else(|error| refusal(&error))
    }

    async fn propose_here(&self, command: Command) -> Tried {
        if !self.inner.catalog.leads() {
            return Tried::Again("this node does not lead it".to_owned());
        }
        // Refused without an entry: a flood of wrong requests must not fill the catalog's log.
        if let Err(error) = self.inner.catalog.with_machine(|catalog| catalog.check(&command)) {
            return Tried::Failed(error.into());
        }
        let command = CatalogCommand { command: Some(command) }.encode_to_vec();
        let proposal = Proposal::command(&command, self.inner.catalog.stamp_us());
        match self.inner.catalog.propose(proposal).await {
            Ok(applied) => match applied.answer {
                Ok(answer) => {
                    let node = match answer {
                        CatalogAnswer::Node(node) => Some(node.id),
                        _ => None,
                    };
                    Tried::Done(Proposed { index: applied.header.id.index, node })
                }
                Err(error) => Tried::Failed(error.into()),
            },
            Err(GroupError::NotLeader { .. }) => Tried::Again("its leader has just changed".to_owned()),
            Err(error) => Tried::Failed(error.into()),
        }
    }

    async fn propose_at(&self, leader: NodeId, command: Command) -> Tried {
        let checked = command.clone();
        let request = control_request::Request::Propose(CatalogCommand { command: Some(command) });
        let lost = |cause: String| Tried::Failed(ControlError::NoLeader { cause, maybe_written: true });
        match self.request(leader, request).await {
            Ok(control_reply::Reply::Proposed(state::Proposed { index, node_id })) => {
                let node = (node_id != 0).then_some(NodeId(node_id));
                Tried::Done(Proposed { index: Index(index), node })
            }
            Ok(control_reply::Reply::Refused(refused)) => {
                if refused.definite && refused.reason == NOT_LEADER {
                    return Tried::Again(refused.message);
                }
                if refused.reason == CATALOG_REFUSED
                    && self.inner.catalog.linearize(COMMAND_MAX).await.is_ok()
                    && let Err(error) = self.inner.catalog.with_machine(|catalog| catalog.check(&checked))
                {
                    // The same refusal, with what it says about.
                    return Tried::Failed(error.into());
                }
                Tried::Failed(refused_there(refused))
            }
            Ok(other) => lost(format!("node {leader} gave another answer: {other:?}")),
            Err(PeerError::Unreachable { cause, .. }) => Tried::Again(cause),
            Err(error @ (PeerError::Lost { .. } | PeerError::Timeout { .. })) => lost(error.to_string()),
        }
    }

    /// Asks reactor 0 of another node.
    ///
    /// # Errors
    /// `PeerError`; an answer that cannot be read is `Lost`.
    pub async fn request(
        &self,
        node: NodeId,
        request: control_request::Request,
    ) -> Result<control_reply::Reply, PeerError> {
        let to = Destination { node, slot: 0 };
        let answer = self.inner.reactor.peers().call(to, control_frame(request), Priority::Normal, COMMAND_MAX).await?;
        reply_of(&answer).map_err(|cause| PeerError::Lost { node, cause })
    }

    /// Waits until this node's replica of the catalog has applied an entry.
    async fn applied(&self, index: Index) -> Result<(), ControlError> {
        let started_us = E::monotonic_us();
        while self.inner.catalog.applied_end() <= index {
            let waited = Duration::from_micros(E::monotonic_us().saturating_sub(started_us));
            if waited > COMMAND_MAX || self.fault().is_some() || self.inner.closing.get() {
                let cause = "the command is committed, but this node does not hear of it".to_owned();
                return Err(ControlError::NoLeader { cause, maybe_written: true });
            }
            env::sleep::<E>(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

/// Reason of a refusal by the catalog itself.
const CATALOG_REFUSED: &str = "CATALOG_REFUSED";

/// Reason of a refusal that another try at the leader cures.
pub const NOT_LEADER: &str = "NOT_LEADER";

/// A control request as a frame.
pub fn control_frame(request: control_request::Request) -> Frame {
    let envelope = ControlRequest { request: Some(request) }.encode_to_vec();
    Frame { kind: FrameKind::Control, envelope: Bytes::from(envelope), parts: Vec::new() }
}

/// The reply in a frame.
///
/// # Errors
/// In words, when there is none.
pub fn reply_of(frame: &Received) -> Result<control_reply::Reply, String> {
    match frame.kind {
        FrameKind::Control => ControlReply::decode(frame.envelope.clone())
            .map_err(|error| error.to_string())?
            .reply
            .ok_or_else(|| "an empty answer: the node may run another version of ringlog".to_owned()),
        FrameKind::Refused => state::PeerRefusal::decode(frame.envelope.clone())
            .map(control_reply::Reply::Refused)
            .map_err(|error| error.to_string()),
        other => Err(format!("an answer of kind {other:?}")),
    }
}

/// Another node's refusal as ours.
pub fn refused_there(refused: state::PeerRefusal) -> ControlError {
    let state::PeerRefusal { message, definite, retry_after_ms, .. } = refused;
    ControlError::RefusedThere { message, definite, retry: retry_after_ms > 0 }
}

/// Our refusal for another node.
pub fn refusal(error: &ControlError) -> control_reply::Reply {
    let message = error.to_string();
    let (code, reason, definite, retry) = match error {
        ControlError::Refused(_) => (CODE_FAILED_PRECONDITION, CATALOG_REFUSED.to_owned(), true, false),
        ControlError::RefusedThere { definite, retry: true, .. } => {
            (CODE_UNAVAILABLE, NOT_LEADER.to_owned(), *definite, true)
        }
        ControlError::RefusedThere { definite, retry: false, .. } => {
            (CODE_FAILED_PRECONDITION, CATALOG_REFUSED.to_owned(), *definite, false)
        }
        ControlError::NoCaKey => (CODE_FAILED_PRECONDITION, NO_CA_KEY.to_owned(), true, false),
        ControlError::Busy => (CODE_RESOURCE_EXHAUSTED, "CATALOG_BUSY".to_owned(), true, true),
        ControlError::NoLeader { maybe_written, .. } => (CODE_UNAVAILABLE, NOT_LEADER.to_owned(), !maybe_written, true),
        ControlError::Late => (CODE_UNAVAILABLE, "CATALOG_LATE".to_owned(), false, true),
        ControlError::Catalog(error) => {
            let maybe = match error {
                GroupError::Stopped { maybe_written, .. } => *maybe_written,
                GroupError::Deposed { .. } => true,
                GroupError::NotLeader { .. }
                | GroupError::Full(_)
                | GroupError::Damaged(_)
                | GroupError::Starved { .. } => false,
            };
            (CODE_UNAVAILABLE, "CATALOG_FAILED".to_owned(), !maybe, false)
        }
        ControlError::Shards(_) => (CODE_UNAVAILABLE, "SHARD_NOT_OPEN".to_owned(), false, false),
        ControlError::Precondition(_) => (CODE_FAILED_PRECONDITION, "PRECONDITION".to_owned(), true, false),
        ControlError::NotFound(_) => (CODE_NOT_FOUND, "NOT_FOUND".to_owned(), true, false),
    };
    let retry_after_ms = if retry { crate::limits::RETRY_AFTER.as_millis() as u64 } else { 0 };
    control_reply::Reply::Refused(state::PeerRefusal {
        code,
        reason,
        message,
        definite,
        leader_node_id: 0,
        retry_after_ms,
    })
}

const CODE_NOT_FOUND: i32 = 5;
const CODE_RESOURCE_EXHAUSTED: i32 = 8;
const CODE_FAILED_PRECONDITION: i32 = 9;
const CODE_UNAVAILABLE: i32 = 14;
