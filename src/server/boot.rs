//! What reactor 0 does before the front doors open: the catalog, then every replica that this node holds, each on its
//! reactor. A node that cannot tell what it holds does not start.

use std::{collections::BTreeSet, path::Path, rc::Rc, time::Duration};

use crate::{
    catalog::CreateTopic,
    env::{self, Disk, Env},
    frontend::route::DEFAULT_TOPIC,
    ids::{NodeId, ShardUid},
    proto::ringlog::state::v1::{ClusterNode, UpdateNode, catalog_command::Command},
    raft::left::left_uid,
    reactor::{
        Reactor, ReactorError,
        advice::{begin_anew, others_of_catalog},
        control::{
            Control, OnDisk,
            join::Trust,
            made::{self, REPLICAS_FILE},
            remembered::MEMBERS_FILE,
            shard_dir,
        },
        node::{Node, Phase},
    },
};

/// How often a node that waits for the cluster says so.
const WAIT_REPORT: Duration = Duration::from_secs(5);

/// How often something that needs the cluster is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The node that begins a cluster, and its catalog, has this id; all others get theirs from the catalog.
pub const FOUNDER: NodeId = NodeId(1);

/// Recovers the node. Shards that do not open are noted and do not stop it; a missing, foreign or
/// damaged catalog does.
///
/// # Errors
/// In one sentence: what is wrong, and what to do.
pub async fn boot<E: Env>(reactor: Rc<Reactor<E>>, trust: Trust) -> Result<Control<E>, String> {
    let found = shards_on_disk::<E>(&reactor).await?;
    let me = reactor.node().identity().expect("it was established before").node;
    let founder = me == FOUNDER;
    check_catalog(&reactor, founder, &found).await?;
    let (control, recovered) = Control::open(Rc::clone(&reactor), founder, trust)
        .await
        .map_err(|error| format!("the catalog of topics could not be opened, and the node does not start: {error}"))?;
    tracing::debug!(?recovered, "catalog recovered");
    learn_cluster(&reactor, &control, founder).await?;
    let shards = found.into_iter().filter(|uid| *uid != ShardUid::CATALOG).collect();
    control.take_over(look_into(&reactor, shards).await).await?;
    // Where others vote, this node may not know yet what they have committed.
    let is_alone = control.group().members().is_alone(me);
    if is_alone && let Some(dir) = control.stranger() {
        // Never handed out by this catalog: somebody else's records are not ours to delete.
        return Err(format!(
            "{} belongs to no topic, and this node's catalog never made it: move it away, or restore the catalog that \
             knows it",
            dir.display()
        ));
    }
    control.reconcile().await;
    check_reactors(&reactor)?;
    if founder && is_alone && control.shard_uid_end() == ShardUid(ShardUid::CATALOG.0 + 1) {
        make_default_topic(&reactor, &control).await?;
    }
    reactor.set_control(control.serve());
    env::spawn_call::<E>("a node's word of where it is", keep_entry(Rc::clone(&reactor), control.clone()));
    Ok(control)
}

/// Where replicas are, or were, a catalog was: a new one would hide that it is gone. So it is where the founder has written down who
/// the nodes are, which it knows from its catalog; with a new one it would begin the cluster once more, beside the others. (Another
/// node is told by its first answer, and gets its catalog from the others.)
async fn check_catalog<E: Env>(reactor: &Reactor<E>, founder: bool, found: &BTreeSet<ShardUid>) -> Result<(), String> {
    let data = &reactor.node().config.data;
    let dir = shard_dir(data, ShardUid::CATALOG);
    if found.contains(&ShardUid::CATALOG) && !is_emptied(reactor, ShardUid::CATALOG).await? {
        return Ok(());
    }
    let is_absent = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let members = data.join(MEMBERS_FILE);
    let me = reactor.node().identity().expect("it was established before").node;
    let others = others_of_catalog(reactor.disk(), reactor.node(), me).await;
    let only = "restore it from a backup, or begin with an empty data directory as a new node";
    let advice = begin_anew(ShardUid::CATALOG, me, others, only);
    if founder && !reactor.disk().read_file(&members).await.as_ref().is_err_and(is_absent) {
        return Err(format!(
            "this node has begun a cluster ({} is there), but the catalog in {} is missing or empty: {advice}",
            members.display(),
            dir.display()
        ));
    }
    let had_replicas = match reactor.disk().read_file(&data.join(REPLICAS_FILE)).await {
        Ok(content) => !made::decode(&content).is_ok_and(|made| made.is_empty()),
        // One that cannot be read says no more than a damaged one.
        Err(error) => !is_absent(&error),
    };
    if had_replicas || found.iter().any(|uid| *uid != ShardUid::CATALOG) {
        return Err(format!("there are shards, but the catalog in {} is missing or empty: {advice}", dir.display()));
    }
    Ok(())
}

/// Makes sure that catalog and identity are of one cluster; a new catalog gets its cluster's id, or waits for it.
async fn learn_cluster<E: Env>(reactor: &Rc<Reactor<E>>, control: &Control<E>, founder: bool) -> Result<(), String> {
    let identity = reactor.node().identity().expect("it was established before");
    let mut waited = Duration::ZERO;
    // What is committed in a catalog of several nodes is known when one of them leads it again.
    let is_alone = control.group().members().is_alone(identity.node);
    while control.cluster_id().is_none() {
        if founder && is_alone {
            control.init(identity.cluster_id.clone()).await.map_err(|error| error.to_string())?;
            continue;
        }
        if let Some(cause) = control.fault() {
            return Err(format!("the catalog could not be followed: {cause}"));
        }
        if let Some(by) = reactor.node().book.expelled() {
            return Err(removed(reactor.node(), by));
        }
        if reactor.node().phase() >= Phase::Leaving {
            return Err("the node stops before it has heard of its cluster's catalog".to_owned());
        }
        if waited.as_millis().is_multiple_of(WAIT_REPORT.as_millis()) && !waited.is_zero() {
            tracing::info!(waited_s = waited.as_secs(), "waiting for the cluster's catalog: are most of the nodes up?");
        }
        env::sleep::<E>(RETRY_INTERVAL).await;
        waited += RETRY_INTERVAL;
    }
    match control.cluster_id() {
        Some(cluster_id) if *cluster_id == *identity.cluster_id => Ok(()),
        Some(cluster_id) => Err(format!(
            "{} says cluster {}, but the catalog there is of cluster {cluster_id}: the directory was put together from \
             two nodes; use what one of them has left, and nothing of the other, or begin with an empty data directory as a \
             new node",
            reactor.node().config.data.join("identity").display(),
            identity.cluster_id
        )),
        None => Err("the catalog has no cluster id".to_owned()),
    }
}

/// What is said of a node that the others do not let in any more.
pub fn removed(node: &Node, by: NodeId) -> String {
    let me = node.identity().map_or(0, |identity| identity.node.0);
    format!(
        "node {me} was removed from the cluster, says node {by}, and cannot come back under this id: to use this machine \
         again, empty {} and --join as a new node",
        node.config.data.display()
    )
}

async fn make_default_topic<E: Env>(reactor: &Rc<Reactor<E>>, control: &Control<E>) -> Result<(), String> {
    let node = reactor.node();
    let create = CreateTopic {
        name: DEFAULT_TOPIC.to_owned(),
        shards: u32::try_from(node.reactors.len()).expect("at most REACTORS_MAX"),
        retention_bytes_max: node.config.retention_bytes,
        retention_age_ms_max: node.config.retention_age_ms,
        replication_factor: node.config.replication_factor,
        ..Default::default()
    };
    control.found_topic(create).await.map_err(|error| format!("the topic {DEFAULT_TOPIC:?} could not be made: {error}"))
}

/// A reactor that has ended while shards were being opened ends the start.
fn check_reactors<E: Env>(reactor: &Reactor<E>) -> Result<(), String> {
    for view in &reactor.node().reactors {
        if view.mailbox.is_closed() {
            let error = ReactorError::Stopped { maybe_written: false };
            return Err(format!("a reactor ended while shards were being opened: {error}"));
        }
    }
    Ok(())
}

/// Tells the catalog where this node is now, if that has changed, until it knows.
async fn keep_entry<E: Env>(reactor: Rc<Reactor<E>>, control: Control<E>) {
    loop {
        let own = reactor.node().own_entry();
        let known = control.member_entries().into_iter().find(|node| node.node_id == own.node_id);
        match known {
            Some(known) if is_same_place(&known, &own) => return,
            Some(_) | None => {}
        }
        match control.propose(Command::UpdateNode(UpdateNode { node: Some(own.clone()) })).await {
            Ok(_) => {
                tracing::info!(peer = %format!("{}:{}", own.peer_host, own.peer_port), grpc = %own.grpc_address,
                    "the cluster knows this node's addresses");
                return;
            }
            Err(error) => tracing::warn!(%error, "the cluster does not know this node's new addresses yet"),
        }
        env::sleep::<E>(RETRY_INTERVAL).await;
    }
}

fn is_same_place(a: &ClusterNode, b: &ClusterNode) -> bool {
    let place = |node: &ClusterNode| {
        let (host, grpc, http) = (node.peer_host.clone(), node.grpc_address.clone(), node.http_address.clone());
        (host, node.peer_port, node.reactors, grpc, http)
    };
    place(a) == place(b)
}

/// Uids of the directories in `<data>/shards`; what else lies there is left alone.
async fn shards_on_disk<E: Env>(reactor: &Reactor<E>) -> Result<BTreeSet<ShardUid>, String> {
    let dir = reactor.node().config.data.join("shards");
    let explain = |error: std::io::Error| format!("{} could not be read: {error}", dir.display());
    reactor.disk().create_dir_all(&dir).await.map_err(explain)?;
    let entries = reactor.disk().list(&dir).await.map_err(explain)?;
    let mut found = BTreeSet::new();
    for entry in entries {
        match entry.name.to_str().and_then(ShardUid::of_name) {
            Some(uid) if entry.is_dir => drop(found.insert(uid)),
            _ if left_uid(&entry.name).is_some() => {}
            _ if entry.is_dir && env::is_half_removed(&entry.name) => {
                if let Err(error) = reactor.disk().remove_dir_all(&dir.join(&entry.name)).await {
                    tracing::warn!(name = %entry.name.display(), %error, "what is left of a removed replica stays");
                }
            }
            _ => tracing::warn!(name = %entry.name.display(), "not a shard's directory; it is left alone"),
        }
    }
    Ok(found)
}

/// Which of these directories hold nothing any more, and of which the device does not say it.
async fn look_into<E: Env>(reactor: &Reactor<E>, shards: BTreeSet<ShardUid>) -> OnDisk {
    let mut on_disk = OnDisk::default();
    for uid in &shards {
        match is_emptied(reactor, *uid).await {
            Ok(true) => drop(on_disk.emptied.insert(*uid)),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(shard_uid = uid.0, error, "a shard's directory cannot be read: it stays closed");
                on_disk.unreadable.insert(*uid);
            }
        }
    }
    OnDisk { shards, ..on_disk }
}

/// Whether a shard's directory has lost both its votes and its records: opened as it is, it would begin anew at offset 0, and
/// nobody would know that there had been others.
async fn is_emptied<E: Env>(reactor: &Reactor<E>, uid: ShardUid) -> Result<bool, String> {
    let dir = shard_dir(&reactor.node().config.data, uid);
    let explain = |error: std::io::Error| format!("{} could not be read: {error}", dir.display());
    let entries = reactor.disk().list(&dir).await.map_err(explain)?;
    let is_kept = |name: &Path| name == "hard_state" || name.extension().is_some_and(|end| end == "store");
    Ok(!entries.iter().any(|entry| is_kept(&entry.name)))
}
