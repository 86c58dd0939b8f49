//! A cluster of scripted servers for the client's tests: real sockets and real HTTP/2, a log in memory, and whatever goes
//! wrong on request, which a real server does rarely and never on time.

#![allow(clippy::disallowed_methods, reason = "a scripted server listens on a real socket")]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

use crate::{
    client::framed,
    proto::{google::rpc, ringlog::v1},
};

/// What a server does with the next produce request instead of writing it.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Refuses it and ends the stream.
    Refuse(Refusal),
    /// Ends the connection, after it has written the request or not.
    Vanish { written: bool },
    /// Takes it and never answers.
    Silence,
}

#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: i32,
    pub definite: bool,
    pub behind_definite: bool,
    pub retry_after: Option<Duration>,
}

/// What all servers share.
#[derive(Default)]
pub struct World {
    /// By topic, then shard.
    pub logs: BTreeMap<String, Vec<Vec<v1::Record>>>,
    /// Node that leads all shards, and its term.
    pub leader: (u64, u64),
    pub servers: BTreeMap<u64, v1::Server>,
    /// By node.
    pub faults: BTreeMap<u64, VecDeque<Fault>>,
    /// Produce requests that each node got: topic, shard, number of records.
    pub produced: Vec<(u64, String, Option<u32>, usize)>,
    /// Consume streams that each node got: shard, start, min_offset.
    pub consumed: Vec<(u64, u32, Option<v1::consume_stream_request::Start>, Option<u64>)>,
    /// How often topics were deleted and made again: consume streams that began before end with NOT_FOUND.
    pub made_again: u64,
    /// Responses after which a node ends its consume streams.
    pub consume_limit: BTreeMap<u64, usize>,
    /// Unknown topics are made with that many shards.
    pub auto_create: Option<usize>,
    /// Whether WatchServers is served.
    pub can_watch: bool,
}

/// Several servers of one world.
pub struct Servers {
    pub world: Arc<Mutex<World>>,
    changed: watch::Sender<()>,
    running: BTreeMap<u64, JoinSet<()>>,
}

impl Servers {
    /// That many servers, of which node 1 leads, and a topic "t" of so many shards.
    pub async fn start(nodes: u64, shards: usize) -> Servers {
        let mut world = World { leader: (1, 1), can_watch: true, ..World::default() };
        world.logs.insert("t".to_owned(), vec![Vec::new(); shards]);
        let world = Arc::new(Mutex::new(world));
        let mut servers = Servers { world, changed: watch::Sender::new(()), running: BTreeMap::new() };
        for node in 1..=nodes {
            servers.add(node).await;
        }
        servers
    }

    async fn add(&mut self, node: u64) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let grpc_address = listener.local_addr().unwrap().to_string();
        let server = v1::Server { node_id: node, grpc_address, alive: true, reactors: 1, ..v1::Server::default() };
        self.change(|world| drop(world.servers.insert(node, server)));
        let (world, changed) = (Arc::clone(&self.world), self.changed.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (world, changed) = (Arc::clone(&world), changed.clone());
                connections.spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
                    let (vanish, mut vanished) = tokio::sync::mpsc::unbounded_channel();
                    let mut calls = JoinSet::new();
                    loop {
                        tokio::select! {
                            biased;
                            _ = vanished.recv() => return,
                            call = connection.accept() => {
                                let Some(Ok((request, respond))) = call else { return };
                                let call = Call {
                                    node,
                                    world: Arc::clone(&world),
                                    changed: changed.subscribe(),
                                    notify: changed.clone(),
                                    vanish: vanish.clone(),
                                };
                                calls.spawn(call.answer(request, respond));
                            }
                        }
                    }
                });
            }
        });
        self.running.insert(node, tasks);
    }

    /// Changes the world; watchers are told.
    pub fn change(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.world.lock().unwrap());
        self.changed.send_replace(());
    }

    /// A server is gone, without a word.
    pub fn kill(&mut self, node: u64) {
        self.running.remove(&node);
    }

    pub fn address(&self, node: u64) -> String {
        self.world.lock().unwrap().servers[&node].grpc_address.clone()
    }

    /// Values of a shard in the order of their offsets.
    pub fn values(&self, shard: usize) -> Vec<String> {
        let world = self.world.lock().unwrap();
        world.logs["t"][shard].iter().map(|record| String::from_utf8(record.value.to_vec()).unwrap()).collect()
    }

    pub fn fault(&self, node: u64, faults: impl IntoIterator<Item = Fault>) {
        self.world.lock().unwrap().faults.entry(node).or_default().extend(faults);
    }
}

struct Call {
    node: u64,
    world: Arc<Mutex<World>>,
    changed: watch::Receiver<()>,
    notify: watch::Sender<()>,
    vanish: tokio::sync::mpsc::UnboundedSender<()>,
}

/// What becomes of a produce request.
enum Outcome {
    Ack(v1::ProduceResponse),
    Refused(Refusal),
    Silence,
    Gone,
}

impl Call {
    async fn answer(mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let path = request.uri().path().to_owned();
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut out = respond.send_response(head, false).unwrap();
        let mut messages = Messages { body: request.into_body(), buffer: Vec::new() };
        match path.rsplit('/').next().unwrap() {
            "GetServers" => {
                messages.next().await;
                let told = self.topology();
                send(&mut out, &told);
                end(&mut out, 0, None);
            }
            "WatchServers" if self.world.lock().unwrap().can_watch => loop {
                let v1::GetServersResponse { cluster_id, servers, topics } = self.topology();
                send(&mut out, &v1::WatchServersResponse { cluster_id, servers, topics });
                if self.changed.changed().await.is_err() {
                    return;
                }
            },
            "Produce" | "ProduceStream" => self.produce(&mut messages, &mut out).await,
            "ConsumeStream" => self.consume(&mut messages, &mut out).await,
            "Consume" => {
                let request = v1::ConsumeRequest::decode(&messages.next().await.unwrap()[..]).unwrap();
                let next_offset = self.world.lock().unwrap().logs[&request.topic][request.shard as usize].len() as u64;
                send(&mut out, &v1::ConsumeResponse { next_offset, ..v1::ConsumeResponse::default() });
                end(&mut out, 0, None);
            }
            _ => end(&mut out, 12, None),
        }
    }

    fn topology(&self) -> v1::GetServersResponse {
        let world = self.world.lock().unwrap();
        let (leader_node_id, term) = world.leader;
        let replica_node_ids: Vec<u64> = world.servers.keys().copied().collect();
        let topics = world.logs.iter().map(|(topic, shards)| {
            let shards = (0..shards.len()).map(|shard| v1::ShardLeader {
                shard: shard as u32,
                leader_node_id,
                term,
                reactor: 0,
                replica_node_ids: replica_node_ids.clone(),
            });
            v1::TopicShards { topic: topic.clone(), shards: shards.collect() }
        });
        v1::GetServersResponse {
            cluster_id: "scripted".into(),
            servers: world.servers.values().cloned().collect(),
            topics: topics.collect(),
        }
    }

    async fn produce(&self, messages: &mut Messages, out: &mut SendStream<Bytes>) {
        while let Some(message) = messages.next().await {
            let request = v1::ProduceRequest::decode(&message[..]).unwrap();
            match self.write(request) {
                Outcome::Ack(ack) => send(out, &ack),
                Outcome::Refused(refusal) => return end(out, refusal.code, Some(&refusal)),
                Outcome::Silence => std::future::pending().await,
                Outcome::Gone => {
                    self.vanish.send(()).unwrap();
                    std::future::pending().await
                }
            }
        }
        end(out, 0, None);
    }

    fn write(&self, request: v1::ProduceRequest) -> Outcome {
        let mut world = self.world.lock().unwrap();
        let count = request.records.len();
        world.produced.push((self.node, request.topic.clone(), request.shard, count));
        let fault = world.faults.get_mut(&self.node).and_then(VecDeque::pop_front);
        match fault {
            Some(Fault::Refuse(refusal)) => return Outcome::Refused(refusal),
            Some(Fault::Silence) => return Outcome::Silence,
            Some(Fault::Vanish { written: false }) => return Outcome::Gone,
            Some(Fault::Vanish { written: true }) | None => {}
        }
        if !world.logs.contains_key(&request.topic) {
            let not_found = Refusal { code: 5, definite: true, behind_definite: true, retry_after: None };
            let Some(shards) = world.auto_create else { return Outcome::Refused(not_found) };
            world.logs.insert(request.topic.clone(), vec![Vec::new(); shards]);
        }
        let shard = request.shard.unwrap_or(0);
        let log = &mut world.logs.get_mut(&request.topic).unwrap()[shard as usize];
        let base_offset = log.len() as u64;
        for (offset, record) in (base_offset..).zip(request.records) {
            log.push(v1::Record { offset, ..record });
        }
        let (leader, _) = world.leader;
        let address = world.servers[&leader].grpc_address.clone();
        let leader = (leader != self.node).then_some(v1::LeaderHint { node_id: leader, address });
        drop(world);
        self.notify.send_replace(());
        if fault.is_some() {
            return Outcome::Gone;
        }
        let (count, topic) = (count as u32, request.topic);
        Outcome::Ack(v1::ProduceResponse { shard, base_offset, count, topic, leader, ..Default::default() })
    }

    async fn consume(&mut self, messages: &mut Messages, out: &mut SendStream<Bytes>) {
        let request = v1::ConsumeStreamRequest::decode(&messages.next().await.unwrap()[..]).unwrap();
        let (mut left, made_again) = {
            let mut world = self.world.lock().unwrap();
            world.consumed.push((self.node, request.shard, request.start, request.min_offset));
            (world.consume_limit.get(&self.node).copied(), world.made_again)
        };
        let mut next = match request.start {
            Some(v1::consume_stream_request::Start::Offset(offset)) => offset,
            _ => 0,
        };
        let end_offset = if request.max_records == 0 { u64::MAX } else { next + request.max_records };
        loop {
            let log = {
                let world = self.world.lock().unwrap();
                if world.made_again != made_again {
                    let gone = Refusal { code: 5, definite: true, behind_definite: false, retry_after: None };
                    return end(out, 5, Some(&gone));
                }
                world.logs[&request.topic][request.shard as usize].clone()
            };
            // One record in each response.
            for record in log.iter().skip(next as usize) {
                if left == Some(0) {
                    let going = Refusal { code: 14, definite: true, behind_definite: false, retry_after: None };
                    return end(out, 14, Some(&going));
                }
                left = left.map(|left| left - 1);
                next = record.offset + 1;
                let high_watermark = log.len() as u64;
                let response = v1::ConsumeStreamResponse {
                    records: vec![record.clone()],
                    next_offset: next,
                    log_start: 0,
                    high_watermark,
                };
                send(out, &response);
                if next == end_offset {
                    return end(out, 0, None);
                }
            }
            if self.changed.changed().await.is_err() {
                return;
            }
        }
    }
}

struct Messages {
    body: RecvStream,
    buffer: Vec<u8>,
}

impl Messages {
    async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(prefix) = self.buffer.first_chunk::<5>() {
                let length = u32::from_be_bytes(prefix[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + length {
                    let message = self.buffer[5..5 + length].to_vec();
                    self.buffer.drain(..5 + length);
                    return Some(message);
                }
            }
            let data = self.body.data().await?.ok()?;
            self.body.flow_control().release_capacity(data.len()).ok()?;
            self.buffer.extend_from_slice(&data);
        }
    }
}

/// A client that is gone hears nothing.
fn send(out: &mut SendStream<Bytes>, message: &impl Message) {
    drop(out.send_data(framed(message), false));
}

fn end(out: &mut SendStream<Bytes>, code: i32, refusal: Option<&Refusal>) {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.into());
    if let Some(refusal) = refusal {
        let says = |name: &str, value: bool| (name.to_owned(), value.to_string());
        let metadata = [says("definite", refusal.definite), says("behind_definite", refusal.behind_definite)].into();
        let info = rpc::ErrorInfo { reason: "SCRIPTED".into(), domain: "ringlog".into(), metadata };
        let mut details = vec![any("google.rpc.ErrorInfo", &info)];
        if let Some(after) = refusal.retry_after {
            let retry_delay = prost_types::Duration::try_from(after).ok();
            details.push(any("google.rpc.RetryInfo", &rpc::RetryInfo { retry_delay }));
        }
        let status = rpc::Status { code, message: "as scripted".into(), details }.encode_to_vec();
        let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, status);
        trailers.insert("grpc-status-details-bin", encoded.parse().unwrap());
    }
    drop(out.send_trailers(trailers));
}

fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}
