//! What nodes make of their disks when they start, and what the harness makes of nodes.

use super::*;
use crate::{
    catalog::planted::{self, Place},
    env::{Disk, reserve},
    frontend::remote::Remote,
    limits::STORAGE_HUNG,
    proto::ringlog::v1::CreateTopicRequest,
    reactor::control::{
        ControlError,
        made::{self, REPLICAS_FILE},
        shard_dir,
    },
    sim::{DiskFault, DiskTimes, Fault, NetTimes, Operation, SimRuntime, executor::TaskPanic},
};

/// Longer than a node takes to be told all there is to know.
const SOON: Duration = Duration::from_secs(5);

/// So many nodes that serve.
async fn cluster_of(nodes: usize, seed: u64) -> Cluster {
    let network = SimNetwork::timed(&World::current(), seed, NetTimes::default());
    let make_disk = move || SimDisk::new().timed(&World::current(), seed, DiskTimes::default());
    let cluster = Cluster::new(network, 1, 32 << 20, make_disk);
    cluster.found().await;
    for _ in 1..nodes {
        let node = cluster.join().await.unwrap();
        cluster.until_serving(node).await;
    }
    cluster
}

/// Makes a topic of one shard.
async fn make_topic(cluster: &Cluster, replication_factor: u32) -> ShardUid {
    let process = cluster.process(FOUNDER).unwrap();
    let (frontend, name) = (process.frontend(0), "t".to_owned());
    let request = CreateTopicRequest { name, shards: 1, replication_factor, ..CreateTopicRequest::default() };
    World::current().spawn_on(FOUNDER, async move { frontend.create_topic(request).await }).await.unwrap().unwrap();
    process.node.topics.snapshot()["t"].shards[0].uid
}

/// Whether the list of replicas on a node's disk has this one.
fn is_listed(disk: &SimDisk, uid: ShardUid) -> bool {
    let made = Path::new(DATA).join(REPLICAS_FILE);
    disk.paths().contains(&made) && made::decode(&disk.content(&made)).is_ok_and(|listed| listed.contains(&uid))
}

/// Looks until it comes about, every 100 us.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..300_000 {
        if is_so() {
            return;
        }
        env::sleep::<SimEnv>(Duration::from_micros(100)).await;
    }
    panic!("waited too long: {what}");
}

/// A replica that was lost before the catalog knows again that one is to be there, as after a crash just after the topic was made,
/// stays lost: it would vote without knowing how it voted.
#[test]
fn lost_before_the_catalog_knows() {
    let runtime = SimRuntime::seeded(2);
    runtime.block_on(async {
        let cluster = cluster_of(3, 2).await;
        let node = NodeId(3);
        // What is committed by now is known at the next start; what comes then is not.
        cluster.stop(node).await;
        cluster.start(node);
        cluster.until_serving(node).await;
        let uid = make_topic(&cluster, 3).await;
        until("a replica", || cluster.process(node).unwrap().shard(uid).is_some()).await;
        env::sleep::<SimEnv>(Duration::from_secs(1)).await;
        cluster.crash(node, 7);
        assert!(cluster.disk(node).unwrap().delete_dir(shard_dir(DATA.as_ref(), uid)));
        for other in [NodeId(1), NodeId(2)] {
            cluster.network().cut_both(node, other);
        }
        cluster.start(node);
        env::sleep::<SimEnv>(SOON).await;
        let process = cluster.process(node).unwrap();
        assert!(process.node.topics.snapshot().get("t").is_none(), "its catalog is not old");
        cluster.network().heal();
        until("the topic", || process.node.topics.snapshot().get("t").is_some()).await;
        env::sleep::<SimEnv>(SOON).await;
        assert!(process.shard(uid).is_none(), "it was made anew");
        assert!(process.node.faults()[&uid].contains("is lost"));
    });
    assert_eq!(runtime.world().panics(), []);
}

/// A replica that is moved away is not listed any more when its directory goes: a power failure at any moment leaves none that the
/// next start takes for lost.
#[test]
fn unlisted_before_it_goes() {
    let runtime = SimRuntime::seeded(3);
    runtime.block_on(async {
        let cluster = cluster_of(3, 3).await;
        let uid = make_topic(&cluster, 2).await;
        let view = cluster.process(FOUNDER).unwrap().node.topics.snapshot()["t"].view.clone();
        let node = view.replicas[0].nodes[1];
        let disk = cluster.disk(node).unwrap();
        let dir = shard_dir(DATA.as_ref(), uid);
        let is_here = || disk.paths().iter().any(|path| path.starts_with(&dir));
        let is_listed = || made::decode(&disk.content(Path::new(DATA).join(REPLICAS_FILE))).unwrap().contains(&uid);
        let is_made = || disk.paths().contains(&Path::new(DATA).join(REPLICAS_FILE)) && is_listed() && is_here();
        until("a replica", is_made).await;
        let frontend = cluster.process(FOUNDER).unwrap().frontend(0);
        let drain = AdminCall::DrainNode { node, undo: false, force: true };
        World::current().spawn_on(FOUNDER, async move { frontend.admin(drain).await }).await.unwrap().unwrap();
        until("its end", || {
            assert!(is_here() || !is_listed(), "it would be taken for lost");
            !is_here()
        })
        .await;
    });
    assert_eq!(runtime.world().panics(), []);
}

/// A node starts although all checkpoints of its catalog are damaged: it goes on from a newer state, its own log or the others.
#[test]
fn a_damaged_checkpoint_of_the_catalog() {
    for nodes in [1, 3] {
        let runtime = SimRuntime::seeded(9);
        runtime.block_on(async {
            let cluster = cluster_of(nodes, 9).await;
            let uid = make_topic(&cluster, nodes as u32).await;
            let node = NodeId(nodes as u64);
            until("a replica", || cluster.process(node).unwrap().shard(uid).is_some()).await;
            cluster.stop(node).await;
            let disk = cluster.disk(node).unwrap();
            let catalog = shard_dir(DATA.as_ref(), ShardUid::CATALOG);
            let checkpoints: Vec<_> = disk
                .paths()
                .into_iter()
                .filter(|path| path.starts_with(&catalog) && path.extension() == Some("checkpoint".as_ref()))
                .collect();
            assert!(!checkpoints.is_empty(), "{:?}", disk.paths());
            checkpoints.iter().for_each(|path| disk.flip_bit(path, 40, 3));
            cluster.start(node);
            cluster.until_serving(node).await;
            let process = cluster.process(node).unwrap();
            until("its replica", || process.shard(uid).is_some()).await;
            assert_eq!(process.node.topics.snapshot()["t"].shards[0].uid, uid);
            assert_eq!(process.node.faults(), BTreeMap::new());
        });
        assert_eq!(runtime.world().panics(), []);
    }
}

/// A damaged list of replicas, or one that the device cannot read any more, does not keep a node from starting: what is to be there
/// and is not is taken for lost, and nothing is made anew that may have voted. The list is whole again then.
#[test]
fn a_damaged_list() {
    let flipped = |disk: &SimDisk, made: &Path| disk.flip_bit(made, 0, 0);
    let unreadable = |disk: &SimDisk, made: &Path| disk.lose_block(made, 0);
    for damage in [flipped as fn(&SimDisk, &Path), unreadable] {
        let runtime = SimRuntime::seeded(5);
        runtime.block_on(async {
            let cluster = cluster_of(3, 5).await;
            let (node, made) = (NodeId(3), Path::new(DATA).join(REPLICAS_FILE));
            let uid = make_topic(&cluster, 3).await;
            until("a replica", || cluster.process(node).unwrap().shard(uid).is_some()).await;
            env::sleep::<SimEnv>(SOON).await;
            cluster.kill(node);
            let disk = cluster.disk(node).unwrap();
            let before = made::decode(&disk.content(&made)).unwrap();
            assert!(before.len() > 1 && before.contains(&uid));
            damage(&disk, &made);
            assert!(disk.delete_dir(shard_dir(DATA.as_ref(), uid)));
            cluster.start(node);
            cluster.until_serving(node).await;
            assert_eq!(cluster.failure(node), None);
            env::sleep::<SimEnv>(SOON).await;
            let process = cluster.process(node).unwrap();
            assert!(process.shard(uid).is_none(), "it was made anew");
            assert!(process.node.faults()[&uid].contains("is lost"));
            assert_eq!(made::decode(&disk.content(&made)), Ok(before.clone()));
            assert!(disk.read_file(&made).await.is_ok());
            let others = before.iter().filter(|other| **other != uid);
            assert!(others.copied().all(|other| process.shard(other).is_some()));
        });
        assert_eq!(runtime.world().panics(), []);
    }
}

/// A replica that finds no descriptor when it is to be made is made as soon as there are some, and listed then. Until then it is
/// not: if its node starts again meanwhile, it is not taken for lost.
#[test]
fn made_when_there_are_descriptors() {
    for restarts in [false, true] {
        let runtime = SimRuntime::seeded(8);
        runtime.block_on(async {
            let cluster = cluster_of(3, 8).await;
            let node = NodeId(3);
            let disk = || cluster.disk(node).unwrap();
            disk().lack_descriptors(format!("{DATA}/shards/"));
            let uid = make_topic(&cluster, 3).await;
            let is_listed = || is_listed(&disk(), uid);
            let is_open = || cluster.process(node).unwrap().shard(uid).is_some();
            let fault = || cluster.process(node).unwrap().node.faults().get(&uid).cloned();
            until("its failure", || fault().is_some()).await;
            env::sleep::<SimEnv>(2 * SOON).await;
            assert!(fault().unwrap().contains("when there are descriptors"), "{:?}", fault());
            assert!(!is_open());
            assert!(!is_listed());
            if restarts {
                cluster.kill(node);
            }
            disk().heal();
            if restarts {
                cluster.start(node);
                cluster.until_serving(node).await;
            }
            until("a replica", || is_open() && is_listed()).await;
            assert_eq!(fault(), None);
        });
        assert_eq!(runtime.world().panics(), []);
    }
}

/// A replica that a broken device does not let be made is not listed, however often its node starts: the directory that is there by
/// the second start is none of a replica that was lost. It is made when the device is whole.
#[test]
fn made_when_the_device_is_whole() {
    let runtime = SimRuntime::seeded(10);
    runtime.block_on(async {
        let cluster = cluster_of(3, 10).await;
        let (node, first) = (NodeId(3), ShardUid(2));
        let disk = || cluster.disk(node).unwrap();
        let hard_state = shard_dir(DATA.as_ref(), first).join("hard_state");
        disk().break_for(DiskFault::ErrorWrite, hard_state.display().to_string(), u64::MAX);
        assert_eq!(make_topic(&cluster, 3).await, first);
        let fault = || cluster.process(node).unwrap().node.faults().get(&first).cloned();
        let is_listed = || is_listed(&disk(), first);
        for _ in 0..2 {
            until("its failure", || fault().is_some()).await;
            env::sleep::<SimEnv>(SOON).await;
            assert!(fault().unwrap().contains("could not be opened"), "{:?}", fault());
            assert!(!is_listed(), "it would be taken for lost");
            cluster.kill(node);
            cluster.start(node);
            cluster.until_serving(node).await;
        }
        disk().heal();
        cluster.kill(node);
        cluster.start(node);
        cluster.until_serving(node).await;
        until("a replica", || cluster.process(node).unwrap().shard(first).is_some() && is_listed()).await;
        assert_eq!(fault(), None);
    });
    assert_eq!(runtime.world().panics(), []);
}

/// A list of replicas that could not be written is written as soon as it can be, although no replica comes or goes then.
#[test]
fn listed_when_the_list_can_be_written() {
    let runtime = SimRuntime::seeded(9);
    runtime.block_on(async {
        let cluster = cluster_of(3, 9).await;
        let (node, made) = (NodeId(3), Path::new(DATA).join(REPLICAS_FILE));
        let disk = || cluster.disk(node).unwrap();
        disk().lack_descriptors(made.display().to_string());
        let uid = make_topic(&cluster, 3).await;
        until("a replica", || cluster.process(node).unwrap().shard(uid).is_some()).await;
        env::sleep::<SimEnv>(2 * SOON).await;
        let is_listed = || is_listed(&disk(), uid);
        assert!(!is_listed());
        disk().heal();
        until("its place in the list", is_listed).await;
    });
    assert_eq!(runtime.world().panics(), []);
}

/// A replica's directory that the device cannot read when the node starts keeps that replica closed, and nothing else.
#[test]
fn an_unreadable_directory() {
    let runtime = SimRuntime::seeded(6);
    runtime.block_on(async {
        let cluster = cluster_of(3, 6).await;
        let node = NodeId(3);
        let uid = make_topic(&cluster, 3).await;
        until("a replica", || cluster.process(node).unwrap().shard(uid).is_some()).await;
        env::sleep::<SimEnv>(SOON).await;
        cluster.kill(node);
        let disk = cluster.disk(node).unwrap();
        let (path_contains, error) = (format!("shards/{uid}"), std::io::ErrorKind::Other);
        disk.plant(Fault { operation: Operation::List, path_contains, skip: 0, times: u64::MAX, error });
        cluster.start(node);
        cluster.until_serving(node).await;
        assert_eq!(cluster.failure(node), None);
        disk.heal();
        env::sleep::<SimEnv>(SOON).await;
        let process = cluster.process(node).unwrap();
        assert!(process.shard(uid).is_none() && process.node.faults()[&uid].contains("restart the node"));
        cluster.kill(node);
        cluster.start(node);
        cluster.until_serving(node).await;
        env::sleep::<SimEnv>(SOON).await;
        let process = cluster.process(node).unwrap();
        assert!(process.shard(uid).is_some() && process.node.faults().is_empty());
    });
    assert_eq!(runtime.world().panics(), []);
}

/// Whoever waits for a command to be carried out is told, and the cause, when the catalog stops meanwhile.
#[test]
fn a_wait_ends_with_the_catalog() {
    let runtime = SimRuntime::seeded(4);
    runtime.block_on(async {
        let cluster = cluster_of(1, 4).await;
        let process = cluster.process(FOUNDER).unwrap();
        let control = process.control().unwrap();
        let far = crate::ids::Index(control.group().applied_end().0 + 1_000);
        let waiting = World::current().spawn_on(FOUNDER, async move { control.reconciled(far).await });
        env::sleep::<SimEnv>(SOON).await;
        for operation in [Operation::AppendDurable, Operation::Write, Operation::Sync] {
            let (path_contains, error) = ("shards/0/".to_owned(), std::io::ErrorKind::Other);
            let fault = Fault { operation, path_contains, skip: 0, times: u64::MAX, error };
            cluster.disk(FOUNDER).unwrap().plant(fault);
        }
        let frontend = process.frontend(0);
        let request = CreateTopicRequest { name: "t".to_owned(), shards: 1, ..CreateTopicRequest::default() };
        let created = World::current().spawn_on(FOUNDER, async move { frontend.create_topic(request).await });
        assert!(created.await.unwrap().is_err());
        let waited = <<SimEnv as Env>::Runtime as openraft::AsyncRuntime>::timeout(SOON, waiting).await;
        let error = waited.expect("it waits for ever").unwrap().unwrap_err().to_string();
        assert!(!error.contains("shutting down"), "{error}");
    });
    assert_eq!(runtime.world().panics(), []);
}

/// Deletes the topic of `make_topic`.
async fn delete_topic(cluster: &Cluster) {
    let control = cluster.process(FOUNDER).unwrap().control().unwrap();
    let deleted = World::current().spawn_on(FOUNDER, async move { control.delete("t".to_owned()).await });
    deleted.await.unwrap().unwrap();
}

/// Whether files of a replica are at a node.
fn has_files(cluster: &Cluster, node: NodeId, uid: ShardUid) -> bool {
    let dir = shard_dir(Path::new("/data"), uid);
    cluster.disk(node).unwrap().paths().iter().any(|path| path.starts_with(&dir))
}

/// On a disk that is full to the brim, but for what is kept for that, a topic can be deleted, and frees its space.
#[test]
fn deleted_on_a_full_disk() {
    let runtime = SimRuntime::seeded(6);
    runtime.block_on(async {
        let cluster = cluster_of(1, 6).await;
        let uid = make_topic(&cluster, 1).await;
        let disk = cluster.disk(FOUNDER).unwrap();
        disk.keep_reserve(1 << 20);
        let keeper = disk.clone();
        World::current().spawn_on(FOUNDER, async move { reserve::keep(&keeper).await }).await.unwrap().unwrap();
        disk.set_capacity(Some(disk.used_bytes()));
        delete_topic(&cluster).await;
        assert!(!has_files(&cluster, FOUNDER, uid), "nothing is freed");
    });
    assert_eq!(runtime.world().panics(), []);
}

/// A replica whose removal fails for a while, wherever, goes as soon as it can, without a restart, and is not listed as made
/// meanwhile; the topic counts as deleted. One that is to be there again by then is made anew when the former is gone.
#[test]
fn removed_when_it_can_be() {
    let runtime = SimRuntime::seeded(7);
    runtime.block_on(async {
        for (operation, path_contains) in [(Operation::Remove, "shards/"), (Operation::Write, ".left")] {
            let cluster = cluster_of(1, 7).await;
            let uid = make_topic(&cluster, 1).await;
            let disk = cluster.disk(FOUNDER).unwrap();
            let (path_contains, error) = (path_contains.to_owned(), std::io::ErrorKind::Other);
            disk.plant(Fault { operation, path_contains, skip: 0, times: u64::MAX, error });
            delete_topic(&cluster).await;
            env::sleep::<SimEnv>(SOON).await;
            assert!(has_files(&cluster, FOUNDER, uid));
            let listed = made::decode(&disk.content(Path::new("/data").join(REPLICAS_FILE))).unwrap();
            assert!(!listed.contains(&uid), "{listed:?}");
            let began = disk.count(Operation::List);
            env::sleep::<SimEnv>(SOON).await;
            assert!(disk.count(Operation::List) - began < 20, "it is tried all the time");
            disk.heal();
            env::sleep::<SimEnv>(Duration::from_secs(20)).await;
            assert!(!has_files(&cluster, FOUNDER, uid), "{operation:?}");
        }
    });
    assert_eq!(runtime.world().panics(), []);
}

/// A device that does not answer what makes, renames and removes files keeps nothing waiting for ever that is to be carried out: a
/// topic that cannot be made is taken back, and can be made when the device is well.
#[test]
fn carried_out_beside_a_hung_device() {
    let runtime = SimRuntime::seeded(9);
    runtime.block_on(async {
        let cluster = cluster_of(1, 9).await;
        cluster.disk(FOUNDER).unwrap().delay_names(0, 100_000_000_000, 100_000_000);
        let frontend = cluster.process(FOUNDER).unwrap().frontend(0);
        let request = CreateTopicRequest { name: "t".to_owned(), shards: 1, ..CreateTopicRequest::default() };
        let created = World::current().spawn_on(FOUNDER, async move { frontend.create_topic(request).await });
        let created = <<SimEnv as Env>::Runtime as openraft::AsyncRuntime>::timeout(10 * STORAGE_HUNG, created).await;
        let error = created.expect("it waits for ever").unwrap().unwrap_err().to_string();
        assert!(error.contains("the device does not answer"), "{error}");
        env::sleep::<SimEnv>(2 * STORAGE_HUNG).await;
        make_topic(&cluster, 1).await;
    });
    assert_eq!(runtime.world().panics(), []);
}

/// A device that hangs under the only voter of the catalog, while its leader waits for what it has planned itself, a replica that
/// moves away from a node that is drained: what hangs is named with the file, also at other nodes, and stops the catalog in the end.
#[test]
fn the_catalogs_device_hangs() {
    let runtime = SimRuntime::seeded(10);
    runtime.block_on(async {
        let cluster = cluster_of(2, 10).await;
        let node = NodeId(2);
        make_topic(&cluster, 1).await;
        let process = cluster.process(FOUNDER).unwrap();
        assert_eq!(process.node.topics.snapshot()["t"].view.replicas[0].nodes, [node]);
        let frontend = process.frontend(0);
        let drain = AdminCall::DrainNode { node, undo: false, force: true };
        World::current().spawn_on(FOUNDER, async move { frontend.admin(drain).await }).await.unwrap().unwrap();
        cluster.disk(FOUNDER).unwrap().hold_at("shards/0/");
        until("its name", || process.node.catalog_stalled().is_some()).await;
        let other = Remote::new(cluster.process(node).unwrap().node.clone());
        let described = World::current().spawn_on(node, async move { other.describe_cluster().await });
        let told = &described.await.unwrap().unwrap().nodes[0].catalog_fault;
        assert!(told.contains("/data/shards/0/") && told.contains("is being written"), "{told:?}");
        assert_eq!(process.node.faults(), BTreeMap::new());
        env::sleep::<SimEnv>(STORAGE_HUNG).await;
        let fault = process.node.faults().remove(&ShardUid::CATALOG).unwrap_or_default();
        assert!(fault.contains("could not be written: the device has not answered for 60 s"), "{fault:?}");
    });
    assert_eq!(runtime.world().panics(), []);
}

/// Whoever waits for a command to be carried out does not wait for ever.
#[test]
fn a_wait_ends() {
    let runtime = SimRuntime::seeded(8);
    runtime.block_on(async {
        let cluster = cluster_of(1, 8).await;
        let control = cluster.process(FOUNDER).unwrap().control().unwrap();
        let far = crate::ids::Index(control.group().applied_end().0 + 1_000);
        let waiting = World::current().spawn_on(FOUNDER, async move { control.reconciled(far).await });
        let error = waiting.await.unwrap().unwrap_err();
        assert!(matches!(error, ControlError::Late), "{error}");
    });
}

/// An assertion that fails in what the replicas of the catalog compute alike, when they apply an entry or when one of them leads
/// and plans moves, stops one of them after the other, for as long as there are enough to go on, and says where. No node ends,
/// and all shards are led.
#[test]
fn an_assertion_in_the_catalog() {
    for (place, seed) in [(Place::Apply, 10), (Place::Plan, 11)] {
        let runtime = SimRuntime::seeded(seed);
        planted::plant(Some(place));
        runtime.block_on(async {
            let cluster = cluster_of(3, seed).await;
            let uid = make_topic(&cluster, 3).await;
            let frontend = cluster.process(FOUNDER).unwrap().frontend(0);
            let (name, topic_shards) = (planted::TOPIC.to_owned(), 1);
            let request = CreateTopicRequest { name, shards: topic_shards, ..CreateTopicRequest::default() };
            // It comes to nothing, or to an answer that nobody needs.
            let asked = World::current().spawn_on(FOUNDER, async move { frontend.create_topic(request).await });
            let nodes = [1, 2, 3].map(NodeId);
            let fault = |node| {
                cluster.process(node).unwrap().node.faults().get(&ShardUid::CATALOG).cloned().unwrap_or_default()
            };
            let has_stopped = |node: &NodeId| {
                let fault = fault(*node);
                fault.contains(&format!("a bug planted in {place:?}")) && fault.contains("src/catalog/planted.rs:")
            };
            until("most have stopped", || nodes.iter().filter(|node| has_stopped(node)).count() >= 2).await;
            drop(asked);
            env::sleep::<SimEnv>(SOON).await;
            assert_eq!(cluster.serving(), nodes);
            let leads = |node: &NodeId| cluster.process(*node).unwrap().shard(uid).unwrap().leads();
            until("a leader", || nodes.iter().any(leads)).await;
        });
        planted::plant(None);
        let panics = runtime.world().panics();
        let is_contained = |panic: &TaskPanic| panic.contained && panic.text.contains("a bug planted in");
        assert!(panics.iter().all(is_contained), "{panics:?}");
    }
}

/// A node that does not start is gone: nobody hears of it until it is started anew.
#[test]
fn a_failed_start() {
    let runtime = SimRuntime::seeded(1);
    runtime.block_on(async {
        let cluster = cluster_of(3, 1).await;
        let node = NodeId(3);
        cluster.kill(node);
        // It is read after the catalog was opened.
        let (path_contains, error) = (format!("{DATA}/{REPLICAS_FILE}"), std::io::ErrorKind::OutOfMemory);
        let fault = Fault { operation: Operation::Read, path_contains, skip: 0, times: u64::MAX, error };
        cluster.disk(node).unwrap().plant(fault);
        cluster.start(node);
        cluster.until_serving(node).await;
        let failure = cluster.failure(node).unwrap();
        assert!(failure.contains("could not be read") && cluster.process(node).is_none(), "{failure}");
        cluster.start(node);
        assert!(cluster.process(node).is_none(), "it is not started again by whoever only brings back what is down");
        env::sleep::<SimEnv>(SOON).await;
        for other in [NodeId(1), NodeId(2)] {
            assert!(!cluster.process(other).unwrap().node.liveness.is_alive(node));
        }
        cluster.kill(node);
        cluster.disk(node).unwrap().heal();
        cluster.start(node);
        cluster.until_serving(node).await;
        assert_eq!((cluster.failure(node), cluster.serving().len()), (None, 3));
    });
    assert_eq!(runtime.world().panics(), []);
}
