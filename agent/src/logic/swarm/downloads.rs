//! Following leases: whom to ask, whose offer to take, what to say to the controller.
//!
//! ```text
//!  lease ─▶ asked (up to three holders) ─ offer taken ─▶ receiving ─▶ whole ─▶ reported
//!              │ ▲                                          │
//!              │ └───────── broken, stalled: others ◀───────┘
//!              └─ expired, nobody has it ─▶ reported as failed
//! ```
//! **What.** One [`Downloads`] per content. It keeps no bytes: the shell opens streams, and tells how each ended.
//! **Why one file.** Each way in which a request ends changes the same table of leases; a third of the file are its tests.
//! **Why reports are held back.** A report per piece would be 300,000 messages a second for ten thousand hosts; the first
//! piece after a pause is reported at once, because a new swarm grows as fast as news of it.
//!
//! **Invariants**, each with a test of the same name:
//! 1. `a_piece_comes_from_one_holder_at_a_time`, but for the last few, which may be hedged.
//! 2. `a_broken_transfer_goes_on_with_the_others`.
//! 3. `nothing_is_forgotten`: each lease ends as finished, failed or expired.
//! 4. `reports_are_batched_but_the_first_is_not`.

use super::uploads::Wish;

/// Holders named in a lease.
pub const HOLDERS_MAX: usize = 3;
/// Least time between two reports, ms.
pub const REPORT_EVERY_MS: u64 = 200;
/// A transfer without a byte for this long is given up, ms.
pub const STALL_MS: u64 = 1000;
/// The same from a holder that has not all of the piece itself, ms: it needs time to give its own supplier up first, or a
/// whole chain would break at once and everybody blame the next.
pub const STALL_PASSED_ON_MS: u64 = 2500;
/// The last part of all pieces that may be fetched twice at once: one in this many.
const HEDGED_PART: u32 = 50;
/// A transfer is given up after this many times the validity of a lease, whatever comes.
const VALIDITIES_MAX: u64 = 4;
/// A transfer that takes this many times as long as the usual one is hedged.
const HEDGE_AFTER: u64 = 3;

/// Most transfers at once into a host (simulated with lines that take twice what a host sends: more share the line among pieces
/// that nobody can pass on whole).
pub const WINDOW_MAX: usize = 8;

/// Transfers at once into a host that serves `slots` others with `upload` bytes per second and takes `download`: as many as fill
/// its line, if others send as it does. With more, hosts whose line is full hold slots that would fill the lines of others: 32
/// hosts that send as fast as they take needed 1.43 times the bound with 4, 1.51 with 6, 1.53 with 8 (measured once each).
#[must_use]
pub fn window(slots: usize, upload: u64, download: u64) -> usize {
    let fill = (slots as u64).saturating_mul(download) / upload.max(1);
    usize::try_from(fill).unwrap_or(WINDOW_MAX).clamp(slots.min(WINDOW_MAX), WINDOW_MAX)
}

/// A piece to fetch from one of some holders.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lease<P> {
    /// The piece.
    pub piece: u32,
    /// Who has it or will, the best first.
    pub holders: [Option<P>; HOLDERS_MAX],
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// Every chunk that was asked for is verified.
    Whole,
    /// The stream broke or stalled, or the connection is gone.
    Broken,
    /// The lease expired before the holder offered anything, or its own supplier failed it.
    Late,
    /// The holder has no place for us.
    Busy,
    /// The holder does not have it.
    Missing,
    /// A chunk failed its hash, or the holder broke the protocol.
    Wrong,
}

/// A holder that did not give a piece.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failed<P> {
    /// The piece.
    pub piece: u32,
    /// Who.
    pub from: P,
    /// How.
    pub how: Ended,
    /// Nobody else named in the lease is left.
    pub is_last: bool,
}

/// News for the controller.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report<P> {
    /// Pieces that are whole now, and who sent them; nobody if they were here already.
    pub finished: Vec<(u32, Option<P>)>,
    /// What failed.
    pub failed: Vec<Failed<P>>,
}

#[derive(Clone, Debug)]
struct UnderWay<P> {
    piece: u32,
    /// Who was asked and has not said no.
    holders: [Option<P>; HOLDERS_MAX],
    receiving: [Option<Receiving<P>>; 2],
    is_hedged: bool,
    expires_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Receiving<P> {
    from: P,
    began_ms: u64,
    last_byte_ms: u64,
    stall_ms: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Downloads<P> {
    /// Transfers at once.
    window: usize,
    validity_ms: u64,
    n_pieces: u32,
    n_left: u32,
    under_way: Vec<UnderWay<P>>,
    n_receiving: usize,
    report: Report<P>,
    reported_ms: Option<u64>,
    /// Usual time of a transfer, ms; 0: not known yet.
    usual_ms: u64,
}

impl<P: Copy + Eq> Downloads<P> {
    /// Downloads of a content of `n_pieces`, of which `n_left` are missing; at most `window` transfers at once. Leases are
    /// valid for `validity_ms`.
    #[must_use]
    pub const fn new(window: usize, validity_ms: u64, n_pieces: u32, n_left: u32) -> Self {
        let report = Report { finished: Vec::new(), failed: Vec::new() };
        let under_way = Vec::new();
        Self {
            window,
            validity_ms,
            n_pieces,
            n_left,
            under_way,
            n_receiving: 0,
            report,
            reported_ms: None,
            usual_ms: 0,
        }
    }

    /// Takes a lease on a piece that is not here; returns whom to ask now. A second lease on a piece adds its holders: those
    /// of the first may be gone.
    pub fn take(&mut self, lease: Lease<P>, now_ms: u64) -> Vec<P> {
        let Lease { piece, holders } = lease;
        let expires_ms = now_ms + self.validity_ms;
        let Some(at) = self.find(piece) else {
            let receiving = [None; 2];
            self.under_way.push(UnderWay { piece, holders, receiving, is_hedged: false, expires_ms });
            return holders.into_iter().flatten().collect();
        };
        let this = &mut self.under_way[at];
        this.expires_ms = expires_ms;
        let known = this.holders;
        let is_new = |holder: &P| !known.contains(&Some(*holder));
        let fresh: Vec<P> = holders.into_iter().flatten().filter(is_new).collect();
        let receiving = this.receiving.map(|receiving| receiving.map(|receiving| receiving.from));
        for holder in &fresh {
            let replaced =
                this.holders.iter_mut().find(|place| place.is_none() || !receiving.contains(place));
            if let Some(place) = replaced {
                *place = Some(*holder);
            }
        }
        fresh
    }

    /// A lease came on a piece that is here: the controller does not know, and is told.
    pub fn has_already(&mut self, piece: u32) {
        self.report.finished.push((piece, None));
    }

    /// Whether a piece is leased or coming.
    #[must_use]
    pub fn expects(&self, piece: u32) -> bool {
        self.find(piece).is_some()
    }

    /// Leases that are followed.
    #[must_use]
    pub const fn n_under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Pieces that are missing.
    #[must_use]
    pub const fn n_left(&self) -> u32 {
        self.n_left
    }

    /// What to say to an offer.
    #[must_use]
    pub fn wish(&self, piece: u32, from: P) -> Wish {
        let Some(at) = self.find(piece) else { return Wish::Never };
        let this = &self.under_way[at];
        let mut receiving = this.receiving.iter().flatten();
        let has_place = if this.is_hedged {
            this.receiving.iter().any(Option::is_none) && receiving.all(|other| other.from != from)
        } else {
            receiving.next().is_none()
        };
        if !has_place {
            Wish::Never
        } else if self.n_receiving >= self.window {
            Wish::Later
        } else {
            Wish::Now
        }
    }

    /// An offer was taken; `has_all`: the holder has all of the piece.
    pub fn begins(&mut self, piece: u32, from: P, has_all: bool, now_ms: u64) {
        if let Some(at) = self.find(piece)
            && let Some(place) = self.under_way[at].receiving.iter_mut().find(|place| place.is_none())
        {
            let stall_ms = if has_all { STALL_MS } else { STALL_PASSED_ON_MS };
            *place = Some(Receiving { from, began_ms: now_ms, last_byte_ms: now_ms, stall_ms });
            self.n_receiving += 1;
        }
    }

    /// A byte of a piece came.
    pub fn came(&mut self, piece: u32, from: P, now_ms: u64) {
        let Some(at) = self.find(piece) else { return };
        let mut receiving = self.under_way[at].receiving.iter_mut().flatten();
        if let Some(this) = receiving.find(|this| this.from == from) {
            this.last_byte_ms = now_ms;
        }
    }

    /// A request ended; returns who is asked again for the piece.
    pub fn ended(&mut self, piece: u32, from: P, how: Ended, now_ms: u64) -> Vec<P> {
        let Some(at) = self.find(piece) else { return Vec::new() };
        let this = &mut self.under_way[at];
        let mut was_receiving = None;
        for place in &mut this.receiving {
            if let Some(receiving) = place.take_if(|receiving| receiving.from == from) {
                was_receiving = Some(receiving);
                self.n_receiving -= 1;
            }
        }
        if how == Ended::Whole {
            // A hedge that lost is the shell's to cancel.
            self.n_receiving -= this.receiving.iter().flatten().count();
            self.under_way.swap_remove(at);
            self.n_left = self.n_left.saturating_sub(1);
            self.report.finished.push((piece, Some(from)));
            if let Some(Receiving { began_ms, .. }) = was_receiving {
                let took_ms = now_ms.saturating_sub(began_ms).max(1);
                self.usual_ms = if self.usual_ms == 0 { took_ms } else { (self.usual_ms * 7 + took_ms) / 8 };
            }
            return Vec::new();
        }
        for holder in &mut this.holders {
            holder.take_if(|holder| *holder == from);
        }
        let others: Vec<P> = this.holders.iter().flatten().copied().collect();
        let is_coming = this.receiving.iter().any(Option::is_some);
        let is_last = others.is_empty() && !is_coming;
        if how != Ended::Busy || is_last {
            self.report.failed.push(Failed { piece, from, how, is_last });
        }
        if is_last {
            self.under_way.swap_remove(at);
        }
        // The others were told that we are served; now we are not.
        if was_receiving.is_some() && !is_coming { others } else { Vec::new() }
    }

    /// Transfers that have stalled, and how: the shell resets them and says so.
    #[must_use]
    pub fn stalled(&self, now_ms: u64) -> Vec<(u32, P, Ended)> {
        // Who drips has a byte ready for every look.
        let takes_too_long =
            |this: &Receiving<P>| this.began_ms + VALIDITIES_MAX * self.validity_ms <= now_ms;
        let is_stalled =
            |this: &&Receiving<P>| this.last_byte_ms + this.stall_ms <= now_ms || takes_too_long(this);
        let how = |this: &Receiving<P>| if this.stall_ms == STALL_MS { Ended::Broken } else { Ended::Late };
        let all = self.under_way.iter().flat_map(|lease| {
            let stalled = lease.receiving.iter().flatten().filter(is_stalled);
            stalled.map(|this| (lease.piece, this.from, how(this)))
        });
        all.collect()
    }

    /// Drops the leases that have expired before anybody offered; returns the requests to take back.
    pub fn expire(&mut self, now_ms: u64) -> Vec<(u32, P)> {
        let mut expired = Vec::new();
        let report = &mut self.report;
        self.under_way.retain(|this| {
            let keep = this.expires_ms > now_ms || this.receiving.iter().any(Option::is_some);
            if !keep {
                let holders: Vec<P> = this.holders.iter().flatten().copied().collect();
                let n = holders.len();
                for (i, from) in (1..).zip(holders) {
                    expired.push((this.piece, from));
                    let how = Ended::Late;
                    report.failed.push(Failed { piece: this.piece, from, how, is_last: i == n });
                }
            }
            keep
        });
        expired
    }

    /// Among the last pieces, those that take unusually long and may come from a second holder too: who is asked.
    pub fn hedge(&mut self, now_ms: u64) -> Vec<(u32, P)> {
        if self.usual_ms == 0 || self.n_left > (self.n_pieces / HEDGED_PART).max(1) {
            return Vec::new();
        }
        let late_ms = self.usual_ms * HEDGE_AFTER;
        let mut asked = Vec::new();
        for this in &mut self.under_way {
            let [Some(receiving), None] = this.receiving else { continue };
            if this.is_hedged || receiving.began_ms + late_ms > now_ms {
                continue;
            }
            this.is_hedged = true;
            let others = this.holders.iter().flatten().filter(|holder| **holder != receiving.from);
            asked.extend(others.map(|holder| (this.piece, *holder)));
        }
        asked
    }

    /// When the next report is due; `None` if there is nothing to say.
    #[must_use]
    pub fn report_due_ms(&self) -> Option<u64> {
        let is_empty = self.report.finished.is_empty() && self.report.failed.is_empty();
        (!is_empty).then(|| self.reported_ms.map_or(0, |at_ms| at_ms + REPORT_EVERY_MS))
    }

    /// The report, if one is due.
    pub fn report(&mut self, now_ms: u64) -> Option<Report<P>> {
        self.report_due_ms().filter(|due_ms| *due_ms <= now_ms)?;
        self.reported_ms = Some(now_ms);
        Some(std::mem::replace(&mut self.report, Report { finished: Vec::new(), failed: Vec::new() }))
    }

    fn find(&self, piece: u32) -> Option<usize> {
        self.under_way.iter().position(|this| this.piece == piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(piece: u32, holders: &[u32]) -> Lease<u32> {
        let mut these = [None; HOLDERS_MAX];
        these.iter_mut().zip(holders).for_each(|(place, holder)| *place = Some(*holder));
        Lease { piece, holders: these }
    }

    fn following(n: u32) -> Downloads<u32> {
        let mut downloads = Downloads::new(8, 3000, 100, 100);
        for piece in 0..n {
            assert_eq!(downloads.take(lease(piece, &[1, 2, 3]), 0).len(), 3);
        }
        downloads
    }

    #[test]
    fn as_many_transfers_as_fill_the_line() {
        let windows = [window(4, 93, 100), window(4, 100, 190), window(4, 20, 100), window(4, 200, 100)];
        assert_eq!(windows, [4, 7, 8, 4]);
    }

    #[test]
    fn a_piece_comes_from_one_holder_at_a_time() {
        let mut downloads = following(1);
        assert_eq!(downloads.take(lease(0, &[1, 2]), 0), Vec::<u32>::new(), "leased already");
        assert_eq!(downloads.wish(0, 2), Wish::Now);
        downloads.begins(0, 2, true, 10);
        assert_eq!([downloads.wish(0, 1), downloads.wish(0, 2)], [Wish::Never, Wish::Never]);
        assert_eq!(downloads.ended(0, 2, Ended::Whole, 50), Vec::<u32>::new());
        assert_eq!((downloads.wish(0, 1), downloads.n_left()), (Wish::Never, 99));
    }

    #[test]
    fn no_more_than_the_window_comes_at_once() {
        let mut downloads = following(9);
        (0..8).for_each(|piece| downloads.begins(piece, 1, true, 0));
        assert_eq!(downloads.wish(8, 1), Wish::Later);
        downloads.ended(3, 1, Ended::Whole, 50);
        assert_eq!(downloads.wish(8, 1), Wish::Now);
    }

    #[test]
    fn a_broken_transfer_goes_on_with_the_others() {
        let mut downloads = following(1);
        downloads.begins(0, 1, true, 0);
        assert_eq!(downloads.stalled(STALL_MS - 1), vec![]);
        downloads.came(0, 1, 500);
        assert_eq!(downloads.stalled(STALL_MS), vec![]);
        assert_eq!(downloads.stalled(STALL_MS + 500), vec![(0, 1, Ended::Broken)]);
        assert_eq!(downloads.ended(0, 1, Ended::Broken, 1500), vec![2, 3]);
        assert_eq!(downloads.ended(0, 2, Ended::Busy, 1500), Vec::<u32>::new());
        assert_eq!(downloads.wish(0, 3), Wish::Now);
        assert_eq!(downloads.ended(0, 3, Ended::Missing, 1600), Vec::<u32>::new());
        let report = downloads.report(1600).unwrap();
        let failed = |from, how, is_last| Failed { piece: 0, from, how, is_last };
        assert_eq!(report.failed, vec![failed(1, Ended::Broken, false), failed(3, Ended::Missing, true)]);
        assert_eq!(downloads.n_under_way(), 0);
    }

    #[test]
    fn a_second_lease_brings_other_holders() {
        let mut downloads = following(1);
        downloads.begins(0, 2, true, 0);
        assert_eq!(downloads.take(lease(0, &[2, 4]), 100), vec![4]);
        assert_eq!(downloads.ended(0, 2, Ended::Broken, 200), vec![4, 3], "1 gave its place to 4");
    }

    #[test]
    fn who_passes_on_has_time_to_give_its_own_supplier_up() {
        let mut downloads = following(1);
        downloads.begins(0, 1, false, 0);
        assert_eq!(downloads.stalled(STALL_PASSED_ON_MS - 1), vec![]);
        assert_eq!(downloads.stalled(STALL_PASSED_ON_MS), vec![(0, 1, Ended::Late)]);
    }

    #[test]
    fn a_holder_that_drips_is_given_up() {
        let mut downloads = following(1);
        downloads.begins(0, 1, true, 0);
        (0..12_000).step_by(500).for_each(|now_ms| downloads.came(0, 1, now_ms));
        assert_eq!(downloads.stalled(11_999), vec![]);
        downloads.came(0, 1, 12_000);
        assert_eq!(downloads.stalled(12_000), vec![(0, 1, Ended::Broken)]);
    }

    #[test]
    fn nothing_is_forgotten() {
        let mut downloads = following(3);
        downloads.begins(0, 1, true, 0);
        downloads.begins(1, 1, true, 0);
        downloads.ended(1, 1, Ended::Whole, 100);
        let expired = downloads.expire(3000);
        assert_eq!(expired, vec![(2, 1), (2, 2), (2, 3)]);
        let report = downloads.report(3000).unwrap();
        assert_eq!(report.finished, vec![(1, Some(1))]);
        assert_eq!(report.failed.iter().filter(|failed| failed.is_last).count(), 1);
        assert_eq!(downloads.n_under_way(), 1, "what is being received does not expire");
    }

    #[test]
    fn reports_are_batched_but_the_first_is_not() {
        let mut downloads = following(3);
        assert_eq!(downloads.report_due_ms(), None);
        downloads.ended(0, 1, Ended::Whole, 1000);
        assert_eq!(downloads.report(1000).unwrap().finished, vec![(0, Some(1))]);
        downloads.ended(1, 1, Ended::Whole, 1010);
        assert_eq!((downloads.report(1010), downloads.report_due_ms()), (None, Some(1200)));
        downloads.ended(2, 1, Ended::Whole, 1100);
        assert_eq!(downloads.report(1200).unwrap().finished, vec![(1, Some(1)), (2, Some(1))]);
    }

    #[test]
    fn the_last_pieces_are_hedged_when_they_are_late() {
        let mut downloads = Downloads::new(8, 3000, 100, 3);
        for piece in 0..3 {
            assert_eq!(downloads.take(lease(piece, &[1, 2]), 0).len(), 2);
            downloads.begins(piece, 1, true, 0);
        }
        downloads.ended(0, 1, Ended::Whole, 100);
        assert_eq!(downloads.hedge(250), vec![]);
        downloads.ended(1, 1, Ended::Whole, 100);
        assert_eq!(downloads.hedge(299), vec![], "not late yet");
        assert_eq!(downloads.hedge(300), vec![(2, 2)]);
        assert_eq!(downloads.wish(2, 2), Wish::Now);
        downloads.begins(2, 2, true, 300);
        assert_eq!(downloads.hedge(900), vec![], "once");
        downloads.ended(2, 2, Ended::Whole, 400);
        assert_eq!(downloads.n_left(), 0);
    }
}
