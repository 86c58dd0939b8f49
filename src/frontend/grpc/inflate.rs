//! Inflating compressed messages: a few KiB may become megabytes, which takes milliseconds, and the decoder alone 40 KiB.
//!
//! A connection inflates one message at a time, and [`TURN_BYTES`] in each of its turns. A message that takes longer than a
//! whole turn is large. [`LARGE_MAX`] large ones of a reactor are inflated at a time, one of a connection; the others wait in
//! turn, hold nothing, and begin anew. Small ones do not wait for those that wait.

use std::cell::Cell;
use std::rc::Rc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;

use crate::env::channel::Claim;
use crate::env::channel::Slots;
use crate::format::grpc::Encoding;
use crate::format::grpc::FrameError;
use crate::format::grpc::Inflating;
use crate::format::grpc::Message;

/// Bytes that the calls of a connection inflate in one of its turns: some fifth of a millisecond.
const TURN_BYTES: usize = 128 << 10;

/// Each step counts as so many at least: to begin a gzip member costs as much by itself.
const STEP_BYTES_MIN: usize = 4 << 10;

/// Large messages that are inflated at a time: each holds up to the limit of a message.
const LARGE_MAX: usize = 8;

/// Places for the large messages of a reactor that are being inflated. Clones are the same.
#[derive(Clone)]
pub(super) struct Large(Slots);

/// What inflates the messages of one connection. Clones are the same.
#[derive(Clone)]
pub(super) struct Inflater(Rc<Connection>);

struct Connection {
    large: Large,
    /// Bytes that may still be inflated in this turn.
    left: Cell<usize>,
    /// The right to inflate a message: one of the connection has it.
    right: Slots,
    /// One large message of the connection has a place or waits for it. As one is inflated at a time, the others would have
    /// places for nothing.
    large_one: Slots,
}

/// A compressed message.
pub(super) struct Inflate {
    message: Message,
    is_large: bool,
    /// Its connection's, for large ones only.
    large_one: Claim,
    /// One of the `LARGE_MAX`, for large ones only.
    place: Claim,
    /// Its connection's. Taken last: who has it waits for nothing else.
    right: Claim,
    decoder: Option<Inflating>,
}

impl Default for Large {
    fn default() -> Large {
        Large(Slots::new(LARGE_MAX))
    }
}

impl Inflater {
    /// Of a new connection.
    pub(super) fn new(large: &Large) -> Inflater {
        Inflater(Rc::new(Connection {
            large: large.clone(),
            left: Cell::new(TURN_BYTES),
            right: Slots::new(1),
            large_one: Slots::new(1),
        }))
    }

    /// The connection's next turn begins.
    pub(super) fn begin_turn(&self) {
        self.0.left.set(TURN_BYTES);
    }

    /// Nothing more is inflated in this turn.
    pub(super) fn is_turn_over(&self) -> bool {
        self.0.left.get() == 0
    }
}

impl Inflate {
    /// Of a message whose flag says that it is compressed.
    pub(super) fn new(message: Message) -> Inflate {
        let [large_one, place, right] = [(); 3].map(|()| Claim::default());
        Inflate { message, is_large: false, large_one, place, right, decoder: None }
    }

    /// Bytes that it holds.
    pub(super) fn held_bytes(&self) -> usize {
        self.message.bytes.len() + self.decoder.as_ref().map_or(0, |decoder| decoder.held_bytes())
    }

    /// Goes on as far as the connection may in this turn. Ready with the message, it is not to be polled again.
    ///
    /// # Errors
    /// `NotEncoded`, `Corrupt`, `InflatesTooLarge`.
    pub(super) fn poll(
        &mut self,
        inflater: &Inflater,
        encoding: Encoding,
        bytes_max: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, FrameError>> {
        let connection = &*inflater.0;
        if self.is_large {
            ready!(self.poll_place(connection, cx));
        }
        ready!(connection.right.poll_take(&mut self.right, cx));
        let left = &connection.left;
        let has_whole_turn = left.get() == TURN_BYTES;
        while left.get() > 0 {
            let decoder = match &mut self.decoder {
                Some(decoder) => decoder,
                None => self.decoder.insert(Inflating::new(&self.message, encoding, bytes_max)?),
            };
            let (bytes, message) = decoder.step(left.get())?;
            left.set(left.get().saturating_sub(bytes.max(STEP_BYTES_MIN)));
            if let Some(message) = message {
                return Poll::Ready(Ok(message));
            }
        }
        self.is_large |= has_whole_turn;
        if !self.is_large {
            self.decoder = None;
        } else if self.poll_place(connection, cx).is_pending() {
            // The connection's other messages go on meanwhile.
            (self.right, self.decoder) = (Claim::default(), None);
        }
        // In the connection's next turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_place(&mut self, connection: &Connection, cx: &mut Context<'_>) -> Poll<()> {
        ready!(connection.large_one.poll_take(&mut self.large_one, cx));
        connection.large.0.poll_take(&mut self.place, cx)
    }

    /// Nobody asks for the message for a while: others do not wait until somebody does, and it begins anew.
    pub(super) fn pause(&mut self) {
        (self.large_one, self.place, self.right) = (Claim::default(), Claim::default(), Claim::default());
        self.decoder = None;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::SeqCst;
    use std::task::Wake;
    use std::task::Waker;

    use super::*;

    const BYTES_MAX: usize = 4 << 20;

    /// A message of so many bytes once it is inflated.
    pub(in crate::frontend::grpc) fn compressed(bytes: usize) -> Message {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &vec![0; bytes]).unwrap();
        Message { compressed: true, bytes: encoder.finish().unwrap().into() }
    }

    fn poll(inflate: &mut Inflate, inflater: &Inflater) -> Poll<usize> {
        let mut cx = Context::from_waker(Waker::noop());
        inflate.poll(inflater, Encoding::Gzip, BYTES_MAX, &mut cx).map(|bytes| bytes.unwrap().len())
    }

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
        }
    }

    /// A call with one message.
    struct Call {
        inflate: Inflate,
        bytes: usize,
        woken: Arc<Woken>,
        is_done: bool,
    }

    impl Call {
        /// Of a message of so many bytes once it is inflated.
        fn new(bytes: usize) -> Call {
            Call { inflate: Inflate::new(compressed(bytes)), bytes, woken: Arc::default(), is_done: false }
        }

        /// Whether it is done now. It is polled, woken or not: a frame of its stream may have come.
        fn poll(&mut self, inflater: &Inflater) -> bool {
            assert!(!self.is_done);
            self.woken.0.store(false, SeqCst);
            let waker = Waker::from(Arc::clone(&self.woken));
            let mut cx = Context::from_waker(&waker);
            if let Poll::Ready(bytes) = self.inflate.poll(inflater, Encoding::Gzip, BYTES_MAX, &mut cx) {
                assert_eq!(bytes.unwrap().len(), self.bytes);
                // As its stream drops it then.
                self.inflate.pause();
                self.is_done = true;
            }
            self.is_done
        }

        fn woken(&self) -> bool {
            self.woken.0.load(SeqCst)
        }
    }

    /// As many large messages of other connections as there may be.
    fn elsewhere(large: &Large) -> Vec<(Inflater, Call)> {
        let mut all: Vec<_> = (0..LARGE_MAX).map(|_| (Inflater::new(large), Call::new(BYTES_MAX))).collect();
        assert!(all.iter_mut().all(|(inflater, call)| !call.poll(inflater)));
        all
    }

    /// Turns of a connection, of which each polls those of `calls` that were woken.
    fn turns(count: usize, inflater: &Inflater, calls: &mut [&mut Call]) {
        for _ in 0..count {
            inflater.begin_turn();
            calls.iter_mut().filter(|call| call.woken()).for_each(|call| _ = call.poll(inflater));
        }
    }

    /// A connection of which `a` has the right, and may go on in this turn. The others wait for it in their order.
    fn behind<const N: usize>(inflater: &Inflater, others: [usize; N]) -> (Call, [Call; N]) {
        assert!(Call::new(TURN_BYTES / 2).poll(inflater));
        let (mut a, mut others) = (Call::new(TURN_BYTES - 1), others.map(Call::new));
        assert!(!a.poll(inflater) && others.iter_mut().all(|call| !call.poll(inflater)));
        inflater.begin_turn();
        (a, others)
    }

    /// A large message that was polled before another one that was woken for the right waits for a place, and is woken for it.
    #[test]
    fn polled_before_it_is_woken() {
        let large = Large::default();
        let mut elsewhere = elsewhere(&large);
        let inflater = Inflater::new(&large);
        let (mut a, [mut b, mut c]) = behind(&inflater, [1, BYTES_MAX]);
        assert!(a.poll(&inflater) && b.woken() && !c.woken());
        assert!(!c.poll(&inflater));
        turns(4, &inflater, &mut [&mut c, &mut b]);
        assert!(!c.is_done);
        elsewhere.clear();
        turns(2 * BYTES_MAX / TURN_BYTES, &inflater, &mut [&mut c, &mut b]);
        assert!(c.is_done, "nobody has woken it");
        assert!(b.is_done, "it waits for one that nobody wakes");
    }

    /// The next message of a call that had the right comes behind those that wait for it.
    #[test]
    fn nobody_passes() {
        let inflater = Inflater::new(&Large::default());
        let (mut a, [mut b, mut c]) = behind(&inflater, [1; 2]);
        assert!(a.poll(&inflater) && b.woken() && !c.woken());
        inflater.begin_turn();
        let mut next = Call::new(1);
        assert!(!next.poll(&inflater), "it takes the right before b");
        assert!(b.poll(&inflater) && c.woken() && !next.woken());
        assert!(c.poll(&inflater) && next.woken());
        assert!(next.poll(&inflater) && Call::new(1).poll(&inflater));
    }

    /// While a large message waits for a place, the others of its connection go on.
    #[test]
    fn beside_a_large_one_that_waits() {
        let large = Large::default();
        let mut elsewhere = elsewhere(&large);
        let inflater = Inflater::new(&large);
        let mut calls = [(); 3].map(|()| Call::new(BYTES_MAX));
        assert!(calls.iter_mut().all(|call| !call.poll(&inflater)));
        let [a, b, c] = &mut calls;
        for _ in 0..10 {
            turns(3, &inflater, &mut [a, b, c]);
            inflater.begin_turn();
            assert!(Call::new(1).poll(&inflater), "a small one waits for it");
        }
        elsewhere.clear();
        turns(1, &inflater, &mut [a, b, c]);
        assert_eq!(large.0.free(), LARGE_MAX - 1, "one of them has a place");
        turns(4 * BYTES_MAX / TURN_BYTES, &inflater, &mut [a, b, c]);
        assert!(a.is_done && b.is_done && c.is_done);
    }

    /// Of a hundred connections with large messages a few hold memory for them; all are done, and a small one waits for none.
    #[test]
    fn few_large_ones() {
        const BYTES: usize = 1 << 20;
        let large = Large::default();
        let mut all: Vec<_> = (0..100).map(|_| (Inflater::new(&large), Inflate::new(compressed(BYTES)))).collect();
        let mut turns = 0;
        while !all.is_empty() {
            all.retain_mut(|(inflater, inflate)| {
                inflater.begin_turn();
                match poll(inflate, inflater) {
                    Poll::Pending => true,
                    Poll::Ready(bytes) => {
                        assert_eq!(bytes, BYTES);
                        false
                    }
                }
            });
            let held = all.iter().filter(|(_, inflate)| inflate.decoder.is_some()).count();
            assert!(held <= LARGE_MAX, "{held}");
            assert_eq!(
                poll(&mut Inflate::new(compressed(TURN_BYTES - 1)), &Inflater::new(&large)),
                Poll::Ready(TURN_BYTES - 1)
            );
            turns += 1;
            assert!(turns < 100 * BYTES / TURN_BYTES, "they do not come to an end");
        }
        assert_eq!(large.0.free(), LARGE_MAX);
    }

    /// A message that is whole within a turn does not count as large because little of a turn was left when it began.
    #[test]
    fn begun_late_in_a_turn() {
        let inflater = Inflater::new(&Large::default());
        assert_eq!(poll(&mut Inflate::new(compressed(TURN_BYTES / 2)), &inflater), Poll::Ready(TURN_BYTES / 2));
        let mut second = Inflate::new(compressed(TURN_BYTES - 1));
        assert!(poll(&mut second, &inflater).is_pending() && !second.is_large);
        inflater.begin_turn();
        assert!(poll(&mut second, &inflater).is_ready());
    }

    /// One message of a connection is inflated at a time. Who has the right hands it on when it is gone, or when nobody asks for its
    /// message, and so does who waits for it.
    #[test]
    fn handed_on() {
        let inflater = Inflater::new(&Large::default());
        let mut inflates = [(); 4].map(|()| Inflate::new(compressed(BYTES_MAX)));
        assert!(inflates.iter_mut().all(|inflate| poll(inflate, &inflater).is_pending()));
        assert_eq!(inflates.each_ref().map(|inflate| inflate.right.has_slot()), [true, false, false, false]);
        inflates[1].pause();
        inflates[0].pause();
        inflates[2] = Inflate::new(compressed(1));
        inflater.begin_turn();
        assert!(poll(&mut inflates[3], &inflater).is_pending());
        assert!(inflates[3].right.has_slot() && inflates[3].place.has_slot());
        assert_eq!(inflater.0.large.0.free(), LARGE_MAX - 1);
    }
}
