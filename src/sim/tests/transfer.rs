//! Transfers of leadership that fail: the leader leads on, records are taken, readers are answered, and whoever asked for the
//! transfer hears why it was not made.

use super::*;

/// What is wrong with the one that is to take over.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// It is down, and known to be.
    Down,
    /// It does not hear the leader, nor the leader it, and nobody has noticed yet.
    CutOff,
    /// It stands still, and nobody has noticed yet.
    Paused,
    /// It has stopped, on a node that is alive.
    Refuses,
}

/// Longest that proposals may be refused for a transfer that comes to nothing.
const REFUSED_US_MAX: u64 = 700_000;

/// Of a client, between two calls.
const PAUSE: Duration = Duration::from_millis(40);

/// What went on beside the transfer.
#[derive(Default)]
struct Seen {
    acknowledged_us: RefCell<Vec<u64>>,
    read_us: RefCell<Vec<u64>>,
    over: Cell<bool>,
}

/// Longest time between two of these.
fn longest_gap(times_us: &[u64]) -> u64 {
    times_us.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(u64::MAX)
}

/// Produces through the leader, and asks the node `reader` for linearizable reads, until it is over.
fn traffic(trio: &Rc<Trio>, reader: NodeId) -> (Rc<Seen>, Vec<crate::sim::executor::JoinHandle<()>>) {
    let seen: Rc<Seen> = Rc::default();
    let (producer, told) = (Rc::clone(trio), Rc::clone(&seen));
    let producing = World::current().spawn(async move {
        let mut number = 0;
        while !told.over.get() {
            producer.propose(number).await;
            number += 1;
            told.acknowledged_us.borrow_mut().push(World::current().now_us());
            env::sleep::<SimEnv>(PAUSE).await;
        }
    });
    let (group, told) = (trio.groups.borrow()[&reader].clone(), Rc::clone(&seen));
    let reading = World::current().spawn_on(reader, async move {
        while !told.over.get() {
            group.linearize(Duration::from_secs(5)).await.unwrap();
            told.read_us.borrow_mut().push(World::current().now_us());
            env::sleep::<SimEnv>(PAUSE).await;
        }
    });
    (seen, vec![producing, reading])
}

/// A transfer to one that cannot take over, under load; then everything is mended, and a transfer is made.
async fn failing(seed: u64, trouble: Trouble) {
    let (world, trio) = (World::current(), Trio::founded(seed).await);
    let leader = until("a leader", || trio.leader()).await;
    let others: Vec<NodeId> = Trio::nodes().into_iter().filter(|node| *node != leader).collect();
    let [target, reader] = others[..] else { panic!("of three nodes two are no leader") };
    let (seen, running) = traffic(&trio, reader);
    env::sleep::<SimEnv>(Duration::from_secs(1)).await;
    match trouble {
        Trouble::Down => {
            trio.crash(target, seed);
            env::sleep::<SimEnv>(Duration::from_secs(2)).await;
        }
        Trouble::CutOff => trio.network.cut_both(leader, target),
        Trouble::Paused => {
            world.pause(target);
            trio.network.pause(target);
        }
        Trouble::Refuses => {
            let group = trio.groups.borrow()[&target].clone();
            world.spawn_on(target, async move { group.close().await }).await.unwrap().unwrap();
        }
    }
    let group = trio.groups.borrow()[&leader].clone();
    let term = group.leader().1;
    let began_us = world.now_us();
    let asked = group.clone();
    let transfer = world.spawn_on(leader, async move { asked.transfer(Some(target), Duration::from_secs(5)).await });
    let error = guard("an answer", transfer).await.unwrap().expect_err("nobody could take over");
    let took_us = world.now_us() - began_us;
    // The one that is down is known to be; the others were to take over.
    match (trouble, &error) {
        (Trouble::Down, TransferError::NoSuccessor { .. }) => {}
        (
            Trouble::CutOff | Trouble::Paused | Trouble::Refuses,
            TransferError::NotTakenOver { to, leader: stays, .. },
        ) => {
            assert_eq!((*to, *stays), (target, leader), "{trouble:?}: {error}");
        }
        _ => panic!("{trouble:?}: {error:?}"),
    }
    assert!(took_us <= if matches!(trouble, Trouble::Down) { 1_000 } else { 5_500_000 }, "{trouble:?}: {took_us} us");
    // Longer than any election takes that a lack of heartbeats would bring.
    env::sleep::<SimEnv>(Duration::from_secs(4)).await;
    assert_eq!(trio.leader(), Some(leader), "{trouble:?}, seed {seed}");
    assert_eq!(group.leader(), (Some(leader), term), "{trouble:?}, seed {seed}: no election");
    let (acknowledged, reads) = (longest_gap(&seen.acknowledged_us.borrow()), longest_gap(&seen.read_us.borrow()));
    assert!(acknowledged <= REFUSED_US_MAX, "{trouble:?}: nothing was acknowledged for {acknowledged} us");
    assert!(reads <= 200_000, "{trouble:?}: no read was answered for {reads} us");
    seen.over.set(true);
    for task in running {
        task.await.unwrap();
    }
    let asked = group.clone();
    let transfer = world.spawn_on(leader, async move { asked.transfer(Some(reader), Duration::from_secs(5)).await });
    guard("a transfer", transfer).await.unwrap().unwrap();
    assert_eq!(until("the next leader", || trio.leader()).await, reader);
}

/// A leader whose transfer fails leads on in its term, whatever is wrong with the other one: proposals wait for less than an
/// election, reads wait for nothing.
#[test]
fn failing_transfers() {
    for trouble in [Trouble::Down, Trouble::CutOff, Trouble::Paused, Trouble::Refuses] {
        for seed in seeds(0..1) {
            let runtime = SimRuntime::seeded(seed);
            runtime.block_on(failing(seed, trouble));
            assert_eq!(runtime.world().panics(), []);
        }
    }
}

/// A leader that all have answered a moment ago, and that hears nobody now, gives no reader an index, not even within the lease
/// of these answers: voters drop that early (`raft::elections`).
#[test]
fn no_lease_reads() {
    for seed in seeds(0..5) {
        let runtime = SimRuntime::seeded(seed);
        runtime.block_on(async {
            let (world, trio) = (World::current(), Trio::founded(seed).await);
            let leader = until("a leader", || trio.leader()).await;
            let ask = || {
                let group = trio.groups.borrow()[&leader].clone();
                world.spawn_on(leader, async move { group.linearize(Duration::from_millis(100)).await })
            };
            trio.propose(0).await;
            guard("a read", ask()).await.unwrap().unwrap();
            for other in Trio::nodes().into_iter().filter(|node| *node != leader) {
                trio.network.cut_both(leader, other);
            }
            let refused = guard("a refusal", ask()).await.unwrap();
            assert!(matches!(refused, Err(GroupError::NotLeader { .. })), "{refused:?}, seed {seed}");
        });
        assert_eq!(runtime.world().panics(), []);
    }
}
