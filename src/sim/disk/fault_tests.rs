//! Each fault does what it says, is counted, and does nothing where it was not planted.

use super::*;
use crate::{
    env::{buffer::Buffer, runtime::block_on},
    sim::{SimRuntime, World},
};

const SPARE: &str = "/d/1.spare";
const STORE: &str = "/d/0.store";
const BLOCKS: usize = 8;

fn filled(byte: u8, count: usize) -> Bytes {
    let mut buffer = Buffer::zeroed(count * BLOCK_BYTES);
    buffer.bytes_mut().fill(byte);
    buffer.freeze_padded()
}

/// A segment as the log makes it: zero-written under another name, synced, renamed, with a first block.
async fn segment(disk: &SimDisk) -> SimFile {
    let (spare, store) = (Path::new(SPARE), Path::new(STORE));
    disk.create_dir_all(Path::new("/d")).await.unwrap();
    let file = disk.open(spare, OpenMode::Create).await.unwrap();
    file.write_at(0, vec![filled(0, BLOCKS)]).await.unwrap();
    file.sync().await.unwrap();
    disk.rename(spare, store).await.unwrap();
    disk.sync_dir(Path::new("/d")).await.unwrap();
    file.append_durable(0, vec![filled(1, 1)]).await.unwrap();
    file
}

fn plant(disk: &SimDisk, fault: DiskFault, path: &str) {
    disk.plant_fault(PlantedFault { fault, path_contains: path.into(), chance_ppm: 1_000_000, times: 1 });
}

fn fired(disk: &SimDisk, fault: DiskFault, met: Met) -> u64 {
    disk.fired().get(&(fault.name(), met.name())).copied().unwrap_or(0)
}

/// The first byte of each block.
fn shown(disk: &SimDisk) -> Vec<u8> {
    disk.content(STORE).chunks(BLOCK_BYTES).map(|block| block[0]).collect()
}

/// Each error strikes its operation once, on its files only.
#[test]
fn errors() {
    block_on(async {
        for (fault, met) in [
            (DiskFault::ErrorAppend, Met::StoreAppend),
            (DiskFault::ErrorWrite, Met::SegmentPreparation),
            (DiskFault::ErrorSync, Met::SegmentPreparation),
            (DiskFault::ErrorRead, Met::ConsumeRead),
            (DiskFault::Full, Met::StoreAppend),
        ] {
            let disk = SimDisk::new().with_latency(1);
            let file = segment(&disk).await;
            let act = async || match fault {
                DiskFault::ErrorWrite => file.write_at(4096, vec![filled(2, 1)]).await,
                DiskFault::ErrorSync => file.sync().await,
                DiskFault::ErrorRead => file.read_at(0, 10).await.map(|_| ()),
                _ => file.append_durable(4096, vec![filled(2, 1)]).await,
            };
            plant(&disk, fault, "elsewhere");
            act().await.unwrap();
            assert!(disk.fired().keys().all(|(name, _)| *name == DiskFault::Misordered.name()));
            plant(&disk, fault, ".store");
            let error = act().await.unwrap_err();
            match fault {
                DiskFault::Full => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
                _ => assert_eq!(error.raw_os_error(), Some(5)),
            }
            assert_eq!(fired(&disk, fault, met), 1, "{fault:?}");
            act().await.unwrap();
            plant(&disk, fault, ".store");
            disk.heal();
            act().await.unwrap();
        }
    });
}

/// A failed append has written nothing, a part or all of it; a failed sync loses what it was to cover, and only that.
#[test]
fn what_errors_leave() {
    block_on(async {
        let mut left = BTreeSet::new();
        for seed in 0..40 {
            let disk = SimDisk::new().with_latency(seed);
            let file = segment(&disk).await;
            plant(&disk, DiskFault::ErrorAppend, "");
            file.append_durable(4096, vec![filled(2, 4)]).await.unwrap_err();
            left.insert(shown(&disk).iter().filter(|byte| **byte == 2).count());
        }
        assert!(left.contains(&0) && left.contains(&4) && left.len() > 2, "{left:?}");
        let disk = SimDisk::new();
        let file = segment(&disk).await;
        file.write_at(4096, vec![filled(2, 1)]).await.unwrap();
        disk.hold();
        let append = file.append_durable(8192, vec![filled(3, 1)]);
        let mut append = Box::pin(append);
        assert!(futures_util::poll!(&mut append).is_pending());
        plant(&disk, DiskFault::ErrorSync, "");
        file.sync().await.unwrap_err();
        file.sync().await.unwrap();
        disk.release();
        append.await.unwrap();
        assert!((0..30).all(|seed| shown(&disk.crash(seed))[1..3] == [0, 3]));
    });
}

/// A sync covers what was done when it began: a write that is under way then may be lost.
#[test]
fn a_sync_does_not_cover_what_is_under_way() {
    block_on(async {
        let disk = SimDisk::new();
        let file = segment(&disk).await;
        disk.hold();
        let mut append = Box::pin(file.append_durable(4096, vec![filled(2, 1)]));
        assert!(futures_util::poll!(&mut append).is_pending());
        file.sync().await.unwrap();
        assert!((0..50).any(|seed| shown(&disk.crash(seed))[1] == 0));
        // Its process is killed: the kernel has it all the same, and now a sync covers it.
        drop(append);
        file.sync().await.unwrap();
        assert!((0..50).all(|seed| shown(&disk.crash(seed))[1] == 2));
    });
}

/// Who is lied to believes it until the power fails; an honest sync mends it.
#[test]
fn lying_syncs() {
    block_on(async {
        let disk = SimDisk::new();
        let file = segment(&disk).await;
        plant(&disk, DiskFault::LyingSync, "");
        file.append_durable(4096, vec![filled(2, 1)]).await.unwrap();
        assert_eq!(shown(&disk)[1], 2);
        let lost = (0..60).filter(|seed| !disk.crash(*seed).content(STORE)[4096..8192].iter().all(|byte| *byte == 2));
        assert!(lost.count() > 10);
        assert!(fired(&disk, DiskFault::Torn, Met::StoreAppend) > 10);
        file.sync().await.unwrap();
        assert!((0..60).all(|seed| shown(&disk.crash(seed))[1] == 2));
        file.write_at(8192, vec![filled(3, 1)]).await.unwrap();
        plant(&disk, DiskFault::LyingSync, "");
        file.sync().await.unwrap();
        assert!((0..60).any(|seed| shown(&disk.crash(seed))[2] == 0));
        assert_eq!(fired(&disk, DiskFault::LyingSync, Met::StoreAppend), 1);
        assert_eq!(fired(&disk, DiskFault::LyingSync, Met::SegmentPreparation), 1);
    });
}

/// Wrong bytes in what is written: durable, reported as good, and counted when they are read.
#[test]
fn wrong_bytes_are_written() {
    block_on(async {
        for seed in 0..20 {
            for fault in [DiskFault::BitFlip, DiskFault::ZeroedBlock, DiskFault::StaleBlock] {
                let disk = SimDisk::new().with_latency(seed);
                let file = segment(&disk).await;
                plant(&disk, fault, ".store");
                file.append_durable(0, vec![filled(2, 2), filled(3, 2)]).await.unwrap();
                let good = [filled(2, 2), filled(3, 2), filled(0, 4)].concat();
                let after = disk.crash(seed).content(STORE);
                let wrong: Vec<usize> = (0..good.len()).filter(|at| after[*at] != good[*at]).collect();
                match fault {
                    DiskFault::BitFlip => {
                        assert_eq!(wrong.len(), 1);
                        assert_eq!((after[wrong[0]] ^ good[wrong[0]]).count_ones(), 1);
                    }
                    _ => {
                        assert_eq!((wrong.len(), wrong[0] % BLOCK_BYTES), (BLOCK_BYTES, 0));
                        let stale = u8::from(fault == DiskFault::StaleBlock && wrong[0] == 0);
                        assert!(wrong.iter().all(|at| after[*at] == stale));
                    }
                }
                assert_eq!(fired(&disk, fault, Met::StoreAppend), 1);
                file.read_at(0, 4 * BLOCK_BYTES).await.unwrap();
                assert_eq!(fired(&disk, fault, Met::ConsumeRead), 1);
                file.append_durable(0, vec![filled(4, 4)]).await.unwrap();
                file.read_at(0, 4 * BLOCK_BYTES).await.unwrap();
                assert_eq!(fired(&disk, fault, Met::ConsumeRead), 1, "written anew");
                assert_eq!(shown(&disk)[..4], [4; 4]);
            }
        }
    });
}

/// A misdirected write leaves its own place as it was, and comes to another one, of this file or of one of its kind.
#[test]
fn misdirected_writes() {
    block_on(async {
        let mut elsewhere = [0, 0];
        for seed in 0..40 {
            let disk = SimDisk::new().with_latency(seed);
            let file = segment(&disk).await;
            disk.set_content("/d/9.store", vec![7; 4 * BLOCK_BYTES]);
            disk.set_content("/d/0.index", vec![7; 4 * BLOCK_BYTES]);
            plant(&disk, DiskFault::Misdirected, "");
            file.append_durable(4096, vec![filled(2, 1)]).await.unwrap();
            assert_eq!(shown(&disk)[1], 0);
            let other = disk.content("/d/9.store");
            elsewhere[0] += shown(&disk).iter().filter(|byte| **byte == 2).count();
            elsewhere[1] += other.chunks(BLOCK_BYTES).filter(|block| block[0] == 2).count();
            assert_eq!(disk.content("/d/0.index"), vec![7; 4 * BLOCK_BYTES]);
            assert_eq!(fired(&disk, DiskFault::Misdirected, Met::StoreAppend), 1);
        }
        assert!(elsewhere[0] > 5 && elsewhere[1] > 5 && elsewhere[0] + elsewhere[1] > 30, "{elsewhere:?}");
    });
}

/// Damage at rest changes one written block of a chosen file, for good.
#[test]
fn damage_at_rest() {
    block_on(async {
        for fault in [DiskFault::BitFlip, DiskFault::ZeroedBlock, DiskFault::StaleBlock, DiskFault::Misdirected] {
            let disk = SimDisk::new();
            let file = segment(&disk).await;
            file.append_durable(4096, vec![filled(2, 2)]).await.unwrap();
            file.append_durable(8192, vec![filled(3, 1)]).await.unwrap();
            disk.set_content("/d/0.index", vec![7; 4 * BLOCK_BYTES]);
            assert_eq!(disk.damage_at_rest(fault, |path| path.ends_with("no"), &Cell::new(1)), None);
            let before = disk.content(STORE);
            let dice = Cell::new(3);
            let mut damage = None;
            while damage.is_none() {
                // A block in its own place is no damage.
                damage = disk.damage_at_rest(fault, |path| path.to_string_lossy().ends_with(".store"), &dice);
            }
            let damage = damage.unwrap();
            let after = disk.crash(1).content(STORE);
            assert_eq!(after, disk.content(STORE));
            let wrong: Vec<usize> = (0..after.len()).filter(|at| after[*at] != before[*at]).collect();
            assert_eq!(wrong[0] as u64, damage.position);
            assert_eq!(damage.path, Path::new(STORE));
            let expected = match fault {
                DiskFault::ZeroedBlock => vec![0],
                // Only that block was written over.
                DiskFault::StaleBlock => {
                    assert_eq!(damage.position, 8192);
                    vec![2]
                }
                DiskFault::Misdirected => vec![1, 2, 3],
                _ => {
                    assert_eq!(wrong.len(), 1);
                    vec![after[wrong[0]]]
                }
            };
            assert!(expected.contains(&after[wrong[0]]), "{fault:?}");
            file.read_at(0, 3 * BLOCK_BYTES).await.unwrap();
            assert_eq!(fired(&disk, fault, Met::ConsumeRead), 1);
            disk.reopened();
            disk.read_file(Path::new(STORE)).await.unwrap();
            assert_eq!(fired(&disk, fault, Met::RecoveryRead), 1);
        }
    });
}

/// A full device is counted, and so are slow ones and completions out of order.
#[test]
fn counts_of_conditions() {
    SimRuntime::seeded(1).block_on(async {
        let times = DiskTimes { stall_one_in: 5, ..DiskTimes::default() };
        let disk = SimDisk::new().timed(&World::current(), 1, times);
        let file = segment(&disk).await;
        let appends = || (0..8).map(|at| file.append_durable(at * 4096, vec![filled(1, 1)]));
        disk.set_slow(10, 1_000_000);
        futures_util::future::join_all(appends()).await;
        for fault in [DiskFault::Slow, DiskFault::Stall, DiskFault::Misordered] {
            assert!(fired(&disk, fault, Met::StoreAppend) > 0, "{fault:?}");
        }
        disk.set_capacity(Some(0));
        file.write_at(BLOCKS as u64 * 4096, vec![filled(1, 1)]).await.unwrap_err();
        assert_eq!(fired(&disk, DiskFault::Full, Met::SegmentPreparation), 1);
    });
}

/// The same seed, the same faults at the same places and times; another seed, other ones.
#[test]
fn same_seed_same_faults() {
    let history = |seed: u64| {
        let runtime = SimRuntime::seeded(1);
        runtime.block_on(async {
            let world = World::current();
            let disk = SimDisk::new().timed(&world, seed, DiskTimes::default());
            let file = segment(&disk).await;
            for fault in DiskFault::PLANTABLE {
                let path_contains = ".store".into();
                disk.plant_fault(PlantedFault { fault, path_contains, chance_ppm: 100_000, times: 3 });
            }
            for round in 0..50 {
                let at = round % BLOCKS as u64 * 4096;
                let done = file.append_durable(at, vec![filled(round as u8, 1)]).await.is_ok();
                world.note(&format!("{done}"));
            }
            let crashed = disk.crash(seed);
            (world.trace_hash(), disk.fired(), crashed.content(STORE))
        })
    };
    assert_eq!(history(1), history(1));
    assert_ne!(history(1), history(2));
}

/// Zeros cost nothing, and a crash shares what it leaves: thousands of segments in no time.
#[test]
fn zero_written_segments_are_cheap() {
    block_on(async {
        let disk = SimDisk::new();
        let zeros = filled(0, 256);
        disk.create_dir_all(Path::new("/d")).await.unwrap();
        for number in 0..50 {
            let path = format!("/d/{number}.store");
            let file = disk.open(Path::new(&path), OpenMode::Create).await.unwrap();
            file.write_at(0, vec![zeros.clone()]).await.unwrap();
            file.sync().await.unwrap();
            file.append_durable(0, vec![filled(1, 1)]).await.unwrap();
        }
        disk.sync_dir(Path::new("/d")).await.unwrap();
        let stored = |disk: &SimDisk| {
            let count = |path: PathBuf| disk.device.node(&path).unwrap().borrow().current.stored().len();
            disk.paths().into_iter().map(count).sum::<usize>()
        };
        let crashed = disk.crash(1);
        assert_eq!((stored(&disk), stored(&crashed)), (50, 50));
        assert_eq!(crashed.used_bytes(), 50 << 20);
        let block =
            |disk: &SimDisk| disk.device.node(Path::new("/d/7.store")).unwrap().borrow().current.block(0).cloned();
        assert_eq!(block(&disk).unwrap().as_ptr(), block(&crashed).unwrap().as_ptr(), "shared");
    });
}

/// A broken disk fails each time, also after a crash, on the files and for the time that were said; another one goes on.
#[test]
fn broken_for_a_while() {
    let runtime = SimRuntime::seeded(1);
    runtime.block_on(async {
        let disk = SimDisk::new().timed(&World::current(), 1, DiskTimes::default());
        let file = segment(&disk).await;
        disk.break_for(DiskFault::ErrorAppend, ".store".into(), 1_000_000);
        for _ in 0..3 {
            assert!(file.append_durable(4096, vec![filled(2, 1)]).await.is_err());
        }
        file.sync().await.unwrap();
        let left = disk.crash(3);
        disk.power_off();
        let file = left.open(Path::new(STORE), OpenMode::Append).await.unwrap();
        assert!(file.append_durable(4096, vec![filled(3, 1)]).await.is_err());
        crate::env::sleep::<crate::sim::SimEnv>(std::time::Duration::from_secs(1)).await;
        file.append_durable(4096, vec![filled(4, 1)]).await.unwrap();
        assert_eq!((shown(&left)[1], fired(&left, DiskFault::ErrorAppend, Met::StoreAppend)), (4, 4));
        left.break_for(DiskFault::ErrorAppend, String::new(), 1_000_000);
        left.heal();
        file.append_durable(8192, vec![filled(5, 1)]).await.unwrap();
    });
}

/// A directory that is gone is gone with all that is in it, and no crash brings it back.
#[test]
fn directories_go() {
    block_on(async {
        let disk = SimDisk::new();
        segment(&disk).await;
        assert!(disk.delete_dir("/d") && !disk.delete_dir("/d"));
        assert_eq!(disk.paths(), [""; 0].map(PathBuf::from));
        assert!(disk.list(Path::new("/d")).await.is_err());
        assert!((0..20).all(|seed| disk.crash(seed).paths().is_empty()));
    });
}

/// Two planted panics of one kind are told apart: the first that was planted comes first, and only its own is forgotten, also
/// on the disk that a crash leaves.
#[test]
fn numbered_panics() {
    let runtime = SimRuntime::seeded(1);
    let texts = runtime.block_on(async {
        let disk = SimDisk::new();
        let file = segment(&disk).await;
        let plant = |disk: &SimDisk| {
            disk.plant_panic(PlantedPanic { operation: Operation::AppendDurable, path_contains: "/d/".into() })
        };
        let (first, second) = (plant(&disk), plant(&disk));
        let met = World::current().spawn(async move { file.append_durable(4096, vec![filled(2, 1)]).await });
        assert!(met.await.is_err());
        assert!(!disk.awaits_panic(first) && disk.awaits_panic(second));
        let left = disk.crash(1);
        let third = plant(&left);
        assert!(third > second && !left.awaits_panic(second));
        left.forget_panic(second);
        assert!(left.awaits_panic(third));
        left.forget_panic(third);
        assert!(!left.awaits_panic(third) && disk.awaits_panic(second));
        (panic_of(first), panic_of(second))
    });
    let panics = runtime.world().panics();
    assert!(panics.len() == 1 && panics[0].text.starts_with(&format!("{}:", texts.0)), "{panics:?} {}", texts.1);
}
