//! Decides what to do about one file in `objects/` while the agent runs.
//!
//! **What.** [`verdict`] compares what the store knows about a content with what stands on disk.
//! **Why the file never wins by itself.** A file that appeared or changed says nothing about its bytes, so it is hashed
//! before anybody gets it; only a file that nobody can check, because it has no manifest, is put away.
//! **Invariants**, each tested: `only_an_unchanged_file_of_an_active_entry_stays_active`,
//! `what_is_being_written_or_removed_is_left_alone`, `nothing_is_put_away_that_the_store_knows`.

use super::entry::Phase;

/// What the store knows about a content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    /// It has no file, or knows of none.
    NoFile,
    /// A transfer or a removal is at work on it.
    Moving,
    /// Hashed and handed out.
    Active,
    /// It has a file that is not handed out.
    Waiting,
}

/// What stands on disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Seen {
    /// Nothing.
    Missing,
    /// Not a plain file, or one that no manifest describes.
    Foreign,
    /// A plain file with its manifest.
    File {
        /// It is the very file that was hashed, as far as size, mode, inode and modification time say.
        unchanged: bool,
    },
}

/// What follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Nothing.
    Leave,
    /// It is not handed out again before it was hashed.
    Recheck,
    /// It becomes an entry that is hashed before it is handed out.
    Adopt,
    /// It is moved out of `objects/`.
    PutAway,
    /// The entry has lost its file.
    Lost,
}

impl Known {
    /// What an entry in this phase means; `None`: there is no entry. `at_work`: a transfer runs.
    #[must_use]
    pub const fn of(phase: Option<&Phase>, at_work: bool) -> Self {
        match phase {
            _ if at_work => Self::Moving,
            None | Some(Phase::Queued | Phase::Failed { .. }) => Self::NoFile,
            Some(Phase::Caching | Phase::Sealing | Phase::Deleting) => Self::Moving,
            Some(Phase::Active) => Self::Active,
            Some(Phase::Unverified | Phase::Damaged { .. } | Phase::DeleteFailed { .. }) => Self::Waiting,
        }
    }
}

/// What to do.
#[must_use]
pub const fn verdict(known: Known, seen: Seen) -> Verdict {
    match (known, seen) {
        (Known::Active | Known::Waiting, Seen::Missing) => Verdict::Lost,
        (Known::Active, Seen::Foreign | Seen::File { unchanged: false }) => Verdict::Recheck,
        (Known::NoFile, Seen::Foreign) => Verdict::PutAway,
        (Known::NoFile, Seen::File { .. }) => Verdict::Adopt,
        // What waits is hashed, or put away with its damage, when its turn comes.
        (Known::Moving, _)
        | (Known::Waiting, _)
        | (Known::Active, Seen::File { unchanged: true })
        | (Known::NoFile, Seen::Missing) => Verdict::Leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [Known; 4] = [Known::NoFile, Known::Moving, Known::Active, Known::Waiting];
    const SEEN: [Seen; 4] =
        [Seen::Missing, Seen::Foreign, Seen::File { unchanged: false }, Seen::File { unchanged: true }];

    #[test]
    fn only_an_unchanged_file_of_an_active_entry_stays_active() {
        let left: Vec<Seen> =
            SEEN.into_iter().filter(|seen| verdict(Known::Active, *seen) == Verdict::Leave).collect();
        assert_eq!(left, [Seen::File { unchanged: true }]);
    }

    #[test]
    fn what_is_being_written_or_removed_is_left_alone() {
        for seen in SEEN {
            assert_eq!(verdict(Known::Moving, seen), Verdict::Leave, "{seen:?}");
        }
        assert_eq!(Known::of(Some(&Phase::Queued), true), Known::Moving);
        assert_eq!(Known::of(Some(&Phase::Deleting), false), Known::Moving);
    }

    #[test]
    fn nothing_is_put_away_that_the_store_knows() {
        for known in KNOWN {
            for seen in SEEN {
                let put_away = verdict(known, seen) == Verdict::PutAway;
                assert_eq!(put_away, known == Known::NoFile && seen == Seen::Foreign, "{known:?} {seen:?}");
            }
        }
    }

    #[test]
    fn a_file_that_appeared_is_hashed_first_and_one_that_vanished_is_lost() {
        assert_eq!(verdict(Known::NoFile, Seen::File { unchanged: true }), Verdict::Adopt);
        for known in [Known::Active, Known::Waiting] {
            assert_eq!(verdict(known, Seen::Missing), Verdict::Lost, "{known:?}");
        }
    }
}
