//! Whose disk is slow: how long entries take until they are durable, here and on the followers, and who is to lead instead.
//!
//! A leader needs its own disk for nothing that a producer waits for, while a majority of others is fast; but what it
//! has not flushed gathers in memory, and any further failure makes its disk count. So a leader whose disk is slow gives
//! the leadership away.
//!
//! - Every replica measures the time from an append to its durability: the same entries, the same way, on every disk. A
//!   follower's last time comes with its answers (`Message::Matched`).
//! - Slow is what takes `FLUSH_SLOW_FACTOR` times as long as on so many others that these are a majority by themselves: one
//!   disk is compared with others under the same load, never with a number. Nobody is slow where all are, or alone.
//! - A replica that caught up minutes ago took long for entries that were large: each time counts for `FLUSH_TIME_AGE_MAX`. The
//!   times of the last second (`FLUSH_TIME_FRESH`) count alone where they are enough, so that few entries tell soon, too.
//! - It has to be so at every look for `FLUSH_SLOW_FOR`; after a move, made or not, the next one waits `FLUSH_MOVE_PAUSE`.
//! - The successor keeps up, and is not slow itself. Whoever was slow is not led back by the balance of leaders before
//!   it was fast for a while (`is_well`), each time twice as long.
//!
//! Not done here: looking (whoever has a clock calls `look_at_flushes`), and moving.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Group, Machine};
use crate::{
    env::Env,
    ids::{LogId, NodeId},
    limits::{
        FLUSH_HOLD_OFF_MAX, FLUSH_HOLD_OFF_MIN, FLUSH_MOVE_PAUSE, FLUSH_SLOW_FACTOR, FLUSH_SLOW_FOR, FLUSH_SLOW_MIN,
        FLUSH_TIME_AGE_MAX, FLUSH_TIME_FRESH,
    },
};

/// Times of one replica that are remembered: their median bears half of them being outliers, also when they are even in number.
const TIMES: usize = 16;

/// Fewer tell nothing; so many tell, also where the last second brought fewer.
const TIMES_MIN: usize = 4;

/// The last times of one replica.
#[derive(Clone, Debug, Default)]
struct Recent {
    times: [Time; TIMES],
    count: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Time {
    us: u32,
    /// When it was measured, or said.
    noted_us: u64,
}

impl Time {
    fn is_older(self, age: Duration, now_us: u64) -> bool {
        now_us.saturating_sub(self.noted_us) > age.as_micros() as u64
    }
}

impl Recent {
    fn push(&mut self, us: u64, now_us: u64) {
        let us = u32::try_from(us).unwrap_or(u32::MAX);
        self.times[self.count % TIMES] = Time { us, noted_us: now_us };
        self.count += 1;
    }

    /// `None` when too few were measured lately: a single one may be an outlier.
    fn median_us(&self, now_us: u64) -> Option<u64> {
        let (mut known_us, mut count) = ([0; TIMES], 0);
        for back in 1..=self.count.min(TIMES) {
            let time = self.times[(self.count - back) % TIMES];
            let is_enough = count >= TIMES_MIN && time.is_older(FLUSH_TIME_FRESH, now_us);
            if is_enough || time.is_older(FLUSH_TIME_AGE_MAX, now_us) {
                break;
            }
            known_us[count] = time.us;
            count += 1;
        }
        if count < TIMES_MIN {
            return None;
        }
        let known_us = &mut known_us[..count];
        known_us.sort_unstable();
        known_us.get(count.saturating_sub(1) / 2).map(|us| u64::from(*us))
    }
}

/// What was measured. Only numbers are kept: as many followers as the group ever had.
#[derive(Debug, Default)]
pub struct FlushTimes {
    own: RefCell<Recent>,
    /// The last one.
    last_us: Cell<u64>,
    /// Appends that are not durable.
    pending: Cell<u64>,
    /// When one of them was begun while there were none, or became durable: since then the disk has done nothing.
    moved_us: Cell<u64>,
    followers: RefCell<BTreeMap<NodeId, Recent>>,
}

impl FlushTimes {
    /// An append begins here.
    pub fn begun(&self, now_us: u64) {
        if self.pending.replace(self.pending.get() + 1) == 0 {
            self.moved_us.set(now_us);
        }
    }

    /// One that began then is durable, or has failed.
    pub fn ended(&self, begun_us: u64, now_us: u64) {
        let pending = self.pending.get().checked_sub(1);
        self.pending.set(pending.expect("only what has begun ends"));
        self.moved_us.set(now_us);
        let took_us = now_us.saturating_sub(begun_us).max(1);
        self.last_us.set(took_us);
        self.own.borrow_mut().push(took_us, now_us);
    }

    /// How long the last append took here; 0: none yet.
    pub fn last_us(&self) -> u64 {
        self.last_us.get()
    }

    /// A follower says how long its last one took.
    pub fn note_follower(&self, node: NodeId, us: u64, now_us: u64) {
        if us > 0 {
            self.followers.borrow_mut().entry(node).or_default().push(us, now_us);
        }
    }

    /// What an append takes here: the median, or more while one takes longer.
    fn own_us(&self, now_us: u64) -> Option<u64> {
        let stalled_us = (self.pending.get() > 0).then(|| now_us.saturating_sub(self.moved_us.get()));
        self.own.borrow().median_us(now_us).max(stalled_us)
    }

    fn follower_us(&self, node: NodeId, now_us: u64) -> Option<u64> {
        self.followers.borrow().get(&node)?.median_us(now_us)
    }
}

/// A voter as a look finds it.
#[derive(Clone, Copy, Debug)]
struct Voter {
    node: NodeId,
    /// What an append takes there; `None`: not known.
    us: Option<u64>,
    /// It has all that there was at the look before: what it said last is true.
    keeps_up: bool,
}

/// Decides from one look to the next. Pure.
#[derive(Debug, Default)]
pub struct Judge {
    /// The own disk was slow at every look from then on.
    slow_since_us: Option<u64>,
    /// No move is asked for before.
    move_from_us: u64,
    held_off: BTreeMap<NodeId, HeldOff>,
    /// Last entry at the look before.
    end_before: Option<LogId>,
    /// Followers that had it at the last look.
    keeping_up: BTreeSet<NodeId>,
}

/// Who was slow is not trusted at once.
#[derive(Clone, Copy, Debug, Default)]
struct HeldOff {
    until_us: u64,
    /// For how long the next time.
    next_us: u64,
    is_slow: bool,
}

/// Whether a disk that takes `us` is slow beside one that takes `other_us`.
fn is_slower(us: u64, other_us: u64) -> bool {
    us >= FLUSH_SLOW_MIN.as_micros() as u64 && us >= FLUSH_SLOW_FACTOR * other_us
}

/// Whether so many of `voters` are faster than `one` that they are a majority without it.
fn is_slow(one: &Voter, voters: &[Voter]) -> bool {
    let Some(us) = one.us else { return false };
    let faster =
        voters.iter().filter(|other| other.keeps_up && other.us.is_some_and(|other_us| is_slower(us, other_us)));
    2 * faster.count() > voters.len()
}

impl Judge {
    /// One look at all voters, `me`, who leads, among them. Says who is to lead instead, if it is time for that.
    fn look(&mut self, me: NodeId, voters: &[Voter], now_us: u64) -> Option<NodeId> {
        self.keeping_up = voters.iter().filter(|voter| voter.keeps_up).map(|voter| voter.node).collect();
        self.hold_off(me, voters, now_us);
        let own = voters.iter().find(|voter| voter.node == me).filter(|own| is_slow(own, voters));
        let Some(own) = own else {
            self.slow_since_us = None;
            return None;
        };
        let since_us = *self.slow_since_us.get_or_insert(now_us);
        if now_us.saturating_sub(since_us) < FLUSH_SLOW_FOR.as_micros() as u64 || now_us < self.move_from_us {
            return None;
        }
        let fits = |voter: &&Voter| {
            let is_faster = voter.us.zip(own.us).is_some_and(|(us, own_us)| is_slower(own_us, us));
            voter.keeps_up && is_faster && !is_slow(voter, voters)
        };
        let successor = voters.iter().filter(fits).min_by_key(|voter| (voter.us, voter.node))?;
        self.move_from_us = now_us + FLUSH_MOVE_PAUSE.as_micros() as u64;
        Some(successor.node)
    }

    fn hold_off(&mut self, me: NodeId, voters: &[Voter], now_us: u64) {
        let (least_us, most_us) = (FLUSH_HOLD_OFF_MIN.as_micros() as u64, FLUSH_HOLD_OFF_MAX.as_micros() as u64);
        self.held_off.retain(|node, _| voters.iter().any(|voter| voter.node == *node));
        for voter in voters.iter().filter(|voter| voter.node != me) {
            let slow = is_slow(voter, voters);
            let held = self.held_off.entry(voter.node).or_default();
            if slow {
                if !std::mem::replace(&mut held.is_slow, true) {
                    // Well for long: what was before is forgotten.
                    let was_well = now_us.saturating_sub(held.until_us) > most_us;
                    held.next_us = if was_well { least_us } else { (2 * held.next_us).clamp(least_us, most_us) };
                }
                held.until_us = now_us + held.next_us;
            } else {
                held.is_slow = false;
            }
        }
    }

    fn is_held_off(&self, node: NodeId, now_us: u64) -> bool {
        self.held_off.get(&node).is_some_and(|held| now_us < held.until_us)
    }

    /// As the last look found it.
    fn fits(&self, node: NodeId, now_us: u64) -> bool {
        self.keeping_up.contains(&node) && !self.is_held_off(node, now_us)
    }
}

impl<E: Env, M: Machine> Group<E, M> {
    /// Looks at the flushes of all voters; to be called each `FLUSH_LOOK`. Says who is to lead instead of this node because
    /// its disk is slow beside theirs; nobody, if this node does not lead.
    pub fn look_at_flushes(&self) -> Option<NodeId> {
        let inner = &*self.inner;
        let mut judge = inner.judge.borrow_mut();
        if !self.leads() {
            judge.slow_since_us = None;
            judge.keeping_up.clear();
            return None;
        }
        let (now_us, times) = (E::monotonic_us(), &inner.shared.flush_times);
        let liveness = inner.network.peers().liveness();
        let end_before = std::mem::replace(&mut judge.end_before, inner.log.last());
        let progress: BTreeMap<NodeId, Option<LogId>> =
            self.progress().into_iter().map(|follower| (follower.node, follower.matched)).collect();
        let voter = |node: NodeId| {
            if node == inner.node {
                return Voter { node, us: times.own_us(now_us), keeps_up: true };
            }
            let matched = progress.get(&node).copied().flatten();
            let keeps_up = matched.is_some() && matched >= end_before && liveness.is_alive(node);
            Voter { node, us: times.follower_us(node, now_us), keeps_up }
        };
        let voters: Vec<Voter> = self.members().voters.into_iter().map(voter).collect();
        judge.look(inner.node, &voters, now_us)
    }

    /// Whether a follower may be led to for the sake of balance: it keeps up, and its disk is not slow beside the others',
    /// nor was it lately.
    pub fn is_well(&self, node: NodeId) -> bool {
        self.inner.judge.borrow().fits(node, E::monotonic_us())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);

    /// Voters 1 to 3, which keep up.
    fn voters(times_us: [u64; 3]) -> Vec<Voter> {
        let voter = |(at, us): (usize, u64)| Voter { node: NodeId(at as u64 + 1), us: Some(us), keeps_up: true };
        times_us.into_iter().enumerate().map(voter).collect()
    }

    /// Looks each 250 ms from `from_ms` to before `end_ms`; when somebody else was to lead, and who.
    fn looks(judge: &mut Judge, from_ms: u64, end_ms: u64, voters: &[Voter]) -> Vec<(u64, u64)> {
        let look = |ms: u64| judge.look(ME, voters, ms * 1_000).map(|node| (ms, node.0));
        (from_ms..end_ms).step_by(250).filter_map(look).collect()
    }

    /// A disk ten times as slow as both others': the faster of them is to lead, within a second; when that does not come
    /// about, again after the pause, not before.
    #[test]
    fn moves_away_once() {
        let (mut judge, slow) = (Judge::default(), voters([1_000, 110, 100]));
        let pause_ms = FLUSH_MOVE_PAUSE.as_millis() as u64;
        assert_eq!(looks(&mut judge, 0, pause_ms, &slow), [(750, 3)]);
        assert_eq!(looks(&mut judge, pause_ms, 2 * pause_ms, &slow), [(pause_ms + 750, 3)]);
    }

    /// Nothing moves for a spike, when all are slow, when one other is as slow and the rest is no majority, alone, nor for
    /// differences among fast disks.
    #[test]
    fn stays() {
        let mut judge = Judge::default();
        for at in 0..8 {
            let times = if at % 3 == 2 { [100; 3] } else { [9_000, 100, 100] };
            assert_eq!(judge.look(ME, &voters(times), at * 250_000), None, "at look {at}");
        }
        for times in [[9_000, 9_000, 9_000], [9_000, 9_000, 100], [400, 100, 20], [4_000, 1_000, 1_000]] {
            assert_eq!(looks(&mut Judge::default(), 0, 5_000, &voters(times)), [], "{times:?}");
        }
        assert_eq!(looks(&mut Judge::default(), 0, 5_000, &voters([9_000, 1, 1])[..1]), []);
        assert_eq!(looks(&mut Judge::default(), 0, 5_000, &voters([9_000, 1, 1])[..2]), []);
    }

    /// Not to a replica that is behind, whatever it said when it last answered; nor to one of which nothing is known.
    #[test]
    fn successor_keeps_up() {
        let mut late = voters([9_000, 100, 100]);
        late[2].keeps_up = false;
        assert_eq!(looks(&mut Judge::default(), 0, 5_000, &late), [], "one that keeps up is no majority");
        let mut five = voters([9_000, 100, 200]);
        five.extend([4, 5].map(|node| Voter { node: NodeId(node), us: Some(300), keeps_up: true }));
        five[1].keeps_up = false;
        five[2].us = None;
        assert_eq!(looks(&mut Judge::default(), 0, 1_000, &five), [], "two of five are no majority");
        five[2].us = Some(200);
        assert_eq!(looks(&mut Judge::default(), 0, 1_000, &five), [(750, 3)]);
    }

    /// Who was slow is held off until it was fast for a while; each time twice as long, until it was well for long.
    #[test]
    fn holds_off() {
        let (mut judge, least_s) = (Judge::default(), FLUSH_HOLD_OFF_MIN.as_secs());
        let mut now_s = 1_000;
        for expected_s in [least_s, 2 * least_s, 4 * least_s] {
            judge.look(ME, &voters([100, 9_000, 100]), now_s * 1_000_000);
            assert!(judge.is_held_off(NodeId(2), (now_s + expected_s) * 1_000_000 - 1));
            judge.look(ME, &voters([100; 3]), (now_s + 1) * 1_000_000);
            assert!(judge.is_held_off(NodeId(2), (now_s + expected_s) * 1_000_000 - 1), "fast again, not for long");
            assert!(!judge.is_held_off(NodeId(2), (now_s + expected_s) * 1_000_000));
            assert!(!judge.is_held_off(NodeId(3), now_s * 1_000_000));
            now_s += expected_s + 1;
        }
        now_s += FLUSH_HOLD_OFF_MAX.as_secs() + 4 * least_s;
        judge.look(ME, &voters([100, 9_000, 100]), now_s * 1_000_000);
        assert!(!judge.is_held_off(NodeId(2), (now_s + least_s) * 1_000_000));
    }

    /// A disk that becomes slow shows after the same share of a second, or after three entries where so few are written: times
    /// of before do not outweigh them.
    #[test]
    fn few_times_tell() {
        for (a_second, slow_after) in [(1, 3), (2, 3), (4, 3), (10, 6), (16, 9), (40, 9)] {
            let (times, gap_us) = (FlushTimes::default(), 1_000_000 / a_second);
            for entry in 0..40 {
                times.note_follower(NodeId(2), 100, entry * gap_us);
            }
            let slow = |entry: &u64| {
                let now_us = (40 + entry) * gap_us;
                times.note_follower(NodeId(2), 9_000, now_us);
                times.follower_us(NodeId(2), now_us) == Some(9_000)
            };
            assert_eq!((0..16).find(slow).map(|entry| entry + 1), Some(slow_after), "at {a_second} a second");
        }
    }

    /// The median bears outliers; an append that does not end counts while it does not.
    #[test]
    fn times() {
        let times = FlushTimes::default();
        assert_eq!((times.own_us(5), times.last_us()), (None, 0));
        for took in [100, 120, 90_000, 110, 95_000] {
            times.begun(1_000_000);
            times.ended(1_000_000, 1_000_000 + took);
        }
        assert_eq!(times.own_us(9_000_000), Some(120));
        times.begun(9_000_000);
        times.begun(9_000_500);
        assert_eq!(times.own_us(9_400_000), Some(400_000), "nothing is durable since the first of the two");
        times.ended(9_000_000, 9_500_000);
        assert_eq!((times.own_us(9_500_010), times.last_us()), (Some(90_000), 500_000));
        times.note_follower(NodeId(2), 0, 9_600_000);
        assert_eq!(times.follower_us(NodeId(2), 9_600_000), None, "nothing is said");
        for _ in 0..TIMES_MIN {
            times.note_follower(NodeId(2), 70, 9_600_000);
        }
        assert_eq!(times.follower_us(NodeId(2), 9_600_000), Some(70));
    }

    /// Each time counts for as long as any other: what a replica took for large entries minutes ago does not stay in the median of
    /// a shard in which hardly anything is written since.
    #[test]
    fn each_time_ages() {
        let (times, age_us) = (FlushTimes::default(), FLUSH_TIME_AGE_MAX.as_micros() as u64);
        for _ in 0..TIMES {
            times.note_follower(NodeId(2), 90_000, 5_000_000);
        }
        times.note_follower(NodeId(2), 70, 5_000_000 + age_us / 2);
        assert_eq!(times.follower_us(NodeId(2), 5_000_000 + age_us), Some(90_000));
        assert_eq!(times.follower_us(NodeId(2), 5_000_001 + age_us), None, "one is too few");
        for _ in 1..TIMES_MIN {
            times.note_follower(NodeId(2), 70, 5_000_001 + age_us);
        }
        assert_eq!(times.follower_us(NodeId(2), 5_000_001 + age_us), Some(70));
        assert_eq!(times.follower_us(NodeId(2), 5_000_001 + age_us + age_us / 2), None, "three are too few");
    }

    /// A follower that took long while it caught up is not slow for ever on a shard in which nothing is written any more; what it
    /// says later stands alone, and once is not enough.
    #[test]
    fn times_age() {
        let (times, age_us) = (FlushTimes::default(), FLUSH_TIME_AGE_MAX.as_micros() as u64);
        for _ in 0..TIMES {
            times.note_follower(NodeId(2), 90_000, 5_000_000);
        }
        times.begun(5_000_000);
        times.ended(5_000_000, 5_000_100);
        assert_eq!(times.follower_us(NodeId(2), 5_000_000 + age_us), Some(90_000));
        assert_eq!(times.follower_us(NodeId(2), 5_000_001 + age_us), None);
        assert_eq!(times.own_us(5_000_101 + age_us), None);
        for count in 1..=TIMES_MIN {
            times.note_follower(NodeId(2), 70, 6_000_000 + age_us);
            let known = (count == TIMES_MIN).then_some(70);
            assert_eq!(times.follower_us(NodeId(2), 6_000_000 + age_us), known, "of {count}");
        }
    }
}
