//! What people ask of the cluster: tokens, drains, removals, rebalancing, leadership. Each is a command to the catalog, or a
//! request to a shard's leader; what takes long goes on by itself afterwards (`lead`, `duties`), whoever dies meanwhile.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{Control, ControlError, NOT_LEADER, join::NewToken, propose::control_frame, propose::reply_of};
use crate::{
    catalog::{AddJoinToken, Catalog, NodeState, SetNodeState},
    env::{self, Env, net::Priority},
    ids::{NodeId, ShardNumber, ShardUid},
    limits,
    peer::{Destination, PeerError},
    proto::ringlog::state::v1::{
        self as state, JoinToken, MoveLeader, catalog_command::Command, control_reply, control_request,
    },
    proto::ringlog::v1::ShardMove,
    reactor::{
        ReactorError,
        mailbox::{AdminAnswer, AdminCall, ClusterMembers, Request},
        topics::ShardPlace,
    },
    shard::ShardError,
};

/// How long another node has to answer that is asked for a transfer of leadership: longer than it tries, so that its answer says
/// what has become of it.
const TRANSFER_MAX: Duration = Duration::from_secs(7);
const _: () = assert!(TRANSFER_MAX.as_millis() >= limits::LEADER_WAIT.as_millis() + 2_000);

/// How long a token can be used unless somebody says otherwise.
const TOKEN_VALID: Duration = Duration::from_secs(86_400);

/// How often a dead node that is being removed is looked at.
const REMOVE_LOOK: Duration = Duration::from_millis(250);

/// How often a transfer is tried at the next replica.
const TRANSFER_ROUNDS: usize = 4;

/// A token without a limit of uses.
const USES_UNLIMITED: u32 = u32::MAX;

impl<E: Env> Control<E> {
    /// Does what a person asks.
    pub(super) async fn admin(&self, call: AdminCall) -> Result<AdminAnswer, ControlError> {
        match call {
            AdminCall::CreateJoinToken { valid_s, uses } => self.create_token(valid_s, uses).await,
            AdminCall::DrainNode { node, undo: true, force: _ } => self.end_drain(node).await,
            AdminCall::DrainNode { node, undo: false, force } => self.drain(node, !force).await,
            AdminCall::RemoveNode { node, dead } => self.remove_node(node, dead).await,
            AdminCall::Rebalance { dry_run } => self.rebalance(dry_run).await,
            AdminCall::TransferLeader { topic, shard, to } => {
                self.transfer(&topic, shard, to).await.map(AdminAnswer::Leader)
            }
            AdminCall::Members => Ok(AdminAnswer::Members(self.cluster_members())),
        }
    }

    /// Who belongs to the cluster, as this node's catalog has it.
    fn cluster_members(&self) -> ClusterMembers {
        let nodes: Vec<_> = self.inner.catalog.with_machine(|catalog| catalog.nodes().cloned().collect());
        ClusterMembers {
            nodes: nodes.iter().map(|node| node.to_entry()).collect(),
            catalog_leader: self.heard_leader(),
            catalog_voters: self.inner.catalog.members().voters.into_iter().collect(),
        }
    }

    /// The catalog's leader, if it is heard, and, if it is this node, hears most of the voters.
    fn heard_leader(&self) -> Option<NodeId> {
        let liveness = &self.inner.reactor.node().liveness;
        let is_heard = |node: NodeId| node == self.inner.me || liveness.is_alive(node);
        let leader = self.inner.catalog.leader().0.filter(|leader| is_heard(*leader))?;
        let members = self.inner.catalog.members();
        Some(leader).filter(|leader| *leader != self.inner.me || members.has_majority(is_heard))
    }

    async fn create_token(&self, valid_s: u32, uses: u32) -> Result<AdminAnswer, ControlError> {
        let valid = if valid_s == 0 { TOKEN_VALID } else { Duration::from_secs(valid_s.into()) };
        let NewToken { token: shown, secret_hash } =
            (self.inner.trust.new_token)().map_err(ControlError::Precondition)?;
        let expires_us = E::wall_us().saturating_add(i64::try_from(valid.as_micros()).unwrap_or(i64::MAX));
        let uses_left = if uses == 0 { USES_UNLIMITED } else { uses };
        let token = Some(JoinToken { secret_hash: secret_hash.into(), expires_us, uses_left });
        self.propose(Command::AddJoinToken(AddJoinToken { token, now_us: E::wall_us() })).await?;
        Ok(AdminAnswer::JoinToken { token: shown, expires_us })
    }

    async fn drain(&self, node: NodeId, keep_replicas: bool) -> Result<AdminAnswer, ControlError> {
        self.propose_state(node, NodeState::Draining, keep_replicas).await?;
        tracing::info!(node = node.0, "an operator has a node drained");
        Ok(AdminAnswer::Draining { replicas: self.replicas_on(node) })
    }

    async fn end_drain(&self, node: NodeId) -> Result<AdminAnswer, ControlError> {
        self.set_state(node, NodeState::Active).await?;
        tracing::info!(node = node.0, "an operator takes a drain back");
        Ok(AdminAnswer::Draining { replicas: self.replicas_on(node) })
    }

    async fn remove_node(&self, node: NodeId, dead: bool) -> Result<AdminAnswer, ControlError> {
        self.catch_up().await?;
        let replicas = self.replicas_on(node);
        if replicas > 0 && !dead {
            return Err(ControlError::Precondition(format!(
                "node {node} holds {replicas} replica(s): move them away first with `ringlog cluster drain {node}`, or, if \
                 the node is lost for good, have them made anew with `ringlog cluster remove {node} --dead`"
            )));
        }
        if replicas > 0 {
            if !self.dead().contains(&node) {
                return Err(ControlError::Precondition(format!(
                    "node {node} is alive: drain it with `ringlog cluster drain {node}`, or stop it first"
                )));
            }
            self.set_state(node, NodeState::Draining).await?;
            env::spawn::<E>(self.clone().remove_when_empty(node));
            return Ok(AdminAnswer::Removed { replicas: self.replicas_on(node) });
        }
        self.set_state(node, NodeState::Removed).await?;
        tracing::info!(node = node.0, "node removed from the cluster");
        Ok(AdminAnswer::Removed { replicas: 0 })
    }

    /// Removes a dead node when its replicas are elsewhere. If this node dies before, the command is given again.
    async fn remove_when_empty(self, node: NodeId) {
        loop {
            env::sleep::<E>(REMOVE_LOOK).await;
            let state = self.inner.catalog.with_machine(|catalog| catalog.node(node).map(|node| node.state));
            if state != Some(NodeState::Draining) || self.inner.closing.get() || !self.dead().contains(&node) {
                return;
            }
            if self.replicas_on(node) > 0 {
                continue;
            }
            match self.set_state(node, NodeState::Removed).await {
                Ok(()) => {
                    tracing::info!(node = node.0, "dead node removed from the cluster");
                    return;
                }
                Err(error) => {
                    tracing::warn!(node = node.0, %error, "a dead node was not removed yet; it is tried again")
                }
            }
        }
    }

    async fn set_state(&self, node: NodeId, state: NodeState) -> Result<(), ControlError> {
        self.propose_state(node, state, false).await
    }

    async fn propose_state(&self, node: NodeId, state: NodeState, keep_replicas: bool) -> Result<(), ControlError> {
        let state = state::NodeState::from(state) as i32;
        self.propose(Command::SetNodeState(SetNodeState { node_id: node.0, state, keep_replicas })).await?;
        Ok(())
    }

    fn replicas_on(&self, node: NodeId) -> u32 {
        let replicas = self.inner.catalog.with_machine(|catalog| catalog.replicas_on(node));
        u32::try_from(replicas).unwrap_or(u32::MAX)
    }

    async fn rebalance(&self, dry_run: bool) -> Result<AdminAnswer, ControlError> {
        self.catch_up().await?;
        let commands = self.inner.catalog.with_machine(Catalog::plan_rebalance);
        let mut moves = Vec::new();
        for command in commands {
            let described = self.inner.catalog.with_machine(|catalog| describe(catalog, &command));
            if !dry_run && let Err(error) = self.propose(command).await {
                return Err(after_moves(moves.len(), error));
            }
            moves.extend(described);
        }
        Ok(AdminAnswer::Moves(moves))
    }

    /// Asks the shard's leader, wherever it is, to let go.
    async fn transfer(&self, topic: &str, shard: u32, to: Option<NodeId>) -> Result<NodeId, ControlError> {
        self.catch_up().await?;
        let (place, replicas) = self.place(topic, shard)?;
        if let Some(to) = to
            && !replicas.contains(&to)
        {
            let held: Vec<_> = replicas.iter().map(|node| node.0).collect();
            return Err(ControlError::Precondition(format!(
                "node {to} holds no replica of shard {shard} of topic {topic:?}; nodes {held:?} do"
            )));
        }
        let mut candidates = replicas.clone();
        let mut last = "no replica could be asked".to_owned();
        let mut maybe = false;
        for _ in 0..TRANSFER_ROUNDS {
            for node in std::mem::replace(&mut candidates, replicas.clone()) {
                match self.ask_to_move(node, place, to).await {
                    Ok(leader) => return Ok(leader),
                    Err(ControlError::NoLeader { cause, maybe_written }) => {
                        last = cause;
                        maybe |= maybe_written;
                    }
                    Err(error) => return Err(after_an_answer(maybe, error)),
                }
            }
            env::sleep::<E>(limits::RETRY_AFTER).await;
        }
        Err(ControlError::NoLeader { cause: last, maybe_written: maybe })
    }

    async fn ask_to_move(&self, node: NodeId, place: ShardPlace, to: Option<NodeId>) -> Result<NodeId, ControlError> {
        let request = control_request::Request::MoveLeader(MoveLeader {
            shard_uid: place.uid.0,
            to_node_id: to.map_or(0, |to| to.0),
        });
        let again = |cause, maybe_written| ControlError::NoLeader { cause, maybe_written };
        if node == self.inner.me {
            return self.move_here(place, to).await;
        }
        let destination = Destination { node, slot: place.slot };
        let peers = self.inner.reactor.peers();
        let answer = peers.call(destination, control_frame(request), Priority::Normal, TRANSFER_MAX).await;
        let answer =
            answer.map_err(|error| again(error.to_string(), !matches!(error, PeerError::Unreachable { .. })))?;
        let reply = reply_of(&answer).map_err(|cause| again(cause, true))?;
        match reply {
            // Who it is without a wish is known when it has won.
            control_reply::Reply::Done(_) => Ok(to.unwrap_or(NodeId(0))),
            control_reply::Reply::Refused(refused) if refused.reason == NOT_LEADER => {
                Err(again(refused.message, !refused.definite))
            }
            // In its own words: nobody else can do it.
            control_reply::Reply::Refused(refused) => {
                Err(ReactorError::from(ShardError::Elsewhere(Box::new(refused))).into())
            }
            other => Err(again(format!("node {node} gave another answer: {other:?}"), true)),
        }
    }

    /// The same, if a reactor of this node leads.
    async fn move_here(&self, place: ShardPlace, to: Option<NodeId>) -> Result<NodeId, ControlError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::MoveLeader { uid: place.uid, to, reply };
        let moved = match self.inner.reactor.node().send(place.reactor, request) {
            Ok(()) => answer.await.unwrap_or(Err(ReactorError::Stopped { maybe_written: true })),
            // One that could not be asked says nothing of the others.
            Err(error) => Err(error),
        };
        moved.map(|()| to.unwrap_or(NodeId(0))).map_err(not_moved)
    }

    fn place(&self, topic: &str, shard: u32) -> Result<(ShardPlace, Vec<NodeId>), ControlError> {
        let view = self.inner.catalog.with_machine(|catalog| catalog.topic(topic));
        let view = view.ok_or_else(|| ControlError::NotFound(format!("there is no topic {topic:?}")))?;
        let placed = self.placed(view);
        let found = placed.shards.get(shard as usize).zip(placed.view.replicas.get(shard as usize));
        let (place, replicas) = found.ok_or_else(|| {
            let count = placed.shards.len();
            ControlError::NotFound(format!(
                "topic {topic:?} has {count} shard(s), numbered from 0; there is no shard {shard}"
            ))
        })?;
        Ok((*place, replicas.nodes.clone()))
    }
}

/// Why a replica of this node has not let go of its leadership: in its own words if it leads, and nobody else can do it; else the next
/// one is asked.
fn not_moved(error: ReactorError) -> ControlError {
    match error {
        ReactorError::Shard(ShardError::NotTransferred(_)) => error.into(),
        error => ControlError::NoLeader { cause: error.to_string(), maybe_written: error.maybe_written() },
    }
}

/// What ended a transfer; `maybe`: one that was asked before may have done it, although no answer came.
fn after_an_answer(maybe: bool, error: ControlError) -> ControlError {
    if !maybe {
        return error;
    }
    let message =
        format!("{error}; but a replica that was asked before has not answered, and leadership may have moved by that");
    ControlError::RefusedThere { message, definite: false, retry: true }
}

/// What ended a rebalancing when this many of its moves were ordered.
fn after_moves(ordered: usize, error: ControlError) -> ControlError {
    if ordered == 0 {
        return error;
    }
    let message = format!("{ordered} move(s) are ordered, and the next one is not: {error}");
    ControlError::RefusedThere { message, definite: false, retry: true }
}

/// What a command of a rebalancing moves, for people.
fn describe(catalog: &Catalog, command: &Command) -> Option<ShardMove> {
    let (uid, target) = match command {
        Command::MoveShard(state::MoveShard { shard_uid, target_node_ids }) => (*shard_uid, target_node_ids.clone()),
        Command::PreferLeader(state::PreferLeader { shard_uid, node_id }) => (*shard_uid, vec![*node_id]),
        _ => return None,
    };
    let (topic, ShardNumber(shard)) = catalog.shard(ShardUid(uid))?;
    let from = topic.replicas[shard as usize].nodes.clone();
    let mut to: Vec<NodeId> = target.into_iter().map(NodeId).collect();
    if matches!(command, Command::PreferLeader(_)) {
        to.extend(from.iter().filter(|node| Some(*node) != to.first()).copied().collect::<Vec<_>>());
    }
    let ids = |nodes: Vec<NodeId>| nodes.into_iter().map(|node| node.0).collect();
    Some(ShardMove { topic: topic.name.to_string(), shard, from_node_ids: ids(from), to_node_ids: ids(to) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{frontend::status::CallError, raft::TransferError};

    /// A leader that leads on says nothing of an answer that was lost before, and a replica that could not be asked nothing of the others.
    #[test]
    fn a_transfer_after_a_lost_answer() {
        let leads_on = || {
            let cause = "nobody can take over".to_owned();
            not_moved(ShardError::from(TransferError::NoSuccessor { cause }).into())
        };
        assert!(matches!(leads_on(), ControlError::Shards(_)), "nobody else is asked");
        assert!(CallError::from(after_an_answer(false, leads_on())).definite);
        let error = CallError::from(after_an_answer(true, leads_on()));
        assert!(!error.definite && error.message.contains("nobody can take over"), "{error}");
        for (error, expected) in [
            (ReactorError::MailboxFull, false),
            (ReactorError::Gone, false),
            (ReactorError::Stopped { maybe_written: true }, true),
            (ShardError::NotLeader { leader: None }.into(), false),
            (ShardError::Deposed { leader: None }.into(), true),
            (ShardError::Lost { cause: "x".into() }.into(), true),
        ] {
            let ControlError::NoLeader { maybe_written, .. } = not_moved(error.clone()) else { panic!("{error}") };
            assert_eq!(maybe_written, expected, "{error}");
        }
    }
}
