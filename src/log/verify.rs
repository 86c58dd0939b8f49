//! Offline check of a log's directory: every header, payload, chain, offset, index, footer, checkpoint. Changes
//! nothing, so it may look at a directory after a crash before a node recovers it; a running node's directory looks torn.

use std::path::{Path, PathBuf};

use super::{
    LogError,
    hard_state::{OF_ANOTHER_OWNER, newest_slot},
    io_error,
    recovery::{SegmentFile, checkpoint_index, has_extension, live_and_purged, read_footer, read_header},
    scan::{Found, Scan, UNREADABLE},
    unreadable,
};
use bytes::Bytes;

use crate::{
    env::{Disk, OpenMode},
    format::{
        entry::StoredEntry,
        segment::{BlockError, LogPoint, SLOT_BYTES, SegmentHeader, Slot},
        state_files::{HardStateSlot, parse_checkpoint},
    },
    ids::{Index, Offset, Position, ShardUid},
    limits::{BLOCK_BYTES, OFFLINE_BYTES_MAX},
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
    /// Whose it is (`format::state_files::owner_tag`); 0: nobody's, or not known.
    pub owner: u64,
    /// Damage, in the order of the files.
    pub problems: Vec<Problem>,
    /// What looks odd and is not damage.
    pub notes: Vec<Problem>,
}

/// What a small log says, for who reads it without a node.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// First entry that is kept.
    pub first: Index,
    /// The newest checkpoint that is whole, and the last entry in it.
    pub checkpoint: Option<(Index, Bytes)>,
    /// Whole entries after the checkpoint, in order, committed or not.
    pub entries: Vec<StoredEntry>,
    /// There were more of them than `OFFLINE_BYTES_MAX`: not all are here.
    pub is_cut: bool,
}

impl Report {
    /// Says so if the directory is not one of this owner's; nothing for 0.
    pub fn check_owner(&mut self, dir: &Path, owner: u64) {
        if owner != 0 && self.owner != 0 && self.owner != owner {
            let file = dir.join("hard_state");
            self.problems.push(Problem { file, position: Position(0), what: OF_ANOTHER_OWNER.into() });
        }
    }
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
    Ok(verify(disk, dir, None).await?.0)
}

/// As `verify_dir`, and returns what the log says. For the catalog's, which is small.
///
/// # Errors
/// As `verify_dir`.
pub async fn verify_and_read<D: Disk>(disk: &D, dir: &Path) -> Result<(Report, Content), LogError> {
    let (report, content) = verify(disk, dir, Some(Content::default())).await?;
    Ok((report, content.expect("it was asked for")))
}

async fn verify<D: Disk>(
    disk: &D,
    dir: &Path,
    content: Option<Content>,
) -> Result<(Report, Option<Content>), LogError> {
    let mut check = Check { disk, report: Report::default(), hard: None, content, content_bytes: 0 };
    let names = disk.list(dir).await.map_err(|error| io_error(dir, "listed", &error))?;
    check.hard_state(&dir.join("hard_state")).await?;
    let mut headers = Vec::new();
    for entry in &names {
        let named = has_extension(&entry.name, "store");
        if named || has_extension(&entry.name, "spare") {
            let path = dir.join(&entry.name);
            headers.push((read_header(disk, &path).await?, path, entry.bytes, named));
        }
    }
    if check.hard.is_none() {
        // Else every segment would be called another shard's.
        let named = headers.iter().filter(|(.., named)| *named);
        let oldest = named.filter_map(|(header, ..)| header.ok()).min_by_key(|header| header.sequence);
        check.report.shard = oldest.map_or(ShardUid(0), |header| header.shard);
    }
    let mut segments = Vec::new();
    for (header, path, bytes, named) in headers {
        segments.extend(check.header(header, path, bytes, named));
    }
    for entry in names.iter().filter(|entry| checkpoint_index(&entry.name).is_some()) {
        check.checkpoint(&dir.join(&entry.name)).await?;
    }
    segments.sort_by_key(|segment| segment.header.sequence);
    check.segments(&segments).await?;
    Ok((check.report, check.content))
}

struct Check<'a, D> {
    disk: &'a D,
    report: Report,
    hard: Option<HardStateSlot>,
    /// If it is asked for.
    content: Option<Content>,
    content_bytes: usize,
}

impl<D: Disk> Check<'_, D> {
    fn problem(&mut self, file: &Path, position: u64, what: String) {
        self.report.problems.push(Problem { file: file.into(), position: Position(position), what });
    }

    async fn hard_state(&mut self, path: &Path) -> Result<(), LogError> {
        let content = match unreadable::read_file(self.disk, path).await {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.problem(path, 0, "it is missing; the vote in it is lost".into());
                return Ok(());
            }
            Err(error) => return Err(io_error(path, "read", &error)),
        };
        self.report.files += 1;
        self.report.bytes += content.len() as u64;
        let dir = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let shard = dir.and_then(|name| name.parse().ok()).map(ShardUid);
        match newest_slot(&content, path, shard) {
            Ok(slot) => {
                self.note_other_slot(&content, &slot, path);
                self.report.shard = slot.shard;
                self.report.owner = slot.owner;
                self.report.log_start = slot.start.offset;
                self.report.log_end = slot.start.offset;
                self.hard = Some(slot);
            }
            Err(LogError::Corrupt { .. }) => {
                let words = |number: usize| match content.chunks(BLOCK_BYTES).nth(number).map(HardStateSlot::parse) {
                    Some(Err(error)) => error.to_string(),
                    Some(Ok(_)) | None => "it is not there".into(),
                };
                let what = format!(
                    "neither of its two slots is whole (at byte 0: {}; at byte {BLOCK_BYTES}: {}): the vote in it is \
                     lost, and where the log begins",
                    words(0),
                    words(1)
                );
                self.problem(path, 0, what);
            }
            Err(error) => self.problem(path, 0, error.to_string()),
        }
        Ok(())
    }

    /// The slot that does not count should be the one written before.
    fn note_other_slot(&mut self, content: &[u8], newest: &HardStateSlot, path: &Path) {
        let number = (newest.sequence + 1) % 2;
        let position = number * BLOCK_BYTES as u64;
        let other = content.chunks(BLOCK_BYTES).nth(number as usize).unwrap_or_default();
        let never_written = newest.sequence == 0 && other.iter().all(|byte| *byte == 0);
        let wrong = match HardStateSlot::parse(other) {
            Ok(slot) => (slot.shard != newest.shard).then(|| format!("it belongs to shard {}", slot.shard)),
            Err(error) => (!never_written).then(|| error.to_string()),
        };
        if let Some(error) = wrong {
            let what = format!(
                "{error}; the other slot counts, and is whole: nothing that was acknowledged is lost, both are written anew \
                 with the next vote"
            );
            self.report.notes.push(Problem { file: path.into(), position: Position(position), what });
        }
    }

    /// A segment, if it is one of this log.
    fn header(
        &mut self,
        header: Result<SegmentHeader, BlockError>,
        path: PathBuf,
        bytes: u64,
        named: bool,
    ) -> Option<SegmentFile> {
        match header {
            Ok(header) if header.shard == self.report.shard => {
                return Some(SegmentFile { path, bytes, header, named });
            }
            Ok(header) if named => self.problem(&path, 0, format!("it belongs to shard {}", header.shard)),
            Err(error) if named => self.problem(&path, 0, format!("the segment's header: {error}")),
            Ok(_) | Err(_) => {}
        }
        None
    }

    async fn checkpoint(&mut self, path: &Path) -> Result<(), LogError> {
        let content = unreadable::read_file(self.disk, path).await.map_err(|error| io_error(path, "read", &error))?;
        self.report.files += 1;
        self.report.bytes += content.len() as u64;
        match parse_checkpoint(&content) {
            Ok((shard, index, state)) if shard == self.report.shard && Some(index) == checkpoint_index(path) => {
                if let Some(content) = &mut self.content
                    && content.checkpoint.as_ref().is_none_or(|(newest, _)| *newest < index)
                {
                    content.checkpoint = Some((index, state));
                }
            }
            Ok((shard, index, _)) => self.problem(path, 0, format!("it is of shard {shard} at entry {index}")),
            Err(error) => self.problem(path, 0, error.to_string()),
        }
        Ok(())
    }

    async fn segments(&mut self, segments: &[SegmentFile]) -> Result<(), LogError> {
        let (live, start) = match self.hard {
            Some(hard) => (live_and_purged(segments, hard.start.next).0, hard.start),
            None => {
                // Where it begins is not known: where the first one does, and leftovers cannot be told from the others.
                let named: Vec<_> = segments.iter().filter(|segment| segment.named).collect();
                let start = named.first().map_or(LogPoint::default(), |first| first.header.base);
                self.report.log_start = start.offset;
                (named, start)
            }
        };
        if let Some(content) = &mut self.content {
            content.first = start.next;
        }
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
        if let Some(durable) = self.hard.and_then(|hard| hard.durable())
            && durable.index >= end.next
            && let Some(last) = live.last()
        {
            let what = format!("entries up to {durable} were durable, the log ends before {}", end.next);
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
                    self.keep(entry);
                }
                Found::Footer | Found::End => break,
                Found::Unreadable => {
                    bad = Some(UNREADABLE.to_owned());
                    break;
                }
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
                None if what == UNREADABLE && next.is_none() => self.problem(&file.path, position, what),
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

    /// Keeps an entry for who asked for them.
    fn keep(&mut self, entry: StoredEntry) {
        let Some(content) = &mut self.content else { return };
        let covered = content.checkpoint.as_ref().is_some_and(|(index, _)| entry.header.id.index <= *index);
        if covered || entry.header.id.index < content.first || content.is_cut {
            return;
        }
        self.content_bytes += entry.header.padded_bytes();
        if self.content_bytes > OFFLINE_BYTES_MAX {
            content.is_cut = true;
            return;
        }
        content.entries.push(entry);
    }

    /// Checks the index file of a sealed segment against its entries.
    async fn index(&mut self, file: &SegmentFile, expected: &[u8], crc: u32) -> Result<(), LogError> {
        if crc32c::crc32c(expected) != crc {
            self.problem(&file.path, file.bytes - BLOCK_BYTES as u64, "the footer speaks of another index".into());
        }
        let path = file.path.with_extension("index");
        let content = match unreadable::read_file(self.disk, &path).await {
            Ok(content) => content,
            // A cache: it is rebuilt.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(io_error(&path, "read", &error)),
        };
        self.report.files += 1;
        self.report.bytes += content.len() as u64;
        // The index of a clean close, after which more was appended; the power went before the segment had its new one. It is
        // told by its length, and rebuilt at the next start.
        let is_of_a_close = content.len() < expected.len() && expected.starts_with(&content);
        if content != expected && !is_of_a_close {
            let same = content.iter().zip(expected).take_while(|(found, expected)| found == expected).count();
            let position = (same / SLOT_BYTES * SLOT_BYTES) as u64;
            self.problem(&path, position, "it does not match the entries; it will be rebuilt when it is used".into());
        }
        Ok(())
    }
}
