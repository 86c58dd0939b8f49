//! One gRPC call of a stock client: its request, its messages, how it ended.

use std::{cell::Cell, future::poll_fn, rc::Rc};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::Request;
use prost::Message;

use super::{CallState, Session, consume, habit::Method, produce};
use crate::{
    client::Status,
    env,
    format::grpc::{self, Assembler},
    frontend::Code,
    limits::MESSAGE_BYTES_MAX,
    sim::{SimEnv, random},
};

/// Makes one call, of a method by the dice.
pub(super) async fn run(session: Rc<Session>, requests: SendRequest<Bytes>, number: u64, dice: Cell<u64>) {
    let method = match random(&dice) % 9 {
        0..=4 => Method::ProduceStream,
        5 | 6 => Method::ConsumeStream,
        // Its one answer is read, and waits, before its windows are known; what a stream reads is judged (`judge_closed`).
        7 if session.habit.stream_window != Some(0) => Method::Consume,
        _ => Method::Produce,
    };
    let state = Rc::new(CallState::new(method));
    session.calls.borrow_mut().push(Rc::clone(&state));
    let name = format!("{}.{number}", session.name);
    match method {
        Method::Produce => produce::unary(&session, requests, &state, &name, &dice).await,
        Method::ProduceStream => produce::stream(&session, requests, &state, &name, &dice).await,
        Method::Consume => consume::unary(&session, requests, &state, &name, &dice).await,
        Method::ConsumeStream => consume::stream(&session, requests, &state, &name, &dice).await,
    }
    state.ended.set(true);
}

/// Opens a call; `None` when the connection takes none any more.
pub(super) async fn open(
    session: &Rc<Session>,
    requests: &mut SendRequest<Bytes>,
    method: Method,
    timeout_ms: Option<u64>,
) -> Option<(Answers, SendStream<Bytes>)> {
    if let Err(error) = poll_fn(|cx| requests.poll_ready(cx)).await {
        session.judge(&error);
        return None;
    }
    let mut request = Request::post(method.path()).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(ms) = timeout_ms {
        request = request.header("grpc-timeout", format!("{ms}m"));
    }
    match requests.send_request(request.body(()).expect("its parts are constants"), false) {
        Ok((response, stream)) => Some((Answers::new(session, response), stream)),
        Err(error) => {
            session.judge(&error);
            None
        }
    }
}

/// Sends a message when the node's windows have room for all of it; false: the call is over.
pub(super) async fn send(stream: &mut SendStream<Bytes>, message: &impl Message, is_last: bool) -> bool {
    let mut bytes = BytesMut::with_capacity(grpc::PREFIX_BYTES + message.encoded_len());
    bytes.put_slice(&grpc::prefix(message.encoded_len()));
    message.encode(&mut bytes).expect("there is room for it");
    stream.reserve_capacity(bytes.len());
    while stream.capacity() < bytes.len() {
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return false,
        }
    }
    stream.send_data(bytes.freeze(), is_last).is_ok()
}

/// How a call has ended.
pub(super) enum End {
    Ok,
    Status(Box<Status>),
    /// Without a status: cancelled, or with its connection.
    Lost,
}

/// The node's messages.
pub(super) struct Answers {
    session: Rc<Session>,
    response: Option<ResponseFuture>,
    body: Option<RecvStream>,
    assembler: Assembler,
}

impl Answers {
    fn new(session: &Rc<Session>, response: ResponseFuture) -> Answers {
        let assembler = Assembler::new(2 * MESSAGE_BYTES_MAX);
        Answers { session: Rc::clone(session), response: Some(response), body: None, assembler }
    }

    /// The next message, once the client's habits allow to read it.
    pub(super) async fn next(&mut self) -> Result<Bytes, End> {
        if let Some(response) = self.response.take() {
            let (head, body) = response.await.map_err(|error| self.lost(&error))?.into_parts();
            if let Some(status) = Status::from_trailers(&head.headers) {
                return Err(self.ended(status));
            }
            self.body = Some(body);
        }
        loop {
            match self.assembler.next_message() {
                Ok(Some(message)) => return Ok(message.bytes),
                Ok(None) => {}
                Err(error) => {
                    self.session.problem(&format!("a message cannot be read: {error}"));
                    return Err(End::Lost);
                }
            }
            self.session.until_it_reads().await;
            let Some(body) = &mut self.body else { return Err(End::Lost) };
            match body.data().await {
                Some(Ok(data)) => {
                    let _ = body.flow_control().release_capacity(data.len());
                    self.assembler.push(data);
                }
                Some(Err(error)) => return Err(self.lost(&error)),
                None => return Err(self.trailers().await),
            }
        }
    }

    async fn trailers(&mut self) -> End {
        let Some(body) = &mut self.body else { return End::Lost };
        match body.trailers().await {
            Ok(trailers) => match trailers.as_ref().and_then(Status::from_trailers) {
                Some(status) => self.ended(status),
                None => {
                    self.session.problem("a call has ended without a status");
                    End::Lost
                }
            },
            Err(error) => self.lost(&error),
        }
    }

    fn ended(&self, status: Result<(), Status>) -> End {
        match status {
            Ok(()) => End::Ok,
            Err(status) => {
                if matches!(status.code, Code::Internal | Code::Unimplemented | Code::InvalidArgument | Code::Unknown) {
                    self.session.problem(&format!("a legal call is refused: {status}"));
                }
                End::Status(Box::new(status))
            }
        }
    }

    fn lost(&self, error: &h2::Error) -> End {
        self.session.judge(error);
        End::Lost
    }
}

impl Session {
    /// Until the client's habits let it read on.
    async fn until_it_reads(&self) {
        if self.habit.opens_after.is_some() {
            self.until_open().await;
        } else if let Some(pause) = self.habit.read_pause
            && !self.clients.stopped.get()
        {
            env::sleep::<SimEnv>(pause).await;
        }
    }
}
