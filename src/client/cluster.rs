//! A cluster as clients see it: which servers there are and who leads what, a connection to each server in use, and
//! calls that any server can answer.
//!
//! It learns the topology from any of the addresses that it is given, and then from the servers themselves; it watches
//! for changes for as long as there is a handle to it.

pub mod backoff;
mod pool;
pub mod topology;
mod watch;

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch as channel};

use self::{
    pool::Pool,
    topology::{Scope, Topology},
    watch::Watcher,
};
use super::{Client, ClientError, ConsumerBuilder, ProducerBuilder, TIMEOUT_DEFAULT, connection};
use crate::{
    frontend::{Code, route},
    proto::ringlog::v1,
};

/// How a cluster's client behaves. The defaults suit a data centre.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Deadline of unary calls, over all tries.
    pub timeout: Duration,
    /// How long a connection may take to be made; at most half of `timeout`.
    pub connect_timeout: Duration,
    /// A server is asked for a sign of life that often, and given up when there is none within the same time.
    pub keepalive: Duration,
    /// How often the topology is asked for, when a server cannot be watched.
    pub poll_interval: Duration,
}

impl Default for ClusterOptions {
    fn default() -> ClusterOptions {
        ClusterOptions {
            timeout: TIMEOUT_DEFAULT,
            connect_timeout: Duration::from_secs(3),
            keepalive: Duration::from_secs(2),
            poll_interval: Duration::from_secs(1),
        }
    }
}

/// A handle to a cluster; clones share its connections and its view.
///
/// ```no_run
/// use ringlog::client::Cluster;
///
/// # async fn example() -> Result<(), ringlog::client::ClientError> {
/// let cluster = Cluster::connect(&["10.0.0.1:7400", "10.0.0.2:7400"]).await?;
/// for server in &cluster.topology().servers {
///     println!("node {} at {}, alive: {}", server.node, server.address, server.alive);
/// }
/// println!("{:?}", cluster.list_topics().await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    seeds: Vec<Arc<str>>,
    options: ClusterOptions,
    pool: Pool,
    topology: channel::Sender<Arc<Topology>>,
    turn: AtomicUsize,
    /// Asks the watcher for a fresh answer.
    refresh: Arc<Notify>,
    /// Its receiver, at the watcher, sees that nobody has a handle any more.
    _alive: channel::Sender<()>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({})", self.inner.seeds.join(", "))
    }
}

impl Cluster {
    /// Connects to the first of `addresses` (`host:port`; port 7400 if there is none) that answers, and learns the
    /// others from it. Runs on the tokio runtime of the caller.
    ///
    /// # Errors
    /// That of the last address, when none answers.
    pub async fn connect<A: AsRef<str>>(addresses: &[A]) -> Result<Cluster, ClientError> {
        Cluster::connect_with(addresses, ClusterOptions::default()).await
    }

    /// As `connect`, with other settings.
    ///
    /// # Errors
    /// As `connect`.
    pub async fn connect_with<A: AsRef<str>>(addresses: &[A], options: ClusterOptions) -> Result<Cluster, ClientError> {
        let seeds: Vec<Arc<str>> =
            addresses.iter().map(|address| connection::with_port(address.as_ref().trim()).into()).collect();
        // A call whose first server is silent still has time for another one.
        let connect_timeout = options.connect_timeout.min(options.timeout / 2);
        let pool = Pool::new(connect_timeout, options.timeout, options.keepalive);
        let mut last = None;
        for seed in &seeds {
            let told = async { pool.get(seed).await?.get_servers(Vec::new()).await };
            match told.await {
                Ok(told) => {
                    let topology = Topology::default().updated(told, Scope::All);
                    return Ok(Cluster::new(seeds.clone(), options, pool, topology));
                }
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            Some(ClientError::Unreachable { cause, .. }) => {
                ClientError::Unreachable { address: seeds.join(", "), cause }
            }
            Some(error) => error,
            None => {
                let cause = "no address was given".to_owned();
                ClientError::Unreachable { address: "no address".to_owned(), cause }
            }
        })
    }

    #[allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]
    fn new(seeds: Vec<Arc<str>>, options: ClusterOptions, pool: Pool, topology: Topology) -> Cluster {
        let (alive, ended) = channel::channel(());
        let inner = Inner {
            // Clients that start together begin with different servers.
            turn: AtomicUsize::new(fastrand::usize(..)),
            seeds,
            options,
            pool,
            topology: channel::Sender::new(Arc::new(topology)),
            refresh: Arc::default(),
            _alive: alive,
        };
        let cluster = Cluster { inner: Arc::new(inner) };
        tokio::spawn(Watcher::new(&cluster.inner, ended).run());
        cluster
    }

    /// What is known at the moment.
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.inner.topology.borrow())
    }

    /// Sees every change of it.
    pub fn watch(&self) -> channel::Receiver<Arc<Topology>> {
        self.inner.topology.subscribe()
    }

    /// Its settings.
    pub fn options(&self) -> &ClusterOptions {
        &self.inner.options
    }

    /// A producer to a topic; see `ProducerBuilder`.
    pub fn producer(&self, topic: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic.into())
    }

    /// A consumer of a topic; see `ConsumerBuilder`.
    pub fn consumer(&self, topic: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic.into())
    }

    /// A connection to a server that is alive and not draining, by turns.
    ///
    /// # Errors
    /// That of the last server, when none can be reached.
    pub async fn any(&self) -> Result<Client, ClientError> {
        self.first_of(&self.addresses_by_turn()).await
    }

    /// Runs a call that changes nothing on any server, and on others until one answers: until the deadline, while the
    /// failures are such that another server, or another moment, may help.
    ///
    /// # Errors
    /// That of the last try.
    pub async fn read<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        call: impl Fn(Client) -> F,
    ) -> Result<T, ClientError> {
        self.call(call, |_| true, || self.addresses_by_turn()).await
    }

    /// As `read`, for a call that changes something: it is tried again only while it is certain that nothing has
    /// happened.
    ///
    /// # Errors
    /// That of the last try.
    pub async fn write<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        call: impl Fn(Client) -> F,
    ) -> Result<T, ClientError> {
        self.call(call, ClientError::is_definite, || self.addresses_by_turn()).await
    }

    #[allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]
    async fn call<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        call: impl Fn(Client) -> F,
        is_harmless: impl Fn(&ClientError) -> bool,
        addresses: impl Fn() -> Vec<Arc<str>>,
    ) -> Result<T, ClientError> {
        let until = Instant::now() + self.inner.options.timeout;
        let mut failures = 0;
        loop {
            let outcome = match self.inner.first_of(&addresses(), Some(until)).await {
                Ok(client) => {
                    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
                    call(client.with_timeout(left)).await
                }
                Err(error) => Err(error),
            };
            let error = match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            failures += 1;
            let wait = error.retry_after().unwrap_or_default().max(backoff::jittered(failures));
            if !may_pass(&error) || !is_harmless(&error) || Instant::now() + wait >= until {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Appends the records of one request as one atomic batch, by a call of its own: for many, a `producer` is better.
    /// Goes to the leader if the request names its shard; tried again only while it is certain that nothing was written.
    ///
    /// # Errors
    /// `ClientError`; `is_definite` says whether the records may still appear.
    pub async fn produce(&self, request: &v1::ProduceRequest) -> Result<v1::ProduceResponse, ClientError> {
        let topic = route::topic_name(&request.topic);
        let addresses = || {
            let turn = self.turn();
            let topology = self.topology();
            let known = request.shard.map(|shard| topology.produce_addresses(topic, shard, turn));
            self.with_seeds(known.unwrap_or_else(|| self.addresses_by_turn()))
        };
        self.call(|client| async move { client.produce(request).await }, ClientError::is_definite, addresses).await
    }

    /// Committed records of one shard, by a call of its own, from a replica that there is a connection to, or another:
    /// for many, a `consumer` is better.
    ///
    /// # Errors
    /// `ClientError`.
    pub async fn consume(&self, request: &v1::ConsumeRequest) -> Result<v1::ConsumeResponse, ClientError> {
        let topic = route::topic_name(&request.topic);
        let addresses = || {
            let turn = self.turn();
            let is_connected = |address: &str| self.is_connected(address);
            self.with_seeds(self.topology().consume_addresses(topic, request.shard, None, is_connected, turn))
        };
        self.call(|client| async move { client.consume(request).await }, |_| true, addresses).await
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// `ClientError`; code `AlreadyExists` if there is one of that name.
    pub async fn create_topic(&self, request: &v1::CreateTopicRequest) -> Result<v1::Topic, ClientError> {
        self.write(|client| async move { client.create_topic(request).await }).await
    }

    /// All topics.
    ///
    /// # Errors
    /// `ClientError`.
    pub async fn list_topics(&self) -> Result<Vec<v1::Topic>, ClientError> {
        self.read(|client| async move { client.list_topics().await }).await
    }

    /// A topic and the state of its shards.
    ///
    /// # Errors
    /// `ClientError`; code `NotFound` if there is none.
    pub async fn describe_topic(&self, name: &str) -> Result<v1::DescribeTopicResponse, ClientError> {
        self.read(|client| async move { client.describe_topic(name).await }).await
    }

    /// Removes a topic and all its records, for good.
    ///
    /// # Errors
    /// `ClientError`; code `NotFound` if there is none.
    pub async fn delete_topic(&self, name: &str) -> Result<(), ClientError> {
        self.write(|client| async move { client.delete_topic(name).await }).await
    }

    /// Number of shards of a topic; servers are asked if it is not known yet.
    ///
    /// # Errors
    /// `ClientError`; code `NotFound` if there is no such topic.
    pub async fn shards(&self, topic: &str) -> Result<u32, ClientError> {
        // The empty name means the default topic, which is known under its own name.
        let topic = route::topic_name(topic);
        if let Some(shards) = self.topology().shards(topic) {
            return Ok(shards);
        }
        self.ask_shards(topic).await
    }

    /// As `shards`, of a server, whatever is known.
    pub(super) async fn ask_shards(&self, topic: &str) -> Result<u32, ClientError> {
        let told = self.read(|client| async move { client.get_servers(vec![topic.to_owned()]).await }).await?;
        let is_told = told.topics.iter().any(|told| told.topic == topic);
        self.update(told, Scope::Some);
        self.topology().shards(topic).filter(|_| is_told).ok_or_else(|| ClientError::Protocol {
            address: "a server".to_owned(),
            what: format!("it did not say how many shards topic {topic} has"),
        })
    }

    /// Asks for a fresh topology; who watches sees it when it comes.
    pub fn refresh(&self) {
        self.inner.refresh.notify_one();
    }

    /// A server said that this one leads the shard.
    pub(super) fn note_leader(&self, topic: &str, shard: u32, address: &str) {
        let known = self.topology();
        if known.leader_address(topic, shard).as_deref() != Some(address) {
            self.inner.topology.send_modify(|topology| *topology = Arc::new(topology.hinted(topic, shard, address)));
        }
        self.refresh();
    }

    fn update(&self, told: v1::GetServersResponse, scope: Scope) {
        self.inner.update(told, scope);
    }

    /// Addresses for something that has no owner, and a different first one each time.
    pub(super) fn addresses_by_turn(&self) -> Vec<Arc<str>> {
        self.inner.addresses_by_turn()
    }

    /// A number for the next turn.
    pub(super) fn turn(&self) -> usize {
        self.inner.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// These addresses, and behind them those that we were given: servers may be told under names that do not work for
    /// us.
    pub(super) fn with_seeds(&self, mut addresses: Vec<Arc<str>>) -> Vec<Arc<str>> {
        addresses.extend(self.inner.seeds.iter().cloned());
        addresses
    }

    pub(super) fn is_connected(&self, address: &str) -> bool {
        self.inner.pool.is_connected(address)
    }

    pub(super) fn may_work(&self, address: &str) -> bool {
        self.inner.pool.may_work(address)
    }

    /// A connection to the first of these that can be reached.
    pub(super) async fn first_of(&self, addresses: &[Arc<str>]) -> Result<Client, ClientError> {
        self.inner.first_of(addresses, None).await
    }
}

impl Inner {
    fn addresses_by_turn(&self) -> Vec<Arc<str>> {
        let topology = Arc::clone(&self.topology.borrow());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let servers = topology.servers_by_turn(turn).into_iter().map(|server| Arc::clone(&server.address));
        // Servers may be told under addresses that we cannot reach; these worked once.
        servers.filter(|address| !address.is_empty()).chain(self.seeds.iter().cloned()).collect()
    }

    /// As of `Cluster`; looks no longer than until then.
    async fn first_of(&self, addresses: &[Arc<str>], until: Option<Instant>) -> Result<Client, ClientError> {
        let mut last = None;
        for address in addresses {
            let got = match until {
                Some(until) => tokio::time::timeout_at(until.into(), self.pool.get(address)).await,
                None => Ok(self.pool.get(address).await),
            };
            match got {
                Ok(Ok(client)) => return Ok(client),
                Ok(Err(error)) => last = Some(error),
                Err(_) => {
                    last.get_or_insert_with(|| ClientError::Unreachable {
                        address: address.to_string(),
                        cause: "no connection before the time of the call was over".to_owned(),
                    });
                    break;
                }
            }
        }
        Err(last.unwrap_or_else(|| ClientError::Unreachable {
            address: "any server".to_owned(),
            cause: "no address is known".to_owned(),
        }))
    }

    fn update(&self, told: v1::GetServersResponse, scope: Scope) {
        self.topology.send_if_modified(|topology| {
            let updated = topology.updated(told, scope);
            let changed = updated != **topology;
            *topology = Arc::new(updated);
            changed
        });
        let topology = Arc::clone(&self.topology.borrow());
        self.pool
            .keep(|address| topology.server_at(address).is_some() || self.seeds.iter().any(|seed| **seed == *address));
    }
}

/// Whether another server, or a later moment, may do better.
pub(super) fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } | ClientError::Lost { .. } => true,
        // The time is over, or the peer is no Ringlog server.
        ClientError::TimedOut { .. } | ClientError::Protocol { .. } => false,
        ClientError::Status(status) => match status.code {
            Code::Unavailable => true,
            Code::ResourceExhausted | Code::Aborted => status.retry_after.is_some(),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::InvalidArgument
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => false,
        },
    }
}
