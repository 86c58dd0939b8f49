//! One node's process in a simulated world: the same parts as `server::life` puts together, without threads and sockets. Its
//! front doors are called directly, as the code behind a gRPC connection calls them, or through one (`accept`).

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use crate::{
    budget::Use,
    config::Config,
    env::{
        self, Disk, Env,
        channel::{self, OneshotReceiver, OneshotSender},
    },
    frontend::{Frontend, grpc},
    ids::{NodeId, ReactorNumber, ShardUid},
    limits,
    proto::ringlog::state::v1::ClusterNode,
    reactor::{
        Reactor, ReactorError,
        control::{
            Control,
            join::{NewToken, Signed, Trust},
        },
        node::{Advertised, Identity, Node, Phase},
        seats::Seats,
    },
    server::assemble,
    sim::{SimDisk, SimEnv, World, cluster::handed, net::SimNetwork, socket::SimSocket},
    tls::JoinToken,
};

/// UDP port of reactor 0.
const PEER_PORT: u16 = 7_500;

/// Where a node keeps everything.
pub const DATA: &str = "/data";

/// Recent entries in memory: little, so that followers and consumers read from the disk, too.
const TAIL_BYTES: usize = 256 << 10;

/// What a node keeps for what frees space, unless its disk does already: less than a real one, in the proportion of its disks.
const RESERVE_BYTES: u64 = 1 << 20;

/// How often connections that finish are looked at.
const DRAIN_LOOK: Duration = Duration::from_millis(10);

/// What a process begins with.
#[derive(Clone, Debug)]
pub(super) struct Birth {
    pub(super) identity: Identity,
    pub(super) reactors: usize,
    pub(super) memory_bytes: usize,
    /// As the node remembers them.
    pub(super) members: Vec<ClusterNode>,
}

/// A process that is starting or running. The harness holds it, beside the node's own tasks.
pub struct Process {
    /// What its reactors share.
    pub node: Arc<Node>,
    /// All reactors, by number.
    pub reactors: Vec<Rc<Reactor<SimEnv>>>,
    /// Tells processes of one node apart: a client's connections end with the process.
    pub number: u64,
    frontends: Vec<Frontend<SimEnv>>,
    control: RefCell<Option<Control<SimEnv>>>,
    stopping: Cell<bool>,
}

impl Process {
    /// Makes the process, as a task of its node; it recovers and serves from then on, or says why it does not start.
    pub(super) fn start(
        number: u64,
        birth: Birth,
        disk: &SimDisk,
        network: &SimNetwork,
    ) -> (Rc<Process>, OneshotReceiver<String>) {
        let Birth { identity, reactors, memory_bytes, members } = birth;
        let me = identity.node;
        let anywhere: SocketAddr = ([127, 0, 0, 1], 0).into();
        let config = Config {
            data: DATA.into(),
            auto_create: Some(false),
            segment_bytes: crate::limits::SEGMENT_BYTES_MIN,
            tail_bytes: TAIL_BYTES,
            memory_bytes,
            ..Config::default()
        };
        let ClusterNode { peer_host: host, grpc_address: grpc, http_address: http, .. } =
            entry(identity.incarnation, reactors);
        let advertised = Advertised { peer_host: host.clone(), peer_port: PEER_PORT, grpc, http };
        let node = Arc::new(Node::new(config, reactors, (anywhere, anywhere), advertised));
        node.set_identity(identity);
        let numbers = (0..reactors).map(|number| ReactorNumber(u32::try_from(number).expect("few reactors")));
        if disk.reserve().is_none() {
            disk.keep_reserve(RESERVE_BYTES);
        }
        let reactors: Vec<_> = numbers
            .map(|number| {
                let net = network.endpoint(me, &host, PEER_PORT + number.0 as u16);
                assemble::reactor(me, number, &node, disk.clone(), net)
            })
            .collect();
        let frontends = reactors.iter().map(|reactor| Frontend::new(Rc::clone(reactor))).collect();
        let process = Rc::new(Process {
            node,
            reactors,
            number,
            frontends,
            control: RefCell::default(),
            stopping: Cell::new(false),
        });
        for reactor in &process.reactors {
            env::spawn::<SimEnv>(Rc::clone(reactor).serve_mailbox());
        }
        let (failed, failure) = channel::oneshot();
        env::spawn::<SimEnv>(Rc::clone(&process).live(members, failed));
        (process, failure)
    }

    async fn live(self: Rc<Self>, members: Vec<ClusterNode>, failed: OneshotSender<String>) {
        match assemble::recover(&self.reactors[0], &members, trust()).await {
            Ok(control) => {
                *self.control.borrow_mut() = Some(control);
                self.node.enter(Phase::Serving);
                self.reactors.iter().for_each(assemble::look_after);
            }
            Err(error) => {
                World::current().note(&format!("the node does not start: {error}"));
                drop(failed.send(error));
            }
        }
    }

    /// Who it is.
    pub fn me(&self) -> NodeId {
        self.node.identity().expect("it is set at birth").node
    }

    /// Whether clients are let in.
    pub fn serves(&self) -> bool {
        self.node.phase() == Phase::Serving
    }

    /// The front doors of the reactor that a connection happens to come to.
    pub fn frontend(&self, turn: u64) -> Frontend<SimEnv> {
        self.frontends[(turn % self.frontends.len() as u64) as usize].clone()
    }

    /// Serves a client's connection by the reactor that it happens to come to, as `reactor::listen` has a node do. One
    /// that comes when none is accepted is closed. Returns the count of bytes of records that are read for it (`handed`).
    pub fn accept(&self, turn: u64, socket: SimSocket) -> Rc<Cell<u64>> {
        let handed = Rc::default();
        let number = (turn % self.frontends.len() as u64) as usize;
        let accepts = matches!(self.node.phase(), Phase::Serving | Phase::Leaving);
        let entered = self.node.reactors[number].connections.enter(limits::CONNECTIONS_MAX);
        let Some(counted) = entered.filter(|_| accepts) else { return handed };
        // A simulated process has descriptors for all.
        let seat = Rc::<Seats>::default().take(World::current().now_us());
        let connection = grpc::serve_connection(socket, self.frontends[number].clone(), seat, Duration::MAX);
        let connection = handed::counted(Rc::clone(&handed), connection);
        let served = World::current().spawn_on(self.me(), async move {
            connection.await;
            drop(counted);
        });
        drop(served);
        handed
    }

    /// Waits until all connections have finished, but not longer than the grace.
    async fn drain(&self) {
        let grace_us = self.node.config.shutdown_grace_ms * 1_000;
        let began_us = World::current().now_us();
        let open = || self.node.reactors.iter().any(|reactor| reactor.connections.open() > 0);
        while open() && World::current().now_us() - began_us < grace_us {
            env::sleep::<SimEnv>(DRAIN_LOOK).await;
        }
    }

    /// Its part in the catalog, once it has recovered.
    pub fn control(&self) -> Option<Control<SimEnv>> {
        self.control.borrow().clone()
    }

    /// What of its memory is used in a way that no node may: more than there is, at any time so far.
    pub fn memory_exceeded(&self) -> Option<String> {
        self.node.reactors.iter().map(|reactor| &reactor.memory).enumerate().find_map(|(number, memory)| {
            let (peak, tail, answers) = (memory.peak(), memory.tail(), memory.answers());
            let backlog = memory.backlog_peak();
            let exceeded = peak > memory.bytes_max()
                || tail > TAIL_BYTES
                || answers > limits::ANSWER_BYTES_LIMIT
                || backlog > limits::PEER_BACKLOG_BYTES_MAX;
            let text = || {
                format!(
                    "reactor {number} had {peak} bytes in use, {tail} of recent entries, {answers} of answers, and {backlog} \
                     of entries that waited for room"
                )
            };
            exceeded.then(text)
        })
    }

    /// What it still keeps that is on its way, in bytes, and how many connections of clients.
    pub fn memory_used(&self) -> Vec<(&'static str, usize)> {
        let memories = self.node.reactors.iter().map(|reactor| &reactor.memory);
        let uses = memories.flat_map(|memory| Use::ALL.map(|usage| (usage.name(), memory.used_for(usage))));
        let mailboxes = self.node.reactors.iter().map(|reactor| ("mailbox", reactor.mailbox.bytes()));
        let answers = self.node.reactors.iter().map(|reactor| ("answers", reactor.memory.answers()));
        let backlogs = self.node.reactors.iter().map(|reactor| ("backlog", reactor.memory.backlog()));
        let connections = self.node.reactors.iter().map(|reactor| ("connections", reactor.connections.open()));
        let rest = mailboxes.chain(answers).chain(backlogs).chain(connections);
        uses.chain(rest).filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// The replica of a shard here, if it serves.
    pub fn shard(&self, uid: ShardUid) -> Option<crate::shard::Shard<SimEnv>> {
        self.reactors.iter().find_map(|reactor| reactor.shard(uid).ok())
    }

    /// Whether it has a replica of a shard that is not open, or has panicked.
    pub fn has_stopped_replica(&self, uid: ShardUid) -> bool {
        self.reactors.iter().any(|reactor| match reactor.shard(uid) {
            Ok(shard) => shard.has_panicked(),
            Err(error) => !matches!(error, ReactorError::Gone),
        })
    }

    /// As after SIGTERM: leaders go to other nodes, then everything is closed. Resolves when the process would end.
    pub(super) async fn stop(self: Rc<Self>) {
        if self.stopping.replace(true) {
            return;
        }
        self.node.enter(Phase::Leaving);
        let control = self.control();
        for (number, reactor) in self.reactors.iter().enumerate() {
            assemble::hand_over(reactor, control.as_ref().filter(|_| number == 0)).await;
        }
        self.node.enter(Phase::Draining);
        self.drain().await;
        self.node.enter(Phase::Closing);
        for (number, reactor) in self.reactors.iter().enumerate().rev() {
            let control = if number == 0 { control.clone() } else { None };
            if let Err(error) = assemble::close(reactor, control).await {
                World::current().note(&format!("the node did not close cleanly: {error}"));
            }
        }
    }
}

/// A machine that is to become a node: where it is reached, by what it will be told apart.
pub(super) fn entry(incarnation: u64, reactors: usize) -> ClusterNode {
    let host = format!("h{incarnation:016x}");
    ClusterNode {
        peer_port: u32::from(PEER_PORT),
        reactors: u32::try_from(reactors).expect("few reactors"),
        grpc_address: format!("{host}:7400"),
        http_address: format!("{host}:7480"),
        peer_host: host,
        incarnation,
        ..ClusterNode::default()
    }
}

/// Certificates are no matter here: each node signs, and nobody checks.
fn trust() -> Trust {
    let new_token = || {
        let secret: Vec<u8> = (0..4).flat_map(|_| SimEnv::random_u64().to_le_bytes()).collect();
        let token = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(NewToken { token, secret_hash: JoinToken::hash_of(&secret).to_vec() })
    };
    let signed = || Signed { certificate: "certificate".to_owned(), ca_certificate: "ca".to_owned() };
    Trust {
        sign: Some(Rc::new(move |_, _| Ok(signed()))),
        new_token: Rc::new(new_token),
        hash: |secret| JoinToken::hash_of(secret).to_vec(),
    }
}

/// The secret in a token of `trust`.
pub(super) fn secret_of(token: &str) -> Option<Vec<u8>> {
    let digits = token.as_bytes().chunks(2).map(std::str::from_utf8);
    digits.map(|pair| u8::from_str_radix(pair.ok()?, 16).ok()).collect()
}
