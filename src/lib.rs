//! Ringlog: a distributed commit log. The log whose ack you can believe, from any plain gRPC
//! stub, for the price of one device flush.
//!
//! # Architecture
//!
//! One pinned thread per core, a *reactor*, owns its shards (log and Raft group), its
//! connections and its storage ring. Nothing is shared between reactors but messages.
//!
//! ## Floors
//! An import only goes down; `tidy` fails the build on an upward one.
//!
//! ```text
//! 8  cli        the binary's commands: serve, produce, consume, topic, verify, bench, config
//! 8  sim        simulated disk (the second implementation of the `env::Disk` seam), for tests
//! 7  server     assembles a node for an Env; start and stop order
//! 7  client     Rust client: produce, consume, topics (CLI, bench and tests use it)
//! 6  frontend   mod: route, error → status; grpc: h2 → calls; http: JSON, health, metrics
//! 5  reactor    pinned thread, its shards, its mailbox
//! 4  shard      mod: offsets and their inequalities; produce: admit, propose, ack in order;
//!               consume: catch up, then follow
//! 4  catalog    pure: topics, placement; itself replicated as group 0
//! 3  raft       openraft for an Env: store over log, machine, network
//! 2  log        append, read, truncate, roll, retain; segment; index; recovery; hard state
//! 1  env        Env, Disk, File, Net (the seams); uring and mmap (the only unsafe code); quic
//! 1  format     pure bytes: entries, records, file headers, gRPC framing
//! 1  tls        certificates of the cluster, and how they are checked; join tokens
//! 1  config, observe
//! 0  ids, limits, proto
//! ```
//!
//! ## A record's way
//! From the socket to the disk to the ack, in six files, top to bottom:
//!
//! 1. `frontend/grpc/produce.rs`: messages of a stream, acks in order
//! 2. `frontend/mod.rs`: topic and shard; a shard of this reactor is a function call away
//! 3. `shard/produce.rs`: admit, gather while an append is in flight, encode, propose, ack
//! 4. `raft/store.rs`: openraft's log storage, which is our log
//! 5. `log/writer.rs`: header, checksum, chain; one durable write in flight
//! 6. `env/uring.rs`: submit, and find the completion
//!
//! What it costs, as designed and as counted (`strace -c -f`, `/proc/diskstats`; 1 KiB records on one
//! ProduceStream, 2 cores):
//!
//! | per record | 1 in flight | 256 in flight |
//! |---|---|---|
//! | flushes of the device | 1.00 | 0.010 |
//! | socket reads, writes | 1.0, 1.0 | 0.020, 0.010 |
//! | io_uring_enter | 3.0 | 0.027 |
//! | epoll_wait (most of them looks, not sleeps) | 3.3 | 0.024 |
//!
//! Its bytes are copied twice: by the kernel into the connection's buffer, and from there, in the form in
//! which consumers will get them, into the entry's aligned buffer. That buffer goes to the device by O_DIRECT, stays
//! as the in-memory tail, and is sliced for consumers. (A message that comes in several DATA frames is put
//! together first: one copy more.)
//!
//! ## Where this departs from the design page, and why
//! - *Durable form.* Neither RWF_DSYNC nor write + fdatasync is faster everywhere: see
//!   `env/durable_form.rs`, which measures both while it runs.
//! - *Index.* One slot per entry instead of one per batch, so that an entry is found by its Raft index, too.
//! - *Segment header.* Goes in the same write as a segment's first entry: a roll costs no write of its own.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod catalog;
pub mod cli;
pub mod client;
pub mod config;
pub mod env;
pub mod format;
pub mod frontend;
pub mod ids;
pub mod limits;
pub mod log;
pub mod observe;
pub mod peer;
pub mod proto;
pub mod raft;
pub mod reactor;
pub mod server;
pub mod shard;
pub mod sim;
pub mod tls;

#[cfg(test)]
mod tidy;
