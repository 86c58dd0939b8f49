//! `Client`'s calls of the `Admin` service: topics, and the cluster itself.

use super::{Client, ClientError};
use crate::proto::ringlog::v1;

const CREATE_TOPIC: &str = "/ringlog.v1.Admin/CreateTopic";
const LIST_TOPICS: &str = "/ringlog.v1.Admin/ListTopics";
const DESCRIBE_TOPIC: &str = "/ringlog.v1.Admin/DescribeTopic";
const DELETE_TOPIC: &str = "/ringlog.v1.Admin/DeleteTopic";
const TRIM_TOPIC: &str = "/ringlog.v1.Admin/TrimTopic";
const DESCRIBE_CLUSTER: &str = "/ringlog.v1.Admin/DescribeCluster";
const CREATE_JOIN_TOKEN: &str = "/ringlog.v1.Admin/CreateJoinToken";
const DRAIN_NODE: &str = "/ringlog.v1.Admin/DrainNode";
const REMOVE_NODE: &str = "/ringlog.v1.Admin/RemoveNode";
const REBALANCE: &str = "/ringlog.v1.Admin/Rebalance";
const TRANSFER_LEADER: &str = "/ringlog.v1.Admin/TransferLeader";

impl Client {
    /// Makes a topic.
    ///
    /// # Errors
    /// `ClientError`; code `AlreadyExists` if there is one of that name.
    pub async fn create_topic(&self, request: &v1::CreateTopicRequest) -> Result<v1::Topic, ClientError> {
        let response: v1::CreateTopicResponse = self.call(CREATE_TOPIC, request).await?;
        response.topic.ok_or_else(|| ClientError::Protocol {
            address: self.address.to_string(),
            what: "CreateTopic answered without a topic".to_owned(),
        })
    }

    /// All topics.
    ///
    /// # Errors
    /// `ClientError`.
    pub async fn list_topics(&self) -> Result<Vec<v1::Topic>, ClientError> {
        let response: v1::ListTopicsResponse = self.call(LIST_TOPICS, &v1::ListTopicsRequest {}).await?;
        Ok(response.topics)
    }

    /// A topic and the state of its shards.
    ///
    /// # Errors
    /// `ClientError`; code `NotFound` if there is none.
    pub async fn describe_topic(&self, name: &str) -> Result<v1::DescribeTopicResponse, ClientError> {
        self.call(DESCRIBE_TOPIC, &v1::DescribeTopicRequest { name: name.to_owned() }).await
    }

    /// Removes a topic and all its records, for good.
    ///
    /// # Errors
    /// `ClientError`; code `NotFound` if there is none.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        let v1::DeleteTopicResponse {} =
            self.call(DELETE_TOPIC, &v1::DeleteTopicRequest { name: name.to_owned() }).await?;
        Ok(())
    }

    /// Moves a shard's log start up, and answers with the present one.
    ///
    /// # Errors
    /// `ClientError`.
    pub async fn trim_topic(&self, request: &v1::TrimTopicRequest) -> Result<u64, ClientError> {
        let response: v1::TrimTopicResponse = self.call(TRIM_TOPIC, request).await?;
        Ok(response.log_start)
    }

    /// The nodes with their health, and where every shard is: leader, replicas, lag.
    ///
    /// # Errors
    /// `ClientError`.
    pub async fn describe_cluster(&self) -> Result<v1::DescribeClusterResponse, ClientError> {
        self.call(DESCRIBE_CLUSTER, &v1::DescribeClusterRequest {}).await
    }

    /// Makes a token with which new nodes join.
    ///
    /// # Errors
    /// `ClientError`.
    pub async fn create_join_token(
        &self,
        request: &v1::CreateJoinTokenRequest,
    ) -> Result<v1::CreateJoinTokenResponse, ClientError> {
        self.call(CREATE_JOIN_TOKEN, request).await
    }

    /// Moves the replicas of a node to others, or takes that back; gives the number that it still holds.
    ///
    /// # Errors
    /// `ClientError`; code `NotFound` if there is no such node.
    pub async fn drain_node(&self, request: &v1::DrainNodeRequest) -> Result<u32, ClientError> {
        let response: v1::DrainNodeResponse = self.call(DRAIN_NODE, request).await?;
        Ok(response.replicas)
    }

    /// Takes a node out of the cluster for good; gives the number of replicas that are being moved off it.
    ///
    /// # Errors
    /// `ClientError`; code `FailedPrecondition` while it holds replicas, unless it is said to be dead.
    pub async fn remove_node(&self, request: &v1::RemoveNodeRequest) -> Result<u32, ClientError> {
        let response: v1::RemoveNodeResponse = self.call(REMOVE_NODE, request).await?;
        Ok(response.replicas)
    }

    /// Spreads replicas and leaders evenly; gives what it began to move, or would move.
    ///
    /// # Errors
    /// `ClientError`.
    pub async fn rebalance(&self, request: &v1::RebalanceRequest) -> Result<Vec<v1::ShardMove>, ClientError> {
        let response: v1::RebalanceResponse = self.call(REBALANCE, request).await?;
        Ok(response.moves)
    }

    /// Has another replica lead a shard; gives the node that leads then.
    ///
    /// # Errors
    /// `ClientError`.
    pub async fn transfer_leader(&self, request: &v1::TransferLeaderRequest) -> Result<u64, ClientError> {
        let response: v1::TransferLeaderResponse = self.call(TRANSFER_LEADER, request).await?;
        Ok(response.leader_node_id)
    }
}
