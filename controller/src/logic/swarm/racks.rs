//! How much may enter a rack at once, and what is there.
//!
//! **Why a budget and not a rule.** Hosts that may take nothing from outside starve when their rack has nothing; without any
//! limit each rack of 40 takes every piece 38 times over its uplink (simulated).

use super::PieceNo;

/// Copies and transfers by rack.
#[derive(Clone, Debug)]
pub(super) struct Racks {
    n_pieces: usize,
    /// Copies done and under way, by rack and piece.
    copies: Vec<u16>,
    /// Leases under way into a rack from outside.
    entering: Vec<u32>,
    /// Members by rack.
    members: Vec<Vec<super::HostNo>>,
}

impl Racks {
    pub(super) const fn new(n_pieces: u32) -> Self {
        Self { n_pieces: n_pieces as usize, copies: Vec::new(), entering: Vec::new(), members: Vec::new() }
    }

    pub(super) fn join(&mut self, rack: u32, host: super::HostNo) {
        let n_racks = rack as usize + 1;
        if self.entering.len() < n_racks {
            self.entering.resize(n_racks, 0);
            self.members.resize(n_racks, Vec::new());
            self.copies.resize(n_racks * self.n_pieces, 0);
        }
        self.members[rack as usize].push(host);
    }

    pub(super) fn members(&self, rack: u32) -> &[super::HostNo] {
        &self.members[rack as usize]
    }

    pub(super) fn copies(&self, rack: u32, piece: PieceNo) -> u16 {
        self.copies[rack as usize * self.n_pieces + piece as usize]
    }

    pub(super) fn add_copy(&mut self, rack: u32, piece: PieceNo) {
        self.copies[rack as usize * self.n_pieces + piece as usize] += 1;
    }

    pub(super) fn drop_copy(&mut self, rack: u32, piece: PieceNo) {
        self.copies[rack as usize * self.n_pieces + piece as usize] -= 1;
    }

    pub(super) fn entering(&self, rack: u32) -> u32 {
        self.entering[rack as usize]
    }

    pub(super) fn enters(&mut self, rack: u32) {
        self.entering[rack as usize] += 1;
    }

    pub(super) fn entered(&mut self, rack: u32) {
        self.entering[rack as usize] -= 1;
    }
}
