//! Room for what producing streams have under way. A stream whose request finds no room is not read for a while, which its
//! client sees as flow control; were the request passed on, a full mailbox or queue would refuse it, and the stream of a client
//! that is merely fast would end.
//!
//! Each reactor has one [`Room`] for each reactor whose shards its connections write to. Who waits enters in turn, so that a
//! stream with much to send does not keep out one with little. In its turn a stream enters with several requests: they are
//! answered together, and to wake a connection and to write to its socket costs far more than an answer does.
//!
//! A shard that cannot answer (it has no majority, no leader, or a slow disk) must not stop those that can. So a request takes
//! room only for a moment, `TICK` to `2 * TICK`: after that it is *late*, and counts for its shard only. A shard of which requests
//! are late, and none is acknowledged in time, is *slow*, and its streams wait in a line of their own while it has its part of
//! what may be late (half of what the other shards leave), or a quarter of the room. One is let through now and then, to see. Late
//! requests alone say little of their shard: acknowledgements leave in the order of their stream, and so its requests to other
//! shards are not looked at while the first one waits.
//!
//! Time passes here only while somebody waits (`tick`): a request costs some additions, and no look at the clock.

mod ages;

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use self::ages::Ages;
use self::ages::Amount;
use crate::env;
use crate::env::Env;
use crate::env::channel::Ticket;
use crate::env::channel::Waiters;
use crate::ids::ShardUid;
use crate::limits;

/// A turn ends when a stream has entered with so many requests, or with so many bytes.
const TURN_REQUESTS: usize = 32;
const TURN_BYTES: usize = 32 << 10;

/// A request that is not answered for this long, or up to twice as long, is late: several times what an append takes on
/// a good device, to a near replica.
const TICK: Duration = Duration::from_millis(10);

/// So many times the room may be late, in requests. (In bytes once: that is what memory has to have room for.)
const LATE_ROOMS: usize = 8;

/// What a slow shard may have in any case.
const SLOW_MIN: Amount = Amount { requests: 32, bytes: 64 << 10 };

/// Shards that are remembered beside those that have something under way.
const SHARDS_IDLE_MAX: usize = 256;

/// Requests of streams on their way from one reactor to the shards of one reactor.
///
/// Invariants: those that are not late are at most `max`, or there is one; each shard's ages are a part of `ages`.
#[derive(Debug)]
pub struct Room {
    max: Amount,
    ages: RefCell<Ages>,
    now: Cell<u64>,
    waiting: RefCell<Waiters>,
    shards: RefCell<BTreeMap<ShardUid, Rc<Shard>>>,
    /// Above it the idle ones of `shards` are forgotten.
    shards_max: Cell<usize>,
    /// A task lets time pass.
    is_ticking: Cell<bool>,
}

/// What of it is for one shard.
#[derive(Debug, Default)]
struct Shard {
    ages: RefCell<Ages>,
    /// Streams that wait for this shard and not for the room.
    waiting: RefCell<Waiters>,
    is_slow: Cell<bool>,
    /// The time at which it last acknowledged a request that was not late.
    prompt: Cell<Option<u64>>,
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

    fn new(requests: usize, bytes: usize) -> Rc<Room> {
        Rc::new(Room {
            max: Amount { requests, bytes },
            ages: RefCell::default(),
            now: Cell::new(0),
            waiting: RefCell::default(),
            shards: RefCell::default(),
            shards_max: Cell::new(SHARDS_IDLE_MAX),
            is_ticking: Cell::new(false),
        })
    }

    /// Whether a request of `bytes` finds room. One always does when there is no other.
    fn has(&self, bytes: usize) -> bool {
        let fresh = self.ages.borrow_mut().at(self.now.get()).fresh();
        fresh.requests == 0 || fresh.plus(bytes).is_within(self.max)
    }

    /// Whether a shard may have another request of `bytes`, as far as that is up to the shard.
    fn allows(&self, shard: &Shard, bytes: usize) -> bool {
        if !shard.is_slow.get() {
            return true;
        }
        let now = self.now.get();
        let mine = *shard.ages.borrow_mut().at(now);
        let late_of_others = self.ages.borrow_mut().at(now).late().minus(mine.late());
        let part = |max: usize, others: usize, least: usize| (max.saturating_sub(others) / 2).max(least);
        let part = Amount {
            requests: part(LATE_ROOMS * self.max.requests, late_of_others.requests, SLOW_MIN.requests),
            bytes: part(self.max.bytes, late_of_others.bytes, SLOW_MIN.bytes),
        };
        let (fresh, all) = (mine.fresh(), mine.all());
        let has_part = all.requests == 0 || all.plus(bytes).is_within(part.least(self.max));
        let has_room = fresh.requests == 0 || fresh.plus(bytes).is_within(self.max.quarter());
        has_part && has_room || fresh.requests == 0 && bytes <= SLOW_MIN.bytes
    }

    fn shard(&self, uid: ShardUid) -> Rc<Shard> {
        let mut shards = self.shards.borrow_mut();
        if let Some(shard) = shards.get(&uid) {
            return Rc::clone(shard);
        }
        if shards.len() >= self.shards_max.get() {
            // Requests and streams that wait hold them, too.
            shards.retain(|_, shard| Rc::strong_count(shard) > 1);
            self.shards_max.set(2 * shards.len() + SHARDS_IDLE_MAX);
        }
        Rc::clone(shards.entry(uid).or_default())
    }

    fn enter(self: &Rc<Self>, shard: &Rc<Shard>, bytes: usize) -> Permit {
        let now = self.now.get();
        self.ages.borrow_mut().at(now).enter(bytes);
        shard.ages.borrow_mut().at(now).enter(bytes);
        Permit { room: Rc::clone(self), shard: Rc::clone(shard), entered: now, bytes }
    }

    fn wake_first(&self) {
        if let Some((_, waker)) = self.waiting.borrow().first() {
            waker.wake_by_ref();
        }
    }

    /// Wakes who waits longest for a shard, if it may have something.
    fn wake_first_of(&self, shard: &Shard) {
        let waiting = shard.waiting.borrow();
        if let Some((_, waker)) = waiting.first()
            && self.allows(shard, 0)
        {
            waker.wake_by_ref();
        }
    }

    /// To be called by one who has to wait. If it is true, nobody lets time pass yet, and the caller has to see to it that `pass`
    /// runs.
    pub fn begins_to_wait(&self) -> bool {
        !self.is_ticking.replace(true)
    }

    /// Lets time pass while somebody waits.
    pub async fn pass<E: Env>(self: Rc<Self>) {
        while self.is_ticking.get() {
            env::sleep::<E>(TICK).await;
            let waits = self.tick();
            self.is_ticking.set(waits);
        }
    }

    /// Time has passed: who waited for what is late now, or for a slow shard, may go on. False when nobody waits.
    fn tick(&self) -> bool {
        let before = self.now.get();
        self.now.set(before + 1);
        if self.has(0) {
            self.wake_first();
        }
        let mut waits = self.waiting.borrow().len() > 0;
        for shard in self.shards.borrow().values() {
            let had_late = shard.ages.borrow().late().requests;
            let has_late = shard.ages.borrow_mut().at(self.now.get()).late().requests;
            if has_late > had_late && shard.prompt.get().is_none_or(|prompt| prompt < before) {
                shard.is_slow.set(true);
            }
            waits |= shard.waiting.borrow().len() > 0;
            self.wake_first_of(shard);
        }
        waits
    }
}

/// The room that one request has; dropping it gives the room back.
#[derive(Debug)]
pub struct Permit {
    room: Rc<Room>,
    shard: Rc<Shard>,
    entered: u64,
    bytes: usize,
}

impl Permit {
    /// Its request was acknowledged.
    pub fn acknowledged(self) {
        let now = self.room.now.get();
        if !ages::is_late(self.entered, now) {
            self.shard.prompt.set(Some(now));
            self.shard.is_slow.set(false);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (now, entered) = (self.room.now.get(), self.entered);
        self.room.ages.borrow_mut().at(now).leave(entered, self.bytes);
        self.shard.ages.borrow_mut().at(now).leave(entered, self.bytes);
        if !ages::is_late(entered, now) {
            self.room.wake_first();
        }
        self.room.wake_first_of(&self.shard);
    }
}

/// A stream's place among those who wait for a room, or for a shard of it, if it does; dropping it leaves.
#[derive(Debug, Default)]
pub struct Place {
    /// Of the last request.
    shard: Option<(Rc<Room>, ShardUid, Rc<Shard>)>,
    waits: Option<Waits>,
}

#[derive(Debug)]
struct Waits {
    room: Rc<Room>,
    line: Line,
    ticket: Ticket,
    /// How often it may still enter when it is the first, and with how many bytes.
    requests: usize,
    bytes: usize,
}

/// What it waits for.
#[derive(Debug)]
enum Line {
    Shard(Rc<Shard>),
    /// `passed`: the shard of its last request. It does not wait in that one's line again; in that of any other shard it does.
    Room {
        passed: Rc<Shard>,
    },
}

impl Waits {
    fn line(&self) -> &RefCell<Waiters> {
        self.line.of(&self.room)
    }
}

impl Line {
    fn of<'a>(&'a self, room: &'a Room) -> &'a RefCell<Waiters> {
        match self {
            Line::Shard(shard) => &shard.waiting,
            Line::Room { .. } => &room.waiting,
        }
    }
}

impl Place {
    /// Enters `room` with `bytes` for a shard. While that is Pending, `cx` is woken when those before it have had their turn or
    /// left, and there may be room, provided that time passes (`Room::begins_to_wait`). To ask for another room, or for another
    /// shard while the former is waited for, leaves the former.
    ///
    /// Others may wait until it is the turn's end: who has entered either asks again or calls [`leave`](Place::leave).
    pub fn poll_enter(&mut self, room: &Rc<Room>, uid: ShardUid, bytes: usize, cx: &mut Context<'_>) -> Poll<Permit> {
        let shard = self.shard(room, uid);
        let is_elsewhere = |waits: &Waits| {
            !Rc::ptr_eq(&waits.room, room) || matches!(&waits.line, Line::Shard(other) if !Rc::ptr_eq(other, &shard))
        };
        if self.waits.as_ref().is_some_and(is_elsewhere) {
            self.leave();
        }
        let first = |line: &RefCell<Waiters>| line.borrow().first().map(|(ticket, _)| ticket);
        let (for_shard, for_room, has_passed) = match &self.waits {
            Some(Waits { line: Line::Shard(_), ticket, .. }) => (Some(*ticket), None, false),
            Some(Waits { line: Line::Room { passed }, ticket, .. }) => {
                (None, Some(*ticket), Rc::ptr_eq(passed, &shard))
            }
            None => (None, None, false),
        };
        let passes = room.allows(&shard, bytes) && (has_passed || first(&shard.waiting) == for_shard);
        if !passes {
            return self.wait(room, Line::Shard(shard), cx);
        }
        if let Some(Waits { line: Line::Room { passed }, .. }) = &mut self.waits {
            *passed = Rc::clone(&shard);
        }
        if first(&room.waiting) == for_room && room.has(bytes) {
            let permit = room.enter(&shard, bytes);
            self.count(bytes);
            return Poll::Ready(permit);
        }
        self.wait(room, Line::Room { passed: shard }, cx)
    }

    fn shard(&mut self, room: &Rc<Room>, uid: ShardUid) -> Rc<Shard> {
        if let Some((last, last_uid, shard)) = &self.shard
            && Rc::ptr_eq(last, room)
            && *last_uid == uid
        {
            return Rc::clone(shard);
        }
        let shard = room.shard(uid);
        self.shard = Some((Rc::clone(room), uid, Rc::clone(&shard)));
        shard
    }

    /// It enters with `bytes`.
    fn count(&mut self, bytes: usize) {
        if let Some(waits) = &mut self.waits {
            waits.requests = waits.requests.saturating_sub(1);
            waits.bytes = waits.bytes.saturating_sub(bytes);
            if waits.requests == 0 || waits.bytes == 0 {
                self.leave();
            }
        }
    }

    /// Waits in `line`, and no longer in another one.
    fn wait(&mut self, room: &Rc<Room>, line: Line, cx: &mut Context<'_>) -> Poll<Permit> {
        let is_in_other = |waits: &Waits| !std::ptr::eq(waits.line(), line.of(room));
        if self.waits.as_ref().is_some_and(is_in_other) {
            self.leave();
        }
        let renewed = self.waits.as_ref().and_then(|waits| waits.line().borrow_mut().renew(waits.ticket, cx.waker()));
        if renewed.is_none() {
            let ticket = line.of(room).borrow_mut().push(cx.waker().clone());
            let room = Rc::clone(room);
            self.waits = Some(Waits { room, line, ticket, requests: TURN_REQUESTS, bytes: TURN_BYTES });
        }
        Poll::Pending
    }

    /// Waits no more, if it does; its turn ends.
    pub fn leave(&mut self) {
        let Some(waits) = self.waits.take() else { return };
        let waker = waits.line().borrow_mut().remove(waits.ticket);
        drop(waker);
        // There may be room for the next one, too, whom nobody else would tell.
        match &waits.line {
            Line::Shard(shard) => waits.room.wake_first_of(shard),
            Line::Room { .. } if waits.room.has(0) => waits.room.wake_first(),
            Line::Room { .. } => {}
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
            self.next_to(1, room, bytes)
        }

        /// The same for another shard.
        fn next_to(&mut self, uid: u64, room: &Rc<Room>, bytes: usize) -> Option<Permit> {
            let waker = Waker::from(Arc::clone(&self.woken));
            match self.place.poll_enter(room, ShardUid(uid), bytes, &mut Context::from_waker(&waker)) {
                Poll::Ready(permit) => Some(permit),
                Poll::Pending => None,
            }
        }

        /// As many as find room, of one byte each.
        fn fill(&mut self, uid: u64, room: &Rc<Room>) -> Vec<Permit> {
            std::iter::from_fn(|| self.next_to(uid, room, 1)).collect()
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
        assert_eq!(room.ages.borrow_mut().at(0).all(), Amount::default());
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

    /// A shard that cannot answer holds the room for a moment only, however much its streams send; it has a part of what may be
    /// late, and is tried now and then. Another one has all of the room.
    #[test]
    fn a_shard_that_cannot_answer() {
        let room = Room::new(100, 1_000);
        let [mut a, mut other_a, mut b] = [(); 3].map(|()| Stream::default());
        let mut of_a = a.fill(1, &room);
        assert_eq!(of_a.len(), 100);
        assert!(b.next_to(2, &room, 1).is_none() && room.begins_to_wait() && !room.begins_to_wait());
        assert!(room.tick() && !a.woken());
        assert!(room.tick() && a.woken() && !b.woken());
        of_a.extend(a.fill(1, &room));
        assert_eq!(of_a.len(), 101);
        assert!(b.woken(), "a waits for its shard");
        for step in 0..100 {
            let of_b = b.fill(2, &room);
            assert!(of_b.len() >= 75, "{} at {step}", of_b.len());
            of_b.into_iter().for_each(Permit::acknowledged);
            b.place.leave();
            of_a.extend(a.fill(1, &room));
            of_a.extend(other_a.fill(1, &room));
            assert!(room.tick());
        }
        assert!((110..=200).contains(&of_a.len()), "{}: it is tried now and then", of_a.len());
        assert!(a.place.waits.is_some() && other_a.place.waits.is_some());
        other_a.place.leave();
        a.woken();
        // They were refused, and it goes on like that.
        drop(of_a);
        assert!(a.woken());
        let of_a = a.fill(1, &room);
        assert_eq!(of_a.len(), 25);
        assert_eq!(b.fill(2, &room).len(), 75);
        // It answers again.
        of_a.into_iter().for_each(Permit::acknowledged);
        b.place.leave();
        assert_eq!(a.fill(1, &room).len(), 100);
    }

    /// Streams that wait for a slow shard enter in turn.
    #[test]
    fn in_turn_for_a_slow_shard() {
        let room = Room::new(4, 1_000);
        let [mut a, mut b, mut c] = [(); 3].map(|()| Stream::default());
        let late = a.fill(1, &room);
        (0..3).for_each(|_| assert!(room.tick()));
        a.place.leave();
        let try_out = b.next(&room, 1).unwrap();
        assert!(b.next(&room, 1).is_none() && c.next(&room, 1).is_none() && a.next(&room, 1).is_none());
        for stream in [&mut a, &mut b, &mut c] {
            stream.woken();
        }
        drop(try_out);
        assert!(b.woken() && !c.woken());
        assert!(c.next(&room, 1).is_none(), "nobody passes those who wait");
        let try_out = b.enter(&room, 1).unwrap();
        assert!(!c.woken(), "one is under way");
        try_out.acknowledged();
        assert!(c.woken() && c.enter(&room, 1).is_some() && a.woken());
        drop(late);
    }

    /// Who enters the room with requests for one shard does not pass those who wait for another one that is slow.
    #[test]
    fn in_turn_beside_a_slow_shard() {
        let room = Room::new(4, 1_000);
        let [mut a, mut b, mut c, mut d, mut e] = [(); 5].map(|()| Stream::default());
        let late = a.fill(1, &room);
        (0..3).for_each(|_| assert!(room.tick()));
        a.place.leave();
        let try_out = b.enter(&room, 1).unwrap();
        assert!(c.next(&room, 1).is_none());
        let mut of_d: Vec<_> = (0..3).map(|_| d.next_to(2, &room, 1).unwrap()).collect();
        assert!(e.next_to(2, &room, 1).is_none(), "there is no room");
        drop(try_out);
        assert!(c.woken() && e.woken());
        let of_e = e.next_to(2, &room, 1).unwrap();
        of_d.pop();
        assert!(e.next_to(1, &room, 1).is_none(), "c is before it");
        assert!(c.next(&room, 1).is_some());
        drop((late, of_d, of_e));
    }

    /// Requests that were answered, and whose stream looks at another shard's answer first, do not make their shard slow while it
    /// acknowledges others.
    #[test]
    fn answers_not_looked_at() {
        let room = Room::new(100, 1_000);
        let [mut keyed, mut b] = [(); 2].map(|()| Stream::default());
        let mut held: Vec<_> = (0..60).map(|_| keyed.next_to(2, &room, 1).unwrap()).collect();
        for _ in 0..20 {
            let of_b = b.fill(2, &room);
            assert!(of_b.len() >= 30);
            of_b.into_iter().for_each(Permit::acknowledged);
            b.place.leave();
            room.tick();
            held.push(keyed.next_to(2, &room, 1).unwrap());
        }
        assert!(!held[0].shard.is_slow.get());
    }

    /// Shards that nobody has to do with are forgotten.
    #[test]
    fn shards_are_forgotten() {
        let room = Room::new(10, 100);
        let mut a = Stream::default();
        let kept = a.next_to(0, &room, 1).unwrap();
        for uid in 1..10 * SHARDS_IDLE_MAX as u64 {
            assert!(a.next_to(uid, &room, 1).is_some());
        }
        assert!(room.shards.borrow().len() <= SHARDS_IDLE_MAX + 4);
        assert!(room.shards.borrow().contains_key(&ShardUid(0)));
        drop(kept);
    }
}
