//! Frames: the drawing, however they are cut, and bytes that are none.

use std::future::Future;

use bytes::Bytes;
use futures_util::{FutureExt, future::join};

use super::{assemble::FrameFault, *};
use crate::{
    budget::{Class, Use},
    env::{net::Endpoint, runtime::block_on},
    limits::BLOCK_BYTES,
    sim::{SimNet, TestEnv, net::SimNetwork},
};

fn frame() -> Frame {
    let parts = vec![Bytes::from_static(b"xyz"), Bytes::new(), Bytes::from(vec![7; BLOCK_BYTES + 1])];
    Frame { kind: FrameKind::Produce, envelope: Bytes::from_static(b"envelope"), parts }
}

fn encoded(frame: Frame) -> Bytes {
    frame.into_pieces().unwrap().concat().into()
}

fn assembler() -> Assembler {
    Assembler::new(Budget::default(), true)
}

fn assert_same(received: &Received, sent: &Frame) {
    assert_eq!((received.kind, &received.envelope), (sent.kind, &sent.envelope));
    let parts: Vec<&[u8]> = received.parts.iter().map(Buffer::bytes).collect();
    assert_eq!(parts, sent.parts);
}

/// The bytes are those of the drawing.
#[test]
fn fixed_bytes() {
    let frame = Frame {
        kind: FrameKind::Appended,
        envelope: Bytes::from_static(b"en"),
        parts: vec![Bytes::from_static(b"abc"), Bytes::from_static(b"d")],
    };
    assert_eq!(encoded(frame), &b"\x02\0\x02\0\x02\0\0\0\x03\0\0\0\x01\0\0\0enabcd"[..]);
}

/// What is sent are the caller's own bytes, not copies.
#[test]
fn sending_copies_nothing() {
    let frame = frame();
    let mine: Vec<*const u8> = [&frame.envelope, &frame.parts[0], &frame.parts[2]].map(|bytes| bytes.as_ptr()).to_vec();
    let pieces = frame.into_pieces().unwrap();
    assert_eq!(pieces[1..].iter().map(|bytes| bytes.as_ptr()).collect::<Vec<_>>(), mine);
}

/// Two frames in one row come out as they went in, wherever the row is cut, and byte by byte; parts are aligned.
#[test]
fn cut_anywhere() {
    let (first, second) = (frame(), Frame { kind: FrameKind::Raft, envelope: Bytes::new(), parts: Vec::new() });
    let row = Bytes::from([encoded(first.clone()), encoded(second.clone())].concat());
    let cuts = (0..64).chain(row.len() - 64..=row.len()).map(|cut| vec![cut, row.len() - cut]);
    for cut in cuts.chain([vec![1; row.len()]]) {
        let (mut assembler, mut rest, mut out) = (assembler(), row.clone(), Vec::new());
        for bytes in cut {
            let mut piece = rest.split_to(bytes);
            while let Some(received) = assembler.push(&mut piece).unwrap() {
                out.push(received);
            }
            assert!(piece.is_empty());
        }
        assert!(assembler.is_between_frames());
        assert_eq!(out.len(), 2);
        assert_same(&out[0], &first);
        assert_same(&out[1], &second);
        let part = out.remove(0).parts.remove(2).freeze_padded();
        assert_eq!((part.as_ptr() as usize % BLOCK_BYTES, part.len()), (0, 2 * BLOCK_BYTES));
    }
}

/// A frame that ends too early is not one, wherever it ends.
#[test]
fn cut_off() {
    let row = encoded(frame());
    for bytes in 1..row.len() {
        let mut assembler = assembler();
        assert!(assembler.push(&mut row.slice(..bytes)).unwrap().is_none(), "{bytes} bytes");
        assert!(!assembler.is_between_frames());
    }
}

/// No bit of the header and of the lengths can be flipped so that we panic, or get more than was sent.
#[test]
fn flipped_bits() {
    let sent = frame();
    let row = encoded(sent.clone());
    for bit in 0..8 * (HEADER_BYTES + 4 * sent.parts.len()) {
        let mut bytes = row.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let (mut assembler, mut piece) = (assembler(), Bytes::from(bytes));
        if let Ok(Some(received)) = assembler.push(&mut piece) {
            let held = received.envelope.len() + received.parts.iter().map(Buffer::len).sum::<usize>();
            assert!(held < row.len());
            assert!(received.kind != sent.kind || held != 8 + 3 + BLOCK_BYTES + 1 || !piece.is_empty());
        }
    }
}

/// Each length is checked before anything is allocated for it.
#[test]
fn bounds() {
    let push = |bytes: &[u8]| assembler().push(&mut Bytes::copy_from_slice(bytes)).map(|frame| frame.is_some());
    assert_eq!(push(b"\0\0\0\0\0\0\0\0"), Err(FrameFault::Kind(0)));
    assert_eq!(push(b"\x09\0\0\0\0\0\0\0"), Err(FrameFault::Kind(9)));
    assert_eq!(push(b"\x01\x01\0\0\0\0\0\0"), Err(FrameFault::Reserved(1)));
    assert_eq!(push(b"\x01\0\x01\x10\0\0\0\0"), Err(FrameFault::Parts(4_097)));
    assert_eq!(push(b"\x01\0\0\0\x01\0\x40\0"), Err(FrameFault::Envelope(ENVELOPE_BYTES_MAX + 1)));
    let two = [&b"\x01\0\x02\0\0\0\0\0"[..], &u32::MAX.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    assert_eq!(push(&two), Err(FrameFault::Bytes(2 * u64::from(u32::MAX))));
    let largest = [&b"\x01\0\x01\0\0\0\0\0"[..], &(FRAME_BYTES_MAX as u32).to_le_bytes()].concat();
    assert_eq!(push(&largest), Ok(false));
    for number in 0..=u8::MAX {
        assert!(FrameKind::from_number(number).is_none_or(|kind| kind as u8 == number));
    }
    let many = Frame { kind: FrameKind::Raft, envelope: Bytes::new(), parts: vec![Bytes::new(); FRAME_PARTS_MAX + 1] };
    assert!(many.into_pieces().unwrap_err().contains("4097 parts"));
}

/// What a frame announces, its envelope too, is charged before anything of it has come, as the memory that it will take; the
/// received frame keeps the charge. Without room nothing is lost: the same bytes go on when there is some.
#[test]
fn charged_when_announced() {
    let budget = Budget::default();
    let begin = |kind: FrameKind, asks: bool, envelope: u32, part: u32| {
        let mut assembler = Assembler::new(budget.clone(), asks);
        let row = [&[kind as u8, 0, 1, 0][..], &envelope.to_le_bytes(), &part.to_le_bytes()].concat();
        assembler.push(&mut Bytes::from(row)).map(|_| assembler)
    };
    let mut one = begin(FrameKind::Append, true, 3, 1).unwrap();
    assert_eq!(budget.used_for(Use::Frames), 3 + BLOCK_BYTES + 64);
    let received = one.push(&mut Bytes::from_static(b"abcd")).unwrap().unwrap();
    assert_eq!(budget.used_for(Use::Frames), received.charge.bytes());
    drop(received);
    assert_eq!(budget.used(), 0);
    let envelopes = begin(FrameKind::Raft, true, ENVELOPE_BYTES_MAX as u32, 0).unwrap();
    assert!(budget.used() >= ENVELOPE_BYTES_MAX, "of {} bytes of an announced envelope", budget.used());
    drop(envelopes);

    // Clients of this node, whose requests may wait for that peer, do not keep its clients' requests away. These are refused
    // first, then entries; votes, and answers to clients' requests, come in.
    let refused = |kind, asks, part| begin(kind, asks, 1, part).err();
    let client = budget.force(Use::Queued, budget.limit(Class::Client));
    assert_eq!(refused(FrameKind::Produce, true, crate::limits::MESSAGE_BYTES_MAX as u32), None);
    let passed_on = budget.force(Use::Frames, budget.limit(Class::PassedOn) - budget.used());
    assert_eq!(refused(FrameKind::Produce, true, 1), Some(FrameFault::NoRoom));
    assert_eq!(refused(FrameKind::Consume, true, 1), Some(FrameFault::NoRoom));
    assert_eq!(refused(FrameKind::Consume, false, 1), Some(FrameFault::NoRoom));
    drop(passed_on);
    assert_eq!(refused(FrameKind::Append, true, FRAME_BYTES_MAX as u32), None);
    let entries = budget.force(Use::Unflushed, budget.limit(Class::Replication) - budget.used());
    assert_eq!(refused(FrameKind::Append, true, 1), Some(FrameFault::NoRoom));
    assert_eq!(refused(FrameKind::Snapshot, true, 1), Some(FrameFault::NoRoom));
    for (kind, asks) in [(FrameKind::Raft, true), (FrameKind::Appended, false), (FrameKind::Produce, false)] {
        assert_eq!(refused(kind, asks, 1), None, "{kind:?}");
    }
    drop((client, entries));
    assert_eq!(budget.used(), 0);
}

/// A frame that can never have room is a fault, and does not wait for ever.
#[test]
fn larger_than_the_budget() {
    let mut assembler = Assembler::new(Budget::new(1 << 20), true);
    let row = [&b"\x01\0\x01\0\0\0\0\0"[..], &(2u32 << 20).to_le_bytes()].concat();
    assert!(matches!(assembler.push(&mut Bytes::from(row)), Err(FrameFault::Memory(_))));
}

/// A stream whose frame finds no room waits, keeps nothing meanwhile but what the network's window holds, and goes on when
/// room was given back.
#[test]
fn waits_for_room() {
    block_on(async {
        let (network, budget) = (SimNetwork::new(), Budget::default());
        let [mut mine, mut theirs] = stream_with(&network, &budget).await;
        drop(theirs.receiver.receive().await.unwrap().unwrap());
        let full = budget.force(Use::Queued, budget.limit(Class::PassedOn));
        mine.sender.send(frame()).await.unwrap();
        let mut receiving = Box::pin(theirs.receiver.receive());
        assert!(is_stuck(&mut receiving).await, "there is no room");
        assert_eq!(budget.used_for(Use::Frames), 0);
        drop(full);
        assert_same(&receiving.await.unwrap().unwrap(), &frame());
    });
}

/// A stream of entries that finds no room is read a little, counts as a window then, and is not read on; giving up the wait loses
/// nothing, and when there is room it goes on. When too much waits it is turned away, and nothing of it is kept.
#[test]
fn turned_away() {
    block_on(async {
        let (network, budget) = (SimNetwork::new(), Budget::default());
        network.set_window(1 << 20);
        let [mut mine, mut theirs] = stream_with(&network, &budget).await;
        drop(theirs.receiver.receive().await.unwrap().unwrap());
        let entries = || Frame { kind: FrameKind::Append, parts: vec![Bytes::from(vec![9; 300_000])], ..frame() };
        let full = || budget.force(Use::Queued, budget.limit(Class::Replication));
        let held = full();
        mine.sender.send(entries()).await.unwrap();
        assert!(is_stuck(theirs.receiver.receive()).await, "there is no room");
        let waits = budget.backlog_bytes();
        let least = limits::PEER_BACKLOG_READ_BYTES + limits::PEER_STREAM_WINDOW_BYTES as usize;
        assert!(waits >= least && waits < least + (64 << 10), "{waits}");
        assert!(network.unread_bytes(NodeId(2)) > 200_000, "the rest is not read");
        assert_eq!(budget.used_for(Use::Frames), 0);
        drop(held);
        assert_same(&theirs.receiver.receive().await.unwrap().unwrap(), &entries());
        assert_eq!(budget.backlog_bytes(), 0);

        let mut others = budget.backlog();
        others.resize(budget.backlog_max() - (32 << 10), usize::MAX).unwrap();
        let held = full();
        mine.sender.send(entries()).await.unwrap();
        let refused = theirs.receiver.receive().await;
        assert!(matches!(refused, Err(PeerError::Lost { node: NodeId(1), .. })), "{refused:?}");
        assert!(theirs.receiver.is_turned_away());
        assert_eq!(budget.backlog_bytes(), others.bytes());
        drop((held, theirs));
        assert!(mine.sender.send(entries()).await.is_err(), "its sender hears of it");
    });
}

/// A stream of frames over the network, with each end's halves.
async fn stream(network: &SimNetwork) -> [FrameStream<TestEnv>; 2] {
    stream_with(network, &Budget::default()).await
}

async fn stream_with(network: &SimNetwork, budget: &Budget) -> [FrameStream<TestEnv>; 2] {
    let (a, b) = (network.endpoint(NodeId(1), "a", 1), network.endpoint(NodeId(2), "b", 1));
    let to = Endpoint { node: NodeId(2), host: "b".into(), port: 1 };
    let (dialled, accepted) = join(SimNet::connect(&a, to), b.accept()).await;
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    let shared = |peer| Shared { peer, pulse: Arc::default(), budget: budget.clone() };
    let mine = FrameStream::new(dialled.open().await.unwrap(), &shared(NodeId(2)), None);
    let theirs = async {
        let halves = accepted.accept().await.unwrap();
        let permit = Permit { give_back: Box::new(|| {}) };
        FrameStream::new(halves, &shared(NodeId(1)), Some(Rc::new(permit)))
    };
    let mut mine = mine;
    let (theirs, sent) = join(theirs, mine.sender.send(frame())).await;
    sent.unwrap();
    [mine, theirs]
}

async fn is_stuck(future: impl Future) -> bool {
    let mut future = Box::pin(future);
    for _ in 0..50 {
        if (&mut future).now_or_never().is_some() {
            return false;
        }
        crate::env::yield_now().await;
    }
    true
}

/// Frames cross the network whole and in order, beat the pulse, and end; giving up a receive loses nothing.
#[test]
fn over_the_network() {
    block_on(async {
        let network = SimNetwork::new();
        network.set_piece(5);
        let [mut mine, mut theirs] = stream(&network).await;
        assert_same(&theirs.receiver.receive().await.unwrap().unwrap(), &frame());
        assert!(theirs.receiver.pulse.take(), "a frame is a sign of life");
        network.set_window(50);
        let half = Frame { parts: vec![Bytes::from(vec![3; 60])], ..frame() };
        let mut sending = Box::pin(mine.sender.send(half.clone()));
        assert!(is_stuck(&mut sending).await, "the peer has not read");
        let (sent, received) = join(sending, theirs.receiver.receive()).await;
        sent.unwrap();
        assert_same(&received.unwrap().unwrap(), &half);
        mine.sender.finish();
        assert!(theirs.receiver.receive().await.unwrap().is_none());
    });
}

/// A receive that is given up in the middle of a frame loses nothing of it.
#[test]
fn giving_up_loses_nothing() {
    block_on(async {
        let network = SimNetwork::new();
        network.set_piece(5);
        let [mut mine, mut theirs] = stream(&network).await;
        assert_same(&theirs.receiver.receive().await.unwrap().unwrap(), &frame());
        let row = encoded(frame());
        mine.sender.stream.send(vec![row.slice(..50)]).await.unwrap();
        assert!(is_stuck(theirs.receiver.receive()).await);
        mine.sender.stream.send(vec![row.slice(50..)]).await.unwrap();
        mine.sender.finish();
        assert_same(&theirs.receiver.receive().await.unwrap().unwrap(), &frame());
        assert!(theirs.receiver.receive().await.unwrap().is_none());
    });
}

/// What is not a frame, and half of one, is a lost stream, again and again.
#[test]
fn hostile_streams() {
    block_on(async {
        for (bytes, why) in [(&b"\xff\0\0\0\0\0\0\0"[..], "255 is no kind"), (b"\x01\0\0", "within a frame")] {
            let [mut mine, mut theirs] = stream(&SimNetwork::new()).await;
            assert!(theirs.receiver.receive().await.unwrap().is_some());
            mine.sender.stream.send(vec![Bytes::from_static(bytes)]).await.unwrap();
            mine.sender.finish();
            for _ in 0..2 {
                match theirs.receiver.receive().await {
                    Err(PeerError::Lost { node: NodeId(1), cause }) => assert!(cause.contains(why), "{cause}"),
                    other => panic!("{other:?}"),
                }
            }
        }
    });
}

/// A frame's bytes.
pub(crate) fn sent(frame: Frame) -> Vec<u8> {
    encoded(frame).into()
}

/// The frame that all of the bytes are.
pub(crate) fn received(bytes: &[u8]) -> Option<Received> {
    let (mut assembler, mut piece) = (assembler(), Bytes::copy_from_slice(bytes));
    let received = assembler.push(&mut piece).ok()??;
    piece.is_empty().then_some(received)
}

/// Frames of any bytes (`crate::fuzz`): cut anywhere they are the same, and the budget is given back.
#[test]
fn fuzz() {
    let frames = |bytes: &[u8], size: usize| {
        let budget = Budget::default();
        let mut assembler = Assembler::new(budget.clone(), true);
        let mut frames = Vec::new();
        for piece in bytes.chunks(size) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(frame) = assembler.push(&mut piece).ok()? {
                let parts: Vec<Vec<u8>> = frame.parts.iter().map(|part| part.bytes().to_vec()).collect();
                frames.push((frame.kind, frame.envelope, parts));
                drop(frame.charge);
                assert_eq!(budget.used(), 0);
            }
            assert!(budget.used() <= 2 * FRAME_BYTES_MAX);
        }
        let whole = assembler.is_between_frames();
        drop(assembler);
        assert_eq!(budget.used(), 0);
        whole.then_some(frames)
    };
    let small =
        Frame { kind: FrameKind::Raft, envelope: Bytes::from_static(b"e"), parts: vec![Bytes::from_static(b"p")] };
    let corpus = [encoded(small.clone()), [encoded(frame()), encoded(small)].concat().into()];
    crate::fuzz::Target::new("peer::frame::tests::fuzz", corpus, |bytes| {
        let whole = frames(bytes, usize::MAX);
        assert_eq!(frames(bytes, 7), whole);
        whole
    })
    .encode(|frames| {
        let frame = |(kind, envelope, parts): &(FrameKind, Bytes, Vec<Vec<u8>>)| {
            let parts = parts.iter().cloned().map(Bytes::from).collect();
            sent(Frame { kind: *kind, envelope: envelope.clone(), parts })
        };
        frames.iter().flat_map(frame).collect()
    })
    .memory((2 * ENVELOPE_BYTES_MAX + 2 * FRAME_BYTES_MAX + (64 << 10)) as u64)
    .run();
}
