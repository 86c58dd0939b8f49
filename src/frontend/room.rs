//! Room for what producing streams have under way. A stream whose request finds no room is not read for a while, which its
//! client sees as flow control; were the request passed on, a full mailbox or queue would refuse it, and the stream of a client
//! that is merely fast would end.
//!
//! Each reactor has one [`Room`] for each reactor whose shards its connections write to. Who waits enters in turn, so that a
//! stream with much to send does not keep out one with little. In its turn a stream enters with several requests: they are
//! answered together, and to wake a connection and to write to its socket costs far more than an answer does.

use std::cell::Cell;
use std::cell::RefCell;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;

use crate::env::channel::Ticket;
use crate::env::channel::Waiters;
use crate::limits;

/// A turn ends when a stream has entered with so many requests, or with so many bytes.
const TURN_REQUESTS: usize = 32;
const TURN_BYTES: usize = 32 << 10;

/// Requests of streams on their way from one reactor to the shards of one reactor.
///
/// Invariants: `requests <= requests_max`; `bytes <= bytes_max`, or there is one request.
#[derive(Debug)]
pub struct Room {
    requests_max: usize,
    bytes_max: usize,
    requests: Cell<usize>,
    bytes: Cell<usize>,
    waiting: RefCell<Waiters>,
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
        if let Some((_, waker)) = self.waiting.borrow().first() {
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

/// A stream's place among those who wait for a room, if it does; dropping it leaves.
#[derive(Debug, Default)]
pub struct Place(Option<Waits>);

#[derive(Debug)]
struct Waits {
    room: Rc<Room>,
    ticket: Ticket,
    /// How often it may still enter when it is the first, and with how many bytes.
    requests: usize,
    bytes: usize,
}

impl Place {
    /// Enters `room` with `bytes`. While that is Pending, `cx` is woken when those before it have had their turn or left, and
    /// there may be room. To ask for another room leaves the former.
    ///
    /// Others may wait until it is the turn's end: who has entered either asks again or calls [`leave`](Place::leave).
    pub fn poll_enter(&mut self, room: &Rc<Room>, bytes: usize, cx: &mut Context<'_>) -> Poll<Permit> {
        if self.0.as_ref().is_some_and(|waits| !Rc::ptr_eq(&waits.room, room)) {
            self.leave();
        }
        let first = room.waiting.borrow().first().map(|(ticket, _)| ticket);
        let mine = self.0.as_ref().map(|waits| waits.ticket);
        if first == mine && room.has(bytes) {
            let permit = room.enter(bytes);
            if let Some(waits) = &mut self.0 {
                waits.requests = waits.requests.saturating_sub(1);
                waits.bytes = waits.bytes.saturating_sub(bytes);
                if waits.requests == 0 || waits.bytes == 0 {
                    self.leave();
                }
            }
            return Poll::Ready(permit);
        }
        let renewed = mine.and_then(|mine| room.waiting.borrow_mut().renew(mine, cx.waker()));
        if renewed.is_none() {
            let ticket = room.waiting.borrow_mut().push(cx.waker().clone());
            self.0 = Some(Waits { room: Rc::clone(room), ticket, requests: TURN_REQUESTS, bytes: TURN_BYTES });
        }
        Poll::Pending
    }

    /// Waits no more, if it does; its turn ends.
    pub fn leave(&mut self) {
        let Some(Waits { room, ticket, .. }) = self.0.take() else { return };
        let waker = room.waiting.borrow_mut().remove(ticket);
        drop(waker);
        if room.has(0) {
            // There may be room for the next one, too, whom nobody else would tell.
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
    use std::task::Waker;

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
        /// With one request and no more.
        fn enter(&mut self, room: &Rc<Room>, bytes: usize) -> Option<Permit> {
            let permit = self.next(room, bytes)?;
            self.place.leave();
            Some(permit)
        }

        /// With one request, and perhaps another one.
        fn next(&mut self, room: &Rc<Room>, bytes: usize) -> Option<Permit> {
            match self.place.poll_enter(room, bytes, &mut Context::from_waker(&Waker::from(Arc::clone(&self.woken)))) {
                Poll::Ready(permit) => Some(permit),
                Poll::Pending => None,
            }
        }

        fn woken(&self) -> bool {
            self.woken.0.swap(0, SeqCst) > 0
        }
    }

    /// Who has waited enters with several requests before the next one, which cannot be kept waiting by more than its share.
    #[test]
    fn several_in_a_turn() {
        let room = Room::new(2 * TURN_REQUESTS, usize::MAX);
        let [mut a, mut b, mut c] = [(); 3].map(|()| Stream::default());
        let mut permits: Vec<_> = (0..2 * TURN_REQUESTS).map(|_| a.next(&room, 1).unwrap()).collect();
        assert!(b.next(&room, 1).is_none() && c.next(&room, 1).is_none());
        permits.truncate(TURN_REQUESTS - 1);
        permits.extend((0..TURN_REQUESTS).map(|_| b.next(&room, 1).unwrap()));
        assert!(c.woken() && b.next(&room, 1).is_none(), "b has to wait behind c");
        permits.push(c.next(&room, TURN_BYTES - 1).unwrap());
        assert!(c.next(&room, 1).is_none(), "there is no room");
        permits.truncate(1);
        assert!(c.woken());
        permits.push(c.next(&room, 1).unwrap());
        assert!(b.woken() && c.next(&room, 1).is_none(), "a turn ends with so many bytes, too");
        permits.push(b.next(&room, 1).unwrap());
        assert!(!c.woken());
        b.place.leave();
        assert!(c.woken() && c.next(&room, 1).is_some(), "and when there is nothing more to send");
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
