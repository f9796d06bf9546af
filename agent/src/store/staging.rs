//! One content while it is being written.
//!
//! **What.** [`Staging`] takes the manifest, says which chunks are needed, takes verified bytes from several threads at
//! once, and becomes an object by `finish`.
//! **Why `&self`.** Two decode workers write at once; a write is one `pwrite`, and only the small progress record is locked.
//! Early write-back (`sync_file_range` every 8 MiB) lets the disk work while bytes still arrive [measured: a third less].
//! **Why one file.** All of it reads or changes the one progress record, and what is allowed depends on `life` in it; steps
//! that stand for themselves (`begin`, `prepare`, `repeat`, `behind`, `finish`) have files of their own.
//! **Invariants.** I4: nothing is written once sealing began. I5: a checkpoint is journaled after `fdatasync`. After any
//! failed write or sync the inode is thrown away and never synced again.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::manifest::{ChunkRecord, ManifestRoot};
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::piece::Pieces;

use super::behind::Behind;
use super::config::ContentSpec;
use super::error::StoreError;
use super::failpoint;
use super::journal::{Checkpoint, Journal};
use super::layout::{remove_if_there, sync_dir};
use super::locked;
use super::manifest_file::ManifestFile;
use super::state::{Live, Store};
use crate::clock;
use crate::logic::entry::Step;
use crate::logic::repeat::Repeat;
use crate::sys;

/// Bytes written between two requests for early write-back (format: measured best).
const WRITEBACK_BYTES: u64 = 8 << 20;
/// Bytes written between two checkpoints.
const CHECKPOINT_BYTES: u64 = 256 << 20;
/// Time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// Pages stored between two syncs of the manifest file: what a power loss can make us fetch again.
const PAGES_PER_SYNC: u32 = 64;

/// A content that is being written. Dropping it keeps the files for a later try.
#[derive(Debug)]
pub struct Staging {
    pub(super) store: Store,
    pub(super) spec: ContentSpec,
    pub(super) live: Arc<Live>,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) resumed: bool,
    pub(super) hint: Checkpoint,
    pub(super) journal: Mutex<Journal>,
    pub(super) manifest: Mutex<Option<Arc<ManifestFile>>>,
    pages_put: AtomicU32,
    pub(super) pieces: OnceLock<Arc<Pieces>>,
    /// Needed chunks that `finish` copies from another place of this content.
    pub(super) repeats: Mutex<Vec<Repeat>>,
    pub(super) written: Mutex<Written>,
    pub(super) behind: Mutex<Behind>,
}

/// What `begin` has opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) journal: Journal,
    pub(super) last: Checkpoint,
    pub(super) resumed: bool,
    pub(super) manifest: Option<Arc<ManifestFile>>,
}

/// Whether bytes may still be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Life {
    /// Yes.
    Open,
    /// The file is being hashed from disk.
    Sealed,
    /// A write or sync failed, or the transfer was given up: the file is gone.
    Dead(FaultCode),
    /// The file is an object.
    Done,
}

/// Progress of the writers.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) life: Life,
    /// Chunks that are not there; `None` before `prepare`.
    pub(super) need: Option<ChunkMask>,
    /// Range and bytes written since the last early write-back.
    dirty: Range<u64>,
    dirty_bytes: u64,
    /// Chunks marked done since then.
    fresh: Vec<u32>,
    /// Bytes written since the last checkpoint, and when that was.
    unsynced_bytes: u64,
    last_checkpoint: Instant,
}

impl Staging {
    pub(super) fn new(store: Store, spec: ContentSpec, live: Arc<Live>, opened: Opened) -> Self {
        let Opened { path, file, journal, last, resumed, manifest } = opened;
        live.moved_bytes.store(last.moved_bytes, Ordering::Relaxed);
        live.reused_bytes.store(last.reused_bytes, Ordering::Relaxed);
        let written = Written {
            life: Life::Open,
            need: None,
            dirty: 0..0,
            dirty_bytes: 0,
            fresh: Vec::new(),
            unsynced_bytes: 0,
            last_checkpoint: clock::monotonic(),
        };
        Self {
            store,
            spec,
            live,
            path,
            file,
            resumed,
            hint: last,
            journal: Mutex::new(journal),
            manifest: Mutex::new(manifest),
            pages_put: AtomicU32::new(0),
            pieces: OnceLock::new(),
            repeats: Mutex::default(),
            written: Mutex::new(written),
            behind: Mutex::default(),
        }
    }

    /// The content.
    #[must_use]
    pub const fn content(&self) -> ContentId {
        self.spec.content
    }

    /// What was announced.
    #[must_use]
    pub const fn spec(&self) -> ContentSpec {
        self.spec
    }

    /// The manifest's root, if it is there; after a restart it may be without having been put.
    #[must_use]
    pub fn root(&self) -> Option<ManifestRoot> {
        locked(&self.manifest).as_ref().map(|manifest| manifest.root().clone())
    }

    /// Takes the encoded root; it is checked and durable on return. A second time does nothing.
    ///
    /// # Errors
    /// [`StoreError::Manifest`] if it is not this content's root, [`StoreError::Announced`] if its sizes or kind are not
    /// those announced, [`StoreError::Io`].
    pub fn put_root(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let mut manifest = locked(&self.manifest);
        if manifest.is_some() {
            return Ok(());
        }
        let content = self.spec.content;
        let root = ManifestRoot::decode_as(bytes, content)
            .map_err(|source| StoreError::Manifest { content, source })?;
        self.check_announced(&root)?;
        let path = self.store.inner.layout.staging_manifest(content);
        *manifest = Some(Arc::new(ManifestFile::create(&path, content, bytes)?));
        Ok(())
    }

    pub(super) fn check_announced(&self, root: &ManifestRoot) -> Result<(), StoreError> {
        let ContentSpec { content, kind, raw_bytes, data_bytes } = self.spec;
        let same = root.kind() == kind && root.raw_bytes() == raw_bytes && root.data_bytes() == data_bytes;
        if same { Ok(()) } else { Err(StoreError::Announced { content }) }
    }

    pub(super) fn manifest(&self) -> Result<Arc<ManifestFile>, StoreError> {
        let manifest = locked(&self.manifest);
        manifest.as_ref().map(Arc::clone).ok_or(StoreError::NoManifest { content: self.spec.content })
    }

    /// Pages that are not there yet, in order. Reads and hashes those that are.
    ///
    /// # Errors
    /// [`StoreError::NoManifest`] before the root is there, or [`StoreError::Io`].
    pub fn pages_missing(&self) -> Result<Vec<u32>, StoreError> {
        self.manifest()?.missing()
    }

    /// Takes an encoded page. It is checked before it is stored.
    ///
    /// # Errors
    /// [`StoreError::Manifest`], [`StoreError::NoManifest`] or [`StoreError::Io`].
    pub fn put_page(&self, index: u32, bytes: &[u8]) -> Result<(), StoreError> {
        let manifest = self.manifest()?;
        manifest.put_page(index, bytes)?;
        if self.pages_put.fetch_add(1, Ordering::Relaxed) % PAGES_PER_SYNC == PAGES_PER_SYNC - 1 {
            manifest.sync()?;
        }
        Ok(())
    }

    /// The cut into pieces.
    ///
    /// # Errors
    /// [`StoreError::NoManifest`] before `prepare`.
    pub fn pieces(&self) -> Result<Arc<Pieces>, StoreError> {
        self.pieces.get().map(Arc::clone).ok_or(StoreError::NoManifest { content: self.spec.content })
    }

    /// Records of the chunks in `range`, cut to the content's length. Cheap for ranges that lie near each other.
    ///
    /// # Errors
    /// [`StoreError::NoManifest`], [`StoreError::Manifest`] or [`StoreError::Io`].
    pub fn records(&self, range: Range<u32>) -> Result<Vec<ChunkRecord>, StoreError> {
        self.manifest()?.records(range)
    }

    /// The chunks that are still needed.
    ///
    /// # Errors
    /// [`StoreError::NoManifest`] before `prepare`.
    pub fn need(&self) -> Result<ChunkMask, StoreError> {
        let written = locked(&self.written);
        written.need.clone().ok_or(StoreError::NoManifest { content: self.spec.content })
    }

    /// Counts stored bytes that came over the network.
    pub fn add_moved(&self, bytes: u64) {
        self.live.moved_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Writes bytes that the caller has hashed chunk by chunk. One `pwrite`; several threads may write at once.
    ///
    /// # Errors
    /// [`StoreError::Write`] outside the content or after sealing; after [`StoreError::Io`] the transfer is dead and its
    /// file thrown away: `begin` again.
    pub fn write_run(&self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let (content, n) = (self.spec.content, bytes.len() as u64);
        let fits = offset.checked_add(n).is_some_and(|end| end <= self.spec.raw_bytes);
        if !fits {
            return Err(StoreError::Write { content, offset, bytes: n });
        }
        self.check_open(offset, n)?;
        failpoint::hit("staging.write")
            .and_then(|()| self.file.write_all_at(bytes, offset))
            .map_err(StoreError::io("write", &self.path))
            .or_else(|error| self.throw_away(error))?;
        self.wrote(offset, n)
    }

    fn check_open(&self, offset: u64, bytes: u64) -> Result<(), StoreError> {
        let content = self.spec.content;
        match locked(&self.written).life {
            Life::Open => Ok(()),
            Life::Dead(fault) => Err(StoreError::ThrownAway { content, fault }),
            Life::Sealed | Life::Done => Err(StoreError::Write { content, offset, bytes }),
        }
    }

    /// Notes written bytes: starts write-back and makes a checkpoint when it is time.
    pub(super) fn wrote(&self, offset: u64, bytes: u64) -> Result<(), StoreError> {
        let now = clock::monotonic();
        let mut written = locked(&self.written);
        let end = offset + bytes;
        written.dirty = if written.dirty_bytes == 0 {
            offset..end
        } else {
            written.dirty.start.min(offset)..written.dirty.end.max(end)
        };
        written.dirty_bytes += bytes;
        written.unsynced_bytes += bytes;
        let late = now.saturating_duration_since(written.last_checkpoint) >= CHECKPOINT_EVERY;
        let checkpoint = late || written.unsynced_bytes >= CHECKPOINT_BYTES;
        if checkpoint {
            written.last_checkpoint = now;
            written.unsynced_bytes = 0;
        }
        let writeback = (written.dirty_bytes >= WRITEBACK_BYTES).then(|| {
            written.dirty_bytes = 0;
            (written.dirty.clone(), std::mem::take(&mut written.fresh))
        });
        drop(written);
        if let Some((range, chunks)) = writeback {
            // Only a hint to the kernel: where it is not supported the sync at the end does all the work.
            if let Err(error) = sys::start_writeback(&self.file, range.start, range.end - range.start) {
                tracing::trace!(%error, "no early write-back");
            }
            self.follow(chunks);
            self.note_allocated();
            self.store.bump();
        }
        if checkpoint { self.checkpoint() } else { Ok(()) }
    }

    pub(super) fn note_allocated(&self) {
        /// `st_blocks` counts 512-byte units, whatever the file system's block size.
        const BLOCK_UNIT: u64 = 512;
        if let Ok(meta) = self.file.metadata() {
            self.live.allocated_bytes.store(meta.blocks() * BLOCK_UNIT, Ordering::Relaxed);
        }
    }

    /// Notes chunks as written and verified. Chunks that are not needed (any more) are ignored.
    ///
    /// # Errors
    /// [`StoreError::NoManifest`] before `prepare`, or an unreadable manifest page.
    pub fn mark_done(&self, chunks: &[u32]) -> Result<(), StoreError> {
        let manifest = self.manifest()?;
        let mut lens = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let record = manifest.records(*chunk..chunk.saturating_add(1))?;
            lens.push(record.first().map_or(0, |record| u64::from(record.raw_len)));
        }
        let mut written = locked(&self.written);
        let need = written.need.as_mut().ok_or(StoreError::NoManifest { content: self.spec.content })?;
        let mut done_bytes = 0;
        for (chunk, len) in chunks.iter().zip(lens) {
            if need.contains(*chunk) {
                need.remove(*chunk);
                done_bytes += len;
            }
        }
        written.fresh.extend_from_slice(chunks);
        self.live.done_bytes.fetch_add(done_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Syncs what is written and journals how far that is. Called by itself every 256 MiB or 5 s of writing.
    ///
    /// # Errors
    /// As [`Self::write_run`].
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        self.check_open(0, 0)?;
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        // Counted before the sync, so the sync covers at least what is counted.
        let checkpoint = Checkpoint {
            done_bytes: load(&self.live.done_bytes),
            moved_bytes: load(&self.live.moved_bytes),
            reused_bytes: load(&self.live.reused_bytes),
        };
        failpoint::hit("checkpoint.sync")
            .and_then(|()| self.file.sync_data())
            .map_err(StoreError::io("sync", &self.path))
            .or_else(|error| self.throw_away(error))?;
        failpoint::hit("checkpoint.after-sync").map_err(StoreError::io("sync", &self.path))?;
        locked(&self.journal).append(checkpoint).or_else(|error| self.throw_away(error))?;
        self.note_allocated();
        self.store.bump();
        Ok(())
    }

    /// Gives the transfer up and deletes what it wrote; the manifest stays, so that it need not be fetched again.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a file cannot be deleted; it is tried again at the next start.
    pub fn abort(self) -> Result<(), StoreError> {
        locked(&self.written).life = Life::Dead(FaultCode::Stopped);
        self.delete_files()
    }

    /// After a failed write or sync: the kernel may have dropped the pages and marked them clean, so nothing in this
    /// inode can be believed any more. Always returns `Err`.
    pub(super) fn throw_away<T>(&self, error: StoreError) -> Result<T, StoreError> {
        let first = {
            let mut written = locked(&self.written);
            let first = !matches!(written.life, Life::Dead(_));
            if first {
                written.life = Life::Dead(error.fault());
            }
            first
        };
        if first {
            tracing::warn!(content = %self.spec.content, error = error.chain(), "transfer failed, its file is thrown away");
            if let Err(more) = self.delete_files() {
                tracing::warn!(
                    error = more.chain(),
                    "staging file not deleted; tried again at the next start"
                );
            }
            if !matches!(&error, StoreError::Io { source, .. } if super::error::is_full(source)) {
                self.store.note_disk_failure(&error);
            }
        }
        Err(error)
    }

    fn delete_files(&self) -> Result<(), StoreError> {
        let layout = &self.store.inner.layout;
        remove_if_there(&self.path)?;
        remove_if_there(&layout.journal(self.spec.content))?;
        // The inode lives as long as the descriptor; its blocks must not.
        self.file.set_len(0).map_err(StoreError::io("truncate", &self.path))?;
        self.live.allocated_bytes.store(0, Ordering::Relaxed);
        self.live.done_bytes.store(0, Ordering::Relaxed);
        sync_dir(&layout.staging_dir())
    }
}

impl Drop for Staging {
    /// Gives the reservation back. The files stay for a later try.
    fn drop(&mut self) {
        let content = self.spec.content;
        let life = locked(&self.written).life;
        if life == Life::Done {
            return;
        }
        let mut state = locked(&self.store.inner.state);
        let Some(entry) = state.entries.get_mut(&content) else { return };
        if !entry.live.as_ref().is_some_and(|live| Arc::ptr_eq(live, &self.live)) {
            return;
        }
        self.note_allocated();
        entry.live = None;
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        entry.allocated_bytes =
            if matches!(life, Life::Dead(_)) { 0 } else { load(&self.live.allocated_bytes) };
        entry.staged_bytes = load(&self.live.done_bytes);
        entry.moved_bytes = load(&self.live.moved_bytes);
        entry.reused_bytes = load(&self.live.reused_bytes);
        // A failure that the caller noted stays; everything else waits for its next try.
        if let Err(error) = entry.step(Step::Stop) {
            tracing::debug!(%content, %error, "transfer ended in another phase");
        }
        drop(state);
        self.store.bump();
    }
}
