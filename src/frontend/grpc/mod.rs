//! gRPC over HTTP/2: one connection's requests to calls of [`Frontend`], and their answers back.
//!
//! ```text
//! socket      reads and writes of the byte stream below (TCP, or the simulator's), coalesced
//! connection  one connection: accept, run calls, flush; keepalive, handshake, going away
//! call        one request: its checks, its method, its deadline and cancellation
//! stream      messages in (flow control, size limits) and out (few frames, back-pressure)
//! inflate     compressed messages, in steps
//! unread      bytes of a stream before they are wanted
//! received    how many bytes of messages may be here in part, or wait
//! window      how much a client may send ahead
//! share       how many calls a connection may have, as all of them take memory
//! answers     how many bytes of answers may wait for clients
//! holders     which connections hold memory for long
//! scan        frames that bring nothing
//! stranger    clients that speak no HTTP/2
//! small_frames  what our small frames cost the client
//! status      errors to trailers
//! timeout     the grpc-timeout header
//! method      paths, and the counters of each
//! produce, consume, watch, admin, cluster, health, reflection: the services
//! ```
//!
//! Promises: a client that breaks HTTP/2 or gRPC loses its call or its connection, and nobody else's;
//! memory per connection is bounded by windows and limits, whatever the client sends or does not read. Does not
//! decide what a call may do: that is `frontend`'s.

mod admin;
pub mod answers;
mod body;
mod call;
mod cluster;
mod connection;
mod consume;
mod health;
mod holders;
mod inflate;
pub mod lane;
mod method;
mod produce;
pub mod received;
mod reflection;
mod scan;
mod share;
mod small_frames;
pub(in crate::frontend) mod socket;
mod status;
mod stranger;
mod stream;
#[cfg(test)]
mod tests;
mod timeout;
mod turn;
mod unread;
mod watch;
mod window;

use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;

use crate::env::Env;
use crate::frontend::Frontend;
use crate::reactor::seats::Seat;

/// h2's own default; longer only costs memory.
pub const RESET_MEMORY: Duration = Duration::from_secs(1);

/// Serves one client connection over a byte stream (TCP, or the simulator's) until it ends, breaks the protocol, or has finished its calls after
/// the node began to shut down, or since it has to leave its `seat`. Never fails: what goes wrong is the client's to see.
///
/// Dropping the future closes the connection at once; produce requests that were already passed on may
/// still be written.
///
/// `reset_memory`: how long h2 remembers a stream that was reset, so that what the client sent before it knew is no
/// error. h2 measures it by the machine's clock, past `Env`: a node takes [`RESET_MEMORY`], the simulator no end (the
/// number of such streams is bounded, too).
pub async fn serve_connection<E: Env, S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    frontend: Frontend<E>,
    seat: Seat,
    reset_memory: Duration,
) {
    connection::serve(stream, frontend, seat, reset_memory).await;
}
