//! `Log.WatchServers`: the topology now, and again when it has changed. What changes together is told together, and a client
//! that does not read gets the newest state when it does, not all that were in between.

use std::future::Future;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::env;
use crate::env::Env;
use crate::frontend::CallError;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::call;
use crate::frontend::grpc::call::Call;
use crate::frontend::grpc::stream::Stop;
use crate::proto::ringlog::v1;

/// Changes within this time are told as one.
const TOGETHER: Duration = Duration::from_millis(100);

/// How often it is looked for changes of which nothing here is told: leaders of shards without a replica here, addresses.
const LOOK: Duration = Duration::from_secs(1);

/// Tells until the client ends it.
pub(super) async fn stream<E: Env>(call: &mut Call<E>) -> Result<(), Stop> {
    let request: v1::WatchServersRequest = call::decode(call.only().await?)?;
    call.responses.open()?;
    let frontend = call.frontend.clone();
    let mut changes = frontend.watch_topology();
    let mut told = None;
    loop {
        let servers = call.wait(frontend.get_servers(&request.topics)).await?;
        let v1::GetServersResponse { cluster_id, servers, topics } = servers;
        let now = v1::WatchServersResponse { cluster_id, servers, topics };
        if told.as_ref() != Some(&now) {
            call.send(Body::encode(&now)).await?;
            told = Some(now);
        }
        pause(call, env::sleep::<E>(TOGETHER)).await?;
        pause(call, async {
            tokio::select! {
                () = changes.changed() => {}
                () = env::sleep::<E>(LOOK) => {}
            }
        })
        .await?;
    }
}

/// Waits, unless the client or the node goes.
async fn pause<E: Env>(call: &mut Call<E>, until: impl Future<Output = ()>) -> Result<(), Stop> {
    let frontend = call.frontend.clone();
    let (mut until, mut shutdown) = (pin!(until), pin!(frontend.shutting_down()));
    poll_fn(|cx| {
        if shutdown.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(CallError::stopping(false).into()));
        }
        match until.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Ok(())),
            Poll::Pending => call.poll_stop(cx).map(Err),
        }
    })
    .await
}
