//! The swarms that are simulated.
//!
//! **What.** [`Scenario::named`] gives sizes and faults; the seed draws the details.
//! **Where the sizes come from.** One gigabit per host, 4 GiB in 1,024 pieces, racks of 40: the case of the design.

/// A simulated campaign. Rates in bytes per second, times in µs.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) hosts: u32,
    pub(crate) pieces: u32,
    pub(crate) piece_bytes: u64,
    /// Upload cap of a host and of the source; downloads may be twice as fast.
    pub(crate) cap_bytes_per_s: u64,
    pub(crate) slots: u32,
    pub(crate) rack_hosts: u32,
    /// See `Settings::rack_budget`.
    pub(crate) rack_budget: u32,
    /// A transfer takes up to this much longer or shorter, per cent.
    pub(crate) jitter_percent: u64,
    /// Per mille of hosts: crash at some time; are four times slower; are hostile.
    pub(crate) crashes: u64,
    pub(crate) slow: u64,
    pub(crate) hostile: u64,
    /// Crashed hosts come back after a while with what they had.
    pub(crate) return_after_us: Option<u64>,
    /// Partitions, per hundred hosts: a host neither hears nor is heard by the controller for some seconds.
    pub(crate) cut_off: u64,
    /// The controller is away: from this part of the bound in per cent, for so long.
    pub(crate) away: Option<(u64, u64)>,
    pub(crate) seed: u64,
}

impl Scenario {
    /// The scenario `name`.
    pub(crate) fn named(name: &str, hosts: u32, pieces: u32, seed: u64) -> Self {
        let calm = Self {
            hosts,
            pieces,
            piece_bytes: 4 << 20,
            cap_bytes_per_s: 125_000_000,
            slots: 4,
            rack_hosts: 40,
            rack_budget: 0,
            jitter_percent: 25,
            crashes: 20,
            slow: 0,
            hostile: 0,
            return_after_us: None,
            cut_off: 0,
            away: None,
            seed,
        };
        match name {
            "calm" => calm,
            "racks" => Self { rack_budget: 4, ..calm },
            "slow-hosts" => Self { slow: 100, crashes: 0, ..calm },
            "honest" => Self { crashes: 0, ..calm },
            "hostile" => Self { hostile: 300, crashes: 0, ..calm },
            "controller-away" => Self { away: Some((40, 10_000_000)), ..calm },
            // Everything at once, drawn from the seed.
            "faults" => {
                let mut random = crate::random::Random::new(seed ^ 0xfa17);
                Self {
                    crashes: random.between(0, 300),
                    slow: random.between(0, 200),
                    hostile: random.between(0, 200),
                    cut_off: random.between(0, 30),
                    rack_budget: u32::try_from(random.between(0, 1) * 4).unwrap_or(0),
                    return_after_us: random.chance(500).then_some(3_000_000),
                    away: random.chance(300).then(|| (random.between(0, 90), 5_000_000)),
                    ..calm
                }
            }
            other => panic!("no swarm is called {other}"),
        }
    }

    /// Time of one piece on a host's uplink, µs.
    pub(crate) const fn step_us(&self) -> u64 {
        self.piece_bytes * 1_000_000 / self.cap_bytes_per_s
    }
}
