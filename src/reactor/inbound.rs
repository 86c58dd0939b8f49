//! What other nodes ask of this reactor: each stream goes, by its first frame, to the group, or to the part of the node, that
//! answers it. Datagrams go to gossip.

use std::rc::Rc;

use bytes::Bytes;
use prost::Message;

use crate::{
    env::{self, Env},
    ids::{NodeId, ShardUid},
    limits,
    peer::{
        Handler,
        frame::{Frame, FrameKind, FrameStream, Received},
    },
    proto::ringlog::state::v1::{ControlReply, ControlRequest, PeerRefusal},
    raft,
    reactor::Reactor,
};

/// google.rpc.Code of a refusal that time cures.
const CODE_UNAVAILABLE: i32 = 14;

/// Answers peers for one reactor.
pub struct Inbound<E: Env> {
    reactor: Rc<Reactor<E>>,
}

impl<E: Env> Inbound<E> {
    /// For `reactor`.
    pub fn new(reactor: Rc<Reactor<E>>) -> Inbound<E> {
        Inbound { reactor }
    }

    fn raft(&self, from: NodeId, first: Received, stream: FrameStream<E>) {
        match raft::group_of(&first) {
            Some(ShardUid::CATALOG) => self.reactor.serve_catalog(from, first, stream),
            Some(uid) => match self.reactor.shard(uid) {
                Some(shard) => shard.serve(from, first, stream),
                None => refuse(stream, "NOT_OPEN", format!("node {} has no replica of shard {uid} open", self.me())),
            },
            None => refuse(stream, "UNREADABLE", "the request cannot be read".to_owned()),
        }
    }

    fn control(&self, from: NodeId, first: &Received, mut stream: FrameStream<E>) {
        let request = ControlRequest::decode(first.envelope.clone()).ok().and_then(|request| request.request);
        let Some(request) = request else {
            refuse(stream, "UNREADABLE", "the request cannot be read".to_owned());
            return;
        };
        let reactor = Rc::clone(&self.reactor);
        env::spawn::<E>(async move {
            let reply = reactor.control_request(Some(from), request).await;
            let envelope = ControlReply { reply: Some(reply) }.encode_to_vec().into();
            let answer = Frame { kind: FrameKind::Control, envelope, parts: Vec::new() };
            // Whoever has gone does not want it any more.
            if stream.sender.send(answer).await.is_ok() {
                stream.sender.finish();
            }
        });
    }

    fn me(&self) -> NodeId {
        self.reactor.peers().me()
    }
}

impl<E: Env> Handler<E> for Inbound<E> {
    fn stream(&self, from: NodeId, first: Received, stream: FrameStream<E>) {
        match first.kind {
            FrameKind::Append | FrameKind::Raft | FrameKind::Snapshot => self.raft(from, first, stream),
            FrameKind::Control => self.control(from, &first, stream),
            FrameKind::Produce | FrameKind::Consume | FrameKind::Appended | FrameKind::Refused => {
                refuse(stream, "UNREADABLE", format!("a stream does not begin with {:?}", first.kind));
            }
        }
    }

    fn datagram(&self, from: NodeId, datagram: Bytes) {
        let _ = (from, datagram);
    }
}

/// Answers a stream with a definite refusal, and ends it.
pub fn refuse<E: Env>(mut stream: FrameStream<E>, reason: &str, message: String) {
    let refusal = PeerRefusal {
        code: CODE_UNAVAILABLE,
        reason: reason.to_owned(),
        message,
        definite: true,
        leader_node_id: 0,
        retry_after_ms: limits::RETRY_AFTER.as_millis() as u64,
    };
    let frame = Frame { kind: FrameKind::Refused, envelope: refusal.encode_to_vec().into(), parts: Vec::new() };
    env::spawn::<E>(async move {
        // Whoever has gone does not want it any more.
        if stream.sender.send(frame).await.is_ok() {
            stream.sender.finish();
        }
    });
}
