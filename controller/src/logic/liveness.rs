//! When a location counts as silent.
//!
//! **What.** A location is online while its agent has a session; 15 minutes after it was last heard it is stale, and
//! what its cache list says is only the last known state.
//! **Why 15 minutes.** A controller restart or a rebooting switch must not paint a thousand rows; a dead host must not
//! look warm to whoever starts machines on it.
//! **Invariants.** `a_clock_that_was_set_back_makes_nobody_stale`.

/// Silence after which entries are shown as stale, in microseconds.
pub const STALE_AFTER_US: i64 = 15 * 60 * 1_000_000;

/// What is known of a location's agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Liveness {
    /// It has a session.
    Online,
    /// It has none, but was heard lately.
    Silent,
    /// It was not heard for [`STALE_AFTER_US`], or never.
    Stale,
}

/// Liveness of a location last heard at `last_seen_us` (microseconds since the epoch; `None`: never).
#[must_use]
pub const fn liveness(online: bool, last_seen_us: Option<i64>, now_us: i64) -> Liveness {
    match (online, last_seen_us) {
        (true, _) => Liveness::Online,
        (false, Some(seen_us)) if now_us.saturating_sub(seen_us) < STALE_AFTER_US => Liveness::Silent,
        _ => Liveness::Stale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_turns_stale_after_fifteen_minutes() {
        assert_eq!(liveness(true, None, 0), Liveness::Online);
        assert_eq!(liveness(false, Some(0), STALE_AFTER_US - 1), Liveness::Silent);
        assert_eq!(liveness(false, Some(0), STALE_AFTER_US), Liveness::Stale);
        assert_eq!(liveness(false, None, 5), Liveness::Stale);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nobody_stale() {
        assert_eq!(liveness(false, Some(i64::MAX), i64::MIN), Liveness::Silent);
    }
}
