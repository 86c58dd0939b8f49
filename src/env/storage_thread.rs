//! A helper thread per reactor for what would block it: opening, renaming, listing and mapping
//! always, and reads, writes and syncs where io_uring is refused.
//!
//! Jobs run one after the other, in the order in which they were asked for. At most
//! `STORAGE_JOBS_MAX` are queued or running, more wait in the order of their arrival. A job whose future is dropped
//! still runs if it was queued, and owns what it needs. Dropping the last handle waits for the jobs
//! that are queued.
//!
//! The thread inherits the reactor's pinning on purpose: the reactor has nothing to do while it waits, and
//! switching on a core that is awake costs less than waking another one.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
};

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, bounded};
use rustix::io::ReadWriteFlags;
use tokio::sync::{Semaphore, oneshot};

use crate::{env::uring::Durability, limits::STORAGE_JOBS_MAX};

/// A handle to the thread.
#[derive(Clone)]
pub struct StorageThread {
    shared: Rc<Shared>,
}

type Job = Box<dyn FnOnce() + Send>;

struct Shared {
    /// `None` only while it is being dropped.
    jobs: Option<Sender<Job>>,
    permits: Arc<Semaphore>,
    thread: Option<JoinHandle<()>>,
}

impl StorageThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread left for us.
    pub fn start() -> io::Result<StorageThread> {
        let (jobs, queue) = bounded(STORAGE_JOBS_MAX);
        let thread = std::thread::Builder::new().name("storage".into()).spawn(move || work(&queue))?;
        let permits = Arc::new(Semaphore::new(STORAGE_JOBS_MAX));
        Ok(StorageThread { shared: Rc::new(Shared { jobs: Some(jobs), permits, thread: Some(thread) }) })
    }

    /// Runs `job` on the thread and gives back its result. Nothing happens if the future is dropped before its turn in
    /// the queue came; the job runs to its end afterwards.
    ///
    /// # Errors
    /// The job's own; `BrokenPipe` if the thread has ended because a job panicked.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let permits = self.shared.permits.clone();
        let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move || {
            let result = job();
            drop(permit);
            // Nobody may be waiting any more.
            drop(reply.send(result));
        });
        self.shared.jobs().try_send(job).map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// Closes `fd` on the thread: closing the last descriptor of a removed file frees its blocks.
    pub fn close(&self, fd: OwnedFd) {
        self.post(move || drop(fd));
    }

    /// Runs `job` some time later; drops it at once while the queue is full.
    pub fn post(&self, job: impl FnOnce() + Send + 'static) {
        let Ok(permit) = self.shared.permits.clone().try_acquire_owned() else { return };
        let job = Box::new(move || {
            job();
            drop(permit);
        });
        drop(self.shared.jobs().try_send(job));
    }
}

impl std::fmt::Debug for StorageThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StorageThread({} free)", self.shared.permits.available_permits())
    }
}

impl Shared {
    fn jobs(&self) -> &Sender<Job> {
        self.jobs.as_ref().expect("taken only by drop")
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic of a job has been seen by whoever waited for it.
            drop(thread.join());
        }
    }
}

fn work(queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        job();
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the storage thread has ended after a panic; restart the node")
}

/// Reads `bytes` at `position`, fewer only at the end of the file. Blocks.
///
/// # Errors
/// The device's.
pub fn read_blocking(fd: impl AsFd, position: u64, bytes: usize) -> io::Result<Bytes> {
    let mut buffer = Vec::with_capacity(bytes);
    while buffer.len() < bytes {
        let at = position + buffer.len() as u64;
        // Appends to the vector's spare room.
        match rustix::io::pread(&fd, rustix::buffer::spare_capacity(&mut buffer), at) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    buffer.truncate(bytes);
    Ok(buffer.into())
}

/// Writes `buffers` (at most 1,024) one after the other at `position`, and returns how many bytes it wrote; a write
/// that was cut short is not durable. Blocks.
///
/// # Errors
/// The device's.
pub fn write_blocking(fd: impl AsFd, position: u64, buffers: &[Bytes], durability: Durability) -> io::Result<usize> {
    let bytes: usize = buffers.iter().map(Bytes::len).sum();
    let slices: Vec<IoSlice<'_>> = buffers.iter().map(|buffer| IoSlice::new(buffer)).collect();
    let with_flag = durability == Durability::Dsync;
    let flags = if with_flag { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
    let (written, durable) = match rustix::io::pwritev2(&fd, &slices, position, flags) {
        // The file system does not know the flag.
        Err(rustix::io::Errno::OPNOTSUPP) => (rustix::io::pwritev(&fd, &slices, position)?, false),
        result => (result?, with_flag),
    };
    if written == bytes && durability != Durability::Later && !durable {
        rustix::fs::fdatasync(&fd)?;
    }
    Ok(written)
}
