//! Who is refused, and what both sides say.

use super::*;

/// Dials, and gives back the words of the refusal after those of whom was refused.
async fn refused(dialler: &QuicNet, target: Endpoint) -> String {
    match dialler.connect(target.clone()).await {
        Err(NetError::Refused { to, cause }) => {
            assert_eq!(to, target);
            cause
        }
        other => panic!("{other:?}"),
    }
}

/// Whoever is not who he should be is refused, and both sides say why.
#[test]
fn wrong_peers() {
    run(async {
        let (lines, _guard) = Lines::catch();
        let (ours, foreign, elsewhere) = (authority(CLUSTER), authority(CLUSTER), authority(OTHER));
        let (one, two) = (net(&ours, 1), net(&ours, 2));
        // Another node than the one that was dialled: the dialler refuses.
        let words = "node 2 answers where node 3 was dialled";
        assert_eq!(refused(&one, to(&two, 3)).await, words);
        lines.say(words).await;
        // Another CA of the same cluster, in both directions.
        let forger = net(&foreign, 3);
        let words = format!("the certificate of node 2 is not signed by the CA of cluster {CLUSTER}");
        assert_eq!(refused(&forger, to(&two, 2)).await, words);
        lines.say(&words).await;
        let words = format!("the certificate of node 3 is not signed by the CA of cluster {CLUSTER}");
        assert_eq!(refused(&one, to(&forger, 3)).await, words);
        lines.say(&words).await;
        // Another cluster.
        let stranger = net(&elsewhere, 2);
        let words = format!("a certificate of cluster {OTHER} was shown to a node of cluster {CLUSTER}");
        assert_eq!(refused(&one, to(&stranger, 2)).await, words);
        lines.say(&words).await;
        // The same node twice.
        let copy = net(&ours, 2);
        let words = "two processes say that they are node 2: was a data directory copied?";
        let copied = to(&two, 2);
        // It dials as another node would: by who it is, not by its own guard.
        let config = PATIENT.client_config(credentials(&ours, 2).client_config(), &Ending::default());
        let name = credentials(&ours, 1).name_of_peer(NodeId(2));
        let quic = copy.0.endpoint.connect_with(config, two.local_address(), &name).unwrap().await.unwrap();
        let (is_refusal, cause) = error::handshake(&quic.closed().await);
        assert_eq!((is_refusal, &*cause), (true, words));
        lines.say(words).await;
        assert_eq!(refused(&copy, copied).await, "it is this node itself");
        // None of them was handed out.
        let (dialled, accepted) = pair(&one, &two, 2).await;
        assert_eq!((dialled.peer(), accepted.peer()), (NodeId(2), NodeId(1)));
    });
}

/// A certificate that only the peer's eyes see: the acceptor refuses what the dialler shows.
#[test]
fn wrong_diallers() {
    run(async {
        let (lines, _guard) = Lines::catch();
        let (ours, foreign) = (authority(CLUSTER), authority(CLUSTER));
        let two = net(&ours, 2);
        let client = |shown: &Credentials| {
            // Trusts the right CA, and shows something else.
            let mut config = credentials(&ours, 9).client_config();
            config.client_auth_cert_resolver = shown.client_config().client_auth_cert_resolver;
            config
        };
        let mut nobody = credentials(&ours, 9).client_config();
        nobody.client_auth_cert_resolver = join_client_resolver(&ours);
        let expired = credentials_at(&ours, 9, now_us() - 10 * DAY.as_micros() as i64, DAY);
        let early = credentials_at(&ours, 9, now_us() + 10 * DAY.as_micros() as i64, DAY);
        for (config, words) in [
            (nobody, "no certificate was shown; only members of the cluster have one"),
            (
                client(&credentials(&foreign, 9)),
                "the certificate of node 9 is not signed by the CA of cluster 00112233445566778899aabbccddeeff",
            ),
            (
                client(&credentials(&authority(OTHER), 9)),
                "a certificate of cluster ffeeddccbbaa99887766554433221100 was shown to a node of cluster \
                 00112233445566778899aabbccddeeff",
            ),
            (client(&expired), "the certificate of node 9 has expired at "),
            (client(&early), "the certificate of node 9 is valid from "),
        ] {
            let nine = net(&ours, 9);
            let client = PATIENT.client_config(config, &Ending::default());
            *nine.0.identity.borrow_mut() = Rc::new(Identity { credentials: credentials(&ours, 9), client });
            let cause = refused(&nine, to(&two, 2)).await;
            assert!(cause.starts_with(words), "{cause}");
            lines.say(words).await;
        }
        // And what the dialler sees of one that accepts with an expired one.
        let old = net_with(expired, everybody(), PATIENT);
        let cause = refused(&net(&ours, 1), to(&old, 9)).await;
        assert!(cause.starts_with("the certificate of node 9 has expired at "), "{cause}");
    });
}

fn join_client_resolver(authority: &Authority) -> Arc<dyn rustls::client::ResolvesClientCert> {
    let token = JoinToken::new(authority.cluster(), authority.fingerprint()).unwrap();
    crate::tls::join_client_config(&token).client_auth_cert_resolver
}

/// A removed node is refused by both sides, from the moment of its removal on.
#[test]
fn removed_nodes() {
    run(async {
        let (lines, _guard) = Lines::catch();
        let authority = authority(CLUSTER);
        let removed = Arc::new(Mutex::new(BTreeMap::new()));
        let table = removed.clone();
        let members: Membership = Arc::new(move |node| match table.lock().unwrap().get(&node) {
            Some(()) => Err("it was removed from the cluster".to_owned()),
            None => Ok(()),
        });
        let (one, two) = (net(&authority, 1), net_with(credentials(&authority, 2), members, PATIENT));
        pair(&one, &two, 2).await;
        pair(&two, &one, 1).await;
        removed.lock().unwrap().insert(NodeId(1), ());
        match one.connect(to(&two, 2)).await {
            Err(NetError::NotMember { cause, .. }) => assert_eq!(cause, "it was removed from the cluster"),
            other => panic!("{other:?}"),
        }
        lines.say("node 1 is refused: it was removed from the cluster").await;
        assert_eq!(refused(&two, to(&one, 1)).await, "it was removed from the cluster");
    });
}

/// Whoever has not proven that it receives where it sends from gets at most three times what it sent (RFC 9000, section
/// 8.1), however long it stays silent: nobody can have a node flood somebody else's address.
#[test]
fn little_for_an_unproven_address() {
    run(async {
        let authority = authority(CLUSTER);
        let (one, two) = (net(&authority, 1), net(&authority, 2));
        // The first packet of a real dialler, taken where nobody answers, and sent from an address of somebody else.
        let bind = || async { tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap() };
        let (nobody, victim) = (bind().await, bind().await);
        let mut packet = [0; 2_048];
        let bytes = tokio::select! {
            dialled = one.connect(at(2, nobody.local_addr().unwrap().port())) => panic!("{dialled:?}"),
            received = nobody.recv(&mut packet) => received.unwrap(),
        };
        victim.send_to(&packet[..bytes], two.local_address()).await.unwrap();
        let mut packets = Vec::new();
        // Long enough for several retransmissions of a handshake.
        let silence = env::sleep::<RealEnv>(Duration::from_secs(2));
        tokio::pin!(silence);
        loop {
            let mut answer = [0; 8_192];
            tokio::select! {
                () = &mut silence => break,
                received = victim.recv(&mut answer) => packets.push((received.unwrap(), answer[0])),
            }
        }
        let sent: usize = packets.iter().map(|(bytes, _)| bytes).sum();
        assert!(sent <= 3 * bytes, "{sent} bytes to an address that sent {bytes}: {packets:?}");
        // A long header of type Retry (RFC 9000, section 17.2.5): the dialler is asked to prove its address.
        assert!(matches!(packets[..], [(_, first)] if first & 0xf0 == 0xf0), "{packets:?}");
        let (dialled, accepted) = pair(&one, &two, 2).await;
        assert_eq!((dialled.peer(), accepted.peer()), (NodeId(2), NodeId(1)));
    });
}

/// Whoever begins as many handshakes as there may be, from one address, and ends none of them keeps nobody else out.
#[test]
fn handshakes_of_one_address() {
    run(async {
        let (lines, _guard) = Lines::catch();
        let authority = authority(CLUSTER);
        let (one, two) = (net(&authority, 1), net(&authority, 2));
        // A stranger to whom nothing gets through but that it has to prove its address.
        let stranger = net(&authority, 9);
        let near = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let far = tokio::net::UdpSocket::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).await.unwrap();
        let (near_address, target) = (near.local_addr().unwrap(), two.local_address());
        env::spawn::<RealEnv>(async move {
            let (mut out, mut back) = (vec![0; 65_536], vec![0; 65_536]);
            let mut from = None;
            loop {
                tokio::select! {
                    packet = near.recv_from(&mut out) => {
                        let (bytes, address) = packet.unwrap();
                        from = Some(address);
                        drop(far.send_to(&out[..bytes], target).await);
                    }
                    packet = far.recv(&mut back) => {
                        let bytes = packet.unwrap();
                        // Retry (RFC 9000, section 17.2.5).
                        if let Some(from) = from.filter(|_| back[0] & 0xf0 == 0xf0) {
                            drop(near.send_to(&back[..bytes], from).await);
                        }
                    }
                }
            }
        });
        let config = PATIENT.client_config(credentials(&authority, 9).client_config(), &Ending::default());
        let name = credentials(&authority, 9).name_of_peer(NodeId(2));
        let begin = || stranger.0.endpoint.connect_with(config.clone(), near_address, &name).unwrap();
        let _begun: Vec<_> = (0..accept::HANDSHAKES_MAX + 20).map(|_| begin()).collect();
        let taken = options::timeout(Duration::from_secs(60), lines.say("too many connect at the same time"));
        taken.await.expect("all places are taken");
        let (dialled, accepted) = pair(&one, &two, 2).await;
        assert_eq!((dialled.peer(), accepted.peer()), (NodeId(2), NodeId(1)));
    });
}
