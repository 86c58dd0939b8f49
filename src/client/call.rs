//! The two halves of a gRPC call: messages out, with flow control respected, and messages in, then the status.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, Method, Request, StatusCode, Uri};

use super::{
    chunks::{Chunks, MESSAGE_PREFIX_BYTES},
    error::{ClientError, Status},
};

/// Longest response message that is accepted, in bytes: twice what one log entry can hold.
const RESPONSE_BYTES_MAX: usize = 2 * crate::limits::ENTRY_BYTES_MAX;

/// Most bytes handed to h2 in one piece.
const SEND_BYTES: usize = 1 << 20;

/// Opens a call. It suspends while the connection has as many calls as the server allows.
///
/// # Errors
/// `Lost`, definite: nothing was sent.
pub(super) async fn open(
    requests: &SendRequest<Chunks>,
    address: &Arc<str>,
    path: &'static str,
    timeout_ms: Option<u64>,
) -> Result<(MessageSender, MessageReceiver), ClientError> {
    let lost =
        |error: h2::Error| ClientError::Lost { address: address.to_string(), cause: error.to_string(), definite: true };
    let mut requests = requests.clone().ready().await.map_err(lost)?;
    let uri = Uri::builder().scheme("http").authority(address.as_ref()).path_and_query(path).build();
    let uri = uri.map_err(|error| ClientError::Unreachable {
        address: address.to_string(),
        cause: format!("it is not a host and a port ({error})"),
    })?;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("user-agent", concat!("ringlog/", env!("CARGO_PKG_VERSION")));
    if let Some(timeout_ms) = timeout_ms {
        request = request.header("grpc-timeout", timeout_header(timeout_ms));
    }
    let request = request.body(()).expect("constant names and checked values make a request");
    let (response, stream) = requests.send_request(request, false).map_err(lost)?;
    let sender = MessageSender { stream, queued: Chunks::default(), address: address.clone() };
    let receiver =
        MessageReceiver { state: State::Waiting(response), buffered: Chunks::default(), address: address.clone() };
    Ok((sender, receiver))
}

/// The value of `grpc-timeout`: at most eight digits and a unit.
fn timeout_header(milliseconds: u64) -> String {
    if milliseconds < 100_000_000 {
        format!("{milliseconds}m")
    } else {
        format!("{}S", (milliseconds / 1_000).min(99_999_999))
    }
}

/// Messages on their way out. What is queued stays in memory until the server grants room for it.
pub(super) struct MessageSender {
    stream: SendStream<Chunks>,
    queued: Chunks,
    address: Arc<str>,
}

impl MessageSender {
    /// Puts framed messages behind what is queued; no copy.
    pub(super) fn queue(&mut self, framed: Bytes) {
        self.queued.push(framed);
    }

    /// Bytes that the server has not granted room for yet.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued.len()
    }

    /// Hands all that is queued to the connection, as fast as the server grants room. Pending, it is woken by h2, when the server
    /// has granted some or the call is over.
    ///
    /// # Errors
    /// `Lost` when the call is over; the receiving half knows why.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        while !self.queued.is_empty() {
            self.stream.reserve_capacity(self.queued.len().min(SEND_BYTES));
            let mut granted = self.stream.capacity();
            if granted == 0 {
                granted = match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(granted)) => granted,
                    Some(Err(error)) => return Poll::Ready(Err(lost(&self.address, &error))),
                    None => return Poll::Ready(Err(self.over())),
                };
            }
            let part = self.queued.split_to(granted.min(self.queued.len()));
            if !part.is_empty() {
                self.stream.send_data(part, false).map_err(|error| lost(&self.address, &error))?;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// As `poll_flush`, and then says that no more will come.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        ready!(self.poll_flush(cx))?;
        let finished = self.stream.send_data(Chunks::default(), true);
        Poll::Ready(finished.map_err(|error| lost(&self.address, &error)))
    }

    fn over(&self) -> ClientError {
        let cause = "the server ended the call".to_owned();
        ClientError::Lost { address: self.address.to_string(), cause, definite: false }
    }
}

enum State {
    Waiting(ResponseFuture),
    Body(RecvStream),
    Over,
}

/// Messages on their way in. Nothing is read ahead of the caller but what the windows allow.
pub(super) struct MessageReceiver {
    state: State,
    buffered: Chunks,
    address: Arc<str>,
}

impl MessageReceiver {
    /// The next message, without its prefix; `None` after the server's OK.
    pub(super) async fn next(&mut self) -> Option<Result<Chunks, ClientError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As `next`. An error is given once, then `None`. Pending, it is woken by h2, when something comes or the call is over.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Chunks, ClientError>>> {
        let result = ready!(self.poll_message(cx));
        if !matches!(result, Ok(Some(_))) {
            self.state = State::Over;
        }
        Poll::Ready(result.transpose())
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunks>, ClientError>> {
        loop {
            match &mut self.state {
                State::Over => return Poll::Ready(Ok(None)),
                State::Waiting(response) => {
                    let response = ready!(std::pin::Pin::new(response).poll(cx));
                    let (head, body) = response.map_err(|error| lost(&self.address, &error))?.into_parts();
                    self.check_head(head.status, &head.headers)?;
                    self.state = State::Body(body);
                }
                State::Body(body) => {
                    if let Some(message) = take_message(&mut self.buffered, &self.address)? {
                        return Poll::Ready(Ok(Some(message)));
                    }
                    match ready!(body.poll_data(cx)) {
                        Some(Ok(data)) => {
                            // What we hold is bounded by the longest message, so room is given back at once.
                            let released = body.flow_control().release_capacity(data.len());
                            released.map_err(|error| lost(&self.address, &error))?;
                            self.buffered.push(data);
                        }
                        Some(Err(error)) => return Poll::Ready(Err(lost(&self.address, &error))),
                        None => {
                            let trailers = ready!(body.poll_trailers(cx));
                            let trailers = trailers.map_err(|error| lost(&self.address, &error))?;
                            return Poll::Ready(self.end(trailers).map(|()| None));
                        }
                    }
                }
            }
        }
    }

    /// An answer that is no gRPC, or an error without a body.
    fn check_head(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), ClientError> {
        if let Some(Err(status)) = Status::from_trailers(headers) {
            return Err(ClientError::Status(Box::new(status)));
        }
        if status != StatusCode::OK {
            return Err(self.protocol(format!("HTTP status {status}")));
        }
        let content_type = headers.get("content-type").map_or(&b""[..], |value| value.as_bytes());
        if !content_type.starts_with(b"application/grpc") {
            let content_type = String::from_utf8_lossy(content_type);
            return Err(self.protocol(format!("content type \"{content_type}\" instead of application/grpc")));
        }
        Ok(())
    }

    fn end(&self, trailers: Option<HeaderMap>) -> Result<(), ClientError> {
        match trailers.as_ref().and_then(Status::from_trailers) {
            Some(Ok(())) if self.buffered.is_empty() => Ok(()),
            Some(Ok(())) => Err(self.protocol("the last message is cut off".to_owned())),
            Some(Err(status)) => Err(ClientError::Status(Box::new(status))),
            None => Err(self.protocol("the call ended without a status".to_owned())),
        }
    }

    pub(super) fn protocol(&self, what: String) -> ClientError {
        ClientError::Protocol { address: self.address.to_string(), what }
    }
}

/// Takes a whole message off the front of `buffered`, if there is one.
fn take_message(buffered: &mut Chunks, address: &Arc<str>) -> Result<Option<Chunks>, ClientError> {
    if buffered.len() < MESSAGE_PREFIX_BYTES {
        return Ok(None);
    }
    let prefix = peek_prefix(buffered);
    let bytes = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    let protocol = |what| ClientError::Protocol { address: address.to_string(), what };
    if prefix[0] != 0 {
        return Err(protocol("it sent a compressed message, which was not asked for".to_owned()));
    }
    if bytes > RESPONSE_BYTES_MAX {
        return Err(protocol(format!("it announced a message of {bytes} bytes, the limit is {RESPONSE_BYTES_MAX}")));
    }
    if buffered.len() < MESSAGE_PREFIX_BYTES + bytes {
        return Ok(None);
    }
    buffered.advance(MESSAGE_PREFIX_BYTES);
    Ok(Some(buffered.split_to(bytes)))
}

fn peek_prefix(buffered: &Chunks) -> [u8; MESSAGE_PREFIX_BYTES] {
    let mut prefix = [0; MESSAGE_PREFIX_BYTES];
    if let Some(first) = buffered.chunk().first_chunk::<MESSAGE_PREFIX_BYTES>() {
        return *first;
    }
    buffered.clone().copy_to_slice(&mut prefix);
    prefix
}

fn lost(address: &Arc<str>, error: &h2::Error) -> ClientError {
    // RFC 9113, section 8.7: a refused stream was not processed at all.
    let definite = error.reason() == Some(Reason::REFUSED_STREAM);
    ClientError::Lost { address: address.to_string(), cause: error.to_string(), definite }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Arc<str> {
        "test:1".into()
    }

    /// Messages come out whole, however their bytes are cut.
    #[test]
    fn messages_over_any_cut() {
        let mut bytes = Vec::new();
        for length in [0usize, 1, 300] {
            bytes.push(0);
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
            bytes.extend(vec![b'x'; length]);
        }
        for size in 1..=bytes.len() {
            let mut buffered = Chunks::default();
            let mut lengths = Vec::new();
            for piece in bytes.chunks(size) {
                buffered.push(Bytes::copy_from_slice(piece));
                while let Some(message) = take_message(&mut buffered, &address()).unwrap() {
                    lengths.push(message.len());
                }
            }
            assert_eq!(lengths, [0, 1, 300]);
            assert!(buffered.is_empty());
        }
    }

    /// A length that lies is refused before anything is kept for it.
    #[test]
    fn refuses_lies() {
        for prefix in [[0, 255, 255, 255, 255], [1, 0, 0, 0, 1]] {
            let mut buffered = Chunks::from(Bytes::copy_from_slice(&prefix));
            assert!(take_message(&mut buffered, &address()).is_err());
        }
    }

    /// At most eight digits, as the gRPC specification says.
    #[test]
    fn timeouts() {
        assert_eq!(timeout_header(1), "1m");
        assert_eq!(timeout_header(99_999_999), "99999999m");
        assert_eq!(timeout_header(100_000_000), "100000S");
        assert_eq!(timeout_header(u64::MAX), "99999999S");
    }
}
