//! Mends a stored content.
//!
//! **What.** [`ContentStore::heal_chunks`] puts good bytes in the place of bad chunks: they are packed again and appended
//! to the object, then a new index is renamed over the old one. [`restage`] makes a content of which no file can be
//! trusted again, from somebody who has it: the root is checked against the id, the pages against the root, the chunks
//! against the pages. (From its original the importer stages it again: the same cut gives the same id.)
//!
//! **Why append.** The object may be read by a hundred agents at this moment; nothing an index points at is overwritten.
//!
//! **Invariants.** Only bytes whose BLAKE3 is the manifest's are taken; a crash leaves the old index or the new one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use hearth_protocol::digest::{ChunkDigest, ContentId};
use hearth_protocol::manifest::{ChunkRecord, ManifestRoot, ManifestWalk};

use super::error::{ContentError, on, sync_folder};
use super::index::{IndexFile, IndexRecord, IndexWriter};
use super::pack::Packer;
use super::store::{ContentStore, rename};
use super::write::{ObjectWriter, PackedChunk, Staged, new_file};

/// Records copied per read while an index is rewritten.
const STEP_RECORDS: u32 = 16 << 10;

impl ContentStore {
    /// Stores good raw bytes for damaged chunks. `chunks` are (index, raw bytes).
    ///
    /// # Errors
    /// [`ContentError::WrongBytes`] if bytes are not the chunk's; [`ContentError::NotFound`],
    /// [`ContentError::Damaged`] (the manifest or the index: stage the content again), [`ContentError::File`],
    /// [`ContentError::NoSpace`]. Nothing has changed then.
    pub fn heal_chunks(&self, content: ContentId, chunks: &[(u32, Bytes)]) -> Result<(), ContentError> {
        let _change = self.changing();
        self.forget(content);
        let old = self.open(content)?;
        for (chunk, raw) in chunks {
            let record = old.chunk_range(*chunk, 1)?;
            let good = record.first().is_some_and(|record| record.digest == ChunkDigest::of(raw));
            if !good {
                return Err(ContentError::WrongBytes { content, chunk: *chunk });
            }
        }
        let path = &old.object_path;
        let object = OpenOptions::new().write(true).open(path).map_err(on("open", path))?;
        let mut end = object.metadata().map_err(on("open", path))?.len();
        let mut packer = Packer::new().map_err(|source| ContentError::Pack { source })?;
        let mut moved = std::collections::BTreeMap::new();
        for (chunk, raw) in chunks {
            let mut stored = Vec::new();
            let encoding = packer.pack(raw, &mut stored).map_err(|source| ContentError::Pack { source })?;
            object.write_all_at(&stored, end).map_err(on("write", path))?;
            let stored_len = u32::try_from(stored.len()).expect("a stored chunk is at most 256 KiB");
            moved.insert(*chunk, IndexRecord { offset: end, stored_len, encoding });
            end += u64::from(stored_len);
        }
        object.sync_all().map_err(on("sync", path))?;
        let names = self.names(content);
        let new_path = names.index().with_extension("index.new");
        if new_path.exists() {
            std::fs::remove_file(&new_path).map_err(on("remove", &new_path))?;
        }
        rewrite(&old.index, &new_path, old.index.header.generation, end, |chunk, record| {
            moved.get(&chunk).copied().unwrap_or(record)
        })?;
        rename(&new_path, &names.index())?;
        sync_folder(&names.folder)?;
        self.forget(content);
        Ok(())
    }
}

/// Who can give the parts of a content: an agent, through the session that asks it.
pub trait ContentSource {
    /// The encoded root.
    ///
    /// # Errors
    /// Whatever keeps it from being had.
    fn root(&mut self) -> Result<Bytes, ContentError>;
    /// An encoded page.
    ///
    /// # Errors
    /// Whatever keeps it from being had.
    fn page(&mut self, index: u32) -> Result<Bytes, ContentError>;
    /// Raw bytes of a chunk.
    ///
    /// # Errors
    /// Whatever keeps them from being had.
    fn chunk(&mut self, index: u32, record: &ChunkRecord) -> Result<Bytes, ContentError>;
}

/// Stages `content` again from its parts, in a `staging` folder that must not exist. Publish the result.
///
/// # Errors
/// [`ContentError::WrongBytes`] for a chunk and [`ContentError::Manifest`] for a root or page that is not the
/// content's; [`ContentError::File`], [`ContentError::NoSpace`]; what the source answers.
pub fn restage(
    content: ContentId,
    source: &mut dyn ContentSource,
    staging: &Path,
) -> Result<Staged, ContentError> {
    let root = ManifestRoot::decode_as(&source.root()?, content)?;
    let mut writer = ObjectWriter::create(staging, root.kind())?;
    let mut packer = Packer::new().map_err(|source| ContentError::Pack { source })?;
    let mut walk = ManifestWalk::new(&root);
    while let Some(index) = walk.wants() {
        let page = walk.step(&source.page(index)?)?;
        for (chunk, record) in (page.first_chunk()..).zip(page.records()) {
            let raw = source.chunk(chunk, record)?;
            if raw.len() != record.raw_len as usize || ChunkDigest::of(&raw) != record.digest {
                return Err(ContentError::WrongBytes { content, chunk });
            }
            let mut stored = Vec::new();
            let encoding = packer.pack(&raw, &mut stored).map_err(|source| ContentError::Pack { source })?;
            let stored_len = u32::try_from(stored.len()).expect("a stored chunk is at most 256 KiB");
            let ChunkRecord { offset, raw_len, digest } = *record;
            writer.push(&[PackedChunk { offset, raw_len, digest, stored_len, encoding }], &stored)?;
        }
    }
    walk.finish()?;
    writer.finish(root.raw_bytes())
}

/// Writes a copy of `index` to `path`, record by record.
fn rewrite(
    index: &IndexFile,
    path: &Path,
    generation: u32,
    object_bytes: u64,
    change: impl Fn(u32, IndexRecord) -> IndexRecord,
) -> Result<(), ContentError> {
    let header = index.header;
    let mut writer = IndexWriter::new(new_file(path)?).map_err(on("write", path))?;
    for first in (0..header.n_chunks).step_by(STEP_RECORDS as usize) {
        let n = (header.n_chunks - first).min(STEP_RECORDS);
        let records = index.records(first, n).map_err(on("read", path))?;
        let records =
            records.map_err(|_| ContentError::Damaged { content: header.content, part: "index" })?;
        for (chunk, record) in (first..).zip(records) {
            writer.push(change(chunk, record)).map_err(on("write", path))?;
        }
    }
    writer.finish(header.content, generation, object_bytes).map_err(on("sync", path))
}

/// Gives a staged index another generation.
pub(super) fn renumber(path: &Path, generation: u32, object_bytes: u64) -> Result<(), ContentError> {
    let file = File::open(path).map_err(on("open", path))?;
    let index = IndexFile::open(file).map_err(on("read", path))?;
    let index = index
        .map_err(|source| on("read", path)(std::io::Error::new(std::io::ErrorKind::InvalidData, source)))?;
    let new_path = path.with_extension("new");
    rewrite(&index, &new_path, generation, object_bytes, |_, record| record)?;
    rename(&new_path, path)
}
