//! One shard's FIFO at work: find who leads, open a stream to it, send in order, take the answers; again when the leader
//! is another. Ends when nothing was asked for a while.
//!
//! A session is one stream. Its first frame holds no request, so that nothing was asked if it cannot be opened.

use std::{cell::Cell, future::pending, rc::Rc, time::Duration};

use openraft::AsyncRuntime;

use super::{
    Queue,
    fifo::Item,
    goes_elsewhere, gone, may_go_on,
    search::{Search, Step},
    wire,
};
use crate::{
    env::{Env, net::Priority},
    ids::{NodeId, ShardUid, Term},
    peer::{Destination, frame::FrameKind, frame::FrameReceiver, frame::FrameSender, frame::FrameStream},
    reactor::{Reactor, forward::leaders::Leader},
    shard::{Owed, Shard, ShardError},
};

/// A session without requests for that long is ended, and the FIFO forgotten.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// How long a node that takes nothing more, or that another leader has followed, may take to answer what it was sent: it knows by
/// then what it has written and what not, and nobody else does.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(2);

/// Most requests in one frame.
const FRAME_REQUESTS_MAX: usize = 256;

/// About the most bytes of requests in one frame.
const FRAME_BYTES_TARGET: usize = 1 << 20;

/// How a session ended. What was sent in it is answered, or waits again.
#[derive(Debug)]
enum Ended {
    /// Nothing was asked for a while.
    Idle,
    /// The node has no leader's part in this shard; it may know who has.
    Refused(Option<NodeId>),
    /// The node cannot be reached, or another one leads.
    Gone,
}

/// Works for one FIFO until it has been idle.
pub(super) async fn drive<E: Env>(reactor: Rc<Reactor<E>>, uid: ShardUid, queue: Rc<Queue>) {
    let mut search = Search::default();
    // What the own replica has handed back waited for a leader there.
    let mut searching_us = queue.fifo.borrow().oldest_us().unwrap_or_else(E::monotonic_us);
    loop {
        queue.expire(E::monotonic_us(), Some(searching_us));
        if queue.is_held() {
            queue.while_held::<E>(Some(searching_us)).await;
            continue;
        }
        if queue.fifo.borrow().is_empty() {
            // Whoever comes next begins a new one: nothing happens between this look and the removal.
            reactor.forwards.queues.borrow_mut().retain(|_, other| !Rc::ptr_eq(other, &queue));
            return;
        }
        let Some(holders) = reactor.holders(uid) else {
            let waiting = queue.fifo.borrow_mut().drain();
            waiting.into_iter().for_each(|item| item.request.answer(Err(gone())));
            continue;
        };
        match reactor.look(&mut search, uid, &holders) {
            Step::Here => {
                if let Ok(shard) = reactor.serving(uid) {
                    queue.submit_here(&shard);
                }
            }
            Step::There(node) => {
                let to = Reactor::<E>::destination(&holders, node);
                let mut session = Session { reactor: &reactor, uid, queue: &queue, to, searching_us, answered: false };
                let ended = session.run().await;
                if session.answered {
                    search.found();
                    searching_us = E::monotonic_us();
                }
                tracing::debug!(shard_uid = uid.0, node = node.0, ?ended, "forwarding");
                match ended {
                    Ended::Idle | Ended::Gone => {}
                    Ended::Refused(leader) => search.hint(leader),
                }
            }
            Step::Pause(pause) => {
                let now_us = E::monotonic_us();
                let expiry_us = queue.expiry_us(Some(searching_us)).unwrap_or(u64::MAX);
                let pause = pause.min(Duration::from_micros(expiry_us.saturating_sub(now_us)));
                if E::Runtime::timeout(pause, news(&reactor, uid)).await.is_ok() {
                    search.changed();
                }
            }
        }
    }
}

/// Resolves when the own replica has another leader, or takes proposals or none, or when a node died or came back.
pub(super) async fn news<E: Env>(reactor: &Rc<Reactor<E>>, uid: ShardUid) {
    let before = reactor.local_view(uid);
    let mut liveness = reactor.node().liveness.watch();
    loop {
        let local = async {
            match reactor.serving(uid) {
                Ok(shard) => shard.wait_changed().await,
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = local => {
                if reactor.local_view(uid) != before {
                    return;
                }
            }
            changed = liveness.changed() => {
                if changed.is_err() {
                    pending::<()>().await;
                }
                return;
            }
        }
    }
}

impl Queue {
    /// Hands all that waits to the own replica, in order, until it takes no more.
    fn submit_here<E: Env>(&self, shard: &Shard<E>) {
        let mut waiting = self.fifo.borrow_mut().drain();
        while let Some(Item { request, bytes, since_us, until_us }) = waiting.pop_front() {
            match shard.resubmit(request) {
                Ok(()) => {}
                Err((error, request)) if goes_elsewhere(&error) => {
                    waiting.push_front(Item { request, bytes, since_us, until_us });
                    let mut fifo = self.fifo.borrow_mut();
                    // Behind what the replica has handed back meanwhile, when a panic has stopped it: that was taken before.
                    return waiting.into_iter().for_each(|item| fifo.push(item));
                }
                Err((error, request)) => request.answer(Err(error)),
            }
        }
    }

    /// Waits for a change, but not longer than until the next one that waits has done so until its time.
    async fn while_held<E: Env>(&self, searching_us: Option<u64>) {
        let changed = self.changed.notified();
        let expiry_us = self.expiry_us(searching_us).unwrap_or(u64::MAX);
        let pause = Duration::from_micros(expiry_us.saturating_sub(E::monotonic_us()));
        drop(E::Runtime::timeout(pause.min(IDLE_MAX), changed).await);
    }

    /// Answers those that wait when their time is up; returns when there is nothing left, sent or to be sent.
    async fn expire_as_due<E: Env>(&self, searching_us: Option<u64>) {
        loop {
            let now_us = E::monotonic_us();
            self.expire(now_us, searching_us);
            let expiry_us = self.expiry_us(searching_us).unwrap_or(now_us + 1_000_000);
            // Those that come meanwhile are looked at a little later.
            let pause = Duration::from_micros(expiry_us.saturating_sub(now_us).clamp(1_000, 100_000));
            E::Runtime::sleep(pause).await;
            if self.fifo.borrow().is_empty() {
                return;
            }
        }
    }

    /// Nobody will say what became of what was sent.
    fn lose_sent(&self, cause: &str) {
        let lost = self.fifo.borrow_mut().lost();
        for item in lost {
            item.request.answer(Err(ShardError::Lost { cause: cause.to_owned() }));
        }
    }
}

/// One stream to one node.
struct Session<'a, E: Env> {
    reactor: &'a Rc<Reactor<E>>,
    uid: ShardUid,
    queue: &'a Queue,
    to: Destination,
    /// Since when the leader is looked for.
    searching_us: u64,
    /// It has acknowledged something: it leads.
    answered: bool,
}

impl<E: Env> Session<'_, E> {
    async fn run(&mut self) -> Ended {
        let Some(FrameStream { sender, receiver }) = self.open().await else { return Ended::Gone };
        let (reactor, uid, queue, node) = (self.reactor, self.uid, self.queue, self.to.node);
        let superseded = Cell::new(false);
        let sending = send::<E>(uid, queue, sender, &superseded);
        let silent = silent(reactor, node);
        let moved = async {
            followed(reactor, uid, node).await;
            superseded.set(true);
            queue.changed.notify_all();
            E::Runtime::sleep(LAST_ANSWERS_MAX).await;
            "another node leads now".to_owned()
        };
        let receiving = self.receive(receiver);
        let ended = tokio::select! {
            biased;
            ended = receiving => ended,
            ended = sending => ended,
            cause = silent => Err(cause),
            cause = moved => Err(cause),
        };
        match ended {
            Ok(ended) => ended,
            Err(cause) => {
                queue.lose_sent(&cause);
                Ended::Gone
            }
        }
    }

    /// Opens the stream; `None` when that fails, or has become pointless. Nothing was asked then.
    async fn open(&self) -> Option<FrameStream<E>> {
        let (reactor, uid, queue) = (self.reactor, self.uid, self.queue);
        let opener = wire::produce_frame(uid, std::iter::empty(), 0);
        tokio::select! {
            biased;
            // Whatever went wrong, and whether the opener came through: nothing was asked.
            opened = reactor.peers().open(self.to, opener, Priority::Normal) => opened.ok(),
            _ = silent(reactor, self.to.node) => None,
            () = followed(reactor, uid, self.to.node) => None,
            () = queue.expire_as_due::<E>(Some(self.searching_us)) => None,
        }
    }

    /// Takes answers until the session ends; an error says why nobody knows what became of what was sent.
    async fn receive(&mut self, mut receiver: FrameReceiver<E>) -> Result<Ended, String> {
        let node = self.to.node;
        loop {
            let received = match receiver.receive().await {
                Ok(Some(received)) => received,
                Ok(None) => return Err(format!("node {node} has ended the stream")),
                Err(error) => return Err(error.to_string()),
            };
            let acks = match received.kind {
                FrameKind::Produce => wire::acks(received, node)?,
                FrameKind::Refused => vec![Err(wire::refusal(&received))],
                FrameKind::Append
                | FrameKind::Appended
                | FrameKind::Raft
                | FrameKind::Snapshot
                | FrameKind::Consume
                | FrameKind::Control => return Err(format!("node {node} answers something else")),
            };
            for ack in acks {
                match ack {
                    // The rest of what was sent was refused with it.
                    Err(refusal) if may_go_on(&refusal) => {
                        self.queue.fifo.borrow_mut().refused();
                        let leader = Some(NodeId(refusal.leader_node_id)).filter(|leader| *leader != NodeId(0));
                        return Ok(Ended::Refused(leader));
                    }
                    ack => {
                        let item = self.queue.fifo.borrow_mut().answered();
                        let item = item.ok_or_else(|| format!("node {node} answers what was not asked"))?;
                        self.note_leader(ack.is_ok());
                        item.request.answer(ack.map_err(|refusal| ShardError::Elsewhere(Box::new(refusal))));
                    }
                }
            }
            // There is room in the window.
            self.queue.changed.notify_all();
        }
    }

    fn note_leader(&mut self, acknowledged: bool) {
        if acknowledged && !self.answered {
            self.answered = true;
            let leader = Leader { node: Some(self.to.node), term: Term(0) };
            self.reactor.node().leaders.note_heard(self.uid, leader, E::monotonic_us());
        }
    }
}

/// Sends what waits, as it comes; ends when nothing has come for a while, or, once another node leads, when all that was
/// sent is answered.
async fn send<E: Env>(
    uid: ShardUid,
    queue: &Queue,
    mut sender: FrameSender<E>,
    superseded: &Cell<bool>,
) -> Result<Ended, String> {
    loop {
        let changed = queue.changed.notified();
        if superseded.get() {
            if !queue.fifo.borrow().has_sent() {
                sender.finish();
                return Ok(Ended::Gone);
            }
            changed.await;
            continue;
        }
        if queue.is_held() {
            // Nothing is sent anywhere, so each has looked for a leader since it came.
            queue.expire(E::monotonic_us(), Some(0));
            queue.while_held::<E>(Some(0)).await;
            continue;
        }
        let now_us = E::monotonic_us();
        queue.expire(now_us, None);
        let frame = {
            let mut fifo = queue.fifo.borrow_mut();
            let forsaken = |owed: &Owed| owed.is_forsaken();
            let mut items = fifo.send(FRAME_REQUESTS_MAX, FRAME_BYTES_TARGET, forsaken).peekable();
            let any = items.peek().is_some();
            any.then(|| wire::produce_frame(uid, items.map(|item| &item.request.produce), now_us))
        };
        if let Some(frame) = frame {
            if let Err(error) = sender.send(frame).await {
                // A leader that refuses stops the stream: its refusal may come behind that, and says what was not written.
                drop(E::Runtime::timeout(LAST_ANSWERS_MAX, queue.expire_as_due::<E>(None)).await);
                return Err(error.to_string());
            }
            continue;
        }
        let expiry_us = queue.expiry_us(None).unwrap_or(u64::MAX);
        let pause = IDLE_MAX.min(Duration::from_micros(expiry_us.saturating_sub(now_us)));
        let is_quiet = E::Runtime::timeout(pause, changed).await.is_err();
        if is_quiet && queue.fifo.borrow().is_empty() {
            sender.finish();
            return Ok(Ended::Idle);
        }
    }
}

/// Resolves when the node is not heard of any more, with that as the reason.
async fn silent<E: Env>(reactor: &Rc<Reactor<E>>, node: NodeId) -> String {
    let mut liveness = reactor.node().liveness.watch();
    while reactor.node().liveness.is_alive(node) {
        if liveness.changed().await.is_err() {
            pending::<()>().await;
        }
    }
    format!("node {node} is silent")
}

/// Resolves when the own replica leads, or follows another node in a later term.
async fn followed<E: Env>(reactor: &Rc<Reactor<E>>, uid: ShardUid, node: NodeId) {
    let began = reactor.serving(uid).map_or(Term(0), |shard| shard.leader().1);
    loop {
        if let Ok(shard) = reactor.serving(uid) {
            let (leader, term) = shard.leader();
            if term > began && leader.is_some_and(|leader| leader != node) {
                return;
            }
        }
        news(reactor, uid).await;
    }
}
