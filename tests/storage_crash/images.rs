//! The device as a crash may leave it, and what the log must be there.

use std::{collections::BTreeMap, path::Path};

use ringlog::{
    config::DurableForm,
    ids::{Index, LogId, Term},
};

use crate::{
    device::Op,
    workload::{Event, RealLog, What, entry, hard_state, open, payload, read_all},
};

/// What a device writes in one piece.
const SECTOR_BYTES: usize = 512;

/// The block with ext4's superblock, which is written in place and has a checksum: ext4 itself does not mount when it is
/// torn, so that this one is written in one piece. (Seen once in 1,050 images.)
const SUPERBLOCK: std::ops::Range<usize> = 0..4_096;

/// How much of what was written since the last flush a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// All.
    All,
    /// Each sector or not, as this seed says: later ones may be there and earlier ones not.
    Some(u64),
}

/// Goes through a tape and gives images of its prefixes.
pub struct Images<'a> {
    ops: &'a [Op],
    /// All that was flushed.
    durable: Vec<u8>,
    /// Operations before here are in it.
    flushed: usize,
}

impl<'a> Images<'a> {
    /// Over what the device held before the tape.
    pub fn new(made: Vec<u8>, ops: &'a [Op]) -> Images<'a> {
        Images { ops, durable: made, flushed: 0 }
    }

    /// The device after the first `end` operations, which are not fewer than the last time.
    pub fn at(&mut self, end: usize, left: Left) -> Vec<u8> {
        let flush = self.ops[..end].iter().rposition(|op| matches!(op, Op::Flush)).map_or(0, |at| at + 1);
        for op in &self.ops[self.flushed.min(flush)..flush] {
            if let Op::Write { position, bytes } = op {
                self.durable[*position..position + bytes.len()].copy_from_slice(bytes);
            }
        }
        self.flushed = self.flushed.max(flush);
        let mut image = self.durable.clone();
        let mut rng = fastrand::Rng::with_seed(if let Left::Some(seed) = left { seed } else { 0 });
        for op in &self.ops[flush..end] {
            let Op::Write { position, bytes } = op else { continue };
            let superblock_is_left = rng.bool();
            for (number, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                let at = position + number * SECTOR_BYTES;
                let is_left = match left {
                    Left::Nothing => false,
                    Left::All => true,
                    Left::Some(_) if SUPERBLOCK.contains(&at) => superblock_is_left,
                    Left::Some(_) => rng.bool(),
                };
                if is_left {
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        image
    }
}

/// What the log must and may be at one point of the tape.
#[derive(Debug, Default)]
pub struct Promise {
    /// Acknowledged, and not allowed to go.
    must: BTreeMap<u64, LogId>,
    /// Sent.
    may: Vec<LogId>,
    /// An end that it must not be beyond.
    end_max: Option<u64>,
    /// Below it entries may be gone; and those below the other one must.
    purging: u64,
    purged: u64,
    voting: u64,
    voted: u64,
    checkpointed: Option<u64>,
}

impl Promise {
    /// After the first `end` operations.
    pub fn at(events: &[Event], end: usize) -> Promise {
        let mut promise = Promise::default();
        for event in events.iter().take_while(|event| event.at <= end) {
            match event.what {
                What::Sent(id) => {
                    promise.may.push(id);
                    promise.end_max = None;
                }
                What::Acked(last) => {
                    // And everything before it.
                    let purging = promise.purging;
                    let sent = promise.may.iter().filter(|id| (purging..=last.index.0).contains(&id.index.0));
                    promise.must.extend(sent.map(|id| (id.index.0, *id)));
                }
                What::Cutting(from) => {
                    promise.must.split_off(&from);
                    // It was the state of an entry that goes.
                    promise.checkpointed = promise.checkpointed.filter(|index| *index < from);
                }
                What::Cut(from) => {
                    promise.end_max = Some(from);
                    promise.may.retain(|id| id.index.0 < from);
                }
                What::Purging(to) => {
                    promise.must = promise.must.split_off(&to);
                    promise.purging = to;
                }
                What::Purged(to) => promise.purged = to,
                What::Voting(term) => promise.voting = term,
                What::Voted(term) => promise.voted = term,
                What::Checkpointed(index) => promise.checkpointed = Some(index),
            }
        }
        promise
    }

    /// Opens the log below `root`, compares, and goes on with it.
    pub async fn check(&self, root: &Path) -> Result<(), String> {
        let log = open(root, DurableForm::Dsync).await?;
        let first = log.first_index().0;
        if first < self.purged || first > self.purging {
            return Err(format!("it begins at {first}, not between {} and {}", self.purged, self.purging));
        }
        let entries = read_all(&log).await?;
        self.check_entries(first, &entries)?;
        let vote = log.hard_state().vote.map_or(0, |vote| vote.term.0);
        if vote < self.voted || vote > self.voting || (vote > 0 && log.hard_state() != hard_state(vote)) {
            return Err(format!("the vote is {:?}, not between {} and {}", log.hard_state(), self.voted, self.voting));
        }
        self.check_checkpoint(&log).await?;
        goes_on(&log).await?;
        log.close().await.map_err(|error| error.to_string())
    }

    fn check_entries(&self, first: u64, entries: &[ringlog::format::entry::StoredEntry]) -> Result<(), String> {
        for (number, entry) in entries.iter().enumerate() {
            let id = entry.header.id;
            if id.index.0 != first + number as u64 || !self.may.contains(&id) {
                return Err(format!("it holds {id}, which was never there or was removed"));
            }
            if entry.payload() != payload(id) {
                return Err(format!("{id} has another content"));
            }
        }
        for id in self.must.values() {
            let found = id.index.0.checked_sub(first).and_then(|number| entries.get(number as usize));
            if found.map(|entry| entry.header.id) != Some(*id) {
                return Err(format!("{id} was acknowledged, found is {:?}", found.map(|entry| entry.header.id)));
            }
        }
        let end = first + entries.len() as u64;
        match self.end_max {
            Some(end_max) if end > end_max => Err(format!("it goes on to {end}, beyond the cut at {end_max}")),
            _ => Ok(()),
        }
    }

    async fn check_checkpoint(&self, log: &RealLog) -> Result<(), String> {
        let Some(index) = self.checkpointed else { return Ok(()) };
        // Its entry may have been purged since.
        if !self.must.contains_key(&index) {
            return Ok(());
        }
        let found = log.load_checkpoint(Index(index)).await.map_err(|error| error.to_string())?;
        if found.is_none_or(|(at, content)| at.0 != index || content != payload(self.must[&index])) {
            return Err(format!("the checkpoint at {index} is gone"));
        }
        Ok(())
    }
}

/// The log takes an entry and acknowledges it.
async fn goes_on(log: &RealLog) -> Result<(), String> {
    let next = log.last().map_or(log.first_index(), |last| last.index.next());
    let term = log.last().map_or(1, |last| last.term.0 + 1);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let id = LogId { term: Term(term.max(1_000_000)), index: next };
    let done = Box::new(move |result| drop(sender.send(result)));
    log.append(vec![entry(id, log.log_end())], done).map_err(|error| error.to_string())?;
    receiver.await.map_err(|_| "the log gives no answer".to_owned())?.map_err(|error| error.to_string())
}
