//! The manifest on disk: pages first, then the root, then a trailer that says how long the root is.
//!
//! **What.** Pages have a fixed length but for the last one, so a page's place is its number times that length, and an
//! importer can write each page as soon as it is full.
//!
//! **Why not the root first.** The root names the pages' digests, so it is known last; at the front it would mean to
//! copy gigabytes of pages for the largest contents.
//!
//! **Invariants.** A manifest is opened only if its root is the one of the content id in its file name; a page is
//! handed out only if its digest is the root's.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use hearth_protocol::digest::ContentId;
use hearth_protocol::manifest::{
    BuiltPage, ManifestError, ManifestPage, ManifestRoot, PAGE_BYTES_MAX, ROOT_BYTES_MAX,
};

const MAGIC: &[u8; 8] = b"HRTHMNF1";
const TRAILER_BYTES: usize = 12;

/// Writes pages and root in order.
#[derive(Debug)]
pub(super) struct ManifestWriter(File);

impl ManifestWriter {
    /// Starts in an empty file.
    pub(super) const fn new(file: File) -> Self {
        Self(file)
    }

    pub(super) fn page(&mut self, page: &BuiltPage) -> io::Result<()> {
        self.0.write_all(&page.bytes)
    }

    /// Writes the root and syncs.
    pub(super) fn finish(mut self, root: &ManifestRoot) -> io::Result<()> {
        let root = root.encode();
        let root_len = u32::try_from(root.len()).map_err(io::Error::other)?;
        let mut tail = root;
        tail.extend_from_slice(&root_len.to_le_bytes());
        tail.extend_from_slice(MAGIC);
        self.0.write_all(&tail)?;
        self.0.sync_all()
    }
}

/// A manifest file whose root was checked.
#[derive(Debug)]
pub(super) struct ManifestFile {
    file: File,
    pub(super) root: ManifestRoot,
    pub(super) root_bytes: Bytes,
}

impl ManifestFile {
    /// Opens the manifest of `content`. The inner error: it is damaged.
    pub(super) fn open(file: File, content: ContentId) -> io::Result<Result<Self, ManifestError>> {
        let damaged = ManifestError::Root { field: "trailer" };
        let len = file.metadata()?.len();
        let mut trailer = [0; TRAILER_BYTES];
        let Some(trailer_at) = len.checked_sub(TRAILER_BYTES as u64) else { return Ok(Err(damaged)) };
        file.read_exact_at(&mut trailer, trailer_at)?;
        let root_len = u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]) as usize;
        let root_at = trailer_at.checked_sub(root_len as u64).filter(|_| root_len <= ROOT_BYTES_MAX);
        let Some(root_at) = root_at.filter(|_| trailer.ends_with(MAGIC)) else { return Ok(Err(damaged)) };
        let mut root_bytes = vec![0; root_len];
        file.read_exact_at(&mut root_bytes, root_at)?;
        let root = match ManifestRoot::decode_as(&root_bytes, content) {
            Ok(root) => root,
            Err(error) => return Ok(Err(error)),
        };
        let pages: u64 = (0..root.n_pages()).map(|page| root.page_bytes(page) as u64).sum();
        if pages != root_at {
            return Ok(Err(damaged));
        }
        Ok(Ok(Self { file, root, root_bytes: root_bytes.into() }))
    }

    /// Reads a page that exists and checks its digest. The inner error: it is damaged.
    pub(super) fn page(&self, index: u32) -> io::Result<Result<(Bytes, ManifestPage), ManifestError>> {
        let mut bytes = vec![0; self.root.page_bytes(index)];
        self.file.read_exact_at(&mut bytes, u64::from(index) * PAGE_BYTES_MAX as u64)?;
        Ok(self.root.decode_page(index, &bytes).map(|page| (bytes.into(), page)))
    }
}
