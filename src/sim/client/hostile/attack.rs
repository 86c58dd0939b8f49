//! What hostile clients do.

use std::{cell::Cell, time::Duration};

use super::{
    PROMPT, Session,
    frame::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, INITIAL_WINDOW_SIZE, PING, PREFACE, PRIORITY, SETTINGS,
        UNKNOWN, WINDOW_UPDATE, frame, headers, literal, message, reset, setting,
    },
};
use crate::{
    format::grpc,
    limits::{MESSAGE_BYTES_MAX, STREAMS_PER_CONNECTION_MAX},
    proto::ringlog::v1::ConsumeStreamRequest,
    sim::random,
};

const PRODUCE: &str = "/ringlog.v1.Log/Produce";
const PRODUCE_STREAM: &str = "/ringlog.v1.Log/ProduceStream";
const CONSUME_STREAM: &str = "/ringlog.v1.Log/ConsumeStream";

/// Idle frames of a flood, at least: several times what a node takes of those that bring nothing, its own answers counted.
const FLOOD_FRAMES: usize = 60_000;

/// Records that one connection may write, so that a run stays short.
const REQUESTS_MAX: u64 = 2_400;

/// How long anything is tried to be sent to a node that does not read.
const SEND_MAX: Duration = Duration::from_secs(2);

/// See the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    ClosedWindows,
    ByteByByte,
    Unfinished,
    Flood(u8),
    MixedFlood(u8),
    HalfHeaders,
    GoAway,
    Resets,
    ManyStreams,
    PastTheWindow,
    Garbage,
    SlowPreface,
}

impl Attack {
    pub(super) fn draw(dice: &Cell<u64>) -> Attack {
        let idle = [PING, SETTINGS, WINDOW_UPDATE, PRIORITY, UNKNOWN];
        match random(dice) % 16 {
            0..=2 => Attack::ClosedWindows,
            3 => Attack::ByteByByte,
            4 => Attack::MixedFlood(idle[2 + (random(dice) % 3) as usize]),
            5 => Attack::Unfinished,
            6 => Attack::Flood(idle[(random(dice) % 5) as usize]),
            7 => Attack::HalfHeaders,
            8 | 9 => Attack::GoAway,
            10 => Attack::Resets,
            11 => Attack::ManyStreams,
            12 => Attack::PastTheWindow,
            13 | 14 => Attack::Garbage,
            _ => Attack::SlowPreface,
        }
    }

    /// As in coverage.
    pub(super) fn name(self) -> &'static str {
        match self {
            Attack::ClosedWindows => "windows stay closed",
            Attack::ByteByByte => "bytes in frames of their own",
            Attack::Unfinished => "unfinished messages",
            Attack::Flood(PING) => "flood of PING",
            Attack::Flood(SETTINGS) => "flood of SETTINGS",
            Attack::Flood(WINDOW_UPDATE) => "flood of WINDOW_UPDATE",
            Attack::Flood(PRIORITY) => "flood of PRIORITY",
            Attack::Flood(_) => "flood of unknown frames",
            Attack::MixedFlood(_) => "flood with a byte of a message now and then",
            Attack::HalfHeaders => "half a header block",
            Attack::GoAway => "GOAWAY in the middle",
            Attack::Resets => "resets at once",
            Attack::ManyStreams => "too many streams",
            Attack::PastTheWindow => "more than the window",
            Attack::Garbage => "any frames",
            Attack::SlowPreface => "slow preface",
        }
    }

    /// Whether the client reads what comes: always where an answer is expected.
    pub(super) fn reads(self, dice: &Cell<u64>) -> bool {
        self == Attack::ByteByByte || !random(dice).is_multiple_of(3)
    }
}

/// One that brings nothing.
fn idle_frame(kind: u8) -> Vec<u8> {
    match kind {
        PING => frame(PING, 0, 0, b"12345678"),
        SETTINGS => frame(SETTINGS, 0, 0, &[]),
        WINDOW_UPDATE => frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
        PRIORITY => frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]),
        _ => frame(UNKNOWN, 0, 0, b"x"),
    }
}

impl Session<'_> {
    pub(super) async fn act(&mut self, attack: Attack) {
        if attack == Attack::SlowPreface {
            return self.slow_preface().await;
        }
        let first =
            if attack == Attack::ClosedWindows { setting(INITIAL_WINDOW_SIZE, 0) } else { frame(SETTINGS, 0, 0, &[]) };
        self.send(&[PREFACE, &first].concat()).await;
        match attack {
            Attack::ClosedWindows => self.closed_windows().await,
            Attack::ByteByByte => self.byte_by_byte().await,
            Attack::Unfinished => self.unfinished().await,
            Attack::Flood(kind) => self.flood(&idle_frame(kind)).await,
            Attack::MixedFlood(kind) => self.mixed_flood(kind).await,
            Attack::HalfHeaders => self.half_headers().await,
            Attack::GoAway => self.go_away().await,
            Attack::Resets => self.resets().await,
            Attack::ManyStreams => self.many_streams().await,
            Attack::PastTheWindow => self.past_the_window().await,
            Attack::Garbage => self.garbage().await,
            Attack::SlowPreface => {}
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> bool {
        self.raw.send(bytes, SEND_MAX).await
    }

    fn below(&self, count: u64) -> u64 {
        random(self.dice) % count
    }

    /// Requests of one stream, each in a DATA frame.
    fn requests(&mut self, stream: u32, count: u64) -> Vec<u8> {
        let mut bytes = headers(stream, PRODUCE_STREAM, END_HEADERS);
        for _ in 0..count {
            let request = self.request();
            bytes.extend(frame(DATA, 0, stream, &message(&request)));
        }
        bytes
    }

    /// A call that follows a shard from its start.
    fn follow(&self, stream: u32) -> Vec<u8> {
        let (topic, shard) = (self.target.topic.to_string(), self.target.shard);
        let request = ConsumeStreamRequest { topic, shard, ..ConsumeStreamRequest::default() };
        [headers(stream, CONSUME_STREAM, END_HEADERS), frame(DATA, END_STREAM, stream, &message(&request))].concat()
    }

    /// Streams that may be answered nothing, for as long as the client likes.
    async fn closed_windows(&mut self) {
        let (producers, consumers) = (1 + self.below(8), self.below(60));
        let each = [3, REQUESTS_MAX / producers][self.below(2) as usize];
        let mut stream = 1;
        for _ in 0..producers {
            let requests = self.requests(stream, each);
            self.send(&requests).await;
            stream += 2;
        }
        for _ in 0..consumers {
            self.send(&self.follow(stream)).await;
            stream += 2;
        }
        self.hold_ms(3_000).await;
    }

    /// A whole request, whose bytes have a frame each: as legal as it is odd.
    async fn byte_by_byte(&mut self) {
        let bytes = message(&self.request());
        let mut frames = headers(1, PRODUCE, END_HEADERS);
        for (at, byte) in bytes.iter().enumerate() {
            let flags = if at + 1 == bytes.len() { END_STREAM } else { 0 };
            frames.extend(frame(DATA, flags, 1, &[*byte]));
        }
        if !self.send(&frames).await {
            // The client has given up, and what it asked for is not whole.
            return;
        }
        self.raw.hold(PROMPT, Some(1)).await;
        match self.raw.message(1) {
            Some(answer) => self.acknowledged(answer),
            None => self.problem("a request in many frames is not answered"),
        }
    }

    /// Messages of which a part comes, on some streams.
    async fn unfinished(&mut self) {
        let prefix = grpc::prefix(MESSAGE_BYTES_MAX);
        for number in 0..1 + self.below(64) as u32 {
            let stream = 2 * number + 1;
            let part = vec![0x0a; self.below(2_000) as usize];
            let path = if self.below(2) == 0 { PRODUCE } else { PRODUCE_STREAM };
            let begun =
                [headers(stream, path, END_HEADERS), frame(DATA, 0, stream, &prefix), frame(DATA, 0, stream, &part)];
            self.send(&begun.concat()).await;
        }
        self.hold_ms(3_000).await;
    }

    /// Frames that bring nothing, again and again, between a few bytes of a message.
    async fn mixed_flood(&mut self, kind: u8) {
        let prefix = grpc::prefix(MESSAGE_BYTES_MAX);
        let begun = [headers(1, PRODUCE_STREAM, END_HEADERS), frame(DATA, 0, 1, &prefix)];
        self.send(&begun.concat()).await;
        self.flood(&[frame(DATA, 0, 1, &[0x0a]), idle_frame(kind).repeat(8)].concat()).await;
    }

    /// Frames that bring nothing, or next to nothing, again and again.
    async fn flood(&mut self, frames: &[u8]) {
        let many = frames.repeat(1_000);
        for _ in 0..FLOOD_FRAMES / 1_000 {
            if !self.send(&many).await {
                break;
            }
        }
        let reads = self.raw.reads();
        self.raw.hold(PROMPT, None).await;
        if reads && !self.raw.is_over() {
            self.problem("a flood is not noticed");
        }
    }

    /// A header block that never ends, or in the middle of which another stream's frame comes.
    async fn half_headers(&mut self) {
        self.send(&headers(1, PRODUCE, 0)).await;
        match self.below(3) {
            0 => {}
            1 => {
                let more = frame(CONTINUATION, 0, 1, &literal("x", &"y".repeat(100))).repeat(1_000);
                self.send(&more).await;
            }
            _ => {
                self.send(&self.follow(3)).await;
            }
        }
        self.hold_ms(2_000).await;
    }

    /// The client says goodbye while calls are in flight, and goes on or falls silent.
    async fn go_away(&mut self) {
        let requests = self.requests(1, 1 + random(self.dice) % 300);
        self.send(&[requests, self.follow(3)].concat()).await;
        let reason = if self.below(2) == 0 { 0 } else { 0xb_u32 };
        self.send(&frame(GOAWAY, 0, 0, &[0_u32.to_be_bytes(), reason.to_be_bytes()].concat())).await;
        if self.below(2) == 0 {
            let more = self.requests(5, 10);
            self.send(&more).await;
        }
        self.hold_ms(2_000).await;
    }

    /// Calls that are cancelled at once (CVE-2023-44487), before or after their request.
    async fn resets(&mut self) {
        let asks = self.below(2) == 0;
        for number in 0..500 + self.below(2_000) as u32 {
            let stream = 2 * number + 1;
            let call = if asks { self.follow(stream) } else { headers(stream, PRODUCE_STREAM, END_HEADERS) };
            if !self.send(&[call, reset(stream)].concat()).await {
                break;
            }
        }
        self.hold_ms(1_000).await;
    }

    /// More than a connection may have.
    async fn many_streams(&mut self) {
        for number in 0..STREAMS_PER_CONNECTION_MAX + 200 {
            if !self.send(&self.follow(2 * number + 1)).await {
                break;
            }
        }
        self.hold_ms(2_000).await;
        if self.raw.resets() > 0 {
            self.met("refused streams");
        }
    }

    /// DATA without regard to what the node lets through.
    async fn past_the_window(&mut self) {
        let begun = [headers(1, PRODUCE, END_HEADERS), frame(DATA, 0, 1, &grpc::prefix(MESSAGE_BYTES_MAX))].concat();
        self.send(&begun).await;
        let part = frame(DATA, 0, 1, &[0x0a; 16_000]);
        for _ in 0..1 + self.below(250) {
            if !self.send(&part).await {
                break;
            }
        }
        self.hold_ms(1_000).await;
    }

    /// Any frames at all, and some calls to which they might belong.
    async fn garbage(&mut self) {
        let mut stream = 1;
        for _ in 0..1 + self.below(200) {
            let frame = if self.below(4) == 0 {
                stream += 2;
                self.follow(stream)
            } else {
                let payload: Vec<u8> = (0..self.below(60)).map(|_| random(self.dice) as u8).collect();
                let kind = self.below(11) as u8;
                frame(kind, random(self.dice) as u8, self.below(9) as u32, &payload)
            };
            if !self.send(&frame).await {
                break;
            }
        }
        self.hold_ms(1_000).await;
    }

    /// A part of what a client says first, byte by byte.
    async fn slow_preface(&mut self) {
        for byte in &PREFACE[..self.below(PREFACE.len() as u64) as usize] {
            if !self.send(&[*byte]).await {
                break;
            }
            self.hold_ms(100).await;
        }
        self.hold_ms(3_000).await;
    }
}
