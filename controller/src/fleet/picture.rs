//! What the fleet reports, as the reconciler sees it: the last observation per (location, content), in memory.
//!
//! **Why beside the database.** The reconciler looks at every entry in every pass; 2,000 hosts with 100 images are
//! 200,000 rows, too many to read once a second. The writer of reports changes both, the database first.
//! **Invariants.** Loaded whole from the database at start; changed only by committed reports. `settled` says that a
//! location's inventory came in this process: only then does a missing entry mean that nothing is there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::LocationId;
use hearth_protocol::words::EntryStatus;

use crate::db::entries::{Entry, EntryChanges};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Picture {
    inner: Mutex<Inner>,
}

/// What the reconciler asks of an entry: a million of them are held, so no more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    /// State, in the agent's words.
    pub(super) status: EntryStatus,
    /// Fault of the last try.
    pub(super) fault: Option<FaultCode>,
    /// Why the last try failed; nearly always empty, and then without memory of its own.
    pub(super) reason: Box<str>,
    /// When it is tried again, microseconds since the epoch.
    pub(super) next_try_us: Option<i64>,
    /// When the agent said so.
    pub(super) reported_us: i64,
}

impl From<Entry> for Seen {
    fn from(entry: Entry) -> Self {
        let Entry { status, fault, reason, next_try_us, reported_us, .. } = entry;
        Self { status, fault, reason: reason.into(), next_try_us, reported_us }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Trees: they are half as large as tables of hashes.
    entries: HashMap<LocationId, BTreeMap<ContentId, Seen>>,
    settled: HashSet<LocationId>,
}

impl Picture {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an entry of the database, at start.
    pub(super) fn put(&self, entry: Entry) {
        self.inner().entries.entry(entry.location).or_default().insert(entry.content, entry.into());
    }

    /// Takes committed changes; `whole`: they come from an inventory.
    pub(super) fn apply(&self, location: LocationId, changes: EntryChanges, whole: bool) {
        let mut inner = self.inner();
        let here = inner.entries.entry(location).or_default();
        for (content, _) in changes.gone {
            here.remove(&content);
        }
        here.extend(changes.changed.into_iter().map(|entry| (entry.content, entry.into())));
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
    pub(super) fn entry(&self, location: LocationId, content: ContentId) -> Option<Seen> {
        self.inner().entries.get(&location)?.get(&content).cloned()
    }

    /// Locations at which the content is verified on disk, in no order.
    #[must_use]
    pub(super) fn active_at(&self, content: ContentId) -> Vec<LocationId> {
        let inner = self.inner();
        let active = |here: &BTreeMap<ContentId, Seen>| {
            here.get(&content).is_some_and(|entry| entry.status == EntryStatus::Active)
        };
        inner.entries.iter().filter(|(_, here)| active(here)).map(|(location, _)| *location).collect()
    }
}
