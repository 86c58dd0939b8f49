//! Histories as JSON lines: one event on each line, so that a file can be written while a run goes on, by any program.
//!
//! The reader is strict: a field that it does not know, a value of another type, an empty line or a line that was cut off
//! is an error with its number, since a history that was read half would be judged wrongly. (A file that was cut off
//! exactly between two lines looks whole.)

use std::io::{self, BufRead, Read, Write};

use super::history::{Event, History};

/// Longest line in bytes: a final read of some ten million records.
pub const LINE_BYTES_MAX: u64 = 256 << 20;

/// What the format is, for people.
pub const FORMAT: &str = r#"A history is a text file with one JSON object on each line, in any order:

  {"event":"produce","client":"a","begin_us":10,"end_us":25,"topic":"t","shard":0,
   "records":["value 1","value 2"],"outcome":{"acked":{"base_offset":0,"count":2}}}
  {"event":"read","client":"b","begin_us":30,"end_us":31,"topic":"t","shard":0,"node":1,"from_offset":0,
   "records":[[0,"value 1"],[1,"value 2"]],"next_offset":2,"high_watermark":2}
  {"event":"final_read","node":1,"begin_us":90,"end_us":95,"topic":"t","shard":0,
   "records":[[0,"value 1"],[1,"value 2"]],"end_offset":2}
  {"event":"status","node":1,"begin_us":96,"end_us":97,"topic":"t","shard":0,"applied_end":3,"chain":"00000000000000ff"}
  {"event":"trim","begin_us":98,"end_us":99,"topic":"t","shard":0,"before_offset":1}
  {"event":"retention","begin_us":1,"end_us":2,"topic":"u","shard":0,"age_us":3600000000}

(each of these on one line). begin_us is taken before the request goes out, end_us after its answer is in, both in
microseconds of one clock for all clients. A record is its value as a string, or the XXH3-64 of its value as an integer;
values should differ within a shard. The topics are new, and every batch that anybody sends to them is in the file.

produce: outcome is {"acked":{...}} (with "durability":"leader_memory" if that was asked for), "failed" (the error was a
definite one) or "indefinite" (it may appear later; also for what nobody waited for). A batch of a pipelined stream has
"stream":{"id":1,"sequence":7}. One that was to be written at a certain offset or not at all has "expected_offset":N. An ack
may have "timestamp_us":N, the timestamp of all the records.

read: one answer to one client. "min_offset":N and "linearizable":true if they were asked for. from_offset is left out if
a time or a named position was asked for, then "start":"latest" or "start":{"timestamp_us":N} have it judged; node is the one whose replica answered, and is left out if that is not known.
A client that connects again after its node was restarted has another name.

final_read: all that one replica has, asked for with a min_offset behind everything ("from_offset":N if older records are
not kept). status: applied_end and chain of a replica, as in `ringlog topic describe -o json`.

read and status may have "log_start":N, the first offset kept; then what is below must have been let go: by a trim, which
counts from begin_us on whatever its answer was, or by retention: records sent longer than age_us ago, by the history's
clock (give a little less than the limit if the nodes' clocks run fast); "by_size":true leaves that shard's log starts alone,
but with "bytes_kept":N what is gone for its size has batches of more than N bytes behind it (a batch's "log_bytes":N is the most
that it takes in the log; without, it may be any number), and with "records_kept":N a final read has to keep so many of its last
records.
"#;

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file itself.
    #[error("line {line}: cannot read on: {error}")]
    Io {
        /// Line that could not be read, from 1.
        line: usize,
        /// What the system says.
        error: io::Error,
    },
    /// What is in it.
    #[error("line {line}: {reason}")]
    Line {
        /// Line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads a whole history.
///
/// # Errors
/// At the first line that is no event.
pub fn read(mut input: impl BufRead) -> Result<History, ReadError> {
    let mut history = History::default();
    let mut text = Vec::new();
    loop {
        let line = history.len() + 1;
        text.clear();
        let count = (&mut input).take(LINE_BYTES_MAX).read_until(b'\n', &mut text);
        let count = count.map_err(|error| ReadError::Io { line, error })?;
        if count == 0 {
            return Ok(history);
        }
        let added = parse(&text).and_then(|event| history.push(event));
        added.map_err(|reason| ReadError::Line { line, reason })?;
    }
}

fn parse(text: &[u8]) -> Result<Event, String> {
    if text.len() as u64 == LINE_BYTES_MAX {
        return Err(format!("it is longer than {LINE_BYTES_MAX} bytes"));
    }
    if text.trim_ascii().is_empty() {
        return Err("it is empty".to_owned());
    }
    serde_json::from_slice(text).map_err(|error| {
        let is_cut = error.is_eof() && !text.ends_with(b"\n");
        // The parser's own line number is of this line only, and always 1.
        let reason = error.to_string();
        let reason = reason.split(" at line 1 column").next().unwrap_or(&reason).to_owned();
        if is_cut { format!("it is cut off ({reason})") } else { reason }
    })
}

/// Writes one event as a line.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl Write, event: &Event) -> io::Result<()> {
    serde_json::to_writer(&mut *out, event)?;
    out.write_all(b"\n")
}
