//! Decides where chunks end. Pure.
//!
//! **What.** For disks: blocks of 4 KiB; a chunk ends after a block whose mark says so, after 64 blocks, and before a
//! block of zeros. For files: every 64 KiB.
//!
//! **Why block-aligned and content-defined.** On a rebuilt image fixed chunks share nothing with the previous build and
//! this cut half to two thirds, as much as byte-wise cutters; and every boundary is a guest block, so hosts write and
//! reflink in place. The marks come from xxh3, five times faster than BLAKE3; integrity rests on the chunk's BLAKE3.
//!
//! **Invariants**, each tested: the cut depends on the bytes alone, not on how they are read; no chunk holds a zero block;
//! every chunk but the last has whole blocks. The rule is `Chunker::BlockMark13`: changing it needs a new number.

use hearth_protocol::manifest::{BLOCK_BYTES, CHUNK_BYTES_MAX, FILE_CHUNK_BYTES};
use hearth_protocol::words::ContentKind;
use xxhash_rust::xxh3::xxh3_64;

use crate::content::is_zero;

/// Length of a block in memory.
pub(super) const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_BYTES, "the manifest's blocks are the cutter's");
/// One block in 13 ends a chunk: with at least 4 blocks the average is 64.5 KiB.
const ONE_IN: u64 = 13;
/// A chunk shorter than this ends only at zeros or at the end.
const BLOCKS_MIN: usize = 4;
const BLOCKS_MAX: usize = CHUNK_BYTES_MAX as usize / BLOCK;

/// What to do with a block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// It belongs to the open chunk, which goes on.
    Grow,
    /// It is the last block of the open chunk.
    End,
    /// It is zero: the open chunk, if any, ended before it.
    Zero,
}

/// Where the open chunk stands.
#[derive(Debug)]
pub(super) struct Cutter {
    kind: ContentKind,
    open_blocks: usize,
}

impl Cutter {
    pub(super) const fn new(kind: ContentKind) -> Self {
        Self { kind, open_blocks: 0 }
    }

    /// Takes the next block; only the content's last one may be shorter than [`BLOCK`].
    pub(super) fn step(&mut self, block: &[u8]) -> Step {
        let step = match self.kind {
            ContentKind::Disk if is_zero(block) => Step::Zero,
            ContentKind::Disk => {
                let n = self.open_blocks + 1;
                if n >= BLOCKS_MAX || (n >= BLOCKS_MIN && is_marked(block)) { Step::End } else { Step::Grow }
            }
            ContentKind::File if (self.open_blocks + 1) * BLOCK == FILE_CHUNK_BYTES as usize => Step::End,
            ContentKind::File => Step::Grow,
        };
        self.open_blocks = if step == Step::Grow { self.open_blocks + 1 } else { 0 };
        step
    }

    /// A hole was skipped: the open chunk ends.
    pub(super) fn hole(&mut self) {
        self.open_blocks = 0;
    }
}

/// Low 32 bits of xxh3-64 below 2³²/13.
fn is_marked(block: &[u8]) -> bool {
    let mark = xxh3_64(block) & u64::from(u32::MAX);
    mark * ONE_IN < 1 << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_are_found() {
        let mut block = [0u8; BLOCK];
        assert!(is_zero(&block) && is_zero(&block[..100]) && is_zero(&[]));
        for at in [0, 15, 16, 511, 528, BLOCK - 1] {
            block[at] = 1;
            assert!(!is_zero(&block), "byte {at}");
            block[at] = 0;
        }
    }

    #[test]
    fn one_block_in_thirteen_is_marked() {
        let marked = (0..130_000u32).filter(|n| is_marked(&n.to_le_bytes())).count();
        assert!((9_500..10_500).contains(&marked), "{marked}");
    }

    #[test]
    fn a_disk_chunk_has_4_to_64_blocks_unless_zeros_or_the_end_cut_it() {
        let mut cutter = Cutter::new(ContentKind::Disk);
        let (mut open, mut lengths) = (0, Vec::new());
        for n in 0..100_000u32 {
            let block = [n.to_le_bytes(), [7; 4]].concat();
            open += 1;
            if cutter.step(&block) == Step::End {
                lengths.push(open);
                open = 0;
            }
        }
        let average = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        assert!(
            lengths.iter().all(|n| (BLOCKS_MIN..=BLOCKS_MAX).contains(n)) && lengths.contains(&BLOCKS_MAX)
        );
        assert!((15.0..17.0).contains(&average), "{average}");
    }

    #[test]
    fn equal_blocks_without_a_mark_end_after_64() {
        let block = (0u8..).map(|n| [n; BLOCK]).find(|block| !is_marked(block) && !is_zero(block)).unwrap();
        let mut cutter = Cutter::new(ContentKind::Disk);
        for _ in 0..3 {
            assert!((0..BLOCKS_MAX - 1).all(|_| cutter.step(&block) == Step::Grow));
            assert_eq!(cutter.step(&block), Step::End);
        }
        assert_eq!(cutter.step(&block), Step::Grow);
        assert_eq!(cutter.step(&[0; BLOCK]), Step::Zero);
        assert!((0..BLOCKS_MAX - 1).all(|_| cutter.step(&block) == Step::Grow));
    }

    #[test]
    fn a_file_is_cut_every_64_kib_zeros_or_not() {
        let mut cutter = Cutter::new(ContentKind::File);
        for _ in 0..3 {
            assert!((0..15).all(|_| cutter.step(&[0; BLOCK]) == Step::Grow));
            assert_eq!(cutter.step(&[0; BLOCK]), Step::End);
        }
    }
}
