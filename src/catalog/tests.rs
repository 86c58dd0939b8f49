//! Tests of the catalog, as conversations and as histories made at random.

mod fuzz;
mod history;
mod membership;
mod movement;
mod topics;

use super::*;
use crate::ids::ShardNumber;

/// An id of a cluster.
const CLUSTER: &str = "00112233445566778899aabbccddeeff";

fn create(name: &str, shards: u32) -> Command {
    Command::CreateTopic(CreateTopic { name: name.into(), shards, created_us: 7, ..CreateTopic::default() })
}

fn create_with(name: &str, shards: u32, replication_factor: u32) -> Command {
    Command::CreateTopic(CreateTopic { name: name.into(), shards, replication_factor, ..CreateTopic::default() })
}

fn delete(name: &str) -> Command {
    Command::DeleteTopic(DeleteTopic { name: name.into() })
}

/// A node of two reactors; `node_id` 0: any.
fn entry(node_id: u64, incarnation: u64) -> state::ClusterNode {
    state::ClusterNode {
        node_id,
        peer_host: "127.0.0.1".into(),
        peer_port: 7500,
        reactors: 2,
        grpc_address: "127.0.0.1:7400".into(),
        http_address: "127.0.0.1:7401".into(),
        incarnation,
        ..state::ClusterNode::default()
    }
}

fn init() -> Command {
    Command::InitCluster(InitCluster { cluster_id: CLUSTER.into(), node: Some(entry(0, 1_001)) })
}

/// With a certificate.
fn claim(node_id: u64, incarnation: u64) -> Command {
    Command::AddNode(AddNode { node: Some(entry(node_id, incarnation)), ..AddNode::default() })
}

fn set_state(node_id: u64, state: NodeState) -> Command {
    Command::SetNodeState(SetNodeState { node_id, state: state::NodeState::from(state).into(), keep_replicas: false })
}

fn move_shard(shard_uid: u64, target: &[u64]) -> Command {
    Command::MoveShard(MoveShard { shard_uid, target_node_ids: target.to_vec() })
}

fn finish(shard_uid: u64, nodes: &[u64]) -> Command {
    Command::FinishMove(FinishMove { shard_uid, node_ids: nodes.to_vec() })
}

fn prefer(shard_uid: u64, node_id: u64) -> Command {
    Command::PreferLeader(PreferLeader { shard_uid, node_id })
}

/// A cluster of nodes 1 to `nodes`, all active.
fn cluster(nodes: u64) -> Catalog {
    let mut catalog = Catalog::new();
    catalog.run(init()).unwrap();
    for node in 2..=nodes {
        catalog.run(claim(node, 1_000 + node)).unwrap();
    }
    catalog
}

/// Where shard `number` of a topic is.
fn replicas(catalog: &Catalog, topic: &str, number: usize) -> Replicas {
    catalog.topic(topic).unwrap().replicas[number].clone()
}

fn nodes(replicas: &Replicas) -> Vec<u64> {
    replicas.nodes.iter().map(|node| node.0).collect()
}

fn targets(replicas: &Replicas) -> Vec<u64> {
    replicas.target.iter().map(|node| node.0).collect()
}

/// Ends every move that is under way, as the shards' leaders would.
fn finish_all(catalog: &mut Catalog) {
    let views: Vec<_> = catalog.topics().cloned().collect();
    for shard in views.iter().flat_map(|topic| topic.placed_shards()) {
        if shard.replicas.is_moving() {
            let nodes: Vec<u64> = shard.replicas.target.iter().map(|node| node.0).collect();
            catalog.run(finish(shard.uid.0, &nodes)).unwrap();
        }
    }
}

/// Runs commands that the catalog itself came up with; returns how many move replicas.
fn carry_out(catalog: &mut Catalog, commands: Vec<Command>) -> usize {
    let mut moves = 0;
    for command in commands {
        catalog.check(&command).unwrap();
        moves += usize::from(matches!(command, Command::MoveShard(_)));
        catalog.run(command).unwrap();
    }
    moves
}

/// Carries out `plan` and the moves that follow from it until nothing is left to do.
fn settle(catalog: &mut Catalog) {
    for _ in 0..1_000 {
        let commands = catalog.plan(&Default::default());
        let moving = catalog.topics().any(|topic| topic.replicas.iter().any(Replicas::is_moving));
        if commands.is_empty() && !moving {
            return;
        }
        carry_out(catalog, commands);
        finish_all(catalog);
    }
    panic!("the plan does not end");
}

/// Replicas and preferred leaders of each active node.
fn loads(catalog: &Catalog) -> Vec<(usize, usize)> {
    placement::Load::of(catalog).nodes.values().map(|load| (load.all.replicas, load.all.leaders)).collect()
}

fn spread(numbers: impl Iterator<Item = usize> + Clone) -> usize {
    numbers.clone().max().unwrap_or(0) - numbers.min().unwrap_or(0)
}
