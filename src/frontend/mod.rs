//! What every front door shares: routing a call to the shard that answers it, and turning errors
//! into statuses. TO BE WRITTEN

pub mod grpc;
pub mod http;

use std::time::Duration;

use bytes::Bytes;

use crate::{
    env::Env,
    format::records::{ProduceHead, Records},
    shard::{Consume, Consumed, Durability, Produced, ShardStatus},
};

/// A gRPC status code (google.rpc.Code). The numbers are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

/// An error as a client gets it: over gRPC as `google.rpc.Status` with `ErrorInfo` (domain "ringlog") and
/// `RetryInfo`, over HTTP as JSON.
#[derive(Clone, Debug)]
pub struct CallError {
    /// Status code.
    pub code: Code,
    /// Constant name of the cause, UPPER_SNAKE_CASE.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Whether it is certain that nothing was or will be written (`ErrorInfo.metadata["definite"]`).
    pub definite: bool,
    /// Worth another try after that long.
    pub retry_after: Option<Duration>,
    /// Address of the leader, if it is another node (`metadata["leader"]`).
    pub leader: Option<String>,
}

/// A produce call from a client.
#[derive(Clone, Debug)]
pub struct ProduceCall {
    /// Topic, shard, durability, expected offset, key hash.
    pub head: ProduceHead,
    /// Checked records.
    pub records: Records,
    /// On `Env::monotonic_us`.
    pub deadline_us: Option<u64>,
}

/// A produce call's answer.
#[derive(Clone, Debug)]
pub struct ProduceAck {
    /// Topic that was written.
    pub topic: std::sync::Arc<str>,
    /// Shard of it.
    pub shard: u32,
    /// Offsets and the rest.
    pub produced: Produced,
}

/// A consume call from a client.
#[derive(Clone, Debug)]
pub struct ConsumeCall {
    /// Empty: the default topic.
    pub topic: String,
    /// Shard number.
    pub shard: u32,
    /// What to read.
    pub consume: Consume,
}

/// The front doors' view of the node: one per reactor, and one for the ops thread. Cheap to clone.
pub struct Frontend<E: Env> {
    _todo: std::marker::PhantomData<E>,
}

impl<E: Env> Clone for Frontend<E> {
    fn clone(&self) -> Self {
        Frontend { _todo: std::marker::PhantomData }
    }
}

impl<E: Env> Frontend<E> {
    /// Routes and queues a produce at once: calls made one after the other that go to one shard get ascending offsets, as long as the
    /// topic exists (a call that creates it waits for that first). Dropping the future does not take the request back.
    pub fn produce(&self, call: ProduceCall) -> impl Future<Output = Result<ProduceAck, CallError>> + 'static {
        let _ = call;
        async { todo!() }
    }

    /// Reads committed records.
    pub fn consume(&self, call: ConsumeCall) -> impl Future<Output = Result<Consumed, CallError>> + 'static {
        let _ = call;
        async { todo!() }
    }

    /// `Admin.CreateTopic`.
    pub async fn create_topic(
        &self,
        request: crate::proto::ringlog::v1::CreateTopicRequest,
    ) -> Result<crate::proto::ringlog::v1::Topic, CallError> {
        let _ = request;
        todo!()
    }

    /// `Admin.ListTopics`, sorted by name.
    pub fn list_topics(&self) -> Vec<crate::proto::ringlog::v1::Topic> {
        todo!()
    }

    /// `Admin.DescribeTopic`.
    pub async fn describe_topic(
        &self,
        name: &str,
    ) -> Result<crate::proto::ringlog::v1::DescribeTopicResponse, CallError> {
        let _ = name;
        todo!()
    }

    /// `Admin.DeleteTopic`.
    pub async fn delete_topic(&self, name: &str) -> Result<(), CallError> {
        let _ = name;
        todo!()
    }

    /// `Admin.TrimTopic`.
    pub async fn trim_topic(&self, name: &str, shard: u32, before_offset: u64) -> Result<u64, CallError> {
        let _ = (name, shard, before_offset);
        todo!()
    }

    /// `Log.GetServers`.
    pub async fn get_servers(
        &self,
        topics: Vec<String>,
    ) -> Result<crate::proto::ringlog::v1::GetServersResponse, CallError> {
        let _ = topics;
        todo!()
    }

    /// Whether the node serves: recovered, not shutting down, at least one shard well. For health checks.
    pub fn is_serving(&self) -> bool {
        todo!()
    }

    /// Resolves when the node begins to shut down: connections finish what they have, and go away.
    pub fn shutting_down(&self) -> impl Future<Output = ()> + 'static {
        async { todo!() }
    }
}

/// For docs: what a shard's numbers look like on the wire.
pub fn shard_status_message(shard: u32, status: &ShardStatus) -> crate::proto::ringlog::v1::ShardStatus {
    let _ = (shard, status, Durability::QuorumFlushed, Bytes::new());
    todo!()
}
