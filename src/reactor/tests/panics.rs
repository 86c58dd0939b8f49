//! Bugs that panic in a replica's tasks: that replica stops, says where, and stays closed; everything else goes on.

use futures_util::future::join_all;

use super::*;
use crate::{
    reactor::control::duties,
    shard::machine::planted,
    sim::{
        disk::Operation,
        disk::{PLANTED_PANIC, PlantedPanic},
    },
};

/// Three nodes with a replica each, one of which leads.
async fn three() -> Vec<World> {
    let worlds = cluster(3, &[1, 2, 3]);
    join_all(worlds.iter().map(|world| world.open(&[1, 2, 3]))).await;
    until("somebody leads", || worlds.iter().any(World::leads)).await;
    within("an ack", worlds[0].reactor.produce(UID, produce("0"))).await.unwrap();
    worlds
}

fn fault(world: &World) -> Option<String> {
    world.reactor.status(&[UID])[0].clone().unwrap().fault
}

/// Wherever in the leader's tasks it happens: the others elect another one, which has all that was acknowledged; requests
/// that come to the node of the broken replica are done there; the reason names the place, for status and readiness.
#[test]
fn the_leader_of_three() {
    // The hard state is written once nothing has come for a while, a checkpoint when a segment is full.
    for (operation, path_contains, requests, bytes) in [
        (Operation::AppendDurable, ".store", 1, 3),
        (Operation::AppendDurable, "hard_state", 1, 3),
        (Operation::Open, ".checkpoint", 5, 300_000),
    ] {
        block_on(async {
            let worlds = three().await;
            let place = worlds.iter().position(World::leads).unwrap();
            let world = &worlds[place];
            let number = world.disk.plant_panic(PlantedPanic { operation, path_contains: path_contains.to_owned() });
            // Each may have been written, or not.
            let (met, mut acked) = ("m".repeat(bytes), 0);
            for _ in 0..requests {
                acked += usize::from(within("an answer", world.reactor.produce(UID, produce(&met))).await.is_ok());
            }
            until("it is met", || !world.disk.awaits_panic(number)).await;
            until("it has stopped", || world.node.faults().contains_key(&UID)).await;
            let cause = fault(world).unwrap();
            assert!(cause.contains(PLANTED_PANIC) && cause.contains("src/sim/disk/faults.rs:"), "{cause}");
            assert!(cause.contains(&format!("{operation:?} of")) && cause.contains(path_contains), "{cause}");
            assert_eq!(world.node.faults()[&UID], cause);
            until("another leads", || worlds.iter().any(World::leads)).await;
            assert!(!world.leads());
            within("an ack", world.reactor.produce(UID, produce("1"))).await.unwrap();
            let values = within("values", world.values()).await;
            let [first, between @ .., last] = &values[..] else { panic!("{values:?}") };
            assert_eq!((first.as_str(), last.as_str()), ("0", "1"));
            assert!(between.iter().all(|value| *value == met));
            assert!((acked..=requests).contains(&between.len()), "{} of {acked} to {requests}", between.len());
        });
    }
}

/// An assertion that fails for what all replicas compute alike stops each of them once, and no node: none is opened again by
/// itself, and each says where it failed. Nodes that start again open it when the bug is mended; with the bug it stops again.
#[test]
fn an_assertion_in_apply() {
    block_on(async {
        let worlds = three().await;
        planted::plant(Some(Offset(1)));
        let answer = within("an answer", worlds[0].reactor.produce(UID, produce("1"))).await;
        assert!(answer.is_err(), "{answer:?}");
        until("all have stopped", || worlds.iter().all(|world| world.node.faults().contains_key(&UID))).await;
        for world in &worlds {
            let cause = fault(world).unwrap();
            assert!(cause.contains("a bug planted in apply") && cause.contains("src/shard/machine.rs:"), "{cause}");
        }
        env::sleep::<TestEnv>(Duration::from_secs(2)).await;
        assert!(worlds.iter().all(|world| world.reactor.shard(UID).is_err()), "nothing opens it again");
        // A leader is looked for, for a while by the clocks.
        let clocks = async {
            loop {
                TestEnv::advance_us(1_000_000);
                env::sleep::<TestEnv>(Duration::from_millis(10)).await;
            }
        };
        let answer = worlds[1].reactor.produce(UID, produce("2"));
        let refused = within("an answer", async {
            tokio::select! {
                answer = answer => answer,
                () = clocks => unreachable!("clocks go on for ever"),
            }
        });
        let refused = refused.await;
        assert!(refused.is_err(), "{refused:?}");
        // All nodes restart: with the bug each stops again, at the same place; without it what was refused is there, or is not.
        let mut worlds = worlds;
        for is_mended in [false, true] {
            planted::plant((!is_mended).then_some(Offset(1)));
            let mut started = Vec::new();
            for world in worlds {
                world.network.crash(world.id);
                let disk = world.disk.crash(3);
                world.disk.power_off();
                started.push(World::start(&world.network.clone(), world.id, disk, 3, &[1, 2, 3]));
            }
            worlds = started;
            let opened = join_all(worlds.iter().map(|world| world.try_open(&[1, 2, 3]))).await;
            if !is_mended {
                until("all have stopped again", || worlds.iter().all(|world| world.node.faults().contains_key(&UID)))
                    .await;
                for world in &worlds {
                    let cause = fault(world).unwrap();
                    assert!(
                        cause.contains("a bug planted in apply") && cause.contains("src/shard/machine.rs:"),
                        "{cause}"
                    );
                }
                continue;
            }
            assert!(opened.iter().all(Result::is_ok), "{opened:?}");
            until("somebody leads", || worlds.iter().any(World::leads)).await;
            within("an ack", worlds[0].reactor.produce(UID, produce("3"))).await.unwrap();
            assert_eq!(worlds.iter().map(fault).collect::<Vec<_>>(), [None, None, None]);
        }
    });
}

/// So does one in what a reactor computes of a shard that it leads: whoever leads next would compute the same. The reactor goes
/// on looking after its shards.
#[test]
fn a_look_at_a_shard() {
    block_on(async {
        let worlds = three().await;
        let place = worlds.iter().position(World::leads).unwrap();
        let world = &worlds[place];
        env::spawn::<TestEnv>(duties::look_after(Rc::clone(&world.reactor)));
        // Another one is to lead, and is asked for when it has settled.
        let mut order: Vec<u64> = worlds.iter().map(|world| world.id.0).collect();
        order.rotate_left(place + 1);
        worlds.iter().for_each(|world| world.place(&order, &[]));
        (1..=3).for_each(|node| world.node.liveness.note(NodeId(node), true));
        planted::plant_in_lag();
        let since = async {
            while !world.node.faults().contains_key(&UID) {
                TestEnv::advance_us(1_000_000);
                env::sleep::<TestEnv>(Duration::from_millis(100)).await;
            }
        };
        within("it has stopped", since).await;
        let cause = fault(world).unwrap();
        assert!(cause.contains("a bug planted in a look") && cause.contains("src/shard/machine.rs:"), "{cause}");
        until("another leads", || worlds.iter().any(World::leads)).await;
        // The loop goes on: what it says is said anew.
        let view = &world.node.reactors[0];
        view.unled.lock().unwrap().insert(ShardUid(77));
        until("another look", || view.unled.lock().unwrap().is_empty()).await;
    });
}

/// A panic while the leader is handed what has waited: what it hands back was before what it was not given yet.
#[test]
fn in_the_middle_of_what_waited() {
    block_on(async {
        let worlds = three().await;
        let world = worlds.iter().find(|world| world.leads()).unwrap();
        world.reactor.hold(UID);
        let answers: Vec<_> = (1..=6).map(|n| world.reactor.produce(UID, produce(&n.to_string()))).collect();
        settle().await;
        // 1 is proposed, 2 waits behind it, 3 meets the panic.
        planted::plant_in_admission(2);
        world.reactor.release(UID);
        for (n, answer) in (1..).zip(answers) {
            let answer = within("an answer", answer).await;
            assert!(answer.is_ok() || [1, 3].contains(&n), "{n}: {answer:?}");
        }
        let mut values = within("values", world.values()).await;
        values.retain(|value| !["0", "1", "3"].contains(&value.as_str()));
        assert_eq!(values, ["2", "4", "5", "6"]);
    });
}

/// A replica whose recovery panics is as one that does not open; the node goes on.
#[test]
fn recovery() {
    block_on(async {
        let worlds = cluster(1, &[1]);
        let world = &worlds[0];
        let path_contains = "hard_state".to_owned();
        world.disk.plant_panic(PlantedPanic { operation: Operation::AppendDurable, path_contains });
        let error = world.try_open(&[1]).await.unwrap_err().to_string();
        assert!(error.contains(PLANTED_PANIC), "{error}");
        let cause = fault(world).unwrap();
        assert!(cause.contains(PLANTED_PANIC), "{cause}");
    });
}

/// What a replica had of the reactor's memory comes back when it has stopped.
#[test]
fn nothing_is_left_behind() {
    block_on(async {
        let worlds = cluster(1, &[1]);
        let world = &worlds[0];
        world.open(&[1]).await;
        for number in 0..10 {
            within("an ack", world.reactor.produce(UID, produce(&number.to_string()))).await.unwrap();
        }
        assert!(world.reactor.tail().bytes() > 0 && world.disk.open_files() > 0);
        let path_contains = ".store".to_owned();
        world.disk.plant_panic(PlantedPanic { operation: Operation::AppendDurable, path_contains });
        assert!(within("an answer", world.reactor.produce(UID, produce("met"))).await.is_err());
        until("its tail is gone", || world.reactor.tail().bytes() == 0).await;
        until("its files are closed", || world.disk.open_files() == 0).await;
    });
}
