//! Members and leaders that change: on purpose, under load, and with a dead node among them.

use super::{cluster::*, *};
use crate::{env::runtime::block_on, limits::RAFT_QUEUE_MAX, raft::watch::data_changed};

/// One voter becomes three, a dead one is replaced, and three become one again: nothing is lost on the way, and each step can
/// be asked for again.
#[test]
fn members_change() {
    block_on(async {
        let mut cluster = Cluster::new(1);
        cluster.start(1, Some(ids(&[1]))).await;
        let mut acknowledged = Vec::new();
        for _ in 0..30 {
            acknowledged.push(cluster.produce(&[1], 3, 20_000).await);
        }
        cluster.start(2, None).await;
        cluster.start(3, None).await;
        assert_eq!(cluster.group(2).members(), Members::default());
        let group = cluster.group(1).clone();
        guard("a change", group.change_members(ids(&[1, 2, 3]))).await.unwrap();
        guard("no change", group.change_members(ids(&[1, 2, 3]))).await.unwrap();
        let expected = Members { voters: ids(&[1, 2, 3]), learners: ids(&[]), ..Members::default() };
        assert_eq!(group.members(), expected);
        acknowledged.push(cluster.produce(&[1], 1, 10).await);
        cluster.agree(&[1, 2, 3]).await;
        assert_eq!(cluster.group(3).members(), expected);
        assert!(!cluster.group(3).members().is_alone(NodeId(3)));

        // The leader dies; the others replace it by a fourth.
        cluster.crash(1);
        cluster.note(1, false);
        let leader = cluster.leader_of(&[2, 3]).await;
        cluster.start(4, None).await;
        cluster.note(1, false);
        let group = cluster.group(leader).clone();
        guard("a change", group.change_members(ids(&[2, 3, 4]))).await.unwrap();
        acknowledged.push(cluster.produce(&[2, 3, 4], 1, 10).await);
        cluster.agree(&[2, 3, 4]).await;
        assert_eq!(cluster.group(4).members().voters, ids(&[2, 3, 4]));

        // Down to one that does not lead now.
        let leader = cluster.leader_of(&[2, 3, 4]).await;
        let last = cluster.followers(leader).into_iter().find(|id| *id != 1).unwrap();
        let group = cluster.group(leader).clone();
        // Its own removal may end its leadership before it is told that all is done.
        match guard("a change", group.change_members(ids(&[last]))).await {
            Ok(()) | Err(GroupError::NotLeader { .. } | GroupError::Deposed { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        acknowledged.push(cluster.produce(&[last], 1, 10).await);
        let alone = cluster.group(last);
        guard("a change", alone.change_members(ids(&[last]))).await.unwrap();
        assert_eq!(alone.members(), Members { voters: ids(&[last]), learners: ids(&[]), ..Members::default() });
        assert!(alone.members().is_alone(NodeId(last)));
        assert!(!alone.members().is_alone(NodeId(last + 1)), "a learner is not alone");
        cluster.holds(last, &acknowledged).await;
        cluster.end().await;
    });
}

/// A change that was broken off is ended by whoever asks for it again; learners that are too many are taken out.
#[test]
fn broken_off_changes() {
    block_on(async {
        let mut cluster = Cluster::founded(2, &[1, 2, 3]).await;
        cluster.produce(&[1, 2, 3], 2, 10).await;
        for node in [4, 5] {
            cluster.start(node, None).await;
        }
        let wanted = ids(&[3, 4, 5]);
        // Dropped after ever more turns: each time somewhere else.
        for turns in 0..60 {
            let leader = cluster.leader().await;
            let group = cluster.group(leader).clone();
            let mut change = Box::pin(group.change_members(wanted.clone()));
            for _ in 0..turns {
                if futures_util::poll!(change.as_mut()).is_ready() {
                    break;
                }
                crate::env::yield_now().await;
            }
        }
        loop {
            let leader = cluster.leader().await;
            let group = cluster.group(leader).clone();
            match guard("a change", group.change_members(wanted.clone())).await {
                Ok(()) => break,
                Err(GroupError::NotLeader { .. } | GroupError::Deposed { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        let leader = cluster.leader_of(&[3, 4, 5]).await;
        let group = cluster.group(leader).clone();
        guard("a learner", group.add_learner(NodeId(1))).await.unwrap();
        guard("a learner", group.add_learner(NodeId(1))).await.unwrap();
        assert_eq!(group.members().learners, ids(&[1]));
        guard("no learner", group.remove_learners(ids(&[1, 2]))).await.unwrap();
        assert_eq!(group.members(), Members { voters: wanted, learners: ids(&[]), ..Members::default() });
        cluster.produce(&[3, 4, 5], 2, 10).await;
        cluster.agree(&[3, 4, 5]).await;
        cluster.end().await;
    });
}

/// A change to voters without the leader that is broken off half-way stays half made until it is finished; then the
/// leader, which is no member any more but leads for a moment, changes nothing.
#[test]
fn half_made_changes() {
    block_on(async {
        for seed in 30..40 {
            let cluster = Cluster::founded(seed, &[1, 2, 3]).await;
            cluster.produce(&[1, 2, 3], 2, 10).await;
            let leader = cluster.leader().await;
            let last = cluster.followers(leader)[0];
            let group = cluster.group(leader).clone();
            let mut change = Box::pin(group.change_members(ids(&[last])));
            until("a joint configuration", || {
                let ended = futures_util::FutureExt::now_or_never(change.as_mut());
                (ended.is_some() || group.members().changing).then_some(())
            })
            .await;
            drop(change);
            guard("what was broken off", group.finish_change()).await.unwrap();
            let found = group.members();
            assert!(!found.changing, "{found:?}");
            if found.voters == ids(&[last]) {
                let refused = guard("a learner", group.add_learner(NodeId(leader))).await;
                assert!(matches!(refused, Err(GroupError::NotLeader { .. })), "{refused:?}");
            }
            cluster.leader_of(&[last]).await;
            let alone = cluster.group(last);
            guard("a learner", alone.add_learner(NodeId(leader))).await.unwrap();
            assert_eq!(alone.members().learners, ids(&[leader]));
            cluster.produce(&[last], 1, 10).await;
            cluster.end().await;
        }
    });
}

/// Two of three are to be left, one of which is gone though its node is called alive: the change does not begin, as it could
/// never end, and the group goes on. It is made when that one is back.
#[test]
fn new_voters_that_take_nothing() {
    block_on(async {
        let mut cluster = Cluster::founded(8, &[1, 2, 3]).await;
        cluster.produce(&[1, 2, 3], 2, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let [gone, other] = cluster.followers(leader)[..] else { panic!("three") };
        cluster.crash(gone);
        let group = cluster.group(leader).clone();
        let wanted = ids(&[leader, gone]);
        let mut ends = Vec::new();
        for _ in 0..3 {
            let change = group.change_members(wanted.clone());
            let ended = <TestEnv as Env>::Runtime::timeout(Duration::from_millis(300), change).await;
            assert!(ended.is_err(), "{ended:?}");
            ends.push(group.log().last().unwrap().index);
        }
        assert_eq!(group.members(), Members { voters: ids(&[1, 2, 3]), learners: ids(&[]), ..Members::default() });
        assert_eq!(ends[0], ends[2], "what is tried again writes nothing");
        let produced = <TestEnv as Env>::Runtime::timeout(Duration::from_secs(10), produce(&group, 1, 10)).await;
        assert!(matches!(produced, Ok(Ok(_))), "{produced:?}");
        guard("a change to who is there", group.change_members(ids(&[leader, other]))).await.unwrap();

        cluster.start(gone, None).await;
        guard("a change to who is back", group.change_members(wanted.clone())).await.unwrap();
        assert_eq!(group.members(), Members { voters: wanted, learners: ids(&[]), ..Members::default() });
        cluster.produce(&[leader, gone], 1, 10).await;
        cluster.agree(&[leader, gone]).await;
        cluster.end().await;
    });
}

/// Leadership goes to and fro under load: every acknowledged record is there, refused ones are not, and nobody hears that
/// something may have been written.
#[test]
fn transfers_under_load() {
    block_on(async {
        let cluster = Cluster::founded(3, &[1, 2, 3]).await;
        let all = [1, 2, 3];
        let stop = Cell::new(false);
        let load = async {
            let mut acknowledged = Vec::new();
            while !stop.get() {
                let leader = cluster.leader().await;
                let group = cluster.group(leader);
                let end = group.log().log_end();
                let waiting: Vec<_> = (0..4).map(|n| group.propose(batch(Offset(end.0 + n), 1, 300))).collect();
                for answer in waiting {
                    match guard("an answer", answer).await {
                        Ok(applied) if applied.header.kind == EntryKind::Batch => acknowledged.push(applied.header),
                        Ok(_) | Err(GroupError::NotLeader { .. }) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
                crate::env::yield_now().await;
            }
            acknowledged
        };
        let moving = async {
            for round in 0..12 {
                let leader = cluster.leader().await;
                let to = (round % 2 == 0).then(|| NodeId(cluster.followers(leader)[round % 3 % 2]));
                let group = cluster.group(leader).clone();
                // A busy machine may keep the target from its election in time.
                while let Err(error) = guard("a transfer", group.transfer(to, Duration::from_secs(30))).await {
                    assert!(matches!(error, TransferError::NotTakenOver { .. }), "{error:?}");
                    env::sleep::<TestEnv>(Duration::from_millis(20)).await;
                }
                assert!(!group.leads());
                let next = cluster.leader().await;
                assert!(to.is_none_or(|to| to == NodeId(next)) || cluster.group(next).leader().1 > group.leader().1);
                env::sleep::<TestEnv>(Duration::from_millis(5)).await;
            }
            stop.set(true);
        };
        let (acknowledged, ()) = futures_util::future::join(load, moving).await;
        assert!(acknowledged.len() > 20, "{} records", acknowledged.len());
        cluster.agree(&all).await;
        for node in all {
            cluster.holds(node, &acknowledged).await;
        }
        let batches = headers(cluster.group(1)).await.into_iter().filter(|header| header.kind == EntryKind::Batch);
        assert_eq!(batches.count(), acknowledged.len(), "what was refused is not there");
        cluster.end().await;
    });
}

/// Nobody to take over: the leader leads on, and takes proposals again.
#[test]
fn transfer_to_nobody() {
    block_on(async {
        let mut cluster = Cluster::founded(4, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let others = cluster.followers(leader);
        let group = cluster.group(leader).clone();
        assert!(group.transfer(Some(NodeId(leader)), Duration::from_secs(9)).await.is_ok());
        assert!(cluster.group(others[0]).transfer(None, Duration::from_secs(9)).await.is_ok(), "it does not lead");
        cluster.crash(others[0]);
        cluster.note(others[0], false);
        let refused = guard("a refusal", group.transfer(Some(NodeId(others[0])), Duration::from_millis(200))).await;
        assert!(matches!(refused, Err(TransferError::NoSuccessor { .. })), "{refused:?}");
        assert!(group.leads());
        guard("an ack", produce(&group, 1, 10)).await.unwrap();
        guard("a transfer", group.transfer(None, Duration::from_secs(30))).await.unwrap();
        assert_eq!(cluster.leader_of(&[leader, others[1]]).await, others[1], "to the one that is alive");
        cluster.end().await;
    });
}

/// A follower whose disk hangs is not told to take over, however little it lacks: the leader leads on in its term, also when the
/// disk goes on, and gives its leadership away once the follower has all on its disk.
#[test]
fn transfer_to_one_that_has_not_flushed() {
    block_on(async {
        let cluster = Cluster::founded(9, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let to = cluster.followers(leader)[0];
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        let group = cluster.group(leader).clone();
        let term = group.leader().1;
        cluster.disk(to).hold();
        guard("an ack", produce(&group, 1, 10)).await.unwrap();
        let last = group.log().last();
        until("the entry on its way to the disk", || (cluster.group(to).log().last() == last).then_some(())).await;
        let refused = guard("a refusal", group.transfer(Some(NodeId(to)), Duration::from_secs(30))).await;
        let Err(TransferError::NotTakenOver { to: asked, cause, leader: stays }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!((asked, stays), (NodeId(to), NodeId(leader)));
        assert!(cause.contains("did not get the last entries"), "it was asked: {cause}");
        guard("an ack", produce(&group, 1, 10)).await.unwrap();
        cluster.disk(to).release();
        cluster.agree(&[1, 2, 3]).await;
        assert!(group.leads());
        assert_eq!(group.leader(), (Some(NodeId(leader)), term));
        while let Err(error) = guard("a transfer", group.transfer(Some(NodeId(to)), Duration::from_secs(30))).await {
            // As above.
            assert!(matches!(error, TransferError::NotTakenOver { .. }), "{error:?}");
            env::sleep::<TestEnv>(Duration::from_millis(20)).await;
        }
        assert!(!group.leads());
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// A linearizable read on any replica sees what was acknowledged before it began, also through an election.
#[test]
fn linearizable_reads() {
    block_on(async {
        let mut cluster = Cluster::founded(5, &[1, 2, 3]).await;
        for round in 0..10 {
            let leader = cluster.leader().await;
            cluster.network.set_delay(round % 4);
            let header = cluster.produce(&[leader], 1, 100).await;
            for node in [1, 2, 3] {
                let group = cluster.group(node);
                guard("a read", group.linearize(Duration::from_secs(30))).await.unwrap();
                assert!(group.applied_end() > header.id.index, "node {node}");
            }
        }
        let leader = cluster.leader().await;
        let others = cluster.followers(leader);
        cluster.crash(leader);
        cluster.note(leader, false);
        for node in &others {
            guard("a read", cluster.group(*node).linearize(Duration::from_secs(30))).await.unwrap();
        }
        // Without a majority nobody can say.
        cluster.crash(others[0]);
        let refused = guard("a refusal", cluster.group(others[1]).linearize(Duration::from_millis(100))).await;
        assert!(matches!(refused, Err(GroupError::NotLeader { .. })), "{refused:?}");
        cluster.end().await;
    });
}

/// Reads at once, twice as many as openraft's queue holds, ask together: a proposal beside them is taken, and no healthy leader is
/// named faulty.
#[test]
fn reads_ask_together() {
    block_on(async {
        let cluster = Cluster::founded(8, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let group = cluster.group(leader).clone();
        guard("an ack", produce(&group, 1, 10)).await.unwrap();
        let ask = |_| Box::pin(group.linearize(Duration::from_secs(30)));
        let mut reads: Vec<_> = (0..2 * RAFT_QUEUE_MAX).map(ask).collect();
        for read in &mut reads {
            assert!(futures_util::poll!(read.as_mut()).is_pending(), "a majority has to answer");
        }
        guard("an ack beside reads", produce(&group, 1, 10)).await.unwrap();
        for read in reads {
            guard("a read", read).await.unwrap();
        }
        cluster.end().await;
    });
}

/// Who waits for a follower goes on when openraft has ended, and until that is noted keeps no other task from running.
#[test]
fn waiting_ends_with_raft() {
    block_on(async {
        let cluster = Cluster::founded(7, &[1]).await;
        let group = cluster.group(1).clone();
        let mut waits = std::pin::pin!(group.wait_complete(NodeId(2)));
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        group.inner.raft.shutdown().await.unwrap();
        guard("the end", waits).await;
        assert!(!group.leads());
        let mut data = group.inner.data.clone();
        data.borrow_and_update();
        let mut changed = std::pin::pin!(data_changed::<TestEnv, Tally>(&mut data));
        assert!(futures_util::poll!(changed.as_mut()).is_pending(), "what has ended does not change");
    });
}

/// A group of one has nobody to give its leadership to: it says so at once, and not a proposal is refused.
#[test]
fn transfer_alone() {
    block_on(async {
        let cluster = Cluster::founded(6, &[1]).await;
        let group = cluster.group(1).clone();
        let mut transfer = std::pin::pin!(group.transfer(None, Duration::from_secs(30)));
        let refused = futures_util::poll!(transfer.as_mut());
        assert!(refused.is_ready(), "it waits for nothing");
        assert!(group.leads());
        guard("an ack", produce(&group, 1, 10)).await.unwrap();
        cluster.end().await;
    });
}
