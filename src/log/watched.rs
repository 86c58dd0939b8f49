//! A log's disk, watched: each operation that is under way has a start, a file and a name for what it does.
//!
//! A device that does not answer is seen by nobody who waits for it. So whoever has a clock asks (`Log::look_at_storage`):
//! what takes longer than `STORAGE_SLOW` is named, and after `STORAGE_HUNG` it is given up, with everything else that is
//! under way: all who wait get an error, and the log stops as after a failed write. What was given up may still happen: its
//! buffers stay as they are until then (`env::Disk`), and nobody writes beside it, since the log writes no more.
//!
//! A reactor asks for the logs that serve. Whoever opens one, closes it, mends it or removes it asks meanwhile (`look_while`).
//!
//! An operation costs a look at the clock and a place in a list that keeps its room: no allocation for those of open files.
//! Files are named as they were when they were opened.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::{Future, poll_fn},
    io,
    marker::PhantomData,
    path::Path,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use openraft::AsyncRuntime;

use super::{Log, is_full};
use crate::{
    env::{DirEntry, Disk, Env, File, OpenMode, Reserve, is_transient, lacks_descriptors},
    limits::{FLUSH_LOOK, STORAGE_HUNG, STORAGE_SLOW},
};

/// A disk whose operations are watched. Clones watch together.
pub struct Watched<E: Env> {
    disk: E::Disk,
    operations: Rc<Operations>,
    env: PhantomData<E>,
}

/// An open file of such a disk.
pub struct WatchedFile<E: Env> {
    file: <E::Disk as Disk>::File,
    path: Rc<Path>,
    operations: Rc<Operations>,
    env: PhantomData<E>,
}

impl<E: Env> Clone for Watched<E> {
    fn clone(&self) -> Self {
        Watched { disk: self.disk.clone(), operations: Rc::clone(&self.operations), env: PhantomData }
    }
}

impl<E: Env> Clone for WatchedFile<E> {
    fn clone(&self) -> Self {
        let (file, path, operations) = (self.file.clone(), Rc::clone(&self.path), Rc::clone(&self.operations));
        WatchedFile { file, path, operations, env: PhantomData }
    }
}

/// Those under way.
#[derive(Default)]
struct Operations {
    /// As many as are under way at most; the free ones are reused.
    places: RefCell<Vec<Option<UnderWay>>>,
    /// All are given up, and those to come, because of this one.
    given_up: RefCell<Option<Stalled>>,
    /// One has failed for want of descriptors or memory, and has changed nothing.
    was_starved: Cell<bool>,
    /// One has failed that is not done again: after a write or a sync nobody knows what is on the device.
    has_failed: Cell<bool>,
}

struct UnderWay {
    action: &'static str,
    path: Rc<Path>,
    begun_us: u64,
    /// Of whoever waits, for when it is given up.
    waker: Option<Waker>,
}

/// An operation that takes long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// Which file.
    pub path: Rc<Path>,
    /// "written", "synced", ...: what is being done to it.
    pub action: &'static str,
    /// For how long by now.
    pub age: Duration,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stalled { path, action, age } = self;
        write!(f, "{} is being {action} for {} ms, and the device does not answer", path.display(), age.as_millis())
    }
}

impl Stalled {
    /// That of all who wait when it is given up.
    fn error(&self) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, self.to_string())
    }
}

/// Does `work`, and looks each `FLUSH_LOOK` meanwhile.
async fn look_while<E: Env, T>(work: impl Future<Output = T>, look: impl Fn()) -> T {
    let mut work = pin!(work);
    loop {
        match E::Runtime::timeout(FLUSH_LOOK, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => look(),
        }
    }
}

/// Its place is free again when it is dropped.
struct Place<'a> {
    operations: &'a Operations,
    number: usize,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.operations.places.borrow_mut()[self.number] = None;
    }
}

impl Operations {
    /// Runs an operation in the sight of `oldest`.
    async fn run<T>(
        &self,
        now_us: u64,
        action: &'static str,
        path: Rc<Path>,
        operation: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let place = self.begin(UnderWay { action, path, begun_us: now_us, waker: None });
        let mut operation = pin!(operation);
        poll_fn(|context| match operation.as_mut().poll(context) {
            Poll::Ready(result) => Poll::Ready(result),
            // Woken by the operation, or by `give_up`.
            Poll::Pending => self.wait(&place, context),
        })
        .await
    }

    /// Notes what the error of one says of doing all again; `may_be_again`: whether it is one after which this one may be.
    fn note<T>(&self, result: io::Result<T>, may_be_again: fn(&io::Error) -> bool) -> io::Result<T> {
        match &result {
            Err(error) if may_be_again(error) => self.was_starved.set(true),
            Err(error) if error.kind() != io::ErrorKind::NotFound && !is_full(error) => self.has_failed.set(true),
            Ok(_) | Err(_) => {}
        }
        result
    }

    fn begin(&self, operation: UnderWay) -> Place<'_> {
        let mut places = self.places.borrow_mut();
        let number = places.iter().position(Option::is_none).unwrap_or(places.len());
        if number == places.len() {
            places.push(None);
        }
        places[number] = Some(operation);
        Place { operations: self, number }
    }

    fn wait<T>(&self, place: &Place<'_>, context: &Context<'_>) -> Poll<io::Result<T>> {
        if let Some(stalled) = &*self.given_up.borrow() {
            return Poll::Ready(Err(stalled.error()));
        }
        let mut places = self.places.borrow_mut();
        let operation = places[place.number].as_mut().expect("the place is taken until it is dropped");
        match &mut operation.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    fn oldest(&self, now_us: u64) -> Option<Stalled> {
        let places = self.places.borrow();
        let oldest = places.iter().flatten().min_by_key(|operation| operation.begun_us)?;
        let age = Duration::from_micros(now_us.saturating_sub(oldest.begun_us));
        Some(Stalled { path: Rc::clone(&oldest.path), action: oldest.action, age })
    }

    fn give_up(&self, stalled: &Stalled) {
        self.given_up.borrow_mut().get_or_insert_with(|| stalled.clone());
        let wakers: Vec<Waker> =
            self.places.borrow_mut().iter_mut().flatten().filter_map(|operation| operation.waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<E: Env> Watched<E> {
    /// A disk that somebody is to look at.
    pub fn new(disk: E::Disk) -> Watched<E> {
        Watched { disk, operations: Rc::default(), env: PhantomData }
    }

    /// Does what uses this disk, and looks at it meanwhile: an operation that takes longer than `STORAGE_HUNG` is given up, with
    /// all others and those to come, and its words are their error.
    pub async fn look_while<T>(&self, work: impl Future<Output = T>) -> T {
        look_while::<E, T>(work, || {
            let hung = self.oldest().filter(|oldest| oldest.age >= STORAGE_HUNG);
            hung.iter().for_each(|hung| self.give_up(hung));
        })
        .await
    }

    /// What it was given up for: it may still happen, and so may what was under way beside it.
    pub fn given_up(&self) -> Option<Stalled> {
        self.operations.given_up.borrow().clone()
    }

    /// Whether something failed for want of descriptors or memory, and nothing otherwise: all may be done again then.
    pub fn was_starved(&self) -> bool {
        self.operations.was_starved.get() && !self.operations.has_failed.get() && self.given_up().is_none()
    }

    /// The operation that is under way for longest.
    pub(super) fn oldest(&self) -> Option<Stalled> {
        self.operations.oldest(E::monotonic_us())
    }

    /// Ends all operations under way, and those to come that do not end at once, with an error.
    pub(super) fn give_up(&self, stalled: &Stalled) {
        self.operations.give_up(stalled);
    }

    async fn run<T>(
        &self,
        action: &'static str,
        path: &Path,
        operation: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let result = self.operations.run(E::monotonic_us(), action, path.into(), operation).await;
        self.operations.note(result, is_transient)
    }
}

impl<E: Env> Log<E> {
    /// The operation on a file of this log that takes longest by now, if that is longer than `STORAGE_SLOW`.
    pub fn stalled(&self) -> Option<Stalled> {
        self.inner.disk.oldest().filter(|oldest| oldest.age >= STORAGE_SLOW)
    }

    /// As `stalled`; to be called each `FLUSH_LOOK`. An operation that takes longer than `STORAGE_HUNG` stops the log: all who
    /// wait for the device get an error, as after a failed write.
    pub fn look_at_storage(&self) -> Option<Stalled> {
        let stalled = self.stalled()?;
        if stalled.age >= STORAGE_HUNG && self.hung().is_none() {
            let what = format!("the device has not answered for {} s", stalled.age.as_secs());
            let error = io::Error::new(io::ErrorKind::TimedOut, what);
            let fault = self.inner.stop(&stalled.path, stalled.action, &error);
            tracing::error!(%fault, %stalled, "a device hangs: the replica stops");
            self.inner.disk.give_up(&stalled);
        }
        Some(stalled)
    }

    /// Does what waits for this log, and looks at its storage meanwhile: nobody else does while it is not served.
    pub async fn look_while<T>(&self, work: impl Future<Output = T>) -> T {
        look_while::<E, T>(work, || drop(self.look_at_storage())).await
    }

    /// The operation that was given up because the device did not answer. It may still happen, until the process ends: nobody is
    /// to write in this directory before.
    pub fn hung(&self) -> Option<Stalled> {
        self.inner.disk.given_up()
    }
}

impl<E: Env> Disk for Watched<E> {
    type File = WatchedFile<E>;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<WatchedFile<E>> {
        let file = self.run("opened", path, self.disk.open(path, mode)).await?;
        Ok(WatchedFile { file, path: path.into(), operations: Rc::clone(&self.operations), env: PhantomData })
    }

    async fn read_file(&self, path: &Path) -> io::Result<Bytes> {
        self.run("read", path, self.disk.read_file(path)).await
    }

    async fn write_file(&self, path: &Path, content: Bytes) -> io::Result<()> {
        self.run("written", path, self.disk.write_file(path, content)).await
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.run("made", path, self.disk.create_dir_all(path)).await
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        self.run("listed", path, self.disk.list(path)).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run("renamed", from, self.disk.rename(from, to)).await
    }

    async fn remove(&self, path: &Path) -> io::Result<()> {
        self.run("removed", path, self.disk.remove(path)).await
    }

    async fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.run("removed", path, self.disk.remove_dir_all(path)).await
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let synced = self.operations.run(E::monotonic_us(), "synced", path.into(), self.disk.sync_dir(path)).await;
        // Without a descriptor it was not even opened; without memory it may be the sync that failed.
        self.operations.note(synced, lacks_descriptors)
    }

    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.run("looked at", path, self.disk.free_bytes(path)).await
    }

    fn reserve(&self) -> Option<Reserve> {
        self.disk.reserve()
    }
}

impl<E: Env> WatchedFile<E> {
    async fn run<T>(&self, action: &'static str, operation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        self.operations.run(E::monotonic_us(), action, Rc::clone(&self.path), operation).await
    }

    /// As `run`, of what is not done again.
    async fn change(&self, action: &'static str, operation: impl Future<Output = io::Result<()>>) -> io::Result<()> {
        let changed = self.run(action, operation).await;
        self.operations.note(changed, |_| false)
    }
}

impl<E: Env> File for WatchedFile<E> {
    async fn read_at(&self, position: u64, bytes: usize) -> io::Result<Bytes> {
        let read = self.run("read", self.file.read_at(position, bytes)).await;
        self.operations.note(read, is_transient)
    }

    async fn append_durable(&self, position: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        self.change("written", self.file.append_durable(position, buffers)).await
    }

    async fn write_at(&self, position: u64, buffers: Vec<Bytes>) -> io::Result<()> {
        self.change("written", self.file.write_at(position, buffers)).await
    }

    async fn sync(&self) -> io::Result<()> {
        self.change("synced", self.file.sync()).await
    }

    async fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.change("cut", self.file.truncate(bytes)).await
    }

    fn will_need(&self, position: u64, bytes: u64) {
        self.file.will_need(position, bytes);
    }

    async fn bytes(&self) -> io::Result<u64> {
        self.run("looked at", self.file.bytes()).await
    }
}
