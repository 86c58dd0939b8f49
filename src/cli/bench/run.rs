//! The state of one run: its phases, its clock, and what was measured.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::sync::Notify;

use crate::client::ClientError;

/// Longest latency that a histogram can hold; longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(3_600);

/// Errors printed; the others are counted.
const ERRORS_PRINTED: u64 = 5;

/// Latencies in nanoseconds with three digits.
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Latencies {
        let max = u64::try_from(LATENCY_MAX.as_nanos()).expect("an hour fits");
        Latencies(Histogram::new_with_bounds(1, max, 3).expect("constant bounds are valid"))
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// Microseconds below which `quantile` of the latencies are; 0 without any.
    pub(super) fn quantile_us(&self, quantile: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(quantile) as f64 / 1e3 }
    }

    /// Microseconds of the longest one.
    pub(super) fn max_us(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.max() as f64 / 1e3 }
    }

    /// Microseconds on average.
    pub(super) fn mean_us(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.mean() / 1e3 }
    }

    pub(super) fn count(&self) -> u64 {
        self.0.len()
    }
}

/// What the workers should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Send.
    Load,
    /// Finish what is in flight and wait.
    Pause,
    /// Finish what is in flight and end.
    Stop,
}

/// Shared by the workers of a run and their coordinator, all on one thread.
pub(super) struct Run {
    phase: Cell<Phase>,
    changed: Notify,
    parked: Notify,
    workers: Cell<usize>,
    parked_workers: Cell<usize>,
    /// Records still to be sent in this run.
    left: Cell<u64>,
    /// Since when acks count.
    measured_since: Cell<Option<Instant>>,
    /// End of what counts, once it is known.
    measured_until: Cell<Option<Instant>>,
    idle: Cell<Duration>,
    latencies: RefCell<Latencies>,
    records: Cell<u64>,
    errors: Cell<u64>,
}

impl Run {
    /// A run of `workers` that are not measured yet.
    pub(super) fn new(workers: usize) -> Run {
        Run {
            phase: Cell::new(Phase::Load),
            changed: Notify::new(),
            parked: Notify::new(),
            workers: Cell::new(workers),
            parked_workers: Cell::new(0),
            left: Cell::new(u64::MAX),
            measured_since: Cell::new(None),
            measured_until: Cell::new(None),
            idle: Cell::new(Duration::ZERO),
            latencies: RefCell::new(Latencies::new()),
            records: Cell::new(0),
            errors: Cell::new(0),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        if self.left.get() == 0 { Phase::Stop } else { self.phase.get() }
    }

    /// From now on acks count, and at most `records` more are sent.
    pub(super) fn measure(&self, records: u64) {
        self.left.set(records);
        self.measured_since.set(Some(Instant::now()));
    }

    /// Takes the right to send up to `requests` requests of `batch` records.
    pub(super) fn take(&self, requests: usize, batch: u64) -> usize {
        let possible = usize::try_from(self.left.get().div_ceil(batch)).unwrap_or(usize::MAX);
        let taken = requests.min(possible);
        if self.left.get() != u64::MAX {
            self.left.set(self.left.get().saturating_sub(taken as u64 * batch));
        }
        taken
    }

    /// Counts an ack that came at `now` for a request of `started`. Those sent before the measurement do not
    /// count as latencies (nor as records, when a number of records was asked for); those that come after its end do
    /// not count as records.
    pub(super) fn acknowledged(&self, started: Instant, now: Instant, records: u64) {
        let Some(since) = self.measured_since.get() else { return };
        if started >= since {
            self.latencies.borrow_mut().record(now.saturating_duration_since(started));
        } else if self.left.get() != u64::MAX {
            return;
        }
        if self.measured_until.get().is_none_or(|until| now <= until) {
            self.records.set(self.records.get() + records);
        }
    }

    /// Counts an error and prints the first few.
    pub(super) fn failed(&self, error: &ClientError) {
        let count = self.errors.get() + 1;
        self.errors.set(count);
        if count <= ERRORS_PRINTED {
            let more = if count == ERRORS_PRINTED { " (further ones are only counted)" } else { "" };
            drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("error: {error}{more}\n")));
        }
    }

    /// A worker with nothing in flight waits here while the run is paused.
    pub(super) async fn park(&self) {
        self.parked_workers.set(self.parked_workers.get() + 1);
        self.parked.notify_one();
        while self.phase() == Phase::Pause {
            self.changed.notified().await;
        }
        self.parked_workers.set(self.parked_workers.get() - 1);
    }

    /// A worker has ended.
    pub(super) fn left(&self) {
        self.workers.set(self.workers.get() - 1);
        self.parked.notify_one();
    }

    pub(super) fn workers(&self) -> usize {
        self.workers.get()
    }

    /// Lets what is in flight finish; returns when all workers wait or have ended.
    pub(super) async fn pause(&self) {
        self.phase.set(Phase::Pause);
        while self.parked_workers.get() < self.workers.get() {
            self.parked.notified().await;
        }
    }

    /// Goes on after a pause that kept all workers idle for `idle`.
    pub(super) fn resume(&self, idle: Duration) {
        self.idle.set(self.idle.get() + idle);
        self.phase.set(Phase::Load);
        self.changed.notify_waiters();
    }

    /// Ends the run; what is in flight still finishes.
    pub(super) fn stop(&self) {
        self.measured_until.set(Some(Instant::now()));
        self.phase.set(Phase::Stop);
        self.changed.notify_waiters();
    }

    /// Time under load that counts.
    pub(super) fn measured(&self) -> Duration {
        let Some(since) = self.measured_since.get() else { return Duration::ZERO };
        let until = self.measured_until.get().unwrap_or_else(Instant::now);
        until.saturating_duration_since(since).saturating_sub(self.idle.get())
    }

    pub(super) fn records(&self) -> u64 {
        self.records.get()
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors.get()
    }

    pub(super) fn latencies(&self) -> std::cell::Ref<'_, Latencies> {
        self.latencies.borrow()
    }
}

/// Intended times of an open loop: the n-th request of this worker is due at start + n × interval, and pauses move
/// all later ones.
pub(super) struct Schedule {
    next: Instant,
    interval: Duration,
}

impl Schedule {
    /// Worker `number` of `workers` that together send `rate` requests per second: their turns interleave.
    pub(super) fn new(start: Instant, rate: f64, number: usize, workers: usize) -> Schedule {
        let turn = 1.0 / rate;
        let next = start + Duration::from_secs_f64(turn * number as f64);
        Schedule { next, interval: Duration::from_secs_f64(turn * workers as f64) }
    }

    /// When the next request is due.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// The intended time of the next request, if it is due at `now`. A late caller gets the times that it missed,
    /// one after the other, so that their delay is measured.
    pub(super) fn due(&mut self, now: Instant) -> Option<Instant> {
        if now < self.next {
            return None;
        }
        let intended = self.next;
        self.next += self.interval;
        Some(intended)
    }

    /// Moves what is not due yet by a pause.
    pub(super) fn shift(&mut self, pause: Duration) {
        self.next += pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A stall of an open loop is charged to every request that was due in it, not to one.
    #[test]
    fn no_coordinated_omission() {
        let start = Instant::now();
        let run = Run::new(1);
        run.measured_since.set(Some(start));
        let mut schedule = Schedule::new(start, 1_000.0, 0, 1);
        let mut sent = 0;
        // The server stalls for 100 ms in the first request, then answers at once.
        let now = start + 100 * MS;
        while let Some(intended) = schedule.due(now) {
            run.acknowledged(intended, now, 1);
            sent += 1;
        }
        assert_eq!(sent, 101);
        let p50 = run.latencies().quantile_us(0.5);
        assert!((49_000.0..=51_000.0).contains(&p50), "{p50}");
        assert!((99_000.0..=101_000.0).contains(&run.latencies().max_us()));
        assert_eq!(run.records(), 101);
    }

    /// Workers take turns, and a pause is no delay.
    #[test]
    fn schedules() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 100.0, 1, 2);
        assert_eq!(schedule.due(start), None);
        assert_eq!(schedule.due(start + 10 * MS), Some(start + 10 * MS));
        schedule.shift(5 * MS);
        assert_eq!(schedule.next(), start + 35 * MS);
    }

    /// Percentiles of known latencies, and none of none.
    #[test]
    fn percentiles() {
        let mut latencies = Latencies::new();
        assert_eq!((latencies.quantile_us(0.99), latencies.max_us()), (0.0, 0.0));
        for us in 1..=1_000 {
            latencies.record(Duration::from_micros(us));
        }
        for (quantile, us) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0), (0.999, 999.0)] {
            let measured = latencies.quantile_us(quantile);
            assert!((measured / us - 1.0).abs() < 0.002, "{quantile}: {measured}");
        }
        latencies.record(LATENCY_MAX * 2);
        assert!(latencies.max_us() <= LATENCY_MAX.as_micros() as f64 * 1.001);
    }

    /// Warm-up does not count, nor do records after the end; a limit of records is kept.
    #[test]
    fn what_counts() {
        let run = Run::new(1);
        let before = Instant::now();
        run.acknowledged(before, before, 10);
        assert_eq!(run.take(5, 10), 5);
        run.measure(u64::MAX);
        run.acknowledged(before, Instant::now(), 10);
        assert_eq!((run.records(), run.latencies().count()), (10, 0));
        run.measure(25);
        run.acknowledged(before, Instant::now(), 10);
        assert_eq!((run.records(), run.latencies().count()), (10, 0));
        assert_eq!((run.take(2, 10), run.phase()), (2, Phase::Load));
        assert_eq!((run.take(9, 10), run.phase()), (1, Phase::Stop));
        run.stop();
        let late = Instant::now() + MS;
        run.acknowledged(late, late, 10);
        assert_eq!((run.records(), run.latencies().count()), (10, 1));
    }
}
