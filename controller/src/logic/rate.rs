//! A bound on attempts per source: token buckets that cost nothing while nobody comes.
//!
//! **What.** Each source may do `burst` things at once and so many a second or minute after that.
//! **Why.** Enrolment, handshakes and passwords cost work; whoever holds no token must not be able to buy much of it, and
//! whoever holds one must not keep the others waiting.
//! **Invariants.** `no_source_passes_its_bound`; the table never holds more than [`SOURCES_MAX`] sources: full buckets are
//! forgotten first, then the fuller half of the rest, so that those who are held back longest stay remembered.

use std::collections::HashMap;
use std::hash::Hash;

/// Most sources remembered: bounds the table's memory to well under a megabyte.
pub const SOURCES_MAX: usize = 8192;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// In parts of an attempt.
    level: u64,
    at_ms: u64,
}

/// Buckets of all sources.
#[derive(Debug)]
pub struct RateLimit<S> {
    /// Level of a full bucket.
    full: u64,
    /// Parts of an attempt.
    parts: u64,
    /// Parts that come back in a millisecond.
    per_ms: u64,
    buckets: HashMap<S, Bucket>,
}

impl<S: Eq + Hash> RateLimit<S> {
    /// Allows `burst` attempts at once and `per_s` attempts a second.
    #[must_use]
    pub fn new(burst: u32, per_s: u32) -> Self {
        Self::with(burst, 1000, per_s)
    }

    /// Allows `burst` attempts at once and `per_minute` attempts a minute.
    #[must_use]
    pub fn per_minute(burst: u32, per_minute: u32) -> Self {
        Self::with(burst, 60_000, per_minute)
    }

    fn with(burst: u32, parts: u64, per_ms: u32) -> Self {
        Self { full: u64::from(burst) * parts, parts, per_ms: per_ms.into(), buckets: HashMap::new() }
    }

    /// Takes one attempt of `source` at `now_ms` (any clock that does not go back); `false`: it has none left.
    pub fn take(&mut self, source: S, now_ms: u64) -> bool {
        self.admit(source, now_ms).is_ok()
    }

    /// As [`RateLimit::take`].
    ///
    /// # Errors
    /// Milliseconds until the source has an attempt again, if nobody takes it.
    pub fn admit(&mut self, source: S, now_ms: u64) -> Result<(), u64> {
        let (full, per_ms) = (self.full, self.per_ms);
        let filled = |bucket: &Bucket| {
            bucket.level.saturating_add(now_ms.saturating_sub(bucket.at_ms).saturating_mul(per_ms)).min(full)
        };
        if self.buckets.len() >= SOURCES_MAX && !self.buckets.contains_key(&source) {
            self.buckets.retain(|_, bucket| filled(bucket) < full);
            if self.buckets.len() >= SOURCES_MAX {
                let mut levels: Vec<u64> = self.buckets.values().map(&filled).collect();
                let middle = levels.len() / 2;
                let median = *levels.select_nth_unstable(middle).1;
                self.buckets.retain(|_, bucket| filled(bucket) < median);
            }
        }
        let bucket = self.buckets.entry(source).or_insert(Bucket { level: full, at_ms: now_ms });
        let level = filled(bucket);
        let left = level.checked_sub(self.parts);
        *bucket = Bucket { level: left.unwrap_or(level), at_ms: now_ms };
        left.map(drop).ok_or_else(|| (self.parts - level).div_ceil(per_ms.max(1)))
    }

    /// Number of sources remembered.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.buckets.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_table_is_bounded() {
        let mut limit = RateLimit::new(2, 1);
        (0..3 * SOURCES_MAX).for_each(|source| assert!(limit.take(source, 0)));
        assert!(limit.sources() <= SOURCES_MAX);
    }

    #[test]
    fn who_is_held_back_is_not_forgotten_in_a_flood_of_others() {
        let mut limit = RateLimit::per_minute(3, 1);
        (0..3).for_each(|_| assert!(limit.take(usize::MAX, 0)));
        (0..3 * SOURCES_MAX).for_each(|source| assert!(limit.take(source, 1)));
        assert!(!limit.take(usize::MAX, 2));
    }

    #[test]
    fn who_is_refused_hears_when_to_come_again() {
        let mut limit = RateLimit::per_minute(1, 6);
        assert_eq!(limit.admit("a", 0), Ok(()));
        assert_eq!(limit.admit("a", 2_000), Err(8_000));
        assert_eq!(limit.admit("a", 9_999), Err(1));
        assert_eq!(limit.admit("a", 10_000), Ok(()));
    }

    proptest! {
        #[test]
        fn no_source_passes_its_bound(steps in proptest::collection::vec(0_u64..700, 1..200), burst in 1_u32..5, per_s in 1_u32..4) {
            let mut limit = RateLimit::new(burst, per_s);
            let (mut now_ms, mut allowed) = (0, 0_u64);
            for step in steps {
                now_ms += step;
                allowed += u64::from(limit.take("a", now_ms));
                prop_assert!(allowed <= u64::from(burst) + now_ms * u64::from(per_s) / 1000);
            }
        }
    }
}
