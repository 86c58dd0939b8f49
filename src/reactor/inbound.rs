//! What other nodes ask of this reactor: Raft for its groups, and requests that clients gave to nodes which could not do
//! them. Requests are done here or refused, never sent on again: so none goes in a circle.

mod produce;

use std::{cell::OnceCell, rc::Rc};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use prost::Message;

use crate::{
    env::{self, Env},
    ids::{NodeId, Offset, ShardUid},
    limits::{LEADER_WAIT, RETRY_AFTER},
    peer::{
        Handler,
        frame::{Frame, FrameKind, FrameStream, Received},
    },
    proto::ringlog::state::v1::{
        ControlReply, ControlRequest, Done, MoveLeader, PeerRefusal, ShardStatusReply, ShardStatusRequest, TrimReply,
        TrimShard, control_reply, control_request,
    },
    raft,
    reactor::{
        Reactor, ReactorError,
        forward::{ask, wire},
        mailbox::{AdminCall, AdminReply},
    },
    shard::{Shard, ShardError},
};

/// A control request on its way to its reply.
pub type ControlFuture = LocalBoxFuture<'static, ControlReply>;

type CatalogStreams<E> = Rc<dyn Fn(NodeId, Received, FrameStream<E>)>;
type ControlRequests = Rc<dyn Fn(NodeId, control_request::Request) -> ControlFuture>;
type Datagrams = Rc<dyn Fn(NodeId, Bytes)>;
type Admin = Rc<dyn Fn(AdminCall, AdminReply)>;

/// Who answers what a reactor cannot answer itself. Each is set once; what comes before that is refused.
pub struct Hooks<E: Env> {
    catalog_streams: OnceCell<CatalogStreams<E>>,
    control_requests: OnceCell<ControlRequests>,
    datagrams: OnceCell<Datagrams>,
    admin: OnceCell<Admin>,
}

impl<E: Env> Default for Hooks<E> {
    fn default() -> Hooks<E> {
        Hooks {
            catalog_streams: OnceCell::new(),
            control_requests: OnceCell::new(),
            datagrams: OnceCell::new(),
            admin: OnceCell::new(),
        }
    }
}

impl<E: Env> Hooks<E> {
    /// Raft streams for the catalog's group go there. Must not block.
    pub fn set_catalog_streams(&self, streams: impl Fn(NodeId, Received, FrameStream<E>) + 'static) {
        assert!(self.catalog_streams.set(Rc::new(streams)).is_ok(), "there is one catalog");
    }

    /// Control requests that are not about a shard of this reactor (`propose`, `join`) go there.
    pub fn set_control_requests(&self, requests: impl Fn(NodeId, control_request::Request) -> ControlFuture + 'static) {
        assert!(self.control_requests.set(Rc::new(requests)).is_ok(), "there is one control");
    }

    /// Datagrams go there. Must not block.
    pub fn set_datagrams(&self, datagrams: impl Fn(NodeId, Bytes) + 'static) {
        assert!(self.datagrams.set(Rc::new(datagrams)).is_ok(), "datagrams have one receiver");
    }

    /// Requests about the cluster go there. Must not block.
    pub fn set_admin(&self, admin: impl Fn(AdminCall, AdminReply) + 'static) {
        assert!(self.admin.set(Rc::new(admin)).is_ok(), "there is one control");
    }

    /// Passes a request about the cluster on; gives the place for its answer back if there is nobody.
    pub(super) fn admin(&self, call: AdminCall, reply: AdminReply) -> Result<(), AdminReply> {
        match self.admin.get() {
            Some(admin) => {
                admin(call, reply);
                Ok(())
            }
            None => Err(reply),
        }
    }
}

/// How an error is told to another node: the front doors know which status it is.
pub type Explain = fn(ReactorError) -> PeerRefusal;

/// See the module's description.
pub struct Inbound<E: Env> {
    reactor: Rc<Reactor<E>>,
    explain: Explain,
}

impl<E: Env> Inbound<E> {
    /// Answers for `reactor`.
    pub fn new(reactor: Rc<Reactor<E>>, explain: Explain) -> Rc<Inbound<E>> {
        Rc::new(Inbound { reactor, explain })
    }

    /// For whom.
    pub(super) fn reactor(&self) -> &Rc<Reactor<E>> {
        &self.reactor
    }

    fn raft(&self, from: NodeId, first: Received, stream: FrameStream<E>) {
        match raft::group_of(&first) {
            Some(ShardUid::CATALOG) => match self.reactor.hooks().catalog_streams.get() {
                Some(catalog) => catalog(from, first, stream),
                None => {
                    if let Some((_, stream)) = self.salvaged(ShardUid::CATALOG, first, stream) {
                        refuse(stream, starting());
                    }
                }
            },
            Some(uid) => match self.reactor.serving(uid) {
                Ok(shard) => shard.serve(from, first, stream),
                Err(error) => {
                    if let Some((_, stream)) = self.salvaged(uid, first, stream) {
                        refuse(stream, (self.explain)(error));
                    }
                }
            },
            None => refuse(stream, malformed("it names no group")),
        }
    }

    /// Consumes here, and gives it up when the asker has.
    fn consume(&self, first: &Received, stream: FrameStream<E>) {
        let (uid, consume) = match wire::consume(first, E::monotonic_us()) {
            Ok(asked) => asked,
            Err(what) => return refuse(stream, malformed(&what)),
        };
        let explain = self.explain;
        let consumed = self.reactor.serving(uid).and_then(|shard| {
            let is_readable = shard.is_readable();
            is_readable.then(|| shard.consume(Reactor::near(&shard, consume))).ok_or_else(|| not_filled(&shard))
        });
        let reactor = Rc::clone(&self.reactor);
        env::spawn::<E>(async move {
            let FrameStream { mut sender, mut receiver } = stream;
            let answer = async {
                let result = match consumed {
                    Ok(consumed) => reactor.noted(uid, consumed.await),
                    Err(error) => Err(error),
                };
                match result {
                    Ok(consumed) => wire::consumed_frame(consumed),
                    Err(error) => wire::refusal_frame(&explain(error)),
                }
            };
            tokio::select! {
                biased;
                answer = answer => {
                    // The asker may be gone.
                    drop(sender.send(answer).await);
                    sender.finish();
                }
                // It says no more than that it is gone.
                _ = receiver.receive() => {}
            }
        });
    }

    fn control(&self, from: NodeId, first: &Received, stream: FrameStream<E>) {
        let request = match ControlRequest::decode(&*first.envelope) {
            Ok(ControlRequest { request: Some(request) }) => request,
            Ok(ControlRequest { request: None }) => return refuse(stream, malformed("the control request is unknown")),
            Err(error) => return refuse(stream, malformed(&error.to_string())),
        };
        let (reactor, explain) = (Rc::clone(&self.reactor), self.explain);
        env::spawn::<E>(async move {
            let reply = match request {
                control_request::Request::ShardStatus(request) => shard_status(&reactor, request).await,
                control_request::Request::Trim(trim) => trim_here(&reactor, trim).await,
                control_request::Request::MoveLeader(change) => move_leader(&reactor, change).await,
                request @ (control_request::Request::Propose(_) | control_request::Request::Join(_)) => {
                    let control = reactor.hooks().control_requests.get().cloned();
                    let reply = match control {
                        Some(control) => control(from, request).await,
                        None => ControlReply { reply: Some(control_reply::Reply::Refused(starting())) },
                    };
                    return answer(stream, wire::frame(FrameKind::Control, &reply)).await;
                }
            };
            let reply = reply.unwrap_or_else(|error| control_reply::Reply::Refused(explain(error)));
            answer(stream, wire::frame(FrameKind::Control, &ControlReply { reply: Some(reply) })).await;
        });
    }
}

impl<E: Env> Handler<E> for Inbound<E> {
    fn stream(&self, from: NodeId, first: Received, stream: FrameStream<E>) {
        match first.kind {
            FrameKind::Append | FrameKind::Raft | FrameKind::Snapshot => self.raft(from, first, stream),
            FrameKind::Produce => produce::serve(&self.reactor, self.explain, first, stream),
            FrameKind::Consume => self.consume(&first, stream),
            FrameKind::Control => self.control(from, &first, stream),
            FrameKind::Appended | FrameKind::Refused => refuse(stream, malformed("an answer comes first")),
        }
    }

    fn datagram(&self, from: NodeId, datagram: Bytes) {
        if let Some(datagrams) = self.reactor.hooks().datagrams.get() {
            datagrams(from, datagram);
        }
    }
}

async fn shard_status<E: Env>(
    reactor: &Rc<Reactor<E>>,
    request: ShardStatusRequest,
) -> Result<control_reply::Reply, ReactorError> {
    let uids = request.shard_uids.into_iter().map(ShardUid).collect();
    let replicas = ask::own_replicas(reactor.node(), uids).await?;
    Ok(control_reply::Reply::ShardStatus(ShardStatusReply { replicas }))
}

async fn trim_here<E: Env>(reactor: &Rc<Reactor<E>>, trim: TrimShard) -> Result<control_reply::Reply, ReactorError> {
    let log_start = reactor.trim_here(ShardUid(trim.shard_uid), Offset(trim.before_offset)).await?;
    Ok(control_reply::Reply::Trimmed(TrimReply { log_start: log_start.0 }))
}

/// Only the leader can let go; any other replica says who it is.
async fn move_leader<E: Env>(
    reactor: &Rc<Reactor<E>>,
    change: MoveLeader,
) -> Result<control_reply::Reply, ReactorError> {
    let to = Some(NodeId(change.to_node_id)).filter(|node| *node != NodeId(0));
    reactor.move_leader(ShardUid(change.shard_uid), to, LEADER_WAIT).await?;
    Ok(control_reply::Reply::Done(Done {}))
}

/// Sends the only answer of a stream.
async fn answer<E: Env>(stream: FrameStream<E>, frame: Frame) {
    let FrameStream { mut sender, receiver: _receiver } = stream;
    // The asker may be gone.
    drop(sender.send(frame).await);
    sender.finish();
}

/// Refuses a stream.
fn refuse<E: Env>(stream: FrameStream<E>, refusal: PeerRefusal) {
    tracing::debug!(from = stream.sender.peer().0, reason = refusal.reason, message = refusal.message, "peer refused");
    env::spawn::<E>(answer(stream, wire::refusal_frame(&refusal)));
}

/// A replica that cannot be read.
pub(super) fn not_filled<E: Env>(shard: &Shard<E>) -> ReactorError {
    let cause = shard.fault().unwrap_or_else(|| "this replica has nothing of its shard yet".to_owned());
    ShardError::Failed { cause, maybe_written: false }.into()
}

fn starting() -> PeerRefusal {
    PeerRefusal {
        code: 14,
        reason: "STARTING".to_owned(),
        message: "the node is still recovering; retry after a moment".to_owned(),
        definite: true,
        retry_after_ms: RETRY_AFTER.as_millis() as u64,
        ..PeerRefusal::default()
    }
}

/// A peer of another version, or a broken one.
fn malformed(what: &str) -> PeerRefusal {
    PeerRefusal {
        code: 3,
        reason: "PEER_MALFORMED".to_owned(),
        message: format!("a request of another node cannot be read ({what}); do all nodes run the same version?"),
        definite: true,
        ..PeerRefusal::default()
    }
}
