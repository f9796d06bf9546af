//! Decides whether bytes fit into the cache.
//!
//! **What.** Two limits hold at once: the cache's own budget, and the floor of free bytes that the file system keeps for
//! everybody else on the host. [`short_of`] says by how many bytes a wish passes them.
//!
//! **Why reservations count in full.** A transfer that fails in the middle for lack of space has wasted the network and
//! filled the disk; so a transfer reserves what it may write before its first byte, and what it has not yet written is
//! taken off the free bytes as well.
//!
//! **Invariants**, each tested: `what_fits_keeps_both_limits`, `a_shortfall_is_exactly_what_must_go`.

/// The cache at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// What the cache may allocate.
    pub budget_bytes: u64,
    /// What it has allocated: objects, manifests, staging, trash, quarantine.
    pub used_bytes: u64,
    /// What running transfers have reserved and not yet allocated.
    pub reserved_bytes: u64,
    /// What the file system has free.
    pub free_bytes: u64,
    /// What must stay free on the file system.
    pub floor_bytes: u64,
}

impl Usage {
    /// Allocated and reserved bytes: what a report calls used.
    #[must_use]
    pub const fn committed_bytes(&self) -> u64 {
        self.used_bytes.saturating_add(self.reserved_bytes)
    }

    /// Bytes that a new transfer may reserve now.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        let in_budget = self.budget_bytes.saturating_sub(self.committed_bytes());
        let on_disk = self.free_bytes.saturating_sub(self.floor_bytes).saturating_sub(self.reserved_bytes);
        in_budget.min(on_disk)
    }
}

/// Bytes that must be freed before `needed_bytes` more fit; 0 if they fit now.
#[must_use]
pub fn short_of(usage: Usage, needed_bytes: u64) -> u64 {
    let committed = usage.committed_bytes().saturating_add(needed_bytes);
    let over_budget = committed.saturating_sub(usage.budget_bytes);
    let wanted_free = usage.floor_bytes.saturating_add(usage.reserved_bytes).saturating_add(needed_bytes);
    let under_floor = wanted_free.saturating_sub(usage.free_bytes);
    over_budget.max(under_floor)
}

/// What a content with `data_bytes` of chunks may allocate: chunks, manifest, reuse index, file system metadata.
#[must_use]
pub const fn reservation_bytes(data_bytes: u64) -> u64 {
    /// Records take 44 and 16 bytes per chunk of at least 4 KiB on average 64 KiB; 1/256 covers both and extents.
    const METADATA_SHARE: u64 = 256;
    /// Root, journal, folder blocks and rounding.
    const FIXED_BYTES: u64 = 512 * 1024;
    data_bytes.saturating_add(data_bytes / METADATA_SHARE).saturating_add(FIXED_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usage(numbers: [u32; 5]) -> Usage {
        let [budget, used, reserved, free, floor] = numbers.map(u64::from);
        Usage {
            budget_bytes: budget,
            used_bytes: used,
            reserved_bytes: reserved,
            free_bytes: free,
            floor_bytes: floor,
        }
    }

    proptest! {
        #[test]
        fn what_fits_keeps_both_limits(numbers: [u32; 5], needed: u32) {
            let (usage, needed) = (usage(numbers), u64::from(needed));
            let fits = usage.used_bytes + usage.reserved_bytes + needed <= usage.budget_bytes
                && usage.reserved_bytes + needed + usage.floor_bytes <= usage.free_bytes;
            prop_assert_eq!(short_of(usage, needed) == 0, fits);
            prop_assert!(needed == 0 || (needed <= usage.room_bytes()) == fits);
        }

        #[test]
        fn a_shortfall_is_exactly_what_must_go(
            budget in 1_u32 << 18..1 << 20, used in 1_u32 << 20..1 << 30, small: [u16; 3], needed: u16,
        ) {
            let [reserved, free, floor] = small.map(u32::from);
            let (before, needed) = (usage([budget, used, reserved, free, floor]), u64::from(needed));
            let short = short_of(before, needed);
            prop_assert!(short > 0);
            let freed = |bytes| Usage {
                used_bytes: before.used_bytes - bytes,
                free_bytes: before.free_bytes + bytes,
                ..before
            };
            prop_assert_eq!(short_of(freed(short), needed), 0);
            prop_assert_eq!(short_of(freed(short - 1), needed), 1);
        }
    }

    #[test]
    fn a_reservation_covers_chunks_and_manifest() {
        assert_eq!(reservation_bytes(0), 512 * 1024);
        assert!(reservation_bytes(1 << 30) > (1 << 30) + (1 << 30) / 65_536 * 60);
        assert_eq!(reservation_bytes(u64::MAX), u64::MAX);
    }
}
