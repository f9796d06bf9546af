//! A token bucket: how long a transfer must pause to keep its cap.
//!
//! **What.** Bytes that were moved are taken from the bucket; the answer is how long to wait before moving more.
//! **Why debt.** A read cannot be cut to the tokens that are left, so the bucket may go below zero; the pause pays it
//! back, and the mean never passes the cap.
//! **Invariants.** `the_mean_never_passes_the_cap_by_more_than_a_burst`.

use std::time::Duration;

/// What may pass at once after a pause: a tenth of a second of the cap, at least this many bytes.
const BURST_BYTES_MIN: u64 = 64 * 1024;

/// See the module. `None` as rate means no cap.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    bytes_per_s: Option<u64>,
    /// Negative: a debt. In bytes.
    tokens: i128,
    /// Time of the last refill, microseconds on any clock that does not go back.
    refilled_us: u64,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub fn new(bytes_per_s: Option<u64>, now_us: u64) -> Self {
        let mut bucket = Self { bytes_per_s, tokens: 0, refilled_us: now_us };
        bucket.tokens = bucket.burst();
        bucket
    }

    /// Changes the cap; a debt is kept.
    pub fn set_rate(&mut self, bytes_per_s: Option<u64>, now_us: u64) {
        self.refill(now_us);
        self.bytes_per_s = bytes_per_s;
        self.tokens = self.tokens.min(self.burst());
    }

    /// Takes `bytes` that are about to move; wait that long first.
    #[must_use]
    pub fn take(&mut self, bytes: u64, now_us: u64) -> Duration {
        self.refill(now_us);
        let Some(rate) = self.bytes_per_s else { return Duration::ZERO };
        self.tokens -= i128::from(bytes);
        if self.tokens >= 0 {
            return Duration::ZERO;
        }
        let micros = self.tokens.unsigned_abs() * 1_000_000 / u128::from(rate.max(1));
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn burst(&self) -> i128 {
        i128::from((self.bytes_per_s.unwrap_or(0) / 10).max(BURST_BYTES_MIN))
    }

    fn refill(&mut self, now_us: u64) {
        let passed_us = now_us.saturating_sub(self.refilled_us);
        self.refilled_us = self.refilled_us.max(now_us);
        let rate = i128::from(self.bytes_per_s.unwrap_or(0));
        self.tokens = (self.tokens + rate * i128::from(passed_us) / 1_000_000).min(self.burst());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_never_passes_the_cap_by_more_than_a_burst() {
        let rate = 10 << 20;
        let mut bucket = TokenBucket::new(Some(rate), 0);
        let (mut now_us, mut moved) = (0, 0);
        while now_us < 10_000_000 {
            let pause = bucket.take(256 * 1024, now_us);
            now_us += u64::try_from(pause.as_micros()).unwrap() + 100;
            moved += 256 * 1024;
        }
        let allowed = rate * now_us / 1_000_000;
        assert!(moved <= allowed + rate / 10 + 256 * 1024, "{moved} B of {allowed} B");
        assert!(moved >= allowed * 9 / 10, "{moved} B of {allowed} B");
    }

    #[test]
    fn without_a_cap_nothing_waits() {
        let mut bucket = TokenBucket::new(None, 0);
        assert_eq!(bucket.take(u64::MAX, 1), Duration::ZERO);
        bucket.set_rate(Some(1 << 20), 2);
        assert_eq!(bucket.take(1024, 3), Duration::ZERO);
        assert!(bucket.take(1 << 20, 3) > Duration::from_millis(900));
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_away() {
        let mut bucket = TokenBucket::new(Some(1 << 20), 1_000_000);
        let first = bucket.take(1 << 20, 1_000_000);
        assert!(bucket.take(1 << 20, 0) > first);
    }
}
