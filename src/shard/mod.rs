//! One shard on one node: its Raft group, the produce queue in front and the consumers behind.
//!
//! Promises: offsets are dense and in the order of the `produce` calls; an ack is given when what it
//! says is true; every refusal says whether the record may still appear; consumers see only what is
//! committed. At all times, with `log_start` from the machine, `high_watermark` from Raft and
//! `log_end` from the log:
//!
//! ```text
//! log_start <= high_watermark <= log_end
//! ```
//!
//! - `queue`: requests that wait, and how an entry is gathered from them (pure)
//! - `estimate`: how long an append takes just now, for deadlines (pure)
//! - `produce`: admit, propose, ack in order
//! - `consume`: catch up, then follow
//! - `call`, `error`: what is asked of a shard, and what it answers
//! - `retention`: which prefix may go, and the task that lets it go
//! - `machine`: the replicated state, the log start
//!
//! Not here: which shard a request goes to (`frontend`), and what becomes of it in the log (`raft`).

mod call;
mod consume;
mod error;
mod estimate;
mod expiry;
#[cfg(not(test))]
mod machine;
#[cfg(test)]
pub(crate) mod machine;
mod metrics;
mod produce;
mod queue;
mod retention;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use openraft::AsyncRuntime;

use crate::{
    env::{Env, channel::Notify, domain::Domain},
    ids::{Index, LogId, NodeId, Offset, ShardUid, Term},
    limits::SHARD_CLOSE_WAIT,
    log::{LogError, Recovered, Stalled, TailBudget},
    peer::{Peers, frame::FrameStream, frame::Received},
    raft::{Group, GroupOptions, Members, left::Left},
};

pub use self::{
    call::{Consume, Consumed, Durability, Produce, Produced, ShardStatus, Start},
    error::ShardError,
    expiry::due_us,
    queue::{Answer, Owed},
};
use self::{consume::Cursors, expiry::Expiry, machine::ShardMachine, metrics::Metrics};

/// Where and how a shard is kept.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// Its directory.
    pub dir: PathBuf,
    /// Its identity.
    pub uid: ShardUid,
    /// This node.
    pub node: NodeId,
    /// Largest segment file.
    pub segment_bytes_max: u64,
    /// Decides the reactor of each node where its replica is.
    pub slot: u64,
    /// See `raft::GroupOptions`.
    pub founders: Option<BTreeSet<NodeId>>,
    /// Whose data directory it is in, as in `log::LogOptions`; 0: not checked.
    pub owner: u64,
    /// This replica is to lead.
    pub preferred: bool,
    /// Retention, 0: none.
    pub retention_bytes_max: u64,
    /// Retention, 0: none.
    pub retention_age_ms_max: u64,
}

impl ShardOptions {
    /// How its group is kept.
    pub fn group(&self) -> GroupOptions {
        GroupOptions {
            dir: self.dir.clone(),
            shard: self.uid,
            node: self.node,
            segment_bytes_max: retention::segment_bytes(self.segment_bytes_max, self.retention_bytes_max),
            slot: self.slot,
            founders: self.founders.clone(),
            owner: self.owner,
            preferred: self.preferred,
        }
    }
}

/// A shard. Clones are handles to the same one; all stay on its reactor.
pub struct Shard<E: Env> {
    inner: Rc<Inner<E>>,
}

impl<E: Env> Clone for Shard<E> {
    fn clone(&self) -> Self {
        Shard { inner: self.inner.clone() }
    }
}

/// What the handles share.
struct Inner<E: Env> {
    group: Group<E, ShardMachine>,
    options: ShardOptions,
    recovered: Recovered,
    metrics: Metrics,
    state: RefCell<produce::State>,
    cursors: RefCell<Cursors>,
    /// How old its segments are.
    ages: RefCell<retention::Ages>,
    peers: Peers<E>,
    opened_us: u64,
    life: Cell<Life>,
    /// Where requests go that this replica cannot propose; nowhere: they are answered.
    elsewhere: RefCell<Option<Elsewhere>>,
    /// How often requests were handed back because this replica could not propose them.
    losses: Cell<u64>,
    /// When requests that wait are answered because their time is up.
    expiry: Expiry,
    /// Trims and purges under way; `close` waits for them.
    operations: Cell<u32>,
    /// Requests wait for entries to be flushed here, with nothing in flight that would go on with them: the pump does.
    held: Cell<bool>,
    /// An entry was proposed, or the shard has closed: the pump looks.
    work: Notify,
    /// An entry has landed or an operation has ended: `close` looks. Or the shard has begun to close: `purge` looks.
    idle: Notify,
    /// A segment has filled up, more may be purged (`Group::purgeable`, which it is), or the shard closes: retention looks.
    rolled: Notify,
}

/// Takes requests that this replica cannot propose, oldest first, and the reason. Nothing of them was written.
pub type Elsewhere = Rc<dyn Fn(Vec<Owed>, ShardError)>;

/// Where a shard is in its life; it only goes down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Life {
    Serving,
    /// Finishes what it has.
    Closing,
    Closed,
}

impl<E: Env> Shard<E> {
    /// Opens or makes the shard; with one voter, waits until it leads.
    ///
    /// # Errors
    /// `Damaged`, or `Failed` with the log's own words when the directory is foreign or cannot be read; `Full`.
    pub async fn open(
        disk: E::Disk,
        tail: TailBudget,
        peers: Peers<E>,
        options: ShardOptions,
    ) -> Result<Shard<E>, ShardError> {
        let group_options = options.group();
        let (group, recovered) = Group::open(disk, tail, peers.clone(), group_options, ShardMachine::default()).await?;
        let (state, rolled) = (produce::State::new(group.log().log_end()), group.purgeable());
        let inner = Rc::new(Inner {
            group,
            options,
            recovered,
            metrics: Metrics::new(),
            state: RefCell::new(state),
            cursors: RefCell::default(),
            ages: RefCell::default(),
            peers,
            opened_us: E::monotonic_us(),
            life: Cell::new(Life::Serving),
            elsewhere: RefCell::default(),
            losses: Cell::new(0),
            expiry: Expiry::default(),
            operations: Cell::new(0),
            held: Cell::new(false),
            work: Notify::new(),
            idle: Notify::new(),
            rolled,
        });
        let begin = || {
            inner.check_offsets();
            crate::env::spawn::<E>(produce::pump(inner.clone()));
            crate::env::spawn::<E>(retention::run(inner.clone()));
        };
        let domain = inner.group.domain();
        domain.catch(begin).map_err(|_| inner.stopped_by_panic(false))?;
        let weak = Rc::downgrade(&inner);
        domain.on_panic(move |_| weak.upgrade().iter().for_each(|inner| inner.note_panic()));
        Ok(Shard { inner })
    }

    /// What recovery found when the shard was opened.
    pub fn recovered(&self) -> &Recovered {
        &self.inner.recovered
    }

    /// Queues the request at once (calls made one after the other get ascending offsets); the future resolves with the ack.
    /// Dropping the future does not take back what is proposed.
    ///
    /// # Errors
    /// Those of `ShardError` but `OutOfRange`; each says whether the records may still appear.
    pub fn produce(&self, produce: Produce) -> impl Future<Output = Result<Produced, ShardError>> + use<E> + 'static {
        let answer = self.submit(produce);
        async move {
            match answer {
                // A reply that is dropped unanswered means that the reactor's tasks are gone.
                Ok(answer) => answer.await.unwrap_or(Err(ShardError::Closing { maybe_written: true })),
                Err(refused) => Err(refused.0),
            }
        }
    }

    /// As `produce`, but a request that is refused at once is given back, so that it can go to another replica.
    ///
    /// # Errors
    /// As `produce`; nothing of it was written.
    pub fn submit(&self, produce: Produce) -> Result<Answer, Box<(ShardError, Produce)>> {
        let now_us = E::monotonic_us();
        let (owed, answer) = Owed::new(produce, now_us, self.inner.group.log().memory()).inspect_err(|_| {
            self.inner.metrics.refused_memory.increment(1);
        })?;
        match self.admit(owed, now_us) {
            Ok(()) => Ok(answer),
            Err((error, owed)) => Err(Box::new((error, owed.into_produce()))),
        }
    }

    /// Bytes of the requests that wait to be proposed, in an entry.
    pub fn queued_bytes(&self) -> usize {
        self.inner.state.borrow().queued_bytes()
    }

    /// Lets those of them go whose clients are gone, unless few have come since that was done.
    pub fn leave_forsaken(&self) {
        // A panic stops the shard, and is told to whoever asks it for something.
        drop(self.inner.group.domain().catch(|| self.inner.state.borrow_mut().leave_forsaken()));
    }

    /// Queues a request that was handed back before; its answer goes where it is owed.
    ///
    /// # Errors
    /// As `submit`.
    #[allow(clippy::result_large_err, reason = "giving the request back is what this is for")]
    pub fn resubmit(&self, owed: Owed) -> Result<(), (ShardError, Owed)> {
        self.admit(owed, E::monotonic_us())
    }

    /// As `Inner::admit`. A request that is lost in a panic is answered as one that is dropped is: it may appear.
    #[allow(clippy::result_large_err, reason = "giving the request back is what this is for")]
    fn admit(&self, owed: Owed, now_us: u64) -> Result<(), (ShardError, Owed)> {
        let domain = self.inner.group.domain();
        if domain.has_stopped() {
            return Err((self.inner.stopped_by_panic(false), owed));
        }
        let mut asked = Some(owed);
        match domain.catch(|| self.inner.admit(&mut asked, now_us)) {
            Ok(Err(error)) => Err((error, asked.expect("it is taken when it is admitted"))),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }

    /// Requests that this replica cannot propose (it leads no more, or has stopped) go there from now on, in their order,
    /// instead of being refused; but not those that another node has forwarded.
    pub fn set_elsewhere(&self, elsewhere: Elsewhere) {
        *self.inner.elsewhere.borrow_mut() = Some(elsewhere);
    }

    /// Counts how often requests were handed back or refused because this replica could not propose them: while it stays
    /// the same, no request was, and those that were admitted keep their order.
    pub fn losses(&self) -> u64 {
        self.inner.losses.get()
    }

    /// Leader and term, as known here.
    pub fn leader(&self) -> (Option<NodeId>, Term) {
        self.inner.group.leader()
    }

    /// Whether this replica takes proposals: it leads, serves, and is not at fault.
    pub fn leads(&self) -> bool {
        self.inner.group.leads() && self.inner.check_life().is_ok()
    }

    /// Whether it can be read: it belongs to the group and knows something of it, and what it has can be trusted.
    pub fn is_readable(&self) -> bool {
        self.inner.check_readable().is_ok() && self.inner.group.applied_end() > Index(0)
    }

    /// When it was opened, on the monotonic clock: while that stays the same, its high watermark and log start do not go back.
    pub fn opened_us(&self) -> u64 {
        self.inner.opened_us
    }

    /// First offset that is not committed here.
    pub fn high_watermark(&self) -> Offset {
        self.inner.group.high_watermark()
    }

    /// Suspends until the high watermark is above `offset`, or the shard stops or closes.
    pub fn wait_above(&self, offset: Offset) -> impl Future<Output = ()> + use<E> + 'static {
        let group = self.inner.group.clone();
        async move { group.wait_above(offset).await }
    }

    /// Neither closed nor closing.
    pub fn is_open(&self) -> bool {
        self.inner.life.get() == Life::Serving
    }

    /// Suspends until leader, term, membership or `leads` may have changed, or the shard stops or closes.
    pub fn wait_changed(&self) -> impl Future<Output = ()> + use<E> + 'static {
        let group = self.inner.group.clone();
        async move { group.wait_changed().await }
    }

    /// Last entry that is durable here.
    pub fn flushed(&self) -> Option<LogId> {
        self.inner.group.log().flushed()
    }

    /// Last entry, durable or not.
    pub fn last(&self) -> Option<LogId> {
        self.inner.group.log().last()
    }

    /// First entry that is kept.
    pub fn first_index(&self) -> Index {
        self.inner.group.log().first_index()
    }

    /// Bytes of the segments with entries behind this one: no less than a replica lacks that ends with it.
    pub fn bytes_behind(&self, last: Option<LogId>) -> u64 {
        let segments = self.inner.group.log().segments();
        segments.iter().filter(|segment| Some(segment.last) > last).map(|segment| segment.bytes).sum()
    }

    /// What it leaves when it is removed. To be asked when it is closed.
    pub fn left(&self) -> Left {
        self.inner.group.left()
    }

    /// Whether it has stopped because a read found damage.
    pub fn is_damaged(&self) -> bool {
        self.inner.group.damage().is_some()
    }

    /// Closes a shard that has stopped: nobody writes to its files any more when this returns, so that they can be mended.
    pub async fn abandon(&self) {
        // It cannot close cleanly.
        drop(self.close().await);
        self.inner.group.abandon().await;
    }

    /// Whether it has stopped because of a panic; nothing of it is to be used any more.
    pub fn has_panicked(&self) -> bool {
        self.inner.group.domain().has_stopped()
    }

    /// Why it does not serve, if so.
    pub fn fault(&self) -> Option<String> {
        self.inner.group.fault()
    }

    /// Has another replica lead; see `Group::transfer`.
    ///
    /// # Errors
    /// `NotTransferred`: this replica leads on.
    pub async fn transfer(&self, to: Option<NodeId>, within: Duration) -> Result<(), ShardError> {
        self.contained(async { Ok(self.inner.group.transfer(to, within).await?) }).await
    }

    /// What a panic in this replica's tasks ends. What others compute from its state alone is a part of it.
    pub fn domain(&self) -> &Domain {
        self.inner.group.domain()
    }

    /// Stops the replica if its device does not answer any more; see `Log::look_at_storage`.
    pub fn look_at_storage(&self) -> Option<Stalled> {
        self.domain().catch(|| self.inner.group.log().look_at_storage()).ok().flatten()
    }

    /// What its device did not answer before it was given up; see `Log::hung`.
    pub fn hung(&self) -> Option<Stalled> {
        self.inner.group.log().hung()
    }

    /// Who is to lead instead of this replica because its disk is slow; see `Group::look_at_flushes`.
    pub fn look_at_flushes(&self) -> Option<NodeId> {
        self.domain().catch(|| self.inner.group.look_at_flushes()).ok().flatten()
    }

    /// Whether a follower may be led to for the sake of balance; see `Group::is_well`.
    pub fn is_well(&self, node: NodeId) -> bool {
        self.inner.group.is_well(node)
    }

    /// Makes these nodes its members, and nobody else; see `Group::change_members`.
    pub fn change_members(
        &self,
        voters: BTreeSet<NodeId>,
    ) -> impl Future<Output = Result<(), ShardError>> + use<E> + 'static {
        let shard = self.clone();
        async move {
            let group = &shard.inner.group;
            let change = async {
                group.change_members(voters).await?;
                // A move that was given up leaves some.
                Ok(group.remove_learners(group.members().learners).await?)
            };
            shard.contained(change).await
        }
    }

    /// Who belongs to its group, as known here.
    pub fn members(&self) -> Members {
        self.inner.group.members()
    }

    /// Answers a peer's stream for its Raft group.
    pub fn serve(&self, from: NodeId, first: Received, stream: FrameStream<E>) {
        self.inner.group.serve(from, first, stream);
    }

    /// Committed records from a start on; waits for a first one as long as asked. Without one `next_offset` is the start, which
    /// for `Timestamp` is the high watermark when all committed records are older. `bytes_max` is cut to a little less
    /// than 4 MiB, which stock gRPC clients accept. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// `OutOfRange`, also when a trim overtakes a consumer that waits; `Failed` when the shard has stopped or what it would
    /// return is damaged; `Closing`.
    pub fn consume(&self, consume: Consume) -> impl Future<Output = Result<Consumed, ShardError>> + use<E> + 'static {
        consume::consume(self.inner.clone(), consume)
    }

    /// Moves the log start up to `before`, committed through the log; answers with the present log start. Consumers see it at once;
    /// segments that are wholly below are deleted before this returns, or, if the replica closes, later. An offset at or below the
    /// log start changes nothing.
    /// Dropping the future does not take it back.
    ///
    /// # Errors
    /// `OutOfRange` above the high watermark, and those of a proposal.
    pub async fn trim(&self, before: Offset) -> Result<Offset, ShardError> {
        let log_start = self.inner.log_start();
        let high_watermark = self.inner.group.high_watermark();
        if before > high_watermark {
            return Err(ShardError::OutOfRange { offset: before, log_start, high_watermark });
        }
        if before <= log_start {
            return Ok(log_start);
        }
        let trim = async {
            let log_start = self.inner.trim(before).await?;
            // It is done, whatever becomes of the segments.
            if let Err(error) = self.inner.purge().await {
                tracing::debug!(%error, "what was trimmed is deleted later");
            }
            Ok(log_start)
        };
        self.contained(trim).await
    }

    /// Runs a call that changes the replica's state: a panic in it stops the replica.
    async fn contained<T>(&self, call: impl Future<Output = Result<T, ShardError>>) -> Result<T, ShardError> {
        let result = self.inner.group.domain().contain(call).await;
        result.unwrap_or_else(|_| Err(self.inner.stopped_by_panic(true)))
    }

    /// Whether there are segments below the log start that could be deleted. They are before long.
    pub fn has_purgeable(&self) -> bool {
        self.inner.purgeable().is_some()
    }

    /// A snapshot of its numbers.
    pub fn status(&self) -> ShardStatus {
        let status = self.inner.group.domain().catch(|| self.status_now());
        status.unwrap_or_else(|_| ShardStatus { fault: self.fault(), ..Default::default() })
    }

    fn status_now(&self) -> ShardStatus {
        self.inner.check_offsets();
        let (leader, term) = self.inner.group.leader();
        let segments = self.inner.group.log().segments();
        ShardStatus {
            leader,
            term,
            log_start: self.inner.log_start(),
            high_watermark: self.inner.group.high_watermark(),
            log_end: self.inner.group.log().log_end(),
            size_bytes: segments.iter().map(|segment| segment.bytes).sum(),
            segments: u32::try_from(segments.len()).unwrap_or(u32::MAX),
            fault: self.inner.group.fault(),
            stalled: self.inner.group.log().stalled().map(|stalled| stalled.to_string()),
            applied_end: self.inner.group.applied_end(),
            chain: self.inner.group.applied_chain(),
            members: self.inner.group.members(),
            progress: self.inner.group.progress(),
            no_majority: false,
        }
    }

    /// Entries that a follower is behind, as the leader knows it; `None` on a replica that does not lead, and for strangers.
    pub fn lag_of(&self, node: NodeId) -> Option<u64> {
        #[cfg(test)]
        machine::planted::in_lag();
        let progress = self.inner.group.progress().into_iter().find(|progress| progress.node == node)?;
        let end = self.inner.group.log().last().map_or(0, |last| last.index.0 + 1);
        Some(end - progress.matched.map_or(0, |matched| matched.index.0 + 1).min(end))
    }

    /// How often it went on from a leader's snapshot, since it was opened.
    pub fn snapshots_installed(&self) -> u64 {
        self.inner.group.snapshots_installed()
    }

    /// Refuses new requests, finishes those in flight, closes the log cleanly. A second call waits for the first. What is in flight
    /// is given up after `SHARD_CLOSE_WAIT`, its outcome unknown: on a full disk it may wait for space for ever, and that this shard is
    /// removed may be what makes some.
    ///
    /// # Errors
    /// `Failed` when the log could not be closed cleanly: it will be recovered when it is opened again. Nothing is written to it any
    /// more.
    pub async fn close(&self) -> Result<(), ShardError> {
        self.contained(self.close_now()).await
    }

    async fn close_now(&self) -> Result<(), ShardError> {
        let inner = &self.inner;
        let first = inner.life.get() == Life::Serving;
        if first {
            inner.life.set(Life::Closing);
            inner.rolled.notify_all();
            inner.idle.notify_all();
        }
        let is_over = || if first { inner.is_idle() } else { inner.life.get() == Life::Closed };
        let ended = async {
            loop {
                let changed = inner.idle.notified();
                if is_over() {
                    break;
                }
                changed.await;
            }
        };
        if !first {
            ended.await;
            return Ok(());
        }
        if E::Runtime::timeout(SHARD_CLOSE_WAIT, ended).await.is_err() {
            tracing::warn!(
                shard_uid = inner.options.uid.0,
                "a shard closes with requests in flight: they may be written"
            );
        }
        let closed = inner.group.close().await;
        if closed.is_err() {
            inner.group.abandon().await;
        }
        inner.life.set(Life::Closed);
        inner.work.notify_one();
        inner.idle.notify_all();
        Ok(closed?)
    }
}

impl<E: Env> Inner<E> {
    /// First offset that is served: all below it is trimmed. What a replica has applied may be older than what its log holds:
    /// it goes on from a checkpoint, its own or the leader's, which lacks the trim for which the log was purged up to there.
    fn log_start(&self) -> Offset {
        let held = self.group.log().first_offset().min(self.group.high_watermark());
        self.group.with_machine(ShardMachine::log_start).max(held)
    }

    /// The inequalities of a shard.
    fn check_offsets(&self) {
        let high_watermark = self.group.high_watermark();
        assert!(self.log_start() <= high_watermark, "log_start <= high_watermark");
        assert!(high_watermark <= self.group.log().log_end(), "high_watermark <= log_end");
    }

    /// Why nothing more is served, if so.
    fn check_life(&self) -> Result<(), ShardError> {
        if self.life.get() != Life::Serving {
            return Err(ShardError::Closing { maybe_written: false });
        }
        match self.group.fault() {
            Some(cause) => Err(ShardError::Failed { cause, maybe_written: false }),
            None => Ok(()),
        }
    }

    /// Why nothing can be read, if so. Damage is no reason: what is whole can be.
    fn check_readable(&self) -> Result<(), ShardError> {
        match self.check_life() {
            Err(ShardError::Failed { .. }) if self.is_damaged() => Ok(()),
            result => result,
        }
    }

    /// A read has found damage.
    fn is_damaged(&self) -> bool {
        matches!(self.group.log().fault(), Some(LogError::Corrupt { .. }))
    }

    fn stopped_by_panic(&self, maybe_written: bool) -> ShardError {
        ShardError::Failed { cause: self.group.fault().unwrap_or_default(), maybe_written }
    }

    /// Nothing waits, nothing is in flight.
    fn is_idle(&self) -> bool {
        self.operations.get() == 0 && self.state.borrow().is_idle()
    }
}

/// Something that `close` waits for.
struct Operation<E: Env>(Rc<Inner<E>>);

impl<E: Env> Operation<E> {
    fn begin(inner: &Rc<Inner<E>>) -> Operation<E> {
        inner.operations.set(inner.operations.get() + 1);
        Operation(inner.clone())
    }
}

impl<E: Env> Drop for Operation<E> {
    fn drop(&mut self) {
        self.0.operations.set(self.0.operations.get() - 1);
        self.0.idle.notify_all();
    }
}
