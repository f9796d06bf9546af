//! A set of hosts from which one can be drawn at random, and the draws.

use super::HostNo;

/// A set of host numbers; adding, removing and drawing take constant time.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    list: Vec<HostNo>,
    /// Place in `list` plus one, by host; 0: not in it.
    places: Vec<u32>,
}

impl Pool {
    pub(super) fn contains(&self, host: HostNo) -> bool {
        self.places.get(host.index()).is_some_and(|place| *place > 0)
    }

    /// Puts a host in or takes it out.
    pub(super) fn put(&mut self, host: HostNo, inside: bool) {
        if self.contains(host) == inside {
            return;
        }
        let at = host.index();
        if inside {
            if self.places.len() <= at {
                self.places.resize(at + 1, 0);
            }
            self.list.push(host);
            self.places[at] = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
            return;
        }
        let place = std::mem::take(&mut self.places[at]);
        self.list.swap_remove(place as usize - 1);
        if let Some(moved) = self.list.get(place as usize - 1) {
            self.places[moved.index()] = place;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = HostNo> + '_ {
        self.list.iter().copied()
    }

    pub(super) fn draw(&self, dice: &mut Dice) -> Option<HostNo> {
        if self.list.is_empty() { None } else { Some(self.list[dice.below(self.list.len())]) }
    }

    /// All of them in random order.
    pub(super) fn shuffled(&self, dice: &mut Dice) -> Vec<HostNo> {
        let mut all = self.list.clone();
        for i in (1..all.len()).rev() {
            all.swap(i, dice.below(i + 1));
        }
        all
    }
}

/// Draws that repeat with their seed (`xorshift64*`): a plan can be made again from its reports.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `n`, which must not be 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from((high * n as u64) >> 32).unwrap_or(0)
    }
}
