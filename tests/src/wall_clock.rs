//! A wall clock that a test sets while a daemon runs.
//!
//! **What.** [`WallClock`] is a file with an offset, and the environment by which a process reads its wall clock through
//! it (libfaketime, Debian package `libfaketime`). The monotonic clock and the times of files stay as they are, as they
//! would if somebody set the clock of a host.
//! **Why not a clock to put in.** What must hold is that the real programs, their TLS library included, do the right
//! thing; a clock that only our own code asks would show half of it.
//! **Invariants.** An offset is replaced as a whole: no process reads half of it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Seconds of an hour, a day and a year.
pub const HOUR_S: i64 = 3600;
/// See [`HOUR_S`].
pub const DAY_S: i64 = 24 * HOUR_S;
/// See [`HOUR_S`].
pub const YEAR_S: i64 = 365 * DAY_S;

/// The wall clock of one process or several; see the module.
#[derive(Clone, Debug)]
pub struct WallClock {
    file: PathBuf,
    library: PathBuf,
}

impl WallClock {
    /// The clock whose offset stands in `file`; without the file it is made, and right.
    ///
    /// # Errors
    /// If libfaketime is not installed or the file cannot be written.
    pub fn new(file: &Path) -> anyhow::Result<Self> {
        let clock = Self { file: file.to_owned(), library: library()? };
        if !file.exists() {
            clock.set(0)?;
        }
        Ok(clock)
    }

    /// Sets it `offset_s` seconds ahead of the real time, or behind it.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set(&self, offset_s: i64) -> anyhow::Result<()> {
        let new = self.file.with_extension("new");
        std::fs::write(&new, format!("{offset_s:+}\n")).context("writing the offset of a clock")?;
        std::fs::rename(&new, &self.file).context("replacing the offset of a clock")
    }

    /// Variables for a process that is to live by this clock.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let shown = |path: &Path| path.display().to_string();
        [
            ("LD_PRELOAD", shown(&self.library)),
            ("FAKETIME_TIMESTAMP_FILE", shown(&self.file)),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            // The older name of the same switch.
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("NO_FAKE_STAT", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec()
    }
}

/// The variant of the library for programs with threads, wherever this processor's libraries are.
fn library() -> anyhow::Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").context("looking for libfaketime")?;
    let found = folders
        .filter_map(|folder| Some(folder.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|file| file.is_file());
    found.context("libfaketime is missing: scripts/prerequisites test (apt install libfaketime)")
}
