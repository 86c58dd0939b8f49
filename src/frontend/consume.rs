//! A consume in steps, for those who count the memory of answers: what is there is read once there is room for it; while there is
//! nothing, a call waits, and then gets at most a few small records, for which no room was taken. Who has room waits for nothing but
//! the read itself: that its shard is served, and shows what the call has to see, is waited for before.

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

    /// Whether it has something to see before it reads (`view`).
    pub(super) fn wants_view(&self) -> bool {
        self.consume.linearizable || self.consume.min_offset.is_some()
    }

    /// Waits until the shard is served, and shows what the call has to see; reads no record.
    pub(super) fn view(&self) -> ConsumeCall {
        // No record is so small.
        self.with(Consume { wait: Duration::ZERO, bytes_max: 1, if_small: true, ..self.consume })
    }

    /// Goes on behind the answer to `view`: with what was there by then, whichever replica is read.
    pub(super) fn has_seen(&mut self, view: &Consumed) {
        let Consume { start, min_offset, linearizable, .. } = &mut self.consume;
        if std::mem::take(linearizable) {
            *min_offset = Some(min_offset.unwrap_or_default().max(view.high_watermark));
        }
        if *start == Start::Latest {
            *start = Start::Offset(view.next_offset);
        }
    }

    /// What is there already of what it wants, as far as there is room for it. Nothing is waited for meanwhile: what a `view` could
    /// bring is an error. But `after_view` what is still missing was there a moment ago, on another replica or with another leader: it
    /// is looked for as long as for any read.
    pub(super) fn at_once(&self, bytes_max: usize, after_view: bool) -> ConsumeCall {
        let deadline_us = if after_view { self.consume.deadline_us } else { Some(0) };
        self.with(Consume { wait: Duration::ZERO, bytes_max, deadline_us, ..self.consume })
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
    /// that is not older, and the earliest one is the first that is kept.
    pub(super) fn go_on(&mut self, consumed: &Consumed) {
        let start = &mut self.consume.start;
        let is_still_to_come = matches!(start, Start::Timestamp(_) | Start::Earliest) && consumed.count == 0;
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
        assert_eq!(after(Start::Earliest, &empty), Start::Earliest, "the log may be trimmed meanwhile");
        assert_eq!(after(Start::Timestamp(3), &some), Start::Offset(Offset(7)));
    }

    /// With room nothing is waited for; without, nothing large is read.
    #[test]
    fn steps() {
        let wanted = call(Start::Latest);
        assert_eq!(wanted.at_once(50, true).consume.deadline_us, None);
        let now = wanted.at_once(50, false).consume;
        assert_eq!((now.wait, now.deadline_us, now.bytes_max, now.if_small), (Duration::ZERO, Some(0), 50, false));
        let later = wanted.when_there(Duration::from_secs(2)).consume;
        assert_eq!((later.wait, later.bytes_max, later.if_small), (Duration::from_secs(2), UNFORESEEN_BYTES_MAX, true));
        assert_eq!((later.start, later.records_max), (Start::Latest, 5));
        let view = wanted.view().consume;
        assert_eq!((view.wait, view.deadline_us, view.bytes_max, view.if_small), (Duration::ZERO, None, 1, true));
    }

    /// What was seen holds for every replica that is read after it.
    #[test]
    fn has_seen() {
        let view = Consumed {
            chunks: vec![],
            count: 0,
            next_offset: Offset(7),
            log_start: Offset(0),
            high_watermark: Offset(9),
            node: NodeId(1),
        };
        let after = |start, min_offset: Option<u64>, linearizable| {
            let mut call = call(start);
            (call.consume.min_offset, call.consume.linearizable) = (min_offset.map(Offset), linearizable);
            assert_eq!(call.wants_view(), linearizable || min_offset.is_some());
            call.has_seen(&view);
            assert!(!call.consume.linearizable);
            (call.consume.start, call.consume.min_offset.map(|offset| offset.0))
        };
        assert_eq!(after(Start::Earliest, None, false), (Start::Earliest, None));
        assert_eq!(after(Start::Latest, Some(3), false), (Start::Offset(Offset(7)), Some(3)));
        assert_eq!(after(Start::Timestamp(4), Some(3), true), (Start::Timestamp(4), Some(9)));
        assert_eq!(after(Start::Offset(Offset(5)), None, true), (Start::Offset(Offset(5)), Some(9)));
    }
}
