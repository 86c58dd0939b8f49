//! `<data>/members`: who the nodes of the cluster were when this one last saw the catalog, and where. A node that starts needs
//! the others to learn what is committed in the catalog, and the catalog to learn who the others are; when all of them start
//! at once, nobody else can tell.
//!
//! Text, so that a person can read it; written whenever the nodes change. A damaged or unreadable one is left aside: no other node may know where
//! this one is then. That there is one says that a cluster was begun (`server/boot`), and what is in it whether this node's
//! catalog is the only one (`reactor/repair`).
//!
//! ```text
//! applied 17                                                   end of the catalog's entries that it follows from
//! 2 10.0.0.2 7500 4 10.0.0.2:7400 10.0.0.2:7401                node, peer host and port, reactors, gRPC, HTTP ("-": none)
//! crc32c 1a2b3c4d                                              of the bytes of the lines above
//! ```

use std::fmt::Write;

use super::sealed::{sealed, unsealed};
use crate::{
    ids::Index,
    proto::ringlog::state::v1::{ClusterNode, NodeState},
};

/// Its name below the data directory.
pub const MEMBERS_FILE: &str = "members";

/// What the file said.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// End of the catalog's entries that it follows from.
    pub applied_end: Index,
    /// The nodes, removed ones left out.
    pub nodes: Vec<ClusterNode>,
}

/// The file's content.
pub fn encode(applied_end: Index, nodes: impl IntoIterator<Item = ClusterNode>) -> String {
    let mut text = format!("applied {applied_end}\n");
    for node in nodes.into_iter().filter(|node| node.state() != NodeState::Removed) {
        let or_none = |address: &str| if address.is_empty() { "-".to_owned() } else { address.to_owned() };
        let (id, host, port, reactors) = (node.node_id, &node.peer_host, node.peer_port, node.reactors);
        let (grpc, http) = (or_none(&node.grpc_address), or_none(&node.http_address));
        writeln!(text, "{id} {host} {port} {reactors} {grpc} {http}").expect("writing to a string");
    }
    sealed(text)
}

/// Reads the file's content; `None` if it is not whole.
pub fn decode(content: &[u8]) -> Option<Remembered> {
    let text = std::str::from_utf8(content).ok()?;
    let mut lines = unsealed(text)?.lines();
    let applied_end = Index(lines.next()?.strip_prefix("applied ")?.parse().ok()?);
    Some(Remembered { applied_end, nodes: lines.map(node).collect::<Option<_>>()? })
}

fn node(line: &str) -> Option<ClusterNode> {
    let mut words = line.split(' ');
    let mut next = || words.next();
    let node = ClusterNode {
        node_id: next()?.parse().ok()?,
        peer_host: next()?.to_owned(),
        peer_port: u32::from(next()?.parse::<u16>().ok()?),
        reactors: next()?.parse().ok()?,
        grpc_address: next()?.trim_matches('-').to_owned(),
        http_address: next()?.trim_matches('-').to_owned(),
        ..ClusterNode::default()
    };
    words.next().is_none().then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    fn entry(node_id: u64, state: NodeState) -> ClusterNode {
        ClusterNode {
            node_id,
            state: state.into(),
            peer_host: format!("10.0.0.{node_id}"),
            peer_port: 7500,
            reactors: 4,
            grpc_address: format!("10.0.0.{node_id}:7400"),
            http_address: String::new(),
            incarnation: node_id,
        }
    }

    /// The file is the one drawn above, without the removed, and reads back.
    #[test]
    fn fixed_bytes() {
        let nodes = [(1, NodeState::Active), (2, NodeState::Draining), (3, NodeState::Removed)];
        let text = encode(Index(17), nodes.map(|(id, state)| entry(id, state)));
        let (body, checksum) = text.split_at(text.find("crc32c").unwrap());
        assert_eq!(body, "applied 17\n1 10.0.0.1 7500 4 10.0.0.1:7400 -\n2 10.0.0.2 7500 4 10.0.0.2:7400 -\n");
        assert_eq!(checksum.len(), "crc32c 00000000\n".len());
        let read = decode(text.as_bytes()).unwrap();
        assert_eq!((read.applied_end, read.nodes.len()), (Index(17), 2));
        let second = &read.nodes[1];
        assert_eq!((second.node_id, second.peer_host.as_str(), second.peer_port), (2, "10.0.0.2", 7500));
        assert_eq!((second.grpc_address.as_str(), second.http_address.as_str()), ("10.0.0.2:7400", ""));
    }

    /// Every cut and every changed bit is noticed.
    #[test]
    fn damage() {
        let text = encode(Index(1), [entry(1, NodeState::Active)]).into_bytes();
        for end in 0..text.len() {
            assert_eq!(decode(&text[..end]), None, "cut at {end}");
        }
        for bit in 0..text.len() * 8 {
            let mut changed = text.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&changed), None, "bit {bit}");
        }
    }

    /// Files of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let nodes = [1, 2].map(|id| entry(id, NodeState::Active));
        let corpus = [encode(Index(17), nodes), encode(Index(0), [])].map(String::into_bytes);
        crate::fuzz::Target::new("reactor::control::remembered::tests::fuzz", corpus, decode)
            .encode(|remembered| encode(remembered.applied_end, remembered.nodes.clone()).into_bytes())
            .sealed_by(crate::fuzz::seal_text)
            .words(&["applied ", "crc32c ", " - ", "-", "\n", " ", "10.0.0.1:7400", "+1", "0"])
            .run();
    }
}
