//! Unpacking, checking and writing what came: two threads for the whole agent.
//!
//! **What.** A [`Segment`] holds about 1 MiB of chunks as they came over the wire. A worker unpacks them, hashes each
//! whole chunk, and writes what lies side by side with one call.
//! **Why threads and not tasks.** Unpacking takes 70 % of the CPU of a fetch; on the runtime it would delay the packets.
//! Two workers gave the shortest time, one or three were slower (measured).
//!
//! **Invariants.**
//! 1. `no_byte_is_written_before_its_chunk_was_verified`.
//! 2. A packed chunk is unpacked into exactly its raw length; a longer one is bad, whatever it says about itself.
//! 3. Segments in memory are bounded by [`SEGMENTS_MAX`]: a slow disk slows the network, not the host.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_protocol::digest::ChunkDigest;
use hearth_protocol::manifest::{CHUNK_BYTES_MAX, ChunkRecord};
use hearth_protocol::message::data::Encoding;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::clock;

/// Raw bytes of one segment at most, and of one write.
pub const SEGMENT_BYTES: usize = 1 << 20;
/// Segments that may be filled, wait or be worked on at once: bounds the agent's memory to about this many MiB.
pub const SEGMENTS_MAX: usize = 24;
/// Worker threads.
const WORKERS: usize = 2;
/// Segments that wait for a worker.
const QUEUE: usize = 4;
/// Buffers kept for reuse.
const POOL: usize = 8;

/// Where verified bytes go.
pub trait Sink: Send + Sync {
    /// Writes bytes at a raw offset.
    ///
    /// # Errors
    /// What the disk says.
    fn write_run(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError>;

    /// These chunks are written.
    ///
    /// # Errors
    /// What the store says.
    fn mark_done(&self, chunks: &[u32]) -> Result<(), SinkError>;

    /// A verified chunk as it was packed, before it is written; kept by whoever passes chunks on.
    fn keep_packed(&self, _chunk: u32, _packed: &[u8]) {}
}

/// The store refused bytes.
pub type SinkError = crate::store::StoreError;

/// One chunk of a segment.
#[derive(Clone, Copy, Debug)]
struct Part {
    chunk: u32,
    encoding: Encoding,
    stored_len: usize,
    record: ChunkRecord,
}

/// Chunks as they came, with room for about 1 MiB of raw bytes.
#[derive(Debug)]
pub struct Segment {
    bytes: Vec<u8>,
    parts: Vec<Part>,
    raw_bytes: usize,
    pool: Arc<Pool>,
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Pool {
    buffers: Mutex<Vec<Vec<u8>>>,
}

/// What became of a segment.
#[derive(Debug, Default)]
pub struct Unpacked {
    /// Chunks that were verified and written.
    pub done: Vec<u32>,
    /// Chunks with wrong bytes.
    pub bad: Vec<u32>,
    /// Raw bytes written.
    pub raw_bytes: u64,
    /// Time that a worker unpacked and hashed.
    pub decode: Duration,
    /// Time that a worker waited for its writes.
    pub write: Duration,
    /// The disk's refusal; what is not in `done` was not written.
    pub failed: Option<SinkError>,
}

struct Job {
    segment: Segment,
    sink: Arc<dyn Sink>,
    reply: oneshot::Sender<Unpacked>,
}

/// The workers. Dropping the last clone ends them.
#[derive(Clone, Debug)]
pub struct Decoders {
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    pool: Arc<Pool>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("segment", &self.segment).finish_non_exhaustive()
    }
}

impl Segment {
    /// Whether a chunk of this raw length still fits.
    #[must_use]
    pub fn fits(&self, raw_len: u32) -> bool {
        self.parts.is_empty() || self.raw_bytes + raw_len as usize <= SEGMENT_BYTES
    }

    /// Whether no chunk is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Room for the stored bytes of the next chunk; fill all of it.
    pub fn room_for(
        &mut self,
        chunk: u32,
        encoding: Encoding,
        stored_len: u32,
        record: ChunkRecord,
    ) -> &mut [u8] {
        let (start, stored_len) = (self.bytes.len(), stored_len as usize);
        self.bytes.resize(start + stored_len, 0);
        self.parts.push(Part { chunk, encoding, stored_len, record });
        self.raw_bytes += record.raw_len as usize;
        &mut self.bytes[start..]
    }

    /// Takes back the chunk whose bytes did not come whole.
    pub fn drop_last(&mut self) {
        if let Some(part) = self.parts.pop() {
            self.bytes.truncate(self.bytes.len() - part.stored_len);
            self.raw_bytes -= part.record.raw_len as usize;
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let mut buffers = self.pool.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if buffers.len() < POOL {
            let mut buffer = std::mem::take(&mut self.bytes);
            buffer.clear();
            buffers.push(buffer);
        }
    }
}

impl Decoders {
    /// Starts the workers.
    ///
    /// # Errors
    /// What the system says if it gives no thread.
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..WORKERS {
            let queue = Arc::clone(&queue);
            let worker = Worker::new()?;
            std::thread::Builder::new().name("hearth-decode".into()).spawn(move || work(&queue, worker))?;
        }
        let pool = Arc::new(Pool { buffers: Mutex::new(Vec::new()) });
        Ok(Self { jobs, room: Arc::new(Semaphore::new(SEGMENTS_MAX)), pool })
    }

    /// Waits for room and gives an empty segment. Cancel safe.
    pub async fn segment(&self) -> Segment {
        let room = Arc::clone(&self.room).acquire_owned().await.expect("the semaphore is never closed");
        let bytes = self.pool.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = bytes.unwrap_or_else(|| Vec::with_capacity(SEGMENT_BYTES));
        Segment { bytes, parts: Vec::new(), raw_bytes: 0, pool: Arc::clone(&self.pool), _room: room }
    }

    /// Hands a segment to the workers; the answer comes when it is written.
    pub async fn submit(&self, segment: Segment, sink: Arc<dyn Sink>) -> oneshot::Receiver<Unpacked> {
        let (reply, answer) = oneshot::channel();
        if self.jobs.send(Job { segment, sink, reply }).await.is_err() {
            tracing::error!("the decode workers are gone");
        }
        answer
    }
}

fn work(queue: &Mutex<mpsc::Receiver<Job>>, mut worker: Worker) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(Job { segment, sink, reply }) = job else { return };
        let unpacked = worker.unpack(&segment, sink.as_ref());
        drop(segment);
        if reply.send(unpacked).is_err() {
            tracing::trace!("nobody waits for this segment any more");
        }
    }
}

struct Worker {
    zstd: zstd::bulk::Decompressor<'static>,
    buffer: Vec<u8>,
}

/// Verified chunks that lie side by side and are not written yet.
#[derive(Default)]
struct Run {
    offset: u64,
    /// Where the bytes are: in the worker's buffer, or unpacked as they came in the segment.
    in_segment: bool,
    start: usize,
    len: usize,
    chunks: Vec<u32>,
}

impl Worker {
    fn new() -> io::Result<Self> {
        Ok(Self {
            zstd: zstd::bulk::Decompressor::new()?,
            buffer: vec![0; SEGMENT_BYTES + CHUNK_BYTES_MAX as usize],
        })
    }

    fn unpack(&mut self, segment: &Segment, sink: &dyn Sink) -> Unpacked {
        let began = clock::monotonic();
        let mut out = Unpacked::default();
        let mut run = Run::default();
        let mut at = 0;
        for part in &segment.parts {
            let stored = at..at + part.stored_len;
            at = stored.end;
            let raw_len = part.record.raw_len as usize;
            let in_segment = part.encoding == Encoding::Raw;
            let joins = run.in_segment == in_segment
                && run.offset + run.len as u64 == part.record.offset
                && (!in_segment || run.start + run.len == stored.start)
                && (in_segment || run.len + raw_len <= self.buffer.len());
            if !joins {
                self.flush(&mut run, segment, sink, &mut out);
                let start = if in_segment { stored.start } else { 0 };
                run = Run { offset: part.record.offset, in_segment, start, len: 0, chunks: Vec::new() };
            }
            let packed = &segment.bytes[stored.clone()];
            let raw = if in_segment {
                Some(&segment.bytes[stored]).filter(|bytes| bytes.len() == raw_len)
            } else {
                let room = &mut self.buffer[run.len..run.len + raw_len];
                match self.zstd.decompress_to_buffer(packed, room) {
                    Ok(n) if n == raw_len => Some(&*room),
                    Ok(_) | Err(_) => None,
                }
            };
            if raw.is_some_and(|raw| ChunkDigest::of(raw) == part.record.digest) {
                if !in_segment {
                    sink.keep_packed(part.chunk, packed);
                }
                run.len += raw_len;
                run.chunks.push(part.chunk);
            } else {
                out.bad.push(part.chunk);
            }
        }
        self.flush(&mut run, segment, sink, &mut out);
        out.decode = (clock::monotonic() - began).saturating_sub(out.write);
        out
    }

    fn flush(&self, run: &mut Run, segment: &Segment, sink: &dyn Sink, out: &mut Unpacked) {
        let chunks = std::mem::take(&mut run.chunks);
        if chunks.is_empty() || out.failed.is_some() {
            return;
        }
        let from = if run.in_segment { &segment.bytes } else { &self.buffer };
        let bytes = &from[run.start..run.start + run.len];
        let began = clock::monotonic();
        let written = sink.write_run(run.offset, bytes).and_then(|()| sink.mark_done(&chunks));
        out.write += clock::monotonic() - began;
        match written {
            Ok(()) => {
                out.raw_bytes += bytes.len() as u64;
                out.done.extend(chunks);
            }
            Err(error) => out.failed = Some(error),
        }
    }
}
