//! Asks an agent for what it holds: the controller's side of the data streams that it opens itself.
//!
//! **What.** Roots, pages and chunks of a content that the agent has verified on disk; only used to mend our own copies.
//! **Invariants.** Every length is bounded by what was asked for before it is allocated; nothing is believed without the
//! manifest's BLAKE3.

use std::time::Duration;

use bytes::Bytes;
use hearth_protocol::digest::{ChunkDigest, ContentId};
use hearth_protocol::fault::FaultCode;
use hearth_protocol::manifest::ChunkRecord;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::{ChunkHeader, DataReply, DataRequest, FetchV1};
use quinn::{RecvStream, VarInt};
use tokio::time::timeout;

use super::endpoint::RECEIVE_WINDOW_HEALING;
use super::frames::{FrameReader, StreamError, send};
use super::registry::Session;
use crate::content::Unpacker;

/// Time for one answer: an agent hashes what it sends, and gives guests the right of way.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Largest reply frame of a data stream: a fault with its text.
const REPLY_BYTES_MAX: usize = 4096;

/// Why an agent's answer could not be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// The stream or connection broke, or the agent is too slow.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The agent said no.
    #[error("the agent answered {fault}: {text}")]
    Fault {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
    },
    /// The agent answered something else.
    #[error("the agent's answer is not what was asked for")]
    WrongAnswer,
    /// The agent's copy is bad, too.
    #[error("the agent's bytes of chunk {chunk} fail their hash")]
    WrongBytes {
        /// Which chunk.
        chunk: u32,
    },
}

/// Chunks of one piece that are wanted.
#[derive(Debug)]
pub(super) struct Want<'a> {
    pub(super) content: ContentId,
    pub(super) piece: u32,
    /// First chunk of the piece.
    pub(super) first: u32,
    /// Over the piece.
    pub(super) mask: ChunkMask,
    /// Records of the wanted chunks, in order.
    pub(super) records: &'a [ChunkRecord],
}

/// Sends a request and reads the frame that answers it.
async fn ask(session: &Session, request: DataRequest) -> Result<(DataReply, FrameReader), AskError> {
    session.connection.set_receive_window(VarInt::from_u32(RECEIVE_WINDOW_HEALING));
    let opened = session.connection.open_bi().await;
    let (mut writer, recv) = opened.map_err(|error| StreamError::Read(error.into()))?;
    send(&mut writer, &request).await?;
    // Fails only if the stream is closed already.
    drop(writer.finish());
    let mut reader = FrameReader::new(recv, REPLY_BYTES_MAX);
    match reader.expect(ANSWER_MAX).await? {
        DataReply::Fault(fault) => Err(AskError::Fault { fault: fault.fault, text: fault.text }),
        reply => Ok((reply, reader)),
    }
}

async fn exact(stream: &mut RecvStream, buffer: &mut [u8]) -> Result<(), AskError> {
    let read = timeout(ANSWER_MAX, stream.read_exact(buffer)).await.map_err(|_| StreamError::TooSlow)?;
    read.map_err(|_| StreamError::CutShort.into())
}

/// A manifest's root or page, at most `bytes_max` long; not checked.
///
/// # Errors
/// [`AskError`].
pub(super) async fn bytes(
    session: &Session,
    request: DataRequest,
    bytes_max: usize,
) -> Result<Bytes, AskError> {
    let (reply, mut reader) = ask(session, request).await?;
    let DataReply::BytesFollow(follow) = reply else { return Err(AskError::WrongAnswer) };
    if follow.bytes as usize > bytes_max {
        return Err(AskError::WrongAnswer);
    }
    let mut bytes = vec![0; follow.bytes as usize];
    exact(reader.stream(), &mut bytes).await?;
    Ok(bytes.into())
}

/// Raw bytes of the wanted chunks, each checked.
///
/// # Errors
/// [`AskError`].
pub(super) async fn chunks(session: &Session, want: &Want<'_>) -> Result<Vec<Bytes>, AskError> {
    let Want { content, piece, first, mask, records } = want;
    let fetch = FetchV1 { content: *content, piece: *piece, mask: mask.as_bytes().to_vec() };
    let (reply, mut reader) = ask(session, DataRequest::Fetch(fetch)).await?;
    match reply {
        DataReply::ChunksFollow(follow) if follow.chunks as usize == records.len() => {}
        _ => return Err(AskError::WrongAnswer),
    }
    let mut unpacker = Unpacker::new().map_err(|_| AskError::WrongAnswer)?;
    let mut chunks = Vec::with_capacity(records.len());
    for (chunk, record) in mask.iter().map(|chunk| first + chunk).zip(*records) {
        let mut header = [0; ChunkHeader::BYTES];
        exact(reader.stream(), &mut header).await?;
        let header = ChunkHeader::parse(header).map_err(|_| AskError::WrongAnswer)?;
        if header.chunk != chunk {
            return Err(AskError::WrongAnswer);
        }
        let mut stored = vec![0; header.stored_len as usize];
        exact(reader.stream(), &mut stored).await?;
        let mut raw = Vec::new();
        let good = unpacker.unpack(header.encoding, &stored, record.raw_len, &mut raw)
            && ChunkDigest::of(&raw) == record.digest;
        if !good {
            return Err(AskError::WrongBytes { chunk });
        }
        chunks.push(raw.into());
    }
    Ok(chunks)
}
