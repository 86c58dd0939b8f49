//! HTTP's sockets, bounded: above the limit new connections are closed at once, and one that sends
//! and receives nothing for too long is closed.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Instant, Sleep},
};

use crate::{
    limits::CONSUME_WAIT_MAX,
    reactor::listen::{Connections, Counted, pause_after},
};

/// Open HTTP connections.
const CONNECTIONS_MAX: usize = 1_024;

/// A silent connection is closed after this: longer than the longest wait of a consume.
const IDLE_MAX: Duration = CONSUME_WAIT_MAX.saturating_add(Duration::from_secs(30));

/// The listener.
pub struct Sockets {
    listener: TcpListener,
    connections: Arc<Connections>,
}

impl Sockets {
    /// Accepts from `listener`.
    pub fn new(listener: TcpListener) -> Sockets {
        Sockets { listener, connections: Arc::default() }
    }
}

impl axum::serve::Listener for Sockets {
    type Io = Socket;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Socket, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    if let Some(counted) = self.connections.enter(CONNECTIONS_MAX)
                        && stream.set_nodelay(true).is_ok()
                    {
                        return (Socket::new(stream, counted), address);
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

/// A connection with its idle timer.
pub struct Socket {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    /// Bytes went either way since the timer was set.
    moved: bool,
    _counted: Counted,
}

#[allow(clippy::disallowed_methods, reason = "sockets are the real world's; nothing to simulate")]
impl Socket {
    fn new(stream: TcpStream, counted: Counted) -> Socket {
        Socket { stream, idle: Box::pin(tokio::time::sleep(IDLE_MAX)), moved: false, _counted: counted }
    }

    /// Pending, or an error when nothing has moved for `IDLE_MAX` (to within one more).
    fn check_idle(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.idle.as_mut().poll(context).is_ready() {
            if !std::mem::take(&mut self.moved) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.idle.as_mut().reset(Instant::now() + IDLE_MAX);
        }
        Poll::Pending
    }

    fn note<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(result) => {
                self.moved = true;
                Poll::Ready(result)
            }
            Poll::Pending => self.check_idle(context).map(|result| Err(result.expect_err("idle is only an error"))),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.note(context, result)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(context, result)
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

const _: () = assert!(IDLE_MAX.as_secs() > CONSUME_WAIT_MAX.as_secs());
