//! One connection to each server in use, made when it is needed and again when it is lost, with back-off.

#![allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::backoff;
use crate::client::{Client, ClientError};

/// Connections by address. At most one is made to an address at a time; who asks meanwhile waits for it.
pub(super) struct Pool {
    connect_timeout: Duration,
    timeout: Duration,
    keepalive: Duration,
    entries: Mutex<BTreeMap<Arc<str>, Arc<Entry>>>,
}

struct Entry {
    /// What the last try gave.
    state: Mutex<State>,
    /// Held by who connects.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    client: Option<Client>,
    failures: u32,
    /// No earlier than then, and why.
    later: Option<(Instant, ClientError)>,
}

impl State {
    /// The answer without another try.
    fn known(&self, now: Instant) -> Option<Result<Client, ClientError>> {
        if let Some(client) = self.client.as_ref().filter(|client| client.is_usable()) {
            return Some(Ok(client.clone()));
        }
        let (until, error) = self.later.as_ref()?;
        (now < *until).then(|| Err(error.clone()))
    }
}

impl Entry {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // It is written in single assignments.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    pub(super) fn new(connect_timeout: Duration, timeout: Duration, keepalive: Duration) -> Pool {
        Pool { connect_timeout, timeout, keepalive, entries: Mutex::default() }
    }

    /// The connection to `address`, made if there is none. Fails at once while the back-off after a failure lasts: there
    /// are other servers.
    ///
    /// # Errors
    /// `Unreachable`, `Protocol`.
    pub(super) async fn get(&self, address: &Arc<str>) -> Result<Client, ClientError> {
        let entry = self.entry(address);
        if let Some(known) = entry.state().known(Instant::now()) {
            return known;
        }
        let _connecting = entry.connecting.lock().await;
        if let Some(known) = entry.state().known(Instant::now()) {
            return known;
        }
        let connected = Client::connect_watched(address, self.connect_timeout, Some(self.keepalive)).await;
        let mut state = entry.state();
        match connected {
            Ok(client) => {
                let client = client.with_timeout(self.timeout);
                *state = State { client: Some(client.clone()), ..State::default() };
                Ok(client)
            }
            Err(error) => {
                state.failures = state.failures.saturating_add(1);
                state.later = Some((Instant::now() + backoff::jittered(state.failures), error.clone()));
                Err(error)
            }
        }
    }

    /// Whether there is a connection.
    pub(super) fn is_connected(&self, address: &str) -> bool {
        let entry = self.entries().get(address).cloned();
        entry.is_some_and(|entry| entry.state().client.as_ref().is_some_and(Client::is_usable))
    }

    /// Whether a connection is there, or may be tried now.
    pub(super) fn may_work(&self, address: &str) -> bool {
        let entry = self.entries().get(address).cloned();
        entry.is_none_or(|entry| !matches!(entry.state().known(Instant::now()), Some(Err(_))))
    }

    /// Lets go of connections to other servers than these; calls on them finish.
    pub(super) fn keep(&self, is_kept: impl Fn(&str) -> bool) {
        self.entries().retain(|address, _| is_kept(address));
    }

    fn entry(&self, address: &Arc<str>) -> Arc<Entry> {
        let mut entries = self.entries();
        let entry = entries
            .entry(Arc::clone(address))
            .or_insert_with(|| Arc::new(Entry { state: Mutex::default(), connecting: tokio::sync::Mutex::default() }));
        Arc::clone(entry)
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, BTreeMap<Arc<str>, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
