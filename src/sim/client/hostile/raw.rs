//! The client's end of a connection below HTTP/2.

use std::{
    collections::BTreeMap,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::{DATA, Frames, GOAWAY, RST_STREAM};
use crate::{
    env,
    format::grpc::PREFIX_BYTES,
    sim::{SimEnv, socket::SimSocket},
};

/// An answer is shorter.
const LOOKED_AT_BYTES: usize = 1 << 10;

/// A connection that sends any bytes, and reads what comes or does not.
pub(super) struct Raw {
    socket: SimSocket,
    reads: bool,
    frames: Frames,
    /// What came as DATA on each stream, as far as it is looked at.
    data: BTreeMap<u32, BytesMut>,
    /// The node has ended it, or said that it will.
    is_over: bool,
    /// It went silent within what it sent last.
    is_silent: bool,
    resets: u64,
}

impl Raw {
    pub(super) fn new(socket: SimSocket, reads: bool) -> Raw {
        Raw {
            socket,
            reads,
            frames: Frames::default(),
            data: BTreeMap::new(),
            is_over: false,
            is_silent: false,
            resets: 0,
        }
    }

    /// Whether the node has said that it takes no more, or has closed the connection; not known of one that does not read.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether it reads what comes.
    pub(super) fn reads(&self) -> bool {
        self.reads
    }

    /// Streams that the node has reset.
    pub(super) fn resets(&self) -> u64 {
        self.resets
    }

    /// The first message on a stream, once all of it is there.
    pub(super) fn message(&self, stream: u32) -> Option<Bytes> {
        let mut data = self.data.get(&stream)?.clone().freeze();
        let &[_, b0, b1, b2, b3] = data.first_chunk::<PREFIX_BYTES>()?;
        data.advance(PREFIX_BYTES);
        let bytes = u32::from_be_bytes([b0, b1, b2, b3]) as usize;
        (bytes <= data.len()).then(|| data.split_to(bytes))
    }

    /// Sends, but tries no longer than that; false: not all of it was taken. From then on nothing is sent: it would be the rest of a
    /// frame, and perhaps of a record that nobody has written down.
    pub(super) async fn send(&mut self, bytes: &[u8], patience: Duration) -> bool {
        if self.is_silent {
            return false;
        }
        let mut rest = bytes;
        let mut late = pin!(env::sleep::<SimEnv>(patience));
        let is_sent = poll_fn(|cx| {
            self.poll_read(cx);
            while !rest.is_empty() {
                match Pin::new(&mut self.socket).poll_write(cx, rest) {
                    Poll::Ready(Ok(written)) => rest = &rest[written..],
                    Poll::Ready(Err(_)) => {
                        self.is_over = true;
                        return Poll::Ready(false);
                    }
                    Poll::Pending => return late.as_mut().poll(cx).map(|()| false),
                }
            }
            Poll::Ready(true)
        })
        .await;
        self.is_silent = !is_sent;
        is_sent
    }

    /// Says no more, in TCP's words.
    pub(super) async fn finish(&mut self) {
        // It never waits, and never fails.
        let _ended = poll_fn(|cx| Pin::new(&mut self.socket).poll_shutdown(cx)).await;
    }

    /// Waits for so long, or until there is a message on `stream`, or the node has ended the connection.
    pub(super) async fn hold(&mut self, patience: Duration, stream: Option<u32>) {
        let mut late = pin!(env::sleep::<SimEnv>(patience));
        poll_fn(|cx| {
            self.poll_read(cx);
            let is_there = stream.is_some_and(|stream| self.message(stream).is_some());
            if self.is_over || is_there { Poll::Ready(()) } else { late.as_mut().poll(cx) }
        })
        .await;
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) {
        while self.reads && !self.is_over {
            let mut space = [0; 4_096];
            let mut piece = ReadBuf::new(&mut space);
            match Pin::new(&mut self.socket).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => self.frames.push(piece.filled()),
                Poll::Ready(_) => self.is_over = true,
                Poll::Pending => return,
            }
            while let Some(frame) = self.frames.next() {
                match frame.kind {
                    DATA => {
                        let data = self.data.entry(frame.stream).or_default();
                        if data.len() < LOOKED_AT_BYTES {
                            data.extend_from_slice(&frame.payload);
                        }
                    }
                    GOAWAY => self.is_over = true,
                    RST_STREAM => self.resets += 1,
                    _ => {}
                }
            }
        }
    }
}
