//! Records as bytes: a produce request is checked once, copied once into the entry's buffer in
//! the form in which consumers receive it, and later served by slicing.
//!
//! A batch's payload is the protobuf encoding of `repeated Record records = 1`: per record the byte
//! 0x0a, a varint length, and the producer's own fields 1 to 4 as they came (unknown fields too; field 5
//! and a zero timestamp are dropped), then `timestamp_us` (field 4) if there was none, then `offset`
//! (field 5). Concatenated payloads are one `ConsumeResponse.records`.

use bytes::Bytes;

use crate::{env::buffer::Buffer, ids::Offset};

/// The checked records of one `ProduceRequest`, still in the request's own bytes.
#[derive(Clone, Debug)]
pub struct Records {
    /// The whole request message; field 3 of it are the records.
    message: Bytes,
    count: u32,
    encoded_bytes_max: usize,
    timestamp_max_us: i64,
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
    /// Too many records.
    #[error("the request has more than {max} records; send them in several requests")]
    TooMany {
        /// The limit.
        max: usize,
    },
}

impl Records {
    /// Checks a whole `ProduceRequest` (or `ProduceStreamRequest`, which is the same on the wire): field types, lengths,
    /// UTF-8 of strings, limits. Allocates nothing but the topic's name.
    ///
    /// # Errors
    /// `RecordsError`; nothing is kept.
    pub fn parse(message: Bytes) -> Result<(ProduceHead, Records), RecordsError> {
        let _ = message;
        todo!()
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

    /// Appends the records in their stored form; the first gets `base_offset`, and those without a
    /// timestamp get `timestamp_us`. One copy of each record's bytes.
    pub fn encode_into(&self, buffer: &mut Buffer, base_offset: Offset, timestamp_us: i64) {
        let _ = (buffer, base_offset, timestamp_us, &self.message);
        todo!()
    }
}

/// Byte ranges of the records in a stored payload, in order: what a consumer's slicing needs.
/// Each item is the range of one record, its tag and length included.
pub fn record_ranges(payload: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    let _ = payload;
    std::iter::empty()
}
