//! Entries go to a majority at once, and to the other followers a moment later, several at a time.
//!
//! An entry is committed when a majority has it. A request, a flush and two wake-ups at everybody else in the same moment
//! only take time from those that count, where they share cores or a device, and cost the leader a packet and an answer for
//! each record. (EPaxos calls its like "thrifty": Moraru, Andersen, Kaminsky, SOSP 2013.) So a follower beyond the majority
//! is sent what has gathered in `RAFT_SPARE_HOLD`.
//!
//! Under load entries are large, and cost more than their requests: then the follower that is quickest each time counts, and
//! nobody waits.
//!
//! Nothing but time depends on who is who: everybody is sent everything. A follower whose entries were not committed while
//! they waited takes the place of one that counted and was late; and after each wait in vain twice as many are left out.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use super::Members;
use crate::{
    env::patience::Patience,
    ids::{Index, LogId, NodeId},
    limits::{RAFT_SPARE_BYTES_MAX, RAFT_SPARE_SKIP_MAX},
};

/// Who is sent entries at once, of one group's followers. Clones are the same.
#[derive(Clone, Default)]
pub struct Thrift {
    state: Rc<RefCell<State>>,
}

#[derive(Default)]
struct State {
    /// Without the leader.
    voters: BTreeSet<NodeId>,
    /// How many of them make a majority with the leader.
    needed: usize,
    /// Those of them that are sent entries at once, and what they have; at most `needed`.
    first: Vec<(NodeId, Index)>,
}

impl Thrift {
    /// Who belongs to the group, as `me` knows. While that changes, and for a leader without a vote, nobody waits.
    pub fn set_members(&self, members: &Members, me: NodeId) {
        let state = &mut *self.state.borrow_mut();
        let plain = members.voters.contains(&me) && !members.changing;
        state.needed = if plain { members.voters.len() / 2 } else { 0 };
        state.voters.clone_from(&members.voters);
        state.voters.remove(&me);
        let State { voters, first, needed } = state;
        first.retain(|(node, _)| voters.contains(node));
        first.truncate(*needed);
    }

    /// `node` has everything up to `matched`.
    pub fn note_answer(&self, node: NodeId, matched: Option<LogId>) {
        let state = &mut *self.state.borrow_mut();
        let matched = matched.map_or(Index(0), |matched| matched.index);
        if let Some((_, known)) = state.first.iter_mut().find(|(first, _)| *first == node) {
            *known = matched;
        } else if state.first.len() < state.needed && state.voters.contains(&node) {
            state.first.push((node, matched));
        }
    }

    /// `node` cannot be counted on.
    pub fn note_failure(&self, node: NodeId) {
        self.state.borrow_mut().first.retain(|(first, _)| *first != node);
    }

    /// Whether enough others are sent entries at once.
    fn is_spare(&self, node: NodeId) -> bool {
        let state = self.state.borrow();
        state.needed > 0 && state.first.len() == state.needed && state.first.iter().all(|(first, _)| *first != node)
    }

    /// `node` is to be sent entries at once, instead of whoever is furthest behind.
    fn promote(&self, node: NodeId) {
        let state = &mut *self.state.borrow_mut();
        if state.voters.contains(&node)
            && let Some(last) = state.first.iter_mut().min_by_key(|(_, matched)| *matched)
        {
            // Nobody's place is taken twice before it has answered.
            *last = (node, Index(u64::MAX));
        }
    }
}

/// When one follower waits.
pub struct Turn {
    /// Entries may have gathered since the last request.
    waited: bool,
    patience: Patience,
}

impl Default for Turn {
    fn default() -> Turn {
        Turn { waited: false, patience: Patience::new(RAFT_SPARE_SKIP_MAX) }
    }
}

impl Turn {
    /// A request with `bytes` of entries goes to `node`; `committed`: the first of them is, without it. True: the next
    /// one is to wait.
    pub fn sent(&mut self, thrift: &Thrift, node: NodeId, bytes: usize, committed: bool) -> bool {
        if std::mem::take(&mut self.waited) {
            if committed {
                self.patience.hit();
            } else {
                self.patience.missed();
                thrift.promote(node);
            }
        }
        self.waited = bytes <= RAFT_SPARE_BYTES_MAX && thrift.is_spare(node) && self.patience.allows();
        self.waited
    }

    /// The wait is over, and nothing had gathered.
    pub fn was_idle(&mut self) {
        self.waited = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Term;

    fn members(voters: impl IntoIterator<Item = u64>, changing: bool) -> Members {
        Members {
            voters: voters.into_iter().map(NodeId).collect(),
            learners: BTreeSet::new(),
            changing,
            halves: Vec::new(),
        }
    }

    fn at(index: u64) -> Option<LogId> {
        Some(LogId { term: Term(1), index: Index(index) })
    }

    fn spares(thrift: &Thrift, nodes: std::ops::RangeInclusive<u64>) -> Vec<u64> {
        nodes.filter(|node| thrift.is_spare(NodeId(*node))).collect()
    }

    /// Nobody waits before a majority has answered; then everybody else does, learners included.
    #[test]
    fn majority_first() {
        let thrift = Thrift::default();
        assert!(spares(&thrift, 1..=9).is_empty(), "nothing is known");
        thrift.set_members(&members(1..=5, false), NodeId(1));
        thrift.note_answer(NodeId(9), at(7));
        thrift.note_answer(NodeId(4), at(7));
        assert!(spares(&thrift, 2..=9).is_empty(), "one of two that are needed");
        thrift.note_answer(NodeId(2), at(7));
        thrift.note_answer(NodeId(3), at(7));
        assert_eq!(spares(&thrift, 2..=5), [3, 5]);
        assert_eq!(spares(&thrift, 9..=9), [9]);
        thrift.note_failure(NodeId(4));
        assert!(spares(&thrift, 2..=9).is_empty());
        thrift.note_answer(NodeId(5), at(8));
        assert_eq!(spares(&thrift, 2..=5), [3, 4]);
    }

    /// While members change, nobody waits; who is no voter any more does not count.
    #[test]
    fn members_change() {
        let thrift = Thrift::default();
        thrift.set_members(&members(1..=3, false), NodeId(1));
        thrift.note_answer(NodeId(2), at(7));
        assert_eq!(spares(&thrift, 2..=3), [3]);
        thrift.set_members(&members(1..=3, true), NodeId(1));
        assert!(spares(&thrift, 2..=3).is_empty());
        thrift.set_members(&members([1, 3, 4], false), NodeId(1));
        assert!(spares(&thrift, 2..=4).is_empty(), "2 has gone");
        thrift.note_answer(NodeId(4), at(9));
        assert_eq!(spares(&thrift, 2..=4), [2, 3]);
        thrift.set_members(&members([3, 4], false), NodeId(1));
        assert!(spares(&thrift, 2..=4).is_empty(), "the leader's own log does not count");
    }

    /// A wait in vain trades places with who is furthest behind, and more and more waits are left out until one pays.
    #[test]
    fn waits_in_vain() {
        let thrift = Thrift::default();
        thrift.set_members(&members(1..=5, false), NodeId(1));
        thrift.note_answer(NodeId(2), at(9));
        thrift.note_answer(NodeId(3), at(8));
        let (node, mut turn) = (NodeId(4), Turn::default());
        assert!(turn.sent(&thrift, node, 1, false), "it has not waited yet");
        assert!(turn.sent(&thrift, node, 1, true), "it was not needed");
        assert!(!turn.sent(&thrift, node, 1, false), "it was, and is one of those that count now");
        assert_eq!(spares(&thrift, 2..=5), [3, 5]);
        thrift.promote(NodeId(5));
        assert_eq!(spares(&thrift, 2..=5), [2, 3], "not the place of 4, which has not answered yet");
        let (node, mut turn) = (NodeId(9), Turn::default());
        let waits = (0..1_000).filter(|_| turn.sent(&thrift, node, 1, false)).count();
        assert!((8..=12).contains(&waits), "{waits} waits of a learner in vain");
        while !turn.sent(&thrift, node, 1, false) {}
        assert!(turn.sent(&thrift, node, 1, true) && turn.sent(&thrift, node, 1, true), "it pays again");
        assert!(!turn.sent(&thrift, node, RAFT_SPARE_BYTES_MAX + 1, true), "a large one is not waited behind");
        assert!(turn.sent(&thrift, node, 1, false), "so nothing was waited for in vain");
        turn.was_idle();
        assert!(turn.sent(&thrift, node, 1, false), "nothing had waited");
    }
}
