//! Who may touch a shard's directory: whoever opens, mends, closes or removes the replica in it, one at a time.
//!
//! A replica's *stay* begins when it is opened and ends when it is told to go. What mends it, which may wait for other nodes for
//! long, ends with it at once, so that nothing of it touches the directory of the replica that is made there next.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use crate::{
    env::channel::{Guard, Mutex, Notify},
    ids::ShardUid,
    raft::left::Left,
};

/// One replica's stay in a directory.
pub(super) struct Stay {
    /// The same one for all that follow each other there.
    directory: Rc<Mutex<()>>,
    over: Cell<bool>,
    changed: Notify,
    /// What it leaves, as it knew when it was closed.
    left: Cell<Option<Left>>,
}

impl Stay {
    fn begin(directory: Rc<Mutex<()>>) -> Rc<Stay> {
        Rc::new(Stay { directory, over: Cell::new(false), changed: Notify::new(), left: Cell::new(None) })
    }

    /// Suspends until nobody else touches the directory; nobody does while the guard is held.
    pub async fn enter(&self) -> Guard<'_, ()> {
        self.directory.lock().await
    }

    /// Whether the replica was told to go.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Keeps what a replica that was just closed leaves: its files may not say it any more. Not less than what was kept before.
    pub fn note_left(&self, left: Left) {
        let before = self.left.get().unwrap_or_default();
        self.left.set(Some(left.and(before)));
    }

    /// What it leaves at least; `None`: it was never open, and only its files say it.
    pub fn left(&self) -> Option<Left> {
        self.left.get()
    }

    /// Suspends until it is over.
    pub async fn over(&self) {
        loop {
            let changed = self.changed.notified();
            if self.over.get() {
                return;
            }
            changed.await;
        }
    }
}

/// The stays of one reactor's shards.
#[derive(Default)]
pub(super) struct Stays {
    present: RefCell<BTreeMap<ShardUid, Rc<Stay>>>,
}

impl Stays {
    /// The present one; it begins if there is none.
    pub fn of(&self, uid: ShardUid) -> Rc<Stay> {
        let mut present = self.present.borrow_mut();
        Rc::clone(present.entry(uid).or_insert_with(|| Stay::begin(Rc::default())))
    }

    /// Ends the present one. Whoever comes next waits until its directory is free.
    pub fn end(&self, uid: ShardUid) -> Rc<Stay> {
        let ended = self.of(uid);
        self.present.borrow_mut().insert(uid, Stay::begin(Rc::clone(&ended.directory)));
        ended.over.set(true);
        ended.changed.notify_all();
        ended
    }

    /// The directory is gone: nothing is kept of one that nobody waits for.
    pub fn forget(&self, ended: &Stay, uid: ShardUid) {
        // This stay has it, and the one that would come next.
        if Rc::strong_count(&ended.directory) == 2 {
            self.present.borrow_mut().remove(&uid);
        }
    }
}
