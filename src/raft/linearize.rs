//! Reads that see everything committed before them (ReadIndex, Raft dissertation 6.4), on the leader and on followers.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    time::Duration,
};

use openraft::{
    LinearizerOption,
    rt::{AsyncRuntime, Instant},
};

use super::{Group, GroupError, Machine, types};
use crate::{
    env::{self, Env, channel},
    format::peer::Message,
    ids::{Index, LogId, NodeId, Offset},
    peer::frame::FrameKind,
};

/// Pause after a leader has not answered, or said that it leads no more.
const ASK_AGAIN: Duration = Duration::from_millis(20);

impl<E: Env, M: Machine> Group<E, M> {
    /// ReadIndex (Raft dissertation 6.4): when it returns, everything that was committed anywhere before the call is applied
    /// here. Asks the leader, wherever it is; waits through an election as long as `within`.
    ///
    /// # Errors
    /// `NotLeader` when no leader confirmed itself in time; `Stopped`.
    pub async fn linearize(&self, within: Duration) -> Result<(), GroupError> {
        let deadline = <E::Runtime as AsyncRuntime>::Instant::now() + within;
        let read = async {
            let index = self.read_index(deadline).await?;
            self.wait_applied(index).await;
            self.alive()
        };
        match E::Runtime::timeout(within, read).await {
            Ok(result) => result,
            Err(_) => Err(GroupError::NotLeader { leader: self.leader().0 }),
        }
    }

    /// Resolves when all below `end`, where this leader's log ends now, is committed, and a majority has answered since that it
    /// leads still: nobody else can have written there. Waits as long as a lease lasts.
    ///
    /// # Errors
    /// `NotLeader` when that does not come about in time; `Stopped`.
    pub fn confirm_end(&self, end: Offset) -> impl Future<Output = Result<(), GroupError>> + 'static {
        let group = self.clone();
        let term = self.leader().1;
        async move {
            let lease = group.inner.timing.lease();
            let confirmed = async {
                loop {
                    let turned = group.inner.shared.turned.notified();
                    group.alive()?;
                    let (leader, now_term) = group.leader();
                    if now_term != term || !group.inner.state.leading.get() {
                        return Err(GroupError::NotLeader { leader });
                    }
                    // What it reads up to is not before the entry with which its term begins.
                    if group.high_watermark() >= end && group.read_log_id().await.is_ok_and(|read| read.term == term) {
                        return Ok(());
                    }
                    drop(E::Runtime::timeout(ASK_AGAIN, turned).await);
                }
            };
            match E::Runtime::timeout(lease, confirmed).await {
                Ok(result) => result,
                Err(_) => Err(GroupError::NotLeader { leader: group.leader().0 }),
            }
        }
    }

    /// The entry up to which a read that begins now has to wait.
    async fn read_index(&self, deadline: <E::Runtime as AsyncRuntime>::Instant) -> Result<Index, GroupError> {
        loop {
            let turned = self.inner.shared.turned.notified();
            self.alive()?;
            let now = <E::Runtime as AsyncRuntime>::Instant::now();
            let left = deadline.saturating_duration_since(now);
            let answer = match self.leader().0 {
                Some(leader) if leader == self.inner.node => self.read_log_id().await.ok().map(|log_id| log_id.index),
                Some(leader) => self.read_index_at(leader, left).await,
                None => None,
            };
            if let Some(index) = answer {
                return Ok(index);
            }
            // Also after a leader that said no: it may not know of its successor yet.
            drop(E::Runtime::timeout(ASK_AGAIN, turned).await);
        }
    }

    /// As leader, confirmed by a majority that answers a message sent after the call; waits for that as long as a lease lasts,
    /// and before that until the question under way is answered. Dropping the future leaves the question to go on.
    pub(super) async fn read_log_id(&self) -> Result<LogId, String> {
        let Questions { waiting, under_way } = &self.inner.questions;
        let (sender, receiver) = channel::oneshot();
        waiting.borrow_mut().push(sender);
        if !under_way.replace(true) {
            env::spawn::<E>(ask_for_reads(self.clone()));
        }
        receiver.await.unwrap_or_else(|channel::Closed| Err("the replica has ended".into()))
    }

    async fn read_index_at(&self, leader: NodeId, within: Duration) -> Option<Index> {
        let line = self.inner.network.line(leader);
        // A dead leader is not waited for until the end: another one may be there by then.
        let within = within.min(self.inner.timing.election_min());
        match line.ask(FrameKind::Raft, Message::ReadIndex, Vec::new(), within).await {
            Ok(Message::ReadIndexAnswer { log_id }) => Some(log_id.index),
            Ok(_) | Err(_) => None,
        }
    }

    /// `Stopped`, if this replica has.
    fn alive(&self) -> Result<(), GroupError> {
        self.unable().map_err(|cause| GroupError::Stopped { cause, maybe_written: false })
    }
}

/// Reads on this leader that wait to know that it leads still. One question at a time asks for all who wait when it begins: else
/// each read takes a place in openraft's queue, where proposals and peers' messages wait, too.
#[derive(Default)]
pub struct Questions {
    waiting: RefCell<Vec<channel::OneshotSender<Result<LogId, String>>>>,
    under_way: Cell<bool>,
}

impl Questions {
    /// The replica has stopped, and the question under way with it: who waits for the next one waits in vain.
    pub(super) fn give_up(&self) {
        drop(self.waiting.take());
    }
}

/// Asks until nobody waits.
async fn ask_for_reads<E: Env, M: Machine>(group: Group<E, M>) {
    let Questions { waiting, under_way } = &group.inner.questions;
    loop {
        let asking = waiting.take();
        if asking.is_empty() {
            break;
        }
        // No older answer of a majority counts, and one is asked for at once.
        let option = LinearizerOption::new(Some(Duration::ZERO), true);
        let answer = match group.inner.raft.get_read_linearizer(option).await {
            Ok(linearizer) => Ok(types::from_raft(linearizer.read_log_id().log_id())),
            Err(error) => Err(error.to_string()),
        };
        for sender in asking {
            // Who has gone waits for nothing.
            drop(sender.send(answer.clone()));
        }
    }
    under_way.set(false);
}
