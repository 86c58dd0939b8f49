//! What reactor 0 does before the front doors open: identity, catalog, then every shard of every
//! topic, each on its reactor. A node that cannot tell what it holds does not start.

use std::{collections::BTreeSet, path::Path, rc::Rc, sync::Arc};

use crate::{
    catalog::CreateTopic,
    env::{Disk, Env},
    frontend::route::DEFAULT_TOPIC,
    ids::ShardUid,
    reactor::{
        Reactor, ReactorError,
        control::{Control, shard_dir},
        topics::PlacedTopic,
    },
    server::identity,
};

/// Recovers the node. Shards that do not open are noted and do not stop it; a missing, foreign or
/// damaged catalog does.
///
/// # Errors
/// In one sentence: what is wrong, and what to do.
pub async fn boot<E: Env>(reactor: Rc<Reactor<E>>) -> Result<Control<E>, String> {
    let node = Arc::clone(reactor.node());
    let identity = identity::load_or_make::<E>(reactor.disk(), &node.config.data).await?;
    node.set_identity(identity.clone());
    let found = shards_on_disk::<E>(&reactor).await?;
    let (control, recovered) = Control::open(Rc::clone(&reactor))
        .await
        .map_err(|error| format!("the catalog of topics could not be opened, and the node does not start: {error}"))?;
    tracing::debug!(?recovered, "catalog recovered");
    let is_new = control.cluster_id().is_none();
    if is_new && found.iter().any(|uid| *uid != ShardUid::CATALOG) {
        let dir = shard_dir(&node.config.data, ShardUid::CATALOG);
        let close = control.close().await;
        tracing::debug!(?close, "new catalog closed again");
        return Err(format!(
            "there are shards, but the catalog in {} is missing or empty: restore it from a backup",
            dir.display()
        ));
    }
    let cluster_id = match control.cluster_id() {
        Some(cluster_id) => cluster_id,
        None => control.init(identity.cluster_id.clone()).await.map_err(|error| error.to_string())?,
    };
    if *cluster_id != *identity.cluster_id {
        return Err(format!(
            "{} says cluster {}, but the catalog there is of cluster {cluster_id}: the directory was put together from \
             two nodes; restore one of them whole",
            node.config.data.join("identity").display(),
            identity.cluster_id
        ));
    }
    let topics = control.topics();
    remove_orphans(&reactor, &control, &topics, &found).await?;
    open_all(&reactor, &control, &topics, &found).await?;
    node.topics.publish(topics);
    if control.shard_uid_end() == ShardUid(ShardUid::CATALOG.0 + 1) {
        let shards = u32::try_from(node.reactors.len()).expect("at most REACTORS_MAX");
        let (bytes, age) = (node.config.retention_bytes, node.config.retention_age_ms);
        let create = CreateTopic {
            name: DEFAULT_TOPIC.to_owned(),
            shards,
            retention_bytes_max: bytes,
            retention_age_ms_max: age,
            ..Default::default()
        };
        let created = control.create(create).await;
        created.map_err(|error| format!("the topic {DEFAULT_TOPIC:?} could not be made: {error}"))?;
    }
    reactor.set_control(control.serve());
    Ok(control)
}

/// Uids of the directories in `<data>/shards`; what else lies there is left alone.
async fn shards_on_disk<E: Env>(reactor: &Reactor<E>) -> Result<BTreeSet<ShardUid>, String> {
    let dir = reactor.node().config.data.join("shards");
    let explain = |error: std::io::Error| format!("{} could not be read: {error}", dir.display());
    reactor.disk().create_dir_all(&dir).await.map_err(explain)?;
    let entries = reactor.disk().list(&dir).await.map_err(explain)?;
    let mut found = BTreeSet::new();
    for entry in entries {
        let uid = entry.name.to_str().and_then(|name| name.parse().ok().filter(|uid: &u64| uid.to_string() == name));
        match uid {
            Some(uid) if entry.is_dir => drop(found.insert(ShardUid(uid))),
            _ => tracing::warn!(name = %entry.name.display(), "not a shard's directory; it is left alone"),
        }
    }
    Ok(found)
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

/// Removes what a deletion, or the taking back of a topic, left behind when the node died in it.
async fn remove_orphans<E: Env>(
    reactor: &Rc<Reactor<E>>,
    control: &Control<E>,
    topics: &[Arc<PlacedTopic>],
    found: &BTreeSet<ShardUid>,
) -> Result<(), String> {
    let known: BTreeSet<ShardUid> = topics.iter().flat_map(|topic| topic.view.shards.iter().copied()).collect();
    let orphans = found.difference(&known).filter(|uid| **uid != ShardUid::CATALOG);
    for uid in orphans {
        let dir = shard_dir(&reactor.node().config.data, *uid);
        if *uid >= control.shard_uid_end() {
            // Never handed out by this catalog: somebody else's records are not ours to delete.
            return Err(format!(
                "{} belongs to no topic, and this node's catalog never made it: move it away, or restore the catalog \
                 that knows it",
                dir.display()
            ));
        }
        match reactor.disk().remove_dir_all(&dir).await {
            Ok(()) => tracing::info!(dir = %dir.display(), "shard of a deleted topic removed"),
            Err(error) => tracing::warn!(dir = %dir.display(), %error, "shard of a deleted topic could not be removed"),
        }
    }
    Ok(())
}

/// Opens every shard, all reactors at once.
async fn open_all<E: Env>(
    reactor: &Rc<Reactor<E>>,
    control: &Control<E>,
    topics: &[Arc<PlacedTopic>],
    found: &BTreeSet<ShardUid>,
) -> Result<(), String> {
    // Only the newest topic may have died between its commit and its first file. For any other, a
    // missing directory means that records are gone.
    let newest = topics.iter().map(|topic| topic.view.id).max();
    let older = topics.iter().filter(|topic| Some(topic.view.id) != newest);
    let mut lost: Vec<ShardUid> = Vec::new();
    for uid in older.flat_map(|topic| &topic.view.shards).copied() {
        if !found.contains(&uid) || is_emptied(reactor, uid).await? {
            lost.push(uid);
        }
    }
    control.note_lost(topics, &lost).await.map_err(|error| error.to_string())?;
    let mut shards = control.shards_to_open(topics);
    for (_, shards) in &mut shards {
        shards.retain(|shard| !lost.contains(&shard.uid));
    }
    match control.open_shards(shards).await {
        Ok(()) => Ok(()),
        Err(error @ (ReactorError::Stopped { .. } | ReactorError::MailboxFull | ReactorError::Gone)) => {
            Err(format!("a reactor ended while shards were being opened: {error}"))
        }
        // Noted shard by shard; the others serve.
        Err(ReactorError::Shard(_) | ReactorError::NotOpen { .. }) => {
            tracing::error!(faults = reactor.node().fault_count(), "some shards do not serve; the others do");
            Ok(())
        }
    }
}
