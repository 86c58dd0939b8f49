//! What a member says that nobody should believe: it is refused, and nothing is harmed by it.

use std::cell::Cell;

use futures_util::future::{join, join_all};

use super::{cluster::*, *};
use crate::{
    budget::{Class, Use},
    env::{net::Priority, runtime::block_on},
    format::peer::{Envelope, Message},
    limits::{APPEND_BYTES_IN_FLIGHT_MAX, PEER_BACKLOG_BYTES_MAX, PEER_STREAM_WINDOW_BYTES, UNFLUSHED_PART},
    peer::{
        Destination,
        frame::{Frame, FrameKind},
    },
    proto::ringlog::state::v1,
};

pub(super) async fn ask(
    cluster: &Cluster,
    from: u64,
    to: u64,
    kind: FrameKind,
    message: Message,
    parts: Vec<Bytes>,
) -> Message {
    let frame = Frame { kind, envelope: Envelope { group: ShardUid(7), message }.encode(), parts };
    let to = Destination { node: NodeId(to), slot: 0 };
    let answer = cluster.peers(from).call(to, frame, Priority::Urgent, Duration::from_secs(30)).await.unwrap();
    Envelope::decode(&answer.envelope).unwrap().message
}

/// Snapshots that are none: without state, and of a term that the leader cannot know.
fn bad_snapshots(leader: u64, vote: Vote, last: LogId) -> [(u64, FrameKind, Message, Vec<Bytes>, &'static str); 2] {
    let snapshot = |last| Message::Snapshot { vote, last, membership_log_id: None, membership: Bytes::new() };
    let later = LogId { term: Term(vote.term.0 + 1), ..last };
    [
        (leader, FrameKind::Snapshot, snapshot(last), vec![Bytes::from_static(b"nothing of use")], ""),
        (leader, FrameKind::Snapshot, snapshot(later), vec![Bytes::new()], "cannot be of the leader"),
    ]
}

/// Votes and entries of others, entries that are damaged, of another shard or out of order, snapshots that are none.
#[test]
fn refused() {
    block_on(async {
        let cluster = Cluster::founded(1, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        cluster.produce(&[leader], 1, 100).await;
        cluster.agree(&[1, 2, 3]).await;
        let victim = cluster.followers(leader)[0];
        let group = cluster.group(victim);
        let before = (group.log().end(), group.leader(), state(group));
        let log = cluster.group(leader).log();
        let last = log.last().unwrap();
        let entry = log.read(last.index, last.index.next(), 0).await.unwrap().remove(0);
        let vote = Vote { term: Term(last.term.0), node: NodeId(leader), committed: true };
        let prev = Some(LogId { term: last.term, index: Index(last.index.0 - 1) });
        let append = |vote, prev| Message::Append { vote, prev, commit: None };
        let flipped = |at: usize| {
            let mut bytes = entry.bytes.to_vec();
            bytes[at] ^= 1;
            vec![Bytes::from(bytes)]
        };
        let elsewhere = {
            let mut header = entry.header;
            header.shard = ShardUid(8);
            vec![Bytes::from([&header.encode()[..], &entry.payload()[..]].concat())]
        };
        let other = cluster.followers(leader)[1];
        let cases = [
            (other, FrameKind::Raft, append(vote, prev), vec![entry.bytes.clone()], "speaks for"),
            (other, FrameKind::Append, append(vote, prev), vec![entry.bytes.clone()], "speaks for"),
            (leader, FrameKind::Append, append(Vote { committed: false, ..vote }, prev), vec![], "does not lead"),
            (leader, FrameKind::Append, append(vote, prev), flipped(10), "checksum"),
            (leader, FrameKind::Append, append(vote, prev), flipped(130), "checksum"),
            (leader, FrameKind::Append, append(vote, prev), vec![entry.bytes.slice(..140)], "bytes"),
            (leader, FrameKind::Append, append(vote, prev), elsewhere, "shard 8"),
            (leader, FrameKind::Append, append(vote, None), vec![entry.bytes.clone()], "cannot follow"),
            (leader, FrameKind::Append, Message::Done, vec![], "on a stream of entries"),
            (leader, FrameKind::Raft, Message::Done, vec![], "no request"),
            (
                other,
                FrameKind::Raft,
                Message::VoteRequest { vote: Vote { term: Term(99), ..vote }, last: None, pre: false, transfer: true },
                vec![],
                "speaks for",
            ),
            (other, FrameKind::Raft, Message::Transfer { vote, to: None, last: None }, vec![], "speaks for"),
        ];
        let cases = cases.into_iter().chain(bad_snapshots(leader, vote, last));
        for (from, kind, message, parts, why) in cases {
            let said = format!("{message:?}");
            match ask(&cluster, from, victim, kind, message, parts).await {
                Message::Failed { cause } => assert!(cause.contains(why), "{said}: {cause}"),
                other => panic!("{said}: {other:?}"),
            }
        }
        assert_eq!((group.log().end(), group.leader(), state(group)), before);
        assert_eq!(group.fault(), None);
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// Two leaders in one term: whoever hears of the second stops, and says so; the others go on.
#[test]
fn two_leaders_in_a_term() {
    block_on(async {
        for kind in [FrameKind::Raft, FrameKind::Append] {
            let cluster = Cluster::founded(3, &[1, 2, 3]).await;
            let leader = cluster.leader().await;
            cluster.produce(&[leader], 1, 100).await;
            cluster.agree(&[1, 2, 3]).await;
            let [victim, other] = cluster.followers(leader)[..] else { panic!("two of them") };
            let vote = Vote { term: cluster.group(leader).leader().1, node: NodeId(other), committed: true };
            let claim = Message::Append { vote, prev: cluster.group(leader).log().last(), commit: None };
            let Message::Failed { cause } = ask(&cluster, other, victim, kind, claim, vec![]).await else {
                panic!("it was believed")
            };
            let words = format!("nodes {leader} and {other} both lead in term {}", vote.term);
            assert!(cause.contains(&words), "{cause}");
            assert_eq!(cluster.group(victim).fault(), Some(cause));
            cluster.produce(&[leader], 1, 10).await;
            cluster.agree(&[leader, other]).await;
            cluster.end().await;
        }
    });
}

/// A follower with another history than the leader's, though terms and indexes agree: it takes nothing on top of it,
/// stops, and says so; the group goes on without it.
#[test]
fn divergence_stops_the_replica() {
    block_on(async {
        let mut cluster = Cluster::founded(2, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        let others = cluster.followers(leader);
        cluster.produce(&[leader], 1, 100).await;
        cluster.agree(&[1, 2, 3]).await;
        let victim = cluster.group(others[0]);
        until("a flush", || (victim.log().flushed() == victim.log().last()).then_some(())).await;
        // Not closed cleanly: a checkpoint at its end would show the forgery at the start.
        cluster.crash(others[0]);
        cluster.forge_last_entry(others[0]).await;
        cluster.start(others[0], None).await;
        cluster.produce(&[leader], 1, 100).await;
        let forged = cluster.group(others[0]);
        let fault = until("the fault", || forged.fault()).await;
        assert_eq!(forged.log().flushed(), forged.log().last());
        assert!(fault.contains("another history"), "{fault}");
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[leader, others[1]]).await;
        cluster.end().await;
    });
}

/// A follower without room ends a stream of entries that it cannot read on, after the time after which a leader has given it up.
#[test]
fn stream_without_room_ends() {
    block_on(async {
        let cluster = Cluster::founded(1, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        let slow = cluster.followers(leader)[0];
        let group = cluster.group(slow);
        let memory = group.log().memory();
        let others = memory.force(Use::Unflushed, memory.limit(Class::Client) / UNFLUSHED_PART);
        let last = group.log().last().unwrap();
        let vote = Vote { term: Term(last.term.0), node: NodeId(leader), committed: true };
        let message = Message::Append { vote, prev: Some(last), commit: None };
        let envelope = Envelope { group: ShardUid(7), message }.encode();
        let first = Frame { kind: FrameKind::Append, envelope, parts: Vec::new() };
        let to = Destination { node: NodeId(slow), slot: 0 };
        let mut stream = cluster.peers(leader).open(to, first, Priority::Normal).await.unwrap();
        let mut said = Vec::new();
        while let Some(answer) = guard("an end", stream.receiver.receive()).await.unwrap() {
            said.push(Envelope::decode(&answer.envelope).unwrap().message);
        }
        let [Message::Matched { .. }, Message::Failed { cause }] = &said[..] else { panic!("{said:?}") };
        assert!(cause.contains("does not keep up"), "{cause}");
        assert_eq!(group.fault(), None);
        drop(others);
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// Many streams of entries to a follower without room: what waits of them is bounded, and those for which there is no room are
/// ended, so that their leader comes again; votes and heartbeats pass them all; nothing is lost.
#[test]
fn streams_without_room_are_bounded() {
    const STREAMS: usize = 24;
    block_on(async {
        let cluster = Cluster::founded(1, &[1, 2, 3]).await;
        cluster.network.set_window(PEER_STREAM_WINDOW_BYTES as usize);
        let leader = cluster.leader().await;
        let before = cluster.produce(&[leader], 1, 10).await.id;
        let index = cluster.produce(&[leader], 1, 900_000).await.id.index;
        cluster.agree(&[1, 2, 3]).await;
        let slow = cluster.followers(leader)[0];
        let (group, memory) = (cluster.group(slow), cluster.group(slow).log().memory());
        let entry = cluster.group(leader).log().read(index, index.next(), 0).await.unwrap().remove(0).bytes;
        let vote = cluster.group(leader).log().hard_state().vote.unwrap();
        let frame = |prev, parts| {
            let message = Message::Append { vote, prev: Some(prev), commit: None };
            let envelope = Envelope { group: ShardUid(7), message }.encode();
            Frame { kind: FrameKind::Append, envelope, parts }
        };
        let full = memory.force(Use::Unflushed, memory.limit(Class::Client) / UNFLUSHED_PART);
        let (ended, turned_away) = (Cell::new(0), Cell::new(0));
        let to = Destination { node: NodeId(slow), slot: 0 };
        let streams = (0..STREAMS).map(|_| async {
            let first = frame(before, Vec::new());
            let mut stream = cluster.peers(leader).open(to, first, Priority::Normal).await.unwrap();
            // As much as a leader has on its way; the follower has it already.
            for _ in 0..APPEND_BYTES_IN_FLIGHT_MAX / entry.len() {
                if stream.sender.send(frame(before, vec![entry.clone()])).await.is_err() {
                    break;
                }
            }
            stream.sender.finish();
            while let Ok(Some(answer)) = stream.receiver.receive().await {
                match Envelope::decode(&answer.envelope).unwrap().message {
                    Message::Matched { .. } => {}
                    Message::Failed { cause } if cause.contains("no memory") => turned_away.set(turned_away.get() + 1),
                    Message::Failed { cause } => assert!(cause.contains("does not keep up"), "{cause}"),
                    other => panic!("{other:?}"),
                }
            }
            ended.set(ended.get() + 1);
        });
        let watched = async {
            let few = PEER_BACKLOG_BYTES_MAX / PEER_STREAM_WINDOW_BYTES as usize;
            until("few streams", || (ended.get() >= STREAMS - few).then_some(())).await;
            let unread = cluster.network.unread_bytes(NodeId(slow));
            assert!(unread <= PEER_BACKLOG_BYTES_MAX && memory.backlog_bytes() <= PEER_BACKLOG_BYTES_MAX, "{unread}");
            assert!(turned_away.get() > 0, "all waited until their leader had given them up");
            let asks = Vote { committed: false, ..vote };
            let pre_vote = Message::VoteRequest { vote: asks, last: group.log().last(), pre: true, transfer: false };
            let answer = ask(&cluster, leader, slow, FrameKind::Raft, pre_vote, vec![]).await;
            assert!(matches!(answer, Message::VoteAnswer { .. }), "{answer:?}");
            let heartbeat = Message::Append { vote, prev: group.log().last(), commit: None };
            let answer = ask(&cluster, leader, slow, FrameKind::Raft, heartbeat, vec![]).await;
            assert!(matches!(answer, Message::Matched { .. }), "{answer:?}");
            cluster.produce(&[leader], 5, 1_000).await;
            drop(full);
        };
        guard("all ends", join(join_all(streams), watched)).await;
        assert_eq!((memory.backlog_bytes(), memory.used_for(Use::Frames)), (0, 0));
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}

/// A stream whose first frame finds no room, when too much waits already, is refused, so that its leader comes again after a pause.
#[test]
fn first_frame_without_room() {
    block_on(async {
        let cluster = Cluster::founded(1, &[1, 2, 3]).await;
        let leader = cluster.leader().await;
        cluster.agree(&[1, 2, 3]).await;
        let slow = cluster.followers(leader)[0];
        let memory = cluster.group(slow).log().memory();
        let mut others = memory.backlog();
        others.resize(memory.backlog_max(), usize::MAX).unwrap();
        let full = memory.force(Use::Queued, memory.limit(Class::Replication));
        let frame =
            Frame { kind: FrameKind::Append, envelope: Bytes::new(), parts: vec![Bytes::from(vec![1; 100_000])] };
        let to = Destination { node: NodeId(slow), slot: 0 };
        let answer = cluster.peers(leader).call(to, frame, Priority::Normal, Duration::from_secs(30)).await.unwrap();
        assert_eq!(answer.kind, FrameKind::Refused);
        let refusal = <v1::PeerRefusal as prost::Message>::decode(&*answer.envelope).unwrap();
        assert_eq!((&*refusal.reason, refusal.definite), ("MEMORY_BUSY", true));
        drop((others, full));
        cluster.produce(&[leader], 1, 10).await;
        cluster.agree(&[1, 2, 3]).await;
        cluster.end().await;
    });
}
