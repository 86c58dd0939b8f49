//! The routing table: servers, topics, who leads which shard and who has a copy of it. Pure; replaced as a whole.
//!
//! Each server tells what it knows, and some know less than others: of two accounts of a shard the one of the higher
//! term counts, whenever it comes.

use std::{collections::BTreeMap, sync::Arc};

use crate::{ids::NodeId, proto::ringlog::v1};

/// A node as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Which.
    pub node: NodeId,
    /// `host:port` of its gRPC listener.
    pub address: Arc<str>,
    /// `host:port` of its HTTP listener.
    pub http_address: Arc<str>,
    /// Whether the server that told us has heard of it lately.
    pub alive: bool,
    /// Its replicas move away; nothing new is begun there.
    pub draining: bool,
}

/// A shard as clients see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardRoute {
    /// Who leads it, if anybody does.
    pub leader: Option<NodeId>,
    /// In which term.
    pub term: u64,
    /// Who has a copy.
    pub replicas: Vec<NodeId>,
    /// Where a server has sent us instead, since the account above.
    hint: Option<Arc<str>>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Of the cluster; empty before the first answer.
    pub cluster_id: String,
    /// By node id.
    pub servers: Vec<Server>,
    topics: BTreeMap<String, Vec<ShardRoute>>,
}

/// What one answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All topics: others are gone.
    All,
    /// Some topics; of the others it says nothing.
    Some,
}

impl Topology {
    /// This table with what a server has told since.
    #[must_use]
    pub fn updated(&self, told: v1::GetServersResponse, scope: Scope) -> Topology {
        // Whoever is asked for a topic may be cut off from the rest: then it does not know who is alive.
        let is_believed = scope == Scope::All || self.servers.is_empty() || sees_majority(&told);
        let v1::GetServersResponse { cluster_id, servers, topics } = told;
        let servers = if is_believed {
            let mut servers: Vec<Server> = servers.into_iter().map(Server::from).collect();
            servers.sort_by_key(|server| server.node);
            servers
        } else {
            self.servers.clone()
        };
        let mut merged = match scope {
            Scope::All => BTreeMap::new(),
            Scope::Some => self.topics.clone(),
        };
        for v1::TopicShards { topic, shards } in topics {
            let known = self.topics.get(&topic).map_or(&[][..], Vec::as_slice);
            let routes = numbered(shards).into_iter().enumerate().map(|(number, told)| match known.get(number) {
                Some(known) => known.merged(told),
                None => told,
            });
            merged.insert(topic, routes.collect());
        }
        Topology { cluster_id, servers, topics: merged }
    }

    /// This table, with `address` as where the shard is led. It counts until a server tells of a later term than is
    /// known now.
    #[must_use]
    pub fn hinted(&self, topic: &str, shard: u32, address: &str) -> Topology {
        let mut hinted = self.clone();
        if let Some(route) = hinted.topics.get_mut(topic).and_then(|shards| shards.get_mut(shard as usize)) {
            route.hint = Some(address.into());
        }
        hinted
    }

    /// Number of shards of a topic, if it is known.
    pub fn shards(&self, topic: &str) -> Option<u32> {
        self.topics.get(topic).map(|shards| u32::try_from(shards.len()).unwrap_or(u32::MAX))
    }

    /// A shard, if it is known.
    pub fn route(&self, topic: &str, shard: u32) -> Option<&ShardRoute> {
        self.topics.get(topic)?.get(shard as usize)
    }

    /// A server by its id.
    pub fn server(&self, node: NodeId) -> Option<&Server> {
        self.servers.binary_search_by_key(&node, |server| server.node).ok().map(|at| &self.servers[at])
    }

    /// A server by its address.
    pub fn server_at(&self, address: &str) -> Option<&Server> {
        self.servers.iter().find(|server| &*server.address == address)
    }

    /// Address of a shard's leader, if it is known.
    pub fn leader_address(&self, topic: &str, shard: u32) -> Option<Arc<str>> {
        let route = self.route(topic, shard)?;
        if let Some(hint) = &route.hint {
            return Some(Arc::clone(hint));
        }
        route.leader.and_then(|leader| self.server(leader)).map(|server| Arc::clone(&server.address))
    }

    /// Servers to begin something at, the best ones first: alive and not draining, then alive, then the others. Among
    /// equals it begins with another one for each `turn`.
    pub fn servers_by_turn(&self, turn: usize) -> Vec<&Server> {
        let mut servers: Vec<&Server> = self.servers.iter().collect();
        if !servers.is_empty() {
            let first = turn % servers.len();
            servers.rotate_left(first);
        }
        servers.sort_by_key(|server| server.rank());
        servers
    }

    /// Where to send a produce: the shard's leader, unless it is known to be dead, then anybody, by turns: servers forward.
    pub fn produce_addresses(&self, topic: &str, shard: u32, turn: usize) -> Vec<Arc<str>> {
        let is_dead = |address: &str| self.server_at(address).is_some_and(|server| !server.alive);
        let leader = self.leader_address(topic, shard).filter(|address| !is_dead(address));
        let others = self.servers_by_turn(turn).into_iter().map(|server| Arc::clone(&server.address));
        distinct(leader.into_iter().chain(others))
    }

    /// Where to read a shard, the best first: the preferred node, one that we have a connection to, any other with a
    /// copy, by turns; then the rest, which forward. Nodes that are dead or draining come after all of these.
    pub fn consume_addresses(
        &self,
        topic: &str,
        shard: u32,
        preferred: Option<NodeId>,
        is_connected: impl Fn(&str) -> bool,
        turn: usize,
    ) -> Vec<Arc<str>> {
        let replicas = self.route(topic, shard).map_or(&[][..], |route| &route.replicas);
        let mut servers = self.servers_by_turn(turn);
        servers.sort_by_key(|server| {
            let has_copy = replicas.contains(&server.node);
            (server.rank(), Some(server.node) != preferred, !has_copy, !is_connected(&server.address))
        });
        distinct(servers.into_iter().map(|server| Arc::clone(&server.address)))
    }
}

/// Whether the server that tells this sees most of the cluster. One that does not is cut off, and what it tells is old.
pub fn sees_majority(told: &v1::GetServersResponse) -> bool {
    let alive = told.servers.iter().filter(|server| server.alive).count();
    2 * alive > told.servers.len()
}

impl Server {
    /// The lower, the better to begin something at.
    fn rank(&self) -> u8 {
        match (self.alive, self.draining) {
            (true, false) => 0,
            (true, true) => 1,
            (false, _) => 2,
        }
    }
}

impl From<v1::Server> for Server {
    fn from(server: v1::Server) -> Server {
        Server {
            node: NodeId(server.node_id),
            address: server.grpc_address.into(),
            http_address: server.http_address.into(),
            alive: server.alive,
            draining: server.draining,
        }
    }
}

impl ShardRoute {
    /// What is known, with what was told since: never back to an earlier term.
    fn merged(&self, told: ShardRoute) -> ShardRoute {
        if told.term < self.term {
            return ShardRoute { replicas: told.replicas, ..self.clone() };
        }
        let hint = if told.term > self.term { None } else { self.hint.clone() };
        ShardRoute { hint, ..told }
    }
}

/// The shards by their numbers; one that was left out is unknown.
fn numbered(shards: Vec<v1::ShardLeader>) -> Vec<ShardRoute> {
    let count = shards.iter().map(|shard| shard.shard).max().map_or(0, |last| last as usize + 1);
    // A server that lies about a number must not cost us memory.
    let mut routes = vec![ShardRoute::default(); count.min(crate::limits::TOPIC_SHARDS_MAX as usize)];
    for shard in shards {
        let v1::ShardLeader { shard, leader_node_id, term, reactor: _, replica_node_ids } = shard;
        if let Some(route) = routes.get_mut(shard as usize) {
            let leader = (leader_node_id != 0).then_some(NodeId(leader_node_id));
            let replicas = replica_node_ids.into_iter().map(NodeId).collect();
            *route = ShardRoute { leader, term, replicas, hint: None };
        }
    }
    routes
}

fn distinct(addresses: impl Iterator<Item = Arc<str>>) -> Vec<Arc<str>> {
    let mut found: Vec<Arc<str>> = Vec::new();
    for address in addresses {
        if !address.is_empty() && !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(node: u64, alive: bool, draining: bool) -> v1::Server {
        let grpc_address = format!("n{node}");
        v1::Server { node_id: node, grpc_address, alive, draining, ..v1::Server::default() }
    }

    fn shard(shard: u32, leader: u64, term: u64) -> v1::ShardLeader {
        let replica_node_ids = vec![1, 2, 3];
        v1::ShardLeader { shard, leader_node_id: leader, term, reactor: 0, replica_node_ids }
    }

    fn told(topic: &str, shards: Vec<v1::ShardLeader>) -> v1::GetServersResponse {
        let servers = vec![server(3, true, false), server(1, true, false), server(2, true, false)];
        let topics = vec![v1::TopicShards { topic: topic.into(), shards }];
        v1::GetServersResponse { cluster_id: "c".into(), servers, topics }
    }

    fn texts(addresses: &[Arc<str>]) -> Vec<&str> {
        addresses.iter().map(|address| &**address).collect()
    }

    /// A server that lags behind does not take us back to an earlier leader; a later term always counts.
    #[test]
    fn terms_only_rise() {
        let first = Topology::default().updated(told("t", vec![shard(0, 1, 5)]), Scope::All);
        assert_eq!(first.leader_address("t", 0).as_deref(), Some("n1"));
        let late = first.updated(told("t", vec![shard(0, 2, 4)]), Scope::All);
        assert_eq!(late.leader_address("t", 0).as_deref(), Some("n1"));
        let none = late.updated(told("t", vec![shard(0, 0, 5)]), Scope::All);
        assert_eq!(none.leader_address("t", 0), None);
        let next = none.updated(told("t", vec![shard(0, 3, 6)]), Scope::All);
        assert_eq!(next.leader_address("t", 0).as_deref(), Some("n3"));
    }

    /// A hint counts at once, is not undone by what was known before it, and ends with the next term.
    #[test]
    fn hints() {
        let known = Topology::default().updated(told("t", vec![shard(0, 1, 5), shard(1, 1, 5)]), Scope::All);
        let hinted = known.hinted("t", 0, "n2");
        assert_eq!(hinted.leader_address("t", 0).as_deref(), Some("n2"));
        assert_eq!(hinted.leader_address("t", 1).as_deref(), Some("n1"));
        let same = hinted.updated(told("t", vec![shard(0, 1, 5)]), Scope::All);
        assert_eq!(same.leader_address("t", 0).as_deref(), Some("n2"));
        let next = same.updated(told("t", vec![shard(0, 3, 6)]), Scope::All);
        assert_eq!(next.leader_address("t", 0).as_deref(), Some("n3"));
        assert_eq!(known.hinted("unknown", 0, "n2"), known);
    }

    /// An answer about some topics leaves the others alone; one about all of them forgets those that are gone.
    #[test]
    fn scopes() {
        let a = Topology::default().updated(told("a", vec![shard(0, 1, 1)]), Scope::All);
        let both = a.updated(told("b", vec![shard(0, 1, 1), shard(1, 2, 1)]), Scope::Some);
        assert_eq!((both.shards("a"), both.shards("b"), both.shards("c")), (Some(1), Some(2), None));
        let b = both.updated(told("b", vec![shard(0, 1, 1)]), Scope::All);
        assert_eq!((b.shards("a"), b.shards("b")), (None, Some(1)));
    }

    /// Requests without an owner go to live servers by turns; draining and dead ones are the last resort.
    #[test]
    fn turns() {
        let mut answer = told("t", vec![shard(0, 2, 1)]);
        answer.servers = vec![
            server(1, false, false),
            server(2, true, true),
            server(3, true, false),
            server(4, true, false),
            server(5, true, false),
        ];
        let topology = Topology::default().updated(answer, Scope::All);
        let mut firsts = std::collections::BTreeSet::new();
        for turn in 0..10 {
            let servers = topology.servers_by_turn(turn);
            let nodes: Vec<u64> = servers.iter().map(|server| server.node.0).collect();
            assert_eq!(nodes[3..], [2, 1], "{nodes:?}");
            firsts.insert(nodes[0]);
        }
        assert_eq!(firsts.into_iter().collect::<Vec<_>>(), [3, 4, 5]);
        let addresses = topology.produce_addresses("t", 0, 2);
        assert_eq!(texts(&addresses)[0], "n2", "the leader comes first, also while it drains");
        assert_eq!(addresses.len(), 5);
        let dead = topology.hinted("t", 0, "n1").produce_addresses("t", 0, 2);
        assert_eq!((texts(&dead)[0], texts(&dead)[4]), ("n3", "n1"), "unless it is dead");
        assert!(Topology::default().servers_by_turn(7).is_empty());
    }

    /// A reader goes to the preferred node, then to a copy it is connected to, then to other copies, and to nodes
    /// without one only after these; but never to a dead one before a live one.
    #[test]
    fn readers() {
        let mut answer = told("t", vec![shard(0, 1, 1)]);
        answer.servers = (1..=5).map(|node| server(node, node != 3, false)).collect();
        let topology = Topology::default().updated(answer, Scope::All);
        let order = |preferred, connected: &str| {
            let addresses = topology.consume_addresses("t", 0, preferred, |address| address == connected, 0);
            texts(&addresses).join(" ")
        };
        assert_eq!(order(None, "n2"), "n2 n1 n4 n5 n3");
        assert_eq!(order(Some(NodeId(4)), "n2"), "n4 n2 n1 n5 n3");
        assert_eq!(order(Some(NodeId(3)), "n1"), "n1 n2 n4 n5 n3");
    }

    /// A server that sees less than a majority is not believed about who is alive.
    #[test]
    fn majority() {
        let mut answer = told("t", vec![]);
        assert!(sees_majority(&answer));
        answer.servers[0].alive = false;
        assert!(sees_majority(&answer));
        answer.servers[1].alive = false;
        assert!(!sees_majority(&answer));
    }

    /// Nor is it when it is asked for a topic: what it says of that counts, by the term, and who is alive is left as it was.
    #[test]
    fn told_by_one_that_is_cut_off() {
        let known = Topology::default().updated(told("t", vec![shard(0, 1, 1)]), Scope::All);
        let mut answer = told("u", vec![shard(0, 2, 1)]);
        answer.servers.iter_mut().skip(1).for_each(|server| server.alive = false);
        assert!(!sees_majority(&answer));
        let updated = known.updated(answer.clone(), Scope::Some);
        assert_eq!((&updated.servers, updated.shards("u")), (&known.servers, Some(1)));
        assert_eq!(Topology::default().updated(answer, Scope::Some).servers.len(), known.servers.len());
    }

    /// Numbers that cannot be are not believed.
    #[test]
    fn hostile() {
        let answer = told("t", vec![shard(u32::MAX, 1, 1), shard(2, 9, 1)]);
        let topology = Topology::default().updated(answer, Scope::All);
        assert_eq!(topology.shards("t"), Some(crate::limits::TOPIC_SHARDS_MAX));
        assert_eq!(topology.leader_address("t", 2), None, "node 9 is nobody");
        assert_eq!(topology.leader_address("t", u32::MAX), None);
    }
}
