//! What is measured, and how it is read.
//!
//! **What.** The closing check that every contender must pass (fdatasync, page cache dropped, data hashed from disk), CPU
//! seconds and peak memory of processes, medians.
//! **Why one check for all.** A download is worth something when the bytes are on disk and read back right; whoever
//! skips that looks fast.
//! **Invariants.** The check reads data extents only, on two threads: generous to contenders that write sparse files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek};

/// Bytes that one thread hashes at a time.
const STEP_BYTES: u64 = 16 << 20;

/// fdatasync, drop the page cache, hash every data extent from disk on two threads. Returns the BLAKE3 over the digests
/// of the extents' steps: equal files with equal extents have equal values.
pub(crate) fn sync_and_rehash(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.sync_data()?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let steps = data_steps(&file)?;
    let (left, right) = steps.split_at(steps.len() / 2);
    let (left, right) = std::thread::scope(|scope| {
        let other = scope.spawn(|| hash_steps(&file, right));
        (hash_steps(&file, left), other.join().expect("the hashing thread does not panic"))
    });
    let mut whole = blake3::Hasher::new();
    whole.update(&left?).update(&right?);
    Ok(whole.finalize().to_hex().to_string())
}

fn hash_steps(file: &File, steps: &[(u64, u64)]) -> Result<Vec<u8>> {
    let mut digests = Vec::new();
    let mut buffer = vec![0; usize::try_from(STEP_BYTES)?];
    for (offset, len) in steps {
        let bytes = &mut buffer[..usize::try_from(*len)?];
        file.read_exact_at(bytes, *offset)?;
        digests.extend_from_slice(blake3::hash(bytes).as_bytes());
    }
    Ok(digests)
}

/// Data extents of `file`, cut into steps.
fn data_steps(file: &File) -> Result<Vec<(u64, u64)>> {
    let len = i64::try_from(file.metadata()?.len())?;
    let (mut steps, mut at) = (Vec::new(), 0);
    while at < len {
        let Ok(data) = lseek(file, at, Whence::SeekData) else { break };
        let end = lseek(file, data, Whence::SeekHole)?.min(len);
        let (mut from, to) = (u64::try_from(data)?, u64::try_from(end)?);
        while from < to {
            let step = STEP_BYTES.min(to - from);
            steps.push((from, step));
            from += step;
        }
        at = end;
    }
    Ok(steps)
}

/// User and system CPU seconds of a live process and the children it waited for.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("/proc/PID/stat has a name")?.1;
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(4).filter_map(|tick| tick.parse::<u64>().ok()).sum();
    // Linux reports these in USER_HZ, which is 100 on every architecture we build for.
    Ok(Duration::from_millis(ticks * 10).as_secs_f64())
}

/// CPU seconds of this process's finished children.
pub(crate) fn children_cpu_seconds() -> Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: nix::sys::time::TimeVal| -> f64 {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0))
            .as_secs_f64()
    };
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// A figure of `/proc/PID/status`, in KiB.
pub(crate) fn status_kib(pid: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .with_context(|| format!("no {field} of {pid}"))?;
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .with_context(|| format!("{field}: {line}"))
}

/// Peak resident memory that is not file pages, in MiB: VmHWM less RssFile.
pub(crate) fn peak_mib(pid: u32) -> Result<u64> {
    Ok(status_kib(pid, "VmHWM:")?.saturating_sub(status_kib(pid, "RssFile:")?) / 1024)
}

/// Middle value.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `median (min-max)`.
pub(crate) fn spread(values: &[f64]) -> String {
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(0.0, f64::max);
    format!("{:.3} ({min:.3}-{max:.3})", median(values))
}

/// Runs `work` and says how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    #[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
    let start = Instant::now();
    let value = work()?;
    Ok((start.elapsed().as_secs_f64(), value))
}

/// Fails unless the two files hold the same bytes.
pub(crate) fn same(left: &Path, right: &Path) -> Result<()> {
    let status = std::process::Command::new("cmp").arg(left).arg(right).status()?;
    ensure!(status.success(), "{} differs from {}", left.display(), right.display());
    Ok(())
}
