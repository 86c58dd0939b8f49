//! One value, once, from one task to another: one allocation.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use super::Closed;

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    sender_gone: bool,
    receiver_gone: bool,
    /// Of a sender that waits until the receiver is gone.
    sender_waker: Option<Waker>,
}

/// Sends the value.
pub struct Sender<T> {
    state: Rc<RefCell<State<T>>>,
}

/// Receives it: a future. Polled again after it has resolved, it says `Closed`.
pub struct Receiver<T> {
    state: Rc<RefCell<State<T>>>,
}

/// A new channel.
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = Rc::new(RefCell::new(State {
        value: None,
        waker: None,
        sender_gone: false,
        receiver_gone: false,
        sender_waker: None,
    }));
    (Sender { state: state.clone() }, Receiver { state })
}

impl<T> Sender<T> {
    /// Sends `value`.
    ///
    /// # Errors
    /// Gives it back when the receiver is gone.
    pub fn send(self, value: T) -> Result<(), T> {
        let mut state = self.state.borrow_mut();
        if state.receiver_gone {
            return Err(value);
        }
        state.value = Some(value);
        Ok(())
        // Dropping `self` wakes the receiver.
    }

    /// Whether nobody will look at the value.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().receiver_gone
    }

    /// Waits until nobody will look at the value.
    pub async fn closed(&mut self) {
        poll_fn(|context| {
            if self.is_closed() {
                return Poll::Ready(());
            }
            let old = self.state.borrow_mut().sender_waker.replace(context.waker().clone());
            drop(old);
            // Woken when the receiver is dropped.
            Poll::Pending
        })
        .await;
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.state.borrow_mut();
            state.sender_gone = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// The value, if it is there.
    ///
    /// # Errors
    /// `Closed` when it was taken already or will never come.
    pub fn try_recv(&mut self) -> Result<Option<T>, Closed> {
        let mut state = self.state.borrow_mut();
        match state.value.take() {
            Some(value) => Ok(Some(value)),
            None if state.sender_gone => Err(Closed),
            None => Ok(None),
        }
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, Closed>;

    // Woken when the sender is dropped, which `send` does, too.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.try_recv() {
            Ok(Some(value)) => Poll::Ready(Ok(value)),
            Err(closed) => Poll::Ready(Err(closed)),
            Ok(None) => {
                let waker = context.waker();
                let mut state = self.state.borrow_mut();
                let old = match &state.waker {
                    Some(present) if present.will_wake(waker) => None,
                    _ => state.waker.replace(waker.clone()),
                };
                drop(state);
                drop(old);
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let (sender, _value, _waker) = {
            let mut state = self.state.borrow_mut();
            state.receiver_gone = true;
            (state.sender_waker.take(), state.value.take(), state.waker.take())
        };
        if let Some(sender) = sender {
            sender.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{counter, poll},
        *,
    };

    /// The value arrives and wakes the one who waits, once.
    #[test]
    fn arrives() {
        let (count, waker) = counter();
        let (sender, mut receiver) = channel();
        assert!(poll(&mut receiver, &waker).is_pending());
        assert_eq!(sender.send(7), Ok(()));
        assert_eq!(count.times(), 1);
        assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Ok(7)));
        assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Err(Closed)));
    }

    /// A sender that is dropped wakes the receiver, a receiver that is dropped refuses the value.
    #[test]
    fn dropped_sides() {
        let (count, waker) = counter();
        let (sender, mut receiver) = channel::<u32>();
        assert!(poll(&mut receiver, &waker).is_pending());
        drop(sender);
        assert_eq!(count.times(), 1);
        assert_eq!(poll(&mut receiver, &waker), Poll::Ready(Err(Closed)));

        let (sender, receiver) = channel();
        drop(receiver);
        assert!(sender.is_closed());
        assert_eq!(sender.send(7), Err(7));
    }

    /// The waker of the last poll counts, not an earlier one.
    #[test]
    fn last_waker_counts() {
        let ((first, first_waker), (second, second_waker)) = (counter(), counter());
        let (sender, mut receiver) = channel();
        assert!(poll(&mut receiver, &first_waker).is_pending());
        assert!(poll(&mut receiver, &second_waker).is_pending());
        sender.send(()).unwrap();
        assert_eq!((first.times(), second.times()), (0, 1));
    }
}
