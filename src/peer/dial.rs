//! Connections that this side makes: at most one to each reactor of each node, dialled when somebody asks for it, once
//! for all who wait, and not again before a pause when it fails.
//!
//! The pause doubles from `PEER_BACKOFF_MIN` to `PEER_BACKOFF_MAX`, with jitter; who asks meanwhile is told at once.
//! It ends early when something new is known: another address in the book, the node died or came back
//! (`liveness`), the node has dialled us.

use std::{collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use futures_util::future::{Either, select};
use openraft::{AsyncRuntime, Instant as _};

use super::{Destination, Inner, PeerError, book::PeerNode, frame::Shared, liveness::Pulse};
use crate::{
    env::{
        self, Env,
        channel::{Notified, Notify},
        domain,
        net::{Connection, Endpoint, Net, NetError},
    },
    ids::{NodeId, ReactorNumber},
    limits,
};

type ConnectionOf<E> = <<E as Env>::Net as Net>::Connection;
type InstantOf<E> = <<E as Env>::Runtime as AsyncRuntime>::Instant;

/// Dials that one request waits for: the second, because the first may have been to an address of before.
const DIALS_PER_REQUEST: u32 = 2;

/// All links of one reactor.
pub(super) struct Links<E: Env> {
    table: BTreeMap<(NodeId, ReactorNumber), Link<E>>,
    /// Numbers connections and dials, so that the end of an old one is not taken for that of a new one.
    next: u64,
}

impl<E: Env> Default for Links<E> {
    fn default() -> Links<E> {
        Links { table: BTreeMap::new(), next: 0 }
    }
}

/// To one reactor of one node.
struct Link<E: Env> {
    endpoint: Endpoint,
    number: u64,
    state: State<E>,
    backoff: Backoff<E>,
    pulse: Arc<Pulse>,
}

enum State<E: Env> {
    Idle,
    Dialling(Notify),
    Connected { connection: ConnectionOf<E>, since: InstantOf<E> },
}

/// What was learned from failures.
struct Backoff<E: Env> {
    failures: u32,
    /// Not dialled again before.
    until: Option<InstantOf<E>>,
    cause: String,
    /// Of the pulse, when it failed.
    changes: u64,
}

impl<E: Env> Default for Backoff<E> {
    fn default() -> Backoff<E> {
        Backoff { failures: 0, until: None, cause: String::new(), changes: 0 }
    }
}

impl<E: Env> Backoff<E> {
    fn note_failure(&mut self, cause: String, changes: u64) {
        self.failures = self.failures.saturating_add(1);
        self.until = Some(InstantOf::<E>::now() + pause(self.failures, E::random_u64()));
        (self.cause, self.changes) = (cause, changes);
    }
}

/// The pause after so many failures: between a half and all of the doubled minimum, so that those who lost the same
/// node do not come back in step.
fn pause(failures: u32, random: u64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = (limits::PEER_BACKOFF_MIN * 2u32.pow(doublings)).min(limits::PEER_BACKOFF_MAX);
    let half_us = full.as_micros() as u64 / 2;
    Duration::from_micros(half_us + random % (half_us + 1))
}

impl<E: Env> Link<E> {
    fn close(&self, why: &str) {
        match &self.state {
            State::Idle => {}
            State::Dialling(waiting) => waiting.notify_all(),
            State::Connected { connection, since: _ } => connection.close(why),
        }
    }
}

impl<E: Env> Links<E> {
    /// Forgets all links; their connections end with the endpoint.
    pub(super) fn forget_all(&mut self) {
        for link in std::mem::take(&mut self.table).into_values() {
            link.close("the node is shutting down");
        }
    }

    /// Forgets a link to where the address book has the node no longer.
    fn forget_outdated(&mut self, key: (NodeId, ReactorNumber), there: &PeerNode) {
        let is_there = |at: &Endpoint| at.host == there.host && at.port == there.port_of(key.1);
        if self.table.get(&key).is_some_and(|link| !is_there(&link.endpoint))
            && let Some(link) = self.table.remove(&key)
        {
            link.close("the node has another address");
        }
    }

    fn forget_node(&mut self, node: NodeId) {
        let keys = self.table.range((node, ReactorNumber(0))..=(node, ReactorNumber(u32::MAX)));
        for key in keys.map(|(key, _)| *key).collect::<Vec<_>>() {
            if let Some(link) = self.table.remove(&key) {
                link.close("the node is not a member");
            }
        }
    }
}

/// What there is for a request right now.
pub(super) enum Look<E: Env> {
    /// A connection.
    Ready(ConnectionOf<E>, Shared),
    /// Somebody dials; look again then.
    Wait(Notified),
}

impl<E: Env> Inner<E> {
    /// A connection to there, dialling if needed.
    pub(super) async fn connection(self: &Rc<Self>, to: Destination) -> Result<(ConnectionOf<E>, Shared), PeerError> {
        for _ in 0..DIALS_PER_REQUEST {
            // Whoever asks, the links are everybody's.
            match domain::core(|| self.look(to))? {
                Look::Ready(connection, shared) => return Ok((connection, shared)),
                Look::Wait(dialled) => dialled.await,
            }
        }
        match domain::core(|| self.look(to))? {
            Look::Ready(connection, shared) => Ok((connection, shared)),
            Look::Wait(_) => Err(unreachable(to.node, "it was dialled in vain, and is dialled again")),
        }
    }

    /// A connection to there, if there is one; else one is dialled, unless that has failed a moment ago.
    pub(super) fn look(self: &Rc<Self>, to: Destination) -> Result<Look<E>, PeerError> {
        let node = to.node;
        if self.closed.get() {
            return Err(unreachable(node, "this node is shutting down"));
        }
        if self.net.is_none() || node == self.me {
            return Err(unreachable(node, "this node has no connection to it"));
        }
        let Some(there) = self.book.get(node) else {
            self.links.borrow_mut().forget_node(node);
            return Err(unreachable(node, "it is not a member of the cluster"));
        };
        let key = (node, there.reactor(to.slot));
        let lost = {
            let mut links = self.links.borrow_mut();
            links.forget_outdated(key, &there);
            match links.table.get(&key) {
                Some(link) => match &link.state {
                    State::Connected { connection, since: _ } if connection.is_closed() => Some(link.number),
                    State::Connected { connection, since: _ } => {
                        return Ok(Look::Ready(connection.clone(), self.shared(node, &link.pulse)));
                    }
                    State::Dialling(waiting) => return self.wait(node, &link.backoff, waiting),
                    State::Idle => None,
                },
                None => None,
            }
        };
        if let Some(number) = lost {
            self.note_lost(key, number, "it was closed");
        }
        self.dial(key, &there)
    }

    /// Waits for a dial; not for one to a node that is dead and could not be reached before: nobody may be there to say no.
    fn wait(&self, node: NodeId, backoff: &Backoff<E>, waiting: &Notify) -> Result<Look<E>, PeerError> {
        if backoff.failures > 0 && !self.liveness.is_alive(node) {
            return Err(unreachable(node, &format!("{}; it is being tried again", backoff.cause)));
        }
        Ok(Look::Wait(waiting.notified()))
    }

    /// Begins to dial, unless that has failed a moment ago.
    fn dial(self: &Rc<Self>, key: (NodeId, ReactorNumber), there: &PeerNode) -> Result<Look<E>, PeerError> {
        let endpoint = there.endpoint(key.1);
        let (node, mut links) = (key.0, self.links.borrow_mut());
        let number = links.next;
        links.next += 1;
        let link = links.table.entry(key).or_insert_with(|| Link {
            endpoint: endpoint.clone(),
            number,
            state: State::Idle,
            backoff: Backoff::default(),
            pulse: self.liveness.pulse(node),
        });
        if let Some(until) = link.backoff.until
            && InstantOf::<E>::now() < until
        {
            if link.backoff.changes == link.pulse.changes() || !self.liveness.is_alive(node) {
                return Err(unreachable(node, &format!("{}; it is tried again in a moment", link.backoff.cause)));
            }
            link.backoff = Backoff::default();
        }
        let waiting = Notify::new();
        let dialled = self.wait(node, &link.backoff, &waiting);
        link.number = number;
        link.state = State::Dialling(waiting);
        drop(links);
        env::spawn_core::<E>(run_dial(Rc::clone(self), key, endpoint, number));
        dialled
    }

    /// The outcome of a dial.
    fn note_dialled(
        self: &Rc<Self>,
        key: (NodeId, ReactorNumber),
        number: u64,
        outcome: Result<ConnectionOf<E>, String>,
    ) {
        let mut links = self.links.borrow_mut();
        let Some(link) = links.table.get_mut(&key).filter(|link| link.number == number) else {
            drop(links);
            // Nobody wants it any more.
            if let Ok(connection) = outcome {
                connection.close("it is not needed any more");
            }
            return;
        };
        let state = match outcome {
            Ok(connection) => {
                tracing::info!(node = %key.0, reactor = %key.1, from_reactor = %self.reactor, "connected");
                let watched = watch(Rc::clone(self), key, connection.clone(), number);
                env::spawn_core::<E>(watched);
                link.backoff.until = None;
                // Whoever has answered lives.
                link.pulse.beat();
                State::Connected { connection, since: InstantOf::<E>::now() }
            }
            Err(cause) => {
                link.backoff.note_failure(cause.clone(), link.pulse.changes());
                if link.backoff.failures == 1 {
                    tracing::info!(node = %key.0, reactor = %key.1, cause, "cannot be reached; it is tried again");
                }
                State::Idle
            }
        };
        let before = std::mem::replace(&mut link.state, state);
        drop(links);
        if let State::Dialling(waiting) = before {
            waiting.notify_all();
        }
    }

    /// A connection is over. One that lasted ends all pauses of before; one that did not counts as a failed dial.
    fn note_lost(&self, key: (NodeId, ReactorNumber), number: u64, cause: &str) {
        let mut links = self.links.borrow_mut();
        let Some(link) = links.table.get_mut(&key).filter(|link| link.number == number) else { return };
        let State::Connected { since, .. } = &link.state else { return };
        let lasted = InstantOf::<E>::now() - *since;
        if lasted < limits::PEER_SETTLED_AFTER {
            link.backoff.note_failure(cause.to_owned(), link.pulse.changes());
        } else {
            link.backoff = Backoff::default();
        }
        let before = std::mem::replace(&mut link.state, State::Idle);
        drop(links);
        drop(before);
        tracing::info!(node = %key.0, reactor = %key.1, cause, "connection lost");
    }

    /// The node has dialled us, so it is there: whoever asks for it next dials at once.
    pub(super) fn note_reachable(&self, node: NodeId) {
        let mut links = self.links.borrow_mut();
        for (_, link) in links.table.range_mut((node, ReactorNumber(0))..=(node, ReactorNumber(u32::MAX))) {
            link.backoff = Backoff::default();
        }
    }
}

async fn run_dial<E: Env>(inner: Rc<Inner<E>>, key: (NodeId, ReactorNumber), endpoint: Endpoint, number: u64) {
    let ending = inner.ending.notified();
    let net = inner.net.clone().expect("only those with a network dial");
    let within = limits::PEER_DIAL_MAX;
    let dialled = Box::pin(E::Runtime::timeout(within, net.connect(endpoint.clone())));
    let outcome = match select(dialled, ending).await {
        Either::Left((Ok(outcome), _)) => outcome.map_err(|error: NetError| {
            if let NetError::NotMember { to, .. } = &error {
                inner.book.note_expelled(to.node);
            }
            error.to_string()
        }),
        Either::Left((Err(_), _)) => Err(format!("{endpoint} does not answer within {within:?}")),
        Either::Right(_) => return,
    };
    inner.note_dialled(key, number, outcome);
}

/// Forgets a connection when it is over.
async fn watch<E: Env>(inner: Rc<Inner<E>>, key: (NodeId, ReactorNumber), connection: ConnectionOf<E>, number: u64) {
    let cause = connection.closed().await;
    inner.note_lost(key, number, &cause.to_string());
}

fn unreachable(node: NodeId, cause: &str) -> PeerError {
    PeerError::Unreachable { node, cause: cause.to_owned() }
}

#[cfg(test)]
impl<E: Env> Inner<E> {
    /// As if that many dials had just failed.
    pub(super) fn fail_for_test(self: &Rc<Self>, key: (NodeId, ReactorNumber), failures: u32) {
        let mut links = self.links.borrow_mut();
        let link = links.table.get_mut(&key).expect("it was dialled before");
        link.backoff.failures = failures - 1;
        link.backoff.note_failure("on purpose".to_owned(), link.pulse.changes());
        link.backoff.until = Some(InstantOf::<E>::now() + Duration::from_secs(3_600));
        link.state = State::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pauses grow from the minimum to the maximum, never beyond, and are at least half of it.
    #[test]
    fn pauses() {
        for (failures, full_ms) in [(1, 20), (2, 40), (5, 320), (6, 640), (7, 1_000), (40, 1_000), (u32::MAX, 1_000)] {
            let full = Duration::from_millis(full_ms);
            assert_eq!(pause(failures, 0), full / 2);
            assert_eq!(pause(failures, full.as_micros() as u64 / 2), full);
            assert!((0..1_000).map(|n| pause(failures, n * 7_919)).all(|pause| pause >= full / 2 && pause <= full));
        }
    }
}
