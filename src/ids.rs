//! The numbers of Ringlog, each with a type of its own, so that none can be taken for another.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A record's place in its shard: dense from 0, never reused.
    Offset(u64)
);
number!(
    /// Raft's index of an entry in its group's log. The first entry of a group has index 0.
    Index(u64)
);
number!(
    /// Raft's term.
    Term(u64)
);
number!(
    /// A byte's place in a file.
    Position(u64)
);
number!(
    /// One shard, or the catalog, for good: never reused, not even after the topic is deleted.
    ShardUid(u64)
);
number!(
    /// A shard's number in its topic, from 0.
    ShardNumber(u32)
);
number!(
    /// A topic for good; a topic of the same name made later has another.
    TopicId(u64)
);
number!(
    /// A node for good; never reused.
    NodeId(u64)
);
number!(
    /// A reactor of this node, from 0.
    ReactorNumber(u32)
);
number!(
    /// One incarnation of a segment file in its shard, from 1: a recycled file gets a new one,
    /// so that stale bytes in it never parse.
    SegmentSequence(u64)
);

impl ShardUid {
    /// The catalog, group 0.
    pub const CATALOG: ShardUid = ShardUid(0);

    /// The shard whose directory is called this: its number, written in the only way.
    pub fn of_name(name: &str) -> Option<ShardUid> {
        name.parse().ok().filter(|uid: &u64| uid.to_string() == name).map(ShardUid)
    }
}

impl Offset {
    /// The offset `count` records further on.
    ///
    /// # Panics
    /// When it passes `u64::MAX`, which at a billion records a second takes 584 years.
    #[must_use]
    pub fn plus(self, count: u64) -> Offset {
        Offset(self.0.checked_add(count).expect("offsets last for centuries"))
    }
}

impl Index {
    /// The index of the entry after this one.
    #[must_use]
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }
}

/// Raft's name of an entry: unique, ordered by term, then index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// Term of the leader that made the entry.
    pub term: Term,
    /// Its place in the log.
    pub index: Index,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

/// Whether more than half of `all` are such, as a majority has to be; false of nothing.
pub fn is_most<T>(all: impl IntoIterator<Item = T>, is_such: impl Fn(T) -> bool) -> bool {
    let mut surplus = 0_i64;
    for one in all {
        surplus += if is_such(one) { 1 } else { -1 };
    }
    surplus > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half is not most, and nothing is not most of nothing.
    #[test]
    fn most() {
        let voters = [1, 2, 3, 4].map(NodeId);
        let up_to = |last| is_most(&voters, |node| *node <= NodeId(last));
        assert_eq!([1, 2, 3, 4].map(up_to), [false, false, true, true]);
        assert!(!is_most([], |_: NodeId| true));
    }
}
