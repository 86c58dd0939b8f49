//! Stock and hostile gRPC clients: what they do in a run of their own, and what happens to the nodes that they are connected to.

use std::cell::Cell;

use super::plan::{Action, Plan, between, who};
use crate::sim::{
    client::{Load, StockLoad},
    random,
};

/// What many runs of this scenario must have hit; a few hundred of all scenarios in turn have too few of it.
pub(super) const EXPECTED_OF_MANY: &[(&str, &str)] =
    &[("hostile client", "GOAWAY in the middle"), ("window opened late", "more owed than may be in flight")];

/// What runs of this scenario must have hit: what clients do or suffer, and what it met.
pub(super) const EXPECTED: &[(&str, &str)] = &[
    ("cancel", "consume stream"),
    ("cancel", "produce"),
    ("cancel", "produce in flight"),
    ("deadline", "consume"),
    ("deadline", "consume stream"),
    ("deadline", "produce in flight"),
    ("goaway", "open stream"),
    ("half-close", "acks owed"),
    ("ping", "open stream"),
    ("records read", "connection"),
    ("reset", "half-closed stream"),
    ("reset", "open stream"),
    ("reset", "produce in flight"),
    ("stopping node", "consume stream"),
    ("stopping node", "produce stream"),
    ("window opened late", "acks owed"),
    ("window opened late", "consume stream"),
    ("window opened late", "produce stream"),
];

/// Memory of a reactor which hostile clients cannot fill, that send one message of the largest size each: it is enough for real
/// ones (`limits::MEMORY_BYTES_MIN`), and with less the others would be refused.
const ROOMY_BYTES: usize = 32 << 20;

/// The plan of a seed with stock clients in it, and few others.
pub(super) fn plan(plan: Plan) -> Plan {
    let dice = &Cell::new(plan.seed ^ 0xf2047);
    let one_of = |choices: [u64; 4]| choices[(random(dice) % 4) as usize];
    // One name in four is as long as allowed: few acknowledgements fill a window.
    let topic_bytes = one_of([1, 1, 40, 249]) as usize;
    let floods = random(dice).is_multiple_of(24);
    let stock = if floods {
        StockLoad { clients: 1, streams_max: 4, messages_max: 20_000, messages_total: 80_000 }
    } else {
        let messages_max = if topic_bytes > 100 { one_of([3, 30, 600, 600]) } else { one_of([3, 100, 400, 4_000]) };
        let streams_max = if messages_max > 1_000 { 2 } else { one_of([1, 4, 8, 40]) };
        StockLoad { clients: 1 + random(dice) % 2, streams_max, messages_max, messages_total: 6_000 }
    };
    let hostile = if floods { 0 } else { [0, 1, 2][(random(dice) % 3) as usize] };
    let undisturbed = hostile > 0 && random(dice).is_multiple_of(2);
    let load = Load {
        producers: random(dice) % 2,
        consumers: random(dice) % 2,
        pause_us: 200_000,
        stock: Some(stock),
        hostile,
        undisturbed,
        ..plan.load
    };
    let nodes = if random(dice).is_multiple_of(2) { 1 } else { 3 };
    let topic_bytes = if floods { 1 } else { topic_bytes };
    let (memory_bytes, steps) = if undisturbed { (ROOMY_BYTES, Vec::new()) } else { (plan.memory_bytes, plan.steps) };
    Plan { load, nodes, topic_bytes, memory_bytes, steps, ..plan }
}

/// What happens to a node that clients are connected to.
pub(super) fn action(dice: &Cell<u64>) -> Action {
    let who = who(dice);
    let down_ms = between(dice, 5, 3_000);
    match random(dice) % 8 {
        0 | 1 => Action::Stop { who, down_ms },
        2 => Action::Kill { who, down_ms },
        3 => Action::Crash { who, down_ms, seed: random(dice) },
        4 | 5 => Action::Pause { who, for_ms: between(dice, 100, 6_000) },
        6 => Action::Transfer { shard: random(dice) % 64, to: None },
        _ => Action::DropConnections,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Outcome,
        plan::{Scenario, Step, Who},
        run,
    };
    use super::*;

    /// The first plan from this seed on that is as asked.
    fn first(from: u64, is_wanted: impl Fn(&Plan, StockLoad) -> bool) -> Plan {
        let mut plans = (from..).map(|seed| Plan::of(seed, Scenario::Front));
        plans.find(|plan| is_wanted(plan, plan.load.stock.unwrap())).unwrap()
    }

    fn assert_kept(outcome: &Outcome) {
        assert_eq!(outcome.problems, [""; 0], "seed {}", outcome.plan.seed);
        assert!(outcome.counts[0] > 0, "nothing was acknowledged with seed {}", outcome.plan.seed);
    }

    /// HTTP/2 on both sides is as deterministic as the rest: neither h2's maps and clocks nor the order in which anything is
    /// woken reach the trace.
    #[test]
    fn same_seed_same_trace() {
        let plan = first(0, |plan, stock| plan.steps.len() >= 3 && (4..9).contains(&stock.streams_max));
        let [first, second] = [(); 2].map(|()| run(plan.clone(), 0));
        assert_kept(&first);
        assert_eq!(first.trace_hash, second.trace_hash);
        assert_eq!((first.virtual_us, first.counts), (second.virtual_us, second.counts));
        assert_eq!(first.history, second.history);
    }

    /// Hostile clients and nothing else: the clients beside them go on, and whatever they do is over when they are gone.
    #[test]
    fn hostile_clients() {
        let plan = first(0, |plan, stock| plan.load.undisturbed && plan.load.hostile == 2 && stock.messages_max <= 30);
        let outcome = run(plan, 0);
        assert_kept(&outcome);
        let met =
            |fault: &str| outcome.coverage.iter().filter(|(name, ..)| *name == fault).map(|(.., times)| times).sum();
        let (attacks, beside): (u64, u64) = (met("hostile client"), met("hostile client beside"));
        assert!(attacks >= 4 && beside >= 4, "{attacks} attacks, {beside} streams beside them");
    }

    /// Were the clients beside an attack cut off, it would be known: here their node is killed.
    #[test]
    fn clients_beside_are_heard() {
        let plan = first(0, |plan, stock| plan.load.undisturbed && plan.load.hostile == 2 && stock.messages_max <= 30);
        let kill = |at_ms| Step { at_ms, action: Action::Kill { who: Who::Any(0), down_ms: 10 } };
        let plan = Plan { nodes: 1, load_ms: 2_000, steps: [500, 800, 1_100, 1_400].map(kill).into(), ..plan };
        let problems = run(plan, 0).problems;
        let is_heard = |problem: &String| problem.contains("beside an attack: a stream was broken off");
        assert!(problems.iter().any(is_heard), "{problems:?}");
    }

    /// Acknowledgements that fill a window and all that is behind it, until the client opens it widely, once.
    #[test]
    fn windows_that_open_late() {
        let plan = first(0, |plan, stock| plan.nodes == 1 && stock.messages_max == 600);
        let outcome = run(plan.with_only(&[]), 0);
        assert_kept(&outcome);
        let met = ("window opened late", "acks owed");
        assert_eq!(outcome.coverage.missing(&[met]), [("", ""); 0]);
    }
}
