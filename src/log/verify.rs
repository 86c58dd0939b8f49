//! Offline check of a log's directory: every header, payload, chain, offset, index, footer, checkpoint. Changes
//! nothing, so it may look at a directory after a crash before a node recovers it; a running node's directory looks torn.

use std::path::{Path, PathBuf};

use super::{
    LogError, io_error,
    recovery::{SegmentFile, checkpoint_index, has_extension, newest_slot, read_footer, read_header},
    scan::{Found, Scan},
};
use crate::{
    env::{Disk, OpenMode},
    format::{
        segment::{LogPoint, SLOT_BYTES, Slot},
        state_files::{HardStateSlot, parse_checkpoint},
    },
    ids::{Offset, Position, ShardUid},
    limits::BLOCK_BYTES,
};

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whose log it is.
    pub shard: ShardUid,
    /// Files looked at.
    pub files: u64,
    /// Entries that are whole.
    pub entries: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of files read.
    pub bytes: u64,
    /// First offset kept.
    pub log_start: Offset,
    /// Next offset to be given.
    pub log_end: Offset,
    /// Bytes behind the last whole entry that a torn write left: recovery cuts them; not a problem.
    pub torn_tail: u64,
    /// The log was closed cleanly.
    pub clean: bool,
    /// Damage, in the order of the files.
    pub problems: Vec<Problem>,
}

/// One piece of damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which file.
    pub file: PathBuf,
    /// Where in it.
    pub position: Position,
    /// What was found.
    pub what: String,
}

/// Checks the directory of one shard.
///
/// # Errors
/// `Io` when something cannot be read at all. Damage is not an error but in the report.
pub async fn verify_dir<D: Disk>(disk: &D, dir: &Path) -> Result<Report, LogError> {
    let mut check = Check { disk, report: Report::default(), hard: None };
    let names = disk.list(dir).await.map_err(|error| io_error(dir, "listed", &error))?;
    check.hard_state(&dir.join("hard_state")).await?;
    let mut segments = Vec::new();
    for entry in &names {
        let path = dir.join(&entry.name);
        let named = has_extension(&entry.name, "store");
        if named || has_extension(&entry.name, "spare") {
            match read_header(disk, &path).await? {
                Ok(header) if header.shard == check.report.shard => {
                    segments.push(SegmentFile { path, bytes: entry.bytes, header, named });
                }
                Ok(header) if named => check.problem(&path, 0, format!("it belongs to shard {}", header.shard)),
                Err(error) if named => check.problem(&path, 0, format!("the segment's header: {error}")),
                Ok(_) | Err(_) => {}
            }
        } else if checkpoint_index(&entry.name).is_some() {
            check.checkpoint(&path).await?;
        }
    }
    segments.sort_by_key(|segment| segment.header.sequence);
    check.segments(&segments).await?;
    Ok(check.report)
}

struct Check<'a, D> {
    disk: &'a D,
    report: Report,
    hard: Option<HardStateSlot>,
}

impl<D: Disk> Check<'_, D> {
    fn problem(&mut self, file: &Path, position: u64, what: String) {
        self.report.problems.push(Problem { file: file.into(), position: Position(position), what });
    }

    async fn hard_state(&mut self, path: &Path) -> Result<(), LogError> {
        let content = match self.disk.read_file(path).await {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.problem(path, 0, "it is missing; the vote in it is lost".into());
                return Ok(());
            }
            Err(error) => return Err(io_error(path, "read", &error)),
        };
        self.report.files += 1;
        self.report.bytes += content.len() as u64;
        let slots: Vec<_> = content.chunks(BLOCK_BYTES).filter_map(|slot| HardStateSlot::parse(slot).ok()).collect();
        let shard = slots.first().map_or(ShardUid(0), |slot| slot.shard);
        match newest_slot(&content, shard, path) {
            Ok(slot) => {
                self.report.shard = slot.shard;
                self.report.log_start = slot.start.offset;
                self.report.log_end = slot.start.offset;
                self.hard = Some(slot);
            }
            Err(error) => self.problem(path, 0, error.to_string()),
        }
        Ok(())
    }

    async fn checkpoint(&mut self, path: &Path) -> Result<(), LogError> {
        let content = self.disk.read_file(path).await.map_err(|error| io_error(path, "read", &error))?;
        self.report.files += 1;
        self.report.bytes += content.len() as u64;
        match parse_checkpoint(&content) {
            Ok((shard, index, _)) if shard == self.report.shard && Some(index) == checkpoint_index(path) => {}
            Ok((shard, index, _)) => self.problem(path, 0, format!("it is of shard {shard} at entry {index}")),
            Err(error) => self.problem(path, 0, error.to_string()),
        }
        Ok(())
    }

    async fn segments(&mut self, segments: &[SegmentFile]) -> Result<(), LogError> {
        let start = self.hard.map_or(LogPoint::default(), |hard| hard.start);
        let kept = |file: &&SegmentFile| file.named || file.header.base.next >= start.next;
        let live: Vec<&SegmentFile> = segments.iter().filter(kept).collect();
        let mut end: Option<LogPoint> = None;
        for (number, file) in live.iter().enumerate() {
            let base = file.header.base;
            let follows = end.map_or(base.next <= start.next, |end| base == end);
            if !follows {
                let expected = end.unwrap_or(start);
                let what = format!("it begins at {} (entry), {} (offset)", base.next, base.offset);
                self.problem(&file.path, 0, format!("{what}; expected {}, {}", expected.next, expected.offset));
            }
            let next = live.get(number + 1).map(|next| next.header.base);
            let segment_end = self.segment(file, next).await?;
            end = Some(next.unwrap_or(segment_end));
            self.report.log_end = segment_end.offset.max(start.offset);
        }
        let end = end.map_or(start, |end| if end.next < start.next { start } else { end });
        if let Some(committed) = self.hard.and_then(|hard| hard.state.committed)
            && committed.index >= end.next
            && let Some(last) = live.last()
        {
            let what = format!("entries up to {committed} were committed, the log ends before {}", end.next);
            self.problem(&last.path, last.bytes, what);
        }
        Ok(())
    }

    /// Checks one segment; `next`: where the following one begins. Returns where this one ends.
    async fn segment(&mut self, file: &SegmentFile, next: Option<LogPoint>) -> Result<LogPoint, LogError> {
        let failed = |error: std::io::Error| io_error(&file.path, "read", &error);
        let reader = self.disk.open(&file.path, OpenMode::Read).await.map_err(failed)?;
        let footer = read_footer(&reader, file.bytes, &file.header).await.map_err(failed)?;
        self.report.files += 1;
        self.report.bytes += file.bytes;
        let base = file.header.base;
        let mut scan = Scan::new(&reader, file.bytes, self.report.shard, file.header.sequence, base);
        let mut index: Vec<u8> = Vec::new();
        let mut bad = None;
        loop {
            let position = scan.position;
            let slot = Slot { offset: (scan.point.offset.0 - base.offset.0) as u32, position: position as u32 };
            match scan.next().await.map_err(failed)? {
                Found::Entry(entry) => {
                    index.extend_from_slice(&slot.encode());
                    self.report.entries += 1;
                    self.report.records += u64::from(entry.header.record_count);
                }
                Found::Footer(_) | Found::End => break,
                Found::Bad(what) => {
                    bad = Some(what);
                    break;
                }
            }
        }
        let (position, point) = (scan.position, scan.point);
        if let Some(what) = bad {
            let beyond = scan.look_beyond().await.map_err(failed)?;
            let expected = next.or(footer.map(|footer| footer.end));
            let durable = match (beyond.proof, expected) {
                (Some((at, index)), _) => Some(format!("entry {index} at byte {at} was written after it")),
                (None, Some(expected)) if expected.next > point.next => {
                    Some(format!("entry {} follows", expected.next))
                }
                (None, _) => None,
            };
            match durable {
                Some(proof) => self.problem(&file.path, position, format!("{what}; but it was durable: {proof}")),
                None if !beyond.zero && next.is_none() => self.report.torn_tail = file.bytes - position,
                None => {}
            }
        } else if let Some(next) = next.filter(|next| *next != point) {
            self.problem(
                &file.path,
                position,
                format!("it ends before entry {}, the next begins at {}", point.next, next.next),
            );
        }
        if file.named && point.next == base.next && next.is_none() {
            let what = "it has no entries, but a segment is named after its first entry is durable";
            self.problem(&file.path, position, what.into());
        }
        self.report.clean = footer.is_some();
        if let Some(footer) = footer.filter(|footer| footer.end == point) {
            self.index(file, &index, footer.index_crc).await?;
        }
        Ok(point)
    }

    /// Checks the index file of a sealed segment against its entries.
    async fn index(&mut self, file: &SegmentFile, expected: &[u8], crc: u32) -> Result<(), LogError> {
        if crc32c::crc32c(expected) != crc {
            self.problem(&file.path, file.bytes - BLOCK_BYTES as u64, "the footer speaks of another index".into());
        }
        let path = file.path.with_extension("index");
        let content = match self.disk.read_file(&path).await {
            Ok(content) => content,
            // A cache: it is rebuilt.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error(&path, "read", &error)),
        };
        self.report.files += 1;
        self.report.bytes += content.len() as u64;
        if content != expected {
            let same = content.iter().zip(expected).take_while(|(found, expected)| found == expected).count();
            let position = (same / SLOT_BYTES * SLOT_BYTES) as u64;
            self.problem(&path, position, "it does not match the entries; it will be rebuilt when it is used".into());
        }
        Ok(())
    }
}
