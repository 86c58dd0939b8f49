//! Bugs that tests plant: as soon as the catalog has a topic of one name, it panics at one place.

use std::cell::Cell;

/// The name.
pub(crate) const TOPIC: &str = "met";

/// Of another process, by a test that starts it: the name of a place.
pub(crate) const VARIABLE: &str = "TEST_OF_RINGLOG_CATALOG_PANICS_IN";

/// Where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// What every replica computes alike, when the topic is there already.
    Apply,
    /// What the catalog's leader computes.
    Plan,
    /// What all replicas of a node share: half of the table of topics is published.
    Publish,
}

thread_local! {
    static PLANTED: Cell<Option<Place>> = const { Cell::new(None) };
}

/// From now on it panics there, on this thread.
pub(crate) fn plant(place: Option<Place>) {
    PLANTED.set(place);
}

/// Panics if that was planted, and the topic is there.
pub(crate) fn panic_in<'a>(place: Place, mut topics: impl Iterator<Item = &'a str>) {
    static OF_PROCESS: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let of_process = OF_PROCESS.get_or_init(|| std::env::var(VARIABLE).ok());
    let is_planted = PLANTED.get() == Some(place) || *of_process == Some(format!("{place:?}"));
    assert!(!is_planted || topics.all(|name| name != TOPIC), "a bug planted in {place:?}");
}
