//! Makes one variant: the disk of a content in another format.
//!
//! **What.** [`Ingest::make_variant`] unpacks the content into a sparse raw file in the staging folder, has `qemu-img` in the sandbox
//! make the other format of it, syncs and sums that, and gives it its place. It blocks; it knows no database.
//!
//! **Why from the content and never from the original.** The content is what hosts run: a variant is the same disk, whatever the
//! original was and whether it was kept. So the variant whose format is the original's is made like all others; the original
//! itself is a download of its own.
//!
//! **Why the whole raw file.** qemu-img reads a file or a socket, and the sandbox has no sockets. The file has holes for zeros, its
//! room and that of the variant are set aside before the first byte is written, and it is gone when this returns.
//!
//! **Invariants**, tested with the real programs in `controller/tests/variants.rs`: whatever happens, the staging folder of the
//! variant is gone; a variant in its place is whole, synced and has the sums that are returned.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::DiskFormat;

use super::convert::{Conversion, ConvertError, time_limit};
use super::job::Ingest;
use super::space::SpaceError;
use crate::content::{ContentError, Sums};
use crate::logic::variant::{Room, VariantRefusal, check, room};

/// A variant at low priority gets so many times the usual time: imports go before it.
const PATIENCE: u32 = 8;
/// Parts of the progress: unpacking ends here, in percent.
const UNPACKED_PERCENT: u8 = 30;
/// Converting ends here; the rest is for sums.
const CONVERTED_PERCENT: u8 = 90;

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct VariantSpec {
    /// Whose.
    pub image: ImageId,
    /// Of which bytes.
    pub content: ContentId,
    /// In which format.
    pub format: DiskFormat,
}

/// Why there is no variant.
#[derive(Debug, thiserror::Error)]
pub enum VariantError {
    /// It cannot be one of this content.
    #[error(transparent)]
    Refused(#[from] VariantRefusal),
    /// No room.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// The disk is full although the room was set aside: somebody else took it.
    #[error(
        "the disk became full while the variant was made: up to {needed_bytes} bytes are needed, {free_bytes} are free; \
         delete images or enlarge the disk, then ask for the variant again"
    )]
    Full {
        /// What was set aside.
        needed_bytes: u64,
        /// Free when it failed.
        free_bytes: u64,
    },
    /// Larger than a variant can be.
    #[error("the variant grew over the {reserved_bytes} bytes set aside for it and was stopped")]
    TooLarge {
        /// What was set aside.
        reserved_bytes: u64,
    },
    /// qemu-img or its sandbox failed.
    #[error(transparent)]
    Convert(ConvertError),
    /// Reading the content or writing the file failed.
    #[error(transparent)]
    Content(ContentError),
    /// It was deleted meanwhile, or the controller stops.
    #[error("stopped on request")]
    Cancelled,
    /// The staging folder could not be handled.
    #[error("cannot {action} {path}")]
    File {
        /// "create" or "remove".
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl VariantError {
    /// The content whose damage is the reason, if that is it: it can be mended.
    #[must_use]
    pub const fn damaged(&self) -> Option<ContentId> {
        match self {
            Self::Content(ContentError::Damaged { content, .. }) => Some(*content),
            _ => None,
        }
    }
}

impl Ingest {
    /// Makes a variant and blocks until it is in its place. `progress` gets 0 to 99.
    ///
    /// # Errors
    /// [`VariantError`]; nothing of it is left then.
    pub fn make_variant(
        &self,
        spec: &VariantSpec,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u8),
    ) -> Result<Sums, VariantError> {
        let object = self.content.open(spec.content).map_err(VariantError::Content)?;
        let root = object.root();
        check(root.kind(), root.raw_bytes(), spec.format)?;
        let room = room(spec.format, root.raw_bytes(), root.data_bytes());
        let _promise = self.space.reserve(room.all_bytes())?;
        let staging = Folder::new(self.staging.join(format!("{}.{}.variant", spec.image, spec.format)))?;
        let in_words = |error| self.in_words(error, room);
        let raw = staging.0.join("disk.raw");
        let unpacked = if spec.format == DiskFormat::Raw { CONVERTED_PERCENT } else { UNPACKED_PERCENT };
        let unpacking = object.materialise(&raw, cancel, &mut |percent| progress(part(percent, 0, unpacked)));
        unpacking.map_err(in_words)?;
        let made = if spec.format == DiskFormat::Raw {
            raw
        } else {
            let made = staging.0.join("made");
            self.convert_raw(&raw, &made, spec.format, room, cancel, progress)?;
            // Its room is not needed any more, and summing takes a while.
            fs::remove_file(&raw).map_err(on("remove", &raw))?;
            made
        };
        progress(CONVERTED_PERCENT);
        self.variants.publish(&made, spec.image, spec.format, cancel).map_err(in_words)
    }

    fn convert_raw(
        &self,
        raw: &Path,
        made: &Path,
        format: DiskFormat,
        room: Room,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u8),
    ) -> Result<(), VariantError> {
        let conversion = Conversion {
            input: raw,
            format: DiskFormat::Raw,
            output: made,
            virtual_size_bytes: room.length_bytes,
            reserved_bytes: room.made_bytes,
            time: time_limit(room.made_bytes) * PATIENCE,
        };
        let mut shown = |percent| progress(part(percent, UNPACKED_PERCENT, CONVERTED_PERCENT));
        self.converter.to_variant(&conversion, format, cancel, &mut shown).map_err(|error| match error {
            ConvertError::Cancelled => VariantError::Cancelled,
            ConvertError::NoSpace { .. } => self.full(room),
            ConvertError::TooLarge { reserved_bytes, .. } => VariantError::TooLarge { reserved_bytes },
            error => VariantError::Convert(error),
        })
    }

    fn in_words(&self, error: ContentError, room: Room) -> VariantError {
        match error {
            ContentError::Cancelled => VariantError::Cancelled,
            ContentError::NoSpace { .. } => self.full(room),
            error => VariantError::Content(error),
        }
    }

    fn full(&self, room: Room) -> VariantError {
        VariantError::Full { needed_bytes: room.all_bytes(), free_bytes: self.space.left_bytes() }
    }
}

/// Where `percent` of a part that goes from `from` to `to` stands in the whole.
fn part(percent: u8, from: u8, to: u8) -> u8 {
    let done = u32::from(to.saturating_sub(from)) * u32::from(percent.min(100)) / 100;
    from.saturating_add(u8::try_from(done).unwrap_or(0))
}

/// A staging folder, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(path: PathBuf) -> Result<Self, VariantError> {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(on("remove", &path)(error)),
            _ => {}
        }
        fs::create_dir_all(&path).map_err(on("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "staging folder stays until the next start");
        }
    }
}

fn on<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> VariantError + 'a {
    move |source| VariantError::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_never_goes_back_and_never_ends_early() {
        let parts = [(0, UNPACKED_PERCENT), (UNPACKED_PERCENT, CONVERTED_PERCENT)];
        let shown: Vec<u8> = parts
            .iter()
            .flat_map(|&(from, to)| (0..=100).map(move |percent| part(percent, from, to)))
            .collect();
        assert!(shown.is_sorted() && shown[0] == 0 && shown.last() == Some(&CONVERTED_PERCENT));
    }
}
