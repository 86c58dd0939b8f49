//! A produce request on its way to the replica that leads: the one here, or, forwarded, another node's.

use std::{future::Future, rc::Rc};

use super::{Reactor, ReactorError, forward::goes_elsewhere};
use crate::{
    budget::Class,
    env::{
        Env,
        channel::{Closed, OneshotReceiver},
        domain,
    },
    ids::ShardUid,
    limits::MESSAGE_BYTES_MAX,
    shard::{Produce, Produced, Shard, ShardError},
};

/// Single calls for one shard may have one in so many parts of the memory that all others leave.
const PARTS: usize = 8;

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
        if produce.single {
            self.check_part(uid, produce.records.encoded_bytes_max())?;
        }
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

    /// Refuses a single call when a shard's requests that wait would have more than their part of the memory of clients: an
    /// eighth of what all others leave, but always as much as a message of the largest size, or one request. So shards that answer
    /// nothing for seconds leave memory for those that do. Streams are not asked: what they have under way is bounded before.
    ///
    /// # Errors
    /// `Busy`.
    fn check_part(&self, uid: ShardUid, bytes: usize) -> Result<(), ReactorError> {
        let shard = self.serving(uid).ok();
        let has_part = || {
            let queued = self.forwards.queued_bytes(uid) + shard.as_ref().map_or(0, Shard::queued_bytes);
            // Each takes the memory of its message, and as much for its entry.
            let (mine, wanted) = (2 * queued, 2 * (queued + bytes));
            let others = self.budget().used().saturating_sub(mine);
            let part = self.budget().limit(Class::Client).saturating_sub(others) / PARTS;
            queued == 0 || wanted <= part.max(2 * MESSAGE_BYTES_MAX)
        };
        if has_part() {
            return Ok(());
        }
        shard.iter().for_each(Shard::leave_forsaken);
        // Whoever asks, the queue is everybody's.
        domain::core(|| self.forwards.leave_forsaken(uid));
        if has_part() { Ok(()) } else { Err(ShardError::Busy { what: "what waits has its part of the memory" }.into()) }
    }
}
