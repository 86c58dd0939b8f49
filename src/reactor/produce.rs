//! A produce request on its way to the replica that leads: the one here, or, forwarded, another node's.

use std::{future::Future, rc::Rc};

use super::{Reactor, ReactorError, forward::goes_elsewhere};
use crate::{
    env::{
        Env,
        channel::{Closed, OneshotReceiver},
    },
    ids::ShardUid,
    shard::{Produce, Produced, ShardError},
};

impl<E: Env> Reactor<E> {
    /// Queues a produce at once, for the shard's leader, wherever it is; calls for one shard made one after the other keep
    /// their order. Dropping the future does not take back what is proposed, or sent to a leader elsewhere.
    pub fn produce(
        self: &Rc<Self>,
        uid: ShardUid,
        produce: Produce,
    ) -> impl Future<Output = Result<Produced, ReactorError>> + use<E> + 'static {
        let (answer, reactor) = (self.submit(uid, produce), Rc::clone(self));
        async move {
            let answer = answer?.await;
            reactor.answered(uid, answer)
        }
    }

    /// What the answer to a submitted produce means; to be called with each.
    pub(crate) fn answered(
        &self,
        uid: ShardUid,
        answer: Result<Result<Produced, ShardError>, Closed>,
    ) -> Result<Produced, ReactorError> {
        // A reply that is dropped unanswered means that the reactor's tasks are gone.
        self.noted(uid, answer.unwrap_or(Err(ShardError::Closing { maybe_written: true })))
    }

    /// As `produce`, which says what becomes of the answer (`answered`).
    pub(crate) fn submit(
        self: &Rc<Self>,
        uid: ShardUid,
        produce: Produce,
    ) -> Result<OneshotReceiver<Result<Produced, ShardError>>, ReactorError> {
        if !self.forwards.is_idle(uid) {
            return self.forward(uid, produce, ReactorError::Gone);
        }
        match self.serving(uid) {
            Ok(shard) => match shard.submit(produce) {
                Ok(answer) => Ok(answer),
                Err(refused) => {
                    let (error, produce) = *refused;
                    let elsewhere = goes_elsewhere(&error);
                    let error = self.noted::<()>(uid, Err(error)).expect_err("it was an error");
                    if elsewhere { self.forward(uid, produce, error) } else { Err(error) }
                }
            },
            Err(error) => self.forward(uid, produce, error),
        }
    }
}
