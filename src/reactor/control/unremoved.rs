//! Replicas whose removal could not be ended, as a disk that is full or fails for a moment did not let it: when it is tried again.
//!
//! Pure: whoever removes says how it went, and when.

use std::{collections::BTreeMap, time::Duration};

use crate::ids::ShardUid;

/// First pause before they are tried again; it doubles ...
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// ... up to this: with a device that does not answer each try keeps what else is to be carried out waiting, for a minute at most.
const PAUSE_MAX: Duration = Duration::from_secs(64);

/// Which they are, and when they are due.
#[derive(Debug, Default)]
pub(super) struct Unremoved {
    /// Why each could not be removed.
    causes: BTreeMap<ShardUid, String>,
    /// `Env::monotonic_us`.
    due_us: u64,
    pause: Duration,
}

impl Unremoved {
    /// Whether its removal was begun.
    pub fn contains(&self, uid: ShardUid) -> bool {
        self.causes.contains_key(&uid)
    }

    /// Whether they are to be tried now.
    pub fn is_due(&self, now_us: u64) -> bool {
        now_us >= self.due_us
    }

    /// How long until they are to be tried; `None`: there are none.
    pub fn wait(&self, now_us: u64) -> Option<Duration> {
        (!self.causes.is_empty()).then(|| Duration::from_micros(self.due_us.saturating_sub(now_us)))
    }

    /// All of these were tried, and those with a cause have failed. Says whose cause is new.
    pub fn tried(&mut self, uids: &[ShardUid], failed: BTreeMap<ShardUid, String>, now_us: u64) -> Vec<ShardUid> {
        for uid in uids.iter().filter(|uid| !failed.contains_key(uid)) {
            self.causes.remove(uid);
        }
        let new =
            failed.iter().filter(|(uid, cause)| self.causes.get(uid) != Some(cause)).map(|(uid, _)| *uid).collect();
        self.pause = if failed.is_empty() { Duration::ZERO } else { (2 * self.pause).clamp(PAUSE_MIN, PAUSE_MAX) };
        self.due_us = now_us + self.pause.as_micros() as u64;
        self.causes.extend(failed);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each time in vain they are left alone for longer; one that is gone is forgotten.
    #[test]
    fn pauses() {
        let mut unremoved = Unremoved::default();
        assert!(unremoved.is_due(0) && unremoved.wait(0).is_none());
        let (first, second) = (ShardUid(1), ShardUid(2));
        let failed = |uids: &[ShardUid], cause: &str| uids.iter().map(|uid| (*uid, cause.to_owned())).collect();
        let both = [first, second];
        assert_eq!(unremoved.tried(&both, failed(&both, "x"), 5), both);
        assert!(!unremoved.is_due(1_000_004) && unremoved.is_due(1_000_005));
        assert_eq!(unremoved.wait(5), Some(Duration::from_secs(1)));
        assert_eq!(unremoved.tried(&both, failed(&[second], "x"), 0), []);
        assert!(!unremoved.contains(first) && unremoved.contains(second));
        assert_eq!(unremoved.wait(0), Some(Duration::from_secs(2)));
        assert_eq!(unremoved.tried(&[second], failed(&[second], "y"), 0), [second]);
        for _ in 0..9 {
            unremoved.tried(&[second], failed(&[second], "y"), 0);
        }
        assert_eq!(unremoved.wait(0), Some(PAUSE_MAX));
        unremoved.tried(&[second], BTreeMap::new(), 7);
        assert!(unremoved.wait(7).is_none() && unremoved.is_due(7));
    }
}
