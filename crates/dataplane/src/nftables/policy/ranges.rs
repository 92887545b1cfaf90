//! Ranges of numbers, each from its first to its last.

/// A number that ranges are made of.
pub(super) trait Number: Copy + Ord {
    /// The next one; the last one itself has none but itself.
    fn next(self) -> Self;
}

impl Number for u16 {
    fn next(self) -> Self {
        self.saturating_add(1)
    }
}

impl Number for u128 {
    fn next(self) -> Self {
        self.saturating_add(1)
    }
}

/// The same numbers in ranges that neither overlap nor touch, which an interval set of the kernel asks for.
pub(super) fn merged<T: Number>(mut ranges: Vec<(T, T)>) -> Vec<(T, T)> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.next() => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        assert_eq!(
            merged(vec![(5_u16, 6), (1, 2), (3, 4), (9, 9), (1, 1)]),
            [(1, 6), (9, 9)]
        );
        assert_eq!(merged(vec![(0, u128::MAX), (7, 8)]), [(0, u128::MAX)]);
        assert_eq!(merged(vec![(7, u16::MAX), (u16::MAX, u16::MAX)]), [(7, u16::MAX)]);
    }
}
