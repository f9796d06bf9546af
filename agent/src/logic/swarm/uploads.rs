//! Whom this host serves next.
//!
//! **What.** A few slots, a queue of those who ask for what is here, and those who wait for a piece that is on its way here.
//! **Why a queue and not only slots.** A free slot must find somebody at once: what waits here is what keeps the uplink busy
//! while reports and leases travel.
//! **Why somebody may wait for a piece that is not even expected.** His lease and ours travel apart; ours may come later.
//! **Why its length is bounded.** Who would wait longer than a lease is valid had better ask somebody else: `Busy`, at once.
//! **Why half of the slots, and the last one free.** One who asks for much and reads slowly must not keep the others out.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `no_more_than_the_slots_are_served_at_once`.
//! 2. `who_asked_first_is_served_first`.
//! 3. `a_full_server_says_so_at_once`.
//! 4. `one_asker_never_has_all_slots`, and half of them while others wait.
//! 5. `who_waits_for_a_piece_is_served_when_it_begins_to_come`.

use std::collections::VecDeque;

/// Most requests that wait, ready or not; protects memory, and askers from waiting in vain.
pub const WAITING_MAX: usize = 256;
/// How long a request may wait for a piece of which nothing is known here, ms: leases travel for a quarter of a second.
pub const UNKNOWN_MS: u64 = 1000;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// It waits; [`Uploads::next`] names it in its turn.
    Waits,
    /// Too many wait.
    Busy,
}

/// A request: who asks, and for which piece. `K` names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Request<K> {
    key: K,
    piece: u32,
    asked_ms: u64,
}

/// See the module. One per content: pieces are known by their number alone.
#[derive(Clone, Debug)]
pub struct Uploads<K> {
    slots: usize,
    serving: Vec<K>,
    ready: VecDeque<Request<K>>,
    expecting: Vec<Request<K>>,
}

impl<K: Copy + Eq> Uploads<K> {
    /// A server with so many slots.
    #[must_use]
    pub const fn new(slots: usize) -> Self {
        Self { slots, serving: Vec::new(), ready: VecDeque::new(), expecting: Vec::new() }
    }

    /// Somebody asks for a piece; `is_here`: whole, or its first chunks.
    pub fn ask(&mut self, key: K, piece: u32, is_here: bool, now_ms: u64) -> Answer {
        if self.ready.len() + self.expecting.len() >= WAITING_MAX {
            return Answer::Busy;
        }
        let request = Request { key, piece, asked_ms: now_ms };
        if is_here {
            self.ready.push_back(request);
        } else {
            self.expecting.push(request);
        }
        Answer::Waits
    }

    /// Those who have waited long enough for pieces that are still not expected, to be told.
    pub fn missing(&mut self, expects: impl Fn(u32) -> bool, now_ms: u64) -> Vec<(K, u32)> {
        let is_missing =
            |request: &Request<K>| request.asked_ms + UNKNOWN_MS <= now_ms && !expects(request.piece);
        let missing = self.expecting.iter().filter(|request| is_missing(request));
        let missing: Vec<(K, u32)> = missing.map(|request| (request.key, request.piece)).collect();
        self.expecting.retain(|request| !is_missing(request));
        missing
    }

    /// The first chunks of a piece are here.
    pub fn piece_begins(&mut self, piece: u32) {
        let ready = &mut self.ready;
        self.expecting.retain(|request| {
            let is_ready = request.piece == piece;
            if is_ready {
                ready.push_back(*request);
            }
            !is_ready
        });
    }

    /// A piece will not come: those who wait for it are named, to be told.
    pub fn piece_fails(&mut self, piece: u32) -> Vec<K> {
        let (failed, rest) = std::mem::take(&mut self.expecting).into_iter().partition(|r| r.piece == piece);
        self.expecting = rest;
        let failed: Vec<Request<K>> = failed;
        failed.into_iter().map(|request| request.key).collect()
    }

    /// Who is offered a slot now, and for which piece; `None` if no slot is free or nobody is ready. The slot is taken until
    /// [`Uploads::ended`]. `accepts` says whether the asker still wants it, where that is known without asking; `is_same`,
    /// whether two requests are of one asker.
    pub fn next(
        &mut self,
        mut accepts: impl FnMut(K, u32) -> Wish,
        is_same: impl Fn(K, K) -> bool,
    ) -> Option<(K, u32)> {
        if self.serving.len() >= self.slots {
            return None;
        }
        let (mut at, mut second_best) = (0, None);
        while at < self.ready.len() {
            let Request { key, piece, .. } = self.ready[at];
            match accepts(key, piece) {
                Wish::Now => {
                    let n_served = self.serving.iter().filter(|other| is_same(key, **other)).count();
                    if 2 * n_served < self.slots {
                        return self.begin(at);
                    }
                    second_best.get_or_insert(at);
                    at += 1;
                }
                Wish::Later => at += 1,
                Wish::Never => {
                    self.ready.remove(at);
                }
            }
        }
        // Whoever comes next finds a slot.
        second_best.filter(|_| self.serving.len() + 1 < self.slots).and_then(|at| self.begin(at))
    }

    fn begin(&mut self, at: usize) -> Option<(K, u32)> {
        let Request { key, piece, .. } = self.ready.remove(at)?;
        self.serving.push(key);
        Some((key, piece))
    }

    /// A transfer ended, or an offer was declined: its slot is free.
    pub fn ended(&mut self, key: K) {
        self.serving.retain(|serving| *serving != key);
    }

    /// Forgets requests of askers that have gone.
    pub fn retain(&mut self, mut waits: impl FnMut(K) -> bool) {
        self.ready.retain(|request| waits(request.key));
        self.expecting.retain(|request| waits(request.key));
    }

    /// Requests that wait.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.ready.len() + self.expecting.len()
    }
}

/// Whether an asker still wants a piece.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wish {
    /// Yes.
    Now,
    /// It takes as much as it can already.
    Later,
    /// It has it, or gets it from somebody else.
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(slots: usize, n: u32) -> Uploads<u32> {
        let mut uploads = Uploads::new(slots);
        (0..n).for_each(|key| assert_eq!(uploads.ask(key, key, true, 0), Answer::Waits));
        uploads
    }

    fn next(uploads: &mut Uploads<u32>) -> Option<u32> {
        // The last digit names the asker.
        let is_same = |one: u32, other: u32| one % 10 == other % 10;
        uploads.next(|_, _| Wish::Now, is_same).map(|(key, _)| key)
    }

    #[test]
    fn no_more_than_the_slots_are_served_at_once() {
        let mut uploads = asked(2, 5);
        assert_eq!([next(&mut uploads), next(&mut uploads), next(&mut uploads)], [Some(0), Some(1), None]);
        uploads.ended(0);
        assert_eq!([next(&mut uploads), next(&mut uploads)], [Some(2), None]);
    }

    #[test]
    fn who_asked_first_is_served_first() {
        let mut uploads = asked(1, 4);
        let mut seen = Vec::new();
        let wish = |key, _| if key == 1 { Wish::Never } else { Wish::Now };
        while let Some((key, _)) = uploads.next(wish, |_, _| false) {
            seen.push(key);
            uploads.ended(key);
        }
        assert_eq!(seen, [0, 2, 3]);
        let mut uploads = asked(1, 2);
        let wish = |key, _| if key == 0 { Wish::Later } else { Wish::Now };
        assert_eq!(uploads.next(wish, |_, _| false), Some((1, 1)));
        uploads.ended(1);
        assert_eq!(next(&mut uploads), Some(0), "who could not take it keeps its place");
    }

    #[test]
    fn one_asker_never_has_all_slots() {
        let mut uploads = Uploads::new(4);
        [10, 20, 30, 40, 11]
            .into_iter()
            .for_each(|key| assert_eq!(uploads.ask(key, key, true, 0), Answer::Waits));
        let all: Vec<_> = std::iter::from_fn(|| next(&mut uploads)).collect();
        assert_eq!(all, [10, 20, 11], "who else is there goes first");
        uploads.ask(12, 9, true, 0);
        assert_eq!(next(&mut uploads), Some(12), "a newcomer finds a slot");
    }

    #[test]
    fn a_full_server_says_so_at_once() {
        let mut uploads = asked(1, u32::try_from(WAITING_MAX).unwrap());
        assert_eq!(uploads.ask(9999, 0, true, 0), Answer::Busy);
        next(&mut uploads);
        assert_eq!(uploads.ask(9999, 0, false, 0), Answer::Waits);
    }

    #[test]
    fn who_waits_for_a_piece_is_served_when_it_begins_to_come() {
        let mut uploads = Uploads::new(4);
        uploads.ask(1, 7, false, 0);
        uploads.ask(2, 8, false, 0);
        assert_eq!(next(&mut uploads), None);
        uploads.piece_begins(7);
        assert_eq!(next(&mut uploads), Some(1));
        assert_eq!(uploads.missing(|piece| piece == 8, UNKNOWN_MS), vec![], "it is expected");
        assert_eq!(uploads.missing(|_| false, UNKNOWN_MS - 1), vec![], "our lease may be on its way");
        assert_eq!(uploads.missing(|_| false, UNKNOWN_MS), vec![(2, 8)]);
        uploads.ask(3, 9, false, 0);
        assert_eq!((uploads.piece_fails(9), uploads.n_waiting()), (vec![3], 0));
    }
}
