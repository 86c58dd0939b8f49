//! A client and a server in one thread, for the tests of this directory.

#![allow(clippy::disallowed_methods, reason = "tests listen and connect")]

use std::future::poll_fn;
use std::rc::Rc;

use bytes::Bytes;
use http::Request;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

use crate::env::real::RealEnv;
use crate::env::runtime::block_on;
use crate::frontend::grpc::answers::Answers;
use crate::frontend::grpc::body::Body;
use crate::frontend::grpc::received::Received;
use crate::frontend::grpc::small_frames::SmallFrames;
use crate::frontend::grpc::stream::Responses;

/// Two ends of a TCP connection.
pub(super) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, server) = tokio::join!(client, listener.accept());
    let (client, server) = (client.unwrap(), server.unwrap().0);
    // Small windows and delayed acknowledgements together would cost 40 ms each time.
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (client, server)
}

/// A connection's answers, alone on its reactor.
pub(super) fn answers() -> Answers {
    Answers::new::<RealEnv>(&Rc::default())
}

/// What a connection has received, alone on its reactor.
pub(super) fn received() -> Received {
    Received::new::<RealEnv>(&Rc::default())
}

/// One request, answered by `server`; `client` gets the response's body. The client's windows are the
/// smallest of HTTP/2.
pub(super) fn answer(server: impl AsyncFnOnce(Responses), client: impl AsyncFnOnce(h2::RecvStream)) {
    answer_within(65_535, server, client);
}

/// The same with another window of the stream.
pub(super) fn answer_within(
    window: u32,
    server: impl AsyncFnOnce(Responses),
    client: impl AsyncFnOnce(h2::RecvStream),
) {
    block_on(async {
        let (near, far) = pair().await;
        let serve = async {
            let mut connection: h2::server::Connection<_, Body> =
                h2::server::Builder::new().max_send_buffer_size(1 << 20).handshake(far).await.unwrap();
            let (_, respond) = connection.accept().await.unwrap().unwrap();
            let responses = Responses::new(respond, SmallFrames::default(), received(), answers());
            let ((), ()) = tokio::join!(server(responses), async {
                assert!(connection.accept().await.is_none());
            });
        };
        let ask = async {
            let mut builder = h2::client::Builder::new();
            let (mut requests, connection) =
                builder.initial_window_size(window).handshake::<_, Bytes>(near).await.unwrap();
            let ask = async {
                poll_fn(|cx| requests.poll_ready(cx)).await.unwrap();
                let request = Request::post("http://x/").body(()).unwrap();
                let (response, _) = requests.send_request(request, true).unwrap();
                client(response.await.unwrap().into_body()).await;
                drop(requests);
            };
            let (result, ()) = tokio::join!(connection, ask);
            result.unwrap();
        };
        tokio::join!(serve, ask);
    });
}
