//! Retention and trim down to the files.

use super::*;
use crate::{limits::BLOCK_BYTES, shard::retention::Retention};

/// Fills about this many segments.
async fn fill(shard: &TestShard, segments: u64) {
    let until = shard.inner.group.log().segments().len() as u64 + segments;
    while (shard.inner.group.log().segments().len() as u64) < until {
        shard.produce(large(BLOCK_BYTES * 4)).await.unwrap();
    }
    settle().await;
}

/// What is kept reads well, from the log start on, and nothing below is served.
async fn check(shard: &TestShard) {
    let status = shard.status();
    let kept = contents(shard).await;
    assert!(kept.keys().copied().eq(status.log_start.0..status.high_watermark.0));
    if status.log_start > Offset(0) {
        let below = shard.consume(at(status.log_start.0 - 1)).await;
        assert!(matches!(below, Err(ShardError::OutOfRange { .. })));
    }
}

/// By size: whole segments go, the oldest first, until the rest fits; the log goes on, also after a restart.
#[test]
fn by_size() {
    with_shard(|shard, disk| async move {
        fill(&shard, 4).await;
        let before = shard.status();
        let bytes_max = before.size_bytes / 2;
        shard.inner.retain(Retention { bytes_max, age_ms_max: 0 }).await.unwrap();
        let after = shard.status();
        assert!(after.log_start > Offset(0) && after.size_bytes <= bytes_max, "{after:?}");
        assert!(after.segments < before.segments);
        check(&shard).await;
        shard.inner.retain(Retention { bytes_max, age_ms_max: 0 }).await.unwrap();
        assert_eq!(shard.status().log_start, after.log_start, "nothing more to do");

        shard.close().await.unwrap();
        let shard = open(&disk).await;
        assert_eq!(shard.status().log_start, after.log_start);
        check(&shard).await;
    });
}

/// By age: records go when the newest of their segment is too old, in the last segment too.
#[test]
fn by_age() {
    with_shard(|shard, _disk| async move {
        let retention = Retention { bytes_max: 0, age_ms_max: 60_000 };
        fill(&shard, 2).await;
        shard.inner.retain(retention).await.unwrap();
        assert_eq!(shard.status().log_start, Offset(0));
        TestEnv::advance_us(61_000_000);
        shard.inner.retain(retention).await.unwrap();
        let status = shard.status();
        assert_eq!(status.log_start, status.high_watermark);
        assert_eq!(status.segments, 1, "the last one is still written");
        shard.produce(value("young")).await.unwrap();
        shard.inner.retain(retention).await.unwrap();
        assert_eq!(contents(&shard).await.len(), 1);
    });
}

/// The task does it by itself when a segment has filled up.
#[test]
fn task() {
    TestEnv::reset(1);
    let disk = SimDisk::new();
    block_on(async {
        let shard = open_with(&disk, ShardOptions { retention_bytes_max: 1 << 20, ..options() }).await;
        let mut written = 0;
        while shard.status().log_start == Offset(0) {
            shard.produce(large(BLOCK_BYTES * 4)).await.unwrap();
            settle().await;
            written += 1;
            assert!(written < 1000, "16 MiB are written, and nothing has gone");
        }
        check(&shard).await;
        shard.close().await.unwrap();
    });
}

/// An explicit trim moves the log start to the record, and deletes what is wholly below.
#[test]
fn trim_deletes_segments() {
    with_shard(|shard, _disk| async move {
        fill(&shard, 3).await;
        let before = shard.status();
        let middle = Offset(before.high_watermark.0 / 2 + 1);
        assert_eq!(shard.trim(middle).await.unwrap(), middle);
        let after = shard.status();
        assert_eq!(after.log_start, middle);
        assert!(after.segments < before.segments);
        check(&shard).await;
        // Timestamps are found among what is left.
        let first = shard.consume(from(Start::Timestamp(0))).await.unwrap();
        assert_eq!(decode(&first)[0].offset, middle.0);
    });
}
