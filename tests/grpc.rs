//! The gRPC layer of a whole node, as a client sees it that speaks HTTP/2 by hand: what stock clients never
//! send. (What they do send is in tests/interop.)

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "these are tests")]

use std::future::Future;
use std::future::poll_fn;
use std::io::Write;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use futures_util::FutureExt;
use h2::Reason;
use h2::client::SendRequest;
use http::HeaderMap;
use http::Request;
use http::StatusCode;
use http::request::Builder;
use prost::Message;
use ringlog::format::grpc::prefix;
use ringlog::proto::ringlog::v1;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const PRODUCE: &str = "/ringlog.v1.Log/Produce";
const PRODUCE_STREAM: &str = "/ringlog.v1.Log/ProduceStream";
const CONSUME: &str = "/ringlog.v1.Log/Consume";
const CONSUME_STREAM: &str = "/ringlog.v1.Log/ConsumeStream";

/// Runs `test` against a node of its own.
fn with_node<F: Future<Output = ()>>(test: impl FnOnce(SocketAddr) -> F) {
    with_reactors(1, test);
}

fn with_reactors<F: Future<Output = ()>>(reactors: usize, test: impl FnOnce(SocketAddr) -> F) {
    let data = tempfile::tempdir().unwrap();
    let config = ringlog::config::Config {
        data: data.path().to_owned(),
        grpc: ([127, 0, 0, 1], 0).into(),
        http: ([127, 0, 0, 1], 0).into(),
        peer: ([127, 0, 0, 1], 0).into(),
        reactors,
        pin: false,
        ..Default::default()
    };
    let node = ringlog::server::Node::start(config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(test(node.grpc_addr())));
    drop(runtime);
    node.shutdown().unwrap();
}

/// A connection with h2's defaults: windows are HTTP/2's smallest, and so is the budget for small frames that wait to be read.
async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::task::spawn_local(connection);
    requests
}

fn post(path: &str) -> Builder {
    Request::post(format!("http://node{path}")).header("content-type", "application/grpc").header("te", "trailers")
}

fn message(message: &impl Message) -> Vec<u8> {
    framed(0, &message.encode_to_vec())
}

fn framed(flag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = prefix(bytes.len()).to_vec();
    out[0] = flag;
    out.extend_from_slice(bytes);
    out
}

fn records(values: &[&[u8]]) -> v1::ProduceRequest {
    let record = |value: &&[u8]| v1::Record { value: Bytes::copy_from_slice(value), ..Default::default() };
    v1::ProduceRequest { shard: Some(0), records: values.iter().map(record).collect(), ..Default::default() }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// What came back.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    /// One per DATA frame.
    data: Vec<Bytes>,
    trailers: HeaderMap,
}

impl Answer {
    /// grpc-status, from the trailers or, if there are none, from the headers.
    fn code(&self) -> &str {
        let value = self.trailers.get("grpc-status").or(self.headers.get("grpc-status"));
        value.expect("there is a grpc-status").to_str().unwrap()
    }

    fn messages<M: Message + Default>(&self) -> Vec<M> {
        let bytes = self.data.concat();
        let (mut rest, mut found) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            assert_eq!(rest[0], 0);
            let len = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            found.push(M::decode(&rest[5..5 + len]).unwrap());
            rest = &rest[5 + len..];
        }
        found
    }
}

/// Sends `body` in the given pieces, one DATA frame each; does not end the stream unless `end`.
async fn call(
    requests: &mut SendRequest<Bytes>,
    request: Builder,
    body: impl IntoIterator<Item = Vec<u8>>,
    end: bool,
) -> Answer {
    poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
    let (response, mut stream) = requests.send_request(request.body(()).unwrap(), false).unwrap();
    for piece in body {
        stream.send_data(piece.into(), false).unwrap();
    }
    if end {
        stream.send_data(Bytes::new(), true).unwrap();
    }
    receive(response).await
}

async fn receive(response: h2::client::ResponseFuture) -> Answer {
    let (head, mut body) = response.await.unwrap().into_parts();
    let mut data = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        data.push(piece);
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    Answer { status: head.status, headers: head.headers, data, trailers }
}

/// The connection still serves.
async fn check(requests: &mut SendRequest<Bytes>) {
    let answer = call(requests, post(PRODUCE), [message(&records(&[b"check"]))], true).await;
    assert_eq!(answer.code(), "0", "{answer:?}");
}

/// The shape of an answer that succeeds, and of one that fails at once.
#[test]
fn headers_data_trailers() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let answer = call(requests, post(PRODUCE), [message(&records(&[b"a", b"b"]))], true).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["content-type"], "application/grpc");
        assert_eq!(answer.data.len(), 1, "a small response is one DATA frame");
        assert_eq!(answer.trailers.len(), 1);
        let [ack] = &answer.messages::<v1::ProduceResponse>()[..] else { panic!("{answer:?}") };
        assert_eq!((ack.base_offset, ack.count, ack.topic.as_str()), (0, 2, "default"));

        let answer = call(requests, post("/ringlog.v1.Log/None"), [], true).await;
        assert_eq!(answer.status, 200);
        assert!(answer.data.is_empty() && answer.trailers.is_empty(), "headers only: {answer:?}");
        assert_eq!(answer.headers["content-type"], "application/grpc");
        assert_eq!(answer.code(), "12");
        assert!(answer.headers["grpc-message"].to_str().unwrap().contains("/ringlog.v1.Log/None"));
        assert!(answer.headers.contains_key("grpc-status-details-bin"));
    });
}

/// Whether the error says that nothing behind the failed request is written.
fn behind_definite(answer: &Answer) -> bool {
    let details = answer.trailers.get("grpc-status-details-bin").or(answer.headers.get("grpc-status-details-bin"));
    let details = base64::engine::general_purpose::STANDARD_NO_PAD.decode(details.unwrap()).unwrap();
    let status = ringlog::proto::google::rpc::Status::decode(&details[..]).unwrap();
    let info = ringlog::proto::google::rpc::ErrorInfo::decode(&status.details[0].value[..]).unwrap();
    assert_eq!(info.metadata["definite"], "true");
    info.metadata.get("behind_definite").is_some_and(|value| value == "true")
}

/// A stream that ends with a failed request says whether those behind it may have been written.
#[test]
fn what_is_behind_a_failed_request() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let at = |expected_offset| message(&v1::ProduceRequest { expected_offset, ..records(&[b"x"]) });
        let refused = call(requests, post(PRODUCE_STREAM), [at(None), at(Some(99)), at(Some(98))], true).await;
        assert_eq!((refused.code(), refused.messages::<v1::ProduceStreamResponse>().len()), ("9", 1), "{refused:?}");
        assert!(behind_definite(&refused), "all behind it were refused, too");
        let refused = call(requests, post(PRODUCE_STREAM), [at(Some(99)), at(None), at(Some(98))], true).await;
        assert_eq!((refused.code(), refused.messages::<v1::ProduceStreamResponse>().len()), ("9", 0), "{refused:?}");
        assert!(!behind_definite(&refused), "one behind it is written");
        let refused = call(requests, post(PRODUCE_STREAM), [at(None), framed(1, b"x"), at(None)], true).await;
        assert_eq!(refused.messages::<v1::ProduceStreamResponse>().len(), 1, "{refused:?}");
        assert!(behind_definite(&refused), "nothing behind a message that cannot be read is looked at");
        check(requests).await;
    });
}

/// What is not gRPC gets an HTTP status; what is, gets a gRPC one.
#[test]
fn requests_that_are_refused_by_their_head() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let uri = format!("http://node{PRODUCE}");
        for (request, status) in [
            (Request::get(&uri).header("content-type", "application/grpc"), 405),
            (Request::put(&uri).header("content-type", "application/grpc"), 405),
            (Request::post(&uri), 415),
            (Request::post(&uri).header("content-type", "application/json"), 415),
            (Request::post(&uri).header("content-type", "application/grpc+json"), 415),
            (post(PRODUCE).header("x", "y".repeat(20_000)), 431),
        ] {
            let answer = call(requests, request, [], true).await;
            assert_eq!(answer.status, status, "{answer:?}");
        }
        for (request, code) in [
            (post(PRODUCE).header("grpc-timeout", "1"), "3"),
            (post(PRODUCE).header("grpc-timeout", "123456789S"), "3"),
            (post(PRODUCE).header("grpc-timeout", "soon"), "3"),
            (post(PRODUCE).header("grpc-timeout", "0n"), "4"),
            (post(PRODUCE).header("grpc-encoding", "br"), "12"),
            (post("/"), "12"),
            (post("/ringlog.v1.Log/Produce/"), "12"),
        ] {
            let answer = call(requests, request, [message(&records(&[b"x"]))], true).await;
            assert_eq!((answer.status, answer.code()), (StatusCode::OK, code), "{answer:?}");
            assert!(answer.data.is_empty());
        }
        let answer = call(requests, post(PRODUCE).header("grpc-encoding", "br"), [], true).await;
        assert_eq!(answer.headers["grpc-accept-encoding"], "identity,gzip");
        // Nothing of all that was written; `te` and parameters are not asked for.
        let request = Request::post(&uri).header("content-type", "application/grpc+proto; x=y");
        let answer = call(requests, request, [message(&records(&[b"x"]))], true).await;
        assert_eq!(answer.messages::<v1::ProduceResponse>()[0].base_offset, 0);
    });
}

/// Bodies that are not one message: each has its status, and the connection goes on.
#[test]
fn bodies_that_are_wrong() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let one = message(&records(&[b"x"]));
        for (what, body, code) in [
            ("nothing", vec![], "12"),
            ("two messages", [one.clone(), one.clone()].concat(), "12"),
            ("cut in the prefix", one[..3].to_vec(), "13"),
            ("cut in the message", one[..one.len() - 1].to_vec(), "13"),
            ("a second one that is cut", [&one[..], &one[..7]].concat(), "13"),
            ("compressed, without an encoding", framed(1, b"x"), "13"),
            ("unknown flag", framed(2, b"x"), "13"),
            ("too long", prefix(5 << 20).to_vec(), "8"),
            ("4 GiB", vec![0, 255, 255, 255, 255], "8"),
            ("not protobuf", framed(0, b"\xff\xff\xff"), "3"),
            ("no records", framed(0, b""), "3"),
        ] {
            let answer = call(requests, post(PRODUCE), [body], true).await;
            assert_eq!(answer.code(), code, "{what}: {answer:?}");
        }
        check(requests).await;
    });
}

/// A length that lies is refused when it is read: the answer does not wait for a body that never comes.
#[test]
fn a_length_is_checked_before_the_message() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        for path in [PRODUCE, PRODUCE_STREAM, CONSUME, CONSUME_STREAM] {
            let answer = call(requests, post(path), [prefix((4 << 20) + 1).to_vec()], false).await;
            assert_eq!(answer.code(), "8", "{answer:?}");
        }
        check(requests).await;
    });
}

/// Messages come out the same however they are cut: into single bytes, and several into one frame.
#[test]
fn any_frames() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let one = message(&records(&[b"some value", b"another"]));
        let single_bytes = one.iter().map(|byte| vec![*byte]);
        let answer = call(requests, post(PRODUCE), single_bytes, true).await;
        assert_eq!(answer.messages::<v1::ProduceResponse>()[0].count, 2);

        let stream = one.repeat(20);
        for size in [1, 7, 64, 1_000] {
            let answer = call(requests, post(PRODUCE_STREAM), stream.chunks(size).map(<[u8]>::to_vec), true).await;
            let acks = answer.messages::<v1::ProduceStreamResponse>();
            assert_eq!((answer.code(), acks.len()), ("0", 20), "{answer:?}");
            assert!(acks.windows(2).all(|pair| pair[0].base_offset + 2 == pair[1].base_offset));
        }
    });
}

/// A burst of small frames is legal, and its acknowledgements are packed.
#[test]
fn a_burst_of_small_frames() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let one = message(&records(&[b"x"]));
        let answer = call(requests, post(PRODUCE_STREAM), vec![one; 10_000], true).await;
        let acks = answer.messages::<v1::ProduceStreamResponse>();
        assert_eq!((answer.code(), acks.len()), ("0", 10_000));
        assert!(acks.iter().enumerate().all(|(i, ack)| ack.base_offset == i as u64));
        assert!(answer.data.len() < 5_000, "{} frames for 10,000 acks", answer.data.len());
        check(requests).await;
    });
}

/// Tiny messages, as many as windows allow, on several streams, by a client that looks at the answers late: it is as legal
/// as it looks, and neither side closes.
#[test]
fn tiny_messages_on_many_streams() {
    const STREAMS: usize = 8;
    const MESSAGES: usize = 4_000;
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let one = message(&records(&[b"x"]));
        let mut responses = Vec::new();
        for _ in 0..STREAMS {
            poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
            let (response, mut stream) = requests.send_request(post(PRODUCE_STREAM).body(()).unwrap(), false).unwrap();
            for _ in 0..MESSAGES {
                stream.send_data(one.clone().into(), false).unwrap();
            }
            stream.send_data(Bytes::new(), true).unwrap();
            responses.push(response);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let answers = futures_util::future::join_all(responses.into_iter().map(receive)).await;
        for answer in answers {
            assert_eq!((answer.code(), answer.messages::<v1::ProduceStreamResponse>().len()), ("0", MESSAGES));
        }
        check(requests).await;
    });
}

/// A client that lets acknowledgements wait until its window and everything behind it is full, and then opens it wide
/// with one SETTINGS frame: the stream goes on by itself, as no other frame comes that could wake it.
#[test]
fn a_window_that_opens_once() {
    const MESSAGES: usize = 9_000;
    with_node(async |address| {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut client = h2::client::Builder::new();
        client.initial_window_size(65_535).initial_connection_window_size(32 << 20).data_frame_budget(16 << 20);
        let (mut requests, mut connection) = client.handshake::<_, Bytes>(stream).await.unwrap();
        let (open, opened) = tokio::sync::oneshot::channel::<()>();
        let mut opened = opened.fuse();
        tokio::task::spawn_local(poll_fn(move |cx| {
            if opened.poll_unpin(cx) == Poll::Ready(Ok(())) {
                connection.set_initial_window_size(16 << 20).unwrap();
            }
            connection.poll_unpin(cx)
        }));
        poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
        let (response, mut stream) = requests.send_request(post(PRODUCE_STREAM).body(()).unwrap(), false).unwrap();
        for _ in 0..MESSAGES {
            stream.send_data(message(&records(&[&[7; 100]])).into(), false).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
        let (_, mut body) = response.await.unwrap().into_parts();
        // Nothing is released, so acknowledgements stop at the window ...
        let mut received = Vec::new();
        while received.len() < 65_535 {
            received.extend_from_slice(&body.data().await.unwrap().unwrap());
        }
        // ... and the node has time to fill everything behind it.
        let mut watermark = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let at_end =
                v1::ConsumeRequest { start: Some(v1::consume_request::Start::Position(2)), ..Default::default() };
            let mut other = connect(address).await;
            let answer = call(&mut other, post(CONSUME), [message(&at_end)], true).await;
            let now = answer.messages::<v1::ConsumeResponse>()[0].high_watermark;
            if now == watermark {
                break;
            }
            watermark = now;
        }
        assert!(watermark < MESSAGES as u64, "nothing had to wait");
        open.send(()).unwrap();
        let rest = async {
            while let Some(piece) = body.data().await {
                received.extend_from_slice(&piece.unwrap());
            }
            body.trailers().await.unwrap().unwrap()
        };
        let trailers = tokio::time::timeout(Duration::from_secs(20), rest).await.expect("the stream goes on");
        assert_eq!(trailers["grpc-status"], "0");
        let answer =
            Answer { status: StatusCode::OK, headers: HeaderMap::new(), data: vec![received.into()], trailers };
        assert_eq!(answer.messages::<v1::ProduceStreamResponse>().len(), MESSAGES);
    });
}

/// More streams than a mailbox or a shard's queue takes at once, all of them fast: they wait for room, for a shard of the
/// connection's own reactor as for one of another, and for a topic that the first of them makes. None of them fails.
#[test]
fn fast_streams_wait_for_room() {
    const STREAMS: usize = 24;
    const MESSAGES: usize = 1_500;
    with_reactors(2, async |address| {
        let requests = connect(address).await;
        for (topic, shard) in [("", Some(0)), ("", Some(1)), ("made by the first of them", None)] {
            let topic = topic.replace(' ', "-");
            let one = message(&v1::ProduceRequest { topic, shard, ..records(&[b"x"]) });
            let streams = (0..STREAMS).map(|_| {
                let (mut requests, body) = (requests.clone(), vec![one.clone(); MESSAGES]);
                async move { call(&mut requests, post(PRODUCE_STREAM), body, true).await }
            });
            for answer in futures_util::future::join_all(streams).await {
                let acks = answer.messages::<v1::ProduceStreamResponse>();
                assert_eq!((answer.code(), acks.len()), ("0", MESSAGES), "{:?}", answer.trailers);
                for shard in [0, 1] {
                    let offsets = acks.iter().filter(|ack| ack.shard == shard).map(|ack| ack.base_offset);
                    assert!(offsets.is_sorted_by(|one, next| one < next));
                }
            }
        }
    });
}

/// Streams whose client reads no acknowledgement hold no room: what they have under way is taken all the same, so that another
/// client's stream to the same shard goes on. Without that about two dozen of them have all the room of a reactor.
#[test]
fn acks_that_nobody_reads() {
    const STREAMS: usize = 40;
    const GOOD_MESSAGES: usize = 3_000;
    with_node(async |address| {
        // Long names: few acknowledgements are as many bytes as may wait, and behind them go as many requests as may be in flight.
        let topic = "t".repeat(249);
        let one = message(&v1::ProduceRequest { topic: topic.clone(), ..records(&[b"x"]) });
        let good = &mut connect(address).await;
        assert_eq!(call(good, post(PRODUCE), [one.clone()], true).await.code(), "0");

        let stream = TcpStream::connect(address).await.unwrap();
        let (mut requests, connection) =
            h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(stream).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut held = Vec::new();
        for _ in 0..STREAMS {
            poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
            let (response, mut stream) = requests.send_request(post(PRODUCE_STREAM).body(()).unwrap(), false).unwrap();
            for _ in 0..1_300 {
                stream.send_data(one.clone().into(), false).unwrap();
            }
            held.push((response.await.unwrap(), stream));
        }
        let mut written = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let start = Some(v1::consume_request::Start::Position(2));
            let at_end = v1::ConsumeRequest { topic: topic.clone(), start, ..Default::default() };
            let answer = call(good, post(CONSUME), [message(&at_end)], true).await;
            let now = answer.messages::<v1::ConsumeResponse>()[0].high_watermark;
            if now == written {
                break;
            }
            written = now;
        }
        let stream = call(good, post(PRODUCE_STREAM), vec![one; GOOD_MESSAGES], true);
        let answer = tokio::time::timeout(Duration::from_secs(30), stream).await.expect("it goes on beside them");
        assert_eq!((answer.code(), answer.messages::<v1::ProduceStreamResponse>().len()), ("0", GOOD_MESSAGES));
        for (response, _stream) in held {
            assert_eq!(response.status(), 200);
        }
    });
}

/// gzip: whole, cut, not gzip at all, and a bomb.
#[test]
fn compressed_requests() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let plain = records(&[&[7; 100_000]]).encode_to_vec();
        let packed = gzip(&plain);
        for (flag, bytes, code) in [
            (1, packed.clone(), "0"),
            (0, plain, "0"),
            (1, packed[..packed.len() - 1].to_vec(), "13"),
            (1, b"not gzip".to_vec(), "13"),
            (1, gzip(&vec![0; 64 << 20]), "8"),
        ] {
            let request = post(PRODUCE).header("grpc-encoding", "gzip");
            let answer = call(requests, request, [framed(flag, &bytes)], true).await;
            assert_eq!(answer.code(), code, "{answer:?}");
        }
    });
}

/// A stream that fails gives the acknowledgements before its failure, then the status.
#[test]
fn a_stream_fails_in_order() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let one = message(&records(&[b"x"]));
        for (bad, code) in [(framed(0, b""), "3"), (framed(2, b""), "13"), (prefix(5 << 20).to_vec(), "8")] {
            let body = [one.repeat(10), bad, one.clone()].concat();
            let answer = call(requests, post(PRODUCE_STREAM), [body], false).await;
            let acks = answer.messages::<v1::ProduceStreamResponse>();
            assert_eq!(acks.len(), 10, "{answer:?}");
            for shard in acks.iter().map(|ack| ack.shard) {
                let offsets = acks.iter().filter(|ack| ack.shard == shard).map(|ack| ack.base_offset);
                assert!(offsets.is_sorted_by(|one, next| one < next), "{acks:?}");
            }
            assert_eq!(answer.code(), code);
        }
        // One that fails where it is written: a condition that does not hold.
        let conditional = v1::ProduceRequest { expected_offset: Some(5), ..records(&[b"x"]) };
        let body = [one.repeat(3), message(&conditional)].concat();
        let answer = call(requests, post(PRODUCE_STREAM), [body], false).await;
        assert_eq!(answer.messages::<v1::ProduceStreamResponse>().len(), 3, "{answer:?}");
        assert_eq!(answer.code(), "9");
    });
}

/// The server keeps the deadline by itself: this client has none.
#[test]
fn deadlines() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        check(requests).await;
        let wait = message(&v1::ConsumeRequest {
            start: Some(v1::consume_request::Start::Offset(1)),
            wait_ms: 60_000,
            ..Default::default()
        });
        let answer = call(requests, post(CONSUME).header("grpc-timeout", "50m"), [wait], true).await;
        assert_eq!(answer.code(), "4");
        // Refused before it is written: the one record is still the only one.
        let request = post(PRODUCE).header("grpc-timeout", "1n");
        assert_eq!(call(requests, request, [message(&records(&[b"late"]))], true).await.code(), "4");
        let all = call(requests, post(CONSUME), [message(&v1::ConsumeRequest::default())], true).await;
        assert_eq!(all.messages::<v1::ConsumeResponse>()[0].high_watermark, 1);
        let follow = message(&v1::ConsumeStreamRequest::default());
        let answer = call(requests, post(CONSUME_STREAM).header("grpc-timeout", "50m"), [follow], true).await;
        assert_eq!(answer.code(), "4");
        assert_eq!(answer.messages::<v1::ConsumeStreamResponse>().len(), 1);
        // A request that never ends, and one whose message never ends.
        let request = post(PRODUCE_STREAM).header("grpc-timeout", "50m");
        assert_eq!(call(requests, request, [], false).await.code(), "4");
        let request = post(PRODUCE).header("grpc-timeout", "50m");
        assert_eq!(call(requests, request, [prefix(100).to_vec()], false).await.code(), "4");
        check(requests).await;
    });
}

/// Streams that the client resets free their place at once.
#[test]
fn cancelled_streams_make_room() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        check(requests).await;
        let follow = message(&v1::ConsumeStreamRequest::default());
        // Three times what a connection may have open.
        for _ in 0..3_072 {
            poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
            let (response, mut stream) = requests.send_request(post(CONSUME_STREAM).body(()).unwrap(), false).unwrap();
            stream.send_data(follow.clone().into(), true).unwrap();
            assert_eq!(response.await.unwrap().status(), 200);
            stream.send_reset(Reason::CANCEL);
        }
        check(requests).await;
    });
}

/// A stream that is not read costs windows, not the whole log, and disturbs no other; read later, it is complete.
#[test]
fn a_stream_that_is_not_read() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let value = vec![7; 1_000_000];
        for _ in 0..20 {
            let answer = call(requests, post(PRODUCE), [message(&records(&[&value]))], true).await;
            assert_eq!(answer.code(), "0");
        }
        poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
        let (response, mut stream) = requests.send_request(post(CONSUME_STREAM).body(()).unwrap(), false).unwrap();
        let follow = v1::ConsumeStreamRequest { max_records: 20, ..Default::default() };
        stream.send_data(message(&follow).into(), true).unwrap();
        let response = response.await.unwrap();
        // The connection's window is used up by now or soon: others need one of their own.
        let other = &mut connect(address).await;
        for _ in 0..20 {
            check(other).await;
        }
        let mut body = response.into_body();
        let mut received = 0;
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            received += piece.len();
            body.flow_control().release_capacity(piece.len()).unwrap();
        }
        assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "0");
        assert!(received > 20 * value.len() && received < 20 * (value.len() + 100), "{received}");
    });
}

/// Bytes that are not HTTP/2 end their connection and no other.
#[test]
fn hostile_bytes() {
    with_node(async |address| {
        let requests = &mut connect(address).await;
        let start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for sent in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            vec![0xab; 10_000],
            start[..10].to_vec(),
            start[..30].to_vec(),
            [&start[..], b"\0\x40\0\0\0\0\0\0\x01half a frame"].concat(),
            [&start[..], b"\xff\xff\xff\0\0\0\0\0\x01"].concat(),
            [&start[..], b"\0\0\x05\x01\x04\0\0\0\x01\xff\xff\xff\xff\xff"].concat(),
            // An endless header block.
            [&start[..], b"\0\0\0\x01\0\0\0\0\x01", &b"\0\0\0\x09\0\0\0\0\x01".repeat(1_000)].concat(),
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // The node may have closed before it has read all.
            let _ = stream.write_all(&sent).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
            check(requests).await;
        }
    });
}
