//! How much of what is scarce one may hold: places for uploads and workers for fetches.
//!
//! **What.** [`most_of_one`] says how many of all places one project may hold, [`is_free`] whether there is one for it now.
//! **Why half.** A sender or a source that is slow on purpose, or by nature, holds its place for as long as it likes. With half of
//! them taken by one, the others still get on; and who is alone loses little, as a few transfers fill a network.
//! **Invariants.** Of two places or more, who holds nothing gets one as long as one other alone holds any.

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
    fn a_place_is_free_for_others_when_one_holds_its_share() {
        assert!(is_free(7, 16, 7, 8));
        assert!(!is_free(8, 16, 8, 8), "one has its share");
        assert!(is_free(8, 16, 0, 8), "another has not");
        assert!(!is_free(16, 16, 0, 8));
    }
}
