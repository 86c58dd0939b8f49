//! Connections that bring or fetch much are served one after the other, one turn each, while all others go on: between two of
//! their turns the reactor looks at its sockets, and every task that is ready runs once. So a good client waits for one busy
//! connection, and not for each of thousands. A new connection is taken for a busy one.
//!
//! What a call needs is done by several tasks, each woken by the one before it: so a turn comes when all that was ready has run
//! [`PAUSES`] times.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::task::ready;

use crate::env;

/// How often others run before a turn. Where nobody else is, it costs as many looks at the sockets.
const PAUSES: usize = 4;

/// The busy connections of a reactor.
#[derive(Debug, Default)]
pub struct Lane(RefCell<State>);

/// Invariant: if somebody waits, somebody has the turn, and was woken for it.
#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(u64, Waker)>,
    turn: Option<u64>,
    next_number: u64,
}

impl Lane {
    /// How many wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.0.borrow().waiting.len()
    }

    /// Gives the turn to the first who waits, if nobody has it.
    fn pass_on(&self) {
        let mut state = self.0.borrow_mut();
        if state.turn.is_some() {
            return;
        }
        if let Some((number, waker)) = state.waiting.pop_front() {
            state.turn = Some(number);
            drop(state);
            waker.wake();
        }
    }
}

/// One connection's place; dropping it leaves.
pub(super) struct Place {
    lane: Rc<Lane>,
    /// While it waits or has the turn.
    number: Option<u64>,
    /// Before its turn others run.
    pause: Option<Pin<Box<dyn Future<Output = ()>>>>,
    is_new: bool,
}

impl Place {
    /// Of a new connection.
    pub(super) fn new(lane: Rc<Lane>) -> Place {
        Place { lane, number: None, pause: None, is_new: true }
    }

    fn has_turn(&self) -> bool {
        self.number.is_some() && self.lane.0.borrow().turn == self.number
    }

    /// Ready when the connection is to be served: outside of the lane, or in its turn. Pending, it is woken for it.
    pub(super) fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.is_new) {
            self.end_turn(true, cx.waker());
        }
        if self.number.is_none() {
            return Poll::Ready(());
        }
        if !self.has_turn() {
            // Woken by `pass_on`.
            return Poll::Pending;
        }
        ready!(self.pause.get_or_insert_with(|| Box::pin(pause())).as_mut().poll(cx));
        Poll::Ready(())
    }

    /// From now on `waker` is woken when it is the connection's turn.
    pub(super) fn set_waker(&self, waker: &Waker) {
        let mut state = self.lane.0.borrow_mut();
        let mine = state.waiting.iter_mut().find(|(number, _)| Some(*number) == self.number);
        let before = mine.map(|(_, present)| std::mem::replace(present, waker.clone()));
        drop(state);
        drop(before);
    }

    /// Ends a turn. A busy connection waits for its next one, and `waker` is woken then.
    ///
    /// # Panics
    /// When it was not ready for a turn.
    pub(super) fn end_turn(&mut self, busy: bool, waker: &Waker) {
        let held = self.has_turn();
        let mut state = self.lane.0.borrow_mut();
        if held {
            state.turn = None;
            (self.number, self.pause) = (None, None);
        }
        assert!(self.number.is_none(), "who waits is not served");
        if busy {
            let number = state.next_number;
            state.next_number += 1;
            state.waiting.push_back((number, waker.clone()));
            self.number = Some(number);
        }
        drop(state);
        self.lane.pass_on();
    }
}

async fn pause() {
    for _ in 0..PAUSES {
        env::yield_now().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(mine) = self.number else { return };
        let mut state = self.lane.0.borrow_mut();
        if state.turn == Some(mine) {
            state.turn = None;
        }
        let at = state.waiting.iter().position(|(number, _)| *number == mine);
        let left = at.and_then(|at| state.waiting.remove(at));
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
            client.place.is_new = false;
            client
        }

        fn end_turn(&mut self, busy: bool) {
            self.place.end_turn(busy, &Waker::from(Arc::clone(&self.woken)));
        }

        /// Whether it may read, once others had their turn, and how often it was woken so far.
        fn state(&mut self) -> (bool, usize) {
            let mut context = Context::from_waker(Waker::noop());
            let pauses = if self.place.number.is_some() { PAUSES } else { 0 };
            assert!((0..pauses).all(|_| self.place.poll_turn(&mut context).is_pending()));
            (self.place.poll_turn(&mut context).is_ready(), self.woken.0.load(Ordering::SeqCst))
        }
    }

    /// Alone, a connection with more to read goes on; whoever has nothing more is not in the lane.
    #[test]
    fn alone() {
        let lane = Rc::default();
        let mut client = Client::new(&lane);
        client.end_turn(false);
        assert_eq!(client.state(), (true, 0));
        for turns in 1..4 {
            client.end_turn(true);
            assert_eq!(client.state(), (true, turns));
        }
        client.end_turn(false);
        assert_eq!(client.state(), (true, 3));
        assert_eq!(lane.0.borrow().turn, None);
    }

    /// A new one waits for those that are busy already.
    #[test]
    fn new_ones() {
        let lane = Rc::default();
        let mut busy = Client::new(&lane);
        busy.end_turn(true);
        let mut new = Place::new(Rc::clone(&lane));
        let mut context = Context::from_waker(Waker::noop());
        assert!((0..2 * PAUSES).all(|_| new.poll_turn(&mut context).is_pending()));
        busy.end_turn(true);
        assert!((0..PAUSES).all(|_| new.poll_turn(&mut context).is_pending()));
        assert!(new.poll_turn(&mut context).is_ready());
        new.end_turn(false, Waker::noop());
        assert!(new.poll_turn(&mut context).is_ready());
    }

    /// Busy ones take turns, in the order in which they came, and one that is gone is left out, with the turn or without.
    #[test]
    fn in_turn() {
        let lane = Rc::default();
        let mut clients: Vec<_> = (0..4).map(|_| Client::new(&lane)).collect();
        clients.iter_mut().for_each(|client| client.end_turn(true));
        let reads = |clients: &mut [Client]| clients.iter_mut().map(|client| client.state().0).collect::<Vec<_>>();
        assert_eq!(reads(&mut clients), [true, false, false, false]);
        clients[0].end_turn(true);
        assert_eq!(reads(&mut clients), [false, true, false, false]);
        clients[1].end_turn(false);
        // The second one is outside again, and reads what comes.
        assert_eq!(reads(&mut clients), [false, true, true, false]);
        drop(clients.remove(3));
        drop(clients.remove(2));
        assert_eq!(lane.0.borrow().turn, clients[0].place.number);
        clients[0].end_turn(false);
        assert_eq!(reads(&mut clients), [true, true]);
        assert!(lane.0.borrow().waiting.is_empty() && lane.0.borrow().turn.is_none());
    }
}
