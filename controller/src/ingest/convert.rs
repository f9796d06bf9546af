//! Makes a raw file of an accepted image, and other formats of a raw file, with the real `qemu-img` in the sandbox.
//!
//! **What.** [`Converter::to_raw`] and [`Converter::to_variant`] start the child, watch what it allocates and how long it takes,
//! and report its progress. They block; call them from a thread of their own.
//!
//! **Why a watcher.** The file size limit bounds the length of a sparse file and not what is allocated of it, and no
//! limit of the kernel counts wall time.
//!
//! **Why one file for both ways.** They share the child, its watcher and its errors, and differ in a handful of arguments.
//!
//! **Invariants**, tested in `controller/tests/sandbox.rs`: the child is dead when the function returns; a child that
//! allocates more than its reservation or takes too long is killed; the format is always named, never probed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use hearth_protocol::words::DiskFormat;

use super::sandbox::{Confinement, EXIT_NO_PROGRAM, EXIT_NO_SANDBOX, SandboxMode};
use super::space::left_bytes;
use crate::clock;

/// How often the watcher looks. At 2 GB/s a child writes 40 MB in between; the reservation has room for that.
const WATCH_EVERY: Duration = Duration::from_millis(20);
/// Of the child's messages this much is kept for the error.
const MESSAGE_BYTES: usize = 2000;
/// How `ENOSPC` reads in the child's language, which is C.
const DISK_FULL: &str = "No space left on device";
/// Shortest time a conversion gets; a loaded host starts programs slowly.
const TIME_MIN: Duration = Duration::from_secs(120);
/// Slowest honest conversion, in bytes per second: a third of a slow hard disk. Sets the time limit.
const SLOWEST_BYTES_PER_S: u64 = 16 << 20;

/// Puts a program behind all others that want the processor and the disk; both programs become the next one, so that the child
/// keeps its process. What a system lacks is left out.
const LOW_PRIORITY: [&[&str]; 2] = [&["/usr/bin/nice", "-n", "19"], &["/usr/bin/ionice", "-c", "3", "-t"]];

/// Where the programs are and how strict the sandbox is.
#[derive(Clone, Debug)]
pub struct Converter {
    /// The controller's own executable, which knows `convert-child`.
    pub controller: PathBuf,
    /// `qemu-img`, an absolute path.
    pub qemu_img: PathBuf,
    /// What to do without Landlock.
    pub mode: SandboxMode,
}

/// One conversion.
#[derive(Clone, Debug)]
pub struct Conversion<'a> {
    /// The image.
    pub input: &'a Path,
    /// Its format, as inspected.
    pub format: DiskFormat,
    /// The raw file to make; must not exist.
    pub output: &'a Path,
    /// Length the raw file must have at the end, in bytes.
    pub virtual_size_bytes: u64,
    /// Bytes it may allocate.
    pub reserved_bytes: u64,
    /// Wall time it may take; [`time_limit`] gives the usual one.
    pub time: Duration,
}

/// Why there is no raw file.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The output could not be made or looked at.
    #[error("cannot {action} {path}")]
    File {
        /// "create", "watch".
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The child could not be started.
    #[error("cannot start the converter {path}")]
    Start {
        /// The controller's executable.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The sandbox or the program in it did not start.
    #[error("the converter did not start: {message}")]
    Sandbox {
        /// What the child said.
        message: String,
    },
    /// `qemu-img` failed.
    #[error(
        "qemu-img could not convert the image ({status}): {message}; check the file where it was made: qemu-img check"
    )]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        message: String,
    },
    /// The disk is full although the room was set aside: somebody else took it. Not the image's fault.
    #[error(
        "the disk became full while the image was converted: {needed_bytes} more bytes are needed for {path}, \
         {free_bytes} are free; delete images or enlarge the disk, then retry the import"
    )]
    NoSpace {
        /// File that could not be written.
        path: PathBuf,
        /// What the tables of the image announce, less what was written.
        needed_bytes: u64,
        /// Free when it failed.
        free_bytes: u64,
    },
    /// More bytes than the tables of the image announce.
    #[error(
        "the image unpacked to more than the {reserved_bytes} bytes its tables announce ({allocated_bytes} so far); \
         the conversion was stopped: rewrite the image with qemu-img convert on a machine you trust"
    )]
    TooLarge {
        /// Allocated when it was stopped.
        allocated_bytes: u64,
        /// Limit.
        reserved_bytes: u64,
    },
    /// Too slow.
    #[error("the conversion took longer than {} s and was stopped; is the disk overloaded?", limit.as_secs())]
    TooSlow {
        /// Limit.
        limit: Duration,
    },
    /// The raw file has another length than the image's header says.
    #[error("the converted disk has {got_bytes} bytes where the image's header says {expected_bytes}")]
    Length {
        /// Of the file.
        got_bytes: u64,
        /// By the header.
        expected_bytes: u64,
    },
    /// The import was cancelled.
    #[error("the import was cancelled")]
    Cancelled,
}

/// Usual time limit for an image of that much content.
#[must_use]
pub fn time_limit(mapped_bytes: u64) -> Duration {
    TIME_MIN + Duration::from_secs(mapped_bytes / SLOWEST_BYTES_PER_S)
}

impl Converter {
    /// Converts and blocks until done. `progress` gets 0 to 100; `cancel` stops it within 20 ms.
    ///
    /// # Errors
    /// [`ConvertError`]. The output file may be left behind; it lies in the caller's staging folder.
    pub fn to_raw(
        &self,
        conversion: &Conversion<'_>,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u8),
    ) -> Result<(), ConvertError> {
        let formats = ["-f", driver(conversion.format), "-O", "raw", "-S", "4k"];
        let output = self.run(conversion, &[], &formats, cancel, progress)?;
        let got_bytes = allocated(&output, conversion)?.1;
        if got_bytes != conversion.virtual_size_bytes {
            let expected_bytes = conversion.virtual_size_bytes;
            return Err(ConvertError::Length { got_bytes, expected_bytes });
        }
        Ok(())
    }

    /// Makes the file `conversion.output` in format `to` of the raw file `conversion.input`, at low priority. Here
    /// `virtual_size_bytes` is the length that the output may reach.
    ///
    /// # Errors
    /// As [`Self::to_raw`].
    pub fn to_variant(
        &self,
        conversion: &Conversion<'_>,
        to: DiskFormat,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u8),
    ) -> Result<(), ConvertError> {
        let mut formats = vec!["-f", driver(conversion.format), "-O", driver(to), "-S", "4k"];
        formats.extend_from_slice(variant_options(to));
        self.run(conversion, &LOW_PRIORITY, &formats, cancel, progress).map(drop)
    }

    /// Runs `qemu-img convert` with `formats` and blocks until it ended well; returns the output.
    fn run(
        &self,
        conversion: &Conversion<'_>,
        before: &[&[&str]],
        formats: &[&str],
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u8),
    ) -> Result<File, ConvertError> {
        let output = OpenOptions::new().write(true).create_new(true).open(conversion.output);
        let output = output.map_err(|source| file_error("create", conversion.output, source))?;
        let mut child = Running(self.start(conversion, before, formats)?);
        let percent = AtomicU8::new(0);
        let stdout = child.0.stdout.take();
        let stderr = child.0.stderr.take();
        let (ended, message) = std::thread::scope(|scope| {
            scope.spawn(|| stdout.map(|stdout| follow(stdout, &percent)));
            let message = scope.spawn(|| stderr.map(head).unwrap_or_default());
            let ended = watch(&mut child, conversion, &output, cancel, &percent, progress);
            child.kill();
            (ended, message.join().unwrap_or_default())
        });
        let status = ended?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        match code {
            Some(0) => {}
            Some(EXIT_NO_SANDBOX | EXIT_NO_PROGRAM) => return Err(ConvertError::Sandbox { message }),
            _ if message.contains(DISK_FULL) => {
                let needed_bytes =
                    conversion.reserved_bytes.saturating_sub(allocated(&output, conversion)?.0);
                let free_bytes = left_bytes(conversion.output);
                return Err(ConvertError::NoSpace {
                    path: conversion.output.to_owned(),
                    needed_bytes,
                    free_bytes,
                });
            }
            _ => return Err(ConvertError::Failed { status, message }),
        }
        Ok(output)
    }

    fn start(
        &self,
        conversion: &Conversion<'_>,
        before: &[&[&str]],
        formats: &[&str],
    ) -> Result<Child, ConvertError> {
        let confinement = Confinement {
            mode: self.mode,
            read: conversion.input.to_owned(),
            write: conversion.output.to_owned(),
            file_bytes: conversion.virtual_size_bytes,
            cpu_s: conversion.time.as_secs().saturating_mul(4).max(1),
            also_read: Vec::new(),
        };
        let mut program: Vec<OsString> = vec![self.qemu_img.clone().into(), "convert".into(), "-p".into()];
        program.extend(formats.iter().map(OsString::from));
        program.extend([conversion.input.into(), conversion.output.into()]);
        let before = before.iter().filter(|words| Path::new(words[0]).exists());
        let mut words: Vec<OsString> = before.flat_map(|words| words.iter().map(OsString::from)).collect();
        words.push(self.controller.clone().into());
        words.extend(confinement.arguments(&program));
        Command::new(&words[0])
            .args(&words[1..])
            .env_clear()
            .env("LC_ALL", "C")
            .env("MALLOC_ARENA_MAX", "2") // each arena takes 128 MiB of the address space limit
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| ConvertError::Start { path: self.controller.clone(), source })
    }
}

/// QEMU's name of the format.
fn driver(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw | DiskFormat::Iso => "raw",
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Vmdk => "vmdk",
        DiskFormat::Vhd => "vpc",
        DiskFormat::Vhdx => "vhdx",
    }
}

/// How a variant is written. All are read by other clouds: qcow2 packed with zlib, which every QEMU knows; VMDK as one packed file,
/// as VMware imports it; VHD that grows, with the exact size of the disk instead of one rounded to old geometries.
fn variant_options(to: DiskFormat) -> &'static [&'static str] {
    match to {
        DiskFormat::Raw | DiskFormat::Iso => &[],
        DiskFormat::Qcow2 => &["-c", "-o", "compat=1.1,compression_type=zlib"],
        DiskFormat::Vmdk => &["-o", "subformat=streamOptimized,adapter_type=lsilogic"],
        DiskFormat::Vhd => &["-o", "subformat=dynamic,force_size=on"],
        DiskFormat::Vhdx => &["-o", "subformat=dynamic"],
    }
}

/// The child; killed and reaped when dropped.
pub(super) struct Running(pub(super) Child);

impl Running {
    pub(super) fn kill(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            let killed = self.0.kill().and_then(|()| self.0.wait());
            if let Err(error) = killed {
                tracing::error!(%error, pid = self.0.id(), "cannot kill the converter");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for the child and stops it at its limits.
fn watch(
    child: &mut Running,
    conversion: &Conversion<'_>,
    output: &File,
    cancel: &AtomicBool,
    percent: &AtomicU8,
    progress: &mut dyn FnMut(u8),
) -> Result<ExitStatus, ConvertError> {
    let started = clock::monotonic();
    let mut shown = None;
    loop {
        let ended = child.0.try_wait().map_err(|source| file_error("watch", conversion.output, source))?;
        let (allocated_bytes, _) = allocated(output, conversion)?;
        if allocated_bytes > conversion.reserved_bytes {
            let reserved_bytes = conversion.reserved_bytes;
            return Err(ConvertError::TooLarge { allocated_bytes, reserved_bytes });
        }
        if let Some(status) = ended {
            let by_limit = status.signal() == Some(nix::libc::SIGXCPU);
            return if by_limit { Err(ConvertError::TooSlow { limit: conversion.time }) } else { Ok(status) };
        }
        if started.elapsed() > conversion.time {
            return Err(ConvertError::TooSlow { limit: conversion.time });
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(ConvertError::Cancelled);
        }
        let now = percent.load(Ordering::Relaxed);
        if shown.replace(now) != Some(now) {
            progress(now);
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

/// (allocated bytes, length) of the output.
fn allocated(output: &File, conversion: &Conversion<'_>) -> Result<(u64, u64), ConvertError> {
    let metadata = output.metadata().map_err(|source| file_error("watch", conversion.output, source))?;
    Ok((metadata.blocks() * 512, metadata.len()))
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> ConvertError {
    ConvertError::File { action, path: path.to_owned(), source }
}

/// Reads `    (12.34/100%)\r` from the child until it ends.
fn follow(mut stdout: impl io::Read, percent: &AtomicU8) {
    let mut buf = [0u8; 256];
    let mut digits = None;
    loop {
        let n = match stdout.read(&mut buf) {
            Ok(0) => return,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        for &byte in &buf[..n] {
            digits = match (byte, digits) {
                (b'(', _) => Some(0u8),
                (b'0'..=b'9', Some(value)) => Some(value.saturating_mul(10).saturating_add(byte - b'0')),
                (_, Some(value)) => {
                    percent.store(value.min(100), Ordering::Relaxed);
                    None
                }
                (_, None) => None,
            };
        }
    }
}

/// The first [`MESSAGE_BYTES`] of what the child says; the rest is read and forgotten, so that it never blocks.
pub(super) fn head(mut stderr: impl io::Read) -> String {
    let mut kept = Vec::new();
    let mut message = stderr.by_ref().take(MESSAGE_BYTES as u64);
    let read = message.read_to_end(&mut kept).and_then(|_| io::copy(&mut stderr, &mut io::sink()));
    if let Err(error) = read {
        tracing::debug!(%error, "the converter's messages broke off");
    }
    let text = String::from_utf8_lossy(&kept);
    text.trim().chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_across_reads_and_bounded() {
        let percent = AtomicU8::new(0);
        follow(&b"    (0.00/100%)\r    (69."[..], &percent);
        assert_eq!(percent.load(Ordering::Relaxed), 69);
        follow(&b"x (99999999/100%)"[..], &percent);
        assert_eq!(percent.load(Ordering::Relaxed), 100);
    }

    #[test]
    fn messages_are_cut_and_filtered() {
        let noise = [b"bad\x1B[31m".repeat(1000), b"\n".to_vec()].concat();
        let message = head(&noise[..]);
        assert!(message.len() <= MESSAGE_BYTES && !message.contains('\x1B'), "{message:?}");
    }

    #[test]
    fn the_time_limit_grows_with_the_content() {
        assert_eq!(time_limit(0), Duration::from_secs(120));
        assert_eq!(time_limit(160 << 20), Duration::from_secs(130));
    }
}
