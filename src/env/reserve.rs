//! Space that is kept for what frees space: a file of zeros in the data directory, given back when the disk is full.
//!
//! Records never get it. What may have it writes little and lets go of much: the entry that trims, a new leader's first one,
//! a membership, the catalog's commands (a topic is deleted by one), the checkpoint up to which a log is purged. A
//! file, not a promise, since others fill the same file system to the brim. Whoever makes space for records leaves as much
//! free beside it (`Disk::reserve`), so that what was given back is not theirs either.
//!
//! ```text
//! records get space           : free >= what they ask for + reserve
//! what frees space gets it    : free >= what it asks for, else the file is removed, and it is tried again
//! the file is there again     : free >= 2 * reserve
//! ```
//!
//! It is written under a temporary name and renamed: after a crash it is there whole or not at all, and it is made again when
//! there is space. Not kept: space for other programs, and more than this for a replica that had as many records in flight
//! when its disk filled up.

use std::{io, path::Path};

use bytes::Bytes;

use super::{Disk, File, OpenMode, Reserve, buffer::Buffer};

/// Zeros of one write.
const CHUNK_BYTES: u64 = 1 << 20;

/// Makes the file if it is not there, where the disk keeps one.
///
/// # Errors
/// `StorageFull` while there is too little space to lay some by; others of the disk.
pub async fn keep<D: Disk>(disk: &D) -> io::Result<()> {
    let Some(Reserve { path, bytes }) = disk.reserve() else { return Ok(()) };
    let dir = path.parent().unwrap_or(Path::new(""));
    disk.create_dir_all(dir).await?;
    let is_there = |name: &Path| path.file_name().is_some_and(|own| own == name);
    if disk.list(dir).await?.iter().any(|entry| is_there(&entry.name) && entry.bytes == bytes) {
        return Ok(());
    }
    if disk.free_bytes(dir).await? < 2 * bytes {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let temporary = path.with_extension("tmp");
    // Of an attempt that a crash has ended; mostly there is none.
    drop(disk.remove(&temporary).await);
    let file = disk.open(&temporary, OpenMode::Create).await?;
    if let Err(error) = fill(&file, bytes).await {
        drop(file);
        // The error that counts is the first one.
        drop(disk.remove(&temporary).await);
        return Err(error);
    }
    disk.rename(&temporary, &path).await?;
    disk.sync_dir(dir).await
}

async fn fill<F: File>(file: &F, bytes: u64) -> io::Result<()> {
    let zeros = Buffer::zeroed(CHUNK_BYTES.min(bytes) as usize).freeze_padded();
    for at in (0..bytes).step_by(CHUNK_BYTES as usize) {
        let count = CHUNK_BYTES.min(bytes - at) as usize;
        file.write_at(at, vec![zeros.slice(..count)]).await?;
    }
    file.sync().await
}

/// Gives the space back; false if there is none to give.
pub async fn release<D: Disk>(disk: &D) -> bool {
    let Some(Reserve { path, bytes }) = disk.reserve() else { return false };
    let is_released = disk.remove(&path).await.is_ok();
    if is_released {
        tracing::warn!(bytes, "the disk is full: the reserve is given to what frees space");
    }
    is_released
}

/// As `Disk::write_file`, with what is kept here if the disk is full.
///
/// # Errors
/// As `Disk::write_file`.
pub async fn write_file<D: Disk>(disk: &D, path: &Path, content: Bytes) -> io::Result<()> {
    match disk.write_file(path, content.clone()).await {
        Err(error) if error.kind() == io::ErrorKind::StorageFull && disk.reserve().is_some() => {
            // Where it is gone already, another writer may have given it since: there is space for this one, too.
            release(disk).await;
            disk.write_file(path, content).await
        }
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        env::runtime::block_on,
        sim::{Fault, Operation, SimDisk},
    };

    /// It is made once, given once, and made again only when there is twice as much space; small files get it.
    #[test]
    fn kept_and_given() {
        let disk = SimDisk::new();
        block_on(async {
            keep(&disk).await.unwrap();
            assert!(disk.paths().is_empty() && !release(&disk).await, "this disk keeps none");
            disk.keep_reserve(64 << 10);
            let path = disk.reserve().unwrap().path;
            for _ in 0..2 {
                keep(&disk).await.unwrap();
                assert_eq!((disk.paths(), disk.used_bytes()), (vec![path.clone()], 64 << 10));
            }
            disk.set_capacity(Some(64 << 10));
            let small = path.with_file_name("small");
            write_file(&disk, &small, vec![1; 4096].into()).await.unwrap();
            assert_eq!(disk.paths(), std::slice::from_ref(&small));
            assert!(!release(&disk).await);
            assert_eq!(keep(&disk).await.unwrap_err().kind(), io::ErrorKind::StorageFull);
            let more = write_file(&disk, &small, vec![1; 128 << 10].into()).await;
            assert_eq!(more.unwrap_err().kind(), io::ErrorKind::StorageFull);
            disk.set_capacity(Some(4096 + (128 << 10)));
            keep(&disk).await.unwrap();
        });
    }

    /// Two small files are written to a full disk: the one whose writer comes second, and finds that the first one has given the
    /// reserve, gets of its space, too.
    #[test]
    fn given_by_another_writer() {
        let disk = SimDisk::new();
        block_on(async {
            disk.keep_reserve(64 << 10);
            let small = disk.reserve().unwrap().path.with_file_name("small");
            disk.create_dir_all(small.parent().unwrap()).await.unwrap();
            // No space when it is written, and no file to remove by then.
            let error = io::ErrorKind::StorageFull;
            disk.plant(Fault { operation: Operation::Write, path_contains: "small".into(), skip: 0, times: 1, error });
            assert!(!release(&disk).await);
            write_file(&disk, &small, vec![1; 4096].into()).await.unwrap();
            assert_eq!(disk.paths(), [small]);
        });
    }
}
