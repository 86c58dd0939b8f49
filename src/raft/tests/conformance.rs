//! openraft's own suite for stores and state machines, on ours.

use std::io;

use openraft::{
    RaftLogReader, StorageError,
    entry::RaftEntry,
    storage::{IOFlushed, LogState, RaftLogStorage},
    testing::log::{StoreBuilder, Suite},
};

use super::{super::types, *};
use crate::env::runtime::block_on;

pub(super) type Config = TypeConfig<TestEnv, Tally>;

/// Our store, but the suite may begin a log at any index, which no group does: blanks fill the gap.
struct Filled {
    store: Store<TestEnv, Tally>,
    log: Log<TestEnv>,
}

impl RaftLogStorage<Config> for Filled {
    type LogReader = store::Reader<TestEnv, Tally>;

    async fn get_log_state(&mut self) -> Result<LogState<Config>, io::Error> {
        self.store.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.store.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &types::RaftVote) -> Result<(), io::Error> {
        self.store.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<types::RaftLogId>) -> Result<(), io::Error> {
        self.store.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> Result<Option<types::RaftLogId>, io::Error> {
        self.store.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Config>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = types::Entry>,
    {
        let mut entries: Vec<types::Entry> = entries.into_iter().collect();
        if self.log.last().is_none() {
            let first = entries[0].log_id;
            let blank = |index| types::Entry::new_blank(types::RaftLogId { index, ..first });
            entries.splice(0..0, (0..first.index).map(blank));
        }
        self.store.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<types::RaftLogId>) -> Result<(), io::Error> {
        self.store.truncate_after(last).await
    }

    /// The suite purges beyond the log's end without a snapshot that would say how the log goes on: blanks lead there.
    async fn purge(&mut self, id: types::RaftLogId) -> Result<(), io::Error> {
        let next = self.log.last().map_or(0, |last| last.index.0 + 1);
        if next <= id.index {
            let blanks = (next..=id.index).map(|index| types::Entry::new_blank(types::RaftLogId { index, ..id }));
            let (sender, flushed) = channel::oneshot();
            self.store.append(blanks.collect::<Vec<_>>(), IOFlushed::signal(sender)).await?;
            flushed.await.expect("a good disk").expect("a good disk");
        }
        self.store.purge(id).await
    }
}

struct Builder;

impl StoreBuilder<Config, Filled, StateMachine<TestEnv, Tally>> for Builder {
    async fn build(&self) -> Result<((), Filled, StateMachine<TestEnv, Tally>), StorageError<Config>> {
        let GroupOptions { dir, shard, segment_bytes_max, .. } = options();
        let log_options = LogOptions { dir, shard, segment_bytes_max, owner: 0 };
        let (log, _) = Log::<TestEnv>::open(SimDisk::new(), TailBudget::new(4096), log_options).await.unwrap();
        let shared = Shared::new(Tally::default());
        let store = Store::new(log.clone(), shared.clone(), Rc::new(Cell::new(false)), Arc::default());
        Ok(((), Filled { store, log: log.clone() }, StateMachine::new(log, shared, NodeId(1))))
    }
}

/// The whole suite.
#[test]
fn conforms() {
    block_on(async { Suite::test_all(Builder).await.unwrap() });
}

/// What openraft gets as committed never runs ahead of what is durable.
#[test]
fn committed_is_clamped() {
    block_on(async {
        let ((), Filled { mut store, .. }, _machine) = Builder.build().await.unwrap();
        let committed = types::to_raft(crate::ids::LogId { term: Term(4), index: Index(9) });
        store.save_committed(Some(committed)).await.unwrap();
        assert_eq!(store.read_committed().await.unwrap(), None, "nothing is durable");
        assert_eq!(store.get_log_reader().await.read_vote().await.unwrap(), None);
    });
}
