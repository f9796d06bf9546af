//! How fast something may be sent in all.
//!
//! **What.** A [`Pace`] is asked before each send how long to wait. Sends are put one behind the other at the rate; after a
//! pause a short burst goes at once.
//! **Why times and not a level.** Whoever waits has its place already: nobody is overtaken, and no waker is needed.
//! **Invariants.** `no_more_is_sent_than_the_rate_allows`, `nobody_waits_who_need_not`.

/// A rate, and when the next byte is due.
#[derive(Clone, Debug)]
pub struct Pace {
    bytes_per_s: u64,
    burst_us: u64,
    next_us: u64,
}

impl Pace {
    /// `bytes_per_s`, at least 1; after a pause, what passes in `burst_us` goes at once.
    #[must_use]
    pub const fn new(bytes_per_s: u64, burst_us: u64) -> Self {
        Self { bytes_per_s: if bytes_per_s == 0 { 1 } else { bytes_per_s }, burst_us, next_us: 0 }
    }

    /// Takes a place for `bytes` at `now_us` (any clock that does not go back); how long to wait before they are sent, µs.
    pub fn take(&mut self, bytes: u64, now_us: u64) -> u64 {
        let at_us = self.next_us.max(now_us.saturating_sub(self.burst_us));
        let took_us = u128::from(bytes) * 1_000_000 / u128::from(self.bytes_per_s);
        self.next_us = at_us.saturating_add(u64::try_from(took_us).unwrap_or(u64::MAX));
        at_us.saturating_sub(now_us)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_more_is_sent_than_the_rate_allows(
            steps in proptest::collection::vec((1_u64..200_000, 0_u64..50_000), 1..100),
            rate in 1_000_u64..10_000_000,
        ) {
            let mut pace = Pace::new(rate, 20_000);
            // Counted from 1 s on, so that the first burst is a whole one.
            let (mut now_us, mut sent) = (1_000_000, Vec::new());
            for (bytes, pause_us) in steps {
                now_us += pause_us;
                sent.push((now_us + pace.take(bytes, now_us), bytes));
            }
            for (i, (from_us, _)) in sent.iter().enumerate() {
                let mut all = 0;
                for (at_us, bytes) in &sent[i..] {
                    // What goes before this one has had its time, but for the burst (and a µs of each is cut off).
                    let passed_us = at_us - from_us + 20_000 + sent.len() as u64;
                    prop_assert!(all <= rate * passed_us / 1_000_000 + 1);
                    all += bytes;
                }
            }
        }

        #[test]
        fn nobody_waits_who_need_not(bytes in 1_u64..1_000_000, rate in 1_u64..1_000_000_000) {
            let mut pace = Pace::new(rate, 0);
            prop_assert_eq!(pace.take(bytes, 5), 0);
            let due_us = u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(rate)).unwrap();
            prop_assert_eq!(pace.take(1, 5), due_us);
            prop_assert_eq!(pace.take(1, 5 + due_us + 1_000_000 / rate + 1), 0);
        }
    }
}
