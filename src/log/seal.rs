//! The end of a segment: its lasting name, its footer, its index file, its true size; and the clean
//! shutdown, which is the same for the last one.
//!
//! Order: footer (durable), index file (durable), then the cut of the store file. A crash in between leaves a
//! segment that is scanned at the next start, and sealed then.

use std::{io, path::PathBuf, rc::Rc};

use super::{
    FileOf, Inner, Log, LogError, Phase, SegmentOf, io_error, is_full,
    prepare::RETRY,
    segment::{Slots, store_path},
    state::Change,
    writer::has_changes,
};
use crate::{
    env::{Disk, Env, File, OpenMode, is_transient, lacks_descriptors},
    limits::BLOCK_BYTES,
};

/// An error and where it came from.
type Failed = (PathBuf, &'static str, io::Error);

impl<E: Env> Log<E> {
    /// Entries wait for space that the disk does not have, and nothing is written meanwhile.
    pub fn is_stuck(&self) -> bool {
        self.inner.is_stuck()
    }

    /// Entries wait for a file that the process lacks descriptors or memory for, and nothing is written meanwhile.
    pub fn is_starved(&self) -> bool {
        self.inner.state.borrow().supply.is_starved()
    }

    /// Suspends until a change of the hard state waits behind entries that wait for space, or, when the log is to close, any entry waits
    /// for descriptors or memory.
    pub fn held_up(&self) -> impl Future<Output = ()> + use<E> {
        let inner = self.inner.clone();
        let is_held_up = move |inner: &Inner<E>| {
            inner.is_starved_at_close() || (inner.is_stuck() && has_changes(&inner.state.borrow()))
        };
        async move { inner.until(|| is_held_up(&inner).then_some(())).await }
    }

    /// Gives the log up without a clean end: drops what waits to be written and tells its callbacks so. When it returns,
    /// nothing more is ever written through any handle to it (the write in flight has landed, the files ahead of need are
    /// left as they are), so that the directory can be opened again, unless it is `hung`. Reads go on.
    pub async fn abandon(&self) {
        self.inner.abandon().await;
    }

    /// To be called before a close and what precedes it: work that waits for descriptors or memory ends with its error from now on, and
    /// entries that do hold the log up (`held_up`).
    pub fn announce_close(&self) {
        self.inner.state.borrow_mut().closing = true;
    }

    /// Clean shutdown: waits for writes in flight, cuts the files to their true sizes, writes indexes, syncs. The log
    /// takes no more appends afterwards; reads go on.
    ///
    /// # Errors
    /// `Stopped`; `Full` when entries wait for space that is not there; `Io` when they wait for descriptors or memory.
    pub async fn close(&self) -> Result<(), LogError> {
        self.inner.close().await
    }
}

impl<E: Env> Inner<E> {
    /// Gives a segment whose header is on the disk its lasting name, in the background.
    pub(super) fn name_later(self: &Rc<Self>, segment: &SegmentOf<E>) {
        let (inner, segment) = (self.clone(), segment.clone());
        self.background(async move {
            if let Err(error) = inner.name(&segment).await {
                inner.stop(&segment.path(), "renamed", &error);
            }
        });
    }

    /// Finishes a segment whose entries are all durable, in the background.
    pub(super) fn seal_later(self: &Rc<Self>, segment: &SegmentOf<E>) {
        let (inner, segment) = (self.clone(), segment.clone());
        self.background(async move {
            let named = || segment.named.get() || inner.state.borrow().fault.is_some();
            inner.until(|| named().then_some(())).await;
            if segment.named.get()
                && let Err((path, action, error)) = inner.seal(&segment).await
            {
                inner.stop(&path, action, &error);
            }
        });
    }

    async fn name(&self, segment: &SegmentOf<E>) -> io::Result<()> {
        let to = store_path(&self.options.dir, segment.base.offset, segment.shares_base.get(), segment.sequence);
        self.patiently(is_transient, async || self.disk.rename(&segment.path(), &to).await).await?;
        *segment.path.borrow_mut() = to;
        self.sync_dir().await?;
        segment.named.set(true);
        Ok(())
    }

    /// Makes the names in the log's directory durable, as soon as there is a descriptor for it.
    pub(super) async fn sync_dir(&self) -> io::Result<()> {
        // Without memory it may be the sync that has failed.
        self.patiently(lacks_descriptors, async || self.disk.sync_dir(&self.options.dir).await).await
    }

    /// Does what changes nothing when it fails with such an error, again and again, until it does not, or the log has failed or is to
    /// close (`Log::announce_close`).
    pub(super) async fn patiently<T>(
        &self,
        is_such: fn(&io::Error) -> bool,
        work: impl AsyncFn() -> io::Result<T>,
    ) -> io::Result<T> {
        let mut is_told = false;
        loop {
            match work().await {
                Err(error) if is_such(&error) && !self.state.borrow().is_ending() => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(dir = %self.options.dir.display(), %error, "a log waits for what the process lacks");
                    }
                    crate::env::sleep::<E>(RETRY).await;
                }
                result => return result,
            }
        }
    }

    /// Writes footer and index of a segment whose entries are all durable, and cuts its file.
    pub(super) async fn seal(&self, segment: &SegmentOf<E>) -> Result<(), Failed> {
        let path = segment.path();
        let failed = |action| {
            let path = path.clone();
            move |error| (path, action, error)
        };
        let open = segment.now.borrow().appender.clone();
        let file: FileOf<E> = match open {
            Some(file) => file,
            None => {
                let opened = self.patiently(is_transient, async || self.disk.open(&path, OpenMode::Append).await);
                opened.await.map_err(failed("opened"))?
            }
        };
        let view = segment.view().expect("the index of a segment that is not sealed is in memory");
        let content = view.encode();
        let index_crc = crc32c::crc32c(&content);
        let data_end = segment.now.borrow().data_end;
        let footer = segment.footer(self.options.shard, index_crc).encode();
        match file.append_durable(data_end, vec![footer]).await {
            Ok(()) => {}
            // Only behind a cut is the block not there already. Nothing durable is touched: it is sealed by `close` or,
            // after a scan, at the next start.
            Err(error) if is_full(&error) => return Ok(()),
            Err(error) => return Err(failed("sealed")(error)),
        }
        let index_written = match self.disk.write_file(&segment.index_path(), content).await {
            Ok(()) => true,
            // A full disk, or no descriptor or memory: it is rebuilt at the next start; until then it stays in memory.
            Err(error) if is_full(&error) || is_transient(&error) => false,
            Err(error) => return Err((segment.index_path(), "written", error)),
        };
        file.truncate(data_end + BLOCK_BYTES as u64).await.map_err(failed("cut"))?;
        file.sync().await.map_err(failed("synced"))?;
        let now = &mut *segment.now.borrow_mut();
        now.phase = Phase::Sealed;
        now.index_crc = index_crc;
        now.appender = None;
        now.disk_end = data_end;
        if index_written {
            now.slots = Slots::Cached(None);
        }
        Ok(())
    }

    /// Suspends until all that was queued is durable.
    ///
    /// # Errors
    /// The log's fault; `Full` when entries wait for space that is not there, `Io` when they wait for descriptors or memory.
    async fn written(&self) -> Result<(), LogError> {
        let dir = &self.options.dir;
        self.until_or_fault(|| {
            if self.state.borrow().supply.is_stuck() {
                return Some(Err(LogError::Full { dir: dir.clone() }));
            }
            if self.is_starved_at_close() {
                let cause = "entries wait for descriptors or memory".to_owned();
                return Some(Err(LogError::Io { file: dir.clone(), action: "closed", cause }));
            }
            self.is_idle().then_some(Ok(()))
        })
        .await
    }

    /// The log is to close, and what is next in its queue waits for what may not come soon.
    pub(super) fn is_starved_at_close(&self) -> bool {
        let (closing, starved) = {
            let state = self.state.borrow();
            (state.closing, state.supply.is_starved())
        };
        closing && starved && self.waits_for_file()
    }

    /// See `Log::close`.
    pub(super) async fn close(self: &Rc<Self>) -> Result<(), LogError> {
        let dir = self.options.dir.clone();
        self.state.borrow_mut().closing = true;
        self.written().await?;
        let is_marked = {
            let state = self.state.borrow();
            // A truncation is about to cut what is flushed now.
            state.exclusive || state.flushed.last() <= state.hard.durable()
        };
        if !is_marked {
            // The footers say it, too; but the last one is cut off when the log goes on.
            self.save(Change::Flushed).await?;
            self.written().await?;
        }
        self.state.borrow_mut().closed = true;
        // The supply ends at its next step; what seals and renames is waited for.
        self.until(|| (self.background.get() == 0 && !self.state.borrow().supply.is_running()).then_some(())).await;
        if let Some(fault) = self.state.borrow().fault.clone() {
            return Err(fault);
        }
        let (segments, spares) = {
            let state = &mut *self.state.borrow_mut();
            (state.segments.clone(), state.supply.clear())
        };
        for segment in segments {
            let unsealed = segment.now.borrow().phase != Phase::Sealed && segment.now.borrow().footer_gone;
            if unsealed {
                self.seal(&segment).await.map_err(|(path, action, error)| self.stop(&path, action, &error))?;
            }
        }
        for spare in spares {
            self.disk.remove(&spare).await.map_err(|error| io_error(&spare, "removed", &error))?;
        }
        self.sync_dir().await.map_err(|error| self.stop(&dir, "synced", &error))?;
        Ok(())
    }

    /// See `Log::abandon`.
    pub(super) async fn abandon(&self) {
        let cause = io::Error::other("it was abandoned before all of it was written");
        self.stop(&self.options.dir, "used", &cause);
        self.until(|| {
            let supply_runs = self.state.borrow().supply.is_running();
            (self.flight.borrow().is_none() && self.background.get() == 0 && !supply_runs).then_some(())
        })
        .await;
    }
}
