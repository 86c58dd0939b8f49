//! One end of a simulated connection.

use std::{fmt, rc::Rc};

use bytes::Bytes;

use super::{
    DATAGRAMS, NetFault, Traffic,
    line::Look,
    link::{Link, Side},
    stream::{self, SimReceive, SimSend},
};
use crate::{
    env::{
        channel::Notified,
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

    /// What is to come at this end when nothing new happens.
    async fn wait(&self, changed: Notified, at_us: Option<u64>) {
        let link = self.link();
        link.wires.timing.wait(changed, &[at_us, link.end_us(self.hold.side)]).await;
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
            self.wait(changed, None).await;
        }
        Ok(stream::open(&self.hold))
    }

    async fn accept(&self) -> Result<(SimSend, SimReceive), NetError> {
        loop {
            let changed = self.side().changed.notified();
            self.check()?;
            let (link, me, peer) = (self.link(), self.link().nodes[self.hold.side], self.peer());
            if link.wires.is_cut(peer, me) {
                self.wait(changed, None).await;
                continue;
            }
            let resume_us = link.wires.resume_us(peer, me).unwrap_or(0);
            let first_us = self.side().streams.borrow().front().map(|(at_us, ..)| resume_us.max(*at_us));
            if first_us.is_some_and(|at_us| link.wires.timing.is_due(at_us))
                && let Some((_, mut send, mut receive)) = self.side().streams.borrow_mut().pop_front()
            {
                send.hold(&self.hold);
                receive.hold(&self.hold);
                return Ok((send, receive));
            }
            self.wait(changed, first_us).await;
        }
    }

    fn send_datagram(&self, datagram: Bytes) {
        assert!(datagram.len() <= DATAGRAM_BYTES_MAX, "a datagram of {} bytes is too large", datagram.len());
        let (link, side) = (self.link(), self.hold.side);
        let (wires, me, peer) = (&link.wires, link.nodes[side], link.nodes[1 - side]);
        let loss = wires.loss_percent.get();
        let lost = loss > 0 && random(&wires.dice) % 100 < loss;
        if lost {
            wires.count(NetFault::Loss, Traffic::Datagram);
        }
        if lost || self.is_closed() {
            return;
        }
        if let Some(fault) = wires.cut_by(me, peer) {
            wires.count(fault, Traffic::Datagram);
            return;
        }
        let there = &link.sides[1 - side];
        if there.datagrams.borrow().len() >= DATAGRAMS {
            return;
        }
        match wires.timing.now_us() {
            None => there.datagrams.borrow_mut().push(wires.delay.get(), datagram),
            Some(now_us) => self.send_timed(now_us, datagram),
        }
        there.changed.notify_all();
    }

    async fn receive_datagram(&self) -> Result<Bytes, NetError> {
        loop {
            let changed = self.side().changed.notified();
            self.check()?;
            let look = self.side().datagrams.borrow_mut().look(self.link().wires.timing.now_us());
            match look {
                Look::Ready(datagram) => return Ok(datagram),
                Look::Early(None) => yield_now().await,
                Look::Early(at_us) => self.wait(changed, at_us).await,
                Look::Empty => self.wait(changed, None).await,
            }
        }
    }

    async fn closed(&self) -> NetError {
        loop {
            let changed = self.link().changed.notified();
            if let Err(error) = self.check() {
                return error;
            }
            self.wait(changed, None).await;
        }
    }

    fn is_closed(&self) -> bool {
        self.check().is_err()
    }

    fn close(&self, why: &str) {
        let side = self.hold.side;
        self.link().leave(side, &format!("node {} has closed it: {why}", self.link().nodes[side]));
    }
}

/// One end of a connection; the connection ends when nobody holds an end any more.
pub(super) struct Hold {
    pub(super) link: Rc<Link>,
    pub(super) side: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.link.leave(self.side, "the other side has let go of it");
        self.link.forget_unseen(self.side);
    }
}

impl SimConnection {
    /// Puts a datagram on its way in the world's time.
    fn send_timed(&self, now_us: u64, datagram: Bytes) {
        let (link, side) = (self.link(), self.hold.side);
        let (wires, me, peer) = (&link.wires, link.nodes[side], link.nodes[1 - side]);
        let path = wires.path(me, peer);
        let fate = path.fate(&wires.dice, 0);
        if wires.paths.borrow().contains_key(&(me, peer)) {
            wires.count(NetFault::Delay, Traffic::Datagram);
        }
        if fate.losses > 0 {
            wires.count(NetFault::Loss, Traffic::Datagram);
            return;
        }
        let left_us = link.departure_us(side, now_us, datagram.len(), path.bytes_per_ms);
        let mut line = link.sides[1 - side].datagrams.borrow_mut();
        if let Some(again_us) = fate.again_us {
            wires.count(NetFault::Duplicate, Traffic::Datagram);
            line.push_past(now_us + left_us + again_us, datagram.clone());
        }
        let at_us = now_us + left_us + fate.delay_us;
        if at_us < line.last_us() {
            // What came before is overtaken.
            wires.count(NetFault::Reorder, Traffic::Datagram);
        }
        line.push_past(at_us, datagram);
    }
}
