//! Entries taken away: `truncate_after` at the end (Raft replaces what was not committed), `purge` at the
//! start (retention, snapshots).
//!
//! Order, so that a crash in between leaves a log without gaps: a truncation removes whole segments
//! from the newest on, each removal durable before the next; a purge makes the new log start durable first,
//! and only then removes segments: recovery removes what is left of them.
//!
//! Order for those who read meanwhile: the entries leave the log in memory before their bytes leave the disk. A read that does
//! not find the bytes looks at the bounds again, and is `NotFound`.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use super::{
    FileOf, Inner, LogError, Phase, SegmentOf, io_error,
    segment::{Slots, parse_slots},
    state::Change,
};
use crate::{
    env::{Disk, Env, File, OpenMode},
    format::segment::{LogPoint, Slot},
    ids::Index,
    limits::{BLOCK_BYTES, SEGMENT_BYTES_MIN},
};

/// A segment of which the first entries stay.
struct Cut<E: Env> {
    segment: SegmentOf<E>,
    file: FileOf<E>,
    /// Where the file ends then.
    position: u64,
    /// Of the entries that stay.
    slots: Vec<Slot>,
    /// Of the last one that stays.
    last_timestamp_us: i64,
}

impl<E: Env> Inner<E> {
    /// See `Log::truncate_after`.
    pub(super) async fn truncate_after(self: &Rc<Self>, last: Option<Index>) -> Result<(), LogError> {
        self.check_alive()?;
        let next = last.map_or(Index(0), Index::next);
        {
            let state = &mut *self.state.borrow_mut();
            let next = if last.is_none() { state.start.next } else { next };
            assert!(next >= state.start.next, "what is purged cannot be truncated");
            if next >= state.end.next {
                return Ok(());
            }
            assert!(!state.exclusive, "one truncation at a time");
            state.exclusive = true;
        }
        let start = self.state.borrow().start.next;
        let outcome = self.truncate_to(next.max(start)).await;
        self.state.borrow_mut().exclusive = false;
        // What has said that the last of those that stay is durable may have been cut.
        self.mark_when_idle();
        outcome
    }

    async fn truncate_to(self: &Rc<Self>, next: Index) -> Result<(), LogError> {
        self.drained().await?;
        let end = self.point_at(next).await?;
        self.settled().await?;
        let cut = self.cut_at(end).await?;
        self.unmark(next).await?;
        // What fails from here on stops the log.
        let gone = self.take_back(end, cut.as_ref());
        let dir = &self.options.dir;
        for segment in gone.iter().rev() {
            self.remove_segment(segment).await?;
            self.sync_dir().await.map_err(|error| self.stop(dir, "synced", &error))?;
        }
        match cut {
            Some(cut) => self.cut(&cut).await,
            None => Ok(()),
        }
    }

    /// Ends the log in memory at `end`. Returns the segments that have nothing left, oldest first.
    fn take_back(&self, end: LogPoint, cut: Option<&Cut<E>>) -> VecDeque<SegmentOf<E>> {
        let gone = {
            let state = &mut *self.state.borrow_mut();
            state.end = end;
            state.flushed = end;
            state.check_order();
            let start = state.start.next;
            // One of which only purged entries would stay goes as well.
            let stays =
                |segment: &SegmentOf<E>| segment.end().next <= end.next || segment.base.next.max(start) < end.next;
            let staying = state.segments.partition_point(stays);
            state.segments.split_off(staying)
        };
        if let Some(cut) = cut {
            cut.apply(end);
        }
        gone.iter().for_each(|segment| self.forget(segment));
        self.tail.truncate(end.next);
        gone
    }

    /// Where the log stood before the entry `next`.
    async fn point_at(&self, next: Index) -> Result<LogPoint, LogError> {
        let start = self.state.borrow().start;
        if next == start.next {
            return Ok(start);
        }
        let last = Index(next.0 - 1);
        let header = self.header(last).await?;
        Ok(super::point_after(&header))
    }

    /// Suspends until no segment is being renamed or sealed.
    async fn settled(&self) -> Result<(), LogError> {
        self.until_or_fault(|| (self.background.get() == 0).then_some(Ok(()))).await
    }

    /// The segment that holds entries on both sides of `end`, if there is one, and what is needed to cut it there.
    async fn cut_at(&self, end: LogPoint) -> Result<Option<Cut<E>>, LogError> {
        let segment = {
            let state = self.state.borrow();
            let is_cut = |segment: &&SegmentOf<E>| {
                segment.base.next.max(state.start.next) < end.next && end.next < segment.end().next
            };
            state.segments.iter().find(is_cut).cloned()
        };
        let Some(segment) = segment else { return Ok(None) };
        let keep = (end.next.0 - segment.base.next.0) as usize;
        let view = self.index_of(&segment).await?;
        let position = view.get(keep).map(|slot| u64::from(slot.position));
        let position = position.expect("the entry to be cut is in the segment");
        let mut slots = parse_slots(&view.encode());
        slots.truncate(keep);
        let last_timestamp_us = self.header(Index(end.next.0 - 1)).await?.timestamp_us;
        let path = segment.path();
        let file = self.disk.open(&path, OpenMode::Append).await.map_err(|error| io_error(&path, "opened", &error))?;
        Ok(Some(Cut { segment, file, position, slots, last_timestamp_us }))
    }

    /// Cuts a segment's file; its index goes first: with as many entries again, it would pass for that of what the segment will
    /// be until it is used.
    async fn cut(&self, cut: &Cut<E>) -> Result<(), LogError> {
        let (path, dir) = (cut.segment.path(), &self.options.dir);
        self.remove_index(&cut.segment).await?;
        self.sync_dir().await.map_err(|error| self.stop(dir, "synced", &error))?;
        cut.file.truncate(cut.position).await.map_err(|error| self.stop(&path, "cut", &error))?;
        cut.file.sync().await.map_err(|error| self.stop(&path, "synced", &error))
    }

    /// See `Log::purge`.
    pub(super) async fn purge(self: &Rc<Self>, to: LogPoint) -> Result<(), LogError> {
        self.check_alive()?;
        let (start, end) = {
            let state = self.state.borrow();
            (state.start, state.end)
        };
        if to.next <= start.next {
            return Ok(());
        }
        // Recovery tells a recycled file from a segment by its name.
        self.settled().await?;
        if to.next > end.next {
            return self.start_over(to).await;
        }
        let to = super::point_after(&self.header(Index(to.next.0 - 1)).await?);
        // It was committed, and will be durable. Recovery takes a segment without its lasting name for a recycled file when the log
        // begins behind its base.
        self.until_or_fault(|| self.is_named_before(to.next).then_some(Ok(()))).await?;
        // What is queued may wait for the space that this frees.
        self.save_first(Change::Start(to)).await?;
        {
            let state = &mut *self.state.borrow_mut();
            state.start = to;
            state.check_order();
        }
        self.tail.purge(to.next);
        self.drop_segments(to.next).await?;
        self.drop_checkpoints().await;
        Ok(())
    }

    /// All entries before `next` are durable, and so are the names of their segments.
    fn is_named_before(&self, next: Index) -> bool {
        let state = self.state.borrow();
        let named = |segment: &SegmentOf<E>| segment.base.next >= next || segment.named.get();
        state.flushed.next >= next && state.segments.iter().all(named)
    }

    /// The log begins anew at `to`, beyond its present end. What waits for space that is not there does not get it any more.
    async fn start_over(self: &Rc<Self>, to: LogPoint) -> Result<(), LogError> {
        self.state.borrow_mut().exclusive = true;
        let outcome = async {
            self.drained_or_stuck().await?;
            let done = self.drop_queued();
            // First, before anything that says that what was dropped is durable: a vote that waits does.
            if let Err(fault) = self.save_first(Change::Start(to)).await {
                done.into_iter().for_each(|done| done(Err(fault.clone())));
                return Err(fault);
            }
            {
                let state = &mut *self.state.borrow_mut();
                state.start = to;
                state.end = to;
                state.flushed = to;
            }
            self.tail.truncate(to.next);
            self.tail.purge(to.next);
            self.tail.flushed(to.next);
            // As when they had been written before.
            done.into_iter().for_each(|done| done(Ok(())));
            self.drop_segments(to.next).await?;
            self.drop_checkpoints().await;
            Ok(())
        };
        let outcome = outcome.await;
        self.state.borrow_mut().exclusive = false;
        outcome
    }

    /// Removes the segments that have nothing from `start` on; one of them is kept as a spare if it suits. The open one stays
    /// unless all of it is purged and durable: then the next append begins a new one.
    async fn drop_segments(self: &Rc<Self>, start: Index) -> Result<(), LogError> {
        let mut dropped = 0;
        loop {
            let front = {
                let state = &mut *self.state.borrow_mut();
                let front = state.segments.front().filter(|front| front.end().next <= start);
                let open = front.is_some_and(|front| front.now.borrow().phase == Phase::Open);
                // Entries in flight are of the open segment; it goes with a later purge.
                let busy = open && (state.unflushed.bytes() > 0 || state.segments.len() > 1);
                if front.is_none() || busy { None } else { state.segments.pop_front() }
            };
            let Some(front) = front else { break };
            if front.now.borrow().phase != Phase::Sealed {
                self.settled().await?;
            }
            self.remove_or_recycle(&front).await?;
            dropped += 1;
        }
        if dropped > 0 {
            let dir = &self.options.dir;
            self.sync_dir().await.map_err(|error| self.stop(dir, "synced", &error))?;
        }
        Ok(())
    }

    async fn remove_or_recycle(self: &Rc<Self>, segment: &SegmentOf<E>) -> Result<(), LogError> {
        self.forget(segment);
        let sealed = segment.now.borrow().phase == Phase::Sealed;
        let bytes = segment.now.borrow().data_end + BLOCK_BYTES as u64;
        let Some(spare) = (if sealed { self.wants_recycled(bytes) } else { None }) else {
            return self.remove_segment(segment).await;
        };
        let path = segment.path();
        self.remove_index(segment).await?;
        self.disk.rename(&path, &spare).await.map_err(|error| self.stop(&path, "renamed", &error))?;
        let dir = &self.options.dir;
        self.sync_dir().await.map_err(|error| self.stop(dir, "synced", &error))?;
        self.recycle(spare, bytes);
        Ok(())
    }

    /// Removes the files of a segment that is forgotten; durable after the next `sync_dir`.
    async fn remove_segment(&self, segment: &SegmentOf<E>) -> Result<(), LogError> {
        let path = segment.path();
        if path.as_os_str().is_empty() {
            // Its entries were still waiting for a file.
            return Ok(());
        }
        self.remove_index(segment).await?;
        self.disk.remove(&path).await.map_err(|error| self.stop(&path, "removed", &error))
    }

    async fn remove_index(&self, segment: &SegmentOf<E>) -> Result<(), LogError> {
        let path = segment.index_path();
        match self.disk.remove(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.stop(&path, "removed", &error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Lets go of a segment's open files and map: whoever reads it finds that it is gone.
    fn forget(&self, segment: &SegmentOf<E>) {
        segment.removed.set(true);
        self.hot.borrow_mut().retain(|hot| !Rc::ptr_eq(hot, segment));
        let now = &mut *segment.now.borrow_mut();
        now.reader = None;
        now.appender = None;
        if matches!(now.slots, Slots::Cached(_)) {
            now.slots = Slots::Cached(None);
        }
    }
}

impl<E: Env> Cut<E> {
    /// The segment in memory ends at `end`, and is open again.
    fn apply(&self, end: LogPoint) {
        let now = &mut *self.segment.now.borrow_mut();
        now.end = end;
        now.last_timestamp_us = self.last_timestamp_us;
        now.data_end = self.position;
        now.disk_end = self.position;
        now.capacity =
            now.intended_bytes.min(self.position + SEGMENT_BYTES_MIN).max(self.position + BLOCK_BYTES as u64);
        now.phase = Phase::Open;
        now.footer_gone = true;
        now.requested = false;
        now.urgent = false;
        now.appender = None;
        now.slots = Slots::Live(Rc::new(RefCell::new(self.slots.clone())));
    }
}
