//! The plans as they are now: what sessions send and what the data server allows.
//!
//! **What.** One [`Plan`] per location, replaced whole by the reconciler, read by sessions and data streams.
//! **Why the data server asks here.** An agent gets only what is placed on it; asking the database for each of thousands
//! of requests a second would make it the bottleneck.
//! **Invariants.** A plan is put here before it is sent, so no agent is refused what it was just told to fetch. Without a
//! plan for a location nothing is served to it.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{Generation, LocationId};
use hearth_protocol::message::control::{Hold, PART_ENTRIES_MAX, PlanEntry, PlanV1, ToAgent, Wish};

/// What should be at one location.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// Higher than that of every earlier plan for this location.
    pub(super) generation: Generation,
    /// Transfers are stopped.
    pub(super) stopped: bool,
    /// Wishes, sorted by content.
    pub(super) entries: Vec<PlanEntry>,
}

impl Plan {
    /// A plan that no agent takes, because it is older than every other: it makes an agent answer.
    #[must_use]
    pub(super) const fn empty() -> Self {
        Self { generation: Generation(0), stopped: false, entries: Vec::new() }
    }

    /// Whether the location is to hold `content`.
    #[must_use]
    pub(super) fn places(&self, content: ContentId) -> bool {
        let found = self.entries.binary_search_by_key(&content, |entry| entry.content);
        found.is_ok_and(|at| self.entries[at].wish == Wish::Keep)
    }

    /// Whether the location is to hold `content` against eviction.
    #[must_use]
    pub(super) fn holds(&self, content: ContentId) -> bool {
        let found = self.entries.binary_search_by_key(&content, |entry| entry.content);
        found.is_ok_and(|at| {
            let entry = &self.entries[at];
            entry.wish == Wish::Keep && entry.hold != Hold::Released
        })
    }

    /// Whether the location was told to remove `content`.
    #[must_use]
    pub(super) fn removes(&self, content: ContentId) -> bool {
        let found = self.entries.binary_search_by_key(&content, |entry| entry.content);
        found.is_ok_and(|at| self.entries[at].wish == Wish::Remove)
    }

    /// The plan as messages, each below the frame limit.
    #[must_use]
    pub(super) fn messages(&self, location: LocationId) -> Vec<ToAgent> {
        let parts: Vec<&[PlanEntry]> =
            if self.entries.is_empty() { vec![&[]] } else { self.entries.chunks(PART_ENTRIES_MAX).collect() };
        // A plan has at most `ENTRIES_MAX` entries, so its parts fit a u16.
        let n_parts = u16::try_from(parts.len()).unwrap_or(u16::MAX);
        let message = |(part, entries): (u16, &&[PlanEntry])| {
            ToAgent::Plan(PlanV1 {
                location,
                generation: self.generation,
                part,
                parts: n_parts,
                stopped: self.stopped,
                entries: entries.to_vec(),
            })
        };
        (0..n_parts).zip(&parts).map(message).collect()
    }
}

/// Most entries of one plan: a cache of a million images is not a cache. Keeps the parts countable.
pub(super) const ENTRIES_MAX: usize = 1_000_000;

/// All plans; see the module.
#[derive(Debug, Default)]
pub(super) struct Plans {
    by_location: RwLock<HashMap<LocationId, Arc<Plan>>>,
}

impl Plans {
    /// The plan of a location.
    ///
    /// # Panics
    /// Never: no code panics while it holds the lock.
    #[must_use]
    pub(super) fn of(&self, location: LocationId) -> Option<Arc<Plan>> {
        self.by_location.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(&location).cloned()
    }

    /// Replaces the plan of a location.
    pub(super) fn put(&self, location: LocationId, plan: Arc<Plan>) {
        self.by_location.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(location, plan);
    }

    /// Forgets a location.
    pub(super) fn forget(&self, location: LocationId) {
        self.by_location.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&location);
    }
}

#[cfg(test)]
mod tests {
    use hearth_protocol::frame::Message as _;
    use hearth_protocol::id::ImageId;
    use hearth_protocol::message::control::{Hold, ImageName};
    use hearth_protocol::words::{ContentKind, Priority};

    use super::*;

    fn entry(n: u32, wish: Wish) -> PlanEntry {
        let images = (0..4).map(|i| ImageName { image: ImageId::from_bytes([i; 16]), name: "x".repeat(128) });
        PlanEntry {
            content: ContentId::of(&n.to_le_bytes()),
            kind: ContentKind::Disk,
            raw_bytes: 1,
            data_bytes: 1,
            images: images.collect(),
            wish,
            priority: Priority::Bulk,
            deadline_unix_ms: Some(1),
            hold: Hold::Until(1),
            admitted: true,
            rate_bytes_per_s: Some(1),
        }
    }

    #[test]
    fn a_plan_travels_in_parts_that_fit_a_frame() {
        let mut entries: Vec<PlanEntry> = (0..600).map(|n| entry(n, Wish::Keep)).collect();
        entries.sort_by_key(|entry| entry.content);
        let plan = Plan { generation: Generation(7), stopped: false, entries };
        let location = LocationId::from_bytes([1; 16]);
        let messages = plan.messages(location);
        assert_eq!(messages.len(), 3);
        let mut got = Vec::new();
        for (part, message) in (0..).zip(&messages) {
            assert!(message.to_frame().is_ok());
            let ToAgent::Plan(one) = message else { panic!("not a plan") };
            assert_eq!((one.part, one.parts, one.location), (part, 3, location));
            got.extend(one.entries.clone());
        }
        assert_eq!(got, plan.entries);
        let empty = Plan { entries: vec![], ..plan };
        assert_eq!(empty.messages(location).len(), 1, "an empty plan is said, too");
    }

    #[test]
    fn only_what_is_to_be_kept_is_placed() {
        let mut entries = vec![entry(1, Wish::Keep), entry(2, Wish::Remove)];
        entries.sort_by_key(|entry| entry.content);
        let plan = Plan { generation: Generation(1), stopped: false, entries };
        let of = |n: u32| ContentId::of(&n.to_le_bytes());
        assert_eq!([plan.places(of(1)), plan.places(of(2)), plan.places(of(3))], [true, false, false]);
    }
}
