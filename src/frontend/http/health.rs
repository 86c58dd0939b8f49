//! `/livez`, `/readyz` and `/metrics`.
//!
//! Live: every reactor answers; if one does not, a restart is the cure. Ready: recovered, not
//! shutting down, and at least one shard serves; what does not is listed.

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
    ids::ReactorNumber,
    observe,
    peer::clocks::Difference,
    reactor::{
        ReactorError,
        mailbox::Request,
        node::{Node, Phase},
    },
};

/// A reactor that does not answer for so long is stuck; its longest task is far below this.
const ANSWER_MAX: Duration = Duration::from_secs(5);

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
    let ready = node.is_serving();
    let page = json!({
        "ready": ready,
        "phase": phase,
        "shards": node.shard_count(),
        "shards_faulted": faults.len(),
        "faults": shown,
        "clock": clock(node).map(|clock| json!({"ahead_ms": clock.ahead_us / 1_000, "differs": clock.differs})),
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
    let page = observe::metrics().render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
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
        record_memory(number, &reactor.memory, reactor.mailbox.bytes());
    }
}

fn record_memory(reactor: usize, memory: &Usage, mailbox: usize) {
    let labels = [("reactor", reactor.to_string())];
    metrics::gauge!("ringlog_memory_limit_bytes", &labels).set(memory.bytes_max() as f64);
    metrics::gauge!("ringlog_memory_peak_bytes", &labels).set(memory.peak() as f64);
    let uses = Use::ALL.map(|usage| (usage.name(), memory.used_for(usage)));
    for (usage, bytes) in uses.into_iter().chain([("tail", memory.tail()), ("mailbox", mailbox)]) {
        let labels = [("reactor", reactor.to_string()), ("use", usage.to_owned())];
        metrics::gauge!("ringlog_memory_bytes", &labels).set(bytes as f64);
    }
}
