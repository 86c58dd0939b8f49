//! gRPC over h2. TO BE WRITTEN

use crate::{env::Env, frontend::Frontend};

/// Serves one client connection until it ends or the node shuts down.
pub async fn serve_connection<E: Env>(socket: tokio::net::TcpStream, frontend: Frontend<E>) {
    let _ = (socket, frontend);
    todo!()
}
