//! Which replicas a node should hold, by its own copy of the catalog, against those that are there.
//!
//! The copy may be behind the others', and its last entries may be taken back: what depends on that is not called
//! damage. What this node has made it has listed itself; a listed replica that is gone is lost.

use std::{collections::BTreeSet, path::Path};

use crate::{
    catalog::Catalog,
    ids::ShardUid,
    log::verify::{Content, Problem},
    raft::offline,
    reactor::{
        advice::{Others, begin_anew},
        control::made,
        node::Identity,
    },
};

/// What `judge` found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judgement {
    pub problems: Vec<Problem>,
    /// Odd, and harmless.
    pub notes: Vec<Problem>,
}

/// The directories of a node.
pub(super) struct Holdings<'a> {
    /// Data directory.
    pub data: &'a Path,
    pub identity: &'a Identity,
    /// What the catalog's log says, if it is there.
    pub catalog: Option<&'a Content>,
    /// The list of replicas, if it is there.
    pub made: Option<&'a [u8]>,
    /// The list of nodes, if it is there.
    pub members: Option<&'a [u8]>,
    /// Shards that have a directory, the catalog among them.
    pub found: &'a BTreeSet<ShardUid>,
}

impl Holdings<'_> {
    /// Compares what should be there with what is.
    pub fn judge(&self) -> Judgement {
        let mut judgement = Judgement::default();
        let catalog = match self.restore() {
            Ok(Some(catalog)) => catalog,
            Ok(None) => return judgement,
            Err(what) => {
                judgement.problems.push(self.at(ShardUid::CATALOG, what));
                return judgement;
            }
        };
        let made = match self.made.map(made::decode) {
            Some(Err(what)) => {
                let file = self.data.join(made::REPLICAS_FILE);
                judgement.problems.push(Problem { file, position: Default::default(), what: format!("it {what}") });
                None
            }
            Some(Ok(made)) => Some(made),
            None => None,
        };
        let wanted = self.missing(&catalog, made.as_ref(), &mut judgement);
        self.strange(&catalog, &wanted, &mut judgement);
        judgement
    }

    fn at(&self, uid: ShardUid, what: impl Into<String>) -> Problem {
        let file = self.data.join("shards").join(uid.to_string());
        Problem { file, position: Default::default(), what: what.into() }
    }

    /// The catalog, `None` if it says nothing yet; or why nobody can tell what should be here.
    fn restore(&self) -> Result<Option<Catalog>, String> {
        let has_shards = self.found.iter().any(|uid| *uid != ShardUid::CATALOG);
        let me = self.identity.node;
        let others = Others::by_members(self.members, me);
        let advice = begin_anew(ShardUid::CATALOG, me, others, "restore it from a backup");
        let Some(content) = self.catalog else {
            let what = format!("the catalog is missing, so nobody can tell which shards should be here: {advice}");
            return if has_shards || self.made.is_some() { Err(what) } else { Ok(None) };
        };
        let mut catalog = Catalog::new();
        offline::replay(&mut catalog, content)
            .map_err(|what| format!("{what}; so nobody can tell which shards should be here"))?;
        match catalog.cluster_id() {
            Some(cluster_id) if *cluster_id == *self.identity.cluster_id => Ok(Some(catalog)),
            Some(cluster_id) => {
                Err(format!("it is of cluster {cluster_id}, but `identity` says {}", self.identity.cluster_id))
            }
            None if has_shards => Err(format!("it is empty, but there are shards: {advice}")),
            // A new node, whose copy has not come yet.
            None => Ok(None),
        }
    }

    /// Finds replicas that should be here and are not; returns all that should.
    fn missing(
        &self,
        catalog: &Catalog,
        made: Option<&BTreeSet<ShardUid>>,
        judgement: &mut Judgement,
    ) -> BTreeSet<ShardUid> {
        let me = self.identity.node;
        let newest = catalog.topics().map(|topic| topic.id).max();
        let has_nodes = catalog.members().iter().any(|node| *node != me);
        let mut wanted = BTreeSet::new();
        for topic in catalog.topics() {
            for ((number, uid), replicas) in topic.numbered_shards().zip(&topic.replicas) {
                if !replicas.has(me) {
                    continue;
                }
                wanted.insert(uid);
                if self.found.contains(&uid) {
                    continue;
                }
                // A crash may have come before it was made.
                let may_be_new = replicas.is_moving() || Some(topic.id) == newest;
                let name = &topic.name;
                if made.map_or(!may_be_new, |made| made.contains(&uid)) {
                    let others = replicas.holders().filter(|holder| *holder != me).count();
                    let only = "restore it from a backup of this very node";
                    let what = format!(
                        "it is missing: it is this node's replica of shard {number} of topic \"{name}\", and its \
                         records and its vote are gone; if the directory was only moved away, move it back; else {}",
                        begin_anew(uid, me, Others::of(others, has_nodes), only)
                    );
                    judgement.problems.push(self.at(uid, what));
                } else {
                    let what =
                        format!("it is not made yet: a replica of shard {number} of topic \"{name}\" is to come");
                    judgement.notes.push(self.at(uid, what));
                }
            }
        }
        wanted
    }

    /// Finds directories that should not be here.
    fn strange(&self, catalog: &Catalog, wanted: &BTreeSet<ShardUid>, judgement: &mut Judgement) {
        let is_alone = catalog.members().len() == 1;
        for uid in self.found.iter().filter(|uid| **uid != ShardUid::CATALOG && !wanted.contains(uid)) {
            if *uid < catalog.shard_uid_end() {
                judgement.notes.push(self.at(*uid, "it is not to be here any more; the node will remove it"));
            } else if is_alone {
                let what = "no topic has it, and this node's catalog never made it: move it away, or restore the \
                            catalog that knows it";
                judgement.problems.push(self.at(*uid, what));
            } else {
                // A leader carries out what two others have on stable storage, before it has it itself.
                let what = "this node's copy of the catalog does not know it; the other nodes' may";
                judgement.notes.push(self.at(*uid, what));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        catalog::{CatalogCommand, Command, CreateTopic, DeleteTopic, InitCluster, MoveShard},
        env::runtime::block_on,
        ids::{Index, NodeId},
        limits::SEGMENT_BYTES_MIN,
        log::{TailBudget, verify::verify_and_read},
        peer::Peers,
        proto::ringlog::state::v1::{AddNode, ClusterNode, FinishMove},
        raft::{Group, GroupOptions, Proposal},
        reactor::control::remembered,
        sim::{SimDisk, TestEnv},
    };

    const CLUSTER: &str = "00112233445566778899aabbccddeeff";

    fn entry(node_id: u64) -> ClusterNode {
        let (peer_host, reactors, incarnation) = ("h".to_owned(), 1, node_id + 10);
        ClusterNode { node_id, peer_host, reactors, incarnation, ..ClusterNode::default() }
    }

    fn create(name: &str, shards: u32) -> Command {
        Command::CreateTopic(CreateTopic { name: name.into(), shards, replication_factor: 1, ..Default::default() })
    }

    /// The log of a catalog of node 1 that has carried out these commands; closed cleanly, with a checkpoint, or not.
    async fn log_of(commands: Vec<Command>, closed: bool) -> Content {
        let disk = SimDisk::new();
        let options = GroupOptions {
            dir: "/data/shards/0".into(),
            shard: ShardUid::CATALOG,
            node: NodeId(1),
            segment_bytes_max: SEGMENT_BYTES_MIN,
            slot: 0,
            founders: Some([NodeId(1)].into()),
            owner: 0,
            preferred: true,
        };
        let peers = Peers::<TestEnv>::alone(NodeId(1));
        let opened = Group::open(disk.clone(), TailBudget::new(1 << 20), peers, options, Catalog::new()).await;
        let (group, _) = opened.unwrap();
        for command in commands {
            let command = CatalogCommand { command: Some(command) }.encode_to_vec();
            group.propose(Proposal::command(&command, 0)).await.unwrap().answer.unwrap();
        }
        let after = if closed { None } else { Some(disk.crash(1)) };
        group.close().await.unwrap();
        let (report, content) = verify_and_read(&after.unwrap_or(disk), "/data/shards/0".as_ref()).await.unwrap();
        assert_eq!(report.problems, []);
        assert_eq!(content.checkpoint.is_some(), closed);
        content
    }

    /// Topic `a` with shards 1 and 2, `gone` with 3, deleted, `b` with 4, `c` with 5.
    fn commands() -> Vec<Command> {
        let init = InitCluster { cluster_id: CLUSTER.into(), node: Some(entry(1)) };
        let gone = Command::DeleteTopic(DeleteTopic { name: "gone".into() });
        vec![Command::InitCluster(init), create("a", 2), create("gone", 1), gone, create("b", 1), create("c", 1)]
    }

    /// Names of the files with problems, and of those with notes.
    fn judged(
        log: &Content,
        node: u64,
        made: Option<&str>,
        found: impl IntoIterator<Item = u64>,
    ) -> (Vec<String>, Vec<String>) {
        let judgement = judge(CLUSTER, Some(log), node, made, found);
        let name = |problem: &Problem| problem.file.file_name().unwrap().to_string_lossy().into_owned();
        (judgement.problems.iter().map(name).collect(), judgement.notes.iter().map(name).collect())
    }

    fn judge(
        cluster_id: &str,
        catalog: Option<&Content>,
        node: u64,
        made: Option<&str>,
        found: impl IntoIterator<Item = u64>,
    ) -> Judgement {
        let identity = Identity { cluster_id: cluster_id.to_owned(), node: NodeId(node), incarnation: 1 };
        let (made, found) = (made.map(str::as_bytes), found.into_iter().map(ShardUid).collect());
        Holdings { data: "/data".as_ref(), identity: &identity, catalog, made, members: None, found: &found }.judge()
    }

    fn names<const N: usize, const M: usize>(problems: [&str; N], notes: [&str; M]) -> (Vec<String>, Vec<String>) {
        (problems.map(str::to_owned).into(), notes.map(str::to_owned).into())
    }

    /// A replica that is gone is missed, from a checkpoint as from the entries; the newest topic's may not have been made yet,
    /// unless the node's list says so. A deleted topic's is in the way, one that was never handed out is somebody else's.
    #[test]
    fn missing_and_strange() {
        block_on(async {
            for closed in [true, false] {
                let log = log_of(commands(), closed).await;
                assert_eq!(judged(&log, 1, None, [0, 1, 2, 4, 5]), names([], []));
                assert_eq!(judged(&log, 1, None, [0, 2, 4]), names(["1"], ["5"]));
                assert_eq!(judged(&log, 1, Some("1\n2\n4\n5\n"), [0, 1, 2]), names(["4", "5"], []));
                assert_eq!(judged(&log, 1, Some("1\n"), [0, 1, 2]), names([], ["4", "5"]));
                assert_eq!(judged(&log, 1, None, [0, 1, 2, 3, 4, 5, 6]), names(["6"], ["3"]));
                assert_eq!(judged(&log, 1, Some("1\nx\n"), [0, 1, 2, 4, 5]), names(["replicas"], []));
                assert_eq!(judged(&log, 2, None, [0]), names([], []), "another node holds none of them");
            }
        });
    }

    /// While a replica is on its way it may be there or not; when the move has ended, it is missed, and the old one is in the way.
    #[test]
    fn moves() {
        block_on(async {
            let mut all = commands();
            all.push(Command::AddNode(AddNode { node: Some(entry(2)), ..AddNode::default() }));
            all.push(Command::MoveShard(MoveShard { shard_uid: 1, target_node_ids: vec![2] }));
            let moving = log_of(all.clone(), true).await;
            assert_eq!(judged(&moving, 2, None, [0]), names([], ["1"]));
            assert_eq!(judged(&moving, 1, None, [0, 1, 2, 4, 5]), names([], []));
            all.push(Command::FinishMove(FinishMove { shard_uid: 1, node_ids: vec![2] }));
            let moved = log_of(all, true).await;
            assert_eq!(judged(&moved, 2, None, [0]), names(["1"], []));
            assert_eq!(judged(&moved, 1, None, [0, 1, 2, 4, 5]), names([], ["1"]));
        });
    }

    /// A backup is for the only copy: beside others it has forgotten votes and records. Where there may be others by now, both is
    /// said.
    #[test]
    fn advice_for_what_is_missing() {
        block_on(async {
            let add = || Command::AddNode(AddNode { node: Some(entry(2)), ..AddNode::default() });
            let init = InitCluster { cluster_id: CLUSTER.into(), node: Some(entry(1)) };
            let both = CreateTopic { name: "both".into(), shards: 1, replication_factor: 2, ..Default::default() };
            let both = [Command::InitCluster(init), add(), Command::CreateTopic(both)].to_vec();
            let what = async |commands| {
                let log = log_of(commands, true).await;
                judge(CLUSTER, Some(&log), 1, Some("1\n"), [0, 2, 4, 5]).problems.remove(0).what
            };
            let alone = what(commands()).await;
            assert!(alone.contains("backup") && !alone.contains("drain"), "{alone}");
            let unknown = what([commands(), vec![add()]].concat()).await;
            assert!(unknown.contains("backup") && unknown.contains("if `ringlog topic describe`"), "{unknown}");
            let beside = what(both).await;
            assert!(!beside.contains("backup") && beside.contains("`ringlog cluster undrain 1`"), "{beside}");
        });
    }

    /// The same of the catalog, by the list of nodes.
    #[test]
    fn advice_for_a_missing_catalog() {
        let identity = Identity { cluster_id: CLUSTER.to_owned(), node: NodeId(1), incarnation: 1 };
        let what = |nodes: Option<&[u64]>| {
            let members = nodes.map(|nodes| remembered::encode(Index(1), nodes.iter().map(|node| entry(*node))));
            let (members, found) = (members.as_ref().map(String::as_bytes), [ShardUid(1)].into());
            let data = "/data".as_ref();
            let holdings = Holdings { data, identity: &identity, catalog: None, made: None, members, found: &found };
            holdings.judge().problems[0].what.clone()
        };
        let (alone, unknown, beside) = (what(Some(&[1])), what(None), what(Some(&[1, 2])));
        assert!(alone.contains("backup") && !alone.contains("--dead"), "{alone}");
        assert!(unknown.contains("backup") && unknown.contains("if there is, or was, another node"), "{unknown}");
        assert!(!beside.contains("backup") && beside.contains("`ringlog cluster remove 1 --dead`"), "{beside}");
    }

    /// In a cluster, the others may know of a shard that this node's copy of the catalog has not heard of.
    #[test]
    fn a_copy_that_is_behind() {
        block_on(async {
            let mut all = commands();
            all.push(Command::AddNode(AddNode { node: Some(entry(2)), ..AddNode::default() }));
            let log = log_of(all, false).await;
            assert_eq!(judged(&log, 1, None, [0, 1, 2, 4, 5, 6]), names([], ["6"]));
        });
    }

    /// A catalog that is lost, empty, of another cluster, or cannot be restored is said to be, and nothing else is claimed.
    #[test]
    fn catalogs_that_say_nothing() {
        block_on(async {
            let lost = judge(CLUSTER, None, 1, None, [1]);
            assert!(lost.problems[0].what.contains("the catalog is missing"), "{lost:?}");
            assert_eq!(judge(CLUSTER, None, 1, None, []), Judgement::default());

            let empty = log_of(vec![], false).await;
            assert_eq!(judged(&empty, 1, None, [0]), names([], []), "a node that has just joined");
            assert_eq!(judged(&empty, 1, None, [0, 1]), names(["0"], []));

            let mut content = log_of(commands(), false).await;
            let other = judge(&"f".repeat(32), Some(&content), 1, None, [0]);
            assert!(other.problems[0].what.contains("it is of cluster"), "{other:?}");
            content.entries.remove(3);
            let gap = judge(CLUSTER, Some(&content), 1, None, [0]);
            assert!(gap.problems[0].what.contains("entry 3 is missing"), "{gap:?}");
        });
    }
}
