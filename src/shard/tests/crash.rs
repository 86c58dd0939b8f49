//! Crashes: whatever happens when, every acknowledged record is there afterwards, at its offset.

use proptest::prelude::*;

use super::*;

/// What may happen to a shard.
#[derive(Clone, Debug)]
enum Step {
    /// Requests of so many records each, sent at once.
    Produce(Vec<u8>),
    /// One of that many KiB.
    Large(u8),
    Trim(u8),
    /// Wait for all acks.
    Wait,
    /// Power failure.
    Crash(u64),
    /// Clean restart.
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(1..4u8, 1..6).prop_map(Step::Produce),
        2 => (1..200u8).prop_map(Step::Large),
        1 => any::<u8>().prop_map(Step::Trim),
        2 => Just(Step::Wait),
        2 => any::<u64>().prop_map(Step::Crash),
        1 => Just(Step::Restart),
    ]
}

type Ack = std::pin::Pin<Box<dyn Future<Output = Result<Produced, ShardError>>>>;

/// A shard, and what it has promised.
struct Run {
    shard: TestShard,
    disk: SimDisk,
    /// Sent, with what it said, and not yet known to be written.
    pending: Vec<(Vec<String>, Ack)>,
    /// Acknowledged: must be there.
    acked: BTreeMap<u64, String>,
    log_start: u64,
    sent: u64,
}

impl Run {
    fn send(&mut self, records: usize, padding: usize) {
        let texts: Vec<String> = (0..records)
            .map(|_| {
                self.sent += 1;
                format!("{}{}", self.sent, " ".repeat(padding))
            })
            .collect();
        let ack = Box::pin(self.shard.produce(values(&texts)));
        self.pending.push((texts, ack));
    }

    /// Takes the acks that have come (all of them if `wait`).
    async fn collect(&mut self, wait: bool) {
        for (texts, mut ack) in std::mem::take(&mut self.pending) {
            let answer = if wait { Some(ack.as_mut().await) } else { futures_util::FutureExt::now_or_never(&mut ack) };
            match answer {
                Some(Ok(produced)) => {
                    assert_eq!(produced.count as usize, texts.len());
                    for (number, text) in texts.into_iter().enumerate() {
                        let before = self.acked.insert(produced.base_offset.0 + number as u64, text);
                        assert_eq!(before, None, "an offset is given once");
                    }
                }
                Some(Err(error)) => panic!("nothing can fail here: {error:?}"),
                None => {
                    if !wait {
                        continue;
                    }
                    self.pending.push((texts, ack));
                }
            }
        }
    }

    /// Everything acknowledged is there; everything there was sent; offsets are dense.
    async fn check(&mut self) {
        let status = self.shard.status();
        assert_eq!(status.log_start.0, self.log_start);
        let there = contents(&self.shard).await;
        assert!(there.keys().copied().eq(self.log_start..status.high_watermark.0), "dense");
        for (offset, text) in self.acked.range(self.log_start..) {
            assert_eq!(there.get(offset).map(|value| &**value), Some(text.as_bytes()), "offset {offset}");
        }
        // What was written without an ack stays as well, now that it was seen.
        for (offset, value) in there {
            self.acked.insert(offset, String::from_utf8(value.to_vec()).unwrap());
        }
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Produce(requests) => {
                for records in requests {
                    self.send(usize::from(*records), 0);
                }
                yield_now().await;
            }
            Step::Large(kib) => self.send(1, usize::from(*kib) * 1024),
            Step::Trim(permille) => {
                let end = self.shard.status().high_watermark.0;
                let before = end * u64::from(*permille) / 512;
                let log_start = self.shard.trim(Offset(before)).await.unwrap();
                self.log_start = self.log_start.max(before);
                assert_eq!(log_start.0, self.log_start);
            }
            Step::Wait => self.collect(true).await,
            Step::Crash(seed) => {
                self.collect(false).await;
                let disk = self.disk.crash(*seed);
                self.disk.power_off();
                self.pending.clear();
                self.disk = disk;
                self.shard = open(&self.disk).await;
                self.check().await;
            }
            Step::Restart => {
                self.shard.close().await.unwrap();
                self.collect(true).await;
                self.shard = open(&self.disk).await;
                assert!(self.shard.recovered().clean);
                self.check().await;
            }
        }
    }
}

fn run(seed: u64, steps: &[Step]) {
    TestEnv::reset(seed);
    let disk = SimDisk::new().with_latency(seed);
    block_on(async {
        let shard = open(&disk).await;
        let mut run = Run { shard, disk, pending: vec![], acked: BTreeMap::new(), log_start: 0, sent: 0 };
        for step in steps {
            run.step(step).await;
        }
        run.collect(true).await;
        run.check().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any history of produces, trims, crashes and restarts.
    #[test]
    fn every_ack_survives(seed in any::<u64>(), steps in prop::collection::vec(any_step(), 1..25)) {
        run(seed, &steps);
    }
}

/// The checker above notices a lost ack: one that was given before the record was durable.
#[test]
#[should_panic(expected = "offset 1")]
fn a_lost_ack_is_noticed() {
    TestEnv::reset(1);
    let disk = SimDisk::new();
    block_on(async {
        let shard = open(&disk).await;
        let mut run = Run { shard, disk, pending: vec![], acked: BTreeMap::new(), log_start: 0, sent: 0 };
        run.send(1, 0);
        run.collect(true).await;
        run.disk.hold();
        let produce = Produce { durability: Durability::LeaderMemory, ..value("early") };
        let produced = run.shard.produce(produce).await.unwrap();
        run.acked.insert(produced.base_offset.0, "early".to_owned());
        for seed in 0..64 {
            run.step(&Step::Crash(seed)).await;
        }
    });
}
