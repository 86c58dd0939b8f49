//! Damage that a read finds: said, not served, and nothing is written beside it.

use super::*;

/// A shard that keeps nothing in memory, with records "record 0" to "record 5" in an entry each, of which the bytes of the
/// fourth are damaged on the disk; `sealed`: in a segment that is full.
fn with_damage<F: Future<Output = ()>>(sealed: bool, test: impl FnOnce(TestShard) -> F) {
    TestEnv::reset(1);
    let disk = SimDisk::new();
    block_on(async {
        let peers = crate::peer::Peers::alone(NodeId(1));
        let shard = Shard::open(disk.clone(), TailBudget::new(0), peers, options()).await.unwrap();
        for n in 0..6 {
            shard.produce(value(&format!("record {n}"))).await.unwrap();
        }
        if sealed {
            for _ in 0..4 {
                shard.produce(large(RECORD_BYTES_MAX - 100)).await.unwrap();
            }
            settle().await;
            assert!(shard.status().segments > 1);
        }
        let path = "/data/shards/1/00000000000000000000.store";
        let content = disk.content(path);
        let at = content.windows(8).position(|bytes| bytes == b"record 3").unwrap();
        disk.flip_bit(path, at as u64, 0);
        test(shard).await;
    });
}

/// What is whole in front of the damage comes first, then the damage is said; what is behind it can be read.
#[test]
fn only_the_damaged_range_is_lost() {
    for sealed in [false, true] {
        with_damage(sealed, |shard| async move {
            let consumed = shard.consume(at(0)).await.unwrap();
            assert_eq!((consumed.count, consumed.next_offset), (3, Offset(3)), "of the same piece of the file");
            for _ in 0..2 {
                let error = shard.consume(at(3)).await.unwrap_err();
                assert!(
                    matches!(&error, ShardError::Damaged { cause } if cause.contains("damaged at byte")),
                    "{error}"
                );
            }
            assert_eq!(decode(&shard.consume(at(4)).await.unwrap())[0].value, "record 4");
        });
    }
}

/// From then on the shard says so, takes no records, and does not keep those waiting who wait for more.
#[test]
fn nothing_more_is_taken() {
    with_damage(false, |shard| async move {
        assert_eq!(shard.status().fault, None, "nobody has looked");
        assert!(shard.leads());
        shard.consume(at(3)).await.unwrap_err();
        let fault = shard.status().fault.unwrap();
        assert!(fault.contains("is damaged at byte"), "{fault}");
        assert!(!shard.leads() && shard.is_readable());
        let error = shard.produce(value("more")).await.unwrap_err();
        assert!(matches!(error, ShardError::Failed { maybe_written: false, .. }), "{error}");
        let waiting = Consume { wait: Duration::from_secs(60), ..at(6) };
        let error = shard.consume(waiting).await.unwrap_err();
        assert!(matches!(error, ShardError::Failed { .. }), "{error}");
        assert_eq!(shard.consume(at(6)).await.unwrap().count, 0, "whoever does not wait hears how far it is");
    });
}
