//! The hourly comparison of index and memory with `objects/`, while the agent runs.
//!
//! **What.** Lists `objects/` and the index, compares them with the entries, and acts as recovery does at a start: a file
//! that changed is hashed before it is handed out again, one that vanished is lost (and fetched again if it is held), one
//! that appeared is adopted unhashed or put away, index rows are mended.
//! **Why again after the start.** An operator who copies, restores or deletes files below a running agent, or a repaired
//! file system, would otherwise be noticed by a guest first.
//!
//! **Invariants.** No file is opened for writing, and none is deleted. What a transfer, a removal or a reader has in hand is
//! left to it; a foreign file that a process has open keeps its name. Paths are handed out only after [`Store::doubt`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hearth_protocol::digest::ContentId;
use hearth_protocol::words::ContentKind;

use super::config::CompareReport;
use super::error::StoreError;
use super::index::{Row, Stamp};
use super::locked;
use super::objects::{self, Look};
use super::reader::open_read_only;
use super::recover::side_bytes;
use super::state::{Entry, State, Store};
use crate::logic::compare::{Known, Seen, Verdict, verdict};
use crate::logic::entry::{Phase, Step};
use crate::sys;

impl Store {
    /// Compares everything once. What cannot be looked at, listed or moved is left for the next time, alone.
    ///
    /// # Errors
    /// [`StoreError::Io`] if `objects/` itself cannot be listed, [`StoreError::Index`].
    pub fn compare(&self) -> Result<CompareReport, StoreError> {
        let mut report = CompareReport::default();
        let mut there = BTreeSet::new();
        let unlisted = |error: StoreError| {
            tracing::warn!(error = error.chain(), "a folder cannot be compared now");
            Ok(())
        };
        for (path, name) in objects::walk(&self.inner.layout, unlisted)? {
            match name.filter(|(content, kind)| self.expects(*content, *kind)) {
                Some((content, kind)) => {
                    there.insert(content);
                    left_for_later(&path, self.compare_object(content, kind, &mut report));
                }
                None => left_for_later(&path, self.put_stray_away(&path, None, &mut report)),
            }
        }
        for (content, kind) in self.resting().into_iter().filter(|(content, _)| !there.contains(content)) {
            let path = self.inner.layout.object(content, kind);
            left_for_later(&path, self.compare_object(content, kind, &mut report));
        }
        self.mend_index(&mut report)?;
        if report != CompareReport::default() {
            tracing::warn!(?report, "the cache on disk was not as the agent left it");
            self.bump();
        }
        Ok(report)
    }

    /// Takes an active entry back if its file is not the one that was hashed. Call it before a path is handed out: one
    /// look at the file, no read.
    pub fn doubt(&self, content: ContentId) {
        let known = {
            let state = locked(&self.inner.state);
            let active = state.entries.get(&content).filter(|entry| entry.phase.is_active());
            active.map(|entry| (entry.spec, entry.stamp))
        };
        let Some((spec, stamp)) = known else { return };
        let path = self.inner.layout.object(content, spec.kind);
        if fs::symlink_metadata(&path).is_ok_and(|meta| objects::unchanged(&meta, &spec, stamp)) {
            return;
        }
        let mut state = locked(&self.inner.state);
        let Some(entry) = state.entries.get_mut(&content) else { return };
        if entry.stamp == stamp && entry.phase.is_active() && entry.step(Step::Recheck).is_ok() {
            tracing::warn!(%content, "its file is not the one that was hashed: it is checked before it is used");
            drop(state);
            self.bump();
        }
    }

    /// Whether a file of this kind is what the entry is about. A content has one kind.
    fn expects(&self, content: ContentId, kind: ContentKind) -> bool {
        locked(&self.inner.state).entries.get(&content).is_none_or(|entry| entry.spec.kind == kind)
    }

    /// Contents that should have a file.
    fn resting(&self) -> Vec<(ContentId, ContentKind)> {
        let state = locked(&self.inner.state);
        let should = |(_, entry): &(&ContentId, &Entry)| {
            matches!(Known::of(Some(&entry.phase), entry.live.is_some()), Known::Active | Known::Waiting)
        };
        state.entries.iter().filter(should).map(|(content, entry)| (*content, entry.spec.kind)).collect()
    }

    fn compare_object(
        &self,
        content: ContentId,
        kind: ContentKind,
        report: &mut CompareReport,
    ) -> Result<(), StoreError> {
        let path = self.inner.layout.object(content, kind);
        let look = match objects::look(&self.inner.layout, content, kind) {
            Ok(look) => look,
            Err(error) => {
                tracing::warn!(%content, error = error.chain(), "cannot be compared now");
                return Ok(());
            }
        };
        let mut state = locked(&self.inner.state);
        let entry = state.entries.get_mut(&content);
        let known = Known::of(
            entry.as_ref().map(|entry| &entry.phase),
            entry.as_ref().is_some_and(|entry| entry.live.is_some()),
        );
        let seen = match &look {
            // Under the lock: a file has its name before its entry is active, and keeps it until the entry is not.
            Look::Missing if !path.exists() => Seen::Missing,
            Look::Missing => return Ok(()),
            Look::Foreign => Seen::Foreign,
            Look::File(spec, meta) => Seen::File {
                unchanged: entry
                    .as_ref()
                    .is_some_and(|entry| entry.spec == *spec && objects::unchanged(meta, spec, entry.stamp)),
            },
        };
        match (verdict(known, seen), entry, look) {
            (Verdict::Recheck, Some(entry), _) => {
                entry.step(Step::Recheck)?;
                report.rechecked += 1;
                Ok(())
            }
            (Verdict::Lost, Some(entry), _) => {
                // A reader that still has it open ends first; until then nobody new gets it.
                entry.stamp = None;
                entry.step(Step::Damage { text: "its file is gone from objects/".to_owned() })?;
                drop(state);
                report.lost.push(content);
                self.index_remove(content)?;
                self.quarantine(content).map(|_| ())
            }
            (Verdict::Adopt, _, Look::File(spec, meta)) => {
                // Looked at before the lock: a removal may have taken it meanwhile.
                let stamp = fs::symlink_metadata(&path).map(|meta| Stamp::of(&meta));
                if stamp.ok() != Some(Stamp::of(&meta)) {
                    return Ok(());
                }
                self.adopt(&mut state, Entry::new(spec, Phase::Unverified), &meta);
                drop(state);
                report.adopted += 1;
                // What a transfer left is worth nothing beside a whole file; if that is wrong, all is fetched again.
                self.remove_staged(content)
            }
            (Verdict::PutAway, _, _) => {
                drop(state);
                self.put_stray_away(&path, Some(content), report)
            }
            _ => Ok(()),
        }
    }

    fn adopt(&self, state: &mut State, mut entry: Entry, meta: &Metadata) {
        let content = entry.spec.content;
        entry.allocated_bytes = meta.blocks() * 512 + side_bytes(&self.inner.layout, content);
        if let Some(old) = state.entries.remove(&content) {
            entry.wanted = old.wanted;
            entry.last_used_unix_ms = old.last_used_unix_ms;
        }
        state.gone.retain(|gone| gone.content != content);
        state.entries.insert(content, entry);
    }

    /// Moves a file that is none of ours to quarantine, unless a process has it open. `content`: what its name claims.
    fn put_stray_away(
        &self,
        path: &Path,
        content: Option<ContentId>,
        report: &mut CompareReport,
    ) -> Result<(), StoreError> {
        match open_elsewhere(path) {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(path = %path.display(), "does not belong there, and a process has it open");
                report.in_use += 1;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "does not belong there, and cannot be moved");
                return Ok(());
            }
        }
        // One rename under the lock: no transfer can begin, and so none can put its own file there meanwhile.
        let state = locked(&self.inner.state);
        let entry = content.and_then(|content| state.entries.get(&content));
        if Known::of(entry.map(|entry| &entry.phase), entry.is_some_and(|entry| entry.live.is_some()))
            != Known::NoFile
        {
            return Ok(());
        }
        objects::put_away(&self.inner.layout, path)?;
        drop(state);
        tracing::error!(path = %path.display(), "does not belong there: moved to quarantine");
        report.quarantined += 1;
        objects::sync_put_away(&self.inner.layout, path)?;
        self.purge_quarantine(self.inner.config.staging_max_age)
    }

    /// Rows of active entries that the index lacks or has otherwise are written, rows of nothing are removed.
    fn mend_index(&self, report: &mut CompareReport) -> Result<(), StoreError> {
        let rows = match self.inner.index.rows() {
            Ok(rows) => rows,
            Err(why) => {
                report.rows_mended += 1;
                let all: Vec<Row> =
                    locked(&self.inner.state).entries.values().filter_map(Entry::row).collect();
                return self.inner.index.rebuild(&all, &why);
            }
        };
        let known: BTreeMap<ContentId, &Row> = rows.iter().map(|row| (row.spec.content, row)).collect();
        let (put, drop) = {
            let state = locked(&self.inner.state);
            let has = |row: &Row| {
                let known = known.get(&row.spec.content);
                known.is_some_and(|known| (known.spec, known.stamp) == (row.spec, row.stamp))
            };
            let active = state.entries.values().filter(|entry| entry.phase.is_active());
            let put: Vec<Row> = active.filter_map(Entry::row).filter(|row| !has(row)).collect();
            let of_nothing = |row: &&Row| {
                let entry = state.entries.get(&row.spec.content);
                entry.is_none_or(|entry| entry.live.is_none() && !entry.phase.has_object())
            };
            let drop: Vec<ContentId> = rows.iter().filter(of_nothing).map(|row| row.spec.content).collect();
            (put, drop)
        };
        report.rows_mended += u32::try_from(put.len() + drop.len()).unwrap_or(u32::MAX);
        for content in drop {
            self.index_remove(content)?;
        }
        if put.is_empty() { Ok(()) } else { self.index_active(&put) }
    }

    /// Writes rows of entries that were active a moment ago; those of entries that left meanwhile are taken back.
    pub(super) fn index_active(&self, rows: &[Row]) -> Result<(), StoreError> {
        self.index_rows(rows)?;
        let left: Vec<ContentId> = {
            let state = locked(&self.inner.state);
            let there =
                |row: &&Row| state.entries.get(&row.spec.content).is_some_and(|e| e.phase.has_object());
            rows.iter().filter(|row| !there(row)).map(|row| row.spec.content).collect()
        };
        left.into_iter().try_for_each(|content| self.index_remove(content))
    }
}

/// Says what went wrong with one path; the others are compared all the same.
fn left_for_later(path: &Path, result: Result<(), StoreError>) {
    if let Err(error) = result {
        tracing::warn!(path = %path.display(), error = error.chain(), "cannot be put right now; tried again");
    }
}

/// Whether another process has a plain file open, or it has further names; other things cannot be in use as an image.
fn open_elsewhere(path: &Path) -> io::Result<bool> {
    let meta = fs::symlink_metadata(path)?;
    if !meta.is_file() {
        return Ok(false);
    }
    let file = match open_read_only(path) {
        Ok(file) => file,
        Err(StoreError::Io { source, .. }) => return Err(source),
        Err(error) => return Err(io::Error::other(error)),
    };
    if meta.nlink() > 1 || sys::image_locks_held(&file)? {
        return Ok(true);
    }
    match sys::take_write_lease(&file) {
        Ok(()) => sys::drop_lease(&file).map(|()| false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}
