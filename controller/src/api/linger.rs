//! Closing a connection so that the last answer arrives.
//!
//! **What.** [`Linger`] is a stream whose shutdown first says "no more from here", then reads and throws away what the
//! other side still sends, until it closes too, falls silent, or has had enough time and bytes.
//!
//! **Why.** A call may be answered before its whole body was read: too large, no room, no rights. Closing a TCP socket
//! with unread bytes resets the connection, and a reset takes the answer with it that the client has not read yet: it
//! would see "connection reset" instead of 413.
//!
//! **Why below TLS.** Whatever ends a connection above passes here, and bytes that nobody wants need no decryption.
//!
//! **Invariants.** A shutdown ends within the time of [`LIMITS`], whatever the other side does.

use std::future::Future as _;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::clock;

/// How much of what nobody wants is read.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Longest silence of the sender.
    silence: Duration,
    /// Longest time for all of it: the place of the connection is wanted by others.
    time: Duration,
    /// Most bytes: a JSON body many times over. Who uploads more reads the answer meanwhile.
    bytes: usize,
}

/// The limits of every connection.
const LIMITS: Limits =
    Limits { silence: Duration::from_secs(5), time: Duration::from_secs(30), bytes: 64 << 20 };
/// Bytes thrown away at once.
const STEP_BYTES: usize = 16 << 10;

/// See the module.
#[derive(Debug)]
pub struct Linger<S> {
    stream: S,
    limits: Limits,
    end: Option<End>,
}

/// A shutdown that runs.
#[derive(Debug)]
struct End {
    silence: Pin<Box<Sleep>>,
    time: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl<S> Linger<S> {
    /// A stream that is open.
    #[must_use]
    pub const fn new(stream: S) -> Self {
        Self { stream, limits: LIMITS, end: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Linger<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Linger<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.end.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
        }
        let Limits { silence, time, bytes } = this.limits;
        let end = this.end.get_or_insert_with(|| End {
            silence: Box::pin(tokio::time::sleep(silence)),
            time: Box::pin(tokio::time::sleep(time)),
            bytes_left: bytes,
        });
        if end.time.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut space = [MaybeUninit::uninit(); STEP_BYTES];
        loop {
            let mut rest = ReadBuf::uninit(&mut space);
            match Pin::new(&mut this.stream).poll_read(context, &mut rest) {
                Poll::Pending => return end.silence.as_mut().poll(context).map(Ok),
                // It has closed, or it is gone: nobody waits for the answer any more.
                Poll::Ready(Err(_)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if rest.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => {
                    let Some(left) = end.bytes_left.checked_sub(rest.filled().len()) else {
                        return Poll::Ready(Ok(()));
                    };
                    end.bytes_left = left;
                    end.silence.as_mut().reset((clock::monotonic() + silence).into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::task;

    const LONG: Limits =
        Limits { silence: Duration::from_secs(600), time: Duration::from_secs(600), bytes: usize::MAX };

    #[tokio::test]
    async fn what_still_comes_is_thrown_away_and_the_answer_arrives() {
        let (mut client, server) = tokio::io::duplex(1000);
        let mut server = Linger { limits: LONG, ..Linger::new(server) };
        server.write_all(b"too large").await.unwrap();
        let closing = task::spawn("closing", async move { server.shutdown().await });
        client.write_all(&[0; 100_000]).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"too large");
        drop(client);
        closing.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_silent_an_endless_and_a_dripping_sender_end_too() {
        let short = Duration::from_millis(50);
        let cases = [
            (Limits { silence: short, ..LONG }, 1, Duration::from_secs(600)),
            (Limits { bytes: 1 << 20, ..LONG }, 10_000, Duration::ZERO),
            (Limits { time: short, ..LONG }, 1, Duration::from_millis(1)),
        ];
        for (limits, bytes, pause) in cases {
            let (mut client, server) = tokio::io::duplex(1000);
            let sending = task::spawn("sending", async move {
                while client.write_all(&vec![0; bytes]).await.is_ok() {
                    tokio::time::sleep(pause).await;
                }
            });
            let mut server = Linger { limits, ..Linger::new(server) };
            server.shutdown().await.unwrap();
            sending.abort();
        }
    }
}
