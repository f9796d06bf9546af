//! A bound on attempts per source: token buckets that cost nothing while nobody comes.
//!
//! **What.** Each source may do `burst` things at once and `per_s` a second after that.
//! **Why.** Enrolment and handshakes cost a signature; whoever holds no token must not be able to buy many.
//! **Invariants.** `no_source_passes_its_bound`; the table never holds more than [`SOURCES_MAX`] sources: full buckets are
//! forgotten first, then the whole table (a flood from many addresses is bounded elsewhere, by the endpoint's limits).

use std::collections::HashMap;
use std::hash::Hash;

/// Most sources remembered: bounds the table's memory to well under a megabyte.
pub const SOURCES_MAX: usize = 8192;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Thousandths of an attempt.
    level: u64,
    at_ms: u64,
}

/// Buckets of all sources.
#[derive(Debug)]
pub struct RateLimit<S> {
    burst: u32,
    per_s: u32,
    buckets: HashMap<S, Bucket>,
}

impl<S: Eq + Hash> RateLimit<S> {
    /// Allows `burst` attempts at once and `per_s` attempts a second.
    #[must_use]
    pub fn new(burst: u32, per_s: u32) -> Self {
        Self { burst, per_s, buckets: HashMap::new() }
    }

    /// Takes one attempt of `source` at `now_ms` (any clock that does not go back); `false`: it has none left.
    pub fn take(&mut self, source: S, now_ms: u64) -> bool {
        let full = u64::from(self.burst) * 1000;
        let per_s = u64::from(self.per_s);
        let filled = |bucket: &Bucket| (bucket.level + now_ms.saturating_sub(bucket.at_ms) * per_s).min(full);
        if self.buckets.len() >= SOURCES_MAX && !self.buckets.contains_key(&source) {
            self.buckets.retain(|_, bucket| filled(bucket) < full);
            if self.buckets.len() >= SOURCES_MAX {
                self.buckets.clear();
            }
        }
        let bucket = self.buckets.entry(source).or_insert(Bucket { level: full, at_ms: now_ms });
        let level = filled(bucket);
        let allowed = level >= 1000;
        *bucket = Bucket { level: if allowed { level - 1000 } else { level }, at_ms: now_ms };
        allowed
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
