//! Room for what producing streams have under way. A stream whose request finds no room is not read for a while, which its
//! client sees as flow control; were the request passed on, a full mailbox or queue would refuse it, and the stream of a client
//! that is merely fast would end.
//!
//! Each reactor has one [`Room`] for each reactor whose shards its connections write to. Who waits enters in turn, so that a
//! stream with much to send does not keep out one with little.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use crate::limits;

/// Requests of streams on their way from one reactor to the shards of one reactor.
///
/// Invariants: `requests <= requests_max`; `bytes <= bytes_max`, or there is one request.
#[derive(Debug)]
pub struct Room {
    requests_max: usize,
    bytes_max: usize,
    requests: Cell<usize>,
    bytes: Cell<usize>,
    /// Those who wait, by ticket: the front one enters first.
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    next_ticket: Cell<u64>,
}

impl Room {
    /// Room for the shards of the same reactor.
    pub fn here() -> Rc<Room> {
        Room::new(limits::STREAM_REQUESTS_UNDER_WAY_MAX, limits::STREAM_BYTES_UNDER_WAY_MAX)
    }

    /// Room for the shards of another one, to whose mailbox `senders` reactors send: together they have three quarters of its
    /// requests at most, and half of its bytes.
    pub fn elsewhere(senders: usize) -> Rc<Room> {
        let requests = limits::MAILBOX_REQUESTS_MAX * 3 / 4 / senders.max(1);
        let requests = requests.clamp(1, limits::STREAM_REQUESTS_UNDER_WAY_MAX);
        Room::new(requests, limits::MAILBOX_BYTES_MAX / 2 / senders.max(1))
    }

    fn new(requests_max: usize, bytes_max: usize) -> Rc<Room> {
        Rc::new(Room {
            requests_max,
            bytes_max,
            requests: Cell::new(0),
            bytes: Cell::new(0),
            waiting: RefCell::default(),
            next_ticket: Cell::new(0),
        })
    }

    /// Whether a request of `bytes` finds room. One always does when there is no other.
    fn has(&self, bytes: usize) -> bool {
        let (requests, used) = (self.requests.get(), self.bytes.get());
        requests == 0 || (requests < self.requests_max && used.saturating_add(bytes) <= self.bytes_max)
    }

    fn enter(self: &Rc<Self>, bytes: usize) -> Permit {
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        Permit { room: Rc::clone(self), bytes }
    }

    fn wake_first(&self) {
        if let Some((_, waker)) = self.waiting.borrow().front() {
            waker.wake_by_ref();
        }
    }
}

/// The room that one request has; dropping it gives the room back.
#[derive(Debug)]
pub struct Permit {
    room: Rc<Room>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let left = |all: usize, part: usize| all.checked_sub(part).expect("only what was taken is given back");
        self.room.requests.set(left(self.room.requests.get(), 1));
        self.room.bytes.set(left(self.room.bytes.get(), self.bytes));
        self.room.wake_first();
    }
}

/// A stream's place among those who wait for a room, if it waits; dropping it leaves.
#[derive(Debug, Default)]
pub struct Place {
    waits: Option<(Rc<Room>, u64)>,
}

impl Place {
    /// Enters `room` with `bytes`. While that is Pending, `cx` is woken when those before it have entered or left, and there
    /// may be room. To ask for another room leaves the former.
    pub fn poll_enter(&mut self, room: &Rc<Room>, bytes: usize, cx: &mut Context<'_>) -> Poll<Permit> {
        if self.waits.as_ref().is_some_and(|(other, _)| !Rc::ptr_eq(other, room)) {
            self.leave();
        }
        let first = room.waiting.borrow().front().map(|(ticket, _)| *ticket);
        let mine = self.waits.as_ref().map(|(_, ticket)| *ticket);
        if first == mine && room.has(bytes) {
            self.waits = None;
            if mine.is_some() {
                room.waiting.borrow_mut().pop_front();
            }
            let permit = room.enter(bytes);
            if room.has(0) {
                // There may be room for the next one, too, whom nobody else would tell.
                room.wake_first();
            }
            return Poll::Ready(permit);
        }
        let mut waiting = room.waiting.borrow_mut();
        match mine {
            Some(mine) => {
                let place = waiting.iter_mut().find(|(ticket, _)| *ticket == mine);
                place.expect("who has a ticket is in the queue").1.clone_from(cx.waker());
            }
            None => {
                let ticket = room.next_ticket.get();
                room.next_ticket.set(ticket + 1);
                waiting.push_back((ticket, cx.waker().clone()));
                self.waits = Some((Rc::clone(room), ticket));
            }
        }
        Poll::Pending
    }

    /// Waits no more, if it does.
    pub fn leave(&mut self) {
        let Some((room, mine)) = self.waits.take() else { return };
        room.waiting.borrow_mut().retain(|(ticket, _)| *ticket != mine);
        if room.has(0) {
            room.wake_first();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::SeqCst;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// One who may wait, and how often it was woken.
    #[derive(Default)]
    struct Stream {
        place: Place,
        woken: Arc<Count>,
    }

    impl Stream {
        fn enter(&mut self, room: &Rc<Room>, bytes: usize) -> Option<Permit> {
            match self.place.poll_enter(room, bytes, &mut Context::from_waker(&Waker::from(Arc::clone(&self.woken)))) {
                Poll::Ready(permit) => Some(permit),
                Poll::Pending => None,
            }
        }

        fn woken(&self) -> bool {
            self.woken.0.swap(0, SeqCst) > 0
        }
    }

    /// Both bounds hold; who waits enters in turn, and nobody passes; each who can go on is woken.
    #[test]
    fn in_turn() {
        let room = Room::new(3, 100);
        let [mut a, mut b, mut c, mut d] = [(); 4].map(|()| Stream::default());
        let large = a.enter(&room, 90).unwrap();
        assert!(b.enter(&room, 20).is_none(), "too many bytes");
        assert!(c.enter(&room, 1).is_none(), "it does not pass the one before it");
        assert!(!b.woken() && !c.woken());
        drop(large);
        assert!(b.woken() && !c.woken());
        assert!(d.enter(&room, 1).is_none(), "nobody passes those who wait");
        let second = b.enter(&room, 20).unwrap();
        assert!(c.woken(), "there is room for another");
        let third = c.enter(&room, 1).unwrap();
        assert!(d.woken());
        let fourth = d.enter(&room, 1).unwrap();
        assert!(a.enter(&room, 0).is_none(), "too many requests");
        drop((second, third, fourth));
        assert!(a.woken());
        assert_eq!((room.requests.get(), room.bytes.get()), (0, 0));
    }

    /// One request always finds room, however large.
    #[test]
    fn larger_than_the_room() {
        let room = Room::new(3, 100);
        let [mut a, mut b] = [(); 2].map(|()| Stream::default());
        let large = a.enter(&room, 1_000).unwrap();
        assert!(b.enter(&room, 1_000).is_none());
        drop(large);
        assert!(b.woken() && b.enter(&room, 1_000).is_some());
    }

    /// Who leaves while it waits, by being dropped or by asking for another room, does not hold up those behind it.
    #[test]
    fn leaving() {
        let (room, other) = (Room::new(1, 100), Room::new(1, 100));
        let [mut a, mut b, mut c] = [(); 3].map(|()| Stream::default());
        let permit = a.enter(&room, 1).unwrap();
        assert!(b.enter(&room, 1).is_none() && c.enter(&room, 1).is_none());
        drop(permit);
        assert!(b.woken() && !c.woken());
        let elsewhere = b.enter(&other, 1).unwrap();
        assert!(c.woken());
        let permit = c.enter(&room, 1).unwrap();
        let mut d = Stream::default();
        assert!(a.enter(&room, 1).is_none() && d.enter(&room, 1).is_none());
        drop(permit);
        drop(a);
        assert!(d.woken() && d.enter(&room, 1).is_some());
        drop(elsewhere);
    }
}
