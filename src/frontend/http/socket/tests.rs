//! Who keeps a place, and how much of an answer is written at a time.

use std::future::pending;

use futures_util::FutureExt;

use super::*;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Connections of nobody.
pub(in crate::frontend::http) fn connections<const N: usize>() -> [Connection; N] {
    let table = Arc::new(Table { limits: SocketLimits::default(), inner: Mutex::default() });
    std::array::from_fn(|_| table.enter(HERE, Instant::now(), usize::MAX).unwrap())
}

fn table(connections: usize, reserve: usize) -> Arc<Table> {
    let limits = SocketLimits { connections, reserve, ..SocketLimits::default() };
    Arc::new(Table { limits, inner: Mutex::default() })
}

fn is_gone(connection: &Connection) -> bool {
    connection.waits_since(Waker::noop()).is_err()
}

/// Whose place is taken: whoever is slow with its first request, then the idle, then the young; nobody whose request is
/// answered. Then the reserve, and then nothing.
#[test]
fn places() {
    let table = table(4, 1);
    let begun = Instant::now();
    let [slow, idle, working, young] =
        [0, 1, 2, 3].map(|second| table.enter(HERE, begun + Duration::from_secs(second), usize::MAX).unwrap());
    idle.done();
    working.begin();
    let now = begun + Duration::from_secs(3);
    let mut entered = Vec::new();
    for expected in [&slow, &idle, &young] {
        assert!(!is_gone(expected));
        let new = table.enter(HERE, now, usize::MAX).unwrap();
        assert!(is_gone(expected) && !new.is_reserved());
        new.begin();
        entered.push(new);
    }
    assert!(!is_gone(&working) && table.lock().live == 4);
    let reserved = table.enter(HERE, now, usize::MAX).unwrap();
    assert!(reserved.is_reserved());
    // One that has not asked yet gives way to the next; one that is being answered does not.
    let next = table.enter(HERE, now, usize::MAX).unwrap();
    assert!(is_gone(&reserved) && next.is_reserved());
    next.begin();
    assert!(table.enter(HERE, now, usize::MAX).is_none());
    // Fewer are possible by now: those whose requests are answered have no more to give but time.
    entered[0].done();
    assert!(table.make_way(now, 3) && is_gone(&entered[0]) && !is_gone(&working) && table.lock().live == 3);
    entered[1].done();
    assert!(!table.make_way(now, 3) && is_gone(&entered[1]) && table.lock().live == 2);
    for connection in [slow, idle, young, working, reserved, next].into_iter().chain(entered) {
        connection.leave();
    }
    let inner = table.lock();
    assert!(inner.live == 0 && inner.in_reserve == 0 && inner.held.is_empty());
    drop(inner);
    assert!(!table.enter(HERE, now, usize::MAX).unwrap().is_reserved());
}

/// With fewer places than there are connections, as many give way as it takes: who comes next is served as before.
#[test]
fn fewer_places() {
    let table = table(16, 4);
    let now = Instant::now();
    let idle: Vec<_> = (0..16).map(|_| table.enter(HERE, now, usize::MAX).unwrap()).collect();
    idle.iter().for_each(Connection::done);
    let places = 12;
    assert!(!table.make_way(now, places) && table.lock().live == places);
    idle.iter().filter(|idle| is_gone(idle)).for_each(Connection::leave);
    for _ in 0..3 {
        assert!(!table.enter(HERE, now, places).unwrap().is_reserved());
    }
    assert!(table.lock().in_reserve == 0 && table.lock().live == places - 3, "a quarter of the places is the reserve");
}

/// Whoever waits, for the rest of its request or for records, gives way, the longest first, before nobody is let in. It may answer
/// yet, and takes no place meanwhile.
#[test]
fn who_waits_gives_way() {
    let table = table(4, 1);
    let enter = || table.enter(HERE, Instant::now(), usize::MAX).unwrap();
    let [working, first, second, third] = std::array::from_fn(|_| enter());
    working.begin();
    let mut waits = [&first, &second, &third].map(|waiting| Box::pin(waiting.waits(pending::<()>())));
    for wait in &mut waits {
        assert!(wait.now_or_never().is_none());
    }
    for (number, given) in [&first, &second, &third].into_iter().enumerate() {
        assert!(!given.is_to_close());
        let new = enter();
        assert!(!new.is_reserved());
        new.begin();
        let ended: Vec<_> = waits[number..].iter_mut().map(FutureExt::now_or_never).collect();
        assert!(ended[0] == Some(None) && ended[1..].iter().all(Option::is_none), "one wait ends: {ended:?}");
        assert!(given.is_to_close() && !is_gone(given) && table.lock().live == 4);
        assert_eq!(given.waits(pending::<()>()).now_or_never(), Some(None), "it waits no more");
    }
    assert!(!is_gone(&working) && !working.is_to_close());
    assert!(enter().is_reserved());
    first.end();
    assert!(is_gone(&first) && table.lock().live == 4);
}

/// An address that holds many places loses its own, whatever others do with theirs, and takes none of those.
#[test]
fn who_holds_many_pays() {
    let table = table(32, 2);
    let enter = |address: [u8; 4]| table.enter(address.into(), Instant::now(), usize::MAX).unwrap();
    let (greedy, modest) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let idle = enter(modest);
    idle.done();
    let many: Vec<_> = (0..31).map(|_| enter(greedy)).collect();
    let mut waits: Vec<_> = many.iter().map(|many| Box::pin(many.waits(pending::<()>()))).collect();
    assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()));
    let newcomer = enter(modest);
    assert!(many[0].is_to_close() && !is_gone(&idle));
    let another = enter(greedy);
    assert!(many[1].is_to_close() && !is_gone(&idle));
    many[2..].iter().chain([&another]).for_each(Connection::begin);
    assert!(enter(greedy).is_reserved(), "its own are worked for, and it takes no other's");
    assert!(!is_gone(&idle) && !is_gone(&newcomer));
    assert!(!enter(modest).is_reserved() && is_gone(&idle), "beside the reserve its own gives way");
    assert!(many[2..].iter().all(|many| !many.is_to_close()));
}

/// However much a socket takes, one write is short, so that a reactor gets a core that it shares with this thread.
#[tokio::test]
async fn short_writes() {
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (client, [connection]) = (client.unwrap(), connections());
    let mut socket = Socket::new(server.unwrap().0, connection);
    let large = vec![7; 8 * WRITE_BYTES_MAX];
    let slices = [io::IoSlice::new(&large[..100]), io::IoSlice::new(&large)];
    let wrote = std::future::poll_fn(|context| Pin::new(&mut socket).poll_write_vectored(context, &slices)).await;
    assert_eq!(wrote.unwrap(), WRITE_BYTES_MAX, "a part of the second slice is with the first");
    let wrote = std::future::poll_fn(|context| Pin::new(&mut socket).poll_write(context, &large)).await;
    assert!((1..=WRITE_BYTES_MAX).contains(&wrote.unwrap()));
    drop(client);
}

/// One host has one IPv4 address, in either form, and all IPv6 addresses of its network.
#[test]
fn holders() {
    let of = |text: &str| holder(SocketAddr::new(text.parse().unwrap(), 1));
    assert_eq!(of("10.1.2.3"), of("::ffff:10.1.2.3"));
    assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
    assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    assert_ne!(of("10.1.2.3"), of("10.1.2.4"));
}
