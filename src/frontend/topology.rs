//! What a client can learn of the cluster: who the nodes are, who leads what, how far each replica is. Put together from
//! what this node knows and, for numbers of other nodes' replicas, from what those say within a bounded time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};

use crate::{
    frontend::{
        remote::{Remote, topic_message},
        route,
        status::{CallError, Code},
    },
    ids::{NodeId, ReactorNumber, ShardUid, is_most},
    limits,
    peer::{Destination, book::PeerNode},
    proto::ringlog::state::v1::{self as state, ShardStatusRequest, control_reply, control_request},
    proto::ringlog::v1 as proto,
    reactor::{
        forward::ask::own_replicas,
        gossip::table::GossipView,
        mailbox::{AdminAnswer, AdminCall, ClusterMembers, Request},
        topics::{PlacedTopic, ShardPlace},
    },
};

/// How long another node has to say how its replicas are.
const STATUS_WITHIN: Duration = Duration::from_secs(2);

/// What the nodes say of their replicas; in words, what is wrong with those that say nothing.
type Said = BTreeMap<NodeId, Result<BTreeMap<ShardUid, state::ReplicaStatus>, String>>;

impl Remote {
    /// `Log.GetServers`; all topics if none is named, each of them once however often it is named.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` above `SERVERS_TOPICS_MAX` names, `NOT_FOUND`, `UNAVAILABLE`.
    pub async fn get_servers(&self, topics: &[String]) -> Result<proto::GetServersResponse, CallError> {
        let node = self.node();
        let identity = node.identity().ok_or_else(CallError::starting)?;
        let mut placed = if topics.is_empty() { self.all_topics() } else { Vec::new() };
        for name in distinct_names(topics)? {
            placed.push(self.find_topic(name).await?);
        }
        let members = self.members().await?;
        self.find_leaders(&placed).await?;
        let servers = members.nodes.iter().filter(|member| member.state != state::NodeState::Removed as i32);
        let servers = servers.map(|member| self.server(member));
        Ok(proto::GetServersResponse {
            cluster_id: identity.cluster_id.clone(),
            servers: servers.collect(),
            topics: placed.iter().map(|topic| self.topic_shards(topic)).collect(),
        })
    }

    /// A node as clients are told: where it says that it is, also before the catalog has it.
    fn server(&self, member: &state::ClusterNode) -> proto::Server {
        let (node, id) = (self.node(), NodeId(member.node_id));
        let known = node.book.get(id);
        let address = |of: fn(&PeerNode) -> &String, entry: &String| {
            known.as_deref().map(of).filter(|address| !address.is_empty()).unwrap_or(entry).clone()
        };
        proto::Server {
            node_id: member.node_id,
            grpc_address: address(|peer| &peer.grpc, &member.grpc_address),
            http_address: address(|peer| &peer.http, &member.http_address),
            reactors: known.as_ref().map_or(member.reactors, |peer| peer.reactors),
            alive: self.is_alive(id),
            draining: member.state == state::NodeState::Draining as i32 || node.is_leaving(id),
        }
    }

    fn topic_shards(&self, topic: &PlacedTopic) -> proto::TopicShards {
        let leaders = self.node().leaders.serving(topic.shards.iter().map(|place| place.uid));
        let shards = (0u32..).zip(&topic.shards).zip(leaders).map(|((shard, place), leader)| {
            let replica_node_ids = replica_ids(topic, shard);
            // Of a shard with a replica here its voters are known; of others, who is to hold it.
            let is_heard = |node: &u64| self.is_alive(NodeId(*node));
            let node = leader.node.filter(|_| place.here || is_most(&replica_node_ids, is_heard));
            proto::ShardLeader {
                shard,
                leader_node_id: node.map_or(0, |node| node.0),
                term: leader.term.0,
                reactor: self.reactor_on(node, place),
                replica_node_ids,
            }
        });
        proto::TopicShards { topic: topic.view.name.to_string(), shards: shards.collect() }
    }

    /// The reactor of that node that owns the shard, or of this node if nothing is known of it.
    fn reactor_on(&self, node: Option<NodeId>, place: &ShardPlace) -> u32 {
        let me = self.node().identity().map(|identity| identity.node);
        let other = node.filter(|node| Some(*node) != me).and_then(|node| self.node().book.get(node));
        other.map_or(place.reactor, |other| other.reactor(place.slot)).0
    }

    fn is_alive(&self, node: NodeId) -> bool {
        let me = self.node().identity().map(|identity| identity.node);
        Some(node) == me || self.node().liveness.is_alive(node)
    }

    fn all_topics(&self) -> Vec<Arc<PlacedTopic>> {
        let mut placed: Vec<_> = self.node().topics.snapshot().values().cloned().collect();
        placed.sort_by(|a, b| a.view.name.cmp(&b.view.name));
        placed
    }

    /// Asks other nodes who leads the shards that have no replica here, unless they were asked just now.
    async fn find_leaders(&self, topics: &[Arc<PlacedTopic>]) -> Result<(), CallError> {
        let places = topics.iter().flat_map(|topic| &topic.shards).filter(|place| !place.here);
        let uids: Vec<_> = places.map(|place| place.uid).collect();
        if uids.is_empty() {
            return Ok(());
        }
        Ok(self.ask(ReactorNumber(0), false, |reply| Request::FindLeaders { uids, reply }).await?)
    }

    /// The members of the cluster.
    async fn members(&self) -> Result<ClusterMembers, CallError> {
        match self.admin(AdminCall::Members).await? {
            AdminAnswer::Members(members) => Ok(members),
            other => Err(wrong_answer(&other)),
        }
    }

    /// The calls of `Admin` about the cluster.
    ///
    /// # Errors
    /// The control's.
    pub async fn admin(&self, call: AdminCall) -> Result<AdminAnswer, CallError> {
        let (reply, answer) = oneshot::channel();
        self.node().send(ReactorNumber(0), Request::Admin { call, reply })?;
        Ok(answer.await.map_err(|_| self.no_answer())??)
    }

    /// `Admin.DescribeTopic`.
    ///
    /// # Errors
    /// `NOT_FOUND`, `UNAVAILABLE`.
    pub async fn describe_topic(&self, name: &str) -> Result<proto::DescribeTopicResponse, CallError> {
        let topic = self.find_topic(route::topic_name(name)).await?;
        let said = self.ask_replicas(std::slice::from_ref(&topic), []).await?;
        Ok(proto::DescribeTopicResponse {
            topic: Some(topic_message(&topic)),
            shards: self.shard_messages(&topic, &said),
        })
    }

    /// `Admin.DescribeCluster`.
    ///
    /// # Errors
    /// `UNAVAILABLE`.
    pub async fn describe_cluster(&self) -> Result<proto::DescribeClusterResponse, CallError> {
        let identity = self.node().identity().ok_or_else(CallError::starting)?;
        let (members, topics) = (self.members().await?, self.all_topics());
        let present = members.nodes.iter().filter(|member| member.state != state::NodeState::Removed as i32);
        let said = self.ask_replicas(&topics, present.map(|member| NodeId(member.node_id))).await?;
        let topics: Vec<_> = topics
            .iter()
            .map(|topic| {
                let shards = self.shard_messages(topic, &said);
                proto::TopicStatus { topic: Some(topic_message(topic)), shards }
            })
            .collect();
        let shards = || topics.iter().flat_map(|topic| &topic.shards);
        let nodes = members.nodes.iter().map(|member| {
            let id = member.node_id;
            let silence = said.get(&NodeId(id)).and_then(|said| said.as_ref().err());
            proto::NodeStatus {
                node_id: id,
                // The two enumerations are the same.
                state: member.state,
                alive: self.is_alive(NodeId(id)),
                grpc_address: member.grpc_address.clone(),
                http_address: member.http_address.clone(),
                peer_address: format!("{}:{}", member.peer_host, member.peer_port),
                reactors: member.reactors,
                replicas: count(shards().filter(|shard| shard.replica_node_ids.contains(&id))),
                leaders: count(shards().filter(|shard| shard.leader_node_id == id)),
                fault: silence.cloned().unwrap_or_default(),
                catalog_fault: catalog_fault(NodeId(id), &said),
            }
        });
        Ok(proto::DescribeClusterResponse {
            cluster_id: identity.cluster_id.clone(),
            nodes: nodes.collect(),
            catalog_leader_node_id: members.catalog_leader.map_or(0, |leader| leader.0),
            catalog_voter_node_ids: members.catalog_voters.iter().map(|voter| voter.0).collect(),
            topics,
        })
    }

    /// Asks all nodes that hold replicas of these topics for their numbers, and `catalogs` how theirs of the catalog are, all at
    /// once; the dead are not waited for.
    async fn ask_replicas(
        &self,
        topics: &[Arc<PlacedTopic>],
        catalogs: impl IntoIterator<Item = NodeId>,
    ) -> Result<Said, CallError> {
        let me = self.node().identity().ok_or_else(CallError::starting)?.node;
        let mut wanted: BTreeMap<NodeId, Vec<ShardUid>> = BTreeMap::new();
        for topic in topics {
            for (replicas, uid) in topic.view.replicas.iter().zip(&topic.view.shards) {
                let nodes: BTreeSet<_> = replicas.nodes.iter().chain(&replicas.target).collect();
                nodes.into_iter().for_each(|node| wanted.entry(*node).or_default().push(*uid));
            }
        }
        catalogs.into_iter().for_each(|node| wanted.entry(node).or_default().push(ShardUid::CATALOG));
        let own = match wanted.remove(&me) {
            Some(uids) => own_replicas(self.node(), uids).await?,
            None => Vec::new(),
        };
        let asked = wanted.into_iter().map(|(node, uids)| async move { (node, self.ask_node(node, uids).await) });
        let mut said: Said = join_all(asked).await.into_iter().collect();
        said.insert(me, Ok(by_uid(own)));
        Ok(said)
    }

    async fn ask_node(
        &self,
        node: NodeId,
        uids: Vec<ShardUid>,
    ) -> Result<BTreeMap<ShardUid, state::ReplicaStatus>, String> {
        if !self.is_alive(node) {
            return Err(format!("node {node} is silent"));
        }
        let shard_uids = uids.into_iter().map(|uid| uid.0).collect();
        let request = control_request::Request::ShardStatus(ShardStatusRequest { shard_uids });
        let to = Destination { node, slot: 0 };
        let ask = |reply| Request::Ask { to, request, within: STATUS_WITHIN, reply };
        match self.ask(ReactorNumber(0), false, ask).await {
            Ok(control_reply::Reply::ShardStatus(statuses)) => Ok(by_uid(statuses.replicas)),
            Ok(_) => Err(format!("node {node} answers something else")),
            Err(error) => Err(error.to_string()),
        }
    }

    fn shard_messages(&self, topic: &PlacedTopic, said: &Said) -> Vec<proto::ShardStatus> {
        (0u32..).zip(&topic.shards).map(|(shard, place)| self.shard_message(topic, shard, place, said)).collect()
    }

    /// A shard as its leader sees it, or who else knows most of it, and its replicas as each sees itself.
    fn shard_message(&self, topic: &PlacedTopic, shard: u32, place: &ShardPlace, said: &Said) -> proto::ShardStatus {
        let replicas = topic.view.replicas.get(shard as usize).cloned().unwrap_or_default();
        let nodes: Vec<_> =
            replicas.nodes.iter().chain(replicas.target.iter().filter(|node| !replicas.nodes.contains(node))).collect();
        let status = |node: &NodeId| said.get(node)?.as_ref().ok()?.get(&place.uid);
        let known = || nodes.iter().filter_map(|node| Some((**node, status(node)?)));
        let whole = || known().filter(|(_, status)| status.fault.is_empty());
        let latest = whole().filter(|(_, status)| status.leader_node_id != 0).max_by_key(|(_, status)| status.term);
        let term = known().map(|(_, status)| status.term).max().unwrap_or_default();
        // Whoever leads says so itself: the others may not have heard yet that it is gone.
        let leader = latest
            .map(|(_, status)| NodeId(status.leader_node_id))
            .filter(|leader| !nodes.contains(&leader) || status(leader).is_some_and(|status| status.fault.is_empty()));
        let best = leader
            .as_ref()
            .and_then(status)
            .or_else(|| whole().map(|(_, status)| status).max_by_key(|status| status.high_watermark));
        let best = best.or_else(|| known().map(|(_, status)| status).next()).cloned().unwrap_or_default();
        let lost = without_majority(&best, &replicas.nodes, |node| {
            status(&node).is_some_and(|status| status.fault.is_empty())
        });
        // A leader that most do not hear is none: it commits nothing.
        let leader = leader.filter(|_| lost.is_none());
        let leading = leader.as_ref().and_then(status);
        let fault = match (leader, best.fault.is_empty()) {
            (Some(_), _) => String::new(),
            (None, true) if lost.is_some() && known().next().is_some() => lost.unwrap_or_default(),
            (None, true) if known().next().is_none() => "no node that holds a replica answers".to_owned(),
            (None, true) => "the shard has no leader".to_owned(),
            (None, false) => best.fault.clone(),
        };
        proto::ShardStatus {
            shard,
            shard_uid: place.uid.0,
            reactor: self.reactor_on(leader, place),
            leader_node_id: leader.map_or(0, |leader| leader.0),
            term,
            log_start: best.log_start,
            high_watermark: best.high_watermark,
            log_end: best.log_end,
            size_bytes: best.size_bytes,
            segments: best.segments,
            fault,
            replica_node_ids: replica_ids(topic, shard),
            replicas: nodes.iter().map(|node| replica_message(**node, said, place.uid, leading)).collect(),
        }
    }

    /// Tells when the topology may have changed.
    pub fn watch_topology(&self) -> Changes {
        let node = self.node();
        Changes {
            topics: node.topics.watch(),
            leaders: node.leaders.watch(),
            dead: node.liveness.watch(),
            gossip: node.gossip.watch(),
        }
    }
}

/// What is said of a shard of which most voters are not heard, or not by its leader; `None`: most are. `best` knows the voters,
/// or else those who are to hold replicas are taken for them.
fn without_majority(
    best: &state::ReplicaStatus,
    holders: &[NodeId],
    is_heard: impl Fn(NodeId) -> bool,
) -> Option<String> {
    let mut voters: Vec<_> = best.voter_node_ids.iter().map(|voter| NodeId(*voter)).collect();
    if voters.is_empty() {
        voters = holders.to_vec();
    }
    if !best.no_majority && is_most(&voters, |voter| is_heard(*voter)) {
        return None;
    }
    let ids = |nodes: Vec<NodeId>| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let heard = voters.iter().copied().filter(|voter| is_heard(*voter)).collect();
    Some(format!("no majority: of its voters on nodes {} only {} answer", ids(voters), ids(heard)))
}

/// What is wrong with a node's replica of the catalog, as that node says.
fn catalog_fault(node: NodeId, said: &Said) -> String {
    let status = said.get(&node).and_then(|said| said.as_ref().ok()?.get(&ShardUid::CATALOG));
    let Some(state::ReplicaStatus { fault, stalled, .. }) = status else { return String::new() };
    if fault.is_empty() { stalled.clone() } else { fault.clone() }
}

/// One replica as its node sees it.
fn replica_message(
    node: NodeId,
    said: &Said,
    uid: ShardUid,
    leading: Option<&state::ReplicaStatus>,
) -> proto::ReplicaStatus {
    let status = match said.get(&node) {
        Some(Ok(statuses)) => statuses.get(&uid).ok_or_else(|| format!("node {node} has not opened it")),
        Some(Err(silence)) => Err(silence.clone()),
        None => Err(format!("node {node} was not asked")),
    };
    let status = match status {
        Ok(status) => status,
        Err(fault) => return proto::ReplicaStatus { node_id: node.0, fault, lag_unknown: true, ..Default::default() },
    };
    // The leader's word, if there is a leader: a learner may not know yet that it is one.
    let members = leading.unwrap_or(status);
    proto::ReplicaStatus {
        node_id: node.0,
        fault: status.fault.clone(),
        log_start: status.log_start,
        high_watermark: status.high_watermark,
        log_end: status.log_end,
        lag: leading.map_or(0, |leading| leading.log_end.saturating_sub(status.log_end)),
        learner: !members.voter_node_ids.contains(&node.0),
        chain: status.chain,
        applied_end: status.applied_end,
        stalled: status.stalled.clone(),
        lag_unknown: leading.is_none() || !status.fault.is_empty(),
    }
}

/// The topics that a request names, each once, in their order. A name takes two bytes of a request, and the answer to it the shards
/// of its topic: nothing is made for a name before this.
///
/// # Errors
/// `INVALID_ARGUMENT` above `SERVERS_TOPICS_MAX` names.
pub fn distinct_names(names: &[String]) -> Result<Vec<&str>, CallError> {
    if names.len() > limits::SERVERS_TOPICS_MAX {
        let (most, count) = (limits::SERVERS_TOPICS_MAX, names.len());
        let message = format!("a request names at most {most} topics, not {count}; name none to be told of all");
        return Err(CallError::invalid("TOO_MANY_TOPICS", message));
    }
    let mut seen = BTreeSet::new();
    Ok(names.iter().map(|name| route::topic_name(name)).filter(|name| seen.insert(*name)).collect())
}

fn by_uid(statuses: Vec<state::ReplicaStatus>) -> BTreeMap<ShardUid, state::ReplicaStatus> {
    statuses.into_iter().map(|status| (ShardUid(status.shard_uid), status)).collect()
}

fn replica_ids(topic: &PlacedTopic, shard: u32) -> Vec<u64> {
    let replicas = topic.view.replicas.get(shard as usize);
    replicas.map(|replicas| replicas.nodes.iter().map(|node| node.0).collect()).unwrap_or_default()
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

/// The control has answered another question.
pub(super) fn wrong_answer(answer: &AdminAnswer) -> CallError {
    let message = format!("the node's control answered something else: {answer:?}; report it");
    CallError::new(Code::Internal, "WRONG_ANSWER", message)
}

/// Changes of topics, leaders, living nodes and what nodes say of themselves.
#[derive(Debug)]
pub struct Changes {
    topics: watch::Receiver<()>,
    leaders: watch::Receiver<()>,
    dead: watch::Receiver<Arc<BTreeSet<NodeId>>>,
    gossip: watch::Receiver<Arc<BTreeMap<NodeId, GossipView>>>,
}

impl Changes {
    /// Resolves with the next change since the last call. Dropping the future loses nothing.
    pub async fn changed(&mut self) {
        // Their senders live as long as the node, which ends all calls before.
        tokio::select! {
            _ = self.topics.changed() => {}
            _ = self.leaders.changed() => {}
            _ = self.dead.changed() => {}
            _ = self.gossip.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most voters have to answer, and to be heard by their leader; where nobody knows the voters, those count that are to hold
    /// replicas.
    #[test]
    fn majorities() {
        let best = |voters: &[u64], no_majority| state::ReplicaStatus {
            voter_node_ids: voters.to_vec(),
            no_majority,
            ..Default::default()
        };
        let holders = [1, 2, 3].map(NodeId);
        let lost = |best, heard: &[u64]| without_majority(&best, &holders, |node| heard.contains(&node.0));
        assert_eq!(lost(best(&[1, 2, 3], false), &[1, 3]), None);
        assert_eq!(lost(best(&[1], false), &[1]), None);
        assert_eq!(lost(best(&[], false), &[2, 3]), None);
        let words = "no majority: of its voters on nodes 1 2 3 only 1 answer";
        assert_eq!(lost(best(&[1, 2, 3], false), &[1, 4]).as_deref(), Some(words));
        assert_eq!(lost(best(&[], false), &[1]).as_deref(), Some(words));
        assert!(lost(best(&[1, 2], false), &[1]).is_some());
        assert!(lost(best(&[1, 2, 3], true), &[1, 2, 3]).is_some());
    }

    /// A topic is looked up once, by whatever name and however often; too many names are refused before any is looked up.
    #[test]
    fn repeated_names() {
        let named = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let names = named(&["b", "", "a", "b", route::topic_name(""), ""]);
        assert_eq!(distinct_names(&names).unwrap(), ["b", route::topic_name(""), "a"]);
        assert!(distinct_names(&[]).unwrap().is_empty());
        let many = vec![String::new(); limits::SERVERS_TOPICS_MAX];
        assert_eq!(distinct_names(&many).unwrap().len(), 1);
        let error = distinct_names(&vec![String::new(); limits::SERVERS_TOPICS_MAX + 1]).unwrap_err();
        assert_eq!((error.code, error.reason), (Code::InvalidArgument, "TOO_MANY_TOPICS"));
    }

    /// How far a replica is behind is known only beside a leader.
    #[test]
    fn lags() {
        let replica = |log_end| state::ReplicaStatus { shard_uid: 7, log_end, ..Default::default() };
        let said: Said = BTreeMap::from([
            (NodeId(1), Ok(by_uid(vec![replica(9)]))),
            (NodeId(2), Ok(by_uid(vec![replica(5)]))),
            (NodeId(3), Err("node 3 is silent".to_owned())),
        ]);
        let message = |node, leading| replica_message(NodeId(node), &said, ShardUid(7), leading);
        let leader = replica(9);
        let lag = |message: proto::ReplicaStatus| (message.lag, message.lag_unknown);
        assert_eq!([1, 2, 3].map(|node| lag(message(node, Some(&leader)))), [(0, false), (4, false), (0, true)]);
        assert!([1, 2, 3].iter().all(|node| message(*node, None).lag_unknown));
    }
}
