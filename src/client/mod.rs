//! Rust client of a Ringlog node: produce, consume, topics. The CLI, the benches and the tests use it.
//!
//! One `Client` is one HTTP/2 connection; clones share it, and calls on it run side by side. It runs on any
//! tokio runtime, and its connection is a task of the runtime that called `connect`.
//!
//! It never retries by itself: an error says whether the call may still take effect, and only the caller
//! knows what a second try would mean.

mod admin;
mod call;
mod chunks;
pub mod cluster;
mod connection;
mod consumer;
mod error;
mod producer;
mod stream;
mod walk;

#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::client::SendRequest;
use prost::Message;

use self::{call::MessageReceiver, connection::Connected};
pub use self::{
    chunks::{Chunks, MESSAGE_PREFIX_BYTES, framed},
    cluster::{Cluster, ClusterOptions},
    consumer::{ConsumeError, Consumer, ConsumerBuilder, Fetched, Start},
    error::{ClientError, Status},
    producer::{Acked, Delivery, ProduceError, Producer, ProducerBuilder, Spread, TrySendError, shard_of_key},
    stream::{ConsumeResponses, ProduceAcks, ProduceSender, Watched},
    walk::Walked,
};
use crate::proto::ringlog::v1;

/// Deadline of unary calls, and of connecting, unless `with_timeout` says otherwise.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// How much longer than its deadline we wait for the server's own word on it.
const TIMEOUT_GRACE: Duration = Duration::from_millis(500);

const PRODUCE: &str = "/ringlog.v1.Log/Produce";
const PRODUCE_STREAM: &str = "/ringlog.v1.Log/ProduceStream";
const CONSUME: &str = "/ringlog.v1.Log/Consume";
const CONSUME_STREAM: &str = "/ringlog.v1.Log/ConsumeStream";
const GET_SERVERS: &str = "/ringlog.v1.Log/GetServers";
const WATCH_SERVERS: &str = "/ringlog.v1.Log/WatchServers";

/// A connection to a server.
#[derive(Clone)]
pub struct Client {
    requests: SendRequest<Chunks>,
    ended: Arc<AtomicBool>,
    address: Arc<str>,
    timeout: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({})", self.address)
    }
}

impl Client {
    /// Connects to `address` (`host:port`; port 7400 if there is none).
    ///
    /// # Errors
    /// `Unreachable`, `Protocol`.
    pub async fn connect(address: &str) -> Result<Client, ClientError> {
        Client::connect_within(address, TIMEOUT_DEFAULT).await
    }

    /// As `connect`, with a limit that also becomes the deadline of unary calls.
    ///
    /// # Errors
    /// `Unreachable`, `Protocol`.
    pub async fn connect_within(address: &str, timeout: Duration) -> Result<Client, ClientError> {
        Client::connect_watched(address, timeout, None).await
    }

    /// As `connect_within`; with `keepalive` the connection ends when the server does not answer PINGs.
    async fn connect_watched(
        address: &str,
        timeout: Duration,
        keepalive: Option<Duration>,
    ) -> Result<Client, ClientError> {
        let Connected { requests, ended } = connection::connect(address, timeout, keepalive).await?;
        Ok(Client { requests, ended, address: connection::with_port(address).into(), timeout })
    }

    /// The server's address, `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether the connection can take new calls, as far as is known: it is not over, and the server has not said that
    /// it goes away.
    pub fn is_usable(&self) -> bool {
        let mut requests = self.requests.clone();
        let refused = matches!(requests.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)));
        !refused && !self.ended.load(Ordering::Acquire)
    }

    /// The same connection with another deadline for its unary calls.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Client {
        self.timeout = timeout;
        self
    }

    /// Appends the records of one request as one atomic batch.
    ///
    /// # Errors
    /// `ClientError`; `is_definite` says whether the records may still appear.
    pub async fn produce(&self, request: &v1::ProduceRequest) -> Result<v1::ProduceResponse, ClientError> {
        self.call(PRODUCE, request).await
    }

    /// As `produce`, for a request that is encoded and framed already (`framed`).
    ///
    /// # Errors
    /// As `produce`.
    pub async fn produce_framed(&self, request: Bytes) -> Result<v1::ProduceResponse, ClientError> {
        self.call_framed(PRODUCE, request).await
    }

    /// Opens a stream of pipelined produces: requests go into one half, acks come out of the other, in the
    /// order of the requests. It has no deadline.
    ///
    /// # Errors
    /// `Lost`: nothing was sent.
    pub async fn produce_stream(&self) -> Result<(ProduceSender, ProduceAcks), ClientError> {
        let (sender, receiver) = call::open(&self.requests, &self.address, PRODUCE_STREAM, None).await?;
        Ok((ProduceSender(sender), ProduceAcks(receiver)))
    }

    /// Committed records of one shard.
    ///
    /// # Errors
    /// `ClientError`.
    pub async fn consume(&self, request: &v1::ConsumeRequest) -> Result<v1::ConsumeResponse, ClientError> {
        let patience = self.timeout + Duration::from_millis(u64::from(request.wait_ms));
        self.clone().with_timeout(patience).call(CONSUME, request).await
    }

    /// Committed records of one shard, from the start on and then as they come. It has no deadline.
    ///
    /// # Errors
    /// `Lost`: nothing was sent.
    pub async fn consume_stream(&self, request: &v1::ConsumeStreamRequest) -> Result<ConsumeResponses, ClientError> {
        Ok(ConsumeResponses(self.open(CONSUME_STREAM, request).await?))
    }

    /// Nodes, addresses, and the leader of each shard.
    ///
    /// # Errors
    /// `ClientError`.
    pub async fn get_servers(&self, topics: Vec<String>) -> Result<v1::GetServersResponse, ClientError> {
        self.call(GET_SERVERS, &v1::GetServersRequest { topics }).await
    }

    /// The same now, and again after every change.
    ///
    /// # Errors
    /// `Lost`: nothing was sent.
    pub async fn watch_servers(&self, topics: Vec<String>) -> Result<Watched, ClientError> {
        Ok(Watched(self.open(WATCH_SERVERS, &v1::WatchServersRequest { topics }).await?))
    }

    /// Opens a call of one request and many responses, without a deadline.
    async fn open(&self, path: &'static str, request: &impl Message) -> Result<MessageReceiver, ClientError> {
        let (mut sender, receiver) = call::open(&self.requests, &self.address, path, None).await?;
        sender.queue(framed(request));
        // An error here has its reason in the receiving half.
        drop(poll_fn(|cx| sender.poll_finish(cx)).await);
        Ok(receiver)
    }

    async fn call<A: Message + Default>(&self, path: &'static str, request: &impl Message) -> Result<A, ClientError> {
        self.call_framed(path, framed(request)).await
    }

    #[allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]
    async fn call_framed<A: Message + Default>(&self, path: &'static str, request: Bytes) -> Result<A, ClientError> {
        let answer = tokio::time::timeout(self.timeout + TIMEOUT_GRACE, self.exchange(path, request)).await;
        let message =
            answer.map_err(|_| ClientError::TimedOut { address: self.address.to_string(), after: self.timeout })??;
        A::decode(message).map_err(|error| ClientError::Protocol {
            address: self.address.to_string(),
            what: format!("the answer to {path} cannot be decoded ({error})"),
        })
    }

    async fn exchange(&self, path: &'static str, request: Bytes) -> Result<Chunks, ClientError> {
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let (mut sender, mut receiver) = call::open(&self.requests, &self.address, path, Some(timeout_ms)).await?;
        sender.queue(request);
        let mut sent = false;
        // A server may refuse before it has read everything, so both halves run, and either one wakes it.
        let first = poll_fn(|cx| {
            if !sent {
                sent = sender.poll_finish(cx).is_ready();
            }
            match receiver.poll_next(cx) {
                Poll::Ready(first) => Poll::Ready(first),
                Poll::Pending => Poll::Pending,
            }
        });
        let message = match first.await {
            Some(message) => message?,
            None => return Err(receiver.protocol(format!("{path} answered OK without a message"))),
        };
        match receiver.next().await {
            None => Ok(message),
            Some(Err(error)) => Err(error),
            Some(Ok(_)) => Err(receiver.protocol(format!("{path} answered with two messages"))),
        }
    }
}
