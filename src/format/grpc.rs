//! gRPC's length-prefixed messages: cut out of a byte stream that arrives in arbitrary pieces, and inflated.
//!
//! ```text
//! offset width
//!   0      1   0: as it is, 1: compressed with the call's grpc-encoding
//!   1      4   length of the message, big-endian
//!   5          the message
//! ```
//! Promises: a length is checked before anything is kept for it, memory grows only with bytes that
//! have really arrived, and inflating stops at the limit. Does no input or output; client and server
//! share it, and the settings of the HTTP/2 connections that carry the messages.

use std::io::BufRead;
use std::io::ErrorKind;
use std::io::Read;

use bytes::Buf;
use bytes::Bytes;
use bytes::BytesMut;

/// Bytes in front of each message.
pub const PREFIX_BYTES: usize = 5;

/// Buffer for a message that comes in pieces: at most this many times what has arrived.
const GROWTH: usize = 4;

/// Bytes that an HTTP/2 stream may receive before its reader takes them, on either side (MEASURED: less costs
/// round trips on uploads).
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// The same for all streams of a connection of our client together (a server's begin smaller: `limits`).
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Largest DATA frame that either side accepts.
pub const FRAME_BYTES_MAX: u32 = 64 << 10;

/// What one stream may have waiting in h2, not yet on the socket; its sender waits above it.
pub const STREAM_SEND_BYTES_MAX: usize = 1 << 20;

/// Value of `grpc-accept-encoding`.
pub const ENCODINGS: &str = "identity,gzip";

/// How a call's compressed messages are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all; a message that says it is compressed is an error.
    Identity,
    /// RFC 1952.
    Gzip,
}

impl Encoding {
    /// The encoding of that name in a `grpc-encoding` header.
    pub fn from_name(name: &[u8]) -> Option<Encoding> {
        match name {
            b"identity" => Some(Encoding::Identity),
            b"gzip" => Some(Encoding::Gzip),
            _ => None,
        }
    }
}

/// Why bytes are not messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than the limit, on the wire.
    #[error("the message has {bytes} bytes, the limit is {max}")]
    TooLarge {
        /// Announced.
        bytes: usize,
        /// Limit.
        max: usize,
    },
    /// Longer than the limit, once inflated.
    #[error("the compressed message inflates to more than the limit of {max} bytes")]
    InflatesTooLarge {
        /// Limit.
        max: usize,
    },
    /// First byte of a message is neither 0 nor 1.
    #[error("a message starts with the compression flag {flag}; it must be 0 or 1")]
    BadFlag {
        /// What it was.
        flag: u8,
    },
    /// Compressed, but the call has no encoding.
    #[error("a message is flagged as compressed, but the call has no grpc-encoding")]
    NotEncoded,
    /// Not what the encoding says.
    #[error("a message is flagged as compressed, but is not valid gzip")]
    Corrupt,
    /// The stream ended inside a message.
    #[error("the stream ended inside a message: {have} of {wanted} bytes had arrived")]
    Truncated {
        /// Arrived, prefix included.
        have: usize,
        /// Announced, prefix included (5 while the prefix is incomplete).
        wanted: usize,
    },
}

/// The prefix of an uncompressed message.
///
/// # Panics
/// When the message has more bytes than 32 bits can count; ours are limited to far less.
pub fn prefix(message_bytes: usize) -> [u8; PREFIX_BYTES] {
    let bytes = u32::try_from(message_bytes).expect("messages are limited far below 4 GiB").to_be_bytes();
    [0, bytes[0], bytes[1], bytes[2], bytes[3]]
}

/// Key of the field that `fill_up` adds: number 2047 (reserved in every response of `ringlog.v1`), length-delimited.
const FILL_KEY: [u8; 2] = [0xfa, 0x7f];

/// Framed, uncompressed messages, the last of which has become longer by a field without a meaning, which protobuf's
/// readers skip, so that all have at least `bytes` bytes (and at most four more).
///
/// # Panics
/// When `framed` is not whole messages, at least one.
pub fn fill_up(framed: &[u8], bytes: usize) -> Bytes {
    let length = |at: usize| {
        let length = framed[at + 1..at + PREFIX_BYTES].try_into().expect("the range has four bytes");
        u32::from_be_bytes(length) as usize
    };
    let mut last = 0;
    while last + PREFIX_BYTES + length(last) < framed.len() {
        last += PREFIX_BYTES + length(last);
    }
    assert_eq!(last + PREFIX_BYTES + length(last), framed.len(), "messages are whole");
    let fill = bytes.saturating_sub(framed.len() + FILL_KEY.len() + 1);
    let mut out = BytesMut::with_capacity(bytes.max(framed.len()) + 4);
    out.extend_from_slice(framed);
    out.extend_from_slice(&FILL_KEY);
    prost::encoding::encode_varint(fill as u64, &mut out);
    out.resize(out.len() + fill, 0);
    let longer = prefix(out.len() - last - PREFIX_BYTES);
    out[last..last + PREFIX_BYTES].copy_from_slice(&longer);
    out.freeze()
}

/// Bytes that are inflated in one step of [`Message::decode`].
const STEP_BYTES: usize = 4 << 10;

/// One message as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its flag.
    pub compressed: bool,
    /// Without its prefix.
    pub bytes: Bytes,
}

impl Message {
    /// The message itself: inflated, all of it at once, if it was compressed. Stops inflating above `bytes_max`.
    ///
    /// # Errors
    /// `NotEncoded`, `Corrupt`, `InflatesTooLarge`.
    pub fn decode(self, encoding: Encoding, bytes_max: usize) -> Result<Bytes, FrameError> {
        if !self.compressed {
            return Ok(self.bytes);
        }
        let mut inflating = Inflating::new(&self, encoding, bytes_max)?;
        loop {
            if let (_, Some(bytes)) = inflating.step(STEP_BYTES)? {
                return Ok(bytes);
            }
        }
    }
}

/// A message that is inflated step by step: a few KiB may become megabytes, which take milliseconds.
pub struct Inflating {
    /// Of one gzip member; the next one gets another.
    decoder: flate2::bufread::GzDecoder<Input>,
    out: Vec<u8>,
    bytes_max: usize,
}

/// A compressed message, of which a step reads a part.
struct Input {
    bytes: Bytes,
    /// Bytes that may still be read in this step; what asks for more gets `WouldBlock`.
    may_read: usize,
}

impl Inflating {
    /// Begins to inflate a compressed message, which then has at most `bytes_max` bytes.
    ///
    /// # Errors
    /// `NotEncoded`.
    pub fn new(message: &Message, encoding: Encoding, bytes_max: usize) -> Result<Inflating, FrameError> {
        match encoding {
            Encoding::Identity => Err(FrameError::NotEncoded),
            Encoding::Gzip => Ok(Inflating {
                decoder: flate2::bufread::GzDecoder::new(Input { bytes: message.bytes.clone(), may_read: 0 }),
                out: Vec::new(),
                bytes_max,
            }),
        }
    }

    /// Inflates `bytes` more at most, reads at most as many, and stops after a gzip member: what it has read or inflated,
    /// whichever is more, and the message if that was its last part. Not to be called again then.
    ///
    /// # Errors
    /// `Corrupt`, `InflatesTooLarge`.
    pub fn step(&mut self, bytes: usize) -> Result<(usize, Option<Bytes>), FrameError> {
        // One byte more than allowed tells "too long" from "just fits".
        let may_inflate = bytes.min(self.bytes_max + 1 - self.out.len());
        let (inflated_before, input) = (self.out.len(), self.decoder.get_mut());
        let unread_before = input.bytes.len();
        input.may_read = bytes;
        let inflated = (&mut self.decoder).take(may_inflate as u64).read_to_end(&mut self.out);
        if self.out.len() > self.bytes_max {
            return Err(FrameError::InflatesTooLarge { max: self.bytes_max });
        }
        let done = (unread_before - self.decoder.get_ref().bytes.len()).max(self.out.len() - inflated_before);
        match inflated {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok((done, None)),
            Err(_) => return Err(FrameError::Corrupt),
            Ok(inflated) if inflated == may_inflate => return Ok((done, None)),
            Ok(_) => {}
        }
        let rest = self.decoder.get_ref().bytes.clone();
        if !rest.is_empty() {
            self.decoder = flate2::bufread::GzDecoder::new(Input { bytes: rest, may_read: 0 });
            return Ok((done, None));
        }
        // What waits is counted by its length.
        self.out.shrink_to(self.out.len() / 4 * 5);
        Ok((done, Some(std::mem::take(&mut self.out).into())))
    }

    /// Bytes of memory that it holds beside the message.
    pub fn held_bytes(&self) -> usize {
        self.out.capacity()
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Input {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        match self.may_read.min(self.bytes.len()) {
            0 if !self.bytes.is_empty() => Err(ErrorKind::WouldBlock.into()),
            readable => Ok(&self.bytes[..readable]),
        }
    }

    fn consume(&mut self, read: usize) {
        self.may_read -= read;
        self.bytes.advance(read);
    }
}

/// Cuts messages out of pieces of a stream.
///
/// Between two calls: `prefix_len < PREFIX_BYTES`, or `partial` is some; and
/// `partial.bytes.len() < partial.wanted <= bytes_max`.
#[derive(Debug)]
pub struct Assembler {
    bytes_max: usize,
    /// The last piece, as far as it is not consumed.
    piece: Bytes,
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    partial: Option<Partial>,
}

/// A message whose prefix is complete.
#[derive(Debug)]
struct Partial {
    compressed: bool,
    wanted: usize,
    bytes: BytesMut,
}

impl Assembler {
    /// For messages of at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Assembler {
        Assembler { bytes_max, piece: Bytes::new(), prefix: [0; PREFIX_BYTES], prefix_len: 0, partial: None }
    }

    /// Adds the stream's next piece.
    ///
    /// # Panics
    /// When `next_message` has not been called until it returned `None`.
    pub fn push(&mut self, piece: Bytes) {
        assert!(self.piece.is_empty(), "a piece is pushed only after the last one is consumed");
        self.piece = piece;
    }

    /// The next message that is complete; `None`: push the next piece. A message that lies within one
    /// piece is a slice of it, without a copy.
    ///
    /// # Errors
    /// `TooLarge` and `BadFlag`, as soon as the prefix is there; the stream is then of no more use.
    pub fn next_message(&mut self) -> Result<Option<Message>, FrameError> {
        loop {
            if let Some(partial) = &mut self.partial {
                return Ok(partial.fill(&mut self.piece).then(|| self.take_partial()).flatten());
            }
            if self.piece.is_empty() {
                return Ok(None);
            }
            let take = self.piece.len().min(PREFIX_BYTES - self.prefix_len);
            self.prefix[self.prefix_len..self.prefix_len + take].copy_from_slice(&self.piece[..take]);
            self.piece.advance(take);
            self.prefix_len += take;
            if self.prefix_len < PREFIX_BYTES {
                return Ok(None);
            }
            let (compressed, wanted) = self.check_prefix()?;
            if self.piece.len() >= wanted {
                self.prefix_len = 0;
                return Ok(Some(Message { compressed, bytes: self.piece.split_to(wanted) }));
            }
            self.partial = Some(Partial { compressed, wanted, bytes: BytesMut::new() });
        }
    }

    fn check_prefix(&self) -> Result<(bool, usize), FrameError> {
        let [flag, length @ ..] = self.prefix;
        if flag > 1 {
            return Err(FrameError::BadFlag { flag });
        }
        let bytes = u32::from_be_bytes(length) as usize;
        if bytes > self.bytes_max {
            return Err(FrameError::TooLarge { bytes, max: self.bytes_max });
        }
        Ok((flag == 1, bytes))
    }

    fn take_partial(&mut self) -> Option<Message> {
        self.prefix_len = 0;
        self.partial.take().map(|partial| Message { compressed: partial.compressed, bytes: partial.bytes.freeze() })
    }

    /// Whether everything that was pushed has come out as messages.
    pub fn is_drained(&self) -> bool {
        self.piece.is_empty() && self.prefix_len == 0
    }

    /// Bytes of the last piece that are behind the last message.
    pub fn waiting_bytes(&self) -> usize {
        self.piece.len()
    }

    /// Bytes of memory that a message which has come in part holds.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.bytes.capacity())
    }

    /// To be called at the end of the stream.
    ///
    /// # Errors
    /// `Truncated` if it ended inside a message.
    pub fn finish(&self) -> Result<(), FrameError> {
        match &self.partial {
            Some(partial) => Err(FrameError::Truncated {
                have: PREFIX_BYTES + partial.bytes.len(),
                wanted: PREFIX_BYTES + partial.wanted,
            }),
            None if self.prefix_len > 0 => Err(FrameError::Truncated { have: self.prefix_len, wanted: PREFIX_BYTES }),
            None => Ok(()),
        }
    }
}

impl Partial {
    /// Moves what belongs to this message out of `piece`; true when it is complete.
    fn fill(&mut self, piece: &mut Bytes) -> bool {
        let take = piece.len().min(self.wanted - self.bytes.len());
        let len = self.bytes.len() + take;
        if len > self.bytes.capacity() {
            // Never more than the announced length, and never much more than what has come: the
            // sender of a prefix alone costs us nothing.
            // (`reserve` would round up to twice what there was.)
            let mut grown = BytesMut::with_capacity(self.wanted.min(len * GROWTH));
            grown.extend_from_slice(&self.bytes);
            self.bytes = grown;
        }
        self.bytes.extend_from_slice(&piece[..take]);
        piece.advance(take);
        len == self.wanted
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 1 << 16;

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let mut out = prefix(message.len()).to_vec();
        out[0] = flag;
        out.extend_from_slice(message);
        out
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// Runs `stream`, cut into pieces at `cuts`, through an assembler.
    fn assemble(stream: &[u8], cuts: &[usize]) -> Result<Vec<Message>, FrameError> {
        let stream = Bytes::copy_from_slice(stream);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
        cuts.push(stream.len());
        cuts.sort_unstable();
        let (mut assembler, mut messages, mut start) = (Assembler::new(MAX), Vec::new(), 0);
        for cut in cuts {
            assembler.push(stream.slice(start..cut));
            start = cut;
            while let Some(message) = assembler.next_message()? {
                messages.push(message);
            }
            assert!(assembler.held_bytes() <= MAX);
        }
        assembler.finish()?;
        Ok(messages)
    }

    /// The last message gets longer by a field that is skipped, and is the same otherwise; the others stay as they are.
    #[test]
    fn filled_up() {
        use crate::proto::ringlog::v1::ProduceResponse;
        use prost::Message;

        let responses = [1, 2, 300].map(|count| ProduceResponse { count, topic: "t".into(), ..Default::default() });
        for count in 1..=responses.len() {
            let mut framed = Vec::new();
            for response in &responses[..count] {
                framed.extend_from_slice(&prefix(response.encoded_len()));
                response.encode(&mut framed).unwrap();
            }
            for bytes in framed.len() + 1..400 {
                let filled = fill_up(&framed, bytes);
                assert!((bytes..=bytes + 4).contains(&filled.len()), "{} instead of {bytes}", filled.len());
                let mut assembler = Assembler::new(1_000);
                assembler.push(filled);
                for response in &responses[..count] {
                    let message = assembler.next_message().unwrap().unwrap();
                    assert_eq!(ProduceResponse::decode(message.bytes).unwrap(), *response);
                }
                assert!(assembler.next_message().unwrap().is_none());
                assembler.finish().unwrap();
            }
        }
        assert_eq!(fill_up(&[0, 0, 0, 0, 0], 10)[..], [0, 0, 0, 0, 5, 0xfa, 0x7f, 2, 0, 0]);
    }

    /// The drawing at the top of this file, byte for byte.
    #[test]
    fn prefix_bytes() {
        assert_eq!(prefix(0x0102_0304), [0, 1, 2, 3, 4]);
        assert_eq!(prefix(0), [0; 5]);
    }

    /// A message that comes byte by byte never holds more memory than it was announced to have. (Found by `format::fuzz`:
    /// the buffer grew to twice its size.)
    #[test]
    fn memory_of_a_message_in_pieces() {
        let (mut assembler, stream) = (Assembler::new(MAX), Bytes::from(framed(0, &[1; 300])));
        for at in 0..stream.len() - 1 {
            assembler.push(stream.slice(at..=at));
            assert_eq!(assembler.next_message(), Ok(None));
            assert!(assembler.held_bytes() <= 300, "{} bytes at {at}", assembler.held_bytes());
        }
    }

    proptest! {
        /// Any messages, cut anywhere, come out as they went in.
        #[test]
        fn any_split_gives_the_same_messages(
            messages in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)), 0..8),
            cuts in prop::collection::vec(any::<usize>(), 0..40),
        ) {
            let mut stream = Vec::new();
            for (compressed, message) in &messages {
                stream.extend(framed(u8::from(*compressed), message));
            }
            let expected: Vec<Message> = messages
                .into_iter()
                .map(|(compressed, bytes)| Message { compressed, bytes: bytes.into() })
                .collect();
            prop_assert_eq!(assemble(&stream, &cuts).unwrap(), expected);
        }

        /// A stream that ends early yields the whole messages before the cut, then `Truncated`,
        /// unless the cut is between two messages.
        #[test]
        fn every_prefix_of_a_stream(lens in prop::collection::vec(0usize..50, 1..5), cut in any::<usize>()) {
            let mut stream = Vec::new();
            let mut ends = vec![0];
            for len in lens {
                stream.extend(framed(0, &vec![7; len]));
                ends.push(stream.len());
            }
            let cut = cut % (stream.len() + 1);
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            match assemble(&stream[..cut], &[cut / 2]) {
                Ok(messages) => {
                    prop_assert!(ends.contains(&cut));
                    prop_assert_eq!(messages.len(), whole);
                }
                Err(FrameError::Truncated { have, wanted }) => {
                    prop_assert!(!ends.contains(&cut));
                    prop_assert!(have < wanted);
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }

        /// Arbitrary bytes never panic, and never hold more than the limit.
        #[test]
        fn garbage(stream in prop::collection::vec(any::<u8>(), 0..2_000), cuts in prop::collection::vec(any::<usize>(), 0..9)) {
            let _ = assemble(&stream, &cuts);
            let _ = Message { compressed: true, bytes: stream.into() }.decode(Encoding::Gzip, MAX);
        }

        /// What was compressed comes back, if it fits.
        #[test]
        fn inflated(plain in prop::collection::vec(any::<u8>(), 0..3_000), max in 0usize..3_000) {
            let message = Message { compressed: true, bytes: gzip(&plain).into() };
            let expected = if plain.len() <= max {
                Ok(Bytes::from(plain))
            } else {
                Err(FrameError::InflatesTooLarge { max })
            };
            prop_assert_eq!(message.decode(Encoding::Gzip, max), expected);
        }
    }

    /// A prefix that announces too much is refused at its last byte, with nothing kept for it.
    #[test]
    fn lengths_that_lie() {
        let mut assembler = Assembler::new(MAX);
        let mut head = prefix(MAX + 1).to_vec();
        let last = head.pop().unwrap();
        assembler.push(head.into());
        assert_eq!(assembler.next_message(), Ok(None));
        assembler.push(Bytes::copy_from_slice(&[last]));
        assert_eq!(assembler.next_message(), Err(FrameError::TooLarge { bytes: MAX + 1, max: MAX }));
        assert_eq!(assembler.held_bytes(), 0);

        // The largest one is allowed, but its announcement alone costs nothing.
        let mut assembler = Assembler::new(MAX);
        assembler.push(Bytes::copy_from_slice(&prefix(MAX)));
        assert_eq!(assembler.next_message(), Ok(None));
        assert_eq!(assembler.held_bytes(), 0);
        assembler.push(Bytes::from_static(&[1; 100]));
        assert_eq!(assembler.next_message(), Ok(None));
        assert!(assembler.held_bytes() <= 1_000, "{}", assembler.held_bytes());
        assert_eq!(assembler.finish(), Err(FrameError::Truncated { have: 105, wanted: MAX + 5 }));
    }

    /// A message within one piece is a slice of it, not a copy.
    #[test]
    fn no_copy_within_a_piece() {
        let piece = Bytes::from(framed(0, b"abc"));
        let mut assembler = Assembler::new(MAX);
        assembler.push(piece.clone());
        let message = assembler.next_message().unwrap().unwrap();
        assert_eq!(message.bytes.as_ptr(), piece[PREFIX_BYTES..].as_ptr());
    }

    /// Flags: 2 and up do not exist; 1 needs an encoding.
    #[test]
    fn flags() {
        assert_eq!(assemble(&framed(2, b""), &[]), Err(FrameError::BadFlag { flag: 2 }));
        let message = assemble(&framed(1, b"abc"), &[]).unwrap().remove(0);
        assert_eq!(message.clone().decode(Encoding::Identity, MAX), Err(FrameError::NotEncoded));
        assert_eq!(message.decode(Encoding::Gzip, MAX), Err(FrameError::Corrupt));
    }

    /// A bomb of 64 MiB stops at the limit, and so do two gzip members that only together pass it. A cut
    /// member is corrupt.
    #[test]
    fn inflate_bombs() {
        let bomb = Message { compressed: true, bytes: gzip(&vec![0; 64 << 20]).into() };
        assert!(bomb.bytes.len() < 1 << 20);
        assert_eq!(bomb.decode(Encoding::Gzip, MAX), Err(FrameError::InflatesTooLarge { max: MAX }));

        let half = gzip(&[0; MAX / 2 + 1]);
        let twice = Message { compressed: true, bytes: [half.clone(), half.clone()].concat().into() };
        assert_eq!(twice.decode(Encoding::Gzip, MAX), Err(FrameError::InflatesTooLarge { max: MAX }));

        let cut = Message { compressed: true, bytes: half[..half.len() - 1].to_vec().into() };
        assert_eq!(cut.decode(Encoding::Gzip, MAX), Err(FrameError::Corrupt));
    }

    /// What inflates to nothing takes steps, too: a gzip member, however small, and as many bytes as a step may read.
    #[test]
    fn much_for_nothing() {
        const STEP: usize = 1_000;
        let members = gzip(&[]).repeat(100);
        // Stored blocks without a byte, of which the last says that it is, and the sum and length of nothing.
        let header: &[u8] = &gzip(&[])[..10];
        let blocks = [0, 0, 0, 0xff, 0xff].repeat(1_000);
        let one_member = [header, &blocks, &[1, 0, 0, 0xff, 0xff], &[0; 8]].concat();
        for (bytes, steps) in [(members, 100), (one_member, 6)] {
            let message = Message { compressed: true, bytes: bytes.into() };
            let mut inflating = Inflating::new(&message, Encoding::Gzip, MAX).unwrap();
            let mut done = Vec::new();
            let inflated = loop {
                let (more, inflated) = inflating.step(STEP).unwrap();
                done.push(more);
                if let Some(inflated) = inflated {
                    break inflated;
                }
            };
            assert!(inflated.is_empty());
            assert!(done.len() >= steps && done.iter().all(|&done| done <= STEP), "{done:?}");
            assert_eq!(done.iter().sum::<usize>(), message.bytes.len());
        }
    }
}
