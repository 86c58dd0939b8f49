//! Which requests HTTP lets in: what web pages can have a browser send, and what is no proper request.

use super::*;

/// Nothing that a web page can have a browser send changes anything: no request without the JSON content type, empty or
/// not, and none from another origin; and nothing at all is answered under a name that is not this node's.
#[test]
fn web_pages_change_nothing() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    let changes = [
        ("POST", "/v1/cluster/join-tokens"),
        ("POST", "/v1/cluster/rebalance"),
        ("POST", "/v1/cluster/nodes/1/drain"),
        ("DELETE", "/v1/cluster/nodes/1"),
        ("POST", "/v1/topics/evil"),
        ("PUT", "/v1/topics/evil"),
        ("DELETE", "/v1/topics/default"),
        ("POST", "/v1/topics/default/records"),
        ("POST", "/v1/topics/default/shards/0/leader"),
        ("POST", "/v1/topics/default/shards/0/trim"),
    ];
    let json = "content-type: application/json\r\n";
    let own = node.http_addr();
    for (method, path) in changes {
        let refused = |host: &str, headers: &str, status: u16, reason: &str| {
            let answer = raw_from(&node, host, method, path, &format!("{headers}content-length: 0\r\n"), b"");
            assert_eq!(answer.0, status, "{method} {path} {host} {headers}: {}", answer.1);
            assert!(answer.1.contains(reason), "{method} {path} {host} {headers}: {}", answer.1);
        };
        refused("localhost", "", 415, "NOT_JSON");
        refused("localhost", "content-type: text/plain\r\n", 415, "NOT_JSON");
        for origin in ["http://evil.example", "null", "https://localhost", "http://localhost:1"] {
            refused("localhost", &format!("{json}origin: {origin}\r\n"), 403, "ORIGIN_FOREIGN");
        }
        refused("evil.example", json, 421, "HOST_UNKNOWN");
        refused(&format!("evil.example:{}", own.port()), json, 421, "HOST_UNKNOWN");
    }
    for path in ["/v1/topics", "/v1/cluster", "/v1/topics/default/shards/0/records", "/metrics", "/livez", "/nowhere"] {
        let answer = raw_from(&node, "evil.example", "GET", path, "", b"");
        assert_eq!((answer.0, answer.1.contains("HOST_UNKNOWN")), (421, true), "{path}: {}", answer.1);
        // An absolute target decides, not the header beside it (RFC 9112, section 3.2.2).
        let answer = raw_from(&node, "localhost", "GET", &format!("http://evil.example{path}"), "", b"");
        assert_eq!((answer.0, answer.1.contains("HOST_UNKNOWN")), (421, true), "{path}: {}", answer.1);
    }
    let topics = get(&node, "/v1/topics").1;
    assert_eq!(topics["topics"].as_array().map(Vec::len), Some(1), "{topics}");
    node.shutdown().unwrap();
}

/// Clients that are meant get in: under each of the node's names, and a page that the node itself served.
#[test]
fn own_names() {
    let data = tempfile::tempdir().unwrap();
    let named =
        Config { advertise: "node.example".into(), http_hosts: vec!["lb.example".into()], ..config(data.path()) };
    let node = Node::start(named).unwrap();
    let port = node.http_addr().port();
    let hosts = ["localhost", "LOCALHOST:7", "127.0.0.1", "127.8.9.1:80", "[::1]:80", "node.example", "lb.example:443"];
    for host in hosts.into_iter().map(str::to_owned).chain([format!("127.0.0.1:{port}")]) {
        assert_eq!(raw_from(&node, &host, "GET", "/v1/topics", "", b"").0, 200, "{host}");
        let headers = format!("content-type: application/json\r\norigin: http://{host}\r\ncontent-length: 0\r\n");
        let (status, answer) = raw_from(&node, &host, "POST", "/v1/cluster/join-tokens", &headers, b"");
        assert_eq!(status, 200, "{host}: {answer}");
    }
    // A kubelet, and a load balancer, ask for health at whatever address leads here; nothing else is told there.
    for path in ["/livez", "/readyz"] {
        assert_eq!(raw_from(&node, "203.0.113.7:7401", "GET", path, "", b"").0, 200, "{path}");
    }
    for path in ["/metrics", "/v1/topics"] {
        assert_eq!(raw_from(&node, "203.0.113.7:7401", "GET", path, "", b"").0, 421, "{path}");
    }
    node.shutdown().unwrap();
}

/// A body whose chunks break the rules, or that ends too early, is called that, and not too large.
#[test]
fn broken_bodies() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    let chunked = "content-type: application/json\r\ntransfer-encoding: chunked\r\n";
    for body in ["zz\r\n{}\r\n0\r\n\r\n", "2\r\n{}xx", "-1\r\n{}\r\n"] {
        let (status, answer) = raw(&node, "POST", "/v1/topics/default/records", chunked, body.as_bytes());
        assert_eq!((status, answer.contains("BODY_UNREADABLE")), (400, true), "{body:?}: {answer}");
    }
    node.shutdown().unwrap();
}

/// Times before 1970 are refused wherever one can be given; 0 and none mean the leader's clock.
#[test]
fn times_before_1970() {
    let data = tempfile::tempdir().unwrap();
    let node = start(data.path());
    let (status, answer) = get(&node, "/v1/topics/default/shards/0/records?timestamp_us=-1");
    assert_eq!((status, &answer["reason"]), (400, &json!("TIMESTAMP_NEGATIVE")), "{answer}");
    let record =
        |timestamp_us: i64| json!({"shard": 0, "records": [{}, {"value": "aGk=", "timestamp_us": timestamp_us}]});
    for timestamp_us in [-1, i64::MIN] {
        let (status, answer) = produce(&node, "default", &record(timestamp_us));
        assert_eq!((status, &answer["reason"]), (400, &json!("TIMESTAMP_NEGATIVE")), "{answer}");
    }
    for timestamp_us in [0, 1, i64::MAX] {
        assert_eq!(produce(&node, "default", &record(timestamp_us)).0, 200, "{timestamp_us}");
    }
    let (status, answer) = get(&node, "/v1/topics/default/shards/0/records?timestamp_us=0");
    assert_eq!((status, answer["records"].as_array().map(Vec::len)), (200, Some(6)), "{answer}");
    node.shutdown().unwrap();
}
