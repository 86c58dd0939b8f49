//! Reads that see everything committed before them (ReadIndex, Raft dissertation 6.4), on the leader and on followers.

use std::{fmt::Display, future::Future, time::Duration};

use openraft::{
    LinearizerOption,
    rt::{AsyncRuntime, Instant},
};

use super::{Group, GroupError, Machine, types};
use crate::{
    env::Env,
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
                    if group.high_watermark() >= end
                        && group.read_log_id(Some(lease)).await.is_ok_and(|read| read.term == term)
                    {
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
                Some(leader) if leader == self.inner.node => {
                    self.read_log_id(Some(left)).await.ok().map(|log_id| log_id.index)
                }
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

    /// As leader, confirmed by a majority that answers a message sent after the call; waits for it as long as `within`, or as
    /// a lease lasts.
    pub(super) async fn read_log_id(&self, within: Option<Duration>) -> Result<LogId, impl Display + use<E, M>> {
        let mut option = LinearizerOption::new(Some(Duration::ZERO), true);
        if let Some(within) = within {
            option = option.with_wait_timeout(within);
        }
        let linearizer = self.inner.raft.get_read_linearizer(option).await;
        linearizer.map(|linearizer| types::from_raft(linearizer.read_log_id().log_id()))
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
