//! Block-aligned buffers for O_DIRECT, without unsafe code: a vector of aligned blocks seen as bytes.

use bytes::Bytes;

use crate::limits::BLOCK_BYTES;

/// One device block, aligned to its own size.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

const EMPTY: Block = Block([0; BLOCK_BYTES]);

/// A growable, block-aligned, zero-padded byte buffer: `len` bytes are content, the rest of the
/// last block is zero.
#[derive(Clone, Default)]
pub struct Buffer {
    blocks: Vec<Block>,
    len: usize,
}

impl Buffer {
    /// An empty buffer with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Buffer {
        Buffer { blocks: Vec::with_capacity(bytes.div_ceil(BLOCK_BYTES)), len: 0 }
    }

    /// A buffer of `bytes` zeros.
    pub fn zeroed(bytes: usize) -> Buffer {
        Buffer { blocks: vec![EMPTY; bytes.div_ceil(BLOCK_BYTES)], len: bytes }
    }

    /// Bytes of content.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of content and padding: a multiple of `BLOCK_BYTES`.
    pub fn padded_len(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// Appends `bytes`; one copy, and at most one block of zeros beside it.
    pub fn extend(&mut self, bytes: &[u8]) {
        let room = self.padded_len() - self.len;
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        self.room_mut()[..head.len()].copy_from_slice(head);
        let (whole, tail) = rest.split_at(rest.len() - rest.len() % BLOCK_BYTES);
        self.blocks.extend(whole.chunks_exact(BLOCK_BYTES).map(bytemuck::pod_read_unaligned::<Block>));
        if !tail.is_empty() {
            self.blocks.push(EMPTY);
            self.blocks.last_mut().expect("just pushed").0[..tail.len()].copy_from_slice(tail);
        }
        self.len += bytes.len();
    }

    /// Appends `parts`, one after the other: faster than as many calls of `extend` when they are small.
    #[inline]
    pub fn extend_from_parts<const N: usize>(&mut self, parts: [&[u8]; N]) {
        let bytes = parts.iter().map(|part| part.len()).sum::<usize>();
        let room = self.room_mut();
        if bytes > room.len() {
            for part in parts {
                self.extend(part);
            }
            return;
        }
        let mut at = 0;
        for part in parts {
            room[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.len += bytes;
    }

    /// The padding of the last block.
    #[inline]
    fn room_mut(&mut self) -> &mut [u8] {
        let start = self.len.saturating_sub(self.blocks.len().saturating_sub(1) * BLOCK_BYTES);
        match self.blocks.last_mut() {
            Some(block) => &mut block.0[start..],
            None => &mut [],
        }
    }

    /// Sets the content's length; what is new is zero. Never shortens.
    ///
    /// # Panics
    /// When `len` is less than the present length.
    pub fn grow_to(&mut self, len: usize) {
        assert!(len >= self.len, "a buffer does not shrink");
        self.blocks.resize(len.div_ceil(BLOCK_BYTES), EMPTY);
        self.len = len;
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.blocks)[..self.len]
    }

    /// The content.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.blocks)[..self.len]
    }

    /// The content, frozen and shareable. No copy.
    pub fn freeze(self) -> Bytes {
        let len = self.len;
        self.freeze_padded().slice(..len)
    }

    /// The content and its padding, frozen and shareable; aligned to `BLOCK_BYTES`. No copy.
    pub fn freeze_padded(self) -> Bytes {
        Bytes::from_owner(Frozen(self.blocks))
    }
}

struct Frozen(Vec<Block>);

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content keeps its bytes, padding is zero, and the frozen form is aligned.
    #[test]
    fn padded_and_aligned() {
        let mut buffer = Buffer::with_capacity(10);
        buffer.extend(b"hello");
        buffer.extend(&[7; BLOCK_BYTES]);
        assert_eq!(buffer.len(), BLOCK_BYTES + 5);
        assert_eq!(buffer.padded_len(), 2 * BLOCK_BYTES);
        let frozen = buffer.freeze_padded();
        assert_eq!(frozen.as_ptr() as usize % BLOCK_BYTES, 0);
        assert_eq!(&frozen[..6], b"hello\x07");
        assert!(frozen[BLOCK_BYTES + 5..].iter().all(|byte| *byte == 0));
    }

    /// However the content comes in, in parts across block borders or at once, it is the same, and
    /// the padding is zero.
    #[test]
    fn extend_in_parts() {
        let content: Vec<u8> = (0..3 * BLOCK_BYTES + 77).map(|n| (n % 251) as u8 + 1).collect();
        for first in [0, 1, 5, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 2 * BLOCK_BYTES, content.len()] {
            for second in [0, 1, BLOCK_BYTES - 6, BLOCK_BYTES, 2 * BLOCK_BYTES + 3] {
                let second = second.min(content.len() - first);
                let mut buffer = Buffer::default();
                buffer.extend(&content[..first]);
                let (a, b) = content[first..].split_at(second);
                buffer.extend_from_parts([a, &b[..b.len() / 2], &b[b.len() / 2..]]);
                assert_eq!(buffer.bytes(), content);
                assert_eq!(buffer.padded_len(), 4 * BLOCK_BYTES);
                assert!(buffer.freeze_padded()[content.len()..].iter().all(|byte| *byte == 0));
            }
        }
    }
}
