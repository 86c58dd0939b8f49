//! Nodes and leaders over HTTP: each page a call of `Admin`.

use axum::{
    Json,
    extract::{Path, Query, Request, State, rejection::PathRejection, rejection::QueryRejection},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Api, Result, SMALL_BODY_BYTES_MAX, bad_path, bad_query, json::ShardStatusOut, json::TopicOut, parse};
use crate::{
    frontend::topology::wrong_answer,
    ids::NodeId,
    proto::ringlog::v1 as proto,
    reactor::mailbox::{AdminAnswer, AdminCall},
};

#[derive(Debug, Serialize)]
pub(super) struct ClusterOut {
    cluster_id: String,
    nodes: Vec<NodeOut>,
    catalog_leader_node_id: u64,
    catalog_voter_node_ids: Vec<u64>,
    topics: Vec<TopicStatusOut>,
}

#[derive(Debug, Serialize)]
struct NodeOut {
    node_id: u64,
    state: &'static str,
    alive: bool,
    grpc_address: String,
    http_address: String,
    peer_address: String,
    reactors: u32,
    replicas: u32,
    leaders: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    fault: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    catalog_fault: String,
}

#[derive(Debug, Serialize)]
struct TopicStatusOut {
    topic: Option<TopicOut>,
    shards: Vec<ShardStatusOut>,
}

impl From<proto::NodeStatus> for NodeOut {
    fn from(node: proto::NodeStatus) -> NodeOut {
        let state = match node.state() {
            proto::NodeState::Unspecified => "unknown",
            proto::NodeState::Active => "active",
            proto::NodeState::Draining => "draining",
            proto::NodeState::Removed => "removed",
        };
        NodeOut {
            node_id: node.node_id,
            state,
            alive: node.alive,
            grpc_address: node.grpc_address,
            http_address: node.http_address,
            peer_address: node.peer_address,
            reactors: node.reactors,
            replicas: node.replicas,
            leaders: node.leaders,
            fault: node.fault,
            catalog_fault: node.catalog_fault,
        }
    }
}

impl From<proto::DescribeClusterResponse> for ClusterOut {
    fn from(cluster: proto::DescribeClusterResponse) -> ClusterOut {
        let topic = |status: proto::TopicStatus| TopicStatusOut {
            topic: status.topic.map(TopicOut::from),
            shards: status.shards.into_iter().map(ShardStatusOut::from).collect(),
        };
        ClusterOut {
            cluster_id: cluster.cluster_id,
            nodes: cluster.nodes.into_iter().map(NodeOut::from).collect(),
            catalog_leader_node_id: cluster.catalog_leader_node_id,
            catalog_voter_node_ids: cluster.catalog_voter_node_ids,
            topics: cluster.topics.into_iter().map(topic).collect(),
        }
    }
}

pub(super) async fn describe(State(api): State<Api>) -> Result<Json<ClusterOut>> {
    Ok(Json(api.remote.describe_cluster().await?.into()))
}

/// Reads a body that may be left out.
async fn optional<T: DeserializeOwned + Default>(api: &Api, request: Request) -> Result<T> {
    let (body, _held) = api.read_body(request, SMALL_BODY_BYTES_MAX).await?;
    if body.is_empty() { Ok(T::default()) } else { parse(&body) }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct JoinTokenBody {
    valid_s: u32,
    uses: u32,
}

#[derive(Debug, Serialize)]
pub(super) struct JoinTokenOut {
    token: String,
    expires_us: i64,
}

pub(super) async fn create_join_token(State(api): State<Api>, request: Request) -> Result<Json<JoinTokenOut>> {
    let JoinTokenBody { valid_s, uses } = optional(&api, request).await?;
    match api.remote.admin(AdminCall::CreateJoinToken { valid_s, uses }).await? {
        AdminAnswer::JoinToken { token, expires_us } => Ok(Json(JoinTokenOut { token, expires_us })),
        other => Err(wrong_answer(&other)),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DrainBody {
    undo: bool,
    force: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct ReplicasOut {
    replicas: u32,
}

pub(super) async fn drain_node(
    State(api): State<Api>,
    node: std::result::Result<Path<u64>, PathRejection>,
    request: Request,
) -> Result<Json<ReplicasOut>> {
    let Path(node) = node.map_err(bad_path)?;
    let DrainBody { undo, force } = optional(&api, request).await?;
    match api.remote.admin(AdminCall::DrainNode { node: NodeId(node), undo, force }).await? {
        AdminAnswer::Draining { replicas } => Ok(Json(ReplicasOut { replicas })),
        other => Err(wrong_answer(&other)),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveQuery {
    #[serde(default)]
    dead: bool,
}

pub(super) async fn remove_node(
    State(api): State<Api>,
    node: std::result::Result<Path<u64>, PathRejection>,
    query: std::result::Result<Query<RemoveQuery>, QueryRejection>,
) -> Result<Json<ReplicasOut>> {
    let Path(node) = node.map_err(bad_path)?;
    let Query(RemoveQuery { dead }) = query.map_err(bad_query)?;
    match api.remote.admin(AdminCall::RemoveNode { node: NodeId(node), dead }).await? {
        AdminAnswer::Removed { replicas } => Ok(Json(ReplicasOut { replicas })),
        other => Err(wrong_answer(&other)),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RebalanceBody {
    dry_run: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct MovesOut {
    moves: Vec<MoveOut>,
}

#[derive(Debug, Serialize)]
struct MoveOut {
    topic: String,
    shard: u32,
    from_node_ids: Vec<u64>,
    to_node_ids: Vec<u64>,
}

impl From<proto::ShardMove> for MoveOut {
    fn from(change: proto::ShardMove) -> MoveOut {
        let proto::ShardMove { topic, shard, from_node_ids, to_node_ids } = change;
        MoveOut { topic, shard, from_node_ids, to_node_ids }
    }
}

pub(super) async fn rebalance(State(api): State<Api>, request: Request) -> Result<Json<MovesOut>> {
    let RebalanceBody { dry_run } = optional(&api, request).await?;
    match api.remote.admin(AdminCall::Rebalance { dry_run }).await? {
        AdminAnswer::Moves(moves) => Ok(Json(MovesOut { moves: moves.into_iter().map(MoveOut::from).collect() })),
        other => Err(wrong_answer(&other)),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LeaderBody {
    to_node_id: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct LeaderOut {
    leader_node_id: u64,
}

pub(super) async fn transfer_leader(
    State(api): State<Api>,
    path: std::result::Result<Path<(String, u32)>, PathRejection>,
    request: Request,
) -> Result<Json<LeaderOut>> {
    let Path((topic, shard)) = path.map_err(bad_path)?;
    let LeaderBody { to_node_id } = optional(&api, request).await?;
    let to = Some(NodeId(to_node_id)).filter(|node| *node != NodeId(0));
    match api.remote.admin(AdminCall::TransferLeader { topic, shard, to }).await? {
        AdminAnswer::Leader(leader) => Ok(Json(LeaderOut { leader_node_id: leader.0 })),
        other => Err(wrong_answer(&other)),
    }
}
