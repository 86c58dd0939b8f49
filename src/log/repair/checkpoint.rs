//! Checkpoints of a log that does not open; see `super`.

use std::ops::Range;

use bytes::Bytes;

use super::{
    RepairError, Survey,
    survey::{hard_state, names},
};
use crate::{
    env::Disk,
    format::state_files::{HardStateSlot, encode_checkpoint},
    ids::Index,
    log::{
        LogOptions, LogPoint, io_error,
        recovery::checkpoint_index,
        state::{checkpoint_path, read_checkpoint},
    },
};

/// After which entries the state must be known, by at least one checkpoint, for the log to open; `None` if one is whole, or the
/// log is kept from its first entry on.
///
/// # Errors
/// `Disk`.
pub async fn missing_checkpoint<D: Disk>(
    disk: &D,
    options: &LogOptions,
    survey: &Survey,
) -> Result<Option<Range<Index>>, RepairError> {
    let start = survey.start().next;
    let Some(before) = start.0.checked_sub(1) else { return Ok(None) };
    let end = survey.last().map_or(start, |last| last.index.next()).max(start);
    let kept = salvage_checkpoint(disk, options, Index(before), end).await?;
    Ok(kept.is_none().then_some(Index(before)..end))
}

/// The newest whole checkpoint of the state after one of the entries `from .. end`.
///
/// # Errors
/// `Disk`.
pub async fn salvage_checkpoint<D: Disk>(
    disk: &D,
    options: &LogOptions,
    from: Index,
    end: Index,
) -> Result<Option<(Index, Bytes)>, RepairError> {
    let newest_first = kept(disk, options, from..end).await?.into_iter().rev();
    first_whole(disk, options, newest_first).await
}

/// If the log begins behind the entry `from`: the oldest whole checkpoint of the state from there on. What is before it is purged,
/// or was committed at least.
///
/// # Errors
/// `Hopeless`, `Disk`.
pub async fn salvage_purged_checkpoint<D: Disk>(
    disk: &D,
    options: &LogOptions,
    from: Index,
) -> Result<Option<(Index, Bytes)>, RepairError> {
    let start = hard_state(disk, options).await?.start;
    let Some(purged) = start.last().filter(|last| last.index >= from) else { return Ok(None) };
    let oldest_first = kept(disk, options, purged.index..Index(u64::MAX)).await?;
    first_whole(disk, options, oldest_first).await
}

/// After which of these entries checkpoints are kept, whole or not; ascending.
async fn kept<D: Disk>(disk: &D, options: &LogOptions, range: Range<Index>) -> Result<Vec<Index>, RepairError> {
    let names = names(disk, options).await?;
    let indexes = names.iter().filter_map(|entry| checkpoint_index(&entry.name));
    let mut kept: Vec<_> = indexes.filter(|index| range.contains(index)).collect();
    kept.sort_unstable();
    Ok(kept)
}

async fn first_whole<D: Disk>(
    disk: &D,
    options: &LogOptions,
    kept: impl IntoIterator<Item = Index>,
) -> Result<Option<(Index, Bytes)>, RepairError> {
    for index in kept {
        if let Ok(content) = read_checkpoint(disk, options, index).await.map_err(RepairError::Disk)? {
            return Ok(Some((index, content)));
        }
    }
    Ok(None)
}

/// Keeps one that came from another replica.
///
/// # Errors
/// `Disk`.
pub async fn keep_checkpoint<D: Disk>(
    disk: &D,
    options: &LogOptions,
    index: Index,
    content: &[u8],
) -> Result<(), RepairError> {
    let path = checkpoint_path(options, index);
    let written = disk.write_file(&path, encode_checkpoint(options.shard, index, content)).await;
    written.map_err(|error| RepairError::Disk(io_error(&path, "written", &error)))
}

/// Lets a log begin at `start`, where all of it is below, or what is there goes on: what is below is purged, damaged or not. A
/// checkpoint of the state there is kept already.
///
/// # Errors
/// `Disk`.
pub async fn begin_at<D: Disk>(
    disk: &D,
    options: &LogOptions,
    survey: &Survey,
    start: LogPoint,
) -> Result<(), RepairError> {
    assert!(start.next >= survey.start().next, "a log start never goes back");
    let both = HardStateSlot { start, ..survey.hard }.encode_both();
    let path = options.dir.join("hard_state");
    disk.write_file(&path, both).await.map_err(|error| RepairError::Disk(io_error(&path, "written", &error)))
}
