//! Replicas on their way: by command, by the plan, by evening out.

use std::collections::BTreeSet;

use super::*;
use crate::limits::{MOVES_PER_NODE_MAX, PLAN_MOVES_MAX};

/// One topic `t` with one shard (uid 1) on nodes 1, 2, 3 of five.
fn one_shard() -> Catalog {
    let mut catalog = cluster(5);
    catalog.run(create("t", 1)).unwrap();
    assert_eq!(nodes(&replicas(&catalog, "t", 0)), [1, 2, 3]);
    catalog
}

fn count(catalog: &Catalog, command: impl Fn(&Command) -> bool) -> usize {
    catalog.plan_rebalance().iter().filter(|planned| command(planned)).count()
}

/// A move: both old and new nodes have it until it ends, then only the new ones; who missed the end may say it again.
#[test]
fn a_move() {
    let mut catalog = one_shard();
    assert_eq!(replicas(&catalog, "t", 0).founders(NodeId(2)), Some([NodeId(1), NodeId(2), NodeId(3)].into()));
    catalog.run(move_shard(1, &[4, 1, 2])).unwrap();
    let moving = replicas(&catalog, "t", 0);
    assert_eq!((nodes(&moving), targets(&moving)), (vec![1, 2, 3], vec![4, 1, 2]));
    assert!(moving.has(NodeId(3)) && moving.has(NodeId(4)) && !moving.has(NodeId(5)));
    assert_eq!(moving.founders(NodeId(4)), None, "it waits to be added");
    assert_eq!((catalog.replicas_on(NodeId(1)), catalog.replicas_on(NodeId(4))), (1, 1));
    assert_eq!(catalog.run(finish(1, &[1, 2, 3])), Err(CatalogError::MoveReplaced(ShardUid(1))));
    for _ in 0..2 {
        catalog.run(finish(1, &[1, 2, 4])).unwrap();
        let moved = replicas(&catalog, "t", 0);
        assert_eq!((nodes(&moved), moved.is_moving(), moved.has(NodeId(3))), (vec![4, 1, 2], false, false));
        assert_eq!(moved.founders(NodeId(4)), None, "the group exists");
    }
}

/// A target that is given up keeps its replicas until the move ends: the group may be there already, and nowhere else.
#[test]
fn another_target() {
    let mut catalog = cluster(4);
    catalog.run(create_with("t", 1, 1)).unwrap();
    assert_eq!(nodes(&replicas(&catalog, "t", 0)), [1]);
    catalog.run(move_shard(1, &[2])).unwrap();
    catalog.run(move_shard(1, &[3])).unwrap();
    catalog.run(move_shard(1, &[3])).unwrap();
    assert_eq!(replicas(&catalog, "t", 0).former, [NodeId(2)]);
    catalog.run(move_shard(1, &[1])).unwrap();
    let back = replicas(&catalog, "t", 0);
    assert_eq!((targets(&back), back.former.clone()), (vec![1], vec![NodeId(2), NodeId(3)]));
    assert_eq!((1..5).filter(|node| back.has(NodeId(*node))).collect::<Vec<_>>(), [1, 2, 3]);
    let holds = CatalogError::HoldsReplicas { node: NodeId(2), replicas: 1 };
    assert_eq!(catalog.run(set_state(2, NodeState::Removed)), Err(holds));
    catalog.run(finish(1, &[1])).unwrap();
    assert_eq!(replicas(&catalog, "t", 0), Replicas { moved: true, ..Replicas::on(vec![NodeId(1)]) });
}

/// Targets that cannot be are refused, and change nothing.
#[test]
fn impossible_targets() {
    let mut catalog = one_shard();
    catalog.run(set_state(5, NodeState::Draining)).unwrap();
    let before = catalog.clone();
    for target in [&[][..], &[1, 1], &[1, 2, 3, 4]] {
        let refused = catalog.run(move_shard(1, target)).unwrap_err();
        assert!(matches!(refused, CatalogError::Target { .. }), "{refused}");
    }
    assert_eq!(catalog.run(move_shard(1, &[1, 9])), Err(CatalogError::NodeUnknown(NodeId(9))));
    assert_eq!(catalog.run(move_shard(1, &[1, 5])), Err(CatalogError::NodeNotActive(NodeId(5))));
    assert_eq!(catalog.run(move_shard(2, &[1])), Err(CatalogError::ShardUnknown(ShardUid(2))));
    assert_eq!(catalog.run(finish(2, &[1])), Err(CatalogError::ShardUnknown(ShardUid(2))));
    let stranger = CatalogError::NoReplica { shard: ShardUid(1), node: NodeId(4) };
    assert_eq!(catalog.run(prefer(1, 4)), Err(stranger));
    assert_eq!(catalog, before);
}

/// Who is to lead comes first, now and after the move. Only the order changes: nothing is moved.
#[test]
fn preferred_leaders() {
    let mut catalog = one_shard();
    catalog.run(prefer(1, 3)).unwrap();
    assert_eq!(nodes(&replicas(&catalog, "t", 0)), [3, 1, 2]);
    catalog.run(move_shard(1, &[2, 1, 3])).unwrap();
    let reordered = replicas(&catalog, "t", 0);
    assert_eq!((nodes(&reordered), reordered.is_moving()), (vec![2, 1, 3], false));
    catalog.run(move_shard(1, &[1, 4, 3])).unwrap();
    catalog.run(prefer(1, 3)).unwrap();
    let moving = replicas(&catalog, "t", 0);
    assert_eq!((nodes(&moving), targets(&moving)), (vec![3, 2, 1], vec![3, 1, 4]));
    assert!(matches!(catalog.run(prefer(1, 2)), Err(CatalogError::NoReplica { .. })), "it is to go");
    catalog.run(set_state(4, NodeState::Draining)).unwrap();
    assert_eq!(catalog.run(prefer(1, 4)), Err(CatalogError::NodeNotActive(NodeId(4))));
}

/// A topic that was made on one node grows as nodes join, and leaders spread with it.
#[test]
fn plan_grows_shards() {
    let mut catalog = cluster(1);
    catalog.run(create("t", 6)).unwrap();
    assert_eq!(catalog.plan(&BTreeSet::new()), []);
    catalog.run(claim(2, 20)).unwrap();
    catalog.run(claim(3, 30)).unwrap();
    settle(&mut catalog);
    assert_eq!(loads(&catalog), [(6, 2), (6, 2), (6, 2)]);
    catalog.run(claim(4, 40)).unwrap();
    assert_eq!(catalog.plan(&BTreeSet::new()), [], "three are wanted");
}

/// No more than a few moves keep a node busy; the next ones begin when those have ended.
#[test]
fn plan_is_bounded() {
    let mut catalog = cluster(1);
    catalog.run(create_with("t", 1_000, 2)).unwrap();
    catalog.run(claim(2, 20)).unwrap();
    let commands = catalog.plan(&BTreeSet::new());
    assert_eq!(commands.len(), MOVES_PER_NODE_MAX);
    carry_out(&mut catalog, commands);
    assert_eq!(catalog.plan(&BTreeSet::new()), []);
    finish_all(&mut catalog);
    assert_eq!(catalog.plan(&BTreeSet::new()).len(), MOVES_PER_NODE_MAX);

    // What only lets go of replicas keeps nobody busy.
    let mut catalog = cluster(3);
    catalog.run(create("t", 1_000)).unwrap();
    catalog.run(set_state(3, NodeState::Draining)).unwrap();
    assert_eq!(catalog.plan(&BTreeSet::new()).len(), PLAN_MOVES_MAX);
}

/// A node that is drained has nothing left; its replicas are on others, and with two nodes left there are two.
#[test]
fn plan_drains() {
    let mut catalog = cluster(4);
    catalog.run(create("t", 8)).unwrap();
    catalog.run(set_state(2, NodeState::Draining)).unwrap();
    settle(&mut catalog);
    assert_eq!(loads(&catalog), [(8, 3), (8, 2), (8, 3)]);
    assert_eq!(catalog.replicas_on(NodeId(2)), 0);
    catalog.run(set_state(4, NodeState::Draining)).unwrap();
    settle(&mut catalog);
    assert_eq!((loads(&catalog), catalog.replicas_on(NodeId(4))), (vec![(8, 4), (8, 4)], 0));
    catalog.run(set_state(2, NodeState::Active)).unwrap();
    settle(&mut catalog);
    assert_eq!(loads(&catalog).iter().map(|load| load.0).collect::<Vec<_>>(), [8, 8, 8]);
}

/// A drain that is taken back takes its moves back that have not ended and make nothing new: no shard goes down to fewer replicas
/// that are then all copied again.
#[test]
fn plan_takes_a_drain_back() {
    let mut catalog = cluster(3);
    catalog.run(create("t", 1)).unwrap();
    catalog.run(set_state(2, NodeState::Draining)).unwrap();
    let commands = catalog.plan(&BTreeSet::new());
    carry_out(&mut catalog, commands);
    assert_eq!(replicas(&catalog, "t", 0).target.len(), 2);
    assert_eq!(catalog.plan(&BTreeSet::new()), [], "it is let end");
    catalog.run(set_state(2, NodeState::Active)).unwrap();
    assert_eq!(catalog.plan(&BTreeSet::new()), [move_shard(1, &[1, 2, 3])]);
    catalog.run(move_shard(1, &[1, 2, 3])).unwrap();
    assert_eq!(catalog.plan(&BTreeSet::new()), [], "it is on its way back");
    finish_all(&mut catalog);
    assert_eq!(catalog.plan(&BTreeSet::new()), []);
    let back = replicas(&catalog, "t", 0);
    assert_eq!((nodes(&back), back.is_moving()), (vec![1, 2, 3], false));

    // One that makes a new replica is let end.
    let mut catalog = one_shard();
    catalog.run(set_state(2, NodeState::Draining)).unwrap();
    catalog.run(move_shard(1, &[1, 3, 4])).unwrap();
    catalog.run(set_state(2, NodeState::Active)).unwrap();
    assert_eq!(catalog.plan(&BTreeSet::new()), []);
}

/// A dead node keeps what it has and gets nothing; drained, its replicas are made anew elsewhere. A shard never has fewer
/// replicas for want of a living node.
#[test]
fn plan_and_the_dead() {
    let mut catalog = one_shard();
    let dead = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
    assert_eq!(catalog.plan(&dead(&[3])), [], "it may come back");
    catalog.run(set_state(3, NodeState::Draining)).unwrap();
    assert_eq!(catalog.plan(&dead(&[3, 4, 5])), [], "there is nowhere to go");
    assert_eq!(catalog.plan(&dead(&[3, 4])), [move_shard(1, &[1, 2, 5])]);

    // The node that was to have it is drained while it is on its way: another one is found.
    catalog.run(move_shard(1, &[1, 2, 5])).unwrap();
    assert_eq!(catalog.plan(&dead(&[3, 5])), [], "a move that waits for a dead node waits");
    catalog.run(set_state(5, NodeState::Draining)).unwrap();
    let commands = catalog.plan(&dead(&[3, 5]));
    assert_eq!(commands, [move_shard(1, &[1, 2, 4])]);
    carry_out(&mut catalog, commands);
    assert!(replicas(&catalog, "t", 0).has(NodeId(5)), "until the move ends");
    finish_all(&mut catalog);
    assert_eq!(nodes(&replicas(&catalog, "t", 0)), [1, 2, 4]);
    assert_eq!((catalog.replicas_on(NodeId(3)), catalog.replicas_on(NodeId(5))), (0, 0));
}

/// Of three nodes one is dead and another drains: two replicas, of which one is on the dead node, could write nothing.
#[test]
fn plan_keeps_a_majority_alive() {
    let mut catalog = cluster(3);
    catalog.run(create("t", 1)).unwrap();
    catalog.run(set_state(3, NodeState::Draining)).unwrap();
    assert_eq!(catalog.plan(&[NodeId(1)].into()), [], "it stays until there are two without it");
    assert_eq!(catalog.plan(&[NodeId(2)].into()), []);
    let commands = catalog.plan(&BTreeSet::new());
    assert_eq!(commands.len(), 1);
    carry_out(&mut catalog, commands);
    finish_all(&mut catalog);
    let mut left = nodes(&replicas(&catalog, "t", 0));
    left.sort_unstable();
    assert_eq!(left, [1, 2]);
}

/// The last replica of a shard leaves a node that is drained only by a move.
#[test]
fn plan_never_leaves_a_shard_without_replicas() {
    let mut catalog = cluster(2);
    catalog.run(create_with("t", 1, 1)).unwrap();
    catalog.run(set_state(1, NodeState::Draining)).unwrap();
    assert_eq!(catalog.plan(&[NodeId(2)].into()), []);
    assert_eq!(catalog.plan(&BTreeSet::new()), [move_shard(1, &[2])]);
}

/// A node that joins gets its share with as few moves as that takes; then nothing is left to do.
#[test]
fn rebalance_moves_little() {
    let mut catalog = cluster(3);
    catalog.run(create("t", 12)).unwrap();
    catalog.run(create_with("single", 12, 1)).unwrap();
    assert_eq!(catalog.plan_rebalance(), [], "it was made even");
    catalog.run(claim(4, 40)).unwrap();
    let commands = catalog.plan_rebalance();
    // 48 replicas on four nodes: the new one is to have 12, each from another node.
    assert_eq!(carry_out(&mut catalog, commands), 12);
    finish_all(&mut catalog);
    assert_eq!(loads(&catalog), [(12, 6), (12, 6), (12, 6), (12, 6)]);
    assert_eq!(catalog.plan_rebalance(), []);
    assert_eq!(catalog.plan(&BTreeSet::new()), []);
}

/// Where only leaders are uneven, nothing is copied: on nodes first, then on reactors.
#[test]
fn rebalance_of_leaders_copies_nothing() {
    let mut catalog = cluster(3);
    catalog.run(create("t", 12)).unwrap();
    for uid in 1..=12 {
        catalog.run(prefer(uid, 1)).unwrap();
    }
    let commands = catalog.plan_rebalance();
    assert_eq!((commands.len(), carry_out(&mut catalog, commands)), (8, 0));
    assert_eq!(loads(&catalog), [(12, 4), (12, 4), (12, 4)]);
    assert_eq!(catalog.plan_rebalance(), []);

    // Shards of even slots go to reactor 0 of every node, those of odd ones to reactor 1.
    for (uid, node) in (1..=12).zip([1, 2, 1, 2, 1, 2, 1, 2, 3, 3, 3, 3]) {
        catalog.run(prefer(uid, node)).unwrap();
    }
    assert_eq!(count(&catalog, |command| matches!(command, Command::PreferLeader(_))), 4);
    let commands = catalog.plan_rebalance();
    assert_eq!(carry_out(&mut catalog, commands), 0);
    for load in placement::Load::of(&catalog).nodes.values() {
        assert_eq!(load.reactors.iter().map(|reactor| reactor.leaders).collect::<Vec<_>>(), [2, 2]);
    }
    assert_eq!(catalog.plan_rebalance(), []);
}

/// Leaders that no other node has a replica to take over are evened out by swapping replicas.
#[test]
fn rebalance_swaps_replicas() {
    let mut catalog = cluster(3);
    catalog.run(create_with("alone", 3, 1)).unwrap();
    catalog.run(create_with("pair", 3, 2)).unwrap();
    for uid in 1..=3 {
        catalog.run(move_shard(uid, &[1])).unwrap();
        catalog.run(move_shard(uid + 3, &[2, 3])).unwrap();
    }
    finish_all(&mut catalog);
    assert_eq!(loads(&catalog), [(3, 3), (3, 3), (3, 0)]);
    let commands = catalog.plan_rebalance();
    carry_out(&mut catalog, commands);
    finish_all(&mut catalog);
    assert_eq!(loads(&catalog), [(3, 2), (3, 2), (3, 2)]);
    assert_eq!(catalog.plan_rebalance(), []);
}

/// Shards on their way, or on nodes that go, are left to the plan.
#[test]
fn rebalance_leaves_moves_alone() {
    let mut catalog = cluster(2);
    catalog.run(create_with("t", 4, 1)).unwrap();
    for uid in 1..=4 {
        catalog.run(move_shard(uid, &[1])).unwrap();
    }
    finish_all(&mut catalog);
    catalog.run(claim(3, 30)).unwrap();
    catalog.run(move_shard(1, &[3])).unwrap();
    let commands = catalog.plan_rebalance();
    assert!(
        !commands.is_empty()
            && !commands.iter().any(|command| matches!(command, Command::MoveShard(m) if m.shard_uid == 1))
    );
    catalog.run(set_state(1, NodeState::Draining)).unwrap();
    assert_eq!(catalog.plan_rebalance(), []);
}
