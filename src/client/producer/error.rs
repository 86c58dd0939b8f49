//! Why a record is not acknowledged, and what is known about it.

use std::time::Duration;

use crate::client::ClientError;

/// Why a record is not acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProduceError {
    /// It was not written and will not be.
    #[error("the record was not written to {place}: {cause}")]
    Refused {
        /// Topic and shard.
        place: String,
        /// Why.
        cause: ClientError,
    },
    /// It may have been written, or may still be.
    #[error(
        "the record may or may not be in {place}: {cause}; look for it there, or send it again if twice does no harm \
         (at_least_once)"
    )]
    Maybe {
        /// Topic and shard.
        place: String,
        /// Why nobody knows.
        cause: ClientError,
    },
    /// It could not be sent within the delivery timeout. It was not written and will not be.
    #[error(
        "the record could not be written to {place} within {} ms{}",
        .after.as_millis(),
        .cause.as_ref().map_or_else(String::new, |cause| format!(": {cause}"))
    )]
    Expired {
        /// Topic and shard.
        place: String,
        /// The delivery timeout.
        after: Duration,
        /// The last failure, if there was one: else the servers only were too slow.
        cause: Option<ClientError>,
    },
    /// Larger than a server takes. It was not sent.
    #[error("the record has {bytes} bytes, the limit is {max}")]
    TooLarge {
        /// As encoded.
        bytes: usize,
        /// Limit.
        max: usize,
    },
    /// The topic has no such shard. It was not sent.
    #[error("topic {topic:?} has {shards} shard(s), numbered from 0; there is no shard {shard}")]
    NoShard {
        /// Topic.
        topic: String,
        /// Wanted.
        shard: u32,
        /// How many there are.
        shards: u32,
    },
    /// The producer was closed before. It was not sent.
    #[error("the producer is closed")]
    Closed,
    /// The producer's runtime ended first. The record may have been written.
    #[error("the producer's runtime ended before the record was acknowledged; it may or may not be written")]
    Abandoned,
}

impl ProduceError {
    /// Whether it is certain that the record was not and will not be written.
    pub fn is_definite(&self) -> bool {
        match self {
            ProduceError::Refused { .. }
            | ProduceError::Expired { .. }
            | ProduceError::TooLarge { .. }
            | ProduceError::NoShard { .. }
            | ProduceError::Closed => true,
            ProduceError::Maybe { .. } | ProduceError::Abandoned => false,
        }
    }

    /// The error below it, if a server or a connection gave one.
    pub fn cause(&self) -> Option<&ClientError> {
        match self {
            ProduceError::Refused { cause, .. } | ProduceError::Maybe { cause, .. } => Some(cause),
            ProduceError::Expired { cause, .. } => cause.as_ref(),
            ProduceError::TooLarge { .. }
            | ProduceError::NoShard { .. }
            | ProduceError::Closed
            | ProduceError::Abandoned => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each says what happened, to what, and whether it is certain.
    #[test]
    fn words() {
        let cause = ClientError::Unreachable { address: "a:1".into(), cause: "refused".into() };
        let place = || "topic t shard 3".to_owned();
        let refused = ProduceError::Refused { place: place(), cause: cause.clone() };
        assert!(refused.is_definite() && refused.to_string().contains("not written to topic t shard 3"));
        let maybe = ProduceError::Maybe { place: place(), cause: cause.clone() };
        assert!(!maybe.is_definite() && maybe.to_string().contains("may or may not be in topic t shard 3"));
        let after = Duration::from_secs(3);
        let expired = ProduceError::Expired { place: place(), after, cause: Some(cause) };
        assert!(expired.is_definite() && expired.to_string().contains("within 3000 ms: cannot reach"), "{expired}");
        assert!(expired.cause().is_some() && ProduceError::Closed.cause().is_none());
    }
}
