//! One host of a campaign, as the planner sees it.

use super::{HostNo, PieceNo};

/// The controller in its role as the source: it has every piece.
pub const SOURCE: HostNo = HostNo(0);

/// A host that joins a campaign.
#[derive(Clone, Copy, Debug)]
pub struct Joining {
    /// Number of its rack; hosts without one share a number.
    pub rack: u32,
    /// What it may send, bytes per second; at least 1.
    pub upload_bytes_per_s: u64,
    /// What it can take, bytes per second; at least 1.
    pub download_bytes_per_s: u64,
}

/// What is looked at for every candidate: kept small and together, as it is read at random a hundred million times.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Time that one piece takes on its uplink, µs.
    pub(super) step_us: u32,
    /// Leases from it under way on pieces that it has.
    pub(super) ready: u16,
    /// Leases from it under way on pieces that are coming to it.
    pub(super) promised: u16,
    /// It may be given more.
    pub(super) is_free: bool,
    /// It is here and not out.
    pub(super) may_serve: bool,
}

impl Load {
    /// When a lease given now would begin to be served, µs from now.
    pub(super) const fn wait_us(self, slots: u32) -> u64 {
        let ahead = (self.ready as u64 + self.promised as u64).saturating_sub(slots as u64 - 1);
        ahead * self.step_us as u64
    }
}

/// A lease under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnderWay {
    pub(super) piece: PieceNo,
    pub(super) from: HostNo,
    /// Who else was named.
    pub(super) alternates: [Option<HostNo>; 2],
    pub(super) expires_us: u64,
    /// It came from another rack.
    pub(super) crosses: bool,
    /// The supplier has sent it, but nobody has said yet that it is verified.
    pub(super) is_sent: bool,
}

impl UnderWay {
    /// Whether the receiver was told to ask this host.
    pub(super) fn names(&self, host: HostNo) -> bool {
        self.from == host || self.alternates.contains(&Some(host))
    }
}

/// The rest of what is known of a host.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) rack: u32,
    /// It left or crashed.
    pub(super) is_gone: bool,
    /// What it has does not count as copies.
    pub(super) is_disregarded: bool,
    /// When it was last heard, µs.
    pub(super) heard_us: u64,
    /// Time that one piece takes on its downlink, µs.
    pub(super) down_step_us: u64,
    /// Pieces of which it lacks nothing.
    pub(super) n_done: u32,
    pub(super) under_way: Vec<UnderWay>,
    /// Leases from it on pieces that are coming to it.
    pub(super) promised: Vec<(PieceNo, HostNo)>,
    pub(super) blame: super::blame::Record,
    /// Since when nobody was found for it, with nothing under way, µs.
    pub(super) starves_since_us: Option<u64>,
    /// It waits to be looked at again.
    pub(super) will_retry: bool,
    /// Nothing was found for it when it was looked at last.
    pub(super) found_nothing: bool,
}

impl Member {
    /// Whether it says too often that it was given wrong bytes.
    pub(super) const fn is_doubtful(&self) -> bool {
        self.blame.is_doubtful(self.n_done)
    }
}
