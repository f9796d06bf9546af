//! Small contents for tests: manifest and bytes, made from keys.
//!
//! **What.** A chunk's bytes are the BLAKE3 stream of its key, so two contents with a key in common share that chunk.
//! **Why not real images.** Tests of the store need many contents with known overlaps, in milliseconds.
//! **Invariants.** The manifest is built by the protocol's own builder; gaps of zeros stand between some chunks.

use std::collections::BTreeMap;

use hearth_protocol::digest::ChunkDigest;
use hearth_protocol::manifest::ManifestBuilder;
use hearth_protocol::words::ContentKind;

/// A content in memory.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    /// Encoded root.
    pub(crate) root: Vec<u8>,
    /// Encoded pages.
    pub(crate) pages: Vec<Vec<u8>>,
    /// Bytes of chunks by raw offset.
    pub(crate) chunks: BTreeMap<u64, Vec<u8>>,
    /// Virtual size.
    pub(crate) raw_bytes: u64,
    /// Bytes of chunks.
    pub(crate) data_bytes: u64,
    /// The content id.
    pub(crate) content: hearth_protocol::digest::ContentId,
}

/// Bytes of the chunk with this key: 4 to 64 KiB, whole blocks.
pub(crate) fn chunk_bytes(key: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096 * (1 + usize::try_from(key % 16).unwrap_or(0))];
    blake3::Hasher::new().update(&key.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl Content {
    /// A disk with the chunks of these keys; after every fifth chunk comes a gap of 1 MiB of zeros.
    pub(crate) fn disk(keys: impl IntoIterator<Item = u64>) -> Self {
        let mut chunks = BTreeMap::new();
        let mut offset = 1 << 20;
        for (i, key) in keys.into_iter().enumerate() {
            let bytes = chunk_bytes(key);
            let end = offset + bytes.len() as u64;
            chunks.insert(offset, bytes);
            offset = if i % 5 == 4 { end + (1 << 20) } else { end };
        }
        Self::build(ContentKind::Disk, chunks, offset + (3 << 20))
    }

    /// Any chunks.
    pub(crate) fn build(kind: ContentKind, chunks: BTreeMap<u64, Vec<u8>>, raw_bytes: u64) -> Self {
        let mut builder = ManifestBuilder::new(kind);
        let mut pages = Vec::new();
        for (offset, bytes) in &chunks {
            let len = u32::try_from(bytes.len()).expect("chunks are small");
            let page = builder.push(*offset, len, ChunkDigest::of(bytes)).expect("chunks are in order");
            pages.extend(page.map(|page| page.bytes));
        }
        let (last, root) = builder.finish(raw_bytes).expect("the size is allowed");
        pages.extend(last.map(|page| page.bytes));
        let data_bytes = root.data_bytes();
        Self { content: root.content_id(), root: root.encode(), pages, chunks, raw_bytes, data_bytes }
    }

    /// The whole content.
    pub(crate) fn raw(&self) -> Vec<u8> {
        let mut raw = vec![0; usize::try_from(self.raw_bytes).expect("test contents are small")];
        for (offset, bytes) in &self.chunks {
            let at = usize::try_from(*offset).expect("test contents are small");
            raw[at..at + bytes.len()].copy_from_slice(bytes);
        }
        raw
    }
}
