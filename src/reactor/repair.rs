//! Replicas that are damaged: closed, mended from the others' copies, opened again.
//!
//! - One that does not open because of damage is tried again and again until the others have given what it lacks. Meanwhile
//!   it has no group: it neither votes nor answers, and its calls go to the other replicas. So is the only copy, for which the
//!   reason says what would be lost, and the command that a person may choose: a device may come to itself, and a node whose
//!   catalog is old hears of other replicas.
//! - One in which a read finds damage is closed and goes the same way, if there are other replicas. The only copy stays open:
//!   what is whole of it is served.
//! - Where nothing can help (`RepairError::Hopeless`) it stays closed, and the reason says what a person may do; and where the device
//!   has not answered for long (`log::watched`), until the node starts again.

use std::{collections::BTreeSet, path::Path, rc::Rc, sync::atomic::Ordering::Relaxed, time::Duration};

use super::{
    Reactor, Slot,
    advice::{Others, others_of_catalog, way_out},
    control::{self, remembered::MEMBERS_FILE},
    inbound,
    stays::Stay,
};
use crate::{
    env::{self, Env, domain},
    ids::{LogId, NodeId, ShardUid},
    log::{
        LogError, Stalled,
        repair::{Mended, RepairError},
    },
    peer::frame::{FrameStream, Received},
    raft::{self, GroupError, GroupOptions, repair::Repair},
    shard::{Shard, ShardError, ShardOptions},
};

/// First pause before a replica that could not be mended is tried again; it doubles ...
const RETRY_MIN: Duration = Duration::from_millis(500);

/// ... up to this.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// So often in a row a catalog may be found damaged when it is opened, and whole when it is to be mended.
const UNEXPLAINED_MAX: u32 = 5;

/// Why a replica stays closed whose device does not answer.
fn beside(stalled: &Stalled) -> String {
    format!("{stalled}: nothing is mended beside what it may still do; restart the node when the device is well")
}

impl<E: Env> Reactor<E> {
    /// The other nodes that hold a replica, are to hold one, or keep one of a target that was given up; by the catalog, or as
    /// long as that is not known, those that have begun the group.
    fn others(&self, options: &ShardOptions) -> Option<Vec<NodeId>> {
        let founders = || options.founders.as_ref().map(|founders| founders.iter().copied().collect());
        let nodes = self.placed_on(options.uid).or_else(founders)?;
        let mut asked = BTreeSet::from([options.node]);
        Some(nodes.into_iter().filter(|node| asked.insert(*node)).collect())
    }

    /// Whether a damaged replica has others to be mended from.
    pub(super) fn can_be_mended(&self, options: &ShardOptions) -> bool {
        self.others(options).is_some_and(|others| !others.is_empty())
    }

    /// By the catalog, the nodes that hold a replica, are to hold one, or keep one.
    fn placed_on(&self, uid: ShardUid) -> Option<Vec<NodeId>> {
        let (topic, number) = self.node.topics.shard(uid)?;
        Some(topic.view.replicas.get(number as usize)?.holders().collect())
    }

    /// Whether there are other replicas than the one of this node, as far as it knows.
    pub(super) fn has_others(&self, uid: ShardUid) -> Others {
        let me = self.node.identity().map(|identity| identity.node);
        let is_other = |node: &NodeId| Some(*node) != me;
        let has_nodes = self.node.book.snapshot().keys().any(is_other);
        match self.placed_on(uid) {
            Some(holders) => Others::of(holders.into_iter().filter(is_other).count(), has_nodes),
            None => Others::MayBe,
        }
    }

    /// Whether the replica of this stay is here, and not open.
    pub(super) fn is_not_open(&self, uid: ShardUid, stay: &Stay) -> bool {
        !stay.is_over() && matches!(self.shards.borrow().get(&uid), Some(Slot::NotOpen { .. }))
    }

    /// Mends a replica that is not open, from others, until it opens, cannot be mended, or is removed.
    /// `flushed`: the last entry that it has said to be durable, if it was open until now.
    pub(super) async fn repair(self: Rc<Self>, options: ShardOptions, stay: Rc<Stay>, flushed: Option<LogId>) {
        let uid = options.uid;
        let mut pause = RETRY_MIN;
        let mut repair = Repair::new(self.disk.clone(), self.peers().clone(), &options.group(), flushed);
        let mut said = None;
        loop {
            let held = stay.enter().await;
            if !self.is_not_open(uid, &stay) || self.is_closing() {
                return;
            }
            let others = self.others(&options);
            let alone = others.as_ref().is_some_and(Vec::is_empty);
            let others = others.unwrap_or_default();
            let attempt = domain::contain_call("the repair of a replica", repair.attempt(&others));
            let attempt = tokio::select! {
                biased;
                // Whoever removes the replica waits for the directory.
                () = stay.over() => return,
                attempt = attempt => attempt,
            };
            let attempt = match attempt {
                Ok(attempt) => attempt,
                Err(panic) => {
                    let cause = format!(
                        "its repair has ended because of a bug: {panic}; it is tried again when the node restarts"
                    );
                    return self.note_damage(&options, &stay, cause);
                }
            };
            if let Some(stalled) = repair.hung() {
                return self.note_damage(&options, &stay, beside(&stalled));
            }
            match attempt {
                Ok(mended) => {
                    if mended != Mended::default() {
                        tracing::warn!(shard_uid = uid.0, ?mended, "what is damaged of a replica was mended");
                        self.count_mended(&mended);
                    }
                    // What opening finds damaged may have gone bad only now: also when there was nothing to mend.
                    if self.open_again(&options, &stay).await {
                        return;
                    }
                }
                Err(error) => {
                    let hopeless = matches!(error, RepairError::Hopeless(_));
                    let helpless = alone || hopeless || matches!(error, RepairError::Disk(LogError::Corrupt { .. }));
                    let place = (uid, options.node, &*options.dir);
                    let cause = if helpless { way_out(&error, place, self.has_others(uid)) } else { error.to_string() };
                    if helpless && said.as_ref() != Some(&cause) {
                        tracing::error!(shard_uid = uid.0, %cause, "a damaged replica cannot be mended from others");
                        said = Some(cause.clone());
                    }
                    self.note_damage(&options, &stay, cause);
                    if hopeless {
                        return;
                    }
                }
            }
            drop(held);
            env::sleep::<E>(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// One in which nothing was found to be mended does not count.
    fn count_mended(&self, mended: &Mended) {
        if *mended != Mended::default() {
            self.node.reactors[self.number.0 as usize].mended.fetch_add(1, Relaxed);
        }
    }

    fn note_damage(&self, options: &ShardOptions, stay: &Stay, cause: String) {
        if self.is_not_open(options.uid, stay) {
            let slot = Slot::not_open(&self.node, options, ShardError::Damaged { cause });
            self.shards.borrow_mut().insert(options.uid, slot);
        }
    }

    /// Opens a mended replica; false: it is to be mended again.
    async fn open_again(self: &Rc<Self>, options: &ShardOptions, stay: &Rc<Stay>) -> bool {
        let uid = options.uid;
        let shard = Shard::open(self.disk.clone(), self.tail.clone(), self.peers().clone(), options.clone()).await;
        match shard {
            Ok(shard) if self.is_not_open(uid, stay) => {
                let slot = self.opened(options, shard, stay);
                self.shards.borrow_mut().insert(uid, slot);
                self.node.forget_fault(uid);
                tracing::info!(shard_uid = uid.0, "shard serves again");
                true
            }
            // Removed meanwhile, or the node is closing.
            Ok(shard) => {
                drop(shard.close().await);
                true
            }
            Err(error) => {
                let again = matches!(error, ShardError::Damaged { .. });
                if matches!(error, ShardError::Full(_) | ShardError::Starved { .. }) {
                    env::spawn::<E>(Rc::clone(self).reopen(options.clone(), Rc::clone(stay)));
                }
                if self.is_not_open(uid, stay) {
                    let slot = Slot::not_open(&self.node, options, error);
                    self.shards.borrow_mut().insert(uid, slot);
                }
                !again
            }
        }
    }

    /// A read has found damage in a replica of which there are others: it is closed, mended and opened again.
    pub(super) async fn close_damaged(self: Rc<Self>, options: ShardOptions, shard: Shard<E>, stay: Rc<Stay>) {
        let uid = options.uid;
        if self.is_closing() {
            return;
        }
        let held = stay.enter().await;
        let cause = shard.fault().unwrap_or_default();
        {
            let mut shards = self.shards.borrow_mut();
            // Removed meanwhile: who removes it closes it.
            if stay.is_over() || !matches!(shards.get(&uid), Some(Slot::Serving(_))) {
                return;
            }
            tracing::error!(shard_uid = uid.0, %cause, "a damaged replica is closed, to be mended from the others");
            shards.insert(uid, Slot::not_open(&self.node, &options, ShardError::Damaged { cause }));
        }
        self.hold(uid);
        shard.abandon().await;
        stay.note_left(shard.left());
        self.release(uid);
        self.node.leaders.forget_own(uid);
        drop(held);
        if let Some(stalled) = shard.hung() {
            return self.note_damage(&options, &stay, beside(&stalled));
        }
        let flushed = shard.flushed();
        Rc::clone(&self).repair(options, Rc::clone(&stay), flushed).await;
    }

    /// A panic has stopped a replica. It stays closed until the node starts again: an assertion in what all replicas compute alike
    /// would stop it again, and the others, too. Other replicas lead and serve meanwhile.
    pub(super) fn close_panicked(&self, uid: ShardUid, shard: &Shard<E>, stay: &Stay) {
        let cause = shard.fault().unwrap_or_default();
        stay.note_left(shard.left());
        let mut shards = self.shards.borrow_mut();
        if let Some(slot) = shards.get_mut(&uid).filter(|slot| matches!(slot, Slot::Serving(_))) {
            self.node.note_fault(uid, &cause);
            self.node.leaders.forget_own(uid);
            let error = ShardError::Failed { cause: cause.clone(), maybe_written: false };
            *slot = Slot::NotOpen { error, cause };
        }
    }

    /// Answers another node that lacks entries of a replica that is not open here.
    pub(super) fn give_salvaged(&self, uid: ShardUid, first: Received, stream: FrameStream<E>) {
        let dir = control::shard_dir(&self.node.config.data, uid);
        let owner = self.node.identity().map_or(0, |identity| identity.owner());
        env::spawn_call::<E>(
            "a peer's call",
            raft::repair::give_salvaged(self.disk.clone(), dir, (uid, owner), first, stream),
        );
    }
}

/// Mends this node's damaged catalog from the nodes that it remembers, before the node starts. (A panic in it ends the process, where
/// that of a shard's repair ends the repair: without its catalog a node does not start.)
pub(super) struct CatalogMending {
    pause: Duration,
    /// How often in a row nothing was found to be mended.
    unexplained: u32,
}

impl CatalogMending {
    /// Nothing was tried yet.
    pub fn new() -> CatalogMending {
        CatalogMending { pause: RETRY_MIN, unexplained: 0 }
    }

    /// Mends it once more; it is to be opened again then. Waits as long as that takes: for other nodes, and for a device that does not
    /// read now.
    ///
    /// # Errors
    /// When nothing can help, there is no other node, it is not known which there are, it was in vain too often, or the device has not
    /// answered for `STORAGE_HUNG`: with the way out.
    pub async fn mend<E: Env>(
        &mut self,
        reactor: &Rc<Reactor<E>>,
        options: &GroupOptions,
        error: LogError,
    ) -> Result<(), GroupError> {
        tracing::error!(%error, "the catalog is damaged: it is mended from the other nodes before this one starts");
        let mut repair = Repair::new(reactor.disk().clone(), reactor.peers().clone(), options, None);
        let stop = |cause| Err(unmended(cause, &options.dir));
        loop {
            let book = reactor.node().book.snapshot();
            let others: Vec<_> = book.keys().copied().filter(|node| *node != options.node).collect();
            let attempt = repair.attempt(&others).await;
            if let Some(stalled) = repair.hung() {
                return stop(beside(&stalled));
            }
            match attempt {
                Ok(mended) if mended == Mended::default() => {
                    self.unexplained += 1;
                    if self.unexplained == UNEXPLAINED_MAX {
                        return stop(error.to_string());
                    }
                    // What opening found damaged may have gone bad just then, or be readable again.
                    tracing::warn!(%error, "nothing of the catalog is found to be damaged: it is opened again");
                    self.wait::<E>().await;
                    return Ok(());
                }
                Ok(mended) => {
                    tracing::warn!(?mended, "the catalog was mended");
                    self.unexplained = 0;
                    reactor.count_mended(&mended);
                    return Ok(());
                }
                Err(error @ RepairError::Hopeless(_)) => {
                    return stop(way_out_of_catalog(reactor, &error, options).await);
                }
                Err(error @ RepairError::Disk(_)) => {
                    let cause = way_out_of_catalog(reactor, &error, options).await;
                    note_waiting(reactor, &format!("the catalog cannot be read now, and the node waits: {cause}"));
                }
                Err(error) if others.is_empty() => return stop(way_out_of_catalog(reactor, &error, options).await),
                Err(error) => {
                    note_waiting(reactor, &format!("the catalog cannot be mended yet: are other nodes up? {error}"))
                }
            }
            self.wait::<E>().await;
        }
    }

    async fn wait<E: Env>(&mut self) {
        env::sleep::<E>(self.pause).await;
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }
}

fn note_waiting<E: Env>(reactor: &Reactor<E>, cause: &str) {
    tracing::warn!(cause);
    reactor.node().note_fault(ShardUid::CATALOG, cause);
}

/// The way out of the only catalog is named only where it is known to be that. In a cluster the others go on with what was given
/// up here, and this node would have forgotten what it acknowledged.
async fn way_out_of_catalog<E: Env>(reactor: &Reactor<E>, error: &RepairError, options: &GroupOptions) -> String {
    let (node, place) = (reactor.node(), (ShardUid::CATALOG, options.node, &*options.dir));
    let others = others_of_catalog(reactor.disk(), node, options.node).await;
    let is_mendable = matches!(error, RepairError::Unfilled { .. } | RepairError::Stateless { .. });
    if others != Others::MayBe || !is_mendable {
        return way_out(error, place, others);
    }
    format!(
        "which other nodes there are is not known, as {members} is missing or damaged: copy that file from another node's data \
         directory, and the catalog is mended from the others; only if there has never been another node: {way_out}",
        members = node.config.data.join(MEMBERS_FILE).display(),
        way_out = way_out(error, place, Others::AreNot),
    )
}

fn unmended(cause: String, dir: &Path) -> GroupError {
    let cause = format!("{cause}; `ringlog verify {}` checks its files", dir.display());
    GroupError::Stopped { cause, maybe_written: false }
}

impl<E: Env> inbound::Inbound<E> {
    /// Whether a stream was answered because it asks for what can be had from the files of a group that is not open.
    pub(super) fn salvaged(
        &self,
        uid: ShardUid,
        first: Received,
        stream: FrameStream<E>,
    ) -> Option<(Received, FrameStream<E>)> {
        if !raft::repair::is_fetch(&first) {
            return Some((first, stream));
        }
        self.reactor().give_salvaged(uid, first, stream);
        None
    }
}
