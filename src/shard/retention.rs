//! Which prefix of a shard may go, and the task that lets it go.
//!
//! The log start moves first, by a command through the log; then segments wholly below it are deleted. A crash in
//! between leaves files that the next round deletes. Age is looked at even in the segment that is still
//! written, so that an idle shard's records go in time (its file stays until it is full). Each replica deletes its own
//! segments, whoever has moved the log start: this task does it on followers, also of a shard without limits, and later what
//! could not be deleted at once.

use std::{collections::BTreeMap, pin::pin, rc::Rc, time::Duration};

use futures_util::future::{Either, select};
use openraft::AsyncRuntime;

use super::{
    Inner, Life, Operation, ShardError,
    machine::{ShardAnswer, ShardMachine},
};
use crate::{
    env::Env,
    ids::{Index, LogId, Offset},
    limits::{BLOCK_BYTES, SEGMENT_BYTES_MIN},
    log::SegmentInfo,
    raft::Proposal,
};

/// How often it is looked at, beside each segment's end.
const EVERY: Duration = Duration::from_secs(10);

/// Shortest time between looks, however short the age limit is.
const EVERY_MIN: Duration = Duration::from_millis(500);

/// What may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Retention {
    /// Bytes of segment files; 0: no limit.
    pub(super) bytes_max: u64,
    /// 0: no limit.
    pub(super) age_ms_max: u64,
}

/// Largest segment of a shard that keeps `retention_bytes_max`: a quarter of it, so that there is something to
/// delete before the limit is passed by much. 0: no limit.
pub(super) fn segment_bytes(segment_bytes_max: u64, retention_bytes_max: u64) -> u64 {
    if retention_bytes_max == 0 {
        return segment_bytes_max;
    }
    let quarter = retention_bytes_max / 4 / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    segment_bytes_max.min(quarter.max(SEGMENT_BYTES_MIN))
}

/// What is known of the segments' ages.
///
/// With t on the monotonic clock, `BELIEF` and agreed(t) of `peer::clocks`, and for each segment s as it is now
///
/// ```text
/// seen(s)      when this process first saw s with its present last entry: never before that was written
/// recovered(s) s was seen when the shard was opened, and has not changed since
/// stamp(s)     timestamp of its last entry; in the order of the log it never goes back (`Log::timestamp_us`)
/// ```
///
/// s may go by age when `seen(s) + limit < t`, which no wall clock moves, or, if it is recovered, when
/// `stamp(s) + limit < agreed(t)`; then a majority of the voters' clocks have passed that time, and have stood so for
/// `BELIEF`. A record stamped in the future goes by the first rule. A process that runs shorter than the limit needs the
/// second one: what was written before its start goes `BELIEF` after the start, at the earliest, or else by the first.
/// A leader whose clock is not where most others' are stamps with theirs; only what was written while no majority agreed, or
/// its clock was wrong within `DIFFERENCE_MAX`, is taken for older or younger than it is, once the process was restarted.
#[derive(Debug, Default)]
pub(super) struct Ages {
    looked: bool,
    /// By first entry; as many as there are segments.
    seen: BTreeMap<Index, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    last: LogId,
    seen_us: u64,
    recovered: bool,
}

/// Now, by both clocks.
#[derive(Clone, Copy, Debug)]
struct Now {
    monotonic_us: u64,
    /// As far as it is believed; none: it is not.
    agreed_us: Option<i64>,
}

impl Ages {
    /// To be called with all segments when the shard is opened, and from time to time.
    fn look(&mut self, segments: &[SegmentInfo], now_us: u64) {
        let recovered = !std::mem::replace(&mut self.looked, true);
        let mut before = std::mem::take(&mut self.seen);
        for segment in segments {
            let known = before.remove(&segment.first.index).filter(|seen| seen.last == segment.last);
            let seen = known.unwrap_or(Seen { last: segment.last, seen_us: now_us, recovered });
            self.seen.insert(segment.first.index, seen);
        }
    }

    /// Whether the segment's last entry was certainly written `limit_us` ago.
    fn has_passed(&self, segment: &SegmentInfo, limit_us: u64, now: Now) -> bool {
        let seen = self.seen.get(&segment.first.index).filter(|seen| seen.last == segment.last);
        let Some(seen) = seen else { return false };
        let stamped_us = segment.last_timestamp_us.saturating_add(i64::try_from(limit_us).unwrap_or(i64::MAX));
        seen.seen_us.saturating_add(limit_us) < now.monotonic_us
            || (seen.recovered && now.agreed_us.is_some_and(|agreed_us| stamped_us < agreed_us))
    }
}

/// The log start that retention wants, if any of these segments (oldest first) is to go.
fn boundary(
    segments: &[SegmentInfo],
    retention: Retention,
    has_passed: impl Fn(&SegmentInfo, u64) -> bool,
) -> Option<Offset> {
    let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let limit_us = retention.age_ms_max.saturating_mul(1000);
    let mut boundary = None;
    for segment in segments {
        let too_old = retention.age_ms_max > 0 && has_passed(segment, limit_us);
        let too_much = retention.bytes_max > 0 && bytes > retention.bytes_max && segment.sealed;
        if !too_old && !too_much {
            break;
        }
        bytes -= segment.bytes;
        boundary = Some(segment.end_offset);
    }
    boundary
}

/// Last entry of the segments that are wholly below `log_start`.
fn purgeable(segments: &[SegmentInfo], log_start: Offset) -> Option<Index> {
    let below = segments.iter().take_while(|segment| segment.sealed && segment.end_offset <= log_start);
    below.last().map(|segment| segment.last.index)
}

/// Looks at the shard at each segment's end, when the log start has moved, and from time to time while there are limits or
/// something is left to be deleted; until it closes.
pub(super) async fn run<E: Env>(inner: Rc<Inner<E>>) {
    let retention = inner.retention();
    let every = match retention.map_or(0, |retention| retention.age_ms_max) {
        0 => EVERY,
        age_ms => Duration::from_millis(age_ms / 2).clamp(EVERY_MIN, EVERY),
    };
    inner.look_at_ages();
    let mut changed = inner.rolled.notified();
    // Shards that were opened together do not look together.
    let mut wait = Duration::from_micros(E::random_u64() % every.as_micros() as u64);
    while inner.life.get() == Life::Serving {
        // An idle shard without limits costs nothing.
        if retention.is_some() || inner.purgeable().is_some() {
            // Either way it is time to look.
            drop(<E::Runtime as AsyncRuntime>::timeout(wait, changed).await);
        } else {
            changed.await;
        }
        wait = every;
        // What changes while it is looked at is looked at again.
        changed = inner.rolled.notified();
        if inner.check_life().is_err() {
            return;
        }
        let done = match retention {
            Some(retention) => inner.retain(retention).await,
            None => inner.purge().await,
        };
        if let Err(error) = done {
            tracing::warn!(shard = inner.options.uid.0, %error, "retention could not be applied; it is tried again");
        }
    }
}

impl<E: Env> Inner<E> {
    /// The limits, if there are any.
    pub(super) fn retention(&self) -> Option<Retention> {
        let bytes_max = self.options.retention_bytes_max;
        let age_ms_max = self.options.retention_age_ms_max;
        (bytes_max > 0 || age_ms_max > 0).then_some(Retention { bytes_max, age_ms_max })
    }

    /// Applies the limits once.
    pub(super) async fn retain(self: &Rc<Self>, retention: Retention) -> Result<(), ShardError> {
        let segments = self.look_at_ages();
        let by_age = self.believes_clocks();
        let retention = if by_age { retention } else { Retention { age_ms_max: 0, ..retention } };
        let now = self.now();
        let wanted = boundary(&segments, retention, |segment, us| self.ages.borrow().has_passed(segment, us, now));
        // Entries that are not committed yet may be in a segment that is full already. Followers trim when they are told to.
        let wanted = wanted.map(|offset| offset.min(self.group.high_watermark())).filter(|_| self.group.leads());
        if let Some(before) = wanted.filter(|before| *before > self.log_start()) {
            self.trim(before).await?;
        }
        self.purge().await
    }

    /// Notes since when the segments are as they are.
    fn look_at_ages(&self) -> Vec<SegmentInfo> {
        let segments = self.group.log().segments();
        self.ages.borrow_mut().look(&segments, E::monotonic_us());
        segments
    }

    fn now(&self) -> Now {
        let monotonic_us = E::monotonic_us();
        let voters = self.group.members().voters;
        Now { monotonic_us, agreed_us: self.peers.liveness().clocks().agreed_us(&voters, monotonic_us) }
    }

    /// Whether this node's clock is where the others' are; the ping's task says so when it is not.
    fn believes_clocks(&self) -> bool {
        let found = self.peers.liveness().clocks().difference(self.options.node, E::monotonic_us());
        found.is_none_or(|found| !found.differs)
    }

    /// Moves the log start up to `before` by a command.
    pub(super) async fn trim(self: &Rc<Self>, before: Offset) -> Result<Offset, ShardError> {
        self.check_life()?;
        let _operation = Operation::begin(self);
        let proposal = Proposal::command(&ShardMachine::trim_command(before), self.group.stamp_us());
        match self.group.propose(proposal).await?.answer {
            ShardAnswer::Trimmed(log_start) => {
                self.check_offsets();
                Ok(log_start)
            }
            ShardAnswer::Appended | ShardAnswer::Void | ShardAnswer::Unknown => Err(ShardError::Failed {
                cause: "a trim was not understood by this shard's own state machine".to_owned(),
                maybe_written: true,
            }),
        }
    }

    /// Deletes segments that are wholly below the log start; those that are not deleted yet when the shard closes stay for the next
    /// round.
    pub(super) async fn purge(self: &Rc<Self>) -> Result<(), ShardError> {
        self.check_life()?;
        let _operation = Operation::begin(self);
        let Some(index) = self.purgeable() else { return Ok(()) };
        // A leader may put it off for a follower's sake: `close` does not wait for that.
        match select(pin!(self.group.purge_to(index)), pin!(self.closing())).await {
            Either::Left((purged, _)) => Ok(purged?),
            Either::Right(((), _)) => Ok(()),
        }
    }

    /// Last entry that may go, if there is a checkpoint up to which the log can be purged.
    pub(super) fn purgeable(&self) -> Option<Index> {
        let log = self.group.log();
        let index = purgeable(&log.segments(), self.log_start())?;
        log.checkpoints().into_iter().any(|kept| (log.first_index()..=index).contains(&kept)).then_some(index)
    }

    /// Suspends until the shard closes.
    async fn closing(&self) {
        loop {
            let changed = self.idle.notified();
            if self.life.get() != Life::Serving {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{LogId, Term};

    /// Segments of 10 records, 10 entries and 100 bytes each, written at the given times (ms); the last is not sealed.
    fn segments(times_ms: &[i64]) -> Vec<SegmentInfo> {
        let id = |index| LogId { term: Term(1), index: Index(index) };
        let segment = |(number, time_ms): (usize, &i64)| SegmentInfo {
            first: id(number as u64 * 10),
            last: id(number as u64 * 10 + 9),
            base_offset: Offset(number as u64 * 10),
            end_offset: Offset(number as u64 * 10 + 10),
            bytes: 100,
            last_timestamp_us: time_ms * 1000,
            sealed: number + 1 < times_ms.len(),
        };
        times_ms.iter().enumerate().map(segment).collect()
    }

    /// Of recovered segments, by a clock that is believed.
    fn wants(times_ms: &[i64], bytes_max: u64, age_ms_max: u64, now_ms: i64) -> Option<u64> {
        let (segments, mut ages) = (segments(times_ms), Ages::default());
        ages.look(&segments, 0);
        let now = Now { monotonic_us: 0, agreed_us: Some(now_ms * 1000) };
        let has_passed = |segment: &SegmentInfo, us| ages.has_passed(segment, us, now);
        boundary(&segments, Retention { bytes_max, age_ms_max }, has_passed).map(|offset| offset.0)
    }

    /// Seen in this process: the monotonic clock alone decides, from when the segment was last added to. Recovered: the agreed
    /// time does, too, until something is added.
    #[test]
    fn ages() {
        let (mut old, mut ages) = (segments(&[1, 2]), Ages::default());
        let passed = |ages: &Ages, segment: &SegmentInfo, monotonic_us, agreed_us| {
            ages.has_passed(segment, 10_000, Now { monotonic_us, agreed_us })
        };
        assert!(!passed(&ages, &old[0], u64::MAX, Some(i64::MAX)), "never seen");
        ages.look(&old, 500);
        assert!(!passed(&ages, &old[1], 500, Some(12_000)) && passed(&ages, &old[1], 500, Some(12_001)));
        assert!(!passed(&ages, &old[1], 10_500, None) && passed(&ages, &old[1], 10_501, None));
        old[1].last.index.0 += 1;
        assert!(!passed(&ages, &old[1], u64::MAX, Some(i64::MAX)), "not seen as it is");
        ages.look(&old, 700);
        assert!(!passed(&ages, &old[1], 10_700, Some(i64::MAX)) && passed(&ages, &old[1], 10_701, None));
        assert!(passed(&ages, &old[0], 700, Some(11_001)), "it is as it was recovered");
        ages.look(&old[1..], 900);
        assert_eq!(ages.seen.len(), 1);
    }

    /// By size the oldest segments go until the rest fits; the one that is written stays.
    #[test]
    fn by_size() {
        assert_eq!(wants(&[0, 0, 0, 0], 400, 0, 9), None);
        assert_eq!(wants(&[0, 0, 0, 0], 399, 0, 9), Some(10));
        assert_eq!(wants(&[0, 0, 0, 0], 200, 0, 9), Some(20));
        assert_eq!(wants(&[0, 0, 0, 0], 1, 0, 9), Some(30));
        assert_eq!(wants(&[0], 1, 0, 9), None);
        assert_eq!(wants(&[], 1, 1, 9), None);
    }

    /// By age everything goes whose newest entry is older, the segment that is written included.
    #[test]
    fn by_age() {
        assert_eq!(wants(&[10, 20, 30], 0, 15, 25), None);
        assert_eq!(wants(&[10, 20, 30], 0, 15, 26), Some(10));
        assert_eq!(wants(&[10, 20, 30], 0, 15, 36), Some(20));
        assert_eq!(wants(&[10, 20, 30], 0, 15, 46), Some(30));
        assert_eq!(wants(&[30, 10, 20], 0, 15, 40), None, "a prefix only");
        assert_eq!(wants(&[10], 0, u64::MAX, 46), None);
    }

    /// Either limit is enough.
    #[test]
    fn by_both() {
        assert_eq!(wants(&[10, 20, 30], 250, 1000, 40), Some(10));
        assert_eq!(wants(&[10, 20, 30], 250, 15, 36), Some(20));
    }

    /// Files go only when all of their records are below the log start.
    #[test]
    fn whole_segments_go() {
        let segments = segments(&[1, 2, 3]);
        let purgeable = |log_start| purgeable(&segments, Offset(log_start)).map(|index| index.0);
        assert_eq!(purgeable(9), None);
        assert_eq!(purgeable(10), Some(9));
        assert_eq!(purgeable(19), Some(9));
        assert_eq!(purgeable(30), Some(19), "the last one is still written");
    }

    /// A small retention makes small segments, within their bounds.
    #[test]
    fn segment_sizes() {
        assert_eq!(segment_bytes(256 << 20, 0), 256 << 20);
        assert_eq!(segment_bytes(256 << 20, 100 << 20), 25 << 20);
        assert_eq!(segment_bytes(256 << 20, 1), SEGMENT_BYTES_MIN);
        assert!(segment_bytes(256 << 20, 12_345_678).is_multiple_of(BLOCK_BYTES as u64));
    }
}
