//! The folder of variants: a content of an image in other disk formats.
//!
//! **What.** `variants/<image id>.<begin of its BLAKE3>.<format>`; each file is renamed into the folder when it is whole and synced.
//!
//! **Why the sum is in the name.** A variant that is made again has other bytes (VMDK and VHD carry random ids). Whoever looked up
//! the old row must not find the new file under its name, or a download would mix two files.
//!
//! **Why per image and not per content.** Two projects may hold the same bytes. One that gets its variants at once, or loses them
//! because the other deleted its own, would learn of it.
//!
//! **Invariants.** A file in the folder is whole and synced. Whether it counts, the database says: a file without its row is a
//! leak, a row without its file is made again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use hearth_protocol::id::ImageId;
use hearth_protocol::words::DiskFormat;

use super::error::{ContentError, make_folder, on, sync_folder};
use super::sums::{Sums, sum_file};

/// Name of the folder.
pub const VARIANTS_FOLDER: &str = "variants";
/// Hex digits of the BLAKE3 in a file's name: two files of one image and format never share them.
const SUM_DIGITS: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct Variants {
    folder: PathBuf,
}

/// What the name of a file in the folder says.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct VariantFile {
    /// Whose variant.
    pub image: ImageId,
    /// In which format.
    pub format: DiskFormat,
    /// Begin of its BLAKE3.
    pub sum: String,
}

impl VariantFile {
    /// The file of a variant with this BLAKE3.
    #[must_use]
    pub fn new(image: ImageId, format: DiskFormat, blake3: &str) -> Self {
        Self { image, format, sum: blake3.chars().take(SUM_DIGITS).collect() }
    }

    fn parse(name: &str) -> Option<Self> {
        let (image, rest) = name.split_once('.')?;
        let (sum, format) = rest.split_once('.')?;
        let is_sum = sum.len() == SUM_DIGITS && sum.bytes().all(|b| b.is_ascii_hexdigit());
        let file = Self { image: image.parse().ok()?, format: format.parse().ok()?, sum: sum.to_owned() };
        is_sum.then_some(file)
    }

    fn name(&self) -> String {
        format!("{}.{}.{}", self.image, self.sum, self.format)
    }
}

impl Variants {
    /// The store in the state folder `folder`; made if need be. Another process may work with it.
    ///
    /// # Errors
    /// [`ContentError::File`] or [`ContentError::NoSpace`].
    pub fn beside(folder: &Path) -> Result<Self, ContentError> {
        let folder = folder.join(VARIANTS_FOLDER);
        make_folder(&folder)?;
        Ok(Self { folder })
    }

    /// Where a file lies.
    #[must_use]
    pub fn path(&self, file: &VariantFile) -> PathBuf {
        self.folder.join(file.name())
    }

    /// Length of a file in bytes; `None` if it is not there.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn size_bytes(&self, file: &VariantFile) -> Result<Option<u64>, ContentError> {
        let path = self.path(file);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(|metadata| Some(metadata.len())).map_err(on("look at", &path)),
        }
    }

    /// Syncs and sums the finished file at `staged`, which is on the same file system, and gives it its name.
    ///
    /// # Errors
    /// [`ContentError::File`], [`ContentError::NoSpace`], [`ContentError::Cancelled`]; the file is then still at `staged`.
    pub fn publish(
        &self,
        staged: &Path,
        image: ImageId,
        format: DiskFormat,
        cancel: &AtomicBool,
    ) -> Result<Sums, ContentError> {
        let file = File::open(staged).map_err(on("open", staged))?;
        file.sync_all().map_err(on("sync", staged))?;
        let sums = sum_file(staged, cancel)?;
        let path = self.path(&VariantFile::new(image, format, &sums.blake3));
        fs::rename(staged, &path).map_err(on("rename", staged))?;
        sync_folder(&self.folder)?;
        Ok(sums)
    }

    /// Reads a file and counts its checksums again.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn sums(&self, file: &VariantFile) -> Result<Sums, ContentError> {
        sum_file(&self.path(file), &AtomicBool::new(false))
    }

    /// Removes a file, if it is there. Whoever reads it can go on.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn remove(&self, file: &VariantFile) -> Result<(), ContentError> {
        let path = self.path(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(on("remove", &path)),
        }
    }

    /// Removes all files of an image.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn remove_all(&self, image: ImageId) -> Result<(), ContentError> {
        let files = self.list()?;
        files.iter().filter(|file| file.image == image).try_for_each(|file| self.remove(file))
    }

    /// Every file.
    ///
    /// # Errors
    /// [`ContentError::File`].
    pub fn list(&self) -> Result<Vec<VariantFile>, ContentError> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(on("list", &self.folder))? {
            let name = entry.map_err(on("list", &self.folder))?.file_name();
            match name.to_str().and_then(VariantFile::parse) {
                Some(file) => files.push(file),
                None => {
                    tracing::warn!(name = %name.display(), "a file among the variants that Hearth did not make")
                }
            }
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: ImageId = ImageId::from_bytes([7; 16]);

    #[test]
    fn a_name_is_read_back_and_nothing_else_is() {
        let file = VariantFile::new(IMAGE, DiskFormat::Vmdk, &"ab".repeat(32));
        assert_eq!(VariantFile::parse(&file.name()), Some(file.clone()));
        let name = file.name();
        for wrong in
            ["", "x", &name.replace("vmdk", "vdi"), &name.replace("abab", "aba"), &format!("{name}.new")]
        {
            assert_eq!(VariantFile::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn two_makings_of_one_variant_never_share_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let variants = Variants::beside(folder.path()).unwrap();
        let staged = folder.path().join("staged");
        let publish = |bytes: &str| {
            fs::write(&staged, bytes).unwrap();
            let sums = variants.publish(&staged, IMAGE, DiskFormat::Vhd, &AtomicBool::new(false)).unwrap();
            VariantFile::new(IMAGE, DiskFormat::Vhd, &sums.blake3)
        };
        let (old, new) = (publish("old"), publish("newer"));
        assert_eq!(variants.size_bytes(&old).unwrap(), Some(3));
        assert_eq!(variants.size_bytes(&new).unwrap(), Some(5));
        variants.remove_all(IMAGE).unwrap();
        assert_eq!(variants.list().unwrap(), []);
        variants.remove(&new).unwrap();
    }
}
