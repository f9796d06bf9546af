//! Checking manifests that come from disk or network.
//!
//! **What.** A root is decoded with limits; a page is decoded against its root; a [`ManifestWalk`] joins the pages.
//! **Why three steps.** A page must be usable alone (lazy reads), yet sums and joins can only be checked in order.
//! **Invariants.** Nothing is allocated before a length was compared with a limit; no input panics.

use super::{
    BLOCK_BYTES, CHUNK_BYTES_MAX, ChunkRecord, Chunker, DATA_BYTES_MAX, FILE_CHUNK_BYTES, MAGIC,
    ManifestPage, ManifestRoot, PAGE_HEADER_BYTES, PAGE_RECORDS, RAW_BYTES_MAX, RECORD_BYTES, ROOT_BYTES_MAX,
    ROOT_HEADER_BYTES,
};
use crate::digest::{ChunkDigest, ContentId, PageDigest};
use crate::words::ContentKind;

/// Why bytes are not the manifest they should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// The root is not one of ours.
    #[error("manifest root: wrong {field}")]
    Root {
        /// The field that is wrong.
        field: &'static str,
    },
    /// The root's BLAKE3 is not the content id that was asked for.
    #[error("manifest root has content id {got}, expected {expected}")]
    WrongContent {
        /// Content id of the bytes.
        got: ContentId,
        /// Content id that was asked for.
        expected: ContentId,
    },
    /// A page's BLAKE3, length, index or count differs from what the root says.
    #[error("manifest page {page} is not the page its root names")]
    Page {
        /// Index of the page.
        page: u32,
    },
    /// A chunk overlaps, passes the end, or has a forbidden length.
    #[error("manifest record of chunk {chunk} is invalid")]
    Record {
        /// Index of the chunk in the content.
        chunk: u32,
    },
    /// The pages do not join, or their sums differ from the root's.
    #[error("manifest pages do not add up to their root")]
    Sums,
    /// A limit of the format is passed.
    #[error(
        "content of {raw_bytes} B virtual and {data_bytes} B data passes the limits of 16 TiB and 4 TiB (or 33.5 million chunks)"
    )]
    TooLarge {
        /// Virtual size in bytes.
        raw_bytes: u64,
        /// Non-zero bytes.
        data_bytes: u64,
    },
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn digest_at(bytes: &[u8], at: usize) -> [u8; 32] {
    bytes.get(at..at + 32).and_then(|b| b.try_into().ok()).unwrap_or([0; 32])
}

impl ManifestRoot {
    /// Decodes a root and checks that it is the one of content `expected`.
    ///
    /// # Errors
    /// [`ManifestError::WrongContent`], [`ManifestError::Root`] or [`ManifestError::TooLarge`].
    pub fn decode_as(bytes: &[u8], expected: ContentId) -> Result<Self, ManifestError> {
        let got = ContentId::of(bytes);
        if got != expected {
            return Err(ManifestError::WrongContent { got, expected });
        }
        Self::decode(bytes)
    }

    /// Decodes a root.
    ///
    /// # Errors
    /// [`ManifestError::Root`] or [`ManifestError::TooLarge`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let wrong = |field| ManifestError::Root { field };
        if bytes.len() < ROOT_HEADER_BYTES || bytes.len() > ROOT_BYTES_MAX {
            return Err(wrong("length"));
        }
        if !bytes.starts_with(MAGIC) {
            return Err(wrong("magic"));
        }
        let (kind, chunker) = match (bytes[8], bytes[9]) {
            (0, 2) => (ContentKind::Disk, Chunker::BlockMark13),
            (1, 1) => (ContentKind::File, Chunker::Fixed64K),
            _ => return Err(wrong("kind or chunker")),
        };
        if bytes[10..12] != [0; 2] {
            return Err(wrong("reserved bytes"));
        }
        let (n_chunks, raw_bytes, data_bytes) = (u32_at(bytes, 12), u64_at(bytes, 16), u64_at(bytes, 24));
        if raw_bytes > RAW_BYTES_MAX || data_bytes > DATA_BYTES_MAX {
            return Err(ManifestError::TooLarge { raw_bytes, data_bytes });
        }
        let data_max = u64::from(n_chunks) * u64::from(CHUNK_BYTES_MAX);
        if raw_bytes == 0
            || data_bytes > raw_bytes
            || data_bytes < u64::from(n_chunks)
            || data_bytes > data_max
        {
            return Err(wrong("sizes"));
        }
        let n_pages = u32_at(bytes, 32);
        let pages = &bytes[ROOT_HEADER_BYTES..];
        let padding = u32_at(bytes, 36);
        if n_pages != n_chunks.div_ceil(PAGE_RECORDS) || pages.len() != n_pages as usize * 32 || padding != 0
        {
            return Err(wrong("page count"));
        }
        let pages = pages.chunks_exact(32).map(|page| PageDigest::from_bytes(digest_at(page, 0))).collect();
        Ok(Self { kind, chunker, n_chunks, raw_bytes, data_bytes, pages })
    }

    /// Decodes page `index` and checks it against this root.
    ///
    /// # Errors
    /// [`ManifestError::Page`] or [`ManifestError::Record`].
    pub fn decode_page(&self, index: u32, bytes: &[u8]) -> Result<ManifestPage, ManifestError> {
        let n_records = self.page_records(index);
        let wrong = ManifestError::Page { page: index };
        if n_records == 0 || bytes.len() != self.page_bytes(index) {
            return Err(wrong);
        }
        if self.page_digest(index) != Some(PageDigest::of(bytes))
            || u32_at(bytes, 0) != index
            || u32_at(bytes, 4) != n_records
        {
            return Err(wrong);
        }
        let first_chunk = index * PAGE_RECORDS;
        let start = u64_at(bytes, 8);
        let mut end = start;
        let mut records = Vec::with_capacity(n_records as usize);
        for (chunk, record) in (first_chunk..).zip(bytes[PAGE_HEADER_BYTES..].chunks_exact(RECORD_BYTES)) {
            let raw_len = u32_at(record, 8);
            let offset = end.checked_add(u64_at(record, 0)).filter(|offset| *offset < self.raw_bytes);
            let record = offset.map(|offset| ChunkRecord {
                offset,
                raw_len,
                digest: ChunkDigest::from_bytes(digest_at(record, 12)),
            });
            let record =
                record.filter(|record| self.allows(record)).ok_or(ManifestError::Record { chunk })?;
            end = record.end();
            records.push(record);
        }
        Ok(ManifestPage { first_chunk, start, records })
    }

    /// Lengths and places that the kind allows. `offset` is below `raw_bytes`, so the sums cannot overflow.
    fn allows(&self, record: &ChunkRecord) -> bool {
        let (len, last) = (record.raw_len, record.end() == self.raw_bytes);
        let fits = len > 0 && len <= CHUNK_BYTES_MAX && record.end() <= self.raw_bytes;
        match self.kind {
            ContentKind::Disk => {
                fits && record.offset.is_multiple_of(BLOCK_BYTES)
                    && (last || u64::from(len).is_multiple_of(BLOCK_BYTES))
            }
            ContentKind::File => {
                fits && record.offset.is_multiple_of(u64::from(FILE_CHUNK_BYTES))
                    && (len == FILE_CHUNK_BYTES || (last && len < FILE_CHUNK_BYTES))
            }
        }
    }
}

/// Joins pages in order; see the module.
#[derive(Debug)]
pub struct ManifestWalk<'a> {
    root: &'a ManifestRoot,
    next_page: u32,
    end: u64,
    data_bytes: u64,
}

impl<'a> ManifestWalk<'a> {
    /// A walk over all pages of `root`.
    #[must_use]
    pub const fn new(root: &'a ManifestRoot) -> Self {
        Self { root, next_page: 0, end: 0, data_bytes: 0 }
    }

    /// Index of the page that `step` wants next, or `None` when all were given.
    #[must_use]
    pub fn wants(&self) -> Option<u32> {
        (self.next_page < self.root.n_pages()).then_some(self.next_page)
    }

    /// Checks the next page and its joint with the page before.
    ///
    /// # Errors
    /// As [`ManifestRoot::decode_page`], and [`ManifestError::Sums`] at a wrong joint.
    pub fn step(&mut self, bytes: &[u8]) -> Result<ManifestPage, ManifestError> {
        let page = self.root.decode_page(self.next_page, bytes)?;
        if page.start != self.end {
            return Err(ManifestError::Sums);
        }
        self.next_page += 1;
        self.end = page.end();
        self.data_bytes += page.records.iter().map(|record| u64::from(record.raw_len)).sum::<u64>();
        Ok(page)
    }

    /// Checks that nothing is missing.
    ///
    /// # Errors
    /// [`ManifestError::Sums`].
    pub fn finish(self) -> Result<(), ManifestError> {
        let whole = self.wants().is_none() && self.data_bytes == self.root.data_bytes;
        if whole { Ok(()) } else { Err(ManifestError::Sums) }
    }
}
