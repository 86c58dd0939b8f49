//! openraft's `AsyncRuntime`, and our `Env`, in a simulated world: virtual time, the seed's randomness, and our own channels.
//!
//! Everything here must run inside of `SimRuntime::block_on`. Times are those of the node whose task asks
//! (`World::spawn_on`).

use std::{
    convert::Infallible,
    fmt::Debug,
    future::Future,
    io,
    marker::PhantomData,
    ops::{Add, AddAssign, Sub, SubAssign},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use openraft::rt;

use super::{
    SimDisk, SimNet,
    executor::{JoinError, JoinHandle, TimerKey, WeakWorld, World},
};
use crate::{
    env::{
        Env, channel, domain,
        runtime::{LocalMpsc, LocalOneshot, LocalWatch, put_off},
    },
    ids::NodeId,
};

/// An `Env` of the current world, and of the node whose task asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SimEnv;

impl Env for SimEnv {
    type Disk = SimDisk;
    type Net = SimNet;
    type Runtime = SimRuntime;

    fn monotonic_us() -> u64 {
        let world = World::current();
        world.local_ns(world.node()) / 1_000
    }

    fn wall_us() -> i64 {
        let world = World::current();
        world.wall_us(world.node())
    }

    fn random_u64() -> u64 {
        World::current().random_u64()
    }
}

/// A world, and the means to run something in it. Dropping it ends the world: all tasks are dropped, as by
/// `World::kill`. Dropped by a panic, it says with which seed, and what `World::record` has kept.
pub struct SimRuntime {
    world: World,
}

impl SimRuntime {
    /// A new world; the same seed, the same history.
    pub fn seeded(seed: u64) -> SimRuntime {
        SimRuntime { world: World::new(seed) }
    }

    /// Its world.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Runs `future` as a task of no node, and the tasks beside it, until it ends. Tasks that are left stay, for the next call.
    ///
    /// # Panics
    /// When `future` does, and when nothing is ready to run and no timer is left: the simulation is stuck.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.world.block_on(future)
    }
}

impl Drop for SimRuntime {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, us) = (self.world.seed(), self.world.now_us());
            eprintln!("the simulation with seed {seed} has failed after {us} us; the same seed fails again");
            eprint!("{}", self.world.recorded());
        }
        self.world.end();
    }
}

impl Debug for SimRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimRuntime(seed {} after {} us)", self.world.seed(), self.world.now_us())
    }
}

impl rt::AsyncRuntime for SimRuntime {
    type JoinError = JoinError;
    type JoinHandle<T: rt::OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = Instant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + rt::OptionalSend> = Timeout<T>;
    type ThreadLocalRng = SimRng;
    type Mpsc = LocalMpsc;
    type Watch = LocalWatch;
    type Oneshot = LocalOneshot;
    type Mutex<T: rt::OptionalSend + 'static> = channel::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + rt::OptionalSend + 'static,
        T::Output: rt::OptionalSend + 'static,
    {
        World::current().spawn(domain::inherit(future))
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        Sleep::until(<Instant as rt::Instant>::now() + duration)
    }

    /// Far deadlines come on a grid, as in a reactor.
    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let left = deadline - <Instant as rt::Instant>::now();
        Sleep::until(deadline + put_off(left, Duration::from_nanos(deadline.ns)))
    }

    fn timeout<R, F: Future<Output = R> + rt::OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        Timeout { future: Box::pin(future), sleep: Self::sleep(duration) }
    }

    fn timeout_at<R, F: Future<Output = R> + rt::OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Timeout { future: Box::pin(future), sleep: Sleep::until(deadline) }
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        *join_error == JoinError::Panic
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        SimRng { not_send: PhantomData }
    }

    /// A world of seed 0.
    fn new(_threads: usize) -> Self {
        SimRuntime::seeded(0)
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.world.block_on(future)
    }

    // As in a reactor: no threads.
    async fn spawn_blocking<F, T>(_work: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a simulated world has no threads for blocking work"))
    }
}

/// A moment on the monotonic clock of the node whose task asked for it; it means nothing to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant {
    /// Nanoseconds; what is too far away is `u64::MAX`, which never comes.
    ns: u64,
}

impl rt::Instant for Instant {
    fn now() -> Self {
        let world = World::current();
        Instant { ns: world.local_ns(world.node()) }
    }
}

fn in_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, duration: Duration) -> Instant {
        Instant { ns: self.ns.saturating_add(in_ns(duration)) }
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;

    fn sub(self, duration: Duration) -> Instant {
        Instant { ns: self.ns.saturating_sub(in_ns(duration)) }
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// Zero when `earlier` is later, as with std's.
    fn sub(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.ns.saturating_sub(earlier.ns))
    }
}

/// Future of `sleep` and `sleep_until`.
pub struct Sleep {
    world: WeakWorld,
    node: Option<NodeId>,
    deadline: Instant,
    timer: Option<TimerKey>,
}

impl Sleep {
    fn until(deadline: Instant) -> Sleep {
        let world = World::current();
        Sleep { world: world.weak(), node: world.node(), deadline, timer: None }
    }

    fn clear(&mut self, world: &World) {
        if let Some(timer) = self.timer.take() {
            world.clear_timer(timer);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(world) = self.world.upgrade() else { return Poll::Pending };
        // The waker may be another one now, and so may the moment, when the clock's rate was changed.
        self.clear(&world);
        if world.local_ns(self.node) >= self.deadline.ns {
            return Poll::Ready(());
        }
        self.timer = world.set_timer(self.node, self.deadline.ns, context.waker());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(world) = self.world.upgrade() {
            self.clear(&world);
        }
    }
}

/// The time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// Future of `timeout` and `timeout_at`. The inner future goes first: what is ready at the deadline is in time.
pub struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(value) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut self.sleep).poll(context).map(|()| Err(Elapsed))
    }
}

/// The current world's generator.
#[derive(Clone, Debug)]
pub struct SimRng {
    /// Another thread is in another world.
    not_send: PhantomData<Rc<()>>,
}

impl rand_core::TryRng for SimRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok((World::current().random_u64() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(World::current().random_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for piece in bytes.chunks_mut(8) {
            piece.copy_from_slice(&World::current().random_u64().to_le_bytes()[..piece.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
