//! One import, from the uploaded file to a published content.
//!
//! **What.** [`Ingest::run_import`] inspects, converts, cuts and packs, reads back and publishes; it blocks and reports
//! stage and percentage. It knows no database: the caller records what it returns.
//!
//! **Why the original stays until the caller removes it.** If the controller dies between publishing and recording, the
//! job is simply run again, and that needs the file.
//!
//! **Why one file.** The steps stand in the order in which they run, with the errors of all of them before; what a step does is
//! in the files beside.
//!
//! **Invariants**, tested with the real programs in `controller/tests/import.rs`: on any failure no staging file is left;
//! on a failure for good the original is gone too; what an interrupted run left is removed at the next start; running
//! twice gives the same content.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_protocol::api::image::Checksums;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ContentKind, DiskFormat, ImportStage};

use super::chunk::{self, Chunking};
use super::convert::{Conversion, ConvertError, Converter, time_limit};
use super::inspect::{ImageFile, InspectError, InspectWarning, Inspection, PartitionTable, inspect};
use super::publish::Made;
use super::sandbox::{SandboxError, SandboxMode, landlock_available};
use super::scan::{ScanError, Scanner};
use super::space::{Reservation, Space, SpaceError};
use super::unpack::{self, UnpackError, Unpacking};
use crate::content::{
    CONTENT_FOLDER, ContentError, ContentStore, Originals, Published, Staged, Sums, Variants,
};

/// Room for the file system's own blocks beside what the image's tables announce: block lists and a last, partly filled
/// block per extent of a sparse file.
pub(super) const SLACK_BYTES: u64 = 32 << 20;

/// Everything imports work with. One per controller.
#[derive(Debug)]
pub struct Ingest {
    /// Published contents.
    pub content: Arc<ContentStore>,
    /// Uploaded files.
    pub originals: Arc<Originals>,
    /// Space promised to uploads and imports.
    pub space: Space,
    /// What was made of contents for downloads.
    pub variants: Arc<Variants>,
    pub(super) converter: Converter,
    pub(super) staging: PathBuf,
    pub(super) scanner: Option<Scanner>,
    pub(super) threads: usize,
    unpacked_bytes_max: u64,
}

/// What to import.
#[derive(Clone, Debug)]
pub struct ImportSpec {
    /// Image whose original is imported.
    pub image: ImageId,
    /// What the uploader said the format is.
    pub declared: Option<DiskFormat>,
    /// What the uploader said the checksums are.
    pub expected: Checksums,
    /// Size that the disk is grown to; a larger one is refused.
    pub disk_bytes: Option<u64>,
    /// Checksums counted during the upload; `None` after a restart: they are counted again.
    pub sums: Option<Sums>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Imported {
    /// What the uploaded file is.
    pub format: DiskFormat,
    /// The content.
    pub content: ContentId,
    /// How it was cut.
    pub kind: ContentKind,
    /// Size as a guest sees it, in bytes.
    pub virtual_bytes: u64,
    /// Non-zero bytes.
    pub data_bytes: u64,
    /// Bytes of the content object.
    pub stored_bytes: u64,
    /// Chunks of the content.
    pub n_chunks: u32,
    /// Size and checksums of the original.
    pub sums: Sums,
    /// Partition table of the disk, where it was looked for.
    pub partition_table: PartitionTable,
    /// Oddities for people.
    pub warnings: Vec<InspectWarning>,
    /// What the scanner said, where one is configured.
    pub scan: Option<String>,
    /// Whether the content was there before.
    pub published: Published,
}

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is nothing to import.
    #[error("no uploaded file is here for image {image}; upload it again")]
    NoOriginal {
        /// Which image.
        image: ImageId,
    },
    /// Not the file that was meant.
    #[error(
        "the uploaded file has {algorithm} {got}, expected {expected}; it was damaged on the way or is another file: \
         nothing of it was kept, upload it again"
    )]
    Checksum {
        /// "sha256", "sha512", "md5" or "blake3".
        algorithm: &'static str,
        /// What the uploader said.
        expected: String,
        /// What was counted.
        got: String,
    },
    /// The disk does not fit into the size that was asked for.
    #[error(
        "the disk has {virtual_bytes} bytes, more than the {disk_bytes} it was to be grown to: a disk is never shrunk; \
         import it with a larger size or without one"
    )]
    LargerThanAsked {
        /// What it has.
        virtual_bytes: u64,
        /// What was asked for.
        disk_bytes: u64,
    },
    /// An ISO was to be grown.
    #[error("the file is an iso, which is no disk and keeps its size: import it without a disk size")]
    NoDisk,
    /// The file is no image we take.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// qemu-img or its sandbox failed.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The scanner refused the image or did not work.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// Reading or writing the store failed.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// No room.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// It came packed and cannot be unpacked.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The disk is full although the room was set aside: somebody else took it.
    #[error(
        "the disk became full during the import: up to {needed_bytes} bytes are needed for {path}, {free_bytes} are \
         free; delete images or enlarge the disk, then retry the import"
    )]
    Full {
        /// File that could not be written.
        path: PathBuf,
        /// What was set aside.
        needed_bytes: u64,
        /// Free when it failed.
        free_bytes: u64,
    },
    /// What was written is not what is read.
    #[error("{n_bad} chunks read back differ from what was written; check this machine's memory and disk")]
    ReadBack {
        /// How many.
        n_bad: usize,
    },
    /// The original does not give the content it gave before.
    #[error("the original gives content {got}, not {expected}; the original is damaged or another file")]
    OtherContent {
        /// What it gives.
        got: ContentId,
        /// What it should give.
        expected: ContentId,
    },
    /// The image is to be encrypted, and its key is not there.
    #[error("the image cannot be encrypted: {why}; nothing of the file was kept")]
    NoKey {
        /// Why.
        why: String,
    },
    /// What was made could not be noted.
    #[error("what was made of the image could not be noted: {why}")]
    NotNoted {
        /// Why.
        why: String,
    },
    /// What stands in its way may be gone when the controller is started again.
    #[error("the import waits until the controller is started again: {why}")]
    Waits {
        /// What stands in its way.
        why: String,
    },
    /// A staging file could not be handled.
    #[error("cannot {action} {path}")]
    File {
        /// "create", "open", "remove".
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ImportError {
    /// Whether the same file would fail again: then the original is removed. Otherwise (disk full, cancelled, the
    /// machine at fault) the same import may be tried later.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        match self {
            Self::LargerThanAsked { .. } | Self::NoDisk | Self::NoKey { .. } => true,
            Self::NoOriginal { .. } | Self::Checksum { .. } | Self::Inspect(_) => {
                !matches!(self, Self::Inspect(InspectError::Read { .. }))
            }
            Self::Convert(error) => matches!(
                error,
                ConvertError::Failed { .. } | ConvertError::TooLarge { .. } | ConvertError::Length { .. }
            ),
            Self::Content(error) => matches!(error, ContentError::Manifest(_)),
            Self::Scan(error) => matches!(error, ScanError::Refused { .. }),
            Self::Unpack(error) => error.is_final(),
            Self::Space(_)
            | Self::Full { .. }
            | Self::ReadBack { .. }
            | Self::OtherContent { .. }
            | Self::NotNoted { .. }
            | Self::Waits { .. }
            | Self::File { .. } => false,
        }
    }
}

impl ImportError {
    /// Whether it was told to end.
    #[must_use]
    pub const fn is_cancelled(&self) -> bool {
        matches!(
            self,
            Self::Convert(ConvertError::Cancelled)
                | Self::Content(ContentError::Cancelled)
                | Self::Scan(ScanError::Cancelled)
                | Self::Unpack(UnpackError::Cancelled)
        )
    }
}

/// Called with each new stage or percentage.
pub type Progress<'a> = dyn FnMut(ImportStage, u8) + Send + 'a;

impl Ingest {
    /// Opens the stores under `state` and removes what interrupted imports and uploads left. `threads` hash and pack.
    ///
    /// # Errors
    /// [`ImportError::Content`] or [`ImportError::File`].
    pub fn new(state: &Path, converter: Converter, threads: usize) -> Result<Self, ImportError> {
        warn_of_missing_sandbox(converter.mode);
        let content = Arc::new(ContentStore::new(&create(state.join(CONTENT_FOLDER))?)?);
        let originals = Arc::new(Originals::new(state)?);
        let staging = state.join("staging");
        remove(&staging)?;
        Ok(Self {
            content,
            originals,
            variants: Arc::new(Variants::beside(state)?),
            space: Space::new(state),
            converter,
            staging: create(staging)?,
            scanner: None,
            threads,
            unpacked_bytes_max: crate::config::IMAGE_BYTES_MAX_DEFAULT,
        })
    }

    /// Lets `scanner`, if there is one, look at each import.
    #[must_use]
    pub fn with_scanner(self, scanner: Option<Scanner>) -> Self {
        Self { scanner, ..self }
    }

    /// Limits what a packed file may unpack to.
    #[must_use]
    pub const fn with_unpacked_bytes_max(mut self, bytes: u64) -> Self {
        self.unpacked_bytes_max = bytes;
        self
    }

    /// Imports the uploaded file of an image; blocks until done.
    ///
    /// # Errors
    /// [`ImportError`]; where [`ImportError::is_final`] the original has been removed.
    pub fn run_import(
        &self,
        spec: &ImportSpec,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<Imported, ImportError> {
        let imported = self.import(spec, cancel, progress);
        if imported.as_ref().is_err_and(ImportError::is_final) {
            self.originals.remove(spec.image)?;
        }
        imported
    }

    fn import(
        &self,
        spec: &ImportSpec,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<Imported, ImportError> {
        progress(ImportStage::Inspecting, 0);
        let sums = self.expected_sums(spec, cancel)?;
        let source = Source { image: spec.image, declared: spec.declared, disk_bytes: spec.disk_bytes };
        let made = self.make(source, self.scanner.as_ref(), cancel, progress)?;
        self.publish(made, sums, cancel, progress)
    }

    /// Makes a damaged content again from its original and puts it in its place. `disk_bytes`: what its disk was grown to.
    ///
    /// # Errors
    /// [`ImportError`]; [`ImportError::OtherContent`] if the original is damaged too: ask an agent for the chunks.
    pub fn heal_from_original(
        &self,
        image: ImageId,
        format: DiskFormat,
        disk_bytes: Option<u64>,
        expected: ContentId,
        cancel: &AtomicBool,
    ) -> Result<Published, ImportError> {
        // The same bytes were looked at when they came in.
        let source = Source { image, declared: Some(format), disk_bytes };
        let made = self.make(source, None, cancel, &mut |_, _| ())?;
        let got = made.staged.root().content_id();
        if got != expected {
            return Err(ImportError::OtherContent { got, expected });
        }
        Ok(self.content.publish(made.staged, cancel)?)
    }

    /// Inspects, converts, cuts and reads back. The staging folder is gone again except for the staged content.
    fn make(
        &self,
        Source { image, declared, disk_bytes }: Source,
        scanner: Option<&Scanner>,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<Made, ImportError> {
        let folder = self.staging.join(image.to_string());
        remove(&folder)?;
        let staging = Folder(create(folder)?);
        let (path, _room) = self.unpacked(self.originals.path(image), &staging.0, cancel, progress)?;
        let open = |path: &Path| File::open(path).map_err(on("open", path));
        let reader = ImageFile::new(open(&path)?).map_err(on("open", &path))?;
        let inspection = inspect(&reader, declared)?;
        must_fit(&inspection, disk_bytes)?;
        let raw_path = staging.0.join("disk.raw");
        let converted = !matches!(inspection.format, DiskFormat::Raw | DiskFormat::Iso);
        if converted {
            self.convert(&path, &raw_path, &inspection, cancel, progress)?;
        }
        let source_path = if converted { &raw_path } else { &path };
        let scan = scanner.map(|scanner| {
            progress(ImportStage::Inspecting, 50);
            scanner.scan(&self.converter, source_path, cancel)
        });
        let scan = scan.transpose()?;
        let source = open(source_path)?;
        progress(ImportStage::Chunking, 0);
        let kind = match inspection.format {
            DiskFormat::Iso => ContentKind::File,
            _ => ContentKind::Disk,
        };
        let needed_bytes = allocated(&source, source_path)?;
        let _promise = self.space.reserve(needed_bytes)?;
        // The staged object outlives this function, so it lies beside the folder of this image.
        let object = self.staging.join(format!("{image}.object"));
        remove(&object)?;
        let chunking = Chunking {
            source: &source,
            path: source_path,
            kind,
            staging: &object,
            threads: self.threads,
            grown_bytes: disk_bytes,
        };
        let total = inspection.virtual_size_bytes;
        let mut shown = Shown { progress, stage: ImportStage::Chunking, percent: 0 };
        let staged = chunk::stage(&chunking, cancel, &mut |at| shown.at(at, total));
        let staged = staged.map_err(|error| self.with_figures(error, needed_bytes))?;
        drop(source);
        drop(staging); // the raw file is no longer needed
        self.read_back(&staged, cancel, progress)?;
        Ok(Made { inspection, staged, scan })
    }

    /// The file to work on: the original, or what it holds if it came packed, with the room that this takes.
    pub(super) fn unpacked(
        &self,
        original: PathBuf,
        staging: &Path,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<(PathBuf, Vec<Reservation>), ImportError> {
        let packing = match unpack::packing_of(&original) {
            Ok(Some(packing)) => packing,
            Ok(None) => return Ok((original, Vec::new())),
            Err(error) => return Err(error.into()),
        };
        progress(ImportStage::Unpacking, 0);
        let output = staging.join("unpacked");
        let unpacking = Unpacking {
            input: &original,
            output: &output,
            most_bytes: self.unpacked_bytes_max,
            space: &self.space,
        };
        let mut shown = Shown { progress, stage: ImportStage::Unpacking, percent: 0 };
        let room = unpack::unpack(&unpacking, packing, cancel, &mut |done, total| shown.at(done, total))?;
        Ok((output, room))
    }

    /// Says of a full disk what is needed and what is there.
    pub(super) fn with_figures(&self, error: ContentError, needed_bytes: u64) -> ImportError {
        match error {
            ContentError::NoSpace { path } => {
                ImportError::Full { path, needed_bytes, free_bytes: self.space.left_bytes() }
            }
            error => error.into(),
        }
    }

    pub(super) fn convert(
        &self,
        input: &Path,
        output: &Path,
        inspection: &Inspection,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<(), ImportError> {
        progress(ImportStage::Converting, 0);
        let reserved_bytes = inspection.mapped_bytes.saturating_add(SLACK_BYTES);
        let _promise = self.space.reserve(reserved_bytes)?;
        let conversion = Conversion {
            input,
            format: inspection.format,
            output,
            virtual_size_bytes: inspection.virtual_size_bytes,
            reserved_bytes,
            time: time_limit(inspection.mapped_bytes),
        };
        let mut shown = |percent| progress(ImportStage::Converting, percent);
        Ok(self.converter.to_raw(&conversion, cancel, &mut shown)?)
    }

    /// Hashes every stored chunk before the content gets its name.
    pub(super) fn read_back(
        &self,
        staged: &Staged,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<(), ImportError> {
        progress(ImportStage::Checksumming, 0);
        let total = u64::from(staged.root().n_chunks());
        let shown = Mutex::new(Shown { progress, stage: ImportStage::Checksumming, percent: 0 });
        let step = |done| shown.lock().unwrap_or_else(PoisonError::into_inner).at(u64::from(done), total);
        let bad = staged.verify(self.threads, cancel, &step)?;
        if bad.is_empty() { Ok(()) } else { Err(ImportError::ReadBack { n_bad: bad.len() }) }
    }
}

/// Says once, at start, what an operator must know about this kernel.
fn warn_of_missing_sandbox(mode: SandboxMode) {
    if landlock_available() {
        return;
    }
    let error = SandboxError::NoLandlock;
    match mode {
        SandboxMode::Required => tracing::error!("{error}"),
        SandboxMode::BestEffort => {
            tracing::error!(
                "sandbox = \"best-effort\" and no Landlock: qemu-img can read every file that the controller can"
            );
        }
    }
}

/// Refuses what cannot get the size that was asked for, before anything is written.
pub(super) fn must_fit(inspection: &Inspection, disk_bytes: Option<u64>) -> Result<(), ImportError> {
    let virtual_bytes = inspection.virtual_size_bytes;
    match disk_bytes {
        Some(_) if inspection.format == DiskFormat::Iso => Err(ImportError::NoDisk),
        Some(disk_bytes) if virtual_bytes > disk_bytes => {
            Err(ImportError::LargerThanAsked { virtual_bytes, disk_bytes })
        }
        _ => Ok(()),
    }
}

/// What a content is made of.
#[derive(Clone, Copy)]
struct Source {
    image: ImageId,
    declared: Option<DiskFormat>,
    /// Size that the disk is grown to.
    disk_bytes: Option<u64>,
}

/// Passes on whole percentages only, below 100: the end of a stage is the next stage.
pub(super) struct Shown<'a, 'b> {
    pub(super) progress: &'a mut Progress<'b>,
    pub(super) stage: ImportStage,
    pub(super) percent: u8,
}

impl Shown<'_, '_> {
    pub(super) fn at(&mut self, done: u64, total: u64) {
        let percent = u8::try_from(u128::from(done) * 100 / u128::from(total.max(1))).unwrap_or(99).min(99);
        if percent > self.percent {
            self.percent = percent;
            (self.progress)(self.stage, percent);
        }
    }
}

/// A staging folder, removed when dropped.
pub(super) struct Folder(pub(super) PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "staging folder stays until the next start");
        }
    }
}

pub(super) fn create(path: PathBuf) -> Result<PathBuf, ImportError> {
    fs::create_dir_all(&path).map_err(on("create", &path))?;
    Ok(path)
}

pub(super) fn remove(path: &Path) -> Result<(), ImportError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(on("remove", path)),
    }
}

pub(super) fn allocated(file: &File, path: &Path) -> Result<u64, ImportError> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = file.metadata().map_err(on("open", path))?;
    Ok(metadata.len().min(metadata.blocks() * 512))
}

pub(super) fn on<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ImportError + 'a {
    move |source| ImportError::File { action, path: path.to_owned(), source }
}
