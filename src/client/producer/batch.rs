//! Gathers records into batches: by size, by number, and by the time that the oldest may wait. Pure.

use std::{collections::VecDeque, time::Duration, time::Instant};

/// When a batch is full, and how long one waits that is not.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of one batch; a single item may be larger.
    pub bytes_max: usize,
    /// Items of one batch.
    pub count_max: usize,
    /// Longest wait for more.
    pub linger: Duration,
}

/// Whether there is a batch to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Nothing is there.
    Empty,
    /// Not before then, unless more comes.
    At(Instant),
    /// Take it.
    Now,
}

/// Items of one shard in their order.
#[derive(Debug)]
pub struct Batcher<T> {
    bounds: Bounds,
    items: VecDeque<(T, usize, Instant)>,
    bytes: usize,
    /// That many from the front on do not wait.
    hurried: usize,
}

impl<T> Batcher<T> {
    /// Without items.
    pub fn new(bounds: Bounds) -> Batcher<T> {
        Batcher { bounds, items: VecDeque::new(), bytes: 0, hurried: 0 }
    }

    /// Adds an item of so many bytes behind the others.
    pub fn push(&mut self, item: T, bytes: usize, now: Instant) {
        self.bytes += bytes;
        self.items.push_back((item, bytes, now));
    }

    /// What is there now does not wait any longer.
    pub fn hurry(&mut self) {
        self.hurried = self.items.len();
    }

    /// Whether there is a batch.
    pub fn ready(&self, now: Instant) -> Ready {
        let Some((_, _, since)) = self.items.front() else { return Ready::Empty };
        let Bounds { bytes_max, count_max, linger } = self.bounds;
        let due = *since + linger;
        if self.hurried > 0 || self.bytes >= bytes_max || self.items.len() >= count_max || now >= due {
            return Ready::Now;
        }
        Ready::At(due)
    }

    /// The next batch if it is ready: as many items as fit, at least one.
    pub fn take(&mut self, now: Instant) -> Option<Vec<T>> {
        if self.ready(now) != Ready::Now {
            return None;
        }
        let mut bytes = 0;
        let mut batch = Vec::new();
        while let Some((_, item_bytes, _)) = self.items.front() {
            let fits = bytes + item_bytes <= self.bounds.bytes_max && batch.len() < self.bounds.count_max;
            if !fits && !batch.is_empty() {
                break;
            }
            let (item, item_bytes, _) = self.items.pop_front().expect("it was there in the line above");
            bytes += item_bytes;
            batch.push(item);
        }
        self.bytes -= bytes;
        self.hurried = self.hurried.saturating_sub(batch.len());
        Some(batch)
    }

    /// Takes items off the front as long as they are such.
    pub fn take_while(&mut self, is_such: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        while self.items.front().is_some_and(|(item, _, _)| is_such(item)) {
            let (item, bytes, _) = self.items.pop_front().expect("it was there in the line above");
            self.bytes -= bytes;
            self.hurried = self.hurried.saturating_sub(1);
            taken.push(item);
        }
        taken
    }

    /// Takes all items.
    pub fn drain(&mut self) -> Vec<T> {
        self.take_while(|_| true)
    }

    /// The oldest item.
    pub fn front(&self) -> Option<&T> {
        self.items.front().map(|(item, _, _)| item)
    }

    /// Bytes of all items.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a starting point; time passes by addition")]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn batcher(linger: Duration) -> Batcher<u32> {
        Batcher::new(Bounds { bytes_max: 100, count_max: 4, linger })
    }

    /// Without a linger all that is there goes at once, but not more than fits.
    #[test]
    fn by_size_and_number() {
        let now = Instant::now();
        let mut batcher = batcher(Duration::ZERO);
        assert_eq!((batcher.ready(now), batcher.take(now)), (Ready::Empty, None));
        for item in 0..6 {
            batcher.push(item, 10, now);
        }
        assert_eq!(batcher.take(now), Some(vec![0, 1, 2, 3]));
        batcher.push(6, 90, now);
        assert_eq!(batcher.take(now), Some(vec![4, 5]), "with 90 bytes more it would be too large");
        assert_eq!((batcher.take(now), batcher.bytes()), (Some(vec![6]), 0));
        batcher.push(7, 1_000, now);
        batcher.push(8, 1, now);
        assert_eq!(batcher.take(now), Some(vec![7]), "an item that is too large goes alone");
        assert_eq!(batcher.take(now), Some(vec![8]));
        assert_eq!(batcher.ready(now), Ready::Empty);
    }

    /// With a linger a batch waits for more, until it is full or the oldest item has waited long enough.
    #[test]
    fn by_time() {
        let start = Instant::now();
        let mut batcher = batcher(5 * MS);
        batcher.push(0, 10, start);
        batcher.push(1, 10, start + 3 * MS);
        assert_eq!(batcher.ready(start + 4 * MS), Ready::At(start + 5 * MS));
        assert_eq!(batcher.take(start + 4 * MS), None);
        assert_eq!(batcher.take(start + 5 * MS), Some(vec![0, 1]));
        batcher.push(2, 100, start + 6 * MS);
        assert_eq!(batcher.take(start + 6 * MS), Some(vec![2]), "full");
    }

    /// A flush hurries what is there, in as many batches as it takes, and nothing that comes later.
    #[test]
    fn hurried() {
        let start = Instant::now();
        let mut batcher = batcher(5 * MS);
        for item in 0..3 {
            batcher.push(item, 60, start);
        }
        batcher.hurry();
        batcher.push(3, 1, start);
        assert_eq!(batcher.take(start), Some(vec![0]));
        assert_eq!(batcher.take(start), Some(vec![1]));
        assert_eq!(batcher.take(start), Some(vec![2, 3]));
        batcher.push(4, 1, start);
        assert_eq!(batcher.take(start), None);
        batcher.hurry();
        assert_eq!(batcher.take_while(|item| *item < 9), [4]);
        batcher.push(5, 1, start);
        assert_eq!(batcher.take(start), None, "the hurry went with its item");
    }
}
