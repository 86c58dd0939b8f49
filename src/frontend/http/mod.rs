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
//! What changes something is `application/json`, and every request is under a name of this node (`guard`): a web page cannot
//! have a browser send that to somebody's local server.
//! Errors are `{code, reason, message, definite, retry_after_ms}`. Nothing here touches a log; every
//! call is a message to a reactor. Connections are bounded (`socket`), and so are the bytes of bodies and answers (`memory`);
//! who holds them up loses them to the others, as does who waits for records, and health is always answered.

mod cluster;
mod guard;
mod health;
pub mod json;
mod memory;
mod socket;

use std::{
    future::Future,
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json, Router,
    body::{Bytes, HttpBody},
    extract::{ConnectInfo, Path, Query, Request, State, rejection::PathRejection, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use prost::Message;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use self::{
    json::{
        AckOut, ConsumedOut, CreateTopicBody, DescribedOut, ErrorOut, ProduceBody, ServersOut, TopicOut, TopicsOut,
        TrimBody, TrimOut,
    },
    memory::{Held, Memory, MemoryLimits},
    socket::{Accepted, Connection, SocketLimits, Sockets},
};
use crate::{
    env::{self, domain},
    format::{records::Records, wire::Wire},
    frontend::{CallError, Code, ConsumeCall, ProduceCall, Remote, TopicRead, remote::checked_consume, route},
    ids::Offset,
    limits::{HTTP_READ_BYTES_MAX, RECORD_BYTES_MAX},
    proto::ringlog::v1 as proto,
    shard::{Consume, Consumed, Start},
};

/// JSON bytes for one message byte: base64 takes 4/3, escaped text more; a message that needs more
/// than this is refused although its records would fit.
const JSON_BYTES_PER_MESSAGE_BYTE: usize = 2;

/// Largest body of a request that has no records.
const SMALL_BODY_BYTES_MAX: usize = 64 << 10;

/// JSON that is made at a time, before others go on.
const PIECE_BYTES: usize = 32 << 10;

/// A part of them. It ends with the head of the answer, when the body's bytes are counted (`memory::counted`).
type Reading = Option<Arc<OwnedSemaphorePermit>>;

type Result<T> = std::result::Result<T, CallError>;

#[derive(Clone)]
struct Api {
    remote: Remote,
    hosts: Arc<guard::Hosts>,
    memory: Memory,
    /// Bytes of answers that may be read at a time.
    reads: Arc<Semaphore>,
    /// Held by whoever reads or makes the JSON of records: one answer takes several times as many bytes as its records do, and others,
    /// such as health, go on between two that take long.
    json_turn: Arc<Mutex<()>>,
    started: Instant,
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
    serve_within(listener, remote, stop, SocketLimits::default(), MemoryLimits::default()).await
}

async fn serve_within(
    listener: TcpListener,
    remote: Remote,
    stop: impl Future<Output = ()> + Send + 'static,
    sockets: SocketLimits,
    memory: MemoryLimits,
) -> std::io::Result<()> {
    let sockets = Sockets::new(tokio::net::TcpListener::from_std(listener)?, sockets, Arc::clone(remote.node()));
    let service = router(remote, Memory::new(memory)).into_make_service_with_connect_info::<Accepted>();
    axum::serve(sockets, service).with_graceful_shutdown(stop).await
}

fn router(remote: Remote, memory: Memory) -> Router {
    #[allow(clippy::disallowed_methods, reason = "uptime, in the real world")]
    let started = Instant::now();
    let hosts = Arc::new(guard::Hosts::of(remote.node()));
    let reads = Arc::new(Semaphore::new(HTTP_READ_BYTES_MAX));
    let api = Api { remote, hosts, memory, reads, json_turn: Arc::default(), started };
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
        .layer(middleware::from_fn_with_state(api.clone(), guard::answer))
        .with_state(api)
        .layer(middleware::from_fn(contained))
}

/// A panic ends the request that it happens in.
async fn contained(request: Request, next: Next) -> Response {
    let answered = domain::contain_call("an HTTP request", next.run(request)).await;
    answered.unwrap_or_else(|panic| {
        let message = format!("a bug ended this request: {panic}; it may have been carried out");
        CallError::new(Code::Internal, "BUG", message).into_response()
    })
}

async fn produce(
    State(api): State<Api>,
    topic: std::result::Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Json<AckOut>> {
    let Path(topic) = topic.map_err(bad_path)?;
    let limits = api.remote.limits();
    let (body, held) = api.read_body(request, limits.message_bytes_max * JSON_BYTES_PER_MESSAGE_BYTE).await?;
    let turn = api.json_turn.lock().await;
    let message = parse::<ProduceBody>(&body).and_then(|body| body.into_message(topic));
    drop(body);
    give_way().await;
    drop(turn);
    let message = message?;
    held.shrink(message.len());
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
    ConnectInfo(Accepted { connection, .. }): ConnectInfo<Accepted>,
    path: std::result::Result<Path<(String, u32)>, PathRejection>,
    query: std::result::Result<Query<ConsumeQuery>, QueryRejection>,
) -> Result<(Extension<Reading>, [(header::HeaderName, &'static str); 1], Vec<u8>)> {
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
        if_small: false,
    };
    let (consumed, reading) = api.read_records(ConsumeCall { topic, shard, consume }, &connection).await?;
    // Who has to go soon has no records.
    let turn = if consumed.count > 0 { Some(api.json_turn.lock().await) } else { None };
    let json = json_of(consumed, query.text).await?;
    drop(turn);
    Ok((Extension(reading), [(header::CONTENT_TYPE, "application/json")], json))
}

/// The JSON of an answer. Others run while a large one is made.
async fn json_of(consumed: Consumed, text: bool) -> Result<Vec<u8>> {
    let (mut answer, mut piece_bytes) = (ConsumedOut::new(text), 0);
    for chunk in consumed.chunks {
        let mut fields = Wire::new(&chunk);
        while !fields.at_end() {
            piece_bytes += answer.push(next_record(&chunk, &mut fields)?);
            if piece_bytes >= PIECE_BYTES {
                piece_bytes = 0;
                give_way().await;
            }
        }
    }
    Ok(answer.end(consumed.next_offset.0, consumed.log_start.0, consumed.high_watermark.0))
}

/// The next record of a chunk of an answer, which is encoded `records` fields.
fn next_record(chunk: &Bytes, fields: &mut Wire<'_>) -> Result<proto::Record> {
    let unreadable = |what| {
        CallError::new(Code::Internal, "RECORDS_UNREADABLE", format!("stored records cannot be decoded: {what}"))
    };
    let mut next = || fields.key().and_then(|_| fields.delimited());
    let record = next().map_err(|error| unreadable(error.what.to_owned()))?;
    proto::Record::decode(chunk.slice_ref(record)).map_err(|error| unreadable(error.to_string()))
}

/// Lets other requests go on, and a reactor that wants this core: a kernel may let a thread that computes run on until the next timer
/// tick (4 ms), whoever else wakes up.
async fn give_way() {
    give_core_away();
    env::yield_now().await;
}

/// Lets another thread have this core if one wants it: see `give_way`.
fn give_core_away() {
    std::thread::yield_now();
}

async fn trim(
    State(api): State<Api>,
    path: std::result::Result<Path<(String, u32)>, PathRejection>,
    request: Request,
) -> Result<Json<TrimOut>> {
    let Path((topic, shard)) = path.map_err(bad_path)?;
    let (body, _held) = api.read_body(request, SMALL_BODY_BYTES_MAX).await?;
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
    let (body, _held) = api.read_body(request, SMALL_BODY_BYTES_MAX).await?;
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
    Ok(Json(api.remote.get_servers(topic.as_slice()).await?.into()))
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
    /// Reads what is there, in turn with others; what has to come first, the shard or a record, it waits for out of turn, and ends that
    /// when its connection loses its place. The second value is to be kept as long as the answer is not counted.
    #[allow(clippy::disallowed_methods, reason = "the ops thread is outside the simulator")]
    async fn read_records(&self, mut call: ConsumeCall, connection: &Connection) -> Result<(Consumed, Reading)> {
        checked_consume(call.consume, self.remote.limits())?;
        let until = Instant::now() + call.consume.wait;
        let topic = TopicRead::default();
        let known = self.remote.find_topic(route::topic_name(&call.topic));
        connection.waits(known).await.ok_or_else(guard::too_many)??;
        let (mut waits, mut has_waited) = (call.wants_view(), false);
        loop {
            if waits {
                let view = connection.waits(self.remote.consume(call.view(), &topic)).await;
                call.has_seen(&view.ok_or_else(guard::too_many)??);
                (waits, has_waited) = (false, true);
            }
            // A record comes whole.
            let bytes = call.wanted_bytes().max(RECORD_BYTES_MAX);
            let reads = Arc::clone(&self.reads);
            let reading = reads.acquire_many_owned(bytes as u32).await.expect("the semaphore is never closed");
            let consumed = match self.remote.consume(call.at_once(call.consume.bytes_max, has_waited), &topic).await {
                // It may be otherwise in a moment, which is waited for out of turn.
                Err(_) if !has_waited => {
                    waits = true;
                    continue;
                }
                result => result?,
            };
            let left = until.saturating_duration_since(Instant::now());
            if consumed.count > 0 || left.is_zero() {
                return Ok((consumed, Some(Arc::new(reading))));
            }
            drop(reading);
            call.go_on(&consumed);
            let later = connection.waits(self.remote.consume(call.when_there(left), &topic)).await;
            // Without its place the wait is over.
            let consumed = later.unwrap_or(Ok(consumed))?;
            if !consumed.leaves_some() {
                return Ok((consumed, None));
            }
            has_waited = false;
        }
    }

    /// Reads a whole body of at most `max` bytes, which are counted as long as what comes with it lives.
    async fn read_body(&self, request: Request, max: usize) -> Result<(Vec<u8>, Held)> {
        let (parts, body) = request.into_parts();
        let announced = body.size_hint().lower();
        if announced > max as u64 {
            return Err(too_large(max));
        }
        let accepted = parts.extensions.get::<ConnectInfo<Accepted>>().expect("every request comes by a connection");
        let connection = &accepted.0.connection;
        let held = self.memory.hold(connection.clone());
        let read = connection.waits(held.read(body, max)).await;
        Ok((read.ok_or_else(guard::too_many)??, held))
    }
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
    let message = format!("the body is larger than {max} bytes; send records in several requests");
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

#[cfg(test)]
mod tests;
