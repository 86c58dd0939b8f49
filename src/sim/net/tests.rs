//! What the network promises to those who test on it.

use std::future::Future;

use bytes::Bytes;
use futures_util::{FutureExt, future::join};

use super::*;
use crate::env::{
    net::{Connection, ReceiveStream, SendStream},
    runtime::block_on,
};

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);

async fn pair(network: &SimNetwork) -> [SimConnection; 2] {
    let (a, b) = (network.endpoint(A, "a", 1), network.endpoint(B, "b", 1));
    let to = Endpoint { node: B, host: "b".into(), port: 1 };
    let (dialled, accepted) = join(a.connect(to), b.accept()).await;
    // The endpoints end with their handles' `close` only.
    [dialled.unwrap(), accepted.unwrap()]
}

/// Lets everybody else run until nothing is left to do.
async fn settle() {
    for _ in 0..100 {
        crate::env::yield_now().await;
    }
}

async fn is_stuck(future: impl Future) -> bool {
    let mut future = Box::pin(future);
    for _ in 0..100 {
        if (&mut future).now_or_never().is_some() {
            return false;
        }
        crate::env::yield_now().await;
    }
    true
}

async fn read_all(receive: &mut SimReceive) -> Result<Vec<u8>, NetError> {
    let mut all = Vec::new();
    while let Some(piece) = receive.receive().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// A stream shows itself with its first bytes, keeps their order, and holds its sender back at the window.
#[test]
fn streams_are_ordered_and_bounded() {
    block_on(async {
        let network = SimNetwork::new();
        network.set_window(10);
        network.set_piece(3);
        network.set_delay(2);
        let [a, b] = pair(&network).await;
        let (mut send, mut answer) = a.open().await.unwrap();
        assert!(is_stuck(b.accept()).await, "nothing was sent yet");
        let content: Vec<u8> = (0..100).collect();
        assert!(is_stuck(send.send(vec![Bytes::copy_from_slice(&content)])).await, "the window is full");
        let (mut reply, mut receive) = b.accept().await.unwrap();
        assert_eq!(read_some(&mut receive, 10).await, content[..10]);
        let sending = async {
            send.send(vec![Bytes::copy_from_slice(&content[10..50]), Bytes::copy_from_slice(&content[50..])])
                .await
                .unwrap();
            send.finish();
        };
        let (all, ()) = join(read_all(&mut receive), sending).await;
        assert_eq!(all.unwrap(), content[10..]);
        reply.send(vec![Bytes::from_static(b"ok")]).await.unwrap();
        reply.finish();
        assert_eq!(read_all(&mut answer).await.unwrap(), b"ok");
    });
}

async fn read_some(receive: &mut SimReceive, bytes: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < bytes {
        all.extend_from_slice(&receive.receive().await.unwrap().unwrap());
    }
    all
}

/// A half that is dropped is seen by the other side: a sender as a broken stream, a receiver as a stop.
#[test]
fn dropped_halves() {
    block_on(async {
        let network = SimNetwork::new();
        let [a, b] = pair(&network).await;
        let (mut send, answer) = a.open().await.unwrap();
        send.send(vec![Bytes::from_static(b"x")]).await.unwrap();
        let (mut reply, mut receive) = b.accept().await.unwrap();
        drop(send);
        assert_eq!(receive.receive().await, Err(NetError::Ended { node: A }));
        drop(answer);
        assert_eq!(reply.send(vec![Bytes::from_static(b"y")]).await, Err(NetError::Ended { node: A }));
    });
}

/// Across a cut streams stall and datagrams are lost; healed, what was sent arrives; expired, it is lost on both sides.
#[test]
fn cuts() {
    block_on(async {
        let network = SimNetwork::new();
        let [a, b] = pair(&network).await;
        let (mut send, _answer) = a.open().await.unwrap();
        send.send(vec![Bytes::from_static(b"1")]).await.unwrap();
        let (mut reply, mut receive) = b.accept().await.unwrap();
        assert_eq!(receive.receive().await.unwrap().unwrap(), "1");
        network.cut(A, B);
        send.send(vec![Bytes::from_static(b"2")]).await.unwrap();
        a.send_datagram(Bytes::from_static(b"lost"));
        b.send_datagram(Bytes::from_static(b"comes"));
        assert!(is_stuck(receive.receive()).await);
        assert_eq!(a.receive_datagram().await.unwrap(), "comes", "the other direction is open");
        network.heal();
        assert_eq!(receive.receive().await.unwrap().unwrap(), "2");
        assert!(is_stuck(b.receive_datagram()).await);
        network.cut(B, A);
        network.expire();
        assert!(matches!(receive.receive().await, Err(NetError::Lost { node: A, .. })));
        assert!(matches!(a.closed().await, NetError::Lost { node: B, .. }));
        assert!(reply.send(vec![Bytes::from_static(b"z")]).await.is_err());
        assert!(a.is_closed() && b.is_closed());
        let again = SimNet { network: network.clone(), door: door(&network, "a") };
        let to = Endpoint { node: B, host: "b".into(), port: 1 };
        assert!(matches!(again.connect(to.clone()).await, Err(NetError::Unreachable { .. })), "both directions count");
        network.heal();
        assert!(again.connect(to).await.is_ok());
    });
}

fn door(network: &SimNetwork, host: &str) -> Rc<Door> {
    Rc::clone(&network.wires.doors.borrow()[&(host.to_owned(), 1)])
}

/// A crashed node is gone for all, also for itself, until it has a new endpoint; another node at its address is refused.
#[test]
fn crash_and_return() {
    block_on(async {
        let network = SimNetwork::new();
        let [a, b] = pair(&network).await;
        let old = SimNet { network: network.clone(), door: door(&network, "b") };
        network.crash(B);
        assert!(a.is_closed() && b.is_closed());
        assert!(old.accept().await.is_none());
        let client = SimNet { network: network.clone(), door: door(&network, "a") };
        let to = Endpoint { node: B, host: "b".into(), port: 1 };
        assert!(matches!(client.connect(to.clone()).await, Err(NetError::Unreachable { .. })));
        assert!(old.connect(Endpoint { node: A, host: "a".into(), port: 1 }).await.is_err());
        let new = network.endpoint(B, "b", 1);
        let (dialled, accepted) = join(client.connect(to.clone()), new.accept()).await;
        assert_eq!((dialled.unwrap().peer(), accepted.unwrap().peer()), (B, A));
        network.crash(B);
        let _other = network.endpoint(NodeId(9), "b", 1);
        assert!(matches!(client.connect(to).await, Err(NetError::Refused { .. })));
    });
}

/// A connection ends with the last handle of one side, and streams count as handles.
#[test]
fn handles_hold_the_connection() {
    block_on(async {
        let network = SimNetwork::new();
        let [a, b] = pair(&network).await;
        let (send, receive) = a.open().await.unwrap();
        drop(a);
        assert!(!b.is_closed());
        drop((send, receive));
        settle().await;
        assert!(b.is_closed());
        assert_eq!(network.connections(), 0);
    });
}

/// The streams of one side are limited; one that is over on both sides makes room.
#[test]
fn streams_are_limited() {
    block_on(async {
        let network = SimNetwork::new();
        network.set_streams_max(1);
        let [a, b] = pair(&network).await;
        let (mut send, receive) = a.open().await.unwrap();
        send.send(vec![Bytes::from_static(b"x")]).await.unwrap();
        assert!(is_stuck(a.open()).await);
        assert!(b.open().await.is_ok(), "the other side has its own limit");
        let theirs = b.accept().await.unwrap();
        drop((send, receive));
        assert!(is_stuck(a.open()).await);
        let (opened, ()) = join(a.open(), async { drop(theirs) }).await;
        assert!(opened.is_ok());
    });
}
