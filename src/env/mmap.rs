//! Read-only maps of whole files, with their pages in memory from the start.
//!
//! Mapping blocks (it reads the file), so `storage_thread` does it. A page that the kernel evicts later
//! costs a page fault; index files are small and often used. No writes: `File` does them.
#![allow(unsafe_code)]

use std::{fs::File, io, path::Path};

use bytes::Bytes;
use memmap2::{Mmap, MmapOptions};

use super::Map;

/// Maps all of `path`. Blocks until its pages are in memory.
///
/// The file must be complete, and must not be shortened as long as the map or a part of it lives: touching a page
/// behind its end raises SIGBUS.
///
/// # Errors
/// The file's; `NotFound` if it is not there.
pub fn map(path: &Path) -> io::Result<Map> {
    #[allow(clippy::disallowed_methods, reason = "env implements the seam")]
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        // mmap(2) refuses a length of zero.
        return Ok(Map(Bytes::new()));
    }
    // SAFETY: nobody else changes the bytes under the shared slice or shortens the file: it lies in our data directory, which one process
    // locks; and the log maps only complete files, never writes to them again, and drops the map before it cuts one to its
    // true size.
    let map = unsafe { MmapOptions::new().populate().map(&file)? };
    Ok(Map(Bytes::from_owner(Mapped(map))))
}

struct Mapped(Mmap);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests prepare real files")]
mod tests {
    use super::*;

    /// A map shows the file's bytes, a slice of it outlives it, and so does an unlinked file's.
    #[test]
    fn shows_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let mapped = map(&path).unwrap();
        assert_eq!(&mapped[..], &content[..]);
        let part = mapped.0.slice(5_000..5_010);
        drop(mapped);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(part, content[5_000..5_010]);
    }

    /// An empty file is an empty map, a missing one an error.
    #[test]
    fn empty_and_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(map(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, b"").unwrap();
        assert!(map(&path).unwrap().is_empty());
    }
}
