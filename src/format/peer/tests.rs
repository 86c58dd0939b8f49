//! Envelopes: fixed bytes, round trips, and bytes that nobody meant.

use super::*;

fn messages() -> Vec<Message> {
    let vote = Vote { term: Term(7), node: NodeId(2), committed: true };
    let open = Vote { committed: false, ..vote };
    let id = LogId { term: Term(6), index: Index(41) };
    let membership = Bytes::from_static(b"\x0a\x03\x0a\x01\x02");
    vec![
        Message::Append { vote, prev: Some(id), commit: Some(id) },
        Message::Append { vote, prev: None, commit: None },
        Message::Matched { log_id: Some(id), flush_us: 0, hold_off_ms: 0 },
        Message::Matched { log_id: None, flush_us: 1_234, hold_off_ms: 0 },
        Message::Matched { log_id: Some(id), flush_us: 1_234, hold_off_ms: 10_000 },
        Message::Conflict { log_id: id },
        Message::HigherVote { vote: open },
        Message::VoteRequest { vote: open, last: Some(id), pre: false, transfer: true },
        Message::VoteRequest { vote: open, last: None, pre: true, transfer: false },
        Message::VoteAnswer { vote, last: Some(id), granted: true },
        Message::Transfer { vote, to: Some(NodeId(3)), last: Some(id) },
        Message::Transfer { vote, to: None, last: None },
        Message::ReadIndex,
        Message::ReadIndexAnswer { log_id: id },
        Message::Snapshot { vote, last: id, membership_log_id: Some(id), membership: membership.clone() },
        Message::Snapshot { vote, last: id, membership_log_id: None, membership },
        Message::SnapshotAnswer { vote },
        Message::Fetch { from: Index(3), end: Index(1 << 40) },
        Message::Fetched { committed_end: Index(7) },
        Message::FetchCheckpoint { from: Index(3), end: Index(1 << 40) },
        Message::FetchedCheckpoint { index: Index(5) },
        Message::Done,
        Message::Failed { cause: "no room".into() },
    ]
}

pub(in crate::format) fn encoded() -> impl Iterator<Item = (Envelope, Bytes)> {
    messages().into_iter().map(|message| {
        let envelope = Envelope { group: ShardUid(0x0102_0304_0506_0708), message };
        let bytes = envelope.encode();
        (envelope, bytes)
    })
}

/// These bytes are between nodes of different versions: a change of them is a change of the protocol.
#[test]
fn fixed_bytes() {
    let (_, bytes) = encoded().next().unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, FIXED);
}

const FIXED: &str = concat!(
    "18000000524c503100000e004800070008001000280038000e00000000000001",
    "0807060504030201070000000000000002000000000000000100000000000000",
    "0600000000000000290000000000000006000000000000002900000000000000",
);

/// What was said is what is heard; groups, too.
#[test]
fn round_trips() {
    for (envelope, bytes) in encoded() {
        assert_eq!(Envelope::group_of(&bytes), Some(envelope.group));
        assert_eq!(Envelope::decode(&bytes), Ok(envelope));
    }
}

/// However the bytes are cut, they are an error, or only padding was lost; never a panic.
#[test]
fn every_cut() {
    for (envelope, bytes) in encoded() {
        for end in 0..bytes.len() {
            if let Ok(other) = Envelope::decode(&bytes[..end]) {
                assert_eq!(other, envelope);
                assert!(bytes.len() - end < 8 && bytes[end..].iter().all(|byte| *byte == 0), "cut at {end}");
            }
        }
    }
}

/// Whatever bit is flipped, the bytes are an error or some message, never a panic.
#[test]
fn every_flipped_bit() {
    let (mut errors, mut others) = (0, 0);
    for (envelope, bytes) in encoded() {
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            match Envelope::decode(&bytes) {
                Err(_) => errors += 1,
                Ok(other) => others += usize::from(other != envelope),
            }
            let _ = Envelope::group_of(&bytes);
        }
    }
    assert!(errors > 1_000 && others > 1_000, "{errors} errors, {others} other messages");
}

/// Bytes at random, behind the right identifier and not, are errors or messages, never a panic.
#[test]
fn noise() {
    let seed = std::cell::Cell::new(3);
    for length in 0..200 {
        for _ in 0..50 {
            let mut bytes: Vec<u8> = (0..length).map(|_| crate::sim::random(&seed) as u8 & 0x3f).collect();
            drop(Envelope::decode(&bytes));
            if let Some(identifier) = bytes.get_mut(4..8) {
                identifier.copy_from_slice(envelope::IDENTIFIER.as_bytes());
            }
            drop(Envelope::decode(&bytes));
        }
    }
}

/// A message that lacks what it needs is an error.
#[test]
fn missing_fields() {
    for kind in 0..=255 {
        let bytes = envelope::write(&EnvelopeArgs { kind, group: 1, ..EnvelopeArgs::default() });
        let complete = [kind::MATCHED, kind::READ_INDEX, kind::DONE, kind::FAILED, kind::FETCHED].contains(&kind);
        assert_eq!(Envelope::decode(&bytes).is_ok(), complete, "kind {kind}");
    }
}
