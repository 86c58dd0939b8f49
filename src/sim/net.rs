//! A network between nodes in memory, for tests: connections that can be cut.

use crate::env::net::{Connection, Endpoint, Net, NetError, Priority, ReceiveStream, SendStream};
use crate::ids::NodeId;
use bytes::Bytes;

/// One reactor's endpoint.
#[derive(Clone, Debug)]
pub struct SimNet;
/// A connection.
#[derive(Clone, Debug)]
pub struct SimConnection;
/// Sending half.
#[derive(Debug)]
pub struct SimSend;
/// Receiving half.
#[derive(Debug)]
pub struct SimReceive;

impl Net for SimNet {
    type Connection = SimConnection;
    async fn connect(&self, _to: Endpoint) -> Result<SimConnection, NetError> {
        todo!()
    }
    async fn accept(&self) -> Option<SimConnection> {
        todo!()
    }
    async fn close(&self) {
        todo!()
    }
}
impl Connection for SimConnection {
    type Send = SimSend;
    type Receive = SimReceive;
    fn peer(&self) -> NodeId {
        todo!()
    }
    async fn open(&self) -> Result<(SimSend, SimReceive), NetError> {
        todo!()
    }
    async fn accept(&self) -> Result<(SimSend, SimReceive), NetError> {
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
impl SendStream for SimSend {
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
impl ReceiveStream for SimReceive {
    async fn receive(&mut self) -> Result<Option<Bytes>, NetError> {
        todo!()
    }
}
