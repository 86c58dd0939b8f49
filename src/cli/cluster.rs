//! `ringlog cluster`: the nodes and where everything is, tokens for new nodes, and moving replicas and leaders.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use clap::Subcommand;
use serde_json::{Value, json};

use super::{
    Failure, OutputForm, ServerArgs,
    output::{human_time, table},
    timeout,
    topic::{lag, leader, replicas, shard_json, state, topic_json},
    verdict,
};
use crate::{
    client::{self, Cluster},
    config,
    frontend::Code,
    proto::ringlog::v1::{
        CreateJoinTokenRequest, DescribeClusterResponse, DrainNodeRequest, NodeState, NodeStatus, RebalanceRequest,
        RemoveNodeRequest, ShardMove, TransferLeaderRequest,
    },
};

/// Between two looks at a drain.
const DRAIN_INTERVAL: Duration = Duration::from_millis(500);

/// `ringlog cluster`.
#[derive(Debug, clap::Args)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
    #[command(flatten)]
    server: ServerArgs,
    /// Form of the result
    #[arg(short, long, value_enum, default_value = "table", global = true)]
    output: OutputForm,
    /// The same as --output json
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show the nodes, the shards, who leads them, and who lags
    Status {
        /// Show it again and again [default interval: 1s]
        #[arg(long, value_name = "TIME", value_parser = timeout, num_args = 0..=1, require_equals = true, default_missing_value = "1s")]
        watch: Option<Duration>,
    },
    /// Say what is wrong with the cluster, if anything is: the exit code is 0 if nothing is, and 1 otherwise
    Health,
    /// Make a token with which new nodes join: a secret, on the standard output
    Token {
        /// How long it can be used, such as 1h
        #[arg(long, value_name = "TIME", default_value = "1d", value_parser = config::milliseconds)]
        valid: u64,
        /// How many nodes may join with it [default: any number]
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        uses: u32,
    },
    /// Move all replicas off a node; `status` shows how far it is
    Drain {
        /// Its id
        node: u64,
        /// Return when nothing is left on it
        #[arg(long)]
        wait: bool,
        /// Also when that leaves topics with fewer replicas than they want
        #[arg(long)]
        force: bool,
    },
    /// Take a drain back
    Undrain {
        /// Its id
        node: u64,
    },
    /// Take a node out for good; it must be drained, or dead
    Remove {
        /// Its id
        node: u64,
        /// It is dead: its replicas are made anew on other nodes
        #[arg(long)]
        dead: bool,
    },
    /// Spread replicas and leaders evenly over the nodes
    Rebalance {
        /// Only say what would move
        #[arg(long)]
        dry_run: bool,
    },
    /// Have another replica lead a shard
    Transfer {
        /// Name of the topic
        topic: String,
        /// Which shard
        #[arg(long, value_name = "N")]
        shard: u32,
        /// Node that shall lead [default: any other replica]
        #[arg(long, value_name = "NODE", default_value_t = 0, hide_default_value = true)]
        to: u64,
    },
}

/// Runs the command.
pub(super) async fn cluster(args: ClusterArgs) -> Result<(), Failure> {
    let cluster = args.server.cluster().await?;
    let json = args.json || args.output == OutputForm::Json;
    match args.command {
        ClusterCommand::Status { watch: None } => {
            let described = describe(&cluster).await?;
            print(&status(&described, json)?)
        }
        ClusterCommand::Status { watch: Some(interval) } => watch(&cluster, interval, json).await,
        ClusterCommand::Health => health(&cluster, json).await,
        ClusterCommand::Token { valid, uses } => token(&cluster, valid, uses, json).await,
        ClusterCommand::Drain { node, wait, force } => {
            let request = DrainNodeRequest { node_id: node, undo: false, force };
            drain(&cluster, request, wait, json).await
        }
        ClusterCommand::Undrain { node } => {
            let request = &DrainNodeRequest { node_id: node, undo: true, force: false };
            cluster.write(|client| async move { client.drain_node(request).await }).await?;
            say(json, json!({ "node_id": node, "state": "active" }), &format!("node {node} is active again"))
        }
        ClusterCommand::Remove { node, dead } => {
            let request = &RemoveNodeRequest { node_id: node, dead };
            let left = cluster.write(|client| async move { client.remove_node(request).await }).await?;
            let text = match left {
                0 => format!("node {node} is removed"),
                _ => format!("node {node} is removed; {left} replicas that it held are made anew on other nodes"),
            };
            say(json, json!({ "node_id": node, "state": "removed", "replicas_left": left }), &text)
        }
        ClusterCommand::Rebalance { dry_run } => rebalance(&cluster, dry_run, json).await,
        ClusterCommand::Transfer { topic, shard, to } => {
            let request = &TransferLeaderRequest { topic: topic.clone(), shard, to_node_id: to };
            let leader = cluster.write(|client| async move { client.transfer_leader(request).await }).await?;
            let value = json!({ "topic": topic, "shard": shard, "leader_node_id": leader });
            say(json, value, &format!("topic {topic} shard {shard} is led by node {leader}"))
        }
    }
}

async fn describe(cluster: &Cluster) -> Result<DescribeClusterResponse, client::ClientError> {
    cluster.read(|client| async move { client.describe_cluster().await }).await
}

async fn health(cluster: &Cluster, json: bool) -> Result<(), Failure> {
    let Health { troubles, notes } = Health::of(&describe(cluster).await?);
    let is_well = troubles.is_empty();
    let printed = if json {
        print(&format!("{}\n", json!({ "healthy": is_well, "troubles": troubles, "notes": notes })))
    } else {
        let lines = troubles.into_iter().chain(notes.into_iter().map(|note| format!("note: {note}")));
        let head = if is_well { "healthy" } else { "not healthy" };
        print(&std::iter::once(head.to_owned()).chain(lines).map(|line| line + "\n").collect::<String>())
    };
    verdict(is_well, printed)
}

/// What is wrong with a cluster, and what is as it has to be with so few nodes.
struct Health {
    troubles: Vec<String>,
    notes: Vec<String>,
}

impl Health {
    fn of(described: &DescribeClusterResponse) -> Health {
        let mut health = Health { troubles: Vec::new(), notes: Vec::new() };
        if described.catalog_leader_node_id == 0 {
            health.troubles.push("the catalog has no leader that most of its voters hear".to_owned());
        }
        for node in described.nodes.iter().filter(|node| node.state() != NodeState::Removed) {
            if !node.alive {
                health.troubles.push(format!("node {} is silent", node.node_id));
            } else if !node.fault.is_empty() {
                health.troubles.push(format!("node {}: {}", node.node_id, node.fault));
            }
            if !node.catalog_fault.is_empty() {
                health.troubles.push(format!("node {}, the catalog: {}", node.node_id, node.catalog_fault));
            }
        }
        let active = described.nodes.iter().filter(|node| node.state() == NodeState::Active).count();
        for status in &described.topics {
            let topic = status.topic.clone().unwrap_or_default();
            for shard in &status.shards {
                let (name, number, have) = (&topic.name, shard.shard, shard.replica_node_ids.len());
                let state = state(shard, topic.replication_factor);
                if state == "serving" {
                    continue;
                }
                let line = format!("topic {name} shard {number}: {state}");
                // All that the nodes can hold, and nothing else.
                let is_note = state.starts_with("serving") && have >= active;
                let list = if is_note { &mut health.notes } else { &mut health.troubles };
                list.push(line);
            }
        }
        health
    }
}

#[allow(clippy::disallowed_methods, reason = "the CLI is not part of the simulated world")]
async fn watch(cluster: &Cluster, interval: Duration, json: bool) -> Result<(), Failure> {
    let clear = if !json && io::stdout().is_terminal() { "\x1b[H\x1b[2J\x1b[3J" } else { "" };
    loop {
        let text = match describe(cluster).await {
            Ok(described) => status(&described, json)?,
            // A cluster that is being broken on purpose is what a watcher wants to see.
            Err(error) if json => format!("{}\n", json!({ "error": error.to_string() })),
            Err(error) => format!("{error}\n"),
        };
        print(&format!("{clear}{text}"))?;
        if !json && clear.is_empty() {
            print("\n")?;
        }
        tokio::time::sleep(interval).await;
    }
}

async fn token(cluster: &Cluster, valid_ms: u64, uses: u32, json: bool) -> Result<(), Failure> {
    let valid_s = u32::try_from(valid_ms.div_ceil(1_000)).unwrap_or(u32::MAX);
    if valid_s == 0 {
        return Err(Failure::Message("a token must be valid for some time: raise --valid".to_owned()));
    }
    let request = &CreateJoinTokenRequest { valid_s, uses };
    let made = cluster.write(|client| async move { client.create_join_token(request).await }).await?;
    if !json {
        // The token alone goes to stdout, so that a script can take it.
        let times = if uses == 0 { "any number of nodes".to_owned() } else { format!("{uses} node(s)") };
        let note = format!("lets {times} join until {}; keep it secret\n", human_time(made.expires_us));
        drop(io::stderr().write_all(note.as_bytes()));
    }
    say(json, json!({ "token": made.token, "expires_us": made.expires_us, "uses": uses }), &made.token)
}

#[allow(clippy::disallowed_methods, reason = "the CLI is not part of the simulated world")]
async fn drain(cluster: &Cluster, request: DrainNodeRequest, wait: bool, json: bool) -> Result<(), Failure> {
    let (node, request) = (request.node_id, &request);
    let mut left = cluster.write(|client| async move { client.drain_node(request).await }).await?;
    while wait && left > 0 {
        tokio::time::sleep(DRAIN_INTERVAL).await;
        let described = describe(cluster).await?;
        let status = described.nodes.iter().find(|status| status.node_id == node);
        let Some(status) = status.filter(|status| status.state() == NodeState::Draining) else {
            return Err(Failure::Message(format!("node {node} does not drain any more: somebody took that back")));
        };
        left = status.replicas;
    }
    let text = match left {
        0 => format!(
            "nothing is left on node {node}: it can be stopped, and removed with `ringlog cluster remove {node}`"
        ),
        _ => format!("node {node} drains: {left} replicas are on it; `ringlog cluster status` shows how it goes"),
    };
    say(json, json!({ "node_id": node, "state": "draining", "replicas": left }), &text)
}

async fn rebalance(cluster: &Cluster, dry_run: bool, json: bool) -> Result<(), Failure> {
    let request = &RebalanceRequest { dry_run };
    let moves = cluster.write(|client| async move { client.rebalance(request).await }).await?;
    if json {
        let moves: Vec<_> = moves
            .iter()
            .map(|ShardMove { topic, shard, from_node_ids, to_node_ids }| {
                json!({
                    "topic": topic, "shard": shard, "from_node_ids": from_node_ids, "to_node_ids": to_node_ids,
                })
            })
            .collect();
        return print(&format!("{}\n", json!({ "dry_run": dry_run, "moves": moves })));
    }
    print(&moves_text(&moves)?)
}

/// What a rebalance moves, for people.
fn moves_text(moves: &[ShardMove]) -> Result<String, Failure> {
    if moves.is_empty() {
        // Whether all is even is not said: the servers tell only what they would move.
        let left_alone = "shards that are moving already, and those on nodes that drain, are left alone";
        return Ok(format!("nothing is to be moved now ({left_alone})\n"));
    }
    let rows: Vec<_> = moves
        .iter()
        .map(|moved| {
            vec![
                moved.topic.clone(),
                moved.shard.to_string(),
                numbers(&moved.from_node_ids),
                numbers(&moved.to_node_ids),
            ]
        })
        .collect();
    let mut text = Vec::new();
    table(&mut text, &["TOPIC", "SHARD", "FROM NODES", "TO NODES"], &rows)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The state of everything, for people or as one line of JSON.
fn status(described: &DescribeClusterResponse, json: bool) -> Result<String, Failure> {
    if json {
        return Ok(format!("{}\n", status_json(described)));
    }
    let DescribeClusterResponse { cluster_id, nodes, topics, catalog_leader_node_id, catalog_voter_node_ids } =
        described;
    let led = match catalog_leader_node_id {
        0 => "has no leader that most of its voters hear".to_owned(),
        node => format!("is led by node {node}"),
    };
    let mut text = Vec::new();
    let voters = numbers(catalog_voter_node_ids);
    writeln!(text, "cluster {cluster_id}: the catalog {led}, its voters are {voters}\n")?;
    let rows: Vec<_> = nodes.iter().map(node_row).collect();
    let headings = ["NODE", "STATE", "HEALTH", "GRPC", "HTTP", "PEERS", "REACTORS", "REPLICAS", "LEADERS", "FAULT"];
    table(&mut text, &headings, &rows)?;
    let mut rows = Vec::new();
    for topic in topics {
        let name = topic.topic.as_ref().map_or("?", |topic| &topic.name);
        rows.extend(topic.shards.iter().map(|shard| {
            let wanted = topic.topic.as_ref().map_or(0, |topic| topic.replication_factor);
            let term = shard.term.to_string();
            let high_watermark = shard.high_watermark.to_string();
            let (replicas, lag, state) = (replicas(shard), lag(shard), state(shard, wanted));
            vec![name.to_owned(), shard.shard.to_string(), leader(shard), term, replicas, high_watermark, lag, state]
        }));
    }
    writeln!(text)?;
    table(&mut text, &["TOPIC", "SHARD", "LEADER", "TERM", "REPLICAS", "HIGH WATERMARK", "LAG", "STATE"], &rows)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn node_row(node: &NodeStatus) -> Vec<String> {
    let health = if node.alive { "alive" } else { "dead" };
    vec![
        node.node_id.to_string(),
        state_name(node.state()).to_owned(),
        if node.state() == NodeState::Removed { "-" } else { health }.to_owned(),
        node.grpc_address.clone(),
        node.http_address.clone(),
        node.peer_address.clone(),
        node.reactors.to_string(),
        node.replicas.to_string(),
        node.leaders.to_string(),
        if node.fault.is_empty() { &node.catalog_fault } else { &node.fault }.clone(),
    ]
}

fn state_name(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified => "unknown",
        NodeState::Active => "active",
        NodeState::Draining => "draining",
        NodeState::Removed => "removed",
    }
}

fn status_json(described: &DescribeClusterResponse) -> Value {
    let node = |node: &NodeStatus| {
        json!({
            "node_id": node.node_id,
            "state": state_name(node.state()),
            "alive": node.alive,
            "grpc_address": node.grpc_address,
            "http_address": node.http_address,
            "peer_address": node.peer_address,
            "reactors": node.reactors,
            "replicas": node.replicas,
            "leaders": node.leaders,
            "fault": node.fault,
            "catalog_fault": node.catalog_fault,
        })
    };
    let topics = described.topics.iter().map(|status| {
        let mut value = topic_json(&status.topic.clone().unwrap_or_default());
        value["shard_status"] = status.shards.iter().map(shard_json).collect();
        value
    });
    json!({
        "cluster_id": described.cluster_id,
        "catalog_leader_node_id": described.catalog_leader_node_id,
        "catalog_voter_node_ids": described.catalog_voter_node_ids,
        "nodes": described.nodes.iter().map(node).collect::<Vec<_>>(),
        "topics": topics.collect::<Vec<_>>(),
    })
}

fn numbers(numbers: &[u64]) -> String {
    let texts: Vec<_> = numbers.iter().map(u64::to_string).collect();
    texts.join(" ")
}

fn say(json: bool, value: Value, text: &str) -> Result<(), Failure> {
    print(&if json { format!("{value}\n") } else { format!("{text}\n") })
}

fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// A cluster's status as `client` got it; `frontend::Code` says why not. Used to wait for a cluster to be there.
pub(super) fn is_not_there_yet(error: &client::ClientError) -> bool {
    !matches!(error.code(), Some(Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::ringlog::v1::{ReplicaStatus, ShardStatus, Topic, TopicStatus};

    fn described() -> DescribeClusterResponse {
        let node = |node_id, alive| NodeStatus {
            node_id,
            state: NodeState::Active.into(),
            alive,
            grpc_address: format!("127.0.0.1:{}", 7400 + node_id),
            ..NodeStatus::default()
        };
        let replica = |node_id, lag| ReplicaStatus { node_id, lag, ..ReplicaStatus::default() };
        let shard = ShardStatus {
            leader_node_id: 1,
            term: 4,
            high_watermark: 100,
            replica_node_ids: vec![1, 2],
            replicas: vec![replica(1, 0), replica(2, 3)],
            ..ShardStatus::default()
        };
        let topic = Some(Topic { name: "orders".into(), shards: 1, replication_factor: 2, ..Topic::default() });
        DescribeClusterResponse {
            cluster_id: "c0ffee".into(),
            nodes: vec![node(1, true), node(2, false)],
            topics: vec![TopicStatus { topic, shards: vec![shard] }],
            catalog_leader_node_id: 1,
            catalog_voter_node_ids: vec![1],
        }
    }

    /// A look shows who is dead, who leads, and who lags.
    #[test]
    fn for_people() {
        let text = status(&described(), false).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "cluster c0ffee: the catalog is led by node 1, its voters are 1");
        assert!(lines[3].contains("alive") && lines[4].contains("dead"), "{text}");
        let words: Vec<&str> = lines[7].split_whitespace().collect();
        assert_eq!(words, ["orders", "0", "1", "4", "1", "2", "100", "2:3", "serving"]);
    }

    /// Whatever is not as it has to be is a trouble; fewer replicas than wanted are none where there are no more nodes.
    #[test]
    fn health() {
        let mut cluster = described();
        cluster.nodes[1].alive = true;
        let troubles = |cluster: &DescribeClusterResponse| Health::of(cluster).troubles;
        assert_eq!(troubles(&cluster), Vec::<String>::new());
        let topic = |cluster: &mut DescribeClusterResponse, factor| {
            cluster.topics[0].topic.as_mut().unwrap().replication_factor = factor;
        };
        topic(&mut cluster, 3);
        let Health { troubles: none, notes } = Health::of(&cluster);
        assert_eq!((none.len(), &*notes), (0, &["topic orders shard 0: serving (want 3, have 2)".to_owned()][..]));
        cluster.nodes.push(NodeStatus { node_id: 3, ..cluster.nodes[0].clone() });
        assert_eq!(troubles(&cluster), notes);
        topic(&mut cluster, 2);
        cluster.nodes[1].alive = false;
        cluster.nodes[2].catalog_fault = "it has stopped".into();
        cluster.catalog_leader_node_id = 0;
        let shard = &mut cluster.topics[0].shards[0];
        (shard.leader_node_id, shard.fault) = (0, "no majority: so it is".into());
        let wanted = [
            "the catalog has no leader that most of its voters hear",
            "node 2 is silent",
            "node 3, the catalog: it has stopped",
            "topic orders shard 0: no majority: so it is",
        ];
        assert_eq!(troubles(&cluster), wanted);
    }

    /// Without a move nothing is said of what the servers did not look at.
    #[test]
    fn moves() {
        let text = moves_text(&[]).unwrap();
        assert!(text.contains("moving already") && text.contains("drain") && !text.contains("evenly"), "{text}");
        let moved = ShardMove { topic: "orders".into(), shard: 3, from_node_ids: vec![1, 2], to_node_ids: vec![2, 4] };
        let text = moves_text(&[moved]).unwrap();
        assert_eq!(
            text.lines().last().unwrap().split_whitespace().collect::<Vec<_>>(),
            ["orders", "3", "1", "2", "2", "4"]
        );
    }

    /// The JSON is one line, and says the same.
    #[test]
    fn for_programs() {
        let text = status(&described(), true).unwrap();
        assert_eq!(text.lines().count(), 1);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["nodes"][1]["alive"], false);
        assert_eq!(value["topics"][0]["shard_status"][0]["replicas"][1]["lag"], 3);
    }
}
