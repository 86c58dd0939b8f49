//! The producer against scripted servers: order, retries, what is given back, backpressure.

#![allow(clippy::disallowed_methods, reason = "the client is not part of the simulated world")]

use futures_util::{FutureExt, future::join_all};

use super::*;
use crate::client::cluster::scripted::{Fault, Refusal, Servers, World};

/// Long enough for any machine: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);

fn with_servers<F: Future<Output = ()>>(nodes: u64, shards: usize, test: impl FnOnce(Servers, Cluster) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let run = async {
        let servers = Servers::start(nodes, shards).await;
        let cluster = Cluster::connect(&[servers.address(1)]).await.unwrap();
        test(servers, cluster).await;
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, run).await.expect("the test hangs") });
}

fn record(value: impl Into<String>) -> Record {
    Record { value: value.into().into(), ..Record::default() }
}

fn refusal(code: i32, behind_definite: bool) -> Refusal {
    Refusal { code, definite: true, behind_definite, retry_after: Some(Duration::from_millis(1)) }
}

/// Sends 0, 1, 2, ... as values, one in each request, to shard 0.
async fn send(producer: &Producer, count: usize) -> Vec<Result<Acked, ProduceError>> {
    let mut deliveries = Vec::new();
    for number in 0..count {
        deliveries.push(producer.send_to(0, record(number.to_string())).await.unwrap());
    }
    join_all(deliveries).await
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

fn written(outcomes: &[Result<Acked, ProduceError>]) -> usize {
    outcomes.iter().filter(|outcome| outcome.is_ok()).count()
}

/// Keys decide the shard as documented; what is sent to one shard stays in order; each ack says where its record is.
#[test]
fn keyed_in_order() {
    with_servers(2, 3, async |servers, cluster| {
        let producer = cluster.producer("t").batch_records(7).open();
        let mut deliveries = Vec::new();
        for number in 0..200 {
            let key = format!("key {}", number % 11);
            let record = Record { key: key.clone().into(), value: format!("{number}").into(), ..Record::default() };
            deliveries.push((key, number, producer.send(record).await.unwrap()));
        }
        producer.flush().await;
        for (key, number, delivery) in deliveries {
            // After a flush they are all there.
            let acked = tokio::task::unconstrained(delivery).now_or_never().expect("flushed").unwrap();
            assert_eq!(acked.shard, shard_of_key(key.as_bytes(), 3));
            let value = &servers.values(acked.shard as usize)[usize::try_from(acked.offset).unwrap()];
            assert_eq!(*value, number.to_string());
        }
        for shard in 0..3 {
            let values: Vec<u32> = servers.values(shard).iter().map(|value| value.parse().unwrap()).collect();
            assert!(!values.is_empty() && values.is_sorted(), "{values:?}");
        }
        let world = servers.world.lock().unwrap();
        assert!(world.produced.iter().all(|(node, _, _, count)| *node == 1 && *count <= 7), "straight to the leader");
    });
}

/// Records without a key use all shards, or one if that is wanted.
#[test]
fn unkeyed() {
    with_servers(1, 3, async |servers, cluster| {
        let turns = cluster.producer("t").open();
        for number in 0..9 {
            turns.send(record(number.to_string())).await.unwrap().await.unwrap();
        }
        assert!((0..3).all(|shard| servers.values(shard).len() == 3), "each batch goes to the next shard");
        let one = cluster.producer("t").spread(Spread::One).open();
        let deliveries: Vec<_> = (0..9).map(|number| one.try_send(record(number.to_string())).unwrap()).collect();
        let shards: std::collections::BTreeSet<u32> =
            join_all(deliveries).await.into_iter().map(|acked| acked.unwrap().shard).collect();
        assert_eq!(shards.len(), 1);
    });
}

/// What was certainly not written is sent again, in order, until it is.
#[test]
fn definite_failures_are_retried_in_order() {
    with_servers(2, 1, async |servers, cluster| {
        let producer = cluster.producer("t").batch_records(1).open();
        // The first server refuses, now and then, with others already sent behind; the second one would forward.
        for node in [1, 2] {
            servers.fault(node, [14, 8, 14].map(|code| Fault::Refuse(refusal(code, true))));
        }
        let outcomes = send(&producer, 50).await;
        assert_eq!(written(&outcomes), 50, "{outcomes:?}");
        assert_eq!(servers.values(0), numbers(50));
        let offsets: Vec<u64> = outcomes.into_iter().map(|outcome| outcome.unwrap().offset).collect();
        assert_eq!(offsets, (0..50).collect::<Vec<_>>());
    });
}

/// What may have been written is given back as that, and not sent again; the others are not harmed.
#[test]
fn maybe_written() {
    for was_written in [true, false] {
        with_servers(1, 1, async |servers, cluster| {
            let producer = cluster.producer("t").batch_records(1).requests_in_flight(1).open();
            servers.fault(1, [Fault::Vanish { written: was_written }]);
            let outcomes = send(&producer, 5).await;
            let error = outcomes[0].as_ref().unwrap_err();
            assert!(matches!(error, ProduceError::Maybe { .. }) && !error.is_definite(), "{error}");
            assert_eq!(written(&outcomes), 4, "{outcomes:?}");
            assert_eq!(servers.values(0), numbers(5)[usize::from(!was_written)..]);
        });
    }
}

/// With others in flight behind it, all of them may have been written. None comes twice.
#[test]
fn maybe_written_behind() {
    with_servers(1, 1, async |servers, cluster| {
        let producer = cluster.producer("t").batch_records(1).open();
        let refused = Refusal { behind_definite: false, ..refusal(14, false) };
        servers.fault(1, [Fault::Refuse(refused)]);
        let outcomes = send(&producer, 20).await;
        assert!(outcomes[0].is_ok(), "the first one was certainly not written, and is sent again: {outcomes:?}");
        let values = servers.values(0);
        for (number, outcome) in outcomes.iter().enumerate() {
            let count = values.iter().filter(|value| **value == number.to_string()).count();
            match outcome {
                Ok(acked) => assert_eq!((count, &values[acked.offset as usize]), (1, &number.to_string())),
                Err(error) => assert!(count <= 1 && !error.is_definite(), "{number}: {error}"),
            }
        }
    });
}

/// At least once, by name: everything is there, in spite of lost connections; some of it twice.
#[test]
fn at_least_once() {
    with_servers(2, 1, async |servers, cluster| {
        let producer = cluster.producer("t").batch_records(1).at_least_once(true).open();
        servers.fault(1, [Fault::Vanish { written: true }, Fault::Vanish { written: false }]);
        servers.fault(2, [Fault::Vanish { written: true }]);
        let outcomes = send(&producer, 20).await;
        assert_eq!(written(&outcomes), 20, "{outcomes:?}");
        let values = servers.values(0);
        assert!(values.len() > 20, "one was written twice");
        for (number, outcome) in outcomes.into_iter().enumerate() {
            assert_eq!(values[outcome.unwrap().offset as usize], number.to_string());
        }
    });
}

/// What a server refuses for good is given back at once; what was sent behind it is written.
#[test]
fn refused_for_good() {
    with_servers(1, 1, async |servers, cluster| {
        let producer = cluster.producer("t").batch_records(1).open();
        servers.fault(1, [Fault::Refuse(Refusal { retry_after: None, ..refusal(3, true) })]);
        let outcomes = send(&producer, 5).await;
        let error = outcomes[0].as_ref().unwrap_err();
        assert!(matches!(error, ProduceError::Refused { .. }) && error.is_definite(), "{error}");
        assert!(error.to_string().contains("topic t shard 0"), "{error}");
        assert_eq!((written(&outcomes), servers.values(0)), (4, numbers(5)[1..].to_vec()));
    });
}

/// What cannot be sent in time is given back, and what was sent and not answered is given back as that.
#[test]
fn delivery_timeout() {
    with_servers(1, 1, async |mut servers, cluster| {
        let builder = cluster.producer("t").batch_records(1).requests_in_flight(1);
        let producer = builder.clone().delivery_timeout(Duration::from_millis(200)).open();
        servers.fault(1, [Fault::Silence]);
        let outcomes = send(&producer, 2).await;
        assert!(matches!(outcomes[0], Err(ProduceError::Maybe { .. })), "{outcomes:?}");
        let error = outcomes[1].as_ref().unwrap_err();
        assert!(matches!(error, ProduceError::Expired { .. }) && error.is_definite(), "{error}");
        servers.kill(1);
        let outcomes = send(&producer, 2).await;
        for outcome in outcomes {
            let error = outcome.unwrap_err();
            assert!(error.is_definite() && error.to_string().contains("within 200 ms"), "{error}");
        }
        assert_eq!(servers.values(0), Vec::<String>::new());
    });
}

/// The leader moves: by a hint in an ack, by the watch, and by the leader's death. Order and number are kept.
#[test]
fn follows_the_leader() {
    with_servers(3, 1, async |mut servers, cluster| {
        let producer = cluster.producer("t").batch_records(3).open();
        let mut sent = 0;
        for (leader, term) in [(2, 2), (3, 3), (1, 4), (2, 5)] {
            servers.change(|world| world.leader = (leader, term));
            // Until the leader itself gets what we send.
            loop {
                producer.send(record(sent.to_string())).await.unwrap().await.unwrap();
                sent += 1;
                let (node, ..) = *servers.world.lock().unwrap().produced.last().unwrap();
                if node == leader {
                    break;
                }
            }
        }
        servers.kill(2);
        servers.change(|world| world.leader = (3, 6));
        // The first one may go to the dead leader before anybody notices; then nobody knows.
        while let Err(error) = producer.send(record(sent.to_string())).await.unwrap().await {
            assert!(!error.is_definite(), "{error}");
        }
        assert_eq!(servers.values(0), numbers(sent + 1));
    });
}

/// `send` waits while too much is in flight, `try_send` says so, and the room comes back.
#[test]
fn backpressure() {
    with_servers(1, 1, async |servers, cluster| {
        let producer = cluster.producer("t").in_flight_bytes(1_000).open();
        servers
            .fault(1, [Fault::Refuse(Refusal { retry_after: Some(Duration::from_millis(100)), ..refusal(8, true) })]);
        let first = producer.try_send(record("x".repeat(900))).unwrap();
        let Err(TrySendError::Full(back)) = producer.try_send(record("y".repeat(900))) else {
            panic!("it took too much")
        };
        let mut second = Box::pin(producer.send(back));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert_eq!(first.await.unwrap().offset, 0);
        assert_eq!(second.await.unwrap().await.unwrap().offset, 1);
        // Larger than all the room: it goes alone.
        assert_eq!(producer.send(record("z".repeat(5_000))).await.unwrap().await.unwrap().offset, 2);
        let error = producer.send(record("z".repeat(limits::RECORD_BYTES_MAX))).await.unwrap_err();
        assert!(matches!(error, ProduceError::TooLarge { .. }), "{error}");
        assert!(matches!(producer.send_to(1, record("")).await, Err(ProduceError::NoShard { shards: 1, .. })));
    });
}

/// A batch waits for more, but a flush and a close do not; a closed producer takes nothing.
#[test]
fn linger_flush_close() {
    with_servers(1, 1, async |servers, cluster| {
        let producer = cluster.producer("t").linger(2 * PATIENCE).delivery_timeout(4 * PATIENCE).open();
        let deliveries: Vec<_> = (0..3).map(|number| producer.try_send(record(number.to_string())).unwrap()).collect();
        producer.flush().await;
        assert_eq!(written(&join_all(deliveries).await), 3);
        assert_eq!(servers.world.lock().unwrap().produced.len(), 1, "one batch");
        let last = producer.try_send(record("3")).unwrap();
        let other = producer.clone();
        producer.close().await;
        assert_eq!(last.await.unwrap().offset, 3);
        assert!(matches!(other.send(record("4")).await, Err(ProduceError::Closed)));
        // What a flush finds waiting for its topic does not linger afterwards.
        servers.world.lock().unwrap().auto_create = Some(1);
        let producer = cluster.producer("new").linger(2 * PATIENCE).delivery_timeout(4 * PATIENCE).open();
        let deliveries: Vec<_> = (0..3).map(|number| producer.try_send(record(number.to_string())).unwrap()).collect();
        producer.flush().await;
        assert_eq!(written(&join_all(deliveries).await), 3);
        // Without a close, what was sent is delivered all the same.
        let producer = cluster.producer("t").linger(2 * PATIENCE).delivery_timeout(4 * PATIENCE).open();
        let delivery = producer.try_send(record("4")).unwrap();
        drop(producer);
        assert_eq!(delivery.await.unwrap().offset, 4);
    });
}

/// However long a batch may wait for more, time is left to send it.
#[test]
fn linger_within_the_delivery_timeout() {
    with_servers(1, 1, async |_servers, cluster| {
        let builder = cluster.producer("t").linger(2 * PATIENCE).delivery_timeout(Duration::from_secs(4));
        assert_eq!(builder.options.bounds().linger, Duration::from_secs(2));
        let short = builder.clone().linger(Duration::from_millis(5));
        assert_eq!(short.options.bounds().linger, Duration::from_millis(5));
        assert_eq!(builder.open().send(record("0")).await.unwrap().await.unwrap().offset, 0);
    });
}

/// A topic that nobody knows is made by the first record, and the others follow it in order; if it may not be made, each
/// record is given back.
#[test]
fn unknown_topics() {
    with_servers(2, 1, async |servers, cluster| {
        let producer = cluster.producer("new").spread(Spread::One).open();
        let error = producer.send(record("x")).await.unwrap().await.unwrap_err();
        assert!(error.is_definite() && error.to_string().contains("topic new"), "{error}");
        servers.world.lock().unwrap().auto_create = Some(4);
        let mut deliveries = Vec::new();
        for number in 0..50 {
            deliveries.push(producer.send(record(number.to_string())).await.unwrap());
        }
        let acked: Vec<Acked> = join_all(deliveries).await.into_iter().map(Result::unwrap).collect();
        assert!(acked.iter().enumerate().all(|(number, acked)| acked.offset == number as u64), "{acked:?}");
        let world = servers.world.lock().unwrap();
        let (_, _, shard, count) = &world.produced[1];
        assert_eq!((*shard, *count), (None, 1), "the first one lets the server choose");
        assert!(world.produced[2..].iter().all(|(_, _, shard, _)| *shard == Some(0)));
    });
}

/// What a producer sends again although it may have been written is not given back as certainly not written: neither when
/// the next try is refused for good, nor when time is up. Through a lane, and by a call of its own.
#[test]
fn at_least_once_is_not_certain() {
    for (topic, code, times) in [("t", 3, 1), ("t", 14, 500), ("new", 3, 1), ("new", 14, 500)] {
        with_servers(1, 1, async |servers, cluster| {
            servers.world.lock().unwrap().auto_create = Some(1);
            let builder = cluster.producer(topic).at_least_once(true).delivery_timeout(Duration::from_millis(200));
            let producer = builder.open();
            servers.fault(1, [Fault::Vanish { written: true }]);
            servers.fault(1, vec![Fault::Refuse(refusal(code, true)); times]);
            let error = producer.send(record("x")).await.unwrap().await.unwrap_err();
            assert!(matches!(error, ProduceError::Maybe { .. }), "{topic} {code}: {error}");
            assert_eq!(servers.world.lock().unwrap().logs[topic][0].len(), 1, "it is there");
        });
    }
}

/// What waits for an unknown topic is given back together when its time is over, not one by one with a call for each.
#[test]
fn unknown_topics_in_time() {
    with_servers(1, 1, async |servers, cluster| {
        let producer = cluster.producer("new").delivery_timeout(Duration::from_millis(200)).open();
        servers.fault(1, vec![Fault::Silence; 50]);
        let begun = Instant::now();
        let outcomes = join_all((0..50).map(|number| producer.try_send(record(number.to_string())).unwrap())).await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(matches!(outcomes[0], Err(ProduceError::Maybe { .. })), "{:?}", outcomes[0]);
        for outcome in &outcomes[1..] {
            assert!(matches!(outcome, Err(ProduceError::Expired { .. })), "{outcome:?}");
        }
        assert_eq!(servers.world.lock().unwrap().produced.len(), 1, "what is late is not sent");
    });
}

/// A dial that nobody answers is not waited for longer than the records may take.
#[test]
fn unknown_topics_without_a_server() {
    with_servers(1, 1, async |mut servers, cluster| {
        let address = servers.address(1);
        servers.kill(1);
        tokio::task::yield_now().await;
        // It takes connections, and says nothing on them.
        let _silent = tokio::net::TcpListener::bind(address).await.unwrap();
        let producer = cluster.producer("new").delivery_timeout(Duration::from_millis(200)).open();
        let begun = Instant::now();
        let outcomes = join_all((0..50).map(|number| producer.try_send(record(number.to_string())).unwrap())).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        for outcome in outcomes {
            assert!(matches!(outcome, Err(ProduceError::Expired { .. })), "{outcome:?}");
        }
    });
}

/// A topic that was deleted and made again: what was sent before and goes again is not overtaken by what is sent since.
#[test]
fn a_topic_made_again() {
    for in_flight in [1, 64] {
        with_servers(1, 1, async |servers, cluster| {
            let producer = cluster.producer("t").batch_records(1).requests_in_flight(in_flight).open();
            let not_found = Refusal { retry_after: Some(Duration::from_millis(100)), ..refusal(5, true) };
            servers.fault(1, [Fault::Refuse(not_found)]);
            let mut deliveries: Vec<_> =
                (0..10).map(|number| producer.try_send(record(number.to_string())).unwrap()).collect();
            assert!(deliveries.remove(0).await.is_err());
            deliveries.extend((10..20).map(|number| producer.try_send(record(number.to_string())).unwrap()));
            assert_eq!(written(&join_all(deliveries).await), 19);
            assert_eq!(servers.values(0), numbers(20)[1..], "{in_flight} in flight");
        });
    }
}

/// Sends a record with each of several keys; each goes to the shard of its key among so many.
async fn send_keyed(producer: &Producer, shards: u32) {
    for number in 0..20 {
        let key = format!("key {number}");
        let record = Record { key: key.clone().into(), ..Record::default() };
        let acked = producer.send(record).await.unwrap().await.unwrap();
        assert_eq!(acked.shard, shard_of_key(key.as_bytes(), shards), "{key} of {shards} shards");
    }
}

fn make_again(world: &mut World, shards: usize) {
    world.logs.insert("t".to_owned(), vec![Vec::new(); shards]);
}

/// A topic that was made again with another number of shards, as the watch tells: keys go to the shards that they have now.
#[test]
fn a_topic_made_again_with_other_shards() {
    with_servers(1, 1, async |servers, cluster| {
        let producer = cluster.producer("t").open();
        send_keyed(&producer, 1).await;
        for shards in [3, 2] {
            servers.change(|world| make_again(world, shards as usize));
            cluster.watch().wait_for(|topology| topology.shards("t") == Some(shards)).await.unwrap();
            send_keyed(&producer, shards).await;
        }
    });
}

/// The same when nothing is told: after a refusal that says that the topic is gone, a server is asked and not the cache.
#[test]
fn a_topic_made_again_in_silence() {
    with_servers(3, 1, async |servers, cluster| {
        let producer = cluster.producer("t").open();
        send_keyed(&producer, 1).await;
        servers.change(|world| {
            make_again(world, 3);
            // So nobody is believed who tells of all topics.
            for node in [2, 3] {
                world.servers.get_mut(&node).unwrap().alive = false;
            }
        });
        servers.fault(1, [Fault::Refuse(refusal(5, true))]);
        assert!(producer.send(record("x")).await.unwrap().await.is_err());
        assert_eq!(cluster.topology().shards("t"), Some(1));
        send_keyed(&producer, 3).await;
    });
}

/// When the runtime of a shard's task ends, its records are given back as abandoned, and later ones go by a new task.
#[test]
fn runtimes_that_end() {
    for topic in ["t", "new"] {
        with_servers(1, 1, async |servers, cluster| {
            servers.world.lock().unwrap().auto_create = Some(1);
            let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let producer = cluster.producer(topic).open();
            let first = {
                let _inside = other.enter();
                producer.try_send(record("0")).unwrap()
            };
            let behind = producer.try_send(record("1")).unwrap();
            other.shutdown_background();
            for delivery in [first, behind] {
                assert!(matches!(delivery.await, Err(ProduceError::Abandoned)));
            }
            producer.send(record("2")).await.unwrap().await.unwrap();
        });
    }
}
