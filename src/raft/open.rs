//! A replica's way into service: its log is recovered, its state restored, and Raft begun.
//!
//! What fails on the way leaves nothing behind that writes to the directory: a repair has it next.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    rc::Rc,
    time::Duration,
};

use openraft::{Raft, rt::AsyncRuntime};

use super::{
    Gate, Group, GroupError, GroupOptions, Inner, Machine, State, bug, damaged, elections,
    left::Owing,
    machine::{Shared, StateMachine},
    network::Network,
    refused, repair,
    store::Store,
    timing::{Timing, config},
    types::Node,
    unusable, watch,
};
use crate::{
    env::{self, Env, channel, domain::Domain},
    ids::NodeId,
    limits::BLOCK_BYTES,
    log::{Log, Recovered, TailBudget, Watched},
    peer::Peers,
};

/// Pause between two looks whether a group that is being opened waits for space.
const FULL_LOOK: Duration = Duration::from_millis(50);

impl<E: Env, M: Machine> Group<E, M> {
    /// Recovers the log, restores the machine from its newest checkpoint, replays what follows, starts Raft. A new group
    /// begins with its founders, if this node is one of them. As the only voter, this node waits until it leads and has
    /// applied everything committed; else nobody is waited for.
    ///
    /// # Errors
    /// `Full` when there is no room for a new group of one; `Damaged`; `Starved`; `Stopped` for everything else.
    pub async fn open(
        disk: E::Disk,
        tail: TailBudget,
        peers: Peers<E>,
        options: GroupOptions,
        machine: M,
    ) -> Result<(Group<E, M>, Recovered), GroupError> {
        Group::open_with(disk, tail, peers, options, Timing::default(), machine).await
    }

    /// As `open`, with other times than the default's: the same for all replicas.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_with(
        disk: E::Disk,
        tail: TailBudget,
        peers: Peers<E>,
        options: GroupOptions,
        timing: Timing,
        machine: M,
    ) -> Result<(Group<E, M>, Recovered), GroupError> {
        let domain = Domain::new(format!("the replica of shard {} on node {}", options.shard, options.node));
        // A device that does not answer is seen by nobody else while the replica is not served.
        let disk = Watched::new(disk);
        let opening = Group::open_in(domain.clone(), disk.clone(), tail, peers, options, timing, machine);
        let opened = match domain.contain(opening).await {
            Ok(Err(GroupError::Stopped { cause, maybe_written: false })) if disk.was_starved() => {
                Err(GroupError::Starved { cause })
            }
            Ok(opened) => opened,
            Err(panic) => Err(unusable(bug(&panic))),
        };
        let (group, recovered) = opened?;
        let inner = Rc::downgrade(&group.inner);
        domain.on_panic(move |_| inner.upgrade().iter().for_each(watch::note_panic));
        Ok((group, recovered))
    }

    async fn open_in(
        domain: Domain,
        disk: Watched<E>,
        tail: TailBudget,
        peers: Peers<E>,
        options: GroupOptions,
        timing: Timing,
        machine: M,
    ) -> Result<(Group<E, M>, Recovered), GroupError> {
        let log_options = repair::log_options(&options);
        let GroupOptions { shard, node, slot, founders, preferred, .. } = options;
        let founders = founders.filter(|founders| founders.contains(&node));
        let opening = async {
            let owing = Owing::take_up(disk.clone(), log_options.clone(), node, founders.is_some()).await?;
            Ok((owing, Log::open_on(disk.clone(), tail, log_options).await?))
        };
        let (owing, (log, recovered)) = disk.look_while(opening).await.map_err(damaged)?;
        let shared = Shared::new(machine);
        let network = Network::new(peers, shard, slot).noting(shared.majority.clone(), shared.flush_times.clone());
        let built = async {
            shared.restore(&log).await.map_err(|error| damaged(log.fault().unwrap_or(error)))?;
            Inner::build(domain, log.clone(), shared, network, owing, node, timing).await
        };
        let group = match log.look_while(built).await {
            Ok(inner) => Group { inner: Rc::new(inner) },
            Err(error) => {
                // A repair has the directory next.
                log.look_while(log.abandon()).await;
                return Err(error);
            }
        };
        if let Err(error) = log.look_while(group.start(founders, preferred)).await {
            // Else openraft's tasks would go on without a handle.
            group.inner.state.closing.set(true);
            group.inner.shared.turned.notify_all();
            // First the log: openraft does not end while an entry of its own waits for space, and the log would write it
            // when space returns, beside whoever opens it next.
            log.look_while(log.abandon()).await;
            // What it ended with is told by `error`.
            drop(group.inner.raft.shutdown().await);
            return Err(group.damage().map_or(error, GroupError::Damaged));
        }
        Ok((group, recovered))
    }

    async fn start(&self, founders: Option<BTreeSet<NodeId>>, preferred: bool) -> Result<(), GroupError> {
        let Inner { raft, log, .. } = &*self.inner;
        raft.runtime_config().elect(!self.inner.owes());
        raft.run();
        env::spawn::<E>(watch::watch_raft(self.inner.clone()));
        env::spawn::<E>(elections::watch_leader(self.inner.clone()));
        if self.inner.owes() {
            env::spawn::<E>(elections::watch_owed(self.inner.clone()));
        }
        let is_new = log.last().is_none() && log.hard_state().vote.is_none();
        let founders = founders.filter(|_| is_new && !self.inner.owes());
        if let Some(founders) = founders.as_ref().filter(|founders| founders.len() > 1) {
            env::spawn::<E>(elections::found(self.inner.clone(), founders.clone(), preferred));
            return Ok(());
        }
        if founders.is_some() {
            // Its first membership, and the entry with which its leader begins.
            log.has_room(2 * BLOCK_BYTES).map_err(refused)?;
        }
        // openraft does nothing else while it waits for a write of its own.
        let mut begun = pin!(self.begin(founders.is_some()));
        loop {
            match E::Runtime::timeout(FULL_LOOK, begun.as_mut()).await {
                Ok(result) => return result,
                Err(_) if founders.is_some() => {
                    log.has_room(0).map_err(refused)?;
                    self.has_files()?;
                }
                Err(_) => {}
            }
        }
    }

    /// `Starved` while entries wait for a file.
    fn has_files(&self) -> Result<(), GroupError> {
        let cause = "its entries wait for descriptors or memory";
        if self.inner.log.is_starved() { Err(GroupError::Starved { cause: cause.to_owned() }) } else { Ok(()) }
    }

    async fn begin(&self, is_new: bool) -> Result<(), GroupError> {
        let Inner { raft, log, node, .. } = &*self.inner;
        let node = *node;
        if is_new {
            let voters = BTreeMap::from([(node.0, Node::default())]);
            raft.initialize(voters).await.map_err(|error| self.stopped(&error.to_string()))?;
        }
        if self.inner.owes() {
            // Its log may know it as the only voter, which it was once.
            return Ok(());
        }
        let only_voter = raft
            .with_raft_state(move |state| state.membership_state.effective().voter_ids().eq([node.0]))
            .await
            .map_err(|error| self.stopped(&error.to_string()))?;
        if !only_voter {
            if let Some(vote) = log.hard_state().vote.filter(|vote| vote.committed && vote.node == node) {
                // It led, and does not lead on; the others would wait for it, since it is alive.
                env::spawn::<E>(elections::abdicate(self.inner.clone(), vote));
            }
            return Ok(());
        }
        raft.trigger().elect(false).await.map_err(|error| self.stopped(&error.to_string()))?;
        self.wait_until_caught_up(is_new).await
    }

    /// Waits until this node leads and has applied the entry with which its term begins, and so all before it.
    ///
    /// On a full disk that entry waits for space. A new group is refused then; another one is opened as it is: what
    /// was committed when it was closed can be read, proposals are refused as `Full`, and it leads when space returns.
    async fn wait_until_caught_up(&self, is_new: bool) -> Result<(), GroupError> {
        loop {
            let changed = self.inner.shared.changed.notified();
            if let Some(cause) = self.fault() {
                return Err(GroupError::Stopped { cause, maybe_written: false });
            }
            let (_, term) = self.leader();
            let applied = self.inner.shared.applied().is_some_and(|applied| applied.term == term);
            if self.inner.state.leading.get() && applied {
                return Ok(());
            }
            if let Err(error) = self.inner.log.has_room(0).map_err(refused).and_then(|()| self.has_files()) {
                if is_new {
                    return Err(error);
                }
                tracing::warn!(%error, "opened for reading only, until it has what it lacks");
                return Ok(());
            }
            drop(E::Runtime::timeout(FULL_LOOK, changed).await);
        }
    }
}

impl<E: Env, M: Machine> Inner<E, M> {
    async fn build(
        domain: Domain,
        log: Log<E>,
        shared: Rc<Shared<M>>,
        network: Network<E>,
        owing: Owing<Watched<E>>,
        node: NodeId,
        timing: Timing,
    ) -> Result<Inner<E, M>, GroupError> {
        let headers_only = Rc::new(Cell::new(true));
        let liveness = network.peers().liveness().clone();
        let store = Store::new(log.clone(), shared.clone(), headers_only.clone(), liveness);
        let machine = StateMachine::new(log.clone(), shared.clone(), node);
        let config = config(timing).map_err(unusable)?;
        let raft = Raft::build(node.0, config, network.clone(), store, machine)
            .await
            .map_err(|error| log.fault().map_or_else(|| unusable(error.to_string()), damaged))?;
        headers_only.set(false);
        let (server, data) = (raft.server_metrics(), raft.data_metrics());
        let (state, gate, purging) = (State::default(), Gate::default(), channel::Mutex::new(()));
        let (questions, judge) = Default::default();
        Ok(Inner {
            raft,
            log,
            node,
            network,
            owing,
            timing,
            shared,
            state,
            domain,
            server,
            data,
            gate,
            questions,
            judge,
            purging,
        })
    }
}
