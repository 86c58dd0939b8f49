//! How a process's file descriptors are shared out: storage and peers have theirs kept, clients get what is left, and are
//! refused first.
//!
//! A replica that cannot open a file waits, and its shard with it; a client that is refused goes to another node. So clients
//! never get what the shards of this node need; when more shards come, as many clients go as are too many then (`seats`). The limit
//! is read once; `server::run` raises it first.

use std::os::fd::RawFd;

use rustix::process::{Resource, getrlimit};

use crate::limits;

/// Of a process that serves nothing: runtimes, standard streams, listeners, certificates, a name that is being resolved.
const PROCESS: usize = 32;

/// Of a reactor: its runtime, its ring, its sockets.
const REACTOR: usize = 12;

/// Of a replica: the hard state and the open segment with two each, the segment made ahead with two, what is being sealed or
/// read, a directory that is being synced. Segments that consumers read beside that have up to eight more, for a while.
const REPLICA: usize = 12;

/// Replicas that may be opened beside those that are, at once.
const REPLICAS_AHEAD: usize = 2;

/// What clients get at least, however many shards there are: an operator, and a few others.
const CLIENTS_MIN: usize = 16;

/// Of the clients' descriptors, one in this many is for HTTP.
const HTTP_SHARE: usize = 4;

/// The process's descriptors.
#[derive(Clone, Copy, Debug)]
pub struct Descriptors {
    limit: usize,
    reactors: usize,
}

impl Descriptors {
    /// Those of this process with so many reactors.
    pub fn of_process(reactors: usize) -> Descriptors {
        // No limit is more than anybody opens.
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Descriptors { limit: usize::try_from(limit).unwrap_or(usize::MAX), reactors }
    }

    /// The process's limit; `usize::MAX` without one.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Has the kernel make room for all that clients may open. Its table of descriptors doubles when it is full, and then whoever opens
    /// the next one waits for every core (`expand_fdtable` in Linux's fs/file.c: `synchronize_rcu`, if there are other threads): that
    /// stopped a reactor for 4 to 26 ms at 256, 512, 1,024, 2,048 and 4,096 connections.
    pub fn make_room(&self) {
        let clients = (limits::CONNECTIONS_MAX * self.reactors).saturating_add(limits::HTTP_CONNECTIONS_MAX);
        let most = self.kept(0).saturating_add(clients).min(self.limit);
        // Without it the node works, with those stops.
        drop(rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), most as RawFd - 1));
    }

    /// Kept for the node itself while it has so many replicas.
    pub fn kept(&self, replicas: usize) -> usize {
        // The catalog's is one, too.
        PROCESS + REACTOR * self.reactors + REPLICA * (replicas + 1 + REPLICAS_AHEAD)
    }

    /// For clients, then.
    fn for_clients(&self, replicas: usize) -> usize {
        self.limit.saturating_sub(self.kept(replicas)).max(CLIENTS_MIN)
    }

    /// Most HTTP connections.
    pub fn http_max(&self, replicas: usize) -> usize {
        (self.for_clients(replicas) / HTTP_SHARE).min(limits::HTTP_CONNECTIONS_MAX)
    }

    /// Most gRPC connections, of all reactors.
    pub fn grpc_max(&self, replicas: usize) -> usize {
        let left = self.for_clients(replicas) - self.http_max(replicas);
        left.min(limits::CONNECTIONS_MAX * self.reactors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept and what clients get is never more than there is, unless there is not even enough for the node; then
    /// an operator still gets in.
    #[test]
    fn shared_out() {
        for limit in [64, 256, 1_024, 4_096, 1 << 20, usize::MAX] {
            for (reactors, replicas) in [(1, 0), (2, 8), (8, 8), (8, 1_000)] {
                let descriptors = Descriptors { limit, reactors };
                let clients = descriptors.http_max(replicas) + descriptors.grpc_max(replicas);
                let fits = descriptors.kept(replicas).saturating_add(clients) <= limit;
                assert!(fits || clients == CLIENTS_MIN, "{descriptors:?} with {replicas}");
                assert!(descriptors.http_max(replicas) >= 4 && descriptors.grpc_max(replicas) >= 12);
            }
        }
        let ample = Descriptors { limit: 1 << 20, reactors: 2 };
        assert_eq!(ample.grpc_max(10), 2 * limits::CONNECTIONS_MAX);
        assert_eq!(ample.http_max(10), limits::HTTP_CONNECTIONS_MAX);
        let small = Descriptors { limit: 256, reactors: 2 };
        assert_eq!((small.http_max(8), small.grpc_max(8)), (17, 51));
    }

    /// The process's own limit, and its table, which then has room.
    #[test]
    fn of_process() {
        let descriptors = Descriptors::of_process(1);
        assert!(descriptors.limit() >= 256);
        descriptors.make_room();
        #[allow(clippy::disallowed_methods, reason = "what the kernel says of this process")]
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let room = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        assert!(room.trim().parse::<usize>().unwrap() >= descriptors.limit().min(limits::CONNECTIONS_MAX));
    }
}
