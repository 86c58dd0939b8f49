//! A replica that is made where one of the same group was before owes what that one had.

use super::{cluster::*, hostile::ask, *};
use crate::{
    env::{Disk, runtime::block_on},
    format::{peer::Message, state_files::Vote},
    peer::frame::FrameKind,
    raft::left::{Left, leave, left_in, left_path},
};

fn log_options() -> LogOptions {
    repair::log_options(&options())
}

/// Closes a group that has got a batch more; what it would leave.
async fn close_with_more(group: TestGroup) -> Left {
    produce(&group, 3, 10).await.unwrap();
    let left = Left { vote: group.log().hard_state().vote, last: group.log().last() };
    group.close().await.unwrap();
    left
}

/// A new one begins with the vote of the one before it, which leads nothing; a second one that leaves less changes nothing.
#[test]
fn begins_with_the_vote() {
    block_on(async {
        let disk = SimDisk::new();
        let (group, _) = open(&disk).await;
        let left = close_with_more(group).await;
        assert_eq!(left_in(&disk, &log_options()).await.unwrap(), left);

        let vote = left.vote;
        let disk = SimDisk::new();
        disk.create_dir_all("/shards".as_ref()).await.unwrap();
        leave(&disk, &log_options(), left).await.unwrap();
        leave(&disk, &log_options(), Left { vote: None, last: None }).await.unwrap();
        for _ in 0..2 {
            let (group, _) = open(&disk).await;
            assert!(vote.unwrap().committed);
            assert_eq!(group.log().hard_state().vote, Some(Vote { committed: false, ..vote.unwrap() }));
            assert_eq!((group.log().last(), group.leads()), (None, false), "nothing is founded again");
            group.close().await.unwrap();
        }
        disk.flip_bit(left_path(&options().dir), 30, 0);
        let error = try_open(&disk).await.map(|_| ()).unwrap_err();
        assert!(matches!(&error, GroupError::Damaged(_)) && error.to_string().contains("another node"), "{error}");
    });
}

/// One that has replayed the group's history to where it was the only voter does not lead, although nobody is there to stop it,
/// before it has all that it had.
#[test]
fn does_not_lead_by_an_old_membership() {
    block_on(async {
        let disk = SimDisk::new();
        let (group, _) = open(&disk).await;
        produce(&group, 3, 10).await.unwrap();
        let replayed = disk.crash(0);
        let left = close_with_more(group).await;

        for owes in [true, false] {
            let disk = replayed.crash(0);
            if owes {
                leave(&disk, &log_options(), left).await.unwrap();
            }
            let (group, _) = open(&disk).await;
            let elections = Duration::from_millis(2 * Timing::default().election_ms_max);
            drop(
                <TestEnv as Env>::Runtime::timeout(elections, async {
                    until("it leads", || group.leads().then_some(())).await;
                })
                .await,
            );
            assert_eq!(group.leads(), !owes);
            group.close().await.unwrap();
        }
    });
}

/// It gives nobody its vote either, whoever asks.
#[test]
fn grants_no_vote() {
    block_on(async {
        let mut cluster = Cluster::founded(4, &[1, 2, 3]).await;
        cluster.produce(&[1, 2, 3], 1, 10).await;
        let leader = cluster.leader().await;
        let [voter, candidate] = cluster.followers(leader)[..] else { panic!("two follow") };
        let far = Some(LogId { term: Term(99), index: Index(9_999) });
        for owes in [true, false] {
            cluster.crash(voter);
            if owes {
                leave(cluster.disk(voter), &log_options(), Left { vote: None, last: far }).await.unwrap();
            } else {
                cluster.disk(voter).remove(&left_path(&options().dir)).await.unwrap();
            }
            cluster.start(voter, None).await;
            cluster.reconnect(candidate, voter).await;
            let vote = Vote { term: Term(90), node: NodeId(candidate), committed: false };
            for pre in [true, false] {
                let message = Message::VoteRequest { vote, last: far, pre, transfer: true };
                match ask(&cluster, candidate, voter, FrameKind::Raft, message, vec![]).await {
                    Message::VoteAnswer { granted, .. } => assert_eq!(granted, !owes, "pre: {pre}"),
                    other => panic!("{other:?}"),
                }
            }
        }
        cluster.end().await;
    });
}
