//! Three replicas, through changes of their leader.

use std::collections::BTreeSet;

use futures_util::{FutureExt, future::join_all};

use super::*;
use crate::{
    env::{Env, reserve},
    limits::{DISK_RESERVE_BYTES, PROPOSE_BYTES_EAGER, RAFT_QUORUM_WAIT},
    reactor::ReactorError,
    shard::{Produced, ShardError, ShardStatus},
};

/// Three nodes with a replica each, and one without, once the first of them leads.
async fn four() -> Vec<World> {
    let worlds = cluster(4, &[1, 2, 3]);
    join_all(worlds[..3].iter().map(|world| world.open(&[1, 2, 3]))).await;
    until("somebody leads", || worlds[..3].iter().any(World::leads)).await;
    worlds
}

/// Who leads, by place in the list.
async fn leader(worlds: &[World]) -> usize {
    until("somebody leads", || worlds.iter().any(World::leads)).await;
    worlds.iter().position(World::leads).unwrap()
}

/// All hear each other again, and know it.
fn heal(worlds: &[World]) {
    worlds[0].network.heal();
    for world in worlds {
        (1..=4).for_each(|id| world.node.liveness.note(NodeId(id), true));
    }
}

/// A follower, by place in the list.
fn other_than(leader: usize) -> usize {
    (leader + 1) % 3
}

/// From now on all others take the node for dead.
fn bury(worlds: &[World], dead: NodeId) {
    for world in worlds.iter().filter(|world| world.id != dead) {
        world.node.liveness.note(dead, false);
    }
}

type Ack = Result<Produced, ReactorError>;

/// Checks acks against the log: each acknowledged value is at its offset, once; each that was definitely refused is not there;
/// and what is there is in the order of the calls.
async fn check(reader: &World, acks: Vec<(String, Ack)>) -> usize {
    let values = reader.values().await;
    let mut acked = 0;
    for (value, ack) in &acks {
        let found = values.iter().filter(|found| *found == value).count();
        match ack {
            Ok(produced) => {
                acked += 1;
                assert_eq!(values.get(produced.base_offset.0 as usize), Some(value));
                assert_eq!(found, 1, "{value}");
            }
            Err(error) if refusal(error.clone()).definite => assert_eq!(found, 0, "{value}: {error}"),
            Err(_) => assert!(found <= 1, "{value}"),
        }
    }
    let calls: Vec<_> = acks.iter().map(|(value, _)| value).collect();
    let order: Vec<_> = values.iter().filter_map(|value| calls.iter().position(|call| *call == value)).collect();
    assert!(order.is_sorted(), "{order:?}");
    acked
}

/// Calls through `world`, pipelined, with a breath now and then; answered in the background.
struct Stream {
    answers: Vec<(String, tokio::sync::oneshot::Receiver<Ack>)>,
    name: &'static str,
}

impl Stream {
    fn new(name: &'static str) -> Stream {
        Stream { answers: Vec::new(), name }
    }

    /// One more call, at once.
    fn produce(&mut self, world: &World) {
        let value = format!("{}{}", self.name, self.answers.len());
        let ack = world.reactor.produce(UID, produce(&value));
        let (send, answer) = tokio::sync::oneshot::channel();
        env::spawn::<TestEnv>(async move { drop(send.send(ack.await)) });
        self.answers.push((value, answer));
    }

    async fn finish(self) -> Vec<(String, Ack)> {
        let mut acks = Vec::new();
        for (value, answer) in self.answers {
            acks.push((value, within("an answer", answer).await.unwrap()));
        }
        acks
    }
}

async fn breath() {
    env::sleep::<TestEnv>(Duration::from_millis(1)).await;
}

/// Leadership is handed over again and again while streams produce through the leader, a follower and a stranger: nobody
/// notices. All is acknowledged, once, in the order of each stream.
#[test]
fn handed_over() {
    block_on(async {
        let worlds = four().await;
        let mut streams = [Stream::new("a"), Stream::new("b"), Stream::new("c")];
        let through = [0, 1, 3];
        for round in 0..6 {
            for _ in 0..40 {
                for (stream, world) in streams.iter_mut().zip(through) {
                    stream.produce(&worlds[world]);
                }
                breath().await;
            }
            let from = leader(&worlds[..3]).await;
            let to = NodeId((from as u64 + 1 + round % 2) % 3 + 1);
            let handing = worlds[from].reactor.move_leader(UID, Some(to), LONG);
            for (stream, world) in streams.iter_mut().zip(through) {
                stream.produce(&worlds[world]);
            }
            within("hand over", handing).await.unwrap();
        }
        for stream in streams {
            let acks = stream.finish().await;
            assert!(acks.iter().all(|(_, ack)| ack.is_ok()), "{:?}", acks.iter().find(|(_, ack)| ack.is_err()));
            assert_eq!(check(&worlds[0], acks).await, 6 * 41);
        }
    });
}

/// The leader dies under load. What it had may be lost or not, and says so; all else is written by the next leader, in
/// order, without an error.
#[test]
fn leader_dies() {
    block_on(async {
        let worlds = four().await;
        let dead = leader(&worlds[..3]).await;
        let (follower, stranger) = (other_than(dead), 3);
        let mut streams = [Stream::new("a"), Stream::new("b")];
        for round in 0..60 {
            streams[0].produce(&worlds[follower]);
            streams[1].produce(&worlds[stranger]);
            if round == 30 {
                worlds[0].network.crash(worlds[dead].id);
                bury(&worlds, worlds[dead].id);
            }
            if round % 3 == 0 {
                breath().await;
            }
        }
        for stream in streams {
            let acks = stream.finish().await;
            let lost = acks.iter().filter(|(_, ack)| ack.is_err()).count();
            assert!(
                acks.iter().filter_map(|(_, ack)| ack.as_ref().err()).all(|error| !refusal(error.clone()).definite)
            );
            assert!(acks[40..].iter().all(|(_, ack)| ack.is_ok()), "requests wait for the next leader");
            assert_eq!(check(&worlds[follower], acks).await, 60 - lost);
        }
    });
}

/// A leader that is cut off from the others keeps what it has to itself; its own clients' requests that it did not propose
/// go to the next leader when it hears of it, in order.
#[test]
fn leader_cut_off() {
    block_on(async {
        let worlds = four().await;
        let cut = leader(&worlds[..3]).await;
        let mut stream = Stream::new("a");
        stream.produce(&worlds[cut]);
        until("committed", || worlds[cut].reactor.shard(UID).unwrap().high_watermark() == Offset(1)).await;
        worlds[0].network.isolate(worlds[cut].id);
        bury(&worlds, worlds[cut].id);
        // The first is proposed and hangs; those behind it gather.
        for _ in 0..20 {
            stream.produce(&worlds[cut]);
        }
        let new = async {
            loop {
                if let Some(new) = (0..3).find(|place| *place != cut && worlds[*place].leads()) {
                    return new;
                }
                breath().await;
            }
        };
        let new = within("the others elect", new).await;
        let mut after = Stream::new("b");
        after.produce(&worlds[new]);
        let acks = after.finish().await;
        assert!(acks[0].1.is_ok());
        heal(&worlds);
        let acks = stream.finish().await;
        let refused = acks.iter().filter(|(_, ack)| ack.is_err()).count();
        assert!(refused <= 8, "only what was proposed is uncertain: {refused}");
        assert!(acks[9..].iter().all(|(_, ack)| ack.is_ok()));
        check(&worlds[new], acks).await;
    });
}

/// A leader whose entries arrive at the others, and which hears no answer, cannot tell what has become of them. It says so,
/// and sends none of them again: the others have committed them.
#[test]
fn leader_hears_nothing() {
    block_on(async {
        let worlds = four().await;
        let deaf = leader(&worlds[..3]).await;
        let others = || (0..3).filter(|place| *place != deaf);
        let mut stream = Stream::new("a");
        stream.produce(&worlds[deaf]);
        until("committed", || worlds[deaf].reactor.shard(UID).unwrap().high_watermark() == Offset(1)).await;
        for other in others() {
            worlds[0].network.cut(worlds[other].id, worlds[deaf].id);
        }
        for _ in 0..3 {
            stream.produce(&worlds[deaf]);
            breath().await;
        }
        let end = |place: usize| worlds[place].reactor.shard(UID).unwrap().status().log_end;
        until("entries at the others", || others().all(|place| end(place) > Offset(1))).await;
        bury(&worlds, worlds[deaf].id);
        until("the others elect", || others().any(|place| worlds[place].leads())).await;
        let new = others().find(|place| worlds[*place].leads()).unwrap();
        let mut after = Stream::new("b");
        after.produce(&worlds[new]);
        assert!(after.finish().await[0].1.is_ok());
        // Until it gives up on them.
        env::sleep::<TestEnv>(RAFT_QUORUM_WAIT + Duration::from_millis(200)).await;
        heal(&worlds);
        let acks = stream.finish().await;
        let unknown = |ack: &Ack| ack.as_ref().err().is_some_and(|error| !refusal(error.clone()).definite);
        assert!(unknown(&acks[1].1), "it is at the others, and nobody has said so: {:?}", acks[1].1);
        check(&worlds[new], acks).await;
    });
}

/// A leader that is cut off with a record of unknown fate refuses nothing for it: it does not know where the log ends. What does
/// not fit to its own log is for the next leader to judge, and holds there.
#[test]
fn condition_at_a_leader_that_is_cut_off() {
    block_on(async {
        let worlds = four().await;
        let cut = leader(&worlds[..3]).await;
        let others = || (0..3).filter(|place| *place != cut);
        worlds[cut].reactor.produce(UID, produce("first")).await.unwrap();
        worlds[0].network.isolate(worlds[cut].id);
        let unknown = within("it is given up", worlds[cut].reactor.produce(UID, produce("unknown"))).await;
        assert!(!refusal(unknown.unwrap_err()).definite);
        bury(&worlds, worlds[cut].id);
        until("the others elect", || others().any(|place| worlds[place].leads())).await;
        let expecting = |offset| Produce { expected_offset: Some(Offset(offset)), ..produce("conditional") };
        let past = within("a refusal", worlds[cut].reactor.produce(UID, expecting(0)));
        let mut conditional = Box::pin(worlds[cut].reactor.produce(UID, expecting(1)));
        settle().await;
        let early = conditional.as_mut().now_or_never();
        assert!(early.is_none(), "{early:?}");
        heal(&worlds);
        assert_eq!(within("the next leader", conditional).await.unwrap().base_offset, Offset(1));
        let past = refusal(past.await.unwrap_err());
        assert_eq!(past.reason, "OFFSET_MISMATCH");
        assert!(past.message.contains("would get 1"), "nothing else was ever committed: {}", past.message);
        assert_eq!(worlds[others().next().unwrap()].values().await, ["first", "conditional"]);
    });
}

/// Nor does what it had in flight judge a condition that came later, when that lands at last: the others may have gone on from it.
#[test]
fn condition_behind_what_lands_late() {
    block_on(async {
        let worlds = four().await;
        let cut = leader(&worlds[..3]).await;
        let others = || (0..3).filter(|place| *place != cut);
        let [late, other] = [others().next().unwrap(), others().nth(1).unwrap()];
        for place in [cut, late] {
            worlds[place].disk.hold();
        }
        let mut in_flight = Box::pin(worlds[cut].reactor.produce(UID, produce("first")));
        assert!(in_flight.as_mut().now_or_never().is_none());
        // One of the others has it, and this leader knows: its own disk makes a majority.
        let shard = worlds[cut].reactor.shard(UID).unwrap();
        let has_it = || shard.status().log_end == Offset(1) && shard.lag_of(worlds[other].id) == Some(0);
        until("another one has it", has_it).await;
        worlds[0].network.isolate(worlds[cut].id);
        worlds[late].disk.release();
        bury(&worlds, worlds[cut].id);
        until("the others elect", || others().any(|place| worlds[place].leads())).await;
        let next = others().find(|place| worlds[*place].leads()).unwrap();
        let second = within("the next leader", worlds[next].reactor.produce(UID, produce("second"))).await.unwrap();
        assert_eq!(second.base_offset, Offset(1));
        let large = "x".repeat(PROPOSE_BYTES_EAGER);
        let expecting = Produce { expected_offset: Some(Offset(2)), ..produce(&large) };
        let mut conditional = Box::pin(worlds[cut].reactor.produce(UID, expecting));
        assert!(conditional.as_mut().now_or_never().is_none());
        worlds[cut].disk.release();
        settle().await;
        let early = conditional.as_mut().now_or_never();
        assert!(early.is_none(), "{early:?}");
        heal(&worlds);
        assert_eq!(within("the next leader", conditional).await.unwrap().base_offset, Offset(2));
        drop(in_flight);
    });
}

/// All replicas give the same records, and the same chain hash at the same place.
#[test]
fn any_replica_serves() {
    block_on(async {
        let worlds = four().await;
        let mut stream = Stream::new("a");
        for _ in 0..50 {
            stream.produce(&worlds[3]);
        }
        let acks = stream.finish().await;
        assert!(acks.iter().all(|(_, ack)| ack.is_ok()));
        for world in &worlds {
            // Read your writes, from whomever.
            let consume = Consume { min_offset: Some(Offset(50)), ..at(49) };
            let consumed = within("min_offset", world.reactor.consume(UID, consume)).await.unwrap();
            assert_eq!(decode(&consumed)[0].value, "a49");
            let consume = Consume { linearizable: true, ..from(Start::Latest) };
            let consumed = within("linearizable", world.reactor.consume(UID, consume)).await.unwrap();
            assert_eq!(consumed.next_offset, Offset(50));
        }
        let status = |world: &World| world.reactor.status(&[UID])[0].clone().unwrap();
        let ends = || worlds[..3].iter().map(|world| status(world).applied_end).collect::<BTreeSet<_>>();
        until("all have applied all", || ends().len() == 1).await;
        assert_eq!(worlds[..3].iter().map(|world| status(world).chain).collect::<BTreeSet<_>>().len(), 1);
        for world in &worlds[..3] {
            assert_eq!(status(world).members.voters.len(), 3);
            assert_eq!(status(world).progress.len(), if world.leads() { 2 } else { 0 });
        }
    });
}

/// A replica that is behind sends whoever has seen more to the leader, instead of calling the offset impossible; without a
/// leader in reach it says what it has.
#[test]
fn a_replica_behind() {
    block_on(async {
        let worlds = four().await;
        let leading = leader(&worlds[..3]).await;
        let behind = other_than(leading);
        let third = (0..3).find(|place| ![leading, behind].contains(place)).unwrap();
        worlds[leading].reactor.produce(UID, produce("first")).await.unwrap();
        until("replicated", || worlds[behind].reactor.shard(UID).unwrap().high_watermark() == Offset(1)).await;
        // It hears nothing of the group, and is heard.
        worlds[0].network.cut(worlds[leading].id, worlds[behind].id);
        worlds[0].network.cut(worlds[third].id, worlds[behind].id);
        worlds[leading].reactor.produce(UID, produce("second")).await.unwrap();
        let deadline_us = |in_us: u64| Some(TestEnv::monotonic_us() + in_us);
        let consume = Consume { deadline_us: deadline_us(400_000), ..at(2) };
        let mut waiting = Box::pin(worlds[behind].reactor.consume(UID, consume));
        assert!(waiting.as_mut().now_or_never().is_none());
        TestEnv::advance_us(300_000);
        settle().await;
        worlds[0].network.heal();
        let consumed = within("the leader, or its news", waiting).await.unwrap();
        assert_eq!((consumed.count, consumed.next_offset), (0, Offset(2)));

        let beyond = worlds[behind].reactor.consume(UID, at(99));
        let error = within("the leader's word", async {
            TestEnv::advance_us(300_000);
            beyond.await
        })
        .await
        .unwrap_err();
        assert_eq!(refusal(error).reason, "OFFSET_OUT_OF_RANGE");
        let impatient = Consume { min_offset: Some(Offset(99)), deadline_us: deadline_us(1_000), ..at(0) };
        let error = within("behind", worlds[leading].reactor.consume(UID, impatient)).await.unwrap_err();
        assert!(matches!(error, ReactorError::Shard(ShardError::Behind { .. })), "{error}");
    });
}

/// Trims go to the leader through anybody, and all replicas follow.
#[test]
fn trims() {
    block_on(async {
        let worlds = four().await;
        for n in 0..10 {
            worlds[3].reactor.produce(UID, produce(&n.to_string())).await.unwrap();
        }
        for (before, world) in (1..).zip(&worlds) {
            let trimmed = within("trim", world.reactor.trim(UID, Offset(before))).await.unwrap();
            assert_eq!(trimmed, Offset(before));
        }
        let log_start = |world: &World| world.reactor.status(&[UID])[0].clone().unwrap().log_start;
        until("all follow", || worlds[..3].iter().all(|world| log_start(world) == Offset(4))).await;
    });
}

fn status(world: &World) -> ShardStatus {
    world.reactor.status(&[UID])[0].clone().unwrap()
}

/// Records of 400 kB: two fill a segment.
async fn fill(world: &World, count: usize) {
    let value = "x".repeat(400_000);
    for _ in 0..count {
        within("an ack", world.reactor.produce(UID, produce(&value))).await.unwrap();
    }
}

/// What a trim has put below the log start is deleted on all replicas, also in a topic without limits; of a segment that is not
/// full when it comes, once it is.
#[test]
fn trimmed_everywhere() {
    block_on(async {
        let worlds = four().await;
        fill(&worlds[3], 8).await;
        until("all have them", || worlds[..3].iter().all(|world| status(world).segments >= 4)).await;
        within("trim", worlds[3].reactor.trim(UID, Offset(8))).await.unwrap();
        until("full ones are deleted", || worlds[..3].iter().all(|world| status(world).segments == 1)).await;
        fill(&worlds[3], 2).await;
        until("all have more", || worlds[..3].iter().all(|world| status(world).log_end == Offset(10))).await;
        until("the last one is deleted", || worlds[..3].iter().all(|world| status(world).segments == 1)).await;
    });
}

/// A follower whose disk is full follows the trims that free it, while the leader goes on writing: each time something is
/// waiting for the space.
#[test]
fn trims_free_a_full_follower() {
    block_on(async {
        let worlds = four().await;
        let full = &worlds[other_than(leader(&worlds[..3]).await)];
        full.disk.keep_reserve(DISK_RESERVE_BYTES);
        reserve::keep(&full.disk).await.unwrap();
        fill(&worlds[3], 8).await;
        until("it has them", || status(full).log_end == Offset(8)).await;
        full.disk.set_capacity(Some(full.disk.used_bytes()));
        for (trim, records) in [(8, 6), (14, 6), (20, 6)] {
            fill(&worlds[3], records).await;
            within("trim", worlds[3].reactor.trim(UID, Offset(trim))).await.unwrap();
            fill(&worlds[3], 2).await;
            within("trim", worlds[3].reactor.trim(UID, Offset(trim + 1))).await.unwrap();
        }
        let end = status(&worlds[leader(&worlds[..3]).await]).log_end;
        within("trim", worlds[3].reactor.trim(UID, end)).await.unwrap();
        until("it follows", || status(full).log_start == end && status(full).segments <= 1).await;
        fill(&worlds[3], 4).await;
        until("it goes on", || status(full).high_watermark == end.plus(4)).await;
        assert_eq!(status(full).fault, None);
    });
}
