//! Where a consumer starts, as people say it: `earliest`, `latest`, an offset, a time, or that long ago.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::client::Start;

/// A parsed `--from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// The log start.
    Earliest,
    /// The high watermark.
    Latest,
    /// This record.
    Offset(u64),
    /// The first record not older, µs since the Unix epoch.
    Timestamp(i64),
    /// The first record not older than that much before now.
    Ago(Duration),
}

impl From {
    /// Reads `earliest`, `latest`, `123`, `2026-11-20T08:00:00Z` or `-5m`.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub(super) fn parse(text: &str) -> Result<From, String> {
        match text {
            "earliest" => return Ok(From::Earliest),
            "latest" => return Ok(From::Latest),
            _ => {}
        }
        if let Some(ago) = text.strip_prefix('-')
            && let Ok(ago) = humantime::parse_duration(ago)
        {
            return Ok(From::Ago(ago));
        }
        if !text.starts_with('+')
            && let Ok(offset) = text.parse()
        {
            return Ok(From::Offset(offset));
        }
        if let Ok(time) = humantime::parse_rfc3339_weak(text) {
            return Ok(From::Timestamp(micros(time)));
        }
        Err("earliest, latest, an offset, a time such as 2026-11-20T08:00:00Z, or a span such as -5m is expected"
            .to_owned())
    }

    /// The same, with spans counted back from `now`.
    pub(super) fn at(self, now: SystemTime) -> From {
        match self {
            From::Ago(ago) => From::Timestamp(now.checked_sub(ago).map_or(0, micros)),
            other => other,
        }
    }

    /// For the client.
    pub(super) fn start(self, now: SystemTime) -> Start {
        match self.at(now) {
            From::Earliest => Start::Earliest,
            From::Latest => Start::Latest,
            From::Offset(offset) => Start::Offset(offset),
            From::Timestamp(timestamp_us) => Start::TimestampUs(timestamp_us),
            From::Ago(_) => unreachable!("`at` leaves no spans"),
        }
    }
}

fn micros(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All forms, and what is none of them.
    #[test]
    fn forms() {
        for (text, from) in [
            ("earliest", From::Earliest),
            ("latest", From::Latest),
            ("0", From::Offset(0)),
            ("18446744073709551615", From::Offset(u64::MAX)),
            ("1970-01-01T00:00:01Z", From::Timestamp(1_000_000)),
            ("1970-01-01 00:00:01.5", From::Timestamp(1_500_000)),
            ("-5m", From::Ago(Duration::from_secs(300))),
            ("-1h 30m", From::Ago(Duration::from_secs(5_400))),
        ] {
            assert_eq!(From::parse(text), Ok(from), "{text}");
        }
        for text in ["", "-", "-5", "5m", "+5", "Earliest", "2026-13-01T00:00:00Z", "18446744073709551616"] {
            assert!(From::parse(text).is_err(), "{text}");
        }
    }

    /// A span counts back from now, and stops at the epoch.
    #[test]
    fn spans() {
        let now = UNIX_EPOCH + Duration::from_secs(400);
        assert_eq!(From::Ago(Duration::from_secs(300)).at(now), From::Timestamp(100_000_000));
        assert_eq!(From::Ago(Duration::from_secs(500)).at(now), From::Timestamp(0));
        assert_eq!(From::Offset(3).at(now), From::Offset(3));
        assert_eq!(From::Ago(Duration::from_secs(300)).start(now), Start::TimestampUs(100_000_000));
    }

    /// Positions of any text (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let corpus = ["earliest", "latest", "123", "2026-11-20T08:00:00Z", "-5m", "-1h 30m"];
        crate::fuzz::Target::new("cli::start::tests::fuzz", corpus, |bytes| {
            let from = From::parse(std::str::from_utf8(bytes).ok()?).ok()?;
            // Whatever time it is now.
            let _ = [UNIX_EPOCH, UNIX_EPOCH + std::time::Duration::from_secs(1 << 31)].map(|now| from.at(now));
            Some(from)
        })
        .words(&["-", "+", "d", "years", "Z", "T", ":", "99999999999"])
        .run();
    }
}
