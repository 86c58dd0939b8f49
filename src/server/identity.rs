//! `<data>/identity`: which cluster and node a data directory belongs to, and in which format it is.
//!
//! Text, so that a person can read it; four lines and nothing else:
//!
//! ```text
//! ringlog 1                                   format of the directory
//! cluster 00112233445566778899aabbccddeeff    32 hexadecimal digits
//! node 1                                      decimal
//! crc32c c91bba20                             of the bytes of the three lines above
//! ```
//!
//! It is written once, before anything else is. A directory with shards but without it is refused,
//! never begun afresh.

use std::path::Path;

use bytes::Bytes;

use crate::{
    env::{Disk, Env},
    ids::NodeId,
    reactor::node::Identity,
    tls::is_cluster_id,
};

/// The format that this program reads and writes.
pub const FORMAT: u32 = 1;

/// The file's content.
pub fn encode(identity: &Identity) -> String {
    let body = format!("ringlog {FORMAT}\ncluster {}\nnode {}\n", identity.cluster_id, identity.node);
    format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()))
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
        let (node, _) = rest.split_once("\ncrc32c ")?;
        Some(Identity { cluster_id: cluster_id.to_owned(), node: NodeId(node.parse().ok()?) })
    })();
    // Whatever is not exactly what we write, checksum included, was changed by somebody else.
    parsed.filter(|identity| is_cluster_id(&identity.cluster_id) && encode(identity) == text).ok_or(DAMAGED.to_owned())
}

/// The identity of `data`; a new directory gets one.
///
/// # Errors
/// In one sentence, when the directory is not what it should be or cannot be read or written.
pub async fn load_or_make<E: Env>(disk: &E::Disk, data: &Path) -> Result<Identity, String> {
    let path = data.join("identity");
    let shown = path.display();
    match disk.read_file(&path).await {
        Ok(content) => return decode(&content).map_err(|what| format!("{shown} {what}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("{shown} could not be read: {error}")),
    }
    let shards = data.join("shards");
    match disk.list(&shards).await {
        Ok(entries) if !entries.is_empty() => {
            return Err(format!(
                "{} has shards but no file `identity`: the directory is damaged or not ringlog's; restore the file, or \
                 choose another directory with --data",
                data.display()
            ));
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("{} could not be read: {error}", shards.display())),
    }
    let cluster_id = format!("{:016x}{:016x}", E::random_u64(), E::random_u64());
    let identity = Identity { cluster_id, node: NodeId(1) };
    let written = disk.write_file(&path, Bytes::from(encode(&identity))).await;
    written.map_err(|error| format!("{shown} could not be written: {error}"))?;
    tracing::info!(cluster_id = %identity.cluster_id, node = identity.node.0, "new data directory");
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { cluster_id: "00112233445566778899aabbccddeeff".to_owned(), node: NodeId(1) }
    }

    /// The file is the one drawn above.
    #[test]
    fn fixed_bytes() {
        let text = encode(&identity());
        assert_eq!(text, "ringlog 1\ncluster 00112233445566778899aabbccddeeff\nnode 1\ncrc32c c91bba20\n");
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
        let error = decode(b"ringlog 2\nwhatever comes then").unwrap_err();
        assert!(error.contains("format 2") && error.contains("format 1"), "{error}");
    }
}
