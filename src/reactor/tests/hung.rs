//! Devices that do not answer while a replica is not served: nobody but who waits looks at them then.

use super::*;
use crate::limits::STORAGE_HUNG;

/// One node that leads a shard of its own with a record in it; the device hangs while the next one is written.
async fn hanging() -> World {
    let world = cluster(1, &[1]).remove(0);
    world.open(&[1]).await;
    within("an ack", world.reactor.produce(UID, produce("0"))).await.unwrap();
    settle().await;
    world.disk.hold();
    let hung = world.reactor.produce(UID, produce("1"));
    env::spawn::<TestEnv>(async move { drop(hung.await) });
    settle().await;
    world
}

/// Time passes as soon as somebody has waited for a while.
fn time_passes() {
    env::spawn::<TestEnv>(async {
        env::sleep::<TestEnv>(Duration::from_millis(50)).await;
        TestEnv::advance_us(STORAGE_HUNG.as_micros() as u64);
    });
}

/// A shard that closes meanwhile says what is not answered.
#[test]
fn closing() {
    block_on(async {
        let world = hanging().await;
        let shard = world.reactor.shard(UID).unwrap();
        time_passes();
        let error = within("the end of it", shard.close()).await.unwrap_err().to_string();
        assert!(
            error.contains("/data/shards/1/00")
                && error.contains("could not be written: the device has not answered for 60 s"),
            "{error}"
        );
        assert!(shard.hung().is_some());
        within("the end of the reactor", world.reactor.close()).await;
    });
}

/// A damaged replica that is closed has its fault already: it is given up all the same, and nothing is mended beside it.
#[test]
fn closing_a_damaged_one() {
    block_on(async {
        let world = hanging().await;
        let shard = world.reactor.shard(UID).unwrap();
        time_passes();
        within("the end of it", shard.abandon()).await;
        assert!(shard.hung().is_some());
    });
}

/// A replica that is removed meanwhile is removed.
#[test]
fn removing() {
    block_on(async {
        let world = hanging().await;
        time_passes();
        assert_eq!(within("a removal", world.reactor.remove(vec![UID])).await, []);
        let paths = world.disk.paths();
        assert_eq!(paths, [std::path::PathBuf::from("/data/shards/1.left")]);
    });
}

/// A replica that is opened on such a device does not open.
#[test]
fn opening() {
    block_on(async {
        let world = cluster(1, &[1]).remove(0);
        world.disk.hold();
        time_passes();
        let error = within("the end of it", world.try_open(&[1])).await.unwrap_err().to_string();
        assert!(error.contains("the device"), "{error}");
        assert!(world.node.faults()[&UID].contains("the device"));
    });
}
