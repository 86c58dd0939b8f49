//! What of the machine's storage is in use, what was refused, and what an operator can do about it.
//!
//! Looked at once, at start-up, by whoever opens the disk.

use std::{
    fmt::{Display, Formatter},
    io,
    path::Path,
};

use rustix::{
    fs::{OFlags, major, minor},
    io::Errno,
};

use super::{
    buffer::Buffer,
    disk::{DiskOptions, open_file},
    storage_thread::write_blocking,
    uring::Durability,
};
use crate::{config::DurableForm, limits::BLOCK_BYTES};

/// What is in use; `Display` gives one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageReport {
    /// Reads, writes and syncs go through io_uring; else through a thread per reactor.
    pub io_uring: bool,
    /// Writes bypass the page cache.
    pub direct_io: bool,
    /// How an append is made durable; `Auto`: by what turns out to be faster while it runs.
    pub durable_form: DurableForm,
    /// Name of the file system, if it is a well-known one.
    pub file_system: Option<&'static str>,
    /// Whether the device has a volatile write cache, so that durability costs a flush; `None` if the
    /// kernel does not say.
    pub volatile_cache: Option<bool>,
    /// Whether the device can write through its cache (FUA), so that RWF_DSYNC needs no flush of its own.
    pub fua: Option<bool>,
    /// One line for each thing that was asked for and refused: what it is, what it means, what to do.
    pub notes: Vec<String>,
}

impl Display for StorageReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let path = if self.io_uring { "io_uring" } else { "storage thread" };
        let cache = if self.direct_io { "O_DIRECT" } else { "page cache" };
        let form = match self.durable_form {
            DurableForm::Dsync => "RWF_DSYNC",
            DurableForm::Auto => "RWF_DSYNC or write + fdatasync, as measured",
            DurableForm::Linked => "write + fdatasync",
        };
        let device = match (self.volatile_cache, self.fua) {
            (None, _) => "device unknown",
            (Some(false), _) => "device without volatile cache",
            (Some(true), Some(true)) => "device with volatile cache and FUA",
            (Some(true), _) => "device with volatile cache, flushed for each append",
        };
        write!(f, "{path}, {cache}, {form}, {}, {device}", self.file_system.unwrap_or("unknown file system"))
    }
}

/// Puts together what is in use; `refused` is why there is no ring although one was asked for.
pub(super) fn describe(
    root: &Path,
    options: DiskOptions,
    ring: bool,
    refused: Option<io::Error>,
    direct: bool,
) -> StorageReport {
    let file_system = file_system(root);
    let mut notes = Vec::new();
    if let Some(error) = refused {
        notes.push(ring_note(&error, disabled_setting().as_deref()));
    }
    if options.direct_io && !direct {
        notes.push(direct_note(root, file_system));
    }
    if file_system == Some("tmpfs") {
        notes.push(format!(
            "{} is in memory (tmpfs): nothing in it survives a restart of the machine; point --data to a disk",
            root.display()
        ));
    }
    let volatile_cache = queue_setting(root, "write_cache").map(|value| value != "write through");
    let fua = queue_setting(root, "fua").map(|value| value == "1");
    let durable_form = choose(options.durable_form, ring, volatile_cache, fua);
    StorageReport { io_uring: ring, direct_io: direct, durable_form, file_system, volatile_cache, fua, notes }
}

/// RWF_DSYNC where the device makes a write durable by itself, or where a thread of ours waits for the flush.
///
/// Elsewhere its flush waits in a kernel worker that is bound to the core of the disk's interrupt. Measured on two
/// cores, 4 KiB, volatile cache without FUA, p50 (p99) against the floor: quiet 0.75 to 0.89, linked 0.84 to
/// 0.99; with a compiler on the interrupt's core 3,000 µs (8,000), linked 101 µs (400). The linked flush runs in a worker that
/// may use any core.
fn choose(asked: DurableForm, ring: bool, volatile_cache: Option<bool>, fua: Option<bool>) -> DurableForm {
    let flushes = volatile_cache != Some(false) && fua != Some(true);
    match asked {
        DurableForm::Auto if ring && flushes => DurableForm::Auto,
        DurableForm::Auto => DurableForm::Dsync,
        asked => asked,
    }
}

/// Tries a direct, durable write in `root`. False where the file system refuses it.
///
/// # Errors
/// When nothing can be made in `root` at all (read-only, no permission).
pub(super) fn takes_direct_writes(root: &Path) -> io::Result<bool> {
    let name = format!(".probe-{}-{:016x}.tmp", std::process::id(), random());
    let path = root.join(name);
    let file = match open_file(&path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, true) {
        Ok(file) => file,
        // Some file systems make the file before they refuse the flag.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            remove(&path);
            return Ok(false);
        }
        // A full disk says nothing about O_DIRECT; the node starts, reads, and refuses writes.
        Err(error) => return if is_full(&error) { Ok(true) } else { Err(named(root, &error)) },
    };
    remove(&path);
    let block = [Buffer::zeroed(BLOCK_BYTES).freeze_padded()];
    match write_blocking(&file, 0, &block, Durability::Dsync) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) if is_full(&error) => Ok(true),
        Err(error) => Err(named(root, &error)),
    }
}

#[allow(clippy::disallowed_methods, reason = "not random for the simulator: a name for one moment")]
fn random() -> u64 {
    fastrand::u64(..)
}

#[allow(clippy::disallowed_methods, reason = "at start-up, before the reactor serves")]
fn remove(path: &Path) {
    // If it stays, its name says what it was.
    drop(std::fs::remove_file(path));
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn named(root: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{} cannot be written to: {error}", root.display()))
}

/// `disabled` is the value of `kernel.io_uring_disabled`.
fn ring_note(error: &io::Error, disabled: Option<&str>) -> String {
    let (what, remedy) = match (Errno::from_io_error(error), disabled) {
        (Some(Errno::PERM | Errno::ACCESS), Some("2")) => {
            ("is disabled on this host", "set sysctl kernel.io_uring_disabled=0")
        }
        (Some(Errno::PERM | Errno::ACCESS), Some("1")) => (
            "is disabled on this host for ordinary users",
            "add this user to the group of sysctl kernel.io_uring_group, or set kernel.io_uring_disabled=0",
        ),
        (Some(Errno::PERM | Errno::ACCESS), _) => (
            "is forbidden, most likely by a container's seccomp profile",
            "allow the calls io_uring_setup, io_uring_enter and io_uring_register in it",
        ),
        (Some(Errno::NOSYS), _) => {
            ("does not exist in this kernel or is hidden by a sandbox", "run Linux 5.10 or newer, or allow it")
        }
        (Some(Errno::NOMEM), _) => ("was refused for lack of lockable memory", "raise the memlock limit (ulimit -l)"),
        _ if error.kind() == io::ErrorKind::Unsupported => ("is too old in this kernel", "run Linux 5.10 or newer"),
        _ => ("was refused", "see the error"),
    };
    format!(
        "io_uring {what} ({error}): a storage thread per reactor takes over, as durable, with more latency and CPU; \
         {remedy}, or silence this with io_uring = \"off\""
    )
}

fn direct_note(root: &Path, file_system: Option<&str>) -> String {
    format!(
        "O_DIRECT is refused by the file system of {} ({}): appends go through the page cache, as durable, with more \
         latency and CPU; use ext4 or xfs, or silence this with direct_io = \"off\"",
        root.display(),
        file_system.unwrap_or("of unknown type")
    )
}

fn disabled_setting() -> Option<String> {
    setting(Path::new("/proc/sys/kernel/io_uring_disabled"))
}

/// A setting of the block device below `root`; a partition has its disk's.
fn queue_setting(root: &Path, name: &str) -> Option<String> {
    let device = rustix::fs::stat(root).ok()?.st_dev;
    let block = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let own = setting(&Path::new(&block).join("queue").join(name));
    own.or_else(|| setting(&Path::new(&block).join("../queue").join(name)))
}

#[allow(clippy::disallowed_methods, reason = "at start-up, before the reactor serves")]
fn setting(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// By the magic numbers of statfs(2).
fn file_system(root: &Path) -> Option<&'static str> {
    match rustix::fs::statfs(root).ok()?.f_type as u32 {
        0xef53 => Some("ext4"),
        0x5846_5342 => Some("xfs"),
        0x9123_683e => Some("btrfs"),
        0x0102_1994 => Some("tmpfs"),
        0x794c_7630 => Some("overlayfs"),
        0x2fc1_2fc1 => Some("zfs"),
        0x6969 => Some("nfs"),
        0x6573_5546 => Some("fuse"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(errno: Errno, disabled: Option<&str>) -> String {
        ring_note(&io::Error::from(errno), disabled)
    }

    /// Each refusal is told apart, and its line says what to do.
    #[test]
    fn refusals_are_worded() {
        assert!(note(Errno::PERM, Some("2")).contains("kernel.io_uring_disabled=0"));
        assert!(note(Errno::PERM, Some("1")).contains("kernel.io_uring_group"));
        assert!(note(Errno::PERM, Some("0")).contains("seccomp"));
        assert!(note(Errno::PERM, None).contains("seccomp"));
        assert!(note(Errno::NOSYS, None).contains("sandbox"));
        assert!(note(Errno::NOMEM, None).contains("ulimit -l"));
        let old = io::Error::new(io::ErrorKind::Unsupported, "no WRITEV");
        assert!(ring_note(&old, None).contains("Linux 5.10"));
        for errno in [Errno::PERM, Errno::NOSYS, Errno::NOMEM, Errno::MFILE] {
            let line = note(errno, None);
            assert!(line.contains("a storage thread per reactor takes over") && !line.contains('\n'), "{line}");
        }
    }

    /// Only a ring over a cache that has to be flushed leaves a choice; what was asked for is obeyed.
    #[test]
    fn form_follows_the_device() {
        let auto = |ring, cache, fua| choose(DurableForm::Auto, ring, cache, fua);
        assert_eq!(auto(true, Some(true), Some(false)), DurableForm::Auto);
        assert_eq!(auto(true, None, None), DurableForm::Auto);
        assert_eq!(auto(true, Some(true), Some(true)), DurableForm::Dsync);
        assert_eq!(auto(true, Some(false), Some(false)), DurableForm::Dsync);
        assert_eq!(auto(false, Some(true), Some(false)), DurableForm::Dsync);
        assert_eq!(choose(DurableForm::Linked, false, Some(false), None), DurableForm::Linked);
        assert_eq!(choose(DurableForm::Dsync, true, Some(true), None), DurableForm::Dsync);
    }

    /// A directory that cannot be written to is an error that names it; nothing is left in one that can.
    #[test]
    fn probe_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        takes_direct_writes(dir.path()).unwrap();
        assert_eq!(super::super::namespace::list(dir.path()).unwrap(), []);
        let error = takes_direct_writes(Path::new("/proc")).unwrap_err();
        assert!(error.to_string().contains("/proc"), "{error}");
    }
}
