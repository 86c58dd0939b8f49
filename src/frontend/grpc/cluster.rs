//! The calls of `ringlog.v1.Admin` about nodes and leaders: one request, one response, each a question to the control.

use crate::env::Env;
use crate::frontend::CallError;
use crate::frontend::Code;
use crate::frontend::grpc::call::Call;
use crate::frontend::grpc::method::Method;
use crate::frontend::grpc::stream::Stop;
use crate::frontend::topology::wrong_answer;
use crate::ids::NodeId;
use crate::proto::ringlog::v1;
use crate::reactor::mailbox::AdminAnswer;
use crate::reactor::mailbox::AdminCall;

/// Answers the call of `method`.
pub(super) async fn unary<E: Env>(call: &mut Call<E>, method: Method) -> Result<(), Stop> {
    let frontend = call.frontend.clone();
    // A call that is given up may still change the cluster.
    call.definite = method == Method::DescribeCluster;
    match method {
        Method::DescribeCluster => {
            call.unary(async |_: v1::DescribeClusterRequest| frontend.describe_cluster().await).await
        }
        Method::CreateJoinToken => {
            call.unary(async |request| join_token(frontend.admin(create_join_token(request)).await?)).await
        }
        Method::DrainNode => call.unary(async |request| draining(frontend.admin(drain_node(request)).await?)).await,
        Method::RemoveNode => call.unary(async |request| removed(frontend.admin(remove_node(request)).await?)).await,
        Method::Rebalance => call.unary(async |request| moves(frontend.admin(rebalance(request)).await?)).await,
        Method::TransferLeader => {
            call.unary(async |request| leader(frontend.admin(transfer_leader(request)).await?)).await
        }
        Method::Produce
        | Method::ProduceStream
        | Method::Consume
        | Method::ConsumeStream
        | Method::GetServers
        | Method::WatchServers
        | Method::CreateTopic
        | Method::ListTopics
        | Method::DescribeTopic
        | Method::DeleteTopic
        | Method::TrimTopic
        | Method::HealthCheck
        | Method::HealthWatch
        | Method::Reflect
        | Method::ReflectAlpha
        | Method::Unknown => {
            Err(CallError::new(Code::Unimplemented, "UNKNOWN_METHOD", "this method is not about the cluster").into())
        }
    }
}

fn create_join_token(request: v1::CreateJoinTokenRequest) -> AdminCall {
    AdminCall::CreateJoinToken { valid_s: request.valid_s, uses: request.uses }
}

fn join_token(answer: AdminAnswer) -> Result<v1::CreateJoinTokenResponse, CallError> {
    match answer {
        AdminAnswer::JoinToken { token, expires_us } => Ok(v1::CreateJoinTokenResponse { token, expires_us }),
        other => Err(wrong_answer(&other)),
    }
}

fn drain_node(request: v1::DrainNodeRequest) -> AdminCall {
    AdminCall::DrainNode { node: NodeId(request.node_id), undo: request.undo, force: request.force }
}

fn draining(answer: AdminAnswer) -> Result<v1::DrainNodeResponse, CallError> {
    match answer {
        AdminAnswer::Draining { replicas } => Ok(v1::DrainNodeResponse { replicas }),
        other => Err(wrong_answer(&other)),
    }
}

fn remove_node(request: v1::RemoveNodeRequest) -> AdminCall {
    AdminCall::RemoveNode { node: NodeId(request.node_id), dead: request.dead }
}

fn removed(answer: AdminAnswer) -> Result<v1::RemoveNodeResponse, CallError> {
    match answer {
        AdminAnswer::Removed { replicas } => Ok(v1::RemoveNodeResponse { replicas }),
        other => Err(wrong_answer(&other)),
    }
}

fn rebalance(request: v1::RebalanceRequest) -> AdminCall {
    AdminCall::Rebalance { dry_run: request.dry_run }
}

fn moves(answer: AdminAnswer) -> Result<v1::RebalanceResponse, CallError> {
    match answer {
        AdminAnswer::Moves(moves) => Ok(v1::RebalanceResponse { moves }),
        other => Err(wrong_answer(&other)),
    }
}

fn transfer_leader(request: v1::TransferLeaderRequest) -> AdminCall {
    let to = Some(NodeId(request.to_node_id)).filter(|node| *node != NodeId(0));
    AdminCall::TransferLeader { topic: request.topic, shard: request.shard, to }
}

fn leader(answer: AdminAnswer) -> Result<v1::TransferLeaderResponse, CallError> {
    match answer {
        AdminAnswer::Leader(leader) => Ok(v1::TransferLeaderResponse { leader_node_id: leader.0 }),
        other => Err(wrong_answer(&other)),
    }
}
