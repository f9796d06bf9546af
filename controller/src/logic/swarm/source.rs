//! What the source itself sends.
//!
//! **What.** Each piece once, in order, to the host with the least under way; then what no host has any more, what a host lacks
//! to which nobody else could give anything for a while, and, to a few hosts only, whatever is rarest.
//! **Why once.** The last piece leaves the source when it has sent a whole copy; every byte that it sends twice before makes
//! everybody wait.
//! **Why more to a few.** Four hosts that send with a fifth of their interfaces are slower together than the source alone;
//! among many its part is nothing, and its uplink is kept for others.

use std::collections::BTreeSet;

use super::choose::Choice;
use super::planner::Planner;
use super::{HostNo, Lease, PieceNo, SOURCE};

/// Hosts that are looked at for one piece of the source.
const DRAWS: usize = 8;
/// A host for which nobody is found for this long is served by the source, µs: all who have what it lacks may be out.
const STARVED_US: u64 = 2_000_000;
/// The source goes on while all hosts together send no more than so many times what it sends: it shortens the time by a fifth
/// at least.
const HELP_TIMES: u64 = 4;
/// What it sends in all, tenths of a copy, beside one copy for each rack that needs it: it may be far from all of them.
const COPIES_TENTHS_MAX: u64 = 12;

impl Planner {
    /// Leases from the source until it has enough to do.
    pub(super) fn plan_source(&mut self, now_us: u64, leases: &mut Vec<Lease>) {
        while self.loads[SOURCE.index()].is_free {
            let next = self.next_of_source();
            // What was not sent yet comes first, also when nobody can take it now.
            let may_repeat = next.is_none() && self.source_next == self.n_pieces;
            let next = if may_repeat { self.starved().or_else(|| self.helped()) } else { next };
            let Some((to, piece)) = next else { return };
            let begins_us = now_us + self.loads[SOURCE.index()].wait_us(self.settings.slots);
            self.lease(to, Choice { piece, from: SOURCE, begins_us, alternates: [None; 2] }, now_us, leases);
            self.source_sent += 1;
            if piece == self.source_next {
                self.source_next += 1;
            }
        }
    }

    /// Pieces that the source has been told to send so far, counted each time.
    #[must_use]
    pub const fn source_sent(&self) -> u64 {
        self.source_sent
    }

    /// Changes what the source may send; the budget is shared with campaigns that come and go.
    pub fn set_source_rate(&mut self, bytes_per_s: u64, now_us: u64) {
        let step_us = self.piece_bytes * 1_000_000 / bytes_per_s.max(1);
        let step_us = u32::try_from(step_us).unwrap_or(u32::MAX);
        if self.loads[SOURCE.index()].step_us != step_us {
            self.loads[SOURCE.index()].step_us = step_us;
            self.refresh_load(SOURCE, now_us);
        }
    }

    /// Whether a piece is leased to a host from the source and was not sent yet.
    #[must_use]
    pub fn awaits_source(&self, host: HostNo, piece: PieceNo) -> bool {
        let mut leases = self.members[host.index()].under_way.iter();
        leases.any(|lease| lease.piece == piece && lease.from == SOURCE && !lease.is_sent)
    }

    /// The piece that the source sends next and to whom: first each one once, then those that no host has any more.
    fn next_of_source(&mut self) -> Option<(HostNo, PieceNo)> {
        while self.source_next < self.n_pieces {
            let piece = self.source_next;
            if self.copies[piece as usize] == 0 {
                match self.taker(piece) {
                    Some(to) => return Some((to, piece)),
                    None => break,
                }
            }
            // Hosts brought it along.
            self.source_next += 1;
        }
        // What is on its way to somebody who is out is no copy yet, and not sent twice either.
        self.lost.retain(|piece| self.copies[*piece as usize] == 0 && self.roots[*piece as usize] == 0);
        for at in 0..self.lost.len() {
            let piece = self.lost[at];
            if let Some(to) = self.taker(piece) {
                return Some((to, piece));
            }
        }
        None
    }

    /// A host that has waited in vain for long, and the first piece that it lacks.
    fn starved(&mut self) -> Option<(HostNo, PieceNo)> {
        while let Some(host) = self.starving.pop() {
            let member = &mut self.members[host.index()];
            member.starves_since_us = None;
            if !member.is_gone && member.under_way.is_empty() {
                let lacks = (0..self.n_pieces).find(|piece| self.wants(host, *piece));
                if let Some(piece) = lacks {
                    return Some((host, piece));
                }
            }
        }
        None
    }

    /// A host with little under way and the rarest piece that it lacks, if the source is fast beside all hosts.
    fn helped(&mut self) -> Option<(HostNo, PieceNo)> {
        if !self.is_needed() {
            return None;
        }
        let n_under_way = |host: &HostNo| self.members[host.index()].under_way.len();
        let n_cared_for = |host: &HostNo| self.members[host.index()].n_done as usize + n_under_way(host);
        let may_take = |host: &HostNo| self.passes_on(*host) && n_cared_for(host) < self.n_pieces as usize;
        let least = self.hungry.iter().filter(may_take).min_by_key(n_under_way)?;
        let (copies, piece) = self.rarest(least)[0];
        (copies < u32::MAX).then_some((least, piece))
    }

    /// Whether the source is a good part of all that can be sent, and has some of its budget left.
    fn is_needed(&self) -> bool {
        // A step is the time of a piece: who needs a tenth of it sends ten times as much.
        let source_us = u64::from(self.loads[SOURCE.index()].step_us).max(1);
        let mut times_1000 = 0;
        let hosts = self.loads.iter().skip(1).filter(|load| load.may_serve);
        for load in hosts {
            times_1000 += source_us * 1000 / u64::from(load.step_us).max(1);
            if times_1000 > HELP_TIMES * 1000 {
                return false;
            }
        }
        // Few hosts are left here.
        let receivers = self.members.iter().skip(1).filter(|m| !m.is_gone && m.n_done < self.n_pieces);
        let racks: BTreeSet<u32> = receivers.map(|member| member.rack).collect();
        self.source_sent * 10 < u64::from(self.n_pieces) * (10 * racks.len() as u64 + COPIES_TENTHS_MAX)
    }

    /// Notes that nothing was found for a host.
    pub(super) fn starves(&mut self, host: HostNo, now_us: u64) {
        let member = &mut self.members[host.index()];
        if !member.under_way.is_empty() {
            member.starves_since_us = None;
            return;
        }
        let since_us = *member.starves_since_us.get_or_insert(now_us);
        if now_us.saturating_sub(since_us) >= STARVED_US && self.source_next == self.n_pieces {
            self.starving.push(host);
        }
    }

    /// A host for a piece of the source: of a few that pass on what they get, the one with the least under way.
    fn taker(&mut self, piece: PieceNo) -> Option<HostNo> {
        let mut best: Option<(usize, HostNo)> = None;
        for _ in 0..DRAWS {
            let host = self.hungry.draw(&mut self.dice)?;
            if !self.wants(host, piece) || !self.passes_on(host) {
                continue;
            }
            let under_way = self.members[host.index()].under_way.len();
            if best.is_none_or(|(least, _)| under_way < least) {
                best = Some((under_way, host));
            }
        }
        if best.is_none() {
            // Nearly everybody has it: whoever lacks it is looked for.
            let lacks = || self.hungry.iter().filter(|host| self.wants(*host, piece));
            return lacks().find(|host| self.passes_on(*host)).or_else(|| lacks().next());
        }
        best.map(|(_, host)| host)
    }

    /// Whether a host will pass on what it is given, as far as anybody can tell.
    fn passes_on(&self, host: HostNo) -> bool {
        self.loads[host.index()].may_serve && !self.members[host.index()].is_doubtful()
    }
}
