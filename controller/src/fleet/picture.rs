//! What the fleet reports, as the reconciler sees it: the last observation per (location, content), in memory.
//!
//! **Why beside the database.** The reconciler looks at every entry in every pass; 2,000 hosts with 100 images are
//! 200,000 rows, too many to read once a second. The writer of reports changes both, the database first.
//! **Invariants.** Loaded whole from the database at start; changed only by committed reports. `settled` says that a
//! location's inventory came in this process: only then does a missing entry mean that nothing is there.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LocationId;

use crate::db::entries::{Entry, EntryChanges};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Picture {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<LocationId, HashMap<ContentId, Entry>>,
    settled: HashSet<LocationId>,
}

impl Picture {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces everything by what the database holds.
    pub(super) fn load(&self, entries: Vec<Entry>) {
        let mut inner = self.inner();
        inner.entries.clear();
        for entry in entries {
            inner.entries.entry(entry.location).or_default().insert(entry.content, entry);
        }
    }

    /// Takes committed changes; `whole`: they come from an inventory.
    pub(super) fn apply(&self, location: LocationId, changes: EntryChanges, whole: bool) {
        let mut inner = self.inner();
        let here = inner.entries.entry(location).or_default();
        for (content, _) in changes.gone {
            here.remove(&content);
        }
        here.extend(changes.changed.into_iter().map(|entry| (entry.content, entry)));
        if whole {
            inner.settled.insert(location);
        }
    }

    /// A location left, or its session ended: its next inventory must come first.
    pub(super) fn unsettle(&self, location: LocationId) {
        self.inner().settled.remove(&location);
    }

    /// Forgets a location.
    pub(super) fn forget(&self, location: LocationId) {
        let mut inner = self.inner();
        inner.entries.remove(&location);
        inner.settled.remove(&location);
    }

    /// Whether the location's inventory came since its session began.
    #[must_use]
    pub(super) fn settled(&self, location: LocationId) -> bool {
        self.inner().settled.contains(&location)
    }

    /// The last observation of a content at a location.
    #[must_use]
    pub(super) fn entry(&self, location: LocationId, content: ContentId) -> Option<Entry> {
        self.inner().entries.get(&location)?.get(&content).cloned()
    }

    /// Locations at which the content is verified on disk, in no order.
    #[must_use]
    pub(super) fn active_at(&self, content: ContentId) -> Vec<LocationId> {
        let inner = self.inner();
        let active = |here: &HashMap<ContentId, Entry>| {
            here.get(&content)
                .is_some_and(|entry| entry.status == hearth_protocol::words::EntryStatus::Active)
        };
        inner.entries.iter().filter(|(_, here)| active(here)).map(|(location, _)| *location).collect()
    }
}
