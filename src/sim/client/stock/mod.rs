//! Stock gRPC clients: h2's own client over a simulated connection to a node's gRPC port, with the habits of clients in the
//! field. Some read eagerly, some slowly, some not at all until they open their windows widely, once; they send many
//! tiny messages on many streams, cancel, set deadlines, send PINGs, end one half or break off.
//!
//! They write the same history as the other clients. Besides, these are problems:
//! - a stream that makes no progress for a while (`STILL`) although no fault is left and its client reads: it hangs;
//! - a record that is read for a client whose windows were never open, whatever memory is charged for that (`cluster::handed`);
//! - a connection error, or a stream error but CANCEL, from the node: nothing that these clients do is illegal;
//! - a connection that the client's h2 closes: then the node did something illegal.
//!
//! h2 forgets reset streams by the machine's clock: the clients have it never do that (their number is bounded).

mod beside;
mod call;
mod consume;
mod habit;
mod produce;

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use h2::{Ping, PingPong, Reason, client::SendRequest};

pub use self::habit::StockLoad;
use self::habit::{Habit, Method};
use super::{Clients, Connection};
use crate::{
    env::{self, channel::Notify},
    sim::{
        SimEnv, World,
        executor::JoinHandle,
        random,
        socket::{self, Breaker, SimSocket},
    },
};

/// How long a stream may take to end once nothing is broken any more and its client reads.
const PROMPT: Duration = Duration::from_secs(60);

/// It may take longer as long as it goes on: one with small windows far away is slow. Nothing at all for so long is none of that.
const STILL: Duration = Duration::from_secs(10);

/// How often a client looks whether it is to come to an end.
const LOOK: Duration = Duration::from_millis(10);

/// The window of a client that has opened it widely.
const WIDE_BYTES: u32 = 16 << 20;

type Requests = SendRequest<Bytes>;

/// Connects, does what its habits are, and again, until the clients are stopped.
pub(super) async fn run(clients: &Rc<Clients>, number: u64, load: StockLoad, dice: &Cell<u64>) {
    let messages_left = Cell::new(load.messages_total);
    let mut sessions = 0;
    while !clients.stopped.get() {
        clients.pause(dice).await;
        let Some(door) = clients.connect(dice) else { continue };
        sessions += 1;
        let habit = Habit::draw(load, &messages_left, dice);
        Session::run(clients, format!("g{number}-{sessions}"), &door, habit, dice).await;
    }
}

/// A client that means well beside one that does not, until `is_over`.
pub(super) fn beside(
    clients: &Rc<Clients>,
    name: String,
    door: &Connection,
    is_over: Rc<Cell<bool>>,
    seed: u64,
) -> impl Future<Output = ()> + use<> {
    let dice = Cell::new(seed);
    let (session, near) = Session::begin(clients, name, door, Habit::plain(), &dice);
    async move {
        let Some((requests, driver)) = session.connect(near).await else {
            return session.suffered("it was not let in");
        };
        beside::run(Rc::clone(&session), requests, is_over, dice).await;
        // Also what is left of a call that was given up.
        session.breaker.reset();
        let _ended = driver.await;
    }
}

/// One connection of a client, and its calls.
struct Session {
    clients: Rc<Clients>,
    name: String,
    /// Bytes of records that were read for it.
    handed: Rc<Cell<u64>>,
    habit: Habit,
    /// The windows are wide, and everything is read.
    opened: Cell<bool>,
    opening: Notify,
    calls: RefCell<Vec<Rc<CallState>>>,
    breaker: Breaker,
    /// An illegal end was found: all its streams say the same.
    judged: Cell<bool>,
}

/// How far a call is.
struct CallState {
    method: Method,
    sent: Cell<usize>,
    answered: Cell<usize>,
    half_closed: Cell<bool>,
    ended: Cell<bool>,
}

impl CallState {
    fn new(method: Method) -> CallState {
        let (sent, answered) = (Cell::new(0), Cell::new(0));
        CallState { method, sent, answered, half_closed: Cell::new(false), ended: Cell::new(false) }
    }

    /// Requests without an answer.
    fn owed(&self) -> usize {
        self.sent.get().saturating_sub(self.answered.get())
    }
}

impl Session {
    async fn run(clients: &Rc<Clients>, name: String, door: &Connection, habit: Habit, dice: &Cell<u64>) {
        let (session, near) = Session::begin(clients, name, door, habit, dice);
        let world = World::current();
        let opener = world.spawn(Rc::clone(&session).open_in_time());
        if let Some((requests, driver)) = session.connect(near).await {
            let calls: Vec<_> = (0..habit.calls)
                .map(|number| {
                    let call_dice = Cell::new(random(dice));
                    world.spawn(call::run(Rc::clone(&session), requests.clone(), number, call_dice))
                })
                .collect();
            drop(requests);
            session.see_to_the_end(calls, driver).await;
        }
        session.open();
        // The opener has seen it, or does at its next look.
        let _ended = opener.await;
        if session.handed.get() > 0 {
            session.met("records read", "connection");
        }
    }

    /// A connection, and the client's end of it.
    fn begin(
        clients: &Rc<Clients>,
        name: String,
        door: &Connection,
        habit: Habit,
        dice: &Cell<u64>,
    ) -> (Rc<Session>, SimSocket) {
        let (near, far) = socket::pair(habit.wire, random(dice));
        let handed = door.process.accept(door.turn, far);
        let session = Session {
            clients: Rc::clone(clients),
            name,
            handed,
            habit,
            opened: Cell::new(false),
            opening: Notify::new(),
            calls: RefCell::default(),
            breaker: near.breaker(),
            judged: Cell::new(false),
        };
        (Rc::new(session), near)
    }

    /// The HTTP/2 connection, and the task that drives it.
    async fn connect(self: &Rc<Self>, socket: SimSocket) -> Option<(Requests, JoinHandle<()>)> {
        let mut builder = h2::client::Builder::new();
        builder.reset_stream_duration(Duration::MAX);
        if let Some(bytes) = self.habit.stream_window {
            builder.initial_window_size(bytes);
        }
        if let Some(bytes) = self.habit.connection_window {
            builder.initial_connection_window_size(bytes);
        }
        match builder.handshake::<_, Bytes>(socket).await {
            Ok((requests, connection)) => Some((requests, World::current().spawn(Rc::clone(self).drive(connection)))),
            Err(error) => {
                self.judge(&error);
                None
            }
        }
    }

    /// Runs the connection until it ends.
    async fn drive(self: Rc<Self>, mut connection: h2::client::Connection<SimSocket, Bytes>) {
        let pings = connection.ping_pong().expect("asked for once");
        let mut pinging = pin!(self.ping(pings));
        let mut opening = pin!(self.until_open());
        let mut wants_wide = false;
        let mut is_wide = self.habit.is_eager();
        let result = std::future::poll_fn(|cx| {
            let _never = pinging.as_mut().poll(cx);
            wants_wide = wants_wide || (!is_wide && opening.as_mut().poll(cx).is_ready());
            loop {
                if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                    return Poll::Ready(result);
                }
                // SETTINGS wait for the acknowledgement of those before; its arrival polls this again.
                if is_wide || !wants_wide || connection.set_initial_window_size(WIDE_BYTES).is_err() {
                    return Poll::Pending;
                }
                connection.set_target_window_size(WIDE_BYTES);
                is_wide = true;
                self.note_opening();
            }
        })
        .await;
        if let Err(error) = result {
            self.judge(&error);
        }
    }

    /// PINGs at its intervals, while they are answered. Never ends.
    async fn ping(&self, mut pings: PingPong) {
        while let Some(interval) = self.habit.ping_interval {
            env::sleep::<SimEnv>(interval).await;
            if self.calls.borrow().iter().any(|call| !call.ended.get()) {
                self.met("ping", "open stream");
            }
            if pings.ping(Ping::opaque()).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    }

    /// Waits for the calls, but not for one that hangs; then for the connection.
    async fn see_to_the_end(self: &Rc<Self>, calls: Vec<JoinHandle<()>>, driver: JoinHandle<()>) {
        let ended = async {
            for call in calls {
                let _ended = call.await;
            }
            driver.await
        };
        let mut ended = pin!(ended);
        if let Some(after) = self.habit.break_off {
            if let Either::Left(_) = select(ended.as_mut(), pin!(env::sleep::<SimEnv>(after))).await {
                return;
            }
            self.break_off();
        }
        if let Either::Left(_) = select(ended.as_mut(), pin!(self.clients.long_stopped())).await {
            return;
        }
        loop {
            let before = self.progress();
            if let Either::Left(_) = select(ended.as_mut(), pin!(env::sleep::<SimEnv>(STILL))).await {
                return;
            }
            if self.progress() == before {
                break;
            }
        }
        let mut hangs = false;
        for (number, call) in self.calls.borrow().iter().enumerate().filter(|(_, call)| !call.ended.get()) {
            hangs = true;
            self.problem(&format!(
                "stream {number} ({:?}) hangs: {} messages sent, {} answered, half-closed: {}; {:?}",
                call.method,
                call.sent.get(),
                call.answered.get(),
                call.half_closed.get(),
                self.habit
            ));
        }
        if !hangs {
            self.problem("all streams have ended, and the connection has not");
        }
        self.breaker.reset();
        let _ended = ended.await;
    }

    /// What its calls have come to: answers, and ends.
    fn progress(&self) -> Vec<(usize, bool)> {
        self.calls.borrow().iter().map(|call| (call.answered.get(), call.ended.get())).collect()
    }

    /// Breaks the connection off, with all that is on its way.
    fn break_off(&self) {
        for call in self.calls.borrow().iter().filter(|call| !call.ended.get()) {
            self.met("reset", if call.half_closed.get() { "half-closed stream" } else { "open stream" });
            if call.owed() > 0 {
                self.met("reset", "produce in flight");
            }
        }
        self.breaker.reset();
    }

    async fn open_in_time(self: Rc<Self>) {
        let from_us = World::current().now_us();
        let Some(after) = self.habit.opens_after else { return };
        let is_time = || World::current().now_us() - from_us >= after.as_micros() as u64;
        while !self.opened.get() && !is_time() && !self.clients.stopped.get() {
            env::sleep::<SimEnv>(LOOK).await;
        }
        self.open();
    }

    fn open(&self) {
        if !self.opened.replace(true) && self.habit.stream_window == Some(0) {
            self.clients.judge_closed(&self.name, self.handed.get());
        }
        self.opening.notify_all();
    }

    async fn until_open(&self) {
        loop {
            let opening = self.opening.notified();
            if self.opened.get() {
                return;
            }
            opening.await;
        }
    }

    /// What a window meets that is opened widely.
    fn note_opening(&self) {
        for call in self.calls.borrow().iter().filter(|call| !call.ended.get()) {
            self.met("window opened late", call.method.name());
            if call.owed() > 0 {
                self.met("window opened late", "acks owed");
            }
            if call.owed() > crate::limits::STREAM_PRODUCES_IN_FLIGHT_MAX {
                self.met("window opened late", "more owed than may be in flight");
            }
        }
    }

    /// Whether an error is one that a legal client may get from a legal server.
    fn judge(&self, error: &h2::Error) {
        let reason = error.reason().unwrap_or(Reason::NO_ERROR);
        let fine = match reason {
            Reason::NO_ERROR => true,
            Reason::CANCEL | Reason::REFUSED_STREAM => error.is_reset(),
            _ => !error.is_remote() && !error.is_library(),
        };
        if error.is_go_away() && error.is_remote() && reason == Reason::NO_ERROR {
            self.met("goaway", "open stream");
        }
        if !fine && !self.judged.replace(error.is_go_away()) {
            let who = if error.is_remote() { "the node says" } else { "the client's h2 says of the node" };
            self.problem(&format!("{who}: {error}; {:?}", self.habit));
        }
    }

    fn met(&self, fault: &str, path: &str) {
        self.clients.met.borrow_mut().hit(fault, path);
    }

    /// What befell a client beside an attack, where nothing else happens to its node.
    fn suffered(&self, text: &str) {
        if self.clients.load.undisturbed {
            self.problem(&format!("beside an attack: {text}"));
        }
    }

    fn problem(&self, text: &str) {
        let text = format!("connection {}: {text}", self.name);
        World::current().note(&text);
        self.clients.problems.borrow_mut().push(text);
    }
}

impl Clients {
    /// Until the clients have been stopped for so long that everything must have come to its end.
    async fn long_stopped(&self) {
        while !self.stopped.get() {
            env::sleep::<SimEnv>(LOOK * 10).await;
        }
        env::sleep::<SimEnv>(PROMPT).await;
    }
}
