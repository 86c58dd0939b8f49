//! Nodes: how they join, with certificates and tokens, change and go.

use std::collections::BTreeSet;

use super::*;
use crate::limits::{CATALOG_VOTERS_MAX, CLUSTER_NODES_MAX, JOIN_TOKENS_MAX, NODE_ID_MAX};

fn token(secret: u8, expires_us: i64, uses_left: u32) -> Command {
    let token = state::JoinToken { secret_hash: vec![secret; 32].into(), expires_us, uses_left };
    Command::AddJoinToken(AddJoinToken { token: Some(token), now_us: 0 })
}

fn join(secret: u8, incarnation: u64, now_us: i64) -> Command {
    let (node, token_secret_hash) = (Some(entry(0, incarnation)), vec![secret; 32].into());
    Command::AddNode(AddNode { node, token_secret_hash, now_us })
}

fn id(answer: Result<CatalogAnswer, CatalogError>) -> Result<u64, CatalogError> {
    match answer? {
        CatalogAnswer::Node(node) => Ok(node.id.0),
        other => panic!("not a node: {other:?}"),
    }
}

fn ids(nodes: impl IntoIterator<Item = NodeId>) -> Vec<u64> {
    nodes.into_iter().map(|node| node.0).collect()
}

/// A cluster keeps its first id and begins with node 1; before that, nothing can be done.
#[test]
fn a_cluster_begins_once() {
    let mut catalog = Catalog::new();
    assert_eq!(catalog.run(create("t", 1)), Err(CatalogError::NoCluster));
    assert_eq!(
        catalog.check_create(&CreateTopic { name: "t".into(), shards: 1, ..Default::default() }),
        Err(CatalogError::NoCluster)
    );
    assert_eq!(catalog.run(claim(2, 5)), Err(CatalogError::NoCluster));
    for cluster_id in ["", "one", &CLUSTER.to_uppercase()] {
        let command = InitCluster { cluster_id: cluster_id.into(), node: Some(entry(0, 5)) };
        let refused = catalog.run(Command::InitCluster(command)).unwrap_err();
        assert!(matches!(refused, CatalogError::ClusterId(_)), "{refused}");
    }
    let nobody = Command::InitCluster(InitCluster { cluster_id: CLUSTER.into(), node: None });
    assert!(matches!(catalog.run(nobody), Err(CatalogError::NodeInvalid { .. })));
    assert_eq!((catalog.cluster_id(), catalog.members().len()), (None, 0));
    assert!(catalog.wanted_voters(&BTreeSet::new(), &BTreeSet::new(), &BTreeSet::new()).is_empty());

    let answer = Ok(CatalogAnswer::Cluster { cluster_id: CLUSTER.into() });
    assert_eq!(catalog.run(init()), answer);
    let other = InitCluster { cluster_id: "f".repeat(32), node: Some(entry(0, 77)) };
    assert_eq!(catalog.run(Command::InitCluster(other)), answer);
    assert_eq!(ids(catalog.members()), [1]);
    assert_eq!(catalog.node(NodeId(1)).unwrap().incarnation, 1_001);
}

/// A drain is refused where the nodes that are left are too few for what topics want: only those topics count that have
/// replicas to lose. It is decided when the command is applied: of two drains at a time the second one sees the first.
#[test]
fn too_few_left() {
    let mut catalog = cluster(4);
    catalog.run(create_with("three", 1, 3)).unwrap();
    let drain = |node_id| {
        let state = state::NodeState::Draining.into();
        Command::SetNodeState(SetNodeState { node_id, state, keep_replicas: true })
    };
    let short = |catalog: &Catalog, node| match catalog.check(&drain(node)) {
        Err(CatalogError::TooFewNodes { node: of, topic, wanted, left }) => {
            assert_eq!((of.0, &*topic), (node, "three"));
            Some((wanted, left))
        }
        other => {
            other.unwrap();
            None
        }
    };
    let [first, second, third] = nodes(&replicas(&catalog, "three", 0))[..] else { panic!("three replicas") };
    assert_eq!(short(&catalog, first), None, "the fourth node takes it");
    let fourth = (1..=4).find(|node| ![first, second, third].contains(node)).unwrap();
    catalog.run(drain(fourth)).unwrap();
    assert_eq!(short(&catalog, first), Some((3, 2)));
    assert!(catalog.run(drain(first)).is_err(), "it was possible when it was asked for");
    assert_eq!(short(&catalog, fourth), None, "it drains already, and has nothing to lose");
    catalog.run(set_state(first, NodeState::Draining)).unwrap();
    assert_eq!(short(&catalog, first), None, "somebody wanted that");
    settle(&mut catalog);
    assert_eq!(short(&catalog, second), Some((3, 1)), "it wanted three, and now has two");
    catalog.run(set_state(first, NodeState::Active)).unwrap();
    catalog.run(set_state(fourth, NodeState::Active)).unwrap();
    settle(&mut catalog);
    assert_eq!(short(&catalog, second), None);
}

/// A certificate's node gets its id if nobody ever had it, and gets it again if it asks again. Ids after it are free.
#[test]
fn certificates() {
    let mut catalog = cluster(1);
    assert_eq!(id(catalog.run(claim(5, 50))), Ok(5));
    assert_eq!(id(catalog.run(claim(5, 50))), Ok(5));
    assert_eq!(id(catalog.run(claim(3, 30))), Ok(3), "issued beforehand, and not given to anybody since");
    assert_eq!(catalog.run(claim(3, 31)), Err(CatalogError::NodeIdTaken(NodeId(3))));
    assert_eq!(catalog.run(claim(4, 30)), Err(CatalogError::IncarnationTaken(NodeId(3))));
    assert_eq!(catalog.run(claim(0, 60)), Err(CatalogError::TokenMissing));
    catalog.run(token(1, 100, 1)).unwrap();
    assert_eq!(id(catalog.run(join(1, 60, 0))), Ok(6));
    assert!(matches!(catalog.run(claim(NODE_ID_MAX + 1, 70)), Err(CatalogError::NodeInvalid { .. })));
    assert_eq!(id(catalog.run(claim(NODE_ID_MAX, 70))), Ok(NODE_ID_MAX));
    catalog.run(token(2, 100, 1)).unwrap();
    assert_eq!(id(catalog.run(join(2, 80, 0))), Ok(NODE_ID_MAX + 1));
}

/// A token lets in as many nodes as it says, until it expires; who asks again gets its id again, and uses nothing up.
#[test]
fn tokens() {
    let mut catalog = cluster(1);
    catalog.run(token(1, 100, 2)).unwrap();
    assert_eq!(id(catalog.run(join(1, 20, 0))), Ok(2));
    assert_eq!(id(catalog.run(join(1, 20, 0))), Ok(2));
    assert_eq!(id(catalog.run(join(1, 30, 99))), Ok(3));
    assert_eq!(catalog.run(join(1, 40, 0)), Err(CatalogError::TokenUsedUp));
    assert_eq!(id(catalog.run(join(1, 30, 0))), Ok(3), "its answer was lost");
    catalog.run(token(1, 100, 2)).unwrap();
    assert_eq!(catalog.run(join(1, 40, 0)), Err(CatalogError::TokenUsedUp), "the same token again");
    assert_eq!(catalog.run(join(1, 30, 100)), Err(CatalogError::TokenUnknown), "expired");
    assert_eq!(catalog.run(join(9, 40, 0)), Err(CatalogError::TokenUnknown));

    catalog.run(token(2, 200, TOKEN_USES_UNLIMITED)).unwrap();
    for node in 0..20 {
        assert_eq!(id(catalog.run(join(2, 100 + node, 150))), Ok(4 + node));
    }
    assert_eq!(catalog.token_count(), 1, "the expired one is forgotten");
}

/// Tokens that could never be used are refused, and so are too many. Those that are used up make room.
#[test]
fn tokens_are_bounded() {
    let mut catalog = cluster(1);
    let with = |token: Option<state::JoinToken>, now_us| Command::AddJoinToken(AddJoinToken { token, now_us });
    let good = state::JoinToken { secret_hash: vec![7; 32].into(), expires_us: 10, uses_left: 1 };
    let short = state::JoinToken { secret_hash: vec![7; 31].into(), ..good.clone() };
    let useless = state::JoinToken { uses_left: 0, ..good.clone() };
    for bad in [with(None, 0), with(Some(short), 0), with(Some(useless), 0), with(Some(good), 10)] {
        assert!(matches!(catalog.run(bad), Err(CatalogError::TokenInvalid { .. })));
    }
    for secret in 0..=u8::MAX {
        catalog.run(token(secret, 1_000 + i64::from(secret), 1)).unwrap();
    }
    assert_eq!(catalog.token_count(), JOIN_TOKENS_MAX);
    let another = state::JoinToken { secret_hash: [[1; 16], [2; 16]].concat().into(), expires_us: 2_000, uses_left: 1 };
    assert_eq!(catalog.run(with(Some(another.clone()), 0)), Err(CatalogError::TooManyTokens));
    catalog.run(token(3, 5_000, 1)).unwrap();
    catalog.run(join(200, 20, 0)).unwrap();
    catalog.run(with(Some(another.clone()), 0)).unwrap();
    assert_eq!(catalog.token_count(), JOIN_TOKENS_MAX);
    assert_eq!(catalog.run(join(200, 21, 0)), Err(CatalogError::TokenUnknown), "it made room");
    catalog.run(with(Some(another), 1_255)).unwrap();
    assert_eq!(catalog.token_count(), 1, "all others have expired");
}

/// A node changes its addresses and reactors, but only the node itself.
#[test]
fn updates() {
    let mut catalog = cluster(2);
    let update = |node| Command::UpdateNode(UpdateNode { node: Some(node) });
    let moved = state::ClusterNode { peer_host: "node-2.example".into(), reactors: 4, ..entry(2, 1_002) };
    assert_eq!(id(catalog.run(update(moved))), Ok(2));
    let node = catalog.node(NodeId(2)).unwrap();
    assert_eq!((&*node.peer_host, node.reactors, node.state), ("node-2.example", 4, NodeState::Active));
    assert_eq!(catalog.run(update(entry(2, 1_001))), Err(CatalogError::WrongIncarnation(NodeId(2))));
    assert_eq!(catalog.run(update(entry(7, 1_007))), Err(CatalogError::NodeUnknown(NodeId(7))));
    catalog.run(set_state(2, NodeState::Draining)).unwrap();
    assert_eq!(id(catalog.run(update(entry(2, 1_002)))), Ok(2));
    assert_eq!(catalog.node(NodeId(2)).unwrap().state, NodeState::Draining, "its state is not its own to change");
    catalog.run(set_state(2, NodeState::Removed)).unwrap();
    assert_eq!(catalog.run(update(entry(2, 1_002))), Err(CatalogError::NodeRemoved(NodeId(2))));
}

/// What cannot be a node is refused with the reason.
#[test]
fn impossible_nodes() {
    let mut catalog = cluster(1);
    let bad = [
        state::ClusterNode { incarnation: 0, ..entry(2, 0) },
        state::ClusterNode { reactors: 0, ..entry(2, 5) },
        state::ClusterNode { reactors: u32::MAX, peer_port: u32::MAX, ..entry(2, 5) },
        state::ClusterNode { peer_port: 65_535, ..entry(2, 5) },
        state::ClusterNode { peer_port: 65_536, reactors: 1, ..entry(2, 5) },
        state::ClusterNode { peer_host: String::new(), ..entry(2, 5) },
        state::ClusterNode { peer_host: "a\u{1b}[31m".into(), ..entry(2, 5) },
        state::ClusterNode { grpc_address: "x".repeat(262), ..entry(2, 5) },
    ];
    for node in bad {
        let refused = catalog.run(Command::AddNode(AddNode { node: Some(node), ..AddNode::default() })).unwrap_err();
        assert!(matches!(refused, CatalogError::NodeInvalid { .. }), "{refused}");
    }
    assert_eq!(ids(catalog.members()), [1]);
}

/// A node goes when nothing is left on it and another one is there, and never comes back.
#[test]
fn removal() {
    let mut catalog = cluster(1);
    assert_eq!(catalog.run(set_state(1, NodeState::Draining)), Err(CatalogError::LastActive(NodeId(1))));
    assert_eq!(catalog.run(set_state(1, NodeState::Removed)), Err(CatalogError::LastActive(NodeId(1))));
    catalog.run(create("t", 2)).unwrap();
    catalog.run(claim(2, 20)).unwrap();
    let holds = CatalogError::HoldsReplicas { node: NodeId(1), replicas: 2 };
    assert_eq!(catalog.run(set_state(1, NodeState::Removed)), Err(holds.clone()));
    catalog.run(set_state(1, NodeState::Draining)).unwrap();
    assert_eq!(catalog.run(set_state(1, NodeState::Removed)), Err(holds));
    assert_eq!(catalog.run(set_state(2, NodeState::Draining)), Err(CatalogError::LastActive(NodeId(2))));
    settle(&mut catalog);
    assert_eq!((catalog.replicas_on(NodeId(1)), catalog.replicas_on(NodeId(2))), (0, 2));
    assert_eq!(id(catalog.run(set_state(1, NodeState::Removed))), Ok(1));
    assert_eq!(id(catalog.run(set_state(1, NodeState::Removed))), Ok(1), "asked again");
    for back in [set_state(1, NodeState::Active), claim(1, 1_001)] {
        assert_eq!(catalog.run(back), Err(CatalogError::NodeRemoved(NodeId(1))));
    }
    catalog.run(token(1, 100, 5)).unwrap();
    assert_eq!(catalog.run(join(1, 1_001, 0)), Err(CatalogError::NodeRemoved(NodeId(1))));
    assert_eq!(catalog.run(set_state(9, NodeState::Removed)), Err(CatalogError::NodeUnknown(NodeId(9))));
    let no_state = SetNodeState { node_id: 2, state: 0, keep_replicas: false };
    assert_eq!(catalog.run(Command::SetNodeState(no_state)), Err(CatalogError::UnknownCommand));
    assert_eq!(ids(catalog.members()), [2]);
    assert_eq!(catalog.nodes().count(), 2, "its id stays taken");
}

fn nodes_of(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// An odd number of active nodes votes in the catalog, those that do already first; draining ones do not.
#[test]
fn voters() {
    let mut catalog = cluster(1);
    let mut present = BTreeSet::new();
    let mut change = |catalog: &Catalog| {
        present = catalog.wanted_voters(&present, &BTreeSet::new(), &BTreeSet::new());
        ids(present.clone())
    };
    assert_eq!(change(&catalog), [1]);
    for (node, voters) in [(2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (7, CATALOG_VOTERS_MAX)] {
        catalog.run(claim(node, node)).unwrap();
        assert_eq!(change(&catalog), (1..=voters as u64).collect::<Vec<_>>());
    }
    catalog.run(set_state(2, NodeState::Draining)).unwrap();
    assert_eq!(change(&catalog), [1, 3, 4, 5, 6]);
    assert_eq!(ids(catalog.members()), [1, 2, 3, 4, 5, 6, 7]);
    catalog.run(set_state(2, NodeState::Active)).unwrap();
    assert_eq!(change(&catalog), [1, 3, 4, 5, 6], "whoever votes stays");
}

/// A dead node keeps its vote and gets none; another one takes the place of one that goes. Where there is no other one, one that
/// drains keeps its vote, and one that was removed loses it: it will not come back.
#[test]
fn dead_voters() {
    let mut catalog = cluster(7);
    let five = nodes_of(&[1, 2, 3, 4, 5]);
    let wanted = |catalog: &Catalog, present: &BTreeSet<NodeId>, dead: &[u64]| {
        ids(catalog.wanted_voters(present, &nodes_of(dead), &BTreeSet::new()))
    };
    assert_eq!(wanted(&catalog, &five, &[2, 3]), [1, 2, 3, 4, 5]);
    catalog.run(set_state(3, NodeState::Draining)).unwrap();
    assert_eq!(wanted(&catalog, &five, &[6]), [1, 2, 4, 5, 7]);
    assert_eq!(wanted(&catalog, &five, &[6, 7]), [1, 2, 3, 4, 5]);
    assert_eq!(wanted(&catalog, &nodes_of(&[1]), &[3, 4, 5, 6, 7]), [1], "two of three would need both");
    catalog.run(set_state(3, NodeState::Removed)).unwrap();
    assert_eq!(wanted(&catalog, &five, &[6]), [1, 2, 4, 5, 7]);
    assert_eq!(wanted(&catalog, &five, &[6, 7]), [1, 2, 4]);
    assert_eq!(wanted(&catalog, &five, &[2, 6, 7]), [1, 4, 5]);
    assert_eq!(
        wanted(&catalog, &nodes_of(&[1, 4, 5]), &[6, 7]),
        [1, 4, 5],
        "the other one of four alone gains nothing"
    );
}

/// Who has not caught up when it was to vote comes last, and still comes where there is nobody else.
#[test]
fn late_candidates() {
    let mut catalog = cluster(7);
    catalog.run(set_state(3, NodeState::Draining)).unwrap();
    let five = nodes_of(&[1, 2, 3, 4, 5]);
    let wanted = |late: &[u64]| ids(catalog.wanted_voters(&five, &BTreeSet::new(), &nodes_of(late)));
    assert_eq!(wanted(&[]), [1, 2, 4, 5, 6]);
    assert_eq!(wanted(&[6]), [1, 2, 4, 5, 7]);
    assert_eq!(wanted(&[6, 7]), [1, 2, 4, 5, 6]);
    assert_eq!(wanted(&[5]), [1, 2, 4, 5, 6], "a voter stays one");
}

/// A cluster has room for so many nodes.
#[test]
fn too_many_nodes() {
    let mut catalog = cluster(CLUSTER_NODES_MAX as u64);
    assert_eq!(catalog.run(claim(5_000, 5_000)), Err(CatalogError::TooManyNodes));
    assert_eq!(id(catalog.run(claim(7, 1_007))), Ok(7), "a member may still ask again");
}
