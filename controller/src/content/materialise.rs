//! A content as the raw file that a guest would see.
//!
//! **What.** [`ContentObject::materialise`] unpacks every chunk to its place in a new sparse file.
//!
//! **Why every chunk is hashed.** What is made of the file is handed out with checksums of its own; a damaged chunk in it would
//! look right for ever.
//!
//! **Invariants.** Memory is bounded by one run of chunks. On an error the file is not whole; it lies in the caller's staging.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use hearth_protocol::digest::ChunkDigest;
use hearth_protocol::manifest::PAGE_RECORDS;

use super::error::{ContentError, on};
use super::object::ContentObject;
use super::pack::Unpacker;

/// Chunks of one read: at most 8 MiB.
const RUN_CHUNKS: u32 = 32;
const _: () =
    assert!(PAGE_RECORDS.is_multiple_of(RUN_CHUNKS), "a run stays in a page, which is read once per run");

impl ContentObject {
    /// Writes the raw bytes to the new file `path`; zeros stay holes. `progress` gets 0 to 100.
    ///
    /// # Errors
    /// [`ContentError::Damaged`] for a chunk that is not what the manifest says, [`ContentError::File`],
    /// [`ContentError::NoSpace`], [`ContentError::Cancelled`].
    pub fn materialise(
        &self,
        path: &Path,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u8),
    ) -> Result<(), ContentError> {
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(on("create", path))?;
        file.set_len(self.root().raw_bytes()).map_err(on("write", path))?;
        let mut unpacker = Unpacker::new().map_err(|source| ContentError::Pack { source })?;
        let (mut raw, total) = (Vec::new(), self.root().n_chunks());
        let mut first = 0;
        while first < total {
            if cancel.load(Ordering::Relaxed) {
                return Err(ContentError::Cancelled);
            }
            let n = RUN_CHUNKS.min(total - first);
            let (records, run) = (self.chunk_range(first, n)?, self.read_stored(first, n)?);
            let mut rest = run.bytes.as_ref();
            for (stored, record) in run.chunks.iter().zip(&records) {
                let (bytes, more) = rest.split_at(stored.stored_len as usize);
                rest = more;
                let good = unpacker.unpack(stored.encoding, bytes, record.raw_len, &mut raw)
                    && ChunkDigest::of(&raw) == record.digest;
                if !good {
                    return Err(ContentError::Damaged { content: self.content(), part: "chunk" });
                }
                file.write_all_at(&raw, record.offset).map_err(on("write", path))?;
            }
            first += n;
            progress(u8::try_from(u64::from(first) * 100 / u64::from(total)).unwrap_or(100));
        }
        Ok(())
    }
}
