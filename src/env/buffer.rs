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

    /// Appends `bytes`; one copy.
    pub fn extend(&mut self, bytes: &[u8]) {
        let start = self.len;
        self.grow_to(start + bytes.len());
        self.bytes_mut()[start..].copy_from_slice(bytes);
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
}
