//! Streams of a simulated connection: bounded queues of bytes, one in each direction.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::{Rc, Weak},
};

use bytes::Bytes;

use super::{
    Link,
    connection::{Hold, Line, Look},
};
use crate::env::{
    channel::Notify,
    net::{NetError, Priority, ReceiveStream, SendStream},
    yield_now,
};

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
    /// No more will come, and all is sent.
    finished: Cell<bool>,
    /// No more will come, and something is missing.
    broken: Cell<bool>,
    /// The receiver is gone.
    stopped: Cell<bool>,
    pub(super) changed: Notify,
}

impl Pipe {
    /// An empty one, of what that side of the connection sends.
    pub(super) fn new(from: usize) -> Pipe {
        Pipe {
            from,
            line: RefCell::default(),
            bytes: Cell::new(0),
            finished: Cell::new(false),
            broken: Cell::new(false),
            stopped: Cell::new(false),
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

    /// With its first bytes the peer sees the stream.
    fn show(&mut self) {
        if let Some((send, receive)) = self.unseen.take() {
            let there = &self.end.link.sides[1 - self.end.side];
            if self.end.check().is_ok() {
                there.streams.borrow_mut().push_back((*send, receive));
                there.changed.notify_all();
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
                if self.pipe.stopped.get() {
                    return Err(self.end.ended());
                }
                let wires = &self.end.link.wires;
                let part = piece.len().min(self.room()).min(wires.piece.get());
                if part == 0 {
                    changed.await;
                    continue;
                }
                self.pipe.line.borrow_mut().push(wires.delay.get(), piece.split_to(part));
                self.pipe.bytes.set(self.pipe.bytes.get() + part);
                self.show();
                self.pipe.changed.notify_all();
            }
        }
        self.end.check()
    }

    /// Nothing: in memory no stream waits behind another.
    fn set_priority(&self, _priority: Priority) {}

    fn finish(&mut self) {
        self.pipe.finished.set(true);
        self.show();
        self.pipe.changed.notify_all();
    }
}

impl Drop for SimSend {
    fn drop(&mut self) {
        if !self.pipe.finished.get() {
            self.pipe.broken.set(true);
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
            let link = &self.end.link;
            let from = self.pipe.from;
            if link.wires.is_cut(link.nodes[from], link.nodes[1 - from]) {
                changed.await;
                continue;
            }
            if self.pipe.broken.get() {
                return Err(self.end.ended());
            }
            let look = self.pipe.line.borrow_mut().look();
            match look {
                Look::Ready(piece) => {
                    self.pipe.bytes.set(self.pipe.bytes.get() - piece.len());
                    self.pipe.changed.notify_all();
                    return Ok(Some(piece));
                }
                Look::Early => yield_now().await,
                Look::Empty if self.pipe.finished.get() => return Ok(None),
                Look::Empty => changed.await,
            }
        }
    }
}

impl Drop for SimReceive {
    fn drop(&mut self) {
        self.pipe.stopped.set(true);
        self.pipe.changed.notify_all();
    }
}

impl fmt::Debug for SimReceive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimReceive({} bytes are here)", self.pipe.bytes.get())
    }
}
