//! A simulated host: the agent's own decisions, and a model of its disk and links.

use hearth_agent::logic::swarm::{Downloads, Neighbours, Uploads};
use hearth_controller::logic::swarm::HostNo;

/// The place of the source among the simulated hosts.
pub(crate) const SOURCE: u32 = 0;

/// How a host behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Nature {
    Honest,
    /// Its bytes fail their hash.
    Corrupt,
    /// It takes a request and sends nothing.
    Stalling,
    /// It says it has what it does not have.
    Lying,
    /// It accuses whoever serves it.
    Accusing,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) nature: Nature,
    pub(crate) is_up: bool,
    /// One start of the process: what was under way before a crash is not heard of again.
    pub(crate) boot: u32,
    /// Its number at the planner; a host that comes back gets a new one.
    pub(crate) number: HostNo,
    /// 4 for a usual host, 1 for a slow one.
    pub(crate) speed: u64,
    /// A bit per piece that is verified on disk.
    pub(crate) done: Vec<u64>,
    pub(crate) n_done: u32,
    pub(crate) downloads: Downloads<u32>,
    pub(crate) uploads: Uploads<(u32, u32)>,
    pub(crate) neighbours: Neighbours<u32>,
    /// Pieces that come in now, from whom, and when they will be whole.
    pub(crate) receiving: Vec<(u32, u32, u64)>,
    pub(crate) finished_us: Option<u64>,
    /// A report is on its way to be made.
    pub(crate) report_planned: bool,
    /// Cut off from the controller until then.
    pub(crate) cut_until_us: u64,
    /// When a lease or a refill came last.
    pub(crate) heard_us: u64,
    /// When it spoke to the controller last.
    pub(crate) spoke_us: u64,
    pub(crate) sent_pieces: u64,
}

impl Host {
    pub(crate) fn has(&self, piece: u32) -> bool {
        self.done[piece as usize / 64] >> (piece % 64) & 1 == 1
    }

    pub(crate) fn put(&mut self, piece: u32) {
        if !self.has(piece) {
            self.done[piece as usize / 64] |= 1 << (piece % 64);
            self.n_done += 1;
        }
    }

    /// When a piece that is coming in will be whole.
    pub(crate) fn whole_at(&self, piece: u32) -> Option<u64> {
        self.receiving.iter().find(|(coming, ..)| *coming == piece).map(|(_, _, at_us)| *at_us)
    }

    pub(crate) fn is_honest(&self) -> bool {
        matches!(self.nature, Nature::Honest)
    }
}
