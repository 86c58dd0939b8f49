//! Damaged replicas: they do nothing until they are mended, and then they are as they were.

use futures_util::future::join_all;

use super::*;
use crate::{
    format::state_files::{HardState, HardStateSlot},
    limits::BLOCK_BYTES,
    log::LogError,
    raft::{GroupError, GroupOptions},
    reactor::{ReactorError, control::remembered, repair::CatalogMending},
    shard::ShardError,
    sim::{DiskFault, Fault, Operation, PlantedFault},
};

const STORE: &str = "/data/shards/1/00000000000000000000.store";

/// Three nodes with a replica each, with so many records in as many entries.
async fn three(records: u64) -> Vec<World> {
    let worlds = cluster(3, &[1, 2, 3]);
    join_all(worlds.iter().map(|world| world.open(&[1, 2, 3]))).await;
    until("somebody leads", || worlds.iter().any(World::leads)).await;
    for number in 0..records {
        within("an ack", worlds[0].reactor.produce(UID, produce(&number.to_string()))).await.unwrap();
    }
    let has_all = |world: &World| world.reactor.shard(UID).unwrap().high_watermark() == Offset(records);
    until("all have all", || worlds.iter().all(has_all)).await;
    settle().await;
    worlds
}

/// Power fails at a node.
fn crash(worlds: &[World], place: usize) -> SimDisk {
    let world = &worlds[place];
    world.network.crash(world.id);
    let disk = world.disk.crash(9);
    world.disk.power_off();
    for other in worlds.iter().filter(|other| other.id != world.id) {
        other.node.liveness.note(world.id, false);
    }
    disk
}

/// It comes back; its replica is opened, if it can be.
async fn restart(worlds: &mut [World], place: usize, disk: SimDisk) -> Result<(), ReactorError> {
    restart_knowing(worlds, place, disk, &[1, 2, 3]).await
}

/// The same with a catalog that says that these nodes have a replica, and have begun the group.
async fn restart_knowing(
    worlds: &mut [World],
    place: usize,
    disk: SimDisk,
    holders: &[u64],
) -> Result<(), ReactorError> {
    let id = worlds[place].id;
    worlds[place] = World::start(&worlds[place].network.clone(), id, disk, 3, holders);
    for world in worlds.iter() {
        (1..=3).for_each(|node| world.node.liveness.note(NodeId(node), true));
    }
    worlds[place].try_open(holders).await
}

fn flip(disk: &SimDisk, block: usize) {
    disk.flip_bit(STORE, (block * BLOCK_BYTES + 300) as u64, 2);
    disk.flip_bit(STORE, (block * BLOCK_BYTES + 10) as u64, 2);
}

fn is_open(world: &World) -> bool {
    world.reactor.shard(UID).is_ok()
}

/// All three serve, and have applied the same.
async fn agree(worlds: &[World], records: u64) {
    until("all serve", || worlds.iter().all(is_open)).await;
    until("somebody leads", || worlds.iter().any(World::leads)).await;
    let expected: Vec<_> = (0..records).map(|number| number.to_string()).collect();
    for world in worlds {
        assert_eq!(within("values", world.values()).await, expected);
    }
    let status = |world: &World| world.reactor.status(&[UID])[0].clone().unwrap();
    let places =
        || worlds.iter().map(|world| (status(world).applied_end, status(world).chain)).collect::<BTreeSet<_>>();
    until("all have applied all", || places().len() == 1).await;
    for world in worlds {
        assert_eq!(status(world).fault, None);
    }
}

/// A follower, or the leader, loses an entry in the middle: it stays closed while it can ask nobody, and is mended then.
#[test]
fn one_of_three() {
    block_on(async {
        for leads in [false, true] {
            let mut worlds = three(20).await;
            let place = worlds.iter().position(|world| world.leads() == leads).unwrap();
            let disk = crash(&worlds, place);
            flip(&disk, 8);
            worlds[place].network.isolate(worlds[place].id);
            let error = restart(&mut worlds, place, disk).await.unwrap_err();
            assert!(error.to_string().contains("damaged at byte 32768"), "{error}");
            env::sleep::<TestEnv>(Duration::from_millis(700)).await;
            let Err(ReactorError::NotOpen { cause, .. }) = worlds[place].reactor.shard(UID) else {
                panic!("nobody could give it what it lacks")
            };
            assert!(cause.contains("no other replica gave them"), "{cause}");
            worlds[place].network.heal();
            agree(&worlds, 20).await;
            let acked = within("an ack", worlds[place].reactor.produce(UID, produce("20"))).await.unwrap();
            assert_eq!(acked.base_offset, Offset(20));
        }
    });
}

/// A node whose catalog is old takes its replica for the only one: it names the way out, and asks the others all the same as soon as
/// it hears of them, also those that have one only because they were to have one.
#[test]
fn an_old_catalog() {
    block_on(async {
        for are_former in [false, true] {
            let mut worlds = three(20).await;
            let disk = crash(&worlds, 0);
            flip(&disk, 8);
            restart_knowing(&mut worlds, 0, disk, &[1]).await.unwrap_err();
            let says_way_out = |world: &World| match world.reactor.shard(UID) {
                Err(ReactorError::NotOpen { cause, .. }) => {
                    cause.contains("if there are others") && cause.contains("ringlog repair")
                }
                _ => false,
            };
            until("it has looked", || says_way_out(&worlds[0])).await;
            if are_former {
                worlds[0].publish(Replicas { nodes: nodes(&[1]), former: nodes(&[2, 3]), ..Default::default() });
                until("it is mended", || is_open(&worlds[0])).await;
            }
            worlds[0].place(&[1, 2, 3], &[]);
            agree(&worlds, 20).await;
        }
    });
}

/// A place that the device cannot read any more is mended like wrong bytes, elsewhere: it stays bad.
#[test]
fn unreadable_blocks() {
    block_on(async {
        for leads in [false, true] {
            let mut worlds = three(20).await;
            let place = worlds.iter().position(|world| world.leads() == leads).unwrap();
            let disk = crash(&worlds, place);
            disk.lose_block(STORE, 8 * BLOCK_BYTES as u64);
            restart(&mut worlds, place, disk).await.unwrap_err();
            agree(&worlds, 20).await;
            let disk = crash(&worlds, place);
            restart(&mut worlds, place, disk).await.unwrap();
            agree(&worlds, 20).await;
        }
    });
}

/// The device does not read when a replica is opened, reads when it is looked at, and does not when it is opened again: nothing
/// is found to be mended, and it is tried again all the same.
#[test]
fn unreadable_now_and_then() {
    block_on(async {
        let mut worlds = three(20).await;
        let disk = crash(&worlds, 1).with_latency(1);
        let unreadable = PlantedFault {
            fault: DiskFault::ErrorRead,
            path_contains: ".store".into(),
            chance_ppm: 1_000_000,
            times: u64::MAX,
        };
        disk.plant_fault(unreadable.clone());
        restart(&mut worlds, 1, disk.clone()).await.unwrap_err();
        disk.heal();
        let syncs = disk.count(Operation::SyncDir);
        let looked = async {
            while disk.count(Operation::SyncDir) == syncs {
                env::yield_now().await;
            }
        };
        within("a look", looked).await;
        disk.plant_fault(unreadable);
        env::sleep::<TestEnv>(Duration::from_millis(200)).await;
        assert!(!is_open(&worlds[1]), "it was opened before the device failed again");
        disk.heal();
        agree(&worlds, 20).await;
    });
}

/// One loses all entries of its only segment, and nothing there says which they were: it gets what the others know to be
/// committed.
#[test]
fn all_of_one() {
    block_on(async {
        let mut worlds = three(3).await;
        let disk = crash(&worlds, 1);
        let mut content = disk.content(STORE);
        content[BLOCK_BYTES..].fill(0);
        disk.set_content(STORE, content);
        restart(&mut worlds, 1, disk).await.unwrap_err();
        agree(&worlds, 3).await;
    });
}

/// Power fails at all of them, and two, or all three, lose different entries: with nobody to lead, they mend each other, also
/// those that do not open themselves.
#[test]
fn different_entries() {
    block_on(async {
        for damaged in [2, 3] {
            let mut worlds = three(20).await;
            let disks: Vec<_> = (0..3).map(|place| crash(&worlds, place)).collect();
            for (place, disk) in disks.into_iter().enumerate() {
                if place < damaged {
                    flip(&disk, 6 + place);
                    flip(&disk, 11 + place);
                }
                assert_eq!(restart(&mut worlds, place, disk).await.is_ok(), place >= damaged);
            }
            agree(&worlds, 20).await;
        }
    });
}

/// All of them lose the same entry: all stay closed, and say which records are missing. Nothing else is given up.
#[test]
fn all_of_three() {
    block_on(async {
        let mut worlds = three(20).await;
        let disks: Vec<_> = (0..3).map(|place| crash(&worlds, place)).collect();
        for (place, disk) in disks.into_iter().enumerate() {
            flip(&disk, 8);
            restart(&mut worlds, place, disk).await.unwrap_err();
        }
        let says = |world: &World| match world.reactor.shard(UID) {
            Err(ReactorError::NotOpen { cause, .. }) => cause,
            other => panic!("open: {}", other.is_ok()),
        };
        let all_say = || worlds.iter().all(|world| says(world).matches("is not here").count() == 2);
        until("all have asked both others", all_say).await;
        env::sleep::<TestEnv>(Duration::from_secs(2)).await;
        for world in &worlds {
            let cause = says(world);
            assert!(cause.contains("offsets") && cause.contains("cannot be read"), "{cause}");
            assert!(!world.leads());
        }
    });
}

/// A read finds damage in a replica that serves: it is closed, mended and opened again, and who reads notices nothing.
#[test]
fn while_it_serves() {
    block_on(async {
        for leads in [false, true] {
            let mut worlds = three(20).await;
            for place in 0..3 {
                // Nothing of it is in memory afterwards.
                let disk = crash(&worlds, place);
                restart(&mut worlds, place, disk).await.unwrap();
            }
            agree(&worlds, 20).await;
            let place = worlds.iter().position(|world| world.leads() == leads).unwrap();
            flip(&worlds[place].disk, 8);
            let expected: Vec<_> = (0..20).map(|number| number.to_string()).collect();
            let reads = || async { within("values", worlds[place].values()).await };
            for _ in 0..20 {
                assert_eq!(reads().await, expected);
            }
            agree(&worlds, 20).await;
            let whole = worlds[place].disk.content(STORE);
            assert!(crate::format::entry::EntryHeader::parse(&whole[8 * BLOCK_BYTES..]).is_ok(), "it was mended");
        }
    });
}

/// A replica in which a read finds damage while no other one is known serves what is whole, and is mended when there are others.
#[test]
fn others_come_later() {
    block_on(async {
        let mut worlds = three(20).await;
        for place in 0..3 {
            // Nothing of it is in memory afterwards.
            let (disk, alone) = (crash(&worlds, place), [place as u64 + 1]);
            let holders = if place == 1 { &alone } else { &[1, 2, 3][..] };
            restart_knowing(&mut worlds, place, disk, holders).await.unwrap();
        }
        let damaged = &worlds[1];
        flip(&damaged.disk, 8);
        let shard = damaged.reactor.shard(UID).unwrap();
        let looks = async {
            while !shard.is_damaged() {
                drop(damaged.reactor.consume(UID, from(Start::Earliest)).await);
                settle().await;
            }
        };
        within("damage", looks).await;
        settle().await;
        assert!(is_open(damaged));
        damaged.place(&[1, 2, 3], &[]);
        let is_whole =
            || crate::format::entry::EntryHeader::parse(&damaged.disk.content(STORE)[8 * BLOCK_BYTES..]).is_ok();
        until("it is mended", is_whole).await;
        agree(&worlds, 20).await;
    });
}

/// A replica that has lost its vote is never mended into a voter, nor is an older copy of it advised, which has another vote.
#[test]
fn a_lost_vote() {
    block_on(async {
        let mut worlds = three(5).await;
        let disk = crash(&worlds, 1);
        disk.flip_bit("/data/shards/1/hard_state", 30, 0);
        disk.flip_bit("/data/shards/1/hard_state", 4_126, 0);
        restart(&mut worlds, 1, disk).await.unwrap_err();
        settle().await;
        env::sleep::<TestEnv>(Duration::from_secs(1)).await;
        let Err(ReactorError::NotOpen { cause, .. }) = worlds[1].reactor.shard(UID) else { panic!("it is open") };
        assert!(cause.contains("hard_state") && cause.contains("`ringlog cluster undrain 2`"), "{cause}");
        assert!(!cause.contains("backup"), "{cause}");
    });
}

/// The only copy halts, with the place, what is lost, and the command.
#[test]
fn the_only_copy() {
    block_on(async {
        let worlds = cluster(1, &[1]);
        worlds[0].open(&[1]).await;
        for number in 0..10 {
            worlds[0].reactor.produce(UID, produce(&number.to_string())).await.unwrap();
        }
        let disk = worlds[0].disk.crash(3);
        worlds[0].network.crash(worlds[0].id);
        worlds[0].disk.power_off();
        flip(&disk, 5);
        let world = World::start(&worlds[0].network, NodeId(1), disk, 1, &[1]);
        world.try_open(&[1]).await.unwrap_err();
        let says = || match world.reactor.shard(UID) {
            Err(ReactorError::NotOpen { cause, .. }) => cause,
            other => panic!("open: {}", other.is_ok()),
        };
        until("it has looked", || says().contains("ringlog repair")).await;
        let cause = says();
        for words in [
            "00000000000000000000.store is damaged at byte 20480",
            "offsets 2 to 3",
            "ringlog repair /data/shards/1 --cut",
        ] {
            assert!(cause.contains(words), "{cause}");
        }
    });
}

/// One whose votes the device cannot read is closed as long as that is so, and says what can be done if it stays so. When it is
/// removed, what it leaves is that nothing is known of them.
#[test]
fn unreadable_votes() {
    block_on(async {
        let mut worlds = three(5).await;
        let disk = crash(&worlds, 1);
        (0..2).for_each(|slot| disk.lose_block("/data/shards/1/hard_state", (slot * BLOCK_BYTES) as u64));
        restart(&mut worlds, 1, disk).await.unwrap_err();
        let World { disk, reactor, .. } = &worlds[1];
        let says_it = || match reactor.shard(UID) {
            Err(ReactorError::NotOpen { cause, .. }) => {
                cause.contains("the device cannot read it")
                    && cause.contains("`ringlog cluster undrain 2`")
                    && !cause.contains("backup")
            }
            _ => false,
        };
        until("it has looked", says_it).await;
        within("a removal", reactor.remove(vec![UID])).await;
        assert!(!disk.paths().contains(&STORE.into()));
        let slot = HardStateSlot::parse(&disk.content("/data/shards/1.left")).unwrap();
        assert_eq!((slot.sequence, slot.state), (1, HardState::default()));
    });
}

/// What a replica knew of its votes is written before it is removed; where its files do not say it, that they don't. As long as
/// that cannot be written, nothing is removed.
#[test]
fn removed_without_its_votes() {
    block_on(async {
        let mut worlds = cluster(1, &[1]);
        worlds[0].open(&[1]).await;
        let disk = crash(&worlds, 0);
        for slot in 0..2 {
            disk.flip_bit("/data/shards/1/hard_state", (slot * BLOCK_BYTES + 30) as u64, 1);
        }
        let network = worlds[0].network.clone();
        worlds[0] = World::start(&network, NodeId(1), disk, 1, &[1]);
        let World { disk, reactor, .. } = &worlds[0];
        worlds[0].try_open(&[1]).await.unwrap_err();
        let says_it = || match reactor.shard(UID) {
            // Nobody else has it.
            Err(ReactorError::NotOpen { cause, .. }) => cause.contains("backup") && !cause.contains("drain"),
            _ => false,
        };
        until("it has looked", says_it).await;
        let fault = Fault {
            operation: Operation::Write,
            path_contains: "1.left".into(),
            skip: 0,
            times: u64::MAX,
            error: std::io::ErrorKind::Other,
        };
        disk.plant(fault);
        let [(uid, cause)] = &within("a removal", reactor.remove(vec![UID])).await[..] else {
            panic!("it was removed")
        };
        assert!(*uid == UID && cause.contains("1.left could not be written"), "{cause}");
        assert!(disk.paths().contains(&STORE.into()), "its votes are not written down");
        disk.heal();
        within("a removal", reactor.remove(vec![UID])).await;
        assert!(!disk.paths().contains(&STORE.into()));
        let left = disk.content("/data/shards/1.left");
        let slot = HardStateSlot::parse(&left).unwrap();
        assert_eq!((slot.shard, slot.sequence, slot.state), (UID, 1, HardState::default()));
    });
}

/// A replica whose votes cannot be read for a reason that passes stays, with all of its files, until they can be.
#[test]
fn removed_when_its_votes_can_be_read() {
    block_on(async {
        let mut worlds = cluster(1, &[1]);
        worlds[0].open(&[1]).await;
        let disk = crash(&worlds, 0);
        let network = worlds[0].network.clone();
        worlds[0] = World::start(&network, NodeId(1), disk, 1, &[1]);
        let World { disk, reactor, .. } = &worlds[0];
        for (operation, path_contains) in [(Operation::Read, "hard_state"), (Operation::Open, ".store")] {
            let (before, path_contains) = (disk.paths(), path_contains.to_owned());
            let error = std::io::ErrorKind::PermissionDenied;
            disk.plant(Fault { operation, path_contains, skip: 0, times: u64::MAX, error });
            let [(uid, cause)] = &within("a removal", reactor.remove(vec![UID])).await[..] else {
                panic!("it was removed")
            };
            assert!(*uid == UID && cause.contains("how it voted could not be kept"), "{cause}");
            assert_eq!(disk.paths(), before);
            disk.heal();
        }
        assert_eq!(within("a removal", reactor.remove(vec![UID])).await, []);
        assert!(!disk.paths().contains(&STORE.into()));
        let slot = HardStateSlot::parse(&disk.content("/data/shards/1.left")).unwrap();
        assert!(slot.state.vote.is_some(), "{slot:?}");
    });
}

/// One that was closed because a read found damage leaves all that it has acknowledged, also when its files do not say it any more,
/// and when the first attempt to remove it fails.
#[test]
fn removed_when_damaged() {
    block_on(async {
        let mut worlds = three(20).await;
        for place in 0..3 {
            // Nothing of it is in memory afterwards.
            let disk = crash(&worlds, place);
            restart(&mut worlds, place, disk).await.unwrap();
        }
        agree(&worlds, 20).await;
        for number in 20..25 {
            within("an ack", worlds[0].reactor.produce(UID, produce(&number.to_string()))).await.unwrap();
        }
        let place = worlds.iter().position(|world| !world.leads()).unwrap();
        let World { disk, reactor, network, id, .. } = &worlds[place];
        let shard = reactor.shard(UID).unwrap();
        until("all is flushed", || shard.high_watermark() == Offset(25) && shard.flushed() >= shard.left().last).await;
        let (flushed, vote) = (shard.flushed(), shard.left().vote);
        network.isolate(*id);
        let blocks = disk.content(STORE).len() / BLOCK_BYTES;
        (8..blocks).for_each(|block| disk.lose_block(STORE, (block * BLOCK_BYTES) as u64));
        // It is answered by another one when there is one again.
        let read = reactor.consume(UID, at(10));
        env::spawn::<TestEnv>(async move { drop(read.await) });
        until("it is closed", || !is_open(&worlds[place])).await;
        let (operation, path_contains, error) = (Operation::Write, "1.left".into(), std::io::ErrorKind::Other);
        disk.plant(Fault { operation, path_contains, skip: 0, times: 1, error });
        assert_eq!(within("a removal", reactor.remove(vec![UID])).await.len(), 1);
        assert_eq!(within("a removal", reactor.remove(vec![UID])).await, []);
        let slot = HardStateSlot::parse(&disk.content("/data/shards/1.left")).unwrap();
        assert_eq!((slot.state.committed, slot.state.vote, slot.sequence), (flushed, vote, 0));
    });
}

/// Replicas of one request are removed at the same time: one that waits for its device keeps none of the others waiting.
#[test]
fn removed_together() {
    block_on(async {
        let world = cluster(1, &[1]).remove(0);
        world.open(&[1]).await;
        let others: Vec<_> = (2..9).map(ShardUid).collect();
        for uid in &others {
            let dir = std::path::PathBuf::from(format!("/data/shards/{uid}"));
            env::Disk::create_dir_all(&world.disk, &dir).await.unwrap();
            world.disk.set_content(dir.join("hard_state"), Vec::new());
        }
        world.disk.hold();
        let hung = world.reactor.produce(UID, produce("0"));
        env::spawn::<TestEnv>(async move { drop(hung.await) });
        settle().await;
        let (reactor, uids) = (Rc::clone(&world.reactor), [vec![UID], others].concat());
        env::spawn::<TestEnv>(async move { drop(reactor.remove(uids).await) });
        let remain = || world.disk.paths().iter().filter(|path| path.ends_with("hard_state")).count();
        until("the others are gone", || remain() == 1).await;
        world.disk.release();
        until("all are gone", || remain() == 0).await;
    });
}

/// A replica that is removed while its repair waits for an answer is left alone from then on: the directory may be another one's by
/// then.
#[test]
fn removed_while_it_is_mended() {
    block_on(async {
        let mut worlds = three(20).await;
        let disk = crash(&worlds, 1);
        flip(&disk, 8);
        let network = worlds[1].network.clone();
        network.hold_dials(true);
        let dials = network.dials();
        restart(&mut worlds, 1, disk).await.unwrap_err();
        until("it asks", || network.dials() > dials).await;
        settle().await;
        let World { disk, reactor, .. } = &worlds[1];
        within("a removal", reactor.remove(vec![UID])).await;
        assert!(!disk.paths().contains(&STORE.into()));
        // As another one would, that is made there next.
        let others = b"another replica's".to_vec();
        disk.set_content("/data/shards/1/hard_state", others.clone());
        let operations =
            [Operation::Open, Operation::Read, Operation::Write, Operation::Rename, Operation::Remove, Operation::List];
        let count = || operations.map(|operation| disk.count(operation));
        let before = count();
        network.hold_dials(false);
        env::sleep::<TestEnv>(Duration::from_secs(1)).await;
        assert_eq!(count(), before, "the repair has gone on");
        assert_eq!(disk.content("/data/shards/1/hard_state"), others);
    });
}

fn catalog_options(world: &World) -> GroupOptions {
    GroupOptions {
        dir: "/data/shards/1".into(),
        shard: UID,
        node: world.id,
        segment_bytes_max: crate::limits::SEGMENT_BYTES_MIN,
        slot: 0,
        founders: None,
        owner: world.node.identity().unwrap().owner(),
        preferred: false,
    }
}

/// Mends a catalog at node `place`, of which this replica's files are taken.
async fn mend_as_catalog(worlds: &mut [World], place: usize, disk: SimDisk, nodes: u64) -> Result<(), GroupError> {
    let id = worlds[place].id;
    worlds[place] = World::start(&worlds[place].network.clone(), id, disk, nodes, &[1, 2, 3]);
    let error = LogError::Corrupt { file: "f".into(), position: 0, what: "just a test".into() };
    let options = catalog_options(&worlds[place]);
    let mut mending = CatalogMending::new();
    within("a look", mending.mend(&worlds[place].reactor, &options, error)).await
}

/// A catalog that the device could not read when it was opened, and can when it is looked at, is opened again, as a shard is.
#[test]
fn catalog_unreadable_for_a_moment() {
    block_on(async {
        let mut worlds = three(5).await;
        let disk = crash(&worlds, 1);
        mend_as_catalog(&mut worlds, 1, disk, 3).await.unwrap();
    });
}

/// Nor does a start end because the device cannot read the catalog's votes just now.
#[test]
fn catalog_with_unreadable_votes() {
    block_on(async {
        let mut worlds = three(5).await;
        let disk = crash(&worlds, 1);
        disk.plant_fault(PlantedFault {
            fault: DiskFault::ErrorRead,
            path_contains: "hard_state".into(),
            chance_ppm: 1_000_000,
            times: u64::MAX,
        });
        let heals = disk.clone();
        env::spawn::<TestEnv>(async move {
            env::sleep::<TestEnv>(Duration::from_millis(200)).await;
            heals.heal();
        });
        mend_as_catalog(&mut worlds, 1, disk, 3).await.unwrap();
    });
}

/// A catalog that has lost its votes is to be got from the others, as a new node; only where there has never been another one an
/// older copy is advised.
#[test]
fn catalog_without_its_votes() {
    block_on(async {
        for (nodes, is_listed) in [(3, true), (1, true), (1, false)] {
            let mut worlds = three(5).await;
            let disk = crash(&worlds, 0);
            (0..2).for_each(|slot| disk.flip_bit("/data/shards/1/hard_state", (slot * BLOCK_BYTES + 30) as u64, 0));
            if is_listed {
                let members = remembered::encode(crate::ids::Index(0), [worlds[0].node.own_entry()]);
                disk.set_content("/data/members", members.into_bytes());
            }
            let said = mend_as_catalog(&mut worlds, 0, disk, nodes).await.unwrap_err().to_string();
            assert_eq!(said.contains("backup"), nodes == 1, "{said}");
            assert_eq!(said.contains("`ringlog cluster remove 1 --dead`"), nodes > 1 || !is_listed, "{said}");
        }
    });
}

/// A node that does not know which others there are does not take its catalog for the only one.
#[test]
fn catalog_of_unknown_nodes() {
    block_on(async {
        for is_alone in [false, true] {
            let mut worlds = three(20).await;
            let disk = crash(&worlds, 0);
            flip(&disk, 8);
            if is_alone {
                let own = worlds[0].node.own_entry();
                let members = remembered::encode(crate::ids::Index(0), [own]);
                disk.set_content("/data/members", members.into_bytes());
            }
            let error = mend_as_catalog(&mut worlds, 0, disk, 1).await.unwrap_err().to_string();
            assert!(error.contains("ringlog repair"), "{error}");
            assert_eq!(error.contains("/data/members"), !is_alone, "{error}");
        }
    });
}

/// What a replica answers that was removed meanwhile is no fault of the node's, nor of the replica that was made in its place.
#[test]
fn last_answers() {
    block_on(async {
        let worlds = three(5).await;
        let World { node, reactor, .. } = &worlds[1];
        let answers = || {
            let error = ShardError::Failed { cause: "the replica is closing".into(), maybe_written: true };
            assert!(reactor.noted::<()>(UID, Err(error)).is_err());
            assert!(node.faults().is_empty(), "{:?}", node.faults());
        };
        // Its successor serves.
        answers();
        within("a removal", reactor.remove(vec![UID])).await;
        answers();
    });
}
