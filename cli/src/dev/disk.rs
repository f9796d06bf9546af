//! The disk that `hearth dev` imports when nobody names one.
//!
//! **What.** 256 MiB of ext4 with a tree of files, made by `mke2fs -d`: no root, no mount, no network.
//! **Why made, not shipped.** An image in the repository would be larger than the code.
//! **Invariants.** The same bytes each time, apart from times and the UUID that mke2fs writes.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::failure::{Exit, Failure};

/// Name in the catalog.
pub(super) const NAME: &str = "dev-disk";
/// Size of the disk.
const DISK_SIZE: &str = "256M";
/// Files in the tree and the bytes of each: about 96 MiB of data.
const FILES: u64 = 48;
const FILE_BYTES: usize = 2 << 20;
/// Where Debian has it; not in everybody's PATH.
const PLACES: &[&str] = &["/usr/sbin/mke2fs", "/sbin/mke2fs", "/usr/local/sbin/mke2fs"];

/// Makes the disk in `folder` and returns its path.
///
/// # Errors
/// If mke2fs is missing (the error names the package) or fails.
pub(super) async fn make(folder: &Path) -> anyhow::Result<PathBuf> {
    let mke2fs = find()?;
    let tree = folder.join("dev-disk.tree");
    let disk = folder.join(format!("{NAME}.raw"));
    let below = tree.clone();
    tokio::task::spawn_blocking(move || plant(&below))
        .await?
        .with_context(|| format!("filling {}", tree.display()))?;
    // A file of an earlier run may be larger or broken off.
    drop(tokio::fs::remove_file(&disk).await);
    let output = tokio::process::Command::new(&mke2fs)
        .args(["-q", "-F", "-t", "ext4", "-L", "hearth-dev", "-d"])
        .arg(&tree)
        .arg(&disk)
        .arg(DISK_SIZE)
        .output()
        .await
        .with_context(|| format!("starting {}", mke2fs.display()))?;
    tokio::fs::remove_dir_all(&tree).await.with_context(|| format!("removing {}", tree.display()))?;
    if !output.status.success() {
        anyhow::bail!(
            "mke2fs failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(disk)
}

fn find() -> Result<PathBuf, Failure> {
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&in_path).map(|dir| dir.join("mke2fs"));
    in_path.chain(PLACES.iter().map(PathBuf::from)).find(|path| path.is_file()).ok_or_else(|| {
        Failure::new(Exit::Failed, "mke2fs is not installed; it makes the disk that is imported")
            .hint("apt-get install e2fsprogs, or name a disk image with --image FILE")
    })
}

/// A tree as systems have it: half of the bytes pack well, half do not.
fn plant(tree: &Path) -> std::io::Result<()> {
    for number in 0..FILES {
        let folder =
            tree.join(["etc", "usr/lib", "usr/share", "var/lib"][usize::try_from(number % 4).unwrap_or(0)]);
        std::fs::create_dir_all(&folder)?;
        let bytes = if number % 2 == 0 { noise(number) } else { text(number) };
        std::fs::write(folder.join(format!("file-{number:03}")), bytes)?;
    }
    Ok(())
}

/// Bytes that do not pack (xorshift64).
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(FILE_BYTES);
    while bytes.len() < FILE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Lines that pack.
fn text(seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(FILE_BYTES + 64);
    let mut line = 0_u64;
    while bytes.len() < FILE_BYTES {
        bytes.extend_from_slice(
            format!("file {seed} line {line}: the fire in the hearth is kept warm\n").as_bytes(),
        );
        line += 1;
    }
    bytes.truncate(FILE_BYTES);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_their_size_and_differ() {
        assert_eq!((noise(0).len(), text(1).len()), (FILE_BYTES, FILE_BYTES));
        assert_ne!(noise(0), noise(2));
        assert_eq!(noise(4), noise(4));
    }
}
