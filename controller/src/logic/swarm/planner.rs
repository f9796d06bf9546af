//! The picture of one campaign, and how reports change it.
//!
//! **What.** Hosts join and leave, finish pieces and fail at others; [`Planner::plan`] gives out leases until every host has
//! enough to do for the time that a report and a lease take on their way.
//! **Why no clock and no locks.** The caller passes the time; the simulator passes one that it made up.
//! **Why one file.** Every report changes the same six counts; split, each part would have to trust the others' order.

use std::collections::VecDeque;

use super::bits::BitRows;
use super::blame::{Failure, Record};
use super::member::{Joining, Load, Member, SOURCE, UnderWay};
use super::pool::{Dice, Pool};
use super::racks::Racks;
use super::{HostNo, Lease, PieceNo, Settings};

/// How soon a host for which nothing was found is looked at again, µs.
const AGAIN_US: u64 = 25_000;
/// Holders that are remembered per piece; of more, a random part.
const HOLDERS_MAX: usize = 1024;
/// Each call looks for expired leases at this part of all hosts.
const EXPIRY_SHARE: usize = 8;

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
    /// Pieces that are done or coming somewhere, as one row.
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
    later: VecDeque<(u64, HostNo)>,
    pub(super) dice: Dice,
    pub(super) source_next: PieceNo,
    pub(super) source_sent: u64,
    /// Pieces that were somewhere and are no more.
    pub(super) lost: Vec<PieceNo>,
    /// Hosts that wait for the source.
    pub(super) starving: Vec<HostNo>,
    next_expiry: usize,
    /// When [`Planner::plan`] was called last, µs.
    planned_us: u64,
    n_leases: u64,
    n_crossing: u64,
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
            later: VecDeque::new(),
            dice: Dice::new(settings.seed),
            source_next: 0,
            source_sent: 0,
            lost: Vec::new(),
            starving: Vec::new(),
            next_expiry: 0,
            planned_us: 0,
            n_leases: 0,
            n_crossing: 0,
        };
        let rate = source_bytes_per_s;
        let source = this.add(Joining { rack: 0, upload_bytes_per_s: rate, download_bytes_per_s: rate });
        (0..n_pieces).for_each(|piece| this.done.set(source, piece));
        this.members[source as usize].n_done = n_pieces;
        this.look_at_load(source, 0);
        this
    }

    fn add(&mut self, joining: Joining) -> HostNo {
        let Joining { rack, upload_bytes_per_s, download_bytes_per_s } = joining;
        let host = u32::try_from(self.members.len()).expect("a campaign has fewer than 2³² hosts");
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
            is_later: false,
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
            self.finished(host, piece, now_us);
        }
        self.hungry.put(host, self.members[host as usize].n_done < self.n_pieces);
        self.look_at_load(host, now_us);
        host
    }

    /// A sign of life; reports are others.
    pub fn heard(&mut self, host: HostNo, now_us: u64) {
        self.members[host as usize].heard_us = now_us;
    }

    /// Whether a host left or was silent for too long; one that speaks again joins again.
    #[must_use]
    pub fn is_gone(&self, host: HostNo) -> bool {
        self.members[host as usize].is_gone
    }

    /// The host is gone, with all that it had.
    pub fn leave(&mut self, host: HostNo, now_us: u64) {
        if self.members[host as usize].is_gone {
            return;
        }
        self.members[host as usize].is_gone = true;
        while let Some(lease) = self.members[host as usize].under_way.pop() {
            self.withdraw(host, lease, now_us);
        }
        let had: Vec<PieceNo> = self.done.iter(host).collect();
        for piece in had {
            self.drop_copy(host, piece);
            self.drop_root(host, piece, now_us);
        }
        self.withdraw_from(host, now_us);
        self.hungry.put(host, false);
        self.look_at_load(host, now_us);
    }

    /// The piece is verified on the host's disk.
    pub fn finished(&mut self, host: HostNo, piece: PieceNo, now_us: u64) {
        if self.done.has(host, piece) || self.members[host as usize].is_gone {
            return;
        }
        if !self.members[host as usize].is_disregarded {
            self.roots[piece as usize] += 1;
        }
        match self.members[host as usize].under_way.iter().position(|lease| lease.piece == piece) {
            Some(at) => {
                let lease = self.members[host as usize].under_way.swap_remove(at);
                self.coming.clear(host, piece);
                self.release(host, lease, now_us);
                self.members[lease.from as usize].blame.served();
            }
            None => self.add_copy(host, piece, 0),
        }
        self.done.set(host, piece);
        let member = &mut self.members[host as usize];
        member.n_done += 1;
        let promised = member.promised.len();
        member.promised.retain(|(promise, _)| *promise != piece);
        let kept = count(promised - member.promised.len());
        self.loads[host as usize].promised -= kept;
        self.loads[host as usize].ready += kept;
        self.hungry.put(host, self.members[host as usize].n_done < self.n_pieces);
        self.look_at_load(host, now_us);
    }

    /// The source has sent what was leased from it; its next lease need not wait for the receiver's report.
    pub fn sent(&mut self, to: HostNo, piece: PieceNo, now_us: u64) {
        let mut leases = self.members[to as usize].under_way.iter_mut();
        let lease = leases.find(|lease| lease.piece == piece && lease.from == SOURCE && !lease.is_sent);
        if let Some(lease) = lease {
            lease.is_sent = true;
            self.loads[SOURCE as usize].ready -= 1;
            self.look_at_load(SOURCE, now_us);
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
        let under_way = &self.members[host as usize].under_way;
        if let Some(at) = under_way.iter().position(|lease| is_last && lease.piece == piece) {
            let lease = self.members[host as usize].under_way.swap_remove(at);
            self.withdraw(host, lease, now_us);
            self.failed.set(host, piece);
            self.hungry.put(host, !self.members[host as usize].is_gone);
        }
        if from == SOURCE || from == host || self.members[from as usize].is_gone {
            return;
        }
        // What was only expected there may have failed on its way.
        let how = if how == Failure::Missing && !self.done.has(from, piece) { Failure::Late } else { how };
        if how == Failure::Missing {
            self.disbelieve(from, piece, now_us);
        }
        let accuser = &mut self.members[host as usize];
        let is_believed = how != Failure::Wrong || accuser.blame.accuses(from, accuser.n_done);
        if self.members[from as usize].blame.failed(host, how, is_believed, now_us) {
            if how == Failure::Missing {
                let claims: Vec<PieceNo> = self.done.iter(from).collect();
                claims.into_iter().for_each(|piece| self.disbelieve(from, piece, now_us));
            }
            self.disregard(from, now_us);
            self.look_at_load(from, now_us);
        }
    }

    /// Gives out leases until everybody has enough to do.
    pub fn plan(&mut self, now_us: u64, leases: &mut Vec<Lease>) {
        self.expire(now_us);
        self.planned_us = now_us;
        while let Some((_, host)) = self.later.front().copied().filter(|(at_us, _)| *at_us <= now_us) {
            self.later.pop_front();
            let member = &mut self.members[host as usize];
            member.is_later = false;
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
        let member = &self.members[host as usize];
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
            let member = &mut self.members[host as usize];
            member.found_nothing = true;
            if !std::mem::replace(&mut member.is_later, true) {
                self.later.push_back((now_us + AGAIN_US, host));
            }
            return false;
        };
        self.lease(host, choice.piece, (choice.from, choice.begins_us), choice.alternates, now_us, leases);
        true
    }

    pub(super) fn lease(
        &mut self,
        to: HostNo,
        piece: PieceNo,
        (from, begins_us): (HostNo, u64),
        alternates: [Option<HostNo>; 2],
        now_us: u64,
        leases: &mut Vec<Lease>,
    ) {
        self.n_leases += 1;
        let begins_us = begins_us + self.settings.hop_us;
        self.coming.set(to, piece);
        self.add_copy(to, piece, begins_us);
        let rack = self.members[to as usize].rack;
        let crosses = from == SOURCE || self.members[from as usize].rack != rack;
        if crosses {
            self.n_crossing += 1;
            self.racks.enters(rack);
        }
        if from == SOURCE {
            self.roots[piece as usize] += 1;
        }
        let load = &mut self.loads[from as usize];
        let service_us = u64::from(load.step_us) * u64::from(self.settings.slots);
        if self.done.has(from, piece) {
            load.ready += 1;
        } else {
            load.promised += 1;
            self.members[from as usize].promised.push((piece, to));
        }
        self.look_at_load(from, now_us);
        let expires_us = begins_us + service_us + self.settings.validity_us;
        let lease = UnderWay { piece, from, expires_us, crosses, is_sent: false };
        self.members[to as usize].starves_since_us = None;
        self.members[to as usize].found_nothing = false;
        self.members[to as usize].under_way.push(lease);
        self.look_at_load(to, now_us);
        leases.push(Lease { to, piece, from, alternates });
    }

    /// Withdraws what others were to get from a host; they are given other holders.
    fn withdraw_from(&mut self, from: HostNo, now_us: u64) {
        for to in 0..u32::try_from(self.members.len()).unwrap_or(u32::MAX) {
            while let Some(at) =
                self.members[to as usize].under_way.iter().position(|lease| lease.from == from)
            {
                let lease = self.members[to as usize].under_way.swap_remove(at);
                self.withdraw(to, lease, now_us);
                self.failed.set(to, lease.piece);
                self.hungry.put(to, true);
            }
        }
    }

    /// A lease that will not be fulfilled.
    fn withdraw(&mut self, host: HostNo, lease: UnderWay, now_us: u64) {
        self.coming.clear(host, lease.piece);
        self.drop_copy(host, lease.piece);
        self.release(host, lease, now_us);
    }

    /// Takes a lease that ended off its supplier's load and its rack's budget.
    fn release(&mut self, host: HostNo, lease: UnderWay, now_us: u64) {
        if lease.crosses {
            self.racks.entered(self.members[host as usize].rack);
        }
        if lease.from == SOURCE {
            self.drop_root(SOURCE, lease.piece, now_us);
        }
        if lease.is_sent {
            return;
        }
        let promised = &mut self.members[lease.from as usize].promised;
        let load = &mut self.loads[lease.from as usize];
        match promised.iter().position(|promise| *promise == (lease.piece, host)) {
            Some(at) => {
                promised.swap_remove(at);
                load.promised -= 1;
            }
            None => load.ready -= 1,
        }
        self.look_at_load(lease.from, now_us);
    }

    /// A host does not have a piece after all. Who has it says so again when it is given a lease on it.
    fn disbelieve(&mut self, host: HostNo, piece: PieceNo, now_us: u64) {
        self.done.clear(host, piece);
        self.members[host as usize].n_done -= 1;
        self.drop_copy(host, piece);
        self.drop_root(host, piece, now_us);
        self.hungry.put(host, !self.members[host as usize].is_gone);
    }

    /// What a host has is no copy as long as nobody may take it from there.
    fn disregard(&mut self, host: HostNo, now_us: u64) {
        if self.members[host as usize].is_disregarded {
            return;
        }
        let (done, coming): (Vec<PieceNo>, Vec<PieceNo>) =
            (self.done.iter(host).collect(), self.coming.iter(host).collect());
        done.iter().chain(&coming).for_each(|piece| self.drop_copy(host, *piece));
        done.iter().for_each(|piece| self.drop_root(host, *piece, now_us));
        self.members[host as usize].is_disregarded = true;
    }

    /// What a host has counts again.
    fn regard(&mut self, host: HostNo) {
        self.members[host as usize].is_disregarded = false;
        let done: Vec<PieceNo> = self.done.iter(host).collect();
        done.into_iter().for_each(|piece| self.roots[piece as usize] += 1);
        let has: Vec<PieceNo> = self.done.iter(host).chain(self.coming.iter(host)).collect();
        has.into_iter().for_each(|piece| self.add_copy(host, piece, 0));
    }

    fn add_copy(&mut self, host: HostNo, piece: PieceNo, begins_us: u64) {
        if self.members[host as usize].is_disregarded {
            return;
        }
        let at = piece as usize;
        self.copies[at] += 1;
        self.somewhere.set(0, piece);
        self.racks.add_copy(self.members[host as usize].rack, piece);
        let holder = Holder { host, begins_ms: u32::try_from(begins_us / 1000).unwrap_or(u32::MAX) };
        let holders = &mut self.holders[at];
        if holders.len() < HOLDERS_MAX {
            holders.push(holder);
        } else {
            holders[self.dice.below(HOLDERS_MAX)] = holder;
        }
    }

    fn drop_copy(&mut self, host: HostNo, piece: PieceNo) {
        if self.members[host as usize].is_disregarded {
            return;
        }
        let at = piece as usize;
        self.copies[at] -= 1;
        self.racks.drop_copy(self.members[host as usize].rack, piece);
        if self.copies[at] == 0 {
            self.somewhere.clear(0, piece);
            self.lost.push(piece);
        }
    }

    /// One less on which the copies of a piece rest. Without any, what is leased of it is withdrawn, and the source sends it.
    fn drop_root(&mut self, host: HostNo, piece: PieceNo, now_us: u64) {
        if self.members[host as usize].is_disregarded {
            return;
        }
        self.roots[piece as usize] -= 1;
        if self.roots[piece as usize] > 0 || self.copies[piece as usize] == 0 {
            return;
        }
        for to in 0..u32::try_from(self.members.len()).unwrap_or(u32::MAX) {
            let under_way = &mut self.members[to as usize].under_way;
            if let Some(at) = under_way.iter().position(|lease| lease.piece == piece) {
                let lease = under_way.swap_remove(at);
                self.withdraw(to, lease, now_us);
                self.hungry.put(to, true);
            }
        }
    }

    /// Notes whether a host may be given more to send.
    pub(super) fn look_at_load(&mut self, host: HostNo, now_us: u64) {
        let (at, slots) = (host as usize, u64::from(self.settings.slots));
        let horizon_us =
            if host == SOURCE { self.settings.source_horizon_us } else { self.settings.horizon_us };
        let (load, member) = (&mut self.loads[at], &self.members[at]);
        let step_us = u64::from(load.step_us);
        let has_room = u64::from(load.ready) * step_us <= horizon_us.max(2 * slots * step_us);
        load.is_in = !member.is_gone && !member.blame.is_out(now_us);
        load.is_free = has_room && load.is_in;
        self.free.put(host, load.is_free && host != SOURCE);
    }

    fn expire(&mut self, now_us: u64) {
        if self.planned_us + self.settings.silence_us / 2 < now_us {
            // It was the planner that was away: what the hosts said meanwhile is still to come.
            self.members.iter_mut().for_each(|member| member.heard_us = now_us);
        }
        for _ in 0..self.members.len() / EXPIRY_SHARE + 1 {
            self.next_expiry = (self.next_expiry + 1) % self.members.len();
            let host = u32::try_from(self.next_expiry).unwrap_or(0);
            let member = &mut self.members[host as usize];
            if member.is_gone {
                continue;
            }
            if host != SOURCE && member.heard_us + self.settings.silence_us <= now_us {
                self.leave(host, now_us);
                continue;
            }
            if member.blame.came_back(now_us) {
                self.regard(host);
                self.look_at_load(host, now_us);
            }
            let leases = self.members[host as usize].under_way.iter();
            let expired: Vec<UnderWay> = leases.filter(|lease| lease.expires_us <= now_us).copied().collect();
            for lease in expired {
                self.failed(host, lease.piece, lease.from, Failure::Late, true, now_us);
            }
        }
    }

    /// Whether a host lacks a piece that is not on its way to it.
    pub(super) fn wants(&self, host: HostNo, piece: PieceNo) -> bool {
        !self.done.has(host, piece) && !self.coming.has(host, piece)
    }

    /// Leases given out so far, and how many of them cross into another rack.
    #[must_use]
    pub const fn given(&self) -> (u64, u64) {
        (self.n_leases, self.n_crossing)
    }

    /// Finished pieces of a host.
    #[must_use]
    pub fn n_done(&self, host: HostNo) -> u32 {
        self.members[host as usize].n_done
    }
}

fn count(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}
