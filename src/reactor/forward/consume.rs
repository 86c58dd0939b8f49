//! Reads: from this node's replica, whoever leads; from another node's if there is none here, or if the one here is not what
//! the consumer needs: stopped, not filled yet, damaged where it reads, or behind what the consumer has seen already.
//!
//! Reading changes nothing, so whatever goes wrong on the way is tried again, elsewhere, until time is up.

use std::{rc::Rc, time::Duration};

use openraft::AsyncRuntime;

use super::{
    ask::unanswered,
    may_go_on,
    search::{Search, Step},
    session::news,
    wire,
};
use crate::{
    env::{Env, net::Priority},
    ids::{NodeId, ShardUid},
    limits::LEADER_WAIT,
    peer::{Destination, PeerError, frame::FrameStream},
    proto::ringlog::state::v1::PeerRefusal,
    reactor::{Reactor, ReactorError},
    shard::{Consume, Consumed, Shard, ShardError, Start},
};

/// How long a replica that does not lead is given to come up to what a consumer has seen elsewhere, before the leader is
/// asked: it is behind by a message, usually.
const NEAR: Duration = Duration::from_millis(100);

impl<E: Env> Reactor<E> {
    /// What to ask of a replica here: if it does not lead, and is behind, it has a moment to catch up.
    pub(in crate::reactor) fn near(shard: &Shard<E>, consume: Consume) -> Consume {
        let start = if let Start::Offset(offset) = consume.start { Some(offset) } else { None };
        let Some(wanted) = start.max(consume.min_offset) else { return consume };
        if wanted <= shard.high_watermark() || shard.leads() {
            return consume;
        }
        let near_us = E::monotonic_us() + NEAR.as_micros() as u64;
        let deadline_us = Some(consume.deadline_us.map_or(near_us, |deadline_us| deadline_us.min(near_us)));
        Consume { min_offset: Some(wanted), deadline_us, ..consume }
    }

    /// Whether the answer of the replica here is not the last word, because of what this replica is.
    pub(in crate::reactor) fn reads_elsewhere(&self, uid: ShardUid, error: &ReactorError) -> bool {
        let may_help = match error {
            ReactorError::NotOpen { .. } | ReactorError::Gone => true,
            ReactorError::MailboxFull | ReactorError::Stopped { .. } => false,
            ReactorError::Shard(error) => match error {
                ShardError::NotLeader { .. }
                | ShardError::Starved { .. }
                | ShardError::Damaged { .. }
                | ShardError::Failed { .. }
                | ShardError::Closing { .. } => true,
                ShardError::Behind { .. } => !self.leads(uid),
                ShardError::OutOfRange { offset, high_watermark, .. } => offset > high_watermark && !self.leads(uid),
                ShardError::Busy { .. }
                | ShardError::NoMemory
                | ShardError::DiskBehind { .. }
                | ShardError::NotTransferred(_)
                | ShardError::Deadline
                | ShardError::OffsetMismatch { .. }
                | ShardError::Deposed { .. }
                | ShardError::NoLeader { .. }
                | ShardError::Lost { .. }
                | ShardError::Elsewhere(_)
                | ShardError::Full(_) => false,
            },
        };
        may_help && !self.is_closing() && self.is_elsewhere(uid)
    }

    /// Reads from another node's replica. `error`: why not from the one here; the answer if nobody else can.
    pub(in crate::reactor) async fn consume_elsewhere(
        self: Rc<Self>,
        uid: ShardUid,
        consume: Consume,
        error: ReactorError,
    ) -> Result<Consumed, ReactorError> {
        let began_us = E::monotonic_us();
        let until_us = consume.deadline_us.unwrap_or(began_us + LEADER_WAIT.as_micros() as u64);
        let wait_until_us = began_us.saturating_add(u64::try_from(consume.wait.as_micros()).unwrap_or(u64::MAX));
        let mut search = Search::default();
        let mut last = error;
        loop {
            let holders = self.holders(uid).ok_or(ReactorError::Gone)?;
            let now_us = E::monotonic_us();
            let consume = Consume { wait: Duration::from_micros(wait_until_us.saturating_sub(now_us)), ..consume };
            match self.look(&mut search, uid, &holders) {
                Step::Here => match self.serving(uid) {
                    Ok(shard) => match shard.consume(consume).await {
                        Ok(consumed) => return Ok(consumed),
                        Err(error) => last = error.into(),
                    },
                    Err(error) => last = error,
                },
                Step::There(node) => match self.consume_there(Self::destination(&holders, node), uid, &consume).await {
                    Ok(consumed) => return Ok(consumed),
                    Err(refusal) => {
                        let goes_on = may_go_on(&refusal) || refusal.code == super::CODE_DATA_LOSS;
                        search.hint(Some(NodeId(refusal.leader_node_id)).filter(|leader| *leader != NodeId(0)));
                        last = ShardError::Elsewhere(Box::new(refusal)).into();
                        if !goes_on {
                            return Err(last);
                        }
                    }
                },
                // All were asked in vain: another round only while there is time.
                Step::Pause(_) if now_us >= until_us => return Err(last),
                Step::Pause(pause) => {
                    let pause = pause.min(Duration::from_micros(until_us - now_us));
                    if E::Runtime::timeout(pause, news(&self, uid)).await.is_ok() {
                        search.changed();
                    }
                }
            }
        }
    }

    /// Asks one node. Dropping the future ends its wait, too.
    async fn consume_there(&self, to: Destination, uid: ShardUid, consume: &Consume) -> Result<Consumed, PeerRefusal> {
        let node = to.node;
        let frame = wire::consume_frame(uid, consume, E::monotonic_us());
        let answer = async {
            // The stream stays open on our side: its end is how the other one hears that nobody waits any more.
            let FrameStream { sender: _sender, mut receiver } =
                self.peers().open(to, frame, Priority::Normal).await.map_err(|error| unread(&error))?;
            match receiver.receive().await {
                Ok(Some(received)) => wire::consumed(received, node),
                Ok(None) => Err(unread(&PeerError::Lost { node, cause: "it ended the stream".to_owned() })),
                Err(error) => Err(unread(&error)),
            }
        };
        let silent = async {
            let mut dead = self.node.liveness.watch();
            // Its sender lives as long as the node.
            drop(dead.wait_for(|dead| dead.contains(&node)).await);
        };
        tokio::select! {
            biased;
            answer = answer => answer,
            () = silent => Err(unread(&PeerError::Lost { node, cause: "it is silent".to_owned() })),
        }
    }
}

/// A read that was not answered: nothing was written by it.
fn unread(error: &PeerError) -> PeerRefusal {
    PeerRefusal { definite: true, ..unanswered(error) }
}
