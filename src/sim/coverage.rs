//! Which fault met which critical path: what a run has really tried. A fault that never hits a leader with records in flight
//! has proven nothing about that.

use std::{collections::BTreeMap, fmt};

/// Pairs of a fault and what it met, with how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    pairs: BTreeMap<(String, String), u64>,
}

impl Coverage {
    /// A fault has met this.
    pub fn hit(&mut self, fault: &str, path: &str) {
        self.add(fault, path, 1);
    }

    /// The same, several times.
    pub fn add(&mut self, fault: &str, path: &str, times: u64) {
        *self.pairs.entry((fault.to_owned(), path.to_owned())).or_default() += times;
    }

    /// Takes over what another run has hit.
    pub fn merge(&mut self, other: &Coverage) {
        for ((fault, path), times) in &other.pairs {
            self.add(fault, path, *times);
        }
    }

    /// All pairs, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.pairs.iter().map(|((fault, path), times)| (fault.as_str(), path.as_str(), *times))
    }

    /// Those of `expected` that were never hit.
    pub fn missing<'a>(&self, expected: &'a [(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let is_missing =
            |(fault, path): &(&str, &str)| !self.pairs.contains_key(&((*fault).to_owned(), (*path).to_owned()));
        expected.iter().copied().filter(is_missing).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (fault, path, times) in self.iter() {
            writeln!(f, "{fault:24} {path:28} {times}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was hit in any run counts, and what never was is named.
    #[test]
    fn missing_pairs() {
        let (mut all, mut one) = (Coverage::default(), Coverage::default());
        all.hit("crash", "leader");
        one.hit("crash", "leader");
        one.hit("pause", "leader");
        all.merge(&one);
        assert_eq!(all.iter().collect::<Vec<_>>(), [("crash", "leader", 2), ("pause", "leader", 1)]);
        let expected = [("crash", "leader"), ("crash", "catalog leader")];
        assert_eq!(all.missing(&expected), [("crash", "catalog leader")]);
    }
}
