//! What counts as a copy of a piece, and what the copies rest on.
//!
//! **What.** A host that has a piece or awaits it is a copy; one that is out is none until it is back. A copy that is awaited rests
//! on somebody who has the piece, or on a lease from the source.
//! **Why roots are counted.** Hosts that said they had what they had not made others wait for each other: each awaited copy
//! rested on the next one. Where nothing is left to rest on, the leases are withdrawn and the source sends the piece.

use super::planner::{Holder, Planner};
use super::{HostNo, PieceNo, SOURCE};

/// Holders that are remembered per piece; of more, a random part.
const HOLDERS_MAX: usize = 1024;

impl Planner {
    /// A host does not have a piece after all. Who has it says so again when it is given a lease on it.
    pub(super) fn disbelieve(&mut self, host: HostNo, piece: PieceNo, now_us: u64) {
        self.done.clear(host, piece);
        self.members[host.index()].n_done -= 1;
        self.drop_copy(host, piece);
        self.drop_root(host, piece, now_us);
        self.hungry.put(host, !self.members[host.index()].is_gone);
    }

    /// What a host has is no copy as long as nobody may take it from there.
    pub(super) fn disregard(&mut self, host: HostNo, now_us: u64) {
        if self.members[host.index()].is_disregarded {
            return;
        }
        let (done, coming): (Vec<PieceNo>, Vec<PieceNo>) =
            (self.done.iter(host).collect(), self.coming.iter(host).collect());
        done.iter().chain(&coming).for_each(|piece| self.drop_copy(host, *piece));
        done.iter().for_each(|piece| self.drop_root(host, *piece, now_us));
        self.members[host.index()].is_disregarded = true;
    }

    /// What a host has counts again.
    pub(super) fn regard(&mut self, host: HostNo) {
        self.members[host.index()].is_disregarded = false;
        let (done, coming): (Vec<PieceNo>, Vec<PieceNo>) =
            (self.done.iter(host).collect(), self.coming.iter(host).collect());
        done.iter().for_each(|piece| self.add_root(host, *piece));
        done.iter().chain(&coming).for_each(|piece| self.add_copy(host, *piece, 0));
    }

    pub(super) fn add_copy(&mut self, host: HostNo, piece: PieceNo, begins_us: u64) {
        if self.members[host.index()].is_disregarded {
            return;
        }
        let at = piece as usize;
        self.copies[at] += 1;
        self.somewhere.set(SOURCE, piece);
        self.racks.add_copy(self.members[host.index()].rack, piece);
        let holder = Holder { host, begins_ms: u32::try_from(begins_us / 1000).unwrap_or(u32::MAX) };
        let holders = &mut self.holders[at];
        if holders.len() < HOLDERS_MAX {
            holders.push(holder);
        } else {
            holders[self.dice.below(HOLDERS_MAX)] = holder;
        }
    }

    pub(super) fn drop_copy(&mut self, host: HostNo, piece: PieceNo) {
        if self.members[host.index()].is_disregarded {
            return;
        }
        let at = piece as usize;
        self.copies[at] -= 1;
        self.racks.drop_copy(self.members[host.index()].rack, piece);
        if self.copies[at] == 0 {
            self.somewhere.clear(SOURCE, piece);
        }
    }

    /// One more on which the copies of a piece rest.
    pub(super) fn add_root(&mut self, host: HostNo, piece: PieceNo) {
        if !self.members[host.index()].is_disregarded {
            self.roots[piece as usize] += 1;
        }
    }

    /// One less on which the copies of a piece rest. Without any, what is leased of it is withdrawn, and the source sends it.
    pub(super) fn drop_root(&mut self, host: HostNo, piece: PieceNo, now_us: u64) {
        if self.members[host.index()].is_disregarded {
            return;
        }
        self.roots[piece as usize] -= 1;
        if self.roots[piece as usize] > 0 {
            return;
        }
        self.lost.push(piece);
        for to in (0..self.members.len()).map(HostNo::at) {
            if !self.coming.has(to, piece) {
                continue;
            }
            let under_way = &mut self.members[to.index()].under_way;
            if let Some(at) = under_way.iter().position(|lease| lease.piece == piece) {
                let lease = under_way.swap_remove(at);
                self.withdraw(to, lease, now_us);
                self.hungry.put(to, true);
            }
        }
    }
}
