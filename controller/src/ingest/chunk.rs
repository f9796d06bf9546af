//! Cuts a raw file into chunks, packs them, and stages the content object.
//!
//! **What.** One thread reads and cuts in order, workers hash and pack, one thread writes in order; holes of a sparse
//! disk are skipped by `SEEK_DATA`.
//!
//! **Why batches.** A chunk is 64 KiB; handing over about a MiB at a time makes the queues cost nothing. Cutting runs at
//! 10 GiB/s, packing at 0.3 GiB/s a thread, so one reader feeds many workers.
//!
//! **Invariants**, each tested: the content id depends on the bytes alone, not on threads, batches or holes; memory is
//! bounded by the queues; an error or a cancel ends all threads and leaves nothing behind.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use hearth_protocol::digest::ChunkDigest;
use hearth_protocol::manifest::{ManifestError, RAW_BYTES_MAX};
use hearth_protocol::words::ContentKind;
use nix::unistd::{Whence, lseek};

use crate::content::{ContentError, ObjectWriter, PackedChunk, Packer, Staged, on};

mod cut;
#[cfg(test)]
mod tests;

use cut::{BLOCK, Cutter, Step};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;
/// A batch is handed to a worker when it has this many bytes; it is at most one chunk longer.
const BATCH_BYTES: usize = 1 << 20;
/// Batches in flight. Protects the controller's memory: 2 MiB each, raw and packed.
const BATCHES_MAX: usize = 8;

/// Raw bytes of some consecutive chunks.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    /// (offset in the content, length) of each chunk.
    chunks: Vec<(u64, u32)>,
}

/// The same, packed.
#[derive(Debug)]
struct PackedBatch {
    bytes: Vec<u8>,
    chunks: Vec<PackedChunk>,
}

type Answer = io::Result<PackedBatch>;

/// What to stage.
#[derive(Debug)]
pub struct Chunking<'a> {
    /// The raw disk or the file.
    pub source: &'a File,
    /// Its path, for errors.
    pub path: &'a Path,
    /// How to cut it.
    pub kind: ContentKind,
    /// Staging folder of the object; must not exist.
    pub staging: &'a Path,
    /// Threads that hash and pack; 1 or more.
    pub threads: usize,
    /// Size of the content, at least the source's; what is behind the source's end is zeros. `None`: the source's.
    pub grown_bytes: Option<u64>,
}

/// Cuts and packs the whole source and blocks until all of it is staged and synced. `progress` gets the raw bytes passed
/// so far.
///
/// # Errors
/// [`ContentError`]: the source cannot be read, the staging folder cannot be written, the content is too large, or
/// `cancel` was set. Nothing is left in the staging folder then.
pub fn stage(
    chunking: &Chunking<'_>,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(u64),
) -> Result<Staged, ContentError> {
    let metadata = chunking.source.metadata().map_err(on("read", chunking.path))?;
    let raw_bytes = chunking.grown_bytes.unwrap_or(0).max(metadata.len());
    if raw_bytes > RAW_BYTES_MAX {
        return Err(ManifestError::TooLarge { raw_bytes, data_bytes: 0 }.into());
    }
    let writer = ObjectWriter::create(chunking.staging, chunking.kind)?;
    let (jobs, queue) = sync_channel::<(Batch, SyncSender<Answer>)>(BATCHES_MAX);
    let (order, results) = sync_channel::<Receiver<Answer>>(BATCHES_MAX);
    let queue = Mutex::new(queue);
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || write(writer, &results));
        let working: Vec<_> = (0..chunking.threads.max(1)).map(|_| scope.spawn(|| work(&queue))).collect();
        let mut reader = Reader {
            chunking,
            cutter: Cutter::new(chunking.kind),
            batch: Batch::default(),
            open_bytes: 0,
            jobs,
            order,
        };
        let read = reader.run(metadata.len(), cancel, progress);
        drop(reader); // closes both queues: workers and writer come to their end
        working.into_iter().for_each(|worker| worker.join().expect("packing does not panic"));
        let written = writing.join().expect("writing does not panic");
        if read? {
            return written?.finish(raw_bytes);
        }
        Err(written.expect_err("the queues close early only when the writer has failed"))
    })
}

/// Hashes and packs batches until the queue is closed.
fn work(queue: &Mutex<Receiver<(Batch, SyncSender<Answer>)>>) {
    let mut packer = None;
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((batch, answer)) = next else { return };
        if answer.send(pack(&mut packer, &batch)).is_err() {
            // The writer has stopped on an error; the queue is emptied, so that the reader never waits for room in it.
            continue;
        }
    }
}

fn pack(packer: &mut Option<Packer>, batch: &Batch) -> Answer {
    let packer = match packer {
        Some(packer) => packer,
        None => packer.insert(Packer::new()?),
    };
    let mut packed = PackedBatch {
        bytes: Vec::with_capacity(batch.bytes.len()),
        chunks: Vec::with_capacity(batch.chunks.len()),
    };
    let mut rest = batch.bytes.as_slice();
    for &(offset, raw_len) in &batch.chunks {
        let (raw, more) = rest.split_at(raw_len as usize);
        rest = more;
        let start = packed.bytes.len();
        let encoding = packer.pack(raw, &mut packed.bytes)?;
        let stored_len = u32::try_from(packed.bytes.len() - start).map_err(io::Error::other)?;
        let digest = ChunkDigest::of(raw);
        packed.chunks.push(PackedChunk { offset, raw_len, digest, stored_len, encoding });
    }
    Ok(packed)
}

/// Writes the packed batches in the order in which they were read.
fn write(
    mut writer: ObjectWriter,
    results: &Receiver<Receiver<Answer>>,
) -> Result<ObjectWriter, ContentError> {
    for result in results {
        let packed = result.recv().map_err(|_| ContentError::Cancelled)?; // only if a worker panicked
        let packed = packed.map_err(|source| ContentError::Pack { source })?;
        writer.push(&packed.chunks, &packed.bytes)?;
    }
    Ok(writer)
}

/// Reads and cuts; owns the sending ends of the queues.
struct Reader<'a> {
    chunking: &'a Chunking<'a>,
    cutter: Cutter,
    batch: Batch,
    /// Length of the open chunk at the end of the batch.
    open_bytes: usize,
    jobs: SyncSender<(Batch, SyncSender<Answer>)>,
    order: SyncSender<Receiver<Answer>>,
}

impl Reader<'_> {
    /// Reads all data; `false` if the other threads stopped first.
    fn run(
        &mut self,
        len: u64,
        cancel: &AtomicBool,
        progress: &mut dyn FnMut(u64),
    ) -> Result<bool, ContentError> {
        let mut buf = vec![0; READ_BYTES];
        let mut at = 0;
        while let Some((start, end)) = self.data_after(at, len)? {
            if start > at {
                self.hole();
            }
            at = start;
            while at < end {
                if cancel.load(Ordering::Relaxed) {
                    return Err(ContentError::Cancelled);
                }
                let n = usize::try_from(end - at).unwrap_or(usize::MAX).min(READ_BYTES);
                let part = &mut buf[..n];
                self.chunking.source.read_exact_at(part, at).map_err(on("read", self.chunking.path))?;
                for block in part.chunks(BLOCK) {
                    if !self.block(at, block) {
                        return Ok(false);
                    }
                    at += block.len() as u64;
                }
                progress(at);
            }
        }
        self.hole();
        progress(len);
        Ok(self.hand_over())
    }

    /// Next stretch with data from `at` on, in whole blocks; the last may be cut by the end. `None` at the end.
    fn data_after(&self, at: u64, len: u64) -> Result<Option<(u64, u64)>, ContentError> {
        if at >= len {
            return Ok(None);
        }
        if self.chunking.kind == ContentKind::File {
            return Ok(Some((at, len)));
        }
        let block = BLOCK as u64;
        let seek = |from: u64, whence| {
            let from = i64::try_from(from).expect("at most 16 TiB");
            lseek(self.chunking.source, from, whence).map(i64::unsigned_abs)
        };
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => (start / block * block).max(at),
            Err(nix::errno::Errno::ENXIO) => return Ok(None), // a hole up to the end
            Err(nix::errno::Errno::EINVAL) => return Ok(Some((at, len))), // cannot tell holes: read all
            Err(errno) => return Err(on("read", self.chunking.path)(errno.into())),
        };
        let end =
            seek(start, Whence::SeekHole).map_err(|errno| on("read", self.chunking.path)(errno.into()))?;
        Ok(Some((start, end.next_multiple_of(block).min(len))))
    }

    /// Takes one block at `at`; `false` if nobody takes batches any more.
    fn block(&mut self, at: u64, block: &[u8]) -> bool {
        match self.cutter.step(block) {
            Step::Grow => self.grow(at, block),
            Step::End => {
                self.grow(at, block);
                self.close();
            }
            Step::Zero => self.close(),
        }
        self.open_bytes > 0 || self.batch.bytes.len() < BATCH_BYTES || self.hand_over()
    }

    fn grow(&mut self, at: u64, block: &[u8]) {
        if self.open_bytes == 0 {
            self.batch.chunks.push((at, 0));
        }
        self.open_bytes += block.len();
        self.batch.bytes.extend_from_slice(block);
    }

    fn close(&mut self) {
        if self.open_bytes > 0
            && let Some((_, len)) = self.batch.chunks.last_mut()
        {
            *len = u32::try_from(self.open_bytes).expect("a chunk is at most 256 KiB");
        }
        self.open_bytes = 0;
    }

    fn hole(&mut self) {
        self.cutter.hole();
        self.close();
    }

    /// Gives the batch to the workers, its answer to the writer.
    fn hand_over(&mut self) -> bool {
        let batch = std::mem::take(&mut self.batch);
        if batch.chunks.is_empty() {
            return true;
        }
        let (answer, receiver) = sync_channel(1);
        self.order.send(receiver).is_ok() && self.jobs.send((batch, answer)).is_ok()
    }
}
