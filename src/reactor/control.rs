//! Topics are made and removed here, on reactor 0, where the catalog (group 0) lives.
//!
//! One command at a time, in the order of arrival: a topic is committed to the catalog, then its
//! shards are opened on their reactors, then it is published, then the caller is answered; and
//! backwards for a deletion. A command runs to its end also if its caller has gone. What a crash
//! leaves half-way is finished by the next start: shards of a committed topic are opened,
//! directories that belong to no topic are removed.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use prost::Message;
use tokio::sync::{mpsc, oneshot};

use crate::{
    catalog::{Catalog, CatalogAnswer, CatalogCommand, CatalogError, CreateTopic, DeleteTopic, InitCluster, TopicView},
    env::{self, Disk, Env, buffer::Buffer},
    format::entry::ENTRY_HEADER_BYTES,
    ids::{ReactorNumber, ShardUid},
    limits,
    log::{LogError, Recovered},
    proto::ringlog::state::v1::{ClusterNode, catalog_command::Command},
    raft::{Group, GroupError, GroupOptions, Proposal, ProposalKind},
    reactor::{Reactor, ReactorError, mailbox::Reply, mailbox::Request, topics::PlacedTopic},
    shard::ShardOptions,
};

/// Commands that wait; more are refused with a retry hint.
const COMMANDS_MAX: usize = 1_024;

/// Commands between two attempts to shorten the catalog's log.
const COMMANDS_PER_PURGE: u32 = 256;

/// Why a topic is not made or removed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ControlError {
    /// The catalog's own answer: the request is wrong. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] CatalogError),
    /// Retry: too many commands wait. Nothing was changed.
    #[error("too many topics are being created or deleted; retry after a moment")]
    Busy,
    /// The catalog could not write.
    #[error("the catalog could not be changed: {0}")]
    Catalog(#[from] GroupError),
    /// A shard could not be opened; the topic was taken back.
    #[error("a shard of the new topic could not be opened: {0}")]
    Shards(#[from] ReactorError),
}

/// Directory of a shard, or of the catalog.
pub fn shard_dir(data: &Path, uid: ShardUid) -> PathBuf {
    data.join("shards").join(uid.to_string())
}

#[derive(Debug)]
enum Job {
    Create { create: CreateTopic, reply: oneshot::Sender<Result<Arc<PlacedTopic>, ControlError>> },
    Delete { name: String, reply: oneshot::Sender<Result<(), ControlError>> },
}

/// Where reactor 0 puts commands for `Control::serve`.
#[derive(Clone, Debug)]
pub struct ControlQueue(mpsc::Sender<Job>);

impl ControlQueue {
    /// Queues the creation of a topic.
    pub fn create(&self, create: CreateTopic, reply: oneshot::Sender<Result<Arc<PlacedTopic>, ControlError>>) {
        if let Err(mpsc::error::TrySendError::Full(Job::Create { reply, .. })) =
            self.0.try_send(Job::Create { create, reply })
        {
            drop(reply.send(Err(ControlError::Busy)));
        }
    }

    /// Queues the removal of a topic.
    pub fn delete(&self, name: String, reply: oneshot::Sender<Result<(), ControlError>>) {
        if let Err(mpsc::error::TrySendError::Full(Job::Delete { reply, .. })) =
            self.0.try_send(Job::Delete { name, reply })
        {
            drop(reply.send(Err(ControlError::Busy)));
        }
    }
}

/// The catalog's group and what follows from its commands. Clones are handles to the same one.
pub struct Control<E: Env> {
    reactor: Rc<Reactor<E>>,
    catalog: Group<E, Catalog>,
}

impl<E: Env> Clone for Control<E> {
    fn clone(&self) -> Self {
        Control { reactor: Rc::clone(&self.reactor), catalog: self.catalog.clone() }
    }
}

impl<E: Env> Control<E> {
    /// Recovers the catalog.
    ///
    /// # Errors
    /// The group's: without its catalog a node knows no topic, and must not start.
    pub async fn open(reactor: Rc<Reactor<E>>) -> Result<(Control<E>, Recovered), GroupError> {
        let config = &reactor.node().config;
        let identity = reactor.node().identity().expect("the identity is read first");
        let node = identity.node;
        let options = GroupOptions {
            dir: shard_dir(&config.data, ShardUid::CATALOG),
            shard: ShardUid::CATALOG,
            node,
            segment_bytes_max: limits::SEGMENT_BYTES_MIN,
            slot: 0,
            founders: Some([node].into()),
            owner: identity.owner(),
        };
        let (disk, tail) = (reactor.disk().clone(), reactor.tail().clone());
        let (catalog, recovered) = Group::open(disk, tail, reactor.peers().clone(), options, Catalog::new()).await?;
        Ok((Control { reactor, catalog }, recovered))
    }

    /// The cluster id that the catalog knows; `None` if it is new.
    pub fn cluster_id(&self) -> Option<Arc<str>> {
        self.catalog.with_machine(Catalog::cluster_id)
    }

    /// First shard uid that was never given out.
    pub fn shard_uid_end(&self) -> ShardUid {
        self.catalog.with_machine(Catalog::shard_uid_end)
    }

    /// All topics with their places.
    pub fn topics(&self) -> Vec<Arc<PlacedTopic>> {
        let views: Vec<_> = self.catalog.with_machine(|catalog| catalog.topics().cloned().collect());
        views.into_iter().map(|view| self.placed(view)).collect()
    }

    /// Gives a new cluster its id; answers with the one it has from now on.
    ///
    /// # Errors
    /// When the catalog cannot write.
    pub async fn init(&self, cluster_id: String) -> Result<Arc<str>, ControlError> {
        let node = Some(self.own_entry());
        match self.propose(Command::InitCluster(InitCluster { cluster_id, node })).await? {
            CatalogAnswer::Cluster { cluster_id } => Ok(cluster_id),
            _ => unreachable!("not the answer to InitCluster"),
        }
    }

    /// This node as the catalog is to know it.
    fn own_entry(&self) -> ClusterNode {
        let node = self.reactor.node();
        ClusterNode {
            peer_host: node.config.peer.ip().to_string(),
            peer_port: node.config.peer.port().into(),
            reactors: u32::try_from(node.reactors.len()).expect("at most REACTORS_MAX"),
            grpc_address: node.addresses.0.to_string(),
            http_address: node.addresses.1.to_string(),
            // Any but 0, which means none.
            incarnation: E::random_u64() | 1,
            ..ClusterNode::default()
        }
    }

    /// What each reactor has to open of these topics, in the order of their numbers.
    pub fn shards_to_open(&self, topics: &[Arc<PlacedTopic>]) -> Vec<(ReactorNumber, Vec<ShardOptions>)> {
        let node = self.reactor.node();
        let mut shards: Vec<_> = (0..node.reactors.len()).map(|_| Vec::new()).collect();
        for topic in topics {
            let view = &topic.view;
            let segment_bytes = if view.segment_bytes == 0 { node.config.segment_bytes } else { view.segment_bytes };
            for place in &topic.shards {
                shards[place.reactor.0 as usize].push(ShardOptions {
                    dir: shard_dir(&node.config.data, place.uid),
                    uid: place.uid,
                    node: node.identity().expect("the catalog is open").node,
                    segment_bytes_max: segment_bytes,
                    slot: place.slot,
                    founders: Some([node.identity().expect("the catalog is open").node].into()),
                    owner: node.identity().expect("the catalog is open").owner(),
                    retention_bytes_max: view.retention_bytes_max,
                    retention_age_ms_max: view.retention_age_ms_max,
                });
            }
        }
        let numbered = (0u32..).map(ReactorNumber).zip(shards);
        numbered.filter(|(_, shards)| !shards.is_empty()).collect()
    }

    /// Opens shards on their reactors, all at once.
    ///
    /// # Errors
    /// The first one; all were tried.
    pub async fn open_shards(&self, shards: Vec<(ReactorNumber, Vec<ShardOptions>)>) -> Result<(), ReactorError> {
        let open = |(reactor, shards)| self.ask(reactor, move |reply| Request::Open { shards, reply });
        let results = futures_util::future::join_all(shards.into_iter().map(open)).await;
        results.into_iter().collect()
    }

    /// Tells the reactors of these topics which of their shards are gone from the disk.
    ///
    /// # Errors
    /// When a reactor has ended.
    pub async fn note_lost(&self, topics: &[Arc<PlacedTopic>], lost: &[ShardUid]) -> Result<(), ReactorError> {
        let places = topics.iter().flat_map(|topic| &topic.shards).filter(|place| lost.contains(&place.uid));
        for place in places {
            self.ask(place.reactor, |reply| Request::Lost { uids: vec![place.uid], reply }).await?;
        }
        Ok(())
    }

    /// Runs commands from now on, in a task of its own that ends with the reactor.
    pub fn serve(&self) -> ControlQueue {
        let (queue, mut jobs) = mpsc::channel(COMMANDS_MAX);
        let control = self.clone();
        env::spawn::<E>(async move {
            let mut since_purge = 0;
            while let Some(job) = jobs.recv().await {
                match job {
                    Job::Create { create, reply } => drop(reply.send(control.create(create).await)),
                    Job::Delete { name, reply } => drop(reply.send(control.delete(name).await)),
                }
                since_purge += 1;
                if since_purge == COMMANDS_PER_PURGE {
                    since_purge = 0;
                    control.purge().await;
                }
            }
        });
        ControlQueue(queue)
    }

    /// Makes a topic: committed, opened, published.
    ///
    /// # Errors
    /// `Refused`, `Catalog`; `Shards`, and then the topic was taken back.
    pub async fn create(&self, create: CreateTopic) -> Result<Arc<PlacedTopic>, ControlError> {
        let create = CreateTopic { created_us: E::wall_us(), ..create };
        // Refused without an entry: a flood of wrong requests must not fill the catalog's log.
        self.catalog.with_machine(|catalog| catalog.check_create(&create))?;
        self.check_space(create.shards).await?;
        let topic = match self.propose(Command::CreateTopic(create)).await? {
            CatalogAnswer::Created(view) => self.placed(view),
            _ => unreachable!("not the answer to CreateTopic"),
        };
        let (name, shards) = (&topic.view.name, topic.shards.len());
        if let Err(error) = self.open_shards(self.shards_to_open(std::slice::from_ref(&topic))).await {
            tracing::error!(topic = %name, %error, "topic is taken back: a shard could not be opened");
            let delete = DeleteTopic { name: name.to_string() };
            if let Err(error) = self.propose(Command::DeleteTopic(delete)).await {
                // It stays in the catalog: better to show it with its fault than to hide it.
                tracing::error!(topic = %name, %error, "topic could not be taken back");
                self.reactor.node().topics.publish([Arc::clone(&topic)]);
            } else {
                self.remove_shards(&topic).await;
            }
            return Err(error.into());
        }
        self.reactor.node().topics.publish([Arc::clone(&topic)]);
        tracing::info!(topic = %name, topic_id = topic.view.id.0, shards, "topic created");
        Ok(topic)
    }

    /// A topic that would wait for space is refused before anything is written. Not a promise: others write, too.
    async fn check_space(&self, shards: u32) -> Result<(), ControlError> {
        let data = &self.reactor.node().config.data;
        let needed = u64::from(shards) * limits::SEGMENT_BYTES_MIN;
        match self.reactor.disk().free_bytes(data).await {
            Ok(free) if free < needed => Err(GroupError::Full(LogError::Full { dir: data.clone() }).into()),
            // If it cannot be told, the first write will.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Removes a topic and all its records: committed, withdrawn, closed, files removed.
    ///
    /// # Errors
    /// `Refused`, `Catalog`.
    pub async fn delete(&self, name: String) -> Result<(), ControlError> {
        if self.catalog.with_machine(|catalog| catalog.topic(&name).is_none()) {
            return Err(CatalogError::NotFound(name).into());
        }
        let topic = match self.propose(Command::DeleteTopic(DeleteTopic { name })).await? {
            CatalogAnswer::Deleted(view) => self.placed(view),
            _ => unreachable!("not the answer to DeleteTopic"),
        };
        self.reactor.node().topics.withdraw(&topic.view.name);
        self.remove_shards(&topic).await;
        tracing::info!(topic = %topic.view.name, topic_id = topic.view.id.0, "topic deleted");
        Ok(())
    }

    /// Closes the catalog cleanly. For the end, after all shards.
    ///
    /// # Errors
    /// The group's.
    pub async fn close(&self) -> Result<(), GroupError> {
        self.catalog.close().await
    }

    /// Why the catalog does not serve, if it does not.
    pub fn fault(&self) -> Option<String> {
        self.catalog.fault()
    }

    async fn propose(&self, command: Command) -> Result<CatalogAnswer, ControlError> {
        let command = CatalogCommand { command: Some(command) }.encode_to_vec();
        let mut buffer = Buffer::with_capacity(ENTRY_HEADER_BYTES + command.len());
        buffer.grow_to(ENTRY_HEADER_BYTES);
        buffer.extend(&command);
        let proposal = Proposal {
            kind: ProposalKind::Command,
            record_count: 0,
            base_offset: self.catalog.log().log_end(),
            timestamp_us: E::wall_us(),
            record_timestamp_max_us: i64::MIN,
            buffer,
        };
        Ok(self.catalog.propose(proposal).await?.answer?)
    }

    /// Lets the catalog's log forget what its newest checkpoint covers.
    async fn purge(&self) {
        let applied = self.catalog.applied_end();
        if let Err(error) = self.catalog.purge_to(applied).await {
            tracing::warn!(%error, "the catalog's log could not be shortened");
        }
    }

    async fn remove_shards(&self, topic: &PlacedTopic) {
        let mut uids: Vec<Vec<ShardUid>> = topic.by_reactor.iter().map(|_| Vec::new()).collect();
        for place in &topic.shards {
            uids[place.reactor.0 as usize].push(place.uid);
        }
        let remove = |(number, uids)| self.ask(ReactorNumber(number), move |reply| Request::Remove { uids, reply });
        let removals = (0u32..).zip(uids).filter(|(_, uids)| !uids.is_empty()).map(remove);
        for result in futures_util::future::join_all(removals).await {
            if let Err(error) = result {
                tracing::warn!(topic = %topic.view.name, %error, "shards stay until the next start");
            }
        }
    }

    /// Sends a request, again and again while the mailbox is full: a command that is committed goes on.
    async fn ask(
        &self,
        reactor: ReactorNumber,
        request: impl FnOnce(Reply<()>) -> Request,
    ) -> Result<(), ReactorError> {
        let (reply, answer) = oneshot::channel();
        let mut request = request(reply);
        loop {
            match self.reactor.node().reactors[reactor.0 as usize].mailbox.offer(request) {
                Ok(()) => break,
                Err((ReactorError::MailboxFull, back)) => request = back,
                Err((error, _)) => return Err(error),
            }
            env::sleep::<E>(limits::RETRY_AFTER).await;
        }
        answer.await.unwrap_or(Err(ReactorError::Stopped { maybe_written: true }))
    }

    fn placed(&self, view: Arc<TopicView>) -> Arc<PlacedTopic> {
        let node = self.reactor.node();
        let me = node.identity().expect("the catalog is open").node;
        Arc::new(PlacedTopic::new(view, node.reactors.len(), me))
    }
}
