//! Reads that come from the disk and not from memory.
//!
//! **What.** [`DiskFile`] reads past the page cache (`O_DIRECT`), or writes the range's pages, drops them, and reads as
//! usual.
//! **Why past the cache.** A check of bytes in memory says nothing about the disk; and dropping a file's pages takes them
//! from the guests that run on it.
//! **Why the other way too.** A direct read holds the inode's lock, which writers of the same file want: hashing behind them
//! that way doubled the time of a fetch (measured). And not every file system has direct reads.
//! **Why the file system is asked.** open(2) takes `O_DIRECT` from many that serve it from memory (ext4 with
//! `data=journal`, btrfs with compression). Where it does not say that direct reads are direct, pages are dropped.
//! **Why the answer is tried.** overlayfs says that nothing is in memory, whatever is: the pages belong to the file below. So
//! one byte is read first, and who does not see its page is believed nothing.
//! **Invariants.** A read touches only the bytes it was asked for and their blocks. Buffers are bounded by their creator.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::sys;

/// What `O_DIRECT` wants offsets, lengths and memory to be a multiple of: no common device has larger blocks.
const ALIGN: usize = 4096;
const ALIGN_U32: u32 = 4096;

/// A file whose bytes are read from the disk.
#[derive(Debug)]
pub(super) struct DiskFile<'a> {
    cached: &'a File,
    direct: Option<File>,
    /// Cleared by the first direct read that the file system refuses.
    is_direct: AtomicBool,
    /// Bytes whose pages stay in memory are not read at all.
    is_strict: bool,
    /// Set when pages were first seen to be gone.
    has_dropped: AtomicBool,
    /// Whether a page that was just read is seen in memory.
    sees_pages: OnceLock<bool>,
}

/// Memory for reads of at most so many bytes, aligned as the disk wants it.
#[derive(Debug)]
pub(super) struct DiskBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl DiskBuffer {
    /// Room for reads of up to `bytes_max`, at any offset.
    pub(super) fn new(bytes_max: usize) -> Self {
        let bytes = vec![0; bytes_max.next_multiple_of(ALIGN) + 3 * ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self { bytes, start }
    }
}

impl<'a> DiskFile<'a> {
    /// Reads through `file` alone, after its pages were dropped; for use beside writers. What cannot be dropped, because a
    /// writer is at it, is not read: `WouldBlock`.
    pub(super) const fn beside_writers(file: &'a File) -> Self {
        let (is_direct, has_dropped) = (AtomicBool::new(false), AtomicBool::new(false));
        let sees_pages = OnceLock::new();
        Self { cached: file, direct: None, is_direct, is_strict: true, has_dropped, sees_pages }
    }

    /// Opens `path` a second time for direct reads; `cached` is the same file. Whatever hinders that, the file can be read;
    /// what of it stays in memory is read from there.
    pub(super) fn new(cached: &'a File, path: &Path) -> Self {
        let flags = nix::libc::O_DIRECT | nix::libc::O_NOFOLLOW;
        let direct = File::options().read(true).custom_flags(flags).open(path);
        let direct = direct.ok().filter(|direct| same_inode(direct, cached));
        let direct = direct.filter(|direct| sys::reads_directly(direct, ALIGN_U32));
        let is_direct = AtomicBool::new(direct.is_some());
        let (has_dropped, sees_pages) = (AtomicBool::new(false), OnceLock::new());
        Self { cached, direct, is_direct, is_strict: false, has_dropped, sees_pages }
    }

    /// Whether pages were ever seen to leave memory. On some file systems none ever does.
    pub(super) fn has_dropped(&self) -> bool {
        self.has_dropped.load(Ordering::Relaxed)
    }

    /// Whether reads pass the page cache by.
    pub(super) fn is_direct(&self) -> bool {
        self.is_direct.load(Ordering::Relaxed)
    }

    /// The same file for everything else.
    pub(super) const fn cached(&self) -> &File {
        self.cached
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Errors
    /// What the disk says; `UnexpectedEof` past the end of the file; `WouldBlock` as [`Self::beside_writers`] says.
    ///
    /// # Panics
    /// If `len` is more than `buffer` was made for.
    pub(super) fn read<'b>(
        &self,
        offset: u64,
        len: usize,
        buffer: &'b mut DiskBuffer,
    ) -> io::Result<&'b [u8]> {
        if let Some(direct) = self.direct.as_ref().filter(|_| self.is_direct()) {
            match read_blocks(direct, offset, len, buffer) {
                Ok(skip) => return Ok(&buffer.bytes[buffer.start + skip..][..len]),
                // Says "not here" or "not with this alignment": from now on the other way.
                Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => {
                    self.is_direct.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        if !self.drop_pages(offset, len as u64) {
            if self.is_strict {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // A guest runs on them, or the file system lives in memory: a check that can be had beats none.
            tracing::debug!(offset, len, "checked in memory: its pages do not leave");
        }
        let bytes = &mut buffer.bytes[..len];
        self.cached.read_exact_at(bytes, offset)?;
        Ok(bytes)
    }

    /// Writes the pages of a range to the disk and drops them; whether they are all gone. What nobody can know is `false`.
    fn drop_pages(&self, offset: u64, len: u64) -> bool {
        let dropped = || -> io::Result<bool> {
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let off = |value: u64| i64::try_from(value).map_err(io::Error::other);
            if !*self.sees_pages.get_or_init(|| sees_pages(self.cached, offset)) {
                return Err(io::ErrorKind::Unsupported.into());
            }
            sys::finish_writeback(self.cached, offset, len)?;
            // Only whole pages are dropped.
            let page = ALIGN as u64;
            let (from, end) = (offset - offset % page, (offset + len).next_multiple_of(page));
            posix_fadvise(self.cached.as_fd(), off(from)?, off(end - from)?, advice)?;
            sys::is_out_of_memory(self.cached, offset, len)
        };
        let dropped = dropped().unwrap_or_else(|error| {
            tracing::trace!(%error, "nobody knows what is in memory");
            false
        });
        self.has_dropped.fetch_or(dropped, Ordering::Relaxed);
        dropped
    }
}

/// Whether the file system says of a page that was just read that it is in memory.
fn sees_pages(file: &File, offset: u64) -> bool {
    file.read_exact_at(&mut [0], offset).is_ok()
        && matches!(sys::is_out_of_memory(file, offset, 1), Ok(false))
}

/// Reads all blocks that the range touches; the last block of a file may be cut short. Returns where the range begins.
fn read_blocks(file: &File, offset: u64, len: usize, buffer: &mut DiskBuffer) -> io::Result<usize> {
    let skip = usize::try_from(offset % ALIGN as u64).map_err(io::Error::other)?;
    let (from, blocks) = (offset - skip as u64, (skip + len).next_multiple_of(ALIGN));
    let bytes = &mut buffer.bytes[buffer.start..][..blocks];
    let mut done = 0;
    while done < skip + len {
        match file.read_at(&mut bytes[done..], from + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // A short read that does not end on a block cannot be gone on with, nor need it be: it is the end.
            Ok(n) if n % ALIGN != 0 && done + n < skip + len => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(skip)
}

fn same_inode(left: &File, right: &File) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let of = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    of(left).is_some_and(|left| Some(left) == of(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder on a real file system: `/tmp` may be a tmpfs.
    fn file(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf, File) {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        (dir, path, file)
    }

    fn noise(n: usize) -> Vec<u8> {
        (0..n).map(|i| u8::try_from((i * 7 + i / 4096) % 251).unwrap()).collect()
    }

    #[test]
    fn any_range_reads_the_same_both_ways() {
        let bytes = noise(300_001);
        let (_dir, path, cached) = file(&bytes);
        let mut buffer = DiskBuffer::new(100_000);
        let direct = DiskFile::new(&cached, &path);
        let plain = DiskFile::beside_writers(&cached);
        for (offset, len) in [(0, 1), (0, 100_000), (4096, 4096), (4095, 2), (299_999, 2), (200_001, 100_000)]
        {
            let want = &bytes[usize::try_from(offset).unwrap()..][..len];
            assert_eq!(direct.read(offset, len, &mut buffer).unwrap(), want, "{offset} {len}");
            // A page that was read along with a larger one leaves memory with all of it.
            assert!(plain.drop_pages(0, 300_001));
            assert_eq!(plain.read(offset, len, &mut buffer).unwrap(), want, "{offset} {len}");
        }
        for disk in [direct, plain] {
            assert!(disk.drop_pages(0, 300_001));
            let error = disk.read(299_999, 3, &mut buffer).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn bytes_written_a_moment_ago_are_read() {
        let (_dir, path, cached) = file(&noise(1 << 20));
        let disk = DiskFile::new(&cached, &path);
        let mut buffer = DiskBuffer::new(1 << 20);
        for round in 0..20_u8 {
            cached.write_all_at(&[round; 9000], 12_288).unwrap();
            assert_eq!(disk.read(12_288, 9000, &mut buffer).unwrap(), [round; 9000]);
        }
    }

    #[test]
    fn dropped_pages_come_from_the_disk() {
        let bytes = noise(1 << 20);
        let (_dir, _path, cached) = file(&bytes);
        assert!(!sys::is_out_of_memory(&cached, 0, 1).unwrap());
        assert!(!sys::is_out_of_memory(&cached, 500_000, 1).unwrap());
        let disk = DiskFile::beside_writers(&cached);
        assert!(disk.drop_pages(0, 1 << 20));
        assert!(sys::is_out_of_memory(&cached, 0, 1 << 20).unwrap() && disk.has_dropped());
        // One page in the middle is enough.
        cached.read_exact_at(&mut [0], 500_000).unwrap();
        assert!(!sys::is_out_of_memory(&cached, 0, 1 << 20).unwrap());
        assert_eq!(disk.read(0, 1 << 20, &mut DiskBuffer::new(1 << 20)).unwrap(), bytes);
    }

    #[test]
    fn another_file_behind_the_path_is_not_read() {
        let (_dir, path, cached) = file(b"ours");
        std::fs::rename(&path, path.with_extension("old")).unwrap();
        std::fs::write(&path, b"theirs").unwrap();
        let disk = DiskFile::new(&cached, &path);
        assert!(!disk.is_direct());
        assert_eq!(disk.read(0, 4, &mut DiskBuffer::new(4)).unwrap(), b"ours");
    }
}
