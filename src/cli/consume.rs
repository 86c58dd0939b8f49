//! `ringlog consume`: records to stdout, from one shard or from all of a topic's, merged as they come.
//! Each shard is in order; between shards there is no order.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    time::SystemTime,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use futures_util::FutureExt;
use serde_json::{Value, json};

use super::{Failure, ServerArgs, start::From};
use crate::{
    client::{ClientError, Cluster, Consumer, Start},
    proto::ringlog::v1::{ConsumeRequest, Record},
};

/// Bytes collected for one write to stdout.
const OUTPUT_BYTES: usize = 256 << 10;

/// `ringlog consume`.
#[derive(Debug, clap::Args)]
pub(super) struct ConsumeArgs {
    /// Topic to read
    #[arg(long, default_value = "default")]
    topic: String,
    /// Shard to read [default: all, merged as they come]
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// Where to start: earliest, latest, an offset, a time (2026-11-20T08:00:00Z), or a span ago (-5m)
    #[arg(long, value_name = "START", default_value = "earliest", value_parser = From::parse, allow_hyphen_values = true)]
    from: From,
    /// Go on with new records, without end; otherwise stop at what was there at the start
    #[arg(long, short)]
    follow: bool,
    /// Read what any replica has, without asking the leader what was acknowledged: for when there is none. What is missing at
    /// the end is not said
    #[arg(long)]
    stale: bool,
    /// Stop after that many records
    #[arg(short = 'n', long = "records", value_name = "N")]
    records: Option<u64>,
    /// How records are written
    #[arg(long, value_enum, default_value = "value")]
    format: Format,
    /// Between key and value in key-value form
    #[arg(long, value_name = "TEXT", default_value = "\t", hide_default_value = true)]
    key_separator: String,
    #[command(flatten)]
    server: ServerArgs,
}

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The value as it is, and a newline
    Value,
    /// Key, separator (a tab), value, newline
    KeyValue,
    /// One JSON object a line; bytes that are not UTF-8 as base64
    Json,
    /// Values behind their varint lengths, as `produce --delimited` reads them
    Delimited,
}

/// Runs the command. A shard that cannot be read does not keep the others from being read; the command fails in the end.
pub(super) async fn consume(args: ConsumeArgs) -> Result<(), Failure> {
    if args.records == Some(0) {
        return Ok(());
    }
    let cluster = args.server.cluster().await?;
    let mut work = open(&cluster, &args).await?;
    let mut out = BufWriter::with_capacity(OUTPUT_BYTES, io::stdout().lock());
    let mut left = args.records.unwrap_or(u64::MAX);
    while let Some(consumer) = &mut work.consumer
        && !work.ends.is_empty()
    {
        // Nothing is held back while we wait for more.
        let next = match consumer.next().now_or_never() {
            Some(next) => next,
            None => {
                out.flush()?;
                consumer.next().await
            }
        };
        let fetched = match next {
            None => break,
            Some(Ok(fetched)) => fetched,
            Some(Err(error)) => {
                say(&error);
                if error.is_final || !args.follow {
                    work.ends.remove(&error.shard);
                    work.failed = true;
                }
                continue;
            }
        };
        for record in &fetched.records {
            write_record(&mut out, &args, fetched.shard, record)?;
            left -= 1;
            if left == 0 {
                out.flush()?;
                return work.result();
            }
        }
        if work.ends.get(&fetched.shard).is_some_and(|end| fetched.next_offset >= *end) {
            work.ends.remove(&fetched.shard);
        }
    }
    out.flush()?;
    work.result()
}

/// What goes wrong with one shard; nobody has to read it.
fn say(error: &dyn std::fmt::Display) {
    drop(writeln!(io::stderr(), "ringlog: {error}"));
}

/// What there is to read.
struct Work {
    /// None: nothing.
    consumer: Option<Consumer>,
    /// Where each shard ends that is not done; `u64::MAX` for those that are followed.
    ends: BTreeMap<u32, u64>,
    /// Some shard cannot be read, and that is said.
    failed: bool,
}

impl Work {
    fn result(&self) -> Result<(), Failure> {
        if self.failed { Err(Failure::Said) } else { Ok(()) }
    }
}

#[allow(clippy::disallowed_methods, reason = "the CLI is not part of the simulated world")]
async fn open(cluster: &Cluster, args: &ConsumeArgs) -> Result<Work, Failure> {
    let start = args.from.start(SystemTime::now());
    let shards: Vec<u32> = match args.shard {
        Some(shard) => vec![shard],
        None => (0..cluster.shards(&args.topic).await?).collect(),
    };
    if matches!(start, Start::Offset(_)) && shards.len() > 1 {
        return Err(Failure::Message(format!(
            "an offset means something in one shard only, and topic {} has {}: say which with --shard",
            args.topic,
            shards.len()
        )));
    }
    let mut builder = cluster.consumer(&args.topic).start(start);
    if args.follow {
        let ends = shards.iter().map(|shard| (*shard, u64::MAX)).collect();
        return Ok(Work { consumer: Some(builder.shards(shards).open().await?), ends, failed: false });
    }
    let (mut ends, mut failed) = (BTreeMap::new(), false);
    for shard in shards {
        match what_is_there(cluster, args, shard, start).await {
            Ok(None) => {}
            Ok(Some((first, end))) => {
                let end = end.min(first.saturating_add(args.records.unwrap_or(u64::MAX)));
                builder = builder.start_of(shard, Start::Offset(first)).end_of(shard, end);
                ends.insert(shard, end);
            }
            Err(error) => {
                say(&format_args!("topic {} shard {shard} cannot be read: {error}", args.topic));
                failed = true;
            }
        }
    }
    let consumer = if ends.is_empty() { None } else { Some(builder.shards(ends.keys().copied()).open().await?) };
    Ok(Work { consumer, ends, failed })
}

/// First offset, and the present high watermark, if there is something between them.
async fn what_is_there(
    cluster: &Cluster,
    args: &ConsumeArgs,
    shard: u32,
    start: Start,
) -> Result<Option<(u64, u64)>, ClientError> {
    let request = ConsumeRequest {
        topic: args.topic.clone(),
        shard,
        start: Some(start.of_call()),
        max_records: 1,
        // Everything that was acknowledged before is there, whichever replica answers; unless there may be no leader.
        linearizable: !args.stale,
        ..ConsumeRequest::default()
    };
    let response = cluster.consume(&request).await?;
    let Some(first) = response.records.first() else { return Ok(None) };
    Ok(Some((first.offset, response.high_watermark.max(first.offset + 1))))
}

fn write_record(out: &mut impl Write, args: &ConsumeArgs, shard: u32, record: &Record) -> io::Result<()> {
    match args.format {
        Format::Value => {}
        Format::KeyValue => {
            out.write_all(&record.key)?;
            out.write_all(args.key_separator.as_bytes())?;
        }
        Format::Json => return writeln!(out, "{}", record_json(shard, record)),
        Format::Delimited => {
            let mut prefix = Vec::with_capacity(10);
            prost::encode_length_delimiter(record.value.len(), &mut prefix).expect("a vector has room");
            out.write_all(&prefix)?;
            return out.write_all(&record.value);
        }
    }
    out.write_all(&record.value)?;
    out.write_all(b"\n")
}

fn record_json(shard: u32, record: &Record) -> Value {
    let mut value = json!({ "shard": shard, "offset": record.offset, "timestamp_us": record.timestamp_us });
    put_bytes(&mut value, "key", &record.key);
    put_bytes(&mut value, "value", &record.value);
    let headers: Vec<Value> = record
        .headers
        .iter()
        .map(|header| {
            let mut value = json!({ "name": header.name });
            put_bytes(&mut value, "value", &header.value);
            value
        })
        .collect();
    if !headers.is_empty() {
        value["headers"] = headers.into();
    }
    value
}

/// Text under its name, other bytes as base64 under the name with `_base64`.
fn put_bytes(object: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object[name] = text.into(),
        Err(_) => object[format!("{name}_base64")] = STANDARD.encode(bytes).into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::proto::ringlog::v1::Header;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ConsumeArgs,
    }

    fn written(flags: &str) -> Vec<u8> {
        let args = Line::try_parse_from(format!("consume {flags}").split_whitespace()).unwrap().args;
        let record = Record {
            key: "k".into(),
            value: vec![0xff, b'\n'].into(),
            headers: vec![Header { name: "h".into(), value: "v".into() }],
            timestamp_us: 7,
            offset: 9,
        };
        let mut out = Vec::new();
        write_record(&mut out, &args, 3, &record).unwrap();
        out
    }

    /// Values are written as they are, in each form.
    #[test]
    fn forms() {
        assert_eq!(written(""), b"\xff\n\n");
        assert_eq!(written("--format key-value"), b"k\t\xff\n\n");
        assert_eq!(written("--format key-value --key-separator ::"), b"k::\xff\n\n");
        assert_eq!(written("--format delimited"), b"\x02\xff\n");
        let json: Value = serde_json::from_slice(&written("--format json")).unwrap();
        let headers = json!([{ "name": "h", "value": "v" }]);
        let expected = json!({
            "shard": 3, "offset": 9, "timestamp_us": 7, "key": "k", "value_base64": "/wo=", "headers": headers,
        });
        assert_eq!(json, expected);
    }
}
