//! How long a copy is safe from eviction.
//!
//! **What.** An intent holds `pinned` or `until T`; the hold of a copy is the strongest of all its intents' holds.
//! **Why not a plain maximum of times.** "Pinned" has no time: a far date would end one day.
//! **Invariants.** `the_strongest_hold_does_not_depend_on_order`; a hold ends at its time, not after it.

use hearth_protocol::api::cache::Keep;
use hearth_protocol::message::control::Hold;

/// The hold of one intent. Ordered: a later variant, or a later time, is stronger.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum IntentHold {
    /// Until this time, microseconds since the epoch.
    Until(i64),
    /// Until somebody ends it: pinned by an operator, or a prewarm job that still runs.
    Open,
}

impl IntentHold {
    /// Whether the hold has ended.
    #[must_use]
    pub const fn ended(self, now_us: i64) -> bool {
        matches!(self, Self::Until(until_us) if until_us <= now_us)
    }

    /// The hold as it goes to the agent.
    #[must_use]
    pub fn on_wire(self) -> Hold {
        match self {
            Self::Until(us) => Hold::Until(u64::try_from(us / 1000).unwrap_or(0)),
            Self::Open => Hold::Pinned,
        }
    }
}

/// The stronger of two holds; `None` is no hold.
#[must_use]
pub fn strongest(a: Option<IntentHold>, b: Option<IntentHold>) -> Option<IntentHold> {
    a.max(b)
}

/// The hold that a prewarm's copies keep when the job ends at `end_us`.
#[must_use]
pub fn after_job(keep: &Keep, end_us: i64) -> IntentHold {
    match keep {
        Keep::Pinned => IntentHold::Open,
        Keep::Seconds(seconds) => {
            let keep_us = i64::try_from(*seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
            IntentHold::Until(end_us.saturating_add(keep_us))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hold_ends_at_its_time() {
        assert!(!IntentHold::Until(10).ended(9));
        assert!(IntentHold::Until(10).ended(10));
        assert!(!IntentHold::Open.ended(i64::MAX));
    }

    #[test]
    fn a_pin_outlives_every_date() {
        assert_eq!(
            strongest(Some(IntentHold::Until(i64::MAX)), Some(IntentHold::Open)),
            Some(IntentHold::Open)
        );
        assert_eq!(strongest(None, Some(IntentHold::Until(1))), Some(IntentHold::Until(1)));
    }

    #[test]
    fn an_endless_keep_does_not_overflow() {
        assert_eq!(after_job(&Keep::Seconds(u64::MAX), 7), IntentHold::Until(i64::MAX));
        assert_eq!(after_job(&Keep::Seconds(2), 7), IntentHold::Until(2_000_007));
        assert_eq!(after_job(&Keep::Pinned, 7), IntentHold::Open);
    }

    proptest! {
        #[test]
        fn the_strongest_hold_does_not_depend_on_order(
            mut holds in proptest::collection::vec(prop_oneof![Just(None), Just(Some(IntentHold::Open)), any::<i64>().prop_map(|us| Some(IntentHold::Until(us)))], 0..6),
        ) {
            let fold = |holds: &[Option<IntentHold>]| holds.iter().copied().fold(None, strongest);
            let forward = fold(&holds);
            holds.reverse();
            prop_assert_eq!(forward, fold(&holds));
        }
    }
}
