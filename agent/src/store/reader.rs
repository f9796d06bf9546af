//! Reading finished contents inside the agent: to serve them, and as bases for others.
//!
//! **What.** [`Reader`] gives out chunks of an active content, each hashed after it was read. While one exists the content is
//! not evicted.
//! **Why hash again.** Disks lie, and a peer that gets one bad chunk from us stops asking us. I6: no chunk leaves the host
//! unhashed since it was read from disk.
//! **Invariants.** A reader counts as a use from before its file is opened until after it is closed.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use hearth_protocol::digest::{ChunkDigest, ContentId};
use hearth_protocol::manifest::{ChunkRecord, ManifestRoot, PAGE_RECORDS};
use hearth_protocol::piece::Pieces;
use hearth_protocol::words::ContentKind;

use super::error::StoreError;
use super::locked;
use super::manifest_file::ManifestFile;
use super::state::{Entry, Store};

/// Bases that are looked through for one transfer: bounds descriptors and the time of the lookup.
const BASES_MAX: usize = 256;

/// Keeps a content from being removed while the agent has it open.
#[derive(Debug)]
pub(super) struct Use {
    store: Store,
    content: ContentId,
}

impl Drop for Use {
    fn drop(&mut self) {
        if let Some(entry) = locked(&self.store.inner.state).entries.get_mut(&self.content) {
            entry.uses = entry.uses.saturating_sub(1);
        }
    }
}

/// A finished content whose chunks may be copied after hashing. Field order: the file is closed before the use ends.
#[derive(Debug)]
pub(super) struct BaseFile {
    pub(super) content: ContentId,
    pub(super) file: File,
    /// It is a damaged copy of the content that is fetched: chunks stand at the same offsets.
    pub(super) same_place: bool,
    _using: Option<Use>,
}

/// Gives out chunks of one active content. Field order: files are closed before the use ends.
#[derive(Debug)]
pub struct Reader {
    content: ContentId,
    path: PathBuf,
    file: File,
    manifest: Arc<ManifestFile>,
    using: Use,
}

impl Store {
    /// Counts a use of an entry that `allowed` accepts. Returns it with the kind of its file.
    pub(super) fn use_entry(
        &self,
        content: ContentId,
        allowed: impl FnOnce(&Entry) -> bool,
    ) -> Result<(Use, ContentKind), StoreError> {
        let mut state = locked(&self.inner.state);
        let entry = state.entry(content)?;
        if !allowed(entry) {
            return Err(StoreError::State { content, state: entry.phase.name(), wanted: "active" });
        }
        entry.uses += 1;
        Ok((Use { store: self.clone(), content }, entry.spec.kind))
    }

    /// A reader of an active content.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::State`] if it is not active, [`StoreError::Manifest`] or [`StoreError::Io`].
    pub fn reader(&self, content: ContentId) -> Result<Reader, StoreError> {
        let (using, kind) = self.use_entry(content, |entry| entry.phase.is_active())?;
        let path = self.inner.layout.object(content, kind);
        let opened = open_read_only(&path).and_then(|file| {
            let manifest = ManifestFile::open(&self.inner.layout.manifest(content), content)?;
            Ok((file, Arc::new(manifest)))
        });
        match opened {
            Ok((file, manifest)) => Ok(Reader { content, path, file, manifest, using }),
            Err(error) => {
                self.suspect(content);
                Err(error)
            }
        }
    }

    /// Where chunks may be taken from for `but`: a damaged copy of it in quarantine, then active contents, most recently
    /// used first, opened and guarded.
    pub(super) fn bases(&self, but: ContentId) -> Vec<BaseFile> {
        let mut ages: Vec<(u64, ContentId)> = {
            let state = locked(&self.inner.state);
            let active =
                |(id, entry): &(&ContentId, &Entry)| **id != but && entry.phase.is_active() && !entry.suspect;
            let age = |(id, entry): (&ContentId, &Entry)| {
                (entry.last_used_unix_ms.max(entry.verified_unix_ms), *id)
            };
            state.entries.iter().filter(active).map(age).collect()
        };
        ages.sort_unstable_by(|a, b| b.cmp(a));
        ages.truncate(BASES_MAX);
        let open = |(_, content): (u64, ContentId)| {
            let (using, kind) = self.use_entry(content, |entry| entry.phase.is_active()).ok()?;
            let file = open_read_only(&self.inner.layout.object(content, kind)).ok()?;
            Some(BaseFile { content, file, same_place: false, _using: Some(using) })
        };
        let quarantined = open_read_only(&self.inner.layout.quarantined(but)).ok();
        let own = quarantined.map(|file| BaseFile { content: but, file, same_place: true, _using: None });
        own.into_iter().chain(ages.into_iter().filter_map(open)).collect()
    }
}

pub(super) fn open_read_only(path: &std::path::Path) -> Result<File, StoreError> {
    let mut options = File::options();
    options.read(true).custom_flags(nix::libc::O_NOFOLLOW);
    options.open(path).map_err(StoreError::io("open", path))
}

impl Reader {
    /// The content.
    #[must_use]
    pub const fn content(&self) -> ContentId {
        self.content
    }

    /// The manifest's root.
    #[must_use]
    pub fn root(&self) -> &ManifestRoot {
        self.manifest.root()
    }

    /// An encoded manifest page, checked.
    ///
    /// # Errors
    /// [`StoreError::Manifest`] if it is damaged (a check of the content is scheduled), or [`StoreError::Io`].
    pub fn page_bytes(&self, index: u32) -> Result<Vec<u8>, StoreError> {
        self.noticing(self.manifest.page_bytes(index))
    }

    /// Records of the chunks in `range`, cut to the content's length.
    ///
    /// # Errors
    /// As [`Self::page_bytes`].
    pub fn records(&self, range: Range<u32>) -> Result<Vec<ChunkRecord>, StoreError> {
        self.noticing(self.manifest.records(range))
    }

    /// The cut into pieces. Reads the whole manifest.
    ///
    /// # Errors
    /// As [`Self::page_bytes`].
    pub fn pieces(&self) -> Result<Pieces, StoreError> {
        let root = self.root();
        let mut pieces = Pieces::new(root.data_bytes());
        for page in 0..root.n_pages() {
            let first = page * PAGE_RECORDS;
            let records = self.records(first..first + root.page_records(page))?;
            records.iter().for_each(|record| pieces.push(record.raw_len));
        }
        Ok(pieces)
    }

    /// Reads a chunk into `buffer` (which takes its length) and hashes it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the bytes on disk are not the chunk (a check of the content is scheduled),
    /// [`StoreError::NotFound`] past the last chunk, [`StoreError::Manifest`] or [`StoreError::Io`].
    pub fn read_chunk(&self, chunk: u32, buffer: &mut Vec<u8>) -> Result<ChunkRecord, StoreError> {
        let content = self.content;
        let records = self.records(chunk..chunk.saturating_add(1))?;
        let record = *records.first().ok_or(StoreError::NotFound { content })?;
        buffer.resize(record.raw_len as usize, 0);
        let read = self.file.read_exact_at(buffer, record.offset);
        if read.is_ok() && ChunkDigest::of(buffer) == record.digest {
            return Ok(record);
        }
        if let Err(error) = read {
            tracing::warn!(path = %self.path.display(), %error, "a chunk cannot be read");
        }
        buffer.clear();
        self.noticing(Err(StoreError::Damaged { content, chunks: 1, first: chunk }))
    }

    fn noticing<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.is_err() {
            self.using.store.suspect(self.content);
        }
        result
    }
}
