//! One end of a simulated connection.

use std::{collections::VecDeque, fmt, rc::Rc};

use bytes::Bytes;

use super::{
    DATAGRAMS, Link, Side,
    stream::{self, SimReceive, SimSend},
};
use crate::{
    env::{
        net::{Connection, DATAGRAM_BYTES_MAX, NetError},
        yield_now,
    },
    ids::NodeId,
    sim::random,
};

/// A connection.
#[derive(Clone)]
pub struct SimConnection {
    hold: Rc<Hold>,
}

impl fmt::Debug for SimConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimConnection(to node {})", self.peer())
    }
}

impl SimConnection {
    pub(super) fn new(link: &Rc<Link>, side: usize) -> SimConnection {
        SimConnection { hold: Rc::new(Hold { link: Rc::clone(link), side }) }
    }

    fn link(&self) -> &Rc<Link> {
        &self.hold.link
    }

    fn side(&self) -> &Side {
        &self.hold.link.sides[self.hold.side]
    }

    fn check(&self) -> Result<(), NetError> {
        self.link().error(self.hold.side).map_or(Ok(()), Err)
    }

    fn is_cut_towards(&self) -> bool {
        let (me, peer) = (self.link().nodes[self.hold.side], self.peer());
        self.link().wires.is_cut(peer, me)
    }
}

impl Connection for SimConnection {
    type Send = SimSend;
    type Receive = SimReceive;

    fn peer(&self) -> NodeId {
        self.link().nodes[1 - self.hold.side]
    }

    async fn open(&self) -> Result<(SimSend, SimReceive), NetError> {
        loop {
            let changed = self.link().changed.notified();
            self.check()?;
            if self.side().opened.get() < self.link().wires.streams_max.get() {
                break;
            }
            changed.await;
        }
        Ok(stream::open(&self.hold))
    }

    async fn accept(&self) -> Result<(SimSend, SimReceive), NetError> {
        loop {
            let changed = self.side().changed.notified();
            self.check()?;
            if !self.is_cut_towards()
                && let Some((mut send, mut receive)) = self.side().streams.borrow_mut().pop_front()
            {
                send.hold(&self.hold);
                receive.hold(&self.hold);
                return Ok((send, receive));
            }
            changed.await;
        }
    }

    fn send_datagram(&self, datagram: Bytes) {
        assert!(datagram.len() <= DATAGRAM_BYTES_MAX, "a datagram of {} bytes is too large", datagram.len());
        let (link, side) = (self.link(), self.hold.side);
        let (me, peer) = (link.nodes[side], link.nodes[1 - side]);
        let loss = link.wires.loss_percent.get();
        let lost = loss > 0 && random(&link.wires.dice) % 100 < loss;
        if lost || link.end.borrow().is_some() || link.wires.is_cut(me, peer) {
            return;
        }
        let there = &link.sides[1 - side];
        if there.datagrams.borrow().things.len() < DATAGRAMS {
            there.datagrams.borrow_mut().push(link.wires.delay.get(), datagram);
            there.changed.notify_all();
        }
    }

    async fn receive_datagram(&self) -> Result<Bytes, NetError> {
        loop {
            let changed = self.side().changed.notified();
            self.check()?;
            let look = self.side().datagrams.borrow_mut().look();
            match look {
                Look::Ready(datagram) => return Ok(datagram),
                Look::Early => yield_now().await,
                Look::Empty => changed.await,
            }
        }
    }

    async fn closed(&self) -> NetError {
        loop {
            let changed = self.link().changed.notified();
            if let Err(error) = self.check() {
                return error;
            }
            changed.await;
        }
    }

    fn is_closed(&self) -> bool {
        self.check().is_err()
    }

    fn close(&self, why: &str) {
        self.link().finish(&format!("node {} has closed it: {why}", self.link().nodes[self.hold.side]));
    }
}

/// One end of a connection; the connection ends when nobody holds an end any more.
pub(super) struct Hold {
    pub(super) link: Rc<Link>,
    pub(super) side: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.link.finish("the other side has let go of it");
    }
}

/// Things on their way, each ready after so many looks.
#[derive(Default)]
pub(super) struct Line {
    looks: u64,
    pub(super) things: VecDeque<(u64, Bytes)>,
}

pub(super) enum Look {
    Ready(Bytes),
    Early,
    Empty,
}

impl Line {
    pub(super) fn push(&mut self, delay: u32, bytes: Bytes) {
        self.things.push_back((self.looks + u64::from(delay), bytes));
    }

    pub(super) fn look(&mut self) -> Look {
        match self.things.front() {
            Some((ready, _)) if *ready > self.looks => {
                self.looks += 1;
                Look::Early
            }
            Some(_) => self.things.pop_front().map_or(Look::Empty, |(_, bytes)| Look::Ready(bytes)),
            None => Look::Empty,
        }
    }
}
