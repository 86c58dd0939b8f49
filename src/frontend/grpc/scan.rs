//! Looks at the heads of the frames that h2 is given: how many there are, and how many of them bring nothing.
//!
//! HTTP/2 has frames that cost their sender a few bytes and carry neither a request nor data: WINDOW_UPDATE, PRIORITY, PING,
//! SETTINGS, RST_STREAM, and whatever type is unknown. A client needs some for what it gets and sends, and a few without
//! any cause. h2 takes any number. [`Scan::is_flood`] says when there were far more than there was cause for.

/// RFC 9113, section 4.1.
const HEAD_BYTES: usize = 9;

/// Frame types that bring something: DATA, HEADERS and CONTINUATION.
const USEFUL: [u8; 3] = [0, 1, 9];

/// Idle frames without a cause: this many at once ...
const CREDIT_MAX: i64 = 16 << 10;

/// ... and this many more for each frame that brings something (a reset, a window for what is answered, a PING) ...
const CREDIT_PER_USEFUL: i64 = 8;

/// ... and one for so many bytes that were sent to the client, for which it may open windows. Above the 17 bytes that the
/// answer to a PING has.
const SENT_BYTES_PER_CREDIT: u64 = 32;

/// Counts frames of one connection.
///
/// `head_bytes < HEAD_BYTES`; if `rest > 0` then `head_bytes == 0`; `credit <= CREDIT_MAX`.
#[derive(Debug)]
pub(super) struct Scan {
    preface: usize,
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// Bytes of the current frame that are still to come.
    rest: usize,
    /// Idle frames that may still come. Below zero it is a flood.
    credit: i64,
    /// Bytes sent that have been credited.
    sent: u64,
}

impl Scan {
    /// Of a connection that begins with the client's preface of so many bytes.
    pub(super) fn new(preface: usize) -> Scan {
        Scan { preface, head: [0; HEAD_BYTES], head_bytes: 0, rest: 0, credit: CREDIT_MAX, sent: 0 }
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
                self.rest =
                    usize::from(self.head[0]) << 16 | usize::from(self.head[1]) << 8 | usize::from(self.head[2]);
                *frames = frames.saturating_sub(1);
                let cause = if USEFUL.contains(&self.head[3]) { CREDIT_PER_USEFUL } else { -1 };
                self.credit = (self.credit + cause).min(CREDIT_MAX);
            }
        }
        at
    }

    /// Bytes that the current frame still wants.
    pub(super) fn rest(&self) -> usize {
        self.rest
    }

    /// All bytes that were sent to the client so far.
    pub(super) fn note_sent(&mut self, sent: u64) {
        let credit = (sent - self.sent) / SENT_BYTES_PER_CREDIT;
        self.sent += credit * SENT_BYTES_PER_CREDIT;
        self.credit = self.credit.saturating_add_unsigned(credit).min(CREDIT_MAX);
    }

    /// Some time has passed, in which a client may have sent PINGs.
    pub(super) fn note_time(&mut self) {
        self.credit = CREDIT_MAX;
    }

    /// Whether there were more idle frames than there is any cause for.
    pub(super) fn is_flood(&self) -> bool {
        self.credit < 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, bytes: usize) -> Vec<u8> {
        let length = u32::try_from(bytes).unwrap().to_be_bytes();
        let head = [length[1], length[2], length[3], kind, 0, 0, 0, 0, 1];
        [&head[..], &vec![0; bytes][..]].concat()
    }

    /// The same frames are counted however they are cut, and reading stops before a frame too many.
    #[test]
    fn counts_over_any_cut() {
        let mut bytes = b"PREFACE".to_vec();
        for i in 0..30 {
            bytes.extend(frame(if i % 3 == 0 { 0 } else { 8 }, i * i % 50));
        }
        let mut first = Vec::new();
        for size in 1..=bytes.len() {
            let mut scan = Scan::new(7);
            scan.credit = 0;
            let (mut frames, mut stops) = (usize::MAX, 0);
            for piece in bytes.chunks(size) {
                assert_eq!(scan.take(piece, &mut frames), piece.len());
            }
            assert_eq!((usize::MAX - frames, scan.credit, scan.rest), (30, 10 * CREDIT_PER_USEFUL - 20, 0));

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

    /// Idle frames alone are a flood in the end; those with a cause never are.
    #[test]
    fn floods() {
        let mut scan = Scan::new(0);
        let (mut frames, idle) = (usize::MAX, frame(8, 4));
        for _ in 0..CREDIT_MAX {
            scan.take(&idle, &mut frames);
        }
        assert!(!scan.is_flood());
        scan.take(&idle, &mut frames);
        assert!(scan.is_flood());

        let mut scan = Scan::new(0);
        for i in 0..200_000_u64 {
            // A consumer of tiny messages that gives room back for each of them, and asks for the round trip time.
            scan.note_sent(i * 256);
            (0..3).for_each(|_| _ = scan.take(&idle, &mut frames));
            // A producer that resets what it began.
            scan.take(&frame(1, 20), &mut frames);
            (0..4).for_each(|_| _ = scan.take(&idle, &mut frames));
            assert!(!scan.is_flood());
        }
    }
}
