//! What clients did and what they were told: the events that the checker judges, each with the time it began and ended.
//!
//! These types are also the JSON form of a history (`json`); a field that has been given out keeps its name and meaning.
//! Nothing is judged here, only refused when no client could have seen it: an end before its beginning, an offset
//! beyond all offsets.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};
use twox_hash::XxHash3_64;

/// Largest offset or count that a history may hold: sums of two do not overflow.
pub const NUMBER_MAX: u64 = 1 << 62;

/// By what a record is recognised: XXH3-64 of its value.
///
/// In JSON an integer is that hash, and a string is the value itself. Values of one shard should differ, such as by a
/// number in them: of equal ones it is only known how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Fingerprint(pub u64);

impl Fingerprint {
    /// That of a record with this value.
    #[must_use]
    pub fn of(value: &[u8]) -> Fingerprint {
        Fingerprint(XxHash3_64::oneshot(value))
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fingerprint, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Fingerprint;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a record: its value as a string, or the XXH3-64 of it as an integer")
            }

            fn visit_u64<E: de::Error>(self, hash: u64) -> Result<Fingerprint, E> {
                Ok(Fingerprint(hash))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Fingerprint, E> {
                Ok(Fingerprint::of(value.as_bytes()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What happened. Times are microseconds of one clock for all clients of a history, taken before a request goes out and
/// after its answer is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A client sent a batch.
    Produce(Produce),
    /// A client was given records, or told that there are none.
    Read(Read),
    /// All that one replica has, when everything was over.
    FinalRead(FinalRead),
    /// A replica said how far it is, and by which way.
    Status(Status),
    /// Somebody asked that the older part of a shard be let go.
    Trim(Trim),
    /// A shard's older records may go by themselves from here on.
    Retention(Retention),
}

/// A batch, and what became of it as far as its client knows. Every batch that was sent has to be in the history, also
/// one that nobody waited for: it is `indefinite`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Produce {
    /// Who sent it.
    pub client: String,
    /// When it was sent.
    pub begin_us: u64,
    /// When the outcome was known; for an indefinite one, when nobody waited any more.
    pub end_us: u64,
    /// To which topic.
    pub topic: String,
    /// To which of its shards. The client chooses it: of a batch that failed nobody knows where it would have gone.
    pub shard: u32,
    /// The records, in their order; one at least.
    pub records: Vec<Fingerprint>,
    /// The only offset that its first record was to get; absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_offset: Option<u64>,
    /// The most bytes that it takes in the shard's log; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_bytes: Option<u64>,
    /// Its place in a pipelined stream; absent for a call of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamPlace>,
    /// What became of it.
    pub outcome: Outcome,
}

/// Where a batch is in a pipelined stream of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamPlace {
    /// Which of the client's streams.
    pub id: u64,
    /// Its number in the stream: larger ones were sent later.
    pub sequence: u64,
}

/// What a client knows of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was acknowledged.
    Acked(Ack),
    /// The error was a definite one: none of it was or will be written.
    Failed,
    /// Nobody knows: it may appear, once, at any time after it was sent.
    Indefinite,
}

/// An acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// Offset of the first record.
    pub base_offset: u64,
    /// How many records have consecutive offsets from there.
    pub count: u64,
    /// What the acknowledgement is worth, as the server echoed it.
    #[serde(default, skip_serializing_if = "Durability::is_default")]
    pub durability: Durability,
    /// The timestamp that all of its records have; absent: not judged, as when the client gave them some of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_us: Option<i64>,
}

/// The durability of an acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// On stable storage on a majority of the replicas.
    #[default]
    QuorumFlushed,
    /// In the leader's memory: it may be lost, and its offsets given to others, so it is judged like an indefinite one.
    LeaderMemory,
}

impl Durability {
    fn is_default(&self) -> bool {
        *self == Durability::QuorumFlushed
    }
}

/// One answer to a consumer. A read that failed tells nothing, and is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Read {
    /// Who read. A client's connection: after a restart of the node it is another one, and has another name.
    pub client: String,
    /// When it was asked for; for an answer of a stream, when the answer before it came.
    pub begin_us: u64,
    /// When the answer was in.
    pub end_us: u64,
    /// From which topic.
    pub topic: String,
    /// From which of its shards.
    pub shard: u32,
    /// The node whose replica answered; absent if nobody knows, as when the node that was asked may have asked another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
    /// The offset that was asked for; absent if a time or a named position was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_offset: Option<u64>,
    /// What was asked for instead; absent: not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// Offset and value of each record, in the order of the answer.
    pub records: Vec<(u64, Fingerprint)>,
    /// Where the answer said to go on.
    pub next_offset: u64,
    /// The answer's first offset that is not committed.
    pub high_watermark: u64,
    /// Records below it had to be visible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_offset: Option<u64>,
    /// Everything acknowledged before had to be visible.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub linearizable: bool,
    /// The answer's first offset that is kept; absent: not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_start: Option<u64>,
}

/// Where a read was to begin, if it is no offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Behind all that the replica knew to be committed.
    Latest,
    /// With the first record, in log order, whose timestamp is not before this one; behind all records if there is none.
    TimestampUs(i64),
}

impl Read {
    /// Where the answer begins: with its first record, or where one would be.
    #[must_use]
    pub fn begins_at(&self) -> u64 {
        self.records.first().map_or(self.next_offset, |(offset, _)| *offset)
    }
}

/// The whole shard as one replica gives it, once it was waited for until it has everything (`min_offset`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinalRead {
    /// The node whose replica it is.
    pub node: u64,
    /// When it was asked for. What ended before has to be there.
    pub begin_us: u64,
    /// When the last record was in.
    pub end_us: u64,
    /// Of which topic.
    pub topic: String,
    /// Of which of its shards.
    pub shard: u32,
    /// Where it began: 0, unless older records are not kept. What is below is not looked at.
    #[serde(default)]
    pub from_offset: u64,
    /// Offset and value of each record.
    pub records: Vec<(u64, Fingerprint)>,
    /// The replica's high watermark: where its records end.
    pub end_offset: u64,
}

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// The node whose replica it is.
    pub node: u64,
    /// When it was asked.
    pub begin_us: u64,
    /// When the answer was in.
    pub end_us: u64,
    /// Of which topic.
    pub topic: String,
    /// Of which of its shards.
    pub shard: u32,
    /// How many entries it has applied (entries of Raft's log, not records).
    pub applied_end: u64,
    /// The chain hash there.
    pub chain: Chain,
    /// The first offset that it keeps; absent: not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_start: Option<u64>,
}

/// Records below an offset were to be let go. Whatever the answer was, from `begin_us` on they may be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trim {
    /// When it was sent.
    pub begin_us: u64,
    /// When the answer was in, or nobody waited any more.
    pub end_us: u64,
    /// Of which topic.
    pub topic: String,
    /// Of which of its shards.
    pub shard: u32,
    /// The first offset that was to stay.
    pub before_offset: u64,
}

/// What may go by itself, in the whole history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// When it was asked for, and when that was done. It counts from the beginning on.
    pub begin_us: u64,
    /// See above.
    pub end_us: u64,
    /// Of which topic.
    pub topic: String,
    /// Of which of its shards.
    pub shard: u32,
    /// Records that were sent longer ago than this, by the history's clock, may be gone; absent: none for their age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_us: Option<u64>,
    /// Records may be gone for the size of those behind them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_size: bool,
    /// With `by_size`: what is gone for its size has batches of more than so many bytes (`Produce::log_bytes`) behind it;
    /// absent: nobody knows how many, and log starts are not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_kept: Option<u64>,
    /// With `by_size`: so many records at the end of a final read stay whatever their size is; absent: that is not judged, either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records_kept: Option<u64>,
}

/// A chain hash: in JSON the 16 hexadecimal digits that `ringlog topic describe -o json` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Chain(pub u64);

impl TryFrom<String> for Chain {
    type Error = String;

    fn try_from(text: String) -> Result<Chain, String> {
        let is_hash = text.len() == 16 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let hash = u64::from_str_radix(&text, 16).ok().filter(|_| is_hash);
        hash.map(Chain).ok_or_else(|| format!("chain {text:?} is not 16 hexadecimal digits"))
    }
}

impl From<Chain> for String {
    fn from(chain: Chain) -> String {
        chain.to_string()
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Event {
    /// When it began and when it ended, in µs.
    #[must_use]
    pub fn span_us(&self) -> (u64, u64) {
        match self {
            Event::Produce(produce) => (produce.begin_us, produce.end_us),
            Event::Read(read) => (read.begin_us, read.end_us),
            Event::FinalRead(read) => (read.begin_us, read.end_us),
            Event::Status(status) => (status.begin_us, status.end_us),
            Event::Trim(trim) => (trim.begin_us, trim.end_us),
            Event::Retention(retention) => (retention.begin_us, retention.end_us),
        }
    }

    /// Topic and number of the shard that it is about.
    #[must_use]
    pub fn shard(&self) -> (&str, u32) {
        match self {
            Event::Produce(produce) => (&produce.topic, produce.shard),
            Event::Read(read) => (&read.topic, read.shard),
            Event::FinalRead(read) => (&read.topic, read.shard),
            Event::Status(status) => (&status.topic, status.shard),
            Event::Trim(trim) => (&trim.topic, trim.shard),
            Event::Retention(retention) => (&retention.topic, retention.shard),
        }
    }

    /// Whether this could be seen by any client of any server.
    fn check(&self) -> Result<(), String> {
        let (begin_us, end_us) = self.span_us();
        if end_us < begin_us {
            return Err(format!("it ends at {end_us} µs, before it begins at {begin_us} µs"));
        }
        let in_range = |what: &str, number: u64| {
            if number <= NUMBER_MAX { Ok(()) } else { Err(format!("{what} {number} is beyond all offsets")) }
        };
        match self {
            Event::Produce(produce) => {
                if produce.records.is_empty() {
                    return Err("a batch has one record at least".to_owned());
                }
                let Outcome::Acked(ack) = &produce.outcome else { return Ok(()) };
                in_range("base_offset", ack.base_offset)?;
                in_range("count", ack.count)
            }
            Event::Read(read) => {
                read.records.iter().try_for_each(|(offset, _)| in_range("offset", *offset))?;
                in_range("from_offset", read.from_offset.unwrap_or_default())?;
                in_range("next_offset", read.next_offset)?;
                in_range("log_start", read.log_start.unwrap_or_default())?;
                in_range("high_watermark", read.high_watermark)
            }
            Event::FinalRead(read) => {
                read.records.iter().try_for_each(|(offset, _)| in_range("offset", *offset))?;
                in_range("from_offset", read.from_offset)?;
                in_range("end_offset", read.end_offset)
            }
            Event::Status(status) => in_range("log_start", status.log_start.unwrap_or_default()),
            Event::Trim(trim) => in_range("before_offset", trim.before_offset),
            Event::Retention(_) => Ok(()),
        }
    }
}

/// The number of an event in its history, which is its line in a file, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Line(pub usize);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.0)
    }
}

/// All events of a run, in any order. The topics are new ones at its beginning, and nobody else writes to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    events: Vec<Event>,
}

impl History {
    /// Adds an event.
    ///
    /// # Errors
    /// Why it cannot have happened; the history is as before.
    pub fn push(&mut self, event: Event) -> Result<(), String> {
        event.check()?;
        self.events.push(event);
        Ok(())
    }

    /// The events with their lines.
    pub fn iter(&self) -> impl Iterator<Item = (Line, &Event)> {
        self.events.iter().enumerate().map(|(at, event)| (Line(at + 1), event))
    }

    /// How many events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}
