//! A few runs of each scenario, so that `cargo test` notices what breaks; `ringlog sim` does thousands.

use super::*;
use crate::sim::{client::Load, scenario::plan::Scenario};

/// The plan of a seed with fewer records: without optimization a run takes seconds.
fn light(seed: u64, scenario: Scenario) -> Plan {
    let plan = Plan::of(seed, scenario);
    let load = Load { pause_us: 200_000, batch_max: 3, value_bytes_max: 1_000, ..plan.load };
    Plan { load, ..plan }
}

/// Each scenario keeps every promise, with a seed that has some faults in it.
#[test]
fn scenarios() {
    for scenario in Scenario::ALL {
        let enough = |seed: &u64| scenario == Scenario::Calm || light(*seed, scenario).steps.len() >= 3;
        let seed = (0..).find(enough).unwrap();
        let outcome = run(light(seed, scenario), 0);
        let name = scenario.name();
        assert_eq!(outcome.problems, [""; 0], "{name} with seed {seed}");
        assert!(outcome.counts[0] > 0, "nothing was acknowledged in {name} with seed {seed}");
    }
}

/// The same plan twice: everything happens in the same order and at the same times, to the last poll.
#[test]
fn same_seed_same_trace() {
    let [first, second] = [(); 2].map(|()| run(light(3, Scenario::Members), 0));
    assert_eq!(first.trace_hash, second.trace_hash);
    assert_eq!((first.virtual_us, first.counts), (second.virtual_us, second.counts));
    assert_eq!(first.history, second.history);
}

/// The final reads of a run prove something: with the last record of each taken away, the checker says what was lost.
#[test]
fn lost_records_are_found() {
    let history = run(light(0, Scenario::Calm), 0).history;
    let mut forged = History::default();
    for (_, event) in history.iter() {
        let mut event = event.clone();
        if let crate::sim::checker::history::Event::FinalRead(read) = &mut event {
            read.records.pop();
            read.end_offset -= 1;
        }
        forged.push(event).unwrap();
    }
    let report = crate::sim::checker::check(&forged);
    assert!(report.findings.iter().any(|finding| finding.anomaly.kind() == "lost_write"), "{:?}", report.findings);
}
