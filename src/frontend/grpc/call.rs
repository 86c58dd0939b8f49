//! One request: is it gRPC, which method, until when; then that method, then its status.

use std::future::Future;
use std::future::poll_fn;
use std::pin::Pin;
use std::pin::pin;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use h2::RecvStream;
use http::HeaderMap;
use http::Request;
use http::StatusCode;
use http::header::ALLOW;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use prost::Message;

use crate::env;
use crate::env::Env;
use crate::format::grpc;
use crate::format::grpc::Encoding;
use crate::frontend::CallError;
use crate::frontend::Code;
use crate::frontend::Frontend;
use crate::frontend::grpc::admin;
use crate::frontend::grpc::answers::Held;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::cluster;
use crate::frontend::grpc::consume;
use crate::frontend::grpc::health;
use crate::frontend::grpc::method::Method;
use crate::frontend::grpc::produce;
use crate::frontend::grpc::reflection;
use crate::frontend::grpc::status;
use crate::frontend::grpc::stream::Requests;
use crate::frontend::grpc::stream::Responses;
use crate::frontend::grpc::stream::Stop;
use crate::frontend::grpc::timeout;
use crate::frontend::grpc::watch;

/// A call that passed the checks.
pub(super) struct Call<E: Env> {
    pub(super) frontend: Frontend<E>,
    pub(super) requests: Requests,
    pub(super) responses: Responses,
    /// On `Env::monotonic_us`.
    pub(super) deadline_us: Option<u64>,
    /// Whether it is certain, as yet, that the call changes nothing.
    pub(super) definite: bool,
    /// Made when the call first has to wait.
    alarm: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// Answers one request. Dropping the future cancels the call.
///
/// What is checked is checked at once, and no part of the future: it holds no more than what a call needs while it waits.
pub(super) fn serve<E: Env>(
    frontend: Frontend<E>,
    request: Request<RecvStream>,
    responses: Responses,
) -> impl Future<Output = ()> {
    let Some((method, mut call)) = begin(frontend, request, responses) else {
        return Either::Left(std::future::ready(()));
    };
    Either::Right(async move {
        match call.run(method).await {
            Ok(()) => {
                method.count(Code::Ok);
                call.responses.finish(Ok(()));
            }
            Err(Stop::Error(error)) => {
                method.count(error.code);
                call.responses.finish(Err(&error));
            }
            Err(Stop::Gone) => method.count(Code::Cancelled),
        }
    })
}

/// `None`: it was answered.
fn begin<E: Env>(
    frontend: Frontend<E>,
    request: Request<RecvStream>,
    responses: Responses,
) -> Option<(Method, Call<E>)> {
    // The head is up to 16 KiB as sent, and several times that as kept: it is dropped here.
    let (head, body) = request.into_parts();
    if head.method != http::Method::POST {
        responses.finish_http(StatusCode::METHOD_NOT_ALLOWED, ALLOW, "POST");
        return None;
    }
    if !is_grpc(&head.headers) {
        let accept = http::HeaderName::from_static("accept-post");
        responses.finish_http(StatusCode::UNSUPPORTED_MEDIA_TYPE, accept, "application/grpc");
        return None;
    }
    let method = Method::from_path(head.uri.path());
    let (encoding, timeout_us) = match check(method, &head) {
        Ok(checked) => checked,
        Err(error) => {
            method.count(error.code);
            responses.finish(Err(&error));
            return None;
        }
    };
    let bytes_max = method.message_bytes_max(frontend.limits().message_bytes_max);
    let call = Call {
        requests: Requests::new(body, encoding, bytes_max, responses.received()),
        responses,
        deadline_us: timeout_us.map(|us| E::monotonic_us().saturating_add(us)),
        definite: true,
        alarm: None,
        frontend,
    };
    Some((method, call))
}

/// "application/grpc", with "+proto" or parameters. (`te` is not asked for: it only tells proxies what we do anyway.)
fn is_grpc(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    match value.strip_prefix(b"application/grpc") {
        Some(rest) => {
            rest.strip_prefix(b"+proto").unwrap_or(rest).first().is_none_or(|byte| matches!(byte, b';' | b' '))
        }
        None => false,
    }
}

fn check(method: Method, head: &Parts) -> Result<(Encoding, Option<u64>), CallError> {
    if method == Method::Unknown {
        let message = format!("there is no method {}; reflection lists what there is", head.uri.path());
        return Err(CallError::new(Code::Unimplemented, "UNKNOWN_METHOD", message));
    }
    let encoding = head.headers.get("grpc-encoding").map_or(&b"identity"[..], |value| value.as_bytes());
    let encoding = Encoding::from_name(encoding).ok_or_else(|| {
        let name = String::from_utf8_lossy(encoding);
        let message = format!("the grpc-encoding {name:?} is not supported; use one of {}", grpc::ENCODINGS);
        CallError::new(Code::Unimplemented, "UNKNOWN_ENCODING", message)
    })?;
    let timeout_us = match head.headers.get("grpc-timeout") {
        None => None,
        Some(value) => timeout::parse(value.as_bytes()).map_err(|_| {
            let message = format!("the grpc-timeout {value:?} is not 1 to 8 digits and one of H, M, S, m, u, n");
            CallError::invalid("BAD_TIMEOUT", message)
        })?,
    };
    Ok((encoding, timeout_us))
}

impl<E: Env> Call<E> {
    async fn run(&mut self, method: Method) -> Result<(), Stop> {
        // All but the busiest are boxed: each call of a connection takes as much memory as the largest.
        match method {
            Method::Produce => produce::unary(self).await,
            Method::ProduceStream => Box::pin(produce::stream(self)).await,
            Method::Consume => Box::pin(consume::unary(self)).await,
            Method::ConsumeStream => Box::pin(consume::stream(self)).await,
            Method::HealthCheck => health::check(self).await,
            Method::HealthWatch => Box::pin(health::watch(self)).await,
            Method::Reflect | Method::ReflectAlpha => Box::pin(reflection::stream(self)).await,
            Method::GetServers
            | Method::CreateTopic
            | Method::ListTopics
            | Method::DescribeTopic
            | Method::DeleteTopic
            | Method::TrimTopic
            | Method::Unknown => Box::pin(admin::unary(self, method)).await,
            Method::WatchServers => Box::pin(watch::stream(self)).await,
            Method::DescribeCluster
            | Method::CreateJoinToken
            | Method::DrainNode
            | Method::RemoveNode
            | Method::Rebalance
            | Method::TransferLeader => Box::pin(cluster::unary(self, method)).await,
        }
    }

    /// The client's next message; `None` after its last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Stop> {
        poll_fn(|cx| match self.requests.poll_next(cx) {
            Poll::Pending => self.poll_stop(cx).map(Err),
            ready => ready,
        })
        .await
    }

    /// The one message of a call that has one.
    pub(super) async fn only(&mut self) -> Result<Bytes, Stop> {
        // The specification: "Request cardinality violation" is UNIMPLEMENTED.
        let wrong = |message| CallError::new(Code::Unimplemented, "REQUEST_COUNT", message);
        let message =
            self.next().await?.ok_or_else(|| wrong("the method takes one request message; there was none"))?;
        if !self.requests.is_ended() && self.next().await?.is_some() {
            return Err(wrong("the method takes one request message; there were more").into());
        }
        match self.deadline_us {
            Some(deadline_us) if deadline_us <= E::monotonic_us() => Err(status::deadline(true).into()),
            _ => Ok(message),
        }
    }

    /// Waits for `future`, but not beyond the deadline, nor for a client that is gone.
    pub(super) async fn wait<T>(&mut self, future: impl Future<Output = Result<T, CallError>>) -> Result<T, Stop> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result.map_err(Stop::Error)),
            Poll::Pending => self.poll_stop(cx).map(Err),
        })
        .await
    }

    /// Sends a message, as fast as the client takes it; memory is held for it meanwhile.
    pub(super) async fn send(&mut self, body: Body) -> Result<(), Stop> {
        let mut body = self.responses.hold(body)?;
        poll_fn(|cx| match self.responses.poll_send(cx, &mut body) {
            Poll::Pending => self.poll_stop(cx).map(Err),
            ready => ready,
        })
        .await
    }

    /// Sends the only message of a call.
    pub(super) async fn reply(&mut self, mut body: Body) -> Result<(), Stop> {
        if self.responses.send_small(&mut body)? { Ok(()) } else { self.send(body).await }
    }

    /// Waits for room for an answer of up to `wanted` bytes.
    pub(super) async fn room(&mut self, wanted: usize) -> Result<Held, Stop> {
        let answers = self.responses.answers().clone();
        match answers.take(wanted) {
            Some(held) => Ok(held),
            None => self.wait(async { Ok(answers.room(wanted).await) }).await,
        }
    }

    /// A call with one request and one response.
    pub(super) async fn unary<Q, R, F>(&mut self, answer: impl FnOnce(Q) -> F) -> Result<(), Stop>
    where
        Q: Message + Default,
        R: Message,
        F: Future<Output = Result<R, CallError>>,
    {
        let request = decode(self.only().await?)?;
        let response = self.wait(answer(request)).await?;
        self.reply(Body::encode(&response)).await
    }

    /// Ready when there is no more reason to go on: the client is gone, or the deadline has passed. Not to be polled
    /// again then. What waits for anything else asks here, too, each time; it is also what takes in the client's messages
    /// meanwhile.
    pub(super) fn poll_stop(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        self.requests.hold(cx);
        if self.responses.poll_gone(cx).is_ready() {
            return Poll::Ready(Stop::Gone);
        }
        let Some(deadline_us) = self.deadline_us else { return Poll::Pending };
        let alarm = self.alarm.get_or_insert_with(|| {
            let left_us = deadline_us.saturating_sub(E::monotonic_us());
            Box::pin(env::sleep::<E>(Duration::from_micros(left_us)))
        });
        alarm.as_mut().poll(cx).map(|()| Stop::Error(status::deadline(self.definite)))
    }
}

/// Decodes a request.
pub(super) fn decode<Q: Message + Default>(message: Bytes) -> Result<Q, CallError> {
    Q::decode(message).map_err(|error| {
        let message = format!("the request is not what its method takes: {error}");
        CallError::invalid("MALFORMED_REQUEST", message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimEnv;

    /// A call that waits takes a few KiB, as there may be 16,384 of them, and more, on a reactor.
    #[test]
    fn calls_are_small() {
        fn bytes<F: Future>(_: impl FnOnce(&'static mut Call<SimEnv>) -> F) -> usize {
            size_of::<F>()
        }
        fn bytes_served<F: Future>(_: impl FnOnce(Frontend<SimEnv>, Request<RecvStream>, Responses) -> F) -> usize {
            size_of::<F>()
        }
        let sizes = [
            ("serve", bytes_served(serve)),
            ("consume", bytes(consume::unary)),
            ("consume stream", bytes(consume::stream)),
            ("produce", bytes(produce::unary)),
            ("produce stream", bytes(produce::stream)),
            ("health", bytes(health::watch)),
            ("reflection", bytes(reflection::stream)),
            ("watch", bytes(watch::stream)),
        ];
        assert!(sizes.iter().all(|(_, bytes)| *bytes <= 4 << 10), "{sizes:?}");
    }

    /// What counts as gRPC over protobuf, and what does not.
    #[test]
    fn content_types() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc+proto; a=b", true),
            ("application/grpc+json", false),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
