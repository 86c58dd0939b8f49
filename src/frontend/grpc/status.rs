//! Errors on the wire: `grpc-status`, `grpc-message` and `grpc-status-details-bin`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use percent_encoding::AsciiSet;
use percent_encoding::CONTROLS;
use percent_encoding::utf8_percent_encode;
use prost::Message;

use crate::format::grpc::FrameError;
use crate::frontend::CallError;
use crate::frontend::Code;
use crate::proto::google::rpc;

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_STATUS_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");

/// Longest message and metadata value that we send, in bytes before encoding: clients limit
/// headers, commonly to 8 KiB, and drop the whole status above it.
const TEXT_BYTES_MAX: usize = 1_024;

/// "Percent-Encoded → 1*(Percent-Byte-Unencoded / Percent-Byte-Encoded)", where unencoded are
/// %x20-%x24 and %x26-%x7E.
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// The error of a call whose deadline passed.
pub(super) fn deadline(definite: bool) -> CallError {
    let message = match definite {
        true => "the deadline passed; nothing was done",
        false => "the deadline passed before the answer was there; what was asked for may still happen",
    };
    CallError::new(Code::DeadlineExceeded, "DEADLINE", message).maybe_written(!definite)
}

/// The error of a message that could not be read.
pub(super) fn frame_error(error: FrameError) -> CallError {
    match error {
        FrameError::TooLarge { .. } | FrameError::InflatesTooLarge { .. } => {
            CallError::new(Code::ResourceExhausted, "MESSAGE_TOO_LARGE", format!("{error}; send less at a time"))
        }
        FrameError::BadFlag { .. } | FrameError::NotEncoded | FrameError::Corrupt | FrameError::Truncated { .. } => {
            CallError::new(Code::Internal, "BAD_MESSAGE", error.to_string())
        }
    }
}

/// The trailers of a call that succeeded.
pub(super) fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// Adds the error to trailers, or to the only headers of a call that fails at once.
pub(super) fn insert(error: &CallError, trailers: &mut HeaderMap) {
    trailers.insert(GRPC_STATUS, HeaderValue::from(error.code as i32));
    let message = utf8_percent_encode(cut(&error.message), ENCODED).to_string();
    if let Ok(message) = HeaderValue::try_from(message) {
        trailers.insert(GRPC_MESSAGE, message);
    }
    let details = BASE64_STANDARD_NO_PAD.encode(details(error).encode_to_vec());
    if let Ok(details) = HeaderValue::try_from(details) {
        trailers.insert(GRPC_STATUS_DETAILS, details);
    }
}

/// At most `TEXT_BYTES_MAX` bytes of it, whole characters.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn details(error: &CallError) -> rpc::Status {
    let mut info = rpc::ErrorInfo { reason: error.reason.into(), domain: "ringlog".into(), ..Default::default() };
    info.metadata.insert("definite".into(), error.definite.to_string());
    if error.behind_definite {
        info.metadata.insert("behind_definite".into(), "true".into());
    }
    if let Some(leader) = &error.leader {
        info.metadata.insert("leader".into(), cut(leader).into());
    }
    let mut details = vec![any("google.rpc.ErrorInfo", &info)];
    if let Some(after) = error.retry_after {
        let retry_delay = prost_types::Duration::try_from(after).ok();
        details.push(any("google.rpc.RetryInfo", &rpc::RetryInfo { retry_delay }));
    }
    rpc::Status { code: error.code as i32, message: cut(&error.message).into(), details }
}

fn any(name: &str, message: &impl Message) -> prost_types::Any {
    prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn trailers(error: &CallError) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        insert(error, &mut trailers);
        trailers
    }

    /// The encoding table of the specification, and that any text fits a header.
    #[test]
    fn messages_are_percent_encoded() {
        for (message, encoded) in [
            ("", ""),
            ("plain text, ~!$&'()*+;=:@/?#[]\"\\", "plain text, ~!$&'()*+;=:@/?#[]\"\\"),
            ("100%", "100%25"),
            ("%20", "%2520"),
            ("line\nbreak\ttab", "line%0Abreak%09tab"),
            ("\0\u{7f}", "%00%7F"),
            ("ä€🦀", "%C3%A4%E2%82%AC%F0%9F%A6%80"),
        ] {
            let trailers = trailers(&CallError::new(Code::NotFound, "X", message));
            assert_eq!(trailers[GRPC_MESSAGE], encoded, "{message:?}");
            assert_eq!(trailers[GRPC_STATUS], "5");
        }
    }

    /// A message of any length makes trailers that common clients accept.
    #[test]
    fn long_messages_are_cut() {
        for message in ["\0".repeat(1 << 20), "€".repeat(1 << 20)] {
            let trailers = trailers(&CallError::new(Code::Internal, "X", message));
            let bytes: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
            assert!(bytes < 8 << 10, "{bytes}");
        }
    }

    /// The details decode to what the error said.
    #[test]
    fn details_decode() {
        let error = CallError {
            code: Code::Unavailable,
            reason: "NOT_LEADER",
            message: "elsewhere".into(),
            definite: false,
            retry_after: Some(Duration::from_millis(1_250)),
            leader: Some("10.0.0.1:7400".into()),
            behind_definite: true,
        };
        let trailers = trailers(&error);
        let bytes = BASE64_STANDARD_NO_PAD.decode(&trailers[GRPC_STATUS_DETAILS]).unwrap();
        let status = rpc::Status::decode(&bytes[..]).unwrap();
        assert_eq!((status.code, status.message.as_str()), (14, "elsewhere"));
        assert_eq!(status.details[0].type_url, "type.googleapis.com/google.rpc.ErrorInfo");
        let info = rpc::ErrorInfo::decode(&status.details[0].value[..]).unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("NOT_LEADER", "ringlog"));
        assert_eq!(info.metadata["definite"], "false");
        assert_eq!(info.metadata["behind_definite"], "true");
        assert_eq!(info.metadata["leader"], "10.0.0.1:7400");
        assert_eq!(status.details[1].type_url, "type.googleapis.com/google.rpc.RetryInfo");
        let retry = rpc::RetryInfo::decode(&status.details[1].value[..]).unwrap();
        assert_eq!(retry.retry_delay, Some(prost_types::Duration { seconds: 1, nanos: 250_000_000 }));
    }
}
