//! When to ask for a new certificate.
//!
//! **What.** From a certificate's dates and the wall clock at the moment it was loaded: how long until renewal and how
//! long until its end, both to be counted on the monotonic clock from then on.
//! **Why monotonic.** A wall clock that jumps must neither end a session nor keep an old certificate for ever.
//! **Invariants.**
//! 1. `a_fresh_certificate_is_renewed_near_half_of_its_life`.
//! 2. `a_wrong_clock_never_stretches_a_life`.
//! 3. `a_fresh_certificate_is_not_due_however_short_its_life`: or it would be renewed again and again.

use std::time::Duration;

/// Spread of the moment of renewal, per cent of half a life, so that a fleet does not renew at once.
const SPREAD_PERCENT: u64 = 10;
/// Part of the life that lies before the moment of signing: notBefore is set back by this much for skewed clocks.
const BACKDATED_S: u64 = 3600;

/// Times from the moment of loading.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lifetime {
    /// Until the renewal.
    pub renew_in: Duration,
    /// Until the end; zero if it has ended.
    pub ends_in: Duration,
}

/// Lifetime of a certificate valid from `not_before` to `not_after`, seen at `now` (all Unix seconds).
/// `seed` is any uniformly drawn number.
#[must_use]
pub fn lifetime(not_before: i64, not_after: i64, now: i64, seed: u64) -> Lifetime {
    let whole = u64::try_from(not_after.saturating_sub(not_before)).unwrap_or(0);
    let ends_in = u64::try_from(not_after.saturating_sub(now)).unwrap_or(0).min(whole);
    // A life so short that no such part can be in it is not one that our controller gave: half of it, then.
    let useful = whole.checked_sub(BACKDATED_S).filter(|useful| *useful > 0).unwrap_or(whole / 2);
    let half = useful / 2;
    let spread = half * SPREAD_PERCENT / 100;
    let keep = half - spread + seed % (2 * spread + 1);
    Lifetime {
        renew_in: Duration::from_secs(ends_in.saturating_sub(keep)),
        ends_in: Duration::from_secs(ends_in),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600;

    #[test]
    fn a_fresh_certificate_is_renewed_near_half_of_its_life() {
        for seed in [0, 1, 4711, u64::MAX] {
            let life = lifetime(-3600, DAY, 0, seed);
            let hours = life.renew_in.as_secs() / 3600;
            assert!((10..=13).contains(&hours), "{hours} h");
            assert_eq!(life.ends_in, Duration::from_secs(24 * 3600));
        }
    }

    #[test]
    fn a_fresh_certificate_is_not_due_however_short_its_life() {
        for seconds in [2, 60, 3599, 3600, 3601, 7200, DAY] {
            for seed in [0, 1, 4711, u64::MAX] {
                let life = lifetime(-3600, seconds, 0, seed);
                let share = life.renew_in.as_secs_f64() / life.ends_in.as_secs_f64();
                assert!((0.44..=0.56).contains(&share), "{seconds} s: renewed after {share} of it");
            }
        }
    }

    #[test]
    fn past_half_life_it_is_due_at_once() {
        assert_eq!(lifetime(-3600, DAY, DAY - 60, 7).renew_in, Duration::ZERO);
        let over = lifetime(-3600, DAY, DAY + 1, 7);
        assert_eq!((over.renew_in, over.ends_in), (Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn a_wrong_clock_never_stretches_a_life() {
        let early = lifetime(0, DAY, -10 * 365 * DAY, 3);
        assert!(early.ends_in <= Duration::from_secs(24 * 3600));
        assert!(early.renew_in < early.ends_in);
        assert_eq!(lifetime(5, 5, 5, 0).ends_in, Duration::ZERO);
        assert_eq!(lifetime(i64::MAX, i64::MIN, 0, 0).ends_in, Duration::ZERO);
    }
}
