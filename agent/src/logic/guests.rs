//! How much of the interface campaigns leave to the guests.
//!
//! **What.** Twice a second [`Share::look`] is told how busy the interface is, by us and by others, and says which part of the cap
//! may be used: half of it at each look while the interface is too busy and others are a part of that, and a little more at
//! each look that finds it free.
//! **Why halving and adding.** That is how senders share a line that nobody manages; guests that come get room within a
//! second or two, and get back out of it in half a minute.
//! **Why our own bytes do not count as others.** A cap that is as large as the line would otherwise throttle itself.
//! **Invariants.** `guests_get_room_within_two_seconds`, `without_guests_the_cap_is_used`, `never_less_than_a_little`.

/// Above this part of the interface it is busy, per cent.
const BUSY_PERCENT: u64 = 70;
/// Below this part of the interface others are no reason, per cent.
const OTHERS_PERCENT: u64 = 5;
/// The least that is kept of the cap: one in this many.
const LEAST_PART: u64 = 64;
/// What comes back at each look that finds the interface free: one in this many.
const STEP_PART: u64 = 50;
/// The whole cap.
const WHOLE: u64 = 1 << 16;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Of [`WHOLE`].
    part: u64,
}

impl Default for Share {
    fn default() -> Self {
        Self { part: WHOLE }
    }
}

impl Share {
    /// Whether the whole cap may be used.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.part == WHOLE
    }

    /// One direction of the interface moved `all` bytes per second since the last look, of which `ours` are ours, and can
    /// move `nic`. Returns what is allowed of `cap`, at least 1.
    pub fn look(&mut self, all: u64, ours: u64, nic: u64, cap: u64) -> u64 {
        let others = all.saturating_sub(ours);
        let is_busy = all.saturating_mul(100) > nic.saturating_mul(BUSY_PERCENT);
        let has_others = others.saturating_mul(100) > nic.saturating_mul(OTHERS_PERCENT);
        self.part = if is_busy && has_others {
            (self.part / 2).max(WHOLE / LEAST_PART)
        } else {
            (self.part + WHOLE / STEP_PART).min(WHOLE)
        };
        let allowed = u128::from(cap) * u128::from(self.part) / u128::from(WHOLE);
        u64::try_from(allowed).unwrap_or(cap).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NIC: u64 = 12_500_000;

    #[test]
    fn guests_get_room_within_two_seconds() {
        let mut share = Share::default();
        let mut allowed = NIC / 5;
        for _ in 0..4 {
            // A guest takes all that we leave.
            allowed = share.look(NIC, allowed, NIC, NIC / 5);
        }
        assert!(allowed < NIC / 50, "{allowed}");
        let looks = (0..100).take_while(|_| share.look(allowed, allowed, NIC, NIC / 5) < NIC / 5).count();
        assert!((20..60).contains(&looks), "{looks} looks until it is all ours again");
    }

    #[test]
    fn without_guests_the_cap_is_used() {
        let mut share = Share::default();
        // Acknowledgements of others come on top of ours.
        (0..100).for_each(|_| assert_eq!(share.look(NIC, NIC - NIC / 50, NIC, NIC), NIC));
        (0..100).for_each(|_| assert_eq!(share.look(NIC / 2, NIC / 5, NIC, NIC / 5), NIC / 5));
    }

    #[test]
    fn never_less_than_a_little() {
        let mut share = Share::default();
        let least = (0..1000).map(|_| share.look(NIC, 0, NIC, NIC)).min().unwrap();
        assert_eq!(least, NIC / LEAST_PART);
        assert_eq!(share.look(NIC, 0, NIC, 1), 1);
    }
}
