//! Which prefix of a shard may go, and the task that lets it go.
//!
//! The log start moves first, by a command through the log; then segments wholly below it are deleted. A crash in
//! between leaves files that the next round deletes. Age is looked at even in the segment that is still
//! written, so that an idle shard's records go in time (its file stays until it is full).

use std::{rc::Rc, time::Duration};

use openraft::AsyncRuntime;

use super::{
    Inner, Life, Operation, ShardError,
    machine::{ShardAnswer, ShardMachine},
};
use crate::{
    env::Env,
    ids::{Index, Offset},
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

/// The log start that retention wants, if any of these segments (oldest first) is to go.
fn boundary(segments: &[SegmentInfo], retention: Retention, now_us: i64) -> Option<Offset> {
    let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
    let age_us = i64::try_from(retention.age_ms_max.saturating_mul(1000)).unwrap_or(i64::MAX);
    let mut boundary = None;
    for segment in segments {
        let too_old = retention.age_ms_max > 0 && segment.last_timestamp_us < now_us.saturating_sub(age_us);
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

/// Looks at the shard from time to time and at each segment's end, until it closes.
pub(super) async fn run<E: Env>(inner: Rc<Inner<E>>) {
    let Some(retention) = inner.retention() else { return };
    let every = match retention.age_ms_max {
        0 => EVERY,
        age_ms => Duration::from_millis(age_ms / 2).clamp(EVERY_MIN, EVERY),
    };
    // Shards that were opened together do not look together.
    let jitter_us = E::random_u64() % every.as_micros() as u64;
    let mut wait = Duration::from_micros(jitter_us);
    while inner.life.get() == Life::Serving {
        // Either way it is time to look.
        drop(<E::Runtime as AsyncRuntime>::timeout(wait, inner.rolled.notified()).await);
        wait = every;
        if inner.check_life().is_err() {
            return;
        }
        if let Err(error) = inner.retain(retention).await {
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
        let wanted = boundary(&self.group.log().segments(), retention, E::wall_us());
        // Entries that are not committed yet may be in a segment that is full already. Followers trim when they are told to.
        let wanted = wanted.map(|offset| offset.min(self.group.high_watermark())).filter(|_| self.group.leads());
        if let Some(before) = wanted.filter(|before| *before > self.log_start()) {
            self.trim(before).await?;
        }
        self.purge().await
    }

    /// Moves the log start up to `before` by a command.
    pub(super) async fn trim(self: &Rc<Self>, before: Offset) -> Result<Offset, ShardError> {
        self.check_life()?;
        let _operation = Operation::begin(self);
        let proposal = Proposal::command(&ShardMachine::trim_command(before), E::wall_us());
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

    /// Deletes segments that are wholly below the log start.
    pub(super) async fn purge(self: &Rc<Self>) -> Result<(), ShardError> {
        self.check_life()?;
        let _operation = Operation::begin(self);
        match purgeable(&self.group.log().segments(), self.log_start()) {
            Some(index) => Ok(self.group.purge_to(index).await?),
            None => Ok(()),
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

    fn wants(times_ms: &[i64], bytes_max: u64, age_ms_max: u64, now_ms: i64) -> Option<u64> {
        boundary(&segments(times_ms), Retention { bytes_max, age_ms_max }, now_ms * 1000).map(|offset| offset.0)
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
