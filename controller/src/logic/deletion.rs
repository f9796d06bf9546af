//! What it means to delete an image, when the recycle bin lets go of it, and when its uploaded file may go.
//!
//! **What.** [`deletion`] reads a request to delete against the image's state; [`purge_before_us`] and [`destroyed_us`] are the
//! end of its days in the bin; [`is_original_over`] says which files a crash left behind.
//! **Why one function.** A single call, a batch and the command line must not differ in what "delete" does.
//! **Invariants.** `only_finished_images_go_into_the_bin`; `what_is_being_made_is_cancelled`; `both_ends_of_the_days_agree`;
//! `an_original_is_over_when_nothing_can_need_it`.

use hearth_protocol::words::ImageStatus;

/// Longest stay in the recycle bin, days: ten years are "for good".
pub const BIN_DAYS_MAX: u32 = 3650;
/// Microseconds of a day.
const DAY_US: i64 = 24 * 3600 * 1_000_000;

/// What is done to an image that somebody deletes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Deletion {
    /// Into the recycle bin.
    Bin,
    /// Gone at once.
    Destroy,
    /// It is still being made: its job ends, then it is gone.
    Cancel,
}

/// What a request to delete an image means; `None`: it lies in the recycle bin already. `now`: the caller wants it gone at
/// once; `bin_days` 0 means that for all.
#[must_use]
pub fn deletion(status: ImageStatus, now: bool, bin_days: u32) -> Option<Deletion> {
    match status {
        ImageStatus::Queued | ImageStatus::Saving | ImageStatus::Importing => Some(Deletion::Cancel),
        _ if now || bin_days == 0 => Some(Deletion::Destroy),
        ImageStatus::Active | ImageStatus::Deactivated | ImageStatus::Killed => Some(Deletion::Bin),
        ImageStatus::PendingDelete | ImageStatus::Deleted => None,
    }
}

/// What came into the bin at this time or before is destroyed now.
#[must_use]
pub fn purge_before_us(now_us: i64, bin_days: u32) -> i64 {
    now_us.saturating_sub(i64::from(bin_days).saturating_mul(DAY_US))
}

/// When what came into the bin at `binned_us` is destroyed.
#[must_use]
pub fn destroyed_us(binned_us: i64, bin_days: u32) -> i64 {
    binned_us.saturating_add(i64::from(bin_days).saturating_mul(DAY_US))
}

/// Whether the uploaded file of an image may go: nothing that can still happen to the image needs it. `status` is the state that it
/// has or had before it came into the bin.
#[must_use]
pub const fn is_original_over(status: ImageStatus, is_kept: bool, is_encrypted: bool) -> bool {
    match status {
        ImageStatus::Deleted => true,
        ImageStatus::Active | ImageStatus::Deactivated => !is_kept,
        // Its import can be tried again, unless the file must not lie here in the plain.
        ImageStatus::Killed => is_encrypted,
        ImageStatus::Queued | ImageStatus::Saving | ImageStatus::Importing | ImageStatus::PendingDelete => {
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_original_is_over_when_nothing_can_need_it() {
        for status in [ImageStatus::Active, ImageStatus::Deactivated] {
            assert!(is_original_over(status, false, false) && !is_original_over(status, true, false));
        }
        assert!(is_original_over(ImageStatus::Killed, false, true));
        assert!(!is_original_over(ImageStatus::Killed, false, false), "it can be tried again");
        assert!(is_original_over(ImageStatus::Deleted, true, false));
        for status in [ImageStatus::Queued, ImageStatus::Saving, ImageStatus::Importing] {
            assert!(!is_original_over(status, false, false) && !is_original_over(status, false, true));
        }
    }

    #[test]
    fn only_finished_images_go_into_the_bin() {
        for status in [ImageStatus::Active, ImageStatus::Deactivated, ImageStatus::Killed] {
            assert_eq!(deletion(status, false, 3), Some(Deletion::Bin));
            assert_eq!(deletion(status, true, 3), Some(Deletion::Destroy));
            assert_eq!(deletion(status, false, 0), Some(Deletion::Destroy), "no bin");
        }
        assert_eq!(deletion(ImageStatus::PendingDelete, false, 3), None);
        assert_eq!(deletion(ImageStatus::PendingDelete, true, 3), Some(Deletion::Destroy));
    }

    #[test]
    fn what_is_being_made_is_cancelled() {
        for status in [ImageStatus::Queued, ImageStatus::Saving, ImageStatus::Importing] {
            for (now, days) in [(false, 3), (true, 3), (false, 0)] {
                assert_eq!(deletion(status, now, days), Some(Deletion::Cancel));
            }
        }
    }

    #[test]
    fn both_ends_of_the_days_agree() {
        for days in [0, 1, 3, BIN_DAYS_MAX] {
            let end_us = destroyed_us(1_000, days);
            assert!(purge_before_us(end_us, days) >= 1_000 && purge_before_us(end_us - 1, days) < 1_000);
        }
    }
}
