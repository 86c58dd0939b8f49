//! Many seeds: hands them to child processes, gathers what they say, and sums it up.

use std::{
    io::{self, BufRead, BufReader, IsTerminal, Write},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::SimArgs;
use crate::{
    cli::Failure,
    sim::{
        coverage::Coverage,
        scenario::{self, plan::Scenario},
    },
};

/// Seeds of one child process: some, so that all cores have work to the end, or many, since each child begins with memory that
/// the kernel has to clear.
const SEEDS_PER_CHILD: std::ops::RangeInclusive<u64> = 32..=512;

/// Children of a long run for each process at a time.
const CHILDREN_PER_JOB: u64 = 8;

/// A child that says nothing for so long hangs: a seed takes a second.
const SILENCE_MAX: Duration = Duration::from_secs(300);

/// Between two lines of progress where there is no terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// What a child says of a seed.
#[derive(Debug, Serialize, Deserialize)]
struct Verdict {
    seed: u64,
    scenario: String,
    problems: Vec<String>,
    virtual_us: u64,
    real_us: u64,
    counts: [u64; 4],
    coverage: Vec<(String, String, u64)>,
}

/// The child's part: each seed's verdict as a line of JSON.
#[allow(clippy::disallowed_methods, reason = "measures how much faster than real time the simulation is")]
pub(super) fn work(args: &SimArgs) -> Result<(), Failure> {
    // What a simulated node says when it panics is in the verdict.
    std::panic::set_hook(Box::new(|_| {}));
    for seed in args.from..args.from.saturating_add(args.seeds) {
        let (plan, started) = (args.plan(seed), Instant::now());
        let scenario = plan.scenario.name().to_owned();
        let outcome = scenario::run(plan, 0);
        let coverage = outcome.coverage.iter().map(|(fault, path, times)| (fault.to_owned(), path.to_owned(), times));
        let verdict = Verdict {
            seed,
            scenario,
            problems: outcome.problems,
            virtual_us: outcome.virtual_us,
            real_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            counts: outcome.counts,
            coverage: coverage.collect(),
        };
        let mut line = serde_json::to_vec(&verdict).map_err(|error| error.to_string())?;
        line.push(b'\n');
        let mut out = io::stdout().lock();
        out.write_all(&line)?;
        out.flush()?;
    }
    Ok(())
}

/// What a child's reader passes on.
enum Said {
    Verdict(Box<Verdict>),
    /// It ended; its seeds from this one on have no verdict.
    Ended {
        child: usize,
    },
}

/// Seeds that a child has.
struct Share {
    process: Child,
    next: u64,
    end: u64,
    heard: Instant,
}

/// All verdicts together.
#[derive(Default)]
struct Sum {
    seeds: u64,
    failed: Vec<Verdict>,
    virtual_us: u64,
    real_us: u64,
    counts: [u64; 4],
    coverage: Coverage,
}

impl Sum {
    fn add(&mut self, verdict: Verdict) {
        self.seeds += 1;
        self.virtual_us += verdict.virtual_us;
        self.real_us += verdict.real_us;
        for (sum, count) in self.counts.iter_mut().zip(verdict.counts) {
            *sum += count;
        }
        for (fault, path, times) in &verdict.coverage {
            self.coverage.add(fault, path, *times);
        }
        if !verdict.problems.is_empty() {
            self.failed.push(verdict);
        }
    }
}

/// Runs all seeds, and sums up.
#[allow(clippy::disallowed_methods, reason = "processes and their real time")]
pub(super) fn run(args: &SimArgs) -> Result<(), Failure> {
    let has_no_list = |scenario: &Scenario| scenario::expected(Some(*scenario), args.seeds).is_none();
    if let Some(scenario) = args.scenario.filter(|scenario| args.coverage && has_no_list(scenario)) {
        let name = scenario.name();
        return Err(format!(
            "--coverage: there is no list of what {name} alone must hit; it is of all scenarios in turn, of mixed, or of front"
        )
        .into());
    }
    let jobs = if args.jobs > 0 { args.jobs } else { crate::reactor::thread::available_cores().len() };
    let (said, hear) = mpsc::channel();
    let started = Instant::now();
    let until = args.seconds.map(|seconds| started + Duration::from_secs(seconds));
    let (mut next, end) = (args.from, args.from.saturating_add(args.seeds));
    let share_seeds = args.seeds / (jobs as u64 * CHILDREN_PER_JOB).max(1);
    let share_seeds = share_seeds.clamp(*SEEDS_PER_CHILD.start(), *SEEDS_PER_CHILD.end());
    let mut shares: Vec<Option<Share>> = Vec::new();
    let (mut sum, mut progress) = (Sum::default(), Progress::new(args.seeds));
    loop {
        let is_over = next >= end || until.is_some_and(|until| Instant::now() >= until);
        let running = shares.iter().flatten().count();
        if !is_over && running < jobs {
            let share_end = end.min(next.saturating_add(share_seeds));
            shares.push(Some(begin(args, next..share_end, shares.len(), &said)?));
            next = share_end;
            continue;
        }
        if running == 0 {
            break;
        }
        match hear.recv_timeout(Duration::from_secs(1)) {
            Ok(Said::Verdict(verdict)) => {
                for share in shares.iter_mut().flatten().filter(|share| share.next == verdict.seed) {
                    share.next += 1;
                    share.heard = Instant::now();
                }
                report_failure(args, &verdict);
                sum.add(*verdict);
                progress.show(&sum, started);
            }
            Ok(Said::Ended { child }) => {
                let Some(mut share) = shares[child].take() else { continue };
                let status = share.process.wait().map_err(|error| error.to_string())?;
                if share.next < share.end {
                    let verdict = lost(args, share.next, &format!("its process ended: {status}"));
                    report_failure(args, &verdict);
                    sum.add(verdict);
                    next_after_loss(args, &mut shares, share.next + 1..share.end, &said)?;
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        for share in shares.iter_mut().flatten().filter(|share| share.heard.elapsed() > SILENCE_MAX) {
            // Its end is heard like any other.
            drop(share.process.kill());
        }
    }
    summary(args, &sum, started)
}

/// The seeds behind one that took its process with it.
fn next_after_loss(
    args: &SimArgs,
    shares: &mut Vec<Option<Share>>,
    seeds: std::ops::Range<u64>,
    said: &Sender<Said>,
) -> Result<(), Failure> {
    if !seeds.is_empty() {
        let share = begin(args, seeds, shares.len(), said)?;
        shares.push(Some(share));
    }
    Ok(())
}

fn lost(args: &SimArgs, seed: u64, why: &str) -> Verdict {
    Verdict {
        seed,
        scenario: args.plan(seed).scenario.name().to_owned(),
        problems: vec![why.to_owned()],
        virtual_us: 0,
        real_us: 0,
        counts: [0; 4],
        coverage: Vec::new(),
    }
}

#[allow(clippy::disallowed_methods, reason = "child processes and a thread for each one's output")]
fn begin(args: &SimArgs, seeds: std::ops::Range<u64>, child: usize, said: &Sender<Said>) -> Result<Share, Failure> {
    let program = std::env::current_exe().map_err(|error| format!("this program cannot be found again: {error}"))?;
    let mut command = Command::new(program);
    command.args(["sim", "--worker", "--from", &seeds.start.to_string()]);
    command.args(["--seeds", &(seeds.end - seeds.start).to_string()]);
    if let Some(scenario) = args.scenario {
        command.args(["--scenario", scenario.name()]);
    }
    // What one seed's nodes have freed is the next one's: to give it back to the kernel, and have it cleared again, took a third
    // of the time.
    command.env("MIMALLOC_PURGE_DELAY", "-1");
    let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut process = process.map_err(|error| format!("a process for the seeds could not be started: {error}"))?;
    let lines = process.stdout.take().map(BufReader::new).ok_or_else(|| "a child has no output".to_owned())?;
    let said = said.clone();
    let read = move || {
        for line in lines.lines().map_while(Result::ok) {
            if let Ok(verdict) = serde_json::from_str(&line) {
                drop(said.send(Said::Verdict(verdict)));
            }
        }
        drop(said.send(Said::Ended { child }));
    };
    let reader = thread::Builder::new().spawn(read);
    reader.map_err(|error| format!("a thread could not be started: {error}"))?;
    Ok(Share { process, next: seeds.start, end: seeds.end, heard: Instant::now() })
}

fn report_failure(args: &SimArgs, verdict: &Verdict) {
    if verdict.problems.is_empty() {
        return;
    }
    eprintln!("\nseed {} ({}) has failed; again: {}", verdict.seed, verdict.scenario, args.replay(verdict.seed));
    for problem in verdict.problems.iter().take(5) {
        eprintln!("  {problem}");
    }
    if verdict.problems.len() > 5 {
        eprintln!("  and {} more", verdict.problems.len() - 5);
    }
}

/// A line that says how far it is.
struct Progress {
    seeds: u64,
    shown: Option<Instant>,
    terminal: bool,
}

#[allow(clippy::disallowed_methods, reason = "real time")]
impl Progress {
    fn new(seeds: u64) -> Progress {
        Progress { seeds, shown: None, terminal: io::stderr().is_terminal() }
    }

    fn show(&mut self, sum: &Sum, started: Instant) {
        let interval = if self.terminal { Duration::from_millis(200) } else { PROGRESS_INTERVAL };
        if self.shown.is_some_and(|shown| shown.elapsed() < interval) {
            return;
        }
        self.shown = Some(Instant::now());
        let (end, seconds) = (if self.terminal { "\r" } else { "\n" }, started.elapsed().as_secs());
        eprint!("{} of {} seeds, {} failed, {seconds} s{end}", sum.seeds, self.seeds, sum.failed.len());
    }
}

fn summary(args: &SimArgs, sum: &Sum, started: Instant) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let [acked, refused, indefinite, reads] = sum.counts;
    let speed = sum.virtual_us as f64 / sum.real_us.max(1) as f64;
    write!(out, "{}", sum.coverage)?;
    writeln!(
        out,
        "{acked} batches acknowledged, {refused} refused, {indefinite} of unknown fate, {reads} reads; {:.0} virtual \
         seconds, {speed:.0} times real time on a core",
        sum.virtual_us as f64 / 1e6
    )?;
    let failed: Vec<String> = sum.failed.iter().map(|verdict| verdict.seed.to_string()).collect();
    let (seeds, seconds) = (sum.seeds, started.elapsed().as_secs());
    writeln!(
        out,
        "{seeds} seeds in {seconds} s, {} failed{}",
        failed.len(),
        match failed.len() {
            0 => String::new(),
            _ => format!(": {}", failed.join(", ")),
        }
    )?;
    // By those that were run: a time limit may have come first.
    let expected = scenario::expected(args.scenario, sum.seeds).filter(|_| args.coverage).unwrap_or_default();
    let missing = sum.coverage.missing(&expected);
    for (fault, path) in &missing {
        writeln!(out, "never hit: {fault} of {path}")?;
    }
    if failed.is_empty() && missing.is_empty() { Ok(()) } else { Err(Failure::Said) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: SimArgs,
    }

    /// What could only fail is not begun.
    #[test]
    fn coverage_without_a_list() {
        let command = Command::try_parse_from(["sim", "--scenario", "calm", "--coverage", "--seeds", "1"]).unwrap();
        let Err(Failure::Message(message)) = run(&command.args) else { panic!("there is no list for calm") };
        assert!(message.contains("no list of what calm alone must hit"), "{message}");
    }
}
