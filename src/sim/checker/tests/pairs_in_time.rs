//! For each promise that the clock is needed for: the smallest history that breaks it, and a legal one beside it.

use super::*;

fn linearizable(span: (u64, u64), from: u64, values: &[&str]) -> Event {
    Event::Read(Read { linearizable: true, ..reading(span, from, values) })
}

fn streamed(span: (u64, u64), sequence: u64, base_offset: u64, value: &str) -> Event {
    let ack = Ack { base_offset, count: 1, durability: Durability::QuorumFlushed, timestamp_us: None };
    let stream = Some(StreamPlace { id: 1, sequence });
    Event::Produce(Produce { stream, ..produce(span, &[value], Outcome::Acked(ack)) })
}

/// A linearizable read shows all that was acknowledged, or shown to anyone, before it began. Others need not.
#[test]
fn linearizable_reads_are_not_stale() {
    let ack = || acked((0, 5), 0, &["a"]);
    let stale = "stale_tail: line 2 has the log end at offset 0, and line 1, which was over when it began, at 1";
    assert_found([ack(), linearizable((6, 7), 0, &[])], &[stale]);
    assert_legal([ack(), linearizable((6, 7), 0, &["a"])]);
    assert_legal([ack(), linearizable((5, 7), 0, &[])]);
    assert_legal([ack(), read((6, 7), 0, &[])]);
    let other = || Event::Read(Read { client: "other".to_owned(), ..reading((3, 4), 0, &["a"]) });
    assert_eq!(judge([indefinite((0, 9), &["a"]), other(), linearizable((5, 6), 0, &[])]).counts["stale_tail"], 1);
    assert_legal([indefinite((0, 9), &["a"]), other(), linearizable((4, 6), 0, &[])]);
}

/// What is sent after an ack gets a higher offset.
#[test]
fn later_batches_are_behind() {
    let early = || acked((0, 5), 1, &["a"]);
    let stale = "stale_tail: line 2 has the log end at offset 0, and line 1, which was over when it began, at 2";
    let other = || indefinite((0, 9), &["maybe"]);
    assert_found([early(), acked((6, 7), 0, &["b"]), other()], &[stale]);
    assert_legal([early(), acked((5, 7), 0, &["b"]), other()]);
    assert_legal([early(), acked((6, 7), 2, &["b"]), other()]);
    // Nor does what nobody knows of come before what was there when it was sent.
    assert_found([early(), indefinite((6, 7), &["b"]), other(), read((8, 9), 0, &["b"])], &[stale]);
}

/// Nothing is committed before it was sent.
#[test]
fn nothing_is_there_too_early() {
    let later = || acked((8, 9), 0, &["a"]);
    let ahead = || Event::Read(Read { high_watermark: 1, ..reading((1, 2), 0, &[]) });
    let early = "future_tail: line 2 has the log end at offset 1, when only 0 records of it had been sent";
    assert_found([later(), ahead()], &[early]);
    assert_legal([acked((2, 9), 0, &["a"]), ahead()]);
    // Failures do not count.
    let early = "future_tail: line 1 has the log end at offset 1, when only 0 records of it had been sent";
    assert_found([ahead(), failed((0, 1), &["b"])], &[early]);
    assert_legal([ahead(), indefinite((0, 1), &["b"])]);
    assert_found(
        [acked((0, 5), 1, &["a"]), acked((6, 9), 0, &["b"])],
        &["future_tail: line 1 has the log end at offset 2, when only 1 records of it had been sent"],
    );
    assert_legal([acked((0, 5), 0, &["a"]), acked((6, 9), 1, &["b"])]);
}

/// A record is not read before it was sent, also where there could be another one.
#[test]
fn no_record_is_read_before_it_was_sent() {
    let other = || indefinite((0, 1), &["maybe"]);
    assert_found(
        [other(), acked((5, 9), 0, &["a"]), read((3, 4), 0, &["a"])],
        &[
            "future_record: line 3 shows at offset 0 a record that was sent later, in line 2",
            "stale_tail: line 2 has the log end at offset 0, and line 3, which was over when it began, at 1",
        ],
    );
    assert_legal([other(), acked((4, 9), 0, &["a"]), read((3, 4), 0, &["a"])]);
}

/// Batches of a stream are in the order in which they were sent, though they were in flight together.
#[test]
fn streams_keep_their_order() {
    assert_found(
        [streamed((0, 9), 1, 1, "a"), streamed((1, 9), 2, 0, "b")],
        &[
            "non_monotone_send: the batch in line 2 got offset 0, and the one sent before it in the same stream, line 1, \
           ends at 2",
        ],
    );
    assert_legal([streamed((0, 9), 1, 0, "a"), streamed((1, 9), 2, 1, "b")]);
    assert_legal([acked((0, 9), 1, &["a"]), acked((1, 9), 0, &["b"])]);
}

/// A client sees no replica go back. Two replicas, or two answers under way at once, are not compared.
#[test]
fn replicas_do_not_go_back() {
    let sent = || acked((0, 1), 0, &["a"]);
    let later = |change: fn(&mut Read)| {
        let mut read = reading((12, 13), 0, &[]);
        change(&mut read);
        [sent(), self::read((10, 11), 0, &["a"]), Event::Read(read)]
    };
    assert_found(
        later(|_| ()),
        &["went_back: line 3 has high watermark 0, after the same node gave the same client 1 in line 2"],
    );
    assert_legal(later(|read| read.node = Some(2)));
    assert_legal(later(|read| read.node = None));
    assert_legal(later(|read| read.client = "another".to_owned()));
    assert_legal(later(|read| read.begin_us = 11));
    assert_legal(later(|read| read.high_watermark = 1));
}

/// No answer has a record that is not below its own high watermark.
#[test]
fn reads_are_of_committed_records() {
    let sent = || indefinite((0, 9), &["a"]);
    let behind = || Event::Read(Read { high_watermark: 0, ..reading((10, 11), 0, &["a"]) });
    assert_found(
        [sent(), behind()],
        &["uncommitted_read: line 2 shows offset 0, which is not below its high watermark 0"],
    );
    assert_legal([sent(), read((10, 11), 0, &["a"])]);
    let behind = FinalRead { end_offset: 0, ..final_reading((10, 11), 1, &["a"]) };
    assert_eq!(judge([sent(), Event::FinalRead(behind)]).counts["uncommitted_read"], 1);
}

/// A client that asks for its own writes gets them from any replica.
#[test]
fn writers_read_their_writes() {
    let ack = || acked((0, 5), 0, &["a"]);
    let with = |min_offset, values: &[&str]| Event::Read(Read { min_offset, ..reading((6, 7), 0, values) });
    assert_found(
        [ack(), with(Some(1), &[])],
        &["read_your_writes: line 2 asked for everything below offset 1, and has high watermark 0"],
    );
    assert_legal([ack(), with(Some(1), &["a"])]);
    assert_legal([ack(), with(None, &[])]);
}

/// A read from the latest record on begins behind all that it must have known: by what was over before it if it is
/// linearizable, by what the same node had said, by its own `min_offset`.
#[test]
fn latest_is_not_stale() {
    let latest = |change: fn(&mut Read)| {
        let read = Read { from_offset: None, start: Some(Start::Latest), ..reading((12, 13), 1, &["b"]) };
        let mut read = Read { client: "another".to_owned(), ..read };
        change(&mut read);
        [acked((0, 5), 0, &["a"]), acked((0, 9), 1, &["b"]), self::read((10, 11), 0, &["a", "b"]), Event::Read(read)]
    };
    let stale = |line| {
        format!(
            "stale_start: line 4 asked for what comes next and begins at offset 1, where {line} has the log end at 2"
        )
    };
    assert_legal(latest(|_| ()));
    assert_found(latest(|read| read.linearizable = true), &[&stale("line 3")]);
    assert_legal(latest(|read| (read.linearizable, read.begin_us) = (true, 9)));
    assert_legal(latest(|read| (read.linearizable, read.start) = (true, None)));
    assert_found(latest(|read| read.client = "r".to_owned()), &[&stale("line 3")]);
    assert_found(latest(|read| read.min_offset = Some(2)), &[&stale("line 4")]);
    // Nothing has come yet.
    let none: fn(&mut Read) = |read| (read.linearizable, read.records, read.next_offset) = (true, vec![], 2);
    assert_legal(latest(none));
}
