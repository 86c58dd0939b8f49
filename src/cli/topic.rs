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
    proto::ringlog::v1::{
        CreateTopicRequest, ReplicaStatus, Retention, ShardStatus, Topic, TopicConfig, TrimTopicRequest,
    },
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
    /// Replicas of each shard, on distinct nodes; fewer while the cluster is smaller [default: the node's setting, 3]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    replication_factor: u32,
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
        let CreateArgs { name, shards, replication_factor, .. } = self;
        CreateTopicRequest { name, shards, config, replication_factor }
    }
}

/// Runs the command.
pub(super) async fn topic(args: TopicArgs) -> Result<(), Failure> {
    let cluster = args.server.cluster().await?;
    let json = args.output == OutputForm::Json;
    let mut out = io::stdout().lock();
    match args.command {
        TopicCommand::Create(create) => {
            let topic = cluster.create_topic(&create.request()).await?;
            print_topics(&mut out, std::slice::from_ref(&topic), json)?;
            // It is made; that nobody can say how many replicas it has is no failure.
            if let Ok(described) = cluster.describe_topic(&topic.name).await
                && let Some(short) = described.shards.iter().find_map(|shard| short(shard, topic.replication_factor))
            {
                let name = &topic.name;
                let note =
                    format!("topic {name} has fewer replicas than it wants until there are more nodes: {short}\n");
                drop(io::stderr().write_all(note.as_bytes()));
            }
        }
        TopicCommand::List => {
            let topics = cluster.list_topics().await?;
            if json {
                let topics: Vec<_> = topics.iter().map(topic_json).collect();
                writeln!(out, "{}", Value::from(topics))?;
            } else {
                print_topics(&mut out, &topics, false)?;
            }
        }
        TopicCommand::Describe { name } => {
            let description = cluster.describe_topic(&name).await?;
            let topic = description.topic.unwrap_or_default();
            if json {
                let mut value = topic_json(&topic);
                value["shard_status"] = description.shards.iter().map(shard_json).collect();
                writeln!(out, "{value}")?;
            } else {
                print_topics(&mut out, std::slice::from_ref(&topic), false)?;
                writeln!(out)?;
                print_shards(&mut out, &description.shards, topic.replication_factor)?;
            }
        }
        TopicCommand::Delete { name } => {
            cluster.delete_topic(&name).await?;
            if json {
                writeln!(out, "{}", json!({ "deleted": name }))?;
            } else {
                writeln!(out, "deleted topic {name}")?;
            }
        }
        TopicCommand::Trim { name, shard, before } => {
            let request = TrimTopicRequest { name: name.clone(), shard, before_offset: before };
            let request = &request;
            let log_start = cluster.write(|client| async move { client.trim_topic(request).await }).await?;
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
            topic.replication_factor.to_string(),
            limit(bytes_max, human_bytes(bytes_max)),
            limit(age_ms_max, age),
            limit(config.segment_bytes, human_bytes(config.segment_bytes)),
            human_time(topic.created_us),
        ]
    };
    let rows: Vec<_> = topics.iter().map(row).collect();
    table(out, &["NAME", "SHARDS", "REPLICATION", "KEEP BYTES", "KEEP AGE", "SEGMENT", "CREATED"], &rows)?;
    Ok(())
}

fn print_shards(out: &mut impl Write, shards: &[ShardStatus], wanted: u32) -> Result<(), Failure> {
    let row = |shard: &ShardStatus| {
        vec![
            shard.shard.to_string(),
            shard.reactor.to_string(),
            leader(shard),
            shard.term.to_string(),
            replicas(shard),
            lag(shard),
            shard.log_start.to_string(),
            shard.high_watermark.to_string(),
            shard.log_end.to_string(),
            shard.segments.to_string(),
            human_bytes(shard.size_bytes),
            state(shard, wanted),
        ]
    };
    let headings = [
        "SHARD",
        "REACTOR",
        "LEADER",
        "TERM",
        "REPLICAS",
        "LAG",
        "LOG START",
        "HIGH WATERMARK",
        "LOG END",
        "SEGMENTS",
        "SIZE",
        "STATE",
    ];
    let rows: Vec<_> = shards.iter().map(row).collect();
    table(out, &headings, &rows)?;
    Ok(())
}

/// The node that leads; `-`: none does.
pub(super) fn leader(shard: &ShardStatus) -> String {
    if shard.leader_node_id == 0 { "-".to_owned() } else { shard.leader_node_id.to_string() }
}

/// Nodes that hold a replica; `+` marks those that do not vote yet.
pub(super) fn replicas(shard: &ShardStatus) -> String {
    let is_learner = |node: u64| shard.replicas.iter().any(|replica| replica.node_id == node && replica.learner);
    let mut nodes = shard.replica_node_ids.clone();
    // On their way here, or on their way out.
    nodes.extend(
        shard.replicas.iter().map(|replica| replica.node_id).filter(|node| !shard.replica_node_ids.contains(node)),
    );
    let texts: Vec<_> =
        nodes.into_iter().map(|node| format!("{node}{}", if is_learner(node) { "+" } else { "" })).collect();
    texts.join(" ")
}

/// Records that replicas lack, by node; `?` for those that did not say.
pub(super) fn lag(shard: &ShardStatus) -> String {
    let mut texts: Vec<String> = shard
        .replicas
        .iter()
        .filter(|replica| replica.lag > 0 || replica.lag_unknown)
        .map(|replica| match replica.lag_unknown {
            true => format!("{}:?", replica.node_id),
            false => format!("{}:{}", replica.node_id, replica.lag),
        })
        .collect();
    let has_said = |node: &u64| shard.replicas.iter().any(|replica| replica.node_id == *node);
    texts.extend(shard.replica_node_ids.iter().filter(|node| !has_said(node)).map(|node| format!("{node}:?")));
    if texts.is_empty() { "0".to_owned() } else { texts.join(" ") }
}

/// How many replicas a shard has of those that its topic wants, if that is fewer.
pub(super) fn short(shard: &ShardStatus, wanted: u32) -> Option<String> {
    let have = shard.replica_node_ids.len();
    (have < wanted as usize).then(|| format!("want {wanted}, have {have}"))
}

/// What is wrong with the shard, or with replicas of it; and how many it lacks of those that its topic wants.
pub(super) fn state(shard: &ShardStatus, wanted: u32) -> String {
    let short = short(shard, wanted).map(|short| format!(" ({short})")).unwrap_or_default();
    format!("{}{short}", condition(shard))
}

fn condition(shard: &ShardStatus) -> String {
    let mut faults: Vec<String> = Vec::new();
    if !shard.fault.is_empty() {
        faults.push(shard.fault.clone());
    }
    let replicas = shard.replicas.iter().filter(|replica| !replica.fault.is_empty() && replica.fault != shard.fault);
    faults.extend(replicas.map(|replica| format!("node {}: {}", replica.node_id, replica.fault)));
    let stalled = shard.replicas.iter().filter(|replica| replica.fault.is_empty() && !replica.stalled.is_empty());
    faults.extend(stalled.map(|replica| format!("node {}: {}", replica.node_id, replica.stalled)));
    if shard.leader_node_id == 0 && faults.is_empty() {
        return "no leader".to_owned();
    }
    if faults.is_empty() { "serving".to_owned() } else { faults.join("; ") }
}

pub(super) fn topic_json(topic: &Topic) -> Value {
    let config = topic.config.unwrap_or_default();
    let retention = config.retention.unwrap_or_default();
    json!({
        "name": topic.name,
        "topic_id": topic.topic_id,
        "shards": topic.shards,
        "replication_factor": topic.replication_factor,
        "retention_bytes_max": retention.bytes_max,
        "retention_age_ms_max": retention.age_ms_max,
        "segment_bytes": config.segment_bytes,
        "created_us": topic.created_us,
    })
}

pub(super) fn shard_json(shard: &ShardStatus) -> Value {
    let replica = |replica: &ReplicaStatus| {
        json!({
            "node_id": replica.node_id,
            "fault": replica.fault,
            "stalled": replica.stalled,
            "log_start": replica.log_start,
            "high_watermark": replica.high_watermark,
            "log_end": replica.log_end,
            "lag": if replica.lag_unknown { Value::Null } else { replica.lag.into() },
            "learner": replica.learner,
            // 64 bits do not survive every JSON reader as a number.
            "chain": format!("{:016x}", replica.chain),
            "applied_end": replica.applied_end,
        })
    };
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
        "replica_node_ids": shard.replica_node_ids,
        "replicas": shard.replicas.iter().map(replica).collect::<Vec<_>>(),
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
            replication_factor: 0,
            retention_bytes,
            retention_age: None,
            segment_bytes,
        };
        assert_eq!(args(None, None).request().config, None);
        let retention = Some(Retention { bytes_max: 0, age_ms_max: 0 });
        assert_eq!(args(Some(0), None).request().config, Some(TopicConfig { retention, segment_bytes: 0 }));
        assert_eq!(args(None, Some(1)).request().config, Some(TopicConfig { retention: None, segment_bytes: 1 }));
    }

    /// What a shard's line says of its replicas: who lags, who is on the way, who did not say, what is wrong.
    #[test]
    fn replicas_for_people() {
        let replica = |node_id, lag| ReplicaStatus { node_id, lag, ..ReplicaStatus::default() };
        let learner = ReplicaStatus { learner: true, ..replica(4, 7) };
        let mut shard = ShardStatus {
            leader_node_id: 1,
            replica_node_ids: vec![1, 2, 3],
            replicas: vec![replica(1, 0), replica(2, 15), learner],
            ..ShardStatus::default()
        };
        assert_eq!((replicas(&shard), lag(&shard)), ("1 2 3 4+".to_owned(), "2:15 4:7 3:?".to_owned()));
        assert_eq!((state(&shard, 3), state(&shard, 5)), ("serving".into(), "serving (want 5, have 3)".into()));
        shard.replicas[1].fault = "the disk failed".to_owned();
        shard.replicas[1].lag_unknown = true;
        assert_eq!((lag(&shard), state(&shard, 3)), ("2:? 4:7 3:?".into(), "node 2: the disk failed".into()));
        assert_eq!(shard_json(&shard)["replicas"][1]["lag"], Value::Null);
        assert_eq!(shard_json(&shard)["replicas"][2]["lag"], 7);
        let alone = ShardStatus { replica_node_ids: vec![1], replicas: vec![replica(1, 0)], ..ShardStatus::default() };
        assert_eq!((lag(&alone), state(&alone, 1)), ("0".to_owned(), "no leader".to_owned()));
    }
}
