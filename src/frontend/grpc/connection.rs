//! One HTTP/2 connection: accepts requests, runs their calls inside its own task, and flushes what
//! they answered; keeps the connection alive, and says goodbye when the node shuts down.
//!
//! Order of work in one round: accept until there is nothing to accept (which is when h2 has read
//! all there is), run the calls, and again until nothing is left to do; then one write.

use std::future::Future;
use std::future::poll_fn;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::SendResponse;
use http::Request;

use crate::env;
use crate::env::Env;
use crate::frontend::Frontend;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::call;
use crate::frontend::grpc::socket::Socket;
use crate::frontend::grpc::turn::Turn;
use crate::limits;

/// A client that has not said its preface by then is not one.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that was silent for that long gets a PING; still silent after as long again, it is dead.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Receive windows (MEASURED: less costs round trips on uploads).
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Largest DATA frame that we accept.
const FRAME_BYTES_MAX: u32 = 64 << 10;

/// Largest request header list.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// What one stream may have waiting in h2; its sender waits above it.
const STREAM_SEND_BYTES_MAX: usize = 1 << 20;

/// h2 charges every DATA frame below 256 bytes that waits to be read with what it lacks of 256, and
/// closes the connection above this budget; a burst of pipelined small messages is legal.
const SMALL_FRAMES_BUDGET: usize = 16 << 20;

/// Streams that a client reset, or that we ended early, and that h2 still remembers: enough for every
/// call of a connection to be cancelled at once.
const RESET_STREAMS_MAX: usize = limits::STREAMS_PER_CONNECTION_MAX as usize;

/// Streams that h2 itself may reset in the life of a connection before it takes the client for an
/// attacker (it is late DATA of streams that we ended early which counts, too).
const ERROR_RESETS_MAX: usize = 16 << 10;

/// Calls of one connection, those included that the client has given up: above it nothing is accepted.
const CALLS_MAX: usize = 2 * limits::STREAMS_PER_CONNECTION_MAX as usize;

/// Rounds before other tasks of the reactor get their turn.
const ROUNDS_MAX: usize = 8;

type H2 = h2::server::Connection<Socket, Body>;
type Timer = Pin<Box<dyn Future<Output = ()>>>;

/// Serves the connection until it ends.
pub(super) async fn serve<E: Env>(stream: tokio::net::TcpStream, frontend: Frontend<E>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY was refused: answers may be late");
    }
    let socket = Socket::new(stream);
    let mut shutdown: Timer = Box::pin(frontend.shutting_down());
    let Some(h2) = handshake::<E>(&socket, &mut shutdown).await else { return };
    let mut connection = Connection::new(h2, socket, shutdown, env::sleep::<E>);
    let start = |request, respond| call::serve(frontend.clone(), request, respond);
    poll_fn(|cx| connection.poll(cx, &start)).await;
}

fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
        .max_send_buffer_size(STREAM_SEND_BYTES_MAX)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(Some(ERROR_RESETS_MAX))
        .data_frame_budget(SMALL_FRAMES_BUDGET);
    builder
}

/// `None`: no client, too slow, or the node shuts down.
async fn handshake<E: Env>(socket: &Socket, shutdown: &mut Timer) -> Option<H2> {
    let mut handshake = builder().handshake(socket.clone());
    let mut timeout = pin!(env::sleep::<E>(HANDSHAKE_TIMEOUT));
    poll_fn(|cx| {
        let done = Pin::new(&mut handshake).poll(cx);
        // Our SETTINGS do not wait for the client's preface.
        if let Poll::Ready(Err(error)) = socket.poll_write_out(cx) {
            tracing::debug!(%error, "client went away in the handshake");
            return Poll::Ready(None);
        }
        match done {
            Poll::Ready(Ok(h2)) => return Poll::Ready(Some(h2)),
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "no HTTP/2 client");
                return Poll::Ready(None);
            }
            Poll::Pending => {}
        }
        if timeout.as_mut().poll(cx).is_ready() || shutdown.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}

struct Connection<F, S> {
    h2: H2,
    socket: Socket,
    calls: FuturesUnordered<F>,
    turn: Arc<Turn>,
    waker: Waker,
    shutdown: Option<Timer>,
    sleep: S,
    tick: Timer,
    ping: h2::PingPong,
    pinged: bool,
    received: u64,
}

impl<F, S, T> Connection<F, S>
where
    F: Future<Output = ()>,
    S: Fn(Duration) -> T,
    T: Future<Output = ()> + 'static,
{
    fn new(mut h2: H2, socket: Socket, shutdown: Timer, sleep: S) -> Connection<F, S> {
        let turn = Turn::new(Waker::noop().clone());
        Connection {
            ping: h2.ping_pong().expect("asked for once"),
            h2,
            socket,
            calls: FuturesUnordered::new(),
            waker: Waker::from(turn.clone()),
            turn,
            shutdown: Some(shutdown),
            tick: Box::pin(sleep(KEEPALIVE)),
            sleep,
            pinged: false,
            received: 0,
        }
    }

    /// Ready when the connection has ended. What is dropped then cancels the calls.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        start: &impl Fn(Request<h2::RecvStream>, SendResponse<Body>) -> F,
    ) -> Poll<()> {
        if !self.turn.is_for(cx.waker()) {
            self.turn = Turn::new(cx.waker().clone());
            self.waker = Waker::from(self.turn.clone());
        }
        let waker = self.waker.clone();
        let cx = &mut Context::from_waker(&waker);
        self.turn.begin();
        let mut ended = self.poll_going_away(cx) || self.poll_dead(cx);
        for _ in 0..ROUNDS_MAX {
            ended = ended || self.round(cx, start);
            if ended || !self.turn.take_woken() {
                break;
            }
        }
        let written = self.socket.poll_write_out(cx);
        self.turn.end();
        if ended || matches!(written, Poll::Ready(Err(_))) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Accepts, then runs calls. True when the connection has ended.
    fn round(
        &mut self,
        cx: &mut Context<'_>,
        start: &impl Fn(Request<h2::RecvStream>, SendResponse<Body>) -> F,
    ) -> bool {
        loop {
            if self.calls.len() >= CALLS_MAX {
                if self.h2.poll_closed(cx).is_ready() {
                    return true;
                }
                break;
            }
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.calls.push(start(request, respond)),
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "connection failed");
                    return true;
                }
                Poll::Ready(None) => return true,
                Poll::Pending => break,
            }
        }
        let full = self.calls.len() >= CALLS_MAX;
        while let Poll::Ready(Some(())) = self.calls.poll_next_unpin(cx) {}
        if full && self.calls.len() < CALLS_MAX {
            cx.waker().wake_by_ref();
        }
        false
    }

    /// Begins to say goodbye when the node shuts down: a GOAWAY, after which h2 ends the connection when its
    /// last stream has ended. How long that may take is the node's to say. Never true.
    fn poll_going_away(&mut self, cx: &mut Context<'_>) -> bool {
        if self.shutdown.as_mut().is_some_and(|shutdown| shutdown.as_mut().poll(cx).is_ready()) {
            self.shutdown = None;
            self.h2.graceful_shutdown();
        }
        false
    }

    /// True when the client was silent for an interval, and for another one after a PING.
    fn poll_dead(&mut self, cx: &mut Context<'_>) -> bool {
        while self.tick.as_mut().poll(cx).is_ready() {
            let received = self.socket.received();
            // Takes the answer to the last PING, or the next one could not be sent.
            let _ = self.ping.poll_pong(cx);
            if received != self.received {
                (self.received, self.pinged) = (received, false);
            } else if self.pinged {
                tracing::debug!("client does not answer: connection closed");
                return true;
            } else {
                self.pinged = self.ping.send_ping(h2::Ping::opaque()).is_ok();
            }
            self.tick = Box::pin((self.sleep)(KEEPALIVE));
        }
        false
    }
}
