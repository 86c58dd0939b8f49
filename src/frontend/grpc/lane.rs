//! Connections that bring or fetch much are served one after the other, one turn each, while all others go on. A few are served in
//! a row, for [`ROW_US`]; the next ones wait in the lane, where the reactor looks at its sockets before each turn, and every task
//! that is ready runs once. So a good client waits for a few busy connections, and not for each of thousands. A new connection is
//! taken for a busy one.
//!
//! What a call needs is done by several tasks, each woken by the one before it: so before a turn all that was ready runs
//! [`PAUSES_MAX`] times while there are connections that are not busy, else as often as others wait for their turns.

use std::cell::RefCell;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::task::ready;

use crate::env;
use crate::env::channel::Ticket;
use crate::env::channel::Waiters;

/// Busy connections are served in a row for so long: a few turns. (With a look at the sockets between any two of them, 16 connections
/// with four small requests each in flight had half the throughput.)
const ROW_US: u64 = 200;

/// A row has ended when there was so much time for others.
const ROW_GAP_US: u64 = 20;

/// How often others run before a turn, at most. It costs as many looks at the sockets: four connections that bring large batches were 5
/// to 14 % slower. (Once, a call took half as long again under `sockets_unread` of hostile.py.)
const PAUSES_MAX: usize = 4;

/// A connection is not busy after so many turns in a row in which there was little to do ...
const QUIET_TURNS: u32 = 4;

/// ... and for so many turns of busy ones after each of its own there are such.
const QUIET_MEMORY: u32 = 64;

/// The busy connections of a reactor.
#[derive(Debug, Default)]
pub struct Lane(RefCell<State>);

/// Invariant: if somebody waits, somebody has the turn, and was woken for it.
#[derive(Debug, Default)]
struct State {
    waiting: Waiters,
    turn: Option<Ticket>,
    row: Row,
    /// Turns for which there still are connections that are not busy.
    quiet: u32,
}

impl State {
    /// How often others run before a turn.
    fn pauses(&self) -> usize {
        if self.quiet > 0 { PAUSES_MAX } else { self.waiting.len().clamp(1, PAUSES_MAX) }
    }
}

/// Turns of busy connections between which nobody else did anything.
#[derive(Debug, Default)]
struct Row {
    took_us: u64,
    ended_us: u64,
}

impl Row {
    /// How long it has taken at `now_us`; 0 when others had time since.
    fn took_us(&self, now_us: u64) -> u64 {
        if now_us - self.ended_us < ROW_GAP_US { self.took_us } else { 0 }
    }

    /// Another turn of it has ended, which took this time.
    fn note(&mut self, turn_us: Range<u64>) {
        let before_us = self.took_us(turn_us.start);
        *self = Row { took_us: before_us + (turn_us.end - turn_us.start), ended_us: turn_us.end };
    }
}

impl Lane {
    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.0.borrow().waiting.len()
    }

    /// Whether a busy connection is served at once, as any other is.
    fn is_free(&self, now_us: u64) -> bool {
        let state = self.0.borrow();
        state.turn.is_none() && state.waiting.len() == 0 && state.row.took_us(now_us) < ROW_US
    }

    /// When the last turn ended in which there was much to do.
    #[cfg(test)]
    pub(super) fn last_row_us(&self) -> u64 {
        self.0.borrow().row.ended_us
    }

    /// Gives the turn to the first who waits, if nobody has it.
    fn pass_on(&self) {
        let mut state = self.0.borrow_mut();
        if state.turn.is_some() {
            return;
        }
        if let Some((ticket, waker)) = state.waiting.take_first() {
            state.turn = Some(ticket);
            drop(state);
            waker.wake();
        }
    }
}

/// What a connection had to do in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// Little.
    Light,
    /// Much. It goes into the lane when it next has something to do, unless that is free.
    Heavy,
    /// More than it could do in one turn.
    More,
}

/// One connection's place; dropping it leaves.
pub(super) struct Place {
    lane: Rc<Lane>,
    /// While it waits or has the turn.
    ticket: Option<Ticket>,
    /// Before its turn others run.
    pause: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// It goes into the lane before it is served next, unless that is free.
    is_heavy: bool,
    /// Turns in a row in which it had little to do.
    quiet_turns: u32,
}

impl Place {
    /// Of a new connection.
    pub(super) fn new(lane: Rc<Lane>) -> Place {
        Place { lane, ticket: None, pause: None, is_heavy: true, quiet_turns: 0 }
    }

    fn has_turn(&self) -> bool {
        self.ticket.is_some() && self.lane.0.borrow().turn == self.ticket
    }

    /// Whether others wait for their turns.
    pub(super) fn others_wait(&self) -> bool {
        self.lane.waiting() > 0
    }

    /// Ready when the connection is to be served: outside of the lane, or in its turn. Pending, it is woken for it.
    pub(super) fn poll_turn(&mut self, now_us: impl FnOnce() -> u64, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.is_heavy) && !self.lane.is_free(now_us()) {
            self.enter(cx.waker());
            self.lane.pass_on();
        }
        if self.ticket.is_none() {
            return Poll::Ready(());
        }
        if !self.has_turn() {
            // Woken by `pass_on`.
            return Poll::Pending;
        }
        let pauses = self.lane.0.borrow().pauses();
        ready!(self.pause.get_or_insert_with(|| Box::pin(env::yield_times(pauses))).as_mut().poll(cx));
        Poll::Ready(())
    }

    /// From now on `waker` is woken when it is the connection's turn.
    pub(super) fn set_waker(&self, waker: &Waker) {
        let before = self.ticket.map(|ticket| self.lane.0.borrow_mut().waiting.renew(ticket, waker));
        drop(before);
    }

    /// Waits for a turn: `waker` is woken when it comes.
    fn enter(&mut self, waker: &Waker) {
        self.ticket = Some(self.lane.0.borrow_mut().waiting.push(waker.clone()));
    }

    /// Ends a turn, and says when it was, and what it was like. Who has more to do waits for its next one, and `waker` is woken then.
    ///
    /// # Panics
    /// When it was not ready for a turn.
    pub(super) fn end_turn(&mut self, load: Load, turn_us: impl FnOnce() -> Range<u64>, waker: &Waker) {
        if self.has_turn() {
            self.lane.0.borrow_mut().turn = None;
            (self.ticket, self.pause) = (None, None);
        }
        assert!(self.ticket.is_none(), "who waits is not served");
        self.is_heavy = load == Load::Heavy;
        if load == Load::Light {
            self.quiet_turns = (self.quiet_turns + 1).min(QUIET_TURNS);
            if self.quiet_turns == QUIET_TURNS {
                self.lane.0.borrow_mut().quiet = QUIET_MEMORY;
            }
        } else {
            self.quiet_turns = 0;
            let mut state = self.lane.0.borrow_mut();
            state.quiet = state.quiet.saturating_sub(1);
            state.row.note(turn_us());
        }
        if load == Load::More {
            self.enter(waker);
        }
        self.lane.pass_on();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(mine) = self.ticket else { return };
        let mut state = self.lane.0.borrow_mut();
        if state.turn == Some(mine) {
            state.turn = None;
        }
        let left = state.waiting.remove(mine);
        drop(state);
        drop(left);
        self.lane.pass_on();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Client {
        place: Place,
        woken: Arc<Count>,
    }

    impl Client {
        fn new(lane: &Rc<Lane>) -> Client {
            let mut client = Client { place: Place::new(Rc::clone(lane)), woken: Arc::default() };
            client.place.is_heavy = false;
            client
        }

        fn end_turn(&mut self, load: Load) {
            self.place.end_turn(load, || 0..0, &Waker::from(Arc::clone(&self.woken)));
        }

        /// Whether it may read, once others had their turn, and how often it was woken so far.
        fn state(&mut self) -> (bool, usize) {
            let mut context = Context::from_waker(Waker::noop());
            let pauses = if self.place.ticket.is_some() { self.place.lane.0.borrow().pauses() } else { 0 };
            assert!((0..pauses).all(|_| self.place.poll_turn(|| 0, &mut context).is_pending()));
            (self.place.poll_turn(|| 0, &mut context).is_ready(), self.woken.0.load(Ordering::SeqCst))
        }
    }

    /// Alone, a connection with more to read goes on; whoever has nothing more is not in the lane.
    #[test]
    fn alone() {
        let lane = Rc::default();
        let mut client = Client::new(&lane);
        client.end_turn(Load::Light);
        assert_eq!(client.state(), (true, 0));
        for turns in 1..4 {
            client.end_turn(Load::More);
            assert_eq!(client.state(), (true, turns));
        }
        client.end_turn(Load::Light);
        assert_eq!(client.state(), (true, 3));
        assert_eq!(lane.0.borrow().turn, None);
    }

    /// A new one waits for those that are busy already.
    #[test]
    fn new_ones() {
        let lane = Rc::default();
        let mut busy = Client::new(&lane);
        busy.end_turn(Load::More);
        let mut new = Place::new(Rc::clone(&lane));
        let mut context = Context::from_waker(Waker::noop());
        assert!((0..9).all(|_| new.poll_turn(|| 0, &mut context).is_pending()));
        busy.end_turn(Load::More);
        assert!(new.poll_turn(|| 0, &mut context).is_pending());
        assert!(new.poll_turn(|| 0, &mut context).is_ready());
        new.end_turn(Load::Light, || 0..0, Waker::noop());
        assert!(new.poll_turn(|| 0, &mut context).is_ready());
    }

    /// Of several that have much to do some are served in a row. The next one waits until others had their turn, unless they had it
    /// in between.
    #[test]
    fn rows() {
        let lane = Rc::default();
        let mut context = Context::from_waker(Waker::noop());
        let mut is_ready = |client: &mut Client, now_us| client.place.poll_turn(|| now_us, &mut context).is_ready();
        let mut clients: Vec<_> = (0..5).map(|_| Client::new(&lane)).collect();
        clients.iter_mut().for_each(|client| client.end_turn(Load::Heavy));
        let took_us = ROW_US / 3 + 1;
        let mut now_us = 0;
        for client in &mut clients[..3] {
            assert!(is_ready(client, now_us));
            client.place.end_turn(Load::Heavy, || now_us..now_us + took_us, Waker::noop());
            now_us += took_us + ROW_GAP_US - 1;
        }
        assert!(!is_ready(&mut clients[3], now_us) && is_ready(&mut clients[3], now_us));
        clients[3].place.end_turn(Load::Heavy, || now_us..now_us + took_us, Waker::noop());
        now_us += took_us + ROW_GAP_US;
        assert!(is_ready(&mut clients[4], now_us));
    }

    /// One that had much to do is served when it next has something to do, if the lane is free; else it waits for its turn. The more
    /// wait, the more often others run before a turn.
    #[test]
    fn heavy_ones() {
        let lane = Rc::default();
        let mut heavy = Client::new(&lane);
        heavy.end_turn(Load::Heavy);
        assert_eq!(heavy.state(), (true, 0));
        heavy.end_turn(Load::Heavy);
        let mut others: Vec<_> = (0..PAUSES_MAX).map(|_| Client::new(&lane)).collect();
        others.iter_mut().for_each(|client| client.end_turn(Load::More));
        let mut context = Context::from_waker(Waker::noop());
        assert!(heavy.place.poll_turn(|| 0, &mut context).is_pending());
        assert_eq!(lane.waiting(), PAUSES_MAX);
        assert!((0..PAUSES_MAX).all(|_| others[0].place.poll_turn(|| 0, &mut context).is_pending()));
        for client in &mut others {
            while client.place.poll_turn(|| 0, &mut context).is_pending() {}
            client.end_turn(Load::Light);
        }
        assert!(heavy.place.poll_turn(|| 0, &mut context).is_pending());
        assert!(heavy.place.poll_turn(|| 0, &mut context).is_ready());
    }

    /// While there are connections that are not busy, others run as often as can be before a turn, and for a while after that.
    #[test]
    fn quiet_ones() {
        let lane = Rc::default();
        let [mut quiet, mut busy] = [0, 1].map(|_| Client::new(&lane));
        let pauses = |client: &mut Client| {
            let mut context = Context::from_waker(Waker::noop());
            (0..).take_while(|_| client.place.poll_turn(|| 0, &mut context).is_pending()).count()
        };
        busy.end_turn(Load::More);
        for _ in 1..QUIET_TURNS {
            quiet.end_turn(Load::Light);
        }
        assert_eq!(pauses(&mut busy), 1);
        quiet.end_turn(Load::Light);
        for _ in 0..QUIET_MEMORY {
            busy.end_turn(Load::More);
            assert_eq!(pauses(&mut busy), if lane.0.borrow().quiet > 0 { PAUSES_MAX } else { 1 });
        }
        assert_eq!(lane.0.borrow().quiet, 0);
        quiet.end_turn(Load::Heavy);
        quiet.end_turn(Load::Light);
        assert_eq!(lane.0.borrow().quiet, 0, "it has been busy");
    }

    /// Busy ones take turns, in the order in which they came, and one that is gone is left out, with the turn or without.
    #[test]
    fn in_turn() {
        let lane = Rc::default();
        let mut clients: Vec<_> = (0..4).map(|_| Client::new(&lane)).collect();
        clients.iter_mut().for_each(|client| client.end_turn(Load::More));
        let reads = |clients: &mut [Client]| clients.iter_mut().map(|client| client.state().0).collect::<Vec<_>>();
        assert_eq!(reads(&mut clients), [true, false, false, false]);
        clients[0].end_turn(Load::More);
        assert_eq!(reads(&mut clients), [false, true, false, false]);
        clients[1].end_turn(Load::Light);
        // The second one is outside again, and reads what comes.
        assert_eq!(reads(&mut clients), [false, true, true, false]);
        drop(clients.remove(3));
        drop(clients.remove(2));
        assert_eq!(lane.0.borrow().turn, clients[0].place.ticket);
        clients[0].end_turn(Load::Light);
        assert_eq!(reads(&mut clients), [true, true]);
        assert!(lane.waiting() == 0 && lane.0.borrow().turn.is_none());
    }
}
