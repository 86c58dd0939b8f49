//! A connection to one reactor of a proven peer: streams and datagrams.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
};

use bytes::Bytes;

use super::{
    CODE_BROKEN_OFF, CODE_CLOSED, congestion, error,
    options::{STREAMS_AT_FIRST, STREAMS_MAX, send_window},
};
use crate::{
    env::net::{Connection, NetError, Priority, ReceiveStream, SendStream},
    ids::NodeId,
};

/// Most bytes that are read at once. quinn may have put a whole window of small packets together into one piece, which whoever
/// receives would hold beside the next window.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// A connection. When all handles to it and its streams are dropped, it is closed.
#[derive(Clone, Debug)]
pub struct QuicConnection {
    quic: quinn::Connection,
    peer: NodeId,
    streams: Rc<OpenStreams>,
}

/// How many streams the peer has open, and how many it may: `open <= allowed <= STREAMS_MAX`.
#[derive(Debug)]
struct OpenStreams {
    open: Cell<u32>,
    allowed: Cell<u32>,
}

/// One half of a stream that the peer has opened; the stream counts until both are dropped.
#[derive(Debug)]
struct Counted(Rc<OpenStreams>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

impl QuicConnection {
    pub(super) fn new(quic: quinn::Connection, peer: NodeId) -> QuicConnection {
        let streams = Rc::new(OpenStreams { open: Cell::new(0), allowed: Cell::new(STREAMS_AT_FIRST) });
        QuicConnection { quic, peer, streams }
    }

    /// Counts a stream that the peer has opened, and allows it twice as many when it has half of them open.
    fn count(&self) -> Rc<Counted> {
        let OpenStreams { open, allowed } = &*self.streams;
        open.set(open.get() + 1);
        if open.get() > allowed.get() / 2 && allowed.get() < STREAMS_MAX {
            allowed.set((allowed.get() * 2).min(STREAMS_MAX));
            self.quic.set_max_concurrent_bi_streams(allowed.get().into());
        }
        Rc::new(Counted(self.streams.clone()))
    }

    /// Streams of the peer that are open.
    #[cfg(test)]
    pub(super) fn streams_open(&self) -> u32 {
        self.streams.open.get()
    }

    /// Bytes of the largest packet that the path is known to carry.
    #[cfg(test)]
    pub(super) fn packet_bytes(&self) -> u16 {
        self.quic.stats().path.current_mtu
    }

    /// Where the peer sends from.
    #[cfg(test)]
    pub(super) fn remote_port(&self) -> u16 {
        self.quic.remote_address().port()
    }

    /// What the peer has shown, DER.
    #[cfg(test)]
    pub(super) fn certificate(&self) -> Option<Vec<u8>> {
        let chain = self.quic.peer_identity()?.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
        Some(chain.first()?.to_vec())
    }

    fn halves(
        &self,
        (send, receive): (quinn::SendStream, quinn::RecvStream),
        counted: Option<Rc<Counted>>,
    ) -> (QuicSend, QuicReceive) {
        let peer = self.peer;
        let (quic, priority) = (self.quic.clone(), Cell::new(Priority::Normal));
        let send = QuicSend { stream: send, quic, peer, priority, finished: false, _counted: counted.clone() };
        (send, QuicReceive { stream: receive, peer, _counted: counted })
    }
}

impl Connection for QuicConnection {
    type Send = QuicSend;
    type Receive = QuicReceive;

    fn peer(&self) -> NodeId {
        self.peer
    }

    async fn open(&self) -> Result<(QuicSend, QuicReceive), NetError> {
        let stream = self.quic.open_bi().await.map_err(|cause| error::lost(self.peer, &cause))?;
        Ok(self.halves(stream, None))
    }

    async fn accept(&self) -> Result<(QuicSend, QuicReceive), NetError> {
        let stream = self.quic.accept_bi().await.map_err(|cause| error::lost(self.peer, &cause))?;
        let counted = self.count();
        Ok(self.halves(stream, Some(counted)))
    }

    fn send_datagram(&self, datagram: Bytes) {
        // Too large, not wanted or the connection gone: lost, as datagrams may be.
        drop(self.quic.send_datagram(datagram));
    }

    async fn receive_datagram(&self) -> Result<Bytes, NetError> {
        self.quic.read_datagram().await.map_err(|cause| error::lost(self.peer, &cause))
    }

    async fn closed(&self) -> NetError {
        error::lost(self.peer, &self.quic.closed().await)
    }

    fn is_closed(&self) -> bool {
        self.quic.close_reason().is_some()
    }

    fn close(&self, why: &str) {
        congestion::close(&self.quic, CODE_CLOSED, why);
    }
}

/// The sending half of a stream.
#[derive(Debug)]
pub struct QuicSend {
    stream: quinn::SendStream,
    quic: quinn::Connection,
    peer: NodeId,
    priority: Cell<Priority>,
    finished: bool,
    _counted: Option<Rc<Counted>>,
}

impl QuicSend {
    /// Writes as much as there is room for, and says how many pieces that were; waits while there is none.
    async fn write(&mut self, pieces: &mut [Bytes]) -> Result<usize, NetError> {
        let (quic, room) = (&self.quic, send_window(self.priority.get()));
        let mut write = pin!(self.stream.write_chunks(pieces));
        // Woken by quinn, which has this waker of the last try, when there is room in the window of all, or the connection ends.
        let written = poll_fn(|cx| match write.as_mut().poll(cx) {
            Poll::Pending if room > send_window(Priority::Bulk) => {
                // Nobody else runs between these three: only this write sees the larger window.
                quic.set_send_window(room);
                let again = write.as_mut().poll(cx);
                quic.set_send_window(send_window(Priority::Bulk));
                again
            }
            first => first,
        });
        written.await.map(|written| written.chunks).map_err(|cause| error::write(self.peer, &cause))
    }
}

impl SendStream for QuicSend {
    async fn send(&mut self, mut pieces: Vec<Bytes>) -> Result<(), NetError> {
        // Nothing to write would wait for the window all the same.
        pieces.retain(|piece| !piece.is_empty());
        let mut written = 0;
        while written < pieces.len() {
            written += self.write(&mut pieces[written..]).await?;
        }
        Ok(())
    }

    fn set_priority(&self, priority: Priority) {
        self.priority.set(priority);
        let priority = match priority {
            Priority::Bulk => -1,
            Priority::Normal => 0,
            Priority::Urgent => 1,
        };
        // Fails for a stream that is closed, and has nothing to send any more.
        drop(self.stream.set_priority(priority));
    }

    fn finish(&mut self) {
        self.finished = true;
        // Fails for a stream that is finished or reset already.
        drop(self.stream.finish());
    }
}

impl Drop for QuicSend {
    fn drop(&mut self) {
        // quinn would finish it, and the peer would take a part for the whole.
        if !self.finished {
            drop(self.stream.reset(CODE_BROKEN_OFF.into()));
        }
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct QuicReceive {
    stream: quinn::RecvStream,
    peer: NodeId,
    _counted: Option<Rc<Counted>>,
}

impl ReceiveStream for QuicReceive {
    async fn receive(&mut self) -> Result<Option<Bytes>, NetError> {
        let chunk =
            self.stream.read_chunk(PIECE_BYTES_MAX, true).await.map_err(|cause| error::read(self.peer, &cause))?;
        Ok(chunk.map(|chunk| chunk.bytes))
    }
}
