//! The only place of this crate that reads clocks.
//!
//! **What.** Wall-clock time as integers with a unit, and monotonic time for durations.
//!
//! **Why.** Decisions take `now` as an argument and can be tested; one file to look at when a clock jumps.
//! Life times and time-outs are measured with [`monotonic`], because the wall clock of a host may be set at any moment.
//!
//! **What ends by the wall clock** (holds, start times) is asked of [`steady_unix_ms`], which does not follow a jump ahead
//! before it has lasted for an hour.
//!
//! **Invariants.** A clock before 1970 reads as 0 and one past the year 294,246 as the largest value: no panic.

#![expect(clippy::disallowed_methods, reason = "this module is where clocks are read")]

use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hearth_protocol::steady::{Look, Steady, Step};

/// Microseconds since the Unix epoch by the wall clock: what SQL columns named `*_us` hold.
#[must_use]
pub fn unix_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

/// Milliseconds since the Unix epoch by the wall clock: what wire fields named `*_unix_ms` hold.
#[must_use]
pub fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// The time by which holds end, milliseconds since the Unix epoch: never ahead of [`unix_ms`], and an hour behind a jump
/// ahead. Tells the log about jumps. Ask it at least every few minutes: what happens in between looks like one step.
#[must_use]
pub fn steady_unix_ms() -> u64 {
    static STEADY: Mutex<Option<(Steady, Instant)>> = Mutex::new(None);
    let (wall_ms, now) = (unix_ms(), monotonic());
    let mut steady = STEADY.lock().unwrap_or_else(PoisonError::into_inner);
    let (steady, since) = steady.get_or_insert_with(|| (Steady::new(wall_ms, 0), now));
    let passed_ms = u64::try_from(now.saturating_duration_since(*since).as_millis()).unwrap_or(u64::MAX);
    let Look { believed_ms, step } = steady.look(wall_ms, passed_ms);
    match step {
        Some(Step::Ahead(ms)) => tracing::error!(
            seconds = ms / 1000,
            "the wall clock was set ahead: no hold ends by it for an hour; check the time source (NTP) of this host"
        ),
        Some(Step::Back(ms)) => tracing::error!(
            seconds = ms / 1000,
            "the wall clock was set back: holds last longer; check the time source (NTP) of this host"
        ),
        None => {}
    }
    believed_ms
}

/// Monotonic time, for durations and time-outs. It never goes backwards and means nothing outside this process.
#[must_use]
pub fn monotonic() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_wall_clocks_agree_and_are_past_2020() {
        let (us, ms) = (unix_us(), unix_ms());
        assert!(us > 1_577_836_800_000_000, "{us} us is before 2020: set this machine's clock");
        let us_in_ms = u64::try_from(us / 1000).unwrap();
        assert!(ms.abs_diff(us_in_ms) < 1000, "{ms} ms and {us_in_ms} ms differ by more than a second");
    }

    #[test]
    fn monotonic_time_does_not_go_backwards() {
        let first = monotonic();
        assert!(monotonic() >= first);
    }
}
