//! Packed files as the real packers write them, and as attackers do.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

/// Packs with the program of this name.
fn packed(program: &str, args: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .arg("-c")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed (apt install gzip xz-utils zstd): {error}"));
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let feeding = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    feeding.join().unwrap().unwrap();
    assert!(output.status.success(), "{program}");
    output.stdout
}

struct Place(tempfile::TempDir);

impl Place {
    fn unpack(&self, bytes: &[u8], most_bytes: u64) -> Result<Vec<u8>, UnpackError> {
        let (input, output) = (self.0.path().join("in"), self.0.path().join("out"));
        std::fs::write(&input, bytes).unwrap();
        let packing = packing_of(&input).unwrap().expect("it is packed");
        let space = Space::new(self.0.path());
        let unpacking = Unpacking { input: &input, output: &output, most_bytes, space: &space };
        unpack(&unpacking, packing, &AtomicBool::new(false), &mut |_, _| ())?;
        Ok(std::fs::read(output).unwrap())
    }

    fn written_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(self.0.path().join("out")).unwrap().blocks() * 512
    }
}

fn place() -> Place {
    Place(tempfile::tempdir().unwrap())
}

const PACKERS: [(&str, &[&str]); 3] = [("gzip", &["-n"]), ("xz", &["-9"]), ("zstd", &["-q", "--long=27"])];

fn disk() -> Vec<u8> {
    let mut disk = vec![0; 6 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut disk[1 << 20..3 << 20]);
    disk.extend_from_slice(b"the end");
    disk
}

#[test]
fn what_was_packed_comes_out_again() {
    let place = place();
    for (program, args) in PACKERS {
        let once = packed(program, args, &disk());
        assert!(place.unpack(&once, 1 << 30).unwrap() == disk(), "{program}");
        assert!(place.written_bytes() < 3 << 20, "zeros are holes");
        // Two members, one behind the other, are one file to every packer.
        let twice = [once.clone(), once].concat();
        assert!(place.unpack(&twice, 1 << 30).unwrap() == [disk(), disk()].concat(), "{program} twice");
    }
    let raw = place.0.path().join("raw");
    std::fs::write(&raw, disk()).unwrap();
    assert_eq!(packing_of(&raw).unwrap(), None);
    std::fs::write(&raw, "").unwrap();
    assert_eq!(packing_of(&raw).unwrap(), None);
}

#[test]
fn a_truncated_or_damaged_file_is_refused() {
    let place = place();
    for (program, args) in PACKERS {
        let whole = packed(program, args, &disk());
        for cut in [7, 20, whole.len() / 2, whole.len() - 1] {
            let error = place.unpack(&whole[..cut], 1 << 30).unwrap_err();
            assert!(
                error.is_final() && matches!(error, UnpackError::Damaged { .. }),
                "{program} {cut}: {error}"
            );
        }
        let mut flipped = whole.clone();
        let middle = whole.len() / 2;
        flipped[middle] ^= 0x55;
        // gzip and xz have a checksum; zstd writes one too.
        assert!(place.unpack(&flipped, 1 << 30).is_err(), "{program}");
        let tail = [whole.as_slice(), b"something else"].concat();
        assert!(place.unpack(&tail, 1 << 30).is_err(), "{program} with a tail");
    }
}

#[test]
fn a_bomb_fills_no_disk() {
    let place = place();
    let (zeros, pattern) = (vec![0; 300 << 20], vec![b'x'; 300 << 20]);
    for (program, args) in [("gzip", &["-n"] as &[&str]), ("zstd", &["-q"])] {
        let bomb = packed(program, args, &pattern);
        assert!((bomb.len() as u64) < DATA_BYTES_FREE / RATIO_MAX * 4);
        let error = place.unpack(&bomb, 1 << 40).unwrap_err();
        assert!(matches!(error, UnpackError::Bomb { .. }) && error.is_final(), "{program}: {error}");
        assert!(place.written_bytes() <= (bomb.len() as u64 * RATIO_MAX).max(DATA_BYTES_FREE) + (2 << 20));
        // Zeros cost nothing, and are bounded all the same.
        let holes = packed(program, args, &zeros);
        assert_eq!(place.unpack(&holes, 1 << 40).unwrap().len(), zeros.len());
        assert!(place.written_bytes() < 1 << 20);
        assert!(
            matches!(place.unpack(&holes, 100 << 20), Err(UnpackError::Bomb { most_bytes, .. }) if most_bytes == 100 << 20)
        );
    }
    let cancelled = AtomicBool::new(true);
    let input = place.0.path().join("in");
    let space = Space::new(place.0.path());
    let unpacking =
        Unpacking { input: &input, output: &place.0.path().join("out"), most_bytes: 1, space: &space };
    let stopped = unpack(&unpacking, Packing::Zstd, &cancelled, &mut |_, _| ());
    assert!(matches!(stopped, Err(UnpackError::Cancelled)));
}

#[test]
fn a_window_that_needs_too_much_memory_is_refused() {
    let place = place();
    // A frame header that asks for a window of 2 GiB.
    let hostile = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA8, 0x01, 0x00, 0x00];
    assert!(matches!(place.unpack(&hostile, 1 << 30), Err(UnpackError::Damaged { .. })));
}

#[test]
fn a_file_out_of_which_nothing_comes_can_be_stopped() {
    let place = place();
    let (input, output) = (place.0.path().join("pipe"), place.0.path().join("out"));
    assert!(Command::new("mkfifo").arg(&input).status().unwrap().success());
    let skippable = [0x50, 0x2A, 0x4D, 0x18, 8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    for (packing, member) in
        [(Packing::Gzip, packed("gzip", &["-n"], b"")), (Packing::Zstd, skippable.to_vec())]
    {
        let cancel = AtomicBool::new(false);
        let members = member.repeat((1 << 20) / member.len());
        let space = Space::new(place.0.path());
        let unpacking = Unpacking { input: &input, output: &output, most_bytes: 1, space: &space };
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                let mut pipe = File::options().write(true).open(&input).unwrap();
                for n in 0..64 {
                    cancel.store(n >= 4, Ordering::Relaxed);
                    if let Err(error) = pipe.write_all(&members) {
                        return error.kind() == io::ErrorKind::BrokenPipe;
                    }
                }
                false
            });
            let stopped = unpack(&unpacking, packing, &cancel, &mut |_, _| ());
            assert!(matches!(stopped, Err(UnpackError::Cancelled)), "{packing:?}: {stopped:?}");
            assert!(sending.join().unwrap(), "{packing:?}: it was read to its end");
        });
    }
}

#[test]
fn a_large_file_has_the_time_that_it_takes() {
    assert_eq!(time_max(0), TIME_FREE);
    // A terabyte out of a fifth of it, at 80 MB/s.
    assert!(time_max((1 << 40) + (1 << 40) / 5) > Duration::from_secs((1 << 40) / 80_000_000));
    // Whoever is too slow today may be quicker tomorrow: the file stays.
    assert!(!UnpackError::Time { minutes: 120 }.is_final());
}
