//! Places for handshakes of connections that others make. When all are taken, an address that has few of them gets the oldest
//! one of the address that has most: who begins many and ends none, from one address, keeps nobody else out.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    rc::Rc,
};

use crate::env::channel::{self, OneshotReceiver, OneshotSender};

/// The places of one endpoint. Clones are handles to the same.
#[derive(Clone)]
pub(super) struct Handshakes(Rc<RefCell<Held>>);

struct Held {
    max: usize,
    count: usize,
    next: u64,
    /// By whoever has them, by age. A sender that is dropped takes the place away.
    places: BTreeMap<IpAddr, BTreeMap<u64, OneshotSender<()>>>,
}

/// A place, until it is dropped or lost.
pub(super) struct Place {
    handshakes: Handshakes,
    origin: IpAddr,
    number: u64,
    lost: OneshotReceiver<()>,
}

impl Handshakes {
    pub(super) fn new(max: usize) -> Handshakes {
        Handshakes(Rc::new(RefCell::new(Held { max, count: 0, next: 0, places: BTreeMap::new() })))
    }

    /// A place for a handshake from there; `None` when all are taken and nobody has more than it would.
    pub(super) fn take(&self, from: IpAddr) -> Option<Place> {
        let origin = origin(from);
        let mut held = self.0.borrow_mut();
        let mut taken_away = None;
        if held.count >= held.max {
            let own = held.places.get(&origin).map_or(0, BTreeMap::len);
            let most = held.places.values_mut().max_by_key(|places| places.len())?;
            if most.len() <= own + 1 {
                return None;
            }
            taken_away = most.pop_first();
            held.count -= 1;
        }
        let (sender, lost) = channel::oneshot();
        let number = held.next;
        held.next += 1;
        held.count += 1;
        held.places.entry(origin).or_default().insert(number, sender);
        drop(held);
        drop(taken_away);
        Some(Place { handshakes: self.clone(), origin, number, lost })
    }
}

impl Place {
    /// Resolves when another address has got it.
    pub(super) async fn lost(&mut self) {
        // Nothing is ever sent.
        (&mut self.lost).await.unwrap_or_default();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let held = &mut *self.handshakes.0.borrow_mut();
        let Some(places) = held.places.get_mut(&self.origin) else { return };
        if places.remove(&self.number).is_some() {
            held.count -= 1;
        }
        if places.is_empty() {
            held.places.remove(&self.origin);
        }
    }
}

/// Who counts as one: an address, or with IPv6 the 64 bits that a site has for itself.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_lost(place: &mut Place) -> bool {
        place.lost().now_or_never().is_some()
    }

    /// Everybody gets what is free; when nothing is, the oldest place of whoever has most, until both have as many.
    #[test]
    fn shares() {
        let handshakes = Handshakes::new(8);
        let [greedy, other, third] = ["10.0.0.1", "2001:db8::1", "10.0.0.3"].map(|address| address.parse().unwrap());
        let mut theirs: Vec<Place> = (0..8).map(|_| handshakes.take(greedy).unwrap()).collect();
        assert!(handshakes.take(greedy).is_none());
        assert!(handshakes.take("::ffff:10.0.0.1".parse().unwrap()).is_none(), "the same in other words");
        let others: Vec<Place> = (0..3).map(|_| handshakes.take(other).unwrap()).collect();
        let of_site = handshakes.take("2001:db8::2".parse().unwrap()).unwrap();
        assert!(handshakes.take(other).is_none(), "they have four each");
        let lost: Vec<bool> = theirs.iter_mut().map(is_lost).collect();
        assert_eq!(lost, [true, true, true, true, false, false, false, false]);
        let mut alone = handshakes.take(third).unwrap();
        assert!(!is_lost(&mut alone));
        assert_eq!(handshakes.0.borrow().count, 8);
        drop((theirs, others, of_site, alone));
        let held = handshakes.0.borrow();
        assert_eq!((held.count, held.places.len()), (0, 0));
    }
}
