//! A reactor's mailbox: how every other thread asks it for something.
//!
//! A bounded queue and a doorbell. A sender rings only when the reactor sleeps, so a burst of
//! requests costs one wake-up. Requests of one sender are taken in the order in which they were
//! sent. At the bounds, of requests and of their bytes, `send` refuses; nothing waits for room.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use crossbeam::queue::ArrayQueue;
use tokio::sync::{Notify, oneshot};

use crate::{
    catalog::CreateTopic,
    ids::{NodeId, Offset, ShardUid},
    limits,
    peer::Destination,
    proto::ringlog::state::v1::{ClusterNode, catalog_command::Command, control_reply, control_request},
    proto::ringlog::v1::ShardMove,
    reactor::{
        ReactorError,
        control::{ControlError, Proposed},
        topics::PlacedTopic,
    },
    shard::{Consume, Consumed, Produce, Produced, ShardOptions, ShardStatus},
};

/// Most requests that are taken before other tasks of the reactor get their turn.
pub const TAKE_MAX: usize = 256;

/// Where the answer goes. Nobody minds when the asker has gone.
pub type Reply<T> = oneshot::Sender<Result<T, ReactorError>>;

/// Something asked of a reactor by another thread.
#[derive(Debug)]
pub enum Request {
    /// Append records to a shard.
    Produce {
        /// Which shard.
        uid: ShardUid,
        /// What.
        produce: Produce,
        /// For the acknowledgement.
        reply: Reply<Produced>,
    },
    /// Read records of a shard. Given up when the asker drops the other end of `reply`.
    Consume {
        /// Which shard.
        uid: ShardUid,
        /// What.
        consume: Consume,
        /// For the records.
        reply: Reply<Consumed>,
    },
    /// Move a shard's log start up.
    Trim {
        /// Which shard.
        uid: ShardUid,
        /// New log start.
        before: Offset,
        /// For the log start after it.
        reply: Reply<Offset>,
    },
    /// Numbers of shards, in the order asked for.
    Status {
        /// Which shards.
        uids: Vec<ShardUid>,
        /// For the numbers; a shard that did not open has its error as its fault, one without a replica here has none.
        reply: Reply<Vec<Option<ShardStatus>>>,
    },
    /// Open shards, making those that are not there.
    Open {
        /// Which shards.
        shards: Vec<ShardOptions>,
        /// Those that do not serve, and why. All were tried.
        reply: Reply<Vec<(ShardUid, ReactorError)>>,
    },
    /// Note shards that are gone from the disk, so that their calls get the reason.
    Lost {
        /// Which shards.
        uids: Vec<ShardUid>,
        /// When it is noted.
        reply: Reply<()>,
    },
    /// Close shards of a deleted topic and remove their directories.
    Remove {
        /// Which shards.
        uids: Vec<ShardUid>,
        /// Those whose directories stay, and why: they are to be removed again.
        reply: Reply<Vec<(ShardUid, String)>>,
    },
    /// Make a topic. Only reactor 0 answers it.
    CreateTopic {
        /// The topic.
        create: CreateTopic,
        /// For the topic as it is published.
        reply: oneshot::Sender<Result<Arc<PlacedTopic>, ControlError>>,
    },
    /// Have another replica lead instead of the one here.
    MoveLeader {
        /// Which shard.
        uid: ShardUid,
        /// To whom; `None`: any.
        to: Option<NodeId>,
        /// When it does.
        reply: Reply<()>,
    },
    /// Have a command committed to the catalog. Only reactor 0 answers it.
    Propose {
        /// The command.
        command: Command,
        /// For its place.
        reply: oneshot::Sender<Result<Proposed, ControlError>>,
    },
    /// Remove a topic. Only reactor 0 answers it.
    DeleteTopic {
        /// Its name.
        name: String,
        /// When it is gone.
        reply: oneshot::Sender<Result<(), ControlError>>,
    },
    /// Wait until this node knows all topics that exist by now. Only reactor 0 answers it.
    LearnTopics {
        /// When it does.
        reply: oneshot::Sender<Result<(), ControlError>>,
    },
    /// Something about the cluster. Only reactor 0 answers it.
    Admin {
        /// What.
        call: AdminCall,
        /// For the answer, which is of the same name.
        reply: AdminReply,
    },
    /// Ask another node, over this reactor's connections.
    Ask {
        /// Whom.
        to: Destination,
        /// What.
        request: control_request::Request,
        /// How long to wait for the answer.
        within: Duration,
        /// For the answer; a refusal is an error.
        reply: Reply<control_reply::Reply>,
    },
    /// Hear who leads shards that have no replica here, unless that was heard lately.
    FindLeaders {
        /// Which shards.
        uids: Vec<ShardUid>,
        /// When all who could answer have, and `Node::leaders` knows.
        reply: Reply<()>,
    },
}

/// What a request takes beside what its client has sent, about.
const REQUEST_BYTES: usize = 512;

impl Request {
    /// Bytes that it keeps in memory, about; the same whenever it is asked.
    pub fn bytes(&self) -> usize {
        let sent = match self {
            Request::Produce { produce, .. } => produce.records.message().len(),
            Request::CreateTopic { create, .. } => create.name.len(),
            Request::DeleteTopic { name, .. } => name.len(),
            Request::Admin { call: AdminCall::TransferLeader { topic, .. }, .. } => topic.len(),
            Request::Open { shards, .. } => shards.len() * size_of::<ShardOptions>(),
            Request::Status { uids, .. }
            | Request::Lost { uids, .. }
            | Request::Remove { uids, .. }
            | Request::FindLeaders { uids, .. } => uids.len() * size_of::<ShardUid>(),
            Request::Consume { .. }
            | Request::Trim { .. }
            | Request::MoveLeader { .. }
            | Request::Propose { .. }
            | Request::LearnTopics { .. }
            | Request::Admin { .. }
            | Request::Ask { .. } => 0,
        };
        REQUEST_BYTES + sent
    }
}

/// Something about the cluster that is asked of `control`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminCall {
    /// Make a token with which nodes can join.
    CreateJoinToken {
        /// How long it can be used; 0: the default.
        valid_s: u32,
        /// How many nodes may join with it; 0: any number.
        uses: u32,
    },
    /// Move the replicas of a node to others, or take that back.
    DrainNode {
        /// Which.
        node: NodeId,
        /// Take it back.
        undo: bool,
        /// Also when that leaves a topic with fewer replicas than it wants.
        force: bool,
    },
    /// Take a node out of the cluster.
    RemoveNode {
        /// Which.
        node: NodeId,
        /// Also while it holds replicas: it will not come back.
        dead: bool,
    },
    /// Spread replicas and leaders evenly.
    Rebalance {
        /// Only say what would move.
        dry_run: bool,
    },
    /// Have another replica of a shard lead it.
    TransferLeader {
        /// Of which topic.
        topic: String,
        /// Number of the shard.
        shard: u32,
        /// Which node; `None`: any other one.
        to: Option<NodeId>,
    },
    /// Who belongs to the cluster, as this node's catalog has it.
    Members,
}

/// What `control` answers to an `AdminCall` of the same name.
#[derive(Clone, Debug, PartialEq)]
pub enum AdminAnswer {
    /// A new token: a secret.
    JoinToken {
        /// For `serve --join-token`.
        token: String,
        /// When it ends, µs since the epoch.
        expires_us: i64,
    },
    /// The node is being drained, or is active again.
    Draining {
        /// Replicas that it still holds.
        replicas: u32,
    },
    /// The node is removed, or will be.
    Removed {
        /// Replicas that it still holds and that are being moved.
        replicas: u32,
    },
    /// What began to move, or would.
    Moves(Vec<ShardMove>),
    /// Who leads now.
    Leader(NodeId),
    /// The members.
    Members(ClusterMembers),
}

/// Who belongs to the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterMembers {
    /// All nodes, those included that were removed, by id.
    pub nodes: Vec<ClusterNode>,
    /// Leader of the catalog, if there is one.
    pub catalog_leader: Option<NodeId>,
    /// Its voters.
    pub catalog_voters: Vec<NodeId>,
}

/// Where the answer to an `AdminCall` goes.
pub type AdminReply = oneshot::Sender<Result<AdminAnswer, ControlError>>;

/// See the module's description.
#[derive(Debug)]
pub struct Mailbox {
    queue: ArrayQueue<Request>,
    /// Of the requests in `queue` and of those that are about to be: at most `MAILBOX_BYTES_MAX`.
    bytes: AtomicUsize,
    asleep: AtomicBool,
    closed: AtomicBool,
    doorbell: Notify,
}

impl Default for Mailbox {
    fn default() -> Mailbox {
        Mailbox::with_capacity(limits::MAILBOX_REQUESTS_MAX)
    }
}

impl Mailbox {
    fn with_capacity(requests: usize) -> Mailbox {
        Mailbox {
            queue: ArrayQueue::new(requests),
            bytes: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            doorbell: Notify::new(),
        }
    }

    /// Puts `request` in, from any thread, and never waits.
    ///
    /// # Errors
    /// `MailboxFull`; `Stopped` after `close`. The reactor has not seen the request then.
    pub fn send(&self, request: Request) -> Result<(), ReactorError> {
        self.offer(request).map_err(|(error, _)| error)
    }

    /// As `send`, but gives the request back.
    ///
    /// # Errors
    /// As `send`.
    #[allow(clippy::result_large_err, reason = "giving the request back is what this is for")]
    pub fn offer(&self, request: Request) -> Result<(), (ReactorError, Request)> {
        if self.closed.load(SeqCst) {
            return Err((ReactorError::Stopped { maybe_written: false }, request));
        }
        let bytes = request.bytes();
        // Records leave room for what is asked beside them: a quarter of the bytes, and of the places. (Each thread that looks at the
        // places at the same moment may take one more, which is few of 1,024.)
        let is_produce = matches!(request, Request::Produce { .. });
        if is_produce && self.queue.len() >= self.queue.capacity() - self.queue.capacity() / 4 {
            return Err((ReactorError::MailboxFull, request));
        }
        let reserve = if is_produce { limits::MAILBOX_BYTES_MAX / 4 } else { 0 };
        let claim = |used: usize| used.checked_add(bytes).filter(|used| *used + reserve <= limits::MAILBOX_BYTES_MAX);
        if self.bytes.fetch_update(Relaxed, Relaxed, claim).is_err() {
            return Err((ReactorError::MailboxFull, request));
        }
        if let Err(request) = self.queue.push(request) {
            self.give_back(bytes);
            return Err((ReactorError::MailboxFull, request));
        }
        // After the push: whoever misses this flag has seen the request (both are SeqCst).
        if self.asleep.swap(false, SeqCst) {
            self.doorbell.notify_one();
        }
        if self.closed.load(SeqCst) {
            // Closed between the two: nobody would take it, and its asker would wait for ever.
            self.clear();
        }
        Ok(())
    }

    /// Bytes of the requests that wait now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Requests waiting now.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether the reactor has ended.
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// Whether none waits now.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Suspends until there is a request, then moves up to `TAKE_MAX` into `batch`. For the one
    /// task that owns the mailbox; when it is dropped, nothing is lost.
    pub async fn take(&self, batch: &mut Vec<Request>) {
        loop {
            while batch.len() < TAKE_MAX
                && let Some(request) = self.pop()
            {
                batch.push(request);
            }
            if !batch.is_empty() {
                return;
            }
            self.asleep.store(true, SeqCst);
            if self.queue.is_empty() {
                self.doorbell.notified().await;
            }
            self.asleep.store(false, SeqCst);
        }
    }

    /// Refuses further requests and drops those that wait: their askers learn that the reactor
    /// has stopped.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        self.clear();
    }

    fn clear(&self) {
        while self.pop().is_some() {}
    }

    fn pop(&self) -> Option<Request> {
        let request = self.queue.pop()?;
        self.give_back(request.bytes());
        Some(request)
    }

    fn give_back(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Relaxed);
        assert!(before >= bytes, "the sum is not less than its parts");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{format::records::Records, proto::ringlog::v1 as proto, shard::Durability};

    type Statuses = Result<Vec<Option<ShardStatus>>, ReactorError>;

    fn status(uid: u64) -> (Request, oneshot::Receiver<Statuses>) {
        let (reply, answer) = oneshot::channel();
        (Request::Status { uids: vec![ShardUid(uid)], reply }, answer)
    }

    /// With a record of so many bytes.
    fn produce(bytes: usize) -> Request {
        let request = proto::ProduceRequest {
            records: vec![proto::Record { value: vec![7; bytes].into(), ..Default::default() }],
            ..Default::default()
        };
        let message = prost::Message::encode_to_vec(&request).into();
        let (_, records) = Records::parse(message, limits::RECORD_BYTES_MAX).unwrap();
        let (durability, expected_offset, deadline_us) = (Durability::QuorumFlushed, None, None);
        let produce = Produce { records, durability, expected_offset, deadline_us, forwarded: false, single: true };
        Request::Produce { uid: ShardUid(1), produce, reply: oneshot::channel().0 }
    }

    fn uid(request: &Request) -> u64 {
        match request {
            Request::Status { uids, .. } => uids[0].0,
            other => panic!("{other:?}"),
        }
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().unwrap()
    }

    /// Requests come out in order and in batches, a full mailbox refuses, and room comes back.
    #[test]
    fn bounded_and_in_order() {
        let mailbox = Mailbox::with_capacity(3);
        for number in 0..3 {
            mailbox.send(status(number).0).unwrap();
        }
        assert!(matches!(mailbox.send(status(9).0), Err(ReactorError::MailboxFull)));
        let mut batch = Vec::new();
        runtime().block_on(mailbox.take(&mut batch));
        assert_eq!(batch.iter().map(uid).collect::<Vec<_>>(), [0, 1, 2]);
        mailbox.send(status(4).0).unwrap();
        assert_eq!(mailbox.len(), 1);
    }

    /// A reactor that sleeps is woken by another thread, for every one of many single requests.
    #[test]
    fn wakes_the_sleeper() {
        const ROUNDS: u64 = 2_000;
        let mailbox = Arc::new(Mailbox::with_capacity(4));
        let sender = Arc::clone(&mailbox);
        let (seen, wait) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .spawn(move || {
                for number in 0..ROUNDS {
                    sender.send(status(number).0).unwrap();
                    assert_eq!(wait.recv().unwrap(), number);
                }
            })
            .unwrap();
        runtime().block_on(async {
            let mut batch = Vec::new();
            for _ in 0..ROUNDS {
                mailbox.take(&mut batch).await;
                for request in batch.drain(..) {
                    seen.send(uid(&request)).unwrap();
                }
            }
        });
        thread.join().unwrap();
    }

    /// A mailbox counts bytes: large requests are refused long before there are too many of them, leave room for what is not
    /// records, and give their bytes back when they are taken or dropped.
    #[test]
    fn bounded_in_bytes() {
        let produce = || produce(1_000_000);
        let mailbox = Mailbox::default();
        let mut sent = 0;
        while mailbox.send(produce()).is_ok() {
            sent += 1;
            assert!(mailbox.bytes() <= limits::MAILBOX_BYTES_MAX);
        }
        assert_eq!(sent, limits::MAILBOX_BYTES_MAX * 3 / 4 / produce().bytes());
        assert!(matches!(mailbox.send(produce()), Err(ReactorError::MailboxFull)));
        mailbox.send(status(1).0).unwrap();
        let mut batch = Vec::new();
        runtime().block_on(mailbox.take(&mut batch));
        assert_eq!((batch.len(), mailbox.bytes()), (sent + 1, 0));
        mailbox.send(produce()).unwrap();
        mailbox.close();
        assert_eq!(mailbox.bytes(), 0);
    }

    /// Small records take no more than three quarters of the places: what is asked beside them is taken.
    #[test]
    fn records_leave_places() {
        let produce = || produce(1);
        let mailbox = Mailbox::default();
        let sent = std::iter::from_fn(|| mailbox.send(produce()).ok()).count();
        assert_eq!(sent, limits::MAILBOX_REQUESTS_MAX * 3 / 4);
        assert!(matches!(mailbox.send(produce()), Err(ReactorError::MailboxFull)));
        for uid in 0..limits::MAILBOX_REQUESTS_MAX as u64 / 4 {
            mailbox.send(status(uid).0).unwrap();
        }
        assert!(matches!(mailbox.send(status(9).0), Err(ReactorError::MailboxFull)));
    }

    /// Closing answers what waits, and what comes later, with an error instead of silence.
    #[test]
    fn closing_leaves_nobody_waiting() {
        let mailbox = Mailbox::with_capacity(4);
        let (request, answer) = status(1);
        mailbox.send(request).unwrap();
        mailbox.close();
        assert!(answer.blocking_recv().is_err(), "its reply was dropped");
        assert!(matches!(mailbox.send(status(2).0), Err(ReactorError::Stopped { maybe_written: false })));
    }
}
