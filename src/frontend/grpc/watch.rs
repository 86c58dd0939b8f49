//! `Log.WatchServers`: the topology now, and again when it has changed. What changes together is told together, and a client
//! that does not read gets the newest state when it does, not all that were in between. What is told is made once for all who
//! watch (`servers`): a watcher that looks in vain compares two numbers.

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
use crate::frontend::servers;
use crate::frontend::topology;
use crate::proto::ringlog::v1;

/// How often it is looked for changes of which nothing here is told: leaders of shards without a replica here, addresses.
const LOOK: Duration = Duration::from_secs(1);

/// Changes within this time are told as one.
const TOGETHER: Duration = Duration::from_millis(100);

/// Tells until the client ends it.
pub(super) async fn stream<E: Env>(call: &mut Call<E>) -> Result<(), Stop> {
    let request: v1::WatchServersRequest = call::decode(call.only().await?)?;
    let names = topology::distinct_names(&request.topics)?;
    call.responses.open()?;
    let frontend = call.frontend.clone();
    let mut changes = frontend.watch_topology();
    let (mut version, mut digest) = (None, None);
    let mut since_us = E::monotonic_us();
    loop {
        let latest = match call.wait(frontend.watched_servers(since_us)).await {
            // Many ask for something just now: there is another look.
            Err(Stop::Error(error)) if error.code == Code::ResourceExhausted => None,
            latest => Some(latest?).filter(|latest| version != Some(latest.version)),
        };
        if let Some(latest) = latest {
            let message = match latest.message(&names) {
                Ok(message) => message,
                Err(unknown) => {
                    call.wait(frontend.find_topic(unknown)).await?;
                    since_us = E::monotonic_us();
                    continue;
                }
            };
            version = Some(latest.version);
            drop(latest);
            let before = digest.replace(servers::digest(&message));
            if digest != before {
                call.send(Body::message(&[], message)).await?;
            }
        }
        pause(call, env::sleep::<E>(TOGETHER)).await?;
        let mut has_changed = false;
        pause(call, async {
            tokio::select! {
                () = changes.changed() => has_changed = true,
                () = env::sleep::<E>(LOOK) => {}
            }
        })
        .await?;
        // A change is in what is asked for from now on. What nobody tells of may be a little older.
        let now_us = E::monotonic_us();
        since_us = if has_changed { now_us } else { now_us.saturating_sub(TOGETHER.as_micros() as u64) };
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
