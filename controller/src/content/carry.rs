//! Carries contents and originals into another folder: backups, and what is restored from them.
//!
//! **What.** [`ContentStore::carry`] and [`Originals::carry`] make one content or original appear in another store, whole
//! and synced, by a hard link where that is wanted and possible, else by a copy that keeps the holes.
//!
//! **Why a hard link is safe for a backup.** Originals and manifests never change, an index is replaced by renaming, and
//! mending appends to an object behind what every older index names. Who restores gets a copy all the same: two controllers
//! that append to one file would be in each other's way.
//!
//! **Invariants.** The source may be in use by a running controller; nothing in it is changed. What is in the target was
//! opened and agrees with itself, or is not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::error::{ContentError, make_folder, on, sync_folder};
use super::originals::Originals;
use super::store::ContentStore;

/// Looks at a content that is being mended or replaced meanwhile. Each change takes the maker of it much longer than a look.
const LOOKS_MAX: u32 = 5;

/// How files come into the other folder.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Carrying {
    /// Hard links where the file system can, else copies.
    Link,
    /// Copies.
    Copy,
}

/// What was carried.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Carried {
    /// Length of the files.
    pub bytes: u64,
    /// Of those, in files that were copied.
    pub copied_bytes: u64,
}

impl Carried {
    /// Adds up.
    pub fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.copied_bytes += other.copied_bytes;
    }
}

impl ContentStore {
    /// Makes `content` appear in the store `to`; `None` if this one has not got it.
    ///
    /// # Errors
    /// [`ContentError::Damaged`] if the files do not agree with each other; [`ContentError::File`],
    /// [`ContentError::NoSpace`].
    pub fn carry(
        &self,
        content: ContentId,
        to: &Self,
        how: Carrying,
    ) -> Result<Option<Carried>, ContentError> {
        let mut looks = 0;
        loop {
            looks += 1;
            to.remove(content)?;
            let carried = self.carry_once(content, to, how);
            match carried {
                Ok(carried) => return Ok(Some(carried)),
                // Gone, or replaced between two of its files.
                Err(ContentError::NotFound { .. }) => {
                    to.remove(content)?;
                    return Ok(None);
                }
                Err(ContentError::Damaged { .. } | ContentError::File { .. }) if looks < LOOKS_MAX => {}
                Err(error) => {
                    to.remove(content)?;
                    return Err(error);
                }
            }
        }
    }

    fn carry_once(&self, content: ContentId, to: &Self, how: Carrying) -> Result<Carried, ContentError> {
        let object = self.open_files(content)?;
        let generation = object.index.header.generation;
        let (here, there) = (self.names(content), to.names(content));
        make_folder(&there.folder)?;
        let mut carried = Carried::default();
        for (from, to) in [
            (here.object(generation), there.object(generation)),
            (here.manifest(), there.manifest()),
            // Last: a content is there exactly if its index is.
            (here.index(), there.index()),
        ] {
            carried.add(carry_file(&from, &to, how)?);
        }
        sync_folder(&there.folder)?;
        to.open_files(content)?;
        Ok(carried)
    }
}

impl Originals {
    /// Makes the original of `image` appear in `to`; `None` if this store has not got it.
    ///
    /// # Errors
    /// [`ContentError::File`], [`ContentError::NoSpace`].
    pub fn carry(&self, image: ImageId, to: &Self, how: Carrying) -> Result<Option<Carried>, ContentError> {
        to.remove(image)?;
        let there = to.path(image);
        match carry_file(&self.path(image), &there, how) {
            Ok(carried) => {
                sync_folder(there.parent().unwrap_or_else(|| Path::new(".")))?;
                Ok(Some(carried))
            }
            Err(ContentError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn carry_file(from: &Path, to: &Path, how: Carrying) -> Result<Carried, ContentError> {
    // A link that fails (another file system, too many links, not ours) is no reason to fail: copying says what is wrong.
    if how == Carrying::Link && fs::hard_link(from, to).is_ok() {
        let bytes = fs::metadata(to).map_err(on("open", to))?.len();
        return Ok(Carried { bytes, copied_bytes: 0 });
    }
    let bytes = copy_file(from, to)?;
    Ok(Carried { bytes, copied_bytes: bytes })
}

/// Copies a file with its holes and syncs it; `to` must not exist. Returns its length.
fn copy_file(from: &Path, to: &Path) -> Result<u64, ContentError> {
    let mut source = File::open(from).map_err(on("open", from))?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let mut target = target.map_err(on("create", to))?;
    let len = source.metadata().map_err(on("open", from))?.len();
    let mut at = 0;
    while let Some((start, end)) = data_after(&source, at, len).map_err(on("read", from))? {
        source.seek(SeekFrom::Start(start)).map_err(on("read", from))?;
        target.seek(SeekFrom::Start(start)).map_err(on("write", to))?;
        // The kernel copies by itself, and shares the blocks where the file system can.
        let copied =
            io::copy(&mut source.by_ref().take(end - start), &mut target).map_err(on("write", to))?;
        if copied < end - start {
            return Err(on("read", from)(io::ErrorKind::UnexpectedEof.into()));
        }
        at = end;
    }
    target.set_len(len).map_err(on("write", to))?;
    target.sync_all().map_err(on("sync", to))?;
    Ok(len)
}

/// The next stretch with data from `at` on, up to `len`.
fn data_after(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    let seek = |from: u64, whence| {
        let from = i64::try_from(from).map_err(io::Error::other)?;
        lseek(file, from, whence).map(i64::unsigned_abs).map_err(io::Error::from)
    };
    if at >= len {
        return Ok(None);
    }
    match seek(at, Whence::SeekData) {
        Ok(start) if start >= len => Ok(None),
        Ok(start) => Ok(Some((start, seek(start, Whence::SeekHole)?.min(len)))),
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => Ok(None),
        // Cannot tell holes: all of it is data.
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(Some((at, len))),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let file = File::create(&from).unwrap();
        for at in [0, 5 << 20, (8 << 20) - 3] {
            file.write_all_at(b"data", at).unwrap();
        }
        file.set_len(16 << 20).unwrap();
        drop(file);
        assert_eq!(copy_file(&from, &to).unwrap(), 16 << 20);
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 <= 1 << 20, "the holes are gone");
        assert!(copy_file(&from, &to).is_err(), "nothing is written over");
    }

    #[test]
    fn a_link_is_the_same_file_and_a_copy_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("a"), "bytes").unwrap();
        let linked = carry_file(&place("a"), &place("b"), Carrying::Link).unwrap();
        let copied = carry_file(&place("a"), &place("c"), Carrying::Copy).unwrap();
        assert_eq!((linked.bytes, linked.copied_bytes), (5, 0));
        assert_eq!((copied.bytes, copied.copied_bytes), (5, 5));
        let inode = |name: &str| fs::metadata(place(name)).unwrap().ino();
        assert!(inode("a") == inode("b") && inode("a") != inode("c"));
    }
}
