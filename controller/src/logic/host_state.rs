//! The states of a host image: always the worst of its disks'.
//!
//! **What.** Of the catalog ([`status`]), of the copies at a location ([`entry_status`], [`worst_entry`]), of the prewarm jobs
//! that were made together ([`group_state`]).
//!
//! **Why not stored.** A second copy of a state is wrong whenever only the first one was written. The store asks
//! [`worse_than`] for the words of a filter, so that a list and what it shows cannot disagree.
//!
//! **Invariants.** `a_host_image_is_active_only_when_every_disk_is`, `a_group_has_not_ended_before_all_its_jobs_have`,
//! `the_order_of_disks_changes_nothing`.

use hearth_protocol::words::{EntryStatus, HostEntryStatus, HostImageStatus, ImageStatus, PrewarmState};

/// What a disk's image makes of its host image.
#[must_use]
pub const fn of_image(status: ImageStatus) -> HostImageStatus {
    match status {
        ImageStatus::Active => HostImageStatus::Active,
        ImageStatus::Deactivated => HostImageStatus::Deactivated,
        ImageStatus::Importing => HostImageStatus::Importing,
        ImageStatus::Saving => HostImageStatus::Saving,
        ImageStatus::Queued => HostImageStatus::Queued,
        ImageStatus::PendingDelete => HostImageStatus::PendingDelete,
        ImageStatus::Killed => HostImageStatus::Killed,
        ImageStatus::Deleted => HostImageStatus::Missing,
    }
}

/// The state of a host image with disks in these states: the worst, in the order of [`HostImageStatus`]. Without a disk it
/// is `missing`.
#[must_use]
pub fn status(disks: impl IntoIterator<Item = ImageStatus>) -> HostImageStatus {
    disks.into_iter().map(of_image).max().unwrap_or(HostImageStatus::Missing)
}

/// The states of images that make a host image exactly `status` (a disk has one of them), and those that make it worse
/// (no disk has one of them).
#[must_use]
pub fn worse_than(status: HostImageStatus) -> (Vec<ImageStatus>, Vec<ImageStatus>) {
    let all = ImageStatus::ALL.iter().copied();
    let (mut same, mut worse) = (Vec::new(), Vec::new());
    for word in all {
        match of_image(word).cmp(&status) {
            std::cmp::Ordering::Equal => same.push(word),
            std::cmp::Ordering::Greater => worse.push(word),
            std::cmp::Ordering::Less => {}
        }
    }
    (same, worse)
}

/// What one disk's entry makes of the host image at that location.
const fn of_entry(status: EntryStatus) -> HostEntryStatus {
    match status {
        EntryStatus::Active => HostEntryStatus::Active,
        EntryStatus::Verifying => HostEntryStatus::Verifying,
        EntryStatus::Caching => HostEntryStatus::Caching,
        EntryStatus::Queued => HostEntryStatus::Queued,
        EntryStatus::Deleting => HostEntryStatus::Deleting,
        EntryStatus::Stale => HostEntryStatus::Stale,
        EntryStatus::DeleteFailed => HostEntryStatus::DeleteFailed,
        EntryStatus::CacheFail => HostEntryStatus::CacheFail,
    }
}

/// The state of a host image of `disks` disks at a location where these entries are: the worst, and at least `partial` while
/// a disk has no entry.
#[must_use]
pub fn entry_status(entries: &[EntryStatus], disks: usize) -> HostEntryStatus {
    let worst = entries.iter().copied().map(of_entry).max().unwrap_or(HostEntryStatus::Partial);
    if entries.len() < disks { worst.max(HostEntryStatus::Partial) } else { worst }
}

/// The worst of entries of which every disk has one, in the word of an entry.
#[must_use]
pub fn worst_entry(entries: impl IntoIterator<Item = EntryStatus>) -> EntryStatus {
    entries.into_iter().max_by_key(|status| of_entry(*status)).unwrap_or(EntryStatus::Queued)
}

/// Worse is larger. What has not ended comes after all that has: a group goes on until its last job ends.
const fn rank(state: PrewarmState) -> u8 {
    match state {
        PrewarmState::Done => 0,
        PrewarmState::Cancelled => 1,
        PrewarmState::Failed => 2,
        PrewarmState::Running => 3,
        PrewarmState::Scheduled => 4,
        PrewarmState::Paused => 5,
    }
}

/// The state of a group of prewarm jobs. `done` means that every disk is at every location.
#[must_use]
pub fn group_state(jobs: impl IntoIterator<Item = PrewarmState>) -> PrewarmState {
    jobs.into_iter().max_by_key(|state| rank(*state)).unwrap_or(PrewarmState::Done)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// HI-3: the order of the states, as it is documented.
    #[test]
    fn the_worst_disk_decides() {
        use ImageStatus as S;
        let order = [
            S::Active,
            S::Deactivated,
            S::Importing,
            S::Saving,
            S::Queued,
            S::PendingDelete,
            S::Killed,
            S::Deleted,
        ];
        for (n, worst) in order.iter().enumerate() {
            for better in &order[..=n] {
                assert_eq!(status([*better, *worst, S::Active]), of_image(*worst));
            }
        }
        assert_eq!(of_image(S::Deleted), HostImageStatus::Missing);
        assert_eq!(status([]), HostImageStatus::Missing);
    }

    #[test]
    fn a_host_image_is_active_only_when_every_disk_is() {
        for word in ImageStatus::ALL {
            let whole = status([ImageStatus::Active, *word]);
            assert_eq!(whole == HostImageStatus::Active, *word == ImageStatus::Active);
        }
        for word in EntryStatus::ALL {
            let whole = entry_status(&[EntryStatus::Active, *word], 2);
            assert_eq!(whole == HostEntryStatus::Active, *word == EntryStatus::Active);
        }
    }

    #[test]
    fn a_disk_that_is_nowhere_makes_a_location_partial() {
        let check = |entries: &[EntryStatus], disks, expected| {
            assert_eq!(entry_status(entries, disks), expected, "{entries:?} of {disks}");
        };
        check(&[EntryStatus::Active], 2, HostEntryStatus::Partial);
        check(&[EntryStatus::Caching], 2, HostEntryStatus::Partial);
        check(&[EntryStatus::CacheFail], 2, HostEntryStatus::CacheFail);
        check(&[EntryStatus::Active, EntryStatus::Caching], 2, HostEntryStatus::Caching);
        check(&[], 2, HostEntryStatus::Partial);
        assert_eq!(worst_entry([EntryStatus::Active, EntryStatus::Queued]), EntryStatus::Queued);
    }

    #[test]
    fn a_group_has_not_ended_before_all_its_jobs_have() {
        use PrewarmState as P;
        for (jobs, expected) in [
            (vec![P::Done, P::Done], P::Done),
            (vec![P::Done, P::Cancelled], P::Cancelled),
            (vec![P::Failed, P::Cancelled], P::Failed),
            (vec![P::Failed, P::Running], P::Running),
            (vec![P::Running, P::Paused], P::Paused),
            (vec![P::Scheduled, P::Done], P::Scheduled),
        ] {
            assert_eq!(group_state(jobs.iter().copied()), expected, "{jobs:?}");
        }
    }

    proptest! {
        #[test]
        fn the_order_of_disks_changes_nothing(picks in proptest::collection::vec(0..ImageStatus::ALL.len(), 1..6)) {
            let disks: Vec<ImageStatus> = picks.iter().map(|n| ImageStatus::ALL[*n]).collect();
            let whole = status(disks.iter().copied());
            prop_assert_eq!(whole, status(disks.iter().rev().copied()));
            // The slow way: what the filter of a list says.
            for word in HostImageStatus::ALL {
                let (same, worse) = worse_than(*word);
                let has = |words: &[ImageStatus]| disks.iter().any(|disk| words.contains(disk));
                prop_assert_eq!(has(&same) && !has(&worse), whole == *word);
            }
        }
    }
}
