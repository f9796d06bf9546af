//! One campaign in virtual time: the controller's planner, the agents' decisions, and a model of links between them.
//!
//! **What.** Leases and reports travel 50 to 250 ms. A transfer takes one slot's share of the sender's uplink, longer when the
//! receiver's downlink is shared by more than fit; a receiver passes a piece on while it comes in, and has it whole a quarter
//! of a piece time after its own supplier at the earliest.
//! **What is not modelled.** The core of the network, disks, and bandwidth that one transfer leaves to another: a slot that
//! waits is lost. Real swarms can be better in the last and worse in the first two.
//! **Invariants.** Time never goes back; the same seed gives the same events in the same order ([`Outcome::trace`]).

use std::time::Duration;

use hearth_agent::logic::swarm as peer;
use hearth_agent::logic::swarm::{Downloads, Neighbours, Report, Uploads};
use hearth_controller::logic::swarm::{self, HostNo, Planner, Settings};

use super::host::{Host, Nature, SOURCE};
use super::scenario::Scenario;
use crate::queue::Queue;
use crate::random::Random;

/// Shortest and longest way of a message to or from the controller, µs.
const DELAY_US: (u64, u64) = (50_000, 250_000);
/// Time between two plans, µs.
pub(super) const TICK_US: u64 = 25_000;
/// Offer and acceptance between two hosts, µs.
pub(super) const HANDSHAKE_US: u64 = 1000;
/// How often a host looks for stalled transfers and expired leases, µs.
pub(super) const LOOK_US: u64 = 250_000;
/// A host that has nothing to report says so this often, µs.
pub(super) const SIGN_OF_LIFE_US: u64 = 500_000;
/// A host without news from the controller for this long helps itself, µs.
pub(super) const ALONE_US: u64 = 1_000_000;
/// Validity of a lease at its host, ms.
pub(super) const VALIDITY_MS: u64 = 2500;

pub(super) type Leases = Vec<peer::Lease<u32>>;

#[derive(Debug)]
pub(super) enum Event {
    Plan,
    Leases { host: u32, boot: u32, leases: Leases },
    Sent { to: u32, from: u32, piece: u32, boots: (u32, u32), is_right: bool },
    Report { host: u32, boot: u32 },
    Reported { number: HostNo, report: Report<u32> },
    Look { host: u32, boot: u32 },
    Crash(u32),
    Return(u32),
    Join(u32),
    CutOff { host: u32, for_us: u64 },
}

/// What was seen.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Time of the last host that stays, and of the middle one, µs.
    pub(crate) last_us: u64,
    pub(crate) median_us: u64,
    /// The time that nobody can beat, µs.
    pub(crate) bound_us: u64,
    /// Copies that the source sent.
    pub(crate) source_copies: f64,
    /// Most copies that entered one rack.
    pub(crate) rack_copies: f64,
    /// CPU of the planner.
    pub(crate) planner: Duration,
    pub(crate) n_leases: u64,
    /// Honest hosts that are up and lack something; must be 0.
    pub(crate) unfinished: u32,
    pub(crate) trace: u64,
}

impl Outcome {
    /// Time of the last host in times of the bound.
    pub(crate) fn ratio(&self) -> f64 {
        self.last_us as f64 / self.bound_us as f64
    }
}

/// See the module.
pub(crate) struct World {
    pub(super) scenario: Scenario,
    pub(super) random: Random,
    pub(super) now_us: u64,
    queue: Queue<Event>,
    pub(super) trace: u64,
    pub(super) hosts: Vec<Host>,
    /// Host by number at the planner.
    pub(super) of_number: Vec<u32>,
    pub(super) planner: Planner,
    pub(super) cpu: Duration,
    /// Leases of one tick, by host.
    pub(super) mail: Vec<Leases>,
    pub(super) n_left: u32,
    pub(super) entered: Vec<u64>,
    pub(super) away: std::ops::Range<u64>,
    pub(super) bound_us: u64,
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut random = Random::new(scenario.seed);
        let cap = scenario.cap_bytes_per_s;
        let settings = Settings {
            slots: scenario.slots,
            rack_budget: scenario.rack_budget,
            seed: scenario.seed,
            ..Settings::default()
        };
        let planner = Planner::new(settings, scenario.pieces, scenario.piece_bytes, cap);
        let mut hosts = vec![host(&scenario)];
        (0..scenario.pieces).for_each(|piece| hosts[0].put(piece));
        hosts.extend((1..=scenario.hosts).map(|_| host(&scenario)));
        for host in &mut hosts[1..] {
            if random.chance(scenario.slow) {
                host.speed = 1;
            }
            if random.chance(scenario.hostile) {
                let natures = [Nature::Corrupt, Nature::Stalling, Nature::Lying, Nature::Accusing];
                host.nature = natures[random.index(4)];
            }
        }
        let bound_us = super::bound_us(&scenario);
        let away = scenario.away.map_or(0..0, |(percent, for_us)| {
            let from = bound_us * percent / 100;
            from..from + for_us
        });
        let n_racks = scenario.hosts.div_ceil(scenario.rack_hosts) as usize;
        Self {
            random,
            now_us: 0,
            queue: Queue::default(),
            trace: 0,
            of_number: vec![SOURCE],
            mail: vec![Vec::new(); hosts.len()],
            n_left: u32::try_from(hosts[1..].iter().filter(|host| host.is_honest()).count())
                .expect("few hosts"),
            hosts,
            planner,
            cpu: Duration::ZERO,
            entered: vec![0; n_racks],
            away,
            bound_us,
            scenario,
        }
    }

    pub(super) fn at(&mut self, at_us: u64, event: Event) {
        self.queue.put(at_us, event);
    }

    pub(super) fn delay(&mut self) -> u64 {
        self.random.between(DELAY_US.0, DELAY_US.1)
    }

    pub(super) fn rack(&self, host: u32) -> u32 {
        (host - 1) / self.scenario.rack_hosts
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Outcome {
        let horizon_us = self.bound_us;
        for host in 1..=self.scenario.hosts {
            self.join(host);
            if self.random.chance(self.scenario.crashes) {
                let at_us = self.random.between(0, horizon_us);
                self.at(at_us, Event::Crash(host));
            }
            if self.random.chance(self.scenario.cut_off * 10) {
                let (at_us, for_us) =
                    (self.random.between(0, horizon_us), self.random.between(500_000, 8_000_000));
                self.at(at_us, Event::CutOff { host, for_us });
            }
        }
        self.at(0, Event::Plan);
        let patience_us = horizon_us * 4 + 120_000_000;
        while let Some((at_us, number, event)) = self.queue.next() {
            self.now_us = at_us;
            self.trace = self.trace.rotate_left(7) ^ at_us.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
            self.handle(event);
            if self.n_left == 0 || self.now_us > patience_us {
                break;
            }
        }
        self.outcome()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Plan => self.plan(),
            Event::Leases { host, boot, leases } => self.leased(host, boot, leases),
            Event::Sent { to, from, piece, boots, is_right } => self.sent(to, from, piece, boots, is_right),
            Event::Report { host, boot } => self.report(host, boot),
            Event::Reported { number, report } => self.reported(number, report),
            Event::Look { host, boot } => self.look(host, boot),
            Event::Crash(host) => self.crash(host),
            Event::Return(host) => self.come_back(host),
            Event::Join(host) => self.join_again(host),
            Event::CutOff { host, for_us } => self.hosts[host as usize].cut_until_us = self.now_us + for_us,
        }
    }

    pub(super) fn is_away(&self) -> bool {
        self.away.contains(&self.now_us)
    }

    fn outcome(self) -> Outcome {
        let honest = |host: &&Host| host.is_up && host.is_honest();
        let mut times: Vec<u64> =
            self.hosts[1..].iter().filter(honest).filter_map(|host| host.finished_us).collect();
        times.sort_unstable();
        let pieces = f64::from(self.scenario.pieces);
        Outcome {
            last_us: times.last().copied().unwrap_or(0),
            median_us: times.get(times.len() / 2).copied().unwrap_or(0),
            bound_us: self.bound_us,
            source_copies: self.hosts[0].sent_pieces as f64 / pieces,
            rack_copies: self.entered.iter().max().copied().unwrap_or(0) as f64 / pieces,
            planner: self.cpu,
            n_leases: self.planner.n_leases(),
            unfinished: self.n_left,
            trace: self.trace,
        }
    }
}

/// Transfers at once into a host: downlinks are twice as fast.
pub(super) fn window(scenario: &Scenario) -> usize {
    let cap = scenario.cap_bytes_per_s;
    peer::window(scenario.slots as usize, cap, 2 * cap)
}

/// A host before it joins.
fn host(scenario: &Scenario) -> Host {
    Host {
        nature: Nature::Honest,
        is_up: true,
        boot: 0,
        number: swarm::SOURCE,
        speed: 4,
        done: vec![0; scenario.pieces.div_ceil(64) as usize],
        n_done: 0,
        downloads: Downloads::new(window(scenario), VALIDITY_MS, scenario.pieces, scenario.pieces),
        uploads: Uploads::new(scenario.slots as usize),
        neighbours: Neighbours::default(),
        receiving: Vec::new(),
        finished_us: None,
        report_planned: false,
        cut_until_us: 0,
        heard_us: 0,
        spoke_us: 0,
        sent_pieces: 0,
    }
}
