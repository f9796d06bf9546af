//! What a campaign does while no controller is heard.
//!
//! **What.** The hosts that were named in leases are asked what they have; [`Neighbours`](crate::logic::swarm::Neighbours) makes
//! leases of it.
//! **Invariants.** Nobody is asked as long as leases of the controller keep this host busy.

use std::sync::Arc;
use std::time::Duration;

use super::campaign::Campaign;
use super::request;
use crate::logic::swarm::WINDOW_MAX;
use crate::{clock, task};

/// A host that hears nothing from its controller for this long helps itself.
const ALONE_AFTER: Duration = Duration::from_secs(1);
/// Time between two questions to the neighbours what they have.
const NEIGHBOURS_EVERY: Duration = Duration::from_secs(1);

impl Campaign {
    /// Helps itself among the hosts it knows, as long as no controller is heard.
    pub(super) fn alone(&mut self, for_how_long: Duration) {
        let n_pieces = self.pieces.as_ref().map_or(0, |pieces| pieces.len());
        let now = clock::monotonic();
        let Some(part) = &mut self.part else { return };
        let is_early = part.asked_neighbours.is_some_and(|at| now.duration_since(at) < NEIGHBOURS_EVERY);
        if for_how_long < ALONE_AFTER || is_early || part.downloads.n_under_way() >= 2 * WINDOW_MAX {
            return;
        }
        part.asked_neighbours = Some(now);
        for from in part.neighbours.all() {
            if let Some(peer) = self.peers.get(&from) {
                let asking = request::having(part.ground.clone(), from, Arc::clone(peer), n_pieces);
                task::spawn("neighbour", asking);
            }
        }
    }

    pub(super) fn neighbour_has(&mut self, from: u32, done: Option<Vec<u8>>) {
        let n_pieces = self.pieces.as_ref().map_or(0, |pieces| pieces.len());
        let Some(part) = &mut self.part else { return };
        let Some(done) = done else { return part.neighbours.forget(from) };
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let words: Vec<u64> = done.chunks(8).map(word).collect();
        part.neighbours.has(from, &words);
        let n = (2 * WINDOW_MAX).saturating_sub(part.downloads.n_under_way());
        let here = &self.done;
        let has = |piece: u32| here[piece as usize / 64] >> (piece % 64) & 1 == 1;
        let lacks = |piece: u32| !has(piece) && !part.downloads.expects(piece);
        let leases = part.neighbours.choose(lacks, n_pieces, n, rand::random());
        leases.into_iter().for_each(|lease| self.follow(lease));
    }
}
