//! Message bytes in pieces, never glued together: what the client sends and receives.
//!
//! A message goes out as the pieces in which it was built and comes in as the DATA frames in which it
//! arrived. prost reads both through `Buf`, and takes `bytes` fields that lie in one piece without a copy.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Bytes before each gRPC message: one of flags, four of length, big-endian.
pub const MESSAGE_PREFIX_BYTES: usize = 5;

/// Bytes as a queue of refcounted pieces. No piece is empty.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    pieces: VecDeque<Bytes>,
    bytes: usize,
}

impl Chunks {
    /// Adds bytes at the end; no copy.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Takes the first `bytes` off; no copy.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn split_to(&mut self, bytes: usize) -> Chunks {
        assert!(bytes <= self.bytes, "cannot take {bytes} bytes of {}", self.bytes);
        let mut head = Chunks::default();
        while head.bytes < bytes {
            let first = self.pieces.front_mut().expect("the pieces hold self.bytes");
            let wanted = bytes - head.bytes;
            let piece = if first.len() <= wanted {
                self.pieces.pop_front().expect("it was there above")
            } else {
                first.split_to(wanted)
            };
            self.bytes -= piece.len();
            head.push(piece);
        }
        head
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl From<Bytes> for Chunks {
    fn from(bytes: Bytes) -> Chunks {
        let mut chunks = Chunks::default();
        chunks.push(bytes);
        chunks
    }
}

impl Buf for Chunks {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.bytes, "cannot advance {count} bytes of {}", self.bytes);
        self.bytes -= count;
        while count > 0 {
            let first = self.pieces.front_mut().expect("the pieces hold self.bytes");
            if first.len() > count {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.pieces.pop_front();
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    fn copy_to_bytes(&mut self, bytes: usize) -> Bytes {
        let mut part = self.split_to(bytes);
        if part.pieces.len() <= 1 {
            return part.pieces.pop_front().unwrap_or_default();
        }
        let mut glued = BytesMut::with_capacity(bytes);
        glued.put(part);
        glued.freeze()
    }
}

/// `message` with its gRPC prefix, in one piece.
///
/// # Panics
/// When it encodes to more than 4 GiB.
pub fn framed(message: &impl Message) -> Bytes {
    let bytes = message.encoded_len();
    let mut buffer = BytesMut::with_capacity(MESSAGE_PREFIX_BYTES + bytes);
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(bytes).expect("callers bound their messages far below 4 GiB"));
    message.encode(&mut buffer).expect("the buffer has room for encoded_len");
    buffer.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ringlog::v1::{ConsumeStreamResponse, Record};

    fn pieces(bytes: &[u8], size: usize) -> Chunks {
        let mut chunks = Chunks::default();
        for piece in bytes.chunks(size) {
            chunks.push(Bytes::copy_from_slice(piece));
        }
        chunks
    }

    /// However a message is cut into pieces, taking, skipping and copying see the same bytes.
    #[test]
    fn any_cut_reads_the_same() {
        let bytes: Vec<u8> = (0..=255).collect();
        for size in 1..=256 {
            for at in 0..=256 {
                let mut tail = pieces(&bytes, size);
                let mut head = tail.split_to(at);
                assert_eq!((head.len(), tail.len()), (at, 256 - at));
                assert_eq!(head.copy_to_bytes(at), bytes[..at]);
                let mut skipped = pieces(&bytes, size);
                skipped.advance(at);
                assert_eq!(skipped.copy_to_bytes(256 - at), bytes[at..]);
                assert_eq!(tail.copy_to_bytes(256 - at), bytes[at..]);
                assert!(tail.is_empty() && head.is_empty());
            }
        }
    }

    /// A response decodes alike from one piece and from pieces of any size.
    #[test]
    fn decodes_from_pieces() {
        let record = |offset| Record { value: Bytes::from(vec![7; 50]), offset, ..Record::default() };
        let response =
            ConsumeStreamResponse { records: (0..9).map(record).collect(), next_offset: 9, ..Default::default() };
        let bytes = framed(&response);
        let length = u32::try_from(bytes.len() - 5).unwrap().to_be_bytes();
        assert_eq!((bytes[0], &bytes[1..5]), (0, &length[..]));
        for size in 1..bytes.len() {
            let mut chunks = pieces(&bytes, size);
            chunks.advance(MESSAGE_PREFIX_BYTES);
            assert_eq!(ConsumeStreamResponse::decode(chunks).unwrap(), response);
        }
    }
}
