//! Connections that the others make: their streams and datagrams go to the handler.

use std::{cell::Cell, rc::Rc};

use bytes::Bytes;
use futures_util::future::join;
use prost::Message as _;

use super::{
    Handler, Inner, datagram,
    frame::{Frame, FrameKind, FrameStream, Permit, Shared},
    ping,
};
use crate::{
    env::{
        self, Env,
        channel::Notify,
        net::{Connection, Net},
    },
    ids::NodeId,
    limits,
    proto::ringlog::state::v1::PeerRefusal,
};

type ConnectionOf<E> = <<E as Env>::Net as Net>::Connection;

/// Accepts until the endpoint is closed.
pub(super) async fn accept<E: Env>(inner: Rc<Inner<E>>, net: E::Net, handler: Rc<dyn Handler<E>>) {
    while let Some(connection) = net.accept().await {
        if inner.closed.get() {
            return;
        }
        if inner.accepted.get() >= limits::PEER_CONNECTIONS_MAX {
            tracing::warn!(node = %connection.peer(), "connection refused: there are too many");
            connection.close("there are too many connections");
            continue;
        }
        env::spawn_call::<E>("a peer's connection", serve(Rc::clone(&inner), connection, Rc::clone(&handler)));
    }
}

/// One connection, until it is over.
async fn serve<E: Env>(inner: Rc<Inner<E>>, connection: ConnectionOf<E>, handler: Rc<dyn Handler<E>>) {
    let peer = connection.peer();
    let _counted = Counted::new(&inner);
    let shared = inner.shared(peer, &inner.liveness.pulse(peer));
    shared.pulse.beat();
    inner.note_reachable(peer);
    tracing::debug!(node = %peer, reactor = %inner.reactor, "accepted a connection");
    join(streams(&connection, &shared, &handler), datagrams(&inner, &connection, &shared, &handler)).await;
}

struct Counted<E: Env>(Rc<Inner<E>>);

impl<E: Env> Counted<E> {
    fn new(inner: &Rc<Inner<E>>) -> Counted<E> {
        inner.accepted.set(inner.accepted.get() + 1);
        Counted(Rc::clone(inner))
    }
}

impl<E: Env> Drop for Counted<E> {
    fn drop(&mut self) {
        self.0.accepted.set(self.0.accepted.get() - 1);
    }
}

/// Streams that a peer has open on one connection.
struct Places {
    places: usize,
    taken: Cell<usize>,
    freed: Notify,
}

impl Places {
    fn new(places: usize) -> Rc<Places> {
        Rc::new(Places { places, taken: Cell::new(0), freed: Notify::new() })
    }

    async fn take(self: &Rc<Self>) -> Rc<Permit> {
        loop {
            let freed = self.freed.notified();
            if self.taken.get() < self.places {
                break;
            }
            freed.await;
        }
        self.taken.set(self.taken.get() + 1);
        let places = Rc::clone(self);
        let give_back = Box::new(move || {
            places.taken.set(places.taken.get() - 1);
            places.freed.notify_all();
        });
        Rc::new(Permit { give_back })
    }
}

async fn streams<E: Env>(connection: &ConnectionOf<E>, shared: &Shared, handler: &Rc<dyn Handler<E>>) {
    let places = Places::new(limits::PEER_STREAMS_MAX);
    loop {
        let permit = places.take().await;
        let Ok(halves) = connection.accept().await else { return };
        env::spawn::<E>(first_frame(FrameStream::new(halves, shared, Some(permit)), Rc::clone(handler)));
    }
}

/// A stream belongs to the handler from its first frame on.
async fn first_frame<E: Env>(mut stream: FrameStream<E>, handler: Rc<dyn Handler<E>>) {
    let peer = stream.receiver.peer();
    match stream.receiver.receive().await {
        Ok(Some(first)) => handler.stream(peer, first, stream),
        Ok(None) => tracing::debug!(node = %peer, "a stream was ended before its first frame"),
        Err(error) => {
            tracing::debug!(%error, "a stream was lost before its first frame");
            if stream.receiver.is_turned_away() {
                refuse_for_memory(stream).await;
            }
        }
    }
}

/// Tells a peer that its first frame finds no room, so that it comes again after a pause.
async fn refuse_for_memory<E: Env>(stream: FrameStream<E>) {
    let FrameStream { mut sender, receiver } = stream;
    // The rest of the window goes first: the answer may have to wait.
    drop(receiver);
    let refusal = PeerRefusal {
        code: 8,
        reason: "MEMORY_BUSY".to_owned(),
        message: "too much of what peers have sent waits for memory; retry after a moment".to_owned(),
        definite: true,
        retry_after_ms: limits::RETRY_AFTER.as_millis() as u64,
        ..PeerRefusal::default()
    };
    let envelope = refusal.encode_to_vec().into();
    // It may be gone.
    drop(sender.send(Frame { kind: FrameKind::Refused, envelope, parts: Vec::new() }).await);
    sender.finish();
}

async fn datagrams<E: Env>(
    inner: &Rc<Inner<E>>,
    connection: &ConnectionOf<E>,
    shared: &Shared,
    handler: &Rc<dyn Handler<E>>,
) {
    while let Ok(bytes) = connection.receive_datagram().await {
        shared.pulse.beat();
        take_datagram(inner, shared.peer, bytes, handler);
    }
}

fn take_datagram<E: Env>(inner: &Rc<Inner<E>>, from: NodeId, bytes: Bytes, handler: &Rc<dyn Handler<E>>) {
    match bytes.first() {
        Some(&datagram::PING) => ping::answer(inner, from, &bytes),
        Some(&datagram::PONG) => ping::note_answer(inner, from, &bytes),
        Some(_) => handler.datagram(from, bytes),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Who finds no place waits until one is given back.
    #[test]
    fn places() {
        let places = Places::new(2);
        let first = places.take().now_or_never().unwrap();
        let second = places.take().now_or_never().unwrap();
        let mut third = Box::pin(places.take());
        assert!((&mut third).now_or_never().is_none());
        drop(Rc::clone(&first));
        assert!((&mut third).now_or_never().is_none(), "one of two halves is still held");
        drop(first);
        let third = third.now_or_never().unwrap();
        assert!(places.take().now_or_never().is_none());
        drop((second, third));
        assert_eq!(places.taken.get(), 0);
    }
}
