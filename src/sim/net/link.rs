//! Both ends of a connection, and when each of them learns that it is over.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    mem,
    rc::{Rc, Weak},
};

use super::{
    NetFault, Traffic, Wires,
    line::Line,
    stream::{Pipe, SimReceive, SimSend},
};
use crate::{
    env::{channel::Notify, net::NetError},
    ids::NodeId,
    sim::random,
};

/// Both ends of a connection.
pub(super) struct Link {
    pub(super) wires: Rc<Wires>,
    pub(super) nodes: [NodeId; 2],
    pub(super) doors: [(String, u16); 2],
    pub(super) sides: [Side; 2],
    pub(super) pipes: RefCell<Vec<Weak<Pipe>>>,
    /// It has ended, or a stream of it has.
    pub(super) changed: Notify,
}

/// What waits at one end.
#[derive(Default)]
pub(super) struct Side {
    /// By when each is seen.
    pub(super) streams: RefCell<VecDeque<(u64, SimSend, SimReceive)>>,
    pub(super) datagrams: RefCell<Line>,
    pub(super) changed: Notify,
    /// Streams that this side has opened and that are still in use at either end.
    pub(super) opened: Cell<usize>,
    /// When it is over at this end, and why.
    end: RefCell<Option<(u64, String)>>,
    /// When it is over at this end, if it still hears nothing then.
    idle_us: Cell<Option<u64>>,
    /// When the last byte that this end has sent has left, where the path has a bound.
    left_us: Cell<u64>,
    expired: Cell<bool>,
}

impl Link {
    pub(super) fn error(&self, side: usize) -> Option<NetError> {
        let (here, timing) = (&self.sides[side], &self.wires.timing);
        let lost = |cause: &str| Some(NetError::Lost { node: self.nodes[1 - side], cause: cause.to_owned() });
        if let Some((_, cause)) = here.end.borrow().as_ref().filter(|(at_us, _)| timing.is_due(*at_us)) {
            return lost(cause);
        }
        here.idle_us.get().filter(|at_us| timing.is_due(*at_us))?;
        if !here.expired.replace(true) {
            self.wires.count(NetFault::Expiry, Traffic::Connection);
        }
        lost("nothing was heard for the idle time")
    }

    /// When `error` may become another one.
    pub(super) fn end_us(&self, side: usize) -> Option<u64> {
        let end = self.sides[side].end.borrow().as_ref().map(|(at_us, _)| *at_us);
        [end, self.sides[side].idle_us.get()].into_iter().flatten().min()
    }

    /// At both ends.
    pub(super) fn is_over(&self) -> bool {
        self.error(0).is_some() && self.error(1).is_some()
    }

    /// Ends it at both ends at once.
    pub(super) fn finish(&self, why: &str) {
        for side in [0, 1] {
            self.end(side, 0, why);
        }
        self.wake();
    }

    /// `side` ends it; the other one is told, in its time.
    pub(super) fn leave(&self, side: usize, why: &str) {
        let (me, peer) = (self.nodes[side], self.nodes[1 - side]);
        if self.error(side).is_some() {
            // What is over here has said its word, or has nobody to say it.
            return;
        }
        self.end(side, 0, why);
        match self.wires.timing.now_us() {
            None => self.end(1 - side, 0, why),
            Some(_) if self.wires.is_cut(me, peer) => self.deafen(1 - side),
            Some(now_us) => {
                let delay_us = self.wires.path(me, peer).draw(&self.wires.dice);
                self.end(1 - side, now_us.saturating_add(delay_us), why);
            }
        }
        self.wake();
    }

    /// `side` is gone without a word; the other one learns it by the silence.
    pub(super) fn vanish(&self, side: usize, why: &str) {
        self.end(side, 0, why);
        match self.wires.timing.times() {
            None => self.end(1 - side, 0, why),
            Some(_) => self.end(1 - side, self.idle_end_us(), "nothing was heard for the idle time"),
        }
        self.wake();
    }

    /// The other end of `side` answers that it knows nothing of this connection.
    pub(super) fn reset(&self, side: usize) {
        let (Some(now_us), Some(times)) = (self.wires.timing.now_us(), self.wires.timing.times()) else { return };
        let dice = &self.wires.dice;
        let trip_us = self.wires.path(self.nodes[side], self.nodes[1 - side]).draw(dice);
        let asked_us = random(dice) % (times.keep_alive_us + 1);
        self.end(side, now_us.saturating_add(trip_us + asked_us), "the node there knows nothing of it");
        self.wake();
    }

    /// From now on `side` hears nothing.
    pub(super) fn deafen(&self, side: usize) {
        let Some(times) = self.wires.timing.times() else { return };
        let sooner = |side: usize, at_us: u64| {
            let before_us = self.sides[side].idle_us.get().unwrap_or(u64::MAX);
            self.sides[side].idle_us.set(Some(at_us.min(before_us)));
        };
        let end_us = self.idle_end_us();
        sooner(side, end_us);
        // The other one still hears what this one sends by itself, and not a word when this one has given up.
        sooner(1 - side, end_us.saturating_add(random(&self.wires.dice) % (times.idle_us + 1)));
    }

    /// Everything passes again.
    pub(super) fn hear_again(&self) {
        if self.wires.is_cut(self.nodes[0], self.nodes[1]) || self.wires.is_cut(self.nodes[1], self.nodes[0]) {
            return;
        }
        match [self.error(0).is_some(), self.error(1).is_some()] {
            [false, false] => self.sides.iter().for_each(|side| side.idle_us.set(None)),
            [true, false] => self.reset(1),
            [false, true] => self.reset(0),
            [true, true] => {}
        }
    }

    pub(super) fn wake(&self) {
        self.changed.notify_all();
        for side in &self.sides {
            side.changed.notify_all();
        }
        let pipes: Vec<Rc<Pipe>> = self.pipes.borrow().iter().filter_map(Weak::upgrade).collect();
        for pipe in pipes {
            pipe.changed.notify_all();
        }
    }

    pub(super) fn pipe(self: &Rc<Self>, from: usize) -> Rc<Pipe> {
        let pipe = Rc::new(Pipe::new(from));
        let mut pipes = self.pipes.borrow_mut();
        if pipes.len() == pipes.capacity() {
            pipes.retain(|pipe| pipe.strong_count() > 0);
        }
        pipes.push(Rc::downgrade(&pipe));
        pipe
    }

    pub(super) fn unread_bytes(&self, to: NodeId) -> usize {
        let pipes = self.pipes.borrow();
        pipes.iter().filter_map(Weak::upgrade).map(|pipe| pipe.unread_bytes(&self.nodes, to)).sum()
    }

    /// When so many bytes of `side` have left, in microseconds from `now_us` on.
    pub(super) fn departure_us(&self, side: usize, now_us: u64, bytes: usize, bytes_per_ms: u64) -> u64 {
        if bytes_per_ms == 0 {
            return 0;
        }
        let left_us = &self.sides[side].left_us;
        left_us.set(left_us.get().max(now_us) + (bytes as u64 * 1_000).div_ceil(bytes_per_ms));
        left_us.get() - now_us
    }

    fn idle_end_us(&self) -> u64 {
        let (Some(now_us), Some(times)) = (self.wires.timing.now_us(), self.wires.timing.times()) else { return 0 };
        let heard_us = random(&self.wires.dice) % (times.keep_alive_us.min(times.idle_us) + 1);
        now_us.saturating_add(times.idle_us - heard_us)
    }

    /// At that end, at that time or before.
    fn end(&self, side: usize, at_us: u64, why: &str) {
        if self.error(side).is_some() {
            return;
        }
        let here = &self.sides[side];
        let sooner = here.end.borrow().as_ref().is_none_or(|(before_us, _)| at_us < *before_us);
        if sooner {
            *here.end.borrow_mut() = Some((at_us, why.to_owned()));
        }
        if self.error(side).is_some() {
            self.forget_unseen(side);
        }
    }

    /// Drops what nobody will accept: it holds the link, and the link holds it.
    pub(super) fn forget_unseen(&self, side: usize) {
        let unseen = mem::take(&mut *self.sides[side].streams.borrow_mut());
        drop(unseen);
    }
}
