//! Keeps the topology fresh: watches one server, goes to another when that one is gone or cut off from the rest, and
//! asks from time to time where servers cannot be watched.

#![allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::sync::{Notify, watch as channel};

use super::{
    Inner, backoff,
    topology::{self, Scope},
};
use crate::{
    client::{Client, ClientError, Watched},
    frontend::Code,
    proto::ringlog::v1,
};

/// Least time between two servers, whoever asks for a fresh topology meanwhile.
const PAUSE_MIN: Duration = Duration::from_millis(25);

/// What the watcher needs of the handle, without keeping it alive.
pub(super) struct Watcher {
    inner: Weak<Inner>,
    /// Somebody wants a fresh topology.
    refresh: Arc<Notify>,
    /// Its sender goes with the last handle.
    ended: channel::Receiver<()>,
}

/// Why the watcher goes on to another server.
enum Next {
    /// This one is gone, or does not see the others.
    Failed,
    /// It told what it knew, and cannot be watched.
    Polled,
    /// Nobody has a handle any more.
    Ended,
}

impl Watcher {
    pub(super) fn new(inner: &Arc<Inner>, ended: channel::Receiver<()>) -> Watcher {
        Watcher { inner: Arc::downgrade(inner), refresh: Arc::clone(&inner.refresh), ended }
    }

    /// Watches until nobody has a handle any more.
    pub(super) async fn run(mut self) {
        let mut failures = 0;
        loop {
            let Some(inner) = self.inner.upgrade() else { return };
            let poll_interval = inner.options.poll_interval;
            let mut addresses = inner.addresses_by_turn();
            if failures > 0 {
                // Who is alive is what we were told by somebody who may be cut off: now everybody gets a turn.
                addresses.sort();
                let first = failures as usize % addresses.len();
                addresses.rotate_left(first);
            }
            let connected = inner.first_of(&addresses, None).await;
            drop(inner);
            let next = match connected {
                Ok(client) => self.follow(&client).await,
                Err(_) => Next::Failed,
            };
            let wait = match next {
                Next::Ended => return,
                Next::Polled => {
                    failures = 0;
                    poll_interval
                }
                Next::Failed => {
                    failures += 1;
                    backoff::jittered(failures)
                }
            };
            if self.pause(wait).await.is_none() {
                return;
            }
        }
    }

    /// Watches one server as long as it tells something; asks once if it cannot be watched.
    async fn follow(&mut self, client: &Client) -> Next {
        let mut watched = match client.watch_servers(Vec::new()).await {
            Ok(watched) => watched,
            Err(_) => return Next::Failed,
        };
        loop {
            let told = match self.next(client, &mut watched).await {
                Some(Ok(told)) => told,
                Some(Err(error)) if error.code() == Some(Code::Unimplemented) => {
                    return match client.get_servers(Vec::new()).await {
                        Ok(told) => self.take(told),
                        Err(_) => Next::Failed,
                    };
                }
                Some(Err(_)) => return Next::Failed,
                None => return Next::Ended,
            };
            match self.take(told) {
                Next::Polled => {}
                other @ (Next::Failed | Next::Ended) => return other,
            }
        }
    }

    /// What the server tells next, by itself or because somebody asks; `None` when nobody has a handle any more.
    async fn next(
        &mut self,
        client: &Client,
        watched: &mut Watched,
    ) -> Option<Result<v1::GetServersResponse, ClientError>> {
        tokio::select! {
            biased;
            _ = self.ended.changed() => None,
            told = watched.next() => Some(match told {
                Some(told) => told.map(|told| {
                    let v1::WatchServersResponse { cluster_id, servers, topics } = told;
                    v1::GetServersResponse { cluster_id, servers, topics }
                }),
                None => Err(ClientError::Lost {
                    address: client.address().to_owned(),
                    cause: "the server ended the watch".to_owned(),
                    definite: true,
                }),
            }),
            () = self.refresh.notified() => Some(client.get_servers(Vec::new()).await),
        }
    }

    /// Takes what was told. A server that sees no majority is cut off: what it tells is old, and another one is asked.
    fn take(&self, told: v1::GetServersResponse) -> Next {
        let Some(inner) = self.inner.upgrade() else { return Next::Ended };
        if !topology::sees_majority(&told) {
            return Next::Failed;
        }
        inner.update(told, Scope::All);
        Next::Polled
    }

    /// Waits, but not much longer than until somebody asks; `None` when nobody has a handle any more.
    async fn pause(&mut self, wait: Duration) -> Option<()> {
        tokio::time::sleep(wait.min(PAUSE_MIN)).await;
        tokio::select! {
            biased;
            _ = self.ended.changed() => None,
            () = self.refresh.notified() => Some(()),
            () = tokio::time::sleep(wait.saturating_sub(PAUSE_MIN)) => Some(()),
        }
    }
}
