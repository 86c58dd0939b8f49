//! Writing a segment anew, and what makes a gap full; see `super`.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{After, Gap, RepairError};
use crate::{
    env::{Disk, File, OpenMode, buffer::Buffer},
    format::{
        entry::{ENTRY_HEADER_BYTES, EntryHeader, StoredEntry},
        segment::{LogPoint, SegmentHeader},
    },
    ids::ShardUid,
    limits::BLOCK_BYTES,
    log::{io_error, point_after, scan::continues},
};

/// Written at once, more or less.
const WRITE_BYTES: usize = 1 << 20;

/// A segment under its temporary name.
pub(super) struct Writer<F> {
    file: F,
    path: PathBuf,
    temporary: PathBuf,
    header: SegmentHeader,
    point: LogPoint,
    /// Of what is written.
    position: u64,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
}

/// A place to go back to.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    point: LogPoint,
    position: u64,
}

impl<F: File> Writer<F> {
    /// Begins the segment of this header, to be called `path`.
    pub async fn begin<D: Disk<File = F>>(
        disk: &D,
        path: &Path,
        header: &SegmentHeader,
    ) -> Result<Writer<F>, RepairError> {
        let temporary = path.with_extension("tmp");
        super::mend::remove_if_there(disk, &temporary).await?;
        let file = disk.open(&temporary, OpenMode::Create).await;
        let file = file.map_err(|error| RepairError::Disk(io_error(&temporary, "made", &error)))?;
        let (path, header, waiting) = (path.to_owned(), *header, vec![header.encode()]);
        Ok(Writer {
            file,
            path,
            temporary,
            header,
            point: header.base,
            position: 0,
            waiting,
            waiting_bytes: BLOCK_BYTES,
        })
    }

    /// Where the log stands behind what was added.
    pub fn point(&self) -> LogPoint {
        self.point
    }

    /// Adds the next entry, as it was but for the segment's sequence.
    pub async fn add(&mut self, entry: &StoredEntry) -> Result<(), RepairError> {
        self.put(entry, entry.header.durable_end).await
    }

    /// Adds the next entry, one of another replica's: all before it is durable when this file has its name.
    pub async fn add_durable(&mut self, entry: &StoredEntry) -> Result<(), RepairError> {
        self.put(entry, entry.header.id.index.0).await
    }

    async fn put(&mut self, entry: &StoredEntry, durable_end: u64) -> Result<(), RepairError> {
        let header = EntryHeader { segment: self.header.sequence, durable_end, ..entry.header };
        let end = self.position + (self.waiting_bytes + header.padded_bytes() + BLOCK_BYTES) as u64;
        let offset = header.base_offset.0.saturating_sub(self.header.base.offset.0);
        if end > u64::from(u32::MAX) || offset > u64::from(u32::MAX) {
            let what = "what is missing behind it does not fit into one segment".to_owned();
            return Err(RepairError::hopeless(self.path.clone(), self.position, what));
        }
        let mut buffer = Buffer::with_capacity(header.padded_bytes());
        buffer.extend(&header.encode());
        buffer.extend(&entry.bytes[ENTRY_HEADER_BYTES..]);
        self.waiting.push(buffer.freeze_padded());
        self.waiting_bytes += header.padded_bytes();
        self.point = point_after(&header);
        if self.waiting_bytes >= WRITE_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), RepairError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let written = self.file.write_at(self.position, std::mem::take(&mut self.waiting)).await;
        written.map_err(|error| self.failed("written", &error))?;
        self.position += std::mem::take(&mut self.waiting_bytes) as u64;
        Ok(())
    }

    /// This place.
    pub async fn mark(&mut self) -> Result<Mark, RepairError> {
        self.flush().await?;
        Ok(Mark { point: self.point, position: self.position })
    }

    /// Drops what was added since.
    pub fn back_to(&mut self, mark: Mark) {
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.point = mark.point;
        self.position = mark.position;
    }

    /// Makes all of it durable, and puts it in the place of the damaged one.
    pub async fn finish<D: Disk<File = F>>(mut self, disk: &D, dir: &Path) -> Result<(), RepairError> {
        self.flush().await?;
        self.file.truncate(self.position).await.map_err(|error| self.failed("cut", &error))?;
        self.file.sync().await.map_err(|error| self.failed("synced", &error))?;
        disk.rename(&self.temporary, &self.path).await.map_err(|error| self.failed("renamed", &error))?;
        super::mend::sync_dir(disk, dir).await
    }

    fn failed(&self, action: &'static str, error: &io::Error) -> RepairError {
        RepairError::Disk(io_error(&self.temporary, action, error))
    }
}

impl Gap {
    /// Whether a log that stands at `point` has what was missing.
    pub(super) fn check_end(&self, shard: ShardUid, point: &LogPoint) -> Result<(), String> {
        match &self.after {
            After::Point(known) if known == point => Ok(()),
            After::Entry(next) => continues(next, shard, next.segment, point)
                .map_err(|what| format!("it has another history, which entry {} does not continue: {what}", next.id)),
            After::Last(last) if point.last() == Some(*last) => Ok(()),
            After::Point(_) | After::Last(_) => {
                Err(format!("it has another history: its entries up to {} differ", point.next))
            }
            // What is sent for it is committed.
            After::Nothing => Ok(()),
        }
    }
}
