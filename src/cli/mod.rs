//! The binary's commands. Each is a thin layer: it reads flags, calls the client or the server, and prints.
//!
//! Results go to stdout, everything else (progress, summaries, errors) to stderr. An error is one sentence and
//! exit code 1; wrong usage is exit code 2 (as is, for `check-history`, a file without a verdict). A reader of stdout that
//! goes away ends a command quietly; but `produce` goes on without it, and what `cluster health`, `verify`,
//! `check-history` and `repair` have found is their exit code all the same.

mod bench;
mod ca;
mod check_history;
mod cluster;
mod consume;
mod dev_cluster;
mod input;
mod output;
mod produce;
mod repair;
mod serve;
mod sim;
mod start;
mod topic;
mod verify;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::client::{ClientError, Cluster, ClusterOptions};

/// A distributed commit log: the ack you can believe, from any plain gRPC stub.
#[derive(Debug, Parser)]
#[command(name = "ringlog", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or SIGINT
    Serve(Box<serve::ServeArgs>),
    /// Write the lines of stdin (or of a file) as records
    Produce(produce::ProduceArgs),
    /// Read records to stdout
    Consume(consume::ConsumeArgs),
    /// Create, list, describe, delete and trim topics
    Topic(topic::TopicArgs),
    /// Look at the cluster, let nodes join it, move replicas and leaders
    Cluster(cluster::ClusterArgs),
    /// Run a cluster of several nodes on this machine, to try things out
    DevCluster(dev_cluster::DevClusterArgs),
    /// Check every checksum and chain of a data directory, offline
    Verify(verify::VerifyArgs),
    /// Say what is damaged of a shard's log, offline, and give up what its only copy has lost
    Repair(repair::RepairArgs),
    /// Judge a history of what clients did and were told: is every promise kept
    CheckHistory(check_history::CheckHistoryArgs),
    /// Simulate clusters in virtual time, break them, and judge what their clients saw
    Sim(sim::SimArgs),
    /// Generate load and measure it
    Bench(bench::BenchArgs),
    /// Make the certificates of a cluster's nodes
    Ca(ca::CaArgs),
    /// Look at the configuration
    Config(serve::ConfigArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OutputForm {
    /// For people
    #[value(alias = "text")]
    Table,
    /// For programs
    Json,
}

/// Where the servers are.
#[derive(Clone, Debug, clap::Args)]
struct ServerArgs {
    /// Servers to begin with, host:port, with commas between them; the first that answers tells of the others
    #[arg(
        long,
        global = true,
        env = "RINGLOG_SERVER",
        default_value = "127.0.0.1:7400",
        value_name = "ADDR,...",
        value_delimiter = ','
    )]
    server: Vec<String>,
    /// How long a call may take, such as 500ms or 30s
    #[arg(long, global = true, env = "RINGLOG_TIMEOUT", default_value = "30s", value_name = "TIME", value_parser = timeout)]
    timeout: Duration,
}

impl ServerArgs {
    async fn cluster(&self) -> Result<Cluster, Failure> {
        let options = ClusterOptions { timeout: self.timeout, ..ClusterOptions::default() };
        Ok(Cluster::connect_with(&self.server, options).await?)
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    match crate::config::milliseconds(text)? {
        0 => Err("it must be longer than nothing".to_owned()),
        milliseconds => Ok(Duration::from_millis(milliseconds)),
    }
}

/// Why a command ends early.
#[derive(Debug)]
enum Failure {
    /// Say this, exit with 1.
    Message(String),
    /// Everything is said already; exit with 1.
    Said,
    /// What is to be judged cannot be read, so that there is no verdict: say this, exit with 2.
    Unreadable(String),
    /// Nobody reads our output any more; exit with 0.
    OutputClosed,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::Message(error.to_string())
    }
}

impl From<String> for Failure {
    fn from(message: String) -> Failure {
        Failure::Message(message)
    }
}

/// Errors of writing to stdout: the only input and output that commands do not name themselves.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::OutputClosed;
        }
        Failure::Message(format!("cannot write to the standard output: {error}"))
    }
}

/// The exit code is the verdict, also for who does not read why.
fn verdict(is_well: bool, printed: Result<(), Failure>) -> Result<(), Failure> {
    match printed {
        Ok(()) | Err(Failure::OutputClosed) if !is_well => Err(Failure::Said),
        printed => printed,
    }
}

/// Entry point of the binary.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to complain about help text.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match run(cli.command) {
        Ok(()) | Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(Failure::Said) => ExitCode::FAILURE,
        Err(Failure::Message(message)) => {
            drop(writeln!(io::stderr(), "ringlog: {message}"));
            ExitCode::FAILURE
        }
        Err(Failure::Unreadable(message)) => {
            drop(writeln!(io::stderr(), "ringlog: {message}"));
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::serve(&args),
        Command::Produce(args) => block_on(produce::produce(args)),
        Command::Consume(args) => block_on(consume::consume(args)),
        Command::Topic(args) => block_on(topic::topic(args)),
        Command::Cluster(args) => block_on(cluster::cluster(args)),
        Command::DevCluster(args) => block_on(dev_cluster::dev_cluster(args)),
        Command::Verify(args) => block_on(verify::verify(args)),
        Command::Repair(args) => block_on(repair::repair(args)),
        Command::CheckHistory(args) => check_history::check_history(&args),
        Command::Sim(args) => sim::sim(&args),
        Command::Bench(args) => block_on(bench::bench(args)),
        Command::Ca(args) => ca::ca(args),
        Command::Config(args) => serve::config(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ringlog", &mut script);
            io::stdout().write_all(&script)?;
            Ok(())
        }
    }
}

/// Client commands run on one thread: the server needs the other cores more.
fn block_on(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start a runtime: {error}"))?;
    runtime.block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not well is not well for a reader who has gone away, too.
    #[test]
    fn verdicts() {
        assert!(matches!(verdict(true, Ok(())), Ok(())));
        assert!(matches!(verdict(true, Err(Failure::OutputClosed)), Err(Failure::OutputClosed)));
        for printed in [Ok(()), Err(Failure::OutputClosed)] {
            assert!(matches!(verdict(false, printed), Err(Failure::Said)));
        }
        let full = || Err(Failure::Message("the disk is full".to_owned()));
        assert!([true, false].iter().all(|is_well| matches!(verdict(*is_well, full()), Err(Failure::Message(_)))));
    }

    /// The definition of the command line itself is sound.
    #[test]
    fn definition() {
        Cli::command().debug_assert();
    }

    /// The command lines that the README and the issue promise are understood.
    #[test]
    fn promised_forms() {
        for line in [
            "ringlog serve",
            "ringlog serve --data d --grpc 127.0.0.1:0 --http 127.0.0.1:0 --reactors 2 --config f --insecure \
             --auto-create --segment-bytes 8MiB --retention-bytes 1GiB --retention-age-ms 7d --no-io-uring --no-direct-io",
            "ringlog serve --auto-create=false",
            "ringlog serve --peer 127.0.0.1:0 --advertise h --join a:7500,b:7500 --join-token t --peer-ca c --peer-cert c \
             --peer-key k --replication-factor 3",
            "ringlog produce --topic t",
            "ringlog produce --topic t --shard 1 --key-separator : --acks --batch 10 --linger 5ms file",
            "ringlog produce --delimited -o json",
            "ringlog consume --topic t --from earliest",
            "ringlog consume --topic t --shard 0 --from -5m --follow -n 3 --format json",
            "ringlog topic create t --shards 3 --replication-factor 3 --retention-bytes 1GiB --retention-age 7d",
            "ringlog topic list -o json --server a:1 --timeout 5s",
            "ringlog topic describe t --server a:1,b:2",
            "ringlog cluster status",
            "ringlog cluster status --watch --json",
            "ringlog cluster status --watch=5s -o json",
            "ringlog cluster token --valid 1h --uses 2",
            "ringlog cluster drain 2 --wait",
            "ringlog cluster undrain 2",
            "ringlog cluster remove 2 --dead",
            "ringlog cluster rebalance --dry-run",
            "ringlog cluster transfer t --shard 0 --to 3",
            "ringlog dev-cluster",
            "ringlog dev-cluster --nodes 5 --data d --base-port 9000 --reactors 2 --restart",
            "ringlog topic delete t",
            "ringlog topic trim t --shard 0 --before 10",
            "ringlog verify d -o json",
            "ringlog check-history h.jsonl",
            "ringlog check-history - --json",
            "ringlog sim --seeds 1000 --from 5 --scenario mixed --jobs 2 --seconds 60 --coverage",
            "ringlog sim --seed 7 --keep 0,2 --twice --history h.jsonl --trace 100 --log info",
            "ringlog sim --seed 7 --shrink",
            "ringlog ca init --out d --cluster-id 00112233445566778899aabbccddeeff --force",
            "ringlog ca issue --node 1 --ca d --out e --days 30 --force",
            "ringlog config check --config f",
            "ringlog completions bash",
            "ringlog bench produce --topic t --record-bytes 1024 --batch 100 --in-flight 16 --connections 1 --rate 5 \
             --seconds 10 --warmup 2 --records 9 --shards 1 --floor --unary -o json",
            "ringlog bench consume --records 1048576 --connections 2 -o json",
            "ringlog bench produce --direct",
            "ringlog bench produce --any --server a:1,b:2",
        ] {
            Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    /// Wrong usage is refused before anything is done.
    #[test]
    fn refused_forms() {
        for line in [
            "ringlog",
            "ringlog serve --dat x",
            "ringlog consume --from yesterday-ish",
            "ringlog sim --seed 7 --coverage",
            "ringlog produce --timeout 0",
            "ringlog produce --batch 0",
            "ringlog topic trim t --shard 0",
            "ringlog ca issue",
            "ringlog check-history",
            "ringlog sim --scenario unheard-of",
            "ringlog sim --keep 1",
            "ringlog bench produce --record-bytes lots",
            "ringlog bench produce --any --direct",
            "ringlog cluster drain",
            "ringlog dev-cluster --nodes 0",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }
}
