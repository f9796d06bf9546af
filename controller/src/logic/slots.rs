//! How many requests the data server works on at once, and whose.
//!
//! **What.** A request gets a slot if one is free and its agent has not more than a fair share of them: all slots when
//! it is alone, a part when others fetch too. Who gets none hears `Busy` at once, with a time to come back.
//! **Why not a queue.** Waiting requests would hold streams and hide the load from the asker, who may know another source.
//! **Invariants.** `slots_are_never_oversold`, `everybody_gets_a_slot_when_one_is_free`.

use std::collections::BTreeMap;

/// Slots and who has them.
#[derive(Debug)]
pub struct Slots<K> {
    max: usize,
    held: BTreeMap<K, usize>,
    /// Who was sent away with nothing, and until when a share is kept for it.
    waiting: BTreeMap<K, u64>,
    in_use: usize,
}

impl<K: Ord + Copy> Slots<K> {
    /// `max` slots.
    #[must_use]
    pub const fn new(max: usize) -> Self {
        Self { max, held: BTreeMap::new(), waiting: BTreeMap::new(), in_use: 0 }
    }

    /// Takes a slot for `asker` at `now_ms` (any clock that does not go back).
    ///
    /// # Errors
    /// Milliseconds after which the asker may try again; they grow with the number of askers.
    pub fn take(&mut self, asker: K, now_ms: u64) -> Result<(), u32> {
        self.waiting.retain(|_, until_ms| *until_ms > now_ms);
        let mine = self.held.get(&asker).copied().unwrap_or(0);
        let new = mine == 0 && !self.waiting.contains_key(&asker);
        let askers = self.held.len() + self.waiting.len() + usize::from(new);
        let share = (self.max / askers).max(1);
        if self.in_use >= self.max || mine >= share {
            let retry_ms = u32::try_from(askers).unwrap_or(u32::MAX).saturating_mul(20).clamp(100, 5000);
            if mine == 0 {
                self.waiting.insert(asker, now_ms + 2 * u64::from(retry_ms));
            }
            return Err(retry_ms);
        }
        self.waiting.remove(&asker);
        *self.held.entry(asker).or_default() += 1;
        self.in_use += 1;
        Ok(())
    }

    /// Gives a slot back.
    pub fn give_back(&mut self, asker: K) {
        if let Some(mine) = self.held.get_mut(&asker) {
            *mine -= 1;
            self.in_use -= 1;
            if *mine == 0 {
                self.held.remove(&asker);
            }
        }
    }

    /// Slots that are taken.
    #[must_use]
    pub const fn in_use(&self) -> usize {
        self.in_use
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_asker_alone_may_use_every_slot_until_another_comes() {
        let mut slots = Slots::new(16);
        assert!((0..16).all(|_| slots.take(1, 0).is_ok()));
        assert_eq!(slots.take(1, 0), Err(100));
        assert_eq!(slots.take(2, 0), Err(100));
        slots.give_back(1);
        assert_eq!(slots.take(1, 50), Err(100), "the place is kept for the newcomer");
        assert_eq!(slots.take(2, 100), Ok(()));
        slots.give_back(2);
        assert_eq!(slots.take(1, 1000), Ok(()), "alone again");
    }

    proptest! {
        #[test]
        fn slots_are_never_oversold(max in 1_usize..8, steps in proptest::collection::vec((0_u8..5, any::<bool>()), 0..100)) {
            let mut slots = Slots::new(max);
            let mut held = [0_usize; 5];
            for (now_ms, (asker, take)) in (0..).zip(steps) {
                let mine = &mut held[usize::from(asker)];
                if take {
                    let free = slots.in_use() < max;
                    let got = slots.take(asker, now_ms).is_ok();
                    // everybody_gets_a_slot_when_one_is_free: only who has some already may be refused.
                    prop_assert!(got || !free || *mine > 0);
                    *mine += usize::from(got);
                } else if *mine > 0 {
                    slots.give_back(asker);
                    *mine -= 1;
                }
                prop_assert_eq!(slots.in_use(), held.iter().sum::<usize>());
                prop_assert!(slots.in_use() <= max);
            }
        }
    }
}
