//! Work to do while the controller is away: rarest first among the hosts that are known.
//!
//! **What.** Neighbours say which pieces they have; [`Neighbours::choose`] makes leases of it.
//! **Why rarest first among ten.** With ten random neighbours it is nearly as good as among all (simulated), and needs nobody
//! who knows everything.

use super::downloads::{HOLDERS_MAX, Lease};

/// Neighbours that are remembered.
pub const NEIGHBOURS_MAX: usize = 10;

#[derive(Clone, Debug)]
struct Neighbour<P> {
    peer: P,
    /// A bit per piece.
    done: Vec<u64>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Neighbours<P> {
    known: Vec<Neighbour<P>>,
    /// Where the next newcomer goes when all places are taken.
    next: usize,
}

impl<P> Default for Neighbours<P> {
    fn default() -> Self {
        Self { known: Vec::new(), next: 0 }
    }
}

impl<P: Copy + Eq> Neighbours<P> {
    /// A host that served this one, or may.
    pub fn note(&mut self, peer: P) {
        if self.known.iter().any(|neighbour| neighbour.peer == peer) {
            return;
        }
        let newcomer = Neighbour { peer, done: Vec::new() };
        if self.known.len() < NEIGHBOURS_MAX {
            self.known.push(newcomer);
        } else {
            self.known[self.next] = newcomer;
            self.next = (self.next + 1) % NEIGHBOURS_MAX;
        }
    }

    /// A host that is gone or gave wrong bytes.
    pub fn forget(&mut self, peer: P) {
        self.known.retain(|neighbour| neighbour.peer != peer);
        self.next = 0;
    }

    /// Whom to ask what they have.
    pub fn all(&self) -> impl Iterator<Item = P> + '_ {
        self.known.iter().map(|neighbour| neighbour.peer)
    }

    /// What a neighbour has: a bit per piece.
    pub fn has(&mut self, peer: P, done: &[u64]) {
        if let Some(neighbour) = self.known.iter_mut().find(|neighbour| neighbour.peer == peer) {
            neighbour.done = done.to_vec();
        }
    }

    /// A lease on a piece that no neighbour has, from `source`, which has all of them. Which one is drawn, so that a thousand
    /// hosts that do the same at once rarely fetch the same.
    #[must_use]
    pub fn from_source(
        &self,
        source: P,
        lacks: impl Fn(u32) -> bool,
        n_pieces: u32,
        seed: u64,
    ) -> Option<Lease<P>> {
        let nowhere = |piece: &u32| lacks(*piece) && self.holders(*piece).next().is_none();
        let n = (0..n_pieces).filter(nowhere).count();
        let drawn = usize::try_from(seed % u64::try_from(n.max(1)).unwrap_or(1)).unwrap_or(0);
        let piece = (0..n_pieces).filter(nowhere).nth(drawn)?;
        let mut holders = [None; HOLDERS_MAX];
        holders[0] = Some(source);
        Some(Lease { piece, holders })
    }

    /// At most `n` leases on pieces that `lacks` names, the rarest among the neighbours first; `seed` spreads equals.
    #[must_use]
    pub fn choose(&self, lacks: impl Fn(u32) -> bool, n_pieces: u32, n: usize, seed: u64) -> Vec<Lease<P>> {
        let begin = if n_pieces == 0 { 0 } else { u32::try_from(seed % u64::from(n_pieces)).unwrap_or(0) };
        let pieces = (0..n_pieces).map(|i| (begin + i) % n_pieces).filter(|piece| lacks(*piece));
        let counted = pieces.map(|piece| (self.holders(piece).count(), piece));
        let mut counted: Vec<(usize, u32)> = counted.filter(|(copies, _)| *copies > 0).collect();
        counted.sort_by_key(|(copies, _)| *copies);
        let lease = |(i, (copies, piece)): (usize, (usize, u32))| {
            let mut holders = [None; HOLDERS_MAX];
            let from = self.holders(piece).cycle().skip((begin as usize + i) % copies).take(copies);
            holders.iter_mut().zip(from).for_each(|(place, holder)| *place = Some(holder));
            Lease { piece, holders }
        };
        counted.into_iter().take(n).enumerate().map(lease).collect()
    }

    fn holders(&self, piece: u32) -> impl Iterator<Item = P> + Clone + '_ {
        let has = move |neighbour: &&Neighbour<P>| {
            neighbour.done.get(piece as usize / 64).is_some_and(|word| word >> (piece % 64) & 1 == 1)
        };
        self.known.iter().filter(has).map(|neighbour| neighbour.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rarest_piece_comes_first_and_what_nobody_has_not_at_all() {
        let mut neighbours = Neighbours::default();
        for (peer, done) in [(1_u32, 0b0111), (2, 0b0011), (3, 0b0101)] {
            neighbours.note(peer);
            neighbours.has(peer, &[done]);
        }
        let leases = neighbours.choose(|piece| piece != 0, 4, 10, 0);
        assert_eq!(leases.iter().map(|lease| lease.piece).collect::<Vec<_>>(), vec![1, 2]);
        assert_eq!(leases[0].holders, [Some(1), Some(2), None]);
        neighbours.forget(1);
        assert_eq!(neighbours.choose(|_| true, 4, 2, 0).len(), 2);
    }

    #[test]
    fn the_source_is_asked_for_what_no_neighbour_has() {
        let mut neighbours = Neighbours::default();
        neighbours.note(1_u32);
        neighbours.has(1, &[0b0101]);
        let drawn: Vec<Option<u32>> = (0..4)
            .map(|seed| neighbours.from_source(9, |_| true, 4, seed).map(|lease| lease.piece))
            .collect();
        assert_eq!(drawn, vec![Some(1), Some(3), Some(1), Some(3)]);
        assert_eq!(neighbours.from_source(9, |piece| piece == 0, 4, 0), None);
    }

    #[test]
    fn at_most_ten_are_remembered() {
        let mut neighbours = Neighbours::default();
        (0..100_u32).for_each(|peer| neighbours.note(peer));
        assert_eq!(neighbours.all().count(), NEIGHBOURS_MAX);
        assert!(neighbours.all().any(|peer| peer == 99));
    }
}
