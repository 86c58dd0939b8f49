//! Which lane a record goes to, and how a topic is found out that nobody knows yet.
//!
//! A server may make an unknown topic on the first produce: so the first record goes to any server as a call of its own,
//! and the others wait in their order until it is known how many shards there are.

#![allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use tokio::sync::watch;

use super::{
    Acked, Context, ProduceError, Spread,
    lane::{Lane, Pending},
    shard_of_key,
};
use crate::{
    client::{
        ClientError,
        cluster::{backoff, topology::Topology},
        producer::retry::{self, Fate},
    },
    proto::ringlog::v1::ProduceRequest,
};

/// A producer's way to its shards.
pub(super) struct Routes {
    context: Arc<Context>,
    state: Mutex<State>,
}

struct State {
    way: Way,
    closed: bool,
    /// What waits does not linger when it is known where it goes.
    hurried: bool,
    /// By shard, the last lanes of the topic that had the same name: new ones send nothing before these have ended.
    former: Vec<Option<Arc<Lane>>>,
    /// Tells without a look-up whether there is anything new.
    topology: watch::Receiver<Arc<Topology>>,
}

enum Way {
    /// The number of shards is not known. While it is being found out, records wait. `anew`: what is cached is of a topic that
    /// is gone, so that a server has to be asked.
    Unknown { waiting: VecDeque<Pending>, asking: bool, anew: bool },
    /// One lane per shard, begun with its first record.
    Known { lanes: Vec<Option<Arc<Lane>>>, turn: Turn },
}

/// The shard of records without a key.
#[derive(Clone, Copy, Debug)]
struct Turn {
    shard: u32,
    spread: Spread,
}

impl Turn {
    /// Begins with that shard, or, if there is none of that number, with some other one.
    fn new(shard: u32, shards: u32, spread: Spread) -> Turn {
        Turn { shard: shard % shards.max(1), spread }
    }

    /// The shard for the next record: another one when the present one has no batch that could still grow.
    fn next(&mut self, shards: u32, queued_bytes: impl Fn(u32) -> usize, batch_bytes: usize) -> u32 {
        let queued = queued_bytes(self.shard);
        if self.spread == Spread::Turns && (queued == 0 || queued >= batch_bytes) {
            self.shard = (self.shard + 1) % shards.max(1);
        }
        self.shard
    }
}

impl Way {
    fn unknown() -> Way {
        Way::Unknown { waiting: VecDeque::new(), asking: false, anew: false }
    }

    fn known(context: &Context, shards: u32, unkeyed: Option<u32>) -> Way {
        let shard = unkeyed.unwrap_or_else(|| fastrand::u32(..));
        // The topic may have been made again, with fewer shards, since it told of `unkeyed`.
        Way::Known { lanes: vec![None; shards as usize], turn: Turn::new(shard, shards, context.options.spread) }
    }
}

impl Routes {
    pub(super) fn new(context: Arc<Context>) -> Routes {
        let topology = context.cluster.watch();
        let state = State { way: Way::unknown(), closed: false, hurried: false, former: Vec::new(), topology };
        Routes { context, state: Mutex::new(state) }
    }

    /// Puts a record on its way, behind all that went to the same shard before.
    ///
    /// # Errors
    /// `Closed`, `NoShard`: it was not sent.
    pub(super) fn send(self: &Arc<Self>, pending: Pending) -> Result<(), ProduceError> {
        let mut state = self.state();
        if state.closed {
            return Err(ProduceError::Closed);
        }
        if self.context.is_stale.swap(false, Ordering::AcqRel) {
            state.forget(true);
        } else if state.has_other_shards(&self.context.topic) {
            state.forget(false);
        }
        if let Way::Unknown { waiting, asking: false, anew: false } = &state.way
            && waiting.is_empty()
            && let Some(shards) = self.context.cluster.topology().shards(&self.context.topic)
        {
            state.way = Way::known(&self.context, shards, None);
        }
        let State { way, former, .. } = &mut *state;
        match way {
            Way::Unknown { waiting, asking, .. } => {
                waiting.push_back(pending);
                if !*asking {
                    *asking = true;
                    let asking = Asking { routes: Arc::clone(self), is_done: false };
                    drop(state);
                    // Where there is no runtime any more it is dropped at once, and looks at the state.
                    tokio::spawn(find_out(asking));
                }
                Ok(())
            }
            Way::Known { lanes, turn } => {
                push(&self.context, lanes, former, turn, pending).map_err(|refused| refused.0)
            }
        }
    }

    /// Nothing of what is there lingers.
    pub(super) fn hurry(&self) {
        let State { way, hurried, .. } = &mut *self.state();
        match way {
            Way::Known { lanes, .. } => lanes.iter().flatten().for_each(|lane| lane.hurry()),
            Way::Unknown { waiting, .. } => *hurried |= !waiting.is_empty(),
        }
    }

    /// Takes no more; the lanes end with their last record.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        if let Way::Known { lanes, .. } = &state.way {
            lanes.iter().flatten().for_each(|lane| lane.close());
        }
    }

    async fn find_out(&self) {
        let mut unkeyed = None;
        loop {
            let Context { cluster, topic, .. } = &*self.context;
            let (deadline, anew) = match &self.state().way {
                Way::Unknown { waiting, anew, .. } => (waiting.front().map(|pending| pending.deadline), *anew),
                Way::Known { .. } => (None, false),
            };
            let until = deadline.unwrap_or_else(|| Instant::now() + cluster.options().timeout);
            // Once a record has made the topic this finds it; a server that knows nothing of it yet is asked again.
            let shards = async { if anew { cluster.ask_shards(topic).await } else { cluster.shards(topic).await } };
            if let Ok(Ok(shards)) = tokio::time::timeout_at(until.into(), shards).await {
                return self.release(shards, unkeyed);
            }
            // A record that makes the topic again does not overtake what was sent to the former one.
            drop(tokio::time::timeout_at(until.into(), self.former_ended()).await);
            let (late, first) = self.next_unknown();
            late.into_iter().for_each(|pending| pending.done.tell(Err(self.expired(None))));
            let Some(first) = first else { return };
            unkeyed = self.produce(first).await.or(unkeyed);
        }
    }

    /// Resolves when all lanes of the topic that had the same name have ended.
    async fn former_ended(&self) {
        loop {
            let lane = self.state().former.iter().flatten().find(|lane| !lane.has_ended()).cloned();
            let Some(lane) = lane else { return };
            lane.wait_ended().await;
        }
    }

    /// Takes out what has waited until its time, and the first behind it; without one, nobody asks any more.
    fn next_unknown(&self) -> (Vec<Pending>, Option<Pending>) {
        let mut state = self.state();
        let Way::Unknown { waiting, asking, .. } = &mut state.way else { return (Vec::new(), None) };
        let now = Instant::now();
        // In the order in which they came, and so of their deadlines.
        let late = waiting.iter().take_while(|pending| pending.deadline <= now).count();
        let late = waiting.drain(..late).collect();
        let first = waiting.pop_front();
        *asking = first.is_some();
        (late, first)
    }

    fn expired(&self, cause: Option<ClientError>) -> ProduceError {
        ProduceError::Expired { place: self.place(), after: self.context.options.delivery_timeout, cause }
    }

    /// What an error is about, while no shard is known.
    fn place(&self) -> String {
        format!("topic {}", self.context.topic)
    }

    /// Hands all that waits to the lanes, in order.
    fn release(&self, shards: u32, unkeyed: Option<u32>) {
        let mut state = self.state();
        let known = Way::known(&self.context, shards, unkeyed);
        let Way::Unknown { waiting, .. } = std::mem::replace(&mut state.way, known) else { return };
        let State { way, former, closed, hurried, .. } = &mut *state;
        let Way::Known { lanes, turn } = way else { return };
        for pending in waiting {
            if let Err(refused) = push(&self.context, lanes, former, turn, pending) {
                let (error, pending) = *refused;
                pending.done.tell(Err(error));
            }
        }
        if std::mem::take(hurried) {
            lanes.iter().flatten().for_each(|lane| lane.hurry());
        }
        if *closed {
            lanes.iter().flatten().for_each(|lane| lane.close());
        }
    }

    /// Produces one record by a call of its own; gives the shard that it went to.
    async fn produce(&self, pending: Pending) -> Option<u32> {
        let Context { cluster, topic, options, .. } = &*self.context;
        let Pending { record, shard, deadline, done, .. } = pending;
        let request = ProduceRequest {
            topic: topic.clone(),
            shard,
            records: vec![record],
            durability: options.durability.into(),
            ..ProduceRequest::default()
        };
        let mut failures = 0;
        // Why an earlier try may have written it: no later one makes that certain.
        let mut maybe = None;
        loop {
            let connected = tokio::time::timeout_at(deadline.into(), cluster.any()).await;
            let left = deadline.saturating_duration_since(Instant::now());
            let outcome = match connected {
                Ok(Ok(client)) if !left.is_zero() => client.with_timeout(left).produce(&request).await,
                Ok(Err(error)) => Err(error),
                // This try was not begun.
                Ok(Ok(_)) | Err(_) => {
                    let maybe = maybe.map(|cause| ProduceError::Maybe { place: self.place(), cause });
                    done.tell(Err(maybe.unwrap_or_else(|| self.expired(None))));
                    return None;
                }
            };
            let cause = match outcome {
                Ok(ack) => {
                    let (offset, timestamp_us, durability) = (ack.base_offset, ack.timestamp_us, ack.durability());
                    done.tell(Ok(Acked { shard: ack.shard, offset, timestamp_us, durability }));
                    return Some(ack.shard);
                }
                Err(cause) => cause,
            };
            failures += 1;
            let fates = retry::decide(&cause, options.at_least_once);
            let wait = fates.wait.max(backoff::jittered(failures));
            let tries_again = match fates.first {
                Fate::Again => true,
                Fate::AgainMaybe => {
                    maybe = Some(cause.clone());
                    true
                }
                Fate::Maybe => {
                    maybe = Some(cause.clone());
                    false
                }
                Fate::Refused => false,
            };
            if tries_again && Instant::now() + wait < deadline {
                tokio::time::sleep(wait).await;
                continue;
            }
            let place = self.place();
            let error = match maybe {
                Some(cause) => ProduceError::Maybe { place, cause },
                None if tries_again => self.expired(Some(cause)),
                None => ProduceError::Refused { place, cause },
            };
            done.tell(Err(error));
            return None;
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it is known by now that the topic was made again, with another number of shards.
    fn has_other_shards(&mut self, topic: &str) -> bool {
        let Way::Known { lanes, .. } = &self.way else { return false };
        // A sender that is gone tells nothing any more.
        if !self.topology.has_changed().unwrap_or(false) {
            return false;
        }
        let shards = self.topology.borrow_and_update().shards(topic);
        shards.is_some_and(|shards| shards as usize != lanes.len())
    }

    /// Nothing is known of the topic any more, and what is cached of it counts only if it is not `anew` that it is asked for. What
    /// was sent to it still finishes; what was not goes where it belongs by then.
    fn forget(&mut self, anew: bool) {
        let lanes = match &mut self.way {
            Way::Known { lanes, .. } => lanes,
            Way::Unknown { anew: is_anew, .. } => {
                *is_anew |= anew;
                return;
            }
        };
        let mut waiting = Vec::new();
        if self.former.len() < lanes.len() {
            self.former.resize(lanes.len(), None);
        }
        for (former, lane) in self.former.iter_mut().zip(lanes).filter(|(_, lane)| lane.is_some()) {
            *former = lane.take();
            let Some(lane) = former else { continue };
            waiting.extend(lane.take_queued());
            lane.close();
        }
        // As they came, so that those of one key stay in order, and the first is due first.
        waiting.sort_by_key(|pending| pending.deadline);
        // It has lingered already.
        self.hurried = !waiting.is_empty();
        self.way = Way::Unknown { waiting: waiting.into(), asking: false, anew };
    }
}

/// Finds the topic out: sends waiting records one by one to any server, until it is known; then the rest go their way.
async fn find_out(mut asking: Asking) {
    asking.routes.find_out().await;
    asking.is_done = true;
}

/// The task that finds out the topic. When it ends before it is done, with its runtime or in a panic, what waits is abandoned.
struct Asking {
    routes: Arc<Routes>,
    is_done: bool,
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let mut state = self.routes.state();
        let abandoned = match &mut state.way {
            Way::Unknown { waiting, asking, .. } => {
                *asking = false;
                std::mem::take(waiting)
            }
            Way::Known { .. } => VecDeque::new(),
        };
        drop(state);
        drop(abandoned);
    }
}

/// Puts a record into its lane, and begins one where there is none. A lane whose task has ended by itself is replaced.
fn push(
    context: &Arc<Context>,
    lanes: &mut [Option<Arc<Lane>>],
    former: &mut [Option<Arc<Lane>>],
    turn: &mut Turn,
    pending: Pending,
) -> Result<(), Box<(ProduceError, Pending)>> {
    let shards = u32::try_from(lanes.len()).expect("a topic has at most TOPIC_SHARDS_MAX shards");
    let queued_bytes =
        |shard: u32| lanes.get(shard as usize).and_then(Option::as_ref).map_or(0, |lane| lane.queued_bytes());
    let shard = match pending.shard {
        Some(shard) => shard,
        None if pending.record.key.is_empty() => turn.next(shards, queued_bytes, context.options.batch_bytes),
        None => shard_of_key(&pending.record.key, shards),
    };
    let Some(lane) = lanes.get_mut(shard as usize) else {
        return Err(Box::new((ProduceError::NoShard { topic: context.topic.clone(), shard, shards }, pending)));
    };
    let lane = lane.get_or_insert_with(|| {
        let former = former.get_mut(shard as usize).and_then(Option::take);
        Lane::start(context, shard, former)
    });
    if let Some(pending) = lane.push(pending) {
        // Where there is no runtime any more the record is abandoned.
        *lane = Lane::start(context, shard, None);
        drop(lane.push(pending));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By turns: another shard for each batch, the same one while a batch can grow.
    #[test]
    fn turns() {
        let mut turn = Turn { shard: 2, spread: Spread::Turns };
        assert_eq!(turn.next(3, |_| 0, 100), 0);
        assert_eq!(turn.next(3, |_| 10, 100), 0);
        assert_eq!(turn.next(3, |_| 99, 100), 0);
        assert_eq!(turn.next(3, |shard| if shard == 0 { 100 } else { 0 }, 100), 1);
        assert_eq!(turn.next(3, |_| 0, 100), 2);
        assert_eq!((Turn::new(7, 3, Spread::One).shard, Turn::new(7, 0, Spread::One).shard), (1, 0));
        let mut one = Turn { shard: 2, spread: Spread::One };
        assert!((0..9).all(|bytes| one.next(3, |_| bytes * 50, 100) == 2));
    }
}
