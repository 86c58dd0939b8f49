//! `<data>/identity`: which cluster and node a data directory belongs to, and in which format it is.
//!
//! Text, so that a person can read it; five lines and nothing else:
//!
//! ```text
//! ringlog 2                                   format of the directory
//! cluster 00112233445566778899aabbccddeeff    32 hexadecimal digits
//! node 1                                      decimal
//! incarnation 0123456789abcdef                16 hexadecimal digits, random: made with the directory
//! crc32c 943abc7b                             of the bytes of the four lines above
//! ```
//!
//! It is written once, when the node knows who it is, and before anything else but its keys. A directory with shards but
//! without it is refused, never begun afresh. (Format 1, of the versions before there were clusters, had no incarnation; those
//! were never released, and it is refused.)

use std::path::Path;

use crate::{
    ids::NodeId,
    reactor::{control::sealed::sealed, node::Identity},
    server::directory,
};

/// The format that this program reads and writes.
pub const FORMAT: u32 = 2;

/// The file's content.
pub fn encode(identity: &Identity) -> String {
    let Identity { cluster_id, node, incarnation } = identity;
    sealed(format!("ringlog {FORMAT}\ncluster {cluster_id}\nnode {node}\nincarnation {incarnation:016x}\n"))
}

/// Reads the file's content.
///
/// # Errors
/// What is wrong with it, and what to do.
pub fn decode(content: &[u8]) -> Result<Identity, String> {
    const DAMAGED: &str = "is damaged; restore it from a backup of this very directory";
    let text = std::str::from_utf8(content).map_err(|_| DAMAGED)?;
    // The version comes first: what follows it is that version's business.
    let format = text.strip_prefix("ringlog ").and_then(|rest| rest.split('\n').next()).ok_or(DAMAGED)?;
    match format.parse::<u32>() {
        Ok(FORMAT) => {}
        Ok(other) => {
            return Err(format!(
                "says that the directory has format {other}, but this program knows format {FORMAT} only; use the \
                 version of ringlog that wrote it, or another directory"
            ));
        }
        Err(_) => return Err(DAMAGED.to_owned()),
    }
    let parsed = (|| {
        let rest = text.strip_prefix(&format!("ringlog {FORMAT}\ncluster "))?;
        let (cluster_id, rest) = rest.split_once("\nnode ")?;
        let (node, rest) = rest.split_once("\nincarnation ")?;
        let (incarnation, _) = rest.split_once("\ncrc32c ")?;
        let incarnation = u64::from_str_radix(incarnation, 16).ok()?;
        Some(Identity { cluster_id: cluster_id.to_owned(), node: NodeId(node.parse().ok()?), incarnation })
    })();
    // Whatever is not exactly what we write, checksum included, was changed by somebody else.
    parsed.filter(|identity| is_cluster_id(&identity.cluster_id) && encode(identity) == text).ok_or(DAMAGED.to_owned())
}

/// Whether it is 32 lower-case hexadecimal digits.
pub fn is_cluster_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The identity of `data`; `None` in a new directory.
///
/// # Errors
/// In one sentence, when the directory is not what it should be or cannot be read.
pub fn load(data: &Path) -> Result<Option<Identity>, String> {
    let path = data.join("identity");
    let shown = path.display();
    if let Some(content) = directory::read(&path)? {
        return decode(&content).map(Some).map_err(|what| format!("{shown} {what}"));
    }
    if directory::has_entries(&data.join("shards"))? {
        return Err(format!(
            "{} has shards but no file `identity`: the directory is damaged or not ringlog's; restore the file, or \
             choose another directory with --data",
            data.display()
        ));
    }
    Ok(None)
}

/// Writes the identity of a new directory, durably.
///
/// # Errors
/// In one sentence.
pub fn save(data: &Path, identity: &Identity) -> Result<(), String> {
    directory::write(&data.join("identity"), encode(identity).as_bytes(), directory::Mode::Public)?;
    tracing::info!(cluster_id = %identity.cluster_id, node = identity.node.0, "new data directory");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster_id: "00112233445566778899aabbccddeeff".to_owned(),
            node: NodeId(1),
            incarnation: 0x0123_4567_89ab_cdef,
        }
    }

    /// The file is the one drawn above.
    #[test]
    fn fixed_bytes() {
        let text = encode(&identity());
        let drawn =
            "ringlog 2\ncluster 00112233445566778899aabbccddeeff\nnode 1\nincarnation 0123456789abcdef\ncrc32c ";
        assert!(text.starts_with(drawn), "{text}");
        assert_eq!(&text[drawn.len()..], "943abc7b\n");
        assert_eq!(decode(text.as_bytes()), Ok(identity()));
    }

    /// Every cut and every changed bit is refused; none gives another identity.
    #[test]
    fn damage() {
        let text = encode(&identity()).into_bytes();
        for end in 0..text.len() {
            assert!(decode(&text[..end]).is_err(), "cut at {end}");
        }
        for bit in 0..text.len() * 8 {
            let mut changed = text.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&changed).is_err(), "bit {bit}");
        }
    }

    /// Another format is named, not called damage.
    #[test]
    fn other_format() {
        let error = decode(b"ringlog 3\nwhatever comes then").unwrap_err();
        assert!(error.contains("format 3") && error.contains("format 2"), "{error}");
    }

    /// Files of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        crate::fuzz::Target::new("server::identity::tests::fuzz", [encode(&identity())], |bytes| decode(bytes).ok())
            .encode(|identity| encode(identity).into_bytes())
            .sealed_by(crate::fuzz::seal_text)
            .words(&["ringlog 2\n", "cluster ", "node ", "incarnation ", "crc32c ", "+1", "0x1", "00", "\n"])
            .run();
    }
}
