//! What can be wrong with a history: each anomaly, which promise it breaks, and the sentence that shows it.
//!
//! The promises are numbered as in the design page: 1 durable, 2 ordered, 3 committed reads, 4 definite or not.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use super::history::{Chain, Line};

/// Findings of one kind that are kept; more are only counted. One cause often shows in every event after it.
pub const FINDINGS_PER_KIND_MAX: usize = 1_000;

/// A promise that was not kept, with the events that show it. Offsets are of the finding's shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Anomaly {
    /// Promise 1: what was acknowledged at the default durability before a final read began is in it. Here it is not.
    LostWrite {
        /// The acknowledged batch; of several lost ones the one with the highest offset.
        acked: Line,
        /// The first of its records that is not there.
        offset: u64,
        /// The final read.
        read: Line,
        /// Whose it is.
        node: u64,
    },
    /// Promise 3: a committed record stays. A client was shown a high watermark, or a record, above this offset, and a
    /// final read that began later has nothing there.
    VanishedRead {
        /// The read that showed it.
        shown: Line,
        /// The record that is gone.
        offset: u64,
        /// The final read.
        read: Line,
        /// Whose it is.
        node: u64,
    },
    /// Promise 2: a record's offset never changes, and is never reused; replicas are alike. Two events (acks, reads of any
    /// replica) have different records at the same offset.
    InconsistentOffset {
        /// Where.
        offset: u64,
        /// The first event in the file that has a record there.
        first: Line,
        /// One that has another.
        second: Line,
    },
    /// Promises 2 and 4: a batch is written once at most, whether its outcome was known or not. A record is at more offsets
    /// than batches with it were sent (those not counted that failed for certain).
    Duplicate {
        /// Event that has it here.
        first: Line,
        /// One of its offsets.
        first_offset: u64,
        /// Event that has it there.
        second: Line,
        /// Another of its offsets.
        second_offset: u64,
        /// How often it was sent.
        sent: u64,
    },
    /// Promise 4: what failed for certain never appears. Here it is read.
    AbortedRead {
        /// The batch that failed.
        failed: Line,
        /// The read that shows a record of it.
        read: Line,
        /// Where.
        offset: u64,
    },
    /// Promises 1 and 2: a record is what a client sent, bit for bit, to that shard. Nobody sent this one.
    UnsentRecord {
        /// The read that shows it.
        read: Line,
        /// Where.
        offset: u64,
    },
    /// Promise 2: offsets are dense from 0. An offset was given or shown that is higher than all records that were ever
    /// sent to the shard could make it: below it there is an offset without a record, or with one written twice. Or a final
    /// read, which has everything, jumps over an offset that nobody has seen a record at.
    Gap {
        /// The event that shows the higher offset.
        line: Line,
        /// An offset below it at which no event has a record.
        missing: u64,
    },
    /// Promises 2 and 3: a batch is atomic: its records have consecutive offsets, all of them or none are written, and are
    /// committed at once. Here a part of it is missing, elsewhere, or on the other side of a high watermark.
    TornBatch {
        /// The batch.
        sent: Line,
        /// Where its first record is.
        base_offset: u64,
        /// How many records it has.
        count: u64,
        /// The event that shows where it is torn: the batch's own if the ack's count is another.
        shown: Line,
        /// Where it is torn: the offset at which its record is not.
        offset: u64,
    },
    /// Promise 2: one answer has its records in the order of their offsets. Here one is not behind the one before it.
    OutOfOrderPoll {
        /// The read.
        read: Line,
        /// The record.
        offset: u64,
        /// The one before it.
        previous: u64,
    },
    /// Promises 2 and 3: a consumer that goes on at `next_offset` sees every record once. The answer begins elsewhere than
    /// it was asked to, leaves an offset out, or says to go on elsewhere than behind its last record.
    SkippedPoll {
        /// The read.
        read: Line,
        /// The offset that was to come next.
        expected: u64,
        /// The one that came.
        offset: u64,
    },
    /// Promise 2: batches of one pipelined stream are in the shard in the order in which they were sent.
    NonMonotoneSend {
        /// The batch that was sent earlier.
        first: Line,
        /// Where it ends.
        first_end: u64,
        /// The one sent later.
        second: Line,
        /// Where it begins.
        second_offset: u64,
    },
    /// Promises 1 and 3 against the clock. A linearizable read has a high watermark that is not above all that was
    /// acknowledged, or shown to anyone, before it began; or a batch got an offset below such a record, though it was sent
    /// later.
    StaleTail {
        /// The read, or the batch.
        line: Line,
        /// Its high watermark, or its base offset.
        offset: u64,
        /// The event before it.
        before: Line,
        /// Where the log ended at least, by that event.
        end: u64,
    },
    /// Promise 3 against the clock: nothing is committed that was not sent. An ack or a high watermark is behind more records
    /// than had been sent when it was given (those not counted that failed for certain).
    FutureTail {
        /// The event.
        line: Line,
        /// The end of the log that it shows.
        end: u64,
        /// Records that had been sent by then.
        sent: u64,
    },
    /// Promise 3 against the clock, for one record: it was read before it was sent.
    FutureRecord {
        /// The read.
        read: Line,
        /// Where.
        offset: u64,
        /// The batch that has the record, the first one sent of several.
        sent: Line,
    },
    /// Promise 3: what a client has seen committed at a replica stays committed there. The high watermark is lower than in
    /// an earlier answer to the same client by the same node.
    WentBack {
        /// The later read.
        read: Line,
        /// Its high watermark.
        high_watermark: u64,
        /// The earlier read.
        before: Line,
        /// Its high watermark.
        high_watermark_before: u64,
    },
    /// Promises 1 and 3: what was not to go is kept. A log start is above all that trims asked for until then, above a batch
    /// that is younger than what retention lets go, and above what has enough behind it to go for its size.
    LostPrefix {
        /// The event with the log start.
        line: Line,
        /// It.
        log_start: u64,
        /// Up to where the records could be gone: the largest trim before, or the end of what was old enough or too much.
        due: u64,
    },
    /// Promise 3: no consumer sees a record that is not committed. This one is not below the answer's own high watermark.
    UncommittedRead {
        /// The read.
        read: Line,
        /// The record.
        offset: u64,
        /// The answer's high watermark.
        high_watermark: u64,
    },
    /// Promise 2: replicas hold the same entries. Two statuses at the same number of applied entries have different chain
    /// hashes.
    Divergence {
        /// A status.
        first: Line,
        /// Its chain hash.
        first_chain: Chain,
        /// Another one.
        second: Line,
        /// Its chain hash.
        second_chain: Chain,
        /// The entries that both have applied.
        applied_end: u64,
    },
    /// Promise 2, of a conditional append: it is written at the expected offset or not at all. It is somewhere else.
    MisplacedBatch {
        /// The batch.
        sent: Line,
        /// Where its first record was to be.
        expected_offset: u64,
        /// Where it is.
        base_offset: u64,
    },
    /// What a start at the latest record promises: only what was not committed yet. The answer begins below the end that it,
    /// as linearizable, must have known, or that the same node had told the same client, or below its `min_offset`.
    StaleStart {
        /// The read.
        read: Line,
        /// Where it begins.
        offset: u64,
        /// The event before it, or itself.
        before: Line,
        /// Where the log ended at least, by that event.
        end: u64,
    },
    /// What a start at a time promises: the first record that is not older. This batch is older and the answer begins with it,
    /// or it is not, is kept, and the answer begins behind it.
    WrongStart {
        /// The read.
        read: Line,
        /// Where it begins.
        offset: u64,
        /// The batch.
        batch: Line,
        /// Its timestamp.
        timestamp_us: i64,
        /// What was asked for.
        asked_us: i64,
    },
    /// Timestamps that a shard gives never go back. The second batch is behind the first, and has an earlier one.
    TimeWentBack {
        /// A batch.
        first: Line,
        /// Its timestamp.
        first_us: i64,
        /// The next one whose timestamp is known.
        second: Line,
        /// Its timestamp.
        second_us: i64,
    },
    /// What `min_offset` promises: records below it are committed and visible at whichever replica answers. The answer's
    /// high watermark is lower.
    ReadYourWrites {
        /// The read.
        read: Line,
        /// What was asked for.
        min_offset: u64,
        /// What was given.
        high_watermark: u64,
    },
}

impl Anomaly {
    /// Its name, as in JSON.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Anomaly::LostWrite { .. } => "lost_write",
            Anomaly::VanishedRead { .. } => "vanished_read",
            Anomaly::InconsistentOffset { .. } => "inconsistent_offset",
            Anomaly::Duplicate { .. } => "duplicate",
            Anomaly::AbortedRead { .. } => "aborted_read",
            Anomaly::UnsentRecord { .. } => "unsent_record",
            Anomaly::Gap { .. } => "gap",
            Anomaly::TornBatch { .. } => "torn_batch",
            Anomaly::OutOfOrderPoll { .. } => "out_of_order_poll",
            Anomaly::SkippedPoll { .. } => "skipped_poll",
            Anomaly::NonMonotoneSend { .. } => "non_monotone_send",
            Anomaly::StaleTail { .. } => "stale_tail",
            Anomaly::FutureTail { .. } => "future_tail",
            Anomaly::FutureRecord { .. } => "future_record",
            Anomaly::WentBack { .. } => "went_back",
            Anomaly::LostPrefix { .. } => "lost_prefix",
            Anomaly::UncommittedRead { .. } => "uncommitted_read",
            Anomaly::Divergence { .. } => "divergence",
            Anomaly::ReadYourWrites { .. } => "read_your_writes",
            Anomaly::MisplacedBatch { .. } => "misplaced_batch",
            Anomaly::StaleStart { .. } => "stale_start",
            Anomaly::WrongStart { .. } => "wrong_start",
            Anomaly::TimeWentBack { .. } => "time_went_back",
        }
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Anomaly::InconsistentOffset { offset, first, second } => {
                write!(f, "offset {offset} has one record in {first} and another in {second}")
            }
            Anomaly::Duplicate { first, first_offset, second, second_offset, sent } => {
                write!(
                    f,
                    "a record that was sent {sent} times is at offset {first_offset} in {first}, and again at offset {second_offset} in {second}"
                )
            }
            Anomaly::AbortedRead { failed, read, offset } => {
                write!(
                    f,
                    "the record at offset {offset} in {read} is of the batch in {failed}, which failed for certain"
                )
            }
            Anomaly::UnsentRecord { read, offset } => {
                write!(f, "nobody ever sent the record at offset {offset} in {read}")
            }
            Anomaly::Gap { line, missing } => {
                write!(f, "{line} shows a record behind offset {missing}, at which there is none")
            }
            Anomaly::TornBatch { sent, base_offset, count, shown, offset } => {
                write!(
                    f,
                    "the batch of {count} records in {sent}, at offset {base_offset}, is torn at offset {offset} in {shown}"
                )
            }
            Anomaly::OutOfOrderPoll { read, offset, previous } => {
                write!(f, "{read} has offset {offset} behind offset {previous}")
            }
            Anomaly::SkippedPoll { read, expected, offset } => {
                write!(f, "{read} goes on at offset {offset} where offset {expected} comes next")
            }
            Anomaly::UncommittedRead { read, offset, high_watermark } => {
                write!(f, "{read} shows offset {offset}, which is not below its high watermark {high_watermark}")
            }
            Anomaly::Divergence { first, first_chain, second, second_chain, applied_end } => {
                write!(
                    f,
                    "after {applied_end} entries the chain hash is {first_chain} in {first} and {second_chain} in {second}"
                )
            }
            Anomaly::LostWrite { .. }
            | Anomaly::VanishedRead { .. }
            | Anomaly::NonMonotoneSend { .. }
            | Anomaly::StaleTail { .. }
            | Anomaly::FutureTail { .. }
            | Anomaly::FutureRecord { .. }
            | Anomaly::WentBack { .. }
            | Anomaly::LostPrefix { .. }
            | Anomaly::ReadYourWrites { .. } => self.fmt_in_time(f),
            Anomaly::MisplacedBatch { .. }
            | Anomaly::StaleStart { .. }
            | Anomaly::WrongStart { .. }
            | Anomaly::TimeWentBack { .. } => self.fmt_of_places(f),
        }
    }
}

impl Anomaly {
    /// The sentences about what came before what.
    fn fmt_in_time(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Anomaly::LostWrite { acked, offset, read, node } => {
                write!(
                    f,
                    "offset {offset} was acknowledged in {acked}, and is not in the final read of node {node}, {read}"
                )
            }
            Anomaly::VanishedRead { shown, offset, read, node } => {
                write!(
                    f,
                    "offset {offset} was shown as committed in {shown}, and is not in the final read of node {node}, {read}"
                )
            }
            Anomaly::NonMonotoneSend { first, first_end, second, second_offset } => {
                write!(
                    f,
                    "the batch in {second} got offset {second_offset}, and the one sent before it in the same stream, {first}, ends at {first_end}"
                )
            }
            Anomaly::StaleTail { line, offset, before, end } => {
                write!(
                    f,
                    "{line} has the log end at offset {offset}, and {before}, which was over when it began, at {end}"
                )
            }
            Anomaly::FutureTail { line, end, sent } => {
                write!(f, "{line} has the log end at offset {end}, when only {sent} records of it had been sent")
            }
            Anomaly::FutureRecord { read, offset, sent } => {
                write!(f, "{read} shows at offset {offset} a record that was sent later, in {sent}")
            }
            Anomaly::WentBack { read, high_watermark, before, high_watermark_before } => {
                write!(
                    f,
                    "{read} has high watermark {high_watermark}, after the same node gave the same client {high_watermark_before} in {before}"
                )
            }
            Anomaly::LostPrefix { line, log_start, due } => {
                write!(f, "{line} has log start {log_start}, and nothing at or above offset {due} was to go by then")
            }
            Anomaly::ReadYourWrites { read, min_offset, high_watermark } => {
                write!(
                    f,
                    "{read} asked for everything below offset {min_offset}, and has high watermark {high_watermark}"
                )
            }
            Anomaly::MisplacedBatch { .. }
            | Anomaly::StaleStart { .. }
            | Anomaly::WrongStart { .. }
            | Anomaly::TimeWentBack { .. }
            | Anomaly::InconsistentOffset { .. }
            | Anomaly::Duplicate { .. }
            | Anomaly::AbortedRead { .. }
            | Anomaly::UnsentRecord { .. }
            | Anomaly::Gap { .. }
            | Anomaly::TornBatch { .. }
            | Anomaly::OutOfOrderPoll { .. }
            | Anomaly::SkippedPoll { .. }
            | Anomaly::UncommittedRead { .. }
            | Anomaly::Divergence { .. } => fmt::Display::fmt(self, f),
        }
    }
}

impl Anomaly {
    /// The sentences about where something was to be.
    fn fmt_of_places(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Anomaly::MisplacedBatch { sent, expected_offset, base_offset } => {
                write!(
                    f,
                    "the batch in {sent} was to be at offset {expected_offset} or nowhere, and is at offset {base_offset}"
                )
            }
            Anomaly::StaleStart { read, offset, before, end } => {
                write!(
                    f,
                    "{read} asked for what comes next and begins at offset {offset}, where {before} has the log end at {end}"
                )
            }
            Anomaly::WrongStart { read, offset, batch, timestamp_us, asked_us } => {
                write!(
                    f,
                    "{read} asked for what is not older than {asked_us} µs and begins at offset {offset}, but {batch} is of {timestamp_us} µs"
                )
            }
            Anomaly::TimeWentBack { first, first_us, second, second_us } => {
                write!(f, "{second} has timestamp {second_us} µs behind {first}, which has {first_us} µs")
            }
            Anomaly::InconsistentOffset { .. }
            | Anomaly::Duplicate { .. }
            | Anomaly::AbortedRead { .. }
            | Anomaly::UnsentRecord { .. }
            | Anomaly::Gap { .. }
            | Anomaly::TornBatch { .. }
            | Anomaly::OutOfOrderPoll { .. }
            | Anomaly::SkippedPoll { .. }
            | Anomaly::UncommittedRead { .. }
            | Anomaly::Divergence { .. }
            | Anomaly::LostWrite { .. }
            | Anomaly::VanishedRead { .. }
            | Anomaly::NonMonotoneSend { .. }
            | Anomaly::StaleTail { .. }
            | Anomaly::FutureTail { .. }
            | Anomaly::FutureRecord { .. }
            | Anomaly::WentBack { .. }
            | Anomaly::LostPrefix { .. }
            | Anomaly::ReadYourWrites { .. } => fmt::Display::fmt(self, f),
        }
    }
}

/// An anomaly, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The topic.
    pub topic: String,
    /// Number of the shard in it.
    pub shard: u32,
    /// What is wrong.
    #[serde(flatten)]
    pub anomaly: Anomaly,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: topic {} shard {}: {}", self.anomaly.kind(), self.topic, self.shard, self.anomaly)
    }
}

/// The verdict on a history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Events that were judged.
    pub events: usize,
    /// Shards that they are about.
    pub shards: usize,
    /// Records that were acknowledged at the default durability.
    pub acked_records: u64,
    /// How many findings there are, by kind, also those that are not kept.
    pub counts: BTreeMap<&'static str, u64>,
    /// Up to `FINDINGS_PER_KIND_MAX` findings of each kind, by shard.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// Adds a finding, or only counts it.
    pub(super) fn add(&mut self, shard: (&str, u32), anomaly: Anomaly) {
        let count = self.counts.entry(anomaly.kind()).or_default();
        *count += 1;
        if *count <= FINDINGS_PER_KIND_MAX as u64 {
            self.findings.push(Finding { topic: shard.0.to_owned(), shard: shard.1, anomaly });
        }
    }
}
