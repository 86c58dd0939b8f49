//! A bounded queue from many tasks to one. Memory grows with what is queued, not with the bound.
//!
//! A sender that finds the queue full leaves its message in a second queue, in order, and waits; taking a
//! message from the first moves the oldest of the second over. So order is the order of first polls of `send`.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
};

struct State<T> {
    queue: VecDeque<T>,
    capacity: usize,
    /// Those who found the queue full, ascending keys.
    waiting: VecDeque<Waiting<T>>,
    key_next: u64,
    receiver_waker: Option<Waker>,
    receiver_gone: bool,
    senders: usize,
}

struct Waiting<T> {
    key: u64,
    message: T,
    waker: Waker,
}

impl<T> State<T> {
    /// The next message, and who may be woken because there is room again.
    fn pop(&mut self) -> Option<(T, Option<Waker>)> {
        let message = self.queue.pop_front()?;
        let Some(waiting) = self.waiting.pop_front() else { return Some((message, None)) };
        self.queue.push_back(waiting.message);
        Some((message, Some(waiting.waker)))
    }
}

/// Sends messages; clones send to the same receiver.
pub struct Sender<T> {
    state: Rc<RefCell<State<T>>>,
}

/// Does not keep the channel open.
pub struct WeakSender<T> {
    state: Weak<RefCell<State<T>>>,
}

/// Receives messages.
pub struct Receiver<T> {
    state: Rc<RefCell<State<T>>>,
}

/// Why `try_send` refuses; it gives the message back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// `capacity` messages wait.
    Full(T),
    /// The receiver is gone.
    Closed(T),
}

/// Why `try_recv` has nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecvError {
    /// Nothing now.
    Empty,
    /// Nothing ever again.
    Closed,
}

/// A new channel for `capacity` messages.
///
/// # Panics
/// When `capacity` is 0.
pub fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a channel holds at least one message");
    let state = Rc::new(RefCell::new(State {
        queue: VecDeque::new(),
        capacity,
        waiting: VecDeque::new(),
        key_next: 0,
        receiver_waker: None,
        receiver_gone: false,
        senders: 1,
    }));
    (Sender { state: state.clone() }, Receiver { state })
}

impl<T> Sender<T> {
    /// Queues `message`; suspends while the channel is full. Dropped before it resolved, the message is taken back
    /// unless there was room for it meanwhile. Gives the message back as an error when the receiver is gone.
    pub fn send(&self, message: T) -> Send<'_, T> {
        Send { sender: self, message: Some(message), key: None }
    }

    /// Queues `message` if there is room and nobody waits for it.
    ///
    /// # Errors
    /// Gives it back when the channel is full or the receiver gone.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let mut state = self.state.borrow_mut();
        if state.receiver_gone {
            return Err(TrySendError::Closed(message));
        }
        if state.queue.len() >= state.capacity {
            return Err(TrySendError::Full(message));
        }
        state.queue.push_back(message);
        let waker = state.receiver_waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// A handle that does not keep the channel open.
    pub fn downgrade(&self) -> WeakSender<T> {
        WeakSender { state: Rc::downgrade(&self.state) }
    }

    /// Whether the receiver is gone.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().receiver_gone
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.state.borrow_mut().senders += 1;
        Sender { state: self.state.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.state.borrow_mut();
            state.senders -= 1;
            if state.senders == 0 { state.receiver_waker.take() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> WeakSender<T> {
    /// A sender, while there is another one.
    pub fn upgrade(&self) -> Option<Sender<T>> {
        let state = self.state.upgrade()?;
        {
            let mut inner = state.borrow_mut();
            if inner.senders == 0 {
                return None;
            }
            inner.senders += 1;
        }
        Some(Sender { state })
    }
}

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> Self {
        WeakSender { state: self.state.clone() }
    }
}

/// Future of `Sender::send`.
pub struct Send<'a, T> {
    sender: &'a Sender<T>,
    message: Option<T>,
    key: Option<u64>,
}

// The message is moved, never pinned.
impl<T> Unpin for Send<'_, T> {}

impl<T> Future for Send<'_, T> {
    type Output = Result<(), T>;

    // Woken when its message has moved to the queue (`pop`), and when the receiver goes.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(key) = self.key else { return self.first_poll(context) };
        let mut state = self.sender.state.borrow_mut();
        let Ok(at) = state.waiting.binary_search_by_key(&key, |waiting| waiting.key) else {
            drop(state);
            self.key = None;
            return Poll::Ready(Ok(()));
        };
        if state.receiver_gone {
            let waiting = state.waiting.remove(at).expect("it was found there");
            drop(state);
            self.key = None;
            return Poll::Ready(Err(waiting.message));
        }
        let present = &mut state.waiting[at].waker;
        let old = if present.will_wake(context.waker()) {
            None
        } else {
            Some(std::mem::replace(present, context.waker().clone()))
        };
        drop(state);
        drop(old);
        Poll::Pending
    }
}

impl<T> Send<'_, T> {
    fn first_poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), T>> {
        let message = self.message.take().expect("send is not polled after it has resolved");
        match self.sender.try_send(message) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(TrySendError::Closed(message)) => Poll::Ready(Err(message)),
            Err(TrySendError::Full(message)) => {
                let mut state = self.sender.state.borrow_mut();
                let key = state.key_next;
                state.key_next += 1;
                state.waiting.push_back(Waiting { key, message, waker: context.waker().clone() });
                self.key = Some(key);
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Send<'_, T> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let mut state = self.sender.state.borrow_mut();
        let found = state.waiting.binary_search_by_key(&key, |waiting| waiting.key);
        let waiting = found.ok().and_then(|at| state.waiting.remove(at));
        drop(state);
        drop(waiting);
    }
}

impl<T> Receiver<T> {
    /// The next message; `None` when there are none and no senders. Nothing is lost when it is dropped.
    pub fn recv(&mut self) -> Recv<'_, T> {
        Recv { receiver: self }
    }

    /// The next message, if there is one.
    ///
    /// # Errors
    /// `Empty`, `Closed`.
    pub fn try_recv(&mut self) -> Result<T, TryRecvError> {
        let mut state = self.state.borrow_mut();
        let Some((message, waker)) = state.pop() else {
            return Err(if state.senders == 0 { TryRecvError::Closed } else { TryRecvError::Empty });
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(message)
    }

    /// As `recv`, for hand-written futures. Pending, it is woken by the next message, and when the last sender goes.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        match self.try_recv() {
            Ok(message) => Poll::Ready(Some(message)),
            Err(TryRecvError::Closed) => Poll::Ready(None),
            Err(TryRecvError::Empty) => {
                let mut state = self.state.borrow_mut();
                let old = match &state.receiver_waker {
                    Some(present) if present.will_wake(context.waker()) => None,
                    _ => state.receiver_waker.replace(context.waker().clone()),
                };
                drop(state);
                drop(old);
                Poll::Pending
            }
        }
    }

    /// Messages queued.
    pub fn len(&self) -> usize {
        self.state.borrow().queue.len()
    }

    /// Whether none are.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let (queue, wakers, own) = {
            let mut state = self.state.borrow_mut();
            state.receiver_gone = true;
            // Those who wait come for their messages themselves.
            let wakers: Vec<Waker> = state.waiting.iter().map(|waiting| waiting.waker.clone()).collect();
            (std::mem::take(&mut state.queue), wakers, state.receiver_waker.take())
        };
        for waker in wakers {
            waker.wake();
        }
        drop((queue, own));
    }
}

/// Future of `Receiver::recv`.
pub struct Recv<'a, T> {
    receiver: &'a mut Receiver<T>,
}

impl<T> Future for Recv<'_, T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.receiver.poll_recv(context)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{counter, poll},
        *,
    };

    /// Messages arrive in the order of the sends, also of those that had to wait.
    #[test]
    fn order_with_backpressure() {
        let (count, waker) = counter();
        let (sender, mut receiver) = channel(2);
        sender.try_send(0).unwrap();
        sender.try_send(1).unwrap();
        assert_eq!(sender.try_send(9), Err(TrySendError::Full(9)));
        let (mut two, mut three) = (sender.send(2), sender.send(3));
        assert!(poll(&mut two, &waker).is_pending());
        assert!(poll(&mut three, &waker).is_pending());
        assert_eq!(receiver.try_recv(), Ok(0));
        assert_eq!(count.times(), 1);
        assert_eq!(sender.try_send(9), Err(TrySendError::Full(9)), "nobody overtakes those who wait");
        assert_eq!(poll(&mut two, &waker), Poll::Ready(Ok(())));
        assert!(poll(&mut three, &waker).is_pending());
        assert_eq!([receiver.try_recv(), receiver.try_recv(), receiver.try_recv()], [Ok(1), Ok(2), Ok(3)]);
        assert_eq!(poll(&mut three, &waker), Poll::Ready(Ok(())));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    }

    /// A send that is dropped while it waits takes its message back.
    #[test]
    fn dropped_send() {
        let (_, waker) = counter();
        let (sender, mut receiver) = channel(1);
        sender.try_send(0).unwrap();
        let mut one = sender.send(1);
        let mut two = sender.send(2);
        assert!(poll(&mut one, &waker).is_pending());
        assert!(poll(&mut two, &waker).is_pending());
        drop(one);
        assert_eq!(receiver.try_recv(), Ok(0));
        assert_eq!(receiver.try_recv(), Ok(2));
        assert_eq!(poll(&mut two, &waker), Poll::Ready(Ok(())));
    }

    /// The receiver sees what was queued before the last sender left, then the end.
    #[test]
    fn closes_when_senders_are_gone() {
        let (count, waker) = counter();
        let (sender, mut receiver) = channel(2);
        let weak = sender.downgrade();
        let other = weak.upgrade().unwrap();
        assert!(poll(&mut receiver.recv(), &waker).is_pending());
        other.try_send(5).unwrap();
        assert_eq!(count.times(), 1);
        drop(sender);
        drop(other);
        assert!(weak.upgrade().is_none());
        assert_eq!(poll(&mut receiver.recv(), &waker), Poll::Ready(Some(5)));
        assert_eq!(poll(&mut receiver.recv(), &waker), Poll::Ready(None));
        assert_eq!(receiver.try_recv(), Err(TryRecvError::Closed));
    }

    /// The last sender's leaving wakes a receiver that waits.
    #[test]
    fn last_sender_wakes() {
        let (count, waker) = counter();
        let (sender, mut receiver) = channel::<u8>(2);
        assert!(poll(&mut receiver.recv(), &waker).is_pending());
        drop(sender);
        assert_eq!(count.times(), 1);
        assert_eq!(poll(&mut receiver.recv(), &waker), Poll::Ready(None));
    }

    /// A receiver that leaves gives the messages of waiting senders back.
    #[test]
    fn receiver_leaves() {
        let (count, waker) = counter();
        let (sender, receiver) = channel(1);
        sender.try_send(0).unwrap();
        let mut one = sender.send(1);
        assert!(poll(&mut one, &waker).is_pending());
        drop(receiver);
        assert_eq!(count.times(), 1);
        assert_eq!(poll(&mut one, &waker), Poll::Ready(Err(1)));
        assert!(sender.is_closed());
        assert_eq!(sender.try_send(2), Err(TrySendError::Closed(2)));
        assert_eq!(poll(&mut sender.send(3), &waker), Poll::Ready(Err(3)));
    }
}
