//! `ringlog produce`: records from stdin or a file, through the client's producer, straight to the shards' leaders.
//!
//! While the servers keep up, what one read of the input gave becomes one request, so a slow pipe is not held
//! back and a fast file goes in large batches. The lines of one run stay in order: unkeyed ones all go to one
//! shard, chosen by chance; keyed ones to the shard of their key, where each key's are in order.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    future::{Future, poll_fn},
    io::{self, Read, Write},
    path::PathBuf,
    pin::Pin,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Failure, OutputForm, ServerArgs,
    input::{Framing, Item, Splitter},
};
use crate::{
    client::{Acked, Delivery, ProduceError, Producer, Spread},
    config, limits,
    proto::ringlog::v1::Record,
};

/// Bytes of one read of the input.
const INPUT_BYTES: usize = 256 << 10;

/// Reads of the input waiting to be sent.
const INPUT_READS_MAX: usize = 2;

/// Records whose outcome is not printed yet; above it no more input is taken.
const OUTSTANDING_MAX: usize = 1 << 20;

/// Room that a record's framing takes in its encoded form, beside key and value.
const RECORD_FRAMING_BYTES: usize = 32;

/// `ringlog produce`.
#[derive(Debug, clap::Args)]
pub(super) struct ProduceArgs {
    /// Read this file instead of stdin
    file: Option<PathBuf>,
    /// Topic to write to
    #[arg(long, default_value = "default")]
    topic: String,
    /// Write to this shard
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// What is before the first one of these in a line is the record's key
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// Records are behind their varint lengths instead of in lines
    #[arg(long, conflicts_with = "key_separator")]
    delimited: bool,
    /// Print each ack
    #[arg(long)]
    acks: bool,
    /// Most records in one request
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    batch: u32,
    /// How long to wait for more records when a batch is not full
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = config::milliseconds)]
    linger: u64,
    /// Form of acks and summary
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputForm,
    #[command(flatten)]
    server: ServerArgs,
}

/// Runs the command.
pub(super) async fn produce(args: ProduceArgs) -> Result<(), Failure> {
    let (source, bytes) = open_input(args.file.as_ref())?;
    let mut run = Run::new(progress(bytes), Box::new(io::stdout()));
    let outcome = run.produce(source, &args).await;
    run.progress.finish_and_clear();
    match outcome {
        Ok(()) => run.summary(&args),
        Err(Failure::Message(message)) => Err(Failure::Message(format!("{message}; {}", run.reached()))),
        Err(other) => Err(other),
    }
}

#[allow(clippy::disallowed_methods, reason = "the CLI reads a file that a person names")]
fn open_input(path: Option<&PathBuf>) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
    let Some(path) = path else {
        let stat = rustix::fs::fstat(io::stdin()).ok();
        let regular = stat.filter(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file());
        return Ok((Box::new(io::stdin()), regular.and_then(|stat| u64::try_from(stat.st_size).ok())));
    };
    let unreadable = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let file = File::open(path).map_err(unreadable)?;
    let bytes = file.metadata().map_err(unreadable)?.len();
    Ok((Box::new(file), Some(bytes)))
}

/// A bar when the size is known; nothing unless stderr is a terminal.
fn progress(bytes: Option<u64>) -> ProgressBar {
    let template = match bytes {
        Some(_) => "{bar:30} {bytes} of {total_bytes} ({bytes_per_sec}, {eta} left)",
        None => "{spinner} {bytes} ({bytes_per_sec})",
    };
    let style = ProgressStyle::with_template(template).expect("constant templates are valid");
    bytes.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style)
}

/// A thread reads, since stdin blocks; it ends with the input or with its receiver.
#[allow(clippy::disallowed_methods, reason = "the CLI is no reactor; reading stdin blocks")]
fn read_input(source: Box<dyn Read + Send>, framing: Framing) -> mpsc::Receiver<Result<Vec<Item>, String>> {
    let (sender, receiver) = mpsc::channel(INPUT_READS_MAX);
    let mut splitter = Splitter::new(framing, limits::RECORD_BYTES_MAX - RECORD_FRAMING_BYTES);
    std::thread::spawn(move || {
        if let Err(message) = read_all(source, &mut splitter, &sender) {
            // Without a receiver the command has ended already.
            drop(sender.blocking_send(Err(message)));
        }
    });
    receiver
}

fn read_all(
    mut source: Box<dyn Read + Send>,
    splitter: &mut Splitter,
    sender: &mpsc::Sender<Result<Vec<Item>, String>>,
) -> Result<(), String> {
    let mut buffer = vec![0; INPUT_BYTES];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(format!("cannot read the input: {error}")),
        };
        splitter.push(&buffer[..count]);
        let mut items = Vec::new();
        let mut problem = None;
        loop {
            let next = splitter
                .next()
                .and_then(|item| if count == 0 && item.is_none() { splitter.finish() } else { Ok(item) });
            match next {
                Ok(Some(item)) => items.push(item),
                Ok(None) => break,
                Err(message) => {
                    problem = Some(message);
                    break;
                }
            }
        }
        // What came before a bad record is written all the same: the message says where it stopped.
        if !items.is_empty() && sender.blocking_send(Ok(items)).is_err() {
            return Ok(());
        }
        match problem {
            Some(message) => return Err(message),
            None if count == 0 => return Ok(()),
            None => {}
        }
    }
}

/// What was acknowledged in one shard.
#[derive(Clone, Copy, Debug)]
struct ShardTotals {
    records: u64,
    first_offset: u64,
    end_offset: u64,
}

/// Acks of records in a row of one shard.
#[derive(Clone, Copy, Debug)]
struct AckedRow {
    first: Acked,
    count: u64,
}

impl AckedRow {
    fn new(first: Acked) -> AckedRow {
        AckedRow { first, count: 1 }
    }

    /// Takes the ack in if it is the next one.
    fn extend(&mut self, ack: Acked) -> bool {
        let AckedRow { first, count } = *self;
        let is_next = ack == Acked { offset: first.offset + count, ..first };
        self.count += u64::from(is_next);
        is_next
    }
}

/// A record on its way.
struct Outstanding {
    delivery: Delivery,
    bytes: u64,
}

struct Run {
    topic: String,
    outstanding: VecDeque<Outstanding>,
    /// Records whose outcome is known.
    settled: u64,
    /// Number in the input, from 1, of the first record that is not acknowledged, and why.
    failed: Option<(u64, ProduceError)>,
    /// Not acknowledged, and perhaps written.
    maybe: u64,
    records: u64,
    bytes: u64,
    shards: BTreeMap<u32, ShardTotals>,
    row: Option<AckedRow>,
    /// Where acks are printed; none when nobody reads them any more. That is no reason to leave the rest of the input.
    acks: Option<Box<dyn Write>>,
    progress: ProgressBar,
    started: Instant,
}

#[allow(clippy::disallowed_methods, reason = "the CLI is not part of the simulated world")]
impl Run {
    fn new(progress: ProgressBar, acks: Box<dyn Write>) -> Run {
        Run {
            topic: String::new(),
            outstanding: VecDeque::new(),
            settled: 0,
            failed: None,
            maybe: 0,
            records: 0,
            bytes: 0,
            shards: BTreeMap::new(),
            row: None,
            acks: Some(acks),
            progress,
            started: Instant::now(),
        }
    }

    async fn produce(&mut self, source: Box<dyn Read + Send>, args: &ProduceArgs) -> Result<(), Failure> {
        let cluster = args.server.cluster().await?;
        let producer = cluster
            .producer(&args.topic)
            .batch_records(args.batch as usize)
            .linger(Duration::from_millis(args.linger))
            .delivery_timeout(args.server.timeout)
            .spread(Spread::One)
            .open();
        producer.topic().clone_into(&mut self.topic);
        let framing = if args.delimited {
            Framing::Delimited
        } else {
            Framing::Lines { key_separator: args.key_separator.as_ref().map(|text| text.clone().into_bytes()) }
        };
        let problem = self.send_all(&mut read_input(source, framing), &producer, args).await?;
        producer.flush().await;
        while !self.outstanding.is_empty() {
            let outcome = self.next().await;
            self.settle(outcome, args)?;
        }
        self.print_row(args)?;
        match (self.failed.take(), problem) {
            (Some((number, error)), _) => {
                let message = format!("record {number} of the input: {error}");
                self.failed = Some((number, error));
                Err(message.into())
            }
            (None, Some(problem)) => Err(problem.into()),
            (None, None) => Ok(()),
        }
    }

    /// Sends what comes in until that ends or something fails; gives what was wrong with the input.
    async fn send_all(
        &mut self,
        input: &mut mpsc::Receiver<Result<Vec<Item>, String>>,
        producer: &Producer,
        args: &ProduceArgs,
    ) -> Result<Option<String>, Failure> {
        while self.failed.is_none() {
            let room = self.outstanding.len() < OUTSTANDING_MAX;
            tokio::select! {
                biased;
                outcome = self.next(), if !self.outstanding.is_empty() => self.settle(outcome, args)?,
                items = input.recv(), if room => match items {
                    Some(Ok(items)) => {
                        for item in items {
                            self.send(item, producer, args).await;
                        }
                    }
                    Some(Err(problem)) => return Ok(Some(problem)),
                    None => return Ok(None),
                },
            }
        }
        Ok(None)
    }

    async fn send(&mut self, item: Item, producer: &Producer, args: &ProduceArgs) {
        if self.failed.is_some() {
            return;
        }
        let bytes = (item.key.len() + item.value.len()) as u64;
        let record = Record { key: item.key, value: item.value, ..Record::default() };
        let sent = match args.shard {
            Some(shard) => producer.send_to(shard, record).await,
            None => producer.send(record).await,
        };
        match sent {
            Ok(delivery) => self.outstanding.push_back(Outstanding { delivery, bytes }),
            Err(error) => self.fail(self.settled + self.outstanding.len() as u64 + 1, error),
        }
    }

    /// A record was not acknowledged. One that was sent before another may fail after it.
    fn fail(&mut self, number: u64, error: ProduceError) {
        if self.failed.as_ref().is_none_or(|(first, _)| number < *first) {
            self.failed = Some((number, error));
        }
    }

    /// The outcome of the oldest record whose outcome is not known.
    async fn next(&mut self) -> Result<Acked, ProduceError> {
        poll_fn(|cx| {
            let oldest = self.outstanding.front_mut().expect("the callers look first");
            Pin::new(&mut oldest.delivery).poll(cx)
        })
        .await
    }

    /// Takes an outcome, and all others that are known by now.
    fn settle(&mut self, outcome: Result<Acked, ProduceError>, args: &ProduceArgs) -> Result<(), Failure> {
        self.settle_one(outcome, args)?;
        while !self.outstanding.is_empty() {
            let Some(outcome) = self.next().now_or_never() else { break };
            self.settle_one(outcome, args)?;
        }
        self.progress.set_position(self.bytes + self.records);
        self.print_row(args)
    }

    fn settle_one(&mut self, outcome: Result<Acked, ProduceError>, args: &ProduceArgs) -> Result<(), Failure> {
        let settled = self.outstanding.pop_front().expect("the outcome is of the oldest one");
        self.settled += 1;
        let acked = match outcome {
            Ok(acked) => acked,
            Err(error) => {
                self.maybe += u64::from(!error.is_definite());
                self.fail(self.settled, error);
                return Ok(());
            }
        };
        let Acked { shard, offset, .. } = acked;
        let new = ShardTotals { records: 0, first_offset: offset, end_offset: offset };
        let totals = self.shards.entry(shard).or_insert(new);
        totals.records += 1;
        totals.end_offset = offset + 1;
        self.records += 1;
        self.bytes += settled.bytes;
        if args.acks && !self.row.as_mut().is_some_and(|row| row.extend(acked)) {
            self.print_row(args)?;
            self.row = Some(AckedRow::new(acked));
        }
        Ok(())
    }

    /// Prints the acks that are gathered.
    fn print_row(&mut self, args: &ProduceArgs) -> Result<(), Failure> {
        let Some(AckedRow { first, count }) = self.row.take() else { return Ok(()) };
        let Some(out) = &mut self.acks else { return Ok(()) };
        let Acked { shard, offset, timestamp_us, durability } = first;
        let topic = &self.topic;
        let durability = durability.as_str_name().trim_start_matches("DURABILITY_").to_ascii_lowercase();
        let line = if args.output == OutputForm::Json {
            let ack = json!({
                "topic": topic, "shard": shard, "base_offset": offset, "count": count,
                "timestamp_us": timestamp_us, "durability": durability,
            });
            ack.to_string()
        } else {
            let last = offset + count - 1;
            format!("{topic} shard {shard} offsets {offset} to {last} {durability}")
        };
        match writeln!(out, "{line}").map_err(Failure::from) {
            Err(Failure::OutputClosed) => {
                self.acks = None;
                Ok(())
            }
            printed => printed,
        }
    }

    /// How far it came, for an error.
    fn reached(&self) -> String {
        let mut text = match (self.records, &self.failed) {
            (0, _) => "no record is acknowledged".to_owned(),
            (records, Some((first, _))) => {
                format!("{records} records are acknowledged, up to number {} without a gap", first - 1)
            }
            (records, None) => format!("{records} records are acknowledged"),
        };
        if self.maybe > 0 {
            text += &format!(", and {} more may be written", self.maybe);
        }
        text
    }

    fn summary(&self, args: &ProduceArgs) -> Result<(), Failure> {
        let Run { topic, records, bytes, shards, .. } = self;
        let seconds = self.started.elapsed().as_secs_f64();
        if args.output == OutputForm::Json {
            let shards: Vec<_> = shards
                .iter()
                .map(|(shard, totals)| {
                    json!({
                        "shard": shard, "records": totals.records,
                        "first_offset": totals.first_offset, "end_offset": totals.end_offset,
                    })
                })
                .collect();
            let summary =
                json!({ "topic": topic, "records": records, "bytes": bytes, "seconds": seconds, "shards": shards });
            return Ok(writeln!(io::stdout(), "{summary}")?);
        }
        let mut text = format!("{records} records, {bytes} bytes in {seconds:.2} s");
        for (shard, ShardTotals { records, first_offset, end_offset }) in shards {
            let last = end_offset - 1;
            text += &format!("\n{topic} shard {shard}: {records} records, offsets {first_offset} to {last}");
        }
        // Nobody has to read it.
        drop(writeln!(io::stderr(), "{text}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ringlog::v1::Durability;

    fn read(input: &'static [u8], framing: Framing) -> (Vec<String>, Option<String>) {
        let mut receiver = read_input(Box::new(input), framing);
        let mut values = Vec::new();
        while let Some(items) = receiver.blocking_recv() {
            match items {
                Ok(items) => {
                    values.extend(items.into_iter().map(|item| String::from_utf8_lossy(&item.value).into_owned()));
                }
                Err(message) => return (values, Some(message)),
            }
        }
        (values, None)
    }

    /// The reader gives every line, the last one without a newline too, and then ends.
    #[test]
    fn reads_to_the_end() {
        let lines = Framing::Lines { key_separator: None };
        assert_eq!(read(b"a\n\nb", lines.clone()), (vec!["a".into(), String::new(), "b".into()], None));
        assert_eq!(read(b"", lines), (vec![], None));
    }

    /// Records before a bad one are given, then the error.
    #[test]
    fn stops_at_a_bad_record() {
        let keyed = Framing::Lines { key_separator: Some(b":".to_vec()) };
        let (values, problem) = read(b"a:b\nno key\nc:d\n", keyed);
        assert_eq!(values, ["b"]);
        assert!(problem.unwrap().starts_with("line 2 has no key"));
        let (values, problem) = read(b"\x01a\x05b", Framing::Delimited);
        assert_eq!((values, problem), (vec!["a".to_owned()], Some("record 2 of the input is cut off".to_owned())));
    }

    /// Acks of neighbours are one line, others are not.
    #[test]
    fn rows() {
        let ack = |shard, offset| Acked { shard, offset, timestamp_us: 0, durability: Durability::QuorumFlushed };
        let mut row = AckedRow::new(ack(1, 7));
        assert!(row.extend(ack(1, 8)) && row.extend(ack(1, 9)));
        assert!(!row.extend(ack(1, 11)) && !row.extend(ack(2, 10)) && !row.extend(ack(1, 9)));
        assert_eq!((row.first.offset, row.count), (7, 3));
    }

    /// An error says how far it came, and what is not known.
    #[test]
    fn reached() {
        let mut run = Run::new(ProgressBar::hidden(), Box::new(io::sink()));
        assert_eq!(run.reached(), "no record is acknowledged");
        run.records = 5;
        assert_eq!(run.reached(), "5 records are acknowledged");
        run.failed = Some((4, ProduceError::Closed));
        run.maybe = 2;
        assert_eq!(
            run.reached(),
            "5 records are acknowledged, up to number 3 without a gap, and 2 more may be written"
        );
    }

    /// The record that is named is the first one, also when a later one failed before it.
    #[test]
    fn first_failure() {
        let mut run = Run::new(ProgressBar::hidden(), Box::new(io::sink()));
        for number in [9, 4, 7] {
            run.fail(number, ProduceError::Abandoned);
        }
        assert!(matches!(run.failed, Some((4, ProduceError::Abandoned))));
    }

    /// Fails like a pipe whose reader has gone, and counts how often it was asked.
    struct Closed(std::rc::Rc<std::cell::Cell<u32>>);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0.set(self.0.get() + 1);
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// When nobody reads the acks any more they are not printed, and the run goes on.
    #[test]
    fn goes_on_without_a_reader_of_acks() {
        let crate::cli::Command::Produce(args) =
            <crate::cli::Cli as clap::Parser>::try_parse_from(["ringlog", "produce", "--acks"]).unwrap().command
        else {
            panic!("it is another command")
        };
        let written = std::rc::Rc::default();
        let mut run = Run::new(ProgressBar::hidden(), Box::new(Closed(std::rc::Rc::clone(&written))));
        for offset in 0..3 {
            let durability = Durability::QuorumFlushed;
            run.row = Some(AckedRow::new(Acked { shard: 0, offset, timestamp_us: 0, durability }));
            run.print_row(&args).unwrap();
        }
        assert_eq!(written.get(), 1, "it is tried once");
    }
}
