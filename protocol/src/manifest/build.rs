//! Building a manifest while a content is being cut.
//!
//! **What.** [`ManifestBuilder`] takes chunks in order and gives each page back as soon as it is full.
//! **Why.** The importer streams: a page is written to disk and forgotten; only its digest stays.
//! **Invariants.** What `finish` returns decodes, and every page it counted decodes against it.

use super::{
    CHUNK_BYTES_MAX, Chunker, DATA_BYTES_MAX, ManifestError, ManifestRoot, PAGE_RECORDS, RAW_BYTES_MAX,
    ROOT_BYTES_MAX, ROOT_HEADER_BYTES,
};
use crate::digest::{ChunkDigest, PageDigest};
use crate::words::ContentKind;

/// An encoded page and its place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BuiltPage {
    /// Index of the page.
    pub index: u32,
    /// The encoded page.
    pub bytes: Vec<u8>,
}

/// Collects chunk records; see the module.
#[derive(Debug)]
pub struct ManifestBuilder {
    kind: ContentKind,
    chunker: Chunker,
    n_chunks: u32,
    data_bytes: u64,
    end: u64,
    page_start: u64,
    records: Vec<u8>,
    n_records: u32,
    pages: Vec<PageDigest>,
}

impl ManifestBuilder {
    /// A builder for a content of this kind; the kind decides the chunker.
    #[must_use]
    pub const fn new(kind: ContentKind) -> Self {
        let chunker = match kind {
            ContentKind::Disk => Chunker::BlockMark13,
            ContentKind::File => Chunker::Fixed64K,
        };
        Self {
            kind,
            chunker,
            n_chunks: 0,
            data_bytes: 0,
            end: 0,
            page_start: 0,
            records: Vec::new(),
            n_records: 0,
            pages: Vec::new(),
        }
    }

    /// Adds the chunk at raw `offset`; bytes between the previous chunk and this one are zero.
    /// Returns a page when this chunk filled one.
    ///
    /// # Errors
    /// [`ManifestError`] if the chunk is out of order, of a forbidden length, or past a limit.
    pub fn push(
        &mut self,
        offset: u64,
        raw_len: u32,
        digest: ChunkDigest,
    ) -> Result<Option<BuiltPage>, ManifestError> {
        let zero_run = offset.checked_sub(self.end).ok_or(ManifestError::Record { chunk: self.n_chunks })?;
        if raw_len == 0 || raw_len > CHUNK_BYTES_MAX {
            return Err(ManifestError::Record { chunk: self.n_chunks });
        }
        let data_bytes = self.data_bytes + u64::from(raw_len);
        let full = (ROOT_BYTES_MAX - ROOT_HEADER_BYTES) / 32;
        if offset > RAW_BYTES_MAX || data_bytes > DATA_BYTES_MAX || self.pages.len() == full {
            return Err(ManifestError::TooLarge { raw_bytes: offset, data_bytes });
        }
        self.records.extend_from_slice(&zero_run.to_le_bytes());
        self.records.extend_from_slice(&raw_len.to_le_bytes());
        self.records.extend_from_slice(digest.as_bytes());
        self.n_records += 1;
        self.n_chunks += 1;
        self.data_bytes = data_bytes;
        self.end = offset + u64::from(raw_len);
        Ok((self.n_records == PAGE_RECORDS).then(|| self.close_page()))
    }

    /// Ends the content at `raw_bytes`. Returns the last page, if one is open, and the root.
    ///
    /// # Errors
    /// [`ManifestError`] if `raw_bytes` is 0, too large or before the end of the last chunk.
    pub fn finish(mut self, raw_bytes: u64) -> Result<(Option<BuiltPage>, ManifestRoot), ManifestError> {
        if raw_bytes == 0 || raw_bytes > RAW_BYTES_MAX || raw_bytes < self.end {
            return Err(ManifestError::TooLarge { raw_bytes, data_bytes: self.data_bytes });
        }
        let last = (self.n_records > 0).then(|| self.close_page());
        let Self { kind, chunker, n_chunks, data_bytes, pages, .. } = self;
        Ok((last, ManifestRoot { kind, chunker, n_chunks, raw_bytes, data_bytes, pages }))
    }

    fn close_page(&mut self) -> BuiltPage {
        let index = self.n_chunks.div_ceil(PAGE_RECORDS) - 1;
        let mut bytes = Vec::with_capacity(super::PAGE_HEADER_BYTES + self.records.len());
        bytes.extend_from_slice(&index.to_le_bytes());
        bytes.extend_from_slice(&self.n_records.to_le_bytes());
        bytes.extend_from_slice(&self.page_start.to_le_bytes());
        bytes.append(&mut self.records);
        self.pages.push(PageDigest::of(&bytes));
        self.n_records = 0;
        self.page_start = self.end;
        BuiltPage { index, bytes }
    }
}
