//! The checker finds what it is for, and nothing else: a minimal history for each anomaly beside one that is legal, large
//! legal histories and what is left of them after one change, and files.

mod generated;
mod lines;
mod pairs;
mod pairs_in_time;

use super::{
    Report, check,
    history::{
        Ack, Chain, Durability, Event, FinalRead, Fingerprint, History, Outcome, Produce, Read, Retention, Start,
        Status, StreamPlace, Trim,
    },
};

/// A batch of client `w` for topic `t`, shard 0.
fn produce((begin_us, end_us): (u64, u64), values: &[&str], outcome: Outcome) -> Produce {
    let records = values.iter().map(|value| Fingerprint::of(value.as_bytes())).collect();
    let (client, topic) = ("w".to_owned(), "t".to_owned());
    Produce {
        client,
        begin_us,
        end_us,
        topic,
        shard: 0,
        records,
        expected_offset: None,
        log_bytes: None,
        stream: None,
        outcome,
    }
}

/// A batch that was acknowledged whole at an offset.
fn acked(span: (u64, u64), base_offset: u64, values: &[&str]) -> Event {
    let ack =
        Ack { base_offset, count: values.len() as u64, durability: Durability::QuorumFlushed, timestamp_us: None };
    Event::Produce(produce(span, values, Outcome::Acked(ack)))
}

fn failed(span: (u64, u64), values: &[&str]) -> Event {
    Event::Produce(produce(span, values, Outcome::Failed))
}

fn indefinite(span: (u64, u64), values: &[&str]) -> Event {
    Event::Produce(produce(span, values, Outcome::Indefinite))
}

/// A read by client `r` from node 1 that has the values from an offset on, and the end of the log behind them.
fn reading((begin_us, end_us): (u64, u64), from: u64, values: &[&str]) -> Read {
    let records: Vec<_> = (from..).zip(values.iter().map(|value| Fingerprint::of(value.as_bytes()))).collect();
    let end = from + records.len() as u64;
    Read {
        client: "r".to_owned(),
        begin_us,
        end_us,
        topic: "t".to_owned(),
        shard: 0,
        node: Some(1),
        from_offset: Some(from),
        start: None,
        records,
        next_offset: end,
        high_watermark: end,
        min_offset: None,
        linearizable: false,
        log_start: None,
    }
}

fn read(span: (u64, u64), from: u64, values: &[&str]) -> Event {
    Event::Read(reading(span, from, values))
}

/// All that a node has, from offset 0.
fn final_reading((begin_us, end_us): (u64, u64), node: u64, values: &[&str]) -> FinalRead {
    let records: Vec<_> = (0..).zip(values.iter().map(|value| Fingerprint::of(value.as_bytes()))).collect();
    let end_offset = records.len() as u64;
    FinalRead { node, begin_us, end_us, topic: "t".to_owned(), shard: 0, from_offset: 0, records, end_offset }
}

fn final_read(span: (u64, u64), node: u64, values: &[&str]) -> Event {
    Event::FinalRead(final_reading(span, node, values))
}

fn status(node: u64, applied_end: u64, chain: u64) -> Event {
    let topic = "t".to_owned();
    Event::Status(Status {
        node,
        begin_us: 90,
        end_us: 91,
        topic,
        shard: 0,
        applied_end,
        chain: Chain(chain),
        log_start: None,
    })
}

/// A replica that keeps nothing below an offset.
fn starting((begin_us, end_us): (u64, u64), log_start: u64) -> Event {
    let (topic, chain) = ("t".to_owned(), Chain(1));
    Event::Status(Status {
        node: 1,
        begin_us,
        end_us,
        topic,
        shard: 0,
        applied_end: 9,
        chain,
        log_start: Some(log_start),
    })
}

fn trim(begin_us: u64, before_offset: u64) -> Event {
    Event::Trim(Trim { begin_us, end_us: begin_us + 5, topic: "t".to_owned(), shard: 0, before_offset })
}

/// By age, or by size.
fn retention(age_us: Option<u64>) -> Event {
    let (topic, by_size) = ("t".to_owned(), age_us.is_none());
    let (bytes_kept, records_kept) = (None, None);
    Event::Retention(Retention { begin_us: 0, end_us: 1, topic, shard: 0, age_us, by_size, bytes_kept, records_kept })
}

/// By size, and by age if there is one.
fn retention_by_size(records_kept: Option<u64>, age_us: Option<u64>) -> Event {
    let (topic, by_size, bytes_kept) = ("t".to_owned(), true, None);
    Event::Retention(Retention { begin_us: 0, end_us: 1, topic, shard: 0, age_us, by_size, bytes_kept, records_kept })
}

/// By size where so many bytes stay, and by age if there is one.
fn retention_with_bytes(bytes_kept: u64, age_us: Option<u64>) -> Event {
    let (topic, by_size, bytes_kept, records_kept) = ("t".to_owned(), true, Some(bytes_kept), None);
    Event::Retention(Retention { begin_us: 0, end_us: 1, topic, shard: 0, age_us, by_size, bytes_kept, records_kept })
}

/// The same batch, of so many bytes at most.
fn of_bytes(bytes: u64, event: Event) -> Event {
    let Event::Produce(produce) = event else { panic!("{event:?} is no batch") };
    Event::Produce(Produce { log_bytes: Some(bytes), ..produce })
}

fn judge(events: impl IntoIterator<Item = Event>) -> Report {
    let mut history = History::default();
    for event in events {
        history.push(event).unwrap();
    }
    check(&history)
}

/// What is found, as sentences.
#[track_caller]
fn found<const N: usize>(events: [Event; N]) -> Vec<String> {
    judge(events).findings.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn assert_legal<const N: usize>(events: [Event; N]) {
    assert_eq!(found(events), Vec::<String>::new());
}

/// Exactly these are found, each given without the shard, which is the same for all.
#[track_caller]
fn assert_found<const N: usize>(events: [Event; N], expected: &[&str]) {
    let found: Vec<_> = found(events).iter().map(|line| line.replace("topic t shard 0: ", "")).collect();
    assert_eq!(found, expected);
}
