//! Finding the largest packet that passes.

/// A lost packet may be bad luck; this many of one size are not.
const TRIES: u8 = 2;

/// A bisection between a size that passes and one that does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Search {
    passes: u32,
    fails: u32,
    lost: u8,
}

impl Search {
    /// `passes` is known to pass, or is the least there may be; `fails` does not.
    pub(super) fn new(passes: u32, fails: u32) -> Self {
        Search {
            passes,
            fails: fails.max(passes + 1),
            lost: 0,
        }
    }

    /// The size to try, or none when the largest is found.
    pub(super) fn size(&self) -> Option<u32> {
        (self.fails - self.passes > 1).then(|| self.passes + (self.fails - self.passes) / 2)
    }

    /// The largest that passes, as far as is known.
    pub(super) fn found(&self) -> u32 {
        self.passes
    }

    /// A packet of the size to try passed.
    pub(super) fn passed(&mut self) {
        self.passes = self.size().unwrap_or(self.passes);
        self.lost = 0;
    }

    /// One was lost, or refused for certain.
    pub(super) fn lost(&mut self, certain: bool) {
        self.lost += 1;
        if certain || self.lost >= TRIES {
            self.fails = self.size().unwrap_or(self.fails);
            self.lost = 0;
        }
    }
}
