//! Entries taken away: `truncate_after` at the end (Raft replaces what was not committed), `purge` at the
//! start (retention, snapshots).
//!
//! Order, so that a crash in between leaves a log without gaps: a truncation removes whole segments
//! from the newest on, each removal durable before the next; a purge makes the new log start durable first,
//! and only then removes segments: recovery removes what is left of them.

use std::rc::Rc;

use super::{Inner, LogError, Phase, SegmentOf, io_error, segment::Slots, segment::parse_slots, state::Change};
use crate::{
    env::{Disk, Env, File, OpenMode},
    format::segment::LogPoint,
    ids::Index,
    limits::{BLOCK_BYTES, SEGMENT_BYTES_MIN},
};

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
        outcome
    }

    async fn truncate_to(self: &Rc<Self>, next: Index) -> Result<(), LogError> {
        self.drained().await?;
        let end = self.point_at(next).await?;
        let start = self.state.borrow().start.next;
        self.settled().await?;
        self.unmark(next).await?;
        loop {
            let last = self.state.borrow().segments.back().cloned();
            let Some(last) = last.filter(|last| last.end().next > next) else { break };
            // All that it would keep is purged, or there is nothing.
            if next <= last.base.next.max(start) {
                self.state.borrow_mut().segments.pop_back();
                self.remove_segment(&last).await?;
                let dir = &self.options.dir;
                self.disk.sync_dir(dir).await.map_err(|error| self.stop(dir, "synced", &error))?;
            } else {
                self.cut(&last, end).await?;
            }
        }
        let state = &mut *self.state.borrow_mut();
        state.end = end;
        state.flushed = end;
        state.check_order();
        self.tail.truncate(end.next);
        Ok(())
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
        self.until(|| match &self.state.borrow().fault {
            Some(fault) => Some(Err(fault.clone())),
            None => (self.background.get() == 0).then_some(Ok(())),
        })
        .await
    }

    /// Cuts a segment after the entry before `end`; it is open again afterwards.
    async fn cut(&self, segment: &SegmentOf<E>, end: LogPoint) -> Result<(), LogError> {
        let keep = (end.next.0 - segment.base.next.0) as usize;
        let view = self.index_of(segment).await?;
        let position = view.get(keep).map(|slot| u64::from(slot.position));
        let position = position.expect("the entry to be cut is in the segment");
        let mut slots = parse_slots(&view.encode());
        slots.truncate(keep);
        let last_timestamp_us = self.header(Index(end.next.0 - 1)).await?.timestamp_us;
        let path = segment.path();
        let file = self.disk.open(&path, OpenMode::Append).await.map_err(|error| io_error(&path, "opened", &error))?;
        // The index of what it was: with as many entries again, it would pass for that of what it will be until it is used.
        self.remove_index(segment).await?;
        let dir = &self.options.dir;
        self.disk.sync_dir(dir).await.map_err(|error| self.stop(dir, "synced", &error))?;
        file.truncate(position).await.map_err(|error| self.stop(&path, "cut", &error))?;
        file.sync().await.map_err(|error| self.stop(&path, "synced", &error))?;
        let now = &mut *segment.now.borrow_mut();
        now.end = end;
        now.last_timestamp_us = last_timestamp_us;
        now.data_end = position;
        now.disk_end = position;
        now.capacity = now.intended_bytes.min(position + SEGMENT_BYTES_MIN).max(position + BLOCK_BYTES as u64);
        now.phase = Phase::Open;
        now.footer_gone = true;
        now.requested = false;
        now.urgent = false;
        now.appender = None;
        now.slots = Slots::Live(Rc::new(slots.into()));
        Ok(())
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
        // What is purged was committed, so it is durable, or will be when this write is reached in the queue.
        self.save(Change::Start(to)).await?;
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

    /// The log begins anew at `to`, beyond its present end.
    async fn start_over(self: &Rc<Self>, to: LogPoint) -> Result<(), LogError> {
        self.state.borrow_mut().exclusive = true;
        let outcome = async {
            self.drained().await?;
            self.save(Change::Start(to)).await?;
            {
                let state = &mut *self.state.borrow_mut();
                state.start = to;
                state.end = to;
                state.flushed = to;
            }
            self.tail.truncate(to.next);
            self.tail.purge(to.next);
            self.tail.flushed(to.next);
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
            self.disk.sync_dir(dir).await.map_err(|error| self.stop(dir, "synced", &error))?;
        }
        Ok(())
    }

    async fn remove_or_recycle(self: &Rc<Self>, segment: &SegmentOf<E>) -> Result<(), LogError> {
        let sealed = segment.now.borrow().phase == Phase::Sealed;
        let bytes = segment.now.borrow().data_end + BLOCK_BYTES as u64;
        let Some(spare) = (if sealed { self.wants_recycled(bytes) } else { None }) else {
            return self.remove_segment(segment).await;
        };
        self.forget(segment);
        let path = segment.path();
        self.remove_index(segment).await?;
        self.disk.rename(&path, &spare).await.map_err(|error| self.stop(&path, "renamed", &error))?;
        let dir = &self.options.dir;
        self.disk.sync_dir(dir).await.map_err(|error| self.stop(dir, "synced", &error))?;
        self.recycle(spare, bytes);
        Ok(())
    }

    /// Removes a segment's files; durable after the next `sync_dir`.
    async fn remove_segment(&self, segment: &SegmentOf<E>) -> Result<(), LogError> {
        self.forget(segment);
        self.remove_index(segment).await?;
        let path = segment.path();
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
