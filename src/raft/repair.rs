//! A damaged replica gets what it lacks from the others, before its group is opened (`log::repair` says what it takes, and
//! why that is safe).
//!
//! Until then the replica has no group: it does not vote, acknowledges nothing, and denies nothing. It gives others what of
//! its own is whole: two replicas with damage at different places mend each other.
//!
//! Asked are the members of the group, one after the other; each sends entries as they are on its disk (`Message::Fetch`),
//! committed or not, or a checkpoint (`Message::FetchCheckpoint`). One whose group is open reads them like any others; one whose group is not, from its files.

use std::{ops::Range, path::PathBuf, time::Duration};

use bytes::Bytes;

use super::{Group, GroupOptions, Machine, machine::place_of, network::Network};
use crate::{
    env::{self, Disk, Env, buffer::Buffer},
    format::{
        entry::EntryHeader,
        peer::{Envelope, Message},
    },
    ids::{Index, LogId, NodeId, ShardUid},
    limits::{FRAME_ENTRIES_MAX, READ_BYTES},
    log::{
        LogOptions, LogPoint, Stalled, Watched,
        repair::{
            Gap, Mended, RepairError, Sent, Survey, begin_at, keep_checkpoint, mend, missing_checkpoint, salvage,
            salvage_checkpoint, salvage_purged_checkpoint, survey,
        },
    },
    peer::{
        Peers,
        frame::{FRAME_PARTS_MAX, Frame, FrameKind, FrameStream, Received},
    },
};

/// Bytes of entries in one answer, but at least one entry: as in a leader's frames.
const FETCH_BYTES: usize = READ_BYTES;

const _: () = assert!(FRAME_ENTRIES_MAX <= FRAME_PARTS_MAX);

/// A survey reads all of the log. While a replica waits for others, it looks anew for at most one part in so many of the time:
/// what the device could not read may be there again, and more may have gone.
const SURVEY_PARTS: u64 = 16;

/// Longest wait for an answer.
const FETCH_WAIT: Duration = Duration::from_secs(5);

/// The mending of one replica whose group is not open.
pub struct Repair<E: Env> {
    disk: Watched<E>,
    network: Network<E>,
    options: LogOptions,
    /// The last entry that it has said to be durable, as far as that is known.
    flushed: Option<LogId>,
    /// The last one, and until when it will do (`Env::monotonic_us`).
    survey: Option<(Survey, u64)>,
}

impl<E: Env> Repair<E> {
    /// Of the replica that these options would open. Nobody else may open it until this is dropped. `flushed`: the last entry
    /// that it has said to be durable, if it was open until now: damage to the end of a log cannot be told from a torn write.
    pub fn new(disk: E::Disk, peers: Peers<E>, options: &GroupOptions, flushed: Option<LogId>) -> Repair<E> {
        let (disk, network) = (Watched::new(disk), Network::new(peers, options.shard, options.slot));
        Repair { disk, network, options: log_options(options), flushed, survey: None }
    }

    /// Looks for what is missing and gets it from these nodes. The group can be opened when it returns `Ok`.
    ///
    /// # Errors
    /// `Unfilled`, `Stateless`, `Disk`: trying again may help, unless it is `hung`. `Hopeless`.
    pub async fn attempt(&mut self, others: &[NodeId]) -> Result<Mended, RepairError> {
        let disk = self.disk.clone();
        disk.look_while(self.attempt_looked_at(others)).await
    }

    /// The operation that was given up because the device did not answer. It may still happen: nothing is to be mended beside it,
    /// before the process has ended.
    pub fn hung(&self) -> Option<Stalled> {
        self.disk.given_up()
    }

    async fn attempt_looked_at(&mut self, others: &[NodeId]) -> Result<Mended, RepairError> {
        let mut mended = Mended::default();
        loop {
            let kept = self.survey.take().filter(|(_, until_us)| E::monotonic_us() < *until_us);
            let is_kept = kept.is_some();
            let (survey, until_us) = match kept {
                Some(kept) => kept,
                None => self.look().await?,
            };
            let result = self.mend(others, &survey, &mut mended).await;
            if is_kept && matches!(result, Err(RepairError::Disk(_))) {
                // It is not any more as it was when it was looked at.
                continue;
            }
            if let Err(RepairError::Unfilled { gap, .. }) = &result
                && let Some(node) = self.begin_behind(gap, others, &survey).await?
            {
                mended.from.insert(node);
                mended.checkpoints += 1;
                continue;
            }
            let waits = matches!(result, Err(RepairError::Unfilled { .. } | RepairError::Stateless { .. }));
            if waits && mended.segments == 0 {
                self.survey = Some((survey, until_us));
            }
            return result.map(|()| mended);
        }
    }

    /// A survey, and until when it will do.
    async fn look(&self) -> Result<(Survey, u64), RepairError> {
        let begun_us = E::monotonic_us();
        let survey = survey(&self.disk, &self.options, self.flushed).await?;
        let now_us = E::monotonic_us();
        let rest_us = now_us.saturating_sub(begun_us).saturating_mul(SURVEY_PARTS - 1);
        Ok((survey, now_us.saturating_add(rest_us)))
    }

    async fn mend(&self, others: &[NodeId], survey: &Survey, mended: &mut Mended) -> Result<(), RepairError> {
        let fetch = async |node, from, end| self.fetch(node, from, end).await;
        mend(&self.disk, &self.options, survey, others, fetch, mended).await?;
        if let Some(wanted) = missing_checkpoint(&self.disk, &self.options, survey).await? {
            mended.from.insert(self.get_checkpoint(others, wanted, survey).await?);
            mended.checkpoints += 1;
        }
        Ok(())
    }

    /// When one of these nodes has purged what is missing, this log begins there, too, with the checkpoint that the purge was
    /// for; which node. What is purged was committed, and what is behind it stays here, so all that this replica has acknowledged
    /// is covered. Of a gap that goes on behind it the rest is got as that of any other. `None`: nobody has purged it, or what is
    /// here does not go on there.
    async fn begin_behind(&self, gap: &Gap, others: &[NodeId], survey: &Survey) -> Result<Option<NodeId>, RepairError> {
        let first = gap.before.next;
        for node in others {
            // No range: none but that of the purge.
            let Ok((index, content)) = self.fetch_checkpoint(*node, &(first..first)).await else { continue };
            let place = place_of(&content).ok().filter(|place| place.next == index.next() && index >= first);
            let Some(place) = place else { continue };
            let is_beyond = survey.last().is_none_or(|last| last.index < place.next);
            if is_beyond || self.goes_on_at(&place, survey).await? {
                keep_checkpoint(&self.disk, &self.options, index, &content).await?;
                begin_at(&self.disk, &self.options, survey, place).await?;
                return Ok(Some(*node));
            }
        }
        Ok(None)
    }

    /// Gets a checkpoint that fits this log from one of these nodes; from which. When all of this log is below it, the log goes
    /// on there, as after a snapshot.
    async fn get_checkpoint(
        &self,
        others: &[NodeId],
        wanted: Range<Index>,
        survey: &Survey,
    ) -> Result<NodeId, RepairError> {
        let mut reasons = Vec::new();
        for node in others {
            let (index, content) = match self.fetch_checkpoint(*node, &wanted).await {
                Ok(fetched) => fetched,
                Err(cause) => {
                    reasons.push(format!("node {node}: {cause}"));
                    continue;
                }
            };
            let place = place_of(&content).ok().filter(|place| place.next == index.next() && index >= wanted.start);
            let is_beyond = index >= wanted.end;
            match place {
                Some(place) if is_beyond || self.goes_on_at(&place, survey).await? => {
                    keep_checkpoint(&self.disk, &self.options, index, &content).await?;
                    if is_beyond {
                        assert!(survey.last().is_none_or(|last| last.index < place.next), "all of it is covered");
                        begin_at(&self.disk, &self.options, survey, place).await?;
                    }
                    return Ok(*node);
                }
                Some(_) | None => {
                    reasons.push(format!("node {node}: its checkpoint at entry {index} is of another history"));
                }
            }
        }
        let reasons = if reasons.is_empty() { "there is none".to_owned() } else { reasons.join("; ") };
        Err(RepairError::Stateless { from: wanted.start, end: wanted.end, reasons })
    }

    /// Whether this log stands there.
    async fn goes_on_at(&self, place: &LogPoint, survey: &Survey) -> Result<bool, RepairError> {
        let Some(id) = place.last() else { return Ok(false) };
        if place.next == survey.start().next {
            return Ok(place.last() == survey.start().last() && place.chain == survey.start().chain);
        }
        if let Some(last) = self.header(id.index).await? {
            return Ok(last.id == id && last.chain == place.chain);
        }
        // It is damaged here. The one behind it says as much: equal chains are equal logs.
        if let Some(behind) = self.header(place.next).await? {
            return Ok(behind.chain == behind.chain_after(place.chain));
        }
        Ok(survey.lacks_what_is_at(place))
    }

    /// The header of an entry here, if the entry can be read.
    async fn header(&self, index: Index) -> Result<Option<EntryHeader>, RepairError> {
        let entries = salvage(&self.disk, &self.options, index, index.next(), 0).await?;
        Ok(entries.first().and_then(|bytes| EntryHeader::parse(bytes).ok()))
    }

    async fn fetch_checkpoint(&self, node: NodeId, wanted: &Range<Index>) -> Result<(Index, Bytes), String> {
        let message = Message::FetchCheckpoint { from: wanted.start, end: wanted.end };
        match self.call(node, message).await? {
            (Message::FetchedCheckpoint { index }, mut parts) => {
                Ok((index, parts.pop().ok_or("it sent a checkpoint without content")?))
            }
            (other, _) => Err(format!("{other:?} is no answer")),
        }
    }

    async fn fetch(&self, node: NodeId, from: Index, end: Index) -> Result<Sent, String> {
        match self.call(node, Message::Fetch { from, end }).await? {
            (Message::Fetched { committed_end }, entries) => Ok(Sent { entries, committed_end }),
            (other, _) => Err(format!("{other:?} is no answer")),
        }
    }

    /// The answer to a message, and its parts.
    async fn call(&self, node: NodeId, message: Message) -> Result<(Message, Vec<Bytes>), String> {
        let line = self.network.line(node);
        let frame = line.frame(FrameKind::Raft, message, Vec::new());
        let call = self.network.peers().call(line.to, frame, env::net::Priority::Bulk, FETCH_WAIT);
        let received = call.await.map_err(|error| error.to_string())?;
        let message = line.answer(&received).map_err(|error| error.to_string())?;
        let part = |part: Buffer| {
            let bytes = part.len();
            part.freeze_padded().slice(..bytes)
        };
        Ok((message, received.parts.into_iter().map(part).collect()))
    }
}

/// How a group's log is kept.
pub(super) fn log_options(options: &GroupOptions) -> LogOptions {
    let GroupOptions { dir, shard, segment_bytes_max, owner, .. } = options.clone();
    LogOptions { dir, shard, segment_bytes_max, owner }
}

/// Whether a stream asks for what a replica has in its files, which one that is not open can answer, too (`give_salvaged`).
pub fn is_fetch(first: &Received) -> bool {
    first.kind == FrameKind::Raft && asked(first).is_some()
}

/// What a damaged replica asks for, of these entries.
enum Asked {
    Entries(Index, Index),
    Checkpoint(Index, Index),
}

fn asked(first: &Received) -> Option<Asked> {
    match Envelope::decode(&first.envelope).ok()?.message {
        Message::Fetch { from, end } => {
            let end_max = Index(from.0.saturating_add(FRAME_ENTRIES_MAX as u64));
            Some(Asked::Entries(from, end.min(end_max)))
        }
        Message::FetchCheckpoint { from, end } => Some(Asked::Checkpoint(from, end)),
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
    let options = LogOptions { dir, shard: group, segment_bytes_max: 0, owner };
    let disk = Watched::<E>::new(disk);
    if let Some(answer) = disk.look_while(salvaged(&disk, &options, &first)).await {
        give(group, answer, stream).await;
    }
}

async fn salvaged<D: Disk>(disk: &D, options: &LogOptions, first: &Received) -> Option<Answer> {
    Some(match asked(first)? {
        Asked::Entries(from, end) => {
            let entries = salvage(disk, options, from, end, FETCH_BYTES).await.map_err(|error| error.to_string());
            // Which of what is in the files is committed is not known.
            entries_answer(entries.map(|entries| Sent { entries, committed_end: Index(0) }), from)
        }
        Asked::Checkpoint(from, end) => {
            let kept = match salvage_checkpoint(disk, options, from, end).await {
                Ok(None) => salvage_purged_checkpoint(disk, options, from).await,
                kept => kept,
            };
            checkpoint_answer(kept.map_err(|error| error.to_string()), from)
        }
    })
}

type Answer = (Message, Vec<Bytes>);

fn entries_answer(sent: Result<Sent, String>, from: Index) -> Answer {
    match sent {
        Ok(sent) if sent.entries.is_empty() => failed(format!("entry {from} is not here")),
        Ok(Sent { entries, committed_end }) => (Message::Fetched { committed_end }, entries),
        Err(cause) => failed(cause),
    }
}

fn checkpoint_answer(kept: Result<Option<(Index, Bytes)>, String>, from: Index) -> Answer {
    match kept {
        Ok(Some((index, content))) if index >= from => (Message::FetchedCheckpoint { index }, vec![content]),
        Ok(_) => failed(format!("no checkpoint from entry {from} on is here")),
        Err(cause) => failed(cause),
    }
}

fn failed(cause: String) -> Answer {
    (Message::Failed { cause }, Vec::new())
}

async fn give<E: Env>(group: ShardUid, (message, parts): Answer, mut stream: FrameStream<E>) {
    let envelope = Envelope { group, message }.encode();
    // Who has gone asks again.
    if stream.sender.send(Frame { kind: FrameKind::Raft, envelope, parts }).await.is_ok() {
        stream.sender.finish();
    }
}

impl<E: Env, M: Machine> Group<E, M> {
    /// Answers a peer that lacks entries, or a checkpoint, with those of this log, as far as they are durable here.
    pub(super) async fn give_what_is_asked(self, first: Received, stream: FrameStream<E>) {
        let log = self.log();
        let answer = match asked(&first) {
            None => return,
            Some(Asked::Entries(from, end)) => {
                let durable = log.flushed().map_or(Index(0), |flushed| flushed.index.next());
                let committed_end = self.applied_end();
                let entries = match log.read(from, end.min(durable), FETCH_BYTES).await {
                    _ if from >= durable => Err(format!("entry {from} is not here")),
                    Ok(entries) => Ok(entries.into_iter().map(|entry| entry.bytes).collect()),
                    Err(error) => Err(error.to_string()),
                };
                entries_answer(entries.map(|entries| Sent { entries, committed_end }), from)
            }
            Some(Asked::Checkpoint(from, end)) => {
                let mut kept = None;
                if let Some(newest) = end.0.checked_sub(1).map(Index).filter(|newest| *newest >= from) {
                    kept = log.load_checkpoint(newest).await.ok().flatten().filter(|kept| kept.0 >= from);
                }
                // What is purged is needed nowhere any more: who asks may begin behind it.
                if let Some(purged) = log.purged().filter(|purged| kept.is_none() && purged.index >= from) {
                    kept = self.oldest_checkpoint(purged.index).await;
                }
                // Committed, whatever is kept: who asks for one of a range may go on there.
                let kept = kept.or_else(|| self.inner.shared.present().filter(|_| from < end));
                checkpoint_answer(Ok(kept), from)
            }
        };
        give(self.inner.network.group(), answer, stream).await;
    }

    /// The oldest whole checkpoint from this entry on, in the files or in memory.
    async fn oldest_checkpoint(&self, from: Index) -> Option<(Index, Bytes)> {
        let (log, snapshot) = (self.log(), self.inner.shared.snapshot().filter(|(index, _)| *index >= from));
        let before = snapshot.as_ref().map_or(Index(u64::MAX), |(index, _)| *index);
        for index in log.checkpoints().into_iter().filter(|index| (from..before).contains(index)) {
            if let Ok(Some(kept)) = log.load_checkpoint(index).await
                && kept.0 >= from
            {
                return Some(kept);
            }
        }
        snapshot
    }
}
