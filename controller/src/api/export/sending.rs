//! Bytes of an export on their way out, at the pace of who reads them, but not slower than a least one.
//!
//! **What.** [`body`] gives a [`Sink`] and the body that it fills. Whoever makes the file sends its parts and says when it is whole.
//! **Why the time is counted here.** A body is asked for more only when its reader has taken what came before. Who reads a byte
//! now and then would never be found slow there, and would hold a place among the few exports for as long as they like.
//! **Invariants.** A body whose file is not whole ends with an error. The wait for a reader is bounded by what it has taken.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use tokio::sync::mpsc;

use crate::clock;
use crate::logic::fair::wait_max;

/// Bytes that are sent at once.
pub(super) const PART_BYTES: usize = 64 << 10;

/// Nobody takes the file any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Stopped {
    /// The client is gone.
    #[error("the client is gone")]
    Gone,
    /// It reads more slowly than it may.
    #[error("the client reads too slowly")]
    Slow,
}

/// Where a file goes.
#[derive(Debug)]
pub struct Sink {
    parts: mpsc::Sender<Bytes>,
    whole: Arc<AtomicBool>,
    sent_bytes: u64,
    waited: Duration,
    wait_max: fn(u64) -> Duration,
}

/// A sink, and the body that it fills.
pub fn body() -> (Sink, Body) {
    body_with(wait_max)
}

/// As [`body`], with a patience of one's own.
fn body_with(wait_max: fn(u64) -> Duration) -> (Sink, Body) {
    let (sender, receiver) = mpsc::channel(1);
    let whole = Arc::new(AtomicBool::new(false));
    let sink =
        Sink { parts: sender, whole: Arc::clone(&whole), sent_bytes: 0, waited: Duration::ZERO, wait_max };
    let parts = futures::stream::try_unfold((receiver, whole), |(mut receiver, whole)| async move {
        match receiver.recv().await {
            Some(part) => Ok(Some((part, (receiver, whole)))),
            None if whole.load(Ordering::Acquire) => Ok(None),
            // Or the part that was sent would look like a whole file.
            None => Err(io::Error::other("the export ended early")),
        }
    });
    (sink, Body::from_stream(parts))
}

impl Sink {
    /// Sends bytes when those before them were taken.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<(), Stopped> {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(PART_BYTES));
            let part_bytes = part.len() as u64;
            let begun = clock::monotonic();
            let left = (self.wait_max)(self.sent_bytes).saturating_sub(self.waited);
            let sent = tokio::time::timeout(left, self.parts.send(part)).await;
            sent.map_err(|_| Stopped::Slow)?.map_err(|_| Stopped::Gone)?;
            self.waited += begun.elapsed();
            self.sent_bytes += part_bytes;
        }
        Ok(())
    }

    /// The file is whole: its body ends well.
    pub fn finish(self) {
        self.whole.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_file_that_is_not_whole_ends_with_an_error() {
        for is_whole in [true, false] {
            let (mut sink, body) = body();
            let sending = async move {
                sink.send(Bytes::from(vec![7; 3 * PART_BYTES + 1])).await.unwrap();
                if is_whole {
                    sink.finish();
                }
            };
            let (parts, ()) = tokio::join!(body.into_data_stream().collect::<Vec<_>>(), sending);
            assert_eq!(parts.iter().flatten().map(Bytes::len).sum::<usize>(), 3 * PART_BYTES + 1);
            assert_eq!(parts.iter().any(Result::is_err), !is_whole);
        }
    }

    #[tokio::test]
    async fn who_reads_nothing_is_given_up_and_who_is_gone_at_once() {
        let (mut sink, body) = body_with(|_| Duration::from_millis(50));
        sink.send(Bytes::from_static(b"a")).await.unwrap();
        assert_eq!(sink.send(Bytes::from_static(b"b")).await, Err(Stopped::Slow));
        drop(body);
        assert_eq!(sink.send(Bytes::from_static(b"c")).await, Err(Stopped::Gone));
    }
}
