//! The produce workload: workers that keep requests in flight, and a coordinator that measures.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::Write,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream::FuturesUnordered};
use indicatif::ProgressBar;

use super::{
    CommonArgs, Failure, ProduceArgs, Spinner,
    payload::Payload,
    report::ProduceReport,
    run::{Latencies, Phase, Run, Schedule},
    target::{self, Loaded, Target},
};
use crate::{
    client::{Client, ClientError, ProduceAcks, ProduceSender},
    env::floor::DeviceFloor,
};

/// Requests in flight unless the command line says otherwise.
const IN_FLIGHT_DEFAULT: u32 = 1;

/// The same for an open loop, where it is only a bound.
const IN_FLIGHT_OPEN_DEFAULT: u32 = 16_384;

/// The same for unary calls, each of which in flight is a task with its own timer.
const IN_FLIGHT_OPEN_UNARY_DEFAULT: u32 = 256;

/// Load between two looks at the bare device.
const LOAD_SLICE: Duration = Duration::from_millis(100);

/// Appends to the bare device between two slices of load.
const FLOOR_SLICE: Duration = Duration::from_millis(20);

/// Requests up to this size are copied together, so that a burst of them leaves in few frames.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// A due time further away than this is slept for; the rest is spun, as timers have a millisecond's grain.
const SPIN: Duration = Duration::from_millis(2);

/// Failed requests after which a run is given up.
const ERRORS_MAX: u64 = 1_000;

/// Pause after a failed request, unless the server asks for more.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Runs the command.
pub(super) async fn produce(args: ProduceArgs) -> Result<(), Failure> {
    let in_flight = args.in_flight.unwrap_or(match (args.rate, args.unary) {
        (None, _) => IN_FLIGHT_DEFAULT,
        (Some(_), false) => IN_FLIGHT_OPEN_DEFAULT,
        (Some(_), true) => IN_FLIGHT_OPEN_UNARY_DEFAULT,
    });
    let (in_flight, connections) = (in_flight as usize, args.common.connections as usize);
    if in_flight < connections {
        return Err(format!("{connections} connections need at least {connections} requests --in-flight").into());
    }
    // What no server would take is refused before anybody is asked.
    let payload = Rc::new(Payload::new(&args.common.topic, &[], args.batch, args.common.record_bytes)?);
    let loaded = load_all(&args.common, args.batch).await?;
    let floor = if args.floor { Some(open_floor(&args, &payload)?) } else { None };
    let busy_poll = args.common.busy_poll(if args.rate.is_some() { usize::MAX } else { in_flight });
    let spinner = busy_poll.then(Spinner::start);
    let load = Load { unary: args.unary, in_flight, rate: args.rate };
    let (run, floor) = run(&loaded, load, |run| coordinate(run, &args, floor)).await?;
    drop(spinner);
    let report =
        ProduceReport { args: &args, payload: &payload, run: &run, in_flight, busy_poll, floor: floor.as_ref() };
    report.print()?;
    if run.records() == 0 { Err(Failure::Message("no record was acknowledged".to_owned())) } else { Ok(()) }
}

/// Connections, each with the requests that go there. The handle that found them is gone afterwards: it would wake up
/// beside the load.
async fn load_all(common: &CommonArgs, batch: u32) -> Result<Vec<Loaded>, Failure> {
    let cluster = common.server.cluster().await?;
    let shards =
        u32::try_from(common.topic(&cluster).await?.len()).expect("a topic has at most TOPIC_SHARDS_MAX shards");
    let targets = target::find(&cluster, common, shards).await?;
    let mut payloads: Vec<(Target, Rc<Payload>)> = Vec::new();
    let mut loaded = Vec::new();
    for (client, target) in target::connect(common, &targets).await? {
        let known = payloads.iter().find(|(known, _)| *known == target).map(|(_, payload)| Rc::clone(payload));
        let payload = match known {
            Some(payload) => payload,
            None => Rc::new(Payload::new(&common.topic, &target.shards, batch, common.record_bytes)?),
        };
        payloads.push((target, Rc::clone(&payload)));
        loaded.push(Loaded { client, payload });
    }
    Ok(loaded)
}

fn open_floor(args: &ProduceArgs, payload: &Payload) -> Result<DeviceFloor, Failure> {
    DeviceFloor::new(&args.floor_dir, payload.stored_bytes())
        .map_err(|error| format!("cannot measure the device in {}: {error}", args.floor_dir.display()).into())
}

/// How requests are sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Produce calls instead of streams.
    pub(super) unary: bool,
    /// In total.
    pub(super) in_flight: usize,
    /// Records per second in total, for an open loop.
    pub(super) rate: Option<f64>,
}

/// Runs workers until the coordinator stops them; gives the run and what the coordinator made.
pub(super) async fn run<T, F: Future<Output = Result<T, Failure>>>(
    loaded: &[Loaded],
    load: Load,
    coordinator: impl FnOnce(Rc<Run>) -> F,
) -> Result<(Rc<Run>, T), Failure> {
    let per_client =
        |number: usize| load.in_flight / loaded.len() + usize::from(number < load.in_flight % loaded.len());
    let workers = if load.unary { load.in_flight } else { loaded.len() };
    let run = Rc::new(Run::new(workers));
    let start = Instant::now();
    let tasks = FuturesUnordered::new();
    for (number, Loaded { client, payload }) in loaded.iter().enumerate() {
        let slots = if load.unary { per_client(number) } else { 1 };
        for _ in 0..slots {
            let requests = load.rate.map(|rate| rate / payload.batch() as f64);
            let worker = Worker {
                run: run.clone(),
                client: client.clone(),
                payload: payload.clone(),
                in_flight: if load.unary { 1 } else { per_client(number) },
                schedule: requests.map(|rate| Schedule::new(start, rate, tasks.len(), workers)),
            };
            tasks.push(worker.work(load.unary));
        }
    }
    let (outcome, failures) = tokio::join!(coordinator(run.clone()), tasks.collect::<Vec<_>>());
    let outcome = outcome?;
    // One lost connection fails the run: what the others reached is no result of the command.
    failures.into_iter().collect::<Result<(), ClientError>>()?;
    Ok((run, outcome))
}

/// Warms up, measures, and looks at the bare device in between.
async fn coordinate(
    run: Rc<Run>,
    args: &ProduceArgs,
    mut floor: Option<DeviceFloor>,
) -> Result<Option<Latencies>, Failure> {
    let progress = ProgressBar::new_spinner();
    sleep_while_running(&run, &progress, Duration::from_secs_f64(args.warmup)).await;
    run.measure(args.records.unwrap_or(u64::MAX));
    let seconds = args.seconds.or_else(|| args.records.is_none().then_some(10.0));
    let limit = seconds.map_or(Duration::MAX, Duration::from_secs_f64);
    let mut latencies = Latencies::new();
    let mut measured = Ok(());
    while run.workers() > 0 && run.phase() == Phase::Load && run.measured() < limit && measured.is_ok() {
        let slice = limit.saturating_sub(run.measured());
        let Some(floor) = &mut floor else {
            sleep_while_running(&run, &progress, slice).await;
            continue;
        };
        sleep_while_running(&run, &progress, slice.min(LOAD_SLICE)).await;
        run.pause().await;
        let started = Instant::now();
        while measured.is_ok() && started.elapsed() < FLOOR_SLICE {
            measured = floor.append_once().map(|latency| latencies.record(latency));
        }
        run.resume(started.elapsed());
    }
    // With a limit of records the last acks end the measurement, not the last sends.
    while args.records.is_some() && run.workers() > 0 && run.phase() == Phase::Stop {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    run.stop();
    progress.finish_and_clear();
    measured.map_err(|error| format!("the device in {} failed: {error}", args.floor_dir.display()))?;
    Ok(floor.is_some().then_some(latencies))
}

/// Sleeps, and shows how it goes; returns early when the workers end.
pub(super) async fn sleep_while_running(run: &Run, progress: &ProgressBar, duration: Duration) {
    let until = Instant::now().checked_add(duration);
    while run.workers() > 0 && run.phase() == Phase::Load {
        let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return;
        }
        // Coarse enough to cost nothing, fine enough to notice the end of a run by records.
        tokio::time::sleep(left.min(Duration::from_millis(20))).await;
        if !progress.is_hidden() {
            let seconds = run.measured().as_secs_f64();
            let rate = if seconds > 0.0 { run.records() as f64 / seconds } else { 0.0 };
            let (p50, p99) = (run.latencies().quantile_us(0.5), run.latencies().quantile_us(0.99));
            let errors = run.errors();
            progress.set_message(format!(
                "{seconds:.1} s  {rate:.0} records/s  p50 {p50:.0} µs  p99 {p99:.0} µs  {errors} errors"
            ));
            progress.tick();
        }
    }
}

struct Worker {
    run: Rc<Run>,
    client: Client,
    payload: Rc<Payload>,
    in_flight: usize,
    schedule: Option<Schedule>,
}

impl Worker {
    async fn work(mut self, unary: bool) -> Result<(), ClientError> {
        let outcome = loop {
            let outcome = if unary { self.calls().await } else { self.stream().await };
            match outcome {
                Err(error) => {
                    self.run.failed(&error);
                    // A refusal may pass; a lost connection does not come back.
                    if error.code().is_none() || self.run.errors() >= ERRORS_MAX || self.run.phase() == Phase::Stop {
                        break Err(error);
                    }
                    tokio::time::sleep(error.retry_after().unwrap_or(RETRY_AFTER)).await;
                }
                Ok(()) => break Ok(()),
            }
        };
        self.run.left();
        outcome
    }

    /// Parks in a pause, and moves the schedule by it. The intended times of a pause begin when it is asked for, and a
    /// worker sees that at once but for what it still has in flight.
    async fn park(&mut self, asked: Instant) {
        self.run.park().await;
        if let Some(schedule) = &mut self.schedule {
            schedule.shift(asked.elapsed());
        }
    }

    /// One call at a time, until the run stops.
    async fn calls(&mut self) -> Result<(), ClientError> {
        loop {
            match self.run.phase() {
                Phase::Stop => return Ok(()),
                Phase::Pause => {
                    self.park(Instant::now()).await;
                    continue;
                }
                Phase::Load => {}
            }
            let started = match &mut self.schedule {
                None => Instant::now(),
                Some(schedule) => match schedule.due(Instant::now()) {
                    Some(intended) => intended,
                    None => {
                        wait_for(schedule.next()).await;
                        continue;
                    }
                },
            };
            if self.run.take(1, self.payload.batch()) == 0 {
                return Ok(());
            }
            let ack = self.client.produce_framed(self.payload.next()).await?;
            self.run.acknowledged(started, Instant::now(), ack.count.into());
        }
    }

    /// Keeps requests in flight on one stream, until the run stops.
    async fn stream(&mut self) -> Result<(), ClientError> {
        let (mut sender, mut acks) = self.client.produce_stream().await?;
        let mut outstanding = VecDeque::with_capacity(self.in_flight);
        let mut pause_asked = None;
        loop {
            match self.run.phase() {
                Phase::Load => {
                    pause_asked = None;
                    self.fill(&mut sender, &mut outstanding);
                }
                phase @ (Phase::Pause | Phase::Stop) => {
                    let asked = *pause_asked.get_or_insert_with(Instant::now);
                    if outstanding.is_empty() && phase == Phase::Pause {
                        self.park(asked).await;
                        continue;
                    }
                    if outstanding.is_empty() {
                        // All is acknowledged; how the stream ends changes nothing.
                        drop(sender.finish().await);
                        return Ok(());
                    }
                }
            }
            let due = match (&self.schedule, outstanding.len() < self.in_flight) {
                (Some(schedule), true) if self.run.phase() == Phase::Load => Some(schedule.next()),
                _ => None,
            };
            let batch = self.payload.batch();
            let run = &self.run;
            tokio::select! {
                biased;
                exchanged = exchange(&mut sender, &mut acks, &mut outstanding, |started, now| {
                    run.acknowledged(started, now, batch);
                }) => exchanged?,
                () = wait_for(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
        }
    }

    /// Queues as many requests as may be in flight, or as are due.
    fn fill(&mut self, sender: &mut ProduceSender, outstanding: &mut VecDeque<Instant>) {
        let room = self.in_flight - outstanding.len();
        let now = Instant::now();
        let before = outstanding.len();
        match &mut self.schedule {
            None => outstanding.extend(std::iter::repeat_n(now, self.run.take(room, self.payload.batch()))),
            Some(schedule) => {
                while outstanding.len() < self.in_flight && now >= schedule.next() {
                    if self.run.take(1, self.payload.batch()) == 0 {
                        break;
                    }
                    outstanding.extend(schedule.due(now));
                }
            }
        }
        self.queue(sender, outstanding.len() - before);
    }

    fn queue(&self, sender: &mut ProduceSender, requests: usize) {
        let mut copied = BytesMut::new();
        for left in (1..=requests).rev() {
            let message: Bytes = self.payload.next();
            if requests == 1 || message.len() > COPIED_BYTES_MAX {
                sender.queue(message);
                continue;
            }
            if copied.is_empty() {
                copied.reserve(message.len() * left);
            }
            copied.extend_from_slice(&message);
        }
        sender.queue(copied.freeze());
    }
}

/// Sends what is queued and takes all acks that are there; returns after something happened.
async fn exchange(
    sender: &mut ProduceSender,
    acks: &mut ProduceAcks,
    outstanding: &mut VecDeque<Instant>,
    mut acknowledged: impl FnMut(Instant, Instant),
) -> Result<(), ClientError> {
    poll_fn(|cx| {
        // An error of this half is explained by the other one, which ends with it.
        let flushing = sender.queued_bytes() > 0;
        let flushed = flushing && matches!(sender.poll_flush(cx), Poll::Ready(Ok(())));
        let mut received = false;
        let mut now = None;
        while let Poll::Ready(ack) = acks.poll_next(cx) {
            let ended = || ClientError::Lost {
                address: "the server".to_owned(),
                cause: "it ended the stream".to_owned(),
                definite: false,
            };
            ack.ok_or_else(ended)??;
            let started = outstanding.pop_front().ok_or_else(ended)?;
            acknowledged(started, *now.get_or_insert_with(Instant::now));
            received = true;
        }
        if received || flushed { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// Waits until about `due`: sleeps while it is far (but not for long, so that the caller sees a new phase), and then spins.
async fn wait_for(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if left > SPIN {
        tokio::time::sleep((left - SPIN).min(Duration::from_millis(10))).await;
        return;
    }
    while Instant::now() < due {
        crate::env::yield_now().await;
    }
}

/// Fills `topic` with at least `records` records, spread over its shards.
pub(super) async fn fill(
    client: &Client,
    common: &CommonArgs,
    shards: &[u32],
    batch: u32,
    records: u64,
) -> Result<(), Failure> {
    let payload = Rc::new(Payload::new(&common.topic, shards, batch, common.record_bytes)?);
    let loaded = [Loaded { client: client.clone(), payload }];
    drop(writeln!(std::io::stderr(), "filling topic {} with {records} records", common.topic));
    let load = Load { unary: false, in_flight: 32, rate: None };
    let (run, ()) = run(&loaded, load, |run| async move {
        run.measure(records);
        let progress = ProgressBar::new_spinner();
        while run.workers() > 0 {
            sleep_while_running(&run, &progress, Duration::from_millis(200)).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        progress.finish_and_clear();
        Ok(())
    })
    .await?;
    if run.records() < records {
        return Err(format!("only {} of {records} records could be written", run.records()).into());
    }
    Ok(())
}
