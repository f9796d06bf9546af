//! Encrypted imports with the real controller binary and qemu-img.
//!
//! **What.** What is published opens with the passphrase alone and is the disk; every format, a disk that grows, a scanner; what is
//! left after a failure and after a cancel.
//! **Why here.** The converter is the controller started again, so a real binary is needed.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use hearth_controller::content::Unpacker;
use hearth_controller::ingest::convert::Converter;
use hearth_controller::ingest::encrypt::Encrypted;
use hearth_controller::ingest::job::{ImportError, ImportSpec, Ingest};
use hearth_controller::ingest::sandbox::SandboxMode;
use hearth_controller::ingest::scan::Scanner;
use hearth_protocol::api::image::{Checksums, DISK_BYTES_MIN};
use hearth_protocol::id::ImageId;
use hearth_protocol::passphrase::Passphrase;
use hearth_protocol::words::{ContentKind, DiskFormat};

const IMAGE: ImageId = ImageId::from_bytes([1; 16]);
const DISK_BYTES: u64 = 32 << 20;

struct Place {
    folder: tempfile::TempDir,
    ingest: Ingest,
}

impl Place {
    fn new(scanner: Option<Scanner>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let converter = Converter {
            controller: env!("CARGO_BIN_EXE_hearth-controller").into(),
            qemu_img: "/usr/bin/qemu-img".into(),
            mode: SandboxMode::Required,
        };
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        let ingest = Ingest::new(&state, converter, 2).unwrap().with_scanner(scanner);
        Self { folder, ingest }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A disk with noise at two places.
    fn disk(&self) -> PathBuf {
        let path = self.path("disk.raw");
        let disk = fs::File::create(&path).unwrap();
        disk.set_len(DISK_BYTES).unwrap();
        let mut noise = vec![0; 1_000_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        disk.write_all_at(&noise, 12_345).unwrap();
        disk.write_all_at(&noise, DISK_BYTES - 1_100_000).unwrap();
        path
    }

    fn upload(&self, path: &Path) {
        let mut writer = self.ingest.originals.create(IMAGE).unwrap();
        writer.write(Bytes::from(fs::read(path).unwrap())).unwrap();
        writer.finish().unwrap();
    }

    fn import(&self, disk_bytes: Option<u64>, cancel: bool) -> Result<Encrypted, ImportError> {
        let expected = Checksums::default();
        let spec = ImportSpec { image: IMAGE, declared: None, expected, disk_bytes, sums: None };
        self.ingest.run_encrypted_import(&spec, &secret(), &AtomicBool::new(cancel), &mut |_, _| ())
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.path("state/staging")).unwrap().count()
    }

    /// The file that agents get, put together from the stored chunks.
    fn file(&self, made: &Encrypted) -> PathBuf {
        let object = self.ingest.content.open(made.imported.content).unwrap();
        let path = self.path("fetched.qcow2");
        let file = fs::File::create(&path).unwrap();
        file.set_len(object.root().raw_bytes()).unwrap();
        let mut unpacker = Unpacker::new().unwrap();
        for chunk in 0..object.root().n_chunks() {
            let (record, run) =
                (object.chunk_range(chunk, 1).unwrap()[0], object.read_stored(chunk, 1).unwrap());
            let mut out = Vec::new();
            assert!(unpacker.unpack(run.chunks[0].encoding, &run.bytes, record.raw_len, &mut out));
            file.write_all_at(&out, record.offset).unwrap();
        }
        path
    }

    /// The disk in an encrypted file, if this opens it.
    fn opened(&self, file: &Path, passphrase: &str) -> Option<PathBuf> {
        let (key, raw) = (self.path("key"), self.path("opened.raw"));
        fs::write(&key, passphrase).unwrap();
        let options = format!("driver=qcow2,encrypt.key-secret=k,file.filename={}", file.display());
        let secret = format!("secret,id=k,file={}", key.display());
        let mut command = Command::new("qemu-img");
        command.args(["convert", "--object", &secret, "--image-opts", &options, "-O", "raw"]).arg(&raw);
        command.output().unwrap().status.success().then_some(raw)
    }
}

fn secret() -> Passphrase {
    Passphrase::new("0123456789abcdef".repeat(4))
}

/// Whether the second file is the first, and zeros behind it.
fn begins_with(disk: &Path, grown: &Path) {
    let status = Command::new("cmp").arg("-n").arg(DISK_BYTES.to_string()).args([disk, grown]).status();
    assert!(status.unwrap().success(), "the disk is another one");
}

/// IN-9: what hosts get opens with its passphrase, and with no other, as the disk that was imported, whatever its format.
#[test]
fn an_encrypted_content_is_the_disk_for_whoever_has_the_passphrase() {
    let place = Place::new(None);
    let disk = place.disk();
    for format in ["raw", "qcow2", "vmdk", "vhdx"] {
        let upload = place.path("upload");
        let done = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", format])
            .args([&disk, &upload])
            .status();
        assert!(done.unwrap().success());
        place.upload(&upload);
        let made = place.import(None, false).unwrap();
        assert_eq!((made.imported.kind, made.disk_bytes), (ContentKind::File, DISK_BYTES), "{format}");
        let marked = place.ingest.content.undecided().unwrap();
        assert!(marked.contains(&made.imported.content), "until it is recorded nobody else knows it");
        assert_eq!(place.staged(), 0);
        let file = place.file(&made);
        let raw = place.opened(&file, secret().reveal()).expect("it opens");
        begins_with(&disk, &raw);
        assert_eq!(fs::metadata(&raw).unwrap().len(), DISK_BYTES);
        assert!(place.opened(&file, &"0".repeat(64)).is_none(), "another passphrase opened it");
        let plain = Command::new("qemu-img").args(["convert", "-O", "raw"]).args([&file, &raw]).output();
        assert!(!plain.unwrap().status.success(), "it opened without one");
    }
}

/// IN-9: a disk that is to grow and one that a scanner reads are encrypted like all others.
#[test]
fn a_scanned_disk_grows_and_is_encrypted() {
    let command = ["/usr/bin/grep", "-c", ""].map(str::to_owned).to_vec();
    let scanner = Scanner { command, read: Vec::new(), time: Duration::from_secs(60) };
    let place = Place::new(Some(scanner));
    let disk = place.disk();
    let upload = place.path("upload");
    let done = Command::new("qemu-img")
        .args(["convert", "-O", "qcow2", "-f", "raw"])
        .args([&disk, &upload])
        .status();
    assert!(done.unwrap().success());
    place.upload(&upload);
    let made = place.import(Some(DISK_BYTES_MIN), false).unwrap();
    assert!(made.imported.scan.is_some());
    assert_eq!((made.disk_bytes, made.imported.format), (DISK_BYTES_MIN, DiskFormat::Qcow2));
    assert_eq!(place.staged(), 0);
    let info = Command::new("qemu-img").arg("info").arg(place.file(&made)).output().unwrap();
    let info = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(info.contains(&format!("({DISK_BYTES_MIN} bytes)")) && info.contains("luks"), "{info}");
}

/// IN-9: a failed import keeps no plain original; a cancelled one goes on later and needs it.
#[test]
fn only_a_cancelled_import_keeps_its_original() {
    let place = Place::new(None);
    let upload = place.path("upload");
    fs::write(&upload, [b"QFI\xfb".as_slice(), &[7; 100_000]].concat()).unwrap();
    place.upload(&upload);
    assert!(!place.import(None, false).unwrap_err().is_cancelled());
    assert!(place.ingest.originals.open(IMAGE).unwrap().is_none());
    place.upload(&place.disk());
    assert!(place.import(None, true).unwrap_err().is_cancelled());
    assert!(place.ingest.originals.open(IMAGE).unwrap().is_some());
    assert_eq!(place.staged(), 0);
    assert!(place.ingest.content.list().unwrap().is_empty());
}
