//! The topics as the front doors see them: an immutable table, replaced as a whole.
//!
//! Reactor 0 publishes; every thread keeps a `TopicReader` and pays one atomic load per look-up
//! while nothing changes. A topic is published after its shards serve, and withdrawn before they
//! close.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use crate::{
    catalog::{self, TopicView},
    ids::{NodeId, ReactorNumber, ShardNumber, ShardUid},
};

/// Where a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardPlace {
    /// Which shard.
    pub uid: ShardUid,
    /// The reactor of this node that owns its replica here, if there is one, and else is the first to look for its leader.
    pub reactor: ReactorNumber,
    /// Decides the reactor on each node (`peer::Destination`).
    pub slot: u64,
    /// Whether this node is to hold a replica (for now, or soon).
    pub here: bool,
}

/// One topic, with the places of its shards on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedTopic {
    /// As the catalog has it.
    pub view: Arc<TopicView>,
    /// Its shards by number; at least one.
    pub shards: Vec<ShardPlace>,
    /// Numbers of the shards of each reactor.
    pub by_reactor: Vec<Vec<u32>>,
    /// All replicas of all its shards are on this node, so that each shard is led by its own reactor here.
    pub alone: bool,
}

impl PlacedTopic {
    /// Places a topic on a node with that many reactors.
    ///
    /// # Panics
    /// When there are no reactors.
    pub fn new(view: Arc<TopicView>, reactors: usize, me: NodeId) -> PlacedTopic {
        let count = u32::try_from(reactors).expect("at most REACTORS_MAX");
        let place = |(number, uid): (ShardNumber, ShardUid)| ShardPlace {
            uid,
            reactor: catalog::reactor_of(view.id, number, count),
            slot: catalog::slot_of(view.id, number),
            here: view.replicas.get(number.0 as usize).is_some_and(|replicas| replicas.has(me)),
        };
        let shards: Vec<_> = view.numbered_shards().map(place).collect();
        assert!(!shards.is_empty(), "a topic has at least one shard");
        let mut by_reactor = vec![Vec::new(); reactors];
        for (number, place) in (0u32..).zip(&shards) {
            by_reactor[place.reactor.0 as usize].push(number);
        }
        let alone = view.replicas.iter().all(|replicas| replicas.nodes == [me] && replicas.target.is_empty());
        PlacedTopic { view, shards, by_reactor, alone }
    }
}

/// All topics by name.
pub type TopicTable = BTreeMap<Arc<str>, Arc<PlacedTopic>>;

/// The published table; shared by all threads.
#[derive(Debug)]
pub struct Topics {
    version: AtomicU64,
    table: Mutex<Arc<TopicTable>>,
    /// Topic and number of each shard, for those who are asked by uid.
    shards: Mutex<BTreeMap<ShardUid, (Arc<PlacedTopic>, u32)>>,
    changed: watch::Sender<()>,
}

impl Default for Topics {
    fn default() -> Topics {
        Topics {
            version: AtomicU64::new(0),
            table: Mutex::default(),
            shards: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Topics {
    /// The table as it is now.
    pub fn snapshot(&self) -> Arc<TopicTable> {
        // Nothing under this lock can panic half-way, so a poisoned one is still whole.
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The topic that a shard belongs to, and its number there.
    pub fn shard(&self, uid: ShardUid) -> Option<(Arc<PlacedTopic>, u32)> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner).get(&uid).cloned()
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Goes up with every change.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Adds topics, or replaces those of the same name.
    pub fn publish(&self, topics: impl IntoIterator<Item = Arc<PlacedTopic>>) {
        let topics: Vec<_> = topics.into_iter().collect();
        self.change(|table, shards| {
            #[cfg(test)]
            catalog::planted::panic_in(catalog::planted::Place::Publish, topics.iter().map(|topic| &*topic.view.name));
            for topic in topics {
                if let Some(before) = table.insert(Arc::clone(&topic.view.name), Arc::clone(&topic)) {
                    before.shards.iter().for_each(|place| drop(shards.remove(&place.uid)));
                }
                let numbered = (0u32..).zip(&topic.shards);
                shards.extend(numbered.map(|(number, place)| (place.uid, (Arc::clone(&topic), number))));
            }
        });
    }

    /// Takes a topic out.
    pub fn withdraw(&self, name: &str) {
        self.change(|table, shards| {
            if let Some(topic) = table.remove(name) {
                topic.shards.iter().for_each(|place| drop(shards.remove(&place.uid)));
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut TopicTable, &mut BTreeMap<ShardUid, (Arc<PlacedTopic>, u32)>)) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut table), &mut self.shards.lock().unwrap_or_else(PoisonError::into_inner));
        // Inside the lock and after the change: who sees the new version gets the new table.
        self.version.fetch_add(1, Ordering::Release);
        drop(table);
        self.changed.send_replace(());
    }
}

/// One thread's cached view of `Topics`.
#[derive(Debug)]
pub struct TopicReader {
    topics: Arc<Topics>,
    cached: RefCell<(u64, Arc<TopicTable>)>,
}

impl TopicReader {
    /// A reader that has seen nothing.
    pub fn new(topics: Arc<Topics>) -> TopicReader {
        // The version comes first: if it is old by the time the table is read, the next look-up reads again.
        let version = topics.version.load(Ordering::Acquire);
        let table = topics.snapshot();
        TopicReader { topics, cached: RefCell::new((version, table)) }
    }

    /// The topic of that name, if there is one now.
    pub fn get(&self, name: &str) -> Option<Arc<PlacedTopic>> {
        let mut cached = self.cached.borrow_mut();
        let version = self.topics.version.load(Ordering::Acquire);
        if cached.0 != version {
            *cached = (version, self.topics.snapshot());
        }
        cached.1.get(name).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TopicId;

    fn topic(name: &str, id: u64) -> Arc<PlacedTopic> {
        let view = TopicView {
            name: name.into(),
            id: TopicId(id),
            shards: vec![ShardUid(5), ShardUid(6), ShardUid(7)],
            replication_factor: 1,
            replicas: vec![],
            retention_bytes_max: 0,
            retention_age_ms_max: 0,
            segment_bytes: 0,
            created_us: 0,
        };
        Arc::new(PlacedTopic::new(Arc::new(view), 2, NodeId(1)))
    }

    /// A reader sees each change at its next look-up, and a snapshot taken before does not move.
    #[test]
    fn readers_follow() {
        let topics = Arc::new(Topics::default());
        let reader = TopicReader::new(Arc::clone(&topics));
        assert_eq!(reader.get("a"), None);
        topics.publish([topic("a", 1)]);
        let before = topics.snapshot();
        assert_eq!(reader.get("a").unwrap().by_reactor, [vec![1], vec![0, 2]]);
        let (found, number) = topics.shard(ShardUid(7)).unwrap();
        assert_eq!((&*found.view.name, number, found.alone), ("a", 2, true));
        topics.withdraw("a");
        assert!(topics.shard(ShardUid(7)).is_none());
        assert_eq!(reader.get("a"), None);
        topics.publish([topic("a", 2)]);
        assert_eq!(reader.get("a").unwrap().view.id, TopicId(2));
        assert_eq!(before.get("a").unwrap().view.id, TopicId(1));
    }
}
