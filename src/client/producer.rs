//! A producer: records in, acknowledgements out, everything between done by it: shards, batches, streams to the leaders,
//! retries, backpressure.
//!
//! Promises:
//! - Records of one shard are written in the order in which they were sent, whatever fails between.
//! - A record is sent again only while it is certain that it was not written. One that may have been written is given
//!   back as `ProduceError::Maybe`; `at_least_once` asks for another try instead, and so for records that are there twice,
//!   or behind later ones.
//! - Bytes in flight are bounded: `send` waits for room, `try_send` says that there is none.
//! - A record is acknowledged, or given back with an error, within about the delivery timeout.

mod batch;
mod error;
mod lane;
mod retry;
mod routing;

#[cfg(test)]
mod tests;

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context as TaskContext, Poll, ready},
    time::{Duration, Instant},
};

use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, oneshot};

pub use self::error::ProduceError;
use self::{
    batch::Bounds,
    lane::{Done, Pending},
    routing::Routes,
};
use super::Cluster;
use crate::{
    frontend::route,
    limits,
    proto::ringlog::v1::{Durability, Record},
};

/// Room that a record's framing takes beside its own bytes.
const FRAMING_BYTES: usize = 16;

/// Where records without a key go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// To all shards by turns, a batch at a time.
    Turns,
    /// All to one, which is chosen by chance: they stay in order.
    One,
}

#[derive(Clone, Debug)]
struct Options {
    batch_bytes: usize,
    batch_records: usize,
    linger: Duration,
    in_flight_bytes: usize,
    requests_in_flight: usize,
    delivery_timeout: Duration,
    durability: Durability,
    at_least_once: bool,
    spread: Spread,
}

impl Options {
    fn bounds(&self) -> Bounds {
        // What has waited until its time is over is given back without one try.
        let linger = self.linger.min(self.delivery_timeout / 2);
        Bounds { bytes_max: self.batch_bytes, count_max: self.batch_records, linger }
    }
}

/// What the lanes of a producer share.
struct Context {
    cluster: Cluster,
    topic: String,
    options: Options,
    /// The topic is not what it was.
    is_stale: AtomicBool,
}

/// Settings of a producer to one topic.
///
/// ```no_run
/// use ringlog::{client::Cluster, proto::ringlog::v1::Record};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = Cluster::connect(&["127.0.0.1:7400"]).await?;
/// let producer = cluster.producer("orders").linger(std::time::Duration::from_millis(2)).open();
/// let record = Record { key: "customer 7".into(), value: "an order".into(), ..Record::default() };
/// // Waits for room, not for the ack.
/// let delivery = producer.send(record).await?;
/// let acked = delivery.await?;
/// println!("shard {} offset {}", acked.shard, acked.offset);
/// producer.close().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ProducerBuilder {
    cluster: Cluster,
    topic: String,
    options: Options,
}

impl ProducerBuilder {
    pub(super) fn new(cluster: Cluster, topic: String) -> ProducerBuilder {
        let options = Options {
            batch_bytes: 256 << 10,
            batch_records: limits::BATCH_RECORDS_MAX,
            linger: Duration::ZERO,
            in_flight_bytes: 32 << 20,
            requests_in_flight: 64,
            delivery_timeout: Duration::from_secs(30),
            durability: Durability::QuorumFlushed,
            at_least_once: false,
            spread: Spread::Turns,
        };
        ProducerBuilder { cluster, topic: route::topic_name(&topic).to_owned(), options }
    }

    /// A batch is sent when its records have that many bytes; at most 3 MiB, by default 256 KiB.
    #[must_use]
    pub fn batch_bytes(mut self, bytes: usize) -> ProducerBuilder {
        // A message has 4 MiB, and a record in it at most one.
        self.options.batch_bytes = bytes.clamp(1, 3 << 20);
        self
    }

    /// A batch is sent when it has that many records; by default as many as a request can hold.
    #[must_use]
    pub fn batch_records(mut self, records: usize) -> ProducerBuilder {
        self.options.batch_records = records.clamp(1, limits::BATCH_RECORDS_MAX);
        self
    }

    /// How long the first record of a batch waits for more; by default not at all: what has come while the batch before
    /// was handed over goes together. At most half of the delivery timeout, so that time is left to send it.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> ProducerBuilder {
        self.options.linger = linger;
        self
    }

    /// Bytes of records that are sent and not acknowledged, in all shards together; `send` waits above it. By default
    /// 32 MiB; at most 1 GiB.
    #[must_use]
    pub fn in_flight_bytes(mut self, bytes: usize) -> ProducerBuilder {
        self.options.in_flight_bytes = bytes.clamp(1, 1 << 30);
        self
    }

    /// Batches in flight per shard; by default 64, at most what a server takes on one stream. With 1, an overloaded
    /// server's refusal never leaves the fate of another batch open.
    #[must_use]
    pub fn requests_in_flight(mut self, requests: usize) -> ProducerBuilder {
        self.options.requests_in_flight = requests.clamp(1, limits::STREAM_PRODUCES_IN_FLIGHT_MAX);
        self
    }

    /// How long a record may take, retries included; by default 30 s. Afterwards it is given back: `Expired` if it was
    /// certainly not written, else `Maybe`.
    #[must_use]
    pub fn delivery_timeout(mut self, timeout: Duration) -> ProducerBuilder {
        self.options.delivery_timeout = timeout;
        self
    }

    /// Durability of the acks; by default flushed on a majority.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> ProducerBuilder {
        self.options.durability = durability;
        self
    }

    /// Sends records again that may have been written already: each is there at least once, some perhaps twice, and
    /// behind later ones. By default these come back as `ProduceError::Maybe`.
    #[must_use]
    pub fn at_least_once(mut self, at_least_once: bool) -> ProducerBuilder {
        self.options.at_least_once = at_least_once;
        self
    }

    /// Where records without a key go; by default to all shards by turns.
    #[must_use]
    pub fn spread(mut self, spread: Spread) -> ProducerBuilder {
        self.options.spread = spread;
        self
    }

    /// The producer. It connects when the first record is sent, on the tokio runtime that is current then.
    pub fn open(self) -> Producer {
        let ProducerBuilder { cluster, topic, options } = self;
        let room = Arc::new(Semaphore::new(options.in_flight_bytes));
        let context = Arc::new(Context { cluster, topic, options, is_stale: AtomicBool::new(false) });
        let routes = Arc::new(Routes::new(Arc::clone(&context)));
        Producer { core: Arc::new(Core { context, room, routes }) }
    }
}

/// Where and when a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    /// In which shard.
    pub shard: u32,
    /// At which offset.
    pub offset: u64,
    /// The leader's clock then.
    pub timestamp_us: i64,
    /// How durable it is.
    pub durability: Durability,
}

/// A record's acknowledgement, to be awaited. Dropped, the record is written all the same.
#[derive(Debug)]
#[must_use = "it is the only way to learn whether the record was written"]
pub struct Delivery(oneshot::Receiver<Result<Acked, ProduceError>>);

impl Future for Delivery {
    type Output = Result<Acked, ProduceError>;

    // Woken by the outcome, and when whoever owes it goes.
    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let outcome = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(outcome.unwrap_or(Err(ProduceError::Abandoned)))
    }
}

/// Why `try_send` did not take a record.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrySendError {
    /// There is no room now; here it is.
    #[error("as many bytes are in flight as may be")]
    Full(Record),
    /// It cannot be sent at all.
    #[error(transparent)]
    Refused(#[from] ProduceError),
}

/// Writes records to one topic. Clones are handles to the same one; when the last is dropped without `close`, what was
/// sent is still delivered, as long as the runtime lives.
#[derive(Clone)]
pub struct Producer {
    core: Arc<Core>,
}

struct Core {
    context: Arc<Context>,
    room: Arc<Semaphore>,
    routes: Arc<Routes>,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.routes.close();
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Producer(topic {})", self.core.context.topic)
    }
}

impl Producer {
    /// Sends a record: to the shard of its key (XXH3-64 of the key, modulo the number of shards), or, without a key, as
    /// `Spread` says. Waits while too many bytes are in flight; cancelled while it waits, the record was not sent.
    ///
    /// # Errors
    /// `TooLarge`, `Closed`: it was not sent.
    pub async fn send(&self, record: Record) -> Result<Delivery, ProduceError> {
        self.send_anywhere(record, None).await
    }

    /// As `send`, to a shard by its number.
    ///
    /// # Errors
    /// As `send`; `NoShard` when it is known that the topic has none of that number.
    pub async fn send_to(&self, shard: u32, record: Record) -> Result<Delivery, ProduceError> {
        self.send_anywhere(record, Some(shard)).await
    }

    /// As `send`, but without waiting.
    ///
    /// # Errors
    /// `Full` when there is no room now; the others as `send`.
    pub fn try_send(&self, record: Record) -> Result<Delivery, TrySendError> {
        let bytes = size(&record)?;
        match Arc::clone(&self.core.room).try_acquire_many_owned(self.permits(bytes)) {
            Ok(room) => Ok(self.accept(record, bytes, None, room)?),
            Err(TryAcquireError::NoPermits) => Err(TrySendError::Full(record)),
            Err(TryAcquireError::Closed) => Err(ProduceError::Closed.into()),
        }
    }

    async fn send_anywhere(&self, record: Record, shard: Option<u32>) -> Result<Delivery, ProduceError> {
        let bytes = size(&record)?;
        let room = Arc::clone(&self.core.room).acquire_many_owned(self.permits(bytes)).await;
        self.accept(record, bytes, shard, room.map_err(|_| ProduceError::Closed)?)
    }

    #[allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]
    fn accept(
        &self,
        record: Record,
        bytes: usize,
        shard: Option<u32>,
        room: OwnedSemaphorePermit,
    ) -> Result<Delivery, ProduceError> {
        let (reply, delivery) = oneshot::channel();
        let deadline = Instant::now() + self.core.context.options.delivery_timeout;
        let done = Done { reply, _room: room };
        self.core.routes.send(Pending { record, bytes, shard, deadline, done })?;
        Ok(Delivery(delivery))
    }

    /// A record takes its bytes of the room, but not more than there is.
    fn permits(&self, bytes: usize) -> u32 {
        let bytes = bytes.min(self.core.context.options.in_flight_bytes);
        u32::try_from(bytes).expect("in_flight_bytes is at most 1 GiB")
    }

    /// Waits until everything that was sent before is acknowledged or given back; nothing of it lingers.
    pub async fn flush(&self) {
        self.core.routes.hurry();
        let all = u32::try_from(self.core.context.options.in_flight_bytes).expect("it is at most 1 GiB");
        // Room is given in the order in which it was asked for: all of it is free when all before us is done.
        drop(self.core.room.acquire_many(all).await);
    }

    /// Takes no more records, from no handle, and waits until everything is acknowledged or given back.
    pub async fn close(self) {
        self.flush().await;
        self.core.room.close();
        self.core.routes.close();
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.core.context.topic
    }
}

/// What a record counts for.
fn size(record: &Record) -> Result<usize, ProduceError> {
    let bytes = record.encoded_len();
    if bytes > limits::RECORD_BYTES_MAX {
        return Err(ProduceError::TooLarge { bytes, max: limits::RECORD_BYTES_MAX });
    }
    Ok(bytes + FRAMING_BYTES)
}

/// The shard of a key: XXH3-64 of the key, modulo the number of shards, as the servers compute it (`log.proto`).
pub fn shard_of_key(key: &[u8], shards: u32) -> u32 {
    let shard = twox_hash::XxHash3_64::oneshot(key) % u64::from(shards.max(1));
    u32::try_from(shard).expect("less than the number of shards")
}
