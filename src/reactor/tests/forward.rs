//! Requests through a node that has no replica.

use futures_util::FutureExt;

use super::*;
use crate::{
    peer::Destination,
    proto::ringlog::state::v1::{ShardStatusRequest, control_reply, control_request},
    reactor::{ReactorError, forward::ask},
    shard::ShardError,
};

/// Node 1 holds the shard, node 2 does not.
async fn two() -> (World, World) {
    let mut worlds = cluster(2, &[1]).into_iter();
    let (holder, other) = (worlds.next().unwrap(), worlds.next().unwrap());
    holder.open(&[1]).await;
    (holder, other)
}

fn error_of(error: ReactorError) -> (i32, String, bool) {
    let refusal = refusal(error);
    (refusal.code, refusal.reason, refusal.definite)
}

/// Pipelined calls are written in their order, acknowledged in it, and say who leads.
#[test]
fn produce_in_order() {
    block_on(async {
        let (holder, other) = two().await;
        let acks: Vec<_> = (0..1_000).map(|n| other.reactor.produce(UID, produce(&n.to_string()))).collect();
        for (n, ack) in acks.into_iter().enumerate() {
            let produced = within("ack", ack).await.unwrap();
            assert_eq!((produced.base_offset, produced.count), (Offset(n as u64), 1));
            assert_eq!(produced.leader, Some(NodeId(1)));
        }
        let expected: Vec<_> = (0..1_000).map(|n| n.to_string()).collect();
        assert_eq!(holder.values().await, expected);
        assert_eq!(other.values().await, expected, "read through the node without a replica");
        assert_eq!(other.node.leaders.get(UID).unwrap().node, Some(NodeId(1)), "learned");
        let own = holder.reactor.produce(UID, produce("own")).await.unwrap();
        assert_eq!((own.base_offset, own.leader), (Offset(1_000), None));
    });
}

/// The leader's own answers come through: what was asked and cannot be, and what is out of range.
#[test]
fn refusals_come_through() {
    block_on(async {
        let (_holder, other) = two().await;
        let wrong = Produce { expected_offset: Some(Offset(7)), ..produce("a") };
        let first = other.reactor.produce(UID, wrong);
        let second = other.reactor.produce(UID, produce("b"));
        assert_eq!(error_of(first.await.unwrap_err()), (9, "OFFSET_MISMATCH".into(), true));
        assert_eq!(second.await.unwrap().base_offset, Offset(0), "those behind it go on");
        let error = other.reactor.consume(UID, at(9)).await.unwrap_err();
        assert_eq!(error_of(error), (11, "OFFSET_OUT_OF_RANGE".into(), true));
        let error = other.reactor.trim(UID, Offset(5)).await.unwrap_err();
        assert_eq!(error_of(error), (11, "OFFSET_OUT_OF_RANGE".into(), true));
        assert_eq!(other.reactor.trim(UID, Offset(1)).await.unwrap(), Offset(1));
    });
}

/// A shard that no topic has is not looked for.
#[test]
fn unknown_shards() {
    block_on(async {
        let (_holder, other) = two().await;
        other.node.topics.withdraw("t");
        assert!(matches!(other.reactor.produce(UID, produce("a")).await, Err(ReactorError::Gone)));
        assert!(matches!(other.reactor.consume(UID, at(0)).await, Err(ReactorError::Gone)));
        assert!(matches!(other.reactor.trim(UID, Offset(0)).await, Err(ReactorError::Gone)));
    });
}

/// A connection that breaks: what was sent and not answered is indefinite, what was not sent is written later, nothing is
/// sent twice.
#[test]
fn broken_connections() {
    block_on(async {
        let (holder, other) = two().await;
        other.reactor.produce(UID, produce("first")).await.unwrap();
        holder.disk.hold();
        let sent = other.reactor.produce(UID, produce("sent"));
        settle().await;
        other.network.drop_connections();
        let error = within("the loss is told", sent).await.unwrap_err();
        assert_eq!(error_of(error), (14, "LEADER_LOST".into(), false));
        let after = other.reactor.produce(UID, produce("after"));
        holder.disk.release();
        within("a new session", after).await.unwrap();
        let values = holder.values().await;
        assert_eq!(values.iter().filter(|value| *value == "after").count(), 1);
        // It had been proposed: it is there, once. The promise is only that it is not there twice.
        assert_eq!(values, ["first", "sent", "after"]);
    });
}

/// Nobody answers: requests wait until their deadlines, or as long as the server is patient, and then are certain not to
/// be written.
#[test]
fn no_leader() {
    block_on(async {
        let (holder, other) = two().await;
        other.network.crash(NodeId(1));
        let deadline_us = Some(<TestEnv as env::Env>::monotonic_us() + 500_000);
        let impatient = other.reactor.produce(UID, Produce { deadline_us, ..produce("a") });
        let patient = other.reactor.produce(UID, produce("b"));
        let mut trimmed = Box::pin(other.reactor.trim(UID, Offset(0)));
        let mut read = Box::pin(other.reactor.consume(UID, at(0)));
        assert!(trimmed.as_mut().now_or_never().is_none() && read.as_mut().now_or_never().is_none());
        settle().await;
        TestEnv::advance_us(1_000_000);
        let error = within("the deadline", impatient).await.unwrap_err();
        assert_eq!(error_of(error), (4, "NO_LEADER".into(), true));
        TestEnv::advance_us(20_000_000);
        let error = within("patience", patient).await.unwrap_err();
        assert_eq!(error_of(error), (14, "NO_LEADER".into(), true));
        assert_eq!(error_of(within("trim", trimmed).await.unwrap_err()), (14, "NO_LEADER".into(), true));
        assert_eq!(error_of(within("read", read).await.unwrap_err()), (14, "PEER_UNREACHABLE".into(), true));
        assert!(holder.values().await.is_empty());
    });
}

/// A trim of which no answer comes may have been done: it is not refused as one that was not, whatever is found out until time
/// is up.
#[test]
fn a_trim_without_an_answer() {
    block_on(async {
        let (holder, other) = two().await;
        other.reactor.produce(UID, produce("x")).await.unwrap();
        other.network.cut(NodeId(1), NodeId(2));
        let (send, answer) = tokio::sync::oneshot::channel();
        let reactor = Rc::clone(&other.reactor);
        env::spawn::<TestEnv>(async move { drop(send.send(reactor.trim(UID, Offset(1)).await)) });
        let log_start = || holder.reactor.status(&[UID])[0].clone().unwrap().log_start;
        until("it is done", || log_start() == Offset(1)).await;
        TestEnv::advance_us(20_000_000);
        let error = within("patience", answer).await.unwrap().unwrap_err();
        assert_eq!(error_of(error), (14, "LEADER_LOST".into(), false));
    });
}

/// A node that comes back within the deadline gets what waited for it, in order.
#[test]
fn waits_for_the_leader() {
    block_on(async {
        let (holder, other) = two().await;
        other.network.crash(NodeId(1));
        let acks: Vec<_> = (0..10).map(|n| other.reactor.produce(UID, produce(&n.to_string()))).collect();
        settle().await;
        let net = other.network.endpoint(NodeId(1), "n1", 1);
        let (book, liveness) = (Arc::clone(&holder.node.book), Arc::clone(&holder.node.liveness));
        let peers = Peers::<TestEnv>::new(NodeId(1), ReactorNumber(0), net, book, liveness, Default::default());
        peers.serve(Inbound::new(Rc::clone(&holder.reactor), refusal));
        for ack in acks {
            within("ack", ack).await.unwrap();
        }
        assert_eq!(holder.values().await, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
    });
}

/// What nobody waits for any more when the leader appears is not sent to it.
#[test]
fn gone_before_the_leader_comes() {
    block_on(async {
        let (holder, other) = two().await;
        other.network.crash(NodeId(1));
        let acks: Vec<_> = (0..10).map(|n| other.reactor.produce(UID, produce(&n.to_string()))).collect();
        settle().await;
        let mut acks: Vec<_> = acks.into_iter().enumerate().collect();
        acks.retain(|(n, _)| n % 2 == 1);
        let net = other.network.endpoint(NodeId(1), "n1", 1);
        let (book, liveness) = (Arc::clone(&holder.node.book), Arc::clone(&holder.node.liveness));
        let peers = Peers::<TestEnv>::new(NodeId(1), ReactorNumber(0), net, book, liveness, Default::default());
        peers.serve(Inbound::new(Rc::clone(&holder.reactor), refusal));
        for (_, ack) in acks {
            within("ack", ack).await.unwrap();
        }
        assert_eq!(holder.values().await, ["1", "3", "5", "7", "9"]);
    });
}

/// While the own replica is being closed, requests wait until their time, and not for the end of that: with a session to another
/// node that is open, and without one.
#[test]
fn deadlines_while_held() {
    for is_open in [false, true] {
        block_on(async {
            let (_holder, other) = two().await;
            if is_open {
                other.reactor.produce(UID, produce("first")).await.unwrap();
            }
            other.reactor.hold(UID);
            let deadline_us = Some(<TestEnv as env::Env>::monotonic_us() + 300_000);
            let impatient = other.reactor.produce(UID, Produce { deadline_us, ..produce("a") });
            let patient = other.reactor.produce(UID, produce("b"));
            settle().await;
            TestEnv::advance_us(299_000);
            let error = within("the deadline", impatient).await.unwrap_err();
            assert_eq!(error_of(error), (4, "NO_LEADER".into(), true));
            TestEnv::advance_us(6_000_000);
            // Its time is looked at when another one comes: the clocks of this test stand still meanwhile.
            drop(other.reactor.produce(UID, produce("gone")));
            let error = within("patience", patient).await.unwrap_err();
            assert_eq!(error_of(error), (14, "NO_LEADER".into(), true));
            other.reactor.release(UID);
            let after = within("an ack", other.reactor.produce(UID, produce("c"))).await.unwrap();
            assert_eq!(after.base_offset, Offset(u64::from(is_open)));
        });
    }
}

/// A consumer that waits elsewhere is woken by a record, and one that is gone waits no more.
#[test]
fn waiting_consumers() {
    block_on(async {
        let (holder, other) = two().await;
        let waiting = other.reactor.consume(UID, Consume { wait: LONG, ..at(0) });
        let mut waiting = Box::pin(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        settle().await;
        assert!(waiting.as_mut().now_or_never().is_none());
        other.reactor.produce(UID, produce("x")).await.unwrap();
        assert_eq!(decode(&within("woken", waiting).await.unwrap()).len(), 1);

        let abandoned = other.reactor.consume(UID, Consume { wait: LONG, ..at(1) });
        let mut abandoned = Box::pin(abandoned);
        assert!(abandoned.as_mut().now_or_never().is_none());
        settle().await;
        let held = Rc::strong_count(&holder.reactor);
        drop(abandoned);
        settle().await;
        assert_eq!(Rc::strong_count(&holder.reactor), held - 1, "the holder's task has ended");
    });
}

/// A shard without a leader's part here tells the node that forwards where to go; requests go there, in order.
#[test]
fn a_stale_catalog() {
    block_on(async {
        let worlds = cluster(3, &[2]);
        let [asker, empty, holder] = &worlds[..] else { panic!("three") };
        holder.place(&[3], &[]);
        holder.open(&[3]).await;
        // Node 1 believes in node 2, which knows that it has nothing; then the catalog comes.
        let acks: Vec<_> = (0..5).map(|n| asker.reactor.produce(UID, produce(&n.to_string()))).collect();
        settle().await;
        assert!(matches!(empty.reactor.shard(UID), Err(ReactorError::Gone)));
        asker.place(&[3], &[]);
        for ack in acks {
            assert_eq!(within("ack", ack).await.unwrap().leader, Some(NodeId(3)));
        }
        assert_eq!(holder.values().await, ["0", "1", "2", "3", "4"]);
    });
}

/// Numbers of replicas, and who leads, as another node tells.
#[test]
fn statuses() {
    block_on(async {
        let (holder, other) = two().await;
        holder.serve_mailbox();
        holder.reactor.produce(UID, produce("x")).await.unwrap();
        let to = Destination { node: NodeId(1), slot: 0 };
        for shard_uids in [vec![], vec![1, 99]] {
            let request = control_request::Request::ShardStatus(ShardStatusRequest { shard_uids });
            let Ok(control_reply::Reply::ShardStatus(reply)) = other.reactor.ask(to, request, LONG).await else {
                panic!("a status");
            };
            let [status] = &reply.replicas[..] else { panic!("{reply:?}") };
            assert_eq!((status.shard_uid, status.leader_node_id, status.high_watermark), (1, 1, 1));
        }
        assert_eq!(ask::own_replicas(&holder.node, vec![UID]).await.unwrap().len(), 1);
        other.reactor.find_leaders(&[UID]).await;
        let leader = other.node.leaders.get(UID).unwrap();
        assert_eq!(leader.node, Some(NodeId(1)));
        assert_eq!(leader.term, holder.reactor.shard(UID).unwrap().leader().1);
    });
}

/// What nobody here answers is refused, not left alone.
#[test]
fn without_a_control() {
    block_on(async {
        let (_holder, other) = two().await;
        let to = Destination { node: NodeId(1), slot: 0 };
        let propose = control_request::Request::Propose(Default::default());
        let error = other.reactor.ask(to, propose, LONG).await.unwrap_err();
        assert_eq!(error_of(error), (14, "STARTING".into(), true));
    });
}

/// A reactor that ends answers what waits: certain for what was not sent, uncertain for what was.
#[test]
fn closing() {
    block_on(async {
        let (holder, other) = two().await;
        other.reactor.produce(UID, produce("first")).await.unwrap();
        holder.disk.hold();
        let sent = other.reactor.produce(UID, produce("sent"));
        settle().await;
        let unsent = other.reactor.produce(UID, produce("unsent"));
        within("close", other.reactor.close()).await;
        let definite = |result: Result<crate::shard::Produced, ReactorError>| match result {
            Err(ReactorError::Shard(ShardError::Closing { maybe_written })) => !maybe_written,
            other => panic!("{other:?}"),
        };
        assert!(!definite(sent.await));
        assert!(definite(unsent.await));
        holder.disk.release();
        let shard = holder.reactor.shard(UID).unwrap();
        until("what was sent lands", || shard.high_watermark() == Offset(2)).await;
        assert_eq!(holder.values().await, ["first", "sent"]);
    });
}
