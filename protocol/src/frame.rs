//! Frames: how a message is laid out on a stream.
//!
//! **What.** `len u32 | kind u16 | body`, little endian; `len` counts the body. The body is bincode 2 with fixed
//! integers. Bulk bytes (chunks, manifest pages) follow a frame raw and are not part of it.
//! **Why bincode is fenced in here.** It is required and unmaintained: this is the only crate that imports it, the
//! layout (fixed integers) is one that other codecs also write, and every body is compared by length.
//! **Invariants.** No allocation above [`BODY_BYTES_MAX`]; a body with bytes left over is refused (an older struct
//! would otherwise silently decode from a newer one).

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

/// Largest frame body: protects the receiver, which buffers it whole.
pub const BODY_BYTES_MAX: usize = 256 * 1024;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 6;

const CODEC: Configuration<LittleEndian, Fixint, Limit<BODY_BYTES_MAX>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<BODY_BYTES_MAX>();

/// Why bytes are not a frame or its body not the message.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// The header announces more than [`BODY_BYTES_MAX`].
    #[error("frame body of {bytes} B passes the limit of {BODY_BYTES_MAX} B")]
    TooLong {
        /// Announced length.
        bytes: usize,
    },
    /// No message of this stream has this kind.
    #[error("unknown message kind {kind:#06x}")]
    UnknownKind {
        /// The kind.
        kind: u16,
    },
    /// The body does not decode.
    #[error("message of kind {kind:#06x} does not decode: {cause}")]
    Body {
        /// The kind.
        kind: u16,
        /// What the decoder said.
        cause: String,
    },
    /// The body decodes, but not all of it.
    #[error("message of kind {kind:#06x} has {bytes} B left over")]
    LeftOver {
        /// The kind.
        kind: u16,
        /// Bytes behind the message.
        bytes: usize,
    },
    /// The message does not fit into a frame.
    #[error("message of kind {kind:#06x} does not encode: {cause}")]
    Encode {
        /// The kind.
        kind: u16,
        /// What the encoder said.
        cause: String,
    },
}

/// Length and kind of a frame whose body follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrameHeader {
    /// Length of the body in bytes, at most [`BODY_BYTES_MAX`].
    pub body_bytes: usize,
    /// Kind of the message.
    pub kind: u16,
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub const fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let body_bytes = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if body_bytes > BODY_BYTES_MAX {
            return Err(FrameError::TooLong { bytes: body_bytes });
        }
        Ok(Self { body_bytes, kind: u16::from_le_bytes([bytes[4], bytes[5]]) })
    }
}

/// Messages of one direction of one stream; made by `messages!` alone.
pub trait Message: Sized {
    /// The whole frame.
    ///
    /// # Errors
    /// [`FrameError::Encode`] or [`FrameError::TooLong`]: the sender put too much into one message.
    fn to_frame(&self) -> Result<Vec<u8>, FrameError>;

    /// The message of a frame.
    ///
    /// # Errors
    /// [`FrameError`] for an unknown kind or a body that is not exactly that message.
    fn from_body(kind: u16, body: &[u8]) -> Result<Self, FrameError>;
}

pub(crate) fn encode<T: Encode>(kind: u16, message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; HEADER_BYTES];
    let failed = |cause: bincode::error::EncodeError| FrameError::Encode { kind, cause: cause.to_string() };
    bincode::encode_into_std_write(message, &mut frame, CODEC).map_err(failed)?;
    let body_bytes = frame.len() - HEADER_BYTES;
    let too_long = FrameError::TooLong { bytes: body_bytes };
    let length = u32::try_from(body_bytes).ok().filter(|_| body_bytes <= BODY_BYTES_MAX).ok_or(too_long)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame[4..HEADER_BYTES].copy_from_slice(&kind.to_le_bytes());
    Ok(frame)
}

pub(crate) fn decode<T: Decode<()>>(kind: u16, body: &[u8]) -> Result<T, FrameError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(FrameError::TooLong { bytes: body.len() });
    }
    let failed = |cause: bincode::error::DecodeError| FrameError::Body { kind, cause: cause.to_string() };
    let (message, used) = bincode::decode_from_slice(body, CODEC).map_err(failed)?;
    if used != body.len() {
        return Err(FrameError::LeftOver { kind, bytes: body.len() - used });
    }
    Ok(message)
}

/// Declares the messages of one direction: an enum, the kinds, and both codecs.
macro_rules! messages {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident($body:ty) = $kind:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub enum $name {
            $($(#[$vdoc])* $variant($body),)*
        }

        impl $name {
            /// Every kind of this direction.
            pub const KINDS: &'static [u16] = &[$($kind),*];
        }

        impl $crate::frame::Message for $name {
            fn to_frame(&self) -> Result<Vec<u8>, $crate::frame::FrameError> {
                match self { $(Self::$variant(body) => $crate::frame::encode($kind, body),)* }
            }

            fn from_body(kind: u16, body: &[u8]) -> Result<Self, $crate::frame::FrameError> {
                match kind {
                    $($kind => $crate::frame::decode(kind, body).map(Self::$variant),)*
                    _ => Err($crate::frame::FrameError::UnknownKind { kind }),
                }
            }
        }

        $(impl From<$body> for $name {
            fn from(body: $body) -> Self {
                Self::$variant(body)
            }
        })*
    };
}
pub(crate) use messages;
