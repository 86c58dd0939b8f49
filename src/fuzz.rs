//! Mutates valid encodings and gives them to the decoders of everything that comes from a disk or a network.
//!
//! `cargo nextest run --lib fuzz` gives each target a few thousand inputs, the same ones each time: a check for CI.
//! `RINGLOG_FUZZ_SECONDS=20 cargo test --release --lib fuzz` gives each 20 seconds of new ones, from a seed that is printed
//! (`RINGLOG_FUZZ_SEED` sets it). A failure prints the input, and the command that runs it again (`RINGLOG_FUZZ_INPUT`).
//!
//! Of each input is demanded:
//! - no panic, and no more memory than some times its own length (`Target::memory`): lengths in it are not believed;
//! - what decodes, encodes to bytes that decode to the same;
//! - of a format with a checksum: a valid encoding of which up to 3 bits, or up to 32 bits in a row, were changed is refused, or
//!   means what it did (CRC-32C tells these from valid ones without exception). Half of the other inputs get a checksum that
//!   matches, so that the checks behind it see something.
//!
//! Targets stand beside the decoders; their names hold `fuzz`.

use std::{
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

mod mutate;

use mutate::{Mutator, hex, unhex};

use crate::sim::executor::panic_text;

/// Inputs for each target when no time is given.
const INPUTS: u64 = 4_000;

/// Memory that a decoder may use whatever its input, bytes.
const MEMORY_FREE: u64 = 64 << 10;

/// Memory that it may use beside that for each byte of its input: small messages become structs with pointers.
const MEMORY_FACTOR: u64 = 128;

type Decode<'a, T> = Box<dyn Fn(&[u8]) -> Option<T> + 'a>;
type Encode<'a, T> = Box<dyn Fn(&T) -> Vec<u8> + 'a>;

/// A decoder, and valid inputs to begin with.
pub(crate) struct Target<'a, T> {
    /// The test's path, to run it again.
    name: &'static str,
    corpus: Vec<Vec<u8>>,
    decode: Decode<'a, T>,
    encode: Option<Encode<'a, T>>,
    seal: Option<fn(&mut Vec<u8>)>,
    words: &'static [&'static str],
    memory_free: u64,
}

/// What a run has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    accepted: u64,
    refused: u64,
}

impl<'a, T: PartialEq + Debug> Target<'a, T> {
    /// `decode` returns `None` for what it refuses. All of `corpus` has to be accepted.
    pub(crate) fn new(
        name: &'static str,
        corpus: impl IntoIterator<Item = impl Into<Vec<u8>>>,
        decode: impl Fn(&[u8]) -> Option<T> + 'a,
    ) -> Target<'a, T> {
        Target {
            name,
            corpus: corpus.into_iter().map(Into::into).collect(),
            decode: Box::new(decode),
            encode: None,
            seal: None,
            words: &[],
            memory_free: MEMORY_FREE,
        }
    }

    /// What was decoded can be encoded again.
    pub(crate) fn encode(mut self, encode: impl Fn(&T) -> Vec<u8> + 'a) -> Target<'a, T> {
        self.encode = Some(Box::new(encode));
        self
    }

    /// The format has a checksum, which this puts right.
    pub(crate) fn sealed_by(mut self, seal: fn(&mut Vec<u8>)) -> Target<'a, T> {
        self.seal = Some(seal);
        self
    }

    /// Words of a text format.
    pub(crate) fn words(mut self, words: &'static [&'static str]) -> Target<'a, T> {
        self.words = words;
        self
    }

    /// The decoder may use so many bytes whatever its input.
    pub(crate) fn memory(mut self, bytes: u64) -> Target<'a, T> {
        self.memory_free = bytes;
        self
    }

    /// Runs it as the environment says.
    pub(crate) fn run(self) {
        if let Ok(input) = std::env::var("RINGLOG_FUZZ_INPUT") {
            let input = unhex(&input).expect("RINGLOG_FUZZ_INPUT is hexadecimal");
            let verdict = self.judge(&input, None);
            println!("{}: {verdict:?}", self.name);
            verdict.unwrap();
            return;
        }
        let seconds = variable("RINGLOG_FUZZ_SECONDS");
        let chance = seconds.map_or(1, |_| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0));
        let seed = variable("RINGLOG_FUZZ_SEED").unwrap_or(chance);
        match self.run_for(seed, seconds.map(Duration::from_secs)) {
            Ok(Counts { accepted, refused }) => {
                println!("{}: seed {seed}, {accepted} inputs accepted, {refused} refused", self.name);
                assert!(refused > 0, "{}: nothing was refused, the mutations do not reach the decoder", self.name);
            }
            Err(failure) => panic!("{failure}"),
        }
    }

    /// # Errors
    /// The first failure, in words, with the input.
    pub(crate) fn run_for(&self, seed: u64, time: Option<Duration>) -> Result<Counts, String> {
        let mut counts = Counts::default();
        for valid in &self.corpus {
            match self.judge(valid, None) {
                Ok(true) => {}
                Ok(false) => return Err(format!("{}: a valid input is refused: {}", self.name, hex(valid))),
                Err(what) => return Err(self.failure(&what, seed, valid)),
            }
        }
        let begin = now();
        let mut mutator = Mutator::new(seed, &self.corpus, self.words);
        let mut number = 0;
        while time.map_or(number < INPUTS, |time| !number.is_multiple_of(64) || begin.elapsed() < time) {
            number += 1;
            let (input, origin) = self.input(&mut mutator);
            match self.judge(&input, origin) {
                Ok(true) => counts.accepted += 1,
                Ok(false) => counts.refused += 1,
                Err(what) => return Err(self.failure(&what, seed, &input)),
            }
        }
        Ok(counts)
    }

    /// An input, and the valid one that it must not be taken for another meaning of.
    fn input<'s>(&'s self, mutator: &mut Mutator<'s>) -> (Vec<u8>, Option<&'s [u8]>) {
        match self.seal {
            Some(_) if mutator.one_in(4) => {
                let (input, valid) = mutator.lightly();
                (input, Some(valid))
            }
            Some(seal) if mutator.one_in(2) => {
                let mut input = mutator.heavily();
                seal(&mut input);
                (input, None)
            }
            _ => (mutator.heavily(), None),
        }
    }

    /// Whether `input` was accepted.
    fn judge(&self, input: &[u8], origin: Option<&[u8]>) -> Result<bool, String> {
        let judged = catch_unwind(AssertUnwindSafe(|| self.judge_unguarded(input, origin)));
        judged.unwrap_or_else(|panic| Err(format!("it panics: {}", panic_text(panic.as_ref()))))
    }

    fn judge_unguarded(&self, input: &[u8], origin: Option<&[u8]>) -> Result<bool, String> {
        let mut decoded = None;
        let memory = allocation_counter::measure(|| decoded = (self.decode)(input));
        let memory_max = self.memory_free + MEMORY_FACTOR * input.len() as u64;
        if memory.bytes_max > memory_max {
            let (bytes, length) = (memory.bytes_max, input.len());
            return Err(format!(
                "it takes {bytes} bytes of memory for {length} bytes of input, the limit is {memory_max}"
            ));
        }
        let Some(decoded) = decoded else { return Ok(false) };
        if let Some(valid) = origin {
            let meant = (self.decode)(valid);
            if meant.as_ref() != Some(&decoded) {
                return Err(format!("changed bytes pass the checksum: {decoded:?} instead of {meant:?}"));
            }
        }
        if let Some(encode) = &self.encode {
            let again = encode(&decoded);
            let decoded_again = (self.decode)(&again);
            if decoded_again.as_ref() != Some(&decoded) {
                let again = hex(&again);
                return Err(format!("{decoded:?} encodes to {again}, which decodes to {decoded_again:?}"));
            }
        }
        Ok(true)
    }

    fn failure(&self, what: &str, seed: u64, input: &[u8]) -> String {
        let (name, input, bytes) = (self.name, hex(input), input.len());
        format!(
            "{name}: {what}\nseed {seed}, an input of {bytes} bytes; again with:\n\
             RINGLOG_FUZZ_INPUT={input} cargo test --lib -- --exact {name} --nocapture"
        )
    }
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[allow(clippy::disallowed_methods, reason = "how long a run takes; no input depends on it")]
fn now() -> Instant {
    Instant::now()
}

/// A checksum of the first 124 bytes in the 4 behind them: entries, segments, hard state, checkpoints.
#[allow(clippy::ptr_arg, reason = "`Target::sealed` takes functions of this type")]
pub(crate) fn seal_block(bytes: &mut Vec<u8>) {
    if bytes.len() >= 128 {
        let crc = crc32c::crc32c(&bytes[..124]);
        bytes[124..128].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A last line "crc32c 0123abcd" with the checksum of all before it: identity, remembered members.
pub(crate) fn seal_text(bytes: &mut Vec<u8>) {
    if let Some(end) = bytes.windows(7).rposition(|window| window == b"crc32c ") {
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes.truncate(end);
        bytes.extend(format!("crc32c {crc:08x}\n").bytes());
    }
}

mod tests {
    use super::*;

    /// Length, content, checksum of both.
    fn message(content: &[u8]) -> Vec<u8> {
        let mut bytes = [&[content.len() as u8][..], content, &[0; 4]].concat();
        seal(&mut bytes);
        bytes
    }

    #[allow(clippy::ptr_arg, reason = "`Target::sealed` takes functions of this type")]
    fn seal(bytes: &mut Vec<u8>) {
        if let Some((content, checksum)) = bytes.split_last_chunk_mut::<4>() {
            *checksum = crc32c::crc32c(content).to_le_bytes();
        }
    }

    fn failure<T: PartialEq + Debug>(target: Target<'_, T>) -> String {
        target.run_for(1, None).unwrap_err()
    }

    fn corpus() -> [Vec<u8>; 2] {
        [message(b"some content"), message(b"")]
    }

    /// A right decoder passes, having seen inputs of both kinds.
    #[test]
    fn fuzz_passes_what_is_right() {
        let decode = |bytes: &[u8]| {
            let (length, rest) = bytes.split_first()?;
            let content = rest.get(..usize::from(*length))?;
            (message(content) == bytes).then(|| content.to_vec())
        };
        let target = Target::new("right", corpus(), decode).encode(|content| message(content)).sealed_by(seal);
        let counts = target.run_for(1, None).unwrap();
        assert!(counts.accepted > 100 && counts.refused > 100, "{counts:?}");
    }

    /// Planted: a length is believed. The report holds the input, and the input shows it again.
    #[test]
    fn fuzz_reports_a_planted_panic() {
        let decode = |bytes: &[u8]| Some(bytes[1..1 + usize::from(*bytes.first()?)].to_vec());
        let report = failure(Target::new("planted", corpus(), decode));
        assert!(report.contains("it panics") && report.contains("seed 1,"), "{report}");
        let (_, input) = report.split_once("RINGLOG_FUZZ_INPUT=").unwrap();
        let input = unhex(input.split(' ').next().unwrap()).unwrap();
        assert!(catch_unwind(|| decode(&input)).is_err());
    }

    /// Planted: memory for an announced length, before that many bytes have come.
    #[test]
    fn fuzz_reports_planted_memory() {
        let decode = |bytes: &[u8]| {
            let room = Vec::<u8>::with_capacity(usize::from(*bytes.first()?) << 20);
            (room.capacity() < bytes.len()).then_some(())
        };
        let target = Target::new("planted", [vec![0, 0]], decode);
        assert!(failure(target).contains("bytes of memory"));
    }

    /// Planted: the checksum is not looked at.
    #[test]
    fn fuzz_reports_a_planted_checksum() {
        let decode = |bytes: &[u8]| {
            let (length, rest) = bytes.split_first()?;
            (rest.len() == usize::from(*length) + 4).then(|| rest[..rest.len() - 4].to_vec())
        };
        let target = Target::new("planted", corpus(), decode).sealed_by(seal);
        assert!(failure(target).contains("pass the checksum"));
    }

    /// Planted: what is decoded is not what would be written.
    #[test]
    fn fuzz_reports_a_planted_encoder() {
        let decode = |bytes: &[u8]| Some(*bytes.first()?);
        let target = Target::new("planted", [vec![0]], decode).encode(|number| vec![number.min(&200).to_owned()]);
        assert!(failure(target).contains("which decodes to Some(200)"));
    }
}
