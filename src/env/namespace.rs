//! Names on a real file system: directories, renames, small whole files. All of it blocks; `disk` runs it on the
//! storage thread.
//!
//! What is said to be durable is: a file's content is synced before its name, and a name by syncing its
//! directory (POSIX promises neither without).
#![allow(clippy::disallowed_methods, reason = "this implements the seam that hides them")]

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{DirEntry, HALF_REMOVED, is_half_removed, lasting};

/// See `Disk::read_file`.
pub(super) fn read_file(path: &Path) -> io::Result<Bytes> {
    fs::read(path).map(Bytes::from)
}

/// See `Disk::write_file`.
pub(super) fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or_else(|| no_name(path))?.to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let written = write_synced(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error counts; what is left has a name that says so, and is overwritten next time.
        drop(fs::remove_file(&temporary));
        return written;
    }
    sync_dir(parent(path))
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    io::Write::write_all(&mut file, content)?;
    sync(&file)
}

/// See `Disk::create_dir_all`.
pub(super) fn create_dir_all(path: &Path) -> io::Result<()> {
    let mut missing: Vec<&Path> = Vec::new();
    for path in path.ancestors().take_while(|path| !path.as_os_str().is_empty()) {
        if path.is_dir() {
            break;
        }
        missing.push(path);
    }
    for path in missing.into_iter().rev() {
        // First: once it is made nobody would come back to make it durable.
        let above = fs::File::open(parent(path))?;
        match fs::create_dir(path) {
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made?,
        }
        sync(&above)?;
    }
    Ok(())
}

/// See `Disk::list`.
pub(super) fn list(path: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            // Removed in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let is_dir = metadata.is_dir();
        let bytes = if is_dir { 0 } else { metadata.len() };
        entries.push(DirEntry { name: PathBuf::from(entry.file_name()), bytes, is_dir });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// See `Disk::rename`.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// See `Disk::remove`.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

/// See `Disk::remove_dir_all`.
pub(super) fn remove_dir_all(path: &Path) -> io::Result<()> {
    if is_half_removed(path) {
        fs::remove_dir_all(path)?;
        return sync_dir(parent(path));
    }
    let mut name = path.file_name().ok_or_else(|| no_name(path))?.to_owned();
    name.push(HALF_REMOVED);
    let aside = path.with_file_name(name);
    // First: what fails behind the renaming must not be tried again before that is durable.
    let above = fs::File::open(parent(path))?;
    let was_begun = match fs::remove_dir_all(&aside) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    // Files go one by one: what a crash left of them under its name would be taken for damage.
    match fs::rename(path, &aside) {
        // What there was to be removed was that.
        Err(error) if error.kind() == io::ErrorKind::NotFound && was_begun => return sync(&above),
        renamed => renamed?,
    }
    sync(&above)?;
    remove_dir_all(&aside)
}

/// See `Disk::sync_dir`.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    sync(&fs::File::open(path)?)
}

fn sync(file: &fs::File) -> io::Result<()> {
    file.sync_all().map_err(lasting)
}

/// See `Disk::free_bytes`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stats = rustix::fs::statvfs(path)?;
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

fn no_name(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{} does not end in a name", path.display()))
}
