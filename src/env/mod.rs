//! The seams between Ringlog and the world: `Env` (time, tasks, randomness), `Disk` and `File`.
//!
//! Everything from `log` up to `shard` touches the world only through these, so that it runs
//! unchanged in a simulator. The real implementations are `real`, `disk`, `uring` and
//! `storage_thread`; the simulated ones are in `sim`.

pub mod buffer;
pub mod channel;
pub mod disk;
pub mod domain;
mod durable_form;
pub mod floor;
mod namespace;
pub mod net;
pub(crate) mod patience;
pub mod quic;
pub mod real;
pub mod reserve;
pub mod runtime;
mod storage_report;
pub mod storage_thread;
pub mod uring;

use std::{
    fmt::Debug,
    future::Future,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::io::Errno;

/// Time, tasks and randomness, and the disk, of one world: the real one or a simulated one.
///
/// A marker type without values; its functions speak of the current thread's world.
pub trait Env: Debug + Clone + Copy + Default + PartialEq + Eq + PartialOrd + Ord + 'static {
    /// Files.
    type Disk: Disk;

    /// Connections to other nodes.
    type Net: net::Net;

    /// Tasks, timers and channels. Tasks are local: they never leave their reactor.
    type Runtime: openraft::AsyncRuntime;

    /// Microseconds on a clock that never goes back; its zero means nothing.
    fn monotonic_us() -> u64;

    /// Microseconds since the Unix epoch; may jump.
    fn wall_us() -> i64;

    /// 64 random bits, not for secrets.
    fn random_u64() -> u64;
}

/// Runs `future` on the current reactor until it ends; nobody waits for it.
pub fn spawn<E: Env>(future: impl Future<Output = ()> + 'static) {
    drop(<E::Runtime as openraft::AsyncRuntime>::spawn(future));
}

/// As `spawn`, for what belongs to the reactor itself, whoever has it begun: see `domain`.
pub fn spawn_core<E: Env>(future: impl Future<Output = ()> + 'static) {
    domain::core(|| spawn::<E>(future));
}

/// As `spawn`, for one call or connection, which a panic of its own ends alone: see `domain`.
pub fn spawn_call<E: Env>(what: &'static str, future: impl Future<Output = ()> + 'static) {
    domain::call(what, || spawn::<E>(future));
}

/// Lets everything else run that is ready, once; of a reactor's runtime its sockets, too.
#[allow(clippy::disallowed_methods, reason = "this is what others call instead")]
pub async fn yield_now() {
    // Where there is no runtime of tokio around it, it wakes its task at once: so it fits any executor.
    tokio::task::yield_now().await;
}

/// As `yield_now`, so many times: what others do in several tasks, each woken by the one before it, goes on meanwhile.
pub async fn yield_times(times: usize) {
    for _ in 0..times {
        yield_now().await;
    }
}

/// Suspends for `duration`.
pub async fn sleep<E: Env>(duration: std::time::Duration) {
    <E::Runtime as openraft::AsyncRuntime>::sleep(duration).await;
}

/// Whether the system lacked descriptors, of this process or in all. A file that is written or synced never fails for that: it
/// is open.
pub fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(rustix::io::Errno::from_raw_os_error), Some(Errno::MFILE | Errno::NFILE))
}

/// Whether something failed for want of what is there again in a moment: descriptors, memory, a signal that came in between. What
/// opens, lists, reads, or changes a name may be tried again then, as nothing has changed. Not what writes or syncs an open file: of
/// that nobody knows what is on the device (fsync-gate); see `lasting`.
pub fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, OutOfMemory, WouldBlock};
    lacks_descriptors(error) || matches!(error.kind(), Interrupted | OutOfMemory | WouldBlock)
}

/// An error after which something is not tried again, whatever it is of: that of a sync, as the next one would succeed without what
/// this one has lost (fsync-gate).
pub fn lasting(error: io::Error) -> io::Error {
    if is_transient(&error) { io::Error::other(error) } else { error }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// For reading, through the page cache; fails if it is not there.
    Read,
    /// For durable appends and for reading; fails if it is not there. O_DIRECT where the file
    /// system has it.
    Append,
    /// As `Append`, but made new and empty; fails if it is there already.
    Create,
}

/// How the name of a directory ends that is being removed.
const HALF_REMOVED: &str = ".gone";

/// Whether a directory of this name is what a crash has left of one that was being removed.
pub fn is_half_removed(name: &Path) -> bool {
    name.as_os_str().as_encoded_bytes().ends_with(HALF_REMOVED.as_bytes())
}

/// A file system below one data directory.
///
/// Clones are handles to the same disk. All operations suspend and never block the reactor. An
/// operation whose future is dropped may or may not still happen; its buffers stay alive until
/// the device is done with them.
pub trait Disk: Clone + 'static {
    /// An open file.
    type File: File;

    /// Opens or creates `path`.
    fn open(&self, path: &Path, mode: OpenMode) -> impl Future<Output = io::Result<Self::File>>;

    /// The whole content of a small file. `NotFound` if it is not there.
    fn read_file(&self, path: &Path) -> impl Future<Output = io::Result<Bytes>>;

    /// Replaces `path` with `content`, atomically and durably: written to a temporary name
    /// beside it, synced, renamed, directory synced.
    fn write_file(&self, path: &Path, content: Bytes) -> impl Future<Output = io::Result<()>>;

    /// Makes `path` and what is missing above it; durable when it returns. No error if it exists.
    fn create_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Names (without their directory) and sizes of the entries in `path`, sorted by name.
    fn list(&self, path: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>>;

    /// Renames a file and replaces what was at `to`. Durable only after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a file. Durable only after `sync_dir`.
    fn remove(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a directory and all in it; durable when it returns. A crash meanwhile leaves all of it under its name, or nothing;
    /// what it may leave under another one, `is_half_removed`, is to be removed.
    fn remove_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Makes renames, creations and removals in this directory durable.
    fn sync_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Bytes still free for us on the file system of `path`.
    fn free_bytes(&self, path: &Path) -> impl Future<Output = io::Result<u64>>;

    /// The space that this disk keeps for what frees space (`reserve`), if it keeps any.
    fn reserve(&self) -> Option<Reserve>;
}

/// Where space is kept, and how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// A file's name in its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Name without directory.
    pub name: PathBuf,
    /// Bytes; 0 for a directory.
    pub bytes: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// An open file. Clones are handles to the same open file; it is closed with the last one.
pub trait File: Clone + 'static {
    /// Reads `bytes` at `position`, fewer only at the end of the file. Neither has to be aligned.
    fn read_at(&self, position: u64, bytes: usize) -> impl Future<Output = io::Result<Bytes>>;

    /// Writes `buffers`, one after the other, at `position`, and returns when they are on stable
    /// storage: one operation, one flush. `position` and each buffer's length are multiples of
    /// `BLOCK_BYTES`, and each buffer is aligned to it (`buffer::Buffer` is). After an error the state of the
    /// file is unknown: the caller stops using it (fsync-gate: a retry would lie).
    fn append_durable(&self, position: u64, buffers: Vec<Bytes>) -> impl Future<Output = io::Result<()>>;

    /// As `append_durable`, but durable only after `sync`.
    fn write_at(&self, position: u64, buffers: Vec<Bytes>) -> impl Future<Output = io::Result<()>>;

    /// Makes all earlier writes, and the size, durable. Not retried after an error.
    fn sync(&self) -> impl Future<Output = io::Result<()>>;

    /// Sets the size. Durable only after `sync`.
    fn truncate(&self, bytes: u64) -> impl Future<Output = io::Result<()>>;

    /// A hint that these bytes will be read soon: the device may begin to fetch them. Returns at once, never fails.
    fn will_need(&self, position: u64, bytes: u64) {
        let _ = (position, bytes);
    }

    /// Present size.
    fn bytes(&self) -> impl Future<Output = io::Result<u64>>;
}
