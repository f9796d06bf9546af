//! Data streams: manifests and chunks.
//!
//! **What.** The asker sends one `DataRequest` frame and reads one `DataReply` frame; after `BytesFollow` come that many
//! raw bytes, after `ChunksFollow` the chunks, each behind a [`ChunkHeader`]. Then the stream takes the next request.
//! **Why raw bytes.** Payload is the only bulk on the wire; it is not copied through a codec. How a chunk is packed is
//! the sender's business, so agents may serve raw what the controller serves packed.
//! **Invariants.** Chunks come in ascending order and only those asked for; a stored length is never above the raw
//! length's limit. The asker trusts no length before it compared it.

use bincode::{Decode, Encode};

use super::swarm::{FetchPieceV1, GoV1, HavingV1, PieceFollowsV1, PiecesHereV1, ReadyV1};
use crate::digest::ContentId;
use crate::fault::FaultCode;
use crate::frame::messages;
use crate::manifest::CHUNK_BYTES_MAX;

/// Streams that a receiver allows at once per connection.
pub const STREAMS_MAX: u32 = 32;
/// Streams that an asker uses, one request at a time on each.
pub const STREAMS_USED: usize = 16;

messages! {
    /// What an asker wants.
    DataRequest {
        /// The manifest's root.
        Root(RootV1) = 0x0301,
        /// A manifest page.
        Page(PageV1) = 0x0302,
        /// Chunks of a piece.
        Fetch(FetchV1) = 0x0303,
        /// Chunks of a piece from another agent, when it can; from version 4.
        FetchPiece(FetchPieceV1) = 0x0304,
        /// Takes the offer of another agent; from version 4.
        Go(GoV1) = 0x0305,
        /// Which pieces another agent has; from version 4.
        Having(HavingV1) = 0x0306,
    }
}

messages! {
    /// What the asked party answers.
    DataReply {
        /// That many raw bytes follow.
        BytesFollow(BytesFollowV1) = 0x0401,
        /// Chunks follow.
        ChunksFollow(ChunksFollowV1) = 0x0402,
        /// Not served.
        Fault(FaultV1) = 0x0403,
        /// An agent offers what was asked for; from version 4.
        Ready(ReadyV1) = 0x0404,
        /// Chunks of an agent follow; from version 4.
        PieceFollows(PieceFollowsV1) = 0x0405,
        /// Pieces that an agent has; from version 4.
        PiecesHere(PiecesHereV1) = 0x0406,
    }
}

/// Asks for a manifest's root.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct RootV1 {
    /// Of which content.
    pub content: ContentId,
}

/// Asks for a manifest page.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct PageV1 {
    /// Of which content.
    pub content: ContentId,
    /// Which page.
    pub page: u32,
}

/// Asks for chunks of one piece.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct FetchV1 {
    /// Of which content.
    pub content: ContentId,
    /// Which piece.
    pub piece: u32,
    /// Which of its chunks: a [`crate::mask::ChunkMask`] over the piece. Not empty.
    pub mask: Vec<u8>,
}

/// Raw bytes follow.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct BytesFollowV1 {
    /// How many.
    pub bytes: u32,
}

/// Chunks follow.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct ChunksFollowV1 {
    /// How many chunks.
    pub chunks: u32,
    /// All bytes that follow, chunk headers included.
    pub bytes: u32,
}

/// The request is not served.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct FaultV1 {
    /// Why.
    pub fault: FaultCode,
    /// For people.
    pub text: String,
    /// Not before this many milliseconds; 0 if the fault's own rule holds.
    pub retry_after_ms: u32,
}

/// How a chunk's bytes are stored and sent.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Encoding {
    /// As they are.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Encoding {
    /// The encoding with this number, or `None`.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Goes before each chunk on a data stream: `index u32 | encoding u8 | stored length u32`, little endian.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChunkHeader {
    /// Index of the chunk in the content.
    pub chunk: u32,
    /// How its bytes are packed.
    pub encoding: Encoding,
    /// Bytes that follow, 1 ..= [`CHUNK_BYTES_MAX`].
    pub stored_len: u32,
}

/// A chunk header that is not one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "chunk header names encoding {encoding} and {stored_len} B; allowed are encodings 0 and 1 and 1 to {CHUNK_BYTES_MAX} B"
)]
pub struct ChunkHeaderError {
    /// Number of the encoding.
    pub encoding: u8,
    /// Announced length.
    pub stored_len: u32,
}

impl ChunkHeader {
    /// Encoded length.
    pub const BYTES: usize = 9;

    /// The encoded header.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&self.chunk.to_le_bytes());
        out[4] = self.encoding as u8;
        out[5..].copy_from_slice(&self.stored_len.to_le_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`ChunkHeaderError`] for an unknown encoding or a forbidden length.
    pub fn parse(bytes: [u8; Self::BYTES]) -> Result<Self, ChunkHeaderError> {
        let chunk = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let stored_len = u32::from_le_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
        let error = ChunkHeaderError { encoding: bytes[4], stored_len };
        let encoding = Encoding::from_number(bytes[4]).ok_or(error)?;
        if stored_len == 0 || stored_len > CHUNK_BYTES_MAX {
            return Err(error);
        }
        Ok(Self { chunk, encoding, stored_len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_header_is_refused_outside_its_limits() {
        let header = ChunkHeader { chunk: 7, encoding: Encoding::Zstd, stored_len: 65_536 };
        assert_eq!(ChunkHeader::parse(header.encode()), Ok(header));
        for (encoding, stored_len) in [(2, 1), (0, 0), (1, CHUNK_BYTES_MAX + 1), (0, u32::MAX)] {
            let mut bytes = header.encode();
            bytes[4] = encoding;
            bytes[5..].copy_from_slice(&stored_len.to_le_bytes());
            assert_eq!(ChunkHeader::parse(bytes), Err(ChunkHeaderError { encoding, stored_len }));
        }
    }
}
