//! The only place of the command line that reads clocks.
//!
//! **What.** Wall-clock time for texts such as `in 2h` and `3 min ago`, monotonic time for pauses and rates.
//! **Why.** What prints and parses takes `now` as an argument and can be tested.

#![expect(clippy::disallowed_methods, reason = "this module is where clocks are read")]

use std::time::{Instant, SystemTime};

use jiff::Timestamp;

/// Wall-clock time; the epoch if the machine's clock stands outside the years that `jiff` can express.
#[must_use]
pub(crate) fn now() -> Timestamp {
    Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Monotonic time, for durations and time-outs.
#[must_use]
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_past_2020() {
        assert!(now().as_second() > 1_577_836_800, "set this machine's clock");
        let first = monotonic();
        assert!(monotonic() >= first);
    }
}
