//! How long things take on the wires: looks of the receiver, or the world's time.

use std::cell::{Cell, RefCell};

use super::super::{
    executor::{WeakWorld, World},
    random,
    until::Until,
};
use crate::env::{channel::Notified, quic::QuicOptions};

/// Parts in a million.
const MILLION: u64 = 1_000_000;

/// Most losses of the same bytes in a row.
const LOSSES_MAX: u32 = 8;

/// What one direction between two nodes does to what is sent. The default is a data centre's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// At least, in microseconds.
    pub delay_us: u64,
    /// At most this much more, in microseconds. Each datagram and each piece of a stream has its own draw; the pieces of
    /// one stream wait for each other.
    pub jitter_us: u64,
    /// Parts in a million that are lost: datagrams for good, pieces of a stream until they are sent again.
    pub loss_ppm: u64,
    /// Datagrams in a million that come twice.
    pub duplicate_ppm: u64,
    /// Datagrams and first pieces of streams in a million that are overtaken...
    pub reorder_ppm: u64,
    /// ...by what is sent up to so many microseconds later.
    pub reorder_us: u64,
    /// Bytes in a millisecond; 0: no bound.
    pub bytes_per_ms: u64,
}

impl Default for Path {
    fn default() -> Path {
        Path {
            delay_us: 50,
            jitter_us: 30,
            loss_ppm: 0,
            duplicate_ppm: 0,
            reorder_ppm: 0,
            reorder_us: 0,
            bytes_per_ms: 0,
        }
    }
}

/// Times of connections in virtual microseconds; the default is that of the shipped QUIC options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetTimes {
    /// A connection ends when nothing was heard for so long.
    pub idle_us: u64,
    /// A silent connection is asked for a sign of life after so long.
    pub keep_alive_us: u64,
    /// A dial that is not answered fails after so long.
    pub dial_us: u64,
    /// What is lost is sent again at most so much later.
    pub retransmit_us: u64,
}

impl Default for NetTimes {
    fn default() -> NetTimes {
        let options = QuicOptions::default();
        let us = |duration: std::time::Duration| duration.as_micros() as u64;
        NetTimes {
            idle_us: us(options.idle),
            keep_alive_us: us(options.keep_alive),
            dial_us: us(options.dial),
            retransmit_us: 25_000,
        }
    }
}

/// The network's clock: none, where time is counted in looks.
#[derive(Default)]
pub(super) struct Timing {
    timed: RefCell<Option<(WeakWorld, NetTimes)>>,
}

impl Timing {
    pub(super) fn start(&self, world: &World, times: NetTimes) {
        *self.timed.borrow_mut() = Some((world.weak(), times));
    }

    pub(super) fn times(&self) -> Option<NetTimes> {
        self.timed.borrow().as_ref().map(|(_, times)| *times)
    }

    /// Virtual microseconds; `None` where looks are counted. A world that is no more is at the end of time.
    pub(super) fn now_us(&self) -> Option<u64> {
        let timed = self.timed.borrow();
        let (world, _) = timed.as_ref()?;
        Some(world.upgrade().map_or(u64::MAX, |world| world.now_us()))
    }

    /// What has been due by now: all, where looks are counted.
    pub(super) fn is_due(&self, at_us: u64) -> bool {
        self.now_us().is_none_or(|now_us| at_us <= now_us)
    }

    /// Until `changed`, or the earliest of the moments that are still to come.
    pub(super) async fn wait(&self, changed: Notified, moments: &[Option<u64>]) {
        let until = self.until(moments);
        match until {
            Some(until) => drop(futures_util::future::select(changed, until).await),
            None => changed.await,
        }
    }

    fn until(&self, moments: &[Option<u64>]) -> Option<Until> {
        let now_us = self.now_us()?;
        let first = moments.iter().flatten().filter(|at_us| **at_us > now_us && **at_us < u64::MAX).min()?;
        Some(Until::new(&self.timed.borrow().as_ref()?.0, *first))
    }

    /// Until that moment; at once where looks are counted.
    pub(super) async fn until_us(&self, at_us: u64) {
        let until = self.until(&[Some(at_us)]);
        if let Some(until) = until {
            until.await;
        }
    }
}

/// What happens to one thing on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// How long it takes, for streams with all that is sent again.
    pub(super) delay_us: u64,
    pub(super) losses: u32,
    pub(super) reordered: bool,
    /// After how long it comes again.
    pub(super) again_us: Option<u64>,
}

impl Path {
    /// Draws one. `retransmit_us`: for what is sent again when it is lost.
    pub(super) fn fate(&self, dice: &Cell<u64>, retransmit_us: u64) -> Fate {
        let mut fate = Fate { delay_us: self.draw(dice), ..Fate::default() };
        while fate.losses < LOSSES_MAX && happens(dice, self.loss_ppm) {
            fate.losses += 1;
            fate.delay_us += retransmit_us / 2 + random(dice) % (retransmit_us / 2 + 1);
        }
        if happens(dice, self.reorder_ppm) {
            fate.reordered = true;
            fate.delay_us += random(dice) % (self.reorder_us + 1);
        }
        if happens(dice, self.duplicate_ppm) {
            fate.again_us = Some(self.draw(dice) + random(dice) % (self.reorder_us + 1));
        }
        fate
    }

    /// One way.
    pub(super) fn draw(&self, dice: &Cell<u64>) -> u64 {
        self.delay_us + random(dice) % (self.jitter_us + 1)
    }
}

fn happens(dice: &Cell<u64>, ppm: u64) -> bool {
    ppm > 0 && random(dice) % MILLION < ppm
}
