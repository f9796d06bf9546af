//! What is going to happen, by time.
//!
//! **Invariants.** What comes first is taken first, and of what comes at once, what was put first: the order does not depend on
//! anything but the calls.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A queue of events at times.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    /// Time, number, place in `events`.
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<E>>,
    free: Vec<usize>,
    n_put: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), n_put: 0 }
    }
}

impl<E> Queue<E> {
    /// Puts an event at a time.
    pub(crate) fn put(&mut self, at: u64, event: E) {
        self.n_put += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(event);
        self.heap.push(Reverse((at, self.n_put, place)));
    }

    /// Takes the next event, with its time and its number.
    pub(crate) fn next(&mut self) -> Option<(u64, u64, E)> {
        let Reverse((at, number, place)) = self.heap.pop()?;
        let event = self.events[place].take().expect("a place is freed when its event is taken");
        self.free.push(place);
        Some((at, number, event))
    }
}
