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
//! 8  sim        simulated disk (the second implementation of the `env::Disk` seam)
//! 7  server     assembles a node for an Env; start and stop order
//! 7  client     Rust client: produce, consume, topics (CLI, bench and tests use it)
//! 6  frontend   mod: route, error → status; grpc: h2 → calls; http: JSON, health, metrics
//! 5  reactor    pinned thread, its shards, its mailbox
//! 4  shard      mod: offsets and their inequalities; produce: admit, propose, ack in order;
//!               consume: catch up, then follow
//! 4  catalog    pure: topics, placement; itself replicated as group 0
//! 3  raft       openraft for an Env: store over log, machine, network
//! 2  log        append, read, truncate, roll, retain; segment; index; recovery; hard state
//! 1  env        Env, Disk, File (the seams); uring and mmap (the only unsafe code)
//! 1  format     pure bytes: entries, records, file headers, gRPC framing
//! 1  config, observe
//! 0  ids, limits, proto
//! ```
//!
//! ## Where to start reading
//! A record's way from the socket to the disk to the ack, top to bottom:
//! [`frontend::grpc`] → [`frontend`] → [`reactor`] → [`shard`]`/produce` → [`raft`]`/store` →
//! [`log`] → [`env`]`/uring`.

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
pub mod proto;
pub mod raft;
pub mod reactor;
pub mod server;
pub mod shard;
pub mod sim;

#[cfg(test)]
mod tidy;
