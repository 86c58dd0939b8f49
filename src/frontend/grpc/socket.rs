//! A client's byte stream (TCP, or a simulated one) as h2 should see it: large reads however little h2 asks for, and many small writes
//! gathered into one. h2 alone reads 8 KiB at a time and writes every frame above 256 bytes by itself.
//!
//! `poll_flush` does nothing; the connection calls [`Socket::poll_write_out`] when it has run
//! out of work, so that the answers of a whole round leave together. Buffers are borrowed from the thread while
//! there is something in them: an idle connection has none.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

use crate::frontend::grpc::scan::Scan;
use crate::frontend::grpc::stranger;

/// The client's preface (RFC 9113, section 3.4), which is no frame.
const PREFACE_BYTES: usize = 24;

/// One read from the kernel.
const READ_BYTES: usize = 64 << 10;

/// The same for a client that brings less than that in a turn: what it lets wait for its next turn stays small.
const SMALL_READ_BYTES: usize = 16 << 10;

/// Bytes gathered before the socket must take some; above it h2 has to wait.
const WRITE_BYTES_MAX: usize = 256 << 10;

/// The same once the socket has taken less than there was: what a client leaves unread stays with its calls, where it is
/// counted.
const BLOCKED_BYTES_MAX: usize = 16 << 10;

/// Bytes that the kernel is given in one turn of a connection, beside what is gathered: some tenth of a millisecond of copying.
const TURN_WRITE_BYTES: usize = 256 << 10;

/// A write or read of this size is not copied through a buffer.
const DIRECT_BYTES: usize = 32 << 10;

/// Slices of one write: h2 has its own limit of 64.
const SLICES_MAX: usize = 65;

/// Empty buffers of one kind that a thread keeps.
const SPARES_MAX: usize = 8;

thread_local! {
    static READ_SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static WRITE_SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn give_back(spares: &'static std::thread::LocalKey<RefCell<Vec<Vec<u8>>>>, buffer: Vec<u8>) {
    if buffer.capacity() > 0 {
        spares.with_borrow_mut(|spares| {
            if spares.len() < SPARES_MAX {
                spares.push(buffer);
            }
        });
    }
}

fn borrow(spares: &'static std::thread::LocalKey<RefCell<Vec<Vec<u8>>>>) -> Option<Vec<u8>> {
    spares.with_borrow_mut(Vec::pop)
}

/// A connection's socket over the byte stream `S`. Clones are handles to the same one: h2 holds one, the connection
/// another.
pub(super) struct Socket<S>(Rc<RefCell<Inner<S>>>);

impl<S> Clone for Socket<S> {
    fn clone(&self) -> Socket<S> {
        Socket(Rc::clone(&self.0))
    }
}

/// What a reader waits for that has read all it was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// It is woken at once: whoever polls it allows more first.
    Wake,
    /// Whoever allows more wakes it.
    Wait,
}

/// `input_start <= input_end <= input.len()`, and `input` is empty or `READ_BYTES` long;
/// `output_start <= output.len()`, and what lies between is not written yet, at most `WRITE_BYTES_MAX`.
struct Inner<S> {
    stream: S,
    input: Vec<u8>,
    input_start: usize,
    input_end: usize,
    output: Vec<u8>,
    output_start: usize,
    /// The socket did not take all that it was given last.
    blocked: bool,
    received: u64,
    /// What came first, as far as `received` goes.
    first: [u8; stranger::FIRST_BYTES],
    sent: u64,
    /// Bytes that large writes may still bring in this turn, and whether one had to wait for the next.
    writable: usize,
    held_back: bool,
    /// Bytes of the next read.
    read_bytes: usize,
    /// Bytes that h2 may read in this round: the kernel is asked for no more at a time, so that none of them wait here.
    round_bytes: usize,
    /// Bytes and frames that h2 may still read, and what becomes of a reader who wants more.
    allowed: usize,
    frames: usize,
    then: Then,
    /// The reader wanted more.
    wanted: bool,
    scan: Scan,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    pub(super) fn new(stream: S) -> Socket<S> {
        Socket(Rc::new(RefCell::new(Inner {
            stream,
            input: Vec::new(),
            input_start: 0,
            input_end: 0,
            output: Vec::new(),
            output_start: 0,
            blocked: false,
            received: 0,
            first: [0; stranger::FIRST_BYTES],
            sent: 0,
            writable: TURN_WRITE_BYTES,
            held_back: false,
            read_bytes: SMALL_READ_BYTES,
            round_bytes: 0,
            allowed: 0,
            frames: 0,
            then: Then::Wait,
            wanted: false,
            scan: Scan::new(PREFACE_BYTES),
        })))
    }

    /// The reader gets this many bytes and frames; then its reads are pending. `then` says whether it is woken for more.
    pub(super) fn allow(&self, bytes: usize, frames: usize, then: Then) {
        let inner = &mut *self.0.borrow_mut();
        (inner.allowed, inner.frames, inner.then, inner.wanted) = (bytes, frames, then, false);
        inner.round_bytes = bytes;
    }

    /// The connection's turn has ended, in which it has received so much: what was read and not used keeps no large buffer.
    pub(super) fn end_turn(&self, received: u64) {
        self.0.borrow_mut().end_turn(received);
    }

    /// Bytes that the kernel has taken so far.
    pub(super) fn sent(&self) -> u64 {
        self.0.borrow().sent
    }

    /// Whether a write waits for the connection's next turn. Nobody else wakes for it.
    pub(super) fn is_held_back(&self) -> bool {
        self.0.borrow().held_back
    }

    /// Whether the reader has wanted more than it was allowed.
    pub(super) fn wants_more(&self) -> bool {
        self.0.borrow().wanted
    }

    /// Whether the client has sent far more frames that bring nothing than it has had a cause for.
    pub(super) fn is_flooded(&self) -> bool {
        let inner = &mut *self.0.borrow_mut();
        inner.scan.note_sent(inner.sent);
        inner.scan.is_flood()
    }

    /// Some seconds have passed.
    pub(super) fn note_time(&self) {
        self.0.borrow_mut().scan.note_time();
    }

    /// Of a connection that is no HTTP/2: reads on until what it speaks can be told, and says what that is answered (nothing, if
    /// it is not known, or ends before that).
    pub(super) fn poll_stranger(&self, cx: &mut Context<'_>) -> Poll<&'static [u8]> {
        let inner = &mut *self.0.borrow_mut();
        loop {
            if let Some(answer) = stranger::answer(inner.first_bytes()) {
                return Poll::Ready(answer);
            }
            let read = ready!(inner.poll_fill(cx));
            if read.is_err() || inner.input_end == 0 {
                return Poll::Ready(b"");
            }
        }
    }

    /// Closes the connection with an answer that is no HTTP/2. What was gathered is forgotten.
    pub(super) async fn close_with(&self, answer: &[u8]) {
        let mut at = 0;
        let closed = poll_fn(|cx| stranger::poll_answer(&mut self.0.borrow_mut().stream, cx, answer, &mut at));
        if let Err(error) = closed.await {
            tracing::debug!(%error, "a client that speaks no HTTP/2 went away");
        }
    }

    /// Bytes that have ever been read.
    pub(super) fn received(&self) -> u64 {
        self.0.borrow().received
    }

    /// Writes what has been gathered.
    pub(super) fn poll_write_out(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_write_out(cx)
    }
}

/// The slices of the first `bytes` of what `slices` hold, as many as `into` has room for; returns how many they are.
pub(in crate::frontend) fn cut<'a>(slices: &'a [IoSlice<'_>], bytes: usize, into: &mut [IoSlice<'a>]) -> usize {
    let (mut left, mut count) = (bytes, 0);
    for (slice, place) in slices.iter().zip(into) {
        if left == 0 {
            break;
        }
        let part = &slice[..slice.len().min(left)];
        (*place, left, count) = (IoSlice::new(part), left - part.len(), count + 1);
    }
    count
}

impl<S: AsyncRead + AsyncWrite + Unpin> Inner<S> {
    /// Pending, it is woken by the socket or, when no more is allowed, has woken already.
    fn poll_read(&mut self, cx: &mut Context<'_>, wanted: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.allowed == 0 || (self.frames == 0 && self.scan.rest() == 0) {
            self.wanted = true;
            if self.then == Then::Wake {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        if self.input_start == self.input_end {
            // Only for what a large frame lacks.
            if self.scan.rest() >= DIRECT_BYTES && (DIRECT_BYTES..=self.allowed).contains(&wanted.remaining()) {
                let before = wanted.filled().len();
                let read = Pin::new(&mut self.stream).poll_read(cx, wanted);
                let bytes = &wanted.filled()[before..];
                self.received += bytes.len() as u64;
                self.allowed -= bytes.len();
                let taken = self.scan.take(bytes, &mut self.frames);
                // What a large frame does not fill may bring more small ones than are allowed.
                let mut others = usize::MAX;
                self.scan.take(&bytes[taken..], &mut others);
                return read;
            }
            ready!(self.poll_fill(cx))?;
        }
        let take = wanted.remaining().min(self.input_end - self.input_start).min(self.allowed);
        let input = &self.input[self.input_start..self.input_start + take];
        let take = self.scan.take(input, &mut self.frames);
        wanted.put_slice(&input[..take]);
        self.input_start += take;
        self.allowed -= take;
        Poll::Ready(Ok(()))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.input.len() < READ_BYTES {
            self.input = borrow(&READ_SPARES).unwrap_or_else(|| vec![0; READ_BYTES]);
        }
        let mut read = ReadBuf::new(&mut self.input[..self.read_bytes.min(self.round_bytes)]);
        let result = Pin::new(&mut self.stream).poll_read(cx, &mut read);
        (self.input_start, self.input_end) = (0, read.filled().len());
        let known = self.first_bytes().len();
        let more = self.input_end.min(stranger::FIRST_BYTES - known);
        self.first[known..known + more].copy_from_slice(&self.input[..more]);
        self.received += self.input_end as u64;
        if self.input_end == 0 {
            give_back(&READ_SPARES, std::mem::take(&mut self.input));
        }
        result
    }

    fn first_bytes(&self) -> &[u8] {
        &self.first[..self.received.min(stranger::FIRST_BYTES as u64) as usize]
    }

    fn end_turn(&mut self, received: u64) {
        (self.writable, self.held_back) = (TURN_WRITE_BYTES, false);
        self.read_bytes = if received >= READ_BYTES as u64 { READ_BYTES } else { SMALL_READ_BYTES };
        let rest = self.input_end - self.input_start;
        if self.input.len() == READ_BYTES && rest <= SMALL_READ_BYTES {
            let rest = self.input[self.input_start..self.input_end].to_vec();
            (self.input_start, self.input_end) = (0, rest.len());
            give_back(&READ_SPARES, std::mem::replace(&mut self.input, rest));
        }
    }

    fn gathered(&self) -> usize {
        self.output.len() - self.output_start
    }

    /// Whether so many bytes more may be gathered.
    fn has_room(&self, bytes: usize) -> bool {
        let most = if self.blocked { BLOCKED_BYTES_MAX } else { WRITE_BYTES_MAX };
        self.gathered() + bytes <= most
    }

    /// Gathers `slices`, for which there is room.
    fn gather(&mut self, slices: &[IoSlice<'_>]) -> usize {
        if self.output.capacity() == 0 {
            self.output = borrow(&WRITE_SPARES).unwrap_or_default();
        }
        if self.output_start > WRITE_BYTES_MAX / 2 {
            self.output.drain(..self.output_start);
            self.output_start = 0;
        }
        let before = self.output.len();
        for slice in slices {
            self.output.extend_from_slice(slice);
        }
        self.output.len() - before
    }

    /// Of `slices`, which are so many bytes, the kernel takes nothing now.
    fn gather_or_wait(&mut self, slices: &[IoSlice<'_>], bytes: usize) -> Poll<io::Result<usize>> {
        if self.has_room(bytes) { Poll::Ready(Ok(self.gather(slices))) } else { Poll::Pending }
    }

    fn wrote(&mut self, bytes: usize) {
        self.blocked = false;
        self.sent += bytes as u64;
        self.output_start += bytes;
        if self.output_start == self.output.len() {
            self.output.clear();
            self.output_start = 0;
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let slices = &slices[..slices.len().min(SLICES_MAX - 1)];
        let bytes = slices.iter().map(|slice| slice.len()).sum::<usize>();
        if bytes < DIRECT_BYTES && self.has_room(bytes) {
            return Poll::Ready(Ok(self.gather(slices)));
        }
        loop {
            if self.writable == 0 {
                self.held_back = true;
                return self.gather_or_wait(slices, bytes);
            }
            let gathered = self.gathered();
            let mut all = [IoSlice::new(&[]); SLICES_MAX];
            all[0] = IoSlice::new(&self.output[self.output_start..]);
            let count = 1 + cut(slices, self.writable, &mut all[1..]);
            match Pin::new(&mut self.stream).poll_write_vectored(cx, &all[..count])? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(wrote) => {
                    self.wrote(wrote.min(gathered));
                    self.writable = self.writable.saturating_sub(wrote);
                    if wrote > gathered {
                        self.sent += (wrote - gathered) as u64;
                        return Poll::Ready(Ok(wrote - gathered));
                    }
                }
                Poll::Pending => {
                    self.blocked = true;
                    return self.gather_or_wait(slices, bytes);
                }
            }
        }
    }

    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.gathered() > 0 {
            let written = Pin::new(&mut self.stream).poll_write(cx, &self.output[self.output_start..]);
            self.blocked = written.is_pending();
            let wrote = ready!(written)?;
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.wrote(wrote);
        }
        give_back(&WRITE_SPARES, std::mem::take(&mut self.output));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_write_out(cx))?;
        Pin::new(&mut inner.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering;
    use std::task::Wake;
    use std::task::Waker;

    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::env::runtime::block_on;
    use crate::frontend::grpc::tests::pair;

    /// Sizes around every threshold, and far above what the kernel takes at once.
    const SIZES: [usize; 11] = [1, 17, 1_000, DIRECT_BYTES - 1, DIRECT_BYTES, 3, 70_000, 300_000, 9, 2_000_000, 5];

    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
        (0..bytes).map(|i| ((i + seed) * 31 % 251) as u8).collect()
    }

    /// Bytes leave in the order in which they were written, in whatever pieces and however slowly they are read;
    /// afterwards no buffer is kept.
    #[test]
    fn writes_stay_in_order() {
        block_on(async {
            let (mut reader, stream) = pair().await;
            let mut socket = Socket::new(stream);
            let sent: Vec<u8> = SIZES.iter().enumerate().flat_map(|(i, size)| pattern(*size, i)).collect();
            let write = async {
                for (i, size) in SIZES.iter().enumerate() {
                    let bytes = pattern(*size, i);
                    let (mut first, mut second) = bytes.split_at(size / 3);
                    while !(first.is_empty() && second.is_empty()) {
                        let slices = [IoSlice::new(first), IoSlice::new(second)];
                        let wrote = poll_fn(|cx| Pin::new(&mut socket).poll_write_vectored(cx, &slices)).await.unwrap();
                        assert!(socket.0.borrow().gathered() <= WRITE_BYTES_MAX);
                        socket.end_turn(0);
                        let of_first = wrote.min(first.len());
                        (first, second) = (&first[of_first..], &second[wrote - of_first..]);
                    }
                    if i % 4 == 0 {
                        poll_fn(|cx| socket.poll_write_out(cx)).await.unwrap();
                    }
                }
                poll_fn(|cx| socket.poll_write_out(cx)).await.unwrap();
                assert_eq!(socket.0.borrow().output.capacity(), 0);
                socket.shutdown().await.unwrap();
            };
            let read = async {
                let mut received = Vec::new();
                let mut piece = [0; 3_000];
                loop {
                    let bytes = reader.read(&mut piece).await.unwrap();
                    if bytes == 0 {
                        return received;
                    }
                    received.extend_from_slice(&piece[..bytes]);
                }
            };
            let ((), received) = tokio::join!(write, read);
            assert_eq!(received.len(), sent.len());
            assert!(received == sent);
        });
    }

    /// For a client that reads nothing little is gathered, of small frames, and nothing of large ones.
    #[test]
    fn little_waits_for_who_does_not_read() {
        block_on(async {
            let (mut reader, stream) = pair().await;
            let mut socket = Socket::new(stream);
            for size in [1_000, 70_000] {
                let frame = pattern(size, 5);
                let mut turn = 0;
                loop {
                    let wrote = poll_fn(|cx| Poll::Ready(Pin::new(&mut socket).poll_write(cx, &frame))).await;
                    turn += 1;
                    // Each turn ends with a write.
                    if turn % 4 == 0 {
                        let _ = poll_fn(|cx| Poll::Ready(socket.poll_write_out(cx))).await;
                        socket.end_turn(0);
                    }
                    if wrote.is_pending() {
                        break;
                    }
                }
                assert!(socket.0.borrow().gathered() <= BLOCKED_BYTES_MAX + 4 * 1_000);
            }
            // It goes on when the client reads.
            let mut piece = vec![0; 1 << 20];
            let read = async { while reader.read(&mut piece).await.unwrap() > 0 {} };
            let write = async {
                poll_fn(|cx| socket.poll_write_out(cx)).await.unwrap();
                socket.write_all(&pattern(200_000, 1)).await.unwrap();
                socket.shutdown().await.unwrap();
            };
            tokio::join!(read, write);
            assert_eq!(socket.0.borrow().gathered(), 0);
        });
    }

    /// In one turn the kernel gets so much, in order, and no more; what is left goes out in the next ones.
    #[test]
    fn writes_are_rationed() {
        block_on(async {
            let (mut reader, stream) = pair().await;
            let mut socket = Socket::new(stream);
            let sent = pattern(TURN_WRITE_BYTES * 5, 5);
            let write = async {
                let mut wrote = 0;
                for turn in 1..=3 {
                    poll_fn(|cx| {
                        loop {
                            let slices: Vec<_> = sent[wrote..].chunks(100_000).map(IoSlice::new).collect();
                            match Pin::new(&mut socket).poll_write_vectored(cx, &slices) {
                                Poll::Ready(bytes) => wrote += bytes.unwrap(),
                                Poll::Pending if socket.is_held_back() => return Poll::Ready(()),
                                Poll::Pending => return Poll::Pending,
                            }
                        }
                    })
                    .await;
                    assert_eq!(wrote, turn * TURN_WRITE_BYTES);
                    socket.end_turn(0);
                    assert!(!socket.is_held_back());
                }
                socket.shutdown().await.unwrap();
            };
            let mut received = Vec::new();
            let read = reader.read_to_end(&mut received);
            tokio::join!(write, read).1.unwrap();
            assert!(received == sent[..3 * TURN_WRITE_BYTES]);
        });
    }

    /// A reader gets what is allowed and not a byte more, whatever it asks for; it is woken to come again.
    #[test]
    fn reads_are_rationed() {
        const ALLOWED: usize = 100_000;
        block_on(async {
            let (mut writer, stream) = pair().await;
            let mut socket = Socket::new(stream);
            let write = async {
                writer.write_all(&pattern(10 * ALLOWED, 3)).await.unwrap();
            };
            let read = async {
                for asked in [1 << 20, 50_000, 8_192, 1_000] {
                    socket.allow(ALLOWED, usize::MAX, Then::Wake);
                    let mut received = 0;
                    while received < ALLOWED {
                        received += socket.read(&mut vec![0; asked]).await.unwrap();
                    }
                    assert_eq!(received, ALLOWED);
                    let woken = Arc::new(Woken(AtomicBool::new(false)));
                    let waker = Waker::from(woken.clone());
                    let mut piece = [0; 10];
                    let mut piece = ReadBuf::new(&mut piece);
                    let more = Pin::new(&mut socket).poll_read(&mut Context::from_waker(&waker), &mut piece);
                    assert!(more.is_pending() && woken.0.load(Ordering::SeqCst));
                }
            };
            tokio::join!(write, read);
        });
    }

    /// Bytes arrive in order, whatever is asked for; a socket that waits holds no buffer.
    #[test]
    fn reads_stay_in_order() {
        block_on(async {
            let (mut writer, stream) = pair().await;
            let mut socket = Socket::new(stream);
            let sent = pattern(3_000_000, 7);
            let write = async {
                for piece in sent.chunks(12_345) {
                    writer.write_all(piece).await.unwrap();
                }
                writer.shutdown().await.unwrap();
            };
            let read = async {
                let mut received = Vec::new();
                socket.allow(usize::MAX, usize::MAX, Then::Wait);
                for size in SIZES.iter().cycle() {
                    let mut piece = vec![0; *size];
                    let bytes = socket.read(&mut piece).await.unwrap();
                    if bytes == 0 {
                        break;
                    }
                    received.extend_from_slice(&piece[..bytes]);
                }
                assert_eq!(socket.received(), received.len() as u64);
                assert!(socket.0.borrow().input.is_empty());
                received
            };
            let ((), received) = tokio::join!(write, read);
            assert!(received == sent);
        });
    }
}
