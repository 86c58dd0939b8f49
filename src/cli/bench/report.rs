//! Results, for people or as one JSON object.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde_json::{Map, Value, json};

use super::{
    CommonArgs, ConsumeArgs, Failure, OutputForm, ProduceArgs,
    consume::Replayed,
    payload::Payload,
    run::{Latencies, Run},
};

/// What a produce run measured.
pub(super) struct ProduceReport<'a> {
    pub(super) args: &'a ProduceArgs,
    pub(super) payload: &'a Payload,
    pub(super) run: &'a Run,
    pub(super) in_flight: usize,
    pub(super) busy_poll: bool,
    pub(super) floor: Option<&'a Latencies>,
}

impl ProduceReport<'_> {
    /// Prints it to stdout.
    pub(super) fn print(&self) -> Result<(), Failure> {
        let ProduceReport { args, payload, run, .. } = self;
        let latencies = run.latencies();
        let mut object = rates(run.records(), run.records() * payload.record_bytes(), run.measured());
        add_latencies(&mut object, &latencies);
        object.insert("workload".into(), "produce".into());
        object.insert("call".into(), if args.unary { "Produce" } else { "ProduceStream" }.into());
        object.insert("loop".into(), if args.rate.is_some() { "open" } else { "closed" }.into());
        object.insert("rate".into(), args.rate.into());
        object.insert("requests".into(), latencies.count().into());
        object.insert("errors".into(), run.errors().into());
        object.insert("batch".into(), args.batch.into());
        object.insert("in_flight".into(), self.in_flight.into());
        add_common(&mut object, &args.common, self.busy_poll);
        if let Some(floor) = self.floor {
            add_floor(&mut object, floor, &latencies, payload.stored_bytes());
            if let Some(warning) = floor_warning(latencies.quantile_us(0.5), floor.quantile_us(0.5)) {
                drop(writeln!(io::stderr(), "warning: {warning}"));
            }
        }
        print(object, args.common.output, "acked")
    }
}

/// What a replay measured.
pub(super) struct ConsumeReport<'a> {
    pub(super) args: &'a ConsumeArgs,
    pub(super) total: Replayed,
    pub(super) elapsed: Duration,
    pub(super) shards: usize,
    pub(super) busy_poll: bool,
    pub(super) latencies: &'a Latencies,
}

impl ConsumeReport<'_> {
    /// Prints it to stdout.
    pub(super) fn print(&self) -> Result<(), Failure> {
        let mut object = rates(self.total.records, self.total.value_bytes, self.elapsed);
        add_latencies(&mut object, self.latencies);
        object.insert("workload".into(), "consume".into());
        object.insert("call".into(), "ConsumeStream".into());
        object.insert("responses".into(), self.total.responses.into());
        object.insert("shards".into(), self.shards.into());
        object.insert("errors".into(), 0.into());
        add_common(&mut object, &self.args.common, self.busy_poll);
        print(object, self.args.common.output, "replayed")
    }
}

fn rates(records: u64, bytes: u64, elapsed: Duration) -> Map<String, Value> {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let mut object = Map::new();
    object.insert("records".into(), records.into());
    object.insert("bytes".into(), bytes.into());
    object.insert("seconds".into(), round(seconds, 3));
    object.insert("records_per_s".into(), round(records as f64 / seconds, 0));
    object.insert("mb_per_s".into(), round(bytes as f64 / 1e6 / seconds, 2));
    object
}

fn add_latencies(object: &mut Map<String, Value>, latencies: &Latencies) {
    for (name, quantile) in
        [("p50_us", 0.5), ("p90_us", 0.9), ("p99_us", 0.99), ("p999_us", 0.999), ("p9999_us", 0.9999)]
    {
        object.insert(name.into(), round(latencies.quantile_us(quantile), 1));
    }
    object.insert("max_us".into(), round(latencies.max_us(), 1));
    object.insert("mean_us".into(), round(latencies.mean_us(), 1));
}

fn add_common(object: &mut Map<String, Value>, common: &CommonArgs, busy_poll: bool) {
    object.insert("topic".into(), common.topic.clone().into());
    object.insert("record_bytes".into(), common.record_bytes.into());
    object.insert("connections".into(), common.connections.into());
    object.insert("busy_poll".into(), busy_poll.into());
    object.insert("route".into(), if common.any { "any" } else { "direct" }.into());
}

fn add_floor(object: &mut Map<String, Value>, floor: &Latencies, latencies: &Latencies, bytes: usize) {
    let p50 = floor.quantile_us(0.5);
    object.insert("floor_p50_us".into(), round(p50, 1));
    object.insert("floor_p99_us".into(), round(floor.quantile_us(0.99), 1));
    object.insert("floor_appends".into(), floor.count().into());
    object.insert("floor_bytes".into(), bytes.into());
    let ratio = if p50 > 0.0 { round(latencies.quantile_us(0.5) / p50, 3) } else { Value::Null };
    object.insert("ratio_p50".into(), ratio);
}

/// An ack that waits for the device cannot be quicker than the device: then something else was measured, and the ratio
/// means nothing.
fn floor_warning(p50_us: f64, floor_us: f64) -> Option<String> {
    (p50_us < floor_us).then(|| {
        format!(
            "the bare device (p50 {floor_us:.0} µs) was slower than the server's acks (p50 {p50_us:.0} µs), so this \
             result says nothing: other work has the processors or the device, or --floor-dir is on another device"
        )
    })
}

fn round(value: f64, digits: i32) -> Value {
    let scale = 10f64.powi(digits);
    json!((value * scale).round() / scale)
}

fn print(object: Map<String, Value>, output: OutputForm, done: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if output == OutputForm::Json {
        writeln!(out, "{}", Value::Object(object))?;
    } else {
        out.write_all(text(&object, done).as_bytes())?;
    }
    Ok(out.flush()?)
}

/// The same for people; numbers as in the JSON.
fn text(object: &Map<String, Value>, done: &str) -> String {
    let get = |name: &str| object.get(name).map_or_else(|| "-".to_owned(), |value| value.to_string().replace('"', ""));
    let mut text = format!(
        "{} of {} B, topic {}, {} connections ({}), busy polling {}\n{done} {} records in {} s: {} records/s, {} MB/s, {} errors\n",
        get("call"),
        get("record_bytes"),
        get("topic"),
        get("connections"),
        get("route"),
        get("busy_poll"),
        get("records"),
        get("seconds"),
        get("records_per_s"),
        get("mb_per_s"),
        get("errors"),
    );
    if object.contains_key("batch") {
        text += &format!("{} loop, {} in flight, batches of {}\n", get("loop"), get("in_flight"), get("batch"));
    }
    text += &format!(
        "latency µs: p50 {}, p90 {}, p99 {}, p99.9 {}, p99.99 {}, max {}, mean {}\n",
        get("p50_us"),
        get("p90_us"),
        get("p99_us"),
        get("p999_us"),
        get("p9999_us"),
        get("max_us"),
        get("mean_us"),
    );
    if object.contains_key("floor_p50_us") {
        text += &format!(
            "device floor µs ({} B durable): p50 {}, p99 {} in {} appends; p50 is {} times the floor's\n",
            get("floor_bytes"),
            get("floor_p50_us"),
            get("floor_p99_us"),
            get("floor_appends"),
            get("ratio_p50"),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rates are per second of load, megabytes are 10^6 payload bytes, and the ratio is of the medians.
    #[test]
    fn arithmetic() {
        let mut object = rates(1_000, 1_024_000, Duration::from_millis(500));
        let (mut server, mut floor) = (Latencies::new(), Latencies::new());
        server.record(Duration::from_micros(120));
        floor.record(Duration::from_micros(80));
        add_latencies(&mut object, &server);
        add_floor(&mut object, &floor, &server, 4096);
        assert_eq!(object["records_per_s"], json!(2000.0));
        assert_eq!(object["mb_per_s"], json!(2.05));
        assert!((object["ratio_p50"].as_f64().unwrap() - 1.5).abs() < 0.01);
        assert!((object["max_us"].as_f64().unwrap() - 120.0).abs() < 0.2);
        for name in ["p50_us", "p99_us", "p999_us", "floor_p50_us", "floor_p99_us"] {
            assert!(object[name].is_number(), "{name}");
        }
    }

    /// A ratio that cannot be true is called so.
    #[test]
    fn implausible_floor() {
        assert_eq!(floor_warning(120.0, 80.0), None);
        assert!(floor_warning(250.0, 7_880.0).unwrap().contains("says nothing"));
    }

    /// The text says what the object says, and a run without a floor does not speak of one.
    #[test]
    fn for_people() {
        let mut object = rates(10, 10_240, Duration::from_secs(1));
        add_latencies(&mut object, &Latencies::new());
        object.insert("topic".into(), "bench".into());
        let text = text(&object, "acked");
        assert!(text.contains("acked 10 records in 1.0 s"), "{text}");
        assert!(text.contains("topic bench") && !text.contains("floor"), "{text}");
    }
}
