//! Places of a device that cannot be read any more (latent sector errors).
//!
//! A device that has lost a sector says so, where another one returns wrong bytes: the same damage, to be found and mended the
//! same way. So blocks that it cannot read are read as `FILLER`, which is never what was written: whatever is checked there is
//! damaged, and what is beside it is not. Errors that may pass (no descriptors, no memory) stay errors.
//!
//! An entry whose place cannot be read is never taken for a torn write: it may be there again at the next try.

use std::{io, path::Path};

use bytes::Bytes;

use crate::{
    env::{Disk, File, OpenMode},
    limits::BLOCK_BYTES,
};

/// What blocks that cannot be read are full of: no magic begins with it.
const FILLER: u8 = 0xbd;

/// What Linux says of a place that cannot be read, or whose content the device or the file system knows to be wrong: EIO,
/// ENODATA (a medium error, as its block layer calls it), EBADMSG, EILSEQ (protection information), EUCLEAN, EREMOTEIO.
const UNREADABLE: [i32; 6] = [5, 61, 74, 84, 117, 121];

/// Whether an error of a read is of the place, and not of the moment.
fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|number| UNREADABLE.contains(&number))
}

/// As `File::read_at`; blocks that cannot be read are full of `FILLER`.
///
/// # Errors
/// Others.
pub(super) async fn read_at<F: File>(file: &F, position: u64, bytes: usize) -> io::Result<Bytes> {
    match file.read_at(position, bytes).await {
        Err(error) if is_unreadable(&error) => read_blocks(file, position, bytes as u64).await,
        result => result,
    }
}

/// As `Disk::read_file`; blocks that cannot be read are full of `FILLER`.
///
/// # Errors
/// Others.
pub(crate) async fn read_file<D: Disk>(disk: &D, path: &Path) -> io::Result<Bytes> {
    match disk.read_file(path).await {
        Err(error) if is_unreadable(&error) => {
            let file = disk.open(path, OpenMode::Read).await?;
            read_blocks(&file, 0, u64::MAX).await
        }
        result => result,
    }
}

/// Whether a block is one that could not be read.
pub(super) fn is_filler(block: &[u8]) -> bool {
    !block.is_empty() && block.iter().all(|byte| *byte == FILLER)
}

/// Block by block.
async fn read_blocks<F: File>(file: &F, position: u64, bytes: u64) -> io::Result<Bytes> {
    let end = position.saturating_add(bytes).min(file.bytes().await?);
    let (mut content, mut at) = (Vec::new(), position);
    while at < end {
        let step = (BLOCK_BYTES as u64 - at % BLOCK_BYTES as u64).min(end - at) as usize;
        match file.read_at(at, step).await {
            Ok(piece) if piece.is_empty() => break,
            Ok(piece) => content.extend_from_slice(&piece),
            Err(error) if is_unreadable(&error) => content.resize(content.len() + step, FILLER),
            Err(error) => return Err(error),
        }
        at = position + content.len() as u64;
    }
    Ok(content.into())
}
