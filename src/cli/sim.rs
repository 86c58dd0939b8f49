//! `ringlog sim`: runs whole clusters in virtual time, one for each seed, breaks them as the seed says, and judges what the
//! clients saw. Nothing outside of the process is touched.
//!
//! Seeds are run by child processes of this one, a few dozen by each: a run that hangs or aborts takes nothing else with
//! it, and what a killed node's tasks leave behind in memory goes with its process.

mod many;
mod one;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::Failure;
use crate::sim::scenario::plan::{Plan, Scenario};

/// `ringlog sim`.
#[derive(Debug, clap::Args)]
pub(super) struct SimArgs {
    /// How many seeds to run
    #[arg(long, default_value_t = 100, value_name = "N")]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0, value_name = "SEED")]
    from: u64,
    /// Only this scenario; else seeds take turns
    #[arg(long, value_name = "NAME", value_parser = scenarios())]
    scenario: Option<Scenario>,
    /// Processes at a time; 0: one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    jobs: usize,
    /// Stop after that many seconds, whatever is left
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Fail when a pair of fault and critical path that is listed was never hit: of all scenarios, or of mixed or front alone
    #[arg(long, conflicts_with = "seed")]
    coverage: bool,
    /// Run one seed, and say what happens in it
    #[arg(long, value_name = "SEED", conflicts_with_all = ["seeds", "from"])]
    seed: Option<u64>,
    /// With --seed: only these steps of the plan, such as 0,2,5
    #[arg(long, value_name = "STEPS", value_delimiter = ',', requires = "seed")]
    keep: Option<Vec<usize>>,
    /// With --seed: find the fewest steps with which it still fails
    #[arg(long, requires = "seed")]
    shrink: bool,
    /// With --seed: run it twice, and fail unless everything happens in the same way
    #[arg(long, requires = "seed")]
    twice: bool,
    /// With --seed: write what the clients saw there, for `ringlog check-history`
    #[arg(long, value_name = "FILE", requires = "seed")]
    history: Option<PathBuf>,
    /// With --seed: show the last lines of the trace
    #[arg(long, default_value_t = 0, value_name = "LINES", requires = "seed")]
    trace: usize,
    /// With --seed: show log lines of the nodes, such as info or ringlog::raft=debug
    #[arg(long, value_name = "FILTER", requires = "seed")]
    log: Option<String>,
    /// A child of this command: one JSON line for each seed
    #[arg(long, hide = true)]
    worker: bool,
}

fn scenarios() -> impl TypedValueParser<Value = Scenario> {
    let named = |name: String| Scenario::named(&name).expect("it is one of the names");
    PossibleValuesParser::new(Scenario::ALL.map(Scenario::name)).map(named)
}

impl SimArgs {
    fn plan(&self, seed: u64) -> Plan {
        let plan = Plan::of(seed, self.scenario.unwrap_or_else(|| Scenario::of(seed)));
        match &self.keep {
            Some(keep) => plan.with_only(keep),
            None => plan,
        }
    }

    /// What is to be typed to see a seed's run again.
    fn replay(&self, seed: u64) -> String {
        match self.scenario {
            Some(scenario) => format!("ringlog sim --scenario {} --seed {seed}", scenario.name()),
            None => format!("ringlog sim --seed {seed}"),
        }
    }
}

/// Runs the command.
pub(super) fn sim(args: &SimArgs) -> Result<(), Failure> {
    match args.seed {
        _ if args.worker => many::work(args),
        Some(seed) if args.shrink => one::shrink(args, seed),
        Some(seed) => one::show(args, seed),
        None => many::run(args),
    }
}
