//! A connection gives what TCP gives: order, back-pressure, half-closing, and an end that both sides learn of.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    env,
    sim::{SimEnv, SimRuntime},
};

const WIRE: Wire = Wire { delay_us: 100, jitter_us: 50, buffer_bytes: 4_000 };

fn run(test: impl Future<Output = ()>) {
    SimRuntime::seeded(3).block_on(test);
}

/// Bytes come in order, late by the delay, and both directions end for themselves.
#[test]
fn order_and_half_close() {
    run(async {
        let (mut near, mut far) = pair(WIRE, 1);
        let sent: Vec<u8> = (0..50_000_u32).map(|number| (number % 251) as u8).collect();
        let write = async {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"got it");
        };
        let read = async {
            let mut received = Vec::new();
            far.read_to_end(&mut received).await.unwrap();
            assert!(received == sent);
            assert!(World::current().now_us() >= WIRE.delay_us * 12, "13 buffers have a delay each");
            far.write_all(b"got it").await.unwrap();
            far.shutdown().await.unwrap();
        };
        futures_util::future::join(write, read).await;
    });
}

/// A writer waits for its reader, and is told when that is gone, or has reset the connection.
#[test]
fn writers_wait_and_are_told() {
    run(async {
        for reset in [false, true] {
            let (near, mut far) = pair(WIRE, 2);
            let (breaker, mut near) = (near.breaker(), Some(near));
            let write = async {
                let mut written = 0;
                loop {
                    match far.write(&[0; 1_000]).await {
                        Ok(count) => written += count,
                        Err(error) => return (written, error.kind()),
                    }
                }
            };
            let end = async {
                env::sleep::<SimEnv>(Duration::from_secs(1)).await;
                if reset {
                    breaker.reset()
                } else {
                    near = None
                };
            };
            let ((written, error), ()) = futures_util::future::join(write, end).await;
            assert_eq!((written, error), (WIRE.buffer_bytes, io::ErrorKind::ConnectionReset));
            assert!(far.read(&mut [0; 10]).await.is_err(), "bytes were not read: it is a reset");
        }
    });
}

/// An end that is dropped when all was read says its last words.
#[test]
fn last_words() {
    run(async {
        let (mut near, mut far) = pair(WIRE, 3);
        near.write_all(b"last").await.unwrap();
        drop(near);
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"last");
        // The end and the refusal travel for themselves.
        env::sleep::<SimEnv>(Duration::from_millis(1)).await;
        assert_eq!(far.write(b"late").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
}
