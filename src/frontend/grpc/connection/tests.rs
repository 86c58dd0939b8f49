//! A connection with a client that speaks HTTP/2 as the h2 crate does, or by hand.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::*;
use crate::env::real::RealEnv;
use crate::env::runtime::block_on;
use crate::format::grpc;
use crate::format::grpc::Encoding;
use crate::frontend::grpc::RESET_MEMORY;
use crate::frontend::grpc::stream::Requests;
use crate::frontend::grpc::tests::answers;
use crate::frontend::grpc::tests::pair;
use crate::frontend::grpc::tests::received;
use crate::reactor::seats::Seats;

mod turns;

const NEVER: Times = Times { keepalive: Duration::from_secs(3_600), reset_memory: RESET_MEMORY };

/// Answers at once.
async fn answer(_: Request<h2::RecvStream>, responses: Responses) {
    responses.finish(Ok(()));
}

/// Alone on its reactor.
fn shared() -> Shared {
    Shared { answers: answers(), received: received(), lane: Rc::default(), seat: Rc::<Seats>::default().take(0) }
}

fn never() -> Timer {
    Box::pin(std::future::pending())
}

/// Serves a connection, which is polled only when it was woken, as in a task of its own: what else goes on in a test's task makes
/// up for no wake that is missing.
async fn run_alone<S: AsyncRead + AsyncWrite + Unpin, F: Future<Output = ()>>(
    stream: S,
    shared: Shared,
    shutdown: Timer,
    times: Times,
    start: impl Fn(Request<h2::RecvStream>, Responses) -> F,
) {
    let mut alone = FuturesUnordered::from_iter([run::<RealEnv, _, _>(stream, shared, shutdown, times, start)]);
    assert!(alone.next().await.is_some());
}

/// The reason of the GOAWAY (RFC 9113, section 6.8) with which all that came ends.
fn goodbye(received: &[u8]) -> Option<Reason> {
    let [0, 0, 8, 7, 0, 0, 0, 0, 0, _, _, _, _, reason @ ..] = received.last_chunk::<17>()? else { return None };
    Some(u32::from_be_bytes(*reason).into())
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
                let mut requests = Requests::new(request.into_body(), Encoding::Identity, 1 << 20, received());
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
            let (_, mut stream) = requests.send_request(Request::post("http://x/").body(()).unwrap(), false).unwrap();
            stream.reserve_capacity(1 << 20);
            env::yield_times(1_000).await;
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
            () = run_alone(server, shared(), never(), NEVER, start) => panic!("the connection ended"),
            () = client => {}
        }
    });
}

/// A stream that nobody reads takes its own window, not the room of the others.
#[test]
fn a_stream_that_waits() {
    block_on(async {
        let (stream, server) = pair().await;
        let start = async |request: Request<h2::RecvStream>, responses: Responses| {
            let waits = request.uri().path() == "/waits";
            let mut requests = Requests::new(request.into_body(), Encoding::Identity, 1 << 20, responses.received());
            if waits {
                poll_fn(|cx| {
                    requests.hold(cx);
                    Poll::<()>::Pending
                })
                .await;
            }
            while poll_fn(|cx| requests.poll_next(cx)).await.unwrap().is_some() {}
            responses.finish(Ok(()));
        };
        let client = async {
            let mut requests = client(stream).await;
            poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
            let request = Request::post("http://x/waits").body(()).unwrap();
            let (_waits, mut waits) = requests.send_request(request, false).unwrap();
            let mut left = STREAM_WINDOW_BYTES as usize;
            while left > 0 {
                waits.reserve_capacity(left);
                let granted = poll_fn(|cx| waits.poll_capacity(cx)).await.unwrap().unwrap();
                waits.send_data(vec![0; granted].into(), false).unwrap();
                left -= granted;
            }
            poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
            let request = Request::post("http://x/").body(()).unwrap();
            let (response, mut other) = requests.send_request(request, false).unwrap();
            other.send_data([&grpc::prefix(20_000)[..], &vec![0; 20_000]].concat().into(), true).unwrap();
            assert_eq!(response.await.unwrap().status(), 200);
        };
        tokio::select! {
            () = run_alone(server, shared(), never(), NEVER, start) => panic!("the connection ended"),
            () = client => {}
        }
    });
}

/// Frames that bring nothing, without an end, also with a byte of a message now and then: the client is told, and its connection
/// is closed.
#[test]
fn idle_frames() {
    const WINDOW_UPDATE: &[u8] = b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01";
    const PRIORITY: &[u8] = b"\0\0\x05\x02\0\0\0\0\x03\0\0\0\0\x01";
    const UNKNOWN: &[u8] = b"\0\0\0\x77\0\0\0\0\0";
    const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0ringlog!";
    const BYTE: &[u8] = b"\0\0\x01\0\0\0\0\0\x01x";
    // POST http://x/, and the prefix of a message.
    const CALL: &[u8] = b"\0\0\x06\x01\x04\0\0\0\x01\x83\x86\x84\x41\x01x\0\0\x05\0\0\0\0\0\x01\0\0\x0f\xff\xff";
    let mixed = |idle: &[u8]| [BYTE, &idle.repeat(8)].concat();
    let alone = [WINDOW_UPDATE, PRIORITY, UNKNOWN, PING].map(<[u8]>::to_vec);
    for frames in alone.into_iter().chain([WINDOW_UPDATE, PRIORITY, UNKNOWN].map(mixed)) {
        block_on(async {
            // No bytes are lost when its other end is dropped, as they may be with TCP's reset.
            let (client, server) = tokio::io::duplex(64 << 10);
            let (mut input, mut output) = tokio::io::split(client);
            let write = async {
                output.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
                output.write_all(CALL).await.unwrap();
                let many = frames.repeat(1_000);
                let mut times = 0;
                while times < 100 && output.write_all(&many).await.is_ok() {
                    times += 1;
                }
                assert!(times < 100, "{frames:?} are taken without an end");
            };
            let read = async {
                let mut received = Vec::new();
                input.read_to_end(&mut received).await.unwrap();
                assert_eq!(goodbye(&received), Some(Reason::ENHANCE_YOUR_CALM), "{frames:?}");
            };
            let start = async |request: Request<h2::RecvStream>, responses: Responses| {
                let mut requests =
                    Requests::new(request.into_body(), Encoding::Identity, 1 << 20, responses.received());
                while let Ok(Some(_)) = poll_fn(|cx| requests.poll_next(cx)).await {}
            };
            tokio::join!(run_alone(server, shared(), never(), NEVER, start), write, read);
        });
    }
}

/// An answer that takes many turns comes whole, although nobody but the connection itself begins the next turn.
#[test]
fn a_large_answer() {
    // One that h2 takes whole, after which nothing but a turn is left to do, and one that its call has to feed.
    for bytes in [900 << 10, 4 << 20] {
        large_answer(bytes);
    }
}

fn large_answer(answer_bytes: usize) {
    block_on(async {
        let (stream, server) = pair().await;
        let start = move |_: Request<h2::RecvStream>, mut responses: Responses| async move {
            let mut body = Body::message(b"", vec![Bytes::from(vec![7; answer_bytes])]);
            assert!(poll_fn(|cx| responses.poll_send(cx, &mut body)).await.is_ok());
            responses.finish(Ok(()));
        };
        let client = async {
            let mut builder = h2::client::Builder::new();
            builder.initial_window_size(8 << 20).initial_connection_window_size(8 << 20);
            let (mut requests, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
            let ask = async {
                poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                let request = Request::post("http://x/").body(()).unwrap();
                let mut body = requests.send_request(request, true).unwrap().0.await.unwrap().into_body();
                let mut received = 0;
                while let Some(data) = body.data().await {
                    received += data.unwrap().len();
                }
                assert_eq!(received, answer_bytes + grpc::PREFIX_BYTES);
            };
            tokio::select! {
                () = ask => {}
                ended = connection => panic!("the connection ended: {ended:?}"),
            }
        };
        tokio::select! {
            () = run_alone(server, shared(), never(), NEVER, start) => panic!("the connection ended"),
            () = client => {}
        }
    });
}

/// A client whose memory is wanted is told why its connection ends.
#[test]
fn evicted() {
    block_on(async {
        let (mut client, server) = pair().await;
        let shared = shared();
        let answers = shared.answers.clone();
        let client = async {
            client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
            let mut received = Vec::new();
            // It is a client by its first answer.
            while received.is_empty() {
                client.read_buf(&mut received).await.unwrap();
            }
            answers.evict();
            client.read_to_end(&mut received).await.unwrap();
            received
        };
        let ((), received) = tokio::join!(run_alone(server, shared, never(), NEVER, answer), client);
        assert_eq!(goodbye(&received), Some(Reason::ENHANCE_YOUR_CALM), "{received:?}");
    });
}

/// A client that speaks something else is told what this port is, without a byte of HTTP/2 before it, whether its bytes come
/// together or one by one.
#[test]
fn other_languages() {
    for (sent, answered) in [
        (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &b"HTTP/1.1 505 "[..]),
        (b"POST /v1/x HTTP/1.1\r\n\r\n", b"HTTP/1.1 505 "),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", b"HTTP/1.1 505 "),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", b"\x15\x03\x01\0\x02\x02\x46"),
        (b"\0\0\0\0", b""),
        (b"WHICHEVER THIS", b""),
        (b"hello", b""),
    ] {
        for bytes_at_once in [1, 1 << 10] {
            block_on(async {
                let (client, server) = tokio::io::duplex(bytes_at_once);
                let (mut input, mut output) = tokio::io::split(client);
                // What comes when the answer is clear is not read.
                let write = async { drop(output.write_all(sent).await) };
                let read = async {
                    let mut received = Vec::new();
                    input.read_to_end(&mut received).await.unwrap();
                    assert!(received.starts_with(answered), "{received:?}");
                    assert_eq!(received.is_empty(), answered.is_empty());
                };
                tokio::join!(run_alone(server, shared(), never(), NEVER, answer), write, read);
            });
        }
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
            let mut requests = Requests::new(request.into_body(), Encoding::Identity, 1 << 20, received());
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
            () = run_alone(server, shared(), never(), NEVER, start) => panic!("the connection ended"),
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
            env::yield_times(2_000).await;
            // All at once: what waits on one stream takes from the windows of all.
            let read = responses.into_iter().enumerate().map(async |(i, response)| {
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
            });
            futures_util::future::join_all(read).await;
        };
        tokio::select! {
            () = run_alone(server, shared(), never(), NEVER, start) => panic!("the connection ended"),
            () = client => {}
        }
    });
}

/// A client of the h2 crate that reads one small message after the other, far behind: what it gives back of a window that is used
/// up has room for just one more, and none is cut in two.
#[test]
fn slow_readers_of_small_messages() {
    const MESSAGES: usize = 1_500;
    block_on(async {
        let (stream, server) = pair().await;
        let start = |_, mut responses: Responses| async move {
            for _ in 0..MESSAGES {
                let mut body = Body::message(b"", Vec::new());
                poll_fn(|cx| responses.poll_send(cx, &mut body)).await.unwrap();
            }
            responses.finish(Ok(()));
        };
        let client = async {
            let mut requests = client(stream).await;
            let request = Request::post("http://x/").body(()).unwrap();
            let mut body = requests.send_request(request, true).unwrap().0.await.unwrap().into_body();
            let mut assembler = grpc::Assembler::new(1 << 20);
            let mut messages = 0;
            loop {
                // The server fills the window again.
                env::yield_times(20).await;
                let Some(data) = body.data().await else { break };
                let data = data.unwrap();
                body.flow_control().release_capacity(data.len()).unwrap();
                assembler.push(data);
                while assembler.next_message().unwrap().is_some() {
                    messages += 1;
                }
            }
            assert_eq!(messages, MESSAGES);
        };
        tokio::select! {
            () = run_alone(server, shared(), never(), NEVER, start) => panic!("the connection ended"),
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
            tokio::join!(run_alone(server, shared(), never(), NEVER, answer), client);
        });
    }
}

/// What breaks a rule of HTTP/2 ends the connection, with the reason that RFC 9113 names for it where the crate does so: for frames
/// of a wrong size and for header blocks it says `PROTOCOL_ERROR`.
#[test]
fn reasons_of_connection_errors() {
    let start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let cases: [(&str, &[u8], Reason); 8] = [
        ("6.5: SETTINGS of five bytes", b"\0\0\x05\x04\0\0\0\0\0abcde", Reason::PROTOCOL_ERROR),
        ("6.7: a PING of seven bytes", b"\0\0\x07\x06\0\0\0\0\0abcdefg", Reason::PROTOCOL_ERROR),
        ("4.2: a frame larger than was allowed", b"\xff\xff\xff\0\0\0\0\0\x01", Reason::FRAME_SIZE_ERROR),
        ("6.5: SETTINGS of a stream", b"\0\0\0\x04\0\0\0\0\x01", Reason::PROTOCOL_ERROR),
        ("6.1: DATA of no stream", b"\0\0\x01\0\0\0\0\0\0a", Reason::PROTOCOL_ERROR),
        ("5.1.1: HEADERS of an even stream", b"\0\0\x01\x01\x05\0\0\0\x02\x83", Reason::PROTOCOL_ERROR),
        ("4.3: no HPACK", b"\0\0\x05\x01\x05\0\0\0\x01\xff\xff\xff\xff\xff", Reason::PROTOCOL_ERROR),
        ("6.9.1: a window of 2^31", b"\0\0\x04\x08\0\0\0\0\0\x7f\xff\xff\xff", Reason::FLOW_CONTROL_ERROR),
    ];
    let mut wrong = Vec::new();
    for (what, frame, expected) in cases {
        block_on(async {
            let (mut client, server) = pair().await;
            client.write_all(&[start, frame].concat()).await.unwrap();
            run_alone(server, shared(), never(), NEVER, answer).await;
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            let said = goodbye(&received);
            if said != Some(expected) {
                wrong.push((what, said, expected));
            }
        });
    }
    assert_eq!(wrong, []);
}

/// A client that does not answer a PING is dead, and told, should it merely have been stopped; one that does may be silent for
/// as long as it likes.
#[test]
fn keepalive() {
    const KEEPALIVE: Duration = Duration::from_millis(200);
    const TIMES: Times = Times { keepalive: KEEPALIVE, ..NEVER };
    block_on(async {
        let (mut dead, server) = pair().await;
        dead.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        run_alone(server, shared(), never(), TIMES, answer).await;
        let mut received = Vec::new();
        dead.read_to_end(&mut received).await.unwrap();
        assert!(received.windows(4).any(|head| head == [0, 0, 8, 6]), "no PING in {received:?}");
        assert_eq!(goodbye(&received), Some(Reason::NO_ERROR), "{received:?}");

        let (alive, server) = pair().await;
        env::spawn::<RealEnv>(run_alone(server, shared(), never(), TIMES, answer));
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
        tokio::join!(run_alone(server, shared(), shutdown, NEVER, start), client);
    });
}

/// Nobody holds up a shutdown by saying nothing, or too little to tell what it is.
#[test]
fn going_away_in_the_handshake() {
    for said in [&b""[..], b"PRI", b"G"] {
        block_on(async {
            let (mut silent, server) = tokio::io::duplex(1 << 10);
            silent.write_all(said).await.unwrap();
            run_alone(server, shared(), Box::pin(async {}), NEVER, answer).await;
        });
    }
}

/// A call that wakes itself in more rounds than one turn of the task has goes on in the next turn.
#[test]
fn many_rounds() {
    block_on(async {
        let (stream, server) = pair().await;
        let start = |_, responses: Responses| async move {
            let mut left = 5 * ROUNDS_MAX;
            // At once, while its connection's turn lasts; `yield_now` wakes only behind it.
            poll_fn(|cx| {
                left -= 1;
                cx.waker().wake_by_ref();
                if left == 0 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            responses.finish(Ok(()));
        };
        let client = async {
            let mut requests = client(stream).await;
            tokio::select! {
                answer = status(&mut requests) => assert_eq!(answer.unwrap(), 200),
                () = env::sleep::<RealEnv>(Duration::from_secs(20)) => panic!("it does not go on"),
            }
        };
        tokio::select! {
            () = run_alone(server, shared(), never(), NEVER, start) => panic!("the connection ended"),
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
            () = run_alone(server, shared(), never(), NEVER, start) => panic!("the connection ended"),
            () = client => {}
        }
    });
}
