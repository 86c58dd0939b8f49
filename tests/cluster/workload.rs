//! A writer that remembers what it was told: each record is numbered within its shard, and for each it is known whether it
//! was acknowledged (and where), refused for certain, or neither.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use ringlog::{
    client::{Cluster, Delivery, ProduceError, Producer},
    proto::ringlog::v1::Record,
};

use crate::harness::{PATIENCE, block_on};

/// Records of one shard in flight.
const IN_FLIGHT: usize = 32;

/// Pause after each record: enough load to be in the middle of something, little enough for a small machine.
const PAUSE: Duration = Duration::from_millis(2);

/// What the writer was told of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is at that offset.
    Acked(u64),
    /// It is nowhere.
    Refused(String),
    /// It may be somewhere.
    Maybe(String),
}

/// All that was written to a topic.
#[derive(Debug)]
pub struct History {
    pub topic: String,
    /// By shard, then by number.
    pub shards: Vec<Vec<Outcome>>,
    /// When each of them was sent, and when its outcome was known, in µs (`now_us`).
    pub times_us: Vec<Vec<(u64, u64)>>,
}

/// Time since this process first asked.
pub fn now_us() -> u64 {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BEGIN.get_or_init(Instant::now).elapsed().as_micros()).unwrap()
}

impl History {
    pub fn count(&self, is_such: impl Fn(&Outcome) -> bool) -> usize {
        self.shards.iter().flatten().filter(|outcome| is_such(outcome)).count()
    }
    /// What was not acknowledged, and why.
    pub fn failures(&self) -> Vec<&Outcome> {
        self.shards.iter().flatten().filter(|outcome| !matches!(outcome, Outcome::Acked(_))).collect()
    }

    /// The latency that this part of the records did not exceed.
    pub fn quantile(&self, part: f64) -> Duration {
        let mut latencies: Vec<u64> = self.times_us.iter().flatten().map(|(begin, end)| end - begin).collect();
        latencies.sort_unstable();
        let at = (latencies.len() as f64 * part) as usize;
        Duration::from_micros(latencies.get(at.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default())
    }
}

/// The n-th value of a shard: recognizable, of a size that varies, and whole or not.
pub fn value(shard: usize, number: usize) -> Bytes {
    let mut text = format!("{shard}/{number}/");
    text.extend(std::iter::repeat_n('x', number * 7_919 % 1_500));
    text.push('.');
    text.into()
}

/// A writer on a thread of its own.
pub struct Workload {
    stop: Arc<AtomicBool>,
    acked: Vec<Arc<AtomicU64>>,
    thread: JoinHandle<History>,
}

impl Workload {
    /// Writes to all shards of a topic until it is told to stop.
    pub fn start(addresses: &[String], topic: &str, shards: usize) -> Workload {
        let stop = Arc::new(AtomicBool::new(false));
        let acked: Vec<Arc<AtomicU64>> = (0..shards).map(|_| Arc::default()).collect();
        let (addresses, topic) = (addresses.to_vec(), topic.to_owned());
        let (stopped, counts) = (Arc::clone(&stop), acked.clone());
        let thread = thread::spawn(move || block_on(write(&addresses, &topic, &stopped, &counts)));
        let workload = Workload { stop, acked, thread };
        workload.wait_for_acks(10);
        workload
    }

    /// Waits until that many more records are acknowledged in every shard: it works (again).
    pub fn wait_for_acks(&self, more: u64) {
        let since = Instant::now();
        for acked in &self.acked {
            let wanted = acked.load(Ordering::Relaxed) + more;
            while acked.load(Ordering::Relaxed) < wanted {
                assert!(!self.thread.is_finished(), "the writer has ended");
                assert!(since.elapsed() < PATIENCE, "nothing is acknowledged any more");
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Ends the writing, and gives what is known.
    pub fn finish(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

async fn write(addresses: &[String], topic: &str, stop: &AtomicBool, acked: &[Arc<AtomicU64>]) -> History {
    let cluster = Cluster::connect(addresses).await.unwrap();
    // A record in each batch, so that a failure in the middle of several is seen.
    let producer = cluster.producer(topic).batch_records(1).delivery_timeout(PATIENCE / 2).open();
    let shards = acked.iter().enumerate().map(|(shard, acked)| write_shard(&producer, shard, stop, acked));
    let written = futures_util::future::join_all(shards).await;
    producer.close().await;
    let (shards, times_us) = written.into_iter().unzip();
    History { topic: topic.to_owned(), shards, times_us }
}

async fn write_shard(
    producer: &Producer,
    shard: usize,
    stop: &AtomicBool,
    acked: &AtomicU64,
) -> (Vec<Outcome>, Vec<(u64, u64)>) {
    let (mut outcomes, mut times) = (Vec::new(), Vec::new());
    let mut in_flight: VecDeque<(u64, Delivery)> = VecDeque::new();
    let mut number = 0;
    let mut settle = |begin_us: u64, outcome: Result<ringlog::client::Acked, ProduceError>| {
        times.push((begin_us, now_us()));
        outcomes.push(match outcome {
            Ok(ack) => {
                assert_eq!(ack.shard as usize, shard);
                acked.fetch_add(1, Ordering::Relaxed);
                Outcome::Acked(ack.offset)
            }
            Err(error) if error.is_definite() => Outcome::Refused(error.to_string()),
            Err(error) => Outcome::Maybe(error.to_string()),
        });
    };
    while !stop.load(Ordering::Relaxed) {
        let record = Record { value: value(shard, number), ..Record::default() };
        let begin_us = now_us();
        let delivery = producer.send_to(u32::try_from(shard).unwrap(), record).await.unwrap();
        in_flight.push_back((begin_us, delivery));
        number += 1;
        let pause = tokio::time::sleep(PAUSE);
        tokio::pin!(pause);
        loop {
            let is_full = in_flight.len() >= IN_FLIGHT;
            tokio::select! {
                biased;
                outcome = async { (&mut in_flight.front_mut().unwrap().1).await }, if !in_flight.is_empty() => {
                    let (begin_us, _) = in_flight.pop_front().unwrap();
                    settle(begin_us, outcome);
                }
                () = &mut pause, if !is_full => break,
            }
        }
    }
    producer.flush().await;
    for (begin_us, delivery) in in_flight {
        settle(begin_us, delivery.await);
    }
    (outcomes, times)
}
