//! `grpc.health.v1.Health`. All services of a node serve, or none does.

use std::future::Future;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::env;
use crate::env::Env;
use crate::frontend::CallError;
use crate::frontend::Code;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::call;
use crate::frontend::grpc::call::Call;
use crate::frontend::grpc::stream::Stop;
use crate::proto::grpc::health::v1::HealthCheckRequest;
use crate::proto::grpc::health::v1::HealthCheckResponse;
use crate::proto::grpc::health::v1::health_check_response::ServingStatus;

/// "" is the node as a whole.
const SERVICES: [&str; 3] = ["", "ringlog.v1.Log", "ringlog.v1.Admin"];

/// How often a watched status is looked at; a shutdown is told at once.
const LOOK: Duration = Duration::from_secs(1);

/// `Check`: an unknown service is NOT_FOUND.
pub(super) async fn check<E: Env>(call: &mut Call<E>) -> Result<(), Stop> {
    let frontend = call.frontend.clone();
    call.unary(async |request: HealthCheckRequest| {
        if !SERVICES.contains(&request.service.as_str()) {
            let message = format!("there is no service {:?}", request.service);
            return Err(CallError::new(Code::NotFound, "UNKNOWN_SERVICE", message));
        }
        Ok(response(serving(frontend.is_serving())))
    })
    .await
}

/// `Watch`: the status now, and each time it changes. An unknown service is SERVICE_UNKNOWN, and
/// never becomes known.
pub(super) async fn watch<E: Env>(call: &mut Call<E>) -> Result<(), Stop> {
    let request: HealthCheckRequest = call::decode(call.only().await?)?;
    let frontend = call.frontend.clone();
    let known = SERVICES.contains(&request.service.as_str());
    let mut shutdown = Box::pin(frontend.shutting_down());
    let mut told = None;
    let mut ending = false;
    loop {
        let now = match known {
            true => serving(!ending && frontend.is_serving()),
            false => ServingStatus::ServiceUnknown,
        };
        if told != Some(now) {
            call.send(Body::encode(&response(now))).await?;
            told = Some(now);
        }
        if ending {
            return Err(CallError::stopping(false).into());
        }
        let mut look = pin!(env::sleep::<E>(LOOK));
        ending = poll_fn(|cx| {
            if shutdown.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(true));
            }
            match look.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Ok(false)),
                Poll::Pending => call.poll_stop(cx).map(Err),
            }
        })
        .await?;
    }
}

fn serving(is_serving: bool) -> ServingStatus {
    if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}
