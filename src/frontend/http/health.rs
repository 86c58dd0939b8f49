//! `/livez`, `/readyz` and `/metrics`.
//!
//! Live: every reactor answers; if one does not, a restart is the cure. Ready: recovered, not
//! shutting down, and at least one shard serves; what does not is listed. A shard serves if its replica here is well and
//! follows a leader that is heard, or is one that hears most of its voters.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::sync::oneshot;

use super::Api;
use crate::{
    budget::{Usage, Use},
    env::{Env, real::RealEnv},
    ids::{NodeId, ReactorNumber, ShardUid},
    observe,
    peer::clocks::Difference,
    proto::ringlog::state::v1::ReplicaStatus,
    reactor::{
        ReactorError,
        forward::ask::own_replicas,
        mailbox::Request,
        node::{Node, Phase},
    },
};

/// A reactor that does not answer for so long is stuck; its longest task is far below this.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How long reactors have to say how their shards are.
const STATUS_MAX: Duration = Duration::from_secs(2);

/// After a full mailbox.
const STATUS_AGAIN: Duration = Duration::from_millis(10);

/// Shards at fault that are listed; the count is exact.
const FAULTS_SHOWN_MAX: usize = 20;

/// Whether every reactor answers.
pub async fn live(State(api): State<Api>) -> Response {
    let node = api.remote.node();
    for number in (0u32..).take(node.reactors.len()).map(ReactorNumber) {
        if !answers(node, number).await {
            let why = format!("reactor {number} has not answered for {} s", ANSWER_MAX.as_secs());
            return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"live": false, "reason": why}))).into_response();
        }
    }
    Json(json!({"live": true})).into_response()
}

async fn answers(node: &Node, number: ReactorNumber) -> bool {
    let (reply, answer) = oneshot::channel();
    match node.send(number, Request::Status { uids: Vec::new(), reply }) {
        Ok(()) => {}
        // Busy, or on its way out: both are signs of life.
        Err(ReactorError::MailboxFull | ReactorError::Stopped { .. }) => return true,
        Err(ReactorError::Shard(_) | ReactorError::NotOpen { .. } | ReactorError::Gone) => return true,
    }
    #[allow(clippy::disallowed_methods, reason = "the ops thread is the real world's")]
    let answered = tokio::time::timeout(ANSWER_MAX, answer).await;
    // A reply that was dropped: the reactor ends.
    answered.is_ok()
}

/// The replicas here, with the reason why one does not serve; `None`: the reactors do not say so in time.
async fn shards(api: &Api) -> Option<Vec<ShardHere>> {
    let node = api.remote.node();
    // Before, the reactors answer nothing; after, shards close one by one.
    if !matches!(node.phase(), Phase::Serving | Phase::Leaving) {
        return Some(Vec::new());
    }
    let said = replicas(node).await?;
    let me = node.identity().map_or(0, |identity| identity.node.0);
    let is_heard = |leader: u64| leader == me || node.liveness.is_alive(NodeId(leader));
    let here = |status: ReplicaStatus| {
        let (topic, shard) = node.topics.shard(ShardUid(status.shard_uid))?;
        let leads = status.leader_node_id == me && !status.no_majority;
        let cause = why_not(&status, is_heard);
        Some(ShardHere { topic: topic.view.name.to_string(), shard, leads, cause, status })
    };
    Some(said.into_iter().filter_map(here).collect())
}

/// The numbers of all replicas here. A mailbox that is full just now belongs to a reactor that is busy, not to a sick one.
#[allow(clippy::disallowed_methods, reason = "the ops thread is the real world's")]
async fn replicas(node: &Node) -> Option<Vec<ReplicaStatus>> {
    let asked = async {
        loop {
            match own_replicas(node, Vec::new()).await {
                Err(ReactorError::MailboxFull) => tokio::time::sleep(STATUS_AGAIN).await,
                said => return said,
            }
        }
    };
    tokio::time::timeout(STATUS_MAX, asked).await.ok()?.ok()
}

struct ShardHere {
    topic: String,
    shard: u32,
    leads: bool,
    /// Why it does not serve.
    cause: Option<String>,
    status: ReplicaStatus,
}

fn why_not(status: &ReplicaStatus, is_heard: impl Fn(u64) -> bool) -> Option<String> {
    if !status.fault.is_empty() {
        return Some(status.fault.clone());
    }
    if status.no_majority {
        return Some("no majority: it leads, and does not hear most of its voters".to_owned());
    }
    match status.leader_node_id {
        0 => Some("no leader is known".to_owned()),
        leader if !is_heard(leader) => Some(format!("no leader: node {leader}, which led, is silent")),
        _ => None,
    }
}

/// Whether the node serves, and what does not.
pub async fn ready(State(api): State<Api>) -> Response {
    let node = api.remote.node();
    let phase = match node.phase() {
        Phase::Starting => "recovering",
        Phase::Serving => "serving",
        Phase::Leaving => "leaving",
        Phase::Draining | Phase::Closing => "shutting down",
    };
    let faults = node.faults();
    let shown = faults.iter().take(FAULTS_SHOWN_MAX);
    let shown: Vec<_> = shown.map(|(uid, cause)| json!({"shard_uid": uid.0, "cause": cause})).collect();
    let shards = shards(&api).await;
    let unserved = || shards.iter().flatten().filter_map(|here| Some((here, here.cause.as_ref()?)));
    let all = shards.as_ref().map(Vec::len);
    let ready = node.is_serving() && all.is_some_and(|all| all == 0 || unserved().count() < all);
    let reasons = unserved().take(FAULTS_SHOWN_MAX);
    let reasons = reasons.map(|(here, cause)| json!({"topic": here.topic, "shard": here.shard, "cause": cause}));
    let page = json!({
        "ready": ready,
        "phase": phase,
        "shards": node.shard_count(),
        "shards_faulted": faults.len(),
        "faults": shown,
        "clock": clock(node).map(|clock| json!({"ahead_ms": clock.ahead_us / 1_000, "differs": clock.differs})),
        // Null: the reactors do not say.
        "shards_unserved": all.map(|_| unserved().count()),
        "unserved": reasons.collect::<Vec<_>>(),
    });
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(page)).into_response()
}

/// How this node's clock stands to the others'; `None` while it knows of none. While it differs nothing is trimmed by age.
fn clock(node: &Node) -> Option<Difference> {
    let me = node.identity()?.node;
    node.liveness.clocks().difference(me, RealEnv::monotonic_us())
}

/// Everything that was measured.
pub async fn metrics(State(api): State<Api>) -> Response {
    observe::record_process(api.started);
    record_node(api.remote.node());
    let mut page = observe::metrics().render();
    write_shards(&mut page, &shards(&api).await.unwrap_or_default());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

/// Gauges by shard: written when they are asked for, so that nothing is kept of shards that have gone.
fn write_shards(page: &mut String, shards: &[ShardHere]) {
    type Value = fn(&ShardHere) -> u64;
    let gauges: [(&str, &str, Value); 6] = [
        ("serving", "Whether it serves: it follows a leader that is heard, or leads and hears most voters", |here| {
            here.cause.is_none().into()
        }),
        ("leading", "Whether it leads and hears most voters", |here| here.leads.into()),
        ("log_start", "First offset kept", |here| here.status.log_start),
        ("high_watermark", "First offset that is not committed, as far as is known here", |here| {
            here.status.high_watermark
        }),
        ("log_end", "Next offset to be written here", |here| here.status.log_end),
        ("size_bytes", "Bytes of its segment files here", |here| here.status.size_bytes),
    ];
    for (name, help, value) in gauges {
        page.push_str(&format!("# HELP ringlog_shard_{name} {help}\n# TYPE ringlog_shard_{name} gauge\n"));
        for here in shards {
            // Topics have no characters that a label would have to escape.
            let (topic, shard, value) = (&here.topic, here.shard, value(here));
            page.push_str(&format!("ringlog_shard_{name}{{topic=\"{topic}\",shard=\"{shard}\"}} {value}\n"));
        }
    }
}

fn record_node(node: &Node) {
    metrics::gauge!("ringlog_ready").set(f64::from(u8::from(node.is_serving())));
    metrics::gauge!("ringlog_topics").set(node.topics.snapshot().len() as f64);
    metrics::gauge!("ringlog_shards_faulted").set(node.fault_count() as f64);
    if let Some(clock) = clock(node) {
        metrics::gauge!("ringlog_clock_ahead_seconds").set(clock.ahead_us as f64 / 1e6);
        metrics::gauge!("ringlog_clock_differs").set(f64::from(u8::from(clock.differs)));
    }
    for (number, reactor) in node.reactors.iter().enumerate() {
        let labels = [("reactor", number.to_string())];
        let connections = &reactor.connections;
        metrics::gauge!("ringlog_connections", &labels).set(connections.open() as f64);
        metrics::counter!("ringlog_connections_accepted_total", &labels).absolute(connections.accepted() as u64);
        metrics::counter!("ringlog_connections_refused_total", &labels).absolute(connections.refused() as u64);
        metrics::gauge!("ringlog_mailbox_requests", &labels).set(reactor.mailbox.len() as f64);
        metrics::gauge!("ringlog_shards", &labels).set(reactor.shards.load(Relaxed) as f64);
        metrics::counter!("ringlog_replicas_mended_total", &labels).absolute(reactor.mended.load(Relaxed) as u64);
        record_memory(number, &reactor.memory, reactor.mailbox.bytes());
    }
}

fn record_memory(reactor: usize, memory: &Usage, mailbox: usize) {
    let labels = [("reactor", reactor.to_string())];
    metrics::gauge!("ringlog_memory_limit_bytes", &labels).set(memory.bytes_max() as f64);
    metrics::gauge!("ringlog_memory_peak_bytes", &labels).set(memory.peak() as f64);
    let uses = Use::ALL.map(|usage| (usage.name(), memory.used_for(usage)));
    let (tail, answers, backlog) = (memory.tail(), memory.answers(), memory.backlog());
    let others = [("tail", tail), ("answers", answers), ("backlog", backlog), ("mailbox", mailbox)];
    for (usage, bytes) in uses.into_iter().chain(others) {
        let labels = [("reactor", reactor.to_string()), ("use", usage.to_owned())];
        metrics::gauge!("ringlog_memory_bytes", &labels).set(bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config, frontend::http::tests::publish, limits::MAILBOX_REQUESTS_MAX, reactor::node::Advertised,
        shard::ShardStatus,
    };

    /// A node with one reactor and one shard.
    fn node() -> Node {
        let anywhere: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
        let (grpc, http) = ("n1:7400".to_owned(), "n1:7480".to_owned());
        let advertised = Advertised { peer_host: "n1".to_owned(), peer_port: 1, grpc, http };
        let node = Node::new(Config::default(), 1, (anywhere, anywhere), advertised);
        publish(&node);
        node
    }

    /// A reactor whose mailbox is full for a moment says how its shards are when it has room again; one whose mailbox stays full
    /// does not say it in time.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "the ops thread is the real world's")]
    fn a_busy_reactor() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let node = node();
            let mailbox = &node.reactors[0].mailbox;
            let fill = || {
                let send = |_| mailbox.send(Request::Status { uids: Vec::new(), reply: oneshot::channel().0 });
                let full = (0..=MAILBOX_REQUESTS_MAX).map(send).find_map(Result::err);
                assert!(matches!(full, Some(ReactorError::MailboxFull)));
            };
            fill();
            assert!(replicas(&node).await.is_none());
            let serve = async {
                tokio::time::sleep(STATUS_MAX / 2).await;
                loop {
                    let mut batch = Vec::new();
                    mailbox.take(&mut batch).await;
                    for request in batch {
                        let Request::Status { uids, reply } = request else { panic!("{request:?}") };
                        // Nobody waits for those that fill it.
                        drop(reply.send(Ok(vec![Some(ShardStatus::default()); uids.len()])));
                    }
                }
            };
            tokio::select! {
                said = replicas(&node) => assert_eq!(said.unwrap().len(), 1),
                () = serve => {}
            }
        });
    }

    /// What serves, and what only looks as if it did.
    #[test]
    fn serving() {
        let led = |leader_node_id| ReplicaStatus { leader_node_id, ..Default::default() };
        let is_heard = |node| node < 3;
        assert_eq!(why_not(&led(1), is_heard), None);
        for (status, words) in [
            (led(0), "no leader is known"),
            (led(3), "node 3, which led, is silent"),
            (ReplicaStatus { no_majority: true, ..led(1) }, "no majority"),
            (ReplicaStatus { fault: "the disk failed".into(), ..led(1) }, "the disk failed"),
        ] {
            let why = why_not(&status, is_heard).unwrap();
            assert!(why.contains(words), "{why}");
        }
    }

    /// Each shard has its gauges, under one head each.
    #[test]
    fn gauges() {
        let here = |shard, cause: Option<&str>| {
            let status = ReplicaStatus { high_watermark: 7, ..Default::default() };
            ShardHere { topic: "t.x".into(), shard, leads: cause.is_none(), cause: cause.map(str::to_owned), status }
        };
        let mut page = String::new();
        write_shards(&mut page, &[here(0, None), here(1, Some("no majority"))]);
        assert_eq!(page.matches("# TYPE").count(), 6);
        for line in [
            "ringlog_shard_serving{topic=\"t.x\",shard=\"0\"} 1",
            "ringlog_shard_serving{topic=\"t.x\",shard=\"1\"} 0",
            "ringlog_shard_leading{topic=\"t.x\",shard=\"1\"} 0",
            "ringlog_shard_high_watermark{topic=\"t.x\",shard=\"0\"} 7",
        ] {
            assert!(page.lines().any(|said| said == line), "{page}");
        }
    }
}
