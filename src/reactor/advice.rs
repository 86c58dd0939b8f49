//! What people are told to do about files that a node cannot mend: what is safe beside the other replicas, if there may be any.
//!
//! An older copy of a directory holds an older vote, and lacks what was acknowledged since. Beside others such a replica votes
//! twice in a term, or elects a leader without acknowledged records (Ongaro's dissertation, 2014, 3.8). So a backup is advised
//! for the only copy, and nothing else; where there are others, a new replica gets all from them, and owes what the old one may
//! have known (`raft::left`).

use std::path::Path;

use crate::{
    env::Disk,
    ids::{NodeId, ShardUid},
    log::{LogError, repair::RepairError},
    reactor::{
        control::remembered::{self, MEMBERS_FILE},
        node::Node,
    },
};

/// Whether a shard, or the catalog, has other replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// It has.
    Are,
    /// None that are known here. What this node knows may be old, or not whole.
    MayBe,
    /// It has none.
    AreNot,
}

impl Others {
    /// Of a shard with so many others by this node's copy of the catalog, in a cluster with other nodes or without.
    pub fn of(others: usize, has_nodes: bool) -> Others {
        match (others, has_nodes) {
            (1.., _) => Others::Are,
            // The copy may be older than a move.
            (0, true) => Others::MayBe,
            (0, false) => Others::AreNot,
        }
    }

    /// Of the catalog, by what the node's file `members` says; `None`: there is none.
    pub fn by_members(content: Option<&[u8]>, me: NodeId) -> Others {
        match content.and_then(remembered::decode) {
            Some(known) if known.nodes.iter().all(|node| node.node_id == me.0) => Others::AreNot,
            Some(_) => Others::Are,
            None => Others::MayBe,
        }
    }
}

/// Whether the catalog has other replicas, as far as this node knows.
pub async fn others_of_catalog<D: Disk>(disk: &D, node: &Node, me: NodeId) -> Others {
    if node.book.snapshot().keys().any(|other| *other != me) {
        return Others::Are;
    }
    let content = disk.read_file(&node.config.data.join(MEMBERS_FILE)).await.ok();
    Others::by_members(content.as_deref(), me)
}

/// What is to be done about a replica of `me` that is lost for good; `only`: what else may be done if it is the only one.
pub fn begin_anew(uid: ShardUid, me: NodeId, others: Others, only: &str) -> String {
    let (anew, see) = if uid == ShardUid::CATALOG {
        let anew = format!(
            "have another node remove this one with `ringlog cluster remove {me} --dead`, and begin with an empty data directory \
             and --join as a new node"
        );
        (anew, "there is, or was, another node")
    } else {
        let anew = format!(
            "have the replica made anew from the others, with `ringlog cluster drain {me} --wait` and then `ringlog cluster \
             undrain {me}`"
        );
        (anew, "`ringlog topic describe`, asked of another node, shows other replicas")
    };
    match others {
        Others::Are => format!(
            "{anew}; never put an older copy in its place, which knows neither its last votes nor its last records"
        ),
        Others::MayBe => format!("if {see}, {anew}; only otherwise {only}"),
        Others::AreNot => only.to_owned(),
    }
}

/// What may be done about a replica of `me` in `dir` that is not mended.
pub fn way_out(error: &RepairError, (uid, me, dir): (ShardUid, NodeId, &Path), others: Others) -> String {
    const BACKUP: &str = "restore the directory from a backup";
    // These are mended from others: they are not waited for if there are none.
    let unless = match others {
        Others::Are | Others::MayBe => {
            "if there are others (`ringlog topic describe`, asked of another node, shows them), it is mended from them as soon \
             as this node hears of them; only otherwise "
        }
        Others::AreNot => "",
    };
    match error {
        RepairError::Unfilled { gap, .. } => format!(
            "{gap}, and no other replica is known to get them from: {unless}{BACKUP}, or give up what cannot be read and all \
             behind it with `ringlog repair {dir} --cut` while the node is down (without --cut it says what that is)",
            dir = dir.display()
        ),
        RepairError::Stateless { .. } => format!("{error}: {unless}{BACKUP}"),
        RepairError::Hopeless(error) => {
            format!("{error}; nobody can mend this: {}", begin_anew(uid, me, others, BACKUP))
        }
        RepairError::Disk(error @ LogError::Corrupt { .. }) => {
            format!("{error}: then {}", begin_anew(uid, me, others, BACKUP))
        }
        RepairError::Disk(error) => error.to_string(),
    }
}
