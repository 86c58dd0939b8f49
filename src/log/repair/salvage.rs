//! Whole entries of a log that does not open; see `super`.

use bytes::Bytes;

use super::{
    RepairError,
    survey::{Item, SegmentFile, content, hard_state, names, segment_files},
};
use crate::{
    env::{Disk, OpenMode},
    format::{
        entry::{EntryHeader, StoredEntry},
        segment::LogPoint,
    },
    ids::Index,
    limits::BLOCK_BYTES,
    log::{LogOptions, io_error, scan::Scan},
};

/// Entries `from .. end` as they are in the directory's files, header and payload, as many as are whole and in one piece and
/// fit into `bytes_max`, but at least one if there is one. Of the segments before it only the headers are read.
///
/// # Errors
/// `Hopeless`, `Disk`.
pub async fn salvage<D: Disk>(
    disk: &D,
    options: &LogOptions,
    from: Index,
    end: Index,
    bytes_max: usize,
) -> Result<Vec<Bytes>, RepairError> {
    let hard = hard_state(disk, options).await?;
    let (files, _) = segment_files(disk, options, &hard, names(disk, options).await?).await?;
    let mut found = Vec::new();
    let begins_below = |file: &SegmentFile| file.header.is_some_and(|header| header.base.next <= from);
    let skipped = files.iter().rposition(begins_below).unwrap_or(0);
    // One whose header is damaged lies behind the one that it may continue.
    for file in &files[skipped..] {
        for item in content(disk, file, hard.shard).await.map_err(RepairError::Disk)?.items {
            let Item::Run { position, bytes, first, last } = item else { continue };
            if !(first.id.index <= from && from <= last.id.index) {
                continue;
            }
            let failed = |error: std::io::Error| RepairError::Disk(io_error(&file.path, "read", &error));
            let reader = disk.open(&file.path, OpenMode::Read).await.map_err(failed)?;
            let end_position = position + bytes;
            let mut scan = Scan::new(&reader, end_position, hard.shard, file.sequence, LogPoint::default());
            scan.position = position;
            let mut taken = 0;
            while scan.position < end_position {
                let block = scan.bytes(BLOCK_BYTES).await.map_err(failed)?;
                let Ok(header) = EntryHeader::parse(&block) else { break };
                let full = !found.is_empty() && taken + header.bytes() > bytes_max;
                if header.id.index >= end || full {
                    break;
                }
                if header.id.index >= from {
                    let whole = scan.bytes(header.padded_bytes()).await.map_err(failed)?;
                    let Ok(entry) = StoredEntry::parse(&whole) else { break };
                    taken += entry.bytes.len();
                    found.push(entry.bytes);
                }
                scan.position += header.padded_bytes() as u64;
            }
            return Ok(found);
        }
    }
    Ok(found)
}
