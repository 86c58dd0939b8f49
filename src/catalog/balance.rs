//! Evening out: which replicas and preferred leaders to move so that all active nodes have as many as the others, with
//! as few moves of records as possible.
//!
//! Three steps, each of which makes a sum of squares smaller, so that they end: replicas over nodes, leaders over nodes,
//! leaders over the reactors of nodes. Only shards whose replicas are all on active nodes and stay there take part.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Catalog, Command, PreferLeader,
    placement::{Load, is_settled, move_to},
};
use crate::{
    ids::{NodeId, ShardUid},
    limits::{NODE_SHARDS_MAX, REBALANCE_MOVES_MAX},
};

/// One shard on its way to a better place.
#[derive(Clone, Debug)]
struct Piece {
    uid: ShardUid,
    slot: u64,
    /// As the catalog has them.
    before: Vec<NodeId>,
    /// As they should be; the first leads.
    nodes: Vec<NodeId>,
}

impl Piece {
    fn leader(&self) -> NodeId {
        self.nodes[0]
    }

    fn is_on(&self, node: NodeId) -> bool {
        self.nodes.contains(&node)
    }
}

struct Balance {
    load: Load,
    /// Shards that may be moved.
    pieces: Vec<Piece>,
    moves: usize,
}

impl Catalog {
    /// Commands that even out replicas and preferred leaders over the active nodes, and leaders over their reactors;
    /// empty when nothing would become better. Shards that move, or have a replica on a node that is not active, stay as
    /// they are: ask again when `plan` has nothing to do.
    ///
    /// Once all commands are carried out, and asked for and carried out again until there is none, the active nodes' numbers
    /// of replicas differ by one at most, and so do their numbers of preferred leaders. No more than
    /// `REBALANCE_MOVES_MAX` replicas move in one go.
    pub fn plan_rebalance(&self) -> Vec<Command> {
        let shards = self.topics.values().flat_map(|topic| topic.placed_shards());
        let pieces = shards.filter(|shard| is_settled(self, shard.replicas)).map(|shard| Piece {
            uid: shard.uid,
            slot: shard.slot,
            before: shard.replicas.nodes.clone(),
            nodes: shard.replicas.nodes.clone(),
        });
        let mut balance = Balance { load: Load::of(self), pieces: pieces.collect(), moves: 0 };
        balance.even_replicas();
        balance.even_leaders();
        balance.even_reactors();
        balance.pieces.iter().filter_map(command).collect()
    }
}

/// Places a new topic's shards, of these slots, on `count` nodes each; `None` if too few have room.
pub(super) fn place_new(
    mut load: Load,
    slots: impl Iterator<Item = (ShardUid, u64)>,
    count: usize,
) -> Option<Vec<Vec<NodeId>>> {
    let pieces = slots
        .map(|(uid, slot)| load.place(slot, count).map(|nodes| Piece { uid, slot, before: nodes.clone(), nodes }))
        .collect::<Option<Vec<_>>>()?;
    // One by one they come out nearly even; nothing is written yet, so the rest costs nothing.
    let mut balance = Balance { load, pieces, moves: 0 };
    balance.even_leaders();
    balance.even_reactors();
    Some(balance.pieces.into_iter().map(|piece| piece.nodes).collect())
}

/// What brings about what a piece should be.
fn command(piece: &Piece) -> Option<Command> {
    let (before, nodes): (BTreeSet<_>, BTreeSet<_>) = (piece.before.iter().collect(), piece.nodes.iter().collect());
    if before != nodes {
        return Some(move_to(piece.uid, &piece.nodes));
    }
    let prefer = PreferLeader { shard_uid: piece.uid.0, node_id: piece.leader().0 };
    (piece.before[0] != piece.leader()).then_some(Command::PreferLeader(prefer))
}

impl Balance {
    /// Nodes with something to count, most first.
    fn ranked(&self, count: impl Fn(&Balance, NodeId) -> usize) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.load.nodes.keys().copied().collect();
        nodes.sort_by_key(|node| (std::cmp::Reverse(count(self, *node)), *node));
        nodes
    }

    fn replicas(&self, node: NodeId) -> usize {
        self.load.nodes[&node].all.replicas
    }

    fn leaders(&self, node: NodeId) -> usize {
        self.load.nodes[&node].all.leaders
    }

    fn change(&mut self, piece: usize, nodes: Vec<NodeId>) {
        let Piece { slot, nodes: before, .. } = &self.pieces[piece];
        self.load.remove(*slot, before);
        self.load.add(*slot, &nodes);
        self.pieces[piece].nodes = nodes;
    }

    /// Moves a piece's replica from one node to another one, which leads if the first did.
    fn relocate(&mut self, piece: usize, from: NodeId, to: NodeId) {
        let nodes = self.pieces[piece].nodes.iter().map(|node| if *node == from { to } else { *node }).collect();
        self.change(piece, nodes);
        self.load.hold(to);
        self.moves += 1;
    }

    fn lead(&mut self, piece: usize, leader: NodeId) {
        let mut nodes = self.pieces[piece].nodes.clone();
        let place = nodes.iter().position(|node| *node == leader).expect("who is to lead has a replica");
        nodes[..=place].rotate_right(1);
        self.change(piece, nodes);
    }

    /// From the fullest node to the emptiest, until they differ by one at most. A node that has more replicas than another
    /// has a shard that the other has not: so this ends early only when too many shards may not be moved.
    fn even_replicas(&mut self) {
        'next: while self.moves < REBALANCE_MOVES_MAX {
            let nodes = self.ranked(Balance::replicas);
            for from in &nodes {
                for to in nodes.iter().rev() {
                    if self.replicas(*from) < self.replicas(*to) + 2 {
                        break;
                    }
                    if self.has_room(*to)
                        && let Some(piece) = self.best_to_move(*from, *to)
                    {
                        self.relocate(piece, *from, *to);
                        continue 'next;
                    }
                }
            }
            return;
        }
    }

    fn has_room(&self, node: NodeId) -> bool {
        self.load.nodes[&node].held < NODE_SHARDS_MAX
    }

    /// The piece whose move from one node to the other does the most good: leaders first if the one has more of them than
    /// the other, then from a full reactor to an empty one.
    fn best_to_move(&self, from: NodeId, to: NodeId) -> Option<usize> {
        let leaders_move = self.leaders(from) > self.leaders(to);
        let movable = self.pieces.iter().enumerate().filter(|(_, piece)| piece.is_on(from) && !piece.is_on(to));
        let key = |piece: &Piece| {
            let right_kind = (piece.leader() == from) == leaders_move;
            let there = self.load.nodes[&to].reactor(piece.slot).replicas as i64;
            let here = self.load.nodes[&from].reactor(piece.slot).replicas as i64;
            (!right_kind, there - here, piece.uid)
        };
        movable.min_by_key(|(_, piece)| key(piece)).map(|(place, _)| place)
    }

    /// Hands leaderships from nodes with many to nodes with few, along replicas that are there; where none are, swaps two
    /// replicas first.
    fn even_leaders(&mut self) {
        loop {
            let nodes = self.ranked(Balance::leaders);
            let Some((most, least)) = nodes.first().copied().zip(nodes.last().copied()) else { return };
            if self.leaders(most) < self.leaders(least) + 2 {
                return;
            }
            let handed =
                nodes.iter().any(|from| self.leaders(*from) >= self.leaders(least) + 2 && self.hand_over(*from));
            if !handed && !self.swap_replicas(&nodes) {
                return;
            }
        }
    }

    /// Takes a leadership from a node, to one that has at least two fewer, over as many shards as it takes.
    fn hand_over(&mut self, from: NodeId) -> bool {
        let mut led: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (place, piece) in self.pieces.iter().enumerate() {
            led.entry(piece.leader()).or_default().push(place);
        }
        // Who was reached over which piece: the first way found is a shortest one.
        let mut reached: BTreeMap<NodeId, usize> = BTreeMap::new();
        let mut pending = VecDeque::from([from]);
        while let Some(node) = pending.pop_front() {
            for place in led.get(&node).into_iter().flatten().copied() {
                for next in self.pieces[place].nodes[1..].iter().copied() {
                    if next == from || reached.contains_key(&next) {
                        continue;
                    }
                    reached.insert(next, place);
                    pending.push_back(next);
                    if self.leaders(next) + 2 <= self.leaders(from) {
                        self.hand_along(from, next, &reached);
                        return true;
                    }
                }
            }
        }
        false
    }

    fn hand_along(&mut self, from: NodeId, to: NodeId, reached: &BTreeMap<NodeId, usize>) {
        let mut node = to;
        while node != from {
            let piece = reached[&node];
            let before = self.pieces[piece].leader();
            self.lead(piece, node);
            node = before;
        }
    }

    /// Swaps a replica that leads on a node with many leaders with one that does not on a node with few. If the nodes have
    /// equally many replicas, and the first hands over to the second no other way, there are two such.
    fn swap_replicas(&mut self, nodes: &[NodeId]) -> bool {
        if self.moves + 2 > REBALANCE_MOVES_MAX {
            return false;
        }
        for most in nodes {
            for least in nodes.iter().rev() {
                if self.leaders(*most) < self.leaders(*least) + 2 {
                    break;
                }
                let find = |on: NodeId, off: NodeId, leads: bool| {
                    self.pieces
                        .iter()
                        .position(|piece| piece.is_on(on) && !piece.is_on(off) && (piece.leader() == on) == leads)
                };
                let pair = find(*most, *least, true).zip(find(*least, *most, false));
                if let Some((leading, following)) = pair.filter(|_| self.has_room(*most) && self.has_room(*least)) {
                    self.relocate(leading, *most, *least);
                    self.relocate(following, *least, *most);
                    return true;
                }
            }
        }
        false
    }

    /// Two shards that can lead on each other's node swap leaders, where that makes their reactors more even.
    fn even_reactors(&mut self) {
        // Leader, other node, and the shard's reactors on both: shards that are alike in this are alike in all that counts.
        let mut kinds: BTreeMap<Kind, Vec<usize>> = BTreeMap::new();
        for place in 0..self.pieces.len() {
            for kind in self.kinds(place) {
                kinds.entry(kind).or_default().push(place);
            }
        }
        while let Some((a, b)) = self.best_swap(&kinds) {
            for (piece, leader) in [(a.0, a.1.other), (b.0, b.1.other)] {
                for kind in self.kinds(piece) {
                    let alike = kinds.get_mut(&kind).expect("every piece is in the table");
                    alike.retain(|other| *other != piece);
                    if alike.is_empty() {
                        kinds.remove(&kind);
                    }
                }
                self.lead(piece, leader);
                for kind in self.kinds(piece) {
                    kinds.entry(kind).or_default().push(piece);
                }
            }
        }
    }

    fn kinds(&self, place: usize) -> Vec<Kind> {
        let piece = &self.pieces[place];
        let reactor = |node: NodeId| piece.slot % self.load.nodes[&node].reactors.len() as u64;
        let leader = piece.leader();
        let kind = |other: &NodeId| Kind {
            leader,
            other: *other,
            leader_reactor: reactor(leader),
            other_reactor: reactor(*other),
        };
        piece.nodes[1..].iter().map(kind).collect()
    }

    /// Two pieces that should swap leaders, with what they are.
    fn best_swap(&self, kinds: &BTreeMap<Kind, Vec<usize>>) -> Option<((usize, Kind), (usize, Kind))> {
        let leaders = |node: NodeId, reactor: u64| self.load.nodes[&node].reactors[reactor as usize].leaders as i64;
        // How much the sum of squares falls when a leader goes from one reactor of a node to another one.
        let gain = |node: NodeId, from: u64, to: u64| {
            if from == to { 0 } else { leaders(node, from) - leaders(node, to) - 1 }
        };
        for (a, first) in kinds {
            let range = Kind { leader: a.other, other: a.leader, leader_reactor: 0, other_reactor: 0 }..=Kind {
                leader: a.other,
                other: a.leader,
                leader_reactor: u64::MAX,
                other_reactor: u64::MAX,
            };
            for (b, second) in kinds.range(range) {
                let gained = gain(a.leader, a.leader_reactor, b.other_reactor)
                    + gain(b.leader, b.leader_reactor, a.other_reactor);
                if gained > 0 {
                    return Some(((first[0], *a), (second[0], *b)));
                }
            }
        }
        None
    }
}

/// What swapping leaders depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    leader: NodeId,
    other: NodeId,
    leader_reactor: u64,
    other_reactor: u64,
}
