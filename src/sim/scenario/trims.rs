//! Trims: what is asked for, what the answer promises, and whether the replicas keep that.

use std::{rc::Rc, time::Duration};

use super::Run;
use crate::{
    env,
    ids::{NodeId, ShardUid},
    sim::{
        SimEnv, World,
        checker::history::{Event, Status, Trim},
        client::Target,
        cluster::Process,
    },
};

/// How much longer the removal of a file takes at the end of every other run, and for how long it does.
const SLOW_US: u64 = 50_000;
const SLOW_FOR_US: u64 = 20_000_000;

/// Batches that each shard is sent while it lets go.
const PROBES: usize = 3;

const LOOK: Duration = Duration::from_millis(100);

impl Run {
    /// A step: the older half of a shard is let go, or more, or all.
    pub(super) async fn trim(self: &Rc<Self>, shard: u64) {
        let target = self.target(shard);
        self.coverage.borrow_mut().hit("trim", "running cluster");
        let quarters = 2 + World::current().random_u64() % 3;
        self.trim_shard(&target, quarters).await;
    }

    /// At the end, when everything was read: all of each shard is let go, while records come and, in every other run, disks are
    /// slow to remove what there is. Every trim has to be done, and on all replicas.
    pub(super) async fn trim_all(self: &Rc<Self>) {
        if World::current().random_u64().is_multiple_of(2) {
            for disk in self.cluster.nodes().into_iter().filter_map(|node| self.cluster.disk(node)) {
                disk.delay_names(0, SLOW_US, SLOW_FOR_US);
            }
        }
        for target in self.clients.targets() {
            while !self.trim_shard(&target, 4).await {
                env::sleep::<SimEnv>(LOOK).await;
            }
            self.coverage.borrow_mut().hit("trim", "everything");
            for _ in 0..PROBES {
                self.clients.probe(&target).await;
            }
        }
        for target in self.clients.targets() {
            while !self.agrees(&target) {
                env::sleep::<SimEnv>(LOOK).await;
            }
            self.note_statuses(&target, World::current().now_us(), self.statuses(&target));
        }
    }

    /// Lets so many quarters of a shard go, as its leader knows it, asking any node that has a replica; whether that was
    /// acknowledged.
    pub(super) async fn trim_shard(&self, target: &Target, quarters: u64) -> bool {
        let Some((node, process)) = self.any_holder(target.uid) else { return false };
        self.purged.set(true);
        let begin_us = World::current().now_us();
        let leader = self.cluster.leader(target.uid).and_then(|leader| self.cluster.process(leader));
        let known = [&leader, &Some(process.clone())].map(|process| process.as_ref()?.shard(target.uid));
        let high_watermark = known.into_iter().flatten().map(|shard| shard.high_watermark().0).max();
        let before_offset = high_watermark.unwrap_or_default() * quarters / 4;
        let asked = target.clone();
        let answer = World::current().spawn_on(node, async move {
            process.frontend(0).trim_topic(&asked.topic, asked.shard, before_offset).await
        });
        let answer = answer.await;
        World::current().note(&format!("trim of shard {} before {before_offset}: {answer:?}", target.uid));
        let end_us = World::current().now_us();
        let is_done = matches!(answer, Ok(Ok(_)));
        match &answer {
            Ok(Ok(log_start)) => {
                let mut trimmed = self.trimmed.borrow_mut();
                let known = trimmed.entry(target.uid).or_default();
                *known = (*known).max(*log_start);
            }
            // It was not done, for certain: whatever goes all the same was never asked for.
            Ok(Err(error)) if error.definite => return false,
            Ok(Err(_)) | Err(_) => {}
        }
        let (topic, shard) = (target.topic.to_string(), target.shard);
        self.clients.note(Event::Trim(Trim { begin_us, end_us, topic, shard, before_offset }));
        self.survived(answer.map(drop));
        is_done
    }

    /// A node that serves and has an open replica of a shard, by the dice; without one any that serves.
    fn any_holder(&self, uid: ShardUid) -> Option<(NodeId, Rc<Process>)> {
        let serving = self.cluster.serving().into_iter().filter_map(|node| Some((node, self.cluster.process(node)?)));
        let holders: Vec<_> = serving.filter(|(_, process)| process.shard(uid).is_some()).collect();
        let number = World::current().random_u64() as usize % holders.len().max(1);
        holders.get(number).cloned().or_else(|| self.any_process())
    }

    /// A replica that has applied everything has let go what was trimmed for certain.
    pub(super) fn judge_trim(&self, target: &Target, status: &Status) {
        let trimmed = self.trimmed.borrow().get(&target.uid).copied().unwrap_or_default();
        if status.log_start.is_some_and(|log_start| log_start < trimmed) {
            let (node, uid, log_start) = (status.node, target.uid, status.log_start.unwrap_or_default());
            self.problem(format!("shard {uid} begins at {log_start} on node {node}, and was trimmed up to {trimmed}"));
        }
    }
}
