//! Cutting a stored payload at record borders, for consumers: only length prefixes are walked.

use std::ops::Range;

use super::{RECORD_TIMESTAMP, STORED_RECORD};
use crate::format::wire::{DEPTH_MAX, Wire};

/// Byte ranges of the records in a stored payload, in order: what a consumer's slicing needs.
/// Each item is the range of one record, its tag and length included. Ends early at bytes that are
/// not a record (payloads are checksummed: only a bug could have written them).
pub fn record_ranges(payload: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut wire = Wire::new(payload);
    std::iter::from_fn(move || {
        let start = wire.position();
        if *payload.get(start)? != STORED_RECORD {
            return None;
        }
        wire.key().ok()?;
        wire.message().ok()?;
        Some(start..wire.position())
    })
}

/// A part of a payload: whole records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Bytes of the payload.
    pub range: Range<usize>,
    /// Records in them.
    pub count: u64,
}

/// The records of a payload after the first `skip`: at most `records_max` of them and at most `bytes_max`
/// bytes, but at least one, whatever its size, if there is one and `records_max` is not 0.
pub fn slice_records(payload: &[u8], skip: u64, records_max: u64, bytes_max: usize) -> Slice {
    let mut ranges = record_ranges(payload);
    let mut end = 0;
    for _ in 0..skip {
        let Some(range) = ranges.next() else { break };
        end = range.end;
    }
    let mut slice = Slice { range: end..end, count: 0 };
    while slice.count < records_max {
        let Some(range) = ranges.next() else { break };
        if slice.count > 0 && range.end - slice.range.start > bytes_max {
            break;
        }
        slice.range.end = range.end;
        slice.count += 1;
    }
    slice
}

/// Timestamp of a stored record (the bytes of one of `record_ranges`), µs; `None` if it is not one.
pub fn record_timestamp(record: &[u8]) -> Option<i64> {
    let mut wire = Wire::new(record);
    wire.key().ok()?;
    let mut fields = wire.message().ok()?;
    let mut timestamp_us = None;
    while !fields.at_end() {
        let key = fields.key().ok()?;
        if key == RECORD_TIMESTAMP {
            timestamp_us = Some(fields.varint().ok()? as i64);
        } else {
            fields.skip(key, DEPTH_MAX - 1).ok()?;
        }
    }
    timestamp_us
}
