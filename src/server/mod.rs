//! Assembles a node and runs it: in which order its parts start, and stop.
//!
//! Start: check the configuration, take the data directory, bind the sockets, start the threads,
//! recover (`boot`), and only then accept connections. Health pages answer from the beginning.
//! Stop: leaders move to other nodes, then no new connections, calls in flight finish within the grace, shards close, then the
//! catalog. A crash at any moment is safe; a clean stop only makes the next start quick.

pub mod assemble;
pub mod boot;
pub mod directory;
pub mod identity;
mod life;
pub mod membership;

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    directory::DataDir,
    life::{Birth, Report, Stage},
    membership::Membership,
};
use crate::{
    config::Config,
    env::quic,
    frontend::{Remote, http},
    ids::ReactorNumber,
    limits, observe,
    reactor::{
        descriptors::Descriptors,
        listen,
        node::{Advertised, Node as Shared, Phase},
        thread,
    },
};

/// How often a thread that has ended without a word is looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// How often metrics are tidied, so that their memory stays bounded.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Beyond the grace, the longest that closing all shards may take before the process gives up on a
/// clean end.
const CLOSE_MAX: Duration = Duration::from_secs(60);

/// A running node. Dropping it shuts it down.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    reports: Receiver<Report>,
    down: bool,
    /// `CLOSE_MAX`.
    close_max: Duration,
    /// A stage of the shutdown did not end in time.
    is_late: bool,
    /// Last: the directory is ours until every thread has ended.
    data: Option<DataDir>,
}

impl Node {
    /// Starts a node and waits until it serves. Port 0 asks for any free port. Blocks; may be called
    /// from anywhere, also from within another runtime.
    ///
    /// # Errors
    /// In one sentence: what happened, to what, and what to do. Nothing is left running then.
    pub fn start(mut config: Config) -> Result<Node, String> {
        config.check().map_err(|(key, what)| format!("{key}: {what}"))?;
        // Before the first handle: what is counted through one that was made earlier goes nowhere.
        observe::metrics();
        let data = DataDir::take(&config.data)?;
        config.data.clone_from(&data.path);
        let cores = thread::available_cores();
        let reactors = if config.reactors == 0 { cores.len().min(limits::REACTORS_MAX) } else { config.reactors };
        Descriptors::of_process(reactors).make_room();
        let grpc = listen::bind(config.grpc, reactors)?;
        let http = listen::bind(config.http, 1)?.remove(0);
        let address = |socket: &std::net::TcpListener| {
            socket.local_addr().map_err(|error| format!("a socket has no address: {error}"))
        };
        let addresses = (address(&grpc[0])?, address(&http)?);
        let (peer_port, peers) = bind_peers(config.peer, reactors)?;
        let advertised = advertise(&config, addresses, peer_port);
        let pin = config.pin;
        let shared = Arc::new(Shared::new(config, reactors, addresses, advertised));
        // Four reports of each thread at most: nobody waits to report.
        let (report, reports) = bounded(4 * (reactors + 1));
        let (threads, data) = (Vec::new(), Some(data));
        let mut node = Node { shared, threads, reports, down: false, close_max: CLOSE_MAX, is_late: false, data };
        node.start_ops(http, report.clone())?;
        let membership = Arc::new(establish(&node.shared)?);
        node.shared.set_identity(membership.identity.clone());
        for (number, (listener, peers)) in grpc.into_iter().zip(peers).enumerate() {
            let core = pin.then(|| cores[number % cores.len()]);
            let number = ReactorNumber(u32::try_from(number).expect("at most REACTORS_MAX"));
            let (shared, membership) = (Arc::clone(&node.shared), Arc::clone(&membership));
            let birth = Birth { number, node: shared, listener, peers, membership, report: report.clone() };
            let main = move || life::live(birth);
            let started = thread::start(format!("ringlog-{number}"), core, main);
            node.threads.push(started.map_err(|error| format!("a reactor's thread could not be started: {error}"))?);
        }
        drop(report);
        // One word of each reactor: that it has its disk, and of reactor 0 that all is recovered.
        match node.wait_for(Stage::Up, reactors) {
            Ok(()) => {
                node.shared.enter(Phase::Serving);
                Ok(node)
            }
            Err(error) => {
                // Whatever else goes wrong while the rest is taken down follows from this.
                drop(node.stop());
                Err(error)
            }
        }
    }

    /// Where gRPC is served.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.shared.addresses.0
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.shared.addresses.1
    }

    /// What its threads share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Stops accepting, lets calls in flight finish within `shutdown_grace_ms`, closes the shards
    /// and ends all threads. Blocks.
    ///
    /// # Errors
    /// When something did not end cleanly; the next start recovers it.
    pub fn shutdown(mut self) -> Result<(), String> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), String> {
        if std::mem::replace(&mut self.down, true) {
            return Ok(());
        }
        // The ops thread comes first; a start that failed early has fewer reactors than it would have.
        let reactors = self.threads.len().saturating_sub(1);
        let was_serving = self.shared.phase() == Phase::Serving;
        self.shared.enter(Phase::Leaving);
        let mut result = if was_serving { self.wait_for(Stage::Left, reactors) } else { Ok(()) };
        self.shared.enter(Phase::Draining);
        result = result.and(self.wait_for(Stage::Drained, self.threads.len()));
        self.shared.enter(Phase::Closing);
        result = result.and(self.wait_for(Stage::Closed, reactors));
        let is_late = self.is_late;
        if is_late {
            // The process ends without a thread that has not closed in time, whose logs are recovered by the next start: until then
            // the directory is nobody else's.
            std::mem::forget(self.data.take());
        }
        for thread in self.threads.drain(..).filter(|thread| !is_late || thread.is_finished()) {
            if thread.join().is_err() {
                result = Err("a thread of the node ended in a panic; the next start recovers".to_owned());
            }
        }
        result
    }

    /// Waits for `count` threads to report `stage`.
    fn wait_for(&mut self, stage: Stage, count: usize) -> Result<(), String> {
        let grace = Duration::from_millis(self.shared.config.shutdown_grace_ms);
        let mut waited = Duration::ZERO;
        let mut reached = 0;
        let mut first = Ok(());
        while reached < count {
            match self.reports.recv_timeout(WATCH_INTERVAL) {
                Ok(Report { stage: of, result }) if of == stage => {
                    reached += 1;
                    first = first.and(result);
                    // Recovery is over with the first failure; shutting down goes on.
                    if stage == Stage::Up && first.is_err() {
                        return first;
                    }
                }
                // A thread that was ahead, or behind, of the others in a start that failed.
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    waited += WATCH_INTERVAL;
                    if stage != Stage::Closed && self.threads.iter().any(JoinHandle::is_finished) {
                        return Err("a thread of the node has ended unexpectedly; see its message above".to_owned());
                    }
                    if stage != Stage::Up && waited > grace + self.close_max {
                        self.is_late = true;
                        return Err("the node did not shut down in time; the next start recovers".to_owned());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        first
    }

    fn start_ops(&mut self, http: std::net::TcpListener, report: Sender<Report>) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        let main = move || async move {
            let upkeep = upkeep();
            let grace = Duration::from_millis(shared.config.shutdown_grace_ms);
            let (stop, drain) = (shared.reached(Phase::Draining), shared.reached(Phase::Draining));
            let serve = http::serve(http, Remote::new(Arc::clone(&shared)), stop);
            let cut = async {
                drain.await;
                life::pause(grace).await;
            };
            tokio::select! {
                biased;
                served = serve => {
                    let result = served.map_err(|error| format!("HTTP could not be served: {error}"));
                    report.send(Report { stage: Stage::Drained, result }).ok();
                }
                () = cut => drop(report.send(Report { stage: Stage::Drained, result: Ok(()) })),
                never = upkeep => match never {},
            }
            shared.reached(Phase::Closing).await;
        };
        let started = thread::start("ringlog-ops".to_owned(), None, main);
        self.threads.push(started.map_err(|error| format!("the ops thread could not be started: {error}"))?);
        Ok(())
    }
}

/// The peers' sockets, and the port of the first one.
fn bind_peers(address: SocketAddr, reactors: usize) -> Result<(u16, Vec<UdpSocket>), String> {
    let sockets = quic::bind_reactors(address, reactors).map_err(|error| {
        format!(
            "the peers' address {address} (and one port more for each reactor) cannot be listened on: {error}; choose \
             another with --peer"
        )
    })?;
    let first = sockets.first().ok_or("a node has at least one reactor")?;
    let port = first.local_addr().map_err(|error| format!("a socket has no address: {error}"))?.port();
    Ok((port, sockets))
}

/// Where others reach this node.
fn advertise(config: &Config, (grpc, http): (SocketAddr, SocketAddr), peer_port: u16) -> Advertised {
    let host = |own: IpAddr| match config.advertise.as_str() {
        "" if own.is_unspecified() => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        "" => own.to_string(),
        advertised => advertised.to_owned(),
    };
    let with_port = |own: SocketAddr| {
        let host = host(own.ip());
        if host.contains(':') { format!("[{host}]:{}", own.port()) } else { format!("{host}:{}", own.port()) }
    };
    Advertised { peer_host: host(config.peer.ip()), peer_port, grpc: with_port(grpc), http: with_port(http) }
}

/// Who this node is; on a thread of its own, since whoever starts a node may be in a runtime.
fn establish(node: &Arc<Shared>) -> Result<Membership, String> {
    let shared = Arc::clone(node);
    let work = move || membership::establish(&shared.config, &shared.advertised, shared.reactors.len());
    let thread = std::thread::Builder::new().name("ringlog-join".to_owned()).spawn(work);
    let thread = thread.map_err(|error| format!("a thread could not be started: {error}"))?;
    thread.join().unwrap_or_else(|_| Err("finding out who this node is ended in a panic".to_owned()))
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "node was dropped");
        }
    }
}

/// Keeps the memory of metrics bounded, for ever.
async fn upkeep() -> Infallible {
    loop {
        observe::metrics().run_upkeep();
        life::pause(UPKEEP_INTERVAL).await;
    }
}

/// Runs a node until SIGTERM or SIGINT, then shuts it down cleanly; a second signal ends the process
/// at once, with code 130. Logs go to stderr.
///
/// # Errors
/// In one sentence: what happened, to what, and what to do.
pub fn run(config: Config) -> Result<(), String> {
    let logs = observe::start_logs(config.log_format, &config.log_filter)?;
    observe::end_on_panic(logs);
    raise_open_files();
    // The allocator asks for huge pages: an idle node then holds 91 MiB instead of 57 (two reactors, debug). A
    // kernel that refuses this only costs memory.
    rustix::thread::disable_transparent_huge_pages(true).ok();
    // Until the node serves, a signal just ends the process: a start can be cut off anywhere.
    let result = Node::start(config).and_then(run_until_signal);
    logs.flush();
    result
}

/// A shard has about six files open: the soft limit that most systems begin with, 1,024, is there for
/// programs that still use `select`.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if let Err(error) = raised {
        tracing::warn!(%error, limit = limit.current, "the limit of open files could not be raised");
    }
}

fn run_until_signal(node: Node) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime for signals could not be made: {error}"))?;
    runtime.block_on(async {
        let listen = |kind| signal(kind).map_err(|error| format!("signals cannot be received: {error}"));
        let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let expelled = node.shared.book.wait_expelled();
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = expelled => {
                let by = node.shared.book.expelled().unwrap_or_default();
                tracing::warn!("{}", boot::removed(&node.shared, by));
                "removed from the cluster"
            }
        };
        tracing::info!(reason = name, "shutting down; a second signal ends the process at once");
        let (done, ended) = tokio::sync::oneshot::channel();
        let stop = move || drop(done.send(node.shutdown()));
        let thread = std::thread::Builder::new().name("ringlog-stop".to_owned()).spawn(stop);
        drop(thread.map_err(|error| format!("the node could not be shut down: {error}"))?);
        tokio::select! {
            result = ended => {
                let result = result.unwrap_or_else(|_| Err("the shutdown ended in a panic".to_owned()));
                if result.is_ok() {
                    tracing::info!("shut down cleanly");
                }
                result
            }
            _ = terminate.recv() => std::process::exit(130),
            _ = interrupt.recv() => std::process::exit(130),
        }
    })
}

#[cfg(test)]
mod tests;
