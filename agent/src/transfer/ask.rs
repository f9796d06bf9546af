//! Asking a source: one request, one answer.
//!
//! **What.** [`bytes()`] asks for a manifest root or page, [`chunks`] for chunks of a piece; any mask is allowed, also one
//! with a single chunk.
//! **Why the answer is cut into segments.** A piece may be 8 MiB and 16 are in flight; only about 1 MiB of each is held.
//!
//! **Invariants.** Every length is compared with what the manifest allows before a byte of it is read: a source can make
//! us hold no more than we asked for. Whatever came whole before a fault is still used.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use hearth_protocol::fault::FaultCode;
use hearth_protocol::manifest::ChunkRecord;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::{
    ChunkHeader, ChunksFollowV1, DataReply, DataRequest, Encoding, FaultV1, FetchV1,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::oneshot;

use super::decode::{Decoders, Segment, Sink, Unpacked};
use super::frames::{self, WireError};
use super::heard::{Heard, Listening};
use super::link::{Lane, Source};
use super::rate::RateCap;
use crate::clock;
use crate::logic::fetch_plan::Ended;

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The source said no.
    #[error("the source answers {fault}: {text}")]
    Fault {
        /// Why.
        fault: FaultCode,
        /// For people.
        text: String,
        /// Not before this many milliseconds; 0 for the fault's own rule.
        retry_after_ms: u32,
    },
    /// The stream broke or stalled.
    #[error("the stream from the source broke: {0}")]
    Broken(#[source] io::Error),
    /// The source does not keep to the protocol.
    #[error("the source breaks the protocol: {why}")]
    Protocol {
        /// In which way.
        why: &'static str,
    },
    /// The connection is gone.
    #[error("the connection to the source is gone")]
    LinkLost,
}

impl AskError {
    /// What this means for the plan of a fetch.
    #[must_use]
    pub const fn ended(&self) -> Ended {
        match self {
            Self::Fault { fault, retry_after_ms, .. } => {
                Ended::Fault { fault: *fault, retry_after_ms: *retry_after_ms }
            }
            Self::Broken(_) => Ended::Broken { fault: FaultCode::Unreachable },
            Self::Protocol { .. } => Ended::Broken { fault: FaultCode::Protocol },
            Self::LinkLost => Ended::LinkLost,
        }
    }

    fn stream(error: io::Error, source: &Source) -> Self {
        if source.is_open() { Self::Broken(error) } else { Self::LinkLost }
    }

    fn wire(error: WireError, source: &Source) -> Self {
        match error {
            WireError::Stream(error) => Self::stream(error, source),
            WireError::Ended => Self::stream(io::ErrorKind::UnexpectedEof.into(), source),
            WireError::Frame(error) => {
                tracing::debug!(%error, "not an answer");
                Self::Protocol { why: "the answer is no message of this stream" }
            }
        }
    }
}

impl From<FaultV1> for AskError {
    fn from(fault: FaultV1) -> Self {
        let FaultV1 { fault, mut text, retry_after_ms } = fault;
        text.truncate(text.floor_char_boundary(hearth_protocol::message::control::TEXT_BYTES_MAX));
        Self::Fault { fault, text, retry_after_ms }
    }
}

/// Asks for bytes that are not chunks; at most `max` are taken.
///
/// # Errors
/// [`AskError`].
pub async fn bytes(source: &Arc<Source>, request: &DataRequest, max: usize) -> Result<Vec<u8>, AskError> {
    let mut lane = source.lane().await.map_err(|error| AskError::stream(error, source))?;
    frames::write(&mut lane.send, request).await.map_err(|error| AskError::wire(error, source))?;
    let reply = frames::read(&mut lane.recv).await.map_err(|error| AskError::wire(error, source))?;
    let n = match reply {
        DataReply::BytesFollow(follow) => follow.bytes as usize,
        DataReply::Fault(fault) => {
            lane.give_back();
            return Err(fault.into());
        }
        _ => return Err(AskError::Protocol { why: "no bytes follow, but bytes were asked for" }),
    };
    if n > max {
        return Err(AskError::Protocol { why: "more bytes follow than such an answer can have" });
    }
    let mut bytes = vec![0; n];
    lane.recv.read_exact(&mut bytes).await.map_err(|error| AskError::stream(error, source))?;
    lane.give_back();
    Ok(bytes)
}

/// Chunks that are wanted from one piece.
#[derive(Debug)]
pub struct Want {
    /// The request as it goes over the wire.
    pub request: FetchV1,
    /// Its mask.
    pub mask: ChunkMask,
    /// Index of the piece's first chunk.
    pub first: u32,
    /// Records of all chunks of the piece.
    pub records: Vec<ChunkRecord>,
}

/// Where received chunks go, and what slows them.
#[derive(Clone)]
pub struct Intake {
    /// Unpack, check and write.
    pub decoders: Decoders,
    /// The file.
    pub sink: Arc<dyn Sink>,
    /// The transfer's cap.
    pub cap: Arc<RateCap>,
    /// What all transfers of this host together may take.
    pub host_cap: Arc<RateCap>,
    /// Signs of life of the source.
    pub heard: Arc<Heard>,
    /// Each chunk is written as soon as it is here, because others wait for it; else about a megabyte at once.
    pub is_eager: bool,
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").finish_non_exhaustive()
    }
}

impl Intake {
    /// Waits until `bytes` may come.
    async fn pause(&self, bytes: u64) {
        self.heard
            .ours(async {
                self.cap.pause(bytes).await;
                self.host_cap.pause(bytes).await;
            })
            .await;
    }
}

/// What a request for chunks brought.
#[derive(Debug, Default)]
pub struct Brought {
    /// What the workers made of it, summed up.
    pub unpacked: Unpacked,
    /// Stored bytes that came, headers included.
    pub moved_bytes: u64,
    /// When the last of them came.
    pub received: Option<Instant>,
    /// Why it ended early.
    pub error: Option<AskError>,
}

/// Asks for chunks and waits until all that came is written. Not cancel safe, but nothing is lost that was marked done.
pub async fn chunks(source: &Arc<Source>, want: &Want, intake: &Intake) -> Brought {
    match intake.heard.ours(begin(source, &want.request)).await {
        Ok(begun) => begun.taken(source, want, intake).await,
        Err(error) => Taking::default().written(Some(error)).await,
    }
}

/// An answer that has begun.
#[derive(Debug)]
pub struct Begun {
    lane: Lane,
    announced: Announced,
}

/// Asks for chunks and waits until they begin to come: a source gives each answer its turn.
///
/// # Errors
/// [`AskError`].
pub async fn begin(source: &Arc<Source>, request: &FetchV1) -> Result<Begun, AskError> {
    let mut lane = source.lane().await.map_err(|error| AskError::stream(error, source))?;
    let request = DataRequest::from(request.clone());
    frames::write(&mut lane.send, &request).await.map_err(|error| AskError::wire(error, source))?;
    let reply = frames::read(&mut lane.recv).await.map_err(|error| AskError::wire(error, source))?;
    match reply {
        DataReply::ChunksFollow(ChunksFollowV1 { chunks, bytes }) => {
            Ok(Begun { lane, announced: Announced { chunks, bytes: Some(bytes.into()) } })
        }
        DataReply::Fault(fault) => {
            lane.give_back();
            Err(fault.into())
        }
        _ => Err(AskError::Protocol { why: "no chunks follow, but chunks were asked for" }),
    }
}

impl Begun {
    /// Takes the chunks and waits until all that came is written.
    pub async fn taken(mut self, source: &Source, want: &Want, intake: &Intake) -> Brought {
        let mut taking = Taking::default();
        let error = match taking.receive(&mut self.lane.recv, want, intake, self.announced).await {
            Ok(()) => {
                self.lane.give_back();
                None
            }
            Err(AskError::Broken(_)) if !source.is_open() => Some(AskError::LinkLost),
            Err(error) => Some(error),
        };
        intake.heard.ours(taking.written(error)).await
    }
}

/// Takes the chunks that follow on a stream of which no length was announced, and waits until all that came is written.
pub async fn passed_on(
    recv: &mut (impl AsyncRead + Unpin),
    n_chunks: u32,
    want: &Want,
    intake: &Intake,
) -> Brought {
    let mut taking = Taking::default();
    let error = taking.receive(recv, want, intake, Announced { chunks: n_chunks, bytes: None }).await.err();
    intake.heard.ours(taking.written(error)).await
}

/// What a source says of the chunks that follow.
#[derive(Clone, Copy, Debug)]
struct Announced {
    chunks: u32,
    /// All bytes that follow, headers included, if it knows.
    bytes: Option<u64>,
}

/// One answer while it comes.
#[derive(Debug, Default)]
struct Taking {
    answers: Vec<oneshot::Receiver<Unpacked>>,
    moved_bytes: u64,
}

impl Taking {
    /// Waits for the workers.
    async fn written(self, error: Option<AskError>) -> Brought {
        let received = Some(clock::monotonic());
        let mut brought = Brought { moved_bytes: self.moved_bytes, received, error, ..Brought::default() };
        for answer in self.answers {
            // A worker that died took the answer with it; its chunks stay needed.
            let Ok(unpacked) = answer.await else { continue };
            brought.unpacked.done.extend(unpacked.done);
            brought.unpacked.bad.extend(unpacked.bad);
            brought.unpacked.raw_bytes += unpacked.raw_bytes;
            brought.unpacked.decode += unpacked.decode;
            brought.unpacked.write += unpacked.write;
            brought.unpacked.failed = brought.unpacked.failed.or(unpacked.failed);
        }
        brought
    }

    async fn receive(
        &mut self,
        recv: &mut (impl AsyncRead + Unpin),
        want: &Want,
        intake: &Intake,
        announced: Announced,
    ) -> Result<(), AskError> {
        let mut segment = None;
        let ended = self.chunks(recv, want, intake, announced, &mut segment).await;
        if let Some(rest) = segment.filter(|rest| !rest.is_empty()) {
            self.submit(rest, intake).await;
        }
        ended
    }

    async fn submit(&mut self, segment: Segment, intake: &Intake) {
        let submitting = intake.decoders.submit(segment, Arc::clone(&intake.sink));
        self.answers.push(intake.heard.ours(submitting).await);
    }

    async fn chunks(
        &mut self,
        recv: &mut (impl AsyncRead + Unpin),
        want: &Want,
        intake: &Intake,
        announced: Announced,
        segment: &mut Option<Segment>,
    ) -> Result<(), AskError> {
        let protocol = |why| AskError::Protocol { why };
        if announced.chunks > want.mask.count() {
            return Err(protocol("more chunks follow than were asked for"));
        }
        let mut recv = Listening::new(recv, &intake.heard);
        let mut left = announced.bytes;
        let mut next = 0;
        for _ in 0..announced.chunks {
            let mut header = [0; ChunkHeader::BYTES];
            recv.read_exact(&mut header).await.map_err(AskError::Broken)?;
            let header = ChunkHeader::parse(header).map_err(|_| protocol("a chunk header is not one"))?;
            let record = expected(want, &header, next)?;
            next = header.chunk + 1;
            let bytes = u64::from(header.stored_len) + ChunkHeader::BYTES as u64;
            if let Some(left) = &mut left {
                *left =
                    left.checked_sub(bytes).ok_or_else(|| protocol("chunks pass the announced length"))?;
            }
            intake.pause(bytes).await;
            // One is given away before the next is asked for: there are fewer than transfers that could each hold two.
            if let Some(full) = segment.take_if(|full| !full.fits(record.raw_len)) {
                self.submit(full, intake).await;
            }
            let open = match segment {
                Some(open) => open,
                None => segment.insert(intake.heard.ours(intake.decoders.segment()).await),
            };
            let room = open.room_for(header.chunk, header.encoding, header.stored_len, record);
            if let Err(error) = recv.read_exact(room).await {
                open.drop_last();
                return Err(AskError::Broken(error));
            }
            self.moved_bytes += bytes;
            if let Some(one) = segment.take_if(|_| intake.is_eager) {
                self.submit(one, intake).await;
            }
        }
        if left.unwrap_or(0) == 0 { Ok(()) } else { Err(protocol("bytes are left over behind the chunks")) }
    }
}

/// The record of a chunk that was asked for and may come now, with an allowed length.
fn expected(want: &Want, header: &ChunkHeader, next: u32) -> Result<ChunkRecord, AskError> {
    let protocol = |why| AskError::Protocol { why };
    let index = header.chunk.checked_sub(want.first).filter(|index| want.mask.contains(*index));
    let record = index.and_then(|index| want.records.get(index as usize).copied());
    let record = record.ok_or_else(|| protocol("a chunk came that was not asked for"))?;
    if header.chunk < next {
        return Err(protocol("chunks come out of order"));
    }
    let fits = match header.encoding {
        Encoding::Raw => header.stored_len == record.raw_len,
        Encoding::Zstd => header.stored_len <= record.raw_len,
    };
    if fits { Ok(record) } else { Err(protocol("a chunk's stored length does not fit its raw length")) }
}
