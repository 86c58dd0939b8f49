//! `ringlog dev-cluster`: several nodes on this machine, each a process of its own, with one command. To try things out:
//! kill one and watch.
//!
//! It starts `ringlog serve` as often as wanted, gives the logs of each a prefix, and ends them all when it is ended itself.
//! A node that dies is reported; it is started again only with `--restart`.

#![allow(clippy::disallowed_methods, reason = "a command that starts processes, and is no reactor")]

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, cluster::is_not_there_yet};
use crate::{
    client::{Client, ClientError},
    proto::ringlog::v1::CreateJoinTokenRequest,
};

/// Between two looks at the processes.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a node may take to answer after it was started, and to end after it was told to.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause before a dead node is started again.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// How long the token is valid that the nodes join with.
const TOKEN_VALID_S: u32 = 3_600;

/// Ports of one node: gRPC, HTTP, and room for people who count in tens.
const PORTS_PER_NODE: u16 = 10;

/// Peer ports begin so far above the base port.
const PEER_PORTS: u16 = 200;

/// Peer ports of one node, one per reactor.
const PEER_PORTS_PER_NODE: u16 = 16;

/// `ringlog dev-cluster`.
#[derive(Debug, clap::Args)]
pub(super) struct DevClusterArgs {
    /// Number of nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Directory below which each node has its own; nodes that are there already go on
    #[arg(long, value_name = "DIR", default_value = "ringlog-dev")]
    data: PathBuf,
    /// gRPC port of the first node; HTTP is the one above it, the next node's are 10 higher, peers begin at 200 more
    #[arg(long, value_name = "PORT", default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1..=60_000))]
    base_port: u16,
    /// Reactors of each node
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    reactors: u16,
    /// Start a node again when it has died
    #[arg(long)]
    restart: bool,
}

/// Where a node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    grpc: String,
    http: String,
    peer: String,
    data: PathBuf,
}

impl DevClusterArgs {
    fn place(&self, number: u16) -> Place {
        let at = |port: u16| format!("127.0.0.1:{port}");
        let grpc = self.base_port + PORTS_PER_NODE * number;
        Place {
            grpc: at(grpc),
            http: at(grpc + 1),
            peer: at(self.base_port + PEER_PORTS + PEER_PORTS_PER_NODE * number),
            data: self.data.join(format!("node-{}", number + 1)),
        }
    }
}

/// A node's process, if it runs.
struct Process {
    number: u16,
    place: Place,
    /// What lets it join; not needed any more once it has.
    join: Option<(String, String)>,
    child: Option<Child>,
    /// When to start it again.
    restart_at: Option<Instant>,
}

/// Runs the command.
pub(super) async fn dev_cluster(args: DevClusterArgs) -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(|error| format!("signals cannot be received: {error}"));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let mut processes = Vec::new();
    let outcome = tokio::select! {
        biased;
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        outcome = run(&args, &mut processes) => outcome,
    };
    let ended = tokio::select! {
        biased;
        ended = end_all(&mut processes) => ended,
        // Somebody who asks twice does not want to wait.
        () = async { tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} } } => kill_all(&mut processes),
    };
    outcome.and(ended)
}

async fn run(args: &DevClusterArgs, processes: &mut Vec<Process>) -> Result<(), Failure> {
    let program =
        std::env::current_exe().map_err(|error| format!("this program's own file cannot be found: {error}"))?;
    for number in 0..args.nodes {
        processes.push(Process { number, place: args.place(number), join: None, child: None, restart_at: None });
    }
    // Those that have been there before go first: of the catalog's voters a majority is needed to let anybody join.
    let is_member = |process: &Process| process.place.data.join("identity").exists();
    let first = &processes[0];
    if !is_member(first) && processes.iter().any(is_member) {
        let message = format!(
            "{} has other nodes, but not the first one: move {} back to its place, or use another --data",
            args.data.display(),
            first.place.data.display()
        );
        return Err(message.into());
    }
    for process in processes.iter_mut().filter(|process| process.number == 0 || is_member(process)) {
        process.start(&program, args)?;
    }
    let (first, peer) = (processes[0].place.grpc.clone(), processes[0].place.peer.clone());
    if processes.iter().any(|process| process.child.is_none()) {
        let token = wait_for(processes, &first, async |client| {
            let request = CreateJoinTokenRequest { valid_s: TOKEN_VALID_S, uses: u32::from(args.nodes) };
            Ok(client.create_join_token(&request).await?.token)
        });
        let token = token.await?;
        for number in 0..processes.len() {
            let process = &mut processes[number];
            if process.child.is_some() {
                continue;
            }
            process.join = Some((peer.clone(), token.clone()));
            process.start(&program, args)?;
            // One after the other: then the ids that the cluster gives are the numbers that are printed here.
            let identity = process.place.data.join("identity");
            wait_for(processes, &first, async |_| match identity.exists() {
                true => Ok(()),
                false => {
                    let cause = format!("node {} has not joined", number + 1);
                    Err(ClientError::Unreachable { address: String::new(), cause })
                }
            })
            .await?;
        }
    }
    let nodes = usize::from(args.nodes);
    wait_for(processes, &first, async |client| {
        let alive = client.describe_cluster().await?.nodes.iter().filter(|node| node.alive).count();
        let cause = format!("{alive} of {nodes} nodes are there");
        if alive >= nodes { Ok(()) } else { Err(ClientError::Unreachable { address: String::new(), cause }) }
    })
    .await?;
    introduce(args);
    watch(processes, &program, args).await
}

/// Asks the server until it answers; what the processes do meanwhile is looked at, too.
async fn wait_for<T>(
    processes: &mut [Process],
    address: &str,
    ask: impl AsyncFn(Client) -> Result<T, ClientError>,
) -> Result<T, Failure> {
    let since = Instant::now();
    loop {
        let answer = match Client::connect_within(address, PATIENCE).await {
            Ok(client) => ask(client).await,
            Err(error) => Err(error),
        };
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        for process in processes.iter_mut() {
            if let Some(status) = process.ended()? {
                let number = process.number + 1;
                return Err(format!(
                    "node {number} ended with {status} before the cluster was there; see its log above"
                )
                .into());
            }
        }
        if since.elapsed() > PATIENCE || !is_not_there_yet(&error) {
            return Err(format!("the cluster did not come up: {error}").into());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn introduce(args: &DevClusterArgs) {
    let mut text = format!("\n{} nodes are up:\n", args.nodes);
    let mut servers = Vec::new();
    for number in 0..args.nodes {
        let Place { grpc, http, peer, data } = args.place(number);
        text += &format!("  node {}: gRPC {grpc}, HTTP {http}, peers {peer}, data {}\n", number + 1, data.display());
        servers.push(grpc);
    }
    text += &format!(
        "\nexport RINGLOG_SERVER={}\nringlog cluster status --watch\n\nCtrl-C ends them all.\n\n",
        servers.join(",")
    );
    // Nobody has to read it.
    drop(io::stdout().write_all(text.as_bytes()));
}

/// Reports nodes that die, and starts them again if that is wanted; without end, unless all have died.
async fn watch(processes: &mut [Process], program: &Path, args: &DevClusterArgs) -> Result<(), Failure> {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        for process in processes.iter_mut() {
            if let Some(status) = process.ended()? {
                let after = if args.restart { "; it is started again" } else { "; the others go on without it" };
                say(&format!("node {} ended with {status}{after}", process.number + 1));
                process.restart_at = args.restart.then(|| Instant::now() + RESTART_AFTER);
            }
            if process.restart_at.is_some_and(|at| Instant::now() >= at) {
                process.start(program, args)?;
            }
        }
        if processes.iter().all(|process| process.child.is_none() && process.restart_at.is_none()) {
            return Err(Failure::Message("all nodes have ended".to_owned()));
        }
    }
}

/// Tells all processes to end, and waits for that.
async fn end_all(processes: &mut [Process]) -> Result<(), Failure> {
    for process in processes.iter_mut() {
        process.restart_at = None;
        if let Some(child) = &process.child {
            // One that has just ended by itself does not mind.
            kill_process(Pid::from_child(child), Signal::TERM).ok();
        }
    }
    let since = Instant::now();
    let mut failed = Vec::new();
    while processes.iter().any(|process| process.child.is_some()) {
        for process in processes.iter_mut() {
            if let Some(status) = process.ended()?
                && !status.success()
            {
                failed.push(format!("node {} ended with {status}", process.number + 1));
            }
        }
        if since.elapsed() > PATIENCE {
            kill_all(processes)?;
            return Err(format!("nodes did not end within {} s and were killed", PATIENCE.as_secs()).into());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ").into()) }
}

fn kill_all(processes: &mut [Process]) -> Result<(), Failure> {
    for mut child in processes.iter_mut().filter_map(|process| process.child.take()) {
        // It may have ended already.
        drop(child.kill());
        drop(child.wait());
    }
    Ok(())
}

impl Process {
    fn start(&mut self, program: &Path, args: &DevClusterArgs) -> Result<(), Failure> {
        let Place { grpc, http, peer, data } = &self.place;
        let mut command = Command::new(program);
        command.args(["serve", "--log-format", "text", "--no-pin", "--grpc", grpc, "--http", http, "--peer", peer]);
        command.arg("--data").arg(data).args(["--reactors", &args.reactors.to_string()]);
        if let Some((seed, token)) = &self.join {
            // Not as a flag: everybody on the machine can read those.
            command.env("RINGLOG_JOIN", seed).env("RINGLOG_JOIN_TOKEN", token);
        }
        // A Ctrl-C on the terminal is for us; we tell them ourselves, once.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
        let prefix = format!("node {} | ", self.number + 1);
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|out| Box::new(out) as Box<dyn Read + Send>),
            child.stderr.take().map(|out| Box::new(out) as Box<dyn Read + Send>),
        ];
        for output in outputs.into_iter().flatten() {
            let prefix = prefix.clone();
            // Ends with the process's output.
            std::thread::spawn(move || copy_lines(output, &prefix));
        }
        (self.child, self.restart_at) = (Some(child), None);
        Ok(())
    }

    /// How the process ended, if it did since the last look.
    fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status =
            child.try_wait().map_err(|error| format!("node {} cannot be waited for: {error}", self.number + 1))?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Copies lines to stderr behind a prefix; whole lines, so that those of several nodes do not mix.
fn copy_lines(output: Box<dyn Read + Send>, prefix: &str) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.extend_from_slice(prefix.as_bytes());
        match reader.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        // Without a reader of ours the nodes still have one.
        drop(io::stderr().write_all(&line));
    }
}

fn say(text: &str) {
    drop(writeln!(io::stderr(), "ringlog: {text}"));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: DevClusterArgs,
    }

    /// No two nodes share a port, with as many reactors as there may be.
    #[test]
    fn ports_do_not_collide() {
        let line = ["dev-cluster", "--nodes", "9", "--reactors", "16", "--base-port", "60000"];
        let args = Line::try_parse_from(line).unwrap().args;
        let (mut tcp, mut udp) = (BTreeSet::new(), BTreeSet::new());
        let port = |address: &str| address.rsplit(':').next().unwrap().parse::<u16>().unwrap();
        for place in (0..args.nodes).map(|number| args.place(number)) {
            assert!(tcp.insert(port(&place.grpc)) && tcp.insert(port(&place.http)), "{place:?}");
            assert!((0..args.reactors).all(|reactor| udp.insert(port(&place.peer) + reactor)), "{place:?}");
        }
        assert_eq!(args.place(0).grpc, "127.0.0.1:60000");
    }
}
