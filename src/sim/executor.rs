//! A world of its own on one thread: tasks, virtual time and randomness, all from one seed.
//!
//! - Time stands still while anything can run, but for `POLL_NS` per poll; then it jumps to the next timer. When there is
//!   none, nothing can ever happen again, and `block_on` panics.
//! - Of the tasks that can run, the seed picks the next: another seed, another schedule. The pick is among the *set* of
//!   them, so that the order in which they were woken does not matter (that of tokio's `watch` is random).
//! - A task belongs to a node, or to none, and so do the tasks that it spawns. Nodes are killed, paused, and have clocks
//!   of their own.
//! - A panic ends the task that it happens in, and is kept for `panics`; so is one that its fault domain has contained.
//!
//! Not done here: disks and networks (`sim::disk`, `sim::net`), which a crash of a node concerns, too.

mod clock;
mod trace;

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::Future,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    rc::{Rc, Weak},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use self::{
    clock::Clock,
    trace::{Moment, Trace},
};
use super::{WALL_START_US, random};
use crate::{
    env::{channel, domain},
    ids::NodeId,
};

/// What a poll takes: whoever yields until some time has come sees it come.
const POLL_NS: u64 = 1_000;

/// Where the monotonic clocks start at least: a day, so that a moment before the start is one, too.
const START_NS: u64 = 86_400_000_000_000;

/// Nodes' clocks start up to an hour later than that: a moment of another node's clock means nothing.
const START_SPREAD_NS: u64 = 3_600_000_000_000;

/// The task number of the future that `block_on` runs.
const MAIN: u64 = 0;

thread_local! {
    /// The worlds whose tasks run on this thread now; the last is the current one.
    static CURRENT: RefCell<Vec<World>> = const { RefCell::new(Vec::new()) };
}

/// A handle to a world. Clones are handles to the same one; `SimRuntime` owns it and ends it.
#[derive(Clone)]
pub struct World {
    inner: Rc<Inner>,
}

/// As `World`, but for what lives in one.
#[derive(Clone)]
pub(super) struct WeakWorld {
    inner: Weak<Inner>,
}

/// Invariants: a number in `ready` or `parked` is not in the other, and stands there once; `ready` is sorted. A number of
/// a task that is gone may stand in `woken` and is passed over.
struct Inner {
    seed: u64,
    dice: Cell<u64>,
    now_ns: Cell<u64>,
    tasks: RefCell<BTreeMap<u64, Task>>,
    task_next: Cell<u64>,
    /// What wakers have written down since the last look.
    woken: Arc<Mutex<Vec<u64>>>,
    ready: RefCell<Vec<u64>>,
    /// Woken, but their node is paused.
    parked: RefCell<Vec<u64>>,
    timers: RefCell<BTreeMap<TimerKey, Timer>>,
    timer_next: Cell<u64>,
    nodes: RefCell<BTreeMap<NodeId, Node>>,
    here: Cell<Here>,
    panics: RefCell<Vec<TaskPanic>>,
    /// Tasks that ended with their fault domain.
    ended: RefCell<BTreeSet<u64>>,
    trace: RefCell<Trace>,
}

struct Task {
    node: Option<NodeId>,
    waker: Waker,
    /// None while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// In the order in which they fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TimerKey {
    due_ns: u64,
    sequence: u64,
}

struct Timer {
    node: Option<NodeId>,
    waker: Waker,
}

struct Node {
    clock: Clock,
    paused: bool,
}

/// Who runs.
#[derive(Clone, Copy, Default)]
struct Here {
    task: u64,
    node: Option<NodeId>,
    /// Destructors of tasks that are no more: they start nothing and say nothing.
    dying: bool,
}

/// A panic that ended a task, or that a destructor of a killed one raised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskPanic {
    /// The task's number.
    pub task: u64,
    /// Its node.
    pub node: Option<NodeId>,
    /// Virtual microseconds since the world began.
    pub time_us: u64,
    /// What it said, and where if it was contained.
    pub text: String,
    /// A fault domain or a call has contained it: a node goes on.
    pub contained: bool,
}

/// Why a task has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It has panicked; `World::panics` says how.
    #[error("the task has panicked")]
    Panic,
    /// Its node was killed, or the world has ended.
    #[error("the task was killed")]
    Killed,
}

/// A task's result, as a future; dropping it leaves the task running.
pub struct JoinHandle<T> {
    world: WeakWorld,
    task: u64,
    result: channel::OneshotReceiver<T>,
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result).poll(context).map_err(|channel::Closed| {
            let panicked = self.world.upgrade().is_some_and(|world| world.has_panicked(self.task));
            if panicked { JoinError::Panic } else { JoinError::Killed }
        })
    }
}

struct TaskWaker {
    task: u64,
    /// Never contended: wakers are `Send` by their type only.
    woken: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.task);
    }
}

/// Makes a world the thread's current one while it lives.
struct Inside;

impl Drop for Inside {
    fn drop(&mut self) {
        let world = CURRENT.with_borrow_mut(Vec::pop);
        drop(world);
    }
}

/// Sets who runs back when it is dropped, also by a panic.
struct Turn<'a> {
    here: &'a Cell<Here>,
    before: Here,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.here.set(self.before);
    }
}

impl WeakWorld {
    pub(super) fn upgrade(&self) -> Option<World> {
        self.inner.upgrade().map(|inner| World { inner })
    }
}

impl World {
    /// A world in which nothing has happened.
    pub(super) fn new(seed: u64) -> World {
        let inner = Inner {
            seed,
            dice: Cell::new(seed),
            now_ns: Cell::new(0),
            tasks: RefCell::default(),
            task_next: Cell::new(MAIN + 1),
            woken: Arc::default(),
            ready: RefCell::default(),
            parked: RefCell::default(),
            timers: RefCell::default(),
            timer_next: Cell::new(0),
            nodes: RefCell::default(),
            here: Cell::default(),
            panics: RefCell::default(),
            ended: RefCell::default(),
            trace: RefCell::default(),
        };
        // What an earlier world of this thread has left is not ours.
        drop(domain::take_contained());
        World { inner: Rc::new(inner) }
    }

    /// The world whose task runs on this thread.
    ///
    /// # Panics
    /// When there is none.
    pub fn current() -> World {
        let world = CURRENT.with_borrow(|worlds| worlds.last().cloned());
        world.expect("only what runs in SimRuntime::block_on is in a world")
    }

    /// What it was made from: the same seed, the same history.
    pub fn seed(&self) -> u64 {
        self.inner.seed
    }

    /// Virtual microseconds since the world began, by no node's clock.
    pub fn now_us(&self) -> u64 {
        self.inner.now_ns.get() / 1_000
    }

    /// The node whose task runs.
    pub fn node(&self) -> Option<NodeId> {
        self.inner.here.get().node
    }

    /// The next number of the world's generator.
    pub fn random_u64(&self) -> u64 {
        random(&self.inner.dice)
    }

    /// Runs `future` as a task of `node`; the tasks that it spawns are this node's, too.
    pub fn spawn_on<T: 'static>(&self, node: NodeId, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        self.spawn_of(Some(node), future)
    }

    /// Calls `look` as if a task of `node` did: clocks are the node's, and so is what it spawns.
    pub fn on<T>(&self, node: NodeId, look: impl FnOnce() -> T) -> T {
        let _turn = self.inner.turn(Here { node: Some(node), ..self.inner.here.get() });
        look()
    }

    /// Drops all tasks of `node` at once, where they stand; clocks go on, and new tasks may be spawned on it at once. No-op
    /// for a node without tasks. A paused node is not paused any more.
    ///
    /// Destructors run, but what they spawn is dropped and what they note is not heard. What they could still tell other
    /// nodes, by letting go of connections and files, nobody hears when network and disk have crashed before: so first
    /// `SimNetwork::crash` and `SimDisk::power_off`, then this.
    pub fn kill(&self, node: NodeId) {
        self.note(&format!("node {node} is killed"));
        self.inner.with_node(node, |node| node.paused = false);
        self.unpark(node);
        self.drop_tasks(|task| task.node == Some(node));
    }

    /// Stops the tasks of `node` where they stand, as SIGSTOP does: they are not polled until `resume`. Clocks go on.
    pub fn pause(&self, node: NodeId) {
        self.note(&format!("node {node} is paused"));
        self.inner.with_node(node, |node| node.paused = true);
        let of_node = |task: &u64| self.inner.tasks.borrow().get(task).is_some_and(|task| task.node == Some(node));
        let stopped: Vec<u64> = self.inner.ready.borrow_mut().extract_if(.., |task| of_node(task)).collect();
        self.inner.parked.borrow_mut().extend(stopped);
    }

    /// Whether it stands still.
    pub fn is_paused(&self, node: NodeId) -> bool {
        self.inner.with_node(node, |node| node.paused)
    }

    /// Ends `pause`: what has come due meanwhile runs now.
    pub fn resume(&self, node: NodeId) {
        self.note(&format!("node {node} is resumed"));
        self.inner.with_node(node, |node| node.paused = false);
        self.unpark(node);
    }

    /// From now on the clocks of `node` run faster than the world's by `ppm` parts per million, or slower when it is negative.
    ///
    /// # Panics
    /// When `ppm` is beyond half a million either way.
    pub fn set_drift(&self, node: NodeId, ppm: i64) {
        self.note(&format!("node {node} drifts by {ppm} ppm"));
        let now_ns = self.inner.now_ns.get();
        self.inner.with_node(node, |node| node.clock.set_drift(now_ns, ppm));
        // Their moments are other ones now: who waits looks again and waits anew.
        let woken = |timer: &Timer| timer.node == Some(node);
        for timer in take_chosen(&mut self.inner.timers.borrow_mut(), woken).into_values() {
            timer.waker.wake();
        }
    }

    /// Moves the wall clock of `node` by `us` microseconds, back when it is negative.
    pub fn jump_wall(&self, node: NodeId, us: i64) {
        self.note(&format!("the wall clock of node {node} jumps by {us} us"));
        self.inner.with_node(node, |node| node.clock.jump_wall(us));
    }

    /// Writes something into the trace: it is part of the hash.
    pub fn note(&self, text: &str) {
        if !self.inner.here.get().dying {
            self.inner.trace.borrow_mut().note(self.inner.moment(), text);
        }
    }

    /// A hash over all polls (virtual time, task, node) and notes until now.
    pub fn trace_hash(&self) -> u64 {
        self.inner.trace.borrow().hash()
    }

    /// From now on keeps the last `lines` polls and notes, for a failure's report.
    pub fn record(&self, lines: usize) {
        self.inner.trace.borrow_mut().record(lines);
    }

    /// What `record` has kept, oldest first.
    pub fn recorded(&self) -> String {
        self.inner.trace.borrow().recorded()
    }

    /// All panics of tasks until now: a scenario with one has failed, whether or not anybody joined the task.
    pub fn panics(&self) -> Vec<TaskPanic> {
        self.inner.panics.borrow().clone()
    }

    /// How many tasks there are, but for the one that `block_on` runs.
    pub fn task_count(&self) -> usize {
        self.inner.tasks.borrow().len()
    }

    /// Runs `future`, and the tasks beside it, until it ends. Tasks that are left stay, for the next call.
    ///
    /// # Panics
    /// When `future` does, and when nothing is ready to run and no timer is left.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let _inside = self.enter();
        let waker = self.inner.waker(MAIN);
        waker.wake_by_ref();
        let mut future = pin!(future);
        loop {
            let task = self.inner.next_task();
            if task != MAIN {
                self.poll(task);
                continue;
            }
            let turn = self.inner.turn(Here::default());
            self.inner.count_poll();
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            drop(turn);
        }
    }

    /// Drops all tasks, as `kill` does.
    pub(super) fn end(&self) {
        self.drop_tasks(|_| true);
    }

    pub(super) fn weak(&self) -> WeakWorld {
        WeakWorld { inner: Rc::downgrade(&self.inner) }
    }

    /// Runs `future` as a task of the node whose task runs now.
    pub(super) fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        self.spawn_of(self.node(), future)
    }

    /// The monotonic clock of `node`, in nanoseconds.
    pub(super) fn local_ns(&self, node: Option<NodeId>) -> u64 {
        let now_ns = self.inner.now_ns.get();
        match node {
            Some(node) => self.inner.with_node(node, |node| node.clock.local_ns(now_ns)),
            None => START_NS + now_ns,
        }
    }

    /// The wall clock of `node`, in microseconds.
    pub(super) fn wall_us(&self, node: Option<NodeId>) -> i64 {
        let now_ns = self.inner.now_ns.get();
        let passed_us = match node {
            Some(node) => self.inner.with_node(node, |node| node.clock.wall_us(now_ns)),
            None => (now_ns / 1_000) as i64,
        };
        WALL_START_US + passed_us
    }

    /// Wakes `waker` once when the monotonic clock of `node` has come to `local_ns`; `None` when that is never.
    pub(super) fn set_timer(&self, node: Option<NodeId>, local_ns: u64, waker: &Waker) -> Option<TimerKey> {
        let due_ns = match node {
            Some(node) => self.inner.with_node(node, |node| node.clock.world_ns(local_ns)),
            None => local_ns.saturating_sub(START_NS),
        };
        if local_ns == u64::MAX || due_ns == u64::MAX {
            return None;
        }
        let key = TimerKey { due_ns, sequence: self.inner.timer_next.replace(self.inner.timer_next.get() + 1) };
        self.inner.timers.borrow_mut().insert(key, Timer { node, waker: waker.clone() });
        Some(key)
    }

    /// Wakes `waker` once when the world has come to `at_us`, whatever any clock shows; `None` when that is never.
    pub(super) fn set_world_timer(&self, at_us: u64, waker: &Waker) -> Option<TimerKey> {
        self.set_timer(None, at_us.saturating_mul(1_000).saturating_add(START_NS), waker)
    }

    /// Takes a timer back; no-op when it has fired.
    pub(super) fn clear_timer(&self, key: TimerKey) {
        let timer = self.inner.timers.borrow_mut().remove(&key);
        drop(timer);
    }

    fn spawn_of<T: 'static>(&self, node: Option<NodeId>, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let (sender, result) = channel::oneshot();
        let task = self.inner.task_next.replace(self.inner.task_next.get() + 1);
        let handle = JoinHandle { world: self.weak(), task, result };
        if self.inner.here.get().dying {
            return handle;
        }
        let waker = self.inner.waker(task);
        waker.wake_by_ref();
        let future = Box::pin(async move { drop(sender.send(future.await)) });
        self.inner.tasks.borrow_mut().insert(task, Task { node, waker, future: Some(future) });
        handle
    }

    /// Polls a task that exists.
    fn poll(&self, number: u64) {
        let (node, waker, mut future) = {
            let mut tasks = self.inner.tasks.borrow_mut();
            let task = tasks.get_mut(&number).expect("only tasks that exist are picked");
            let future = task.future.take().expect("a task does not run inside of itself");
            (task.node, task.waker.clone(), future)
        };
        let turn = self.inner.turn(Here { task: number, node, dying: false });
        self.inner.count_poll();
        let mut context = Context::from_waker(&waker);
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        let mut left = Some(future);
        match polled {
            Ok(Poll::Ready(())) => {}
            Ok(Poll::Pending) => {
                if let Some(task) = self.inner.tasks.borrow_mut().get_mut(&number) {
                    task.future = left.take();
                }
            }
            Err(cause) if cause.is::<domain::Ended>() => drop(self.inner.ended.borrow_mut().insert(number)),
            Err(cause) => self.inner.note_panic(cause.as_ref()),
        }
        self.inner.note_contained();
        if let Some(future) = left {
            let gone = self.inner.tasks.borrow_mut().remove(&number).is_none();
            self.drop_future(Here { task: number, node, dying: gone }, future);
        }
        drop(turn);
    }

    /// Removes these tasks and runs their destructors, in the order in which the tasks were spawned.
    fn drop_tasks(&self, choose: impl Fn(&Task) -> bool) {
        let _inside = self.enter();
        let dropped = take_chosen(&mut self.inner.tasks.borrow_mut(), choose);
        for (number, task) in dropped {
            // The one that asks for this is dropped when it returns.
            let Some(future) = task.future else { continue };
            self.drop_future(Here { task: number, node: task.node, dying: true }, future);
        }
    }

    fn drop_future(&self, here: Here, future: Pin<Box<dyn Future<Output = ()>>>) {
        let _turn = self.inner.turn(here);
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| drop(future))) {
            self.inner.note_panic(cause.as_ref());
        }
        self.inner.note_contained();
    }

    /// What `pause` has held back can run again.
    fn unpark(&self, node: NodeId) {
        let tasks = self.inner.tasks.borrow();
        self.inner.parked.borrow_mut().retain(|number| match tasks.get(number) {
            Some(task) if task.node == Some(node) => {
                task.waker.wake_by_ref();
                false
            }
            Some(_) => true,
            None => false,
        });
    }

    fn enter(&self) -> Inside {
        CURRENT.with_borrow_mut(|worlds| worlds.push(self.clone()));
        Inside
    }

    fn has_panicked(&self, task: u64) -> bool {
        let panicked = self.inner.panics.borrow().iter().any(|panic| panic.task == task && !panic.contained);
        panicked || self.inner.ended.borrow().contains(&task)
    }
}

impl Inner {
    fn waker(&self, task: u64) -> Waker {
        Waker::from(Arc::new(TaskWaker { task, woken: Arc::clone(&self.woken) }))
    }

    /// The task to be polled next; time passes when there is none.
    fn next_task(&self) -> u64 {
        loop {
            self.fire();
            self.gather();
            if let Some(task) = self.pick() {
                return task;
            }
            let next = self.timers.borrow().first_key_value().map(|(key, _)| key.due_ns);
            let Some(due_ns) = next else { panic!("{}", self.stuck()) };
            self.now_ns.set(self.now_ns.get().max(due_ns));
        }
    }

    /// Wakes those whose time has come.
    fn fire(&self) {
        loop {
            let mut timers = self.timers.borrow_mut();
            let Some(first) = timers.first_entry().filter(|first| first.key().due_ns <= self.now_ns.get()) else {
                return;
            };
            let timer = first.remove();
            drop(timers);
            timer.waker.wake();
        }
    }

    /// Sorts what was woken into what can run and what must wait for `resume`.
    fn gather(&self) {
        let woken = mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner));
        let (tasks, nodes) = (self.tasks.borrow(), self.nodes.borrow());
        let (mut ready, mut parked) = (self.ready.borrow_mut(), self.parked.borrow_mut());
        for number in woken {
            let node = match tasks.get(&number) {
                Some(task) => task.node,
                None if number == MAIN => None,
                None => continue,
            };
            if node.and_then(|node| nodes.get(&node)).is_some_and(|node| node.paused) {
                if !parked.contains(&number) {
                    parked.push(number);
                }
            } else if let Err(at) = ready.binary_search(&number) {
                ready.insert(at, number);
            }
        }
    }

    /// One of those that can run, by the dice.
    fn pick(&self) -> Option<u64> {
        let mut ready = self.ready.borrow_mut();
        loop {
            let at = match ready.len() {
                0 => return None,
                1 => 0,
                count => (random(&self.dice) % count as u64) as usize,
            };
            let number = ready.remove(at);
            if number == MAIN || self.tasks.borrow().contains_key(&number) {
                return Some(number);
            }
        }
    }

    fn stuck(&self) -> String {
        let (tasks, nodes) = (self.tasks.borrow(), self.nodes.borrow());
        let paused: Vec<String> =
            nodes.iter().filter(|(_, node)| node.paused).map(|(node, _)| node.to_string()).collect();
        format!(
            "the simulation with seed {} is stuck after {} us: nothing is ready to run and no timer is left, \
             {} tasks wait; paused nodes: [{}]",
            self.seed,
            self.now_ns.get() / 1_000,
            tasks.len(),
            paused.join(", ")
        )
    }

    fn turn(&self, here: Here) -> Turn<'_> {
        Turn { here: &self.here, before: self.here.replace(here) }
    }

    fn count_poll(&self) {
        self.trace.borrow_mut().poll(self.moment());
        self.now_ns.set(self.now_ns.get() + POLL_NS);
    }

    fn moment(&self) -> Moment {
        let Here { task, node, .. } = self.here.get();
        Moment { time_ns: self.now_ns.get(), task, node }
    }

    fn note_panic(&self, cause: &(dyn Any + Send)) {
        self.note_panic_text(panic_text(cause).to_owned(), false);
    }

    /// What fault domains and calls have contained since the last look.
    fn note_contained(&self) {
        for text in domain::take_contained() {
            self.note_panic_text(text, true);
        }
    }

    fn note_panic_text(&self, text: String, contained: bool) {
        let Moment { time_ns, task, node } = self.moment();
        self.trace.borrow_mut().note(self.moment(), &format!("panic: {text}"));
        self.panics.borrow_mut().push(TaskPanic { task, node, time_us: time_ns / 1_000, text, contained });
    }

    fn with_node<T>(&self, node: NodeId, look: impl FnOnce(&mut Node) -> T) -> T {
        let mut nodes = self.nodes.borrow_mut();
        look(nodes.entry(node).or_insert_with(|| {
            let start_ns = START_NS + random(&self.dice) % START_SPREAD_NS;
            Node { clock: Clock::new(start_ns), paused: false }
        }))
    }
}

/// Takes out what `choose` says.
fn take_chosen<K: Ord, V>(map: &mut BTreeMap<K, V>, choose: impl Fn(&V) -> bool) -> BTreeMap<K, V> {
    let (chosen, left) = mem::take(map).into_iter().partition(|(_, value)| choose(value));
    *map = left;
    chosen
}

pub use crate::env::domain::payload_text as panic_text;
