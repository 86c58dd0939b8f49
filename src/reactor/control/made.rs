//! `<data>/replicas`: the replicas that this node has made, one uid a line. One that is listed and gone is lost, and is not made
//! anew.
//!
//! ```text
//! 3                                                            the uid of each
//! 17
//! crc32c 1a2b3c4d                                              of the bytes of the lines above
//! ```
//!
//! What wrote it before there was a checksum wrote none; such a list is taken as it is, and has one when it is written next.

use std::{collections::BTreeSet, fmt::Write};

use super::sealed::{sealed, unsealed};
use crate::ids::ShardUid;

/// Its name below the data directory.
pub const REPLICAS_FILE: &str = "replicas";

/// The file's content.
pub fn encode(uids: &BTreeSet<ShardUid>) -> String {
    sealed(uids.iter().fold(String::new(), |mut text, uid| {
        writeln!(text, "{uid}").expect("writing to a string");
        text
    }))
}

/// Reads the file's content.
///
/// # Errors
/// In one clause, for after the file's name: "is damaged ...".
pub fn decode(content: &[u8]) -> Result<BTreeSet<ShardUid>, String> {
    let what = "is damaged: it lists the replicas that this node has made, and which of them are lost cannot be told without it";
    uids(content).ok_or_else(|| what.to_owned())
}

fn uids(content: &[u8]) -> Option<BTreeSet<ShardUid>> {
    let text = std::str::from_utf8(content).ok()?;
    let body = if text.contains("crc32c ") { unsealed(text)? } else { text };
    body.lines().map(|line| line.parse().ok().map(ShardUid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(uids: &[u64]) -> BTreeSet<ShardUid> {
        uids.iter().copied().map(ShardUid).collect()
    }

    /// The file is the one drawn above, and reads back; so does one without a checksum.
    #[test]
    fn fixed_bytes() {
        assert_eq!(encode(&list(&[3, 17])), format!("3\n17\ncrc32c {:08x}\n", crc32c::crc32c(b"3\n17\n")));
        assert_eq!(encode(&list(&[])), "crc32c 00000000\n");
        for uids in [&[][..], &[3, 17]] {
            assert_eq!(decode(encode(&list(uids)).as_bytes()), Ok(list(uids)));
        }
        assert_eq!((decode(b"3\n17\n"), decode(b"")), (Ok(list(&[3, 17])), Ok(list(&[]))));
    }

    /// Every changed bit is noticed: another list would be believed.
    #[test]
    fn damage() {
        let text = encode(&list(&[3, 17])).into_bytes();
        for bit in 0..text.len() * 8 {
            let mut changed = text.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&changed).is_err(), "bit {bit}");
        }
    }

    /// Files of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let corpus = [vec![], vec![1, 7, u64::MAX]].map(|uids| encode(&list(&uids)));
        crate::fuzz::Target::new("reactor::control::made::tests::fuzz", corpus, |bytes| decode(bytes).ok())
            .encode(|uids| encode(uids).into_bytes())
            .sealed_by(crate::fuzz::seal_text)
            .words(&["\n", "1", "+1", "18446744073709551616", "crc32c "])
            .run();
    }
}
