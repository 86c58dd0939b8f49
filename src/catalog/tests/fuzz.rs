//! Mutated checkpoints and commands of the catalog (`crate::fuzz`).

use super::*;
use crate::fuzz::Target;

/// A cluster with topics, a move under way and a token.
fn busy() -> Catalog {
    let mut catalog = cluster(4);
    catalog.run(create("a", 3)).unwrap();
    catalog.run(create_with("b", 1, 2)).unwrap();
    let from = nodes(&replicas(&catalog, "b", 0));
    let to: Vec<u64> = (1..=4).filter(|node| !from.contains(node)).collect();
    let uid = catalog.topic("b").unwrap().shards[0].0;
    catalog.run(move_shard(uid, &to)).unwrap();
    let token = state::JoinToken { secret_hash: vec![7; 32].into(), expires_us: 100, uses_left: 2 };
    catalog.run(Command::AddJoinToken(AddJoinToken { token: Some(token), now_us: 1 })).unwrap();
    catalog.run(set_state(4, NodeState::Draining)).unwrap();
    catalog
}

fn restored(bytes: &[u8]) -> Option<Catalog> {
    let mut catalog = Catalog::new();
    catalog.restore(bytes).ok().map(|()| catalog)
}

/// What is restored is written as what it was, and can be planned with.
#[test]
fn fuzz_checkpoints() {
    let corpus = [busy().checkpoint(), Catalog::new().checkpoint()];
    let decode = |bytes: &[u8]| {
        let catalog = restored(bytes)?;
        let _ = catalog.plan(&Default::default());
        Some(catalog.checkpoint())
    };
    Target::new("catalog::tests::fuzz::fuzz_checkpoints", corpus, decode).encode(|bytes| bytes.to_vec()).run();
}

/// Whatever command is carried out, the catalog that results can be restored from its checkpoint.
#[test]
fn fuzz_commands() {
    let before = busy().checkpoint();
    let uid = busy().topic("a").unwrap().shards[0].0;
    let commands = [
        create_with("c", 2, 3),
        delete("a"),
        claim(9, 77),
        set_state(2, NodeState::Draining),
        move_shard(uid, &[1, 2]),
        finish(uid + 3, &[3, 4]),
        prefer(uid, 2),
        Command::UpdateNode(UpdateNode { node: Some(entry(1, 1_001)) }),
    ];
    let encoded = |command| CatalogCommand { command: Some(command) }.encode_to_vec();
    let corpus: Vec<_> = commands.map(encoded).into_iter().chain([encoded(init())]).collect();
    let decode = |bytes: &[u8]| {
        let command = CatalogCommand::decode(bytes).ok()?.command?;
        let mut catalog = restored(&before).unwrap();
        let answer = catalog.run(command);
        let after = catalog.checkpoint();
        assert_eq!(restored(&after).map(|catalog| catalog.checkpoint()), Some(after.clone()));
        assert!(answer.is_ok() || after == before, "a refused command changes nothing");
        Some((answer.is_ok(), after))
    };
    Target::new("catalog::tests::fuzz::fuzz_commands", corpus, decode).memory(1 << 20).run();
}
