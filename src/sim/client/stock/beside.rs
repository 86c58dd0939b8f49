//! A client that means well, on a connection of its own to the reactor that another one attacks: one record after the other on a
//! `ProduceStream`. As long as nothing happens to the cluster each is acknowledged soon.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use h2::{SendStream, client::SendRequest};
use prost::Message;

use super::{
    CallState, Session,
    call::{self, Answers, End},
    habit::Method,
    produce::Sent,
};
use crate::{
    env::{self, Env},
    proto::ringlog::v1::ProduceStreamResponse,
    sim::{SimEnv, client::hostile::PROMPT, random},
};

/// Between an acknowledgement and the next record, at most, ms.
const PAUSE_MS_MAX: u64 = 60;

/// Goes on until `is_over`.
pub(super) async fn run(
    session: Rc<Session>,
    mut requests: SendRequest<Bytes>,
    is_over: Rc<Cell<bool>>,
    dice: Cell<u64>,
) {
    let state = Rc::new(CallState::new(Method::ProduceStream));
    session.calls.borrow_mut().push(Rc::clone(&state));
    let opened = call::open(&session, &mut requests, Method::ProduceStream, None).await;
    drop(requests);
    match opened {
        Some((answers, stream)) => {
            let sent = Sent::new(&session, &state, &session.name, &dice);
            match (Beside { sent, is_over, dice: &dice, answers, stream }.go_on().await) {
                Some(End::Ok) => {}
                Some(End::Status(status)) => session.suffered(&format!("a stream has failed: {status}")),
                Some(End::Lost) => session.suffered("a stream was broken off"),
                None => session.suffered("a stream does not go on"),
            }
        }
        None => session.suffered("a stream was not opened"),
    }
    state.ended.set(true);
}

struct Beside<'a> {
    sent: Sent<'a>,
    is_over: Rc<Cell<bool>>,
    dice: &'a Cell<u64>,
    answers: Answers,
    stream: SendStream<Bytes>,
}

impl Beside<'_> {
    /// How the call has ended; `None`: it was given up, as there was no answer for so long.
    async fn go_on(mut self) -> Option<End> {
        let mut number = 0;
        while !self.is_over.get() {
            let request = self.sent.request(number, self.dice);
            number += 1;
            if !call::send(&mut self.stream, &request, false).await {
                break;
            }
            match self.answer().await {
                Ok(ack) => {
                    self.sent.acknowledged((&ack.topic, ack.shard), ack.base_offset, ack.count, ack.timestamp_us)
                }
                Err(end) => return self.ended(end),
            }
            env::sleep::<SimEnv>(Duration::from_millis(random(self.dice) % PAUSE_MS_MAX)).await;
        }
        // It is over if this fails.
        let _sent = self.stream.send_data(Bytes::new(), true);
        match self.answer().await {
            Ok(_) => {
                self.sent.session.problem("an acknowledgement for nothing");
                None
            }
            Err(end) => self.ended(end),
        }
    }

    fn ended(self, end: Option<End>) -> Option<End> {
        self.sent.session.met("hostile client beside", "produce stream");
        let told = match &end {
            Some(End::Ok) => End::Ok,
            Some(End::Status(status)) => End::Status(status.clone()),
            Some(End::Lost) | None => End::Lost,
        };
        self.sent.ended(told);
        end
    }

    /// The next acknowledgement; or how the call has ended, `None` if it hangs.
    async fn answer(&mut self) -> Result<ProduceStreamResponse, Option<End>> {
        let next = <<SimEnv as Env>::Runtime as openraft::AsyncRuntime>::timeout(PROMPT, self.answers.next()).await;
        let message = next.map_err(|_| None)?.map_err(Some)?;
        ProduceStreamResponse::decode(message).map_err(|error| {
            self.sent.session.problem(&format!("no acknowledgement: {error}"));
            Some(End::Lost)
        })
    }
}
