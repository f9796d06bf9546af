//! Starting a transfer: room, reservation, staging file.
//!
//! **What.** [`Store::begin`] makes room by the plan of `logic::evict`, reserves what the transfer may write, and opens or
//! resumes the staging file.
//! **Why the reservation comes first.** A transfer that runs out of space in the middle has wasted the network.
//! **Invariants.** I7: reserved + used stay within the budget, because room is looked at and taken under one lock.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::digest::ContentId;
use hearth_protocol::manifest::{DATA_BYTES_MAX, RAW_BYTES_MAX};

use super::config::{ContentSpec, Holder};
use super::error::{BeginError, StoreError};
use super::evict::RemoveMode;
use super::failpoint;
use super::journal::{self, Checkpoint, Header, Journal};
use super::layout::{STAGING_MODE, remove_if_there, sync_dir};
use super::locked;
use super::manifest_file::ManifestFile;
use super::staging::{Opened, Staging};
use super::state::{Entry, Live, State, Store};
use crate::clock;
use crate::logic::budget::{reservation_bytes, short_of};
use crate::logic::entry::{Phase, Step};
use crate::logic::evict::{Candidate, HeldBy, plan_eviction};

/// Rounds of evicting before giving up: each round removes at least one entry or marks one as open.
const ROUNDS_MAX: usize = 64;
/// Holders named in a `no_space` answer; the rest would not fit a report.
const HOLDERS_MAX: usize = 16;

impl Store {
    /// Begins to fetch a content, or goes on where an earlier try stopped. Evicts what may go if room is needed.
    ///
    /// # Errors
    /// [`BeginError`]; with `NoSpace` and `Degraded` nothing was changed except that unheld entries may be gone.
    pub fn begin(&self, spec: ContentSpec) -> Result<Staging, BeginError> {
        let ContentSpec { raw_bytes, data_bytes, .. } = spec;
        if raw_bytes == 0
            || raw_bytes > RAW_BYTES_MAX
            || data_bytes > DATA_BYTES_MAX
            || data_bytes > raw_bytes
        {
            return Err(BeginError::Sizes { raw_bytes, data_bytes });
        }
        let mut open = Vec::new();
        for _ in 0..ROUNDS_MAX {
            let victims = match self.reserve(spec, &open)? {
                Room::Taken(live) => return self.open_staging(spec, live),
                Room::Evict(victims) => victims,
            };
            self.purge_trash(Duration::ZERO);
            self.purge_quarantine(Duration::ZERO)?;
            for victim in victims {
                if let Err(error) = self.remove(victim, RemoveMode::Evict) {
                    tracing::info!(content = %victim, %error, "cannot be evicted now");
                    open.push(victim);
                }
            }
            self.purge_trash(Duration::ZERO);
        }
        Err(StoreError::State { content: spec.content, state: "without room", wanted: "reserved" }.into())
    }

    /// Takes the reservation, or says what must go first.
    fn reserve(&self, spec: ContentSpec, open: &[ContentId]) -> Result<Room, BeginError> {
        let content = spec.content;
        let mut state = locked(&self.inner.state);
        if !state.degraded.is_empty() {
            return Err(BeginError::Degraded { reason: state.degraded.clone() });
        }
        let mut staged = 0;
        if let Some(entry) = state.entries.get(&content) {
            if entry.phase.has_object() {
                return Err(BeginError::Present { content });
            }
            if entry.live.is_some() {
                return Err(BeginError::Running { content });
            }
            staged = entry.allocated_bytes;
        }
        let reservation = reservation_bytes(spec.data_bytes);
        let needed = reservation.saturating_sub(staged);
        let mut usage = self.usage(&state)?;
        if short_of(usage, needed) > 0 && state.close_spools() {
            usage = self.usage(&state)?;
        }
        let short = short_of(usage, needed);
        if short > 0 {
            let trash: u64 =
                state.quarantine_bytes + state.trash.iter().map(|trash| trash.bytes).sum::<u64>();
            let plan = self.plan(&state, content, short.saturating_sub(trash), open);
            if plan.0.shortfall_bytes > 0 {
                let free = usage.room_bytes().saturating_add(trash).saturating_add(plan.0.freed_bytes);
                return Err(BeginError::NoSpace { needed, free, held_by: holders(plan.1) });
            }
            return Ok(Room::Evict(plan.0.victims));
        }
        let live = Arc::new(Live { reservation_bytes: reservation, ..Live::default() });
        live.allocated_bytes.store(staged, std::sync::atomic::Ordering::Relaxed);
        let entry = state.entries.entry(content).or_insert_with(|| Entry::new(spec, Phase::Queued));
        entry.spec = spec;
        entry.step(Step::Begin).map_err(StoreError::from)?;
        entry.wanted = true;
        entry.live = Some(Arc::clone(&live));
        state.gone.retain(|gone| gone.content != content);
        drop(state);
        self.bump();
        Ok(Room::Taken(live))
    }

    /// The eviction plan and the snapshot it was made from. `open` were found open by a process.
    fn plan(
        &self,
        state: &State,
        but: ContentId,
        short: u64,
        open: &[ContentId],
    ) -> (crate::logic::evict::EvictionPlan, Vec<Candidate>) {
        let mut candidates = state.candidates(clock::steady_unix_ms());
        candidates.retain(|candidate| candidate.content != but);
        for candidate in &mut candidates {
            if candidate.held.is_none() && open.contains(&candidate.content) {
                candidate.held = Some(HeldBy::Open);
            }
        }
        (plan_eviction(short, &candidates), candidates)
    }

    fn open_staging(&self, spec: ContentSpec, live: Arc<Live>) -> Result<Staging, BeginError> {
        match self.open_files(spec) {
            Ok(opened) => Ok(Staging::new(self.clone(), spec, live, opened)),
            Err(error) => {
                self.note_disk_failure(&error);
                let mut state = locked(&self.inner.state);
                if let Some(entry) = state.entries.get_mut(&spec.content) {
                    entry.live = None;
                    entry.step(Step::Stop).map_err(StoreError::from)?;
                }
                drop(state);
                self.bump();
                Err(error.into())
            }
        }
    }

    fn open_files(&self, spec: ContentSpec) -> Result<Opened, StoreError> {
        let layout = &self.inner.layout;
        let (path, journal_path) = (layout.staging(spec.content), layout.journal(spec.content));
        let manifest_path = layout.staging_manifest(spec.content);
        let manifest = ManifestFile::open(&manifest_path, spec.content).ok().map(Arc::new);
        if manifest.is_none() {
            remove_if_there(&manifest_path)?;
        }
        let old = journal::read(&journal_path)?.filter(|(header, _)| header.spec == spec);
        if let Some((header, last)) = old
            && let Some(file) = reopen(&path, spec.raw_bytes)?
        {
            let journal = Journal::create(&journal_path, header, Some(last))?;
            return Ok(Opened { path, file, journal, last, resumed: true, manifest });
        }
        remove_if_there(&path)?;
        remove_if_there(&journal_path)?;
        failpoint::hit("begin.before-create").map_err(StoreError::io("create", &path))?;
        let file = create(&path, spec.raw_bytes).map_err(StoreError::io("create", &path))?;
        failpoint::hit("begin.after-create").map_err(StoreError::io("create", &path))?;
        let header = Header { spec, begun_unix_ms: clock::unix_ms() };
        let journal = Journal::create(&journal_path, header, None)?;
        sync_dir(&layout.staging_dir())?;
        failpoint::hit("begin.after-journal").map_err(StoreError::io("create", &path))?;
        Ok(Opened { path, file, journal, last: Checkpoint::default(), resumed: false, manifest })
    }
}

enum Room {
    Taken(Arc<Live>),
    Evict(Vec<ContentId>),
}

/// Opens what an earlier try left, if it is a plain file of the right size that nobody else has a name for.
fn reopen(path: &Path, raw_bytes: u64) -> Result<Option<File>, StoreError> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::Io { what: "look at", path: path.to_owned(), source: error }),
    };
    if !meta.is_file() || meta.len() != raw_bytes || meta.nlink() != 1 {
        return Ok(None);
    }
    // A crash just before publishing leaves it read-only.
    fs::set_permissions(path, Permissions::from_mode(STAGING_MODE))
        .map_err(StoreError::io("set the mode of", path))?;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(nix::libc::O_NOFOLLOW).open(path);
    file.map(Some).map_err(StoreError::io("open", path))
}

fn create(path: &Path, raw_bytes: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(STAGING_MODE)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    file.set_len(raw_bytes)?;
    file.sync_all()?;
    Ok(file)
}

/// What holds space, largest first.
fn holders(candidates: Vec<Candidate>) -> Vec<Holder> {
    let to_holder = |candidate: Candidate| {
        let Candidate { content, allocated_bytes, held, .. } = candidate;
        held.map(|held_by| Holder { content, allocated_bytes, held_by })
    };
    let mut holders: Vec<Holder> = candidates.into_iter().filter_map(to_holder).collect();
    holders.sort_unstable_by_key(|holder| (std::cmp::Reverse(holder.allocated_bytes), holder.content));
    holders.truncate(HOLDERS_MAX);
    holders
}
