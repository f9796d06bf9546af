//! Bounds how often one address may try secrets that do not exist.
//!
//! **What.** Misses are counted per address and minute; after [`MISSES_MAX`] the address has to wait until its minute ends.
//!
//! **Why misses and not calls.** A download in sixteen parts makes many calls with a right secret; only wrong ones are
//! guesses. A secret of 256 bits is not found by guessing: what is protected is the database, which is asked each time.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `an_address_that_guesses_waits_and_others_do_not`
//! 2. `the_memory_is_bounded`

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Misses of one address in a minute.
pub const MISSES_MAX: u32 = 30;
/// The minute.
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are remembered: about half a megabyte.
const ADDRESSES_MAX: usize = 4096;

/// Where somebody calls from, as a number: the shell says which addresses are one.
pub type Place = u128;

/// Who missed how often.
#[derive(Debug, Default)]
pub struct Guesses {
    by_address: HashMap<Place, (Instant, u32)>,
}

impl Guesses {
    /// Whether `address` may try at `now`; else how long it has to wait.
    ///
    /// # Errors
    /// The time to wait.
    pub fn may_try(&self, address: Place, now: Instant) -> Result<(), Duration> {
        match self.by_address.get(&address) {
            Some((begun, misses)) if *misses >= MISSES_MAX => {
                let wait = WINDOW.saturating_sub(now.saturating_duration_since(*begun));
                if wait.is_zero() { Ok(()) } else { Err(wait) }
            }
            _ => Ok(()),
        }
    }

    /// Notes a miss.
    pub fn missed(&mut self, address: Place, now: Instant) {
        let over = |begun: &Instant| now.saturating_duration_since(*begun) >= WINDOW;
        if self.by_address.len() >= ADDRESSES_MAX && !self.by_address.contains_key(&address) {
            self.by_address.retain(|_, (begun, _)| !over(begun));
            // So many guessers at once: the oldest is let go, so that the newest is counted.
            if self.by_address.len() >= ADDRESSES_MAX {
                let oldest = self.by_address.iter().min_by_key(|(_, (begun, _))| *begun).map(|(who, _)| *who);
                oldest.map(|oldest| self.by_address.remove(&oldest));
            }
        }
        let entry = self.by_address.entry(address).or_insert((now, 0));
        if over(&entry.0) {
            *entry = (now, 0);
        }
        entry.1 = entry.1.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_guesses_waits_and_others_do_not() {
        let now = crate::clock::monotonic();
        let mut guesses = Guesses::default();
        for _ in 0..MISSES_MAX {
            assert_eq!(guesses.may_try(1, now), Ok(()));
            guesses.missed(1, now);
        }
        let later = now + Duration::from_secs(20);
        assert_eq!(guesses.may_try(1, later), Err(Duration::from_secs(40)));
        assert_eq!(guesses.may_try(2, later), Ok(()));
        let after = now + WINDOW;
        assert_eq!(guesses.may_try(1, after), Ok(()));
        guesses.missed(1, after);
        assert_eq!(guesses.may_try(1, after), Ok(()), "a new minute begins");
    }

    #[test]
    fn the_memory_is_bounded() {
        let now = crate::clock::monotonic();
        let mut guesses = Guesses::default();
        for n in 0..u64::try_from(ADDRESSES_MAX).unwrap() * 2 {
            guesses.missed(n.into(), now + Duration::from_millis(n));
        }
        assert_eq!(guesses.by_address.len(), ADDRESSES_MAX);
    }
}
