//! Finds chunks that stand more than once in a content, so that each comes over the wire once.
//!
//! **What.** [`repeats`] takes the chunks of a window by the first bytes of their digests and pairs every needed one with
//! another that is there already, or that will be fetched.
//! **Why a window and a prefix.** A content may have 33 million chunks; sixteen bytes for each of a million of them are
//! sorted at a time. A pair is a hint: whoever copies hashes the bytes first, so two digests with one prefix cost a fetch.
//! **Invariants**, each tested: `of_equal_chunks_one_is_fetched`, `what_is_there_is_never_paired`.

/// Chunks that are looked at together: bounds memory to 16 MiB. A chunk that repeats at a greater distance (64 GiB of
/// chunks) is fetched again.
pub const WINDOW_CHUNKS: u32 = 1 << 20;
/// Pairs that are kept for one content: bounds memory to 32 MiB. Further repetitions are fetched.
pub const REPEATS_MAX: usize = 4 << 20;

/// A needed chunk, and another with the same bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Repeat {
    /// The chunk that need not be fetched.
    pub chunk: u32,
    /// The one that it can be copied from.
    pub of: u32,
}

/// Pairs the needed chunks of a window. `window`: (digest prefix, chunk) of every chunk in it; it is sorted here.
pub fn repeats(window: &mut [(u64, u32)], is_needed: impl Fn(u32) -> bool) -> Vec<Repeat> {
    // What is there already comes first in its group, then what is fetched first.
    window.sort_unstable_by_key(|(prefix, chunk)| (*prefix, is_needed(*chunk), *chunk));
    let mut found = Vec::new();
    for same in window.chunk_by(|a, b| a.0 == b.0) {
        let Some(((_, of), others)) = same.split_first() else { continue };
        let needed = others.iter().filter(|(_, chunk)| is_needed(*chunk));
        found.extend(needed.map(|(_, chunk)| Repeat { chunk: *chunk, of: *of }));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn of_equal_chunks_one_is_fetched(keys in proptest::collection::vec((0_u64..9, any::<bool>()), 0..60)) {
            let mut window: Vec<(u64, u32)> = keys.iter().map(|(key, _)| *key).zip(0..).collect();
            let needed = |chunk: u32| keys[chunk as usize].1;
            let found = repeats(&mut window, needed);
            let paired: BTreeMap<u32, u32> = found.iter().map(|repeat| (repeat.chunk, repeat.of)).collect();
            prop_assert_eq!(paired.len(), found.len(), "nothing is paired twice");
            let (mut there, mut fetched) = (BTreeSet::new(), BTreeSet::new());
            for ((key, needed), chunk) in keys.iter().zip(0_u32..) {
                match (needed, paired.get(&chunk)) {
                    (false, of) => {
                        // what_is_there_is_never_paired
                        prop_assert_eq!(of, None);
                        there.insert(*key);
                    }
                    (true, Some(of)) => {
                        prop_assert_eq!(keys[*of as usize].0, *key);
                        prop_assert!(!paired.contains_key(of), "its bytes come by themselves");
                    }
                    (true, None) => prop_assert!(fetched.insert(*key), "fetched twice"),
                }
            }
            prop_assert!(there.is_disjoint(&fetched));
        }
    }
}
