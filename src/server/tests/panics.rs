//! Bugs that panic in a real process, with the real hook: what they end, and what goes on.

use super::*;
use crate::{catalog, shard::machine};

/// A node in whose code a parent has planted a bug, until it is killed, or ends.
#[test]
#[ignore = "other tests start it as a process of its own"]
fn process_with_a_bug() {
    let data = std::env::var("TEST_OF_RINGLOG_DATA").unwrap();
    let http: SocketAddr = std::env::var("TEST_OF_RINGLOG_HTTP").unwrap().parse().unwrap();
    let config = Config { http, ..config(Path::new(&data)) };
    run(config).unwrap();
}

/// Such a process; killed when dropped.
struct Process {
    child: std::process::Child,
    http: SocketAddr,
    /// What it has said.
    log: std::path::PathBuf,
    _data: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_file(&self.log));
    }
}

impl Process {
    /// One with this bug, that is ready.
    fn start(variable: &str, bug: &str) -> Process {
        let data = tempfile::tempdir().unwrap();
        let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = data.path().with_extension("log");
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server::tests::panics::process_with_a_bug", "--ignored", "--nocapture"])
            .env(variable, bug)
            .env("TEST_OF_RINGLOG_DATA", data.path())
            .env("TEST_OF_RINGLOG_HTTP", http.to_string())
            .stdout(std::process::Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut process = Process { child, http, log, _data: data };
        process.until("it does not start", |process| {
            assert!(process.is_running(), "it does not start");
            process.ask("GET", "/readyz", "").is_some_and(|(status, _)| status == 200)
        });
        process
    }

    fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it is so, however long that takes on this machine.
    fn until(&mut self, what: &str, is_so: impl Fn(&mut Process) -> bool) {
        let since = std::time::Instant::now();
        while !is_so(self) {
            assert!(since.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Status and all of the answer.
    fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut socket = TcpStream::connect(self.http).ok()?;
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.http);
        let content = format!("content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}");
        socket.write_all((head + &content).as_bytes()).ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer))
    }

    fn produce(&self, shard: u32) -> (u16, String) {
        self.ask("POST", "/v1/topics/default/records", &say("x", shard).to_string()).unwrap()
    }
}

/// An assertion that fails in one replica's `apply` stops that replica. The process goes on, its other shards serve, and status,
/// readiness and metrics say what failed, and where.
#[test]
fn one_replica_of_a_process() {
    let mut process = Process::start(machine::planted::VARIABLE, "1");
    assert_eq!(process.produce(0).0, 200);
    // Its entry begins at offset 1, where the bug is.
    let (status, answer) = process.produce(0);
    assert_ne!(status, 200, "{answer}");
    let (status, answer) = process.produce(0);
    assert_ne!(status, 200, "{answer}");
    assert!(answer.contains("a bug planted in apply") && answer.contains("src/shard/machine.rs:"), "{answer}");
    assert_eq!(process.produce(1).0, 200, "the other shard serves");
    let (status, page) = process.ask("GET", "/readyz", "").unwrap();
    assert_eq!(status, 200, "{page}");
    assert!(page.contains("a bug planted in apply") && page.contains("\"shards_faulted\":1"), "{page}");
    let (_, page) = process.ask("GET", "/v1/topics/default", "").unwrap();
    assert!(page.contains("a bug planted in apply"), "{page}");
    let (_, page) = process.ask("GET", "/metrics", "").unwrap();
    assert!(page.contains("ringlog_panics_total{place=\"src/shard/machine.rs:"), "{page}");
    assert!(page.contains("ringlog_shards_faulted 1"), "{page}");
    assert!(process.is_running(), "the process goes on");
}

/// So does one in the catalog, when it applies an entry, and when its leader plans moves: the node says what failed, and where,
/// and serves the shards that it has.
#[test]
fn the_catalog_of_a_process() {
    use catalog::planted::{Place, TOPIC, VARIABLE};
    for place in [Place::Apply, Place::Plan] {
        let mut process = Process::start(VARIABLE, &format!("{place:?}"));
        // Of an apply that has failed nobody can say what it came to.
        drop(process.ask("PUT", &format!("/v1/topics/{TOPIC}"), ""));
        let words = format!("a bug planted in {place:?}");
        process.until("it is not told", |process| {
            let (_, page) = process.ask("GET", "/readyz", "").expect("the process has ended");
            page.contains(&words) && page.contains("src/catalog/planted.rs:")
        });
        assert_eq!(process.produce(0).0, 200, "its shards serve");
        assert!(process.is_running(), "the process goes on");
    }
}

/// One in what all replicas of a node share ends the process, with a code that says so: nobody knows what is left of that.
#[test]
fn what_all_of_a_process_share() {
    use catalog::planted::{Place, TOPIC, VARIABLE};
    let mut process = Process::start(VARIABLE, &format!("{:?}", Place::Publish));
    drop(process.ask("PUT", &format!("/v1/topics/{TOPIC}"), ""));
    process.until("it goes on", |process| !process.is_running());
    assert_eq!(process.child.wait().unwrap().code(), Some(101));
    // A test that fails has the same code.
    let said = fs::read_to_string(&process.log).unwrap();
    assert!(said.contains("a bug planted in Publish") && said.contains("the node stops here"), "{said}");
}
