//! The two directions of one HTTP/2 stream as messages, with flow control in both.

use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Buf;
use bytes::Bytes;
use h2::RecvStream;
use h2::SendStream;
use h2::server::SendResponse;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::budget::Budget;
use crate::budget::Charge;
use crate::budget::Class;
use crate::budget::Use;
use crate::format::grpc;
use crate::format::grpc::Assembler;
use crate::format::grpc::Encoding;
use crate::frontend::CallError;
use crate::frontend::Code;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::status;

/// A response up to this size is given to h2 at once; the number of streams bounds their sum.
const DIRECT_BYTES_MAX: usize = 4 << 10;

const CONTENT_TYPE_GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Why a call ends before it is done.
#[derive(Debug)]
pub(super) enum Stop {
    /// The client has cancelled it or is gone: there is nobody to answer.
    Gone,
    /// This is the answer.
    Error(CallError),
}

impl From<CallError> for Stop {
    fn from(error: CallError) -> Stop {
        Stop::Error(error)
    }
}

impl From<grpc::FrameError> for Stop {
    fn from(error: grpc::FrameError) -> Stop {
        Stop::Error(status::frame_error(error))
    }
}

impl From<h2::Error> for Stop {
    fn from(_: h2::Error) -> Stop {
        Stop::Gone
    }
}

/// The client's messages.
pub(super) struct Requests {
    stream: RecvStream,
    assembler: Assembler,
    encoding: Encoding,
    bytes_max: usize,
    /// Memory of the message that has come in part; `RESOURCE_EXHAUSTED` with a retry hint when there is none left.
    held: Charge,
}

impl Requests {
    /// Messages of at most `bytes_max` bytes, before and after inflating.
    pub(super) fn new(stream: RecvStream, encoding: Encoding, bytes_max: usize, budget: &Budget) -> Requests {
        let held = budget.none(Use::Received);
        Requests { stream, assembler: Assembler::new(bytes_max), encoding, bytes_max, held }
    }

    /// The next message; `None` when the client has sent its last.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Stop>> {
        loop {
            let message = self.assembler.next_message();
            self.account()?;
            if let Some(message) = message? {
                return Poll::Ready(Ok(Some(message.decode(self.encoding, self.bytes_max)?)));
            }
            match ready!(self.stream.poll_data(cx)) {
                Some(data) => {
                    let data = data?;
                    // What is not read yet is bounded by the window, what is read by the limits.
                    self.stream.flow_control().release_capacity(data.len())?;
                    self.assembler.push(data);
                }
                None => {
                    self.assembler.finish()?;
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    /// Whether it is already known that no message follows.
    pub(super) fn is_ended(&self) -> bool {
        self.assembler.is_drained() && self.stream.is_end_stream()
    }

    /// Has the charge follow what the message holds that has come in part.
    fn account(&mut self) -> Result<(), Stop> {
        let held = self.assembler.held_bytes();
        if held == self.held.bytes() {
            return Ok(());
        }
        self.held.resize(Class::Client, held).map_err(|_| {
            let message = "too many large messages are being received; retry after a moment";
            CallError::retry(Code::ResourceExhausted, "RECEIVE_BUSY", message).into()
        })
    }
}

/// Our messages and the status.
pub(super) struct Responses {
    respond: SendResponse<Body>,
    /// Once the headers are sent.
    stream: Option<SendStream<Body>>,
}

impl Responses {
    pub(super) fn new(respond: SendResponse<Body>) -> Responses {
        Responses { respond, stream: None }
    }

    /// Sends the headers, if that has not happened. A streaming call does so at once, so that the client knows that
    /// it was accepted.
    pub(super) fn open(&mut self) -> Result<&mut SendStream<Body>, Stop> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.respond.send_response(headers(HeaderMap::with_capacity(1)), false)?,
        };
        Ok(self.stream.insert(stream))
    }

    /// Passes `body` to h2, as far as the client's windows allow; ready when all of it is passed.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, body: &mut Body) -> Poll<Result<(), Stop>> {
        while body.has_remaining() {
            let wanted = body.remaining();
            let stream = self.open()?;
            stream.reserve_capacity(wanted);
            // `poll_capacity` tells of changes only: what is there already has to be asked for.
            if stream.capacity() == 0 {
                ready!(stream.poll_capacity(cx)).ok_or(Stop::Gone)??;
            }
            let part = match stream.capacity() {
                granted if granted >= wanted => std::mem::take(body),
                granted => body.split_to(granted),
            };
            stream.send_data(part, false)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Passes the only message of a call to h2 if it is small, whatever the windows are; else false.
    pub(super) fn send_small(&mut self, body: &mut Body) -> Result<bool, Stop> {
        if body.remaining() > DIRECT_BYTES_MAX {
            return Ok(false);
        }
        self.open()?.send_data(std::mem::take(body), false)?;
        Ok(true)
    }

    /// Ready when the client has cancelled the call or is gone.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stream {
            Some(stream) => stream.poll_reset(cx).map(|_| ()),
            None => self.respond.poll_reset(cx).map(|_| ()),
        }
    }

    /// Ends the call with its status. A client that is gone does not get it.
    pub(super) fn finish(mut self, result: Result<(), &CallError>) {
        let trailers = match result {
            Ok(()) => status::ok(),
            Err(error) if self.stream.is_none() => return self.finish_at_once(error),
            Err(error) => {
                let mut trailers = HeaderMap::with_capacity(3);
                status::insert(error, &mut trailers);
                trailers
            }
        };
        if let Ok(stream) = self.open() {
            let _ = stream.send_trailers(trailers);
        }
    }

    /// Headers and trailers in one.
    fn finish_at_once(mut self, error: &CallError) {
        let mut head = HeaderMap::with_capacity(5);
        status::insert(error, &mut head);
        head.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static(grpc::ENCODINGS));
        let _ = self.respond.send_response(headers(head), true);
    }

    /// Answers a request that is not gRPC.
    pub(super) fn finish_http(mut self, status: StatusCode, header: HeaderName, value: &'static str) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        response.headers_mut().insert(header, HeaderValue::from_static(value));
        let _ = self.respond.send_response(response, true);
    }
}

fn headers(mut head: HeaderMap) -> Response<()> {
    head.insert(CONTENT_TYPE, CONTENT_TYPE_GRPC);
    let mut response = Response::new(());
    *response.headers_mut() = head;
    response
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http::Request;

    use super::*;
    use crate::env::runtime::block_on;
    use crate::frontend::grpc::tests::pair;

    /// A message that comes in part is charged as it comes; the reactor that has no memory for it says so, and the memory is
    /// given back when the call ends.
    #[test]
    fn partial_messages_are_charged() {
        const BYTES_MAX: usize = 4 << 20;
        block_on(async {
            let (near, far) = pair().await;
            let budget = Budget::default();
            let serve = async {
                let mut connection = h2::server::handshake(far).await.unwrap();
                let (request, _respond) = connection.accept().await.unwrap().unwrap();
                let mut requests = Requests::new(request.into_body(), Encoding::Identity, BYTES_MAX, &budget);
                let reading = async {
                    poll_fn(|cx| {
                        let polled = requests.poll_next(cx);
                        if budget.used_for(Use::Received) < 10_000 { polled.map(|_| ()) } else { Poll::Ready(()) }
                    })
                    .await;
                    let held = budget.used_for(Use::Received);
                    assert!((10_000..=60_000).contains(&held), "{held}");
                    let _others = budget.force(Use::Queued, budget.limit(Class::Client));
                    let refused = poll_fn(|cx| requests.poll_next(cx)).await;
                    let Err(Stop::Error(error)) = refused else { panic!("{refused:?}") };
                    assert_eq!((error.code, error.reason), (Code::ResourceExhausted, "RECEIVE_BUSY"));
                    drop(requests);
                    assert_eq!(budget.used_for(Use::Received), 0);
                };
                tokio::select! {
                    biased;
                    () = reading => {}
                    more = connection.accept() => panic!("{:?}", more.map(|more| more.is_ok())),
                }
            };
            let ask = async {
                let (mut requests, connection) = h2::client::handshake(near).await.unwrap();
                let send = async {
                    poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                    let request = Request::post("http://x/").body(()).unwrap();
                    let (_response, mut stream) = requests.send_request(request, false).unwrap();
                    let prefix = [&[0][..], &(BYTES_MAX as u32).to_be_bytes()].concat();
                    stream.send_data(prefix.into(), false).unwrap();
                    loop {
                        stream.send_data(Bytes::from_static(&[7; 1_000]), false).unwrap();
                        crate::env::yield_now().await;
                    }
                };
                tokio::select! {
                    biased;
                    () = send => {}
                    _ = connection => {}
                }
            };
            tokio::select! {
                biased;
                () = serve => {}
                () = ask => panic!("the client goes on until the server has seen enough"),
            }
        });
    }
}
