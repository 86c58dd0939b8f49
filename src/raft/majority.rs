//! Watches over the promise of an acknowledgement: what a leader acknowledges is durable on a majority. openraft counts, and
//! this counts again, from what was really answered: whose answer said what, and what is durable here.
//!
//! Judged are entries of the leader's own term: nobody else commits them while it leads. (Raft, section 5.4.2: Ongaro,
//! Ousterhout, USENIX ATC 2014.)

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    ids::{LogId, NodeId, is_most},
    log::Vote,
};

/// What a leader was told by the others.
#[derive(Default)]
pub struct Majority {
    /// The last entry that each has acknowledged, unless it has lost it since.
    acknowledged: RefCell<BTreeMap<NodeId, LogId>>,
    /// As openraft last had it saved.
    vote: Cell<Option<Vote>>,
}

impl Majority {
    /// `node` has said that it has everything up to `last` on its disk.
    pub fn note(&self, node: NodeId, last: Option<LogId>) {
        let Some(last) = last else { return };
        let mut acknowledged = self.acknowledged.borrow_mut();
        let known = acknowledged.entry(node).or_insert(last);
        *known = last.max(*known);
    }

    /// `node` has said that it does not have `missing`: what it acknowledged from there on is lost.
    pub fn note_missing(&self, node: NodeId, missing: LogId) {
        let mut acknowledged = self.acknowledged.borrow_mut();
        if acknowledged.get(&node).is_some_and(|known| missing <= *known) {
            acknowledged.remove(&node);
        }
    }

    /// This node votes like this, or knows that node as its leader.
    pub fn note_vote(&self, vote: Vote) {
        self.vote.set(Some(vote));
    }

    /// Whether `id` may be acknowledged by `me`, where `flushed` is the last durable entry: true for what it did not commit
    /// itself. `voters`: by the membership before the entry or in it; of two that are joint, the later ones.
    pub fn has(&self, me: NodeId, id: LogId, flushed: Option<LogId>, voters: &BTreeSet<u64>) -> bool {
        let leads = self.vote.get().is_some_and(|vote| vote.committed && vote.node == me && vote.term == id.term);
        if !leads {
            return true;
        }
        let acknowledged = self.acknowledged.borrow();
        is_most(voters, |voter| match NodeId(*voter) {
            node if node == me => flushed >= Some(id),
            node => acknowledged.get(&node) >= Some(&id),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Index, Term};

    const ME: NodeId = NodeId(1);

    fn id(term: u64, index: u64) -> LogId {
        LogId { term: Term(term), index: Index(index) }
    }

    /// A majority counts each voter once, by the last that it said; other nodes, and entries of other terms, do not matter.
    #[test]
    fn counts() {
        let majority = Majority::default();
        let voters = BTreeSet::from([1, 2, 3, 4, 5]);
        let has = |id, flushed| majority.has(ME, id, flushed, &voters);
        assert!(has(id(3, 7), None), "it does not lead");
        majority.note_vote(Vote { term: Term(3), node: ME, committed: false });
        assert!(has(id(3, 7), None), "it does not lead yet");
        majority.note_vote(Vote { term: Term(3), node: ME, committed: true });
        assert!(!has(id(3, 7), None));
        assert!(has(id(2, 7), None), "an entry of another term");
        majority.note(NodeId(9), Some(id(3, 9)));
        majority.note(NodeId(2), Some(id(3, 9)));
        majority.note(NodeId(2), Some(id(3, 6)));
        majority.note(NodeId(3), Some(id(3, 6)));
        majority.note(NodeId(4), None);
        assert!(!has(id(3, 7), Some(id(3, 7))), "two of five");
        assert!(has(id(3, 6), Some(id(3, 6))) && !has(id(3, 6), Some(id(3, 5))));
        majority.note(NodeId(5), Some(id(3, 7)));
        assert!(has(id(3, 7), Some(id(3, 7))) && !has(id(3, 7), None));
        majority.note(NodeId(3), Some(id(3, 7)));
        assert!(has(id(3, 7), None), "without its own disk");
        majority.note_missing(NodeId(2), id(3, 10));
        assert!(has(id(3, 7), None), "it never had that");
        majority.note_missing(NodeId(2), id(3, 5));
        assert!(!has(id(3, 7), None), "it has lost what it acknowledged");
        majority.note(NodeId(2), Some(id(3, 6)));
        assert!(!has(id(3, 7), None) && has(id(3, 6), None));
        majority.note(NodeId(2), Some(id(3, 7)));
        assert!(has(id(3, 7), None));
    }
}
