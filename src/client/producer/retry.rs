//! What becomes of requests when their stream ends: sent again, refused, or perhaps written. Pure.
//!
//! The rules: what was certainly not written may be sent again, in its order. What may have been written is sent again
//! only by a producer that was told that twice is better than never. What the server refuses for good is not tried again.

use std::time::Duration;

use crate::client::{ClientError, cluster};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Send it again: it was certainly not written.
    Again,
    /// Send it again although it may have been written, or may still be.
    AgainMaybe,
    /// It was not written and will not be; trying again would not help.
    Refused,
    /// It may have been written, or may still be.
    Maybe,
}

/// What becomes of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fates {
    /// The first request without an ack: the stream's error is about it.
    pub first: Fate,
    /// Those behind it that the server may have seen. (What never left is always sent again.)
    pub behind: Fate,
    /// How long the server wants us to wait.
    pub wait: Duration,
}

/// Decides, from the error with which a stream ended.
pub fn decide(error: &ClientError, at_least_once: bool) -> Fates {
    let may_pass = cluster::may_pass(error);
    let unknown = if at_least_once { Fate::AgainMaybe } else { Fate::Maybe };
    let first = match (error.is_definite(), may_pass) {
        (true, true) => Fate::Again,
        (true, false) => Fate::Refused,
        // A timeout or a server that speaks in riddles is not asked once more with the same words.
        (false, true) => unknown,
        (false, false) => Fate::Maybe,
    };
    let behind_definite = match error {
        ClientError::Status(status) => status.behind_definite,
        ClientError::Unreachable { .. } => true,
        // Definite means that the whole call was not looked at.
        ClientError::Lost { definite, .. } => *definite,
        ClientError::TimedOut { .. } | ClientError::Protocol { .. } => false,
    };
    let behind = if behind_definite { Fate::Again } else { unknown };
    Fates { first, behind, wait: error.retry_after().unwrap_or_default() }
}

/// Requests that may be in flight on one stream: all of the window while it goes well, and one after the server was
/// overloaded, so that what it refuses next has nothing behind it whose fate nobody knows.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    max: usize,
    now: usize,
}

impl Window {
    /// At most `max`, at least 1.
    pub fn new(max: usize) -> Window {
        Window { max: max.max(1), now: max.max(1) }
    }

    /// How many.
    pub fn requests(&self) -> usize {
        self.now
    }

    /// One was acknowledged.
    pub fn acknowledged(&mut self) {
        self.now = (self.now + 1).min(self.max);
    }

    /// One was refused for now.
    pub fn refused(&mut self) {
        self.now = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{client::Status, frontend::Code};

    fn status(code: Code, definite: bool, behind_definite: bool, retry_after: Option<Duration>) -> ClientError {
        let (reason, message, leader) = (String::new(), String::new(), None);
        ClientError::Status(Box::new(Status { code, reason, message, definite, retry_after, leader, behind_definite }))
    }

    fn fates(error: &ClientError, at_least_once: bool) -> (Fate, Fate) {
        let Fates { first, behind, .. } = decide(error, at_least_once);
        (first, behind)
    }

    /// Certainly not written: again, in order. A refusal for good is the first one's only.
    #[test]
    fn definite() {
        use Fate::{Again, Maybe, Refused};
        let hint = Some(Duration::from_millis(50));
        for (error, expected) in [
            (status(Code::Unavailable, true, true, hint), (Again, Again)),
            (status(Code::Unavailable, true, false, None), (Again, Maybe)),
            (status(Code::ResourceExhausted, true, true, hint), (Again, Again)),
            (status(Code::ResourceExhausted, true, true, None), (Refused, Again)),
            (status(Code::InvalidArgument, true, true, None), (Refused, Again)),
            (status(Code::NotFound, true, false, None), (Refused, Maybe)),
            (ClientError::Lost { address: "a".into(), cause: "c".into(), definite: true }, (Again, Again)),
            (ClientError::Unreachable { address: "a".into(), cause: "c".into() }, (Again, Again)),
        ] {
            assert_eq!(fates(&error, false), expected, "{error:?}");
        }
        assert_eq!(decide(&status(Code::Unavailable, true, true, hint), false).wait, Duration::from_millis(50));
    }

    /// Perhaps written: the caller is told, unless it wants it at least once.
    #[test]
    fn indefinite() {
        use Fate::{Again, AgainMaybe, Maybe};
        let lost = ClientError::Lost { address: "a".into(), cause: "c".into(), definite: false };
        for error in [lost, status(Code::Unavailable, false, false, None)] {
            assert_eq!(fates(&error, false), (Maybe, Maybe), "{error:?}");
            assert_eq!(fates(&error, true), (AgainMaybe, AgainMaybe), "{error:?}");
        }
        let deposed = status(Code::Unavailable, false, true, None);
        assert_eq!(fates(&deposed, false), (Maybe, Again), "those behind it are known");
        let riddle = ClientError::Protocol { address: "a".into(), what: "w".into() };
        assert_eq!(fates(&riddle, false), (Maybe, Maybe));
        assert_eq!(fates(&riddle, true), (Maybe, AgainMaybe));
    }

    /// After an overload one request at a time, then more with each ack.
    #[test]
    fn window() {
        let mut window = Window::new(3);
        assert_eq!(window.requests(), 3);
        window.refused();
        assert_eq!(window.requests(), 1);
        for expected in [2, 3, 3] {
            window.acknowledged();
            assert_eq!(window.requests(), expected);
        }
        assert_eq!(Window::new(0).requests(), 1);
    }
}
