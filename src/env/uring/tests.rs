//! The ring on real files: ownership of buffers, bounds, teardown, errors.

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::task::LocalSet;

use super::*;
use crate::{env::buffer::Buffer, limits::BLOCK_BYTES};
use crate::{env::patience::Patience, limits::RING_SPIN_BACKOFF_MAX};

fn on_reactor<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

fn scratch() -> Arc<OwnedFd> {
    Arc::new(tempfile::tempfile().unwrap().into())
}

/// A file of `blocks` blocks as the log has them: written to its full size, with a direct descriptor for writes, and a buffered
/// one for reads. (The log never writes through the page cache by a ring, as these writes were lost at times: see the head of `uring`.)
fn scratch_direct(blocks: usize) -> (Arc<OwnedFd>, Arc<OwnedFd>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file.as_file(), &vec![0; blocks * BLOCK_BYTES]).unwrap();
    file.as_file().sync_all().unwrap();
    let open = |direct| crate::env::disk::open_file(file.path(), rustix::fs::OFlags::RDWR, direct).map(Arc::new);
    // Not every file system has direct writes.
    (open(true).or_else(|_| open(false)).unwrap(), open(false).unwrap())
}

fn block(byte: u8) -> Bytes {
    let mut block = Buffer::zeroed(BLOCK_BYTES);
    block.bytes_mut().fill(byte);
    block.freeze_padded()
}

/// A future that is dropped right after its first poll leaves the buffer with the kernel until the completion,
/// and the write happens all the same.
#[test]
fn dropped_futures_leave_their_buffers() {
    struct Watched(Bytes, Arc<AtomicU32>);
    impl AsRef<[u8]> for Watched {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Watched {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
    on_reactor(async {
        let ring = Ring::open().unwrap();
        let fd = scratch();
        let freed = Arc::new(AtomicU32::new(0));
        for round in 0..32_u8 {
            let buffer = Bytes::from_owner(Watched(block(round + 1), freed.clone()));
            let position = u64::from(round) * BLOCK_BYTES as u64;
            let before = freed.load(Ordering::Relaxed);
            let durability = Durability::Linked;
            let mut write = Box::pin(ring.write(&fd, position, vec![buffer], durability));
            let first = futures_util::poll!(write.as_mut());
            drop(write);
            if first.is_pending() && ring.in_flight() > 0 {
                assert_eq!(freed.load(Ordering::Relaxed), before, "the kernel still reads it");
            }
            while ring.in_flight() > 0 {
                crate::env::yield_now().await;
                ring.shared.turn();
            }
            assert_eq!(freed.load(Ordering::Relaxed), before + 1, "freed once, with the completion");
            assert_eq!(ring.read(&fd, position, BLOCK_BYTES).await.unwrap(), block(round + 1));
        }
        assert_eq!(ring.shared.permits.available_permits(), RING_OPERATIONS_MAX);
    });
}

/// Many more operations than the ring holds all complete, with their own results.
#[test]
fn more_than_the_ring_holds() {
    on_reactor(async {
        let ring = Ring::open().unwrap();
        let (fd, reader) = scratch_direct(3 * RING_OPERATIONS_MAX + 1);
        let writes = (0..3 * RING_OPERATIONS_MAX).map(|i| {
            let (ring, fd) = (ring.clone(), fd.clone());
            let durability = if i % 7 == 0 { Durability::Linked } else { Durability::Later };
            async move {
                let position = (i * BLOCK_BYTES) as u64;
                ring.write(&fd, position, vec![block(i as u8), block(!(i as u8))], durability).await
            }
        });
        let written = futures_util::future::join_all(writes).await;
        assert!(written.into_iter().all(|result| result.unwrap() == 2 * BLOCK_BYTES));
        let reads = (0..3 * RING_OPERATIONS_MAX).map(|i| ring.read(&reader, (i * BLOCK_BYTES) as u64, 1));
        let read = futures_util::future::join_all(reads).await;
        assert_eq!(read.len(), 3 * RING_OPERATIONS_MAX);
        assert!(read.into_iter().all(|result| result.unwrap().len() == 1));
        assert_eq!(ring.in_flight(), 0);
        assert_eq!(ring.shared.permits.available_permits(), RING_OPERATIONS_MAX);
    });
}

/// More completions than the kernel takes to us in one call: nobody parks before the last of them is here, as nothing would
/// wake him for the rest.
#[test]
fn more_completions_than_one_call_takes() {
    on_reactor(async {
        let ring = Ring::open().unwrap();
        let (fd, _) = scratch_direct(RING_OPERATIONS_MAX);
        let mut writes: Vec<_> = (0..RING_OPERATIONS_MAX)
            .map(|i| Box::pin(ring.write(&fd, (i * BLOCK_BYTES) as u64, vec![block(1)], Durability::Dsync)))
            .collect();
        for write in &mut writes {
            let _ = futures_util::poll!(write.as_mut());
        }
        // The device is done with all of them, and we have not looked.
        #[allow(clippy::disallowed_methods, reason = "this thread must not look meanwhile")]
        std::thread::sleep(Duration::from_millis(300));
        let mut calls = 0;
        while ring.shared.turn().more {
            calls += 1;
            assert!(calls <= RING_OPERATIONS_MAX);
        }
        assert_eq!(ring.in_flight(), 0, "after {calls} calls");
    });
}

/// Others run while much is read, though all of it is in the page cache; it comes whole, as far as the file goes.
#[test]
fn large_reads() {
    on_reactor(async {
        const PIECES: usize = 4;
        let ring = Ring::open().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..PIECES * READ_OPERATION_BYTES - 7).map(|at| (at / 1_000) as u8).collect();
        std::io::Write::write_all(&mut file.as_file(), &bytes).unwrap();
        let fd = Arc::new(file.into_file().into());
        let read = ring.read(&fd, 0, PIECES * READ_OPERATION_BYTES);
        let turns = std::cell::Cell::new(0);
        let others = async {
            loop {
                turns.set(turns.get() + 1);
                crate::env::yield_now().await;
            }
        };
        let read = tokio::select! {
            biased;
            read = read => read.unwrap(),
            () = others => unreachable!("it has no end"),
        };
        assert!(read == bytes);
        assert!(turns.get() >= PIECES - 1, "{} turns", turns.get());
    });
}

/// The last handle goes with operations in flight: it waits for them, and they have happened.
#[test]
fn teardown_waits() {
    let fd = scratch();
    on_reactor(async {
        let ring = Ring::open().unwrap();
        for i in 0..64 {
            let write = ring.write(&fd, i * BLOCK_BYTES as u64, vec![block(9)], Durability::Later);
            let _ = futures_util::poll!(Box::pin(write));
        }
    });
    let content = crate::env::storage_thread::read_blocking(&fd, 0, 65 * BLOCK_BYTES).unwrap();
    assert_eq!(content.len(), 64 * BLOCK_BYTES);
    assert!(content.iter().all(|byte| *byte == 9));
}

/// The whole runtime goes while tasks wait for operations.
#[test]
fn runtime_goes_first() {
    let fd = scratch();
    on_reactor(async {
        let ring = Ring::open().unwrap();
        for i in 0..64 {
            let (ring, fd) = (ring.clone(), fd.clone());
            #[allow(clippy::disallowed_methods, reason = "a test of tasks")]
            tokio::task::spawn_local(async move {
                let durability = Durability::Dsync;
                ring.write(&fd, i * BLOCK_BYTES as u64, vec![block(9)], durability).await.unwrap();
            });
        }
        crate::env::yield_now().await;
    });
    let len = rustix::fs::fstat(&fd).unwrap().st_size as usize;
    let content = crate::env::storage_thread::read_blocking(&fd, 0, len).unwrap();
    assert!(
        content
            .chunks(BLOCK_BYTES)
            .all(|block| block.iter().all(|byte| *byte == 9) || block.iter().all(|byte| *byte == 0))
    );
    assert_eq!(Arc::strong_count(&fd), 1, "no operation holds the descriptor any more");
}

/// The device's errors arrive, of the first and of the linked part; a dropped descriptor is not reused too early.
#[test]
fn errors_arrive() {
    on_reactor(async {
        let ring = Ring::open().unwrap();
        let full: Arc<OwnedFd> =
            Arc::new(rustix::fs::open("/dev/full", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty()).unwrap());
        for durability in [Durability::Later, Durability::Linked] {
            let error = ring.write(&full, 0, vec![block(1)], durability).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        // /dev/null takes the write and cannot be synced: only the linked part fails.
        let null: Arc<OwnedFd> =
            Arc::new(rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty()).unwrap());
        assert_eq!(ring.write(&null, 0, vec![block(1)], Durability::Later).await.unwrap(), BLOCK_BYTES);
        let error = ring.write(&null, 0, vec![block(1)], Durability::Linked).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(ring.in_flight(), 0);
    });
}

/// Parking alone, without a spin, wakes up too; and spinning in vain is soon given up.
#[test]
fn parks_and_backs_off() {
    on_reactor(async {
        let ring = Ring::open_spinning(Duration::ZERO).unwrap();
        let fd = scratch();
        for i in 0..20 {
            let durability = Durability::Linked;
            ring.write(&fd, i * BLOCK_BYTES as u64, vec![block(1)], durability).await.unwrap();
        }
    });
    let mut patience = Patience::new(RING_SPIN_BACKOFF_MAX);
    let mut spins = 0;
    for _ in 0..10_000 {
        if patience.allows() {
            spins += 1;
            patience.missed();
        }
    }
    assert!(spins < 60, "{spins} spins in vain");
    patience.skip = 0;
    patience.hit();
    assert!(patience.allows() && patience.allows());
}
