//! The picture of one campaign, and how reports change it: [`super::leases`] and [`super::copies`] keep its counts.
//!
//! **What.** Hosts join and leave, finish pieces and fail at others; [`Planner::plan`] gives out leases until every host has
//! enough to do for the time that a report and a lease take on their way.
//! **Why no clock and no locks.** The caller passes the time; the simulator passes one that it made up.

use std::collections::VecDeque;

use super::bits::BitRows;
use super::blame::{Failure, Record};
use super::member::{Joining, Load, Member, SOURCE};
use super::pool::{Dice, Pool};
use super::racks::Racks;
use super::{HostNo, Lease, PieceNo, Settings};

/// How soon a host for which nothing was found is looked at again, µs.
const AGAIN_US: u64 = 25_000;

/// A host that has a piece or awaits it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) host: HostNo,
    /// When it should begin to come there, ms; of no account once it is there. Kept here and not looked up: that would be
    /// half of the planner's time (measured).
    pub(super) begins_ms: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Planner {
    pub(super) settings: Settings,
    pub(super) n_pieces: u32,
    pub(super) piece_bytes: u64,
    /// Finished pieces, by host.
    pub(super) done: BitRows,
    /// Pieces under way, by host.
    pub(super) coming: BitRows,
    /// Pieces of which a lease failed: taken from hosts that really have them, so that no two wait for each other.
    pub(super) failed: BitRows,
    /// Pieces of which there is a copy, as a row of bits.
    pub(super) somewhere: BitRows,
    /// Copies done and under way, by piece, the source's not counted.
    pub(super) copies: Vec<u32>,
    /// What the copies of a piece rest on: hosts that have it, and leases from the source. Without any, those who await it wait
    /// for each other.
    pub(super) roots: Vec<u32>,
    /// Hosts that have a piece or await it, by piece.
    pub(super) holders: Vec<Vec<Holder>>,
    pub(super) members: Vec<Member>,
    pub(super) loads: Vec<Load>,
    pub(super) racks: Racks,
    /// Hosts that could do with more leases.
    pub(super) hungry: Pool,
    /// Hosts that may be given more to send.
    pub(super) free: Pool,
    /// Hosts for which nothing was found, and when they are looked at again.
    retries: VecDeque<(u64, HostNo)>,
    pub(super) dice: Dice,
    pub(super) source_next: PieceNo,
    pub(super) source_sent: u64,
    /// Pieces that rest on nothing any more.
    pub(super) lost: Vec<PieceNo>,
    /// Hosts that wait for the source.
    pub(super) starving: Vec<HostNo>,
    pub(super) next_expiry: usize,
    /// When [`Planner::plan`] was called last, µs.
    pub(super) planned_us: u64,
    pub(super) n_leases: u64,
}

impl Planner {
    /// A campaign for a content of `n_pieces` pieces of `piece_bytes` bytes, served first by a source that may send
    /// `source_bytes_per_s`; all at least 1.
    #[must_use]
    pub fn new(settings: Settings, n_pieces: u32, piece_bytes: u64, source_bytes_per_s: u64) -> Self {
        let mut somewhere = BitRows::new(n_pieces);
        somewhere.push();
        let mut this = Self {
            settings,
            n_pieces,
            piece_bytes,
            done: BitRows::new(n_pieces),
            coming: BitRows::new(n_pieces),
            failed: BitRows::new(n_pieces),
            somewhere,
            copies: vec![0; n_pieces as usize],
            roots: vec![0; n_pieces as usize],
            holders: vec![Vec::new(); n_pieces as usize],
            members: Vec::new(),
            loads: Vec::new(),
            racks: Racks::new(n_pieces),
            hungry: Pool::default(),
            free: Pool::default(),
            retries: VecDeque::new(),
            dice: Dice::new(settings.seed),
            source_next: 0,
            source_sent: 0,
            lost: Vec::new(),
            starving: Vec::new(),
            next_expiry: 0,
            planned_us: 0,
            n_leases: 0,
        };
        let rate = source_bytes_per_s;
        let source = this.add(Joining { rack: 0, upload_bytes_per_s: rate, download_bytes_per_s: rate });
        (0..n_pieces).for_each(|piece| this.done.set(source, piece));
        this.members[source.index()].n_done = n_pieces;
        this.refresh_load(source, 0);
        this
    }

    fn add(&mut self, joining: Joining) -> HostNo {
        let Joining { rack, upload_bytes_per_s, download_bytes_per_s } = joining;
        let host = HostNo::at(self.members.len());
        let step_us = |bytes_per_s: u64| self.piece_bytes * 1_000_000 / bytes_per_s.max(1);
        self.members.push(Member {
            rack,
            is_gone: false,
            is_disregarded: false,
            heard_us: 0,
            down_step_us: step_us(download_bytes_per_s),
            n_done: 0,
            under_way: Vec::new(),
            promised: Vec::new(),
            blame: Record::default(),
            starves_since_us: None,
            will_retry: false,
            found_nothing: false,
        });
        let step_us = u32::try_from(step_us(upload_bytes_per_s)).unwrap_or(u32::MAX);
        self.loads.push(Load { step_us, ..Load::default() });
        [&mut self.done, &mut self.coming, &mut self.failed].into_iter().for_each(BitRows::push);
        host
    }

    /// Adds a host that has the pieces `done` already (a host that comes back is a new one).
    pub fn join(&mut self, joining: Joining, done: impl IntoIterator<Item = PieceNo>, now_us: u64) -> HostNo {
        let host = self.add(joining);
        self.racks.join(joining.rack, host);
        self.heard(host, now_us);
        for piece in done {
            self.finished(host, piece, None, now_us);
        }
        self.hungry.put(host, self.members[host.index()].n_done < self.n_pieces);
        self.refresh_load(host, now_us);
        host
    }

    /// A sign of life; reports are others.
    pub fn heard(&mut self, host: HostNo, now_us: u64) {
        self.members[host.index()].heard_us = now_us;
    }

    /// Whether a host left or was silent for too long; one that speaks again joins again.
    #[must_use]
    pub fn is_gone(&self, host: HostNo) -> bool {
        self.members[host.index()].is_gone
    }

    /// The host is gone, with all that it had.
    pub fn leave(&mut self, host: HostNo, now_us: u64) {
        if self.members[host.index()].is_gone {
            return;
        }
        self.members[host.index()].is_gone = true;
        while let Some(lease) = self.members[host.index()].under_way.pop() {
            self.withdraw(host, lease, now_us);
        }
        let had: Vec<PieceNo> = self.done.iter(host).collect();
        for piece in had {
            self.drop_copy(host, piece);
            self.drop_root(host, piece, now_us);
        }
        self.withdraw_from(host, now_us);
        self.hungry.put(host, false);
        self.refresh_load(host, now_us);
    }

    /// The piece is verified on the host's disk; `from`: who sent it, which of the three that were asked is not known otherwise.
    pub fn finished(&mut self, host: HostNo, piece: PieceNo, from: Option<HostNo>, now_us: u64) {
        if self.done.has(host, piece) || self.members[host.index()].is_gone {
            return;
        }
        self.add_root(host, piece);
        match self.members[host.index()].under_way.iter().position(|lease| lease.piece == piece) {
            Some(at) => {
                let lease = self.members[host.index()].under_way.swap_remove(at);
                self.coming.clear(host, piece);
                self.release(host, lease, now_us);
            }
            None => self.add_copy(host, piece, 0),
        }
        if let Some(from) = from {
            self.members[from.index()].blame.served();
        }
        self.done.set(host, piece);
        let member = &mut self.members[host.index()];
        member.n_done += 1;
        let promised = member.promised.len();
        member.promised.retain(|(promise, _)| *promise != piece);
        let kept = count(promised - member.promised.len());
        self.loads[host.index()].promised -= kept;
        self.loads[host.index()].ready += kept;
        self.hungry.put(host, self.members[host.index()].n_done < self.n_pieces);
        self.refresh_load(host, now_us);
    }

    /// The source has sent what was leased from it; its next lease need not wait for the receiver's report.
    pub fn sent(&mut self, to: HostNo, piece: PieceNo, now_us: u64) {
        let service_us = u64::from(self.loads[SOURCE.index()].step_us) * u64::from(self.settings.slots);
        let mut leases = self.members[to.index()].under_way.iter_mut();
        let lease = leases.find(|lease| lease.piece == piece && lease.from == SOURCE && !lease.is_sent);
        if let Some(lease) = lease {
            lease.is_sent = true;
            // It left late if others were before it, and its receiver's line is not the source's alone.
            lease.expires_us = lease.expires_us.max(now_us + service_us + self.settings.validity_us);
            self.loads[SOURCE.index()].ready -= 1;
            self.refresh_load(SOURCE, now_us);
        }
    }

    /// `host` could not get a piece from `from`; `is_last`: nor from the others that its lease named.
    pub fn failed(
        &mut self,
        host: HostNo,
        piece: PieceNo,
        from: HostNo,
        how: Failure,
        is_last: bool,
        now_us: u64,
    ) {
        let under_way = &self.members[host.index()].under_way;
        // Who was not told to ask a host has nothing to say about it.
        let was_named = under_way.iter().any(|lease| lease.piece == piece && lease.names(from));
        if let Some(at) = under_way.iter().position(|lease| is_last && lease.piece == piece) {
            let lease = self.members[host.index()].under_way.swap_remove(at);
            self.withdraw(host, lease, now_us);
            self.failed.set(host, piece);
            self.hungry.put(host, !self.members[host.index()].is_gone);
        }
        if !was_named || from == SOURCE || from == host || self.members[from.index()].is_gone {
            return;
        }
        // What was only expected there may have failed on its way.
        let how = if how == Failure::Missing && !self.done.has(from, piece) { Failure::Late } else { how };
        if how == Failure::Missing {
            self.disbelieve(from, piece, now_us);
        }
        let accuser = &mut self.members[host.index()];
        let is_believed = how != Failure::Wrong || accuser.blame.accuses(from, accuser.n_done);
        if self.members[from.index()].blame.failed(host, how, is_believed, now_us) {
            if how == Failure::Missing {
                let claims: Vec<PieceNo> = self.done.iter(from).collect();
                claims.into_iter().for_each(|piece| self.disbelieve(from, piece, now_us));
            }
            self.disregard(from, now_us);
            self.refresh_load(from, now_us);
        }
    }

    /// Gives out leases until everybody has enough to do.
    pub fn plan(&mut self, now_us: u64, leases: &mut Vec<Lease>) {
        self.expire(now_us);
        self.planned_us = now_us;
        while let Some((_, host)) = self.retries.front().copied().filter(|(at_us, _)| *at_us <= now_us) {
            self.retries.pop_front();
            let member = &mut self.members[host.index()];
            member.will_retry = false;
            self.hungry.put(host, !member.is_gone && member.n_done < self.n_pieces);
        }
        self.plan_source(now_us, leases);
        // One lease each per round, so that nobody waits for the wishes of another.
        let mut round = self.hungry.shuffled(&mut self.dice);
        while !round.is_empty() {
            round.retain(|host| self.feed(*host, now_us, leases));
        }
    }

    /// One more lease for a host; `false` if it has enough or nothing was found.
    fn feed(&mut self, host: HostNo, now_us: u64, leases: &mut Vec<Lease>) -> bool {
        let member = &self.members[host.index()];
        let Settings { horizon_us, slots, under_way_max, .. } = self.settings;
        let ahead = (horizon_us / member.down_step_us.max(1) + 2).max(4 * u64::from(slots) + 2);
        let enough = usize::try_from(ahead).unwrap_or(usize::MAX).min(under_way_max);
        let enough = if member.is_doubtful() { 1 } else { enough };
        let left = self.n_pieces as usize - member.n_done as usize;
        if member.under_way.len() >= enough.min(left) {
            self.hungry.put(host, false);
            return false;
        }
        let Some(choice) = self.choose(host, now_us) else {
            self.hungry.put(host, false);
            self.starves(host, now_us);
            let member = &mut self.members[host.index()];
            member.found_nothing = true;
            if !std::mem::replace(&mut member.will_retry, true) {
                self.retries.push_back((now_us + AGAIN_US, host));
            }
            return false;
        };
        self.lease(host, choice, now_us, leases);
        true
    }

    /// Whether a host lacks a piece that is not on its way to it.
    pub(super) fn wants(&self, host: HostNo, piece: PieceNo) -> bool {
        !self.done.has(host, piece) && !self.coming.has(host, piece)
    }

    /// Changes what may enter a rack at once; see [`Settings::rack_budget`].
    pub const fn set_rack_budget(&mut self, rack_budget: u32) {
        self.settings.rack_budget = rack_budget;
    }

    /// Leases given out so far.
    #[must_use]
    pub const fn n_leases(&self) -> u64 {
        self.n_leases
    }

    /// Whether a host said that it has a piece, and was not found without it.
    #[must_use]
    pub fn has(&self, host: HostNo, piece: PieceNo) -> bool {
        self.done.has(host, piece)
    }

    /// Finished pieces of a host.
    #[must_use]
    pub fn n_done(&self, host: HostNo) -> u32 {
        self.members[host.index()].n_done
    }
}

fn count(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}
