//! A replica that is made where one of the same group was before owes what that one had.

use super::{cluster::*, hostile::ask, *};
use crate::{
    env::{Disk, runtime::block_on},
    format::{peer::Message, state_files::Vote},
    peer::frame::FrameKind,
    raft::left::{Left, UNKNOWN, leave, left_in, left_path},
};

fn log_options() -> LogOptions {
    repair::log_options(&options())
}

/// Closes a group that has got a batch more; what it would leave.
async fn close_with_more(group: TestGroup) -> Left {
    produce(&group, 3, 10).await.unwrap();
    let left = Left { vote: group.log().hard_state().vote, last: group.log().last(), unheard: false };
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
        leave(&disk, &log_options(), Left::default()).await.unwrap();
        for _ in 0..2 {
            let (group, _) = open(&disk).await;
            assert!(vote.unwrap().committed);
            assert_eq!(group.log().hard_state().vote, Some(Vote { committed: false, ..vote.unwrap() }));
            assert_eq!((group.log().last(), group.leads()), (None, false), "nothing is founded again");
            group.close().await.unwrap();
        }
        // What it says is lost: then this replica owes what the next leader has committed.
        damage_left(&disk, 0);
        damage_left(&disk, 1);
        let (group, _) = open(&disk).await;
        assert_eq!(group.left(), Left { vote: group.log().hard_state().vote, last: None, unheard: true });
        group.close().await.unwrap();
    });
}

/// Flips a bit in one of the two copies.
fn damage_left(disk: &SimDisk, copy: usize) {
    disk.flip_bit(left_path(&options().dir), (copy * BLOCK_BYTES + 30) as u64, 0);
}

/// A replica that has what it owed, and was added to its group some time, leads as its only voter although one copy of what it
/// owed is damaged. That is mended when it starts: the other copy may be damaged some time later.
#[test]
fn damage_to_what_was_owed() {
    block_on(async {
        let mut cluster = Cluster::founded(11, &[1]).await;
        cluster.produce(&[1], 1, 10).await;
        cluster.start(2, None).await;
        let group = cluster.group(1).clone();
        guard("a change", group.change_members(ids(&[1, 2]))).await.unwrap();
        match guard("a change", group.change_members(ids(&[2]))).await {
            Ok(()) | Err(GroupError::NotLeader { .. } | GroupError::Deposed { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
        cluster.produce(&[2], 1, 10).await;
        guard("a change", cluster.group(2).change_members(ids(&[2]))).await.unwrap();
        cluster.produce(&[2], 1, 10).await;
        cluster.crash(1);
        cluster.note(1, false);
        for copy in [0, 1, 0] {
            cluster.crash(2);
            damage_left(cluster.disk(2), copy);
            cluster.start(2, None).await;
            cluster.leader_of(&[2]).await;
        }
        cluster.produce(&[2], 1, 10).await;
        cluster.end().await;
    });
}

/// One whose segments are there, and whose vote is not, does not begin with the vote of an earlier one.
#[test]
fn lost_votes_are_not_replaced() {
    block_on(async {
        let disk = SimDisk::new();
        let (group, _) = open(&disk).await;
        let left = close_with_more(group).await;
        leave(&disk, &log_options(), left).await.unwrap();
        disk.delete("/shards/7/hard_state");
        let error = try_open(&disk).await.map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, GroupError::Damaged(_)) && error.to_string().contains("vote in it is lost"),
            "{error}"
        );
    });
}

/// Gives a replica these entries, as a leader of a later term that has committed up to `commit`.
async fn give(cluster: &Cluster, to: u64, entries: &[StoredEntry], commit: LogId) {
    let first = entries[0].header.id.index;
    let before = cluster.group(to).log().last();
    assert_eq!(before.map_or(Index(0), |last| last.index.next()), first);
    let vote = Vote { term: Term(9), node: NodeId(2), committed: true };
    let message = Message::Append { vote, prev: before, commit: Some(commit) };
    let parts = entries.iter().map(|entry| entry.bytes.clone()).collect();
    cluster.reconnect(2, to).await;
    let answer = ask(cluster, 2, to, FrameKind::Raft, message, parts).await;
    assert!(matches!(answer, Message::Matched { .. }), "{answer:?}");
    let last = entries.last().unwrap().header.id;
    until("durable", || (cluster.group(to).log().flushed() >= Some(last)).then_some(())).await;
}

/// Whether a node leads within the time of some elections, with nobody there to stop it.
async fn comes_to_lead(cluster: &Cluster, id: u64) -> bool {
    cluster.note_at(id, 2, false);
    let elections = Duration::from_millis(3 * cluster.timing.election_ms_max);
    let leads = until("it leads", || cluster.group(id).leads().then_some(()));
    <TestEnv as Env>::Runtime::timeout(elections, leads).await.is_ok()
}

/// A replica made anew where all traces of one before are lost replays history to where it was the only voter: it does not lead
/// before it has what was committed when it was added, not after a restart either.
#[test]
fn owes_what_it_hears_of() {
    block_on(async {
        let mut cluster = Cluster::founded(6, &[1]).await;
        cluster.start(2, None).await;
        for _ in 0..3 {
            cluster.produce(&[1], 1, 10).await;
        }
        let log = cluster.group(1).log();
        let last = log.last().unwrap();
        let history = log.read(Index(0), last.index.next(), usize::MAX).await.unwrap();
        let (most, rest) = history.split_at(history.len() - 1);
        cluster.crash(1);
        cluster.lose_disk(1);
        cluster.start(1, None).await;
        give(&cluster, 1, most, last).await;
        assert_eq!(cluster.group(1).members().voters, ids(&[1]));
        for _ in 0..2 {
            assert!(!comes_to_lead(&cluster, 1).await, "by a membership of old");
            cluster.crash(1);
            cluster.start(1, None).await;
        }
        assert_eq!(cluster.group(1).left().last, Some(last));
        give(&cluster, 1, rest, last).await;
        assert!(comes_to_lead(&cluster, 1).await, "it has all that it owed");
        cluster.crash(1);
        cluster.start(1, None).await;
        assert!(comes_to_lead(&cluster, 1).await, "it owes nothing any more");
        cluster.crash(2);
        cluster.end().await;
    });
}

/// As long as it has heard of nothing it says so, to who comes after it on this node; also one that had what an earlier one left.
#[test]
fn unheard_is_handed_on() {
    block_on(async {
        let mut cluster = Cluster::new(7);
        cluster.start(1, None).await;
        assert_eq!(cluster.group(1).left(), UNKNOWN);
        let last = LogId { term: Term(3), index: Index(8) };
        let some = Left { last: Some(last), ..Left::default() };
        leave(cluster.disk(1), &log_options(), some).await.unwrap();
        cluster.crash(1);
        cluster.start(1, None).await;
        assert_eq!(cluster.group(1).left(), Left { last: Some(last), ..UNKNOWN });
        cluster.end().await;
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
                leave(cluster.disk(voter), &log_options(), Left { last: far, ..Left::default() }).await.unwrap();
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
