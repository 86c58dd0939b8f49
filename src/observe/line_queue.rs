//! Log lines on their way to stderr: a bounded queue, and one thread that writes.
//!
//! Who logs never waits for the terminal. When the queue is full a line is dropped and counted.

use std::{
    io::{self, Write},
    time::Duration,
};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

/// Lines that wait to be written; more are dropped.
const LINES_MAX: usize = 4_096;

/// Longest wait for stderr when the process ends.
const FLUSH_MAX: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(Sender<()>),
}

/// The queue's end for those who log. Its thread lives as long as it does.
pub struct LineQueue {
    sender: Sender<Item>,
}

impl std::fmt::Debug for LineQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LineQueue({} waiting)", self.sender.len())
    }
}

impl LineQueue {
    /// A queue whose thread writes to stderr.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn start() -> io::Result<LineQueue> {
        LineQueue::to(io::stderr(), LINES_MAX)
    }

    fn to(output: impl Write + Send + 'static, lines: usize) -> io::Result<LineQueue> {
        let (sender, receiver) = bounded(lines);
        std::thread::Builder::new().name("ringlog-log".to_owned()).spawn(move || write_all(output, &receiver))?;
        Ok(LineQueue { sender })
    }

    /// A line to be; it is queued when it is dropped.
    pub fn line(&self) -> Line<'_> {
        Line { queue: self, bytes: Vec::new() }
    }

    /// Waits until what was logged before is written, but not long: the other end may be stuck.
    pub fn flush(&self) {
        let (done, wait) = bounded(1);
        if self.sender.send_timeout(Item::Flush(done), FLUSH_MAX).is_ok() {
            wait.recv_timeout(FLUSH_MAX).ok();
        }
    }
}

/// One line.
pub struct Line<'a> {
    queue: &'a LineQueue,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.bytes);
        if let Err(TrySendError::Full(_)) = self.queue.sender.try_send(Item::Line(line)) {
            metrics::counter!("ringlog_log_lines_dropped_total").increment(1);
        }
    }
}

fn write_all(mut output: impl Write, items: &Receiver<Item>) {
    for item in items {
        match item {
            // A closed stderr is nobody's to complain to.
            Item::Line(bytes) => drop(output.write_all(&bytes)),
            Item::Flush(done) => {
                drop(output.flush());
                done.send(()).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Lines arrive whole and in order, and a flush waits for them.
    #[test]
    fn in_order() {
        let output = Shared::default();
        let queue = LineQueue::to(output.clone(), 1_000).unwrap();
        for number in 0..100 {
            let mut line = queue.line();
            write!(line, "line {number}").unwrap();
            writeln!(line).unwrap();
        }
        queue.flush();
        let wanted: String = (0..100).map(|number| format!("line {number}\n")).collect();
        assert_eq!(String::from_utf8(output.0.lock().unwrap().clone()).unwrap(), wanted);
    }

    /// When the output is stuck, logging goes on: lines beyond the bound are dropped.
    #[test]
    fn stuck_output_stops_nobody() {
        let output = Shared::default();
        let stuck = output.0.lock().unwrap();
        let queue = LineQueue::to(output.clone(), 4).unwrap();
        for _ in 0..100 {
            queue.line().write_all(b"x\n").unwrap();
        }
        assert!(queue.sender.len() <= 4);
        drop(stuck);
        queue.flush();
        let written = output.0.lock().unwrap().len() / 2;
        assert!((4..=6).contains(&written), "{written} lines");
    }
}
