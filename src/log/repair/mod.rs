//! A log with damage in what was durable: what of it is whole, and how it becomes whole again.
//!
//! - `survey` reads all of a directory that does not open (or whose reads fail) and says which runs of entries are whole,
//!   and between which known points the others lie. It changes nothing.
//! - `mend` builds each damaged segment file anew, from what is whole and from what others have.
//! - `salvage` reads whole entries from a directory that does not open, for others who need them.
//! - `checkpoint`: a log that begins after a purge needs one; a damaged one that is needed comes from others.
//! - What is missing and purged by those who had it is purged here, too: the log begins behind it (`raft::repair`).
//! - `cut` gives up everything from the first gap on, because a person said so: with one copy there is no other way.
//!
//! **What may fill a gap.** On both sides of a gap something is known: before it the chain hash that the next entry
//! continues; behind it the next whole entry (whose chain hash names the one before), the header of an entry whose payload
//! is damaged, the base of the next segment, a footer, or the committed log id of the hard state. Only entries that lead by
//! their chain from the one to the other are taken, so what is put back is what was there, bit by bit, whoever sends it and
//! whether or not that one knows it to be committed. Where nothing is known behind a gap (all of the last segment is lost, or the
//! device cannot read what is behind its last entry), only what another one's open group knows to be committed is taken: as many
//! entries as may have been there. (A chain hash of 64 bits is no defence against a forger; who sends is a
//! node of the cluster, which proved it.) So damaged replicas mend each other as long as one whole copy of each entry
//! exists, and a mended replica comes back with exactly what it had: it acknowledged nothing that it does not hold.
//!
//! **What is never mended:** a hard state without a whole slot. The vote in it is lost, and whoever forgets a vote can give it
//! twice. (While the device cannot read one of its slots, that may pass.) Nor what nobody can prove: then the replica stays
//! closed, and says so.
//!
//! **A crash while mending** leaves the damaged file, or the whole one: a new file gets its name when it is durable, and files
//! whose entries went into it are removed after that. Its temporary name is one that recovery removes.

mod checkpoint;
mod cut;
mod fill;
mod mend;
mod salvage;
mod survey;

use std::path::PathBuf;

pub use self::{
    checkpoint::{begin_at, keep_checkpoint, missing_checkpoint, salvage_checkpoint, salvage_purged_checkpoint},
    cut::{Cut, cut},
    mend::{Mended, Sent, mend},
    salvage::salvage,
    survey::survey,
};
use super::LogError;
use crate::{
    format::{
        entry::EntryHeader,
        segment::{LogPoint, SegmentHeader},
        state_files::{HardStateSlot, Vote},
    },
    ids::{Index, LogId, Offset, SegmentSequence},
};

/// What a directory holds.
#[derive(Debug)]
pub struct Survey {
    hard: HardStateSlot,
    /// All below was applied here, and so committed: a checkpoint has it.
    checkpoint_end: Index,
    parts: Vec<Part>,
    /// Files whose entries are in a part, or that hold none.
    leftovers: Vec<PathBuf>,
}

/// A segment as it is to be.
#[derive(Clone, Debug)]
struct Part {
    path: PathBuf,
    header: SegmentHeader,
    pieces: Vec<Piece>,
    /// Files whose entries go into it.
    absorbed: Vec<PathBuf>,
    /// Its file is not what it should be.
    damaged: bool,
}

/// Part of a segment, in order.
#[derive(Clone, Debug)]
enum Piece {
    /// Whole entries, one behind the other; those from `limit` on are not taken.
    Run { path: PathBuf, sequence: SegmentSequence, position: u64, bytes: u64, end: LogPoint, limit: Index },
    /// Entries that cannot be read.
    Gap(Gap),
}

/// Entries that were durable and cannot be read.
#[derive(Clone, Debug)]
pub struct Gap {
    /// File that holds them, or the one before.
    pub file: PathBuf,
    /// Where the damage begins in it, as far as is known.
    pub position: u64,
    /// Where the log stands before the first of them.
    pub before: LogPoint,
    /// Index after the last of them.
    pub end: Index,
    after: After,
}

/// What is known behind a gap.
#[derive(Clone, Debug)]
enum After {
    /// Where the log stands.
    Point(LogPoint),
    /// The next entry.
    Entry(Box<EntryHeader>),
    /// The last entry of the gap.
    Last(LogId),
    /// Nothing that counts: that there was something. What is committed in its place may follow: whatever was here is that, or was never
    /// committed (Raft's log matching and leader completeness; Ongaro and Ousterhout, 2014, 5.3 and 5.4).
    Nothing,
}

/// Why a log is not mended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RepairError {
    /// Never: the vote is lost, or what is there contradicts itself.
    #[error("{0}")]
    Hopeless(LogError),
    /// Not now: nobody who answered has what is missing.
    #[error("{gap}, and no other replica gave them: {reasons}")]
    Unfilled {
        /// What is missing.
        gap: Box<Gap>,
        /// What each of those who were asked said.
        reasons: String,
    },
    /// Not now: the log is whole but begins after a purge, no checkpoint of the state from there on is, and nobody who answered
    /// has one.
    #[error(
        "no checkpoint of the state after one of the entries {from} to {end} (exclusive) is whole, and no other replica gave \
         one: {reasons}"
    )]
    Stateless {
        /// First entry after which it would do.
        from: Index,
        /// After the last one.
        end: Index,
        /// What each of those who were asked said.
        reasons: String,
    },
    /// The own disk's: trying again may help, with another survey. `Corrupt` is a hard state that the device cannot read.
    #[error("{0}")]
    Disk(LogError),
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (file, position, from, end) = (self.file.display(), self.position, self.before.next, self.end);
        write!(f, "{file} is damaged at byte {position}: entries {from} to {end} (exclusive)")?;
        match self.end_offset() {
            Some(end) if end == self.before.offset => write!(f, ", which hold no records,")?,
            Some(end) => write!(f, ", offsets {} to {end} (exclusive),", self.before.offset)?,
            None => write!(f, ", offsets from {} on,", self.before.offset)?,
        }
        write!(f, " cannot be read")
    }
}

impl Gap {
    /// First offset behind it, if that is known.
    pub fn end_offset(&self) -> Option<Offset> {
        match &self.after {
            After::Point(point) => Some(point.offset),
            After::Entry(entry) => Some(entry.base_offset),
            After::Last(_) | After::Nothing => None,
        }
    }
}

impl Survey {
    /// Nothing is missing, and no file has to be built anew.
    pub fn is_whole(&self) -> bool {
        self.leftovers.is_empty() && self.parts.iter().all(|part| !part.damaged)
    }

    /// What is missing, in order.
    pub fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.parts.iter().flat_map(|part| &part.pieces).filter_map(|piece| match piece {
            Piece::Gap(gap) => Some(gap),
            Piece::Run { .. } => None,
        })
    }

    /// Whether nothing here speaks against a log that goes on at this place: the entries on both sides of it are missing, and where
    /// one of them was is known to have been the same. Else what fills the rest of the gap must lead from there to what is behind.
    pub fn lacks_what_is_at(&self, place: &LogPoint) -> bool {
        self.gaps().any(|gap| match &gap.after {
            _ if gap.before.next == place.next => gap.before.chain == place.chain,
            After::Point(point) if point.next == place.next => point.chain == place.chain,
            _ => (gap.before.next..gap.end).contains(&place.next),
        })
    }

    /// The same log with what others know to be committed in the place of all that is not known to be committed here: as far
    /// as there was anything. For a log that cannot be mended, because those who have what is missing have another history: what
    /// was not committed here was replaced there, damaged or not. `None`: all is committed.
    ///
    /// The last part is built anew with a sequence above that of the segments behind it: as soon as it has its name they are
    /// superseded, also when a crash leaves them there (`survey::without_superseded`).
    fn to_committed(&self) -> Option<Survey> {
        let hard = self.hard;
        let committed = hard.state.committed.map_or(Index(0), |committed| committed.index.next());
        let from = committed.max(self.checkpoint_end).max(hard.start.next);
        let end = self.last()?.index.next();
        let number = self.parts.iter().rposition(|part| part.header.base.next <= from)?;
        if end <= from {
            return None;
        }
        let mut parts: Vec<Part> = self.parts[..=number].to_vec();
        let part = &mut parts[number];
        let mut before = part.header.base;
        let mut pieces = Vec::new();
        for piece in std::mem::take(&mut part.pieces) {
            match piece {
                _ if before.next >= from => break,
                Piece::Run { path, sequence, position, bytes, end, .. } => {
                    pieces.push(Piece::Run { path, sequence, position, bytes, end, limit: from });
                    before = end;
                }
                Piece::Gap(gap) if gap.end <= from => {
                    before = LogPoint { next: gap.end, ..gap.before };
                    pieces.push(Piece::Gap(gap));
                }
                Piece::Gap(_) => break,
            }
        }
        before.next = before.next.min(from);
        pieces.push(Piece::Gap(Gap { file: part.path.clone(), position: 0, before, end, after: After::Nothing }));
        (part.pieces, part.damaged) = (pieces, true);
        let later = &self.parts[number + 1..];
        if let Some(last) = later.last() {
            part.header.sequence = SegmentSequence(last.header.sequence.0 + 1);
        }
        let leftovers = self.leftovers.iter().chain(later.iter().map(|part| &part.path)).cloned().collect();
        Some(Survey { hard, checkpoint_end: self.checkpoint_end, parts, leftovers })
    }

    /// The vote in the hard state.
    pub fn vote(&self) -> Option<Vote> {
        self.hard.state.vote
    }

    /// The last entry that the log had, as far as is known; of one of which only the index is known, with the highest term that
    /// it can have had.
    pub fn last(&self) -> Option<LogId> {
        let known = self.hard.durable();
        let Some(part) = self.parts.last() else { return known.max(self.hard.start.last()) };
        let last = part.pieces.last().map_or(part.header.base.last(), |piece| match piece {
            Piece::Run { end, .. } => end.last(),
            Piece::Gap(Gap { after: After::Point(point), .. }) => point.last(),
            Piece::Gap(Gap { after: After::Last(last), .. }) => Some(*last),
            Piece::Gap(Gap { after: After::Entry(_) | After::Nothing, before, end, .. }) => {
                let term = self.vote().map_or(before.term, |vote| vote.term.max(before.term));
                Some(LogId { term, index: Index(end.0 - 1) })
            }
        });
        last.max(known)
    }

    /// Where the log begins.
    pub fn start(&self) -> LogPoint {
        self.hard.start
    }

    /// Next offset to be given, as far as is known: with what is missing at the end.
    pub fn end_offset(&self) -> Offset {
        let Some(part) = self.parts.last() else { return self.hard.start.offset };
        part.pieces.last().map_or(part.header.base.offset, |piece| match piece {
            Piece::Run { end, .. } => end.offset,
            Piece::Gap(gap) => gap.end_offset().unwrap_or(gap.before.offset),
        })
    }
}

impl RepairError {
    /// The log's error, where it is one.
    fn hopeless(file: PathBuf, position: u64, what: String) -> RepairError {
        RepairError::Hopeless(LogError::Corrupt { file, position, what })
    }
}
