//! Topics of `ringlog.v1.Admin`, and `Log.GetServers`: one request, one response, each a call of `Frontend`.

use crate::env::Env;
use crate::frontend::CallError;
use crate::frontend::Code;
use crate::frontend::grpc::call::Call;
use crate::frontend::grpc::method::Method;
use crate::frontend::grpc::stream::Stop;
use crate::proto::ringlog::v1;

/// Answers the call of `method`.
pub(super) async fn unary<E: Env>(call: &mut Call<E>, method: Method) -> Result<(), Stop> {
    let frontend = call.frontend.clone();
    // A call that is given up may still change the catalog.
    call.definite = matches!(method, Method::GetServers | Method::ListTopics | Method::DescribeTopic);
    match method {
        Method::GetServers => {
            call.unary(async |request: v1::GetServersRequest| frontend.get_servers(&request.topics).await).await
        }
        Method::CreateTopic => {
            call.unary(async |request: v1::CreateTopicRequest| {
                let topic = Some(frontend.create_topic(request).await?);
                Ok(v1::CreateTopicResponse { topic })
            })
            .await
        }
        Method::ListTopics => {
            call.unary(async |_: v1::ListTopicsRequest| Ok(v1::ListTopicsResponse { topics: frontend.list_topics() }))
                .await
        }
        Method::DescribeTopic => {
            call.unary(async |request: v1::DescribeTopicRequest| frontend.describe_topic(&request.name).await).await
        }
        Method::DeleteTopic => {
            call.unary(async |request: v1::DeleteTopicRequest| {
                frontend.delete_topic(&request.name).await?;
                Ok(v1::DeleteTopicResponse {})
            })
            .await
        }
        Method::TrimTopic => {
            call.unary(async |request: v1::TrimTopicRequest| {
                let log_start = frontend.trim_topic(&request.name, request.shard, request.before_offset).await?;
                Ok(v1::TrimTopicResponse { log_start })
            })
            .await
        }
        Method::Produce
        | Method::ProduceStream
        | Method::Consume
        | Method::ConsumeStream
        | Method::WatchServers
        | Method::DescribeCluster
        | Method::CreateJoinToken
        | Method::DrainNode
        | Method::RemoveNode
        | Method::Rebalance
        | Method::TransferLeader
        | Method::HealthCheck
        | Method::HealthWatch
        | Method::Reflect
        | Method::ReflectAlpha
        | Method::Unknown => {
            Err(CallError::new(Code::Unimplemented, "UNKNOWN_METHOD", "this method is not one of Admin").into())
        }
    }
}
