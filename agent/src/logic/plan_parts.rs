//! Takes plans in parts and refuses stale ones.
//!
//! **What.** [`PlanParts`] knows the generation that is followed, collects the parts of a newer plan, and gives it out when
//! it is whole.
//! **Why parts are kept by generation.** Parts may be doubled, reordered or cut off by the end of a session; a newer plan
//! throws away what was collected of an older one, never the other way round.
//! **Invariants.** `an_older_plan_is_never_taken_whatever_the_order_of_parts`; a plan takes effect only when it is whole.

use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::Generation;
use hearth_protocol::message::control::{PART_ENTRIES_MAX, PlanEntry, PlanV1};

/// Most parts of a plan: 65,536 entries. A host holds a few hundred; this protects our memory.
const PARTS_MAX: u16 = 256;

/// What should be at this location.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Its generation; 0 before the first plan.
    pub generation: Generation,
    /// An operator stopped all transfers.
    pub stopped: bool,
    /// The wishes.
    pub entries: Vec<PlanEntry>,
}

/// Parts of a plan that is not whole yet.
#[derive(Debug, Default)]
pub struct PlanParts {
    collecting: Option<Collecting>,
}

#[derive(Debug)]
struct Collecting {
    generation: Generation,
    parts: Vec<Option<Vec<PlanEntry>>>,
    stopped: bool,
}

impl PlanParts {
    /// Takes one part while the plan `followed` is followed; `Some` when the plan is whole. A plan with the generation
    /// that is followed already is taken as said again.
    ///
    /// # Errors
    /// [`FaultCode::StalePlan`] for a plan that is older than what is followed or collected, [`FaultCode::Protocol`].
    pub fn take(&mut self, followed: Generation, part: PlanV1) -> Result<Option<Plan>, FaultCode> {
        // Generation 0 means "no plan": a controller sends it to hear whether we are alive.
        if part.generation < followed.max(Generation(1)) {
            return Err(FaultCode::StalePlan);
        }
        let wrong = part.parts == 0
            || part.parts > PARTS_MAX
            || part.part >= part.parts
            || part.entries.len() > PART_ENTRIES_MAX;
        if wrong {
            return Err(FaultCode::Protocol);
        }
        let fresh = || Collecting {
            generation: part.generation,
            parts: vec![None; part.parts.into()],
            stopped: part.stopped,
        };
        let newer = self.collecting.as_ref().is_none_or(|collecting| collecting.generation < part.generation);
        if newer {
            self.collecting = Some(fresh());
        }
        let collecting = self.collecting.get_or_insert_with(fresh);
        if collecting.generation != part.generation {
            return Err(FaultCode::StalePlan);
        }
        if collecting.parts.len() != usize::from(part.parts) || collecting.stopped != part.stopped {
            self.collecting = None;
            return Err(FaultCode::Protocol);
        }
        collecting.parts[usize::from(part.part)] = Some(part.entries);
        if collecting.parts.iter().any(Option::is_none) {
            return Ok(None);
        }
        let whole = self.collecting.take().map(|collecting| Plan {
            generation: collecting.generation,
            stopped: collecting.stopped,
            entries: collecting.parts.into_iter().flatten().flatten().collect(),
        });
        Ok(whole)
    }

    /// Forgets parts of a plan that is not whole: a new session sends it again.
    pub fn forget(&mut self) {
        self.collecting = None;
    }
}

#[cfg(test)]
mod tests {
    use hearth_protocol::id::LocationId;
    use proptest::prelude::*;

    use super::*;

    fn part(generation: u64, part: u16, parts: u16) -> PlanV1 {
        let location = LocationId::from_bytes([1; 16]);
        let generation = Generation(generation);
        PlanV1 { location, generation, part, parts, stopped: false, entries: Vec::new() }
    }

    proptest! {
        /// Each generation has `generation % 3 + 1` parts, which come in any order, lost and doubled.
        #[test]
        fn an_older_plan_is_never_taken_whatever_the_order_of_parts(steps in proptest::collection::vec((1_u64..6, 0_u16..3), 0..60)) {
            let (mut parts, mut followed) = (PlanParts::default(), Generation(0));
            for (generation, n) in steps {
                let n_parts = u16::try_from(generation % 3 + 1).unwrap();
                let taken = parts.take(followed, part(generation, n % n_parts, n_parts));
                if generation < followed.0 {
                    prop_assert_eq!(&taken, &Err(FaultCode::StalePlan));
                }
                if let Ok(Some(plan)) = taken {
                    prop_assert!(plan.generation >= followed);
                    followed = plan.generation;
                }
            }
        }
    }
}
