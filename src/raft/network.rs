//! Calls between replicas. There is one voter so far: every call answers that the peer cannot be reached.

use std::future::Future;

use bytes::Bytes;
use openraft::{
    RaftNetworkFactory, RaftNetworkV2,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};

use super::{
    Machine,
    types::{Node, RaftVote, Snapshot, TypeConfig},
};
use crate::env::Env;

/// Makes connections to peers.
#[derive(Clone, Copy, Debug)]
pub struct Network;

/// A peer.
#[derive(Clone, Debug)]
pub struct Peer {
    id: u64,
    address: String,
}

impl Peer {
    fn unreachable<E: Env, M: Machine>(&self) -> Unreachable<TypeConfig<E, M>> {
        Unreachable::from_string(format!(
            "node {} at {:?} cannot be reached: this version of ringlog has no connections between nodes",
            self.id, self.address
        ))
    }
}

impl<E: Env, M: Machine> RaftNetworkFactory<TypeConfig<E, M>> for Network {
    type Network = PeerOf<E, M>;

    async fn new_client(&mut self, target: u64, node: &Node) -> Self::Network {
        PeerOf { peer: Peer { id: target, address: node.peer_address.clone() }, world: std::marker::PhantomData }
    }
}

/// A peer of one kind of group.
pub struct PeerOf<E, M> {
    peer: Peer,
    world: std::marker::PhantomData<fn() -> (E, M)>,
}

impl<E: Env, M: Machine> RaftNetworkV2<TypeConfig<E, M>> for PeerOf<E, M> {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        _request: AppendEntriesRequest<TypeConfig<E, M>>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>> {
        Err(self.peer.unreachable().into())
    }

    async fn vote(
        &mut self,
        _request: VoteRequest<TypeConfig<E, M>>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>> {
        Err(self.peer.unreachable().into())
    }

    // openraft's default grants, which would let a cut-off node count votes that nobody gave.
    async fn pre_vote(
        &mut self,
        _request: VoteRequest<TypeConfig<E, M>>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>> {
        Err(self.peer.unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: RaftVote,
        _snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig<E, M>>, StreamingError<TypeConfig<E, M>>> {
        Err(self.peer.unreachable().into())
    }

    async fn transfer_leader(
        &mut self,
        _request: TransferLeaderRequest<TypeConfig<E, M>>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig<E, M>>, RPCError<TypeConfig<E, M>>> {
        Err(self.peer.unreachable().into())
    }
}
