//! What went wrong between nodes, in words that an operator can act on.

use quinn::{ConnectionError, ReadError, TransportErrorCode, WriteError};

use super::{CODE_BUSY, CODE_NOT_MEMBER, CODE_REFUSED, CODE_STOPPING};
use crate::{
    env::net::{Endpoint, NetError},
    ids::NodeId,
};

/// QUIC's codes for what TLS says (RFC 9001, section 4.8): 0x100 and one byte.
const TLS_CODES: std::ops::Range<u64> = 0x100..0x200;

pub(super) fn unreachable(to: &Endpoint, cause: &str) -> NetError {
    NetError::Unreachable { to: to.clone(), cause: cause.to_owned() }
}

pub(super) fn refused(to: &Endpoint, cause: &str) -> NetError {
    NetError::Refused { to: to.clone(), cause: cause.to_owned() }
}

/// A dial that failed: nothing but the handshake was sent.
pub(super) fn dial(to: &Endpoint, error: &ConnectionError) -> NetError {
    if let ConnectionError::ApplicationClosed(close) = error
        && close.error_code == CODE_NOT_MEMBER.into()
    {
        return NetError::NotMember { to: to.clone(), cause: close_words(close) };
    }
    let (is_refusal, cause) = handshake(error);
    if is_refusal { refused(to, &cause) } else { unreachable(to, &cause) }
}

/// Why a handshake failed, and whether that is a refusal by one of the two, which will be the same next time.
pub(super) fn handshake(error: &ConnectionError) -> (bool, String) {
    match error {
        // We refuse. rustls puts its own words before ours.
        ConnectionError::TransportError(own) if is_tls(own.code) => (true, own_words(&own.reason).to_owned()),
        // The peer refuses, and says the same sentence as we would.
        ConnectionError::ConnectionClosed(close) if is_tls(close.error_code) => {
            let reason = String::from_utf8_lossy(&close.reason);
            (true, own_words(&reason).to_owned())
        }
        ConnectionError::ApplicationClosed(close) => (close.error_code == CODE_REFUSED.into(), close_words(close)),
        ConnectionError::ConnectionClosed(close) if close.error_code == TransportErrorCode::CONNECTION_REFUSED => {
            (false, "too many others connect to it at the moment".to_owned())
        }
        ConnectionError::TimedOut => (false, "nobody answers".to_owned()),
        ConnectionError::LocallyClosed => (false, "this node stops".to_owned()),
        ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::Reset
        | ConnectionError::CidsExhausted => (false, error.to_string()),
    }
}

/// A connection that was there.
pub(super) fn lost(node: NodeId, error: &ConnectionError) -> NetError {
    let cause = match error {
        ConnectionError::ApplicationClosed(close) => close_words(close),
        ConnectionError::TimedOut => "nothing was heard any more".to_owned(),
        ConnectionError::Reset => "it was restarted, or has forgotten the connection".to_owned(),
        ConnectionError::LocallyClosed => "closed by this node".to_owned(),
        ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::CidsExhausted => error.to_string(),
    };
    NetError::Lost { node, cause }
}

pub(super) fn write(node: NodeId, error: &WriteError) -> NetError {
    match error {
        WriteError::Stopped(_) => NetError::Ended { node },
        WriteError::ConnectionLost(cause) => lost(node, cause),
        WriteError::ClosedStream | WriteError::ZeroRttRejected => {
            NetError::Lost { node, cause: "this side has ended the stream already".to_owned() }
        }
    }
}

pub(super) fn read(node: NodeId, error: &ReadError) -> NetError {
    match error {
        ReadError::Reset(_) => NetError::Ended { node },
        ReadError::ConnectionLost(cause) => lost(node, cause),
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            NetError::Lost { node, cause: "the stream has failed already".to_owned() }
        }
    }
}

fn is_tls(code: TransportErrorCode) -> bool {
    TLS_CODES.contains(&u64::from(code))
}

/// What we told rustls, without what it put before that.
fn own_words(reason: &str) -> &str {
    match reason.strip_prefix("other error: ") {
        Some(ours) => ours,
        None if reason.is_empty() => "the TLS handshake failed",
        None => reason,
    }
}

fn close_words(close: &quinn::ApplicationClose) -> String {
    let reason = String::from_utf8_lossy(&close.reason);
    if !reason.is_empty() {
        return reason.into_owned();
    }
    let code = close.error_code;
    if code == CODE_STOPPING.into() {
        "the node stops".to_owned()
    } else if code == CODE_BUSY.into() {
        "too many others connect to it at the moment".to_owned()
    } else {
        "the other side has closed it".to_owned()
    }
}
