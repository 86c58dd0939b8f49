//! What can go wrong with a call, and what is known about its effect.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::HeaderMap;
use prost::Message;

use crate::{frontend::Code, proto::google::rpc};

/// Why a call has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made. Nothing was sent.
    #[error("cannot reach a Ringlog server at {address}: {cause}; is one running there (`ringlog serve`)?")]
    Unreachable {
        /// Whom we called.
        address: String,
        /// The operating system's words.
        cause: String,
    },
    /// The connection ended in the middle of a call.
    #[error("the connection to {address} was lost: {cause}{}", effect(*.definite))]
    Lost {
        /// Whom we called.
        address: String,
        /// What the connection said.
        cause: String,
        /// It is certain that the call had no effect.
        definite: bool,
    },
    /// No answer came in time. The call may or may not have had its effect.
    #[error("{address} gave no answer within {} ms; the call may still take effect", .after.as_millis())]
    TimedOut {
        /// Whom we called.
        address: String,
        /// How long we waited.
        after: Duration,
    },
    /// The peer is not a Ringlog server, or one that we do not understand.
    #[error("{address} does not answer like a Ringlog server: {what}")]
    Protocol {
        /// Whom we called.
        address: String,
        /// What was wrong.
        what: String,
    },
    /// The server refused.
    #[error("{0}")]
    Status(Box<Status>),
}

/// The server's error, from its trailers.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} ({code:?}{}{})", comma(.reason), effect(*.definite))]
pub struct Status {
    /// Status code.
    pub code: Code,
    /// Constant name of the cause; empty when the peer gave none (proxies).
    pub reason: String,
    /// For people.
    pub message: String,
    /// It is certain that nothing was or will be written.
    pub definite: bool,
    /// Worth another try after that long.
    pub retry_after: Option<Duration>,
    /// Address of the leader, if it is another node.
    pub leader: Option<String>,
    /// In a stream of produces: it is certain, too, that nothing of the requests behind the failed one was or will
    /// be written.
    pub behind_definite: bool,
}

fn comma(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(", {reason}") }
}

fn effect(definite: bool) -> &'static str {
    if definite { "" } else { "; it may still take effect" }
}

impl ClientError {
    /// Whether it is certain that the call had no effect.
    pub fn is_definite(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Lost { definite, .. } => *definite,
            ClientError::TimedOut { .. } | ClientError::Protocol { .. } => false,
            ClientError::Status(status) => status.definite,
        }
    }

    /// The server's status code, if the server answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            ClientError::Status(status) => Some(status.code),
            ClientError::Unreachable { .. }
            | ClientError::Lost { .. }
            | ClientError::TimedOut { .. }
            | ClientError::Protocol { .. } => None,
        }
    }

    /// How long to wait before another try, if the server gave a hint.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ClientError::Status(status) => status.retry_after,
            ClientError::Unreachable { .. }
            | ClientError::Lost { .. }
            | ClientError::TimedOut { .. }
            | ClientError::Protocol { .. } => None,
        }
    }
}

impl Status {
    /// Reads the status from trailers (or from the headers of a trailers-only answer). `None` without a
    /// `grpc-status`; `Some(Ok)` for status 0.
    pub fn from_trailers(trailers: &HeaderMap) -> Option<Result<(), Status>> {
        let number = trailers.get("grpc-status")?.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(2);
        if number == 0 {
            return Some(Ok(()));
        }
        let message = trailers
            .get("grpc-message")
            .map(|value| percent_encoding::percent_decode(value.as_bytes()).decode_utf8_lossy().into_owned());
        let mut status = Status {
            code: code_of(number),
            reason: String::new(),
            message: message.unwrap_or_default(),
            definite: false,
            retry_after: None,
            leader: None,
            behind_definite: false,
        };
        if let Some(details) = trailers.get("grpc-status-details-bin") {
            status.read_details(details.as_bytes());
        }
        if status.message.is_empty() {
            status.message = format!("the server gave status {number} without a message");
        }
        Some(Err(status))
    }

    /// Takes what it knows from the details; unreadable ones are left aside, the status stands without them.
    fn read_details(&mut self, header: &[u8]) {
        let padding = header.iter().rev().take_while(|byte| **byte == b'=').count();
        let Ok(bytes) = STANDARD_NO_PAD.decode(&header[..header.len() - padding]) else { return };
        let Ok(status) = rpc::Status::decode(bytes.as_slice()) else { return };
        for detail in status.details {
            match detail.type_url.rsplit('/').next() {
                Some("google.rpc.ErrorInfo") => {
                    let Ok(info) = rpc::ErrorInfo::decode(detail.value.as_ref()) else { continue };
                    let says = |name| info.metadata.get(name).is_some_and(|value| value == "true");
                    (self.definite, self.behind_definite) = (says("definite"), says("behind_definite"));
                    self.leader = info.metadata.get("leader").cloned();
                    self.reason = info.reason;
                }
                Some("google.rpc.RetryInfo") => {
                    let Ok(info) = rpc::RetryInfo::decode(detail.value.as_ref()) else { continue };
                    self.retry_after = info.retry_delay.and_then(|delay| Duration::try_from(delay).ok());
                }
                Some(_) | None => {}
            }
        }
    }
}

fn code_of(number: i32) -> Code {
    match number {
        0 => Code::Ok,
        1 => Code::Cancelled,
        3 => Code::InvalidArgument,
        4 => Code::DeadlineExceeded,
        5 => Code::NotFound,
        6 => Code::AlreadyExists,
        7 => Code::PermissionDenied,
        8 => Code::ResourceExhausted,
        9 => Code::FailedPrecondition,
        10 => Code::Aborted,
        11 => Code::OutOfRange,
        12 => Code::Unimplemented,
        13 => Code::Internal,
        14 => Code::Unavailable,
        15 => Code::DataLoss,
        16 => Code::Unauthenticated,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailers(fields: &[(&'static str, String)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    fn any(name: &str, message: &impl Message) -> prost_types::Any {
        prost_types::Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
    }

    fn details() -> Vec<u8> {
        let info = rpc::ErrorInfo {
            reason: "SHARD_BUSY".into(),
            domain: "ringlog".into(),
            metadata: [("definite".into(), "true".into()), ("leader".into(), "10.0.0.2:7400".into())].into(),
        };
        let retry = rpc::RetryInfo { retry_delay: Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 }) };
        let details = vec![any("google.rpc.ErrorInfo", &info), any("google.rpc.RetryInfo", &retry)];
        rpc::Status { code: 8, message: "full".into(), details }.encode_to_vec()
    }

    /// A status with details says all that the server knows, with and without base64 padding.
    #[test]
    fn reads_details() {
        for padding in ["", "=", "=="] {
            let encoded = STANDARD_NO_PAD.encode(details()) + padding;
            let status = Status::from_trailers(&trailers(&[
                ("grpc-status", "8".into()),
                ("grpc-message", "shard queue is full: 100%25 %C3%BC".into()),
                ("grpc-status-details-bin", encoded),
            ]));
            let status = status.unwrap().unwrap_err();
            assert_eq!(status.code, Code::ResourceExhausted);
            assert_eq!(status.message, "shard queue is full: 100% ü");
            assert_eq!(status.reason, "SHARD_BUSY");
            assert!(status.definite);
            assert_eq!(status.retry_after, Some(Duration::from_millis(50)));
            assert_eq!(status.leader.as_deref(), Some("10.0.0.2:7400"));
        }
    }

    /// Hostile trailers give a status, never a panic; without details nothing is certain.
    #[test]
    fn survives_nonsense() {
        assert!(Status::from_trailers(&HeaderMap::new()).is_none());
        assert!(Status::from_trailers(&trailers(&[("grpc-status", "0".into())])).unwrap().is_ok());
        for (number, code) in
            [("x", Code::Unknown), ("-1", Code::Unknown), ("99", Code::Unknown), ("14", Code::Unavailable)]
        {
            let fields = [("grpc-status", number.into()), ("grpc-status-details-bin", "!!!".into())];
            let status = Status::from_trailers(&trailers(&fields)).unwrap().unwrap_err();
            assert_eq!((status.code, status.definite), (code, false));
        }
    }

    /// Details of any bytes, behind their base64 (`crate::fuzz`): the status itself stands whatever they are.
    #[test]
    fn fuzz() {
        crate::fuzz::Target::new("client::error::tests::fuzz", [details()], |bytes| {
            let fields = [("grpc-status", "8".into()), ("grpc-status-details-bin", STANDARD_NO_PAD.encode(bytes))];
            let status = Status::from_trailers(&trailers(&fields)).unwrap().unwrap_err();
            assert_eq!(status.code, Code::ResourceExhausted);
            (!status.reason.is_empty()).then_some((status.reason, status.definite, status.retry_after, status.leader))
        })
        .run();
    }
}
