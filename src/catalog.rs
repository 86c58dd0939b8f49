//! The catalog: which topics exist, which shards they have, and which reactor owns a shard.
//!
//! A pure state machine, replicated as group 0: the same commands in the same order give the same
//! answers and the same state on every replica. It does no I/O, has no clock and no randomness:
//! whatever is not the same everywhere (a creation time, a cluster id) comes in with the command.
//!
//! Topic ids and shard uids are handed out in order and never reused, not even after a deletion, so
//! that a directory or an entry of a deleted shard is never taken for another's.
//!
//! The limits that commands are checked against here are part of the replicated state: changing
//! `TOPIC_SHARDS_MAX` or `NODE_SHARDS_MAX` changes what a replay of an old log answers.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::Message;

use crate::{
    format::entry::{EntryKind, StoredEntry},
    ids::{NodeId, ReactorNumber, ShardNumber, ShardUid, TopicId},
    limits::{NODE_SHARDS_MAX, SEGMENT_BYTES_LIMIT, SEGMENT_BYTES_MIN, TOPIC_NAME_BYTES_MAX, TOPIC_SHARDS_MAX},
    proto::ringlog::state::v1::{self as state, catalog_command::Command},
    raft::Machine,
};

pub use state::{CatalogCommand, CreateTopic, DeleteTopic, InitCluster};

/// A topic as it is; immutable, shared by all who look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Its name.
    pub name: Arc<str>,
    /// Its identity for good.
    pub id: TopicId,
    /// Its shards' identities; the place in here is the shard's number.
    pub shards: Vec<ShardUid>,
    /// Wanted number of replicas; there are fewer while the cluster is smaller.
    pub replication_factor: u32,
    /// Where each shard's replicas are; as long as `shards`.
    pub replicas: Vec<Replicas>,
    /// Bytes of segment files kept in each shard; 0: no limit.
    pub retention_bytes_max: u64,
    /// Age of the newest record of a segment, ms; 0: no limit.
    pub retention_age_ms_max: u64,
    /// Largest segment file; 0: the node's setting.
    pub segment_bytes: u64,
    /// When it was created, µs since the epoch.
    pub created_us: i64,
}

/// Where the replicas of a shard are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replicas {
    /// Nodes that hold one; the first is to lead. Never empty.
    pub nodes: Vec<NodeId>,
    /// Where they are moving to, the first to lead; empty: they stay.
    pub target: Vec<NodeId>,
}

impl Replicas {
    /// Whether the node holds one now, or is to hold one.
    pub fn has(&self, node: NodeId) -> bool {
        self.nodes.contains(&node) || self.target.contains(&node)
    }
}

impl TopicView {
    /// The shard of that number.
    pub fn shard(&self, number: ShardNumber) -> Option<ShardUid> {
        self.shards.get(number.0 as usize).copied()
    }

    /// The shard of a key's hash (XXH3-64): the hash modulo the number of shards. Documented in the API: clients may
    /// compute it themselves.
    pub fn shard_of_key(&self, key_hash: u64) -> ShardNumber {
        // The machine never makes a topic without shards.
        ShardNumber((key_hash % self.shards.len() as u64) as u32)
    }

    /// Its shards with their numbers, in order.
    pub fn numbered_shards(&self) -> impl Iterator<Item = (ShardNumber, ShardUid)> + '_ {
        (0..).map(ShardNumber).zip(self.shards.iter().copied())
    }
}

/// The reactor that owns a shard, of `reactors`: neighbours go to different ones, so that a topic with
/// one shard per reactor has exactly one on each, and topics with a single shard spread by their ids.
///
/// # Panics
/// When there are no reactors.
pub fn reactor_of(topic: TopicId, shard: ShardNumber, reactors: u32) -> ReactorNumber {
    assert!(reactors > 0, "a node has a reactor");
    ReactorNumber((slot_of(topic, shard) % u64::from(reactors)) as u32)
}

/// What decides a shard's reactor on every node, however many reactors it has.
pub fn slot_of(topic: TopicId, shard: ShardNumber) -> u64 {
    topic.0.wrapping_add(u64::from(shard.0))
}

/// A topic's name that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "topic name \"{shown}\" {what}; use 1 to {TOPIC_NAME_BYTES_MAX} letters, digits, '.', '_' or '-', but not \".\" or \"..\""
)]
pub struct TopicNameError {
    /// The name, escaped and cut for people.
    pub shown: String,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Checks a topic's name: 1 to `TOPIC_NAME_BYTES_MAX` of letters, digits, '.', '_' and '-'; not "." or "..".
///
/// # Errors
/// With a text that shows the name and says what is allowed.
pub fn validate_topic_name(name: &str) -> Result<(), TopicNameError> {
    let what = if name.is_empty() {
        "is empty"
    } else if name.len() > TOPIC_NAME_BYTES_MAX {
        "is too long"
    } else if name == "." || name == ".." {
        "means a directory"
    } else if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        "has other characters"
    } else {
        return Ok(());
    };
    Err(TopicNameError { shown: shown(name), what })
}

/// A name from outside, safe to print and of bounded length.
fn shown(name: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 40;
    let mut shown: String = name.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_default).collect();
    if name.chars().nth(SHOWN_CHARS_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogAnswer {
    /// The cluster has this id: the command's, or the one it had before.
    Cluster {
        /// The id that counts.
        cluster_id: Arc<str>,
    },
    /// The new topic.
    Created(Arc<TopicView>),
    /// The topic that is no more: its shards' data can go.
    Deleted(Arc<TopicView>),
}

/// Why a command did nothing. Every replica computes the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The name is taken.
    #[error("topic \"{}\" exists already", .0.name)]
    AlreadyExists(Arc<TopicView>),
    /// No topic of that name.
    #[error("there is no topic \"{0}\"")]
    NotFound(String),
    /// The name is not allowed.
    #[error(transparent)]
    Name(#[from] TopicNameError),
    /// No shards, or too many in one topic.
    #[error("a topic has 1 to {TOPIC_SHARDS_MAX} shards, not {0}")]
    ShardCount(u32),
    /// The segment size is out of bounds.
    #[error("segment_bytes is 0 (the node's setting) or from {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_LIMIT}, not {0}")]
    SegmentBytes(u64),
    /// The node would have too many shards.
    #[error(
        "{wanted} more shards would pass the node's limit of {NODE_SHARDS_MAX} (it has {present}): delete topics, or use fewer shards"
    )]
    TooManyShards {
        /// Of the new topic.
        wanted: u32,
        /// There are now.
        present: usize,
    },
    /// Not a command of this catalog: a newer version wrote it.
    #[error("the catalog does not know this command; a newer version of ringlog may have written it")]
    UnknownCommand,
}

/// The topics of a cluster.
///
/// Invariants: every shard uid is above 0 and below `shard_uid_next`; every topic id is below `topic_id_next`;
/// every topic has a shard; `shards` is the sum of all topics' shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    cluster_id: Option<Arc<str>>,
    topic_id_next: u64,
    /// At least 1, as 0 is the catalog itself.
    shard_uid_next: u64,
    topics: BTreeMap<Arc<str>, Arc<TopicView>>,
    shards: usize,
}

impl Default for Catalog {
    fn default() -> Catalog {
        Catalog::new()
    }
}

impl Catalog {
    /// An empty catalog.
    pub fn new() -> Catalog {
        Catalog {
            cluster_id: None,
            topic_id_next: 0,
            shard_uid_next: ShardUid::CATALOG.0 + 1,
            topics: BTreeMap::new(),
            shards: 0,
        }
    }

    /// The cluster's identity, once it has one.
    pub fn cluster_id(&self) -> Option<Arc<str>> {
        self.cluster_id.clone()
    }

    /// The topic of that name.
    pub fn topic(&self, name: &str) -> Option<Arc<TopicView>> {
        self.topics.get(name).cloned()
    }

    /// All topics, sorted by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<TopicView>> {
        self.topics.values()
    }

    /// Shards of all topics.
    pub fn shard_count(&self) -> usize {
        self.shards
    }

    /// First shard uid that was never handed out.
    pub fn shard_uid_end(&self) -> ShardUid {
        ShardUid(self.shard_uid_next)
    }

    /// What `apply` would answer to this command now if it is refused: lets a caller refuse without
    /// writing an entry.
    ///
    /// # Errors
    /// Those of the command.
    pub fn check_create(&self, create: &CreateTopic) -> Result<(), CatalogError> {
        validate_topic_name(&create.name)?;
        if let Some(topic) = self.topics.get(create.name.as_str()) {
            return Err(CatalogError::AlreadyExists(topic.clone()));
        }
        if create.shards == 0 || create.shards > TOPIC_SHARDS_MAX {
            return Err(CatalogError::ShardCount(create.shards));
        }
        if create.segment_bytes != 0 && !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_LIMIT).contains(&create.segment_bytes) {
            return Err(CatalogError::SegmentBytes(create.segment_bytes));
        }
        if self.shards + create.shards as usize > NODE_SHARDS_MAX {
            return Err(CatalogError::TooManyShards { wanted: create.shards, present: self.shards });
        }
        Ok(())
    }

    /// Runs one command.
    fn run(&mut self, command: Command) -> Result<CatalogAnswer, CatalogError> {
        match command {
            Command::InitCluster(init) => {
                let cluster_id = self.cluster_id.get_or_insert_with(|| init.cluster_id.into()).clone();
                Ok(CatalogAnswer::Cluster { cluster_id })
            }
            Command::CreateTopic(create) => {
                self.check_create(&create)?;
                let topic = Arc::new(TopicView {
                    name: create.name.into(),
                    id: TopicId(self.topic_id_next),
                    shards: (0..u64::from(create.shards)).map(|n| ShardUid(self.shard_uid_next + n)).collect(),
                    replication_factor: 1,
                    replicas: vec![Replicas { nodes: vec![NodeId(1)], target: vec![] }; create.shards as usize],
                    retention_bytes_max: create.retention_bytes_max,
                    retention_age_ms_max: create.retention_age_ms_max,
                    segment_bytes: create.segment_bytes,
                    created_us: create.created_us,
                });
                self.topic_id_next += 1;
                self.shard_uid_next += u64::from(create.shards);
                self.shards += topic.shards.len();
                self.topics.insert(topic.name.clone(), topic.clone());
                Ok(CatalogAnswer::Created(topic))
            }
            Command::DeleteTopic(delete) => match self.topics.remove(delete.name.as_str()) {
                Some(topic) => {
                    self.shards -= topic.shards.len();
                    Ok(CatalogAnswer::Deleted(topic))
                }
                None => Err(CatalogError::NotFound(shown(&delete.name))),
            },
            _ => Err(CatalogError::UnknownCommand),
        }
    }

    fn from_state(state: state::Catalog) -> Result<Catalog, String> {
        let mut catalog = Catalog {
            cluster_id: (!state.cluster_id.is_empty()).then(|| state.cluster_id.into()),
            topic_id_next: state.topic_id_next,
            shard_uid_next: state.shard_uid_next.max(ShardUid::CATALOG.0 + 1),
            ..Catalog::new()
        };
        for topic in state.topics {
            let name: Arc<str> = topic.name.into();
            let uids_valid = topic.shard_uids.iter().all(|uid| (1..state.shard_uid_next).contains(uid));
            if topic.shard_uids.is_empty() || !uids_valid || topic.topic_id >= state.topic_id_next {
                return Err(format!("topic \"{}\" of the catalog's checkpoint has impossible ids", shown(&name)));
            }
            let view = TopicView {
                name: name.clone(),
                id: TopicId(topic.topic_id),
                replication_factor: 1,
                replicas: vec![Replicas { nodes: vec![NodeId(1)], target: vec![] }; topic.shard_uids.len()],
                shards: topic.shard_uids.into_iter().map(ShardUid).collect(),
                retention_bytes_max: topic.retention_bytes_max,
                retention_age_ms_max: topic.retention_age_ms_max,
                segment_bytes: topic.segment_bytes,
                created_us: topic.created_us,
            };
            catalog.shards += view.shards.len();
            if catalog.topics.insert(name, Arc::new(view)).is_some() {
                return Err("the catalog's checkpoint has a topic twice".to_owned());
            }
        }
        Ok(catalog)
    }
}

impl Machine for Catalog {
    type Answer = Result<CatalogAnswer, CatalogError>;

    fn apply(&mut self, entry: &StoredEntry) -> Self::Answer {
        if entry.header.kind != EntryKind::Command {
            return Err(CatalogError::UnknownCommand);
        }
        match CatalogCommand::decode(entry.payload()) {
            Ok(CatalogCommand { command: Some(command) }) => self.run(command),
            Ok(CatalogCommand { command: None }) | Err(_) => Err(CatalogError::UnknownCommand),
        }
    }

    fn checkpoint(&self) -> Bytes {
        let topics = self.topics.values().map(|topic| state::Topic {
            name: topic.name.to_string(),
            topic_id: topic.id.0,
            shard_uids: topic.shards.iter().map(|uid| uid.0).collect(),
            retention_bytes_max: topic.retention_bytes_max,
            retention_age_ms_max: topic.retention_age_ms_max,
            segment_bytes: topic.segment_bytes,
            created_us: topic.created_us,
            ..Default::default()
        });
        state::Catalog {
            cluster_id: self.cluster_id.as_deref().unwrap_or_default().to_owned(),
            topic_id_next: self.topic_id_next,
            shard_uid_next: self.shard_uid_next,
            topics: topics.collect(),
            ..Default::default()
        }
        .encode_to_vec()
        .into()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let state = state::Catalog::decode(state)
            .map_err(|error| format!("this is not a checkpoint of the catalog: {error}"))?;
        *self = Catalog::from_state(state)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn create(name: &str, shards: u32) -> Command {
        Command::CreateTopic(CreateTopic { name: name.into(), shards, created_us: 7, ..CreateTopic::default() })
    }

    fn delete(name: &str) -> Command {
        Command::DeleteTopic(DeleteTopic { name: name.into() })
    }

    fn uids(catalog: &Catalog, name: &str) -> Vec<u64> {
        catalog.topic(name).unwrap().shards.iter().map(|uid| uid.0).collect()
    }

    /// A conversation: create, refuse, delete, create again. Ids go up and are never reused.
    #[test]
    fn conversation() {
        let mut catalog = Catalog::new();
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

    /// A cluster keeps its first id.
    #[test]
    fn cluster_id_is_given_once() {
        let mut catalog = Catalog::new();
        assert_eq!(catalog.cluster_id(), None);
        for id in ["one", "two"] {
            let answer = catalog.run(Command::InitCluster(InitCluster { cluster_id: id.into(), ..Default::default() }));
            assert_eq!(answer, Ok(CatalogAnswer::Cluster { cluster_id: "one".into() }));
        }
    }

    /// Shard counts and segment sizes outside of their limits are refused, and change nothing.
    #[test]
    fn limits() {
        let mut catalog = Catalog::new();
        assert_eq!(catalog.run(create("t", 0)), Err(CatalogError::ShardCount(0)));
        assert_eq!(catalog.run(create("t", TOPIC_SHARDS_MAX + 1)), Err(CatalogError::ShardCount(TOPIC_SHARDS_MAX + 1)));
        let small = CreateTopic { name: "t".into(), shards: 1, segment_bytes: 1, ..CreateTopic::default() };
        assert_eq!(catalog.run(Command::CreateTopic(small)), Err(CatalogError::SegmentBytes(1)));
        assert_eq!(catalog, Catalog::new());

        let mut made = 0;
        let refused = loop {
            match catalog.run(create(&format!("t{made}"), TOPIC_SHARDS_MAX)) {
                Ok(_) => made += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(made, NODE_SHARDS_MAX / TOPIC_SHARDS_MAX as usize);
        assert!(matches!(refused, CatalogError::TooManyShards { .. }));
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
    fn placement() {
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
        let mut catalog = Catalog::new();
        catalog.run(create("t", 3)).unwrap();
        let topic = catalog.topic("t").unwrap();
        assert_eq!(topic.shard_of_key(10), ShardNumber(1));
        assert_eq!(topic.shard_of_key(u64::MAX), ShardNumber(0));
    }

    /// Bytes that are no checkpoint, or one with impossible ids, are refused and change nothing.
    #[test]
    fn bad_checkpoints() {
        let mut catalog = Catalog::new();
        catalog.run(create("t", 1)).unwrap();
        let before = catalog.clone();
        let impossible = state::Catalog {
            topics: vec![state::Topic { name: "x".into(), shard_uids: vec![5], ..state::Topic::default() }],
            ..state::Catalog::default()
        };
        for bytes in [vec![0xff], impossible.encode_to_vec()] {
            assert!(catalog.restore(&bytes).is_err());
            assert_eq!(catalog, before);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever happened, a checkpoint restores the same state, and no uid is ever given twice.
        #[test]
        fn any_history(steps in prop::collection::vec((any::<bool>(), 0..5u8, 0..4u32), 0..60)) {
            let mut catalog = Catalog::new();
            let mut given = std::collections::BTreeSet::from([ShardUid::CATALOG]);
            for (creates, name, shards) in steps {
                let name = name.to_string();
                let command = if creates { create(&name, shards) } else { delete(&name) };
                if let Ok(CatalogAnswer::Created(topic)) = catalog.run(command) {
                    for uid in &topic.shards {
                        prop_assert!(given.insert(*uid));
                    }
                }
                let mut restored = Catalog::new();
                restored.restore(&catalog.checkpoint()).unwrap();
                prop_assert_eq!(&restored, &catalog);
            }
        }
    }
}
