//! `<data>/replicas`: the replicas that this node has made, one uid a line. One that is listed and gone is lost, and is not made
//! anew.

use std::{collections::BTreeSet, fmt::Write};

use crate::ids::ShardUid;

/// Its name below the data directory.
pub const REPLICAS_FILE: &str = "replicas";

/// The file's content.
pub fn encode(uids: &BTreeSet<ShardUid>) -> String {
    uids.iter().fold(String::new(), |mut text, uid| {
        writeln!(text, "{uid}").expect("writing to a string");
        text
    })
}

/// Reads the file's content.
///
/// # Errors
/// In one clause, for after the file's name: "is damaged ...".
pub fn decode(content: &[u8]) -> Result<BTreeSet<ShardUid>, String> {
    let text = std::str::from_utf8(content).ok();
    let uids: Option<_> = text.and_then(|text| text.lines().map(|line| line.parse().ok().map(ShardUid)).collect());
    uids.ok_or_else(|| "is damaged: it lists shard numbers, one a line; restore it, or write it anew".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let corpus = [vec![], vec![1, 7, u64::MAX]].map(|uids| encode(&uids.into_iter().map(ShardUid).collect()));
        crate::fuzz::Target::new("reactor::control::made::tests::fuzz", corpus, |bytes| decode(bytes).ok())
            .encode(|uids| encode(uids).into_bytes())
            .words(&["\n", "1", "+1", "18446744073709551616"])
            .run();
    }
}
