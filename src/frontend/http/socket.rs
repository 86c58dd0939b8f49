//! HTTP's sockets, bounded. When all places are taken, a new connection takes that of one that waits for nothing but its
//! own client: first whoever has not sent a whole request, then whoever has had its answer, the longest first. While
//! requests are being answered on all of them, a reserve is left, on which only health is asked: so a probe gets in
//! whatever others do. Who is slow to send a header or to take an answer, or silent for too long, is closed.

#![allow(clippy::disallowed_methods, reason = "the ops thread is outside the simulator; its timers are tokio's")]

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::{extract::connect_info::Connected, serve::IncomingStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, Sleep},
};

use crate::{
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

/// Connections whose place was taken and whose task has not ended yet; above it new ones are closed at once. More than
/// tokio lets one task accept before others run.
const ENDING_MAX: usize = 256;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No whole request has come yet.
    Fresh,
    /// A request is being answered.
    Working,
    /// All requests that have come are answered; the client may still be taking the last answer.
    Idle,
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    since: Instant,
    /// Its place is taken: its next read or write fails.
    ended: bool,
    /// Of the task that reads and writes, set when it has to wait for its socket.
    waker: Option<Waker>,
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
    /// Those that have not ended.
    live: usize,
    entries: BTreeMap<u64, Entry>,
}

impl Inner {
    /// Whose place a new connection takes.
    fn victim(&self, limits: &SocketLimits, now: Instant) -> Option<u64> {
        let rank = |entry: &Entry| match entry.phase {
            Phase::Fresh if now.duration_since(entry.since) >= limits.young => Some(0),
            Phase::Idle => Some(1),
            Phase::Fresh => Some(2),
            Phase::Working => None,
        };
        let waiting = self.entries.iter().filter(|(_, entry)| !entry.ended);
        let ranked = waiting.filter_map(|(number, entry)| Some((rank(entry)?, entry.since, *number)));
        ranked.min().map(|(_, _, number)| number)
    }

    /// Takes its place away, and wakes its task, which then ends.
    fn end(&mut self, number: u64) {
        if let Some(entry) = self.entries.get_mut(&number)
            && !std::mem::replace(&mut entry.ended, true)
        {
            self.live -= 1;
            entry.waker.take().into_iter().for_each(Waker::wake);
        }
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection, of `places` that the process has; `None`: it is to be closed at once.
    fn enter(self: &Arc<Self>, now: Instant, places: usize) -> Option<Connection> {
        let mut inner = self.lock();
        let reserve = self.limits.reserve.min(places / 4);
        let connections = self.limits.connections.min(places - reserve);
        if inner.entries.len() >= connections + reserve + ENDING_MAX.min(places / 4) {
            return None;
        }
        if inner.live >= connections
            && let Some(victim) = inner.victim(&self.limits, now)
        {
            inner.end(victim);
        }
        let reserved = inner.live >= connections;
        if inner.live >= connections + reserve {
            return None;
        }
        let number = inner.next;
        inner.next += 1;
        inner.live += 1;
        inner.entries.insert(number, Entry { phase: Phase::Fresh, since: now, ended: false, waker: None });
        Some(Connection { table: Arc::clone(self), number, reserved })
    }

    /// Takes the places of as many connections as are too many, of `places` that the process has. Whether there are more still:
    /// requests are answered on them.
    fn make_way(&self, now: Instant, places: usize) -> bool {
        let mut inner = self.lock();
        while inner.live > places {
            let Some(victim) = inner.victim(&self.limits, now) else { return true };
            inner.end(victim);
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

    /// A whole request has come: nobody takes this place while it is answered.
    pub fn begin(&self) {
        self.enter(Phase::Working);
    }

    /// The answer is there, and only the client has to take it.
    pub fn done(&self) {
        self.enter(Phase::Idle);
    }

    /// Closes the connection, whatever it is doing.
    pub fn end(&self) {
        self.table.lock().end(self.number);
    }

    fn enter(&self, phase: Phase) {
        if let Some(entry) = self.table.lock().entries.get_mut(&self.number) {
            (entry.phase, entry.since) = (phase, Instant::now());
        }
    }

    fn leave(&self) {
        let mut inner = self.table.lock();
        inner.end(self.number);
        inner.entries.remove(&self.number);
    }

    /// The request that it waits for: `None` while one is answered. `waker` is woken when the place is taken.
    fn waits_since(&self, waker: &Waker) -> io::Result<Option<Instant>> {
        let mut inner = self.table.lock();
        match inner.entries.get_mut(&self.number) {
            Some(entry) if !entry.ended => {
                entry.waker = Some(waker.clone());
                Ok(Some(entry.since).filter(|_| entry.phase != Phase::Working))
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
                        && let Some(connection) = self.table.enter(Instant::now(), self.places())
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
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note_write(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
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
pub(super) mod tests {
    use super::*;

    /// Connections of nobody.
    pub(in crate::frontend::http) fn connections<const N: usize>() -> [Connection; N] {
        let table = Arc::new(Table { limits: SocketLimits::default(), inner: Mutex::default() });
        std::array::from_fn(|_| table.enter(Instant::now(), usize::MAX).unwrap())
    }

    /// Whose place is taken: whoever is slow with its first request, then the idle, then the young; nobody whose request is
    /// answered. Then the reserve, and then nothing.
    #[test]
    fn places() {
        let limits = SocketLimits { connections: 4, reserve: 1, ..SocketLimits::default() };
        let table = Arc::new(Table { limits, inner: Mutex::default() });
        let begun = Instant::now();
        let [slow, idle, working, young] =
            [0, 1, 2, 3].map(|second| table.enter(begun + Duration::from_secs(second), usize::MAX).unwrap());
        idle.done();
        working.begin();
        let now = begun + Duration::from_secs(3);
        let waker = Waker::noop();
        let gone = |connection: &Connection| connection.waits_since(waker).is_err();
        let mut entered = Vec::new();
        for expected in [&slow, &idle, &young] {
            assert!(!gone(expected));
            let new = table.enter(now, usize::MAX).unwrap();
            assert!(gone(expected) && !new.is_reserved());
            new.begin();
            entered.push(new);
        }
        assert!(!gone(&working) && table.lock().live == 4);
        let reserved = table.enter(now, usize::MAX).unwrap();
        assert!(reserved.is_reserved());
        // One that has not asked yet gives way to the next; one that is being answered does not.
        let next = table.enter(now, usize::MAX).unwrap();
        assert!(gone(&reserved) && next.is_reserved());
        next.begin();
        assert!(table.enter(now, usize::MAX).is_none());
        // Fewer are possible by now: those whose requests are answered have no more to give but time.
        entered[0].done();
        assert!(table.make_way(now, 3) && gone(&entered[0]) && !gone(&working) && table.lock().live == 4);
        entered[1].done();
        assert!(!table.make_way(now, 3) && gone(&entered[1]) && table.lock().live == 3);
        for connection in [slow, idle, young, working, reserved, next].into_iter().chain(entered) {
            connection.leave();
        }
        assert!(table.lock().live == 0 && !table.enter(now, usize::MAX).unwrap().is_reserved());
    }
}
