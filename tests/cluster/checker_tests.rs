//! The checker of the cluster tests finds each kind of lie: otherwise these tests show nothing.

use crate::{
    checker::verify,
    workload::{Outcome, value},
};
use bytes::Bytes;

fn acked(offsets: &[u64]) -> Vec<Outcome> {
    offsets.iter().map(|offset| Outcome::Acked(*offset)).collect()
}

fn values(numbers: &[usize]) -> Vec<Bytes> {
    numbers.iter().map(|number| value(0, *number)).collect()
}

fn lie(outcomes: &[Outcome], values: &[Bytes]) -> String {
    verify(0, outcomes, values, &[]).unwrap_err()
}

/// What may be: everything acknowledged in its place; what nobody knows once, or not at all, anywhere.
#[test]
fn accepts_what_may_be() {
    let maybe = || Outcome::Maybe("lost".into());
    let refused = || Outcome::Refused("busy".into());
    verify(0, &acked(&[0, 1, 2]), &values(&[0, 1, 2]), &[]).unwrap();
    verify(0, &[], &[], &[]).unwrap();
    let mut outcomes = acked(&[0, 1, 2]);
    outcomes.insert(1, maybe());
    outcomes.insert(1, refused());
    verify(0, &outcomes, &values(&[0, 3, 4]), &[]).unwrap();
    // The third one, of which nobody knows, came late.
    outcomes[4] = Outcome::Acked(2);
    verify(0, &outcomes, &values(&[0, 3, 4, 2]), &[]).unwrap();
    verify(0, &acked(&[1]), &["by hand".into(), value(0, 0)], &["by hand", "another"]).unwrap();
}

/// What must not be: each of these is found.
#[test]
fn finds_every_lie() {
    assert!(lie(&acked(&[0, 1]), &values(&[0])).contains("record 1 was acknowledged at offset 1, and is at None"));
    assert!(lie(&acked(&[0, 1]), &values(&[1, 0])).contains("was acknowledged at offset 0"));
    assert!(lie(&acked(&[0, 1]), &values(&[0, 1, 0])).contains("is at offset 0 and again at 2"));
    assert!(lie(&acked(&[1, 0]), &values(&[1, 0])).contains("is before an earlier one"));
    assert!(lie(&[Outcome::Refused("busy".into())], &values(&[0])).contains("was refused (busy), and is at Some(0)"));
    assert!(lie(&acked(&[0]), &values(&[0, 1])).contains("offset 1 was never sent"));
    assert!(lie(&acked(&[0]), &[Bytes::from_static(b"0/0/torn")]).contains("offset 0 was never sent like this"));
    assert!(lie(&acked(&[0]), &[value(1, 0)]).contains("never sent"), "another shard's record");
    let twice = [Bytes::from_static(b"by hand"), Bytes::from_static(b"by hand")];
    assert!(verify(0, &[], &twice, &["by hand"]).unwrap_err().contains("offset 1 was never sent"));
}
