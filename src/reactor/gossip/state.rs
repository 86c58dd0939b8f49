//! What nodes say of themselves: small items that gossip carries to everybody, the newest of each node wins.
//!
//! ```text
//! state   1 u8, node varint, stamp u64, flags u8 (1: leaving), port u16, reactors varint,
//!         leaders varint, replicas varint, faults varint,
//!         host, gRPC and HTTP address: length u8 and UTF-8 each; more may follow in later versions
//! ```
//! Integers are little-endian. Kinds of items that this version does not know are skipped, and not passed on.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc};

use bytes::{Buf, BufMut};
use foca::{BroadcastHandler, Invalidates};

use super::codec::{GossipFault, Speaker, get_varint, put_varint};
use crate::{ids::NodeId, limits, peer::book::PeerNode};

const STATE: u8 = 1;
const LEAVING: u8 = 1;

/// Longest encoded state: three texts of 255 bytes, and numbers.
pub(super) const STATE_BYTES_MAX: usize = 3 * 256 + 1 + 8 + 1 + 2 + 5 * 10;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeState {
    /// Where it is reached.
    pub address: PeerNode,
    /// It is about to leave: nothing new is to be given to it.
    pub is_leaving: bool,
    /// Shards that it leads.
    pub leaders: u32,
    /// Shards of which it has a replica, serving or not.
    pub replicas: u32,
    /// Of them, those that do not serve.
    pub faults: u32,
}

/// A state and when it was said: microseconds of the speaker's wall clock, raised above every earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub stamp: u64,
    pub state: Arc<NodeState>,
}

/// As an item.
pub(super) fn encode(state: &NodeState, stamp: u64) -> Vec<u8> {
    let address = &state.address;
    let mut bytes = Vec::with_capacity(STATE_BYTES_MAX);
    bytes.push(STATE);
    put_varint(&mut bytes, address.node.0);
    bytes.put_u64_le(stamp);
    bytes.push(if state.is_leaving { LEAVING } else { 0 });
    bytes.put_u16_le(address.port);
    for number in [address.reactors, state.leaders, state.replicas, state.faults] {
        put_varint(&mut bytes, u64::from(number));
    }
    for text in [&address.host, &address.grpc, &address.http] {
        // A longer name is no name (RFC 1035, 2.3.4): better none than a part of one.
        let text = if text.len() <= usize::from(u8::MAX) { text.as_bytes() } else { b"" };
        bytes.push(text.len() as u8);
        bytes.put_slice(text);
    }
    bytes
}

/// `None`: of a kind that this version does not know.
pub(super) fn decode(mut bytes: &[u8]) -> Result<Option<Said>, GossipFault> {
    let buf = &mut bytes;
    match buf.try_get_u8().map_err(|_| GossipFault::CutOff)? {
        STATE => {}
        _ => return Ok(None),
    }
    let node = NodeId(get_varint(buf)?);
    let stamp = buf.try_get_u64_le().map_err(|_| GossipFault::CutOff)?;
    let flags = buf.try_get_u8().map_err(|_| GossipFault::CutOff)?;
    let port = buf.try_get_u16_le().map_err(|_| GossipFault::CutOff)?;
    let [reactors, leaders, replicas, faults] = [get_u32(buf)?, get_u32(buf)?, get_u32(buf)?, get_u32(buf)?];
    let [host, grpc, http] = [get_text(buf)?, get_text(buf)?, get_text(buf)?];
    let address = PeerNode { node, host, port, reactors, grpc, http };
    let state = NodeState { address, is_leaving: flags & LEAVING != 0, leaders, replicas, faults };
    Ok(Some(Said { stamp, state: Arc::new(state) }))
}

fn get_u32(buf: &mut &[u8]) -> Result<u32, GossipFault> {
    Ok(u32::try_from(get_varint(buf)?).unwrap_or(u32::MAX))
}

fn get_text(buf: &mut &[u8]) -> Result<String, GossipFault> {
    let length = usize::from(buf.try_get_u8().map_err(|_| GossipFault::CutOff)?);
    let text = buf.get(..length).ok_or(GossipFault::CutOff)?;
    let text = String::from_utf8_lossy(text).into_owned();
    buf.advance(length);
    Ok(text)
}

/// What was heard of all nodes, this one included.
#[derive(Debug)]
pub(super) struct Heard {
    me: NodeId,
    /// At most `CLUSTER_NODES_MAX`; of more nothing is kept.
    said: BTreeMap<NodeId, Said>,
    /// Nodes whose state is new since the last `take_changed`.
    changed: Vec<NodeId>,
    /// Somebody knows a state of this node that is newer than its own: from a life with a clock that was ahead.
    outdated: Option<u64>,
}

impl Heard {
    pub fn new(me: NodeId) -> Heard {
        Heard { me, said: BTreeMap::new(), changed: Vec::new(), outdated: None }
    }

    pub fn get(&self, node: NodeId) -> Option<&Said> {
        self.said.get(&node)
    }

    pub fn take_changed(&mut self) -> Vec<NodeId> {
        std::mem::take(&mut self.changed)
    }

    /// The stamp that this node's next state has to be above, if others know one from an earlier life.
    pub fn take_outdated(&mut self) -> Option<u64> {
        self.outdated.take()
    }

    /// Notes what this node says.
    pub fn note_own(&mut self, said: Said) {
        self.said.insert(self.me, said);
        self.changed.push(self.me);
    }

    /// Whether it is news, and to be passed on.
    pub fn note(&mut self, said: Said) -> bool {
        let node = said.state.address.node;
        let known = self.said.get(&node).map(|known| known.stamp);
        if known.is_some_and(|known| known >= said.stamp) {
            return false;
        }
        if node == self.me {
            self.outdated = self.outdated.max(Some(said.stamp));
            return false;
        }
        if known.is_none() && self.said.len() >= limits::CLUSTER_NODES_MAX {
            return false;
        }
        self.said.insert(node, said);
        self.changed.push(node);
        true
    }
}

/// foca's view of the items.
#[derive(Clone, Debug)]
pub(super) struct Items(pub Rc<RefCell<Heard>>);

/// Of a node; a newer one takes the place of an older one that still waits to be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ItemKey(NodeId);

impl Invalidates for ItemKey {
    fn invalidates(&self, other: &ItemKey) -> bool {
        self == other
    }
}

impl BroadcastHandler<Speaker> for Items {
    type Key = ItemKey;
    type Error = GossipFault;

    fn receive_item(&mut self, data: &[u8], sender: Option<&Speaker>) -> Result<Option<ItemKey>, GossipFault> {
        let Some(said) = decode(data)? else { return Ok(None) };
        let key = ItemKey(said.state.address.node);
        // Without a sender it is our own, which has been noted.
        let is_news = sender.is_none() || self.0.borrow_mut().note(said);
        Ok(is_news.then_some(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(node: u64, host: &str) -> NodeState {
        let address = PeerNode {
            node: NodeId(node),
            host: host.to_owned(),
            port: 0x1d4c,
            reactors: 4,
            grpc: "g:1".into(),
            http: "h:2".into(),
        };
        NodeState { address, is_leaving: true, leaders: 1, replicas: 300, faults: 0 }
    }

    fn items(me: u64) -> Items {
        Items(Rc::new(RefCell::new(Heard::new(NodeId(me)))))
    }

    /// The bytes are those of the drawing.
    #[test]
    fn fixed_bytes() {
        let bytes = encode(&state(7, "n7"), 0x0102_0304_0506_0708);
        let drawn = b"\x01\x07\x08\x07\x06\x05\x04\x03\x02\x01\x01\x4c\x1d\x04\x01\xac\x02\x00\x02n7\x03g:1\x03h:2";
        assert_eq!(bytes, drawn);
    }

    /// It comes back as it was, with more behind it, too; cut anywhere it is an error; flipped bits never panic.
    #[test]
    fn round_trip() {
        let said = Said { stamp: 5, state: Arc::new(state(7, &"x".repeat(255))) };
        let bytes = encode(&said.state, said.stamp);
        assert!(bytes.len() <= STATE_BYTES_MAX);
        assert_eq!(decode(&bytes).unwrap().unwrap(), said);
        assert_eq!(decode(&[&bytes[..], b"later"].concat()).unwrap().unwrap(), said);
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]), Err(GossipFault::CutOff));
        }
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // Flags of later versions are ignored: those in byte 10.
            let is_later_flag = (81..88).contains(&bit);
            assert_eq!(decode(&flipped) == Ok(Some(said.clone())), is_later_flag, "bit {bit}");
        }
        assert_eq!(decode(&[200, 1, 2]), Ok(None), "a kind of later");
        let long = encode(&state(7, &"x".repeat(256)), 1);
        assert_eq!(decode(&long).unwrap().unwrap().state.address.host, "", "better none than a part");
    }

    /// The newest of a node is kept and passed on, once; an older one, the same one and an own one are not.
    #[test]
    fn newest_wins() {
        let mut items = items(1);
        let sender = Speaker::new(NodeId(3), 1);
        let mut hear = |node: u64, host: &str, stamp: u64| {
            items.receive_item(&encode(&state(node, host), stamp), Some(&sender)).unwrap().is_some()
        };
        assert!(hear(2, "b", 20));
        assert!(!hear(2, "b", 20) && !hear(2, "a", 19));
        assert!(hear(2, "c", 21));
        assert!(!hear(1, "me", 50), "what others know of me is not news to them");
        assert!(!hear(1, "me", 40));
        let mut heard = items.0.borrow_mut();
        assert_eq!(heard.get(NodeId(2)).unwrap().state.address.host, "c");
        assert_eq!(heard.take_changed(), [NodeId(2), NodeId(2)]);
        assert_eq!((heard.take_outdated(), heard.take_outdated()), (Some(50), None));
        heard.note_own(Said { stamp: 60, state: Arc::new(state(1, "me")) });
        drop(heard);
        let own = encode(&state(1, "me"), 60);
        assert_eq!(items.receive_item(&own, None).unwrap(), Some(ItemKey(NodeId(1))));
        assert_eq!(items.receive_item(&own, Some(&sender)).unwrap(), None);
        assert_eq!(items.0.borrow_mut().take_outdated(), None);
    }

    /// Of more nodes than a cluster can have nothing is kept.
    #[test]
    fn bounded() {
        let mut items = items(0);
        let sender = Speaker::new(NodeId(3), 1);
        for node in 1..=limits::CLUSTER_NODES_MAX as u64 + 5 {
            items.receive_item(&encode(&state(node, "x"), 1), Some(&sender)).unwrap();
        }
        assert_eq!(items.0.borrow().said.len(), limits::CLUSTER_NODES_MAX);
    }

    /// Items of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let corpus = [encode(&state(1, "host-1"), 7), encode(&state(u64::MAX, ""), u64::MAX)];
        crate::fuzz::Target::new("reactor::gossip::state::tests::fuzz", corpus, |bytes| decode(bytes).ok())
            .encode(|said| match said {
                // A text that is not UTF-8 is longer once it was read: it may be too long to be sent on.
                Some(said) => encode(&said.state, said.stamp),
                None => vec![0],
            })
            .run();
    }
}
