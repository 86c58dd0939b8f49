//! What a stock client is like, drawn for each of its connections.

use std::{cell::Cell, fmt, time::Duration};

use crate::sim::{random, socket::Wire};

/// A stream of so many messages floods.
const FLOOD_MESSAGES: u64 = 10_000;

/// What the stock clients of a run do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StockLoad {
    /// Clients; each has one connection at a time.
    pub clients: u64,
    /// Most streams of a connection.
    pub streams_max: u64,
    /// Most messages of a stream.
    pub messages_max: u64,
    /// Messages that a client sends in the run; then only a few on each connection.
    pub messages_total: u64,
}

impl fmt::Display for StockLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StockLoad { clients, streams_max, messages_max, .. } = self;
        write!(f, "{clients} stock clients of {streams_max} streams of {messages_max} messages")
    }
}

/// A call's method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Produce,
    ProduceStream,
    Consume,
    ConsumeStream,
}

impl Method {
    pub(super) fn name(self) -> &'static str {
        match self {
            Method::Produce => "produce",
            Method::ProduceStream => "produce stream",
            Method::Consume => "consume",
            Method::ConsumeStream => "consume stream",
        }
    }

    pub(super) fn path(self) -> &'static str {
        match self {
            Method::Produce => "http://ringlog/ringlog.v1.Log/Produce",
            Method::ProduceStream => "http://ringlog/ringlog.v1.Log/ProduceStream",
            Method::Consume => "http://ringlog/ringlog.v1.Log/Consume",
            Method::ConsumeStream => "http://ringlog/ringlog.v1.Log/ConsumeStream",
        }
    }
}

/// What a client does on one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Habit {
    pub(super) wire: Wire,
    /// HTTP/2 windows at the start; none: h2's default.
    pub(super) stream_window: Option<u32>,
    pub(super) connection_window: Option<u32>,
    /// Nothing is read before that, and then the windows are opened widely; none: everything is read from the start.
    pub(super) opens_after: Option<Duration>,
    /// Between two reads, while the windows are not wide.
    pub(super) read_pause: Option<Duration>,
    pub(super) calls: u64,
    /// Messages of each stream.
    pub(super) messages: u64,
    /// Most bytes of padding in a message.
    pub(super) padding_max: u64,
    pub(super) ping_interval: Option<Duration>,
    /// The connection is reset then.
    pub(super) break_off: Option<Duration>,
}

impl Habit {
    pub(super) fn draw(load: StockLoad, messages_left: &Cell<u64>, dice: &Cell<u64>) -> Habit {
        let one_in = |count: u64| random(dice).is_multiple_of(count);
        let ms_to = |most: u64| Duration::from_millis(1 + random(dice) % most);
        let calls = 1 + random(dice) % load.streams_max;
        // Who reads late has much to read.
        let late = one_in(3);
        let asked = if late { load.messages_max } else { 1 + random(dice) % load.messages_max };
        let messages = if asked * calls <= messages_left.get() { asked } else { 3 };
        messages_left.set(messages_left.get().saturating_sub(messages * calls));
        Habit {
            wire: Wire {
                delay_us: [20, 100, 2_000][(random(dice) % 3) as usize],
                jitter_us: [5, 50, 500][(random(dice) % 3) as usize],
                buffer_bytes: [4 << 10, 64 << 10, 256 << 10][(random(dice) % 3) as usize],
            },
            stream_window: [None, None, Some(0), Some(1_000), Some(1 << 20), Some(16 << 20)]
                [(random(dice) % 6) as usize],
            connection_window: [None, None, Some(1 << 20), Some(16 << 20)][(random(dice) % 4) as usize],
            opens_after: late.then(|| ms_to(3_000)),
            read_pause: one_in(4).then(|| ms_to(20)),
            calls,
            messages,
            padding_max: [1, 10, 50, 50][(random(dice) % 4) as usize],
            ping_interval: one_in(3).then(|| ms_to(500)),
            break_off: one_in(6).then(|| ms_to(2_000)),
        }
        .with_windows_that_open()
    }

    /// Nothing odd, and no calls of its own.
    pub(super) fn plain() -> Habit {
        Habit {
            wire: Wire { delay_us: 100, jitter_us: 50, buffer_bytes: 64 << 10 },
            stream_window: None,
            connection_window: None,
            opens_after: None,
            read_pause: None,
            calls: 0,
            messages: 0,
            padding_max: 50,
            ping_interval: None,
            break_off: None,
        }
    }

    /// A window of 0 lets nothing through before it is opened.
    fn with_windows_that_open(self) -> Habit {
        let opens_after = match self.stream_window {
            Some(0) => self.opens_after.or(Some(Duration::from_millis(300))),
            _ => self.opens_after,
        };
        Habit { opens_after, ..self }
    }

    /// Sends as many messages as windows allow, and does not wait for what becomes of them.
    pub(super) fn floods(&self) -> bool {
        self.messages >= FLOOD_MESSAGES
    }

    /// Reads from the start, and leaves its windows as they are.
    pub(super) fn is_eager(&self) -> bool {
        self.opens_after.is_none()
    }
}
