//! A file system of a few MiB for one test, and the rights to mount it.
//!
//! **What.** [`SmallDisk`] is a tmpfs that the test fills and relieves; [`where_mounts_work`] repeats a test in a mount
//! namespace of its own where the user may not mount.
//! **Why not a test that does nothing without root.** Nobody would see that a full disk was never tried.
//! **Invariants.** The file system is gone when the value is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

/// Set in a test that was started again where it may mount.
const AGAIN: &str = "HEARTH_TEST_IN_NAMESPACE";
/// Name of the file that takes the room.
const BALLAST: &str = "ballast";
/// Room taken at once.
const STEP_BYTES: u64 = 1 << 20;

/// A tmpfs.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `bytes` on the folder `path`.
    ///
    /// # Errors
    /// If the user may not mount; see [`where_mounts_work`].
    pub fn mount(path: &Path, bytes: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(path)?;
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(format!("size={bytes}").as_str()))
            .with_context(|| format!("mounting a tmpfs on {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Bytes that are free.
    ///
    /// # Errors
    /// If the file system does not answer.
    pub fn free_bytes(&self) -> anyhow::Result<u64> {
        let stat = statvfs(&self.path)?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }

    /// Takes room, as another program would, until about `leave_bytes` are free; 0 leaves nothing.
    ///
    /// # Errors
    /// What the file system says other than that it is full.
    pub fn fill(&self, leave_bytes: u64) -> anyhow::Result<()> {
        let ballast = File::options().create(true).append(true).open(self.path.join(BALLAST))?;
        loop {
            let more = self.free_bytes()?.saturating_sub(leave_bytes).min(STEP_BYTES);
            if more == 0 {
                return Ok(());
            }
            let end = i64::try_from(ballast.metadata()?.len())?;
            match fallocate(&ballast, FallocateFlags::empty(), end, i64::try_from(more)?) {
                Ok(()) => {}
                Err(Errno::ENOSPC) => return Ok(()),
                Err(error) => return Err(error).context("taking room"),
            }
        }
    }

    /// Gives all room back that [`SmallDisk::fill`] took.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn relieve(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.path.join(BALLAST)).context("removing the ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.path, MntFlags::MNT_DETACH) {
            eprintln!("{} stays mounted: {error}", self.path.display());
        }
    }
}

/// Whether the test goes on here. Where the user may not mount, `test` (its path in this binary) is run again by
/// `unshare` in a namespace in which it may, and has passed when this returns `false`.
///
/// # Panics
/// If the test fails there, or there are no such namespaces either.
#[must_use]
pub fn where_mounts_work(test: &str) -> bool {
    let here = tempfile::tempdir().expect("a folder can be made");
    match SmallDisk::mount(here.path(), STEP_BYTES) {
        Ok(_) => return true,
        Err(error) => assert!(
            std::env::var_os(AGAIN).is_none(),
            "{error:#}, not even in a namespace: run as root, or allow user namespaces (kernel.unprivileged_userns_clone)"
        ),
    }
    let program = std::env::current_exe().expect("a running program has a file");
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env(AGAIN, "1")
        .output()
        .expect("unshare is installed (util-linux)");
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    // "1 passed": a wrong path would select no test and pass.
    assert!(done.status.success() && said.contains("1 passed"), "{test} in a namespace: {said}");
    false
}
