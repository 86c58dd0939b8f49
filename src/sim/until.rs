//! Waiting for a moment of the world's time, which no node's clock changes: what devices and wires do.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use super::executor::{TimerKey, WeakWorld, World};

/// Ends when the world has come to `at_us`; never, when there is no world any more. Dropped, it leaves no timer behind.
pub(super) struct Until {
    world: WeakWorld,
    at_us: u64,
    timer: Option<TimerKey>,
}

impl Until {
    /// Virtual microseconds since the world began; `u64::MAX` never comes.
    pub(super) fn new(world: &WeakWorld, at_us: u64) -> Until {
        Until { world: world.clone(), at_us, timer: None }
    }

    fn clear(&mut self, world: &World) {
        if let Some(timer) = self.timer.take() {
            world.clear_timer(timer);
        }
    }
}

impl Future for Until {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(world) = self.world.upgrade() else { return Poll::Pending };
        // The waker may be another one now.
        self.clear(&world);
        if world.now_us() >= self.at_us {
            return Poll::Ready(());
        }
        self.timer = world.set_world_timer(self.at_us, context.waker());
        Poll::Pending
    }
}

impl Drop for Until {
    fn drop(&mut self) {
        if let Some(world) = self.world.upgrade() {
            self.clear(&world);
        }
    }
}
