//! Virtual time: one queue of events, and who handles each.
//!
//! **What.** [`World`] holds hosts, controller, network and checks; [`World::run`] takes events in order of time until
//! everything wanted is there or the time is over, and returns what was seen.
//! **Why single-threaded and seeded.** The same seed gives the same events in the same order; [`Outcome::trace`] proves it.
//! **Invariants.** Time never goes back. Decisions are those of the daemons' `logic/`; only what moves bytes is a model.

use std::collections::BTreeMap;

use hearth_protocol::digest::ContentId;
use hearth_protocol::id::{Generation, LocationId};
use hearth_protocol::mask::ChunkMask;
use hearth_protocol::message::control::{ObservedEntry, PlanAckV1, PlanV1};
use hearth_protocol::piece::Pieces;

use crate::agent::Host;
use crate::checks::Checks;
use crate::controller::Controller;
use crate::network::Network;
use crate::queue::Queue;
use crate::random::Random;
use crate::scenario::Scenario;

/// Bytes of one simulated chunk; four make a piece.
pub(crate) const CHUNK_BYTES: u32 = 256 * 1024;
/// The simulated clock begins here, ms since the epoch.
pub(crate) const EPOCH_MS: u64 = 1_800_000_000_000;
/// Time after the faults within which all must be well, ms.
const PATIENCE_MS: u64 = 40 * 60 * 1000;
/// How long a calm fleet is watched after all is there, ms.
const AFTERMATH_MS: u64 = 30_000;

/// To the controller, in a session.
#[derive(Clone, Debug)]
pub(crate) enum Up {
    Hello { followed: Generation },
    Observed { inventory: bool, entries: Vec<ObservedEntry> },
    Ack(PlanAckV1),
    Pulse(Generation),
}

/// To an agent, in a session.
#[derive(Clone, Debug)]
pub(crate) enum Down {
    Welcome,
    Plan(PlanV1),
}

/// A data request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) host: usize,
    pub(crate) boot: u64,
    pub(crate) number: u64,
    pub(crate) content: ContentId,
    pub(crate) chunks: Vec<u32>,
}

/// Its answer.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Chunks {
        good: Vec<u32>,
        bad: Vec<u32>,
    },
    Busy(u32),
    NotPlaced,
    /// No answer came.
    Nothing,
}

/// What happens. `boot` and `run` tell the life of the process that it is meant for.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Up {
        host: usize,
        session: u64,
        message: Up,
    },
    Down {
        host: usize,
        session: u64,
        message: Down,
    },
    /// A plan heard again long after, in whatever session there is.
    Stray {
        host: usize,
        plan: PlanV1,
    },
    Ask(Ask),
    Served {
        run: u64,
        ask: Ask,
    },
    Answer {
        ask: Ask,
        answer: Answer,
    },
    Connect {
        host: usize,
        boot: u64,
    },
    Look {
        host: usize,
        boot: u64,
    },
    Wake {
        host: usize,
        boot: u64,
    },
    Batch {
        host: usize,
        boot: u64,
    },
    Pump {
        host: usize,
        boot: u64,
        content: ContentId,
    },
    Stopped {
        host: usize,
        boot: u64,
        content: ContentId,
    },
    Hashed {
        host: usize,
        boot: u64,
        content: ContentId,
    },
    Pass {
        run: u64,
    },
    Regular,
    Fault(Fault),
}

/// What breaks, and what heals it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    CrashAgent(usize),
    StartAgent(usize),
    CrashController,
    StartController,
    Cut(usize, u64),
    FillDisk(usize),
    FreeDisk(usize),
}

/// Facts of a simulated content.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) pieces: Pieces,
    pub(crate) n_chunks: u32,
}

impl Content {
    pub(crate) fn new(n_pieces: u32) -> Self {
        let n_chunks = n_pieces * 4;
        let mut pieces = Pieces::new(u64::from(n_chunks) * u64::from(CHUNK_BYTES));
        (0..n_chunks).for_each(|_| pieces.push(CHUNK_BYTES));
        Self { pieces, n_chunks }
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        u64::from(self.n_chunks) * u64::from(CHUNK_BYTES)
    }
}

/// What a run gave.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) virtual_ms: u64,
    pub(crate) events: u64,
    /// Chunks that the source sent, in whole contents.
    pub(crate) source_copies: u64,
    pub(crate) trace: String,
    pub(crate) findings: Vec<String>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) now_ms: u64,
    pub(crate) random: Random,
    pub(crate) network: Network,
    pub(crate) hosts: Vec<Host>,
    pub(crate) controller: Controller,
    pub(crate) contents: BTreeMap<ContentId, Content>,
    pub(crate) checks: Checks,
    pub(crate) sent_chunks: u64,
    queue: Queue<Event>,
    numbers: u64,
}

pub(crate) fn location(host: usize) -> LocationId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&u64::try_from(host).unwrap_or(u64::MAX).to_be_bytes());
    LocationId::from_bytes(bytes)
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut this = Self {
            now_ms: 0,
            random: Random::new(scenario.seed),
            network: Network::default(),
            hosts: Vec::new(),
            controller: Controller::default(),
            contents: BTreeMap::new(),
            checks: Checks::default(),
            sent_chunks: 0,
            queue: Queue::default(),
            numbers: 0,
            scenario,
        };
        this.set_up();
        this
    }

    pub(crate) fn at(&mut self, ms: u64, event: Event) {
        self.queue.put(ms.max(self.now_ms), event);
    }

    pub(crate) fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now_ms + ms, event);
    }

    /// A number that no other has.
    pub(crate) const fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) const fn unix_ms(&self) -> u64 {
        EPOCH_MS + self.now_ms
    }

    pub(crate) fn unix_us(&self) -> i64 {
        i64::try_from(self.unix_ms() * 1000).expect("the simulated year is near")
    }

    /// Sends in a session, in order.
    pub(crate) fn send_up(&mut self, host: usize, session: u64, message: Up) {
        let at = self.network.stream((host, false), self.now_ms, &mut self.random);
        self.at(at, Event::Up { host, session, message });
    }

    pub(crate) fn send_down(&mut self, host: usize, session: u64, message: Down) {
        if let Down::Plan(plan) = &message
            && self.now_ms < self.scenario.faults_until_ms
            && self.random.chance(self.scenario.stray)
        {
            let later = self.random.between(500, 40_000);
            self.after(later, Event::Stray { host, plan: plan.clone() });
        }
        let at = self.network.stream((host, true), self.now_ms, &mut self.random);
        self.at(at, Event::Down { host, session, message });
    }

    pub(crate) fn is_faulty(&self) -> bool {
        self.now_ms < self.scenario.faults_until_ms
    }

    pub(crate) fn run(mut self) -> Outcome {
        let mut hasher = blake3::Hasher::new();
        let (mut count, mut well_since) = (0, None);
        let last_ms = self.scenario.faults_until_ms + PATIENCE_MS;
        while let Some((at, _, event)) = self.queue.next() {
            self.now_ms = at;
            count += 1;
            hasher.update(&at.to_le_bytes());
            hasher.update(format!("{event:?}").as_bytes());
            let regular = matches!(event, Event::Regular);
            self.handle(event);
            if regular {
                let well = !self.is_faulty() && self.missing().is_empty() && self.open_jobs() == 0;
                well_since = well.then(|| well_since.unwrap_or(at));
                if well_since.is_some_and(|since| at >= since + AFTERMATH_MS) || at >= last_ms {
                    break;
                }
            }
            if !self.checks.findings.is_empty() && self.scenario.bug.is_some() {
                break;
            }
        }
        let (now_ms, missing, open) = (self.now_ms, self.missing(), self.open_jobs());
        if self.checks.findings.is_empty() {
            self.checks.end(now_ms, &missing, open);
        }
        let chunks: u64 =
            self.contents.values().map(|content| u64::from(content.n_chunks)).max().unwrap_or(1);
        Outcome {
            virtual_ms: now_ms,
            events: count,
            source_copies: self.sent_chunks / chunks,
            trace: hasher.finalize().to_hex().chars().take(16).collect(),
            findings: self.checks.findings,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Up { host, session, message } => {
                if let Some(later) = self.network.held_back((host, false), self.now_ms) {
                    return self.at(later, Event::Up { host, session, message });
                }
                self.controller_hears(host, session, message);
            }
            Event::Down { host, session, message } => {
                if let Some(later) = self.network.held_back((host, true), self.now_ms) {
                    return self.at(later, Event::Down { host, session, message });
                }
                if self.hosts[host].session == Some(session) {
                    self.host_hears(host, message);
                }
            }
            Event::Stray { host, plan } => {
                if self.hosts[host].is_greeted() && !self.network.is_cut(host, self.now_ms) {
                    self.host_hears(host, Down::Plan(plan));
                }
            }
            Event::Ask(ask) => self.controller_asked(ask),
            Event::Served { run, ask } => self.controller_served(run, ask),
            Event::Answer { ask, answer } => self.host_answered(&ask, answer),
            Event::Pass { run } => self.controller_pass(run),
            Event::Regular => {
                self.after(5000, Event::Regular);
                self.controller_pass(self.controller.run);
            }
            Event::Fault(fault) => self.fault(fault),
            Event::Connect { host, boot } => self.for_life(host, boot, |world| world.connect(host)),
            Event::Look { host, boot } => self.for_life(host, boot, |world| world.look(host)),
            Event::Wake { host, boot } => self.for_life(host, boot, |world| world.pass(host)),
            Event::Batch { host, boot } => self.for_life(host, boot, |world| world.report(host)),
            Event::Pump { host, boot, content } => {
                self.for_life(host, boot, |world| world.pump(host, content));
            }
            Event::Stopped { host, boot, content } => {
                self.for_life(host, boot, |world| world.stopped(host, content));
            }
            Event::Hashed { host, boot, content } => {
                self.for_life(host, boot, |world| world.hashed(host, content));
            }
        }
    }

    fn for_life(&mut self, host: usize, boot: u64, act: impl FnOnce(&mut Self)) {
        if self.hosts[host].up && self.hosts[host].boot == boot {
            act(self);
        }
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::CrashAgent(host) => self.crash(host),
            Fault::StartAgent(host) => self.start(host),
            Fault::CrashController => self.controller.crash(),
            Fault::StartController => {
                self.controller.start();
                self.controller_pass(self.controller.run);
            }
            Fault::Cut(host, until_ms) => self.network.cut(host, until_ms),
            Fault::FillDisk(host) => self.hosts[host].full = true,
            Fault::FreeDisk(host) => self.hosts[host].full = false,
        }
    }

    /// Copies that are wanted and not there.
    pub(crate) fn missing(&self) -> Vec<(usize, String)> {
        let wanted = self.controller.wanted();
        let there = |(host, content): &(usize, ContentId)| self.hosts[*host].has_whole(*content);
        let show = |(host, content): (usize, ContentId)| (host, self.hosts[host].describe(content));
        wanted.into_iter().filter(|wish| !there(wish)).map(show).collect()
    }

    pub(crate) fn full_mask(&self, content: ContentId) -> ChunkMask {
        ChunkMask::full(self.contents[&content].n_chunks)
    }
}
