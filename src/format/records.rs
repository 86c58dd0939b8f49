//! Records as bytes: a produce request is checked once, copied once into the entry's buffer in
//! the form in which consumers receive it, and later served by slicing.
//!
//! A batch's payload is the protobuf encoding of `repeated Record records = 1`, per record:
//!
//! ```text
//! width  content
//!   1    0x0a: field 1, length-delimited
//!  1..4  varint: bytes of what follows
//!   ..   the producer's own fields as they came, unknown ones too, but without field 5; without
//!        field 4 as well when its last value is 0
//! 0..11  0x20 varint: timestamp_us (field 4), unless the producer set one
//! 2..11  0x28 varint: offset (field 5)
//! ```
//! Concatenated payloads are one `ConsumeResponse.records`.

use bytes::Bytes;
use twox_hash::XxHash3_64;

use crate::{
    env::buffer::Buffer,
    format::wire::{DELIMITED, DEPTH_MAX, VARINT, Wire, WireError, key, put_varint, varint_bytes},
    ids::Offset,
    limits::BATCH_RECORDS_MAX,
};

mod slice;

pub use slice::{Slice, record_ranges, record_timestamp, slice_records};

const REQUEST_TOPIC: u32 = key(1, DELIMITED);
const REQUEST_SHARD: u32 = key(2, VARINT);
const REQUEST_RECORD: u32 = key(3, DELIMITED);
const REQUEST_DURABILITY: u32 = key(4, VARINT);
const REQUEST_EXPECTED_OFFSET: u32 = key(5, VARINT);
/// `ConsumeResponse.records`, the tag of a stored record.
const STORED_RECORD: u8 = key(1, DELIMITED) as u8;
const RECORD_KEY: u32 = key(1, DELIMITED);
const RECORD_VALUE: u32 = key(2, DELIMITED);
const RECORD_HEADER: u32 = key(3, DELIMITED);
const RECORD_TIMESTAMP: u32 = key(4, VARINT);
const RECORD_OFFSET: u32 = key(5, VARINT);
const HEADER_NAME: u32 = key(1, DELIMITED);
const HEADER_VALUE: u32 = key(2, DELIMITED);
const RECORD_FIELD_LAST: u32 = 5;

/// Bytes that a stored record has beside the producer's: its tag, and at most a timestamp and an
/// offset. (Its length comes on top.)
const ADDED_BYTES_MAX: usize = 1 + 11 + 11;

/// The checked records of one `ProduceRequest`, still in the request's own bytes.
#[derive(Clone, Debug)]
pub struct Records {
    /// The whole request message; field 3 of it are the records.
    message: Bytes,
    count: u32,
    encoded_bytes_max: usize,
    timestamp_max_us: i64,
    /// Some record has no timestamp: it gets the leader's.
    unstamped: bool,
    /// No record has field 4 or 5: all are copied without a second look inside.
    plain: bool,
}

/// What a produce request says beside its records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProduceHead {
    /// Empty: the default topic.
    pub topic: String,
    /// Named shard.
    pub shard: Option<u32>,
    /// As on the wire (an unknown value is refused by the frontend).
    pub durability: i32,
    /// Conditional append.
    pub expected_offset: Option<u64>,
    /// XXH3-64 of the first record's key that is not empty.
    pub key_hash: Option<u64>,
}

/// Why a produce request's bytes are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordsError {
    /// Not a `ProduceRequest`.
    #[error("the request is not a valid ringlog.v1.ProduceRequest: {what} at byte {position}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where in the message.
        position: usize,
    },
    /// No records.
    #[error("the request has no records; send at least one")]
    Empty,
    /// A record is too long.
    #[error("record {number} of the request has {bytes} bytes, the limit is {max}")]
    RecordTooLong {
        /// Its place in the request, from 0.
        number: usize,
        /// Its encoded length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A record's time is before 1970.
    #[error(
        "record {number} of the request has the timestamp_us {timestamp_us}; it counts from 1970, and 0 or none is the leader's clock"
    )]
    TimestampNegative {
        /// Its place in the request, from 0.
        number: usize,
        /// What it has.
        timestamp_us: i64,
    },
    /// Too many records.
    #[error("the request has more than {max} records; send them in several requests")]
    TooMany {
        /// The limit.
        max: usize,
    },
}

impl From<WireError> for RecordsError {
    fn from(WireError { what, position }: WireError) -> RecordsError {
        RecordsError::Malformed { what, position }
    }
}

impl Records {
    /// Checks a whole `ProduceRequest` (or `ProduceStreamRequest`, which is the same on the wire): field types, lengths,
    /// UTF-8 of strings, limits. A record's encoded length is at most `record_bytes_max`. Allocates nothing but the
    /// topic's name; keeps `message` alive.
    ///
    /// # Errors
    /// `RecordsError`; nothing is kept.
    pub fn parse(message: Bytes, record_bytes_max: usize) -> Result<(ProduceHead, Records), RecordsError> {
        let mut head = ProduceHead::default();
        let mut topic = "";
        let mut count = 0;
        let mut encoded_bytes_max = 0;
        let mut timestamp_max_us = i64::MIN;
        let mut unstamped = false;
        let mut plain = true;

        let mut wire = Wire::new(&message);
        while !wire.at_end() {
            match wire.key()? {
                REQUEST_RECORD => {
                    let record = wire.message()?;
                    let bytes = record.rest().len();
                    if bytes > record_bytes_max {
                        return Err(RecordsError::RecordTooLong { number: count, bytes, max: record_bytes_max });
                    }
                    if count == BATCH_RECORDS_MAX {
                        return Err(RecordsError::TooMany { max: BATCH_RECORDS_MAX });
                    }
                    let facts = RecordFacts::check(record)?;
                    if facts.timestamp_us < 0 {
                        return Err(RecordsError::TimestampNegative {
                            number: count,
                            timestamp_us: facts.timestamp_us,
                        });
                    }
                    count += 1;
                    encoded_bytes_max += encoded_bytes_bound(bytes);
                    plain &= facts.plain;
                    match facts.timestamp_us {
                        0 => unstamped = true,
                        timestamp_us => timestamp_max_us = timestamp_max_us.max(timestamp_us),
                    }
                    if head.key_hash.is_none() && !facts.key.is_empty() {
                        head.key_hash = Some(XxHash3_64::oneshot(facts.key));
                    }
                }
                REQUEST_TOPIC => topic = wire.string()?,
                REQUEST_SHARD => head.shard = Some(wire.varint()? as u32),
                REQUEST_DURABILITY => head.durability = wire.varint()? as i32,
                REQUEST_EXPECTED_OFFSET => head.expected_offset = Some(wire.varint()?),
                key => skip_unknown(&mut wire, key, DEPTH_MAX)?,
            }
        }
        if count == 0 {
            return Err(RecordsError::Empty);
        }
        head.topic = topic.to_owned();
        let count = u32::try_from(count).expect("BATCH_RECORDS_MAX fits into 32 bits");
        Ok((head, Records { message, count, encoded_bytes_max, timestamp_max_us, unstamped, plain }))
    }

    /// The checked request as its client sent it: what is sent on to another node, which parses it again.
    pub fn message(&self) -> &Bytes {
        &self.message
    }

    /// Number of records, at least 1.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bound of what `encode_into` appends.
    pub fn encoded_bytes_max(&self) -> usize {
        self.encoded_bytes_max
    }

    /// Largest timestamp that the producer set, or `i64::MIN`.
    pub fn timestamp_max_us(&self) -> i64 {
        self.timestamp_max_us
    }

    /// Largest timestamp of the records when those without one get `timestamp_us`.
    pub fn timestamp_max_with(&self, timestamp_us: i64) -> i64 {
        if self.unstamped { self.timestamp_max_us.max(timestamp_us) } else { self.timestamp_max_us }
    }

    /// Appends the records in their stored form; the first gets `base_offset`, and those without a
    /// timestamp get `timestamp_us`. One copy of each record's bytes.
    pub fn encode_into(&self, buffer: &mut Buffer, base_offset: Offset, timestamp_us: i64) {
        const CHECKED: &str = "these bytes passed `parse`";
        let start = buffer.len();
        let mut offset = base_offset.0;
        let mut wire = Wire::new(&self.message);
        while !wire.at_end() {
            let key = wire.key().expect(CHECKED);
            if key != REQUEST_RECORD {
                wire.skip(key, DEPTH_MAX).expect(CHECKED);
                continue;
            }
            let record = wire.message().expect(CHECKED);
            if self.plain {
                put_record(buffer, record.rest(), Tail::new(Some(timestamp_us), offset));
            } else {
                let facts = RecordFacts::check(record).expect(CHECKED);
                let tail = Tail::new((facts.timestamp_us == 0).then_some(timestamp_us), offset);
                if facts.kept_whole() {
                    put_record(buffer, record.rest(), tail);
                } else {
                    put_record_without(buffer, record, facts.timestamp_us == 0, tail);
                }
            }
            offset += 1;
        }
        assert_eq!(offset - base_offset.0, u64::from(self.count), "every record is encoded once");
        assert!(buffer.len() - start <= self.encoded_bytes_max, "the announced bound holds");
    }
}

/// Bound of a stored record's bytes when the producer's are `bytes`.
const fn encoded_bytes_bound(bytes: usize) -> usize {
    bytes + ADDED_BYTES_MAX + varint_bytes((bytes + ADDED_BYTES_MAX) as u64)
}

/// What the inside of one record says.
struct RecordFacts<'a> {
    key: &'a [u8],
    /// 0: none.
    timestamp_us: i64,
    /// Neither field 4 nor field 5.
    plain: bool,
    has_offset: bool,
}

impl<'a> RecordFacts<'a> {
    /// Checks the fields of a record; as everywhere in proto3 the last value of a field counts.
    fn check(mut wire: Wire<'a>) -> Result<RecordFacts<'a>, WireError> {
        let mut facts = RecordFacts { key: &[], timestamp_us: 0, plain: true, has_offset: false };
        while !wire.at_end() {
            match wire.key()? {
                RECORD_KEY => facts.key = wire.delimited()?,
                RECORD_VALUE => {
                    wire.delimited()?;
                }
                RECORD_HEADER => check_header(wire.message()?)?,
                RECORD_TIMESTAMP => {
                    facts.timestamp_us = wire.varint()? as i64;
                    facts.plain = false;
                }
                RECORD_OFFSET => {
                    wire.varint()?;
                    facts.has_offset = true;
                    facts.plain = false;
                }
                key => skip_unknown(&mut wire, key, DEPTH_MAX - 1)?,
            }
        }
        Ok(facts)
    }

    /// Nothing of it has to be left out when it is stored.
    fn kept_whole(&self) -> bool {
        self.plain || (!self.has_offset && self.timestamp_us != 0)
    }
}

fn check_header(mut wire: Wire<'_>) -> Result<(), WireError> {
    while !wire.at_end() {
        match wire.key()? {
            HEADER_NAME => {
                wire.string()?;
            }
            HEADER_VALUE => {
                wire.delimited()?;
            }
            key if key >> 3 <= 2 => return Err(wrong_type(&wire)),
            key => wire.skip(key, DEPTH_MAX - 2)?,
        }
    }
    Ok(())
}

/// Passes over a field which a request or a record does not have. Both know fields 1 to 5.
fn skip_unknown(wire: &mut Wire<'_>, key: u32, depth_left: u32) -> Result<(), WireError> {
    if key >> 3 <= RECORD_FIELD_LAST {
        return Err(wrong_type(wire));
    }
    wire.skip(key, depth_left)
}

fn wrong_type(wire: &Wire<'_>) -> WireError {
    WireError { what: "a field has the wrong wire type", position: wire.position() }
}

/// What the server adds behind the producer's fields.
struct Tail {
    bytes: [u8; 22],
    len: usize,
}

impl Tail {
    #[inline]
    fn new(timestamp_us: Option<i64>, offset: u64) -> Tail {
        let mut bytes = [0; 22];
        let mut len = 0;
        if let Some(timestamp_us) = timestamp_us {
            bytes[0] = RECORD_TIMESTAMP as u8;
            len = 1 + put_varint(&mut bytes[1..], timestamp_us as u64);
        }
        bytes[len] = RECORD_OFFSET as u8;
        len += 1;
        len += put_varint(&mut bytes[len..], offset);
        Tail { bytes, len }
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Tag and length of a stored record.
struct Lead {
    bytes: [u8; 11],
    len: usize,
}

impl Lead {
    #[inline]
    fn new(record_bytes: usize) -> Lead {
        let mut bytes = [0; 11];
        bytes[0] = STORED_RECORD;
        let len = 1 + put_varint(&mut bytes[1..], record_bytes as u64);
        Lead { bytes, len }
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[inline]
fn put_record(buffer: &mut Buffer, record: &[u8], tail: Tail) {
    let lead = Lead::new(record.len() + tail.len);
    buffer.extend_from_parts([lead.bytes(), record, tail.bytes()]);
}

/// Stores a record without its field 5, and without its field 4 if `drop_timestamp`.
fn put_record_without(buffer: &mut Buffer, record: Wire<'_>, drop_timestamp: bool, tail: Tail) {
    let kept_bytes: usize = kept_fields(record, drop_timestamp).map(<[u8]>::len).sum();
    buffer.extend(Lead::new(kept_bytes + tail.len).bytes());
    for field in kept_fields(record, drop_timestamp) {
        buffer.extend(field);
    }
    buffer.extend(tail.bytes());
}

/// The fields of a checked record that are kept, keys included.
fn kept_fields(mut wire: Wire<'_>, drop_timestamp: bool) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while !wire.at_end() {
            let before = wire.rest();
            let key = wire.key().ok()?;
            wire.skip(key, DEPTH_MAX - 1).ok()?;
            let field = &before[..before.len() - wire.rest().len()];
            if key != RECORD_OFFSET && !(drop_timestamp && key == RECORD_TIMESTAMP) {
                return Some(field);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests;
