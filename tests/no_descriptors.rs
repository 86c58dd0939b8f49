//! A disk in a process that has no file descriptors left. In a process of its own, whose limit it sets.

#![allow(clippy::disallowed_methods, reason = "tests use real files")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs::File as StdFile, os::fd::AsRawFd, path::Path, time::Duration};

use bytes::Bytes;
use ringlog::{
    env::{
        self, Disk, File, OpenMode,
        buffer::Buffer,
        disk::{DiskOptions, RealDisk},
        real::RealEnv,
        runtime::block_on,
    },
    limits::BLOCK_BYTES,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What finds no descriptor tries again until there is one; a file that could be opened by half is made once.
#[test]
fn opens_wait_for_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (disk, _) = RealDisk::open(dir.path(), DiskOptions::default()).unwrap();
        disk.write_file(Path::new("small"), Bytes::from_static(b"x")).await.unwrap();
        let before = getrlimit(Resource::Nofile);
        let lowest_free = StdFile::open(dir.path()).unwrap().as_raw_fd() as u64;
        let limit = |current| setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..before }).unwrap();
        // None at all, then one, which is not enough for a file that is appended to, then enough.
        limit(lowest_free);
        let work = async {
            let file = disk.open(Path::new("file"), OpenMode::Create).await.unwrap();
            let block = Buffer::zeroed(BLOCK_BYTES).freeze_padded();
            file.append_durable(0, vec![block]).await.unwrap();
            disk.write_file(Path::new("small"), Bytes::from_static(b"y")).await.unwrap();
            assert_eq!(disk.read_file(Path::new("small")).await.unwrap(), &b"y"[..]);
            disk.sync_dir(Path::new("")).await.unwrap();
            assert_eq!(disk.list(Path::new("")).await.unwrap().len(), 2);
        };
        let relief = async {
            for current in [lowest_free + 1, before.current.unwrap_or(1_024)] {
                env::sleep::<RealEnv>(Duration::from_millis(30)).await;
                limit(current);
            }
        };
        tokio::join!(work, relief);
    });
}
