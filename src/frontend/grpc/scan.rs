//! Looks at the heads of the frames that h2 is given: how many there are, and how many of them have no cause.
//!
//! HTTP/2 has frames that cost their sender a few bytes and carry neither a request nor data: WINDOW_UPDATE, PRIORITY, PING,
//! SETTINGS, RST_STREAM, and whatever type is unknown. h2 takes any number. These idle frames have causes:
//!
//! - Bytes that came to the client: it gives back their room, on the stream and on the connection, and measures a round trip. At
//!   most three for each DATA frame, which has 256 bytes on average but for the first few tens (`small_frames`).
//! - A request: a window, a priority, a reset.
//! - Time: PINGs, settings, larger windows.
//!
//! DATA that a client sends is no cause: idle frames answer what it gets. So DATA counts by its bytes, as what it was sent does,
//! and not by its frames: else one byte in a frame of its own would pay for as many idle frames as a request. [`Scan::is_flood`]
//! says when there were far more than there was cause for.

/// RFC 9113, section 4.1.
const HEAD_BYTES: usize = 9;

/// Frame types that bring something.
const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// Idle frames without a cause: this many at once, and as many again after a while ...
const CREDIT_FREE: i64 = 16 << 10;

/// ... this many more for each stream that begins: a reset, a window for what is answered, a PING. (CONTINUATION counts as idle:
/// h2 takes five of them in a request.) ...
const CREDIT_PER_REQUEST: i64 = 8;

/// ... and one for so many bytes of DATA that came, or of anything that was sent: more than the 17 of the answer to a PING.
const BYTES_PER_CREDIT: u64 = 32;

/// What is left of all these at most: two for each frame of 256 bytes in a window of 32 MiB, for a client that reads all of it
/// and gives it back then. So many frames take a reactor some 50 ms, in turns.
const CREDIT_MAX: i64 = 256 << 10;

/// Counts frames of one connection.
///
/// `head_bytes < HEAD_BYTES`; if `rest > 0` then `head_bytes == 0`; `credit <= CREDIT_MAX`; `moved < BYTES_PER_CREDIT`.
#[derive(Debug)]
pub(super) struct Scan {
    preface: usize,
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// Bytes of the current frame that are still to come.
    rest: usize,
    /// Idle frames that may still come. Below zero it is a flood.
    credit: i64,
    /// The last stream that has begun.
    last_stream: u32,
    /// Bytes sent that have been counted.
    sent: u64,
    /// Bytes sent, and of DATA, that are too few for a credit.
    moved: u64,
}

impl Scan {
    /// Of a connection that begins with the client's preface of so many bytes.
    pub(super) fn new(preface: usize) -> Scan {
        let head = [0; HEAD_BYTES];
        Scan { preface, head, head_bytes: 0, rest: 0, credit: CREDIT_FREE, last_stream: 0, sent: 0, moved: 0 }
    }

    /// Looks at the next bytes until `frames` is used up. The number of bytes looked at.
    pub(super) fn take(&mut self, bytes: &[u8], frames: &mut usize) -> usize {
        let mut at = self.preface.min(bytes.len());
        self.preface -= at;
        while at < bytes.len() {
            if self.rest > 0 {
                let step = self.rest.min(bytes.len() - at);
                self.rest -= step;
                at += step;
                continue;
            }
            if self.head_bytes == 0 && *frames == 0 {
                break;
            }
            let step = (HEAD_BYTES - self.head_bytes).min(bytes.len() - at);
            self.head[self.head_bytes..self.head_bytes + step].copy_from_slice(&bytes[at..at + step]);
            self.head_bytes += step;
            at += step;
            if self.head_bytes == HEAD_BYTES {
                self.head_bytes = 0;
                *frames = frames.saturating_sub(1);
                self.begin_frame();
            }
        }
        at
    }

    /// Its head is whole.
    fn begin_frame(&mut self) {
        let [high, middle, low, kind, _flags, s0, s1, s2, s3] = self.head;
        let bytes = u32::from_be_bytes([0, high, middle, low]);
        // Its first bit is reserved.
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & (u32::MAX >> 1);
        self.rest = bytes as usize;
        match kind {
            DATA => self.earn(u64::from(bytes)),
            // A stream begins once; on one of before they are trailers, or ignored.
            HEADERS if stream > self.last_stream => {
                self.last_stream = stream;
                self.credit = (self.credit + CREDIT_PER_REQUEST).min(CREDIT_MAX);
            }
            _ => self.credit -= 1,
        }
    }

    /// So many bytes have gone one way or the other.
    fn earn(&mut self, bytes: u64) {
        self.moved += bytes;
        self.credit = self.credit.saturating_add_unsigned(self.moved / BYTES_PER_CREDIT).min(CREDIT_MAX);
        self.moved %= BYTES_PER_CREDIT;
    }

    /// Bytes that the current frame still wants.
    pub(super) fn rest(&self) -> usize {
        self.rest
    }

    /// All bytes that were sent to the client so far.
    pub(super) fn note_sent(&mut self, sent: u64) {
        self.earn(sent - self.sent);
        self.sent = sent;
    }

    /// Some time has passed, in which a client may have sent PINGs.
    pub(super) fn note_time(&mut self) {
        self.credit = self.credit.max(CREDIT_FREE);
    }

    /// Whether there were more idle frames than there is any cause for.
    pub(super) fn is_flood(&self) -> bool {
        self.credit < 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: u8 = 8;

    fn frame(kind: u8, stream: u32, bytes: usize) -> Vec<u8> {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        [&[length[1], length[2], length[3], kind, 0][..], &stream.to_be_bytes(), &vec![0; bytes]].concat()
    }

    /// Looks at all of it.
    fn scan_all(scan: &mut Scan, bytes: &[u8]) {
        let mut frames = usize::MAX;
        assert_eq!(scan.take(bytes, &mut frames), bytes.len());
    }

    /// The same frames are counted however they are cut, and reading stops before a frame too many.
    #[test]
    fn counts_over_any_cut() {
        let mut bytes = b"PREFACE".to_vec();
        for i in 0..30 {
            bytes.extend(frame(if i % 3 == 0 { DATA } else { IDLE }, 1, i * i % 50));
        }
        let data: u64 = (0..30).step_by(3).map(|i| i * i % 50).sum();
        let credit = i64::try_from(data / BYTES_PER_CREDIT).unwrap() - 20;
        let mut first = Vec::new();
        for size in 1..=bytes.len() {
            let mut scan = Scan::new(7);
            scan.credit = 0;
            let (mut frames, mut stops) = (usize::MAX, 0);
            for piece in bytes.chunks(size) {
                assert_eq!(scan.take(piece, &mut frames), piece.len());
            }
            assert_eq!((usize::MAX - frames, scan.credit, scan.rest), (30, credit, 0));

            let mut scan = Scan::new(7);
            let mut at = 0;
            while at < bytes.len() {
                let mut frames = 4;
                let end = (at + size * 7).min(bytes.len());
                at += scan.take(&bytes[at..end], &mut frames);
                stops += usize::from(frames == 0);
            }
            first.push(stops);
        }
        assert_eq!(*first.last().unwrap(), 7);
    }

    /// Idle frames alone are a flood in the end, however many bytes came before; those with a cause never are.
    #[test]
    fn floods() {
        let idle = frame(IDLE, 0, 4);
        let mut scan = Scan::new(0);
        for expected in [CREDIT_FREE, CREDIT_MAX] {
            for _ in 0..expected {
                scan_all(&mut scan, &idle);
            }
            assert!(!scan.is_flood());
            scan_all(&mut scan, &idle);
            assert!(scan.is_flood());
            scan.note_time();
            scan.note_sent(1 << 40);
        }

        let mut scan = Scan::new(0);
        for i in 1..200_000_u32 {
            // A consumer that gives room back for each DATA frame, on the stream and on the connection, and asks for the round
            // trip time, to which it gets the answer, too.
            scan.note_sent(u64::from(i) * (256 + 9 + 17));
            scan_all(&mut scan, &idle.repeat(3));
            // A producer that resets what it began.
            scan_all(&mut scan, &frame(HEADERS, 2 * i + 1, 20));
            scan_all(&mut scan, &idle.repeat(4));
            assert!(!scan.is_flood());
        }
    }

    /// A client that has read all that its window of 32 MiB had room for may give that back in any order, piece by piece.
    #[test]
    fn a_window_given_back_at_once() {
        let mut scan = Scan::new(0);
        let frames = (32 << 20) / 256;
        for sent in 1..=frames {
            scan.note_sent(sent * (256 + 9));
        }
        for _ in 0..2 * frames {
            scan_all(&mut scan, &frame(IDLE, 1, 4));
        }
        assert!(!scan.is_flood());
    }

    /// A flood is one whatever comes between its frames that brings next to nothing: a byte of DATA, or headers of a stream that
    /// has begun.
    #[test]
    fn mixed_floods() {
        let idle = frame(IDLE, 0, 4).repeat(8);
        for between in [frame(DATA, 1, 1), frame(DATA, 1, 0), frame(HEADERS, 1, 1), frame(9, 1, 1)] {
            let mut scan = Scan::new(0);
            scan_all(&mut scan, &frame(HEADERS, 1, 20));
            let cycle = [&between[..], &idle].concat();
            let cycles = (0..CREDIT_FREE).take_while(|_| {
                scan_all(&mut scan, &cycle);
                !scan.is_flood()
            });
            assert!(cycles.count() < 2_100, "{between:?}");
        }
    }

    /// Small messages alone, however many frames each has, are no flood.
    #[test]
    fn small_messages() {
        let mut scan = Scan::new(0);
        for _ in 0..10 * CREDIT_FREE {
            scan_all(&mut scan, &frame(DATA, 1, 1));
            scan_all(&mut scan, &frame(DATA, 1, 15));
        }
        assert!(!scan.is_flood());
    }
}
