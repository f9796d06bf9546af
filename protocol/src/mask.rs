//! Sets of chunks: which ones a content still needs, which ones a request wants.
//!
//! **What.** A bitmap with a fixed length. On the wire it is its bytes, lowest index in the lowest bit.
//! **Why not a list of ranges.** Needs after a delta are scattered; one bit per 64 KiB is 2 MiB for a 1 TiB content,
//! and a request covers one piece, at most 2,048 chunks.
//! **Invariants.** Bits past the length are 0; bytes from outside that break this are refused.

use std::ops::Range;

/// Bytes that are not a mask of the expected length.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("chunk mask of {got} B does not describe {expected} chunks")]
pub struct MaskError {
    /// Length of the bytes.
    pub got: usize,
    /// Number of chunks that they should describe.
    pub expected: u32,
}

/// A set of chunk indices below `len()`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ChunkMask {
    bits: Vec<u8>,
    len: u32,
}

impl ChunkMask {
    /// No chunk of `len`.
    #[must_use]
    pub fn empty(len: u32) -> Self {
        Self { bits: vec![0; len.div_ceil(8) as usize], len }
    }

    /// Every chunk of `len`.
    #[must_use]
    pub fn full(len: u32) -> Self {
        let mut bits = vec![0xff; len.div_ceil(8) as usize];
        if let Some(last) = bits.last_mut().filter(|_| !len.is_multiple_of(8)) {
            *last = (1 << (len % 8)) - 1;
        }
        Self { bits, len }
    }

    /// A mask of `len` chunks from its bytes.
    ///
    /// # Errors
    /// [`MaskError`] if the length differs or a bit past `len` is set.
    pub fn from_bytes(bytes: &[u8], len: u32) -> Result<Self, MaskError> {
        let mask = Self { bits: bytes.to_vec(), len };
        let tail_clear = len.is_multiple_of(8) || bytes.last().is_some_and(|last| last >> (len % 8) == 0);
        if bytes.len() == len.div_ceil(8) as usize && tail_clear {
            return Ok(mask);
        }
        Err(MaskError { got: bytes.len(), expected: len })
    }

    /// The bytes, lowest index in the lowest bit.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Number of chunks that can be in the set.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether no chunk is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.iter().all(|byte| *byte == 0)
    }

    /// Number of chunks in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.bits.iter().map(|byte| byte.count_ones()).sum()
    }

    /// Whether `chunk` is in the set; `false` past the end.
    #[must_use]
    pub fn contains(&self, chunk: u32) -> bool {
        chunk < self.len && self.bits[chunk as usize / 8] >> (chunk % 8) & 1 == 1
    }

    /// Puts `chunk` in.
    ///
    /// # Panics
    /// If `chunk` is not below `len()`: the caller mixed two contents up.
    pub fn insert(&mut self, chunk: u32) {
        assert!(chunk < self.len, "chunk {chunk} of {}", self.len);
        self.bits[chunk as usize / 8] |= 1 << (chunk % 8);
    }

    /// Takes `chunk` out.
    ///
    /// # Panics
    /// If `chunk` is not below `len()`: the caller mixed two contents up.
    pub fn remove(&mut self, chunk: u32) {
        assert!(chunk < self.len, "chunk {chunk} of {}", self.len);
        self.bits[chunk as usize / 8] &= !(1 << (chunk % 8));
    }

    /// The chunks in the set, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.iter_in(0..self.len)
    }

    /// The chunks of `range` in the set, in order.
    pub fn iter_in(&self, range: Range<u32>) -> impl Iterator<Item = u32> + '_ {
        range.filter(|chunk| self.contains(*chunk))
    }

    /// The part of the set that lies in `range`, counted from the range's start: what a request for a piece carries.
    #[must_use]
    pub fn slice(&self, range: Range<u32>) -> Self {
        let mut part = Self::empty(range.end.saturating_sub(range.start));
        for chunk in self.iter_in(range.clone()) {
            part.insert(chunk - range.start);
        }
        part
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bits_past_the_length_are_refused() {
        assert!(ChunkMask::from_bytes(&[0b111], 3).is_ok());
        assert_eq!(ChunkMask::from_bytes(&[0b1111], 3), Err(MaskError { got: 1, expected: 3 }));
        assert_eq!(ChunkMask::from_bytes(&[0, 0], 3), Err(MaskError { got: 2, expected: 3 }));
        assert!(ChunkMask::from_bytes(&[], 0).is_ok());
        assert_eq!(ChunkMask::full(9).as_bytes(), [0xff, 1]);
        assert_eq!(ChunkMask::full(16).count(), 16);
    }

    proptest! {
        #[test]
        fn a_mask_is_a_set(len in 1_u32..300, wanted in proptest::collection::btree_set(0_u32..300, 0..50), cut in 0_u32..300) {
            let wanted: BTreeSet<u32> = wanted.into_iter().filter(|chunk| *chunk < len).collect();
            let mut mask = ChunkMask::full(len);
            (0..len).filter(|chunk| !wanted.contains(chunk)).for_each(|chunk| mask.remove(chunk));
            prop_assert_eq!(mask.iter().collect::<BTreeSet<_>>(), wanted.clone());
            prop_assert_eq!(mask.count() as usize, wanted.len());
            prop_assert_eq!(ChunkMask::from_bytes(mask.as_bytes(), len), Ok(mask.clone()));
            let cut = cut.min(len);
            let tail: Vec<u32> = mask.slice(cut..len).iter().map(|chunk| chunk + cut).collect();
            prop_assert_eq!(tail, wanted.range(cut..).copied().collect::<Vec<_>>());
        }
    }
}
