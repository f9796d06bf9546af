//! What is simulated: sizes, caps, faults, and the bugs that a test plants.
//!
//! **What.** [`Scenario::named`] gives the shape; the seed draws the details inside it.
//! **Why few knobs.** A run is repeated by name, number of hosts and seed alone.

/// A simulated fleet.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) hosts: usize,
    pub(crate) seed: u64,
    /// Transfers that the controller admits at once.
    pub(crate) cap: usize,
    /// Contents that are prewarmed, and pieces of each (1 MiB, four chunks).
    pub(crate) contents: usize,
    pub(crate) pieces: u32,
    /// Source, bytes per virtual millisecond.
    pub(crate) source_bytes_per_ms: u64,
    /// Faults are injected from 0 to this time; afterwards everything heals.
    pub(crate) faults_until_ms: u64,
    /// Of each kind of fault, how many over the whole time, per hundred hosts (controller crashes: in all).
    pub(crate) agent_crashes: u64,
    pub(crate) controller_crashes: u64,
    pub(crate) partitions: u64,
    pub(crate) full_disks: u64,
    /// Per mille of data requests that are lost, of chunks that come wrong, of plans that are heard again much later.
    pub(crate) lost: u64,
    pub(crate) wrong: u64,
    pub(crate) stray: u64,
    /// Per mille of hosts that are twenty times slower.
    pub(crate) slow: u64,
    pub(crate) bug: Option<Bug>,
}

/// A defect that a test plants to see that the checks find it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Bug {
    /// Eviction is told that nothing is held.
    EvictHeld,
    /// A plan of an older generation is followed.
    FollowStale,
    /// A copy is called active before its last chunk is there.
    ActiveEarly,
    /// The controller admits everybody at once.
    AdmitAll,
    /// The controller forgets generations when it restarts.
    ForgetGenerations,
    /// A job is done when its first target is.
    DoneEarly,
    /// An agent that lost its connection never comes back.
    StayAway,
    /// A plan that was lost with its session is not sent in the next one (a defect that this simulation found).
    SendOnce,
}

/// Names of all scenarios.
pub(crate) const NAMES: [&str; 6] = ["calm", "rough", "crashes", "partitions", "full-disks", "slow-hosts"];

impl Scenario {
    /// The scenario `name` with that many hosts.
    pub(crate) fn named(name: &str, hosts: usize, seed: u64) -> Self {
        let mut this = Self {
            name: "calm",
            hosts,
            seed,
            cap: (hosts / 8).clamp(4, 64),
            contents: 2,
            pieces: 6,
            source_bytes_per_ms: 1_000_000,
            faults_until_ms: 120_000,
            agent_crashes: 0,
            controller_crashes: 0,
            partitions: 0,
            full_disks: 0,
            lost: 0,
            wrong: 0,
            stray: 0,
            slow: 0,
            bug: None,
        };
        match name {
            "calm" => {}
            "rough" => {
                this =
                    Self { name: "rough", agent_crashes: 30, controller_crashes: 2, partitions: 30, ..this };
                this = Self { full_disks: 20, lost: 30, wrong: 5, stray: 100, slow: 50, ..this };
            }
            "crashes" => this = Self { name: "crashes", agent_crashes: 150, controller_crashes: 4, ..this },
            "partitions" => {
                this = Self { name: "partitions", partitions: 120, lost: 100, stray: 200, ..this }
            }
            "full-disks" => this = Self { name: "full-disks", full_disks: 100, contents: 3, ..this },
            "slow-hosts" => this = Self { name: "slow-hosts", slow: 300, wrong: 20, pieces: 12, ..this },
            other => panic!("no scenario is called {other}; there are {NAMES:?}"),
        }
        this
    }

    /// The same with a planted bug.
    pub(crate) const fn with(mut self, bug: Bug) -> Self {
        self.bug = Some(bug);
        self
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}
