//! Clients of a simulated cluster: they produce and read through the nodes' front doors, and write down what they sent and
//! what they were told, for the checker.
//!
//! Most call the front doors' functions; `stock` clients speak gRPC over simulated byte streams, and `hostile` ones send frames
//! there that no library would.
//!
//! A client's connection is to one process. When that process is killed, what was not answered is of unknown fate; when it
//! does not answer in time, too. Some clients go away before, and their calls with them.

mod consume;
mod hostile;
mod produce;
mod stock;

pub(super) use self::consume::records as records_of;
pub use self::stock::StockLoad;

use std::{
    cell::{Cell, RefCell},
    fmt,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use futures_util::future::{Either, select};

use super::{
    SimEnv, World,
    checker::{History, history::Event},
    cluster::{Cluster, Process},
    coverage::Coverage,
    random,
};
use crate::{
    env::{self, Env, channel},
    ids::{NodeId, ShardUid},
};

/// How long a client waits for an answer: longer than a server waits for a leader.
const PATIENCE: Duration = Duration::from_secs(8);

/// A shard that clients use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Topic.
    pub topic: Rc<str>,
    /// Number of the shard.
    pub shard: u32,
    /// Its identity.
    pub uid: ShardUid,
}

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Clients that produce.
    pub producers: u64,
    /// Clients that read.
    pub consumers: u64,
    /// A client's pause between two calls, at most, in µs.
    pub pause_us: u64,
    /// Most records of a batch.
    pub batch_max: u64,
    /// Most batches that one client has in flight.
    pub burst_max: u64,
    /// Most bytes of a value.
    pub value_bytes_max: u64,
    /// Stock gRPC clients beside them.
    pub stock: Option<StockLoad>,
    /// Clients that mean no good beside them.
    pub hostile: u64,
    /// Nothing else happens to the nodes: whoever asks for nothing special is answered soon.
    pub undisturbed: bool,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} producers, {} consumers", self.producers, self.consumers)?;
        if self.hostile > 0 {
            write!(f, ", {} hostile", self.hostile)?;
        }
        self.stock.map_or(Ok(()), |stock| write!(f, ", {stock}"))
    }
}

/// All clients of one run.
pub struct Clients {
    cluster: Cluster,
    targets: RefCell<Vec<Target>>,
    load: Load,
    history: RefCell<History>,
    stopped: Cell<bool>,
    running: Cell<u64>,
    probes: Cell<u64>,
    acked: Cell<u64>,
    failed: Cell<u64>,
    indefinite: Cell<u64>,
    reads: Cell<u64>,
    /// What clients have found wrong, and what met what there.
    problems: RefCell<Vec<String>>,
    met: RefCell<Coverage>,
}

impl Clients {
    /// Starts all of them.
    pub fn start(cluster: &Cluster, targets: Vec<Target>, load: Load, seed: u64) -> Rc<Clients> {
        let clients = Rc::new(Clients {
            cluster: cluster.clone(),
            targets: RefCell::new(targets),
            load,
            history: RefCell::default(),
            stopped: Cell::new(false),
            running: Cell::new(0),
            probes: Cell::new(0),
            acked: Cell::new(0),
            failed: Cell::new(0),
            indefinite: Cell::new(0),
            reads: Cell::new(0),
            problems: RefCell::default(),
            met: RefCell::default(),
        });
        for number in 0..load.producers {
            let (clients, dice) = (Rc::clone(&clients), Cell::new(seed ^ (number << 32) ^ 0x70));
            clients.clone().run(async move { produce::run(&clients, number, &dice).await });
        }
        for number in 0..load.consumers {
            let (clients, dice) = (Rc::clone(&clients), Cell::new(seed ^ (number << 32) ^ 0xc0));
            clients.clone().run(async move { consume::run(&clients, number, &dice).await });
        }
        if let Some(stock) = load.stock {
            for number in 0..stock.clients {
                let (clients, dice) = (Rc::clone(&clients), Cell::new(seed ^ (number << 32) ^ 0x57));
                clients.clone().run(async move { stock::run(&clients, number, stock, &dice).await });
            }
        }
        for number in 0..load.hostile {
            let (clients, dice) = (Rc::clone(&clients), Cell::new(seed ^ (number << 32) ^ 0xba));
            clients.clone().run(async move { hostile::run(&clients, number, &dice).await });
        }
        clients
    }

    fn run(self: Rc<Self>, client: impl Future<Output = ()> + 'static) {
        self.running.set(self.running.get() + 1);
        env::spawn::<SimEnv>(async move {
            client.await;
            self.running.set(self.running.get() - 1);
        });
    }

    /// Tells all of them to come to an end, and waits until they have.
    pub async fn stop(&self) {
        self.stopped.set(true);
        while self.running.get() > 0 {
            env::sleep::<SimEnv>(Duration::from_millis(10)).await;
        }
    }

    /// What they have seen.
    pub fn take_history(&self) -> History {
        self.history.take()
    }

    /// Gives back what `take_history` gave.
    pub fn put_history(&self, history: History) {
        self.history.replace(history);
    }

    /// What clients have found wrong, beside what the history shows, and what has met what there.
    pub fn take_findings(&self) -> (Vec<String>, Coverage) {
        (self.problems.take(), self.met.take())
    }

    /// Whether one more batch is acknowledged by a shard.
    pub async fn probe(self: &Rc<Self>, target: &Target) -> bool {
        produce::probe(self, target).await
    }

    /// Batches acknowledged, refused for certain, and of unknown fate; answers to readers.
    pub fn counts(&self) -> [u64; 4] {
        [self.acked.get(), self.failed.get(), self.indefinite.get(), self.reads.get()]
    }

    /// The shards that they use.
    pub fn targets(&self) -> Vec<Target> {
        self.targets.borrow().clone()
    }

    /// Writes an event down.
    ///
    /// # Panics
    /// When no client could have seen it: a bug of the harness.
    pub fn note(&self, event: Event) {
        if let Err(error) = self.history.borrow_mut().push(event) {
            panic!("a client has seen what cannot be: {error}");
        }
    }

    fn target(&self, dice: &Cell<u64>) -> Target {
        let targets = self.targets.borrow();
        targets[(random(dice) % targets.len() as u64) as usize].clone()
    }

    /// Has a shard's leader, which is on that node, take a small record within so long; whether it did.
    pub(super) async fn reach(self: &Rc<Self>, node: NodeId, target: &Target, within: Duration) -> bool {
        produce::reach(self, node, target, within).await
    }

    /// Notes what was read for a connection whose windows have let nothing through yet.
    fn judge_closed(&self, name: &str, handed: u64) {
        if handed > 0 {
            let text = format!("connection {name}: {handed} bytes were read for it while its windows were closed");
            World::current().note(&text);
            self.problems.borrow_mut().push(text);
        }
    }

    /// A connection to any node that lets clients in.
    fn connect(&self, dice: &Cell<u64>) -> Option<Connection> {
        let serving = self.cluster.serving();
        let node = *serving.get(random(dice) as usize % serving.len().max(1))?;
        let process = self.cluster.process(node)?;
        Some(Connection { node, process, turn: random(dice) })
    }

    async fn pause(&self, dice: &Cell<u64>) {
        env::sleep::<SimEnv>(Duration::from_micros(random(dice) % (self.load.pause_us + 1))).await;
    }
}

/// A client's connection to one reactor of one process.
struct Connection {
    node: NodeId,
    process: Rc<Process>,
    turn: u64,
}

impl Connection {
    /// When the node's own replica of a shard was opened; `None` without one.
    fn opened_us(&self, target: &Target) -> Option<u64> {
        self.process.shard(target.uid).map(|shard| shard.opened_us())
    }
}

/// What a call came to.
enum Called<T> {
    Answered(T),
    /// The process was killed.
    Lost,
    /// The client has given up.
    Late,
}

/// Runs a call in the process, and waits for it as long as a client does. When that has gone the call is dropped, as the code
/// behind a connection drops it.
async fn call<T: 'static>(
    connection: &Connection,
    patience: Duration,
    work: impl Future<Output = T> + 'static,
) -> Called<T> {
    let (here, gone) = channel::oneshot::<()>();
    let answer = World::current().spawn_on(connection.node, async move {
        match select(pin!(work), pin!(gone)).await {
            Either::Left((answer, _)) => Some(answer),
            Either::Right(_) => None,
        }
    });
    let answer = <<SimEnv as Env>::Runtime as openraft::AsyncRuntime>::timeout(patience, answer).await;
    drop(here);
    match answer {
        Ok(Ok(Some(answer))) => Called::Answered(answer),
        Ok(Ok(None)) => unreachable!("the client is here"),
        Ok(Err(_)) => Called::Lost,
        Err(_) => Called::Late,
    }
}

/// How long a client waits: one in 16 has gone soon. By dice of its own: what clients send does not depend on it.
fn patience(dice: &Cell<u64>) -> Duration {
    let dice = &Cell::new(dice.get() ^ 0x676f_6e65);
    if !random(dice).is_multiple_of(16) {
        return PATIENCE;
    }
    Duration::from_micros(100 + random(dice) % [1_000, 20_000, 500_000][(random(dice) % 3) as usize])
}
