//! How much is under way, by its age. Pure: it is told what time it is, in steps.

/// Requests, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) requests: usize,
    pub(super) bytes: usize,
}

impl Amount {
    /// With one request more.
    pub(super) fn plus(self, bytes: usize) -> Amount {
        Amount { requests: self.requests + 1, bytes: self.bytes.saturating_add(bytes) }
    }

    pub(super) fn minus(self, part: Amount) -> Amount {
        let left = |all: usize, part: usize| all.checked_sub(part).expect("only what was taken is given back");
        Amount { requests: left(self.requests, part.requests), bytes: left(self.bytes, part.bytes) }
    }

    fn with(self, other: Amount) -> Amount {
        Amount { requests: self.requests + other.requests, bytes: self.bytes.saturating_add(other.bytes) }
    }

    /// Whether neither is above `max`.
    pub(super) fn is_within(self, max: Amount) -> bool {
        self.requests <= max.requests && self.bytes <= max.bytes
    }

    /// The lesser of both.
    pub(super) fn least(self, other: Amount) -> Amount {
        Amount { requests: self.requests.min(other.requests), bytes: self.bytes.min(other.bytes) }
    }

    pub(super) fn quarter(self) -> Amount {
        Amount { requests: self.requests / 4, bytes: self.bytes / 4 }
    }
}

/// Whether what began at `entered` is late `now`: more than a whole step ago.
pub(super) fn is_late(entered: u64, now: u64) -> bool {
    now - entered >= 2
}

/// Amounts that began in this step of time, in the one before it, and earlier.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ages {
    now: u64,
    newest: Amount,
    newer: Amount,
    late: Amount,
}

impl Ages {
    /// As it is at `now`. Time does not go back.
    pub(super) fn at(&mut self, now: u64) -> &mut Ages {
        match now.checked_sub(self.now).expect("time does not go back") {
            0 => return self,
            1 => {
                self.late = self.late.with(self.newer);
                self.newer = std::mem::take(&mut self.newest);
            }
            _ => {
                let fresh = self.fresh();
                self.late = self.late.with(fresh);
                (self.newest, self.newer) = Default::default();
            }
        }
        self.now = now;
        self
    }

    /// One more.
    pub(super) fn enter(&mut self, bytes: usize) {
        self.newest = self.newest.plus(bytes);
    }

    /// One that began at `entered` has ended.
    pub(super) fn leave(&mut self, entered: u64, bytes: usize) {
        let amount = match self.now - entered {
            0 => &mut self.newest,
            1 => &mut self.newer,
            _ => &mut self.late,
        };
        *amount = amount.minus(Amount { requests: 1, bytes });
    }

    /// Not late.
    pub(super) fn fresh(&self) -> Amount {
        self.newest.with(self.newer)
    }

    pub(super) fn late(&self) -> Amount {
        self.late
    }

    pub(super) fn all(&self) -> Amount {
        self.fresh().with(self.late)
    }
}
