//! `ringlog produce`: records from stdin or a file, pipelined over one stream and batched by themselves.
//!
//! While the server keeps up, what one read of the input gave becomes one request, so a slow pipe is not held
//! back and a fast file goes in large batches. The lines of one run stay in order: unkeyed ones all go to the
//! shard that took the first request; keyed ones to the shard of their key, where each key's are in order.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    future::pending,
    io::{self, Read, Write},
    path::PathBuf,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    Failure, OutputForm, ServerArgs,
    input::{Framing, Item, Splitter},
};
use crate::{
    client::{Client, ClientError, ProduceAcks, ProduceSender, framed},
    config, limits,
    proto::ringlog::v1::{ProduceStreamRequest, ProduceStreamResponse, Record},
};

/// Bytes of one read of the input.
const INPUT_BYTES: usize = 256 << 10;

/// Reads of the input waiting to be sent.
const INPUT_READS_MAX: usize = 2;

/// A batch is sent when its records have that many bytes.
const BATCH_BYTES: usize = 256 << 10;

/// Bytes waiting for the server's flow control; above it no more input is taken.
const QUEUED_BYTES_MAX: usize = 1 << 20;

/// Requests sent and not acknowledged; above it no more input is taken.
const IN_FLIGHT_MAX: usize = 1_024;

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
    let client = args.server.connect().await?;
    let framing = if args.delimited {
        Framing::Delimited
    } else {
        Framing::Lines { key_separator: args.key_separator.as_ref().map(|text| text.clone().into_bytes()) }
    };
    let mut input = read_input(source, framing);
    let mut producer = Producer::open(client, args, progress(bytes)).await?;
    let outcome = producer.run(&mut input).await;
    producer.progress.finish_and_clear();
    match outcome {
        Ok(()) => producer.summary(),
        Err(Failure::Message(message)) => {
            let Totals { records, .. } = producer.totals;
            let first = producer.first_unacknowledged();
            let acknowledged = match records {
                0 => "no record is acknowledged".to_owned(),
                _ => format!("{records} records are acknowledged, up to number {}", first - 1),
            };
            Err(Failure::Message(format!("{message}; {acknowledged}")))
        }
        Err(other) => Err(other),
    }
}

/// Resolves when `timeout` has passed since `since`.
#[allow(clippy::disallowed_methods, reason = "the CLI is not part of the simulated world")]
async fn silence(since: Instant, timeout: Duration) {
    tokio::time::sleep_until((since + timeout).into()).await;
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

/// Which shard a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Routing {
    /// The server chooses for the first request; then this becomes one of the others.
    Unknown,
    /// All to one shard.
    Fixed(u32),
    /// By the key's hash over that many shards; those without a key to `unkeyed`.
    ByKey { shards: u32, unkeyed: u32 },
}

impl Routing {
    fn shard(self, key: &[u8]) -> Option<u32> {
        match self {
            Routing::Unknown => None,
            Routing::Fixed(shard) => Some(shard),
            Routing::ByKey { unkeyed, .. } if key.is_empty() => Some(unkeyed),
            // As the server does (log.proto, Record.key).
            Routing::ByKey { shards, .. } => {
                let shard = twox_hash::XxHash3_64::oneshot(key) % u64::from(shards.max(1));
                Some(u32::try_from(shard).expect("less than the number of shards"))
            }
        }
    }
}

/// Records gathered for one shard.
#[derive(Debug, Default)]
struct Batch {
    records: Vec<Record>,
    bytes: usize,
    /// Number of its first record in the input, from 1.
    first: u64,
}

/// A request on its way.
#[derive(Debug)]
struct Sent {
    first: u64,
    count: u32,
    bytes: usize,
}

/// What was acknowledged in one shard.
#[derive(Clone, Copy, Debug)]
struct ShardTotals {
    records: u64,
    first_offset: u64,
    end_offset: u64,
}

#[derive(Debug, Default)]
struct Totals {
    records: u64,
    bytes: u64,
    topic: String,
    shards: BTreeMap<u32, ShardTotals>,
}

struct Producer {
    client: Client,
    args: ProduceArgs,
    sender: ProduceSender,
    acks: ProduceAcks,
    routing: Routing,
    batches: BTreeMap<Option<u32>, Batch>,
    linger_until: Option<Instant>,
    in_flight: VecDeque<Sent>,
    taken: u64,
    totals: Totals,
    progress: ProgressBar,
    started: Instant,
    /// Longest time without an ack while one is owed.
    timeout: Duration,
    /// Since then none has come, or none was owed.
    silent_since: Instant,
}

#[allow(clippy::disallowed_methods, reason = "the CLI is not part of the simulated world")]
impl Producer {
    async fn open(client: Client, args: ProduceArgs, progress: ProgressBar) -> Result<Producer, Failure> {
        let (sender, acks) = client.produce_stream().await?;
        Ok(Producer {
            client,
            timeout: args.server.timeout,
            routing: args.shard.map_or(Routing::Unknown, Routing::Fixed),
            args,
            sender,
            acks,
            batches: BTreeMap::new(),
            linger_until: None,
            in_flight: VecDeque::new(),
            taken: 0,
            totals: Totals::default(),
            progress,
            started: Instant::now(),
            silent_since: Instant::now(),
        })
    }

    async fn run(&mut self, input: &mut mpsc::Receiver<Result<Vec<Item>, String>>) -> Result<(), Failure> {
        let mut problem = None;
        let mut open = true;
        while open || !self.in_flight.is_empty() || self.sender.queued_bytes() > 0 {
            let room = self.sender.queued_bytes() < QUEUED_BYTES_MAX && self.in_flight.len() < IN_FLIGHT_MAX;
            let waits = !self.in_flight.is_empty();
            if !waits {
                self.silent_since = Instant::now();
            }
            let linger = self.linger_until;
            let lingered = async {
                match linger {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                ack = self.acks.next(), if !self.in_flight.is_empty() => {
                    self.silent_since = Instant::now();
                    self.acknowledge(ack)?;
                }
                flushed = self.sender.flush(), if self.sender.queued_bytes() > 0 => {
                    if let Err(error) = flushed {
                        return Err(self.reason(error).await);
                    }
                }
                items = input.recv(), if open && room => match items {
                    Some(Ok(items)) => self.take(items, input.is_empty()).await?,
                    Some(Err(message)) => problem = Some(message),
                    None => {
                        open = false;
                        self.send_all();
                    }
                },
                () = lingered => self.send_all(),
                () = silence(self.silent_since, self.timeout), if waits => return Err(self.silent()),
            }
        }
        match problem {
            Some(message) => Err(Failure::Message(message)),
            None => Ok(self.finish().await?),
        }
    }

    /// The server owes acks and has sent none for too long.
    fn silent(&self) -> Failure {
        format!(
            "the server sent no ack for {} ms; what was sent and not acknowledged may or may not have been written \
             (--timeout sets how long to wait)",
            self.timeout.as_millis()
        )
        .into()
    }

    /// Tells the server that it was all, and waits for its OK.
    async fn finish(&mut self) -> Result<(), ClientError> {
        // An error has its reason in the receiving half.
        drop(self.sender.finish().await);
        match self.acks.next().await {
            None | Some(Ok(_)) => Ok(()),
            // A stream without requests has nothing that could be lost.
            Some(Err(_)) if self.taken == 0 => Ok(()),
            Some(Err(error)) => Err(error),
        }
    }

    /// Puts records into batches and sends the full ones; all of them when no more input waits.
    async fn take(&mut self, items: Vec<Item>, input_is_empty: bool) -> Result<(), Failure> {
        for item in items {
            let shard = self.routing.shard(&item.key);
            self.taken += 1;
            let batch = self.batches.entry(shard).or_default();
            if batch.records.is_empty() {
                batch.first = self.taken;
            }
            batch.bytes += item.key.len() + item.value.len() + RECORD_FRAMING_BYTES;
            batch.records.push(Record { key: item.key, value: item.value, ..Record::default() });
            let keyed = self.args.key_separator.is_some();
            let full = batch.records.len() >= self.args.batch as usize || batch.bytes >= BATCH_BYTES;
            if self.routing == Routing::Unknown && (keyed || full) {
                self.learn_routing().await?;
            } else if full {
                self.send(shard);
            }
        }
        if self.routing == Routing::Unknown && !self.batches.is_empty() && self.args.linger == 0 {
            self.learn_routing().await?;
        }
        if self.args.linger == 0 && input_is_empty {
            self.send_all();
        } else if self.linger_until.is_none() && !self.batches.is_empty() {
            self.linger_until = Some(Instant::now() + Duration::from_millis(self.args.linger));
        }
        Ok(())
    }

    /// Sends the first request and learns from its ack where the others belong.
    async fn learn_routing(&mut self) -> Result<(), Failure> {
        self.send_all();
        if let Err(error) = self.sender.flush().await {
            return Err(self.reason(error).await);
        }
        let ack = match tokio::time::timeout(self.timeout, self.acks.next()).await {
            Ok(ack) => ack,
            Err(_) => return Err(self.silent()),
        };
        let shard = ack.as_ref().and_then(|ack| ack.as_ref().ok()).map(|ack| ack.shard);
        self.acknowledge(ack)?;
        let shard = shard.expect("an ack that was accepted has a shard");
        self.routing = if self.args.key_separator.is_some() {
            let description = self.client.describe_topic(&self.args.topic).await?;
            let shards = description.topic.map_or(1, |topic| topic.shards);
            Routing::ByKey { shards, unkeyed: shard }
        } else {
            Routing::Fixed(shard)
        };
        Ok(())
    }

    fn send_all(&mut self) {
        let shards: Vec<_> = self.batches.keys().copied().collect();
        shards.into_iter().for_each(|shard| self.send(shard));
        self.linger_until = None;
    }

    fn send(&mut self, shard: Option<u32>) {
        let Some(batch) = self.batches.remove(&shard) else { return };
        let count = u32::try_from(batch.records.len()).expect("a batch is bounded by --batch");
        let topic = self.args.topic.clone();
        let request = ProduceStreamRequest { topic, shard, records: batch.records, ..Default::default() };
        self.sender.queue(framed(&request));
        self.in_flight.push_back(Sent { first: batch.first, count, bytes: batch.bytes });
        if self.batches.is_empty() {
            self.linger_until = None;
        }
    }

    fn acknowledge(&mut self, ack: Option<Result<ProduceStreamResponse, ClientError>>) -> Result<(), Failure> {
        let ack = ack.ok_or_else(|| "the server ended the stream before it acknowledged everything".to_owned())??;
        let sent = self.in_flight.pop_front().ok_or_else(|| "the server sent an ack too many".to_owned())?;
        if sent.count != ack.count {
            return Err(format!("{} records were sent, but {} acknowledged", sent.count, ack.count).into());
        }
        let end_offset = ack.base_offset + u64::from(ack.count);
        let new = ShardTotals { records: 0, first_offset: ack.base_offset, end_offset };
        let shard = self.totals.shards.entry(ack.shard).or_insert(new);
        shard.records += u64::from(ack.count);
        shard.end_offset = end_offset;
        self.totals.records += u64::from(ack.count);
        self.totals.bytes += (sent.bytes - sent.count as usize * RECORD_FRAMING_BYTES) as u64;
        self.progress.set_position(self.totals.bytes + self.totals.records);
        if self.args.acks {
            self.print_ack(&ack)?;
        }
        self.totals.topic = ack.topic;
        Ok(())
    }

    fn print_ack(&self, ack: &ProduceStreamResponse) -> Result<(), Failure> {
        let ProduceStreamResponse { shard, base_offset, count, timestamp_us, topic, .. } = ack;
        let durability = ack.durability().as_str_name().trim_start_matches("DURABILITY_").to_ascii_lowercase();
        if self.args.output == OutputForm::Json {
            let ack = json!({
                "topic": topic, "shard": shard, "base_offset": base_offset, "count": count,
                "timestamp_us": timestamp_us, "durability": durability,
            });
            writeln!(io::stdout(), "{ack}")?;
        } else {
            let last = base_offset + u64::from(*count) - 1;
            writeln!(io::stdout(), "{topic} shard {shard} offsets {base_offset} to {last} {durability}")?;
        }
        Ok(())
    }

    /// Why the stream is over: the receiving half knows, behind the acks that came before.
    async fn reason(&mut self, error: ClientError) -> Failure {
        loop {
            match self.acks.next().await {
                None => return error.into(),
                Some(Ok(ack)) => {
                    if let Err(failure) = self.acknowledge(Some(Ok(ack))) {
                        return failure;
                    }
                }
                Some(Err(reason)) => return reason.into(),
            }
        }
    }

    /// Number in the input of the first record that has no ack.
    fn first_unacknowledged(&self) -> u64 {
        let sent = self.in_flight.iter().map(|sent| sent.first);
        let gathered = self.batches.values().map(|batch| batch.first);
        sent.chain(gathered).min().unwrap_or(self.taken + 1)
    }

    fn summary(&self) -> Result<(), Failure> {
        let Totals { records, bytes, topic, shards } = &self.totals;
        let seconds = self.started.elapsed().as_secs_f64();
        if self.args.output == OutputForm::Json {
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

    /// Keys go where the documented hash says, everything else to one place.
    #[test]
    fn routing() {
        assert_eq!(Routing::Unknown.shard(b"k"), None);
        assert_eq!(Routing::Fixed(3).shard(b"k"), Some(3));
        let routing = Routing::ByKey { shards: 4, unkeyed: 2 };
        assert_eq!(routing.shard(b""), Some(2));
        // XXH3-64 of "key", from the reference implementation's definition, modulo 4.
        let hash = twox_hash::XxHash3_64::oneshot(b"key");
        assert_eq!(routing.shard(b"key").map(u64::from), Some(hash % 4));
    }
}
