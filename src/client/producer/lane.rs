//! One shard's way: its queue, its stream to whoever leads it, and what is on its way there, in order.
//!
//! There is at most one stream with requests that are not acknowledged: a new one is begun when the fate of all that was
//! sent on the old one is known, so records of one shard never overtake each other.

#![allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]

use std::{
    collections::VecDeque,
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

use super::{
    Acked, Context, ProduceError,
    batch::{Batcher, Ready},
    retry::{self, Fate, Window},
};
use crate::{
    client::{
        ClientError, ProduceAcks, ProduceSender, Status,
        cluster::{backoff, topology::Topology},
        framed,
    },
    frontend::Code,
    proto::ringlog::v1::{ProduceStreamRequest, ProduceStreamResponse, Record},
};

/// Bytes that wait for the server's flow control; above it no more is encoded.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// A record on its way.
pub(super) struct Pending {
    pub(super) record: Record,
    /// What it counts for.
    pub(super) bytes: usize,
    /// The shard that was asked for by number.
    pub(super) shard: Option<u32>,
    /// Until then it is sent, or not at all.
    pub(super) deadline: Instant,
    pub(super) done: Done,
}

/// Whom to tell what became of a record. Dropped, it gives its room back.
pub(super) struct Done {
    pub(super) reply: oneshot::Sender<Result<Acked, ProduceError>>,
    pub(super) _room: OwnedSemaphorePermit,
}

impl Done {
    pub(super) fn tell(self, outcome: Result<Acked, ProduceError>) {
        // Nobody has to want to know.
        drop(self.reply.send(outcome));
    }
}

/// One shard's queue, as the producer sees it.
pub(super) struct Lane {
    pub(super) shard: u32,
    queue: Mutex<Batcher<Pending>>,
    wake: Notify,
    closed: AtomicBool,
    /// Closed when its task has ended, while the queue is locked; nobody gets a permit.
    ended: Semaphore,
}

impl Lane {
    /// A lane; its task runs until it is closed and empty, and sends nothing before that of `former` has ended.
    pub(super) fn start(context: &Arc<Context>, shard: u32, former: Option<Arc<Lane>>) -> Arc<Lane> {
        let queue = Mutex::new(Batcher::new(context.options.bounds()));
        let (wake, closed, ended) = (Notify::new(), AtomicBool::new(false), Semaphore::new(0));
        let lane = Arc::new(Lane { shard, queue, wake, closed, ended });
        let runner = Runner {
            lane: Arc::clone(&lane),
            window: Window::new(context.options.requests_in_flight),
            topology: context.cluster.watch(),
            context: Arc::clone(context),
            again: VecDeque::new(),
            failures: 0,
            wait: Duration::ZERO,
            last: None,
        };
        tokio::spawn(runner.run(former));
        lane
    }

    /// Puts a record behind the others; gives it back when the task has ended, with its runtime or in a panic.
    pub(super) fn push(&self, pending: Pending) -> Option<Pending> {
        let bytes = pending.bytes;
        let mut queue = self.queue();
        if self.has_ended() {
            return Some(pending);
        }
        queue.push(pending, bytes, Instant::now());
        drop(queue);
        self.wake.notify_one();
        None
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_closed()
    }

    /// Resolves when its task has ended.
    pub(super) async fn wait_ended(&self) {
        drop(self.ended.acquire().await);
    }

    /// Takes out what was not sent yet.
    pub(super) fn take_queued(&self) -> Vec<Pending> {
        self.queue().drain()
    }

    /// What is here does not linger.
    pub(super) fn hurry(&self) {
        self.queue().hurry();
        self.wake.notify_one();
    }

    /// No more records come: the task ends after the last one.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.hurry();
    }

    /// Bytes that wait for their batch.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queue().bytes()
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Batcher<Pending>> {
        // A panic leaves it whole: items go in and out in single steps.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Several records as they are sent.
struct Request {
    frame: Bytes,
    count: u32,
    deadline: Instant,
    /// Empty once they were told that the time is over.
    done: Vec<Done>,
    /// Why it may have been written by an earlier try, or may still be: no later one makes that certain.
    maybe: Option<ClientError>,
}

impl Request {
    fn fail(&mut self, error: &ProduceError) {
        self.done.drain(..).for_each(|done| done.tell(Err(error.clone())));
    }

    /// As `fail`, with an error that says that it was not written: as far as this try goes.
    fn fail_definitely(&mut self, place: &str, error: &ProduceError) {
        match self.maybe.take() {
            Some(cause) => self.fail(&ProduceError::Maybe { place: place.to_owned(), cause }),
            None => self.fail(error),
        }
    }
}

/// A stream, and what is on it.
struct Session {
    address: Arc<str>,
    sender: ProduceSender,
    acks: ProduceAcks,
    /// With the stream's bytes up to its end.
    in_flight: VecDeque<(Request, u64)>,
    bytes: u64,
    /// The sending half has failed; the other one will say why.
    broken: bool,
}

/// Why a session ends.
enum End {
    /// Everything is acknowledged, and another server leads.
    Moved,
    /// Everything is acknowledged, and the lane is closed.
    Done,
    /// The stream is over.
    Over(ClientError),
}

struct Runner {
    lane: Arc<Lane>,
    context: Arc<Context>,
    topology: watch::Receiver<Arc<Topology>>,
    /// Requests to be sent once more, before anything else.
    again: VecDeque<Request>,
    window: Window,
    /// In a row.
    failures: u32,
    /// At least so long before the next try.
    wait: Duration,
    last: Option<ClientError>,
}

/// When the task ends before it is done, with its runtime or in a panic, what is left is abandoned.
impl Drop for Runner {
    fn drop(&mut self) {
        let mut queue = self.lane.queue();
        let left = queue.drain();
        self.lane.ended.close();
        drop(queue);
        drop(left);
    }
}

impl Runner {
    async fn run(mut self, former: Option<Arc<Lane>>) {
        if let Some(former) = former {
            self.follow(&former).await;
        }
        while self.has_work().await {
            let deadline = self.deadline().unwrap_or_else(|| Instant::now() + self.context.options.delivery_timeout);
            match tokio::time::timeout_at(deadline.into(), self.open()).await {
                Ok(Ok(mut session)) => match self.converse(&mut session).await {
                    End::Moved => drop(session.sender.finish().now_or_never()),
                    End::Done => return drop(session.sender.finish().now_or_never()),
                    End::Over(error) => self.settle(session, error),
                },
                Ok(Err(error)) => self.failed(error),
                // Nothing is sent; `expire` says so.
                Err(_) => {}
            }
            self.pause().await;
        }
    }

    /// Waits until the task of another lane of the same shard has ended.
    async fn follow(&mut self, former: &Lane) {
        let mut ended = std::pin::pin!(former.wait_ended());
        loop {
            self.expire();
            let wait = self.deadline();
            tokio::select! {
                biased;
                () = &mut ended => return,
                () = sleep_until(wait) => {}
                () = self.lane.wake.notified() => {}
            }
        }
    }

    /// Waits until there is something to send; false when nothing will come any more.
    async fn has_work(&mut self) -> bool {
        loop {
            if !self.again.is_empty() {
                return true;
            }
            let ready = self.lane.queue().ready(Instant::now());
            match ready {
                Ready::Now => return true,
                Ready::Empty if self.lane.closed.load(Ordering::Acquire) => return false,
                Ready::Empty => self.lane.wake.notified().await,
                Ready::At(due) => drop(tokio::time::timeout_at(due.into(), self.lane.wake.notified()).await),
            }
        }
    }

    /// A stream to the leader, or to anybody else who forwards.
    async fn open(&mut self) -> Result<Session, ClientError> {
        let Context { cluster, topic, .. } = &*self.context;
        let addresses = {
            let topology = self.topology.borrow_and_update();
            topology.produce_addresses(topic, self.lane.shard, cluster.turn())
        };
        let client = cluster.first_of(&cluster.with_seeds(addresses)).await?;
        let (sender, acks) = client.produce_stream().await?;
        let address = client.address().into();
        Ok(Session { address, sender, acks, in_flight: VecDeque::new(), bytes: 0, broken: false })
    }

    /// Sends and takes acks until the stream is over, or another one is better.
    async fn converse(&mut self, session: &mut Session) -> End {
        let mut leaving = self.should_move(session);
        loop {
            self.expire();
            if !leaving && !session.broken {
                self.fill(session);
            }
            if session.in_flight.is_empty() {
                if leaving {
                    return End::Moved;
                }
                if self.lane.closed.load(Ordering::Acquire) && self.deadline().is_none() {
                    return End::Done;
                }
            }
            let alarm = self.alarm(session);
            let flushing = session.sender.queued_bytes() > 0 && !session.broken;
            tokio::select! {
                biased;
                ack = session.acks.next() => {
                    let over = || lost(&session.address, "the server ended the stream");
                    let taken = match ack {
                        Some(Ok(ack)) => self.acknowledge(session, ack),
                        Some(Err(error)) => Err(error),
                        None => Err(over()),
                    };
                    match taken {
                        Ok(elsewhere) => leaving |= elsewhere && self.should_move(session),
                        Err(error) => return End::Over(error),
                    }
                }
                flushed = session.sender.flush(), if flushing => session.broken = flushed.is_err(),
                changed = self.topology.changed() => leaving |= changed.is_ok() && self.should_move(session),
                () = self.lane.wake.notified() => {}
                () = sleep_until(alarm) => {
                    if let Some(error) = self.give_up(session) {
                        return End::Over(error);
                    }
                }
            }
        }
    }

    /// Puts requests on the stream, as many as may be in flight.
    fn fill(&mut self, session: &mut Session) {
        while session.in_flight.len() < self.window.requests() && session.sender.queued_bytes() < QUEUED_BYTES_MAX {
            let request = match self.again.pop_front() {
                Some(request) => request,
                None => {
                    let batch = self.lane.queue().take(Instant::now());
                    let Some(batch) = batch else { return };
                    self.request(batch)
                }
            };
            session.bytes += request.frame.len() as u64;
            session.sender.queue(request.frame.clone());
            session.in_flight.push_back((request, session.bytes));
        }
    }

    fn request(&self, batch: Vec<Pending>) -> Request {
        let deadline = batch.iter().map(|pending| pending.deadline).max().unwrap_or_else(Instant::now);
        let (records, done): (Vec<_>, Vec<_>) = batch.into_iter().map(|pending| (pending.record, pending.done)).unzip();
        let count = u32::try_from(records.len()).expect("a batch is bounded by BATCH_RECORDS_MAX");
        let message = ProduceStreamRequest {
            topic: self.context.topic.clone(),
            shard: Some(self.lane.shard),
            records,
            durability: self.context.options.durability.into(),
            ..ProduceStreamRequest::default()
        };
        Request { frame: framed(&message), count, deadline, done, maybe: None }
    }

    /// Takes an ack; true if another server leads.
    fn acknowledge(&mut self, session: &mut Session, ack: ProduceStreamResponse) -> Result<bool, ClientError> {
        let riddle = |what: String| ClientError::Protocol { address: session.address.to_string(), what };
        let Some((request, _)) = session.in_flight.front() else {
            return Err(riddle("it sent an ack too many".to_owned()));
        };
        if (ack.count, ack.shard) != (request.count, self.lane.shard) {
            return Err(riddle(format!(
                "it acknowledged {} records in shard {} instead of {} in shard {}",
                ack.count, ack.shard, request.count, self.lane.shard
            )));
        }
        let (mut request, _) = session.in_flight.pop_front().expect("it was there above");
        let (durability, timestamp_us) = (ack.durability(), ack.timestamp_us);
        for (number, done) in (0..).zip(request.done.drain(..)) {
            let offset = ack.base_offset + number;
            done.tell(Ok(Acked { shard: ack.shard, offset, timestamp_us, durability }));
        }
        self.window.acknowledged();
        (self.failures, self.wait, self.last) = (0, Duration::ZERO, None);
        let Some(leader) = ack.leader.filter(|leader| !leader.address.is_empty()) else { return Ok(false) };
        self.context.cluster.note_leader(&self.context.topic, self.lane.shard, &leader.address);
        Ok(true)
    }

    /// Whether another server leads and can be reached; if it is not known yet whether it can, that is tried aside.
    fn should_move(&self, session: &Session) -> bool {
        let Context { cluster, topic, .. } = &*self.context;
        let topology = self.topology.borrow();
        let Some(leader) = topology.leader_address(topic, self.lane.shard) else { return false };
        let is_dead = topology.server_at(&leader).is_some_and(|server| !server.alive);
        if *leader == *session.address || is_dead {
            return false;
        }
        if !cluster.is_connected(&leader) && cluster.may_work(&leader) {
            let cluster = cluster.clone();
            // Whoever is connected to it then sees the next change, or the next hint.
            tokio::spawn(async move { drop(cluster.first_of(&[leader]).await) });
            return false;
        }
        cluster.is_connected(&leader)
    }

    /// Decides about all that was sent and is not acknowledged.
    fn settle(&mut self, mut session: Session, error: ClientError) {
        let fates = retry::decide(&error, self.context.options.at_least_once);
        // A message whose end has not left was never whole on the other side.
        let left = session.bytes - session.sender.queued_bytes() as u64;
        let (mut again, mut refused) = (VecDeque::new(), false);
        for (number, (mut request, end)) in session.in_flight.drain(..).enumerate() {
            let fate = match number {
                _ if end > left => Fate::Again,
                0 => fates.first,
                _ => fates.behind,
            };
            let (place, cause) = (self.place(), error.clone());
            match fate {
                Fate::Again => again.push_back(request),
                Fate::AgainMaybe => {
                    request.maybe = Some(cause);
                    again.push_back(request);
                }
                Fate::Refused => {
                    refused = true;
                    request.fail_definitely(&place, &ProduceError::Refused { place: place.clone(), cause });
                }
                Fate::Maybe => request.fail(&ProduceError::Maybe { place, cause }),
            }
        }
        again.append(&mut self.again);
        self.again = again;
        match &error {
            ClientError::Status(status) => self.note_status(status),
            ClientError::Unreachable { .. }
            | ClientError::Lost { .. }
            | ClientError::TimedOut { .. }
            | ClientError::Protocol { .. } => {}
        }
        self.wait = fates.wait;
        self.failed(error);
        if refused && self.wait.is_zero() {
            // A refusal for good is an answer: the next ones need not wait.
            self.failures = 0;
        }
    }

    fn note_status(&mut self, status: &Status) {
        let Context { cluster, topic, is_stale, .. } = &*self.context;
        match status.code {
            Code::ResourceExhausted => self.window.refused(),
            // The topic may have been deleted, and made anew with other shards.
            Code::NotFound => is_stale.store(true, Ordering::Release),
            _ => {}
        }
        if let Some(leader) = &status.leader {
            cluster.note_leader(topic, self.lane.shard, leader);
        }
    }

    fn failed(&mut self, error: ClientError) {
        self.failures = self.failures.saturating_add(1);
        self.last = Some(error);
        self.context.cluster.refresh();
    }

    /// Waits before the next try: not longer than there is time, and no longer when the topology changes.
    async fn pause(&mut self) {
        self.expire();
        let until = Instant::now() + self.wait.max(backoff::jittered(self.failures));
        self.wait = Duration::ZERO;
        if self.failures == 0 {
            return;
        }
        loop {
            let alarm = self.deadline().map_or(until, |deadline| deadline.min(until));
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(alarm.into()) => {}
                _ = self.topology.changed() => return,
            }
            self.expire();
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// Tells records that could not be sent in time.
    fn expire(&mut self) {
        let now = Instant::now();
        let error = || ProduceError::Expired {
            place: self.place(),
            after: self.context.options.delivery_timeout,
            cause: self.last.clone(),
        };
        let late = self.lane.queue().take_while(|pending| pending.deadline <= now);
        late.into_iter().for_each(|pending| pending.done.tell(Err(error())));
        if self.again.iter().any(|request| request.deadline <= now) {
            let (place, error) = (self.place(), error());
            for request in self.again.iter_mut().filter(|request| request.deadline <= now) {
                request.fail_definitely(&place, &error);
            }
            self.again.retain(|request| request.deadline > now);
        }
    }

    /// The earliest time at which something that is not on a stream expires; `None` when there is nothing.
    fn deadline(&self) -> Option<Instant> {
        let queued = self.lane.queue().front().map(|pending| pending.deadline);
        self.again.iter().map(|request| request.deadline).chain(queued).min()
    }

    /// When to look again at the latest.
    fn alarm(&self, session: &Session) -> Option<Instant> {
        let in_flight = session.in_flight.iter().filter(|(request, _)| !request.done.is_empty());
        let in_flight = in_flight.map(|(request, _)| request.deadline).min();
        let room = session.in_flight.len() < self.window.requests();
        let batch = match self.lane.queue().ready(Instant::now()) {
            Ready::At(due) if room && self.again.is_empty() => Some(due),
            Ready::At(_) | Ready::Now | Ready::Empty => None,
        };
        [in_flight, batch, self.deadline()].into_iter().flatten().min()
    }

    /// Tells records in flight whose time is over that nobody knows. An error when nobody waits for the stream any more.
    fn give_up(&mut self, session: &mut Session) -> Option<ClientError> {
        let now = Instant::now();
        let after = self.context.options.delivery_timeout;
        let cause = ClientError::TimedOut { address: session.address.to_string(), after };
        let maybe = ProduceError::Maybe { place: self.place(), cause: cause.clone() };
        for (request, _) in session.in_flight.iter_mut().filter(|(request, _)| request.deadline <= now) {
            request.fail(&maybe);
        }
        let is_waiting = session.in_flight.iter().any(|(request, _)| !request.done.is_empty());
        (!session.in_flight.is_empty() && !is_waiting).then_some(cause)
    }

    fn place(&self) -> String {
        format!("topic {} shard {}", self.context.topic, self.lane.shard)
    }
}

fn lost(address: &str, cause: &str) -> ClientError {
    ClientError::Lost { address: address.to_owned(), cause: cause.to_owned(), definite: false }
}

async fn sleep_until(alarm: Option<Instant>) {
    match alarm {
        Some(alarm) => tokio::time::sleep_until(alarm.into()).await,
        None => pending().await,
    }
}
