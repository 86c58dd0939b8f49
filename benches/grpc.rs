//! gRPC framing: cutting messages out of DATA frames of various sizes, and inflating them.

#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::io::Write;

use bytes::Bytes;
use criterion::BenchmarkId;
use criterion::Criterion;
use criterion::Throughput;
use criterion::criterion_group;
use criterion::criterion_main;
use ringlog::format::grpc::Assembler;
use ringlog::format::grpc::Encoding;
use ringlog::format::grpc::Message;
use ringlog::format::grpc::prefix;
use ringlog::limits::MESSAGE_BYTES_MAX;

/// A stream of `count` messages, cut into frames.
fn frames(message_bytes: usize, count: usize, frame_bytes: usize) -> Vec<Bytes> {
    let mut stream = Vec::new();
    for _ in 0..count {
        stream.extend_from_slice(&prefix(message_bytes));
        stream.resize(stream.len() + message_bytes, 7);
    }
    let stream = Bytes::from(stream);
    (0..stream.len()).step_by(frame_bytes).map(|at| stream.slice(at..stream.len().min(at + frame_bytes))).collect()
}

fn assemble(c: &mut Criterion) {
    let mut group = c.benchmark_group("grpc_assemble");
    for (name, message_bytes, count, frame_bytes) in [
        ("1KiB_each_in_its_frame", 1_024, 256, 1_029),
        ("1KiB_in_64KiB_frames", 1_024, 256, 64 << 10),
        ("100KiB_in_16KiB_frames", 100 << 10, 4, 16 << 10),
        ("100KiB_in_64KiB_frames", 100 << 10, 4, 64 << 10),
        ("4MiB_in_16KiB_frames", 4 << 20, 1, 16 << 10),
    ] {
        let frames = frames(message_bytes, count, frame_bytes);
        group.throughput(Throughput::Bytes((message_bytes * count) as u64));
        group.bench_with_input(BenchmarkId::from_parameter(name), &frames, |b, frames| {
            b.iter(|| {
                let mut assembler = Assembler::new(MESSAGE_BYTES_MAX);
                let mut messages = 0;
                for frame in frames {
                    assembler.push(frame.clone());
                    while let Some(message) = assembler.next_message().expect("the stream is well-formed") {
                        messages += 1;
                        black_box(message);
                    }
                }
                assert_eq!(messages, count);
            });
        });
    }
    group.finish();
}

fn inflate(c: &mut Criterion) {
    let plain: Vec<u8> = (0..64 << 10).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 28) as u8).collect();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&plain).expect("memory does not fail");
    let message = Message { compressed: true, bytes: encoder.finish().expect("memory does not fail").into() };
    let mut group = c.benchmark_group("grpc_inflate");
    group.throughput(Throughput::Bytes(plain.len() as u64));
    group.bench_function("64KiB", |b| {
        b.iter(|| black_box(message.clone().decode(Encoding::Gzip, MESSAGE_BYTES_MAX)).expect("it is valid gzip"));
    });
    group.finish();
}

criterion_group!(benches, assemble, inflate);
criterion_main!(benches);
