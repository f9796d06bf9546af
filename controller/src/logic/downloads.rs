//! Says which downloads are already in the log.
//!
//! **What.** Who took which file out is remembered for an hour after the log said so.
//!
//! **Why by time and not by place.** A download in sixteen parts, or one that goes on after a cut, is one; but whoever asks for
//! everything except the first byte has taken the file out too. So what counts is the first part, wherever it begins.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `the_first_part_is_told_and_the_others_of_its_hour_are_not`
//! 2. `the_memory_is_bounded`

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long the parts of a file count as one download.
const WINDOW: Duration = Duration::from_secs(3600);
/// Downloads that are remembered: about a megabyte.
const REMEMBERED_MAX: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub struct Downloads {
    told: HashMap<(String, String), Instant>,
}

impl Downloads {
    /// Whether the log said less than an hour before `now` that `who` takes the file with this SHA-256 out.
    #[must_use]
    pub fn is_told(&self, who: &str, sha256: &str, now: Instant) -> bool {
        self.told.get(&(who.to_owned(), sha256.to_owned())).is_some_and(|since| !is_over(*since, now))
    }

    /// Remembers that the log says so.
    pub fn told(&mut self, who: &str, sha256: &str, now: Instant) {
        if self.told.len() >= REMEMBERED_MAX {
            self.told.retain(|_, since| !is_over(*since, now));
        }
        // So many at once: all are told once more, which is better than one that is not.
        if self.told.len() >= REMEMBERED_MAX {
            self.told.clear();
        }
        self.told.insert((who.to_owned(), sha256.to_owned()), now);
    }
}

fn is_over(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn the_first_part_is_told_and_the_others_of_its_hour_are_not() {
        let (mut downloads, now) = (Downloads::default(), clock::monotonic());
        assert!(!downloads.is_told("alice", "aa", now));
        downloads.told("alice", "aa", now);
        assert!(downloads.is_told("alice", "aa", now + WINDOW - Duration::from_secs(1)));
        assert!(!downloads.is_told("bob", "aa", now) && !downloads.is_told("alice", "ab", now));
        assert!(!downloads.is_told("alice", "aa", now + WINDOW));
    }

    #[test]
    fn the_memory_is_bounded() {
        let (mut downloads, now) = (Downloads::default(), clock::monotonic());
        for n in 0..=REMEMBERED_MAX {
            downloads.told("alice", &n.to_string(), now);
        }
        assert!(downloads.told.len() <= REMEMBERED_MAX);
        assert!(downloads.is_told("alice", &REMEMBERED_MAX.to_string(), now));
    }
}
