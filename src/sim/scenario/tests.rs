//! A few runs of each scenario, so that `cargo test` notices what breaks; `ringlog sim` does thousands.

use prost::Message;

use super::*;
use crate::{
    format::records::Records,
    frontend::ProduceCall,
    ids::NodeId,
    limits::RECORD_BYTES_MAX,
    proto::ringlog::v1::{ProduceRequest, Record},
    sim::{
        checker::history::{Ack, Event, Outcome, Produce},
        client::Load,
        scenario::plan::{Action, Scenario, Step, Who},
    },
};

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

/// A year ahead for twelve seconds, whoever's clock it is: nothing goes that is younger than the limit, nobody's timestamps go
/// back, and none is of next year.
#[test]
fn a_year_ahead() {
    const YEAR_US: i64 = 365 * 86_400_000_000;
    for who in [Who::Leader(0), Who::Follower(0)] {
        let jump = |at_ms, us| Step { at_ms, action: Action::Jump { who, us } };
        let steps = vec![jump(1_500, YEAR_US), jump(13_500, -YEAR_US)];
        let plan = light(0, Scenario::Clocks);
        // Few and large: segments fill up, whose last entries are older than the jump.
        let load = Load { producers: 1, pause_us: 500_000, burst_max: 1, value_bytes_max: 300_000, ..plan.load };
        let plan = Plan { nodes: 3, shards: 1, retention_age_ms: 3_600_000, load, load_ms: 14_000, steps, ..plan };
        let outcome = run(plan, 0);
        assert_eq!(outcome.problems, [""; 0], "{who:?}");
        assert!(outcome.counts[0] > 20, "{:?}", outcome.counts);
        let started = |event: &Event| matches!(event, Event::Read(read) if read.log_start == Some(0));
        assert!(outcome.history.iter().any(|(_, event)| started(event)));
        let stamp = |event: &Event| match event {
            Event::Produce(Produce { outcome: Outcome::Acked(Ack { timestamp_us, .. }), .. }) => *timestamp_us,
            _ => None,
        };
        let stamps: Vec<i64> = outcome.history.iter().filter_map(|(_, event)| stamp(event)).collect();
        let (first, last) = (stamps.iter().min().unwrap(), stamps.iter().max().unwrap());
        assert!(last - first < YEAR_US / 365, "{who:?}: from {first} to {last} us");
    }
}

/// A replica that begins from a snapshot keeps what the others keep: the checker sees log starts, and what was trimmed.
#[test]
fn begins_from_a_snapshot() {
    let plan = light(0, Scenario::Crashes);
    let load =
        Load { producers: 2, pause_us: 50_000, batch_max: 3, burst_max: 4, value_bytes_max: 20_000, ..plan.load };
    let down = Action::Kill { who: Who::Follower(0), down_ms: 3_500 };
    let steps = [(300, down), (3_000, Action::Trim { shard: 0 })].map(|(at_ms, action)| Step { at_ms, action });
    let plan = Plan { nodes: 3, shards: 1, load, load_ms: 4_000, steps: steps.into(), ..plan };
    let outcome = run(plan, 0);
    assert_eq!(outcome.problems, [""; 0]);
    let starts = outcome.history.iter().filter_map(|(_, event)| match event {
        Event::Status(status) => Some((status.node, status.log_start)),
        Event::Produce(_) | Event::Read(_) | Event::FinalRead(_) | Event::Trim(_) | Event::Retention(_) => None,
    });
    let starts: Vec<_> = starts.collect();
    // After the final reads, and when all was let go.
    assert!(starts.len() == 6 && starts.iter().all(|(_, start)| *start > Some(0)), "{starts:?}");
}

/// Where records go by size, as many bytes as were to stay stay, the last record does, and all replicas are alike.
#[test]
fn lets_go_by_size() {
    let plan = on_three(6_000, Vec::new());
    // Few and large: more than the limit, several times.
    let load = Load { producers: 2, pause_us: 200_000, burst_max: 2, value_bytes_max: 200_000, ..plan.load };
    let outcome = run(Plan { retention_bytes: 4 << 20, load, ..plan }, 0);
    assert_eq!(outcome.problems, [""; 0]);
    let begins = |event: &Event| matches!(event, Event::FinalRead(read) if read.from_offset > 0);
    assert_eq!(outcome.history.iter().filter(|(_, event)| begins(event)).count(), 3);
}

/// A transfer to a replica that the leader does not reach, or that stands still: it fails, and a producer beside it goes on.
#[test]
fn a_transfer_that_fails() {
    for cut in [false, true] {
        let action = Action::FailTransfer { shard: 0, cut, for_ms: 4_000 };
        // Where the network is bad, nobody knows how long anything takes.
        let plan = Plan { path: Path::default(), ..on_three(6_000, vec![Step { at_ms: 1_000, action }]) };
        let outcome = run(plan, 0);
        assert_eq!(outcome.problems, [""; 0]);
        assert_eq!(outcome.coverage.missing(&[("transfer", "leader that leads on")]), [("", ""); 0]);
    }
}

/// At the end of a run all is let go, on all replicas, and that is judged.
#[test]
fn all_is_let_go() {
    let outcome = run(on_three(1_000, Vec::new()), 0);
    assert_eq!(outcome.problems, [""; 0]);
    assert_eq!(outcome.coverage.missing(&[("trim", "everything")]), [("", ""); 0]);
    let trims: Vec<_> = outcome.history.iter().filter(|(_, event)| matches!(event, Event::Trim(_))).collect();
    let [(_, Event::Trim(trim))] = trims[..] else { panic!("{trims:?}") };
    let ends = |event: &Event| matches!(event, Event::FinalRead(read) if read.end_offset == trim.before_offset);
    assert!(outcome.history.iter().any(|(_, event)| ends(event)));
    let last = |event: &Event| match event {
        Event::Status(status) => status.log_start,
        Event::Produce(_) | Event::Read(_) | Event::FinalRead(_) | Event::Trim(_) | Event::Retention(_) => None,
    };
    let starts: Vec<_> = outcome.history.iter().filter_map(|(_, event)| last(event)).collect();
    assert_eq!(starts, [0, 0, 0, trim.before_offset, trim.before_offset, trim.before_offset]);
}

/// A plan with one shard that three nodes have, and that keeps all.
fn on_three(load_ms: u64, steps: Vec<Step>) -> Plan {
    Plan {
        nodes: 3,
        shards: 1,
        replication_factor: 3,
        retention_age_ms: 0,
        retention_bytes: 0,
        load_ms,
        steps,
        ..light(0, Scenario::Mixed)
    }
}

/// What befalls one replica of three, and what is met in the run.
fn strikes(action: Action, met: (&str, &str)) {
    let outcome = run(on_three(6_000, vec![Step { at_ms: 1_000, action }]), 0);
    assert_eq!(outcome.problems, [""; 0]);
    assert_eq!(outcome.coverage.missing(&[met]), [("", ""); 0]);
}

/// A replica whose directory is gone is named, and comes back from the others when its node is drained and taken back.
#[test]
fn a_lost_directory() {
    let action = Action::LoseDirectory { shard: 0, replica: 0, down_ms: 500, seed: 7 };
    strikes(action, ("lost directory", "follower"));
}

/// A block that cannot be read any more is one of a replica that the others can do without: of two voters none has one.
#[test]
fn lost_blocks() {
    for (replication_factor, is_struck) in [(2, false), (3, true)] {
        let action = Action::Rot {
            who: Who::Leader(0),
            fault: crate::sim::DiskFault::LostBlock,
            blocks: 1,
            down_ms: None,
            seed: 7,
        };
        let steps = vec![Step { at_ms: 1_000, action }];
        let plan = Plan { nodes: 3, shards: 1, replication_factor, load_ms: 2_000, steps, ..light(0, Scenario::Calm) };
        let outcome = run(plan, 0);
        assert_eq!(outcome.problems, [""; 0]);
        let missing = outcome.coverage.missing(&[("unreadable block", "file at rest")]);
        assert_eq!(missing.is_empty(), is_struck);
    }
}

/// A replica that has stopped and comes back after a start is not excused when no step has stopped it.
#[test]
fn an_unexplained_stop() {
    let runtime = SimRuntime::seeded(1);
    let problems = runtime.block_on(async {
        let plan = Plan { nodes: 3, shards: 1, replication_factor: 3, load_ms: 1_000, ..light(0, Scenario::Calm) };
        let (cluster, targets) = begin(&plan).await.unwrap();
        let uid = targets[0].uid;
        let stopper = cluster.clone();
        let stopped = World::current().spawn(async move {
            env::sleep::<SimEnv>(Duration::from_millis(500)).await;
            let node = stopper.leader(uid).unwrap();
            stopper.process(node).unwrap().node.note_fault(uid, "it does not like its records");
            node
        });
        let (problems, ..) = live_on(&plan, Rc::default(), cluster, targets).await;
        (problems, stopped.await.unwrap())
    });
    let (problems, node) = problems;
    let expected = format!("shard 2 has stopped on node {node}, and no step explains it: it does not like its records");
    assert_eq!(problems, [expected]);
}

/// A disk of which no sync succeeds for seconds, whatever is restarted.
#[test]
fn a_broken_disk() {
    let (who, fault) = (Who::Leader(0), crate::sim::DiskFault::ErrorSync);
    strikes(Action::Break { who, fault, file: "", for_ms: 3_001 }, ("persistent EIO on sync", "leader"));
}

/// The power fails while it is: the node starts on what cannot be written, or of which a part cannot be read.
#[test]
fn a_start_on_a_broken_disk() {
    for (fault, file) in [(crate::sim::DiskFault::ErrorSync, ""), (crate::sim::DiskFault::ErrorRead, "hard_state")] {
        strikes(Action::Break { who: Who::Leader(0), fault, file, for_ms: 3_000 }, ("persistent EIO", "start"));
    }
}

/// A node whose catalog can write nothing any more says so, and is started anew.
#[test]
fn a_stopped_catalog() {
    let fault = crate::sim::DiskFault::ErrorAppend;
    let broken = Action::Break { who: Who::CatalogLeader, fault, file: "/shards/0/", for_ms: 3_001 };
    let steps = [(1_000, broken), (1_200, Action::Topic { life_ms: 100 })];
    let steps = steps.map(|(at_ms, action)| Step { at_ms, action });
    let plan = Plan { nodes: 3, load_ms: 6_000, steps: steps.into(), ..light(0, Scenario::Calm) };
    let outcome = run(plan, 0);
    assert_eq!(outcome.problems, [""; 0]);
    let met = ("EIO on append", "store append");
    assert_eq!(outcome.coverage.missing(&[met]), [("", ""); 0]);
}

/// A node whose catalog has stopped is started anew while another one, of three, is replaced: without it the one that is left could
/// not let anybody in, nor remove the one that burned.
#[test]
fn a_replacement_beside_a_stopped_node() {
    let fault = crate::sim::DiskFault::ErrorAppend;
    // One for the replica, which stops at once; one for the catalog, which stops at its next command.
    let fails = Action::Fail { who: Who::Any(0), fault, chance_ppm: 1_000_000, times: 3 };
    let steps = [(1_000, fails), (2_000, Action::Replace { who: Who::Any(1) })];
    let steps = steps.map(|(at_ms, action)| Step { at_ms, action });
    let outcome = run(on_three(4_000, steps.into()), 0);
    assert_eq!(outcome.problems, [""; 0]);
    assert_eq!(outcome.coverage.missing(&[("EIO on append", "store append")]), [("", ""); 0]);
    assert!(outcome.coverage.iter().any(|(fault, ..)| fault == "replacement"));
    assert!(outcome.virtual_us < 100_000_000, "{} us", outcome.virtual_us);
}

/// A disk that nobody gives space votes, and is freed by trims.
#[test]
fn a_disk_that_stays_full() {
    // A follower early enough that it has to vote with its reserve, and late enough that it lacks no more than it is lent.
    for (who, at_ms) in [(Who::Follower(0), 5_000), (Who::Leader(0), 4_000)] {
        let steps = vec![Step { at_ms, action: Action::Full { who, for_ms: 0 } }];
        let plan = on_three(6_000, steps);
        // Few and large.
        let load = Load { producers: 2, pause_us: 200_000, burst_max: 2, value_bytes_max: 200_000, ..plan.load };
        let outcome = run(Plan { load, ..plan }, 0);
        let met = if who == Who::Leader(0) { "produce refused" } else { "vote" };
        assert_eq!(outcome.coverage.missing(&[("full disk", "trim"), ("full disk", met)]), [("", ""); 0], "{who:?}");
        assert_eq!(outcome.problems, [""; 0], "{who:?}");
    }
}

/// A bug that panics in one replica ends that one, which is named, and nothing else.
#[test]
fn a_planted_panic() {
    let operation = crate::sim::Operation::AppendDurable;
    strikes(Action::Panic { shard: 0, replica: 0, operation, down_ms: 500 }, ("panic", "replica"));
}

/// The final reads of a run prove something: with the last record of each taken away, the checker says what was lost.
#[test]
fn lost_records_are_found() {
    let history = run(light(0, Scenario::Calm), 0).history;
    let mut forged = History::default();
    for (_, event) in history.iter() {
        let mut event = event.clone();
        if let Event::FinalRead(read) = &mut event {
            read.records.pop();
            read.end_offset -= 1;
        }
        forged.push(event).unwrap();
    }
    let report = crate::sim::checker::check(&forged);
    assert!(report.findings.iter().any(|finding| finding.anomaly.kind() == "lost_write"), "{:?}", report.findings);
}

/// A transfer to a node that does not catch up, asked through one that does not lead: in the leader's own words why nothing was
/// changed, when the leader knows it.
#[test]
fn transfer_to_one_that_lags() {
    let runtime = SimRuntime::seeded(1);
    runtime.block_on(async {
        let plan = Plan { nodes: 3, reactors: 1, shards: 1, replication_factor: 3, ..Plan::of(0, Scenario::Calm) };
        let (cluster, targets) = begin(&plan).await.unwrap();
        let target = targets[0].clone();
        let leader = cluster.leader(target.uid).unwrap();
        let others: Vec<NodeId> = cluster.nodes().into_iter().filter(|node| *node != leader).collect();
        let [lagging, through] = others[..] else { panic!("{others:?}") };
        cluster.disk(lagging).unwrap().delay_flushes(20_000_000, 30_000_000);
        let process = cluster.process(leader).unwrap();
        for _ in 0..200 {
            let request = ProduceRequest {
                topic: target.topic.to_string(),
                shard: Some(target.shard),
                records: vec![Record { value: "x".into(), ..Record::default() }],
                ..ProduceRequest::default()
            };
            let (head, records) = Records::parse(request.encode_to_vec().into(), RECORD_BYTES_MAX).unwrap();
            let call = ProduceCall { head, records, deadline_us: None };
            let frontend = process.frontend(0);
            World::current().spawn_on(leader, async move { frontend.produce(call).await }).await.unwrap().unwrap();
        }
        let began_us = World::current().now_us();
        let call = crate::reactor::mailbox::AdminCall::TransferLeader {
            topic: target.topic.to_string(),
            shard: target.shard,
            to: Some(lagging),
        };
        let asked = cluster.process(through).unwrap();
        let answer = World::current().spawn_on(through, async move { asked.frontend(0).admin(call).await }).await;
        let error = answer.unwrap().unwrap_err();
        let took_us = World::current().now_us() - began_us;
        assert_eq!(
            (error.code.name(), error.reason, error.definite),
            ("FAILED_PRECONDITION", "NO_SUCCESSOR", true),
            "{error}"
        );
        assert!(error.message.contains("lacks entries, and did not catch up in time"), "{}", error.message);
        assert!((5_000_000..6_000_000).contains(&took_us), "after {took_us} us");
        assert_eq!(cluster.leader(target.uid), Some(leader));
    });
    assert_eq!(runtime.world().panics(), []);
}

/// A shard with one replica has nobody else to lead it: the request is refused at once, in one sentence, and nothing changes.
#[test]
fn nobody_to_transfer_to() {
    let runtime = SimRuntime::seeded(1);
    runtime.block_on(async {
        let plan = Plan { nodes: 1, reactors: 1, shards: 1, ..Plan::of(0, Scenario::Calm) };
        let (cluster, targets) = begin(&plan).await.unwrap();
        let target = targets[0].clone();
        let leader = cluster.leader(target.uid).unwrap();
        let process = cluster.process(leader).unwrap();
        let term = process.shard(target.uid).unwrap().leader().1;
        let began_us = World::current().now_us();
        let call = crate::reactor::mailbox::AdminCall::TransferLeader {
            topic: target.topic.to_string(),
            shard: target.shard,
            to: None,
        };
        let asked = Rc::clone(&process);
        let answer = World::current().spawn_on(leader, async move { asked.frontend(0).admin(call).await }).await;
        let error = answer.unwrap().unwrap_err();
        assert_eq!((error.code.name(), error.reason, error.definite), ("FAILED_PRECONDITION", "NO_SUCCESSOR", true));
        assert!(!error.message.contains('\n') && error.message.contains("nothing was changed"), "{}", error.message);
        assert!(World::current().now_us() - began_us < 100_000, "it waits for nothing");
        assert_eq!((cluster.leader(target.uid), process.shard(target.uid).unwrap().leader().1), (Some(leader), term));
    });
    assert_eq!(runtime.world().panics(), []);
}
