//! The streaming calls: pipelined produces with their acks, and a consumer's responses.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use prost::Message;

use super::{
    call::{MessageReceiver, MessageSender},
    chunks::{Chunks, framed},
    error::ClientError,
    walk::Walked,
};
use crate::proto::ringlog::v1;

/// The sending half of a stream of produces. Dropped before `finish`, it cancels the stream: requests
/// that are not acknowledged by then may or may not be written.
pub struct ProduceSender(pub(super) MessageSender);

impl ProduceSender {
    /// Sends a request; suspends while the server grants no room. Cancelled, the request stays queued and
    /// goes out with the next one.
    ///
    /// # Errors
    /// `Lost` when the stream is over: `ProduceAcks::next` says why.
    pub async fn send(&mut self, request: &v1::ProduceStreamRequest) -> Result<(), ClientError> {
        self.queue(framed(request));
        self.flush().await
    }

    /// Queues framed requests (one or several in a row); they go out with the next flush.
    pub fn queue(&mut self, framed: Bytes) {
        self.0.queue(framed);
    }

    /// Bytes queued for which the server has not granted room.
    pub fn queued_bytes(&self) -> usize {
        self.0.queued_bytes()
    }

    /// Sends what is queued; suspends while the server grants no room.
    ///
    /// # Errors
    /// As `send`.
    pub async fn flush(&mut self) -> Result<(), ClientError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// As `flush`.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        self.0.poll_flush(cx)
    }

    /// Sends what is queued and tells the server that no more requests come; it acknowledges what it has
    /// and ends the stream.
    ///
    /// # Errors
    /// As `send`.
    pub async fn finish(&mut self) -> Result<(), ClientError> {
        poll_fn(|cx| self.0.poll_finish(cx)).await
    }
}

/// The receiving half of a stream of produces.
pub struct ProduceAcks(pub(super) MessageReceiver);

impl ProduceAcks {
    /// The next ack, in the order of the requests; `None` when the stream ended well. After an error the
    /// stream is over: requests without an ack were not written if the error is definite.
    pub async fn next(&mut self) -> Option<Result<v1::ProduceStreamResponse, ClientError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As `next`.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<v1::ProduceStreamResponse, ClientError>>> {
        let message = ready!(self.0.poll_next(cx));
        Poll::Ready(message.map(|message| decode(message?, &self.0)))
    }
}

/// A consumer's responses. Dropped, it cancels the call.
pub struct ConsumeResponses(pub(super) MessageReceiver);

impl ConsumeResponses {
    /// The next response, decoded; values share the memory in which they arrived. `None` after the last of
    /// `max_records`.
    pub async fn next(&mut self) -> Option<Result<v1::ConsumeStreamResponse, ClientError>> {
        let message = self.0.next().await?;
        Some(message.and_then(|message| decode(message, &self.0)))
    }

    /// The next response, of which only lengths and offsets are read: what a benchmark can afford.
    pub async fn next_walked(&mut self) -> Option<Result<Walked, ClientError>> {
        let message = self.0.next().await?;
        Some(message.and_then(|message| {
            Walked::new(message).ok_or_else(|| self.0.protocol("a response cannot be decoded".to_owned()))
        }))
    }
}

/// The topology, again after every change. Dropped, it cancels the call.
pub struct Watched(pub(super) MessageReceiver);

impl Watched {
    /// The next state; `None` when the server ended the call well.
    pub async fn next(&mut self) -> Option<Result<v1::WatchServersResponse, ClientError>> {
        let message = self.0.next().await?;
        Some(message.and_then(|message| decode(message, &self.0)))
    }
}

fn decode<A: Message + Default>(message: Chunks, receiver: &MessageReceiver) -> Result<A, ClientError> {
    A::decode(message).map_err(|error| receiver.protocol(format!("a message cannot be decoded ({error})")))
}
