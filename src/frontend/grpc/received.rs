//! Memory for what clients send: messages that have come in part, and those of producing streams that wait for room.
//!
//! What was not read is bounded by HTTP/2's windows, and for all connections together in `unread`. A message takes its bytes out
//! of them before it is whole, or it could be no larger than they are, and a client may leave thousands unfinished: so all
//! connections of a reactor share half of what its budget has for clients, and each may hold half of what the others have left.
//! Above that its messages are refused, and there is always some for the next connection. A stream whose requests only wait is
//! not read meanwhile: what waits takes half of the connection's share, and what is behind it stays in the windows.
//!
//! Whoever leaves messages unfinished for long makes room: once no connection could have a message of the largest size any more,
//! the next one that finds no room has the connection closed that holds most of what is unfinished for long.

use std::cell::Cell;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use crate::budget::Budget;
use crate::budget::Charge;
use crate::budget::Class;
use crate::budget::NoRoom;
use crate::budget::Use;
use crate::env::Env;
use crate::env::channel::Notified;
use crate::env::channel::Notify;
use crate::frontend::grpc::holders::Holder;
use crate::frontend::grpc::holders::Holders;
use crate::frontend::grpc::holders::Since;
use crate::frontend::grpc::inflate::Inflater;
use crate::frontend::grpc::inflate::Large;
use crate::frontend::grpc::unread::AllUnread;
use crate::frontend::grpc::unread::UnreadBytes;
use crate::limits;

/// What all connections of a reactor hold.
#[derive(Default)]
pub struct Pool {
    budget: Budget,
    /// The sum over all connections.
    held: Cell<usize>,
    /// Of unfinished messages.
    holders: Rc<Holders>,
    unread: Rc<AllUnread>,
    large: Large,
}

impl Pool {
    /// Takes all of it from `budget`.
    pub fn new(budget: Budget) -> Pool {
        Pool { budget, ..Pool::default() }
    }

    /// With so much that may be unread.
    #[cfg(test)]
    pub(super) fn with_unread(bytes_max: usize) -> Pool {
        Pool { unread: Rc::new(AllUnread::new(bytes_max)), ..Pool::default() }
    }
}

/// What one connection has received. Clones are the same.
#[derive(Clone)]
pub(super) struct Received(Rc<Connection>);

struct Connection {
    pool: Rc<Pool>,
    unread: UnreadBytes,
    /// Of messages that wait.
    waiting: Cell<usize>,
    /// Of the others.
    unfinished: Holder,
    /// Something waits no more.
    passed_on: Notify,
    /// Messages that calls have taken since they were counted last.
    taken: Cell<usize>,
    inflater: Inflater,
}

/// What one message holds, in part or while it waits; given back when it is dropped.
pub(super) struct Held {
    connection: Rc<Connection>,
    charge: Charge,
    since: Since,
    waits: bool,
}

impl Received {
    /// Of a new connection.
    pub(super) fn new<E: Env>(pool: &Rc<Pool>) -> Received {
        Received(Rc::new(Connection {
            pool: Rc::clone(pool),
            unread: UnreadBytes::new(&pool.unread),
            waiting: Cell::new(0),
            unfinished: Holder::new::<E>(&pool.holders),
            passed_on: Notify::new(),
            taken: Cell::new(0),
            inflater: Inflater::new(&pool.large),
        }))
    }

    /// What inflates the connection's messages.
    pub(super) fn inflater(&self) -> &Inflater {
        &self.0.inflater
    }

    /// What counts the unread bytes of the connection.
    pub(super) fn unread(&self) -> &UnreadBytes {
        &self.0.unread
    }

    /// A call has taken a message.
    pub(super) fn note_taken(&self) {
        self.0.taken.set(self.0.taken.get() + 1);
    }

    /// How many messages calls have taken since this was asked last.
    pub(super) fn count_taken(&self) -> usize {
        self.0.taken.take()
    }

    /// Of a message that is to come.
    pub(super) fn none(&self) -> Held {
        let charge = self.0.pool.budget.none(Use::Received);
        Held { connection: Rc::clone(&self.0), charge, since: Since::default(), waits: false }
    }

    /// Of a whole message of `bytes` that waits.
    ///
    /// # Errors
    /// `NoRoom`: the connection holds too much, or all of them.
    pub(super) fn waiting(&self, bytes: usize) -> Result<Held, NoRoom> {
        let mut held = self.none();
        held.waits = true;
        held.resize(bytes)?;
        Ok(held)
    }

    /// Whether the connection has to be closed. Sets who is woken when it has to be later.
    pub(super) fn is_evicted(&self, waker: &Waker) -> bool {
        self.0.unfinished.is_evicted(waker)
    }

    /// Pending as long as so much waits that streams of this connection are not read; woken when it does no more. `waits` is
    /// the stream's.
    pub(super) fn poll_full(&self, waits: &mut Option<Notified>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.passed_on.poll_while(waits, || self.0.is_full(), cx)
    }
}

impl Connection {
    fn is_full(&self) -> bool {
        self.waiting.get() > 0 && self.waiting.get() >= self.share() / 2
    }

    fn held(&self) -> usize {
        self.waiting.get() + self.unfinished.held()
    }

    fn share(&self) -> usize {
        let all = self.pool.budget.limit(Class::Client) / 2;
        let others = self.pool.held.get() - self.held();
        (all.saturating_sub(others) / 2).max(limits::RECEIVED_BYTES_MIN)
    }

    /// Has somebody make room if there is none for a message of the largest size.
    fn make_room(&self) {
        if self.share() < limits::MESSAGE_BYTES_MAX {
            self.unfinished.evict(limits::RECEIVED_BYTES_MIN);
        }
    }
}

impl Held {
    /// What it stands for.
    pub(super) fn bytes(&self) -> usize {
        self.charge.bytes()
    }

    /// Makes it `bytes`.
    ///
    /// # Errors
    /// `NoRoom`: the connection would hold too much, or all of them. It is as it was.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let (connection, before) = (&self.connection, self.charge.bytes());
        if bytes > before && connection.held() - before + bytes > connection.share() {
            connection.make_room();
            return Err(NoRoom { wanted: bytes - before });
        }
        self.charge.resize(Class::Client, bytes)?;
        let changed = |cell: &Cell<usize>| cell.set(cell.get() - before + bytes);
        changed(&connection.pool.held);
        if self.waits {
            changed(&connection.waiting);
            if !connection.is_full() {
                connection.passed_on.notify_all();
            }
        } else {
            connection.unfinished.change(&mut self.since, before, bytes);
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.resize(0).expect("less always finds room");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env;
    use crate::env::real::RealEnv;
    use crate::sim::SimEnv;
    use crate::sim::SimRuntime;

    const MESSAGE: usize = limits::MESSAGE_BYTES_MAX;

    fn pool() -> Rc<Pool> {
        Rc::new(Pool::new(Budget::default()))
    }

    /// Connections that leave messages unfinished, in pieces of any size, have half of what there is for clients, and each new one
    /// still receives small messages.
    #[test]
    fn greedy_connections() {
        let pool = pool();
        let mut held = Vec::new();
        for piece in [MESSAGE, 100_000, 5_000, 1_000].into_iter().cycle().take(limits::CONNECTIONS_MAX) {
            let connection = Received::new::<RealEnv>(&pool);
            let before = held.len();
            loop {
                let mut message = connection.none();
                if message.resize(piece).is_err() {
                    break;
                }
                held.push(message);
            }
            assert!(piece > limits::RECEIVED_BYTES_MIN || held.len() > before);
        }
        let least = limits::CONNECTIONS_MAX * limits::RECEIVED_BYTES_MIN;
        let client = pool.budget.limit(Class::Client);
        assert!(pool.held.get() <= client / 2 + least && pool.held.get() + 2 * MESSAGE < client);
        drop(held);
        assert_eq!((pool.held.get(), pool.budget.used()), (0, 0));
    }

    /// What waits fills half of a connection's share, and then no more is read until something was passed on.
    #[test]
    fn waiting_ones() {
        let (pool, mut messages) = (pool(), Vec::new());
        let connection = Received::new::<RealEnv>(&pool);
        while !connection.0.is_full() {
            messages.push(connection.waiting(MESSAGE).unwrap());
        }
        let half = pool.budget.limit(Class::Client) / 8;
        assert!((half..half + MESSAGE).contains(&connection.0.waiting.get()));
        let mut in_part = connection.none();
        in_part.resize(MESSAGE).unwrap();
        messages.pop();
        assert!(!connection.0.is_full() && !Received::new::<RealEnv>(&pool).0.is_full());
    }

    /// Connections that leave large messages unfinished make room for others, one after the other, however they trickle; not those
    /// whose messages are new, or wait for us.
    #[test]
    fn unfinished_messages_make_room() {
        SimRuntime::seeded(1).block_on(async {
            let pool = pool();
            let connection = || Received::new::<SimEnv>(&pool);
            let (waits, slow, good) = (connection(), connection(), connection());
            let _waits = waits.waiting(2 * MESSAGE).unwrap();
            let mut of_slow = slow.none();
            of_slow.resize(limits::RECEIVED_BYTES_MIN).unwrap();
            let mut greedy: Vec<(Received, Vec<Held>)> = (0..16).map(|_| (connection(), Vec::new())).collect();
            for (connection, held) in &mut greedy {
                for bytes in [MESSAGE - 10, 100_000, 5_000].into_iter().flat_map(|bytes| [bytes; 16]) {
                    let mut message = connection.none();
                    if message.resize(bytes).is_ok() {
                        held.push(message);
                    }
                }
            }
            let refused = |bytes| good.none().resize(bytes).is_err();
            assert!(refused(100_000));
            let mut after_s = 0;
            while refused(MESSAGE) {
                for (connection, held) in &mut greedy {
                    for message in held.iter_mut() {
                        let _ = message.resize(message.bytes() + 1);
                    }
                    if connection.is_evicted(Waker::noop()) {
                        held.clear();
                    }
                }
                greedy.retain(|(connection, _)| !connection.is_evicted(Waker::noop()));
                env::sleep::<SimEnv>(std::time::Duration::from_secs(1)).await;
                after_s += 1;
                assert!(after_s <= 20, "nobody makes room");
            }
            assert!(after_s >= 5 && greedy.len() >= 12, "{} are left after {after_s} s", greedy.len());
            assert!(![waits, slow, good].iter().any(|connection| connection.is_evicted(Waker::noop())));
        });
    }
}
