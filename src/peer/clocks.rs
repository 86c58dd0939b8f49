//! How the nodes' wall clocks stand, and how far retention may believe them.
//!
//! No single wall clock is believed: one that was set wrong for some seconds once trimmed a whole cluster. With t on this
//! node's monotonic clock, which no setting of the time moves (clock_gettime(2), CLOCK_MONOTONIC), and n any node:
//!
//! ```text
//! offset(n, t)   = wall clock of n, as last told, - t
//! believed(n, t) = t + min offset(n, s) over t - BELIEF <= s <= t;    none until n was followed for BELIEF
//! agreed(V, t)   = the largest time that believed(n, t) has reached for a majority of the voters V
//! differs        : as many known clocks are further than DIFFERENCE_MAX from this node's as are not, itself counted
//! most(t)        = t + the median m of offset(n, t) over the clocks that are known, this node's among them;
//!                  none unless most of at least three of them are within DIFFERENCE_MAX of m
//! stamp(t)       = most(t) where the own clock is further than DIFFERENCE_MAX from it, else the own clock
//! ```
//!
//! So a clock that jumps forward is believed when it has stood there for `BELIEF`, one that jumps back at once, and one
//! that starts wrong not for `BELIEF` either. A majority outvotes a wrong clock as in NTP (RFC 5905, section 11.2.1: a
//! majority clique against falsetickers); a clock that is not known counts as one that has reached nothing. Entries are
//! stamped with stamp(t): what a leader writes while its clock is wrong would otherwise have the wrong age after a restart,
//! when nobody remembers since when it was there.
//!
//! Clocks are told with each answered ping (`ping`); reactor 0 notes them, all reactors ask. The delay of the answer is
//! the error, and answers that took longer than `ROUND_TRIP_MAX` are not used.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::ids::NodeId;

/// How long a clock must have stood somewhere to be believed: operators have seen the warning by then, and time
/// synchronisation has corrected what it can.
pub const BELIEF: Duration = Duration::from_secs(3_600);

/// Clocks that are further from each other differ.
pub const DIFFERENCE_MAX: Duration = Duration::from_secs(60);

/// Longest round trip of a ping whose answer tells the time.
pub const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);

/// For so long the last that was heard of a clock says how it stands now.
const FRESH: Duration = Duration::from_secs(10);

/// Minimums are kept for each minute.
const BUCKET_US: u64 = 60_000_000;

/// What is known of the nodes' clocks; shared by all threads of a node. Bounded by `BELIEF` for each member.
#[derive(Debug)]
pub struct Clocks {
    followed: Mutex<BTreeMap<NodeId, Followed>>,
    /// most(t) - t when a clock was last noted; `NOBODYS`: no majority agreed. Asked with each entry, so without the lock.
    most_us: AtomicI64,
}

/// No clock's offset: `note` bounds them.
const NOBODYS: i64 = i64::MIN;

impl Default for Clocks {
    fn default() -> Clocks {
        Clocks { followed: Mutex::default(), most_us: AtomicI64::new(NOBODYS) }
    }
}

/// One clock within the last `BELIEF`.
#[derive(Debug)]
struct Followed {
    /// When it was first heard of without a gap as long as `BELIEF` since, and last.
    first_us: u64,
    last_us: u64,
    /// Offset as last heard.
    offset_us: i64,
    /// The smallest offset of each minute in which it was heard of, oldest first.
    minutes: VecDeque<(u64, i64)>,
}

/// Where this node's clock is not the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Own clock less the median of the others', µs.
    pub ahead_us: i64,
    /// It is too large for this node to trim by age.
    pub differs: bool,
}

impl Clocks {
    /// At `now_us` of the monotonic clock, the wall clock of `node` (this one or another) shows `wall_us`.
    pub fn note(&self, node: NodeId, now_us: u64, wall_us: i64) {
        // Any bytes of a peer: far beyond all dates they must not overflow what is computed with them.
        let wall_us = wall_us.clamp(-WALL_US_MAX, WALL_US_MAX);
        let offset_us = wall_us - i64::try_from(now_us).unwrap_or(WALL_US_MAX);
        let mut followed = self.lock();
        let new = || Followed { first_us: now_us, last_us: now_us, offset_us, minutes: VecDeque::new() };
        followed.entry(node).or_insert_with(new).note(now_us, offset_us);
        self.most_us.store(most_us(&followed, now_us).unwrap_or(NOBODYS), Relaxed);
    }

    /// Nothing is known of a node that is no member any more.
    pub fn forget(&self, node: NodeId) {
        self.lock().remove(&node);
    }

    /// A time that has come by a majority of the voters' clocks, as far as they are believed; `None` when no majority's are.
    pub fn agreed_us(&self, voters: &BTreeSet<NodeId>, now_us: u64) -> Option<i64> {
        let followed = self.lock();
        let believed = voters.iter().filter_map(|node| followed.get(node)?.believed_us(now_us));
        let mut believed: Vec<i64> = believed.collect();
        believed.sort_unstable_by(|a, b| b.cmp(a));
        believed.get(voters.len() / 2).copied()
    }

    /// How the clock of this node, `me`, stands to the others'; `None` while no other one is known.
    pub fn difference(&self, me: NodeId, now_us: u64) -> Option<Difference> {
        let followed = self.lock();
        let own_us = followed.get(&me)?.offset_us;
        let others = followed.iter().filter(|(node, followed)| **node != me && followed.is_fresh(now_us));
        let mut ahead: Vec<i64> = others.map(|(_, followed)| own_us - followed.offset_us).collect();
        ahead.sort_unstable();
        let differing = ahead.iter().filter(|us| us.unsigned_abs() > DIFFERENCE_MAX.as_micros() as u64).count();
        let agreeing = 1 + ahead.len() - differing;
        // Of an even number the two in the middle are medians: the one that is nearer.
        let middle = [ahead.len().checked_sub(1)? / 2, ahead.len() / 2];
        let ahead_us = middle.into_iter().map(|at| ahead[at]).min_by_key(|us| us.unsigned_abs())?;
        Some(Difference { ahead_us, differs: differing >= agreeing })
    }

    /// What an entry is stamped with at `now_us` of the monotonic clock, while this node's wall clock shows `wall_us`: that, or
    /// the time that most nodes' clocks show when the own one differs from it.
    pub fn stamp_us(&self, now_us: u64, wall_us: i64) -> i64 {
        let most_us = match self.most_us.load(Relaxed) {
            NOBODYS => return wall_us,
            offset_us => offset_us.saturating_add(i64::try_from(now_us).unwrap_or(WALL_US_MAX)),
        };
        let differs = wall_us.abs_diff(most_us) > DIFFERENCE_MAX.as_micros() as u64;
        if differs { most_us } else { wall_us }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Followed>> {
        // No change stops half-way: a poisoned table is still whole.
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// most(t) - t as drawn at the head. Of two that differ nobody knows who is right.
fn most_us(followed: &BTreeMap<NodeId, Followed>, now_us: u64) -> Option<i64> {
    let fresh = followed.values().filter(|followed| followed.is_fresh(now_us));
    let mut offsets: Vec<i64> = fresh.map(|followed| followed.offset_us).collect();
    offsets.sort_unstable();
    let median = *offsets.get(offsets.len() / 2).filter(|_| offsets.len() >= 3)?;
    let near = offsets.iter().filter(|us| us.abs_diff(median) <= DIFFERENCE_MAX.as_micros() as u64);
    (2 * near.count() > offsets.len()).then_some(median)
}

/// No clock is believed to be further from 1970, some 73,000 years.
const WALL_US_MAX: i64 = i64::MAX / 4;

impl Followed {
    fn is_fresh(&self, now_us: u64) -> bool {
        now_us.saturating_sub(self.last_us) <= FRESH.as_micros() as u64
    }

    fn note(&mut self, now_us: u64, offset_us: i64) {
        self.forget_before(now_us);
        if self.minutes.is_empty() {
            self.first_us = now_us;
        }
        (self.last_us, self.offset_us) = (now_us, offset_us);
        let minute = now_us / BUCKET_US;
        match self.minutes.back_mut() {
            Some((last, least)) if *last == minute => *least = offset_us.min(*least),
            Some(_) | None => self.minutes.push_back((minute, offset_us)),
        }
        assert!(self.minutes.len() as u64 <= BELIEF.as_micros() as u64 / BUCKET_US + 2, "one for each minute");
    }

    /// Drops minutes that were over `BELIEF` ago.
    fn forget_before(&mut self, now_us: u64) {
        let start_us = now_us.saturating_sub(BELIEF.as_micros() as u64);
        while self.minutes.front().is_some_and(|(minute, _)| (minute + 1).saturating_mul(BUCKET_US) <= start_us) {
            self.minutes.pop_front();
        }
    }

    fn believed_us(&self, now_us: u64) -> Option<i64> {
        let belief_us = BELIEF.as_micros() as u64;
        if now_us.saturating_sub(self.first_us) < belief_us || now_us.saturating_sub(self.last_us) >= belief_us {
            return None;
        }
        let start_us = now_us - belief_us;
        let within = self.minutes.iter().filter(|(minute, _)| (minute + 1).saturating_mul(BUCKET_US) > start_us);
        let least = within.map(|(_, offset_us)| *offset_us).min()?;
        Some(least + i64::try_from(now_us).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);
    const MINUTE_US: u64 = 60_000_000;
    const HOUR_US: u64 = 60 * MINUTE_US;
    const YEAR_US: i64 = 365 * 24 * HOUR_US as i64;

    fn nodes(count: u64) -> BTreeSet<NodeId> {
        (1..=count).map(NodeId).collect()
    }

    /// Tells a clock's offset each ten seconds.
    fn follow(clocks: &Clocks, node: u64, from_us: u64, to_us: u64, offset_us: i64) {
        for now_us in (from_us..to_us).step_by(10_000_000) {
            clocks.note(NodeId(node), now_us, now_us as i64 + offset_us);
        }
    }

    /// Agreed time, less the monotonic clock.
    fn agreed(clocks: &Clocks, voters: u64, now_us: u64) -> Option<i64> {
        clocks.agreed_us(&nodes(voters), now_us).map(|agreed_us| agreed_us - now_us as i64)
    }

    /// A clock is believed an hour after it was first heard of, a jump forward an hour after it, and a jump back at once.
    #[test]
    fn an_hour_of_doubt() {
        let clocks = Clocks::default();
        follow(&clocks, 1, 0, HOUR_US, 7);
        assert_eq!(agreed(&clocks, 1, HOUR_US - 1), None);
        assert_eq!(agreed(&clocks, 1, HOUR_US), Some(7));
        follow(&clocks, 1, HOUR_US, HOUR_US + 12_000_000, YEAR_US);
        assert_eq!(agreed(&clocks, 1, HOUR_US + 12_000_000), Some(7), "a year ahead for 12 s");
        follow(&clocks, 1, HOUR_US + 12_000_000, 2 * HOUR_US - MINUTE_US, YEAR_US);
        assert_eq!(agreed(&clocks, 1, 2 * HOUR_US - MINUTE_US), Some(7));
        follow(&clocks, 1, 2 * HOUR_US - MINUTE_US, 2 * HOUR_US + MINUTE_US, YEAR_US);
        assert_eq!(agreed(&clocks, 1, 2 * HOUR_US + MINUTE_US), Some(YEAR_US));
        clocks.note(ME, 2 * HOUR_US + MINUTE_US, 2 * HOUR_US as i64);
        assert_eq!(agreed(&clocks, 1, 2 * HOUR_US + MINUTE_US), Some(-(MINUTE_US as i64)));
    }

    /// Whoever was not heard of for an hour starts anew.
    #[test]
    fn silence() {
        let clocks = Clocks::default();
        follow(&clocks, 1, 0, HOUR_US, 7);
        assert_eq!(agreed(&clocks, 1, 2 * HOUR_US), None);
        follow(&clocks, 1, 2 * HOUR_US + MINUTE_US, 3 * HOUR_US, 9);
        assert_eq!(agreed(&clocks, 1, 3 * HOUR_US), None);
        follow(&clocks, 1, 3 * HOUR_US, 4 * HOUR_US, 9);
        assert_eq!(agreed(&clocks, 1, 4 * HOUR_US), Some(9));
    }

    /// The time that most have reached: one clock ahead moves nothing, one that is not known is behind all.
    #[test]
    fn majorities() {
        for (voters, offsets, expected) in [
            (1, &[5][..], Some(5)),
            (2, &[5, YEAR_US], Some(5)),
            (2, &[5], None),
            (3, &[YEAR_US, 6, 5], Some(6)),
            (3, &[YEAR_US, 5], Some(5)),
            (3, &[YEAR_US], None),
            (4, &[YEAR_US, 8, 7, 6], Some(7)),
            (5, &[YEAR_US, YEAR_US, 5, 4, 3], Some(5)),
        ] {
            let clocks = Clocks::default();
            for (node, offset_us) in (1..).zip(offsets) {
                follow(&clocks, node, 0, HOUR_US, *offset_us);
            }
            assert_eq!(agreed(&clocks, voters, HOUR_US), expected, "{voters} voters, {offsets:?}");
        }
    }

    /// Differs whoever is alone with its time; with two nobody knows who is right.
    #[test]
    fn differences() {
        let differs = |offsets: &[i64]| {
            let clocks = Clocks::default();
            for (node, offset_us) in (1..).zip(offsets) {
                clocks.note(NodeId(node), 10, 10 + offset_us);
            }
            clocks.difference(ME, 20).map(|found| (found.ahead_us, found.differs))
        };
        let minute = MINUTE_US as i64;
        assert_eq!(differs(&[0]), None);
        assert_eq!(differs(&[0, minute]), Some((-minute, false)));
        assert_eq!(differs(&[0, minute + 1]), Some((-minute - 1, true)));
        assert_eq!(differs(&[0, 5, YEAR_US]), Some((-5, false)), "another one is wrong");
        assert_eq!(differs(&[YEAR_US, 0, 0]), Some((YEAR_US, true)));
        assert_eq!(differs(&[-YEAR_US, 0, 0]), Some((-YEAR_US, true)));
        let clocks = Clocks::default();
        follow(&clocks, 1, 0, HOUR_US, 0);
        clocks.note(NodeId(2), 0, YEAR_US);
        assert_eq!(clocks.difference(ME, HOUR_US), None, "it was heard of long ago");
        clocks.forget(NodeId(2));
        assert_eq!(clocks.difference(ME, 0), None);
    }

    /// Entries get the own clock's time while it is near most clocks', and theirs when it is not, from the moment on in which it
    /// jumps; the own one's where no three are known, or no majority agrees.
    #[test]
    fn stamps() {
        let (minute, year) = (MINUTE_US as i64, YEAR_US);
        for (offsets, own, expected) in [
            (&[0][..], year, year),
            (&[0, 0], year, year),
            (&[year, 0], year, year),
            (&[0, 5, 9], minute + 5, minute + 5),
            (&[0, 5, 9], minute + 6, 5),
            (&[0, 5, 9], -year, 5),
            (&[year, 5, 9], year, 9),
            (&[-year, 5, 9], -year, 5),
            (&[0, year, 9], 0, 0),
            (&[year, year, 9], year, year),
            (&[0, 2 * minute, 4 * minute], 0, 0),
            (&[year, year, 9, 9], year, year),
            (&[year, 7, 8, 9], year, 9),
            (&[year, -year, 9, 9, 9], year, 9),
        ] {
            let clocks = Clocks::default();
            for (node, offset_us) in (1..).zip(offsets) {
                clocks.note(NodeId(node), 10, 10 + offset_us);
            }
            assert_eq!(clocks.stamp_us(20, 20 + own), 20 + expected, "{offsets:?}, {own}");
        }
        let clocks = Clocks::default();
        (2..4).for_each(|node| clocks.note(NodeId(node), 0, 0));
        clocks.note(ME, 20_000_000, YEAR_US);
        assert_eq!(clocks.stamp_us(20_000_000, YEAR_US), YEAR_US, "the others were heard of long ago");
    }

    /// Whatever a peer says, nothing overflows.
    #[test]
    fn absurd() {
        let clocks = Clocks::default();
        for now_us in [0, HOUR_US, u64::MAX] {
            clocks.note(ME, now_us, i64::MIN);
            clocks.note(NodeId(2), now_us, i64::MAX);
            let asked = (clocks.agreed_us(&nodes(2), now_us), clocks.difference(ME, now_us));
            assert!(asked.1.is_some());
            clocks.note(NodeId(3), now_us, i64::MAX);
            for wall_us in [i64::MIN, 0, i64::MAX] {
                let _any = clocks.stamp_us(now_us, wall_us);
            }
        }
    }
}
