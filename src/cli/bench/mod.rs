//! `ringlog bench`: load over real gRPC, and what it measures.
//!
//! Closed loop: a fixed number of requests is in flight, split evenly over the connections; latency is from
//! handing a request to its connection until its ack is read. Open loop (`--rate`): requests have intended
//! times, kept whether or not the server keeps up, and latency is from the intended time, so that a stall is
//! charged to every request that it delayed (no coordinated omission).
//!
//! All of it runs on one thread. While few requests are in flight the thread polls its sockets without
//! sleeping (`busy_poll` in the result), because waking a sleeping core costs as much as a fast disk write,
//! and would be charged to the server.
//!
//! In a cluster each connection goes to the leader of some shards and names these (`--direct`), or, to measure what
//! forwarding costs, to a node that leads none of the shards that it names (`--any`). A single node chooses the shard
//! itself, one of the reactor that has the connection.

#![allow(clippy::disallowed_methods, reason = "a load generator measures real time, and is no reactor")]

mod consume;
mod payload;
mod produce;
mod report;
mod run;
mod target;

use std::{path::PathBuf, sync::Arc, sync::atomic::AtomicBool, sync::atomic::Ordering};

use clap::{Subcommand, ValueEnum};

use super::{Failure, OutputForm, ServerArgs};
use crate::{
    client::Cluster,
    config,
    frontend::Code,
    proto::ringlog::v1::{CreateTopicRequest, ShardStatus},
};

/// Most requests in flight at which the client polls without sleeping, unless told.
const BUSY_POLL_IN_FLIGHT_MAX: usize = 4;

/// `ringlog bench`.
#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Append records and measure acks
    Produce(ProduceArgs),
    /// Replay records from the earliest on; makes them first if there are too few
    Consume(ConsumeArgs),
}

/// What both workloads share.
#[derive(Debug, clap::Args)]
struct CommonArgs {
    /// Topic to use; made if it is missing
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Shards of the topic when it is made [default: one per reactor]
    #[arg(long, value_name = "N")]
    shards: Option<u32>,
    /// Replicas of each shard when the topic is made [default: the server's setting]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    replication_factor: u32,
    /// Connect straight to the shards' leaders [default]
    #[arg(long)]
    direct: bool,
    /// Connect to nodes that do not lead the shards, so that every request is forwarded
    #[arg(long, conflicts_with = "direct")]
    any: bool,
    /// Bytes of a record's value
    #[arg(long, value_name = "BYTES", default_value = "1024", value_parser = config::bytes)]
    record_bytes: u64,
    /// Connections; requests and shards are spread over them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    connections: u32,
    /// Poll sockets without sleeping: costs a core, saves its wake-ups
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    busy_poll: BusyPoll,
    /// Form of the result
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputForm,
    #[command(flatten)]
    server: ServerArgs,
}

/// When to poll without sleeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BusyPoll {
    /// With few requests in flight.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

#[derive(Debug, clap::Args)]
struct ProduceArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Records in one request
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    batch: u32,
    /// Requests in flight, in total over all connections; with --rate a bound
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: Option<u32>,
    /// Open loop: records per second in total, latency from the intended time
    #[arg(long, value_name = "N", value_parser = positive)]
    rate: Option<f64>,
    /// How long to measure [default: 10, or until --records]
    #[arg(long, value_name = "N", value_parser = positive)]
    seconds: Option<f64>,
    /// How long to run before measuring, seconds
    #[arg(long, value_name = "N", default_value_t = 2.0)]
    warmup: f64,
    /// Stop after that many measured records
    #[arg(long, value_name = "N")]
    records: Option<u64>,
    /// One Produce call per request instead of one ProduceStream per connection
    #[arg(long)]
    unary: bool,
    /// Measure the bare device in the same run, in pauses of the load: durable aligned appends of the size
    /// that one request has on disk
    #[arg(long)]
    floor: bool,
    /// Where to measure it: a directory on the server's device
    #[arg(long, value_name = "DIR", default_value = ".")]
    floor_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
struct ConsumeArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Records to replay; the topic is filled up to that many first
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// Records in one request while filling
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    batch: u32,
    /// Bytes of records in one response; 0: the server's default
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = config::bytes)]
    response_bytes: u64,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if f64::is_finite(number) && number > 0.0 => Ok(number),
        _ => Err("a number above 0 is expected".to_owned()),
    }
}

/// Runs the command.
pub(super) async fn bench(args: BenchArgs) -> Result<(), Failure> {
    match args.command {
        BenchCommand::Produce(args) => produce::produce(args).await,
        BenchCommand::Consume(args) => consume::consume(args).await,
    }
}

impl CommonArgs {
    fn busy_poll(&self, in_flight: usize) -> bool {
        match self.busy_poll {
            BusyPoll::Auto => in_flight <= BUSY_POLL_IN_FLIGHT_MAX,
            BusyPoll::On => true,
            BusyPoll::Off => false,
        }
    }

    /// Makes the topic if it is missing, and gives the state of its shards.
    async fn topic(&self, cluster: &Cluster) -> Result<Vec<ShardStatus>, Failure> {
        let description = match cluster.describe_topic(&self.topic).await {
            Err(error) if error.code() == Some(Code::NotFound) => {
                let request = CreateTopicRequest {
                    name: self.topic.clone(),
                    shards: self.shards.unwrap_or(0),
                    config: None,
                    replication_factor: self.replication_factor,
                };
                cluster.create_topic(&request).await?;
                cluster.describe_topic(&self.topic).await?
            }
            described => described?,
        };
        let (topic, count) = (&self.topic, description.shards.len());
        match self.shards {
            Some(wanted) if wanted != 0 && wanted as usize != count => {
                Err(format!("topic {topic} exists and has {count} shards, not {wanted}; use another --topic").into())
            }
            Some(_) | None => Ok(description.shards),
        }
    }
}

/// Keeps the runtime from sleeping while it lives.
struct Spinner(Arc<AtomicBool>);

impl Spinner {
    fn start() -> Spinner {
        let spinning = Arc::new(AtomicBool::new(true));
        let go_on = spinning.clone();
        tokio::spawn(async move {
            while go_on.load(Ordering::Relaxed) {
                // Each turn looks at the sockets once.
                crate::env::yield_now().await;
                // The kernel finishes durable writes on the core of the disk's interrupt, which may be this one, and
                // would wait a whole time slice (4 ms) for a thread that never gives way.
                rustix::thread::sched_yield();
            }
        });
        Spinner(spinning)
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
