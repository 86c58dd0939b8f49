//! Streams of a simulated connection: bounded queues of bytes, one in each direction.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::{Rc, Weak},
};

use bytes::Bytes;

use super::{
    connection::Hold,
    line::{Line, Look},
    link::Link,
};
use crate::env::{
    channel::{Notified, Notify},
    net::{NetError, Priority, ReceiveStream, SendStream},
    yield_now,
};
use crate::ids::NodeId;

/// A new stream of that side.
pub(super) fn open(hold: &Rc<Hold>) -> (SimSend, SimReceive) {
    let (link, side) = (&hold.link, hold.side);
    let [there, back] = [link.pipe(side), link.pipe(1 - side)];
    let slot = Rc::new(StreamSlot::new(link, side));
    let its_receive = SimReceive { pipe: Rc::clone(&there), end: End::new(link, 1 - side, &slot) };
    let its_send = SimSend { pipe: Rc::clone(&back), end: End::new(link, 1 - side, &slot), unseen: None };
    let unseen = Some((Box::new(its_send), its_receive));
    let mut send = SimSend { pipe: there, end: End::new(link, side, &slot), unseen };
    let mut receive = SimReceive { pipe: back, end: End::new(link, side, &slot) };
    send.hold(hold);
    receive.hold(hold);
    (send, receive)
}

/// A stream that counts against its opener's limit, until all of its halves are gone.
struct StreamSlot {
    link: Weak<Link>,
    opener: usize,
}

impl StreamSlot {
    fn new(link: &Rc<Link>, opener: usize) -> StreamSlot {
        let opened = &link.sides[opener].opened;
        opened.set(opened.get() + 1);
        StreamSlot { link: Rc::downgrade(link), opener }
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        if let Some(link) = self.link.upgrade() {
            let opened = &link.sides[self.opener].opened;
            opened.set(opened.get() - 1);
            link.changed.notify_all();
        }
    }
}

/// Where a half of a stream belongs.
struct End {
    link: Rc<Link>,
    side: usize,
    /// None while nobody has accepted it: what waits does not keep a connection.
    hold: Option<Rc<Hold>>,
    _slot: Rc<StreamSlot>,
}

impl End {
    fn new(link: &Rc<Link>, side: usize, slot: &Rc<StreamSlot>) -> End {
        End { link: Rc::clone(link), side, hold: None, _slot: Rc::clone(slot) }
    }

    fn check(&self) -> Result<(), NetError> {
        self.link.error(self.side).map_or(Ok(()), Err)
    }

    /// When something that this end sends now is there; 0 where looks are counted.
    fn arrival_us(&self, bytes: usize) -> u64 {
        self.link.wires.arrival_us(&self.link, self.side, bytes).unwrap_or(0)
    }

    async fn wait(&self, changed: Notified, moments: [Option<u64>; 3]) {
        let [a, b, c] = moments;
        self.link.wires.timing.wait(changed, &[a, b, c, self.link.end_us(self.side)]).await;
    }

    fn is_due(&self, moment: Option<u64>) -> bool {
        moment.is_some_and(|at_us| self.link.wires.timing.is_due(at_us))
    }

    fn ended(&self) -> NetError {
        NetError::Ended { node: self.link.nodes[1 - self.side] }
    }
}

/// One direction of a stream.
pub(super) struct Pipe {
    /// The side that sends.
    from: usize,
    line: RefCell<Line>,
    /// In `line`.
    bytes: Cell<usize>,
    /// No more will come, and all is sent: when the receiver knows it.
    finished: Cell<Option<u64>>,
    /// No more will come, and something is missing: when the receiver knows it.
    broken: Cell<Option<u64>>,
    /// The receiver is gone: when the sender knows it.
    stopped: Cell<Option<u64>>,
    pub(super) changed: Notify,
}

impl Pipe {
    /// When the last of what is on its way is there.
    fn last_us(&self) -> u64 {
        self.line.borrow().last_us()
    }

    /// What `to` has not read; nothing if it is not the receiver, or reads no more.
    pub(super) fn unread_bytes(&self, nodes: &[NodeId; 2], to: NodeId) -> usize {
        let is_read = nodes[1 - self.from] == to && self.stopped.get().is_none();
        if is_read { self.bytes.get() } else { 0 }
    }

    /// An empty one, of what that side of the connection sends.
    pub(super) fn new(from: usize) -> Pipe {
        Pipe {
            from,
            line: RefCell::default(),
            bytes: Cell::new(0),
            finished: Cell::new(None),
            broken: Cell::new(None),
            stopped: Cell::new(None),
            changed: Notify::new(),
        }
    }
}

/// The sending half of a stream.
pub struct SimSend {
    pipe: Rc<Pipe>,
    end: End,
    /// The peer's halves while it does not see the stream.
    unseen: Option<(Box<SimSend>, SimReceive)>,
}

impl SimSend {
    pub(super) fn hold(&mut self, hold: &Rc<Hold>) {
        self.end.hold = Some(Rc::clone(hold));
    }

    /// With its first bytes, which come at that moment, the peer sees the stream.
    fn show(&mut self, at_us: u64) {
        if let Some((send, receive)) = self.unseen.take() {
            let (link, there) = (&self.end.link, 1 - self.end.side);
            if self.end.check().is_ok() && link.error(there).is_none() {
                let mut streams = link.sides[there].streams.borrow_mut();
                let place = streams.partition_point(|(before_us, ..)| *before_us <= at_us);
                streams.insert(place, (at_us, *send, receive));
                drop(streams);
                link.sides[there].changed.notify_all();
            }
        }
    }

    fn room(&self) -> usize {
        self.end.link.wires.window.get().saturating_sub(self.pipe.bytes.get())
    }
}

impl SendStream for SimSend {
    async fn send(&mut self, pieces: Vec<Bytes>) -> Result<(), NetError> {
        for mut piece in pieces {
            while !piece.is_empty() {
                let changed = self.pipe.changed.notified();
                self.end.check()?;
                if self.end.is_due(self.pipe.stopped.get()) {
                    return Err(self.end.ended());
                }
                let wires = &self.end.link.wires;
                let part = piece.len().min(self.room()).min(wires.piece.get());
                if part == 0 {
                    self.end.wait(changed, [self.pipe.stopped.get(), None, None]).await;
                    continue;
                }
                let part = piece.split_to(part);
                self.pipe.bytes.set(self.pipe.bytes.get() + part.len());
                let at_us = match wires.arrival_us(&self.end.link, self.end.side, part.len()) {
                    Some(at_us) => self.pipe.line.borrow_mut().push_behind(at_us, part),
                    None => {
                        self.pipe.line.borrow_mut().push(wires.delay.get(), part);
                        0
                    }
                };
                self.show(at_us);
                self.pipe.changed.notify_all();
            }
        }
        self.end.check()
    }

    /// Nothing: in memory no stream waits behind another.
    fn set_priority(&self, _priority: Priority) {}

    fn finish(&mut self) {
        let at_us = self.end.arrival_us(0).max(self.pipe.last_us());
        self.pipe.finished.set(Some(at_us));
        self.show(at_us);
        self.pipe.changed.notify_all();
    }
}

impl Drop for SimSend {
    fn drop(&mut self) {
        // An end that is over says nothing any more.
        if self.pipe.finished.get().is_none() && self.end.check().is_ok() {
            self.pipe.broken.set(Some(self.end.arrival_us(0)));
            self.pipe.changed.notify_all();
        }
    }
}

impl fmt::Debug for SimSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimSend({} bytes on their way)", self.pipe.bytes.get())
    }
}

/// The receiving half of a stream.
pub struct SimReceive {
    pipe: Rc<Pipe>,
    end: End,
}

impl SimReceive {
    pub(super) fn hold(&mut self, hold: &Rc<Hold>) {
        self.end.hold = Some(Rc::clone(hold));
    }
}

impl ReceiveStream for SimReceive {
    async fn receive(&mut self) -> Result<Option<Bytes>, NetError> {
        loop {
            let changed = self.pipe.changed.notified();
            self.end.check()?;
            let (link, pipe) = (&self.end.link, &self.pipe);
            let (from, to) = (link.nodes[pipe.from], link.nodes[1 - pipe.from]);
            if link.wires.is_cut(from, to) {
                self.end.wait(changed, [None; 3]).await;
                continue;
            }
            let resume_us = link.wires.resume_us(from, to);
            if resume_us.is_some_and(|at_us| !link.wires.timing.is_due(at_us)) {
                self.end.wait(changed, [resume_us, None, None]).await;
                continue;
            }
            let (broken, finished) = (pipe.broken.get(), pipe.finished.get());
            if self.end.is_due(broken) {
                return Err(self.end.ended());
            }
            let look = pipe.line.borrow_mut().look(link.wires.timing.now_us());
            match look {
                Look::Ready(piece) => {
                    pipe.bytes.set(pipe.bytes.get() - piece.len());
                    pipe.changed.notify_all();
                    return Ok(Some(piece));
                }
                Look::Early(None) => yield_now().await,
                Look::Early(at_us) => self.end.wait(changed, [at_us, broken, None]).await,
                Look::Empty if self.end.is_due(finished) => return Ok(None),
                Look::Empty => self.end.wait(changed, [broken, finished, None]).await,
            }
        }
    }
}

impl Drop for SimReceive {
    fn drop(&mut self) {
        if self.end.check().is_ok() {
            self.pipe.stopped.set(Some(self.end.arrival_us(0)));
            self.pipe.changed.notify_all();
        }
    }
}

impl fmt::Debug for SimReceive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimReceive({} bytes are here)", self.pipe.bytes.get())
    }
}
