//! openraft's `AsyncRuntime` for the real world: tokio's tasks and timers of the current thread, and
//! our own channels.
//!
//! Everything here must run inside a `tokio::runtime::LocalRuntime` (what a reactor makes) or a
//! `tokio::task::LocalSet`; tokio panics elsewhere. A panic in a task ends that task alone, and shows as a `JoinError`.

// This file is the seam: what it wraps is what others must not call directly.
#![allow(clippy::disallowed_methods, reason = "the real implementation of the runtime seam")]

use std::{
    cell::Ref,
    convert::Infallible,
    fmt::Debug,
    future::Future,
    io,
    ops::{Add, AddAssign, Sub, SubAssign},
    time::Duration,
};

use openraft::rt;

use super::{channel, domain};

/// tokio's current-thread runtime with channels that have no locks.
///
/// The functions of the trait speak of the runtime around them; a value of this type is such a runtime, for tests.
pub struct LocalRuntime {
    tokio: tokio::runtime::LocalRuntime,
}

/// Runs `future` on a runtime of its own (timers and sockets enabled) on this thread until it ends, and returns its result.
/// Tasks that it left behind are dropped.
///
/// # Panics
/// When the operating system refuses an epoll instance, or inside of another runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = <LocalRuntime as rt::AsyncRuntime>::new(1);
    rt::AsyncRuntime::block_on(&mut runtime, future)
}

/// Deadlines further away than this ...
const FAR: Duration = Duration::from_millis(150);

/// ... are put off to the next multiple of this, so that those of many groups come together: the heartbeats of a turn share
/// packets and wake-ups. (openraft's ticks are what waits like this, five for each heartbeat; 200 idle shards took 7.3 % of a
/// core without it.)
const GRID: Duration = Duration::from_millis(100);

/// How much longer a timer waits than asked for, so that it fires on the grid: `left` before its deadline, which is
/// `since_origin` after any fixed moment.
pub(crate) fn put_off(left: Duration, since_origin: Duration) -> Duration {
    let over = Duration::from_nanos((since_origin.as_nanos() % GRID.as_nanos()) as u64);
    if left < FAR || over.is_zero() { Duration::ZERO } else { GRID - over }
}

/// The deadline, or the next line of the grid behind it.
fn on_the_grid(deadline: tokio::time::Instant) -> tokio::time::Instant {
    thread_local! {
        static ORIGIN: tokio::time::Instant = tokio::time::Instant::now();
    }
    let left = deadline.saturating_duration_since(tokio::time::Instant::now());
    let since_origin = ORIGIN.with(|origin| deadline.saturating_duration_since(*origin));
    deadline + put_off(left, since_origin)
}

impl Debug for LocalRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalRuntime")
    }
}

impl rt::AsyncRuntime for LocalRuntime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: rt::OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = Instant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + rt::OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = ThreadRng;
    type Mpsc = LocalMpsc;
    type Watch = LocalWatch;
    type Oneshot = LocalOneshot;
    type Mutex<T: rt::OptionalSend + 'static> = channel::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + rt::OptionalSend + 'static,
        T::Output: rt::OptionalSend + 'static,
    {
        tokio::task::spawn_local(domain::inherit(future))
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        tokio::time::sleep_until(on_the_grid(deadline.0))
    }

    fn timeout<R, F: Future<Output = R> + rt::OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        tokio::time::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + rt::OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        tokio::time::timeout_at(deadline.0, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        ThreadRng { not_send: std::marker::PhantomData }
    }

    // Not a `LocalSet` on a plain runtime: there each task that is woken from a task of the runtime itself (quinn's) costs a
    // write to the eventfd with which a parked thread is woken, and a turn of the set around its own turn.
    fn new(_threads: usize) -> Self {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .unwrap_or_else(|error| panic!("a thread's runtime could not be made: {error}"));
        LocalRuntime { tokio }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.tokio.block_on(future)
    }

    // Never called by openraft; there is no pool of blocking threads in a reactor to run it on.
    async fn spawn_blocking<F, T>(_work: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a reactor has no threads for blocking work"))
    }
}

/// A moment on tokio's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(tokio::time::Instant);

impl rt::Instant for Instant {
    fn now() -> Self {
        Instant(tokio::time::Instant::now())
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        Instant(self.0 + duration)
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        self.0 += duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, duration: Duration) -> Instant {
        Instant(self.0 - duration)
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        self.0 -= duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.0 - earlier.0
    }
}

/// The thread's generator, seeded by the operating system; not for secrets.
#[derive(Clone, Debug)]
pub struct ThreadRng {
    /// Another thread has another generator.
    not_send: std::marker::PhantomData<std::rc::Rc<()>>,
}

impl rand_core::TryRng for ThreadRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(fastrand::u32(..))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(fastrand::u64(..))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        fastrand::fill(bytes);
        Ok(())
    }
}

/// Our `mpsc` as openraft wants it.
pub struct LocalMpsc;

impl rt::Mpsc for LocalMpsc {
    type Sender<T: rt::OptionalSend> = channel::Sender<T>;
    type Receiver<T: rt::OptionalSend> = channel::Receiver<T>;
    type WeakSender<T: rt::OptionalSend> = channel::WeakSender<T>;

    fn channel<T: rt::OptionalSend>(buffer: usize) -> (Self::Sender<T>, Self::Receiver<T>) {
        channel::mpsc(buffer)
    }
}

impl<T: rt::OptionalSend> rt::MpscSender<LocalMpsc, T> for channel::Sender<T> {
    async fn send(&self, message: T) -> Result<(), rt::SendError<T>> {
        channel::Sender::send(self, message).await.map_err(rt::SendError)
    }

    fn downgrade(&self) -> channel::WeakSender<T> {
        channel::Sender::downgrade(self)
    }
}

impl<T: rt::OptionalSend> rt::MpscReceiver<T> for channel::Receiver<T> {
    fn recv(&mut self) -> impl Future<Output = Option<T>> {
        channel::Receiver::recv(self)
    }

    fn try_recv(&mut self) -> Result<T, rt::TryRecvError> {
        channel::Receiver::try_recv(self).map_err(|error| match error {
            channel::TryRecvError::Empty => rt::TryRecvError::Empty,
            channel::TryRecvError::Closed => rt::TryRecvError::Disconnected,
        })
    }
}

impl<T: rt::OptionalSend> rt::MpscWeakSender<LocalMpsc, T> for channel::WeakSender<T> {
    fn upgrade(&self) -> Option<channel::Sender<T>> {
        channel::WeakSender::upgrade(self)
    }
}

/// Our `watch` as openraft wants it.
pub struct LocalWatch;

impl rt::Watch for LocalWatch {
    type Sender<T: rt::OptionalSend + rt::OptionalSync> = channel::WatchSender<T>;
    type Receiver<T: rt::OptionalSend + rt::OptionalSync> = channel::WatchReceiver<T>;
    type Ref<'a, T: rt::OptionalSend + 'a> = Ref<'a, T>;

    fn channel<T: rt::OptionalSend + rt::OptionalSync>(value: T) -> (Self::Sender<T>, Self::Receiver<T>) {
        channel::watch(value)
    }
}

impl<T: rt::OptionalSend + rt::OptionalSync> rt::WatchSender<LocalWatch, T> for channel::WatchSender<T> {
    fn send(&self, value: T) -> Result<(), rt::watch::SendError<T>> {
        channel::WatchSender::send(self, value).map_err(rt::watch::SendError)
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        channel::WatchSender::send_if_modified(self, modify)
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.borrow()
    }

    fn subscribe(&self) -> channel::WatchReceiver<T> {
        channel::WatchSender::subscribe(self)
    }
}

impl<T: rt::OptionalSend + rt::OptionalSync> rt::WatchReceiver<LocalWatch, T> for channel::WatchReceiver<T> {
    async fn changed(&mut self) -> Result<(), rt::RecvError> {
        channel::WatchReceiver::changed(self).await.map_err(|channel::Closed| rt::RecvError(()))
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.borrow()
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        channel::WatchReceiver::borrow_and_update(self)
    }
}

/// Our `oneshot` as openraft wants it.
pub struct LocalOneshot;

impl rt::Oneshot for LocalOneshot {
    type Sender<T: rt::OptionalSend> = channel::OneshotSender<T>;
    type Receiver<T: rt::OptionalSend> = channel::OneshotReceiver<T>;
    type ReceiverError = channel::Closed;

    fn channel<T: rt::OptionalSend>() -> (Self::Sender<T>, Self::Receiver<T>) {
        channel::oneshot()
    }
}

impl<T: rt::OptionalSend> rt::OneshotSender<T> for channel::OneshotSender<T> {
    fn send(self, value: T) -> Result<(), T> {
        channel::OneshotSender::send(self, value)
    }
}

impl<T: rt::OptionalSend + 'static> rt::Mutex<T> for channel::Mutex<T> {
    type Guard<'a>
        = channel::Guard<'a, T>
    where
        Self: 'a;

    fn new(value: T) -> Self {
        channel::Mutex::new(value)
    }

    fn lock(&self) -> impl Future<Output = Self::Guard<'_>> {
        channel::Mutex::lock(self)
    }
}

#[cfg(test)]
mod tests {
    use openraft::rt::AsyncRuntime;

    use super::*;

    /// openraft's own conformance suite for runtimes.
    #[test]
    fn conforms() {
        rt::testing::Suite::<LocalRuntime>::test_all();
    }

    /// Far deadlines come together, never early and never much later; near ones stay where they are.
    #[test]
    fn grid() {
        let now = tokio::time::Instant::now();
        let near = now + FAR / 2;
        assert_eq!(on_the_grid(near), near);
        let far: Vec<_> = (0..1_000).map(|n| now + 4 * FAR + Duration::from_micros(n * 217)).collect();
        let mut put_off: Vec<_> = far.iter().map(|deadline| on_the_grid(*deadline)).collect();
        assert!(far.iter().zip(&put_off).all(|(before, after)| before <= after && *after - *before < GRID));
        put_off.dedup();
        assert!((3..=4).contains(&put_off.len()), "{} wake-ups in 217 ms", put_off.len());
    }

    /// A panic in a task is an error for who joins it, and the thread goes on.
    #[test]
    fn panic_is_a_join_error() {
        block_on(async {
            let error = LocalRuntime::spawn(async { panic!("on purpose") }).await.unwrap_err();
            assert!(LocalRuntime::is_panic(&error));
            assert_eq!(LocalRuntime::spawn(async { 7 }).await.unwrap(), 7);
        });
    }
}
