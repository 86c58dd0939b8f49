//! Fault domains: what a panic may take with it.
//!
//! Whatever runs on a reactor runs for an *owner*, and what a panic ends depends on that:
//!
//! | owner | a panic ends |
//! |---|---|
//! | a [`Domain`], one for each replica | every task of that domain, and nothing else: state that one of them left half made is not looked at by the others |
//! | a call (of a client, a peer, another reactor) | the task it happens in |
//! | the core (a reactor's own loops, what its replicas share) | the process: [`end_process`] |
//!
//! A task that is spawned through the runtime's seam belongs to whoever runs while it is spawned (`inherit`), so that
//! openraft's tasks are their replica's. What a reactor's loop computes from one replica's state, as whoever leads next would,
//! is that replica's, too ([`Domain::catch`], [`Domain::contain`]): else one node after the other would end. Code that changes
//! what several replicas share, called by one of them, goes through [`core`]: half of such a change is nobody's alone.
//!
//! One panic hook serves nodes, tests and the simulator: it notes the words and the place of a panic for the domain. What
//! differs is only whether a panic of the core ends the process (a node) or unwinds (a test).
//!
//! Not done here: what becomes of a replica whose domain has stopped (`raft::Group`, `reactor`). Nothing restarts one: an
//! assertion in what replicas compute alike would fail again, here and on the others.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    fmt::Debug,
    future::Future,
    panic::{AssertUnwindSafe, Location, PanicHookInfo, catch_unwind, resume_unwind},
    pin::Pin,
    rc::Rc,
    sync::{Once, OnceLock},
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;

/// What the process does at a panic of the core before it ends; set once, by a node's process.
static END_PROCESS: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

/// Panics kept for `take_contained`; a scenario that has seen so many has failed anyway.
const CONTAINED_MAX: usize = 64;

thread_local! {
    /// Whose code runs on this thread now.
    static CURRENT: RefCell<Owner> = const { RefCell::new(Owner::Core) };
    /// Words and place of the panic that unwinds, as the hook saw it.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
    /// None: nobody on this thread asks.
    static CONTAINED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// For whom something runs.
#[derive(Clone, Default)]
enum Owner {
    #[default]
    Core,
    /// Of what kind, for the log.
    Call(&'static str),
    Domain(Domain),
}

/// Tasks, and calls into their state, that end together. Clones are handles to the same one; all stay on one thread.
#[derive(Clone)]
pub struct Domain {
    inner: Rc<Inner>,
}

/// Is told the words of the panic.
type Observer = Box<dyn FnOnce(&str)>;

struct Inner {
    name: String,
    panic: RefCell<Option<String>>,
    /// Of its tasks, by number; each is woken once when the domain stops, and ends then.
    tasks: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<usize>>,
    observers: RefCell<Vec<Observer>>,
}

/// What a task of a domain ends with, after a panic of its own or of another task; never printed, as it was told already.
#[derive(Debug)]
pub struct Ended;

impl Domain {
    /// A domain without tasks. Its name is for people: "the replica of shard 7".
    pub fn new(name: String) -> Domain {
        install_hook();
        let inner = Inner {
            name,
            panic: RefCell::default(),
            tasks: RefCell::default(),
            free: RefCell::default(),
            observers: RefCell::default(),
        };
        Domain { inner: Rc::new(inner) }
    }

    /// Words and place of the panic that has stopped it, if one has.
    pub fn panic(&self) -> Option<String> {
        self.inner.panic.borrow().clone()
    }

    /// Whether a panic has stopped it.
    pub fn has_stopped(&self) -> bool {
        self.inner.panic.borrow().is_some()
    }

    /// Has `observer` called once, when a panic stops the domain, after the unwinding and after those that were added before;
    /// at once if it has stopped. A panic of the observer's ends the observer only, and tasks that it spawns are calls.
    pub fn on_panic(&self, observer: impl FnOnce(&str) + 'static) {
        match self.panic() {
            Some(text) => observe(Box::new(observer), &text),
            None => self.inner.observers.borrow_mut().push(Box::new(observer)),
        }
    }

    /// Calls `work` as a part of this domain. A panic in it stops the domain.
    ///
    /// # Errors
    /// Words and place of that panic, or of the one that had stopped the domain: then `work` was not called.
    pub fn catch<T>(&self, work: impl FnOnce() -> T) -> Result<T, String> {
        if let Some(text) = self.panic() {
            return Err(text);
        }
        let entered = Entered::new(Owner::Domain(self.clone()));
        let result = catch_unwind(AssertUnwindSafe(work));
        drop(entered);
        result.map_err(|cause| self.stop(cause.as_ref()))
    }

    /// As `catch`, for a future that others poll: it ends, too, when the domain has stopped, at its next poll. Whoever may
    /// wait for ever is to be woken by an observer.
    pub fn contain<F: Future>(&self, future: F) -> Contained<F> {
        Contained { owner: Owner::Domain(self.clone()), task: None, future: Some(future) }
    }

    fn stop(&self, cause: &(dyn Any + Send)) -> String {
        let text = words(cause);
        note_contained(&text);
        if let Some(first) = self.panic() {
            tracing::error!(panic = text, "a bug: {} had stopped already", self.inner.name);
            return first;
        }
        tracing::error!(panic = text, "a bug stops {}; the node goes on", self.inner.name);
        *self.inner.panic.borrow_mut() = Some(text.clone());
        let tasks: Vec<Waker> = self.inner.tasks.borrow().iter().flatten().cloned().collect();
        tasks.into_iter().for_each(Waker::wake);
        let observers = std::mem::take(&mut *self.inner.observers.borrow_mut());
        observers.into_iter().for_each(|observer| observe(observer, &text));
        text
    }

    fn enter_task(&self, waker: &Waker) -> usize {
        let mut tasks = self.inner.tasks.borrow_mut();
        match self.inner.free.borrow_mut().pop() {
            Some(task) => {
                tasks[task] = Some(waker.clone());
                task
            }
            None => {
                tasks.push(Some(waker.clone()));
                tasks.len() - 1
            }
        }
    }

    fn leave_task(&self, task: usize) {
        let waker = self.inner.tasks.borrow_mut()[task].take();
        self.inner.free.borrow_mut().push(task);
        drop(waker);
    }

    /// Tasks that have not ended.
    pub fn task_count(&self) -> usize {
        self.inner.tasks.borrow().iter().flatten().count()
    }
}

impl Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Domain({})", self.inner.name)
    }
}

fn observe(observer: Box<dyn FnOnce(&str)>, text: &str) {
    let entered = Entered::new(Owner::Call("what follows a panic"));
    let result = catch_unwind(AssertUnwindSafe(|| observer(text)));
    drop(entered);
    if let Err(cause) = result {
        note_call("what follows a panic", cause.as_ref());
    }
}

/// Calls `work` as the core's: a panic in it is not contained, whoever calls. For what the replicas of a reactor share.
pub fn core<T>(work: impl FnOnce() -> T) -> T {
    let _entered = Entered::new(Owner::Core);
    work()
}

/// Calls `work` as a call's: a panic ends the task that it happens in, and tasks that it spawns are calls, too.
pub fn call<T>(what: &'static str, work: impl FnOnce() -> T) -> T {
    install_hook();
    let _entered = Entered::new(Owner::Call(what));
    work()
}

/// Runs `future` as a call's: a panic ends it.
///
/// # Errors
/// Words and place of the panic.
pub async fn contain_call<F: Future>(what: &'static str, future: F) -> Result<F::Output, String> {
    install_hook();
    Call { what, future: Some(future) }.await
}

/// A task as whoever spawns it would have it: its owner is the one that runs now.
pub fn inherit<F: Future>(future: F) -> Task<F> {
    let owner = CURRENT.with_borrow(Owner::clone);
    Task { contained: Contained { owner, task: None, future: Some(future) } }
}

/// From now on a panic of the core ends this process with code 101, after its message and after `last` (which must not
/// panic): a reactor without one of its loops would leave its shards silent, and half a node is worse than none.
pub fn end_process(last: impl Fn() + Send + Sync + 'static) {
    install_hook();
    // A second node in one process ends it in the same way.
    drop(END_PROCESS.set(Box::new(last)));
}

/// Panics that domains and calls of this thread have ended with since the last call, oldest first, 64 at most; kept from the first call on.
pub fn take_contained() -> Vec<String> {
    CONTAINED.with_borrow_mut(|contained| contained.replace(Vec::new()).unwrap_or_default())
}

fn note_contained(text: &str) {
    let place = text.rsplit_once(" at ").map_or("", |(_, place)| place);
    metrics::counter!("ringlog_panics_total", "place" => place.to_owned()).increment(1);
    CONTAINED.with_borrow_mut(|contained| {
        if let Some(contained) = contained.as_mut().filter(|contained| contained.len() < CONTAINED_MAX) {
            contained.push(text.to_owned());
        }
    });
}

fn note_call(what: &'static str, cause: &(dyn Any + Send)) -> String {
    let text = words(cause);
    note_contained(&text);
    tracing::error!(panic = text, "a bug ends {what}; the node goes on");
    text
}

/// What the hook has noted of a panic that was caught.
fn words(cause: &(dyn Any + Send)) -> String {
    LAST.with_borrow_mut(Option::take).unwrap_or_else(|| payload_text(cause).to_owned())
}

/// The words of a panic.
pub fn payload_text(cause: &(dyn Any + Send)) -> &str {
    let text = cause.downcast_ref::<&str>().copied();
    text.or_else(|| cause.downcast_ref::<String>().map(String::as_str)).unwrap_or("it has no words")
}

fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| hook(info, &print)));
    });
}

fn hook(info: &PanicHookInfo<'_>, print: &dyn Fn(&PanicHookInfo<'_>)) {
    // A thread that ends has no owner any more, and none was the core's.
    let is_core = CURRENT.try_with(|owner| owner.try_borrow().is_ok_and(|owner| matches!(*owner, Owner::Core)));
    let end = END_PROCESS.get().filter(|_| is_core.unwrap_or(true));
    if let Some(last) = end {
        last();
        print(info);
        eprintln!("ringlog: this is a bug; the node stops here, and recovers when it is started again");
        std::process::exit(101);
    }
    print(info);
    let place = info.location().map_or_else(String::new, |place: &Location<'_>| format!(" at {place}"));
    let text = format!("{}{place}", payload_text(info.payload()));
    // Only a thread that ends has none.
    let _ = LAST.try_with(|last| last.replace(Some(text)));
}

/// Whose code runs, until it is dropped; then whoever ran before.
struct Entered {
    before: Cell<Owner>,
}

impl Entered {
    fn new(owner: Owner) -> Entered {
        Entered { before: Cell::new(CURRENT.replace(owner)) }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let owner = CURRENT.replace(self.before.take());
        drop(owner);
    }
}

pin_project! {
    /// A future that runs for its owner, and ends with the words and the place of a panic. See `Domain::contain`.
    pub struct Contained<F> {
        owner: Owner,
        task: Option<usize>,
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Contained<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // What it drops is its owner's, too.
            let _entered = Entered::new(this.owner.clone());
            this.future.set(None);
            if let (Some(task), Owner::Domain(domain)) = (this.task.take(), &*this.owner) {
                domain.leave_task(task);
            }
        }
    }
}

impl<F: Future> Future for Contained<F> {
    type Output = Result<F::Output, String>;

    // Woken by what the future waits for, and, as a task of a domain, by the domain's end (`enter_task`).
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.owner {
            Owner::Core => {
                let future = this.future.as_pin_mut().expect("not polled after its end");
                future.poll(context).map(Ok)
            }
            Owner::Call(what) => poll_call(what, this.future, context),
            Owner::Domain(domain) => {
                if let Some(text) = domain.panic() {
                    return poll_stopped(domain, this.future, text);
                }
                poll_caught(&Owner::Domain(domain.clone()), this.future, context)
                    .map(|result| result.map_err(|cause| domain.stop(cause.as_ref())))
            }
        }
    }
}

/// Drops what has stopped.
fn poll_stopped<T, F>(domain: &Domain, mut future: Pin<&mut Option<F>>, text: String) -> Poll<Result<T, String>> {
    let entered = Entered::new(Owner::Domain(domain.clone()));
    let dropped = catch_unwind(AssertUnwindSafe(|| future.set(None)));
    drop(entered);
    if let Err(cause) = dropped {
        domain.stop(cause.as_ref());
    }
    Poll::Ready(Err(text))
}

fn poll_call<F: Future>(
    what: &'static str,
    future: Pin<&mut Option<F>>,
    context: &mut Context<'_>,
) -> Poll<Result<F::Output, String>> {
    poll_caught(&Owner::Call(what), future, context)
        .map(|result| result.map_err(|cause| note_call(what, cause.as_ref())))
}

/// Polls for `owner`; after a panic the future is dropped, and the panic's payload returned.
fn poll_caught<F: Future>(
    owner: &Owner,
    mut future: Pin<&mut Option<F>>,
    context: &mut Context<'_>,
) -> Poll<Result<F::Output, Box<dyn Any + Send>>> {
    let _entered = Entered::new(owner.clone());
    let polled = catch_unwind(AssertUnwindSafe(|| {
        future.as_mut().as_pin_mut().expect("not polled after its end").poll(context)
    }));
    match polled {
        Ok(polled) => polled.map(Ok),
        Err(cause) => {
            let text = LAST.with_borrow_mut(Option::take);
            // The first panic is the news.
            drop(catch_unwind(AssertUnwindSafe(|| future.set(None))));
            LAST.set(text);
            Poll::Ready(Err(cause))
        }
    }
}

pin_project! {
    struct Call<F> {
        what: &'static str,
        #[pin]
        future: Option<F>,
    }
}

impl<F: Future> Future for Call<F> {
    type Output = Result<F::Output, String>;

    // Woken by what the future waits for.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        poll_call(this.what, this.future, context)
    }
}

pin_project! {
    /// A spawned task of an owner (`inherit`). After a panic of the owner's it ends by unwinding with `Ended`, as its runtime
    /// expects of a task without a result.
    pub struct Task<F> {
        #[pin]
        contained: Contained<F>,
    }
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    // Woken by what the future waits for, and by its domain's end.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut contained = self.project().contained;
        let fields = contained.as_mut().project();
        if let (None, Owner::Domain(domain)) = (*fields.task, &*fields.owner)
            && !domain.has_stopped()
        {
            *fields.task = Some(domain.enter_task(context.waker()));
        }
        match contained.poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(value)) => Poll::Ready(value),
            Poll::Ready(Err(_)) => resume_unwind(Box::new(Ended)),
        }
    }
}

#[cfg(test)]
mod tests;
