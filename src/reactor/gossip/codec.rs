//! Gossip's bytes in a datagram, and who speaks.
//!
//! ```text
//! identity   node varint, generation u64
//! header     message u8, source identity, source incarnation u16, destination identity,
//!            then as the message says: probe number u8; or identity, probe number u8
//! member     identity, incarnation u16, state u8 (1 alive, 2 suspect, 3 down)
//! ```
//! Integers are little-endian, varints as in protobuf. A datagram is the header, a count (u16, big-endian: foca's own) of
//! members, the members, and items with a length each (`state`). What comes is not believed: a bad one is an error.

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, Member, Message, State};

use crate::{
    format::wire::{self, Wire},
    ids::NodeId,
};

/// A node as gossip knows it: in one life. After it was taken for down it goes on under a higher generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Speaker {
    /// Which node.
    pub node: NodeId,
    /// Microseconds of the wall clock when this life began; the higher one is the present one.
    pub generation: u64,
    /// How often it was renewed; not on the wire.
    renewals: Renewals,
}

/// Part of no comparison: two speakers are the same if node and generation are.
#[derive(Clone, Copy, Debug, Default)]
struct Renewals(u32);

impl PartialEq for Renewals {
    fn eq(&self, _other: &Renewals) -> bool {
        true
    }
}

impl Eq for Renewals {}

impl Speaker {
    /// A node in the life that began then.
    pub fn new(node: NodeId, generation: u64) -> Speaker {
        Speaker { node, generation, renewals: Renewals(0) }
    }
}

impl Identity for Speaker {
    type Addr = NodeId;

    /// Each time a doubled step: a node whose clock was set back catches up with the generation it had before within
    /// a few dozen exchanges, not after as many as there are microseconds between.
    fn renew(&self) -> Option<Speaker> {
        let step = 1u64 << self.renewals.0.min(50);
        let (generation, renewals) = (self.generation.checked_add(step)?, Renewals(self.renewals.0 + 1));
        Some(Speaker { node: self.node, generation, renewals })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Speaker) -> bool {
        self.generation > adversary.generation
    }
}

/// Why bytes are not gossip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GossipFault {
    /// More bytes were announced than there are.
    #[error("gossip is cut off")]
    CutOff,
    /// A number that this version does not know.
    #[error("{what} {number} is not known")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// Which.
        number: u8,
    },
    /// Does not fit into what is left of a datagram.
    #[error("there is no room left in the datagram")]
    NoRoom,
}

/// The layout above.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Layout;

/// Longest identity: a varint of 64 bits and the generation.
const IDENTITY_BYTES_MAX: usize = 10 + 8;

/// Longest header: kind, two identities, an incarnation, and a third identity with a probe number.
const HEADER_BYTES_MAX: usize = 1 + IDENTITY_BYTES_MAX + 2 + IDENTITY_BYTES_MAX + IDENTITY_BYTES_MAX + 1;

const MEMBER_BYTES_MAX: usize = IDENTITY_BYTES_MAX + 2 + 1;

impl Codec<Speaker> for Layout {
    type Error = GossipFault;

    fn encode_header(&mut self, header: &Header<Speaker>, mut buf: impl BufMut) -> Result<(), GossipFault> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES_MAX);
        let (kind, probe) = (message_number(&header.message), message_probe(&header.message));
        bytes.push(kind);
        put_identity(&mut bytes, &header.src);
        bytes.put_u16_le(header.src_incarnation);
        put_identity(&mut bytes, &header.dst);
        if let Some(third) = message_identity(&header.message) {
            put_identity(&mut bytes, third);
        }
        bytes.extend(probe);
        put_whole(&mut buf, &bytes)
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Speaker>, GossipFault> {
        let kind = get_u8(&mut buf)?;
        let src = get_identity(&mut buf)?;
        let src_incarnation = get_u16(&mut buf)?;
        let dst = get_identity(&mut buf)?;
        let message = get_message(kind, &mut buf)?;
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(&mut self, member: &Member<Speaker>, mut buf: impl BufMut) -> Result<(), GossipFault> {
        let mut bytes = Vec::with_capacity(MEMBER_BYTES_MAX);
        put_identity(&mut bytes, member.id());
        bytes.put_u16_le(member.incarnation());
        bytes.push(match member.state() {
            State::Alive => 1,
            State::Suspect => 2,
            State::Down => 3,
        });
        put_whole(&mut buf, &bytes)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Speaker>, GossipFault> {
        let (id, incarnation) = (get_identity(&mut buf)?, get_u16(&mut buf)?);
        let state = match get_u8(&mut buf)? {
            1 => State::Alive,
            2 => State::Suspect,
            3 => State::Down,
            number => return Err(GossipFault::Unknown { what: "state", number }),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

fn message_number(message: &Message<Speaker>) -> u8 {
    match message {
        Message::Ping(_) => 1,
        Message::Ack(_) => 2,
        Message::PingReq { .. } => 3,
        Message::IndirectPing { .. } => 4,
        Message::IndirectAck { .. } => 5,
        Message::ForwardedAck { .. } => 6,
        Message::Announce => 7,
        Message::Feed => 8,
        Message::Gossip => 9,
        Message::Broadcast => 10,
        Message::TurnUndead => 11,
    }
}

fn message_probe(message: &Message<Speaker>) -> Option<u8> {
    match message {
        Message::Ping(probe) | Message::Ack(probe) => Some(*probe),
        Message::PingReq { probe_number, .. }
        | Message::IndirectPing { probe_number, .. }
        | Message::IndirectAck { probe_number, .. }
        | Message::ForwardedAck { probe_number, .. } => Some(*probe_number),
        Message::Announce | Message::Feed | Message::Gossip | Message::Broadcast | Message::TurnUndead => None,
    }
}

fn message_identity(message: &Message<Speaker>) -> Option<&Speaker> {
    match message {
        Message::PingReq { target, .. } | Message::IndirectAck { target, .. } => Some(target),
        Message::IndirectPing { origin, .. } | Message::ForwardedAck { origin, .. } => Some(origin),
        Message::Ping(_) | Message::Ack(_) | Message::Announce | Message::Feed => None,
        Message::Gossip | Message::Broadcast | Message::TurnUndead => None,
    }
}

fn get_message(kind: u8, buf: &mut impl Buf) -> Result<Message<Speaker>, GossipFault> {
    Ok(match kind {
        1 => Message::Ping(get_u8(buf)?),
        2 => Message::Ack(get_u8(buf)?),
        3 => Message::PingReq { target: get_identity(buf)?, probe_number: get_u8(buf)? },
        4 => Message::IndirectPing { origin: get_identity(buf)?, probe_number: get_u8(buf)? },
        5 => Message::IndirectAck { target: get_identity(buf)?, probe_number: get_u8(buf)? },
        6 => Message::ForwardedAck { origin: get_identity(buf)?, probe_number: get_u8(buf)? },
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        10 => Message::Broadcast,
        11 => Message::TurnUndead,
        number => return Err(GossipFault::Unknown { what: "message", number }),
    })
}

/// All or nothing: foca cuts a datagram where something did not fit, and counts on nothing half-written.
fn put_whole(buf: &mut impl BufMut, bytes: &[u8]) -> Result<(), GossipFault> {
    if buf.remaining_mut() < bytes.len() {
        return Err(GossipFault::NoRoom);
    }
    buf.put_slice(bytes);
    Ok(())
}

fn put_identity(bytes: &mut Vec<u8>, speaker: &Speaker) {
    put_varint(bytes, speaker.node.0);
    bytes.put_u64_le(speaker.generation);
}

/// Appends a varint.
pub(super) fn put_varint(bytes: &mut Vec<u8>, value: u64) {
    let mut scratch = [0; 10];
    let length = wire::put_varint(&mut scratch, value);
    bytes.extend_from_slice(&scratch[..length]);
}

fn get_identity(buf: &mut impl Buf) -> Result<Speaker, GossipFault> {
    let node = NodeId(get_varint(buf)?);
    Ok(Speaker::new(node, buf.try_get_u64_le().map_err(|_| GossipFault::CutOff)?))
}

fn get_u8(buf: &mut impl Buf) -> Result<u8, GossipFault> {
    buf.try_get_u8().map_err(|_| GossipFault::CutOff)
}

fn get_u16(buf: &mut impl Buf) -> Result<u16, GossipFault> {
    buf.try_get_u16_le().map_err(|_| GossipFault::CutOff)
}

/// Reads a varint; the bytes are contiguous (foca promises it, and all of ours are).
pub(super) fn get_varint(buf: &mut impl Buf) -> Result<u64, GossipFault> {
    let mut wire = Wire::new(buf.chunk());
    let value = wire.varint().map_err(|_| GossipFault::CutOff)?;
    let length = wire.position();
    buf.advance(length);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::Target;

    fn speaker(node: u64) -> Speaker {
        Speaker::new(NodeId(node), 0x0102_0304_0506_0708 + node)
    }

    fn messages() -> Vec<Message<Speaker>> {
        let (target, origin, probe_number) = (speaker(300), speaker(4), 9);
        vec![
            Message::Ping(1),
            Message::Ack(2),
            Message::PingReq { target: target.clone(), probe_number },
            Message::IndirectPing { origin: origin.clone(), probe_number },
            Message::IndirectAck { target, probe_number },
            Message::ForwardedAck { origin, probe_number },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::Broadcast,
            Message::TurnUndead,
        ]
    }

    fn header(message: Message<Speaker>) -> Header<Speaker> {
        Header { src: speaker(1), src_incarnation: 0x0a0b, dst: speaker(2), message }
    }

    fn encoded(message: Message<Speaker>) -> Vec<u8> {
        let mut bytes = Vec::new();
        Layout.encode_header(&header(message), &mut bytes).unwrap();
        bytes
    }

    /// The bytes are those of the drawing.
    #[test]
    fn fixed_bytes() {
        assert_eq!(
            encoded(messages().remove(2)),
            b"\x03\x01\x09\x07\x06\x05\x04\x03\x02\x01\x0b\x0a\x02\x0a\x07\x06\x05\x04\x03\x02\x01\
              \xac\x02\x34\x08\x06\x05\x04\x03\x02\x01\x09"
        );
        let mut bytes = Vec::new();
        Layout.encode_member(&Member::new(speaker(1), 7, State::Suspect), &mut bytes).unwrap();
        assert_eq!(bytes, b"\x01\x09\x07\x06\x05\x04\x03\x02\x01\x07\x00\x02");
    }

    /// Every message comes back as it was, takes no byte more, and fails when it is cut anywhere.
    #[test]
    fn headers_round_trip() {
        for message in messages() {
            let bytes = encoded(message.clone());
            assert!(bytes.len() <= HEADER_BYTES_MAX);
            let mut rest = &[&bytes[..], b"rest"].concat()[..];
            assert_eq!(Layout.decode_header(&mut rest).unwrap(), header(message));
            assert_eq!(rest, b"rest");
            for cut in 0..bytes.len() {
                assert_eq!(Layout.decode_header(&bytes[..cut]).unwrap_err(), GossipFault::CutOff);
                let mut scratch = vec![0; cut];
                let mut room = &mut scratch[..];
                let mut whole = Vec::new();
                Layout.encode_header(&header(Message::Feed), &mut whole).unwrap();
                if cut < whole.len() {
                    let refused = Layout.encode_header(&header(Message::Feed), &mut room);
                    assert_eq!((refused, room.remaining_mut()), (Err(GossipFault::NoRoom), cut));
                }
            }
        }
        for number in [0, 12, 255] {
            let bytes = [&[number][..], &encoded(Message::Feed)[1..]].concat();
            let unknown = GossipFault::Unknown { what: "message", number };
            assert_eq!(Layout.decode_header(&bytes[..]).unwrap_err(), unknown);
        }
    }

    /// Members come back as they were; flipped bits and cuts are errors or other members, never a panic.
    #[test]
    fn members_round_trip() {
        for state in [State::Alive, State::Suspect, State::Down] {
            let member = Member::new(Speaker::new(NodeId(u64::MAX), 7), u16::MAX, state);
            let mut bytes = Vec::new();
            Layout.encode_member(&member, &mut bytes).unwrap();
            assert!(bytes.len() <= MEMBER_BYTES_MAX);
            assert_eq!(Layout.decode_member(&bytes[..]).unwrap(), member);
            for cut in 0..bytes.len() {
                assert!(Layout.decode_member(&bytes[..cut]).is_err());
            }
            for bit in 0..8 * bytes.len() {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(Layout.decode_member(&flipped[..]).ok(), Some(member.clone()));
            }
        }
    }

    /// A renewed speaker wins against the one before, and catches up with a clock that was a year ahead in few steps.
    #[test]
    fn renewal() {
        let before = speaker(1);
        let after = before.renew().unwrap();
        assert!(after.win_addr_conflict(&before) && !before.win_addr_conflict(&after) && after.addr() == before.addr());
        let year_us = 365 * 86_400 * 1_000_000;
        let ahead = Speaker::new(NodeId(1), before.generation + year_us);
        let mut lives = std::iter::successors(Some(before), Speaker::renew);
        let steps = lives.position(|life| life.win_addr_conflict(&ahead)).unwrap();
        assert!(steps < 50, "{steps} steps");
        assert_eq!(Speaker::new(NodeId(1), u64::MAX).renew(), None);
    }

    /// Headers and members of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let decode_header = |mut bytes: &[u8]| Layout.decode_header(&mut bytes).ok();
        Target::new("reactor::gossip::codec::tests::fuzz", messages().into_iter().map(encoded), decode_header)
            .encode(|header| {
                let mut bytes = Vec::new();
                Layout.encode_header(header, &mut bytes).unwrap();
                bytes
            })
            .run();
        let member = |member: &Member<Speaker>| {
            let mut bytes = Vec::new();
            Layout.encode_member(member, &mut bytes).unwrap();
            bytes
        };
        let corpus =
            [State::Alive, State::Suspect, State::Down].map(|state| member(&Member::new(speaker(1), 7, state)));
        let decode_member = |mut bytes: &[u8]| Layout.decode_member(&mut bytes).ok();
        Target::new("reactor::gossip::codec::tests::fuzz", corpus, decode_member).encode(member).run();
    }
}
