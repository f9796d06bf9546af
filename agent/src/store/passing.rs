//! Reading from a content while it is still being written: what a swarm passes on.
//!
//! **What.** [`Staging::has`] says whether a chunk is there; [`Staging::read_chunk`] reads and hashes it.
//! **Why hash again.** As for finished contents: no chunk leaves the host unhashed since it was read.
//! **Invariants.** A chunk that stands elsewhere in the content and is copied at the end is not there before that.

use std::os::unix::fs::FileExt as _;

use hearth_protocol::digest::ChunkDigest;
use hearth_protocol::manifest::ChunkRecord;

use super::error::StoreError;
use super::locked;
use super::staging::{Life, Staging};

impl Staging {
    /// Whether a chunk was verified and written.
    #[must_use]
    pub fn has(&self, chunk: u32) -> bool {
        let written = locked(&self.written);
        let is_alive = !matches!(written.life, Life::Dead(_));
        is_alive && written.need.as_ref().is_some_and(|need| chunk < need.len() && !need.contains(chunk))
    }

    /// Reads a chunk into `buffer`, which takes its length, and hashes it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] past the last chunk, [`StoreError::Damaged`] if the bytes are not the chunk,
    /// [`StoreError::Manifest`] or [`StoreError::Io`].
    pub fn read_chunk(&self, chunk: u32, buffer: &mut Vec<u8>) -> Result<ChunkRecord, StoreError> {
        let content = self.content();
        let records = self.records(chunk..chunk.saturating_add(1))?;
        let record = *records.first().ok_or(StoreError::NotFound { content })?;
        buffer.resize(record.raw_len as usize, 0);
        self.file.read_exact_at(buffer, record.offset).map_err(StoreError::io("read", &self.path))?;
        if ChunkDigest::of(buffer) == record.digest {
            return Ok(record);
        }
        buffer.clear();
        Err(StoreError::Damaged { content, chunks: 1, first: chunk })
    }
}
