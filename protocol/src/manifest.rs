//! The manifest: what the raw bytes of a content are, chunk by chunk.
//!
//! **What.** A *root* names the BLAKE3 of *pages*; a page holds up to 4,096 chunk records. The content id is the
//! BLAKE3 of the root, so whoever has the id can check the root, and whoever has the root can check any page alone.
//! **Why pages.** A 4 TiB image has tens of millions of chunks: pages travel, are checked and are read one by one,
//! and nobody holds all of them in memory. Nothing compressed is in here, so a new zstd changes no identity.
//!
//! ```text
//! root   "HRTHMAN1" | kind u8 | chunker u8 | 0 u16 | n_chunks u32 | raw_bytes u64 | data_bytes u64 | n_pages u32 | 0 u32 | digest[n_pages]
//! page   index u32 | n_records u32 | start u64 | record[n_records]
//! record zero_run u64 | raw_len u32 | digest[32]            all integers little endian, sizes in bytes
//! ```
//! `start` is the raw offset at which the page's first zero run begins; a record's chunk begins `zero_run` bytes later.
//! Bytes after the last chunk, up to `raw_bytes`, are zero.
//!
//! **Invariants.**
//! 1. `a_page_is_accepted_only_if_its_digest_and_every_record_hold`: no overlap, no chunk past the end, whole blocks.
//! 2. `a_walk_accepts_only_the_whole_manifest`: pages join without a gap, counts and sums equal the root's.

use crate::digest::{ChunkDigest, ContentId, PageDigest};
use crate::words::ContentKind;

mod build;
mod decode;
#[cfg(test)]
mod tests;

pub use build::{BuiltPage, ManifestBuilder};
pub use decode::{ManifestError, ManifestWalk};

/// Guest blocks: every chunk boundary of a disk lies on a multiple of this.
pub const BLOCK_BYTES: u64 = 4096;
/// Records of a full page.
pub const PAGE_RECORDS: u32 = 4096;
/// Largest encoded root: protects whoever decodes one. 8,190 pages, that is 33.5 million chunks or, at the chunker's
/// average of 64.5 KiB, 2 TiB of data; a content that needs more is refused at import.
pub const ROOT_BYTES_MAX: usize = 256 * 1024;
/// Largest encoded page.
pub const PAGE_BYTES_MAX: usize = PAGE_HEADER_BYTES + PAGE_RECORDS as usize * RECORD_BYTES;
/// Largest virtual size of a content: 16 TiB, ext4's largest file.
pub const RAW_BYTES_MAX: u64 = 16 << 40;
/// Most non-zero bytes of a content: 4 TiB.
pub const DATA_BYTES_MAX: u64 = 4 << 40;
/// Largest chunk: 64 blocks. Protects the receiver, which holds whole chunks in memory.
pub const CHUNK_BYTES_MAX: u32 = 256 * 1024;
/// Fixed chunk size of kind `file`.
pub const FILE_CHUNK_BYTES: u32 = 64 * 1024;

const MAGIC: &[u8; 8] = b"HRTHMAN1";
const ROOT_HEADER_BYTES: usize = 40;
const PAGE_HEADER_BYTES: usize = 16;
const RECORD_BYTES: usize = 44;

/// How a content was cut. The number is part of the identity: another rule is another number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Chunker {
    /// Every 64 KiB; kind `file`.
    Fixed64K = 1,
    /// Block-aligned content-defined: after a 4 KiB block whose xxh3-64 has low 32 bits below 2³²/13, at least 4 and
    /// at most 64 blocks, and at zero runs; kind `disk`.
    BlockMark13 = 2,
}

/// The root of a manifest. Can only be had checked: from [`ManifestRoot::decode`] or [`ManifestBuilder::finish`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ManifestRoot {
    kind: ContentKind,
    chunker: Chunker,
    n_chunks: u32,
    raw_bytes: u64,
    data_bytes: u64,
    pages: Vec<PageDigest>,
}

impl ManifestRoot {
    /// What the bytes are.
    #[must_use]
    pub const fn kind(&self) -> ContentKind {
        self.kind
    }

    /// How they were cut.
    #[must_use]
    pub const fn chunker(&self) -> Chunker {
        self.chunker
    }

    /// Number of chunks, 0 for an all-zero content.
    #[must_use]
    pub const fn n_chunks(&self) -> u32 {
        self.n_chunks
    }

    /// Size of the content as a guest sees it, in bytes; 1 ..= [`RAW_BYTES_MAX`].
    #[must_use]
    pub const fn raw_bytes(&self) -> u64 {
        self.raw_bytes
    }

    /// Sum of the chunks' raw lengths, in bytes.
    #[must_use]
    pub const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Number of pages.
    #[must_use]
    pub fn n_pages(&self) -> u32 {
        self.n_chunks.div_ceil(PAGE_RECORDS)
    }

    /// Digest that page `index` must have, or `None` past the last page.
    #[must_use]
    pub fn page_digest(&self, index: u32) -> Option<PageDigest> {
        self.pages.get(index as usize).copied()
    }

    /// Number of records that page `index` must have, 0 past the last page.
    #[must_use]
    pub fn page_records(&self, index: u32) -> u32 {
        self.n_chunks.saturating_sub(index.saturating_mul(PAGE_RECORDS)).min(PAGE_RECORDS)
    }

    /// Encoded length of page `index` in bytes, header included.
    #[must_use]
    pub fn page_bytes(&self, index: u32) -> usize {
        PAGE_HEADER_BYTES + self.page_records(index) as usize * RECORD_BYTES
    }

    /// The content id: BLAKE3 of the encoded root.
    #[must_use]
    pub fn content_id(&self) -> ContentId {
        ContentId::of(&self.encode())
    }

    /// The encoded root, at most [`ROOT_BYTES_MAX`] bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ROOT_HEADER_BYTES + self.pages.len() * 32);
        out.extend_from_slice(MAGIC);
        out.push(match self.kind {
            ContentKind::Disk => 0,
            ContentKind::File => 1,
        });
        out.push(self.chunker as u8);
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.n_chunks.to_le_bytes());
        out.extend_from_slice(&self.raw_bytes.to_le_bytes());
        out.extend_from_slice(&self.data_bytes.to_le_bytes());
        out.extend_from_slice(&self.n_pages().to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for page in &self.pages {
            out.extend_from_slice(page.as_bytes());
        }
        out
    }
}

/// One chunk, with its place in the content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChunkRecord {
    /// Raw offset of the chunk's first byte.
    pub offset: u64,
    /// Raw length in bytes, 1 ..= [`CHUNK_BYTES_MAX`].
    pub raw_len: u32,
    /// BLAKE3 of the raw bytes.
    pub digest: ChunkDigest,
}

impl ChunkRecord {
    /// Raw offset of the byte after the chunk.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset + self.raw_len as u64
    }
}

/// A checked page. Can only be had from [`ManifestRoot::decode_page`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ManifestPage {
    first_chunk: u32,
    start: u64,
    records: Vec<ChunkRecord>,
}

impl ManifestPage {
    /// Index of the page's first chunk in the content.
    #[must_use]
    pub const fn first_chunk(&self) -> u32 {
        self.first_chunk
    }

    /// The chunks, in order.
    #[must_use]
    pub fn records(&self) -> &[ChunkRecord] {
        &self.records
    }

    /// Raw offset of the byte after the page's last chunk.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.records.last().map_or(self.start, ChunkRecord::end)
    }
}
