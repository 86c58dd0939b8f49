//! Which shard answers a call: pure, from the topic's view and what the call says.

use crate::{
    frontend::status::{CallError, Code},
    ids::ReactorNumber,
    reactor::topics::{PlacedTopic, ShardPlace},
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
pub fn numbered_shard(topic: &PlacedTopic, number: u32) -> Result<ShardPlace, CallError> {
    topic.shards.get(number as usize).copied().ok_or_else(|| {
        let (name, count) = (&topic.view.name, topic.shards.len());
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
    topic: &PlacedTopic,
    named: Option<u32>,
    key_hash: Option<u64>,
    reactor: Option<ReactorNumber>,
    turn: u32,
) -> Result<u32, CallError> {
    if let Some(number) = named {
        return numbered_shard(topic, number).map(|_| number);
    }
    if let Some(hash) = key_hash {
        return Ok(topic.view.shard_of_key(hash).0);
    }
    let count = topic.shards.len();
    let local = reactor.and_then(|reactor| topic.by_reactor.get(reactor.0 as usize));
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
    use crate::{
        catalog::TopicView,
        ids::{ShardUid, TopicId},
    };

    /// Four shards on reactors 0 to 3, and two more reactors without one.
    fn topic() -> PlacedTopic {
        spread_over(4, 6)
    }

    fn spread_over(shards: u64, reactors: usize) -> PlacedTopic {
        let view = TopicView {
            name: "t".into(),
            id: TopicId(0),
            shards: (10..10 + shards).map(ShardUid).collect(),
            replication_factor: 1,
            replicas: vec![],
            retention_bytes_max: 0,
            retention_age_ms_max: 0,
            segment_bytes: 0,
            created_us: 0,
        };
        PlacedTopic::new(view.into(), reactors, crate::ids::NodeId(1))
    }

    /// A named shard is obeyed, even against the key and the reactor; one that is not there is refused.
    #[test]
    fn named() {
        let topic = topic();
        assert_eq!(produce_shard(&topic, Some(3), Some(4), Some(ReactorNumber(0)), 0), Ok(3));
        let error = produce_shard(&topic, Some(4), None, None, 0).unwrap_err();
        assert_eq!((error.code, error.definite), (Code::NotFound, true));
        assert!(error.message.contains("4 shard(s)"), "{}", error.message);
        assert_eq!(numbered_shard(&topic, 2).unwrap().uid, ShardUid(12));
        assert!(numbered_shard(&topic, u32::MAX).is_err());
    }

    /// A key goes to the same shard from every reactor.
    #[test]
    fn keyed() {
        let topic = topic();
        for reactor in [None, Some(ReactorNumber(0)), Some(ReactorNumber(1))] {
            for turn in 0..8 {
                assert_eq!(produce_shard(&topic, None, Some(4 * 1000 + 3), reactor, turn), Ok(3));
            }
        }
    }

    fn counts(reactors: usize, reactor: Option<u32>, turns: impl Iterator<Item = u32>) -> [u32; 4] {
        let topic = spread_over(4, reactors);
        let mut counts = [0; 4];
        for turn in turns {
            let shard = produce_shard(&topic, None, None, reactor.map(ReactorNumber), turn).unwrap();
            counts[shard as usize] += 1;
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
            let two = counts(2, Some(0), turns());
            assert!(near(two[0], 2000) && near(two[2], 2000) && two[1] + two[3] == 0, "{two:?}");
            for anywhere in [None, Some(5)] {
                let all = counts(6, anywhere, turns());
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
