//! Byte streams between a client and a node, as TCP gives them, in virtual time: what the front doors are served over in the
//! simulator.
//!
//! - Each direction has a delay with jitter and a bounded buffer: a writer whose reader does not read waits.
//! - Bytes come in segments of any size, in order; nothing is lost.
//! - `shutdown` ends one direction (FIN), the other goes on. Dropping an end ends both: with bytes that it has not read as a
//!   reset, as the kernel does. `reset` is one at once: what the peer has not read is gone.
//!
//! An end that dies with its node says so, as after a kill. Not simulated: a machine that falls silent, loss, and cuts
//! between clients and nodes.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt, io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    executor::{WeakWorld, World},
    random,
    until::Until,
};

/// Largest segment.
const SEGMENT_BYTES_MAX: u64 = 16 << 10;

/// What a connection is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire {
    /// One way, at least, µs.
    pub delay_us: u64,
    /// At most this much more, µs; each segment has its own draw, and waits for those in front of it.
    pub jitter_us: u64,
    /// Bytes of one direction that are written and not read; at least 1.
    pub buffer_bytes: usize,
}

/// Two ends of a new connection in the current world.
pub fn pair(wire: Wire, seed: u64) -> (SimSocket, SimSocket) {
    let world = World::current().weak();
    let direction = |seed| Rc::new(Direction { wire, dice: Cell::new(seed), state: RefCell::default() });
    let (there, back) = (direction(seed), direction(!seed));
    let end = |input: &Rc<Direction>, output: &Rc<Direction>| SimSocket {
        world: world.clone(),
        input: Rc::clone(input),
        output: Rc::clone(output),
        read_until: None,
        write_until: None,
    };
    (end(&back, &there), end(&there, &back))
}

/// One direction.
struct Direction {
    wire: Wire,
    dice: Cell<u64>,
    state: RefCell<State>,
}

/// `bytes` is the sum of `segments`, and at most `Wire::buffer_bytes`; the segments' times do not go back.
#[derive(Default)]
struct State {
    /// With the time at which it is there.
    segments: VecDeque<(u64, Bytes)>,
    bytes: usize,
    last_us: u64,
    /// Nothing comes behind the segments: when the reader knows it.
    finished_us: Option<u64>,
    /// The writer has reset the connection: when the reader knows it.
    reset_us: Option<u64>,
    /// The reader is gone: when the writer knows it.
    gone_us: Option<u64>,
    /// Woken by whatever the writer does; times that come, the reader waits for itself.
    reader: Option<Waker>,
    /// Woken by whatever the reader does; the same.
    writer: Option<Waker>,
}

impl Direction {
    fn arrival_us(&self, now_us: u64) -> u64 {
        now_us + self.wire.delay_us + random(&self.dice) % (self.wire.jitter_us + 1)
    }

    /// Changes the state, and has both ends look.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.borrow_mut();
        change(&mut state);
        let wakers = [state.reader.take(), state.writer.take()];
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// As many bytes as there is room for.
    fn write(&self, now_us: u64, bytes: &[u8]) -> usize {
        let room = self.wire.buffer_bytes - self.state.borrow().bytes;
        // One segment in eight is a small one: frames are cut anywhere.
        let largest = if random(&self.dice).is_multiple_of(8) { 1_460 } else { SEGMENT_BYTES_MAX };
        let segment = 1 + (random(&self.dice) % largest) as usize;
        let count = bytes.len().min(room).min(segment);
        if count > 0 {
            let at_us = self.arrival_us(now_us);
            self.change(|state| {
                state.last_us = state.last_us.max(at_us);
                state.bytes += count;
                state.segments.push_back((state.last_us, Bytes::copy_from_slice(&bytes[..count])));
            });
        }
        count
    }

    /// Moves what is there into `buf`; whether there was any.
    fn read(&self, now_us: u64, buf: &mut ReadBuf<'_>) -> bool {
        let before = buf.remaining();
        self.state.borrow_mut().take(now_us, buf);
        let read = buf.remaining() < before;
        if read {
            self.change(|_| {});
        }
        read
    }

    /// The writer says no more; what it has said still comes.
    fn finish(&self, now_us: u64) {
        let at_us = self.arrival_us(now_us);
        self.change(|state| {
            let at_us = state.last_us.max(at_us);
            state.finished_us.get_or_insert(at_us);
        });
    }
}

impl State {
    fn take(&mut self, now_us: u64, buf: &mut ReadBuf<'_>) {
        while let Some((at_us, segment)) = self.segments.front_mut() {
            if *at_us > now_us || buf.remaining() == 0 {
                return;
            }
            let count = segment.len().min(buf.remaining());
            buf.put_slice(&segment[..count]);
            segment.advance(count);
            self.bytes -= count;
            if segment.is_empty() {
                self.segments.pop_front();
            }
        }
    }
}

/// One end of a connection.
pub struct SimSocket {
    world: WeakWorld,
    input: Rc<Direction>,
    output: Rc<Direction>,
    read_until: Option<Pin<Box<Until>>>,
    write_until: Option<Pin<Box<Until>>>,
}

impl fmt::Debug for SimSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimSocket({} bytes are to be read)", self.input.state.borrow().bytes)
    }
}

impl SimSocket {
    /// What breaks the connection off while others hold this end.
    pub fn breaker(&self) -> Breaker {
        Breaker { world: self.world.clone(), input: Rc::clone(&self.input), output: Rc::clone(&self.output) }
    }

    fn now_us(&self) -> u64 {
        self.world.upgrade().map_or(u64::MAX, |world| world.now_us())
    }
}

/// Resets a connection; see `SimSocket::breaker`.
pub struct Breaker {
    world: WeakWorld,
    input: Rc<Direction>,
    output: Rc<Direction>,
}

impl Breaker {
    /// Both ends get an error from now on: this one at once, the peer after the delay. What is on its way is gone.
    pub fn reset(&self) {
        let Some(world) = self.world.upgrade() else { return };
        let now_us = world.now_us();
        let at_us = self.output.arrival_us(now_us);
        self.output.change(|state| {
            state.reset_us.get_or_insert(at_us);
            state.gone_us = Some(now_us);
        });
        self.input.change(|state| {
            state.gone_us.get_or_insert(at_us);
            state.reset_us = Some(now_us);
        });
    }
}

/// Has the task come back at the earliest of these moments that is still to come.
fn wait(
    world: &WeakWorld,
    until: &mut Option<Pin<Box<Until>>>,
    now_us: u64,
    moments: [Option<u64>; 3],
    cx: &mut Context<'_>,
) {
    let next_us = moments.into_iter().flatten().filter(|at_us| *at_us > now_us).min();
    *until = next_us.map(|at_us| Box::pin(Until::new(world, at_us)));
    if let Some(until) = until
        && until.as_mut().poll(cx).is_ready()
    {
        cx.waker().wake_by_ref();
    }
}

impl AsyncRead for SimSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let now_us = self.now_us();
        let input = Rc::clone(&self.input);
        if input.state.borrow().reset_us.is_some_and(|at_us| at_us <= now_us) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if buf.remaining() == 0 || input.read(now_us, buf) {
            return Poll::Ready(Ok(()));
        }
        let mut state = input.state.borrow_mut();
        if state.segments.is_empty() && state.finished_us.is_some_and(|at_us| at_us <= now_us) {
            return Poll::Ready(Ok(()));
        }
        state.reader = Some(cx.waker().clone());
        let moments = [state.segments.front().map(|(at_us, _)| *at_us), state.finished_us, state.reset_us];
        drop(state);
        let socket = &mut *self;
        wait(&socket.world, &mut socket.read_until, now_us, moments, cx);
        Poll::Pending
    }
}

impl AsyncWrite for SimSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let now_us = self.now_us();
        let output = Rc::clone(&self.output);
        let gone_us = output.state.borrow().gone_us;
        if gone_us.is_some_and(|at_us| at_us <= now_us) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let written = output.write(now_us, buf);
        if written > 0 || buf.is_empty() {
            return Poll::Ready(Ok(written));
        }
        output.state.borrow_mut().writer = Some(cx.waker().clone());
        let socket = &mut *self;
        wait(&socket.world, &mut socket.write_until, now_us, [gone_us, None, None], cx);
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.finish(self.now_us());
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let now_us = self.now_us();
        if now_us == u64::MAX {
            return;
        }
        let at_us = self.output.arrival_us(now_us);
        if self.input.state.borrow().bytes > 0 {
            self.output.change(|state| {
                state.reset_us.get_or_insert(at_us);
            });
        } else {
            self.output.finish(now_us);
        }
        self.input.change(|state| {
            state.gone_us.get_or_insert(at_us);
        });
    }
}

#[cfg(test)]
mod tests;
