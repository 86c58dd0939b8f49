//! A produce that was passed on to its shard, and becomes an acknowledgement: one future without a box, since a stream keeps
//! hundreds of them.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::sync::oneshot;

use crate::{
    env::{Env, channel::OneshotReceiver},
    frontend::{CallError, Local, ProduceAck, refusal::explained, remote::stopped},
    ids::ShardUid,
    reactor::{ReactorError, topics::PlacedTopic},
    shard::{Produced, ShardError},
};

/// What becomes of a produce. Dropping it does not take the request back.
///
/// # Panics
/// When it is polled again after it was ready with a refusal.
pub enum UnderWay<E: Env> {
    /// It was handed to its shard.
    Passed(Passed<E>),
    /// Its topic is being looked up, or made; another task waits for that, and for the shard.
    Waits(oneshot::Receiver<Result<ProduceAck, CallError>>),
    /// It was handed to nobody. `None` once that was told.
    Refused(Option<Box<CallError>>),
}

/// A produce that its shard has.
pub struct Passed<E: Env> {
    local: Rc<Local<E>>,
    topic: Arc<str>,
    shard: u32,
    uid: ShardUid,
    answer: Answer,
}

/// Where its answer comes from.
pub(super) enum Answer {
    /// A shard of this reactor.
    Here(OneshotReceiver<Result<Produced, ShardError>>),
    /// Another reactor.
    There(oneshot::Receiver<Result<Produced, ReactorError>>),
}

impl<E: Env> Passed<E> {
    /// Of shard number `shard` of a topic, which is `uid`.
    pub(super) fn new(
        local: &Rc<Local<E>>,
        topic: &PlacedTopic,
        shard: u32,
        uid: ShardUid,
        answer: Answer,
    ) -> Passed<E> {
        Passed { local: Rc::clone(local), topic: Arc::clone(&topic.view.name), shard, uid, answer }
    }

    // Woken by the shard, or by the other reactor's thread.
    fn poll_ack(&mut self, context: &mut Context<'_>) -> Poll<Result<ProduceAck, CallError>> {
        let reactor = &self.local.reactor;
        let produced = match &mut self.answer {
            Answer::Here(answer) => reactor.answered(self.uid, ready!(Pin::new(answer).poll(context))),
            Answer::There(answer) => ready!(Pin::new(answer).poll(context)).unwrap_or(Err(stopped(true))),
        };
        Poll::Ready(match produced {
            Ok(produced) => Ok(ProduceAck::new(reactor.node(), Arc::clone(&self.topic), self.shard, produced)),
            Err(error) => Err(explained(error, &reactor.node().book)),
        })
    }
}

impl<E: Env> UnderWay<E> {
    /// One that was handed to nobody.
    pub(super) fn refused(error: CallError) -> UnderWay<E> {
        UnderWay::Refused(Some(Box::new(error)))
    }
}

impl<E: Env> Future for UnderWay<E> {
    type Output = Result<ProduceAck, CallError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            UnderWay::Passed(passed) => passed.poll_ack(context),
            // Woken by the task that waits for the topic.
            UnderWay::Waits(ack) => {
                Pin::new(ack).poll(context).map(|ack| ack.unwrap_or_else(|_| Err(CallError::stopping(true))))
            }
            UnderWay::Refused(error) => Poll::Ready(Err(*error.take().expect("it is polled until it is ready"))),
        }
    }
}
