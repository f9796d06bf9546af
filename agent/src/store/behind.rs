//! Hashing from the disk while the rest still arrives.
//!
//! **What.** A thread for each transfer follows its writers: chunks whose write-back has begun are read from the disk and
//! hashed. What it has seen is not read again when the file is finished.
//! **Why.** A disk reads back about as fast as a network brings; one after the other, the closing check took 40 % of the
//! time of a fetch (measured), and on a slower line it costs nothing any more.
//! **Why only a help.** The queue is short, and a batch that finds it full is left to the closing check: a slow disk delays
//! no write. A chunk that fails here is simply not known; the closing check reads it again and says so.
//! **Invariants.** A chunk is known only after it was written to the disk, its pages were seen to be gone from memory, and
//! what was read then hashed right.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use hearth_protocol::digest::ContentId;
use hearth_protocol::mask::ChunkMask;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::disk::{DiskBuffer, DiskFile};
use super::error::StoreError;
use super::locked;
use super::manifest_file::ManifestFile;
use super::reader::open_read_only;
use super::staging::Staging;
use super::sweep::{READ_BYTES, contiguous, hash_run};

/// Batches that wait. Each has about 8 MiB on disk and half a kilobyte in memory.
const BATCHES_MAX: usize = 64;

/// What was hashed from the disk so far, and who does it.
#[derive(Debug, Default)]
pub(super) struct Behind {
    known: Option<ChunkMask>,
    follower: Option<Follower>,
    /// No thread could be had: all is hashed at the end.
    off: bool,
}

#[derive(Debug)]
struct Follower {
    /// `None` once it was told that nothing more comes.
    batches: Option<SyncSender<Vec<u32>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<ChunkMask>>,
}

impl Staging {
    /// Chunks that were hashed from the disk in another way.
    pub(super) fn note_known(&self, chunks: &ChunkMask) {
        locked(&self.behind).add(chunks);
    }

    /// Hands over chunks that are written and whose write-back has begun.
    pub(super) fn follow(&self, chunks: Vec<u32>) {
        let mut behind = locked(&self.behind);
        if behind.off || chunks.is_empty() {
            return;
        }
        if behind.follower.is_none() {
            match self.start_follower() {
                Ok(follower) => behind.follower = Some(follower),
                Err(error) => {
                    tracing::debug!(content = %self.content(), error = error.chain(), "all is hashed at the end");
                    behind.off = true;
                    return;
                }
            }
        }
        let Some(batches) = behind.follower.as_ref().and_then(|follower| follower.batches.as_ref()) else {
            return;
        };
        if batches.try_send(chunks).is_err() {
            tracing::trace!("a batch is left to the closing check");
        }
    }

    fn start_follower(&self) -> Result<Follower, StoreError> {
        let manifest = self.manifest()?;
        // Of its own, because the advice belongs to the descriptor: reading ahead would meet what is being written.
        let file = open_read_only(&self.path)?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)
            .map_err(|error| StoreError::io("read", &self.path)(error.into()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (batches, queue) = sync_channel(BATCHES_MAX);
        let (content, stopped) = (self.content(), Arc::clone(&stop));
        let work = move || hash(content, &file, &manifest, &queue, &stopped);
        let thread = std::thread::Builder::new().name("hearth-behind".into()).spawn(work);
        let thread = thread.map_err(StoreError::io("start a thread for", &self.path))?;
        Ok(Follower { batches: Some(batches), stop, thread: Some(thread) })
    }

    /// Ends the thread and returns what was hashed from the disk.
    pub(super) fn known(&self) -> Option<ChunkMask> {
        let mut behind = locked(&self.behind);
        if let Some(seen) = behind.follower.take().and_then(|mut follower| follower.end()) {
            behind.add(&seen);
        }
        behind.known.clone()
    }
}

impl Behind {
    fn add(&mut self, chunks: &ChunkMask) {
        match &mut self.known {
            Some(known) => chunks.iter().for_each(|chunk| known.insert(chunk)),
            None => self.known = Some(chunks.clone()),
        }
    }
}

impl Follower {
    fn end(&mut self) -> Option<ChunkMask> {
        self.stop.store(true, Ordering::Relaxed);
        self.batches = None;
        match self.thread.take()?.join() {
            Ok(seen) => Some(seen),
            Err(_) => {
                tracing::error!("the thread that hashes behind the writers ended in a defect");
                None
            }
        }
    }
}

impl Drop for Follower {
    /// Waits for the thread, so that nobody has the file open who does not say so.
    fn drop(&mut self) {
        self.end();
    }
}

/// Hashes batches until there are no more or it is told to stop. Returns the chunks that are right on the disk.
fn hash(
    content: ContentId,
    file: &File,
    manifest: &ManifestFile,
    queue: &Receiver<Vec<u32>>,
    stop: &AtomicBool,
) -> ChunkMask {
    let disk = DiskFile::beside_writers(file);
    let mut seen = ChunkMask::empty(manifest.root().n_chunks());
    let mut buffer = DiskBuffer::new(READ_BYTES);
    let mut good = Vec::new();
    while let Ok(mut batch) = queue.recv() {
        batch.sort_unstable();
        batch.dedup();
        for run in batch.chunk_by(|left, right| left + 1 == *right) {
            if stop.load(Ordering::Relaxed) {
                return seen;
            }
            let (first, after) = (run[0], run[run.len() - 1] + 1);
            let hashed = manifest.records(first..after).map(|records| {
                let mut rest = records.as_slice();
                let mut chunk = first;
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(contiguous(rest, READ_BYTES));
                    let bytes = now.iter().map(|record| u64::from(record.raw_len)).sum();
                    if disk.drop_pages(now[0].offset, bytes) {
                        hash_run(&disk, false, chunk, now, &mut buffer, &mut good);
                    }
                    chunk += u32::try_from(now.len()).expect("a run of at most 1 MiB");
                    rest = later;
                }
            });
            if let Err(error) = hashed {
                tracing::debug!(%content, error = error.chain(), "chunks are left to the closing check");
            }
            good.drain(..).for_each(|chunk| seen.insert(chunk));
        }
    }
    seen
}
