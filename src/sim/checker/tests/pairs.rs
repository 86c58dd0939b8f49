//! For each promise about what is where: the smallest history that breaks it, and a legal one beside it.

use super::*;

/// What is acknowledged is in every final read that began later.
#[test]
fn acknowledged_records_stay() {
    let acks = || [acked((0, 5), 0, &["a"]), acked((6, 9), 1, &["b"])];
    let [a, b] = acks();
    assert_found(
        [a, b, final_read((10, 11), 2, &["a"])],
        &["lost_write: offset 1 was acknowledged in line 2, and is not in the final read of node 2, line 3"],
    );
    let [a, b] = acks();
    assert_legal([a, b, final_read((10, 11), 2, &["a", "b"])]);
    // It was not over when the final read began.
    let [a, b] = acks();
    assert_legal([a, b, final_read((9, 11), 2, &["a"])]);
    // In the middle, whatever is behind it.
    let [a, b] = acks();
    let mut hole = final_reading((10, 11), 2, &["a", "b"]);
    hole.records.remove(0);
    assert_found(
        [a, b, Event::FinalRead(hole.clone())],
        &["lost_write: offset 0 was acknowledged in line 1, and is not in the final read of node 2, line 3"],
    );
    // Older records need not be kept.
    let [a, b] = acks();
    hole.from_offset = 1;
    assert_legal([a, b, Event::FinalRead(hole)]);
    // Half a batch is lost, too.
    assert_found(
        [acked((0, 5), 0, &["a", "b"]), final_read((10, 11), 2, &["a"])],
        &["lost_write: offset 1 was acknowledged in line 1, and is not in the final read of node 2, line 2"],
    );
}

/// An ack of the leader's memory promises nothing.
#[test]
fn acks_of_memory_may_be_lost() {
    let ack = |durability| Outcome::Acked(Ack { base_offset: 0, count: 1, durability, timestamp_us: None });
    let weak = || Event::Produce(produce((0, 5), &["a"], ack(Durability::LeaderMemory)));
    assert_legal([weak(), final_read((10, 11), 1, &[])]);
    assert_legal([weak(), acked((6, 7), 0, &["b"]), final_read((10, 11), 1, &["b"])]);
    assert_legal([weak(), acked((6, 7), 0, &["b"]), final_read((10, 11), 1, &["b", "a"])]);
    let strong = Event::Produce(produce((0, 5), &["a"], ack(Durability::QuorumFlushed)));
    assert_eq!(judge([strong, final_read((10, 11), 1, &[])]).counts["lost_write"], 1);
}

/// What was shown to anyone stays, also if nobody knows what became of its batch.
#[test]
fn shown_records_stay() {
    let sent = || indefinite((0, 99), &["a"]);
    assert_found(
        [sent(), read((5, 6), 0, &["a"]), final_read((10, 11), 2, &[])],
        &["vanished_read: offset 0 was shown as committed in line 2, and is not in the final read of node 2, line 3"],
    );
    assert_legal([sent(), read((5, 6), 0, &["a"]), final_read((10, 11), 2, &["a"])]);
    assert_legal([sent(), read((5, 6), 0, &[]), final_read((10, 11), 2, &[])]);
    assert_legal([sent(), read((5, 12), 0, &["a"]), final_read((10, 11), 2, &[])]);
}

/// All who say what is at an offset say the same.
#[test]
fn an_offset_has_one_record() {
    let acks = || [acked((0, 9), 0, &["a"]), acked((0, 9), 1, &["b"])];
    let [a, b] = acks();
    assert_legal([a, b, read((10, 11), 0, &["a", "b"])]);
    let [a, b] = acks();
    let other = indefinite((0, 9), &["c"]);
    assert_found(
        [a, b, other, read((10, 11), 1, &["c"])],
        &["inconsistent_offset: offset 1 has one record in line 2 and another in line 4"],
    );
    assert_found(
        [acked((0, 9), 0, &["a"]), acked((0, 9), 0, &["b"])],
        &["inconsistent_offset: offset 0 has one record in line 1 and another in line 2"],
    );
    // Replicas.
    let sent = || [indefinite((0, 9), &["a"]), indefinite((0, 9), &["b"])];
    let [a, b] = sent();
    assert_found(
        [a, b, final_read((10, 11), 1, &["a"]), final_read((10, 11), 2, &["b"])],
        &["inconsistent_offset: offset 0 has one record in line 3 and another in line 4"],
    );
    let [a, b] = sent();
    assert_legal([a, b, final_read((10, 11), 1, &["a"]), final_read((10, 11), 2, &["a"])]);
}

/// A batch is written once, whether it was acknowledged or nobody knew.
#[test]
fn a_batch_is_written_once() {
    let spare = || indefinite((0, 9), &["never written"]);
    let twice = |line| {
        format!("duplicate: a record that was sent 1 times is at offset 0 in {line}, and again at offset 1 in line 3")
    };
    let (by_ack, by_read) = (twice("line 1"), twice("line 3"));
    assert_found([acked((0, 9), 0, &["a"]), spare(), read((10, 11), 0, &["a", "a"])], &[&by_ack]);
    assert_found([indefinite((0, 9), &["a"]), spare(), read((10, 11), 0, &["a", "a"])], &[&by_read]);
    // Whoever sends it again after an unknown outcome may have it twice.
    assert_legal([indefinite((0, 9), &["a"]), acked((10, 11), 1, &["a"]), read((12, 13), 0, &["a", "a"])]);
    assert_legal([failed((0, 9), &["a"]), acked((10, 11), 0, &["a"]), read((12, 13), 0, &["a"])]);
    let again = [failed((0, 9), &["a"]), acked((10, 11), 0, &["a"]), spare(), read((12, 13), 0, &["a", "a"])];
    assert_eq!(judge(again).counts.into_iter().collect::<Vec<_>>(), [("duplicate", 1)]);
}

/// What failed for certain never appears; what nobody knows may, at any time.
#[test]
fn definite_failures_never_appear() {
    assert_found(
        [failed((0, 5), &["a"]), indefinite((0, 9), &["never written"]), read((10, 11), 0, &["a"])],
        &["aborted_read: the record at offset 0 in line 3 is of the batch in line 1, which failed for certain"],
    );
    assert_legal([indefinite((0, 5), &["a"]), read((10, 11), 0, &[]), read((1_000, 1_001), 0, &["a"])]);
}

/// A record is what somebody sent, to this shard.
#[test]
fn records_are_somebodys() {
    let unsent = "unsent_record: nobody ever sent the record at offset 0 in line 2";
    assert_found([indefinite((0, 5), &["a"]), read((10, 11), 0, &["A"])], &[unsent]);
    assert_legal([indefinite((0, 5), &["a"]), read((10, 11), 0, &["a"])]);
    let mut elsewhere = produce((0, 5), &["b"], Outcome::Indefinite);
    elsewhere.shard = 1;
    let events = [Event::Produce(elsewhere), indefinite((0, 5), &["a"]), read((10, 11), 0, &["b"])];
    assert_eq!(judge(events).counts.into_iter().collect::<Vec<_>>(), [("unsent_record", 1)]);
}

/// Offsets are dense: what is not known below one that was given must be something that may be there.
#[test]
fn offsets_are_dense() {
    assert_found(
        [acked((0, 9), 0, &["a"]), acked((0, 9), 2, &["b"])],
        &["gap: line 2 shows a record behind offset 1, at which there is none"],
    );
    assert_legal([acked((0, 9), 0, &["a"]), acked((0, 9), 2, &["b"]), indefinite((0, 9), &["c"])]);
    assert_legal([acked((0, 9), 0, &["a"]), acked((0, 9), 1, &["b"])]);
    // What fills it is elsewhere; what failed fills nothing.
    let elsewhere = read((10, 11), 3, &["c"]);
    let with = |other| [acked((0, 9), 0, &["a"]), acked((0, 9), 2, &["b"]), other];
    let [a, b, c] = with(indefinite((0, 9), &["c"]));
    assert_found([a, b, c, elsewhere], &["gap: line 4 shows a record behind offset 1, at which there is none"]);
    assert_eq!(judge(with(failed((0, 9), &["c"]))).counts["gap"], 1);
    // A replica has nothing where there must be something.
    let mut hole = final_reading((10, 11), 1, &["c", "a"]);
    hole.records.remove(0);
    assert_found(
        [acked((0, 9), 1, &["a"]), indefinite((0, 9), &["c"]), Event::FinalRead(hole)],
        &["gap: line 3 shows a record behind offset 0, at which there is none"],
    );
}

/// A batch is all there, in one piece, or not at all.
#[test]
fn batches_are_whole() {
    let sent = || [indefinite((0, 9), &["a", "b", "c"]), acked((0, 9), 3, &["d"])];
    let torn = |at: &str| format!("torn_batch: the batch of 3 records in line 1, at offset 0, is torn at {at}");
    let [batch, other] = sent();
    assert_legal([batch, other, read((10, 11), 0, &["a", "b", "c", "d"])]);
    // Another record in the middle of it.
    let between = indefinite((0, 9), &["x"]);
    let [batch, other] = sent();
    assert_found([batch, other, between, read((10, 11), 0, &["a", "x"])], &[&torn("offset 1 in line 4")]);
    // A record of it elsewhere.
    let [batch, other] = sent();
    let mut apart = reading((10, 11), 2, &["b"]);
    apart.high_watermark = 4;
    let mut first = reading((10, 11), 0, &["a"]);
    first.high_watermark = 4;
    assert_found([batch, other, Event::Read(first.clone()), Event::Read(apart)], &[&torn("offset 1 in line 4")]);
    // A limit of the read may cut it, a high watermark may not.
    let [batch, other] = sent();
    assert_legal([batch, other, Event::Read(first)]);
    let [batch, other] = sent();
    assert_found([batch, other, read((10, 11), 0, &["a", "b"])], &[&torn("offset 2 in line 3")]);
    assert_found(
        [acked((0, 9), 0, &["a", "b"]), read((10, 11), 0, &["a"])],
        &["torn_batch: the batch of 2 records in line 1, at offset 0, is torn at offset 1 in line 2"],
    );
    // The ack is of another count.
    let ack = Ack { base_offset: 0, count: 1, durability: Durability::QuorumFlushed, timestamp_us: None };
    assert_found(
        [Event::Produce(produce((0, 9), &["a", "b"], Outcome::Acked(ack)))],
        &["torn_batch: the batch of 2 records in line 1, at offset 0, is torn at offset 1 in line 1"],
    );
}

/// Each answer gives the records in order.
#[test]
fn answers_are_in_order() {
    let sent = || indefinite((0, 9), &["a", "b"]);
    let mut swapped = reading((10, 11), 0, &["a", "b"]);
    swapped.from_offset = None;
    assert_legal([sent(), Event::Read(swapped.clone())]);
    swapped.records.swap(0, 1);
    assert_found([sent(), Event::Read(swapped)], &["out_of_order_poll: line 2 has offset 0 behind offset 1"]);
    let mut twice = reading((10, 11), 0, &["a", "b"]);
    twice.records.insert(1, twice.records[0]);
    assert_found([sent(), Event::Read(twice)], &["out_of_order_poll: line 2 has offset 0 behind offset 0"]);
    let mut swapped = final_reading((10, 11), 1, &["a", "b"]);
    swapped.records.swap(0, 1);
    assert_eq!(judge([sent(), Event::FinalRead(swapped)]).counts["out_of_order_poll"], 1);
}

/// Each answer begins where it was asked to, leaves nothing out, and says to go on behind its last record.
#[test]
fn answers_leave_nothing_out() {
    let sent = || indefinite((0, 9), &["a", "b", "c"]);
    let whole = || reading((10, 11), 0, &["a", "b", "c"]);
    let skipped = |from, to| format!("skipped_poll: line 2 goes on at offset {to} where offset {from} comes next");
    assert_legal([sent(), Event::Read(whole())]);
    let mut wrong = whole();
    wrong.records.remove(1);
    assert_found([sent(), Event::Read(wrong)], &[&skipped(1, 2)]);
    let mut wrong = whole();
    wrong.records.remove(0);
    assert_found([sent(), Event::Read(wrong.clone())], &[&skipped(0, 1)]);
    // From a time on, nobody knows where it has to begin.
    wrong.from_offset = None;
    assert_legal([sent(), Event::Read(wrong)]);
    let mut wrong = whole();
    wrong.next_offset = 2;
    assert_found([sent(), Event::Read(wrong)], &[&skipped(3, 2)]);
    let mut none = whole();
    (none.records, none.next_offset) = (vec![], 0);
    assert_legal([sent(), Event::Read(none.clone())]);
    none.next_offset = 3;
    assert_found([sent(), Event::Read(none)], &[&skipped(0, 3)]);
}

/// A log start is not above what was trimmed before it was told, or was old enough.
#[test]
fn prefixes_stay() {
    let sent = || acked((10, 19), 0, &["a", "b"]);
    let more = || acked((40, 49), 2, &["c"]);
    let lost = |line, start, due| {
        format!(
            "lost_prefix: line {line} has log start {start}, and nothing at or above offset {due} was to go by then"
        )
    };
    assert_legal([sent(), starting((50, 51), 0)]);
    assert_found([sent(), starting((50, 51), 1)], &[&lost(2, 1, 0)]);
    // A trim counts from when it was sent, also if nobody knows what became of it.
    assert_legal([sent(), starting((50, 51), 1), trim(51, 1), trim(30, 0)]);
    assert_found([sent(), starting((50, 51), 1), trim(52, 1)], &[&lost(2, 1, 0)]);
    assert_found([sent(), starting((50, 51), 2), trim(30, 1), trim(31, 0)], &[&lost(2, 2, 1)]);
    // By age: what was sent at 40 is too young at 51 for 12 µs, and what was sent at 10 is not.
    assert_legal([sent(), more(), starting((50, 51), 2), retention(Some(12))]);
    assert_found([sent(), more(), starting((50, 51), 3), retention(Some(12))], &[&lost(3, 3, 2)]);
    assert_legal([sent(), more(), starting((50, 51), 3), retention(Some(11))]);
    assert_legal([sent(), more(), starting((50, 51), 3), retention(Some(12)), trim(45, 3)]);
    assert_legal([sent(), more(), starting((50, 51), 3), retention(None)]);
    let mut shown = reading((50, 51), 1, &["b"]);
    shown.log_start = Some(1);
    assert_found([sent(), Event::Read(shown)], &[&lost(2, 1, 0)]);
}

/// Where records go by size, some stay all the same at the end of a final read, unless they were trimmed or are old enough.
#[test]
fn the_end_stays() {
    let begins = |from_offset: u64, values: &[&str]| {
        let mut read = final_reading((50, 51), 1, values);
        read.from_offset = from_offset;
        read.end_offset = from_offset + read.records.len() as u64;
        (from_offset..).zip(&mut read.records).for_each(|(offset, record)| record.0 = offset);
        [acked((10, 19), 0, &["a", "b"]), acked((40, 49), 2, &["c"]), Event::FinalRead(read)]
    };
    let with = |events: [Event; 3], more: Event| {
        let [first, second, read] = events;
        [first, second, read, more]
    };
    let lost = ["lost_prefix: line 3 has log start 3, and nothing at or above offset 2 was to go by then"];
    assert_legal(with(begins(2, &["c"]), retention_by_size(Some(1), None)));
    assert_found(with(begins(3, &[]), retention_by_size(Some(1), None)), &lost);
    assert_legal(with(begins(3, &[]), retention_by_size(None, None)));
    assert_legal(with(begins(3, &[]), retention_by_size(Some(0), None)));
    assert_found(with(begins(3, &[]), retention_by_size(Some(1), Some(12))), &lost);
    assert_legal(with(begins(3, &[]), retention_by_size(Some(1), Some(11))));
    let [first, second, read] = begins(3, &[]);
    assert_legal([first, second, read, retention_by_size(Some(1), None), trim(30, 3)]);
}

/// Where records go by size, what is gone has enough behind it: of what was sent before the log start was told, wherever nobody
/// knows its place.
#[test]
fn enough_stays() {
    let first = || of_bytes(100, acked((10, 19), 0, &["a", "b"]));
    let second = || of_bytes(100, acked((20, 29), 2, &["c"]));
    let third = || of_bytes(100, acked((40, 49), 3, &["d"]));
    let lost = |line, start, due| {
        format!(
            "lost_prefix: line {line} has log start {start}, and nothing at or above offset {due} was to go by then"
        )
    };
    let batches = |start, kept: Event| [first(), second(), third(), starting((50, 51), start), kept];
    assert_legal(batches(2, retention_with_bytes(199, None)));
    assert_found(batches(2, retention_with_bytes(200, None)), &[&lost(4, 2, 1)]);
    // All but one record: this is what a product does that lets all sealed segments go.
    assert_legal(batches(3, retention_with_bytes(99, None)));
    assert_found(batches(3, retention_with_bytes(100, None)), &[&lost(4, 3, 2)]);
    assert_found(batches(4, retention_with_bytes(0, None)), &[&lost(4, 4, 3)]);
    // Nothing goes before there is as much.
    assert_found(batches(1, retention_with_bytes(300, None)), &[&lost(4, 1, 0)]);
    // What is sent later does not count. What nobody saw does, also when it failed, unless it is in front of what was sent later.
    assert_found(
        [first(), second(), third(), starting((30, 31), 2), retention_with_bytes(100, None)],
        &[&lost(4, 2, 1)],
    );
    for more in [indefinite((30, 31), &["x"]), failed((30, 31), &["x"])] {
        let more = of_bytes(100, more);
        assert_legal([first(), second(), more, starting((50, 51), 2), retention_with_bytes(199, None)]);
    }
    let early = of_bytes(100, failed((11, 18), &["x"]));
    assert_found([first(), second(), early, starting((50, 51), 3), retention_with_bytes(99, None)], &[&lost(4, 3, 2)]);
    // Nobody knows how many bytes that one has.
    assert_legal([
        first(),
        second(),
        indefinite((30, 31), &["x"]),
        starting((50, 51), 3),
        retention_with_bytes(999, None),
    ]);
    // The younger of the two, by age and by trims, is another matter.
    assert_legal(batches(3, retention_with_bytes(200, Some(11))));
    assert_found(batches(4, retention_with_bytes(200, Some(12))), &[&lost(4, 4, 3)]);
    let [first, second, third, start, kept] = batches(3, retention_with_bytes(200, None));
    assert_legal([first, second, third, start, kept, trim(30, 3)]);
}

/// Replicas that have applied the same number of entries have applied the same ones.
#[test]
fn replicas_are_alike() {
    assert_legal([status(1, 7, 1), status(2, 7, 1), status(2, 8, 2)]);
    assert_found(
        [status(1, 7, 1), status(2, 8, 2), status(2, 7, 2)],
        &["divergence: after 7 entries the chain hash is 0000000000000001 in line 1 and 0000000000000002 in line 3"],
    );
}

/// A conditional append is at the expected offset or nowhere, whether it was acknowledged or seen.
#[test]
fn conditions_hold() {
    let with = |produce, expected| Event::Produce(Produce { expected_offset: Some(expected), ..produce });
    let at = |base_offset, durability| {
        let ack = Ack { base_offset, count: 1, durability, timestamp_us: None };
        produce((10, 19), &["b"], Outcome::Acked(ack))
    };
    let first = || acked((0, 9), 0, &["a"]);
    let misplaced = |line| {
        format!("misplaced_batch: the batch in line {line} was to be at offset 0 or nowhere, and is at offset 1")
    };
    for durability in [Durability::QuorumFlushed, Durability::LeaderMemory] {
        assert_legal([first(), with(at(1, durability), 1)]);
        assert_found([first(), with(at(1, durability), 0)], &[&misplaced(2)]);
    }
    let unknown = || produce((10, 19), &["b"], Outcome::Indefinite);
    assert_legal([first(), with(unknown(), 0), read((20, 21), 0, &["a"])]);
    assert_legal([first(), with(unknown(), 1), read((20, 21), 0, &["a", "b"])]);
    assert_found([first(), with(unknown(), 0), read((20, 21), 0, &["a", "b"])], &[&misplaced(2)]);
    // Of two with one expectation one has failed.
    let [one, other] = ["b", "c"].map(|value| produce((10, 19), &[value], Outcome::Failed));
    assert_legal([first(), with(one.clone(), 1), with(other.clone(), 1)]);
    let ack =
        Outcome::Acked(Ack { base_offset: 1, count: 1, durability: Durability::QuorumFlushed, timestamp_us: None });
    let both = [first(), with(Produce { outcome: ack, ..one }, 1), with(Produce { outcome: ack, ..other }, 1)];
    assert_eq!(judge(both).counts.into_iter().collect::<Vec<_>>(), [("inconsistent_offset", 1)]);
}

fn timed(begin_us: u64, base_offset: u64, values: &[&str], timestamp_us: i64) -> Event {
    let count = values.len() as u64;
    let ack = Ack { base_offset, count, durability: Durability::QuorumFlushed, timestamp_us: Some(timestamp_us) };
    Event::Produce(produce((begin_us, begin_us + 1), values, Outcome::Acked(ack)))
}

/// Timestamps of a shard go up with its offsets.
#[test]
fn time_does_not_go_back() {
    assert_legal([timed(0, 0, &["a"], 5), timed(2, 1, &["b"], 5), timed(4, 2, &["c"], 6)]);
    assert_found(
        [timed(0, 0, &["a"], 5), timed(2, 1, &["b"], 4)],
        &["time_went_back: line 2 has timestamp 4 µs behind line 1, which has 5 µs"],
    );
}

/// A read from a time on begins with the first record that is not older.
#[test]
fn starts_at_a_time() {
    let from = |asked_us, from, values: &[&str], log_start| {
        let start = Some(Start::TimestampUs(asked_us));
        let read = Read { from_offset: None, start, log_start, ..reading((20, 21), from, values) };
        [timed(0, 0, &["a", "b"], 5), timed(2, 2, &["c"], 7), timed(4, 3, &["d"], 7), Event::Read(read)]
    };
    let wrong = |asked_us, offset, line, of_us| {
        format!(
            "wrong_start: line 4 asked for what is not older than {asked_us} µs and begins at offset {offset}, but line {line} is of {of_us} µs"
        )
    };
    for legal in [
        from(5, 0, &["a", "b", "c", "d"], None),
        from(6, 2, &["c", "d"], None),
        from(7, 2, &["c"], None),
        from(8, 4, &[], None),
        // The first that is kept.
        from(3, 1, &["b"], Some(1)),
        from(3, 3, &["d"], Some(3)),
    ] {
        let [a, b, c, read] = legal;
        let legal = found([a, b, c, read, trim(10, 3)]);
        assert_eq!(legal, Vec::<String>::new());
    }
    assert_found(from(6, 3, &["d"], None), &[&wrong(6, 3, 2, 7)]);
    assert_found(from(5, 1, &["b"], None), &[&wrong(5, 1, 1, 5)]);
    assert_found(from(7, 4, &[], None), &[&wrong(7, 4, 3, 7)]);
    assert_found(from(6, 1, &["b", "c"], None), &[&wrong(6, 1, 1, 5)]);
    assert_found(from(8, 3, &["d"], None), &[&wrong(8, 3, 3, 7)]);
}
