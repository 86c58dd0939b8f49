//! Requests for shards that this node does not lead, or does not hold: sent on to the node that can answer them.
//!
//! Produce requests of one shard go through one FIFO per reactor, so that those of one connection keep their order
//! through any number of leaders; while it is empty, and this node leads, it is passed by. What a node refuses for want of
//! leadership was not written, and is sent again, in order; what may have been written when a connection broke is
//! never sent again, and its caller is told so. During an election requests wait, within their deadlines.
//!
//! - `fifo`: the requests of one shard, as a pure state machine
//! - `search`: who is asked next, and when (pure)
//! - `session`: one FIFO's life: find the leader, send, take the answers
//! - `consume`: reads, from this node's replica or from another's
//! - `ask`: trims, and control requests to other nodes
//! - `leaders`: who leads what, as far as this node has heard
//! - `wire`: requests and answers as frames

pub mod ask;
mod consume;
mod fifo;
pub mod leaders;
mod search;
mod session;
pub(super) mod wire;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    time::Duration,
};

use self::{
    fifo::{Fifo, Item},
    search::LocalView,
};
use crate::{
    env::{
        self, Env,
        channel::{Notify, OneshotReceiver},
        domain,
    },
    ids::{NodeId, ShardUid},
    limits::LEADER_WAIT,
    peer::Destination,
    proto::ringlog::state::v1::PeerRefusal,
    reactor::{Reactor, ReactorError},
    shard::{Owed, Produce, Produced, Shard, ShardError, due_us},
};

/// `google.rpc.Code` of refusals that are looked at here.
const CODE_NOT_FOUND: i32 = 5;
const CODE_UNAVAILABLE: i32 = 14;
const CODE_DATA_LOSS: i32 = 15;

/// The requests of one shard that go elsewhere.
#[derive(Default)]
struct Queue {
    fifo: RefCell<Fifo<Owed>>,
    /// Something was pushed or answered.
    changed: Notify,
    /// A task works for it.
    driven: Cell<bool>,
    /// The own replica is being closed. What it hands back came before all that is queued here since, and goes in front of
    /// it; until it has handed back all, nothing is sent.
    held: RefCell<Option<Vec<Owed>>>,
}

/// A reactor's FIFOs: of the shards whose requests have gone elsewhere lately.
#[derive(Default)]
pub(super) struct Forwards {
    queues: RefCell<BTreeMap<ShardUid, Rc<Queue>>>,
}

impl Forwards {
    /// Whether nothing of that shard is on its way elsewhere: its requests may go to the own replica at once.
    #[inline]
    pub(super) fn is_idle(&self, uid: ShardUid) -> bool {
        let queues = self.queues.borrow();
        queues.is_empty() || queues.get(&uid).is_none_or(|queue| queue.fifo.borrow().is_empty() && !queue.is_held())
    }

    /// Bytes of a shard's requests that go elsewhere.
    pub(super) fn queued_bytes(&self, uid: ShardUid) -> usize {
        self.queues.borrow().get(&uid).map_or(0, |queue| queue.fifo.borrow().bytes())
    }

    /// Lets those of them go whose clients are gone, unless they are sent, or few have come since that was done.
    pub(super) fn leave_forsaken(&self, uid: ShardUid) {
        if let Some(queue) = self.queues.borrow().get(&uid) {
            queue.fifo.borrow_mut().leave_forsaken(|owed| owed.is_forsaken());
        }
    }
}

/// Who can answer for a shard, by the catalog.
pub(super) struct Holders {
    /// Nodes that hold a replica, then those that are to hold one; each once.
    pub(super) nodes: Vec<NodeId>,
    /// Decides the reactor on each of them.
    pub(super) slot: u64,
}

/// Whether a refusal says that the request can go to another node: this one has not done it, and will not.
pub(super) fn may_go_on(refusal: &PeerRefusal) -> bool {
    refusal.definite
        && (refusal.code == CODE_UNAVAILABLE || matches!(refusal.reason.as_str(), "SHARD_NOT_FOUND" | "SHARD_NOT_OPEN"))
}

/// The same of the own replica's answer to a produce.
pub(super) fn goes_elsewhere(error: &ShardError) -> bool {
    match error {
        ShardError::NotLeader { .. }
        | ShardError::Starved { .. }
        | ShardError::Failed { maybe_written: false, .. }
        | ShardError::Closing { maybe_written: false } => true,
        ShardError::Failed { maybe_written: true, .. }
        | ShardError::Closing { maybe_written: true }
        | ShardError::Busy { .. }
        | ShardError::NoMemory
        | ShardError::DiskBehind { .. }
        | ShardError::NotTransferred(_)
        | ShardError::Deadline
        | ShardError::OffsetMismatch { .. }
        | ShardError::OutOfRange { .. }
        | ShardError::Deposed { .. }
        | ShardError::NoLeader { .. }
        | ShardError::Lost { .. }
        | ShardError::Behind { .. }
        | ShardError::Elsewhere(_)
        | ShardError::Full(_)
        | ShardError::Damaged { .. } => false,
    }
}

/// The answer for a shard that the catalog does not know (any more).
fn gone() -> ShardError {
    ShardError::Elsewhere(Box::new(PeerRefusal {
        code: CODE_NOT_FOUND,
        reason: "SHARD_NOT_FOUND".to_owned(),
        message: ReactorError::Gone.to_string(),
        definite: true,
        ..PeerRefusal::default()
    }))
}

impl<E: Env> Reactor<E> {
    /// Who holds the shard; `None` when the catalog does not know it.
    pub(super) fn holders(&self, uid: ShardUid) -> Option<Holders> {
        let (topic, number) = self.node.topics.shard(uid)?;
        let replicas = topic.view.replicas.get(number as usize)?;
        let mut nodes = replicas.nodes.clone();
        nodes.extend(replicas.target.iter().filter(|node| !replicas.nodes.contains(node)));
        Some(Holders { nodes, slot: topic.shards[number as usize].slot })
    }

    /// Whether another node has, or is to have, a replica.
    pub(super) fn is_elsewhere(&self, uid: ShardUid) -> bool {
        let me = self.me();
        self.holders(uid).is_some_and(|holders| holders.nodes.iter().any(|node| *node != me))
    }

    pub(super) fn me(&self) -> NodeId {
        self.node.identity().expect("requests come after the identity was read").node
    }

    /// What the own replica says about the leadership, if it can be trusted.
    fn local_view(&self, uid: ShardUid) -> Option<LocalView> {
        let shard = self.serving(uid).ok().filter(Shard::is_readable)?;
        Some(LocalView { leader: shard.leader().0, leads: shard.leads() })
    }

    fn destination(holders: &Holders, node: NodeId) -> Destination {
        Destination { node, slot: holders.slot }
    }

    /// Queues a request for the shard's leader, wherever it is. `error` is why it cannot be done here: the answer, if it
    /// cannot be done anywhere else.
    ///
    /// # Errors
    /// `error`, `Busy` or `NoMemory`. Nothing was written.
    pub(super) fn forward(
        self: &Rc<Self>,
        uid: ShardUid,
        produce: Produce,
        error: ReactorError,
    ) -> Result<OneshotReceiver<Result<Produced, ShardError>>, ReactorError> {
        // While something is on its way, all go the same way, or they would overtake it.
        if self.forwards.is_idle(uid) && !self.is_elsewhere(uid) {
            return Err(error);
        }
        let now_us = E::monotonic_us();
        let bytes = produce.records.encoded_bytes_max();
        let (owed, answer) = Owed::new(produce, now_us, self.budget()).map_err(|refused| refused.0)?;
        // Whoever asks, the queue is everybody's.
        domain::core(|| {
            let queue = self.queue(uid);
            let admitted = queue.fifo.borrow_mut().admit(bytes, |owed| owed.is_forsaken());
            admitted.map_err(|what| ShardError::Busy { what })?;
            self.push(uid, &queue, [owed], now_us);
            Ok(answer)
        })
    }

    /// Takes what the own replica hands back. It had been admitted before: the bounds may be passed by what was in flight.
    pub(super) fn take_back(self: &Rc<Self>, uid: ShardUid, owed: Vec<Owed>, error: &ShardError) {
        if !self.is_elsewhere(uid) || self.is_closing() {
            owed.into_iter().for_each(|owed| owed.answer(Err(error.clone())));
            return;
        }
        let queue = self.queue(uid);
        if let Some(held) = &mut *queue.held.borrow_mut() {
            return held.extend(owed);
        }
        self.push(uid, &queue, owed, E::monotonic_us());
    }

    /// The own replica is about to be closed: requests that come from now on wait behind those that it still has.
    pub(super) fn hold(&self, uid: ShardUid) {
        let queue = self.queue(uid);
        // What is on its way elsewhere came after the replica had nothing left.
        if queue.fifo.borrow().is_empty() {
            queue.held.borrow_mut().get_or_insert_default();
        }
    }

    /// It is closed: what it has handed back goes on, and then what has come since.
    pub(super) fn release(self: &Rc<Self>, uid: ShardUid) {
        let queue = self.queue(uid);
        let Some(returned) = queue.held.take() else { return };
        let now_us = E::monotonic_us();
        let returned: VecDeque<_> = returned.into_iter().map(|owed| item(owed, now_us)).collect();
        queue.fifo.borrow_mut().put_back(returned);
        self.push(uid, &queue, [], now_us);
    }

    fn queue(&self, uid: ShardUid) -> Rc<Queue> {
        Rc::clone(self.forwards.queues.borrow_mut().entry(uid).or_default())
    }

    fn push(self: &Rc<Self>, uid: ShardUid, queue: &Rc<Queue>, owed: impl IntoIterator<Item = Owed>, now_us: u64) {
        let mut fifo = queue.fifo.borrow_mut();
        owed.into_iter().for_each(|owed| fifo.push(item(owed, now_us)));
        drop(fifo);
        if !queue.driven.replace(true) {
            env::spawn_core::<E>(session::drive(Rc::clone(self), uid, Rc::clone(queue)));
        }
        queue.changed.notify_all();
    }

    /// Answers all that waits here for leaders elsewhere: the reactor ends. What was sent may have been written.
    pub(super) fn close_forwards(&self) {
        for (_, queue) in std::mem::take(&mut *self.forwards.queues.borrow_mut()) {
            let (sent, waiting) = {
                let mut fifo = queue.fifo.borrow_mut();
                (fifo.lost(), fifo.drain())
            };
            let held = queue.held.take().unwrap_or_default();
            held.into_iter().for_each(|owed| owed.answer(Err(ShardError::Closing { maybe_written: false })));
            let answer = |items: VecDeque<Item<Owed>>, maybe_written| {
                items.into_iter().for_each(|item| item.request.answer(Err(ShardError::Closing { maybe_written })));
            };
            answer(sent, true);
            answer(waiting, false);
            queue.changed.notify_all();
        }
    }
}

/// A request as it waits.
fn item(owed: Owed, now_us: u64) -> Item<Owed> {
    let until_us = owed.produce.deadline_us.map(|deadline_us| due_us(deadline_us, now_us));
    let bytes = owed.produce.records.encoded_bytes_max();
    // Also for one that the own replica has kept for a while: what has become of its leadership is the same search.
    Item { since_us: owed.queued_us, request: owed, bytes, until_us }
}

impl Queue {
    fn is_held(&self) -> bool {
        self.held.borrow().is_some()
    }

    /// Answers what has waited until its time. `searching_us`: since when the leader is looked for; `None`: there is one.
    fn expire(&self, now_us: u64, searching_us: Option<u64>) {
        let patience_us = LEADER_WAIT.as_micros() as u64;
        let expired = self.fifo.borrow_mut().expired(now_us, searching_us, patience_us);
        for Item { request, since_us, until_us, .. } in expired {
            let waited = Duration::from_micros(now_us.saturating_sub(since_us));
            request.answer(Err(match searching_us {
                Some(_) => {
                    ShardError::NoLeader { waited, deadline: until_us.is_some_and(|until_us| until_us <= now_us) }
                }
                None => ShardError::Deadline,
            }));
        }
    }

    /// When the next one has waited for long enough.
    fn expiry_us(&self, searching_us: Option<u64>) -> Option<u64> {
        self.fifo.borrow().expiry_us(searching_us, LEADER_WAIT.as_micros() as u64)
    }
}
