//! The few kernel calls that no safe wrapper offers.
//!
//! **What.** File leases, write-back of ranges, range clones, the probe for QEMU's lock bytes, and ignoring `SIGIO`.
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

/// Whether the byte at `offset` can be read without asking the disk.
///
/// # Errors
/// As preadv2(2); `EOPNOTSUPP` where the file system cannot tell.
pub(crate) fn is_in_memory(file: &File, offset: u64) -> io::Result<bool> {
    let mut byte = [0_u8];
    let buffer = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: the descriptor is open as long as `file` is borrowed; `buffer` names one byte that outlives the call.
    let read =
        unsafe { libc::preadv2(file.as_raw_fd(), &raw const buffer, 1, to_off(offset)?, libc::RWF_NOWAIT) };
    match read {
        1.. => Ok(true),
        // Past the end of the file.
        0 => Ok(false),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            error => Err(error),
        },
    }
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
}
