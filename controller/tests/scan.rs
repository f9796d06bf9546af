//! The scan hook with real programs in the real sandbox.
//!
//! **What.** A verdict takes or refuses an image; what is missing, hangs, dies or is cancelled takes none; the scanner reads what it may
//! and nothing else.
//! **Why here.** The rules hold for a process after `exec`, so only a real process can show them.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hearth_controller::clock;
use hearth_controller::ingest::convert::Converter;
use hearth_controller::ingest::job::{ImportError, ImportSpec, Imported, Ingest};
use hearth_controller::ingest::sandbox::SandboxMode;
use hearth_controller::ingest::scan::{ScanError, Scanner};
use hearth_protocol::api::image::Checksums;
use hearth_protocol::id::ImageId;
use hearth_protocol::words::ImportStage;

const IMAGE: ImageId = ImageId::from_bytes([1; 16]);

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("state")).unwrap();
        fs::write(folder.path().join("secret"), "the secret").unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Imports a raw disk of some bytes with `command` as the scanner.
    fn import(&self, command: &[&str], cancelled: bool) -> (Ingest, Result<Imported, ImportError>) {
        let converter = Converter {
            controller: env!("CARGO_BIN_EXE_hearth-controller").into(),
            qemu_img: "/usr/bin/qemu-img".into(),
            mode: SandboxMode::Required,
        };
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let scanner = Scanner { command, read: vec![self.path("signatures")], time: Duration::from_secs(2) };
        fs::write(self.path("signatures"), "evil").unwrap();
        let ingest = Ingest::new(&self.path("state"), converter, 2).unwrap().with_scanner(Some(scanner));
        let mut original = ingest.originals.create(IMAGE).unwrap();
        original.write(Bytes::from(b"an evil disk".repeat(1000))).unwrap();
        original.finish().unwrap();
        let spec = ImportSpec {
            image: IMAGE,
            declared: None,
            expected: Checksums::default(),
            sums: None,
            disk_bytes: None,
        };
        let cancel = AtomicBool::new(false);
        // Just before the scanner starts: it must be stopped, not what comes before it.
        let imported = ingest.run_import(&spec, &cancel, &mut |stage, percent| {
            cancel
                .fetch_or(cancelled && (stage, percent) == (ImportStage::Inspecting, 50), Ordering::Relaxed);
        });
        (ingest, imported)
    }

    /// As [`Self::import`], with perl (essential on Debian) as the scanner.
    fn perl(&self, code: &str) -> (Ingest, Result<Imported, ImportError>) {
        self.import(&["/usr/bin/perl", "-e", code], false)
    }

    #[track_caller]
    fn refused(&self, (ingest, imported): (Ingest, Result<Imported, ImportError>), kept: bool) -> ScanError {
        let error = imported.unwrap_err();
        assert_eq!(ingest.originals.open(IMAGE).unwrap().is_some(), kept, "{error}");
        assert!(ingest.content.list().unwrap().is_empty(), "{error}");
        assert_eq!(fs::read_dir(self.path("state/staging")).unwrap().count(), 0, "{error}");
        let ImportError::Scan(error) = error else { panic!("{error}") };
        error
    }
}

/// IN-11: a configured command inspects each import in the sandbox; its verdict is kept.
#[test]
fn a_clean_disk_is_taken_with_the_verdict() {
    let place = Place::new();
    let code = "open(F, $ARGV[0]) or die; read(F, $b, 7); print \"clean: $b\\nmore\\n\"; exit 0";
    let (_, imported) = place.perl(code);
    assert_eq!(imported.unwrap().scan.as_deref(), Some("clean: an evil"));
    let (_, imported) = place.perl("exit 0");
    assert_eq!(imported.unwrap().scan.as_deref(), Some("clean"));
}

/// IN-11: the scanner can refuse; then nothing is kept.
#[test]
fn a_refused_disk_is_gone_with_the_verdict_as_reason() {
    let place = Place::new();
    let signatures = place.path("signatures").display().to_string();
    let code = format!(
        "open(S, '{signatures}') or die; $s = <S>; open(F, $ARGV[0]) or die; read(F, $b, 100); \
         if (index($b, $s) >= 0) {{ print \"found \\e[1m$s\\n\"; exit 1 }}"
    );
    let error = place.refused(place.perl(&code), false);
    assert_eq!(error.to_string(), "the scanner refused the image: found  [1mevil");
}

/// IN-11: what has not said "clean" takes no image, and the file is kept for another try.
#[test]
fn a_scanner_that_is_missing_hangs_dies_or_is_cancelled_takes_nothing() {
    let place = Place::new();
    let missing = place.refused(place.import(&["/usr/bin/no-such-scanner"], false), true);
    assert!(matches!(missing, ScanError::Start { .. }), "{missing}");
    let died = place.refused(place.perl("die 'no signatures'"), true);
    assert!(died.to_string().contains("no signatures") && matches!(died, ScanError::Failed { .. }), "{died}");
    let silent = place.refused(place.perl("exit 1"), true);
    assert!(matches!(silent, ScanError::Failed { .. }), "a refusal says why: {silent}");
    let crashed = place.refused(place.perl("print unpack('p', pack('J', 1)); exit 0"), true);
    assert!(matches!(crashed, ScanError::Failed { .. }), "{crashed}");
    let begun = clock::monotonic();
    let hung = place.refused(place.perl("sleep 100"), true);
    assert!(matches!(hung, ScanError::TooSlow { .. }), "{hung}");
    let flood = place.refused(place.perl("while (1) { print 'x' x 1000 }"), true);
    assert!(matches!(flood, ScanError::TooSlow { .. }), "{flood}");
    let cancelled = place.refused(place.import(&["/usr/bin/perl", "-e", "sleep 100"], true), true);
    assert!(matches!(cancelled, ScanError::Cancelled), "{cancelled}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

/// IN-11: in the sandbox: it reads the disk and what it was given, writes nothing, starts nothing, connects to nothing.
#[test]
fn a_scanner_sees_and_does_nothing_else() {
    let place = Place::new();
    let (secret, new) = (place.path("secret").display().to_string(), place.path("new").display().to_string());
    for forbidden in [
        format!("open(F, '{secret}') or die \"$!\""),
        format!("open(F, '>{new}') or die \"$!\""),
        "open(F, '+<', $ARGV[0]) or die \"$!\"".to_owned(),
        "fork() // die \"$!\"".to_owned(),
        "exec('/bin/true') or die \"$!\"".to_owned(),
        "socket(S, 2, 1, 0) or die \"$!\"".to_owned(),
    ] {
        let error = place.refused(place.perl(&forbidden), true).to_string();
        let denied = error.contains("Permission denied") || error.contains("Operation not permitted");
        assert!(denied, "{forbidden}: {error}");
    }
    assert!(!place.path("new").exists());
}
