//! The two directions of one HTTP/2 stream as messages, with flow control in both.

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

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

use crate::format::grpc;
use crate::format::grpc::Assembler;
use crate::format::grpc::Encoding;
use crate::frontend::CallError;
use crate::frontend::Code;
use crate::frontend::grpc::answers::Answers;
use crate::frontend::grpc::answers::NoRoom;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::inflate::Inflate;
use crate::frontend::grpc::received::Held;
use crate::frontend::grpc::received::Received;
use crate::frontend::grpc::small_frames::FREE_BYTES;
use crate::frontend::grpc::small_frames::SmallFrames;
use crate::frontend::grpc::status;
use crate::frontend::grpc::unread::Unread;

/// A response up to this size is given to h2 at once; the number of streams bounds their sum.
const DIRECT_BYTES_MAX: usize = 4 << 10;

/// The rest of a window that makes a small frame is not used for so long. A client that reads gives more (libraries do so when
/// half of the window is read, or less); one whose windows are smaller than a message does not.
const HELD_BACK_MAX: Duration = Duration::from_secs(1);

/// So much is given back to a client's window at a time, if there is more of the same frame.
const RELEASE_BYTES: usize = 16 << 10;

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

impl From<NoRoom> for Stop {
    fn from(_: NoRoom) -> Stop {
        let message = "too much waits for the client on this connection; read it, and retry";
        CallError::retry(Code::ResourceExhausted, "ANSWERS_UNREAD", message).into()
    }
}

impl From<h2::Error> for Stop {
    fn from(_: h2::Error) -> Stop {
        Stop::Gone
    }
}

/// What is known of the end of a client's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// There may be more.
    Open,
    /// What is held is all.
    Last,
    /// What is held is all, and the stream is broken.
    Gone,
}

/// The client's messages.
pub(super) struct Requests {
    stream: RecvStream,
    /// Taken from h2, which charges for small frames that lie there ([`Requests::hold`]).
    unread: Unread,
    end: End,
    /// `poll_data` was pending since the last `hold`: it has our waker.
    asked: bool,
    assembler: Assembler,
    inflating: Option<Box<Inflate>>,
    /// The next message was asked for since the last `hold`.
    wanted: bool,
    encoding: Encoding,
    bytes_max: usize,
    received: Received,
    /// Memory of the message that has come in part; `RESOURCE_EXHAUSTED` with a retry hint when there is none left.
    held: Held,
}

impl Requests {
    /// Messages of at most `bytes_max` bytes, before and after inflating. `received` is the connection's.
    pub(super) fn new(stream: RecvStream, encoding: Encoding, bytes_max: usize, received: Received) -> Requests {
        Requests {
            stream,
            unread: Unread::new(received.unread().clone()),
            end: End::Open,
            asked: false,
            assembler: Assembler::new(bytes_max),
            inflating: None,
            wanted: false,
            encoding,
            bytes_max,
            held: received.none(),
            received,
        }
    }

    /// What the connection holds.
    pub(super) fn received(&self) -> &Received {
        &self.received
    }

    /// Memory for a message of `bytes` that was read and waits.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`: the connection holds too much, or all of them.
    pub(super) fn waiting(&self, bytes: usize) -> Result<Held, CallError> {
        self.received.waiting(bytes).map_err(|_| receive_busy())
    }

    /// The next message; `None` when the client has sent its last. Pending, it is woken when the stream goes on.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Stop>> {
        let polled = self.poll_message(cx);
        if matches!(polled, Poll::Ready(Ok(Some(_)))) {
            self.received.note_taken();
        }
        polled
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Stop>> {
        loop {
            if self.inflating.is_some() {
                return self.poll_inflate(cx).map(|message| message.map(Some));
            }
            let message = self.assembler.next_message();
            self.account()?;
            self.release()?;
            if let Some(message) = message? {
                if message.compressed {
                    self.inflating = Some(Box::new(Inflate::new(message)));
                    continue;
                }
                return Poll::Ready(Ok(Some(message.bytes)));
            }
            let piece = self.unread.pop();
            match piece.or_else(|| self.take_frame(cx).map(|frame| self.unread.pass(frame))) {
                Some(piece) => self.assembler.push(piece),
                None => match self.end {
                    End::Open => return Poll::Pending,
                    End::Gone => return Poll::Ready(Err(Stop::Gone)),
                    End::Last => {
                        self.assembler.finish()?;
                        return Poll::Ready(Ok(None));
                    }
                },
            }
        }
    }

    /// Goes on with the message that is being inflated, as far as the connection may in this turn.
    fn poll_inflate(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Stop>> {
        self.wanted = true;
        let Some(inflate) = &mut self.inflating else { return Poll::Pending };
        let polled = inflate.poll(self.received.inflater(), self.encoding, self.bytes_max, cx);
        if polled.is_ready() {
            self.inflating = None;
        }
        if let Err(stop) = self.account() {
            self.inflating = None;
            return Poll::Ready(Err(stop));
        }
        polled.map_err(Stop::from)
    }

    /// The next frame that h2 has. None while `end` is `Open`: the stream's next frame wakes.
    fn take_frame(&mut self, cx: &mut Context<'_>) -> Option<Bytes> {
        if self.end != End::Open {
            return None;
        }
        match self.stream.poll_data(cx) {
            Poll::Pending => self.asked = true,
            Poll::Ready(Some(Ok(data))) => return Some(data),
            Poll::Ready(Some(Err(_))) => self.end = End::Gone,
            Poll::Ready(None) => self.end = End::Last,
        }
        None
    }

    /// Takes what h2 has, now and whenever it wakes, without giving its room back to the client. To be called when nothing
    /// is wanted for the moment: frames that lie in h2 are charged there as an attack if they are small, and a client
    /// that is far ahead of us is none.
    ///
    /// What was inflated in part is inflated again later: other calls of the connection do not wait until this one goes on.
    pub(super) fn hold(&mut self, cx: &mut Context<'_>) {
        if !std::mem::take(&mut self.wanted)
            && let Some(inflate) = &mut self.inflating
        {
            inflate.pause();
            // It only becomes less.
            let _ = self.account();
        }
        if !std::mem::take(&mut self.asked) {
            while let Some(frame) = self.take_frame(cx) {
                self.unread.push(frame);
            }
            self.asked = false;
        }
    }

    /// Whether all that the client sends is here, or as much as will ever come.
    #[cfg(test)]
    pub(super) fn has_all(&self) -> bool {
        self.end != End::Open
    }

    /// Whether it is already known that no message follows.
    pub(super) fn is_ended(&mut self) -> bool {
        if self.end == End::Open && self.stream.is_end_stream() {
            self.end = End::Last;
        }
        self.end != End::Open && self.unread.is_empty() && self.assembler.is_drained()
    }

    /// Has the charge follow what the message holds that has come, or was inflated, in part.
    fn account(&mut self) -> Result<(), Stop> {
        let held = self.assembler.held_bytes() + self.inflating.as_ref().map_or(0, |inflate| inflate.held_bytes());
        if held == self.held.bytes() {
            return Ok(());
        }
        self.held.resize(held).map_err(|_| receive_busy().into())
    }

    /// Gives the client room for more: for all that was taken, but for messages that are whole and wait.
    fn release(&mut self) -> Result<(), h2::Error> {
        let taken = self.unread.taken();
        let bytes = taken - self.assembler.waiting_bytes();
        // Often there is another small message in the same frame.
        if bytes > 0 && (bytes == taken || bytes >= RELEASE_BYTES) {
            self.stream.flow_control().release_capacity(bytes)?;
            self.unread.give_back(bytes);
        }
        Ok(())
    }
}

fn receive_busy() -> CallError {
    let message = "too much is being received on this connection, or on all of them; retry after a moment";
    CallError::retry(Code::ResourceExhausted, "RECEIVE_BUSY", message)
}

/// Our messages and the status.
pub(super) struct Responses {
    respond: SendResponse<Body>,
    /// Once the headers are sent.
    stream: Option<SendStream<Body>>,
    small_frames: SmallFrames,
    received: Received,
    answers: Answers,
    /// Runs while the rest of a window is not used, as it makes only a small frame.
    held_back: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Responses {
    /// `small_frames` and `received` are the connection's, `answers` the call's.
    pub(super) fn new(
        respond: SendResponse<Body>,
        small_frames: SmallFrames,
        received: Received,
        answers: Answers,
    ) -> Responses {
        Responses { respond, stream: None, small_frames, received, answers, held_back: None }
    }

    /// Memory for what is to be sent.
    pub(super) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// What the connection has received.
    pub(super) fn received(&self) -> Received {
        self.received.clone()
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

    /// Passes `body` to h2, as far as the client's windows allow; ready when all of it is passed. Pending, it is woken when
    /// they allow more.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, body: &mut Body) -> Poll<Result<(), Stop>> {
        while body.has_remaining() {
            self.fill_up(body);
            let wanted = body.remaining();
            let bytes = ready!(self.poll_part(cx, wanted))?;
            let part = if bytes == wanted { std::mem::take(body) } else { body.split_to(bytes) };
            self.open()?.send_data(part, false)?;
            self.small_frames.sent(bytes);
        }
        Poll::Ready(Ok(()))
    }

    /// How many of `wanted` bytes make the next frame: as many as the client's windows allow, unless that makes a small
    /// frame which the client cannot afford.
    fn poll_part(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Stop>> {
        loop {
            let stream = self.open()?;
            stream.reserve_capacity(wanted);
            let granted = stream.capacity().min(wanted);
            let part = self.small_frames.part(granted, wanted);
            if part > 0 || (granted > 0 && self.is_window_small(cx)) {
                self.held_back = None;
                return Poll::Ready(Ok(if part > 0 { part } else { granted }));
            }
            // It tells of changes only: what is there already has to be asked for.
            ready!(self.open()?.poll_capacity(cx)).ok_or(Stop::Gone)??;
        }
    }

    /// Whether the window that is left has not grown for so long that it may be all that the client ever gives. False,
    /// it wakes when it is.
    fn is_window_small(&mut self, cx: &mut Context<'_>) -> bool {
        let answers = &self.answers;
        self.held_back.get_or_insert_with(|| answers.sleep(HELD_BACK_MAX)).as_mut().poll(cx).is_ready()
    }

    /// Ready when the client's windows let something through; pending, it is woken when they do. It keeps one byte of
    /// them for this stream.
    pub(super) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stop>> {
        let stream = self.open()?;
        if stream.capacity() == 0 {
            stream.reserve_capacity(1);
            if stream.capacity() == 0 {
                ready!(stream.poll_capacity(cx)).ok_or(Stop::Gone)??;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes memory for `body` if none is held for it, and it is not small.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` when the client leaves too much unread.
    pub(super) fn hold(&self, body: Body) -> Result<Body, Stop> {
        let bytes = body.remaining();
        let is_free = body.is_held() || bytes <= DIRECT_BYTES_MAX;
        if is_free { Ok(body) } else { Ok(body.with(self.answers.unforeseen(bytes)?)) }
    }

    /// Passes the only message of a call to h2 if it is small, whatever the windows are; else false.
    pub(super) fn send_small(&mut self, body: &mut Body) -> Result<bool, Stop> {
        if body.remaining() > DIRECT_BYTES_MAX {
            return Ok(false);
        }
        self.fill_up(body);
        self.small_frames.sent(body.remaining());
        self.open()?.send_data(std::mem::take(body), false)?;
        Ok(true)
    }

    /// Makes a frame of it that costs the client nothing, if it can afford no other.
    fn fill_up(&self, body: &mut Body) {
        if body.remaining() < FREE_BYTES && self.small_frames.is_high() {
            body.fill_up(FREE_BYTES);
        }
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
    use std::rc::Rc;

    use http::Request;

    use super::*;
    use crate::budget::Budget;
    use crate::budget::Class;
    use crate::budget::Use;
    use crate::env;
    use crate::env::real::RealEnv;
    use crate::env::runtime::block_on;
    use crate::frontend::grpc::inflate;
    use crate::frontend::grpc::received;
    use crate::frontend::grpc::tests::answer_within;
    use crate::frontend::grpc::tests::pair;

    /// A window that is smaller than a message, and does not grow before what is in it was read: small frames go after a while,
    /// however many there were.
    #[test]
    fn a_window_that_stays_small() {
        let server = async |mut responses: Responses| {
            while !responses.small_frames.is_high() {
                responses.small_frames.sent(1);
            }
            let mut body = Body::message(b"", Vec::new());
            poll_fn(|cx| responses.poll_send(cx, &mut body)).await.unwrap();
            responses.finish(Ok(()));
        };
        let client = async |mut body: RecvStream| {
            let mut bytes = 0;
            let reading = async {
                while let Some(data) = body.data().await {
                    bytes += data.as_ref().unwrap().len();
                    body.flow_control().release_capacity(data.unwrap().len()).unwrap();
                }
            };
            tokio::select! {
                () = reading => {}
                () = env::sleep::<RealEnv>(20 * HELD_BACK_MAX) => panic!("it waits for a window that will not grow"),
            }
            assert!(bytes >= 256, "{bytes}");
        };
        answer_within(200, server, client);
    }

    /// A message that comes in part is charged as it comes; the reactor that has no memory for it says so, and the memory is
    /// given back when the call ends.
    #[test]
    fn partial_messages_are_charged() {
        const BYTES_MAX: usize = 4 << 20;
        block_on(async {
            let (near, far) = pair().await;
            let budget = Budget::default();
            let received = Received::new::<RealEnv>(&Rc::new(received::Pool::new(budget.clone())));
            let serve = async {
                let mut connection = h2::server::handshake(far).await.unwrap();
                let (request, _respond) = connection.accept().await.unwrap().unwrap();
                let mut requests = Requests::new(request.into_body(), Encoding::Identity, BYTES_MAX, received);
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

    /// Serves one request by `server`, whose body is `sent`.
    fn receive(encoding: Encoding, sent: Vec<u8>, server: impl AsyncFnOnce(&mut Requests)) {
        block_on(async {
            let (near, far) = pair().await;
            let serve = async {
                let mut connection = h2::server::handshake(far).await.unwrap();
                let (request, _respond) = connection.accept().await.unwrap().unwrap();
                let mut requests =
                    Requests::new(request.into_body(), encoding, 4 << 20, crate::frontend::grpc::tests::received());
                tokio::select! {
                    biased;
                    () = server(&mut requests) => {}
                    more = connection.accept() => panic!("{:?}", more.map(|more| more.is_ok())),
                }
            };
            let ask = async {
                let (mut requests, connection) = h2::client::handshake(near).await.unwrap();
                let send = async {
                    poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                    let (_response, mut stream) =
                        requests.send_request(Request::post("http://x/").body(()).unwrap(), false).unwrap();
                    stream.send_data(Bytes::from(sent), false).unwrap();
                    std::future::pending::<()>().await;
                };
                tokio::join!(send, connection).1.unwrap();
            };
            tokio::select! {
                biased;
                () = serve => {}
                () = ask => panic!("the client stays"),
            }
        });
    }

    /// What lies behind a message that was read stays in the client's window until it is wanted, too.
    #[test]
    fn whole_messages_stay_in_the_window() {
        const MESSAGES: usize = 100;
        let message = [&grpc::prefix(100)[..], &[7; 100]].concat();
        receive(Encoding::Identity, message.repeat(MESSAGES), async |requests| {
            for read in 1..=MESSAGES {
                assert_eq!(poll_fn(|cx| requests.poll_next(cx)).await.unwrap().unwrap().len(), 100);
                let unread = requests.received().unread().get();
                assert!(unread >= (MESSAGES - read) * message.len(), "{unread} bytes after {read}");
            }
            assert_eq!(requests.received().unread().get(), 0);
        });
    }

    /// A connection inflates so much in a turn and no more.
    #[test]
    fn inflated_in_turns() {
        const BYTES: usize = 3 << 20;
        let message = inflate::tests::compressed(BYTES).bytes;
        let sent = [&[1][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat();
        receive(Encoding::Gzip, sent, async |requests| {
            let mut turns = 0;
            let message = poll_fn(|cx| {
                let polled = requests.poll_next(cx);
                if requests.received().inflater().is_turn_over() {
                    turns += 1;
                    assert!(requests.poll_next(cx).is_pending());
                    requests.received().inflater().begin_turn();
                }
                polled
            });
            assert_eq!(message.await.unwrap().unwrap().len(), BYTES);
            assert!(turns >= 10, "{turns} turns");
        });
    }
}
