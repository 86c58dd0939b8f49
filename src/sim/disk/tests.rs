//! The simulated disk does what its promises say.

use super::*;
use crate::env::{buffer::Buffer, runtime::block_on};

fn blocks(byte: u8, count: usize) -> Bytes {
    let mut buffer = Buffer::zeroed(count * BLOCK_BYTES);
    buffer.bytes_mut().fill(byte);
    buffer.freeze_padded()
}

async fn file(disk: &SimDisk) -> SimFile {
    disk.create_dir_all(Path::new("/d")).await.unwrap();
    let file = disk.open(Path::new("/d/f"), OpenMode::Create).await.unwrap();
    disk.sync_dir(Path::new("/d")).await.unwrap();
    file
}

/// Whatever the seed, what was synced survives a crash, and what was not tears at sectors.
#[test]
fn crash_keeps_what_was_synced_and_tears_the_rest() {
    block_on(async {
        let disk = SimDisk::new();
        let file = file(&disk).await;
        file.append_durable(0, vec![blocks(1, 1)]).await.unwrap();
        file.write_at(4096, vec![blocks(2, 1)]).await.unwrap();
        file.sync().await.unwrap();
        file.write_at(8192, vec![blocks(3, 2)]).await.unwrap();
        let mut torn = 0;
        for seed in 0..50 {
            let content = disk.crash(seed).content("/d/f");
            assert!(content[..4096].iter().all(|byte| *byte == 1));
            assert!(content[4096..8192].iter().all(|byte| *byte == 2));
            let mut rest = content[8192..].to_vec();
            rest.resize(8192, 0);
            let sectors: Vec<u8> = rest.chunks(512).map(|sector| sector[0]).collect();
            assert!(rest.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            torn += usize::from(sectors.contains(&0) && sectors.contains(&3));
        }
        assert!(torn > 10, "{torn} of 50");
    });
}

/// Names are lost unless their directory was synced, in some seeds.
#[test]
fn crash_loses_names_that_were_not_synced() {
    block_on(async {
        let disk = SimDisk::new();
        file(&disk).await.append_durable(0, vec![blocks(1, 1)]).await.unwrap();
        disk.rename(Path::new("/d/f"), Path::new("/d/g")).await.unwrap();
        let mut seen = [0, 0];
        for seed in 0..50 {
            let paths = disk.crash(seed).paths();
            assert_eq!(paths.len(), 1);
            seen[usize::from(paths[0] == Path::new("/d/g"))] += 1;
        }
        assert!(seen[0] > 5 && seen[1] > 5, "{seen:?}");
        disk.sync_dir(Path::new("/d")).await.unwrap();
        assert!((0..50).all(|seed| disk.crash(seed).paths() == [PathBuf::from("/d/g")]));
    });
}

/// After a failed sync the next one succeeds and the data is gone.
#[test]
fn failed_sync_loses_data() {
    block_on(async {
        let disk = SimDisk::new();
        let file = file(&disk).await;
        file.write_at(0, vec![blocks(1, 1)]).await.unwrap();
        disk.plant(Fault {
            operation: Operation::Sync,
            path_contains: "f".into(),
            skip: 0,
            times: 1,
            error: io::ErrorKind::Other,
        });
        assert!(file.sync().await.is_err());
        assert!(file.sync().await.is_ok());
        assert!((0..50).all(|seed| disk.crash(seed).content("/d/f").is_empty()));
    });
}

/// A full disk refuses growth, not overwriting, and space that is given back can be used.
#[test]
fn capacity() {
    block_on(async {
        let disk = SimDisk::new();
        let file = file(&disk).await;
        disk.set_capacity(Some(8192));
        file.write_at(0, vec![blocks(1, 2)]).await.unwrap();
        let error = file.write_at(8192, vec![blocks(1, 1)]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        file.append_durable(0, vec![blocks(2, 2)]).await.unwrap();
        file.truncate(4096).await.unwrap();
        assert_eq!(disk.free_bytes(Path::new("/d")).await.unwrap(), 4096);
        file.write_at(4096, vec![blocks(1, 1)]).await.unwrap();
    });
}

/// Without power nothing works, and the crashed copy does not change any more.
#[test]
fn power_off() {
    block_on(async {
        let disk = SimDisk::new();
        let file = file(&disk).await;
        file.append_durable(0, vec![blocks(1, 1)]).await.unwrap();
        let after = disk.crash(1);
        disk.power_off();
        assert!(file.append_durable(4096, vec![blocks(1, 1)]).await.is_err());
        assert_eq!(after.content("/d/f").len(), 4096);
    });
}

/// In a world, operations take its time, each its own: what was begun later may be done sooner; a slow device is slower.
#[test]
fn timed() {
    let runtime = crate::sim::SimRuntime::seeded(1);
    let history = |seed: u64| {
        runtime.block_on(async {
            let world = crate::sim::World::current();
            let times = DiskTimes { base_us: 100, spread_us: 50, stall_one_in: 0, stall_us: 0 };
            let disk = SimDisk::new().timed(&world, seed, times);
            let file = file(&disk).await;
            let order = RefCell::new(Vec::new());
            let append = async |number: u64| {
                let start_us = world.now_us();
                file.append_durable(number * 4096, vec![blocks(1, 1)]).await.unwrap();
                assert!((100..200).contains(&(world.now_us() - start_us)));
                order.borrow_mut().push(number);
            };
            futures_util::future::join_all((0..10).map(append)).await;
            let start_us = world.now_us();
            disk.set_slow(100, 9_000);
            file.sync().await.unwrap();
            assert!((10_000..15_100).contains(&(world.now_us() - start_us)));
            let start_us = world.now_us();
            file.sync().await.unwrap();
            assert!(world.now_us() - start_us < 200, "the slow time is over");
            let start_us = world.now_us();
            disk.delay_names(0, 50_000, 1_000_000);
            file.sync().await.unwrap();
            assert!(world.now_us() - start_us < 200, "it has nothing to do with names");
            disk.rename(Path::new("/d/f"), Path::new("/d/g")).await.unwrap();
            disk.remove(Path::new("/d/g")).await.unwrap();
            assert!((100_000..101_000).contains(&(world.now_us() - start_us)));
            order.into_inner()
        })
    };
    assert!(!history(1).is_sorted());
    assert_eq!(history(1), history(1));
    assert_ne!(history(1), history(2));
}

/// An open file counts until it is dropped, whatever becomes of its name.
#[test]
fn open_files() {
    block_on(async {
        let disk = SimDisk::new();
        let first = file(&disk).await;
        let second = disk.open(Path::new("/d/f"), OpenMode::Read).await.unwrap();
        disk.remove(Path::new("/d/f")).await.unwrap();
        assert_eq!(disk.open_files(), 2);
        drop(first);
        assert_eq!((disk.open_files(), disk.crash(1).open_files()), (1, 0));
        drop(second);
        assert_eq!(disk.open_files(), 0);
    });
}
