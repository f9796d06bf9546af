//! What one location should do about one content: all intents for it made into one wish.
//!
//! **What.** [`merge`] folds the intents of every image that has the content. One keep outweighs any remove; the most
//! urgent priority, the earliest deadline, the strongest hold and the highest rate win; no cap outweighs every cap.
//! **Why.** Two images may be the same bytes, and a job, a policy and an operator may all want one image: the agent has
//! one file and must be told one thing.
//! **Invariants.** `merging_does_not_depend_on_order`, `a_remove_wins_only_alone`.

use hearth_protocol::id::{Generation, ImageId};
use hearth_protocol::message::control::Wish;
use hearth_protocol::words::Priority;

use super::hold::IntentHold;

/// One intent for the (location, content) that is planned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IntentView {
    /// The image it names.
    pub image: ImageId,
    /// Keep or remove.
    pub wish: Wish,
    /// Order of work.
    pub priority: Priority,
    /// When it should be done, microseconds since the epoch.
    pub deadline_us: Option<i64>,
    /// How long it holds the copy.
    pub hold: IntentHold,
    /// Cap on the transfer, bytes per second; `None` is uncapped.
    pub rate_bytes_per_s: Option<u64>,
    /// Its job is paused or its image not active: this intent starts no transfer.
    pub paused: bool,
    /// When it was made; older ones go first among equals.
    pub created_us: i64,
}

/// The one thing a location is told about a content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wanted {
    /// Keep or remove.
    pub wish: Wish,
    /// Images that want it, sorted.
    pub images: Vec<ImageId>,
    /// Order of work.
    pub priority: Priority,
    /// Earliest deadline.
    pub deadline_us: Option<i64>,
    /// Strongest hold; `None` when it is to be removed.
    pub hold: Option<IntentHold>,
    /// Highest cap; `None` is uncapped.
    pub rate_bytes_per_s: Option<u64>,
    /// Every intent is paused: no transfer begins.
    pub paused: bool,
    /// Age of the oldest intent.
    pub created_us: i64,
}

/// Folds the intents of one content at one location; `None` if there are none.
#[must_use]
pub fn merge(intents: &[IntentView]) -> Option<Wanted> {
    let keeps = intents.iter().any(|intent| intent.wish == Wish::Keep);
    let wish = if keeps { Wish::Keep } else { Wish::Remove };
    let counted = || intents.iter().filter(|intent| intent.wish == wish);
    let first = counted().next()?;
    let mut wanted = Wanted {
        wish,
        images: Vec::new(),
        priority: first.priority,
        deadline_us: None,
        hold: None,
        rate_bytes_per_s: Some(0),
        paused: true,
        created_us: first.created_us,
    };
    for intent in counted() {
        wanted.images.push(intent.image);
        wanted.priority = wanted.priority.min(intent.priority);
        wanted.deadline_us = earliest(wanted.deadline_us, intent.deadline_us);
        wanted.hold = wanted.hold.max((wish == Wish::Keep).then_some(intent.hold));
        wanted.rate_bytes_per_s = highest(wanted.rate_bytes_per_s, intent.rate_bytes_per_s);
        wanted.paused &= intent.paused;
        wanted.created_us = wanted.created_us.min(intent.created_us);
    }
    wanted.images.sort_unstable();
    wanted.images.dedup();
    Some(wanted)
}

/// What becomes of a location's plan.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Publish {
    /// What it was given is still right.
    Keep,
    /// Nothing is said to an agent that never heard of a plan and has nothing to do.
    Silent,
    /// It is given a plan of this generation, which must be durable before it is sent.
    New(Generation),
}

/// Whether a location needs a new plan. `given`: the generation it was given by this process, and whether that plan is
/// still right. `nothing`: it is to hold nothing and to do nothing. `followed`: what its agent follows; `known`: the
/// highest generation that was ever recorded for it.
#[must_use]
pub fn publish(
    given: Option<(Generation, bool)>,
    nothing: bool,
    followed: Generation,
    known: Generation,
) -> Publish {
    match given {
        // Where the agent follows a newer plan than we know, an older database was restored.
        Some((generation, true)) if followed <= generation => Publish::Keep,
        None if nothing && followed == Generation(0) => Publish::Silent,
        _ => Publish::New(Generation(known.max(followed).0.saturating_add(1))),
    }
}

/// Whether what was to be removed is gone for sure: the agent's inventory came, does not have it, and it follows the plan
/// that told it so.
#[must_use]
pub fn removed(wish: Wish, present: bool, settled: bool, told: bool) -> bool {
    wish == Wish::Remove && !present && settled && told
}

fn earliest(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}

/// `None` is uncapped, so it outweighs every number.
fn highest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    Some(a?.max(b?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn intent() -> impl Strategy<Value = IntentView> {
        let hold = prop_oneof![(0_i64..9).prop_map(IntentHold::Until), Just(IntentHold::Open)];
        let wish = prop_oneof![Just(Wish::Keep), Just(Wish::Remove)];
        let facts = (0_u8..4, 0_usize..4, proptest::option::of(0_i64..9), proptest::option::of(1_u64..9));
        (facts, hold, wish, any::<bool>(), 0_i64..9).prop_map(
            |((image, priority, deadline_us, rate_bytes_per_s), hold, wish, paused, created_us)| IntentView {
                image: ImageId::from_bytes([image; 16]),
                wish,
                priority: Priority::ALL[priority],
                deadline_us,
                hold,
                rate_bytes_per_s,
                paused,
                created_us,
            },
        )
    }

    #[test]
    fn a_new_plan_is_newer_than_all_that_anybody_knows() {
        let g = Generation;
        assert_eq!(publish(Some((g(4), true)), false, g(4), g(4)), Publish::Keep);
        assert_eq!(publish(Some((g(4), true)), false, g(9), g(4)), Publish::New(g(10)));
        assert_eq!(publish(Some((g(4), false)), false, g(3), g(4)), Publish::New(g(5)));
        assert_eq!(publish(None, true, g(0), g(7)), Publish::Silent);
        assert_eq!(publish(None, true, g(2), g(7)), Publish::New(g(8)));
    }

    proptest! {
        #[test]
        fn merging_does_not_depend_on_order(intents in proptest::collection::vec(intent(), 0..7), seed in any::<u64>()) {
            let mut shuffled = intents.clone();
            let len = shuffled.len();
            for i in 1..len {
                shuffled.swap(i, usize::try_from(seed.rotate_left(u32::try_from(i).unwrap()) % (i as u64 + 1)).unwrap());
            }
            prop_assert_eq!(merge(&intents), merge(&shuffled));
        }

        #[test]
        fn a_remove_wins_only_alone(intents in proptest::collection::vec(intent(), 0..7)) {
            let Some(wanted) = merge(&intents) else {
                prop_assert!(intents.is_empty());
                return Ok(());
            };
            let kept: Vec<_> = intents.iter().filter(|intent| intent.wish == Wish::Keep).collect();
            prop_assert_eq!(wanted.wish == Wish::Remove, kept.is_empty());
            prop_assert_eq!(wanted.hold, kept.iter().map(|intent| intent.hold).max());
            if let Some(urgent) = kept.iter().map(|intent| intent.priority).min() {
                prop_assert_eq!(wanted.priority, urgent);
                prop_assert_eq!(wanted.deadline_us, kept.iter().filter_map(|intent| intent.deadline_us).min());
                let uncapped = kept.iter().any(|intent| intent.rate_bytes_per_s.is_none());
                let cap = kept.iter().filter_map(|intent| intent.rate_bytes_per_s).max().filter(|_| !uncapped);
                prop_assert_eq!(wanted.rate_bytes_per_s, cap);
                prop_assert_eq!(wanted.paused, kept.iter().all(|intent| intent.paused));
            }
        }
    }
}
