//! When a connection is served, and how much is read and done in its turn.

use super::*;
use crate::env::channel::Notify;
use crate::frontend::grpc::received;

/// A call that takes in its client's messages until it is told to go on, and then takes them.
fn when_told(go: &Notify) -> impl Fn(Request<h2::RecvStream>, Responses) -> Timer {
    move |request, responses| {
        let mut told = go.notified();
        Box::pin(async move {
            let mut requests = Requests::new(request.into_body(), Encoding::Identity, 1 << 20, responses.received());
            poll_fn(|cx| {
                requests.hold(cx);
                Pin::new(&mut told).poll(cx)
            })
            .await;
            while poll_fn(|cx| requests.poll_next(cx)).await.unwrap().is_some() {}
            responses.finish(Ok(()));
        })
    }
}

/// What is to happen has happened.
async fn settled() {
    env::yield_times(1_000).await;
}

/// Sockets are not read while too much is unread, and are again when others have made room, although nobody else wakes them.
#[test]
fn sockets_wait_for_room() {
    const MOST: usize = 48 << 10;
    // Of a message that is larger than that, and smaller than the first window: what comes behind its prefix.
    const REST: usize = 65_000;
    block_on(async {
        let pool = Rc::new(received::Pool::with_unread(MOST));
        let connections = [(); 2].map(|()| Received::new::<RealEnv>(&pool));
        let unread = || connections.each_ref().map(|connection| connection.unread().get());
        let go = [(); 2].map(|()| Notify::new());
        let serve = async |server: TcpStream, number: usize| {
            let shared = Shared { received: connections[number].clone(), ..shared() };
            run_alone(server, shared, never(), NEVER, when_told(&go[number])).await;
        };
        let send = |requests: &mut h2::client::SendRequest<Bytes>| {
            let request = Request::post("http://x/").body(()).unwrap();
            let (response, mut stream) = requests.send_request(request, false).unwrap();
            let message = [&grpc::prefix(REST)[..], &[0; REST]].concat();
            for frame in message.chunks(1_000) {
                stream.send_data(Bytes::copy_from_slice(frame), false).unwrap();
            }
            stream.send_data(Bytes::new(), true).unwrap();
            response
        };
        let ((first, first_server), (second, second_server)) = (pair().await, pair().await);
        let clients = async {
            let (mut first, mut second) = (client(first).await, client(second).await);
            let first = send(&mut first);
            settled().await;
            let [all, _] = unread();
            assert!(all <= MOST && all > MOST - limits::UNREAD_BYTES_MIN, "{all}");
            let second = send(&mut second);
            settled().await;
            let [same, little] = unread();
            assert!(same == all && little > 0 && little <= limits::UNREAD_BYTES_MIN, "{same} and {little}");
            go[0].notify_all();
            assert_eq!(first.await.unwrap().status(), 200);
            settled().await;
            let [_, more] = unread();
            assert!(more <= MOST && more > MOST - limits::UNREAD_BYTES_MIN, "{more}");
            go[1].notify_all();
            assert_eq!(second.await.unwrap().status(), 200);
            assert_eq!(unread(), [0, 0]);
        };
        tokio::select! {
            () = serve(first_server, 0) => panic!("the connection ended"),
            () = serve(second_server, 1) => panic!("the connection ended"),
            () = clients => {}
        }
    });
}

/// Connections that bring more than their turns take keep a quiet one waiting for one of them, and not for each; and all that they
/// bring is read in the end.
#[test]
fn busy_connections_take_turns() {
    const BUSY: usize = 20;
    const TURN: usize = ROUNDS_MAX * ROUND_FRAMES;
    // As many as need no cause.
    const PINGS: usize = 30 * TURN;
    /// An HTTP/2 PING frame (RFC 9113, section 6.7).
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    block_on(async {
        let lane: Rc<Lane> = Rc::default();
        let serve = |server| {
            let shared = Shared { lane: Rc::clone(&lane), ..shared() };
            env::spawn::<RealEnv>(run_alone(server, shared, never(), NEVER, answer));
        };
        let (stream, server) = pair().await;
        serve(server);
        let mut quiet = client(stream).await;
        assert_eq!(status(&mut quiet).await.unwrap(), 200);
        let read = Rc::new(Cell::new(0));
        let mut pairs = vec![];
        for _ in 0..BUSY {
            pairs.push(pair().await);
        }
        for (stream, server) in pairs {
            serve(server);
            let (mut reader, mut writer) = stream.into_split();
            env::spawn::<RealEnv>(async move {
                writer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
                writer.write_all(&PING.repeat(PINGS)).await.unwrap();
                std::future::pending::<()>().await;
            });
            let read = Rc::clone(&read);
            env::spawn::<RealEnv>(async move {
                let mut piece = vec![0; 1 << 16];
                while let Ok(bytes @ 1..) = reader.read(&mut piece).await {
                    read.set(read.get() + bytes);
                }
            });
        }
        while lane.waiting() < BUSY / 2 {
            crate::env::yield_now().await;
            assert!(read.get() < BUSY * PINGS * PING.len(), "all were read without a turn");
        }
        let before = read.get();
        assert_eq!(status(&mut quiet).await.unwrap(), 200);
        // Request, answer and their wakes take a few turns of the reactor.
        let turns = (read.get() - before) / (PING.len() * TURN);
        assert!(turns < 2 * BUSY, "{turns} turns of busy connections came first");
        while read.get() < BUSY * PINGS * PING.len() {
            crate::env::yield_now().await;
        }
    });
}

/// A connection whose calls take many messages is busy, however small they are, and whenever they came.
#[test]
fn many_small_messages_are_much() {
    block_on(async {
        let lane: Rc<Lane> = Rc::default();
        let go = Notify::new();
        let (stream, server) = pair().await;
        let client = async {
            let mut requests = client(stream).await;
            let (response, mut stream) =
                requests.send_request(Request::post("http://x/").body(()).unwrap(), false).unwrap();
            stream.send_data(vec![0; HEAVY_MESSAGES * grpc::PREFIX_BYTES].into(), true).unwrap();
            settled().await;
            assert_eq!(lane.last_row_us(), 0);
            go.notify_all();
            assert_eq!(response.await.unwrap().status(), 200);
            assert!(lane.last_row_us() > 0);
        };
        let shared = Shared { lane: Rc::clone(&lane), ..shared() };
        tokio::select! {
            () = run_alone(server, shared, never(), NEVER, when_told(&go)) => panic!("the connection ended"),
            () = client => {}
        }
    });
}

/// Of many requests that come together a part begins in each turn.
#[test]
fn many_requests_begin_in_parts() {
    const REQUESTS: usize = 3 * ACCEPTS_MAX;
    block_on(async {
        let (stream, server) = pair().await;
        let started = Rc::new(Cell::new(0));
        let start = |_, responses: Responses| {
            started.set(started.get() + 1);
            async move { responses.finish(Ok(())) }
        };
        let mut requests = client(stream).await;
        let sent: Vec<_> = (0..REQUESTS)
            .map(|_| requests.send_request(Request::post("http://x/").body(()).unwrap(), true).unwrap().0)
            .collect();
        let mut serve = pin!(run_alone(server, shared(), never(), NEVER, start));
        let mut most = 0;
        while started.get() < REQUESTS {
            let before = started.get();
            assert!(poll_fn(|cx| Poll::Ready(serve.as_mut().poll(cx).is_pending())).await);
            most = most.max(started.get() - before);
            crate::env::yield_now().await;
        }
        assert!((1..=ACCEPTS_MAX).contains(&most), "{most} began in one turn");
        tokio::select! {
            () = serve => panic!("the connection ended"),
            answers = futures_util::future::join_all(sent) => {
                assert!(answers.into_iter().all(|answer| answer.unwrap().status() == 200));
            }
        }
    });
}
