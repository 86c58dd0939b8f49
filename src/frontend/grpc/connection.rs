//! One HTTP/2 connection: accepts requests, runs their calls inside its own task, and flushes what
//! they answered; keeps the connection alive, and says goodbye when the node shuts down.
//!
//! Order of work in one round: accept until there is nothing to accept (which is when h2 has read
//! all there is, or as much as a round may bring), run the calls, and again until nothing is left to do; then one write.

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
use h2::Reason;
use http::Request;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;

use crate::env;
use crate::env::Env;
use crate::format::grpc::FRAME_BYTES_MAX;
use crate::format::grpc::STREAM_SEND_BYTES_MAX;
use crate::format::grpc::STREAM_WINDOW_BYTES;
use crate::frontend::Frontend;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::call;
use crate::frontend::grpc::share::Share;
use crate::frontend::grpc::small_frames::SmallFrames;
use crate::frontend::grpc::socket::Socket;
use crate::frontend::grpc::stranger;
use crate::frontend::grpc::stream::Responses;
use crate::frontend::grpc::turn::Turn;
use crate::frontend::grpc::window::Window;
use crate::limits;

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
const ROUND_BYTES: usize = 256 << 10;

/// Frames of them: with `ROUNDS_MAX`, a millisecond of work for a client that sends nothing but the cheapest ones.
const ROUND_FRAMES: usize = 512;

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

/// Rounds before other tasks of the reactor get their turn.
const ROUNDS_MAX: usize = 8;

type H2<S> = h2::server::Connection<Socket<S>, Body>;
type Timer = Pin<Box<dyn Future<Output = ()>>>;

/// Serves the connection until it ends.
pub(super) async fn serve<E: Env, S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    frontend: Frontend<E>,
    reset_memory: Duration,
) {
    let shutdown = Box::pin(frontend.shutting_down());
    let start = |request, responses| call::serve(frontend.clone(), request, responses);
    let times = Times { keepalive: KEEPALIVE, reset_memory };
    run::<E, _, _>(stream, shutdown, times, start).await;
}

/// How long a connection waits for what.
#[derive(Clone, Copy)]
struct Times {
    /// A client that was silent for so long gets a PING.
    keepalive: Duration,
    /// As in [`serve_connection`](super::serve_connection).
    reset_memory: Duration,
}

/// Answers each request by the future that `start` makes for it.
async fn run<E: Env, S: AsyncRead + AsyncWrite + Unpin, F: Future<Output = ()>>(
    stream: S,
    mut shutdown: Timer,
    times: Times,
    start: impl Fn(Request<h2::RecvStream>, Responses) -> F,
) {
    let socket = Socket::new(stream);
    let Some(h2) = handshake::<E, S>(&socket, &mut shutdown, times.reset_memory).await else {
        let answer = stranger::answer(&socket.first_bytes());
        if !answer.is_empty() {
            socket.close_with(answer).await;
        }
        return;
    };
    let pause = || -> Timer { Box::pin(env::sleep::<E>(times.keepalive)) };
    let mut connection = Connection::new(h2, socket, shutdown, pause, E::monotonic_us);
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

/// `None`: no client, too slow, or the node shuts down. Nothing is written before the client's preface has come: who speaks
/// something else gets another answer.
async fn handshake<E: Env, S: AsyncRead + AsyncWrite + Unpin>(
    socket: &Socket<S>,
    shutdown: &mut Timer,
    reset_memory: Duration,
) -> Option<H2<S>> {
    let mut handshake = builder(reset_memory).handshake(socket.clone());
    let mut timeout = pin!(env::sleep::<E>(HANDSHAKE_TIMEOUT));
    poll_fn(|cx| {
        socket.allow(ROUND_BYTES, ROUND_FRAMES);
        match Pin::new(&mut handshake).poll(cx) {
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

struct Connection<S, F, P> {
    h2: H2<S>,
    socket: Socket<S>,
    calls: FuturesUnordered<F>,
    small_frames: SmallFrames,
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
    fn new(mut h2: H2<S>, socket: Socket<S>, shutdown: Timer, pause: P, now_us: fn() -> u64) -> Connection<S, F, P> {
        let turn = Turn::new(Waker::noop().clone());
        Connection {
            ping: h2.ping_pong().expect("asked for once"),
            h2,
            socket,
            calls: FuturesUnordered::new(),
            small_frames: SmallFrames::default(),
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
        }
        let waker = self.waker.clone();
        let cx = &mut Context::from_waker(&waker);
        self.turn.begin();
        if let Some(bytes) = self.window.grow(self.socket.received(), self.now_us) {
            self.h2.set_target_window_size(bytes);
        }
        let mut ended = self.poll_going_away(cx) || self.poll_dead(cx);
        let mut rounds = 0;
        loop {
            ended = ended || self.round(cx, start);
            rounds += 1;
            // A wake in the last round is not taken: the turn's end passes it on, and wakes this task.
            if ended || rounds == ROUNDS_MAX || !self.turn.take_woken() {
                break;
            }
        }
        ended = ended || self.is_flooded(cx);
        let written = self.socket.poll_write_out(cx);
        self.turn.end();
        if ended || matches!(written, Poll::Ready(Err(_))) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Accepts, then runs calls. True when the connection has ended.
    fn round(&mut self, cx: &mut Context<'_>, start: &impl Fn(Request<h2::RecvStream>, Responses) -> F) -> bool {
        self.socket.allow(ROUND_BYTES, ROUND_FRAMES);
        loop {
            if self.calls.len() >= CALLS_MAX {
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
                    self.calls.push(start(request, Responses::new(respond, self.small_frames.clone())));
                }
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
        self.share.set(self.calls.len());
        if full && self.calls.len() < CALLS_MAX {
            cx.waker().wake_by_ref();
        }
        false
    }

    /// True when the client has sent too many frames that bring nothing; it is told, if it reads.
    fn is_flooded(&mut self, cx: &mut Context<'_>) -> bool {
        let flooded = self.socket.is_flooded();
        if flooded {
            tracing::debug!("too many frames without a request or data: connection closed");
            self.h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            let _ = self.h2.poll_closed(cx);
        }
        flooded
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
            self.socket.note_time();
            if let Some(bytes) = self.window.shrink(received - self.received) {
                self.h2.set_target_window_size(bytes);
            }
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
            self.tick = (self.pause)();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use bytes::Bytes;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;
    use crate::budget::Budget;
    use crate::env::real::RealEnv;
    use crate::env::runtime::block_on;
    use crate::format::grpc;
    use crate::format::grpc::Encoding;
    use crate::frontend::grpc::RESET_MEMORY;
    use crate::frontend::grpc::stream::Requests;
    use crate::frontend::grpc::tests::pair;

    const NEVER: Times = Times { keepalive: Duration::from_secs(3_600), reset_memory: RESET_MEMORY };

    /// Answers at once.
    async fn answer(_: Request<h2::RecvStream>, responses: Responses) {
        responses.finish(Ok(()));
    }

    fn never() -> Timer {
        Box::pin(std::future::pending())
    }

    async fn client(stream: TcpStream) -> h2::client::SendRequest<Bytes> {
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        env::spawn::<RealEnv>(async {
            let _ = connection.await;
        });
        requests
    }

    async fn status(requests: &mut h2::client::SendRequest<Bytes>) -> Result<http::StatusCode, h2::Error> {
        let request = Request::post("http://x/").body(()).unwrap();
        std::future::poll_fn(|cx| requests.poll_ready(cx)).await?;
        let (response, _) = requests.send_request(request, true)?;
        Ok(response.await?.status())
    }

    /// A client may send as much as HTTP/2's first window before anything of it is read, and more once it has used that.
    #[test]
    fn windows_begin_small() {
        block_on(async {
            let (stream, server) = pair().await;
            let read = Rc::new(Cell::new(false));
            let start = |request: Request<h2::RecvStream>, responses: Responses| {
                let read = read.clone();
                async move {
                    let mut requests =
                        Requests::new(request.into_body(), Encoding::Identity, 1 << 20, &Budget::default());
                    while !read.get() {
                        crate::env::yield_now().await;
                    }
                    while poll_fn(|cx| requests.poll_next(cx)).await.unwrap().is_some() {}
                    responses.finish(Ok(()));
                }
            };
            let client = async {
                let mut requests = client(stream).await;
                poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                let (_, mut stream) =
                    requests.send_request(Request::post("http://x/").body(()).unwrap(), false).unwrap();
                stream.reserve_capacity(1 << 20);
                for _ in 0..1_000 {
                    crate::env::yield_now().await;
                }
                assert_eq!(stream.capacity(), 65_535);
                read.set(true);
                let mut largest = 0;
                for _ in 0..50 {
                    stream.reserve_capacity(1 << 20);
                    let granted = poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
                    largest = largest.max(granted);
                    stream.send_data(vec![0; granted / 5 * 5].into(), false).unwrap();
                }
                assert!(largest > 2 * 65_535, "the largest window was {largest}");
            };
            tokio::select! {
                () = run::<RealEnv, _, _>(server, never(), NEVER, start) => panic!("the connection ended"),
                () = client => {}
            }
        });
    }

    /// Frames that bring nothing, without an end: the client is told, and its connection is closed.
    #[test]
    fn idle_frames() {
        for frame in [
            // WINDOW_UPDATE, PRIORITY, an unknown type, PING.
            &b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01"[..],
            b"\0\0\x05\x02\0\0\0\0\x03\0\0\0\0\x01",
            b"\0\0\0\x77\0\0\0\0\0",
            b"\0\0\x08\x06\0\0\0\0\0ringlog!",
        ] {
            block_on(async {
                let (stream, server) = pair().await;
                let (mut input, mut output) = stream.into_split();
                let write = async {
                    output.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
                    let many = frame.repeat(1_000);
                    while output.write_all(&many).await.is_ok() {}
                };
                let read = async {
                    let mut received = Vec::new();
                    let _ = input.read_to_end(&mut received).await;
                };
                tokio::join!(run::<RealEnv, _, _>(server, never(), NEVER, answer), write, read);
            });
        }
    }

    /// A client that speaks something else is told what this port is, without a byte of HTTP/2 before it.
    #[test]
    fn other_languages() {
        for (sent, answered) in [
            (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &b"HTTP/1.1 505 "[..]),
            (b"POST /v1/x HTTP/1.1\r\n\r\n", b"HTTP/1.1 505 "),
            (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"\x15\x03\x01\0\x02\x02\x46"),
            (b"\0\0\0\0", b""),
        ] {
            block_on(async {
                let (mut client, server) = pair().await;
                let client = async {
                    client.write_all(sent).await.unwrap();
                    let mut received = Vec::new();
                    client.read_to_end(&mut received).await.unwrap();
                    assert!(received.starts_with(answered), "{received:?}");
                    assert_eq!(received.is_empty(), answered.is_empty());
                };
                tokio::join!(run::<RealEnv, _, _>(server, never(), NEVER, answer), client);
            });
        }
    }

    /// Tiny messages of a client that is far ahead of its calls are no attack, on however many streams they wait.
    #[test]
    fn tiny_frames_that_wait() {
        const STREAMS: usize = 16;
        const MESSAGES: usize = 1_250;
        block_on(async {
            let (stream, server) = pair().await;
            let start = async |request: Request<h2::RecvStream>, responses: Responses| {
                let request_is_tiny = request.uri().path() == "/tiny";
                let mut requests = Requests::new(request.into_body(), Encoding::Identity, 1 << 20, &Budget::default());
                if request_is_tiny {
                    // Busy with other things, until the client has sent all.
                    poll_fn(|cx| {
                        requests.hold(cx);
                        if requests.has_all() { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                }
                let mut messages = 0;
                while poll_fn(|cx| requests.poll_next(cx)).await.unwrap().is_some() {
                    messages += 1;
                }
                assert!(messages == MESSAGES || messages == 1);
                responses.finish(Ok(()));
            };
            let client = async {
                let mut requests = client(stream).await;
                // A large message that is read at once makes the window larger than the tiny ones need.
                poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                let request = Request::post("http://x/").body(()).unwrap();
                let (response, mut large) = requests.send_request(request, false).unwrap();
                large.send_data([&grpc::prefix(1 << 20)[..], &vec![0; 1 << 20]].concat().into(), true).unwrap();
                assert_eq!(response.await.unwrap().status(), 200);
                let mut responses = Vec::new();
                for _ in 0..STREAMS {
                    poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                    let request = Request::post("http://x/tiny").body(()).unwrap();
                    let (response, mut stream) = requests.send_request(request, false).unwrap();
                    // Empty messages, a frame for each byte of their prefixes.
                    for _ in 0..MESSAGES * grpc::PREFIX_BYTES {
                        stream.send_data(Bytes::from_static(&[0]), false).unwrap();
                    }
                    stream.send_data(Bytes::new(), true).unwrap();
                    responses.push(response);
                }
                for response in responses {
                    assert_eq!(response.await.unwrap().status(), 200);
                }
            };
            tokio::select! {
                () = run::<RealEnv, _, _>(server, never(), NEVER, start) => panic!("the connection ended"),
                () = client => {}
            }
        });
    }

    /// A client of the h2 crate, with its own budget for small frames, that reads nothing for a while: neither one small
    /// answer on each of many streams nor many on each make it close.
    #[test]
    fn small_answers_that_wait() {
        const STREAMS: usize = 200;
        const MESSAGES: usize = 10;
        block_on(async {
            let (stream, server) = pair().await;
            let answered = Cell::new(0);
            let start = |_, mut responses: Responses| {
                let messages = if answered.replace(answered.get() + 1) % 2 == 0 { 1 } else { MESSAGES };
                async move {
                    for _ in 0..messages {
                        let mut body = Body::message(b"", Vec::new());
                        if messages > 1 || !responses.send_small(&mut body).unwrap() {
                            poll_fn(|cx| responses.poll_send(cx, &mut body)).await.unwrap();
                        }
                        crate::env::yield_now().await;
                    }
                    responses.finish(Ok(()));
                }
            };
            let client = async {
                let mut requests = client(stream).await;
                let mut responses = Vec::new();
                for _ in 0..STREAMS {
                    poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                    let request = Request::post("http://x/").body(()).unwrap();
                    responses.push(requests.send_request(request, true).unwrap().0);
                }
                // The server has had every chance to send too many.
                for _ in 0..2_000 {
                    crate::env::yield_now().await;
                }
                for (i, response) in responses.into_iter().enumerate() {
                    let mut body = response.await.unwrap().into_body();
                    let mut assembler = grpc::Assembler::new(1 << 20);
                    let mut messages = 0;
                    while let Some(data) = body.data().await {
                        let data = data.unwrap();
                        body.flow_control().release_capacity(data.len()).unwrap();
                        assembler.push(data);
                        while let Some(message) = assembler.next_message().unwrap() {
                            assert!(message.bytes.starts_with(b""));
                            messages += 1;
                        }
                    }
                    assert_eq!(messages, if i % 2 == 0 { 1 } else { MESSAGES });
                }
            };
            tokio::select! {
                () = run::<RealEnv, _, _>(server, never(), NEVER, start) => panic!("the connection ended"),
                () = client => {}
            }
        });
    }

    /// What is no client is left alone: the connection ends, and nothing panics.
    #[test]
    fn garbage_ends_the_connection() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let settings = b"\0\0\0\x04\0\0\0\0\0";
        for sent in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0; 100],
            preface[..20].to_vec(),
            [&preface[..], b"\0\0\x04"].concat(),
            [&preface[..], settings, b"\0\x40\0\0\0\0\0\0\x01half a frame"].concat(),
            [&preface[..], settings, b"\xff\xff\xff\0\0\0\0\0\x01"].concat(),
            [&preface[..], settings, b"\0\0\x05\x01\x04\0\0\0\x01\xff\xff\xff\xff\xff"].concat(),
        ] {
            block_on(async {
                let (mut client, server) = pair().await;
                let client = async {
                    client.write_all(&sent).await.unwrap();
                    client.shutdown().await.unwrap();
                    let _ = client.read_to_end(&mut Vec::new()).await;
                };
                tokio::join!(run::<RealEnv, _, _>(server, never(), NEVER, answer), client);
            });
        }
    }

    /// A client that does not answer a PING is dead, one that does may be silent for as long as it likes.
    #[test]
    fn keepalive() {
        const KEEPALIVE: Duration = Duration::from_millis(200);
        const TIMES: Times = Times { keepalive: KEEPALIVE, ..NEVER };
        block_on(async {
            let (mut dead, server) = pair().await;
            dead.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
            run::<RealEnv, _, _>(server, never(), TIMES, answer).await;
            let mut received = Vec::new();
            dead.read_to_end(&mut received).await.unwrap();
            assert!(received.windows(4).any(|head| head == [0, 0, 8, 6]), "no PING in {received:?}");

            let (alive, server) = pair().await;
            env::spawn::<RealEnv>(run::<RealEnv, _, _>(server, never(), TIMES, answer));
            let mut requests = client(alive).await;
            assert_eq!(status(&mut requests).await.unwrap(), 200);
            env::sleep::<RealEnv>(KEEPALIVE * 5).await;
            assert_eq!(status(&mut requests).await.unwrap(), 200);
        });
    }

    /// A shutdown lets calls in flight finish, takes no new ones, and then ends the connection.
    #[test]
    fn going_away() {
        block_on(async {
            let (stream, server) = pair().await;
            let (shut, shutdown) = oneshot::channel::<()>();
            let (finish, finished) = oneshot::channel::<()>();
            let finished = Cell::new(Some(finished));
            let start = |_, responses: Responses| {
                let finished = finished.take();
                async move {
                    if let Some(finished) = finished {
                        finished.await.unwrap();
                    }
                    responses.finish(Ok(()));
                }
            };
            let shutdown: Timer = Box::pin(async {
                let _ = shutdown.await;
            });
            let client = async {
                let mut requests = client(stream).await;
                let request = Request::post("http://x/").body(()).unwrap();
                let (response, _) = requests.send_request(request, true).unwrap();
                // An answer to the second one says that the first one was accepted.
                assert_eq!(status(&mut requests).await.unwrap(), 200);
                shut.send(()).unwrap();
                while status(&mut requests).await.is_ok() {}
                finish.send(()).unwrap();
                assert_eq!(response.await.unwrap().status(), 200);
            };
            tokio::join!(run::<RealEnv, _, _>(server, shutdown, NEVER, start), client);
        });
    }

    /// Nobody holds up a shutdown by saying nothing.
    #[test]
    fn going_away_in_the_handshake() {
        block_on(async {
            let (_silent, server) = pair().await;
            run::<RealEnv, _, _>(server, Box::pin(async {}), NEVER, answer).await;
        });
    }

    /// A call that wakes itself in more rounds than one turn of the task has goes on in the next turn.
    #[test]
    fn many_rounds() {
        block_on(async {
            let (stream, server) = pair().await;
            let start = |_, respond| async move {
                let mut left = 5 * ROUNDS_MAX;
                // At once, while its connection's turn lasts; `yield_now` wakes only behind it.
                poll_fn(|cx| {
                    left -= 1;
                    cx.waker().wake_by_ref();
                    if left == 0 { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                Responses::new(respond).finish(Ok(()));
            };
            let client = async {
                let mut requests = client(stream).await;
                tokio::select! {
                    answer = status(&mut requests) => assert_eq!(answer.unwrap(), 200),
                    () = env::sleep::<RealEnv>(Duration::from_secs(20)) => panic!("it does not go on"),
                }
            };
            tokio::select! {
                () = run::<RealEnv, _, _>(server, never(), NEVER, start) => panic!("the connection ended"),
                () = client => {}
            }
        });
    }

    /// Calls that the client has cancelled end as soon as they look; cancelling all that a connection may have, again and
    /// again, does not end the connection.
    #[test]
    fn cancelled_calls_end() {
        block_on(async {
            let (stream, server) = pair().await;
            let waiting = Rc::new(Cell::new(0));
            let start = |_, mut responses: Responses| {
                let waiting = waiting.clone();
                async move {
                    waiting.set(waiting.get() + 1);
                    poll_fn(|cx| responses.poll_gone(cx)).await;
                    waiting.set(waiting.get() - 1);
                }
            };
            let client = async {
                let mut requests = client(stream).await;
                for _ in 0..5 {
                    let mut calls = Vec::new();
                    for _ in 0..limits::STREAMS_PER_CONNECTION_MAX / 2 {
                        std::future::poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                        let request = Request::post("http://x/").body(()).unwrap();
                        calls.push(requests.send_request(request, true).unwrap());
                    }
                    while waiting.get() < calls.len() {
                        crate::env::yield_now().await;
                    }
                    drop(calls);
                    while waiting.get() > 0 {
                        crate::env::yield_now().await;
                    }
                }
            };
            tokio::select! {
                () = run::<RealEnv, _, _>(server, never(), NEVER, start) => panic!("the connection ended"),
                () = client => {}
            }
        });
    }
}
