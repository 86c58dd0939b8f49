//! UDP sockets of a node's reactors: one port each, next to one another.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Once},
};

use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
use socket2::{Domain, Protocol, Socket, Type};

/// Bytes of a socket's buffers, in both directions: 1 ms of 25 Gbit/s. The kernel may give less.
const BUFFER_BYTES: usize = 4 << 20;

/// Less than this overflows when a reactor is busy for a moment.
const BUFFER_BYTES_ENOUGH: usize = 1 << 20;

/// How often free ports next to one another are looked for.
const ATTEMPTS: usize = 64;

/// Binds the sockets of `reactors` reactors: `base` and the ports after it. Port 0 means any that are free; the first
/// socket's address tells which. They belong to this process from now on; `QuicNet::new` takes one each.
///
/// # Errors
/// Which port could not be bound, and why.
pub fn bind_reactors(base: SocketAddr, reactors: usize) -> io::Result<Vec<UdpSocket>> {
    if base.port() != 0 {
        return bind_range(base, reactors);
    }
    let mut failure = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let first = bind(base)?;
        let mut sockets = vec![first];
        let next = SocketAddr::new(base.ip(), sockets[0].local_addr()?.port().saturating_add(1));
        match bind_range(next, reactors.saturating_sub(1)) {
            Ok(others) => {
                sockets.extend(others);
                return Ok(sockets);
            }
            Err(error) => failure = error,
        }
    }
    Err(io::Error::new(failure.kind(), format!("no {reactors} free UDP ports next to one another: {failure}")))
}

fn bind_range(base: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    let one = |number: usize| {
        let port = u16::try_from(usize::from(base.port()) + number).map_err(|_| {
            let what = format!("{count} UDP ports from {} on would go beyond 65535", base.port());
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })?;
        let address = SocketAddr::new(base.ip(), port);
        bind(address).map_err(|error| io::Error::new(error.kind(), format!("UDP {address} cannot be bound: {error}")))
    };
    (0..count).map(one).collect()
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // One socket for both families, where the address says "any".
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    grow_buffers(&socket);
    Ok(socket.into())
}

/// Asks for large buffers, beyond the system's limit where we are allowed to.
fn grow_buffers(socket: &Socket) {
    use rustix::net::sockopt;
    // What is refused leaves the buffer as it was; what was reached is looked at below.
    if sockopt::set_socket_recv_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        drop(socket.set_recv_buffer_size(BUFFER_BYTES));
    }
    if sockopt::set_socket_send_buffer_size_force(socket, BUFFER_BYTES).is_err() {
        drop(socket.set_send_buffer_size(BUFFER_BYTES));
    }
    static SAID: Once = Once::new();
    // The kernel reports twice of what it gives (socket(7)).
    if let Ok(bytes) = socket.recv_buffer_size().map(|bytes| bytes / 2)
        && bytes < BUFFER_BYTES_ENOUGH
    {
        SAID.call_once(|| {
            tracing::info!(
                bytes,
                "the system limits the receive buffers between nodes; bursts are lost and sent again: raise \
                 net.core.rmem_max to {BUFFER_BYTES}, and net.core.wmem_max too"
            );
        });
    }
}

/// The socket as quinn drives it, on this thread's runtime.
pub(super) fn wrap(socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    let socket = TokioRuntime.wrap_udp_socket(socket)?;
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let (send, receive) = (socket.max_transmit_segments(), socket.max_receive_segments());
        let segments = format!("{send} out, {receive} in");
        if send > 1 && receive > 1 {
            tracing::info!(%segments, "packets between nodes pass the kernel in bursts (GSO and GRO)");
        } else {
            tracing::warn!(%segments, "packets between nodes pass the kernel one by one: it has no GSO or no GRO");
        }
    });
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::runtime::block_on;

    /// The ports are next to one another, given or not, and nobody else's.
    #[test]
    fn ports_in_a_row() {
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let sockets = bind_reactors(any, 4).unwrap();
        let ports: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        assert_eq!(ports, [ports[0], ports[0] + 1, ports[0] + 2, ports[0] + 3]);
        let taken = bind_reactors(SocketAddr::new(any.ip(), ports[2]), 1).unwrap_err();
        assert!(taken.to_string().contains(&format!("UDP 127.0.0.1:{} cannot be bound", ports[2])), "{taken}");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(sockets);
        let again = bind_reactors(SocketAddr::new(any.ip(), ports[0]), 4).unwrap();
        assert_eq!(again[3].local_addr().unwrap().port(), ports[3]);
        let beyond = bind_reactors(SocketAddr::new(any.ip(), 65_535), 2).unwrap_err();
        assert!(beyond.to_string().contains("beyond 65535") || beyond.kind() == io::ErrorKind::AddrInUse, "{beyond}");
    }

    /// The buffers are as large as the system lets them be, and quinn finds the kernel's bursts: what a kernel of this
    /// century has.
    #[test]
    fn bursts_and_buffers() {
        let socket = bind_reactors(([127, 0, 0, 1], 0).into(), 1).unwrap().remove(0);
        let plain = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let bytes = socket2::SockRef::from(&socket).recv_buffer_size().unwrap();
        assert!(bytes >= plain.recv_buffer_size().unwrap(), "{bytes}");
        block_on(async {
            let wrapped = wrap(socket).unwrap();
            assert!(wrapped.max_transmit_segments() > 1);
            assert!(wrapped.max_receive_segments() > 1);
            assert!(!wrapped.may_fragment());
        });
    }
}
