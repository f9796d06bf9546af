//! Opening a cache folder, whatever state a crash left it in.
//!
//! **What.** Takes the folder's lock, checks its format, reads index, leases and holds, compares them with the files, and
//! finishes what was begun: unfinished transfers can go on, deletions are completed.
//! **Why nothing is believed.** The index may be lost, old or damaged. An object is active at once only if manifest, size,
//! mode and the index's stamp of the file all agree; every other one is hashed first.
//! **Invariants.** I11: a second recovery changes nothing. I12: a crash in here leaves a folder that recovers. Nothing in
//! `objects/` is deleted, and unused side files go only after everything was read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hearth_protocol::digest::ContentId;
use hearth_protocol::words::{ContentKind, GoneReason};
use tokio::sync::watch;

use super::config::{RecoveryReport, StoreConfig};
use super::error::StoreError;
use super::index::{Index, Row};
use super::layout::{
    FORMAT, Layout, Renamed, parse_content_name, remove_if_there, rename_new, sync_dir, write_durably,
};
use super::objects::{self, Look, list};
use super::state::{Entry, Inner, State, Store};
use super::{failpoint, hold, journal, lease};
use crate::clock;
use crate::logic::entry::Phase;
use crate::sys;

impl Store {
    /// Opens the cache folder, making or mending it as needed.
    ///
    /// Objects that must be hashed again are `verifying` in the result; `maintain` (or `scrub_one`) hashes them.
    ///
    /// # Errors
    /// [`StoreError::FolderInUse`], [`StoreError::Format`], [`StoreError::NoGroup`], [`StoreError::Index`] or
    /// [`StoreError::Io`].
    pub fn open(config: &StoreConfig) -> Result<(Self, RecoveryReport), StoreError> {
        if let Err(error) = sys::ignore_sigio() {
            tracing::warn!(%error, "SIGIO cannot be ignored");
        }
        let layout = Layout::create(config)?;
        let lock = take_lock(&config.dir)?;
        check_format(&config.dir)?;
        let mut report = RecoveryReport::default();
        let (index, rows, rebuilt) = Index::open(&layout.db())?;
        report.index_rebuilt = rebuilt;
        let mut recovery = Recovery { layout: &layout, state: State::default(), report };
        recovery.run(config, rows)?;
        let Recovery { state, mut report, .. } = recovery;
        let rows: Vec<Row> = state.entries.values().filter_map(Entry::row).collect();
        for content in &report.lost {
            index.remove(*content).or_else(|why| index.rebuild(&rows, &why))?;
        }
        report.leases = u32::try_from(state.leases.len()).unwrap_or(u32::MAX);
        let inner = Inner {
            config: config.clone(),
            layout,
            index,
            state: Mutex::new(state),
            revision: watch::Sender::new(1),
            _lock: lock,
        };
        let store = Self { inner: Arc::new(inner) };
        store.purge_quarantine(config.staging_max_age)?;
        Ok((store, report))
    }

    /// The cache folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.config.dir
    }
}

fn take_lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("LOCK");
    let mut options = OpenOptions::new();
    let lock = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::FolderInUse { dir: dir.to_owned() }),
        Err(fs::TryLockError::Error(source)) => Err(StoreError::Io { what: "lock", path, source }),
    }
}

fn check_format(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join("FORMAT");
    match fs::read_to_string(&path) {
        Ok(found) if found == FORMAT => Ok(()),
        Ok(found) => {
            let found = found.trim_end().chars().take(64).collect();
            Err(StoreError::Format { dir: dir.to_owned(), found, known: FORMAT.trim_ascii_end() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => write_durably(&path, FORMAT.as_bytes()),
        Err(source) => Err(StoreError::Io { what: "read", path, source }),
    }
}

struct Recovery<'a> {
    layout: &'a Layout,
    state: State,
    report: RecoveryReport,
}

impl Recovery<'_> {
    fn run(&mut self, config: &StoreConfig, rows: Vec<Row>) -> Result<(), StoreError> {
        let now = clock::unix_ms();
        let mut rows: BTreeMap<ContentId, Row> =
            rows.into_iter().map(|row| (row.spec.content, row)).collect();
        self.objects(&mut rows)?;
        failpoint::hit("recover.after-objects").map_err(StoreError::io("recover", &config.dir))?;
        self.unpublished_manifests()?;
        self.staging(config, now)?;
        failpoint::hit("recover.after-staging").map_err(StoreError::io("recover", &config.dir))?;
        let (leases, unreadable) = lease::read_all(self.layout)?;
        for path in &unreadable {
            tracing::error!(path = %path.display(), "unreadable lease file: nothing is removed until it is mended or deleted");
        }
        self.state.leases = leases.into_iter().map(|lease| (lease.lease, lease)).collect();
        self.state.unreadable_leases = unreadable;
        match hold::read(&config.dir)? {
            Some(holds) => self.state.holds = holds,
            None => {
                tracing::error!("the file HOLDS is damaged: everything in the cache is held for a day");
                self.report.holds_lost = true;
                hold::hold_everything(&mut self.state, now);
            }
        }
        for (content, entry) in &mut self.state.entries {
            let held = self.state.holds.get(content).is_some_and(|held| held.held_by(now).is_some());
            entry.wanted = held || self.state.leases.values().any(|lease| lease.content == *content);
        }
        // What is left in `rows` has no object.
        for content in rows.into_keys() {
            tracing::error!(%content, "object is gone although the index knows it");
            self.state.note_gone(content, GoneReason::Lost);
            self.report.lost.push(content);
        }
        self.empty_trash()?;
        self.unused_side_files()
    }

    /// Everything in `objects/`, with the row that the index has for it.
    fn objects(&mut self, rows: &mut BTreeMap<ContentId, Row>) -> Result<(), StoreError> {
        // A folder that cannot be listed may hold copies that guests run on: better no start than a cache without them.
        for (path, name) in objects::walk(self.layout, Err)? {
            match name {
                Some((content, kind)) => self.object(&path, content, kind, rows)?,
                None => self.quarantine(&path)?,
            }
        }
        Ok(())
    }

    fn object(
        &mut self,
        path: &Path,
        content: ContentId,
        kind: ContentKind,
        rows: &mut BTreeMap<ContentId, Row>,
    ) -> Result<(), StoreError> {
        let (spec, meta) = match objects::look(self.layout, content, kind)? {
            Look::File(spec, meta) => (spec, meta),
            Look::Foreign => {
                tracing::error!(path = %path.display(), "object without a usable manifest");
                rows.remove(&content);
                return self.quarantine(path);
            }
            Look::Missing => return Ok(()),
        };
        let row = rows.remove(&content).filter(|row| row.spec == spec);
        let known = objects::unchanged(&meta, &spec, row.map(|row| row.stamp));
        let mut entry = Entry::new(spec, if known { Phase::Active } else { Phase::Unverified });
        if let Some(row) = row {
            entry.moved_bytes = row.moved_bytes;
            entry.reused_bytes = row.reused_bytes;
            entry.last_used_unix_ms = row.last_used_unix_ms;
            entry.verified_unix_ms = row.verified_unix_ms;
        }
        if known {
            entry.stamp = row.map(|row| row.stamp);
            self.report.active += 1;
        } else {
            self.report.unverified += 1;
        }
        entry.allocated_bytes = meta.blocks() * 512 + side_bytes(self.layout, content);
        self.state.entries.insert(content, entry);
        Ok(())
    }

    /// A crash between publishing the manifest and the object left the manifest in `meta/`: it goes back to its file.
    fn unpublished_manifests(&mut self) -> Result<(), StoreError> {
        for path in list(&self.layout.meta_dir())? {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(parse_content_name);
            let Some((content, "manifest")) = name else { continue };
            if self.state.entries.contains_key(&content) || !self.layout.staging(content).exists() {
                continue;
            }
            if rename_new(&path, &self.layout.staging_manifest(content))? == Renamed::TargetExists {
                remove_if_there(&path)?;
            }
        }
        sync_dir(&self.layout.meta_dir())?;
        sync_dir(&self.layout.staging_dir())
    }

    /// Unfinished transfers: those with a valid journal can go on, the rest is deleted.
    fn staging(&mut self, config: &StoreConfig, now: u64) -> Result<(), StoreError> {
        let mut resumable = BTreeSet::new();
        let mut paths = Vec::new();
        for path in list(&self.layout.staging_dir())? {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(parse_content_name);
            paths.push((path.clone(), name.map(|(content, _)| content)));
            let Some((content, "journal")) = name else { continue };
            let Some((header, last)) = journal::read(&path)? else { continue };
            let age_ms = now.saturating_sub(header.begun_unix_ms);
            let staging = self.layout.staging(content);
            let meta = fs::symlink_metadata(&staging).ok().filter(fs::Metadata::is_file);
            let young = u128::from(age_ms) <= config.staging_max_age.as_millis();
            let fits = meta.as_ref().is_some_and(|meta| meta.len() == header.spec.raw_bytes);
            if header.spec.content != content || !young || !fits || self.state.entries.contains_key(&content)
            {
                continue;
            }
            let mut entry = Entry::new(header.spec, Phase::Queued);
            entry.allocated_bytes = meta.map_or(0, |meta| meta.blocks() * 512);
            entry.staged_bytes = last.done_bytes;
            entry.moved_bytes = last.moved_bytes;
            entry.reused_bytes = last.reused_bytes;
            self.state.entries.insert(content, entry);
            self.report.resumable += 1;
            resumable.insert(content);
        }
        for (path, content) in paths {
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            let keeps = matches!(ending, "raw" | "journal" | "manifest");
            if !keeps || content.is_none_or(|content| !resumable.contains(&content)) {
                self.report.deleted += u32::from(remove_if_there(&path)?);
            }
        }
        sync_dir(&self.layout.staging_dir())
    }

    /// Moves something that should not be there out of the way.
    fn quarantine(&mut self, path: &Path) -> Result<(), StoreError> {
        objects::put_away(self.layout, path)?;
        objects::sync_put_away(self.layout, path)?;
        self.report.quarantined += 1;
        Ok(())
    }

    fn empty_trash(&mut self) -> Result<(), StoreError> {
        for path in list(&self.layout.trash_dir())? {
            self.report.deleted += u32::from(remove_if_there(&path)?);
        }
        sync_dir(&self.layout.trash_dir())
    }

    /// Last of all: manifests and reuse indexes of objects that are gone.
    fn unused_side_files(&mut self) -> Result<(), StoreError> {
        for path in list(&self.layout.meta_dir())? {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(parse_content_name);
            let used = name.is_some_and(|(content, ending)| {
                let has_object =
                    self.state.entries.get(&content).is_some_and(|entry| entry.phase.has_object());
                has_object && matches!(ending, "manifest" | "chunks")
            });
            if !used {
                self.report.deleted += u32::from(remove_if_there(&path)?);
            }
        }
        sync_dir(&self.layout.meta_dir())
    }
}

/// Bytes of an object's manifest and reuse index.
pub(super) fn side_bytes(layout: &Layout, content: ContentId) -> u64 {
    let bytes = |path: PathBuf| fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512);
    bytes(layout.manifest(content)) + bytes(layout.chunks(content))
}
