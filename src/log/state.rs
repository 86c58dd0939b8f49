//! What is kept beside the entries: the hard state (vote, committed, log start) and checkpoints.

use std::{path::PathBuf, rc::Rc, time::Duration};

use bytes::Bytes;

use super::{HardState, Inner, LogError, io_error, is_full, writer::Job};
use crate::{
    env::{Disk, Env, channel::oneshot},
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
        self.drive();
        outcome.await.expect("the queue answers before it is dropped, and this handle keeps it")
    }

    /// Says on the disk what is durable, once nothing was appended for `IDLE`: the entries of a write are called durable by the
    /// next one, and without a next one damage to the last could not be told from a torn write. One task, until it is said.
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
                    let over = state.fault.is_some() || state.closed;
                    (state.flushed.last().filter(|_| !over), state.hard.durable())
                };
                if flushed <= marked {
                    return inner.marking.set(false);
                }
                let quiet = seen == flushed && inner.is_idle() && !inner.state.borrow().exclusive;
                if quiet {
                    // What stops it stops the log, which says so.
                    drop(inner.save(Change::Flushed).await);
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
        self.options.dir.join(format!("{:020}.checkpoint", index.0))
    }

    /// See `Log::save_checkpoint`.
    pub(super) async fn save_checkpoint(&self, index: Index, content: Bytes) -> Result<(), LogError> {
        self.check_alive()?;
        let path = self.checkpoint_path(index);
        let file = encode_checkpoint(self.options.shard, index, &content);
        if let Err(error) = self.disk.write_file(&path, file).await {
            return Err(if is_full(&error) {
                io_error(&path, "written", &error)
            } else {
                self.stop(&path, "written", &error)
            });
        }
        self.state.borrow_mut().checkpoints.insert(index);
        self.drop_checkpoints().await
    }

    /// Removes checkpoints that are of no more use.
    pub(super) async fn drop_checkpoints(&self) -> Result<(), LogError> {
        for index in self.useless_checkpoints() {
            self.state.borrow_mut().checkpoints.remove(&index);
            let path = self.checkpoint_path(index);
            // Not synced: one that comes back after a crash is removed again.
            self.disk.remove(&path).await.map_err(|error| io_error(&path, "removed", &error))?;
        }
        Ok(())
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
        let mut damage = None;
        for candidate in candidates {
            let path = self.checkpoint_path(candidate);
            if damage.is_some() && candidate.next() < self.state.borrow().start.next {
                break;
            }
            let file = self.disk.read_file(&path).await.map_err(|error| io_error(&path, "read", &error))?;
            let what = match parse_checkpoint(&file) {
                Ok((shard, found, content)) if shard == self.options.shard && found == candidate => {
                    return Ok(Some((candidate, content)));
                }
                Ok((shard, found, _)) => format!("it is the checkpoint of shard {shard} at entry {found}"),
                Err(error) => error.to_string(),
            };
            damage.get_or_insert(LogError::Corrupt { file: path, position: 0, what });
        }
        match damage {
            // Without a checkpoint a log that was never purged can be replayed whole.
            Some(error) if self.state.borrow().start.next > Index(0) => Err(error),
            Some(_) | None => Ok(None),
        }
    }
}
