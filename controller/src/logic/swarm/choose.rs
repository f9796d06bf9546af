//! Which piece a host gets next, and from whom.
//!
//! **What.** Of the pieces that the host lacks and that are somewhere, the rarest few; for each, some of its holders; of all
//! these, whoever can begin first. Two more holders go along.
//! **Why only some are looked at.** All pairs are a hundred million; a few draws find one that is nearly as good
//! (the power of choices), in a microsecond.
//! **Why the earliest and not the rarest.** Among the four rarest the difference in rarity is small, and a host that is asked
//! for a piece that it does not have yet is an uplink that waits.

use super::bits::ones;
use super::planner::{Holder, Planner};
use super::{HostNo, PieceNo, SOURCE, Settings};

/// Rarest pieces that are tried.
const RAREST: usize = 4;
/// Lacking pieces that are compared, from a random place on.
const COMPARED: u32 = 48;
/// Copies of a piece that may enter a rack; what is there so often is taken from inside.
const RACK_COPIES: u16 = 3;
/// The last part of all pieces, one in this many, may come from anywhere.
const TAIL: u32 = 50;
/// Holders that are looked at per piece.
const DRAWS: usize = 2;
/// Hosts that are looked at when no holder of a rare piece is free.
const ANYBODY: usize = 4;
/// Draws for the two alternates.
const ALTERNATE_DRAWS: usize = 6;
/// Somebody who can begin this soon, µs, is good enough.
const SOON_US: u64 = 100_000;
/// Differences below this do not count, µs: what the planner knows is older.
const GRAIN_US: u64 = 50_000;

/// What was chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) piece: PieceNo,
    pub(super) from: HostNo,
    /// When it should begin, µs.
    pub(super) begins_us: u64,
    pub(super) alternates: [Option<HostNo>; 2],
}

/// Somebody who could give a piece.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    begins_us: u64,
    copies: u32,
    from: HostNo,
    piece: PieceNo,
}

impl Candidate {
    /// The least is the best: who can begin first, then the rarest.
    const fn rank(self) -> (u64, u32) {
        (self.begins_us / GRAIN_US, self.copies)
    }
}

/// Where holders of a piece are looked for.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// In this rack.
    Inside { rack: u32 },
    /// Among all that are remembered.
    Anywhere,
}

impl Place {
    /// In a rack most members do not have the piece: more draws for as many hits.
    const fn draws(self) -> usize {
        match self {
            Self::Inside { .. } => 3 * DRAWS,
            Self::Anywhere => DRAWS,
        }
    }
}

impl Planner {
    /// What `host` should get next; `None` if nothing that it lacks can begin within the horizon.
    pub(super) fn choose(&mut self, host: HostNo, now_us: u64) -> Option<Choice> {
        let mut best: Option<Candidate> = None;
        for (copies, piece) in self.rarest(host) {
            if copies == u32::MAX {
                break;
            }
            let Some(place) = self.place(host, piece) else { continue };
            for _ in 0..place.draws() {
                let Some(holder) = self.draw_holder(place, piece) else { break };
                let Some(begins_us) = self.can_begin(holder, host, piece, now_us) else { continue };
                let candidate = Candidate { begins_us, copies, from: holder.host, piece };
                if best.is_none_or(|best| candidate.rank() < best.rank()) {
                    best = Some(candidate);
                }
            }
            if best.is_some_and(|best| best.begins_us < now_us + SOON_US) {
                break;
            }
        }
        let best = best.or_else(|| self.anybody(host, now_us));
        let Candidate { begins_us, from, piece, .. } = best?;
        Some(Choice { piece, from, begins_us, alternates: self.alternates(host, piece, from) })
    }

    /// The rarest pieces that the host lacks, most rare first; `u32::MAX` copies: none.
    pub(super) fn rarest(&mut self, host: HostNo) -> [(u32, PieceNo); RAREST] {
        let mut rarest = [(u32::MAX, 0); RAREST];
        let words = self.done.words();
        let begin = self.dice.below(words);
        let mut left = COMPARED;
        for i in 0..words {
            let word = (begin + i) % words;
            let lacks = !(self.done.word(host, word) | self.coming.word(host, word));
            for bit in ones(self.somewhere.word(SOURCE, word) & lacks) {
                let piece = u32::try_from(word).unwrap_or(0) * 64 + bit;
                let copies = self.copies[piece as usize];
                if copies < rarest[RAREST - 1].0 {
                    let at = rarest.partition_point(|(others, _)| *others <= copies);
                    rarest[at..].rotate_right(1);
                    rarest[at] = (copies, piece);
                }
                left -= 1;
                if left == 0 {
                    return rarest;
                }
            }
        }
        rarest
    }

    /// Where the holders of a piece are looked for; `None` if it may not enter the host's rack now.
    fn place(&self, host: HostNo, piece: PieceNo) -> Option<Place> {
        let rack = self.members[host.index()].rack;
        if self.inside_only(host, piece) {
            Some(Place::Inside { rack })
        } else {
            self.may_enter(rack, host).then_some(Place::Anywhere)
        }
    }

    /// Whether the host should take a piece from its own rack: enough copies are there, or on their way there. A host for which
    /// nothing was found there, or that lacks only the last few pieces, is not held to it: a budget, never a prohibition.
    fn inside_only(&self, host: HostNo, piece: PieceNo) -> bool {
        let member = &self.members[host.index()];
        let starves = member.found_nothing && member.under_way.len() < self.settings.slots as usize;
        let is_last = (self.n_pieces - member.n_done) * TAIL <= self.n_pieces;
        self.settings.rack_budget > 0
            && !starves
            && !is_last
            && self.racks.copies(member.rack, piece) >= RACK_COPIES
    }

    /// A host that may have the piece.
    fn draw_holder(&mut self, place: Place, piece: PieceNo) -> Option<Holder> {
        match place {
            Place::Inside { rack } => {
                let members = self.racks.members(rack);
                Some(Holder { host: members[self.dice.below(members.len())], begins_ms: 0 })
            }
            Place::Anywhere => {
                let holders = &self.holders[piece as usize];
                if holders.is_empty() { None } else { Some(holders[self.dice.below(holders.len())]) }
            }
        }
    }

    /// When a holder could begin to send a piece to `to`; `None` if it may not or not within the horizon.
    fn can_begin(&self, holder: Holder, to: HostNo, piece: PieceNo, now_us: u64) -> Option<u64> {
        let from = holder.host;
        let load = self.loads[from.index()];
        if from == to || !load.is_free {
            return None;
        }
        let mut begins_us = now_us + load.wait_us(self.settings.slots);
        if !self.done.has(from, piece) {
            let may_wait = self.coming.has(from, piece)
                && !self.failed.has(to, piece)
                && u32::from(load.promised) < self.settings.promises_max;
            if !may_wait {
                return None;
            }
            begins_us = begins_us.max(u64::from(holder.begins_ms) * 1000);
        }
        let receiver = &self.members[to.index()].blame;
        let is_avoided = receiver.avoids_any() && receiver.avoids(from);
        (begins_us <= now_us + self.settings.horizon_us && !is_avoided).then_some(begins_us)
    }

    /// Any free host that has something: when many copies are about, nearly everybody does.
    fn anybody(&mut self, host: HostNo, now_us: u64) -> Option<Candidate> {
        for _ in 0..ANYBODY {
            let from = self.free.draw(&mut self.dice)?;
            let words = self.done.words();
            let begin = self.dice.below(words);
            for i in 0..words {
                let word = (begin + i) % words;
                let lacks = !(self.done.word(host, word) | self.coming.word(host, word));
                let Some(bit) = ones(self.done.word(from, word) & lacks).next() else { continue };
                let piece = u32::try_from(word).unwrap_or(0) * 64 + bit;
                if self.may_cross(from, host, piece)
                    && let Some(begins_us) =
                        self.can_begin(Holder { host: from, begins_ms: 0 }, host, piece, now_us)
                {
                    let copies = self.copies[piece as usize];
                    return Some(Candidate { begins_us, copies, from, piece });
                }
                break;
            }
        }
        None
    }

    fn may_cross(&self, from: HostNo, to: HostNo, piece: PieceNo) -> bool {
        let rack = self.members[to.index()].rack;
        self.members[from.index()].rack == rack || matches!(self.place(to, piece), Some(Place::Anywhere))
    }

    /// Whether one more piece may be on its way into a rack. Leases are given ahead, so as many as the budget allows to pass
    /// within the horizon.
    fn may_enter(&self, rack: u32, to: HostNo) -> bool {
        let Settings { rack_budget, slots, horizon_us, .. } = self.settings;
        let step_us = u64::from(self.loads[to.index()].step_us).max(1);
        let ahead = u32::try_from(horizon_us / step_us).unwrap_or(u32::MAX);
        rack_budget == 0
            || self.racks.entering(rack) < rack_budget.saturating_mul(slots.saturating_add(ahead))
    }

    /// Two more hosts that have the piece or will.
    fn alternates(&mut self, host: HostNo, piece: PieceNo, from: HostNo) -> [Option<HostNo>; 2] {
        let mut found = [None; 2];
        let mut n_found = 0;
        let Some(place) = self.place(host, piece) else { return found };
        for _ in 0..ALTERNATE_DRAWS {
            let Some(Holder { host: other, .. }) = self.draw_holder(place, piece) else { break };
            let has = self.done.has(other, piece)
                || (self.coming.has(other, piece) && !self.failed.has(host, piece));
            let load = self.loads[other.index()];
            let is_new = other != host && other != from && other != SOURCE && found[0] != Some(other);
            if has && is_new && load.may_serve && !self.members[host.index()].blame.avoids(other) {
                found[n_found] = Some(other);
                n_found += 1;
                if n_found == found.len() {
                    break;
                }
            }
        }
        found
    }
}
