//! Time that jumps, schedules that follow the seed, and nodes that die, stop and drift.

use std::cell::{Cell, RefCell};

use openraft::rt::AsyncRuntime;

use super::*;
use crate::{
    env::{self, channel::Notify, yield_now},
    sim::executor::TaskPanic,
};

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

async fn sleep(duration: Duration) {
    env::sleep::<SimEnv>(duration).await;
}

/// Counts one each 10 ms of the clock of the node that it runs on, for ever.
async fn count(count: Rc<Cell<u64>>) {
    loop {
        sleep(ms(10)).await;
        count.set(count.get() + 1);
    }
}

/// openraft's own conformance suite for runtimes.
#[test]
fn conforms() {
    rt::testing::Suite::<SimRuntime>::test_all();
}

/// An hour of sleeps, of a thousand tasks at once, takes an hour of the world's time and hardly any of ours.
#[test]
#[allow(clippy::disallowed_methods, reason = "compares virtual with real time")]
fn time_jumps() {
    let start = std::time::Instant::now();
    let runtime = SimRuntime::seeded(1);
    runtime.block_on(async {
        let tasks: Vec<_> = (0..1_000)
            .map(|_| {
                SimRuntime::spawn(async {
                    for _ in 0..60 {
                        sleep(Duration::from_secs(60)).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    let virtual_s = runtime.world().now_us() / 1_000_000;
    assert!((3_600..3_602).contains(&virtual_s), "{virtual_s} s have passed");
    let real = start.elapsed();
    assert!(real < Duration::from_secs(36), "an hour took {real:?}");
}

/// Timers fire in the order of their deadlines, and those of one deadline all before the clock goes on.
#[test]
fn timers_in_order() {
    let runtime = SimRuntime::seeded(2);
    let fired = Rc::new(RefCell::new(Vec::new()));
    runtime.block_on(async {
        for delay in [30, 10, 20, 10, 0] {
            let fired = fired.clone();
            env::spawn::<SimEnv>(async move {
                sleep(ms(delay)).await;
                fired.borrow_mut().push(delay);
            });
        }
        sleep(ms(40)).await;
    });
    assert_eq!(*fired.borrow(), [0, 10, 10, 20, 30]);
}

/// Deadlines far away come on the grid, never early, as in a reactor; plain sleeps are exact.
#[test]
fn grid() {
    SimRuntime::seeded(11).block_on(async {
        for offset in 0..20 {
            let deadline = <Instant as rt::Instant>::now() + ms(1_000 + 7 * offset);
            SimRuntime::sleep_until(deadline).await;
            let late = <Instant as rt::Instant>::now() - deadline;
            assert!(late < ms(101), "{late:?}");
            assert!(SimEnv::monotonic_us() % 100_000 < 10, "on a line");
        }
        let start = <Instant as rt::Instant>::now();
        sleep(ms(1_234)).await;
        assert!(<Instant as rt::Instant>::now() - start < ms(1_235));
    });
}

/// What is ready at the deadline is in time; what is late is not; a deadline beyond all times never comes.
#[test]
fn timeouts() {
    SimRuntime::seeded(3).block_on(async {
        let start = <Instant as rt::Instant>::now();
        assert_eq!(SimRuntime::timeout(ms(5), async { 7 }).await, Ok(7));
        assert_eq!(SimRuntime::timeout(ms(5), sleep(ms(6))).await, Err(Elapsed));
        assert_eq!(SimRuntime::timeout(Duration::MAX, sleep(ms(5))).await, Ok(()));
        let passed = <Instant as rt::Instant>::now() - start;
        assert!((ms(10)..ms(11)).contains(&passed), "{passed:?}");
    });
}

/// A world in which ten tasks on two nodes wake each other in an order that only the seed decides.
fn history(seed: u64) -> (u64, Vec<u64>, String) {
    let runtime = SimRuntime::seeded(seed);
    runtime.world().record(50);
    let order = Rc::new(RefCell::new(Vec::new()));
    runtime.block_on(async {
        let (world, notify) = (World::current(), Notify::new());
        let tasks: Vec<_> = (0..10)
            .map(|number| {
                let (order, notify) = (order.clone(), notify.clone());
                world.spawn_on(if number % 2 == 0 { ONE } else { TWO }, async move {
                    for _ in 0..10 {
                        notify.notified().await;
                        order.borrow_mut().push(number);
                        World::current().note(&format!("{number}"));
                        sleep(Duration::from_micros(SimEnv::random_u64() % 1_000)).await;
                    }
                })
            })
            .collect();
        while world.task_count() > 0 {
            sleep(ms(1)).await;
            notify.notify_all();
        }
        drop(tasks);
    });
    let world = runtime.world();
    (world.trace_hash(), order.take(), world.recorded())
}

/// The same seed twice gives the same history; other seeds give others.
#[test]
fn seeds() {
    let first = history(7);
    assert_eq!(first, history(7));
    assert_eq!(first.2.lines().count(), 50);
    let others: Vec<_> = (8..16).map(history).collect();
    assert!(others.iter().all(|other| other.0 != first.0 && other.1 != first.1));
}

/// Waiters of tokio's `watch` are woken in an order that is random in each run; the history does not show it.
#[test]
fn order_of_wakes_does_not_matter() {
    let history = || {
        let runtime = SimRuntime::seeded(5);
        runtime.block_on(async {
            let (sender, receiver) = tokio::sync::watch::channel(0);
            for _ in 0..40 {
                let mut receiver = receiver.clone();
                env::spawn::<SimEnv>(async move { while receiver.changed().await.is_ok() {} });
            }
            for round in 1..20 {
                sleep(ms(1)).await;
                sender.send_replace(round);
            }
        });
        runtime.world().trace_hash()
    };
    assert_eq!(history(), history());
}

/// Sends when it is dropped, and tries to start a task and to say something.
struct LastWords(Rc<Cell<u64>>);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
        World::current().note("I was here");
        let words = self.0.clone();
        env::spawn::<SimEnv>(async move { words.set(words.get() + 100) });
    }
}

/// A killed node's tasks are gone at once, with those that they had spawned; destructors run and start nothing; other
/// nodes go on; the node can run tasks again.
#[test]
fn kill() {
    let runtime = SimRuntime::seeded(4);
    runtime.world().record(1_000);
    runtime.block_on(async {
        let world = World::current();
        let [on_one, on_two, dropped] = [(); 3].map(|()| Rc::new(Cell::new(0)));
        let words = LastWords(dropped.clone());
        let below = on_one.clone();
        let killed = world.spawn_on(ONE, async move {
            assert_eq!(World::current().node(), Some(ONE));
            env::spawn::<SimEnv>(count(below));
            sleep(Duration::from_secs(60)).await;
            drop(words);
        });
        drop(world.spawn_on(TWO, count(on_two.clone())));
        sleep(ms(105)).await;
        assert_eq!((on_one.get(), on_two.get(), world.task_count()), (10, 10, 3));
        world.kill(ONE);
        assert_eq!((dropped.get(), world.task_count()), (1, 1), "at once, and nothing new");
        assert_eq!(killed.await, Err(JoinError::Killed));
        sleep(ms(100)).await;
        assert_eq!((on_one.get(), on_two.get(), dropped.get()), (10, 20, 1));
        drop(world.spawn_on(ONE, count(on_one.clone())));
        sleep(ms(105)).await;
        assert_eq!(on_one.get(), 20);
    });
    assert!(!runtime.world().recorded().contains("I was here"));
    assert_eq!(runtime.world().panics(), []);
}

/// A task that kills its own node ends at its next await, and the others of the node at once.
#[test]
fn kill_from_within() {
    SimRuntime::seeded(5).block_on(async {
        let world = World::current();
        let counted = Rc::new(Cell::new(0));
        drop(world.spawn_on(ONE, count(counted.clone())));
        let after = counted.clone();
        let killer = world.spawn_on(ONE, async move {
            sleep(ms(25)).await;
            World::current().kill(ONE);
            yield_now().await;
            after.set(1_000);
        });
        assert_eq!(killer.await, Err(JoinError::Killed));
        sleep(ms(100)).await;
        assert_eq!((counted.get(), world.task_count()), (2, 0));
    });
}

/// A paused node's tasks stand still and its clocks go on; what came due meanwhile runs when it is resumed.
#[test]
fn pause() {
    SimRuntime::seeded(6).block_on(async {
        let world = World::current();
        let counted = Rc::new(Cell::new(0));
        drop(world.spawn_on(ONE, count(counted.clone())));
        let slept = world.spawn_on(ONE, async {
            let start = SimEnv::monotonic_us();
            sleep(ms(50)).await;
            SimEnv::monotonic_us() - start
        });
        sleep(ms(25)).await;
        world.pause(ONE);
        sleep(ms(1_000)).await;
        assert_eq!(counted.get(), 2);
        world.resume(ONE);
        let slept_us = slept.await.unwrap();
        assert!((1_000_000..1_100_000).contains(&slept_us), "{slept_us} us");
        sleep(ms(25)).await;
        assert_eq!(counted.get(), 5, "one that was due, and two more");
        world.pause(ONE);
        sleep(ms(100)).await;
        world.kill(ONE);
        assert_eq!(world.task_count(), 0);
        assert_eq!(world.spawn_on(ONE, async { 7 }).await, Ok(7), "a new process is not paused");
    });
}

/// A node's clock that runs faster makes its sleeps shorter, also those that have begun; its wall clock drifts and jumps,
/// and other nodes' do not.
#[test]
fn drift() {
    SimRuntime::seeded(7).block_on(async {
        let world = World::current();
        let clocks = || (SimEnv::monotonic_us(), SimEnv::wall_us());
        let [fast, slow] = [Rc::new(Cell::new(0)), Rc::new(Cell::new(0))];
        drop((world.spawn_on(ONE, count(fast.clone())), world.spawn_on(TWO, count(slow.clone()))));
        let long = world.spawn_on(ONE, async {
            sleep(Duration::from_secs(15)).await;
            World::current().now_us()
        });
        yield_now().await;
        let before = world.spawn_on(ONE, async move { clocks() }).await.unwrap();
        let true_before = clocks();
        world.set_drift(ONE, 500_000);
        world.set_drift(TWO, -500_000);
        sleep(Duration::from_secs(10)).await;
        let after = world.spawn_on(ONE, async move { clocks() }).await.unwrap();
        let true_after = clocks();
        assert_eq!((true_after.0 - true_before.0) / 1_000_000, 10);
        assert_eq!((after.0 - before.0) / 1_000_000, 15);
        assert_eq!((after.1 - before.1) / 1_000_000, 15);
        assert!((1_490..=1_500).contains(&fast.get()) && (490..=500).contains(&slow.get()), "{fast:?} {slow:?}");
        assert_eq!(
            long.await.unwrap() / 10_000,
            1_000,
            "what slept already wakes after 15 s of its own, 10 s of the world"
        );
        world.jump_wall(ONE, -3_600_000_000);
        let jumped = world.spawn_on(ONE, async move { clocks() }).await.unwrap();
        assert!(jumped.0 > after.0 && jumped.1 < after.1 - 3_599_000_000);
        assert!(clocks().1 >= true_after.1);
    });
}

/// A panic in a task is an error for who joins it, is kept, and the world goes on.
#[test]
fn panics_are_kept() {
    let runtime = SimRuntime::seeded(8);
    runtime.block_on(async {
        let world = World::current();
        sleep(ms(3)).await;
        let error = world.spawn_on(ONE, async { panic!("on purpose, {}", 7) }).await.unwrap_err();
        assert!(SimRuntime::is_panic(&error));
        assert_eq!(SimRuntime::spawn(async { 7 }).await, Ok(7));
    });
    let panics = runtime.world().panics();
    let [TaskPanic { node: Some(ONE), time_us: 3_000..4_000, text, .. }] = &panics[..] else { panic!("{panics:?}") };
    assert_eq!(text, "on purpose, 7");
}

/// A world in which nothing can happen any more says so, instead of hanging.
#[test]
#[should_panic(expected = "the simulation with seed 9 is stuck after 1002 us")]
fn stuck() {
    SimRuntime::seeded(9).block_on(async {
        sleep(ms(1)).await;
        World::current().pause(ONE);
        std::future::pending::<()>().await;
    });
}

/// Who yields until some time has come sees it come.
#[test]
fn yielding_takes_time() {
    SimRuntime::seeded(10).block_on(async {
        let end = SimEnv::monotonic_us() + 1_000;
        while SimEnv::monotonic_us() < end {
            yield_now().await;
        }
    });
}

/// Without a world there is no time.
#[test]
#[should_panic(expected = "only what runs in SimRuntime::block_on is in a world")]
fn outside() {
    SimEnv::monotonic_us();
}
