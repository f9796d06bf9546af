//! Serves manifests and chunks to agents.
//!
//! **What.** One task per data stream: a request, its answer, the next request. Bytes go from one `pread` per group of
//! chunks to the QUIC stream without being packed, unpacked or copied in between.
//! **Why groups and not whole pieces.** A piece may have 8 MiB; 32 of them in memory for receivers that read slowly would
//! be a quarter of a gigabyte. A group of [`GROUP_CHUNKS`] chunks has about 1 MiB.
//! **Why no check of the bytes here.** Every receiver hashes every chunk against the manifest; hashing here too would cost
//! the source one core per 4 GB/s for what `BadChunk` reports anyway.
//!
//! **Invariants.** Nothing is served that is not placed on the asker. Memory is bounded by slots × group, whatever the
//! number of askers. A receiver that stalls or drips loses its stream, and its slot goes to somebody who reads.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::frame::Message as _;
use hearth_protocol::id::LocationId;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::{
    BytesFollowV1, ChunkHeader, ChunksFollowV1, DataReply, DataRequest, FaultV1, FetchV1,
};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use super::frames::{FrameReader, StreamError, send};
use super::heal::HealWish;
use super::swarm::{Pass, Turn};
use crate::clock;
use crate::content::{ContentError, ContentObject};

/// Requests served at once: protects memory (a group each) and the disk's queue.
pub(super) const SLOTS: usize = 32;
/// Chunks read and sent at once: about 1 MiB, at most 4 MiB.
pub(super) const GROUP_CHUNKS: u32 = 16;
/// Parts that are sent at once in a campaign: header and bytes of one chunk.
const PARTS_PACED: usize = 2;
/// A request frame: the mask of a piece has at most 256 B.
const REQUEST_BYTES_MAX: usize = 4096;
/// A stream without a request for this long is closed: its task and its state cost memory.
const STREAM_IDLE_MAX: Duration = Duration::from_secs(120);
/// Slowest receiver, in bytes per second and stream, that keeps its slot. Looked at over each stall time anew: over the
/// whole answer, a receiver that takes a few bytes a second could keep its slot for half an hour.
const RATE_FLOOR_BYTES_PER_S: u64 = 4096;
/// A receiver that takes not one byte for this long loses its stream.
pub(super) const STALL_MAX: Duration = Duration::from_secs(30);

/// When an agent whose plan is not made yet asks again.
const PLANLESS_RETRY_MS: u32 = 500;
/// When an agent asks again for a piece that other hosts give.
const ELSEWHERE_RETRY_MS: u32 = 500;

/// Serves one data stream until the agent closes it.
pub(super) async fn serve(
    shared: Arc<Shared>,
    location: LocationId,
    mut writer: SendStream,
    recv: RecvStream,
) {
    let mut reader = FrameReader::new(recv, REQUEST_BYTES_MAX);
    loop {
        let request = match timeout(STREAM_IDLE_MAX, reader.next::<DataRequest>()).await {
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None)) => break,
            Ok(Err(error)) => {
                tracing::debug!(%location, %error, "a data stream ended");
                reset(&mut writer, FaultCode::Protocol);
                return;
            }
            Err(_) => break,
        };
        if let Err(error) = Box::pin(answer(&shared, location, request, &mut writer)).await {
            let slow = matches!(error, StreamError::TooSlow);
            if slow {
                metrics::counter!(super::metrics::STALLED).increment(1);
            }
            let fault = if slow { FaultCode::Unreachable } else { FaultCode::Protocol };
            tracing::info!(%location, %error, "a transfer was cut off");
            reset(&mut writer, fault);
            return;
        }
    }
    // Fails only if the stream is closed already.
    drop(writer.finish());
}

fn reset(writer: &mut SendStream, fault: FaultCode) {
    // Fails only if the stream is closed already.
    drop(writer.reset(VarInt::from_u32(fault.number().into())));
}

/// Why a request is not served.
#[derive(Debug)]
struct Refused {
    fault: FaultCode,
    text: String,
    retry_after_ms: u32,
}

fn refused(fault: FaultCode, text: impl Into<String>) -> Refused {
    Refused { fault, text: text.into(), retry_after_ms: 0 }
}

async fn answer(
    shared: &Arc<Shared>,
    location: LocationId,
    request: DataRequest,
    writer: &mut SendStream,
) -> Result<(), StreamError> {
    let refusal = match serve_request(shared, location, request, writer).await? {
        Ok(()) => return Ok(()),
        Err(refusal) => refusal,
    };
    let Refused { fault, text, retry_after_ms } = refusal;
    tracing::debug!(%location, %fault, text, "a request was not served");
    send(writer, &DataReply::Fault(FaultV1 { fault, text, retry_after_ms })).await
}

async fn serve_request(
    shared: &Arc<Shared>,
    location: LocationId,
    request: DataRequest,
    writer: &mut SendStream,
) -> Result<Result<(), Refused>, StreamError> {
    let content = match &request {
        DataRequest::Root(root) => root.content,
        DataRequest::Page(page) => page.content,
        DataRequest::Fetch(fetch) => fetch.content,
        DataRequest::FetchPiece(_) | DataRequest::Go(_) | DataRequest::Having(_) => {
            return Ok(Err(agents_only()));
        }
    };
    if let Err(refusal) = allowed(shared, location, content, &request) {
        return Ok(Err(refusal));
    }
    match request {
        DataRequest::Root(_) => {
            serve_bytes(shared, content, writer, |object| Ok(object.manifest_root())).await
        }
        DataRequest::Page(page) => {
            serve_bytes(shared, content, writer, move |object| object.manifest_page(page.page)).await
        }
        DataRequest::Fetch(fetch) => serve_piece(shared, location, fetch, writer).await,
        DataRequest::FetchPiece(_) | DataRequest::Go(_) | DataRequest::Having(_) => Ok(Err(agents_only())),
    }
}

fn agents_only() -> Refused {
    refused(FaultCode::Protocol, "only agents are asked for this; the controller serves a Fetch")
}

/// Whether the location may have the content now.
fn allowed(
    shared: &Shared,
    location: LocationId,
    content: ContentId,
    request: &DataRequest,
) -> Result<(), Refused> {
    let Some(plan) = shared.plans.of(location) else {
        // The session is younger than its first plan; "not placed" would make the agent give up.
        let text = "the plan of this location is being made".to_owned();
        return Err(Refused { fault: FaultCode::Busy, text, retry_after_ms: PLANLESS_RETRY_MS });
    };
    if !plan.places(content) {
        return Err(refused(FaultCode::NotPlaced, "the content is not placed on this location"));
    }
    if plan.stopped && matches!(request, DataRequest::Fetch(_)) {
        return Err(refused(FaultCode::Stopped, "an operator stopped all transfers"));
    }
    Ok(())
}

/// Opens the content on a thread that may wait for the disk and runs `read` there.
async fn on_disk<T: Send + 'static>(
    shared: &Arc<Shared>,
    content: ContentId,
    read: impl FnOnce(&ContentObject) -> Result<T, ContentError> + Send + 'static,
) -> Result<T, Refused> {
    let store = Arc::clone(&shared.store);
    let work = move || store.open(content).and_then(|object| read(&object));
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(explain(shared, content, &error)),
        Err(error) => {
            tracing::error!(%content, %error, "reading a content panicked");
            Err(refused(FaultCode::Internal, "the controller failed; its log says more"))
        }
    }
}

fn explain(shared: &Shared, content: ContentId, error: &ContentError) -> Refused {
    match error {
        ContentError::NotFound { .. } => {
            refused(FaultCode::NotFound, "the controller does not have this content")
        }
        ContentError::Range { .. } => refused(FaultCode::NotFound, error.to_string()),
        ContentError::Damaged { .. } => {
            tracing::error!(%content, %error, "a stored content is damaged");
            shared.heal(HealWish::whole(content));
            refused(FaultCode::Damaged, "the controller's copy is damaged and is being mended")
        }
        _ => {
            tracing::error!(%content, %error, "cannot read a stored content");
            refused(FaultCode::Disk, "the controller cannot read its copy; its log says more")
        }
    }
}

async fn serve_bytes(
    shared: &Arc<Shared>,
    content: ContentId,
    writer: &mut SendStream,
    read: impl FnOnce(&ContentObject) -> Result<Bytes, ContentError> + Send + 'static,
) -> Result<Result<(), Refused>, StreamError> {
    let bytes = match on_disk(shared, content, read).await {
        Ok(bytes) => bytes,
        Err(refusal) => return Ok(Err(refusal)),
    };
    // Roots and pages have at most 256 KiB.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let header = DataReply::BytesFollow(BytesFollowV1 { bytes: length }).to_frame()?;
    let mut pace = Pace::new(shared.config.stall);
    pace.write(writer, &mut [Bytes::from(header), bytes]).await?;
    Ok(Ok(()))
}

/// Serves a piece, or sends its asker away while a campaign has others serve it.
async fn serve_piece(
    shared: &Arc<Shared>,
    location: LocationId,
    fetch: FetchV1,
    writer: &mut SendStream,
) -> Result<Result<(), Refused>, StreamError> {
    let busy = |text: &str, retry_after_ms| {
        metrics::counter!(super::metrics::BUSY).increment(1);
        Ok(Err(Refused { fault: FaultCode::Busy, text: text.to_owned(), retry_after_ms }))
    };
    let (content, piece) = (fetch.content, fetch.piece);
    match shared.swarms.pass(location, content, piece, shared.now_ms()) {
        Pass::Elsewhere => busy("this piece comes from other hosts", ELSEWHERE_RETRY_MS),
        Pass::Leased => {
            let leased = (location, content, piece);
            let turn = tokio::select! {
                turn = shared.swarms.turn(leased, || shared.now_ms()) => turn,
                // It has the piece from somebody else, or has given up.
                _ = writer.stopped() => return Err(StreamError::CutShort),
            };
            let Some(turn) = turn else {
                return busy("the lease of this piece is over", ELSEWHERE_RETRY_MS);
            };
            let serving = serve_chunks(shared, location, fetch, writer, Some(&turn));
            let served = timeout(turn.longest(), serving).await.map_err(|_| StreamError::TooSlow)??;
            if served.is_ok() {
                shared.swarms.sent(location, content, piece).await;
            }
            Ok(served)
        }
        Pass::Direct => match Slot::take(shared, location) {
            Ok(_slot) => serve_chunks(shared, location, fetch, writer, None).await,
            Err(retry_after_ms) => busy("all transfer slots are taken", retry_after_ms),
        },
    }
}

async fn serve_chunks(
    shared: &Arc<Shared>,
    location: LocationId,
    fetch: FetchV1,
    writer: &mut SendStream,
    turn: Option<&Turn<'_>>,
) -> Result<Result<(), Refused>, StreamError> {
    let FetchV1 { content, piece, mask } = fetch;
    let (groups, chunks, bytes) =
        match on_disk(shared, content, move |object| layout(object, piece, &mask)).await {
            Ok(Ok(layout)) => layout,
            Ok(Err(refusal)) | Err(refusal) => return Ok(Err(refusal)),
        };
    let mut parts = vec![Bytes::from(DataReply::ChunksFollow(ChunksFollowV1 { chunks, bytes }).to_frame()?)];
    let mut pace = Pace::new(shared.config.stall);
    for (first, n) in groups {
        let run = match on_disk(shared, content, move |object| object.read_stored(first, n)).await {
            Ok(run) => run,
            Err(refusal) if !parts.is_empty() => return Ok(Err(refusal)),
            Err(refusal) => {
                // Bytes were announced and cannot come: the stream ends here, the asker asks again.
                tracing::warn!(%location, %content, fault = %refusal.fault, "a transfer broke off in the middle");
                return Err(StreamError::CutShort);
            }
        };
        let headers = run.chunks.iter().map(|stored| {
            ChunkHeader { chunk: stored.chunk, encoding: stored.encoding, stored_len: stored.stored_len }
                .encode()
        });
        let mut headers = headers.fold(BytesMut::new(), |mut all, header| {
            all.extend_from_slice(&header);
            all
        });
        let mut rest = run.bytes;
        for stored in &run.chunks {
            parts.push(headers.split_to(ChunkHeader::BYTES).freeze());
            parts.push(rest.split_to(stored.stored_len as usize));
        }
        let Some(turn) = turn else {
            pace.write(writer, &mut parts).await?;
            parts.clear();
            continue;
        };
        // Chunk by chunk: whoever shares a slow source must hear from it often enough.
        while !parts.is_empty() {
            let mut some: Vec<Bytes> = parts.drain(..parts.len().min(PARTS_PACED)).collect();
            turn.wait(some.iter().map(Bytes::len).sum(), shared.now_us()).await;
            pace.write(writer, &mut some).await?;
        }
    }
    metrics::counter!(super::metrics::SERVED_BYTES).increment(bytes.into());
    Ok(Ok(()))
}

/// Groups of consecutive chunks to read, the number of chunks, and all bytes that will follow.
type Layout = (Vec<(u32, u32)>, u32, u32);

fn layout(object: &ContentObject, piece: u32, mask: &[u8]) -> Result<Result<Layout, Refused>, ContentError> {
    let Some(range) = object.pieces()?.chunks(piece) else {
        return Ok(Err(refused(FaultCode::NotFound, format!("the content has no piece {piece}"))));
    };
    let Ok(mask) = ChunkMask::from_bytes(mask, range.end - range.start) else {
        return Ok(Err(refused(FaultCode::Protocol, "the chunk mask does not fit the piece")));
    };
    if mask.is_empty() {
        return Ok(Err(refused(FaultCode::Protocol, "the chunk mask names no chunk")));
    }
    let mut groups: Vec<(u32, u32)> = Vec::new();
    for chunk in mask.iter().map(|chunk| range.start + chunk) {
        match groups.last_mut() {
            Some((first, n)) if *first + *n == chunk && *n < GROUP_CHUNKS => *n += 1,
            _ => groups.push((chunk, 1)),
        }
    }
    let mut bytes = 0;
    for (first, n) in &groups {
        let stored = object.stored_chunks(*first, *n)?;
        bytes += stored.iter().map(|stored| stored.stored_len).sum::<u32>();
    }
    let chunks = mask.count();
    let headers = chunks * u32::try_from(ChunkHeader::BYTES).unwrap_or(u32::MAX);
    Ok(Ok((groups, chunks, bytes + headers)))
}

/// Watches how one answer is taken.
struct Pace {
    stall: Duration,
    /// Of the look that runs: time spent waiting for the receiver, and what it took.
    waited: Duration,
    taken_bytes: u64,
}

impl Pace {
    const fn new(stall: Duration) -> Self {
        Self { stall, waited: Duration::ZERO, taken_bytes: 0 }
    }

    /// Writes all parts; fails when the receiver takes nothing for the stall time, or less than the floor over it. Only
    /// the time spent here counts: a slow disk of ours is not the receiver's fault.
    async fn write(&mut self, writer: &mut SendStream, parts: &mut [Bytes]) -> Result<(), StreamError> {
        let mut at = 0;
        while at < parts.len() {
            let began = Instant::from_std(clock::monotonic());
            let written = timeout_at(began + self.stall, writer.write_chunks(&mut parts[at..])).await;
            let written = written.map_err(|_| StreamError::TooSlow)??;
            at += written.chunks;
            self.taken(written.bytes as u64, began.elapsed())?;
        }
        Ok(())
    }

    fn taken(&mut self, bytes: u64, waited: Duration) -> Result<(), StreamError> {
        self.taken_bytes += bytes;
        self.waited += waited;
        if self.waited < self.stall {
            return Ok(());
        }
        let floor_bytes = u128::from(RATE_FLOOR_BYTES_PER_S) * self.waited.as_millis() / 1000;
        if u128::from(self.taken_bytes) < floor_bytes {
            return Err(StreamError::TooSlow);
        }
        (self.waited, self.taken_bytes) = (Duration::ZERO, 0);
        Ok(())
    }
}

/// A slot, given back when it is dropped.
struct Slot<'a> {
    shared: &'a Shared,
    location: LocationId,
}

impl<'a> Slot<'a> {
    fn take(shared: &'a Shared, location: LocationId) -> Result<Self, u32> {
        let now_ms = shared.now_ms();
        shared.slots.lock().unwrap_or_else(PoisonError::into_inner).take(location, now_ms)?;
        Ok(Self { shared, location })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.shared.slots.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.location);
    }
}
