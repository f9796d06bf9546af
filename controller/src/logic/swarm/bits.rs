//! Many sets of pieces in one block of memory: a row of bits per host.
//!
//! **Why one block.** Ten thousand hosts are ten thousand small vectors otherwise, and the planner reads bits of random
//! hosts a hundred million times.

use super::HostNo;

/// Rows of bits, all of the same length, one per host.
#[derive(Clone, Debug)]
pub(super) struct BitRows {
    words: usize,
    bits: Vec<u64>,
}

impl BitRows {
    pub(super) const fn new(n_bits: u32) -> Self {
        Self { words: n_bits.div_ceil(64) as usize, bits: Vec::new() }
    }

    /// Adds an empty row.
    pub(super) fn push(&mut self) {
        self.bits.resize(self.bits.len() + self.words, 0);
    }

    /// Words of a row.
    pub(super) const fn words(&self) -> usize {
        self.words
    }

    pub(super) fn word(&self, row: HostNo, word: usize) -> u64 {
        self.bits[row.index() * self.words + word]
    }

    pub(super) fn has(&self, row: HostNo, bit: u32) -> bool {
        self.word(row, bit as usize / 64) >> (bit % 64) & 1 == 1
    }

    pub(super) fn set(&mut self, row: HostNo, bit: u32) {
        self.bits[row.index() * self.words + bit as usize / 64] |= 1 << (bit % 64);
    }

    pub(super) fn clear(&mut self, row: HostNo, bit: u32) {
        self.bits[row.index() * self.words + bit as usize / 64] &= !(1 << (bit % 64));
    }

    /// The bits of a row, in order.
    pub(super) fn iter(&self, row: HostNo) -> impl Iterator<Item = u32> + '_ {
        let row = &self.bits[row.index() * self.words..][..self.words];
        (0_u32..).zip(row).flat_map(|(word, bits)| ones(*bits).map(move |bit| word * 64 + bit))
    }
}

/// The places of the ones in a word.
pub(super) fn ones(mut bits: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let at = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (at < 64).then_some(at)
    })
}
