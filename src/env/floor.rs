//! The bare device with the least software around it: what a durable append costs here at best.
//!
//! `ringlog bench --floor` measures it in the same run as the server, so that a result is a ratio.
//! It blocks the calling thread; no server thread uses it.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustix::fs::OFlags;

use super::{
    buffer::Buffer,
    disk::{check_written, open_file},
    storage_thread::write_blocking,
    uring::Durability,
};
use crate::limits::BLOCK_BYTES;

/// Size of the file that is written round and round.
const FILE_BYTES: u64 = 64 << 20;

/// A zero-written file, and durable appends into it by one `pwritev2(O_DIRECT, RWF_DSYNC)` each.
#[derive(Debug)]
pub struct DeviceFloor {
    fd: OwnedFd,
    path: PathBuf,
    position: u64,
    data: [Bytes; 1],
    direct: bool,
}

impl DeviceFloor {
    /// Makes the file in `dir`. An append will write `bytes`, rounded up to whole blocks.
    ///
    /// # Errors
    /// The file system's; `InvalidInput` if `bytes` is 0 or more than the file is long (64 MiB).
    pub fn new(dir: &Path, bytes: usize) -> io::Result<DeviceFloor> {
        let padded = bytes.next_multiple_of(BLOCK_BYTES);
        if bytes == 0 || padded as u64 > FILE_BYTES {
            let text = format!("the floor of {bytes} bytes cannot be measured, use 1 to {FILE_BYTES}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let path = dir.join(format!("floor-{}-{:016x}.tmp", std::process::id(), random()));
        let create = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let (fd, direct) = match open_file(&path, create, true) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                // Some file systems make the file before they refuse the flag.
                remove(&path);
                (open_file(&path, create, false)?, false)
            }
            opened => (opened?, true),
        };
        let mut data = Buffer::zeroed(padded);
        data.bytes_mut().fill(0xa5);
        let mut floor = DeviceFloor { fd, path, position: 0, data: [data.freeze_padded()], direct };
        floor.fill()?;
        Ok(floor)
    }

    fn fill(&mut self) -> io::Result<()> {
        let zeros = [Buffer::zeroed(1 << 20).freeze_padded()];
        for position in (0..FILE_BYTES).step_by(zeros[0].len()) {
            match write_blocking(&self.fd, position, &zeros, Durability::Later) {
                // Some file systems take O_DIRECT when they open a file, and refuse it here.
                Err(error) if self.direct && error.kind() == io::ErrorKind::InvalidInput => {
                    self.fd = open_file(&self.path, OFlags::RDWR, false)?;
                    self.direct = false;
                    return self.fill();
                }
                written => check_written(written?, zeros[0].len(), position)?,
            }
        }
        rustix::fs::fsync(&self.fd)?;
        Ok(())
    }

    /// Appends once, durably, and says how long it took. Blocks.
    ///
    /// # Errors
    /// The device's.
    pub fn append_once(&mut self) -> io::Result<Duration> {
        let bytes = self.data[0].len() as u64;
        if self.position + bytes > FILE_BYTES {
            self.position = 0;
        }
        let started = now();
        let durability = Durability::Dsync;
        let written = write_blocking(&self.fd, self.position, &self.data, durability)?;
        let elapsed = started.elapsed();
        check_written(written, bytes as usize, self.position)?;
        self.position += bytes;
        Ok(elapsed)
    }

    /// Whether the page cache is bypassed; false where the file system refuses O_DIRECT.
    pub fn is_direct(&self) -> bool {
        self.direct
    }
}

impl Drop for DeviceFloor {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

#[allow(clippy::disallowed_methods, reason = "this measures, outside of reactors")]
fn remove(path: &Path) {
    // Nobody can be told; the name says that it is temporary.
    drop(std::fs::remove_file(path));
}

#[allow(clippy::disallowed_methods, reason = "this measures, outside of reactors")]
fn now() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods, reason = "only a name")]
fn random() -> u64 {
    fastrand::u64(..)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends go round in the file, which keeps its size and is gone at the end.
    #[test]
    fn goes_round_and_cleans_up() {
        for dir in [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap()] {
            let mut floor = DeviceFloor::new(dir.path(), (20 << 20) + 1).unwrap();
            let bytes = (20 << 20) + BLOCK_BYTES as u64;
            for position in [bytes, 2 * bytes, 3 * bytes, bytes] {
                assert!(floor.append_once().unwrap() > Duration::ZERO);
                assert_eq!(floor.position, position);
            }
            assert_eq!(rustix::fs::fstat(&floor.fd).unwrap().st_size as u64, FILE_BYTES);
            drop(floor);
            assert!(super::super::namespace::list(dir.path()).unwrap().is_empty());
        }
    }

    /// Sizes that cannot be measured are refused.
    #[test]
    fn sizes() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [0, FILE_BYTES as usize + 1] {
            assert_eq!(DeviceFloor::new(dir.path(), bytes).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
