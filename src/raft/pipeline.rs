//! Append requests to one follower, many on their way: one long-lived stream, answers in the order of the requests.
//!
//! openraft hands a session a stream of requests and wants a stream of answers. A session that begins without entries
//! (a heartbeat, a probe) sends that one as an urgent call of its own; the others go on the follower's stream, which
//! outlives the session if every request on it was answered.
//!
//! A request that only says how far is committed waits for `RAFT_COMMIT_HOLD`: the next entries say it, too, and a record
//! costs each follower one request, not two. A follower's readers see a record that much later when nothing follows it.
//!
//! A follower beyond the majority is sent what gathers (`thrift`): its requests are taken from openraft a moment apart.
//!
//! A session ends by itself when openraft asks for entries that a purge has taken since it began.
//!
//! Bounds: bytes and requests on their way; beyond them no more are taken from openraft. A follower that answers nothing
//! for `RAFT_APPEND_WAIT` while requests are on their way loses the stream.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use openraft::{
    RPCTypes,
    errors::RPCError,
    raft::{AppendEntriesRequest, StreamAppendResult},
    rt::{AsyncRuntime, Instant},
};

use super::{
    Machine,
    members::is_close,
    network::{AskError, Line, PeerOf, append_message, appended, last_of},
    thrift::Turn,
    types::{self, TypeConfig},
};
use crate::{
    env::{Env, net::Priority},
    format::peer::Message,
    ids::LogId,
    limits::{
        APPEND_BYTES_IN_FLIGHT_MAX, RAFT_APPEND_BYTES_BULK, RAFT_APPEND_WAIT, RAFT_APPENDS_IN_FLIGHT_MAX,
        RAFT_COMMIT_HOLD, RAFT_SPARE_HOLD, READ_BYTES,
    },
    peer::{
        PeerError,
        frame::{Frame, FrameKind, FrameReceiver, FrameSender, FrameStream, Received},
    },
};

type Local<T> = Pin<Box<dyn Future<Output = T>>>;
type Item<E, M> = Result<StreamAppendResult<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>>;
type Held<E, M> = (AppendEntriesRequest<TypeConfig<E, M>>, Moment<E>);
type Moment<E> = <<E as Env>::Runtime as AsyncRuntime>::Instant;

/// One run of openraft's requests; a stream of their answers.
pub struct Session<'s, E: Env, M: Machine, S> {
    peer: &'s mut PeerOf<E, M>,
    input: S,
    within: Duration,
    /// A request without entries at the session's begin, sent as a call of its own.
    asking: Option<Local<Item<E, M>>>,
    sending: Sending<E>,
    receiving: Receiving<E>,
    /// A request without entries that waits for one with entries, and since when; and an alarm for its age.
    held: Option<Held<E, M>>,
    hold: Option<Pin<Box<<E::Runtime as AsyncRuntime>::Sleep>>>,
    in_flight: VecDeque<OnItsWay>,
    in_flight_bytes: usize,
    /// Until the next request may be taken for a follower that is behind, or beyond the majority.
    pause: Option<Pin<Box<<E::Runtime as AsyncRuntime>::Sleep>>>,
    turn: Turn,
    /// Of the stream, as last set.
    priority: Priority,
    /// When the last answer came, or the first request was sent after all were answered; and an alarm for its age.
    heard: Moment<E>,
    alarm: Option<Pin<Box<<E::Runtime as AsyncRuntime>::Sleep>>>,
    begun: bool,
    input_done: bool,
    done: bool,
}

// Nothing in it is pinned in place.
impl<E: Env, M: Machine, S> Unpin for Session<'_, E, M, S> {}

/// A request that is not answered.
struct OnItsWay {
    last: Option<LogId>,
    bytes: usize,
}

enum Sending<E: Env> {
    /// There is no stream.
    Nothing,
    Opening(Local<Result<FrameStream<E>, PeerError>>),
    Idle(FrameSender<E>),
    Busy(Local<(FrameSender<E>, Result<(), PeerError>)>),
}

/// What a receive has come to, and the stream back.
type ReceivedBack<E> = (FrameReceiver<E>, Result<Option<Received>, PeerError>);

#[allow(clippy::large_enum_variant, reason = "there is one for each session; a box would be made for each answer")]
enum Receiving<E: Env> {
    /// There is no stream.
    Nothing,
    Idle(FrameReceiver<E>),
    Busy(Local<ReceivedBack<E>>),
}

impl<'s, E, M, S> Session<'s, E, M, S>
where
    E: Env,
    M: Machine,
    S: Stream<Item = AppendEntriesRequest<TypeConfig<E, M>>> + Unpin + 'static,
{
    /// A session; a call of its own is bounded by `within`.
    pub fn new(peer: &'s mut PeerOf<E, M>, input: S, within: Duration) -> Self {
        let (sending, receiving) = match peer.stream.take() {
            Some(FrameStream { sender, receiver }) => (Sending::Idle(sender), Receiving::Idle(receiver)),
            None => (Sending::Nothing, Receiving::Nothing),
        };
        Session {
            peer,
            input,
            within,
            asking: None,
            sending,
            receiving,
            held: None,
            hold: None,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            pause: None,
            turn: Turn::default(),
            priority: Priority::Normal,
            heard: Moment::<E>::now(),
            alarm: None,
            begun: false,
            input_done: false,
            done: false,
        }
    }

    /// Takes openraft's next request: begins to send it, or holds it.
    fn take_or_hold(&mut self, request: AppendEntriesRequest<TypeConfig<E, M>>) {
        // What was held says less than the new one.
        let held = self.held.take();
        if self.begun && request.entries.is_empty() {
            let since = held.map_or_else(Moment::<E>::now, |(_, since)| since);
            self.held = Some((request, since));
        } else {
            self.take(&request);
        }
    }

    /// Whether openraft found nothing in the log for a request that should have had entries: they were purged after it had built
    /// this stream. It would ask for them for ever, and looks at what it is to send now when the session ends.
    fn is_stale(&self, request: &AppendEntriesRequest<TypeConfig<E, M>>) -> bool {
        self.begun && request.entries.is_empty() && request.prev_log_id < request.leader_commit
    }

    /// Begins to send what is held, when it was held for long enough, or nothing can follow any more.
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some((_, since)) = &self.held else { return Poll::Pending };
        while !self.input_done {
            let hold = self.hold.get_or_insert_with(|| Box::pin(E::Runtime::sleep(RAFT_COMMIT_HOLD)));
            ready!(hold.as_mut().poll(context));
            self.hold = None;
            let held = Moment::<E>::now() - *since;
            if held >= RAFT_COMMIT_HOLD {
                break;
            }
            self.hold = Some(Box::pin(E::Runtime::sleep(RAFT_COMMIT_HOLD - held)));
        }
        if let Some((request, _)) = self.held.take() {
            self.take(&request);
        }
        Poll::Ready(())
    }

    /// Begins to send a request.
    fn take(&mut self, request: &AppendEntriesRequest<TypeConfig<E, M>>) {
        let line = &self.peer.line;
        if !std::mem::replace(&mut self.begun, true) && request.entries.is_empty() {
            self.asking = Some(Box::pin(ask(line.clone(), heartbeat_of(request), self.within)));
            return;
        }
        let (message, parts) = append_message(request);
        let bytes = parts.iter().map(bytes::Bytes::len).sum::<usize>();
        let frame = line.frame(FrameKind::Append, message, parts);
        let pause = if is_behind(request) {
            self.turn.was_idle();
            let pause_us = if bytes < READ_BYTES { 0 } else { line.peers.pace().pause_us(bytes, E::monotonic_us()) };
            Duration::from_micros(pause_us)
        } else {
            let waits = !request.entries.is_empty()
                && self.turn.sent(&self.peer.thrift, line.to.node, bytes, is_first_committed(request));
            if waits { RAFT_SPARE_HOLD } else { Duration::ZERO }
        };
        self.pause = (!pause.is_zero()).then(|| Box::pin(E::Runtime::sleep(pause)));
        if self.in_flight.is_empty() {
            self.heard = Moment::<E>::now();
        }
        self.in_flight.push_back(OnItsWay { last: last_of(request), bytes });
        self.in_flight_bytes += bytes;
        self.send(frame);
    }

    fn send(&mut self, frame: Frame) {
        // Who catches up waits behind those who keep up.
        let behind = self.in_flight_bytes >= RAFT_APPEND_BYTES_BULK;
        let priority = if behind { Priority::Bulk } else { Priority::Normal };
        self.sending = match std::mem::replace(&mut self.sending, Sending::Nothing) {
            Sending::Idle(mut sender) => {
                if std::mem::replace(&mut self.priority, priority) != priority {
                    sender.set_priority(priority);
                }
                Sending::Busy(Box::pin(async move {
                    let sent = sender.send(frame).await;
                    (sender, sent)
                }))
            }
            Sending::Nothing => {
                self.priority = priority;
                let line = self.peer.line.clone();
                Sending::Opening(Box::pin(async move { line.peers.open(line.to, frame, priority).await }))
            }
            Sending::Opening(_) | Sending::Busy(_) => unreachable!("a request is taken when the one before is sent"),
        };
    }

    /// Goes on with opening the stream, after which there is an answer to wait for.
    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AskError>> {
        if let Sending::Opening(opening) = &mut self.sending {
            let FrameStream { sender, receiver } = ready!(opening.as_mut().poll(context))?;
            self.sending = Sending::Idle(sender);
            self.receiving = Receiving::Idle(receiver);
        }
        Poll::Ready(Ok(()))
    }

    /// Goes on with sending; whether another request can be taken.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AskError>> {
        match &mut self.sending {
            Sending::Nothing | Sending::Idle(_) => {}
            // Woken by `poll_open`'s.
            Sending::Opening(_) => return Poll::Pending,
            Sending::Busy(busy) => {
                let (sender, sent) = ready!(busy.as_mut().poll(context));
                sent?;
                self.sending = Sending::Idle(sender);
            }
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let full =
            self.in_flight.len() >= RAFT_APPENDS_IN_FLIGHT_MAX || self.in_flight_bytes >= APPEND_BYTES_IN_FLIGHT_MAX;
        if full { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// The answer to the oldest request on its way.
    fn poll_answer(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<StreamAppendResult<TypeConfig<E, M>>, AskError>> {
        if self.in_flight.is_empty() {
            return Poll::Pending;
        }
        if let Receiving::Idle(_) = self.receiving
            && let Receiving::Idle(mut receiver) = std::mem::replace(&mut self.receiving, Receiving::Nothing)
        {
            self.receiving = Receiving::Busy(Box::pin(async move {
                let received = receiver.receive().await;
                (receiver, received)
            }));
        }
        let Receiving::Busy(busy) = &mut self.receiving else { return Poll::Pending };
        let (receiver, received) = ready!(busy.as_mut().poll(context));
        self.receiving = Receiving::Idle(receiver);
        self.heard = Moment::<E>::now();
        let line = &self.peer.line;
        let node = line.to.node;
        let lost = || PeerError::Lost { node, cause: "it ended the stream of entries".into() };
        let answer = line.answer(&received?.ok_or_else(lost)?)?;
        let oldest = self.in_flight.pop_front().expect("there is one");
        self.in_flight_bytes -= oldest.bytes;
        let result = appended(&answer, oldest.last).ok_or_else(|| self.peer.line.unexpected(&answer))?;
        if let Message::Matched { flush_us, hold_off_ms, .. } = answer {
            let (times, now_us) = (&self.peer.flush_times, E::monotonic_us());
            times.note_hold_off(node, u64::from(hold_off_ms), now_us);
            // Without entries there was nothing to flush: what it says then is old.
            if oldest.bytes > 0 {
                times.note_follower(node, u64::from(flush_us), now_us);
            }
        }
        self.peer.note_answer(&result);
        Poll::Ready(Ok(result))
    }

    /// Ready when the follower has answered nothing for too long.
    fn poll_alarm(&mut self, context: &mut Context<'_>) -> Poll<AskError> {
        if self.in_flight.is_empty() {
            return Poll::Pending;
        }
        loop {
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(E::Runtime::sleep(RAFT_APPEND_WAIT)));
            ready!(alarm.as_mut().poll(context));
            let silent = Moment::<E>::now() - self.heard;
            if silent >= RAFT_APPEND_WAIT {
                let (node, within) = (self.peer.line.to.node, RAFT_APPEND_WAIT);
                return Poll::Ready(PeerError::Timeout { node, within }.into());
            }
            self.alarm = Some(Box::pin(E::Runtime::sleep(RAFT_APPEND_WAIT - silent)));
        }
    }

    /// The session is over: the stream stays if nothing is owed on it.
    fn finish(&mut self) {
        self.done = true;
        let sending = std::mem::replace(&mut self.sending, Sending::Nothing);
        let receiving = std::mem::replace(&mut self.receiving, Receiving::Nothing);
        if let (Sending::Idle(sender), Receiving::Idle(receiver), true) =
            (sending, receiving, self.in_flight.is_empty())
        {
            self.peer.stream = Some(FrameStream { sender, receiver });
        }
    }

    fn fail(&mut self, error: &AskError) -> Poll<Option<Item<E, M>>> {
        // What is owed on the stream would be taken for answers to other requests.
        self.done = true;
        self.peer.thrift.note_failure(self.peer.line.to.node);
        self.sending = Sending::Nothing;
        self.receiving = Receiving::Nothing;
        Poll::Ready(Some(Err(error.to_rpc(&self.peer.line, RPCTypes::AppendEntries))))
    }
}

impl<'s, E: Env, M: Machine> Session<'s, E, M, futures_util::stream::Empty<AppendEntriesRequest<TypeConfig<E, M>>>> {
    /// Sends a request as an urgent call of its own.
    pub async fn heartbeat(
        line: &Line<E>,
        request: AppendEntriesRequest<TypeConfig<E, M>>,
        within: Duration,
    ) -> Item<E, M> {
        ask(line.clone(), heartbeat_of(&request), within).await
    }
}

/// Whether others have had what is in it for some time: the follower catches up.
fn is_behind<E: Env, M: Machine>(request: &AppendEntriesRequest<TypeConfig<E, M>>) -> bool {
    request.leader_commit.as_ref().is_some_and(|commit| !is_close(last_of(request), Some(types::from_raft(commit))))
}

/// Whether a majority has the first of its entries.
fn is_first_committed<E: Env, M: Machine>(request: &AppendEntriesRequest<TypeConfig<E, M>>) -> bool {
    let first = request.entries.first().map(|entry| entry.log_id.index);
    request.leader_commit.as_ref().is_some_and(|commit| first.is_some_and(|first| first <= commit.index))
}

/// A request without entries.
struct Heartbeat {
    message: Message,
    parts: Vec<bytes::Bytes>,
    last: Option<LogId>,
}

fn heartbeat_of<E: Env, M: Machine>(request: &AppendEntriesRequest<TypeConfig<E, M>>) -> Heartbeat {
    let (message, parts) = append_message(request);
    Heartbeat { message, parts, last: last_of(request) }
}

async fn ask<E: Env, M: Machine>(line: Line<E>, heartbeat: Heartbeat, within: Duration) -> Item<E, M> {
    let Heartbeat { message, parts, last } = heartbeat;
    let answer = line.ask(FrameKind::Raft, message, parts, within).await;
    let result = answer.and_then(|answer| appended(&answer, last).ok_or_else(|| line.unexpected(&answer)));
    result.map_err(|error| error.to_rpc(&line, RPCTypes::AppendEntries))
}

impl<E, M, S> Stream for Session<'_, E, M, S>
where
    E: Env,
    M: Machine,
    S: Stream<Item = AppendEntriesRequest<TypeConfig<E, M>>> + Unpin + 'static,
{
    type Item = Item<E, M>;

    /// A part that lets another one begin is polled before it (the opening of the stream before its answers), or the loop goes
    /// round (a request is taken, and sent): so all that is under way has registered when this is Pending. In detail, who
    /// wakes it:
    ///
    /// - a call of its own is not answered (`asking`): its answer, or the end of its time;
    /// - the stream is not open, or a request not sent: the connection to the follower;
    /// - requests are on their way: the answer to the oldest, or `alarm`;
    /// - no request is taken (limits of what is on its way): that answer;
    /// - no request is taken (`pause`): that alarm;
    /// - a request is held: `hold`, or openraft's next request;
    /// - nothing is on its way, and nothing held: openraft's next request, or the end of them.
    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Item<E, M>>> {
        let this = self.get_mut();
        loop {
            if this.done {
                return Poll::Ready(None);
            }
            if let Some(asking) = &mut this.asking {
                let answer = ready!(asking.as_mut().poll(context));
                this.asking = None;
                answer.iter().for_each(|result| this.peer.note_answer(result));
                this.done = !matches!(answer, Ok(Ok(_)));
                return Poll::Ready(Some(answer));
            }
            if let Poll::Ready(Err(error)) = this.poll_open(context) {
                return this.fail(&error);
            }
            match this.poll_answer(context) {
                Poll::Ready(Ok(Ok(matched))) => {
                    let peer = &this.peer;
                    peer.thrift.note_answer(peer.line.to.node, matched.as_ref().map(types::from_raft));
                    return Poll::Ready(Some(Ok(Ok(matched))));
                }
                Poll::Ready(Ok(Err(rejected))) => {
                    // The follower ends the stream behind it.
                    this.done = true;
                    this.peer.thrift.note_failure(this.peer.line.to.node);
                    return Poll::Ready(Some(Ok(Err(rejected))));
                }
                Poll::Ready(Err(error)) => return this.fail(&error),
                Poll::Pending => {}
            }
            match this.poll_send(context) {
                Poll::Ready(Err(error)) => return this.fail(&error),
                Poll::Ready(Ok(())) if !this.input_done => match this.input.poll_next_unpin(context) {
                    Poll::Ready(Some(request)) if this.is_stale(&request) => {
                        this.input_done = true;
                        continue;
                    }
                    Poll::Ready(Some(request)) => {
                        this.take_or_hold(request);
                        continue;
                    }
                    Poll::Ready(None) => {
                        this.input_done = true;
                        continue;
                    }
                    Poll::Pending => {
                        this.turn.was_idle();
                        if this.poll_held(context).is_ready() {
                            continue;
                        }
                    }
                },
                Poll::Ready(Ok(())) if this.poll_held(context).is_ready() => continue,
                Poll::Ready(Ok(())) if this.in_flight.is_empty() => {
                    this.finish();
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
            return match this.poll_alarm(context) {
                Poll::Ready(error) => this.fail(&error),
                Poll::Pending => Poll::Pending,
            };
        }
    }
}
