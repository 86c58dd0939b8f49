//! Runs the real binary as a server, for tests that need one. Everything is on loopback and below a temporary directory.

#![allow(dead_code, reason = "each test file uses another part of it")]
#![allow(clippy::disallowed_methods, reason = "tests use real processes, files and sockets")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs::{self, File},
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Long enough for the slowest machine: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub const RINGLOG: &str = env!("CARGO_BIN_EXE_ringlog");

/// A running server; it is killed when dropped.
pub struct Node {
    child: Child,
    /// Its gRPC address.
    pub grpc: String,
    /// Its HTTP address.
    pub http: String,
    log: PathBuf,
}

impl Node {
    /// Starts a server on `dir`/data and waits until it answers.
    pub fn start(dir: &Path, flags: &[&str]) -> Node {
        Node::start_by(Command::new(RINGLOG), dir, flags)
    }

    /// As `start`, of a process that may have so many open files.
    pub fn start_with_files(dir: &Path, flags: &[&str], files: u32) -> Node {
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -n $0 && exec \"$@\"", &files.to_string(), RINGLOG]);
        Node::start_by(limited, dir, flags)
    }

    /// As `start`, of a process that may have so many open files, and may allow itself more.
    pub fn start_with_soft_files(dir: &Path, flags: &[&str], files: u32) -> Node {
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -Sn $0 && exec \"$@\"", &files.to_string(), RINGLOG]);
        Node::start_by(limited, dir, flags)
    }

    fn start_by(mut command: Command, dir: &Path, flags: &[&str]) -> Node {
        let [grpc, http] = free_addresses();
        let log = dir.join("server.log");
        let child = command
            .args(["serve", "--log-format", "text", "--no-pin", "--peer", "127.0.0.1:0"])
            .args(["--grpc", &grpc, "--http", &http, "--data"])
            .arg(dir.join("data"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let mut node = Node { child, grpc, http, log };
        node.wait_until_ready();
        node
    }

    fn wait_until_ready(&mut self) {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status}: {}", self.log());
            }
            let output = self.command(&["topic", "list", "--timeout", "5s"]).output().unwrap();
            if output.status.success() {
                return;
            }
            assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(since.elapsed() < PATIENCE, "the server does not answer: {}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How many file descriptors it has open (`/proc/PID/fd`).
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// A client command against it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(RINGLOG);
        command.args(args).env("RINGLOG_SERVER", &self.grpc);
        command
    }

    /// Runs a client command with `input` on stdin.
    pub fn run_with(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child =
            self.command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// Runs a client command that must succeed; gives its stdout.
    pub fn run(&self, args: &[&str]) -> String {
        self.run_input(args, b"")
    }

    /// The same with `input` on stdin.
    pub fn run_input(&self, args: &[&str], input: &[u8]) -> String {
        String::from_utf8(self.run_bytes(args, input)).unwrap()
    }

    /// The same, for output that is no text.
    pub fn run_bytes(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.run_with(args, input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?} failed with {}: {stderr}\n{}", output.status, self.log());
        output.stdout
    }

    /// Runs a client command that must fail with code 1 and one sentence; gives the sentence.
    pub fn refusal(&self, args: &[&str], input: &[u8]) -> String {
        let output = self.run_with(args, input);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        stderr.trim_end().to_owned()
    }

    /// Kills it without warning.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits for that.
    pub fn stop(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(since.elapsed() < PATIENCE, "the server does not end: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// An address that nobody listens on at the moment.
pub fn free_address() -> String {
    let [address] = free_addresses();
    address
}

/// Different ones: all are taken before any is given back.
fn free_addresses<const N: usize>() -> [String; N] {
    let taken = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    taken.each_ref().map(|listener| listener.local_addr().unwrap().to_string())
}
