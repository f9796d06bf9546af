//! Makes an encrypted content of an uploaded disk: a qcow2 file with LUKS inside, written by the real `qemu-img` in the sandbox.
//!
//! **What.** [`Ingest::run_encrypted_import`] inspects and scans as every import does, lets `qemu-img` encrypt, cuts the file as
//! a content of kind `file`, reads back and publishes.
//!
//! **Why straight from the original.** What never was written in the plain need not be removed. A plain raw disk is made only
//! where a scanner must read it or the disk is to grow, and it is gone with the staging folder before this returns.
//!
//! **Why the passphrase goes through standard input.** It is in no argument, no variable and no file, and the sandbox needs no
//! further right: a process may always read what it was started with.
//!
//! **Invariants**, tested with the real programs in `controller/tests/encrypted.rs`: after a failure the plain original is gone
//! too, whatever failed (a cancelled import goes on later and keeps it); two runs give two contents, so nothing is shared with
//! another image.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use hearth_protocol::passphrase::Passphrase;
use hearth_protocol::words::{ContentKind, DiskFormat, ImportStage};

use super::chunk::{self, Chunking};
use super::convert::{Conversion, ConvertError, Converter, driver, time_limit};
use super::inspect::{ImageFile, Inspection, inspect};
use super::job::{
    Folder, ImportError, ImportSpec, Imported, Ingest, Progress, SLACK_BYTES, Shown, allocated, create,
    must_fit, on, remove,
};
use super::publish::Made;

/// A cluster of the encrypted file is written whole although one block of 4 KiB of the disk is in use: at worst so many times
/// the bytes that the image's tables announce.
const CLUSTER_BLOCKS: u64 = 16;
/// Times the announced bytes that are set aside: disks use their clusters nearly whole.
const USUAL_GROWTH: u64 = 2;
/// `qemu-img` gives up where the kernel's count of processor time seems to go back, which is rare and passes.
const TRIES_MAX: u32 = 10;
/// What it says then.
const CLOCK_COMPLAINT: &str = "accurate CPU usage";
/// Options of the encrypted file. The passphrase has 256 random bits, so it needs no slow hash: a machine opens its disk at once.
const OPTIONS: &str = "encrypt.format=luks,encrypt.key-secret=passphrase,encrypt.iter-time=10,compat=1.1";
/// Where the passphrase comes from: standard input, by the name that the sandbox lets pass.
const SECRET: &str = "secret,id=passphrase,file=/proc/self/fd/0";

/// What came of an encrypted import.
#[derive(Clone, Debug)]
pub struct Encrypted {
    /// The file, as a content.
    pub imported: Imported,
    /// Size of the disk inside, bytes.
    pub disk_bytes: u64,
}

impl Ingest {
    /// As [`Ingest::run_import`], but what is published opens only with `passphrase`, and is marked as leaving
    /// ([`ContentStore::leaving`](crate::content::ContentStore::leaving)) until the caller has recorded it. The original stays until
    /// the caller removes it, but for an import that failed.
    ///
    /// # Errors
    /// [`ImportError`]; unless [`ImportError::is_cancelled`], the original has been removed.
    pub fn run_encrypted_import(
        &self,
        spec: &ImportSpec,
        passphrase: &Passphrase,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<Encrypted, ImportError> {
        let made = self.encrypt(spec, passphrase, cancel, progress);
        if made.as_ref().is_err_and(|error| !error.is_cancelled()) {
            self.originals.remove(spec.image)?;
        }
        made
    }

    fn encrypt(
        &self,
        spec: &ImportSpec,
        passphrase: &Passphrase,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<Encrypted, ImportError> {
        progress(ImportStage::Inspecting, 0);
        let sums = self.expected_sums(spec, cancel)?;
        let folder = self.staging.join(spec.image.to_string());
        remove(&folder)?;
        let staging = Folder(create(folder)?);
        let (path, _room) = self.unpacked(self.originals.path(spec.image), &staging.0, cancel, progress)?;
        let reader = ImageFile::new(fs::File::open(&path).map_err(on("open", &path))?);
        let inspection = inspect(&reader.map_err(on("open", &path))?, spec.declared)?;
        must_fit(&inspection, spec.disk_bytes)?;
        let encrypted = staging.0.join("disk.luks");
        let (plain, scan) = self.plain(spec, &path, &inspection, &staging, cancel, progress)?;
        let disk_bytes = spec.disk_bytes.unwrap_or(0).max(inspection.virtual_size_bytes);
        let source = Plain {
            path: plain.as_deref().unwrap_or(&path),
            format: if plain.is_some() { DiskFormat::Raw } else { inspection.format },
            disk_bytes,
            mapped_bytes: inspection.mapped_bytes,
        };
        self.to_luks(&source, &encrypted, passphrase, cancel, progress)?;
        if let Some(plain) = &plain {
            fs::remove_file(plain).map_err(on("remove", plain))?;
        }
        let staged = self.cut(spec, &encrypted, cancel, progress)?;
        drop(staging);
        self.read_back(&staged, cancel, progress)?;
        // Another run makes another content: one that nobody comes to know must not stay.
        self.content.leaving(staged.root().content_id())?;
        let imported = self.publish(Made { inspection, staged, scan }, sums, cancel, progress)?;
        Ok(Encrypted { imported, disk_bytes })
    }

    /// A plain raw disk where one is needed, and what the scanner said.
    fn plain(
        &self,
        spec: &ImportSpec,
        original: &Path,
        inspection: &Inspection,
        staging: &Folder,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<(Option<std::path::PathBuf>, Option<String>), ImportError> {
        let is_plain = matches!(inspection.format, DiskFormat::Raw | DiskFormat::Iso);
        let grows = spec.disk_bytes.is_some_and(|bytes| bytes > inspection.virtual_size_bytes);
        let scanner = self.scanner.as_ref();
        let raw = staging.0.join("disk.raw");
        let made = grows || (scanner.is_some() && !is_plain);
        if made {
            self.convert(original, &raw, inspection, cancel, progress)?;
        }
        let scan = scanner.map(|scanner| {
            progress(ImportStage::Inspecting, 50);
            scanner.scan(&self.converter, if made { &raw } else { original }, cancel)
        });
        let scan = scan.transpose()?;
        if let Some(disk_bytes) = spec.disk_bytes.filter(|_| grows) {
            let file = fs::OpenOptions::new().write(true).open(&raw).map_err(on("open", &raw))?;
            file.set_len(disk_bytes).map_err(on("grow", &raw))?;
        }
        Ok((made.then_some(raw), scan))
    }

    /// Encrypts; once more where `qemu-img` only stumbled over the clock.
    fn to_luks(
        &self,
        plain: &Plain<'_>,
        output: &Path,
        passphrase: &Passphrase,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<(), ImportError> {
        progress(ImportStage::Converting, 0);
        let tables_bytes = plain.disk_bytes / 1024 + SLACK_BYTES;
        let grown =
            |times: u64| plain.mapped_bytes.saturating_mul(times).min(plain.disk_bytes) + tables_bytes;
        let _promise = self.space.reserve(grown(USUAL_GROWTH))?;
        let conversion = Conversion {
            input: plain.path,
            format: plain.format,
            output,
            virtual_size_bytes: plain.disk_bytes.saturating_add(tables_bytes),
            reserved_bytes: grown(CLUSTER_BLOCKS),
            time: time_limit(plain.mapped_bytes),
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let mut shown = |percent| progress(ImportStage::Converting, percent);
            match self.converter.to_luks(&conversion, passphrase, cancel, &mut shown) {
                Err(ConvertError::Failed { message, .. })
                    if message.contains(CLOCK_COMPLAINT) && tries < TRIES_MAX =>
                {
                    tracing::debug!(tries, "qemu-img does not trust the clock; tried again");
                    fs::remove_file(output).map_err(on("remove", output))?;
                }
                ended => return Ok(ended?),
            }
        }
    }

    /// Cuts the encrypted file into a staged content.
    fn cut(
        &self,
        spec: &ImportSpec,
        file: &Path,
        cancel: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<crate::content::Staged, ImportError> {
        progress(ImportStage::Chunking, 0);
        let source = fs::File::open(file).map_err(on("open", file))?;
        let needed_bytes = allocated(&source, file)?;
        let _promise = self.space.reserve(needed_bytes)?;
        let object = self.staging.join(format!("{}.object", spec.image));
        remove(&object)?;
        let chunking = Chunking {
            source: &source,
            path: file,
            kind: ContentKind::File,
            staging: &object,
            threads: self.threads,
            grown_bytes: None,
        };
        let total = source.metadata().map_err(on("open", file))?.len();
        let mut shown = Shown { progress, stage: ImportStage::Chunking, percent: 0 };
        let staged = chunk::stage(&chunking, cancel, &mut |at| shown.at(at, total));
        staged.map_err(|error| self.with_figures(error, needed_bytes))
    }
}

/// What is encrypted.
struct Plain<'a> {
    path: &'a Path,
    format: DiskFormat,
    /// Size of the disk.
    disk_bytes: u64,
    /// Bytes in use at most.
    mapped_bytes: u64,
}

impl Converter {
    /// Writes the disk `conversion.input` as the encrypted file `conversion.output`. Here `virtual_size_bytes` is the length that
    /// the output may reach.
    ///
    /// # Errors
    /// As [`Converter::to_raw`].
    fn to_luks(
        &self,
        conversion: &Conversion<'_>,
        passphrase: &Passphrase,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u8),
    ) -> Result<(), ConvertError> {
        let input = driver(conversion.format);
        let formats = ["-f", input, "-O", "qcow2", "-S", "4k", "--object", SECRET, "-o", OPTIONS];
        self.run(conversion, &[], &formats, Some(passphrase), cancel, progress).map(drop)
    }
}
