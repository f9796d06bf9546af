//! Hashing a file against its manifest, on two threads.
//!
//! **What.** [`sweep`] reads the chunks of a content and says which ones fail, and whether any byte outside the chunks is
//! not zero. Used before publishing, on resume, after a crash and by the scrub.
//! **Why two threads.** One thread hashes about 5 GiB/s from memory but waits for each read; two keep the disk busy. More
//! would take cores from the host's guests.
//! **Invariants.** A chunk is good only if its bytes were read from the disk and hashed to its digest, in this call or, for
//! those in `known`, in one before. A chunk that cannot be read is bad, not an error: the disk has lost it.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use hearth_protocol::digest::ChunkDigest;
use hearth_protocol::manifest::{CHUNK_BYTES_MAX, ChunkRecord};
use hearth_protocol::mask::ChunkMask;
use nix::unistd::{Whence, lseek};

use super::disk::{DiskBuffer, DiskFile};
use super::error::StoreError;
use super::locked;
use super::manifest_file::ManifestFile;

/// Chunks that a thread takes at a time: about 4 MiB.
const UNIT_CHUNKS: u32 = 64;
/// Bytes per read. Bounds memory to this per thread.
pub(super) const READ_BYTES: usize = 1 << 20;
const THREADS: usize = 2;

/// What a long call is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProgressStep {
    /// Hashing what an earlier try left in the staging file.
    Resume,
    /// Taking chunks from other contents of this cache.
    Reuse,
    /// Hashing the finished file from disk.
    Verify,
}

/// How far a long call is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// What it is doing.
    pub step: ProgressStep,
    /// Raw bytes handled in this step.
    pub done_bytes: u64,
    /// Raw bytes in this step at most.
    pub total_bytes: u64,
}

/// A progress callback that does nothing and never stops the call.
pub fn no_progress(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Callback of long calls; `Break` stops them with [`StoreError::Stopped`].
pub(super) type OnProgress<'a> = &'a (dyn Fn(Progress) -> ControlFlow<()> + Sync);

/// What to hash.
pub(super) struct Sweep<'a> {
    pub(super) disk: &'a DiskFile<'a>,
    pub(super) path: &'a Path,
    pub(super) manifest: &'a ManifestFile,
    pub(super) step: ProgressStep,
    /// Chunks that were read from the disk and hashed right before; they are not read again.
    pub(super) known: Option<&'a ChunkMask>,
    /// Skip chunks that stand in holes: they were never written.
    pub(super) skip_holes: bool,
    pub(super) progress: OnProgress<'a>,
}

/// What was found.
#[derive(Debug)]
pub(super) struct Swept {
    /// Chunks that hash to their digest.
    pub(super) good: ChunkMask,
    /// Raw bytes of the good chunks.
    pub(super) good_bytes: u64,
    /// A byte outside the chunks is not zero.
    pub(super) stray_bytes: bool,
}

impl Swept {
    /// Number and first of the chunks that are not good.
    pub(super) fn bad(&self) -> Option<(u32, u32)> {
        let first = (0..self.good.len()).find(|chunk| !self.good.contains(*chunk))?;
        Some((self.good.len() - self.good.count(), first))
    }
}

struct Shared {
    next: AtomicU32,
    good: Mutex<ChunkMask>,
    good_bytes: AtomicU64,
    seen_bytes: AtomicU64,
    stray: AtomicBool,
    stop: AtomicBool,
}

/// Hashes; see the module.
///
/// # Errors
/// [`StoreError::Manifest`] if the manifest is damaged, [`StoreError::Stopped`] if the caller said so.
pub(super) fn sweep(what: &Sweep<'_>) -> Result<Swept, StoreError> {
    let n_chunks = what.manifest.root().n_chunks();
    let shared = Shared {
        next: AtomicU32::new(0),
        good: Mutex::new(what.known.cloned().unwrap_or_else(|| ChunkMask::empty(n_chunks))),
        good_bytes: AtomicU64::new(0),
        seen_bytes: AtomicU64::new(0),
        stray: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    };
    let results: Vec<Result<(), StoreError>> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(|| work(what, &shared))).collect();
        let mut results = vec![work(what, &shared)];
        for other in others {
            results.push(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        results
    });
    results.into_iter().collect::<Result<(), _>>()?;
    let good = shared.good.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let stray_bytes = shared.stray.load(Ordering::Relaxed);
    Ok(Swept { good, good_bytes: shared.good_bytes.load(Ordering::Relaxed), stray_bytes })
}

fn work(what: &Sweep<'_>, shared: &Shared) -> Result<(), StoreError> {
    let result = work_until_done(what, shared);
    if result.is_err() {
        shared.stop.store(true, Ordering::Relaxed);
    }
    result
}

fn work_until_done(what: &Sweep<'_>, shared: &Shared) -> Result<(), StoreError> {
    let root = what.manifest.root();
    let n_units = root.n_chunks().div_ceil(UNIT_CHUNKS).max(1);
    let mut buffer = DiskBuffer::new(READ_BYTES);
    loop {
        let unit = shared.next.fetch_add(1, Ordering::Relaxed);
        if unit >= n_units || shared.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let first = unit * UNIT_CHUNKS;
        // One record before the unit tells where its first gap begins.
        let from = first.saturating_sub(1);
        let records = what.manifest.records(from..first + UNIT_CHUNKS)?;
        let (before, records) = records.split_at((first - from) as usize);
        let mut end = before.last().map_or(0, ChunkRecord::end);
        for record in records {
            check_gap(what, shared, end, record.offset)?;
            end = record.end();
        }
        if unit + 1 == n_units {
            check_gap(what, shared, end, root.raw_bytes())?;
        }
        hash_unit(what, shared, first, records, &mut buffer);
        let seen: u64 = records.iter().map(|record| u64::from(record.raw_len)).sum();
        let done_bytes = shared.seen_bytes.fetch_add(seen, Ordering::Relaxed) + seen;
        let progress = Progress { step: what.step, done_bytes, total_bytes: root.data_bytes() };
        if (what.progress)(progress).is_break() {
            return Err(StoreError::Stopped);
        }
    }
}

fn check_gap(what: &Sweep<'_>, shared: &Shared, from: u64, to: u64) -> Result<(), StoreError> {
    let file = what.disk.cached();
    if from < to && !only_zeros(file, from, to).map_err(StoreError::io("read", what.path))? {
        shared.stray.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Hashes the chunks of a unit and notes the good ones. Those that are known to be good are not read.
fn hash_unit(
    what: &Sweep<'_>,
    shared: &Shared,
    first: u32,
    records: &[ChunkRecord],
    buffer: &mut DiskBuffer,
) {
    let known = |chunk: &u32| what.known.is_some_and(|known| known.contains(*chunk));
    let mut good = Vec::with_capacity(records.len());
    let mut good_bytes = 0;
    let (mut rest, mut chunk) = (records, first);
    while !rest.is_empty() {
        let same = (chunk..).zip(rest).take_while(|(other, _)| known(other) == known(&chunk)).count();
        let run = &rest[..same];
        if known(&chunk) {
            good_bytes += run.iter().map(|record| u64::from(record.raw_len)).sum::<u64>();
        } else {
            good_bytes += hash_run(what.disk, what.skip_holes, chunk, run, buffer, &mut good);
        }
        chunk += u32::try_from(same).expect("a unit has 64 chunks");
        rest = &rest[same..];
    }
    let mut mask = locked(&shared.good);
    good.into_iter().for_each(|chunk| mask.insert(chunk));
    shared.good_bytes.fetch_add(good_bytes, Ordering::Relaxed);
}

/// Reads consecutive chunks from the disk and adds those that hash right to `good`. Returns their raw bytes.
pub(super) fn hash_run(
    disk: &DiskFile<'_>,
    skip_holes: bool,
    first: u32,
    records: &[ChunkRecord],
    buffer: &mut DiskBuffer,
    good: &mut Vec<u32>,
) -> u64 {
    let (mut good_bytes, mut chunk, mut rest) = (0, first, records);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(contiguous(rest, READ_BYTES));
        let bytes: usize = now.iter().map(|record| record.raw_len as usize).sum();
        let empty = skip_holes && is_hole(disk.cached(), now[0].offset, bytes as u64);
        let right = if empty { vec![false; now.len()] } else { right_ones(disk, now, bytes, buffer) };
        for (record, right) in now.iter().zip(right) {
            if right {
                good.push(chunk);
                good_bytes += u64::from(record.raw_len);
            }
            chunk += 1;
        }
        rest = later;
    }
    good_bytes
}

/// Which of the chunks, `bytes` in all and without a gap, hash right.
fn right_ones(
    disk: &DiskFile<'_>,
    records: &[ChunkRecord],
    bytes: usize,
    buffer: &mut DiskBuffer,
) -> Vec<bool> {
    let is = |record: &ChunkRecord, bytes: &[u8]| ChunkDigest::of(bytes) == record.digest;
    match disk.read(records[0].offset, bytes, buffer) {
        Ok(mut whole) => {
            let mut next = |len: u32| {
                let (chunk, rest) = whole.split_at(len as usize);
                whole = rest;
                chunk
            };
            return records.iter().map(|record| is(record, next(record.raw_len))).collect();
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return vec![false; records.len()],
        Err(_) => {}
    }
    // One unreadable sector must not condemn its neighbours.
    let mut one = |record: &ChunkRecord| {
        let read = disk.read(record.offset, record.raw_len as usize, buffer);
        read.is_ok_and(|bytes| is(record, bytes))
    };
    records.iter().map(&mut one).collect()
}

/// How many of the first records stand without a gap and fit `bytes_max`; at least one, because a chunk is never larger.
pub(super) fn contiguous(records: &[ChunkRecord], bytes_max: usize) -> usize {
    const { assert!(CHUNK_BYTES_MAX as usize <= READ_BYTES) };
    let mut bytes = 0;
    let mut end = records.first().map_or(0, |record| record.offset);
    let fits = |record: &&ChunkRecord| {
        bytes += record.raw_len as usize;
        let joins = record.offset == end && bytes <= bytes_max;
        end = record.end();
        joins
    };
    records.iter().take_while(fits).count().max(1)
}

/// First byte at or after `from` that may hold data, or `None` if only a hole follows.
fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match lseek(file, to_off(from)?, Whence::SeekData) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(nix::Error::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn to_off(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(io::Error::other)
}

/// Whether the range is a hole as a whole. A file system that cannot tell says no.
fn is_hole(file: &File, offset: u64, bytes: u64) -> bool {
    next_data(file, offset).is_ok_and(|data| data.is_none_or(|at| at >= offset + bytes))
}

/// Whether every byte of the range is zero; holes are not read.
fn only_zeros(file: &File, from: u64, to: u64) -> io::Result<bool> {
    let mut at = from;
    let mut buffer = Vec::new();
    while let Some(data) = next_data(file, at)?.filter(|data| *data < to) {
        let hole = lseek(file, to_off(data)?, Whence::SeekHole).map_err(io::Error::from)?;
        let end = u64::try_from(hole).unwrap_or(to).min(to);
        at = data;
        while at < end {
            let n = usize::try_from(end - at).map_or(READ_BYTES, |n| n.min(READ_BYTES));
            buffer.resize(n, 0);
            file.read_exact_at(&mut buffer, at)?;
            if buffer.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += n as u64;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stray_bytes_in_a_hole_are_seen() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        assert!(only_zeros(&file, 0, 64 << 20).unwrap());
        file.write_all_at(&[0; 5000], 10 << 20).unwrap();
        assert!(only_zeros(&file, 0, 64 << 20).unwrap());
        file.write_all_at(&[1], (10 << 20) + 4999).unwrap();
        assert!(!only_zeros(&file, 0, 64 << 20).unwrap());
        assert!(only_zeros(&file, 0, (10 << 20) + 4999).unwrap());
        assert!(is_hole(&file, 0, 4096) && !is_hole(&file, 10 << 20, 4096));
    }
}
