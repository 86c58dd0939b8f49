//! How the requests of one producing stream are passed on: in their order, and each one only when there is room for it. Where a
//! single call is refused, a stream waits, because its client sends on without asking.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::env;
use crate::env::Env;
use crate::frontend::CallError;
use crate::frontend::Frontend;
use crate::frontend::ProduceAck;
use crate::frontend::ProduceCall;
use crate::frontend::produce_of;
use crate::frontend::room::Permit;
use crate::frontend::room::Place;
use crate::frontend::route;
use crate::frontend::under_way::Answer;
use crate::frontend::under_way::Passed;
use crate::frontend::under_way::UnderWay;
use crate::reactor::ReactorError;
use crate::reactor::mailbox::Request;
use crate::reactor::topics::PlacedTopic;
use crate::reactor::topics::ShardPlace;

/// How long a stream waits before it tries a full mailbox again. Its room is a part of the mailbox, so this is for what others
/// than streams have put in there, which is gone when the reactor has gone round once.
const MAILBOX_PAUSE: Duration = Duration::from_millis(1);

const THERE_IS_A_CALL: &str = "there is a call to be passed on";

/// See the module's description.
pub struct Admission<E: Env> {
    frontend: Frontend<E>,
    place: Place,
    /// Of the call that is to be passed on, once it was routed: it keeps its shard, and so its place in a line.
    turn: Option<u32>,
    /// Until the topic of that call is found or made.
    search: Option<oneshot::Receiver<Result<(), CallError>>>,
    /// Until a full mailbox is tried again.
    pause: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl<E: Env> Admission<E> {
    /// For one stream.
    pub fn new(frontend: Frontend<E>) -> Admission<E> {
        Admission { frontend, place: Place::default(), turn: None, search: None, pause: None }
    }

    /// Passes on what is in `call`, and takes it; ready with what becomes of it. A call that is refused counts as passed on.
    ///
    /// While it is Pending, `call` stays, and `cx` is woken when there may be room, when the search for its topic has ended, or by
    /// the pause before a full mailbox is tried again.
    ///
    /// # Panics
    /// Without a call.
    pub fn poll(&mut self, call: &mut Option<ProduceCall>, cx: &mut Context<'_>) -> Poll<Admitted<E>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        let name = route::topic_name(&call.as_ref().expect(THERE_IS_A_CALL).head.topic);
        let placed = match ready!(self.poll_topic(name, cx)) {
            Ok(placed) => placed,
            Err(error) => {
                (*call, self.turn) = (None, None);
                return Poll::Ready(Admitted::refused(error));
            }
        };
        let admitted = ready!(self.poll_to(&placed, call, cx));
        self.turn = None;
        Poll::Ready(admitted)
    }

    /// Waits for room no more.
    pub fn leave(&mut self) {
        self.place.leave();
    }

    /// Waits for the topic of the call, if it is looked up or made.
    fn poll_topic(&mut self, name: &str, cx: &mut Context<'_>) -> Poll<Result<Arc<PlacedTopic>, CallError>> {
        loop {
            if let Some(search) = &mut self.search {
                // A reply that is dropped unanswered means that the reactor's tasks are gone.
                let found = ready!(Pin::new(search).poll(cx)).unwrap_or_else(|_| Err(CallError::stopping(false)));
                self.search = None;
                if let Err(error) = found {
                    return Poll::Ready(Err(error));
                }
            }
            if let Some(placed) = self.frontend.local.known(name) {
                return Poll::Ready(Ok(placed));
            }
            // Those who wait for a room do not wait for this topic, too.
            self.place.leave();
            match self.frontend.search(name) {
                Ok(search) => self.search = Some(search),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// The same as `poll` for a topic that is known.
    fn poll_to(
        &mut self,
        placed: &PlacedTopic,
        call: &mut Option<ProduceCall>,
        cx: &mut Context<'_>,
    ) -> Poll<Admitted<E>> {
        let waiting = call.as_ref().expect(THERE_IS_A_CALL);
        let turn = *self.turn.get_or_insert_with(|| self.frontend.next_turn());
        let (shard, place) = match self.frontend.route(placed, &waiting.head, turn) {
            Ok(routed) => routed,
            Err(error) => {
                *call = None;
                return Poll::Ready(Admitted::refused(error));
            }
        };
        let room = &self.frontend.local.rooms[place.reactor.0 as usize];
        let Poll::Ready(permit) = self.place.poll_enter(room, place.uid, waiting.records.encoded_bytes_max(), cx)
        else {
            if room.begins_to_wait() {
                env::spawn_core::<E>(Rc::clone(room).pass::<E>());
            }
            return Poll::Pending;
        };
        let passed = if place.reactor == self.frontend.local.reactor.number() {
            let ProduceCall { head, records, deadline_us } = call.take().expect(THERE_IS_A_CALL);
            produce_of(&head, records, deadline_us)
                .and_then(|produce| self.frontend.submit_here(placed, shard, place, produce))
        } else {
            ready!(self.poll_send(placed, shard, place, call, cx))
        };
        Poll::Ready(Admitted { under_way: passed.unwrap_or_else(UnderWay::refused), permit: Some(permit) })
    }

    /// Sends `call` to another reactor; Pending, its mailbox is full.
    fn poll_send(
        &mut self,
        placed: &PlacedTopic,
        shard: u32,
        place: ShardPlace,
        call: &mut Option<ProduceCall>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<UnderWay<E>, CallError>> {
        let local = &self.frontend.local;
        let (reply, answer) = oneshot::channel();
        let waiting = call.as_ref().expect(THERE_IS_A_CALL);
        let produce = match produce_of(&waiting.head, waiting.records.clone(), waiting.deadline_us) {
            Ok(produce) => produce,
            Err(error) => {
                *call = None;
                return Poll::Ready(Err(error));
            }
        };
        let passed = match local.reactor.node().send(place.reactor, Request::Produce { uid: place.uid, produce, reply })
        {
            Ok(()) => Ok(UnderWay::Passed(Passed::new(local, placed, shard, place.uid, Answer::There(answer)))),
            Err(ReactorError::MailboxFull) => {
                let mut pause = Box::pin(env::sleep::<E>(MAILBOX_PAUSE));
                // Registers for its end, which is not yet.
                let polled = pause.as_mut().poll(cx);
                debug_assert!(polled.is_pending());
                self.pause = Some(pause);
                return Poll::Pending;
            }
            Err(error) => Err(error.into()),
        };
        *call = None;
        Poll::Ready(passed)
    }
}

/// A produce that was passed on, with the room that it has until it is answered.
pub struct Admitted<E: Env> {
    under_way: UnderWay<E>,
    permit: Option<Permit>,
}

impl<E: Env> Admitted<E> {
    fn refused(error: CallError) -> Admitted<E> {
        Admitted { under_way: UnderWay::refused(error), permit: None }
    }
}

impl<E: Env> Future for Admitted<E> {
    type Output = Result<ProduceAck, CallError>;

    // Woken as `UnderWay` is.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ack = ready!(Pin::new(&mut self.under_way).poll(cx));
        if let Some(permit) = self.permit.take()
            && ack.is_ok()
        {
            permit.acknowledged();
        }
        Poll::Ready(ack)
    }
}
