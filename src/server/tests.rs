//! Whole nodes in this process, over real sockets and a real disk.
#![allow(clippy::disallowed_methods, reason = "clients, and damage, from the outside")]

mod http_requests;
mod panics;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};

use super::*;
use crate::{
    client::Client,
    proto::ringlog::{state::v1::ClusterNode, v1},
    reactor::control::remembered::{self, MEMBERS_FILE},
};

fn config(data: &Path) -> Config {
    let anywhere: SocketAddr = ([127, 0, 0, 1], 0).into();
    Config {
        data: data.to_owned(),
        grpc: anywhere,
        http: anywhere,
        peer: anywhere,
        reactors: 2,
        pin: false,
        segment_bytes: 1 << 20,
        shutdown_grace_ms: 2_000,
        ..Config::default()
    }
}

fn start(data: &Path) -> Node {
    Node::start(config(data)).unwrap()
}

fn raw(node: &Node, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
    raw_from(node, "localhost", method, path, headers, body)
}

fn raw_from(node: &Node, host: &str, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let mut socket = TcpStream::connect(node.http_addr()).unwrap();
    write!(socket, "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n").unwrap();
    // A server that refuses early closes early.
    drop(socket.write_all(body));
    let mut answer = Vec::new();
    drop(socket.read_to_end(&mut answer));
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer:?}")).parse().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (status, body.to_owned())
}

/// A call with a JSON body, unless it is null, and a JSON answer.
fn call(node: &Node, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let headers = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
    let (status, answer) = raw(node, method, path, &headers, body.as_bytes());
    (status, serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}")))
}

fn get(node: &Node, path: &str) -> (u16, Value) {
    call(node, "GET", path, &Value::Null)
}

fn produce(node: &Node, topic: &str, body: &Value) -> (u16, Value) {
    call(node, "POST", &format!("/v1/topics/{topic}/records"), body)
}

fn say(text: &str, shard: u32) -> Value {
    json!({"shard": shard, "records": [{"value_text": text}]})
}

fn texts(node: &Node, topic: &str, shard: u32) -> Vec<String> {
    let (status, answer) = get(node, &format!("/v1/topics/{topic}/shards/{shard}/records?text=true"));
    assert_eq!(status, 200, "{answer}");
    let records = answer["records"].as_array().unwrap();
    records.iter().map(|record| record["value_text"].as_str().unwrap().to_owned()).collect()
}

fn uids(node: &Node, topic: &str) -> Vec<u64> {
    let (status, answer) = get(node, &format!("/v1/topics/{topic}"));
    assert_eq!(status, 200, "{answer}");
    answer["shards"].as_array().unwrap().iter().map(|shard| shard["shard_uid"].as_u64().unwrap()).collect()
}

fn shard_path(data: &Path, uid: u64) -> std::path::PathBuf {
    data.join("shards").join(uid.to_string())
}

/// What a client writes over HTTP it reads back, with keys, headers, times and offsets, from every shard.
#[test]
fn http_round_trip() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    for shard in 0..2 {
        let body = json!({"shard": shard, "records": [
            {"key": "/w==", "value_text": "héllo", "timestamp_us": 5, "headers": [{"name": "h", "value_text": "v"}]},
            {"key_text": "k"},
        ]});
        let (status, ack) = produce(&node, "default", &body);
        assert_eq!(status, 200, "{ack}");
        assert_eq!((&ack["topic"], &ack["shard"]), (&json!("default"), &json!(shard)));
        assert_eq!((&ack["base_offset"], &ack["count"]), (&json!(0), &json!(2)));
        assert_eq!(ack["durability"], "quorum_flushed");
        let (status, answer) = get(&node, &format!("/v1/topics/default/shards/{shard}/records?offset=0&text=true"));
        assert_eq!(status, 200, "{answer}");
        assert_eq!((&answer["next_offset"], &answer["high_watermark"]), (&json!(2), &json!(2)));
        let first = &answer["records"][0];
        let wanted = json!({"offset": 0, "timestamp_us": 5, "key": "/w==", "value_text": "héllo",
            "headers": [{"name": "h", "value_text": "v"}]});
        assert_eq!(first, &wanted);
        assert_eq!(answer["records"][1]["timestamp_us"], ack["timestamp_us"], "the leader's clock");
        let (_, one) = get(&node, &format!("/v1/topics/default/shards/{shard}/records?offset=1&max_records=1"));
        assert_eq!((one["records"].as_array().unwrap().len(), &one["records"][0]["key"]), (1, &json!("aw==")));
    }
    // The same key always goes to the same shard; without one every shard is used.
    let keyed: Vec<_> = (0..4).map(|_| produce(&node, "default", &json!({"records": [{"key_text": "k"}]})).1).collect();
    assert!(keyed.iter().all(|ack| ack["shard"] == keyed[0]["shard"]), "{keyed:?}");
    let unkeyed: std::collections::BTreeSet<_> =
        (0..8).map(|_| produce(&node, "default", &json!({"records": [{}]})).1["shard"].as_u64().unwrap()).collect();
    assert_eq!(unkeyed.into_iter().collect::<Vec<_>>(), [0, 1]);
    node.shutdown().unwrap();
}

/// Wrong requests get a status, a reason and words, and the node goes on.
#[test]
fn http_refusals() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    let records = "/v1/topics/default/shards/0/records";
    let long = "x".repeat((1 << 20) + 1);
    let far_topic = format!("/v1/topics/{}", "t".repeat(1024));
    let cases = [
        ("GET", "/nowhere".to_owned(), Value::Null, 404, "PAGE_NOT_FOUND"),
        ("DELETE", "/v1/servers".to_owned(), Value::Null, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/v1/topics/default/records".to_owned(), json!({"records": []}), 400, "NO_RECORDS"),
        ("POST", "/v1/topics/default/records".to_owned(), json!({"record": []}), 400, "JSON_INVALID"),
        ("POST", "/v1/topics/default/records".to_owned(), say(&long, 0), 400, "RECORD_TOO_LONG"),
        ("POST", "/v1/topics/default/records".to_owned(), say("x", 2), 404, "SHARD_NOT_FOUND"),
        ("POST", "/v1/topics/a%2Fb/records".to_owned(), say("x", 0), 400, "TOPIC_NAME_INVALID"),
        ("POST", "/v1/topics/../records".to_owned(), say("x", 0), 400, "TOPIC_NAME_INVALID"),
        ("POST", "/v1/topics/a%00/records".to_owned(), say("x", 0), 400, "TOPIC_NAME_INVALID"),
        ("PUT", far_topic, Value::Null, 400, "TOPIC_NAME_INVALID"),
        ("PUT", "/v1/topics/wide".to_owned(), json!({"shards": 4_000_000_000_u32}), 400, "SHARD_COUNT_INVALID"),
        ("PUT", "/v1/topics/odd".to_owned(), json!({"config": {"segment_bytes": 12345}}), 400, "SEGMENT_BYTES_INVALID"),
        ("PUT", "/v1/topics/default".to_owned(), Value::Null, 409, "TOPIC_EXISTS"),
        ("DELETE", "/v1/topics/none".to_owned(), Value::Null, 404, "TOPIC_NOT_FOUND"),
        ("GET", "/v1/topics/none/shards/0/records".to_owned(), Value::Null, 404, "TOPIC_NOT_FOUND"),
        ("GET", "/v1/topics/default/shards/9/records".to_owned(), Value::Null, 404, "SHARD_NOT_FOUND"),
        ("GET", "/v1/topics/default/shards/-1/records".to_owned(), Value::Null, 400, "PATH_INVALID"),
        ("GET", format!("{records}?offset=-1"), Value::Null, 400, "QUERY_INVALID"),
        ("GET", format!("{records}?ofset=1"), Value::Null, 400, "QUERY_INVALID"),
        ("GET", format!("{records}?offset=1&position=latest"), Value::Null, 400, "START_AMBIGUOUS"),
        ("GET", format!("{records}?offset={}", u64::MAX), Value::Null, 400, "OFFSET_OUT_OF_RANGE"),
        ("GET", format!("{records}?wait_ms=60001"), Value::Null, 400, "WAIT_TOO_LONG"),
        ("GET", "/v1/servers?topic=none".to_owned(), Value::Null, 404, "TOPIC_NOT_FOUND"),
    ];
    for (method, path, body, status, reason) in cases {
        let answer = call(&node, method, &path, &body);
        assert_eq!((answer.0, &answer.1["reason"]), (status, &json!(reason)), "{method} {path}: {}", answer.1);
        assert_eq!(answer.1["definite"], true);
        assert!(!answer.1["message"].as_str().unwrap().is_empty());
    }
    let post = |headers: &str, body: &[u8]| raw(&node, "POST", "/v1/topics/default/records", headers, body);
    assert_eq!(post("content-length: 2\r\n", b"{}").0, 415, "a web page may send this unasked");
    let json = "content-type: application/json\r\n";
    assert_eq!(post(&format!("{json}content-length: 99999999999\r\n"), b"{").0, 413, "refused before it is read");
    let lines = format!("{:x}\r\n{}\r\n0\r\n\r\n", 9 << 20, " ".repeat(9 << 20));
    assert_eq!(post(&format!("{json}transfer-encoding: chunked\r\n"), lines.as_bytes()).0, 413);
    assert_eq!(produce(&node, "default", &say("still well", 0)).0, 200);
    node.shutdown().unwrap();
}

/// Health pages and metrics tell what is going on.
#[test]
fn health_and_metrics() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    assert_eq!(get(&node, "/livez"), (200, json!({"live": true})));
    let (status, ready) = get(&node, "/readyz");
    assert_eq!((status, &ready["ready"], &ready["shards"]), (200, &json!(true), &json!(2)));
    assert_eq!(produce(&node, "default", &say("x", 0)).0, 200);
    let (status, page) = raw(&node, "GET", "/metrics", "", b"");
    assert_eq!(status, 200);
    for name in ["ringlog_connections{reactor=\"1\"}", "ringlog_shards{reactor=\"0\"} 1", "ringlog_resident_bytes"] {
        assert!(page.contains(name), "{name} is missing:\n{page}");
    }
    node.shared().note_fault(crate::ids::ShardUid(1), "just a test");
    let (status, ready) = get(&node, "/readyz");
    assert_eq!((status, &ready["faults"][0]["cause"]), (200, &json!("just a test")), "the other shard serves");
    let (status, servers) = get(&node, "/v1/servers");
    assert_eq!((status, &servers["servers"][0]["reactors"]), (200, &json!(2)));
    assert_eq!(servers["topics"][0]["shards"][1]["leader_node_id"], 1);
    node.shutdown().unwrap();
}

/// What is counted through a handle that is made as soon as a node begins to start is on the page, not lost.
#[test]
fn metrics_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file");
    fs::write(&file, b"x").unwrap();
    Node::start(config(&file)).unwrap_err();
    metrics::counter!("ringlog_counted_by_a_test").increment(7);
    assert!(observe::metrics().render().contains("ringlog_counted_by_a_test 7"));
}

/// Topics and records are there after a restart, and the cluster is the same one.
#[test]
fn restart_keeps_everything() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    let settings = json!({"shards": 3, "config": {"retention": {"bytes_max": 1 << 30}, "segment_bytes": 2 << 20}});
    assert_eq!(call(&node, "PUT", "/v1/topics/t", &settings).0, 201);
    for shard in 0..3 {
        assert_eq!(produce(&node, "t", &say(&format!("shard {shard}"), shard)).0, 200);
    }
    let before = (get(&node, "/v1/topics").1, get(&node, "/v1/servers").1["cluster_id"].clone());
    node.shutdown().unwrap();
    let node = start(data.path());
    let after = (get(&node, "/v1/topics").1, get(&node, "/v1/servers").1["cluster_id"].clone());
    assert_eq!(after, before);
    for shard in 0..3 {
        assert_eq!(texts(&node, "t", shard), [format!("shard {shard}")]);
        assert_eq!(produce(&node, "t", &say("more", shard)).1["base_offset"], 1);
    }
    // Another number of reactors only moves shards between threads.
    node.shutdown().unwrap();
    let node = Node::start(Config { reactors: 1, ..config(data.path()) }).unwrap();
    for shard in 0..3 {
        assert_eq!(texts(&node, "t", shard).len(), 2);
    }
    node.shutdown().unwrap();
}

/// A second server on the same directory or port says so; on others it runs beside the first.
#[test]
fn two_servers() {
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = start(data.path());
    let error = Node::start(config(data.path())).unwrap_err();
    assert!(error.contains("in use by process"), "{error}");
    for same in [
        Config { grpc: node.grpc_addr(), ..config(other.path()) },
        Config { http: node.http_addr(), ..config(other.path()) },
    ] {
        let error = Node::start(same).unwrap_err();
        assert!(error.contains("already in use"), "{error}");
    }
    start(other.path()).shutdown().unwrap();
    node.shutdown().unwrap();
}

/// A directory that is another node's, of another format, or lacks a part is refused, and not begun afresh.
#[test]
fn foreign_directories() {
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    start(data.path()).shutdown().unwrap();
    start(other.path()).shutdown().unwrap();
    let refused = |wanted: &str| {
        let error = Node::start(config(data.path())).unwrap_err();
        assert!(error.contains(wanted), "{wanted:?} is not in {error:?}");
    };
    let identity = data.path().join("identity");
    let own = fs::read(&identity).unwrap();
    fs::copy(other.path().join("identity"), &identity).unwrap();
    refused("is of cluster");
    fs::write(&identity, b"ringlog 9\n").unwrap();
    refused("format 9");
    fs::write(&identity, &own[1..]).unwrap();
    refused("damaged");
    fs::remove_file(&identity).unwrap();
    refused("no file `identity`");
    fs::write(&identity, own).unwrap();
    // Not a topic's, and never handed out: whose records would that be?
    fs::create_dir_all(shard_path(data.path(), 77)).unwrap();
    refused("belongs to no topic");
    // What a crash has left of one that was being removed is nobody's.
    let half_removed = data.path().join("shards/77.gone");
    fs::rename(shard_path(data.path(), 77), &half_removed).unwrap();
    start(data.path()).shutdown().unwrap();
    assert!(!half_removed.exists());
    start(data.path()).shutdown().unwrap();
    fs::remove_dir_all(shard_path(data.path(), 0)).unwrap();
    refused("catalog");
}

/// A node without replicas, such as one that was drained, does not begin its cluster anew either when its catalog is gone or emptied.
#[test]
fn lost_catalog_without_shards() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    assert_eq!(call(&node, "DELETE", "/v1/topics/default", &Value::Null).0, 200);
    node.shutdown().unwrap();
    let catalog = shard_path(data.path(), 0);
    for keeps_dir in [false, true] {
        if catalog.exists() {
            fs::remove_dir_all(&catalog).unwrap();
        }
        if keeps_dir {
            fs::create_dir(&catalog).unwrap();
        }
        let error = Node::start(config(data.path())).unwrap_err();
        assert!(error.contains("the catalog in") && error.contains("missing"), "{error}");
        assert!(error.contains("backup") && !error.contains("--dead"), "{error}");
        assert!(!catalog.join("hard_state").exists(), "it was begun anew");
    }
    // Beside others an older copy would have forgotten votes and records.
    let members = fs::read(data.path().join(MEMBERS_FILE)).unwrap();
    let own = remembered::decode(&members).unwrap().nodes.remove(0);
    let members = remembered::encode(crate::ids::Index(0), [ClusterNode { node_id: 2, ..own.clone() }, own]);
    fs::write(data.path().join(MEMBERS_FILE), members).unwrap();
    let error = Node::start(config(data.path())).unwrap_err();
    assert!(error.contains("`ringlog cluster remove 1 --dead`") && !error.contains("backup"), "{error}");
    fs::write(data.path().join(MEMBERS_FILE), "damaged").unwrap();
    let error = Node::start(config(data.path())).unwrap_err();
    assert!(error.contains("--dead") && error.contains("only otherwise restore it from a backup"), "{error}");
}

/// A node that cannot read who the nodes are, or which replicas it has made, starts as with damaged lists; but where such a list is,
/// there was a catalog, and none is begun anew.
#[test]
fn unreadable_lists() {
    let data = tempfile::tempdir().unwrap();
    start(data.path()).shutdown().unwrap();
    for list in ["members", "replicas"] {
        fs::remove_file(data.path().join(list)).unwrap();
        fs::create_dir(data.path().join(list)).unwrap();
    }
    let node = start(data.path());
    assert_eq!(produce(&node, "default", &say("x", 0)).0, 200);
    node.shutdown().unwrap();
    fs::remove_dir_all(data.path().join("shards")).unwrap();
    fs::remove_dir(data.path().join("members")).unwrap();
    let error = Node::start(config(data.path())).unwrap_err();
    assert!(error.contains("the catalog in") && error.contains("missing"), "{error}");
    assert!(!shard_path(data.path(), 0).join("hard_state").exists(), "it was begun anew");
}

/// A shard whose files are gone says so, whether its directory went with them, or was emptied, or holds a lone checkpoint;
/// the others, and the node, serve.
#[test]
fn lost_shard() {
    shard_is_lost(|dir| fs::remove_dir_all(dir).unwrap());
    let empty = |dir: &Path, keep: &str| {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != keep) {
                fs::remove_file(path).unwrap();
            }
        }
    };
    shard_is_lost(|dir| empty(dir, "nothing"));
    shard_is_lost(|dir| empty(dir, "checkpoint"));
}

fn shard_is_lost(lose: impl Fn(&Path)) {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    assert_eq!(call(&node, "PUT", "/v1/topics/newer", &Value::Null).0, 201);
    let lost = uids(&node, "default")[1];
    node.shutdown().unwrap();
    lose(&shard_path(data.path(), lost));
    let node = start(data.path());
    assert_eq!(produce(&node, "default", &say("x", 0)).0, 200);
    let (status, answer) = produce(&node, "default", &say("x", 1));
    assert_eq!((status, &answer["code"], &answer["definite"]), (500, &json!("DATA_LOSS"), &json!(true)));
    assert!(answer["message"].as_str().unwrap().contains("backup"), "{answer}");
    let (status, ready) = get(&node, "/readyz");
    assert_eq!((status, &ready["faults"][0]["shard_uid"]), (200, &json!(lost)));
    assert!(!shard_path(data.path(), lost).join("hard_state").exists(), "it was not made anew");
    // Deleting the topic is the way out.
    assert_eq!(call(&node, "DELETE", "/v1/topics/default", &Value::Null).0, 200);
    assert_eq!(get(&node, "/readyz").1["shards_faulted"], 0);
    node.shutdown().unwrap();
}

/// A damaged record stops its shard, with file and position, and nothing else.
#[test]
fn damaged_shard() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    for number in 0..20 {
        assert_eq!(produce(&node, "default", &say(&format!("record {number}"), 1)).0, 200);
    }
    let uid = uids(&node, "default")[1];
    node.shutdown().unwrap();
    let dir = shard_path(data.path(), uid);
    let store = dir.join("00000000000000000000.store");
    let mut bytes = fs::read(&store).unwrap();
    let at = bytes.windows(8).position(|window| window == b"record 5").expect("records are stored as they are");
    bytes[at] ^= 1;
    fs::write(&store, &bytes).unwrap();
    // After a clean stop nothing is scanned: the damage shows when it is read.
    let node = start(data.path());
    let (status, answer) = get(&node, "/v1/topics/default/shards/1/records?offset=5");
    assert!(status >= 500 && answer["message"].as_str().unwrap().contains("damaged at byte"), "{answer}");
    assert_eq!(get(&node, "/readyz").1["faults"][0]["shard_uid"], uid);
    node.shutdown().unwrap();
    // After any other stop it shows at once, and is not cut: valid entries come after it.
    fs::remove_file(dir.join("00000000000000000000.index")).unwrap();
    let before = fs::read(&store).unwrap();
    let node = start(data.path());
    for (status, answer) in [produce(&node, "default", &say("x", 1)), get(&node, "/v1/topics/default/shards/1/records")]
    {
        assert_eq!((status, &answer["code"], &answer["definite"]), (500, &json!("DATA_LOSS"), &json!(true)));
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains("damaged at byte") && message.contains("ringlog verify"), "{message}");
    }
    assert_eq!(get(&node, "/readyz").1["faults"][0]["shard_uid"], uid);
    assert_eq!(produce(&node, "default", &say("x", 0)).0, 200, "the other shard serves");
    node.shutdown().unwrap();
    assert!(fs::read(&store).unwrap() == before, "nothing was cut");
}

/// Topics are made by their first produce, once, if that is on; and not by a consume.
#[test]
fn auto_create() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    assert_eq!(get(&node, "/v1/topics/fresh/shards/0/records").0, 404);
    let acks: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let call = || produce(&node, "fresh", &say("x", 1));
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut offsets: Vec<_> = acks.iter().map(|(status, ack)| (*status, ack["base_offset"].as_u64())).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..8).map(|offset| (200, Some(offset))).collect::<Vec<_>>());
    node.shutdown().unwrap();
    let node = Node::start(Config { auto_create: Some(false), ..config(data.path()) }).unwrap();
    let (status, answer) = produce(&node, "unknown", &say("x", 0));
    assert_eq!((status, &answer["reason"]), (404, &json!("TOPIC_NOT_FOUND")));
    assert!(answer["message"].as_str().unwrap().contains("ringlog topic create unknown"), "{answer}");
    assert_eq!(produce(&node, "fresh", &say("x", 1)).0, 200);
    node.shutdown().unwrap();
}

/// A topic that is deleted and made again is another one: fresh uids, no old records, no old files.
#[test]
fn delete_and_recreate() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    assert_eq!(produce(&node, "t", &say("old", 0)).0, 200);
    let old = uids(&node, "t");
    assert_eq!(call(&node, "DELETE", "/v1/topics/t", &Value::Null), (200, json!({})));
    assert_eq!(get(&node, "/v1/topics/t").0, 404);
    assert!(old.iter().all(|uid| !shard_path(data.path(), *uid).exists()));
    assert_eq!(call(&node, "POST", "/v1/topics/t", &json!({"shards": 1})).0, 201);
    let new = uids(&node, "t");
    assert!(new.iter().all(|uid| *uid > *old.last().unwrap()), "{old:?} {new:?}");
    assert!(texts(&node, "t", 0).is_empty());
    node.shutdown().unwrap();
    // A deletion that a crash cut off leaves a directory: the next start removes it.
    fs::create_dir_all(shard_path(data.path(), old[0])).unwrap();
    let node = start(data.path());
    assert!(!shard_path(data.path(), old[0]).exists());
    assert_eq!(uids(&node, "t"), new);
    node.shutdown().unwrap();
}

/// A trim moves the log start, for good.
#[test]
fn trim() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    for text in ["a", "b", "c"] {
        assert_eq!(produce(&node, "t", &say(text, 1)).0, 200);
    }
    let trimmed = call(&node, "POST", "/v1/topics/t/shards/1/trim", &json!({"before_offset": 2}));
    assert_eq!(trimmed, (200, json!({"log_start": 2})));
    let beyond = call(&node, "POST", "/v1/topics/t/shards/1/trim", &json!({"before_offset": 4}));
    assert_eq!((beyond.0, &beyond.1["reason"]), (400, &json!("OFFSET_OUT_OF_RANGE")));
    node.shutdown().unwrap();
    let node = start(data.path());
    assert_eq!(texts(&node, "t", 1), ["c"]);
    node.shutdown().unwrap();
}

/// A consume that waits gets what comes, and is sent home when the node shuts down.
#[test]
fn waiting_consumers() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    std::thread::scope(|scope| {
        let path = "/v1/topics/default/shards/0/records?offset=0&wait_ms=60000&text=true";
        let waiting = scope.spawn(|| get(&node, path));
        assert_eq!(produce(&node, "default", &say("come", 0)).0, 200);
        let (status, answer) = waiting.join().unwrap();
        assert_eq!((status, &answer["records"][0]["value_text"]), (200, &json!("come")));
    });
    let mut socket = TcpStream::connect(node.http_addr()).unwrap();
    let path = "/v1/topics/default/shards/0/records?position=latest&wait_ms=60000";
    write!(socket, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    // The request is in the node's hands once this later one is answered.
    assert_eq!(get(&node, "/livez").0, 200);
    node.shutdown().unwrap();
    let mut answer = String::new();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    drop(socket.read_to_string(&mut answer));
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("SHUTTING_DOWN"), "{answer:?}");
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn request(topic: &str, shard: Option<u32>, value: String) -> v1::ProduceRequest {
    let record = v1::Record { value: value.into(), ..Default::default() };
    v1::ProduceRequest { topic: topic.to_owned(), shard, records: vec![record], ..Default::default() }
}

/// Over gRPC, from several connections, every shard can be written and read, whichever reactor
/// accepted the connection; and unkeyed records of one connection stay on its reactor.
#[test]
fn grpc_across_reactors() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    on_runtime(async {
        let address = node.grpc_addr().to_string();
        let mut own = std::collections::BTreeSet::new();
        for connection in 0..16 {
            let client = Client::connect(&address).await.unwrap();
            for shard in 0..2 {
                let ack = client.produce(&request("", Some(shard), format!("{connection}"))).await.unwrap();
                assert_eq!((ack.shard, &*ack.topic), (shard, "default"));
            }
            let mut shards = std::collections::BTreeSet::new();
            for _ in 0..4 {
                shards.insert(client.produce(&request("other", None, "x".to_owned())).await.unwrap().shard);
            }
            assert_eq!(shards.len(), 1, "one shard per reactor");
            own.extend(shards);
        }
        assert_eq!(own.len(), 2, "16 connections were all accepted by one reactor");
        let client = Client::connect(&address).await.unwrap();
        for shard in 0..2 {
            let consumed = client.consume(&v1::ConsumeRequest { shard, ..Default::default() }).await.unwrap();
            let values: Vec<_> =
                consumed.records.iter().map(|r| String::from_utf8(r.value.to_vec()).unwrap()).collect();
            assert_eq!(values, (0..16).map(|number| number.to_string()).collect::<Vec<_>>());
        }
        let topics: Vec<_> = client.list_topics().await.unwrap().into_iter().map(|topic| topic.name).collect();
        assert_eq!(topics, ["default", "other"]);
    });
    node.shutdown().unwrap();
}

/// A stream that begins with an unknown topic keeps its order while the topic is made.
#[test]
fn order_across_creation() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    on_runtime(async {
        let client = Client::connect(&node.grpc_addr().to_string()).await.unwrap();
        let (mut sender, mut acks) = client.produce_stream().await.unwrap();
        for number in 0..50 {
            let v1::ProduceRequest { topic, shard, records, .. } = request("fresh", Some(1), number.to_string());
            let request = v1::ProduceStreamRequest { topic, shard, records, ..Default::default() };
            sender.send(&request).await.unwrap();
        }
        sender.finish().await.unwrap();
        let mut offsets = Vec::new();
        while let Some(ack) = acks.next().await {
            offsets.push(ack.unwrap().base_offset);
        }
        assert_eq!(offsets, (0..50).collect::<Vec<_>>());
    });
    let values = texts(&node, "fresh", 1);
    assert_eq!(values, (0..50).map(|number| number.to_string()).collect::<Vec<_>>());
    node.shutdown().unwrap();
}

/// A configuration that would serve strangers without TLS is refused, by the key that says so.
#[test]
fn insecure_needs_a_word() {
    let data = tempfile::tempdir().unwrap();
    let open = Config { grpc: ([0, 0, 0, 0], 0).into(), ..config(data.path()) };
    let error = Node::start(open.clone()).unwrap_err();
    assert!(error.contains("grpc") && error.contains("--insecure"), "{error}");
    Node::start(Config { insecure: true, ..open }).unwrap().shutdown().unwrap();
}

/// A thread that does not close in time is left behind, and with it the data directory, which nobody else gets before the process
/// ends.
#[test]
fn a_late_thread_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::take(dir.path()).unwrap();
    let config = Config { shutdown_grace_ms: 0, ..config(dir.path()) };
    let anywhere = config.grpc;
    let advertised = Advertised {
        peer_host: "localhost".to_owned(),
        peer_port: 1,
        grpc: anywhere.to_string(),
        http: anywhere.to_string(),
    };
    let shared = Arc::new(Shared::new(config, 1, (anywhere, anywhere), advertised));
    let (report, reports) = bounded(8);
    let (end, ended) = bounded::<()>(0);
    let drained = || Report { stage: Stage::Drained, result: Ok(()) };
    let thread = || {
        let (report, ended) = (report.clone(), ended.clone());
        std::thread::spawn(move || {
            report.send(drained()).unwrap();
            let _never = ended.recv();
        })
    };
    // The one for HTTP, and a reactor's.
    let threads = vec![thread(), thread()];
    let close_max = Duration::from_millis(500);
    let node = Node { shared, threads, reports, down: false, close_max, is_late: false, data: Some(data) };
    let error = node.shutdown().unwrap_err();
    assert!(error.contains("did not shut down in time"), "{error}");
    assert!(DataDir::take(dir.path()).is_err());
    drop(end);
}
