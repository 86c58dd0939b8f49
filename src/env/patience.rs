//! Whether something is worth trying that often is in vain: after each time in vain twice as many occasions are left out.
//!
//! Pure: who waits, spins or holds something back says how it went.

/// Invariant: `skip <= misses <= skip_max`.
#[derive(Debug)]
pub(crate) struct Patience {
    misses: u32,
    pub(super) skip: u32,
    skip_max: u32,
}

impl Patience {
    /// Leaves out at most `skip_max` occasions in a row.
    pub(crate) fn new(skip_max: u32) -> Patience {
        Patience { misses: 0, skip: 0, skip_max }
    }

    /// An occasion: whether to take it.
    pub(crate) fn allows(&mut self) -> bool {
        let allowed = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        allowed
    }

    /// What was tried has paid.
    pub(crate) fn hit(&mut self) {
        self.misses = 0;
    }

    /// It was in vain.
    pub(crate) fn missed(&mut self) {
        self.misses = (self.misses * 2 + 1).min(self.skip_max);
        self.skip = self.misses;
    }
}
