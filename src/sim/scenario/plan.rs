//! What is to happen in one run, decided from its seed before anything runs: the cluster's shape, the load, and each fault
//! with its time. Pure. So a run can be repeated with some of its steps left out, which is how a failure is shrunk.

use std::{cell::Cell, fmt};

use super::{front, mixed, shape::Shape};
use crate::sim::{DiskFault, Operation, client::Load, net::Path, random};

/// A family of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Nothing fails: light load.
    Calm,
    /// Power failures, kills and clean stops of nodes, also of all at once.
    Crashes,
    /// Cuts, one-way cuts, isolated nodes, bridges, flapping; loss and delay.
    Partitions,
    /// Paused nodes, clocks that drift and jump.
    Clocks,
    /// Nodes join, are drained, removed and replaced, leaders move, topics come and go; with crashes in between.
    Members,
    /// Disks that are slow, full, or fail; power failures beside it.
    Disks,
    /// One node's disk loses or changes what it had, or never had what it said; power failures of all beside it.
    Damage,
    /// Stock gRPC clients with all their habits, and hostile ones, while nodes stop, die, stand still and leaders move.
    Front,
    /// All families of faults in one run, but for `Front`'s clients; replicas that lose their directories, disks that stay broken,
    /// bugs that panic.
    Mixed,
}

impl Scenario {
    /// All of them; seeds go through them in this order.
    pub const ALL: [Scenario; 9] = [
        Scenario::Calm,
        Scenario::Crashes,
        Scenario::Partitions,
        Scenario::Clocks,
        Scenario::Members,
        Scenario::Disks,
        Scenario::Damage,
        Scenario::Front,
        Scenario::Mixed,
    ];

    /// The scenario of a seed, unless one is asked for.
    pub fn of(seed: u64) -> Scenario {
        Scenario::ALL[(seed % Scenario::ALL.len() as u64) as usize]
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Scenario::Calm => "calm",
            Scenario::Crashes => "crashes",
            Scenario::Partitions => "partitions",
            Scenario::Clocks => "clocks",
            Scenario::Members => "members",
            Scenario::Disks => "disks",
            Scenario::Damage => "damage",
            Scenario::Front => "front",
            Scenario::Mixed => "mixed",
        }
    }

    /// The scenario of that name.
    pub fn named(name: &str) -> Option<Scenario> {
        Scenario::ALL.into_iter().find(|scenario| scenario.name() == name)
    }
}

/// Which node a step is about; resolved when it happens. Numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The leader of the shard of that number among all.
    Leader(u64),
    /// A replica of that shard that does not lead.
    Follower(u64),
    /// The leader of the catalog.
    CatalogLeader,
    /// Any node.
    Any(u64),
}

/// A fault, or what an operator does. `who` is struck, for `for_ms`, or is down for `down_ms`.
#[allow(missing_docs, reason = "the fields' names say what they are")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Power failure of a node; back after a while.
    Crash { who: Who, down_ms: u64, seed: u64 },
    /// Its process is killed; the machine goes on.
    Kill { who: Who, down_ms: u64 },
    /// All nodes lose power at once.
    CrashAll { down_ms: u64, seed: u64 },
    /// SIGTERM; back after a while.
    Stop { who: Who, down_ms: u64 },
    /// Nothing passes between a node and the others.
    Isolate { who: Who, for_ms: u64 },
    /// What a node sends does not arrive (or what the others send to it).
    CutOneWay { who: Who, out: bool, for_ms: u64 },
    /// Two nodes do not reach each other, all others do: a bridge.
    CutPair { first: Who, second: Who, for_ms: u64 },
    /// A node is cut off and back, again and again.
    Flap { who: Who, times: u32, period_ms: u64 },
    /// All connections are lost.
    DropConnections,
    /// A node's process stands still.
    Pause { who: Who, for_ms: u64 },
    /// A node's clock runs too fast or too slow.
    Drift { who: Who, ppm: i64 },
    /// A node's wall clock jumps.
    Jump { who: Who, us: i64 },
    /// Operations of a node's disk fail, each with this chance (in parts per million), until as many have.
    Fail { who: Who, fault: DiskFault, chance_ppm: u64, times: u64 },
    /// A node's disk takes so many times as long.
    Slow { who: Who, factor: u64, for_ms: u64 },
    /// What a node's disk has to make durable takes so much longer, and what removes or renames a file.
    SlowFlush { who: Who, flush_ms: u64, names_ms: u64, for_ms: u64 },
    /// A node's disk has no more room; `for_ms` 0: until what is let go at the end frees it.
    Full { who: Who, for_ms: u64 },
    /// Blocks at rest are damaged: under the running node, or while it is down.
    Rot { who: Who, fault: DiskFault, blocks: u64, down_ms: Option<u64>, seed: u64 },
    /// Writes to a file whose name contains `file` are damaged.
    Bend { who: Who, fault: DiskFault, file: &'static str, times: u64 },
    /// A node's disk says that it has made records durable and has not; then the power fails.
    Lie { who: Who, for_ms: u64, down_ms: u64, seed: u64 },
    /// A node's machine is put back to what its disk was so long before.
    Restore { who: Who, age_ms: u64, down_ms: u64, seed: u64 },
    /// A replica's directory is gone from its node's disk while that is down.
    LoseDirectory { shard: u64, replica: u64, down_ms: u64, seed: u64 },
    /// A node's disk is broken: all such operations on files whose names contain `file` fail, also after a restart.
    Break { who: Who, fault: DiskFault, file: &'static str, for_ms: u64 },
    /// A bug shows in one replica: the task that asks for its next such operation panics.
    Panic { shard: u64, replica: u64, operation: Operation, down_ms: u64 },
    /// A shard's leadership moves.
    Transfer { shard: u64, to: Option<Who> },
    /// The same, to a replica that stands still from then on, or that the leader does not reach, and nobody has noticed.
    FailTransfer { shard: u64, cut: bool, for_ms: u64 },
    /// A leader is struck while the members of its shard change: a follower is drained for it, and taken back.
    InChange { shard: u64, fault: InChange, for_ms: u64, seed: u64 },
    /// A node is drained, and perhaps taken back.
    Drain { who: Who, undo_after_ms: Option<u64> },
    /// A new node joins.
    Join,
    /// A node is destroyed, removed as dead, and another one joins.
    Replace { who: Who },
    /// Replicas and leaders are spread evenly.
    Rebalance,
    /// A topic is made, and deleted again.
    Topic { life_ms: u64 },
    /// The older part of a shard is let go.
    Trim { shard: u64 },
}

/// What befalls a leader whose shard's members change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InChange {
    /// Power failure of its node.
    Crash,
    /// Nothing passes between its node and the others.
    Isolate,
    /// Somebody else is to lead.
    Transfer,
}

/// An action and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// After the beginning of the load.
    pub at_ms: u64,
    /// What happens then.
    pub action: Action,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms: {:?}", self.at_ms, self.action)
    }
}

/// A run before it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Everything comes from it.
    pub seed: u64,
    /// Its family.
    pub scenario: Scenario,
    /// Nodes at the beginning.
    pub nodes: u64,
    /// Reactors of each.
    pub reactors: usize,
    /// Memory of each of them for what is on its way.
    pub memory_bytes: usize,
    /// Shards of the topic.
    pub shards: u32,
    /// Replicas of each, as far as there are nodes.
    pub replication_factor: u32,
    /// Age at which its records go; 0: they stay.
    pub retention_age_ms: u64,
    /// Bytes of a shard above which its oldest records go; 0: they stay.
    pub retention_bytes: u64,
    /// Length of its name: it is part of each request and acknowledgement.
    pub topic_bytes: usize,
    /// What clients do.
    pub load: Load,
    /// How long clients are at it, ms.
    pub load_ms: u64,
    /// How well the network does all the time.
    pub path: Path,
    /// What happens meanwhile, by time.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64, scenario: Scenario) -> Plan {
        let plan = Plan::without_stock_clients(seed, scenario);
        match scenario {
            Scenario::Front => front::plan(plan),
            Scenario::Calm => plan,
            Scenario::Crashes
            | Scenario::Partitions
            | Scenario::Clocks
            | Scenario::Members
            | Scenario::Disks
            | Scenario::Damage
            | Scenario::Mixed => plan.perhaps_crowded().perhaps_slow_names().perhaps_stays_full().perhaps_in_change(),
        }
    }

    /// In one of three of those with members: a disk that takes long to remove and to rename, when something is trimmed if
    /// anything is. By dice of its own, and behind what was drawn before: an old seed keeps its other steps.
    fn perhaps_slow_names(mut self) -> Plan {
        let dice = &Cell::new(self.seed ^ 0x006e_616d_6573);
        if self.scenario != Scenario::Members || !random(dice).is_multiple_of(3) {
            return self;
        }
        let trimmed = self.steps.iter().find(|step| matches!(step.action, Action::Trim { .. }));
        let at_ms = trimmed.map_or_else(|| random(dice) % self.load_ms, |trim| trim.at_ms.saturating_sub(500));
        let names_ms = [5, 50, NAMES_MS_MAX][(random(dice) % 3) as usize];
        let action = Action::SlowFlush { who: who(dice), flush_ms: 1, names_ms, for_ms: between(dice, 1_000, 8_000) };
        let place = self.steps.partition_point(|step| step.at_ms <= at_ms);
        self.steps.insert(place, Step { at_ms, action });
        self
    }

    /// In every other one of those with members: a leader that is struck while they change. By dice of its own, too.
    fn perhaps_in_change(mut self) -> Plan {
        let dice = &Cell::new(self.seed ^ 0x6368_616e_6765);
        if self.scenario != Scenario::Members || !random(dice).is_multiple_of(2) {
            return self;
        }
        let fault = [InChange::Crash, InChange::Isolate, InChange::Transfer][(random(dice) % 3) as usize];
        let (at_ms, shard) = (random(dice) % self.load_ms, random(dice) % 64);
        let action = Action::InChange { shard, fault, for_ms: between(dice, 5, 6_000), seed: random(dice) };
        let place = self.steps.partition_point(|step| step.at_ms <= at_ms);
        self.steps.insert(place, Step { at_ms, action });
        self
    }

    /// One in eight: nodes with less memory than their clients would use, who are refused now and then.
    fn perhaps_crowded(self) -> Plan {
        let dice = &Cell::new(self.seed ^ 0xc40bd);
        if !random(dice).is_multiple_of(8) {
            return self;
        }
        // Large bursts, but few: each takes as long to simulate as hundreds of small ones.
        let (pause_us, batch_max) = (400_000, 20);
        let load = Load { producers: 3, pause_us, batch_max, burst_max: 8, value_bytes_max: 20_000, ..self.load };
        Plan { memory_bytes: CROWDED_BYTES, load, ..self }
    }

    /// In one of six of those with disks: one that is full from some time on, and stays so until what is let go frees it. It has
    /// several segments by then.
    fn perhaps_stays_full(mut self) -> Plan {
        let dice = &Cell::new(self.seed ^ 0x0073_7461_7973);
        if self.scenario != Scenario::Disks || !random(dice).is_multiple_of(6) {
            return self;
        }
        let at_ms = self.load_ms / 2 + random(dice) % (self.load_ms / 4);
        let place = self.steps.partition_point(|step| step.at_ms <= at_ms);
        self.steps.insert(place, Step { at_ms, action: Action::Full { who: who(dice), for_ms: 0 } });
        let (producers, pause_us, batch_max, burst_max) = (2, 300_000, 20, 4);
        let load = Load { producers, pause_us, batch_max, burst_max, value_bytes_max: 20_000, ..self.load };
        Plan { shards: 1, memory_bytes: MEMORY_BYTES, load, ..self }
    }

    /// Whether a disk stays full in it.
    pub(super) fn stays_full(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.action, Action::Full { for_ms: 0, .. }))
    }

    fn without_stock_clients(seed: u64, scenario: Scenario) -> Plan {
        let dice = &Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ scenario as u64);
        let nodes = if random(dice).is_multiple_of(4) { 5 } else { 3 };
        let light = scenario == Scenario::Calm;
        let load = Load {
            producers: 1 + random(dice) % 3,
            consumers: 1 + random(dice) % 2,
            pause_us: if light { 400_000 } else { [20_000, 100_000, 300_000][(random(dice) % 3) as usize] },
            batch_max: [1, 3, 20][(random(dice) % 3) as usize],
            burst_max: [1, 4, 8][(random(dice) % 3) as usize],
            value_bytes_max: [50, 1_000, 20_000][(random(dice) % 3) as usize],
            stock: None,
            hostile: 0,
            undisturbed: false,
        };
        let load_ms = 4_000 + random(dice) % 8_000;
        let count = match scenario {
            Scenario::Calm => 0,
            Scenario::Mixed => 3 + random(dice) % 6,
            _ => 1 + random(dice) % 6,
        };
        let shape = Shape::of(seed, scenario);
        let is_bad = scenario == Scenario::Mixed && random(dice).is_multiple_of(4);
        let mut steps: Vec<Step> =
            (0..count).map(|_| Step { at_ms: random(dice) % load_ms, action: action(scenario, dice) }).collect();
        steps.sort_by_key(|step| step.at_ms);
        Plan {
            seed,
            scenario,
            nodes,
            reactors: 1 + (random(dice) % 2) as usize,
            memory_bytes: MEMORY_BYTES,
            shards: 1 + (random(dice) % 3) as u32,
            replication_factor: shape.replication_factor,
            retention_age_ms: match scenario {
                // The last: nothing is old enough in any run.
                Scenario::Clocks => [0, 1_000, 3_000, 3_600_000][(random(dice) % 4) as usize],
                _ => shape.retention_age_ms,
            },
            retention_bytes: shape.retention_bytes,
            topic_bytes: 1,
            load,
            load_ms,
            path: if scenario == Scenario::Partitions || is_bad { bad_path(dice) } else { Path::default() },
            steps,
        }
    }

    /// The same with only the steps of these numbers.
    #[must_use]
    pub fn with_only(self, numbers: &[usize]) -> Plan {
        let steps = self.steps.into_iter().enumerate().filter(|(number, _)| numbers.contains(number));
        Plan { steps: steps.map(|(_, step)| step).collect(), ..self }
    }
}

/// Memory of a reactor: little, so that what a slow disk or a partition makes wait meets the limits.
const MEMORY_BYTES: usize = 8 << 20;

/// Less than a burst of the largest batches takes, half of which clients may use; more than the largest frame between nodes.
const CROWDED_BYTES: usize = 2 << 20;

/// The most that removing a file takes longer: hundreds of them one after the other are to end before a device counts as hung.
const NAMES_MS_MAX: u64 = 200;

/// A year.
const YEAR_US: i64 = 365 * 86_400_000_000;

/// A network that is slow, or loses, doubles and reorders.
fn bad_path(dice: &Cell<u64>) -> Path {
    let one_of = |choices: [u64; 4]| choices[(random(dice) % 4) as usize];
    Path {
        delay_us: one_of([50, 50, 500, 3_000]),
        jitter_us: one_of([30, 100, 1_000, 3_000]),
        loss_ppm: one_of([0, 0, 1_000, 30_000]),
        duplicate_ppm: one_of([0, 0, 10_000, 100_000]),
        reorder_ppm: one_of([0, 0, 10_000, 100_000]),
        reorder_us: 2_000,
        ..Path::default()
    }
}

pub(super) fn who(dice: &Cell<u64>) -> Who {
    let number = random(dice) % 64;
    match random(dice) % 6 {
        0..=2 => Who::Leader(number),
        3 => Who::Follower(number),
        4 => Who::CatalogLeader,
        _ => Who::Any(number),
    }
}

/// A time between the two, more often a short one, in ms.
pub(super) fn between(dice: &Cell<u64>, least: u64, most: u64) -> u64 {
    let range = most - least + 1;
    least + (random(dice) % range).min(random(dice) % range)
}

fn action(scenario: Scenario, dice: &Cell<u64>) -> Action {
    match scenario {
        Scenario::Calm => Action::DropConnections,
        Scenario::Crashes => crash(dice),
        Scenario::Partitions => cut(dice),
        Scenario::Clocks => clock(dice),
        Scenario::Disks => disk(dice),
        Scenario::Damage => damage(dice),
        Scenario::Front => front::action(dice),
        Scenario::Mixed => mixed::action(dice),
        Scenario::Members => members(dice),
    }
}

pub(super) fn clock(dice: &Cell<u64>) -> Action {
    match random(dice) % 4 {
        0 | 1 => Action::Pause { who: who(dice), for_ms: between(dice, 100, 8_000) },
        2 => Action::Drift { who: who(dice), ppm: (random(dice) % 400_001) as i64 - 200_000 },
        _ => {
            let far = [1, 1, YEAR_US / 10_000_000, 1][(random(dice) % 4) as usize];
            Action::Jump { who: who(dice), us: ((random(dice) % 20_000_001) as i64 - 10_000_000) * far }
        }
    }
}

pub(super) fn members(dice: &Cell<u64>) -> Action {
    match random(dice) % 14 {
        0..=2 => Action::Transfer { shard: random(dice) % 64, to: random(dice).is_multiple_of(2).then(|| who(dice)) },
        3 | 4 => Action::Drain {
            who: who(dice),
            undo_after_ms: random(dice).is_multiple_of(2).then(|| between(dice, 200, 4_000)),
        },
        5 => Action::Join,
        6 => Action::Replace { who: who(dice) },
        7 => Action::Rebalance,
        8 => Action::Topic { life_ms: between(dice, 10, 3_000) },
        9 => Action::Trim { shard: random(dice) % 64 },
        10 => cut(dice),
        11 | 12 => Action::FailTransfer {
            shard: random(dice) % 64,
            cut: random(dice).is_multiple_of(2),
            for_ms: between(dice, 100, 6_000),
        },
        _ => crash(dice),
    }
}

pub(super) fn crash(dice: &Cell<u64>) -> Action {
    let down_ms = between(dice, 5, 6_000);
    match random(dice) % 8 {
        0..=3 => Action::Crash { who: who(dice), down_ms, seed: random(dice) },
        4 => Action::Kill { who: who(dice), down_ms },
        5 => Action::Stop { who: who(dice), down_ms },
        6 => Action::CrashAll { down_ms, seed: random(dice) },
        _ => Action::DropConnections,
    }
}

pub(super) fn cut(dice: &Cell<u64>) -> Action {
    let for_ms = between(dice, 50, 8_000);
    match random(dice) % 6 {
        0 | 1 => Action::Isolate { who: who(dice), for_ms },
        2 => Action::CutOneWay { who: who(dice), out: random(dice).is_multiple_of(2), for_ms },
        3 => Action::CutPair { first: who(dice), second: who(dice), for_ms },
        4 => Action::Flap { who: who(dice), times: 2 + (random(dice) % 6) as u32, period_ms: between(dice, 20, 1_500) },
        _ => Action::DropConnections,
    }
}

pub(super) fn disk(dice: &Cell<u64>) -> Action {
    let who = who(dice);
    let fails = [DiskFault::ErrorWrite, DiskFault::ErrorAppend, DiskFault::ErrorSync, DiskFault::ErrorRead];
    match random(dice) % 10 {
        0..=3 => Action::Fail {
            who,
            fault: fails[(random(dice) % 4) as usize],
            chance_ppm: [20_000, 200_000, 1_000_000][(random(dice) % 3) as usize],
            times: 1 + random(dice) % 3,
        },
        4 | 5 => {
            Action::Slow { who, factor: [5, 50, 500][(random(dice) % 3) as usize], for_ms: between(dice, 100, 5_000) }
        }
        6 => Action::Full { who, for_ms: between(dice, 100, 5_000) },
        7 | 8 => {
            let flush_ms = [5, 200, 2_000][(random(dice) % 3) as usize];
            let for_ms = between(dice, 1_000, 15_000);
            // From what was drawn: a step of old stays the same but for this.
            let names_ms = if for_ms.is_multiple_of(2) { flush_ms.min(NAMES_MS_MAX) } else { 0 };
            Action::SlowFlush { who, flush_ms, names_ms, for_ms }
        }
        _ => crash(dice),
    }
}

pub(super) fn damage(dice: &Cell<u64>) -> Action {
    let (who, seed) = (who(dice), random(dice));
    let wrong = [DiskFault::BitFlip, DiskFault::ZeroedBlock, DiskFault::StaleBlock, DiskFault::Misdirected];
    let fault = wrong[(random(dice) % 4) as usize];
    let at_rest = if random(dice).is_multiple_of(4) { DiskFault::LostBlock } else { fault };
    let down_ms = between(dice, 5, 4_000);
    match random(dice) % 10 {
        0..=3 => {
            let down_ms = random(dice).is_multiple_of(2).then_some(down_ms);
            Action::Rot { who, fault: at_rest, blocks: 1 + between(dice, 0, 9), down_ms, seed }
        }
        4 | 5 => {
            let file = [".store", ".store", ".index", "hard_state"][(random(dice) % 4) as usize];
            Action::Bend { who, fault, file, times: 1 + random(dice) % 3 }
        }
        6 => Action::Lie { who, for_ms: between(dice, 50, 4_000), down_ms, seed },
        7 => Action::Restore { who, age_ms: between(dice, 50, 4_000), down_ms, seed },
        _ => crash(dice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed has one plan, other seeds have others, and each scenario has its name.
    #[test]
    fn plans() {
        for scenario in Scenario::ALL {
            assert_eq!(Scenario::named(scenario.name()), Some(scenario));
            assert_eq!(Plan::of(7, scenario), Plan::of(7, scenario));
            assert_ne!(Plan::of(7, scenario), Plan { seed: 7, ..Plan::of(8, scenario) });
        }
    }

    /// Faults of all families come in one scenario, with what only it has.
    #[test]
    fn mixes() {
        let steps: Vec<Action> =
            (0..200).flat_map(|seed| Plan::of(seed, Scenario::Mixed).steps).map(|step| step.action).collect();
        let families: [fn(&Action) -> bool; 9] = [
            |action| matches!(action, Action::Crash { .. }),
            |action| matches!(action, Action::Isolate { .. }),
            |action| matches!(action, Action::Drift { .. }),
            |action| matches!(action, Action::Replace { .. }),
            |action| matches!(action, Action::Full { .. }),
            |action| matches!(action, Action::Rot { .. }),
            |action| matches!(action, Action::LoseDirectory { .. }),
            |action| matches!(action, Action::Break { .. }),
            |action| matches!(action, Action::Panic { .. }),
        ];
        assert!(families.iter().all(|is_of| steps.iter().any(is_of)));
    }

    /// In one scenario topics have few replicas or many, and let records go.
    #[test]
    fn shapes() {
        let plans = || (0..200).map(|seed| Plan::of(seed, Scenario::Mixed));
        for replicas in [1, 2, 3, 5] {
            assert!(plans().any(|plan| plan.replication_factor == replicas));
        }
        assert!(plans().any(|plan| plan.retention_bytes > 0) && plans().any(|plan| plan.retention_age_ms > 0));
    }

    /// Leaving steps out leaves everything else as it was.
    #[test]
    fn shrinks() {
        let plan = (0..).map(|seed| Plan::of(seed, Scenario::Crashes)).find(|plan| plan.steps.len() > 3);
        let plan = plan.expect("most have");
        let less = plan.clone().with_only(&[0, 2]);
        assert_eq!(less.steps, [plan.steps[0].clone(), plan.steps[2].clone()]);
        assert_eq!(Plan { steps: plan.steps.clone(), ..less }, plan);
    }
}
