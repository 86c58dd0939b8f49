//! Carries out on this node what the catalog says: addresses and topics are published, replicas that are to be here are
//! opened, those that are not any more are closed and removed.
//!
//! Level-triggered: each round compares what is wanted with what is there, whatever happened before.
//!
//! Replicas whose files are here are opened from what this node's catalog says, however old that is. But a replica is made
//! anew, or removed, only when the catalog is known to be fresh (ReadIndex): a node that starts replays old history, in which
//! it may have to make replicas that it had, and lost, long ago; made anew they would vote without knowing how they voted.
//!
//! Which replicas this node has made is kept in `<data>/replicas`, one uid a line: a replica in it whose directory is gone is
//! lost, and is not made anew, for the same reason. That it is lost is forgotten only when a fresh catalog says that none is to be
//! here.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use openraft::AsyncRuntime;

use super::{
    Control, ControlError, OnDisk, made,
    remembered::{self, MEMBERS_FILE},
    shard_dir,
};
use crate::{
    catalog::NodeState,
    env::{self, Disk, Env, domain, reserve},
    ids::{Index, NodeId, ReactorNumber, ShardUid},
    log::Watched,
    peer::book::PeerNode,
    raft::left::left_uid,
    reactor::{ReactorError, mailbox::Request, topics::PlacedTopic},
    shard::{ShardError, ShardOptions},
};

/// How often what failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for the word of the catalog's leader.
const FRESH_MAX: Duration = Duration::from_secs(2);

/// Longest wait for what is committed to be carried out here. Above what a device that does not answer can keep a reactor waiting
/// with one replica: its close, and its directory.
const CARRY_OUT_MAX: Duration = Duration::from_secs(180);

/// How often the catalog's log is looked at for what can be forgotten.
const PURGE_ROUNDS: u32 = 256;

/// Whether a reactor does not try again to open a replica that failed so.
fn is_given_up(error: &ReactorError) -> bool {
    !matches!(error, ReactorError::Shard(ShardError::Full(_) | ShardError::Starved { .. } | ShardError::Damaged { .. }))
}

/// Whether a replica of this shard is to be on this node, by what it knows of the topics.
fn is_here(topics: &[Arc<PlacedTopic>], uid: ShardUid) -> bool {
    topics.iter().flat_map(|topic| &topic.shards).any(|place| place.uid == uid && place.here)
}

impl<E: Env> Control<E> {
    /// Takes over what was found on the disk: reads which replicas this node has made before, and finds those whose files are
    /// gone. Before the first `reconcile`.
    ///
    /// # Errors
    /// In one sentence, when the list of them cannot be read for want of descriptors or memory.
    pub async fn take_over(&self, found: OnDisk) -> Result<(), String> {
        let path = self.replicas_file();
        let made = match self.inner.reactor.disk().read_file(&path).await {
            Ok(content) => made::decode(&content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) if env::is_transient(&error) => {
                return Err(format!("{} could not be read: {error}", path.display()));
            }
            // As a damaged one: it is written anew.
            Err(error) => Err(format!("could not be read: {error}")),
        };
        let made = made.unwrap_or_else(|what| {
            tracing::error!(path = %path.display(), "{what}: all that are to be here and are not are taken for lost");
            self.inner.unlisted.set(true);
            BTreeSet::new()
        });
        let OnDisk { shards, emptied, unreadable } = found;
        let lost = made.iter().filter(|uid| !shards.contains(uid) || emptied.contains(uid));
        *self.inner.lost.borrow_mut() = lost.chain(&unreadable).copied().collect();
        *self.inner.on_disk.borrow_mut() = shards;
        if let Ok(content) = self.inner.reactor.disk().read_file(&self.members_file()).await
            && let Some(remembered) = remembered::decode(&content)
        {
            self.inner.remembered_end.set(remembered.applied_end);
        }
        *self.inner.emptied.borrow_mut() = emptied;
        Ok(())
    }

    /// Carries out the catalog as it is applied here, for ever.
    pub(super) async fn reconcile_for_ever(self) {
        let mut rounds = 0;
        while !self.inner.closing.get() {
            let seen = self.inner.catalog.applied_end();
            let done = self.reconcile().await;
            rounds += 1;
            if rounds % PURGE_ROUNDS == 0 {
                drop(self.inner.catalog.domain().contain(self.purge()).await);
            }
            if done {
                self.inner.reconciled.set(seen);
                self.inner.reconciled_changed.notify_all();
                self.wait_for_work(seen).await;
            } else {
                env::sleep::<E>(RETRY_INTERVAL).await;
            }
            if self.fault().is_some() {
                // Nothing is carried out any more: nobody may wait for it.
                self.inner.reconciled_changed.notify_all();
                return;
            }
        }
    }

    /// Waits until more than that is applied here, or what could not be removed is due, or a replica may have been made since, or the
    /// list of replicas is to be written again.
    async fn wait_for_work(&self, seen: Index) {
        let applied = self.inner.catalog.wait_applied(seen);
        let removal = self.inner.unremoved.borrow().wait(E::monotonic_us());
        let unmade = self.inner.unmade.borrow().iter().any(|uid| self.is_being_made(*uid));
        let again = unmade || self.inner.list_is_due.get();
        match removal.into_iter().chain(again.then_some(RETRY_INTERVAL)).min() {
            // It is due, or something is applied.
            Some(due) => drop(E::Runtime::timeout(due, applied).await),
            None => drop(applied.await),
        }
    }

    /// Waits until an entry of the catalog is carried out here, as far as it can be.
    ///
    /// # Errors
    /// `NoLeader`: the catalog has stopped here, or the node is closing. `Late`.
    pub async fn reconciled(&self, index: Index) -> Result<(), ControlError> {
        match E::Runtime::timeout(CARRY_OUT_MAX, self.reconciled_at_last(index)).await {
            Ok(reconciled) => reconciled,
            Err(_) => Err(ControlError::Late),
        }
    }

    async fn reconciled_at_last(&self, index: Index) -> Result<(), ControlError> {
        loop {
            let changed = self.inner.reconciled_changed.notified();
            if self.inner.reconciled.get() > index {
                return Ok(());
            }
            let ended = match self.fault() {
                _ if self.inner.closing.get() => Some("this node is shutting down".to_owned()),
                fault => fault.map(|cause| format!("it has stopped on this node: {cause}")),
            };
            if let Some(cause) = ended {
                return Err(ControlError::NoLeader { cause, maybe_written: true });
            }
            changed.await;
        }
    }

    /// One round; whether nothing is left to be tried again. A replica that cannot be opened counts as done: it is noted, and
    /// its reactor goes on trying where that can help. So does one that cannot be removed: it is tried again after a pause.
    ///
    /// All of it follows from the catalog, on every node alike: a panic stops this node's replica of the catalog, and the round. So
    /// does one elsewhere in that replica: nothing is opened or removed by what it has left half made.
    pub async fn reconcile(&self) -> bool {
        self.inner.catalog.domain().contain(self.round()).await.unwrap_or(false)
    }

    async fn round(&self) -> bool {
        self.publish_book();
        self.remember_members().await;
        let known = || {
            let topics = self.topics();
            let wanted = self.wanted(&topics);
            (topics, wanted)
        };
        let (topics, wanted) = known();
        self.withdraw_deleted(&topics);
        let noted = self.note_lost(&topics).await.is_ok();
        self.open_wanted(&wanted, true).await;
        // As it is by now: what follows removes and forgets by it.
        let (topics, wanted) = known();
        let is_fresh = !self.needs_fresh(&topics, &wanted) || self.inner.catalog.linearize(FRESH_MAX).await.is_ok();
        // What was applied meanwhile comes with the next round.
        let (topics, wanted) = if is_fresh {
            let listed = self.take_for_lost().await;
            let (topics, wanted) = known();
            self.publish_book();
            self.withdraw_deleted(&topics);
            self.remove_unwanted(&topics, &wanted).await;
            (topics, listed.then_some(wanted))
        } else {
            (topics, None)
        };
        let is_known = wanted.is_some();
        if let Some(wanted) = wanted {
            self.open_wanted(&wanted, false).await;
        }
        domain::core(|| self.inner.reactor.node().topics.publish(topics));
        noted && is_known
    }

    /// With a fresh catalog, once: what is to be here and is not was lost, if it cannot be told what was here. False: another round
    /// tells the reactors, or tries again.
    async fn take_for_lost(&self) -> bool {
        if !self.inner.unlisted.get() {
            return true;
        }
        let wanted = self.wanted(&self.topics());
        {
            let (on_disk, emptied) = (self.inner.on_disk.borrow(), self.inner.emptied.borrow());
            let is_gone = |uid: &&ShardUid| !on_disk.contains(uid) || emptied.contains(uid);
            self.inner.lost.borrow_mut().extend(wanted.keys().filter(is_gone));
        }
        self.inner.unlisted.set(false);
        let is_written = self.write_replicas().await;
        self.inner.unlisted.set(!is_written);
        false
    }

    /// Whether a replica is to be made anew, or removed, or a lost one forgotten: then a new one may be made some day.
    fn needs_fresh(
        &self,
        topics: &[Arc<PlacedTopic>],
        wanted: &BTreeMap<ShardUid, (ReactorNumber, ShardOptions)>,
    ) -> bool {
        let (held, on_disk) = (self.inner.held.borrow(), self.inner.on_disk.borrow());
        let lost = self.inner.lost.borrow();
        let is_unwanted = |uid: &ShardUid| self.is_unwanted(*uid, wanted);
        self.inner.unlisted.get()
            || wanted.keys().any(|uid| !held.contains_key(uid))
            || held.keys().any(is_unwanted)
            || on_disk.iter().any(is_unwanted)
            || lost.iter().any(|uid| !is_here(topics, *uid))
    }

    /// Whether a replica that is here is to be removed now.
    fn is_unwanted(&self, uid: ShardUid, wanted: &BTreeMap<ShardUid, (ReactorNumber, ShardOptions)>) -> bool {
        let unremoved = self.inner.unremoved.borrow();
        match unremoved.contains(uid) {
            // Also if one is to be here again: it is made anew then.
            true => unremoved.is_due(E::monotonic_us()),
            false => !wanted.contains_key(&uid) && !self.inner.lost.borrow().contains(&uid),
        }
    }

    /// Tells all reactors who the nodes are.
    fn publish_book(&self) {
        let nodes: Vec<_> = self.inner.catalog.with_machine(|catalog| catalog.nodes().cloned().collect());
        if nodes.is_empty() || self.inner.catalog.applied_end() < self.inner.remembered_end.get() {
            // A node that has just joined knows the others from its answer, until its catalog comes; one that starts again
            // remembers them, until its catalog is as far as it was.
            return;
        }
        let book = &self.inner.reactor.node().book;
        let members = nodes.iter().filter(|node| node.state != NodeState::Removed).map(|node| PeerNode {
            node: node.id,
            host: node.peer_host.clone(),
            port: node.peer_port,
            reactors: node.reactors,
            grpc: node.grpc.clone(),
            http: node.http.clone(),
        });
        let removed: BTreeSet<NodeId> =
            nodes.iter().filter(|node| node.state == NodeState::Removed).map(|node| node.id).collect();
        domain::core(|| {
            book.publish(members);
            book.publish_removed(removed);
        });
    }

    /// Writes down who the nodes are, if that has changed. (It is tried again with the next change: an old list only makes a
    /// start of all nodes at once harder.)
    async fn remember_members(&self) {
        let applied_end = self.inner.catalog.applied_end();
        if applied_end < self.inner.remembered_end.get() {
            return;
        }
        let nodes: Vec<_> = self.inner.catalog.with_machine(|catalog| catalog.nodes().cloned().collect());
        if *self.inner.remembered.borrow() == nodes {
            return;
        }
        let path = self.members_file();
        let content = remembered::encode(applied_end, nodes.iter().map(|node| node.to_entry()));
        match self.write(&path, content.into()).await {
            Ok(()) => {
                *self.inner.remembered.borrow_mut() = nodes;
                self.inner.remembered_end.set(applied_end);
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "the list of nodes could not be written"),
        }
    }

    fn members_file(&self) -> PathBuf {
        self.inner.reactor.node().config.data.join(MEMBERS_FILE)
    }

    /// Replicas that are to be here, lost ones left out.
    fn wanted(&self, topics: &[Arc<PlacedTopic>]) -> BTreeMap<ShardUid, (ReactorNumber, ShardOptions)> {
        let node = self.inner.reactor.node();
        let lost = self.inner.lost.borrow();
        let mut wanted = BTreeMap::new();
        for topic in topics {
            let view = &topic.view;
            let segment_bytes = if view.segment_bytes == 0 { node.config.segment_bytes } else { view.segment_bytes };
            for (place, replicas) in topic.shards.iter().zip(&view.replicas) {
                if !place.here || lost.contains(&place.uid) {
                    continue;
                }
                let options = ShardOptions {
                    dir: shard_dir(&node.config.data, place.uid),
                    uid: place.uid,
                    node: self.inner.me,
                    segment_bytes_max: segment_bytes,
                    slot: place.slot,
                    founders: replicas.founders(self.inner.me),
                    owner: node.identity().expect("the catalog is open").owner(),
                    preferred: replicas.goal().first() == Some(&self.inner.me),
                    retention_bytes_max: view.retention_bytes_max,
                    retention_age_ms_max: view.retention_age_ms_max,
                };
                wanted.insert(place.uid, (place.reactor, options));
            }
        }
        wanted
    }

    fn withdraw_deleted(&self, topics: &[Arc<PlacedTopic>]) {
        let names: BTreeSet<&str> = topics.iter().map(|topic| &*topic.view.name).collect();
        let table = &self.inner.reactor.node().topics;
        for (name, published) in table.snapshot().iter() {
            let same = topics.iter().any(|topic| topic.view.name == *name && topic.view.id == published.view.id);
            if !same && !names.contains(&**name) {
                domain::core(|| table.withdraw(name));
            }
        }
    }

    /// Closes and removes replicas that are not to be here any more.
    async fn remove_unwanted(
        &self,
        topics: &[Arc<PlacedTopic>],
        wanted: &BTreeMap<ShardUid, (ReactorNumber, ShardOptions)>,
    ) {
        let forgotten = self.forget_lost(topics);
        let unwanted: Vec<_> = {
            let (held, on_disk) = (self.inner.held.borrow(), self.inner.on_disk.borrow());
            // Not held, but here: of a topic that was deleted, or moved away, while this node was down.
            let orphans = on_disk.iter().filter(|uid| !held.contains_key(uid)).map(|uid| (*uid, ReactorNumber(0)));
            let held = held.iter().map(|(uid, reactor)| (*uid, *reactor));
            held.chain(orphans).filter(|(uid, _)| self.is_unwanted(*uid, wanted)).collect()
        };
        let end = self.shard_uid_end();
        if let Some((uid, _)) = unwanted.iter().find(|(uid, _)| *uid >= end) {
            // Never handed out by this catalog: somebody else's records are not ours to delete.
            let dir = shard_dir(&self.inner.reactor.node().config.data, *uid);
            if self.inner.catalog.members().is_alone(self.inner.me) {
                tracing::error!(dir = %dir.display(), "belongs to no topic, and the catalog never made it: move it away");
            } else {
                // After a restart that is so until this node has caught up.
                tracing::info!(dir = %dir.display(), "belongs to no topic that this node's catalog knows by now");
            }
        }
        let unwanted: Vec<_> = unwanted.into_iter().filter(|(uid, _)| *uid < end).collect();
        if unwanted.is_empty() {
            if forgotten {
                self.write_replicas().await;
            }
            return;
        }
        // Before they go: a crash in between leaves one that is not listed, which is removed after the next start. One that is listed
        // and gone would be taken for lost. (What cannot be listed goes anyway: it may be in the way of the list.)
        let leaving = unwanted.iter().map(|(uid, _)| *uid).collect();
        let listed = self.write_replicas_without(&leaving).await;
        let mut by_reactor: BTreeMap<ReactorNumber, Vec<ShardUid>> = BTreeMap::new();
        for (uid, reactor) in &unwanted {
            by_reactor.entry(*reactor).or_default().push(*uid);
        }
        let removals = by_reactor.into_iter().map(|(reactor, uids)| async move {
            let (asked, result) = (uids.clone(), self.ask(reactor, move |reply| Request::Remove { uids, reply }).await);
            result.unwrap_or_else(|error| asked.into_iter().map(|uid| (uid, error.to_string())).collect())
        });
        let failed = futures_util::future::join_all(removals).await.into_iter().flatten().collect();
        self.note_removed(&unwanted, failed);
        if !listed {
            self.write_replicas().await;
        }
        self.forget_left().await;
    }

    /// These were to be removed; those that stay, for these reasons, are held, and tried again after a while.
    fn note_removed(&self, unwanted: &[(ShardUid, ReactorNumber)], failed: BTreeMap<ShardUid, String>) {
        for (uid, reactor) in unwanted {
            self.inner.failed.borrow_mut().remove(uid);
            self.inner.unmade.borrow_mut().remove(uid);
            if failed.contains_key(uid) {
                self.inner.held.borrow_mut().insert(*uid, *reactor);
                continue;
            }
            self.inner.held.borrow_mut().remove(uid);
            self.inner.on_disk.borrow_mut().remove(uid);
        }
        let uids: Vec<_> = unwanted.iter().map(|(uid, _)| *uid).collect();
        let causes = failed.clone();
        for uid in self.inner.unremoved.borrow_mut().tried(&uids, failed, E::monotonic_us()) {
            let (dir, cause) = (shard_dir(&self.inner.reactor.node().config.data, uid), &causes[&uid]);
            tracing::warn!(dir = %dir.display(), cause, "a replica that is not to be here any more stays for now");
        }
    }

    /// Removes what replicas have left of shards that there are no more: none will be made again. One that stays does no harm.
    async fn forget_left(&self) {
        let (reactor, topics) = (&self.inner.reactor, self.topics());
        let uids: BTreeSet<_> = topics.iter().flat_map(|topic| &topic.shards).map(|place| place.uid).collect();
        let dir = reactor.node().config.data.join("shards");
        let disk = Watched::<E>::new(reactor.disk().clone());
        let forgetting = async {
            for entry in disk.list(&dir).await.unwrap_or_default() {
                if left_uid(&entry.name).is_some_and(|uid| uid != ShardUid::CATALOG && !uids.contains(&uid)) {
                    drop(disk.remove(&dir.join(&entry.name)).await);
                }
            }
        };
        disk.look_while(forgetting).await;
    }

    /// Writes a list, with the space that is kept for what frees space: what goes with it may. A device that does not answer is seen
    /// by nobody else.
    async fn write(&self, path: &Path, content: Vec<u8>) -> io::Result<()> {
        let disk = Watched::<E>::new(self.inner.reactor.disk().clone());
        disk.look_while(reserve::write_file(&disk, path, Bytes::from(content))).await
    }

    /// A replica that was lost, and is not to be here any more, may come back as a new one some day.
    fn forget_lost(&self, topics: &[Arc<PlacedTopic>]) -> bool {
        let mut lost = self.inner.lost.borrow_mut();
        let before = lost.len();
        lost.retain(|uid| is_here(topics, *uid));
        before != lost.len()
    }

    /// Whether the reactor of a replica that could not be made tries again: it is asked whether it is there by now.
    fn is_being_made(&self, uid: ShardUid) -> bool {
        let is_unmade = self.inner.unmade.borrow().contains(&uid);
        is_unmade && self.inner.failed.borrow().get(&uid).is_some_and(|error| !is_given_up(error))
    }

    /// Opens replicas that are to be here and are not open; `existing`: only those whose files are here.
    async fn open_wanted(&self, wanted: &BTreeMap<ShardUid, (ReactorNumber, ShardOptions)>, existing: bool) {
        let mut missing: BTreeMap<ReactorNumber, Vec<ShardOptions>> = BTreeMap::new();
        for (uid, (reactor, options)) in wanted {
            let is_there = self.inner.on_disk.borrow().contains(uid) && !self.inner.emptied.borrow().contains(uid);
            let is_candidate = !existing || is_there;
            let is_missing = !self.inner.held.borrow().contains_key(uid) || self.is_being_made(*uid);
            if is_candidate && is_missing {
                missing.entry(*reactor).or_default().push(options.clone());
            }
        }
        if missing.is_empty() {
            if existing && self.inner.list_is_due.get() {
                self.write_replicas().await;
            }
            return;
        }
        let opened = missing.into_iter().map(|(reactor, shards)| async move {
            let uids: Vec<_> = shards.iter().map(|shard| shard.uid).collect();
            let result = self.ask(reactor, move |reply| Request::Open { shards, reply }).await;
            (reactor, uids, result)
        });
        let mut listed = !self.inner.list_is_due.get();
        for (reactor, uids, result) in futures_util::future::join_all(opened).await {
            let why = |uid| match &result {
                Ok(failed) => failed.iter().find(|(failed, _)| *failed == uid).map(|(_, error)| error.clone()),
                Err(error) => Some(error.clone()),
            };
            for uid in uids {
                listed &= self.note_opened(uid, reactor, why(uid), result.is_ok());
            }
        }
        if !listed {
            self.write_replicas().await;
        }
    }

    /// A replica was to be opened, and was, or failed; `was_tried`: its reactor has said so. Whether the list of replicas stays as
    /// it is.
    fn note_opened(&self, uid: ShardUid, reactor: ReactorNumber, error: Option<ReactorError>, was_tried: bool) -> bool {
        // Those that did not open are kept by their reactor with the reason.
        let was_held = self.inner.held.borrow_mut().insert(uid, reactor).is_some();
        let was_there = !self.inner.on_disk.borrow_mut().insert(uid) && !self.inner.emptied.borrow().contains(&uid);
        let unmade = &mut *self.inner.unmade.borrow_mut();
        let was_unmade = unmade.contains(&uid);
        match error {
            None => {
                self.inner.failed.borrow_mut().remove(&uid);
                unmade.remove(&uid);
            }
            Some(error) => {
                self.inner.failed.borrow_mut().insert(uid, error);
                if was_tried && !was_there {
                    unmade.insert(uid);
                }
            }
        }
        was_held && was_unmade == unmade.contains(&uid)
    }

    /// Tells the reactors of lost replicas that are to be here, so that their calls get the reason. Those that this node's catalog
    /// knows nothing of yet come when it does.
    async fn note_lost(&self, topics: &[Arc<PlacedTopic>]) -> Result<(), ReactorError> {
        let lost = self.inner.lost.borrow().clone();
        for topic in topics {
            for place in topic.shards.iter().filter(|place| place.here && lost.contains(&place.uid)) {
                if self.inner.held.borrow().contains_key(&place.uid) {
                    continue;
                }
                let uids = vec![place.uid];
                self.ask(place.reactor, |reply| Request::Lost { uids, reply }).await?;
                self.inner.held.borrow_mut().insert(place.uid, place.reactor);
            }
        }
        Ok(())
    }

    /// A directory that is no replica which this catalog ever made. Only with a fresh catalog.
    pub fn stranger(&self) -> Option<PathBuf> {
        let end = self.shard_uid_end();
        let on_disk = self.inner.on_disk.borrow();
        let stranger = on_disk.iter().find(|uid| **uid >= end)?;
        Some(shard_dir(&self.inner.reactor.node().config.data, *stranger))
    }

    /// Replicas that this node holds.
    pub fn held(&self) -> BTreeSet<ShardUid> {
        self.inner.held.borrow().keys().copied().collect()
    }

    fn replicas_file(&self) -> PathBuf {
        self.inner.reactor.node().config.data.join(made::REPLICAS_FILE)
    }

    /// After a replica was made: a crash in between costs a check, never a record.
    async fn write_replicas(&self) -> bool {
        self.write_replicas_without(&BTreeSet::new()).await
    }

    /// Lists the replicas that this node has made but for those that are `leaving`; false: it is tried again.
    async fn write_replicas_without(&self, leaving: &BTreeSet<ShardUid>) -> bool {
        if self.inner.unlisted.get() {
            // Lost ones would not be in it. The damaged one says at least that it is not known.
            return true;
        }
        let uids: BTreeSet<ShardUid> = {
            let (held, lost) = (self.inner.held.borrow(), self.inner.lost.borrow());
            let unmade = self.inner.unmade.borrow();
            let unremoved = self.inner.unremoved.borrow();
            let is_made = |uid: &&ShardUid| !unmade.contains(uid) && !unremoved.contains(**uid);
            let made = held.keys().chain(lost.iter()).filter(is_made);
            made.filter(|uid| !leaving.contains(uid)).copied().collect()
        };
        let path = self.replicas_file();
        let written = self.write(&path, made::encode(&uids).into()).await;
        let was_due = self.inner.list_is_due.replace(written.is_err());
        if let Err(error) = &written
            && !was_due
        {
            tracing::warn!(path = %path.display(), %error, "the list of replicas could not be written; it is tried again");
        }
        written.is_ok()
    }

    /// Lets the catalog's log forget what its newest checkpoint covers.
    async fn purge(&self) {
        let applied = self.inner.catalog.applied_end();
        if let Err(error) = self.inner.catalog.purge_to(applied).await {
            tracing::warn!(%error, "the catalog's log could not be shortened");
        }
    }
}
