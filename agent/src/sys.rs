//! The few kernel calls that no safe wrapper offers.
//!
//! **What.** File leases, write-back of ranges, what of a file is in memory, whether direct reads are, range clones, the
//! probe for QEMU's lock bytes, and ignoring `SIGIO`.
//!
//! **Why here.** This is the only module of the crate that may use `unsafe`; each block says why it is sound. Callers see
//! `io::Result` and plain integers.
//!
//! **Invariants.** No function keeps a descriptor or a pointer past its return.

#![expect(unsafe_code, reason = "kernel calls without a safe wrapper live in this module alone")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// First bytes of the ranges that QEMU and libvirt lock in an image file, and their lengths: byte 0 (libvirt's
/// `virtlockd`), 100–163 (QEMU's permissions in use) and 200–263 (permissions not shared). Source: QEMU `block/file-posix.c`.
const LOCK_RANGES: [(i64, i64); 3] = [(0, 1), (100, 64), (200, 64)];

/// `FICLONERANGE`'s argument, as `linux/fs.h` has it.
#[repr(C)]
#[derive(Debug)]
struct CloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

/// Number of cachestat(2), which has no name in libc yet: the same on all architectures but Alpha.
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of `linux/mman.h`.
#[repr(C)]
#[derive(Debug)]
struct CacheRange {
    offset: u64,
    bytes: u64,
}

/// `struct cachestat` of `linux/mman.h`, in pages.
#[repr(C)]
#[derive(Debug, Default)]
struct CacheStat {
    n_cached: u64,
    n_dirty: u64,
    n_writeback: u64,
    n_evicted: u64,
    n_recently_evicted: u64,
}

nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, CloneRange);

/// Makes the default action of `SIGIO` harmless: a broken file lease would otherwise kill the process.
///
/// A broken lease is seen by [`write_lease_holds`], not by the signal.
///
/// # Errors
/// Never on Linux for this signal; passed on all the same.
pub(crate) fn ignore_sigio() -> io::Result<()> {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: SIG_IGN runs no code of ours, so nothing async-signal-unsafe can happen.
    unsafe { sigaction(Signal::SIGIO, &ignore) }?;
    Ok(())
}

/// Takes a write lease: granted only if no other descriptor or mapping of the inode exists, in any process.
///
/// # Errors
/// `WouldBlock` if the file is open elsewhere (also in this process); others as fcntl(2).
pub(crate) fn take_write_lease(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed; the argument is an integer.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) }).map(|_| ())
}

/// Whether the write lease still holds; `false` once somebody tries to open the file.
///
/// # Errors
/// As fcntl(2).
pub(crate) fn write_lease_holds(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open as long as `file` is borrowed; F_GETLEASE takes no argument.
    let kind = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) })?;
    Ok(kind == libc::F_WRLCK)
}

/// Gives the lease back.
///
/// # Errors
/// As fcntl(2).
pub(crate) fn drop_lease(file: &File) -> io::Result<()> {
    // SAFETY: as in `take_write_lease`.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) }).map(|_| ())
}

/// Starts write-back of dirty pages in the range, without waiting and without any promise of durability.
///
/// # Errors
/// As sync_file_range(2).
pub(crate) fn start_writeback(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    sync_range(file, offset, bytes, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes the dirty pages of the range and waits until the disk has taken them. Metadata and the disk's own cache are left
/// to fsync(2): no promise of durability.
///
/// # Errors
/// As sync_file_range(2).
pub(crate) fn finish_writeback(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(file, offset, bytes, wait | libc::SYNC_FILE_RANGE_WRITE)
}

fn sync_range(file: &File, offset: u64, bytes: u64, flags: u32) -> io::Result<()> {
    let (offset, bytes) = (to_off(offset)?, to_off(bytes)?);
    // SAFETY: the descriptor is open as long as `file` is borrowed; all other arguments are integers.
    check(unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, flags) }).map(|_| ())
}

/// Whether no byte of the range is in the page cache. Reads nothing, starts no read, and waits for no lock of the file.
///
/// # Errors
/// As cachestat(2), `ENOSYS` also where the older way could be wrong: then nobody knows. The kernel answers only for files
/// that the caller owns or may write.
pub(crate) fn is_out_of_memory(file: &File, offset: u64, bytes: u64) -> io::Result<bool> {
    match cached_pages(file, offset, bytes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && mincore_sees_all(file)? => {
            Ok(resident_pages(file, offset, bytes)? == 0)
        }
        pages => Ok(pages? == 0),
    }
}

/// Pages of the range that the page cache has in any state: Linux 6.5 and newer.
fn cached_pages(file: &File, offset: u64, bytes: u64) -> io::Result<u64> {
    // A length of 0 would mean the rest of the file.
    let range = CacheRange { offset, bytes: bytes.max(1) };
    let mut stat = CacheStat::default();
    let (fd, range, found) = (file.as_raw_fd(), &raw const range, &raw mut stat);
    // SAFETY: the descriptor is open as long as `file` is borrowed; both structures outlive the call and have the kernel's
    // layout, and of `found` the kernel writes no more than its five fields.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, fd, range, found, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(stat.n_cached) }
}

/// Whether mincore(2) shows every page that a read would be served from. It leaves out pages that are filled in part, which
/// writers make only where a page is more than one block: on file systems with small blocks, and since Linux 6.6 with large
/// folios. A newer kernel without cachestat(2) is one where a filter of system calls forbids it.
fn mincore_sees_all(file: &File) -> io::Result<bool> {
    let kernel = nix::sys::utsname::uname()?;
    let mut numbers = kernel.release().to_str().unwrap_or_default().split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|digits| digits.parse::<u32>().ok()).unwrap_or(u32::MAX);
    let block_bytes = nix::sys::statvfs::fstatvfs(file)?.block_size();
    Ok((number(), number()) < (6, 5) && block_bytes >= page_bytes()?)
}

/// Pages of the range that mincore(2) shows.
fn resident_pages(file: &File, offset: u64, bytes: u64) -> io::Result<usize> {
    let page = page_bytes()?;
    let from = offset - offset % page;
    let to_len = |value: u64| usize::try_from(value).map_err(io::Error::other);
    let len = to_len((offset + bytes.max(1) - from).next_multiple_of(page))?;
    let mut pages = vec![0_u8; len / to_len(page)?];
    let (read, shared, fd) = (libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd());
    // SAFETY: a mapping of its own at an address that the kernel chooses; nothing is ever read through it.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), len, read, shared, fd, to_off(from)?) };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `map` is `len` bytes long, and `pages` has one byte for each page of it.
    let looked = check(unsafe { libc::mincore(map, len, pages.as_mut_ptr()) });
    // SAFETY: exactly the mapping from above, and no pointer into it is left.
    let unmapped = check(unsafe { libc::munmap(map, len) });
    looked.and(unmapped)?;
    Ok(pages.iter().filter(|page| **page & 1 == 1).count())
}

fn page_bytes() -> io::Result<u64> {
    let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Whether reads of the file with `O_DIRECT`, aligned to `align` bytes in the file and in memory, really pass the page cache
/// by. `false` also where the kernel (before 6.1) or the file system does not say: open(2) takes the flag from many that
/// serve such reads from memory all the same.
pub(crate) fn reads_directly(file: &File, align: u32) -> bool {
    // SAFETY: plain integers, for which all zeros is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let (fd, flags, mask) = (file.as_raw_fd(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN);
    // SAFETY: the descriptor is open as long as `file` is borrowed; the path is an empty string that ends in a zero, and
    // `found` outlives the call.
    let result = unsafe { libc::statx(fd, c"".as_ptr(), flags, mask, &raw mut found) };
    let fits = |needed: u32| needed > 0 && align.is_multiple_of(needed);
    result == 0
        && found.stx_mask & mask != 0
        && fits(found.stx_dio_mem_align)
        && fits(found.stx_dio_offset_align)
}

/// Shares `bytes` of `source` from `from` with `target` at `to`. Offsets and length must be multiples of the file
/// system's block size.
///
/// # Errors
/// `EOPNOTSUPP`, `EXDEV`, `EINVAL` where the file system or the alignment does not allow it; others as ioctl_ficlonerange(2).
pub(crate) fn clone_range(source: &File, from: u64, bytes: u64, target: &File, to: u64) -> io::Result<()> {
    let range = CloneRange {
        src_fd: i64::from(source.as_raw_fd()),
        src_offset: from,
        src_length: bytes,
        dest_offset: to,
    };
    // SAFETY: both descriptors are open as long as they are borrowed, and `range` outlives the call.
    unsafe { ficlonerange(target.as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// Whether any process holds an open-file-description lock on one of the bytes that QEMU or libvirt lock.
///
/// # Errors
/// As fcntl(2).
pub(crate) fn image_locks_held(file: &File) -> io::Result<bool> {
    for (start, len) in LOCK_RANGES {
        let mut probe =
            libc::flock { l_type: WRITE_LOCK, l_whence: WHENCE_SET, l_start: start, l_len: len, l_pid: 0 };
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))?;
        if probe.l_type != NO_LOCK {
            return Ok(true);
        }
    }
    Ok(false)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the constants are 0, 1 and 2; the struct's fields are i16"
)]
const WRITE_LOCK: i16 = libc::F_WRLCK as i16;
#[expect(
    clippy::cast_possible_truncation,
    reason = "the constants are 0, 1 and 2; the struct's fields are i16"
)]
const NO_LOCK: i16 = libc::F_UNLCK as i16;
#[expect(
    clippy::cast_possible_truncation,
    reason = "the constants are 0, 1 and 2; the struct's fields are i16"
)]
const WHENCE_SET: i16 = libc::SEEK_SET as i16;

fn to_off(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn a_write_lease_is_refused_while_another_descriptor_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object");
        std::fs::write(&path, b"bytes").unwrap();
        ignore_sigio().unwrap();
        let ours = File::open(&path).unwrap();
        let other = File::open(&path).unwrap();
        assert_eq!(take_write_lease(&ours).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(other);
        take_write_lease(&ours).unwrap();
        assert!(write_lease_holds(&ours).unwrap());
        // An open that does not wait breaks the lease; the signal must not kill this process.
        let nonblocking = OpenOptions::new().read(true).custom_flags_nonblock().open(&path);
        assert_eq!(nonblocking.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(!write_lease_holds(&ours).unwrap());
        drop_lease(&ours).unwrap();
    }

    trait NonBlock {
        fn custom_flags_nonblock(&mut self) -> &mut Self;
    }

    impl NonBlock for OpenOptions {
        fn custom_flags_nonblock(&mut self) -> &mut Self {
            std::os::unix::fs::OpenOptionsExt::custom_flags(self, libc::O_NONBLOCK)
        }
    }

    #[test]
    fn lock_bytes_of_another_description_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("object");
        std::fs::write(&path, b"bytes").unwrap();
        let ours = File::open(&path).unwrap();
        assert!(!image_locks_held(&ours).unwrap());
        let other = File::open(&path).unwrap();
        let lock = libc::flock { l_type: 0, l_whence: 0, l_start: 100, l_len: 1, l_pid: 0 };
        fcntl(&other, FcntlArg::F_OFD_SETLK(&lock)).unwrap();
        assert!(image_locks_held(&ours).unwrap());
    }

    #[test]
    fn both_ways_to_ask_what_is_in_memory_see_every_page_and_bring_none_there() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("object");
        std::fs::write(&path, vec![7; 20 * 4096]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        let drop = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, drop).unwrap();
        let is_known = match cached_pages(&file, 0, 20 * 4096) {
            Ok(pages) => {
                assert_eq!(pages, 0);
                true
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "{error}");
                false
            }
        };
        for _ in 0..3 {
            assert_eq!(resident_pages(&file, 0, 20 * 4096).unwrap(), 0);
        }
        // One page in the middle, without reading ahead.
        let alone = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_RANDOM;
        nix::fcntl::posix_fadvise(&file, 0, 0, alone).unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut [0], 9 * 4096 + 5).unwrap();
        for (offset, bytes, pages) in
            [(0, 20 * 4096, 1), (0, 9 * 4096, 0), (10 * 4096, 1, 0), (9 * 4096 + 7, 1, 1)]
        {
            assert_eq!(resident_pages(&file, offset, bytes).unwrap(), pages, "{offset} {bytes}");
            if is_known {
                assert_eq!(cached_pages(&file, offset, bytes).unwrap(), pages as u64, "{offset} {bytes}");
            }
        }
    }

    #[test]
    fn a_file_system_in_memory_has_no_direct_reads() {
        let dir = tempfile::tempdir_in("/dev/shm").expect("Linux has /dev/shm");
        let path = dir.path().join("object");
        std::fs::write(&path, b"bytes").unwrap();
        assert!(!reads_directly(&File::open(&path).unwrap(), 4096));
    }
}
