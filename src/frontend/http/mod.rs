//! JSON over HTTP, health pages and metrics, on the ops thread.
//!
//! | | |
//! |---|---|
//! | `POST /v1/topics/{topic}/records` | append: `{"records": [{"value_text": "hi"}]}` |
//! | `GET /v1/topics/{topic}/shards/{shard}/records` | read: `?offset=` or `?timestamp_us=` or `?position=earliest\|latest`, `max_records`, `max_bytes`, `wait_ms`, `min_offset`, `linearizable`, `text` |
//! | `POST /v1/topics/{topic}/shards/{shard}/trim` | `{"before_offset": 7}` |
//! | `GET /v1/topics`, `GET, PUT, POST, DELETE /v1/topics/{topic}` | list, describe, create (two ways), delete |
//! | `GET /v1/servers` | the topology; `?topic=` for one topic |
//! | `GET /v1/cluster` | nodes with their health, and where every shard is |
//! | `POST /v1/cluster/join-tokens` | `{"valid_s": 3600, "uses": 1}`; both may be left out |
//! | `POST /v1/cluster/nodes/{node}/drain`, `DELETE /v1/cluster/nodes/{node}` | `{"undo": true}`; `?dead=true` |
//! | `POST /v1/cluster/rebalance` | `{"dry_run": true}` |
//! | `POST /v1/topics/{topic}/shards/{shard}/leader` | `{"to_node_id": 2}`; any other replica if left out |
//! | `GET /livez`, `/readyz`, `/metrics` | health, with reasons; Prometheus |
//!
//! Bodies are `application/json`: a web page cannot send that to somebody's local server unasked.
//! Errors are `{code, reason, message, definite, retry_after_ms}`. Nothing here touches a log; every
//! call is a message to a reactor. Memory is bounded: connections, and bytes of bodies being read.

mod cluster;
mod health;
pub mod json;
mod socket;

use std::{future::Future, net::TcpListener, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, Request, State, rejection::PathRejection, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use prost::Message;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::Semaphore;

use self::{
    json::{
        AckOut, ConsumedOut, CreateTopicBody, DescribedOut, ErrorOut, ProduceBody, ServersOut, TopicOut, TopicsOut,
        TrimBody, TrimOut,
    },
    socket::Sockets,
};
use crate::{
    format::records::Records,
    frontend::{CallError, Code, ConsumeCall, ProduceCall, Remote},
    ids::Offset,
    proto::ringlog::v1 as proto,
    shard::{Consume, Start},
};

/// JSON bytes for one message byte: base64 takes 4/3, escaped text more; a message that needs more
/// than this is refused although its records would fit.
const JSON_BYTES_PER_MESSAGE_BYTE: usize = 2;

/// Bytes of all bodies that are being read and answered; `RESOURCE_EXHAUSTED` above it.
const BODIES_BYTES_MAX: usize = 64 << 20;

/// Longest time to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

type Result<T> = std::result::Result<T, CallError>;

#[derive(Clone)]
struct Api {
    remote: Remote,
    /// Permits are KiB of bodies.
    bodies: Arc<Semaphore>,
    started: std::time::Instant,
}

/// Serves HTTP until `stop` resolves, then finishes the requests in flight.
///
/// # Errors
/// When the socket cannot be registered with the runtime.
pub async fn serve(
    listener: TcpListener,
    remote: Remote,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let sockets = Sockets::new(tokio::net::TcpListener::from_std(listener)?);
    axum::serve(sockets, router(remote)).with_graceful_shutdown(stop).await
}

fn router(remote: Remote) -> Router {
    #[allow(clippy::disallowed_methods, reason = "uptime, in the real world")]
    let started = std::time::Instant::now();
    let api = Api { remote, bodies: Arc::new(Semaphore::new(BODIES_BYTES_MAX >> 10)), started };
    Router::new()
        .route("/v1/topics/{topic}/records", post(produce))
        .route("/v1/topics/{topic}/shards/{shard}/records", get(consume))
        .route("/v1/topics/{topic}/shards/{shard}/trim", post(trim))
        .route("/v1/topics", get(list_topics))
        .route("/v1/topics/{topic}", get(describe).put(create).post(create).delete(delete))
        .route("/v1/topics/{topic}/shards/{shard}/leader", post(cluster::transfer_leader))
        .route("/v1/servers", get(servers))
        .route("/v1/cluster", get(cluster::describe))
        .route("/v1/cluster/join-tokens", post(cluster::create_join_token))
        .route("/v1/cluster/nodes/{node}/drain", post(cluster::drain_node))
        .route("/v1/cluster/nodes/{node}", axum::routing::delete(cluster::remove_node))
        .route("/v1/cluster/rebalance", post(cluster::rebalance))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .fallback(no_page)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
}

async fn produce(
    State(api): State<Api>,
    topic: std::result::Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<AckOut>> {
    let Path(topic) = topic.map_err(bad_path)?;
    let limits = api.remote.limits();
    let (body, _permit) = api.read_body(request, true).await?;
    let message = parse::<ProduceBody>(&body)?.into_request(topic)?.encode_to_vec();
    drop(body);
    if message.len() > limits.message_bytes_max {
        return Err(too_large(limits.message_bytes_max));
    }
    let (head, records) = Records::parse(message.into(), limits.record_bytes_max)?;
    let ack = api.remote.produce(ProduceCall { head, records, deadline_us: None }).await?;
    Ok(Json(ack.into()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsumeQuery {
    offset: Option<u64>,
    timestamp_us: Option<i64>,
    position: Option<PositionName>,
    #[serde(default)]
    max_records: u32,
    #[serde(default)]
    max_bytes: u32,
    #[serde(default)]
    wait_ms: u32,
    min_offset: Option<u64>,
    #[serde(default)]
    linearizable: bool,
    #[serde(default)]
    text: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum PositionName {
    Earliest,
    Latest,
}

impl ConsumeQuery {
    fn start(&self) -> Result<Start> {
        match (self.offset, self.timestamp_us, &self.position) {
            (None, None, None | Some(PositionName::Earliest)) => Ok(Start::Earliest),
            (None, None, Some(PositionName::Latest)) => Ok(Start::Latest),
            (Some(offset), None, None) => Ok(Start::Offset(Offset(offset))),
            (None, Some(timestamp_us), None) => Ok(Start::Timestamp(timestamp_us)),
            _ => Err(CallError::invalid("START_AMBIGUOUS", "give one of offset, timestamp_us and position")),
        }
    }
}

async fn consume(
    State(api): State<Api>,
    path: std::result::Result<Path<(String, u32)>, PathRejection>,
    query: std::result::Result<Query<ConsumeQuery>, QueryRejection>,
) -> Result<Json<ConsumedOut>> {
    let Path((topic, shard)) = path.map_err(bad_path)?;
    let Query(query) = query.map_err(bad_query)?;
    let consume = Consume {
        start: query.start()?,
        records_max: query.max_records.into(),
        bytes_max: query.max_bytes as usize,
        wait: Duration::from_millis(query.wait_ms.into()),
        min_offset: query.min_offset.map(Offset),
        linearizable: query.linearizable,
        deadline_us: None,
    };
    let consumed = api.remote.consume(ConsumeCall { topic, shard, consume }).await?;
    // The chunks are encoded `records` fields: together they are a message already.
    let mut response = proto::ConsumeResponse {
        next_offset: consumed.next_offset.0,
        log_start: consumed.log_start.0,
        high_watermark: consumed.high_watermark.0,
        ..Default::default()
    };
    for chunk in consumed.chunks {
        response.merge(chunk).map_err(|error| {
            CallError::new(Code::Internal, "RECORDS_UNREADABLE", format!("stored records cannot be decoded: {error}"))
        })?;
    }
    Ok(Json(ConsumedOut::new(response, query.text)))
}

async fn trim(
    State(api): State<Api>,
    path: std::result::Result<Path<(String, u32)>, PathRejection>,
    request: Request,
) -> Result<Json<TrimOut>> {
    let Path((topic, shard)) = path.map_err(bad_path)?;
    let (body, _permit) = api.read_body(request, true).await?;
    let TrimBody { before_offset } = parse(&body)?;
    Ok(Json(TrimOut { log_start: api.remote.trim_topic(&topic, shard, before_offset).await? }))
}

async fn list_topics(State(api): State<Api>) -> Result<Json<TopicsOut>> {
    Ok(Json(api.remote.list_topics().into()))
}

async fn describe(
    State(api): State<Api>,
    topic: std::result::Result<Path<String>, PathRejection>,
) -> Result<Json<DescribedOut>> {
    let Path(topic) = topic.map_err(bad_path)?;
    Ok(Json(api.remote.describe_topic(&topic).await?.into()))
}

async fn create(
    State(api): State<Api>,
    topic: std::result::Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<(StatusCode, Json<TopicOut>)> {
    let Path(topic) = topic.map_err(bad_path)?;
    let (body, _permit) = api.read_body(request, false).await?;
    let settings = if body.is_empty() { CreateTopicBody::default() } else { parse(&body)? };
    let topic = api.remote.create_topic(settings.into_request(topic)).await?;
    Ok((StatusCode::CREATED, Json(topic.into())))
}

async fn delete(
    State(api): State<Api>,
    topic: std::result::Result<Path<String>, PathRejection>,
) -> Result<Json<serde_json::Value>> {
    let Path(topic) = topic.map_err(bad_path)?;
    api.remote.delete_topic(&topic).await?;
    Ok(Json(serde_json::json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServersQuery {
    topic: Option<String>,
}

async fn servers(
    State(api): State<Api>,
    query: std::result::Result<Query<ServersQuery>, QueryRejection>,
) -> Result<Json<ServersOut>> {
    let Query(ServersQuery { topic }) = query.map_err(bad_query)?;
    Ok(Json(api.remote.get_servers(topic.into_iter().collect()).await?.into()))
}

async fn no_page(request: Request) -> CallError {
    let message = format!("there is no page {}; see /v1/topics, /livez, /readyz, /metrics", request.uri().path());
    CallError::new(Code::NotFound, "PAGE_NOT_FOUND", message)
}

async fn wrong_method(request: Request) -> CallError {
    let message = format!("{} is not a method of {}", request.method(), request.uri().path());
    CallError::new(Code::Unimplemented, "METHOD_NOT_ALLOWED", message)
}

impl Api {
    /// Reads a whole body, within its limit and the budget of all bodies; the budget is held with the permit.
    async fn read_body(&self, request: Request, needed: bool) -> Result<(Bytes, tokio::sync::OwnedSemaphorePermit)> {
        let max = self.remote.limits().message_bytes_max * JSON_BYTES_PER_MESSAGE_BYTE;
        let length =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let bytes = length.unwrap_or(max);
        if bytes > max {
            return Err(too_large(max));
        }
        if (needed || bytes > 0) && !is_json(&request) {
            let message = "the body must be JSON, with the header content-type: application/json";
            return Err(CallError::invalid("NOT_JSON", message));
        }
        let kib = u32::try_from(bytes.div_ceil(1024)).expect("limits are small");
        let permit = Arc::clone(&self.bodies).try_acquire_many_owned(kib).map_err(|_| {
            let message = "too many bodies are being read; retry after a moment";
            CallError::retry(Code::ResourceExhausted, "HTTP_BUSY", message)
        })?;
        #[allow(clippy::disallowed_methods, reason = "sockets are the real world's; nothing to simulate")]
        let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(request.into_body(), max));
        match read.await {
            Ok(Ok(body)) => Ok((body, permit)),
            Ok(Err(_)) if length.is_none() => Err(too_large(max)),
            Ok(Err(error)) => {
                let message = format!("the body could not be read: {error}");
                Err(CallError::invalid("BODY_UNREADABLE", message))
            }
            Err(_) => {
                let message = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
                Err(CallError::new(Code::DeadlineExceeded, "BODY_TOO_SLOW", message))
            }
        }
    }
}

fn is_json(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        CallError::invalid("JSON_INVALID", format!("the body is not the JSON that is expected here: {error}"))
    })
}

fn bad_path(rejection: PathRejection) -> CallError {
    CallError::invalid("PATH_INVALID", rejection.body_text())
}

fn bad_query(rejection: QueryRejection) -> CallError {
    CallError::invalid("QUERY_INVALID", rejection.body_text())
}

fn too_large(max: usize) -> CallError {
    let message = format!("the message is larger than {max} bytes; send the records in several requests");
    CallError::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", message)
}

impl IntoResponse for CallError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(json::http_status(&self)).expect("the table holds HTTP statuses");
        let retry_after = self.retry_after.map(|after| after.as_secs_f64().ceil() as u64);
        let mut response = (status, Json(ErrorOut::from(self))).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
