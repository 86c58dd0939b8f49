//! Operations under way: how long they take, and the writes that they have begun.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use super::{Device, DiskFault, NodeRef, Operation, damage::Piece};

/// An operation under way, until it is dropped.
struct Flight<'a> {
    device: &'a Device,
    number: u64,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.device.in_flight.borrow_mut().retain(|(number, _)| *number != self.number);
    }
}

/// Writes that are seen and not durable. Dropped, also with the future of their operation, they are over: the next sync
/// covers them.
pub(super) struct Placed {
    placed: Vec<(NodeRef, u64)>,
}

impl Placed {
    /// Makes them durable.
    pub(super) fn sync(&self) {
        let mut at = 0;
        while let Some((node, _)) = self.placed.get(at) {
            let same = self.placed[at..].iter().take_while(|(other, _)| Rc::ptr_eq(other, node));
            let ids: Vec<u64> = same.map(|(_, id)| *id).collect();
            node.borrow_mut().sync_writes(&ids);
            at += ids.len();
        }
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        for (node, id) in &self.placed {
            node.borrow_mut().finish(&[*id]);
        }
    }
}

impl Device {
    /// Waits as long as the operation takes.
    pub(super) async fn pass(&self, operation: Operation, path: &Path) {
        let (waited, wait) = self.timing.borrow().draw(operation);
        if waited.slowed {
            self.count_fault(DiskFault::Slow, operation, path);
        }
        if waited.stalled {
            self.count_fault(DiskFault::Stall, operation, path);
        }
        let number = self.operation_next.replace(self.operation_next.get() + 1);
        self.in_flight.borrow_mut().push((number, path.into()));
        let flight = Flight { device: self, number };
        wait.await;
        let earlier = |(other, file): &(u64, PathBuf)| *other < number && file == path;
        let overtakes = self.in_flight.borrow().iter().any(earlier);
        if overtakes {
            self.count_fault(DiskFault::Misordered, operation, path);
        }
        drop(flight);
    }

    /// Begins the writes.
    pub(super) fn place(&self, pieces: Vec<Piece>) -> Placed {
        let mut placed = Vec::with_capacity(pieces.len());
        for Piece { node, position, bytes, damage } in pieces {
            let id = node.borrow_mut().write(position, &bytes);
            if let Some(fault) = damage {
                node.borrow_mut().mark(position, bytes.len(), fault);
            }
            placed.push((node, id));
        }
        Placed { placed }
    }

    /// Somebody reads that: counts the damage that it meets.
    pub(super) fn note_read(&self, node: &NodeRef, position: u64, bytes: usize) {
        let (path, met) = {
            let node = node.borrow();
            (node.path.clone(), node.damage_in(position, bytes))
        };
        for fault in met {
            self.count_fault(fault, Operation::Read, &path);
        }
    }
}
