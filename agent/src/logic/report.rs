//! What to tell the controller about the cache since it was last told.
//!
//! **What.** Compares the entries as they are with what was reported and returns the changes. A change that is progress
//! alone is held back until a second has passed.
//! **Why a comparison and not events.** The session is level-triggered: after a loss the whole inventory goes again, and
//! between two looks any number of events is one change.
//! **Invariants.**
//! 1. `a_change_of_state_is_reported_at_once_and_once`.
//! 2. `progress_alone_waits_for_a_second`.
//! 3. `an_entry_that_vanished_is_reported_gone`.

use std::collections::BTreeMap;

use hearth_protocol::digest::ContentId;
use hearth_protocol::message::control::{ObservedEntry, ObservedState};
use hearth_protocol::words::GoneReason;

/// Time between two reports of mere progress of one entry, ms.
pub const PROGRESS_MS: u64 = 1000;

/// What the controller was told last in this session.
#[derive(Debug, Default)]
pub struct Reported {
    entries: BTreeMap<ContentId, (ObservedEntry, u64)>,
    holds_back: bool,
}

impl Reported {
    /// Begins a session: `entries` is the inventory that was sent.
    #[must_use]
    pub fn inventory(entries: &[ObservedEntry], now_ms: u64) -> Self {
        Self {
            entries: entries.iter().map(|entry| (entry.content, (entry.clone(), now_ms))).collect(),
            holds_back: false,
        }
    }

    /// Whether the last comparison held progress back that is still untold.
    #[must_use]
    pub const fn holds_back(&self) -> bool {
        self.holds_back
    }

    /// The entries that changed, and remembers them as told. `gone` gives the reason for an entry that vanished.
    pub fn changes(
        &mut self,
        entries: &[ObservedEntry],
        now_ms: u64,
        gone: impl Fn(ContentId) -> GoneReason,
    ) -> Vec<ObservedEntry> {
        let mut changes = Vec::new();
        self.holds_back = false;
        for entry in entries {
            let due = match self.entries.get(&entry.content) {
                None => true,
                Some((told, _)) if told == entry => false,
                Some((told, at_ms)) => {
                    let due = !progress_alone(told, entry) || now_ms >= at_ms + PROGRESS_MS;
                    self.holds_back |= !due;
                    due
                }
            };
            if due {
                self.entries.insert(entry.content, (entry.clone(), now_ms));
                changes.push(entry.clone());
            }
        }
        let there = |content: &ContentId| entries.iter().any(|entry| entry.content == *content);
        let vanished: Vec<ContentId> =
            self.entries.keys().filter(|content| !there(content)).copied().collect();
        for content in vanished {
            if let Some((told, _)) = self.entries.remove(&content) {
                let state = ObservedState::Gone(gone(content));
                changes.push(ObservedEntry { state, allocated_bytes: 0, leases: 0, ..told });
            }
        }
        changes
    }
}

fn progress_alone(told: &ObservedEntry, now: &ObservedEntry) -> bool {
    told.state == now.state && told.leases == now.leases
}

#[cfg(test)]
mod tests {
    use hearth_protocol::words::EntryStatus;

    use super::*;

    fn entry(n: u8, status: EntryStatus, done_bytes: u64) -> ObservedEntry {
        ObservedEntry {
            content: ContentId::of(&[n]),
            state: ObservedState::Present(status),
            done_bytes,
            data_bytes: 100,
            moved_bytes: 0,
            reused_bytes: 0,
            allocated_bytes: 0,
            leases: 0,
            last_used_unix_ms: 0,
        }
    }

    fn lost(_: ContentId) -> GoneReason {
        GoneReason::Lost
    }

    #[test]
    fn a_change_of_state_is_reported_at_once_and_once() {
        let mut reported = Reported::inventory(&[entry(1, EntryStatus::Caching, 0)], 0);
        let active = [entry(1, EntryStatus::Active, 100)];
        assert_eq!(reported.changes(&active, 1, lost), active);
        assert_eq!(reported.changes(&active, 10_000, lost), []);
        let new = [active[0].clone(), entry(2, EntryStatus::Queued, 0)];
        assert_eq!(reported.changes(&new, 10_001, lost), [new[1].clone()]);
    }

    #[test]
    fn progress_alone_waits_for_a_second() {
        let mut reported = Reported::inventory(&[entry(1, EntryStatus::Caching, 0)], 0);
        let later = [entry(1, EntryStatus::Caching, 50)];
        assert_eq!((reported.changes(&later, 999, lost), reported.holds_back()), (vec![], true));
        assert_eq!(reported.changes(&later, 1000, lost), later);
        assert!(!reported.holds_back());
    }

    #[test]
    fn an_entry_that_vanished_is_reported_gone() {
        let mut reported = Reported::inventory(&[entry(1, EntryStatus::Active, 100)], 0);
        let changes = reported.changes(&[], 1, |_| GoneReason::Evicted);
        assert_eq!(changes.len(), 1);
        assert_eq!(changes[0].state, ObservedState::Gone(GoneReason::Evicted));
        assert_eq!(reported.changes(&[], 2, lost), []);
    }
}
