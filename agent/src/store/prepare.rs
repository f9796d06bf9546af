//! Finding out which chunks a transfer needs.
//!
//! **What.** `prepare` hashes what an earlier try left, then takes chunks that stand in other contents of this cache, and
//! returns what must be fetched: the rest, less all but one of equal chunks (`repeat`).
//! **Why hash before sharing.** A base may have rotted on disk. Its chunk is read and hashed first, then shared by
//! `FICLONERANGE` where the file system can, else the hashed buffer is written: `copy_file_range` would write bytes that
//! nobody looked at.
//! **Invariants.** A chunk leaves the need mask only after its bytes hashed right. A base is guarded while it is read. A bad
//! base chunk is simply needed, and its base is checked soon.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use hearth_protocol::digest::{ChunkDigest, ContentId};
use hearth_protocol::manifest::{BLOCK_BYTES, ChunkRecord};
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::piece::Pieces;

use super::disk::DiskFile;
use super::error::StoreError;
use super::locked;
use super::manifest_file::ManifestFile;
use super::reader::BaseFile;
use super::reuse::{self, RUN_ENTRIES, Wanted};
use super::staging::{Life, Staging};
use super::sweep::{OnProgress, Progress, ProgressStep, Sweep, sweep};
use crate::sys;

/// Bytes per copy: one read, one write.
const COPY_BYTES: usize = 1 << 20;
const THREADS: usize = 2;

/// A needed chunk and where a base has it.
#[derive(Clone, Copy, Debug)]
struct Hit {
    chunk: u32,
    base: u32,
    offset: u64,
}

impl Staging {
    /// Says which chunks must come over the network. Call once, when all pages are there. [`Staging::need`] names more:
    /// also those that `finish` copies from another place of this content.
    ///
    /// # Errors
    /// [`StoreError::NoManifest`] if pages are missing, [`StoreError::Manifest`] if they do not join,
    /// [`StoreError::Stopped`] if `progress` said so, [`StoreError::Io`] after which the transfer is dead.
    pub fn prepare(
        &self,
        progress: &(dyn Fn(Progress) -> ControlFlow<()> + Sync),
    ) -> Result<ChunkMask, StoreError> {
        let manifest = self.manifest()?;
        self.check_announced(manifest.root())?;
        let mut pieces = Pieces::new(manifest.root().data_bytes());
        manifest.walk(|page| {
            page.records().iter().for_each(|record| pieces.push(record.raw_len));
            Ok(())
        })?;
        manifest.sync()?;
        // A second call gets the same cut.
        let pieces = Arc::new(pieces);
        self.pieces.get_or_init(|| pieces);
        let mut need = ChunkMask::full(manifest.root().n_chunks());
        let mut have_bytes = 0;
        if self.resumed {
            have_bytes = self.resume(&manifest, &mut need, progress)?;
        }
        self.live.done_bytes.store(have_bytes, Ordering::Relaxed);
        locked(&self.written).need = Some(need.clone());
        self.reuse(&manifest, need, progress)?;
        let mut fetched = self.need()?;
        self.find_repeats(&manifest, &mut fetched)?;
        self.note_allocated();
        self.store.bump();
        Ok(fetched)
    }

    /// Hashes every data extent that an earlier try left. Returns the bytes that are right.
    fn resume(
        &self,
        manifest: &ManifestFile,
        need: &mut ChunkMask,
        progress: OnProgress<'_>,
    ) -> Result<u64, StoreError> {
        let disk = DiskFile::new(&self.file, &self.path);
        let swept = sweep(&Sweep {
            disk: &disk,
            path: &self.path,
            manifest,
            step: ProgressStep::Resume,
            known: None,
            skip_holes: true,
            progress,
        })?;
        if swept.stray_bytes {
            tracing::warn!(content = %self.spec.content, "staging file has bytes outside its chunks: begun anew");
            self.file.set_len(0).map_err(StoreError::io("truncate", &self.path))?;
            self.file.set_len(self.spec.raw_bytes).map_err(StoreError::io("truncate", &self.path))?;
            return Ok(0);
        }
        if swept.good_bytes < self.hint.done_bytes {
            let lost_bytes = self.hint.done_bytes - swept.good_bytes;
            tracing::warn!(content = %self.spec.content, lost_bytes, "the disk lost bytes that it had acknowledged");
        }
        swept.good.iter().for_each(|chunk| need.remove(chunk));
        if disk.is_direct() {
            self.note_known(&swept.good);
        }
        Ok(swept.good_bytes)
    }

    /// Takes what other contents have, batch by batch.
    fn reuse(
        &self,
        manifest: &ManifestFile,
        mut need: ChunkMask,
        progress: OnProgress<'_>,
    ) -> Result<(), StoreError> {
        let bases = self.store.bases(self.spec.content);
        if bases.is_empty() || need.is_empty() {
            return Ok(());
        }
        let copier = Copier {
            staging: self,
            manifest,
            bases: &bases,
            progress,
            clones: AtomicBool::new(true),
            next: AtomicUsize::new(0),
            seen_bytes: AtomicU64::new(0),
        };
        let n_chunks = need.len();
        let mut first = 0;
        while first < n_chunks {
            let until = n_chunks.min(first.saturating_add(u32::try_from(RUN_ENTRIES).unwrap_or(u32::MAX)));
            let records = manifest.records(first..until)?;
            let hits = self.find(&bases, first, &records, &mut need);
            copier.copy(&hits)?;
            first = until;
        }
        Ok(())
    }

    /// Looks needed chunks up in every base; the first base that names one serves it.
    fn find(
        &self,
        bases: &[BaseFile],
        first: u32,
        records: &[ChunkRecord],
        need: &mut ChunkMask,
    ) -> Vec<Hit> {
        let mut wanted: Vec<Wanted> = Vec::new();
        for (chunk, record) in (first..).zip(records) {
            if need.contains(chunk) {
                wanted.push((reuse::prefix(&record.digest), chunk));
            }
        }
        wanted.sort_unstable();
        let mut hits = Vec::new();
        for (base, file) in (0..).zip(bases) {
            let mut note = |chunk, offset| {
                if need.contains(chunk) {
                    need.remove(chunk);
                    hits.push(Hit { chunk, base, offset });
                }
            };
            if file.same_place {
                let stood = (first..).zip(records);
                stood.for_each(|(chunk, record)| note(chunk, record.offset));
                continue;
            }
            let path = self.store.inner.layout.chunks(file.content);
            if let Err(error) = reuse::lookup(&path, &wanted, &mut note) {
                tracing::debug!(content = %file.content, %error, "no reuse index");
            }
        }
        hits.sort_unstable_by_key(|hit| hit.chunk);
        hits
    }
}

/// Copies hits with two threads.
struct Copier<'a> {
    staging: &'a Staging,
    manifest: &'a ManifestFile,
    bases: &'a [BaseFile],
    progress: OnProgress<'a>,
    /// Whether the file system still seems able to clone.
    clones: AtomicBool,
    next: AtomicUsize,
    seen_bytes: AtomicU64,
}

impl Copier<'_> {
    fn copy(&self, hits: &[Hit]) -> Result<(), StoreError> {
        let mut records = Vec::with_capacity(hits.len());
        for hit in hits {
            records.extend(self.manifest.records(hit.chunk..hit.chunk + 1)?);
        }
        let runs = runs(hits, &records);
        self.next.store(0, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let others: Vec<_> =
                (1..THREADS).map(|_| scope.spawn(|| self.work(hits, &records, &runs))).collect();
            let mut result = self.work(hits, &records, &runs);
            for other in others {
                let theirs = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                result = result.and(theirs);
            }
            result
        })
    }

    fn work(&self, hits: &[Hit], records: &[ChunkRecord], runs: &[(usize, usize)]) -> Result<(), StoreError> {
        let mut buffer = vec![0; COPY_BYTES];
        while let Some((from, to)) = runs.get(self.next.fetch_add(1, Ordering::Relaxed)).copied() {
            let result = self.copy_run(&hits[from..to], &records[from..to], &mut buffer);
            if result.is_err() {
                // The other thread finds no further run.
                self.next.store(runs.len(), Ordering::Relaxed);
                return result;
            }
        }
        Ok(())
    }

    /// Copies chunks that stand one behind the other in the base and here.
    fn copy_run(&self, hits: &[Hit], records: &[ChunkRecord], buffer: &mut [u8]) -> Result<(), StoreError> {
        let base = &self.bases[hits[0].base as usize];
        let bytes: usize = records.iter().map(|record| record.raw_len as usize).sum();
        let buffer = &mut buffer[..bytes];
        let whole = base.file.read_exact_at(buffer, hits[0].offset).is_ok();
        let mut good = Vec::with_capacity(hits.len());
        let mut at = 0;
        for record in records {
            let slot = &buffer[at..at + record.raw_len as usize];
            at += record.raw_len as usize;
            good.push(whole && ChunkDigest::of(slot) == record.digest);
        }
        if good.iter().any(|good| !good) && !base.same_place {
            // A wrong hint or a damaged base: either way these chunks are fetched, and the base is looked at.
            self.staging.store.suspect(base.content);
        }
        let mut next = 0;
        let mut at = 0;
        while next < good.len() {
            let same = good[next..].iter().take_while(|other| **other == good[next]).count();
            let part = &records[next..next + same];
            let len: usize = part.iter().map(|record| record.raw_len as usize).sum();
            if good[next] {
                let source_offset = hits[next].offset;
                self.place(&base.file, source_offset, part[0].offset, &buffer[at..at + len])?;
                let chunks: Vec<u32> = hits[next..next + same].iter().map(|hit| hit.chunk).collect();
                self.staging.mark_done(&chunks)?;
                self.staging.live.reused_bytes.fetch_add(len as u64, Ordering::Relaxed);
            }
            at += len;
            next += same;
        }
        let done_bytes = self.seen_bytes.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        let total_bytes = self.manifest.root().data_bytes();
        let stopped =
            (self.progress)(Progress { step: ProgressStep::Reuse, done_bytes, total_bytes }).is_break();
        if stopped { Err(StoreError::Stopped) } else { Ok(()) }
    }

    /// Puts hashed bytes into the staging file: shared with the base if possible, else written.
    fn place(&self, base: &File, from: u64, to: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let len = bytes.len() as u64;
        let aligned = [from, to, len].iter().all(|number| number.is_multiple_of(BLOCK_BYTES));
        let open = locked(&self.staging.written).life == Life::Open;
        if aligned && open && self.clones.load(Ordering::Relaxed) {
            match sys::clone_range(base, from, len, &self.staging.file, to) {
                Ok(()) => return self.staging.wrote(to, len),
                Err(error) => {
                    tracing::debug!(%error, "no clone: bytes are copied");
                    self.clones.store(false, Ordering::Relaxed);
                }
            }
        }
        self.staging.write_run(to, bytes)
    }
}

/// Groups hits that are contiguous in their base and here, at most [`COPY_BYTES`] each.
fn runs(hits: &[Hit], records: &[ChunkRecord]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut bytes = 0;
    for (i, (hit, record)) in hits.iter().zip(records).enumerate() {
        let len = record.raw_len as usize;
        let joins = i > 0 && {
            let (last_hit, last) = (&hits[i - 1], &records[i - 1]);
            last_hit.base == hit.base
                && last_hit.offset + u64::from(last.raw_len) == hit.offset
                && last.end() == record.offset
                && bytes + len <= COPY_BYTES
        };
        match runs.last_mut() {
            Some(run) if joins => {
                run.1 = i + 1;
                bytes += len;
            }
            _ => {
                runs.push((i, i + 1));
                bytes = len;
            }
        }
    }
    runs
}

impl super::state::Store {
    /// Asks for a check of an active content soon.
    pub(super) fn suspect(&self, content: ContentId) {
        if let Some(entry) = locked(&self.inner.state).entries.get_mut(&content) {
            entry.suspect = true;
        }
    }
}
