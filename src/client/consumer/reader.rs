//! Reads one shard: from one replica as long as that goes well, then from another, behind the last record given out.

#![allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message;
use tokio::sync::{Semaphore, mpsc, watch};

use super::{ConsumeError, Fetched, Item, Options, Range, Start};
use crate::{
    client::{
        Client, ClientError, Cluster,
        cluster::{backoff, topology::Topology},
    },
    frontend::Code,
    proto::ringlog::v1::{ConsumeStreamRequest, ConsumeStreamResponse, Record},
};

/// Where records go.
pub(super) struct Output {
    pub(super) sender: mpsc::Sender<Item>,
    /// Bytes that may wait.
    pub(super) room: Arc<Semaphore>,
}

/// What an error means for the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Another replica, or a later moment, may do better.
    Elsewhere,
    /// The leader knows better than one that may lag; if it was the leader, this is final.
    AskLeader,
    /// Nobody will answer otherwise.
    Final,
}

fn verdict(error: &ClientError, is_begun: bool) -> Verdict {
    let ClientError::Status(status) = error else { return Verdict::Elsewhere };
    match status.code {
        // The topic that was read is gone. Whoever is asked by its name now may have another one, with other records below
        // where we are. It is no lag: a server that does not know a topic asks the catalog's leader.
        Code::NotFound if is_begun => Verdict::Final,
        // A lagging replica has not the offset, or the topic, yet.
        Code::OutOfRange | Code::NotFound => Verdict::AskLeader,
        Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Unimplemented
        | Code::Unauthenticated => Verdict::Final,
        Code::ResourceExhausted if status.retry_after.is_none() => Verdict::Final,
        // Damage is one replica's, too.
        Code::ResourceExhausted
        | Code::DataLoss
        | Code::Internal
        | Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Unavailable => Verdict::Elsewhere,
    }
}

/// How reading from one replica ended.
enum Over {
    /// The end of the range is reached, or nobody reads any more.
    Done,
    /// Another replica is better.
    Moved,
}

pub(super) struct Reader {
    cluster: Cluster,
    topic: String,
    shard: u32,
    /// Where to go on.
    next: Start,
    /// That was told by a replica.
    is_begun: bool,
    end: Option<u64>,
    min_offset: Option<u64>,
    options: Options,
    output: Output,
    topology: watch::Receiver<Arc<Topology>>,
    /// Failed us last: others are tried first.
    avoided: Option<Arc<str>>,
    /// Only the leader's answer counts now.
    asks_leader: bool,
    failures: u32,
    /// Since then nothing came.
    failing_since: Option<Instant>,
}

impl Reader {
    pub(super) fn new(
        cluster: Cluster,
        topic: String,
        shard: u32,
        range: Range,
        options: Options,
        output: Output,
    ) -> Reader {
        let topology = cluster.watch();
        let Range { start, end, min_offset } = range;
        let next = start.unwrap_or(Start::Earliest);
        Reader {
            cluster,
            topic,
            shard,
            next,
            is_begun: false,
            end,
            min_offset,
            options,
            output,
            topology,
            avoided: None,
            asks_leader: false,
            failures: 0,
            failing_since: None,
        }
    }

    pub(super) async fn run(mut self) {
        while !self.is_done() {
            let error = match self.read().await {
                Ok(Over::Done) => return,
                Ok(Over::Moved) => continue,
                Err(error) => error,
            };
            let is_final = match verdict(&error, self.is_begun) {
                Verdict::Elsewhere => false,
                Verdict::AskLeader => std::mem::replace(&mut self.asks_leader, true),
                Verdict::Final => true,
            };
            let since = *self.failing_since.get_or_insert_with(Instant::now);
            if is_final || since.elapsed() >= self.options.patience {
                let error =
                    ConsumeError { topic: self.topic.clone(), shard: self.shard, cause: error.clone(), is_final };
                let is_heard = self.output.sender.send((Err(error), None)).await.is_ok();
                if is_final || !is_heard {
                    return;
                }
                self.failing_since = None;
            }
            self.pause(error.retry_after().unwrap_or_default()).await;
        }
    }

    fn is_done(&self) -> bool {
        matches!((self.next, self.end), (Start::Offset(next), Some(end)) if next >= end)
    }

    /// Waits before the next try, but no longer when the topology changes.
    async fn pause(&mut self, wait: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.cluster.refresh();
        tokio::select! {
            biased;
            () = tokio::time::sleep(wait.max(backoff::jittered(self.failures))) => {}
            _ = self.topology.changed() => {}
        }
    }

    /// Reads from one replica until that ends.
    async fn read(&mut self) -> Result<Over, ClientError> {
        let client = self.connect().await?;
        let outcome = self.read_from(&client).await;
        self.avoided = outcome.is_err().then(|| client.address().into());
        outcome
    }

    async fn connect(&mut self) -> Result<Client, ClientError> {
        let mut addresses = {
            let topology = self.topology.borrow_and_update();
            let is_connected = |address: &str| self.cluster.is_connected(address);
            // Shards begin with different replicas where there is nothing to choose.
            let turn = self.shard as usize;
            let mut found =
                topology.consume_addresses(&self.topic, self.shard, self.options.preferred, is_connected, turn);
            if self.asks_leader
                && let Some(leader) = topology.leader_address(&self.topic, self.shard)
            {
                found.insert(0, leader);
            }
            found
        };
        addresses = self.cluster.with_seeds(addresses);
        if let Some(avoided) = &self.avoided
            && !self.asks_leader
        {
            addresses.sort_by_key(|address| address == avoided);
        }
        self.cluster.first_of(&addresses).await
    }

    async fn read_from(&mut self, client: &Client) -> Result<Over, ClientError> {
        let (mut expected, mut max_records) = (None, 0);
        if let Start::Offset(next) = self.next {
            max_records = self.end.map_or(0, |end| end.saturating_sub(next));
            expected = Some(next);
        }
        // To go on is not out of range at a replica that is behind us: it is waited for.
        let min_offset = self.min_offset.max(expected.filter(|_| self.is_begun));
        let request = ConsumeStreamRequest {
            topic: self.topic.clone(),
            shard: self.shard,
            start: Some(self.next.of_stream()),
            max_records,
            max_bytes: self.options.response_bytes,
            min_offset,
            linearizable: self.options.linearizable,
        };
        let mut responses = client.consume_stream(&request).await?;
        loop {
            tokio::select! {
                biased;
                response = responses.next() => match response {
                    Some(response) => {
                        let next = self.take(client, response?, expected).await?;
                        let Some(next) = next else { return Ok(Over::Done) };
                        expected = Some(next);
                    }
                    None if self.is_done() => return Ok(Over::Done),
                    None => return Err(ended(client)),
                },
                changed = self.topology.changed() => {
                    if changed.is_ok() && self.should_move(client.address()) {
                        return Ok(Over::Moved);
                    }
                }
            }
        }
    }

    /// Gives a response out; `None` at the end of the range, or when nobody reads any more.
    async fn take(
        &mut self,
        client: &Client,
        response: ConsumeStreamResponse,
        expected: Option<u64>,
    ) -> Result<Option<u64>, ClientError> {
        let ConsumeStreamResponse { mut records, next_offset, log_start, high_watermark } = response;
        check(&records, next_offset, expected).map_err(|what| ClientError::Protocol {
            address: client.address().to_owned(),
            what: format!("topic {} shard {}: {what}", self.topic, self.shard),
        })?;
        (self.failures, self.failing_since, self.asks_leader) = (0, None, false);
        let end = self.end.unwrap_or(u64::MAX);
        records.retain(|record| record.offset < end);
        let next_offset = next_offset.min(end);
        (self.next, self.is_begun) = (Start::Offset(next_offset), true);
        if !records.is_empty() {
            let bytes: usize = records.iter().map(|record| record.encoded_len() + 32).sum();
            let permits =
                u32::try_from(bytes.min(self.options.prefetch_bytes)).expect("prefetch_bytes is at most 1 GiB");
            let Ok(room) = Arc::clone(&self.output.room).acquire_many_owned(permits).await else { return Ok(None) };
            let fetched = Fetched { shard: self.shard, records, next_offset, log_start, high_watermark };
            if self.output.sender.send((Ok(fetched), Some(room))).await.is_err() {
                return Ok(None);
            }
        }
        Ok((!self.is_done()).then_some(next_offset))
    }

    /// Whether the server that is read from is dead or goes away, and another one is not.
    fn should_move(&self, address: &str) -> bool {
        let topology = self.topology.borrow();
        let Some(server) = topology.server_at(address) else { return false };
        let replicas = topology.route(&self.topic, self.shard).map_or(&[][..], |route| &route.replicas);
        let is_well = |node| topology.server(node).is_some_and(|server| server.alive && !server.draining);
        (!server.alive || server.draining) && replicas.iter().any(|node| *node != server.node && is_well(*node))
    }
}

/// Whether these are records that may come next.
fn check(records: &[Record], next_offset: u64, expected: Option<u64>) -> Result<(), String> {
    let mut wanted = expected;
    for record in records {
        if wanted.is_some_and(|wanted| wanted != record.offset) {
            return Err(format!("offset {} came where {} was due", record.offset, wanted.unwrap_or_default()));
        }
        wanted = Some(record.offset.saturating_add(1));
    }
    match wanted {
        Some(wanted) if wanted != next_offset => Err(format!("it goes on at {next_offset} instead of {wanted}")),
        Some(_) | None => Ok(()),
    }
}

fn ended(client: &Client) -> ClientError {
    let cause = "the server ended the stream".to_owned();
    ClientError::Lost { address: client.address().to_owned(), cause, definite: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(offsets: &[u64]) -> Vec<Record> {
        offsets.iter().map(|offset| Record { offset: *offset, ..Record::default() }).collect()
    }

    /// Gaps, repetitions and a wrong end are noticed.
    #[test]
    fn only_what_is_due() {
        assert_eq!(check(&records(&[5, 6]), 7, Some(5)), Ok(()));
        assert_eq!(check(&records(&[5, 6]), 7, None), Ok(()));
        assert_eq!(check(&[], 9, None), Ok(()));
        assert!(check(&records(&[5, 7]), 8, Some(5)).is_err());
        assert!(check(&records(&[5, 5]), 6, Some(5)).is_err());
        assert!(check(&records(&[6]), 7, Some(5)).is_err());
        assert!(check(&records(&[4, 5]), 6, Some(5)).is_err());
        assert!(check(&records(&[5]), 9, Some(5)).is_err());
        assert!(check(&records(&[u64::MAX]), 0, Some(u64::MAX)).is_err());
    }
}
