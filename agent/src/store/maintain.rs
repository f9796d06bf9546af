//! What the store does on its own, in the background.
//!
//! **What.** Hashes objects that a crash or doubt left unverified, frees trash after its grace time, keeps budget and floor,
//! scrubs the copy that was hashed longest ago, writes use times to the index, compares everything with `objects/` once
//! an hour, and probes a failing disk.
//! **Why one loop.** All of this is slow disk work that nobody waits for; one after the other it never takes more than two
//! threads from the host's guests.
//! **Invariants.** Stopping it at any moment loses nothing. At most one object is hashed at a time.

use std::time::Duration;

use hearth_protocol::digest::ContentId;
use tokio_util::sync::CancellationToken;

use super::error::StoreError;
use super::index::Row;
use super::layout::write_durably;
use super::locked;
use super::state::{Entry, Store};
use crate::clock;
use crate::logic::entry::Phase;

/// Time between two passes when there is nothing to hash.
pub const MAINTAIN_EVERY: Duration = Duration::from_secs(10);
/// Use times are written this often at most: they only order evictions.
const USE_TIMES_EVERY_MS: u64 = 60_000;

/// Runs passes until `stop` is cancelled. A pass that runs is finished first; hashing a large object can take a minute, and
/// the process may exit without waiting for it.
pub async fn run(store: Store, stop: CancellationToken) {
    let mut last_use_times_ms = clock::unix_ms();
    // Opening the cache has just compared.
    let mut compared = clock::monotonic();
    let compare_every = store.inner.config.compare_every;
    loop {
        let write_use_times = clock::unix_ms().saturating_sub(last_use_times_ms) >= USE_TIMES_EVERY_MS;
        if write_use_times {
            last_use_times_ms = clock::unix_ms();
        }
        let compare = clock::monotonic().duration_since(compared) >= compare_every;
        if compare {
            compared = clock::monotonic();
        }
        let pass = store.clone();
        let pass = tokio::task::spawn_blocking(move || pass.pass(write_use_times, compare));
        let more = tokio::select! {
            () = stop.cancelled() => return,
            done = pass => match done {
                Ok(Ok(more)) => more,
                Ok(Err(error)) => {
                    tracing::warn!(error = error.chain(), "maintenance of the cache failed; tried again");
                    false
                }
                Err(error) => {
                    tracing::error!(%error, "maintenance of the cache panicked; tried again");
                    false
                }
            },
        };
        let wait = if more { Duration::ZERO } else { MAINTAIN_EVERY.min(compare_every) };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Store {
    /// One pass. Returns whether there is more to hash at once.
    fn pass(&self, write_use_times: bool, compare: bool) -> Result<bool, StoreError> {
        // Looked at in every pass, so that a jump is seen when it happens and not when room is next needed.
        let now_unix_ms = clock::steady_unix_ms();
        tracing::trace!(now_unix_ms, "a pass over the cache");
        if compare && let Err(error) = self.compare() {
            tracing::warn!(error = error.chain(), "the cache cannot be compared with its files; tried again");
        }
        self.purge_trash(self.inner.config.grace);
        if let Err(error) = self.purge_quarantine(self.inner.config.staging_max_age) {
            tracing::warn!(error = error.chain(), "quarantine cannot be emptied; tried again");
        }
        self.probe_disk();
        let over = self.enforce()?;
        if over > 0 {
            tracing::warn!(
                bytes = over,
                "the cache is over its limits and everything in it is held or in use"
            );
        }
        if write_use_times {
            let rows: Vec<Row> = locked(&self.inner.state)
                .entries
                .values()
                .filter(|e| e.phase.is_active())
                .filter_map(Entry::row)
                .collect();
            self.index_active(&rows)?;
        }
        for content in self.damaged_objects() {
            self.quarantine(content)?;
        }
        let Some(content) = self.next_check() else { return Ok(false) };
        let outcome = self.scrub_one(content)?;
        tracing::info!(%content, ?outcome, "object was hashed from disk");
        Ok(self.next_check().is_some())
    }

    /// The object that should be hashed next: unverified ones, then suspects, then the one hashed longest ago if it is due.
    #[must_use]
    pub fn next_check(&self) -> Option<ContentId> {
        let due_before = clock::unix_ms()
            .saturating_sub(u64::try_from(self.inner.config.scrub_every.as_millis()).unwrap_or(u64::MAX));
        let state = locked(&self.inner.state);
        let urgency = |entry: &Entry| match entry.phase {
            Phase::Unverified => Some((0, entry.verified_unix_ms)),
            Phase::Active if entry.suspect => Some((1, entry.verified_unix_ms)),
            Phase::Active if entry.verified_unix_ms < due_before => Some((2, entry.verified_unix_ms)),
            _ => None,
        };
        let ranked = state.entries.iter().filter(|(_, entry)| entry.uses == 0);
        let ranked = ranked.filter_map(|(content, entry)| urgency(entry).map(|rank| (rank, *content)));
        ranked.min().map(|(_, content)| content)
    }

    /// Damaged objects; those whose consumers are gone can be moved away.
    fn damaged_objects(&self) -> Vec<ContentId> {
        let state = locked(&self.inner.state);
        let damaged = state.entries.iter().filter(|(_, entry)| matches!(entry.phase, Phase::Damaged { .. }));
        damaged.map(|(content, _)| *content).collect()
    }

    /// While the cache is read-only, tries whether the disk takes a synced write again.
    fn probe_disk(&self) {
        if locked(&self.inner.state).degraded.is_empty() {
            return;
        }
        let path = self.inner.layout.trash_dir().join("probe");
        match write_durably(&path, b"probe") {
            Ok(()) => self.note_disk_success(),
            Err(error) => tracing::warn!(error = error.chain(), "the disk still fails"),
        }
    }
}
