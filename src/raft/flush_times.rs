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
//! - Whoever gave the leadership away says so to each leader after it (`Message::Matched`): one that has just begun has measured
//!   nothing. Of such a replica what is not known does not count as well, for `FLUSH_DOUBT_MAX`. Of all others it does: in a
//!   cluster in which nothing is written nobody's disk is known, and each node is to lead its shards again after a restart.
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
        FLUSH_DOUBT_MAX, FLUSH_HOLD_OFF_MAX, FLUSH_HOLD_OFF_MIN, FLUSH_MOVE_PAUSE, FLUSH_SLOW_FACTOR, FLUSH_SLOW_FOR,
        FLUSH_SLOW_MIN, FLUSH_TIME_AGE_MAX, FLUSH_TIME_FRESH,
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

/// What a follower has said to this leader.
#[derive(Debug, Default)]
struct Follower {
    recent: Recent,
    /// It asks not to be led back before.
    hold_off_until_us: u64,
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
    followers: RefCell<BTreeMap<NodeId, Follower>>,
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
            self.followers.borrow_mut().entry(node).or_default().recent.push(us, now_us);
        }
    }

    /// A follower says for how long yet it asks not to be led back.
    pub fn note_hold_off(&self, node: NodeId, ms: u64, now_us: u64) {
        // Of another node nothing is believed that would keep it from leading for good.
        let until_us = if ms == 0 { 0 } else { now_us + (1_000 * ms).min(FLUSH_HOLD_OFF_MAX.as_micros() as u64) };
        self.followers.borrow_mut().entry(node).or_default().hold_off_until_us = until_us;
    }

    /// This node leads no more: what followers said to it is old when it leads again.
    fn forget_followers(&self) {
        self.followers.borrow_mut().clear();
    }

    /// What an append takes here: the median, or more while one takes longer.
    fn own_us(&self, now_us: u64) -> Option<u64> {
        let stalled_us = (self.pending.get() > 0).then(|| now_us.saturating_sub(self.moved_us.get()));
        self.own.borrow().median_us(now_us).max(stalled_us)
    }

    fn follower_us(&self, node: NodeId, now_us: u64) -> Option<u64> {
        self.followers.borrow().get(&node)?.recent.median_us(now_us)
    }

    fn hold_off_until_us(&self, node: NodeId) -> u64 {
        self.followers.borrow().get(&node).map_or(0, |follower| follower.hold_off_until_us)
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
    /// It gave the leadership away for its disk, and asks not to be led back before.
    hold_off_until_us: u64,
}

/// Decides from one look to the next. Pure.
#[derive(Debug, Default)]
pub struct Judge {
    /// The own disk was slow at every look from then on.
    slow_since_us: Option<u64>,
    /// No move is asked for before.
    move_from_us: u64,
    /// Others, as they were found slow by this node while it led, or asked for it.
    held_off: BTreeMap<NodeId, HeldOff>,
    /// This node led at the look before.
    has_led: bool,
    /// This node, as it gave the leadership away: what it asks of those that lead after it.
    own: HeldOff,
    /// It has not said so to any of them yet.
    is_unsaid: bool,
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
    /// It gave the leadership away: until then it counts as slow while nothing is known of it.
    doubted_until_us: u64,
}

impl HeldOff {
    /// It is slow now; anew, if it was not before.
    fn extend(&mut self, now_us: u64) {
        let (least_us, most_us) = (FLUSH_HOLD_OFF_MIN.as_micros() as u64, FLUSH_HOLD_OFF_MAX.as_micros() as u64);
        if !std::mem::replace(&mut self.is_slow, true) {
            // Well for long: what was before is forgotten.
            let was_well = now_us.saturating_sub(self.until_us) > most_us;
            self.next_us = if was_well { least_us } else { (2 * self.next_us).clamp(least_us, most_us) };
        }
        self.until_us = now_us + self.next_us;
    }
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
        self.has_led = true;
        self.keeping_up = voters.iter().filter(|voter| voter.keeps_up).map(|voter| voter.node).collect();
        self.hold_off(me, voters, now_us);
        let own = voters.iter().find(|voter| voter.node == me).filter(|own| is_slow(own, voters));
        let Some(own) = own else {
            self.slow_since_us = None;
            if now_us >= self.move_from_us {
                // What was asked for has not come: this leadership was not given away.
                (self.own.is_slow, self.is_unsaid) = (false, false);
                self.own.until_us = self.own.until_us.min(now_us);
            }
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
        self.own.extend(now_us);
        self.is_unsaid = true;
        Some(successor.node)
    }

    fn hold_off(&mut self, me: NodeId, voters: &[Voter], now_us: u64) {
        self.held_off.retain(|node, _| voters.iter().any(|voter| voter.node == *node));
        for voter in voters.iter().filter(|voter| voter.node != me) {
            let slow = is_slow(voter, voters);
            let held = self.held_off.entry(voter.node).or_default();
            let (asks, doubted) = (now_us < voter.hold_off_until_us, now_us < held.doubted_until_us);
            if slow || (doubted && voter.us.is_none()) {
                held.extend(now_us);
            } else if voter.us.is_some() {
                (held.is_slow, held.doubted_until_us) = (false, 0);
            }
            if asks {
                held.until_us = held.until_us.max(voter.hold_off_until_us);
            }
            if asks || (slow && doubted) {
                held.doubted_until_us = now_us.max(voter.hold_off_until_us) + FLUSH_DOUBT_MAX.as_micros() as u64;
            }
        }
    }

    fn is_held_off(&self, node: NodeId, now_us: u64) -> bool {
        self.held_off.get(&node).is_some_and(|held| now_us < held.until_us)
    }

    /// For how long yet this node asks not to be led back, in ms, 0: it does not ask. Counted from when it is said first: a disk may be
    /// so slow that the next leader hears nothing of this node for longer.
    fn asks_ms(&mut self, now_us: u64) -> u32 {
        if std::mem::take(&mut self.is_unsaid) {
            self.own.until_us = now_us + self.own.next_us;
        }
        u32::try_from(self.own.until_us.saturating_sub(now_us).div_ceil(1_000)).unwrap_or(u32::MAX)
    }

    /// This node does not lead: the next look as a leader is the first one. Says whether it led at the look before.
    fn rest(&mut self) -> bool {
        self.slow_since_us = None;
        self.keeping_up.clear();
        self.own.is_slow = false;
        std::mem::replace(&mut self.has_led, false)
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
            // Once: what comes after that is said to the next leadership, which may not be known here yet.
            if judge.rest() {
                inner.shared.flush_times.forget_followers();
            }
            return None;
        }
        let (now_us, times) = (E::monotonic_us(), &inner.shared.flush_times);
        let liveness = inner.network.peers().liveness();
        let end_before = std::mem::replace(&mut judge.end_before, inner.log.last());
        let progress: BTreeMap<NodeId, Option<LogId>> =
            self.progress().into_iter().map(|follower| (follower.node, follower.matched)).collect();
        let voter = |node: NodeId| {
            if node == inner.node {
                return Voter { node, us: times.own_us(now_us), keeps_up: true, hold_off_until_us: 0 };
            }
            let matched = progress.get(&node).copied().flatten();
            let keeps_up = matched.is_some() && matched >= end_before && liveness.is_alive(node);
            let hold_off_until_us = times.hold_off_until_us(node);
            Voter { node, us: times.follower_us(node, now_us), keeps_up, hold_off_until_us }
        };
        let voters: Vec<Voter> = self.members().voters.into_iter().map(voter).collect();
        judge.look(inner.node, &voters, now_us)
    }

    /// For how long yet this node asks not to be led back, in ms: it gave the leadership away because its disk was slow. 0: it does
    /// not ask.
    pub(super) fn hold_off_ms(&self) -> u32 {
        let mut judge = self.inner.judge.borrow_mut();
        // Most have never given it away.
        if judge.own.until_us == 0 { 0 } else { judge.asks_ms(E::monotonic_us()) }
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
        times_us.into_iter().enumerate().map(|(at, us)| voter(at as u64 + 1, Some(us))).collect()
    }

    fn voter(node: u64, us: Option<u64>) -> Voter {
        Voter { node: NodeId(node), us, keeps_up: true, hold_off_until_us: 0 }
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

    /// A leader whose disk was slow for a moment, and that leads on, asks for nothing when it is followed by another much later.
    #[test]
    fn what_was_not_given_away() {
        let (mut judge, pause_ms) = (Judge::default(), FLUSH_MOVE_PAUSE.as_millis() as u64);
        assert_eq!(looks(&mut judge, 0, 1_000, &voters([9_000, 100, 100])), [(750, 2)]);
        assert_eq!(looks(&mut judge, 1_000, 2 * pause_ms, &voters([100; 3])), []);
        judge.rest();
        assert_eq!(judge.asks_ms(2 * pause_ms * 1_000), 0);
        assert_eq!(judge.asks_ms(2 * FLUSH_HOLD_OFF_MAX.as_micros() as u64), 0);
    }

    /// Not to a replica that is behind, whatever it said when it last answered; nor to one of which nothing is known.
    #[test]
    fn successor_keeps_up() {
        let mut late = voters([9_000, 100, 100]);
        late[2].keeps_up = false;
        assert_eq!(looks(&mut Judge::default(), 0, 5_000, &late), [], "one that keeps up is no majority");
        let mut five = voters([9_000, 100, 200]);
        five.extend([4, 5].map(|node| voter(node, Some(300))));
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

    /// Who gives the leadership away asks not to be led back, for twice as long when it was slow again; once for a move that takes
    /// several tries.
    #[test]
    fn asks_to_be_held_off() {
        let (mut judge, slow) = (Judge::default(), voters([1_000, 110, 100]));
        let (least_us, pause_ms) = (FLUSH_HOLD_OFF_MIN.as_micros() as u64, FLUSH_MOVE_PAUSE.as_millis() as u64);
        looks(&mut judge, 0, 750, &slow);
        assert_eq!(judge.own.until_us, 0, "it asks for nothing before it has given the leadership away");
        looks(&mut judge, 750, 1_000, &slow);
        assert_eq!(judge.own.until_us, 750_000 + least_us);
        looks(&mut judge, 1_000, 1_000 + pause_ms, &slow);
        assert_eq!(judge.own.until_us, (750 + pause_ms) * 1_000 + least_us, "nobody took over: it is the same move");
        assert_eq!((judge.rest(), judge.rest()), (true, false));
        let asks_ms: Vec<u32> = [25, 26, 36].into_iter().map(|at_s| judge.asks_ms(at_s * 1_000_000)).collect();
        let least_ms = (least_us / 1_000) as u32;
        assert_eq!(asks_ms, [least_ms, least_ms - 1_000, 0], "from when it says so first");
        looks(&mut judge, 40_000, 41_000, &slow);
        assert_eq!(judge.own.until_us, 40_750_000 + 2 * least_us);
    }

    /// Of a node that gave the leadership away what is not known is not well: it is held off as long as it asks, and then until its
    /// flushes are known to be fast for a while, or nothing was known for long. Of any other node it is well.
    #[test]
    fn unknown_is_not_well() {
        // One look a second; the first at which node 2 is not held off.
        let free_s = |judge: &mut Judge, mut seconds: std::ops::Range<u64>, voters: &[Voter]| {
            seconds.find(|second| {
                judge.look(ME, voters, second * 1_000_000);
                !judge.is_held_off(NodeId(2), second * 1_000_000)
            })
        };
        let (hold_off_s, doubt_s) = (FLUSH_HOLD_OFF_MIN.as_secs(), FLUSH_DOUBT_MAX.as_secs());
        let unknown = [1, 2, 3].map(|node| voter(node, None));
        let mut asking = unknown;
        asking[1].hold_off_until_us = hold_off_s * 1_000_000;
        assert_eq!(free_s(&mut Judge::default(), 0..1, &unknown), Some(0), "it has asked for nothing");

        let mut judge = Judge::default();
        assert_eq!(free_s(&mut judge, 0..1, &asking), None);
        let end_s = hold_off_s + doubt_s - 1 + hold_off_s;
        assert_eq!(free_s(&mut judge, 1..200, &unknown), Some(end_s), "nothing is written any more");

        let mut judge = Judge::default();
        assert_eq!(free_s(&mut judge, 0..1, &asking), None);
        assert_eq!(free_s(&mut judge, 1..40, &unknown), None, "unknown for longer than it has asked for");
        assert_eq!(free_s(&mut judge, 40..200, &voters([100; 3])), Some(39 + hold_off_s), "fast for a while");

        let mut judge = Judge::default();
        assert_eq!(free_s(&mut judge, 0..1, &asking), None);
        assert_eq!(free_s(&mut judge, 1..40, &unknown), None);
        assert_eq!(free_s(&mut judge, 40..41, &voters([100, 9_000, 100])), None);
        assert_eq!(
            free_s(&mut judge, 41..200, &unknown),
            Some(40 + doubt_s - 1 + hold_off_s),
            "still slow when last seen"
        );
        assert!(judge.fits(NodeId(3), 41_000_000));
    }

    /// A node keeps nobody from leading for longer than the longest hold-off, whatever it asks; what was said to an earlier
    /// leadership is forgotten.
    #[test]
    fn hold_off_as_asked() {
        let (times, most_us) = (FlushTimes::default(), FLUSH_HOLD_OFF_MAX.as_micros() as u64);
        assert_eq!(times.hold_off_until_us(NodeId(2)), 0);
        for (ms, until_us) in [(10_000, 15_000_000), (u64::from(u32::MAX), 5_000_000 + most_us), (0, 0), (1, 5_001_000)]
        {
            times.note_hold_off(NodeId(2), ms, 5_000_000);
            assert_eq!(times.hold_off_until_us(NodeId(2)), until_us);
        }
        for _ in 0..TIMES_MIN {
            times.note_follower(NodeId(2), 70, 5_000_000);
        }
        assert_eq!(times.follower_us(NodeId(2), 5_000_000), Some(70));
        times.forget_followers();
        assert_eq!((times.follower_us(NodeId(2), 5_000_000), times.hold_off_until_us(NodeId(2))), (None, 0));
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
