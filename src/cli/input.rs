//! Cuts the bytes of stdin or a file into records: lines, or length-delimited pieces.

use bytes::{Buf, Bytes, BytesMut};

/// How records follow each other in the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// One record a line; with a separator the key is before its first occurrence.
    Lines {
        /// Between key and value.
        key_separator: Option<Vec<u8>>,
    },
    /// A varint length, then that many bytes.
    Delimited,
}

/// A record as it was in the input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Empty without a key separator.
    pub(super) key: Bytes,
    /// Without the newline.
    pub(super) value: Bytes,
}

/// Collects input and gives records. It holds at most one record and one read.
#[derive(Debug)]
pub(super) struct Splitter {
    framing: Framing,
    record_bytes_max: usize,
    buffer: BytesMut,
    /// Bytes of `buffer` known to hold no newline.
    searched: usize,
    /// Records given.
    count: u64,
}

impl Splitter {
    /// Records longer than `record_bytes_max` are errors.
    pub(super) fn new(framing: Framing, record_bytes_max: usize) -> Splitter {
        Splitter { framing, record_bytes_max, buffer: BytesMut::new(), searched: 0, count: 0 }
    }

    /// Adds input.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole record; `None` when more input is needed.
    ///
    /// # Errors
    /// A sentence with the record's number in the input, counted from 1.
    pub(super) fn next(&mut self) -> Result<Option<Item>, String> {
        match self.framing {
            Framing::Lines { .. } => self.next_line(),
            Framing::Delimited => self.next_delimited(),
        }
    }

    /// What is left at the end of the input: a last line without a newline.
    ///
    /// # Errors
    /// As `next`, and for a piece that is cut off.
    pub(super) fn finish(&mut self) -> Result<Option<Item>, String> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        match self.framing {
            Framing::Lines { .. } => {
                let line = self.buffer.split().freeze();
                self.searched = 0;
                self.line(line).map(Some)
            }
            Framing::Delimited => Err(format!("record {} of the input is cut off", self.count + 1)),
        }
    }

    fn next_line(&mut self) -> Result<Option<Item>, String> {
        let Some(found) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            if self.searched > self.record_bytes_max {
                return Err(self.too_long("line", None));
            }
            return Ok(None);
        };
        let mut line = self.buffer.split_to(self.searched + found + 1).freeze();
        self.searched = 0;
        line.truncate(line.len() - 1);
        self.line(line).map(Some)
    }

    fn line(&mut self, mut line: Bytes) -> Result<Item, String> {
        if line.len() > self.record_bytes_max {
            return Err(self.too_long("line", Some(line.len())));
        }
        self.count += 1;
        let Framing::Lines { key_separator: Some(separator) } = &self.framing else {
            return Ok(Item { key: Bytes::new(), value: line });
        };
        let found = line.windows(separator.len()).position(|window| window == separator);
        let Some(at) = found else {
            let separator = String::from_utf8_lossy(separator);
            return Err(format!("line {} has no key: there is no \"{separator}\" in it", self.count));
        };
        let key = line.split_to(at);
        line.advance(separator.len());
        Ok(Item { key, value: line })
    }

    fn next_delimited(&mut self) -> Result<Option<Item>, String> {
        let mut length: u64 = 0;
        for (at, byte) in self.buffer.iter().enumerate().take(10) {
            length |= u64::from(byte & 0x7f) << (7 * at).min(63);
            if *byte < 0x80 {
                return self.piece(at + 1, length);
            }
        }
        if self.buffer.len() >= 10 {
            return Err(format!("record {} of the input begins with a length that is not a varint", self.count + 1));
        }
        Ok(None)
    }

    fn piece(&mut self, prefix: usize, length: u64) -> Result<Option<Item>, String> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > self.record_bytes_max {
            return Err(self.too_long("record", Some(length)));
        }
        if self.buffer.len() < prefix + length {
            return Ok(None);
        }
        self.buffer.advance(prefix);
        self.count += 1;
        Ok(Some(Item { key: Bytes::new(), value: self.buffer.split_to(length).freeze() }))
    }

    fn too_long(&self, what: &str, bytes: Option<usize>) -> String {
        let bytes = bytes.map_or_else(|| format!("more than {}", self.buffer.len() - 1), |bytes| bytes.to_string());
        format!("{what} {} has {bytes} bytes, the limit is {}", self.count + 1, self.record_bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(key_separator: Option<&str>) -> Framing {
        Framing::Lines { key_separator: key_separator.map(|text| text.as_bytes().to_vec()) }
    }

    /// Everything in `input`, given in pieces of `size`.
    fn split(framing: Framing, input: &[u8], size: usize) -> Result<Vec<(String, String)>, String> {
        let mut splitter = Splitter::new(framing, 20);
        let mut items = Vec::new();
        for piece in input.chunks(size) {
            splitter.push(piece);
            while let Some(item) = splitter.next()? {
                items.push(item);
            }
        }
        items.extend(splitter.finish()?);
        let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
        Ok(items.into_iter().map(|item| (text(item.key), text(item.value))).collect())
    }

    fn values(input: &str, size: usize) -> Vec<String> {
        split(lines(None), input.as_bytes(), size).unwrap().into_iter().map(|(_, value)| value).collect()
    }

    /// Lines come out alike however the input is cut: empty ones are records, the last newline may be missing,
    /// and nothing but the newline is taken away.
    #[test]
    fn lines_of_any_cut() {
        for size in 1..12 {
            assert_eq!(values("a\n\nb \r\nlast", size), ["a", "", "b \r", "last"]);
            assert_eq!(values("a\n", size), ["a"]);
            assert_eq!(values("\n", size), [""]);
        }
        assert_eq!(values("", 1), [""; 0]);
    }

    /// The key ends at the first separator; a line without one is an error with its number.
    #[test]
    fn keys() {
        let items = split(lines(Some("::")), b"k::v\n::v::w\nk::\n", 3).unwrap();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(items, [pair("k", "v"), pair("", "v::w"), pair("k", "")]);
        let error = split(lines(Some("::")), b"k::v\nk:v\n", 3).unwrap_err();
        assert_eq!(error, "line 2 has no key: there is no \"::\" in it");
    }

    /// A line over the limit is refused with its number, before all of it is read.
    #[test]
    fn long_lines() {
        assert_eq!(split(lines(None), &[b'x'; 20], 7).unwrap().len(), 1);
        let error = split(lines(None), b"ok\nxxxxxxxxxxxxxxxxxxxxx\n", 99).unwrap_err();
        assert_eq!(error, "line 2 has 21 bytes, the limit is 20");
        let error = split(lines(None), &[b'x'; 100], 30).unwrap_err();
        assert_eq!(error, "line 1 has more than 29 bytes, the limit is 20");
    }

    /// Length-delimited pieces hold any bytes; lies and cuts are errors.
    #[test]
    fn delimited() {
        for size in 1..9 {
            let items = split(Framing::Delimited, b"\x02a\n\x00\x83\x00xyz", size).unwrap();
            let values: Vec<_> = items.into_iter().map(|(_, value)| value).collect();
            assert_eq!(values, ["a\n", "", "xyz"]);
        }
        assert_eq!(split(Framing::Delimited, b"\x01a\x02b", 9).unwrap_err(), "record 2 of the input is cut off");
        assert_eq!(split(Framing::Delimited, b"\x15", 9).unwrap_err(), "record 1 has 21 bytes, the limit is 20");
        assert!(split(Framing::Delimited, &[0xff; 10], 3).unwrap_err().contains("not a varint"));
        assert!(split(Framing::Delimited, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], 3).is_err());
    }

    /// Input of any bytes, in any pieces (`crate::fuzz`).
    #[test]
    fn fuzz() {
        let split = |framing: &Framing, bytes: &[u8], size: usize| {
            let (mut splitter, mut items) = (Splitter::new(framing.clone(), 100), Vec::new());
            for piece in bytes.chunks(size) {
                splitter.push(piece);
                while let Some(item) = splitter.next().ok()? {
                    items.push(item);
                }
            }
            items.extend(splitter.finish().ok()?);
            assert!(items.iter().all(|item| item.key.len() + item.value.len() <= 100));
            Some(items)
        };
        for framing in [Framing::Delimited, Framing::Lines { key_separator: Some(b": ".to_vec()) }] {
            let corpus = match framing {
                Framing::Delimited => [&b"\x03abc\0\x01x"[..], b""],
                Framing::Lines { .. } => [&b"key: value\n: \na: b: c"[..], b""],
            };
            crate::fuzz::Target::new("cli::input::tests::fuzz", corpus, |bytes| {
                let whole = split(&framing, bytes, usize::MAX);
                if let Some(items) = &whole {
                    assert_eq!(split(&framing, bytes, 3).as_ref(), Some(items));
                }
                whole
            })
            .words(&["\n", ": ", "\r\n"])
            .run();
        }
    }
}
