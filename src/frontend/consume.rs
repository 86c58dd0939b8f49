//! A consume in steps, for those who count the memory of answers: what is there is read once there is room for it; while there is
//! nothing, a call waits, and then gets at most a few small records, for which no room was taken.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    ids::TopicId,
    limits,
    reactor::ReactorError,
    shard::{Consume, Consumed, Start},
};

/// What a call that waits gets at most: it may have to be let go, and read again.
pub(super) const UNFORESEEN_BYTES_MAX: usize = 4 << 10;

/// A consume call from a client.
#[derive(Clone, Debug)]
pub struct ConsumeCall {
    /// Empty: the default topic.
    pub topic: String,
    /// Shard number.
    pub shard: u32,
    /// What to read. 0 records or bytes: as many as the server gives.
    pub consume: Consume,
}

/// The topic that a call reads which asks several times: the one that its first read has found.
#[derive(Clone, Debug, Default)]
pub struct TopicRead(Arc<OnceLock<TopicId>>);

impl TopicRead {
    /// Notes the topic that was found.
    ///
    /// # Errors
    /// `Gone`: the first one was deleted, and this is another one of its name.
    pub(super) fn check(&self, found: TopicId) -> Result<(), ReactorError> {
        if *self.0.get_or_init(|| found) == found { Ok(()) } else { Err(ReactorError::Gone) }
    }
}

impl ConsumeCall {
    /// How much it has read for it at most. (No answer is as large as a message may be.)
    pub(super) fn wanted_bytes(&self) -> usize {
        match self.consume.bytes_max {
            0 => limits::CONSUME_BYTES_DEFAULT,
            bytes => bytes.min(limits::MESSAGE_BYTES_MAX),
        }
    }

    /// What is there already of what it wants, as far as there is room for it.
    pub(super) fn at_once(&self, bytes_max: usize) -> ConsumeCall {
        self.with(Consume { wait: Duration::ZERO, bytes_max, ..self.consume })
    }

    /// What comes within `wait`, if it is small; else an answer that leaves some (`Consumed::leaves_some`).
    pub(super) fn when_there(&self, wait: Duration) -> ConsumeCall {
        let bytes_max = self.wanted_bytes().min(UNFORESEEN_BYTES_MAX);
        self.with(Consume { wait, bytes_max, if_small: true, ..self.consume })
    }

    fn with(&self, consume: Consume) -> ConsumeCall {
        ConsumeCall { topic: self.topic.clone(), shard: self.shard, consume }
    }

    /// Goes on behind an answer. The latest record is the one that was meant first; a time without a record yet means the first
    /// that is not older.
    pub(super) fn go_on(&mut self, consumed: &Consumed) {
        let start = &mut self.consume.start;
        let is_still_to_come = matches!(start, Start::Timestamp(_)) && consumed.count == 0;
        if !is_still_to_come {
            *start = Start::Offset(consumed.next_offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{NodeId, Offset};

    fn call(start: Start) -> ConsumeCall {
        let (wait, bytes_max) = (Duration::from_secs(9), 100_000);
        let consume = Consume {
            start,
            records_max: 5,
            bytes_max,
            wait,
            min_offset: None,
            linearizable: false,
            deadline_us: None,
            if_small: false,
        };
        ConsumeCall { topic: "t".to_owned(), shard: 3, consume }
    }

    /// A call that asks once more after an answer without records loses none that came in between.
    #[test]
    fn goes_on() {
        let empty = Consumed {
            chunks: vec![],
            count: 0,
            next_offset: Offset(7),
            log_start: Offset(0),
            high_watermark: Offset(7),
            node: NodeId(1),
        };
        assert!(!empty.leaves_some());
        assert!(Consumed { high_watermark: Offset(8), ..empty.clone() }.leaves_some());
        let some = Consumed { count: 2, ..empty.clone() };
        let after = |start, consumed| {
            let mut call = call(start);
            call.go_on(consumed);
            call.consume.start
        };
        assert_eq!(after(Start::Latest, &empty), Start::Offset(Offset(7)));
        assert_eq!(after(Start::Timestamp(3), &empty), Start::Timestamp(3));
        assert_eq!(after(Start::Timestamp(3), &some), Start::Offset(Offset(7)));
    }

    /// With room nothing is waited for; without, nothing large is read.
    #[test]
    fn steps() {
        let wanted = call(Start::Latest);
        let now = wanted.at_once(50).consume;
        assert_eq!((now.wait, now.bytes_max, now.if_small), (Duration::ZERO, 50, false));
        let later = wanted.when_there(Duration::from_secs(2)).consume;
        assert_eq!((later.wait, later.bytes_max, later.if_small), (Duration::from_secs(2), UNFORESEEN_BYTES_MAX, true));
        assert_eq!((later.start, later.records_max), (Start::Latest, 5));
    }
}
