//! Signs of life of a transfer, for whoever watches it from outside.
//!
//! **What.** [`Heard`] counts bytes as they come and notes when it is we who wait (for a cap, for the disk). [`Listening`] is a
//! reader that counts.
//! **Why single bytes.** A chunk has up to 256 KiB; through a small share of a slow link it takes longer than a holder may be
//! silent.
//! **Invariants.** Time in which we do not read is never the holder's fault.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// See the module.
#[derive(Debug, Default)]
pub struct Heard {
    bytes: AtomicU64,
    n_waits: AtomicU32,
}

impl Heard {
    /// Bytes that came so far; grows also while it is we who wait.
    #[must_use]
    pub fn mark(&self) -> u64 {
        if self.n_waits.load(Ordering::Relaxed) > 0 {
            self.bytes.fetch_add(1, Ordering::Relaxed);
        }
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits for something of ours.
    pub async fn ours<T>(&self, waiting: impl Future<Output = T>) -> T {
        self.n_waits.fetch_add(1, Ordering::Relaxed);
        let done = waiting.await;
        self.bytes.fetch_add(1, Ordering::Relaxed);
        self.n_waits.fetch_sub(1, Ordering::Relaxed);
        done
    }
}

/// A reader whose bytes are counted.
#[derive(Debug)]
pub struct Listening<'a, R> {
    inner: &'a mut R,
    heard: &'a Heard,
}

impl<'a, R> Listening<'a, R> {
    /// Counts what comes from `inner`.
    pub const fn new(inner: &'a mut R, heard: &'a Heard) -> Self {
        Self { inner, heard }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Listening<'_, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut *self.inner).poll_read(context, buffer);
        let bytes = buffer.filled().len() - before;
        self.heard.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        polled
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn bytes_and_our_own_waits_are_signs_of_life() {
        let heard = Heard::default();
        let mut from = &b"abc"[..];
        let mut bytes = Vec::new();
        Listening::new(&mut from, &heard).read_to_end(&mut bytes).await.unwrap();
        assert_eq!((heard.mark(), heard.mark()), (3, 3));
        let marks = heard.ours(async { (heard.mark(), heard.mark()) }).await;
        assert!(marks.0 < marks.1, "{marks:?}");
    }
}
