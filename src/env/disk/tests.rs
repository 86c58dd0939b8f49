//! Real files on a real disk, through the ring and through the thread, in each form.

use std::{future::Future, io, path::Path};

use bytes::Bytes;
use proptest::prelude::*;
use tokio::task::LocalSet;

use super::*;
use crate::env::namespace;

fn on_reactor<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

/// Every way to reach the disk.
fn all_options() -> Vec<DiskOptions> {
    let mut all = Vec::new();
    for io_uring in [true, false] {
        for direct_io in [true, false] {
            for durable_form in [DurableForm::Dsync, DurableForm::Linked] {
                all.push(DiskOptions { io_uring, direct_io, durable_form });
            }
        }
    }
    all
}

/// Runs `test` on a fresh disk for each way.
fn on_each<F: Future<Output = ()>>(test: impl Fn(RealDisk) -> F) {
    for options in all_options() {
        let dir = tempfile::tempdir().unwrap();
        on_reactor(async {
            let (disk, report) = RealDisk::open(dir.path(), options).unwrap();
            assert_eq!(disk.shared.ring.is_some(), report.io_uring);
            assert_eq!(report.durable_form, options.durable_form);
            assert!(options.io_uring || !report.io_uring);
            assert!(options.direct_io || !report.direct_io);
            test(disk).await;
        });
    }
}

fn blocks(byte: u8, count: usize) -> Bytes {
    let mut buffer = Buffer::zeroed(count * BLOCK_BYTES);
    buffer.bytes_mut().fill(byte);
    buffer.freeze_padded()
}

/// Descriptors of this process.
fn descriptors() -> usize {
    namespace::list(Path::new("/proc/self/fd")).unwrap().len()
}

/// A file that is only appended to has one descriptor, and a second one from its first read on, whatever its name is by then.
#[test]
fn descriptors_are_few() {
    on_each(|disk| async move {
        let before = descriptors();
        let file = disk.open(Path::new("a"), OpenMode::Create).await.unwrap();
        file.append_durable(0, vec![blocks(1, 2)]).await.unwrap();
        file.sync().await.unwrap();
        file.truncate(4096).await.unwrap();
        file.will_need(0, 4096);
        assert_eq!((file.bytes().await.unwrap(), descriptors()), (4096, before + 1));
        disk.rename(Path::new("a"), Path::new("b")).await.unwrap();
        for _ in 0..2 {
            assert_eq!(file.read_at(1, 3).await.unwrap(), &[1; 3][..]);
            assert_eq!(descriptors(), before + 2);
        }
        let reader = disk.open(Path::new("b"), OpenMode::Read).await.unwrap();
        assert_eq!(descriptors(), before + 3);
        drop((file, reader));
        disk.sync_dir(Path::new("")).await.unwrap();
        assert_eq!(descriptors(), before);
    });
}

/// What is appended durably is read back, by block and across blocks, and by a second handle.
#[test]
fn appends_are_read_back() {
    on_each(|disk| async move {
        let path = Path::new("file");
        let file = disk.open(path, OpenMode::Create).await.unwrap();
        file.append_durable(0, vec![blocks(1, 1)]).await.unwrap();
        file.append_durable(4096, vec![blocks(2, 2), blocks(3, 1)]).await.unwrap();
        file.append_durable(16_384, vec![]).await.unwrap();
        assert_eq!(file.bytes().await.unwrap(), 16_384);
        let part = file.read_at(4_090, 12).await.unwrap();
        assert_eq!(part, [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2][..]);
        let other = disk.open(path, OpenMode::Read).await.unwrap();
        let all = other.read_at(0, 100_000).await.unwrap();
        assert_eq!(all, [blocks(1, 1), blocks(2, 2), blocks(3, 1)].concat());
        assert!(other.read_at(16_384, 1).await.unwrap().is_empty());
        assert!(other.read_at(1 << 40, 1).await.unwrap().is_empty());
        assert!(other.read_at(0, 0).await.unwrap().is_empty());
        // A block that was cached by a read is seen anew after it was written again.
        file.append_durable(4096, vec![blocks(9, 1)]).await.unwrap();
        assert_eq!(other.read_at(4096, 4097).await.unwrap(), [&[9; 4096][..], &[2]].concat());
        file.will_need(0, 16_384);
        file.will_need(1 << 40, u64::MAX);
    });
}

/// Modes fail as they say, and a file that is open for reading refuses writes.
#[test]
fn modes() {
    on_each(|disk| async move {
        let path = Path::new("file");
        for mode in [OpenMode::Read, OpenMode::Append] {
            assert_eq!(disk.open(path, mode).await.err().unwrap().kind(), io::ErrorKind::NotFound);
        }
        drop(disk.open(path, OpenMode::Create).await.unwrap());
        let error = disk.open(path, OpenMode::Create).await.err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        drop(disk.open(path, OpenMode::Append).await.unwrap());
        let reader = disk.open(path, OpenMode::Read).await.unwrap();
        let refused = reader.append_durable(0, vec![blocks(1, 1)]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(reader.truncate(0).await.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        reader.sync().await.unwrap();
        let much = reader.read_at(0, TRANSFER_BYTES_MAX + 1).await.unwrap_err();
        assert_eq!(much.kind(), io::ErrorKind::InvalidInput);
    });
}

/// More buffers than one call takes are still one write; truncation cuts and extends.
#[test]
fn many_buffers_and_truncation() {
    on_each(|disk| async move {
        let file = disk.open(Path::new("file"), OpenMode::Create).await.unwrap();
        let buffers: Vec<Bytes> = (0..BUFFERS_MAX + 10).map(|i| blocks(i as u8, 1)).collect();
        file.append_durable(0, buffers.clone()).await.unwrap();
        assert_eq!(file.read_at(0, buffers.len() * BLOCK_BYTES).await.unwrap(), buffers.concat());
        file.write_at(0, vec![blocks(77, 3)]).await.unwrap();
        file.truncate(10_000).await.unwrap();
        file.sync().await.unwrap();
        assert_eq!(file.bytes().await.unwrap(), 10_000);
        assert_eq!(file.read_at(0, 20_000).await.unwrap(), vec![77; 10_000]);
        file.truncate(12_288).await.unwrap();
        assert_eq!(file.read_at(9_999, 20_000).await.unwrap(), [&[77][..], &[0; 2_288]].concat());
    });
}

/// Directories, small files, renames, removals and maps.
#[test]
fn names() {
    on_each(|disk| async move {
        let deep = Path::new("a/b/c");
        disk.create_dir_all(deep).await.unwrap();
        disk.create_dir_all(deep).await.unwrap();
        assert_eq!(disk.read_file(&deep.join("x")).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.write_file(&deep.join("x"), Bytes::from_static(b"one")).await.unwrap();
        disk.write_file(&deep.join("x"), Bytes::from_static(b"three")).await.unwrap();
        assert_eq!(disk.read_file(&deep.join("x")).await.unwrap(), b"three"[..]);
        disk.write_file(&deep.join("w"), Bytes::new()).await.unwrap();
        disk.rename(&deep.join("w"), &deep.join("z")).await.unwrap();
        disk.create_dir_all(&deep.join("y")).await.unwrap();
        disk.sync_dir(deep).await.unwrap();
        let entry = |name: &str, bytes, is_dir| DirEntry { name: name.into(), bytes, is_dir };
        let expected = [entry("x", 5, false), entry("y", 0, true), entry("z", 0, false)];
        assert_eq!(disk.list(deep).await.unwrap(), expected);
        disk.remove(&deep.join("x")).await.unwrap();
        assert_eq!(disk.remove(&deep.join("x")).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.remove_dir_all(Path::new("a/b")).await.unwrap();
        assert_eq!(disk.list(Path::new("a")).await.unwrap(), []);
        assert_eq!(disk.list(deep).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(disk.free_bytes(Path::new("a")).await.unwrap() > 0);
    });
}

/// A directory that is removed has another name before any of its files goes; what a crash has left of an earlier one is not in the way.
#[test]
fn directories_go_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (path, aside) = (dir.path().join("7"), dir.path().join("7.gone"));
    for name in ["7", "7.gone"] {
        namespace::create_dir_all(&dir.path().join(name).join("deep")).unwrap();
    }
    assert!(super::super::is_half_removed(&aside) && !super::super::is_half_removed(&path));
    namespace::remove_dir_all(&path).unwrap();
    assert_eq!(namespace::list(dir.path()).unwrap(), []);
    namespace::create_dir_all(&aside).unwrap();
    namespace::remove_dir_all(&aside).unwrap();
    assert_eq!(namespace::list(dir.path()).unwrap(), []);
    assert_eq!(namespace::remove_dir_all(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
}

/// A write that fails half-way leaves the old content, and no temporary file.
#[test]
fn write_file_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    namespace::write_file(&path, b"old").unwrap();
    // The name is taken by a directory that cannot be replaced.
    let blocked = dir.path().join("blocked");
    namespace::create_dir_all(&blocked.join("child")).unwrap();
    assert!(namespace::write_file(&blocked, b"new").is_err());
    assert_eq!(namespace::read_file(&path).unwrap(), b"old"[..]);
    let names: Vec<_> = namespace::list(dir.path()).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [Path::new("blocked"), Path::new("state")]);
    assert_eq!(namespace::write_file(Path::new("/"), b"").unwrap_err().kind(), io::ErrorKind::InvalidInput);
}

/// A future that is dropped after its first poll leaves a write that happens as a whole or not at all, and
/// the file goes on working.
#[test]
fn dropped_futures() {
    on_each(|disk| async move {
        let file = disk.open(Path::new("file"), OpenMode::Create).await.unwrap();
        file.append_durable(0, vec![blocks(0, 16)]).await.unwrap();
        for round in 1..=20 {
            let append = file.append_durable(0, vec![blocks(round, 8), blocks(round, 8)]);
            let _ = futures_util::poll!(Box::pin(append));
            drop(futures_util::poll!(Box::pin(file.read_at(0, 4096))));
            file.sync().await.unwrap();
        }
        file.append_durable(0, vec![blocks(99, 16)]).await.unwrap();
        assert_eq!(file.read_at(0, 1 << 20).await.unwrap(), blocks(99, 16));
    });
}

/// The last handle goes while jobs are queued: they have all run by then.
#[test]
fn closing_waits_for_queued_jobs() {
    let dir = tempfile::tempdir().unwrap();
    for options in all_options() {
        on_reactor(async {
            let (disk, _) = RealDisk::open(dir.path(), options).unwrap();
            for i in 0..20 {
                let name = format!("file-{i}");
                let write = disk.write_file(Path::new(&name), Bytes::from_static(b"x"));
                assert!(futures_util::poll!(Box::pin(write)).is_pending());
            }
        });
        assert_eq!(namespace::list(dir.path()).unwrap().len(), 20);
        for entry in namespace::list(dir.path()).unwrap() {
            namespace::remove(&dir.path().join(entry.name)).unwrap();
        }
    }
}

/// A full device is `StorageFull` for each kind of write: on a file system of 256 KiB if we may mount one, and on
/// /dev/full, which fails each write, in any case.
#[test]
fn full_device() {
    for options in all_options() {
        on_reactor(async {
            // No O_DIRECT: a device that is not a disk.
            let (disk, _) = RealDisk::open(Path::new("/dev"), DiskOptions { direct_io: false, ..options }).unwrap();
            let file = disk.open(Path::new("full"), OpenMode::Append).await.unwrap();
            let error = file.append_durable(0, vec![blocks(1, 1)]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            let error = file.write_at(0, vec![blocks(1, 1)]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        });
        if let Some(small) = Mounted::new("tmpfs", "size=256k") {
            on_reactor(fill_up(small.0.path(), options));
        }
    }
}

/// A file system in memory; only root may mount one.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(kind: &str, options: &str) -> Option<Mounted> {
        let dir = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("mount");
        command.args(["-t", kind, "-o", options, "ringlog-test"]).arg(dir.path());
        let mounted = command.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Mounted(dir))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(self.0.path()).output());
    }
}

async fn fill_up(dir: &Path, options: DiskOptions) {
    let (disk, _) = RealDisk::open(dir, options).unwrap();
    let file = disk.open(Path::new("file"), OpenMode::Create).await.unwrap();
    // Part of it fits: the rest's error is the one that arrives.
    let error = file.write_at(0, vec![blocks(1, 50), blocks(2, 50)]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let error = disk.write_file(Path::new("small"), Bytes::from_static(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.free_bytes(Path::new("file")).await.unwrap(), 0);
    // Reads go on, the disk opens again, and space that returns is used.
    assert_eq!(file.read_at(0, 4096).await.unwrap(), blocks(1, 1));
    let (again, _) = RealDisk::open(dir, options).unwrap();
    assert_eq!(again.list(Path::new("")).await.unwrap().len(), 1);
    file.truncate(0).await.unwrap();
    file.append_durable(0, vec![blocks(3, 2)]).await.unwrap();
}

/// On tmpfs everything works, and a line warns that it is memory.
#[test]
fn memory_file_system() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { panic!("Linux has /dev/shm") };
    on_reactor(async {
        let (disk, report) = RealDisk::open(dir.path(), DiskOptions::default()).unwrap();
        assert_eq!(report.file_system, Some("tmpfs"));
        assert!(report.notes.iter().any(|note| note.contains("in memory")), "{report:?}");
        // Kernels before 6.6 refuse O_DIRECT here; then a line says so.
        assert_eq!(report.direct_io, !report.notes.iter().any(|note| note.contains("O_DIRECT is refused")));
        let file = disk.open(Path::new("file"), OpenMode::Create).await.unwrap();
        file.append_durable(0, vec![blocks(5, 2)]).await.unwrap();
        assert_eq!(file.read_at(1, 10_000).await.unwrap(), vec![5; 8_191]);
    });
}

/// A file system without O_DIRECT (ramfs, if we may mount one) is found by the probe, reported in a line that says
/// what to do, and everything works through the page cache.
#[test]
fn direct_writes_refused() {
    // procfs has no O_DIRECT either, but takes no new files.
    let refused = open_file(Path::new("/proc/self/comm"), OFlags::RDWR, true).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    let Some(mounted) = Mounted::new("ramfs", "mode=700") else { return };
    for io_uring in [true, false] {
        on_reactor(async {
            let options = DiskOptions { io_uring, ..DiskOptions::default() };
            let (disk, report) = RealDisk::open(mounted.0.path(), options).unwrap();
            assert!(!report.direct_io);
            assert!(report.notes.iter().any(|note| note.contains("direct_io = \"off\"")), "{report:?}");
            assert_eq!(disk.list(Path::new("")).await.unwrap(), [], "the probe leaves nothing");
            play(
                disk.clone(),
                vec![
                    Step::Append { block: 1, lengths: vec![2, 1], byte: 7, durable: true },
                    Step::Read { position: 4_000, bytes: 10_000 },
                    Step::Reopen,
                    Step::Append { block: 0, lengths: vec![1], byte: 8, durable: false },
                    Step::Sync,
                    Step::Read { position: 0, bytes: 10_000 },
                ],
            )
            .await;
            disk.remove(Path::new("file")).await.unwrap();
        });
    }
}

/// Too small a write position or an unaligned buffer is a bug of the caller, on every file system.
#[test]
#[should_panic(expected = "writes are whole blocks")]
fn unaligned_writes_are_bugs() {
    let dir = tempfile::tempdir().unwrap();
    on_reactor(async {
        let (disk, _) = RealDisk::open(dir.path(), DiskOptions::default()).unwrap();
        let file = disk.open(Path::new("file"), OpenMode::Create).await.unwrap();
        let _ = file.append_durable(0, vec![Bytes::from_static(b"short")]).await;
    });
}

#[derive(Clone, Debug)]
enum Step {
    Append { block: u64, lengths: Vec<usize>, byte: u8, durable: bool },
    Read { position: u64, bytes: usize },
    Truncate { bytes: u64 },
    Sync,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..24_u64, prop::collection::vec(1..4_usize, 1..4), any::<u8>(), any::<bool>())
            .prop_map(|(block, lengths, byte, durable)| Step::Append { block, lengths, byte, durable }),
        4 => (0..150_000_u64, 0..70_000_usize).prop_map(|(position, bytes)| Step::Read { position, bytes }),
        1 => (0..120_000_u64).prop_map(|bytes| Step::Truncate { bytes }),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
    ]
}

/// What lacks memory or descriptors for a moment is tried again; a sync that lacked them has failed for good.
#[test]
fn tried_again() {
    let dir = tempfile::tempdir().unwrap();
    on_reactor(async {
        let (disk, _) = RealDisk::open(dir.path(), DiskOptions::default()).unwrap();
        for error in [rustix::io::Errno::NOMEM, rustix::io::Errno::MFILE] {
            let tries = Arc::new(std::sync::atomic::AtomicU32::new(0));
            let lacks = |tries: &Arc<std::sync::atomic::AtomicU32>| {
                let tries = Arc::clone(tries);
                move |_: &Path| match tries.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
                    0..3 => Err(io::Error::from(error)),
                    tries => Ok(tries),
                }
            };
            assert_eq!(disk.patiently(Path::new("x"), lacks(&tries)).await.unwrap(), 3);
            let tries = Arc::default();
            let job = lacks(&tries);
            let synced = disk.patiently(Path::new("x"), move |path| job(path).map_err(crate::env::lasting)).await;
            assert_eq!(synced.unwrap_err().to_string(), io::Error::from(error).to_string());
            assert_eq!(tries.load(std::sync::atomic::Ordering::Relaxed), 1);
        }
    });
}

/// A removal that had got as far as the other name when it lacked something is ended by the next one.
#[test]
fn removed_in_two() {
    let dir = tempfile::tempdir().unwrap();
    let (path, aside) = (dir.path().join("7"), dir.path().join("7.gone"));
    namespace::create_dir_all(&aside.join("a")).unwrap();
    namespace::remove_dir_all(&path).unwrap();
    assert!(namespace::list(dir.path()).unwrap().is_empty());
    assert_eq!(namespace::remove_dir_all(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
}

async fn play(disk: RealDisk, steps: Vec<Step>) {
    let path = Path::new("file");
    let mut file = disk.open(path, OpenMode::Create).await.unwrap();
    let mut model: Vec<u8> = Vec::new();
    for step in steps {
        match step {
            Step::Append { block, lengths, byte, durable } => {
                let position = block as usize * BLOCK_BYTES;
                let buffers: Vec<Bytes> = lengths.iter().map(|count| blocks(byte, *count)).collect();
                let end = position + buffers.iter().map(Bytes::len).sum::<usize>();
                model.resize(model.len().max(end), 0);
                model[position..end].fill(byte);
                match durable {
                    true => file.append_durable(position as u64, buffers).await.unwrap(),
                    false => file.write_at(position as u64, buffers).await.unwrap(),
                }
            }
            Step::Read { position, bytes } => {
                let start = model.len().min(position as usize);
                let end = model.len().min(start + bytes);
                let read = file.read_at(position, bytes).await.unwrap();
                assert_eq!(read, model[start..end]);
            }
            Step::Truncate { bytes } => {
                file.truncate(bytes).await.unwrap();
                model.resize(bytes as usize, 0);
            }
            Step::Sync => file.sync().await.unwrap(),
            Step::Reopen => file = disk.open(path, OpenMode::Append).await.unwrap(),
        }
        assert_eq!(file.bytes().await.unwrap(), model.len() as u64);
    }
    assert_eq!(file.read_at(0, model.len() + 1).await.unwrap(), model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// A file is a vector of bytes, whichever way it is reached: random aligned writes, truncations and reopens
    /// against unaligned reads.
    #[test]
    fn file_is_a_vector(steps in prop::collection::vec(step(), 1..25)) {
        for options in all_options() {
            let dir = tempfile::tempdir().unwrap();
            on_reactor(async {
                let (disk, _) = RealDisk::open(dir.path(), options).unwrap();
                play(disk, steps.clone()).await;
            });
        }
    }
}

/// Without O_DIRECT a ring writes nothing: io-wq takes such writes to one file one after the other, and has lost some.
#[test]
fn no_buffered_write_through_the_ring() {
    let dir = tempfile::tempdir().unwrap();
    let options = DiskOptions { direct_io: false, durable_form: DurableForm::Linked, ..DiskOptions::default() };
    on_reactor(async {
        let (disk, report) = RealDisk::open(dir.path(), options).unwrap();
        assert!(report.io_uring && !report.direct_io);
        let file = disk.open(Path::new("file"), OpenMode::Create).await.unwrap();
        let ring = disk.shared.ring.clone().unwrap();
        for number in 0..8_u64 {
            let mut write = Box::pin(file.append_durable(number * 4_096, vec![blocks(1, 1)]));
            assert!(futures_util::poll!(write.as_mut()).is_pending());
            assert_eq!(ring.in_flight(), 0);
            write.await.unwrap();
        }
    });
}
