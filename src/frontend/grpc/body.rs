//! Bytes of a response: a few refcounted slices that h2 sends as if they were one, so that stored
//! records go from the log's memory to the socket without a copy.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;

use crate::format::grpc;
use crate::frontend::grpc::answers::Held;

/// A message up to this size is copied into one slice: cheaper than carrying several.
const COPY_BYTES_MAX: usize = 4 << 10;

/// Slices that are sent one after the other.
///
/// `first` is empty only if all is; no slice in `rest` is empty; `remaining` is the sum of all.
#[derive(Default)]
pub(super) struct Body {
    first: Bytes,
    rest: VecDeque<Bytes>,
    remaining: usize,
    /// It does not begin with a message, or does not end with one.
    is_cut: bool,
    /// Given back when the last part of the message is gone.
    held: Option<Rc<Held>>,
}

/// Whole messages, one after the other.
impl From<Bytes> for Body {
    fn from(first: Bytes) -> Body {
        Body { remaining: first.len(), first, ..Body::default() }
    }
}

impl Body {
    /// One gRPC message: its prefix, `head`, then `chunks`.
    pub(super) fn message(head: &[u8], chunks: Vec<Bytes>) -> Body {
        let bytes = head.len() + chunks.iter().map(Bytes::len).sum::<usize>();
        let copied = if bytes <= COPY_BYTES_MAX { bytes } else { head.len() };
        let mut first = BytesMut::with_capacity(grpc::PREFIX_BYTES + copied);
        first.extend_from_slice(&grpc::prefix(bytes));
        first.extend_from_slice(head);
        if bytes <= COPY_BYTES_MAX {
            chunks.iter().for_each(|chunk| first.extend_from_slice(chunk));
            return Body::from(first.freeze());
        }
        let mut rest = VecDeque::from(chunks);
        rest.retain(|chunk| !chunk.is_empty());
        Body { first: first.freeze(), rest, remaining: grpc::PREFIX_BYTES + bytes, ..Body::default() }
    }

    /// One gRPC message.
    pub(super) fn encode(message: &impl prost::Message) -> Body {
        let bytes = message.encoded_len();
        let mut out = BytesMut::with_capacity(grpc::PREFIX_BYTES + bytes);
        out.extend_from_slice(&grpc::prefix(bytes));
        message.encode(&mut out).expect("the buffer grows");
        Body::from(out.freeze())
    }

    /// The same, with the memory that is held for it.
    pub(super) fn with(self, held: Held) -> Body {
        Body { held: Some(Rc::new(held)), ..self }
    }

    /// Whether memory is held for it.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Lengthens whole messages to at least `bytes`, without a change of what they say. Does nothing to parts of some,
    /// or to what is longer.
    pub(super) fn fill_up(&mut self, bytes: usize) {
        if !self.is_cut && (1..bytes).contains(&self.remaining) && self.rest.is_empty() {
            *self = Body { held: self.held.take(), ..Body::from(grpc::fill_up(&self.first, bytes)) };
        }
    }

    /// Takes the first `bytes` off.
    ///
    /// # Panics
    /// When there are fewer.
    pub(super) fn split_to(&mut self, bytes: usize) -> Body {
        assert!(bytes <= self.remaining, "cannot split {bytes} off {}", self.remaining);
        let mut part = Body { is_cut: true, held: self.held.clone(), ..Body::default() };
        self.is_cut = true;
        while part.remaining < bytes {
            let take = (bytes - part.remaining).min(self.first.len());
            part.push(self.first.split_to(take));
            self.remaining -= take;
            self.settle();
        }
        part
    }

    fn push(&mut self, slice: Bytes) {
        self.remaining += slice.len();
        if self.first.is_empty() {
            self.first = slice;
        } else {
            self.rest.push_back(slice);
        }
    }

    fn settle(&mut self) {
        if self.first.is_empty() {
            self.first = self.rest.pop_front().unwrap_or_default();
        }
    }
}

impl Buf for Body {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        &self.first
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let chunks = std::iter::once(&self.first).chain(&self.rest).filter(|chunk| !chunk.is_empty());
        slices.iter_mut().zip(chunks).map(|(slice, chunk)| *slice = IoSlice::new(chunk)).count()
    }

    fn advance(&mut self, mut bytes: usize) {
        assert!(bytes <= self.remaining, "cannot advance {bytes} of {}", self.remaining);
        self.remaining -= bytes;
        while bytes > 0 {
            let take = bytes.min(self.first.len());
            self.first.advance(take);
            bytes -= take;
            self.settle();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flat(mut body: Body) -> Vec<u8> {
        let mut out = Vec::new();
        while body.has_remaining() {
            out.extend_from_slice(body.chunk());
            body.advance(body.chunk().len());
        }
        out
    }

    proptest! {
        /// However a message is put together, split and advanced, its bytes stay in order.
        #[test]
        fn bytes_stay_in_order(
            head in prop::collection::vec(any::<u8>(), 0..20),
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3_000), 0..6),
            cut in any::<usize>(),
            skip in any::<usize>(),
        ) {
            let message = [head.clone(), chunks.concat()].concat();
            let expected = [grpc::prefix(message.len()).to_vec(), message].concat();
            let mut body = Body::message(&head, chunks.into_iter().map(Bytes::from).collect());
            prop_assert_eq!(body.remaining(), expected.len());

            let mut slices = [IoSlice::new(&[]); 16];
            let count = body.chunks_vectored(&mut slices);
            let vectored: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            prop_assert_eq!(&vectored, &expected);

            let cut = cut % (expected.len() + 1);
            let part = body.split_to(cut);
            prop_assert_eq!(flat(part), &expected[..cut]);
            let skip = skip % (expected.len() - cut + 1);
            body.advance(skip);
            prop_assert_eq!(flat(body), &expected[cut + skip..]);
        }
    }

    /// A small message is one slice, a large one keeps its chunks as they are.
    #[test]
    fn small_is_copied_large_is_not() {
        let small = Body::message(b"ab", vec![Bytes::from_static(b"cd")]);
        assert_eq!(small.chunk(), b"\0\0\0\0\x04abcd");
        let chunk = Bytes::from(vec![1; COPY_BYTES_MAX]);
        let mut large = Body::message(b"ab", vec![chunk.clone()]);
        assert_eq!(large.chunk(), b"\0\0\0\x10\x02ab");
        large.advance(7);
        assert_eq!(large.chunk().as_ptr(), chunk.as_ptr());
    }
}
