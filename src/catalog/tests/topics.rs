//! Topics: names, limits, ids, where the shards of a new one go.

use super::*;
use crate::{
    ids::TopicId,
    limits::{NODE_SHARDS_MAX, REPLICATION_FACTOR_MAX, TOPIC_SHARDS_MAX},
};

fn uids(catalog: &Catalog, name: &str) -> Vec<u64> {
    catalog.topic(name).unwrap().shards.iter().map(|uid| uid.0).collect()
}

/// A conversation: create, refuse, delete, create again. Ids go up and are never reused.
#[test]
fn conversation() {
    let mut catalog = cluster(1);
    assert!(matches!(catalog.run(create("a", 2)), Ok(CatalogAnswer::Created(_))));
    assert!(matches!(catalog.run(create("b", 1)), Ok(CatalogAnswer::Created(_))));
    assert_eq!((uids(&catalog, "a"), uids(&catalog, "b")), (vec![1, 2], vec![3]));
    let taken = catalog.run(create("a", 1)).unwrap_err();
    assert_eq!(taken.to_string(), "topic \"a\" exists already");
    assert_eq!(catalog.shard_count(), 3);

    let Ok(CatalogAnswer::Deleted(gone)) = catalog.run(delete("a")) else { panic!("a was there") };
    assert_eq!(gone.id, TopicId(0));
    assert_eq!(catalog.run(delete("a")), Err(CatalogError::NotFound("a".into())));
    catalog.run(create("a", 1)).unwrap();
    assert_eq!(uids(&catalog, "a"), [4]);
    assert_eq!(catalog.topic("a").unwrap().id, TopicId(2));
    assert_eq!(catalog.topics().map(|topic| &*topic.name).collect::<Vec<_>>(), ["a", "b"]);
}

/// A shard is found by its uid, while its topic is there.
#[test]
fn shards_by_uid() {
    let mut catalog = cluster(1);
    catalog.run(create("a", 2)).unwrap();
    catalog.run(create("b", 3)).unwrap();
    let found = |catalog: &Catalog, uid| catalog.shard(ShardUid(uid)).map(|(topic, n)| (topic.name.to_string(), n.0));
    assert_eq!(found(&catalog, 2), Some(("a".to_owned(), 1)));
    assert_eq!(found(&catalog, 3), Some(("b".to_owned(), 0)));
    assert_eq!(found(&catalog, 5), Some(("b".to_owned(), 2)));
    assert_eq!((found(&catalog, 0), found(&catalog, 6)), (None, None));
    catalog.run(delete("b")).unwrap();
    assert_eq!((found(&catalog, 2), found(&catalog, 3)), (Some(("a".to_owned(), 1)), None));
}

/// Shard counts, replication factors and segment sizes outside of their limits are refused, and change nothing.
#[test]
fn limits() {
    let mut catalog = cluster(1);
    let before = catalog.clone();
    assert_eq!(catalog.run(create("t", 0)), Err(CatalogError::ShardCount(0)));
    assert_eq!(catalog.run(create("t", TOPIC_SHARDS_MAX + 1)), Err(CatalogError::ShardCount(TOPIC_SHARDS_MAX + 1)));
    let many = REPLICATION_FACTOR_MAX + 1;
    assert_eq!(catalog.run(create_with("t", 1, many)), Err(CatalogError::ReplicationFactor(many)));
    let small = CreateTopic { name: "t".into(), shards: 1, segment_bytes: 1, ..CreateTopic::default() };
    assert_eq!(catalog.run(Command::CreateTopic(small)), Err(CatalogError::SegmentBytes(1)));
    assert_eq!(catalog, before);

    let mut made = 0;
    let refused = loop {
        match catalog.run(create(&format!("t{made}"), TOPIC_SHARDS_MAX)) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(made, NODE_SHARDS_MAX / TOPIC_SHARDS_MAX as usize);
    assert!(matches!(refused, CatalogError::TooManyShards { .. }));

    // Another node has room for those with one replica, but not for those that want two.
    catalog.run(claim(2, 9)).unwrap();
    catalog.run(create_with("one", TOPIC_SHARDS_MAX, 1)).unwrap();
    assert!(matches!(catalog.run(create("two", TOPIC_SHARDS_MAX)), Err(CatalogError::TooManyShards { .. })));
}

/// Names that could leave their directory, or a terminal, are refused with a readable text.
#[test]
fn names() {
    for name in ["a", "A.b_c-9", "...", &"x".repeat(249)] {
        assert_eq!(validate_topic_name(name), Ok(()));
    }
    for name in ["", ".", "..", "a/b", "../x", "a\0b", "a b", "ä", "a\n", &"x".repeat(250), &"y".repeat(1024)] {
        let text = validate_topic_name(name).unwrap_err().to_string();
        assert!(text.len() < 400 && text.chars().all(|char| (' '..='~').contains(&char)), "{text}");
    }
    assert_eq!(
        validate_topic_name("a\0/b").unwrap_err().to_string(),
        "topic name \"a\\u{0}/b\" has other characters; use 1 to 249 letters, digits, '.', '_' or '-', but not \".\" or \"..\""
    );
}

/// A topic with one shard per reactor has one on each; single-shard topics spread too.
#[test]
fn reactors() {
    for reactors in 1..9 {
        for topic in 0..20 {
            let mut used: Vec<u32> =
                (0..reactors).map(|shard| reactor_of(TopicId(topic), ShardNumber(shard), reactors).0).collect();
            used.sort_unstable();
            assert_eq!(used, (0..reactors).collect::<Vec<_>>());
        }
    }
    assert_ne!(reactor_of(TopicId(0), ShardNumber(0), 2), reactor_of(TopicId(1), ShardNumber(0), 2));
}

/// Keys go to the hash modulo the shard count: clients rely on it.
#[test]
fn keys() {
    let mut catalog = cluster(1);
    catalog.run(create("t", 3)).unwrap();
    let topic = catalog.topic("t").unwrap();
    assert_eq!(topic.shard_of_key(10), ShardNumber(1));
    assert_eq!(topic.shard_of_key(u64::MAX), ShardNumber(0));
}

/// A new topic has its replicas on distinct nodes; nodes have as many replicas and leaders as the others, and so have
/// their reactors, within the one that a swap cannot mend.
#[test]
fn new_topics_are_even() {
    for nodes in 1..7 {
        for factor in 1..5 {
            let mut catalog = cluster(nodes);
            catalog.run(create_with("t", 12 * nodes as u32, factor)).unwrap();
            let topic = catalog.topic("t").unwrap();
            assert_eq!(topic.replication_factor, factor);
            for replicas in &topic.replicas {
                assert_eq!(replicas.nodes.len() as u64, nodes.min(factor.into()));
                assert_eq!(replicas.founders(replicas.nodes[0]).unwrap().len(), replicas.nodes.len());
            }
            for load in placement::Load::of(&catalog).nodes.values() {
                assert_eq!(load.all.leaders, 12, "{nodes} nodes, {factor} replicas");
                assert_eq!(load.all.replicas as u64, 12 * nodes.min(factor.into()));
                let leaders = load.reactors.iter().map(|reactor| reactor.leaders);
                assert!(spread(leaders) <= 2, "{nodes} nodes, {factor} replicas");
            }
        }
    }
}

/// Nodes that are being drained get nothing; without a wish there are three replicas.
#[test]
fn drained_nodes_get_nothing() {
    let mut catalog = cluster(4);
    catalog.run(set_state(2, NodeState::Draining)).unwrap();
    catalog.run(create("t", 1)).unwrap();
    assert_eq!(catalog.topic("t").unwrap().replication_factor, 3);
    let mut on = nodes(&replicas(&catalog, "t", 0));
    on.sort_unstable();
    assert_eq!(on, [1, 3, 4]);
}
