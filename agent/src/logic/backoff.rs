//! How long to wait before the next try.
//!
//! **What.** Exponential delays with a cap; drawn with *full jitter* where many agents fail at the same moment.
//! **Why full jitter.** After a restart of the controller all agents see the loss within seconds of each other. Delays
//! spread evenly over the whole span give the lowest peak of handshakes for the same mean delay.
//! **Invariants.**
//! 1. `delays_grow_to_the_cap_and_stay`.
//! 2. `a_fault_that_names_a_delay_is_given_at_least_that_long`.
//! 3. `two_thousand_agents_are_back_within_20_s_at_600_handshakes_a_second`.

use std::time::Duration;

use hearth_protocol::fault::{FaultCode, Retry};

/// Span of the first reconnect; 2,000 agents then come at 400 a second.
pub const RECONNECT_FIRST: Duration = Duration::from_secs(5);
/// Longest span between two tries to connect: an agent is back within this and one handshake of the return.
pub const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// Span after a refusal that will not heal by itself (revoked, duplicate, version).
pub const REFUSED_MAX: Duration = Duration::from_secs(300);
/// First delay of an entry whose fetch failed.
pub const ENTRY_FIRST: Duration = Duration::from_secs(5);
/// Least delay of an entry that was refused with a fault that the same request would meet again.
const ENTRY_NEVER: Duration = Duration::from_secs(30);
/// Longest delay of an entry whose fetch failed again and again.
pub const ENTRY_MAX: Duration = Duration::from_secs(600);

/// `first` doubled per failure beyond the first, at most `max`. `failures` counts from 1.
#[must_use]
pub fn exponential(first: Duration, max: Duration, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures.saturating_sub(1).min(30)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(max)
}

/// A point in `0 ..= span`; `seed` is any uniformly drawn number.
#[must_use]
pub fn full_jitter(span: Duration, seed: u64) -> Duration {
    let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(seed % micros.saturating_add(1))
}

/// `period` ± `percent` per cent; `seed` is any uniformly drawn number.
#[must_use]
pub fn around(period: Duration, percent: u32, seed: u64) -> Duration {
    let spread = period * percent / 100;
    period.saturating_sub(spread) + full_jitter(spread * 2, seed)
}

/// Delay before the next try to connect. `failures` counts tries without a session since the last one that was up.
#[must_use]
pub fn reconnect(failures: u32, seed: u64) -> Duration {
    full_jitter(exponential(RECONNECT_FIRST, RECONNECT_MAX, failures.max(1)), seed)
}

/// Delay after the controller refused us with `fault`.
#[must_use]
pub fn after_refusal(fault: FaultCode, failures: u32, seed: u64) -> Duration {
    let at_least = match fault.retry() {
        Retry::After(delay) => delay,
        Retry::Never | Retry::OtherSource => REFUSED_MAX,
    };
    at_least.min(REFUSED_MAX) + reconnect(failures, seed)
}

/// Delay before a failed entry is tried again.
#[must_use]
pub fn entry(fault: FaultCode, failures: u32) -> Duration {
    let grown = exponential(ENTRY_FIRST, ENTRY_MAX, failures);
    match fault.retry() {
        Retry::After(delay) => grown.max(delay.min(ENTRY_MAX)),
        // The plan names it and the source refuses: they are about to agree, or an operator must look.
        Retry::Never => grown.max(ENTRY_NEVER),
        Retry::OtherSource => grown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_stay() {
        let (first, max) = (Duration::from_secs(5), Duration::from_secs(60));
        let delays: Vec<u64> = (0..=6).map(|n| exponential(first, max, n).as_secs()).collect();
        assert_eq!(delays, [5, 5, 10, 20, 40, 60, 60]);
        assert_eq!(exponential(first, max, u32::MAX), max);
    }

    #[test]
    fn a_fault_that_names_a_delay_is_given_at_least_that_long() {
        assert_eq!(entry(FaultCode::NoSpace, 1), Duration::from_secs(60));
        assert_eq!(entry(FaultCode::BadBytes, 2), Duration::from_secs(10));
        assert_eq!(entry(FaultCode::NotPlaced, 1), ENTRY_NEVER);
        assert_eq!(entry(FaultCode::Unknown(999), 9), ENTRY_MAX);
        assert!(after_refusal(FaultCode::Denied, 1, 0) >= Duration::from_secs(300));
    }

    #[test]
    fn jitter_stays_in_its_span() {
        for seed in [0, 1, 12_345_678_901, u64::MAX] {
            assert!(full_jitter(Duration::from_secs(5), seed) <= Duration::from_secs(5));
            let pulse = around(Duration::from_secs(15), 20, seed);
            assert!((12..=18).contains(&pulse.as_secs()), "{pulse:?}");
        }
    }

    /// A controller that is away for 30 s and then answers 600 handshakes a second; all agents lost it at once.
    #[test]
    fn two_thousand_agents_are_back_within_20_s_at_600_handshakes_a_second() {
        let away_ms = 30_000_u64;
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut arrivals: Vec<u64> = Vec::new();
        for _ in 0..2000 {
            let (mut at_ms, mut failures) = (0, 1);
            loop {
                at_ms += u64::try_from(reconnect(failures, draw()).as_millis()).unwrap();
                if at_ms >= away_ms {
                    break;
                }
                at_ms += 1_000; // a try that meets nobody
                failures += 1;
            }
            arrivals.push(at_ms);
        }
        arrivals.sort_unstable();
        let mut free_us = 0;
        for at_ms in arrivals {
            free_us = (at_ms * 1000).max(free_us) + 1_000_000 / 600;
        }
        assert!(free_us < (away_ms + 20_000) * 1000, "last one back at {} ms", free_us / 1000);
    }
}
