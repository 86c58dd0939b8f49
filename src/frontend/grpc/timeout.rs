//! The `grpc-timeout` header (gRPC over HTTP2, "Timeout"): 1 to 8 digits and a unit.

/// A timeout longer than this, in µs, is none: a year.
const NEVER_US: u64 = 365 * 24 * 3_600 * 1_000_000;

/// The timeout in µs, rounded up; `None` if it is so long that it means nothing.
///
/// # Errors
/// When the value has another form.
pub(super) fn parse(value: &[u8]) -> Result<Option<u64>, Malformed> {
    let (unit, digits) = value.split_last().ok_or(Malformed)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    let number = digits.iter().fold(0, |number: u64, digit| number * 10 + u64::from(digit - b'0'));
    // 8 digits of hours are below 2^59 µs: no overflow.
    let us = match unit {
        b'H' => number * 3_600_000_000,
        b'M' => number * 60_000_000,
        b'S' => number * 1_000_000,
        b'm' => number * 1_000,
        b'u' => number,
        b'n' => number.div_ceil(1_000),
        _ => return Err(Malformed),
    };
    Ok((us <= NEVER_US).then_some(us))
}

/// Not a timeout.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

#[cfg(test)]
mod tests {
    use super::*;

    /// What the specification allows, its edges, and what it does not.
    #[test]
    fn table() {
        for (value, us) in [
            ("1H", Some(3_600_000_000)),
            ("2M", Some(120_000_000)),
            ("3S", Some(3_000_000)),
            ("4m", Some(4_000)),
            ("5u", Some(5)),
            ("6n", Some(1)),
            ("1000n", Some(1)),
            ("1001n", Some(2)),
            ("0n", Some(0)),
            ("0S", Some(0)),
            ("00000001S", Some(1_000_000)),
            ("99999999n", Some(100_000)),
            ("99999999u", Some(99_999_999)),
            ("8760H", Some(NEVER_US)),
            ("8761H", None),
            ("99999999H", None),
        ] {
            assert_eq!(parse(value.as_bytes()), Ok(us), "{value}");
        }
        for value in ["", "S", "1", "1s", "1h", "-1S", "+1S", " 1S", "1 S", "1S ", "1.5S", "100000000S", "1SS", "1µ"] {
            assert_eq!(parse(value.as_bytes()), Err(Malformed), "{value:?}");
        }
    }

    /// Values of any bytes (`crate::fuzz`).
    #[test]
    fn fuzz() {
        crate::fuzz::Target::new("frontend::grpc::timeout::tests::fuzz", ["1S", "99999999H", "4m", "7u"], |bytes| {
            let timeout_us = parse(bytes).ok()?;
            assert!(timeout_us.is_none_or(|us| us <= NEVER_US));
            Some(timeout_us)
        })
        .words(&["H", "M", "S", "m", "u", "n", "99999999"])
        .run();
    }
}
