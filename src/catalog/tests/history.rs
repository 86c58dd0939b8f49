//! Histories made at random: whatever is asked for in whatever order, the catalog keeps its promises.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::limits::JOIN_TOKENS_MAX;

/// Any command, mostly of the few nodes, topics and shards that there are.
fn any_command() -> impl Strategy<Value = Command> {
    let node = 0..8u64;
    let hash = |secret: u8| bytes::Bytes::from(vec![secret; 32]);
    let target = prop::collection::vec(1..7u64, 0..4);
    let states = prop::sample::select(vec![0, 1, 2, 2, 3]);
    prop_oneof![
        4 => (0..5u8, 0..5u32, 0..5u32).prop_map(|(name, shards, factor)| create_with(&name.to_string(), shards, factor)),
        1 => (0..5u8).prop_map(|name| delete(&name.to_string())),
        4 => (node.clone(), 1..8u64, prop::option::of(0..4u8), 0..20i64).prop_map(move |(id, incarnation, secret, now_us)| {
            let token_secret_hash = secret.map(hash).unwrap_or_default();
            Command::AddNode(AddNode { node: Some(entry(id, incarnation)), token_secret_hash, now_us })
        }),
        1 => (node.clone(), 1..8u64, 0..4u32).prop_map(|(id, incarnation, reactors)| {
            let node = state::ClusterNode { reactors, ..entry(id, incarnation) };
            Command::UpdateNode(UpdateNode { node: Some(node) })
        }),
        3 => (node.clone(), states, any::<bool>()).prop_map(|(node_id, state, keep_replicas)| {
            Command::SetNodeState(SetNodeState { node_id, state, keep_replicas })
        }),
        1 => (0..4u8, 0..20i64, 0..3u32, 0..20i64).prop_map(move |(secret, expires_us, uses_left, now_us)| {
            let token = Some(state::JoinToken { secret_hash: hash(secret), expires_us, uses_left });
            Command::AddJoinToken(AddJoinToken { token, now_us })
        }),
        4 => (0..12u64, target.clone()).prop_map(|(uid, target)| move_shard(uid, &target)),
        4 => (0..12u64, target).prop_map(|(uid, nodes)| finish(uid, &nodes)),
        2 => (0..12u64, node).prop_map(|(uid, node)| prefer(uid, node)),
    ]
}

/// Nodes that join, by certificate, and that are drained or taken back.
fn any_membership() -> impl Strategy<Value = Command> {
    let state = prop::sample::select(vec![NodeState::Active, NodeState::Draining, NodeState::Removed]);
    prop_oneof![
        (2..8u64).prop_map(|id| claim(id, 1_000 + id)),
        (1..8u64, state).prop_map(|(id, state)| set_state(id, state)),
    ]
}

fn assert_invariants(catalog: &Catalog) {
    assert!(catalog.tokens.len() <= JOIN_TOKENS_MAX);
    assert_eq!(catalog.cluster_id.is_some(), catalog.active_nodes().next().is_some());
    let incarnations: BTreeSet<_> = catalog.nodes().map(|node| node.incarnation).collect();
    assert_eq!(incarnations.len(), catalog.nodes().count());
    assert!(catalog.nodes().all(|node| node.id.0 > 0 && node.id.0 < catalog.node_id_next));
    let voters = catalog.wanted_voters(&Default::default(), &Default::default(), &Default::default());
    assert!(voters.is_subset(&catalog.members()) && voters.iter().all(|node| catalog.is_active(*node)));
    assert!(catalog.cluster_id.is_none() || voters.len() % 2 == 1);
    let mut held: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut shards = BTreeSet::new();
    for topic in catalog.topics() {
        assert_eq!(topic.shards.len(), topic.replicas.len());
        for (number, uid) in topic.numbered_shards() {
            assert!(shards.insert(uid) && uid < catalog.shard_uid_end() && uid > ShardUid::CATALOG);
            let (found, found_number) = catalog.shard(uid).unwrap();
            assert_eq!((&found, found_number), (topic, number));
        }
        for replicas in &topic.replicas {
            assert!(!replicas.nodes.is_empty());
            assert!(replicas.nodes.len().max(replicas.target.len()) <= topic.replication_factor as usize);
            for list in [&replicas.nodes, &replicas.target, &replicas.former] {
                assert_eq!(list.iter().collect::<BTreeSet<_>>().len(), list.len());
            }
            assert!(replicas.is_moving() || replicas.former.is_empty());
            for node in replicas.holders().collect::<BTreeSet<_>>() {
                assert!(catalog.members().contains(&node), "a removed node holds nothing");
                *held.entry(node).or_default() += 1;
            }
        }
    }
    assert_eq!(shards.len(), catalog.shard_count());
    for node in catalog.nodes() {
        assert_eq!(catalog.replicas_on(node.id), held.get(&node.id).copied().unwrap_or(0));
    }
}

/// Every shard has as many replicas as it wants and can have, all on active nodes, and none moves.
fn assert_settled(catalog: &Catalog) {
    let active = catalog.active_nodes().count();
    for shard in catalog.topics().flat_map(|topic| topic.placed_shards()) {
        assert!(!shard.replicas.is_moving());
        assert!(shard.replicas.nodes.iter().all(|node| catalog.is_active(*node)));
        assert_eq!(shard.replicas.nodes.len(), shard.replication_factor.min(active));
    }
}

/// Evens out until nothing is left to do, and ends every move on the way.
fn even_out(catalog: &mut Catalog) {
    for _ in 0..20 {
        let commands = catalog.plan_rebalance();
        if commands.is_empty() {
            return;
        }
        carry_out(catalog, commands);
        finish_all(catalog);
    }
    panic!("the evening out does not end");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 256, ..ProptestConfig::default() })]

    /// Whatever is asked for: `check` says what `run` will do, a refusal changes nothing, uids and node ids are given once,
    /// a checkpoint restores the same state, and a second replica that is asked the same gives the same answers.
    #[test]
    fn any_history(commands in prop::collection::vec(any_command(), 0..80)) {
        let (mut catalog, mut replica) = (cluster(1), cluster(1));
        let mut given = BTreeSet::from([ShardUid::CATALOG]);
        let mut owners = BTreeMap::from([(NodeId(1), 1_001)]);
        for command in commands {
            let before = catalog.clone();
            let checked = catalog.check(&command);
            let answer = catalog.run(command.clone());
            prop_assert_eq!(checked.err(), answer.clone().err());
            prop_assert_eq!(&answer, &replica.run(command));
            match answer {
                Ok(CatalogAnswer::Created(topic)) => {
                    for uid in &topic.shards {
                        prop_assert!(given.insert(*uid));
                    }
                }
                Ok(CatalogAnswer::Node(node)) => {
                    prop_assert_eq!(*owners.entry(node.id).or_insert(node.incarnation), node.incarnation);
                }
                Ok(_) => {}
                Err(_) => prop_assert_eq!(&catalog, &before),
            }
            assert_invariants(&catalog);
            let mut restored = Catalog::new();
            restored.restore(&catalog.checkpoint()).unwrap();
            prop_assert_eq!(&restored, &catalog);
            prop_assert_eq!(&replica, &catalog);
        }
        settle(&mut catalog);
        assert_settled(&catalog);
        assert_invariants(&catalog);
    }

    /// Nodes join and are drained while replicas move: in the end every shard has what it wants; evened out, no node has two
    /// replicas or two leaders more than another one.
    #[test]
    fn plans_converge(
        topics in prop::collection::vec((1..9u32, 1..5u32), 1..5),
        steps in prop::collection::vec((any_membership(), 0..3u8), 0..24),
    ) {
        let mut catalog = cluster(1);
        let mut topics = topics.into_iter().enumerate();
        for (step, progress) in steps {
            if let Some((name, (shards, factor))) = topics.next() {
                catalog.run(create_with(&name.to_string(), shards, factor)).unwrap();
            }
            // Refused ones are part of the story.
            drop(catalog.run(step));
            if progress > 0 {
                let commands = catalog.plan(&BTreeSet::new());
                carry_out(&mut catalog, commands);
            }
            if progress > 1 {
                finish_all(&mut catalog);
            }
            assert_invariants(&catalog);
        }
        settle(&mut catalog);
        assert_settled(&catalog);
        for node in catalog.nodes().filter(|node| node.state != NodeState::Active) {
            prop_assert_eq!(catalog.replicas_on(node.id), 0);
        }
        even_out(&mut catalog);
        assert_settled(&catalog);
        let loads = loads(&catalog);
        prop_assert!(spread(loads.iter().map(|load| load.0)) <= 1, "{loads:?}");
        prop_assert!(spread(loads.iter().map(|load| load.1)) <= 1, "{loads:?}");
        prop_assert_eq!(catalog.plan(&BTreeSet::new()), []);
    }

    /// Bytes that are not a checkpoint, or one that was changed, are refused or give a state that keeps every promise;
    /// a refusal changes nothing.
    #[test]
    fn hostile_checkpoints(commands in prop::collection::vec(any_command(), 0..40), change in any::<(usize, u8)>()) {
        let mut catalog = cluster(1);
        for command in commands {
            drop(catalog.run(command));
        }
        let mut bytes = catalog.checkpoint().to_vec();
        let place = change.0 % bytes.len();
        bytes[place] ^= change.1;
        let mut restored = catalog.clone();
        match restored.restore(&bytes) {
            Ok(()) => assert_invariants(&restored),
            Err(_) => prop_assert_eq!(restored, catalog),
        }
    }
}

/// Checkpoints that no catalog would write, one for each thing that is checked.
#[test]
fn impossible_checkpoints() {
    let mut catalog = cluster(3);
    catalog.run(create("t", 2)).unwrap();
    catalog.run(move_shard(1, &[1, 2])).unwrap();
    let good = catalog.to_state();
    let changes: &[fn(&mut state::Catalog)] = &[
        |state| state.shard_uid_next = 0,
        |state| state.shard_uid_next = 2,
        |state| state.topic_id_next = 0,
        |state| state.node_id_next = 3,
        |state| state.cluster_id.clear(),
        |state| state.nodes.clear(),
        |state| state.nodes[0].state = 0,
        |state| state.nodes[0].state = NodeState::Removed as i32 + 1,
        |state| state.nodes[1].incarnation = state.nodes[0].incarnation,
        |state| state.nodes[1].node_id = 1,
        |state| state.nodes[1].node_id = 0,
        |state| state.join_tokens.push(Default::default()),
        |state| state.topics.push(state.topics[0].clone()),
        |state| state.topics[0].name = "../x".into(),
        |state| state.topics[0].shard_uids = vec![1],
        |state| state.topics[0].shard_uids = vec![0, 1],
        |state| state.topics[0].shard_uids = vec![2, 1],
        |state| state.topics[0].shard_uids = vec![u64::MAX, 0],
        |state| state.topics[0].replication_factor = 0,
        |state| state.topics[0].replication_factor = 1,
        |state| state.topics[0].replicas[0].node_ids.clear(),
        |state| state.topics[0].replicas[0].node_ids = vec![1, 1],
        |state| state.topics[0].replicas[0].node_ids = vec![7],
        |state| state.topics[0].replicas[0].former_node_ids = vec![1],
        |state| state.topics[0].replicas[1].former_node_ids = vec![1],
        |state| drop(state.topics[0].replicas.pop()),
    ];
    assert_eq!(Catalog::from_state(good.clone()), Ok(catalog));
    for (number, change) in changes.iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(Catalog::from_state(bad).is_err(), "change {number}");
    }
    assert!(Catalog::new().restore(&[0xff]).is_err());
}
