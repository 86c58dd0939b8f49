//! Answers that wait for clients: what was read for one stays in memory until the client's windows and its socket have let
//! it through, and a client may never do that.
//!
//! All connections of a reactor share [`ANSWER_BYTES_MAX`], and each may have an eighth of what the others have left, so that
//! there is always some for the next one. A call takes room before it has an answer read ([`Answers::take`]); above its
//! connection's share it waits until something goes out. Streams of one connection do not depend on each other: a call of
//! which nothing waits gets a small answer in any case, after [`PATIENCE`].
//!
//! What has waited for long is its client's share for as long as that does not read, and does not count for the others: clients
//! that pause leave those that read what they had.
//!
//! A record is never cut, so that an answer may be larger than its room. Above [`ANSWER_BYTES_LIMIT`] such answers are let go
//! and read again later, and as long as somebody waits there, the connection is closed that holds most of what has waited for long.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use crate::budget::Budget;
use crate::env;
use crate::env::Env;
use crate::env::channel::Notified;
use crate::env::channel::Notify;
use crate::frontend::grpc::holders::Holder;
use crate::frontend::grpc::holders::Holders;
use crate::frontend::grpc::holders::Since;
use crate::frontend::grpc::share::part_of_rest;
use crate::limits::ANSWER_BYTES_LIMIT;
use crate::limits::ANSWER_BYTES_MAX;
use crate::limits::ANSWER_BYTES_MIN;

/// How long a call waits for room before it gets less than it wants; and how often it looks after that.
const PATIENCE: Duration = Duration::from_millis(100);
const LOOK: Duration = Duration::from_secs(1);

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
    /// Somebody waits for the end of the pause after it, and is the next.
    pauses: Cell<bool>,
    /// One of them is done, or the one who has waited for the end of the pause has had his turn.
    read: Notify,
    holders: Rc<Holders>,
}

struct Connection {
    pool: Rc<Pool>,
    holder: Holder,
    sleep: fn(Duration) -> Pin<Box<dyn Future<Output = ()>>>,
    freed: Notify,
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
    since: Since,
    /// One of the pool's `short_reads`, until the answer is there.
    is_short: bool,
}

/// Why a call does not get room at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// Too much waits.
    Full,
    /// There is less than was wanted, and enough answers are read with that.
    Short,
}

/// There is no room for the answer as long as others wait for their clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Answers {
    /// Of a new connection.
    pub(super) fn new<E: Env>(pool: &Rc<Pool>) -> Answers {
        let connection = Connection {
            pool: Rc::clone(pool),
            holder: Holder::new::<E>(&pool.holders),
            sleep: |duration| Box::pin(env::sleep::<E>(duration)),
            freed: Notify::new(),
        };
        Answers { connection: Rc::new(connection), call: Rc::default() }
    }

    /// Those of another call of this connection.
    pub(super) fn of_call(&self) -> Answers {
        Answers { connection: Rc::clone(&self.connection), call: Rc::default() }
    }

    /// Whether the connection has to be closed. Sets who is woken when it has to be later.
    pub(super) fn is_evicted(&self, waker: &Waker) -> bool {
        self.connection.holder.is_evicted(waker)
    }

    /// Room for an answer of up to `wanted` bytes, or less if the connection has no answer waiting.
    pub(super) fn take(&self, wanted: usize) -> Option<Held> {
        self.grant(wanted).ok()
    }

    fn grant(&self, wanted: usize) -> Result<Held, Refused> {
        let own = self.connection.holder.held();
        let share = self.connection.share();
        let granted = if own == 0 { wanted.min(share) } else { wanted };
        let fits = own + granted <= share && self.connection.pool.held.get() + granted <= ANSWER_BYTES_LIMIT;
        match fits {
            true if granted == wanted => Ok(self.hold(granted)),
            true => self.short(granted),
            false => Err(Refused::Full),
        }
    }

    /// Room for less than was wanted, if few answers are read with that.
    fn short(&self, bytes: usize) -> Result<Held, Refused> {
        let Pool { short_reads, short_read_us, pauses, .. } = &*self.connection.pool;
        let now_us = self.connection.holder.now_us();
        let too_soon = pauses.get() || now_us.saturating_sub(short_read_us.get()) < SHORT_READ_PAUSE_US;
        if short_reads.get() == SHORT_READS_MAX || too_soon {
            return Err(Refused::Short);
        }
        short_reads.set(short_reads.get() + 1);
        short_read_us.set(now_us);
        let mut held = self.hold(bytes);
        held.is_short = true;
        Ok(held)
    }

    /// Waits for room: for `wanted` bytes, or less than that when it takes long.
    pub(super) async fn room(self, wanted: usize) -> Held {
        let pool = &self.connection.pool;
        let mut look = (self.connection.sleep)(PATIENCE);
        let mut is_late = false;
        loop {
            let freed = self.freed();
            let mut granted = self.grant(wanted);
            if is_late && granted.is_err() {
                if pool.held.get() + wanted.min(self.connection.share()) > ANSWER_BYTES_LIMIT {
                    self.connection.holder.evict(0);
                }
                if self.call.get() == 0 && pool.held.get() + LITTLE_BYTES <= ANSWER_BYTES_LIMIT {
                    granted = self.short(LITTLE_BYTES.min(wanted));
                }
            }
            let refused = match granted {
                Ok(held) => return held,
                Err(refused) => refused,
            };
            tokio::select! {
                biased;
                () = &mut look => (is_late, look) = (true, (self.connection.sleep)(LOOK)),
                () = freed => {}
                () = self.short_turn(), if refused == Refused::Short => {}
            }
        }
    }

    /// The same after an answer for which there was too little: not before something goes out, or a while later.
    pub(super) async fn room_later(self, wanted: usize) -> Held {
        tokio::select! {
            biased;
            () = self.freed() => {}
            () = (self.connection.sleep)(PATIENCE) => {}
        }
        self.room(wanted).await
    }

    /// Resolves when there may be a short read, for one of those who wait at a time.
    async fn short_turn(&self) {
        let pool = &self.connection.pool;
        if pool.short_reads.get() == SHORT_READS_MAX || pool.pauses.get() {
            return pool.read.notified().await;
        }
        let _pausing = Pausing::begin(pool);
        let passed_us = self.connection.holder.now_us().saturating_sub(pool.short_read_us.get());
        (self.connection.sleep)(Duration::from_micros(SHORT_READ_PAUSE_US.saturating_sub(passed_us))).await;
    }

    /// Holds an answer of `bytes` for which no room was taken. It is there already: it is not kept waiting as one that is to be read.
    ///
    /// # Errors
    /// `NoRoom`: it is above the connection's share, of which something waits already, or far too much waits.
    pub(super) fn unforeseen(&self, bytes: usize) -> Result<Held, NoRoom> {
        let own = self.connection.holder.held();
        if own > 0 && bytes > 0 && own + bytes > self.connection.share() {
            return Err(NoRoom);
        }
        self.hold(0).fit(bytes)
    }

    /// Pending as long as the client leaves too much of the call unread, of which h2 and the socket may have most; woken when
    /// something goes out. `waits` is the call's.
    pub(super) fn poll_crowded(&self, waits: &mut Option<Notified>, cx: &mut Context<'_>) -> Poll<()> {
        self.connection.freed.poll_while(waits, || self.is_crowded(), cx)
    }

    /// Whether the call has more waiting than a little, and its connection no room for it.
    fn is_crowded(&self) -> bool {
        self.call.get() > LITTLE_BYTES && self.connection.holder.held() >= self.connection.share()
    }

    /// Resolves when something of the connection's has gone out after this call.
    fn freed(&self) -> Notified {
        self.connection.freed.notified()
    }

    /// Holds `bytes`, whether there is room or not: for what has to be sent.
    pub(super) fn hold(&self, bytes: usize) -> Held {
        let mut held = Held { answers: self.clone(), bytes: 0, since: Since::default(), is_short: false };
        held.set(bytes);
        held
    }

    /// Resolves after `duration`.
    pub(super) fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()>>> {
        (self.connection.sleep)(duration)
    }

    /// Those of another connection of the reactor.
    #[cfg(test)]
    pub(super) fn beside<E: Env>(&self) -> Answers {
        Answers::new::<E>(&self.connection.pool)
    }

    /// Has the connection closed.
    #[cfg(test)]
    pub(super) fn evict(&self) {
        self.connection.holder.evict_this();
    }

    /// What the connection holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.connection.holder.held()
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
            self.answers.connection.holder.evict(0);
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
        if bytes == self.bytes {
            return;
        }
        let Answers { connection, call } = &self.answers;
        let changed = |cell: &Cell<usize>| cell.set(cell.get() - self.bytes + bytes);
        connection.holder.change(&mut self.since, self.bytes, bytes);
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
        part_of_rest(ANSWER_BYTES_MAX, self.holder.young_of_others(), ANSWER_BYTES_MIN)
    }
}

/// Waits for the end of the pause after a short read; then, or when it is given up, another one may.
struct Pausing<'a>(&'a Pool);

impl Pausing<'_> {
    fn begin(pool: &Pool) -> Pausing<'_> {
        pool.pauses.set(true);
        Pausing(pool)
    }
}

impl Drop for Pausing<'_> {
    fn drop(&mut self) {
        self.0.pauses.set(false);
        self.0.read.notify_one();
    }
}

impl Pool {
    /// Of the reactor that has this budget.
    pub fn new(budget: Budget) -> Pool {
        Pool { budget, ..Pool::default() }
    }
}

#[cfg(test)]
mod tests;
