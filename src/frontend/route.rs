//! Which shard answers a call: from the topic's view, what the call says, and who leads.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use crate::{
    frontend::status::{CallError, Code},
    ids::{NodeId, ReactorNumber, TopicId},
    reactor::{
        forward::leaders::Leader,
        node::Node,
        topics::{PlacedTopic, ShardPlace},
    },
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
/// of the key, modulo the shard count); else one of `near` by turns; else, if there are none, any, by turns. `turn`
/// counts calls.
///
/// # Errors
/// `NOT_FOUND` for a named shard beyond the last one.
pub fn produce_shard(
    topic: &PlacedTopic,
    named: Option<u32>,
    key_hash: Option<u64>,
    near: &[u32],
    turn: u32,
) -> Result<u32, CallError> {
    if let Some(number) = named {
        return numbered_shard(topic, number).map(|_| number);
    }
    if let Some(hash) = key_hash {
        return Ok(topic.view.shard_of_key(hash).0);
    }
    match near {
        [] => Ok(u32::try_from(spread(turn, topic.shards.len())).expect("a topic has at most TOPIC_SHARDS_MAX shards")),
        near => Ok(near[spread(turn, near.len())]),
    }
}

/// The shards that are nearest to a call without a key: those that `reactor` of node `me` leads; else those that any
/// reactor of it leads; else those that a living node leads; else none is nearer than another.
pub fn near(
    topic: &PlacedTopic,
    leaders: &[Leader],
    me: NodeId,
    reactor: Option<ReactorNumber>,
    is_alive: impl Fn(NodeId) -> bool,
) -> Vec<u32> {
    let numbered = || (0u32..).zip(topic.shards.iter().zip(leaders));
    let led = |by: &dyn Fn(NodeId, &ShardPlace) -> bool| -> Vec<u32> {
        let led = numbered().filter(|(_, (place, leader))| leader.node.is_some_and(|node| by(node, place)));
        led.map(|(number, _)| number).collect()
    };
    let here = led(&|node, place| node == me && Some(place.reactor) == reactor);
    if !here.is_empty() {
        return here;
    }
    let on_this_node = led(&|node, _| node == me);
    if !on_this_node.is_empty() { on_this_node } else { led(&|node, _| is_alive(node)) }
}

/// What is near, as one reactor remembers it: looked for again when a leader or a topic has changed.
#[derive(Debug, Default)]
pub struct Near {
    versions: Cell<(u64, u64)>,
    by_topic: RefCell<BTreeMap<TopicId, Rc<[u32]>>>,
}

impl Near {
    /// The shards of `topic` that are near to a reactor. As leaders die without a change of the table, the living are looked
    /// at when it changes.
    pub fn get(&self, node: &Node, topic: &PlacedTopic, reactor: ReactorNumber) -> Rc<[u32]> {
        let versions = (node.topics.version(), node.leaders.version());
        if self.versions.replace(versions) != versions {
            self.by_topic.borrow_mut().clear();
        }
        let mut by_topic = self.by_topic.borrow_mut();
        Rc::clone(by_topic.entry(topic.view.id).or_insert_with(|| near_now(node, topic, Some(reactor)).into()))
    }
}

/// As `near`, from what the node knows now.
pub fn near_now(node: &Node, topic: &PlacedTopic, reactor: Option<ReactorNumber>) -> Vec<u32> {
    let Some(identity) = node.identity() else { return Vec::new() };
    let leaders = node.leaders.get_all(topic.shards.iter().map(|place| place.uid));
    near(topic, &leaders, identity.node, reactor, |node_id| node.liveness.is_alive(node_id))
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
        assert_eq!(produce_shard(&topic, Some(3), Some(4), &[0], 0), Ok(3));
        let error = produce_shard(&topic, Some(4), None, &[], 0).unwrap_err();
        assert_eq!((error.code, error.definite), (Code::NotFound, true));
        assert!(error.message.contains("4 shard(s)"), "{}", error.message);
        assert_eq!(numbered_shard(&topic, 2).unwrap().uid, ShardUid(12));
        assert!(numbered_shard(&topic, u32::MAX).is_err());
    }

    /// A key goes to the same shard from every reactor.
    #[test]
    fn keyed() {
        let topic = topic();
        for near in [&[][..], &[0], &[1, 2]] {
            for turn in 0..8 {
                assert_eq!(produce_shard(&topic, None, Some(4 * 1000 + 3), near, turn), Ok(3));
            }
        }
    }

    fn counts(near: &[u32], turns: impl Iterator<Item = u32>) -> [u32; 4] {
        let topic = spread_over(4, 2);
        let mut counts = [0; 4];
        for turn in turns {
            let shard = produce_shard(&topic, None, None, near, turn).unwrap();
            counts[shard as usize] += 1;
        }
        counts
    }

    /// Without a key, a call goes to what is near, and the shards there get equal shares, also when only every second call is
    /// for this topic. If nothing is nearer, all are used.
    #[test]
    fn unkeyed() {
        let near = |count: u32, wanted: u32| count.abs_diff(wanted) <= wanted / 50;
        for step in [1, 2, 3] {
            let turns = || (0..).step_by(step).take(4000);
            let two = counts(&[0, 2], turns());
            assert!(near(two[0], 2000) && near(two[2], 2000) && two[1] + two[3] == 0, "{two:?}");
            let all = counts(&[], turns());
            assert!(all.iter().all(|count| near(*count, 1000)), "{all:?}");
        }
    }

    /// A reactor's own leaders come first, then its node's, then those that live.
    #[test]
    fn nearest() {
        let topic = spread_over(4, 2);
        let (me, other, dead) = (NodeId(1), NodeId(2), NodeId(3));
        let led = |nodes: [NodeId; 4]| nodes.map(|node| Leader { node: Some(node), ..Leader::default() });
        let find = |leaders: &[Leader], reactor| near(&topic, leaders, me, reactor, |node| node != dead);
        let zero = Some(ReactorNumber(0));
        assert_eq!(find(&led([me, me, me, other]), zero), [0, 2]);
        assert_eq!(find(&led([me, me, me, other]), None), [0, 1, 2]);
        assert_eq!(find(&led([other, me, dead, other]), zero), [1]);
        assert_eq!(find(&led([other, other, dead, other]), zero), [0, 1, 3]);
        assert_eq!(find(&[Leader::default(); 4], zero), [] as [u32; 0]);
    }

    /// No name means the default topic.
    #[test]
    fn default_topic() {
        assert_eq!((topic_name(""), topic_name("t")), ("default", "t"));
    }
}
