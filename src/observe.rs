//! What an operator sees of a node: log lines, and metrics.
//!
//! Log lines go to stderr by way of a bounded queue and a thread of its own, so that a slow terminal
//! or a stuck pipe never stops a reactor: lines that do not fit are dropped and counted. Metrics are
//! recorded through the `metrics` facade and rendered for Prometheus; times are seconds, in fixed
//! buckets, so that figures of several nodes can be added.

pub mod line_queue;

use std::{sync::OnceLock, time::Instant};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::{config::LogFormat, env::domain, observe::line_queue::LineQueue};

/// Bounds of histograms of times, in seconds: from 10 µs, about 2 to 2.5 times each, to 10 s.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Bounds of histograms of sizes, in bytes: powers of 4 up to 64 MiB.
const BYTES_BUCKETS: &[f64] = &[
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Bounds of other histograms (records in a batch).
const COUNT_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 4_096.0, 16_384.0];

/// What the libraries below us say is for those who debug them; a filter that names them overrides this.
const QUIET_LIBRARIES: &str = "openraft=error,quinn_proto=error,h2=warn,hyper=warn,hyper_util=warn,tower=warn";

/// Sends log lines to stderr from now on, for the whole process. Does nothing when something else
/// (a test) receives them already.
///
/// # Errors
/// When the filter cannot be read, or the writing thread cannot be made.
pub fn start_logs(format: LogFormat, filter: &str) -> Result<&'static LineQueue, String> {
    static QUEUE: OnceLock<LineQueue> = OnceLock::new();
    let filter = EnvFilter::try_new(format!("{QUIET_LIBRARIES},{filter}"))
        .map_err(|error| format!("log_filter {filter:?} is not a tracing filter such as \"info\": {error}"))?;
    if QUEUE.get().is_none() {
        let queue = LineQueue::start().map_err(|error| format!("the log thread could not be started: {error}"))?;
        // Another thread was first: its queue is as good.
        drop(QUEUE.set(queue));
    }
    let queue = QUEUE.get().expect("set above");
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(QueueWriter(queue));
    let started = if json {
        tracing::subscriber::set_global_default(lines.json().flatten_event(true).finish())
    } else {
        tracing::subscriber::set_global_default(lines.with_ansi(terminal).with_target(false).finish())
    };
    // The only failure: a subscriber is there already.
    drop(started);
    Ok(queue)
}

struct QueueWriter(&'static LineQueue);

impl<'a> MakeWriter<'a> for QueueWriter {
    type Writer = line_queue::Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        self.0.line()
    }
}

/// The process's metrics: installed by the first call, the same for every node in it.
///
/// # Panics
/// When another recorder was installed before.
pub fn metrics() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets(COUNT_BUCKETS)
            .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS_BUCKETS))
            .and_then(|b| b.set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), BYTES_BUCKETS))
            .expect("no list of bounds is empty")
            .build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).expect("this is the only place that installs one");
        describe_process();
        handle
    })
}

fn describe_process() {
    metrics::describe_gauge!("ringlog_uptime_seconds", "Time since the process started to serve.");
    metrics::describe_gauge!("ringlog_resident_bytes", "Resident memory of the process.");
    metrics::describe_gauge!(
        "ringlog_memory_bytes",
        "Memory of a reactor for what is on its way, by use; and, beside that, of recent entries and of its mailbox."
    );
    metrics::describe_gauge!("ringlog_memory_limit_bytes", "As much of it as there may be (memory_bytes).");
    metrics::describe_gauge!("ringlog_memory_peak_bytes", "As much of it as there was at any time.");
    metrics::describe_gauge!("ringlog_open_files", "File descriptors that the process has open.");
    metrics::describe_counter!("ringlog_log_lines_dropped_total", "Log lines dropped because stderr was too slow.");
    metrics::describe_counter!(
        "ringlog_replicas_mended_total",
        "Damaged replicas, and catalogs, that were mended from other nodes' copies."
    );
    metrics::describe_counter!("ringlog_panics_total", "Panics that ended one replica or one call, by their place.");
    metrics::gauge!("ringlog_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// Reads what the kernel knows of this process into gauges. Blocks for some microseconds: not for reactors.
pub fn record_process(started: Instant) {
    metrics::gauge!("ringlog_uptime_seconds").set(started.elapsed().as_secs_f64());
    if let Some(bytes) = resident_bytes() {
        metrics::gauge!("ringlog_resident_bytes").set(bytes as f64);
    }
    #[allow(clippy::disallowed_methods, reason = "procfs, on the ops thread")]
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        metrics::gauge!("ringlog_open_files").set(files.count() as f64);
    }
}

/// Resident memory of this process; `None` where there is no procfs.
pub fn resident_bytes() -> Option<u64> {
    #[allow(clippy::disallowed_methods, reason = "procfs, on the ops thread")]
    let statm = String::from_utf8(std::fs::read("/proc/self/statm").ok()?).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// From now on a panic that no replica and no call contains ends the process, after the log lines: see `env::domain`.
pub fn end_on_panic(logs: &'static LineQueue) {
    domain::end_process(|| logs.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times are rendered in fixed buckets of seconds, and process figures are there.
    #[test]
    fn rendered() {
        let handle = metrics();
        metrics::histogram!("ringlog_observe_test_seconds").record(0.003);
        #[allow(clippy::disallowed_methods)]
        record_process(Instant::now());
        handle.run_upkeep();
        let page = handle.render();
        assert!(page.contains("ringlog_observe_test_seconds_bucket{le=\"0.0025\"} 0"), "{page}");
        assert!(page.contains("ringlog_observe_test_seconds_bucket{le=\"0.005\"} 1"), "{page}");
        assert!(page.contains("ringlog_build_info"), "{page}");
        assert!(resident_bytes().unwrap() > 1 << 20);
    }

    /// A filter that cannot be read is refused in words.
    #[test]
    fn bad_filter() {
        let error = start_logs(LogFormat::Json, "ringlog=loud").unwrap_err();
        assert!(error.contains("ringlog=loud"), "{error}");
    }
}
