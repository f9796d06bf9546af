//! Places for what may run only so often at once, of which nobody gets all.
//!
//! **What.** [`Places::take`] gives a [`Held`] place, which is free again when it is dropped.
//! **Why not a semaphore.** It counts, but does not know for whom: one who holds on to what they got would keep all others out.
//! **Invariants.** At most `all` places are held, and at most `each` by one. Who has no name is bound by the first alone.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use crate::logic::fair::is_free;

/// The places. All clones are one.
#[derive(Clone, Debug)]
pub struct Places<K> {
    all: usize,
    each: usize,
    held: Arc<Mutex<HashMap<Option<K>, usize>>>,
}

/// A place; free again when dropped.
#[derive(Debug)]
pub struct Held<K: Eq + Hash> {
    places: Places<K>,
    who: Option<K>,
}

impl<K: Eq + Hash + Clone> Places<K> {
    /// `all` places, at most `each` of them for one.
    #[must_use]
    pub fn new(all: usize, each: usize) -> Self {
        Self { all, each, held: Arc::default() }
    }

    /// A place for `who`, if there is one.
    #[must_use]
    pub fn take(&self, who: Option<K>) -> Option<Held<K>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = held.values().sum();
        let own = if who.is_some() { held.get(&who).copied().unwrap_or(0) } else { 0 };
        if !is_free(taken, self.all, own, self.each) {
            return None;
        }
        *held.entry(who.clone()).or_default() += 1;
        Some(Held { places: self.clone(), who })
    }
}

impl<K: Eq + Hash> Drop for Held<K> {
    fn drop(&mut self) {
        let mut held = self.places.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.get_mut(&self.who) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_all_places_and_they_come_back() {
        let places = Places::new(4, 2);
        let mine: Vec<_> = (0..2).map(|_| places.take(Some("a")).unwrap()).collect();
        assert!(places.take(Some("a")).is_none());
        let other = places.take(Some("b")).unwrap();
        let nameless = places.take(None).unwrap();
        assert!(places.take(Some("c")).is_none() && places.take(None).is_none(), "all are held");
        drop((mine, other, nameless));
        assert_eq!(places.held.lock().unwrap().len(), 0);
        assert_eq!((0..9).map_while(|_| places.take(None)).collect::<Vec<_>>().len(), 4);
    }
}
