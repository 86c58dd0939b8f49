//! Gossip between the nodes of a cluster (SWIM, by foca): who is there, and what each says of itself. It runs on
//! reactor 0, in datagrams over the connections between nodes, and reaches everybody also when not everybody
//! reaches everybody.
//!
//! - It tells routing, health and status (`table`), and the address book where a node is now (`AddressBook::hear`). It
//!   never changes a Raft group's membership, and nobody is declared dead for Raft by it: that is `peer::liveness`.
//! - Only members that the book knows are listened to.
//! - Everybody is found from any one that is reached: whoever is in the book and not heard of is greeted again and
//!   again, and told where this node is, as it may not know how to answer. Who does not answer is looked for at the
//!   addresses that `join` names, too: after a start of all nodes at new addresses one that is known is enough.
//!
//! `codec`: bytes, and who speaks. `state`: what nodes say of themselves. `table`: what comes of it.

mod codec;
pub mod state;
pub mod table;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    convert::Infallible,
    marker::PhantomData,
    num::{NonZeroU8, NonZeroUsize},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use foca::{Foca, Notification, PeriodicParams, State, Timer};
use futures_util::future::{Either, select};
use openraft::{AsyncRuntime, Instant as _};

use self::{
    codec::{Layout, Speaker},
    state::{Heard, Items, NodeState, Said},
    table::{Alive, GossipView},
};
use crate::{
    config::host_and_port,
    env::{self, Env, channel::Notify, net::DATAGRAM_BYTES_MAX},
    ids::NodeId,
    limits,
    peer::{Destination, Peers, book::PeerNode, datagram},
    reactor::{
        Reactor,
        node::{Node, Phase},
    },
};

/// Members that are greeted at once because nothing is heard of them.
const GREETED_AT_ONCE: usize = 3;

/// How long a missing member is looked for at one address.
const LOOKED_FOR: Duration = Duration::from_secs(1);

/// How fast gossip goes.
#[derive(Clone, Debug)]
struct Pace {
    /// Between looks at what this node has to say, and greetings.
    tick: Duration,
    /// The same while somebody is missing.
    hurried_tick: Duration,
    /// This many ticks after it was said, the own state is said again: somebody may have missed it.
    repeat_ticks: u32,
    /// foca's own times: a member is asked each `probe_period`, has half a second to answer, and three to object.
    foca: foca::Config,
}

impl Default for Pace {
    fn default() -> Pace {
        let periodic_gossip = Some(PeriodicParams { frequency: Duration::from_millis(200), num_members: nonzero(3) });
        let foca = foca::Config {
            probe_period: Duration::from_secs(1),
            probe_rtt: Duration::from_millis(400),
            num_indirect_probes: nonzero(3),
            // Enough for a thousand nodes (4 log10 n, as memberlist has it), and cheap for three.
            max_transmissions: NonZeroU8::new(12).expect("twelve is not zero"),
            suspect_to_down_after: Duration::from_secs(3),
            // As many as the cluster ever had nodes: nobody is forgotten.
            remove_down_after: None,
            max_packet_size: nonzero(DATAGRAM_BYTES_MAX - 1),
            // Whoever was taken for down is told, and comes back under a new generation.
            notify_down_members: true,
            // Those that are not heard of are greeted by `Gossip` itself.
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            periodic_gossip,
        };
        let hurried_tick = Duration::from_millis(250);
        Pace { tick: Duration::from_secs(1), hurried_tick, repeat_ticks: 10, foca }
    }
}

fn nonzero(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("only constants above zero are passed")
}

// The largest state fits into a datagram beside the largest header, so that it is carried sooner or later.
const _: () = assert!(state::STATE_BYTES_MAX + 2 + 2 + 64 < DATAGRAM_BYTES_MAX);

/// Begins to gossip, on reactor 0, when its connections are set and the book knows this node; until `leave`, or until
/// the connections are closed. What comes is fed in by `Handler::datagram`, through `Reactor::gossip`.
///
/// # Panics
/// When the book does not know this node, or when called twice.
pub fn start<E: Env>(reactor: &Rc<Reactor<E>>) -> Gossip<E> {
    let gossip = Gossip::new(Arc::clone(reactor.node()), reactor.peers().clone(), Pace::default());
    reactor.set_gossip(gossip.clone());
    gossip
}

/// This node's part in the gossip. Clones are handles to the same one.
pub struct Gossip<E: Env> {
    inner: Rc<Inner<E>>,
}

impl<E: Env> Clone for Gossip<E> {
    fn clone(&self) -> Self {
        Gossip { inner: Rc::clone(&self.inner) }
    }
}

struct Inner<E: Env> {
    node: Arc<Node>,
    peers: Peers<E>,
    pace: Pace,
    /// Where others reach this node.
    address: PeerNode,
    /// Of `join`.
    seeds: Vec<(String, u16)>,
    heard: Rc<RefCell<Heard>>,
    core: RefCell<Core<E>>,
    began: <E::Runtime as AsyncRuntime>::Instant,
    /// There is an earlier timer, or it is over.
    wake: Notify,
    ended: Cell<bool>,
}

type FocaOf<E> = Foca<Speaker, Layout, EnvRng<E>, Items>;

struct Core<E: Env> {
    foca: FocaOf<E>,
    outbox: Outbox,
    /// Of the last own state.
    stamp: u64,
    /// Until the own state is said again.
    ticks_left: u32,
}

impl<E: Env> Gossip<E> {
    fn new(node: Arc<Node>, peers: Peers<E>, pace: Pace) -> Gossip<E> {
        let me = peers.me();
        let address = peers.book().get(me).expect("the book knows this node before it gossips");
        let heard = Rc::new(RefCell::new(Heard::new(me)));
        let life = Speaker::new(me, u64::try_from(E::wall_us()).unwrap_or(0));
        let (rng, items) = (EnvRng(PhantomData), Items(Rc::clone(&heard)));
        let foca = Foca::with_custom_broadcast(life, pace.foca.clone(), rng, Layout, items);
        let core = RefCell::new(Core { foca, outbox: Outbox::default(), stamp: 0, ticks_left: 0 });
        let began = <E::Runtime as AsyncRuntime>::Instant::now();
        let (wake, ended, address) = (Notify::new(), Cell::new(false), PeerNode::clone(&address));
        // One that is no address is left out: joining has complained of it already.
        let seeds = node.config.join.iter().filter_map(|seed| host_and_port(seed)).collect();
        let inner = Inner { node, peers, pace, address, seeds, heard, core, began, wake, ended };
        let gossip = Gossip { inner: Rc::new(inner) };
        env::spawn::<E>(run(gossip.clone()));
        gossip
    }

    /// Takes a datagram from a peer, first byte included. Anything but a member's gossip or greeting is ignored.
    pub fn feed(&self, from: NodeId, datagram: &[u8]) {
        let inner = &self.inner;
        if inner.ended.get() || inner.peers.book().get(from).is_none() {
            return;
        }
        match datagram.split_first() {
            Some((&datagram::GOSSIP, bytes)) => inner.take_gossip(from, bytes),
            Some((&datagram::HELLO, bytes)) => inner.take_hello(from, bytes),
            Some(_) | None => {}
        }
    }

    /// Tells others that this node goes, and says nothing more. For the end, while there still are connections.
    pub fn leave(&self) {
        if self.inner.ended.replace(true) {
            return;
        }
        self.inner.drive(|foca, outbox| foca.leave_cluster(outbox));
        self.inner.wake.notify_all();
    }
}

/// Timers and ticks, until it is over.
async fn run<E: Env>(gossip: Gossip<E>) {
    let inner = &gossip.inner;
    let mut tick_us = 0;
    // Said at once: from then on the others give this node nothing to lead, and clients turn to them.
    let mut leaving = Some(Box::pin(inner.node.reached(Phase::Leaving)));
    loop {
        let woken = inner.wake.notified();
        let now_us = inner.now_us();
        while let Some(timer) = inner.due(now_us) {
            inner.drive(|foca, outbox| foca.handle_timer(timer, outbox));
        }
        if inner.ended.get() || inner.peers.is_closed() {
            return;
        }
        if now_us >= tick_us {
            let is_complete = inner.tick();
            let tick = if is_complete { inner.pace.tick } else { inner.pace.hurried_tick };
            tick_us = now_us + tick.as_micros() as u64;
        }
        let next_us = inner.next_timer_us().map_or(tick_us, |timer_us| timer_us.min(tick_us));
        let pause = Duration::from_micros(next_us.saturating_sub(inner.now_us()));
        let pause = select(Box::pin(E::Runtime::sleep(pause)), woken);
        match &mut leaving {
            Some(phase) => {
                if let Either::Right(_) = select(pause, phase).await {
                    (leaving, tick_us) = (None, 0);
                }
            }
            None => drop(pause.await),
        }
    }
}

impl<E: Env> Inner<E> {
    fn now_us(&self) -> u64 {
        (<E::Runtime as AsyncRuntime>::Instant::now() - self.began).as_micros() as u64
    }

    fn take_gossip(&self, from: NodeId, bytes: &[u8]) {
        // The connection has proven who sends: nobody speaks in another's name. What is told of others is hearsay.
        let Ok(header) = foca::Codec::decode_header(&mut Layout, bytes) else { return };
        let known = self.core.borrow().foca.iter_membership_state().len();
        if header.src.node != from || known > limits::CLUSTER_NODES_MAX {
            tracing::debug!(%from, claims = %header.src.node, known, "gossip is ignored");
            return;
        }
        self.drive(|foca, outbox| foca.handle_data(bytes, outbox));
    }

    fn take_hello(&self, from: NodeId, item: &[u8]) {
        let Ok(Some(said)) = state::decode(item) else { return };
        if said.state.address.node == from && self.heard.borrow_mut().note(said) {
            self.drive(|foca, _| foca.add_broadcast(item).map(|_| ()));
            // It has begun just now, and knows as little of this node. What is no news is not answered: that ends it.
            self.say_hello(from);
        }
    }

    fn due(&self, now_us: u64) -> Option<Timer<Speaker>> {
        let timers = &mut self.core.borrow_mut().outbox.timers;
        timers.pop_if_due(now_us)
    }

    fn next_timer_us(&self) -> Option<u64> {
        self.core.borrow().outbox.timers.next_us()
    }

    /// Lets foca act, then sends what it has to send, and publishes what has changed.
    fn drive(&self, act: impl FnOnce(&mut FocaOf<E>, &mut Outbox) -> Result<(), foca::Error>) {
        let (sends, changed) = {
            let mut core = self.core.borrow_mut();
            let Core { foca, outbox, .. } = &mut *core;
            outbox.now_us = self.now_us();
            let earliest_us = outbox.timers.next_us();
            if let Err(error) = act(foca, outbox) {
                // Hostile or late bytes; foca goes on as if they had not come.
                tracing::debug!(%error, "gossip was not understood");
            }
            if outbox.timers.next_us().is_some_and(|next_us| earliest_us.is_none_or(|before_us| next_us < before_us)) {
                self.wake.notify_all();
            }
            let somebody_is_new = std::mem::take(&mut outbox.somebody_is_new);
            let done = (std::mem::take(&mut outbox.sends), std::mem::take(&mut outbox.changed));
            if somebody_is_new {
                core.ticks_left = 0;
            }
            done
        };
        for (node, bytes) in sends {
            self.peers.send_datagram(Destination { node, slot: 0 }, bytes);
        }
        let said = self.heard.borrow_mut().take_changed();
        self.note_addresses(&said);
        if changed || !said.is_empty() {
            self.publish();
        }
    }

    /// Where the nodes say that they are now.
    fn note_addresses(&self, nodes: &[NodeId]) {
        for node in nodes.iter().filter(|node| **node != self.peers.me()) {
            let said = self.heard.borrow().get(*node).cloned();
            if let Some(said) = said
                && self.peers.book().hear(&said.state.address)
            {
                tracing::info!(%node, host = said.state.address.host, port = said.state.address.port, "node has moved");
            }
        }
    }

    /// Whether everybody is heard of.
    fn tick(&self) -> bool {
        self.say();
        let missing = self.missing();
        for node in &missing {
            self.look_for(*node);
            self.say_hello(*node);
            // Its generation is not known; it takes a greeting under any.
            self.drive(|foca, outbox| foca.announce(Speaker::new(*node, 0), outbox));
        }
        // Suspicions come without a notice.
        self.publish();
        missing.is_empty()
    }

    /// While this node hears nobody at all, members that are dead where they were are looked for at the seeds' addresses,
    /// one after the other. Not longer: whoever is found knows where the others are, and a seed that is dialled as
    /// somebody else has to refuse it each time.
    fn look_for(&self, node: NodeId) {
        if self.seeds.is_empty() {
            return;
        }
        if self.core.borrow().foca.num_members() > 0 {
            self.peers.book().guess(node, None);
            return;
        }
        if self.node.liveness.is_alive(node) {
            // Perhaps just found, and about to say where it is.
            return;
        }
        let turn = self.now_us() / LOOKED_FOR.as_micros() as u64 + node.0;
        let place = (turn % (self.seeds.len() as u64 + 1)) as usize;
        self.peers.book().guess(node, self.seeds.get(place).cloned());
    }

    /// Tells a node that may not know it where this one is, and how it is.
    fn say_hello(&self, node: NodeId) {
        if let Some(hello) = self.hello() {
            self.peers.send_datagram(Destination { node, slot: 0 }, hello);
        }
    }

    /// `None` before the first tick.
    fn hello(&self) -> Option<Bytes> {
        let said = self.heard.borrow().get(self.peers.me()).cloned()?;
        let item = state::encode(&said.state, said.stamp);
        let mut bytes = BytesMut::with_capacity(1 + item.len());
        bytes.put_u8(datagram::HELLO);
        bytes.put_slice(&item);
        Some(bytes.freeze())
    }

    /// A few members of which nothing is heard, another few each time.
    fn missing(&self) -> Vec<NodeId> {
        let core = self.core.borrow();
        let active: Vec<NodeId> = core.foca.iter_members().map(|member| member.id().node).collect();
        let book = self.peers.book().snapshot();
        let is_missing = |node: &NodeId| *node != self.peers.me() && !active.contains(node);
        let mut missing: Vec<NodeId> = book.keys().copied().filter(is_missing).collect();
        if !missing.is_empty() {
            let first = E::random_u64() % missing.len() as u64;
            missing.rotate_left(first as usize);
        }
        missing.truncate(GREETED_AT_ONCE);
        missing
    }

    /// Says what is new of this node, or says it again after a while.
    fn say(&self) {
        let (state, me) = (Arc::new(self.own_state()), self.peers.me());
        let outdated = self.heard.borrow_mut().take_outdated();
        let is_known = self.heard.borrow().get(me).is_some_and(|said| said.state == state);
        {
            let mut core = self.core.borrow_mut();
            core.ticks_left = core.ticks_left.saturating_sub(1);
            if is_known && outdated.is_none() && core.ticks_left > 0 {
                return;
            }
            core.ticks_left = self.pace.repeat_ticks;
            let clock = u64::try_from(E::wall_us()).unwrap_or(0);
            core.stamp = clock.max(core.stamp + 1).max(outdated.map_or(0, |stamp| stamp.saturating_add(1)));
            self.heard.borrow_mut().note_own(Said { stamp: core.stamp, state: Arc::clone(&state) });
        }
        let stamp = self.core.borrow().stamp;
        self.drive(|foca, _| foca.add_broadcast(&state::encode(&state, stamp)).map(|_| ()));
    }

    fn own_state(&self) -> NodeState {
        let node = &self.node;
        NodeState {
            address: self.address.clone(),
            is_leaving: node.phase() >= Phase::Leaving,
            leaders: u32::try_from(node.leaders.led_by(self.peers.me())).unwrap_or(u32::MAX),
            replicas: u32::try_from(node.shard_count()).unwrap_or(u32::MAX),
            faults: u32::try_from(node.fault_count()).unwrap_or(u32::MAX),
        }
    }

    /// Members of the book of which anything is known.
    fn publish(&self) {
        let (core, heard) = (self.core.borrow(), self.heard.borrow());
        let book = self.peers.book().snapshot();
        let me = self.peers.me();
        let view = |node: NodeId, alive| {
            let state = heard.get(node).map(|said| Arc::clone(&said.state));
            (node, GossipView { node, alive, state })
        };
        let alive = |state| match state {
            State::Alive => Alive::Alive,
            State::Suspect => Alive::Suspect,
            State::Down => Alive::Down,
        };
        let members = core.foca.iter_membership_state().map(|member| view(member.id().node, alive(member.state())));
        let mut views: BTreeMap<NodeId, GossipView> = members.filter(|(node, _)| book.contains_key(node)).collect();
        views.extend([view(me, if self.ended.get() { Alive::Down } else { Alive::Alive })]);
        self.node.gossip.publish(views);
    }
}

/// What foca asks for, until it is done.
#[derive(Default)]
struct Outbox {
    now_us: u64,
    sends: Vec<(NodeId, Bytes)>,
    timers: Timers,
    /// Somebody came, went, or changed.
    changed: bool,
    /// Somebody came who has not heard what this node says of itself.
    somebody_is_new: bool,
}

impl foca::Runtime<Speaker> for Outbox {
    fn notify(&mut self, notification: Notification<'_, Speaker>) {
        match &notification {
            Notification::MemberUp(speaker) => tracing::debug!(node = %speaker.node, "gossip: up"),
            Notification::MemberDown(speaker) => tracing::debug!(node = %speaker.node, "gossip: down"),
            Notification::Rejoin(speaker) => {
                tracing::info!(generation = speaker.generation, "others held this node for down; it is back");
            }
            Notification::Rename(_, _) | Notification::Active | Notification::Idle | Notification::Defunct => {}
        }
        self.changed = true;
        self.somebody_is_new |= matches!(notification, Notification::MemberUp(_) | Notification::Rename(_, _));
    }

    fn send_to(&mut self, to: Speaker, data: &[u8]) {
        let mut bytes = BytesMut::with_capacity(1 + data.len());
        bytes.put_u8(datagram::GOSSIP);
        bytes.put_slice(data);
        self.sends.push((to.node, bytes.freeze()));
    }

    fn submit_after(&mut self, event: Timer<Speaker>, after: Duration) {
        self.timers.push(self.now_us + after.as_micros() as u64, event);
    }
}

/// foca's timers, in the order in which they are due; equal ones in the order in which they were asked for.
#[derive(Default)]
struct Timers {
    /// By microsecond and number.
    events: BTreeMap<(u64, u64), Timer<Speaker>>,
    next: u64,
}

impl Timers {
    fn push(&mut self, due_us: u64, event: Timer<Speaker>) {
        self.events.insert((due_us, self.next), event);
        self.next += 1;
    }

    fn next_us(&self) -> Option<u64> {
        self.events.first_key_value().map(|((due_us, _), _)| *due_us)
    }

    fn pop_if_due(&mut self, now_us: u64) -> Option<Timer<Speaker>> {
        let first = self.events.first_entry().filter(|first| first.key().0 <= now_us)?;
        Some(first.remove())
    }
}

/// The world's randomness as foca wants it.
struct EnvRng<E>(PhantomData<E>);

impl<E: Env> rand_core::TryRng for EnvRng<E> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(E::random_u64() as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(E::random_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&E::random_u64().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
