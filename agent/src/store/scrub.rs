//! Checking objects again: after a crash, on doubt, on request and from time to time.
//!
//! **What.** `scrub_one` hashes an object from disk. A good one is (or stays) active; a damaged one goes to quarantine and is
//! needed again if something holds it, else it is gone.
//! **Why quarantine.** Its good chunks are still worth a fetch each: the next transfer of the same content takes them from
//! there, hashed one by one. Space pressure deletes it first.
//! **Invariants.** A damaged object is not moved away from a consumer that uses it; it is only never handed out again.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use hearth_protocol::digest::ContentId;
use hearth_protocol::words::GoneReason;

use super::disk::DiskFile;
use super::error::StoreError;
use super::evict::Destination;
use super::index::Stamp;
use super::layout::OBJECT_MODE;
use super::locked;
use super::manifest_file::ManifestFile;
use super::reader::open_read_only;
use super::reuse;
use super::state::{Entry, Store};
use super::sweep::{ProgressStep, Sweep, no_progress, sweep};
use crate::clock;
use crate::logic::entry::{Phase, Step};

/// Result of a check.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scrubbed {
    /// Every chunk hashed right; the entry is active.
    Good,
    /// It was damaged; the entry is queued again (held) or gone.
    Quarantined,
    /// It is damaged and still used, so it stays in place and is reported as failed.
    DamagedInUse,
}

impl Store {
    /// Marks an object for a check before it is handed out again: what `verify` asks for.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or [`StoreError::Step`] if it has no object at rest.
    pub fn recheck(&self, content: ContentId) -> Result<(), StoreError> {
        locked(&self.inner.state).entry(content)?.step(Step::Recheck)?;
        self.bump();
        Ok(())
    }

    /// Hashes an object from disk and acts on the result. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] or [`StoreError::State`] if there is no object at rest, [`StoreError::Io`].
    pub fn scrub_one(&self, content: ContentId) -> Result<Scrubbed, StoreError> {
        let at_rest = |phase: &Phase| {
            matches!(
                phase,
                Phase::Active | Phase::Unverified | Phase::Damaged { .. } | Phase::DeleteFailed { .. }
            )
        };
        let (using, kind) = self.use_entry(content, |entry| at_rest(&entry.phase))?;
        let path = self.inner.layout.object(content, kind);
        let outcome = self.hash_object(content, &path);
        drop(using);
        match outcome {
            Ok(stamp) => self.good(content, stamp),
            Err(
                error @ (StoreError::Damaged { .. } | StoreError::Manifest { .. } | StoreError::Io { .. }),
            ) => self.damaged(content, &error),
            Err(error) => Err(error),
        }
    }

    fn hash_object(&self, content: ContentId, path: &std::path::Path) -> Result<Stamp, StoreError> {
        let file = open_read_only(path)?;
        let meta = file.metadata().map_err(StoreError::io("look at", path))?;
        let manifest = ManifestFile::open(&self.inner.layout.manifest(content), content)?;
        if meta.len() != manifest.root().raw_bytes() {
            return Err(StoreError::Damaged { content, chunks: 0, first: 0 });
        }
        // Pages join? Their digests alone do not say so.
        manifest.walk(|_| Ok(()))?;
        let swept = sweep(&Sweep {
            disk: &DiskFile::new(&file, path),
            path,
            manifest: &manifest,
            step: ProgressStep::Verify,
            known: None,
            skip_holes: false,
            progress: &no_progress,
        })?;
        if let Some((chunks, first)) = swept.bad() {
            return Err(StoreError::Damaged { content, chunks, first });
        }
        if swept.stray_bytes {
            return Err(StoreError::Damaged { content, chunks: 0, first: 0 });
        }
        if meta.mode() & 0o7777 != OBJECT_MODE {
            file.set_permissions(Permissions::from_mode(OBJECT_MODE))
                .map_err(StoreError::io("set the mode of", path))?;
        }
        // After a crash the bytes may be right in memory only.
        file.sync_all().map_err(StoreError::io("sync", path))?;
        let stamp = Stamp::of(&meta);
        // What was hashed must still be what the path leads to.
        let there = fs::symlink_metadata(path).map_err(StoreError::io("look at", path))?;
        if Stamp::of(&there) != stamp {
            return Err(StoreError::Damaged { content, chunks: 0, first: 0 });
        }
        let chunks = self.inner.layout.chunks(content);
        if !chunks.exists() {
            reuse::build(&manifest, &chunks)?;
        }
        Ok(stamp)
    }

    fn good(&self, content: ContentId, stamp: Stamp) -> Result<Scrubbed, StoreError> {
        let row = {
            let mut state = locked(&self.inner.state);
            let entry = state.entry(content)?;
            entry.stamp = Some(stamp);
            entry.suspect = false;
            entry.verified_unix_ms = clock::unix_ms();
            entry.row()
        };
        // The row first: what is shown as active is indexed.
        if let Some(row) = row
            && let Err(error) = self.index_rows(&[row])
        {
            tracing::warn!(%content, error = error.chain(), "object has no index row");
        }
        let mut state = locked(&self.inner.state);
        let entry = state.entry(content)?;
        if !matches!(entry.phase, Phase::DeleteFailed { .. } | Phase::Deleting) {
            entry.step(Step::Verified)?;
        }
        drop(state);
        self.bump();
        Ok(Scrubbed::Good)
    }

    fn damaged(&self, content: ContentId, error: &StoreError) -> Result<Scrubbed, StoreError> {
        let text = error.chain();
        tracing::error!(%content, error = text, "cached copy is damaged");
        let mut state = locked(&self.inner.state);
        let entry = state.entry(content)?;
        entry.stamp = None;
        entry.suspect = false;
        entry.step(Step::Damage { text })?;
        drop(state);
        self.bump();
        if let Err(error) = self.index_remove(content) {
            tracing::warn!(%content, error = error.chain(), "index row of a damaged copy stays");
        }
        self.quarantine(content)
    }

    /// Moves a damaged object out of the way, unless somebody uses it.
    pub(super) fn quarantine(&self, content: ContentId) -> Result<Scrubbed, StoreError> {
        let (text, kind, held) = {
            let mut state = locked(&self.inner.state);
            // A lease protects bytes; where there are none left, its holder needs them fetched again.
            let leased = state.n_leases(content) > 0 || !state.unreadable_leases.is_empty();
            let held = state.hold(content).held_by(clock::steady_unix_ms()).is_some();
            let entry = state.entry(content)?;
            let Phase::Damaged { text } = entry.phase.clone() else {
                return Err(StoreError::State { content, state: entry.phase.name(), wanted: "damaged" });
            };
            let path = self.inner.layout.object(content, entry.spec.kind);
            if entry.uses > 0 || leased && fs::symlink_metadata(path).is_ok() {
                return Ok(Scrubbed::DamagedInUse);
            }
            entry.step(Step::Remove)?;
            (text, entry.spec.kind, held)
        };
        // Its pages prove themselves, so the next transfer need not fetch those that are whole.
        let manifest = fs::read(self.inner.layout.manifest(content)).ok().filter(|_| held);
        if let Err(refused) = self.take_away(content, kind, Destination::Quarantine) {
            tracing::warn!(%content, error = refused.chain(), "damaged copy stays in place");
            let mut state = locked(&self.inner.state);
            let entry = state.entry(content)?;
            entry.step(Step::RemoveRefused { text: text.clone(), was_active: false })?;
            entry.step(Step::Damage { text })?;
            drop(state);
            self.bump();
            return Ok(Scrubbed::DamagedInUse);
        }
        if let Some(bytes) = manifest
            && let Err(error) = fs::write(self.inner.layout.staging_manifest(content), bytes)
        {
            tracing::debug!(%error, "manifest is fetched again");
        }
        self.purge_quarantine(self.inner.config.staging_max_age)?;
        let mut state = locked(&self.inner.state);
        match state.entries.remove(&content) {
            Some(old) if held => {
                let mut entry = Entry::new(old.spec, Phase::Queued);
                entry.wanted = true;
                entry.last_used_unix_ms = old.last_used_unix_ms;
                state.entries.insert(content, entry);
            }
            _ => state.note_gone(content, GoneReason::Lost),
        }
        drop(state);
        self.bump();
        Ok(Scrubbed::Quarantined)
    }
}
