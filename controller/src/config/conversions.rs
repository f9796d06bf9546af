//! What the configuration says of the work on an uploaded file: how it is confined, what is made of it, who looks at it.
//!
//! **Why beside the other keys.** The keys stand in one file for people; what is checked together stands together here.
//!
//! **Invariants.** No format is made twice. Programs and files are named by absolute paths, so the folder of the process
//! does not decide what runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_protocol::words::DiskFormat;

use super::Raw;
use super::sources::Wrong;
use crate::ingest::sandbox::SandboxMode;
use crate::ingest::scan::Scanner;

/// Variants of every import: what the other hypervisors and clouds take (QEMU, VMware, Hyper-V and Azure).
pub const VARIANTS_DEFAULT: [DiskFormat; 3] = [DiskFormat::Qcow2, DiskFormat::Vmdk, DiskFormat::Vhd];
/// What `variants` may hold.
const VARIANTS_ALLOWED: &str = "must be some of raw, qcow2, vmdk, vhd and vhdx, each once; [] for none";
/// Longest look of the scanner at one image, seconds (15 min): a virus scanner reads about 100 MB/s.
pub(super) const SCAN_SECONDS_DEFAULT: u32 = 900;
/// Longest that can be allowed: a day.
pub(super) const SCAN_SECONDS_MAX: u32 = 86_400;
/// What `scan_command` and `scan_read` may hold.
const SCAN_ALLOWED: &str = "must be absolute paths; scan_command may have arguments behind its path";
/// What `sandbox` may be.
const SANDBOX_ALLOWED: &str = "must be \"required\" or \"best-effort\"";

/// What the file says of conversions, checked.
#[derive(Debug)]
pub(super) struct Conversions {
    pub(super) sandbox: SandboxMode,
    pub(super) variants: Vec<DiskFormat>,
    pub(super) scanner: Option<Scanner>,
}

/// Checks the keys of conversions and takes them out of `raw`.
pub(super) fn check(raw: &mut Raw) -> Result<Conversions, Wrong> {
    let wrong = |key, allowed: &str| {
        let allowed = allowed.to_owned();
        move |value: String| Wrong { key, value, allowed }
    };
    let sandbox = sandbox_mode(raw.sandbox.take()).map_err(wrong("sandbox", SANDBOX_ALLOWED))?;
    let variants = formats(raw.variants.take()).map_err(wrong("variants", VARIANTS_ALLOWED))?;
    let (command, read) = (std::mem::take(&mut raw.scan_command), std::mem::take(&mut raw.scan_read));
    let scanner = scanner(command, read, raw.scan_seconds);
    let scanner = scanner.map_err(|(key, value, allowed)| Wrong { key, value, allowed })?;
    Ok(Conversions { sandbox, variants, scanner })
}

/// The mode that a word names, or the word that names none.
fn sandbox_mode(word: Option<String>) -> Result<SandboxMode, String> {
    word.map_or_else(|| Ok(SandboxMode::default()), |word| word.parse().map_err(|_| word))
}

/// The scanner of these values, `None` without a command; or the key, its value and what is allowed.
fn scanner(
    command: Vec<String>,
    read: Vec<PathBuf>,
    seconds: Option<u32>,
) -> Result<Option<Scanner>, (&'static str, String, String)> {
    let seconds = seconds.unwrap_or(SCAN_SECONDS_DEFAULT);
    if !(1..=SCAN_SECONDS_MAX).contains(&seconds) {
        return Err(("scan_seconds", seconds.to_string(), format!("must be 1 to {SCAN_SECONDS_MAX}")));
    }
    let Some(program) = command.first() else { return Ok(None) };
    if !Path::new(program).is_absolute() {
        return Err(("scan_command", program.clone(), SCAN_ALLOWED.to_owned()));
    }
    if let Some(path) = read.iter().find(|path| !path.is_absolute()) {
        return Err(("scan_read", path.display().to_string(), SCAN_ALLOWED.to_owned()));
    }
    Ok(Some(Scanner { command, read, time: Duration::from_secs(seconds.into()) }))
}

/// The formats that words name, or the word that cannot stand there.
fn formats(words: Option<Vec<String>>) -> Result<Vec<DiskFormat>, String> {
    let Some(words) = words else { return Ok(VARIANTS_DEFAULT.to_vec()) };
    let mut formats = Vec::new();
    for word in words {
        match word.parse() {
            Ok(format) if format != DiskFormat::Iso && !formats.contains(&format) => formats.push(format),
            _ => return Err(word),
        }
    }
    Ok(formats)
}
