//! The hard state as it is found when a log opens: two slots in one file, of which the newer one counts, and both say the same before
//! anything is decided by it.

use std::path::Path;

use super::{
    FileOf, LogError, LogOptions, Watched, io_error,
    recovery::{has_extension, of_another, of_version},
    unreadable,
};
use crate::{
    env::{DirEntry, Disk, Env, File},
    format::{
        segment::{BlockError, LogPoint},
        state_files::{HardState, HardStateSlot},
    },
    ids::ShardUid,
    limits::BLOCK_BYTES,
};

/// The hard state as it lies on the disk.
pub(super) struct HardStateOnDisk {
    /// The newer slot.
    pub slot: HardStateSlot,
    /// The other one says the same, but for what entry is durable: whichever is lost, nothing else is.
    pub is_settled: bool,
}

/// Has both slots say durably what the newer one does, which decides from now on. A save that was interrupted has left it in one copy;
/// Raft saves no vote again that it finds here.
///
/// # Errors
/// `Io`.
pub(super) async fn settle<E: Env>(
    file: &FileOf<E>,
    path: &Path,
    slot: HardStateSlot,
) -> Result<HardStateSlot, LogError> {
    // The older one first: one of them is whole at any time.
    let both = [1, 2].map(|later| HardStateSlot { sequence: slot.sequence + later, ..slot });
    for slot in both {
        let position = slot.sequence % 2 * BLOCK_BYTES as u64;
        let written = file.append_durable(position, vec![slot.encode()]).await;
        written.map_err(|error| io_error(path, "written", &error))?;
    }
    Ok(both[1])
}

/// Finds the hard state; makes that of a new log.
pub(super) async fn find<E: Env>(
    disk: &Watched<E>,
    options: &LogOptions,
    names: &[DirEntry],
) -> Result<HardStateOnDisk, LogError> {
    let path = options.dir.join("hard_state");
    if !names.iter().any(|entry| entry.name == Path::new("hard_state")) {
        if let Some(store) = names.iter().find(|entry| has_extension(&entry.name, "store")) {
            let what = format!("it is missing, but {} is there; the vote in it is lost", store.name.display());
            return Err(LogError::Corrupt { file: path, position: 0, what });
        }
        let state = HardState::default();
        let (shard, owner) = (options.shard, options.owner);
        let start = LogPoint::default();
        let slot = HardStateSlot { shard, sequence: 0, state, start, owner, flushed: None };
        let mut content = slot.encode().to_vec();
        content.resize(2 * BLOCK_BYTES, 0);
        disk.write_file(&path, content.into()).await.map_err(|error| io_error(&path, "written", &error))?;
        return Ok(HardStateOnDisk { slot, is_settled: true });
    }
    let content = unreadable::read_file(disk, &path).await.map_err(|error| io_error(&path, "read", &error))?;
    let slot = newest_slot(&content, &path, Some(options.shard))?;
    if slot.shard != options.shard {
        return Err(of_another(&path, slot.shard, options.shard));
    }
    if options.owner != 0 && slot.owner != options.owner {
        return Err(LogError::Foreign { file: path, what: OF_ANOTHER_OWNER.into() });
    }
    let says = |slot: HardStateSlot| HardStateSlot { sequence: 0, flushed: None, ..slot };
    let is_settled =
        content.chunks(BLOCK_BYTES).all(|block| HardStateSlot::parse(block).is_ok_and(|it| says(it) == says(slot)));
    Ok(HardStateOnDisk { slot, is_settled })
}

/// What is wrong with a directory that has the right shard's number.
pub(super) const OF_ANOTHER_OWNER: &str = "it was not made in this data directory, but by another node or in another cluster, \
     or before `identity` was replaced: put each shard's directory back where it was made";

/// The slot that counts. One of another shard does not if the other is of this one: its write went astray.
pub(super) fn newest_slot(content: &[u8], path: &Path, shard: Option<ShardUid>) -> Result<HardStateSlot, LogError> {
    let slots: Vec<_> = content.chunks(BLOCK_BYTES).map(HardStateSlot::parse).collect();
    let newest =
        slots.iter().filter_map(|slot| slot.ok()).max_by_key(|slot| (Some(slot.shard) == shard, slot.sequence));
    match newest {
        Some(slot) => Ok(slot),
        None => match slots.iter().find_map(|slot| slot.err().filter(|e| matches!(e, BlockError::Version(_)))) {
            Some(version) => Err(of_version(path, &version)),
            None => {
                let what = "neither of its two slots is whole; the vote in it is lost".into();
                Err(LogError::Corrupt { file: path.into(), position: 0, what })
            }
        },
    }
}
