//! Variants made by the real controller binary and qemu-img, without a database.
//!
//! **What.** Every format converts back to the very disk, in the form that other hypervisors take; a cancel, a lack of room and a
//! damaged content leave nothing.
//! **Why here.** The converter is the controller started again, so a real binary is needed.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hearth_controller::content::VariantFile;
use hearth_controller::ingest::convert::Converter;
use hearth_controller::ingest::job::{ImportSpec, Ingest};
use hearth_controller::ingest::sandbox::{SandboxMode, landlock_available};
use hearth_controller::ingest::space::SpaceError;
use hearth_controller::ingest::variant::{VariantError, VariantSpec};
use hearth_controller::logic::variant::FORMATS;
use hearth_protocol::api::image::Checksums;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::DiskFormat;

const IMAGE: ImageId = ImageId::from_bytes([1; 16]);

struct Place {
    folder: tempfile::TempDir,
    ingest: Ingest,
    content: ContentId,
    disk: PathBuf,
}

impl Place {
    /// A disk of 300 MiB and 512 bytes (no round number in any format) with text, noise and holes.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        let mode = if landlock_available() { SandboxMode::Required } else { SandboxMode::BestEffort };
        let converter = Converter {
            controller: env!("CARGO_BIN_EXE_hearth-controller").into(),
            qemu_img: "/usr/bin/qemu-img".into(),
            mode,
        };
        let ingest = Ingest::new(&state, converter, 2).unwrap();
        let disk = folder.path().join("disk.raw");
        let file = fs::File::create(&disk).unwrap();
        file.set_len((300 << 20) + 512).unwrap();
        let mut noise = vec![0; 3 << 20];
        blake3::Hasher::new().update(b"disk").finalize_xof().fill(&mut noise);
        file.write_all_at(&noise, 1 << 20).unwrap();
        file.write_all_at(&b"kept warm\n".repeat(500_000), 100 << 20).unwrap();
        for n in 0..200u64 {
            file.write_all_at(&noise[..4096], (150 << 20) + n * (512 << 10)).unwrap();
        }
        file.write_all_at(b"the last sector", 300 << 20).unwrap();
        let mut original = ingest.originals.create(IMAGE).unwrap();
        fs::read(&disk)
            .unwrap()
            .chunks(1 << 20)
            .for_each(|part| original.write(Bytes::copy_from_slice(part)).unwrap());
        original.finish().unwrap();
        let spec = ImportSpec {
            image: IMAGE,
            declared: None,
            expected: Checksums::default(),
            sums: None,
            disk_bytes: None,
        };
        let content = ingest.run_import(&spec, &AtomicBool::new(false), &mut |_, _| ()).unwrap().content;
        Self { folder, ingest, content, disk }
    }

    fn make(&self, format: DiskFormat, cancel: &AtomicBool) -> Result<PathBuf, VariantError> {
        let spec = VariantSpec { image: IMAGE, content: self.content, format };
        let mut shown = Vec::new();
        let sums = self.ingest.make_variant(&spec, cancel, &mut |percent| shown.push(percent))?;
        assert!(shown.is_sorted() && shown.last() < Some(&100), "{shown:?}");
        let file = VariantFile::new(IMAGE, format, &sums.blake3);
        assert_eq!(self.ingest.variants.sums(&file).unwrap(), sums);
        Ok(self.ingest.variants.path(&file))
    }

    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(self.ingest.variants.list().unwrap(), []);
        assert_eq!(fs::read_dir(self.folder.path().join("state/staging")).unwrap().count(), 0);
    }
}

fn qemu_img(args: &[&str], files: &[&Path]) -> (bool, String) {
    let done = Command::new("qemu-img").args(args).args(files).output().unwrap();
    (
        done.status.success(),
        format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr)),
    )
}

/// IMG-2: every variant holds the very bytes of the disk, in the exact size, as other hypervisors take it.
#[test]
fn every_format_converts_back_to_the_disk() {
    let place = Place::new();
    for format in FORMATS {
        let made = place.make(format, &AtomicBool::new(false)).unwrap();
        let driver = if format == DiskFormat::Vhd { "vpc" } else { format.as_str() };
        let (equal, said) = qemu_img(&["compare", "-f", "raw", "-F", driver], &[&place.disk, &made]);
        assert!(equal && said.contains("Images are identical"), "{format}: {said}");
        let (_, info) = qemu_img(&["info", "--output=json", "-f", driver], &[&made]);
        let size = serde_json::from_str::<serde_json::Value>(&info).unwrap()["virtual-size"].as_u64();
        assert_eq!(size, Some((300 << 20) + 512), "{format}: {info}");
        match format {
            DiskFormat::Vmdk => assert!(info.contains("streamOptimized"), "{info}"),
            DiskFormat::Qcow2 => assert!(info.contains("\"compression-type\": \"zlib\""), "{info}"),
            _ => {}
        }
        let meta = fs::metadata(&made).unwrap();
        assert!(meta.blocks() * 512 < 40 << 20, "{format} takes {} bytes", meta.blocks() * 512);
        // What we made we take: the way back is an import like any other.
        fs::copy(&made, place.ingest.originals.path(IMAGE)).unwrap();
        let spec = ImportSpec {
            image: IMAGE,
            declared: Some(format),
            expected: Checksums::default(),
            sums: None,
            disk_bytes: None,
        };
        let again = place.ingest.run_import(&spec, &AtomicBool::new(false), &mut |_, _| ()).unwrap();
        assert!(
            again.content == place.content || format == DiskFormat::Vmdk,
            "{format} gives another content"
        );
    }
    assert_eq!(place.ingest.variants.list().unwrap().len(), FORMATS.len());
}

#[test]
fn a_cancel_leaves_nothing() {
    let place = Place::new();
    let spec = VariantSpec { image: IMAGE, content: place.content, format: DiskFormat::Qcow2 };
    for at in [0, 20, 60, 90] {
        let cancel = AtomicBool::new(false);
        let mut stop = |percent| cancel.store(percent >= at, Ordering::Relaxed);
        let made = place.ingest.make_variant(&spec, &cancel, &mut stop);
        assert!(matches!(made, Err(VariantError::Cancelled)), "at {at} %: {made:?}");
        place.nothing_is_left();
    }
}

/// IMG-2: a variant that does not fit says what is needed and what is free, before a byte is written.
#[test]
fn a_variant_that_does_not_fit_says_so_with_figures() {
    let place = Place::new();
    let mut taken = Vec::new();
    let mut step = 1 << 50;
    while step > 1 << 20 {
        match place.ingest.space.reserve(step) {
            Ok(reservation) => taken.push(reservation),
            Err(_) => step /= 2,
        }
    }
    let error = place.make(DiskFormat::Vhdx, &AtomicBool::new(false)).unwrap_err();
    let VariantError::Space(SpaceError::NoSpace { needed_bytes, free_bytes, .. }) = &error else {
        panic!("{error}")
    };
    assert!(*needed_bytes > 2 * (8 << 20) && free_bytes < needed_bytes, "{error}");
    assert!(error.to_string().contains(&needed_bytes.to_string()), "{error}");
    place.nothing_is_left();
    drop(taken);
    place.make(DiskFormat::Vhdx, &AtomicBool::new(false)).unwrap();
}

#[test]
fn nothing_is_made_of_a_damaged_content() {
    let place = Place::new();
    let id = place.content.to_string();
    let shard: String = id.chars().take(2).collect();
    let object = place.folder.path().join("state/content/objects").join(shard).join(&id);
    let file = fs::OpenOptions::new().write(true).open(object).unwrap();
    file.write_all_at(b"broken", 100_000).unwrap();
    let error = place.make(DiskFormat::Vmdk, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.damaged(), Some(place.content), "{error}");
    place.nothing_is_left();
}
