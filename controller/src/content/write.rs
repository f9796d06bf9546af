//! Writes a new content object into a staging folder.
//!
//! **What.** [`ObjectWriter`] takes packed chunks in order and writes three files: the stored chunks, the index, the
//! manifest. [`Staged`] is what is complete and synced, ready to be published by the store.
//!
//! **Why in staging.** A content appears under its id only when all of it is on disk; a crash before leaves a folder
//! that the next start removes.
//!
//! **Invariants.** Everything in a [`Staged`] is fsynced. A writer that is dropped removes its files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use hearth_protocol::digest::ChunkDigest;
use hearth_protocol::manifest::{ManifestBuilder, ManifestRoot};
use hearth_protocol::message::data::Encoding;
use hearth_protocol::words::ContentKind;

use super::error::{ContentError, on, sync_folder};
use super::index::{IndexRecord, IndexWriter};
use super::manifest_file::ManifestWriter;
use super::store::open_files;

/// A packed chunk, without its bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PackedChunk {
    /// Raw offset in the content.
    pub offset: u64,
    /// Raw length in bytes.
    pub raw_len: u32,
    /// BLAKE3 of the raw bytes.
    pub digest: ChunkDigest,
    /// Stored length in bytes.
    pub stored_len: u32,
    /// How it is stored.
    pub encoding: Encoding,
}

/// A folder that is removed with everything in it when the value is dropped.
#[derive(Debug)]
pub(super) struct StagingFolder(pub(super) PathBuf);

impl Drop for StagingFolder {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "staging folder stays until the next start");
            }
            _ => {}
        }
    }
}

/// The three files under construction.
#[derive(Debug)]
pub struct ObjectWriter {
    folder: StagingFolder,
    object: File,
    object_bytes: u64,
    index: IndexWriter,
    manifest: ManifestWriter,
    builder: ManifestBuilder,
}

/// A complete content in its staging folder; removed when dropped unpublished.
#[derive(Debug)]
pub struct Staged {
    pub(super) folder: StagingFolder,
    pub(super) root: ManifestRoot,
    pub(super) object_bytes: u64,
}

impl Staged {
    /// The root of its manifest.
    #[must_use]
    pub const fn root(&self) -> &ManifestRoot {
        &self.root
    }

    /// Stored length of all chunks, in bytes.
    #[must_use]
    pub const fn stored_bytes(&self) -> u64 {
        self.object_bytes
    }

    /// Reads everything back and hashes it; returns the chunks that are bad. As [`super::ContentObject::verify_all`].
    ///
    /// # Errors
    /// As [`super::ContentObject::verify_all`].
    pub fn verify(
        &self,
        threads: usize,
        cancel: &AtomicBool,
        progress: &(dyn Fn(u32) + Sync),
    ) -> Result<Vec<u32>, ContentError> {
        let at = |name| self.folder.0.join(name);
        let object = open_files(self.root.content_id(), &at(INDEX), &at(MANIFEST), |_| at(OBJECT))?;
        object.verify_all(threads, cancel, progress)
    }
}

pub(super) const OBJECT: &str = "object";
pub(super) const INDEX: &str = "index";
pub(super) const MANIFEST: &str = "manifest";

impl ObjectWriter {
    /// Starts a content in `folder`, which must not exist yet and is removed again with the writer.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn create(folder: &Path, kind: ContentKind) -> Result<Self, ContentError> {
        fs::create_dir(folder).map_err(on("create", folder))?;
        let folder = StagingFolder(folder.to_owned());
        let index_path = folder.0.join(INDEX);
        Ok(Self {
            object: new_file(&folder.0.join(OBJECT))?,
            object_bytes: 0,
            index: IndexWriter::new(new_file(&index_path)?).map_err(on("write", &index_path))?,
            manifest: ManifestWriter::new(new_file(&folder.0.join(MANIFEST))?),
            builder: ManifestBuilder::new(kind),
            folder,
        })
    }

    /// Adds chunks whose stored bytes are `bytes`, in the content's order.
    ///
    /// # Errors
    /// [`ContentError::Manifest`] for chunks out of order or beyond the limits; [`ContentError::File`] and
    /// [`ContentError::NoSpace`] from the disk.
    pub fn push(&mut self, chunks: &[PackedChunk], bytes: &[u8]) -> Result<(), ContentError> {
        self.object.write_all(bytes).map_err(on("write", &self.folder.0.join(OBJECT)))?;
        for chunk in chunks {
            let PackedChunk { offset, raw_len, digest, stored_len, encoding } = *chunk;
            let record = IndexRecord { offset: self.object_bytes, stored_len, encoding };
            self.index.push(record).map_err(on("write", &self.folder.0.join(INDEX)))?;
            self.object_bytes += u64::from(stored_len);
            if let Some(page) = self.builder.push(offset, raw_len, digest)? {
                self.manifest.page(&page).map_err(on("write", &self.folder.0.join(MANIFEST)))?;
            }
        }
        Ok(())
    }

    /// Ends the content at `raw_bytes` and syncs everything.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(self, raw_bytes: u64) -> Result<Staged, ContentError> {
        let Self { folder, object, object_bytes, index, mut manifest, builder } = self;
        let (last, root) = builder.finish(raw_bytes)?;
        let manifest_path = folder.0.join(MANIFEST);
        if let Some(page) = last {
            manifest.page(&page).map_err(on("write", &manifest_path))?;
        }
        manifest.finish(&root).map_err(on("sync", &manifest_path))?;
        object.sync_all().map_err(on("sync", &folder.0.join(OBJECT)))?;
        let content = root.content_id();
        index.finish(content, 0, object_bytes).map_err(on("sync", &folder.0.join(INDEX)))?;
        sync_folder(&folder.0)?;
        Ok(Staged { folder, root, object_bytes })
    }
}

pub(super) fn new_file(path: &Path) -> Result<File, ContentError> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(on("create", path))
}
