//! Real files: `RealDisk` and `RealFile`, over the reactor's ring where the kernel has one for us, and over its
//! storage thread for the rest.
//!
//! A file for appending has a direct descriptor for writes, which leave no copy in the page cache and need no
//! writeback. Should it be read, too, it gets a buffered one then, since reads have the kernel's cache and readahead so,
//! and need no alignment: hardly any is, and each shard keeps several open. The kernel drops cached pages that a direct
//! write changed.
//!
//! Without O_DIRECT, writes go through the storage thread, also beside a ring, which reads and syncs then.
//!
//! What the machine refuses (io_uring, O_DIRECT) is replaced, never silently: `storage_report` words it.

use std::{
    cell::{Cell, OnceCell, RefCell},
    fmt::Debug,
    io,
    num::NonZeroU64,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, Bytes};
use rustix::fs::{Advice, Mode, OFlags};

use super::{
    DirEntry, Disk, Env, File, OpenMode, Reserve,
    buffer::Buffer,
    durable_form::FormChooser,
    is_transient, namespace,
    real::RealEnv,
    storage_report,
    storage_thread::{StorageThread, read_blocking, write_blocking},
    uring::{Durability, Ring},
};
use crate::{
    config::DurableForm,
    limits::{
        BLOCK_BYTES, DISK_RESERVE_BYTES, TRANSFER_BYTES_MAX, TRANSIENT_PAUSE_MAX, TRANSIENT_PAUSE_MIN,
        TRANSIENT_RETRY_MAX,
    },
};

pub use super::storage_report::StorageReport;

/// In the data directory.
const RESERVE_FILE: &str = "reserve";

/// Most buffers in one write (UIO_MAXIOV); more are copied together.
const BUFFERS_MAX: usize = 1_024;

/// What to use if the machine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// io_uring for reads, writes and syncs; else the storage thread.
    pub io_uring: bool,
    /// O_DIRECT for writes; else the page cache.
    pub direct_io: bool,
    /// How an append is made durable.
    pub durable_form: DurableForm,
}

impl Default for DiskOptions {
    fn default() -> DiskOptions {
        DiskOptions { io_uring: true, direct_io: true, durable_form: DurableForm::Auto }
    }
}

/// The kernel's files below one directory. Relative paths are relative to it, absolute ones are taken as they are.
#[derive(Clone, Debug)]
pub struct RealDisk {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    ring: Option<Ring>,
    thread: StorageThread,
    direct: bool,
    /// Of an append; `None`: whichever form is faster.
    durability: Option<Durability>,
    chooser: RefCell<FormChooser>,
    /// A reserve is kept in `root`.
    reserve: Cell<bool>,
}

impl RealDisk {
    /// Opens the disk of the calling reactor, makes `root` if it is missing, and says what is in use. Blocks
    /// for a few small writes: for start-up only.
    ///
    /// # Errors
    /// When `root` cannot be made or written to, or the storage thread cannot be started.
    ///
    /// # Panics
    /// Outside a tokio runtime with local tasks.
    pub fn open(root: &Path, options: DiskOptions) -> io::Result<(RealDisk, StorageReport)> {
        namespace::create_dir_all(root)?;
        let thread = StorageThread::start()?;
        let (ring, refused) = match options.io_uring.then(Ring::open) {
            Some(Ok(ring)) => (Some(ring), None),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        let direct = options.direct_io && storage_report::takes_direct_writes(root)?;
        let report = storage_report::describe(root, options, ring.is_some(), refused, direct);
        let durability = match report.durable_form {
            DurableForm::Dsync => Some(Durability::Dsync),
            DurableForm::Linked => Some(Durability::Linked),
            DurableForm::Auto => None,
        };
        let chooser = RefCell::new(FormChooser::default());
        let (root, reserve) = (root.to_owned(), Cell::new(false));
        let shared = Shared { root, ring, thread, direct, durability, chooser, reserve };
        Ok((RealDisk { shared: Rc::new(shared) }, report))
    }

    /// From now on some space in `root` is kept for what frees space.
    pub fn keep_reserve(&self) {
        self.shared.reserve.set(true);
    }

    fn resolve(&self, path: &Path) -> PathBuf {
        self.shared.root.join(path)
    }

    /// As `on_thread`, for what can be done again when it has failed for want of something (`is_transient`): it is tried again for a
    /// while. The pauses are the reactor's, not the thread's, which others wait for.
    async fn patiently<T: Send + 'static>(
        &self,
        path: &Path,
        job: impl Fn(&Path) -> io::Result<T> + Clone + Send + 'static,
    ) -> io::Result<T> {
        let mut patience = Patiently::new();
        loop {
            match self.on_thread(path, job.clone()).await {
                Err(error) if is_transient(&error) && patience.pause().await => {}
                result => return result,
            }
        }
    }

    /// Runs a job about `path` on the storage thread.
    async fn on_thread<T: Send + 'static>(
        &self,
        path: &Path,
        job: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let path = self.resolve(path);
        self.shared.thread.run(move || job(&path)).await.map_err(plain)
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<RealFile> {
        let direct = self.shared.direct;
        let opened = self.patiently(path, move |path| {
            Ok(match mode {
                OpenMode::Read => (Some(open_file(path, OFlags::RDONLY, false)?), None),
                OpenMode::Append => (None, Some(open_file(path, OFlags::RDWR, direct)?)),
                OpenMode::Create => {
                    (None, Some(open_file(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, direct)?))
                }
            })
        });
        let (reader, writer) = opened.await?;
        let reader = reader.map_or_else(OnceCell::new, |reader| OnceCell::from(Arc::new(reader)));
        let shared = OpenFile { disk: self.clone(), reader, writer: writer.map(Arc::new) };
        Ok(RealFile { shared: Rc::new(shared) })
    }

    async fn read_file(&self, path: &Path) -> io::Result<Bytes> {
        self.patiently(path, namespace::read_file).await
    }

    async fn write_file(&self, path: &Path, content: Bytes) -> io::Result<()> {
        // Whatever step lacked something: the whole is done again, with the same result. The error of a sync lasts.
        self.patiently(path, move |path| namespace::write_file(path, &content)).await
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.patiently(path, namespace::create_dir_all).await
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.patiently(path, namespace::list).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let to = self.resolve(to);
        self.patiently(from, move |from| namespace::rename(from, &to)).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.patiently(path, namespace::remove).await
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.patiently(path, namespace::remove_dir_all).await
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.patiently(path, namespace::sync_dir).await
    }

    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.on_thread(path, namespace::free_bytes).await
    }

    fn reserve(&self) -> Option<Reserve> {
        self.shared.reserve.get().then(|| Reserve { path: RESERVE_FILE.into(), bytes: DISK_RESERVE_BYTES })
    }
}

/// The pauses between tries.
struct Patiently {
    next: Duration,
    waited: Duration,
}

impl Patiently {
    fn new() -> Patiently {
        Patiently { next: TRANSIENT_PAUSE_MIN, waited: Duration::ZERO }
    }

    /// False when it has been tried for long enough.
    async fn pause(&mut self) -> bool {
        if self.waited >= TRANSIENT_RETRY_MAX {
            return false;
        }
        super::sleep::<RealEnv>(self.next).await;
        self.waited += self.next;
        self.next = (2 * self.next).min(TRANSIENT_PAUSE_MAX);
        true
    }
}

/// Opens for the owner and its group; `direct` adds O_DIRECT.
///
/// # Errors
/// The file system's; `InvalidInput` where it has no O_DIRECT.
pub(super) fn open_file(path: &Path, flags: OFlags, direct: bool) -> io::Result<OwnedFd> {
    let direct = if direct { OFlags::DIRECT } else { OFlags::empty() };
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    Ok(rustix::fs::open(path, flags | direct | OFlags::CLOEXEC, mode)?)
}

/// An open file of a `RealDisk`.
#[derive(Clone)]
pub struct RealFile {
    shared: Rc<OpenFile>,
}

struct OpenFile {
    disk: RealDisk,
    /// Of a file for appending from its first read on.
    reader: OnceCell<Arc<OwnedFd>>,
    /// Of a file for appending.
    writer: Option<Arc<OwnedFd>>,
}

impl RealFile {
    /// Opened by the first read; the file may have another name by then.
    async fn reader(&self) -> io::Result<Arc<OwnedFd>> {
        if let Some(reader) = self.shared.reader.get() {
            return Ok(reader.clone());
        }
        let writer = self.writer()?.clone();
        let opened = self.disk().thread.run(move || {
            let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
            open_file(Path::new(&path), OFlags::RDONLY, false)
        });
        let opened = Arc::new(opened.await.map_err(plain)?);
        // Of two reads that came together the second one's is closed again.
        Ok(self.shared.reader.get_or_init(|| opened).clone())
    }

    /// Any descriptor of it.
    fn any(&self) -> &Arc<OwnedFd> {
        self.shared.reader.get().or(self.shared.writer.as_ref()).expect("an open file has a descriptor")
    }

    fn writer(&self) -> io::Result<&Arc<OwnedFd>> {
        let missing = || io::Error::new(io::ErrorKind::PermissionDenied, "the file was opened for reading only");
        self.shared.writer.as_ref().ok_or_else(missing)
    }

    fn disk(&self) -> &Shared {
        &self.shared.disk.shared
    }

    /// One read.
    async fn read_once(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        let fd = self.reader().await?;
        match &self.disk().ring {
            Some(ring) => ring.read(&fd, position, bytes).await,
            None => self.disk().thread.run(move || read_blocking(&fd, position, bytes)).await,
        }
    }

    /// One write; how much of it was written.
    async fn write(&self, position: u64, buffers: Vec<Bytes>, durability: Durability) -> io::Result<usize> {
        assert!(position.is_multiple_of(BLOCK_BYTES as u64), "writes start on a block");
        for buffer in &buffers {
            assert!(buffer.len().is_multiple_of(BLOCK_BYTES), "writes are whole blocks");
            assert!(buffer.as_ptr().addr().is_multiple_of(BLOCK_BYTES), "buffers are aligned to blocks");
        }
        check_length(buffers.iter().map(Bytes::len).sum())?;
        let buffers = if buffers.len() > BUFFERS_MAX { vec![together(&buffers)] } else { buffers };
        let fd = self.writer()?;
        // The page cache's writes are the thread's: see `uring`.
        let written = match self.disk().ring.as_ref().filter(|_| self.disk().direct) {
            Some(ring) => ring.write(fd, position, buffers, durability).await,
            None => {
                let fd = fd.clone();
                self.disk().thread.run(move || write_blocking(&fd, position, &buffers, durability)).await
            }
        };
        written.map_err(plain)
    }
}

impl File for RealFile {
    async fn read_at(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        check_length(bytes)?;
        let mut patience = Patiently::new();
        loop {
            match self.read_once(position, bytes).await {
                Err(error) if is_transient(&error) && patience.pause().await => {}
                read => return read,
            }
        }
    }

    async fn append_durable(&self, position: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        let bytes = buffers.iter().map(Bytes::len).sum();
        let disk = self.disk();
        let form = match disk.durability {
            Some(form) => form,
            None => disk.chooser.borrow_mut().choose(bytes),
        };
        let started_us = RealEnv::monotonic_us();
        let written = self.write(position, buffers, form).await?;
        if disk.durability.is_none() {
            disk.chooser.borrow_mut().observe(form, bytes, RealEnv::monotonic_us() - started_us);
        }
        check_written(written, bytes, position)
    }

    async fn write_at(&self, position: u64, mut buffers: Vec<Bytes>) -> io::Result<()> {
        let mut position = position;
        loop {
            let bytes = buffers.iter().map(Bytes::len).sum();
            let written = self.write(position, buffers.clone(), Durability::Later).await?;
            if written == bytes {
                return Ok(());
            }
            // Most likely the disk is full, and the rest gets the error that says so. Nothing was promised
            // about this data yet, so that trying again is no lie.
            let whole = written - written % BLOCK_BYTES;
            if whole == 0 {
                return check_written(written, bytes, position);
            }
            position += whole as u64;
            buffers = after(buffers, whole);
        }
    }

    async fn sync(&self) -> io::Result<()> {
        // Through the descriptor of the writes: each has its own memory of failed writeback.
        let fd = self.shared.writer.as_ref().unwrap_or_else(|| self.any());
        let synced = match &self.disk().ring {
            Some(ring) => ring.sync(fd).await,
            None => {
                let fd = fd.clone();
                self.disk().thread.run(move || Ok(rustix::fs::fdatasync(&fd)?)).await
            }
        };
        synced.map_err(plain)
    }

    async fn truncate(&self, bytes: u64) -> io::Result<()> {
        let fd = self.writer()?.clone();
        self.disk().thread.run(move || Ok(rustix::fs::ftruncate(&fd, bytes)?)).await.map_err(plain)
    }

    fn will_need(&self, position: u64, bytes: u64) {
        let bytes = bytes.min(TRANSFER_BYTES_MAX as u64);
        // What is not read yet is not read soon.
        let Some(fd) = self.shared.reader.get() else { return };
        match &self.disk().ring {
            Some(ring) => ring.will_need(fd, position, bytes as u32),
            None => {
                let fd = fd.clone();
                self.disk().thread.post(move || {
                    // A hint that fails has no consequence.
                    let _ = rustix::fs::fadvise(&fd, position, NonZeroU64::new(bytes), Advice::WillNeed);
                });
            }
        }
    }

    async fn bytes(&self) -> io::Result<u64> {
        // The inode is in memory while the file is open: this does not block.
        Ok(rustix::fs::fstat(self.any())?.st_size as u64)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        for fd in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            // An operation in flight shares it; then its completion closes it.
            if let Some(fd) = Arc::into_inner(fd) {
                self.disk.shared.thread.close(fd);
            }
        }
    }
}

/// A full quota is a full disk to us.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::QuotaExceeded => io::Error::new(io::ErrorKind::StorageFull, error),
        _ => error,
    }
}

fn together(buffers: &[Bytes]) -> Bytes {
    let mut all = Buffer::with_capacity(buffers.iter().map(Bytes::len).sum());
    for buffer in buffers {
        all.extend(buffer);
    }
    all.freeze_padded()
}

/// `buffers` without their first `bytes`.
fn after(mut buffers: Vec<Bytes>, mut bytes: usize) -> Vec<Bytes> {
    for buffer in &mut buffers {
        let cut = bytes.min(buffer.len());
        buffer.advance(cut);
        bytes -= cut;
    }
    buffers.retain(|buffer| !buffer.is_empty());
    buffers
}

/// `InvalidInput` above `TRANSFER_BYTES_MAX`.
fn check_length(bytes: usize) -> io::Result<()> {
    if bytes <= TRANSFER_BYTES_MAX {
        return Ok(());
    }
    let text = format!("{bytes} bytes in one operation, at most {TRANSFER_BYTES_MAX} are possible");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// `WriteZero` if a write was cut short.
pub(super) fn check_written(written: usize, bytes: usize, position: u64) -> io::Result<()> {
    if written == bytes {
        return Ok(());
    }
    let text = format!("{written} of {bytes} bytes at position {position} were written");
    Err(io::Error::new(io::ErrorKind::WriteZero, text))
}

#[cfg(test)]
mod tests;
