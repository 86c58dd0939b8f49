//! The storage ring of a reactor: io_uring for reads, writes and syncs of open files.
//!
//! One ring per reactor, used by that reactor's thread only. An operation is submitted at once, because
//! a durable append waits for nothing else. Completions are looked for in three ways, cheapest first:
//! right after the submit (reads out of the page cache are done by then), by spinning for a
//! short while when somebody waits for an append (waking a sleeping core costs 16 µs), and
//! otherwise by an eventfd that wakes the reactor like a socket does.
//!
//! Promises: buffers and descriptors given to the kernel belong to the operation until its completion
//! arrives, even if the future is dropped; at most `RING_OPERATIONS_MAX` operations are in the
//! kernel, more wait in the order of their arrival, and so the completion queue cannot overflow. A write
//! that was cut short is an error. Dropping the last handle waits for what is in flight.
//!
//! It does not open, rename or remove anything: `storage_thread` does. Nor does it write through the page cache (`disk`
//! sees to that): the kernel hands such writes to one file to workers of its own that take one after the other (io-wq,
//! "hashed" work), and these lost the last of a few hundred in 1 to 3 of 1,000 runs.
//!
//! This file has most of the unsafe code (`tidy` lists where there may be any).
#![allow(unsafe_code)]

mod reaper;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    fmt::Debug,
    future::Future,
    io, mem,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::{event::EventfdFlags, io::ReadWriteFlags};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Semaphore,
    task::AbortHandle,
};

use super::domain;
use crate::limits::{RING_DRAIN_MAX, RING_OPERATIONS_MAX, RING_SPIN, TRANSFER_BYTES_MAX};

/// POSIX_FADV_WILLNEED in the kernel's numbering (include/uapi/linux/fadvise.h).
const ADVICE_WILL_NEED: i32 = 3;

/// Bytes of one read operation: what is in the page cache is copied while the kernel takes the operation, and nothing else runs on the
/// reactor meanwhile (0.4 to 0.7 ms for 1 MiB into fresh memory). With 64 KiB, entries of 1 MiB were replayed 28 % slower; with 128 as
/// fast as whole.
const READ_OPERATION_BYTES: usize = 128 << 10;

/// Two for each operation: a write and its linked sync.
const RING_ENTRIES: u32 = (2 * RING_OPERATIONS_MAX) as u32;

/// A handle to the reactor's ring. It must be used inside the runtime it was opened in.
#[derive(Clone)]
pub struct Ring {
    shared: Rc<Shared>,
}

/// How a write becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// By a later sync.
    Later,
    /// By the write itself (RWF_DSYNC).
    Dsync,
    /// By an fdatasync that is linked to the write.
    Linked,
}

impl Ring {
    /// Sets up a ring for the current thread and starts the task that reaps it.
    ///
    /// # Errors
    /// Where the kernel refuses: `ENOSYS` (no io_uring), `EPERM` (forbidden by seccomp or by
    /// `kernel.io_uring_disabled`), or `Unsupported` if an operation that we need is missing.
    ///
    /// # Panics
    /// Outside a tokio runtime with local tasks.
    pub fn open() -> io::Result<Ring> {
        Ring::open_spinning(RING_SPIN)
    }

    /// As `open`, with a chosen time to look for a durable write's completion before parking.
    ///
    /// # Errors
    /// As `open`.
    ///
    /// # Panics
    /// As `open`.
    pub fn open_spinning(spin: Duration) -> io::Result<Ring> {
        let ring = set_up()?;
        check_operations(&ring)?;
        let eventfd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        let eventfd = watch(eventfd)?;
        let state = State {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            in_flight: 0,
            unsubmitted: false,
            urgent: 0,
            armed: false,
            reaper: None,
            ready: Vec::new(),
        };
        let permits = Arc::new(Semaphore::new(RING_OPERATIONS_MAX));
        let shared = Rc::new(Shared { state: RefCell::new(state), permits, reaper: RefCell::new(None) });
        #[allow(clippy::disallowed_methods, reason = "env is below the seam that hides tokio")]
        let task = tokio::task::spawn_local(reaper::reap(Rc::downgrade(&shared), eventfd, spin));
        *shared.reaper.borrow_mut() = Some(task.abort_handle());
        Ok(Ring { shared })
    }

    /// Reads `bytes` at `position`; fewer only at the end of the file. Others run between two operations of a large one.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Panics
    /// Above `TRANSFER_BYTES_MAX`.
    pub async fn read(&self, fd: &Arc<OwnedFd>, position: u64, bytes: usize) -> io::Result<Bytes> {
        assert!(bytes <= TRANSFER_BYTES_MAX, "checked by the caller");
        let mut buffer: Vec<u8> = Vec::with_capacity(bytes);
        // The kernel may return less than asked for in mid-file (a signal, a large read); each turn
        // makes progress or ends.
        while buffer.len() < bytes {
            let at = position + buffer.len() as u64;
            if !buffer.is_empty() {
                super::yield_now().await;
            }
            let want = (bytes - buffer.len()).min(READ_OPERATION_BYTES) as u32;
            let target = buffer.spare_capacity_mut().as_mut_ptr().cast();
            let entry = opcode::Read::new(types::Fd(fd.as_raw_fd()), target, want).offset(at).build();
            let finished = self.run([entry], fd, Held::Read(buffer), false).await;
            let count = to_result(finished.results[0])?;
            let Held::Read(mut filled) = finished.held else { unreachable!("a read holds its buffer") };
            let len = filled.len() + count;
            assert!(len <= bytes, "the kernel reads no more than it was asked for");
            // SAFETY: the capacity is at least `bytes`, and the kernel has written `count` bytes after the first `filled.len()`.
            unsafe { filled.set_len(len) };
            buffer = filled;
            if count == 0 {
                break;
            }
        }
        Ok(buffer.into())
    }

    /// Writes `buffers` (at most 1,024) one after the other at `position`, in one operation, and returns how many bytes
    /// it wrote; a write that was cut short is not durable.
    ///
    /// # Errors
    /// The device's. What is in the file is unknown then.
    ///
    /// # Panics
    /// Above `TRANSFER_BYTES_MAX`.
    pub async fn write(
        &self,
        fd: &Arc<OwnedFd>,
        position: u64,
        buffers: Vec<Bytes>,
        durability: Durability,
    ) -> io::Result<usize> {
        let bytes: usize = buffers.iter().map(Bytes::len).sum();
        assert!(bytes <= TRANSFER_BYTES_MAX, "checked by the caller");
        if bytes == 0 {
            return Ok(0);
        }
        let held = Held::write(buffers);
        let flags = if durability == Durability::Dsync { ReadWriteFlags::DSYNC.bits() } else { 0 };
        let write = held.write_entry(fd.as_raw_fd(), position, flags as i32);
        let urgent = durability != Durability::Later;
        let finished = if durability == Durability::Linked {
            let write = write.flags(squeue::Flags::IO_LINK);
            self.run([write, sync_entry(fd.as_raw_fd())], fd, held, urgent).await
        } else {
            self.run([write], fd, held, urgent).await
        };
        let written = to_result(finished.results[0])?;
        if written == bytes {
            // Both have to succeed. After a short write the kernel cancels the linked sync, and the shortness is the news.
            to_result(finished.results[1])?;
        }
        Ok(written)
    }

    /// fdatasync.
    ///
    /// # Errors
    /// The device's. Not to be retried: a second one may succeed although data was lost.
    pub async fn sync(&self, fd: &Arc<OwnedFd>) -> io::Result<()> {
        let finished = self.run([sync_entry(fd.as_raw_fd())], fd, Held::Nothing, false).await;
        to_result(finished.results[0]).map(drop)
    }

    /// Asks the kernel to read `bytes` at `position` into the page cache. A hint: nobody waits for it, and it is left
    /// out while the ring is full.
    pub fn will_need(&self, fd: &Arc<OwnedFd>, position: u64, bytes: u32) {
        let Ok(permit) = self.shared.permits.try_acquire() else { return };
        permit.forget();
        let target = types::Fd(fd.as_raw_fd());
        let entry = opcode::Fadvise::new(target, bytes.into(), ADVICE_WILL_NEED).offset(position).build();
        drop(self.start([entry], fd, Held::Nothing, false));
    }

    /// Submits `entries`, linked if there are two, and waits for their completion. If the future is dropped
    /// before the submit nothing happens, afterwards the operation goes on by itself.
    async fn run<const N: usize>(
        &self,
        entries: [squeue::Entry; N],
        fd: &Arc<OwnedFd>,
        held: Held,
        urgent: bool,
    ) -> Operation {
        let permit = self.shared.permits.acquire().await.expect("the semaphore is never closed");
        permit.forget();
        self.start(entries, fd, held, urgent).await
    }

    /// Submits for somebody who has a permit.
    fn start<const N: usize>(
        &self,
        entries: [squeue::Entry; N],
        fd: &Arc<OwnedFd>,
        held: Held,
        urgent: bool,
    ) -> Completion<'_> {
        const { assert!(N == 1 || N == 2) };
        let operation = Operation {
            held,
            results: [0; 2],
            pending: N as u8,
            waker: None,
            abandoned: false,
            urgent,
            _fd: fd.clone(),
        };
        // Whoever asks, the ring is everybody's.
        let key = domain::core(|| self.shared.start(entries, operation));
        Completion { shared: &self.shared, key: Some(key) }
    }

    /// Operations in the kernel.
    pub fn in_flight(&self) -> usize {
        self.shared.state.borrow().in_flight
    }
}

impl Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring({} in flight)", self.in_flight())
    }
}

/// What the kernel reads from or writes to; not touched until the completion.
enum Held {
    Nothing,
    /// The part after its length is being filled.
    Read(Vec<u8>),
    /// `vectors` points into `buffers`, whose bytes do not move when a `Bytes` does.
    Write {
        buffers: Vec<Bytes>,
        vectors: Vec<Vector>,
    },
}

/// struct iovec.
#[repr(C)]
struct Vector {
    base: *const u8,
    len: usize,
}

impl Held {
    fn write(buffers: Vec<Bytes>) -> Held {
        let vectors = match buffers.len() {
            1 => Vec::new(),
            _ => buffers.iter().map(|buffer| Vector { base: buffer.as_ptr(), len: buffer.len() }).collect(),
        };
        Held::Write { buffers, vectors }
    }

    fn write_entry(&self, fd: RawFd, position: u64, flags: i32) -> squeue::Entry {
        let Held::Write { buffers, vectors } = self else { unreachable!("called on a write") };
        match &buffers[..] {
            [one] => opcode::Write::new(types::Fd(fd), one.as_ptr(), one.len() as u32)
                .offset(position)
                .rw_flags(flags)
                .build(),
            _ => opcode::Writev::new(types::Fd(fd), vectors.as_ptr().cast(), vectors.len() as u32)
                .offset(position)
                .rw_flags(flags)
                .build(),
        }
    }
}

/// An operation in the kernel, or one whose result nobody has fetched yet.
struct Operation {
    held: Held,
    /// Of its one or two entries, as the kernel gave them.
    results: [i32; 2],
    /// Completions that are still to come.
    pending: u8,
    waker: Option<Waker>,
    /// Nobody waits any more.
    abandoned: bool,
    /// Somebody's ack waits for it: worth a spin.
    urgent: bool,
    _fd: Arc<OwnedFd>,
}

struct State {
    ring: IoUring,
    slots: Vec<Option<Operation>>,
    free: Vec<u32>,
    in_flight: usize,
    /// The kernel was out of memory for requests: the reaper submits again.
    unsubmitted: bool,
    urgent: usize,
    /// Something urgent was submitted since the reaper last looked.
    armed: bool,
    /// Of the parked reaper.
    reaper: Option<Waker>,
    /// Scratch space of `reap`.
    ready: Vec<Waker>,
}

struct Shared {
    state: RefCell<State>,
    permits: Arc<Semaphore>,
    reaper: RefCell<Option<AbortHandle>>,
}

impl Shared {
    fn start<const N: usize>(&self, mut entries: [squeue::Entry; N], operation: Operation) -> u32 {
        let mut state = self.state.borrow_mut();
        state.in_flight += 1;
        state.urgent += usize::from(operation.urgent);
        let key = match state.free.pop() {
            Some(key) => key,
            None => {
                state.slots.push(None);
                (state.slots.len() - 1) as u32
            }
        };
        assert!(state.slots[key as usize].is_none(), "a free slot is empty");
        let urgent = operation.urgent;
        state.slots[key as usize] = Some(operation);
        for (part, entry) in entries.iter_mut().enumerate() {
            entry.set_user_data(u64::from(key) << 1 | part as u64);
        }
        // SAFETY: buffers and descriptor that the entries point to are owned by the slot until all of their completions have arrived.
        let pushed = unsafe { state.ring.submission().push_multiple(&entries) };
        pushed.expect("the queue has two entries for each permitted operation");
        state.submit();
        // A read out of the page cache is done by now.
        let done = state.reap();
        let reaper = if (urgent && state.urgent > 0) || state.unsubmitted {
            state.armed = true;
            state.reaper.take()
        } else {
            None
        };
        drop(state);
        self.announce(done);
        if let Some(reaper) = reaper {
            reaper.wake();
        }
        key
    }

    /// Reaps what has completed.
    fn turn(&self) -> Turn {
        let mut state = self.state.borrow_mut();
        state.enter_if_needed();
        let done = state.reap();
        let turn = Turn {
            urgent: state.urgent > 0,
            progress: done.permits > 0,
            unsubmitted: state.unsubmitted,
            more: state.ring.submission().taskrun(),
        };
        drop(state);
        self.announce(done);
        turn
    }

    /// Wakes those whose operations are done, outside the borrow.
    fn announce(&self, done: Done) {
        if done.permits > 0 {
            self.permits.add_permits(done.permits);
        }
        let mut ready = done.ready;
        for waker in ready.drain(..) {
            waker.wake();
        }
        self.state.borrow_mut().ready = ready;
        drop(done.abandoned);
    }
}

/// What one look at the completion queue brought.
struct Done {
    permits: usize,
    ready: Vec<Waker>,
    /// Dropped outside the borrow: buffers' owners may do anything in their `drop`.
    abandoned: Vec<Operation>,
}

struct Turn {
    /// Something urgent is still in flight.
    urgent: bool,
    /// Something was completed.
    progress: bool,
    /// The kernel did not take all entries.
    unsubmitted: bool,
    /// The kernel has more to do for us than it does in one call (20 completions since Linux 6.12), and rings no eventfd for
    /// the rest: whoever parks now may never be woken.
    more: bool,
}

impl State {
    /// Hands new entries to the kernel.
    fn submit(&mut self) {
        loop {
            match self.ring.submit() {
                Ok(_) => {
                    self.unsubmitted = !self.ring.submission().is_empty();
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_transient(&error) => {
                    self.unsubmitted = true;
                    return;
                }
                // Anything else says that our entries or the ring are wrong, and their operations
                // would wait for ever.
                Err(error) => panic!("io_uring_enter refused what only a bug could make it refuse: {error}"),
            }
        }
    }

    /// Lets the kernel post completions that it holds back for us, and take entries that it could not take before.
    fn enter_if_needed(&mut self) {
        let queue = self.ring.submission();
        let needed = queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if needed || self.unsubmitted {
            self.submit();
        }
    }

    fn reap(&mut self) -> Done {
        let mut done = Done { permits: 0, ready: mem::take(&mut self.ready), abandoned: Vec::new() };
        for completion in self.ring.completion() {
            let key = (completion.user_data() >> 1) as usize;
            let part = (completion.user_data() & 1) as usize;
            let slot = &mut self.slots[key];
            let operation = slot.as_mut().expect("a completion belongs to an operation in flight");
            operation.results[part] = completion.result();
            operation.pending -= 1;
            if operation.pending > 0 {
                continue;
            }
            done.permits += 1;
            self.in_flight -= 1;
            self.urgent -= usize::from(operation.urgent);
            if operation.abandoned {
                done.abandoned.extend(slot.take());
                self.free.push(key as u32);
            } else if let Some(waker) = operation.waker.take() {
                done.ready.push(waker);
            }
        }
        done
    }
}

/// Waits for one operation.
struct Completion<'a> {
    shared: &'a Shared,
    /// Until it is fetched.
    key: Option<u32>,
}

impl Future for Completion<'_> {
    type Output = Operation;

    // Woken by whoever finds the completion of its last part: the reaper, or somebody who submits.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Operation> {
        let key = self.key.expect("not polled after it is done");
        let mut state = self.shared.state.borrow_mut();
        let slot = &mut state.slots[key as usize];
        let operation = slot.as_mut().expect("the slot is ours until we fetch it");
        if operation.pending > 0 {
            match &mut operation.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            return Poll::Pending;
        }
        let operation = slot.take().expect("looked at above");
        state.free.push(key);
        drop(state);
        self.key = None;
        Poll::Ready(operation)
    }
}

impl Drop for Completion<'_> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut state = self.shared.state.borrow_mut();
        let slot = &mut state.slots[key as usize];
        let operation = slot.as_mut().expect("the slot is ours until we fetch it");
        operation.waker = None;
        if operation.pending > 0 {
            operation.abandoned = true;
            return;
        }
        let operation = slot.take();
        state.free.push(key);
        drop(state);
        drop(operation);
    }
}

impl Drop for Shared {
    /// Waits for what is in flight: what it writes must not happen after we said that we are gone.
    fn drop(&mut self) {
        if let Some(reaper) = self.reaper.get_mut().take() {
            reaper.abort();
        }
        let state = self.state.get_mut();
        let started = reaper::now();
        while state.in_flight > 0 && started.elapsed() < RING_DRAIN_MAX {
            let patience = types::Timespec::from(Duration::from_millis(100));
            let arguments = types::SubmitArgs::new().timespec(&patience);
            // An error is the time-out or a signal; kernels before 5.11 have no time-out here.
            if state.ring.params().is_feature_ext_arg() {
                drop(state.ring.submitter().submit_with_args(1, &arguments));
            } else {
                drop(state.ring.submit_and_wait(1));
            }
            drop(state.reap());
        }
        if state.in_flight > 0 {
            // The device does not answer. The kernel still owns the buffers, for ever if need be.
            mem::forget(mem::take(&mut state.slots));
        }
    }
}

/// A ring with what this kernel has of the setup flags, most first.
fn set_up() -> io::Result<IoUring> {
    let completions = 2 * RING_ENTRIES;
    let mut builder = IoUring::builder();
    builder.setup_cqsize(completions).setup_submit_all().setup_single_issuer();
    builder.setup_defer_taskrun().setup_taskrun_flag();
    match builder.build(RING_ENTRIES) {
        // Before Linux 6.1.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            let mut builder = IoUring::builder();
            builder.setup_cqsize(completions).build(RING_ENTRIES)
        }
        built => built,
    }
}

fn check_operations(ring: &IoUring) -> io::Result<()> {
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        (opcode::Read::CODE, "READ"),
        (opcode::Write::CODE, "WRITE"),
        (opcode::Writev::CODE, "WRITEV"),
        (opcode::Fsync::CODE, "FSYNC"),
        (opcode::Fadvise::CODE, "FADVISE"),
    ];
    match needed.iter().find(|(code, _)| !probe.is_supported(*code)) {
        None => Ok(()),
        Some((_, name)) => {
            Err(io::Error::new(io::ErrorKind::Unsupported, format!("this kernel's io_uring has no {name}")))
        }
    }
}

/// `fd` as something a task can wait for: readable. For eventfds of other queues, too.
///
/// # Errors
/// When the runtime's poller does not take it.
///
/// # Panics
/// Outside a tokio runtime.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor as long as the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
    Ok(watched)
}

fn sync_entry(fd: RawFd) -> squeue::Entry {
    opcode::Fsync::new(types::Fd(fd)).flags(types::FsyncFlags::DATASYNC).build()
}

fn to_result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy | io::ErrorKind::OutOfMemory)
}
