//! What the payload path needs from a transport, and a source made of one.
//!
//! **What.** [`Transport`] opens byte streams to one party. [`Source`] keeps up to 16 of them and lends them out, one
//! request at a time each.
//! **Why a trait.** QUIC is the product's transport; where both ends are bound by CPU, TLS over TCP takes 30 % less wall
//! time (measured), and would be a second implementation of this trait and nothing else.
//!
//! **Invariants.** A lane that did not end its answer is never lent again: dropping it resets the stream.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hearth_protocol::id::LocationId;
use hearth_protocol::message::data::STREAMS_USED;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::clock;

/// A source that sends no byte for this long is stuck; the stream is reset and the request repeated.
pub const STALL: Duration = Duration::from_secs(10);

/// Slowest source, in bytes per second and stream, that is supported: 16 KiB/s for one that is asked on all its streams.
/// Below it the stream is reset like a stuck one. What came whole is kept, but a large chunk may need more time than a stream
/// gets then, and so never come: protecting the fetch from a source that drips on purpose is worth more than such a link.
const RATE_FLOOR_BYTES_PER_S: u64 = 1024;
/// The rate is looked at each time this many stall times were spent waiting.
const RATE_STALLS: u32 = 3;

/// A stream that was idle for longer is not used again: the source may have closed it by now.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// A future in a box.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens byte streams to one party.
pub trait Transport: fmt::Debug + Send + Sync {
    /// A new stream.
    fn open(&self) -> BoxFuture<'_, io::Result<Stream>>;
    /// Whether the connection still stands.
    fn is_open(&self) -> bool;
    /// Ends when the connection ends.
    fn closed(&self) -> BoxFuture<'_, ()>;
}

/// One byte stream, both directions. Dropping it resets what is not finished.
pub struct Stream {
    /// Towards the other party.
    pub send: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// From the other party.
    pub recv: Box<dyn AsyncRead + Send + Sync + Unpin>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

/// QUIC.
#[derive(Clone, Debug)]
pub struct Quic(pub quinn::Connection);

impl Transport for Quic {
    fn open(&self) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async {
            let (send, recv) = self.0.open_bi().await?;
            Ok(Stream { send: Box::new(send), recv: Box::new(recv) })
        })
    }

    fn is_open(&self) -> bool {
        self.0.close_reason().is_none()
    }

    fn closed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.0.closed().await;
        })
    }
}

/// A party that serves chunks.
#[derive(Debug)]
pub struct Source {
    transport: Arc<dyn Transport>,
    /// The agent it is, or `None` for the controller.
    location: Option<LocationId>,
    stall: Duration,
    slots: Arc<Semaphore>,
    idle: Mutex<Vec<(Instant, Stream)>>,
}

/// A stream lent by a [`Source`].
pub struct Lane {
    source: Arc<Source>,
    _slot: OwnedSemaphorePermit,
    /// Towards the source.
    pub send: Box<dyn AsyncWrite + Send + Sync + Unpin>,
    /// From the source; fails with `TimedOut` when it stalls.
    pub recv: StallGuard,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("recv", &self.recv).finish_non_exhaustive()
    }
}

impl Source {
    /// A source behind `transport`.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, location: Option<LocationId>) -> Arc<Self> {
        Self::with_stall(transport, location, STALL)
    }

    /// A source that counts as stuck after `stall` without a byte.
    #[must_use]
    pub fn with_stall(
        transport: Arc<dyn Transport>,
        location: Option<LocationId>,
        stall: Duration,
    ) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(STREAMS_USED));
        Arc::new(Self { transport, location, stall, slots, idle: Mutex::new(Vec::new()) })
    }

    /// The agent it is, or `None` for the controller.
    #[must_use]
    pub const fn location(&self) -> Option<LocationId> {
        self.location
    }

    /// Whether its connection still stands.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.transport.is_open()
    }

    /// Ends when its connection ends.
    pub async fn closed(&self) {
        self.transport.closed().await;
    }

    /// Waits for a free lane. Cancel safe.
    ///
    /// # Errors
    /// What the transport says if no stream can be opened; `TimedOut` if the source allows none in that time.
    pub async fn lane(self: &Arc<Self>) -> io::Result<Lane> {
        let closed = |_| io::Error::from(io::ErrorKind::NotConnected);
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(closed)?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let stream = match idle {
            Some((since, stream)) if since.elapsed() < IDLE_MAX => stream,
            // The others are older still.
            Some(_) => {
                self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                tokio::time::timeout(self.stall, self.transport.open()).await??
            }
            None => tokio::time::timeout(self.stall, self.transport.open()).await??,
        };
        let recv = StallGuard::new(stream.recv, self.stall);
        Ok(Lane { source: Arc::clone(self), _slot: slot, send: stream.send, recv })
    }
}

impl Lane {
    /// Gives the lane back for the next request; only after an answer was read to its end.
    pub fn give_back(self) {
        let stream = Stream { send: self.send, recv: self.recv.inner };
        let idle = (clock::monotonic(), stream);
        self.source.idle.lock().unwrap_or_else(PoisonError::into_inner).push(idle);
    }
}

/// A reader that fails with `TimedOut` when no byte comes for a while, or only a few do.
pub struct StallGuard {
    inner: Box<dyn AsyncRead + Send + Sync + Unpin>,
    limit: Duration,
    waiting_since: Option<Instant>,
    /// Of the look at the rate that runs: time spent waiting, and what came.
    waited: Duration,
    came_bytes: u64,
    alarm: Pin<Box<Sleep>>,
}

impl fmt::Debug for StallGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StallGuard").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl StallGuard {
    /// Guards `inner`; only time spent waiting in a read counts.
    #[must_use]
    pub fn new(inner: Box<dyn AsyncRead + Send + Sync + Unpin>, limit: Duration) -> Self {
        let alarm = Box::pin(tokio::time::sleep(limit));
        Self { inner, limit, waiting_since: None, waited: Duration::ZERO, came_bytes: 0, alarm }
    }

    /// `bytes` came; whether the source drips.
    fn drips(&mut self, bytes: usize) -> bool {
        self.came_bytes += bytes as u64;
        if let Some(since) = self.waiting_since.take() {
            self.waited += clock::monotonic().duration_since(since);
        }
        if self.waited < self.limit * RATE_STALLS {
            return false;
        }
        let floor_bytes = u128::from(RATE_FLOOR_BYTES_PER_S) * self.waited.as_millis() / 1000;
        let drips = u128::from(self.came_bytes) < floor_bytes;
        (self.waited, self.came_bytes) = (Duration::ZERO, 0);
        drips
    }
}

impl AsyncRead for StallGuard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        if let Poll::Ready(done) = Pin::new(&mut this.inner).poll_read(context, buffer) {
            let bytes = buffer.filled().len() - before;
            if done.is_ok() && bytes > 0 && this.drips(bytes) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            return Poll::Ready(done);
        }
        let now = clock::monotonic();
        let since = *this.waiting_since.get_or_insert_with(|| {
            this.alarm.as_mut().reset((now + this.limit).into());
            now
        });
        if this.alarm.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        if now.duration_since(since) >= this.limit {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        this.alarm.as_mut().reset((since + this.limit).into());
        match this.alarm.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn only_a_silent_source_stalls() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut guard = StallGuard::new(Box::new(near), Duration::from_millis(200));
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(30)).await;
            far.write_all(b"x").await.unwrap();
            assert_eq!(guard.read_u8().await.unwrap(), b'x');
        }
        // Time in which nobody reads is not the source's fault.
        tokio::time::sleep(Duration::from_millis(400)).await;
        far.write_all(b"y").await.unwrap();
        assert_eq!(guard.read_u8().await.unwrap(), b'y');
        let error = guard.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_source_that_drips_is_given_up() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut guard = StallGuard::new(Box::new(near), Duration::from_millis(200));
        let mut bytes = 0;
        let error = loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let (read, written) = tokio::join!(guard.read_u8(), async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                far.write_all(b"x").await
            });
            written.unwrap();
            match read {
                Ok(_) => bytes += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(bytes < 31, "{bytes} bytes came, each after a wait of 20 ms and more");
    }
}
