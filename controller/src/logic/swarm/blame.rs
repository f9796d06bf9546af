//! Who is left out, and for how long.
//!
//! **What.** Three failures in a row put a host out of the suppliers for half a minute. A host that passes on what it receives
//! can fail because its own supplier did: that does not count. Wrong bytes put a host out for the one who got them, and for
//! all once three different hosts say so.
//! **Why accusations are counted.** A host that lies could accuse one honest host after the other. An honest one meets few
//! bad ones before they are out, so the first few accusations of each count ([`ACCUSATIONS_MAX`]) and the others do not; who
//! makes more is given little, as what it is given seems to be wasted.

use super::HostNo;

/// Failures in a row that put a host out for a while.
const FAILURES_MAX: u8 = 3;
/// How long it is out then, µs.
const OUT_US: u64 = 30_000_000;
/// Hosts that must have had wrong bytes before a supplier is out for good.
const ACCUSERS: usize = 3;
/// Accusations of one host that count at first.
const ACCUSATIONS_MAX: u32 = 6;
/// Pieces that it must have finished for one more: who lies throws away what it is given.
const PIECES_PER_ACCUSATION: u32 = 32;

/// How a supplier failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// It offered nothing while the lease was valid, or its own supplier failed.
    Late,
    /// It fell silent in the middle, or the connection broke.
    Silent,
    /// It does not have a piece that it said it has.
    Missing,
    /// Its bytes failed their hash, or it broke the protocol.
    Wrong,
}

/// What is held against one host.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    failures: u8,
    /// µs; 0: it is not out.
    out_until_us: u64,
    /// Who had wrong bytes from it and is believed.
    accusers: Vec<HostNo>,
    /// Whom it accused itself.
    accused: Vec<HostNo>,
}

impl Record {
    /// It served somebody.
    pub(super) const fn served(&mut self) {
        self.failures = 0;
    }

    /// It accuses a supplier of wrong bytes; whether that counts, with so many pieces finished.
    pub(super) fn accuses(&mut self, supplier: HostNo, n_done: u32) -> bool {
        if !self.accused.contains(&supplier) {
            self.accused.push(supplier);
        }
        !self.is_doubtful(n_done)
    }

    /// Whether it accuses more than an honest host would that has finished so many pieces.
    pub(super) const fn is_doubtful(&self, n_done: u32) -> bool {
        self.accused.len() > (ACCUSATIONS_MAX + n_done / PIECES_PER_ACCUSATION) as usize
    }

    /// Whether it had wrong bytes from `supplier`.
    pub(super) fn avoids(&self, supplier: HostNo) -> bool {
        self.accused.contains(&supplier)
    }

    /// Whether it had wrong bytes from anybody.
    pub(super) const fn avoids_any(&self) -> bool {
        !self.accused.is_empty()
    }

    /// It failed `by`, who is believed or not; whether that changes whether it may be given leases.
    pub(super) fn failed(&mut self, by: HostNo, how: Failure, is_believed: bool, now_us: u64) -> bool {
        if how == Failure::Wrong {
            if !is_believed || self.accusers.contains(&by) || self.is_expelled() {
                return false;
            }
            self.accusers.push(by);
            if self.is_expelled() {
                self.out_until_us = u64::MAX;
            }
            return self.is_expelled();
        }
        if how == Failure::Late {
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        let goes_out = self.failures >= FAILURES_MAX && !self.is_expelled();
        if goes_out {
            self.failures = 0;
            self.out_until_us = now_us + OUT_US;
        }
        goes_out
    }

    /// Whether it is out for the rest of the campaign.
    pub(super) const fn is_expelled(&self) -> bool {
        self.accusers.len() >= ACCUSERS
    }

    /// Whether it may be given no leases now.
    pub(super) const fn is_out(&self, now_us: u64) -> bool {
        self.out_until_us > now_us
    }

    /// Whether its time out has just ended; says so once.
    pub(super) const fn came_back(&mut self, now_us: u64) -> bool {
        let is_back = self.out_until_us > 0 && self.out_until_us <= now_us;
        if is_back {
            self.out_until_us = 0;
        }
        is_back
    }
}
