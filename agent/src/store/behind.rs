//! Hashing from the disk while the rest still arrives.
//!
//! **What.** Two threads for each transfer follow its writers: chunks whose write-back has begun are read from the disk and
//! hashed. What they have seen is not read again when the file is finished. Two, because each waits for the disk twice: for
//! the write and for the read.
//! **Why.** A disk reads back about as fast as a network brings; one after the other, the closing check took 40 % of the
//! time of a fetch (measured), and on a slower line it costs nothing any more.
//! **Why only a help.** The queue is short, and a batch that finds it full is left to the closing check: a slow disk delays
//! no write. A chunk that fails here is simply not known; the closing check reads it again and says so. Where pages never
//! leave memory (a tmpfs), dropping them is work for nothing, and the threads end after a few batches.
//! **Invariants.** A chunk is known only after it was written to the disk, its pages were seen to be gone from memory, and
//! what was read then hashed right.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
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
const THREADS: usize = 2;
/// Batches of one thread in which no page was seen to leave memory before none is expected to: 16 MiB. Fewer could be those
/// that a busy disk has not taken yet.
const IN_VAIN_MAX: u32 = 2;

/// What was hashed from the disk so far, and who does it.
#[derive(Debug, Default)]
pub(super) struct Behind {
    known: Option<ChunkMask>,
    follower: Option<Follower>,
    /// No thread could be had, or they have nothing to see: what is left is hashed at the end.
    off: bool,
}

#[derive(Debug)]
struct Follower {
    /// `None` once it was told that nothing more comes.
    batches: Option<SyncSender<Vec<u32>>>,
    /// Ends the threads; one that has nothing to see sets it, too.
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<ChunkMask>>,
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
        let Some(follower) = &mut behind.follower else { return };
        if follower.stop.load(Ordering::Relaxed) {
            // The other thread may still wait for a batch.
            follower.batches = None;
            behind.off = true;
            return;
        }
        let Some(batches) = &follower.batches else { return };
        if batches.try_send(chunks).is_err() {
            tracing::trace!("a batch is left to the closing check");
        }
    }

    fn start_follower(&self) -> Result<Follower, StoreError> {
        let manifest = self.manifest()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (batches, queue) = sync_channel(BATCHES_MAX);
        let queue = Arc::new(Mutex::new(queue));
        let mut follower = Follower { batches: Some(batches), stop: Arc::clone(&stop), threads: Vec::new() };
        for _ in 0..THREADS {
            // Of its own, because the advice belongs to the descriptor: reading ahead would meet what is being written.
            let file = open_read_only(&self.path)?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)
                .map_err(|error| StoreError::io("read", &self.path)(error.into()))?;
            let (content, manifest) = (self.content(), Arc::clone(&manifest));
            let (queue, stop) = (Arc::clone(&queue), Arc::clone(&stop));
            let work = move || hash(content, &file, &manifest, &queue, &stop);
            let thread = std::thread::Builder::new().name("hearth-behind".into()).spawn(work);
            follower.threads.push(thread.map_err(StoreError::io("start a thread for", &self.path))?);
        }
        Ok(follower)
    }

    /// Ends the threads and returns what was hashed from the disk.
    pub(super) fn known(&self) -> Option<ChunkMask> {
        let mut behind = locked(&self.behind);
        if let Some(mut follower) = behind.follower.take() {
            follower.end().iter().for_each(|seen| behind.add(seen));
        }
        behind.known.clone()
    }

    /// Waits until everything that was handed over is hashed. Nothing is handed over afterwards.
    #[cfg(test)]
    pub(super) fn settle(&self) {
        let mut behind = locked(&self.behind);
        behind.off = true;
        if let Some(mut follower) = behind.follower.take() {
            follower.join().iter().for_each(|seen| behind.add(seen));
        }
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
    fn end(&mut self) -> Vec<ChunkMask> {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(&mut self) -> Vec<ChunkMask> {
        self.batches = None;
        let ended: Vec<_> = self.threads.drain(..).map(JoinHandle::join).collect();
        if ended.iter().any(Result::is_err) {
            tracing::error!("a thread that hashes behind the writers ended in a defect");
        }
        ended.into_iter().filter_map(Result::ok).collect()
    }
}

impl Drop for Follower {
    /// Waits for the threads, so that nobody has the file open who does not say so.
    fn drop(&mut self) {
        self.end();
    }
}

/// Hashes batches until there are no more, it is told to stop, or no page ever leaves memory. Returns the chunks that are
/// right on the disk.
fn hash(
    content: ContentId,
    file: &File,
    manifest: &ManifestFile,
    queue: &Mutex<Receiver<Vec<u32>>>,
    stop: &AtomicBool,
) -> ChunkMask {
    let disk = DiskFile::beside_writers(file);
    let mut seen = ChunkMask::empty(manifest.root().n_chunks());
    let mut buffer = DiskBuffer::new(READ_BYTES);
    let (mut good, mut batches) = (Vec::new(), 0);
    loop {
        let next = locked(queue).recv();
        let Ok(mut batch) = next else { return seen };
        batch.sort_unstable();
        batch.dedup();
        for run in batch.chunk_by(|left, right| left + 1 == *right) {
            let (mut chunk, after) = (run[0], run[run.len() - 1] + 1);
            let records = manifest.records(chunk..after).unwrap_or_else(|error| {
                tracing::debug!(%content, error = error.chain(), "chunks are left to the closing check");
                Vec::new()
            });
            let mut rest = &records[..];
            while !rest.is_empty() {
                // Before each read: whoever stops the transfer waits for this one at most.
                if stop.load(Ordering::Relaxed) {
                    return seen;
                }
                let (now, later) = rest.split_at(contiguous(rest, READ_BYTES));
                hash_run(&disk, false, chunk, now, &mut buffer, &mut good);
                good.drain(..).for_each(|chunk| seen.insert(chunk));
                chunk += u32::try_from(now.len()).expect("a batch has fewer chunks than a manifest");
                rest = later;
            }
        }
        batches += 1;
        if batches >= IN_VAIN_MAX && !disk.has_dropped() {
            tracing::debug!(%content, "written pages do not leave memory here: all is hashed at the end");
            stop.store(true, Ordering::Relaxed);
            return seen;
        }
    }
}
