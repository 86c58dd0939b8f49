//! Where the load goes: which server each connection is to, and which shards it names.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{CommonArgs, Failure, payload::Payload};
use crate::client::{Client, Cluster, cluster::topology::Topology};

/// How long shards may be without a leader before a run is given up.
const LEADERS_WITHIN: Duration = Duration::from_secs(10);

/// One server to connect to, and the shards to name there; no shards: the server chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: Arc<str>,
    pub(super) shards: Vec<u32>,
}

/// A connection and what is sent on it.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) client: Client,
    pub(super) payload: Rc<Payload>,
}

/// All servers that load can go to, once every shard of the topic has a leader.
pub(super) async fn find(cluster: &Cluster, args: &CommonArgs, shards: u32) -> Result<Vec<Target>, Failure> {
    let topology = with_leaders(cluster, &args.topic, shards).await?;
    if topology.servers.len() <= 1 {
        if args.any {
            return Err("there is one node only: it leads everything, and nothing is forwarded; leave out --any"
                .to_owned()
                .into());
        }
        // What was given works; and a single node knows best which shard is near to a connection.
        let address = cluster.any().await?.address().into();
        return Ok(vec![Target { address, shards: Vec::new() }]);
    }
    Ok(if args.any { non_leaders(&topology, &args.topic, shards) } else { leaders(&topology, &args.topic, shards) })
}

/// Connections spread over the targets, as many as wanted.
pub(super) async fn connect(args: &CommonArgs, targets: &[Target]) -> Result<Vec<(Client, Target)>, Failure> {
    let wanted = args.connections as usize;
    if wanted < targets.len() {
        let named: usize = targets[..wanted].iter().map(|target| target.shards.len()).sum();
        let note = format!(
            "the shards are led by {} nodes, and --connections {wanted} reaches {named} of them; raise it to load all\n",
            targets.len()
        );
        drop(std::io::stderr().write_all(note.as_bytes()));
    }
    let mut connected = Vec::new();
    for target in targets.iter().cycle().take(wanted) {
        connected.push((Client::connect_within(&target.address, args.server.timeout).await?, target.clone()));
    }
    Ok(connected)
}

/// The topology, once it knows a leader of every shard.
async fn with_leaders(cluster: &Cluster, topic: &str, shards: u32) -> Result<Arc<Topology>, Failure> {
    let since = Instant::now();
    loop {
        let topology = cluster.topology();
        let missing = (0..shards).find(|shard| topology.leader_address(topic, *shard).is_none());
        let Some(missing) = missing else { return Ok(topology) };
        if since.elapsed() > LEADERS_WITHIN {
            let seconds = LEADERS_WITHIN.as_secs();
            return Err(format!(
                "topic {topic} shard {missing} has had no leader for {seconds} s; see `ringlog cluster status`"
            )
            .into());
        }
        cluster.refresh();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The leaders, each with the shards that it leads.
fn leaders(topology: &Topology, topic: &str, shards: u32) -> Vec<Target> {
    let mut led: BTreeMap<Arc<str>, Vec<u32>> = BTreeMap::new();
    for shard in 0..shards {
        if let Some(leader) = topology.leader_address(topic, shard) {
            led.entry(leader).or_default().push(shard);
        }
    }
    led.into_iter().map(|(address, shards)| Target { address, shards }).collect()
}

/// All live servers, each with the shards that it does not lead.
fn non_leaders(topology: &Topology, topic: &str, shards: u32) -> Vec<Target> {
    let addresses: BTreeSet<&Arc<str>> =
        topology.servers.iter().filter(|server| server.alive).map(|server| &server.address).collect();
    let targets = addresses.into_iter().map(|address| {
        let is_led_here = |shard: u32| topology.leader_address(topic, shard).as_ref() == Some(address);
        Target { address: Arc::clone(address), shards: (0..shards).filter(|shard| !is_led_here(*shard)).collect() }
    });
    targets.filter(|target| !target.shards.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::cluster::topology::Scope,
        proto::ringlog::v1::{GetServersResponse, Server, ShardLeader, TopicShards},
    };

    fn topology() -> Topology {
        let server = |node_id: u64| Server {
            node_id,
            grpc_address: format!("n{node_id}"),
            alive: node_id != 4,
            ..Server::default()
        };
        let shard = |shard, leader_node_id| ShardLeader { shard, leader_node_id, term: 1, ..ShardLeader::default() };
        let shards = vec![shard(0, 1), shard(1, 2), shard(2, 1)];
        let topics = vec![TopicShards { topic: "t".into(), shards }];
        let told = GetServersResponse { cluster_id: "c".into(), servers: (1..=4).map(server).collect(), topics };
        Topology::default().updated(told, Scope::All)
    }

    fn target(address: &str, shards: &[u32]) -> Target {
        Target { address: address.into(), shards: shards.to_vec() }
    }

    /// Straight: each leader gets the shards that it leads. Through others: each live server those that it does not.
    #[test]
    fn shards_by_server() {
        assert_eq!(leaders(&topology(), "t", 3), [target("n1", &[0, 2]), target("n2", &[1])]);
        let through = [target("n1", &[1]), target("n2", &[0, 2]), target("n3", &[0, 1, 2])];
        assert_eq!(non_leaders(&topology(), "t", 3), through);
    }
}
