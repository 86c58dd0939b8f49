//! Answers that wait for clients: what was read for one stays in memory until the client's windows and its socket have let
//! it through, and a client may never do that.
//!
//! All connections of a reactor share [`ANSWER_BYTES_MAX`], and each may have an eighth of what the others have left, so that
//! there is always some for the next one. A call takes room before it has an answer read ([`Answers::take`]); above its
//! connection's share it waits until something goes out. Streams of one connection do not depend on each other: a call of
//! which nothing waits gets a small answer in any case, after [`PATIENCE`].
//!
//! A record is never cut, so that an answer may be larger than its room. Above [`ANSWER_BYTES_LIMIT`] such answers are let go
//! and read again later, and as long as somebody waits there, the connection of which nothing went out for longest is closed.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::rc::Weak;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use crate::budget::Budget;
use crate::env;
use crate::env::Env;
use crate::env::channel::Notified;
use crate::env::channel::Notify;
use crate::frontend::grpc::share::part_of_rest;
use crate::limits::ANSWER_BYTES_LIMIT;
use crate::limits::ANSWER_BYTES_MAX;
use crate::limits::ANSWER_BYTES_MIN;

/// How long a call waits for room before it gets less than it wants; and how often it looks after that.
const PATIENCE: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_secs(1);

/// A connection of which nothing went out for so long is closed when its memory is wanted.
const STALLED_US: u64 = 10_000_000;

/// What a call gets that has waited: a few small records, or one larger one.
const LITTLE_BYTES: usize = 4 << 10;

/// Answers for which there is less room than was wanted and that are read at a time: a whole entry is read for each, which may
/// be far larger.
const SHORT_READS_MAX: usize = 4;

/// The least time from one of them to the next: a mebibyte each, 200 of them in a second take a tenth of a core.
const SHORT_READ_PAUSE_US: u64 = 5_000;

/// What all connections of a reactor hold.
#[derive(Default)]
pub struct Pool {
    /// Tells other threads of it.
    budget: Budget,
    /// The sum over all connections.
    held: Cell<usize>,
    short_reads: Cell<usize>,
    /// When the last of them began.
    short_read_us: Cell<u64>,
    /// One of them is done.
    read: Notify,
    connections: RefCell<BTreeMap<u64, Weak<Connection>>>,
    next_number: Cell<u64>,
    /// When it was last looked for a connection to close.
    looked_us: Cell<u64>,
}

struct Connection {
    pool: Rc<Pool>,
    number: u64,
    held: Cell<usize>,
    /// Something went out, or was the first to wait.
    moved_us: Cell<u64>,
    now_us: fn() -> u64,
    sleep: fn(Duration) -> Pin<Box<dyn Future<Output = ()>>>,
    freed: Notify,
    /// Its memory is wanted: it has to be closed.
    is_evicted: Cell<bool>,
    waker: RefCell<Waker>,
}

/// The answers of one connection, or of one call of it ([`Answers::of_call`]). Clones are the same.
#[derive(Clone)]
pub(super) struct Answers {
    connection: Rc<Connection>,
    /// What this call holds.
    call: Rc<Cell<usize>>,
}

/// Room for an answer, or the answer's bytes; given back when it is dropped.
pub(super) struct Held {
    answers: Answers,
    bytes: usize,
    /// One of the pool's `short_reads`, until the answer is there.
    is_short: bool,
}

/// There is no room for the answer as long as others wait for their clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Answers {
    /// Of a new connection.
    pub(super) fn new<E: Env>(pool: &Rc<Pool>) -> Answers {
        let number = pool.next_number.get();
        pool.next_number.set(number + 1);
        let connection = Rc::new(Connection {
            pool: Rc::clone(pool),
            number,
            held: Cell::new(0),
            moved_us: Cell::new(0),
            now_us: E::monotonic_us,
            sleep: |duration| Box::pin(env::sleep::<E>(duration)),
            freed: Notify::new(),
            is_evicted: Cell::new(false),
            waker: RefCell::new(Waker::noop().clone()),
        });
        pool.connections.borrow_mut().insert(number, Rc::downgrade(&connection));
        Answers { connection, call: Rc::default() }
    }

    /// Those of another call of this connection.
    pub(super) fn of_call(&self) -> Answers {
        Answers { connection: Rc::clone(&self.connection), call: Rc::default() }
    }

    /// Whether the connection has to be closed. Sets who is woken when it has to be later.
    pub(super) fn is_evicted(&self, waker: &Waker) -> bool {
        self.connection.waker.borrow_mut().clone_from(waker);
        self.connection.is_evicted.get()
    }

    /// Room for an answer of up to `wanted` bytes, or less if the connection has no answer waiting.
    pub(super) fn take(&self, wanted: usize) -> Option<Held> {
        let own = self.connection.held.get();
        let share = self.connection.share();
        let granted = if own == 0 { wanted.min(share) } else { wanted };
        let fits = own + granted <= share && self.connection.pool.held.get() + granted <= ANSWER_BYTES_LIMIT;
        match fits {
            true if granted == wanted => Some(self.hold(granted)),
            true => self.short(granted),
            false => None,
        }
    }

    /// Room for less than was wanted, if few answers are read with that.
    fn short(&self, bytes: usize) -> Option<Held> {
        let Pool { short_reads, short_read_us, .. } = &*self.connection.pool;
        let now_us = (self.connection.now_us)();
        if short_reads.get() == SHORT_READS_MAX || now_us.saturating_sub(short_read_us.get()) < SHORT_READ_PAUSE_US {
            return None;
        }
        short_reads.set(short_reads.get() + 1);
        short_read_us.set(now_us);
        let mut held = self.hold(bytes);
        held.is_short = true;
        Some(held)
    }

    /// Waits for room: for `wanted` bytes, or less than that when it takes long.
    pub(super) async fn room(self, wanted: usize) -> Held {
        let pool = &self.connection.pool;
        let mut look = (self.connection.sleep)(PATIENCE);
        let mut is_late = false;
        loop {
            let (freed, read) = (self.freed(), pool.read.notified());
            if let Some(held) = self.take(wanted) {
                return held;
            }
            let gets_little = is_late && self.call.get() == 0;
            if is_late && pool.held.get() + LITTLE_BYTES > ANSWER_BYTES_LIMIT {
                pool.evict((self.connection.now_us)());
            } else if gets_little && let Some(held) = self.short(LITTLE_BYTES.min(wanted)) {
                return held;
            }
            tokio::select! {
                biased;
                () = &mut look => (is_late, look) = (true, (self.connection.sleep)(LOOK)),
                () = freed => {}
                () = read, if gets_little => {}
            }
        }
    }

    /// Holds an answer of `bytes` for which no room was taken.
    ///
    /// # Errors
    /// `NoRoom`: it is above the connection's share.
    pub(super) fn unforeseen(&self, bytes: usize) -> Result<Held, NoRoom> {
        if bytes == 0 {
            return Ok(self.hold(0));
        }
        self.take(bytes).ok_or(NoRoom)?.fit(bytes)
    }

    /// Pending as long as the client leaves too much of the call unread, of which h2 and the socket may have most; woken when
    /// something goes out. `waits` is the call's.
    pub(super) fn poll_crowded(&self, waits: &mut Option<Notified>, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.freed.poll_while(waits, || self.is_crowded(), cx)
    }

    /// Whether the call has more waiting than a little, and its connection no room for it.
    fn is_crowded(&self) -> bool {
        self.call.get() > LITTLE_BYTES && self.connection.held.get() >= self.connection.share()
    }

    /// Resolves when something of the connection's has gone out after this call.
    fn freed(&self) -> Notified {
        self.connection.freed.notified()
    }

    /// Holds `bytes`, whether there is room or not: for what has to be sent.
    pub(super) fn hold(&self, bytes: usize) -> Held {
        let mut held = Held { answers: self.clone(), bytes: 0, is_short: false };
        held.set(bytes);
        held
    }

    /// Resolves after `duration`.
    pub(super) fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        (self.connection.sleep)(duration)
    }

    /// What the connection holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.connection.held.get()
    }
}

impl Held {
    /// How large the answer should be at most.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it what the answer takes.
    ///
    /// # Errors
    /// `NoRoom`: the answer is larger than the room, and too much waits already.
    pub(super) fn fit(mut self, bytes: usize) -> Result<Held, NoRoom> {
        let others = self.answers.connection.pool.held.get() - self.bytes;
        if bytes > self.bytes && others + bytes > ANSWER_BYTES_LIMIT {
            return Err(NoRoom);
        }
        self.end_read();
        self.set(bytes);
        Ok(self)
    }

    /// Nothing is read for it any more.
    fn end_read(&mut self) {
        if std::mem::take(&mut self.is_short) {
            let pool = &self.answers.connection.pool;
            pool.short_reads.set(pool.short_reads.get() - 1);
            pool.read.notify_one();
        }
    }

    /// Makes it `bytes`, the same.
    pub(super) fn set(&mut self, bytes: usize) {
        let Answers { connection, call } = &self.answers;
        let changed = |cell: &Cell<usize>| cell.set(cell.get() - self.bytes + bytes);
        if bytes < self.bytes || connection.held.get() == 0 {
            connection.moved_us.set((connection.now_us)());
        }
        changed(&connection.held);
        changed(&connection.pool.held);
        connection.pool.budget.note_answers(connection.pool.held.get());
        changed(call);
        if bytes < self.bytes {
            connection.freed.notify_all();
        }
        self.bytes = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end_read();
        self.set(0);
    }
}

impl Connection {
    fn share(&self) -> usize {
        let others = self.pool.held.get() - self.held.get();
        part_of_rest(ANSWER_BYTES_MAX, others, ANSWER_BYTES_MIN)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pool.connections.borrow_mut().remove(&self.number);
    }
}

impl Pool {
    /// Of the reactor that has this budget.
    pub fn new(budget: Budget) -> Pool {
        Pool { budget, ..Pool::default() }
    }

    /// Has the connection closed of which nothing went out for longest, if that is long.
    fn evict(&self, now_us: u64) {
        // Thousands may ask.
        if now_us.saturating_sub(self.looked_us.get()) < LOOK.as_micros() as u64 / 4 {
            return;
        }
        self.looked_us.set(now_us);
        let connections = self.connections.borrow();
        let holding = connections.values().filter_map(Weak::upgrade).filter(|connection| connection.held.get() > 0);
        let Some(longest) = holding.min_by_key(|connection| (connection.is_evicted.get(), connection.moved_us.get()))
        else {
            return;
        };
        if now_us.saturating_sub(longest.moved_us.get()) > STALLED_US {
            longest.is_evicted.set(true);
            longest.waker.borrow().wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests;
