//! Damaged segments are built anew; see `super`.

use std::{collections::BTreeSet, path::Path};

use bytes::Bytes;

use super::{After, Gap, Part, Piece, RepairError, Survey, fill::Writer};
use crate::{
    env::{Disk, File, OpenMode},
    format::entry::{EntryHeader, StoredEntry},
    ids::{Index, NodeId, ShardUid},
    limits::BLOCK_BYTES,
    log::{
        LogOptions, io_error,
        scan::{Found, Scan, UNREADABLE, continues},
    },
};

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Segments built anew.
    pub segments: u32,
    /// Entries that came from others.
    pub entries: u64,
    /// Checkpoints that came from others.
    pub checkpoints: u32,
    /// Files that kept the log from opening, and of which nothing was needed.
    pub removed: u32,
    /// Who sent them.
    pub from: BTreeSet<NodeId>,
}

/// What another replica has sent.
pub struct Sent {
    /// Headers and payloads of entries, from the first one asked for on: as many as it likes below the last, but at least one.
    pub entries: Vec<Bytes>,
    /// All entries below this are known to be committed there.
    pub committed_end: Index,
}

/// Builds each damaged segment anew. What is missing is asked of `sources`, one after the other until one has it: `fetch`
/// asks one for the entries from the first index on, below the second.
/// What was mended stays, and is counted, also when the next segment cannot be: then another survey is needed.
///
/// Where the sources have another history than what is left here, what they know to be committed takes the place of what was
/// not, as far as there was anything here: that was never committed.
///
/// # Errors
/// `Unfilled`; `Disk`, also when what was whole in the survey is not any more: another one finds it. `Hopeless` when what is
/// missing does not fit.
pub async fn mend<D: Disk>(
    disk: &D,
    options: &LogOptions,
    survey: &Survey,
    sources: &[NodeId],
    fetch: impl AsyncFn(NodeId, Index, Index) -> Result<Sent, String>,
    mended: &mut Mended,
) -> Result<(), RepairError> {
    match mend_parts(disk, options, survey, sources, &fetch, mended).await {
        Err(error @ RepairError::Unfilled { .. }) if mended.segments == 0 => {
            let Some(survey) = survey.to_committed() else { return Err(error) };
            match mend_parts(disk, options, &survey, sources, &fetch, mended).await {
                // Nor so, or not into one segment.
                Err(RepairError::Unfilled { .. } | RepairError::Hopeless(_)) => Err(error),
                result => result,
            }
        }
        result => result,
    }
}

async fn mend_parts<D: Disk>(
    disk: &D,
    options: &LogOptions,
    survey: &Survey,
    sources: &[NodeId],
    fetch: &impl AsyncFn(NodeId, Index, Index) -> Result<Sent, String>,
    mended: &mut Mended,
) -> Result<(), RepairError> {
    for part in survey.parts.iter().filter(|part| part.damaged) {
        rebuild(disk, options, part, sources, fetch, mended).await?;
        mended.segments += 1;
        for path in &part.absorbed {
            remove_if_there(disk, path).await?;
        }
    }
    for path in &survey.leftovers {
        mended.removed += u32::from(remove_if_there(disk, path).await?);
    }
    sync_dir(disk, &options.dir).await
}

/// Removes a file that may be there; whether it was.
pub(super) async fn remove_if_there<D: Disk>(disk: &D, path: &Path) -> Result<bool, RepairError> {
    match disk.remove(path).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(RepairError::Disk(io_error(path, "removed", &error))),
    }
}

/// Makes names durable.
pub(super) async fn sync_dir<D: Disk>(disk: &D, dir: &Path) -> Result<(), RepairError> {
    disk.sync_dir(dir).await.map_err(|error| RepairError::Disk(io_error(dir, "synced", &error)))
}

async fn rebuild<D: Disk>(
    disk: &D,
    options: &LogOptions,
    part: &Part,
    sources: &[NodeId],
    fetch: &impl AsyncFn(NodeId, Index, Index) -> Result<Sent, String>,
    mended: &mut Mended,
) -> Result<(), RepairError> {
    let gap = part.pieces.iter().find_map(|piece| match piece {
        Piece::Gap(gap) => Some(gap),
        Piece::Run { .. } => None,
    });
    if let Some(gap) = gap.filter(|_| sources.is_empty()) {
        // Or the only copy would write what it has anew at each try.
        return Err(unfilled(gap, &[]));
    }
    let mut writer = Writer::begin(disk, &part.path, &part.header).await?;
    for piece in &part.pieces {
        match piece {
            Piece::Run { .. } => copy(disk, options.shard, piece, &mut writer).await?,
            Piece::Gap(gap) => {
                let from = fill(options.shard, gap, sources, fetch, &mut writer).await?;
                mended.entries += gap.end.0 - gap.before.next.0;
                mended.from.insert(from);
            }
        }
    }
    writer.finish(disk, &options.dir).await
}

/// Takes over a run of whole entries.
pub(super) async fn copy<D: Disk>(
    disk: &D,
    shard: ShardUid,
    run: &Piece,
    writer: &mut Writer<D::File>,
) -> Result<(), RepairError> {
    let Piece::Run { path, sequence, position, bytes, limit, .. } = run else { return Ok(()) };
    let failed = |action| move |error: std::io::Error| RepairError::Disk(io_error(path, action, &error));
    // It was whole when it was looked at: another survey finds what has become of it.
    let changed = |what: &str| failed("read")(std::io::Error::other(what));
    let file = disk.open(path, OpenMode::Read).await.map_err(failed("opened"))?;
    let end = position + bytes;
    let mut scan = Scan::new(&file, end, shard, *sequence, writer.point());
    scan.position = *position;
    while scan.position < end && writer.point().next < *limit {
        let block = scan.bytes(BLOCK_BYTES).await.map_err(failed("read"))?;
        let header = EntryHeader::parse(&block);
        if let Ok(header) = header
            && header.id.index < writer.point().next
        {
            // Purged, or in the segment already.
            scan.position += header.padded_bytes() as u64;
            continue;
        }
        scan.point = writer.point();
        match scan.next().await.map_err(failed("read"))? {
            Found::Entry(entry) => writer.add(&entry).await?,
            Found::Bad(what) => return Err(changed(&what)),
            Found::Unreadable => return Err(changed(UNREADABLE)),
            Found::Footer | Found::End => return Err(changed("it has become shorter")),
        }
    }
    Ok(())
}

/// Fills a gap with what one of the sources has; which one.
async fn fill<F: File>(
    shard: ShardUid,
    gap: &Gap,
    sources: &[NodeId],
    fetch: &impl AsyncFn(NodeId, Index, Index) -> Result<Sent, String>,
    writer: &mut Writer<F>,
) -> Result<NodeId, RepairError> {
    let mark = writer.mark().await?;
    let mut reasons = Vec::new();
    for source in sources {
        writer.back_to(mark);
        match fill_from(shard, gap, *source, fetch, writer).await? {
            Ok(()) => return Ok(*source),
            Err(what) => reasons.push(format!("node {source}: {what}")),
        }
    }
    Err(unfilled(gap, &reasons))
}

fn unfilled(gap: &Gap, reasons: &[String]) -> RepairError {
    let reasons = if reasons.is_empty() { "there is none".to_owned() } else { reasons.join("; ") };
    RepairError::Unfilled { gap: gap.clone().into(), reasons }
}

async fn fill_from<F: File>(
    shard: ShardUid,
    gap: &Gap,
    source: NodeId,
    fetch: &impl AsyncFn(NodeId, Index, Index) -> Result<Sent, String>,
    writer: &mut Writer<F>,
) -> Result<Result<(), String>, RepairError> {
    while writer.point().next < gap.end {
        let sent = match fetch(source, writer.point().next, gap.end).await {
            Ok(sent) if sent.entries.is_empty() => return Ok(Err("it sent nothing".into())),
            Ok(sent) => sent,
            Err(what) => return Ok(Err(what)),
        };
        if matches!(gap.after, After::Nothing) && sent.committed_end < gap.end {
            return Ok(Err(
                "it does not know them to be committed, and nothing else says whether they were here".into()
            ));
        }
        for piece in sent.entries {
            let at = writer.point();
            let entry = match StoredEntry::parse(&piece) {
                Ok(entry) if at.next < gap.end => entry,
                Ok(_) => return Ok(Err("it sent more than it was asked for".into())),
                Err(error) => return Ok(Err(format!("what it sent for entry {} is none: {error}", at.next))),
            };
            // Whose life of which file it is there means nothing here.
            if let Err(what) = continues(&entry.header, shard, entry.header.segment, &at) {
                return Ok(Err(format!("it has another history: {what}")));
            }
            writer.add_durable(&entry).await?;
        }
    }
    Ok(gap.check_end(shard, &writer.point()))
}
