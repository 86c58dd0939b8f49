//! One HTTP/2 connection: accepts requests, runs their calls inside its own task, and flushes what
//! they answered; keeps the connection alive, and says goodbye when the node shuts down.
//!
//! Order of work in one round of a turn: accept until there is nothing to accept (which is when h2 has read
//! all there is, or as much as a round may bring), run the calls, and again until nothing is left to do; then one write.

use std::future::Future;
use std::future::poll_fn;
use std::pin::Pin;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::Reason;
use http::Request;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;

use crate::env;
use crate::env::Env;
use crate::env::channel::Notified;
use crate::format::grpc::FRAME_BYTES_MAX;
use crate::format::grpc::STREAM_SEND_BYTES_MAX;
use crate::format::grpc::STREAM_WINDOW_BYTES;
use crate::frontend::Frontend;
use crate::frontend::grpc::answers::Answers;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::call;
use crate::frontend::grpc::lane::Lane;
use crate::frontend::grpc::lane::Load;
use crate::frontend::grpc::lane::Place;
use crate::frontend::grpc::received::Received;
use crate::frontend::grpc::share::Share;
use crate::frontend::grpc::small_frames::SmallFrames;
use crate::frontend::grpc::socket::Socket;
use crate::frontend::grpc::socket::Then;
use crate::frontend::grpc::stream::Responses;
use crate::frontend::grpc::turn::Turn;
use crate::frontend::grpc::window::Window;
use crate::limits;
use crate::reactor::seats::Seat;

/// A client that has not said its preface by then is not one.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that was silent for that long gets a PING; still silent after as long again, it is dead.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Largest request header list.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// h2 charges every DATA frame below 256 bytes that waits to be read with what it lacks of 256, and closes the connection
/// above this budget. Pipelined small messages are legal: they must fit, see `ROUND_BYTES`.
const SMALL_FRAMES_BUDGET: usize = 16 << 20;

/// Bytes that h2 is given in one round. All calls that have not read their client's last message look at what it has brought
/// before the next one (`Requests::hold`), so not more than this can lie in h2.
const ROUND_BYTES: usize = 64 << 10;

/// Frames of them: with `ROUNDS_MAX`, a tenth of a millisecond of work for a client that sends nothing but the cheapest ones. h2
/// keeps room for so many in each connection, some 200 bytes each.
const ROUND_FRAMES: usize = 64;

/// A frame header and one byte.
const SMALLEST_FRAME_BYTES: usize = 10;

// Two rounds: a call that wakes itself may be looked at in the next one only.
const _: () = assert!(2 * ROUND_BYTES / SMALLEST_FRAME_BYTES * 255 <= SMALL_FRAMES_BUDGET);

/// Streams that a client reset, or that we ended early, and that h2 still remembers: enough for every
/// call of a connection to be cancelled at once.
const RESET_STREAMS_MAX: usize = limits::STREAMS_PER_CONNECTION_MAX as usize;

/// Streams that h2 itself may reset in the life of a connection before it takes the client for an
/// attacker (it is late DATA of streams that we ended early which counts, too).
const ERROR_RESETS_MAX: usize = 16 << 10;

/// Calls of one connection, those included that the client has given up: above it nothing is accepted.
const CALLS_MAX: usize = 2 * limits::STREAMS_PER_CONNECTION_MAX as usize;

/// Rounds before other tasks of the reactor get their turn. Who has more to read then waits in the [`Lane`].
const ROUNDS_MAX: usize = 8;

/// No round begins later than `TURN_US` in a turn while others wait for theirs, nor than `TURN_ALONE_US` while nobody does: a
/// round of data takes a fiftieth of a millisecond, one of headers a fifth.
const TURN_US: u64 = 100;
const TURN_ALONE_US: u64 = 400;

/// Requests accepted in one turn: each begins its call there.
const ACCEPTS_MAX: usize = 32;

/// Who sends and is sent so much together in one turn, or whose calls take so many messages, goes into the [`Lane`] before its next
/// one, unless that is free. (To measure a turn's time instead takes many for busy that are not: the kernel does others' work in it,
/// too.) Messages may have come long before, and be tiny: each costs as much as some hundred bytes.
const HEAVY_BYTES: u64 = 4 << 10;
const HEAVY_MESSAGES: usize = 16;

type H2<S> = h2::server::Connection<Socket<S>, Body>;
type Timer = Pin<Box<dyn Future<Output = ()>>>;

/// Serves the connection until it ends.
pub(super) async fn serve<E: Env, S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    frontend: Frontend<E>,
    seat: Seat,
    reset_memory: Duration,
) {
    let (shutting_down, has_to_go) = (frontend.shutting_down(), seat.has_to_go());
    let shutdown = Box::pin(async move {
        tokio::select! {
            biased;
            () = shutting_down => {}
            () = has_to_go => {}
        }
    });
    let start = |request, responses| call::serve(frontend.clone(), request, responses);
    let times = Times { keepalive: KEEPALIVE, reset_memory };
    let shared = Shared {
        answers: Answers::new::<E>(frontend.answers()),
        received: Received::new::<E>(frontend.received()),
        lane: Rc::clone(frontend.lane()),
        seat,
    };
    run::<E, _, _>(stream, shared, shutdown, times, start).await;
}

/// How long a connection waits for what.
#[derive(Clone, Copy)]
struct Times {
    /// A client that was silent for so long gets a PING.
    keepalive: Duration,
    /// As in [`serve_connection`](super::serve_connection).
    reset_memory: Duration,
}

/// Of what the connections of a reactor share.
struct Shared {
    answers: Answers,
    received: Received,
    lane: Rc<Lane>,
    seat: Seat,
}

/// Answers each request by the future that `start` makes for it.
async fn run<E: Env, S: AsyncRead + AsyncWrite + Unpin, F: Future<Output = ()>>(
    stream: S,
    shared: Shared,
    mut shutdown: Timer,
    times: Times,
    start: impl Fn(Request<h2::RecvStream>, Responses) -> F,
) {
    let socket = Socket::new(stream);
    let h2 = match handshake::<E, S>(&socket, &mut shutdown, times.reset_memory).await {
        Ok(h2) => h2,
        Err(b"") => return,
        Err(answer) => return socket.close_with(answer).await,
    };
    // It waits for its first turn now.
    socket.end_turn(0);
    let pause = || -> Timer { Box::pin(env::sleep::<E>(times.keepalive)) };
    let mut connection = Connection::new(h2, socket, shared, shutdown, pause, E::monotonic_us);
    poll_fn(|cx| connection.poll(cx, &start)).await;
}

fn builder(reset_memory: Duration) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES_MIN)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(limits::STREAMS_PER_CONNECTION_MAX)
        .max_send_buffer_size(STREAM_SEND_BYTES_MAX)
        .reset_stream_duration(reset_memory)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(Some(ERROR_RESETS_MAX))
        .data_frame_budget(SMALL_FRAMES_BUDGET);
    builder
}

/// An error is no client, or too slow, or the node shuts down: with what it is answered, if anything. Nothing is written before
/// the client's preface has come: who speaks something else gets another answer, and who is too slow no GOAWAY: it would have to
/// follow our SETTINGS, and may be left out (RFC 9113, section 3.4).
async fn handshake<E: Env, S: AsyncRead + AsyncWrite + Unpin>(
    socket: &Socket<S>,
    shutdown: &mut Timer,
    reset_memory: Duration,
) -> Result<H2<S>, &'static [u8]> {
    let mut handshake = Some(builder(reset_memory).handshake(socket.clone()));
    let mut timeout = pin!(env::sleep::<E>(HANDSHAKE_TIMEOUT));
    poll_fn(|cx| {
        socket.allow(ROUND_BYTES, ROUND_FRAMES, Then::Wake);
        match handshake.as_mut().map(|handshake| Pin::new(handshake).poll(cx)) {
            Some(Poll::Ready(Ok(h2))) => return Poll::Ready(Ok(h2)),
            // h2 ends with the first byte that is wrong.
            Some(Poll::Ready(Err(error))) => {
                tracing::debug!(%error, "no HTTP/2 client");
                handshake = None;
            }
            Some(Poll::Pending) | None => {}
        }
        if handshake.is_none()
            && let Poll::Ready(answer) = socket.poll_stranger(cx)
        {
            return Poll::Ready(Err(answer));
        }
        if timeout.as_mut().poll(cx).is_ready() || shutdown.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(b""));
        }
        Poll::Pending
    })
    .await
}

struct Connection<S, F, P> {
    h2: H2<S>,
    socket: Socket<S>,
    calls: FuturesUnordered<F>,
    /// Requests accepted in this turn.
    accepted: usize,
    /// There may be more that h2 has read.
    backlog: bool,
    /// What the reader waits for when this round has brought all that it may.
    then: Then,
    small_frames: SmallFrames,
    messages: Received,
    /// While too much is unread: until others have made room.
    room: Option<Notified>,
    answers: Answers,
    lane: Place,
    seat: Seat,
    turn: Arc<Turn>,
    waker: Waker,
    shutdown: Option<Timer>,
    /// Makes the timer of one keepalive interval.
    pause: P,
    tick: Timer,
    ping: h2::PingPong,
    pinged: bool,
    received: u64,
    window: Window,
    share: Share,
    now_us: fn() -> u64,
}

impl<S, F, P> Connection<S, F, P>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = ()>,
    P: Fn() -> Timer,
{
    fn new(
        mut h2: H2<S>,
        socket: Socket<S>,
        shared: Shared,
        shutdown: Timer,
        pause: P,
        now_us: fn() -> u64,
    ) -> Connection<S, F, P> {
        let turn = Turn::new(Waker::noop().clone());
        Connection {
            ping: h2.ping_pong().expect("asked for once"),
            h2,
            socket,
            calls: FuturesUnordered::new(),
            accepted: 0,
            backlog: false,
            then: Then::Wait,
            small_frames: SmallFrames::default(),
            messages: shared.received,
            room: None,
            answers: shared.answers,
            lane: Place::new(shared.lane),
            seat: shared.seat,
            waker: Waker::from(turn.clone()),
            turn,
            shutdown: Some(shutdown),
            tick: pause(),
            pause,
            pinged: false,
            received: 0,
            window: Window::new(now_us()),
            share: Share::default(),
            now_us,
        }
    }

    /// Ready when the connection has ended. What is dropped then cancels the calls.
    fn poll(&mut self, cx: &mut Context<'_>, start: &impl Fn(Request<h2::RecvStream>, Responses) -> F) -> Poll<()> {
        if !self.turn.is_for(cx.waker()) {
            self.turn = Turn::new(cx.waker().clone());
            self.waker = Waker::from(self.turn.clone());
            self.lane.set_waker(&self.waker);
        }
        let waker = self.waker.clone();
        let cx = &mut Context::from_waker(&waker);
        self.turn.begin();
        let ended = self.poll_going_away(cx) || self.poll_dead(cx) || self.is_evicted(cx);
        let ended = ended || (self.lane.poll_turn(self.now_us, cx).is_ready() && self.take_turn(cx, start));
        self.turn.end();
        if ended { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Reads what has come, as far as a turn goes, runs the calls, and writes what they answer. True when the connection has
    /// ended.
    fn take_turn(&mut self, cx: &mut Context<'_>, start: &impl Fn(Request<h2::RecvStream>, Responses) -> F) -> bool {
        let (received, sent) = (self.socket.received(), self.socket.sent());
        self.accepted = 0;
        self.messages.inflater().begin_turn();
        let began_us = (self.now_us)();
        let mut rounds = 0;
        let ended = loop {
            rounds += 1;
            self.then = if rounds == ROUNDS_MAX { Then::Wait } else { Then::Wake };
            let ended = self.round(cx, start);
            // A wake in the last round is not taken: the turn's end passes it on, and wakes this task.
            let turn_us = if self.lane.others_wait() { TURN_US } else { TURN_ALONE_US };
            let is_last = rounds == ROUNDS_MAX || (self.now_us)() - began_us >= turn_us;
            if ended || is_last || !self.turn.take_woken() {
                break ended;
            }
        };
        // h2 wakes this task if the client has to be told.
        if let Some(bytes) = self.window.grow(self.socket.received(), self.messages.unread().get(), self.now_us) {
            self.h2.set_target_window_size(bytes);
        }
        let ended = ended || self.is_flooded(cx);
        let written = self.socket.poll_write_out(cx);
        let is_held_back = self.socket.is_held_back();
        self.socket.end_turn(self.socket.received() - received);
        let is_full = self.accepted == ACCEPTS_MAX;
        let is_paused = self.messages.unread().poll_room(&mut self.room, cx).is_pending();
        let can_read = self.socket.wants_more() && !is_paused;
        let has_more = is_full || is_held_back || can_read || self.messages.inflater().is_turn_over();
        let bytes = (self.socket.received() - received) + (self.socket.sent() - sent);
        let messages = self.messages.count_taken();
        let load = match has_more {
            true => Load::More,
            false if bytes >= HEAVY_BYTES || messages >= HEAVY_MESSAGES || is_paused => Load::Heavy,
            false => Load::Light,
        };
        self.lane.end_turn(load, || began_us..(self.now_us)(), cx.waker());
        ended || matches!(written, Poll::Ready(Err(_)))
    }

    /// Allows h2 to read as much as a round may bring, and nothing while requests wait that it has read, or while too much is
    /// unread: the turn's end sees to what comes after that.
    fn allow(&self) {
        match self.messages.unread().room().min(ROUND_BYTES) {
            bytes @ 1.. if !self.backlog => self.socket.allow(bytes, ROUND_FRAMES, self.then),
            _ => self.socket.allow(0, 0, Then::Wait),
        }
    }

    /// Accepts, then runs calls. True when the connection has ended.
    fn round(&mut self, cx: &mut Context<'_>, start: &impl Fn(Request<h2::RecvStream>, Responses) -> F) -> bool {
        self.allow();
        loop {
            let (full, enough) = (self.calls.len() >= CALLS_MAX, self.accepted == ACCEPTS_MAX);
            if full || enough {
                // Above `ACCEPTS_MAX` the others are accepted in the next turn, which comes as the connection is busy. Calls that
                // are too many may need what the client sends to end.
                self.backlog = !full;
                self.allow();
                if self.h2.poll_closed(cx).is_ready() {
                    return true;
                }
                break;
            }
            match self.h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((_, mut respond)))) if !self.share.allows(self.calls.len()) => {
                    respond.send_reset(Reason::REFUSED_STREAM);
                }
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.accepted += 1;
                    let (small_frames, received) = (self.small_frames.clone(), self.messages.clone());
                    self.calls
                        .push(start(request, Responses::new(respond, small_frames, received, self.answers.of_call())));
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(%error, "connection failed");
                    return true;
                }
                Poll::Ready(None) => return true,
                Poll::Pending if self.backlog => {
                    self.backlog = false;
                    self.allow();
                }
                Poll::Pending => break,
            }
        }
        let full = self.calls.len() >= CALLS_MAX;
        while let Poll::Ready(Some(())) = self.calls.poll_next_unpin(cx) {}
        self.share.set(self.calls.len());
        self.seat.note_calls(self.calls.len(), self.now_us);
        if full && self.calls.len() < CALLS_MAX {
            cx.waker().wake_by_ref();
        }
        false
    }

    /// True when the client has sent too many frames that bring nothing; it is told, if it reads.
    fn is_flooded(&mut self, cx: &mut Context<'_>) -> bool {
        let flooded = self.socket.is_flooded();
        if flooded {
            self.close(cx, Reason::ENHANCE_YOUR_CALM, "too many frames without a request or data");
        }
        flooded
    }

    /// Tells the client, if it reads, that the connection ends, and why: ENHANCE_YOUR_CALM if it asks for too much.
    fn close(&mut self, cx: &mut Context<'_>, reason: Reason, why: &str) {
        tracing::debug!("{why}: connection closed");
        self.h2.abrupt_shutdown(reason);
        let _ = self.h2.poll_closed(cx);
    }

    /// True when the memory is wanted that this connection's answers hold, or its unfinished messages.
    fn is_evicted(&mut self, cx: &mut Context<'_>) -> bool {
        let unread = self.answers.is_evicted(cx.waker());
        let evicted = self.messages.is_evicted(cx.waker()) || unread;
        if evicted {
            let what = if unread { "answers unread" } else { "messages unfinished" };
            let why = format!("the client leaves {what} while memory is short");
            self.close(cx, Reason::ENHANCE_YOUR_CALM, &why);
        }
        evicted
    }

    /// Begins to say goodbye when the node shuts down, or the connection has to leave its seat: a GOAWAY, after which h2 ends the connection when its
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
            self.socket.note_time();
            if let Some(bytes) = self.window.shrink(received - self.received, self.messages.unread().get()) {
                self.h2.set_target_window_size(bytes);
            }
            // Takes the answer to the last PING, or the next one could not be sent.
            let _ = self.ping.poll_pong(cx);
            if received != self.received {
                (self.received, self.pinged) = (received, false);
            } else if self.pinged {
                // Silence is no error of HTTP/2 (RFC 9113, section 7). A client that was merely stopped learns from the GOAWAY
                // which of its requests nobody has seen (section 6.8).
                let (reason, why) = match self.room {
                    Some(_) => {
                        (Reason::ENHANCE_YOUR_CALM, "what the client has sent waits for long while memory is short")
                    }
                    None => (Reason::NO_ERROR, "the client does not answer"),
                };
                self.close(cx, reason, why);
                return true;
            } else {
                self.pinged = self.ping.send_ping(h2::Ping::opaque()).is_ok();
            }
            self.tick = (self.pause)();
        }
        false
    }
}

#[cfg(test)]
mod tests;
