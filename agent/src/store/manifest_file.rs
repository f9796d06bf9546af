//! A manifest on disk: the root and room for every page.
//!
//! **What.** `"HRTHMF01" | content id | root length u32 | 0 u32 | root | pages`. A page has a fixed place; one that was not
//! written yet reads as zeros.
//! **Why no list of present pages.** A page's digest says whether it is there and whole, so nothing else can be wrong.
//! **Invariants.** A page leaves this module only after its digest and its records were checked against the root, and the
//! root only after its hash was compared with the content id.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use hearth_protocol::digest::ContentId;
use hearth_protocol::manifest::{
    ChunkRecord, ManifestError, ManifestPage, ManifestRoot, ManifestWalk, PAGE_BYTES_MAX, PAGE_RECORDS,
    ROOT_BYTES_MAX,
};

use super::error::StoreError;
use super::layout::{STAGING_MODE, sync_dir};
use super::locked;

const MAGIC: &[u8; 8] = b"HRTHMF01";
const HEADER_BYTES: usize = 48;
/// Decoded pages kept per open manifest: two writers and a reader each walk their own page. 200 KiB each.
const PAGES_KEPT: usize = 4;

/// An open manifest file.
#[derive(Debug)]
pub(crate) struct ManifestFile {
    content: ContentId,
    root: ManifestRoot,
    root_len: usize,
    file: File,
    path: PathBuf,
    kept: Mutex<VecDeque<(u32, Arc<ManifestPage>)>>,
}

impl ManifestFile {
    /// Writes a new file with the root and no page.
    ///
    /// # Errors
    /// [`StoreError::Manifest`] if `root` is not the root of `content`, or [`StoreError::Io`].
    pub(crate) fn create(path: &Path, content: ContentId, root: &[u8]) -> Result<Self, StoreError> {
        let decoded = ManifestRoot::decode_as(root, content)
            .map_err(|source| StoreError::Manifest { content, source })?;
        let root_len = u32::try_from(root.len())
            .map_err(|_| StoreError::Manifest { content, source: ManifestError::Root { field: "length" } })?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + root.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(content.as_bytes());
        bytes.extend_from_slice(&root_len.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(root);
        let new = path.with_extension("manifest-new");
        let write = || {
            let mut options = OpenOptions::new();
            let file =
                options.read(true).write(true).create(true).truncate(true).mode(STAGING_MODE).open(&new)?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
            std::fs::rename(&new, path)?;
            Ok(file)
        };
        let file = write().map_err(StoreError::io("write", path))?;
        path.parent().map_or(Ok(()), sync_dir)?;
        let kept = Mutex::new(VecDeque::new());
        Ok(Self { content, root: decoded, root_len: root.len(), file, path: path.to_owned(), kept })
    }

    /// Opens a manifest and checks its root.
    ///
    /// # Errors
    /// [`StoreError::Manifest`] if the root is not that of `content`, or [`StoreError::Io`].
    pub(crate) fn open(path: &Path, content: ContentId) -> Result<Self, StoreError> {
        let wrong = |field| StoreError::Manifest { content, source: ManifestError::Root { field } };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(path)
            .map_err(StoreError::io("open", path))?;
        let mut header = [0; HEADER_BYTES];
        read_exactly(&file, &mut header, 0).map_err(|error| short_or_io(error, path, wrong("header")))?;
        if !header.starts_with(MAGIC) || header[8..40] != *content.as_bytes() {
            return Err(wrong("file header"));
        }
        let root_len = u32::from_le_bytes([header[40], header[41], header[42], header[43]]) as usize;
        if root_len > ROOT_BYTES_MAX {
            return Err(wrong("length"));
        }
        let mut root = vec![0; root_len];
        read_exactly(&file, &mut root, HEADER_BYTES as u64)
            .map_err(|error| short_or_io(error, path, wrong("length")))?;
        let decoded = ManifestRoot::decode_as(&root, content)
            .map_err(|source| StoreError::Manifest { content, source })?;
        let kept = Mutex::new(VecDeque::new());
        Ok(Self { content, root: decoded, root_len, file, path: path.to_owned(), kept })
    }

    pub(crate) const fn root(&self) -> &ManifestRoot {
        &self.root
    }

    fn page_at(&self, index: u32) -> u64 {
        (HEADER_BYTES + self.root_len) as u64 + u64::from(index) * PAGE_BYTES_MAX as u64
    }

    /// The bytes at the place of a page, whatever they are.
    fn stored_page(&self, index: u32) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; self.root.page_bytes(index)];
        match read_exactly(&self.file, &mut bytes, self.page_at(index)) {
            Ok(()) => Ok(bytes),
            // A page past the end of the file was never written.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Vec::new()),
            Err(error) => Err(StoreError::Io { what: "read", path: self.path.clone(), source: error }),
        }
    }

    /// The encoded page, checked: what may be sent to somebody who asks for it.
    ///
    /// # Errors
    /// [`StoreError::Manifest`] if it is missing or damaged, or [`StoreError::Io`].
    pub(crate) fn page_bytes(&self, index: u32) -> Result<Vec<u8>, StoreError> {
        let bytes = self.stored_page(index)?;
        self.decode(index, &bytes)?;
        Ok(bytes)
    }

    fn decode(&self, index: u32, bytes: &[u8]) -> Result<Arc<ManifestPage>, StoreError> {
        let page = self.root.decode_page(index, bytes);
        page.map(Arc::new).map_err(|source| StoreError::Manifest { content: self.content, source })
    }

    /// A page, checked and decoded.
    ///
    /// # Errors
    /// As [`Self::page_bytes`].
    pub(crate) fn page(&self, index: u32) -> Result<Arc<ManifestPage>, StoreError> {
        if let Some((_, page)) = locked(&self.kept).iter().find(|(kept, _)| *kept == index) {
            return Ok(Arc::clone(page));
        }
        let page = self.decode(index, &self.stored_page(index)?)?;
        let mut kept = locked(&self.kept);
        if kept.len() >= PAGES_KEPT {
            kept.pop_front();
        }
        kept.push_back((index, Arc::clone(&page)));
        Ok(page)
    }

    /// Stores a page after checking it. The bytes are durable after [`Self::sync`].
    ///
    /// # Errors
    /// [`StoreError::Manifest`] or [`StoreError::Io`].
    pub(crate) fn put_page(&self, index: u32, bytes: &[u8]) -> Result<(), StoreError> {
        self.decode(index, bytes)?;
        self.file.write_all_at(bytes, self.page_at(index)).map_err(StoreError::io("write", &self.path))
    }

    /// Makes all pages durable.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_all().map_err(StoreError::io("sync", &self.path))
    }

    /// Pages that are not there or damaged, in order.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(crate) fn missing(&self) -> Result<Vec<u32>, StoreError> {
        let mut missing = Vec::new();
        for index in 0..self.root.n_pages() {
            if self.decode(index, &self.stored_page(index)?).is_err() {
                missing.push(index);
            }
        }
        Ok(missing)
    }

    /// Goes through all pages in order and checks that they join and add up.
    ///
    /// # Errors
    /// [`StoreError::Manifest`] or [`StoreError::Io`], or what `each` returns.
    pub(crate) fn walk(
        &self,
        mut each: impl FnMut(&ManifestPage) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let wrong = |source| StoreError::Manifest { content: self.content, source };
        let mut walk = ManifestWalk::new(&self.root);
        while let Some(index) = walk.wants() {
            let page = walk.step(&self.stored_page(index)?).map_err(wrong)?;
            each(&page)?;
        }
        walk.finish().map_err(wrong)
    }

    /// Records of the chunks in `range`, cut to the content's length.
    ///
    /// # Errors
    /// As [`Self::page_bytes`].
    pub(crate) fn records(&self, range: Range<u32>) -> Result<Vec<ChunkRecord>, StoreError> {
        let end = range.end.min(self.root.n_chunks());
        let mut records = Vec::with_capacity(end.saturating_sub(range.start) as usize);
        let mut next = range.start;
        while next < end {
            let page = self.page(next / PAGE_RECORDS)?;
            let until = end.min(page.first_chunk() + PAGE_RECORDS);
            let (from, to) = ((next - page.first_chunk()) as usize, (until - page.first_chunk()) as usize);
            records.extend_from_slice(page.records().get(from..to).unwrap_or_default());
            next = until;
        }
        Ok(records)
    }
}

/// `read_exact_at`, without reading past what is there.
fn read_exactly(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(buffer, at)
}

fn short_or_io(error: io::Error, path: &Path, short: StoreError) -> StoreError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return short;
    }
    StoreError::Io { what: "read", path: path.to_owned(), source: error }
}
