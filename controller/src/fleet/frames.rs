//! Frames on QUIC streams.
//!
//! **What.** [`FrameReader`] reads one message at a time, [`send`] writes one.
//! **Why a reader with a state.** It stands in a `select!` beside other events; what it has read of a frame must not be
//! lost when another branch wins.
//! **Invariants.** Never more than the stream's own limit is buffered. A frame that was begun must be whole within
//! [`FRAME_MAX`]: whoever sends one byte a minute is cut off.

use std::time::Duration;

use hearth_protocol::frame::{FrameError, FrameHeader, HEADER_BYTES, Message};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tokio::time::{Instant, timeout, timeout_at};

use crate::clock;

/// Time between the first and the last byte of a frame, each way.
pub(super) const FRAME_MAX: Duration = Duration::from_secs(10);

/// Why a stream is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// The other side sent what is not a message of this stream.
    #[error("the other side sent a wrong message")]
    Frame(#[from] FrameError),
    /// The stream or connection failed while it was read.
    #[error("cannot read from the other side")]
    Read(#[from] ReadError),
    /// The stream or connection failed while it was written.
    #[error("cannot write to the other side")]
    Write(#[from] WriteError),
    /// The stream ended inside a frame, or where one was due.
    #[error("the stream ended where a message was due")]
    CutShort,
    /// A frame took longer than [`FRAME_MAX`], or an answer longer than allowed.
    #[error("the other side is too slow")]
    TooSlow,
    /// A message that is not allowed now.
    #[error("the other side sent a message that is not allowed now")]
    OutOfTurn,
}

/// Reads messages; see the module.
#[derive(Debug)]
pub(super) struct FrameReader {
    recv: RecvStream,
    body_bytes_max: usize,
    header: [u8; HEADER_BYTES],
    /// Bytes of the header that are there.
    header_got: usize,
    body: Vec<u8>,
    body_got: usize,
    /// When the frame must be whole.
    due: Option<Instant>,
}

impl FrameReader {
    /// A reader that accepts frames with bodies up to `body_bytes_max`.
    #[must_use]
    pub(super) const fn new(recv: RecvStream, body_bytes_max: usize) -> Self {
        Self {
            recv,
            body_bytes_max,
            header: [0; HEADER_BYTES],
            header_got: 0,
            body: Vec::new(),
            body_got: 0,
            due: None,
        }
    }

    /// The next message, or `None` if the stream ended between two messages.
    ///
    /// # Errors
    /// [`StreamError`]; the stream is not usable after it.
    ///
    /// # Cancel safety
    /// Dropped at any point, nothing is lost: the next call goes on.
    pub(super) async fn next<M: Message>(&mut self) -> Result<Option<M>, StreamError> {
        if self.due.is_none() {
            if self.header_got == 0 && !self.fill_header().await? {
                return Ok(None);
            }
            self.due = Some(Instant::from_std(clock::monotonic()) + FRAME_MAX);
        }
        let due = self.due.unwrap_or_else(|| Instant::from_std(clock::monotonic()));
        timeout_at(due, self.rest()).await.map_err(|_| StreamError::TooSlow)??;
        let header = FrameHeader::parse(self.header)?;
        let message = M::from_body(header.kind, &self.body)?;
        (self.header_got, self.body_got, self.due) = (0, 0, None);
        // Big frames are rare: what they took is given back at once.
        self.body = Vec::new();
        Ok(Some(message))
    }

    /// The next message, which must come within `limit`.
    ///
    /// # Errors
    /// As [`FrameReader::next`]; [`StreamError::TooSlow`] after `limit`, [`StreamError::CutShort`] at the end.
    pub(super) async fn expect<M: Message>(&mut self, limit: Duration) -> Result<M, StreamError> {
        let message = timeout(limit, self.next()).await.map_err(|_| StreamError::TooSlow)??;
        message.ok_or(StreamError::CutShort)
    }

    /// The stream, for raw bytes behind a message.
    pub(super) const fn stream(&mut self) -> &mut RecvStream {
        &mut self.recv
    }

    /// Reads some bytes of the header; `false` at the end of the stream.
    async fn fill_header(&mut self) -> Result<bool, StreamError> {
        let got = self.recv.read(&mut self.header[self.header_got..]).await?;
        self.header_got += got.unwrap_or(0);
        Ok(got.is_some())
    }

    /// Reads the rest of a frame whose first byte is there.
    async fn rest(&mut self) -> Result<(), StreamError> {
        while self.header_got < HEADER_BYTES {
            if !self.fill_header().await? {
                return Err(StreamError::CutShort);
            }
        }
        let bytes = FrameHeader::parse(self.header)?.body_bytes;
        if bytes > self.body_bytes_max {
            return Err(FrameError::TooLong { bytes }.into());
        }
        self.body.resize(bytes, 0);
        while self.body_got < bytes {
            let got = self.recv.read(&mut self.body[self.body_got..]).await?;
            self.body_got += got.ok_or(StreamError::CutShort)?;
        }
        Ok(())
    }
}

/// Writes one message; the other side must take it within [`FRAME_MAX`].
///
/// # Errors
/// [`StreamError`]; the stream is not usable after it.
pub(super) async fn send<M: Message>(stream: &mut SendStream, message: &M) -> Result<(), StreamError> {
    let frame = message.to_frame()?;
    timeout(FRAME_MAX, stream.write_all(&frame)).await.map_err(|_| StreamError::TooSlow)??;
    Ok(())
}
