//! Giving up what cannot be read, and all behind it; see `super`. Only ever because a person said so.

use std::path::{Path, PathBuf};

use super::{
    Part, Piece, RepairError, Survey,
    fill::Writer,
    mend::{copy, sync_dir},
};
use crate::{
    env::{Disk, File, OpenMode, buffer::Buffer},
    format::{
        segment::LogPoint,
        state_files::{HardState, HardStateSlot},
    },
    ids::{LogId, Offset},
    limits::{BLOCK_BYTES, READ_BYTES},
    log::{LogOptions, io_error, recovery::checkpoint_index, unreadable},
};

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Next offset to be given from now on.
    pub end: Offset,
    /// Files that are kept under a name that no node looks at.
    pub kept: Vec<PathBuf>,
}

/// Ends the log before its first gap; nothing to do without one. Every segment that is changed is kept beside, under a name
/// that ends with `.damaged`. When it fails half-way, it can be called again after another `survey`.
///
/// # Errors
/// `Disk`, also when what was whole in the survey is not any more.
pub async fn cut<D: Disk>(disk: &D, options: &LogOptions, survey: &Survey) -> Result<Option<Cut>, RepairError> {
    let Some(end) = survey.gaps().next().map(|gap| gap.before) else { return Ok(None) };
    let has_gap = |part: &Part| part.pieces.iter().any(|piece| matches!(piece, Piece::Gap(_)));
    let first = survey.parts.iter().position(has_gap).expect("the gap is in a part");
    save_committed(disk, options, survey, &end).await?;
    let mut kept = Vec::new();
    // From the newest on, as a truncation: a crash in between leaves no hole that is not there already.
    for part in survey.parts[first + 1..].iter().rev() {
        kept.extend(put_aside(disk, &options.dir, &part.path).await?);
    }
    let part = &survey.parts[first];
    if exists(disk, &part.path).await? {
        kept.push(keep_copy(disk, &part.path).await?);
    }
    let whole = part.pieces.iter().take_while(|piece| matches!(piece, Piece::Run { .. }));
    if end.next > part.header.base.next {
        let mut writer = Writer::begin(disk, &part.path, &part.header).await?;
        for run in whole {
            copy(disk, options.shard, run, &mut writer).await?;
        }
        writer.finish(disk, &options.dir).await?;
    } else if exists(disk, &part.path).await? {
        disk.remove(&part.path).await.map_err(|error| failed(&part.path, "removed", &error))?;
    }
    for path in &survey.leftovers {
        kept.extend(put_aside(disk, &options.dir, path).await?);
    }
    let names = disk.list(&options.dir).await.map_err(|error| failed(&options.dir, "listed", &error))?;
    for name in names.iter().map(|entry| &entry.name) {
        if checkpoint_index(name).is_some_and(|index| index >= end.next && index.next() > survey.hard.start.next) {
            kept.extend(put_aside(disk, &options.dir, &options.dir.join(name)).await?);
        }
    }
    sync_dir(disk, &options.dir).await?;
    Ok(Some(Cut { end: end.offset, kept }))
}

/// What was committed or durable behind the end is not any more. The vote stays.
async fn save_committed<D: Disk>(
    disk: &D,
    options: &LogOptions,
    survey: &Survey,
    end: &LogPoint,
) -> Result<(), RepairError> {
    let hard = survey.hard;
    let last = end.last();
    let committed = hard.state.committed.and_then(|id: LogId| if id.index < end.next { Some(id) } else { last });
    let flushed = hard.flushed.and_then(|id: LogId| if id.index < end.next { Some(id) } else { last });
    if (committed, flushed) == (hard.state.committed, hard.flushed) {
        return Ok(());
    }
    let state = HardState { committed, ..hard.state };
    let both = HardStateSlot { state, flushed, ..hard }.encode_both();
    let path = options.dir.join("hard_state");
    disk.write_file(&path, both).await.map_err(|error| failed(&path, "written", &error))
}

/// Moves a file out of the way, with its index.
async fn put_aside<D: Disk>(disk: &D, dir: &Path, path: &Path) -> Result<Option<PathBuf>, RepairError> {
    if !exists(disk, path).await? {
        return Ok(None);
    }
    let to = damaged_name(disk, path).await?;
    disk.rename(path, &to).await.map_err(|error| failed(path, "renamed", &error))?;
    sync_dir(disk, dir).await?;
    Ok(Some(to))
}

/// Copies a file, durably.
async fn keep_copy<D: Disk>(disk: &D, path: &Path) -> Result<PathBuf, RepairError> {
    let to = damaged_name(disk, path).await?;
    let from = disk.open(path, OpenMode::Read).await.map_err(|error| failed(path, "opened", &error))?;
    let copy = disk.open(&to, OpenMode::Create).await.map_err(|error| failed(&to, "made", &error))?;
    let bytes = from.bytes().await.map_err(|error| failed(path, "read", &error))?;
    let mut at = 0;
    while at < bytes {
        let piece = unreadable::read_at(&from, at, READ_BYTES).await.map_err(|error| failed(path, "read", &error))?;
        if piece.is_empty() {
            break;
        }
        let mut buffer = Buffer::with_capacity(piece.len().next_multiple_of(BLOCK_BYTES));
        buffer.extend(&piece);
        let written = copy.write_at(at, vec![buffer.freeze_padded()]).await;
        written.map_err(|error| failed(&to, "written", &error))?;
        at += piece.len() as u64;
    }
    copy.truncate(bytes).await.map_err(|error| failed(&to, "cut", &error))?;
    copy.sync().await.map_err(|error| failed(&to, "synced", &error))?;
    Ok(to)
}

async fn exists<D: Disk>(disk: &D, path: &Path) -> Result<bool, RepairError> {
    match disk.open(path, OpenMode::Read).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(path, "opened", &error)),
    }
}

/// A name that is not taken, by an earlier cut perhaps.
async fn damaged_name<D: Disk>(disk: &D, path: &Path) -> Result<PathBuf, RepairError> {
    for number in 1.. {
        let mut name = path.as_os_str().to_owned();
        name.push(if number == 1 { ".damaged".to_owned() } else { format!("-{number}.damaged") });
        if !exists(disk, name.as_ref()).await? {
            return Ok(name.into());
        }
    }
    unreachable!("one of so many names is free")
}

fn failed(path: &Path, action: &'static str, error: &std::io::Error) -> RepairError {
    RepairError::Disk(io_error(path, action, error))
}
