//! A walk over protobuf's wire format without decoding into structs and without allocating.
//!
//! Accepts exactly what prost accepts (`records` tests that), so that bytes which pass here can be
//! stored and served as they came. Never reads outside of the message it was given.

/// Where a walk met bytes that are not protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireError {
    /// What is wrong.
    pub what: &'static str,
    /// Byte in the whole message.
    pub position: usize,
}

/// Groups and messages may nest this deep, as in prost (`RECURSION_LIMIT`): hostile bytes must not
/// overflow the stack, neither here nor in a consumer that decodes them.
pub const DEPTH_MAX: u32 = 100;

/// A field's number and wire type as they are on the wire: `number << 3 | type`.
pub const fn key(number: u32, wire_type: u32) -> u32 {
    number << 3 | wire_type
}

/// Wire type of integers.
pub const VARINT: u32 = 0;
const FIXED64: u32 = 1;
/// Wire type of bytes, strings and messages.
pub const DELIMITED: u32 = 2;
const GROUP_START: u32 = 3;
const GROUP_END: u32 = 4;
const FIXED32: u32 = 5;

/// A reader of one message, which may be a part of a larger one: positions are those of the whole.
///
/// Invariant: `position <= bytes.len()`.
#[derive(Clone, Copy, Debug)]
pub struct Wire<'a> {
    /// The whole up to the end of this message.
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Wire<'a> {
    /// A walk over a whole message.
    pub fn new(bytes: &'a [u8]) -> Wire<'a> {
        Wire { bytes, position: 0 }
    }

    /// Next byte to be read, in the whole message.
    #[inline]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether all is read.
    #[inline]
    pub fn at_end(&self) -> bool {
        self.position >= self.bytes.len()
    }

    /// An integer of up to 64 bits.
    #[inline]
    pub fn varint(&mut self) -> Result<u64, WireError> {
        match self.bytes.get(self.position) {
            Some(&byte) if byte < 0x80 => {
                self.position += 1;
                Ok(u64::from(byte))
            }
            _ => self.varint_long(),
        }
    }

    fn varint_long(&mut self) -> Result<u64, WireError> {
        let start = self.position;
        let mut value = 0;
        for (number, &byte) in self.bytes[start..].iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * number);
            if byte < 0x80 {
                if number == 9 && byte > 1 {
                    break;
                }
                self.position = start + number + 1;
                return Ok(value);
            }
        }
        let what = if self.bytes.len() - start < 10 { "an integer is cut off" } else { "an integer is over 64 bits" };
        Err(WireError { what, position: start })
    }

    /// The next field's key: a number of at least 1 and a wire type that exists.
    #[inline]
    pub fn key(&mut self) -> Result<u32, WireError> {
        let position = self.position;
        let key = self.varint()?;
        let Ok(key) = u32::try_from(key) else {
            return Err(WireError { what: "a field number is over 29 bits", position });
        };
        if key & 7 > FIXED32 {
            return Err(WireError { what: "a wire type does not exist", position });
        }
        if key >> 3 == 0 {
            return Err(WireError { what: "a field has number 0", position });
        }
        Ok(key)
    }

    /// A length and that many bytes.
    #[inline]
    pub fn delimited(&mut self) -> Result<&'a [u8], WireError> {
        let field = self.message()?;
        Ok(&field.bytes[field.position..])
    }

    /// A length and a message of that many bytes, to be walked.
    #[inline]
    pub fn message(&mut self) -> Result<Wire<'a>, WireError> {
        let start = self.position;
        let length = self.varint()?;
        if length > (self.bytes.len() - self.position) as u64 {
            return Err(WireError { what: "a length reaches beyond its message", position: start });
        }
        let position = self.position;
        self.position += length as usize;
        Ok(Wire { bytes: &self.bytes[..self.position], position })
    }

    /// A length and UTF-8 of that many bytes.
    pub fn string(&mut self) -> Result<&'a str, WireError> {
        let position = self.position;
        std::str::from_utf8(self.delimited()?).map_err(|_| WireError { what: "a string is not UTF-8", position })
    }

    /// Bytes not read yet.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.position..]
    }

    /// Passes over the value of the field `key`. `depth_left` counts down from `DEPTH_MAX`, one for
    /// each message that this field is in.
    pub fn skip(&mut self, key: u32, depth_left: u32) -> Result<(), WireError> {
        let position = self.position;
        if depth_left == 0 {
            return Err(WireError { what: "groups are nested too deep", position });
        }
        let bytes = match key & 7 {
            VARINT => {
                self.varint()?;
                0
            }
            FIXED64 => 8,
            FIXED32 => 4,
            DELIMITED => {
                self.delimited()?;
                0
            }
            GROUP_START => loop {
                let inner = self.key()?;
                if inner & 7 == GROUP_END {
                    if inner >> 3 != key >> 3 {
                        return Err(WireError { what: "a group ends that has not begun", position });
                    }
                    break 0;
                }
                self.skip(inner, depth_left - 1)?;
            },
            GROUP_END => return Err(WireError { what: "a group ends that has not begun", position }),
            _ => return Err(WireError { what: "a wire type does not exist", position }),
        };
        if bytes > self.bytes.len() - self.position {
            return Err(WireError { what: "a fixed-width field is cut off", position });
        }
        self.position += bytes;
        Ok(())
    }
}

/// Bytes of `value` as a varint: 1 to 10.
#[inline]
pub const fn varint_bytes(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Writes `value` at the start of `out` and returns the bytes it took.
///
/// # Panics
/// When `out` is shorter than `varint_bytes(value)`.
#[inline]
pub fn put_varint(out: &mut [u8], mut value: u64) -> usize {
    let mut at = 0;
    while value >= 0x80 {
        out[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    out[at] = value as u8;
    at + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Varints of every length round-trip, have the length announced, and fail when cut anywhere.
    #[test]
    fn varints() {
        for bits in 0..64 {
            for value in [1u64 << bits, (1 << bits) - 1, u64::MAX >> bits] {
                let mut out = [0; 10];
                let bytes = put_varint(&mut out, value);
                assert_eq!(bytes, varint_bytes(value));
                assert_eq!(Wire::new(&out[..bytes]).varint(), Ok(value));
                for cut in 0..bytes {
                    assert!(Wire::new(&out[..cut]).varint().is_err());
                }
            }
        }
    }

    /// Eleven bytes, and ten with more than 64 bits, are refused.
    #[test]
    fn varints_too_long() {
        let mut eleven = [0x80; 11];
        eleven[10] = 0;
        assert_eq!(Wire::new(&eleven).varint().unwrap_err().what, "an integer is over 64 bits");
        let mut wide = [0xff; 10];
        wide[9] = 2;
        assert!(Wire::new(&wide).varint().is_err());
        wide[9] = 1;
        assert_eq!(Wire::new(&wide).varint(), Ok(u64::MAX));
    }

    /// Groups nest up to the limit, and a group must end with its own number.
    #[test]
    fn groups() {
        let nested = |depth: usize| [vec![0x7b; depth], vec![0x7c; depth]].concat();
        for (depth, accepted) in [(1, true), (99, true), (100, true), (101, false)] {
            let bytes = nested(depth);
            let mut wire = Wire::new(&bytes);
            let key = wire.key().unwrap();
            assert_eq!(wire.skip(key, DEPTH_MAX).is_ok(), accepted, "{depth}");
        }
        let mut wire = Wire::new(&[0x7b, 0x84, 0x01]);
        let key = wire.key().unwrap();
        assert_eq!(wire.skip(key, DEPTH_MAX).unwrap_err().what, "a group ends that has not begun");
    }
}
