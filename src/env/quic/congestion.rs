//! Congestion control: Cubic, whose gate stands open for the last packet of a connection.
//!
//! quinn-proto up to 0.11.19 holds CONNECTION_CLOSE back while the congestion window is full, and after `close` nothing
//! empties it any more: a peer that is sent much would learn of the end only by its time-out (quinn issue 2785, fixed
//! after that version). So the window is boundless from the moment of closing on. Nothing but that packet is sent then.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};

/// Says that all connections of an endpoint are being closed. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Ending(Arc<AtomicBool>);

impl Ending {
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes the controllers of an endpoint's connections.
pub(super) struct Gates {
    pub(super) cubic: Arc<CubicConfig>,
    pub(super) endpoint: Ending,
}

impl ControllerFactory for Gates {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let cubic = self.cubic.clone().build(now, mtu);
        Box::new(Gate { cubic, endpoint: self.endpoint.clone(), connection: Ending::default() })
    }
}

struct Gate {
    cubic: Box<dyn Controller>,
    endpoint: Ending,
    connection: Ending,
}

/// Closes a connection of ours and tells the peer, however much is under way.
pub(super) fn close(quic: &quinn::Connection, code: u32, why: &str) {
    if let Ok(gate) = quic.congestion_state().into_any().downcast::<Gate>() {
        // What we hold is a copy of the controller, with the same flag.
        gate.connection.begin();
    }
    quic.close(code.into(), why.as_bytes());
}

impl Controller for Gate {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &quinn_proto::RttEstimator) {
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_packet_num_acked: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.cubic.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.cubic.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.endpoint.has_begun() || self.connection.has_begun() {
            // Above 32 bits quinn does not pace either.
            return 1 << 40;
        }
        self.cubic.window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        let (cubic, endpoint) = (self.cubic.clone_box(), self.endpoint.clone());
        Box::new(Gate { cubic, endpoint, connection: self.connection.clone() })
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
