//! One request of another agent, from its first byte to its last chunk.
//!
//! ```text
//!  FetchPiece ─▶ grant good? ─▶ waits for a slot ─ Ready ─▶ Go(mask) ─▶ PieceFollows, chunks as they are there
//!                   └ denied      └ Busy, NotFound, Late
//! ```
//! **What.** One request per stream. The campaign says when; this task moves the bytes.
//! **Why chunks one after the other.** They come in order from our own supplier, and the asker wants them in order.
//! **Invariants.** Nothing is sent before the grant was checked. A slot is given back however the stream ends. An asker that
//! does not read loses its stream after [`STUCK`].

use std::sync::Arc;
use std::time::Duration;

use hearth_protocol::digest::AgentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::{ChunkHeader, DataReply, DataRequest, FaultV1};
use hearth_protocol::message::swarm::{FetchPieceV1, GrantV1, PieceFollowsV1, ReadyV1};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::handle::{Event, Handle, Ticket};
use super::relay::{Open, Shelf};
use super::{Shared, grant};
use crate::transfer::frames;
use crate::{clock, metrics as names};

/// Time for a request to come after its stream was opened, and for an answer to an offer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// An offer that is not taken within this time is given to somebody else.
const OFFER_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest time for one piece.
const UPLOAD_MAX: Duration = Duration::from_secs(120);
/// An asker that takes nothing for this long is gone.
const STUCK: Duration = Duration::from_secs(10);
/// Bytes between two looks at the cap.
const SLICE_BYTES: usize = 32 << 10;

/// What the campaign says to a request.
#[derive(Debug)]
pub(super) enum Verdict {
    /// A slot is free.
    Offer(Offer),
    /// Too many wait.
    Busy,
    /// It is neither here nor coming.
    Missing,
    /// It was coming and is not any more.
    Late,
}

/// A slot, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) ticket: Ticket,
    pub(super) has_all: bool,
    pub(super) chunks: std::ops::Range<u32>,
    pub(super) shelf: Shelf,
    /// Nobody sends us the piece any more.
    pub(super) gone: CancellationToken,
    pub(super) campaign: Handle,
    pub(super) sent_bytes: u64,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.campaign.tell(Event::UploadEnded { ticket: self.ticket, bytes: self.sent_bytes });
    }
}

/// Answers one stream.
pub(super) async fn serve(shared: Arc<Shared>, asker: AgentId, mut send: SendStream, mut recv: RecvStream) {
    let request = tokio::time::timeout(ASK_TIMEOUT, frames::read::<DataRequest>(&mut recv)).await;
    let answered = match request {
        Ok(Ok(DataRequest::FetchPiece(fetch))) => piece(&shared, asker, fetch, &mut send, &mut recv).await,
        Ok(Ok(DataRequest::Having(having))) => match admit(&shared, asker, &having.grant) {
            Ok(campaign) => match campaign.having().await {
                Some(here) => say(&mut send, here).await,
                None => fault(&mut send, FaultCode::NotFound, "the content is not here").await,
            },
            Err(refused) => fault(&mut send, refused.0, refused.1).await,
        },
        Ok(Ok(_)) => fault(&mut send, FaultCode::Protocol, "agents ask each other for pieces only").await,
        Ok(Err(_)) | Err(_) => None,
    };
    let result = match answered {
        Some(()) => {
            // Fails only if the asker has gone.
            drop(send.finish());
            "served"
        }
        None => "cut",
    };
    metrics::counter!(names::UPLOADS, "result" => result).increment(1);
}

async fn say(send: &mut SendStream, reply: impl Into<DataReply>) -> Option<()> {
    let reply = reply.into();
    tokio::time::timeout(STUCK, frames::write(send, &reply)).await.ok()?.ok()
}

async fn fault(send: &mut SendStream, fault: FaultCode, text: &str) -> Option<()> {
    say(send, FaultV1 { fault, text: text.to_owned(), retry_after_ms: 0 }).await
}

/// The campaign that the grant is for, if it is good.
fn admit(shared: &Shared, asker: AgentId, grant: &GrantV1) -> Result<Handle, (FaultCode, &'static str)> {
    let unknown = (FaultCode::NotFound, "the content is not passed on here");
    let campaign = shared.running().get(&grant.content).cloned().ok_or(unknown)?;
    match grant::check(grant, asker, &campaign.grant_key(), clock::unix_ms()) {
        Ok(()) => Ok(campaign),
        Err(error) => {
            tracing::warn!(%asker, content = %grant.content, %error, "a request was refused");
            Err((FaultCode::Denied, "the grant is not good here"))
        }
    }
}

async fn piece(
    shared: &Shared,
    asker: AgentId,
    FetchPieceV1 { grant, piece }: FetchPieceV1,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Option<()> {
    let campaign = match admit(shared, asker, &grant) {
        Ok(campaign) => campaign,
        Err((code, text)) => return fault(send, code, text).await,
    };
    let (verdict, says) = oneshot::channel();
    campaign.tell(Event::Asked { asker, piece, verdict });
    let verdict = tokio::select! {
        verdict = says => verdict.ok(),
        // The asker is served elsewhere.
        _ = send.stopped() => None,
    };
    let mut offer = match verdict? {
        Verdict::Offer(offer) => offer,
        Verdict::Busy => return fault(send, FaultCode::Busy, "too many wait here").await,
        Verdict::Missing => return fault(send, FaultCode::NotFound, "the piece is not here").await,
        Verdict::Late => return fault(send, FaultCode::Unreachable, "the piece did not come here").await,
    };
    say(send, ReadyV1 { has_all: offer.has_all }).await?;
    let go = tokio::time::timeout(OFFER_TIMEOUT, frames::read::<DataRequest>(recv)).await;
    let Ok(Ok(DataRequest::Go(go))) = go else { return None };
    let chunks = offer.chunks.clone();
    let Ok(mask) = ChunkMask::from_bytes(&go.mask, chunks.end - chunks.start) else {
        return fault(send, FaultCode::Protocol, "the mask does not describe this piece").await;
    };
    // A slot is not for who takes a byte now and then.
    tokio::time::timeout(UPLOAD_MAX, chunks_of(shared, &mut offer, &mask, send)).await.ok()?
}

async fn chunks_of(
    shared: &Shared,
    offer: &mut Offer,
    mask: &ChunkMask,
    send: &mut SendStream,
) -> Option<()> {
    say(send, PieceFollowsV1 { chunks: mask.count() }).await?;
    let (chunks, shelf) = (offer.chunks.clone(), offer.shelf.clone());
    let Some(open) = tokio::task::spawn_blocking(move || shelf.open()).await.ok()? else {
        offer.campaign.tell(Event::Gone);
        return give_up(send);
    };
    for chunk in mask.iter().map(|chunk| chunks.start + chunk) {
        let is_there = tokio::select! {
            is_there = open.wait_for(chunk, &offer.gone) => is_there,
            _ = send.stopped() => return None,
        };
        if !is_there || one(shared, offer, &open, chunk, send).await.is_none() {
            return give_up(send);
        }
    }
    // What is written may wait here for the line; the slot is free when it has arrived.
    send.finish().ok()?;
    tokio::time::timeout(STUCK, send.stopped()).await.ok()?.ok()?;
    Some(())
}

/// Tells the asker that the rest does not come, through no fault of ours.
fn give_up(send: &mut SendStream) -> Option<()> {
    // Fails only if the stream is closed already.
    drop(send.reset(VarInt::from_u32(FaultCode::NotFound.number().into())));
    None
}

async fn write(send: &mut SendStream, bytes: bytes::Bytes) -> Option<()> {
    tokio::time::timeout(STUCK, send.write_chunk(bytes)).await.ok()?.ok()
}

async fn one(
    shared: &Shared,
    offer: &mut Offer,
    open: &Open,
    chunk: u32,
    send: &mut SendStream,
) -> Option<()> {
    let open = open.clone();
    let read = tokio::task::spawn_blocking(move || open.read(chunk)).await.ok()?;
    let sent =
        read.map_err(|error| tracing::warn!(error = error.chain(), "a chunk is not passed on")).ok()?;
    let stored_len = u32::try_from(sent.bytes.len()).ok()?;
    let header = ChunkHeader { chunk, encoding: sent.encoding, stored_len }.encode();
    let bytes = u64::from(stored_len) + header.len() as u64;
    let mut rest = bytes::Bytes::from(sent.bytes);
    write(send, bytes::Bytes::copy_from_slice(&header)).await?;
    while !rest.is_empty() {
        // In slices, so that through a small share of a slow link a byte comes often enough to be a sign of life.
        let slice = rest.split_to(rest.len().min(SLICE_BYTES));
        shared.caps.before_sending(slice.len() as u64).await;
        write(send, slice).await?;
    }
    offer.sent_bytes += bytes;
    metrics::counter!(names::UPLOAD_BYTES).increment(bytes);
    Some(())
}
