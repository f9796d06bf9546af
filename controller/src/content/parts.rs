//! Files of uploads that go on later: after a broken connection, a restart, a week.
//!
//! **What.** `originals/<image id>.<upload id>.upload`, written from a durable offset on, synced on demand, and at the end
//! renamed to the original.
//!
//! **Why the upload's id in the name.** What a late writer of an ended upload still writes is in a file of its own.
//!
//! **Why checksums only for what came in one go.** The state of four hashes cannot be kept over a restart; a file that was
//! resumed is read once more by the import.
//!
//! **Invariants.** A `.upload` file is never read as an original. Bytes behind the durable offset are cut off before
//! anything is appended. Giving the file its name a second time changes nothing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use hearth_protocol::id::{ImageId, UploadId};

use super::error::{ContentError, on, sync_folder};
use super::originals::{Originals, data_runs};
use super::sums::{Summing, Sums};

/// Ending of the files of open uploads.
const ENDING: &str = "upload";

impl Originals {
    fn part_path(&self, image: ImageId, upload: UploadId) -> PathBuf {
        self.folder().join(format!("{image}.{upload}.{ENDING}"))
    }

    /// Opens the file of an upload whose first `offset_bytes` are durable, made if need be. What is behind them is cut off.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn open_part(
        &self,
        image: ImageId,
        upload: UploadId,
        offset_bytes: u64,
    ) -> Result<Opened, ContentError> {
        let (path, name) = (self.part_path(image, upload), self.path(image));
        let fresh = !path.exists();
        // Renamed already: the process died before it could write that down.
        if fresh && offset_bytes > 0 && fs::metadata(&name).is_ok_and(|meta| meta.len() == offset_bytes) {
            return Ok(Opened::Whole);
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(on("create", &path))?;
        let there = file.metadata().map_err(on("open", &path))?.len();
        if there < offset_bytes {
            // Another folder than the database knows, as after a restore: nothing of it can be trusted.
            file.set_len(0).map_err(on("write", &path))?;
            return Ok(Opened::Lost);
        }
        file.set_len(offset_bytes).map_err(on("write", &path))?;
        if fresh {
            sync_folder(self.folder())?;
        }
        let summing = (offset_bytes == 0).then(Summing::new);
        Ok(Opened::Part(PartWriter { file, path, name, at: offset_bytes, summing }))
    }

    /// Removes the file of an upload, if there is one.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn remove_part(&self, image: ImageId, upload: UploadId) -> Result<(), ContentError> {
        gone(&self.part_path(image, upload))
    }

    /// Open uploads that have a file here.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn parts(&self) -> Result<Vec<(ImageId, UploadId)>, ContentError> {
        let folder = self.folder();
        let mut parts = Vec::new();
        for entry in fs::read_dir(folder).map_err(on("list", folder))? {
            let name = entry.map_err(on("list", folder))?.file_name();
            parts.extend(name.to_str().and_then(ids_of));
        }
        Ok(parts)
    }

    /// Removes the files of all uploads of an image: it was deleted.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn remove_parts(&self, image: ImageId) -> Result<(), ContentError> {
        let mine = self.parts()?.into_iter().filter(|(of, _)| *of == image);
        mine.into_iter().try_for_each(|(image, upload)| self.remove_part(image, upload))
    }
}

fn ids_of(name: &str) -> Option<(ImageId, UploadId)> {
    let mut words = name.split('.');
    let ids = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (words.next() == Some(ENDING) && words.next().is_none()).then_some(ids)
}

fn gone(path: &Path) -> Result<(), ContentError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(on("remove", path)),
    }
}

/// What [`Originals::open_part`] found.
#[derive(Debug)]
pub enum Opened {
    /// Go on writing.
    Part(PartWriter),
    /// The file has its name already.
    Whole,
    /// The durable bytes are not here: begin again.
    Lost,
}

/// The file of an open upload.
#[derive(Debug)]
pub struct PartWriter {
    file: File,
    path: PathBuf,
    name: PathBuf,
    at: u64,
    summing: Option<Summing>,
}

impl PartWriter {
    /// Appends bytes, best about a MiB at a time; blocks while the disk or a checksum is behind.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn write(&mut self, bytes: &Bytes) -> Result<(), ContentError> {
        let at = self.at;
        data_runs(bytes, at).try_for_each(|(start, run)| {
            self.file.write_all_at(run, at + start as u64).map_err(on("write", &self.path))
        })?;
        if let Some(summing) = &mut self.summing {
            summing.update(bytes);
        }
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.at
    }

    /// A handle that makes durable what was written before this call.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn mark(&self) -> Result<Syncing, ContentError> {
        // Zeros at the end are not written.
        self.file.set_len(self.at).map_err(on("write", &self.path))?;
        let file = self.file.try_clone().map_err(on("open", &self.path))?;
        Ok(Syncing { file, path: self.path.clone(), at: self.at })
    }

    /// Gives the synced file its name. The checksums, unless it came in several goes.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn finish(self) -> Result<Option<Sums>, ContentError> {
        self.mark()?.sync()?;
        fs::rename(&self.path, &self.name).map_err(on("rename", &self.path))?;
        if let Some(folder) = self.name.parent() {
            sync_folder(folder)?;
        }
        Ok(self.summing.map(Summing::finish))
    }
}

/// See [`PartWriter::mark`].
#[derive(Debug)]
pub struct Syncing {
    file: File,
    path: PathBuf,
    at: u64,
}

impl Syncing {
    /// Syncs; the number of bytes that are durable now.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn sync(self) -> Result<u64, ContentError> {
        self.file.sync_data().map_err(on("sync", &self.path))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(opened: Opened) -> PartWriter {
        match opened {
            Opened::Part(part) => part,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_part_goes_on_at_its_durable_offset_and_becomes_the_original_once() {
        let folder = tempfile::tempdir().unwrap();
        let originals = Originals::new(folder.path()).unwrap();
        let (image, upload) = (ImageId::from_bytes([1; 16]), UploadId::from_bytes([2; 16]));
        let mut first = part(originals.open_part(image, upload, 0).unwrap());
        first.write(&Bytes::from_static(b"durable")).unwrap();
        assert_eq!(first.mark().unwrap().sync().unwrap(), 7);
        first.write(&Bytes::from_static(b" and not noted")).unwrap();
        drop(first);
        // A start keeps it, and what no offset covers is cut off.
        let originals = Originals::new(folder.path()).unwrap();
        assert_eq!(originals.parts().unwrap(), [(image, upload)]);
        assert_eq!(originals.list().unwrap(), []);
        let mut again = part(originals.open_part(image, upload, 7).unwrap());
        let zeros = Bytes::from(vec![0; 20_000]);
        again.write(&zeros).unwrap();
        assert_eq!(again.finish().unwrap(), None, "it did not come in one go");
        assert_eq!(fs::read(originals.path(image)).unwrap(), [b"durable".as_slice(), &zeros].concat());
        assert!(matches!(originals.open_part(image, upload, 20_007).unwrap(), Opened::Whole));
        assert!(matches!(originals.open_part(image, upload, 30_000).unwrap(), Opened::Lost));
        originals.remove_parts(image).unwrap();
        assert_eq!(originals.parts().unwrap(), []);
    }
}
