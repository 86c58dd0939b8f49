//! Reads a consume response without decoding it: counts, lengths, offsets. Per record it costs tens of
//! nanoseconds and no allocation, so that a benchmark measures the server and not protobuf.

use bytes::Buf;

use super::chunks::Chunks;

/// What one `ConsumeStreamResponse` says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Records.
    pub count: u64,
    /// Bytes of their values.
    pub value_bytes: u64,
    /// Offset of the first record.
    pub first_offset: Option<u64>,
    /// Whether each record's offset is the one before it plus one, and `next_offset` is behind the last.
    pub dense: bool,
    /// Where to go on.
    pub next_offset: u64,
    /// First offset kept.
    pub log_start: u64,
    /// First offset not committed.
    pub high_watermark: u64,
}

impl Walked {
    /// Walks a message; `None` if it is not a response.
    pub(super) fn new(mut message: Chunks) -> Option<Walked> {
        let mut walked = Walked { dense: true, ..Walked::default() };
        let mut expected = None;
        while message.has_remaining() {
            match varint(&mut message)? {
                0x0a => {
                    let bytes = usize::try_from(varint(&mut message)?).ok()?;
                    let (value_bytes, offset) = record(&mut message, bytes)?;
                    walked.dense &= expected.is_none_or(|expected| expected == offset);
                    walked.first_offset.get_or_insert(offset);
                    expected = Some(offset.checked_add(1)?);
                    walked.count += 1;
                    walked.value_bytes += value_bytes;
                }
                0x10 => walked.next_offset = varint(&mut message)?,
                0x18 => walked.log_start = varint(&mut message)?,
                0x20 => walked.high_watermark = varint(&mut message)?,
                tag => skip(&mut message, tag)?,
            }
        }
        walked.dense &= expected.is_none_or(|expected| expected == walked.next_offset);
        Some(walked)
    }
}

/// Value length and offset of a record of `bytes`, which is taken off the front.
fn record(message: &mut Chunks, bytes: usize) -> Option<(u64, u64)> {
    if bytes > message.remaining() {
        return None;
    }
    if let Some(whole) = message.chunk().get(..bytes) {
        let found = record_fields(whole)?;
        message.advance(bytes);
        return Some(found);
    }
    record_fields(&message.copy_to_bytes(bytes))
}

fn record_fields(mut record: &[u8]) -> Option<(u64, u64)> {
    let (mut value_bytes, mut offset) = (0, 0);
    while !record.is_empty() {
        match varint(&mut record)? {
            0x12 => {
                value_bytes = varint(&mut record)?;
                record = record.get(usize::try_from(value_bytes).ok()?..)?;
            }
            0x28 => offset = varint(&mut record)?,
            tag => skip(&mut record, tag)?,
        }
    }
    Some((value_bytes, offset))
}

/// Skips a field after its tag.
fn skip(bytes: &mut impl Buf, tag: u64) -> Option<()> {
    let count = match tag & 7 {
        0 => return varint(bytes).map(drop),
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        _ => return None,
    };
    if count > bytes.remaining() {
        return None;
    }
    bytes.advance(count);
    Some(())
}

fn varint(bytes: &mut impl Buf) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        if !bytes.has_remaining() {
            return None;
        }
        let byte = bytes.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use super::*;
    use crate::proto::ringlog::v1::{ConsumeStreamResponse, Header, Record};

    fn response(offsets: &[u64], next_offset: u64) -> Vec<u8> {
        let records = offsets.iter().map(|offset| Record {
            key: "key".into(),
            value: vec![1; 200].into(),
            headers: vec![Header { name: "n".into(), value: "v".into() }],
            timestamp_us: -1,
            offset: *offset,
        });
        let response =
            ConsumeStreamResponse { records: records.collect(), next_offset, log_start: 3, high_watermark: 1 << 40 };
        response.encode_to_vec()
    }

    fn walk(bytes: &[u8], size: usize) -> Option<Walked> {
        let mut chunks = Chunks::default();
        bytes.chunks(size).for_each(|piece| chunks.push(Bytes::copy_from_slice(piece)));
        Walked::new(chunks)
    }

    /// The walk sees what decoding would see, however the message is cut.
    #[test]
    fn agrees_with_decoding() {
        let bytes = response(&[0, 1, 2], 3);
        for size in 1..=bytes.len() {
            let walked = walk(&bytes, size).unwrap();
            assert_eq!((walked.count, walked.value_bytes), (3, 600));
            assert_eq!((walked.first_offset, walked.next_offset), (Some(0), 3));
            assert_eq!((walked.log_start, walked.high_watermark), (3, 1 << 40));
            assert!(walked.dense);
        }
    }

    /// A gap between records, or behind the last one, is noticed.
    #[test]
    fn notices_gaps() {
        assert!(walk(&response(&[7, 8], 9), 64).unwrap().dense);
        assert!(!walk(&response(&[7, 9], 10), 64).unwrap().dense);
        assert!(!walk(&response(&[7, 8], 10), 64).unwrap().dense);
        assert!(walk(&response(&[], 10), 64).unwrap().dense);
    }

    /// A message cut at any place is refused or shorter, and never a panic.
    #[test]
    fn cut_anywhere() {
        let bytes = response(&[0, 1], 2);
        for end in 0..bytes.len() {
            if let Some(walked) = walk(&bytes[..end], 50) {
                assert!(walked.count <= 2);
            }
        }
    }
}
