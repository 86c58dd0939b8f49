//! What has happened in a simulated world: a hash over all of it, and its last lines for a failure's report.
//!
//! Two runs with equal hashes have polled the same tasks at the same virtual times, and have noted the same.

use std::{collections::VecDeque, fmt::Write, hash::Hasher};

use twox_hash::XxHash3_64;

use crate::ids::NodeId;

/// When and where something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// Virtual time since the world began.
    pub(super) time_ns: u64,
    /// The task that runs.
    pub(super) task: u64,
    /// Its node.
    pub(super) node: Option<NodeId>,
}

/// A line of the recorder: a poll has no text.
struct Line {
    moment: Moment,
    note: Option<String>,
}

/// The hash, and the recorder.
#[derive(Default)]
pub(super) struct Trace {
    hash: XxHash3_64,
    lines: VecDeque<Line>,
    lines_max: usize,
}

impl Trace {
    /// A task is polled.
    pub(super) fn poll(&mut self, moment: Moment) {
        self.fold(moment, b"");
        self.keep(moment, || None);
    }

    /// Somebody says something.
    pub(super) fn note(&mut self, moment: Moment, text: &str) {
        self.fold(moment, text.as_bytes());
        self.keep(moment, || Some(text.to_owned()));
    }

    /// XXH3 over everything until now.
    pub(super) fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// Keeps the last `lines_max` lines from now on.
    pub(super) fn record(&mut self, lines_max: usize) {
        self.lines_max = lines_max;
        self.trim();
    }

    /// The lines that were kept, oldest first, one to a line.
    pub(super) fn recorded(&self) -> String {
        let mut text = String::new();
        for Line { moment, note } in &self.lines {
            let (us, ns) = (moment.time_ns / 1_000, moment.time_ns % 1_000);
            let node = moment.node.map_or("-".to_owned(), |node| node.to_string());
            let what = note.as_deref().unwrap_or("polled");
            writeln!(text, "{us}.{ns:03} us node {node} task {}: {what}", moment.task).expect("a String takes all");
        }
        text
    }

    /// Lengths are part of it, so that no two histories have the same bytes.
    fn fold(&mut self, moment: Moment, note: &[u8]) {
        let mut head = [0; 33];
        head[..8].copy_from_slice(&moment.time_ns.to_le_bytes());
        head[8..16].copy_from_slice(&moment.task.to_le_bytes());
        head[16] = u8::from(moment.node.is_some());
        head[17..25].copy_from_slice(&moment.node.map_or(0, |node| node.0).to_le_bytes());
        head[25..].copy_from_slice(&(note.len() as u64).to_le_bytes());
        self.hash.write(&head);
        self.hash.write(note);
    }

    fn keep(&mut self, moment: Moment, note: impl FnOnce() -> Option<String>) {
        if self.lines_max > 0 {
            self.lines.push_back(Line { moment, note: note() });
            self.trim();
        }
    }

    fn trim(&mut self) {
        while self.lines.len() > self.lines_max {
            self.lines.pop_front();
        }
    }
}
