//! Which transfers may begin now.
//!
//! **What.** At most `total` entries over the fleet take bytes from the controller at once, at most `per_location` of
//! one location. What runs keeps its place until it is done, fails or falls silent; free places go to the most urgent
//! priority, then the earliest deadline, then the oldest wish, then to the location with the fewest.
//! **Why.** A prewarm of a thousand hosts would otherwise start a thousand transfers of a thousandth of the source each:
//! all finish last. With a cap the first hosts finish early (and will serve the others, once agents share).
//! **Invariants.** `no_more_than_the_caps_are_admitted`, `who_runs_is_never_stopped`, `an_urgent_wish_goes_first`.

use std::collections::{BTreeMap, BTreeSet};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LocationId;
use hearth_protocol::message::control::Wish;
use hearth_protocol::words::{EntryStatus, LocationState, Priority};

use super::plan::Wanted;

/// How many at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Caps {
    /// Over the fleet; protects the controller's network and disk.
    pub total: usize,
    /// At one location; protects the host's disk.
    pub per_location: usize,
}

/// Default of [`Caps::total`].
pub const TOTAL_DEFAULT: usize = 64;
/// Default of [`Caps::per_location`].
pub const PER_LOCATION_DEFAULT: usize = 2;

impl Default for Caps {
    fn default() -> Self {
        Self { total: TOTAL_DEFAULT, per_location: PER_LOCATION_DEFAULT }
    }
}

/// An entry that still needs bytes and could take them: wanted, not paused, its location online and active.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Candidate {
    /// Where.
    pub location: LocationId,
    /// What.
    pub content: ContentId,
    /// Order of work.
    pub priority: Priority,
    /// Earliest deadline, microseconds since the epoch.
    pub deadline_us: Option<i64>,
    /// When it was first wanted, microseconds since the epoch.
    pub created_us: i64,
    /// It was admitted before, or its agent reports it as being fetched.
    pub running: bool,
    /// Its last try failed and the agent waits: it gets a place only if nobody else wants it.
    pub later: bool,
}

/// A location and what it reports of one content.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Where.
    pub location: LocationId,
    /// State of the location.
    pub state: LocationState,
    /// What.
    pub content: ContentId,
    /// Status as reported, with the time of the next try (microseconds since the epoch) if the last one failed.
    pub seen: Option<(EntryStatus, Option<i64>)>,
}

/// Whether an entry may take bytes now, and how it stands for a place. `None`: it needs none, or must not have any: a
/// draining location is admitted nothing.
#[must_use]
pub fn candidate(here: Standing, wanted: &Wanted, before: &Admitted, now_us: i64) -> Option<Candidate> {
    let Standing { location, state, content, seen } = here;
    if wanted.wish == Wish::Remove || wanted.paused || state != LocationState::Active {
        return None;
    }
    let (running, later) = match seen {
        Some((EntryStatus::Active, _)) => return None,
        Some((EntryStatus::Caching, _)) => (true, false),
        Some((EntryStatus::CacheFail, next_us)) => (false, next_us.is_some_and(|next_us| next_us > now_us)),
        _ => (before.contains(&(location, content)), false),
    };
    Some(Candidate {
        location,
        content,
        priority: wanted.priority,
        deadline_us: wanted.deadline_us,
        created_us: wanted.created_us,
        running,
        later,
    })
}

/// The entries that may take bytes.
pub type Admitted = BTreeSet<(LocationId, ContentId)>;

/// Chooses; see the module. The order of `candidates` does not matter.
#[must_use]
pub fn admit(caps: Caps, candidates: &[Candidate]) -> Admitted {
    let mut admitted = Admitted::new();
    let mut at: BTreeMap<LocationId, usize> = BTreeMap::new();
    for candidate in candidates.iter().filter(|candidate| candidate.running) {
        if admitted.insert((candidate.location, candidate.content)) {
            *at.entry(candidate.location).or_default() += 1;
        }
    }
    let urgency = |c: &Candidate| (c.later, c.priority, c.deadline_us.unwrap_or(i64::MAX), c.created_us);
    let mut waiting: Vec<&Candidate> = candidates.iter().filter(|candidate| !candidate.running).collect();
    waiting.sort_unstable_by_key(|c| (urgency(c), c.location, c.content));
    // Equals are taken round by round, one of each location per round, the emptiest locations first.
    for equals in waiting.chunk_by(|a, b| urgency(a) == urgency(b)) {
        let mut queued: BTreeMap<LocationId, usize> = BTreeMap::new();
        let mut turns: Vec<(usize, &Candidate)> = Vec::with_capacity(equals.len());
        for candidate in equals {
            let before = queued.entry(candidate.location).or_default();
            turns.push((*before + at.get(&candidate.location).copied().unwrap_or(0), candidate));
            *before += 1;
        }
        turns.sort_by_key(|(turn, _)| *turn);
        for (_, candidate) in turns {
            if admitted.len() >= caps.total {
                return admitted;
            }
            let here = at.entry(candidate.location).or_default();
            if *here < caps.per_location && admitted.insert((candidate.location, candidate.content)) {
                *here += 1;
            }
        }
    }
    admitted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(location: u8, content: u8, urgent: u8, running: bool) -> Candidate {
        Candidate {
            location: LocationId::from_bytes([location; 16]),
            content: ContentId::from_bytes([content; 32]),
            priority: Priority::ALL[usize::from(urgent % 4)],
            deadline_us: None,
            created_us: 0,
            running,
            later: false,
        }
    }

    #[test]
    fn equals_are_spread_over_locations() {
        let candidates: Vec<Candidate> = (0..3)
            .flat_map(|location| (0..3).map(move |content| candidate(location, content, 0, false)))
            .collect();
        let admitted = admit(Caps { total: 3, per_location: 2 }, &candidates);
        let locations: BTreeSet<LocationId> = admitted.iter().map(|(location, _)| *location).collect();
        assert_eq!(locations.len(), 3);
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0_u8..6, 0_u8..5, 0_u8..4, prop::bool::weighted(0.2));
        proptest::collection::btree_map((0_u8..6, 0_u8..5), one, 0..30).prop_map(|map| {
            map.into_iter()
                .map(|((l, c), (_, _, urgent, running))| candidate(l, c, urgent, running))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn no_more_than_the_caps_are_admitted(candidates in candidates(), total in 0_usize..12, per_location in 0_usize..4) {
            let admitted = admit(Caps { total, per_location }, &candidates);
            let running: Vec<_> = candidates.iter().filter(|c| c.running).collect();
            prop_assert!(admitted.len() <= total.max(running.len()));
            for location in 0..6 {
                let id = LocationId::from_bytes([location; 16]);
                let here = admitted.iter().filter(|(at, _)| *at == id).count();
                let ran = running.iter().filter(|c| c.location == id).count();
                prop_assert!(here <= per_location.max(ran));
            }
        }

        #[test]
        fn who_runs_is_never_stopped(candidates in candidates(), total in 0_usize..12) {
            let admitted = admit(Caps { total, per_location: 2 }, &candidates);
            for c in candidates.iter().filter(|c| c.running) {
                prop_assert!(admitted.contains(&(c.location, c.content)));
            }
        }

        /// Slow version: nobody who waits could be admitted instead of somebody less urgent, and no place stays free.
        #[test]
        fn an_urgent_wish_goes_first(candidates in candidates(), total in 0_usize..12, per_location in 1_usize..4) {
            let admitted = admit(Caps { total, per_location }, &candidates);
            let chosen = |c: &Candidate| admitted.contains(&(c.location, c.content));
            for left in candidates.iter().filter(|c| !chosen(c)) {
                let here = candidates.iter().filter(|c| c.location == left.location && chosen(c)).collect::<Vec<_>>();
                let location_full = here.len() >= per_location;
                prop_assert!(location_full || admitted.len() >= total);
                let rivals: Vec<&Candidate> =
                    if location_full { here } else { candidates.iter().filter(|c| chosen(c)).collect() };
                prop_assert!(rivals.iter().all(|c| c.running || c.priority <= left.priority));
            }
        }

        #[test]
        fn the_choice_does_not_depend_on_order(candidates in candidates(), total in 0_usize..12) {
            let mut reversed = candidates.clone();
            reversed.reverse();
            let caps = Caps { total, per_location: 2 };
            prop_assert_eq!(admit(caps, &candidates), admit(caps, &reversed));
        }
    }
}
