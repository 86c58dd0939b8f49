//! A reactor's life, from its thread's first step to its last.

use std::{future::Future, net::TcpListener, rc::Rc, sync::Arc, time::Duration};

use crossbeam::channel::Sender;

use crate::{
    config::{Choice, Config},
    env::{
        self, Env,
        disk::{DiskOptions, RealDisk, StorageReport},
        real::RealEnv,
    },
    frontend::{Frontend, grpc},
    ids::ReactorNumber,
    limits,
    reactor::{
        Reactor,
        control::Control,
        listen,
        node::{Node, Phase},
    },
    server::boot::boot,
};

/// How often connections that finish are counted.
const DRAIN_INTERVAL: Duration = Duration::from_millis(10);

/// What a thread tells the one that started it.
#[derive(Debug)]
pub struct Report {
    /// How far it is.
    pub stage: Stage,
    /// How it went.
    pub result: Result<(), String>,
}

/// How far a thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The reactor has its disk; reactor 0 has recovered the node.
    Up,
    /// Its connections have finished, or their grace is over.
    Drained,
    /// Its shards are closed.
    Closed,
}

/// Runs reactor `number` until the node closes, and reports on the way.
pub async fn live(number: ReactorNumber, node: Arc<Node>, listener: TcpListener, report: Sender<Report>) {
    // A report to nobody: whoever started us has given up.
    let tell = |stage, result| drop(report.send(Report { stage, result }));
    let (reactor, storage) = match open_disk(&node.config) {
        Ok((disk, storage)) => (Reactor::<RealEnv>::new(number, Arc::clone(&node), disk), storage),
        Err(error) => {
            // Nobody will read it: whoever waits for this reactor must not wait for ever.
            node.reactors[number.0 as usize].mailbox.close();
            tell(Stage::Up, Err(error));
            tell(Stage::Drained, Ok(()));
            tell(Stage::Closed, Ok(()));
            return;
        }
    };
    env::spawn::<RealEnv>(Rc::clone(&reactor).serve_mailbox());
    let mut control = None;
    if number == ReactorNumber(0) {
        log_storage(&storage);
        let started = RealEnv::monotonic_us();
        match boot(Rc::clone(&reactor)).await {
            Ok(opened) => {
                log_start(&node, Duration::from_micros(RealEnv::monotonic_us() - started));
                control = Some(opened);
                tell(Stage::Up, Ok(()));
            }
            Err(error) => tell(Stage::Up, Err(error)),
        }
    } else {
        tell(Stage::Up, Ok(()));
    }
    node.reached(Phase::Serving).await;
    let accepted = if node.phase() == Phase::Serving { serve(&reactor, listener).await } else { Ok(()) };
    drain(&node, number).await;
    tell(Stage::Drained, accepted);
    node.reached(Phase::Closing).await;
    tell(Stage::Closed, close(&reactor, control).await);
}

/// Suspends the ops thread's or a reactor's task.
pub fn pause(duration: Duration) -> impl Future<Output = ()> {
    env::sleep::<RealEnv>(duration)
}

fn open_disk(config: &Config) -> Result<(RealDisk, StorageReport), String> {
    let options = DiskOptions {
        io_uring: config.io_uring == Choice::Auto,
        direct_io: config.direct_io == Choice::Auto,
        durable_form: config.durable_form,
    };
    RealDisk::open(&config.data, options).map_err(|error| {
        format!("the data directory {} could not be used: {error}; choose another with --data", config.data.display())
    })
}

fn log_storage(storage: &StorageReport) {
    tracing::info!("storage: {storage}");
    for note in &storage.notes {
        tracing::warn!("storage: {note}");
    }
}

fn log_start(node: &Node, recovered: Duration) {
    let (grpc, http) = node.addresses;
    let (config, topics, shards) = (&node.config, node.topics.snapshot().len(), node.shard_count());
    let faults = node.fault_count();
    let identity = node.identity().expect("it was just recovered");
    tracing::info!(
        %grpc,
        %http,
        data = %config.data.display(),
        reactors = node.reactors.len(),
        topics,
        shards,
        faults,
        cluster_id = %identity.cluster_id,
        node = identity.node.0,
        recovered_ms = recovered.as_millis() as u64,
        "ringlog serves"
    );
}

/// Accepts connections until the node drains.
async fn serve(reactor: &Rc<Reactor<RealEnv>>, listener: TcpListener) -> Result<(), String> {
    let node = reactor.node();
    let connections = Arc::clone(&node.reactors[reactor.number().0 as usize].connections);
    let frontend = Frontend::new(Rc::clone(reactor));
    let connection = |socket| grpc::serve_connection(socket, frontend.clone());
    let stop = node.reached(Phase::Draining);
    let accepted = listen::accept(listener, connections, limits::CONNECTIONS_MAX, stop, connection).await;
    accepted.map_err(|error| format!("connections could not be accepted: {error}"))
}

/// Waits until the connections of this reactor have finished, but not longer than the grace.
async fn drain(node: &Node, number: ReactorNumber) {
    let grace_us = node.config.shutdown_grace_ms * 1000;
    let connections = &node.reactors[number.0 as usize].connections;
    let started = RealEnv::monotonic_us();
    while connections.open() > 0 {
        if RealEnv::monotonic_us() - started > grace_us {
            tracing::warn!(reactor = number.0, open = connections.open(), "connections are cut: the grace is over");
            return;
        }
        pause(DRAIN_INTERVAL).await;
    }
}

/// Closes the shards of this reactor; on reactor 0 then the catalog.
async fn close(reactor: &Rc<Reactor<RealEnv>>, control: Option<Control<RealEnv>>) -> Result<(), String> {
    reactor.close().await;
    match control {
        Some(control) => control.close().await.map_err(|error| format!("the catalog did not close cleanly: {error}")),
        None => Ok(()),
    }
}
