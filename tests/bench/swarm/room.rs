//! Where a run writes: a folder on disk, and in it a file system in memory for the copies.
//!
//! **What.** [`Room::make`] checks memory and disk first; [`remove_leftovers`] removes the rooms of killed runs.
//! **Why memory.** The disk of one machine is shared by all its hosts and would be measured instead of the links.
//! **Invariants.** The memory is bounded by the size of the file system; all of it is gone when the value is dropped.

use std::fs::DirEntry;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hearth_tests::small_disk::SmallDisk;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

/// Begin of the names of rooms; the number of the process follows.
const PREFIX: &str = "hearth-swarm-";
/// Memory for the programs and this machine's other work.
const MEMORY_SPARE_BYTES: u64 = 2 << 30;
/// Lines of a log that a failed run shows.
const LOG_LINES_SHOWN: usize = 8;

/// Both folders.
#[derive(Debug)]
pub(crate) struct Room {
    folder: PathBuf,
    /// `None` only while it is dropped.
    memory: Option<SmallDisk>,
}

impl Room {
    /// A room with so much memory and disk.
    pub(crate) fn make(fast_bytes: u64, slow_bytes: u64) -> Result<Self> {
        let free = memory_available()?;
        ensure!(
            free >= fast_bytes + MEMORY_SPARE_BYTES,
            "this run keeps {} MiB of copies in memory and leaves {} MiB, but only {} MiB are available: lower HOSTS or MIB",
            fast_bytes >> 20,
            MEMORY_SPARE_BYTES >> 20,
            free >> 20
        );
        let disk = nix::sys::statvfs::statvfs(&base())?;
        let room = disk.blocks_available() * disk.fragment_size();
        ensure!(
            room >= slow_bytes,
            "{} has {} MiB free and this run needs {} MiB: set TMPDIR, or lower MIB",
            base().display(),
            room >> 20,
            slow_bytes >> 20
        );
        let folder = base().join(format!("{PREFIX}{}", std::process::id()));
        std::fs::create_dir_all(folder.join("fast"))?;
        std::fs::create_dir_all(folder.join("log"))?;
        let mut room = Self { folder, memory: None };
        room.memory = Some(SmallDisk::mount(&room.fast(), fast_bytes)?);
        Ok(room)
    }

    /// On disk: images, and the controller's state.
    pub(crate) fn slow(&self) -> &Path {
        &self.folder
    }

    /// In memory: what the hosts hold.
    pub(crate) fn fast(&self) -> PathBuf {
        self.folder.join("fast")
    }

    /// The log of a program.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.folder.join("log").join(format!("{name}.log"))
    }

    /// Prints the ends of all logs to standard error.
    pub(crate) fn show_logs(&self) {
        let Ok(entries) = std::fs::read_dir(self.folder.join("log")) else { return };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            if !lines.is_empty() {
                let end = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
                eprintln!("--- end of {}\n{}", path.display(), end.join("\n"));
            }
        }
    }

    /// A file of random bytes, on disk; its BLAKE3.
    pub(crate) fn random_file(&self, name: &str, bytes: u64) -> Result<(PathBuf, blake3::Hash)> {
        let path = self.folder.join(name);
        let (mut random, mut file) = (std::fs::File::open("/dev/urandom")?, std::fs::File::create(&path)?);
        let (mut hash, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 20]);
        let mut left = bytes;
        while left > 0 {
            let step = usize::try_from(left.min(1 << 20))?;
            random.read_exact(&mut buffer[..step])?;
            file.write_all(&buffer[..step])?;
            hash.update(&buffer[..step]);
            left -= u64::try_from(step)?;
        }
        // What is still to be written would slow the first contender alone.
        file.sync_all()?;
        Ok((path, hash.finalize()))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(self.memory.take());
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            eprintln!("{} stays: {error}", self.folder.display());
        }
    }
}

/// The BLAKE3 of a file, beside the runtime.
pub(crate) async fn hash_of(path: PathBuf) -> Result<blake3::Hash> {
    let work = move || {
        let mut hash = blake3::Hasher::new();
        let file = std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
        hash.update_reader(file)?;
        Ok(hash.finalize())
    };
    tokio::task::spawn_blocking(work).await?
}

/// Removes the rooms of runs that are no more.
pub(crate) fn remove_leftovers() -> Result<()> {
    for entry in std::fs::read_dir(base())?.flatten() {
        if !is_leftover(&entry) {
            continue;
        }
        eprintln!("{} is left from a killed run: removed", entry.path().display());
        if let Err(error) = umount2(&entry.path().join("fast"), MntFlags::MNT_DETACH) {
            // The run may have been killed before it mounted anything.
            ensure!(matches!(error, Errno::EINVAL | Errno::ENOENT), "unmounting {:?}: {error}", entry.path());
        }
        std::fs::remove_dir_all(entry.path())?;
    }
    Ok(())
}

fn is_leftover(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { return false };
    entry.file_type().is_ok_and(|kind| kind.is_dir()) && pid.parse().is_ok_and(is_gone)
}

/// Whether no bench runs under this number.
pub(crate) fn is_gone(pid: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end() != "hearth-bench"
}

fn base() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

fn memory_available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("MemAvailable")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim_end().parse()?;
    Ok(kib << 10)
}
