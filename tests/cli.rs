//! The real binary, client and server, as a person uses them.

#![allow(clippy::disallowed_methods, reason = "tests use real processes, files and sockets")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod node;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use node::{Node, RINGLOG, free_address};
use serde_json::Value;

fn node(flags: &[&str]) -> (tempfile::TempDir, Node) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), flags);
    (dir, node)
}

fn ringlog(args: &[&str]) -> Output {
    Command::new(RINGLOG).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A text file comes back line by line as it was: empty lines, odd bytes, and a last line without a newline; also after
/// a restart, and from a topic that was made by the produce itself.
#[test]
fn a_file_there_and_back() {
    let (dir, node) = node(&["--reactors", "2"]);
    let file: &[u8] = b"first\n\n  spaces \r\n\xff\xfe\0binary\n\xc3\xbcml\xc3\xa4ut\nlast without newline";
    let acks = node.run_input(&["produce", "--topic", "t", "--acks"], file);
    assert!(acks.contains("offsets 0 to"), "{acks}");
    assert!(acks.contains("quorum_flushed"), "{acks}");
    let expected = [file, b"\n"].concat();
    assert_eq!(node.run_bytes(&["consume", "--topic", "t", "--from", "earliest"], b""), expected);
    assert!(node.stop().success());
    let node = Node::start(dir.path(), &["--reactors", "2"]);
    assert_eq!(node.run_bytes(&["consume", "--topic", "t"], b""), expected);
}

/// Many lines through a topic of several shards come back in order, from one shard; a second run goes on behind.
#[test]
fn many_lines_in_order() {
    let (dir, node) = node(&["--reactors", "2"]);
    node.run(&["topic", "create", "many", "--shards", "5"]);
    let lines: String = (0..100_000).map(|n| format!("line number {n}\n")).collect();
    let path = dir.path().join("lines.txt");
    fs::write(&path, &lines).unwrap();
    let summary = node.run(&["produce", "--topic", "many", "-o", "json", path.to_str().unwrap()]);
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["records"], 100_000);
    assert_eq!(summary["shards"].as_array().unwrap().len(), 1, "{summary}");
    assert_eq!(node.run(&["consume", "--topic", "many"]), lines);
    let some = node.run(&["consume", "--topic", "many", "-n", "3"]);
    assert_eq!(some, "line number 0\nline number 1\nline number 2\n");
}

/// Keyed lines go to the shard of their key's hash, each key in order; nothing is lost between the shards.
#[test]
fn keyed_lines() {
    let (_dir, node) = node(&["--reactors", "2"]);
    node.run(&["topic", "create", "k", "--shards", "4"]);
    let lines: String = (0..2_000).map(|n| format!("key{}:{n}\n", n % 37)).collect();
    node.run_input(&["produce", "--topic", "k", "--key-separator", ":"], lines.as_bytes());
    let records = json_lines(&node.run(&["consume", "--topic", "k", "--format", "json"]));
    assert_eq!(records.len(), 2_000);
    let mut last: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for record in &records {
        let key = record["key"].as_str().unwrap();
        let shard = record["shard"].as_u64().unwrap();
        assert_eq!(shard, twox_hash::XxHash3_64::oneshot(key.as_bytes()) % 4, "{key}");
        let number: u64 = record["value"].as_str().unwrap().parse().unwrap();
        let offset = record["offset"].as_u64().unwrap();
        if let Some((number_before, offset_before)) = last.insert(key.to_owned(), (number, offset)) {
            assert!(number_before < number && offset_before < offset, "{key}");
        }
    }
    let shards: std::collections::BTreeSet<_> = records.iter().map(|record| record["shard"].as_u64()).collect();
    assert!(shards.len() > 1, "37 keys in 4 shards");
    let pairs = node.run(&["consume", "--topic", "k", "--format", "key-value", "--key-separator", ":"]);
    let (mut got, mut sent): (Vec<_>, Vec<_>) = (pairs.lines().collect(), lines.lines().collect());
    got.sort_unstable();
    sent.sort_unstable();
    assert_eq!(got, sent);
}

/// A topic that wants more replicas than there are nodes says so, and how many it has: when it is made, and where its state is shown.
#[test]
fn more_replicas_than_nodes() {
    let (_dir, node) = node(&["--reactors", "1"]);
    let made = node.run_with(&["topic", "create", "r", "--replication-factor", "3"], b"");
    let note = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.status.success() && note.contains("want 3, have 1"), "{note}");
    for args in [&["topic", "describe", "r"][..], &["cluster", "status"], &["cluster", "health"]] {
        let text = node.run(args);
        assert!(text.contains("want 3, have 1"), "{args:?}: {text}");
    }
}

/// Length-delimited records hold newlines and zeros, and come back byte for byte.
#[test]
fn delimited_records() {
    let (_dir, node) = node(&["--reactors", "1"]);
    let mut input = Vec::new();
    for value in [&b"a\nb"[..], b"", &[0; 300], b"\xff"] {
        prost::encode_length_delimiter(value.len(), &mut input).unwrap();
        input.extend_from_slice(value);
    }
    node.run_bytes(&["produce", "--topic", "d", "--delimited"], &input);
    assert_eq!(node.run_bytes(&["consume", "--topic", "d", "--format", "delimited"], b""), input);
}

/// All the places at which a consumer can start, and what it sees there.
#[test]
fn starts() {
    let (_dir, node) = node(&["--reactors", "1"]);
    node.run_input(&["produce", "--topic", "s"], b"0\n1\n2\n");
    let consume = |args: &[&str]| node.run(&[&["consume", "--topic", "s"], args].concat());
    assert_eq!(consume(&["--from", "1"]), "1\n2\n");
    assert_eq!(consume(&["--from", "3"]), "");
    assert_eq!(consume(&["--from", "latest"]), "");
    assert_eq!(consume(&["--from", "-1h"]), "0\n1\n2\n");
    assert_eq!(consume(&["--from", "2026-01-01T00:00:00Z", "-n", "1"]), "0\n");
    assert_eq!(consume(&["--from", "9999-01-01T00:00:00Z"]), "");
    let record = &json_lines(&consume(&["--from", "2", "--format", "json"]))[0];
    assert_eq!((&record["offset"], &record["value"]), (&2.into(), &"2".into()));
    let refusal = node.refusal(&["consume", "--topic", "s", "--shard", "0", "--from", "4"], b"");
    assert!(refusal.contains("offset 4") && refusal.contains("OutOfRange"), "{refusal}");
}

/// A follower sees records as they come; so does one that starts at the end.
#[test]
fn follows() {
    let (_dir, node) = node(&["--reactors", "1"]);
    node.run_input(&["produce", "--topic", "f"], b"before\n");
    let mut follower =
        node.command(&["consume", "--topic", "f", "--follow", "-n", "3"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "before");
    node.run_input(&["produce", "--topic", "f"], b"after\n");
    assert_eq!(lines.next().unwrap().unwrap(), "after");
    node.run_input(&["produce", "--topic", "f"], b"later\n");
    assert_eq!(lines.next().unwrap().unwrap(), "later");
    assert!(lines.next().is_none());
    assert!(follower.wait().unwrap().success());
}

/// A slow pipe is not held back: a line is acknowledged although the pipe stays open.
#[test]
fn slow_input() {
    let (_dir, node) = node(&["--reactors", "1"]);
    let mut producer = node
        .command(&["produce", "--topic", "slow", "--acks"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = producer.stdin.take().unwrap();
    let mut acks = BufReader::new(producer.stdout.take().unwrap()).lines();
    for number in 0..3 {
        writeln!(stdin, "line {number}").unwrap();
        let ack = acks.next().unwrap().unwrap();
        assert!(ack.contains(&format!("offsets {number} to {number}")), "{ack}");
    }
    drop(stdin);
    assert!(producer.wait().unwrap().success());
}

/// Topics are made, shown, trimmed and removed, for people and for programs.
#[test]
fn topics() {
    let (_dir, node) = node(&["--reactors", "2"]);
    node.run(&["topic", "create", "a", "--shards", "3", "--retention-bytes", "1GiB", "--retention-age", "7d"]);
    let table = node.run(&["topic", "list"]);
    assert!(table.lines().any(|line| line.starts_with("a ") && line.contains("7days")), "{table}");
    let topics: Value = serde_json::from_str(&node.run(&["topic", "list", "-o", "json"])).unwrap();
    let a = topics.as_array().unwrap().iter().find(|topic| topic["name"] == "a").unwrap();
    assert_eq!((&a["shards"], &a["retention_bytes_max"]), (&3.into(), &(1u64 << 30).into()));
    node.run_input(&["produce", "--topic", "a", "--shard", "1"], b"0\n1\n2\n");
    let shown: Value = serde_json::from_str(&node.run(&["topic", "describe", "a", "-o", "json"])).unwrap();
    assert_eq!(shown["shard_status"][1]["high_watermark"], 3);
    assert!(node.run(&["topic", "describe", "a"]).contains("serving"));
    assert!(node.run(&["topic", "trim", "a", "--shard", "1", "--before", "2"]).contains("starts at offset 2"));
    assert_eq!(node.run(&["consume", "--topic", "a"]), "2\n");
    let refusal = node.refusal(&["topic", "create", "a"], b"");
    assert!(refusal.contains("AlreadyExists"), "{refusal}");
    node.run(&["topic", "delete", "a"]);
    let refusal = node.refusal(&["topic", "describe", "a"], b"");
    assert!(refusal.contains("NotFound"), "{refusal}");
    let refusal = node.refusal(&["topic", "delete", "a"], b"");
    assert!(refusal.contains("NotFound"), "{refusal}");
}

/// Wrong input is one clear sentence, and leaves the server well.
#[test]
fn wrong_input() {
    let (_dir, node) = node(&["--reactors", "1"]);
    for name in ["a/b", "..", "", "with space", &"x".repeat(1_024)] {
        let refusal = node.refusal(&["topic", "create", name], b"");
        assert!(refusal.contains("InvalidArgument"), "{name}: {refusal}");
    }
    node.run_input(&["produce", "--topic", "t"], b"ok\n");
    let refusal = node.refusal(&["produce", "--topic", "t", "--shard", "99"], b"x\n");
    assert!(refusal.contains("99") && refusal.contains("no record is acknowledged"), "{refusal}");
    let refusal = node.refusal(&["consume", "--topic", "t", "--shard", "99"], b"");
    assert!(refusal.contains("99"), "{refusal}");
    let refusal = node.refusal(&["consume", "--topic", "unknown"], b"");
    assert!(refusal.contains("unknown") && refusal.contains("NotFound"), "{refusal}");
    // What comes before an over-long line is written, and the message says where it stopped.
    let long = [&b"good\n"[..], &[b'x'; 1 << 20], b"\nnever\n"].concat();
    let refusal = node.refusal(&["produce", "--topic", "t"], &long);
    assert!(refusal.contains("line 2 has") && refusal.contains("1 records are acknowledged"), "{refusal}");
    let refusal = node.refusal(&["produce", "--topic", "t", "--delimited"], b"\x05abc");
    assert!(refusal.contains("record 1 of the input is cut off"), "{refusal}");
    assert_eq!(node.run(&["consume", "--topic", "t"]), "ok\ngood\n");
    assert_eq!(node.run_input(&["produce", "--topic", "t"], b""), "");
    let refusal = node.refusal(&["produce", "/nowhere/at/all"], b"");
    assert!(refusal.contains("cannot read /nowhere/at/all"), "{refusal}");
}

/// Without a server, commands say whom they could not reach; a bad configuration does not start one.
#[test]
fn no_server() {
    let address = free_address();
    for args in [&["produce"][..], &["consume"], &["topic", "list"], &["bench", "produce"]] {
        let output = ringlog(&[args, &["--server", &address]].concat());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(&format!("cannot reach a Ringlog server at {address}")), "{stderr}");
    }
    let output = ringlog(&["serve", "--grpc", "0.0.0.0:7400"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--insecure"), "{}", text(&output.stderr));
    let output = ringlog(&["serve", "--bogus"]);
    assert_eq!(output.status.code(), Some(2));
}

/// A server that accepts and never answers: every command gives up when its time is over, and says what is not known.
#[test]
fn silent_server() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let input = tempfile::NamedTempFile::new().unwrap();
    fs::write(input.path(), "one\ntwo\n").unwrap();
    let output = ringlog(&["produce", input.path().to_str().unwrap(), "--server", &address, "--timeout", "300ms"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("300 ms") && stderr.contains("no record is acknowledged"), "{stderr}");
    let output = ringlog(&["topic", "list", "--server", &address, "--timeout", "300ms"]);
    assert!(text(&output.stderr).contains("300 ms"), "{}", text(&output.stderr));
}

/// `config check` prints the effective configuration, which is itself a file that loads; unknown keys are errors.
#[test]
fn configuration() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ringlog.toml");
    fs::write(&file, "reactors = 3\nsegment_bytes = \"64MiB\"\n").unwrap();
    let check = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(RINGLOG);
        command.args(["config", "check"]).args(args).envs(variables.iter().copied());
        command.output().unwrap()
    };
    let file_flags = ["--config", file.to_str().unwrap(), "--data", "elsewhere"];
    let output = check(&file_flags, &[("RINGLOG_PIN", "false")]);
    let printed = text(&output.stdout);
    assert!(output.status.success() && printed.contains("reactors = 3"), "{printed}");
    assert!(printed.contains("# environment variable RINGLOG_PIN"), "{printed}");
    assert!(printed.contains("segment_bytes = 67108864"), "{printed}");
    let again = dir.path().join("again.toml");
    fs::write(&again, &printed).unwrap();
    let output = check(&[], &[("RINGLOG_CONFIG", again.to_str().unwrap())]);
    let values = |text: &str| text.lines().map(|line| line.split("  #").next().unwrap().trim().to_owned()).collect();
    let (first, second): (Vec<String>, Vec<String>) = (values(&printed), values(&text(&output.stdout)));
    assert_eq!(first, second);
    fs::write(&file, "reactorz = 3\n").unwrap();
    let output = check(&file_flags, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("did you mean `reactors`?"), "{}", text(&output.stderr));
}

/// Help, version and completions go to stdout; no command at all is wrong usage.
#[test]
fn help() {
    for args in
        [&["--help"][..], &["--version"], &["completions", "bash"], &["completions", "zsh"], &["bench", "--help"]]
    {
        let output = ringlog(args);
        assert!(output.status.success() && !output.stdout.is_empty(), "{args:?}");
    }
    assert_eq!(ringlog(&[]).status.code(), Some(2));
}

/// A history is judged: exit code 0 when every promise is kept, 1 with a sentence for each finding, 2 when there is no verdict.
#[test]
fn histories() {
    let ack = |base: u64| {
        format!(
            "{{\"event\":\"produce\",\"client\":\"a\",\"begin_us\":1,\"end_us\":2,\"topic\":\"t\",\"shard\":0,\
             \"records\":[\"value {base}\"],\"outcome\":{{\"acked\":{{\"base_offset\":{base},\"count\":1}}}}}}\n"
        )
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.jsonl");
    let judge = |content: &str, flags: &[&str]| {
        fs::write(&path, content).unwrap();
        let output = ringlog(&[&["check-history", path.to_str().unwrap()], flags].concat());
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, _) = judge(&(ack(0) + &ack(1)), &[]);
    assert_eq!((code, &*out), (Some(0), "every promise is kept: 2 events, 1 shards, 2 acknowledged records\n"));
    let (code, out, _) = judge(&(ack(0) + &ack(2)), &[]);
    let finding = "gap: topic t shard 0: line 2 shows a record behind offset 1, at which there is none\n";
    let summary = "promises are broken: 2 events, 1 shards, 2 acknowledged records\ngap: 1\n";
    assert_eq!((code, out), (Some(1), format!("{finding}{summary}")));
    let (code, out, _) = judge(&(ack(0) + &ack(2)), &["--json"]);
    let verdict: Value = serde_json::from_str(&out).unwrap();
    let finding = &verdict["report"]["findings"][0];
    assert_eq!(
        (code, &verdict["ok"], &finding["kind"], &finding["missing"]),
        (Some(1), &false.into(), &"gap".into(), &1.into())
    );
    let (code, out, error) = judge(&(ack(0) + &ack(1)[..30]), &[]);
    assert_eq!((code, &*out), (Some(2), ""));
    assert!(error.contains("history.jsonl: line 2: it is cut off"), "{error}");
    assert_eq!(judge("", &[]).0, Some(2), "an empty history is no good news");
    assert_eq!(ringlog(&["check-history", "/no/such/file"]).status.code(), Some(2));
}

/// A reader that goes away ends a command quietly.
#[test]
fn broken_pipe() {
    let (_dir, node) = node(&["--reactors", "1"]);
    let lines: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    node.run_input(&["produce", "--topic", "p"], lines.as_bytes());
    let mut consumer =
        node.command(&["consume", "--topic", "p"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 2];
    consumer.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = consumer.wait_with_output().unwrap();
    assert_eq!((&first, output.status.code(), text(&output.stderr).as_str()), (b"0\n", Some(0), ""));
}

/// All files below `dir` whose names end in `suffix`, with their sizes.
fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, suffix));
        } else if path.to_str().unwrap().ends_with(suffix) {
            found.push(path);
        }
    }
    found
}

/// `verify` is content with a clean directory and with a killed one, and names file and position of one changed byte.
#[test]
fn verifies() {
    let (dir, node) = node(&["--reactors", "2"]);
    let lines: String = (0..5_000).map(|n| format!("record {n} with a body\n")).collect();
    node.run_input(&["produce", "--topic", "v"], lines.as_bytes());
    let data = dir.path().join("data");
    let data_text = data.to_str().unwrap();
    assert!(node.stop().success());
    let output = ringlog(&["verify", data_text]);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    let output = ringlog(&["verify", data_text, "-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["ok"], &report["records"]), (&true.into(), &5_000.into()), "{report}");

    let node = Node::start(dir.path(), &["--reactors", "2"]);
    node.run_input(&["produce", "--topic", "v"], b"one more\n");
    node.kill();
    let output = ringlog(&["verify", data_text]);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));

    let stores = files(&data, ".store");
    let damaged = stores.iter().find(|path| {
        let bytes = fs::read(path).unwrap();
        bytes.windows(16).any(|window| window == b"record 2500 with")
    });
    let damaged = damaged.unwrap();
    let mut bytes = fs::read(damaged).unwrap();
    let at = bytes.windows(16).position(|window| window == b"record 2500 with").unwrap();
    bytes[at] ^= 1;
    fs::write(damaged, bytes).unwrap();
    let output = ringlog(&["verify", data_text]);
    assert_eq!(output.status.code(), Some(1));
    let report = text(&output.stdout);
    assert!(report.contains(damaged.file_name().unwrap().to_str().unwrap()), "{report}");

    // A shard that is gone altogether, one of another node, and one that the catalog never made.
    let shards = data.join("shards");
    fs::rename(shards.join("1"), dir.path().join("gone")).unwrap();
    let (elsewhere, other) = self::node(&["--reactors", "2"]);
    assert!(other.stop().success());
    fs::rename(shards.join("2"), shards.join("77")).unwrap();
    fs::rename(elsewhere.path().join("data/shards/2"), shards.join("2")).unwrap();
    let output = ringlog(&["verify", data_text, "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = report["problems"].as_array().unwrap();
    for (place, words) in [
        ("shards/1", "replica of shard 0 of topic \"default\""),
        ("shards/2/hard_state", "another node or in another cluster"),
        ("shards/77", "never made it"),
    ] {
        let found = problems.iter().any(|problem| {
            problem["file"].as_str().unwrap().ends_with(place) && problem["what"].as_str().unwrap().contains(words)
        });
        assert!(found, "{place}: {problems:#?}");
    }
    let output = ringlog(&["verify", "/nowhere/at/all"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nowhere/at/all"));
}

/// The only copy of a shard is damaged: the node says so and names the command, which says what is lost, refuses while a node
/// runs, and with `--cut` ends the log there; then the node serves what was in front of the damage.
#[test]
fn repairs() {
    let (dir, node) = node(&["--reactors", "1"]);
    node.run(&["topic", "create", "r", "--shards", "1"]);
    for number in 0..10 {
        node.run_input(&["produce", "--topic", "r"], format!("record {number}!\n").as_bytes());
    }
    node.kill();
    let data = dir.path().join("data");
    let holds = |path: &PathBuf| position(&fs::read(path).unwrap(), b"record 6!").is_some();
    let damaged = files(&data, ".store").into_iter().find(holds).unwrap();
    let mut bytes = fs::read(&damaged).unwrap();
    let at = position(&bytes, b"record 6!").unwrap();
    bytes[at] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let shard = damaged.parent().unwrap().to_str().unwrap();

    let node = Node::start(dir.path(), &["--reactors", "1"]);
    let refused = || node.run_with(&["consume", "--topic", "r"], b"");
    while !text(&refused().stderr).contains("ringlog repair") {
        assert!(!refused().status.success(), "what is damaged was served");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let busy = ringlog(&["repair", shard, "--cut"]);
    assert!(text(&busy.stderr).contains("a server is running"), "{}", text(&busy.stderr));
    assert!(node.stop().success());

    let said = ringlog(&["repair", shard]);
    assert_eq!(said.status.code(), Some(1));
    assert!(text(&said.stdout).contains("offsets 6 to 7 (exclusive), cannot be read"), "{}", text(&said.stdout));
    assert!(text(&said.stdout).contains("offsets 6 to 10 (exclusive) would be given up"), "{}", text(&said.stdout));
    let cut = ringlog(&["repair", shard, "--cut"]);
    assert!(cut.status.success(), "{}", text(&cut.stderr));
    assert!(text(&cut.stdout).contains("the log ends at offset 6 now"), "{}", text(&cut.stdout));
    assert!(files(&data, ".damaged").iter().any(|kept| position(&fs::read(kept).unwrap(), b"record 7!").is_some()));
    assert!(ringlog(&["repair", shard]).status.success());

    let node = Node::start(dir.path(), &["--reactors", "1"]);
    node.run_input(&["produce", "--topic", "r"], b"another\n");
    let records = node.run(&["consume", "--topic", "r"]);
    assert!(records.lines().eq((0..6).map(|n| format!("record {n}!")).chain(["another".to_owned()])), "{records}");
}

fn position(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The load generator runs in all its forms, and its JSON has what the README promises.
#[test]
fn bench() {
    let (dir, node) = node(&["--reactors", "2"]);
    let floor_dir = dir.path().to_str().unwrap();
    let common = ["--warmup", "0.2", "-o", "json"];
    for args in [
        &["--records", "300", "--floor", "--floor-dir", floor_dir][..],
        &["--records", "3000", "--in-flight", "32", "--connections", "2"],
        &["--records", "3000", "--batch", "100", "--in-flight", "8"],
        &["--records", "300", "--rate", "500"],
        &["--records", "300", "--rate", "300", "--unary"],
        &["--records", "3000", "--unary", "--in-flight", "8", "--connections", "3"],
        &["--records", "3000", "--batch", "10", "--in-flight", "4"],
    ] {
        let result = node.run(&[&["bench", "produce"], args, &common].concat());
        let result: Value = serde_json::from_str(&result).unwrap();
        for name in ["records", "records_per_s", "p50_us", "p99_us", "p999_us", "max_us"] {
            assert!(result[name].as_f64().unwrap() > 0.0, "{args:?}: {name} in {result}");
        }
        // A disk that is slow enough makes it 0.0.
        assert!(result["mb_per_s"].is_number(), "{args:?}: {result}");
        assert_eq!(result["errors"], 0, "{args:?}: {result}");
        if args.contains(&"--floor") {
            assert!(result["floor_p50_us"].as_f64().unwrap() > 0.0 && result["floor_p99_us"].is_number(), "{result}");
        }
        if let ["--records", records, rest @ ..] = args
            && !rest.contains(&"--rate")
        {
            assert_eq!(result["records"], records.parse::<u64>().unwrap(), "{result}");
        }
    }
    // How many there are in a time is the disk's affair, which may do nothing for seconds.
    let result = node.run(&[&["bench", "produce", "--seconds", "1"][..], &common].concat());
    let result: Value = serde_json::from_str(&result).unwrap();
    assert!(result["seconds"].as_f64().unwrap() >= 1.0 && result["errors"] == 0, "{result}");
    let replay = ["bench", "consume", "--topic", "replay", "--shards", "3", "--records", "20000", "-o", "json"];
    for _ in 0..2 {
        let result: Value = serde_json::from_str(&node.run(&replay)).unwrap();
        assert_eq!((&result["records"], &result["bytes"]), (&20_000.into(), &(20_000 * 1_024).into()), "{result}");
        assert_eq!(result["shards"], 3, "{result}");
    }
    let refusal = node.refusal(&["bench", "produce", "--batch", "100000"], b"");
    assert!(refusal.contains("lower --batch"), "{refusal}");
    let refusal = node.refusal(&["bench", "produce", "--topic", "replay", "--shards", "2"], b"");
    assert!(refusal.contains("has 3 shards, not 2"), "{refusal}");
}
