//! The client connections of a reactor, and which of them go when their descriptors are wanted for replicas that were not here when
//! they came (`descriptors`).
//!
//! Whoever asks for nothing goes first, the longest idle before the others; then those that have calls, the oldest before the
//! others: who has just come to make a topic, and so has them go, is the last. A connection that has to go is told (GOAWAY), and
//! cut `limits::SEAT_GRACE` later.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use crate::{env::channel::Notify, reactor::listen::Connections};

/// All connections of a reactor.
#[derive(Default)]
pub struct Seats {
    connections: Arc<Connections>,
    taken: RefCell<BTreeMap<u64, Weak<Taken>>>,
    next_number: Cell<u64>,
}

/// One connection's place among them, until it is dropped. Clones are handles to the same.
#[derive(Clone)]
pub struct Seat(Rc<Taken>);

struct Taken {
    seats: Rc<Seats>,
    number: u64,
    /// When its last call ended, or it began; `None`: it has calls.
    idle_since_us: Cell<Option<u64>>,
    has_to_go: Cell<bool>,
    changed: Notify,
}

impl Seats {
    /// Those of a reactor that are counted by `connections`.
    pub fn new(connections: Arc<Connections>) -> Rc<Seats> {
        Rc::new(Seats { connections, ..Seats::default() })
    }

    /// What counts them, for other threads.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// A new connection's seat.
    pub fn take(self: &Rc<Self>, now_us: u64) -> Seat {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        let taken = Rc::new(Taken {
            seats: Rc::clone(self),
            number,
            idle_since_us: Cell::new(Some(now_us)),
            has_to_go: Cell::new(false),
            changed: Notify::new(),
        });
        self.taken.borrow_mut().insert(number, Rc::downgrade(&taken));
        Seat(taken)
    }

    /// Connections that need not go.
    pub fn staying(&self) -> usize {
        self.taken.borrow().values().filter_map(Weak::upgrade).filter(|taken| !taken.has_to_go.get()).count()
    }

    /// Has so many connections go, or all that there are.
    pub fn dismiss(&self, count: usize) {
        if count == 0 {
            return;
        }
        let mut staying: Vec<_> = self.taken.borrow().values().filter_map(Weak::upgrade).collect();
        staying.retain(|taken| !taken.has_to_go.get());
        // Those with calls last.
        staying.sort_by_key(|taken| (taken.idle_since_us.get().unwrap_or(u64::MAX), taken.number));
        for taken in staying.iter().take(count) {
            taken.has_to_go.set(true);
            self.connections.leaving.fetch_add(1, Relaxed);
            taken.changed.notify_all();
        }
    }
}

impl Seat {
    /// Notes whether the connection has calls; `now_us` is asked when it has none any more.
    pub fn note_calls(&self, calls: usize, now_us: fn() -> u64) {
        let idle_since_us = &self.0.idle_since_us;
        match (calls, idle_since_us.get()) {
            (0, None) => idle_since_us.set(Some(now_us())),
            (1.., Some(_)) => idle_since_us.set(None),
            _ => {}
        }
    }

    /// Resolves when the connection has to go.
    pub fn has_to_go(&self) -> impl Future<Output = ()> + use<> + 'static {
        let taken = Rc::clone(&self.0);
        async move {
            loop {
                let changed = taken.changed.notified();
                if taken.has_to_go.get() {
                    return;
                }
                changed.await;
            }
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.seats.taken.borrow_mut().remove(&self.number);
        if self.has_to_go.get() {
            self.seats.connections.leaving.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Who goes: the longest idle first, then who came first of those that have calls; none twice, and nobody else.
    #[test]
    fn who_goes() {
        let seats = Rc::<Seats>::default();
        let [first, early, late, last] = [1, 2, 3, 4].map(|now_us| seats.take(now_us));
        first.note_calls(1, || 0);
        last.note_calls(2, || 0);
        late.note_calls(1, || 0);
        late.note_calls(0, || 9);
        let gone = || [&first, &early, &late, &last].map(|seat| seat.has_to_go().now_or_never().is_some());
        let waiting = early.has_to_go();
        for (dismissed, expected) in [
            (0, [false, false, false, false]),
            (1, [false, true, false, false]),
            (2, [true, true, true, false]),
            (5, [true, true, true, true]),
        ] {
            seats.dismiss(dismissed);
            assert_eq!(gone(), expected);
            let going = expected.iter().filter(|gone| **gone).count();
            assert_eq!((seats.staying(), seats.connections.leaving.load(Relaxed)), (4 - going, going));
        }
        assert!(waiting.now_or_never().is_some());
        drop((first, early, late, last));
        assert!(seats.taken.borrow().is_empty() && seats.connections.leaving.load(Relaxed) == 0);
    }
}
