//! Opening a log: from its files to where it stood, or to words for what is wrong.
//!
//! 1. Hard state (`hard_state`): the newer of two slots that are whole. (Both are written before a write is acknowledged.)
//! 2. Segments: files whose header is ours, in order of sequence; a spare that has entries already is one.
//!    What is purged is removed.
//! 3. All but the last: trusted if the footer continues to the next one; scanned otherwise, and then sealed.
//! 4. The last: trusted if its footer is the last thing in the file; otherwise synced first (what is scanned
//!    must not vanish later), then scanned. A bad entry with a proof behind it that it was durable is
//!    corruption; without one it is a torn write that nobody was told of, and is cut. What the device cannot read is
//!    corruption in any case.
//!
//! Nothing is changed before all of that is known to be right, except that files nobody needs are removed.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{
    FileOf, Inner, LogError, LogOptions, Phase, Recovered, Segment, SegmentOf, State, Supply, Tail, TailBudget,
    Watched,
    hard_state::{self, HardStateOnDisk},
    io_error,
    scan::{Found, Scan, UNREADABLE},
    segment::{Slots, parse_slots, store_path},
    unreadable,
};
use crate::{
    budget::Use,
    env::{
        DirEntry, Disk, Env, File, OpenMode,
        channel::{Mutex, Notify},
    },
    format::{
        entry::EntryHeader,
        segment::{BlockError, LogPoint, SLOT_BYTES, SegmentFooter, SegmentHeader, Slot},
        state_files::HardStateSlot,
    },
    ids::{Index, Position, SegmentSequence, ShardUid, Term},
    limits::{BLOCK_BYTES, SEGMENT_BYTES_MIN},
};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Opens or makes the log.
pub(super) async fn open<E: Env>(
    disk: Watched<E>,
    tail: TailBudget,
    options: LogOptions,
) -> Result<(Rc<Inner<E>>, Recovered), LogError> {
    let dir = options.dir.clone();
    disk.create_dir_all(&dir).await.map_err(|error| io_error(&dir, "made", &error))?;
    let names = disk.list(&dir).await.map_err(|error| io_error(&dir, "listed", &error))?;
    let hard_path = dir.join("hard_state");
    let HardStateOnDisk { slot, is_settled } = hard_state::find::<E>(&disk, &options, &names).await?;
    let hard_file = disk.open(&hard_path, OpenMode::Append).await;
    let hard_file: FileOf<E> = hard_file.map_err(|error| io_error(&hard_path, "opened", &error))?;
    let hard = if is_settled { slot } else { hard_state::settle::<E>(&hard_file, &hard_path, slot).await? };
    let mut found = Survey { files: Vec::new(), spares: Vec::new(), indexes: Vec::new(), checkpoints: BTreeSet::new() };
    found.look::<E>(&disk, &options, &names).await?;
    let mut recovery = Recovery::<E> {
        disk: &disk,
        options: &options,
        hard,
        recovered: Recovered { clean: true, ..Recovered::default() },
        segments: Vec::new(),
    };
    recovery.segments(&mut found).await?;
    let end = recovery.segments.last().map_or(hard.start, |segment| segment.end());
    let path = recovery.segments.last().map_or_else(|| hard_path.clone(), |segment| segment.path());
    if let Some(durable) = hard.durable().filter(|durable| durable.index >= end.next) {
        let what = format!("entries up to {durable} were durable, but the log ends before {}", end.next);
        let position = recovery.segments.last().map_or(0, |segment| segment.now.borrow().data_end);
        return Err(LogError::Corrupt { file: path, position, what });
    }
    if !recovery.recovered.clean || recovery.segments.is_empty() {
        // What this process finds may not be durable: the one before may have ended between a write and its flush.
        hard_file.sync().await.map_err(|error| io_error(&hard_path, "synced", &error))?;
    }
    recovery.tidy(&found).await?;
    let (recovered, segments) = (recovery.recovered, recovery.segments);
    let begun_at = segments.last().map_or(BLOCK, |segment| segment.now.borrow().data_end);
    let timestamp_us = segments.iter().map(|segment| segment.now.borrow().last_timestamp_us).max();
    let state = State {
        start: hard.start,
        end,
        flushed: end,
        timestamp_us: timestamp_us.unwrap_or(i64::MIN),
        sequence_next: found.sequence_next(),
        last_base: segments.last().map(|segment| segment.base.offset),
        segments: segments.into(),
        queue: std::collections::VecDeque::new(),
        unflushed: tail.memory().none(Use::Unflushed),
        hard,
        hard_file,
        checkpoints: found.checkpoints,
        supply: Supply::new(E::monotonic_us(), begun_at),
        fault: None,
        exclusive: false,
        closed: false,
        closing: false,
    };
    let inner = Inner {
        disk,
        tail: Tail::new(tail, end.next),
        options,
        state: state.into(),
        flight: None.into(),
        driving: false.into(),
        driven_soon: false.into(),
        saving: Mutex::new(()),
        marking: false.into(),
        waker: None.into(),
        changed: Notify::new(),
        background: 0.into(),
        hot: Default::default(),
        streams: Default::default(),
    };
    Ok((Rc::new(inner), recovered))
}

pub(super) fn of_another(path: &Path, found: ShardUid, expected: ShardUid) -> LogError {
    let what = format!("it belongs to shard {found}, not to shard {expected}: put each shard's directory back");
    LogError::Foreign { file: path.into(), what }
}

pub(super) fn of_version(path: &Path, error: &BlockError) -> LogError {
    LogError::Foreign {
        file: path.into(),
        what: format!("{error}: use the Ringlog that wrote it, or another directory"),
    }
}

pub(super) fn has_extension(name: &Path, extension: &str) -> bool {
    name.extension().is_some_and(|found| found == extension)
}

/// The index in a checkpoint's name.
pub(super) fn checkpoint_index(name: &Path) -> Option<Index> {
    has_extension(name, "checkpoint").then_some(())?;
    name.file_stem()?.to_str()?.parse().ok().map(Index)
}

/// A segment's file.
pub(super) struct SegmentFile {
    pub path: PathBuf,
    pub bytes: u64,
    pub header: SegmentHeader,
    /// It has its lasting name.
    pub named: bool,
}

/// What is in the directory.
struct Survey {
    /// Segments, by sequence.
    files: Vec<SegmentFile>,
    /// Spares and leftovers, which nobody needs.
    spares: Vec<PathBuf>,
    /// Names and sizes of index files.
    indexes: Vec<(PathBuf, u64)>,
    checkpoints: BTreeSet<Index>,
}

impl Survey {
    async fn look<E: Env>(
        &mut self,
        disk: &Watched<E>,
        options: &LogOptions,
        names: &[DirEntry],
    ) -> Result<(), LogError> {
        for entry in names {
            let path = options.dir.join(&entry.name);
            if let Some(index) = checkpoint_index(&entry.name) {
                self.checkpoints.insert(index);
            } else if has_extension(&entry.name, "index") {
                self.indexes.push((path, entry.bytes));
            } else if has_extension(&entry.name, "tmp") {
                self.spares.push(path);
            } else if has_extension(&entry.name, "store") || has_extension(&entry.name, "spare") {
                let named = has_extension(&entry.name, "store");
                match read_header(disk, &path).await? {
                    Ok(header) if header.shard == options.shard => {
                        self.files.push(SegmentFile { path, bytes: entry.bytes, header, named });
                    }
                    Ok(header) if named => {
                        if is_of(disk, &path, entry.bytes, &header, options.shard).await? {
                            return Err(of_another(&path, header.shard, options.shard));
                        }
                        let what = format!("in its header's place is that of a segment of shard {}", header.shard);
                        return Err(LogError::Corrupt { file: path, position: 0, what });
                    }
                    Err(error @ BlockError::Version(_)) => return Err(of_version(&path, &error)),
                    Err(error) if named => {
                        let what = format!("the segment's header is not valid: {error}");
                        return Err(LogError::Corrupt { file: path, position: 0, what });
                    }
                    // Never used, or torn in its first write.
                    Ok(_) | Err(_) => self.spares.push(path),
                }
            }
        }
        self.files.sort_by_key(|file| file.header.sequence);
        Ok(())
    }

    /// After all that are on the disk, used or not.
    fn sequence_next(&self) -> u64 {
        self.files.iter().map(|file| file.header.sequence.0).max().unwrap_or(0) + 1
    }
}

/// Tells segments that hold something from the log start on from those that do not: a crash may have brought some
/// of the latter back, and a recycled file still has the header of its former life (a segment is named before it is
/// purged). `files` are in order of sequence.
pub(super) fn live_and_purged(files: &[SegmentFile], start: Index) -> (Vec<&SegmentFile>, Vec<&SegmentFile>) {
    let recycled = |file: &SegmentFile| !file.named && file.header.base.next < start;
    let (mut live, mut purged) = (Vec::new(), Vec::new());
    for (number, file) in files.iter().enumerate() {
        let next = files[number + 1..].iter().find(|next| !recycled(next));
        if recycled(file) || next.is_some_and(|next| next.header.base.next <= start) {
            purged.push(file);
        } else {
            live.push(file);
        }
    }
    (live, purged)
}

/// A file's first block as a segment header.
pub(super) async fn read_header<D: Disk>(disk: &D, path: &Path) -> Result<Result<SegmentHeader, BlockError>, LogError> {
    let failed = |error: io::Error| io_error(path, "read", &error);
    let file = disk.open(path, OpenMode::Read).await.map_err(failed)?;
    Ok(SegmentHeader::parse(&unreadable::read_at(&file, 0, BLOCK_BYTES).await.map_err(failed)?))
}

/// The newest life that entries in a file are of; 0 without any.
pub(super) async fn sequence_of<D: Disk>(
    disk: &D,
    path: &Path,
    bytes: u64,
    shard: ShardUid,
) -> Result<SegmentSequence, LogError> {
    let failed = |error: io::Error| io_error(path, "read", &error);
    let file = disk.open(path, OpenMode::Read).await.map_err(failed)?;
    let mut scan = Scan::new(&file, bytes, shard, SegmentSequence(0), LogPoint::default());
    let mut newest = SegmentSequence(0);
    while scan.position < bytes {
        if let Ok(header) = EntryHeader::parse(&scan.bytes(BLOCK_BYTES).await.map_err(failed)?)
            && header.shard == shard
        {
            newest = newest.max(header.segment);
        }
        scan.position += BLOCK;
    }
    Ok(newest)
}

/// Whether a file whose header is another shard's is that one's: entries of it are in it, and none of `shard`. Else the header
/// went astray to here, or what it belongs to is lost.
pub(super) async fn is_of<D: Disk>(
    disk: &D,
    path: &Path,
    bytes: u64,
    header: &SegmentHeader,
    shard: ShardUid,
) -> Result<bool, LogError> {
    let none = SegmentSequence(0);
    Ok(header.shard != shard
        && sequence_of(disk, path, bytes, shard).await? == none
        && sequence_of(disk, path, bytes, header.shard).await? != none)
}

/// The footer in the last block of a file, if it is one of this segment.
pub(super) async fn read_footer<F: File>(
    file: &F,
    bytes: u64,
    header: &SegmentHeader,
) -> io::Result<Option<SegmentFooter>> {
    let Some(position) = bytes.checked_sub(BLOCK).filter(|position| *position >= 2 * BLOCK) else { return Ok(None) };
    if !position.is_multiple_of(BLOCK) {
        return Ok(None);
    }
    let block = unreadable::read_at(file, position, BLOCK_BYTES).await?;
    let Ok(footer) = SegmentFooter::parse(&block) else { return Ok(None) };
    let ours = footer.shard == header.shard
        && footer.sequence == header.sequence
        && footer.position == Position(position)
        && footer.entries > 0
        && header.base.next.0.checked_add(footer.entries) == Some(footer.end.next.0);
    Ok(ours.then_some(footer))
}

/// What is being recovered.
struct Recovery<'a, E: Env> {
    disk: &'a Watched<E>,
    options: &'a LogOptions,
    hard: HardStateSlot,
    recovered: Recovered,
    segments: Vec<SegmentOf<E>>,
}

/// What a scan found in a file.
struct Scanned {
    point: LogPoint,
    position: u64,
    slots: Vec<Slot>,
    first_term: Term,
    last_timestamp_us: i64,
    /// Why it ended before the end of the file, and not at a footer.
    bad: Option<String>,
    /// Because the device cannot read what is there.
    unreadable: bool,
}

impl<E: Env> Recovery<'_, E> {
    /// Opens all segments that hold something from the log start on.
    async fn segments(&mut self, found: &mut Survey) -> Result<(), LogError> {
        let start = self.hard.start;
        let (live, purged): (Vec<&SegmentFile>, Vec<&SegmentFile>) = live_and_purged(&found.files, start.next);
        found.spares.extend(purged.iter().map(|file| file.path.clone()));
        for (number, file) in live.iter().enumerate() {
            let before = self.segments.last().map(|before| before.end());
            self.check_base(file, before)?;
            let segment = match live.get(number + 1) {
                Some(next) => Some(self.sealed(file, &next.header, &found.indexes).await?),
                None => self.last(file, &found.indexes).await?,
            };
            match segment {
                Some(segment) if segment.end().next > start.next => self.segments.push(Rc::new(segment)),
                Some(_) | None => found.spares.push(file.path.clone()),
            }
        }
        Ok(())
    }

    /// Whether a segment begins where the one before it, or what was purged, ends.
    fn check_base(&self, file: &SegmentFile, before: Option<LogPoint>) -> Result<(), LogError> {
        let start = self.hard.start;
        let base = file.header.base;
        let fits = match before {
            Some(before) => base == before,
            None => base.next < start.next || base == start || (base.next == start.next && base.next > Index(0)),
        };
        if fits {
            return Ok(());
        }
        let from = before.unwrap_or(start).next;
        let what = format!("it begins at entry {}, but the log before it ends at entry {from} (exclusive)", base.next);
        Err(LogError::Corrupt { file: file.path.clone(), position: 0, what })
    }

    /// A segment that `next` follows: everything in it was durable.
    async fn sealed(
        &mut self,
        file: &SegmentFile,
        next: &SegmentHeader,
        indexes: &[(PathBuf, u64)],
    ) -> Result<Segment<FileOf<E>>, LogError> {
        let failed = |error: io::Error| io_error(&file.path, "read", &error);
        let reader = self.disk.open(&file.path, OpenMode::Read).await.map_err(failed)?;
        let footer = read_footer(&reader, file.bytes, &file.header).await.map_err(failed)?;
        let Some(footer) = footer.filter(|footer| footer.end == next.base) else {
            return self.seal_now(file, &reader, next).await;
        };
        let segment = segment_of(file, footer.end, footer.position.0);
        {
            let now = &mut *segment.now.borrow_mut();
            now.first_term = footer.first_term;
            now.last_timestamp_us = footer.last_timestamp_us;
            now.phase = Phase::Sealed;
            now.footer_gone = false;
            now.index_crc = footer.index_crc;
            now.slots = Slots::Cached(None);
        }
        let index = (segment.index_path(), footer.entries * SLOT_BYTES as u64);
        if !indexes.contains(&index) {
            let scanned = self.scan(file, &reader).await?.0;
            self.write_index(&segment, &scanned, &footer).await?;
        }
        Ok(segment)
    }

    /// A segment that was not sealed when the power went, although the log had gone on behind it.
    async fn seal_now(
        &mut self,
        file: &SegmentFile,
        reader: &FileOf<E>,
        next: &SegmentHeader,
    ) -> Result<Segment<FileOf<E>>, LogError> {
        let failed = |action| move |error: io::Error| io_error(&file.path, action, &error);
        let appender = self.disk.open(&file.path, OpenMode::Append).await.map_err(failed("opened"))?;
        appender.sync().await.map_err(failed("synced"))?;
        self.recovered.clean = false;
        let (scanned, _) = self.scan(file, reader).await?;
        self.recovered.entries_scanned += scanned.slots.len() as u64;
        if scanned.point != next.base {
            let found = scanned.bad.unwrap_or_else(|| "it ends here".into());
            let what = format!("{found}; the next segment continues entry {}", next.base.next);
            return Err(LogError::Corrupt { file: file.path.clone(), position: scanned.position, what });
        }
        let segment = segment_of(file, scanned.point, scanned.position);
        let content: Vec<u8> = scanned.slots.iter().flat_map(|slot| slot.encode()).collect();
        let index_crc = crc32c::crc32c(&content);
        {
            let now = &mut *segment.now.borrow_mut();
            now.first_term = scanned.first_term;
            now.last_timestamp_us = scanned.last_timestamp_us;
            now.phase = Phase::Sealed;
            now.footer_gone = false;
            now.index_crc = index_crc;
            now.slots = Slots::Cached(None);
        }
        let footer = segment.footer(self.options.shard, index_crc);
        appender.append_durable(scanned.position, vec![footer.encode()]).await.map_err(failed("sealed"))?;
        self.write_index(&segment, &scanned, &footer).await?;
        appender.truncate(scanned.position + BLOCK).await.map_err(failed("cut"))?;
        appender.sync().await.map_err(failed("synced"))?;
        Ok(segment)
    }

    /// Writes an index file that is missing, short or wrong; a full disk leaves it to be built when it is needed.
    async fn write_index(
        &mut self,
        segment: &Segment<FileOf<E>>,
        scanned: &Scanned,
        footer: &SegmentFooter,
    ) -> Result<(), LogError> {
        let content: Vec<u8> = scanned.slots.iter().flat_map(|slot| slot.encode()).collect();
        if scanned.point != footer.end || crc32c::crc32c(&content) != footer.index_crc {
            let what = scanned.bad.clone().unwrap_or_else(|| "its entries are not those of its footer".into());
            return Err(LogError::Corrupt { file: segment.path(), position: scanned.position, what });
        }
        self.recovered.indexes_rebuilt += 1;
        // Recovery renames the store later; the index is to be found under the name that it will have.
        let path = store_path_of(&self.options.dir, segment, &self.segments).with_extension("index");
        match self.disk.write_file(&path, content.into()).await {
            Err(error) if !super::is_full(&error) => Err(io_error(&path, "written", &error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The last segment; `None` if nothing of it was ever durable.
    async fn last(
        &mut self,
        file: &SegmentFile,
        indexes: &[(PathBuf, u64)],
    ) -> Result<Option<Segment<FileOf<E>>>, LogError> {
        let failed = |action| move |error: io::Error| io_error(&file.path, action, &error);
        let reader = self.disk.open(&file.path, OpenMode::Read).await.map_err(failed("opened"))?;
        let footer = read_footer(&reader, file.bytes, &file.header).await.map_err(failed("read"))?;
        if let Some(footer) = footer {
            return self.closed(file, &reader, footer, indexes).await.map(Some);
        }
        let appender = self.disk.open(&file.path, OpenMode::Append).await.map_err(failed("opened"))?;
        appender.sync().await.map_err(failed("synced"))?;
        self.recovered.clean = false;
        let (scanned, zero_behind) = self.scan(file, &reader).await?;
        self.recovered.entries_scanned += scanned.slots.len() as u64;
        self.check_tail(file, &scanned, zero_behind)?;
        if scanned.slots.is_empty() {
            self.recovered.torn_bytes += if zero_behind { 0 } else { file.bytes.saturating_sub(BLOCK) };
            return Ok(None);
        }
        let as_made_ahead = scanned.bad.is_some() && zero_behind;
        if scanned.bad.is_some() && !zero_behind {
            self.recovered.torn_bytes += file.bytes - scanned.position;
            appender.truncate(scanned.position).await.map_err(failed("cut"))?;
            appender.sync().await.map_err(failed("synced"))?;
        }
        let segment = segment_of(file, scanned.point, scanned.position);
        {
            let now = &mut *segment.now.borrow_mut();
            now.first_term = scanned.first_term;
            now.last_timestamp_us = scanned.last_timestamp_us;
            now.slots = Slots::Live(Rc::new(scanned.slots.into()));
            if as_made_ahead {
                now.capacity = file.bytes / BLOCK * BLOCK;
                now.appender = Some(appender);
            }
        }
        Ok(Some(segment))
    }

    /// Whether what is behind the last good entry may be a torn write.
    fn check_tail(&self, file: &SegmentFile, scanned: &Scanned, zero_behind: bool) -> Result<(), LogError> {
        let what = scanned.bad.as_deref().unwrap_or("the file ends here");
        let corrupt = |what| Err(LogError::Corrupt { file: file.path.clone(), position: scanned.position, what });
        if scanned.unreadable {
            return corrupt(what.to_owned());
        }
        let durable = self.hard.durable().filter(|durable| durable.index >= scanned.point.next);
        if let Some(durable) = durable.filter(|_| !zero_behind) {
            return corrupt(format!("{what}; but entries up to {durable} were durable"));
        }
        if file.named && scanned.slots.is_empty() {
            return corrupt(format!("{what}; but a segment is named after its first entry is durable"));
        }
        Ok(())
    }

    /// The last segment after a clean shutdown: nothing is scanned.
    async fn closed(
        &mut self,
        file: &SegmentFile,
        reader: &FileOf<E>,
        footer: SegmentFooter,
        indexes: &[(PathBuf, u64)],
    ) -> Result<Segment<FileOf<E>>, LogError> {
        let segment = segment_of(file, footer.end, footer.position.0);
        let path = segment.index_path();
        let content = match indexes.contains(&(path.clone(), footer.entries * SLOT_BYTES as u64)) {
            true => self.disk.read_file(&path).await.ok(),
            false => None,
        };
        let slots = match content.filter(|content| crc32c::crc32c(content) == footer.index_crc) {
            Some(content) => parse_slots(&content),
            None => {
                let scanned = self.scan(file, reader).await?.0;
                self.write_index(&segment, &scanned, &footer).await?;
                scanned.slots
            }
        };
        {
            let now = &mut *segment.now.borrow_mut();
            now.first_term = footer.first_term;
            now.last_timestamp_us = footer.last_timestamp_us;
            now.footer_gone = false;
            now.index_crc = footer.index_crc;
            if now.data_end > now.intended_bytes / 4 * 3 {
                // Little is left in it: the next entry begins another one.
                now.phase = Phase::Sealed;
                now.slots = Slots::Cached(None);
            } else {
                now.slots = Slots::Live(Rc::new(slots.into()));
            }
        }
        Ok(segment)
    }

    /// Scans a file from its first entry on; also says whether only zeros follow. Entries that must have been durable and are
    /// not there are an error.
    async fn scan(&self, file: &SegmentFile, reader: &FileOf<E>) -> Result<(Scanned, bool), LogError> {
        let failed = |error: io::Error| io_error(&file.path, "read", &error);
        let header = &file.header;
        let mut scan = Scan::new(reader, file.bytes, self.options.shard, header.sequence, header.base);
        let mut scanned = Scanned {
            point: header.base,
            position: scan.position,
            slots: Vec::new(),
            first_term: Term(0),
            last_timestamp_us: 0,
            bad: None,
            unreadable: false,
        };
        loop {
            let (position, offset) = (scan.position, scan.point.offset.0 - header.base.offset.0);
            match scan.next().await.map_err(failed)? {
                Found::Entry(entry) => {
                    if scanned.slots.is_empty() {
                        scanned.first_term = entry.header.id.term;
                    }
                    scanned.last_timestamp_us = entry.header.timestamp_us;
                    scanned.slots.push(Slot { offset: offset as u32, position: position as u32 });
                }
                Found::Footer | Found::End => break,
                Found::Unreadable => {
                    scanned.unreadable = true;
                    scanned.bad = Some(UNREADABLE.to_owned());
                    break;
                }
                Found::Bad(what) => {
                    scanned.bad = Some(what);
                    break;
                }
            }
        }
        scanned.point = scan.point;
        scanned.position = scan.position;
        let Some(what) = &scanned.bad else { return Ok((scanned, false)) };
        let beyond = scan.look_beyond().await.map_err(failed)?;
        if let Some((position, index)) = beyond.proof {
            let what = format!("{what}; but entry {index} at byte {position} was written when this one was durable");
            return Err(LogError::Corrupt { file: file.path.clone(), position: scanned.position, what });
        }
        Ok((scanned, beyond.zero))
    }

    /// Removes a file that the survey found. It may be gone: an index that was built anew took the name of one
    /// that a crash left half written.
    async fn remove_leftover(&self, path: &Path) -> Result<(), LogError> {
        match self.disk.remove(path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error(path, "removed", &error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes what nobody needs, and gives unnamed segments their lasting names.
    async fn tidy(&mut self, found: &Survey) -> Result<(), LogError> {
        let mut changed = false;
        for path in &found.spares {
            self.remove_leftover(path).await?;
            changed = true;
        }
        for segment in &self.segments {
            if !segment.named.get() {
                let (from, to) = (segment.path(), store_path_of(&self.options.dir, segment, &self.segments));
                self.disk.rename(&from, &to).await.map_err(|error| io_error(&from, "renamed", &error))?;
                *segment.path.borrow_mut() = to;
                changed = true;
            }
        }
        for (path, _) in &found.indexes {
            if !self.segments.iter().any(|segment| segment.index_path() == *path) {
                self.remove_leftover(path).await?;
                changed = true;
            }
        }
        if changed {
            let dir = &self.options.dir;
            self.disk.sync_dir(dir).await.map_err(|error| io_error(dir, "synced", &error))?;
        }
        self.segments.iter().for_each(|segment| segment.named.set(true));
        Ok(())
    }
}

/// The name that a segment has or will have.
fn store_path_of<F: Clone>(dir: &Path, segment: &Segment<F>, segments: &[Rc<Segment<F>>]) -> PathBuf {
    if segment.named.get() {
        return segment.path();
    }
    let taken =
        segments.iter().any(|other| other.base.offset == segment.base.offset && other.sequence.0 < segment.sequence.0);
    store_path(dir, segment.base.offset, taken, segment.sequence)
}

/// A segment as it was found, open, with nothing of its file ready for appends.
fn segment_of<F: Clone>(file: &SegmentFile, end: LogPoint, data_end: u64) -> Segment<F> {
    let intended = file.header.intended_bytes;
    let segment = Segment::new(file.header.sequence, file.header.base, file.path.clone(), intended);
    segment.named.set(file.named);
    {
        let now = &mut *segment.now.borrow_mut();
        now.end = end;
        now.data_end = data_end;
        now.disk_end = data_end;
        // Made longer in one step when an entry comes; rolls into a larger one after that.
        now.capacity = intended.min(data_end + SEGMENT_BYTES_MIN).max(data_end + BLOCK);
        now.on_disk = true;
    }
    segment
}
