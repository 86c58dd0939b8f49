//! What a shard counts, as handles that are looked up once. Times are taken once per entry, not per record.

use metrics::{Counter, Histogram, counter, describe_counter, describe_histogram, histogram};

/// Handles; all shards of a node count into the same ones.
pub(super) struct Metrics {
    queue: Histogram,
    append: Histogram,
    commit: Histogram,
    reply: Histogram,
    records: Counter,
    bytes: Counter,
    entries: Counter,
    pub(super) refused_busy: Counter,
    pub(super) refused_deadline: Counter,
    pub(super) refused_offset: Counter,
    pub(super) refused_full: Counter,
    pub(super) refused_memory: Counter,
    pub(super) refused_unflushed: Counter,
    pub(super) voids: Counter,
    consumed_records: Counter,
    consumed_bytes: Counter,
}

/// When an entry passed its stations, on the monotonic clock, µs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stations {
    /// Its first request came.
    pub(super) queued_us: u64,
    /// It was handed to Raft.
    pub(super) proposed_us: u64,
    /// It was on stable storage here.
    pub(super) durable_us: u64,
    /// It was committed and applied.
    pub(super) applied_us: u64,
    /// Its requests were answered.
    pub(super) replied_us: u64,
}

impl Metrics {
    pub(super) fn new() -> Metrics {
        describe_histogram!(
            "ringlog_produce_stage_seconds",
            "Time of an entry in each stage: queue (first request to proposal), append (to stable storage here), \
             commit (to a majority, and applied), reply (answers handed out)"
        );
        describe_counter!("ringlog_produce_records_total", "Records that are committed");
        describe_counter!("ringlog_produce_bytes_total", "Bytes of them as stored");
        describe_counter!("ringlog_produce_entries_total", "Log entries that hold them");
        describe_counter!("ringlog_produce_refused_total", "Requests refused before anything was written, by reason");
        describe_counter!("ringlog_produce_voids_total", "Entries that had to be proposed again at another offset");
        describe_counter!("ringlog_consume_records_total", "Records read by consumers");
        describe_counter!("ringlog_consume_bytes_total", "Bytes of them");
        Metrics {
            queue: histogram!("ringlog_produce_stage_seconds", "stage" => "queue"),
            append: histogram!("ringlog_produce_stage_seconds", "stage" => "append"),
            commit: histogram!("ringlog_produce_stage_seconds", "stage" => "commit"),
            reply: histogram!("ringlog_produce_stage_seconds", "stage" => "reply"),
            records: counter!("ringlog_produce_records_total"),
            bytes: counter!("ringlog_produce_bytes_total"),
            entries: counter!("ringlog_produce_entries_total"),
            refused_busy: counter!("ringlog_produce_refused_total", "reason" => "busy"),
            refused_deadline: counter!("ringlog_produce_refused_total", "reason" => "deadline"),
            refused_offset: counter!("ringlog_produce_refused_total", "reason" => "offset"),
            refused_full: counter!("ringlog_produce_refused_total", "reason" => "full"),
            refused_memory: counter!("ringlog_produce_refused_total", "reason" => "memory"),
            refused_unflushed: counter!("ringlog_produce_refused_total", "reason" => "disk_behind"),
            voids: counter!("ringlog_produce_voids_total"),
            consumed_records: counter!("ringlog_consume_records_total"),
            consumed_bytes: counter!("ringlog_consume_bytes_total"),
        }
    }

    /// An entry was committed and its requests answered.
    pub(super) fn entry(&self, stations: Stations, records: u32, bytes: usize) {
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        self.queue.record(seconds(stations.queued_us, stations.proposed_us));
        self.append.record(seconds(stations.proposed_us, stations.durable_us));
        self.commit.record(seconds(stations.durable_us, stations.applied_us));
        self.reply.record(seconds(stations.applied_us, stations.replied_us));
        self.records.increment(u64::from(records));
        self.bytes.increment(bytes as u64);
        self.entries.increment(1);
    }

    /// A consumer got records.
    pub(super) fn consumed(&self, records: u64, bytes: usize) {
        self.consumed_records.increment(records);
        self.consumed_bytes.increment(bytes as u64);
    }
}
