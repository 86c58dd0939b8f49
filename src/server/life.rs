//! A reactor's life, from its thread's first step to its last.

use std::{
    future::Future,
    net::{TcpListener, UdpSocket},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use crossbeam::channel::Sender;
use prost::Message;

use crate::{
    config::{Choice, Config},
    env::{
        self, Env,
        disk::{DiskOptions, RealDisk, StorageReport},
        quic::{QuicNet, QuicOptions},
        real::RealEnv,
    },
    frontend::{Frontend, grpc},
    ids::{NodeId, ReactorNumber},
    limits,
    proto::ringlog::state::v1::{ControlReply, ControlRequest, PeerRefusal, control_reply, control_request},
    reactor::{
        Reactor,
        control::Control,
        descriptors::Descriptors,
        listen,
        node::{Node, Phase},
        seats::Seats,
    },
    server::{
        assemble,
        membership::{self, Membership},
    },
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
    /// It has handed its leaderships to other nodes.
    Left,
    /// Its connections have finished, or their grace is over.
    Drained,
    /// Its shards are closed.
    Closed,
}

/// What a reactor's thread begins with.
#[derive(Debug)]
pub struct Birth {
    /// Its number.
    pub number: ReactorNumber,
    /// What it shares with the others.
    pub node: Arc<Node>,
    /// Where its gRPC clients come in.
    pub listener: TcpListener,
    /// Where its peers come in.
    pub peers: UdpSocket,
    /// Who the node is.
    pub membership: Arc<Membership>,
    /// Where it reports.
    pub report: Sender<Report>,
}

/// Runs a reactor until the node closes, and reports on the way.
pub async fn live(birth: Birth) {
    let Birth { number, node, listener, peers, membership, report } = birth;
    // A report to nobody: whoever started us has given up.
    let tell = |stage, result| drop(report.send(Report { stage, result }));
    let (reactor, storage) = match open(number, &node, peers, &membership) {
        Ok(opened) => opened,
        Err(error) => {
            // Nobody will read it: whoever waits for this reactor must not wait for ever.
            node.reactors[number.0 as usize].mailbox.close();
            tell(Stage::Up, Err(error));
            for stage in [Stage::Left, Stage::Drained, Stage::Closed] {
                tell(stage, Ok(()));
            }
            return;
        }
    };
    env::spawn::<RealEnv>(Rc::clone(&reactor).serve_mailbox());
    let mut control = None;
    if number == ReactorNumber(0) {
        log_storage(&storage);
        let started = RealEnv::monotonic_us();
        match recover(&reactor, &membership).await {
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
    if node.phase() == Phase::Serving {
        assemble::look_after(&reactor);
        env::spawn::<RealEnv>(leave(Rc::clone(&reactor), control.clone(), report.clone()));
    } else {
        tell(Stage::Left, Ok(()));
    }
    let accepted = if node.phase() < Phase::Draining { serve(&reactor, listener).await } else { Ok(()) };
    drain(&node, number).await;
    tell(Stage::Drained, accepted);
    node.reached(Phase::Closing).await;
    tell(Stage::Closed, assemble::close(&reactor, control).await);
}

/// The reactor with its disk and its connections to other nodes.
fn open(
    number: ReactorNumber,
    node: &Arc<Node>,
    socket: UdpSocket,
    membership: &Membership,
) -> Result<(Rc<Reactor<RealEnv>>, StorageReport), String> {
    let (disk, storage) = open_disk(&node.config)?;
    let book = Arc::clone(&node.book);
    let members =
        Arc::new(
            move |id: NodeId| {
                if book.is_removed(id) { Err("it was removed from the cluster".to_owned()) } else { Ok(()) }
            },
        );
    let net = QuicNet::new(socket, Arc::clone(&membership.credentials), members, QuicOptions::default()).map_err(
        |error| format!("connections between nodes cannot be made: {error}; choose another address with --peer"),
    )?;
    let reactor = assemble::reactor(membership.identity.node, number, node, disk, net.clone());
    if number == ReactorNumber(0) {
        env::spawn::<RealEnv>(let_in(Rc::clone(&reactor), net));
    }
    Ok((reactor, storage))
}

/// Recovers the node, on reactor 0.
async fn recover(reactor: &Rc<Reactor<RealEnv>>, membership: &Membership) -> Result<Control<RealEnv>, String> {
    let trust = membership::trust(&reactor.node().config, membership)?;
    assemble::recover(reactor, &membership.members, trust).await
}

/// Answers nodes that want to join, for ever.
async fn let_in(reactor: Rc<Reactor<RealEnv>>, net: QuicNet) {
    while let Some(asked) = net.accept_join().await {
        let reactor = Rc::clone(&reactor);
        env::spawn::<RealEnv>(async move {
            let reply = answer_join(&reactor, asked.request()).await;
            if let Err(error) = asked.reply(reply).await {
                tracing::debug!(%error, "a node that wanted to join has gone");
            }
        });
    }
}

/// Answers the bytes of a request to join: always a `ControlReply`.
async fn answer_join(reactor: &Rc<Reactor<RealEnv>>, request: &Bytes) -> Bytes {
    let decoded = ControlRequest::decode(request.clone()).ok().and_then(|request| request.request);
    let reply = match (decoded, reactor.control()) {
        (Some(request @ control_request::Request::Join(_)), Some(control)) => control.answer(None, request).await,
        (Some(_), None) => refuse_join("the node is still starting", true),
        (_, _) => refuse_join("this is no request to join: both nodes should run the same version of ringlog", false),
    };
    reply.encode_to_vec().into()
}

fn refuse_join(message: &str, retry: bool) -> ControlReply {
    let refused = PeerRefusal {
        code: 14,
        reason: "NOT_JOINED".to_owned(),
        message: message.to_owned(),
        definite: true,
        retry_after_ms: if retry { limits::RETRY_AFTER.as_millis() as u64 } else { 0 },
        ..PeerRefusal::default()
    };
    ControlReply { reply: Some(control_reply::Reply::Refused(refused)) }
}

/// Hands the leaderships of a reactor to other nodes when this one begins to leave.
async fn leave(reactor: Rc<Reactor<RealEnv>>, control: Option<Control<RealEnv>>, report: Sender<Report>) {
    reactor.node().reached(Phase::Leaving).await;
    assemble::hand_over(&reactor, control.as_ref()).await;
    drop(report.send(Report { stage: Stage::Left, result: Ok(()) }));
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
    let (disk, report) = RealDisk::open(&config.data, options).map_err(|error| {
        format!("the data directory {} could not be used: {error}; choose another with --data", config.data.display())
    })?;
    disk.keep_reserve();
    Ok((disk, report))
}

fn log_storage(storage: &StorageReport) {
    tracing::info!("storage: {storage}");
    for note in &storage.notes {
        tracing::warn!("storage: {note}");
    }
}

fn log_start(node: &Node, recovered: Duration) {
    let (grpc, http) = node.addresses;
    let peer = format!("{}:{}", node.advertised.peer_host, node.advertised.peer_port);
    let (config, topics, shards) = (&node.config, node.topics.snapshot().len(), node.shard_count());
    let faults = node.fault_count();
    let identity = node.identity().expect("it was just recovered");
    let descriptors = Descriptors::of_process(node.reactors.len());
    tracing::info!(
        limit = descriptors.limit(),
        kept = descriptors.kept(shards),
        grpc_connections_max = descriptors.grpc_max(shards),
        http_connections_max = descriptors.http_max(shards),
        "open files"
    );
    tracing::info!(
        %grpc,
        %http,
        %peer,
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
    let connections = &node.reactors[reactor.number().0 as usize].connections;
    let seats = Seats::new(Arc::clone(connections));
    let frontend = Frontend::new(Rc::clone(reactor));
    let connection = |socket, seat| grpc::serve_connection(socket, frontend.clone(), seat, grpc::RESET_MEMORY);
    let stop = node.reached(Phase::Draining);
    let descriptors = Descriptors::of_process(node.reactors.len());
    let max_of_all = || descriptors.grpc_max(node.replica_count());
    let max = || {
        let all: usize = node.reactors.iter().map(|reactor| reactor.connections.open()).sum();
        let others = all.saturating_sub(connections.open());
        max_of_all().saturating_sub(others).min(limits::CONNECTIONS_MAX)
    };
    let staying = || node.reactors.iter().map(|reactor| reactor.connections.staying()).sum();
    let accepting = listen::accept(listener, Rc::clone(&seats), max, stop, connection);
    let accepted = tokio::select! {
        biased;
        accepted = accepting => accepted,
        () = listen::make_way(&seats, staying, max_of_all, node.grows()) => Ok(()),
    };
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
