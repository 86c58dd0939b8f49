//! Whoever speaks something else than HTTP/2 on this port is told so in his own language, if it is known, also when his first
//! bytes come one by one.

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tokio::io::AsyncWrite;

const HTTP_1: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\nconnection: close\r\n\
    content-length: 102\r\n\r\nThis is Ringlog's gRPC port, which speaks HTTP/2 only. HTTP/1.1 and JSON are on port 7401 by default.\n";

/// RFC 8446, sections 5.1 and 6: a fatal alert, protocol_version: there is no TLS here.
const TLS_ALERT: &[u8] = &[21, 3, 1, 0, 2, 2, 70];

/// First bytes of a connection that tell what it speaks: the longest method of HTTP/1.1, and the blank behind it.
pub(super) const FIRST_BYTES: usize = 8;

/// What a connection that begins with `first`, which is no HTTP/2, is answered before it is closed. `None`: that is too little to
/// tell; never with `FIRST_BYTES`.
pub(super) fn answer(first: &[u8]) -> Option<&'static [u8]> {
    let word = first.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    match (first, first.get(word)) {
        ([] | [22], _) => None,
        // A record of type handshake, version 3.x.
        ([22, 3, ..], _) => Some(TLS_ALERT),
        (_, None) if word < FIRST_BYTES => None,
        (_, Some(b' ')) if (2..FIRST_BYTES).contains(&word) => Some(HTTP_1),
        _ => Some(b""),
    }
}

/// Writes `answer`, from `*at` on, and closes. Ready when that is done.
pub(super) fn poll_answer<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    answer: &[u8],
    at: &mut usize,
) -> Poll<io::Result<()>> {
    while *at < answer.len() {
        match ready!(Pin::new(&mut *stream).poll_write(cx, &answer[*at..]))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            wrote => *at += wrote,
        }
    }
    Pin::new(stream).poll_shutdown(cx)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who is answered what, and when that can be told.
    #[test]
    fn languages() {
        for request in [&b"GET / HTTP/1.1\r\n"[..], b"POST /x", b"OPTIONS * HTTP/1.0"] {
            assert_eq!(answer(request), Some(HTTP_1));
        }
        assert_eq!(answer(&[22, 3, 1, 2, 0, 1]), Some(TLS_ALERT));
        for other in [&b"\0\0\0"[..], b"hello you", b"PRIVATE-LONG x", b"PRIVATES x", b"G x", b" ", &[22, 2]] {
            assert_eq!(answer(other), Some(&b""[..]), "{other:?}");
        }
        for begun in [&b""[..], b"G", b"GET", b"OPTIONS", &[22]] {
            assert_eq!(answer(begun), None, "{begun:?}");
        }
    }

    /// As many bytes as are kept of the first ones always tell.
    #[test]
    fn enough_to_tell() {
        for byte in 0..=255 {
            assert!(answer(&[byte; FIRST_BYTES]).is_some());
        }
    }

    /// The length that the answer announces is the one that it has.
    #[test]
    fn length_of_the_answer() {
        let text = std::str::from_utf8(HTTP_1).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{} bytes", body.len());
    }
}
