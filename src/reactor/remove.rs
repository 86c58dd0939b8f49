//! Replicas that are not to be here any more: closed, what they leave written down, their directories removed.
//!
//! What cannot be removed now stays as it is, and who asked is told: nothing may be made there before it is removed. It keeps what
//! is known of its votes and its last entry, as the files of a replica that was closed for damage may not say it any more.

use std::{path::Path, rc::Rc};

use futures_util::{StreamExt, stream};

use super::{OPEN_AT_ONCE, Reactor, Slot, control, stays::Stay};
use crate::{
    env::{Disk, Env},
    ids::ShardUid,
    log::{LogError, LogOptions, Watched, repair::RepairError},
    raft::left::{Left, UNKNOWN, leave, left_in},
};

impl<E: Env> Reactor<E> {
    /// Closes shards and removes their directories, so many at the same time as open at once. Gives those whose directories stay,
    /// with the reason: they are to be removed again. Requests for them that come meanwhile do not overtake those that the shard
    /// hands back.
    pub async fn remove(self: &Rc<Self>, uids: Vec<ShardUid>) -> Vec<(ShardUid, String)> {
        let removed = stream::iter(uids).map(|uid| async move {
            let stay = self.stays.end(uid);
            let held = stay.enter().await;
            let removed = self.remove_one(uid, &stay).await;
            if let (Err(_), Some(left)) = (&removed, stay.left()) {
                // For the next time.
                self.stays.of(uid).note_left(left);
            }
            drop(held);
            if removed.is_ok() {
                self.stays.forget(&stay, uid);
            }
            removed.err().map(|cause| (uid, cause))
        });
        let stay_here = removed.buffer_unordered(OPEN_AT_ONCE).filter_map(std::future::ready).collect().await;
        self.count_shards();
        stay_here
    }

    /// Nobody else touches the directory meanwhile.
    async fn remove_one(self: &Rc<Self>, uid: ShardUid, stay: &Stay) -> Result<(), String> {
        self.hold(uid);
        let slot = self.shards.borrow_mut().remove(&uid);
        self.node.forget_fault(uid);
        self.node.leaders.forget_own(uid);
        if let Some(Slot::Serving(shard)) = slot {
            if let Err(error) = shard.close().await {
                tracing::warn!(shard_uid = uid.0, %error, "replica that is not to be here any more did not close cleanly");
            }
            stay.note_left(shard.left());
        }
        self.release(uid);
        let path = control::shard_dir(&self.node.config.data, uid);
        // A device that does not answer is seen by nobody else.
        let disk = Watched::<E>::new(self.disk.clone());
        disk.look_while(async {
            self.leave(&disk, uid, &path, stay.left())
                .await
                .map_err(|cause| format!("how it voted could not be kept: {cause}"))?;
            match disk.remove_dir_all(&path).await {
                Ok(()) => tracing::info!(shard_uid = uid.0, "replica that is not to be here any more removed"),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("{} could not be removed: {error}", path.display())),
            }
            Ok(())
        })
        .await
    }

    /// Keeps what a replica of the same shard has to know if one is made here again: `left`, or what the files say. Of one whose
    /// files do not say how it voted, that: the next one waits for the first committed entry that it hears of. An error means that
    /// nothing may be removed.
    async fn leave(&self, disk: &Watched<E>, uid: ShardUid, dir: &Path, left: Option<Left>) -> Result<(), String> {
        let owner = self.node.identity().map_or(0, |identity| identity.owner());
        let options = LogOptions { dir: dir.to_owned(), shard: uid, segment_bytes_max: 0, owner };
        let left = match left {
            Some(left) => left,
            None => match left_in(disk, &options).await {
                Ok(left) => left,
                Err(RepairError::Disk(error)) if !matches!(error, LogError::Corrupt { .. }) => {
                    return Err(error.to_string());
                }
                Err(cause) => {
                    tracing::warn!(shard_uid = uid.0, %cause, "a replica is removed that does not say how it voted");
                    UNKNOWN
                }
            },
        };
        leave(disk, &options, left).await.map_err(|error| error.to_string())
    }
}
