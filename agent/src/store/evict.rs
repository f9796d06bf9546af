//! Removing contents: by eviction, by the controller's wish, and what becomes of damaged ones.
//!
//! **What.** A removal is refused while anybody uses the file; otherwise its name goes to `trash/` and its bytes are freed
//! after a grace time, or at once when room is needed.
//!
//! **Why four checks.** A lease is the only thing that protects a stopped VM. The link count shows further names. The probe
//! of QEMU's lock bytes finds VMs that were started without a lease, but misses incoming migrations and `locking=off`
//! (measured); the kernel's write lease finds every descriptor and mapping, and holds new ones off while the name is taken.
//! The agent's own descriptors would be found as well, so they are closed first (`uses` is 0).
//!
//! **Invariants.** I9: the last name of an inode with a lease is never taken. Nothing held, leased or open is evicted.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use hearth_protocol::digest::ContentId;
use hearth_protocol::words::{ContentKind, GoneReason};

use super::error::{InUse, LeaseHolder, StoreError};
use super::failpoint;
use super::layout::{remove_if_there, remove_tree, sync_dir};
use super::locked;
use super::objects;
use super::reader::open_read_only;
use super::state::{Entry, State, Store, Trash};
use crate::clock;
use crate::logic::budget::short_of;
use crate::logic::entry::{Phase, Step};
use crate::logic::evict::{HeldBy, plan_eviction};
use crate::sys;

/// Why something is removed; decides what stands in its way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RemoveMode {
    /// To make room: holds and pins are respected, and a refusal changes nothing.
    Evict,
    /// Because the controller wants it gone: holds do not count, use does; a refusal shows as `delete_failed`.
    Delete,
}

/// Where an object goes that leaves `objects/`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Destination {
    /// It is freed after the grace time.
    Trash,
    /// It is damaged; its good chunks may still be used.
    Quarantine,
}

/// What an entry was before its removal began.
struct Before {
    kind: ContentKind,
    phase: Phase,
    allocated_bytes: u64,
}

impl Store {
    /// Removes a content. On return it has no name in the cache any more; its bytes are freed after the grace time.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::InUse`] with the holder, [`StoreError::State`] while it is being fetched,
    /// [`StoreError::Io`].
    pub fn remove(&self, content: ContentId, mode: RemoveMode) -> Result<(), StoreError> {
        let before = self.begin_removal(content, mode)?;
        let result = if before.phase.has_object() {
            self.take_away(content, before.kind, Destination::Trash)
        } else {
            self.remove_staged(content).map(|()| None)
        };
        let mut state = locked(&self.inner.state);
        let taken = match result {
            Ok(taken) => taken,
            Err(error) => {
                let text = match mode {
                    RemoveMode::Evict => String::new(),
                    RemoveMode::Delete => error.chain(),
                };
                let was_active = before.phase.is_active();
                state.entry(content)?.step(Step::RemoveRefused { text, was_active })?;
                drop(state);
                self.bump();
                return Err(error);
            }
        };
        state.entries.remove(&content);
        if let Some(path) = taken {
            state.trash.push(Trash { path, bytes: before.allocated_bytes, since: clock::monotonic() });
        }
        let reason = match mode {
            RemoveMode::Evict => GoneReason::Evicted,
            RemoveMode::Delete => GoneReason::Deleted,
        };
        state.note_gone(content, reason);
        drop(state);
        tracing::info!(%content, %reason, "entry removed");
        self.bump();
        Ok(())
    }

    /// Refuses what is known to be in use, and closes the entry to new users.
    fn begin_removal(&self, content: ContentId, mode: RemoveMode) -> Result<Before, StoreError> {
        let mut state = locked(&self.inner.state);
        state.entry(content)?;
        if let Some(by) = state.in_use(content, mode) {
            // Asked for and refused: shown as `delete_failed` with the holder until it works.
            let error = StoreError::InUse { content, by };
            if mode == RemoveMode::Delete {
                let text = error.chain();
                let entry = state.entry(content)?;
                let was_active = entry.phase.is_active();
                if entry.phase.has_object() && entry.step(Step::Remove).is_ok() {
                    entry.step(Step::RemoveRefused { text, was_active })?;
                }
                drop(state);
                self.bump();
            }
            return Err(error);
        }
        let entry = state.entry(content)?;
        let before =
            Before { kind: entry.spec.kind, phase: entry.phase.clone(), allocated_bytes: entry.allocated() };
        let busy = StoreError::State { content, state: entry.phase.name(), wanted: "at rest" };
        entry.step(Step::Remove).map_err(|_| busy)?;
        drop(state);
        self.bump();
        Ok(before)
    }

    /// Moves an object to `trash/` or `quarantine/` if no process uses it. `None` if it was not there.
    pub(super) fn take_away(
        &self,
        content: ContentId,
        kind: ContentKind,
        to: Destination,
    ) -> Result<Option<PathBuf>, StoreError> {
        let layout = &self.inner.layout;
        let path = layout.object(content, kind);
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file()) {
            // A folder or a link that somebody put in its place: no guest runs on it, and no probe applies.
            self.index_remove(content)?;
            objects::put_away(layout, &path)?;
            objects::sync_put_away(layout, &path)?;
            self.remove_side_files(content)?;
            return Ok(None);
        }
        let file = match open_read_only(&path) {
            Ok(file) => file,
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.index_remove(content)?;
                self.remove_side_files(content)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let in_use = |by| Err(StoreError::InUse { content, by });
        let links = file.metadata().map_err(StoreError::io("look at", &path))?.nlink();
        if links > 1 {
            return in_use(InUse::HardLinks(links - 1));
        }
        if sys::image_locks_held(&file).map_err(StoreError::io("probe the locks of", &path))? {
            return in_use(InUse::Open);
        }
        match sys::take_write_lease(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return in_use(InUse::Open),
            Err(error) => {
                return Err(StoreError::Io { what: "take the write lease of", path, source: error });
            }
        }
        // From here on an open by anybody else waits until the lease is given back; dropping `file` does that too.
        failpoint::hit("evict.leased").map_err(StoreError::io("rename", &path))?;
        self.index_remove(content)?;
        failpoint::hit("evict.after-index").map_err(StoreError::io("rename", &path))?;
        let target = match to {
            Destination::Quarantine => layout.quarantined(content),
            Destination::Trash => layout.trash_dir().join(format!("{content}.{}", clock::unix_us())),
        };
        fs::rename(&path, &target).map_err(StoreError::io("rename", &path))?;
        let alone = sys::write_lease_holds(&file).map_err(StoreError::io("look at the lease of", &path))?;
        if !alone {
            // Somebody had already looked the name up and waits in open(2): give it its file.
            fs::rename(&target, &path).map_err(StoreError::io("rename", &target))?;
            return in_use(InUse::Open);
        }
        failpoint::hit("evict.after-rename").map_err(StoreError::io("rename", &path))?;
        sync_dir(&layout.object_dir(content))?;
        target.parent().map_or(Ok(()), sync_dir)?;
        self.remove_side_files(content)?;
        failpoint::hit("evict.after-meta").map_err(StoreError::io("rename", &path))?;
        // A failure to give it back is void: closing the descriptor ends the lease.
        if let Err(error) = sys::drop_lease(&file) {
            tracing::debug!(%error, "write lease ends with its descriptor");
        }
        Ok(Some(target))
    }

    /// Manifest and reuse index of an object that is gone.
    fn remove_side_files(&self, content: ContentId) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        remove_if_there(&layout.chunks(content))?;
        remove_if_there(&layout.manifest(content))?;
        sync_dir(&layout.meta_dir())
    }

    /// What a transfer of this content left in `staging/`.
    pub(super) fn remove_staged(&self, content: ContentId) -> Result<(), StoreError> {
        let layout = &self.inner.layout;
        remove_if_there(&layout.staging(content))?;
        remove_if_there(&layout.journal(content))?;
        remove_if_there(&layout.staging_manifest(content))?;
        sync_dir(&layout.staging_dir())
    }

    /// Frees the bytes of names taken away at least `grace` ago. Returns how many files went.
    pub(super) fn purge_trash(&self, grace: Duration) -> u32 {
        let now = clock::monotonic();
        let due = |trash: &&Trash| now.saturating_duration_since(trash.since) >= grace;
        let paths: Vec<PathBuf> =
            locked(&self.inner.state).trash.iter().filter(due).map(|trash| trash.path.clone()).collect();
        let mut freed = 0;
        // Freeing a large file takes a while; until then its bytes count as used.
        for path in paths {
            match remove_if_there(&path) {
                Ok(_) => {
                    freed += 1;
                    locked(&self.inner.state).trash.retain(|trash| trash.path != path);
                }
                Err(error) => tracing::warn!(error = error.chain(), "trash not deleted; tried again later"),
            }
        }
        if freed > 0 {
            self.bump();
        }
        freed
    }

    /// Deletes what lies in `quarantine/`, as far as it is older than `age`. What cannot be deleted counts as used.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the folder cannot be listed.
    pub(super) fn purge_quarantine(&self, age: Duration) -> Result<(), StoreError> {
        let dir = self.inner.layout.quarantine_dir();
        let now_s = clock::unix_ms() / 1000;
        let mut left = 0;
        for entry in fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let path = entry.map_err(StoreError::io("list", &dir))?.path();
            // Gone already: another purge was quicker.
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let since_s = u64::try_from(meta.ctime()).unwrap_or(0);
            let is_due = now_s.saturating_sub(since_s) >= age.as_secs();
            let deleted = if is_due { remove_tree(&path) } else { Ok(()) };
            if let Err(error) = &deleted {
                tracing::warn!(error = error.chain(), "not deleted from quarantine; tried again later");
            }
            if !is_due || deleted.is_err() {
                left += meta.blocks() * 512;
            }
        }
        locked(&self.inner.state).quarantine_bytes = left;
        Ok(())
    }

    /// Evicts until budget and floor hold again. Returns the bytes that holds keep above the limits, 0 if all is well.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file system does not answer.
    pub fn enforce(&self) -> Result<u64, StoreError> {
        let mut skipped: Vec<ContentId> = Vec::new();
        loop {
            let (plan, trash) = {
                let mut state = locked(&self.inner.state);
                let short = short_of(self.usage(&state)?, 0);
                if short == 0 {
                    return Ok(0);
                }
                if state.close_spools() {
                    continue;
                }
                let mut candidates = state.candidates(clock::steady_unix_ms());
                for candidate in candidates.iter_mut().filter(|c| skipped.contains(&c.content)) {
                    candidate.held.get_or_insert(HeldBy::Open);
                }
                let trash: u64 = state.trash.iter().map(|trash| trash.bytes).sum();
                (plan_eviction(short.saturating_sub(trash), &candidates), trash)
            };
            if plan.victims.is_empty() && trash == 0 {
                return Ok(plan.shortfall_bytes);
            }
            for victim in plan.victims {
                if let Err(error) = self.remove(victim, RemoveMode::Evict) {
                    tracing::info!(content = %victim, %error, "cannot be evicted now");
                    skipped.push(victim);
                }
            }
            if self.purge_trash(Duration::ZERO) == 0 && trash > 0 {
                return Ok(plan.shortfall_bytes.max(trash));
            }
        }
    }
}

impl State {
    /// Who is known to use a content, as far as `mode` cares.
    fn in_use(&self, content: ContentId, mode: RemoveMode) -> Option<InUse> {
        let holders: Vec<LeaseHolder> =
            self.leases.values().filter(|lease| lease.content == content).map(LeaseHolder::from).collect();
        if !holders.is_empty() {
            return Some(InUse::Leased(holders));
        }
        if !self.unreadable_leases.is_empty()
            && self.entries.get(&content).is_some_and(|e| e.phase.has_object())
        {
            let name = |path: &PathBuf| format!("an unreadable lease file, {}", path.display());
            let holders = self.unreadable_leases.iter().map(|path| LeaseHolder { name: name(path) });
            return Some(InUse::Leased(holders.collect()));
        }
        if mode == RemoveMode::Evict
            && let Some(held) = self.hold(content).held_by(clock::steady_unix_ms())
        {
            return Some(InUse::Held(held));
        }
        let uses = self.entries.get(&content).map_or(0, |entry: &Entry| entry.uses);
        (uses > 0).then_some(InUse::Agent)
    }
}
