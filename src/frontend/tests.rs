//! What calls wait for, and how long: topics that are looked up (nobody answers the searches), and shards. In virtual time.

use std::{future::poll_fn, rc::Rc, task::Poll, time::Duration};

use futures_util::FutureExt;

use super::{
    admission::{Admission, Admitted},
    *,
};
use crate::{
    catalog::{Replicas, TopicView},
    config::Config,
    ids::{NodeId, ReactorNumber, ShardUid, TopicId},
    limits::{MAILBOX_REQUESTS_MAX, RECORD_BYTES_MAX, SEGMENT_BYTES_MIN, STREAM_REQUESTS_UNDER_WAY_MAX, TOPIC_WAIT},
    peer::Peers,
    proto::ringlog::v1::{ConsumeRequest, ProduceRequest, Record},
    reactor::{
        node::{Advertised, Identity},
        seats::Seats,
    },
    shard::{Consume, ShardOptions, Start},
    sim::{SimDisk, SimEnv, SimRuntime, net::SimNetwork},
};

const ME: NodeId = NodeId(1);

/// The front doors of a node's only reactor.
fn frontend() -> Frontend<SimEnv> {
    frontend_of(1)
}

/// Those of the first of so many. Nobody looks into the mailboxes of the others.
fn frontend_of(reactors: usize) -> Frontend<SimEnv> {
    let anywhere: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
    let config = Config { data: "/data".into(), auto_create: Some(true), ..Config::default() };
    let (grpc, http) = ("n1:7400".to_owned(), "n1:7480".to_owned());
    let advertised = Advertised { peer_host: "n1".to_owned(), peer_port: 1, grpc, http };
    let node = Arc::new(Node::new(config, reactors, (anywhere, anywhere), advertised));
    node.set_identity(Identity { cluster_id: "0".repeat(32), node: ME, incarnation: 1 });
    let reactor = Reactor::new(ReactorNumber(0), Arc::clone(&node), SimDisk::new());
    let net = SimNetwork::new().endpoint(ME, "n1", 1);
    let (book, liveness) = (Arc::clone(&node.book), Arc::clone(&node.liveness));
    reactor.set_peers(Peers::new(ME, ReactorNumber(0), net, book, liveness, reactor.budget().clone()));
    node.enter(Phase::Serving);
    Frontend::new(reactor)
}

fn call(topic: &str) -> ProduceCall {
    call_of(topic, None, 1_000)
}

/// The same for a shard, with a record of so many bytes.
fn call_of(topic: &str, shard: Option<u32>, bytes: usize) -> ProduceCall {
    let record = Record { value: vec![7; bytes].into(), ..Record::default() };
    let request = ProduceRequest { topic: topic.to_owned(), shard, records: vec![record], ..ProduceRequest::default() };
    let message = prost::Message::encode_to_vec(&request);
    let (head, records) = Records::parse(message.into(), RECORD_BYTES_MAX).unwrap();
    ProduceCall { head, records, deadline_us: None }
}

/// Makes a topic known, whose only shard is on that node.
fn publish(frontend: &Frontend<SimEnv>, name: &str, uid: ShardUid, holder: NodeId) {
    publish_shards(frontend, name, &[uid], holder);
}

/// The same with several shards: the first one's reactor is the one of its uid, the others' are the next ones.
fn publish_shards(frontend: &Frontend<SimEnv>, name: &str, uids: &[ShardUid], holder: NodeId) {
    let view = TopicView {
        name: name.into(),
        id: TopicId(uids[0].0),
        shards: uids.to_vec(),
        replication_factor: 1,
        replicas: vec![Replicas { nodes: vec![holder], ..Default::default() }; uids.len()],
        retention_bytes_max: 0,
        retention_age_ms_max: 0,
        segment_bytes: 0,
        created_us: 0,
    };
    let node = frontend.local.reactor.node();
    node.topics.publish([Arc::new(PlacedTopic::new(view.into(), node.reactors.len(), ME))]);
}

/// Opens a shard here, whose only replica this is.
async fn open(frontend: &Frontend<SimEnv>, uid: ShardUid) {
    let reactor = &frontend.local.reactor;
    let options = ShardOptions {
        dir: format!("/data/shards/{uid}").into(),
        uid,
        node: ME,
        segment_bytes_max: SEGMENT_BYTES_MIN,
        slot: 0,
        founders: Some([ME].into()),
        owner: reactor.node().identity().unwrap().owner(),
        preferred: true,
        retention_bytes_max: 0,
        retention_age_ms_max: 0,
    };
    assert!(reactor.open(vec![options]).await.is_empty());
}

/// A search that never ends keeps nobody waiting for ever: its calls are refused, as not written, and the next call begins anew.
#[test]
fn a_search_without_an_end() {
    SimRuntime::seeded(1).block_on(async {
        let frontend = frontend();
        let mut first = frontend.produce(call("a"));
        let second = frontend.produce(call("a"));
        env::sleep::<SimEnv>(TOPIC_WAIT / 2).await;
        assert!((&mut first).now_or_never().is_none());
        env::sleep::<SimEnv>(TOPIC_WAIT).await;
        for under_way in [first, second] {
            let error = under_way.now_or_never().expect("answered").unwrap_err();
            assert_eq!((error.code, error.reason, error.definite), (Code::Unavailable, "CATALOG_UNAVAILABLE", true));
        }
        assert!(!frontend.local.is_sought("a"));
        assert_eq!((frontend.local.seeking.get(), frontend.local.reactor.budget().used()), (0, 0));
        drop(frontend.produce(call("a")));
        assert!(frontend.local.is_sought("a"));
    });
}

/// A call that is refused because too many wait has its topic neither looked for nor made; and they give their places back.
#[test]
fn a_refused_call_makes_no_topic() {
    SimRuntime::seeded(1).block_on(async {
        let frontend = frontend();
        let waiting: Vec<_> = (0..MAILBOX_REQUESTS_MAX).map(|_| frontend.produce(call("a"))).collect();
        for topic in ["a", "b"] {
            let refused = frontend.produce(call(topic)).now_or_never().expect("answered").unwrap_err();
            assert_eq!((refused.code, refused.definite), (Code::ResourceExhausted, true));
        }
        assert!(!frontend.local.is_sought("b"));
        env::sleep::<SimEnv>(2 * TOPIC_WAIT).await;
        drop(waiting);
        assert!(frontend.produce(call("b")).now_or_never().is_none());
        assert!(frontend.local.is_sought("b"));
    });
}

/// Calls whose clients are gone when their topic is found are not handed to its shard.
#[test]
fn gone_while_the_topic_was_sought() {
    SimRuntime::seeded(1).block_on(async {
        let frontend = frontend();
        let (gone, waits) = (frontend.produce(call("t")), frontend.produce(call("t")));
        drop(gone);
        // The search has begun, and does not see it.
        env::sleep::<SimEnv>(limits::RETRY_AFTER).await;
        publish(&frontend, "t", ShardUid(1), NodeId(2));
        env::sleep::<SimEnv>(TOPIC_WAIT).await;
        assert!(!frontend.local.is_sought("t"));
        let records = call("t").records;
        let of_one = records.message().len() + records.encoded_bytes_max();
        assert_eq!(frontend.local.reactor.budget().used_for(Use::Queued), of_one);
        let refused = waits.await.unwrap_err();
        assert!(refused.definite, "{refused:?}");
    });
}

/// A shard of which no leader answers, and whose streams send what they can, does not keep a stream to another shard of the reactor
/// from being read.
#[test]
fn a_shard_without_a_leader_stops_no_other() {
    SimRuntime::seeded(1).block_on(async {
        let frontend = frontend();
        publish(&frontend, "stuck", ShardUid(1), NodeId(2));
        publish(&frontend, "well", ShardUid(2), ME);
        open(&frontend, ShardUid(2)).await;
        let (mut stuck, mut well) = (Admission::new(frontend.clone()), Admission::new(frontend.clone()));
        let mut under_way = Vec::new();
        let room = Duration::from_millis(100);
        for number in 0..60 {
            let mut asked = Some(call("well"));
            let entered = poll_fn(|cx| {
                // Both are polled when they are woken.
                while let Poll::Ready(admitted) = stuck.poll(&mut Some(call("stuck")), cx) {
                    under_way.push(admitted);
                }
                well.poll(&mut asked, cx)
            });
            let admitted = <SimEnv as Env>::Runtime::timeout(room, entered).await.expect("room");
            well.leave();
            assert_eq!(admitted.await.unwrap().produced.base_offset, Offset(number));
            env::sleep::<SimEnv>(room).await;
        }
        assert!(under_way.len() > STREAM_REQUESTS_UNDER_WAY_MAX);
        let refused = under_way.remove(0).now_or_never().expect("answered after 5 s").unwrap_err();
        assert!(refused.definite, "{refused:?}");
    });
}

/// Single calls to shards that cannot answer leave memory for those that can; they are refused as not written. Those of clients that
/// are gone make room.
#[test]
fn single_calls_leave_memory() {
    SimRuntime::seeded(1).block_on(async {
        let frontend = frontend();
        publish(&frontend, "well", ShardUid(1), ME);
        open(&frontend, ShardUid(1)).await;
        let stuck = ["a", "b"];
        stuck.iter().zip(2..).for_each(|(name, uid)| publish(&frontend, name, ShardUid(uid), NodeId(2)));
        let mut waiting = Vec::new();
        for name in stuck {
            let refused = loop {
                assert!(waiting.len() < 2_048);
                let mut under_way = frontend.produce(call_of(name, None, 90 << 10));
                match (&mut under_way).now_or_never() {
                    Some(answer) => break answer.unwrap_err(),
                    None => waiting.push(under_way),
                }
            };
            assert_eq!((refused.code, refused.reason, refused.definite), (Code::ResourceExhausted, "SHARD_BUSY", true));
        }
        assert!(frontend.produce(call_of("well", None, RECORD_BYTES_MAX - 100)).await.is_ok());
        drop(waiting);
        // It is looked for them once for so many calls.
        let again = || frontend.produce(call_of("a", None, 90 << 10)).now_or_never();
        assert!((0..100).any(|_| again().is_none()));
    });
}

/// What a stream is told now that wants to pass on `call`; `None`: it waits.
fn pass_on(admission: &mut Admission<SimEnv>, call: &mut Option<ProduceCall>) -> Option<Admitted<SimEnv>> {
    poll_fn(|cx| admission.poll(call, cx)).now_or_never()
}

/// A call without a key keeps the shard that it was given, and so its place in a line, however often its stream is polled; the next
/// one gets another shard.
#[test]
fn a_call_without_a_key_keeps_its_place() {
    SimRuntime::seeded(1).block_on(async {
        let frontend = frontend_of(3);
        publish_shards(&frontend, "t", &[ShardUid(1), ShardUid(2)], ME);
        let mut under_way = [0, 1].map(|shard| {
            let mut stream = Admission::new(frontend.clone());
            let pass = || pass_on(&mut stream, &mut Some(call_of("t", Some(shard), 1_000)));
            std::iter::from_fn(pass).collect::<Vec<_>>()
        });
        assert_eq!(under_way.each_ref().map(Vec::len), [STREAM_REQUESTS_UNDER_WAY_MAX; 2]);
        let (mut unkeyed, mut asked) = (Admission::new(frontend.clone()), Some(call("t")));
        assert!(pass_on(&mut unkeyed, &mut asked).is_none());
        let mut named = [0, 1].map(|shard| (Admission::new(frontend.clone()), Some(call_of("t", Some(shard), 1_000))));
        for (stream, asked) in &mut named {
            assert!(pass_on(stream, asked).is_none());
        }
        for _ in 0..4 {
            assert!(pass_on(&mut unkeyed, &mut asked).is_none());
        }
        under_way.iter_mut().for_each(|under_way| drop(under_way.pop()));
        assert!(pass_on(&mut unkeyed, &mut asked).is_some(), "it was the first in its line");
        let turn = frontend.local.turn.get();
        drop(pass_on(&mut unkeyed, &mut Some(call("t"))));
        assert_eq!(frontend.local.turn.get(), turn + 1, "the next call takes another turn");
    });
}

/// Streams whose first calls wait for a topic find room for them one after the other when it is there, like all others: a mailbox
/// that is too small for all of them refuses none.
#[test]
fn streams_for_a_new_topic_wait_for_room() {
    SimRuntime::seeded(1).block_on(async {
        let frontend = frontend_of(2);
        let mut streams: Vec<_> =
            (0..200).map(|_| (Admission::new(frontend.clone()), Some(call_of("t", None, 100_000)), None)).collect();
        for (stream, asked, admitted) in &mut streams {
            *admitted = pass_on(stream, asked);
        }
        // The search has begun, and does not see it.
        env::sleep::<SimEnv>(limits::RETRY_AFTER).await;
        publish(&frontend, "t", ShardUid(1), ME);
        env::sleep::<SimEnv>(TOPIC_WAIT).await;
        assert!(!frontend.local.is_sought("t"));
        let mut passed_on = 0;
        for (stream, asked, admitted) in &mut streams {
            if admitted.is_none() {
                *admitted = pass_on(stream, asked);
            }
            let Some(admitted) = admitted else { continue };
            if let Some(ack) = admitted.now_or_never() {
                panic!("{ack:?}");
            }
            passed_on += 1;
        }
        assert!((1..200).contains(&passed_on), "{passed_on} find room at once");
        assert_eq!(frontend.local.reactor.node().reactors[1].mailbox.len(), passed_on);
    });
}

/// A call that has read a topic does not go on in another one that was made with its name.
#[test]
fn reads_one_topic() {
    SimRuntime::seeded(1).block_on(async {
        let frontend = frontend();
        publish(&frontend, "t", ShardUid(1), ME);
        open(&frontend, ShardUid(1)).await;
        let consume = ConsumeCall {
            topic: "t".to_owned(),
            shard: 0,
            consume: Consume {
                start: Start::Latest,
                records_max: 0,
                bytes_max: 0,
                wait: Duration::ZERO,
                min_offset: None,
                linearizable: false,
                deadline_us: None,
                if_small: false,
            },
        };
        let topic = TopicRead::default();
        for _ in 0..2 {
            assert_eq!(frontend.consume_of(consume.clone(), &topic).await.unwrap().next_offset, Offset(0));
        }
        frontend.local.reactor.node().topics.withdraw("t");
        frontend.local.reactor.remove(vec![ShardUid(1)]).await;
        publish(&frontend, "t", ShardUid(2), ME);
        open(&frontend, ShardUid(2)).await;
        let error = frontend.consume_of(consume.clone(), &topic).await.unwrap_err();
        assert_eq!((error.code, error.reason), (Code::NotFound, "SHARD_NOT_FOUND"));
        assert!(error.message.contains("topic was deleted"), "{error}");
        assert!(frontend.consume(consume).await.is_ok(), "another call reads the new one");
    });
}

/// A deadline that passes while a shard is read ends that call, and nothing else of its connection.
#[test]
fn a_deadline_during_a_read() {
    SimRuntime::seeded(1).block_on(async {
        // Nobody reads the mailbox of the shard's reactor.
        let frontend = frontend_of(2);
        publish(&frontend, "t", ShardUid(1), ME);
        let (client, server) = tokio::io::duplex(64 << 10);
        let seat = Rc::<Seats>::default().take(0);
        let served = grpc::serve_connection(server, frontend, seat, grpc::RESET_MEMORY);
        let calls = async {
            let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
            env::spawn::<SimEnv>(async move { drop(connection.await) });
            for _ in 0..2 {
                poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                let request = ::http::Request::post("http://x/ringlog.v1.Log/Consume")
                    .header("content-type", "application/grpc")
                    .header("grpc-timeout", "100m");
                let (response, mut body) = requests.send_request(request.body(()).unwrap(), false).unwrap();
                let message =
                    prost::Message::encode_to_vec(&ConsumeRequest { topic: "t".into(), ..Default::default() });
                let prefix = crate::format::grpc::prefix(message.len());
                body.send_data([&prefix[..], &message].concat().into(), true).unwrap();
                // Trailers alone.
                assert_eq!(response.await.unwrap().headers()["grpc-status"], "4");
            }
        };
        tokio::select! {
            () = served => panic!("the connection ended"),
            () = calls => {}
        }
    });
}

/// What is read with room for it is there at once or not at all; what a call has to see is waited for before.
#[test]
fn reads_in_steps() {
    SimRuntime::seeded(1).block_on(async {
        let frontend = frontend();
        publish(&frontend, "t", ShardUid(1), ME);
        open(&frontend, ShardUid(1)).await;
        frontend.produce(call("t")).await.unwrap();
        let consume = |start, min_offset, linearizable| ConsumeCall {
            topic: "t".to_owned(),
            shard: 0,
            consume: Consume {
                start,
                records_max: 0,
                bytes_max: 0,
                wait: Duration::ZERO,
                min_offset,
                linearizable,
                deadline_us: None,
                if_small: false,
            },
        };
        for start in [Start::Earliest, Start::Latest, Start::Timestamp(0), Start::Offset(Offset(0))] {
            let mut call = consume(start, Some(Offset(1)), true);
            let view = frontend.consume(call.view()).await.unwrap();
            assert_eq!((view.count, view.high_watermark), (0, Offset(1)), "{start:?}");
            call.has_seen(&view);
            let count = if start == Start::Latest { 0 } else { 1 };
            let begun_us = SimEnv::monotonic_us();
            assert_eq!(frontend.consume(call.at_once(10_000, false)).await.unwrap().count, count, "{start:?}");
            assert_eq!(SimEnv::monotonic_us(), begun_us, "{start:?}");
        }
        let call = consume(Start::Earliest, Some(Offset(2)), false);
        let begun_us = SimEnv::monotonic_us();
        let at_once = frontend.consume(call.at_once(10_000, false)).await.unwrap_err();
        assert_eq!((at_once.reason, SimEnv::monotonic_us()), ("REPLICA_BEHIND", begun_us));
        let mut view = Box::pin(frontend.consume(call.view()));
        tokio::select! {
            biased;
            seen = &mut view => panic!("{seen:?}"),
            () = env::sleep::<SimEnv>(Duration::from_secs(1)) => {}
        }
        frontend.produce(self::call("t")).await.unwrap();
        assert_eq!(view.await.unwrap().high_watermark, Offset(2));
    });
}
