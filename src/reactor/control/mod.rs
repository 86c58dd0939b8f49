//! The node's view of the catalog (group 0), on reactor 0: what it says is done here, and what is asked of it is proposed.
//!
//! Every node holds a replica of the catalog, so each sees all of it without asking. What it says is carried out by loops
//! that compare what is wanted with what is there, and begin again after any failure:
//!
//! - `reconcile` (every node): addresses and topics are published, replicas that are to be here are opened, others removed
//! - `lead` (the catalog's leader): who votes in the catalog, and which replicas move where
//! - `duties` (every reactor, for the shards that it leads): a group's members become what the catalog wants
//! - `slow_disks` (the same): leadership moves away from a disk that is slow beside the others'
//! - `watch` (every node): whether the catalog's own device answers, and that the catalog has stopped
//!
//! Commands come from `admin` (people), from other nodes, and from those loops; `propose` takes them to the catalog's leader.
//! A command runs to its end also if its caller has gone. `join` lets new nodes in.

pub mod admin;
pub mod duties;
pub mod join;
mod lead;
pub mod made;
mod propose;
mod reconcile;
pub mod remembered;
pub mod sealed;
pub mod slow_disks;
mod unremoved;
mod watch;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

pub use self::propose::{NOT_LEADER, Proposed};
use self::unremoved::Unremoved;
use crate::{
    catalog::{Catalog, CatalogError, CreateTopic, DeleteTopic, InitCluster, NodeView, TopicView},
    env::{self, Disk, Env, channel::Notify},
    ids::{NodeId, ReactorNumber, ShardUid},
    limits,
    log::{LogError, Recovered},
    proto::ringlog::state::v1::{ControlReply, catalog_command::Command, control_reply, control_request},
    raft::{Group, GroupError, GroupOptions},
    reactor::{
        Reactor, ReactorError,
        inbound::ControlFuture,
        mailbox::{AdminCall, AdminReply, Reply, Request},
        repair,
        topics::PlacedTopic,
    },
};

/// Commands that run or wait; more are refused with a retry hint.
const COMMANDS_MAX: usize = 1_024;

/// How long a command waits for a leader of the catalog, and for this node's replica to have applied it.
const COMMAND_MAX: Duration = Duration::from_secs(10);

/// How long a look-up of a topic that this node does not know waits for the catalog's leader.
const LOOK_UP_MAX: Duration = Duration::from_secs(3);

/// Why a topic, or anything else in the catalog, is not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ControlError {
    /// The catalog's own answer: the request is wrong. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] CatalogError),
    /// The same, from another node.
    #[error("{message}")]
    RefusedThere {
        /// For people.
        message: String,
        /// Nothing was changed.
        definite: bool,
        /// It may be otherwise in a moment.
        retry: bool,
    },
    /// Nobody who is up can sign a new node's certificate. Nothing was changed.
    #[error(
        "no node that is up has the key of the cluster's CA (tls/ca.key in the data directory of the node that began the \
         cluster): copy it there on another node and restart that one, or issue a certificate with `ringlog ca issue` and \
         start the new node with --peer-ca, --peer-cert and --peer-key"
    )]
    NoCaKey,
    /// Retry: too many commands wait. Nothing was changed.
    #[error("too many commands to the catalog wait; retry after a moment")]
    Busy,
    /// Nobody leads the catalog, or its leader cannot be reached.
    #[error("the catalog has no leader that this node can reach: {cause}; are most of the nodes up?")]
    NoLeader {
        /// What was seen last.
        cause: String,
        /// A leader may have had the command before it was lost.
        maybe_written: bool,
    },
    /// It is committed, and this node has not carried it out for long. It does so as soon as it can.
    #[error(
        "it is committed, but this node has not carried it out yet: its storage may not answer; its log and its status say more"
    )]
    Late,
    /// The catalog could not write.
    #[error("the catalog could not be changed: {0}")]
    Catalog(#[from] GroupError),
    /// A shard could not be opened; the topic was taken back.
    #[error("a shard of the new topic could not be opened: {0}")]
    Shards(#[from] ReactorError),
    /// It cannot be done as things are; nothing was changed.
    #[error("{0}")]
    Precondition(String),
    /// What is asked for does not exist.
    #[error("{0}")]
    NotFound(String),
}

/// Directory of a shard, or of the catalog.
pub fn shard_dir(data: &Path, uid: ShardUid) -> PathBuf {
    data.join("shards").join(uid.to_string())
}

/// What a node finds of its replicas when it starts.
#[derive(Debug, Default)]
pub struct OnDisk {
    /// All of which there is a directory.
    pub shards: BTreeSet<ShardUid>,
    /// Those of them that have neither votes nor records.
    pub emptied: BTreeSet<ShardUid>,
    /// Those of them of which the device does not say that.
    pub unreadable: BTreeSet<ShardUid>,
}

#[derive(Debug)]
enum Job {
    Create { create: CreateTopic, reply: oneshot::Sender<Result<Arc<PlacedTopic>, ControlError>> },
    Delete { name: String, reply: oneshot::Sender<Result<(), ControlError>> },
    CatchUp { reply: oneshot::Sender<Result<(), ControlError>> },
    Propose { command: Command, reply: oneshot::Sender<Result<Proposed, ControlError>> },
    Admin { call: AdminCall, reply: AdminReply },
    Peer { from: Option<NodeId>, request: control_request::Request, reply: oneshot::Sender<control_reply::Reply> },
}

impl Job {
    fn refuse(self, error: ControlError) {
        match self {
            Job::Create { reply, .. } => drop(reply.send(Err(error))),
            Job::Delete { reply, .. } => drop(reply.send(Err(error))),
            Job::CatchUp { reply } => drop(reply.send(Err(error))),
            Job::Propose { reply, .. } => drop(reply.send(Err(error))),
            Job::Admin { reply, .. } => drop(reply.send(Err(error))),
            Job::Peer { reply, .. } => drop(reply.send(propose::refusal(&error))),
        }
    }
}

/// Where reactor 0 puts commands for `Control::serve`.
#[derive(Clone, Debug)]
pub struct ControlQueue(mpsc::Sender<Job>);

impl ControlQueue {
    /// Queues the creation of a topic.
    pub fn create(&self, create: CreateTopic, reply: oneshot::Sender<Result<Arc<PlacedTopic>, ControlError>>) {
        self.put(Job::Create { create, reply });
    }

    /// Queues the removal of a topic.
    pub fn delete(&self, name: String, reply: oneshot::Sender<Result<(), ControlError>>) {
        self.put(Job::Delete { name, reply });
    }

    /// Queues a wait until this node knows all that the catalog has committed by then.
    pub fn catch_up(&self, reply: oneshot::Sender<Result<(), ControlError>>) {
        self.put(Job::CatchUp { reply });
    }

    /// Queues a command to the catalog.
    pub fn propose(&self, command: Command, reply: oneshot::Sender<Result<Proposed, ControlError>>) {
        self.put(Job::Propose { command, reply });
    }

    /// Queues what a person asks for.
    pub fn admin(&self, call: AdminCall, reply: AdminReply) {
        self.put(Job::Admin { call, reply });
    }

    /// Queues what another node asks (`from`), or somebody who wants to become one (`None`).
    pub fn peer(
        &self,
        from: Option<NodeId>,
        request: control_request::Request,
        reply: oneshot::Sender<control_reply::Reply>,
    ) {
        self.put(Job::Peer { from, request, reply });
    }

    /// Answers another node (`from`), or somebody who wants to become one.
    pub fn answer(&self, from: Option<NodeId>, request: control_request::Request) -> ControlFuture {
        let (reply, answer) = oneshot::channel();
        self.peer(from, request, reply);
        Box::pin(async move {
            let ended = || {
                let cause = "this node is shutting down".to_owned();
                propose::refusal(&ControlError::NoLeader { cause, maybe_written: true })
            };
            ControlReply { reply: Some(answer.await.unwrap_or_else(|_| ended())) }
        })
    }

    fn put(&self, job: Job) {
        // Closed: the node ends, and dropping the reply says so.
        if let Err(mpsc::error::TrySendError::Full(job)) = self.0.try_send(job) {
            job.refuse(ControlError::Busy);
        }
    }
}

/// The catalog's group and what follows from its commands. Clones are handles to the same one.
pub struct Control<E: Env> {
    inner: Rc<Inner<E>>,
}

struct Inner<E: Env> {
    reactor: Rc<Reactor<E>>,
    catalog: Group<E, Catalog>,
    me: NodeId,
    /// Replicas that this node holds, serving or not, and the reactor of each.
    held: RefCell<BTreeMap<ShardUid, ReactorNumber>>,
    /// Replicas whose directories are here.
    on_disk: RefCell<BTreeSet<ShardUid>>,
    /// Those of them that have neither votes nor records.
    emptied: RefCell<BTreeSet<ShardUid>>,
    /// Replicas whose files are gone, or cannot be looked at: they are not made anew.
    lost: RefCell<BTreeSet<ShardUid>>,
    /// The list of replicas was damaged or unreadable, and what is lost cannot be told before the catalog is fresh.
    unlisted: Cell<bool>,
    /// The list of replicas could not be written as it is to be.
    list_is_due: Cell<bool>,
    /// Why replicas that were to be opened were not, until they are.
    failed: RefCell<BTreeMap<ShardUid, ReactorError>>,
    /// Of them those that could not be made: nothing of them may be on the disk, and then nothing was lost. Their reactors may be
    /// trying again.
    unmade: RefCell<BTreeSet<ShardUid>>,
    /// Those whose removal was begun and could not be ended: they are held, and removed before any is made there again.
    unremoved: RefCell<Unremoved>,
    /// Members that could not be made voters of the catalog, and until when others are tried first.
    late: RefCell<BTreeMap<NodeId, u64>>,
    /// `reconcile` has carried out the catalog up to here.
    reconciled: Cell<crate::ids::Index>,
    /// Whom the file `members` lists, as far as is known; and the end of the catalog's entries that it follows from.
    remembered: RefCell<Vec<Arc<NodeView>>>,
    remembered_end: Cell<crate::ids::Index>,
    reconciled_changed: Notify,
    /// Commands that run.
    running: Cell<usize>,
    trust: join::Trust,
    closing: Cell<bool>,
}

/// A command that runs, until it is dropped, which a panic does, too.
struct Ends<E: Env>(Control<E>);

impl<E: Env> Drop for Ends<E> {
    fn drop(&mut self) {
        let running = &self.0.inner.running;
        running.set(running.get() - 1);
    }
}

impl<E: Env> Clone for Control<E> {
    fn clone(&self) -> Self {
        Control { inner: Rc::clone(&self.inner) }
    }
}

impl<E: Env> Control<E> {
    /// Recovers the catalog. A new one begins with this node alone, if `founder`; else it waits for the cluster's leader to
    /// add this node. A damaged one is mended first from the other nodes', however long that takes.
    ///
    /// # Errors
    /// The group's: without its catalog a node knows no topic, and must not start.
    pub async fn open(
        reactor: Rc<Reactor<E>>,
        founder: bool,
        trust: join::Trust,
    ) -> Result<(Control<E>, Recovered), GroupError> {
        let config = &reactor.node().config;
        let identity = reactor.node().identity().expect("the identity is read first");
        let me = identity.node;
        let options = GroupOptions {
            dir: shard_dir(&config.data, ShardUid::CATALOG),
            shard: ShardUid::CATALOG,
            node: me,
            segment_bytes_max: limits::SEGMENT_BYTES_MIN,
            slot: 0,
            founders: founder.then(|| [me].into()),
            owner: identity.owner(),
            preferred: founder,
        };
        let mut mending = repair::CatalogMending::new();
        let (catalog, recovered) = loop {
            let (disk, tail, peers) = (reactor.disk().clone(), reactor.tail().clone(), reactor.peers().clone());
            match Group::open(disk, tail, peers, options.clone(), Catalog::new()).await {
                Err(GroupError::Damaged(error)) => mending.mend(&reactor, &options, error).await?,
                opened => break opened?,
            }
        };
        reactor.node().forget_fault(ShardUid::CATALOG);
        let served = catalog.clone();
        reactor.hooks().set_catalog_streams(move |from, first, stream| served.serve(from, first, stream));
        let inner = Inner {
            reactor,
            catalog,
            me,
            held: RefCell::default(),
            on_disk: RefCell::default(),
            emptied: RefCell::default(),
            lost: RefCell::default(),
            unlisted: Cell::new(false),
            list_is_due: Cell::new(false),
            failed: RefCell::default(),
            unmade: RefCell::default(),
            unremoved: RefCell::default(),
            late: RefCell::default(),
            reconciled: Cell::default(),
            remembered: RefCell::default(),
            remembered_end: Cell::default(),
            reconciled_changed: Notify::new(),
            running: Cell::new(0),
            trust,
            closing: Cell::new(false),
        };
        let control = Control { inner: Rc::new(inner) };
        env::spawn::<E>(control.clone().watch_catalog());
        Ok((control, recovered))
    }

    /// The catalog's group.
    pub fn group(&self) -> &Group<E, Catalog> {
        &self.inner.catalog
    }

    /// The cluster id that the catalog knows; `None` if it is new, or not here yet.
    pub fn cluster_id(&self) -> Option<Arc<str>> {
        self.inner.catalog.with_machine(Catalog::cluster_id)
    }

    /// First shard uid that was never given out, as known here.
    pub fn shard_uid_end(&self) -> ShardUid {
        self.inner.catalog.with_machine(Catalog::shard_uid_end)
    }

    /// All topics with their places.
    pub fn topics(&self) -> Vec<Arc<PlacedTopic>> {
        let views: Vec<_> = self.inner.catalog.with_machine(|catalog| catalog.topics().cloned().collect());
        views.into_iter().map(|view| self.placed(view)).collect()
    }

    /// Gives a new cluster its id and its first node; answers with the id that it has from now on.
    ///
    /// # Errors
    /// When the catalog cannot write.
    pub async fn init(&self, cluster_id: String) -> Result<Arc<str>, ControlError> {
        let node = Some(self.inner.reactor.node().own_entry());
        self.propose(Command::InitCluster(InitCluster { cluster_id, node })).await?;
        self.cluster_id().ok_or(ControlError::Precondition("the catalog did not take the cluster's id".to_owned()))
    }

    /// Runs commands and loops from now on, in tasks of their own that end with the reactor.
    pub fn serve(&self) -> ControlQueue {
        let (queue, mut jobs) = mpsc::channel(COMMANDS_MAX);
        let control = self.clone();
        env::spawn::<E>(async move {
            while let Some(job) = jobs.recv().await {
                control.begin(job);
            }
        });
        env::spawn::<E>(self.clone().reconcile_for_ever());
        env::spawn::<E>(self.clone().lead_for_ever());
        let queue = ControlQueue(queue);
        let hooks = self.inner.reactor.hooks();
        let commands = queue.clone();
        hooks.set_admin(move |call, reply| commands.admin(call, reply));
        let requests = queue.clone();
        hooks.set_control_requests(move |from, request| requests.answer(Some(from), request));
        queue
    }

    /// Runs a job in a task of its own: one that waits for a leader must not keep the others waiting.
    fn begin(&self, job: Job) {
        let running = &self.inner.running;
        if running.get() >= COMMANDS_MAX {
            job.refuse(ControlError::Busy);
            return;
        }
        running.set(running.get() + 1);
        let control = self.clone();
        let ends = Ends(self.clone());
        env::spawn_call::<E>("a command to the catalog", async move {
            let _ends = ends;
            match job {
                Job::Create { create, reply } => drop(reply.send(control.create(create).await)),
                Job::Delete { name, reply } => drop(reply.send(control.delete(name).await)),
                Job::CatchUp { reply } => drop(reply.send(control.catch_up_within(LOOK_UP_MAX).await)),
                Job::Propose { command, reply } => drop(reply.send(control.propose(command).await)),
                Job::Admin { call, reply } => drop(reply.send(control.admin(call).await)),
                Job::Peer { from, request, reply } => drop(reply.send(control.answer(from, request).await)),
            }
        });
    }

    /// Makes a topic: committed, its replicas here opened, published here.
    ///
    /// # Errors
    /// `Refused`, `NoLeader`, `Catalog`; `Shards` when the only replica could not be opened, and then the topic was taken back.
    pub async fn create(&self, create: CreateTopic) -> Result<Arc<PlacedTopic>, ControlError> {
        let create = CreateTopic { created_us: E::wall_us(), ..create };
        let name = create.name.clone();
        let command = Command::CreateTopic(create.clone());
        let check = || self.inner.catalog.with_machine(|catalog| catalog.check(&command));
        if check().is_err() {
            // What this node knows may be old.
            self.catch_up().await?;
            check()?;
        }
        self.check_space(create.shards).await?;
        let proposed = self.propose(Command::CreateTopic(create)).await?;
        self.reconciled(proposed.index).await?;
        let view = self.inner.catalog.with_machine(|catalog| catalog.topic(&name));
        let view = view.ok_or_else(|| ControlError::NotFound(format!("topic {name:?} was deleted again at once")))?;
        let topic = self.placed(view);
        if let Some(error) = self.sole_replica_failed(&topic) {
            tracing::error!(topic = %name, %error, "topic is taken back: a shard could not be opened");
            self.delete(name).await?;
            return Err(error.into());
        }
        tracing::info!(topic = %name, topic_id = topic.view.id.0, shards = topic.shards.len(), "topic created");
        Ok(topic)
    }

    /// Makes the first topic of a new cluster, before `serve`.
    ///
    /// # Errors
    /// As `create`.
    pub async fn found_topic(&self, create: CreateTopic) -> Result<(), ControlError> {
        let create = CreateTopic { created_us: E::wall_us(), ..create };
        self.propose(Command::CreateTopic(create)).await?;
        self.reconcile().await;
        match self.inner.failed.borrow().values().next() {
            Some(error) => Err(error.clone().into()),
            None => Ok(()),
        }
    }

    /// Why a shard of a new topic that has no replica elsewhere could not be opened here, if so.
    fn sole_replica_failed(&self, topic: &PlacedTopic) -> Option<ReactorError> {
        let failed = self.inner.failed.borrow();
        let sole = |number: usize| topic.view.replicas.get(number).is_some_and(|replicas| replicas.nodes.len() == 1);
        let places = topic.shards.iter().enumerate().filter(|(number, _)| sole(*number));
        places.filter_map(|(_, place)| failed.get(&place.uid).cloned()).next()
    }

    /// A topic that would wait for space is refused before anything is written. Not a promise: others write, too.
    async fn check_space(&self, shards: u32) -> Result<(), ControlError> {
        let data = &self.inner.reactor.node().config.data;
        let needed = u64::from(shards) * limits::SEGMENT_BYTES_MIN;
        match self.inner.reactor.disk().free_bytes(data).await {
            Ok(free) if free < needed => Err(GroupError::Full(LogError::Full { dir: data.clone() }).into()),
            // If it cannot be told, the first write will.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Removes a topic and all its records: committed, withdrawn, closed, files removed; on the other nodes soon.
    ///
    /// # Errors
    /// `Refused`, `NoLeader`, `Catalog`.
    pub async fn delete(&self, name: String) -> Result<(), ControlError> {
        let proposed = self.propose(Command::DeleteTopic(DeleteTopic { name: name.clone() })).await?;
        self.reconciled(proposed.index).await?;
        tracing::info!(topic = %name, "topic deleted");
        Ok(())
    }

    /// Has this node see, and carry out, everything that the catalog had committed when this was called.
    ///
    /// # Errors
    /// `NoLeader`.
    pub async fn catch_up(&self) -> Result<(), ControlError> {
        self.catch_up_within(COMMAND_MAX).await
    }

    async fn catch_up_within(&self, within: Duration) -> Result<(), ControlError> {
        self.inner
            .catalog
            .linearize(within)
            .await
            .map_err(|error| ControlError::NoLeader { cause: error.to_string(), maybe_written: false })?;
        match self.inner.catalog.applied_end() {
            crate::ids::Index(0) => Ok(()),
            end => self.reconciled(crate::ids::Index(end.0 - 1)).await,
        }
    }

    /// No loop begins anything any more: the node is about to close.
    pub fn stop(&self) {
        self.inner.closing.set(true);
        self.inner.reconciled_changed.notify_all();
    }

    /// Closes the catalog cleanly. For the end, after all shards.
    ///
    /// # Errors
    /// The group's.
    pub async fn close(&self) -> Result<(), GroupError> {
        self.stop();
        self.inner.catalog.close().await
    }

    /// Why the catalog does not serve, if it does not.
    pub fn fault(&self) -> Option<String> {
        self.inner.catalog.fault()
    }

    /// Sends a request, again and again while the mailbox is full: what is committed goes on.
    async fn ask<T>(
        &self,
        reactor: ReactorNumber,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, ReactorError> {
        let (reply, answer) = oneshot::channel();
        let mut request = request(reply);
        loop {
            match self.inner.reactor.node().reactors[reactor.0 as usize].mailbox.offer(request) {
                Ok(()) => break,
                Err((ReactorError::MailboxFull, back)) => request = back,
                Err((error, _)) => return Err(error),
            }
            env::sleep::<E>(limits::RETRY_AFTER).await;
        }
        answer.await.unwrap_or(Err(ReactorError::Stopped { maybe_written: true }))
    }

    fn placed(&self, view: Arc<TopicView>) -> Arc<PlacedTopic> {
        Arc::new(PlacedTopic::new(view, self.inner.reactor.node().reactors.len(), self.inner.me))
    }
}
