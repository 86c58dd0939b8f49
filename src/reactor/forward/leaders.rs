//! Who leads each shard, as this node knows it: from its own replicas at once, from others as it hears of them.
//! Shared by all threads; for routing and for `GetServers`, never for deciding anything: whoever is asked and
//! does not lead says so.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;

use crate::ids::{NodeId, ShardUid, Term};

/// What is known of a shard's leadership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leader {
    /// Who leads, if somebody does.
    pub node: Option<NodeId>,
    /// In which term; 0: only hearsay.
    pub term: Term,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    leader: Leader,
    /// From this node's own replica.
    own: bool,
    /// Most of the voters are heard, as far as is known: else it commits nothing, or that is not known here.
    majority: bool,
    /// When it was last heard, on the monotonic clock of whoever noted it.
    heard_us: u64,
}

/// The table.
#[derive(Debug)]
pub struct Leaders {
    known: Mutex<BTreeMap<ShardUid, Known>>,
    version: AtomicU64,
    changed: watch::Sender<()>,
}

impl Default for Leaders {
    fn default() -> Leaders {
        Leaders { known: Mutex::default(), version: AtomicU64::new(0), changed: watch::Sender::new(()) }
    }
}

impl Leaders {
    /// Notes what this node's own replica says.
    pub fn note_own(&self, uid: ShardUid, leader: Leader, now_us: u64) {
        self.change(|known| {
            let before = known.get(&uid).filter(|before| before.own && before.leader == leader).copied();
            // Whoever was just elected has been heard by most.
            let majority = before.is_none_or(|before| before.majority);
            known.insert(uid, Known { leader, own: true, majority, heard_us: now_us });
            before.is_none()
        });
    }

    /// Notes whether most of the voters of a shard with a replica here are heard.
    pub fn note_majority(&self, uid: ShardUid, majority: bool) {
        self.change(|known| match known.get_mut(&uid) {
            Some(known_uid) if known_uid.own => {
                std::mem::replace(&mut known_uid.majority, majority) != majority && known_uid.leader.node.is_some()
            }
            Some(_) | None => false,
        });
    }

    /// Notes what another node says, unless there is an own replica, which knows better, or it is of an older term.
    pub fn note_heard(&self, uid: ShardUid, leader: Leader, now_us: u64) {
        self.change(|known| match known.get_mut(&uid) {
            Some(before) if before.own => false,
            Some(before) => {
                before.heard_us = now_us;
                if leader.term != Term(0) && leader.term < before.leader.term {
                    return false;
                }
                let term = leader.term.max(before.leader.term);
                let leader = Leader { term, ..leader };
                std::mem::replace(&mut before.leader, leader) != leader
            }
            None => known.insert(uid, Known { leader, own: false, majority: true, heard_us: now_us }).is_none(),
        });
    }

    /// Forgets what this node's own replica said: it is gone.
    pub fn forget_own(&self, uid: ShardUid) {
        self.change(|known| match known.get(&uid) {
            Some(known_uid) if known_uid.own => known.remove(&uid).is_some(),
            Some(_) | None => false,
        });
    }

    /// Forgets all but the shards for which `keep` says so: of topics that are gone.
    pub fn retain(&self, keep: impl Fn(ShardUid) -> bool) {
        self.change(|known| {
            let before = known.len();
            known.retain(|uid, known| known.own || keep(*uid));
            known.len() != before
        });
    }

    /// What is known of a shard.
    pub fn get(&self, uid: ShardUid) -> Option<Leader> {
        self.lock().get(&uid).map(|known| known.leader)
    }

    /// How many shards a node leads, as this node's own replicas say.
    pub fn led_by(&self, node: NodeId) -> usize {
        self.lock().values().filter(|known| known.own && known.leader.node == Some(node)).count()
    }

    /// What is known of shards, in the order asked for.
    pub fn get_all(&self, uids: impl IntoIterator<Item = ShardUid>) -> Vec<Leader> {
        let known = self.lock();
        uids.into_iter().map(|uid| known.get(&uid).map(|known| known.leader).unwrap_or_default()).collect()
    }

    /// The same for people and clients: a leader without a majority is none.
    pub fn serving(&self, uids: impl IntoIterator<Item = ShardUid>) -> Vec<Leader> {
        let known = self.lock();
        let serving = |known: &Known| Leader { node: known.leader.node.filter(|_| known.majority), ..known.leader };
        uids.into_iter().map(|uid| known.get(&uid).map(serving).unwrap_or_default()).collect()
    }

    /// Those of `uids` of which nothing was heard since `since_us`, and which have no replica here.
    pub fn stale(&self, uids: impl IntoIterator<Item = ShardUid>, since_us: u64) -> Vec<ShardUid> {
        let known = self.lock();
        let is_fresh = |known: &Known| known.own || (known.heard_us >= since_us && known.leader.node.is_some());
        uids.into_iter().filter(|uid| !known.get(uid).is_some_and(is_fresh)).collect()
    }

    /// Goes up with every change.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardUid, Known>> {
        // Nothing under this lock can panic half-way, so a poisoned one is still whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<ShardUid, Known>) -> bool) {
        let mut known = self.lock();
        if change(&mut known) {
            // Inside the lock and after the change: who sees the new version sees the new table.
            self.version.fetch_add(1, Ordering::Release);
            drop(known);
            self.changed.send_replace(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led_by(node: u64, term: u64) -> Leader {
        Leader { node: Some(NodeId(node)), term: Term(term) }
    }

    /// The own replica's word stands against hearsay; of two others the later term; and only changes are told.
    #[test]
    fn who_is_believed() {
        let leaders = Leaders::default();
        let uid = ShardUid(1);
        let mut watch = leaders.watch();
        leaders.note_heard(uid, led_by(2, 0), 1);
        leaders.note_heard(uid, led_by(3, 5), 2);
        leaders.note_heard(uid, led_by(4, 4), 3);
        assert_eq!(leaders.get(uid), Some(led_by(3, 5)));
        // Hearsay without a term is the newest there is: whoever acknowledges leads.
        leaders.note_heard(uid, led_by(4, 0), 4);
        assert_eq!(leaders.get(uid), Some(led_by(4, 5)));
        leaders.note_own(uid, led_by(1, 1), 5);
        leaders.note_heard(uid, led_by(4, 9), 6);
        assert_eq!(leaders.get(uid), Some(led_by(1, 1)));
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        let version = leaders.version();
        leaders.note_own(uid, led_by(1, 1), 7);
        assert!(!watch.has_changed().unwrap() && leaders.version() == version);
        assert_eq!((leaders.led_by(NodeId(1)), leaders.led_by(NodeId(4))), (1, 0));
        leaders.forget_own(uid);
        assert_eq!((leaders.get(uid), leaders.led_by(NodeId(1))), (None, 0));
        assert!(watch.has_changed().unwrap() && leaders.version() > version);
    }

    /// A leader without a majority is told as none until it has one, or another one leads; watchers hear of both. Requests go to it
    /// all the same.
    #[test]
    fn no_majority() {
        let (leaders, uid) = (Leaders::default(), ShardUid(1));
        let mut watch = leaders.watch();
        let mut told = |what: &str, expected: Leader| {
            assert_eq!(leaders.serving([uid]), [expected], "{what}");
            std::mem::replace(&mut watch, leaders.watch()).has_changed().unwrap()
        };
        leaders.note_own(uid, led_by(1, 5), 1);
        assert!(told("elected", led_by(1, 5)));
        leaders.note_majority(uid, true);
        assert!(!told("nothing new", led_by(1, 5)));
        leaders.note_majority(uid, false);
        let nobody = Leader { node: None, term: Term(5) };
        assert!(told("no majority", nobody));
        leaders.note_own(uid, led_by(1, 5), 2);
        assert!(!told("still none", nobody));
        assert_eq!(leaders.get(uid), Some(led_by(1, 5)));
        leaders.note_majority(uid, true);
        assert!(told("a majority again", led_by(1, 5)));
        leaders.note_majority(uid, false);
        leaders.note_own(uid, led_by(2, 6), 3);
        assert!(told("another one leads", led_by(2, 6)));
        let other = ShardUid(2);
        leaders.note_heard(other, led_by(3, 7), 4);
        leaders.note_majority(other, false);
        assert_eq!(leaders.serving([other, ShardUid(3)]), [led_by(3, 7), Leader::default()]);
    }

    /// What was not heard lately, or has no leader, is to be asked for; own replicas never are.
    #[test]
    fn stale() {
        let leaders = Leaders::default();
        leaders.note_own(ShardUid(1), Leader::default(), 0);
        leaders.note_heard(ShardUid(2), led_by(2, 1), 10);
        leaders.note_heard(ShardUid(3), led_by(2, 1), 50);
        leaders.note_heard(ShardUid(4), Leader::default(), 50);
        let all = || (1..=5).map(ShardUid);
        assert_eq!(leaders.stale(all(), 40), [ShardUid(2), ShardUid(4), ShardUid(5)]);
        leaders.retain(|uid| uid == ShardUid(3));
        assert_eq!(leaders.stale(all(), 40), [ShardUid(2), ShardUid(4), ShardUid(5)]);
        assert_eq!(leaders.get(ShardUid(2)), None);
        let known = leaders.get_all([ShardUid(3), ShardUid(2)]);
        assert_eq!(known, [led_by(2, 1), Leader::default()]);
    }
}
