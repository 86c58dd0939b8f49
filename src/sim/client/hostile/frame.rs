//! HTTP/2 frames by hand (RFC 9113, section 4.1), whether they make sense or not, and those that come back.

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

use crate::format::grpc;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;
/// RFC 9113 knows no such type, and has it skipped.
pub(super) const UNKNOWN: u8 = 0xfa;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// SETTINGS_INITIAL_WINDOW_SIZE.
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;

/// CANCEL.
pub(super) const CANCEL: u32 = 8;

/// What a client says first.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEAD_BYTES: usize = 9;

/// One frame; `payload` is shorter than 16 MiB.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("it is short").to_be_bytes();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// SETTINGS with one parameter.
pub(super) fn setting(identifier: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&identifier.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

/// RST_STREAM.
pub(super) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// HEADERS of a gRPC call; without `END_HEADERS` in `flags` it is half a block.
pub(super) fn headers(stream: u32, path: &str, flags: u8) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    frame(HEADERS, flags, stream, &fields.map(|(name, value)| literal(name, value)).concat())
}

/// A header field without indexing (RFC 7541, section 6.2.2); both are shorter than 127 bytes.
pub(super) fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("it is short")], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// A gRPC message.
pub(super) fn message(message: &impl Message) -> Vec<u8> {
    [&grpc::prefix(message.encoded_len())[..], &message.encode_to_vec()].concat()
}

/// What a node sends, as frames.
#[derive(Debug, Default)]
pub(super) struct Frames(BytesMut);

/// One of them.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) stream: u32,
    pub(super) payload: Bytes,
}

impl Frames {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next one that is whole.
    pub(super) fn next(&mut self) -> Option<Frame> {
        let &[high, middle, low, kind, _flags, s0, s1, s2, s3] = self.0.first_chunk::<HEAD_BYTES>()?;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        if self.0.len() < HEAD_BYTES + length {
            return None;
        }
        self.0.advance(HEAD_BYTES);
        let payload = self.0.split_to(length).freeze();
        Some(Frame { kind, stream: u32::from_be_bytes([s0, s1, s2, s3]), payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written comes back, however it is cut; a header block is what RFC 7541 says (appendix C.2.2's form, not indexed).
    #[test]
    fn there_and_back() {
        let sent = [headers(7, "/p", END_HEADERS), frame(DATA, END_STREAM, 0x0102_0304, b"abc"), reset(1)].concat();
        for size in [1, 2, 7, 100] {
            let (mut frames, mut found) = (Frames::default(), Vec::new());
            for piece in sent.chunks(size) {
                frames.push(piece);
                found.extend(std::iter::from_fn(|| frames.next()));
            }
            let heads: Vec<_> = found.iter().map(|frame| (frame.kind, frame.stream)).collect();
            assert_eq!(heads, [(HEADERS, 7), (DATA, 0x0102_0304), (RST_STREAM, 1)]);
            assert_eq!((&found[1].payload[..], &found[2].payload[..]), (&b"abc"[..], &[0, 0, 0, 8][..]));
        }
        assert_eq!(frame(PING, 1, 3, b"x"), [0, 0, 1, 6, 1, 0, 0, 0, 3, b'x']);
        assert_eq!(literal(":path", "/p"), b"\0\x05:path\x02/p");
    }
}
