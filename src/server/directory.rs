//! The data directory: made if it is missing, and held by one server at a time. Also the few small files that a node reads
//! and writes before it has a reactor whose disk could do it; all of it blocks.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// A data directory that is ours until this is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct DataDir {
    /// Absolute, so that messages name files that a person can find.
    pub path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is missing, and locks it. Blocks: for start-up only.
    ///
    /// # Errors
    /// In one sentence: another server has it, or it cannot be written to.
    pub fn take(path: &Path) -> Result<DataDir, String> {
        let path = std::path::absolute(path).map_err(|error| explain(path, "found", &error))?;
        // Records may be anybody's secrets: only the server's own user reads them.
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(|error| explain(&path, "made", &error))?;
        let name = path.join("lock");
        #[allow(clippy::disallowed_methods, reason = "before there is a reactor whose disk could do it")]
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&name)
            .map_err(|error| explain(&path, "written to", &error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(held(&path, &mut lock)),
            Err(error) => return Err(explain(&name, "locked", &error.into())),
        }
        // For the message above only: the lock itself is the kernel's, and goes with the process.
        let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.map_err(|error| explain(&path, "written to", &error))?;
        Ok(DataDir { path, _lock: lock })
    }
}

fn held(path: &Path, lock: &mut File) -> String {
    let mut pid = String::new();
    let who = match lock.take(20).read_to_string(&mut pid) {
        Ok(_) if !pid.trim().is_empty() => format!("process {}", pid.trim()),
        _ => "another process".to_owned(),
    };
    format!("{} is in use by {who}: stop that server, or choose another directory with --data", path.display())
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As the umask says.
    Public,
    /// Only the server's own user: keys.
    Private,
}

/// A small file's content; `None` if it is not there.
///
/// # Errors
/// In one sentence.
#[allow(clippy::disallowed_methods, reason = "before there is a reactor whose disk could do it")]
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{} could not be read: {error}", path.display())),
    }
}

/// Whether a directory is there and not empty.
///
/// # Errors
/// In one sentence.
#[allow(clippy::disallowed_methods, reason = "before there is a reactor whose disk could do it")]
pub fn has_entries(path: &Path) -> Result<bool, String> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("{} could not be read: {error}", path.display())),
    }
}

/// Replaces a small file, atomically and durably; makes its directory.
///
/// # Errors
/// In one sentence.
#[allow(clippy::disallowed_methods, reason = "before there is a reactor whose disk could do it")]
pub fn write(path: &Path, content: &[u8], mode: Mode) -> Result<(), String> {
    let bits = match mode {
        Mode::Public => 0o644,
        Mode::Private => 0o600,
    };
    let written = (|| {
        let parent = path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(bits).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        // The name is durable only with its directory.
        File::open(parent)?.sync_all()
    })();
    written.map_err(|error: io::Error| explain(path, "written", &error))
}

/// Removes a file if it is there.
///
/// # Errors
/// In one sentence.
#[allow(clippy::disallowed_methods, reason = "before there is a reactor whose disk could do it")]
pub fn remove(path: &Path) -> Result<(), String> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{} could not be removed: {error}", path.display())),
    }
}

fn explain(path: &Path, action: &str, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => format!(
            "the data directory {path} could not be {action}: its file system is read-only; mount it writable or \
             choose another directory with --data"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "the data directory {path} could not be {action}: this user lacks the permission; change its owner or \
             mode, or choose another directory with --data"
        ),
        io::ErrorKind::StorageFull => {
            format!("the data directory {path} could not be {action}: no space left on the device; free some")
        }
        _ => format!("the data directory {path} could not be {action}: {error}; choose another with --data"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second server is told who has the directory; when the first is gone it may have it.
    #[test]
    fn one_server_per_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("new/data");
        let first = DataDir::take(&path).unwrap();
        let error = DataDir::take(&path).unwrap_err();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        DataDir::take(&path).unwrap();
    }

    /// A directory that cannot be made or written to is named, with what to do.
    #[test]
    fn unusable_directories() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        #[allow(clippy::disallowed_methods)]
        std::fs::write(&file, b"x").unwrap();
        // procfs refuses everybody, root included.
        for path in [file.join("data"), "/proc/ringlog-data".into()] {
            let error = DataDir::take(&path).unwrap_err();
            assert!(error.contains("--data") && error.contains(&*path.display().to_string()), "{error}");
        }
        for kind in [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied] {
            let text = explain(Path::new("/data"), "written to", &kind.into());
            assert!(text.contains("/data") && text.contains("--data"), "{text}");
        }
    }
}
