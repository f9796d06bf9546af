//! Messages on a stream.
//!
//! **What.** Reads and writes one frame of `hearth_protocol` on any byte stream.
//! **Why generic.** The payload path stands behind a small transport trait; TLS over TCP may come beside QUIC.
//! **Invariants.** `no_more_than_the_frame_limit_is_ever_held`: a length is checked before anything is allocated.
//! Not cancel safe: a dropped read leaves the stream inside a frame; such a stream is dropped with it.

use std::io;

use hearth_protocol::frame::{FrameError, FrameHeader, HEADER_BYTES, Message};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Why a message could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream ended between two frames.
    #[error("the other side closed the stream")]
    Ended,
    /// The stream broke.
    #[error("stream broke: {0}")]
    Stream(#[source] io::Error),
    /// The bytes are not a message of this stream.
    #[error("not the message that belongs here: {0}")]
    Frame(#[from] FrameError),
}

/// Writes one message.
///
/// # Errors
/// [`WireError::Stream`], or [`WireError::Frame`] if the message is too large.
pub async fn write<M: Message>(
    send: &mut (impl AsyncWrite + Unpin + ?Sized),
    message: &M,
) -> Result<(), WireError> {
    let frame = message.to_frame()?;
    send.write_all(&frame).await.map_err(WireError::Stream)
}

/// Reads one message.
///
/// # Errors
/// [`WireError::Ended`] at the end of the stream; see the others.
pub async fn read<M: Message>(recv: &mut (impl AsyncRead + Unpin + ?Sized)) -> Result<M, WireError> {
    let mut header = [0; HEADER_BYTES];
    let mut got = 0;
    while got < HEADER_BYTES {
        match recv.read(&mut header[got..]).await.map_err(WireError::Stream)? {
            0 if got == 0 => return Err(WireError::Ended),
            0 => return Err(WireError::Stream(io::ErrorKind::UnexpectedEof.into())),
            n => got += n,
        }
    }
    let header = FrameHeader::parse(header)?;
    let mut body = vec![0; header.body_bytes];
    recv.read_exact(&mut body).await.map_err(WireError::Stream)?;
    Ok(M::from_body(header.kind, &body)?)
}

#[cfg(test)]
mod tests {
    use hearth_protocol::digest::ContentId;
    use hearth_protocol::message::data::{DataRequest, RootV1};

    use super::*;

    #[tokio::test]
    async fn a_message_arrives_and_the_end_is_told_from_a_cut() {
        let message = DataRequest::from(RootV1 { content: ContentId::of(b"x") });
        let mut bytes = Vec::new();
        write(&mut bytes, &message).await.unwrap();
        let mut stream = &bytes[..];
        assert_eq!(read::<DataRequest>(&mut stream).await.unwrap(), message);
        assert!(matches!(read::<DataRequest>(&mut stream).await, Err(WireError::Ended)));
        for cut in 1..bytes.len() {
            let cut = read::<DataRequest>(&mut &bytes[..cut]).await;
            assert!(matches!(cut, Err(WireError::Stream(_))), "{cut:?}");
        }
    }

    #[tokio::test]
    async fn no_more_than_the_frame_limit_is_ever_held() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.extend([1, 3]);
        bytes.extend([0; 64]);
        let refused = read::<DataRequest>(&mut &bytes[..]).await;
        assert!(matches!(refused, Err(WireError::Frame(FrameError::TooLong { .. }))), "{refused:?}");
    }
}
