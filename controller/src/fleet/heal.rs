//! Mends the controller's own copies.
//!
//! **What.** A chunk that an agent says is bad is unpacked and hashed here. If our copy is bad, an agent that has the
//! content verified on disk is asked for that chunk; if none can give it, the whole content is made again, from an agent
//! or from its original.
//! **Why an agent first.** It is 64 KiB over a session that is open; making a content again is minutes of conversion. Both
//! end in the same check: only bytes with the manifest's BLAKE3 are stored.
//! **Why one at a time.** A disk that goes bad reports thousands of chunks; mending must not starve serving.
//!
//! **Invariants.** A report costs at most one chunk's read: whoever reports good chunks as bad slows nobody but this task.
//! What cannot be mended is marked damaged, shown, and tried again when it is reported again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hearth_protocol::digest::ContentId;
use hearth_protocol::id::LocationId;
use hearth_protocol::manifest::ChunkRecord;
use hearth_protocol::mask::ChunkMask;
use tokio::sync::mpsc;

use super::ask::{self, Want};
use super::registry::Session;
use super::{Shared, remake};
use crate::content::ContentError;
use crate::db::operations::Draft;

/// Wishes that may wait; more are dropped, because they will be reported again.
pub(super) const QUEUE_MAX: usize = 256;
/// Agents asked for one chunk before the original is used.
const AGENTS_MAX: usize = 3;

/// Something that may be damaged.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct HealWish {
    pub(super) content: ContentId,
    /// `None`: the manifest, the index or the object as a whole.
    pub(super) chunk: Option<u32>,
}

impl HealWish {
    pub(super) const fn whole(content: ContentId) -> Self {
        Self { content, chunk: None }
    }
}

/// Wishes on their way to the task; each at most once.
#[derive(Debug)]
pub(super) struct HealQueue {
    sender: mpsc::Sender<HealWish>,
    waiting: Mutex<HashSet<HealWish>>,
}

impl HealQueue {
    pub(super) fn new() -> (Self, mpsc::Receiver<HealWish>) {
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        (Self { sender, waiting: Mutex::default() }, receiver)
    }

    pub(super) fn put(&self, wish: HealWish) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.insert(wish) && self.sender.try_send(wish).is_err() {
            waiting.remove(&wish);
        }
    }

    fn taken(&self, wish: HealWish) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&wish);
    }
}

/// Mends until all senders are gone.
pub(super) async fn run(shared: Arc<Shared>, mut queue: mpsc::Receiver<HealWish>) {
    while let Some(wish) = queue.recv().await {
        Box::pin(one(&shared, wish)).await;
        shared.heals.taken(wish);
    }
}

async fn one(shared: &Arc<Shared>, wish: HealWish) {
    let HealWish { content, chunk } = wish;
    let Some(chunk) = chunk else {
        return remake(shared, content, "its files are damaged").await;
    };
    match look(shared, content, chunk).await {
        Ok(None) => {
            tracing::warn!(%content, chunk, "a chunk was reported as bad, but our copy of it is good")
        }
        Ok(Some(damaged)) => {
            tracing::error!(%content, chunk, "a stored chunk is damaged");
            mark(shared, content, true, "a stored chunk failed its hash").await;
            let raw = from_agents(shared, content, chunk, damaged).await;
            let Some(raw) = raw else {
                return remake(shared, content, "no agent has a good copy of the chunk").await;
            };
            let (store, chunks) = (Arc::clone(&shared.store), [(chunk, raw)]);
            let healed = tokio::task::spawn_blocking(move || store.heal_chunks(content, &chunks)).await;
            match healed {
                Ok(Ok(())) => {
                    metrics::counter!(super::metrics::DAMAGED_CHUNKS, "outcome" => "mended").increment(1);
                    tracing::info!(%content, chunk, "a damaged chunk was mended from an agent");
                    mark(shared, content, false, "mended from an agent").await;
                }
                Ok(Err(error)) => tracing::error!(%content, chunk, %error, "cannot mend a chunk"),
                Err(error) => tracing::error!(%content, chunk, %error, "mending a chunk panicked"),
            }
        }
        Err(ContentError::NotFound { .. } | ContentError::Range { .. }) => {
            tracing::warn!(%content, chunk, "a chunk was reported that the controller does not have");
        }
        Err(ContentError::Damaged { .. }) => remake(shared, content, "its files are damaged").await,
        Err(error) => tracing::error!(%content, chunk, %error, "cannot look at a reported chunk"),
    }
}

/// Place of a chunk on the wire and in the manifest, if our copy of it is bad.
type Damaged = (u32, u32, u32, ChunkRecord);

async fn look(shared: &Arc<Shared>, content: ContentId, chunk: u32) -> Result<Option<Damaged>, ContentError> {
    let store = Arc::clone(&shared.store);
    let work = move || {
        let object = store.open(content)?;
        let record = object.chunk_range(chunk, 1)?;
        if object.verify_chunk(chunk)? {
            return Ok(None);
        }
        let pieces = object.pieces()?;
        let piece = pieces.piece_of(chunk).unwrap_or(0);
        let range = pieces.chunks(piece).unwrap_or(chunk..chunk + 1);
        Ok(record.first().map(|record| (piece, chunk - range.start, range.end - range.start, *record)))
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(ContentError::NotFound { content }))
}

/// Agents that say they have the content verified on disk, a few of them.
fn holders(shared: &Shared, content: ContentId) -> Vec<Arc<Session>> {
    let holders = shared.picture.active_at(content).into_iter();
    holders.filter_map(|location| shared.registry.of(location)).take(AGENTS_MAX).collect()
}

async fn from_agents(shared: &Shared, content: ContentId, chunk: u32, damaged: Damaged) -> Option<Bytes> {
    let (piece, at, n, record) = damaged;
    let mut mask = ChunkMask::empty(n);
    mask.insert(at);
    let want = Want { content, piece, first: chunk - at, mask, records: &[record] };
    for session in holders(shared, content) {
        match ask::chunks(&session, &want).await {
            Ok(mut chunks) => return chunks.pop(),
            Err(error) => {
                tracing::warn!(location = %session.location, %content, chunk, %error, "an agent could not help to mend a chunk");
            }
        }
    }
    None
}

/// Makes the content again: from an agent, else from its original.
async fn remake(shared: &Arc<Shared>, content: ContentId, why: &str) {
    mark(shared, content, true, why).await;
    for session in holders(shared, content) {
        let location = session.location;
        match Box::pin(remake::from_agent(shared, session, content)).await {
            Ok(()) => {
                metrics::counter!(super::metrics::DAMAGED_CHUNKS, "outcome" => "mended").increment(1);
                tracing::info!(%content, %location, "a damaged content was made again from an agent");
                return mark(shared, content, false, "made again from an agent").await;
            }
            Err(error) => {
                tracing::warn!(%content, %location, %error, "an agent could not help to make a content again")
            }
        }
    }
    metrics::counter!(super::metrics::DAMAGED_CHUNKS, "outcome" => "lost").increment(1);
    match &shared.remake {
        Some(remake) => {
            tracing::warn!(%content, why, "a content is made again from its original");
            remake(content);
        }
        None => tracing::error!(%content, why, "a content cannot be mended here"),
    }
}

async fn mark(shared: &Shared, content: ContentId, damaged: bool, why: &str) {
    let action = if damaged { "content.damaged" } else { "content.mended" };
    let op = Draft::system(action).on("content", content, "").with(serde_json::json!({ "why": why }));
    if let Err(error) = shared.db.set_content_damaged(content, damaged, &op).await {
        tracing::error!(%content, %error, "cannot mark a content");
    }
}

/// The location that reported a chunk, for logs.
pub(super) fn reported(reporter: LocationId, content: ContentId, chunk: u32) {
    tracing::warn!(%reporter, %content, chunk, "a chunk from this controller failed its hash at an agent");
}
