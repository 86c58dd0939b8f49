//! Calls from a thread that owns no shards, and calls about topics from any thread: everything goes
//! through mailboxes. `Send`, so that the ops thread's HTTP server can use it.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use tokio::sync::oneshot;

use crate::{
    catalog::{self, CreateTopic},
    frontend::{
        ConsumeCall, ProduceAck, ProduceCall, TopicRead, produce_of,
        refusal::explained,
        route,
        status::{CallError, Code},
    },
    ids::{Offset, ReactorNumber},
    limits,
    proto::ringlog::v1 as proto,
    reactor::{
        ReactorError,
        control::ControlError,
        mailbox::Request,
        node::{Node, Phase},
        topics::PlacedTopic,
    },
    shard::{Consume, Consumed, Durability, Produce, Start},
};

/// Room for the other fields of a response, so that a whole one stays within the message limit,
/// which is also what stock clients accept.
const RESPONSE_BYTES_EXTRA: usize = 4096;

/// What clients may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest message in bytes.
    pub message_bytes_max: usize,
    /// Largest record in bytes, as encoded.
    pub record_bytes_max: usize,
}

/// See the module's description. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Remote {
    node: Arc<Node>,
    turn: Arc<AtomicU32>,
}

impl Remote {
    /// Calls to `node`.
    pub fn new(node: Arc<Node>) -> Remote {
        Remote { node, turn: Arc::default() }
    }

    /// The node that is called.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Largest message and record that clients may send.
    pub fn limits(&self) -> Limits {
        let config = &self.node.config;
        Limits { message_bytes_max: config.message_bytes_max, record_bytes_max: config.record_bytes_max }
    }

    /// Whether unknown topics are made on first produce.
    pub fn auto_create(&self) -> bool {
        self.node.config.auto_create.unwrap_or_else(|| self.node.config.grpc.ip().is_loopback())
    }

    /// Appends records. Dropping the future does not take the request back.
    ///
    /// # Errors
    /// As documented in `status`.
    pub async fn produce(&self, call: ProduceCall) -> Result<ProduceAck, CallError> {
        let ProduceCall { head, records, deadline_us } = call;
        let view = self.topic_to_write(route::topic_name(&head.topic)).await?;
        let turn = self.turn.fetch_add(1, Relaxed);
        let near = if view.alone { Vec::new() } else { route::near_now(&self.node, &view, None) };
        let shard = route::produce_shard(&view, head.shard, head.key_hash, &near, turn)?;
        let place = route::numbered_shard(&view, shard)?;
        let produce = Produce { single: true, ..produce_of(&head, records, deadline_us)? };
        let produced = self.ask(place.reactor, true, |reply| Request::Produce { uid: place.uid, produce, reply }).await;
        let produced = produced.map_err(|error| explained(error, &self.node.book))?;
        Ok(ProduceAck::new(&self.node, Arc::clone(&view.view.name), shard, produced))
    }

    /// Reads committed records. A wait ends early, with an error, when the node shuts down.
    ///
    /// # Errors
    /// As documented in `status`.
    pub async fn consume(&self, call: ConsumeCall, topic: &TopicRead) -> Result<Consumed, CallError> {
        let consume = checked_consume(call.consume, self.limits())?;
        let view = self.find_topic(route::topic_name(&call.topic)).await?;
        topic.check(view.view.id).map_err(|error| explained(error, &self.node.book))?;
        let place = route::numbered_shard(&view, call.shard)?;
        let consumed = self.ask(place.reactor, false, |reply| Request::Consume { uid: place.uid, consume, reply });
        tokio::select! {
            biased;
            result = consumed => result.map_err(|error| explained(error, &self.node.book)),
            () = self.node.reached(Phase::Draining), if !consume.wait.is_zero() => Err(CallError::stopping(false)),
        }
    }

    /// `Admin.CreateTopic`.
    ///
    /// # Errors
    /// See `Frontend::create_topic`.
    pub async fn create_topic(&self, request: proto::CreateTopicRequest) -> Result<proto::Topic, CallError> {
        catalog::validate_topic_name(&request.name)?;
        let create = self.create_command(request)?;
        let (reply, created) = oneshot::channel();
        self.node.send(ReactorNumber(0), Request::CreateTopic { create, reply })?;
        let view = created.await.map_err(|_| self.no_answer())??;
        Ok(topic_message(&view))
    }

    /// Makes an unknown topic for its first produce; that somebody else has just made it is fine.
    ///
    /// # Errors
    /// See `Frontend::create_topic`.
    async fn auto_create_topic(&self, name: &str) -> Result<(), CallError> {
        let request = proto::CreateTopicRequest { name: name.to_owned(), ..Default::default() };
        match self.create_topic(request).await {
            Ok(_) => Ok(()),
            // This node's own catalog may not know it yet.
            Err(error) if error.code == Code::AlreadyExists => self.learn_topics().await,
            Err(error) => Err(error),
        }
    }

    /// `Admin.ListTopics`, sorted by name.
    pub fn list_topics(&self) -> Vec<proto::Topic> {
        let mut topics: Vec<_> = self.node.topics.snapshot().values().map(|view| topic_message(view)).collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    /// `Admin.DeleteTopic`.
    ///
    /// # Errors
    /// See `Frontend::delete_topic`.
    pub async fn delete_topic(&self, name: &str) -> Result<(), CallError> {
        if name.is_empty() {
            let message = "name the topic to delete; an empty name does not mean the default topic here";
            return Err(CallError::invalid("TOPIC_NAME_INVALID", message));
        }
        let (reply, deleted) = oneshot::channel();
        self.node.send(ReactorNumber(0), Request::DeleteTopic { name: name.to_owned(), reply })?;
        Ok(deleted.await.map_err(|_| self.no_answer())??)
    }

    /// `Admin.TrimTopic`.
    ///
    /// # Errors
    /// See `Frontend::trim_topic`.
    pub async fn trim_topic(&self, name: &str, shard: u32, before_offset: u64) -> Result<u64, CallError> {
        let view = self.find_topic(route::topic_name(name)).await?;
        let place = route::numbered_shard(&view, shard)?;
        let before = Offset(before_offset);
        let start = self.ask(place.reactor, true, |reply| Request::Trim { uid: place.uid, before, reply }).await;
        Ok(start.map_err(|error| explained(error, &self.node.book))?.0)
    }

    /// Whether a topic that this node does not know can exist at all.
    ///
    /// # Errors
    /// Still recovering; an impossible name.
    pub(super) fn check_unknown(&self, name: &str) -> Result<(), CallError> {
        if self.node.phase() == Phase::Starting {
            return Err(CallError::starting());
        }
        Ok(catalog::validate_topic_name(name)?)
    }

    /// The topic. One that this node does not know may have been made through another node a moment ago: that it does
    /// not exist is said only when the catalog's leader was asked.
    ///
    /// # Errors
    /// `NOT_FOUND`, `UNAVAILABLE`.
    pub(super) async fn find_topic(&self, name: &str) -> Result<Arc<PlacedTopic>, CallError> {
        if let Some(topic) = self.known_topic(name) {
            return Ok(topic);
        }
        self.check_unknown(name)?;
        self.learn_topics().await?;
        self.known_topic(name).ok_or_else(|| CallError::no_topic(name))
    }

    fn known_topic(&self, name: &str) -> Option<Arc<PlacedTopic>> {
        self.node.topics.snapshot().get(name).cloned()
    }

    /// Waits until this node knows all topics that exist by now.
    async fn learn_topics(&self) -> Result<(), CallError> {
        let (reply, learned) = oneshot::channel();
        self.node.send(ReactorNumber(0), Request::LearnTopics { reply })?;
        Ok(learned.await.map_err(|_| self.no_answer())??)
    }

    /// The topic, made if it does not exist and that is allowed.
    ///
    /// # Errors
    /// As `find_topic` and `create_topic`.
    pub(super) async fn topic_to_write(&self, name: &str) -> Result<Arc<PlacedTopic>, CallError> {
        if self.auto_create() && self.known_topic(name).is_none() {
            self.check_unknown(name)?;
            self.auto_create_topic(name).await?;
        }
        self.find_topic(name).await
    }

    fn create_command(&self, request: proto::CreateTopicRequest) -> Result<CreateTopic, CallError> {
        let proto::CreateTopicRequest { name, shards, config, replication_factor } = request;
        let shards = if shards == 0 { self.node.reactors.len() as u32 } else { shards };
        let proto::TopicConfig { retention, segment_bytes } = config.unwrap_or_default();
        let block = limits::BLOCK_BYTES as u64;
        if !segment_bytes.is_multiple_of(block) {
            let message =
                format!("segment_bytes is a multiple of {block}, or 0 for the node's setting; not {segment_bytes}");
            return Err(CallError::invalid("SEGMENT_BYTES_INVALID", message));
        }
        let retention = retention.unwrap_or(proto::Retention {
            bytes_max: self.node.config.retention_bytes,
            age_ms_max: self.node.config.retention_age_ms,
        });
        let proto::Retention { bytes_max, age_ms_max } = retention;
        Ok(CreateTopic {
            name,
            shards,
            retention_bytes_max: bytes_max,
            retention_age_ms_max: age_ms_max,
            segment_bytes,
            // Reactor 0's clock, when it proposes.
            created_us: 0,
            replication_factor: match replication_factor {
                0 => self.node.config.replication_factor,
                factor => factor,
            },
        })
    }

    /// Sends one request and waits for its answer. `writes`: without an answer it may still have been done.
    pub(super) fn ask<T: Send + 'static, R: FnOnce(oneshot::Sender<Result<T, ReactorError>>) -> Request>(
        &self,
        reactor: ReactorNumber,
        writes: bool,
        request: R,
    ) -> impl Future<Output = Result<T, ReactorError>> + Send + use<T, R> {
        let (reply, answer) = oneshot::channel();
        let sent = self.node.send(reactor, request(reply));
        async move {
            sent?;
            answer.await.unwrap_or(Err(stopped(writes)))
        }
    }

    /// Reactor 0 dropped a request about topics.
    pub(super) fn no_answer(&self) -> CallError {
        if self.node.phase() == Phase::Starting { CallError::starting() } else { CallError::stopping(true) }
    }
}

/// The reactor dropped a request.
pub(super) fn stopped(maybe_written: bool) -> ReactorError {
    ReactorError::Stopped { maybe_written }
}

/// The durability that a request asks for.
pub(super) fn durability(wire: i32) -> Result<Durability, CallError> {
    match proto::Durability::try_from(wire) {
        Ok(proto::Durability::Unspecified | proto::Durability::QuorumFlushed) => Ok(Durability::QuorumFlushed),
        Ok(proto::Durability::LeaderMemory) => Ok(Durability::LeaderMemory),
        Err(_) => {
            let message = format!("durability {wire} is not known to this server; leave it out for the safe default");
            Err(CallError::invalid("DURABILITY_UNKNOWN", message))
        }
    }
}

/// A consume within its bounds: 0 is replaced by the server's value, bytes are cut to what a
/// message may have, and a longer wait than the limit is refused.
pub(super) fn checked_consume(consume: Consume, limits: Limits) -> Result<Consume, CallError> {
    if consume.wait > limits::CONSUME_WAIT_MAX {
        let (wait, max) = (consume.wait.as_millis(), limits::CONSUME_WAIT_MAX.as_millis());
        let message = format!("wait_ms is at most {max}, not {wait}; ask again after it, or use ConsumeStream");
        return Err(CallError::invalid("WAIT_TOO_LONG", message));
    }
    if let Start::Timestamp(timestamp_us) = consume.start
        && timestamp_us < 0
    {
        let message =
            format!("timestamp_us counts from 1970 and is not negative: {timestamp_us}; 0 is before all records");
        return Err(CallError::invalid("TIMESTAMP_NEGATIVE", message));
    }
    let bytes_max = if consume.bytes_max == 0 { limits::CONSUME_BYTES_DEFAULT } else { consume.bytes_max };
    let bytes_max = bytes_max.min(limits.message_bytes_max.saturating_sub(RESPONSE_BYTES_EXTRA)).max(1);
    let records_max = if consume.records_max == 0 { u64::MAX } else { consume.records_max };
    Ok(Consume { bytes_max, records_max, ..consume })
}

/// A topic on the wire.
pub(super) fn topic_message(placed: &PlacedTopic) -> proto::Topic {
    let view = &placed.view;
    proto::Topic {
        name: view.name.to_string(),
        topic_id: view.id.0,
        shards: u32::try_from(view.shards.len()).expect("at most TOPIC_SHARDS_MAX"),
        config: Some(proto::TopicConfig {
            retention: Some(proto::Retention {
                bytes_max: view.retention_bytes_max,
                age_ms_max: view.retention_age_ms_max,
            }),
            segment_bytes: view.segment_bytes,
        }),
        created_us: view.created_us,
        replication_factor: view.replication_factor,
    }
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Remote>();
    is_send::<ControlError>();
};

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LIMITS: Limits = Limits { message_bytes_max: 4 << 20, record_bytes_max: 1 << 20 };

    fn consume(records_max: u64, bytes_max: usize, wait_ms: u64) -> Consume {
        let wait = Duration::from_millis(wait_ms);
        let start = Start::Earliest;
        Consume {
            start,
            records_max,
            bytes_max,
            wait,
            min_offset: None,
            linearizable: false,
            deadline_us: None,
            if_small: false,
        }
    }

    /// Zeros become the server's values, a response never outgrows a message, waits are bounded.
    #[test]
    fn consume_bounds() {
        let checked = checked_consume(consume(0, 0, 60_000), LIMITS).unwrap();
        assert_eq!((checked.records_max, checked.bytes_max), (u64::MAX, limits::CONSUME_BYTES_DEFAULT));
        let checked = checked_consume(consume(7, usize::MAX, 0), LIMITS).unwrap();
        assert_eq!((checked.records_max, checked.bytes_max), (7, (4 << 20) - RESPONSE_BYTES_EXTRA));
        let error = checked_consume(consume(1, 1, 60_001), LIMITS).unwrap_err();
        assert_eq!((error.code, error.reason), (Code::InvalidArgument, "WAIT_TOO_LONG"));
        let at = |timestamp_us| Consume { start: Start::Timestamp(timestamp_us), ..consume(1, 1, 0) };
        assert!(checked_consume(at(0), LIMITS).is_ok() && checked_consume(at(i64::MAX), LIMITS).is_ok());
        for timestamp_us in [-1, i64::MIN] {
            let error = checked_consume(at(timestamp_us), LIMITS).unwrap_err();
            assert_eq!((error.code, error.reason), (Code::InvalidArgument, "TIMESTAMP_NEGATIVE"));
        }
    }

    /// The default is the safe one; a value of a later version is refused, not weakened.
    #[test]
    fn durabilities() {
        assert_eq!(durability(0), Ok(Durability::QuorumFlushed));
        assert_eq!(durability(1), Ok(Durability::QuorumFlushed));
        assert_eq!(durability(2), Ok(Durability::LeaderMemory));
        assert_eq!(durability(3).unwrap_err().reason, "DURABILITY_UNKNOWN");
        assert_eq!(durability(-1).unwrap_err().reason, "DURABILITY_UNKNOWN");
    }
}
