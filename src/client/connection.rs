//! One HTTP/2 connection to a server, tuned as measured: large windows, large frames, large reads.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use h2::client::SendRequest;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{chunks::Chunks, error::ClientError};
use crate::format::grpc::{CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, STREAM_SEND_BYTES_MAX, STREAM_WINDOW_BYTES};

/// Port of a server whose address names none.
const PORT_DEFAULT: u16 = 7400;

/// Bytes of one read from the socket; h2 alone reads 8 KiB.
const READ_BYTES: usize = 64 << 10;

/// h2 ends a connection on which too many small DATA frames are unread (its default allows some 200):
/// acknowledgements are small, and a busy sender may leave a whole window of them unread.
const SMALL_FRAMES_BUDGET: usize = 64 << 20;

/// A connection as its calls use it.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) requests: SendRequest<Chunks>,
    /// Set when it is over.
    pub(super) ended: Arc<AtomicBool>,
}

/// Connects and shakes hands; a task of the current runtime then drives the connection until it ends. With `keepalive`
/// it also ends, and its calls with it, when the server does not answer a PING within that time; one is sent as often.
///
/// # Errors
/// `Unreachable`, `Protocol`.
#[allow(clippy::disallowed_methods, reason = "the client connects, and is not part of the simulated world")]
pub(super) async fn connect(
    address: &str,
    patience: Duration,
    keepalive: Option<Duration>,
) -> Result<Connected, ClientError> {
    let unreachable = |cause: String| ClientError::Unreachable { address: address.to_owned(), cause };
    let target = with_port(address);
    let socket = tokio::time::timeout(patience, TcpStream::connect(&target))
        .await
        .map_err(|_| unreachable(format!("no connection within {} ms", patience.as_millis())))?
        .map_err(|error| unreachable(error.to_string()))?;
    // Without it a small request waits for the acknowledgement of the one before it.
    socket.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
    let handshake = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_send_buffer_size(STREAM_SEND_BYTES_MAX)
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        .enable_push(false)
        .handshake(Socket::new(socket));
    let (requests, connection) = tokio::time::timeout(patience, handshake)
        .await
        .map_err(|_| unreachable("no HTTP/2 handshake in time".to_owned()))?
        .map_err(|error| ClientError::Protocol { address: address.to_owned(), what: error.to_string() })?;
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    tokio::spawn(async move {
        drive(connection, keepalive).await;
        end.store(true, Ordering::Release);
    });
    Ok(Connected { requests, ended })
}

/// Returns when the connection is over, or its server silent; calls that are left end with an error.
async fn drive(mut connection: h2::client::Connection<Socket, Chunks>, keepalive: Option<Duration>) {
    let pings = connection.ping_pong();
    let silent = async {
        match (pings, keepalive) {
            (Some(pings), Some(every)) => silence(pings, every).await,
            (None, _) | (_, None) => std::future::pending().await,
        }
    };
    let mut silent = pin!(silent);
    tokio::select! {
        biased;
        // Its calls see the reason of its end; there is nobody else to tell.
        _ = &mut connection => {}
        () = &mut silent => {}
    }
}

/// Returns when a PING is not answered in time.
#[allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]
async fn silence(mut pings: h2::PingPong, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        match tokio::time::timeout(every, pings.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

/// `address` without a scheme and with a port.
pub(super) fn with_port(address: &str) -> String {
    let address = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
    let after_host = address.rfind(']').map_or(address, |at| &address[at..]);
    if after_host.contains(':') { address.to_owned() } else { format!("{address}:{PORT_DEFAULT}") }
}

/// A socket that is read in large pieces, whatever its reader asks for.
struct Socket {
    stream: TcpStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Socket {
    fn new(stream: TcpStream) -> Socket {
        Socket { stream, buffer: vec![0; READ_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.start == this.end {
            // A large frame's rest goes straight to where it belongs; a copy less.
            if out.remaining() >= READ_BYTES / 2 {
                return Pin::new(&mut this.stream).poll_read(cx, out);
            }
            let mut buffer = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer))?;
            (this.start, this.end) = (0, buffer.filled().len());
        }
        let count = out.remaining().min(this.end - this.start);
        out.put_slice(&this.buffer[this.start..this.start + count]);
        this.start += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// People write addresses in several ways.
    #[test]
    fn addresses() {
        for (text, address) in [
            ("127.0.0.1:7400", "127.0.0.1:7400"),
            ("localhost", "localhost:7400"),
            ("http://localhost:80/", "localhost:80"),
            ("[::1]", "[::1]:7400"),
            ("[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(with_port(text), address);
        }
    }
}
