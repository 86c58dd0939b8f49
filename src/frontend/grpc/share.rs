//! How many calls a connection may have. A call that waits takes a few KiB, and there may be 4,096 connections with 1,024 of
//! them: so all of a reactor share [`limits::CALLS_MAX`], and each may have an eighth of what the others have left. Whoever
//! takes many is the first to be refused some, and a new connection always has a few.

use std::cell::Cell;

use crate::limits;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// What one connection may have of `most`, of which the others have `others`: an eighth of what is left, and `least` in any case.
pub(super) fn part_of_rest(most: usize, others: usize, least: usize) -> usize {
    (most.saturating_sub(others) / 8).max(least)
}

/// The calls of one connection. `CALLS` is the sum of all there are.
#[derive(Debug, Default)]
pub(super) struct Share {
    calls: usize,
}

impl Share {
    /// Whether a connection that has so many may have one more.
    pub(super) fn allows(&self, calls: usize) -> bool {
        calls < part_of_rest(limits::CALLS_MAX, CALLS.get() - self.calls, limits::CALLS_PER_CONNECTION_MIN)
    }

    /// Counts the connection's calls.
    pub(super) fn set(&mut self, calls: usize) {
        CALLS.set(CALLS.get() - self.calls + calls);
        self.calls = calls;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first has all it wants; with many greedy ones each gets less, all stay within the bound and what is always
    /// allowed, and the newest has some.
    #[test]
    fn greedy_connections() {
        let mut shares: Vec<Share> = (0..limits::CONNECTIONS_MAX).map(|_| Share::default()).collect();
        for (i, share) in shares.iter_mut().enumerate() {
            let mut calls = 0;
            while calls < limits::STREAMS_PER_CONNECTION_MAX as usize && share.allows(calls) {
                calls += 1;
            }
            share.set(calls);
            assert!(i > 0 || calls == limits::STREAMS_PER_CONNECTION_MAX as usize);
            assert!(calls >= limits::CALLS_PER_CONNECTION_MIN);
        }
        let least = limits::CONNECTIONS_MAX * limits::CALLS_PER_CONNECTION_MIN;
        assert!(CALLS.get() <= limits::CALLS_MAX + least, "{} calls", CALLS.get());
        drop(shares);
        assert_eq!(CALLS.get(), 0);
    }
}
