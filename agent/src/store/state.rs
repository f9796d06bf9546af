//! What the store knows in memory, and the change counter.
//!
//! **What.** [`Store`] is a handle to one open cache folder; `State` is its table of entries, leases and holds.
//! **Why one lock.** Every operation under it is short and in memory; file work is done outside, guarded by the entry's
//! phase. So there is no order of locks to get wrong.
//! **Why one file.** Who takes the lock must see all that it guards; what works under it is elsewhere.
//! **Invariants.** A phase changes only through [`Phase::next`]; each change moves the revision.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::id::LeaseId;
use hearth_protocol::message::control::{Hold, Lease};
use hearth_protocol::words::GoneReason;
use tokio::sync::watch;

use super::config::{ContentSpec, EntryView, Gone, StoreConfig, StoreStats};
use super::error::StoreError;
use super::hold::Held;
use super::index::{Index, Row, Stamp};
use super::layout::Layout;
use super::locked;
use super::spool::Spool;
use crate::clock;
use crate::logic::budget::Usage;
use crate::logic::entry::{Phase, Step, StepError};
use crate::logic::evict::{Candidate, HeldBy};

/// Entries that left, kept so that the reporter can say why. More than a host evicts between two reports.
const GONE_KEPT: usize = 1024;

/// One open cache folder. Cheap to clone; all clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: StoreConfig,
    pub(super) layout: Layout,
    pub(super) index: Index,
    pub(super) state: Mutex<State>,
    pub(super) revision: watch::Sender<u64>,
    /// Held until the last handle is gone: one agent per folder.
    pub(super) _lock: File,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) entries: BTreeMap<ContentId, Entry>,
    pub(super) leases: BTreeMap<LeaseId, Lease>,
    /// Lease files that could not be read: they protect everything until somebody looks.
    pub(super) unreadable_leases: Vec<PathBuf>,
    pub(super) holds: BTreeMap<ContentId, Held>,
    pub(super) gone: VecDeque<Gone>,
    pub(super) trash: Vec<Trash>,
    pub(super) quarantine_bytes: u64,
    /// Packed chunks that are kept to be passed on.
    pub(super) spools: Vec<Weak<Spool>>,
    /// Disk failures in a row.
    pub(super) failures: u32,
    /// Not empty: no new content is begun.
    pub(super) degraded: String,
}

/// A file whose name was taken away and whose bytes are not freed yet.
#[derive(Debug)]
pub(super) struct Trash {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) since: Instant,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) spec: ContentSpec,
    pub(super) phase: Phase,
    /// Somebody asked for it; leftovers that nobody asked for are not reported.
    pub(super) wanted: bool,
    pub(super) moved_bytes: u64,
    pub(super) reused_bytes: u64,
    /// Raw bytes in an unfinished staging file, as far as known.
    pub(super) staged_bytes: u64,
    pub(super) allocated_bytes: u64,
    pub(super) last_used_unix_ms: u64,
    pub(super) verified_unix_ms: u64,
    /// The file that was hashed; `Some` while active.
    pub(super) stamp: Option<Stamp>,
    /// Readers, checks and deltas of this process that have the file open.
    pub(super) uses: u32,
    /// A check found or suspects damage: hash it soon.
    pub(super) suspect: bool,
    /// Set while a transfer runs.
    pub(super) live: Option<Arc<Live>>,
}

/// Counters of a running transfer, read without a lock.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) done_bytes: AtomicU64,
    pub(super) moved_bytes: AtomicU64,
    pub(super) reused_bytes: AtomicU64,
    pub(super) allocated_bytes: AtomicU64,
    /// What the transfer may allocate in all.
    pub(super) reservation_bytes: u64,
}

impl Entry {
    pub(super) fn new(spec: ContentSpec, phase: Phase) -> Self {
        Self {
            spec,
            phase,
            wanted: false,
            moved_bytes: 0,
            reused_bytes: 0,
            staged_bytes: 0,
            allocated_bytes: 0,
            last_used_unix_ms: 0,
            verified_unix_ms: 0,
            stamp: None,
            uses: 0,
            suspect: false,
            live: None,
        }
    }

    pub(super) fn step(&mut self, step: Step) -> Result<(), StepError> {
        self.phase = self.phase.next(step)?;
        Ok(())
    }

    pub(super) fn allocated(&self) -> u64 {
        self.live.as_ref().map_or(self.allocated_bytes, |live| live.allocated_bytes.load(Ordering::Relaxed))
    }

    pub(super) fn row(&self) -> Option<Row> {
        let stamp = self.stamp?;
        Some(Row {
            spec: self.spec,
            stamp,
            moved_bytes: self.moved_bytes,
            reused_bytes: self.reused_bytes,
            verified_unix_ms: self.verified_unix_ms,
            last_used_unix_ms: self.last_used_unix_ms,
        })
    }
}

impl State {
    pub(super) fn entry(&mut self, content: ContentId) -> Result<&mut Entry, StoreError> {
        self.entries.get_mut(&content).ok_or(StoreError::NotFound { content })
    }

    pub(super) fn n_leases(&self, content: ContentId) -> u32 {
        let n = self.leases.values().filter(|lease| lease.content == content).count();
        u32::try_from(n).unwrap_or(u32::MAX)
    }

    pub(super) fn hold(&self, content: ContentId) -> Held {
        self.holds.get(&content).copied().unwrap_or_default()
    }

    /// Why a content may not be evicted, or `None`. Whether a process has it open is not known here.
    pub(super) fn held_by(&self, content: ContentId, now_unix_ms: u64) -> Option<HeldBy> {
        let unreadable = u32::try_from(self.unreadable_leases.len()).unwrap_or(u32::MAX);
        let leases = self.n_leases(content).saturating_add(unreadable);
        if leases > 0 {
            return Some(HeldBy::Leases(leases));
        }
        if let Some(held) = self.hold(content).held_by(now_unix_ms) {
            return Some(held);
        }
        let entry = self.entries.get(&content)?;
        let working = entry.uses > 0 || entry.live.is_some() || entry.phase == Phase::Deleting;
        working.then_some(HeldBy::Work)
    }

    pub(super) fn candidates(&self, now_unix_ms: u64) -> Vec<Candidate> {
        let to_candidate = |(content, entry): (&ContentId, &Entry)| Candidate {
            content: *content,
            allocated_bytes: entry.allocated(),
            // Leftovers go first: nobody can use them as they are.
            last_used_unix_ms: if entry.phase.has_object() {
                entry.last_used_unix_ms.max(entry.verified_unix_ms)
            } else {
                0
            },
            held: self.held_by(*content, now_unix_ms),
        };
        self.entries.iter().filter(|(_, entry)| entry.allocated() > 0).map(to_candidate).collect()
    }

    /// Notes that a content left the cache.
    pub(super) fn note_gone(&mut self, content: ContentId, reason: GoneReason) {
        self.gone.retain(|gone| gone.content != content);
        if self.gone.len() >= GONE_KEPT {
            self.gone.pop_front();
        }
        self.gone.push_back(Gone { content, reason, unix_ms: clock::unix_ms() });
    }
}

impl Store {
    /// The revision counter: it moves with every change that a report would show. Bounded: only the newest value is kept.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.revision.subscribe()
    }

    pub(super) fn bump(&self) {
        self.inner.revision.send_modify(|revision| *revision = revision.wrapping_add(1));
    }

    /// Every entry that somebody wants or that is on disk, in order of content id.
    #[must_use]
    pub fn entries(&self) -> Vec<EntryView> {
        let state = locked(&self.inner.state);
        let shown = |entry: &&Entry| entry.wanted || entry.phase.has_object() || entry.live.is_some();
        state.entries.values().filter(shown).map(|entry| self.view(&state, entry)).collect()
    }

    /// One entry.
    #[must_use]
    pub fn entry(&self, content: ContentId) -> Option<EntryView> {
        let state = locked(&self.inner.state);
        state.entries.get(&content).map(|entry| self.view(&state, entry))
    }

    fn view(&self, state: &State, entry: &Entry) -> EntryView {
        let content = entry.spec.content;
        let live = |pick: fn(&Live) -> &AtomicU64, settled: u64| {
            entry.live.as_ref().map_or(settled, |live| pick(live).load(Ordering::Relaxed))
        };
        let settled_done = if entry.phase.has_object() { entry.spec.data_bytes } else { entry.staged_bytes };
        let held = state.hold(content);
        let path = || self.inner.layout.consumer_path(content, entry.spec.kind);
        EntryView {
            content,
            kind: entry.spec.kind,
            raw_bytes: entry.spec.raw_bytes,
            state: entry.phase.observed(),
            done_bytes: live(|live| &live.done_bytes, settled_done),
            data_bytes: entry.spec.data_bytes,
            moved_bytes: live(|live| &live.moved_bytes, entry.moved_bytes),
            reused_bytes: live(|live| &live.reused_bytes, entry.reused_bytes),
            allocated_bytes: entry.allocated(),
            leases: state.n_leases(content),
            last_used_unix_ms: entry.last_used_unix_ms,
            hold: held.hold,
            local_pin: held.local_pin,
            path: entry.phase.is_active().then(path),
        }
    }

    /// Entries that left the cache since the store was opened, oldest first, at most 1,024. An entry that came back is
    /// no longer listed.
    #[must_use]
    pub fn gone(&self) -> Vec<Gone> {
        locked(&self.inner.state).gone.iter().copied().collect()
    }

    /// Notes that a content is wanted, so that it is reported as `queued` before its transfer begins.
    pub fn want(&self, spec: ContentSpec) {
        let mut state = locked(&self.inner.state);
        state.gone.retain(|gone| gone.content != spec.content);
        let entry = state.entries.entry(spec.content).or_insert_with(|| Entry::new(spec, Phase::Queued));
        if !entry.wanted {
            entry.wanted = true;
            drop(state);
            self.bump();
        }
    }

    /// Notes that nobody wants a content any more. One that never got bytes vanishes; all else stays as unheld cache.
    pub fn unwant(&self, content: ContentId) {
        let mut state = locked(&self.inner.state);
        let Some(entry) = state.entries.get_mut(&content) else { return };
        entry.wanted = false;
        if entry.live.is_none() && !entry.phase.has_object() && entry.allocated_bytes == 0 {
            state.entries.remove(&content);
        }
        drop(state);
        self.bump();
    }

    /// Notes why a content could not be fetched, and when the next try is planned.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or [`StoreError::Step`] if the content is complete.
    pub fn note_failure(
        &self,
        content: ContentId,
        fault: FaultCode,
        text: String,
        next_try_unix_ms: u64,
    ) -> Result<(), StoreError> {
        locked(&self.inner.state).entry(content)?.step(Step::Fail { fault, text, next_try_unix_ms })?;
        self.bump();
        Ok(())
    }

    /// Notes that a consumer used the content now.
    pub fn touch(&self, content: ContentId) {
        if let Some(entry) = locked(&self.inner.state).entries.get_mut(&content) {
            entry.last_used_unix_ms = clock::unix_ms();
        }
    }

    /// Figures for the pulse.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file system does not answer.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        let state = locked(&self.inner.state);
        let usage = self.usage(&state)?;
        Ok(StoreStats {
            budget_bytes: usage.budget_bytes,
            used_bytes: usage.committed_bytes(),
            free_bytes: usage.free_bytes,
            floor_bytes: usage.floor_bytes,
            degraded: state.degraded.clone(),
        })
    }

    /// The cache at this moment, as `logic::budget` wants it.
    pub(super) fn usage(&self, state: &State) -> Result<Usage, StoreError> {
        let dir = &self.inner.config.dir;
        let vfs = nix::sys::statvfs::statvfs(dir).map_err(|error| StoreError::Io {
            what: "look at the file system of",
            path: dir.clone(),
            source: error.into(),
        })?;
        let mut usage = Usage {
            budget_bytes: self.inner.config.budget_bytes,
            used_bytes: state.quarantine_bytes
                + state.spool_bytes()
                + state.trash.iter().map(|trash| trash.bytes).sum::<u64>(),
            reserved_bytes: 0,
            free_bytes: vfs.blocks_available() * vfs.fragment_size(),
            floor_bytes: self.inner.config.floor_bytes,
        };
        for entry in state.entries.values() {
            let allocated = entry.allocated();
            usage.used_bytes += allocated;
            if let Some(live) = &entry.live {
                usage.reserved_bytes += live.reservation_bytes.saturating_sub(allocated);
            }
        }
        Ok(usage)
    }

    /// Writes rows to the index; a broken index is built anew from memory.
    pub(super) fn index_rows(&self, rows: &[Row]) -> Result<(), StoreError> {
        let Err(why) = self.inner.index.put(rows) else { return Ok(()) };
        let mut all: Vec<Row> = locked(&self.inner.state).entries.values().filter_map(Entry::row).collect();
        all.retain(|row| rows.iter().all(|new| new.spec.content != row.spec.content));
        all.extend_from_slice(rows);
        self.inner.index.rebuild(&all, &why)
    }

    /// Removes a row; a broken index is built anew from memory, where the entry is no longer active.
    pub(super) fn index_remove(&self, content: ContentId) -> Result<(), StoreError> {
        let Err(why) = self.inner.index.remove(content) else { return Ok(()) };
        let all: Vec<Row> = locked(&self.inner.state).entries.values().filter_map(Entry::row).collect();
        let rest: Vec<Row> = all.into_iter().filter(|row| row.spec.content != content).collect();
        self.inner.index.rebuild(&rest, &why)
    }

    /// Disk failures in a row after which nothing new is begun.
    const FAILURES_MAX: u32 = 3;

    /// Counts a disk failure; after three in a row the cache takes nothing new.
    pub(super) fn note_disk_failure(&self, error: &StoreError) {
        let mut state = locked(&self.inner.state);
        state.failures += 1;
        if state.failures >= Self::FAILURES_MAX && state.degraded.is_empty() {
            state.degraded = error.chain();
            tracing::error!(
                reason = state.degraded,
                "the cache takes no new content until a write succeeds again"
            );
            drop(state);
            self.bump();
        }
    }

    /// Forgets disk failures after a success.
    pub(super) fn note_disk_success(&self) {
        let mut state = locked(&self.inner.state);
        state.failures = 0;
        if !state.degraded.is_empty() {
            state.degraded.clear();
            tracing::info!("the disk takes writes again: the cache is no longer read-only");
            drop(state);
            self.bump();
        }
    }

    /// The hold that the controller's last word gives a content.
    #[must_use]
    pub fn hold_of(&self, content: ContentId) -> Hold {
        locked(&self.inner.state).hold(content).hold
    }
}
