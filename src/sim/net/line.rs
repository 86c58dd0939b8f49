//! Things on their way, each ready after so many looks, or at a moment of the world.

use std::collections::VecDeque;

use bytes::Bytes;

/// Invariant: the moments do not go down from front to back.
#[derive(Default)]
pub(super) struct Line {
    looks: u64,
    things: VecDeque<(u64, Bytes)>,
}

/// What a look at a line has shown.
pub(super) enum Look {
    Ready(Bytes),
    /// Look again: at once, or at that moment.
    Early(Option<u64>),
    Empty,
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.things.len()
    }

    /// Ready after so many looks.
    pub(super) fn push(&mut self, looks: u32, bytes: Bytes) {
        self.things.push_back((self.looks + u64::from(looks), bytes));
    }

    /// Ready at that moment, but not before what is in front of it. Returns when that is.
    pub(super) fn push_behind(&mut self, at_us: u64, bytes: Bytes) -> u64 {
        let at_us = self.last_us().max(at_us);
        self.things.push_back((at_us, bytes));
        at_us
    }

    /// Ready at that moment, whatever else is on its way.
    pub(super) fn push_past(&mut self, at_us: u64, bytes: Bytes) {
        let place = self.things.partition_point(|(ready_us, _)| *ready_us <= at_us);
        self.things.insert(place, (at_us, bytes));
    }

    /// When the last of what is on its way is ready; 0 when nothing is.
    pub(super) fn last_us(&self) -> u64 {
        self.things.back().map_or(0, |(at_us, _)| *at_us)
    }

    /// The next one, if it is ready; `now_us`: where time counts.
    pub(super) fn look(&mut self, now_us: Option<u64>) -> Look {
        let Some((ready, _)) = self.things.front() else { return Look::Empty };
        match now_us {
            Some(now_us) if *ready > now_us => return Look::Early(Some(*ready)),
            None if *ready > self.looks => {
                self.looks += 1;
                return Look::Early(None);
            }
            _ => {}
        }
        self.things.pop_front().map_or(Look::Empty, |(_, bytes)| Look::Ready(bytes))
    }
}
