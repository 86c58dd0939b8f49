//! `ringlog topic`: create, list, describe, delete and trim.

use std::io::{self, Write};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    Failure, OutputForm, ServerArgs,
    output::{human_bytes, human_time, table},
};
use crate::{
    config,
    proto::ringlog::v1::{CreateTopicRequest, Retention, ShardStatus, Topic, TopicConfig, TrimTopicRequest},
};

/// `ringlog topic`.
#[derive(Debug, clap::Args)]
pub(super) struct TopicArgs {
    #[command(subcommand)]
    command: TopicCommand,
    #[command(flatten)]
    server: ServerArgs,
    /// Form of the result
    #[arg(short, long, value_enum, default_value = "table", global = true)]
    output: OutputForm,
}

#[derive(Debug, Subcommand)]
enum TopicCommand {
    /// Make a topic
    Create(CreateArgs),
    /// List all topics
    List,
    /// Show a topic and the state of its shards
    Describe {
        /// Name of the topic
        name: String,
    },
    /// Remove a topic and all its records, for good
    Delete {
        /// Name of the topic
        name: String,
    },
    /// Forget the records of one shard below an offset
    Trim {
        /// Name of the topic
        name: String,
        /// Which shard
        #[arg(long, value_name = "N")]
        shard: u32,
        /// New log start; records below it are gone at once
        #[arg(long, value_name = "OFFSET")]
        before: u64,
    },
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// 1 to 249 letters, digits, '.', '_' and '-'
    name: String,
    /// Number of shards [default: one per reactor]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    shards: u32,
    /// Keep at most that much per shard, such as 10GiB [default: the node's setting]
    #[arg(long, value_name = "BYTES", value_parser = config::bytes)]
    retention_bytes: Option<u64>,
    /// Keep records that long, such as 7d [default: the node's setting]
    #[arg(long, value_name = "TIME", value_parser = config::milliseconds)]
    retention_age: Option<u64>,
    /// Largest segment file, such as 64MiB [default: the node's setting]
    #[arg(long, value_name = "BYTES", value_parser = config::bytes)]
    segment_bytes: Option<u64>,
}

impl CreateArgs {
    fn request(self) -> CreateTopicRequest {
        let limits = (self.retention_bytes, self.retention_age);
        let retention = (limits != (None, None))
            .then(|| Retention { bytes_max: limits.0.unwrap_or(0), age_ms_max: limits.1.unwrap_or(0) });
        let config = (retention.is_some() || self.segment_bytes.is_some())
            .then(|| TopicConfig { retention, segment_bytes: self.segment_bytes.unwrap_or(0) });
        CreateTopicRequest { name: self.name, shards: self.shards, config, ..Default::default() }
    }
}

/// Runs the command.
pub(super) async fn topic(args: TopicArgs) -> Result<(), Failure> {
    let client = args.server.connect().await?;
    let json = args.output == OutputForm::Json;
    let mut out = io::stdout().lock();
    match args.command {
        TopicCommand::Create(create) => {
            let topic = client.create_topic(&create.request()).await?;
            print_topics(&mut out, &[topic], json)?;
        }
        TopicCommand::List => {
            let topics = client.list_topics().await?;
            if json {
                let topics: Vec<_> = topics.iter().map(topic_json).collect();
                writeln!(out, "{}", Value::from(topics))?;
            } else {
                print_topics(&mut out, &topics, false)?;
            }
        }
        TopicCommand::Describe { name } => {
            let description = client.describe_topic(&name).await?;
            let topic = description.topic.unwrap_or_default();
            if json {
                let mut value = topic_json(&topic);
                value["shard_status"] = description.shards.iter().map(shard_json).collect();
                writeln!(out, "{value}")?;
            } else {
                print_topics(&mut out, &[topic], false)?;
                writeln!(out)?;
                print_shards(&mut out, &description.shards)?;
            }
        }
        TopicCommand::Delete { name } => {
            client.delete_topic(&name).await?;
            if json {
                writeln!(out, "{}", json!({ "deleted": name }))?;
            } else {
                writeln!(out, "deleted topic {name}")?;
            }
        }
        TopicCommand::Trim { name, shard, before } => {
            let request = TrimTopicRequest { name: name.clone(), shard, before_offset: before };
            let log_start = client.trim_topic(&request).await?;
            if json {
                writeln!(out, "{}", json!({ "topic": name, "shard": shard, "log_start": log_start }))?;
            } else {
                writeln!(out, "topic {name} shard {shard} now starts at offset {log_start}")?;
            }
        }
    }
    Ok(out.flush()?)
}

fn print_topics(out: &mut impl Write, topics: &[Topic], json: bool) -> Result<(), Failure> {
    if json {
        for topic in topics {
            writeln!(out, "{}", topic_json(topic))?;
        }
        return Ok(());
    }
    let limit = |value: u64, text: String| if value == 0 { "-".to_owned() } else { text };
    let row = |topic: &Topic| {
        let config = topic.config.unwrap_or_default();
        let Retention { bytes_max, age_ms_max } = config.retention.unwrap_or_default();
        let age = humantime::format_duration(std::time::Duration::from_millis(age_ms_max)).to_string();
        vec![
            topic.name.clone(),
            topic.shards.to_string(),
            limit(bytes_max, human_bytes(bytes_max)),
            limit(age_ms_max, age),
            limit(config.segment_bytes, human_bytes(config.segment_bytes)),
            human_time(topic.created_us),
        ]
    };
    let rows: Vec<_> = topics.iter().map(row).collect();
    table(out, &["NAME", "SHARDS", "KEEP BYTES", "KEEP AGE", "SEGMENT", "CREATED"], &rows)?;
    Ok(())
}

fn print_shards(out: &mut impl Write, shards: &[ShardStatus]) -> Result<(), Failure> {
    let row = |shard: &ShardStatus| {
        vec![
            shard.shard.to_string(),
            shard.reactor.to_string(),
            shard.leader_node_id.to_string(),
            shard.term.to_string(),
            shard.log_start.to_string(),
            shard.high_watermark.to_string(),
            shard.log_end.to_string(),
            shard.segments.to_string(),
            human_bytes(shard.size_bytes),
            if shard.fault.is_empty() { "serving".to_owned() } else { shard.fault.clone() },
        ]
    };
    let headings =
        ["SHARD", "REACTOR", "LEADER", "TERM", "LOG START", "HIGH WATERMARK", "LOG END", "SEGMENTS", "SIZE", "STATE"];
    let rows: Vec<_> = shards.iter().map(row).collect();
    table(out, &headings, &rows)?;
    Ok(())
}

fn topic_json(topic: &Topic) -> Value {
    let config = topic.config.unwrap_or_default();
    let retention = config.retention.unwrap_or_default();
    json!({
        "name": topic.name,
        "topic_id": topic.topic_id,
        "shards": topic.shards,
        "retention_bytes_max": retention.bytes_max,
        "retention_age_ms_max": retention.age_ms_max,
        "segment_bytes": config.segment_bytes,
        "created_us": topic.created_us,
    })
}

fn shard_json(shard: &ShardStatus) -> Value {
    json!({
        "shard": shard.shard,
        "shard_uid": shard.shard_uid,
        "reactor": shard.reactor,
        "leader_node_id": shard.leader_node_id,
        "term": shard.term,
        "log_start": shard.log_start,
        "high_watermark": shard.high_watermark,
        "log_end": shard.log_end,
        "size_bytes": shard.size_bytes,
        "segments": shard.segments,
        "fault": shard.fault,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Limits that are not given are left to the node; one that is given as 0 is no limit.
    #[test]
    fn create_requests() {
        let args = |retention_bytes, segment_bytes| CreateArgs {
            name: "t".into(),
            shards: 0,
            retention_bytes,
            retention_age: None,
            segment_bytes,
        };
        assert_eq!(args(None, None).request().config, None);
        let retention = Some(Retention { bytes_max: 0, age_ms_max: 0 });
        assert_eq!(args(Some(0), None).request().config, Some(TopicConfig { retention, segment_bytes: 0 }));
        assert_eq!(args(None, Some(1)).request().config, Some(TopicConfig { retention: None, segment_bytes: 1 }));
    }
}
