//! Whole imports with the real controller binary, qemu-img and mke2fs.
//!
//! **What.** Every accepted format ends in the same content as its raw disk; refusals, wrong checksums, a full disk, a
//! cancel and a kill leave nothing; a damaged content is made again from its original.
//! **Why here.** The converter is the controller started again, so a real binary is needed.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use hearth_controller::content::{ContentError, ContentObject, Published, Sums, Unpacker};
use hearth_controller::ingest::convert::{ConvertError, Converter};
use hearth_controller::ingest::inspect::InspectError;
use hearth_controller::ingest::job::{ImportError, ImportSpec, Imported, Ingest};
use hearth_controller::ingest::sandbox::SandboxMode;
use hearth_controller::ingest::space::Space;
use hearth_protocol::api::image::Checksums;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::{ContentKind, DiskFormat, ImportStage};

const IMAGE: ImageId = ImageId::from_bytes([1; 16]);

struct Place {
    folder: tempfile::TempDir,
    ingest: Ingest,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ingest = open(&folder.path().join("state"));
        Self { folder, ingest }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An ext4 disk with a tree of files, as `hearth dev` makes one.
    fn disk(&self) -> PathBuf {
        let (tree, disk) = (self.path("tree"), self.path("disk.raw"));
        fs::create_dir(&tree).unwrap();
        for n in 0..200u32 {
            let text = format!("file {n} of a machine that is kept warm\n").repeat(200 + n as usize);
            fs::write(tree.join(n.to_string()), text).unwrap();
        }
        let noise: Vec<u8> = (0..65536u32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect();
        fs::write(tree.join("noise"), noise).unwrap();
        run("/sbin/mke2fs", &["-q", "-t", "ext4", "-d", text(&tree), text(&disk), "64M"]);
        disk
    }

    fn upload(&self, image: ImageId, path: &Path) -> Sums {
        let mut writer = self.ingest.originals.create(image).unwrap();
        for part in fs::read(path).unwrap().chunks(300_000) {
            writer.write(Bytes::copy_from_slice(part)).unwrap();
        }
        writer.finish().unwrap()
    }

    fn import(&self, declared: Option<DiskFormat>, expected: Checksums) -> Result<Imported, ImportError> {
        let spec = ImportSpec { image: IMAGE, declared, expected, disk_bytes: None, sums: None };
        self.ingest.run_import(&spec, &AtomicBool::new(false), &mut |_, _| ())
    }

    /// Neither staging files nor an original are left.
    #[track_caller]
    fn nothing_is_left(&self) {
        assert_eq!(self.staged(), 0, "staging files are left");
        assert!(self.ingest.originals.open(IMAGE).unwrap().is_none(), "the original is left");
        assert!(self.ingest.content.list().unwrap().is_empty(), "a content is left");
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.path("state/staging")).unwrap().count()
    }
}

fn open(state: &Path) -> Ingest {
    let converter = Converter {
        controller: env!("CARGO_BIN_EXE_hearth-controller").into(),
        qemu_img: "/usr/bin/qemu-img".into(),
        mode: SandboxMode::Required,
    };
    fs::create_dir_all(state).unwrap();
    Ingest::new(state, converter, 2).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The raw bytes, put together from the stored chunks.
fn raw(object: &ContentObject) -> Vec<u8> {
    let mut raw = vec![0; usize::try_from(object.root().raw_bytes()).unwrap()];
    let mut unpacker = Unpacker::new().unwrap();
    for chunk in 0..object.root().n_chunks() {
        let (record, run) = (object.chunk_range(chunk, 1).unwrap()[0], object.read_stored(chunk, 1).unwrap());
        let mut out = Vec::new();
        assert!(unpacker.unpack(run.chunks[0].encoding, &run.bytes, record.raw_len, &mut out));
        let at = usize::try_from(record.offset).unwrap();
        raw[at..at + out.len()].copy_from_slice(&out);
    }
    raw
}

#[test]
fn every_format_of_a_disk_is_the_same_content() {
    let place = Place::new();
    let disk = place.disk();
    let bytes = fs::read(&disk).unwrap();
    let cases: [(&str, &[&str], DiskFormat); 8] = [
        ("raw", &[], DiskFormat::Raw),
        ("qcow2", &[], DiskFormat::Qcow2),
        ("qcow2", &["-c"], DiskFormat::Qcow2),
        ("qcow2", &["-c", "-o", "compression_type=zstd"], DiskFormat::Qcow2),
        ("vmdk", &[], DiskFormat::Vmdk),
        ("vmdk", &["-o", "subformat=streamOptimized"], DiskFormat::Vmdk),
        ("vpc", &["-o", "force_size=on,subformat=fixed"], DiskFormat::Vhd),
        ("vhdx", &[], DiskFormat::Vhdx),
    ];
    let mut contents = BTreeSet::new();
    for (driver, options, format) in cases {
        let file = place.path("upload");
        run(
            "qemu-img",
            &[&["convert", "-f", "raw", "-O", driver], options, &[text(&disk), text(&file)]].concat(),
        );
        let sums = place.upload(IMAGE, &file);
        let mut stages = Vec::new();
        let spec = ImportSpec {
            image: IMAGE,
            declared: Some(format),
            expected: Checksums { sha256: Some(sums.sha256.clone()), ..Checksums::default() },
            disk_bytes: None,
            sums: Some(sums.clone()),
        };
        let mut progress = |stage, percent| stages.push((stage, percent));
        let imported = place.ingest.run_import(&spec, &AtomicBool::new(false), &mut progress).unwrap();
        assert_eq!((imported.format, imported.kind), (format, ContentKind::Disk));
        assert_eq!((imported.virtual_bytes, imported.sums), (64 << 20, sums));
        contents.insert(imported.content);
        let expected =
            if contents.len() == 1 && driver == "raw" { Published::New } else { Published::Reused };
        assert_eq!(imported.published, expected, "{driver} {options:?}");
        let mut order: Vec<ImportStage> = stages.iter().map(|(stage, _)| *stage).collect();
        order.dedup();
        let converting = (format != DiskFormat::Raw).then_some(ImportStage::Converting);
        let rest = [ImportStage::Chunking, ImportStage::Checksumming];
        let expected: Vec<_> = [ImportStage::Inspecting].into_iter().chain(converting).chain(rest).collect();
        assert_eq!(order, expected, "{stages:?}");
        assert_eq!(place.staged(), 0);
        let original = place.ingest.originals.open(IMAGE).unwrap().unwrap();
        assert_eq!(original.size_bytes(), fs::metadata(file).unwrap().len());
    }
    assert_eq!(contents.len(), 1);
    let object = place.ingest.content.open(*contents.first().unwrap()).unwrap();
    assert!(raw(&object) == bytes, "the content is not the disk");
    assert!(object.root().data_bytes() < 20 << 20 && object.stored_bytes() < object.root().data_bytes() / 2);
}

#[test]
fn an_iso_is_kept_as_a_file() {
    let place = Place::new();
    let mut iso = vec![0x5A; 300 * 2048 + 100];
    iso[..32768].fill(0);
    iso[32768..32775].copy_from_slice(b"\x01CD001\x01");
    iso[32848..32852].copy_from_slice(&300u32.to_le_bytes());
    iso[32896..32898].copy_from_slice(&2048u16.to_le_bytes());
    fs::write(place.path("upload"), &iso).unwrap();
    place.upload(IMAGE, &place.path("upload"));
    let imported = place.import(Some(DiskFormat::Iso), Checksums::default()).unwrap();
    assert_eq!((imported.kind, imported.virtual_bytes), (ContentKind::File, iso.len() as u64));
    assert!(raw(&place.ingest.content.open(imported.content).unwrap()) == iso);
}

#[test]
fn a_wrong_checksum_removes_everything() {
    let place = Place::new();
    fs::write(place.path("upload"), vec![7; 100_000]).unwrap();
    let sums = place.upload(IMAGE, &place.path("upload"));
    let right = |sums: &Sums| Checksums {
        sha256: Some(sums.sha256.clone()),
        sha512: Some(sums.sha512.clone()),
        md5: Some(sums.md5.clone()),
        blake3: Some(sums.blake3.clone()),
    };
    let wrongs: [fn(&mut Checksums); 4] = [
        |sums| sums.sha256 = Some("00".repeat(32)),
        |sums| sums.sha512 = Some(String::new()),
        |sums| sums.md5 = Some("é".into()),
        |sums| sums.blake3 = Some("00".repeat(32)),
    ];
    for wrong in wrongs {
        place.upload(IMAGE, &place.path("upload"));
        let mut expected = right(&sums);
        wrong(&mut expected);
        let error = place.import(None, expected).unwrap_err();
        assert!(matches!(error, ImportError::Checksum { .. }) && error.is_final(), "{error}");
        place.nothing_is_left();
    }
    place.upload(IMAGE, &place.path("upload"));
    place.import(None, right(&sums)).unwrap();
}

#[test]
fn a_refused_file_and_one_that_does_not_convert_leave_nothing() {
    let place = Place::new();
    let file = place.path("upload");
    run("qemu-img", &["create", "-q", "-f", "vdi", text(&file), "8M"]);
    place.upload(IMAGE, &file);
    let error = place.import(None, Checksums::default()).unwrap_err();
    assert!(matches!(error, ImportError::Inspect(InspectError::Refused { .. })), "{error}");
    place.nothing_is_left();
    let error = place.import(None, Checksums::default()).unwrap_err();
    assert!(matches!(error, ImportError::NoOriginal { .. }), "{error}");

    // Every table is right, the compressed data are not.
    fs::write(place.path("raw"), b"hearth ".repeat(200_000)).unwrap();
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&place.path("raw")), text(&file)]);
    let broken = fs::OpenOptions::new().write(true).open(&file).unwrap();
    broken.write_all_at(&[0xFF; 64], 5 * 65536).unwrap();
    place.upload(IMAGE, &file);
    let error = place.import(Some(DiskFormat::Qcow2), Checksums::default()).unwrap_err();
    assert!(
        matches!(error, ImportError::Convert(ConvertError::Failed { .. })) && error.is_final(),
        "{error}"
    );
    place.nothing_is_left();
}

#[test]
fn an_image_larger_than_the_disk_is_refused_with_figures_and_may_be_tried_again() {
    let mut place = Place::new();
    let file = place.path("upload");
    let original = place.ingest.originals.path(IMAGE);
    // `/proc` never has a free block; on a real disk other tests make and give back room meanwhile.
    let disk = std::mem::replace(&mut place.ingest.space, Space::new("/proc".as_ref()));
    fs::write(&file, vec![1; 4 << 20]).unwrap();
    let sums = place.upload(IMAGE, &file);
    let error = place.import(None, Checksums::default()).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, ImportError::Space(_)) && !error.is_final(), "{said}");
    assert!(said.contains("4194304 bytes are needed") && said.contains("free"), "{said}");
    assert_eq!(place.staged(), 0);
    // A small file whose tables map a TiB is refused before anything is converted.
    let options = "preallocation=metadata,cluster_size=2M";
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, text(&file), "1T"]);
    fs::rename(&file, &original).unwrap();
    let mut stages = Vec::new();
    let spec = ImportSpec {
        image: IMAGE,
        declared: None,
        expected: Checksums::default(),
        disk_bytes: None,
        sums: Some(sums),
    };
    let result = place.ingest.run_import(&spec, &AtomicBool::new(false), &mut |stage, _| stages.push(stage));
    assert!(matches!(result, Err(ImportError::Space(_))), "{result:?}");
    assert_eq!((stages.last(), place.staged()), (Some(&ImportStage::Converting), 0));
    fs::write(&original, vec![1; 4 << 20]).unwrap();
    place.ingest.space = disk;
    place.import(None, Checksums::default()).unwrap();
}

#[test]
fn a_cancelled_import_leaves_only_the_original() {
    let place = Place::new();
    let disk = place.disk();
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&disk), text(&place.path("upload"))]);
    for at in [ImportStage::Converting, ImportStage::Chunking, ImportStage::Checksumming] {
        place.upload(IMAGE, &place.path("upload"));
        let cancel = AtomicBool::new(false);
        let spec = ImportSpec {
            image: IMAGE,
            declared: None,
            expected: Checksums::default(),
            disk_bytes: None,
            sums: None,
        };
        let mut progress = |stage, _| cancel.store(stage == at, Ordering::Relaxed);
        let error = place.ingest.run_import(&spec, &cancel, &mut progress).unwrap_err();
        let cancelled = matches!(
            error,
            ImportError::Convert(ConvertError::Cancelled) | ImportError::Content(ContentError::Cancelled)
        );
        assert!(cancelled && !error.is_final(), "{at}: {error}");
        assert_eq!(place.staged(), 0);
        assert!(place.ingest.originals.open(IMAGE).unwrap().is_some());
        assert!(place.ingest.content.list().unwrap().is_empty());
    }
}

#[test]
fn what_a_killed_controller_leaves_is_removed_and_the_import_is_run_again() {
    let place = Place::new();
    let disk = place.disk();
    place.upload(IMAGE, &disk);
    let first = place.import(None, Checksums::default()).unwrap();
    let state = place.path("state");
    for name in ["staging/x/disk.raw", "staging/y.object/index", "originals/z.part"] {
        fs::create_dir_all(state.join(name).parent().unwrap()).unwrap();
        fs::write(state.join(name), b"half").unwrap();
    }
    let again = open(&state);
    assert_eq!(fs::read_dir(state.join("staging")).unwrap().count(), 0);
    assert!(!state.join("originals/z.part").exists());
    let spec = ImportSpec {
        image: IMAGE,
        declared: None,
        expected: Checksums::default(),
        disk_bytes: None,
        sums: None,
    };
    let second = again.run_import(&spec, &AtomicBool::new(false), &mut |_, _| ()).unwrap();
    assert_eq!((second.content, second.published), (first.content, Published::Reused));
}

/// IN-6: a disk is grown to the size that was asked for, whatever its format, and never shrunk.
#[test]
fn a_disk_is_grown_to_the_size_that_was_asked_for() {
    let place = Place::new();
    let disk = place.disk();
    let bytes = fs::read(&disk).unwrap();
    let packed = place.path("packed");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&disk), text(&packed)]);
    let spec = |disk_bytes| {
        let (declared, expected) = (None, Checksums::default());
        ImportSpec { image: IMAGE, declared, expected, disk_bytes: Some(disk_bytes), sums: None }
    };
    let import = |spec: &ImportSpec| place.ingest.run_import(spec, &AtomicBool::new(false), &mut |_, _| ());
    let mut contents = BTreeSet::new();
    for file in [&disk, &packed] {
        place.upload(IMAGE, file);
        let imported = import(&spec(100 << 20)).unwrap();
        assert_eq!(imported.virtual_bytes, 100 << 20);
        let grown = raw(&place.ingest.content.open(imported.content).unwrap());
        assert!(grown[..bytes.len()] == bytes && grown[bytes.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(import(&spec(64 << 20)).unwrap().virtual_bytes, 64 << 20, "it has that size already");
        let healed = place.ingest.heal_from_original(
            IMAGE,
            imported.format,
            Some(100 << 20),
            imported.content,
            &AtomicBool::new(false),
        );
        healed.unwrap();
        contents.insert(imported.content);
        let error = import(&spec((64 << 20) - 512)).unwrap_err();
        assert!(error.is_final() && error.to_string().contains("never shrunk"), "{error}");
        assert!(place.ingest.originals.open(IMAGE).unwrap().is_none());
    }
    assert_eq!(contents.len(), 1, "the bytes decide, not the way they came");
}

/// Environment variable that makes [`imports_until_killed`] the victim of the next test.
const VICTIM: &str = "HEARTH_TEST_IMPORT_STATE";

/// No claim of its own: the process that `an_import_killed_at_any_moment…` kills. Imports again and again.
#[test]
fn imports_until_killed() {
    let Some(state) = std::env::var_os(VICTIM) else { return };
    let ingest = open(state.as_ref());
    let spec = ImportSpec {
        image: IMAGE,
        declared: None,
        expected: Checksums::default(),
        disk_bytes: None,
        sums: None,
    };
    loop {
        let imported = ingest.run_import(&spec, &AtomicBool::new(false), &mut |_, _| ()).unwrap();
        ingest.content.remove(imported.content).unwrap();
    }
}

#[test]
fn an_import_killed_at_any_moment_leaves_all_of_a_content_or_nothing() {
    let place = Place::new();
    let disk = place.disk();
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&disk), text(&place.path("upload"))]);
    place.upload(IMAGE, &place.path("upload"));
    let expected = place.import(None, Checksums::default()).unwrap().content;
    place.ingest.content.remove(expected).unwrap();
    let state = place.path("state");
    for round in 0..25u64 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "imports_until_killed"])
            .env(VICTIM, &state)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(30 + round * 37 % 700));
        assert_eq!(victim.try_wait().unwrap(), None, "the victim ended by itself");
        victim.kill().unwrap();
        victim.wait().unwrap();
        let ingest = open(&state);
        assert_eq!(place.staged(), 0, "round {round}");
        for content in ingest.content.list().unwrap() {
            assert_eq!(content, expected);
            let object = ingest.content.open(content).unwrap();
            let bad = object.verify_all(2, &AtomicBool::new(false), &|_| ()).unwrap();
            assert!(bad.is_empty(), "round {round}: {bad:?}");
        }
        assert!(ingest.originals.open(IMAGE).unwrap().is_some(), "round {round}");
    }
    assert_eq!(place.import(None, Checksums::default()).unwrap().content, expected);
}

#[test]
fn a_damaged_content_is_made_again_from_its_original() {
    let place = Place::new();
    let disk = place.disk();
    let file = place.path("upload");
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", text(&disk), text(&file)]);
    place.upload(IMAGE, &file);
    let imported = place.import(None, Checksums::default()).unwrap();
    let id = imported.content.to_string();
    let object = place.path("state/content/objects").join(id.get(..2).unwrap()).join(&id);
    let broken = fs::OpenOptions::new().write(true).open(&object).unwrap();
    broken.write_all_at(b"rot", 1000).unwrap();
    let cancel = AtomicBool::new(false);
    let bad = place.ingest.content.open(imported.content).unwrap().verify_all(2, &cancel, &|_| ()).unwrap();
    assert_eq!(bad.len(), 1);
    let heal =
        |image| place.ingest.heal_from_original(image, DiskFormat::Qcow2, None, imported.content, &cancel);
    assert_eq!(heal(IMAGE).unwrap(), Published::Replaced);
    let healed = place.ingest.content.open(imported.content).unwrap();
    assert!(healed.verify_all(2, &cancel, &|_| ()).unwrap().is_empty());
    assert!(raw(&healed) == fs::read(disk).unwrap());

    // An original that gives something else is not taken.
    let other = ImageId::from_bytes([2; 16]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&file), "8M"]);
    place.upload(other, &file);
    assert!(matches!(heal(other), Err(ImportError::OtherContent { .. })));
    assert_eq!(place.staged(), 0);
}
