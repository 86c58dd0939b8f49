//! The JSON of the HTTP API: what comes in becomes the same protobuf messages that gRPC clients
//! send, and what goes out is made from them, so there is one path through the node.
//!
//! Bytes are base64 (standard alphabet; padding optional on the way in). For text there is a second
//! name each: `key_text`, `value_text`. On the way in either may be given; on the way out, with
//! `?text=true`, the `_text` one is used wherever the bytes are valid UTF-8.

mod records;

use prost::Message;
use serde::{Deserialize, Serialize};

pub use self::records::ConsumedOut;
use self::records::RecordsIn;
use crate::{
    frontend::{
        ProduceAck,
        status::{CallError, Code},
    },
    proto::ringlog::v1 as proto,
    shard::Durability,
};

/// Body of a produce.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProduceBody {
    records: RecordsIn,
    shard: Option<u32>,
    durability: Option<DurabilityName>,
    expected_offset: Option<u64>,
}

/// A durability by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DurabilityName {
    /// Flushed on a majority of replicas.
    QuorumFlushed,
    /// In the leader's memory only.
    LeaderMemory,
}

impl ProduceBody {
    /// The same as an encoded `ProduceRequest`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for bytes given twice or not in base64, `RESOURCE_EXHAUSTED` for records that are too large for a message.
    pub fn into_message(self, topic: String) -> Result<Vec<u8>, CallError> {
        let durability = match self.durability {
            None => proto::Durability::Unspecified,
            Some(DurabilityName::QuorumFlushed) => proto::Durability::QuorumFlushed,
            Some(DurabilityName::LeaderMemory) => proto::Durability::LeaderMemory,
        };
        let mut message = self.records.into_fields()?;
        let others = proto::ProduceRequest {
            topic,
            shard: self.shard,
            records: Vec::new(),
            durability: durability.into(),
            expected_offset: self.expected_offset,
        };
        others.encode(&mut message).expect("a vector takes all bytes");
        Ok(message)
    }
}

/// Answer to a produce.
#[derive(Debug, Serialize)]
pub struct AckOut {
    topic: String,
    shard: u32,
    base_offset: u64,
    count: u32,
    timestamp_us: i64,
    durability: DurabilityName,
    /// Set when another node leads the shard: go there straight next time.
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<LeaderHintOut>,
}

#[derive(Debug, Serialize)]
struct LeaderHintOut {
    node_id: u64,
    address: String,
}

impl From<ProduceAck> for AckOut {
    fn from(ack: ProduceAck) -> AckOut {
        AckOut {
            topic: ack.topic.to_string(),
            shard: ack.shard,
            base_offset: ack.produced.base_offset.0,
            count: ack.produced.count,
            timestamp_us: ack.produced.timestamp_us,
            durability: match ack.produced.durability {
                Durability::QuorumFlushed => DurabilityName::QuorumFlushed,
                Durability::LeaderMemory => DurabilityName::LeaderMemory,
            },
            leader: ack.leader.map(|leader| LeaderHintOut { node_id: leader.node_id, address: leader.address }),
        }
    }
}

/// Retention of a topic, in and out; 0 is no limit.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionJson {
    bytes_max: u64,
    age_ms_max: u64,
}

/// Settings of a topic, in and out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopicConfigJson {
    retention: Option<RetentionJson>,
    segment_bytes: u64,
}

/// Body of a topic's creation; may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateTopicBody {
    shards: u32,
    config: Option<TopicConfigJson>,
    replication_factor: u32,
}

impl CreateTopicBody {
    /// The same as a protobuf message.
    pub fn into_request(self, name: String) -> proto::CreateTopicRequest {
        let config = self.config.map(|config| proto::TopicConfig {
            retention: config
                .retention
                .map(|retention| proto::Retention { bytes_max: retention.bytes_max, age_ms_max: retention.age_ms_max }),
            segment_bytes: config.segment_bytes,
        });
        proto::CreateTopicRequest { name, shards: self.shards, config, replication_factor: self.replication_factor }
    }
}

/// A topic.
#[derive(Debug, Serialize)]
pub struct TopicOut {
    name: String,
    topic_id: u64,
    shards: u32,
    config: TopicConfigJson,
    created_us: i64,
    replication_factor: u32,
}

impl From<proto::Topic> for TopicOut {
    fn from(topic: proto::Topic) -> TopicOut {
        let config = topic.config.unwrap_or_default();
        let retention = config.retention.unwrap_or_default();
        let retention = RetentionJson { bytes_max: retention.bytes_max, age_ms_max: retention.age_ms_max };
        TopicOut {
            name: topic.name,
            topic_id: topic.topic_id,
            shards: topic.shards,
            config: TopicConfigJson { retention: Some(retention), segment_bytes: config.segment_bytes },
            created_us: topic.created_us,
            replication_factor: topic.replication_factor,
        }
    }
}

/// All topics.
#[derive(Debug, Serialize)]
pub struct TopicsOut {
    topics: Vec<TopicOut>,
}

impl From<Vec<proto::Topic>> for TopicsOut {
    fn from(topics: Vec<proto::Topic>) -> TopicsOut {
        TopicsOut { topics: topics.into_iter().map(TopicOut::from).collect() }
    }
}

/// A topic and its shards.
#[derive(Debug, Serialize)]
pub struct DescribedOut {
    topic: Option<TopicOut>,
    shards: Vec<ShardStatusOut>,
}

/// A shard.
#[derive(Debug, Serialize)]
pub struct ShardStatusOut {
    shard: u32,
    shard_uid: u64,
    reactor: u32,
    leader_node_id: u64,
    term: u64,
    log_start: u64,
    high_watermark: u64,
    log_end: u64,
    size_bytes: u64,
    segments: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    fault: String,
    replica_node_ids: Vec<u64>,
    replicas: Vec<ReplicaStatusOut>,
}

#[derive(Debug, Serialize)]
struct ReplicaStatusOut {
    node_id: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    fault: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    stalled: String,
    log_start: u64,
    high_watermark: u64,
    log_end: u64,
    /// Null: nobody knows.
    lag: Option<u64>,
    learner: bool,
    /// Hexadecimal: JSON's numbers are not wide enough everywhere.
    chain: String,
    applied_end: u64,
}

impl From<proto::ReplicaStatus> for ReplicaStatusOut {
    fn from(status: proto::ReplicaStatus) -> ReplicaStatusOut {
        ReplicaStatusOut {
            node_id: status.node_id,
            fault: status.fault,
            stalled: status.stalled,
            log_start: status.log_start,
            high_watermark: status.high_watermark,
            log_end: status.log_end,
            lag: (!status.lag_unknown).then_some(status.lag),
            learner: status.learner,
            chain: format!("{:016x}", status.chain),
            applied_end: status.applied_end,
        }
    }
}

impl From<proto::ShardStatus> for ShardStatusOut {
    fn from(status: proto::ShardStatus) -> ShardStatusOut {
        ShardStatusOut {
            shard: status.shard,
            shard_uid: status.shard_uid,
            reactor: status.reactor,
            leader_node_id: status.leader_node_id,
            term: status.term,
            log_start: status.log_start,
            high_watermark: status.high_watermark,
            log_end: status.log_end,
            size_bytes: status.size_bytes,
            segments: status.segments,
            fault: status.fault,
            replica_node_ids: status.replica_node_ids,
            replicas: status.replicas.into_iter().map(ReplicaStatusOut::from).collect(),
        }
    }
}

impl From<proto::DescribeTopicResponse> for DescribedOut {
    fn from(response: proto::DescribeTopicResponse) -> DescribedOut {
        DescribedOut {
            topic: response.topic.map(TopicOut::from),
            shards: response.shards.into_iter().map(ShardStatusOut::from).collect(),
        }
    }
}

/// Body of a trim.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrimBody {
    /// New log start.
    pub before_offset: u64,
}

/// Answer to a trim.
#[derive(Debug, Serialize)]
pub struct TrimOut {
    /// First offset kept.
    pub log_start: u64,
}

/// The topology.
#[derive(Debug, Serialize)]
pub struct ServersOut {
    cluster_id: String,
    servers: Vec<ServerOut>,
    topics: Vec<TopicShardsOut>,
}

#[derive(Debug, Serialize)]
struct ServerOut {
    node_id: u64,
    grpc_address: String,
    http_address: String,
    reactors: u32,
    alive: bool,
    draining: bool,
}

#[derive(Debug, Serialize)]
struct TopicShardsOut {
    topic: String,
    shards: Vec<ShardLeaderOut>,
}

#[derive(Debug, Serialize)]
struct ShardLeaderOut {
    shard: u32,
    leader_node_id: u64,
    term: u64,
    reactor: u32,
    replica_node_ids: Vec<u64>,
}

impl From<proto::GetServersResponse> for ServersOut {
    fn from(response: proto::GetServersResponse) -> ServersOut {
        let server = |server: proto::Server| ServerOut {
            node_id: server.node_id,
            grpc_address: server.grpc_address,
            http_address: server.http_address,
            reactors: server.reactors,
            alive: server.alive,
            draining: server.draining,
        };
        let leader = |shard: proto::ShardLeader| ShardLeaderOut {
            shard: shard.shard,
            leader_node_id: shard.leader_node_id,
            term: shard.term,
            reactor: shard.reactor,
            replica_node_ids: shard.replica_node_ids,
        };
        let topic = |topic: proto::TopicShards| TopicShardsOut {
            topic: topic.topic,
            shards: topic.shards.into_iter().map(leader).collect(),
        };
        ServersOut {
            cluster_id: response.cluster_id,
            servers: response.servers.into_iter().map(server).collect(),
            topics: response.topics.into_iter().map(topic).collect(),
        }
    }
}

/// An error.
#[derive(Debug, Serialize)]
pub struct ErrorOut {
    code: &'static str,
    reason: &'static str,
    message: String,
    definite: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<String>,
}

impl From<CallError> for ErrorOut {
    fn from(error: CallError) -> ErrorOut {
        let CallError { code, reason, message, definite, retry_after, leader, behind_definite: _ } = error;
        let retry_after_ms = retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        ErrorOut { code: code.name(), reason, message, definite, retry_after_ms, leader }
    }
}

/// HTTP's number for an error: google.rpc.Code's own table, except where HTTP has a more exact one.
pub fn http_status(error: &CallError) -> u16 {
    match (error.code, error.reason) {
        (_, "MESSAGE_TOO_LARGE") => 413,
        (_, "METHOD_NOT_ALLOWED") => 405,
        (_, "NOT_JSON") => 415,
        (_, "HOST_UNKNOWN") => 421,
        (Code::Ok, _) => 200,
        (Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange, _) => 400,
        (Code::Unauthenticated, _) => 401,
        (Code::PermissionDenied, _) => 403,
        (Code::NotFound, _) => 404,
        (Code::AlreadyExists | Code::Aborted, _) => 409,
        (Code::ResourceExhausted, _) => 429,
        (Code::Cancelled, _) => 499,
        (Code::Unknown | Code::Internal | Code::DataLoss, _) => 500,
        (Code::Unimplemented, _) => 501,
        (Code::Unavailable, _) => 503,
        (Code::DeadlineExceeded, _) => 504,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::MESSAGE_BYTES_MAX;

    fn request(json: &str) -> Result<proto::ProduceRequest, CallError> {
        let message = serde_json::from_str::<ProduceBody>(json).unwrap().into_message("t".into())?;
        Ok(proto::ProduceRequest::decode(&message[..]).unwrap())
    }

    /// Every field of a record, as bytes and as text, becomes what a gRPC client would have sent.
    #[test]
    fn records_in() {
        let request = request(
            r#"{"shard": 2, "durability": "leader_memory", "expected_offset": 7, "records": [
                {"key": "/w==", "value_text": "h\u00e9", "timestamp_us": 5, "headers": [{"name": "n", "value": "AQ"}]},
                {}]}"#,
        );
        let request = request.unwrap();
        assert_eq!((request.shard, request.expected_offset, request.durability), (Some(2), Some(7), 2));
        let first = &request.records[0];
        assert_eq!((&first.key[..], &first.value[..], first.timestamp_us), (&b"\xff"[..], "hé".as_bytes(), 5));
        assert_eq!((&first.headers[0].name[..], &first.headers[0].value[..]), ("n", &[1][..]));
        assert_eq!(request.records[1], proto::Record::default());
    }

    /// Bytes that are no base64, or are given twice, are refused with what to do.
    #[test]
    fn refused_records() {
        let error = request(r#"{"records": [{"value": "h\u00e9"}]}"#).unwrap_err();
        assert!(error.message.contains("value_text"), "{}", error.message);
        let error = request(r#"{"records": [{"key": "AQ==", "key_text": "x"}]}"#).unwrap_err();
        assert_eq!(error.reason, "BYTES_GIVEN_TWICE");
        let after_it =
            request(r#"{"records": [{}, {"value": "?"}, {"value": "?", "value_text": "x"}, {}], "shard": 1}"#);
        assert_eq!(after_it.unwrap_err().reason, "BASE64_INVALID");
        let large = format!(r#"{{"value_text": "{}"}}"#, "x".repeat(MESSAGE_BYTES_MAX / 4));
        let too_many = request(&format!(r#"{{"records": [{large}, {large}, {large}, {large}, {{}}]}}"#));
        assert_eq!(too_many.unwrap_err().reason, "MESSAGE_TOO_LARGE");
        let unknown = serde_json::from_str::<ProduceBody>(r#"{"records": [], "acks": 1}"#).unwrap_err();
        assert!(unknown.to_string().contains("acks"));
    }

    /// An error carries what a program needs to go on.
    #[test]
    fn errors() {
        let error = CallError::retry(Code::ResourceExhausted, "DISK_FULL", "no space");
        assert_eq!(http_status(&error), 429);
        let json = serde_json::to_string(&ErrorOut::from(error)).unwrap();
        let wanted = r#"{"code":"RESOURCE_EXHAUSTED","reason":"DISK_FULL","message":"no space","definite":true,"retry_after_ms":50}"#;
        assert_eq!(json, wanted);
        assert_eq!(http_status(&CallError::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", "")), 413);
    }

    /// Bodies of any bytes (`crate::fuzz`): what is accepted is a request that the node's own decoder accepts.
    #[test]
    fn fuzz() {
        let corpus = [
            r#"{"shard": 2, "durability": "leader_memory", "expected_offset": 7, "records": [
                {"key": "/w==", "value_text": "h", "timestamp_us": 5, "headers": [{"name": "n", "value": "AQ"}]}, {}]}"#,
            r#"{"records":[{"value":"aGk="}]}"#,
        ];
        let words =
            &["{", "}", "[", "]", "\"", ",", ":", "null", "\"key\":", "\"records\":", "\\ud800", "1e99", "-1", "="];
        crate::fuzz::Target::new("frontend::http::json::tests::fuzz", corpus, |bytes| {
            let body: ProduceBody = serde_json::from_slice(bytes).ok()?;
            let message = body.into_message("t".into()).ok()?;
            let request = proto::ProduceRequest::decode(&message[..]).unwrap();
            let parsed = crate::format::records::Records::parse(message.into(), usize::MAX);
            let is_refused = request.records.iter().any(|record| record.timestamp_us < 0);
            assert_eq!(parsed.is_ok(), !request.records.is_empty() && !is_refused);
            Some(request)
        })
        .words(words)
        .run();
        let corpus = [r#"{"shards":3,"config":{"retention":{"bytes_max":1,"age_ms_max":2},"segment_bytes":3}}"#, "{}"];
        crate::fuzz::Target::new("frontend::http::json::tests::fuzz", corpus, |bytes| {
            let body: CreateTopicBody = serde_json::from_slice(bytes).ok()?;
            Some(body.into_request("t".into()))
        })
        .words(words)
        .run();
        crate::fuzz::Target::new("frontend::http::json::tests::fuzz", [r#"{"before_offset":7}"#], |bytes| {
            serde_json::from_slice::<TrimBody>(bytes).ok().map(|body| body.before_offset)
        })
        .words(words)
        .run();
    }
}
