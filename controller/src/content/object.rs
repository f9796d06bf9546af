//! One stored content, open for reading.
//!
//! **What.** Manifest pages, runs of stored chunks by one `pread`, and checks of chunks against the manifest.
//!
//! **Why no cache of our own.** The page cache holds what campaigns ask for; a second copy would only take memory.
//!
//! **Invariants.** The root and the index were checked when it was opened; every range is compared with them before
//! anything is read or allocated; a chunk is called good only after its raw bytes were hashed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use hearth_protocol::digest::{ChunkDigest, ContentId};
use hearth_protocol::manifest::{ChunkRecord, ManifestPage, ManifestRoot, PAGE_RECORDS};
use hearth_protocol::message::data::Encoding;
use hearth_protocol::piece::{PIECE_BYTES_MAX, PIECE_CHUNKS_MAX, Pieces};

use super::error::{ContentError, on};
use super::index::{IndexFile, IndexRecord};
use super::manifest_file::ManifestFile;
use super::pack::Unpacker;

/// Most stored bytes of one read: a piece is at most 8 MiB raw, and stored chunks are never longer than raw ones.
const READ_BYTES_MAX: u64 = PIECE_BYTES_MAX;

/// See the module.
#[derive(Debug)]
pub struct ContentObject {
    pub(super) content: ContentId,
    pub(super) manifest: ManifestFile,
    pub(super) index: IndexFile,
    pub(super) object: File,
    pub(super) object_path: PathBuf,
    pub(super) pieces: OnceLock<Arc<Pieces>>,
}

/// One chunk of a [`StoredRun`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StoredChunk {
    /// Index of the chunk in the content.
    pub chunk: u32,
    /// How its bytes are packed.
    pub encoding: Encoding,
    /// How many bytes of the run are its.
    pub stored_len: u32,
}

/// Stored bytes of consecutive chunks.
#[derive(Clone, Debug)]
pub struct StoredRun {
    /// The chunks, in order.
    pub chunks: Vec<StoredChunk>,
    /// Their stored bytes, one after the other.
    pub bytes: Bytes,
}

impl ContentObject {
    /// The content's id.
    #[must_use]
    pub const fn content(&self) -> ContentId {
        self.content
    }

    /// The checked root.
    #[must_use]
    pub const fn root(&self) -> &ManifestRoot {
        &self.manifest.root
    }

    /// The encoded root, as it goes over the wire.
    #[must_use]
    pub fn manifest_root(&self) -> Bytes {
        self.manifest.root_bytes.clone()
    }

    /// Stored length of all chunks, in bytes.
    #[must_use]
    pub const fn stored_bytes(&self) -> u64 {
        self.index.header.object_bytes
    }

    /// The encoded page `index`, checked against the root.
    ///
    /// # Errors
    /// [`ContentError::Range`] past the last page, [`ContentError::Damaged`], [`ContentError::File`].
    pub fn manifest_page(&self, index: u32) -> Result<Bytes, ContentError> {
        self.page(index).map(|(bytes, _)| bytes)
    }

    fn page(&self, index: u32) -> Result<(Bytes, ManifestPage), ContentError> {
        if index >= self.root().n_pages() {
            return Err(self.range(index.saturating_mul(PAGE_RECORDS), 1));
        }
        let read = self.manifest.page(index).map_err(on("read", &self.object_path))?;
        read.map_err(|_| self.damaged("manifest"))
    }

    /// Place, raw length and digest of `n` chunks from `first` on.
    ///
    /// # Errors
    /// [`ContentError::Range`], [`ContentError::Damaged`], [`ContentError::File`].
    pub fn chunk_range(&self, first: u32, n: u32) -> Result<Vec<ChunkRecord>, ContentError> {
        self.check_range(first, n)?;
        let mut records = Vec::with_capacity(n as usize);
        let end = first + n;
        let mut at = first;
        while at < end {
            let (_, page) = self.page(at / PAGE_RECORDS)?;
            let skip = (at - page.first_chunk()) as usize;
            records.extend(page.records().iter().skip(skip).take((end - at) as usize).copied());
            at = page.first_chunk().saturating_add(PAGE_RECORDS).min(end);
        }
        Ok(records)
    }

    /// The content's cut into pieces; made once from the whole manifest and kept.
    ///
    /// # Errors
    /// [`ContentError::Damaged`], [`ContentError::File`].
    pub fn pieces(&self) -> Result<Arc<Pieces>, ContentError> {
        if let Some(pieces) = self.pieces.get() {
            return Ok(Arc::clone(pieces));
        }
        let mut pieces = Pieces::new(self.root().data_bytes());
        for page in 0..self.root().n_pages() {
            self.page(page)?.1.records().iter().for_each(|record| pieces.push(record.raw_len));
        }
        Ok(Arc::clone(self.pieces.get_or_init(|| Arc::new(pieces))))
    }

    /// Reads the stored bytes of `n` chunks from `first` on, with one `pread` unless a chunk was mended and moved.
    ///
    /// # Errors
    /// [`ContentError::Range`] for chunks that do not exist or more than a piece holds; [`ContentError::Damaged`],
    /// [`ContentError::File`].
    pub fn read_stored(&self, first: u32, n: u32) -> Result<StoredRun, ContentError> {
        self.check_range(first, n)?;
        let records = self.records(first, n)?;
        let total: u64 = records.iter().map(|record| u64::from(record.stored_len)).sum();
        if total > READ_BYTES_MAX {
            return Err(self.range(first, n));
        }
        let total = usize::try_from(total).expect("at most 8 MiB by the check above");
        let mut bytes = vec![0; total];
        let mut done = 0;
        let mut at = 0;
        while at < records.len() {
            let start = records[at].offset;
            let mut len = 0;
            while at < records.len() && records[at].offset == start + len {
                len += u64::from(records[at].stored_len);
                at += 1;
            }
            let end = done + usize::try_from(len).expect("at most the total");
            self.object.read_exact_at(&mut bytes[done..end], start).map_err(on("read", &self.object_path))?;
            done = end;
        }
        let chunks = (first..).zip(&records);
        let chunks = chunks.map(|(chunk, record)| StoredChunk {
            chunk,
            encoding: record.encoding,
            stored_len: record.stored_len,
        });
        Ok(StoredRun { chunks: chunks.collect(), bytes: bytes.into() })
    }

    /// Lengths and encodings of `n` stored chunks from `first` on, without their bytes.
    ///
    /// # Errors
    /// As [`ContentObject::read_stored`].
    pub fn stored_chunks(&self, first: u32, n: u32) -> Result<Vec<StoredChunk>, ContentError> {
        self.check_range(first, n)?;
        let stored = |(chunk, record): (u32, IndexRecord)| StoredChunk {
            chunk,
            encoding: record.encoding,
            stored_len: record.stored_len,
        };
        Ok((first..).zip(self.records(first, n)?).map(stored).collect())
    }

    fn records(&self, first: u32, n: u32) -> Result<Vec<IndexRecord>, ContentError> {
        let records = self.index.records(first, n).map_err(on("read", &self.object_path))?;
        records.map_err(|_| self.damaged("index"))
    }

    /// Whether chunk `chunk` unpacks to the bytes its manifest record names.
    ///
    /// # Errors
    /// [`ContentError::Range`], [`ContentError::File`]; a damaged manifest or index is [`ContentError::Damaged`].
    pub fn verify_chunk(&self, chunk: u32) -> Result<bool, ContentError> {
        let record = self.chunk_range(chunk, 1)?;
        let mut bad = Vec::new();
        let mut unpacker = Unpacker::new().map_err(|source| ContentError::Pack { source })?;
        self.verify_run(chunk, &record, &mut unpacker, &mut Vec::new(), &mut bad)?;
        Ok(bad.is_empty())
    }

    /// Hashes every chunk on `threads` threads; returns those that are bad, in order. `progress` gets the number of
    /// chunks done so far, from any thread.
    ///
    /// # Errors
    /// [`ContentError::Damaged`] for a damaged manifest or index, [`ContentError::File`], [`ContentError::Cancelled`].
    pub fn verify_all(
        &self,
        threads: usize,
        cancel: &AtomicBool,
        progress: &(dyn Fn(u32) + Sync),
    ) -> Result<Vec<u32>, ContentError> {
        let (next, done) = (AtomicU32::new(0), AtomicU32::new(0));
        let bad = Mutex::new(Vec::new());
        let work = || -> Result<(), ContentError> {
            let mut unpacker = Unpacker::new().map_err(|source| ContentError::Pack { source })?;
            let (mut raw, mut mine) = (Vec::new(), Vec::new());
            loop {
                let page = next.fetch_add(1, Ordering::Relaxed);
                if page >= self.root().n_pages() {
                    break;
                }
                let (_, page) = self.page(page)?;
                // 32 chunks are at most 8 MiB.
                for (first, records) in (page.first_chunk()..).step_by(32).zip(page.records().chunks(32)) {
                    if cancel.load(Ordering::Relaxed) {
                        return Err(ContentError::Cancelled);
                    }
                    self.verify_run(first, records, &mut unpacker, &mut raw, &mut mine)?;
                    let n = u32::try_from(records.len()).unwrap_or(0);
                    progress(done.fetch_add(n, Ordering::Relaxed) + n);
                }
            }
            bad.lock().unwrap_or_else(PoisonError::into_inner).append(&mut mine);
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads.max(1)).map(|_| scope.spawn(work)).collect();
            let first = work();
            workers
                .into_iter()
                .map(|worker| worker.join().expect("verify does not panic"))
                .fold(first, Result::and)
        })?;
        let mut bad = bad.into_inner().unwrap_or_else(PoisonError::into_inner);
        bad.sort_unstable();
        Ok(bad)
    }

    fn verify_run(
        &self,
        first: u32,
        records: &[ChunkRecord],
        unpacker: &mut Unpacker,
        raw: &mut Vec<u8>,
        bad: &mut Vec<u32>,
    ) -> Result<(), ContentError> {
        let run = self.read_stored(first, u32::try_from(records.len()).unwrap_or(u32::MAX))?;
        let mut rest = run.bytes.as_ref();
        for (stored, record) in run.chunks.iter().zip(records) {
            let (bytes, more) = rest.split_at(stored.stored_len as usize);
            rest = more;
            let good = unpacker.unpack(stored.encoding, bytes, record.raw_len, raw)
                && ChunkDigest::of(raw) == record.digest;
            if !good {
                bad.push(stored.chunk);
            }
        }
        Ok(())
    }

    fn check_range(&self, first: u32, n: u32) -> Result<(), ContentError> {
        let end = u64::from(first) + u64::from(n);
        if n == 0 || n > PIECE_CHUNKS_MAX || end > self.root().n_chunks().into() {
            return Err(self.range(first, n));
        }
        Ok(())
    }

    fn range(&self, first: u32, n: u32) -> ContentError {
        ContentError::Range {
            content: self.content,
            first,
            end: u64::from(first) + u64::from(n),
            n_chunks: self.root().n_chunks(),
            max: PIECE_CHUNKS_MAX,
        }
    }

    fn damaged(&self, part: &'static str) -> ContentError {
        ContentError::Damaged { content: self.content, part }
    }
}
