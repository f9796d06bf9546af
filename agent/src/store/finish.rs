//! Turning a staging file into an object: the crash-safe end of the write protocol.
//!
//! **What.** `finish` does, in this order: fsync; hash every chunk from disk that was not hashed from there behind the
//! writers; mode 0440, fsync; manifest to `meta/`; rename to `objects/` without replacing; fsync of the folders; index row,
//! synced; and only then the entry is active.
//! **Why this order.** Each step makes durable what the next one relies on, so a crash between any two leaves either a
//! staging file that can go on, or a whole object with its manifest that recovery adopts after hashing it.
//! **Invariants.** I1, I2, I3, I4: see the module of the store.

use std::fs::Permissions;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::atomic::Ordering;
use std::time::Duration;

use hearth_protocol::mask::ChunkMask;

use super::disk::DiskFile;
use super::error::StoreError;
use super::failpoint;
use super::index::{Row, Stamp};
use super::layout::{OBJECT_MODE, Renamed, remove_if_there, rename_new, sync_dir};
use super::locked;
use super::manifest_file::ManifestFile;
use super::reuse;
use super::staging::{Life, Staging};
use super::sweep::{OnProgress, Progress, ProgressStep, Sweep, sweep};
use crate::clock;
use crate::logic::entry::Step;

/// Where the time of [`Staging::finish`] went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Finished {
    /// Copying chunks that stand more than once.
    pub repeat: Duration,
    /// Sync of the data.
    pub sync: Duration,
    /// Hashing what was not hashed from disk before.
    pub verify: Duration,
    /// Mode, manifest, rename, folders, index.
    pub publish: Duration,
    /// Share of the chunks that were hashed from disk before, behind the writers.
    pub behind_percent: u32,
}

impl Staging {
    /// Makes the content an active entry. Blocks while every chunk is hashed from disk.
    ///
    /// After [`StoreError::Damaged`] the transfer goes on: the chunks that failed are in [`Staging::need`] again.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`] if it is too early or a repeated chunk could not be copied, [`StoreError::NoManifest`], [`StoreError::Damaged`],
    /// [`StoreError::Stopped`]; [`StoreError::Io`] after which the transfer is dead and its file thrown away.
    pub fn finish(
        &self,
        progress: &(dyn Fn(Progress) -> ControlFlow<()> + Sync),
    ) -> Result<Finished, StoreError> {
        let manifest = self.manifest()?;
        let began = clock::monotonic();
        self.fill_repeats(progress)?;
        let mut times = Finished { repeat: began.elapsed(), ..Finished::default() };
        self.seal()?;
        let hashed = self.sync_and_verify(&manifest, progress, &mut times);
        let began = clock::monotonic();
        match hashed.and_then(|()| self.sealed(&manifest)) {
            Ok(row) => {
                self.publish(row)?;
                times.publish = began.elapsed();
                Ok(times)
            }
            Err(error @ (StoreError::Damaged { .. } | StoreError::Stopped)) => {
                locked(&self.written).life = Life::Open;
                let mut state = locked(&self.store.inner.state);
                state.entry(self.spec.content)?.step(Step::Reopen)?;
                drop(state);
                self.store.bump();
                Err(error)
            }
            Err(error) => self.throw_away(error),
        }
    }

    /// No byte is written from here on.
    fn seal(&self) -> Result<(), StoreError> {
        let content = self.spec.content;
        let mut written = locked(&self.written);
        let need = written.need.as_ref().ok_or(StoreError::NoManifest { content })?;
        if !need.is_empty() {
            return Err(StoreError::Incomplete { content, missing: need.count() });
        }
        match written.life {
            Life::Open => written.life = Life::Sealed,
            Life::Dead(fault) => return Err(StoreError::ThrownAway { content, fault }),
            Life::Sealed | Life::Done => {
                return Err(StoreError::State { content, state: "sealed", wanted: "caching" });
            }
        }
        drop(written);
        locked(&self.store.inner.state).entry(content)?.step(Step::Seal)?;
        self.store.bump();
        Ok(())
    }

    fn sync_and_verify(
        &self,
        manifest: &ManifestFile,
        progress: OnProgress<'_>,
        times: &mut Finished,
    ) -> Result<(), StoreError> {
        let io = |what| StoreError::io(what, &self.path);
        let began = clock::monotonic();
        let known = self.known();
        failpoint::hit("finish.sync").and_then(|()| self.file.sync_all()).map_err(io("sync"))?;
        failpoint::hit("finish.after-sync").map_err(io("sync"))?;
        let synced = clock::monotonic();
        let verified = self.verify(manifest, known.as_ref(), progress);
        times.sync = synced - began;
        times.verify = synced.elapsed();
        times.behind_percent = known.map_or(0, |known| known.count() * 100 / known.len().max(1));
        verified
    }

    fn sealed(&self, manifest: &ManifestFile) -> Result<Row, StoreError> {
        let content = self.spec.content;
        let (store, layout) = (&self.store, &self.store.inner.layout);
        let io = |what| StoreError::io(what, &self.path);
        self.file.set_permissions(Permissions::from_mode(OBJECT_MODE)).map_err(io("set the mode of"))?;
        layout.give_group(&self.file);
        failpoint::hit("finish.sync-mode").and_then(|()| self.file.sync_all()).map_err(io("sync"))?;
        failpoint::hit("finish.before-manifest").map_err(io("sync"))?;

        manifest.sync()?;
        let manifest_path = layout.manifest(content);
        let staged_manifest = layout.staging_manifest(content);
        std::fs::rename(&staged_manifest, &manifest_path)
            .map_err(StoreError::io("rename", &staged_manifest))?;
        sync_dir(&layout.meta_dir())?;
        failpoint::hit("finish.after-manifest").map_err(io("rename"))?;

        let object_dir = layout.make_object_dir(content)?;
        let object = layout.object(content, self.spec.kind);
        if rename_new(&self.path, &object)? == Renamed::TargetExists {
            // The folder's lock and the entry's phase make this impossible; whoever put it there, it is not ours to replace.
            let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(StoreError::Io { what: "publish", path: object, source });
        }
        failpoint::hit("finish.after-rename").map_err(io("rename"))?;
        sync_dir(&object_dir)?;
        sync_dir(&layout.staging_dir())?;
        failpoint::hit("finish.after-folder-sync").map_err(io("rename"))?;

        if let Err(error) = reuse::build(manifest, &layout.chunks(content)) {
            tracing::warn!(%content, error = error.chain(), "no reuse index: other contents cannot take chunks from this one");
        }
        let meta = self.file.metadata().map_err(io("look at"))?;
        let row = Row {
            spec: self.spec,
            stamp: Stamp::of(&meta),
            moved_bytes: self.live.moved_bytes.load(Ordering::Relaxed),
            reused_bytes: self.live.reused_bytes.load(Ordering::Relaxed),
            verified_unix_ms: clock::unix_ms(),
            last_used_unix_ms: 0,
        };
        if let Err(error) = store.index_rows(&[row]) {
            // The object is whole and durable; without a row it is hashed once more after the next start.
            tracing::warn!(%content, error = error.chain(), "object has no index row");
        }
        failpoint::hit("finish.after-index").map_err(io("index"))?;
        Ok(row)
    }

    /// Hashes the file from disk. Chunks that fail are needed again.
    fn verify(
        &self,
        manifest: &ManifestFile,
        known: Option<&ChunkMask>,
        progress: OnProgress<'_>,
    ) -> Result<(), StoreError> {
        let content = self.spec.content;
        let swept = sweep(&Sweep {
            disk: &DiskFile::new(&self.file, &self.path),
            path: &self.path,
            manifest,
            step: ProgressStep::Verify,
            known,
            skip_holes: false,
            progress,
        })?;
        if swept.stray_bytes {
            let source = std::io::Error::other("bytes outside the chunks are not zero");
            return Err(StoreError::Io { what: "verify", path: self.path.clone(), source });
        }
        let Some((chunks, first)) = swept.bad() else { return Ok(()) };
        let mut written = locked(&self.written);
        if let Some(need) = &mut written.need {
            (0..need.len()).filter(|chunk| !swept.good.contains(*chunk)).for_each(|chunk| need.insert(chunk));
        }
        drop(written);
        self.live.done_bytes.store(swept.good_bytes, Ordering::Relaxed);
        Err(StoreError::Damaged { content, chunks, first })
    }

    /// Shows the entry as active and gives the reservation back.
    fn publish(&self, row: Row) -> Result<(), StoreError> {
        let layout = &self.store.inner.layout;
        locked(&self.written).life = Life::Done;
        let allocated_bytes = self.file.metadata().map_or(0, |meta| meta.blocks() * 512)
            + super::recover::side_bytes(layout, self.spec.content);
        let mut state = locked(&self.store.inner.state);
        let entry = state.entry(self.spec.content)?;
        entry.step(Step::Published)?;
        entry.live = None;
        entry.stamp = Some(row.stamp);
        entry.allocated_bytes = allocated_bytes;
        entry.staged_bytes = 0;
        entry.moved_bytes = row.moved_bytes;
        entry.reused_bytes = row.reused_bytes;
        entry.verified_unix_ms = row.verified_unix_ms;
        drop(state);
        self.store.note_disk_success();
        self.store.bump();
        if remove_if_there(&layout.quarantined(self.spec.content)).is_ok_and(|was_there| was_there) {
            self.store.purge_quarantine(self.store.inner.config.staging_max_age)?;
        }
        remove_if_there(&layout.journal(self.spec.content)).map(|_| ()).or_else(|error| {
            tracing::debug!(
                error = error.chain(),
                "journal of a finished content is removed at the next start"
            );
            Ok(())
        })
    }
}
