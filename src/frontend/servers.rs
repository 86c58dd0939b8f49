//! The topology as those are told of it who watch: made, and encoded, once for all of a reactor's watchers, however many there are.
//! A watcher keeps no more than two numbers and sends slices of it.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    hash::{DefaultHasher, Hasher},
    ops::Range,
    rc::Rc,
};

use bytes::Bytes;
use prost::Message;

use crate::{
    env::{self, Env, channel::Notify},
    frontend::CallError,
    proto::ringlog::v1 as proto,
};

/// All servers and topics at one moment.
#[derive(Debug)]
pub struct Told {
    /// Goes up with every difference.
    pub version: u64,
    /// One `WatchServersResponse`.
    all: Bytes,
    /// Where in it its other fields end.
    head_end: usize,
    /// Where in it each topic is.
    topics: BTreeMap<String, Range<usize>>,
}

impl Told {
    fn new(version: u64, response: proto::GetServersResponse) -> Told {
        let proto::GetServersResponse { cluster_id, servers, topics } = response;
        let mut all = proto::WatchServersResponse { cluster_id, servers, topics: Vec::new() }.encode_to_vec();
        let head_end = all.len();
        let mut places = BTreeMap::new();
        for topic in topics {
            let (begin, name) = (all.len(), topic.topic.clone());
            let part = proto::WatchServersResponse { topics: vec![topic], ..Default::default() };
            part.encode(&mut all).expect("the buffer grows");
            places.insert(name, begin..all.len());
        }
        Told { version, all: all.into(), head_end, topics: places }
    }

    /// A `WatchServersResponse` in slices: of all topics if none is named.
    ///
    /// # Errors
    /// The name of the first topic that is not there.
    pub fn message<'a>(&self, names: &[&'a str]) -> Result<Vec<Bytes>, &'a str> {
        if names.is_empty() {
            return Ok(vec![self.all.clone()]);
        }
        let mut slices = vec![self.all.slice(..self.head_end)];
        for name in names {
            let place = self.topics.get(*name).ok_or(*name)?;
            slices.push(self.all.slice(place.clone()));
        }
        Ok(slices)
    }
}

/// A number that tells a message from others.
pub fn digest(slices: &[Bytes]) -> u64 {
    let mut hasher = DefaultHasher::new();
    slices.iter().for_each(|slice| hasher.write(slice));
    hasher.finish()
}

type Made = Result<Rc<Told>, CallError>;

/// What was made last, for all watchers of a reactor.
#[derive(Default)]
pub struct Servers {
    /// When it was asked for, and what came of it.
    latest: RefCell<Option<(u64, Made)>>,
    /// Of the last that was made.
    version: Cell<u64>,
    is_made: Cell<bool>,
    made: Notify,
}

impl Servers {
    /// What was asked for at `since_us` or later, by `make` if nobody else does. Dropping the future stops nothing.
    ///
    /// # Errors
    /// Those of `make`.
    pub async fn latest<E: Env, F>(self: &Rc<Self>, since_us: u64, make: impl Fn() -> F) -> Result<Rc<Told>, CallError>
    where
        F: Future<Output = Result<proto::GetServersResponse, CallError>> + 'static,
    {
        loop {
            let made = self.made.notified();
            if let Some((asked_us, latest)) = &*self.latest.borrow()
                && *asked_us >= since_us
            {
                return latest.clone();
            }
            if !self.is_made.replace(true) {
                let (making, asked_us, response) = (Making(Rc::clone(self)), E::monotonic_us(), make());
                env::spawn::<E>(async move {
                    let latest = response.await;
                    making.0.set(asked_us, latest);
                });
            }
            made.await;
        }
    }

    /// What is the same stays the same: who has it does not look into it again.
    fn set(&self, asked_us: u64, latest: Result<proto::GetServersResponse, CallError>) {
        let before = self.latest.take().and_then(|(_, latest)| latest.ok());
        let latest = latest.map(|response| {
            let told = Rc::new(Told::new(self.version.get() + 1, response));
            let told = before.filter(|before| before.all == told.all).unwrap_or(told);
            self.version.set(told.version);
            told
        });
        *self.latest.borrow_mut() = Some((asked_us, latest));
    }
}

/// While it is made; also one that ends without a result lets the next one make it.
struct Making(Rc<Servers>);

impl Drop for Making {
    fn drop(&mut self) {
        self.0.is_made.set(false);
        self.0.made.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::Code;
    use crate::sim::{SimEnv, SimRuntime};
    use std::time::Duration;

    fn response(topics: &[&str]) -> proto::GetServersResponse {
        let server = proto::Server { node_id: 7, grpc_address: "a:1".into(), ..Default::default() };
        let topic = |name: &&str| {
            let shards = (0..3).map(|shard| proto::ShardLeader { shard, leader_node_id: 7, ..Default::default() });
            proto::TopicShards { topic: (*name).to_owned(), shards: shards.collect() }
        };
        let topics = topics.iter().map(topic).collect();
        proto::GetServersResponse { cluster_id: "c".into(), servers: vec![server], topics }
    }

    fn watched(told: &Told, names: &[&str]) -> proto::WatchServersResponse {
        proto::WatchServersResponse::decode(&told.message(names).unwrap().concat()[..]).unwrap()
    }

    /// What a watcher gets is the whole answer, or that to the topics that it names.
    #[test]
    fn slices() {
        let told = Told::new(1, response(&["a", "b", "c"]));
        for (names, topics) in [(&[][..], &["a", "b", "c"][..]), (&["c", "a"][..], &["c", "a"][..])] {
            let proto::GetServersResponse { cluster_id, servers, topics } = response(topics);
            assert_eq!(watched(&told, names), proto::WatchServersResponse { cluster_id, servers, topics });
        }
        assert_eq!(told.message(&["a", "none"]), Err("none"));
        let other = Told::new(2, response(&["a", "b"]));
        let digest_of = |told: &Told, names: &[&str]| digest(&told.message(names).unwrap());
        assert_eq!(digest_of(&told, &["a"]), digest_of(&other, &["a"]));
        assert_ne!(digest_of(&told, &[]), digest_of(&other, &[]));
    }

    /// A hundred that look each second have it made once a second; when all are told of a change, once or twice. What is the
    /// same has the same number, an error is everybody's and nobody's for long, and who goes does not take it away.
    #[test]
    fn made_for_all() {
        SimRuntime::seeded(1).block_on(async {
            let (servers, count) = (Rc::<Servers>::default(), Rc::new(Cell::new(0)));
            let topics = Rc::new(RefCell::new(Ok(response(&["a"]))));
            let make = || {
                count.set(count.get() + 1);
                let topics = Rc::clone(&topics);
                async move {
                    env::sleep::<SimEnv>(Duration::from_millis(30)).await;
                    topics.borrow().clone()
                }
            };
            let now_us = SimEnv::monotonic_us;
            let look = async |since_us: u64| {
                let all = (0..100).map(|_| servers.latest::<SimEnv, _>(since_us, make));
                futures_util::future::join_all(all).await
            };
            let mut versions = Vec::new();
            for second in 0..10 {
                for latest in look(now_us().saturating_sub(20_000)).await {
                    versions.push(latest.unwrap().version);
                }
                assert_eq!(count.get(), second + 1);
                env::sleep::<SimEnv>(Duration::from_secs(1)).await;
            }
            assert!(versions.iter().all(|version| *version == 1), "{versions:?}");

            *topics.borrow_mut() = Ok(response(&["a", "b"]));
            {
                let goes = servers.latest::<SimEnv, _>(now_us(), make);
                let waits = Duration::from_millis(1);
                tokio::select! {
                    biased;
                    _ = goes => panic!("it takes longer"),
                    () = env::sleep::<SimEnv>(waits) => {}
                }
            }
            for latest in look(now_us()).await {
                assert_eq!(latest.unwrap().version, 2);
            }
            assert!((11..=12).contains(&count.get()), "made {} times", count.get());

            *topics.borrow_mut() = Err(CallError::starting());
            env::sleep::<SimEnv>(Duration::from_secs(1)).await;
            assert!(
                look(now_us()).await.iter().all(|latest| latest.as_ref().is_err_and(|e| e.code == Code::Unavailable))
            );
            *topics.borrow_mut() = Ok(response(&["a"]));
            env::sleep::<SimEnv>(Duration::from_secs(1)).await;
            assert_eq!(look(now_us()).await[99].as_ref().unwrap().version, 3);
        });
    }
}
