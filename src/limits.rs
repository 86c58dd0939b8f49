//! Every bound that is compiled in, and what happens at it. What an operator sets is in `config`.

use std::time::Duration;

/// Unit of O_DIRECT transfers: entries start and end on it, so a block that holds acknowledged
/// data is never written again.
pub const BLOCK_BYTES: usize = 4096;

/// Largest message that a gRPC or HTTP client may send, in bytes; `RESOURCE_EXHAUSTED` above it,
/// checked before anything is allocated.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Largest record (key, value and headers, as encoded), in bytes; `INVALID_ARGUMENT` above it.
pub const RECORD_BYTES_MAX: usize = 1 << 20;

/// Most records in one produce request; `INVALID_ARGUMENT` above it.
pub const BATCH_RECORDS_MAX: usize = 1 << 20;

/// Largest payload of one log entry, in bytes. One request always fits: a record grows by at
/// most 22 bytes (timestamp and offset) when it is encoded, a message of 4 MiB that holds
/// nothing but empty records (2 bytes each) is cut off by `BATCH_RECORDS_MAX`.
pub const ENTRY_BYTES_MAX: usize = 32 << 20;

/// A shard's queue gathers into one entry up to this many payload bytes (soft: a larger request is an
/// entry of its own).
pub const ENTRY_BYTES_TARGET: usize = 1 << 20;

/// While an append is in flight, another entry is proposed only when this many bytes wait.
pub const PROPOSE_BYTES_EAGER: usize = 256 << 10;

/// Entries of one shard proposed and not yet applied.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 8;

/// Produce requests waiting in one shard's queue; `RESOURCE_EXHAUSTED` with a retry hint above it.
pub const PRODUCE_QUEUE_REQUESTS_MAX: usize = 16_384;

/// Bytes of them; the same. Single calls are refused sooner when memory is short (`reactor::produce`).
pub const PRODUCE_QUEUE_BYTES_MAX: usize = 64 << 20;

/// Requests in one reactor's mailbox; `RESOURCE_EXHAUSTED` with a retry hint above it.
pub const MAILBOX_REQUESTS_MAX: usize = 4_096;

/// Bytes of them; the same.
pub const MAILBOX_BYTES_MAX: usize = 16 << 20;

/// What one reactor keeps in memory for what is on its way (`budget`), unless configured: requests, entries that are not
/// flushed, frames of peers. Large enough that 10 clients with 16 MiB in flight each are not refused, and that a disk may hang
/// for half a second under 100 MB/s. What has a limit of its own is beside it: see `REACTOR_BYTES_MAX`.
pub const MEMORY_BYTES_DEFAULT: usize = 256 << 20;

/// All that is bounded in bytes for one reactor, unless configured, 512 MiB: what is on its way (256), its mailbox (16), recent
/// entries (16), index files (32), answers that wait for clients (64), what clients have sent and no call has taken (96), and
/// entries of peers that wait for room (32). Beside it a connection takes memory by itself: some KiB and, of small answers that its client does not take, up to 256 KiB
/// (`frontend::grpc::socket`).
pub const REACTOR_BYTES_MAX: usize = MEMORY_BYTES_DEFAULT
    + MAILBOX_BYTES_MAX
    + TAIL_BYTES_MAX
    + INDEX_BYTES_MAX
    + ANSWER_BYTES_LIMIT
    + UNREAD_BYTES_MAX
    + CONNECTIONS_MAX * UNREAD_BYTES_MIN
    + PEER_BACKLOG_BYTES_MAX;

/// Least that can be configured: one request of the largest size and its entry have room beside the reserve.
pub const MEMORY_BYTES_MIN: usize = 160 << 20;

/// Part of it that clients cannot use: two entries of the largest size come in from leaders while clients fill the rest, and
/// what was admitted finishes.
pub const MEMORY_RESERVE_BYTES: usize = 80 << 20;

/// Part of the reserve that frames may use which peers pass on for clients: more than the largest of them. They are read and
/// answered, or refused, at once.
pub const MEMORY_PASSED_ON_BYTES: usize = 8 << 20;

/// Part of the reserve that entries and snapshots cannot use either: votes, heartbeats and answers always come in.
pub const MEMORY_CONSENSUS_BYTES: usize = 8 << 20;

/// Bytes of one shard that are not flushed on a node: above it its leader refuses records with `RESOURCE_EXHAUSTED` and a
/// retry hint, and a follower reads no more entries. Half a second of 128 MB/s: longer than a flush takes on a device that
/// keeps up; a majority may be faster than this disk.
pub const UNFLUSHED_BYTES_MAX: usize = 64 << 20;

/// The same for a reactor: this part of what clients may use of its memory, so that they have the others.
pub const UNFLUSHED_PART: usize = 2;

/// Hint given with `RESOURCE_EXHAUSTED`.
pub const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Bytes of recent entries that one reactor keeps in memory for consumers and followers; the
/// oldest are forgotten first.
pub const TAIL_BYTES_MAX: usize = 16 << 20;

/// Longest time for which the opening of a file, a look at a directory, a read, or a change of names is tried again when the system
/// had no descriptor or no memory for it; then it is an error.
pub const TRANSIENT_RETRY_MAX: Duration = Duration::from_secs(10);

/// First pause before that, doubled each time up to `TRANSIENT_PAUSE_MAX`.
pub const TRANSIENT_PAUSE_MIN: Duration = Duration::from_millis(1);

/// See `TRANSIENT_PAUSE_MIN`.
pub const TRANSIENT_PAUSE_MAX: Duration = Duration::from_millis(200);

/// A client's connection whose descriptor is wanted for storage is cut so long after it was told: time for a call that is under way,
/// and well before whoever waits for the descriptor gives up.
pub const SEAT_GRACE: Duration = Duration::from_secs(2);

/// How often it is looked whether the connections that had to go have gone.
pub const SEAT_LOOK: Duration = Duration::from_millis(100);

/// Bytes of index files that one reactor keeps in memory (512 KiB for a segment of 256 MiB with entries of one block); above it
/// a log forgets its own, and reads them again when they are needed.
pub const INDEX_BYTES_MAX: usize = 32 << 20;

/// Smallest segment file, and size of a new shard's first one.
pub const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// Default largest segment file: recovery after a crash scans at most this much per shard.
pub const SEGMENT_BYTES_DEFAULT: u64 = 256 << 20;

/// Largest segment size that can be configured: positions in an index are 32 bits.
pub const SEGMENT_BYTES_LIMIT: u64 = 2 << 30;

/// Bytes of one read from a segment. Small enough that a piece stays in the core's own cache from the read over the
/// checksum to the socket: 256 KiB replayed 1.5 GB/s where 1 MiB replayed 1.2.
pub const READ_BYTES: usize = 256 << 10;

/// How often all that is ready runs on a reactor between two reads for consumers that did not wait for the device.
pub const CONSUMER_READ_PAUSES: usize = 4;

/// Bytes of records in one consume response unless the request says less.
pub const CONSUME_BYTES_DEFAULT: usize = 1 << 20;

/// Bytes of answers that wait for the clients of one reactor, of which each connection may have an eighth of what the others
/// leave: four full answers under way on a single connection.
pub const ANSWER_BYTES_MAX: usize = 32 << 20;

/// What a connection may have of them, however much the others have.
pub const ANSWER_BYTES_MIN: usize = 8 << 10;

/// Above it no more is read for clients: `ANSWER_BYTES_MAX`, and the least share of each of `CONNECTIONS_MAX`. Answers with large
/// records are let go there, and connections that do not move are closed.
pub const ANSWER_BYTES_LIMIT: usize = ANSWER_BYTES_MAX + CONNECTIONS_MAX * ANSWER_BYTES_MIN;

/// Longest `wait_ms` of a consume; longer ones are `INVALID_ARGUMENT`.
pub const CONSUME_WAIT_MAX: Duration = Duration::from_secs(60);

/// How long a request waits for a leader of its shard, if its own deadline is not sooner: `UNAVAILABLE` then, and nothing was
/// written. Several times what an election takes; who is told goes to another node, which may know one.
pub const LEADER_WAIT: Duration = Duration::from_secs(5);

/// How long calls wait for a topic that is looked up, or made, for the first of them; `UNAVAILABLE` then, and nothing was written. Longer
/// than a search in which each step waits for the catalog's leader to the end.
pub const TOPIC_WAIT: Duration = Duration::from_secs(30);

/// Longest topic name in bytes.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// Most shards in one topic; `INVALID_ARGUMENT` above it.
pub const TOPIC_SHARDS_MAX: u32 = 1_024;

/// Replicas of a shard unless its topic says otherwise: it survives the loss of one of three nodes.
pub const REPLICATION_FACTOR_DEFAULT: u32 = 3;

/// Most replicas of one shard.
pub const REPLICATION_FACTOR_MAX: u32 = 9;

/// Most nodes that vote in the catalog; the others follow it without a vote.
pub const CATALOG_VOTERS_MAX: usize = 5;

/// Most nodes of a cluster, those included that were removed.
pub const CLUSTER_NODES_MAX: usize = 1_024;

/// Largest node id that a certificate made beforehand may claim: the ids after it must last.
pub const NODE_ID_MAX: u64 = 1 << 32;

/// Longest host name or address of a node, in bytes, as the catalog takes it (RFC 1035 2.3.4: 255 for a name, and a port).
pub const NODE_ADDRESS_BYTES_MAX: usize = 261;

/// Join tokens that can be used at the same time; the making of another one is refused above it.
pub const JOIN_TOKENS_MAX: usize = 256;

/// Shards that move to, or away from, one node at the same time when the catalog moves them of its own accord: a
/// transfer fills a link by itself, some more hide the pauses between its steps.
pub const MOVES_PER_NODE_MAX: usize = 4;

/// Moves that the catalog's leader begins in one go.
pub const PLAN_MOVES_MAX: usize = 64;

/// Replica moves in one answer to a rebalance; another call goes on.
pub const REBALANCE_MOVES_MAX: usize = 1_024;

/// Most replicas of shards on one node; topic creation is `RESOURCE_EXHAUSTED` above it.
pub const NODE_SHARDS_MAX: usize = 10_000;

/// Connections that other nodes have made to one reactor; above it new ones are closed at once. One reactor of each
/// node of the largest cluster, and those of before that have not yet been given up.
pub const PEER_CONNECTIONS_MAX: usize = 2 * CLUSTER_NODES_MAX;

/// Streams that a peer has open at once on one connection; no more are taken until one ends. Above the shards of a
/// node, as each may have a stream of appends, so that calls always find room beside them.
pub const PEER_STREAMS_MAX: usize = 16_384;

/// Bytes of one stream between nodes that its sender may be ahead of its reader. 4 MiB fill 10 Gbit/s over 3 ms, which is a region.
pub const PEER_STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Bytes of entries and snapshots that wait for room in one reactor, beside its budget (`peer::frame::backlog`): what of their
/// streams is read, and, of a stream that is not read on, the whole window. A stream that finds no room here is ended, and its
/// leader comes back after a pause (`RAFT_RETRY_MAX`), in which the disk has enough to write; or a little of each of a thousand
/// streams.
pub const PEER_BACKLOG_BYTES_MAX: usize = 32 << 20;

/// Part of it that windows may take, so that streams with little to say find room beside those with much.
pub const PEER_BACKLOG_WINDOWS_PERCENT: usize = 75;

/// Of a stream that waits for room so much is read; above it, it counts as a window, and is not read on.
pub const PEER_BACKLOG_READ_BYTES: usize = 64 << 10;

/// How long a dial may take at all. Above what the network itself waits (`QuicOptions::dial`), which knows the reason.
pub const PEER_DIAL_MAX: Duration = Duration::from_secs(3);

/// Pause after the first failure to connect to a peer: what a restarting process needs at least.
pub const PEER_BACKOFF_MIN: Duration = Duration::from_millis(20);

/// Longest pause between attempts to connect to a peer.
pub const PEER_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A connection that was lost within this time counts as one that could not be made: a peer may refuse a certificate
/// after the dialler holds the handshake for done (TLS 1.3).
pub const PEER_SETTLED_AFTER: Duration = Duration::from_secs(1);

/// Time between two pings of a node: several may be lost within `PEER_SILENT_MAX`.
pub const PEER_PING_INTERVAL: Duration = Duration::from_millis(100);

/// A node of which nothing was heard for this long is taken for dead, and its groups elect. Six pings; a third of
/// what the loss of a leader may cost.
pub const PEER_SILENT_MAX: Duration = Duration::from_millis(600);

/// When the pinger itself was late by more than this (SIGSTOP, overload), the silence is our own: everybody gets
/// `PEER_SILENT_MAX` again.
pub const PEER_OWN_STALL_MAX: Duration = Duration::from_millis(300);

/// Connections of one reactor; above it new ones are closed at once.
pub const CONNECTIONS_MAX: usize = 4_096;

/// Open HTTP connections; the same. Fewer of both where the process has too few descriptors (`reactor::descriptors`).
pub const HTTP_CONNECTIONS_MAX: usize = 1_024;

/// Bytes of requests' bodies that have come over HTTP, and of answers that wait for its clients, of a process; above it whoever has
/// held most for longest is closed.
pub const HTTP_BYTES_MAX: usize = 64 << 20;

/// Bytes of records that are read at a time for answers over HTTP, of a process; others wait for their turn.
pub const HTTP_READ_BYTES_MAX: usize = 32 << 20;

/// Bytes of unfinished or waiting messages that each connection may hold, however much the others do (`frontend::grpc::received`).
pub const RECEIVED_BYTES_MIN: usize = 8 << 10;

/// Bytes that a client may have sent on a connection before anything of it is read: as little as HTTP/2 knows.
pub const CONNECTION_WINDOW_BYTES_MIN: u32 = 65_535;

/// The same, once the connection has made use of it; the client waits above it. Batches of 100 KiB, 32 in flight, want 3.2 MB;
/// 15 streams that wait leave room for another.
pub const CONNECTION_WINDOW_BYTES_MAX: u32 = 16 << 20;

/// What the windows of one reactor's connections may have above the first one together; the more is taken, the smaller they
/// stay.
pub const CONNECTION_WINDOW_BYTES_LENT: usize = 64 << 20;

/// Bytes of what clients have sent that no call has taken, of one reactor's connections together; above it their sockets are not
/// read (`frontend::grpc::unread`) ...
pub const UNREAD_BYTES_MAX: usize = 64 << 20;

/// ... but for those that have less than so much.
pub const UNREAD_BYTES_MIN: usize = 8 << 10;

/// Requests of one connection at the same time (HTTP/2 SETTINGS_MAX_CONCURRENT_STREAMS).
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;

/// Calls of one reactor's connections together; a connection may have an eighth of what is left of them, and more is
/// refused (REFUSED_STREAM: the client may try again elsewhere) ...
pub const CALLS_MAX: usize = 16 << 10;

/// ... but always so many.
pub const CALLS_PER_CONNECTION_MIN: usize = 4;

/// Topics that one request may name to be told who leads their shards; `INVALID_ARGUMENT` above it. (One that names none is told
/// of all.)
pub const SERVERS_TOPICS_MAX: usize = 1_024;

/// Bytes of such a request, so many names and what each takes beside itself; `RESOURCE_EXHAUSTED` above it. A name takes two bytes
/// at least, and twenty times that when it is decoded.
pub const SERVERS_REQUEST_BYTES_MAX: usize = SERVERS_TOPICS_MAX * (TOPIC_NAME_BYTES_MAX + 3);

/// Produce requests of one stream that are not acknowledged yet; the stream is not read above it.
pub const STREAM_PRODUCES_IN_FLIGHT_MAX: usize = 1_024;

/// Bytes of them; the same.
pub const STREAM_PRODUCE_BYTES_IN_FLIGHT_MAX: usize = 16 << 20;

/// Checkpoints of one group that wait to be written; the oldest is given up above it (a replay gets longer).
pub const CHECKPOINTS_PENDING_MAX: usize = 16;

/// Bytes of entries on their way to one follower, sent and not answered. As much as the fastest link and a slow flush (1 GB/s,
/// 8 ms) can have under way; more would only wait in the follower's memory.
pub const APPEND_BYTES_IN_FLIGHT_MAX: usize = 8 << 20;

/// Requests of producing streams on their way from one reactor to the shards of one reactor; the streams of others are not read
/// meanwhile. Those that are late count for their shards alone (`frontend::room`). As many as a reactor answers in some 4 ms: more
/// would only wait in its queues, with all that comes behind them. One stream with 1,024 in flight is as fast with this as with 8,192.
pub const STREAM_REQUESTS_UNDER_WAY_MAX: usize = 1_024;

/// Bytes of them: what the entries in flight of one shard hold, and as much that waits. Late ones may have about as many beside it.
pub const STREAM_BYTES_UNDER_WAY_MAX: usize = 2 * ENTRIES_IN_FLIGHT_MAX * ENTRY_BYTES_TARGET;

/// Entries in one frame to a peer, which holds each in blocks of its own: however small they are, a frame takes at most this many
/// blocks (`READ_BYTES`) beside what it carries. With 4,096, which were possible before, a frame of 250 KB took 17 MB there.
pub const FRAME_ENTRIES_MAX: usize = READ_BYTES / BLOCK_BYTES;

/// Proposals and calls waiting for one group's Raft; above it a proposal is refused, and nothing was written.
pub const RAFT_QUEUE_MAX: usize = 1_024;

/// Append requests of them; no more are read for the follower above either. As many as openraft takes in on the other side before it answers.
pub const RAFT_APPENDS_IN_FLIGHT_MAX: usize = 64;

/// A follower with more than this on its way catches up: its entries wait behind those of others.
pub const RAFT_APPEND_BYTES_BULK: usize = 1 << 20;

/// A follower that answers no append request for this long loses its stream; what was on it is sent again.
pub const RAFT_APPEND_WAIT: Duration = Duration::from_secs(5);

/// Longest wait for a purge that a leader has put off: a follower that does not answer has lost its stream by then.
pub const PURGE_WAIT: Duration = RAFT_APPEND_WAIT.saturating_add(Duration::from_secs(1));

/// A follower that is behind is sent at least this much in a second while records are produced; see `peer::pace`.
pub const CATCH_UP_BYTES_PER_S_MIN: u64 = 32 << 20;

/// How long the news that entries are committed waits for entries to go with to a follower.
pub const RAFT_COMMIT_HOLD: Duration = Duration::from_millis(1);

/// How long entries gather for a follower beyond the majority; see `raft::thrift`.
pub const RAFT_SPARE_HOLD: Duration = Duration::from_millis(1);

/// After a request with more bytes of entries than this nothing gathers for it.
pub const RAFT_SPARE_BYTES_MAX: usize = 32 << 10;

/// Most requests to such a follower for which nothing is to gather, after a wait in vain.
pub const RAFT_SPARE_SKIP_MAX: u32 = 255;

/// How long an entry that a leader has taken waits for a majority that does not answer at all, before its caller is told that
/// it may or may not be committed. Longer than an election takes, and than a node that is restarted.
pub const RAFT_QUORUM_WAIT: Duration = Duration::from_secs(5);

/// How long a shard that closes waits for what is in flight: longer than that waits for a majority.
pub const SHARD_CLOSE_WAIT: Duration = Duration::from_secs(6);

/// How often flushes are looked at: those of the voters of each shard that is led here, and operations of storage under way.
pub const FLUSH_LOOK: Duration = Duration::from_millis(250);

/// An operation of storage that takes longer is named in the status: far beyond what any good device takes.
pub const STORAGE_SLOW: Duration = Duration::from_secs(5);

/// One that takes longer stops its replica: twice what Linux gives a command of a disk (30 s for NVMe and SCSI) before it
/// resets the device, so that a device that comes back by that is waited for.
pub const STORAGE_HUNG: Duration = Duration::from_secs(60);

/// A disk whose appends take so many times as long as those of others is slow. Half of what is to be found (10), twice
/// what a busy device or core makes of one among equal disks.
pub const FLUSH_SLOW_FACTOR: u64 = 5;

/// Below this nothing is slow: a core that is kept from its work for a moment takes as long. So a disk whose flushes of less than
/// 50 us take ten times as long leads on. No producer waits for a leader's disk while a majority of others is fast, and for half
/// a millisecond at most when one of them fails; a move costs all producers a moment without a leader, and more round trips than that.
pub const FLUSH_SLOW_MIN: Duration = Duration::from_micros(500);

/// For how long a leader's disk is slow at every look before its leadership moves: three looks, a second is left of the two
/// within which it is to have moved.
pub const FLUSH_SLOW_FOR: Duration = Duration::from_millis(750);

/// For how long a time of a flush tells how fast a disk is. What a replica took while it caught up, with large entries, is no reason
/// to keep it from leading a shard in which nothing is written since.
pub const FLUSH_TIME_AGE_MAX: Duration = FLUSH_HOLD_OFF_MIN;

/// Times of flushes that are older tell nothing where enough others are newer: of a shard in which little is written they would
/// outweigh for seconds what its disk takes since it has become slow.
pub const FLUSH_TIME_FRESH: Duration = Duration::from_secs(1);

/// After a slow leader has asked another one to lead it does not ask again for this long.
pub const FLUSH_MOVE_PAUSE: Duration = Duration::from_secs(10);

/// How long a disk that was slow has to be fast before its node is led back to; twice as long each time ...
pub const FLUSH_HOLD_OFF_MIN: Duration = Duration::from_secs(10);

/// ... up to this; once it was fast for so long beyond that, it counts as it did at first.
pub const FLUSH_HOLD_OFF_MAX: Duration = Duration::from_secs(320);

/// For how long beyond that a node that gave the leadership away is not led back to while nobody knows how fast its disk is, since
/// too little is written: long enough for a few entries to tell, in any shard in which a slow disk is noticed at all.
pub const FLUSH_DOUBT_MAX: Duration = Duration::from_secs(60);

/// First pause before a replica that cannot be reached is tried again; it doubles ...
pub const RAFT_RETRY_MIN: Duration = Duration::from_millis(5);

/// ... up to this.
pub const RAFT_RETRY_MAX: Duration = Duration::from_millis(200);

/// Bytes of entries that an offline reader of a group's state keeps in memory; a group of small state has far fewer after
/// its newest checkpoint.
pub const OFFLINE_BYTES_MAX: usize = 256 << 20;

/// Most reactors.
pub const REACTORS_MAX: usize = 1_024;

/// Operations of one reactor's storage ring in the kernel; more wait in the order of their arrival.
pub const RING_OPERATIONS_MAX: usize = 256;

/// How long a reactor looks for the completion of a durable write before it parks. Several times what a fast device takes:
/// nodes that share one wait for each other's flushes.
pub const RING_SPIN: Duration = Duration::from_micros(400);

/// How long a reactor looks for what comes next after a durable write, before it parks: the round trip of a client that
/// answers each ack with a request, a follower's answer, the leader's next entries. Each wake-up of a parked reactor costs
/// 20 to 40 µs, and a record in a cluster five of them: one in flight took 436 µs with 50 µs here, 325 with this. In vain
/// it is left out, like the spin.
pub const RING_LINGER: Duration = Duration::from_micros(400);

/// A spinning reactor that is kept from its core for longer than this shares it with others, and parks.
pub const RING_YIELD_MAX: Duration = Duration::from_micros(100);

/// On a device that is slower than `RING_SPIN`, or on a shared core: most occasions to spin that are left out after one in vain.
pub const RING_SPIN_BACKOFF_MAX: u32 = 255;

/// How long a ring waits at its end for a device that does not answer; then it leaks what the kernel still owns.
pub const RING_DRAIN_MAX: Duration = Duration::from_secs(10);

/// Bytes of a data directory that are kept for what frees space (`env::reserve`): some two hundred logs that need room for a
/// last few entries each, and their checkpoints.
pub const DISK_RESERVE_BYTES: u64 = 16 << 20;

/// Bytes of one shard that wait for space on a full disk: above it a follower reads no more entries. What waits has to be
/// written before a vote is, from the reserve, and Raft does nothing else meanwhile; a trim that frees space is written if it
/// comes within this much, and a snapshot frees it later.
pub const STUCK_BYTES_MAX: usize = 4 << 20;

/// Jobs of one reactor's storage thread that wait or run; more wait in the order of their arrival.
pub const STORAGE_JOBS_MAX: usize = 256;

/// Bytes of one read or write of a file; an error above it (the kernel cuts at 2 GiB - 4 KiB).
pub const TRANSFER_BYTES_MAX: usize = 1 << 30;

const _: () = assert!(ENTRY_BYTES_TARGET < ENTRY_BYTES_MAX);
const _: () = assert!(2 * (STUCK_BYTES_MAX + READ_BYTES) as u64 <= DISK_RESERVE_BYTES);
const _: () = assert!(PROPOSE_BYTES_EAGER <= ENTRY_BYTES_TARGET);
const _: () = assert!(MESSAGE_BYTES_MAX + BATCH_RECORDS_MAX * 26 <= ENTRY_BYTES_MAX);
const _: () = assert!(ENTRY_BYTES_MAX < TRANSFER_BYTES_MAX && READ_BYTES < TRANSFER_BYTES_MAX);
const _: () = assert!((2 * RING_OPERATIONS_MAX).is_power_of_two());
const _: () = assert!(RECORD_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(SEGMENT_BYTES_MIN.is_multiple_of(BLOCK_BYTES as u64));
const _: () = assert!(SEGMENT_BYTES_LIMIT <= u32::MAX as u64);
const _: () = assert!(STREAM_PRODUCE_BYTES_IN_FLIGHT_MAX >= MESSAGE_BYTES_MAX);
const _: () = assert!(MEMORY_BYTES_DEFAULT >= MEMORY_BYTES_MIN);
// As said above it, and in `lib.rs`; and that a node of two reactors stays within 1.2 GB beside its connections.
const _: () = assert!(REACTOR_BYTES_MAX == 512 << 20);
const _: () = assert!(2 * REACTOR_BYTES_MAX + HTTP_BYTES_MAX + HTTP_READ_BYTES_MAX <= 1_120 << 20);
// What a stream sends finds room in a shard's queue, also when others have filled half of it.
const _: () = assert!(STREAM_REQUESTS_UNDER_WAY_MAX <= PRODUCE_QUEUE_REQUESTS_MAX / 2);
const _: () = assert!(STREAM_BYTES_UNDER_WAY_MAX <= PRODUCE_QUEUE_BYTES_MAX / 2);
const _: () = assert!(MEMORY_BYTES_MIN >= 2 * MEMORY_RESERVE_BYTES && MEMORY_BYTES_MIN >= 8 * MEMORY_CONSENSUS_BYTES);
const _: () = assert!(MEMORY_BYTES_MIN - MEMORY_RESERVE_BYTES >= 2 * (MESSAGE_BYTES_MAX + BATCH_RECORDS_MAX * 26));
const _: () = assert!(MEMORY_PASSED_ON_BYTES >= 2 * MESSAGE_BYTES_MAX);
const _: () = assert!(MEMORY_RESERVE_BYTES - MEMORY_PASSED_ON_BYTES - MEMORY_CONSENSUS_BYTES >= 2 * ENTRY_BYTES_MAX);
const _: () = assert!(MAILBOX_BYTES_MAX >= 2 * MESSAGE_BYTES_MAX);
const _: () = assert!(STORAGE_SLOW.as_millis() > 2_000 && STORAGE_SLOW.as_millis() < STORAGE_HUNG.as_millis());
const _: () = assert!(SHARD_CLOSE_WAIT.as_millis() > RAFT_QUORUM_WAIT.as_millis());
const _: () = assert!(FLUSH_SLOW_FOR.as_millis() + 2 * FLUSH_LOOK.as_millis() < 2_000);
const _: () = assert!(FLUSH_TIME_FRESH.as_millis() < FLUSH_TIME_AGE_MAX.as_millis());
const _: () = assert!(FLUSH_DOUBT_MAX.as_millis() > 2 * FLUSH_TIME_AGE_MAX.as_millis());
// Half of what there is for clients, and the least part of each connection, leave room for requests.
const _: () = assert!(
    (MEMORY_BYTES_MIN - MEMORY_RESERVE_BYTES) / 2 + CONNECTIONS_MAX * RECEIVED_BYTES_MIN + MESSAGE_BYTES_MAX
        <= MEMORY_BYTES_MIN - MEMORY_RESERVE_BYTES
);
// What the clients of one reactor can have sent that nobody has taken.
const _: () = assert!(UNREAD_BYTES_MAX + CONNECTIONS_MAX * UNREAD_BYTES_MIN <= 96 << 20);
const _: () = assert!(CONNECTION_WINDOW_BYTES_MAX as usize <= UNREAD_BYTES_MAX / 4);
const _: () = assert!(CONNECTION_WINDOW_BYTES_MAX as usize <= CONNECTION_WINDOW_BYTES_LENT / 4);
const _: () = assert!(ENTRIES_IN_FLIGHT_MAX < RAFT_QUEUE_MAX);
const _: () = assert!(NODE_SHARDS_MAX + RAFT_QUEUE_MAX <= PEER_STREAMS_MAX);
// Several windows of streams that are not read on.
const _: () = assert!(
    4 * (PEER_STREAM_WINDOW_BYTES as usize + 2 * PEER_BACKLOG_READ_BYTES)
        <= PEER_BACKLOG_BYTES_MAX / 100 * PEER_BACKLOG_WINDOWS_PERCENT
);
// In the least budget, too (`budget::Budget::new`).
const _: () = assert!(PEER_BACKLOG_BYTES_MAX <= MEMORY_BYTES_MIN / 5);
const _: () = assert!(PEER_PING_INTERVAL.as_millis() * 3 <= PEER_SILENT_MAX.as_millis());
const _: () = assert!(2 * (SEAT_GRACE.as_millis() + SEAT_LOOK.as_millis()) < TRANSIENT_RETRY_MAX.as_millis());
const _: () = assert!(PEER_OWN_STALL_MAX.as_millis() < PEER_SILENT_MAX.as_millis());
