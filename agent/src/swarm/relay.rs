//! A content that is passed on, while it comes or when it is here.
//!
//! **What.** [`Relay`] takes what the decode workers verified, writes it to the staging file, keeps the packed form in the spool,
//! and tells those who wait. A [`Shelf`] is what is passed on: a relay, or a finished content.
//! **Invariants.** A chunk is on the shelf only after it was verified and written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hearth_protocol::digest::ContentId;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::Encoding;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Reader, Spool, Staging, Store, StoreError};
use crate::transfer::decode::{Sink, SinkError};

/// See the module.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) staging: Arc<Staging>,
    spool: Option<Arc<Spool>>,
    /// What is still to be fetched. Less than what is missing: some chunks are copied at the end.
    wanted: Mutex<ChunkMask>,
    /// Counts arrivals.
    arrivals: watch::Sender<u64>,
    is_closed: AtomicBool,
}

impl Relay {
    pub(super) fn new(staging: Arc<Staging>, spool: Option<Arc<Spool>>, wanted: ChunkMask) -> Self {
        Self {
            staging,
            spool,
            wanted: Mutex::new(wanted),
            arrivals: watch::Sender::new(0),
            is_closed: AtomicBool::new(false),
        }
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, ChunkMask> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is still to be fetched of a piece with these chunks, counted from its first.
    pub(super) fn wanted_in(&self, chunks: std::ops::Range<u32>) -> ChunkMask {
        self.wanted().slice(chunks)
    }

    /// All that is still to be fetched.
    pub(super) fn rest(&self) -> ChunkMask {
        self.wanted().clone()
    }

    /// The transfer is given up: uploads end at their next chunk.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.arrivals.send_modify(|n| *n += 1);
    }
}

impl Sink for Relay {
    fn write_run(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.staging.write_run(offset, bytes)
    }

    fn mark_done(&self, chunks: &[u32]) -> Result<(), SinkError> {
        self.staging.mark_done(chunks)?;
        let mut wanted = self.wanted();
        let n_chunks = wanted.len();
        chunks.iter().filter(|chunk| **chunk < n_chunks).for_each(|chunk| wanted.remove(*chunk));
        drop(wanted);
        self.arrivals.send_modify(|n| *n += 1);
        Ok(())
    }

    fn keep_packed(&self, chunk: u32, packed: &[u8]) {
        if let Some(spool) = &self.spool {
            spool.put(chunk, packed);
        }
    }
}

/// What is passed on.
#[derive(Clone, Debug)]
pub(super) enum Shelf {
    /// What is coming in.
    Coming(Arc<Relay>),
    /// What is here, and its packed chunks as far as they are kept. Opened for each upload anew: what is open is not evicted.
    Here(Store, ContentId, Option<Arc<Spool>>),
}

/// Where an upload reads.
#[derive(Clone, Debug)]
pub(super) enum Open {
    Coming(Arc<Relay>),
    Here(Arc<Reader>, Option<Arc<Spool>>),
}

impl Shelf {
    /// Opens it for an upload; `None` if it is here no more. Blocks for the disk.
    pub(super) fn open(self) -> Option<Open> {
        match self {
            Self::Coming(relay) => Some(Open::Coming(relay)),
            Self::Here(store, content, spool) => {
                let reader = store.reader(content).map_err(|error| {
                    tracing::info!(%content, error = error.chain(), "not passed on any more");
                });
                Some(Open::Here(Arc::new(reader.ok()?), spool))
            }
        }
    }
}

/// A chunk as it is sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) encoding: Encoding,
    pub(super) bytes: Vec<u8>,
}

impl Open {
    /// Waits until the chunk is there; `false` if it will not come: `gone` says that nobody sends it to us any more.
    pub(super) async fn wait_for(&self, chunk: u32, gone: &CancellationToken) -> bool {
        let Self::Coming(relay) = self else { return true };
        let mut arrivals = relay.arrivals.subscribe();
        loop {
            if relay.is_closed.load(Ordering::Relaxed) {
                return false;
            }
            // Asked before: what came last came before it was gone.
            let is_gone = gone.is_cancelled();
            if relay.staging.has(chunk) {
                return true;
            }
            if is_gone {
                return false;
            }
            tokio::select! {
                changed = arrivals.changed() => if changed.is_err() { return false },
                () = gone.cancelled() => {}
            }
        }
    }

    /// Reads and checks a chunk that is there. Blocks for the disk.
    ///
    /// # Errors
    /// Those of [`Reader::read_chunk`] and [`Staging::read_chunk`].
    pub(super) fn read(&self, chunk: u32) -> Result<Sent, StoreError> {
        let spool = match self {
            Self::Coming(relay) => relay.spool.as_ref(),
            Self::Here(_, spool) => spool.as_ref(),
        };
        if let Some(bytes) = spool.and_then(|spool| spool.get(chunk)) {
            return Ok(Sent { encoding: Encoding::Zstd, bytes });
        }
        let mut bytes = Vec::new();
        match self {
            Self::Coming(relay) => relay.staging.read_chunk(chunk, &mut bytes)?,
            Self::Here(reader, _) => reader.read_chunk(chunk, &mut bytes)?,
        };
        Ok(Sent { encoding: Encoding::Raw, bytes })
    }
}
