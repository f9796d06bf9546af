//! Small images with real contents, made on the spot.
//!
//! **What.** An ext4 disk by `mke2fs -d`, its formats by `qemu-img convert`, a minimal ISO volume by hand.
//! **Invariants.** The same seed plants the same files; other seeds plant files that share nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};

use crate::daemon::run;

/// Bytes of each planted file.
const FILE_BYTES: usize = 1 << 20;
/// Sector of an ISO volume.
const SECTOR_BYTES: usize = 2048;

/// An ext4 disk of `size_mib` at `path` with `files` files of 1 MiB, half of them hard to pack.
///
/// # Errors
/// If mke2fs fails.
pub fn ext4(path: &Path, size_mib: u32, files: u32, seed: u64) -> anyhow::Result<()> {
    let tree = tempfile::tempdir()?;
    for number in 0..files {
        let folder = tree.path().join(format!("dir-{}", number % 5));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(
            folder.join(format!("file-{number:04}")),
            file(seed.wrapping_mul(1000) + u64::from(number)),
        )?;
    }
    run(Command::new(mke2fs())
        .args(["-q", "-F", "-t", "ext4", "-U", "5f9c0de1-77aa-4a5e-9a8e-0c0ffee0d15c", "-d"])
        .arg(tree.path())
        .arg(path)
        .arg(format!("{size_mib}M")))?;
    Ok(())
}

fn mke2fs() -> PathBuf {
    let places = ["/usr/sbin/mke2fs", "/sbin/mke2fs"].map(PathBuf::from);
    places.into_iter().find(|place| place.is_file()).unwrap_or_else(|| "mke2fs".into())
}

/// The bytes of planted file `number`: noise if it is even, text if it is odd.
#[must_use]
pub fn file(number: u64) -> Vec<u8> {
    if number.is_multiple_of(2) {
        let mut bytes = vec![0; FILE_BYTES];
        StdRng::seed_from_u64(number).fill(bytes.as_mut_slice());
        return bytes;
    }
    let mut text = String::with_capacity(FILE_BYTES + 64);
    for line in 0_u64.. {
        if text.len() >= FILE_BYTES {
            break;
        }
        text.push_str(&format!("file {number} line {line}: warm images start machines sooner\n"));
    }
    text.truncate(FILE_BYTES);
    text.into_bytes()
}

/// Writes a file into an ext4 disk in place, as a package update does, without root.
///
/// # Errors
/// If debugfs fails.
pub fn write_into(disk: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let source = tempfile::NamedTempFile::new()?;
    std::fs::write(source.path(), bytes)?;
    let debugfs = Path::new("/usr/sbin/debugfs");
    let debugfs = if debugfs.is_file() { debugfs } else { Path::new("debugfs") };
    run(Command::new(debugfs)
        .args(["-w", "-R"])
        .arg(format!("write {} {name}", source.path().display()))
        .arg(disk))?;
    Ok(())
}

/// Converts `source` (raw) to `format` with extra options of qemu-img.
///
/// # Errors
/// If qemu-img fails.
pub fn convert(source: &Path, target: &Path, format: &str, options: &[&str]) -> anyhow::Result<()> {
    run(Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", format])
        .args(options)
        .arg(source)
        .arg(target))?;
    Ok(())
}

/// What `qemu-img convert -O raw` makes of an image: the reference for what a cache must hold.
///
/// # Errors
/// If qemu-img fails.
pub fn reference(source: &Path, format: &str, target: &Path) -> anyhow::Result<()> {
    run(Command::new("qemu-img").args(["convert", "-f", format, "-O", "raw"]).arg(source).arg(target))?;
    Ok(())
}

/// A minimal ISO 9660 volume with `payload` behind its descriptors.
///
/// # Errors
/// If the file cannot be written.
pub fn iso(path: &Path, payload: &[u8]) -> anyhow::Result<()> {
    let sectors = 18 + payload.len().div_ceil(SECTOR_BYTES);
    let mut bytes = vec![0; sectors * SECTOR_BYTES];
    let count = u32::try_from(sectors)?;
    let primary = &mut bytes[16 * SECTOR_BYTES..17 * SECTOR_BYTES];
    primary[..7].copy_from_slice(b"\x01CD001\x01");
    primary[80..84].copy_from_slice(&count.to_le_bytes());
    primary[84..88].copy_from_slice(&count.to_be_bytes());
    primary[128..130].copy_from_slice(&2048_u16.to_le_bytes());
    primary[130..132].copy_from_slice(&2048_u16.to_be_bytes());
    let end = &mut bytes[17 * SECTOR_BYTES..18 * SECTOR_BYTES];
    end[..7].copy_from_slice(b"\xffCD001\x01");
    bytes[18 * SECTOR_BYTES..18 * SECTOR_BYTES + payload.len()].copy_from_slice(payload);
    std::fs::write(path, bytes).context("writing an ISO volume")
}

/// SHA-256 of a file, lower-case hex.
///
/// # Errors
/// If it cannot be read.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    let mut file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Fails unless both files hold the same bytes.
///
/// # Errors
/// Naming the first byte that differs.
pub fn same(left: &Path, right: &Path) -> anyhow::Result<()> {
    let (a, b) = (std::fs::metadata(left)?.len(), std::fs::metadata(right)?.len());
    anyhow::ensure!(a == b, "{} has {a} bytes, {} has {b}", left.display(), right.display());
    run(Command::new("cmp").arg(left).arg(right)).map(drop)
}
