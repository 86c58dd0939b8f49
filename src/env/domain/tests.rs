//! What a panic ends, on a reactor's runtime and in a simulated world.

use std::{cell::Cell, future::pending, rc::Rc};

use openraft::rt::AsyncRuntime;

use super::*;
use crate::{
    env::{
        self, Env,
        real::RealEnv,
        runtime::{LocalRuntime, block_on},
    },
    sim::{SimEnv, SimRuntime},
};

/// Told when it is dropped.
struct Dropped(Rc<Cell<u32>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// One task panics: the domain's others end with what they hold, the tasks that they have spawned, too; tasks of another
/// domain go on; observers hear words and place; nothing more is called in it.
async fn one_of_two_domains<E: Env>() {
    let (sick, well) = (Domain::new("the sick".to_owned()), Domain::new("the well".to_owned()));
    let (dropped, ticks) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let heard = Rc::new(RefCell::new(String::new()));
    let into = Rc::clone(&heard);
    sick.on_panic(|_| panic!("an observer's panic is its own"));
    sick.on_panic(move |text| *into.borrow_mut() = text.to_owned());
    let held = || Dropped(Rc::clone(&dropped));
    let (waits, child) = (held(), held());
    sick.catch(|| {
        env::spawn::<E>(async move {
            // A task of a task.
            env::spawn::<E>(async move {
                let _child = child;
                pending::<()>().await;
            });
            let _waits = waits;
            pending::<()>().await;
        });
    })
    .unwrap();
    let counted = Rc::clone(&ticks);
    well.catch(|| {
        env::spawn::<E>(async move {
            loop {
                counted.set(counted.get() + 1);
                env::sleep::<E>(std::time::Duration::from_millis(1)).await;
            }
        });
    })
    .unwrap();
    env::sleep::<E>(std::time::Duration::from_millis(5)).await;
    assert_eq!((sick.task_count(), well.task_count()), (2, 1));
    let panicking = sick.catch(|| E::Runtime::spawn(async { assert_eq!(1 + 1, 3, "planted") })).unwrap();
    assert!(E::Runtime::is_panic(&panicking.await.unwrap_err()));
    env::sleep::<E>(std::time::Duration::from_millis(5)).await;
    assert_eq!(dropped.get(), 2, "what its tasks held is gone");
    assert_eq!(sick.task_count(), 0);
    let text = sick.panic().unwrap();
    assert!(text.contains("planted") && text.contains("src/env/domain/tests.rs:"), "{text}");
    assert_eq!(*heard.borrow(), text);
    assert_eq!(sick.catch(|| unreachable!("it has stopped")), Err(text.clone()));
    assert_eq!(sick.contain(async { unreachable!("it has stopped") }).await, Err::<(), _>(text));
    let before = ticks.get();
    env::sleep::<E>(std::time::Duration::from_millis(20)).await;
    assert!(ticks.get() > before && !well.has_stopped());
}

/// On a reactor's runtime.
#[test]
fn one_of_two_domains_real() {
    block_on(one_of_two_domains::<RealEnv>());
}

/// In a simulated world, which is told of the panics that were contained, and of no task that ended with the domain.
#[test]
fn one_of_two_domains_simulated() {
    let world = SimRuntime::seeded(7);
    world.block_on(one_of_two_domains::<SimEnv>());
    let panics = world.world().panics();
    assert_eq!(panics.len(), 2, "{panics:?}");
    assert!(panics.iter().all(|panic| panic.contained), "{panics:?}");
    assert!(panics[0].text.contains("planted"), "{panics:?}");
}

/// Panics, where a type is wanted that it would have returned.
fn planted(number: u32) {
    panic!("planted {number}");
}

/// A panic of a call that is made in a domain stops the domain, and is an error to the caller, who goes on.
#[test]
fn calls_into_a_domain() {
    let domain = Domain::new("a domain".to_owned());
    assert_eq!(domain.catch(|| 7), Ok(7));
    let text = domain.catch::<()>(|| panic!("planted {}", 1)).unwrap_err();
    assert!(text.starts_with("planted 1 at src/env/domain/tests.rs"), "{text}");
    assert_eq!(domain.panic(), Some(text));

    let domain = Domain::new("another".to_owned());
    let error = block_on(domain.contain(async { planted(2) })).unwrap_err();
    assert!(error.starts_with("planted 2 at "), "{error}");
    assert!(domain.has_stopped());
}

/// A panic of a call ends its task only; who called it, and tasks of the same kind, go on.
#[test]
fn calls_alone() {
    block_on(async {
        let other = call("a call", || LocalRuntime::spawn(async { 7 }));
        let error = call("a call", || LocalRuntime::spawn(async { panic!("planted") })).await.unwrap_err();
        assert!(error.is_panic());
        assert_eq!(other.await.unwrap(), 7);
        let error = contain_call("a call", async { planted(3) }).await.unwrap_err();
        assert!(error.starts_with("planted 3 at "), "{error}");
    });
}

/// What the core does for a domain is the core's, and so is what it spawns: it outlives the domain.
#[test]
fn the_core_is_nobodys() {
    block_on(async {
        let domain = Domain::new("a domain".to_owned());
        let shared = domain.catch(|| core(|| LocalRuntime::spawn(async { 7 }))).unwrap();
        domain.catch::<()>(|| panic!("planted")).unwrap_err();
        assert_eq!(shared.await.unwrap(), 7);
        let own = domain.catch(|| LocalRuntime::spawn(async { 7 }));
        assert!(own.is_err(), "nothing is begun in a domain that has stopped");
    });
}
