//! Pieces: the fixed cut of a content into units of transfer.
//!
//! **What.** Consecutive chunks up to the piece size. The cut depends on the manifest alone, so every host names the
//! same bytes by the same piece number, whatever it already holds.
//! **Why not chunks.** A request per 64 KiB costs a round trip each; the swarm's planner counts pieces, and about a
//! thousand of them per content pipeline well over thousands of hosts (design: the swarm).
//!
//! **Invariants**, each tested:
//! 1. `pieces_cover_every_chunk_once_in_order`.
//!    No piece passes the piece size: a chunk is never larger than one.
//! 2. `no_piece_has_more_chunks_than_a_mask_may_carry`.

use std::ops::Range;

/// Smallest piece size, in raw non-zero bytes.
pub const PIECE_BYTES_MIN: u64 = 1 << 20;
/// Largest piece size, in raw non-zero bytes: bounds what one request makes a receiver hold.
pub const PIECE_BYTES_MAX: u64 = 8 << 20;
/// Most chunks of one piece: 8 MiB of single 4 KiB blocks.
pub const PIECE_CHUNKS_MAX: u32 = 2048;

/// Piece size of a content with `data_bytes` non-zero bytes: a 1,024th, rounded up to a power of two, 1 to 8 MiB.
#[must_use]
pub fn piece_bytes(data_bytes: u64) -> u64 {
    (data_bytes / 1024).next_power_of_two().clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
}

/// The cut of one content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pieces {
    piece_bytes: u64,
    /// First chunk of each piece.
    starts: Vec<u32>,
    n_chunks: u32,
    open_bytes: u64,
}

impl Pieces {
    /// An empty cut for a content with `data_bytes` non-zero bytes; give it every chunk by [`Pieces::push`].
    #[must_use]
    pub fn new(data_bytes: u64) -> Self {
        Self { piece_bytes: piece_bytes(data_bytes), starts: Vec::new(), n_chunks: 0, open_bytes: 0 }
    }

    /// Adds the next chunk of the content, `raw_len` bytes long.
    pub fn push(&mut self, raw_len: u32) {
        let bytes = u64::from(raw_len);
        let open_chunks = self.starts.last().map_or(0, |start| self.n_chunks - start);
        if self.starts.is_empty()
            || self.open_bytes + bytes > self.piece_bytes
            || open_chunks == PIECE_CHUNKS_MAX
        {
            self.starts.push(self.n_chunks);
            self.open_bytes = 0;
        }
        self.open_bytes += bytes;
        self.n_chunks += 1;
    }

    /// Number of pieces.
    #[must_use]
    pub fn len(&self) -> u32 {
        u32::try_from(self.starts.len()).unwrap_or(u32::MAX)
    }

    /// Whether the content has no chunk.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Chunks of `piece`, or `None` past the last piece.
    #[must_use]
    pub fn chunks(&self, piece: u32) -> Option<Range<u32>> {
        let start = *self.starts.get(piece as usize)?;
        Some(start..self.starts.get(piece as usize + 1).copied().unwrap_or(self.n_chunks))
    }

    /// Piece that holds `chunk`, or `None` past the last chunk.
    #[must_use]
    pub fn piece_of(&self, chunk: u32) -> Option<u32> {
        if chunk >= self.n_chunks {
            return None;
        }
        u32::try_from(self.starts.partition_point(|start| *start <= chunk) - 1).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn piece_size_is_a_1024th_within_1_to_8_mib() {
        for (data_bytes, expected) in
            [(0, 1 << 20), (375 << 20, 1 << 20), (3 << 30, 4 << 20), (1 << 40, 8 << 20)]
        {
            assert_eq!(piece_bytes(data_bytes), expected);
        }
    }

    proptest! {
        #[test]
        fn pieces_cover_every_chunk_once_in_order(lens in proptest::collection::vec(1_u32..=262_144, 0..400)) {
            let mut pieces = Pieces::new(lens.iter().map(|len| u64::from(*len)).sum());
            lens.iter().for_each(|len| pieces.push(*len));
            let mut next = 0;
            for piece in 0..pieces.len() {
                let chunks = pieces.chunks(piece).unwrap();
                prop_assert_eq!(chunks.start, next);
                prop_assert!(chunks.clone().all(|chunk| pieces.piece_of(chunk) == Some(piece)));
                let bytes: u64 = lens[chunks.start as usize..chunks.end as usize].iter().map(|len| u64::from(*len)).sum();
                prop_assert!(bytes <= pieces.piece_bytes);
                next = chunks.end;
            }
            prop_assert_eq!(next as usize, lens.len());
            prop_assert_eq!(pieces.chunks(pieces.len()), None);
            prop_assert_eq!(pieces.piece_of(next), None);
        }
    }

    #[test]
    fn no_piece_has_more_chunks_than_a_mask_may_carry() {
        let mut pieces = Pieces::new(0);
        (0..5000).for_each(|_| pieces.push(1));
        assert_eq!(pieces.chunks(0), Some(0..PIECE_CHUNKS_MAX));
    }
}
