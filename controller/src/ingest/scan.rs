//! Lets a program of the operator look at each disk before it becomes an image.
//!
//! **What.** [`Scanner::scan`] runs the configured command with the path of the raw disk (of an ISO, the file) as its last argument, in
//! the sandbox of the converter. Exit 0 means clean, 1 with a line of text refused; the first line that it prints is the verdict.
//! It blocks.
//!
//! **Why a refusal needs a text.** Interpreters exit with 1 when a script dies too; a refusal removes the file, so it must be meant.
//!
//! **Why in the sandbox.** A scanner reads what strangers send, and has had holes of its own. It may read the disk, the system's
//! libraries and what `scan_read` names; it writes nothing, starts no other program and has no network.
//!
//! **Why everything else fails the import.** A scanner that is missing, hangs or dies has not said that the disk is clean.
//!
//! **Invariants**, tested with real programs in `controller/tests/scan.rs`: the program is dead when the function returns; of its output
//! a bounded, printable line is kept.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::convert::{Converter, Running, head};
use super::sandbox::{Confinement, EXIT_NO_PROGRAM, EXIT_NO_SANDBOX};
use crate::clock;

/// Exit status with which a scanner refuses, if it says why.
const EXIT_REFUSED: i32 = 1;
/// Longest verdict that is kept, characters.
pub const VERDICT_CHARS_MAX: usize = 200;
/// What a scanner that lets an image pass and prints nothing has said.
const SILENT_VERDICT: &str = "clean";
/// How often the watcher looks.
const WATCH_EVERY: Duration = Duration::from_millis(20);

/// The configured command.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Scanner {
    /// An absolute path and its arguments.
    pub command: Vec<String>,
    /// Files and folders that it may read beside the disk: its signatures, a script.
    pub read: Vec<PathBuf>,
    /// Wall time it may take.
    pub time: Duration,
}

/// Why the disk is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The scanner said no.
    #[error("the scanner refused the image: {verdict}")]
    Refused {
        /// Its first line.
        verdict: String,
    },
    /// It could not be started, in the sandbox or at all.
    #[error(
        "the scanner {program} did not start: {message}; see scan_command in the controller's configuration"
    )]
    Start {
        /// The program.
        program: String,
        /// Why.
        message: String,
    },
    /// It ended in a way that says nothing about the disk.
    #[error("the scanner {program} failed ({status}): {message}; until it works nothing is imported")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
    /// Too slow.
    #[error("the scanner {program} took longer than {} s and was stopped; see scan_seconds", limit.as_secs())]
    TooSlow {
        /// The program.
        program: String,
        /// Limit.
        limit: Duration,
    },
    /// The import was cancelled.
    #[error("the import was cancelled")]
    Cancelled,
}

impl Scanner {
    /// Lets the scanner look at `disk`; returns its verdict if that is "clean".
    ///
    /// # Errors
    /// [`ScanError`].
    pub fn scan(&self, converter: &Converter, disk: &Path, cancel: &AtomicBool) -> Result<String, ScanError> {
        let program = self.command.first().cloned().unwrap_or_default();
        let start = |message: String| ScanError::Start { program: program.clone(), message };
        let mut child = Running(self.start(converter, disk).map_err(|error| start(error.to_string()))?);
        let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
        let (ended, said, complained) = std::thread::scope(|scope| {
            let said = scope.spawn(|| stdout.map(head).unwrap_or_default());
            let complained = scope.spawn(|| stderr.map(head).unwrap_or_default());
            let ended = self.watch(&mut child, &program, cancel);
            child.kill();
            (ended, said.join().unwrap_or_default(), complained.join().unwrap_or_default())
        });
        let status = ended?;
        let verdict = first_line(&said);
        match status.code() {
            Some(0) if verdict.is_empty() => Ok(SILENT_VERDICT.to_owned()),
            Some(0) => Ok(verdict),
            Some(EXIT_REFUSED) if !verdict.is_empty() => Err(ScanError::Refused { verdict }),
            Some(code) if [EXIT_NO_SANDBOX, EXIT_NO_PROGRAM].map(i32::from).contains(&code) => {
                Err(start(first_line(&complained)))
            }
            _ => Err(ScanError::Failed { program, status, message: first_line(&complained) }),
        }
    }

    fn start(&self, converter: &Converter, disk: &Path) -> std::io::Result<std::process::Child> {
        let confinement = Confinement {
            mode: converter.mode,
            read: disk.to_owned(),
            write: "/dev/null".into(),
            file_bytes: 0,
            cpu_s: self.time.as_secs().saturating_mul(4).max(1),
            also_read: self.read.clone(),
        };
        let mut program: Vec<OsString> = self.command.iter().map(OsString::from).collect();
        program.push(disk.into());
        Command::new(&converter.controller)
            .args(confinement.arguments(&program))
            .env_clear()
            .env("LC_ALL", "C")
            .env("MALLOC_ARENA_MAX", "2")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }

    /// Waits for the child and stops it at its limits.
    fn watch(
        &self,
        child: &mut Running,
        program: &str,
        cancel: &AtomicBool,
    ) -> Result<ExitStatus, ScanError> {
        let started = clock::monotonic();
        let too_slow = || ScanError::TooSlow { program: program.to_owned(), limit: self.time };
        loop {
            match child.0.try_wait() {
                Ok(Some(status)) if status.signal() == Some(nix::libc::SIGXCPU) => return Err(too_slow()),
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) => {
                    let program = program.to_owned();
                    return Err(ScanError::Start { program, message: error.to_string() });
                }
            }
            if started.elapsed() > self.time {
                return Err(too_slow());
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(ScanError::Cancelled);
            }
            std::thread::sleep(WATCH_EVERY);
        }
    }
}

/// The first line, cut and printable.
fn first_line(said: &str) -> String {
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(VERDICT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_one_bounded_printable_line() {
        assert_eq!(first_line("\n  found EICAR \u{1b}[31m\nmore\n"), "found EICAR  [31m");
        assert_eq!(first_line("x".repeat(5000).as_str()).chars().count(), VERDICT_CHARS_MAX);
        assert_eq!(first_line(" \n"), "");
    }
}
