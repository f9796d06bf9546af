//! How much of what is scarce one may hold, and for how long: places for uploads and exports, workers for fetches.
//!
//! **What.** [`most_of_one`] says how many of all places one project may hold, [`is_free`] whether there is one for it now,
//! [`wait_max`] how long a reader may keep an export waiting.
//! **Why half.** A sender or a source that is slow on purpose, or by nature, holds its place for as long as it likes. With half of
//! them taken by one, the others still get on; and who is alone loses little, as a few transfers fill a network.
//! **Invariants.** Of two places or more, who holds nothing gets one as long as one other alone holds any.

use core::time::Duration;

/// How long a reader that has taken nothing may keep its file waiting, in all.
const READER_PATIENCE: Duration = Duration::from_secs(60);
/// Least rate of a reader behind that, bytes per second (64 KiB/s): a tenth of what a telephone does. The largest files of lists
/// have some hundred megabytes.
const READER_BYTES_PER_S_MIN: u64 = 64 << 10;

/// How long a reader that was sent so many bytes may have kept its file waiting, in all.
#[must_use]
pub const fn wait_max(sent_bytes: u64) -> Duration {
    READER_PATIENCE.saturating_add(Duration::from_secs(sent_bytes / READER_BYTES_PER_S_MIN))
}

/// How many of `all` places one may hold.
#[must_use]
pub const fn most_of_one(all: usize) -> usize {
    if all < 2 { 1 } else { all / 2 }
}

/// Whether there is a place, with `taken` of `all` taken, for one that holds `own` of at most `each`.
#[must_use]
pub const fn is_free(taken: usize, all: usize, own: usize, each: usize) -> bool {
    taken < all && own < each
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_at_most_half_and_at_least_one() {
        for all in 1..100 {
            let most = most_of_one(all);
            assert!(most >= 1 && (2 * most <= all || most == 1), "{most} of {all}");
        }
        assert_eq!((most_of_one(4), most_of_one(16)), (2, 8));
    }

    #[test]
    fn a_reader_keeps_its_place_by_reading() {
        assert_eq!(wait_max(0), Duration::from_secs(60));
        assert_eq!(wait_max(64 << 20), Duration::from_secs(60 + 1024));
        assert!(wait_max(u64::MAX) > Duration::from_secs(1 << 40));
    }

    #[test]
    fn a_place_is_free_for_others_when_one_holds_its_share() {
        assert!(is_free(7, 16, 7, 8));
        assert!(!is_free(8, 16, 8, 8), "one has its share");
        assert!(is_free(8, 16, 0, 8), "another has not");
        assert!(!is_free(16, 16, 0, 8));
    }
}
