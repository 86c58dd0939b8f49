//! Several replicas: the same log everywhere, whatever happens to one of them.

use futures_util::{StreamExt, stream};
use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    network::RPCOption,
    raft::AppendEntriesRequest,
    rt::{AsyncRuntime, Instant},
};

use super::{cluster::*, *};
use crate::{
    budget::{Class, Use},
    env::runtime::block_on,
    limits::{RAFT_QUORUM_WAIT, UNFLUSHED_PART},
};

/// What is acknowledged is everywhere in a moment: the same entries, offsets and hashes.
#[test]
fn three_replicas() {
    block_on(async {
        let cluster = Cluster::founded(1, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let group = cluster.group(leader);
        let mut acknowledged = Vec::new();
        for round in 0..20 {
            let end = group.log().log_end().0;
            let waiting: Vec<_> =
                (0..8).map(|n| group.propose(batch(Offset(end + 3 * n), 3, 500 * round + 1))).collect();
            for answer in waiting {
                acknowledged.push(guard("an ack", answer).await.unwrap().header);
            }
        }
        assert!(acknowledged.iter().enumerate().all(|(n, header)| header.base_offset == Offset(3 * n as u64)));
        assert_eq!(guard("a command", group.propose(command(9))).await.unwrap().answer.commands, 9);
        cluster.agree(&[1, 2, 3]).await;
        for node in [1, 2, 3] {
            cluster.holds(node, &acknowledged).await;
            assert_eq!(cluster.group(node).leader().0, Some(NodeId(leader)));
            assert_eq!(cluster.group(node).members().voters, ids(&[1, 2, 3]));
        }
        let progress = group.progress();
        assert_eq!(progress.len(), 2);
        cluster.end().await;
    });
}

/// A leader that crashes is replaced as soon as it is taken for dead; what was acknowledged is there, and it comes back
/// as a follower that has the same.
#[test]
fn leader_crashes() {
    for seed in 0..4 {
        block_on(async {
            let mut cluster = Cluster::founded(seed, &[1, 2, 3]).await;
            let leader = cluster.leader().await;
            let others = cluster.followers(leader);
            let mut acknowledged = Vec::new();
            for _ in 0..10 {
                acknowledged.push(cluster.produce(&[leader], 2, 3_000).await);
            }
            let group = cluster.group(leader).clone();
            let end = group.log().log_end();
            let in_flight: Vec<_> = (0..4).map(|n| group.propose(batch(Offset(end.0 + n), 1, 10))).collect();
            crate::env::yield_now().await;
            cluster.crash(leader);
            cluster.note(leader, false);
            let next = cluster.leader_of(&others).await;
            acknowledged.push(cluster.produce(&others, 1, 10).await);
            drop(in_flight);
            assert!(cluster.group(next).leader().1 > acknowledged[0].id.term);
            cluster.start(leader, None).await;
            cluster.agree(&[1, 2, 3]).await;
            for node in [1, 2, 3] {
                cluster.holds(node, &acknowledged).await;
            }
            cluster.end().await;
        });
    }
}

/// A leader that is back before anybody missed it does not lead on in its old term, and says so: the group has a leader again
/// long before the time-outs, though its node was never dead.
#[test]
fn leader_restarts_quickly() {
    block_on(async {
        let mut cluster = Cluster::founded(5, &[1, 2, 3]).await;
        // A test that waited for these would hang.
        let leader = cluster.leader().await;
        let term = cluster.group(leader).leader().1;
        let acknowledged = vec![cluster.produce(&[leader], 1, 10).await];
        cluster.crash(leader);
        cluster.start(leader, None).await;
        let all = [1, 2, 3];
        until("another term", || {
            all.iter().any(|id| cluster.group(*id).leads() && cluster.group(*id).leader().1 > term).then_some(())
        })
        .await;
        cluster.produce(&all, 1, 10).await;
        cluster.agree(&all).await;
        cluster.holds(leader, &acknowledged).await;
        cluster.end().await;
    });
}

/// Fills segments until the log keeps this many checkpoints; the first records are the youngest.
pub(super) async fn fill(cluster: &Cluster, leader: u64, checkpoints: usize) {
    let group = cluster.group(leader);
    let young = Proposal { record_timestamp_max_us: 9_000_000, ..batch(group.log().log_end(), 1, 10) };
    guard("an ack", group.propose(young)).await.unwrap();
    while group.log().checkpoints().len() < checkpoints {
        cluster.produce(&[leader], 5, 60_000).await;
    }
}

/// Three replicas with a record, of which one has crashed: the cluster, its leader, and the follower that is down.
pub(super) async fn one_down(seed: u64) -> (Cluster, u64, u64) {
    let mut cluster = Cluster::founded(seed, &[1, 2, 3]).await;
    let leader = cluster.leader().await;
    let down = cluster.followers(leader)[0];
    cluster.produce(&[leader], 1, 10).await;
    cluster.crash(down);
    cluster.note(down, false);
    (cluster, leader, down)
}

/// A follower that was down catches up by entries, also many megabytes of them, while the leader goes on.
#[test]
fn catches_up_by_entries() {
    block_on(async {
        let (mut cluster, leader, down) = one_down(6).await;
        for _ in 0..60 {
            cluster.produce(&[leader], 3, 200_000).await;
        }
        cluster.start(down, None).await;
        for _ in 0..20 {
            cluster.produce(&[leader], 3, 1_000).await;
        }
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// A follower holds each entry in blocks of its own, however small it is: so a leader sends few of them at a time, and one with
/// little memory has room for what it lacks.
#[test]
fn catches_up_by_small_entries() {
    block_on(async {
        let (mut cluster, leader, down) = one_down(6).await;
        for _ in 0..20 {
            let end = cluster.group(leader).log().log_end().0;
            let all: Vec<_> = (0..50).map(|n| cluster.group(leader).propose(batch(Offset(end + n), 1, 10))).collect();
            for answer in all {
                guard("an ack", answer).await.unwrap();
            }
        }
        cluster.memory_bytes = 2 << 20;
        cluster.start(down, None).await;
        cluster.agree(&[1, 2, 3]).await;
        let peak = cluster.group(down).log().memory().peak();
        assert!(peak <= cluster.memory_bytes, "{peak} bytes");
        cluster.end().await;
    });
}

/// A follower behind the log's start gets the checkpoint, begins there, and has the leader's hashes from there on: the
/// largest timestamp of what it never saw included. So does a node that was never a member.
#[test]
fn catches_up_by_a_snapshot() {
    for seed in 0..2 {
        block_on(async {
            let (mut cluster, leader, down) = one_down(seed).await;
            fill(&cluster, leader, 3).await;
            let group = cluster.group(leader).clone();
            let boundary = group.log().checkpoints()[1];
            guard("a purge", group.purge_to(boundary)).await.unwrap();
            assert_eq!(group.log().purged().map(|id| id.index), Some(boundary));
            cluster.produce(&[leader], 2, 10).await;
            cluster.start(down, None).await;
            cluster.start(4, None).await;
            guard("a learner", group.add_learner(NodeId(4))).await.unwrap();
            cluster.agree(&[1, 2, 3, 4]).await;
            for begun in [down, 4] {
                assert_eq!(cluster.group(begun).log().first_index(), boundary.next());
                assert_eq!(cluster.group(begun).log().chain(), group.log().chain());
                assert_eq!(cluster.group(begun).log().end(), group.log().end());
            }
            // What it was given it keeps.
            cluster.crash(4);
            cluster.start(4, None).await;
            cluster.produce(&[leader], 2, 10).await;
            cluster.agree(&[1, 2, 3, 4]).await;
            cluster.end().await;
        });
    }
}

/// A purge that a leader has put off, because a follower is being sent what is to go, is made when it leads no more: whether the call
/// waits for it, or was cancelled and comes again.
#[test]
fn purge_of_a_deposed_leader() {
    for (waits, seed) in [(true, 15), (false, 16)] {
        block_on(async {
            let cluster = Cluster::founded(seed, &[1, 2, 3]).await;
            let leader = cluster.leader().await;
            let [behind, next] = cluster.followers(leader)[..] else { panic!("there are two") };
            cluster.produce(&[leader], 1, 10).await;
            cluster.agree(&[1, 2, 3]).await;
            cluster.network.isolate(NodeId(behind));
            fill(&cluster, leader, 2).await;
            let group = cluster.group(leader).clone();
            let boundary = group.log().checkpoints()[0];
            let mut purging = Box::pin(group.purge_to(boundary));
            let short = Duration::from_millis(100);
            let purged = <TestEnv as Env>::Runtime::timeout(short, &mut purging).await;
            assert!(purged.is_err(), "it is sent what is to go: {purged:?}");
            if !waits {
                purging = Box::pin(group.purge_to(boundary));
            }
            guard("a transfer", group.transfer(Some(NodeId(next)), Duration::from_secs(10))).await.unwrap();
            guard("a purge", purging).await.unwrap();
            assert_eq!(group.log().purged().map(|id| id.index), Some(boundary));
            cluster.network.heal();
            cluster.network.expire();
            cluster.agree(&[1, 2, 3]).await;
            cluster.end().await;
        });
    }
}

/// A leader that is cut off keeps nothing that it says is not written: what it took without a majority is answered by
/// what has become of it, and what was acknowledged survives.
#[test]
fn leader_is_cut_off() {
    for seed in 0..4 {
        block_on(async {
            let cluster = Cluster::founded(seed, &[1, 2, 3]).await;
            let old = cluster.leader().await;
            let others = cluster.followers(old);
            let mut acknowledged = vec![cluster.produce(&[old], 3, 100).await];
            let group = cluster.group(old);
            cluster.network.isolate(NodeId(old));
            let end = group.log().log_end();
            let lost: Vec<_> = (0..5).map(|n| group.propose(batch(Offset(end.0 + n), 1, 7))).collect();
            crate::env::yield_now().await;
            // Each side takes the other for dead.
            cluster.note(old, false);
            for other in &others {
                cluster.note_at(old, *other, false);
            }
            acknowledged.push(cluster.produce(&others, 2, 10).await);
            assert!(cluster.group(others[0]).leader().0 != Some(NodeId(old)));
            cluster.network.heal();
            cluster.network.expire();
            for node in [1, 2, 3] {
                cluster.note(node, true);
            }
            // More than those that are lost, so that each of their places is taken.
            for _ in 0..6 {
                acknowledged.push(cluster.produce(&others, 2, 10).await);
            }
            cluster.agree(&[1, 2, 3]).await;
            for answer in lost {
                match guard("an answer", answer).await {
                    // Replaced by the others' entries, and that is certain by now.
                    Err(GroupError::NotLeader { .. }) => {}
                    other => panic!("{other:?}, though something else was committed there"),
                }
            }
            for node in [1, 2, 3] {
                cluster.holds(node, &acknowledged).await;
                let payloads = headers(cluster.group(node)).await;
                assert!(payloads.iter().all(|header| header.payload_bytes != 7), "what is not written is not there");
            }
            cluster.end().await;
        });
    }
}

/// Of the clock by which a group waits.
type Now = <<TestEnv as Env>::Runtime as AsyncRuntime>::Instant;

/// What a leader has taken when it is cut off is given up at one time, though each answer is awaited after the one before.
#[test]
fn given_up_together() {
    block_on(async {
        let cluster = Cluster::founded(15, &[1, 2, 3]).await;
        let old = cluster.leader().await;
        cluster.produce(&[old], 3, 100).await;
        let group = cluster.group(old);
        cluster.network.isolate(NodeId(old));
        let began = Now::now();
        let end = group.log().log_end();
        let taken: Vec<_> = (0..4).map(|n| group.propose(batch(Offset(end.0 + n), 1, 7))).collect();
        for answer in taken {
            let answer = guard("an answer", answer).await;
            assert!(matches!(answer, Err(GroupError::Deposed { .. })), "{answer:?}");
        }
        let waited = Now::now().saturating_duration_since(began);
        assert!(RAFT_QUORUM_WAIT <= waited && waited < RAFT_QUORUM_WAIT * 3 / 2, "{waited:?}");
        cluster.network.heal();
        cluster.network.expire();
        cluster.produce(&[1, 2, 3], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// Of an entry that was in the log, only what is committed in its place says that it is gone.
#[test]
fn fate_of_a_replaced_entry() {
    block_on(async {
        let (group, _) = open(&SimDisk::new()).await;
        produce(&group, 1, 10).await.unwrap();
        let committed = group.log().last().unwrap();
        let earlier = LogId { term: Term(committed.term.0 - 1), index: committed.index };
        let later = LogId { term: committed.term, index: Index(committed.index.0 + 9) };
        assert!(matches!(group.fate(None, None).await, GroupError::NotLeader { .. }), "it never was in the log");
        assert!(
            matches!(group.fate(Some(earlier), None).await, GroupError::NotLeader { .. }),
            "another took its place"
        );
        assert!(matches!(group.fate(Some(committed), None).await, GroupError::Deposed { .. }), "it is there");
        assert!(matches!(group.fate(Some(later), None).await, GroupError::Deposed { .. }), "nothing is there yet");
        group.close().await.unwrap();
    });
}

/// A node that comes back from isolation leaves the term, and the leader, alone.
#[test]
fn isolated_node_does_not_disturb() {
    block_on(async {
        let cluster = Cluster::founded(7, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let lonely = cluster.followers(leader)[1];
        let term = cluster.group(leader).leader().1;
        cluster.network.isolate(NodeId(lonely));
        // It takes all others for dead, and asks for votes that nobody hears.
        for other in cluster.followers(lonely) {
            cluster.note_at(lonely, other, false);
        }
        cluster.note(lonely, false);
        for _ in 0..40 {
            cluster.produce(&[leader], 1, 10).await;
            env::sleep::<TestEnv>(Duration::from_millis(10)).await;
        }
        cluster.network.heal();
        cluster.network.expire();
        for _ in 0..20 {
            cluster.produce(&[leader], 1, 10).await;
            env::sleep::<TestEnv>(Duration::from_millis(5)).await;
        }
        for node in [1, 2, 3] {
            cluster.note(node, true);
        }
        cluster.agree(&[1, 2, 3]).await;
        for node in [1, 2, 3] {
            assert_eq!(cluster.group(node).leader(), (Some(NodeId(leader)), term), "node {node}");
        }
        cluster.end().await;
    });
}

/// With a slow disk under the leader, the others are a majority without it: what they have is committed and applied before
/// the leader's own flush, and several appends are on their way at once.
#[test]
fn commits_before_the_leaders_own_flush() {
    block_on(async {
        let cluster = Cluster::founded(8, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        let group = cluster.group(leader);
        let flushed = group.log().flushed();
        cluster.disk(leader).hold();
        let end = group.log().log_end();
        let first = group.propose(batch(end, 2, 10));
        let second = group.propose(batch(Offset(end.0 + 2), 2, 10));
        let third = group.propose(batch(Offset(end.0 + 4), 2, 10));
        for answer in [first, second, third] {
            guard("an ack", answer).await.unwrap();
        }
        assert_eq!(group.log().flushed(), flushed, "nothing of it is durable here");
        assert_eq!(group.high_watermark(), Offset(end.0 + 6));
        // A crash of it loses nothing: the others have it.
        cluster.disk(leader).release();
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// openraft's `enable_leader_restore` would lose an acknowledged entry here: the leader crashes before its
/// own flush of an entry that the others have; started again at once it must not lead on in its term, and give
/// the entry's place to another.
#[test]
fn leader_that_lost_what_the_others_have() {
    block_on(async {
        let mut cluster = Cluster::founded(9, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        let group = cluster.group(leader).clone();
        let term = group.leader().1;
        cluster.disk(leader).hold();
        let lost_here = guard("an ack", produce(&group, 1, 30)).await.unwrap().header;
        assert!(group.log().flushed().is_some_and(|flushed| flushed.index < lost_here.id.index));
        cluster.crash(leader);
        cluster.start(leader, None).await;
        let restarted = cluster.group(leader);
        assert!(restarted.log().last().is_none_or(|last| last.index < lost_here.id.index), "its disk lost the entry");
        until("a leader of a later term", || {
            [1, 2, 3].iter().any(|id| cluster.group(*id).leads() && cluster.group(*id).leader().1 > term).then_some(())
        })
        .await;
        let next = cluster.produce(&[1, 2, 3], 1, 31).await;
        assert!(next.id.index > lost_here.id.index && next.base_offset >= lost_here.end_offset());
        cluster.agree(&[1, 2, 3]).await;
        for node in [1, 2, 3] {
            cluster.holds(node, &[lost_here, next]).await;
        }
        cluster.end().await;
    });
}

/// Five replicas outlive two.
#[test]
fn five_replicas() {
    block_on(async {
        let all = [1, 2, 3, 4, 5];
        let mut cluster = Cluster::founded(10, &all).await;
        let mut acknowledged = Vec::new();
        let mut gone = Vec::new();
        for _ in 0..2 {
            let left: Vec<u64> = all.iter().copied().filter(|id| !gone.contains(id)).collect();
            let leader = cluster.leader_of(&left).await;
            for _ in 0..5 {
                acknowledged.push(cluster.produce(&left, 2, 5_000).await);
            }
            cluster.crash(leader);
            cluster.note(leader, false);
            gone.push(leader);
        }
        let left: Vec<u64> = all.iter().copied().filter(|id| !gone.contains(id)).collect();
        acknowledged.push(cluster.produce(&left, 2, 10).await);
        for id in gone {
            cluster.start(id, None).await;
        }
        cluster.agree(&all).await;
        for node in all {
            cluster.holds(node, &acknowledged).await;
        }
        cluster.end().await;
    });
}

/// A replica whose disk fails stops, though its node is alive: as leader it is replaced, as follower nobody waits for it.
#[test]
fn disk_of_one_replica_fails() {
    block_on(async {
        let cluster = Cluster::founded(11, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let others = cluster.followers(leader);
        cluster.produce(&[leader], 1, 10).await;
        let broken = |operation| crate::sim::Fault {
            operation,
            path_contains: "/shards/7".into(),
            skip: 0,
            times: 1,
            error: std::io::ErrorKind::Other,
        };
        cluster.disk(leader).plant(broken(crate::sim::Operation::AppendDurable));
        let group = cluster.group(leader);
        let answer = guard("an answer", produce(group, 1, 10)).await;
        // The others may have committed it before.
        assert!(matches!(answer, Ok(_) | Err(GroupError::Stopped { maybe_written: true, .. })), "{answer:?}");
        until("the fault", || group.fault()).await;
        until("no leader there", || (!group.leads()).then_some(())).await;
        cluster.produce(&others, 1, 10).await;
        cluster.agree(&others).await;
        cluster.end().await;
    });
}

/// Damage that a read has found stops the log of an idle leader; it does not lead on with it.
#[test]
fn idle_leader_stops() {
    block_on(async {
        let cluster = Cluster::founded(12, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let others = cluster.followers(leader);
        let what = "on purpose".to_string();
        cluster.group(leader).log().condemn(LogError::Corrupt { file: "f".into(), position: 4096, what });
        until("no leader there", || (!cluster.group(leader).leads()).then_some(())).await;
        cluster.produce(&others, 1, 10).await;
        cluster.end().await;
    });
}

/// Proposals of a leader that no majority has answered yet wait, in order, and are not refused.
#[test]
fn fresh_leader_keeps_proposals() {
    block_on(async {
        let cluster = Cluster::founded(13, &[1, 2, 3]).await;
        let old = cluster.leader().await;
        let to = cluster.followers(old)[0];
        cluster.produce(&[old], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        // Slow enough to be between election and first answer.
        cluster.network.set_delay(40);
        let group = cluster.group(to);
        let handing = cluster.group(old).transfer(Some(NodeId(to)), Duration::from_secs(30));
        let proposing = async {
            while !group.inner.state.leading.get() {
                crate::env::yield_now().await;
            }
            assert!(!group.inner.is_confirmed(Duration::ZERO), "nobody has answered yet");
            let end = group.log().log_end();
            (0..5).map(|n| group.propose(batch(Offset(end.0 + n), 1, 10))).collect::<Vec<_>>()
        };
        let (handed, waiting) = futures_util::future::join(handing, proposing).await;
        handed.unwrap();
        let mut before = None;
        for answer in waiting {
            let header = guard("an ack", answer).await.unwrap().header;
            assert_eq!(header.kind, EntryKind::Batch, "each got the place that it was made for");
            assert!(before < Some(header.id));
            before = Some(header.id);
        }
        cluster.network.set_delay(0);
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// A leader without a majority refuses what waits after a lease, and nothing of it was written.
#[test]
fn leader_without_a_majority_refuses() {
    block_on(async {
        let mut cluster = Cluster::new(14);
        cluster.timing = Timing { heartbeat_ms: 40, election_ms_min: 200, election_ms_max: 300 };
        for node in [1, 2, 3] {
            cluster.start(node, Some(ids(&[1, 2, 3]))).await;
        }
        let leader = cluster.leader().await;
        cluster.produce(&[leader], 1, 10).await;
        let group = cluster.group(leader);
        cluster.network.isolate(NodeId(leader));
        until("a lapsed lease", || (!group.inner.is_confirmed(Duration::ZERO)).then_some(())).await;
        let end = group.log().last();
        let refused = guard("a refusal", produce(group, 1, 10)).await;
        assert!(matches!(refused, Err(GroupError::NotLeader { .. })), "{refused:?}");
        assert_eq!(group.log().last(), end);
        cluster.network.heal();
        cluster.network.expire();
        cluster.produce(&[1, 2, 3], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// A follower on whose reactor too much is not flushed reads no more entries: they stay at the leader, which goes on with
/// the others, and come when there is room.
#[test]
fn follower_stops_reading() {
    block_on(async {
        let cluster = Cluster::founded(1, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let slow = cluster.followers(leader)[0];
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        let group = cluster.group(slow);
        let memory = group.log().memory();
        let others = memory.force(Use::Unflushed, memory.limit(Class::Client) / UNFLUSHED_PART);
        assert!(!group.has_flush_room());
        // The one for which it waits already comes in.
        cluster.produce(&[leader], 1, 10).await;
        until("the one", || (group.log().last() == cluster.group(leader).log().last()).then_some(())).await;
        let last = group.log().last();
        for _ in 0..5 {
            cluster.produce(&[leader], 1, 10_000).await;
            env::sleep::<TestEnv>(Duration::from_millis(10)).await;
        }
        assert_eq!(group.log().last(), last, "nothing was read");
        drop(others);
        cluster.agree(&[1, 2, 3]).await;
        assert!(group.log().last() > last);
        cluster.end().await;
    });
}

/// A session whose next entries were purged after openraft had built it ends, so that openraft looks at what the follower is to be
/// sent now: else the follower gets nothing until there is another leader.
#[test]
fn a_stale_session_ends() {
    block_on(async {
        let cluster = Cluster::founded(1, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let first = cluster.produce(&[leader], 1, 10).await.id;
        let last = cluster.produce(&[leader], 1, 10).await.id;
        cluster.agree(&[1, 2, 3]).await;
        let group = cluster.group(leader);
        let vote = types::to_raft_vote(group.log().hard_state().vote.unwrap());
        let request = |prev: LogId, commit: LogId| AppendEntriesRequest::<types::TypeConfig<TestEnv, Tally>> {
            vote,
            prev_log_id: Some(types::to_raft(prev)),
            entries: Vec::new(),
            leader_commit: Some(types::to_raft(commit)),
        };
        let mut network = group.inner.network.clone();
        let mut peer = network.new_client(cluster.followers(leader)[0], &types::Node::default()).await;
        for stale in [false, true] {
            let current = [request(last, first), request(last, last)];
            let requests = current.into_iter().chain(stale.then(|| request(first, last)));
            let input = stream::iter(requests).chain(stream::pending());
            let session = peer.stream_append(input, RPCOption::new(Duration::from_secs(1))).await.unwrap();
            let mut session = std::pin::pin!(session);
            for _ in 0..2 {
                guard("an answer", session.next()).await.unwrap().unwrap().unwrap();
            }
            let end = <TestEnv as Env>::Runtime::timeout(Duration::from_millis(200), session.next()).await;
            assert_eq!(end.is_ok_and(|item| item.is_none()), stale);
        }
        cluster.end().await;
    });
}

/// A session that begins with entries, as after an error of the network, hears the answer to the first of them when it comes: nothing
/// else may wake it, as openraft may have no more to send.
#[test]
fn a_session_hears_its_first_answer() {
    block_on(async {
        let cluster = Cluster::founded(1, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let last = cluster.produce(&[leader], 1, 10).await.id;
        cluster.agree(&[1, 2, 3]).await;
        let group = cluster.group(leader);
        let prev = group.log().log_id(Index(last.index.0 - 1)).await.unwrap();
        let stored = group.log().read(last.index, last.index.next(), 0).await.unwrap();
        let request = AppendEntriesRequest::<types::TypeConfig<TestEnv, Tally>> {
            vote: types::to_raft_vote(group.log().hard_state().vote.unwrap()),
            prev_log_id: Some(types::to_raft(prev)),
            entries: stored.into_iter().map(|stored| types::from_log(stored).unwrap()).collect(),
            leader_commit: Some(types::to_raft(last)),
        };
        let mut network = group.inner.network.clone();
        let mut peer = network.new_client(cluster.followers(leader)[0], &types::Node::default()).await;
        let (heard, mut answer) = channel::oneshot();
        // A task of its own runs only when it is woken.
        env::spawn::<TestEnv>(async move {
            let input = stream::iter([request]).chain(stream::pending());
            let mut session = peer.stream_append(input, RPCOption::new(Duration::from_secs(1))).await.unwrap();
            drop(heard.send(session.next().await));
        });
        // The follower has the entry. This is far less time than the session's alarm takes, which would wake it, too.
        let mut first = None;
        for _ in 0..10_000 {
            first = answer.try_recv().unwrap();
            if first.is_some() {
                break;
            }
            env::yield_now().await;
        }
        assert!(matches!(first, Some(Some(Ok(Ok(Some(id))))) if id == types::to_raft(last)), "it sleeps");
        cluster.end().await;
    });
}
