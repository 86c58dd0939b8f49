//! Listening sockets, and a reactor's accept loop.
//!
//! Every reactor listens on the one client port with a socket of its own (`SO_REUSEPORT`), so the
//! kernel spreads connections over reactors and no connection ever moves. That option would also
//! let a second server in quietly and take half of the first one's connections; so the first
//! socket is bound without it, which fails while anybody holds the port, and gets it afterwards.

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpStream, sync::watch};

use crate::{
    env::{Env, domain, real::RealEnv},
    limits,
    reactor::seats::{Seat, Seats},
};

/// Connections that the kernel completes and holds until they are accepted.
const BACKLOG: i32 = 1024;

/// Pause after an accept that failed for want of something (file descriptors, memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds `count` sockets to `address`; port 0 is chosen once, for all of them. They listen already:
/// early connections wait in the kernel until they are accepted.
///
/// # Errors
/// In one sentence, when the address is taken or not ours.
pub fn bind(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, String> {
    assert!(count > 0, "somebody has to listen");
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("{address} is already in use: another server is running there; stop it or choose another address")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{address} is not an address of this machine; choose one that is, or 127.0.0.1")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{address} needs privileges that this process lacks ({error}); choose a port from 1024 up")
        }
        _ => format!("cannot listen on {address}: {error}"),
    };
    let first = socket(address).and_then(|socket| bind_one(socket, address)).map_err(explain)?;
    let address = first.local_addr().map_err(explain)?.as_socket().unwrap_or(address);
    let mut sockets = vec![first];
    if count > 1 {
        sockets[0].set_reuse_port(true).map_err(explain)?;
    }
    for _ in 1..count {
        let shared = socket(address).and_then(|socket| {
            socket.set_reuse_port(true)?;
            bind_one(socket, address)
        });
        sockets.push(shared.map_err(explain)?);
    }
    for socket in &sockets {
        socket.listen(BACKLOG).map_err(explain)?;
    }
    Ok(sockets.into_iter().map(TcpListener::from).collect())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A port whose last server's connections are still in TIME_WAIT is free; one that is listened on is not.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn bind_one(socket: Socket, address: SocketAddr) -> io::Result<Socket> {
    socket.bind(&address.into())?;
    Ok(socket)
}

/// How many connections there are; shared with whoever reports or waits for it.
#[derive(Debug, Default)]
pub struct Connections {
    open: AtomicUsize,
    accepted: AtomicUsize,
    refused: AtomicUsize,
    /// Of the open ones those that have to go.
    pub(super) leaving: AtomicUsize,
}

/// One connection; counted until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<Connections>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl Connections {
    /// Counts one more, unless there are `max` already: that one is to be closed at once.
    pub fn enter(self: &Arc<Self>, max: usize) -> Option<Counted> {
        if self.open.fetch_add(1, Relaxed) >= max {
            self.open.fetch_sub(1, Relaxed);
            self.refused.fetch_add(1, Relaxed);
            return None;
        }
        self.accepted.fetch_add(1, Relaxed);
        Some(Counted(Arc::clone(self)))
    }

    /// Open now.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Open now, and not told to go.
    pub fn staying(&self) -> usize {
        self.open().saturating_sub(self.leaving.load(Relaxed))
    }

    /// Accepted since the start.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Relaxed)
    }

    /// Closed at once since the start, because there were too many.
    pub fn refused(&self) -> usize {
        self.refused.load(Relaxed)
    }
}

/// Has connections of a reactor go, for ever, while those of all reactors that stay (`all`) are more than `max`; `grows` tells when
/// that may be. Of its own it has as many go as are too many by its share.
pub async fn make_way(seats: &Seats, all: impl Fn() -> usize, max: impl Fn() -> usize, mut grows: watch::Receiver<()>) {
    loop {
        let (here, staying, max) = (seats.staying(), all(), max());
        if staying > max {
            let too_many = here - here * max / staying.max(here);
            if too_many > 0 {
                tracing::warn!(too_many, max, "connections are closed: their descriptors are wanted for replicas");
                seats.dismiss(too_many);
            }
            #[allow(clippy::disallowed_methods, reason = "sockets are the real world's; nothing to simulate")]
            tokio::time::sleep(limits::SEAT_LOOK).await;
        } else if grows.changed().await.is_err() {
            // The node is gone, and so are its clients.
            return;
        }
    }
}

/// Accepts connections until `stop` resolves, and runs `serve` for each in a task of this reactor.
/// Above `max` open connections (asked for each), new ones are closed at once. One that has to go (`seats`) is cut a while after it
/// was told. Connections outlive this call.
///
/// # Errors
/// When the socket cannot be registered with the runtime.
pub async fn accept<F: Future<Output = ()> + 'static>(
    listener: TcpListener,
    seats: Rc<Seats>,
    max: impl Fn() -> usize,
    stop: impl Future<Output = ()>,
    serve: impl Fn(TcpStream, Seat) -> F,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut stop = pin!(stop);
    loop {
        let socket = tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    pause_after(&error).await;
                    continue;
                }
            },
        };
        // It may have waited for the node to recover, longer than its client did: what it sent must not be carried
        // out when nobody waits for the answer.
        if has_hung_up(&socket) {
            continue;
        }
        let Some(counted) = seats.connections().enter(max()) else {
            tracing::debug!(max = max(), "connection closed at once: too many are open");
            continue;
        };
        // Acks are small and late enough already: never wait to fill a packet.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "connection was gone before it was served");
            continue;
        }
        let seat = seats.take(RealEnv::monotonic_us());
        let connection = serve(socket, seat.clone());
        #[allow(clippy::disallowed_methods, reason = "sockets are the real world's; nothing to simulate")]
        tokio::task::spawn_local(async move {
            let cut = async {
                seat.has_to_go().await;
                tokio::time::sleep(limits::SEAT_GRACE).await;
            };
            tokio::select! {
                biased;
                // A panic is told by then, and is this connection's end only.
                served = domain::contain_call("a client's connection", connection) => drop(served),
                () = cut => {}
            }
            drop(counted);
        });
        // Those that come by thousands begin between what others do.
        crate::env::yield_now().await;
    }
}

/// Whether the client has closed its end already. No HTTP/2 client does so while it waits for an answer.
fn has_hung_up(socket: &TcpStream) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    let looked = rustix::event::poll(&mut polled, Some(&Timespec::default()));
    looked.is_ok() && polled[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

/// A connection that failed before it was accepted is its own problem; a want of descriptors or
/// memory is ours, and stays for a moment.
pub async fn pause_after(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted) {
        return;
    }
    tracing::warn!(%error, "a connection could not be accepted; raise the limit of open files if it says so");
    #[allow(clippy::disallowed_methods, reason = "sockets are the real world's; nothing to simulate")]
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// All sockets of one server share the port; a second server is told so, whether it wants one
    /// socket or several; and the port is free once they are closed.
    #[test]
    fn one_server_per_port() {
        let first = bind(([127, 0, 0, 1], 0).into(), 3).unwrap();
        let address = first[0].local_addr().unwrap();
        assert!(first.iter().all(|socket| socket.local_addr().unwrap() == address));
        for count in [1, 2] {
            let error = bind(address, count).unwrap_err();
            assert!(error.contains("already in use"), "{error}");
        }
        drop(first);
        bind(address, 2).unwrap();
    }

    /// An address of somebody else is refused in words.
    #[test]
    fn foreign_address() {
        let error = bind(([192, 0, 2, 1], 0).into(), 1).unwrap_err();
        assert!(error.contains("not an address of this machine"), "{error}");
    }

    /// Beyond the bound a connection is closed at once, the others live on, and room comes back.
    #[test]
    fn bounded_connections() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let listener = bind(([127, 0, 0, 1], 0).into(), 1).unwrap().remove(0);
            let address = listener.local_addr().unwrap();
            let connections = Arc::new(Connections::default());
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let echo = |mut socket: TcpStream, _: Seat| async move {
                let mut byte = [0];
                while socket.read_exact(&mut byte).await.is_ok() {
                    socket.write_all(&byte).await.unwrap();
                }
            };
            let seats = Seats::new(Arc::clone(&connections));
            #[allow(clippy::disallowed_methods)]
            let task = tokio::task::spawn_local(accept(listener, seats, || 1, async { drop(stopped.await) }, echo));
            let connect = || async move {
                #[allow(clippy::disallowed_methods)]
                let mut socket = TcpStream::connect(address).await.unwrap();
                drop(socket.write_all(b"x").await);
                let mut byte = [0];
                let answer = socket.read_exact(&mut byte).await.is_ok();
                (answer, socket)
            };
            let (served, first) = connect().await;
            assert!(served);
            assert!(!connect().await.0, "the second is one too many");
            assert_eq!((connections.open(), connections.refused()), (1, 1));
            drop(first);
            while connections.open() > 0 {
                crate::env::yield_now().await;
            }
            assert!(connect().await.0);
            stop.send(()).unwrap();
            task.await.unwrap().unwrap();
        });
    }

    /// When fewer connections may be open than there are, as many as are too many are told to go, and cut if they do not; not
    /// before.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "plays the clients")]
    fn room_is_made() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let listener = bind(([127, 0, 0, 1], 0).into(), 1).unwrap().remove(0);
            let address = listener.local_addr().unwrap();
            let (seats, max) = (Rc::<Seats>::default(), Rc::new(Cell::new(5)));
            let told = Rc::new(Cell::new(0));
            let served = |_: TcpStream, seat: Seat| {
                let told = Rc::clone(&told);
                async move {
                    seat.has_to_go().await;
                    told.set(told.get() + 1);
                    std::future::pending().await
                }
            };
            let connections = Arc::clone(seats.connections());
            let clients: Vec<_> = (0..5).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
            let (grow, grows) = watch::channel(());
            let until = async |is_so: &dyn Fn() -> bool| {
                let mut looks = 0;
                while !is_so() {
                    looks += 1;
                    assert!(looks < 60_000, "it does not come about");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let test = async {
                until(&|| connections.open() == clients.len()).await;
                crate::env::yield_times(100).await;
                assert_eq!((connections.staying(), told.get()), (5, 0));
                max.set(2);
                grow.send_replace(());
                until(&|| told.get() > 0).await;
                assert_eq!(connections.staying(), 2);
                until(&|| connections.open() == 2).await;
                crate::env::yield_times(100).await;
                assert_eq!((connections.staying(), connections.open(), told.get()), (2, 2, 3));
            };
            tokio::select! {
                ended = accept(listener, Rc::clone(&seats), || 10, std::future::pending(), served) => panic!("{ended:?}"),
                () = make_way(&seats, || connections.staying(), || max.get(), grows) => panic!("it ended"),
                () = test => {}
            }
        });
    }

    /// A connection whose client went away while it waited to be accepted is not served; one that still waits is.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "plays the clients")]
    fn clients_that_are_gone_are_not_served() {
        use std::io::Write;
        let listener = bind(([127, 0, 0, 1], 0).into(), 1).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let mut gone = std::net::TcpStream::connect(address).unwrap();
        gone.write_all(b"do this").unwrap();
        drop(gone);
        let waits = std::net::TcpStream::connect(address).unwrap();
        let waits_address = waits.local_addr().unwrap();
        let served = crate::env::runtime::block_on(async move {
            let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
            let served = |socket: TcpStream, _: Seat| {
                send.send(socket.peer_addr().unwrap()).unwrap();
                async {}
            };
            tokio::select! {
                ended = accept(listener, Rc::default(), || 10, std::future::pending(), served) => panic!("{ended:?}"),
                address = receive.recv() => address,
            }
        });
        assert_eq!(served, Some(waits_address));
    }
}
