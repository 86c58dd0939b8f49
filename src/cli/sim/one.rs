//! One seed, looked at: its plan, what went wrong, how few of its steps are enough for that.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use super::SimArgs;
use crate::{
    cli::Failure,
    config::LogFormat,
    observe,
    sim::{
        checker::{History, json},
        scenario::{self, Outcome, plan::Plan},
    },
};

/// Runs the seed and says what happened.
pub(super) fn show(args: &SimArgs, seed: u64) -> Result<(), Failure> {
    let logs = args.log.as_deref().map(|filter| observe::start_logs(LogFormat::Text, filter)).transpose()?;
    let plan = args.plan(seed);
    let mut out = io::stdout().lock();
    describe(&mut out, &plan)?;
    let outcome = scenario::run(plan.clone(), args.trace);
    if let Some(logs) = logs {
        logs.flush();
    }
    out.write_all(outcome.recorded.as_bytes())?;
    if let Some(path) = &args.history {
        write_history(path, &outcome.history)?;
    }
    let mut problems = outcome.problems.clone();
    if args.twice {
        let again = scenario::run(plan, 0);
        if again.trace_hash != outcome.trace_hash {
            problems.push(format!(
                "two runs of one seed differ: traces {:016x} and {:016x}",
                outcome.trace_hash, again.trace_hash
            ));
        }
    }
    tell(&mut out, &outcome, &problems)?;
    if problems.is_empty() { Ok(()) } else { Err(Failure::Said) }
}

fn describe(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    let Plan { seed, scenario, nodes, reactors, shards, load, load_ms, .. } = plan;
    let name = scenario.name();
    writeln!(
        out,
        "seed {seed}, scenario {name}: {nodes} nodes of {reactors} reactors, {shards} shards, {load}, {load_ms} ms"
    )?;
    for (number, step) in plan.steps.iter().enumerate() {
        writeln!(out, "  step {number}: {step}")?;
    }
    Ok(())
}

fn tell(out: &mut impl Write, outcome: &Outcome, problems: &[String]) -> io::Result<()> {
    let [acked, failed, indefinite, reads] = outcome.counts;
    let (hash, seconds) = (outcome.trace_hash, outcome.virtual_us as f64 / 1e6);
    writeln!(
        out,
        "{acked} batches acknowledged, {failed} refused, {indefinite} of unknown fate, {reads} reads; \
         {seconds:.1} virtual seconds; trace {hash:016x}"
    )?;
    write!(out, "{}", outcome.coverage)?;
    for problem in problems {
        writeln!(out, "PROBLEM: {problem}")?;
    }
    let verdict = if problems.is_empty() { "every promise is kept" } else { "promises are broken" };
    writeln!(out, "{verdict}")
}

#[allow(clippy::disallowed_methods, reason = "a file that the user names")]
fn write_history(path: &Path, history: &History) -> Result<(), Failure> {
    let written = File::create(path).and_then(|file| {
        let mut file = BufWriter::new(file);
        history.iter().try_for_each(|(_, event)| json::write(&mut file, event))?;
        file.flush()
    });
    written.map_err(|error| Failure::Message(format!("{} could not be written: {error}", path.display())))
}

/// Leaves steps out as long as the seed still fails: first halves, then smaller parts (delta debugging, Zeller 2002).
pub(super) fn shrink(args: &SimArgs, seed: u64) -> Result<(), Failure> {
    let plan = args.plan(seed);
    let fails = |keep: &[usize]| !scenario::run(plan.clone().with_only(keep), 0).problems.is_empty();
    let mut keep: Vec<usize> = (0..plan.steps.len()).collect();
    if !fails(&keep) {
        return Err(Failure::Message(format!("seed {seed} does not fail: there is nothing to shrink")));
    }
    let mut parts = 2;
    while !keep.is_empty() {
        let size = keep.len().div_ceil(parts);
        let without = |part: usize| -> Vec<usize> {
            keep.iter().enumerate().filter(|(at, _)| at / size != part).map(|(_, step)| *step).collect()
        };
        let smaller = (0..keep.len().div_ceil(size)).map(without).find(|less| fails(less));
        match smaller {
            Some(less) => {
                eprintln!("{} steps are enough", less.len());
                keep = less;
                parts = parts.saturating_sub(1).max(2);
            }
            None if size <= 1 => break,
            None => parts = (2 * parts).min(keep.len()),
        }
    }
    let mut out = io::stdout().lock();
    describe(&mut out, &plan.clone().with_only(&keep))?;
    let steps = keep.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    writeln!(out, "it still fails with these steps: {} --keep {steps}", args.replay(seed))?;
    Ok(())
}
