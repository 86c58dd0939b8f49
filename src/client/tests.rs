//! The client against a scripted HTTP/2 server: what a well-behaved server never does is here too.

#![allow(clippy::disallowed_methods, reason = "a scripted server listens on a real socket")]

use std::{future::Future, time::Duration};

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{Connection, SendResponse},
};
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::{
    frontend::Code,
    proto::ringlog::v1::{
        ConsumeStreamRequest, ConsumeStreamResponse, ProduceRequest, ProduceResponse, ProduceStreamRequest,
        ProduceStreamResponse, Record,
    },
};

type Call = (Request<RecvStream>, SendResponse<Bytes>);

/// Runs `script` as a server with small windows, and `client` against it.
fn against<S: Future<Output = ()>, C: Future<Output = ()>>(
    script: impl FnOnce(Connection<TcpStream, Bytes>) -> S,
    client: impl FnOnce(Client) -> C,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = async {
            let (socket, _) = listener.accept().await.unwrap();
            let mut builder = h2::server::Builder::new();
            let builder = builder.initial_window_size(20_000).initial_connection_window_size(70_000);
            script(builder.handshake(socket).await.unwrap()).await;
        };
        let client = async { client(Client::connect(&address).await.unwrap()).await };
        tokio::select! {
            biased;
            () = client => {}
            () = async { server.await; std::future::pending().await } => {}
        }
    });
}

/// Serves all calls of a connection with `answer`, side by side.
async fn serve<F: Future<Output = ()>>(mut connection: Connection<TcpStream, Bytes>, answer: impl Fn(Call) -> F) {
    let mut calls = futures_util::stream::FuturesUnordered::new();
    loop {
        tokio::select! {
            call = connection.accept() => match call {
                Some(call) => calls.push(answer(call.unwrap())),
                None => return,
            },
            Some(()) = futures_util::StreamExt::next(&mut calls) => {}
        }
    }
}

fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).unwrap()
}

fn trailers(status: &str, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    trailers.insert("grpc-message", message.parse().unwrap());
    trailers
}

/// All bytes of a request, room given back as they come.
async fn body(request: Request<RecvStream>) -> Bytes {
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    bytes.into()
}

fn request(value_bytes: usize) -> ProduceRequest {
    let record = Record { value: vec![b'v'; value_bytes].into(), ..Record::default() };
    ProduceRequest { topic: "t".into(), records: vec![record], ..ProduceRequest::default() }
}

/// A unary call carries its headers and a message larger than the windows; its answer may come in single bytes.
#[test]
fn unary_in_pieces() {
    let answer = |(call, mut respond): Call| async move {
        assert_eq!(call.uri().path(), "/ringlog.v1.Log/Produce");
        assert_eq!(call.headers()["te"], "trailers");
        assert_eq!(call.headers()["content-type"], "application/grpc");
        assert_eq!(call.headers()["grpc-timeout"], "30000m");
        let bytes = body(call).await;
        assert_eq!(bytes, framed(&request(300_000)));
        let mut stream = respond.send_response(head(), false).unwrap();
        let message = framed(&ProduceResponse { base_offset: 7, count: 1, topic: "t".into(), ..Default::default() });
        for at in 0..message.len() {
            stream.send_data(message.slice(at..=at), false).unwrap();
        }
        stream.send_trailers(trailers("0", "")).unwrap();
    };
    against(
        |connection| serve(connection, answer),
        async |client| {
            let response = client.produce(&request(300_000)).await.unwrap();
            assert_eq!((response.base_offset, response.count, response.topic.as_str()), (7, 1, "t"));
        },
    );
}

/// A refusal that comes before the message is read is seen at once, although most of the message is unsent.
#[test]
fn refused_early() {
    let answer = |(_call, mut respond): Call| async move {
        let mut head = head();
        head.headers_mut().extend(trailers("8", "too%20large"));
        respond.send_response(head, true).unwrap();
    };
    against(
        |connection| serve(connection, answer),
        async |client| {
            let error = client.produce(&request(900_000)).await.unwrap_err();
            assert_eq!(error.code(), Some(Code::ResourceExhausted));
            assert!(error.to_string().starts_with("too large"), "{error}");
            assert!(!error.is_definite());
        },
    );
}

/// What is not gRPC, or breaks off, is an error that says so.
#[test]
fn not_grpc() {
    let answer = |(call, mut respond): Call| async move {
        let kind = call.headers()["grpc-timeout"].to_str().unwrap().to_owned();
        body(call).await;
        match kind.as_str() {
            "1000m" => {
                let page = Response::builder().status(404).body(()).unwrap();
                respond.send_response(page, true).unwrap();
            }
            "2000m" => {
                let page = Response::builder().header("content-type", "text/html").body(()).unwrap();
                respond.send_response(page, true).unwrap();
            }
            "3000m" => {
                let mut stream = respond.send_response(head(), false).unwrap();
                stream.send_data(Bytes::from_static(b"\0\0\0\0\x09cut"), false).unwrap();
                stream.send_trailers(trailers("0", "")).unwrap();
            }
            "4000m" => {
                let mut stream = respond.send_response(head(), false).unwrap();
                stream.send_data(framed(&ProduceResponse::default()), true).unwrap();
            }
            "5000m" => {
                let mut stream = respond.send_response(head(), false).unwrap();
                stream.send_trailers(trailers("0", "")).unwrap();
            }
            "6000m" => {
                let mut stream = respond.send_response(head(), false).unwrap();
                stream.send_data(Bytes::from_static(b"\0\0\0\0\x02\xff\xff"), false).unwrap();
                stream.send_trailers(trailers("0", "")).unwrap();
            }
            _ => respond.send_reset(h2::Reason::REFUSED_STREAM),
        }
    };
    against(
        |connection| serve(connection, answer),
        async |client| {
            for (seconds, text) in [
                (1, "HTTP status 404"),
                (2, "content type \"text/html\""),
                (3, "cut off"),
                (4, "without a status"),
                (5, "without a message"),
                (6, "cannot be decoded"),
            ] {
                let client = client.clone().with_timeout(Duration::from_secs(seconds));
                let error = client.produce(&request(1)).await.unwrap_err();
                assert!(matches!(error, ClientError::Protocol { .. }), "{seconds}: {error}");
                assert!(error.to_string().contains(text), "{seconds}: {error}");
                assert!(!error.is_definite());
            }
            // RFC 9113, section 8.7: nothing was done with a refused stream.
            let error = client.produce(&request(1)).await.unwrap_err();
            assert!(matches!(error, ClientError::Lost { definite: true, .. }), "{error}");
        },
    );
}

/// A server that is silent, and one that goes away, leave the call's effect open.
#[test]
fn silence_and_loss() {
    let silent = |call: Call| async move {
        let _kept = call;
        std::future::pending().await
    };
    against(
        |connection| serve(connection, silent),
        async |client| {
            let client = client.with_timeout(Duration::from_millis(1));
            let error = client.produce(&request(1)).await.unwrap_err();
            assert!(matches!(error, ClientError::TimedOut { .. }), "{error}");
            assert!(!error.is_definite());
        },
    );
    let gone = async |mut connection: Connection<TcpStream, Bytes>| {
        let call = connection.accept().await.unwrap().unwrap();
        drop((call, connection));
    };
    against(gone, async |client| {
        let error = client.produce(&request(1)).await.unwrap_err();
        assert!(matches!(error, ClientError::Lost { definite: false, .. }), "{error}");
        // The connection is over: a new call was never sent.
        let error = client.produce(&request(1)).await.unwrap_err();
        assert!(matches!(error, ClientError::Lost { definite: true, .. }), "{error}");
    });
}

/// Nobody listening is one clear sentence.
#[test]
fn unreachable() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        Client::connect(&address).await.unwrap_err()
    });
    assert!(matches!(error, ClientError::Unreachable { .. }) && error.is_definite());
    assert!(error.to_string().starts_with("cannot reach a Ringlog server at 127.0.0.1:"), "{error}");
}

/// Requests far beyond the windows go out while acks come in; after `finish` the stream ends well.
#[test]
fn pipelined_produces() {
    let answer = |(call, mut respond): Call| async move {
        let mut stream = respond.send_response(head(), false).unwrap();
        let mut bytes = body(call).await;
        let mut offset = 0;
        while !bytes.is_empty() {
            let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            let message = bytes.split_to(5 + length).split_off(5);
            let request = ProduceStreamRequest::decode(message).unwrap();
            let count = u32::try_from(request.records.len()).unwrap();
            let ack = ProduceStreamResponse { base_offset: offset, count, ..Default::default() };
            offset += u64::from(count);
            stream.send_data(framed(&ack), false).unwrap();
        }
        stream.send_trailers(trailers("0", "")).unwrap();
    };
    against(
        |connection| serve(connection, answer),
        async |client| {
            let (mut sender, mut acks) = client.produce_stream().await.unwrap();
            let records = vec![Record { value: vec![1; 1_000].into(), ..Record::default() }; 3];
            let request = ProduceStreamRequest { topic: "t".into(), records, ..Default::default() };
            for _ in 0..200 {
                sender.send(&request).await.unwrap();
            }
            sender.finish().await.unwrap();
            for number in 0..200 {
                assert_eq!(acks.next().await.unwrap().unwrap().base_offset, 3 * number);
            }
            assert!(acks.next().await.is_none() && acks.next().await.is_none());
        },
    );
}

/// When the server ends a stream, the sender notices and the acks have the reason, after the acks that came before.
#[test]
fn stream_ends_with_a_reason() {
    let answer = |(call, mut respond): Call| async move {
        let mut stream = respond.send_response(head(), false).unwrap();
        stream.send_data(framed(&ProduceStreamResponse { count: 1, ..Default::default() }), false).unwrap();
        stream.send_trailers(trailers("9", "offset mismatch")).unwrap();
        drop(call);
    };
    against(
        |connection| serve(connection, answer),
        async |client| {
            let (mut sender, mut acks) = client.produce_stream().await.unwrap();
            let records = request(100_000).records;
            let request = ProduceStreamRequest { topic: "t".into(), records, ..Default::default() };
            let error = loop {
                if let Err(error) = sender.send(&request).await {
                    break error;
                }
            };
            assert!(matches!(error, ClientError::Lost { .. }), "{error}");
            assert_eq!(acks.next().await.unwrap().unwrap().count, 1);
            let error = acks.next().await.unwrap().unwrap_err();
            assert_eq!(error.code(), Some(Code::FailedPrecondition));
            assert!(acks.next().await.is_none());
        },
    );
}

/// Consumed messages arrive whole, decoded or walked, and the stream ends after the last.
#[test]
fn consumed_streams() {
    let answer = |(call, mut respond): Call| async move {
        let request = ConsumeStreamRequest::decode(body(call).await.slice(5..)).unwrap();
        let mut stream = respond.send_response(head(), false).unwrap();
        for offset in 0..request.max_records {
            let record = Record { value: vec![2; 30_000].into(), offset, ..Record::default() };
            let response =
                ConsumeStreamResponse { records: vec![record], next_offset: offset + 1, ..Default::default() };
            let mut message = framed(&response);
            while !message.is_empty() {
                let piece = message.split_to(message.len().min(9_999));
                stream.send_data(piece, false).unwrap();
            }
        }
        stream.send_trailers(trailers("0", "")).unwrap();
    };
    against(
        |connection| serve(connection, answer),
        async |client| {
            let request = ConsumeStreamRequest { max_records: 50, ..Default::default() };
            let mut decoded = client.consume_stream(&request).await.unwrap();
            let mut walked = client.consume_stream(&request).await.unwrap();
            for offset in 0..50 {
                let response = decoded.next().await.unwrap().unwrap();
                assert_eq!((response.records[0].offset, response.records[0].value.len()), (offset, 30_000));
                let response = walked.next_walked().await.unwrap().unwrap();
                assert_eq!((response.first_offset, response.value_bytes, response.dense), (Some(offset), 30_000, true));
            }
            assert!(decoded.next().await.is_none());
            assert!(walked.next_walked().await.is_none());
        },
    );
}
