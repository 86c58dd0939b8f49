//! How the requests of one producing stream are passed on: in their order, and each one only when there is room for it. Where a
//! single call is refused, a stream waits, because its client sends on without asking.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use futures_util::future::Either;
use tokio::sync::oneshot;

use crate::env;
use crate::env::Env;
use crate::frontend::CallError;
use crate::frontend::Frontend;
use crate::frontend::ProduceAck;
use crate::frontend::ProduceCall;
use crate::frontend::Submitted;
use crate::frontend::produce_of;
use crate::frontend::room::Permit;
use crate::frontend::room::Place;
use crate::frontend::route;
use crate::reactor::ReactorError;
use crate::reactor::mailbox::Request;
use crate::reactor::topics::PlacedTopic;
use crate::shard::Produced;

/// How long a stream waits before it tries a full mailbox again. Its room is a part of the mailbox, so this is for what others
/// than streams have put in there, which is gone when the reactor has gone round once.
const MAILBOX_PAUSE: Duration = Duration::from_millis(1);

/// See the module's description.
pub struct Admission<E: Env> {
    frontend: Frontend<E>,
    place: Place,
    /// Until a full mailbox is tried again.
    pause: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl<E: Env> Admission<E> {
    /// For one stream.
    pub fn new(frontend: Frontend<E>) -> Admission<E> {
        Admission { frontend, place: Place::default(), pause: None }
    }

    /// Passes on what is in `call`, and takes it; ready with what becomes of it. A call that is refused counts as passed on.
    /// `alone` says that the stream has nothing under way.
    ///
    /// While it is Pending, `call` stays, and `cx` is woken when there may be room, or by the pause before a full mailbox is
    /// tried again. There is one other case: a topic that is looked up or made takes one call of each stream, and the
    /// others wait for that; so a stream that is not `alone` polls again when something of it is answered.
    ///
    /// # Panics
    /// Without a call.
    pub fn poll(
        &mut self,
        call: &mut Option<ProduceCall>,
        alone: bool,
        cx: &mut Context<'_>,
    ) -> Poll<impl Future<Output = Result<ProduceAck, CallError>> + use<E> + 'static> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let head = &call.as_ref().expect("there is a call to be passed on").head;
        let name = route::topic_name(&head.topic);
        let local = &self.frontend.local;
        let placed = if local.sought.borrow().contains_key(name) { None } else { local.topics.get(name) };
        let passed = match placed {
            Some(placed) => Either::Left(ready!(self.poll_to(&placed, call, cx))),
            None if !alone => return Poll::Pending,
            // Boxed, as it is rare, and larger than the other.
            None => Either::Right(Box::pin(self.frontend.produce(call.take().expect("there is one, as above")))),
        };
        let frontend = self.frontend.clone();
        Poll::Ready(async move {
            match passed {
                Either::Left((submitted, permit)) => {
                    let ack = async { submitted?.ack(frontend.local.reactor.node()).await }.await;
                    drop(permit);
                    ack
                }
                Either::Right(ack) => ack.await,
            }
        })
    }

    /// Waits for room no more.
    pub fn leave(&mut self) {
        self.place.leave();
    }

    /// The same for a topic that is known; the permit is to be kept until there is an answer.
    #[allow(clippy::type_complexity, reason = "an answer to come and what it holds; a name would not say more")]
    fn poll_to(
        &mut self,
        placed: &PlacedTopic,
        call: &mut Option<ProduceCall>,
        cx: &mut Context<'_>,
    ) -> Poll<(
        Result<Submitted<impl Future<Output = Result<Produced, ReactorError>> + use<E> + 'static>, CallError>,
        Option<Permit>,
    )> {
        let waiting = call.as_ref().expect("there is a call to be passed on");
        let local = &self.frontend.local;
        let routed = self.frontend.route(placed, &waiting.head).and_then(|routed| Ok((routed, produce_of(waiting)?)));
        let ((shard, place), produce) = match routed {
            Ok(routed) => routed,
            Err(error) => {
                *call = None;
                return Poll::Ready((Err(error), None));
            }
        };
        let room = &local.rooms[place.reactor.0 as usize];
        let permit = ready!(self.place.poll_enter(room, produce.records.encoded_bytes_max(), cx));
        let topic = Arc::clone(&placed.view.name);
        if place.reactor == local.reactor.number() {
            *call = None;
            let produced = local.reactor.produce(place.uid, produce);
            return Poll::Ready((Ok(Submitted::Here { topic, shard, produced }), Some(permit)));
        }
        let (reply, produced) = oneshot::channel();
        match local.reactor.node().send(place.reactor, Request::Produce { uid: place.uid, produce, reply }) {
            Ok(()) => {
                *call = None;
                Poll::Ready((Ok(Submitted::There { topic, shard, produced }), Some(permit)))
            }
            Err(ReactorError::MailboxFull) => {
                let mut pause = Box::pin(env::sleep::<E>(MAILBOX_PAUSE));
                // Registers for its end, which is not yet.
                let polled = pause.as_mut().poll(cx);
                debug_assert!(polled.is_pending());
                self.pause = Some(pause);
                Poll::Pending
            }
            Err(error) => {
                *call = None;
                Poll::Ready((Err(error.into()), None))
            }
        }
    }
}
