//! Tells a group's handles what openraft becomes: leader, term, members, its end.

use std::{pin::pin, rc::Rc};

use futures_util::future::{Either, select};
use openraft::{ServerState, errors::Fatal, rt::WatchReceiver};

use super::{DataMetrics, Inner, Machine, elections, members::members_of};
use crate::{
    env::{self, Env},
    ids::{NodeId, Term},
};

/// Ends with openraft; ends openraft when the log has stopped, so that a leader that can write no more does not lead on.
pub(super) async fn watch_raft<E: Env, M: Machine>(inner: Rc<Inner<E, M>>) {
    let mut server = inner.server.clone();
    let mut log_stopped = pin!(inner.log.stopped());
    let mut stopping = false;
    loop {
        let voting = inner.shared.vote_noticed.notified();
        note(&inner, &server.borrow_and_update());
        inner.shared.turned.notify_all();
        inner.shared.changed.notify_all();
        if stopping {
            if server.changed().await.is_err() {
                break;
            }
            continue;
        }
        match select(select(pin!(server.changed()), voting), log_stopped.as_mut()).await {
            Either::Left((Either::Left((Ok(()), _)) | Either::Right(_), _)) => {}
            Either::Left((Either::Left((Err(_), _)), _)) => break,
            Either::Right(_) => {
                stopping = true;
                let inner = inner.clone();
                env::spawn::<E>(async move { drop(inner.raft.shutdown().await) });
            }
        }
    }
    note_end(&inner);
}

fn note<E: Env, M: Machine>(inner: &Inner<E, M>, now: &super::RaftServerMetrics<super::TypeConfig<E, M>>) {
    let state = &inner.state;
    let members = members_of(&now.membership_config, &now.committed_membership_config);
    let superseded = inner.shared.vote_seen.get().filter(|seen| {
        let known = (now.vote.leader_id.term, now.vote.committed);
        (seen.term.0, seen.committed) > known
    });
    // On a slow disk it takes long until openraft says so itself: whoever asked this node meanwhile would wait for it.
    let leading = now.state == ServerState::Leader && superseded.is_none();
    let leader = match superseded {
        Some(vote) => (vote.committed.then_some(vote.node), vote.term),
        None => (now.current_leader.map(NodeId), Term(now.vote.leader_id.term)),
    };
    state.leader.set(leader);
    state.leading.set(leading);
    let only_voter = members.voters.iter().eq([&inner.node]);
    inner.shared.only_voter.set(only_voter);
    inner.network.thrift().set_members(&members, inner.node);
    // Nobody to hear a heartbeat, nobody to wait for: a timer would only cost.
    let alone = only_voter && members.learners.is_empty() && leading;
    inner.raft.runtime_config().tick(!alone);
    inner.raft.runtime_config().elect(!inner.owes());
}

/// Suspends until openraft says more of what is stored where. Once it has ended it never does: who waits for `Shared::turned`, too,
/// goes on when `watch_raft` has noted the end. (To go on here at once would keep that task, and all others, from running.)
pub(super) async fn data_changed<E: Env, M: Machine>(data: &mut DataMetrics<E, M>) {
    if data.changed().await.is_err() {
        std::future::pending().await
    }
}

/// A panic has stopped the replica: its tasks are gone, this one among them.
pub(super) fn note_panic<E: Env, M: Machine>(inner: &Rc<Inner<E, M>>) {
    inner.state.ended.set(true);
    give_up_leading(inner);
}

fn note_end<E: Env, M: Machine>(inner: &Rc<Inner<E, M>>) {
    let Inner { log, state, .. } = &**inner;
    if !state.closing.get() && log.fault().is_none() && state.fault.borrow().is_none() {
        // A panic leaves no error behind.
        let cause = match &inner.raft.metrics().borrow_watched().running_state {
            Err(Fatal::Stopped) | Ok(()) => "Raft ended; restart the node, and report its log".to_string(),
            Err(fatal) => fatal.to_string(),
        };
        tracing::error!(%cause, "a replica has stopped");
        *state.fault.borrow_mut() = Some(cause);
    }
    state.ended.set(true);
    give_up_leading(inner);
}

fn give_up_leading<E: Env, M: Machine>(inner: &Rc<Inner<E, M>>) {
    let Inner { shared, state, questions, .. } = &**inner;
    questions.give_up();
    if state.leading.replace(false) {
        // Its node is alive, so that the others would wait for it.
        env::spawn::<E>(elections::abdicate(inner.clone(), inner.vote()));
    }
    shared.turned.notify_all();
    shared.changed.notify_all();
    shared.flushed.notify_all();
}
