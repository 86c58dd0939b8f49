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
//! 9  cli        the binary's commands: serve, produce, consume, topic, cluster, ca, dev-cluster, verify, bench, config
//! 8  sim        a cluster on one thread in virtual time, from one seed: the second implementations of the seams (executor, disk,
//!               network); client connections as byte streams; clusters, clients (some stock gRPC ones) and scenarios for
//!               `ringlog sim`; the checker of histories
//! 7  server     assembles a node for an Env (assemble): who it is (membership), start and stop order
//! 7  client     Rust client: one connection; cluster client, producer, consumer (CLI, bench and tests use them)
//! 6  frontend   mod: route, error → status; grpc: h2 → calls; http: JSON, health, metrics; topology
//! 5  reactor    pinned thread, its shards, its mailbox; control: what the catalog says is done; gossip: who is there;
//!               forward, inbound: what another node has to do, and what others ask
//! 4  shard      mod: offsets and their inequalities; produce: admit, propose, ack in order;
//!               consume: catch up, then follow
//! 4  catalog    pure: nodes, topics, placement of replicas; itself replicated as group 0
//! 3  raft       openraft for an Env: store over log, machine, network over peers, elections, members;
//!               repair: a damaged replica; left: what one that was moved away leaves for the next
//! 2  log        append, read, truncate, roll, retain; segment; index; recovery; hard state
//! 2  peer       connections to other nodes: dialled once, frames, liveness, clocks
//! 1  env        Env, Disk, File, Net (the seams); domain: what a panic ends; quic; uring (unsafe code)
//! 1  format     pure bytes: entries, records, file headers, gRPC framing, envelopes between nodes
//! 1  tls        certificates of the cluster, and how they are checked; join tokens
//! 1  budget     one reactor's memory for what is on its way, in bytes
//! 1  config, observe
//! 0  ids, limits, proto
//! ```
//!
//! ## A record's way
//! From the socket to the disk to the ack, in six files, top to bottom:
//!
//! 1. `frontend/grpc/produce.rs`: messages of a stream, acks in order
//! 2. `frontend/mod.rs`: topic and shard; a shard of this reactor is a function call away (`frontend/under_way.rs` is the way back)
//! 3. `shard/produce.rs`: admit, gather while an append is in flight, encode, propose, ack
//! 4. `raft/store.rs`: openraft's log storage, which is our log
//! 5. `log/writer.rs`: header, checksum, chain; one durable write in flight
//! 6. `env/uring.rs`: submit, and find the completion
//!
//! With several replicas, between 4 and the ack: `raft/network.rs` hands the entry's bytes, as the log holds them, to
//! `peer/frame.rs` and QUIC while the leader's own write is under way; a follower receives them with one copy, into the aligned
//! buffer that goes to its disk, and its log must come to the leader's chain hash. The entry is committed when a majority
//! has flushed it, with or without the leader's own disk. The leader submits its own write when the followers' packets are
//! out, and the news of the commit goes with the next entries (`raft/pipeline.rs`). A majority is sent each entry at once;
//! the others get what gathers in a millisecond (`raft/thrift.rs`). So 1 in flight costs the leader, of three replicas, one
//! packet out and one in, and another pair for every few records (2.7 datagrams per record in `/proc/net/snmp`, 4.2 when
//! both followers were sent each); a follower that counts one packet in, one durable write and one packet out. Nobody sleeps
//! on the way while the next step is near (`env/uring/reaper.rs`). Who is behind is served at a pace that leaves device and
//! cores to the acks (`peer/pace.rs`).
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
//! ## A cluster
//! Every node holds a replica of the catalog (group 0; an odd number of them votes), so that each sees nodes, topics and
//! placement without asking. What it says is carried out by loops that compare what is wanted with what is there
//! (`reactor/control`): a node that died in the middle goes on where it stopped. Three things tell whether a node is there,
//! and none of them changes a group's members: QUIC's own time-outs, pings each 100 ms (`peer/liveness`, which makes groups
//! elect another leader after 600 ms of silence, all groups at once, so that idle ones need few heartbeats), and gossip
//! (`reactor/gossip`, for routing and for people).
//!
//! ## Memory
//! What runs out is bytes. Each reactor has one budget of them (`budget`, `memory_bytes`) for all that is on its way, by use:
//! `received` (a client's message that has come in part, or waits: each connection has a share of it), `queued` (produce
//! requests that are not answered, and room for their entries), `unflushed` (entries between the proposal, or their arrival
//! from the leader, and the flush here), `frames` (what peers have announced), `stopped`. Clients may use two thirds of it;
//! then they are told to come back. Replication has the rest but for a part that is left to votes and answers. A request is
//! charged when its shard takes it (until then for what it is) for all that will become of it, so that nothing that was admitted
//! waits for memory. A disk that does not keep up shows as `unflushed`: its node's leaders refuse records, its followers leave
//! entries with their leaders. Beside the budget, which is 256 MiB unless configured, each reactor has answers that wait for
//! clients (64 MiB at most), what clients have sent and no call has taken (96), index files (32) and recent entries (`tail_bytes`,
//! 16), which could be read back at any time, the mailbox (16), and what has come of leaders' entries and snapshots that wait for
//! room (32, `peer/frame/backlog`): 512 MiB in all (`limits::REACTOR_BYTES_MAX`), and what its connections take by themselves. QUIC
//! lets each stream have 4 MiB under way, of which a stream that waits is read a little; then it counts as 4 MiB. One that finds no
//! room there is ended, so that its leader comes again after a pause. HTTP has 96 MiB for the whole process (64 for bodies and
//! answers, 32 for what is read for them).
//!
//! ## Where this departs from the first plan, and why
//! - *Durable form.* Neither RWF_DSYNC nor write + fdatasync is faster everywhere: see
//!   `env/durable_form.rs`, which measures both while it runs.
//! - *Index.* One slot per entry instead of one per batch, so that an entry is found by its Raft index, too.
//! - *Index files are read, not mapped.* A page of a map that the device cannot read, or that was cut off, is a SIGBUS, which ends
//!   the process with all of its shards; and one that was evicted is a page fault, which blocks the reactor. Of each sealed
//!   segment that is read now there are 8 bytes per entry in memory instead, 32 MiB in one reactor at most.
//! - *Segment header.* Goes in the same write as a segment's first entry: a roll costs no write of its own.
//! - *Heartbeats.* One a second and time-outs of 2.5 to 3 s instead of 250 ms and 1 to 2 s: a dead node is noticed once for
//!   all of its groups, by pings (above). Far timers come on a grid of 100 ms (`env/runtime.rs`), so that the ticks and
//!   heartbeats of hundreds of groups share wake-ups and packets.
//! - *No majority.* A leader without one answers what it has taken after 5 s, as indefinite: its clients cannot tell a
//!   partition from a slow node, and the others may have a leader already.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod budget;
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
mod fuzz;
#[cfg(test)]
mod tidy;
