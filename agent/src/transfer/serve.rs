//! Serving verified chunks to whoever may ask.
//!
//! **What.** Answers data requests on streams that the other party opened. Today that is the controller, which mends its
//! own copy from us over the home session; agents will come on connections of their own.
//! **Why raw.** The cache holds unpacked files; packing would cost the host's guests CPU. How a chunk is packed is the
//! sender's business.
//!
//! **Invariants.**
//! 1. Only active contents are served, and each chunk is hashed after it was read and before it is sent.
//! 2. At most [`SLOTS`] answers are made at once; one more is told `Busy` at once instead of waiting.
//! 3. A stream that asks nothing, or does not read its answer, is dropped after [`IDLE`].

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hearth_protocol::digest::ContentId;
use hearth_protocol::fault::FaultCode;
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::data::{
    BytesFollowV1, ChunkHeader, ChunksFollowV1, DataReply, DataRequest, Encoding, FaultV1, FetchV1,
};
use hearth_protocol::piece::Pieces;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Semaphore, mpsc};

use super::frames::{self, WireError};
use super::link::Stream;
use crate::metrics as names;
use crate::store::{Reader, Store, StoreError};

/// Answers made at once, over all connections: protects the disk that guests use.
pub const SLOTS: usize = 4;
/// A stream without progress for this long is dropped.
pub const IDLE: Duration = Duration::from_secs(60);
/// Chunks read ahead of the network.
const AHEAD: usize = 4;
/// When a refused asker may come again, ms.
const BUSY_MS: u32 = 500;

/// Who may be served what. The home controller may ask for everything that is active.
#[derive(Clone, Debug)]
pub struct Server {
    store: Store,
    idle: Duration,
    slots: Arc<Semaphore>,
    /// The cut of the content that was asked for last: walking a large manifest for each request would cost more than
    /// the answer.
    cut: Arc<LastCut>,
}

type LastCut = Mutex<Option<(ContentId, Arc<Pieces>)>>;

/// Why an answer was not given.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("{text}")]
    Fault { fault: FaultCode, text: String, retry_after_ms: u32 },
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the asker does not read")]
    Stuck,
}

impl From<StoreError> for ServeError {
    fn from(error: StoreError) -> Self {
        let fault = match error.fault() {
            // What is not active is not there for others.
            FaultCode::Busy => FaultCode::NotFound,
            fault => fault,
        };
        Self::Fault { fault, text: error.to_string(), retry_after_ms: 0 }
    }
}

impl Server {
    /// A server of `store`'s active contents.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self::with_idle(store, IDLE)
    }

    /// A server that drops a stream after `idle` without progress.
    #[must_use]
    pub fn with_idle(store: Store, idle: Duration) -> Self {
        Self { store, idle, slots: Arc::new(Semaphore::new(SLOTS)), cut: Arc::default() }
    }

    /// Answers requests on one stream until it ends. Errors end the stream and are logged here.
    pub async fn stream(&self, mut stream: Stream) {
        loop {
            let request =
                tokio::time::timeout(self.idle, frames::read::<DataRequest>(&mut stream.recv)).await;
            let request = match request {
                Ok(Ok(request)) => request,
                Ok(Err(WireError::Ended)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a data stream ended");
                    return;
                }
            };
            let result = match self.answer(&mut stream, request).await {
                Ok(()) => "served",
                Err(ServeError::Fault { fault, text, retry_after_ms }) => {
                    tracing::debug!(%fault, text, "request refused");
                    let reply = DataReply::from(FaultV1 { fault, text, retry_after_ms });
                    if self.send(&mut stream, &reply).await.is_err() {
                        return;
                    }
                    fault.as_str()
                }
                Err(error) => {
                    tracing::debug!(%error, "an answer was cut short");
                    return;
                }
            };
            metrics::counter!(names::SERVE_REQUESTS, "result" => result).increment(1);
        }
    }

    async fn answer(&self, stream: &mut Stream, request: DataRequest) -> Result<(), ServeError> {
        let busy = |_| ServeError::Fault {
            fault: FaultCode::Busy,
            text: format!("all {SLOTS} upload slots are taken"),
            retry_after_ms: BUSY_MS,
        };
        let _slot = self.slots.try_acquire().map_err(busy)?;
        match request {
            DataRequest::Root(root) => {
                let bytes = self.with_reader(root.content, |reader| Ok(reader.root().encode())).await?;
                self.send_bytes(stream, &bytes).await
            }
            DataRequest::Page(page) => {
                let bytes = self
                    .with_reader(page.content, move |reader| match page.page < reader.root().n_pages() {
                        true => Ok(reader.page_bytes(page.page)?),
                        false => Err(not_found(format!("the manifest has no page {}", page.page))),
                    })
                    .await?;
                self.send_bytes(stream, &bytes).await
            }
            DataRequest::Fetch(fetch) => self.fetch(stream, fetch).await,
            DataRequest::FetchPiece(_) | DataRequest::Go(_) | DataRequest::Having(_) => {
                let text = "agents ask each other so, controllers do not".to_owned();
                Err(ServeError::Fault { fault: FaultCode::Protocol, text, retry_after_ms: 0 })
            }
        }
    }

    async fn with_reader<T: Send + 'static>(
        &self,
        content: ContentId,
        work: impl FnOnce(&Reader) -> Result<T, ServeError> + Send + 'static,
    ) -> Result<T, ServeError> {
        let store = self.store.clone();
        let joined = tokio::task::spawn_blocking(move || work(&store.reader(content)?)).await;
        joined.map_err(|_| internal())?
    }

    /// Sends chunks while the next ones are read.
    async fn fetch(&self, stream: &mut Stream, fetch: FetchV1) -> Result<(), ServeError> {
        let (store, cut) = (self.store.clone(), Arc::clone(&self.cut));
        let (chunks, mut read) = mpsc::channel::<Result<(u32, Vec<u8>), StoreError>>(AHEAD);
        let (plan, mut planned) = mpsc::channel::<Result<ChunksFollowV1, ServeError>>(1);
        let reading = tokio::task::spawn_blocking(move || {
            let reader = match store.reader(fetch.content) {
                Ok(reader) => reader,
                Err(error) => return tell(&plan, Err(error.into())),
            };
            let wanted = match pieces(&reader, &cut).and_then(|pieces| wanted(&reader, &pieces, &fetch)) {
                Ok(wanted) => wanted,
                Err(error) => return tell(&plan, Err(error)),
            };
            let (indices, bytes) = wanted;
            let n_chunks = u32::try_from(indices.len()).unwrap_or(u32::MAX);
            tell(&plan, Ok(ChunksFollowV1 { chunks: n_chunks, bytes }));
            for chunk in indices {
                let mut buffer = Vec::new();
                let read = reader.read_chunk(chunk, &mut buffer).map(|_| (chunk, buffer));
                let failed = read.is_err();
                if chunks.blocking_send(read).is_err() || failed {
                    return;
                }
            }
        });
        let follow = planned.recv().await.ok_or_else(internal)??;
        self.send(stream, &DataReply::from(follow)).await?;
        while let Some(chunk) = read.recv().await {
            // Lengths are announced already: a chunk that cannot be read ends the stream, not only the answer.
            let (chunk, bytes) = chunk.map_err(|error| {
                tracing::warn!(error = error.chain(), "a chunk cannot be served");
                WireError::Stream(io::ErrorKind::InvalidData.into())
            })?;
            let stored_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let header = ChunkHeader { chunk, encoding: Encoding::Raw, stored_len }.encode();
            self.write(stream, &header).await?;
            self.write(stream, &bytes).await?;
            metrics::counter!(names::SERVE_BYTES).increment(u64::from(stored_len));
        }
        reading.await.map_err(|_| internal())
    }

    async fn send_bytes(&self, stream: &mut Stream, bytes: &[u8]) -> Result<(), ServeError> {
        let n = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.send(stream, &DataReply::from(BytesFollowV1 { bytes: n })).await?;
        self.write(stream, bytes).await
    }

    async fn send(&self, to: &mut Stream, reply: &DataReply) -> Result<(), ServeError> {
        let sent = tokio::time::timeout(self.idle, frames::write(&mut to.send, reply)).await;
        Ok(sent.map_err(|_| ServeError::Stuck)??)
    }

    /// Writes at most a chunk; an asker that takes longer than the idle time for it is stuck, or as good as.
    async fn write(&self, to: &mut Stream, bytes: &[u8]) -> Result<(), ServeError> {
        let written = tokio::time::timeout(self.idle, to.send.write_all(bytes)).await;
        written.map_err(|_| ServeError::Stuck)?.map_err(|error| WireError::Stream(error).into())
    }
}

fn tell<T>(channel: &mpsc::Sender<T>, value: T) {
    if channel.blocking_send(value).is_err() {
        tracing::trace!("the asker went away");
    }
}

/// The cut of the reader's content.
fn pieces(reader: &Reader, cut: &LastCut) -> Result<Arc<Pieces>, ServeError> {
    let lock = || cut.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, pieces)) = lock().as_ref().filter(|(content, _)| *content == reader.content()) {
        return Ok(Arc::clone(pieces));
    }
    let pieces = Arc::new(reader.pieces()?);
    *lock() = Some((reader.content(), Arc::clone(&pieces)));
    Ok(pieces)
}

/// Chunks of the request and all bytes that follow the reply.
fn wanted(reader: &Reader, pieces: &Pieces, fetch: &FetchV1) -> Result<(Vec<u32>, u32), ServeError> {
    let chunks =
        pieces.chunks(fetch.piece).ok_or_else(|| not_found(format!("there is no piece {}", fetch.piece)))?;
    let protocol =
        |text: &str| ServeError::Fault { fault: FaultCode::Protocol, text: text.into(), retry_after_ms: 0 };
    let mask = ChunkMask::from_bytes(&fetch.mask, chunks.end - chunks.start)
        .map_err(|_| protocol("the mask does not describe this piece"))?;
    if mask.is_empty() {
        return Err(protocol("the mask is empty"));
    }
    let records = reader.records(chunks.clone())?;
    let mut bytes = 0;
    let mut indices = Vec::new();
    for index in mask.iter() {
        let record = records.get(index as usize).ok_or_else(internal)?;
        bytes += u64::from(record.raw_len) + ChunkHeader::BYTES as u64;
        indices.push(chunks.start + index);
    }
    Ok((indices, u32::try_from(bytes).map_err(|_| internal())?))
}

fn not_found(text: String) -> ServeError {
    ServeError::Fault { fault: FaultCode::NotFound, text, retry_after_ms: 0 }
}

fn internal() -> ServeError {
    ServeError::Fault {
        fault: FaultCode::Internal,
        text: "the answer could not be made".into(),
        retry_after_ms: 0,
    }
}
