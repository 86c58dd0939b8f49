//! Asking other nodes, and being asked: trims, the numbers of replicas, who leads.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use futures_util::future::join_all;
use openraft::AsyncRuntime;
use tokio::sync::oneshot;

use super::{
    Holders, goes_elsewhere, may_go_on,
    search::{Search, Step, View},
    session::news,
    wire,
};
use crate::{
    env::{Env, net::Priority},
    ids::{NodeId, Offset, ReactorNumber, ShardUid, Term},
    limits::LEADER_WAIT,
    peer::{Destination, PeerError},
    proto::ringlog::state::v1::{
        PeerRefusal, ReplicaStatus, ShardStatusRequest, TrimShard, control_reply, control_request,
    },
    reactor::{Reactor, ReactorError, forward::leaders::Leader, mailbox::Request, node::Node},
    shard::{ShardError, ShardStatus},
};

/// What another node said of a leader is believed for that long before it is asked again.
const HEARD_MAX: Duration = Duration::from_secs(1);

/// How long a node has to say who leads.
const FIND_WITHIN: Duration = Duration::from_millis(500);

/// A request to another node that was not answered, as a refusal.
pub(super) fn unanswered(error: &PeerError) -> PeerRefusal {
    let (reason, definite) = match error {
        PeerError::Unreachable { .. } => ("PEER_UNREACHABLE", true),
        PeerError::Lost { .. } | PeerError::Timeout { .. } => ("PEER_LOST", false),
    };
    PeerRefusal {
        code: super::CODE_UNAVAILABLE,
        reason: reason.to_owned(),
        message: error.to_string(),
        definite,
        ..PeerRefusal::default()
    }
}

fn refused(refusal: PeerRefusal) -> ReactorError {
    ShardError::Elsewhere(Box::new(refusal)).into()
}

impl<E: Env> Reactor<E> {
    /// Where a shard's leader is looked for next.
    pub(super) fn look(&self, search: &mut Search, uid: ShardUid, holders: &Holders) -> Step {
        let known = self.node.leaders.get(uid).and_then(|leader| leader.node);
        let view = View { me: self.me(), local: self.local_view(uid), known, replicas: &holders.nodes };
        search.next(&view, |node| self.node.liveness.is_alive(node), E::random_u64())
    }

    /// Asks another node's control.
    ///
    /// # Errors
    /// Its refusal; `PEER_UNREACHABLE`, `PEER_LOST`.
    pub async fn ask(
        &self,
        to: Destination,
        request: control_request::Request,
        within: Duration,
    ) -> Result<control_reply::Reply, ReactorError> {
        let received = self.peers().call(to, wire::control_frame(request), Priority::Normal, within).await;
        match received {
            Ok(received) => wire::control_reply(&received).map_err(refused),
            Err(error) => Err(refused(unanswered(&error))),
        }
    }

    /// Moves a shard's log start up, wherever its leader is; answers with the present one. Dropping the future does not
    /// take it back.
    ///
    /// # Errors
    /// The shard's; `NoLeader`; `Lost` when a node was lost that may have done it.
    pub async fn trim(self: &Rc<Self>, uid: ShardUid, before: Offset) -> Result<Offset, ReactorError> {
        if !self.is_elsewhere(uid) {
            return self.trim_here(uid, before).await;
        }
        let mut lost = None;
        let result = self.trim_elsewhere(uid, before, &mut lost).await;
        result.map_err(|error| match lost {
            // Whoever refuses it now says nothing of what that node has done.
            Some(cause) => ShardError::Lost { cause: format!("{cause}; then: {error}") }.into(),
            None => error,
        })
    }

    /// Asks whoever leads, again and again. `lost`: what became of a node that may have done it, and did not answer.
    async fn trim_elsewhere(
        self: &Rc<Self>,
        uid: ShardUid,
        before: Offset,
        lost: &mut Option<String>,
    ) -> Result<Offset, ReactorError> {
        let began_us = E::monotonic_us();
        let mut search = Search::default();
        loop {
            let holders = self.holders(uid).ok_or(ReactorError::Gone)?;
            let left = LEADER_WAIT.saturating_sub(Duration::from_micros(E::monotonic_us() - began_us));
            match self.look(&mut search, uid, &holders) {
                Step::Here => match self.trim_here(uid, before).await {
                    Err(ReactorError::Shard(error)) if goes_elsewhere(&error) => {}
                    result => return result,
                },
                Step::There(node) => {
                    let trim = TrimShard { shard_uid: uid.0, before_offset: before.0 };
                    let to = Self::destination(&holders, node);
                    match self.ask(to, control_request::Request::Trim(trim), left).await {
                        Ok(control_reply::Reply::Trimmed(trimmed)) => return Ok(Offset(trimmed.log_start)),
                        Ok(_) => return Err(refused(wire::unreadable("what it trimmed"))),
                        // Trimming twice is trimming once, so a lost answer is no reason to stop.
                        Err(ReactorError::Shard(ShardError::Elsewhere(refusal)))
                            if may_go_on(&refusal) || refusal.reason == "PEER_LOST" =>
                        {
                            search.hint(Some(NodeId(refusal.leader_node_id)).filter(|leader| *leader != NodeId(0)));
                            if !refusal.definite {
                                *lost = Some(refusal.message);
                            }
                        }
                        Err(error) => return Err(error),
                    }
                }
                Step::Pause(_) if left.is_zero() => {
                    return Err(ShardError::NoLeader { waited: LEADER_WAIT, deadline: false }.into());
                }
                Step::Pause(pause) => {
                    if E::Runtime::timeout(pause.min(left), news(self, uid)).await.is_ok() {
                        search.changed();
                    }
                }
            }
        }
    }

    /// Hears who leads shards that have no replica here, unless that was heard lately.
    pub(in crate::reactor) async fn find_leaders(&self, uids: &[ShardUid]) {
        // Whoever asks at the same time finds what the first one has heard.
        let _one = self.finding.lock().await;
        let now_us = E::monotonic_us();
        let since_us = now_us.saturating_sub(HEARD_MAX.as_micros() as u64);
        let (me, is_alive) = (self.me(), |node: &NodeId| self.node.liveness.is_alive(*node));
        let mut asked: BTreeMap<NodeId, Vec<u64>> = BTreeMap::new();
        for uid in self.node.leaders.stale(uids.iter().copied(), since_us) {
            let nodes = self.holders(uid).map(|holders| holders.nodes).unwrap_or_default();
            if let Some(node) = nodes.into_iter().filter(|node| *node != me).find(is_alive) {
                asked.entry(node).or_default().push(uid.0);
            }
        }
        let asks = asked.into_iter().map(|(node, shard_uids)| async move {
            let request = control_request::Request::ShardStatus(ShardStatusRequest { shard_uids });
            // All of a node's answers come from its reactor 0, which asks the others.
            self.ask(Destination { node, slot: 0 }, request, FIND_WITHIN).await
        });
        for answer in join_all(asks).await {
            let Ok(control_reply::Reply::ShardStatus(statuses)) = answer else { continue };
            for status in statuses.replicas {
                let node = Some(NodeId(status.leader_node_id)).filter(|node| *node != NodeId(0) && !status.no_majority);
                let leader = Leader { node, term: Term(status.term) };
                self.node.leaders.note_heard(ShardUid(status.shard_uid), leader, E::monotonic_us());
            }
        }
    }
}

/// The numbers of this node's replicas of these shards (none named: of all), whichever reactors own them. Shards without a
/// replica here are left out. Of the catalog, if it is named, what is wrong with it.
///
/// # Errors
/// When a reactor does not answer.
pub async fn own_replicas(node: &Node, uids: Vec<ShardUid>) -> Result<Vec<ReplicaStatus>, ReactorError> {
    let catalog = uids.contains(&ShardUid::CATALOG).then(|| catalog_message(node));
    let mut by_reactor: BTreeMap<ReactorNumber, Vec<ShardUid>> = BTreeMap::new();
    if uids.is_empty() {
        for topic in node.topics.snapshot().values() {
            for place in topic.shards.iter().filter(|place| place.here) {
                by_reactor.entry(place.reactor).or_default().push(place.uid);
            }
        }
    }
    for uid in uids {
        if let Some((topic, number)) = node.topics.shard(uid) {
            let place = topic.shards[number as usize];
            by_reactor.entry(place.reactor).or_default().push(uid);
        }
    }
    let asked = by_reactor.into_iter().map(|(reactor, uids)| {
        let (reply, answer) = oneshot::channel();
        let sent = node.send(reactor, Request::Status { uids: uids.clone(), reply });
        async move {
            sent?;
            let statuses = answer.await.unwrap_or(Err(ReactorError::Stopped { maybe_written: false }))?;
            let present = uids.into_iter().zip(statuses).filter_map(|(uid, status)| Some((uid, status?)));
            Ok::<_, ReactorError>(present.map(|(uid, status)| replica_message(uid, &status)).collect::<Vec<_>>())
        }
    });
    let shards = futures_util::future::try_join_all(asked).await?;
    Ok(shards.into_iter().flatten().chain(catalog).collect())
}

/// How this node's replica of the catalog is.
fn catalog_message(node: &Node) -> ReplicaStatus {
    let fault = node.faults().remove(&ShardUid::CATALOG).unwrap_or_default();
    let stalled = node.catalog_stalled().unwrap_or_default();
    ReplicaStatus { shard_uid: ShardUid::CATALOG.0, fault, stalled, ..ReplicaStatus::default() }
}

/// A replica's numbers between nodes.
fn replica_message(uid: ShardUid, status: &ShardStatus) -> ReplicaStatus {
    let ids = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.0).collect();
    ReplicaStatus {
        shard_uid: uid.0,
        leader_node_id: status.leader.map_or(0, |leader| leader.0),
        term: status.term.0,
        log_start: status.log_start.0,
        high_watermark: status.high_watermark.0,
        log_end: status.log_end.0,
        size_bytes: status.size_bytes,
        segments: status.segments,
        fault: status.fault.clone().unwrap_or_default(),
        chain: status.chain,
        applied_end: status.applied_end.0,
        voter_node_ids: ids(&status.members.voters),
        learner_node_ids: ids(&status.members.learners),
        stalled: status.stalled.clone().unwrap_or_default(),
        no_majority: status.no_majority,
    }
}
