//! Where a shard's leader is looked for, and how long between two looks. Pure: no clock, no connection.
//!
//! First whoever is said to lead: by this node's own replica, by the last one that refused, by what others were told. Then
//! all nodes with a replica, in the catalog's order. Nobody is asked twice in a round; between rounds there is a
//! pause that doubles, with jitter, so that a thousand shards which lost their leader together do not ask together.

use std::{collections::BTreeSet, time::Duration};

use crate::ids::NodeId;

/// First pause.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// While this node's own replica says that there is no leader, the others are asked only in every so many rounds:
/// they mostly know no more.
const ROUNDS_PER_ASKING: u32 = 4;

/// What is known before a look.
#[derive(Clone, Debug)]
pub(super) struct View<'a> {
    /// This node.
    pub(super) me: NodeId,
    /// What this node's own replica says, if there is one that can be trusted.
    pub(super) local: Option<LocalView>,
    /// Who led when somebody was last asked.
    pub(super) known: Option<NodeId>,
    /// Who holds a replica, or is to hold one.
    pub(super) replicas: &'a [NodeId],
}

/// What this node's own replica says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LocalView {
    /// Who leads, if known.
    pub(super) leader: Option<NodeId>,
    /// It leads itself, and takes proposals.
    pub(super) leads: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This node leads.
    Here,
    /// Ask this one.
    There(NodeId),
    /// Look again after that long, or when something has changed.
    Pause(Duration),
}

/// One search.
#[derive(Debug, Default)]
pub(super) struct Search {
    asked: BTreeSet<NodeId>,
    hint: Option<NodeId>,
    rounds: u32,
}

impl Search {
    /// Where to look next. `random` makes the jitter.
    pub(super) fn next(&mut self, view: &View<'_>, is_alive: impl Fn(NodeId) -> bool, random: u64) -> Step {
        if view.local.is_some_and(|local| local.leads) && !self.asked.contains(&view.me) {
            self.asked.insert(view.me);
            return Step::Here;
        }
        let local_leader = view.local.and_then(|local| local.leader);
        let leaderless = view.local.is_some() && local_leader.is_none();
        let asks_all = !leaderless || self.rounds % ROUNDS_PER_ASKING == ROUNDS_PER_ASKING - 1;
        let others = view.replicas.iter().copied().filter(|_| asks_all);
        let said = [self.hint.take(), local_leader, view.known];
        // Whoever is said to lead need not be in this node's catalog: it may be behind.
        let said = said.into_iter().flatten();
        let next = said.chain(others).find(|node| *node != view.me && !self.asked.contains(node) && is_alive(*node));
        if let Some(node) = next {
            self.asked.insert(node);
            return Step::There(node);
        }
        self.asked.clear();
        let pause = PAUSE_MIN.saturating_mul(1 << self.rounds.min(8)).min(PAUSE_MAX);
        self.rounds = self.rounds.saturating_add(1);
        let half_us = pause.as_micros() as u64 / 2;
        Step::Pause(Duration::from_micros(half_us + random % (half_us + 1)))
    }

    /// A node that was asked says who leads, if it knows.
    pub(super) fn hint(&mut self, leader: Option<NodeId>) {
        self.hint = leader;
    }

    /// The leader was found: the next search begins anew.
    pub(super) fn found(&mut self) {
        *self = Search::default();
    }

    /// Something has changed: everybody may be asked again at once.
    pub(super) fn changed(&mut self) {
        self.asked.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);

    fn view(local: Option<LocalView>, replicas: &[NodeId]) -> View<'_> {
        View { me: ME, local, known: None, replicas }
    }

    fn alive(_: NodeId) -> bool {
        true
    }

    fn is_pause(step: Step) -> bool {
        matches!(step, Step::Pause(_))
    }

    /// Without a replica here: the catalog's order, each once a round, then a pause; a hint comes first.
    #[test]
    fn in_turn() {
        let replicas = [NodeId(2), NodeId(3), NodeId(4)];
        let mut search = Search::default();
        let mut next = |search: &mut Search| search.next(&view(None, &replicas), alive, 7);
        assert_eq!(next(&mut search), Step::There(NodeId(2)));
        search.hint(Some(NodeId(4)));
        assert_eq!(next(&mut search), Step::There(NodeId(4)));
        // Two that point at each other are not asked for ever.
        search.hint(Some(NodeId(2)));
        assert_eq!(next(&mut search), Step::There(NodeId(3)));
        assert!(is_pause(next(&mut search)));
        assert_eq!(next(&mut search), Step::There(NodeId(2)));
    }

    /// The dead and this node are passed over.
    #[test]
    fn passed_over() {
        let replicas = [ME, NodeId(2), NodeId(3)];
        let mut search = Search::default();
        search.hint(Some(ME));
        let view = View { known: Some(NodeId(2)), ..view(None, &replicas) };
        assert_eq!(search.next(&view, |node| node != NodeId(2), 0), Step::There(NodeId(3)));
        assert!(is_pause(search.next(&view, |node| node != NodeId(2), 0)));
    }

    /// The own replica's word comes first; while it knows no leader, the others are asked only now and then.
    #[test]
    fn own_replica() {
        let replicas = [ME, NodeId(2), NodeId(3)];
        let mut search = Search::default();
        let leads = LocalView { leader: Some(ME), leads: true };
        assert_eq!(search.next(&view(Some(leads), &replicas), alive, 0), Step::Here);
        // It did not take them, although it leads: not at once again.
        let led = LocalView { leader: Some(NodeId(3)), leads: false };
        assert_eq!(search.next(&view(Some(led), &replicas), alive, 0), Step::There(NodeId(3)));
        search.found();
        let none = LocalView { leader: None, leads: false };
        let mut steps = (0..40).map(|_| search.next(&view(Some(none), &replicas), alive, 0));
        assert!(steps.by_ref().take(3).all(is_pause));
        assert_eq!(steps.by_ref().take(2).collect::<Vec<_>>(), [Step::There(NodeId(2)), Step::There(NodeId(3))]);
        assert!(steps.by_ref().take(4).all(is_pause));
        assert!(matches!(steps.next(), Some(Step::There(_))));
    }

    /// A replica that leads and takes nothing (it is handing over) is tried once a round, with a pause between.
    #[test]
    fn a_leader_that_takes_nothing() {
        let mut search = Search::default();
        let leads = LocalView { leader: Some(ME), leads: true };
        for _ in 0..5 {
            assert_eq!(search.next(&view(Some(leads), &[ME]), alive, 0), Step::Here);
            assert!(is_pause(search.next(&view(Some(leads), &[ME]), alive, 0)));
        }
    }

    /// Pauses double up to their bound, jitter by half, and begin anew when a leader was found.
    #[test]
    fn pauses() {
        let mut search = Search::default();
        let mut pause = |search: &mut Search, random| match search.next(&view(None, &[]), alive, random) {
            Step::Pause(pause) => pause.as_micros(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            (0..7).map(|_| pause(&mut search, 0)).collect::<Vec<_>>(),
            [2500, 5000, 10_000, 20_000, 40_000, 50_000, 50_000]
        );
        assert_eq!(pause(&mut search, 50_000), 100_000);
        assert!((50_000..=100_000).contains(&pause(&mut search, u64::MAX)));
        search.found();
        assert_eq!(pause(&mut search, 0), 2500);
    }
}
