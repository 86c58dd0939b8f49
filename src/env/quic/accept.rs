//! Handshakes of connections that others make: many at the same time, a bounded number, each for a bounded time. Only
//! proven members, and requests to join, come out of here.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use quinn::{Incoming, crypto::rustls::HandshakeData};
use rustls::pki_types::CertificateDer;

use super::{
    CODE_BUSY, CODE_NOT_MEMBER, CODE_REFUSED, Membership, QuicConnection, QuicOptions, WELCOME, congestion, error,
    handshakes::Handshakes,
    join::{self, JoinConnection},
    options,
};
use crate::{
    env::{self, channel::Notify, real::RealEnv},
    ids::NodeId,
    tls::{JOIN_PROTOCOL, PEER_PROTOCOL, name_of},
};

/// Handshakes at the same time; of more, those of addresses that have few take the place of others (`handshakes`), and the
/// rest are refused, and dialled again.
pub(super) const HANDSHAKES_MAX: usize = 256;

/// Connections and requests that wait to be taken; more are closed as busy.
const QUEUE_MAX: usize = 256;

/// Lines about refused connections in a row; then one a second, with the number of those that were left out.
const LINES_MAX: u32 = 10;

/// What waits to be taken. Clones are handles to the same.
pub(super) struct Queue<T>(Rc<QueueState<T>>);

struct QueueState<T> {
    waiting: RefCell<VecDeque<T>>,
    changed: Notify,
    closed: Cell<bool>,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue(Rc::new(QueueState { waiting: RefCell::default(), changed: Notify::new(), closed: Cell::new(false) }))
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Queue<T> {
        Queue(self.0.clone())
    }
}

impl<T> Queue<T> {
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.waiting.borrow().len()
    }

    /// Gives it back when the queue is full or closed.
    fn push(&self, item: T) -> Option<T> {
        if self.0.closed.get() || self.0.waiting.borrow().len() >= QUEUE_MAX {
            return Some(item);
        }
        self.0.waiting.borrow_mut().push_back(item);
        self.0.changed.notify_one();
        None
    }

    /// The oldest; waits for one, `None` when the queue is closed. Dropping the future loses nothing.
    pub(super) async fn pop(&self) -> Option<T> {
        loop {
            if self.0.closed.get() {
                return None;
            }
            let oldest = self.0.waiting.borrow_mut().pop_front();
            if oldest.is_some() {
                return oldest;
            }
            self.0.changed.notified().await;
        }
    }

    /// Forgets what waits and is no use any more.
    fn retain(&self, is_of_use: impl FnMut(&T) -> bool) {
        let all = std::mem::take(&mut *self.0.waiting.borrow_mut());
        let (kept, forgotten): (VecDeque<T>, VecDeque<T>) = all.into_iter().partition(is_of_use);
        *self.0.waiting.borrow_mut() = kept;
        drop(forgotten);
    }

    /// Forgets what waits; `pop` gives `None` from now on.
    pub(super) fn close(&self) {
        self.0.closed.set(true);
        // Outside of the borrow: what a dropped connection does may look at the queue.
        let waiting = std::mem::take(&mut *self.0.waiting.borrow_mut());
        drop(waiting);
        self.0.changed.notify_all();
    }
}

/// Takes what comes in at an endpoint.
pub(super) struct Acceptor {
    me: NodeId,
    members: Membership,
    options: QuicOptions,
    accepted: Queue<QuicConnection>,
    joins: Queue<JoinConnection>,
    handshakes: Handshakes,
    joining: Rc<Cell<usize>>,
    refusals: Refusals,
}

/// Counts while it lives.
pub(super) struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(count: &Rc<Cell<usize>>) -> Place {
        count.set(count.get() + 1);
        Place(count.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Acceptor {
    /// Works until the endpoint is closed.
    pub(super) fn start(
        endpoint: quinn::Endpoint,
        me: NodeId,
        members: Membership,
        options: QuicOptions,
        accepted: Queue<QuicConnection>,
        joins: Queue<JoinConnection>,
    ) {
        let handshakes = Handshakes::new(HANDSHAKES_MAX);
        let (joining, refusals) = (Rc::default(), Refusals::default());
        let acceptor = Rc::new(Acceptor { me, members, options, accepted, joins, handshakes, joining, refusals });
        env::spawn::<RealEnv>(async move {
            while let Some(incoming) = endpoint.accept().await {
                acceptor.take(incoming);
            }
            acceptor.accepted.close();
            acceptor.joins.close();
        });
    }

    fn take(self: &Rc<Self>, incoming: Incoming) {
        // Whoever dials must first prove that it receives at the address that it sends from, which costs one round trip,
        // or none if it was here before: nobody can keep the handshakes busy under false addresses, or have us flood one.
        // quinn itself lets an unproven address have a packet more than RFC 9000, section 8.1, allows (three times what
        // came from it).
        if !incoming.remote_address_validated() {
            // Fails only for an address that is validated.
            return drop(incoming.retry());
        }
        let from = incoming.remote_address();
        let Some(mut place) = self.handshakes.take(from.ip()) else {
            self.refusals.note(from, "too many connect at the same time");
            return incoming.refuse();
        };
        let acceptor = self.clone();
        env::spawn::<RealEnv>(async move {
            let within = acceptor.options.handshake;
            let greeting = options::timeout(within, acceptor.greet(incoming));
            let cause = tokio::select! {
                biased;
                greeted = greeting => match greeted {
                    Some(Ok(())) => None,
                    Some(Err(cause)) => Some(cause),
                    None => Some(format!("it did not end its handshake within {within:?}")),
                },
                () = place.lost() => Some("others connect, too, and most handshakes were with its address".to_owned()),
            };
            if let Some(cause) = cause {
                acceptor.refusals.note(from, &cause);
            }
            drop(place);
        });
    }

    /// The handshake, and who it was with; an error says why he was refused.
    async fn greet(self: &Rc<Self>, incoming: Incoming) -> Result<(), String> {
        let connecting = incoming.accept().map_err(|cause| error::handshake(&cause).1)?;
        let quic = connecting.await.map_err(|cause| error::handshake(&cause).1)?;
        let protocol = quic.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok()?.protocol);
        match protocol.as_deref() {
            Some(PEER_PROTOCOL) => self.greet_member(quic).await,
            Some(JOIN_PROTOCOL) => self.take_join(quic),
            // TLS has agreed on one of the two.
            _ => Err(refuse(&quic, "it speaks no protocol of ours".to_owned())),
        }
    }

    async fn greet_member(&self, quic: quinn::Connection) -> Result<(), String> {
        let peer = self.prove(&quic).map_err(|cause| refuse(&quic, cause))?;
        if let Err(cause) = (self.members)(peer) {
            congestion::close(&quic, CODE_NOT_MEMBER, &cause);
            return Err(format!("node {peer} is refused: {cause}"));
        }
        let welcome = async {
            let mut stream = quic.open_uni().await.ok()?;
            stream.write_all(WELCOME).await.ok()?;
            stream.finish().ok()
        };
        if welcome.await.is_none() {
            return Err(format!("node {peer} was gone before it was welcomed"));
        }
        if self.accepted.push(QuicConnection::new(quic.clone(), peer)).is_some() {
            congestion::close(&quic, CODE_BUSY, "");
            return Err(format!("node {peer} has to wait: too many connect at the same time"));
        }
        Ok(())
    }

    /// Who is there. TLS has checked that the certificate, if one was shown, is of this cluster.
    fn prove(&self, quic: &quinn::Connection) -> Result<NodeId, String> {
        let shown = quic.peer_identity().and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
        let Some(certificate) = shown.as_deref().and_then(|chain| chain.first()) else {
            return Err("no certificate was shown; only members of the cluster have one".to_owned());
        };
        let node = name_of(certificate).map_err(|error| error.to_string())?.node;
        if node == self.me {
            return Err(format!("two processes say that they are node {node}: was a data directory copied?"));
        }
        Ok(node)
    }

    /// The request is read beside the handshakes: it has a time of its own.
    fn take_join(self: &Rc<Self>, quic: quinn::Connection) -> Result<(), String> {
        // Those who gave up waiting make room.
        self.joins.retain(|waiting| !waiting.is_gone());
        if self.joining.get() >= join::JOINS_MAX {
            congestion::close(&quic, CODE_BUSY, "other nodes are joining at the moment");
            return Err("it wants to join while many others do".to_owned());
        }
        let place = Place::take(&self.joining);
        let acceptor = self.clone();
        env::spawn::<RealEnv>(async move {
            let from = quic.remote_address();
            let taken = match JoinConnection::read(quic, place).await {
                Ok(request) => acceptor.joins.push(request).is_none(),
                Err(cause) => return acceptor.refusals.note(from, &cause),
            };
            if !taken {
                acceptor.refusals.note(from, "it wants to join while this node stops");
            }
        });
        Ok(())
    }
}

/// Tells the dialler why, and gives that back for the log.
fn refuse(quic: &quinn::Connection, cause: String) -> String {
    congestion::close(quic, CODE_REFUSED, &cause);
    cause
}

/// What the operator sees of those who were refused: who, and why. Whoever knocks often does not fill the log.
struct Refusals {
    left: Cell<u32>,
    refilled: Cell<Instant>,
    unsaid: Cell<u64>,
}

impl Default for Refusals {
    #[allow(clippy::disallowed_methods, reason = "part of the real environment")]
    fn default() -> Refusals {
        Refusals { left: Cell::new(LINES_MAX), refilled: Cell::new(Instant::now()), unsaid: Cell::new(0) }
    }
}

impl Refusals {
    #[allow(clippy::disallowed_methods, reason = "part of the real environment")]
    fn note(&self, from: SocketAddr, cause: &str) {
        let now = Instant::now();
        let seconds = now.duration_since(self.refilled.get()).as_secs();
        if seconds > 0 {
            self.refilled.set(self.refilled.get() + Duration::from_secs(seconds));
            let more = u32::try_from(seconds).unwrap_or(LINES_MAX);
            self.left.set(self.left.get().saturating_add(more).min(LINES_MAX));
        }
        if self.left.get() == 0 {
            self.unsaid.set(self.unsaid.get() + 1);
            return;
        }
        self.left.set(self.left.get() - 1);
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let unsaid = self.unsaid.take();
        tracing::warn!(%from, unsaid, "a connection from another node was refused: {cause}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{quic::tests::Lines, runtime::block_on};

    /// What waits comes out in order; what does not fit comes back; nobody waits for a closed queue.
    #[test]
    fn queue() {
        block_on(async {
            let queue = Queue::default();
            assert!((0..QUEUE_MAX).all(|item| queue.push(item).is_none()));
            assert_eq!(queue.push(7), Some(7));
            assert_eq!(queue.pop().await, Some(0));
            queue.retain(|item| item % 100 == 50);
            for kept in [50, 150, 250] {
                assert_eq!(queue.pop().await, Some(kept));
            }
            let end = async { queue.close() };
            let (first, second, ()) = tokio::join!(queue.pop(), queue.pop(), end);
            assert_eq!((first, second, queue.push(1)), (None, None, Some(1)));
        });
    }

    /// Whoever knocks a thousand times gets few lines, and the next line has the number of those that were left out.
    #[test]
    fn lines_are_bounded() {
        let (lines, _guard) = Lines::catch();
        let refusals = Refusals::default();
        let begun = refusals.refilled.get();
        for _ in 0..1_000 {
            refusals.note(([127, 0, 0, 1], 9).into(), "he is a stranger");
        }
        let more = refusals.refilled.get().duration_since(begun).as_secs() as usize;
        let said = lines.text().matches("a connection from another node was refused: he is a stranger").count();
        assert!(said >= LINES_MAX as usize && said <= LINES_MAX as usize + more, "{said} lines, {more} s");
        assert!(refusals.unsaid.get() > 0);
        refusals.left.set(1);
        let unsaid = refusals.unsaid.get();
        refusals.note("[::ffff:127.0.0.1]:9".parse().unwrap(), "and again");
        let text = lines.text();
        assert!(text.contains("and again from=127.0.0.1:9") && text.contains(&format!("unsaid={unsaid}")), "{text}");
    }
}
