//! Cost of the log itself, on a disk in memory: what is left when the device is free.
//!
//! `cargo bench --bench log`. Appends are durable one by one (one in flight) and in groups; the recovery scan reads and
//! checks a segment of 64 MiB; lookups go through the index; encoding is the header, both checksums, and a batch's records.

#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::{cell::Cell, hint::black_box, path::PathBuf, rc::Rc};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message;
use ringlog::{
    env::{buffer::Buffer, channel::Notify, runtime::LocalRuntime},
    format::{
        entry::{ENTRY_HEADER_BYTES, EntryHeader, EntryKind, NewEntry, StoredEntry},
        records::Records,
    },
    ids::{Index, LogId, Offset, SegmentSequence, ShardUid, Term},
    limits::{BLOCK_BYTES, RECORD_BYTES_MAX},
    log::{Log, LogOptions, LogPoint, TailBudget},
    proto::ringlog::v1::{ProduceRequest, Record},
    sim::{SimDisk, TestEnv},
};

type BenchLog = Log<TestEnv>;

const SEGMENT_BYTES: u64 = 64 << 20;

fn runtime() -> LocalRuntime {
    openraft::AsyncRuntime::new(1)
}

fn block_on<T>(runtime: &mut LocalRuntime, work: impl Future<Output = T>) -> T {
    openraft::AsyncRuntime::block_on(runtime, work)
}

async fn open(disk: &SimDisk) -> BenchLog {
    let options =
        LogOptions { dir: PathBuf::from("/bench"), shard: ShardUid(1), segment_bytes_max: SEGMENT_BYTES, owner: 0 };
    Log::open(disk.clone(), TailBudget::new(1 << 20), options).await.expect("a good disk").0
}

fn batch(log: &BenchLog, payload: &[u8]) -> NewEntry {
    let mut buffer = Buffer::with_capacity(ENTRY_HEADER_BYTES + payload.len());
    buffer.grow_to(ENTRY_HEADER_BYTES);
    buffer.extend(payload);
    NewEntry {
        id: LogId { term: Term(1), index: log.last().map_or(Index(0), |last| last.index.next()) },
        kind: EntryKind::Batch,
        record_count: 1,
        base_offset: log.log_end(),
        timestamp_us: 1,
        record_timestamp_max_us: 1,
        buffer,
        leader: None,
        charge: None,
    }
}

/// Appends `count` entries and waits until the last one is durable.
async fn append(log: &BenchLog, payload: &[u8], count: usize) {
    let (left, all) = (Rc::new(Cell::new(count)), Notify::new());
    for _ in 0..count {
        let (left, all) = (left.clone(), all.clone());
        let done = Box::new(move |result: Result<(), _>| {
            assert!(result.is_ok());
            left.set(left.get() - 1);
            if left.get() == 0 {
                all.notify_one();
            }
        });
        log.append(vec![batch(log, payload)], done).expect("a good disk");
    }
    all.notified().await;
}

/// Keeps the log, and the memory of the disk, short.
async fn forget(log: &BenchLog) {
    if log.segments().len() > 2 && log.flushed() == log.last() {
        log.purge(log.end()).await.expect("a good disk");
    }
}

fn appends(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    for (name, bytes, count) in
        [("1 KiB, one in flight", 1 << 10, 1), ("1 KiB, 64 queued", 1 << 10, 64), ("1 MiB", 1 << 20, 1)]
    {
        let payload = vec![7; bytes];
        group.throughput(Throughput::Bytes((bytes * count) as u64));
        group.bench_function(name, |bencher| {
            let mut runtime = runtime();
            let log = block_on(&mut runtime, async { open(&SimDisk::new()).await });
            bencher.iter_batched(
                || (),
                |()| {
                    block_on(&mut runtime, async {
                        append(&log, &payload, count).await;
                        forget(&log).await;
                    });
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// A disk with one segment of about 60 MiB that was not closed.
async fn crashed(payload: &[u8]) -> SimDisk {
    let disk = SimDisk::new();
    let log = open(&disk).await;
    while log.segments().last().is_none_or(|segment| segment.bytes < SEGMENT_BYTES) {
        append(&log, payload, 16).await;
    }
    let first = log.segments().last().expect("one was just rolled into").first.index;
    log.purge(LogPoint { next: first, ..log.end() }).await.expect("a good disk");
    let padded = (ENTRY_HEADER_BYTES + payload.len()).next_multiple_of(BLOCK_BYTES) as u64;
    let entries = SEGMENT_BYTES / padded - 32;
    while log.last().is_some_and(|last| last.index.0 < first.0 + entries) {
        append(&log, payload, 16).await;
    }
    assert_eq!(log.segments().len(), 1, "it is not sealed");
    disk.crash(1)
}

fn recovery(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recovery");
    group.sample_size(10);
    for (name, bytes) in [("entries of 4 KiB", 4_000), ("entries of 256 KiB", 256 << 10)] {
        let mut runtime = runtime();
        let disk = block_on(&mut runtime, crashed(&vec![7; bytes]));
        group.throughput(Throughput::Bytes(SEGMENT_BYTES));
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || disk.crash(1),
                |disk| block_on(&mut runtime, async { open(&disk).await }),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn lookups(criterion: &mut Criterion) {
    let mut runtime = runtime();
    let log = block_on(&mut runtime, async {
        let disk = SimDisk::new();
        let log = open(&disk).await;
        append(&log, &[7; 1_000], 10_000).await;
        log.close().await.expect("a good disk");
        open(&disk).await
    });
    let end = log.log_end().0;
    let mut at = 0;
    criterion.bench_function("index lookup by offset", |bencher| {
        bencher.iter(|| {
            at = (at + 7_919) % end;
            block_on(&mut runtime, log.find_offset(black_box(Offset(at)))).expect("it is there")
        });
    });
    let mut group = criterion.benchmark_group("read");
    group.throughput(Throughput::Bytes(1 << 20));
    group.bench_function("1 MiB of small entries from the disk", |bencher| {
        bencher.iter(|| {
            let from = Index(0);
            block_on(&mut runtime, log.read(from, Index(u64::MAX), 1 << 20)).expect("it is there")
        });
    });
    group.finish();
}

fn encoding(criterion: &mut Criterion) {
    let payload = vec![7; 1 << 20];
    let mut header = EntryHeader {
        kind: EntryKind::Batch,
        payload_bytes: payload.len() as u32,
        record_count: 1_000,
        shard: ShardUid(1),
        segment: SegmentSequence(1),
        id: LogId { term: Term(1), index: Index(1) },
        base_offset: Offset(1),
        timestamp_us: 1,
        timestamp_max_us: 1,
        durable_end: 1,
        chain: 0,
        payload_crc: 0,
    };
    let mut group = criterion.benchmark_group("entry");
    group.bench_function("encode header and chain", |bencher| {
        bencher.iter(|| {
            header.chain = black_box(&header).chain_after(header.chain);
            header.encode()
        });
    });
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("payload checksum, 1 MiB", |bencher| {
        bencher.iter(|| crc32c::crc32c(black_box(&payload)));
    });
    header.payload_crc = crc32c::crc32c(&payload);
    let entry = bytes::Bytes::from([&header.encode()[..], &payload[..]].concat());
    group.bench_function("parse, 1 MiB", |bencher| {
        bencher.iter(|| StoredEntry::parse(black_box(&entry)).expect("it is whole"));
    });
    group.finish();
}

/// What a produce request costs between the socket's bytes and the entry's: checked once, copied once.
fn batches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch");
    for (name, count, bytes) in [("100 records of 1 KiB", 100, 1024), ("1000 records of 64 B", 1000, 64)] {
        let record = Record { value: vec![7; bytes].into(), ..Record::default() };
        let request = ProduceRequest { records: vec![record; count], ..ProduceRequest::default() };
        let message = bytes::Bytes::from(request.encode_to_vec());
        group.throughput(Throughput::Bytes((count * bytes) as u64));
        group.bench_function(format!("check, {name}"), |bencher| {
            bencher.iter(|| Records::parse(black_box(message.clone()), RECORD_BYTES_MAX).expect("it is well made"));
        });
        let (_, records) = Records::parse(message, RECORD_BYTES_MAX).expect("it is well made");
        group.bench_function(format!("encode, {name}"), |bencher| {
            bencher.iter(|| {
                let mut buffer = Buffer::with_capacity(records.encoded_bytes_max());
                records.encode_into(&mut buffer, black_box(Offset(1 << 40)), 1_700_000_000_000_000);
                buffer
            });
        });
    }
    group.finish();
}

criterion_group!(benches, appends, recovery, lookups, encoding, batches);
criterion_main!(benches);
