//! What is left of a request's body when its answer is ready.
//!
//! **What.** [`Rest::of`] lets the handler read the body and keeps hold of it; [`Rest::is_read`] says afterwards whether all
//! of it came, and throws a small rest away.
//!
//! **Why.** On HTTP/1.1 the next request of a connection begins where the body ends. If nobody read it so far, the
//! connection is of no further use, and the client must hear that with the answer (`connection: close`): otherwise it
//! sends its next request into a connection that is being closed. Who sent a few bytes to a call that takes none should
//! not lose the connection for it.
//!
//! **Why a tenth of a second.** What a client sent at once with its head is here already or arrives within a round trip. Waiting
//! longer would hold the answer back from a client that announced a body and never sends it, to save it one handshake.
//!
//! **Invariants.** No more than [`REST_BYTES_MAX`] are read here, for no longer than [`REST_TIME_MAX`].

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use http_body::{Frame, SizeHint};

/// Largest rest that is read to keep a connection: what a socket's buffers hold anyway.
const REST_BYTES_MAX: u64 = 64 << 10;
/// Longest wait for it, a round trip across a continent: the answer waits too.
const REST_TIME_MAX: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Clone, Debug)]
pub struct Rest(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    body: Body,
    ended: bool,
}

impl Rest {
    /// The same request, and what is left of its body from now on.
    #[must_use]
    pub fn of(request: Request) -> (Request, Self) {
        let (head, body) = request.into_parts();
        let ended = body.is_end_stream();
        let rest = Self(Arc::new(Mutex::new(Inner { body, ended })));
        (Request::from_parts(head, Body::new(rest.clone())), rest)
    }

    /// Whether the whole body came. Waits for a small rest and throws it away.
    pub async fn is_read(self) -> bool {
        if self.is_end_stream() {
            return true;
        }
        if self.size_hint().upper().is_none_or(|bytes| bytes > REST_BYTES_MAX) {
            return false;
        }
        let mut rest = self;
        let read = async {
            while let Some(frame) =
                std::future::poll_fn(|context| Pin::new(&mut rest).poll_frame(context)).await
            {
                if frame.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(REST_TIME_MAX, read).await.unwrap_or(false)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl HttpBody for Rest {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.with(|inner| {
            let frame = Pin::new(&mut inner.body).poll_frame(context);
            inner.ended |= matches!(frame, Poll::Ready(None));
            frame
        })
    }

    fn is_end_stream(&self) -> bool {
        self.with(|inner| inner.ended || inner.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|inner| inner.body.size_hint())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of `bytes` that says so beforehand, or does not; how much the handler reads of it.
    async fn check(bytes: usize, announced: bool, reads: bool, read: bool) {
        let body = if announced {
            Body::from(vec![0; bytes])
        } else {
            Body::from_stream(futures::stream::iter([Ok::<_, std::io::Error>(vec![0; bytes])]))
        };
        let (request, rest) = Rest::of(Request::new(body));
        if reads {
            let got = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
            assert_eq!(got.len(), bytes);
        }
        assert_eq!(rest.is_read().await, read, "{bytes} bytes, announced {announced}, read {reads}");
    }

    #[tokio::test]
    async fn a_connection_is_kept_when_the_body_was_read_or_little_is_left() {
        check(0, true, false, true).await;
        check(4, true, false, true).await;
        check(64 << 10, true, false, true).await;
        check((64 << 10) + 1, true, false, false).await;
        check(4, false, false, false).await;
        check(1 << 20, true, true, true).await;
        check(1 << 20, false, true, true).await;
    }
}
