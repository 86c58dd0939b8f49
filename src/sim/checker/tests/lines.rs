//! Histories as files: all of an event comes back, and what is no event is refused with its line.

use super::*;
use crate::sim::checker::json;

const PRODUCE: &str = r#"{"event":"produce","client":"a","begin_us":1,"end_us":2,"topic":"t","shard":0,"records":["v"],"outcome":"indefinite"}"#;

fn refused(text: &str) -> String {
    json::read(text.as_bytes()).unwrap_err().to_string()
}

/// Every field of every event survives being written and read.
#[test]
fn there_and_back() {
    let ack = Ack { base_offset: 3, count: 1, durability: Durability::LeaderMemory, timestamp_us: Some(-4) };
    let stream = Some(StreamPlace { id: 4, sequence: 5 });
    let events = [
        acked((1, 2), 0, &["a"]),
        Event::Produce(Produce { stream, expected_offset: Some(3), ..produce((1, 2), &["b"], Outcome::Acked(ack)) }),
        failed((1, 2), &["c"]),
        indefinite((1, 2), &["d", "e"]),
        read((1, 2), 0, &["a"]),
        Event::Read(Read {
            node: None,
            from_offset: None,
            start: Some(Start::Latest),
            min_offset: Some(1),
            linearizable: true,
            log_start: Some(2),
            ..reading((1, 2), 0, &[])
        }),
        Event::Read(Read { start: Some(Start::TimestampUs(-7)), ..reading((1, 2), 0, &[]) }),
        Event::FinalRead(FinalRead { from_offset: 7, ..final_reading((1, 2), 3, &["a"]) }),
        status(1, 7, u64::MAX),
        trim(5, 6),
        retention(Some(7)),
        retention(None),
        retention_by_size(Some(1), None),
        retention_with_bytes(1, Some(2)),
        of_bytes(4_096, failed((1, 2), &["c"])),
    ];
    let (mut history, mut text) = (History::default(), Vec::new());
    for event in events {
        json::write(&mut text, &event).unwrap();
        history.push(event).unwrap();
    }
    assert_eq!(json::read(&text[..]).unwrap(), history);
    // The last line may be without its newline.
    assert_eq!(json::read(&text[..text.len() - 1]).unwrap(), history);
}

/// The examples in the help are events, and a legal history.
#[test]
fn the_documented_form() {
    let examples = json::FORMAT.lines().filter(|line| line.starts_with("  {") || line.starts_with("   \""));
    let text = examples.collect::<String>().replace("}  {", "}\n{");
    assert_eq!(text.lines().count(), 6, "{text}");
    let report = check(&json::read(text.as_bytes()).unwrap());
    assert_eq!((report.events, report.acked_records, report.is_clean()), (6, 2, true), "{:?}", report.findings);
}

/// A value and the hash of it are the same record.
#[test]
fn values_and_hashes() {
    let hash = Fingerprint::of(b"v").0.to_string();
    assert_eq!(
        json::read(PRODUCE.as_bytes()).unwrap(),
        json::read(PRODUCE.replace("\"v\"", &hash).as_bytes()).unwrap()
    );
    assert_eq!(Fingerprint::of(b"").0, 0x2d06_8005_38d3_94c2, "XXH3-64 with seed 0, as other languages have it");
}

/// What is no event is refused with its line and the reason: nothing is judged that was read half.
#[test]
fn what_is_no_event_is_refused() {
    let second = |line: &str| refused(&format!("{PRODUCE}\n{line}\n"));
    assert_eq!(second("no json"), "line 2: expected ident");
    assert_eq!(second(""), "line 2: it is empty");
    assert!(second(&PRODUCE.replace("\"shard\"", "\"shrad\"")).starts_with("line 2: unknown field `shrad`"));
    assert!(second(&PRODUCE.replace("\"produce\"", "\"prod\"")).starts_with("line 2: unknown variant `prod`"));
    assert!(second(&PRODUCE.replace("\"topic\":\"t\",", "")).starts_with("line 2: missing field `topic`"));
    assert!(second(&PRODUCE.replace("[\"v\"]", "[1.5]")).contains("expected a record: its value as a string"));
    assert_eq!(second(&PRODUCE.replace("[\"v\"]", "[]")), "line 2: a batch has one record at least");
    assert_eq!(second(&PRODUCE.replace(":1,", ":3,")), "line 2: it ends at 2 µs, before it begins at 3 µs");
    let ack = r#"{"acked":{"base_offset":9223372036854775807,"count":1}}"#;
    let beyond = "line 2: base_offset 9223372036854775807 is beyond all offsets";
    assert_eq!(second(&PRODUCE.replace("\"indefinite\"", ack)), beyond);
    assert!(second(&PRODUCE.replace("\"indefinite\"", &ack.replace("count", "cnt"))).contains("unknown field `cnt`"));
    let status =
        r#"{"event":"status","node":1,"begin_us":1,"end_us":2,"topic":"t","shard":0,"applied_end":3,"chain":"7"}"#;
    assert_eq!(second(status), "line 2: chain \"7\" is not 16 hexadecimal digits");
}

/// A file that was cut off anywhere in a line is not taken for a whole one.
#[test]
fn cut_off_files_are_refused() {
    let text = format!("{PRODUCE}\n{PRODUCE}\n");
    for end in PRODUCE.len() + 2..text.len() - 1 {
        let error = refused(&text[..end]);
        assert!(error.starts_with("line 2: it is cut off"), "{end}: {error}");
    }
}

/// Lines of any bytes (`crate::fuzz`): what is read is written as what it was.
#[test]
fn fuzz() {
    let lines = [
        PRODUCE.to_owned(),
        r#"{"event":"produce","client":"a","begin_us":10,"end_us":25,"topic":"t","shard":0,"records":["v",7],"outcome":{"acked":{"base_offset":0,"count":2,"durability":"leader_memory"}},"stream":{"id":1,"sequence":7}}"#.to_owned(),
        r#"{"event":"read","client":"b","begin_us":30,"end_us":31,"topic":"t","shard":0,"node":1,"from_offset":0,"records":[[0,"v"],[1,9]],"next_offset":2,"high_watermark":2}"#.to_owned(),
        r#"{"event":"status","node":1,"begin_us":96,"end_us":97,"topic":"t","shard":0,"applied_end":3,"chain":"00000000000000ff"}"#.to_owned(),
    ];
    let corpus = [lines[0].clone(), lines.join("\n"), lines[3].clone() + "\n"];
    crate::fuzz::Target::new("sim::checker::tests::lines::fuzz", corpus, |bytes| json::read(bytes).ok())
        .words(&[
            "{",
            "}",
            "\"",
            ",",
            "null",
            "18446744073709551615",
            "4611686018427387905",
            "\n",
            "1.5",
            "-1",
            "\"failed\"",
        ])
        .run();
}
