//! Changes bytes: a little, so that a checksum must notice it, or a lot.

use fastrand::Rng;

/// Longest input, bytes.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// Changes valid inputs; the same seed gives the same changes.
pub(super) struct Mutator<'a> {
    rng: Rng,
    corpus: &'a [Vec<u8>],
    words: &'static [&'static str],
}

impl<'a> Mutator<'a> {
    pub(super) fn new(seed: u64, corpus: &'a [Vec<u8>], words: &'static [&'static str]) -> Mutator<'a> {
        assert!(!corpus.is_empty(), "there is something to be changed");
        Mutator { rng: Rng::with_seed(seed), corpus, words }
    }

    pub(super) fn one_in(&mut self, n: u32) -> bool {
        self.rng.u32(..n) == 0
    }

    fn valid(&mut self) -> &'a [u8] {
        &self.corpus[self.rng.usize(..self.corpus.len())]
    }

    /// Up to three flipped bits, or other bits in a run of at most 32; and what it was before.
    pub(super) fn lightly(&mut self) -> (Vec<u8>, &'a [u8]) {
        let valid = self.valid();
        let mut input = valid.to_vec();
        if input.is_empty() {
            return (input, valid);
        }
        if self.rng.bool() {
            let at = self.rng.usize(..input.len());
            for byte in input.iter_mut().skip(at).take(4) {
                *byte = self.rng.u8(..);
            }
        } else {
            for _ in 0..self.rng.usize(1..=3) {
                self.flip(&mut input);
            }
        }
        (input, valid)
    }

    /// One to eight changes of any kind.
    pub(super) fn heavily(&mut self) -> Vec<u8> {
        let mut input = self.valid().to_vec();
        for _ in 0..self.rng.usize(1..=8) {
            self.change(&mut input);
            if self.rng.bool() {
                break;
            }
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        match self.rng.u32(..10) {
            0 => self.flip(input),
            1 => self.set_byte(input),
            2 => self.set_number(input),
            3 => self.insert(input),
            4 => {
                let (from, to) = self.range(input.len());
                input.drain(from..to);
            }
            5 => {
                let (from, to) = self.range(input.len());
                let copy = input[from..to].to_vec();
                let at = self.rng.usize(..=input.len());
                input.splice(at..at, copy);
            }
            6 => {
                let other = self.valid();
                let (from, to) = self.range(other.len());
                let (at, end) = self.range(input.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            7 => input.truncate(self.rng.usize(..=input.len())),
            8 => input.extend((0..self.rng.usize(1..40)).map(|_| self.rng.u8(..))),
            _ => self.put_varint(input),
        }
    }

    fn range(&mut self, length: usize) -> (usize, usize) {
        let from = self.rng.usize(..=length);
        // Short ones more often: one field, not half of the message.
        let most = if self.rng.bool() { 8.min(length - from) } else { length - from };
        (from, from + self.rng.usize(..=most))
    }

    fn flip(&mut self, input: &mut [u8]) {
        if !input.is_empty() {
            let bit = self.rng.usize(..input.len() * 8);
            input[bit / 8] ^= 1 << (bit % 8);
        }
    }

    fn set_byte(&mut self, input: &mut [u8]) {
        if !input.is_empty() {
            let at = self.rng.usize(..input.len());
            let any = self.rng.u8(..);
            input[at] = [0, 1, 0x7f, 0x80, 0xff, b' ', b'\n', b'-', b'0', any][self.rng.usize(..10)];
        }
    }

    /// Numbers at which comparisons and sums go wrong.
    fn edge(&mut self, length: usize) -> u64 {
        let (any, near) = (self.rng.u64(..), self.rng.u64(..3));
        let base = [0, 1, length as u64, 1 << 12, 1 << 16, 1 << 22, 1 << 26, 1 << 31, 1 << 32, 1 << 63, any];
        base[self.rng.usize(..base.len())].wrapping_add(near).wrapping_sub(1)
    }

    fn set_number(&mut self, input: &mut [u8]) {
        let width = [2, 4, 8][self.rng.usize(..3)];
        if input.len() < width {
            return;
        }
        let number = self.edge(input.len());
        let (little, big) = (number.to_le_bytes(), number.to_be_bytes());
        let bytes = if self.rng.bool() { &little[..width] } else { &big[8 - width..] };
        let at = self.rng.usize(..=input.len() - width);
        // Fields are mostly aligned.
        let at = if self.rng.bool() { at - at % width } else { at };
        input[at..at + width].copy_from_slice(bytes);
    }

    fn put_varint(&mut self, input: &mut Vec<u8>) {
        let mut number = self.edge(input.len());
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        let at = self.rng.usize(..=input.len());
        let replaced = self.rng.usize(..=2).min(input.len() - at);
        input.splice(at..at + replaced, bytes);
    }

    fn insert(&mut self, input: &mut Vec<u8>) {
        let at = self.rng.usize(..=input.len());
        if self.words.is_empty() || self.one_in(4) {
            let bytes: Vec<u8> = (0..self.rng.usize(1..8)).map(|_| self.rng.u8(..)).collect();
            input.splice(at..at, bytes);
        } else {
            let word = self.words[self.rng.usize(..self.words.len())];
            input.splice(at..at, word.bytes());
        }
    }
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of hexadecimal digits.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| if pair.len() == 2 { byte(pair) } else { None }).collect()
}
