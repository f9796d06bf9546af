//! Who fetches which piece from whom, so that ten thousand hosts are as fast as one.
//!
//! ```text
//!  reports ─▶ planner (who has what, what is under way) ─▶ choose (rarest piece, least busy holders) ─▶ leases
//!                 ▲            ▲             ▲
//!              source        racks         blame
//! ```
//! **What.** A [`Planner`] is the picture of one campaign: a bitmap of finished pieces per host, what is under way, one
//! rarity counter per piece. Reports change the picture; [`Planner::plan`] returns leases.
//! **Why a central plan.** Counting copies under way as copies takes 256 pieces from 1.24 to 1.10 times the bound
//! (simulated), and only somebody who sees all hosts can count them.
//! **Why three holders in a lease.** What the planner knows is up to half a second old. The receiver asks all three; the one
//! whose slot is free first serves it, and the others forget it. That alone takes a thousand hosts from 1.09 to 1.04 times
//! the bound (simulated), and a holder that died costs nothing.
//! **Why pieces that a host does not have yet may be leased from it.** A host passes a chunk on as soon as it is verified. If
//! the planner waited for reports, each of the thirteen generations from one host to ten thousand would cost a third of a
//! second.
//!
//! **Invariants**, each with a test of the same name in `tests.rs`:
//! 1. `the_source_sends_each_piece_once_before_any_twice`.
//! 2. `no_host_is_sent_a_piece_that_it_has_or_awaits`.
//! 3. `nothing_is_leased_from_who_is_out_or_gone`.
//! 4. `counts_agree_with_the_bitmaps_after_any_history`.
//! 5. `a_rack_takes_no_more_at_once_than_its_budget`.

mod bits;
mod blame;
mod bound;
mod choose;
mod copies;
mod leases;
mod member;
pub mod membership;
mod planner;
mod pool;
mod racks;
mod source;
#[cfg(test)]
mod tests;

pub use blame::Failure;
pub use bound::{Bound, Limit, Shape, bound};
pub use member::{Joining, SOURCE};
pub use planner::Planner;

/// Number of a host inside one campaign, in the order in which they joined; [`SOURCE`] is the controller.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct HostNo(u32);

impl HostNo {
    /// Its place in a table of all hosts of the campaign.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its number as messages have it.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The host at a place.
    fn at(index: usize) -> Self {
        Self(u32::try_from(index).expect("a campaign has fewer than 2³² hosts"))
    }
}

/// Number of a piece of the content.
pub type PieceNo = u32;

/// How far and how the planner looks. The numbers were chosen by simulation (`tests/sim`).
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Uploads that a host serves at once.
    pub slots: u32,
    /// How far ahead a host is kept busy, µs: must cover a report and a lease under way.
    pub horizon_us: u64,
    /// The same for the source, whose progress is known at once.
    pub source_horizon_us: u64,
    /// Time for a verified chunk to pass through a host, µs.
    pub hop_us: u64,
    /// Validity of a lease beyond the time it should take, µs.
    pub validity_us: u64,
    /// A host that says nothing for this long is taken for gone, µs; hosts speak at least twice a second.
    pub silence_us: u64,
    /// Most leases under way to one host.
    pub under_way_max: usize,
    /// Most leases from one host on pieces that it does not have yet.
    pub promises_max: u32,
    /// What may enter a rack at once, in times of what one host can send; 0: no limit.
    pub rack_budget: u32,
    /// Draws of the planner.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            slots: 4,
            horizon_us: 700_000,
            source_horizon_us: 450_000,
            hop_us: 20_000,
            validity_us: 2_000_000,
            silence_us: 1_200_000,
            under_way_max: 64,
            promises_max: 64,
            rack_budget: 0,
            seed: 1,
        }
    }
}

/// One piece for one host. The receiver asks `from` and the alternates; whoever can begin first serves it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lease {
    /// Who fetches.
    pub to: HostNo,
    /// What.
    pub piece: PieceNo,
    /// From whom.
    pub from: HostNo,
    /// From whom else.
    pub alternates: [Option<HostNo>; 2],
}
