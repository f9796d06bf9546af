//! How far a wall clock may be believed when it says that something is over.
//!
//! **What.** [`Steady`] follows the wall clock as long as it agrees with the monotonic one. A jump ahead of more than
//! [`JUMP_MS_MAX`] is not followed until it has lasted for [`SETTLE_MS`]; a step back is followed at once, and so is the
//! return from it.
//! **Why.** Holds end at a time of day. A clock that a broken time source sets a year ahead for five minutes would end
//! every hold of a fleet, and what is evicted then does not come back when the clock does. Ending a hold an hour late
//! harms nobody; and an hour is time enough to mend the clock.
//! **Why here.** Controller and agents must not disagree about when a hold ends. It is arithmetic: it reads no clock.
//!
//! **Invariants.**
//! 1. `it_is_never_ahead_of_the_wall_clock`, so nothing ends early.
//! 2. `a_jump_that_stays_is_followed_after_an_hour`.
//! 3. `a_jump_that_goes_away_leaves_no_trace`.

/// Step ahead that is believed at once, milliseconds: what NTP does, and the difference of clocks that a session allows.
pub const JUMP_MS_MAX: u64 = 300_000;
/// How long a larger step must last before it is believed, milliseconds.
pub const SETTLE_MS: u64 = 3_600_000;

/// A wall clock with a memory; see the module.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Steady {
    monotonic_ms: u64,
    believed_ms: u64,
    ahead_since_ms: Option<u64>,
    /// Before it was set back, the wall clock would have shown this now.
    before_ms: Option<u64>,
}

/// What a look at the clocks says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Look {
    /// The time to decide by, milliseconds since the epoch.
    pub believed_ms: u64,
    /// News for the operator: the wall clock stepped by so many milliseconds since the look before.
    pub step: Option<Step>,
}

/// A step of the wall clock, told once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Ahead, and not believed yet.
    Ahead(u64),
    /// Back, and followed.
    Back(u64),
}

impl Steady {
    /// Begins at a moment of both clocks: the wall clock is believed as it is.
    #[must_use]
    pub const fn new(wall_ms: u64, monotonic_ms: u64) -> Self {
        Self { monotonic_ms, believed_ms: wall_ms, ahead_since_ms: None, before_ms: None }
    }

    /// The time to decide by, from both clocks now. `monotonic_ms` does not go back.
    pub fn look(&mut self, wall_ms: u64, monotonic_ms: u64) -> Look {
        let passed_ms = monotonic_ms.saturating_sub(self.monotonic_ms);
        let expected_ms = self.believed_ms.saturating_add(passed_ms);
        self.monotonic_ms = monotonic_ms;
        let ahead_ms = wall_ms.saturating_sub(expected_ms);
        let mut step = None;
        self.before_ms = self.before_ms.map(|before_ms| before_ms.saturating_add(passed_ms));
        let is_home = self.before_ms.is_some_and(|before_ms| wall_ms.abs_diff(before_ms) <= JUMP_MS_MAX);
        self.believed_ms = if ahead_ms <= JUMP_MS_MAX || is_home {
            let back_ms = expected_ms.saturating_sub(wall_ms);
            if is_home {
                self.before_ms = None;
            } else if back_ms > JUMP_MS_MAX {
                step = Some(Step::Back(back_ms));
                self.before_ms.get_or_insert(expected_ms);
            }
            self.ahead_since_ms = None;
            wall_ms
        } else {
            let since_ms = *self.ahead_since_ms.get_or_insert_with(|| {
                step = Some(Step::Ahead(ahead_ms));
                monotonic_ms
            });
            if monotonic_ms.saturating_sub(since_ms) < SETTLE_MS {
                expected_ms
            } else {
                self.ahead_since_ms = None;
                wall_ms
            }
        };
        Look { believed_ms: self.believed_ms, step }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    #[test]
    fn a_jump_that_goes_away_leaves_no_trace() {
        let mut steady = Steady::new(100 * DAY, 0);
        for (n, jump) in (1..).zip([3_600_000, DAY, 365 * DAY]) {
            let now = n * 10_000;
            let first = steady.look(100 * DAY + now + jump, now);
            assert_eq!(first, Look { believed_ms: 100 * DAY + now, step: Some(Step::Ahead(jump)) });
            let told = steady.look(100 * DAY + now + 1000 + jump, now + 1000);
            assert_eq!(told, Look { believed_ms: 100 * DAY + now + 1000, step: None });
            let back = steady.look(100 * DAY + now + 2000, now + 2000);
            assert_eq!(back, Look { believed_ms: 100 * DAY + now + 2000, step: None });
        }
    }

    #[test]
    fn a_jump_that_stays_is_followed_after_an_hour() {
        let mut steady = Steady::new(DAY, 0);
        assert_eq!(steady.look(3 * DAY, 1).believed_ms, DAY + 1);
        assert_eq!(steady.look(3 * DAY + SETTLE_MS - 1, SETTLE_MS).believed_ms, DAY + SETTLE_MS);
        assert_eq!(steady.look(3 * DAY + SETTLE_MS, SETTLE_MS + 1).believed_ms, 3 * DAY + SETTLE_MS);
    }

    #[test]
    fn small_steps_and_steps_back_are_followed_at_once() {
        let mut steady = Steady::new(DAY, 0);
        assert_eq!(steady.look(DAY + JUMP_MS_MAX, 0), Look { believed_ms: DAY + JUMP_MS_MAX, step: None });
        let back = steady.look(1000, 0);
        assert_eq!(back, Look { believed_ms: 1000, step: Some(Step::Back(DAY + JUMP_MS_MAX - 1000)) });
    }

    #[test]
    fn a_clock_that_comes_home_is_believed_at_once() {
        let mut steady = Steady::new(2000 * DAY, 0);
        for (n, back) in (1..).zip([3_600_000, DAY, 365 * DAY]) {
            let now = n * 10_000;
            assert_eq!(steady.look(2000 * DAY + now - back, now).believed_ms, 2000 * DAY + now - back);
            let again = steady.look(2000 * DAY + now + 5000, now + 5000);
            assert_eq!(again, Look { believed_ms: 2000 * DAY + now + 5000, step: None });
        }
        // But not a time that it never showed.
        steady.look(DAY, 40_000);
        assert_eq!(steady.look(3000 * DAY, 41_000).believed_ms, DAY + 1000);
    }

    proptest! {
        #[test]
        fn it_is_never_ahead_of_the_wall_clock(
            steps in proptest::collection::vec((0_u64..40_000_000, 0..1_000_000_000_000_u64), 1..40),
        ) {
            let mut steady = Steady::new(500_000_000_000, 0);
            let mut monotonic_ms = 0;
            for (passed_ms, wall_ms) in steps {
                monotonic_ms += passed_ms;
                let look = steady.look(wall_ms, monotonic_ms);
                prop_assert!(look.believed_ms <= wall_ms);
            }
        }
    }
}
