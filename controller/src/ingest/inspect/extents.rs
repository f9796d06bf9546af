//! Finds parts of a file that are claimed twice.
//!
//! **What.** [`ExtentSet`] collects `(start, length)` in 512-byte sectors and says whether any two overlap;
//! [`ClusterMap`] does the same for equal, aligned clusters with one bit each.
//!
//! **Why.** A file of 1 MiB that maps the same cluster again and again unpacks to 32 TiB. Such bombs
//! pass every header check; only the map shows them.
//!
//! **Invariants.** Memory is bounded: 8 bytes per extent up to [`MAX_EXTENTS`], one bit per cluster up to
//! [`MAX_CLUSTERS`].

/// Extents in one file. 16 million grains of 64 KiB are 1 TiB; protects the controller's memory (128 MiB).
pub(super) const MAX_EXTENTS: usize = 16 << 20;
/// Clusters in one file; protects the controller's memory (64 MiB per map).
pub(super) const MAX_CLUSTERS: u64 = 512 << 20;

const LENGTH_BITS: u32 = 24;
const LENGTH_MAX: u64 = (1 << LENGTH_BITS) - 1;

/// Extents of a file, in sectors.
#[derive(Debug, Default)]
pub(super) struct ExtentSet {
    packed: Vec<u64>, // start << 24 | length
}

impl ExtentSet {
    /// Adds an extent. `false` if it cannot be represented or there are too many.
    pub(super) fn add(&mut self, start_sector: u64, n_sectors: u64) -> bool {
        let fits = start_sector < 1 << (64 - LENGTH_BITS) && n_sectors <= LENGTH_MAX;
        if !fits || self.packed.len() >= MAX_EXTENTS {
            return false;
        }
        self.packed.push(start_sector << LENGTH_BITS | n_sectors);
        true
    }

    /// Sector where a second extent begins inside an earlier one.
    pub(super) fn overlap(mut self) -> Option<u64> {
        self.packed.sort_unstable();
        self.packed.windows(2).find_map(|pair| {
            let end = (pair[0] >> LENGTH_BITS) + (pair[0] & LENGTH_MAX);
            let next = pair[1] >> LENGTH_BITS;
            (next < end || pair[0] == pair[1]).then_some(next)
        })
    }
}

/// One bit per cluster of the file.
#[derive(Debug)]
pub(super) struct ClusterMap {
    words: Vec<u64>,
}

impl ClusterMap {
    /// A map of `n_clusters`, all free. `None` above [`MAX_CLUSTERS`].
    pub(super) fn new(n_clusters: u64) -> Option<Self> {
        if n_clusters > MAX_CLUSTERS {
            return None;
        }
        let n_words = usize::try_from(n_clusters.div_ceil(64)).ok()?;
        Some(Self { words: vec![0; n_words] })
    }

    /// Marks a cluster. `false` if it was marked before or lies outside the map.
    pub(super) fn claim(&mut self, cluster: u64) -> bool {
        let Some(word) = usize::try_from(cluster / 64).ok().and_then(|i| self.words.get_mut(i)) else {
            return false;
        };
        let bit = 1u64 << (cluster % 64);
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    /// First cluster marked in both maps.
    pub(super) fn common(&self, other: &Self) -> Option<u64> {
        let both = self.words.iter().zip(&other.words).enumerate().find(|(_, (a, b))| *a & *b != 0);
        both.map(|(i, (a, b))| i as u64 * 64 + u64::from((a & b).trailing_zeros()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(extents: &[(u64, u64)], overlap: Option<u64>) {
        let mut set = ExtentSet::default();
        for &(start, len) in extents {
            assert!(set.add(start, len));
        }
        assert_eq!(set.overlap(), overlap);
    }

    #[test]
    fn touching_extents_do_not_overlap() {
        check(&[(10, 5), (0, 10), (15, 1)], None);
    }

    #[test]
    fn shared_sectors_are_found_in_any_order() {
        check(&[(10, 5), (0, 11)], Some(10));
        check(&[(3, 1), (3, 1)], Some(3));
        check(&[(3, 0), (3, 0)], Some(3));
    }

    #[test]
    fn extents_that_cannot_be_packed_are_not_taken() {
        assert!(!ExtentSet::default().add(1 << 40, 1));
        assert!(!ExtentSet::default().add(0, 1 << 24));
    }

    #[test]
    fn a_cluster_is_claimed_once() {
        let mut map = ClusterMap::new(100).unwrap();
        assert!(map.claim(99) && !map.claim(99) && !map.claim(1 << 40));
        let mut other = ClusterMap::new(100).unwrap();
        assert!(other.claim(98));
        assert_eq!(map.common(&other), None);
        assert!(other.claim(99));
        assert_eq!(map.common(&other), Some(99));
        assert!(ClusterMap::new(MAX_CLUSTERS + 1).is_none());
    }
}
