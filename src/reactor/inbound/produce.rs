//! A stream of produce requests from another node, for one shard: proposed here in the order in which they come, answered in
//! that order.
//!
//! The promise that lets the other node send again what was refused: when a request is refused because this replica cannot
//! propose it, none of those behind it in the same stream is proposed. The stream ends with that refusal.

use std::{cell::RefCell, collections::VecDeque, future::Future, pin::Pin, rc::Rc, task::Poll};

use super::{Explain, malformed, refuse};
use crate::{
    env::{
        self, Env,
        channel::{self, Notify, OneshotReceiver},
    },
    ids::ShardUid,
    limits::{STREAM_PRODUCE_BYTES_IN_FLIGHT_MAX, STREAM_PRODUCES_IN_FLIGHT_MAX},
    peer::frame::{FrameReceiver, FrameSender, FrameStream, Received},
    proto::ringlog::state::v1::PeerRefusal,
    reactor::{
        Reactor,
        forward::{may_go_on, wire},
    },
    shard::{Durability, Produce, Produced, Shard, ShardError},
};

/// Most answers in one frame.
const FRAME_ACKS_MAX: usize = 1_024;

/// A request between its arrival and its answer, with its bytes.
enum Pending {
    Proposed(usize, OneshotReceiver<Result<Produced, ShardError>>),
    Refused(PeerRefusal),
}

/// What both halves of a stream share.
#[derive(Default)]
struct State {
    /// In the order of arrival.
    pending: VecDeque<Pending>,
    /// Of the proposed ones.
    bytes: usize,
    /// Nothing more is proposed, and nothing more comes.
    ended: bool,
    /// The rest is not answered: the other node must not send it again.
    broken: bool,
}

impl Pending {
    /// Whether it is known that nothing of it was written, behind a request that was handed back. What was acknowledged from memory
    /// was not either: it was proposed behind that one.
    fn is_unwritten(&mut self, refusal: impl Fn(ShardError) -> PeerRefusal) -> bool {
        match self {
            Pending::Refused(refused) => refused.definite,
            Pending::Proposed(_, answer) => match answer.try_recv() {
                Ok(Some(Err(error))) => refusal(error).definite,
                Ok(Some(Ok(produced))) => produced.durability == Durability::LeaderMemory,
                Ok(None) | Err(channel::Closed) => false,
            },
        }
    }
}

struct Stream<E: Env> {
    reactor: Rc<Reactor<E>>,
    explain: Explain,
    uid: ShardUid,
    shard: Shard<E>,
    /// How often the shard had handed requests back when this stream began.
    losses: u64,
    state: RefCell<State>,
    /// Something has come, was answered, or has ended.
    changed: Notify,
}

/// Serves a stream whose first frame is `first`.
pub(super) fn serve<E: Env>(reactor: &Rc<Reactor<E>>, explain: Explain, first: Received, stream: FrameStream<E>) {
    let (uid, produces) = match wire::produces(first, E::monotonic_us()) {
        Ok(asked) => asked,
        Err(what) => return refuse(stream, malformed(&what)),
    };
    let shard = match reactor.serving(uid) {
        Ok(shard) => shard,
        Err(error) => return refuse(stream, explain(error)),
    };
    let FrameStream { sender, receiver } = stream;
    let losses = shard.losses();
    let reactor = Rc::clone(reactor);
    let (state, changed) = (RefCell::default(), Notify::new());
    let stream = Stream { reactor, explain, uid, shard, losses, state, changed };
    env::spawn::<E>(async move {
        stream.take(produces);
        // Two futures: while answers wait for room in the peer's window, requests are still taken, and the other way round.
        tokio::select! {
            biased;
            () = stream.answer(sender) => {}
            () = stream.receive(receiver) => {}
        }
    });
}

impl<E: Env> Stream<E> {
    /// Proposes requests, in order.
    fn take(&self, produces: Vec<Produce>) {
        for produce in produces {
            if self.state.borrow().ended {
                break;
            }
            let bytes = produce.records.encoded_bytes_max();
            let result = if self.shard.losses() == self.losses {
                self.shard.submit(produce).map_err(|refused| refused.0)
            } else {
                Err(ShardError::NotLeader { leader: self.shard.leader().0 })
            };
            let mut state = self.state.borrow_mut();
            match result {
                Ok(answer) => {
                    state.bytes += bytes;
                    state.pending.push_back(Pending::Proposed(bytes, answer));
                }
                Err(error) => {
                    let refusal = self.refusal(error);
                    state.ended |= may_go_on(&refusal);
                    state.pending.push_back(Pending::Refused(refusal));
                }
            }
        }
        self.changed.notify_all();
    }

    fn refusal(&self, error: ShardError) -> PeerRefusal {
        let result: Result<(), _> = self.reactor.noted(self.uid, Err(error));
        (self.explain)(result.expect_err("it was an error"))
    }

    /// Takes frames until the peer ends the stream. Answers still go out then: it returns only when there is nobody to send
    /// them to.
    async fn receive(&self, mut receiver: FrameReceiver<E>) {
        loop {
            self.room().await;
            let received = match receiver.receive().await {
                Ok(Some(received)) => received,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(shard_uid = self.uid.0, %error, "a forwarding node is gone");
                    return;
                }
            };
            match wire::produces(received, E::monotonic_us()) {
                Ok((uid, produces)) if uid == self.uid => self.take(produces),
                Ok(_) => return self.break_off("it changes the shard"),
                Err(what) => return self.break_off(&what),
            }
        }
        self.state.borrow_mut().ended = true;
        self.changed.notify_all();
        std::future::pending().await
    }

    /// The stream is not what it should be: it is dropped, and the peer does not know what became of the rest.
    fn break_off(&self, what: &str) {
        tracing::warn!(
            shard_uid = self.uid.0,
            what,
            "a stream of forwarded produces is ended without an answer to the rest"
        );
    }

    /// Suspends while too much is not answered.
    async fn room(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.borrow();
                let full = state.pending.len() >= STREAM_PRODUCES_IN_FLIGHT_MAX
                    || state.bytes >= STREAM_PRODUCE_BYTES_IN_FLIGHT_MAX;
                if !full {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Sends answers as they come, in order, until the stream has ended and all are sent.
    async fn answer(&self, mut sender: FrameSender<E>) {
        loop {
            let (acks, last) = self.answered().await;
            if !acks.is_empty() && sender.send(wire::acks_frame(acks)).await.is_err() {
                return;
            }
            if last {
                if !self.state.borrow().broken {
                    sender.finish();
                }
                return;
            }
            self.changed.notify_all();
        }
    }

    /// The next answers, at least one unless they are the last.
    async fn answered(&self) -> (Vec<wire::Ack>, bool) {
        let mut acks = Vec::new();
        loop {
            let changed = self.changed.notified();
            // Woken by the answer to the first request; while there is none, and for requests that come, by `changed`.
            let first = std::future::poll_fn(|context| {
                let last = self.poll_answers(&mut acks, context);
                if last || !acks.is_empty() { Poll::Ready(last) } else { Poll::Pending }
            });
            tokio::select! {
                biased;
                last = first => return (acks, last),
                // Requests came, or the stream has ended: look again.
                () = changed => {}
            }
        }
    }

    /// Takes the answers that are there. True if none comes after them.
    fn poll_answers(&self, acks: &mut Vec<wire::Ack>, context: &mut std::task::Context<'_>) -> bool {
        while acks.len() < FRAME_ACKS_MAX {
            let state = &mut *self.state.borrow_mut();
            let ack = match state.pending.front_mut() {
                None => return state.ended,
                Some(Pending::Refused(refusal)) => Err(std::mem::take(refusal)),
                Some(Pending::Proposed(bytes, answer)) => match Pin::new(answer).poll(context) {
                    Poll::Pending => return false,
                    Poll::Ready(result) => {
                        let bytes = *bytes;
                        state.bytes -= bytes;
                        let result = result.unwrap_or(Err(ShardError::Closing { maybe_written: true }));
                        result.map_err(|error| self.refusal(error))
                    }
                },
            };
            state.pending.pop_front();
            if !ack.as_ref().is_err_and(may_go_on) {
                acks.push(ack);
                continue;
            }
            // Those behind it are refused with it.
            state.ended = true;
            let mut behind = std::mem::take(&mut state.pending);
            state.broken = !behind.iter_mut().all(|pending| pending.is_unwritten(|error| self.refusal(error)));
            debug_assert!(!state.broken, "nothing is handed back that is before something which may be written");
            if state.broken {
                self.break_off("what came behind a request that is refused may be written");
            } else {
                acks.push(ack);
            }
            return true;
        }
        false
    }
}
