//! The uploaded files, as they came in.
//!
//! **What.** `originals/<image id>`, written once with its checksums counted on the way, read in ranges.
//!
//! **Why threads for the checksums.** md5 and sha512 take more than a second per GiB each; one after the other
//! they would bound every upload. A thread per slow one hides them behind the network.
//!
//! **Invariants.** A file under its image's id is whole and synced; one that was interrupted ends in `.part` and is
//! removed at the next start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use hearth_protocol::id::ImageId;
use md5::Md5;
use sha2::{Digest as _, Sha256, Sha512};

use super::error::{ContentError, on, sync_folder};

/// Buffers a slow checksum may lag behind; with network buffers of up to 64 KiB that is 1 MiB an upload.
const LAG_BUFFERS: usize = 16;
/// One read while an existing file is summed again.
const READ_BYTES: usize = 256 << 10;

/// Size and checksums of an original.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sums {
    /// Length in bytes.
    pub size_bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
    /// Lower-case hex.
    pub sha512: String,
    /// Lower-case hex.
    pub md5: String,
    /// Lower-case hex.
    pub blake3: String,
}

/// Counts all four checksums on three threads.
#[derive(Debug)]
struct Summing {
    feeds: Vec<SyncSender<Bytes>>,
    workers: Vec<JoinHandle<Vec<String>>>,
    size_bytes: u64,
}

impl Summing {
    fn new() -> Self {
        let mut summing = Self { feeds: Vec::new(), workers: Vec::new(), size_bytes: 0 };
        summing.worker(|feed| {
            let mut hash = Sha512::new();
            feed.into_iter().for_each(|bytes| hash.update(&bytes));
            vec![hex(&hash.finalize())]
        });
        summing.worker(|feed| {
            let mut hash = Md5::new();
            feed.into_iter().for_each(|bytes| hash.update(&bytes));
            vec![hex(&hash.finalize())]
        });
        summing.worker(|feed| {
            let (mut sha256, mut blake3) = (Sha256::new(), blake3::Hasher::new());
            for bytes in feed {
                sha256.update(&bytes);
                blake3.update(&bytes);
            }
            vec![hex(&sha256.finalize()), blake3.finalize().to_hex().to_string()]
        });
        summing
    }

    fn worker(&mut self, work: fn(std::sync::mpsc::Receiver<Bytes>) -> Vec<String>) {
        let (feed, receiver) = sync_channel(LAG_BUFFERS);
        self.feeds.push(feed);
        self.workers.push(std::thread::spawn(move || work(receiver)));
    }

    fn update(&mut self, bytes: &Bytes) {
        self.size_bytes += bytes.len() as u64;
        for feed in &self.feeds {
            // A worker ends only when its feed is dropped.
            feed.send(bytes.clone()).expect("the checksum thread runs as long as its feed");
        }
    }

    fn finish(self) -> Sums {
        drop(self.feeds);
        let sums = self.workers.into_iter().flat_map(|worker| worker.join().expect("hashing does not panic"));
        let [sha512, md5, sha256, blake3] =
            sums.collect::<Vec<_>>().try_into().expect("three workers give four checksums");
        Sums { size_bytes: self.size_bytes, sha256, sha512, md5, blake3 }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every character");
        text
    })
}

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
        let folder = folder.join("originals");
        fs::create_dir_all(&folder).map_err(on("create", &folder))?;
        for entry in fs::read_dir(&folder).map_err(on("list", &folder))? {
            let path = entry.map_err(on("list", &folder))?.path();
            if path.extension().is_some_and(|extension| extension == "part") {
                tracing::info!(path = %path.display(), "removing an interrupted upload");
                fs::remove_file(&path).map_err(on("remove", &path))?;
            }
        }
        Ok(Self { folder })
    }

    /// Where the original of `image` lies.
    #[must_use]
    pub fn path(&self, image: ImageId) -> PathBuf {
        self.folder.join(image.to_string())
    }

    /// Starts an upload; what an earlier one left under `.part` is overwritten.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn create(&self, image: ImageId) -> Result<OriginalWriter, ContentError> {
        let path = self.path(image);
        let part = Part(path.with_extension("part"));
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
    /// Appends bytes; blocks while the disk or a checksum is behind.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn write(&mut self, bytes: Bytes) -> Result<(), ContentError> {
        self.file.write_all(&bytes).map_err(on("write", &self.part.0))?;
        self.summing.update(&bytes);
        Ok(())
    }

    /// Bytes so far.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.summing.size_bytes
    }

    /// Syncs the file, gives it its name and returns its checksums.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn finish(self) -> Result<Sums, ContentError> {
        self.file.sync_all().map_err(on("sync", &self.part.0))?;
        let sums = self.summing.finish();
        fs::rename(&self.part.0, &self.path).map_err(on("rename", &self.part.0))?;
        if let Some(folder) = self.path.parent() {
            sync_folder(folder)?;
        }
        Ok(sums)
    }
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
        let mut file = File::open(&self.path).map_err(on("open", &self.path))?;
        let mut summing = Summing::new();
        loop {
            let mut buf = Vec::with_capacity(READ_BYTES);
            let n = io::Read::by_ref(&mut file)
                .take(READ_BYTES as u64)
                .read_to_end(&mut buf)
                .map_err(on("read", &self.path))?;
            if n == 0 {
                return Ok(summing.finish());
            }
            summing.update(&buf.into());
        }
    }
}
