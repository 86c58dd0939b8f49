//! A reactor: one pinned thread that owns its shards, and does for them what its own connections
//! and the other threads' messages ask.
//!
//! - A call for a shard of this reactor is a plain function call; for another's it goes through
//!   that one's `mailbox`, which is bounded and refuses when it is full.
//! - Nothing here waits for one request before it takes the next: an append or a consume that has
//!   to wait does so in its own future.
//! - A shard that cannot be opened, or has stopped, is kept as such: its calls get the reason, the
//!   other shards serve.
//!
//! `control` (topics are made and removed; on reactor 0), `gossip` (who is there; on reactor 0), `listen` (sockets), `thread` (pinning).

pub mod control;
pub mod gossip;
pub mod listen;
pub mod mailbox;
pub mod node;
pub mod thread;
pub mod topics;

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    future::Future,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::{StreamExt, future::Either, stream};

use crate::{
    env::{self, Disk, Env},
    ids::{NodeId, Offset, ReactorNumber, ShardUid, Term},
    log::TailBudget,
    peer::Peers,
    reactor::{
        control::ControlQueue,
        gossip::Gossip,
        mailbox::{Mailbox, Reply, Request},
        node::Node,
    },
    shard::{Consume, Consumed, Produce, Produced, Shard, ShardError, ShardOptions, ShardStatus},
};

/// Shards of one reactor that open or close at the same time. Each reads and writes its own files;
/// more only queue in the device.
const OPEN_AT_ONCE: usize = 16;

/// How often a shard that found the disk full is tried again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(5);

/// Why a reactor does not do what it is asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReactorError {
    /// The shard's own answer.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The shard could not be opened. Nothing was written.
    #[error("{cause}")]
    NotOpen {
        /// What was wrong with it.
        error: ShardError,
        /// The same with its name and place, for people.
        cause: String,
    },
    /// No such shard here (any more): its topic was deleted. Nothing was written.
    #[error("the shard is not here any more: its topic was deleted")]
    Gone,
    /// Retry: too many requests wait. Nothing was written.
    #[error("the mailbox of the shard's reactor is full; retry after a moment")]
    MailboxFull,
    /// The reactor has ended.
    #[error("the node is shutting down")]
    Stopped {
        /// The request was in its hands: it may or may not have been done.
        maybe_written: bool,
    },
}

enum Slot<E: Env> {
    Serving(Shard<E>),
    NotOpen { error: ShardError, cause: String },
}

impl<E: Env> Slot<E> {
    /// What a shard is that could not be opened; noted for readiness and for the log.
    fn not_open(node: &Node, options: &ShardOptions, error: ShardError) -> Slot<E> {
        let (uid, dir) = (options.uid, options.dir.display());
        let cause = format!("shard {uid} could not be opened: {error}; `ringlog verify {dir}` checks its files");
        node.note_fault(uid, &cause);
        Slot::NotOpen { error, cause }
    }
}

/// One reactor's shards. Stays on its thread.
pub struct Reactor<E: Env> {
    number: ReactorNumber,
    node: Arc<Node>,
    disk: E::Disk,
    tail: TailBudget,
    peers: OnceCell<Peers<E>>,
    shards: RefCell<HashMap<ShardUid, Slot<E>>>,
    control: OnceCell<ControlQueue>,
    gossip: OnceCell<Gossip<E>>,
}

impl<E: Env> Reactor<E> {
    /// A reactor without shards.
    pub fn new(number: ReactorNumber, node: Arc<Node>, disk: E::Disk) -> Rc<Reactor<E>> {
        let tail = TailBudget::new(node.config.tail_bytes);
        let (peers, shards) = (OnceCell::new(), RefCell::default());
        let (control, gossip) = (OnceCell::new(), OnceCell::new());
        Rc::new(Reactor { number, node, disk, tail, peers, shards, control, gossip })
    }

    /// Its number.
    pub fn number(&self) -> ReactorNumber {
        self.number
    }

    /// What it shares with the others.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Its disk.
    pub fn disk(&self) -> &E::Disk {
        &self.disk
    }

    /// Its budget of recent entries.
    pub fn tail(&self) -> &TailBudget {
        &self.tail
    }

    /// Its connections to other nodes; none before `set_peers`.
    ///
    /// # Panics
    /// Before the node knows who it is.
    pub fn peers(&self) -> &Peers<E> {
        self.peers.get_or_init(|| Peers::alone(self.node.identity().expect("the identity is read first").node))
    }

    /// Gives the reactor its connections to other nodes, once, when the node's identity is known.
    pub fn set_peers(&self, peers: Peers<E>) {
        assert!(self.peers.set(peers).is_ok(), "a reactor's connections are made once");
    }

    /// This node's part in the gossip, on reactor 0 once it has begun. Whoever handles datagrams feeds it.
    pub fn gossip(&self) -> Option<&Gossip<E>> {
        self.gossip.get()
    }

    fn set_gossip(&self, gossip: Gossip<E>) {
        assert_eq!(self.number, ReactorNumber(0), "gossip runs on reactor 0");
        assert!(self.gossip.set(gossip).is_ok(), "gossip begins once");
    }

    /// Its mailbox.
    pub fn mailbox(&self) -> &Mailbox {
        &self.node.reactors[self.number.0 as usize].mailbox
    }

    /// From now on this reactor answers requests about topics: it is reactor 0.
    pub fn set_control(&self, control: ControlQueue) {
        assert_eq!(self.number, ReactorNumber(0), "the catalog lives on reactor 0");
        assert!(self.control.set(control).is_ok(), "there is one catalog");
    }

    /// Does what comes into the mailbox, for ever.
    pub async fn serve_mailbox(self: Rc<Self>) {
        let mut batch = Vec::new();
        loop {
            self.mailbox().take(&mut batch).await;
            for request in batch.drain(..) {
                self.handle(request);
            }
            // A flood of messages must not keep sockets and timers waiting.
            tokio::task::yield_now().await;
        }
    }

    /// Queues a produce at once; calls for one shard made one after the other keep their order.
    /// Dropping the future does not take the request back.
    pub fn produce(
        self: &Rc<Self>,
        uid: ShardUid,
        produce: Produce,
    ) -> impl Future<Output = Result<Produced, ReactorError>> + use<E> + 'static {
        match self.serving(uid) {
            Ok(shard) => {
                let (produced, reactor) = (shard.produce(produce), Rc::clone(self));
                Either::Left(async move { note(&reactor.node, uid, produced.await) })
            }
            Err(error) => Either::Right(std::future::ready(Err(error))),
        }
    }

    /// Reads committed records; waits as long as the request says.
    pub fn consume(
        self: &Rc<Self>,
        uid: ShardUid,
        consume: Consume,
    ) -> impl Future<Output = Result<Consumed, ReactorError>> + use<E> + 'static {
        match self.serving(uid) {
            Ok(shard) => {
                let (consumed, reactor) = (shard.consume(consume), Rc::clone(self));
                Either::Left(async move { note(&reactor.node, uid, consumed.await) })
            }
            Err(error) => Either::Right(std::future::ready(Err(error))),
        }
    }

    /// Moves a shard's log start up; answers with the present one.
    ///
    /// # Errors
    /// The shard's.
    pub async fn trim(&self, uid: ShardUid, before: Offset) -> Result<Offset, ReactorError> {
        let shard = self.serving(uid)?;
        note(&self.node, uid, shard.trim(before).await)
    }

    /// Numbers of shards, in the order asked for.
    pub fn status(&self, uids: &[ShardUid]) -> Vec<ShardStatus> {
        let shards = self.shards.borrow();
        let status = |uid| match shards.get(uid) {
            Some(Slot::Serving(shard)) => shard.status(),
            Some(Slot::NotOpen { cause, error: _ }) => absent(cause.clone()),
            None => absent(ReactorError::Gone.to_string()),
        };
        uids.iter().map(status).collect()
    }

    /// Opens shards, making those that are not there. One that fails is kept with its reason; if the
    /// disk is full, it is tried again until space returns.
    ///
    /// # Errors
    /// The first one; all were tried.
    pub async fn open(self: &Rc<Self>, shards: Vec<ShardOptions>) -> Result<(), ReactorError> {
        let opened = stream::iter(shards).map(|options| async move {
            let uid = options.uid;
            let shard = Shard::open(self.disk.clone(), self.tail.clone(), self.peers().clone(), options.clone()).await;
            let (slot, result) = match shard {
                Ok(shard) => (Slot::Serving(shard), Ok(())),
                Err(error) => {
                    let is_full = matches!(error, ShardError::Full(_));
                    let slot = Slot::not_open(&self.node, &options, error.clone());
                    if is_full {
                        env::spawn::<E>(Rc::clone(self).reopen(options));
                    }
                    (slot, Err(ReactorError::from(error)))
                }
            };
            let replaced = self.shards.borrow_mut().insert(uid, slot);
            assert!(replaced.is_none(), "a shard is opened once");
            result
        });
        let mut first = Ok(());
        let mut opened = opened.buffer_unordered(OPEN_AT_ONCE);
        while let Some(result) = opened.next().await {
            first = first.and(result);
        }
        self.count_shards();
        first
    }

    /// Tries a shard that found the disk full again, until it opens, fails otherwise, or is removed.
    async fn reopen(self: Rc<Self>, options: ShardOptions) {
        let uid = options.uid;
        let waits = || matches!(self.shards.borrow().get(&uid), Some(Slot::NotOpen { .. }));
        loop {
            env::sleep::<E>(REOPEN_INTERVAL).await;
            if !waits() {
                return;
            }
            let opened = Shard::open(self.disk.clone(), self.tail.clone(), self.peers().clone(), options.clone()).await;
            match opened {
                Ok(shard) if waits() => {
                    self.shards.borrow_mut().insert(uid, Slot::Serving(shard));
                    self.node.forget_fault(uid);
                    tracing::info!(shard_uid = uid.0, "shard serves again");
                    return;
                }
                // Removed meanwhile, or the node is closing.
                Ok(shard) => {
                    drop(shard.close().await);
                    return;
                }
                Err(ShardError::Full(_)) => {}
                Err(error) => {
                    if waits() {
                        let slot = Slot::not_open(&self.node, &options, error);
                        self.shards.borrow_mut().insert(uid, slot);
                    }
                    return;
                }
            }
        }
    }

    /// Closes shards and removes their directories. What cannot be removed now is removed when the
    /// node starts again, as nothing refers to it any more.
    pub async fn remove(&self, uids: Vec<ShardUid>) {
        for uid in uids {
            let slot = self.shards.borrow_mut().remove(&uid);
            self.node.forget_fault(uid);
            if let Some(Slot::Serving(shard)) = slot
                && let Err(error) = shard.close().await
            {
                tracing::warn!(shard_uid = uid.0, %error, "shard of a deleted topic did not close cleanly");
            }
            let dir = control::shard_dir(&self.node.config.data, uid);
            match self.disk.remove_dir_all(&dir).await {
                Ok(()) => tracing::info!(shard_uid = uid.0, "shard of a deleted topic removed"),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    let dir = dir.display();
                    tracing::warn!(%dir, %error, "directory of a deleted shard stays until the next start");
                }
            }
        }
        self.count_shards();
    }

    /// Closes all shards cleanly, and the mailbox: whoever asks from now on learns that the
    /// reactor has stopped.
    pub async fn close(&self) {
        self.mailbox().close();
        let shards = std::mem::take(&mut *self.shards.borrow_mut());
        let serving = shards.into_iter().filter_map(|(uid, slot)| match slot {
            Slot::Serving(shard) => Some((uid, shard)),
            Slot::NotOpen { .. } => None,
        });
        let closing = stream::iter(serving).map(|(uid, shard)| async move {
            if let Err(error) = shard.close().await {
                tracing::error!(shard_uid = uid.0, %error, "shard did not close cleanly; the next start will recover it");
            }
        });
        closing.buffer_unordered(OPEN_AT_ONCE).collect::<()>().await;
        self.count_shards();
    }

    fn handle(self: &Rc<Self>, request: Request) {
        match request {
            Request::Produce { uid, produce, reply } => answer::<E, _>(reply, self.produce(uid, produce)),
            Request::Consume { uid, consume, mut reply } => {
                let consumed = self.consume(uid, consume);
                env::spawn::<E>(async move {
                    tokio::select! {
                        biased;
                        // Nobody waits any more: neither does the shard.
                        () = reply.closed() => {}
                        result = consumed => drop(reply.send(result)),
                    }
                });
            }
            Request::Trim { uid, before, reply } => {
                let reactor = Rc::clone(self);
                answer::<E, _>(reply, async move { reactor.trim(uid, before).await });
            }
            Request::Status { uids, reply } => drop(reply.send(Ok(self.status(&uids)))),
            Request::Open { shards, reply } => {
                let reactor = Rc::clone(self);
                answer::<E, _>(reply, async move { reactor.open(shards).await });
            }
            Request::Lost { uids, reply } => {
                uids.into_iter().for_each(|uid| self.lose(uid));
                drop(reply.send(Ok(())));
            }
            Request::Remove { uids, reply } => {
                let reactor = Rc::clone(self);
                answer::<E, _>(reply, async move {
                    reactor.remove(uids).await;
                    Ok(())
                });
            }
            // Before the catalog is open, or on a reactor that has none, the reply is dropped: "stopped".
            Request::CreateTopic { create, reply } => {
                if let Some(control) = self.control.get() {
                    control.create(create, reply);
                }
            }
            Request::DeleteTopic { name, reply } => {
                if let Some(control) = self.control.get() {
                    control.delete(name, reply);
                }
            }
        }
    }

    /// Keeps a shard without files as such: to make it anew would hide that its records are gone.
    fn lose(&self, uid: ShardUid) {
        let dir = control::shard_dir(&self.node.config.data, uid);
        let cause = format!(
            "shard {uid} is lost: its directory {} is missing; restore it from a backup, or delete the topic",
            dir.display()
        );
        self.node.note_fault(uid, &cause);
        let error = ShardError::Failed { cause: cause.clone(), maybe_written: false };
        self.shards.borrow_mut().insert(uid, Slot::NotOpen { error, cause });
        self.count_shards();
    }

    fn serving(&self, uid: ShardUid) -> Result<Shard<E>, ReactorError> {
        match self.shards.borrow().get(&uid) {
            Some(Slot::Serving(shard)) => Ok(shard.clone()),
            Some(Slot::NotOpen { error, cause }) => {
                Err(ReactorError::NotOpen { error: error.clone(), cause: cause.clone() })
            }
            None => Err(ReactorError::Gone),
        }
    }

    fn count_shards(&self) {
        let count = self.shards.borrow().len();
        self.node.reactors[self.number.0 as usize].shards.store(count, Relaxed);
    }
}

/// Runs `work` and sends what it says.
fn answer<E: Env, T: 'static>(reply: Reply<T>, work: impl Future<Output = Result<T, ReactorError>> + 'static) {
    env::spawn::<E>(async move { drop(reply.send(work.await)) });
}

/// Notes a shard that has stopped, for readiness and for the log.
fn note<T>(node: &Node, uid: ShardUid, result: Result<T, ShardError>) -> Result<T, ReactorError> {
    if let Err(ShardError::Failed { cause, .. }) = &result {
        node.note_fault(uid, cause);
    }
    Ok(result?)
}

/// The numbers of a shard that is not open.
fn absent(fault: String) -> ShardStatus {
    ShardStatus {
        leader: None::<NodeId>,
        term: Term(0),
        log_start: Offset(0),
        high_watermark: Offset(0),
        log_end: Offset(0),
        size_bytes: 0,
        segments: 0,
        fault: Some(fault),
    }
}
