//! Chunks that stand more than once in the content that is fetched.
//!
//! **What.** `prepare` leaves all but one of equal chunks out of what is to be fetched; `fill_repeats` copies them inside
//! the staging file once that one is there.
//! **Why at the end and not when it comes.** The two decode workers write in order of the file; a copy to another place in
//! the middle of it would make them seek, and a stop would have to be remembered. The bytes are still in the page cache.
//! **Invariants.** A copy is hashed after it was read and before it is written, and again with everything else at the end.
//! A chunk whose other place is not there or is wrong stays needed, and is fetched.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;

use hearth_protocol::digest::ChunkDigest;
use hearth_protocol::mask::ChunkMask;

use super::error::StoreError;
use super::locked;
use super::manifest_file::ManifestFile;
use super::reuse::prefix;
use super::staging::Staging;
use super::sweep::{Progress, ProgressStep};
use crate::logic::repeat::{REPEATS_MAX, WINDOW_CHUNKS, repeats};

impl Staging {
    /// Takes chunks out of `need` that stand elsewhere in this content, and remembers where.
    pub(super) fn find_repeats(
        &self,
        manifest: &ManifestFile,
        need: &mut ChunkMask,
    ) -> Result<(), StoreError> {
        let n_chunks = need.len();
        let mut found = Vec::new();
        let mut first = 0;
        while first < n_chunks && !need.is_empty() && found.len() < REPEATS_MAX {
            let until = n_chunks.min(first.saturating_add(WINDOW_CHUNKS));
            let mut window = Vec::with_capacity((until - first) as usize);
            for from in (first..until).step_by(super::reuse::RUN_ENTRIES) {
                let to = until
                    .min(from.saturating_add(u32::try_from(super::reuse::RUN_ENTRIES).unwrap_or(u32::MAX)));
                let records = manifest.records(from..to)?;
                window.extend((from..).zip(&records).map(|(chunk, record)| (prefix(&record.digest), chunk)));
            }
            found.extend(repeats(&mut window, |chunk| need.contains(chunk)));
            first = until;
        }
        found.truncate(REPEATS_MAX);
        // In order of the file: copies are written front to back.
        found.sort_unstable_by_key(|repeat| repeat.chunk);
        found.iter().for_each(|repeat| need.remove(repeat.chunk));
        *locked(&self.repeats) = found;
        Ok(())
    }

    /// Copies the chunks that stand elsewhere in this content.
    ///
    /// # Errors
    /// [`StoreError::Stopped`] if `progress` said so, [`StoreError::Io`] after which the transfer is dead.
    pub(super) fn fill_repeats(
        &self,
        progress: &(dyn Fn(Progress) -> ControlFlow<()> + Sync),
    ) -> Result<(), StoreError> {
        let repeats = std::mem::take(&mut *locked(&self.repeats));
        if repeats.is_empty() {
            return Ok(());
        }
        let manifest = self.manifest()?;
        let need = self.need()?;
        let mut buffer = Vec::new();
        let mut done_bytes = 0;
        for repeat in repeats.iter().filter(|repeat| need.contains(repeat.chunk)) {
            if need.contains(repeat.of) {
                continue;
            }
            let (here, there) = (one(&manifest, repeat.chunk)?, one(&manifest, repeat.of)?);
            let (Some(here), Some(there)) = (here, there) else { continue };
            if here.raw_len != there.raw_len {
                continue;
            }
            buffer.resize(here.raw_len as usize, 0);
            let read = self.file.read_exact_at(&mut buffer, there.offset);
            if read.is_err() || ChunkDigest::of(&buffer) != here.digest {
                continue;
            }
            self.write_run(here.offset, &buffer)?;
            self.mark_done(&[repeat.chunk])?;
            done_bytes += u64::from(here.raw_len);
            let total_bytes = self.spec.data_bytes;
            if progress(Progress { step: ProgressStep::Reuse, done_bytes, total_bytes }).is_break() {
                // What is left is fetched by the next try, or found again by its `prepare`.
                return Err(StoreError::Stopped);
            }
        }
        Ok(())
    }
}

fn one(
    manifest: &ManifestFile,
    chunk: u32,
) -> Result<Option<hearth_protocol::manifest::ChunkRecord>, StoreError> {
    Ok(manifest.records(chunk..chunk.saturating_add(1))?.first().copied())
}
