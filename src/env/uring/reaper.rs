//! The task that finds completions: by a spin while somebody waits for an ack, else by the eventfd.

use std::{
    future::poll_fn,
    mem,
    os::fd::OwnedFd,
    rc::Weak,
    task::Poll,
    time::{Duration, Instant},
};

use tokio::io::unix::AsyncFd;

use super::Shared;
use crate::{
    env::patience::Patience,
    limits::{RING_LINGER, RING_SPIN_BACKOFF_MAX, RING_YIELD_MAX},
};

/// The reaper: one task per ring, ends with the ring.
pub(super) async fn reap(shared: Weak<Shared>, eventfd: AsyncFd<OwnedFd>, spin: Duration) {
    let mut patience = Patience::new(RING_SPIN_BACKOFF_MAX);
    let mut lingering = Patience::new(RING_SPIN_BACKOFF_MAX);
    while parked(&shared, &eventfd).await {
        let mut since = now();
        let mut spinning = None;
        let mut lingers = None;
        loop {
            let Some(ring) = shared.upgrade() else { return };
            let turn = ring.turn();
            drop(ring);
            if turn.unsubmitted {
                retry_pause().await;
                continue;
            }
            if turn.more {
                // Nobody would wake us for it.
                crate::env::yield_now().await;
                continue;
            }
            if !turn.urgent {
                if spinning.take().is_some() {
                    patience.hit();
                    since = now();
                }
                // Whoever got the ack may send the next request at once: a look at the sockets is cheaper than a wake.
                if !*lingers.get_or_insert_with(|| !spin.is_zero() && lingering.allows()) {
                    break;
                }
                if since.elapsed() > RING_LINGER {
                    lingering.missed();
                    break;
                }
                crate::env::yield_now().await;
                if stays_away() {
                    lingering.missed();
                    break;
                }
                continue;
            }
            if lingers.take() == Some(true) {
                lingering.hit();
                since = now();
            }
            if !*spinning.get_or_insert_with(|| !spin.is_zero() && patience.allows()) {
                break;
            }
            if turn.progress {
                since = now();
            } else if since.elapsed() > spin {
                patience.missed();
                break;
            }
            // Polls the sockets, too: whoever else has work goes first.
            crate::env::yield_now().await;
            if stays_away() {
                patience.missed();
                break;
            }
        }
    }
}

/// Waits for a completion, or for something urgent to be submitted. False: the ring or the runtime is gone.
async fn parked(shared: &Weak<Shared>, eventfd: &AsyncFd<OwnedFd>) -> bool {
    // Woken by the eventfd, by whoever submits something urgent, and when the task is aborted with the ring.
    poll_fn(|context| {
        let Some(shared) = shared.upgrade() else { return Poll::Ready(false) };
        let mut state = shared.state.borrow_mut();
        if mem::take(&mut state.armed) {
            return Poll::Ready(true);
        }
        state.reaper = Some(context.waker().clone());
        drop(state);
        // The counter is never read: the descriptor is edge-triggered, and each completion is an edge.
        eventfd.poll_read_ready(context).map(|ready| ready.map(|mut ready| ready.clear_ready()).is_ok())
    })
    .await
}

/// Lets other threads of this core run, and tells whether they took long.
///
/// Without this a spin delays what it waits for: the kernel's workers that finish a durable write are bound to the
/// core of the interrupt and do not preempt us (measured: 150 µs of spinning took 171 µs, of 300 took 321). But against a
/// thread that computes, a yield costs a whole time slice, 2 to 4 ms each time: then we stop spinning for a while.
fn stays_away() -> bool {
    let started = now();
    rustix::thread::sched_yield();
    started.elapsed() > RING_YIELD_MAX
}

#[allow(clippy::disallowed_methods, reason = "env is below the seam that hides tokio")]
async fn retry_pause() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[allow(clippy::disallowed_methods, reason = "env is below the seam that hides the clock")]
pub(super) fn now() -> Instant {
    Instant::now()
}
