//! Requests built before the clock starts: sending one is cloning a refcount.

use std::cell::Cell;

use bytes::Bytes;

use crate::{
    client::{MESSAGE_PREFIX_BYTES, framed},
    format::entry::ENTRY_HEADER_BYTES,
    limits,
    proto::ringlog::v1::{ProduceStreamRequest, Record},
};

/// Bytes of all variants together.
const VARIANTS_BYTES_MAX: usize = 16 << 20;

/// Different requests, so that nothing on the way can profit from seeing the same one again.
const VARIANTS_MAX: usize = 8;

/// What a stored record has beside its value: tags and lengths, timestamp and offset.
const STORED_RECORD_BYTES: usize = 24;

/// The requests of one run, used in turn.
pub(super) struct Payload {
    messages: Vec<Bytes>,
    next: Cell<usize>,
    batch: u32,
    record_bytes: usize,
}

impl Payload {
    /// Requests of `batch` records whose values have `record_bytes`. With `shards` they name these in turn.
    ///
    /// # Errors
    /// A sentence, when one would be larger than a server accepts.
    pub(super) fn new(topic: &str, shards: &[u32], batch: u32, record_bytes: u64) -> Result<Payload, String> {
        let too_large = || {
            format!(
                "{batch} records of {record_bytes} bytes do not fit into one request of {} bytes with records of at \
                 most {}; lower --batch or --record-bytes",
                limits::MESSAGE_BYTES_MAX,
                limits::RECORD_BYTES_MAX
            )
        };
        let fits = record_bytes <= limits::RECORD_BYTES_MAX as u64
            && u64::from(batch) * (record_bytes + 2) <= limits::MESSAGE_BYTES_MAX as u64;
        if !fits {
            return Err(too_large());
        }
        let record_bytes = usize::try_from(record_bytes).map_err(|_| too_large())?;
        let message_bytes = batch as usize * (record_bytes + STORED_RECORD_BYTES);
        let variants = (VARIANTS_BYTES_MAX / message_bytes).clamp(1, VARIANTS_MAX).max(shards.len());
        let mut random = fastrand::Rng::with_seed(0x72_69_6e_67);
        let messages: Vec<_> = (0..variants)
            .map(|variant| {
                let records = (0..batch).map(|_| {
                    let mut value = vec![0; record_bytes];
                    random.fill(&mut value);
                    Record { value: value.into(), ..Record::default() }
                });
                framed(&ProduceStreamRequest {
                    topic: topic.to_owned(),
                    shard: shards.get(variant % shards.len().max(1)).copied(),
                    records: records.collect(),
                    ..ProduceStreamRequest::default()
                })
            })
            .collect();
        if messages[0].len() > limits::MESSAGE_BYTES_MAX + MESSAGE_PREFIX_BYTES {
            return Err(too_large());
        }
        Ok(Payload { messages, next: Cell::new(0), batch, record_bytes })
    }

    /// The next request, framed.
    pub(super) fn next(&self) -> Bytes {
        let at = self.next.get();
        self.next.set((at + 1) % self.messages.len());
        self.messages[at].clone()
    }

    /// Records in a request.
    pub(super) fn batch(&self) -> u64 {
        self.batch.into()
    }

    /// Bytes of the values in a record.
    pub(super) fn record_bytes(&self) -> u64 {
        self.record_bytes as u64
    }

    /// Bytes of one request as it is appended to the log: an entry of its own, in whole blocks.
    pub(super) fn stored_bytes(&self) -> usize {
        let records = self.batch as usize * (self.record_bytes + STORED_RECORD_BYTES);
        (ENTRY_HEADER_BYTES + records).next_multiple_of(limits::BLOCK_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// Requests are what they should be, and differ.
    #[test]
    fn requests() {
        let payload = Payload::new("t", &[4, 5], 3, 100).unwrap();
        let decode = |message: Bytes| ProduceStreamRequest::decode(message.slice(MESSAGE_PREFIX_BYTES..)).unwrap();
        let (first, second) = (decode(payload.next()), decode(payload.next()));
        assert_eq!((first.topic.as_str(), first.shard, second.shard), ("t", Some(4), Some(5)));
        assert_eq!(first.records.len(), 3);
        assert!(first.records.iter().all(|record| record.value.len() == 100));
        assert_ne!(first.records, second.records);
        assert_eq!(payload.stored_bytes(), 4096);
        assert_eq!(Payload::new("t", &[], 4, 1024).unwrap().stored_bytes(), 8192);
    }

    /// Requests that no server accepts are refused before anything is sent.
    #[test]
    fn too_large() {
        assert!(Payload::new("t", &[], 1, limits::RECORD_BYTES_MAX as u64 + 1).is_err());
        assert!(Payload::new("t", &[], 5, limits::RECORD_BYTES_MAX as u64).is_err());
        assert!(Payload::new("t", &[], 1 << 20, 1 << 63).is_err() && Payload::new("t", &[], 1, 0).is_ok());
    }
}
