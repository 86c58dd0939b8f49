//! What of a directory is whole; see `super`.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{After, Gap, Part, Piece, RepairError, Survey};
use crate::{
    env::{DirEntry, Disk, OpenMode},
    format::{
        entry::{EntryHeader, StoredEntry},
        segment::{BlockError, LogPoint, SegmentFooter, SegmentHeader},
        state_files::HardStateSlot,
    },
    ids::{Index, LogId, Offset, SegmentSequence, ShardUid},
    limits::BLOCK_BYTES,
    log::{
        LogError, LogOptions,
        hard_state::{OF_ANOTHER_OWNER, newest_slot},
        io_error, point_after,
        recovery::{checkpoint_index, has_extension, is_of, of_another, read_footer, read_header, sequence_of},
        scan::{Found, Scan, continues},
        segment::store_path,
        unreadable,
    },
};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Looks at all of a log's directory. Nobody else may have it open for writing. `flushed`: an entry that is known to have been
/// durable, with all before it.
///
/// # Errors
/// `Hopeless`: without a whole hard state, in a foreign directory, and where files contradict each other. `Disk`.
pub async fn survey<D: Disk>(disk: &D, options: &LogOptions, flushed: Option<LogId>) -> Result<Survey, RepairError> {
    let hard = hard_state(disk, options).await?;
    let names = names(disk, options).await?;
    let checkpoint_end = checkpoint_end(&names);
    let (files, useless) = segment_files(disk, options, &hard, names).await?;
    let mut contents = Vec::new();
    for file in &files {
        contents.push(content(disk, file, hard.shard).await.map_err(RepairError::Disk)?);
    }
    let mut building = Building {
        options,
        checkpoint_end,
        point: hard.start,
        chain_known: true,
        durable_end: durable_end(&hard, &files, &contents)
            .max(checkpoint_end)
            .max(flushed.map_or(Index(0), |last| last.index.next())),
        last_known: hard.durable().max(flushed),
        was_open: flushed.is_some(),
        hard,
        parts: Vec::new(),
        leftovers: useless,
        paths: files.iter().map(|file| file.path.clone()).collect(),
        place: (options.dir.clone(), 0),
    };
    for (number, (file, content)) in files.iter().zip(contents).enumerate() {
        if !building.file(file, content, number + 1 == files.len())? {
            // Behind this nothing was ever durable.
            break;
        }
    }
    Ok(building.finish())
}

/// The hard state, which must be whole.
pub(super) async fn hard_state<D: Disk>(disk: &D, options: &LogOptions) -> Result<HardStateSlot, RepairError> {
    let path = options.dir.join("hard_state");
    let content = match unreadable::read_file(disk, &path).await {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RepairError::hopeless(path, 0, "it is missing; the vote in it is lost".into()));
        }
        Err(error) => return Err(RepairError::Disk(io_error(&path, "read", &error))),
    };
    let slot = newest_slot(&content, &path, Some(options.shard)).map_err(|error| match error {
        LogError::Corrupt { file, .. } if content.chunks(BLOCK_BYTES).any(unreadable::is_filler) => {
            let what = "the device cannot read it; if that stays so, the vote in it is lost".into();
            RepairError::Disk(LogError::Corrupt { file, position: 0, what })
        }
        lost => RepairError::Hopeless(lost),
    })?;
    let foreign = |what: String| RepairError::Hopeless(LogError::Foreign { file: path.clone(), what });
    if slot.shard != options.shard {
        return Err(foreign(format!("it belongs to shard {}, not to shard {}", slot.shard, options.shard)));
    }
    if options.owner != 0 && slot.owner != options.owner {
        return Err(foreign(OF_ANOTHER_OWNER.into()));
    }
    Ok(slot)
}

/// What is in the log's directory.
pub(super) async fn names<D: Disk>(disk: &D, options: &LogOptions) -> Result<Vec<DirEntry>, RepairError> {
    let dir = &options.dir;
    disk.list(dir).await.map_err(|error| RepairError::Disk(io_error(dir, "listed", &error)))
}

/// Behind the newest checkpoint.
fn checkpoint_end(names: &[DirEntry]) -> Index {
    let newest = names.iter().filter_map(|entry| checkpoint_index(&entry.name)).max();
    newest.map_or(Index(0), |index| index.next())
}

/// A file of a segment.
pub(super) struct SegmentFile {
    pub path: PathBuf,
    bytes: u64,
    /// Of its entries.
    pub sequence: SegmentSequence,
    /// `None`: damaged.
    pub header: Option<SegmentHeader>,
    named: bool,
}

/// Files that may hold something from the log start on, in order; and those that keep the log from opening and hold nothing that
/// counts.
pub(super) async fn segment_files<D: Disk>(
    disk: &D,
    options: &LogOptions,
    hard: &HardStateSlot,
    names: Vec<DirEntry>,
) -> Result<(Vec<SegmentFile>, Vec<PathBuf>), RepairError> {
    let dir = &options.dir;
    let mut files = Vec::new();
    for entry in names {
        let (path, bytes) = (dir.join(&entry.name), entry.bytes);
        let named = has_extension(&entry.name, "store");
        if !named && !has_extension(&entry.name, "spare") {
            continue;
        }
        match read_header(disk, &path).await.map_err(RepairError::Disk)? {
            Ok(header) if header.shard == hard.shard && (!named || is_name_of(&entry.name, &header, &hard.start)) => {
                files.push(SegmentFile { path, bytes, sequence: header.sequence, header: Some(header), named });
            }
            Err(error @ BlockError::Version(_)) => {
                return Err(RepairError::Hopeless(LogError::Foreign { file: path, what: error.to_string() }));
            }
            // A spare was never used, or torn in its first write.
            Ok(_) | Err(_) if !named => {}
            header => {
                if let Ok(header) = header
                    && is_of(disk, &path, bytes, &header, hard.shard).await.map_err(RepairError::Disk)?
                {
                    return Err(RepairError::Hopeless(of_another(&path, header.shard, hard.shard)));
                }
                let sequence = sequence_of(disk, &path, bytes, hard.shard).await.map_err(RepairError::Disk)?;
                files.push(SegmentFile { path, bytes, sequence, header: None, named });
            }
        }
    }
    for number in 0..files.len() {
        if files[number].sequence == SegmentSequence(0) {
            files[number].sequence = before_in_names(&files, &files[number].path);
        }
    }
    files.sort_by_key(|file| (file.sequence, file.header.is_none()));
    let (files, mut useless) = without_superseded(files);
    Ok((without_purged(files, hard.start.next, &mut useless), useless))
}

/// Leaves out segments that another one of a later life has taken the place of (`Survey::to_committed`): it begins before them.
/// Their paths come second.
fn without_superseded(files: Vec<SegmentFile>) -> (Vec<SegmentFile>, Vec<PathBuf>) {
    let begins: Vec<_> = files.iter().filter(|file| file.named).filter_map(|file| file.header).collect();
    let is_superseded = |file: &SegmentFile| {
        let later = begins.iter().filter(|header| header.sequence > file.sequence);
        file.header.is_some_and(|header| later.into_iter().any(|by| by.base.next < header.base.next))
    };
    let (superseded, files): (Vec<_>, Vec<_>) = files.into_iter().partition(is_superseded);
    (files, superseded.into_iter().map(|file| file.path).collect())
}

/// A file under another segment's name is not what belongs there. One that was mended after a purge begins at the log start,
/// and keeps its name.
fn is_name_of(name: &Path, header: &SegmentHeader, start: &LogPoint) -> bool {
    let offset = offset_in(name);
    offset == Some(header.base.offset) || (header.base == *start && offset <= Some(start.offset))
}

/// The offset that a segment's name says.
fn offset_in(name: &Path) -> Option<Offset> {
    name.file_stem()?.to_str()?.split('-').next()?.parse().ok().map(Offset)
}

/// Of the segment before a file that says nothing but its name; 0 if there is none.
fn before_in_names(files: &[SegmentFile], path: &Path) -> SegmentSequence {
    let offset = offset_in(path);
    let before = files.iter().filter(|file| file.header.is_some_and(|header| Some(header.base.offset) <= offset));
    before.map(|file| file.sequence).max().unwrap_or_default()
}

/// Leaves out what a purge would have removed, as recovery does. Recovery refuses such a file without a header: it goes to
/// `useless`.
fn without_purged(files: Vec<SegmentFile>, start: Index, useless: &mut Vec<PathBuf>) -> Vec<SegmentFile> {
    let recycled = |file: &SegmentFile| !file.named && file.header.is_some_and(|header| header.base.next < start);
    let mut live: Vec<SegmentFile> = files.into_iter().filter(|file| !recycled(file)).collect();
    let begins_below = |file: &SegmentFile| file.header.is_some_and(|header| header.base.next <= start);
    if let Some(first) = live.iter().rposition(begins_below) {
        let begin = live[first].header.map(|header| header.base.offset);
        let is_before = |file: &SegmentFile| offset_in(&file.path).is_some_and(|offset| Some(offset) < begin);
        let purged = live.drain(..first).filter(|file| file.header.is_none() && is_before(file));
        useless.extend(purged.map(|file| file.path));
    }
    live
}

/// What is in a file.
#[derive(Default)]
pub(super) struct Content {
    /// In order.
    pub items: Vec<Item>,
    /// Its entries say that all below this were durable. Not always the last of them says so: one that was mended can say more
    /// than those behind it, which were written together with it.
    durable_end: Index,
    /// Behind the last whole entry one is lost, as recovery sees it: all below this may have been durable. One entry at least, and
    /// one for each block that cannot be read.
    lost_end: Index,
    /// Blocks that cannot be read before the first of its items.
    unreadable: u64,
}

/// A piece of it.
pub(super) enum Item {
    /// Whole entries.
    Run { position: u64, bytes: u64, first: EntryHeader, last: EntryHeader },
    /// An entry whose header is whole and whose payload is not.
    Header { position: u64, header: EntryHeader },
    /// Where the log stands at its end.
    Footer(LogPoint),
}

/// Finds all entries of a file's life in it.
pub(super) async fn content<D: Disk>(disk: &D, file: &SegmentFile, shard: ShardUid) -> Result<Content, LogError> {
    let failed = |error: io::Error| io_error(&file.path, "read", &error);
    let reader = disk.open(&file.path, OpenMode::Read).await.map_err(failed)?;
    let base = file.header.map_or_else(LogPoint::default, |header| header.base);
    let mut scan = Scan::new(&reader, file.bytes, shard, file.sequence, base);
    let mut found = Content::default();
    // Whether `scan.point` is known to be where the log stands at `scan.position`.
    let mut known = file.header.is_some();
    let (mut in_run, mut was_bad) = (false, false);
    // If what is directly behind the last entry cannot be read: where the log ends if each such block was one more entry.
    let mut lost_end: Option<Index> = None;
    while scan.position < file.bytes {
        let position = scan.position;
        if known {
            match scan.next().await.map_err(failed)? {
                Found::Entry(entry) => {
                    found.entry(in_run, position, entry.header);
                    in_run = true;
                    continue;
                }
                Found::Footer => {
                    found.items.push(Item::Footer(scan.point));
                    break;
                }
                Found::End => break,
                // As recovery: no torn write.
                Found::Unreadable => (found.lost_end, lost_end) = (scan.point.next.next(), Some(scan.point.next)),
                Found::Bad(_) if !was_bad => {
                    // What recovery takes for damage is damage here.
                    if scan.look_beyond().await.map_err(failed)?.proof.is_some() {
                        found.lost_end = scan.point.next.next();
                    }
                    was_bad = true;
                }
                Found::Bad(_) => {}
            }
        }
        // Else it may be one that a write has put here, whose payload is not behind it.
        let in_place = std::mem::take(&mut known);
        in_run = false;
        let block = scan.bytes(BLOCK_BYTES).await.map_err(failed)?;
        let Some(header) = ours(&block, shard, file.sequence, scan.point.next) else {
            if let Some(end) = footer(&block, shard, file.sequence, position, scan.point.next) {
                found.items.push(Item::Footer(end));
                break;
            }
            if unreadable::is_filler(&block) {
                found.unreadable_block(&mut lost_end);
            }
            scan.position += BLOCK;
            continue;
        };
        lost_end = None;
        let bytes = scan.bytes(header.padded_bytes()).await.map_err(failed)?;
        if StoredEntry::parse(&bytes).is_ok() {
            found.entry(false, position, header);
            in_run = true;
        } else {
            found.header(position, header);
        }
        scan.point = point_after(&header);
        known = in_run || in_place;
        scan.position += if known { header.padded_bytes() as u64 } else { BLOCK };
    }
    if let Some(header) = &file.header
        && !matches!(found.items.last(), Some(Item::Footer(_)))
        && let Some(footer) = read_footer(&reader, file.bytes, header).await.map_err(failed)?
        && footer.end.next >= scan.point.next
    {
        found.items.push(Item::Footer(footer.end));
    }
    Ok(found)
}

impl Content {
    /// Counts a block that cannot be read: before the first entry, or behind the last one, where it moves `lost_end`.
    fn unreadable_block(&mut self, lost_end: &mut Option<Index>) {
        self.unreadable += u64::from(self.items.is_empty());
        if let Some(end) = lost_end {
            *end = end.next();
            self.lost_end = self.lost_end.max(*end);
        }
    }

    /// Adds a whole entry, to the last run or as the first of the next one.
    fn entry(&mut self, goes_on: bool, position: u64, header: EntryHeader) {
        let padded = header.padded_bytes() as u64;
        self.durable_end = self.durable_end.max(Index(header.durable_end));
        match self.items.last_mut() {
            Some(Item::Run { bytes, last, .. }) if goes_on => {
                *bytes += padded;
                *last = header;
            }
            _ => self.items.push(Item::Run { position, bytes: padded, first: header, last: header }),
        }
    }

    /// Adds one whose payload is damaged.
    fn header(&mut self, position: u64, header: EntryHeader) {
        self.durable_end = self.durable_end.max(Index(header.durable_end));
        self.items.push(Item::Header { position, header });
    }
}

/// An entry's header of this life of the file, at or behind `next`.
fn ours(block: &[u8], shard: ShardUid, sequence: SegmentSequence, next: Index) -> Option<EntryHeader> {
    let header = EntryHeader::parse(block).ok()?;
    (header.shard == shard && header.segment == sequence && header.id.index >= next).then_some(header)
}

fn footer(block: &[u8], shard: ShardUid, sequence: SegmentSequence, position: u64, next: Index) -> Option<LogPoint> {
    let footer = SegmentFooter::parse(block).ok()?;
    let is_ours = footer.shard == shard && footer.sequence == sequence && footer.position.0 == position;
    (is_ours && footer.end.next >= next).then_some(footer.end)
}

/// All entries below this were durable.
fn durable_end(hard: &HardStateSlot, files: &[SegmentFile], contents: &[Content]) -> Index {
    let known = hard.durable().map_or(Index(0), |durable| durable.index.next());
    let bases = files.iter().filter_map(|file| file.header).map(|header| header.base.next);
    let said = contents.iter().map(|content| content.durable_end);
    // Of the last segment only: where another one ends, the base of the next one says.
    let lost = contents.last().map(|content| content.lost_end);
    let closed = contents.iter().flat_map(|content| &content.items).filter_map(|item| match item {
        Item::Footer(end) => Some(end.next),
        Item::Run { .. } | Item::Header { .. } => None,
    });
    // All but the last file: the log went on behind them.
    let before_last = contents.split_last().map_or(&contents[..0], |(_, before)| before);
    let ends = before_last.iter().flat_map(|content| &content.items).map(|item| match item {
        Item::Run { last, .. } => last.id.index.next(),
        Item::Header { header, .. } => header.id.index.next(),
        Item::Footer(end) => end.next,
    });
    // A segment is named after its first entry is durable.
    let named = files.iter().filter(|file| file.named).filter_map(|file| Some(file.header?.base.next.next()));
    bases.chain(said).chain(lost).chain(closed).chain(ends).chain(named).fold(known, Index::max)
}

/// Puts parts together.
struct Building<'a> {
    options: &'a LogOptions,
    hard: HardStateSlot,
    checkpoint_end: Index,
    durable_end: Index,
    /// The last entry that is known to have been durable, by the hard state or by who had the log open.
    last_known: Option<LogId>,
    /// The log was open until now, and whoever had it open knows that nothing behind `last_known` was durable.
    was_open: bool,
    /// Where the log stands behind the last piece.
    point: LogPoint,
    /// `point.chain` is right: it is not that of an entry that is missing.
    chain_known: bool,
    parts: Vec<Part>,
    leftovers: Vec<PathBuf>,
    /// Of all files.
    paths: Vec<PathBuf>,
    /// The file that is looked at, and where what is whole of it ends.
    place: (PathBuf, u64),
}

impl Building<'_> {
    /// Adds a file; false if nothing that was durable is behind it.
    fn file(&mut self, file: &SegmentFile, content: Content, is_last: bool) -> Result<bool, RepairError> {
        let Content { items, unreadable, .. } = content;
        match &file.header {
            Some(header) => self.begin(file, header)?,
            None => self.headless(file, items.is_empty() && !is_last),
        }
        // A segment is named after its first entry is durable; of one with a header that is known already. Each block that cannot
        // be read may have been an entry, as behind the last one that is whole (`Content::lost_end`).
        if is_last && file.named && items.is_empty() {
            self.durable_end = self.durable_end.max(Index(self.point.next.0 + unreadable.max(1)));
        }
        for item in items {
            if !self.item(file, item)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A file whose header says where it begins.
    fn begin(&mut self, file: &SegmentFile, header: &SegmentHeader) -> Result<(), RepairError> {
        let (base, start) = (header.base, self.hard.start);
        if self.parts.is_empty() {
            if base.next > start.next {
                let sequence = SegmentSequence(header.sequence.0.saturating_sub(1));
                let plain = store_path(&self.options.dir, start.offset, false, sequence);
                let taken = self.paths.contains(&plain);
                let path = store_path(&self.options.dir, start.offset, taken, sequence);
                self.new_part(path, sequence, true);
                self.place = (file.path.clone(), 0);
                self.gap(base.next, After::Point(base));
            }
        } else if base.next > self.point.next {
            self.gap(base.next, After::Point(base));
        } else if base != self.point {
            let what = format!("it begins at entry {}, but the log before it ends at {}", base.next, self.point.next);
            return Err(RepairError::hopeless(file.path.clone(), 0, what));
        }
        self.point = base;
        self.chain_known = true;
        self.place = (file.path.clone(), BLOCK);
        self.parts.push(Part {
            path: file.path.clone(),
            header: *header,
            pieces: Vec::new(),
            absorbed: Vec::new(),
            damaged: false,
        });
        Ok(())
    }

    /// A file whose header is damaged: its entries go into the segment before, or it begins where the log does.
    fn headless(&mut self, file: &SegmentFile, is_useless: bool) {
        self.place = (file.path.clone(), 0);
        match self.parts.last_mut() {
            Some(part) => {
                part.damaged = true;
                part.absorbed.push(file.path.clone());
                self.leftovers.push(file.path.clone());
            }
            // What follows says where it begins.
            None if is_useless => self.leftovers.push(file.path.clone()),
            None => self.new_part(file.path.clone(), SegmentSequence(file.sequence.0.max(1)), true),
        }
    }

    /// A part at the log start.
    fn new_part(&mut self, path: PathBuf, sequence: SegmentSequence, damaged: bool) {
        let (shard, base) = (self.options.shard, self.hard.start);
        let header =
            SegmentHeader { shard, sequence, base, intended_bytes: self.options.segment_bytes_max, created_us: 0 };
        self.point = base;
        self.chain_known = true;
        self.parts.push(Part { path, header, pieces: Vec::new(), absorbed: Vec::new(), damaged });
    }

    /// Adds what was found; false if it was never durable.
    fn item(&mut self, file: &SegmentFile, item: Item) -> Result<bool, RepairError> {
        match item {
            Item::Run { position, bytes, first, last } => {
                if last.id.index < self.point.next {
                    return Ok(true);
                }
                if first.id.index > self.point.next && !self.gap(first.id.index, After::Entry(first.into())) {
                    return Ok(false);
                }
                if self.chain_known && first.id.index == self.point.next {
                    continues(&first, self.hard.shard, file.sequence, &self.point)
                        .map_err(|what| RepairError::hopeless(file.path.clone(), position, what))?;
                }
                let (path, sequence, end) = (file.path.clone(), file.sequence, point_after(&last));
                // Whole, but not where it should be: nobody would find it there.
                self.part().damaged |= self.place != (path.clone(), position);
                let limit = Index(u64::MAX);
                self.push(Piece::Run { path, sequence, position, bytes, end, limit });
                self.place.1 = position + bytes;
                self.point = end;
                self.chain_known = true;
            }
            Item::Header { position, header } => {
                let end = point_after(&header);
                if end.next <= self.point.next {
                    return Ok(true);
                }
                if !self.gap(end.next, After::Point(end)) {
                    return Ok(false);
                }
                self.place.1 = position + header.padded_bytes() as u64;
            }
            Item::Footer(end) => {
                if end.next > self.point.next && !self.gap(end.next, After::Point(end)) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn push(&mut self, piece: Piece) {
        self.part().pieces.push(piece);
    }

    /// The segment that what is found belongs to.
    fn part(&mut self) -> &mut Part {
        self.parts.last_mut().expect("a file begins or goes on a part")
    }

    /// Notes that entries up to `end` are missing; false if none of them was durable.
    fn gap(&mut self, end: Index, after: After) -> bool {
        let start = self.hard.start;
        let behind = match &after {
            After::Point(point) => *point,
            After::Entry(next) => {
                LogPoint { next: next.id.index, term: next.id.term, offset: next.base_offset, ..self.point }
            }
            After::Last(_) | After::Nothing => LogPoint { next: end, ..self.point },
        };
        let chain_known = matches!(after, After::Point(_));
        if self.point.next < start.next {
            // What is purged is not needed: the segment begins at the log start from now on.
            let part = self.part();
            part.pieces.clear();
            part.damaged = true;
            part.header.base = start;
            if end <= start.next {
                self.chain_known = chain_known || end == start.next;
                self.point = if end == start.next { start } else { behind };
                return true;
            }
            self.point = start;
        }
        if self.point.next >= self.durable_end {
            return false;
        }
        let before = self.point;
        let (file, position) = self.place.clone();
        let part = self.part();
        part.damaged = true;
        let gap = Gap { file, position, before, end, after };
        part.pieces.push(Piece::Gap(gap));
        self.point = behind;
        self.chain_known = chain_known;
        true
    }

    /// What is known of the end, where nothing says that more was durable behind it.
    fn known_end(&self) -> Option<(Index, After)> {
        let last = self.last_known.filter(|last| self.was_open || last.index.next() >= self.durable_end)?;
        (last.index >= self.point.next).then(|| (last.index.next(), After::Last(last)))
    }

    fn finish(mut self) -> Survey {
        // Of what the device cannot read, of a segment's only entry, and of what a checkpoint has, nothing says what it was.
        let unknown = || (self.durable_end > self.point.next).then_some((self.durable_end, After::Nothing));
        if let Some((end, after)) = self.known_end().or_else(unknown) {
            if self.parts.is_empty() {
                let path = store_path(&self.options.dir, self.hard.start.offset, false, SegmentSequence(1));
                self.new_part(path, SegmentSequence(1), true);
            }
            self.gap(end, after);
        }
        // All of it is purged: built anew it would be a segment without entries, which does not open.
        let is_purged = self.point.next <= self.hard.start.next;
        if let Some(emptied) = self.parts.pop_if(|part| part.damaged && (is_purged || part.pieces.is_empty())) {
            self.leftovers.push(emptied.path);
        }
        let Building { hard, checkpoint_end, parts, mut leftovers, .. } = self;
        leftovers.retain(|path| parts.iter().all(|part| part.path != *path));
        Survey { hard, checkpoint_end, parts, leftovers }
    }
}
