//! Who takes part in a campaign, and what is known of each.
//!
//! **What.** A [`Member`] per location that takes part now, a row per number that the planner gave, and a [`Tally`] per location
//! that ever took part.
//! **Why three tables.** A host that comes back is a new one for the planner, with a new number; reports of others may still
//! name the old one; and what is shown of a host must outlive both.
//!
//! **Invariants.** Numbers from messages are looked up here and never used before. Row 0 is the source.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use hearth_protocol::id::LocationId;
use hearth_protocol::message::swarm::{FailureKind, PEER_ADDRESSES_MAX, PeerV1, PieceReportV1};

use super::super::registry::Session;
use super::view::{Failures, HostView};
use crate::logic::swarm::{HostNo, SOURCE};

/// Hosts that must have had wrong bytes from another before that one is out for good; as the planner has it.
const ACCUSERS_MAX: usize = 3;

/// Somebody who takes part now.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) session: Arc<Session>,
    /// Dense number of its rack.
    pub(super) rack: u32,
    /// It needs the content, says the reconciler.
    pub(super) receives: bool,
    /// When it should have it, ms since the epoch.
    pub(super) deadline_ms: Option<u64>,
    /// Its number at the planner; `None` until it said what it has.
    pub(super) number: Option<HostNo>,
    /// It was asked what it has and has not answered.
    pub(super) is_awaited: bool,
    /// When it was asked, µs since the campaign began.
    pub(super) asked_us: u64,
    /// How often it said what it has.
    pub(super) n_joins: u32,
    /// When its grant ends, ms since the epoch.
    pub(super) grant_ends_ms: u64,
    /// Numbers that were described to it, as bits.
    known: Vec<u64>,
}

impl Member {
    /// Whether it was told who has this number.
    pub(super) fn knows(&self, number: u32) -> bool {
        let word = self.known.get(number as usize / 64);
        word.is_some_and(|bits| bits >> (number % 64) & 1 == 1)
    }

    /// It was told who has this number.
    pub(super) fn told(&mut self, number: u32) {
        let at = number as usize / 64;
        if self.known.len() <= at {
            self.known.resize(at + 1, 0);
        }
        self.known[at] |= 1 << (number % 64);
    }

    /// It begins anew and may have forgotten everybody.
    pub(super) fn forget_known(&mut self) {
        self.known.clear();
    }
}

/// What a number stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) host: HostNo,
    /// `None`: the controller.
    pub(super) location: Option<LocationId>,
    pub(super) rack: u32,
}

/// What is kept of a location until the campaign is forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) receives: bool,
    pub(super) joined_us: Option<u64>,
    pub(super) finished_us: Option<u64>,
    pub(super) n_done: u32,
    /// Bytes that it needed when it joined, raw.
    pub(super) needed_bytes: u64,
    pub(super) upload_bytes_per_s: u64,
    pub(super) download_bytes_per_s: u64,
    from_controller: Counter,
    from_agents: Counter,
    sent: Counter,
    failures: Failures,
    /// Who had wrong bytes from it.
    accusers: HashSet<LocationId>,
}

/// A counter that begins anew when its host does.
#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    before: u64,
    now: u64,
}

impl Counter {
    const fn read(&mut self, value: u64) {
        if value < self.now {
            self.before = self.before.saturating_add(self.now);
        }
        self.now = value;
    }

    const fn sum(self) -> u64 {
        self.before.saturating_add(self.now)
    }
}

impl Tally {
    /// Takes the counters of a report.
    pub(super) const fn read(&mut self, report: &PieceReportV1) {
        self.from_controller.read(report.from_controller_bytes);
        self.from_agents.read(report.from_agents_bytes);
        self.sent.read(report.sent_bytes);
    }

    /// Another host says that it failed; whether it is out for good now.
    pub(super) fn failed(&mut self, by: LocationId, how: FailureKind) -> bool {
        self.failures.count(how);
        if how == FailureKind::Wrong && self.accusers.len() < ACCUSERS_MAX {
            self.accusers.insert(by);
        }
        self.is_expelled()
    }

    /// Whether so many had wrong bytes from it that it is not asked again.
    pub(super) fn is_expelled(&self) -> bool {
        self.accusers.len() >= ACCUSERS_MAX
    }

    pub(super) fn view(&self, location: LocationId, is_here: bool) -> HostView {
        HostView {
            location,
            receives: self.receives,
            is_here,
            n_done: self.n_done,
            joined_us: self.joined_us,
            finished_us: self.finished_us,
            from_controller_bytes: self.from_controller.sum(),
            from_agents_bytes: self.from_agents.sum(),
            sent_bytes: self.sent.sum(),
            failures: self.failures,
            accusers: u32::try_from(self.accusers.len()).unwrap_or(u32::MAX),
            is_expelled: self.is_expelled(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) by_location: HashMap<LocationId, Member>,
    pub(super) tallies: HashMap<LocationId, Tally>,
    rows: Vec<Row>,
    /// Dense numbers of the fleet's racks, in the order in which they came.
    racks: HashMap<u32, u32>,
}

impl Members {
    pub(super) fn new() -> Self {
        let source = Row { host: SOURCE, location: None, rack: u32::MAX };
        Self {
            by_location: HashMap::new(),
            tallies: HashMap::new(),
            rows: vec![source],
            racks: HashMap::new(),
        }
    }

    /// Takes somebody in; `rack` is the fleet's number of the rack.
    pub(super) fn put(&mut self, session: Arc<Session>, rack: u32, receives: bool, deadline_ms: Option<u64>) {
        let next = u32::try_from(self.racks.len()).unwrap_or(u32::MAX);
        let rack = *self.racks.entry(rack).or_insert(next);
        let location = session.location;
        self.tallies.entry(location).or_default().receives |= receives;
        let member = Member {
            session,
            rack,
            receives,
            deadline_ms,
            number: None,
            is_awaited: false,
            asked_us: 0,
            n_joins: 0,
            grant_ends_ms: u64::MAX,
            known: Vec::new(),
        };
        self.by_location.insert(location, member);
    }

    /// Racks of which somebody took part.
    pub(super) fn n_racks(&self) -> usize {
        self.racks.len()
    }

    /// The planner gave a location a number: the next one.
    pub(super) fn numbered(&mut self, host: HostNo, location: LocationId, rack: u32) {
        debug_assert_eq!(host.index(), self.rows.len(), "the planner counts up");
        self.rows.push(Row { host, location: Some(location), rack });
    }

    /// What a number of a message stands for; `None`: nobody.
    pub(super) fn row(&self, number: u32) -> Option<Row> {
        self.rows.get(number as usize).copied()
    }

    /// The member with this number, if it has it still.
    pub(super) fn of(&self, host: HostNo) -> Option<&Member> {
        let location = self.row(host.number())?.location?;
        self.by_location.get(&location).filter(|member| member.number == Some(host))
    }

    /// How others reach a host; `None`: it left, or cannot be reached.
    pub(super) fn describe(&self, host: HostNo) -> Option<PeerV1> {
        let session = &self.of(host)?.session;
        let mut addresses: Vec<String> =
            session.advertised.iter().take(PEER_ADDRESSES_MAX).cloned().collect();
        if addresses.is_empty() {
            let address = session.address;
            addresses
                .push(std::net::SocketAddr::new(address.ip().to_canonical(), address.port()).to_string());
        }
        Some(PeerV1 { host: host.number(), location: session.location, agent: session.agent, addresses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_begin_anew_lose_nothing() {
        let mut counter = Counter::default();
        [5, 9, 2, 4].into_iter().for_each(|value| counter.read(value));
        assert_eq!(counter.sum(), 13);
    }

    #[test]
    fn three_different_accusers_expel() {
        let mut tally = Tally::default();
        let by = |n: u8| LocationId::from_bytes([n; 16]);
        assert!(!tally.failed(by(1), FailureKind::Wrong));
        assert!(!tally.failed(by(1), FailureKind::Wrong) && !tally.failed(by(2), FailureKind::Wrong));
        assert!(!tally.failed(by(3), FailureKind::Silent), "only wrong bytes count");
        assert!(tally.failed(by(3), FailureKind::Wrong));
        assert_eq!(tally.failures.wrong, 4);
    }
}
