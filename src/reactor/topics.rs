//! The topics as the front doors see them: an immutable table, replaced as a whole.
//!
//! Reactor 0 publishes; every thread keeps a `TopicReader` and pays one atomic load per look-up
//! while nothing changes. A topic is published after its shards serve, and withdrawn before they
//! close.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::ids::{ReactorNumber, ShardUid, TopicId};

/// Where a shard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardPlace {
    /// Which shard.
    pub uid: ShardUid,
    /// The reactor that owns it.
    pub reactor: ReactorNumber,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicView {
    /// Its name.
    pub name: Arc<str>,
    /// Its identity.
    pub id: TopicId,
    /// Its shards by number; at least one.
    pub shards: Vec<ShardPlace>,
    /// Numbers of the shards of each reactor.
    pub by_reactor: Vec<Vec<u32>>,
    /// Bytes kept per shard; 0: no limit.
    pub retention_bytes_max: u64,
    /// Age kept, ms; 0: no limit.
    pub retention_age_ms_max: u64,
    /// Largest segment file; 0: the node's setting.
    pub segment_bytes: u64,
    /// When it was made, µs since the Unix epoch.
    pub created_us: i64,
}

impl TopicView {
    /// Fills `by_reactor` from `shards`.
    #[must_use]
    pub fn placed(mut self, reactors: usize) -> TopicView {
        assert!(!self.shards.is_empty(), "a topic has at least one shard");
        self.by_reactor = vec![Vec::new(); reactors];
        for (number, place) in (0u32..).zip(&self.shards) {
            self.by_reactor[place.reactor.0 as usize].push(number);
        }
        self
    }
}

/// All topics by name.
pub type TopicTable = HashMap<Arc<str>, Arc<TopicView>>;

/// The published table; shared by all threads.
#[derive(Debug, Default)]
pub struct Topics {
    version: AtomicU64,
    table: Mutex<Arc<TopicTable>>,
}

impl Topics {
    /// The table as it is now.
    pub fn snapshot(&self) -> Arc<TopicTable> {
        // Nothing under this lock can panic half-way, so a poisoned one is still whole.
        Arc::clone(&self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds topics, or replaces those of the same name.
    pub fn publish(&self, views: impl IntoIterator<Item = Arc<TopicView>>) {
        self.change(|table| table.extend(views.into_iter().map(|view| (Arc::clone(&view.name), view))));
    }

    /// Takes a topic out.
    pub fn withdraw(&self, name: &str) {
        self.change(|table| drop(table.remove(name)));
    }

    fn change(&self, change: impl FnOnce(&mut TopicTable)) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut table));
        // Inside the lock and after the change: who sees the new version gets the new table.
        self.version.fetch_add(1, Ordering::Release);
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
    pub fn get(&self, name: &str) -> Option<Arc<TopicView>> {
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

    fn view(name: &str, id: u64) -> Arc<TopicView> {
        let place = |uid, reactor| ShardPlace { uid: ShardUid(uid), reactor: ReactorNumber(reactor) };
        let view = TopicView {
            name: name.into(),
            id: TopicId(id),
            shards: vec![place(5, 1), place(6, 0), place(7, 1)],
            by_reactor: Vec::new(),
            retention_bytes_max: 0,
            retention_age_ms_max: 0,
            segment_bytes: 0,
            created_us: 0,
        };
        Arc::new(view.placed(2))
    }

    /// A reader sees each change at its next look-up, and a snapshot taken before does not move.
    #[test]
    fn readers_follow() {
        let topics = Arc::new(Topics::default());
        let reader = TopicReader::new(Arc::clone(&topics));
        assert_eq!(reader.get("a"), None);
        topics.publish([view("a", 1)]);
        let before = topics.snapshot();
        assert_eq!(reader.get("a").unwrap().by_reactor, [vec![1], vec![0, 2]]);
        topics.withdraw("a");
        assert_eq!(reader.get("a"), None);
        topics.publish([view("a", 2)]);
        assert_eq!(reader.get("a").unwrap().id, TopicId(2));
        assert_eq!(before.get("a").unwrap().id, TopicId(1));
    }
}
