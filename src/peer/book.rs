//! Who the nodes of the cluster are, and where their peers reach them: published by reactor 0 from the catalog and from
//! gossip, read by all reactors.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{
    env::net::Endpoint,
    ids::{NodeId, ReactorNumber},
    proto::ringlog::state::v1::ClusterNode,
};

/// A node as its peers reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNode {
    /// Which.
    pub node: NodeId,
    /// Host name or address.
    pub host: String,
    /// UDP port of its reactor 0; reactor n has port + n.
    pub port: u16,
    /// Its reactors, at least 1.
    pub reactors: u32,
    /// Its gRPC address as clients are told, `host:port`.
    pub grpc: String,
    /// Its HTTP address, `host:port`.
    pub http: String,
}

impl PeerNode {
    /// The reactor of that slot.
    pub fn reactor(&self, slot: u64) -> ReactorNumber {
        ReactorNumber((slot % u64::from(self.reactors.max(1))) as u32)
    }

    /// Where that reactor is.
    pub fn endpoint(&self, reactor: ReactorNumber) -> Endpoint {
        Endpoint { node: self.node, host: self.host.clone(), port: self.port_of(reactor) }
    }

    /// That reactor's UDP port.
    pub fn port_of(&self, reactor: ReactorNumber) -> u16 {
        self.port.wrapping_add(reactor.0 as u16)
    }
}

/// A member as the catalog's entries and a join's answer have it.
pub fn to_peer_node(entry: &ClusterNode) -> PeerNode {
    PeerNode {
        node: NodeId(entry.node_id),
        host: entry.peer_host.clone(),
        port: u16::try_from(entry.peer_port).unwrap_or(0),
        reactors: entry.reactors,
        grpc: entry.grpc_address.clone(),
        http: entry.http_address.clone(),
    }
}

/// The table; shared by all threads of a node.
///
/// Who is a member comes from the catalog alone. Where a member is comes from the catalog, too, but what the
/// member says itself is newer, also while the catalog has no leader: after a start of all nodes at new addresses they
/// find each other by it.
#[derive(Debug, Default)]
pub struct AddressBook {
    table: Mutex<Table>,
    removed: Mutex<Arc<BTreeSet<NodeId>>>,
    /// Who has said that this node is no member any more.
    expelled: watch::Sender<Option<NodeId>>,
}

#[derive(Debug, Default)]
struct Table {
    /// From the catalog.
    members: BTreeMap<NodeId, PeerNode>,
    /// What members have said of themselves since the catalog's entry came, where it differs.
    heard: BTreeMap<NodeId, PeerNode>,
    /// Where members are looked for that are not where they were.
    guessed: BTreeMap<NodeId, (String, u16)>,
    merged: Arc<BTreeMap<NodeId, Arc<PeerNode>>>,
}

impl Table {
    fn merge(&mut self) {
        let newest = |(node, entry): (&NodeId, &PeerNode)| {
            let mut entry = self.heard.get(node).unwrap_or(entry).clone();
            if let Some((host, port)) = self.guessed.get(node).cloned() {
                (entry.host, entry.port) = (host, port);
            }
            let kept = self.merged.get(node).filter(|known| ***known == entry).cloned();
            (*node, kept.unwrap_or_else(|| Arc::new(entry)))
        };
        self.merged = Arc::new(self.members.iter().map(newest).collect());
    }
}

impl AddressBook {
    /// The node, if it is a member.
    pub fn get(&self, node: NodeId) -> Option<Arc<PeerNode>> {
        self.lock().merged.get(&node).cloned()
    }

    /// All of them.
    pub fn snapshot(&self) -> Arc<BTreeMap<NodeId, Arc<PeerNode>>> {
        Arc::clone(&self.lock().merged)
    }

    /// Whether the node was taken out of the cluster for good: whatever it says is refused.
    pub fn is_removed(&self, node: NodeId) -> bool {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    /// Notes that a member says that this node was removed from the cluster.
    pub fn note_expelled(&self, by: NodeId) {
        self.expelled.send_if_modified(|expelled| expelled.replace(by).is_none());
    }

    /// Who has said that this node was removed from the cluster, if anybody has.
    pub fn expelled(&self) -> Option<NodeId> {
        *self.expelled.borrow()
    }

    /// Resolves when somebody says that this node was removed from the cluster.
    pub fn wait_expelled(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut expelled = self.expelled.subscribe();
        async move {
            if expelled.wait_for(Option::is_some).await.is_err() {
                // The node is gone, and so is whoever waits.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Replaces the list of nodes that were taken out of the cluster.
    pub fn publish_removed(&self, nodes: BTreeSet<NodeId>) {
        *self.removed.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(nodes);
    }

    /// Replaces the table by what the catalog says. What a member has said itself stays, unless the catalog's entry is
    /// another one than before: then that is newer.
    pub fn publish(&self, nodes: impl IntoIterator<Item = PeerNode>) {
        let members: BTreeMap<NodeId, PeerNode> = nodes.into_iter().map(|node| (node.node, node)).collect();
        let mut table = self.lock();
        let before = std::mem::replace(&mut table.members, members);
        let Table { members, heard, guessed, .. } = &mut *table;
        heard.retain(|node, _| members.contains_key(node) && members.get(node) == before.get(node));
        guessed.retain(|node, _| members.contains_key(node) && members.get(node) == before.get(node));
        table.merge();
    }

    /// Notes what a member says of itself; whether that is another place than was known. What others say is ignored.
    pub fn hear(&self, node: &PeerNode) -> bool {
        let mut table = self.lock();
        if node.host.is_empty() || node.port == 0 || !table.members.contains_key(&node.node) {
            return false;
        }
        let before = table.merged.get(&node.node).cloned();
        table.guessed.remove(&node.node);
        table.heard.insert(node.node, node.clone());
        table.merge();
        before.is_none_or(|before| *before != *node)
    }

    /// Looks for a member at another address (`None`: where it was), until it says itself where it is. Whoever is there
    /// instead is refused by the connection, as an address proves nothing.
    pub fn guess(&self, node: NodeId, address: Option<(String, u16)>) {
        let mut table = self.lock();
        let before = match address {
            Some(address) if table.members.contains_key(&node) => table.guessed.insert(node, address),
            Some(_) | None => table.guessed.remove(&node),
        };
        if table.guessed.get(&node) != before.as_ref() {
            table.merge();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No change stops half-way: a poisoned table is still whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(node: u64, port: u16) -> PeerNode {
        let address = String::new();
        PeerNode { node: NodeId(node), host: "h".into(), port, reactors: 1, grpc: address.clone(), http: address }
    }

    fn port(book: &AddressBook, node: u64) -> Option<u16> {
        book.get(NodeId(node)).map(|node| node.port)
    }

    /// What a member says of its place is newer than the catalog's entry, until that changes; who is no member says nothing.
    #[test]
    fn heard_and_published() {
        let book = AddressBook::default();
        book.publish([at(1, 10), at(2, 20)]);
        assert!(!book.hear(&at(1, 10)) && !book.hear(&at(3, 30)) && !book.hear(&at(1, 0)));
        assert!(book.hear(&at(1, 11)));
        assert!(!book.hear(&at(1, 11)));
        assert_eq!((port(&book, 1), port(&book, 2), port(&book, 3)), (Some(11), Some(20), None));
        let before = book.get(NodeId(2)).unwrap();
        book.publish([at(1, 10), at(2, 20), at(3, 30)]);
        assert_eq!((port(&book, 1), port(&book, 3)), (Some(11), Some(30)), "the catalog says nothing new of node 1");
        assert!(Arc::ptr_eq(&before, &book.snapshot()[&NodeId(2)]), "what has not changed is not made anew");
        assert!(book.hear(&at(1, 10)), "back where the catalog has it");
        assert!(book.hear(&at(1, 12)));
        book.publish([at(1, 13), at(2, 20)]);
        assert_eq!((port(&book, 1), port(&book, 3)), (Some(13), None));
        book.publish([at(2, 20)]);
        book.publish([at(1, 13), at(2, 20)]);
        assert_eq!(port(&book, 1), Some(13));
    }

    /// A guess counts until the member says itself where it is, or the catalog does, or it is given up.
    #[test]
    fn guessed() {
        let book = AddressBook::default();
        let seed = || Some(("seed".to_owned(), 99));
        book.guess(NodeId(1), seed());
        book.publish([at(1, 10)]);
        assert_eq!(port(&book, 1), Some(10), "it was no member");
        book.guess(NodeId(1), seed());
        let guessed = book.get(NodeId(1)).unwrap();
        assert_eq!((&guessed.host[..], guessed.port), ("seed", 99));
        book.publish([at(1, 10)]);
        assert_eq!(port(&book, 1), Some(99));
        assert!(book.hear(&at(1, 10)));
        assert_eq!(port(&book, 1), Some(10));
        book.guess(NodeId(1), seed());
        book.guess(NodeId(1), None);
        assert_eq!(port(&book, 1), Some(10));
        book.guess(NodeId(1), seed());
        book.publish([at(1, 11)]);
        assert_eq!(port(&book, 1), Some(11));
    }
}
