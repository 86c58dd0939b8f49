//! Which shard answers a call: pure, from the topic's view and what the call says.

use crate::{
    frontend::status::{CallError, Code},
    ids::ReactorNumber,
    reactor::topics::{ShardPlace, TopicView},
};

/// Name of the topic that an empty name means.
pub const DEFAULT_TOPIC: &str = "default";

/// The topic that `name` means.
pub fn topic_name(name: &str) -> &str {
    if name.is_empty() { DEFAULT_TOPIC } else { name }
}

/// The shard of that number.
///
/// # Errors
/// `NOT_FOUND` beyond the last one.
pub fn numbered_shard(view: &TopicView, number: u32) -> Result<ShardPlace, CallError> {
    view.shards.get(number as usize).copied().ok_or_else(|| {
        let (name, count) = (&view.name, view.shards.len());
        let message = format!("topic {name:?} has {count} shard(s), numbered from 0; there is no shard {number}");
        CallError::new(Code::NotFound, "SHARD_NOT_FOUND", message)
    })
}

/// The number of the shard that a produce goes to: the one it names; else by its key's hash (XXH3-64
/// of the key, modulo the shard count); else one of the reactor it came in on, by turns; else, if
/// that reactor has none or there is no such reactor, any, by turns. `turn` counts calls.
///
/// # Errors
/// `NOT_FOUND` for a named shard beyond the last one.
pub fn produce_shard(
    view: &TopicView,
    named: Option<u32>,
    key_hash: Option<u64>,
    reactor: Option<ReactorNumber>,
    turn: u32,
) -> Result<u32, CallError> {
    let count = view.shards.len();
    if let Some(number) = named {
        return numbered_shard(view, number).map(|_| number);
    }
    if let Some(hash) = key_hash {
        let number = hash % count as u64;
        return Ok(u32::try_from(number).expect("a topic has at most TOPIC_SHARDS_MAX shards"));
    }
    let local = reactor.and_then(|reactor| view.by_reactor.get(reactor.0 as usize));
    match local {
        Some(local) if !local.is_empty() => Ok(local[spread(turn, local.len())]),
        _ => Ok(u32::try_from(spread(turn, count)).expect("a topic has at most TOPIC_SHARDS_MAX shards")),
    }
}

/// A number below `count` for each turn: multiples of the golden ratio, so that any regular
/// selection of turns (every second one, because topics alternate) is still spread evenly.
fn spread(turn: u32, count: usize) -> usize {
    let fraction = u64::from(turn.wrapping_mul(0x9e37_79b9));
    ((fraction * count as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ShardUid, TopicId};

    /// Four shards: 0 and 2 on reactor 0, 1 and 3 on reactor 1; reactor 2 has none.
    fn view() -> TopicView {
        let place = |number: u32| ShardPlace { uid: ShardUid(10 + u64::from(number)), reactor: ReactorNumber(number % 2) };
        let view = TopicView {
            name: "t".into(),
            id: TopicId(1),
            shards: (0..4).map(place).collect(),
            by_reactor: Vec::new(),
            retention_bytes_max: 0,
            retention_age_ms_max: 0,
            segment_bytes: 0,
            created_us: 0,
        };
        view.placed(3)
    }

    /// A named shard is obeyed, even against the key and the reactor; one that is not there is refused.
    #[test]
    fn named() {
        let view = view();
        assert_eq!(produce_shard(&view, Some(3), Some(4), Some(ReactorNumber(0)), 0), Ok(3));
        let error = produce_shard(&view, Some(4), None, None, 0).unwrap_err();
        assert_eq!((error.code, error.definite), (Code::NotFound, true));
        assert!(error.message.contains("4 shard(s)"), "{}", error.message);
        assert_eq!(numbered_shard(&view, 2).unwrap().uid, ShardUid(12));
        assert!(numbered_shard(&view, u32::MAX).is_err());
    }

    /// A key goes to the same shard from every reactor.
    #[test]
    fn keyed() {
        let view = view();
        for reactor in [None, Some(ReactorNumber(0)), Some(ReactorNumber(1))] {
            for turn in 0..8 {
                assert_eq!(produce_shard(&view, None, Some(4 * 1000 + 3), reactor, turn), Ok(3));
            }
        }
    }

    fn counts(reactor: Option<ReactorNumber>, turns: impl Iterator<Item = u32>) -> [u32; 4] {
        let view = view();
        let mut counts = [0; 4];
        for turn in turns {
            counts[produce_shard(&view, None, None, reactor, turn).unwrap() as usize] += 1;
        }
        counts
    }

    /// Without a key, a call stays on its reactor and the shards there get equal shares, also when
    /// only every second call is for this topic. A reactor without shards, and the ops thread, use all.
    #[test]
    fn unkeyed() {
        let near = |count: u32, wanted: u32| count.abs_diff(wanted) <= wanted / 50;
        for step in [1, 2, 3] {
            let turns = || (0..).step_by(step).take(4000);
            let zero = counts(Some(ReactorNumber(0)), turns());
            assert!(near(zero[0], 2000) && near(zero[2], 2000) && zero[1] + zero[3] == 0, "{zero:?}");
            for anywhere in [None, Some(ReactorNumber(2))] {
                let all = counts(anywhere, turns());
                assert!(all.iter().all(|count| near(*count, 1000)), "{all:?}");
            }
        }
    }

    /// No name means the default topic.
    #[test]
    fn default_topic() {
        assert_eq!((topic_name(""), topic_name("t")), ("default", "t"));
    }
}
