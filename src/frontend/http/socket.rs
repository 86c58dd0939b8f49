//! HTTP's sockets, bounded. When all places are taken, a new connection takes that of one that nobody works for: of one that has
//! not sent a whole request for long, then of one that has had its answer, then of one that waits, for the rest of its request, for
//! records or for its first request, the longest first. Addresses that hold many places lose theirs before others do, and take none
//! from those that hold fewer. Whose request has come in part or whole is told when its place is taken, the others are just closed.
//!
//! While requests are worked on for all of them, a reserve is left, on which only health is asked: so a probe gets in whatever
//! others do. Who is slow to send a header or to take an answer, or silent for too long, is closed.

#![allow(clippy::disallowed_methods, reason = "the ops thread is outside the simulator; its timers are tokio's")]

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    time::{Instant, Sleep},
};

use super::give_core_away;
use crate::{
    frontend::grpc::socket::cut,
    limits::{self, CONSUME_WAIT_MAX},
    reactor::{descriptors::Descriptors, listen::pause_after, node::Node},
};

/// Bounds of the sockets; other ones only in tests.
#[derive(Clone, Copy, Debug)]
pub struct SocketLimits {
    /// Open connections.
    pub connections: usize,
    /// More of them, for health alone.
    pub reserve: usize,
    /// A silent connection is closed after this: longer than the longest wait of a consume.
    pub idle: Duration,
    /// From the first byte of a header to its last.
    pub header: Duration,
    /// How long the client may take nothing of an answer.
    pub answer: Duration,
    /// A connection younger than this is not yet slow to send its first request.
    pub young: Duration,
}

impl Default for SocketLimits {
    fn default() -> SocketLimits {
        SocketLimits {
            connections: limits::HTTP_CONNECTIONS_MAX,
            reserve: 64,
            idle: CONSUME_WAIT_MAX.saturating_add(Duration::from_secs(30)),
            header: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            young: Duration::from_secs(1),
        }
    }
}

/// Most bytes of one write, 0.1 ms. All that a socket takes at once, megabytes, would be one system call of milliseconds, and a
/// reactor that wants this core would wait for its end: see `give_way`.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Most slices of one write.
const SLICES_MAX: usize = 64;

/// Connections whose place was taken and whose task has not ended yet; above it new ones are closed at once. More than
/// tokio lets one task accept before others run.
const ENDING_MAX: usize = 256;

/// An address with more than this part of all places is one that holds many.
const MANY_PART: usize = 16;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No whole request has come yet.
    Fresh,
    /// A request is worked on.
    Working,
    /// A request waits for its own rest, for records, or for somebody who serves its shard.
    Waiting,
    /// All requests that have come are answered; the client may still be taking the last answer.
    Idle,
}

/// What a connection has of its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Held,
    /// It was taken; what it waited for is answered yet, as far as its socket takes that at once.
    Given,
    /// It was taken: its next read or write fails.
    Lost,
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    since: Instant,
    place: Place,
    /// It is one of the reserve.
    reserved: bool,
    /// Who holds it.
    holder: IpAddr,
    /// Of the task that reads and writes, set when it has to wait for its socket.
    waker: Option<Waker>,
    /// Dropped when the place of one that is waiting is taken.
    wait: Option<oneshot::Sender<()>>,
}

/// All connections.
#[derive(Debug)]
struct Table {
    limits: SocketLimits,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// Those that hold a place, and those that hold one of the reserve.
    live: usize,
    in_reserve: usize,
    /// Both by holder; none has 0.
    held: BTreeMap<IpAddr, usize>,
    entries: BTreeMap<u64, Entry>,
}

/// A connection that wants a place.
#[derive(Clone, Copy, Debug)]
struct Newcomer {
    holder: IpAddr,
    now: Instant,
    /// Who holds more places holds many.
    many: usize,
    /// As in `SocketLimits`.
    young: Duration,
}

impl Inner {
    /// Whose place it takes, of the reserve or of the others.
    fn victim(&self, newcomer: &Newcomer, reserved: bool) -> Option<u64> {
        let holders: Vec<_> = self.held.iter().filter(|(_, held)| **held > newcomer.many).collect();
        let held = |holder| holders.iter().find(|(other, _)| **other == holder).map_or(0, |(_, held)| **held);
        let least = held(newcomer.holder);
        let rank = |entry: &Entry| match entry.phase {
            Phase::Fresh if newcomer.now.duration_since(entry.since) >= newcomer.young => Some(0),
            Phase::Idle => Some(1),
            // Whoever has come last is not the first to go: it is to have its turn.
            Phase::Fresh | Phase::Waiting => Some(2),
            Phase::Working => None,
        };
        let holds = |entry: &Entry| entry.place == Place::Held && entry.reserved == reserved;
        let holding = self.entries.iter().filter(|(_, entry)| holds(entry));
        let ranked = holding.filter_map(|(number, entry)| {
            let held = held(entry.holder);
            (held >= least).then_some((Reverse(held), rank(entry)?, entry.since, *number))
        });
        ranked.min().map(|(_, _, _, number)| number)
    }

    /// Has room for it among so many places, of the reserve or of the others. False if nobody makes room.
    fn make_room(&mut self, newcomer: &Newcomer, places: usize, reserved: bool) -> bool {
        while *self.live(reserved) >= places {
            // More than one where there are fewer places than before.
            let Some(victim) = self.victim(newcomer, reserved) else { return false };
            self.take(victim);
        }
        true
    }

    fn live(&mut self, reserved: bool) -> &mut usize {
        if reserved { &mut self.in_reserve } else { &mut self.live }
    }

    fn add(&mut self, newcomer: &Newcomer, reserved: bool) -> u64 {
        let Newcomer { holder, now: since, .. } = *newcomer;
        let number = self.next;
        self.next += 1;
        *self.live(reserved) += 1;
        *self.held.entry(holder).or_default() += 1;
        let entry = Entry { phase: Phase::Fresh, since, place: Place::Held, reserved, holder, waker: None, wait: None };
        self.entries.insert(number, entry);
        number
    }

    /// Takes its place away. Its task ends, at once or when it has answered.
    fn take(&mut self, number: u64) {
        match self.entries.get(&number).map(|entry| entry.phase) {
            Some(Phase::Waiting) => self.leave_with(number, Place::Given),
            Some(Phase::Fresh | Phase::Working | Phase::Idle) => self.leave_with(number, Place::Lost),
            None => {}
        }
    }

    /// It has no more of its place than this.
    fn leave_with(&mut self, number: u64, place: Place) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let before = std::mem::replace(&mut entry.place, place);
        assert!(before == Place::Held || place == Place::Lost, "what is taken does not come back");
        entry.wait = None;
        if place == Place::Lost {
            entry.waker.take().into_iter().for_each(Waker::wake);
        }
        if before == Place::Held {
            let (holder, reserved) = (entry.holder, entry.reserved);
            *self.live(reserved) -= 1;
            let held = self.held.get_mut(&holder).expect("it counts each that holds its place");
            *held -= 1;
            if *held == 0 {
                self.held.remove(&holder);
            }
        }
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection of `holder`, of `places` that the process has; `None`: it is to be closed at once.
    fn enter(self: &Arc<Self>, holder: IpAddr, now: Instant, places: usize) -> Option<Connection> {
        let mut inner = self.lock();
        let reserve = self.limits.reserve.min(places / 4);
        let connections = self.limits.connections.min(places - reserve);
        if inner.entries.len() >= connections + reserve + ENDING_MAX.min(places / 4) {
            return None;
        }
        let newcomer = self.newcomer(holder, now, connections);
        let reserved = !inner.make_room(&newcomer, connections, false);
        if reserved && !inner.make_room(&newcomer, reserve, true) {
            return None;
        }
        let number = inner.add(&newcomer, reserved);
        Some(Connection { table: Arc::clone(self), number, reserved })
    }

    fn newcomer(&self, holder: IpAddr, now: Instant, connections: usize) -> Newcomer {
        Newcomer { holder, now, many: connections / MANY_PART, young: self.limits.young }
    }

    /// Takes the places of as many connections as are too many, of `places` that the process has. Whether there are more still:
    /// requests are answered on them.
    fn make_way(&self, now: Instant, places: usize) -> bool {
        let mut inner = self.lock();
        // What comes instead is no connection, and holds no places.
        let newcomer = self.newcomer(Ipv4Addr::UNSPECIFIED.into(), now, places);
        while inner.live + inner.in_reserve > places {
            let victim = [false, true].into_iter().find_map(|reserved| inner.victim(&newcomer, reserved));
            let Some(victim) = victim else { return true };
            inner.take(victim);
        }
        false
    }
}

/// A connection's place, as its requests know it.
#[derive(Clone, Debug)]
pub struct Connection {
    table: Arc<Table>,
    number: u64,
    reserved: bool,
}

impl Connection {
    /// Whether only health is answered here.
    pub fn is_reserved(&self) -> bool {
        self.reserved
    }

    /// Whether it is to be closed after the answer: others need its place.
    pub fn is_to_close(&self) -> bool {
        self.reserved || self.is_given()
    }

    /// A request is worked on from now on: nobody takes this place.
    pub fn begin(&self) {
        self.enter(Phase::Working, None);
    }

    /// Waits for what is not this node's work. `None`: somebody has taken this place meanwhile; there is time for an answer, and for
    /// nothing else.
    pub async fn waits<T>(&self, awaited: impl Future<Output = T>) -> Option<T> {
        let (wait, taken) = oneshot::channel();
        self.enter(Phase::Waiting, Some(wait));
        let awaited = tokio::select! {
            biased;
            awaited = awaited => Some(awaited),
            _ = taken => None,
        };
        self.begin();
        awaited
    }

    /// The answer is there, and only the client has to take it.
    pub fn done(&self) {
        self.enter(Phase::Idle, None);
    }

    /// Closes the connection, whatever it is doing.
    pub fn end(&self) {
        self.table.lock().leave_with(self.number, Place::Lost);
    }

    fn enter(&self, phase: Phase, wait: Option<oneshot::Sender<()>>) {
        if let Some(entry) = self.table.lock().entries.get_mut(&self.number) {
            // Who has lost its place before waits for nothing.
            let wait = wait.filter(|_| entry.place == Place::Held);
            (entry.phase, entry.since, entry.wait) = (phase, Instant::now(), wait);
        }
    }

    fn leave(&self) {
        let mut inner = self.table.lock();
        inner.leave_with(self.number, Place::Lost);
        inner.entries.remove(&self.number);
    }

    fn is_given(&self) -> bool {
        self.table.lock().entries.get(&self.number).is_some_and(|entry| entry.place == Place::Given)
    }

    /// The request that it waits for: `None` while one is answered. `waker` is woken when the place is taken.
    fn waits_since(&self, waker: &Waker) -> io::Result<Option<Instant>> {
        let mut inner = self.table.lock();
        match inner.entries.get_mut(&self.number) {
            Some(entry) if entry.place != Place::Lost => {
                entry.waker = Some(waker.clone());
                Ok(Some(entry.since).filter(|_| matches!(entry.phase, Phase::Fresh | Phase::Idle)))
            }
            _ => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// The listener.
pub struct Sockets {
    listener: TcpListener,
    table: Arc<Table>,
    node: Arc<Node>,
    grows: watch::Receiver<()>,
    descriptors: Descriptors,
}

impl Sockets {
    /// Accepts from `listener` what the process has descriptors for.
    pub fn new(listener: TcpListener, limits: SocketLimits, node: Arc<Node>) -> Sockets {
        let descriptors = Descriptors::of_process(node.reactors.len());
        let (table, grows) = (Arc::new(Table { limits, inner: Mutex::default() }), node.grows());
        Sockets { listener, table, node, grows, descriptors }
    }

    /// As many as there are descriptors for.
    fn places(&self) -> usize {
        self.descriptors.http_max(self.node.replica_count())
    }
}

impl axum::serve::Listener for Sockets {
    type Io = Socket;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Socket, SocketAddr) {
        loop {
            let is_crowded = self.table.make_way(Instant::now(), self.places());
            let accepted = tokio::select! {
                biased;
                accepted = self.listener.accept() => accepted,
                Ok(()) = self.grows.changed() => continue,
                () = tokio::time::sleep(limits::SEAT_LOOK), if is_crowded => continue,
            };
            match accepted {
                Ok((stream, address)) => {
                    if stream.set_nodelay(true).is_ok()
                        && let Some(connection) = self.table.enter(holder(address), Instant::now(), self.places())
                    {
                        return (Socket::new(stream, connection), address);
                    }
                }
                Err(error) => pause_after(&error).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Who holds the place of a connection from this address: of IPv6 its network, in which one host has all addresses.
fn holder(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}

/// What a request knows of its connection.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The address that it was made to.
    pub local: IpAddr,
    /// Its place.
    pub connection: Connection,
}

impl Connected<IncomingStream<'_, Sockets>> for Accepted {
    fn connect_info(stream: IncomingStream<'_, Sockets>) -> Accepted {
        let socket = stream.io();
        // A connection that is gone has no address any more, and nobody hears its answer.
        let local = socket.stream.local_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |address| address.ip());
        Accepted { local, connection: socket.connection.clone() }
    }
}

/// A connection with its timer.
pub struct Socket {
    stream: TcpStream,
    connection: Connection,
    timer: Pin<Box<Sleep>>,
    /// Bytes last went either way.
    moved: Instant,
    /// When a header began to come in, and since when it was waited for: another wait is another header.
    header: Option<(Instant, Instant)>,
    /// The kernel has taken nothing since.
    unsent: Option<Instant>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.connection.leave();
    }
}

#[allow(clippy::disallowed_methods, reason = "sockets are the real world's; nothing to simulate")]
impl Socket {
    fn new(stream: TcpStream, connection: Connection) -> Socket {
        let moved = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(moved + connection.table.limits.idle));
        Socket { stream, connection, timer, moved, header: None, unsent: None }
    }

    /// What is left to do when the kernel lets the task wait: it is woken by the socket, by the timer, which is set to when
    /// this connection is due, or by whoever takes its place.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let waits_since = match self.connection.waits_since(context.waker()) {
            Ok(waits_since) => waits_since,
            Err(taken) => return Poll::Ready(taken),
        };
        let limits = &self.connection.table.limits;
        self.header = self.header.filter(|(_, since)| Some(*since) == waits_since);
        let mut due = self.moved + limits.idle;
        if let Some((begun, _)) = self.header {
            due = due.min(begun + limits.header);
        }
        if let Some(unsent) = self.unsent {
            due = due.min(unsent + limits.answer);
        }
        if due <= Instant::now() {
            return Poll::Ready(io::ErrorKind::TimedOut.into());
        }
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        match self.timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Poll::Pending,
        }
    }

    fn note_read(&mut self, context: &mut Context<'_>, result: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if result.is_pending() {
            return self.wait(context).map(Err);
        }
        self.moved = Instant::now();
        match self.connection.waits_since(context.waker()) {
            Ok(Some(since)) if self.header.is_none_or(|(_, of)| of != since) => self.header = Some((self.moved, since)),
            Ok(_) => {}
            Err(taken) => return Poll::Ready(Err(taken)),
        }
        result
    }

    fn note_write<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_pending() {
            self.unsent.get_or_insert_with(Instant::now);
            if self.connection.is_given() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            return self.wait(context).map(Err);
        }
        self.moved = Instant::now();
        self.unsent = None;
        result
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.note_read(context, result)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut piece = [io::IoSlice::new(&[]); SLICES_MAX];
        let count = cut(slices, WRITE_BYTES_MAX, &mut piece);
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, &piece[..count]);
        if matches!(result, Poll::Ready(Ok(WRITE_BYTES_MAX))) {
            give_core_away();
        }
        self.note_write(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

const _: () = assert!(ENDING_MAX > 128);

#[cfg(test)]
pub(super) mod tests;
