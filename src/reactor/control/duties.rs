//! What a reactor does for the shards that it leads: their members become what the catalog wants, and their leadership goes
//! where the catalog prefers it.
//!
//! Again and again, from what is there now; a few shards at a time. A change that another leader began is finished by this
//! one. Nothing here is needed for a record to be safe.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    future::Future,
    rc::Rc,
    sync::PoisonError,
    time::Duration,
};

use openraft::AsyncRuntime;
use tokio::sync::oneshot;

use super::{Control, ControlError, Proposed};
use crate::{
    catalog::Replicas,
    env::{self, Env},
    ids::{NodeId, ReactorNumber, ShardUid, is_most},
    proto::ringlog::state::v1::{FinishMove, catalog_command::Command},
    reactor::{Reactor, mailbox::Request, node::Phase},
    shard::Shard,
};

/// How often a reactor looks at its shards.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Shards of one reactor whose members change at the same time: each new replica copies a whole log.
const CHANGES_AT_ONCE: usize = 4;

/// After this long a change of members is begun again, from what is wanted then: it may wait for a node that has died, and
/// another is to take its place. (What has been copied to a new replica stays.)
const CHANGE_MAX: Duration = Duration::from_secs(2);

/// How long a shard stays where it is after a change of leaders: after an election the old leader may still be catching up.
const SETTLE: Duration = Duration::from_secs(3);

/// How long a shard stays where it is after its preferred leader has not taken over: each try costs its producers a moment.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// Longest wait for a preferred leader to take over.
pub(super) const TRANSFER_MAX: Duration = Duration::from_secs(2);

/// Looks after the shards that `reactor` leads, until the node drains.
pub async fn look_after<E: Env>(reactor: Rc<Reactor<E>>) {
    let busy: Rc<RefCell<BTreeSet<ShardUid>>> = Rc::default();
    let mut led: BTreeMap<ShardUid, u64> = BTreeMap::new();
    // The shard that had its turn last.
    let mut last = ShardUid(0);
    // Shards whose preferred leader has not taken over, and until when it is not asked again.
    let refused: Rc<RefCell<BTreeMap<ShardUid, u64>>> = Rc::default();
    while reactor.node().phase() < Phase::Leaving {
        env::sleep::<E>(LOOK_INTERVAL).await;
        let now_us = E::monotonic_us();
        let topics = reactor.node().topics.snapshot();
        let mut still_led = BTreeMap::new();
        let mut unled = BTreeSet::new();
        let mut due = BTreeMap::new();
        for topic in topics.values() {
            for (place, replicas) in topic.shards.iter().zip(&topic.view.replicas) {
                if place.reactor != reactor.number() || !place.here {
                    continue;
                }
                let Ok(shard) = reactor.shard(place.uid) else { continue };
                // Whoever leads next sees the same: a panic stops the replica that is looked at, and nothing else.
                let look = || (reactor.hears_most(&shard), reactor.is_led(&shard), shard.leads());
                let Ok((hears_most, is_led, leads)) = shard.domain().catch(look) else { continue };
                reactor.node().leaders.note_majority(place.uid, hears_most);
                if !is_led {
                    unled.insert(place.uid);
                }
                if !leads {
                    continue;
                }
                let since_us = led.get(&place.uid).copied().unwrap_or(now_us);
                still_led.insert(place.uid, since_us);
                if busy.borrow().len() >= CHANGES_AT_ONCE || busy.borrow().contains(&place.uid) {
                    continue;
                }
                let again_us = refused.borrow().get(&place.uid).copied().unwrap_or(0);
                let settled = now_us.saturating_sub(since_us) > SETTLE.as_micros() as u64 && now_us >= again_us;
                if !matches!(shard.domain().catch(|| is_due(&reactor, &shard, replicas, settled)), Ok(true)) {
                    continue;
                }
                due.insert(place.uid, (shard, replicas.clone(), settled));
            }
        }
        let free = CHANGES_AT_ONCE - busy.borrow().len();
        for uid in next_turns(due.keys(), last, free) {
            last = uid;
            busy.borrow_mut().insert(uid);
            let (reactor, busy, refused) = (reactor.clone(), busy.clone(), Rc::clone(&refused));
            let (shard, replicas, settled) = due.remove(&uid).expect("it is due");
            env::spawn::<E>(async move {
                let tended = shard.domain().contain(tend(&reactor, uid, &shard, &replicas, settled)).await;
                if matches!(tended, Ok(false)) {
                    refused.borrow_mut().insert(uid, E::monotonic_us() + TRY_AGAIN.as_micros() as u64);
                }
                busy.borrow_mut().remove(&uid);
            });
        }
        refused.borrow_mut().retain(|uid, _| still_led.contains_key(uid));
        led = still_led;
        let view = &reactor.node().reactors[reactor.number().0 as usize];
        *view.unled.lock().unwrap_or_else(PoisonError::into_inner) = unled;
    }
}

/// Up to `free` of what is due, beginning behind the one that had its turn last: what cannot be done yet, and stays due, keeps the others
/// waiting for one round.
fn next_turns<'a>(due: impl Iterator<Item = &'a ShardUid>, last: ShardUid, free: usize) -> Vec<ShardUid> {
    let mut due: Vec<ShardUid> = due.copied().collect();
    due.sort_by_key(|uid| (*uid <= last, *uid));
    due.truncate(free);
    due
}

/// Whether there is something to do for a shard that leads here.
fn is_due<E: Env>(reactor: &Reactor<E>, shard: &Shard<E>, replicas: &Replicas, settled: bool) -> bool {
    let members = shard.members();
    let wanted: BTreeSet<NodeId> = goal(replicas).iter().copied().collect();
    members.voters != wanted
        || !members.learners.is_empty()
        || members.changing
        || !replicas.target.is_empty()
        || (settled && preferred(reactor, shard, replicas).is_some())
}

/// Where the replicas are to be.
fn goal(replicas: &Replicas) -> &[NodeId] {
    if replicas.target.is_empty() { &replicas.nodes } else { &replicas.target }
}

/// The node that is to lead instead of this one, if it can now.
fn preferred<E: Env>(reactor: &Reactor<E>, shard: &Shard<E>, replicas: &Replicas) -> Option<NodeId> {
    let node = reactor.node();
    let me = node.identity()?.node;
    let first = goal(replicas).first().copied().filter(|first| *first != me)?;
    let is_able = node.liveness.is_alive(first) && !node.is_leaving(first) && shard.members().voters.contains(&first);
    // It would have to catch up first, and nobody could write meanwhile.
    let lag = shard.lag_of(first)?;
    (is_able && lag <= TRANSFER_LAG_MAX && shard.is_well(first)).then_some(first)
}

/// Entries that a follower may be behind when it is asked to lead.
const TRANSFER_LAG_MAX: u64 = 64;

/// Does what is due for a shard that leads here; false when the preferred leader has not taken over.
async fn tend<E: Env>(
    reactor: &Rc<Reactor<E>>,
    uid: ShardUid,
    shard: &Shard<E>,
    replicas: &Replicas,
    settled: bool,
) -> bool {
    let wanted: BTreeSet<NodeId> = goal(replicas).iter().copied().collect();
    let members = shard.members();
    if members.voters != wanted || members.changing || !members.learners.is_empty() {
        if !members.changing && !are_most_alive(reactor, &wanted) {
            return true;
        }
        if let Err(error) = soon::<E, _>(shard.change_members(wanted.clone())).await {
            tracing::debug!(shard_uid = uid.0, error, "a shard's members were not changed yet; it is tried again");
            return true;
        }
        tracing::info!(shard_uid = uid.0, members = ?wanted.iter().map(|node| node.0).collect::<Vec<_>>(), "members changed");
    }
    if !replicas.target.is_empty() && shard.members().voters == wanted && !shard.members().changing {
        let node_ids = replicas.target.iter().map(|node| node.0).collect();
        let finish = Command::FinishMove(FinishMove { shard_uid: uid.0, node_ids });
        if let Err(error) = propose(reactor, finish).await {
            tracing::debug!(shard_uid = uid.0, %error, "the end of a move was not noted yet; it is tried again");
        }
        return true;
    }
    let Some(to) = preferred(reactor, shard, replicas).filter(|_| settled) else { return true };
    match shard.transfer(Some(to), TRANSFER_MAX).await {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(shard_uid = uid.0, to = to.0, %error, "the preferred leader did not take over; it is tried again");
            false
        }
    }
}

/// Whether most of these nodes are alive: the others alone could neither end the change nor write anything after it.
fn are_most_alive<E: Env>(reactor: &Reactor<E>, voters: &BTreeSet<NodeId>) -> bool {
    let node = reactor.node();
    let me = node.identity().map(|identity| identity.node);
    is_most(voters, |voter| Some(*voter) == me || node.liveness.is_alive(*voter))
}

/// What a change of a group's members comes to within `CHANGE_MAX`, or why it was left alone.
pub(super) async fn soon<E: Env, X: Display>(change: impl Future<Output = Result<(), X>>) -> Result<(), String> {
    match E::Runtime::timeout(CHANGE_MAX, change).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("it takes long: is a node that it waits for down?".to_owned()),
    }
}

/// Has reactor 0 propose a command to the catalog.
async fn propose<E: Env>(reactor: &Rc<Reactor<E>>, command: Command) -> Result<Proposed, ControlError> {
    let (reply, answer) = oneshot::channel();
    let sent = reactor.node().send(ReactorNumber(0), Request::Propose { command, reply });
    sent.map_err(ControlError::Shards)?;
    answer.await.unwrap_or(Err(ControlError::Busy))
}

impl<E: Env> Control<E> {
    /// Hands the leadership of the catalog to another voter, if this node has it.
    pub async fn leave(&self) {
        if self.inner.catalog.leads()
            && self.inner.catalog.members().voters.len() > 1
            && let Err(error) = self.inner.catalog.transfer(None, TRANSFER_MAX).await
        {
            tracing::warn!(%error, "nobody took over the catalog; the others elect a leader when this node is gone");
        }
    }
}

/// Hands the leadership of all shards of this reactor to other replicas, a few at a time.
pub async fn leave<E: Env>(reactor: &Rc<Reactor<E>>) {
    use futures_util::{StreamExt, stream};
    let leading =
        reactor.open_shards().into_iter().filter(|(_, shard)| shard.leads() && shard.members().voters.len() > 1);
    let transfers = stream::iter(leading).map(|(uid, shard)| async move {
        if let Err(error) = shard.transfer(None, TRANSFER_MAX).await {
            tracing::warn!(shard_uid = uid.0, %error, "nobody took over; the others elect a leader when this node is gone");
        }
    });
    transfers.buffer_unordered(LEAVE_AT_ONCE).collect::<()>().await;
}

/// Shards of one reactor that are handed over at the same time.
pub(super) const LEAVE_AT_ONCE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes that never end do not keep the others waiting: each has its turn in a few rounds.
    #[test]
    fn turns() {
        let due: Vec<ShardUid> = (1..=6).map(ShardUid).collect();
        let next =
            |last, free| next_turns(due.iter(), ShardUid(last), free).iter().map(|uid| uid.0).collect::<Vec<_>>();
        assert_eq!(next(0, 4), [1, 2, 3, 4]);
        assert_eq!(next(4, 4), [5, 6, 1, 2]);
        assert_eq!(next(6, 0), [0; 0]);
        assert_eq!(next(9, 2), [1, 2]);
    }
}
