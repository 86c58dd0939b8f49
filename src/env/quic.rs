//! The real network between nodes: QUIC (quinn) on the reactor's own runtime, mutual TLS always.

use super::net::{Connection, Endpoint, Net, NetError, Priority, ReceiveStream, SendStream};
use crate::ids::NodeId;
use bytes::Bytes;

/// One reactor's endpoint.
#[derive(Clone, Debug)]
pub struct QuicNet;
/// A connection.
#[derive(Clone, Debug)]
pub struct QuicConnection;
/// Sending half.
#[derive(Debug)]
pub struct QuicSend;
/// Receiving half.
#[derive(Debug)]
pub struct QuicReceive;

impl Net for QuicNet {
    type Connection = QuicConnection;
    async fn connect(&self, _to: Endpoint) -> Result<QuicConnection, NetError> {
        todo!()
    }
    async fn accept(&self) -> Option<QuicConnection> {
        todo!()
    }
    async fn close(&self) {
        todo!()
    }
}
impl Connection for QuicConnection {
    type Send = QuicSend;
    type Receive = QuicReceive;
    fn peer(&self) -> NodeId {
        todo!()
    }
    async fn open(&self) -> Result<(QuicSend, QuicReceive), NetError> {
        todo!()
    }
    async fn accept(&self) -> Result<(QuicSend, QuicReceive), NetError> {
        todo!()
    }
    fn send_datagram(&self, _datagram: Bytes) {
        todo!()
    }
    async fn receive_datagram(&self) -> Result<Bytes, NetError> {
        todo!()
    }
    async fn closed(&self) -> NetError {
        todo!()
    }
    fn is_closed(&self) -> bool {
        todo!()
    }
    fn close(&self, _why: &str) {
        todo!()
    }
}
impl SendStream for QuicSend {
    async fn send(&mut self, _pieces: Vec<Bytes>) -> Result<(), NetError> {
        todo!()
    }
    fn set_priority(&self, _priority: Priority) {
        todo!()
    }
    fn finish(&mut self) {
        todo!()
    }
}
impl ReceiveStream for QuicReceive {
    async fn receive(&mut self) -> Result<Option<Bytes>, NetError> {
        todo!()
    }
}
