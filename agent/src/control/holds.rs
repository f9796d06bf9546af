//! Holds that follow the plan.
//!
//! **What.** Writes what the plan holds into the store: all of it when a plan is taken or a session begins, single holds
//! when the reconciler finds that they differ.
//! **Why one lock.** The session takes plans while the reconciler still works by the one before. Both write holds, and a
//! hold of an older plan that is written last would let the cache evict what the newer one has just promised to keep.
//!
//! **Invariants.** `a_list_made_from_an_older_plan_is_dropped`: what is written belongs to the plan that is followed at
//! that moment, or to one whose follower waits for the lock.

use std::sync::Arc;

use hearth_protocol::digest::ContentId;
use hearth_protocol::message::control::{Hold, Wish};

use super::plan::{Plan, PlanBook};
use crate::store::{Store, StoreError};

/// Sets every hold of the plan that is followed now, and notes its names. On return holds are durable. Blocks for the disk.
///
/// # Errors
/// [`StoreError::Io`] if they cannot be written; those from before stay.
pub(super) fn follow(store: &Store, book: &PlanBook) -> Result<(), StoreError> {
    let _order = book.holding();
    let plan = book.current();
    let kept = plan.entries.iter().filter(|entry| entry.wish == Wish::Keep);
    let holds: Vec<(ContentId, Hold)> = kept.map(|entry| (entry.content, entry.hold)).collect();
    store.set_holds(&holds)?;
    book.note_names(&plan, |content| store.entry(content).is_some());
    Ok(())
}

/// As [`follow`], on a thread that may block.
pub(super) async fn follow_blocking(store: &Store, book: &Arc<PlanBook>) -> Result<(), StoreError> {
    let (store, book) = (store.clone(), Arc::clone(book));
    tokio::task::spawn_blocking(move || follow(&store, &book)).await.unwrap_or_else(|error| {
        tracing::error!(%error, "setting holds ended in a defect");
        Err(StoreError::Stopped)
    })
}

/// Sets holds that were worked out from `plan`. If another plan is followed meanwhile, nothing is written: the next pass
/// works them out anew. Blocks for the disk.
///
/// # Errors
/// As [`follow`].
pub(super) fn mend(
    store: &Store,
    book: &PlanBook,
    plan: &Arc<Plan>,
    holds: &[(ContentId, Hold)],
) -> Result<(), StoreError> {
    let _order = book.holding();
    if !Arc::ptr_eq(&book.current(), plan) {
        tracing::debug!(generation = plan.generation.0, "holds of an older plan are dropped");
        return Ok(());
    }
    store.set_holds(holds)
}

#[cfg(test)]
mod tests {
    use hearth_protocol::id::{Generation, LocationId};
    use hearth_protocol::message::control::PlanV1;

    use super::*;
    use crate::control::plan::Taken;
    use crate::control::plan::tests::entry;
    use crate::store::StoreConfig;

    const HERE: LocationId = LocationId::from_bytes([1; 16]);

    fn content() -> ContentId {
        ContentId::of(b"held")
    }

    fn take(book: &PlanBook, generation: u64, hold: Hold) -> Arc<Plan> {
        let generation = Generation(generation);
        let part = PlanV1 {
            location: HERE,
            generation,
            part: 0,
            parts: 1,
            stopped: false,
            entries: vec![entry(content(), hold)],
        };
        assert_eq!(book.take(part).unwrap(), Taken::Followed);
        book.current()
    }

    #[test]
    fn a_list_made_from_an_older_plan_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&StoreConfig::new(dir.path().join("cache"), 1 << 30)).unwrap();
        let book = PlanBook::load(dir.path(), HERE);
        follow(&store, &book).unwrap();
        let old = take(&book, 1, Hold::Released);
        let new = take(&book, 2, Hold::Pinned);
        follow(&store, &book).unwrap();
        let held = || store.hold_of(content());
        assert_eq!(held(), Hold::Pinned);
        mend(&store, &book, &old, &[(content(), Hold::Released)]).unwrap();
        assert_eq!(held(), Hold::Pinned);
        mend(&store, &book, &new, &[(content(), Hold::Until(7))]).unwrap();
        assert_eq!(held(), Hold::Until(7));
    }

    #[test]
    fn holds_that_cannot_be_written_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let (store, _) = Store::open(&StoreConfig::new(cache.clone(), 1 << 30)).unwrap();
        let book = PlanBook::load(dir.path(), HERE);
        take(&book, 1, Hold::Pinned);
        // A folder with something in it is never replaced by a rename.
        std::fs::create_dir_all(cache.join("HOLDS/in the way")).unwrap();
        assert!(matches!(follow(&store, &book), Err(StoreError::Io { .. })));
        assert_eq!(store.hold_of(content()), Hold::Released);
        std::fs::remove_dir_all(cache.join("HOLDS")).unwrap();
        follow(&store, &book).unwrap();
        assert_eq!(store.hold_of(content()), Hold::Pinned);
    }
}
