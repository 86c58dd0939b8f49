//! The request of a node that has no certificate.

use super::*;

/// A node without a certificate may ask to join, and nothing else; it trusts only the CA of its token.
#[test]
fn join_and_be_let_in() {
    run(async {
        let (lines, _guard) = Lines::catch();
        let ours = authority(CLUSTER);
        let one = net(&ours, 1);
        let port = one.local_address().port();
        let token = JoinToken::new(CLUSTER, ours.fingerprint()).unwrap();
        let serve = async {
            let asked = one.accept_join().await.unwrap();
            assert!(asked.from().ip().is_loopback());
            let answer = Bytes::from([b"welcome, ", &asked.request()[..]].concat());
            asked.reply(answer).await.unwrap();
        };
        let within = Duration::from_secs(60);
        let ask = join_call("127.0.0.1", port, &token, Bytes::from("four"), within);
        let ((), answer) = tokio::join!(serve, ask);
        let answer = answer.unwrap();
        assert_eq!(answer.reply, "welcome, four");
        assert_eq!(answer.authority, ours.certificate());
        // The largest request and answer pass; a larger request does not.
        let serve = async {
            let asked = one.accept_join().await.unwrap();
            let answer = asked.request().clone();
            asked.reply(answer).await.unwrap();
        };
        let largest = pattern(JOIN_BYTES_MAX, 1);
        let ((), answer) = tokio::join!(serve, join_call("127.0.0.1", port, &token, largest.clone(), within));
        assert_eq!(answer.unwrap().reply, largest);
        let too_large = pattern(JOIN_BYTES_MAX + 1, 1);
        let error = join_call("127.0.0.1", port, &token, too_large, within).await.unwrap_err();
        assert!(matches!(error, JoinError::Unreachable(_)), "{error}");
        lines.say("its request to join did not arrive: stream too long").await;
        // A request that is dropped unanswered.
        let drop_it = async { drop(one.accept_join().await.unwrap()) };
        let ((), error) = tokio::join!(drop_it, join_call("127.0.0.1", port, &token, Bytes::from("x"), within));
        assert!(matches!(error, Err(JoinError::Unreachable(_))), "{error:?}");
        // Another cluster's token: refused before anything is sent.
        let wrong = JoinToken::new(CLUSTER, authority(CLUSTER).fingerprint()).unwrap();
        let error = join_call("127.0.0.1", port, &wrong, Bytes::from("secret"), within).await.unwrap_err();
        let words = "the CA of the node that was asked is not the one that the join token names: the token is of another \
                     cluster, or the address is";
        assert_eq!(error, JoinError::Refused(format!("127.0.0.1:{port} was refused: {words}")));
        lines.say(words).await;
        // The right CA, and the wrong cluster.
        let wrong = JoinToken::new(OTHER, ours.fingerprint()).unwrap();
        let error = join_call("127.0.0.1", port, &wrong, Bytes::from("secret"), within).await.unwrap_err();
        assert!(error.to_string().contains("was shown to a node of cluster"), "{error}");
    });
}

/// Only a few requests to join are held; who gives up makes room, and members are not in the way of joins.
#[test]
fn joins_are_bounded() {
    run(async {
        let ours = authority(CLUSTER);
        let one = net(&ours, 1);
        let port = one.local_address().port();
        let token = JoinToken::new(CLUSTER, ours.fingerprint()).unwrap();
        let ask = |text: &'static str, within| join_call("127.0.0.1", port, &token, Bytes::from(text), within);
        let within = Duration::from_secs(60);
        let mut waiting: Vec<_> =
            (0..crate::env::quic::join::JOINS_MAX).map(|_| Box::pin(ask("wait", within))).collect();
        // Each is driven until the endpoint holds it.
        while one.0.joins.len() < crate::env::quic::join::JOINS_MAX {
            for call in &mut waiting {
                let step = options::timeout(Duration::from_millis(20), call.as_mut()).await;
                assert!(step.is_none(), "{step:?}");
            }
        }
        let error = ask("one too many", within).await.unwrap_err();
        assert!(error.to_string().contains("other nodes are joining at the moment"), "{error}");
        let (dialled, _accepted) = pair(&net(&ours, 2), &one, 1).await;
        assert_eq!(dialled.peer(), NodeId(1));
        drop(waiting);
        let serve = async {
            loop {
                let asked = one.accept_join().await.unwrap();
                let is_it = asked.request() == "now";
                // Those who gave up cannot be answered.
                drop(asked.reply(Bytes::from("yes")).await);
                if is_it {
                    return;
                }
            }
        };
        let again = async {
            loop {
                if let Ok(answer) = ask("now", within).await {
                    return answer.reply;
                }
            }
        };
        let ((), answer) = tokio::join!(serve, again);
        assert_eq!(answer, "yes");
    });
}
