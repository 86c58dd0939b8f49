//! What is kept beside the entries: the hard state (vote, committed, log start) and checkpoints.

use std::{io, path::PathBuf, rc::Rc, time::Duration};

use bytes::Bytes;

use super::{HardState, Inner, LogError, LogOptions, io_error, is_full, unreadable, writer::Job};
use crate::{
    env::{
        Disk, Env,
        channel::{OneshotReceiver, oneshot},
        is_transient, reserve,
    },
    format::{
        segment::LogPoint,
        state_files::{encode_checkpoint, parse_checkpoint},
    },
    ids::Index,
};

/// Checkpoints kept whatever they are for.
const CHECKPOINTS_NEWEST: usize = 2;

/// After this long without an append the last one is said to be durable.
const IDLE: Duration = Duration::from_millis(100);

/// A change of the hard state.
pub(super) enum Change {
    /// Raft's part.
    Raft(HardState),
    /// Where the log begins.
    Start(LogPoint),
    /// What is durable when this is written.
    Flushed,
    /// Nothing is called durable, as what is may be cut.
    Unflushed,
}

impl<E: Env> Inner<E> {
    /// Writes a change of the hard state behind what is queued; durable when it returns.
    pub(super) async fn save(self: &Rc<Self>, change: Change) -> Result<(), LogError> {
        self.check_alive()?;
        let (saved, outcome) = oneshot();
        self.state.borrow_mut().queue.push_back(Job::HardState(change, saved));
        self.saved(outcome).await
    }

    /// As `save`, but before all that is queued: for what is true without it. A vote is not: Raft takes what it appended before
    /// for durable then.
    pub(super) async fn save_first(self: &Rc<Self>, change: Change) -> Result<(), LogError> {
        self.check_alive()?;
        let (saved, outcome) = oneshot();
        self.state.borrow_mut().queue.push_front(Job::HardState(change, saved));
        self.saved(outcome).await
    }

    async fn saved(self: &Rc<Self>, outcome: OneshotReceiver<Result<(), LogError>>) -> Result<(), LogError> {
        self.drive();
        outcome.await.expect("the queue answers before it is dropped, and this handle keeps it")
    }

    /// Says on the disk what is durable, once nothing was appended for `IDLE`: the entries of a write are called durable by the
    /// next one, and without a next one damage to the last could not be told from a torn write. The next one may wait for space,
    /// or a descriptor, for as long as that takes: it is said meanwhile, which needs neither. One task, until it is said.
    pub(super) fn mark_when_idle(self: &Rc<Self>) {
        if self.marking.replace(true) {
            return;
        }
        let weak = Rc::downgrade(self);
        crate::env::spawn::<E>(async move {
            let mut seen = None;
            loop {
                let Some(inner) = weak.upgrade() else { return };
                let (flushed, marked) = {
                    let state = inner.state.borrow();
                    (state.flushed.last().filter(|_| !state.is_over()), state.hard.durable())
                };
                if flushed <= marked {
                    return inner.marking.set(false);
                }
                let nothing_is_written = inner.is_idle() || inner.waits_for_file();
                let quiet = seen == flushed && nothing_is_written && !inner.state.borrow().exclusive;
                if quiet {
                    // What stops it stops the log, which says so.
                    drop(inner.save_first(Change::Flushed).await);
                }
                seen = flushed;
                drop(inner);
                crate::env::sleep::<E>(IDLE).await;
            }
        });
    }

    /// Takes back what was said to be durable from `next` on, before it is cut.
    pub(super) async fn unmark(self: &Rc<Self>, next: Index) -> Result<(), LogError> {
        let marked = self.state.borrow().hard.flushed;
        match marked.filter(|marked| marked.index >= next) {
            Some(_) => self.save(Change::Unflushed).await,
            None => Ok(()),
        }
    }

    pub(super) fn checkpoint_path(&self, index: Index) -> PathBuf {
        checkpoint_path(&self.options, index)
    }

    /// See `Log::save_checkpoint`.
    pub(super) async fn save_checkpoint(&self, index: Index, content: Bytes) -> Result<(), LogError> {
        // Two of one index would be written under one temporary name.
        let _one = self.saving.lock().await;
        self.check_alive()?;
        let path = self.checkpoint_path(index);
        let file = encode_checkpoint(self.options.shard, index, &content);
        // A log is purged up to a checkpoint: without one a full disk would stay full.
        let write = async || reserve::write_file(&self.disk, &path, file.clone()).await;
        if let Err(error) = self.patiently(is_transient, write).await {
            return Err(if is_full(&error) || is_transient(&error) {
                io_error(&path, "written", &error)
            } else {
                self.stop(&path, "written", &error)
            });
        }
        self.state.borrow_mut().checkpoints.insert(index);
        self.drop_checkpoints().await;
        Ok(())
    }

    /// Removes checkpoints that are of no more use. A purge and the saving of a checkpoint may do so at the same time.
    pub(super) async fn drop_checkpoints(&self) {
        for index in self.useless_checkpoints() {
            self.remove_checkpoint(index).await;
        }
    }

    /// Removes a checkpoint, unless another caller does so already. A file that cannot be removed costs its space and does
    /// not stop the log.
    async fn remove_checkpoint(&self, index: Index) {
        if !self.state.borrow_mut().checkpoints.remove(&index) {
            return;
        }
        let path = self.checkpoint_path(index);
        // Not synced: one that comes back after a crash is removed again.
        match self.disk.remove(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a checkpoint that is not needed stays until the next start");
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn useless_checkpoints(&self) -> Vec<Index> {
        let state = self.state.borrow();
        // The log cannot be replayed from before its start: the newest one there is the last that can be needed.
        let oldest_needed = state.checkpoints.range(..state.start.next).next_back().copied();
        let newest: Vec<Index> = state.checkpoints.iter().rev().take(CHECKPOINTS_NEWEST).copied().collect();
        let at_segment =
            |index: Index| state.segments.binary_search_by(|segment| segment.base.next.cmp(&index.next())).is_ok();
        let useless = |index: &Index| {
            let needed = newest.contains(index) || at_segment(*index);
            Some(*index) < oldest_needed || (Some(*index) > oldest_needed && !needed)
        };
        state.checkpoints.iter().copied().filter(useless).collect()
    }

    /// See `Log::load_checkpoint`.
    pub(super) async fn load_checkpoint(&self, index: Index) -> Result<Option<(Index, Bytes)>, LogError> {
        let candidates: Vec<Index> = self.state.borrow().checkpoints.range(..=index).rev().copied().collect();
        let (mut found, mut damaged) = (None, Vec::new());
        for candidate in candidates {
            if !damaged.is_empty() && candidate.next() < self.state.borrow().start.next {
                break;
            }
            match read_checkpoint(&self.disk, &self.options, candidate).await? {
                Ok(content) => {
                    found = Some((candidate, content));
                    break;
                }
                Err(what) => damaged.push((candidate, what)),
            }
        }
        let Some((first, what)) = damaged.first() else { return Ok(found) };
        // Without a checkpoint a log that was never purged can be replayed whole.
        if found.is_none() && self.state.borrow().start.next > Index(0) {
            return Err(LogError::Corrupt { file: self.checkpoint_path(*first), position: 0, what: what.clone() });
        }
        for (damaged, what) in damaged {
            self.give_up_checkpoint(damaged, &what).await;
        }
        Ok(found)
    }

    /// Removes a checkpoint that is of no use and not needed. The replay that goes by its entry keeps another one, if it is at the
    /// start of a segment.
    pub(super) async fn give_up_checkpoint(&self, index: Index, what: &str) {
        let path = self.checkpoint_path(index);
        tracing::warn!(path = %path.display(), what, "a checkpoint that is of no use, and not needed, is removed");
        self.remove_checkpoint(index).await;
    }
}

/// Where the checkpoint at `index` is kept.
pub(super) fn checkpoint_path(options: &LogOptions, index: Index) -> PathBuf {
    options.dir.join(format!("{:020}.checkpoint", index.0))
}

/// The content of a checkpoint; inside, in words, why it is none.
///
/// # Errors
/// `Io`.
pub(super) async fn read_checkpoint<D: Disk>(
    disk: &D,
    options: &LogOptions,
    index: Index,
) -> Result<Result<Bytes, String>, LogError> {
    let path = checkpoint_path(options, index);
    let file = unreadable::read_file(disk, &path).await.map_err(|error| io_error(&path, "read", &error))?;
    Ok(match parse_checkpoint(&file) {
        Ok((shard, found, content)) if shard == options.shard && found == index => Ok(content),
        Ok((shard, found, _)) => Err(format!("it is the checkpoint of shard {shard} at entry {found}")),
        Err(error) => Err(error.to_string()),
    })
}
