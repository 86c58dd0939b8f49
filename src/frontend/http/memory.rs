//! Memory that requests and answers hold: the bytes of bodies that have come, not those that were announced, and of answers
//! that their clients have not taken yet. Both draw on one budget. When it is used up, whoever has held most for longest
//! (bytes times age) is closed: who trickles a large body, or does not read, makes room for the others.

#![allow(clippy::disallowed_methods, reason = "the ops thread is outside the simulator; its timers are tokio's")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    response::Response,
};
use tokio::{sync::Notify, time::Instant};

use super::socket::Connection;
use crate::{
    frontend::{CallError, Code},
    limits::HTTP_BYTES_MAX,
};

/// Bounds of bodies and answers; other ones only in tests.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLimits {
    /// Bytes of all of them.
    pub bytes: usize,
    /// A body may be slower than `rate` for this long.
    pub grace: Duration,
    /// Least bytes of a body per second, on average.
    pub rate: u64,
    /// Longest time to send a body.
    pub body: Duration,
}

impl Default for MemoryLimits {
    fn default() -> MemoryLimits {
        MemoryLimits {
            bytes: HTTP_BYTES_MAX,
            grace: Duration::from_secs(5),
            rate: 16 << 10,
            body: Duration::from_secs(30),
        }
    }
}

/// First room for a body.
const BODY_ROOM_BYTES: usize = 4 << 10;

/// The budget. Clones are handles to the same.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: MemoryLimits,
    inner: Mutex<Inner>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    used: usize,
    holders: BTreeMap<u64, Holder>,
}

#[derive(Debug)]
struct Holder {
    bytes: usize,
    since: Instant,
    /// Its request is being answered: it is not to be closed.
    pinned: bool,
    /// It was closed, and is about to go.
    ended: bool,
    connection: Connection,
}

impl Holder {
    fn weight(&self, now: Instant) -> u128 {
        self.bytes as u128 * (now.duration_since(self.since).as_micros() + 1)
    }
}

impl Inner {
    /// Who has held most for longest, if that is more than `than`.
    fn victim(&self, than: u128, now: Instant) -> Option<u64> {
        let holders = self.holders.iter().filter(|(_, holder)| !holder.pinned && !holder.ended);
        let heaviest = holders.map(|(number, holder)| (holder.weight(now), *number)).max()?;
        Some(heaviest.1).filter(|_| heaviest.0 > than)
    }
}

impl Memory {
    pub(super) fn new(limits: MemoryLimits) -> Memory {
        Memory(Arc::new(Shared { limits, inner: Mutex::default(), freed: Notify::new() }))
    }

    /// A holder of nothing yet.
    pub(super) fn hold(&self, connection: Connection) -> Held {
        let mut inner = self.lock();
        let number = inner.next;
        inner.next += 1;
        let holder = Holder { bytes: 0, since: Instant::now(), pinned: false, ended: false, connection };
        inner.holders.insert(number, holder);
        Held { memory: self.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one request or answer holds, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    memory: Memory,
    number: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.memory.lock();
        if let Some(holder) = inner.holders.remove(&self.number) {
            inner.used -= holder.bytes;
        }
        drop(inner);
        self.memory.0.freed.notify_waiters();
    }
}

/// What `Held::try_grow` found.
enum Grown {
    Done,
    /// Somebody was closed and will make room.
    Wait,
    Full,
}

impl Held {
    /// Holds `bytes` more; waits while those who are closed for it go.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` when nobody holds more than this one.
    async fn grow(&self, bytes: usize) -> Result<(), CallError> {
        loop {
            let freed = self.memory.0.freed.notified();
            tokio::pin!(freed);
            // Before the look: whoever goes in between wakes this.
            freed.as_mut().enable();
            match self.try_grow(bytes, Instant::now()) {
                Grown::Done => return Ok(()),
                Grown::Wait => freed.await,
                Grown::Full => {
                    let message = "too many bodies and answers are under way; retry after a moment";
                    return Err(CallError::retry(Code::ResourceExhausted, "HTTP_BUSY", message));
                }
            }
        }
    }

    fn try_grow(&self, bytes: usize, now: Instant) -> Grown {
        let mut inner = self.memory.lock();
        let max = self.memory.0.limits.bytes;
        let own = inner.holders.get_mut(&self.number).expect("it is there until this is dropped");
        if own.ended {
            return Grown::Full;
        }
        let weight = (own.bytes + bytes) as u128 * (now.duration_since(own.since).as_micros() + 1);
        if inner.used + bytes <= max {
            inner.used += bytes;
            inner.holders.get_mut(&self.number).expect("as above").bytes += bytes;
            return Grown::Done;
        }
        let ending: usize = inner.holders.values().filter(|holder| holder.ended).map(|holder| holder.bytes).sum();
        if inner.used - ending + bytes <= max {
            return Grown::Wait;
        }
        let Some(victim) = inner.victim(weight, now) else { return Grown::Full };
        let victim = inner.holders.get_mut(&victim).expect("it was found there");
        victim.ended = true;
        victim.connection.end();
        Grown::Wait
    }

    /// The request is whole, `bytes` of it are kept, and it is answered now: it is not closed any more.
    fn pin(&self, bytes: usize) {
        let mut inner = self.memory.lock();
        let holder = inner.holders.get_mut(&self.number).expect("it is there until this is dropped");
        holder.pinned = true;
        let freed = holder.bytes.saturating_sub(bytes);
        holder.bytes -= freed;
        inner.used -= freed;
        drop(inner);
        self.memory.0.freed.notify_waiters();
    }

    /// Of what it holds only that much is left.
    pub(super) fn shrink(&self, bytes: usize) {
        self.pin(bytes);
    }

    /// Reads a whole body of at most `max` bytes.
    ///
    /// # Errors
    /// Too large, too slow, broken, or no room.
    pub(super) async fn read(&self, body: Body, max: usize) -> Result<Vec<u8>, CallError> {
        let MemoryLimits { grace, rate, body: longest, .. } = self.memory.0.limits;
        let begun = Instant::now();
        let mut read = Vec::new();
        let mut body = std::pin::pin!(body);
        loop {
            let due = begun + (grace + Duration::from_secs_f64(read.len() as f64 / rate as f64)).min(longest);
            let frame = std::future::poll_fn(|context| body.as_mut().poll_frame(context));
            #[allow(clippy::disallowed_methods, reason = "sockets are the real world's; nothing to simulate")]
            let frame = tokio::time::timeout_at(due, frame).await;
            let data = match frame {
                Err(_) => {
                    let message =
                        format!("the body came too slowly: {} bytes within {:?}", read.len(), begun.elapsed());
                    return Err(CallError::new(Code::DeadlineExceeded, "BODY_TOO_SLOW", message));
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    let message = format!("the body could not be read: {error}");
                    return Err(CallError::invalid("BODY_UNREADABLE", message));
                }
                // Trailers say nothing to us.
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => data,
                    Err(_) => continue,
                },
            };
            let bytes = read.len() + data.len();
            if bytes > max {
                return Err(super::too_large(max));
            }
            if bytes > read.capacity() {
                let room = bytes.max((2 * read.capacity()).min(max)).max(BODY_ROOM_BYTES);
                self.grow(room - read.capacity()).await?;
                read.reserve_exact(room - read.len());
            }
            read.extend_from_slice(&data);
        }
        self.pin(read.capacity());
        Ok(read)
    }
}

/// An answer that is on its way: its bytes are held until the socket has taken the last one.
struct Answer {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Has the bytes of an answer counted until they are sent.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` when there is no room for it.
pub(super) async fn counted(response: Response, held: Held) -> Result<Response, CallError> {
    let (parts, body) = response.into_parts();
    let bytes = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    if bytes == 0 {
        return Ok(Response::from_parts(parts, body));
    }
    held.grow(bytes).await?;
    // It is in memory already: no page here is a stream.
    let unreadable = |error| CallError::new(Code::Internal, "ANSWER_UNREADABLE", format!("{error}"));
    let bytes = axum::body::to_bytes(body, bytes).await.map_err(unreadable)?;
    Ok(Response::from_parts(parts, Body::from(Bytes::from_owner(Answer { bytes, _held: held }))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::http::socket;

    /// Who is closed when there is no room: the one with most bytes for longest; not one that is answered; and nobody for one
    /// that holds more itself.
    #[test]
    fn who_makes_room() {
        let memory = Memory::new(MemoryLimits { bytes: 100, ..MemoryLimits::default() });
        let [small, large, pinned, newest] = socket::tests::connections().map(|connection| memory.hold(connection));
        let begun = memory.lock().holders[&newest.number].since;
        let grow = |held: &Held, bytes, ms| held.try_grow(bytes, begun + Duration::from_millis(ms));
        assert!(matches!(grow(&small, 10, 1), Grown::Done));
        assert!(matches!(grow(&large, 40, 1), Grown::Done));
        assert!(matches!(grow(&pinned, 60, 1), Grown::Full), "it would be the heaviest");
        assert!(matches!(grow(&pinned, 50, 1), Grown::Done));
        pinned.pin(45);
        assert!(matches!(grow(&newest, 5, 2), Grown::Done));
        assert!(matches!(grow(&newest, 20, 3), Grown::Wait));
        let ended = |held: &Held| memory.lock().holders[&held.number].ended;
        assert_eq!([&small, &large, &pinned, &newest].map(ended), [false, true, false, false]);
        assert!(matches!(grow(&newest, 20, 4), Grown::Wait), "nobody else has to go for it");
        assert!(matches!(grow(&large, 1, 4), Grown::Full), "it is closed");
        drop(large);
        assert!(matches!(grow(&newest, 20, 4), Grown::Done));
        assert_eq!(memory.lock().used, 80);
        drop((small, pinned, newest));
        assert_eq!(memory.lock().used, 0);
    }
}
