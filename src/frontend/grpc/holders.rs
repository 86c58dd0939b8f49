//! Who holds memory for long: the connections of a reactor, how much each of them holds since when, and which of them has to go
//! when the memory is wanted.
//!
//! Age is that of what is held (one answer, one message), not the time since the connection did anything: a client that trickles
//! one stream, or uses one and lets a thousand others wait, holds what it holds. It is told in periods: what is *old* has been
//! held for one whole period at least, and for two at most before it counts as that.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::rc::Weak;
use std::task::Waker;

use crate::env::Env;

/// Old is what is held for 5 to 10 s: far longer than a client needs for the largest message that reads, or sends, at all.
const PERIOD_US: u64 = 5_000_000;

/// The least time from one look for a connection that has to go to the next: thousands may ask for memory.
const EVICT_PAUSE_US: u64 = 250_000;

/// The connections of a reactor that hold memory of one kind.
#[derive(Default)]
pub(super) struct Holders {
    /// Of all of them.
    young: Young,
    connections: RefCell<BTreeMap<u64, Weak<Connection>>>,
    next_number: Cell<u64>,
    /// When it was last looked for a connection that has to go.
    looked_us: Cell<u64>,
}

/// What one connection holds.
pub(super) struct Holder(Rc<Connection>);

struct Connection {
    holders: Rc<Holders>,
    number: u64,
    held: Cell<usize>,
    young: Young,
    now_us: fn() -> u64,
    is_evicted: Cell<bool>,
    waker: RefCell<Waker>,
}

/// The period since when something is held.
#[derive(Clone, Copy, Default)]
pub(super) struct Since(u64);

impl Since {
    fn at(now_us: u64) -> Since {
        Since(now_us / PERIOD_US)
    }
}

/// The sum of what is held and not old.
#[derive(Default)]
struct Young {
    /// Of `bytes[0]`; `bytes[1]` is the sum of the period before.
    period: Cell<u64>,
    bytes: [Cell<usize>; 2],
}

impl Young {
    fn bytes(&self, now: Since) -> usize {
        let [current, previous] = &self.bytes;
        match now.0 - self.period.get() {
            0 => {}
            1 => previous.set(current.take()),
            _ => self.bytes.iter().for_each(|bytes| bytes.set(0)),
        }
        self.period.set(now.0);
        current.get() + previous.get()
    }

    /// Of what is held since `since`, `before` bytes are `after` now. Nothing, if that is old.
    fn change(&self, since: Since, before: usize, after: usize) {
        if let Some(bytes) = self.bytes.get((self.period.get() - since.0) as usize) {
            bytes.set(bytes.get() - before + after);
        }
    }
}

impl Holder {
    /// Of a new connection.
    pub(super) fn new<E: Env>(holders: &Rc<Holders>) -> Holder {
        let number = holders.next_number.get();
        holders.next_number.set(number + 1);
        let connection = Rc::new(Connection {
            holders: Rc::clone(holders),
            number,
            held: Cell::new(0),
            young: Young::default(),
            now_us: E::monotonic_us,
            is_evicted: Cell::new(false),
            waker: RefCell::new(Waker::noop().clone()),
        });
        holders.connections.borrow_mut().insert(number, Rc::downgrade(&connection));
        Holder(connection)
    }

    /// What the connection holds.
    pub(super) fn held(&self) -> usize {
        self.0.held.get()
    }

    /// Counts one thing that is held: its `before` bytes are `after` now. `since` is its own; it begins anew with the first bytes,
    /// and when some of them are gone.
    pub(super) fn change(&self, since: &mut Since, before: usize, after: usize) {
        if after == before {
            return;
        }
        let sums = [&self.0.young, &self.0.holders.young];
        if after > before && before > 0 {
            sums.iter().for_each(|young| young.change(*since, before, after));
        } else {
            sums.iter().for_each(|young| young.change(*since, before, 0));
            if after > 0 {
                *since = Since::at(self.now_us());
                for young in sums {
                    young.bytes(*since);
                    young.change(*since, 0, after);
                }
            }
        }
        self.0.held.set(self.0.held.get() - before + after);
    }

    /// What the other connections hold, without what is old.
    pub(super) fn young_of_others(&self) -> usize {
        let now = Since::at(self.now_us());
        self.0.holders.young.bytes(now) - self.0.young.bytes(now)
    }

    /// Has the connection closed, this one or another, that holds most of what is old, if that is more than `than` bytes.
    pub(super) fn evict(&self, than: usize) {
        self.0.holders.evict(than, self.now_us());
    }

    /// Whether the connection has to be closed. Sets who is woken when it has to be later.
    pub(super) fn is_evicted(&self, waker: &Waker) -> bool {
        self.0.waker.borrow_mut().clone_from(waker);
        self.0.is_evicted.get()
    }

    /// Has this connection closed.
    #[cfg(test)]
    pub(super) fn evict_this(&self) {
        self.0.is_evicted.set(true);
        self.0.waker.borrow().wake_by_ref();
    }

    /// The time of its environment.
    pub(super) fn now_us(&self) -> u64 {
        (self.0.now_us)()
    }
}

impl Holders {
    /// Whether no connection is left.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty()
    }

    fn evict(&self, than: usize, now_us: u64) {
        if now_us.saturating_sub(self.looked_us.get()) < EVICT_PAUSE_US {
            return;
        }
        self.looked_us.set(now_us);
        let connections = self.connections.borrow();
        let held = || connections.values().filter_map(Weak::upgrade);
        if held().any(|connection| connection.is_evicted.get()) {
            return;
        }
        let old = |connection: &Connection| connection.held.get() - connection.young.bytes(Since::at(now_us));
        let Some(most) = held().max_by_key(|connection| old(connection)) else { return };
        if old(&most) > than {
            most.is_evicted.set(true);
            most.waker.borrow().wake_by_ref();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.holders.connections.borrow_mut().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimEnv;
    use crate::sim::SimRuntime;

    /// What is held is young for one period at least and for two at most, however it grows; it begins anew when some of it is gone.
    #[test]
    fn ages() {
        SimRuntime::seeded(1).block_on(async {
            let holders = Rc::<Holders>::default();
            let [first, second] = [(); 2].map(|()| Holder::new::<SimEnv>(&holders));
            let pause = async |periods: u64| {
                crate::env::sleep::<SimEnv>(std::time::Duration::from_micros(periods * PERIOD_US)).await;
            };
            let (mut grows, mut shrinks, mut stays) = (Since::default(), Since::default(), Since::default());
            first.change(&mut grows, 0, 100);
            first.change(&mut shrinks, 0, 50);
            second.change(&mut stays, 0, 7);
            assert_eq!((second.young_of_others(), first.young_of_others()), (150, 7));
            pause(1).await;
            first.change(&mut grows, 100, 130);
            first.change(&mut shrinks, 50, 40);
            assert_eq!((second.young_of_others(), first.young_of_others()), (170, 7));
            pause(1).await;
            first.change(&mut grows, 130, 200);
            assert_eq!((second.young_of_others(), first.young_of_others()), (40, 0));
            pause(1).await;
            first.change(&mut shrinks, 40, 41);
            assert_eq!((second.young_of_others(), first.held(), second.held()), (0, 241, 7));
            first.change(&mut grows, 200, 0);
            first.change(&mut shrinks, 41, 0);
            second.change(&mut stays, 7, 8);
            first.change(&mut grows, 0, 3);
            assert_eq!((second.young_of_others(), first.young_of_others()), (3, 0));
            assert_eq!((first.held(), second.held()), (3, 8));
        });
    }

    /// The connection goes that holds most of what is old, one at a time, and none for what is not worth it.
    #[test]
    fn who_goes() {
        SimRuntime::seeded(1).block_on(async {
            let holders = Rc::<Holders>::default();
            let [much, more, young, asks] = [(); 4].map(|()| Holder::new::<SimEnv>(&holders));
            let wait = async |us| crate::env::sleep::<SimEnv>(std::time::Duration::from_micros(us)).await;
            let (mut of_much, mut of_more, mut of_young) = (Since::default(), Since::default(), Since::default());
            much.change(&mut of_much, 0, 100);
            more.change(&mut of_more, 0, 101);
            wait(2 * PERIOD_US).await;
            young.change(&mut of_young, 0, 1_000);
            let evicted = || [&much, &more, &young, &asks].map(|holder| holder.is_evicted(Waker::noop()));
            asks.evict(101);
            assert_eq!(evicted(), [false; 4]);
            wait(EVICT_PAUSE_US).await;
            asks.evict(100);
            assert_eq!(evicted(), [false, true, false, false]);
            wait(EVICT_PAUSE_US).await;
            asks.evict(0);
            assert_eq!(evicted(), [false, true, false, false], "it has not gone yet");
            more.change(&mut of_more, 101, 0);
            drop(more);
            asks.evict(0);
            assert!(!much.is_evicted(Waker::noop()), "too soon");
            wait(EVICT_PAUSE_US).await;
            asks.evict(0);
            assert!(much.is_evicted(Waker::noop()) && !young.is_evicted(Waker::noop()));
        });
    }
}
