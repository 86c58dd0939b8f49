//! A damaged replica gets what it lacks from the others, before its group is opened (`log::repair` says what it takes, and
//! why that is safe).
//!
//! Until then the replica has no group: it does not vote, acknowledges nothing, and denies nothing. It gives others what of
//! its own is whole: two replicas with damage at different places mend each other.
//!
//! Asked are the members of the group, one after the other; each sends entries as they are on its disk (`Message::Fetch`),
//! committed or not. One whose group is open reads them like any others; one whose group is not, from its files.

use std::{path::PathBuf, time::Duration};

use super::{Group, GroupOptions, Machine, network::Network};
use crate::{
    env::{self, Env, buffer::Buffer},
    format::peer::{Envelope, Message},
    ids::{Index, LogId, NodeId, ShardUid},
    log::{
        LogOptions,
        repair::{Mended, RepairError, Sent, Survey, mend, salvage, survey},
    },
    peer::{
        Peers,
        frame::{FRAME_PARTS_MAX, Frame, FrameKind, FrameStream, Received},
    },
};

/// Bytes of entries in one answer, but at least one entry.
const FETCH_BYTES: usize = 4 << 20;

/// Longest wait for an answer.
const FETCH_WAIT: Duration = Duration::from_secs(5);

/// The mending of one replica whose group is not open.
pub struct Repair<E: Env> {
    disk: E::Disk,
    network: Network<E>,
    options: LogOptions,
    /// The last entry that it has said to be durable, as far as that is known.
    flushed: Option<LogId>,
    /// As long as nothing has changed since.
    survey: Option<Survey>,
}

impl<E: Env> Repair<E> {
    /// Of the replica that these options would open. Nobody else may open it until this is dropped. `flushed`: the last entry
    /// that it has said to be durable, if it was open until now: damage to the end of a log cannot be told from a torn write.
    pub fn new(disk: E::Disk, peers: Peers<E>, options: &GroupOptions, flushed: Option<LogId>) -> Repair<E> {
        let network = Network::new(peers, options.shard, options.slot);
        Repair { disk, network, options: log_options(options), flushed, survey: None }
    }

    /// Looks for what is missing, once, and gets it from these nodes. The group can be opened when it returns `Ok`.
    ///
    /// # Errors
    /// `Unfilled`: trying again may help. `Hopeless`, `Disk`.
    pub async fn attempt(&mut self, others: &[NodeId]) -> Result<Mended, RepairError> {
        let survey = match self.survey.take() {
            Some(survey) => survey,
            None => survey(&self.disk, &self.options, self.flushed).await?,
        };
        let mut mended = Mended::default();
        let fetch = async |node, from, end| self.fetch(node, from, end).await;
        let result = mend(&self.disk, &self.options, &survey, others, fetch, &mut mended).await;
        if mended.segments == 0 && matches!(result, Err(RepairError::Unfilled { .. })) {
            self.survey = Some(survey);
        }
        result.map(|()| mended)
    }

    async fn fetch(&self, node: NodeId, from: Index, end: Index) -> Result<Sent, String> {
        let (line, message) = (self.network.line(node), Message::Fetch { from, end });
        let frame = line.frame(FrameKind::Raft, message, Vec::new());
        let call = self.network.peers().call(line.to, frame, env::net::Priority::Bulk, FETCH_WAIT);
        let received = call.await.map_err(|error| error.to_string())?;
        match line.answer(&received).map_err(|error| error.to_string())? {
            Message::Fetched { committed_end } => {
                let entry = |part: Buffer| {
                    let bytes = part.len();
                    part.freeze_padded().slice(..bytes)
                };
                Ok(Sent { entries: received.parts.into_iter().map(entry).collect(), committed_end })
            }
            other => Err(line.unexpected(&other).to_string()),
        }
    }
}

/// How a group's log is kept.
pub(super) fn log_options(options: &GroupOptions) -> LogOptions {
    let GroupOptions { dir, shard, segment_bytes_max, owner, .. } = options.clone();
    LogOptions { dir, shard, segment_bytes_max, owner }
}

/// Whether a stream asks for entries of a replica, which one that is not open can answer, too (`give_salvaged`).
pub fn is_fetch(first: &Received) -> bool {
    first.kind == FrameKind::Raft && asked(first).is_some()
}

fn asked(first: &Received) -> Option<(Index, Index)> {
    match Envelope::decode(&first.envelope).ok()?.message {
        Message::Fetch { from, end } => Some((from, end)),
        _ => None,
    }
}

/// Answers such a stream from the directory of a group that is not open.
pub async fn give_salvaged<E: Env>(
    disk: E::Disk,
    dir: PathBuf,
    (group, owner): (ShardUid, u64),
    first: Received,
    stream: FrameStream<E>,
) {
    let Some((from, end)) = asked(&first) else { return };
    let options = LogOptions { dir, shard: group, segment_bytes_max: 0, owner };
    let entries = salvage(&disk, &options, from, end, FETCH_BYTES).await.map_err(|error| error.to_string());
    // Which of what is in the files is committed is not known.
    let sent = entries.map(|entries| Sent { entries, committed_end: Index(0) });
    give(group, sent, from, stream).await;
}

async fn give<E: Env>(group: ShardUid, sent: Result<Sent, String>, from: Index, mut stream: FrameStream<E>) {
    let (message, mut parts) = match sent {
        Ok(sent) if sent.entries.is_empty() => {
            (Message::Failed { cause: format!("entry {from} is not here") }, Vec::new())
        }
        Ok(Sent { entries, committed_end }) => (Message::Fetched { committed_end }, entries),
        Err(cause) => (Message::Failed { cause }, Vec::new()),
    };
    parts.truncate(FRAME_PARTS_MAX);
    let envelope = Envelope { group, message }.encode();
    // Who has gone asks again.
    if stream.sender.send(Frame { kind: FrameKind::Raft, envelope, parts }).await.is_ok() {
        stream.sender.finish();
    }
}

impl<E: Env, M: Machine> Group<E, M> {
    /// Answers a peer that lacks entries with those of this log, as far as they are durable here.
    pub(super) async fn give_entries(self, first: Received, stream: FrameStream<E>) {
        let Some((from, end)) = asked(&first) else { return };
        let log = self.log();
        let durable = log.flushed().map_or(Index(0), |flushed| flushed.index.next());
        let committed_end = self.applied_end();
        let sent = match log.read(from, end.min(durable), FETCH_BYTES).await {
            _ if from >= durable => Err(format!("entry {from} is not here")),
            Ok(entries) => Ok(Sent { entries: entries.into_iter().map(|entry| entry.bytes).collect(), committed_end }),
            Err(error) => Err(error.to_string()),
        };
        give(self.inner.network.group(), sent, from, stream).await;
    }
}
