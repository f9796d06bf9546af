//! The uploaded files, as they came in.
//!
//! **What.** `originals/<image id>`, written once with its checksums counted on the way, read in ranges.
//!
//! **Why zeros become holes.** Most of a raw disk is zeros. Unwritten they cost neither room nor a sync, and the chunker
//! skips them; whoever reads the file sees the same bytes.
//!
//! **Invariants.** A file under its image's id is whole and synced; one that was interrupted ends in `.part` and is
//! removed at the next start. It reads as the bytes that came, holes or not.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use hearth_protocol::id::ImageId;

use super::error::{ContentError, make_folder, on, sync_folder};
use super::sums::{Summing, Sums, sum_file};

/// Holes are made of whole blocks of this size, the smallest that file systems leave out.
const HOLE_BLOCK: usize = 4096;
/// Uploads that this process began: tells their files apart. What an earlier process left is overwritten.
static PARTS: AtomicU64 = AtomicU64::new(0);

/// See the module.
#[derive(Debug)]
pub struct Originals {
    folder: PathBuf,
}

impl Originals {
    /// Opens the store in `folder`, making it if need be, and removes interrupted uploads.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn new(folder: &Path) -> Result<Self, ContentError> {
        let originals = Self::beside(folder)?;
        let folder = &originals.folder;
        for entry in fs::read_dir(folder).map_err(on("list", folder))? {
            let path = entry.map_err(on("list", folder))?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                tracing::info!(path = %path.display(), "removing an interrupted upload");
                fs::remove_file(&path).map_err(on("remove", &path))?;
            }
        }
        Ok(originals)
    }

    /// The store in `folder` as it is, which another process may work with: nothing is cleaned up. Made if need be.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn beside(folder: &Path) -> Result<Self, ContentError> {
        let folder = folder.join("originals");
        make_folder(&folder)?;
        Ok(Self { folder })
    }

    /// Where the original of `image` lies.
    #[must_use]
    pub fn path(&self, image: ImageId) -> PathBuf {
        self.folder.join(image.to_string())
    }

    /// Starts an upload, in a file of its own: should the end of another upload of this image be written down late, the two
    /// still never share a file.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn create(&self, image: ImageId) -> Result<OriginalWriter, ContentError> {
        let path = self.path(image);
        let n = PARTS.fetch_add(1, Ordering::Relaxed);
        let part = Part(path.with_extension(format!("{n}.part")));
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&part.0);
        let file = file.map_err(on("create", &part.0))?;
        Ok(OriginalWriter { file, part, path, summing: Summing::new() })
    }

    /// Opens an original; `None` if there is none.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn open(&self, image: ImageId) -> Result<Option<Original>, ContentError> {
        let path = self.path(image);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(on("open", &path))?,
        };
        let size_bytes = file.metadata().map_err(on("open", &path))?.len();
        Ok(Some(Original { file, path, size_bytes }))
    }

    /// Removes an original, if there is one.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn remove(&self, image: ImageId) -> Result<(), ContentError> {
        let path = self.path(image);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(on("remove", &path)),
        }
    }

    /// Images whose original is here: to find those that no record knows.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn list(&self) -> Result<Vec<ImageId>, ContentError> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(on("list", &self.folder))? {
            let name = entry.map_err(on("list", &self.folder))?.file_name();
            images.extend(name.to_str().and_then(|name| name.parse::<ImageId>().ok()));
        }
        Ok(images)
    }
}

/// A `.part` file, removed when dropped before it was renamed.
#[derive(Debug)]
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "interrupted upload stays until the next start");
            }
            _ => {}
        }
    }
}

/// An upload in progress. Dropping it removes what was written.
#[derive(Debug)]
pub struct OriginalWriter {
    file: File,
    part: Part,
    path: PathBuf,
    summing: Summing,
}

impl OriginalWriter {
    /// Appends bytes, best about a MiB at a time; blocks while the disk or a checksum is behind.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn write(&mut self, bytes: Bytes) -> Result<(), ContentError> {
        let at = self.size_bytes();
        self.summing.update(&bytes);
        data_runs(&bytes, at).try_for_each(|(start, run)| {
            self.file.write_all_at(run, at + start as u64).map_err(on("write", &self.part.0))
        })
    }

    /// Bytes so far.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.summing.size_bytes()
    }

    /// Syncs the file, gives it its name and returns its checksums.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn finish(self) -> Result<Sums, ContentError> {
        // Zeros at the end were not written.
        self.file.set_len(self.size_bytes()).map_err(on("write", &self.part.0))?;
        self.file.sync_all().map_err(on("sync", &self.part.0))?;
        let sums = self.summing.finish();
        fs::rename(&self.part.0, &self.path).map_err(on("rename", &self.part.0))?;
        if let Some(folder) = self.path.parent() {
            sync_folder(folder)?;
        }
        Ok(sums)
    }
}

/// The parts of `bytes` (which begin at offset `at` of the file) that are not whole blocks of zeros, with their places in it.
fn data_runs(bytes: &[u8], at: u64) -> impl Iterator<Item = (usize, &[u8])> {
    let into_block = usize::try_from(at % HOLE_BLOCK as u64).expect("less than a block");
    let first = (HOLE_BLOCK - into_block).min(bytes.len());
    let mut next = 0;
    // A run ends before the first whole block of zeros, or at the end.
    let block_at = move |start: usize| {
        let end = if start < first { first } else { (start + HOLE_BLOCK).min(bytes.len()) };
        &bytes[start..end]
    };
    let is_hole = |block: &[u8]| block.len() == HOLE_BLOCK && is_zero(block);
    std::iter::from_fn(move || {
        while next < bytes.len() && is_hole(block_at(next)) {
            next += HOLE_BLOCK;
        }
        let start = next;
        while next < bytes.len() && !is_hole(block_at(next)) {
            next += block_at(next).len();
        }
        (next > start).then(|| (start, &bytes[start..next]))
    })
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    // Most blocks differ from zero in their first bytes.
    let (head, rest) = block.split_at(block.len().min(16));
    head.iter().all(|&byte| byte == 0)
        && rest.chunks(512).all(|part| part.iter().fold(0, |or, &byte| or | byte) == 0)
}

/// An original open for reading.
#[derive(Debug)]
pub struct Original {
    file: File,
    path: PathBuf,
    size_bytes: u64,
}

impl Original {
    /// Length in bytes.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads up to `len` bytes at `offset`; fewer at the end, none behind it.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn read_range(&self, offset: u64, len: usize) -> Result<Bytes, ContentError> {
        let here = usize::try_from(self.size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
        let mut bytes = vec![0; here];
        self.file.read_exact_at(&mut bytes, offset).map_err(on("read", &self.path))?;
        Ok(bytes.into())
    }

    /// Reads the whole file and counts its checksums again.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn sums(&self) -> Result<Sums, ContentError> {
        sum_file(&self.path, &AtomicBool::new(false))
    }
}
