//! A consumer: committed records of some or all shards of a topic, from replicas that are near and alive.
//!
//! Promises:
//! - Records of one shard come in the order of their offsets, without a gap and each once, whichever replicas they are read
//!   from; between shards there is no order.
//! - When a server goes away, reading goes on at another one, behind the last record that was given out; a replica that is
//!   not as far yet is waited for, or left for another.
//! - What is read ahead is bounded.

mod reader;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, future::try_join_all};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

use self::reader::Reader;
use super::{ClientError, Cluster};
use crate::{
    frontend::route,
    ids::NodeId,
    proto::ringlog::v1::{ConsumeRequest, Position, Record, consume_request, consume_stream_request},
};

/// Responses of each shard that wait to be taken, beside the bound on their bytes.
const RESPONSES_MAX: usize = 4;

/// Where a consumer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The oldest record that is kept.
    Earliest,
    /// Only records that are committed after the consumer was opened, as far as the replica that is asked knows: one that
    /// is behind begins earlier, unless the consumer is `linearizable`.
    Latest,
    /// Exactly this record.
    Offset(u64),
    /// The first record, in log order, that is not older; microseconds since the Unix epoch.
    TimestampUs(i64),
}

impl Start {
    /// For `Consume`.
    pub fn of_call(self) -> consume_request::Start {
        match self {
            Start::Earliest => consume_request::Start::Position(Position::Earliest.into()),
            Start::Latest => consume_request::Start::Position(Position::Latest.into()),
            Start::Offset(offset) => consume_request::Start::Offset(offset),
            Start::TimestampUs(timestamp_us) => consume_request::Start::TimestampUs(timestamp_us),
        }
    }

    /// For `ConsumeStream`.
    pub fn of_stream(self) -> consume_stream_request::Start {
        match self.of_call() {
            consume_request::Start::Offset(offset) => consume_stream_request::Start::Offset(offset),
            consume_request::Start::TimestampUs(time) => consume_stream_request::Start::TimestampUs(time),
            consume_request::Start::Position(position) => consume_stream_request::Start::Position(position),
        }
    }
}

/// Why nothing comes from a shard.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "topic {topic} shard {shard} cannot be read: {cause}{}",
    if *.is_final { "" } else { "; it is tried further" }
)]
pub struct ConsumeError {
    /// Topic.
    pub topic: String,
    /// Shard.
    pub shard: u32,
    /// Of the last try.
    pub cause: ClientError,
    /// Nothing more will come of this shard; else it is tried further, and the error comes again while that fails.
    pub is_final: bool,
}

/// Records of one shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetched {
    /// Shard.
    pub shard: u32,
    /// At least one, in order; values share the memory in which they arrived.
    pub records: Vec<Record>,
    /// The offset behind the last one.
    pub next_offset: u64,
    /// The first offset that is still kept.
    pub log_start: u64,
    /// The first offset that was not committed yet, as far as the replica knew.
    pub high_watermark: u64,
}

#[derive(Clone, Debug)]
struct Options {
    preferred: Option<NodeId>,
    prefetch_bytes: usize,
    response_bytes: u32,
    linearizable: bool,
    patience: Duration,
}

/// What is different for each shard.
#[derive(Clone, Copy, Debug, Default)]
struct Range {
    start: Option<Start>,
    end: Option<u64>,
    min_offset: Option<u64>,
}

/// Settings of a consumer of one topic.
///
/// ```no_run
/// use ringlog::client::{Cluster, Start};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = Cluster::connect(&["127.0.0.1:7400"]).await?;
/// let mut consumer = cluster.consumer("orders").start(Start::Earliest).open().await?;
/// while let Some(fetched) = consumer.next().await {
///     let fetched = fetched?;
///     for record in &fetched.records {
///         println!("shard {} offset {}: {:?}", fetched.shard, record.offset, record.value);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ConsumerBuilder {
    cluster: Cluster,
    topic: String,
    shards: Option<Vec<u32>>,
    start: Start,
    ranges: BTreeMap<u32, Range>,
    options: Options,
}

impl ConsumerBuilder {
    pub(super) fn new(cluster: Cluster, topic: String) -> ConsumerBuilder {
        let options = Options {
            preferred: None,
            prefetch_bytes: 16 << 20,
            response_bytes: 0,
            linearizable: false,
            patience: cluster.options().timeout,
        };
        let topic = route::topic_name(&topic).to_owned();
        ConsumerBuilder { cluster, topic, shards: None, start: Start::Earliest, ranges: BTreeMap::new(), options }
    }

    /// Reads these shards only; by default all.
    #[must_use]
    pub fn shards(mut self, shards: impl IntoIterator<Item = u32>) -> ConsumerBuilder {
        self.shards = Some(shards.into_iter().collect());
        self
    }

    /// Where shards begin that are not given a start of their own; by default at the earliest record.
    #[must_use]
    pub fn start(mut self, start: Start) -> ConsumerBuilder {
        self.start = start;
        self
    }

    /// Where one shard begins: the `next_offset` of an earlier consumer, say.
    #[must_use]
    pub fn start_of(mut self, shard: u32, start: Start) -> ConsumerBuilder {
        self.ranges.entry(shard).or_default().start = Some(start);
        self
    }

    /// Ends one shard before this offset; by default it is followed without end.
    #[must_use]
    pub fn end_of(mut self, shard: u32, end: u64) -> ConsumerBuilder {
        self.ranges.entry(shard).or_default().end = Some(end);
        self
    }

    /// Read your writes: what comes from this shard is read where everything below this offset is committed and seen
    /// (an ack's offset + 1).
    #[must_use]
    pub fn min_offset(mut self, shard: u32, min_offset: u64) -> ConsumerBuilder {
        self.ranges.entry(shard).or_default().min_offset = Some(min_offset);
        self
    }

    /// Begins with everything that was acknowledged anywhere before: the leaders are asked, also when replicas are read.
    #[must_use]
    pub fn linearizable(mut self, linearizable: bool) -> ConsumerBuilder {
        self.options.linearizable = linearizable;
        self
    }

    /// Reads from this node as long as it has a replica and is alive; by default from replicas that there is a
    /// connection to, then from any.
    #[must_use]
    pub fn prefer_node(mut self, node: NodeId) -> ConsumerBuilder {
        self.options.preferred = Some(node);
        self
    }

    /// Bytes that are read ahead, in all shards together; by default 16 MiB, at most 1 GiB. (And what is on its way.)
    #[must_use]
    pub fn prefetch_bytes(mut self, bytes: usize) -> ConsumerBuilder {
        self.options.prefetch_bytes = bytes.clamp(1, 1 << 30);
        self
    }

    /// Bytes of records in one response; by default as the server likes.
    #[must_use]
    pub fn response_bytes(mut self, bytes: u32) -> ConsumerBuilder {
        self.options.response_bytes = bytes;
        self
    }

    /// How long a shard may be out of reach before `next` says so (it is tried further); by default as long as calls may
    /// take.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> ConsumerBuilder {
        self.options.patience = patience;
        self
    }

    /// The consumer. It begins to read at once, on the current tokio runtime.
    ///
    /// # Errors
    /// `ClientError`; code `NotFound` if there is no such topic.
    #[allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]
    pub async fn open(self) -> Result<Consumer, ClientError> {
        let count = self.cluster.shards(&self.topic).await?;
        let shards = self.shards.clone().unwrap_or_else(|| (0..count).collect());
        let ranges = try_join_all(shards.iter().map(|shard| self.range(*shard))).await?;
        let ConsumerBuilder { cluster, topic, options, .. } = self;
        let (sender, received) = mpsc::channel(RESPONSES_MAX * shards.len().max(1));
        let room = Arc::new(Semaphore::new(options.prefetch_bytes));
        let mut readers = JoinSet::new();
        for (shard, range) in shards.into_iter().zip(ranges) {
            let output = reader::Output { sender: sender.clone(), room: Arc::clone(&room) };
            let reader = Reader::new(cluster.clone(), topic.clone(), shard, range, options.clone(), output);
            readers.spawn(reader.run());
        }
        Ok(Consumer { received, _readers: readers })
    }

    /// A shard's range. The end of what is there is found out once: found out again after a failure, it would skip what was
    /// committed meanwhile.
    async fn range(&self, shard: u32) -> Result<Range, ClientError> {
        let range = self.ranges.get(&shard).copied().unwrap_or_default();
        let start = range.start.unwrap_or(self.start);
        if start != Start::Latest {
            return Ok(Range { start: Some(start), ..range });
        }
        let request = ConsumeRequest {
            topic: self.topic.clone(),
            shard,
            start: Some(start.of_call()),
            max_records: 1,
            min_offset: range.min_offset,
            linearizable: self.options.linearizable,
            ..ConsumeRequest::default()
        };
        let high_watermark = self.cluster.consume(&request).await?.next_offset;
        let min_offset = range.min_offset.max(Some(high_watermark));
        Ok(Range { start: Some(Start::Offset(high_watermark)), min_offset, ..range })
    }
}

type Item = (Result<Fetched, ConsumeError>, Option<OwnedSemaphorePermit>);

/// Committed records of a topic, as they come. Dropped, it stops reading.
#[derive(Debug)]
pub struct Consumer {
    received: mpsc::Receiver<Item>,
    /// They end with us.
    _readers: JoinSet<()>,
}

impl Consumer {
    /// The next records of some shard; `None` when all shards have ended. Cancelled, nothing is lost.
    pub async fn next(&mut self) -> Option<Result<Fetched, ConsumeError>> {
        // The room is given back here: what the caller holds is the caller's business.
        self.received.recv().await.map(|(fetched, _)| fetched)
    }
}

impl Stream for Consumer {
    type Item = Result<Fetched, ConsumeError>;

    // Woken by the readers.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.received.poll_recv(cx));
        Poll::Ready(item.map(|(fetched, _)| fetched))
    }
}
